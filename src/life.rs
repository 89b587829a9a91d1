//! The life of models: when one is loaded, swapped for another, refused or retired, the security log and the provenance log are told.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use crate::config;
use crate::digest::Digest;
use crate::event::{self, Event, Name};
use crate::infer::model::Model;
use crate::pipeline::House;
use crate::prove::{Build, Change, Changed, Ledger};
use crate::trail::Which;

/// How many refused models one load of the policies tells of; a folder can hold any number.
pub const MAX_REFUSED: usize = 64;

/// What became of a model.
#[derive(Clone, Debug)]
pub struct Turn {
    /// The model.
    pub model: Arc<Model>,
    /// What became of it.
    pub changed: Changed,
}

/// A model that was not loaded.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// What the policy says it is.
    pub which: Arc<Which>,
    /// Why not, for the operator.
    pub why: String,
}

impl House {
    /// Tells what became of a model, under the policy that is in force after it.
    pub fn tell_turn(&self, turn: &Turn, policy: Digest) {
        let Turn { model, changed } = turn;
        let which = model.which();
        self.ledger.tell(&Change { changed: *changed, which: Some(&which), reason: None, policy: Some(policy) });
        let name = if *changed == Changed::Retired { Name::ModelRetired } else { Name::ModelLoaded };
        let mut event = Event::new(name, SystemTime::now());
        event.model = Some(which.name.clone());
        let digest = which.digest.map(|digest| digest.to_string());
        let event = event.with("version", &*which.version).with("sha256", digest).with("assurance", which.assurance.as_str());
        let mut event = event.with("outcome", changed.as_str());
        if *changed != Changed::Retired {
            eprintln!("portcullis: model {}: {}", which.name, model.walled());
            let (isolation, walls) = model.walls();
            event = event.with("isolation", isolation.as_str()).with("walls", walls.names().collect::<Vec<_>>());
        }
        self.events.tell(event);
    }

    /// Tells that a model was not loaded, and the policy before it stays in force.
    pub fn tell_refused(&self, refusal: &Refusal) {
        let policy = self.policy.load().digest;
        self.ledger.tell(&of_refusal(refusal, Some(policy)));
        let mut event = Event::new(Name::ModelRefused, SystemTime::now());
        event.model = Some(refusal.which.name.clone());
        self.events.tell(event.with("version", &*refusal.which.version).with("why", &*refusal.why));
    }
}

fn of_refusal(refusal: &Refusal, policy: Option<Digest>) -> Change<'_> {
    Change { changed: Changed::Refused, which: Some(&refusal.which), reason: Some(&refusal.why), policy }
}

/// Writes down models that kept the gateway from starting, as far as the log opens: then this is all that happens to it. Blocks.
pub fn refused_at_start(policies: &Path, refused: &[Refusal]) {
    let Some(gateway) = config::gateway(policies).filter(|_| !refused.is_empty()) else { return };
    let (events, _reader) = event::channel(1);
    let failed =
        |why: &dyn std::fmt::Display| eprintln!("portcullis: warning: what was refused does not stand in the provenance log: {why}");
    match Ledger::open(&gateway.prove, policies, Build::of_this_program(), events, Box::new(|_| {})) {
        Ok((ledger, _)) => {
            refused.iter().for_each(|refusal| ledger.tell(&of_refusal(refusal, None)));
            ledger.close();
            if let Some(why) = ledger.failure() {
                failed(&why);
            }
        }
        Err(error) => failed(&error),
    }
}
