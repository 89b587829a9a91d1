//! What became of a model's workers since it was loaded: how often one fell and was started again, and how each of the last ones ended.
//!
//! The engine's thread writes it down; the house comes by and tells it. Nothing of it grows: past [`MAX_UNTOLD`] only the count does.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// How many falls are kept until they are told. A worker that falls at once falls every few seconds.
pub const MAX_UNTOLD: usize = 64;

/// A worker that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fall {
    /// When it was noticed.
    pub at: SystemTime,
    /// How it ended, in words for the operator.
    pub why: String,
    /// Whether it ended in the middle of a call.
    pub called: bool,
}

/// The falls of one model's workers.
#[derive(Debug, Default)]
pub struct Falls {
    untold: Mutex<VecDeque<Fall>>,
    missed: AtomicU64,
    raised: AtomicU64,
}

impl Falls {
    pub(super) fn fell(&self, fall: Fall) {
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        if untold.len() < MAX_UNTOLD {
            untold.push_back(fall);
        } else {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn raised(&self) {
        self.raised.fetch_add(1, Ordering::Relaxed);
    }

    /// How often a worker was started in the place of one that fell.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.raised.load(Ordering::Relaxed)
    }

    /// The falls that were not told yet, each handed out once, and how many more there were.
    #[must_use]
    pub fn take(&self) -> (Vec<Fall>, u64) {
        let untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
        (untold, self.missed.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_falls_are_kept_as_may_be_and_one_past_them_is_counted() {
        let falls = Falls::default();
        let fall = |number: usize| Fall { at: SystemTime::UNIX_EPOCH, why: number.to_string(), called: false };
        (0..MAX_UNTOLD).for_each(|number| falls.fell(fall(number)));
        assert_eq!((falls.take().0.len(), falls.take()), (MAX_UNTOLD, (Vec::new(), 0)));
        (0..=MAX_UNTOLD).for_each(|number| falls.fell(fall(number)));
        let (told, missed) = falls.take();
        assert_eq!((told.len(), &*told[0].why, missed), (MAX_UNTOLD, "0", 1));
        assert_eq!(falls.restarts(), 0);
        falls.raised();
        assert_eq!(falls.restarts(), 1);
    }
}
