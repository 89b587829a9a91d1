//! What is known of one caller of one model, or of a cohort of callers, and when it may be forgotten.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::vectors::Seen;
use super::watch::Pupil;
use crate::budget::gate::{State, locked};

/// A pair of caller and model that has not been heard of for so long may be forgotten, when there is need of room; its count then begins anew.
pub(super) const FORGET_AFTER: Duration = Duration::from_secs(3_600);

/// The same for one with evidence against it.
const FORGET_EVIDENCE_AFTER: Duration = Duration::from_secs(30 * 24 * 3_600);

/// What is known of a caller of a model.
#[derive(Debug)]
pub(crate) struct Known {
    /// How many rows it has asked about.
    pub(super) count: AtomicU64,
    /// What was learned of it.
    pub(super) pupil: Mutex<Pupil>,
    /// Where its embeddings lay.
    pub(super) seen_vectors: Mutex<Seen>,
    /// Seconds since the origin.
    pub(super) seen: AtomicU64,
    /// It has asked since its place was last looked at.
    pub(super) asked: AtomicBool,
    pub(super) origin: Instant,
}

impl Known {
    pub(super) fn new(origin: Instant) -> Self {
        Self {
            count: AtomicU64::new(0),
            pupil: Mutex::default(),
            seen_vectors: Mutex::default(),
            seen: AtomicU64::new(0),
            asked: AtomicBool::new(false),
            origin,
        }
    }

    /// Of whom that much was known before the process began, and who asked last at `seen`.
    pub(super) fn restored(seen: Instant, rows: u64, pupil: Pupil) -> Self {
        Self { count: AtomicU64::new(rows), pupil: Mutex::new(pupil), ..Self::new(seen) }
    }

    /// It asks at this moment.
    pub(super) fn see(&self, now: Instant) {
        self.seen.fetch_max(now.saturating_duration_since(self.origin).as_secs(), Ordering::Relaxed);
    }

    /// When it asked last, to the second.
    pub(super) fn last_seen(&self) -> Instant {
        self.origin + Duration::from_secs(self.seen.load(Ordering::Relaxed))
    }
}

impl State for Known {
    fn is_idle(&self, now: Instant) -> bool {
        let idle = now.saturating_duration_since(self.last_seen());
        // Whoever left evidence does not lose it by being away for an hour.
        let has_evidence = || locked(&self.pupil).has_evidence() || locked(&self.seen_vectors).is_evidence();
        idle > FORGET_AFTER && (idle > FORGET_EVIDENCE_AFTER || !has_evidence())
    }
}
