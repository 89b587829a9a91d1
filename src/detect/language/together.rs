//! What the callers of one cohort asked, looked at together: what each of many keys shows too little of adds up.
//!
//! That callers are of one cohort is no evidence: a team asks for the same at the same hours. So of every caller only what is more than honest callers show
//! counts, and the level to which that must add up grows with the logarithm of how many they are. For a cohort of one it would be the bound of that caller
//! alone. Of a team without anything odd there is nothing to be added up, however large it is.
//!
//! Of distillation each caller's own signs count, but that a template is met again where another of the cohort used it: a queue of many templates that is dealt
//! out to many keys repeats itself on none. Left out are pace, hours and long answers, which all callers of a service have if one of them has, so that who asks
//! for reasoning and for no grading never comes past [`HONEST`]. Of biases the distinct tokens and maps of all are counted, each once.

use serde_json::{Value, json};

use super::bias::{self, Biases, Union};
use super::callers::{DISTILLS, PROBES};
use super::distillation::{Signs, Window};

/// The most that a window weighs, by the signs that add up, of which each prompt asks for reasoning by one template at one temperature, as products do.
pub const HONEST: f64 = 0.35;

/// The share of probing prompts that one does.
pub const HONEST_PROBES: f64 = 0.25;

/// Templates against which those of every caller are held, the first ones.
pub const MOST_TEMPLATES: usize = 2_048;

/// In how many bits of 64 the templates of two callers differ at most. One in half a million pairs of other texts comes so near by chance, so that among
/// so many templates hardly any does.
pub const NEAR: u32 = 8;

/// How many signs there are.
pub const SIGNS: usize = 3;

/// What adds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Windows in which a training set is built.
    Distillation,
    /// Prompts for what was learned by heart.
    Probing,
    /// Tokens and maps of biases.
    Bias,
}

/// What a caller asked until now.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// Its last prompts.
    pub window: Window,
    /// The share of them that probes.
    pub probing: f64,
    /// What it biased.
    pub biases: Option<Box<Biases>>,
}

/// The callers of a cohort, in the order in which they were added.
#[derive(Debug, Default)]
pub struct Together {
    callers: Vec<Past>,
}

/// What is against a cohort.
#[derive(Debug)]
pub struct Found {
    /// The sign.
    pub sign: Sign,
    /// The callers it rests on, by their number in the order in which they were added; those who gave most come first.
    pub by: Vec<usize>,
    /// Numbers, for an investigator.
    pub evidence: Vec<(&'static str, Value)>,
}

impl Together {
    /// Adds a caller.
    pub fn add(&mut self, past: Past) {
        self.callers.push(past);
    }

    /// What comes to its level. For n callers of t templates it takes time in proportion to n·min(t, [`MOST_TEMPLATES`]).
    #[must_use]
    pub fn found(&self) -> Vec<Found> {
        [self.distillation(), self.probing(), self.bias()].into_iter().flatten().collect()
    }

    /// How much more than from one caller it takes from so many.
    fn surplus(&self) -> f64 {
        1.0 + (self.callers.len().max(1) as f64).ln()
    }

    fn distillation(&self) -> Option<Found> {
        let templates = self.callers.iter().enumerate().flat_map(|(at, past)| past.window.templates().iter().map(move |hash| (at, *hash)));
        let templates: Vec<_> = templates.take(MOST_TEMPLATES).collect();
        let signs: Vec<_> = self.callers.iter().enumerate().map(|(at, past)| signs(at, &past.window, &templates)).collect();
        let found = self.sum(Sign::Distillation, signs.iter().map(Signs::weight), HONEST, DISTILLS)?;
        let mean = |sign: fn(&Signs) -> f64| hundredths(found.by.iter().map(|at| sign(&signs[*at])).sum::<f64>() / found.by.len() as f64);
        let more = [
            ("repetition", mean(|signs| signs.repetition)),
            ("elicitation", mean(|signs| signs.elicitation)),
            ("pinned", mean(|signs| signs.pinned)),
        ];
        Some(Found { evidence: found.evidence.into_iter().chain(more).collect(), ..found })
    }

    fn probing(&self) -> Option<Found> {
        self.sum(Sign::Probing, self.callers.iter().map(|past| past.probing), HONEST_PROBES, PROBES)
    }

    /// What of the weights is more than honest, if it comes to what a caller would be told of at `alone` and the surplus of many.
    fn sum(&self, sign: Sign, weights: impl Iterator<Item = f64>, honest: f64, alone: f64) -> Option<Found> {
        let odd: Vec<f64> = weights.map(|weight| (weight - honest).max(0.0)).collect();
        let (sum, level) = (odd.iter().sum::<f64>(), (alone - honest) * self.surplus());
        (sum >= level).then(|| Found {
            sign,
            by: most_first(&odd),
            evidence: vec![("weight", hundredths(sum)), ("level", hundredths(level))],
        })
    }

    fn bias(&self) -> Option<Found> {
        let mut union = Union::default();
        let biases = || self.callers.iter().map(|past| past.biases.as_deref());
        biases().flatten().for_each(|biases| union.add(biases));
        let (tokens, (prompt, maps)) = (union.tokens(), union.most_maps());
        let many = tokens >= bias::ALARM * self.surplus();
        if !many && (maps as f64) < bias::MAPS as f64 * self.surplus() {
            return None;
        }
        let gave = |biases: &Biases| if many { biases.tokens() } else { biases.maps_under(prompt) as f64 };
        let odd: Vec<f64> = biases().map(|biases| biases.map_or(0.0, gave)).collect();
        let evidence = vec![("tokens", json!(tokens.round() as u64)), ("maps", json!(maps))];
        Some(Found { sign: Sign::Bias, by: most_first(&odd), evidence })
    }
}

/// The signs of a caller that add up: what is met again with others counts.
fn signs(at: usize, window: &Window, templates: &[(usize, u64)]) -> Signs {
    let own = window.signs();
    let is_met = |mine: &&u64| templates.iter().any(|(other, theirs)| *other != at && (*mine ^ theirs).count_ones() <= NEAR);
    let met = window.templates().iter().filter(is_met).count() as f64 / window.templates().len().max(1) as f64;
    Signs { repetition: own.repetition.max(met), elicitation: own.elicitation, pinned: own.pinned, ..Signs::default() }
}

/// Who gave anything, by how much.
fn most_first(odd: &[f64]) -> Vec<usize> {
    let mut by: Vec<usize> = (0..odd.len()).filter(|at| odd[*at] > 0.0).collect();
    by.sort_by(|one, other| odd[*other].total_cmp(&odd[*one]));
    by
}

fn hundredths(number: f64) -> Value {
    ((number * 100.0).round() / 100.0).into()
}

#[cfg(test)]
mod tests;
