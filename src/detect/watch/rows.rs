//! A request's tensors as rows of numbers, and its answer as what each row was told: all that the families ever see of either.

use half::{bf16, f16};

use crate::wire::tensor::{Datatype, Tensor};

/// Numbers of a row that are looked at. A longer row is thinned to every n-th number, so that its cost stays bounded.
pub(crate) const MOST_NUMBERS: usize = 1 << 16;

/// Rows of one batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rows {
    /// Numbers a row.
    pub(super) width: usize,
    /// All rows, one after another.
    pub(super) numbers: Vec<f32>,
}

impl Rows {
    /// The rows of a batch: along the first dimension, where all tensors have the same, else all of it as one row. Texts have no numbers; where
    /// there is nothing else, there are no rows.
    pub(crate) fn of(tensors: &[Tensor]) -> Self {
        let numeric = || tensors.iter().filter(|tensor| tensor.datatype != Datatype::Bytes && !tensor.data.is_empty());
        let Some(first) = numeric().next() else { return Self::default() };
        let dimension = first.shape.first().copied().unwrap_or(1);
        let shared = first.shape.len() > 1 && numeric().all(|tensor| tensor.shape.first() == Some(&dimension));
        let rows = if shared { usize::try_from(dimension).unwrap_or(1).max(1) } else { 1 };
        let columns: Vec<Vec<f32>> = numeric().map(numbers).collect();
        let widths: Vec<usize> = columns.iter().map(|column| column.len() / rows).collect();
        let whole: usize = widths.iter().sum();
        let step = whole.div_ceil(MOST_NUMBERS).max(1);
        if columns.len() == 1 && step == 1 {
            let [numbers] = <[_; 1]>::try_from(columns).unwrap_or_default();
            return Self { width: whole, numbers };
        }
        let mut all = Vec::with_capacity(rows * whole.div_ceil(step));
        for row in 0..rows {
            let of_row = columns.iter().zip(&widths).flat_map(|(column, width)| &column[row * width..(row + 1) * width]);
            all.extend(of_row.step_by(step));
        }
        Self { width: whole.div_ceil(step), numbers: all }
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.numbers.chunks_exact(self.width.max(1))
    }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    fn all<const W: usize>(data: &[u8], read: impl Fn([u8; W]) -> f32) -> Vec<f32> {
        data.as_chunks::<W>().0.iter().map(|bytes| read(*bytes)).collect()
    }
    let data = &tensor.data[..];
    let mut numbers = match tensor.datatype {
        Datatype::Fp32 => all(data, f32::from_le_bytes),
        Datatype::Fp64 => all(data, |bytes| f64::from_le_bytes(bytes) as f32),
        Datatype::Fp16 => all(data, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Datatype::Bf16 => all(data, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        Datatype::Bool | Datatype::Uint8 => all(data, |[byte]: [u8; 1]| f32::from(byte)),
        Datatype::Int8 => all(data, |bytes| f32::from(i8::from_le_bytes(bytes))),
        Datatype::Uint16 => all(data, |bytes| f32::from(u16::from_le_bytes(bytes))),
        Datatype::Int16 => all(data, |bytes| f32::from(i16::from_le_bytes(bytes))),
        Datatype::Uint32 => all(data, |bytes| u32::from_le_bytes(bytes) as f32),
        Datatype::Int32 => all(data, |bytes| i32::from_le_bytes(bytes) as f32),
        Datatype::Uint64 => all(data, |bytes| u64::from_le_bytes(bytes) as f32),
        Datatype::Int64 => all(data, |bytes| i64::from_le_bytes(bytes) as f32),
        Datatype::Bytes => Vec::new(),
    };
    // What is not finite is judged elsewhere; here it is only not to spread.
    numbers.iter_mut().filter(|number| !number.is_finite()).for_each(|number| *number = 0.0);
    numbers
}

fn is_floating(datatype: Datatype) -> bool {
    matches!(datatype, Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64)
}

/// A score for each class, for each row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scores {
    /// How many classes there are.
    pub(super) classes: usize,
    /// All scores, row by row.
    pub(super) values: Vec<f32>,
}

impl Scores {
    /// The first floating tensor with a row for each of `rows` and two classes or more.
    pub(super) fn of(tensors: &[Tensor], rows: usize) -> Option<Self> {
        let of_rows = |tensor: &&Tensor| tensor.shape.len() == 2 && tensor.shape[0] == rows as u64 && tensor.shape[1] > 1;
        let scores = tensors.iter().filter(|tensor| is_floating(tensor.datatype)).find(of_rows)?;
        Some(Self { classes: usize::try_from(scores.shape[1]).ok()?, values: numbers(scores) })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.classes)
    }

    /// Whether a row is one of probabilities, as far as they were rounded.
    pub(super) fn simplex(&self, row: &[f32]) -> bool {
        (row.iter().sum::<f32>() - 1.0).abs() < 0.02 && row.iter().all(|score| *score >= 0.0)
    }
}

