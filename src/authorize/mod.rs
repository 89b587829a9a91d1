//! The third stop: what is asked of which model, and whether this caller may.
//!
//! Its value is the [`Grant`]: the matched route, the named model and the terms of every later stop.
//! The route that was judged is the route that is dispatched. Authorization does not know what the terms mean: it is
//! generic over them and hands them through.

mod decisions;
pub mod policy;
pub mod target;
pub mod traffic;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http_body::Body as _;
use serde::Deserialize;
use serde_json::Value;

use crate::authenticate::Caller;
use crate::digest::Digest;
use crate::heavy;
use crate::trail::{self, Trail, Which};
use crate::wire::{Asked, Body, Shape, anthropic, grpc, json, openai, read};

use decisions::Decisions;
pub use policy::{Circumstances, Judgement, Policies, Resource};
pub use target::{Action, OipAsks, ReceiptForm, Route, Routes, Unmatched};
use traffic::Versions;
pub use traffic::{Traffic, TrafficConfig};

/// What a model's file says to this stop.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// The path that the model is served at.
    pub path: toml::Spanned<String>,
    /// The methods it takes; `POST` alone can carry a body to be judged.
    #[serde(default = "post")]
    pub methods: Vec<String>,
}

fn post() -> Vec<String> {
    vec!["POST".to_owned()]
}

/// Which routes lead to a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// Chat completions, completions, responses and embeddings.
    OpenAi,
    /// Messages.
    Anthropic,
    /// The Open Inference Protocol v2 over HTTP and gRPC.
    Oip,
    /// The Open Inference Protocol v2 over HTTP and gRPC, and embeddings.
    Embeddings,
    /// The Open Inference Protocol v2 over HTTP alone.
    OipHttp,
    /// The Open Inference Protocol v2 over HTTP and gRPC, from an upstream that is asked by calls.
    OipGrpc,
    /// The path that its file declares.
    Raw,
}

impl Serves {
    /// Whether a request on `route` can be answered by such a model.
    #[must_use]
    pub const fn takes(self, route: &Route) -> bool {
        match route {
            Route::ChatCompletions | Route::Completions | Route::Responses => matches!(self, Self::OpenAi),
            Route::Embeddings => matches!(self, Self::OpenAi | Self::Embeddings),
            Route::Messages => matches!(self, Self::Anthropic),
            Route::Oip { .. } => matches!(self, Self::Oip | Self::Embeddings | Self::OipHttp | Self::OipGrpc),
            Route::Grpc(_) => matches!(self, Self::Oip | Self::Embeddings | Self::OipGrpc),
            Route::Raw { .. } => matches!(self, Self::Raw),
            Route::Models(_) | Route::Receipt { .. } => true,
        }
    }
}

/// A model that can be asked for, with the terms under which.
#[derive(Debug)]
pub struct Model<T> {
    /// What the logs call it.
    pub which: Arc<Which>,
    /// What policies may know of it.
    pub resource: Resource,
    /// Which routes lead to it.
    pub serves: Serves,
    /// Whether it answers, and how often among the versions of its name.
    pub traffic: Traffic,
    /// The terms of the later stops.
    pub terms: Arc<T>,
}

/// The body, read for the model's name or still on the socket.
#[derive(Debug)]
pub enum Content {
    /// Not read yet.
    Unread(Body),
    /// Read to its end, and parsed by the one strict parse where the route carries JSON.
    Read(Bytes, Option<Value>),
}

/// A caller who may do this, with the terms under which.
#[derive(Debug)]
pub struct Grant<T = ()> {
    caller: Caller,
    route: Route,
    which: Option<Arc<Which>>,
    visible: Vec<Arc<Which>>,
    content: Content,
    asked: Option<Asked>,
    audits: bool,
    terms: Arc<T>,
}

impl<T> Grant<T> {
    /// Who asks.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The matched route.
    #[must_use]
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// What is asked.
    #[must_use]
    pub fn action(&self) -> Action {
        self.route.action()
    }

    /// The model; none for lists, server metadata and receipts.
    #[must_use]
    pub fn which(&self) -> Option<&Arc<Which>> {
        self.which.as_ref()
    }

    /// For lists: the models of which this caller may see metadata, each once. For the metadata of one model: its versions that
    /// answer. Empty for everything else.
    #[must_use]
    pub fn visible(&self) -> &[Arc<Which>] {
        &self.visible
    }

