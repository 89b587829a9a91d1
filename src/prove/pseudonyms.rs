//! Pseudonyms that were made lately, so that a caller's are made once and not at each answer.
//!
//! As many as there are places; two callers of one place make room for each other, which costs both their five MACs again.
//! What is found is taken only for the very same caller and month.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use crate::trail::Who;

/// Caller and tenant, as statements call them.
type Pair = ([u8; 16], [u8; 16]);

/// How many callers' are kept.
const PLACES: usize = 1024;

struct Known {
    who: Arc<Who>,
    epoch: u32,
    pair: Pair,
}

/// The pseudonyms of up to [`PLACES`] callers.
pub(super) struct Pseudonyms {
    hasher: RandomState,
    places: Box<[Mutex<Option<Known>>]>,
}

impl Default for Pseudonyms {
    fn default() -> Self {
        Self { hasher: RandomState::new(), places: (0..PLACES).map(|_| Mutex::default()).collect() }
    }
}

impl Pseudonyms {
    /// Those of `who` in `epoch`, made by `make` where they are not known.
    pub(super) fn or_make(&self, who: &Arc<Who>, epoch: u32, make: impl FnOnce() -> Pair) -> Pair {
        let place = &self.places[self.hasher.hash_one(&*who.caller) as usize % PLACES];
        if let Some(known) = &*place.lock().unwrap_or_else(PoisonError::into_inner)
            && known.epoch == epoch
            && known.who == *who
        {
            return known.pair;
        }
        let pair = make();
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(Known { who: who.clone(), epoch, pair });
        pair
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(caller: &str, tenant: &str) -> Arc<Who> {
        Arc::new(Who { caller: caller.into(), tenant: tenant.into(), tier: "".into(), method: "jwt" })
    }

    #[test]
    fn they_are_made_once_for_each_caller_tenant_and_month() {
        let known = Pseudonyms::default();
        let mut made = 0;
        let mut ask = |who: &Arc<Who>, epoch: u32| {
            known.or_make(who, epoch, || {
                made += 1;
                ([made; 16], [made; 16])
            });
            made
        };
        assert_eq!(ask(&who("a", "t"), 202_611), 1);
        assert_eq!(ask(&who("a", "t"), 202_611), 1);
        assert_eq!(ask(&who("a", "t"), 202_612), 2);
        assert_eq!(ask(&who("a", "u"), 202_612), 3);
    }

    #[test]
    fn more_callers_than_places_never_get_each_others() {
        let known = Pseudonyms::default();
        for n in 0..4 * PLACES as u128 {
            let pair = (n.to_be_bytes(), n.to_le_bytes());
            assert_eq!(known.or_make(&who(&n.to_string(), ""), 1, || pair), pair);
            assert_eq!(known.or_make(&who(&n.to_string(), ""), 1, || unreachable!()), pair);
        }
    }
}
