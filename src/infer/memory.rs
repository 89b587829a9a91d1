//! The memory that all whole answers share. An answer takes its share before it is buffered and gives it back with its
//! last byte; when there is none left the request is refused, and the process lives.
//!
//! No caller's answers hold more than what is left for all others: one who takes none of them keeps half of it at most, two a third each
//! (the dynamic thresholds of Choudhury and Hahne, 1998), and nobody is refused for what another leaves lying.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Error;
use crate::budget::gate::locked;

/// What all buffered answers of the gateway may hold together, in bytes.
pub(super) const ALL: usize = 256 << 20;

/// The grain of a share, in bytes.
const GRAIN: usize = 4096;

/// Callers that are remembered before it is looked which of them hold nothing any more.
const CALLERS: usize = 64;

/// The memory of all callers.
#[derive(Debug)]
pub(super) struct Pool {
    all: Arc<Semaphore>,
    callers: Mutex<HashMap<Arc<str>, Weak<AtomicUsize>>>,
}

/// The same, as one caller sees it.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    all: Arc<Semaphore>,
    /// Grains that the caller's answers hold.
    own: Arc<AtomicUsize>,
}

/// A part of it.
#[derive(Debug)]
pub(super) struct Share {
    permit: OwnedSemaphorePermit,
    of: Memory,
}

impl Default for Pool {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(ALL / GRAIN)), callers: Mutex::default() }
    }
}

impl Pool {
    /// As a caller sees it.
    pub(super) fn of(&self, caller: &Arc<str>) -> Memory {
        let mut callers = locked(&self.callers);
        let own = callers.get(caller).and_then(Weak::upgrade).unwrap_or_else(|| {
            // Whoever holds something is kept, and there are no more of those than answers: it is looked again when there are twice as many.
            if callers.len() >= CALLERS && callers.len() == callers.capacity() {
                callers.retain(|_, own| own.strong_count() > 0);
            }
            let own = Arc::default();
            callers.insert(caller.clone(), Arc::downgrade(&own));
            own
        });
        Memory { all: self.all.clone(), own }
    }
}

impl Memory {
    /// A share of no bytes, which can grow.
    pub(super) fn share(&self) -> Result<Share, Error> {
        let permit = self.all.clone().try_acquire_many_owned(0).map_err(|_| FULL)?;
        Ok(Share { permit, of: self.clone() })
    }
}

const FULL: Error = Error::Unavailable("the memory for answers is full");

impl Share {
    /// Makes the share at least `bytes` long.
    ///
    /// # Errors
    /// There is not so much left, or the caller's answers would hold more than what is.
    pub(super) fn grow_to(&mut self, bytes: usize) -> Result<(), Error> {
        let more = bytes.div_ceil(GRAIN).saturating_sub(self.permit.num_permits());
        if more > 0 {
            let permit = self.of.all.clone().try_acquire_many_owned(u32::try_from(more).map_err(|_| FULL)?).map_err(|_| FULL)?;
            let own = self.of.own.fetch_add(more, Ordering::Relaxed) + more;
            if own > self.of.all.available_permits() {
                self.of.own.fetch_sub(more, Ordering::Relaxed);
                return Err(FULL);
            }
            self.permit.merge(permit);
        }
        Ok(())
    }

    /// Makes it one of no bytes again.
    pub(super) fn give_back(&mut self) {
        let all = self.permit.num_permits();
        self.of.own.fetch_sub(all, Ordering::Relaxed);
        drop(self.permit.split(all));
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
impl Default for Memory {
    /// Of a caller who is alone.
    fn default() -> Self {
        Pool::default().of(&"".into())
    }
}

#[cfg(test)]
impl Memory {
    /// Takes all that is left but so many bytes, for as long as it is held.
    pub(super) fn all_but(&self, bytes: usize) -> OwnedSemaphorePermit {
        let taken = self.all.available_permits() - bytes / GRAIN;
        self.all.clone().try_acquire_many_owned(u32::try_from(taken).unwrap()).unwrap()
    }

    /// Whether nobody holds anything.
    pub(super) fn is_whole(&self) -> bool {
        self.all.available_permits() == ALL / GRAIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_it_is_one_callers_and_not_one_grain_more_and_it_comes_back() {
        let memory = Memory::default();
        let mut share = memory.share().unwrap();
        share.grow_to(ALL / 2).unwrap();
        share.grow_to(10).unwrap();
        let mut more = memory.share().unwrap();
        more.grow_to(0).unwrap();
        assert_eq!(more.grow_to(1), Err(FULL));
        assert_eq!(share.grow_to(ALL / 2 + 1), Err(FULL));
        share.give_back();
        more.grow_to(1).unwrap();
        share.grow_to(ALL / 2 - GRAIN).unwrap();
        assert_eq!(share.grow_to(ALL / 2), Err(FULL));
        drop((share, more));
        assert!(memory.is_whole());
    }

    #[test]
    fn what_one_leaves_lying_takes_nobody_elses_and_all_of_it_is_never_gone() {
        let pool = Pool::default();
        let held: Vec<Share> = (0..4)
            .map(|caller| {
                // As much as it gets, by 1 MiB.
                let (mut share, mut length) = (pool.of(&caller.to_string().into()).share().unwrap(), 0);
                while share.grow_to(length + (1 << 20)).is_ok() {
                    length += 1 << 20;
                }
                assert!(length >= ALL >> (caller + 2), "{caller}: {length}");
                share
            })
            .collect();
        let mut small = pool.of(&"another".into()).share().unwrap();
        small.grow_to(2 << 20).unwrap();
        drop(held);
    }

    #[test]
    fn callers_who_hold_nothing_are_forgotten() {
        let pool = Pool::default();
        let one = pool.of(&"held".into());
        let mut share = one.share().unwrap();
        share.grow_to(GRAIN).unwrap();
        drop(one);
        (0..10_000).for_each(|caller: u32| drop(pool.of(&caller.to_string().into())));
        assert!(locked(&pool.callers).len() <= 4 * CALLERS);
        let again = pool.of(&"held".into());
        assert_eq!(again.own.load(Ordering::Relaxed), 1, "who holds something is not");
    }
}