    /// What is asked of a language model, where the route leads to one.
    #[must_use]
    pub fn asked(&self) -> Option<&Asked> {
        self.asked.as_ref()
    }

    /// For receipts: whether the caller may read those of others too.
    #[must_use]
    pub fn audits(&self) -> bool {
        self.audits
    }

    /// The body, as far as it was read.
    #[must_use]
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The length of the body: what was read, or what the caller says that it will send, if it says so.
    #[must_use]
    pub fn length(&self) -> usize {
        match &self.content {
            Content::Unread(body) => usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX),
            Content::Read(bytes, _) => bytes.len(),
        }
    }

    /// Takes the body out, which leaves an empty one.
    pub fn take_content(&mut self) -> Content {
        std::mem::replace(&mut self.content, Content::Unread(Body::Empty))
    }

    /// The terms of the later stops.
    #[must_use]
    pub fn terms(&self) -> &Arc<T> {
        &self.terms
    }

    /// The grant without its terms, for the values that are built on it.
    #[must_use]
    pub fn without_terms(self) -> Grant {
        let Self { caller, route, which, visible, content, asked, audits, terms: _ } = self;
        Grant { caller, route, which, visible, content, asked, audits, terms: Arc::new(()) }
    }
}

/// Why there is no grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Nothing is served at that path: `authorize.denied`, 404, like a model that is not there.
    CallerAskedNoRoute,
    /// The gRPC service has no such method: `authorize.denied`, UNIMPLEMENTED, whoever asks.
    CallerAskedNoGrpcMethod,
    /// Something is, with another method: `authorize.method`, 405.
    CallerUsedMethod(&'static str),
    /// No such model, or not for this caller, which look alike: `authorize.denied`, 404. The rules are for the security log.
    Denied(Arc<str>),
    /// A rule could not be evaluated, which denies: `authorize.denied`, 404. The reason is for the security log.
    OperatorRuleErred(Arc<str>),
    /// The body could not be read: `check.too_large`, `check.too_slow`, `check.broken_off`, without room `budget.room`.
    Body(read::Error),
    /// The body is not acceptable JSON: `check.json`.
    Json(json::Error),
    /// The body is JSON and not a request of this route, which names its model among others: `check.shape`.
    Shape(Shape),
    /// The body is not a gRPC message: `check.grpc`.
    CallerSentBadMessage(grpc::Malformed),
}

impl From<Unmatched> for Error {
    fn from(unmatched: Unmatched) -> Self {
        match unmatched {
            Unmatched::Path => Self::CallerAskedNoRoute,
            Unmatched::GrpcMethod => Self::CallerAskedNoGrpcMethod,
            Unmatched::Method(expected) => Self::CallerUsedMethod(expected),
        }
    }
}

/// The third stop: route table, models and policies of one snapshot.
#[derive(Debug)]
pub struct Authorizer<T> {
    routes: Routes,
    policies: Policies,
    models: HashMap<Arc<str>, Versions<T>>,
    /// What holds for requests that name no model.
    serverwide: Arc<T>,
    body_cap: usize,
    json: json::Limits,
    decisions: Decisions,
    room: Room,
}

/// What all bodies that are read for their model's name may hold together, in bytes: their callers' limits are not known yet.
const ROOM: usize = 256 << 20;

/// How many bodies of the largest size there is room for at the least.
const ROOM_FOR: usize = 4;

/// The room for those bodies.
#[derive(Debug)]
struct Room {
    used: AtomicUsize,
    most: usize,
}

/// A body's share of it.
struct Share<'r> {
    room: &'r Room,
    held: usize,
}

impl Share<'_> {
    /// Whether there is room for `bytes` in all.
    fn grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.held);
        let grown = |used: usize| used.checked_add(more).filter(|used| *used <= self.room.most);
        let fits = self.room.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_ok();
        self.held += if fits { more } else { 0 };
        fits
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.room.used.fetch_sub(self.held, Ordering::Relaxed);
    }
}

/// What reading a body brought.
struct Read {
    content: Content,
    asked: Option<Asked>,
    named: Option<(String, Option<String>)>,
}

