//! The owner's inputs on which copies are tried: features and the model's own best class, and nothing else of them.

use std::cmp::Reverse;

/// Numbers of a sketch that the meter learns from.
///
/// What they are decides how much of a thief the meter sees. For inputs of up to 64 numbers: the input less its mean, over *one* standard
/// deviation for all numbers (or each over its own, where they are in units of their own), turned by a secret orthonormal matrix, which keeps distances and everything that is linear; where there
/// are fewer than 64, the places left hold nothing, and nothing is kept for them. For longer inputs a secret sparse
/// projection. Each number of an honest input should have a variance near 1: the meter's ridges are relative, its neighbours are not.
pub const FEATURES: usize = 64;

/// The most classes that are learned apart.
pub const MOST_CLASSES: usize = 10;

/// Of models with more classes than that: so many, the most frequent of the holdout, and one for all others.
pub const NAMED_CLASSES: usize = 8;

/// The fewest rows of a holdout: below, a fidelity of 0.9 is known to 0.05 at best.
pub const FEWEST_ROWS: usize = 128;

/// The most rows. Each costs 0.3 KiB once for each model, and time at each evaluation.
pub const MOST_ROWS: usize = 512;

/// The rows that are held against each query one by one, to find the nearest; the others are for the evaluation.
pub const NEAREST_ROWS: usize = 256;

/// How far out a feature counts; what is farther is taken for so far.
const FARTHEST: f32 = 32.0;

/// A sketch that can be learned from: finite and bounded.
#[derive(Clone, Debug)]
pub struct Features([f32; FEATURES]);

impl Features {
    /// Holds every number within ±32; what is no number is 0.
    #[must_use]
    pub fn of(numbers: &[f32; FEATURES]) -> Self {
        Self(numbers.map(|number| if number.is_nan() { 0.0 } else { number.clamp(-FARTHEST, FARTHEST) }))
    }

    /// The numbers.
    #[must_use]
    pub fn numbers(&self) -> &[f32; FEATURES] {
        &self.0
    }
}

/// Why rows are no holdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Fewer rows than [`FEWEST_ROWS`].
    OperatorGaveTooFew,
    /// More rows than [`MOST_ROWS`].
    OperatorGaveTooMany,
    /// A label that is none of the classes, or fewer than two classes.
    OperatorGaveUnknownClass,
}

/// The rows. One for a version of a model, shared by the meters of all its callers.
#[derive(Debug)]
pub struct Holdout {
    rows: Vec<[f32; FEATURES]>,
    /// The first rows once more, feature by feature: what the search for the nearest reads in order.
    columns: Vec<[f32; NEAREST_ROWS]>,
    /// Half the squared length of each of these; infinite where there is no row.
    halves: [f32; NEAREST_ROWS],
    labels: Vec<u32>,
    /// Each row's slot; `None` for rows of classes without a name.
    slots: Vec<Option<u8>>,
    classes: u32,
    /// The classes with a slot, in its order; empty where each class is its own slot.
    named: Vec<u32>,
    /// Features of which any row has more than nothing.
    used: usize,
    /// How far the rows lie from their mean: the mean square.
    spread: f32,
    /// For chance that is the same each time, and that nobody knows who has not the rows.
    dice: u32,
}

impl Holdout {
    /// Of rows, each with the class that the model itself finds best.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(rows: impl IntoIterator<Item = (Features, u32)>, classes: u32) -> Result<Self, Error> {
        let (rows, labels): (Vec<_>, Vec<_>) = rows.into_iter().map(|(features, label)| (features.0, label)).unzip();
        if rows.len() < FEWEST_ROWS {
            return Err(Error::OperatorGaveTooFew);
        }
        if rows.len() > MOST_ROWS {
            return Err(Error::OperatorGaveTooMany);
        }
        if classes < 2 || labels.iter().any(|label| *label >= classes) {
            return Err(Error::OperatorGaveUnknownClass);
        }
        let named = if classes as usize > MOST_CLASSES { most_frequent(&labels) } else { Vec::new() };
        let mut columns = vec![[0.0; NEAREST_ROWS]; FEATURES];
        let mut halves = [f32::INFINITY; NEAREST_ROWS];
        for (at, row) in rows.iter().take(NEAREST_ROWS).enumerate() {
            halves[at] = 0.5 * row.iter().map(|x| x * x).sum::<f32>();
            columns.iter_mut().zip(row).for_each(|(column, x)| column[at] = *x);
        }
        let used = rows.iter().filter_map(|row| row.iter().rposition(|x| *x != 0.0)).max().map_or(1, |last| last + 1);
        let (spread, dice) = (spread(&rows), dice(&rows));
        let mut holdout = Self { rows, columns, halves, labels, slots: Vec::new(), classes, named, used, spread, dice };
        holdout.slots = holdout.labels.iter().map(|label| holdout.named_slot(*label)).collect();
        Ok(holdout)
    }

    /// How many classes the model has.
    #[must_use]
    pub fn classes(&self) -> u32 {
        self.classes
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Never: fewer than [`FEWEST_ROWS`] are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn rows(&self) -> &[[f32; FEATURES]] {
        &self.rows
    }

    /// For each of the first rows, half of its squared distance from a query, less half of the query's squared length.
    pub(super) fn distances(&self, query: &[f32; FEATURES]) -> [f32; NEAREST_ROWS] {
        let mut distances = self.halves;
        // Four features at a time: the distances are read and written a quarter as often.
        for (four, columns) in query.as_chunks::<4>().0.iter().zip(self.columns.as_chunks::<4>().0) {
            let [a, b, c, d] = columns;
            for ((((distance, a), b), c), d) in distances.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                *distance -= (four[0] * a + four[1] * b) + (four[2] * c + four[3] * d);
            }
        }
        distances
    }

    pub(super) fn labels(&self) -> &[u32] {
        &self.labels
    }

    pub(super) fn slots(&self) -> &[Option<u8>] {
        &self.slots
    }

    /// Features that can be other than nothing; of inputs of fewer numbers than [`FEATURES`] the rest are none.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// The mean square of the rows' distance from their mean, above nothing.
    pub(super) fn spread(&self) -> f32 {
        self.spread
    }

    /// A seed of chance, never 0.
    pub(super) fn dice(&self) -> u32 {
        self.dice
    }

    /// Whether some classes share a slot.
    pub(super) fn has_others(&self) -> bool {
        !self.named.is_empty()
    }

    /// How many classes are learned apart.
    pub(super) fn width(&self) -> usize {
        if self.named.is_empty() { self.classes as usize } else { self.named.len() + 1 }
    }

    /// The slot under which a class is learned: its own, or the one for all others.
    pub(super) fn slot(&self, class: u32) -> u8 {
        // Both are below MOST_CLASSES.
        self.named_slot(class).unwrap_or(self.named.len() as u8)
    }

    fn named_slot(&self, class: u32) -> Option<u8> {
        if self.named.is_empty() {
            return u8::try_from(class).ok();
        }
        self.named.iter().position(|named| *named == class).and_then(|slot| u8::try_from(slot).ok())
    }
}

