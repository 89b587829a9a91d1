//! The streams that have not ended: what is told of a receipt whose statement is not signed yet.
//!
//! A stream is among them from before its head leaves until its entry is written, so that whoever has its address finds it at any time, in
//! one place or the other. They are as many as there are answers that stream, each of which holds a slot of the log. Nothing of them is on
//! the disk.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value as Json, json};
use uuid::Uuid;

use super::receipt::State;
use crate::trail::{Trail, Which, Who};

/// All of them, of every shard of a log.
#[derive(Default)]
pub(super) struct Underway(Mutex<HashMap<Uuid, Stream>>);

/// A stream that has not ended.
#[derive(Clone, Debug)]
pub struct Stream {
    trail: Arc<Trail>,
    origin: Arc<str>,
}

/// One stream's place among them, which it leaves when this is dropped.
pub(super) struct Place {
    among: Arc<Underway>,
    id: Uuid,
}

impl Underway {
    /// Takes a place for the stream of this trail, whose entry will be in the log of this origin.
    pub(super) fn begin(self: &Arc<Self>, trail: &Arc<Trail>, origin: &Arc<str>) -> Place {
        self.held().insert(trail.id, Stream { trail: trail.clone(), origin: origin.clone() });
        Place { among: self.clone(), id: trail.id }
    }

    /// The stream of this id, if it is this caller's, or the caller `audits`.
    pub(super) fn find(&self, id: Uuid, who: &Who, audits: bool) -> Option<Stream> {
        let theirs = |stream: &&Stream| {
            audits || stream.trail.who.as_ref().is_some_and(|owner| (&owner.tenant, &owner.caller) == (&who.tenant, &who.caller))
        };
        self.held().get(&id).filter(theirs).cloned()
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Uuid, Stream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.among.held().remove(&self.id);
    }
}

impl Stream {
    /// The receipt for people, as far as there is one; what is in it is named as in one that is signed.
    #[must_use]
    pub fn json(&self) -> Json {
        let trail = &self.trail;
        let mut view = Map::new();
        view.insert("t0".into(), json!(trail.arrived.unix_nanos()));
        view.insert("req".into(), json!({ "method": trail.method.as_str(), "route": &*trail.route }));
        view.extend(trail.which.as_ref().map(|which| ("model".into(), model(which))));
        json!({ "id": trail.id.hyphenated().to_string(), "log": &*self.origin, "state": State::Open.as_str(), "view": view })
    }
}

fn model(which: &Which) -> Json {
    let Which { name, version, digest, format, assurance } = which;
    let mut model = json!({ "name": &**name, "format": &**format, "assurance": assurance.as_str() });
    if !version.is_empty() {
        model["version"] = json!(&**version);
    }
    if let Some(digest) = digest {
        model["sha256"] = json!(digest.to_string());
    }
    model
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prove::statement::tests::trail;

    #[test]
    fn a_stream_is_its_callers_and_auditors_for_as_long_as_it_has_its_place() {
        let underway = Arc::new(Underway::default());
        let trail = Arc::new(trail(1_800_000_000));
        let owner = trail.who.clone().unwrap();
        let other = |caller: &str, tenant: &str| Who { caller: caller.into(), tenant: tenant.into(), tier: "".into(), method: "api_key" };
        let place = underway.begin(&trail, &"gw.example/node1".into());
        let told = underway.find(trail.id, &owner, false).unwrap().json();
        assert_eq!((&told["id"], &told["log"], &told["state"]), (&json!(trail.id.to_string()), &json!("gw.example/node1"), &json!("open")));
        assert_eq!(told["view"]["model"]["name"], json!(&*trail.which.as_ref().unwrap().name));
        assert!(told["view"]["t0"].as_u64().is_some_and(|t0| t0 == trail.arrived.unix_nanos()) && told.get("statement").is_none());
        for stranger in [other("api_key:someone", &owner.tenant), other(&owner.caller, "elsewhere")] {
            assert!(underway.find(trail.id, &stranger, false).is_none());
            assert!(underway.find(trail.id, &stranger, true).is_some());
        }
        assert!(underway.find(Uuid::now_v7(), &owner, true).is_none());
        drop(place);
        assert!(underway.find(trail.id, &owner, true).is_none() && underway.held().is_empty());
    }
}