/// A message names its model and version, where it is about one.
/// What a whole body asks, and of which model.
fn named(route: &Route, bytes: Bytes, limits: &json::Limits) -> Result<Read, Error> {
    let kind = match route {
        Route::Grpc(asks) => return grpc_message(*asks, bytes),
        Route::Completions => openai::Kind::Completions,
        Route::Responses => openai::Kind::Responses,
        Route::Embeddings => openai::Kind::Embeddings,
        _ => openai::Kind::Chat,
    };
    let value = json::parse(&bytes, limits).map_err(Error::Json)?;
    let asked = if *route == Route::Messages { anthropic::asked(&value) } else { openai::asked(kind, &value) };
    let asked = asked.map_err(Error::Shape)?;
    let named = Some((asked.model.clone(), None));
    Ok(Read { content: Content::Read(bytes, Some(value)), asked: Some(asked), named })
}

fn grpc_message(asks: OipAsks, bytes: Bytes) -> Result<Read, Error> {
    let message = grpc::unframe(&bytes, bytes.len()).map_err(Error::CallerSentBadMessage)?;
    let named = match asks {
        // No method of the protocol asks for a card.
        OipAsks::Live | OipAsks::Ready | OipAsks::Server | OipAsks::Card => None,
        OipAsks::Model | OipAsks::ModelReady | OipAsks::Infer => Some(grpc::named(message).map_err(Error::CallerSentBadMessage)?),
    };
    Ok(Read { content: Content::Read(bytes, None), asked: None, named })
}

impl<T> Authorizer<T> {
    /// A stop that judges by `policies`; `body_cap` is the largest body that any model takes. Of `models` several may be versions of
    /// one name, which then agree in their resource and in what they serve; a name of which no version answers is not served.
    pub fn new(routes: Routes, policies: Policies, models: Vec<Model<T>>, serverwide: T, body_cap: usize, json: json::Limits) -> Self {
        let mut names: HashMap<Arc<str>, Vec<Arc<Model<T>>>> = HashMap::new();
        for model in models {
            names.entry(model.resource.name.clone()).or_default().push(Arc::new(model));
        }
        let models = names.into_iter().filter_map(|(name, models)| Some((name, Versions::new(models)?))).collect();
        let room = Room { used: AtomicUsize::new(0), most: ROOM.max(body_cap.saturating_mul(ROOM_FOR)) };
        Self { routes, policies, models, serverwide: Arc::new(serverwide), body_cap, json, decisions: Decisions::default(), room }
    }

    /// Every version of every model, in the order of their names; of each name first those that answer, in the order of their versions.
    #[must_use]
    pub fn models(&self) -> Vec<&Arc<Model<T>>> {
        self.names().into_iter().flat_map(Versions::all).collect()
    }

    fn names(&self) -> Vec<&Versions<T>> {
        let mut names: Vec<_> = self.models.iter().collect();
        names.sort_by_key(|(name, _)| *name);
        names.into_iter().map(|(_, versions)| versions).collect()
    }

    /// Names what is asked and judges whether this caller may.
    ///
    /// # Errors
    /// See [`Error`]. What it could read of the request stands in `trail` all the same.
    pub async fn authorize(&self, mut caller: Caller, trail: &mut Trail) -> Result<Grant<T>, Error> {
        let (route, template) = self.routes.find(caller.peer().method(), caller.peer().uri().path())?;
        let declared = matches!(route, Route::Raw { .. });
        // A receipt tells the route: of a declared path it tells those alone who may use it.
        if declared {
            trail.aside.route = Some(template.clone());
        } else {
            trail.route = template.clone();
        }
        trail.action = Some(route.action().as_str());
        let body = caller.peer_mut().take_body();
        let read = if route.names_its_model_in_the_body() {
            self.read(&route, body, caller.peer().deadline(), trail).await?
        } else {
            let named = route.model_in_the_path().map(|(model, version)| (model.to_owned(), version.map(str::to_owned)));
            Read { content: Content::Unread(body), asked: None, named }
        };
        let Read { content, asked, named } = read;
        let Some((name, version)) = named else {
            let visible = self.visible(&caller, &route)?;
            let audits = matches!(route, Route::Receipt { .. }) && self.audits(&caller);
            return Ok(Grant { caller, route, which: None, visible, content, asked, audits, terms: self.serverwide.clone() });
        };
        // All of these, and what the policy denies, are one answer: which it was is for the security log.
        let denied = |why: &'static str| move || Error::Denied(why.into());
        let (known, versions) = self.models.get_key_value(name.as_str()).ok_or_else(denied("no such model"))?;
        trail.aside.model = Some(known.clone());
        let model = match &version {
            Some(version) => versions.named(version).ok_or_else(denied("no such version"))?,
            // What is only told of a model is told of the same version each time.
            None if route.action() == Action::Metadata => versions.foremost(),
            None => versions.drawn(trail.id, &caller.identity().who.caller),
        };
        if !model.serves.takes(&route) {
            return Err(denied("the model does not serve this route")());
        }
        let judgement = self.judge(&caller, route.action(), model)?;
        trail.shadowed = judgement.shadowed.clone();
        if !judgement.allowed {
            return Err(Error::Denied(if judgement.rules.is_empty() { "no rule permits".into() } else { judgement.rules.clone() }));
        }
        if declared {
            trail.route = template;
            if caller.peer().method() != http::Method::POST {
                return Err(Error::CallerUsedMethod("POST"));
            }
        }
        trail.which = Some(model.which.clone());
        trail.rules = Some(judgement.rules.clone());
        let (which, terms) = (Some(model.which.clone()), model.terms.clone());
        let of_one = matches!(route, Route::Oip { asks: OipAsks::Model, .. } | Route::Grpc(OipAsks::Model));
        let visible = if of_one { versions.answering().cloned().collect() } else { Vec::new() };
        Ok(Grant { caller, route, which, visible, content, asked, audits: false, terms })
    }

