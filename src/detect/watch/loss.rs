//! How much of a model one caller may have learned: the meter, and the bits that answers told.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::noise::Noise;
use super::rows::Told;
use super::space::{Point, Z};
use super::study::{AGAIN, Heard, Studies};
use crate::detect::exposure::bits::{Budget, Capacity, Grain, Ledger};
use crate::detect::exposure::correction::{Correction, FEWEST_THIEVES, Thief};
use crate::detect::exposure::holdout::{FEWEST_ROWS, Features, Holdout, MOST_ROWS};
#[cfg(test)]
use crate::detect::exposure::meter::MOST_BYTES;
use crate::detect::exposure::meter::{Answer, Meter, Study};
use crate::detect::exposure::thief;
use crate::mistake::Mistake;
use crate::secret::Secret;

/// Rows of the transcripts on which thieves are trained when a model is calibrated.
const TRANSCRIPTS: [usize; 6] = [25, 50, 100, 200, 400, 800];

/// Thieves a size of the transcript.
const THIEVES: usize = 4;

/// The part of a budget that is spent by what is not past it, at most.
const ALMOST: f64 = 0.999;

/// The least part of errors that a budget of fidelity can leave, for their logarithm.
const FEWEST_ERRORS: f64 = 1e-3;

/// Different rows with a class that a recording needs for copies to be tried on a part of them.
pub(super) const ROWS_TO_TRY: usize = 3 * FEWEST_ROWS;

/// `[detect.exposure]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The part of the owner's rows on which a caller's copy may agree with the model before its answers tell less, from 0 to 1.
    pub fidelity: Option<Spanned<f64>>,
    /// The part of the model's own bits that its answers may have told a caller, above 0; needs `parameters`.
    pub bits: Option<Spanned<f64>>,
    /// How many numbers the model consists of.
    pub parameters: Option<u64>,
}

/// What may be lost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Budgets {
    fidelity: Option<f64>,
    bits: Option<(Budget, Capacity)>,
}

impl Config {
    /// Whether anything is bounded.
    pub(in crate::detect) fn has_budgets(&self) -> bool {
        self.fidelity.is_some() || self.bits.is_some()
    }

    pub(super) fn compile(&self, mistakes: &mut Vec<Mistake>) -> Budgets {
        let fidelity = self.fidelity.as_ref().map(|fidelity| *fidelity.get_ref());
        if let Some(wrong) = self.fidelity.as_ref().filter(|fidelity| !(0.0..=1.0).contains(fidelity.get_ref())) {
            mistakes.push(Mistake::at(wrong.span(), "a fidelity is from 0 to 1"));
        }
        let mut bits = None;
        if let Some(part) = &self.bits {
            match (Budget::of_fraction(*part.get_ref()), self.parameters) {
                (Some(budget), Some(parameters)) => bits = Some((budget, Capacity::of(parameters, Grain::Single))),
                (None, _) => mistakes.push(Mistake::at(part.span(), "a part of the model's bits is above 0")),
                (_, None) => mistakes.push(Mistake::at(part.span(), "say beside it how many `parameters` the model has")),
            }
        }
        Budgets { fidelity, bits }
    }
}

impl Budgets {
    /// The part that is spent of the budget of which more is: 1 and above when [it is past](Self::is_past).
    pub(super) fn spent(&self, has: Exposure) -> f64 {
        self.copied(has.fidelity).max(self.told(has.bits))
    }

    /// Of a copy's fidelity the errors count, by their logarithm: each of the halvings from all wrong to as few as the budget leaves is as much
    /// of it as the next.
    fn copied(&self, fidelity: f32) -> f64 {
        let errors = |fidelity: f64| (1.0 - fidelity).max(FEWEST_ERRORS).ln();
        self.fidelity.map_or(0.0, |most| match f64::from(fidelity) {
            // What is past no budget at all is past it without end, also by nothing.
            _ if most <= 0.0 => f64::INFINITY,
            fidelity if fidelity >= most => (errors(fidelity) / errors(most)).max(1.0),
            fidelity => (errors(fidelity) / errors(most)).min(ALMOST),
        })
    }

    /// Of the budget of bits.
    pub(super) fn told(&self, bits: f64) -> f64 {
        let mut ledger = Ledger::default();
        ledger.charge_bits(bits);
        self.bits.map_or(0.0, |(budget, capacity)| budget.spent(ledger, capacity))
    }

    /// Whether anything is bounded.
    pub(super) fn are_any(&self) -> bool {
        self.bits.is_some() || self.bounds_fidelity()
    }

    /// Whether a copy's fidelity is bounded.
    pub(super) fn bounds_fidelity(&self) -> bool {
        self.fidelity.is_some()
    }

