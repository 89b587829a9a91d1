//! What was appended since the process began, counted as the numbers are given out.
//!
//! An entry is counted while its number is drawn, under the lock that gives numbers out. So the counts that a heartbeat tells are those of
//! the entries with a lower number and of no other, whatever requests run beside it, and the counts that `/metrics` shows are those of
//! the entries before one number, too: that number is where the process began plus all that it counted. Both can be held against the log
//! exactly, which is what [`crate::verify::reconcile`] does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::verify::census::{Census, Traffic};
use crate::verify::statement::Kind;

/// The counts of this process.
#[derive(Debug, Default)]
pub(super) struct Counting {
    census: Mutex<Census>,
    accepted: AtomicU64,
    forwarded: AtomicU64,
    abandoned: AtomicU64,
}

impl Counting {
    /// Begins anew with entry `began`.
    pub(super) fn begin(&self, began: u64) {
        *self.held() = Census::from(began);
    }

    /// Counts an entry, and tells what stood before it. Called while its number is drawn.
    pub(super) fn count(&self, kind: Kind, bytes: u64) -> Census {
        let mut census = self.held();
        let before = *census;
        census.count(kind, bytes);
        before
    }

    /// The entries so far.
    pub(super) fn census(&self) -> Census {
        *self.held()
    }

    /// The requests so far: what was accepted last, so that it is never behind the rest.
    pub(super) fn traffic(&self) -> Traffic {
        let (forwarded, abandoned) = (self.forwarded.load(Ordering::Acquire), self.abandoned.load(Ordering::Acquire));
        Traffic { forwarded, abandoned, accepted: self.accepted.load(Ordering::Acquire) }
    }

    pub(super) fn accept(&self) {
        self.accepted.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn forward(&self) {
        self.forwarded.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn abandon(&self) {
        self.abandoned.fetch_add(1, Ordering::AcqRel);
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Census> {
        self.census.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
