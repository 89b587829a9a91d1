//! Tokens that were verified, so that a token is verified once and not at each request.
//!
//! Found by the whole SHA-256 of the token, never by parts of it that two tokens may share (LiteLLM CVE-2026-35030).
//! Only verified tokens come in, so only an issuer's own callers can fill it; past its cap the ones not asked for
//! lately make room (the clock algorithm, a bounded number of steps), which costs a verification and nothing else.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::Identity;
use crate::digest::Digest;

/// The most tokens that are remembered.
pub const MAX_VERIFIED: usize = SHARDS * PER_SHARD;
const SHARDS: usize = 16;
const PER_SHARD: usize = 625;

/// What a verified token says.
#[derive(Clone, Debug)]
pub(super) struct Verified {
    pub(super) identity: Arc<Identity>,
    /// Which issuer, by its place in the configuration.
    pub(super) issuer: usize,
    /// The generation of the key set that verified it.
    pub(super) generation: u64,
    pub(super) window: Window,
}

/// When a token holds, in Unix seconds, leeway included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// The first second.
    pub(super) from: u64,
    /// The first second in which it does not hold any more.
    pub(super) until: u64,
}

/// The tokens.
pub(super) struct Cache {
    shards: [RwLock<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    places: HashMap<Digest, usize>,
    entries: Vec<Entry>,
    hand: usize,
}

struct Entry {
    token: Digest,
    verified: Verified,
    used: AtomicBool,
}

impl Cache {
    pub(super) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| RwLock::default()) }
    }

    /// What the token with this digest said when it was verified. Whether that still holds is the caller's to see.
    pub(super) fn find(&self, token: &Digest) -> Option<Verified> {
        let shard = self.shard(token).read().unwrap_or_else(PoisonError::into_inner);
        let entry = &shard.entries[*shard.places.get(token)?];
        entry.used.store(true, Ordering::Relaxed);
        Some(entry.verified.clone())
    }

    /// Remembers a token that was verified just now.
    pub(super) fn insert(&self, token: Digest, verified: Verified) {
        let mut shard = self.shard(&token).write().unwrap_or_else(PoisonError::into_inner);
        let entry = Entry { token, verified, used: AtomicBool::new(false) };
        if let Some(place) = shard.places.get(&token).copied() {
            shard.entries[place] = entry;
            return;
        }
        let place = if shard.entries.len() < PER_SHARD {
            shard.entries.push(entry);
            shard.entries.len() - 1
        } else {
            let mut hand = shard.hand;
            // After one round every mark is gone, so this ends.
            while shard.entries[hand].used.swap(false, Ordering::Relaxed) {
                hand = (hand + 1) % PER_SHARD;
            }
            shard.hand = (hand + 1) % PER_SHARD;
            let old = std::mem::replace(&mut shard.entries[hand], entry);
            shard.places.remove(&old.token);
            hand
        };
        shard.places.insert(token, place);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().unwrap().entries.len()).sum()
    }

    fn shard(&self, token: &Digest) -> &RwLock<Shard> {
        &self.shards[usize::from(token.as_bytes()[0]) % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trail::Who;

    fn verified(name: &str) -> Verified {
        let who = Who { caller: name.into(), tenant: "".into(), tier: "".into(), method: "jwt" };
        let identity = Arc::new(Identity { who: Arc::new(who), roles: Vec::new() });
        Verified { identity, issuer: 0, generation: 1, window: Window { from: 0, until: 1 } }
    }

    #[test]
    fn it_never_grows_past_its_cap_and_keeps_what_is_asked_for() {
        let cache = Cache::new();
        let dear = Digest::of(b"dear");
        cache.insert(dear, verified("dear"));
        for n in 0..3 * MAX_VERIFIED {
            cache.insert(Digest::of(&n.to_le_bytes()), verified("other"));
            assert_eq!(&*cache.find(&dear).unwrap().identity.who.caller, "dear");
        }
        assert_eq!(cache.len(), MAX_VERIFIED);
        let known: usize = cache.shards.iter().map(|shard| shard.read().unwrap().places.len()).sum();
        assert_eq!(known, MAX_VERIFIED);
    }

    #[test]
    fn the_same_token_again_takes_no_more_room() {
        let cache = Cache::new();
        (0..3).for_each(|_| cache.insert(Digest::of(b"a"), verified("a")));
        assert_eq!(cache.len(), 1);
    }
}
