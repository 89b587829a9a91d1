//! A request's tensors as rows of numbers, and its answer as what each row was told: all that the families ever see of either.

use std::cmp::Reverse;

use half::{bf16, f16};

use super::exact;
use crate::detect::text::substitution::Tokens;
use crate::wire::openai::embeddings::{TOKENS, VECTORS};
use crate::wire::tensor::{Datatype, Tensor};

/// Numbers of a row that are looked at. A longer row is thinned to every n-th number, so that its cost stays bounded.
pub(crate) const MOST_NUMBERS: usize = 1 << 16;

/// What a batch may become for each number that it holds. A tensor of one row beside longer ones is of every row, and narrow rows are filled up, so that
/// few bytes can say a great deal.
const TIMES: usize = 8;

/// Numbers that any batch may become: 1 MiB, as 1,024 rows of 256 numbers are.
const ANY: usize = 1 << 18;

/// Rows of one batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rows {
    /// Numbers a row.
    pub(super) width: usize,
    /// All rows, one after another.
    pub(super) numbers: Vec<f32>,
    /// A keyed digest of each row as it was sent. Without it inputs that differ only in what is not looked at would pass for repeats.
    pub(super) exact: Vec<u64>,
    /// The words of each row's text, where texts are looked at.
    pub(super) tokens: Vec<Tokens>,
    /// Rows of the batch behind them, that are not among them: [so many](most_rows) are looked at.
    pub(super) left: usize,
}

/// Rows of so many numbers that are made of a batch which holds `held`: one in any case.
pub(super) fn most_rows(held: usize, width: usize) -> usize {
    (held.saturating_mul(TIMES).max(ANY) / width.max(1)).max(1)
}

/// How rows lie in the tensors of a batch.
struct Layout<'a> {
    /// By their names and not in the order in which a caller sends them.
    numeric: Vec<&'a Tensor>,
    rows: usize,
    /// Of so many rows each of them holds the numbers: all of them, or the one that is of every row.
    held: Vec<usize>,
}

impl<'a> Layout<'a> {
    /// None where there are no numbers.
    fn of(tensors: &'a [Tensor]) -> Option<Self> {
        let mut numeric: Vec<&Tensor> =
            tensors.iter().filter(|tensor| !tensor.data.is_empty() && tensor.datatype != Datatype::Bytes).collect();
        numeric.sort_by(|a, b| a.name.cmp(&b.name));
        let of = |tensor: &Tensor| tensor.shape.first().copied().unwrap_or(1);
        let dimension = numeric.iter().map(|tensor| of(tensor)).max()?;
        let columned = numeric[0].shape.len() > 1 || numeric.len() > 1;
        let shared = columned && numeric.iter().all(|tensor| [1, dimension].contains(&of(tensor)));
        let rows = if shared { usize::try_from(dimension).unwrap_or(1).max(1) } else { 1 };
        let held = numeric.iter().map(|tensor| if shared && of(tensor) == 1 { 1 } else { rows }).collect();
        Some(Self { numeric, rows, held })
    }
}

impl Rows {
    /// The rows of a batch: along the first dimension, where all tensors have the same or one that is 1, which then is of every row; else all
    /// of it as one row. A single tensor without a second dimension is one row, several are its columns, by their names and not in
    /// the order in which a caller sends them. Texts have no numbers, and only tell repeats apart; where there is nothing else, there are no rows.
    pub(crate) fn of(tensors: &[Tensor]) -> Self {
        let Some(layout) = Layout::of(tensors) else { return Self::default() };
        let Layout { numeric, rows, held } = &layout;
        let columns: Vec<Vec<f32>> = numeric.iter().map(|tensor| numbers(tensor)).collect();
        let widths: Vec<usize> = columns.iter().zip(held).map(|(column, held)| column.len() / held).collect();
        let whole: usize = widths.iter().sum();
        let step = whole.div_ceil(MOST_NUMBERS).max(1);
        let width = whole.div_ceil(step);
        let kept = most_rows(columns.iter().map(Vec::len).sum(), width).min(*rows);
        let left = rows - kept;
        let exact = exact::digests(tensors, *rows, kept);
        if columns.len() == 1 && step == 1 {
            let [numbers] = <[_; 1]>::try_from(columns).unwrap_or_default();
            return Self { width, numbers, exact, left, ..Self::default() };
        }
        let mut all = Vec::with_capacity(kept * width);
        for row in 0..kept {
            let of_row = columns.iter().zip(&widths).zip(held).flat_map(|((column, width), held)| {
                let at = row.min(held - 1);
                &column[at * width..(at + 1) * width]
            });
            all.extend(of_row.step_by(step));
        }
        Self { width, numbers: all, exact, left, ..Self::default() }
    }

    /// How many rows there are in a batch that has numbers.
    pub(super) fn count(tensors: &[Tensor]) -> usize {
        Layout::of(tensors).map_or(0, |layout| layout.rows)
    }

