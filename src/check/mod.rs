//! The fifth stop: what is sent. The body within its cap and deadline, parsed once, held against its contract.
//!
//! Its value is the [`Input`]: bytes that were read whole and understood. They are the bytes that are used.
//!
//! `text` holds what is said about the body, `schema` and `tensor` what is in it; `terms` is the policy, and `names` what it says of tensors' names.

use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body::Body as _;
use serde_json::Value;

use crate::authorize::{Content, OipAsks, Route};
use crate::budget::{self, Permit};
use crate::digest::Digest;
use crate::heavy;
use crate::trail::{self, Trail};
use crate::wire::openai::{Kind, embeddings};
use crate::wire::{Asked, Body, Said, Shape, anthropic, grpc, json, oip, openai, read};

mod document;
pub mod explain;
mod names;
mod schema;
mod tensor;
mod terms;
mod text;

pub use explain::{Explanation, Unexplained};
pub use names::ByName;
pub use schema::{MOST_SCHEMA, Place, Schema};
pub use tensor::{Broken, Contract, Fault, MOST_DIMENSIONS, MOST_TENSORS};
pub use terms::{Around, Config, DEFAULT_MAX_BATCH, DEFAULT_MAX_DEPTH, MOST_DEPTH, Terms};

use terms::Narrowed;
pub(crate) use terms::unfit_input;
use text::Takes;

/// What the body was understood to ask for.
#[derive(Debug)]
pub enum Request {
    /// No body: a question about a model, the server or a receipt.
    Nothing,
    /// A request to a language model in the OpenAI or Anthropic dialect.
    Language(Asked),
    /// Tensors, of the Open Inference Protocol in any of its encodings.
    Tensors(oip::InferRequest),
    /// Tensors of which an explanation is asked too.
    Explain(Box<Explanation>),
    /// Texts or tokens in the OpenAI dialect for a model in this machine, as its tensors.
    Embed(Embed),
    /// JSON for a path that the operator declared.
    Raw,
}

/// What is to be embedded, and how the vectors are wanted.
#[derive(Debug)]
pub struct Embed {
    /// As the model takes it.
    pub request: oip::InferRequest,
    /// How vectors are written.
    pub encoding: embeddings::Encoding,
    /// How many numbers of each; all of them where it was not said.
    pub dimensions: Option<usize>,
}

impl Request {
    /// The tensors that the request brings, in whatever dialect.
    #[must_use]
    pub fn tensors(&self) -> Option<&oip::InferRequest> {
        match self {
            Self::Tensors(request) | Self::Embed(Embed { request, .. }) => Some(request),
            Self::Explain(explanation) => Some(&explanation.request),
            Self::Nothing | Self::Language(_) | Self::Raw => None,
        }
    }
}

/// A permitted request whose body holds to its contract.
#[derive(Debug)]
pub struct Input {
    permit: Permit,
    bytes: Bytes,
    request: Request,
    shadowed: Option<Error>,
}

impl Input {
    /// The permit.
    #[must_use]
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// The permit, to settle it.
    pub fn permit_mut(&mut self) -> &mut Permit {
        &mut self.permit
    }

    /// The body's bytes, as they were checked.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Pays for what the request asks of its model beyond itself, which only its body tells: an explanation costs as many requests as a
    /// caller would need to ask the same.
    ///
    /// # Errors
    /// The caller, or all callers of the model, have not so many left.
    pub fn paid(mut self, now: Instant) -> Result<Self, budget::Error> {
        if let Request::Explain(explanation) = &self.request {
            self.permit.hold_mut().reserve_queries(explanation.queries(), now)?;
        }
        Ok(self)
    }

    /// What they ask for.
    #[must_use]
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// What rules in shadow mode would have refused it for.
    pub fn take_shadowed(&mut self) -> Option<Error> {
        self.shadowed.take()
    }

    /// Its parts: the permit travels on with the answer, the bytes and what they ask for go to the model.
    #[must_use]
    pub fn into_parts(self) -> (Permit, Bytes, Request) {
        (self.permit, self.bytes, self.request)
    }
}