    async fn read(&self, route: &Route, mut body: Body, deadline: Instant, trail: &mut Trail) -> Result<Read, Error> {
        let mut share = Share { room: &self.room, held: 0 };
        let bytes = read::whole_with_room(&mut body, self.body_cap, deadline, |bytes| share.grow_to(bytes)).await.map_err(Error::Body)?;
        let there = bytes.clone();
        let (digest, read) = heavy::work_of_stranger(bytes.len(), || (Digest::of(&there), named(route, there, &self.json))).await;
        trail.request = trail::Content { media_type: None, length: bytes.len() as u64, digest: Some(digest) };
        if let Ok(Read { asked: Some(asked), .. }) = &read {
            trail.streams = asked.stream;
        }
        read
    }

    /// For lists: the models whose metadata this caller may see.
    fn visible(&self, caller: &Caller, route: &Route) -> Result<Vec<Arc<Which>>, Error> {
        if !matches!(route, Route::Models(_)) {
            return Ok(Vec::new());
        }
        let mut visible = Vec::new();
        for model in self.names().into_iter().map(Versions::foremost) {
            if self.judge(caller, Action::Metadata, model)?.allowed {
                visible.push(model.which.clone());
            }
        }
        Ok(visible)
    }

    fn judge(&self, caller: &Caller, action: Action, model: &Model<T>) -> Result<Arc<Judgement>, Error> {
        let circumstances = circumstances(caller);
        self.decisions
            .or_judge(caller.identity(), action, &model.resource.name, circumstances, || {
                self.policies.judge(caller.identity(), action, &model.resource, circumstances)
            })
            .map_err(|policy::Unevaluated(why)| Error::OperatorRuleErred(why.into()))
    }

    /// Whether the caller may read the receipts of others. Where a rule errs it may not, and its own it may as ever.
    fn audits(&self, caller: &Caller) -> bool {
        let circumstances = circumstances(caller);
        let judged = self.decisions.or_judge(caller.identity(), Action::Audit, &policy::LOG.into(), circumstances, || {
            self.policies.judge_audit(caller.identity(), circumstances)
        });
        judged.is_ok_and(|judgement| judgement.allowed)
    }
}

fn circumstances(caller: &Caller) -> Circumstances {
    let connection = caller.peer().connection();
    Circumstances {
        authentication: caller.identity().who.method,
        certificate: connection.certificate.is_some(),
        address: connection.address.ip().to_canonical(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_for_bodies_can_be_filled_and_not_passed_and_comes_back() {
        let room = Room { used: AtomicUsize::new(0), most: 10 };
        let mut one = Share { room: &room, held: 0 };
        assert!(one.grow_to(4) && one.grow_to(7) && one.grow_to(6));
        let mut other = Share { room: &room, held: 0 };
        assert!(other.grow_to(3) && !other.grow_to(4) && !other.grow_to(usize::MAX));
        drop(one);
        assert!(other.grow_to(10) && !other.grow_to(11));
        drop(other);
        assert_eq!(room.used.into_inner(), 0);
    }
}
