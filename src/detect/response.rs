//! How an answer is made to tell less of the model: what the ladder decides and `infer` carries out.
//!
//! Whatever keeps the best class can be undone by taking nothing but the best class: a thief who trains on labels loses nothing by
//! any of it. So no shape here promises more than the label-only answer does, which is the last of them.

use std::fmt;

/// How far a graded shape goes, from 1 to [`Level::MOST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(u8);

impl Level {
    /// The farthest.
    pub const MOST: Self = Self(8);

    /// The least.
    pub const LEAST: Self = Self(1);

    /// The level of a number, held within its bounds.
    #[must_use]
    pub fn of(level: u8) -> Self {
        Self(level.clamp(Self::LEAST.0, Self::MOST.0))
    }

    /// The level that goes with the part of an exposure budget that is spent: none up to a half, then in even steps, the farthest when all
    /// of it is spent. What is no number counts as all.
    #[must_use]
    pub fn of_spent(spent: f64) -> Option<Self> {
        const FROM: f64 = 0.5;
        if spent.is_nan() {
            return Some(Self::MOST);
        }
        let above = (spent - FROM) / (1.0 - FROM);
        // The cast is of a number that was held between 1 and 8.
        (above > 0.0).then(|| Self((above * f64::from(Self::MOST.0)).ceil().clamp(1.0, f64::from(Self::MOST.0)) as u8))
    }

    /// As a part of the farthest, above 0 and at most 1.
    #[must_use]
    pub fn part(self) -> f64 {
        f64::from(self.0) / f64::from(Self::MOST.0)
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// What is done to rows of probabilities. The order is that of how much is withheld.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shaping {
    /// Nothing.
    #[default]
    AsIs,
    /// The margin between the best two is led against its trend, so that attacks that follow scores walk away from their goal.
    Adversarial,
    /// Reverse sigmoid.
    ReverseSigmoid(Level),
    /// The nearest of few answers.
    Quantised(Level),
    /// The best class alone, as a one-hot row.
    LabelOnly,
}

/// How much of the space of embeddings a caller has covered, in tenths of a percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Coverage(u16);

impl Coverage {
    /// All of it.
    pub const ALL: Self = Self(1_000);

    /// A part from 0 to 1, held within; what is no number counts as all.
    #[must_use]
    pub fn of(part: f64) -> Self {
        // The cast is of a number that was held between 0 and 1000.
        if part.is_nan() { Self::ALL } else { Self((part.clamp(0.0, 1.0) * 1_000.0).round() as u16) }
    }

    /// In percent.
    #[must_use]
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 10.0
    }
}

/// What keyed shapes take their choices from. One for a model's version and a step of the ladder: within these, equal answers are
/// shaped equally, and asking again tells nothing. It is secret, and not printed.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Seed([u8; 16]);

impl Seed {
    /// Of bytes that come from a secret.
    #[must_use]
    pub const fn from_secret(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn expose(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

/// What the ladder wants done to an answer. Nothing, unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// To rows of probabilities.
    pub shaping: Shaping,
    /// To embeddings: noise by how much the caller has covered.
    pub covered: Coverage,
    /// What keyed shapes take their choices from.
    pub seed: Seed,
}

impl Response {
    /// The greater of two, with the seed of the one that shapes more.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let seed = if (other.shaping, other.covered) > (self.shaping, self.covered) { other.seed } else { self.seed };
        Self { shaping: self.shaping.max(other.shaping), covered: self.covered.max(other.covered), seed }
    }

    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.shaping == Shaping::AsIs && self.covered == Coverage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_follows_what_is_spent_from_a_half_on() {
        assert_eq!(Level::of_spent(0.0), None);
        assert_eq!(Level::of_spent(0.5), None);
        assert_eq!(Level::of_spent(0.5 + 1e-9), Some(Level::LEAST));
        assert_eq!(Level::of_spent(0.75).map(Level::number), Some(4));
        assert_eq!(Level::of_spent(1.0), Some(Level::MOST));
        assert_eq!(Level::of_spent(f64::INFINITY), Some(Level::MOST));
        assert_eq!(Level::of_spent(f64::NAN), Some(Level::MOST), "what cannot be told is held against the caller");
        assert_eq!((Level::of(0), Level::of(9)), (Level::LEAST, Level::MOST));
    }

    #[test]
    fn the_greater_of_two_responses_wins_with_its_seed() {
        let quantised = Response { shaping: Shaping::Quantised(Level::of(3)), seed: Seed::from_secret([1; 16]), ..Response::default() };
        let label = Response { shaping: Shaping::LabelOnly, seed: Seed::from_secret([2; 16]), ..Response::default() };
        assert_eq!(quantised.and(label), label);
        assert_eq!(label.and(quantised), label);
        assert_eq!(Response::default().and(quantised), quantised);
        assert!(Shaping::Quantised(Level::of(2)) < Shaping::Quantised(Level::of(3)));
        assert!(Shaping::ReverseSigmoid(Level::MOST) < Shaping::Quantised(Level::LEAST));
    }

    #[test]
    fn nothing_is_the_default_and_a_seed_is_not_printed() {
        assert!(Response::default().is_nothing());
        assert!(!Response { covered: Coverage::of(0.001), ..Response::default() }.is_nothing());
        assert_eq!(format!("{:?}", Seed::from_secret([9; 16])), "Seed(..)");
    }

    #[test]
    fn coverage_is_held_between_nothing_and_all() {
        assert_eq!(Coverage::of(-1.0), Coverage::default());
        assert_eq!(Coverage::of(2.0), Coverage::ALL);
        assert_eq!(Coverage::of(f64::NAN), Coverage::ALL);
        assert!((Coverage::of(0.8).percent() - 80.0).abs() < 1e-9);
    }
}