/// What is wrong with a body. All of it is the caller's, and 400 unless something else is said; no value is ever in it.
#[derive(Debug, PartialEq)]
pub enum Error {
    /// The body could not be read; `check.too_large`, 413, `check.too_slow`, 408, or `check.broken_off`.
    Body(read::Error),
    /// With a schema, more elements than JSON of the body's cap can hold; `check.too_large`, 413.
    CallerSentTooMuch,
    /// A body where the route takes none; `check.unexpected_body`.
    CallerSentUnexpectedBody,
    /// Another media type than the route takes, none where one must be said, or two; `check.media_type`, 415.
    CallerSentMediaType,
    /// A content coding; `check.coded`, 415.
    CallerSentCoded,
    /// `Inference-Header-Content-Length` is not one decimal number within the body; `check.header_length`.
    CallerSentHeaderLength,
    /// Bytes that are no JSON within the limits; `check.json`.
    CallerSentNoJson(json::Error),
    /// Bytes that are no gRPC message; `check.grpc`, where it is compressed `check.coded`, where it is too long `check.too_large`.
    CallerSentNoMessage(grpc::Malformed),
    /// A document or message that does not hold to its protocol, in strict mode also an unknown member; `check.shape`.
    CallerSentShape(Shape),
    /// What the model's server keeps between requests is named; `check.stored`.
    CallerNamedStored(Shape),
    /// A document that does not hold to the model's schema; `check.schema`.
    CallerBrokeSchema(Place),
    /// More tokens asked for than this cap; `check.max_tokens`.
    CallerAskedForTooManyTokens(u64),
    /// A tensor that does not hold to the contract; the codes stand at [`Broken`].
    CallerSentTensor(Fault),
    /// An explanation that is not given; `check.explain`.
    CallerAskedToExplain(Unexplained),
}

impl Error {
    /// The static code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::CallerSentTooMuch | Self::Body(read::Error::TheySentTooMuch) | Self::CallerSentNoMessage(grpc::Malformed::TooLong) => {
                "check.too_large"
            }
            Self::Body(read::Error::TheySentTooSlowly) => "check.too_slow",
            Self::Body(read::Error::TheyBrokeOff | read::Error::NoRoom) => "check.broken_off",
            Self::CallerSentUnexpectedBody => "check.unexpected_body",
            Self::CallerSentMediaType => "check.media_type",
            Self::CallerSentCoded | Self::CallerSentNoMessage(grpc::Malformed::Compressed) => "check.coded",
            Self::CallerSentNoMessage(_) => "check.grpc",
            Self::CallerSentHeaderLength => "check.header_length",
            Self::CallerSentNoJson(_) => "check.json",
            Self::CallerSentShape(_) => "check.shape",
            Self::CallerNamedStored(_) => "check.stored",
            Self::CallerBrokeSchema(_) => "check.schema",
            Self::CallerAskedForTooManyTokens(_) => "check.max_tokens",
            Self::CallerSentTensor(fault) => fault.broken.code(),
            Self::CallerAskedToExplain(_) => "check.explain",
        }
    }
}

/// Reads what was not read yet, by the request's deadline, and holds all of it against `terms`. What was read stands in `trail`.
///
/// # Errors
/// The first thing that is wrong.
pub async fn check(mut permit: Permit, terms: &Terms, trail: &mut Trail) -> Result<Input, Error> {
    let content = permit.grant_mut().take_content();
    let (wanted, deadline) = {
        let (route, peer) = (permit.grant().route(), permit.grant().caller().peer());
        (wants_body(route, peer.method(), peer.headers())?, peer.deadline())
    };
    let (bytes, parsed) = whole(content, wanted, terms, deadline).await?;
    let mut shadowed = None;
    let (digest, request) = {
        let (route, headers) = (permit.grant().route(), permit.grant().caller().peer().headers());
        let digested = trail.request.digest.is_some();
        let read = || {
            let digest = (!digested).then(|| Digest::of(&bytes));
            (digest, if wanted { understand(route, headers, &bytes, parsed, terms, &mut shadowed) } else { Ok(Request::Nothing) })
        };
        heavy::work(bytes.len(), read).await
    };
    if digest.is_some() {
        trail.request = trail::Content { media_type: None, length: bytes.len() as u64, digest };
    }
    let request = request?;
    Ok(Input { permit, bytes, request, shadowed })
}

/// Whether a body is to be read; its type is judged before it is, for nobody needs to send a megabyte to hear that it is of the wrong one.
fn wants_body(route: &Route, method: &Method, headers: &HeaderMap) -> Result<bool, Error> {
    let wanted = takes_body(route, method);
    if wanted {
        text::media_type(headers, takes(route, headers))?;
    }
    Ok(wanted)
}

