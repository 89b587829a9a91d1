//! What an answer tells of the model, row by row: read off the tensors as they left, so that whatever shaped them is counted.
//!
//! Every floating tensor counts. Those of as many numbers a row are taken for the same thing said twice, as logits and probabilities are, and
//! the one of them counts that tells most; single numbers a row are one each. What is no float is a label.

use std::hash::BuildHasher;

use half::{bf16, f16};

use super::exact::KEY;
use super::rows::is_floating;
use crate::detect::exposure::bits::{Grain, Told};
use crate::wire::tensor::{Datatype, Tensor};

/// The most decimals that are looked for in answers; finer ones count as all that their type can tell.
const MOST_DECIMALS: i32 = 4;

/// Logarithms between which an answer says of a class that it is not the best: what labels are made of where scores are logarithms, at
/// whatever precision they leave.
const LEFT_OUT: std::ops::RangeInclusive<f64> = -14.0..=-13.5;

/// What the tensors of an answer tell.
#[derive(Debug)]
pub(super) struct Telling(Vec<Output>);

/// One of the tensors.
#[derive(Debug)]
struct Output {
    mark: u16,
    /// Numbers a row, and of them those that belong together.
    width: usize,
    classes: usize,
    values: Vec<f64>,
    finest: Grain,
}

/// Bits that a row was told.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row {
    /// By the marks of what told them; labels have none.
    told: Vec<(u16, f64)>,
    /// By the explanation of an output, where one is explained: which that is, and the bits.
    explained: Option<(u64, f64)>,
}

/// What is remembered of how much an input was told already.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum {
    pub(super) bits: f32,
    /// Of what told them.
    pub(super) marks: u16,
}

impl Sum {
    /// Remembers that `row` was told too, and tells how many bits more that is. What is told again, coarser or finer, tells no more than the
    /// finer; and a label lies in whatever scores are told after it. What explanations tell is [remembered by itself](Explained).
    pub(super) fn add(&mut self, row: &Row) -> f64 {
        let only_labels = self.marks == 0;
        let (mut new, mut again) = (0.0, 0.0);
        for (mark, bits) in &row.told {
            let known = only_labels || *mark == 0 || self.marks & mark != 0;
            *if known { &mut again } else { &mut new } += bits;
            self.marks |= mark;
        }
        let more = new + beyond(again, self.bits);
        self.bits += more as f32;
        more
    }
}

/// The last explanations: of which input and output, and the most bits that one told. They are many bits, so that what one output told is not held
/// against what another tells; and few are asked for, so that there is no place for one beside each input.
#[derive(Clone, Debug, Default)]
pub(super) struct Explained(Vec<(u64, f32)>);

impl Explained {
    /// Explanations that are remembered.
    const MOST: usize = 8;

    /// Remembers the explanation in `row`, if there is one, and tells how many bits more that is: all of them, where it is remembered no longer.
    pub(super) fn add(&mut self, digest: u64, row: &Row) -> f64 {
        let Some((output, bits)) = row.explained else { return 0.0 };
        let of = digest ^ output;
        let known = self.0.iter().position(|(known, _)| *known == of);
        let before = known.map_or(0.0, |at| self.0.remove(at).1);
        if self.0.len() == Self::MOST {
            self.0.remove(0);
        }
        self.0.push((of, before.max(bits as f32)));
        beyond(bits, before)
    }

    /// Bytes that are kept apart from it.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.0.capacity() * size_of::<(u64, f32)>()
    }
}

/// By how much bits are more than those before. What was lost in rounding is nothing that was told.
fn beyond(bits: f64, before: f32) -> f64 {
    let more = bits - f64::from(before);
    if more > bits * f64::from(f32::EPSILON) { more } else { 0.0 }
}

impl Row {
    /// As much again was told for each of `evaluations` that the model was asked for to explain the row's `output`.
    pub(super) fn explained(mut self, output: &str, evaluations: u32) -> Self {
        if evaluations > 0 {
            self.explained = Some((KEY.hash_one(output), self.bits() * f64::from(evaluations)));
        }
        self
    }

