//! Which callers work together: those whose prompts lie in one place, and who come and go at the same times.
//!
//! Many accounts that one party feeds from one queue ask for the same and share the queue's rate. Either alone is common among strangers: products
//! are alike, and offices open at nine. Two callers are of one cohort where both hold; cohorts are what is connected so.
//!
//! The places are means of the sketches of prompts ([`Sketch::z`](crate::detect::text::sketch::Sketch)), less the mean of all callers: what every prompt in a language has in common is
//! no likeness. Below [`FEWEST`] prompts a caller has no place, and belongs to nobody.

use crate::detect::text::sketch::NUMBERS;

/// Callers that are compared at most, the first ones: all pairs take about a second for so many, and no request waits for it.
pub const MOST_MEMBERS: usize = 4_096;

/// Prompts of a caller before it has a place.
pub const FEWEST: u32 = 32;

/// Spans of time over which rates are compared.
pub const SPANS: usize = 96;

/// Spans in which at least one of two callers was active, before their rates are compared.
pub const FEWEST_SPANS: usize = 12;

/// A caller.
#[derive(Clone, Debug)]
pub struct Member {
    /// The sum of the sketches of its prompts.
    pub sum: [f32; NUMBERS],
    /// How many they are.
    pub prompts: u32,
    /// Prompts in each of the last [`SPANS`] spans of a quarter of an hour: a day.
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

/// The cohort of each member, in their order: the index of the first member of it, or nothing for who is alone.
#[must_use]
pub fn cohorts(members: &[Member], bounds: Bounds) -> Vec<Option<usize>> {
    let compared = &members[..members.len().min(MOST_MEMBERS)];
    let means: Vec<Option<[f32; NUMBERS]>> = compared.iter().map(mean).collect();
    let centre = centre(&means);
    let places: Vec<_> = means.iter().map(|mean| mean.as_ref().map(|mean| unit(std::array::from_fn(|at| mean[at] - centre[at])))).collect();
    let mut parents: Vec<usize> = (0..members.len()).collect();
    for (one, place) in places.iter().enumerate() {
        let Some(place) = place else { continue };
        for (other, theirs) in places.iter().enumerate().skip(one + 1) {
            let Some(theirs) = theirs else { continue };
            if dot(place, theirs) >= bounds.place
                && correlation(&members[one].rates, &members[other].rates).is_some_and(|rate| rate >= bounds.rate)
            {
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

/// The median of the means, number by number: many callers of one cohort do not draw it to themselves until they are half of all.
fn centre(means: &[Option<[f32; NUMBERS]>]) -> [f32; NUMBERS] {
    let mut column = Vec::with_capacity(means.len());
    std::array::from_fn(|at| {
        column.clear();
        column.extend(means.iter().flatten().map(|mean| mean[at]));
        if column.is_empty() {
            return 0.0;
        }
        let middle = column.len() / 2;
        *column.select_nth_unstable_by(middle, f32::total_cmp).1
    })
}

fn unit(mut place: [f32; NUMBERS]) -> [f32; NUMBERS] {
    let length = dot(&place, &place).sqrt();
    if length > 0.0 {
        place.iter_mut().for_each(|number| *number /= length);
    }
    place
}

fn dot(one: &[f32; NUMBERS], other: &[f32; NUMBERS]) -> f32 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

/// Pearson's correlation of two rates, if there is enough of either.
fn correlation(one: &[u16; SPANS], other: &[u16; SPANS]) -> Option<f32> {
    if one.iter().zip(other).filter(|(one, other)| **one > 0 || **other > 0).count() < FEWEST_SPANS {
        return None;
    }
    let mean = |rates: &[u16; SPANS]| rates.iter().map(|rate| f32::from(*rate)).sum::<f32>() / SPANS as f32;
    let (ours, theirs) = (mean(one), mean(other));
    let (mut both, mut mine, mut yours) = (0.0, 0.0, 0.0);
    for (one, other) in one.iter().zip(other) {
        let (one, other) = (f32::from(*one) - ours, f32::from(*other) - theirs);
        both += one * other;
        mine += one * one;
        yours += other * other;
    }
    let scale = (mine * yours).sqrt();
    (scale > 0.0).then(|| both / scale)
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
