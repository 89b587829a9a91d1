//! Who is watched closely: so many at once, since each takes 32 KiB where others take less than one.
//!
//! Whoever comes when all places are taken gets that of one who has not asked since the last round and against whom there is no
//! evidence (the second-chance rule: Corbató, 1968). When none of those that are looked at is such a one, the longest silent of them gives way whom nothing
//! but a suspicion speaks against: a few odd rows make one, and with many names they would keep everyone else out. What such a one loses
//! is the memory of his last rows; what his families have won stays. Who has climbed the ladder, or has spent a tenth of a budget of exposure, gives
//! way to nobody: his meter goes on. Whoever finds no place is [counted](super::super::Detector::unwatched).

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, TryLockError, Weak};
use std::time::Instant;

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
        let mut longest = None::<(Instant, usize)>;
        for _ in 0..LOOKS.min(places.taken.len()) {
            let at = places.hand;
            places.hand = (at + 1) % places.taken.len();
            let (holder, of) = &places.taken[at];
            let Some(holder) = holder.upgrade() else {
                places.taken[at] = place;
                return true;
            };
            match gives_way(&holder, *of, false) {
                Gives::Way => {
                    places.taken[at] = place;
                    return true;
                }
                Gives::WayIfMust => {
                    let seen = holder.last_seen();
                    if longest.is_none_or(|(other, _)| seen < other) {
                        longest = Some((seen, at));
                    }
                }
                Gives::No => {}
            }
        }
        let Some((_, at)) = longest else { return false };
        let (holder, of) = &places.taken[at];
        let gave = holder.upgrade().is_none_or(|holder| matches!(gives_way(&holder, *of, true), Gives::Way));
        if gave {
            places.taken[at] = place;
        }
        gave
    }
}

/// Whether a holder gives way.
enum Gives {
    Way,
    /// When nobody else does.
    WayIfMust,
    No,
}

fn gives_way(holder: &Known, under: Digest, must: bool) -> Gives {
    if holder.asked.swap(false, Ordering::Relaxed) {
        return Gives::No;
    }
    let mut pupil = match holder.pupil.try_lock() {
        Ok(pupil) => pupil,
        Err(TryLockError::Poisoned(pupil)) => pupil.into_inner(),
        Err(TryLockError::WouldBlock) => return Gives::No,
    };
    // Of a calibration that no policy has any more, nothing may be left to lose.
    let is_close = pupil.learned.iter().any(|learned| learned.under == under && learned.is_living() && learned.state.is_close());
    if is_close && pupil.has_cause() {
        return Gives::No;
    }
    if is_close && pupil.is_suspected() && !must {
        return Gives::WayIfMust;
    }
    step_back(&mut pupil, under);
    Gives::Way
}

fn step_back(pupil: &mut Pupil, under: Digest) {
    if let Some(learned) = pupil.learned.iter_mut().find(|learned| learned.under == under) {
        learned.state.step_back();
        learned.loss.step_back();
    }
}