    /// All of them.
    pub(super) fn bits(&self) -> f64 {
        self.told.iter().map(|(_, bits)| bits).sum::<f64>() + self.explained.map_or(0.0, |(_, bits)| bits)
    }
}

impl Telling {
    /// Of the tensors that so many rows were told.
    pub(super) fn of(told: &[Tensor], rows: usize) -> Self {
        Self(told.iter().filter(|tensor| is_floating(tensor.datatype)).filter_map(|tensor| Output::of(tensor, rows)).collect())
    }

    /// What the row at a place was told, of a model of so many classes.
    pub(super) fn row(&self, at: usize, classes: u32) -> Row {
        let mut all: Vec<(u16, f64)> = Vec::new();
        for output in &self.0 {
            let Some(values) = output.values.chunks(output.width).nth(at) else { continue };
            let bits = values.chunks(output.classes).map(|values| tells(values, output.finest).bits()).sum();
            match all.iter_mut().find(|(mark, _)| *mark == output.mark) {
                Some((_, most)) => *most = most.max(bits),
                None => all.push((output.mark, bits)),
            }
        }
        if all.is_empty() {
            all.push((0, Told::Label { classes: classes.max(2) }.bits()));
        }
        Row { told: all, ..Row::default() }
    }
}

impl Output {
    fn of(tensor: &Tensor, rows: usize) -> Option<Self> {
        let (values, finest) = (numbers(tensor), finest(tensor.datatype));
        let width = values.len().div_ceil(rows.max(1));
        let last = tensor.shape.last().and_then(|last| usize::try_from(*last).ok()).unwrap_or(1);
        let classes = if tensor.shape.len() > 1 { last.clamp(1, width.max(1)) } else { width };
        let mark = if width > 1 { mark(&width) } else { mark(&tensor.name) };
        (width > 0).then_some(Self { mark, width, classes, values, finest })
    }
}

/// One bit of sixteen. Where two share one, what is told by the second is held to be what the first told.
fn mark(of: &impl std::hash::Hash) -> u16 {
    1 << (KEY.hash_one(of) % 16)
}

/// How finely a floating type tells a number.
pub(super) fn finest(datatype: Datatype) -> Grain {
    match datatype {
        Datatype::Fp16 => Grain::Half,
        Datatype::Bf16 => Grain::Brain,
        Datatype::Fp64 => Grain::Double,
        _ => Grain::Single,
    }
}

/// All numbers of a floating tensor, what is not finite as 0.
fn numbers(tensor: &Tensor) -> Vec<f64> {
    fn all<const W: usize>(data: &[u8], read: impl Fn([u8; W]) -> f64) -> Vec<f64> {
        let numbers = data.as_chunks::<W>().0.iter().map(|bytes| read(*bytes));
        numbers.map(|number| if number.is_finite() { number } else { 0.0 }).collect()
    }
    let data = &tensor.data[..];
    match tensor.datatype {
        Datatype::Fp16 => all(data, |bytes| f16::from_le_bytes(bytes).to_f64()),
        Datatype::Bf16 => all(data, |bytes| bf16::from_le_bytes(bytes).to_f64()),
        Datatype::Fp64 => all(data, f64::from_le_bytes),
        _ => all(data, |bytes| f64::from(f32::from_le_bytes(bytes))),
    }
}

/// What numbers tell that belong together. A single one between 0 and 1 is the probability of the second of two classes.
pub(super) fn tells(values: &[f64], finest: Grain) -> Told {
    match values {
        [second] if (0.0..=1.0).contains(second) => several(&[1.0 - second, *second], finest),
        _ => several(values, finest),
    }
}

fn several(values: &[f64], finest: Grain) -> Told {
    let classes = u32::try_from(values.len()).unwrap_or(u32::MAX);
    let (mut kept, mut ones) = (0, 0);
    for value in values {
        kept += u32::from(*value != 0.0);
        ones += u32::from(*value == 1.0);
    }
    if classes > 1 && (kept == 1 && ones == 1 || is_label_of_logarithms(values)) {
        return Told::Label { classes };
    }
    let grain = grain(values, finest);
    let probable = (values.iter().sum::<f64>() - 1.0).abs() < 0.02 && values.iter().all(|value| *value >= 0.0);
    match () {
        () if kept < classes => Told::Top { classes, kept, grain },
        () if probable => Told::Probabilities { classes, grain },
        () => Told::Numbers { count: classes, grain },
    }
}

