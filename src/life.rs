//! The life of models: when one is loaded, swapped for another, refused or retired, the security log and the provenance log are told.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::config;
use crate::digest::Digest;
use crate::event::{self, Event, Name};
use crate::infer::Backend;
use crate::infer::model::Model;
use crate::pipeline::House;
use crate::prove::{Build, Change, Changed, Shards};
use crate::say::aside;
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
        self.shards.current().tell(&Change { changed: *changed, which: Some(&which), reason: None, policy: Some(policy) });
        let name = if *changed == Changed::Retired { Name::ModelRetired } else { Name::ModelLoaded };
        let mut event = Event::new(name, SystemTime::now());
        event.model = Some(which.name.clone());
        let digest = which.digest.map(|digest| digest.to_string());
        let event = event.with("version", &*which.version).with("sha256", digest).with("assurance", which.assurance.as_str());
        let mut event = event.with("outcome", changed.as_str());
        if *changed != Changed::Retired {
            aside!("portcullis: model {}: {}", which.name, model.walled());
            let (isolation, walls) = model.walls();
            event = event.with("isolation", isolation.as_str()).with("walls", walls.names().collect::<Vec<_>>());
        }
        self.events.tell(event);
    }

    /// The models in this machine that are in force, each once.
    #[must_use]
    pub fn running(&self) -> Vec<Arc<Model>> {
        let policy = self.policy.load();
        let backends = policy.authorizer.models().into_iter().map(|model| &model.terms.infer.backend);
        backends.filter_map(|backend| if let Backend::Model(model) = backend { Some(model.clone()) } else { None }).collect()
    }

    /// Tells of each worker of a model that fell since this was last called.
    fn tell_falls(&self, model: &Model) {
        let (falls, missed) = model.falls().take();
        let which = model.which();
        let last = falls.len().saturating_sub(1);
        for (at, fall) in falls.into_iter().enumerate() {
            let mut event = Event::new(Name::ModelFell, fall.at);
            event.model = Some(which.name.clone());
            let mut event = event.with("version", &*which.version).with("why", fall.why).with("in_a_call", fall.called);
            if at == last && missed > 0 {
                event = event.with("and_more", missed);
            }
            self.events.tell(event);
        }
    }

    /// Tells that a model was not loaded, and the policy before it stays in force.
    pub fn tell_refused(&self, refusal: &Refusal) {
        let policy = self.policy.load().digest;
        self.shards.current().tell(&of_refusal(refusal, Some(policy)));
        let mut event = Event::new(Name::ModelRefused, SystemTime::now());
        event.model = Some(refusal.which.name.clone());
        self.events.tell(event.with("version", &*refusal.which.version).with("why", &*refusal.why));
    }
}

/// How often workers that fell are asked for.
pub const EVERY: Duration = Duration::from_secs(1);

/// Tells of workers that fell, of the models in force, until the task is dropped.
pub async fn watch(house: Arc<House>) {
    loop {
        tokio::time::sleep(EVERY).await;
        for model in house.running() {
            house.tell_falls(&model);
        }
    }
}

fn of_refusal(refusal: &Refusal, policy: Option<Digest>) -> Change<'_> {
    Change { changed: Changed::Refused, which: Some(&refusal.which), reason: Some(&refusal.why), policy }
}

/// Writes down models that kept the gateway from starting, as far as the log opens: then this is all that happens to it. Blocks.
pub fn refused_at_start(policies: &Path, refused: &[Refusal]) {
    let Some(gateway) = config::gateway(policies).filter(|_| !refused.is_empty()) else { return };
    let (events, _reader) = event::channel(1);
    let failed = |why: &dyn std::fmt::Display| aside!("portcullis: warning: what was refused does not stand in the provenance log: {why}");
    match Shards::open(SystemTime::now(), &[], &gateway.prove, policies, Build::of_this_program(), events, Box::new(|_| {})) {
        Ok((shards, _)) => {
            let ledger = shards.current();
            refused.iter().for_each(|refusal| ledger.tell(&of_refusal(refusal, None)));
            shards.close();
            if let Some(why) = ledger.failure() {
                failed(&why);
            }
        }
        Err(error) => failed(&error),
    }
}
