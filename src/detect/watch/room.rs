//! Who is watched closely: so many at once, since each takes 32 KiB where others take less than one.
//!
//! Whoever comes when all places are taken gets that of one who has not asked since the last round and against whom there is no
//! evidence (the second-chance rule: Corbató, 1968). What such a one loses is the memory of his last rows; what his families have won and
//! what he has learned of the model stay. So with many names one makes the gateway forget at most what it holds against nobody, and whoever
//! finds no place is [counted](super::super::Detector::unwatched).

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, TryLockError, Weak};

use super::Pupil;
use crate::budget::gate::locked;
use crate::detect::Known;
use crate::digest::Digest;

/// How many callers and cohorts are watched closely at once, each by the version of a model that it asks.
pub(in crate::detect) const MOST: usize = 10_000;

/// Places that are looked at for one that can be had.
const LOOKS: usize = 64;

/// The places.
#[derive(Debug)]
pub(in crate::detect) struct Room {
    places: Mutex<Places>,
    most: usize,
}

#[derive(Debug, Default)]
struct Places {
    taken: Vec<(Weak<Known>, Digest)>,
    hand: usize,
}

impl Room {
    /// With so many places.
    pub(in crate::detect) fn new(most: usize) -> Self {
        Self { places: Mutex::default(), most }
    }

    /// How many places are taken.
    pub(in crate::detect) fn taken(&self) -> usize {
        locked(&self.places).taken.len()
    }

    /// Takes a place for `who`, as it asks what is calibrated by `under`. It may be called with the lock of its pupil held: others' are tried
    /// and not waited for.
    pub(super) fn take(&self, who: &Arc<Known>, under: Digest) -> bool {
        let mut places = locked(&self.places);
        let place = (Arc::downgrade(who), under);
        if places.taken.len() < self.most {
            places.taken.push(place);
            return true;
        }
        for _ in 0..LOOKS.min(places.taken.len()) {
            let at = places.hand;
            places.hand = (at + 1) % places.taken.len();
            let (holder, of) = &places.taken[at];
            if holder.upgrade().is_none_or(|holder| gives_way(&holder, *of)) {
                places.taken[at] = place;
                return true;
            }
        }
        false
    }
}

fn gives_way(holder: &Known, under: Digest) -> bool {
    if holder.asked.swap(false, Ordering::Relaxed) {
        return false;
    }
    let mut pupil = match holder.pupil.try_lock() {
        Ok(pupil) => pupil,
        Err(TryLockError::Poisoned(pupil)) => pupil.into_inner(),
        Err(TryLockError::WouldBlock) => return false,
    };
    let gives = !pupil.has_evidence();
    if gives {
        step_back(&mut pupil, under);
    }
    gives
}

fn step_back(pupil: &mut Pupil, under: Digest) {
    if let Some(learned) = pupil.learned.iter_mut().find(|learned| learned.under == under) {
        learned.state.step_back();
        learned.loss.step_back();
    }
}