/// Whether it is what a label becomes among logarithms of probabilities: nothing for the best, and next to nothing for all others.
fn is_label_of_logarithms(values: &[f64]) -> bool {
    let mut others = values.iter().filter(|value| **value != 0.0);
    let Some(first) = others.next() else { return false };
    values.iter().filter(|value| **value == 0.0).count() == 1 && LEFT_OUT.contains(first) && others.all(|other| other == first)
}

/// How finely numbers are told. They lie in a span that is known beforehand: up to 1 where all do, else twice the next power of two of the
/// greatest, since they may be negative. Of greater numbers two digits and more are looked for.
fn grain(values: &[f64], finest: Grain) -> Grain {
    let most = values.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
    let half = 0.5_f64.powf(finest.bits());
    let whole = |decimals: i32| {
        let scale = 10_f64.powi(decimals);
        // Where the type itself rounds by a tenth of a step, nothing is known of steps.
        most * scale * half < 0.1
            && values.iter().all(|value| ((value * scale).round() - value * scale).abs() <= value.abs() * scale * half)
    };
    let probable = values.iter().all(|value| (0.0..=1.0).contains(value));
    // The casts are of logarithms of floats.
    let span = if probable { 1.0 } else { 2_f64.powi(most.log2().ceil() as i32 + 1) };
    let first = if most >= 100.0 { 1 - most.log10().floor() as i32 } else { 0 };
    let steps = (first..=MOST_DECIMALS).find(|decimals| whole(*decimals));
    steps.map_or(finest, |decimals| Grain::Steps { step: 10_f64.powi(-decimals), span }.coarser(finest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fp32(name: &str, shape: &[u64], values: &[f32]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor { name: name.into(), datatype: Datatype::Fp32, shape: shape.to_vec(), data: data.into() }
    }

    fn bits(tensors: &[Tensor], classes: u32) -> f64 {
        Telling::of(tensors, 1).row(0, classes).bits()
    }

    fn of(values: &[f32]) -> Told {
        tells(&values.iter().copied().map(f64::from).collect::<Vec<_>>(), Grain::Single)
    }

    #[test]
    fn what_a_row_tells_is_read_off_its_numbers() {
        assert_eq!(of(&[0.0, 1.0, 0.0]), Told::Label { classes: 3 });
        let bits = |values: &[f32]| of(values).bits();
        assert!((bits(&[0.2, 0.5, 0.3]) - 2.0 * 10_f64.log2()).abs() < 1e-9);
        assert!(matches!(of(&[0.0, 0.75, 0.0]), Told::Top { classes: 3, kept: 1, .. }));
        assert_eq!(of(&[0.123_456_7, 0.5, 0.376_543_3]), Told::Probabilities { classes: 3, grain: Grain::Single });
        assert_eq!(of(&[0.999_6, 0.000_4]).bits(), 10_000_f64.log2(), "what is nearly sure is not rounded");
        assert!((bits(&[3.25, -1.5, 0.5]) - 3.0 * 800_f64.log2()).abs() < 1e-9);
    }

    #[test]
    fn numbers_that_are_no_probabilities_tell_what_their_precision_and_their_size_do() {
        assert_eq!(bits(&[fp32("y", &[1, 1], &[123.456_79])], 2), 23.0);
        assert_eq!(bits(&[fp32("y", &[1], &[-0.333_333_3])], 2), 23.0);
        // Whole numbers of up to 2¹⁴, either way.
        assert_eq!(bits(&[fp32("y", &[1, 1], &[12_345.0])], 2), 15.0);
        // Two digits, as they are left where labels alone are told.
        assert!((4.0..=8.0).contains(&bits(&[fp32("y", &[1, 1], &[12_000.0])], 2)));
        assert!((4.0..=8.0).contains(&bits(&[fp32("y", &[1, 1], &[100.0])], 2)));
        let two = [fp32("mean", &[1, 1], &[123.456_79]), fp32("spread", &[1, 1], &[2.345_678])];
        assert_eq!(bits(&two, 2), 46.0);
        let wide =
            Tensor { name: "y".into(), datatype: Datatype::Fp64, shape: vec![1], data: 0.1_f64.sqrt().to_le_bytes().to_vec().into() };
        assert_eq!(bits(&[wide], 2), 52.0);
        let half = Tensor { name: "y".into(), datatype: Datatype::Fp16, shape: vec![1], data: vec![0x55, 0x35].into() };
        assert_eq!(bits(&[half], 2), 10.0);
    }

    #[test]
    fn a_label_among_logarithms_is_a_label_whatever_the_precision() {
        for out in [1e-6_f64.ln() as f32, -13.8, -14.0, f32::from(f16::from_f64(1e-6_f64.ln()))] {
            assert_eq!(of(&[out, 0.0, out]), Told::Label { classes: 3 }, "{out}");
        }
        assert_ne!(of(&[-13.8, 0.0, -13.9]), Told::Label { classes: 3 });
        assert_ne!(of(&[-5.0, 0.0, -5.0]), Told::Label { classes: 3 });
    }

    #[test]
    fn what_is_said_twice_counts_once_and_what_is_no_float_is_a_label() {
        let (logits, likely) =
            (fp32("logits", &[1, 3], &[0.123_456, 2.345_67, -1.0]), fp32("p", &[1, 3], &[0.123_456_7, 0.5, 0.376_543_3]));
        assert_eq!(bits(&[logits, likely], 3), 69.0);
        assert!((bits(&[], 10) - 10_f64.log2()).abs() < 1e-9);
    }

    #[test]
    fn an_input_that_was_asked_before_tells_what_it_told_less() {
        let (label, scores) =
            (Telling(Vec::new()).row(0, 10), Telling::of(&[fp32("p", &[1, 2], &[0.123_456_7, 0.876_543_3])], 1).row(0, 2));
        let mut sum = Sum::default();
        assert!((sum.add(&label) - 10_f64.log2()).abs() < 1e-6);
        assert_eq!(sum.add(&label), 0.0);
        assert!((sum.add(&scores) - (23.0 - 10_f64.log2())).abs() < 1e-5);
        assert_eq!((sum.add(&scores), sum.add(&label)), (0.0, 0.0));
        let mut all = Explained::default();
        let mut more = |evaluations: u32| {
            let explained = scores.clone().explained("p", evaluations);
            sum.add(&explained) + all.add(1, &explained)
        };
        assert!(more(100) > 2_200.0);
        assert_eq!(more(100), 0.0);
        assert!(more(200) > 2_200.0, "what goes on where it ended tells the rest");
    }

    #[test]
    fn each_output_that_is_explained_tells_its_own() {
        let scores = Telling::of(&[fp32("p", &[1, 2], &[0.123_456_7, 0.876_543_3])], 1).row(0, 2);
        let bits = scores.bits();
        let (mut sum, mut all) = (Sum::default(), Explained::default());
        let mut add = |digest: u64, output: &str, evaluations: u32| {
            let row = scores.clone().explained(output, evaluations);
            sum.add(&row) + all.add(digest, &row)
        };
        for (output, evaluations, more) in
            [("p", 100, 101.0), ("q", 1, 1.0), ("q", 100, 99.0), ("q", 100, 0.0), ("q", 50, 0.0), ("p", 100, 0.0)]
        {
            assert!((add(1, output, evaluations) - more * bits).abs() < 0.1, "{output} {evaluations}");
        }
        (2..=8).for_each(|digest| assert!(add(digest, "p", 100) > 99.0 * bits, "of another input"));
        assert_eq!(add(1, "p", 100), 0.0, "eight are remembered");
        assert!(add(1, "q", 100) > 99.0 * bits, "and one before them is told anew");
    }
}
