//! The bounded map in which every caller's state stands.
//!
//! It is split into shards, each behind its own lock, which is held for a look-up. Its cost when all of it is used: about
//! 400 bytes an entry, so 40 MB for the default of 100,000. An entry may be dropped only when it says nothing that a new
//! one would not say, so nobody loses his debts by it, and a caller with many names pushes out no one who is busy, unless its kind
//! [gives way](State::gives_way).
//! When every entry of a shard is in use, a new name finds no room, which is an answer and not an error of the program.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many entries one kind of state has at most.
pub(crate) const MOST_ENTRIES: usize = 100_000;

/// How many locks they stand behind.
const SHARDS: usize = 64;

/// A shard that was full of busy entries is not searched again for so long: the search costs as much as the shard is long.
const SEARCH_AGAIN: Duration = Duration::from_millis(250);

/// What can stand in the map.
pub(crate) trait State {
    /// Whether a new entry would be the same as this one.
    fn is_idle(&self, now: Instant) -> bool;

    /// Of one that gives way where none is idle, when it was last asked for, by a number that grows with time. Where there are such, the longest silent of
    /// them does.
    fn gives_way(&self) -> Option<u64> {
        None
    }
}

/// A map from names to shared state, with a cap.
#[derive(Debug)]
pub(crate) struct Gate<K, S> {
    shards: Box<[Mutex<Shard<K, S>>]>,
    most: usize,
    hasher: RandomState,
}

#[derive(Debug)]
struct Shard<K, S> {
    entries: HashMap<K, Arc<S>, RandomState>,
    full_at: Option<Instant>,
}

impl<K: Hash + Eq, S: State> Gate<K, S> {
    /// An empty map for at most `most` entries, spread evenly over its shards.
    pub(crate) fn new(most: usize) -> Self {
        Self::with_shards(most, SHARDS)
    }

    fn with_shards(most: usize, shards: usize) -> Self {
        let hasher = RandomState::new();
        let shard = || Mutex::new(Shard { entries: HashMap::with_hasher(hasher.clone()), full_at: None });
        Self { shards: (0..shards).map(|_| shard()).collect(), most: most.div_ceil(shards), hasher }
    }

    fn shard(&self, key: &K) -> &Mutex<Shard<K, S>> {
        // The map inside takes the low bits of the same hash, so the shard takes high ones.
        &self.shards[(self.hasher.hash_one(key) >> 48) as usize % self.shards.len()]
    }

    /// The state under `key`, made new where there is none; `None` when there is no room for it.
    pub(crate) fn entry(&self, key: K, now: Instant, make: impl FnOnce() -> S) -> Option<Arc<S>> {
        let mut shard = locked(self.shard(&key));
        if let Some(state) = shard.entries.get(&key) {
            return Some(state.clone());
        }
        if shard.entries.len() >= self.most && !shard.drop_idle(now) {
            return None;
        }
        let state = Arc::new(make());
        shard.entries.insert(key, state.clone());
        Some(state)
    }

    /// Takes an entry back that another map had, ahead of all use. There are no more of those than that map had room for; other names share a shard in
    /// this one, whose room they may go past.
    pub(crate) fn restore(&self, key: K, state: S) {
        locked(self.shard(&key)).entries.insert(key, Arc::new(state));
    }

    /// Every entry, a shard at a time, to be looked at without a lock of the map. As long as they are held, they are not dropped.
    pub(crate) fn each(&self) -> impl Iterator<Item = (K, Arc<S>)>
    where
        K: Clone,
    {
        let entries =
            |shard: &Mutex<Shard<K, S>>| locked(shard).entries.iter().map(|(key, state)| (key.clone(), state.clone())).collect::<Vec<_>>();
        self.shards.iter().flat_map(entries)
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| locked(shard).entries.len()).sum()
    }
}