/// The body's bytes, and their parse where there is one already.
async fn whole(content: Content, wanted: bool, terms: &Terms, deadline: Instant) -> Result<(Bytes, Option<Value>), Error> {
    match content {
        Content::Unread(body) if !wanted => nothing(&body).map(|()| (Bytes::new(), None)),
        Content::Read(bytes, _) if !wanted && !bytes.is_empty() => Err(Error::CallerSentUnexpectedBody),
        Content::Read(bytes, _) if bytes.len() > terms.max_body => Err(Error::Body(read::Error::TheySentTooMuch)),
        Content::Read(bytes, parsed) => Ok((bytes, parsed)),
        Content::Unread(mut body) => {
            let bytes = read::whole(&mut body, terms.max_body, deadline).await;
            Ok((bytes.map_err(Error::Body)?, None))
        }
    }
}

/// Whether a body belongs to the request at all.
fn takes_body(route: &Route, method: &Method) -> bool {
    match route {
        Route::Models(_) | Route::Receipt { .. } => false,
        Route::Oip { asks, .. } => *asks == OipAsks::Infer,
        Route::Raw { .. } => *method != Method::GET && *method != Method::HEAD && *method != Method::DELETE,
        Route::ChatCompletions | Route::Completions | Route::Responses | Route::Embeddings | Route::Messages | Route::Grpc(_) => true,
    }
}

/// The media type of a body that the route takes.
fn takes(route: &Route, headers: &HeaderMap) -> Takes {
    match route {
        Route::Grpc(_) => Takes::Grpc,
        Route::Oip { .. } if headers.contains_key(oip::HEADER_LENGTH) => Takes::BinaryTensors,
        Route::Oip { .. } => Takes::Tensors,
        _ => Takes::Json,
    }
}

fn nothing(body: &Body) -> Result<(), Error> {
    let none = body.is_end_stream() || body.size_hint().exact() == Some(0);
    if none { Ok(()) } else { Err(Error::CallerSentUnexpectedBody) }
}

/// Understands a whole body, whose media type was found right, and holds it against `terms`. What rules in shadow mode would have refused is
/// left in `shadowed`.
fn understand(
    route: &Route,
    headers: &HeaderMap,
    bytes: &Bytes,
    parsed: Option<Value>,
    terms: &Terms,
    shadowed: &mut Option<Error>,
) -> Result<Request, Error> {
    let document = |parsed: Option<Value>| parsed.map_or_else(|| json::parse(bytes, &limits(terms)).map_err(Error::CallerSentNoJson), Ok);
    let kind = match route {
        Route::ChatCompletions => Some(Kind::Chat),
        Route::Completions => Some(Kind::Completions),
        Route::Responses => Some(Kind::Responses),
        Route::Embeddings => Some(Kind::Embeddings),
        Route::Messages => None,
        Route::Oip { .. } => return binary_or_json(headers, bytes, terms, document, parsed, shadowed),
        Route::Grpc(asks) => {
            let message = grpc::unframe(bytes, terms.max_body).map_err(Error::CallerSentNoMessage)?;
            if *asks != OipAsks::Infer {
                return Ok(Request::Nothing);
            }
            let message = grpc::decode_request(message).map_err(Error::CallerSentNoMessage)?;
            return tensors(message.to_request().map_err(Error::CallerSentShape)?, None, terms, shadowed);
        }
        Route::Raw { .. } => {
            let document = document(parsed)?;
            terms.hold(shadowed, |to| schema(&document, to))?;
            return Ok(Request::Raw);
        }
        Route::Models(_) | Route::Receipt { .. } => return Ok(Request::Nothing),
    };
    let document = document(parsed)?;
    terms.hold(shadowed, |to| {
        strictly(to, || match kind {
            Some(kind) => openai::only_known_members(kind, &document),
            None => anthropic::only_known_members(&document),
        })
    })?;
    let asked = match kind {
        Some(kind) => openai::asked(kind, &document),
        None => anthropic::asked(&document),
    };
    let asked = asked.map_err(Error::CallerSentShape)?;
    if !terms.stored {
        let stored = match kind {
            Some(_) => openai::stored(&document),
            None => anthropic::stored(&document),
        };
        stored.map_or(Ok(()), |shape| Err(Error::CallerNamedStored(shape)))?;
    }
    terms.hold(shadowed, |to| text::max_tokens(asked.max_tokens, to.max_tokens))?;
    terms.hold(shadowed, |to| schema(&document, to))?;
    match &terms.held.rules.contract {
        Some(contract) => embed(&document, contract, terms, shadowed).map(Request::Embed),
        None => Ok(Request::Language(Asked { said: Box::new(Said::of(&document)), ..asked })),
    }
}