    /// Whether a budget is spent.
    pub(super) fn is_past(&self, has: Exposure) -> bool {
        self.fidelity.is_some_and(|most| f64::from(has.fidelity) >= most) || self.told(has.bits) >= 1.0
    }
}

/// The owner's rows, as they are kept in a calibration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    classes: u32,
    labels: Vec<u32>,
    /// 64 a row.
    rows: Vec<f32>,
    /// Slope, growth and offset of the meter's correction.
    correction: [f64; 3],
}

/// The owner's rows, ready to be used.
#[derive(Debug)]
pub(super) struct Owned {
    holdout: Holdout,
    correction: Correction,
}

impl Owned {
    /// Without thieves to correct by.
    #[cfg(test)]
    pub(super) fn uncorrected(holdout: Holdout) -> Self {
        Self { holdout, correction: Correction::default() }
    }

    /// What a copy that was studied comes to, from 0 to 1.
    pub(super) fn studied(&self, study: &Study) -> f32 {
        let studied = study.on(&self.holdout);
        self.correction.corrected(studied.measured, studied.rows)
    }
}

impl Kept {
    pub(super) fn classes(&self) -> u32 {
        self.classes
    }

    pub(super) fn ready(&self) -> Option<Owned> {
        let rows = self.rows.as_chunks::<Z>().0.iter().map(Features::of).zip(self.labels.iter().copied());
        let [slope, growth, offset] = self.correction;
        Some(Owned { holdout: Holdout::new(rows, self.classes).ok()?, correction: Correction { slope, growth, offset } })
    }

    /// Rows of two classes, without thieves to correct by: they take a minute to train where nothing is optimised.
    #[cfg(test)]
    pub(super) fn uncorrected(rows: &[&(Point, Told)]) -> Self {
        let labels = rows.iter().map(|(_, told)| told.label.unwrap_or_default()).collect();
        Self { classes: 2, labels, rows: rows.iter().flat_map(|(point, _)| point.turned).collect(), correction: [1.0, 0.0, 0.0] }
    }

    /// Takes rows of as many callers as there is room for, and trains thieves on others. `None` for a model without classes.
    pub(super) fn of(firsts: &[(&Point, &Told)], seed: &Secret) -> Option<Self> {
        let classes = firsts
            .iter()
            .map(|(_, told)| told.classes.max(told.label.map_or(0, |label| label.saturating_add(1))))
            .max()
            .filter(|classes| *classes > 1)?;
        let mut mixed: Vec<(&Point, u32)> = firsts.iter().filter_map(|(point, told)| Some((*point, told.label?))).collect();
        let mut noise = Noise::new(seed.expose(), "holdout");
        for at in (1..mixed.len()).rev() {
            mixed.swap(at, (noise.next() % (at as u64 + 1)) as usize);
        }
        let (owned, others) = mixed.split_at(MOST_ROWS.min(mixed.len() / 3));
        if owned.len() < FEWEST_ROWS {
            return None;
        }
        let mut kept = Self {
            classes,
            labels: owned.iter().map(|(_, label)| *label).collect(),
            rows: owned.iter().flat_map(|(point, _)| point.turned).collect(),
            correction: [1.0, 0.0, 0.0],
        };
        let Owned { holdout, .. } = kept.ready()?;
        let mut thieves = Vec::new();
        for rows in TRANSCRIPTS.into_iter().filter(|rows| *rows <= others.len()) {
            for _ in 0..THIEVES {
                let mut transcript = Vec::with_capacity(rows);
                let mut meter = Meter::new(&holdout);
                for _ in 0..rows {
                    let (point, label) = others[(noise.next() % others.len() as u64) as usize];
                    let features = Features::of(&point.turned);
                    meter.learn(&holdout, &features, Answer::Label(label));
                    transcript.push((features, label));
                }
                let measured = meter.evaluate_wholly(&holdout, &Correction::default()).measured;
                let fidelity = thief::fidelity(&holdout, transcript.iter().map(|(features, label)| (features, Answer::Label(*label))));
                thieves.push(Thief { measured, rows: rows as u32, fidelity });
            }
        }
        if thieves.len() >= FEWEST_THIEVES {
            let Correction { slope, growth, offset } = Correction::fit(&thieves).unwrap_or_default();
            kept.correction = [slope, growth, offset];
        }
        Some(kept)
    }
}

/// What one caller may have learned, or all of a cohort together.
#[derive(Clone, Debug, Default)]
pub(super) struct Loss {
    closely: Option<Box<Closely>>,
    /// What a meter had come to that is no longer kept.
    before: f32,
    ledger: Ledger,
    /// Rows that told something.
    rows: u64,
}

/// What is kept to measure how much of the model a caller may have.
#[derive(Clone, Debug)]
struct Closely {
    meter: Meter,
    heard: Heard,
}

