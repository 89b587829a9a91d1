//! The seventh stop: the answer, from an upstream or from a model in this machine.
//!
//! Its value is the [`Answer`]. A whole answer is in memory, within the model's cap and the memory that all answers
//! share; a stream meters itself. Either carries what the budget holds for it until its last byte.

mod catalogue;
mod embeddings;
mod explain;
mod language;
mod memory;
pub mod model;
mod passing;
mod raw;
mod reply;
pub mod shadow;
pub mod shape;
mod tensors;
pub mod upstream;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use uuid::Uuid;

use crate::authorize::{OipAsks, ReceiptForm, Route};
use crate::budget::Hold;
use crate::check::Request;
use crate::detect::language::callers::Listener;
use crate::detect::language::guard::Guard;
use crate::detect::vectors::Sight;
use crate::detect::watch::Lesson;
use crate::detect::{Care, Cleared};
use crate::trail::{Late, Trail, Who};
use crate::wire::Body;

use memory::{Pool, Share};
use shadow::Shadow;
use upstream::{Protocol, Upstream};

/// Who answers for one model, and in what shape.
#[derive(Debug)]
pub struct Terms {
    /// Who answers.
    pub backend: Backend,
    /// In what shape.
    pub shape: shape::Config,
    /// Versions that are asked the same, and whose answers are compared with the one that was given.
    pub shadows: Vec<Arc<Shadow>>,
}

/// Who answers.
#[derive(Debug)]
pub enum Backend {
    /// Nobody: the request is about the gateway itself.
    Nothing,
    /// A verified model in this machine.
    Model(Arc<model::Model>),
    /// A model server.
    Upstream(Arc<Upstream>),
}

/// The bytes of an answer.
#[derive(Debug)]
pub enum Payload {
    /// Whole.
    Whole(Bytes),
    /// As it comes; how it ended stands in [`Late`] before the stream reports its end.
    Stream(Body, Late),
}

/// What an answer holds until its last byte has left: its place in the budget and its share of the memory.
#[derive(Debug, Default)]
pub struct Held {
    _budget: Option<Hold>,
    _memory: Option<Share>,
}

/// An answer to a cleared input, shaped as grant and detectors require.
#[derive(Debug)]
pub struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    payload: Payload,
    trailers: Option<HeaderMap>,
    held: Held,
}

impl Answer {
    /// Its status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Adds headers that an earlier stop has for the caller.
    pub fn extend_headers(&mut self, more: impl IntoIterator<Item = (http::HeaderName, http::HeaderValue)>) {
        self.headers.extend(more);
    }

    /// Takes the bytes out, for a request that asks for the head alone; how many they are stands in it (RFC 9110, 9.3.2).
    pub fn take_bytes(&mut self) {
        if let Payload::Whole(bytes) = &mut self.payload {
            self.headers.insert(http::header::CONTENT_LENGTH, std::mem::take(bytes).len().into());
        }
    }

