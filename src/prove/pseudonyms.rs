//! What callers were lately called and salted with, so that it is worked out once and not at each answer.
//!
//! As many as there are places; two callers of one place make room for each other, which costs both their MACs again. What is found is
//! taken only for the very same caller and month, and only as long as nothing was erased since it was worked out.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::salts::Salting;
use crate::trail::Who;

/// How many callers' are kept.
const PLACES: usize = 1024;

struct Known {
    who: Arc<Who>,
    epoch: u32,
    /// How often something was erased before it was worked out.
    erasures: u64,
    salting: Salting,
}

/// Those of up to [`PLACES`] callers.
pub(super) struct Pseudonyms {
    hasher: RandomState,
    places: Box<[Mutex<Option<Known>>]>,
    erasures: AtomicU64,
}

impl Default for Pseudonyms {
    fn default() -> Self {
        Self { hasher: RandomState::new(), places: (0..PLACES).map(|_| Mutex::default()).collect(), erasures: AtomicU64::new(0) }
    }
}

impl Pseudonyms {
    /// That of `who` in `epoch`, made by `make` where it is not known; what `make` says is for this once is not kept.
    pub(super) fn or_make(&self, who: &Arc<Who>, epoch: u32, make: impl FnOnce() -> (Salting, bool)) -> Salting {
        let place = &self.places[self.hasher.hash_one((&*who.caller, &*who.tenant)) as usize % PLACES];
        // Before anything is looked up: what is erased meanwhile is not kept.
        let erasures = self.erasures.load(Ordering::Acquire);
        if let Some(known) = &*held(place)
            && known.erasures == erasures
            && known.epoch == epoch
            && known.who == *who
        {
            return known.salting.clone();
        }
        let (salting, keep) = make();
        let mut place = held(place);
        // `forget` counts first and clears after: what is written here before it clears this place is cleared, and nothing is after.
        if keep && self.erasures.load(Ordering::Acquire) == erasures {
            *place = Some(Known { who: who.clone(), epoch, erasures, salting: salting.clone() });
        }
        salting
    }

    /// Forgets all of them.
    pub(super) fn forget(&self) {
        self.erasures.fetch_add(1, Ordering::AcqRel);
        self.places.iter().for_each(|place| *held(place) = None);
    }
}

fn held(place: &Mutex<Option<Known>>) -> MutexGuard<'_, Option<Known>> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(caller: &str, tenant: &str) -> Arc<Who> {
        Arc::new(Who { caller: caller.into(), tenant: tenant.into(), tier: "".into(), method: "jwt" })
    }

    fn salting(n: u128) -> Salting {
        Salting::of(&n.to_be_bytes(), Some((n.to_be_bytes(), n.to_le_bytes())))
    }

    #[test]
    fn they_are_made_once_for_each_caller_tenant_and_month() {
        let known = Pseudonyms::default();
        let mut made = 0;
        let mut ask = |who: &Arc<Who>, epoch: u32, keep: bool| {
            known.or_make(who, epoch, || {
                made += 1;
                (salting(made), keep)
            });
            made
        };
        assert_eq!(ask(&who("a", "t"), 202_611, true), 1);
        assert_eq!(ask(&who("a", "t"), 202_611, true), 1);
        assert_eq!(ask(&who("a", "t"), 202_612, true), 2);
        assert_eq!(ask(&who("a", "u"), 202_612, true), 3);
        assert_eq!(ask(&who("b", "u"), 202_612, false), 4);
        assert_eq!(ask(&who("b", "u"), 202_612, false), 5);
    }

    #[test]
    fn more_callers_than_places_never_get_each_others() {
        let known = Pseudonyms::default();
        for n in 0..4 * PLACES as u128 {
            let pair = salting(n).pair;
            assert_eq!(known.or_make(&who(&n.to_string(), ""), 1, || (salting(n), true)).pair, pair);
            assert_eq!(known.or_make(&who(&n.to_string(), ""), 1, || unreachable!()).pair, pair);
        }
    }

    #[test]
    fn what_was_erased_is_forgotten_even_if_it_was_being_looked_up() {
        let known = Pseudonyms::default();
        let who = who("a", "t");
        known.or_make(&who, 1, || (salting(1), true));
        known.forget();
        assert!(known.places.iter().all(|place| held(place).is_none()));
        // Looked up before, and written after.
        known.or_make(&who, 1, || {
            known.forget();
            (salting(2), true)
        });
        assert!(known.places.iter().all(|place| held(place).is_none()));
        assert_eq!(known.or_make(&who, 1, || (salting(3), true)).pair, salting(3).pair);
    }
}
