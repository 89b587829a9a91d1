//! What tells a row from all others: a keyed digest of every byte that a model may read of it.
//!
//! The numbers that the families look at are cut, filled up, thinned and rounded, and the words of texts are joined. A row for which no more was asked
//! than before costs nothing, so that what is left out there must not be left out here: names, types and shapes are of the digest, masks and what is
//! masked, numbers that are none, and texts with their lengths. A text that is filled up to another length is therefore another row: some models
//! read on behind the mask.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::LazyLock;

use crate::wire::tensor::Tensor;

/// What digests are keyed with: they are compared in this process alone.
pub(super) static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// How the rows lie in a tensor.
enum Column<'a> {
    /// All of it is of every row, and this is its digest.
    Common(u64),
    /// Each row has so many bytes.
    Even(&'a [u8], usize),
    /// Where each row ends.
    Ends(&'a [u8], Vec<usize>),
}

impl<'a> Column<'a> {
    fn common(tensor: &Tensor) -> Self {
        Self::Common(KEY.hash_one(&tensor.data[..]))
    }

    /// Of a batch of so many rows, of which the first `most` are asked for. None where it has neither as many nor one that is of every row.
    fn of(tensor: &'a Tensor, rows: usize, most: usize) -> Option<Self> {
        let (data, held) = (&tensor.data[..], tensor.shape.first().copied().unwrap_or(1));
        if held == 1 {
            return Some(Self::common(tensor));
        }
        if held != rows as u64 {
            return None;
        }
        if tensor.datatype.width().is_some() {
            return data.len().is_multiple_of(rows).then(|| Self::Even(data, data.len() / rows));
        }
        let each = tensor.elements().filter(|elements| elements.is_multiple_of(rows))? / rows;
        let mut end = 0;
        let ends = tensor.strings().map(|text| {
            end += size_of::<u32>() + text.len();
            end
        });
        let ends: Vec<usize> = ends.skip(each.checked_sub(1)?).step_by(each).take(most).collect();
        (ends.len() == most).then_some(Self::Ends(data, ends))
    }

    fn digest(&self, row: usize) -> u64 {
        let bytes = match self {
            Self::Common(digest) => return *digest,
            Self::Even(data, each) => &data[row * each..(row + 1) * each],
            Self::Ends(data, ends) => &data[row.checked_sub(1).map_or(0, |before| ends[before])..ends[row]],
        };
        KEY.hash_one(bytes)
    }
}

/// The digests of the first `most` of so many rows. In what order tensors are sent says nothing. Where one has neither as many rows nor one that is
/// of all of them, nobody knows which of it is whose: then each row is told from all others by its place, and by all of the batch.
pub(super) fn digests(tensors: &[Tensor], rows: usize, most: usize) -> Vec<u64> {
    let mut sent: Vec<&Tensor> = tensors.iter().filter(|tensor| !tensor.data.is_empty()).collect();
    sent.sort_by(|a, b| a.name.cmp(&b.name));
    let columns: Option<Vec<Column<'_>>> = sent.iter().map(|tensor| Column::of(tensor, rows, most)).collect();
    let apart = columns.is_some();
    let columns = columns.unwrap_or_else(|| sent.iter().map(|tensor| Column::common(tensor)).collect());
    // A row is the same alone and in a batch.
    let shape = |tensor: &'_ Tensor| if apart { tensor.shape.get(1..).map(<[u64]>::to_vec) } else { Some(tensor.shape.clone()) };
    let ports: Vec<_> = sent.iter().map(|tensor| (&tensor.name, tensor.datatype, shape(tensor))).collect();
    let ports = KEY.hash_one((apart, ports));
    let digest = |row: usize| {
        let mut hasher = KEY.build_hasher();
        hasher.write_u64(ports);
        if !apart {
            hasher.write_usize(row);
        }
        columns.iter().for_each(|column| hasher.write_u64(column.digest(row)));
        hasher.finish()
    };
    (0..most).map(digest).collect()
}
