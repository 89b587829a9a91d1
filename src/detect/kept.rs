//! What of callers is to outlive the process: of each, where it stands and what it may have learned.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::known::Known;
use super::watch::kept;
use super::{Detector, Terms};
use crate::budget::gate::locked;
use crate::clock::Moment;

pub use super::watch::kept::Calibrations;

/// A caller of a model, or a cohort of its callers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    name: Arc<str>,
    model: Arc<str>,
    cohort: bool,
    /// How many rows it has asked about.
    rows: u64,
    /// When it asked last, in milliseconds since 1970.
    seen: u64,
    pupil: kept::Kept,
}

impl Kept {
    /// Whether it can be what it says.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.pupil.is_sound()
    }
}

impl Terms {
    /// The calibrations of some terms.
    pub fn calibrations<'a>(terms: impl IntoIterator<Item = &'a Self>) -> Calibrations {
        terms.into_iter().filter_map(|terms| terms.watch.as_ref()).collect()
    }
}

impl Detector {
    /// What is known of everyone who asked for something that was answered, or of whom something was told.
    pub fn kept(&self, now: Moment) -> impl Iterator<Item = Kept> {
        let of = move |cohort: bool| {
            move |((name, model), known): ((Arc<str>, Arc<str>), Arc<Known>)| {
                let pupil = locked(&known.pupil).kept(now)?;
                Some(Kept { name, model, cohort, rows: known.count.load(Ordering::Relaxed), seen: now.millis_of(known.last_seen()), pupil })
            }
        };
        self.known.each().filter_map(of(false)).chain(self.cohorts.each().filter_map(of(true)))
    }

    /// Takes back what was kept before the process began, ahead of all requests. Who was silent for long gives way to others as ever, and not to the
    /// restart: clocks are wrong at times.
    pub fn restore(&self, kept: Kept, calibrations: &Calibrations, now: Moment) {
        let pupil = super::watch::Pupil::restored(&kept.pupil, kept.cohort, calibrations, now);
        let gate = if kept.cohort { &self.cohorts } else { &self.known };
        gate.restore((kept.name, kept.model), Known::restored(now.mono_of(kept.seen), kept.rows, pupil));
    }
}
