//! `[detect.alike]`. Which callers work together: those whose prompts lie in one place, and who come and go at the same times.
//!
//! Many accounts that one party feeds from one queue ask for the same and share the queue's rate. Either alone is common among strangers: products
//! are alike, and offices open at nine. Two callers are alike where both hold; cohorts are what is connected so. That is no evidence of anything: teams are
//! alike too. What the callers of a cohort asked is looked at [together](super::together).
//!
//! The places are means of the [sketches](crate::detect::text::sketch) of prompts, less what all callers have in common: what every prompt in a language has
//! is no likeness. Below [`FEWEST`] prompts a caller has no place, and belongs to nobody. Of a rate that is the same all day nobody can tell whose it is.

use serde::Deserialize;
use toml::Spanned;

use crate::detect::text::sketch::NUMBERS;
use crate::mistake::Mistake;

/// Callers that are compared at most, the first ones: all pairs take less than a second for so many, and no request waits for it.
pub const MOST_MEMBERS: usize = 4_096;

/// Prompts of a caller before it has a place.
pub const FEWEST: u32 = 32;

/// Spans of time over which rates are compared.
pub const SPANS: usize = 96;

/// Spans in which at least one of two callers was active, before their rates are compared.
pub const FEWEST_SPANS: u32 = 12;

/// The cosine at which two callers count as one for what all callers have in common, before that is taken away.
const SAME: f32 = 0.95;

/// A caller.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// The sum of the sketches of its prompts.
    pub sum: [f32; NUMBERS],
    /// How many they are.
    pub prompts: u32,
    /// Prompts in each of the last [`SPANS`] spans of a quarter of an hour, a day, in any order that is the same for all.
    pub rates: [u16; SPANS],
}

/// How alike two callers must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// The cosine between their places.
    pub place: f32,
    /// The correlation of their rates.
    pub rate: f32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { place: 0.8, rate: 0.6 }
    }
}

/// `[detect.alike]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The cosine between two callers' places from which on they are alike, more than 0 and at most 1; 0.8 where it is left out.
    pub place: Option<Spanned<f32>>,
    /// The correlation of their rates from which on they are, more than 0 and at most 1; 0.6 where it is left out.
    pub rate: Option<Spanned<f32>>,
}

impl Config {
    /// The bounds; what is wrong with them is added to `mistakes`.
    pub fn compile(&self, mistakes: &mut Vec<Mistake>) -> Bounds {
        let mut bound = |said: Option<&Spanned<f32>>, otherwise: f32| {
            let Some(said) = said else { return otherwise };
            if !(*said.get_ref() > 0.0 && *said.get_ref() <= 1.0) {
                mistakes.push(Mistake::at(said.span(), "callers are alike from a bound on that is more than 0 and at most 1".to_owned()));
            }
            *said.get_ref()
        };
        let Bounds { place, rate } = Bounds::default();
        Bounds { place: bound(self.place.as_ref(), place), rate: bound(self.rate.as_ref(), rate) }
    }
}

/// The cohort of each member, in their order: the index of the first member of it, or nothing for who is alone.
#[must_use]
pub fn cohorts(members: &[Member], bounds: Bounds) -> Vec<Option<usize>> {
    let compared = &members[..members.len().min(MOST_MEMBERS)];
    let means: Vec<_> = compared.iter().map(mean).collect();
    let centre = centre(means.iter().flatten());
    let places: Vec<_> = means.into_iter().map(|mean| Some(unit(less(mean?, &centre)))).collect();
    let rates: Vec<_> = compared.iter().map(|member| Rate::of(&member.rates)).collect();
    let mut parents: Vec<usize> = (0..members.len()).collect();
    for (one, place) in places.iter().enumerate() {
        let Some(place) = place else { continue };
        for (other, theirs) in places.iter().enumerate().skip(one + 1) {
            let Some(theirs) = theirs else { continue };
            if dot(place, theirs) >= bounds.place && rates[one].correlation(&rates[other]).is_some_and(|rate| rate >= bounds.rate) {
                join(&mut parents, one, other);
            }
        }
    }
    let roots: Vec<usize> = (0..members.len()).map(|member| root(&mut parents, member)).collect();
    let mut sizes = vec![0_u32; members.len()];
    roots.iter().for_each(|root| sizes[*root] += 1);
    roots.into_iter().map(|root| Some(root).filter(|root| sizes[*root] > 1)).collect()
}