/// What one caller may have learned, as it is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Exposure {
    /// The part of the owner's rows on which its copy may agree with the model, a bound from below.
    pub fidelity: f32,
    /// Bits that answers told at most.
    pub bits: f64,
    /// Rows that it was answered, repeats left out.
    pub rows: u64,
}

impl Exposure {
    /// What was learned of two versions of a model: bits add up, and the better copy counts.
    pub(super) fn and(self, other: Self) -> Self {
        Self { fidelity: self.fidelity.max(other.fidelity), bits: self.bits + other.bits, rows: self.rows + other.rows }
    }
}

impl Loss {
    /// What was learned before the process began.
    pub(super) fn before(Exposure { fidelity, bits, rows }: Exposure) -> Self {
        let mut ledger = Ledger::default();
        ledger.charge_bits(bits);
        Self { closely: None, before: fidelity, ledger, rows }
    }

    /// Counts a row that was not asked before, and what it told.
    pub(super) fn charge(&mut self, bits: f64) {
        self.rows += 1;
        self.charge_more(bits);
    }

    /// Counts what a row that was asked before told more than then.
    pub(super) fn charge_more(&mut self, bits: f64) {
        self.ledger.charge_bits(bits);
    }

    /// Learns from a row that was charged, of a caller who is watched closely: of others nothing so large is kept.
    pub(super) fn learn(&mut self, owned: &Arc<Owned>, studies: &Studies, point: &Point, answer: Answer<'_>) {
        let begin = || Box::new(Closely { meter: Meter::new(&owned.holdout), heard: Heard::default() });
        let Closely { meter, heard } = &mut **self.closely.get_or_insert_with(begin);
        meter.learn(&owned.holdout, &Features::of(&point.turned), answer);
        if meter.is_due() {
            meter.evaluate(&owned.holdout, &owned.correction);
        }
        if let Some(study) = meter.study() {
            if studies.take(study, owned, heard) {
                meter.studied();
            } else {
                meter.put_off(AGAIN);
            }
        }
    }

    pub(super) fn exposure(&self) -> Exposure {
        let of = |closely: &Closely| closely.meter.estimate().fidelity.max(closely.heard.fidelity());
        let fidelity = self.closely.as_deref().map_or(0.0, of).max(self.before);
        Exposure { fidelity, bits: self.ledger.bits(), rows: self.rows }
    }

    /// The most bytes that are kept apart from it.
    #[cfg(test)]
    pub(super) const MOST_KEPT: usize = MOST_BYTES + size_of::<Heard>() + Heard::BYTES;

    /// Bytes that are kept apart from it.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.closely.as_ref().map_or(0, |closely| closely.meter.bytes() + size_of::<Heard>() + Heard::BYTES)
    }

    /// Keeps what the meter says, and not the meter. What is being studied is lost with it.
    pub(super) fn step_back(&mut self) {
        self.before = self.exposure().fidelity;
        self.closely = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spent_is_the_greater_part_of_the_budgets() {
        let spent = |text: &str, rows: u32| {
            let budgets = toml::from_str::<Config>(text).unwrap().compile(&mut Vec::new());
            let mut loss = Loss::default();
            (0..rows).for_each(|_| loss.charge(1.0));
            (budgets.spent(loss.exposure()), budgets.is_past(loss.exposure()))
        };
        // A bit a row, of half of 24 times 2.
        assert_eq!(spent("bits = 0.5\nparameters = 2", 0), (0.0, false));
        let (almost, past) = spent("bits = 0.5\nparameters = 2", 11);
        assert!(almost < 1.0 && !past, "{almost}");
        assert_eq!(spent("", 1_000), (0.0, false), "who has no budget has spent nothing of it");
        assert_eq!(spent("fidelity = 0.5", 1_000), (0.0, false));
        assert_eq!(spent("fidelity = 0.0", 0), (f64::INFINITY, true));
        let (both, past) = spent("fidelity = 0.5\nbits = 0.5\nparameters = 2", 1_000);
        assert!(both > 10.0 && past);
    }

    #[test]
    fn a_budget_in_bits_needs_the_models_size_and_bounds_are_told() {
        let compiled = |text: &str| {
            let mut mistakes = Vec::new();
            toml::from_str::<Config>(text).unwrap().compile(&mut mistakes);
            mistakes.len()
        };
        assert_eq!(compiled("fidelity = 1.0"), 0);
        assert_eq!(compiled("fidelity = 1.1"), 1);
        assert_eq!(compiled("bits = 0.5"), 1);
        assert_eq!(compiled("bits = 0.5\nparameters = 650"), 0);
        assert_eq!(compiled("bits = 0.0\nparameters = 650"), 1);
    }
}