/// What a row was told.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Told {
    /// The class that is likeliest, or the label that was answered.
    pub(super) label: Option<u32>,
    /// The likeliest probability less the second, from 0 to 1; without probabilities nothing is known of it.
    pub(super) margin: Option<f32>,
    /// How many classes there are.
    pub(super) classes: u32,
}

impl Told {
    /// What each of `rows` rows was told by the tensors of an answer. The first floating tensor with two classes or more is read as
    /// probabilities, or as logits where its rows are none; without one, the first tensor of whole numbers as labels.
    pub(crate) fn of(tensors: &[Tensor], rows: usize) -> Vec<Self> {
        if let Some(scores) = Scores::of(tensors, rows) {
            return scores.iter().map(|row| Self::of_scores(&scores, row)).collect();
        }
        let one_each = |tensor: &&Tensor| tensor.elements() == Some(rows) && tensor.datatype != Datatype::Bytes;
        match tensors.iter().filter(one_each).find(|tensor| !is_floating(tensor.datatype)) {
            Some(labels) => numbers(labels).iter().map(|label| Self { label: Some(*label as u32), margin: None, classes: 0 }).collect(),
            None => vec![Self::default(); rows],
        }
    }

    fn of_scores(all: &Scores, scores: &[f32]) -> Self {
        let (mut label, mut best, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
        for (class, score) in scores.iter().enumerate() {
            if *score > best {
                (label, best, second) = (class, *score, best);
            } else if *score > second {
                second = *score;
            }
        }
        let margin = if all.simplex(scores) {
            best - second
        } else {
            // Of logits, as softmax makes them.
            let whole: f32 = scores.iter().map(|score| (score - best).exp()).sum();
            (1.0 - (second - best).exp()) / whole
        };
        Self { label: Some(label as u32), margin: Some(margin.clamp(0.0, 1.0)), classes: scores.len() as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fp32(shape: &[u64], values: &[f32]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor { name: "x".into(), datatype: Datatype::Fp32, shape: shape.to_vec(), data: data.into() }
    }

    fn bytes(shape: &[u64], data: &'static [u8]) -> Tensor {
        Tensor { name: "b".into(), datatype: Datatype::Uint8, shape: shape.to_vec(), data: data.into() }
    }

    #[test]
    fn a_batch_is_unrolled_in_order_over_all_its_tensors() {
        let rows = Rows::of(&[fp32(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), bytes(&[2, 1], &[7, 8])]);
        assert_eq!(rows.iter().collect::<Vec<_>>(), [[1.0, 2.0, 7.0], [3.0, 4.0, 8.0]]);
    }

    #[test]
    fn tensors_without_a_common_first_dimension_are_one_row() {
        let rows = Rows::of(&[fp32(&[2, 1], &[1.0, 2.0]), bytes(&[1, 1], &[7])]);
        assert_eq!(rows.iter().collect::<Vec<_>>(), [[1.0, 2.0, 7.0]]);
        assert_eq!(Rows::of(&[fp32(&[3], &[1.0, 2.0, 3.0])]).iter().len(), 1);
    }

    #[test]
    fn what_is_not_finite_and_what_is_nothing_spreads_nowhere() {
        assert_eq!(Rows::of(&[fp32(&[1, 2], &[f32::NAN, f32::INFINITY])]).numbers, [0.0, 0.0]);
        assert_eq!(Rows::of(&[]).iter().len(), 0);
        assert_eq!(Rows::of(&[fp32(&[0, 2], &[])]).iter().len(), 0);
    }

    #[test]
    fn a_long_row_is_thinned_and_one_at_the_bound_is_not() {
        let long = |count: usize| Rows::of(&[fp32(&[1, count as u64], &vec![1.0; count])]).width;
        assert_eq!(long(MOST_NUMBERS), MOST_NUMBERS);
        assert_eq!(long(MOST_NUMBERS + 1), MOST_NUMBERS / 2 + 1);
    }

    #[test]
    fn probabilities_logits_and_labels_are_understood() {
        let told = Told::of(&[fp32(&[1, 3], &[0.2, 0.7, 0.1])], 1)[0];
        assert_eq!((told.label, told.classes), (Some(1), 3));
        assert!((told.margin.unwrap() - 0.5).abs() < 1e-6);
        // Logits of the same probabilities.
        let told = Told::of(&[fp32(&[1, 3], &[0.2_f32.ln() + 5.0, 0.7_f32.ln() + 5.0, 0.1_f32.ln() + 5.0])], 1)[0];
        assert!((told.margin.unwrap() - 0.5).abs() < 1e-5);
        assert_eq!(Told::of(&[bytes(&[2], &[4, 9])], 2).iter().map(|told| told.label).collect::<Vec<_>>(), [Some(4), Some(9)]);
        assert_eq!(Told::of(&[fp32(&[1, 1], &[0.3])], 1), [Told::default()]);
    }
}