fn mean(member: &Member) -> Option<[f32; NUMBERS]> {
    let some = member.prompts >= FEWEST && member.sum.iter().all(|number| number.is_finite());
    some.then(|| member.sum.map(|sum| sum / member.prompts as f32))
}

/// What all callers have in common: the median of the means, number by number, of which those that are the same count once. So the keys of one party
/// do not draw it to themselves, however many they are beside the others. Where all are the same nothing is taken away, and rates alone tell who is
/// alike.
fn centre<'a>(means: impl Iterator<Item = &'a [f32; NUMBERS]>) -> [f32; NUMBERS] {
    let mut kinds: Vec<([f32; NUMBERS], [f32; NUMBERS])> = Vec::new();
    for mean in means {
        let place = unit(*mean);
        if !kinds.iter().any(|(_, kind)| dot(kind, &place) >= SAME) {
            kinds.push((*mean, place));
        }
    }
    if kinds.len() < 2 {
        return [0.0; NUMBERS];
    }
    std::array::from_fn(|at| {
        let mut column: Vec<f32> = kinds.iter().map(|(mean, _)| mean[at]).collect();
        let middle = column.len() / 2;
        let (below, upper, _) = column.select_nth_unstable_by(middle, f32::total_cmp);
        let lower = below.iter().copied().max_by(f32::total_cmp).filter(|_| kinds.len().is_multiple_of(2));
        lower.map_or(*upper, |lower| f32::midpoint(lower, *upper))
    })
}

fn less(mean: [f32; NUMBERS], centre: &[f32; NUMBERS]) -> [f32; NUMBERS] {
    std::array::from_fn(|at| mean[at] - centre[at])
}

fn unit<const N: usize>(mut place: [f32; N]) -> [f32; N] {
    let length = dot(&place, &place).sqrt();
    if length > 0.0 {
        place.iter_mut().for_each(|number| *number /= length);
    }
    place
}

/// In sixteen sums side by side, which processors take at once.
fn dot<const N: usize>(one: &[f32; N], other: &[f32; N]) -> f32 {
    let mut sums = [0.0_f32; 16];
    let ((ours, rest), (theirs, last)) = (one.as_chunks::<16>(), other.as_chunks::<16>());
    for (one, other) in ours.iter().zip(theirs) {
        sums.iter_mut().zip(one.iter().zip(other)).for_each(|(sum, (one, other))| *sum += one * other);
    }
    sums.iter().sum::<f32>() + rest.iter().zip(last).map(|(one, other)| one * other).sum::<f32>()
}

/// A rate, ready to be compared: less its mean, and of length 1.
struct Rate {
    /// In which spans there was anything, a bit each.
    active: u128,
    /// All 0 where it is the same in every span.
    apart: [f32; SPANS],
}

impl Rate {
    fn of(rates: &[u16; SPANS]) -> Self {
        const { assert!(SPANS <= 128) };
        let active = rates.iter().fold(0, |active, rate| active << 1 | u128::from(*rate > 0));
        let mean = rates.iter().map(|rate| f32::from(*rate)).sum::<f32>() / SPANS as f32;
        Self { active, apart: unit(rates.map(|rate| f32::from(rate) - mean)) }
    }

    /// Pearson's correlation with another, if there is enough of either.
    fn correlation(&self, other: &Self) -> Option<f32> {
        ((self.active | other.active).count_ones() >= FEWEST_SPANS).then(|| dot(&self.apart, &other.apart))
    }
}

fn root(parents: &mut [usize], mut member: usize) -> usize {
    while parents[member] != member {
        parents[member] = parents[parents[member]];
        member = parents[member];
    }
    member
}

/// The smaller index is the root, so that a cohort is named for its first member.
fn join(parents: &mut [usize], one: usize, other: usize) {
    let (one, other) = (root(parents, one), root(parents, other));
    parents[one.max(other)] = one.min(other);
}

#[cfg(test)]
mod tests;
