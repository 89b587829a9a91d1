//! The families that weigh rows of tensors and texts, one file each. A family sees one row and what is known of its caller, and says how odd that
//! is, if it has an opinion: its signal is what is betted on.
//!
//! To add a family, add a file with its [`Family`] and name it in [`ALL`].

use super::bounds::{Bounds, Of};
use super::near::Seen;
use super::rows::Told;
use super::space::{PHI, Point};
use crate::detect::text::substitution::Link;

mod collinear;
mod coverage;
mod flip;
mod lattice;
mod margin;
pub(super) mod outlier;
mod precision;
mod sparse;
mod substitution;
pub(super) mod window;

/// How many families there are.
pub(super) const COUNT: usize = 10;

/// All of them.
pub(super) const ALL: [&Family; COUNT] = [
    &outlier::FAMILY,
    &precision::FAMILY,
    &collinear::FAMILY,
    &lattice::FAMILY,
    &flip::FAMILY,
    &margin::FAMILY,
    &sparse::FAMILY,
    &window::FAMILY,
    &coverage::FAMILY,
    &substitution::FAMILY,
];

/// How far a family's word carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// It may tell people, and do nothing: honest callers look like this at times.
    Alert,
    /// It may move the caller on the ladder.
    Act,
}

/// What a family has an opinion of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LooksAt {
    /// Where inputs lie, which texts do too.
    Anything,
    /// Single numbers of theirs, of which the sketch of a text has none that mean anything.
    Numbers,
    /// Words.
    Texts,
}

/// One family of signals.
#[derive(Debug)]
pub(super) struct Family {
    /// Its name in events, metrics and calibrations.
    pub(super) name: &'static str,
    /// Techniques of MITRE ATLAS that look like this.
    pub(super) atlas: &'static [&'static str],
    /// Risks in OWASP's lists for machine learning (2023) and language models (2025).
    pub(super) owasp: &'static [&'static str],
    /// Of what.
    pub(super) looks_at: LooksAt,
    /// How far its word carries.
    pub(super) reach: Reach,
    /// What the mean of an honest caller's signal may be, whatever a recording says: other callers than those in it are honest too.
    honest: f32,
    /// What a person may do next.
    pub(super) advice: &'static str,
    /// How odd a row is; `None` where the family has no opinion of it.
    pub(super) weigh: fn(&Occasion<'_>) -> Option<Signal>,
}

impl Family {
    /// Whether it has an opinion of what a model takes.
    pub(super) fn speaks(&self, of: Of) -> bool {
        match self.looks_at {
            LooksAt::Anything => true,
            LooksAt::Numbers => of != Of::Texts,
            LooksAt::Texts => of != Of::Numbers,
        }
    }

    /// What the mean of an honest caller's signal may be of a model that takes that, whatever a recording says.
    pub(super) fn honest(&self, of: Of) -> f32 {
        if of != Of::Numbers && self.looks_at == LooksAt::Anything { self.honest.max(OF_TEXTS) } else { self.honest }
    }
}

/// What the mean of a signal may be at least of where the inputs of an honest caller lie, where a model takes texts: few of them are near
/// another, and so each weighs.
const OF_TEXTS: f32 = 0.06;

/// How many families have an opinion of what a model takes.
pub(super) fn speaking(of: Of) -> usize {
    ALL.iter().filter(|family| family.speaks(of)).count()
}

/// A row, and what is known of its caller with that row.
#[derive(Debug)]
pub(super) struct Occasion<'a> {
    /// How it stands to those before.
    pub(super) seen: &'a Seen,
    /// Where it lies.
    pub(super) point: &'a Point,
    /// What it was told.
    pub(super) told: &'a Told,
    /// What honest callers do.
    pub(super) bounds: &'a Bounds,
    /// All that the caller asked that was the first of its kind.
    pub(super) sums: &'a Sums,
    /// Nothing like it was asked before, neither here nor, in a cohort, by its own caller.
    pub(super) new: bool,
    /// What its text adds to a chain of texts.
    pub(super) link: Option<Link>,
    /// Coordinates that are kept of an input.
    pub(super) kept: usize,
    /// The inner product of the row's features with those of honest callers, for the first of a kind.
    pub(super) kernel: f32,
}

/// What is kept of all rows of a caller that were the first of their kind.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    /// How many.
    pub(super) count: u32,
    /// Their features, added up.
    pub(super) phi: [f32; PHI],
    /// The squares of their features' lengths, added up.
    pub(super) squares: f32,
    /// How many buckets they lie in.
    pub(super) buckets: u32,
}

impl Default for Sums {
    fn default() -> Self {
        Self { count: 0, phi: [0.0; PHI], squares: 0.0, buckets: 0 }
    }
}

impl Sums {
    /// Adds the features of a row, which came to so many new buckets.
    pub(super) fn add(&mut self, phi: &[f32; PHI], buckets: u32) {
        self.count += 1;
        self.buckets += buckets;
        self.squares += phi.iter().map(|phi| phi * phi).sum::<f32>();
        self.phi.iter_mut().zip(phi).for_each(|(sum, phi)| *sum += phi);
    }
}

/// What a family says of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Signal {
    /// How odd, from 0 to 1.
    pub(super) odd: f32,
    /// A number for people, and its name.
    pub(super) evidence: (&'static str, f32),
}

impl Signal {
    fn when(odd: bool, name: &'static str, number: f32) -> Option<Self> {
        Some(Self { odd: f32::from(u8::from(odd)), evidence: (name, number) })
    }
}

impl Occasion<'_> {
    /// Whether the margin is one that few honest rows have.
    pub(super) fn low(&self) -> bool {
        self.told.margin.is_some_and(|margin| margin < self.bounds.low_margin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_texts_single_numbers_are_weighed_as_strictly_as_alone() {
        for family in ALL {
            let at_least = if family.looks_at == LooksAt::Anything { OF_TEXTS } else { 0.0 };
            let granted = [Of::Numbers, Of::Both, Of::Texts].map(|of| family.honest(of));
            assert_eq!(granted, [family.honest, family.honest.max(at_least), family.honest.max(at_least)], "{}", family.name);
        }
        assert_eq!([&outlier::FAMILY, &lattice::FAMILY].map(|family| family.honest(Of::Both)), [0.06, 0.03]);
    }
}