impl<K: Hash + Eq, S: State> Shard<K, S> {
    fn drop_idle(&mut self, now: Instant) -> bool {
        if self.full_at.is_some_and(|at| now.saturating_duration_since(at) < SEARCH_AGAIN) {
            return false;
        }
        let before = self.entries.len();
        // Whoever holds a second reference is about to use the entry; references are only handed out under this lock.
        self.entries.retain(|_, state| Arc::strong_count(state) > 1 || !state.is_idle(now));
        if self.entries.len() == before {
            let gives_way = |state: &Arc<S>| (Arc::strong_count(state) == 1).then(|| state.gives_way()).flatten();
            let longest =
                self.entries.values().filter_map(|state| Some((gives_way(state)?, Arc::as_ptr(state)))).min_by_key(|(last, _)| *last);
            if let Some((_, longest)) = longest {
                self.entries.retain(|_, state| !std::ptr::eq(Arc::as_ptr(state), longest));
            }
        }
        let dropped = self.entries.len() < before;
        self.full_at = (!dropped).then_some(now);
        dropped
    }
}

/// Locks, whether or not another thread died with the lock: what stands behind these locks is whole after every line.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Busy(bool);

    impl State for Busy {
        fn is_idle(&self, _now: Instant) -> bool {
            !self.0
        }
    }

    #[test]
    fn a_full_map_refuses_a_new_name_and_still_knows_the_old_ones() {
        let now = Instant::now();
        let gate = Gate::with_shards(3, 1);
        for name in 0..3 {
            assert!(gate.entry(name, now, || Busy(true)).is_some());
        }
        assert!(gate.entry(3, now, || Busy(true)).is_none());
        assert!((0..3).all(|name| gate.entry(name, now, || Busy(true)).is_some()));
        assert_eq!(gate.len(), 3);
    }

    #[test]
    fn idle_entries_make_room_and_busy_or_held_ones_stay() {
        let now = Instant::now();
        let gate = Gate::with_shards(3, 1);
        let busy = Arc::downgrade(&gate.entry("busy", now, || Busy(true)).unwrap());
        let held = gate.entry("held", now, || Busy(false)).unwrap();
        let idle = Arc::downgrade(&gate.entry("idle", now, || Busy(false)).unwrap());
        assert!(gate.entry("new", now, || Busy(true)).is_some());
        assert!(busy.upgrade().is_some());
        assert!(idle.upgrade().is_none());
        assert!(Arc::ptr_eq(&held, &gate.entry("held", now, || Busy(true)).unwrap()));
    }

    #[test]
    fn the_longest_silent_of_those_who_give_way_makes_room() {
        struct Silent(Option<u64>);

        impl State for Silent {
            fn is_idle(&self, _now: Instant) -> bool {
                false
            }

            fn gives_way(&self) -> Option<u64> {
                self.0
            }
        }

        let now = Instant::now();
        let gate = Gate::with_shards(4, 1);
        let held = gate.entry("held", now, || Silent(Some(0)));
        for (name, last) in [("stays", None), ("later", Some(7)), ("longest", Some(3))] {
            gate.entry(name, now, || Silent(last));
        }
        assert!(gate.entry("new", now, || Silent(None)).is_some());
        let mut left: Vec<_> = gate.each().map(|(name, _)| name).collect();
        left.sort_unstable();
        assert_eq!(left, ["held", "later", "new", "stays"]);
        assert!(gate.entry("newer", now, || Silent(None)).is_some());
        assert!(gate.entry("newest", now, || Silent(None)).is_none(), "nobody gives way");
        drop(held);
    }

    #[test]
    fn a_full_shard_is_searched_again_only_after_a_while() {
        let now = Instant::now();
        let gate = Gate::with_shards(1, 1);
        let held = gate.entry(0, now, || Busy(false)).unwrap();
        assert!(gate.entry(1, now, || Busy(false)).is_none());
        drop(held);
        assert!(gate.entry(1, now + SEARCH_AGAIN / 2, || Busy(false)).is_none());
        assert!(gate.entry(1, now + SEARCH_AGAIN, || Busy(false)).is_some());
    }
}