    /// The same, each row cut to the length of `like`, or filled up with its numbers: rows of another width are to be seen like others.
    pub(crate) fn fitted(mut self, like: &[f32]) -> Self {
        if self.width == like.len() || self.width == 0 {
            return self;
        }
        self.keep(most_rows(self.numbers.len(), like.len()));
        let fill = |row: &[f32]| row.iter().copied().chain(like.iter().skip(row.len()).copied()).take(like.len()).collect::<Vec<f32>>();
        Self { width: like.len(), numbers: self.iter().flat_map(fill).collect(), ..self }
    }

    /// Leaves out the rows behind the first `most`.
    pub(super) fn keep(&mut self, most: usize) {
        let rows = self.iter().len();
        if most < rows {
            self.numbers.truncate(most * self.width);
            self.exact.truncate(most);
            self.tokens.truncate(most);
            self.left += rows - most;
        }
    }

    /// Rows of the batch, those that were left out too.
    pub(super) fn all(&self) -> usize {
        self.iter().len() + self.left
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.numbers.chunks_exact(self.width.max(1))
    }
}

/// All numbers of a tensor, what is not finite as 0.
pub(in crate::detect) fn numbers(tensor: &Tensor) -> Vec<f32> {
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

pub(in crate::detect) fn is_floating(datatype: Datatype) -> bool {
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
    /// Of the floating tensors with a row for each of `rows` and two classes or more that with most classes, and of equals the first by name:
    /// in what order a caller asks for them says nothing. Without one, a tensor of one number a row between 0 and 1 is the probability of
    /// the second of two classes.
    pub(super) fn of(tensors: &[Tensor], rows: usize) -> Option<Self> {
        let floating = || tensors.iter().filter(|tensor| is_floating(tensor.datatype));
        let of_rows = |tensor: &&Tensor| tensor.shape.len() == 2 && tensor.shape[0] == rows as u64 && tensor.shape[1] > 1;
        if let Some(scores) = floating().filter(of_rows).min_by_key(|tensor| (Reverse(tensor.shape[1]), &tensor.name)) {
            return Some(Self { classes: usize::try_from(scores.shape[1]).ok()?, values: numbers(scores) });
        }
        let one_each = |tensor: &&Tensor| rows > 0 && tensor.elements() == Some(rows);
        let single = floating().filter(one_each).min_by_key(|tensor| &tensor.name)?;
        let second = numbers(single);
        let probable = second.iter().all(|score| (0.0..=1.0).contains(score));
        probable.then(|| Self { classes: 2, values: second.iter().flat_map(|score| [1.0 - score, *score]).collect() })
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
    /// probabilities, or as logits where its rows are none; without one, the first tensor of whole numbers as labels. What an encoder says beside them,
    /// its vectors and how many tokens it read, is neither.
    pub(crate) fn of(tensors: &[Tensor], rows: usize) -> Vec<Self> {
        let beside = |tensor: &Tensor| tensor.name == VECTORS || tensor.name == TOKENS;
        if tensors.iter().any(beside) {
            return Self::of(&tensors.iter().filter(|tensor| !beside(tensor)).cloned().collect::<Vec<_>>(), rows);
        }
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
        let (x, b) = (fp32(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), bytes(&[2, 1], &[7, 8]));
        for sent in [[x.clone(), b.clone()], [b, x]] {
            assert_eq!(Rows::of(&sent).iter().collect::<Vec<_>>(), [[7.0, 1.0, 2.0], [8.0, 3.0, 4.0]], "by name, whatever the order");
        }
    }

    #[test]
    fn tensors_without_a_common_first_dimension_are_one_row() {
        let rows = Rows::of(&[fp32(&[2, 1], &[1.0, 2.0]), bytes(&[3, 1], &[7, 8, 9])]);
        assert_eq!(rows.iter().collect::<Vec<_>>(), [[7.0, 8.0, 9.0, 1.0, 2.0]]);
        assert_eq!(Rows::of(&[fp32(&[3], &[1.0, 2.0, 3.0])]).iter().len(), 1);
    }

    #[test]
    fn columns_without_a_second_dimension_and_what_is_of_every_row_make_rows_in_whatever_order() {
        let rows = Rows::of(&[fp32(&[2], &[1.0, 2.0]), fp32(&[2], &[3.0, 4.0]), bytes(&[1, 1], &[7])]);
        assert_eq!(rows.iter().collect::<Vec<_>>(), [[7.0, 1.0, 3.0], [7.0, 2.0, 4.0]]);
        let rows = Rows::of(&[bytes(&[1, 2], &[7, 8]), fp32(&[2, 1], &[1.0, 2.0])]);
        assert_eq!(rows.iter().collect::<Vec<_>>(), [[7.0, 8.0, 1.0], [7.0, 8.0, 2.0]]);
    }

    #[test]
    fn rows_of_another_width_are_cut_and_filled() {
        let fitted = |width: usize| Rows::of(&[fp32(&[2, width as u64], &vec![1.0; 2 * width])]).fitted(&[5.0, 6.0]);
        assert_eq!(fitted(1).iter().collect::<Vec<_>>(), [[1.0, 6.0], [1.0, 6.0]]);
        assert_eq!(fitted(3).iter().collect::<Vec<_>>(), [[1.0, 1.0], [1.0, 1.0]]);
        assert_eq!(fitted(2).iter().collect::<Vec<_>>(), [[1.0, 1.0], [1.0, 1.0]]);
    }

    #[test]
    fn what_the_numbers_do_not_tell_is_told_apart() {
        let fine = |values: &[f64]| {
            let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            Rows::of(&[Tensor { name: "x".into(), datatype: Datatype::Fp64, shape: vec![values.len() as u64, 1], data: data.into() }])
        };
        let rows = fine(&[1.0, 1.0 + 1e-12, 1.0]);
        assert_eq!((rows.numbers[0], rows.exact[0]), (rows.numbers[1], rows.exact[2]));
        assert_ne!(rows.exact[0], rows.exact[1]);
        let long = |last: f32| {
            let mut values = vec![1.0; MOST_NUMBERS * 2];
            values[MOST_NUMBERS * 2 - 1] = last;
            Rows::of(&[fp32(&[1, values.len() as u64], &values)])
        };
        assert_eq!(long(1.0), long(1.0));
        assert_eq!(long(1.0).numbers, long(2.0).numbers);
        assert_ne!(long(1.0).exact, long(2.0).exact);
        let beside = |text: &'static [u8]| {
            let text = Tensor { name: "t".into(), datatype: Datatype::Bytes, shape: vec![1], data: text.into() };
            Rows::of(&[fp32(&[1, 1], &[1.0]), text])
        };
        assert_eq!(beside(b"\x01\0\0\0a"), beside(b"\x01\0\0\0a"));
        assert_ne!(beside(b"\x01\0\0\0a").exact, beside(b"\x01\0\0\0b").exact);
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
        assert_eq!(Told::of(&[fp32(&[1, 1], &[3.0])], 1), [Told::default()], "a number that is no probability tells of no class");
    }

    #[test]
    fn one_probability_a_row_is_of_the_second_class() {
        for shape in [&[2, 1][..], &[2]] {
            let told = Told::of(&[fp32(shape, &[0.25, 0.75])], 2);
            assert_eq!(told.iter().map(|told| (told.label, told.classes)).collect::<Vec<_>>(), [(Some(0), 2), (Some(1), 2)]);
            assert_eq!(told.iter().map(|told| told.margin).collect::<Vec<_>>(), [Some(0.5), Some(0.5)]);
        }
        assert_eq!(Scores::of(&[fp32(&[2, 1], &[0.25, 1.25])], 2), None, "of what is no probability, none is one");
    }

    #[test]
    fn which_scores_count_is_not_for_the_caller_to_say() {
        let named = |name: &str, values: &[f32]| Tensor { name: name.into(), ..fp32(&[1, values.len() as u64], values) };
        let (few, many, more) = (named("a", &[0.9, 0.1]), named("b", &[0.1, 0.2, 0.7]), named("c", &[0.7, 0.2, 0.1]));
        for order in [[&few, &many, &more], [&more, &many, &few], [&many, &few, &more]] {
            let order: Vec<Tensor> = order.into_iter().cloned().collect();
            assert_eq!(Scores::of(&order, 1).unwrap().values, [0.1, 0.2, 0.7]);
        }
    }

    #[test]
    fn rows_take_no_more_than_some_times_what_was_sent_and_the_others_are_counted() {
        let sent = |name: &str, shape: &[u64]| {
            let count = shape.iter().product::<u64>() as usize;
            Tensor { name: name.into(), datatype: Datatype::Uint8, shape: shape.to_vec(), data: vec![1; count].into() }
        };
        // Six kilobytes, which say nine million numbers.
        let rows = Rows::of(&[sent("a", &[3_000, 1]), sent("b", &[1, 3_000])]);
        assert!(rows.numbers.len() <= ANY, "{}", rows.numbers.len());
        assert_eq!((rows.width, rows.all(), rows.iter().len()), (3_001, 3_000, ANY / 3_001));
        // And with the numbers of a model of pictures in the place of those that are missing.
        let fitted = Rows::of(&[sent("x", &[10_000, 1])]).fitted(&vec![0.0; 784]);
        assert!(fitted.numbers.len() <= ANY, "{}", fitted.numbers.len());
        assert_eq!((fitted.all(), fitted.iter().len()), (10_000, ANY / 784));
        // What was sent is looked at as it is, however much.
        assert_eq!(Rows::of(&[sent("x", &[300_000, 2])]).left, 0);
        assert_eq!(Rows::of(&[sent("x", &[1_000, 200]), sent("y", &[1_000, 200])]).left, 0);
    }

    #[test]
    fn a_row_is_the_same_alone_and_in_a_batch() {
        let fine = |rows: u64| {
            let data: Vec<u8> = (0..rows).flat_map(|_| 7_i64.to_le_bytes()).collect();
            Tensor { name: "x".into(), datatype: Datatype::Int64, shape: vec![rows, 1], data: data.into() }
        };
        let [alone, many] = [1, 3].map(|rows| Rows::of(&[fine(rows), bytes(&[1, 2], &[7, 8])]).exact);
        assert_eq!(many, [alone[0]; 3]);
    }
}