/// Texts or tokens for a model in this machine, held against its contract like any tensors.
fn embed(document: &Value, contract: &Contract, terms: &Terms, shadowed: &mut Option<Error>) -> Result<Embed, Error> {
    let asked = embeddings::Request::read(document).map_err(Error::CallerSentShape)?;
    let width = contract.outputs.iter().find(|port| port.name == embeddings::VECTORS).and_then(|port| *port.shape.get(1)?);
    if asked.dimensions.zip(width).is_some_and(|(wanted, width)| wanted as u64 > width) {
        return Err(Error::CallerSentShape(Shape::new("/dimensions", "range", "must be no more than the model has")));
    }
    let request = terms.hold(shadowed, |Narrowed { rules, .. }| {
        // Before anything is made of them: lists of tokens are filled up to the longest.
        rules.batch(asked.inputs.len() as u64).map_err(|broken| Error::CallerSentTensor(Fault { broken, list: "input", index: None }))?;
        let longest = contract.longest.unwrap_or(0);
        let longest = rules.max_length.map_or(longest, |most| longest.min(usize::try_from(most).unwrap_or(usize::MAX)));
        let inputs = asked.tensors(longest).map_err(Error::CallerSentShape)?;
        let request = oip::InferRequest { inputs, ..oip::InferRequest::default() };
        rules.hold(&request).map_err(Error::CallerSentTensor)?;
        Ok(request)
    })?;
    Ok(Embed { request, encoding: asked.encoding, dimensions: asked.dimensions })
}

fn binary_or_json(
    headers: &HeaderMap,
    bytes: &Bytes,
    terms: &Terms,
    document: impl FnOnce(Option<Value>) -> Result<Value, Error>,
    parsed: Option<Value>,
    shadowed: &mut Option<Error>,
) -> Result<Request, Error> {
    let strictly = |document: &Value, to: &Narrowed| strictly(to, || text::only_known_members(document));
    let length = text::header_length(headers, bytes.len())?;
    let Some(length) = length else {
        let document = document(parsed)?;
        terms.hold(shadowed, |to| strictly(&document, to))?;
        terms.hold(shadowed, |to| schema(&document, to))?;
        let request = oip::InferRequest::from_json(&document).map_err(Error::CallerSentShape)?;
        terms.hold(shadowed, |to| to.rules.hold(&request).map_err(Error::CallerSentTensor))?;
        return explained(request, terms);
    };
    let (request, document) = oip::InferRequest::from_binary(length, bytes, &limits(terms)).map_err(|fault| match fault {
        oip::Fault::Json(error) => Error::CallerSentNoJson(error),
        oip::Fault::Shape(shape) => Error::CallerSentShape(shape),
    })?;
    terms.hold(shadowed, |to| strictly(&document, to))?;
    tensors(request, Some(document), terms, shadowed)
}

/// Holds tensors that did not come as JSON against the rules, and against the schema as the JSON that says the same:
/// another encoding is no way around a schema.
fn tensors(request: oip::InferRequest, mut document: Option<Value>, terms: &Terms, shadowed: &mut Option<Error>) -> Result<Request, Error> {
    terms.hold(shadowed, |to| to.rules.hold(&request).map_err(Error::CallerSentTensor))?;
    terms.hold(shadowed, |to| {
        if to.schema.is_none() {
            return Ok(());
        }
        // Whether it is held to or tried, there is one.
        schema(&document::of(&request, document.take(), limits(terms).values)?, to)
    })?;
    explained(request, terms)
}

/// Whether tensors are to be explained, too. What parameters mean to a model server behind the gateway is its own business.
fn explained(request: oip::InferRequest, terms: &Terms) -> Result<Request, Error> {
    let Some(contract) = &terms.held.rules.contract else { return Ok(Request::Tensors(request)) };
    let Some(asked) = oip::Explain::read(&request.parameters).map_err(Error::CallerSentShape)? else {
        return Ok(Request::Tensors(request));
    };
    let explain = terms.explain.as_ref().ok_or(Unexplained::NotOffered);
    let explanation = explain.and_then(|explain| explain.explanation(asked, request, contract));
    Ok(Request::Explain(Box::new(explanation.map_err(Error::CallerAskedToExplain)?)))
}

fn strictly(to: &Narrowed, only_known_members: impl FnOnce() -> Result<(), Shape>) -> Result<(), Error> {
    if to.strict { only_known_members().map_err(Error::CallerSentShape) } else { Ok(()) }
}

fn schema(document: &Value, to: &Narrowed) -> Result<(), Error> {
    to.schema.as_ref().map_or(Ok(()), |schema| schema.validate(document)).map_err(Error::CallerBrokeSchema)
}

fn limits(terms: &Terms) -> json::Limits {
    json::Limits { depth: terms.max_depth, ..json::Limits::for_body(terms.max_body) }
}

#[cfg(test)]
mod tests;
