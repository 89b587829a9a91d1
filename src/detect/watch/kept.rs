//! What is known of a caller and is to outlive the process: where it stands on the ladder, and what it may have learned.
//!
//! What families have gathered against it is not kept, nor what its copy was learned from, of which nothing may lie on a disk: a copy begins anew, and
//! counts as good as the better of what it was and what it comes to.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use serde::{Deserialize, Serialize};

use super::ladder::{self, Ladder};
use super::living::Living;
use super::loss::{Budgets, Exposure, Loss};
use super::state::State;
use super::together::Members;
use super::{Counted, Learned, Pupil, Watch};
use crate::clock::Moment;
use crate::digest::Digest;

/// A caller, as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::detect) struct Kept {
    ladder: ladder::Kept,
    learned: Vec<Of>,
}

/// What was learned under one calibration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Of {
    /// The digest of its file.
    calibration: String,
    fidelity: f32,
    bits: f64,
    rows: u64,
    /// It was told that a budget is spent.
    told: bool,
}

impl Kept {
    /// Whether it can be what it says.
    pub(in crate::detect) fn is_sound(&self) -> bool {
        let sound = |of: &Of| {
            (0.0..=1.0).contains(&of.fidelity) && of.bits.is_finite() && of.bits >= 0.0 && of.calibration.parse::<Digest>().is_ok()
        };
        self.learned.iter().all(sound)
    }
}

/// The calibrations that policies have, and what they bound.
#[derive(Debug, Default)]
pub struct Calibrations(HashMap<Digest, (Weak<Living>, Budgets)>);

impl<'a> FromIterator<&'a Arc<Watch>> for Calibrations {
    fn from_iter<I: IntoIterator<Item = &'a Arc<Watch>>>(watches: I) -> Self {
        let mut all = HashMap::<_, (_, Budgets)>::new();
        for watch in watches {
            let (_, budgets) = all.entry(watch.digest).or_insert_with(|| (Arc::downgrade(&watch.living), watch.budgets));
            // Of policies that share one, what some bound.
            if !budgets.are_any() {
                *budgets = watch.budgets;
            }
        }
        Self(all)
    }
}

impl Pupil {
    /// What is to be kept of it; nothing where nothing is known.
    pub(in crate::detect) fn kept(&self, now: Moment) -> Option<Kept> {
        let of = |learned: &Learned| {
            let Exposure { fidelity, bits, rows } = learned.loss.exposure();
            // JSON has no other numbers, and a file that says nothing in their place would be none.
            let (fidelity, bits) = (
                if fidelity.is_finite() { fidelity.clamp(0.0, 1.0) } else { 1.0 },
                if bits.is_finite() { bits.max(0.0) } else { f64::MAX },
            );
            (rows > 0).then(|| Of { calibration: learned.under.to_string(), fidelity, bits, rows, told: learned.told })
        };
        let kept = Kept { ladder: self.ladder.kept(now), learned: self.living().filter_map(of).collect() };
        (!kept.learned.is_empty() || !kept.ladder.is_at_rest()).then_some(kept)
    }

    /// One of whom that is known. What was learned under calibrations that no policy has any more is let go.
    pub(in crate::detect) fn restored(kept: &Kept, cohort: bool, calibrations: &Calibrations, now: Moment) -> Self {
        let of = |of: &Of| {
            let under = of.calibration.parse().ok()?;
            let (living, budgets) = calibrations.0.get(&under)?.clone();
            let loss = Loss::before(Exposure { fidelity: of.fidelity, bits: of.bits, rows: of.rows });
            Some(Learned { under, living, budgets, state: State::default(), counted: Counted::default(), loss, told: of.told })
        };
        let learned: Vec<Learned> = kept.learned.iter().filter_map(of).collect();
        // A cohort that had learned something had several callers, and does not begin with one of them again.
        let members = if cohort && !learned.is_empty() { Members::Many } else { Members::default() };
        Self { ladder: Ladder::restored(&kept.ladder, now), learned, members, ..Self::default() }
    }
}
