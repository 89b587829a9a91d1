//! Decisions that were made already, for as long as the policies stand.
//!
//! Cedar's answer depends on nothing but the identity, the action, the model and the circumstances, and the whole
//! [`super::Authorizer`] is replaced when policies change, so that a decision may be kept as long as its key is the
//! whole of that, compared in full. The map is cleared when it is full, which costs those who are in it one evaluation.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use super::policy::{Circumstances, Judgement, Unevaluated};
use super::target::Action;
use crate::authenticate::Identity;

/// Decisions kept in each shard: a caller that varies its address or model costs evaluations, never memory.
const KEPT: usize = 1024;
const SHARDS: usize = 16;

#[derive(PartialEq, Eq)]
struct Key {
    identity: Arc<Identity>,
    action: Action,
    model: Arc<str>,
    circumstances: Circumstances,
}

/// The kept decisions.
#[derive(Default)]
pub(super) struct Decisions {
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

/// By the hash of the key.
type Shard = HashMap<u64, (Key, Arc<Judgement>)>;

impl std::fmt::Debug for Decisions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decisions(…)")
    }
}

impl Decisions {
    /// The decision for this key, made now if it was not made before. An error is not kept.
    pub(super) fn or_judge(
        &self,
        identity: &Arc<Identity>,
        action: Action,
        model: &Arc<str>,
        circumstances: Circumstances,
        judge: impl FnOnce() -> Result<Judgement, Unevaluated>,
    ) -> Result<Arc<Judgement>, Unevaluated> {
        let key = Key { identity: identity.clone(), action, model: model.clone(), circumstances };
        let hash = self.hasher.hash_one((&*identity.who.caller, action, &**model, circumstances));
        let shard = &self.shards[hash as usize % SHARDS];
        if let Some((known, judgement)) = shard.lock().unwrap_or_else(PoisonError::into_inner).get(&hash)
            // The hash finds the entry, equality of everything decides: another caller's answer is never taken.
            && *known == key
        {
            return Ok(judgement.clone());
        }
        let judgement = Arc::new(judge()?);
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if shard.len() >= KEPT {
            shard.clear();
        }
        shard.insert(hash, (key, judgement.clone()));
        Ok(judgement)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::IpAddr;

    use super::*;
    use crate::trail::Who;

    fn identity(role: &str) -> Arc<Identity> {
        let who = Who { caller: "api_key:a".into(), tenant: "".into(), tier: "".into(), method: "api_key" };
        Arc::new(Identity { who: Arc::new(who), roles: vec![role.into()] })
    }

    #[test]
    fn a_decision_is_made_once_for_each_whole_key() {
        let decisions = Decisions::default();
        let made = Cell::new(0);
        let ask = |identity: &Arc<Identity>, model: &str, last: u8| {
            let circumstances = Circumstances { authentication: "api_key", certificate: false, address: IpAddr::from([127, 0, 0, last]) };
            decisions
                .or_judge(identity, Action::Chat, &model.into(), circumstances, || {
                    made.set(made.get() + 1);
                    Ok(Judgement { allowed: &*identity.roles[0] == "app", rules: "r".into(), shadowed: None })
                })
                .unwrap()
                .allowed
        };
        assert!(ask(&identity("app"), "m", 1) && ask(&identity("app"), "m", 1));
        assert_eq!(made.get(), 1);
        // The same name with other roles, as after a token with new claims, is another key.
        assert!(!ask(&identity("other"), "m", 1));
        assert!(ask(&identity("app"), "m", 2) && ask(&identity("app"), "n", 1));
        for model in 0..20_000 {
            ask(&identity("app"), &model.to_string(), 1);
        }
        assert!(decisions.shards.iter().all(|shard| shard.lock().unwrap().len() <= KEPT));
    }
}