    /// Its parts: status, headers, bytes, trailers where the protocol has them (gRPC), and what it holds.
    #[must_use]
    pub fn into_parts(self) -> (StatusCode, HeaderMap, Payload, Option<HeaderMap>, Held) {
        (self.status, self.headers, self.payload, self.trailers, self.held)
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// No replica, no place in a queue, no memory: `infer.unavailable`, 503. The reason is for the operator.
    Unavailable(&'static str),
    /// The upstream has too much to do: `infer.unavailable`, 503, and in how many seconds it wants to be asked again, if it said that.
    UpstreamOverloaded(Option<u64>),
    /// The upstream broke its protocol, or answered what cannot be passed on: `infer.upstream`, 502.
    UpstreamBroke(&'static str),
    /// The answer is larger than the model's `answer.max_body`: `infer.too_large`, 502.
    TooLarge,
    /// There was no answer in time: `infer.deadline`, 504.
    Deadline,
    /// The upstream refused the request as the caller wrote it: `infer.refused`, with its status and its words, shortened.
    UpstreamRefused(StatusCode, Option<String>),
    /// The model refused the input: `infer.input`, 400.
    CallerSentUnfit(&'static str),
    /// The model has no card: `infer.card`, 404.
    NoCard,
    /// No such receipt, or not this caller's: `authorize.denied`, 404.
    NoSuchReceipt,
    /// The caller's own receipt, of a stream that has not ended, in a form that needs its statement: `infer.open`, 409.
    ReceiptStillOpen,
}

impl From<upstream::Error> for Error {
    fn from(error: upstream::Error) -> Self {
        match error {
            upstream::Error::UpstreamUnreachable(_) => Self::Unavailable("no replica can be reached"),
            upstream::Error::UpstreamEjected(_) => Self::Unavailable("every replica failed too often of late"),
            upstream::Error::Full => Self::Unavailable("every replica has as many requests as it may have"),
            upstream::Error::UpstreamSilent | upstream::Error::UpstreamStalled | upstream::Error::DeadlinePassed => Self::Deadline,
            upstream::Error::UpstreamClosed => Self::UpstreamBroke("it closed the connection"),
            upstream::Error::UpstreamBrokeHttp => Self::UpstreamBroke("what it sent is not HTTP"),
            upstream::Error::UpstreamBrokeFraming => Self::UpstreamBroke("the length of its answer is ambiguous"),
            upstream::Error::UpstreamSentHugeHead => Self::UpstreamBroke("its headers are too large"),
            upstream::Error::UpstreamSwitchedProtocol => Self::UpstreamBroke("it switched protocols"),
            upstream::Error::UpstreamBrokeBody => Self::UpstreamBroke("its answer broke off"),
            upstream::Error::OperatorConfiguredCredential => Self::Unavailable("the credential cannot stand in a header"),
        }
    }
}

/// A receipt that is being looked up: [`Error::NoSuchReceipt`] where there is none for this caller, [`Error::ReceiptStillOpen`] where it has
/// no such form yet.
pub type Found<'a> = Pin<Box<dyn Future<Output = Result<Bytes, Error>> + Send + 'a>>;

/// Where receipts are looked up: the ledger, which stands behind this stop.
pub trait Receipts: Send + Sync {
    /// The receipt `id` in `form`, if it was made for `who`, or `who` `audits`.
    fn find<'a>(&'a self, id: Uuid, form: ReceiptForm, who: &'a Arc<Who>, audits: bool) -> Found<'a>;
}

/// The seventh stop.
#[derive(Debug, Default)]
pub struct Inference {
    memory: Pool,
}

/// A cleared input in its parts, on its way to whoever answers.
struct Call {
    route: Route,
    who: Arc<Who>,
    /// Whether others' receipts are for it too.
    audits: bool,
    /// The model's name as the caller wrote it; `""` where none was named.
    name: Arc<str>,
    version: Arc<str>,
    /// For lists: the names.
    visible: Vec<Arc<str>>,
    /// For the metadata of a model: its versions that answer and have a name.
    versions: Vec<Arc<str>>,
    headers: HeaderMap,
    bytes: Bytes,
    request: Request,
    care: Care,
    guard: Option<Box<Guard>>,
    listener: Option<Listener>,
    /// What is to be learned of the answer.
    lesson: Option<Lesson>,
    sight: Option<Sight>,
    hold: Hold,
    deadline: Instant,
}

impl Inference {
    /// Gets the answer.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn answer(&self, mut cleared: Cleared, terms: &Terms, receipts: &dyn Receipts, trail: &mut Trail) -> Result<Answer, Error> {
        let (guard, listener, sight) = (cleared.take_guard(), cleared.take_listener(), cleared.take_sight());
        let (input, care, lesson) = cleared.into_parts();
        let (permit, bytes, request) = input.into_parts();
        let (grant, hold) = permit.into_parts();
        let peer = grant.caller().peer();
        let (name, version) = grant.which().map(|which| (which.name.clone(), which.version.clone())).unwrap_or_default();
        let call = Box::new(Call {
            route: grant.route().clone(),
            who: grant.caller().identity().who.clone(),
            audits: grant.audits(),
            name,
            version,
            visible: grant.visible().iter().map(|which| which.name.clone()).collect(),
            versions: grant.visible().iter().map(|which| which.version.clone()).filter(|version| !version.is_empty()).collect(),
            headers: protocol_headers(peer.headers()),
            bytes,
            request,
            care,
            guard,
            listener,
            lesson,
            sight,
            hold,
            deadline: peer.deadline(),
        });
        let memory = self.memory.of(&call.who.caller);
        match (&call.route, &terms.backend) {
            (Route::Receipt { id, form }, _) => catalogue::receipt(&call, *id, *form, receipts).await,
            (Route::Models(_), _) => Ok(catalogue::models(&call)),
            (
                Route::Oip { asks: OipAsks::Live | OipAsks::Ready | OipAsks::Server, .. }
                | Route::Grpc(OipAsks::Live | OipAsks::Ready | OipAsks::Server),
                _,
            ) => catalogue::server(&call),
            (Route::Oip { asks: OipAsks::Card, .. }, Backend::Model(model)) => catalogue::card(model),
            (Route::Oip { asks: OipAsks::Card, .. }, Backend::Upstream(_)) => Err(Error::NoCard),
            (_, Backend::Nothing) => Err(Error::Unavailable("nobody answers for it")),
            (Route::Oip { .. } | Route::Grpc(_), Backend::Model(model)) => tensors::from_model(call, model, terms, &memory, trail).await,
            (Route::Oip { .. } | Route::Grpc(_), Backend::Upstream(upstream)) if upstream.protocol() == Protocol::OipGrpc => {
                tensors::over_grpc::from_upstream(call, upstream, &terms.shape, &memory, trail).await
            }
            (Route::Oip { .. }, Backend::Upstream(upstream)) => {
                tensors::over_http::from_upstream(call, upstream, &terms.shape, &memory, trail).await
            }
            (Route::Raw { .. }, Backend::Upstream(upstream)) => raw::from_upstream(call, upstream, &terms.shape, &memory, trail).await,
            (_, Backend::Upstream(upstream)) => language::from_upstream(call, upstream, &terms.shape, &memory, trail).await,
            (Route::Embeddings, Backend::Model(model)) => embeddings::from_model(call, model, terms, &memory, trail).await,
            (_, Backend::Model(_)) => Err(Error::Unavailable("a model in this machine speaks the Open Inference Protocol alone")),
        }
    }
}

/// The headers that belong to a protocol and are sent on; everything else of the caller's stays here.
fn protocol_headers(from: &HeaderMap) -> HeaderMap {
    const SENT_ON: [&str; 3] = ["anthropic-version", "anthropic-beta", "inference-header-content-length"];
    let mut kept = HeaderMap::new();
    for name in SENT_ON {
        if let Some(value) = from.get(name) {
            kept.insert(name, value.clone());
        }
    }
    kept
}

/// A whole answer.
fn whole(status: StatusCode, media_type: &'static str, bytes: Bytes, held: Held) -> Answer {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(media_type));
    Answer { status, headers, payload: Payload::Whole(bytes), trailers: None, held }
}