fn spread(rows: &[[f32; FEATURES]]) -> f32 {
    let count = rows.len() as f64;
    let of_feature = |place: usize| {
        let (sum, squares) = rows.iter().map(|row| f64::from(row[place])).fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
        (squares / count - (sum / count).powi(2)).max(0.0)
    };
    // Of equal rows nothing is far.
    ((0..FEATURES).map(of_feature).sum::<f64>() as f32).max(f32::MIN_POSITIVE.sqrt())
}

/// All bits of the rows, folded.
fn dice(rows: &[[f32; FEATURES]]) -> u32 {
    let fold = |state: u64, x: &f32| (state ^ u64::from(x.to_bits())).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    let folded = rows.iter().flatten().fold(1, fold);
    // The cast keeps the upper half.
    ((folded >> 32) as u32).max(1)
}

fn most_frequent(labels: &[u32]) -> Vec<u32> {
    let mut counts = std::collections::BTreeMap::new();
    labels.iter().for_each(|label| *counts.entry(*label).or_insert(0_usize) += 1);
    let mut order: Vec<(Reverse<usize>, u32)> = counts.into_iter().map(|(label, count)| (Reverse(count), label)).collect();
    order.sort_unstable();
    order.into_iter().take(NAMED_CLASSES).map(|(_, label)| label).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: usize, classes: u32) -> Vec<(Features, u32)> {
        (0..count).map(|at| (Features::of(&[at as f32; FEATURES]), at as u32 % classes)).collect()
    }

    #[test]
    fn a_holdout_has_between_128_and_512_rows() {
        let made = |count| Holdout::new(rows(count, 3), 3).map(|holdout| holdout.len());
        assert_eq!(made(FEWEST_ROWS - 1), Err(Error::OperatorGaveTooFew));
        assert_eq!(made(FEWEST_ROWS), Ok(FEWEST_ROWS));
        assert_eq!(made(MOST_ROWS), Ok(MOST_ROWS));
        assert_eq!(made(MOST_ROWS + 1), Err(Error::OperatorGaveTooMany));
    }

    #[test]
    fn labels_are_classes_of_the_model() {
        assert_eq!(Holdout::new(rows(200, 4), 3).unwrap_err(), Error::OperatorGaveUnknownClass);
        assert_eq!(Holdout::new(rows(200, 1), 1).unwrap_err(), Error::OperatorGaveUnknownClass);
    }

    #[test]
    fn ten_classes_are_their_own_slots_and_of_eleven_the_most_frequent_eight_are() {
        let ten = Holdout::new(rows(200, 10), 10).unwrap();
        assert_eq!((ten.width(), ten.slot(9)), (10, 9));
        // Class 10 is the most frequent, and class 0 the least.
        let many = Holdout::new((0..200).map(|at| (Features::of(&[0.0; FEATURES]), if at < 150 { 10 } else { 1 + at % 9 })), 11).unwrap();
        assert_eq!(many.width(), NAMED_CLASSES + 1);
        assert_eq!(many.slot(10), 0);
        assert_eq!(many.slot(0), NAMED_CLASSES as u8, "a class without a name is one of the others");
        assert_eq!(many.slots()[0], Some(0));
    }

    #[test]
    fn features_are_finite_and_bounded() {
        let mut wild = [0.5; FEATURES];
        (wild[0], wild[1], wild[2]) = (f32::NAN, f32::INFINITY, -1e9);
        let features = Features::of(&wild);
        assert_eq!(features.numbers()[..4], [0.0, 32.0, -32.0, 0.5]);
    }
}
