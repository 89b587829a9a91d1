//! Language models behind an upstream of protocol `openai` or `anthropic`.
//!
//! The body that was checked is the body that is sent: the gateway writes its own name of the model over the caller's
//! where they differ, asks for `usage` on streams, and changes no other byte.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};
use serde_json::Value;

use super::memory::Memory;
use super::passing::{self, Read};
use super::upstream::{Outgoing, Upstream};
use super::{Answer, Call, Error, Held, reply, shape, whole};
use crate::authorize::Route;
use crate::check::Request;
use crate::detect::language::guard::Guard;
use crate::heavy;
use crate::trail::{TRACEPARENT, Trail, Usage};
use crate::wire::json::{self, Edit};
use crate::wire::{Asked, anthropic, openai, said};

mod stream;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");

/// No answer has so many tokens: whoever tells more is wrong, and the sums of them that are kept must not pass 64 bits.
const MOST_TOKENS: u64 = 1 << 32;

pub(super) async fn from_upstream(
    mut call: Box<Call>,
    upstream: &Arc<Upstream>,
    shape: &shape::Config,
    memory: &Memory,
    trail: &mut Trail,
) -> Result<Answer, Error> {
    let Request::Language(asked) = std::mem::replace(&mut call.request, Request::Nothing) else {
        return Err(Error::Unavailable("the route carries no request to a language model"));
    };
    let theirs = upstream.model().filter(|theirs| **theirs != call.name).map(ToString::to_string);
    let (bytes, route) = (&call.bytes, &call.route);
    let mut headers = headers(&call, asked.stream);
    headers.extend(trail.trace.parent_of_call().map(|parent| (TRACEPARENT, parent)));
    let outgoing = Outgoing {
        method: Method::POST,
        path_and_query: http::uri::PathAndQuery::from_static(path(&call.route)),
        headers,
        body: heavy::work(bytes.len(), || body(bytes, route, &asked, theirs.as_deref())).await,
    };
    call.hold.began();
    let incoming = upstream.send(outgoing, call.deadline).await?;
    if !incoming.status.is_success() {
        return Err(reply::refused(incoming, call.deadline, upstream.unsaid(theirs.as_deref().map(|theirs| (theirs, &*call.name)))).await);
    }
    reply::uncoded(&incoming.headers)?;
    let media_type = incoming.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if asked.stream {
        if !media_type.starts_with(b"text/event-stream") {
            return Err(Error::UpstreamBroke("it was asked for a stream and sent none"));
        }
        return Ok(stream::answer(call, &asked, incoming, shape, memory.share()?));
    }
    if !media_type.starts_with(b"application/json") {
        return Err(Error::UpstreamBroke("its answer is not JSON"));
    }
    let (incoming, mut call) = match passing::if_larger(incoming, call, shape, "application/json").await? {
        Read::Small(incoming, call) => (incoming, call),
        Read::Large(answer) => return Ok(*answer),
    };
    let (bytes, share) = reply::whole(incoming, shape.max_body(), memory, call.deadline).await?;
    call.hold.delivered(bytes.len() as u64);
    let limits = json::Limits::for_body(shape.max_body());
    let decimals = decimals(&call, shape);
    let all = decimals.is_some() || call.care.without_logprobs || call.guard.is_some();
    let route = &call.route;
    let mut document = heavy::work(bytes.len(), || understood(route, &bytes, &limits, all)).await?;
    let usage = usage_of(&call.route, &document);
    trail.usage = Some(match usage {
        Some(usage) => {
            call.hold.settle(usage);
            call.listener.take().into_iter().for_each(|listener| listener.hear(usage));
            usage
        }
        None => call.hold.settle_by_bytes(),
    });
    let (route, guard) = (&call.route, call.guard.as_mut());
    let (unread, withheld) = heavy::work(bytes.len(), || guard.map_or((false, false), |guard| guarded(route, &mut document, guard))).await;
    let stripped = call.care.without_logprobs && openai::strip_logprobs(&mut document);
    let rounded = decimals.is_some_and(|decimals| openai::round_logprobs(&mut document, decimals));
    // Whatever the upstream calls it, the caller hears the name that was asked for.
    let misnamed = rename_in(&mut document, &call.name);
    let bytes = if stripped || rounded || withheld || unread {
        document.to_string().into()
    } else if misnamed {
        json::edit(&bytes, &[("model", Edit::replace_text(&call.name))]).unwrap_or(bytes)
    } else {
        bytes
    };
    Ok(whole(incoming_status(), "application/json", bytes, Held { _budget: Some(call.hold), _memory: Some(share) }))
}

/// The parsed answer: all of it where something in it is to be changed, else only what is looked at.
///
/// What is JSON and no answer of the protocol is refused: an error told as a success would pass the upstream's own words on.
fn understood(route: &Route, bytes: &Bytes, limits: &json::Limits, all: bool) -> Result<Value, Error> {
    let parsed = if all {
        json::parse(bytes, limits)
    } else {
        json::parse_members(bytes, limits, &["error", "message", "model", "response", "usage"])
    };
    let document = parsed.map_err(|_| Error::UpstreamBroke("its answer is not strict JSON"))?;
    // Of what is no object the reading of members builds an empty one.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Error::UpstreamBroke("its answer is no object"));
    }
    // The responses API has the member in every answer, and in one that failed its text belongs to the answer.
    match document.get("error") {
        None | Some(Value::Null) => Ok(document),
        Some(_) if *route == Route::Responses => Ok(document),
        Some(_) => Err(Error::UpstreamBroke("it told an error as a success")),
    }
}

/// Has a guard hear an answer, without what it could not read; says whether there was such, and whether the answer was withheld.
fn guarded(route: &Route, document: &mut Value, guard: &mut Guard) -> (bool, bool) {
    // Of embeddings, nothing is said.
    if *route == Route::Embeddings {
        return (false, false);
    }
    let unread = guard.is_enforced() && said::take_out_unread(document);
    let withheld = guard.hear(document, SystemTime::now());
    if withheld {
        said::withhold(document);
    }
    (unread, withheld)
}

/// Whatever success the upstream told, the caller hears the one that its protocol knows.
const fn incoming_status() -> http::StatusCode {
    http::StatusCode::OK
}

fn path(route: &Route) -> &'static str {
    match route {
        Route::Completions => "/v1/completions",
        Route::Responses => "/v1/responses",
        Route::Embeddings => "/v1/embeddings",
        Route::Messages => "/v1/messages",
        _ => "/v1/chat/completions",
    }
}

fn headers(call: &Call, streams: bool) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(6);
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(ACCEPT, if streams { EVENTS } else { JSON });
    if call.route == Route::Messages {
        let version = call.headers.get("anthropic-version").cloned();
        headers.insert("anthropic-version", version.unwrap_or(HeaderValue::from_static("2023-06-01")));
        if let Some(beta) = call.headers.get("anthropic-beta") {
            headers.insert("anthropic-beta", beta.clone());
        }
    }
    headers
}

fn body(bytes: &Bytes, route: &Route, asked: &Asked, theirs: Option<&str>) -> Bytes {
    let mut edits = Vec::new();
    if let Some(theirs) = theirs {
        edits.push(("model", Edit::set_text(theirs)));
    }
    if asks_for_usage(route, asked) {
        edits.push(("stream_options", Edit::SetIn("include_usage", "true".to_owned())));
    }
    if edits.is_empty() { bytes.clone() } else { json::edit(bytes, &edits).unwrap_or_else(|| bytes.clone()) }
}

/// Whether the gateway asks for the `usage` chunk that the caller did not ask for, and takes it out again.
fn asks_for_usage(route: &Route, asked: &Asked) -> bool {
    asked.stream && matches!(route, Route::ChatCompletions | Route::Completions) && asked.include_usage != Some(true)
}

fn usage_of(route: &Route, document: &Value) -> Option<Usage> {
    let told = if *route == Route::Messages { anthropic::usage(document) } else { openai::usage(document) }?;
    Some(Usage { input: told.input.min(MOST_TOKENS), output: told.output.min(MOST_TOKENS) })
}

fn decimals(call: &Call, shape: &shape::Config) -> Option<u8> {
    [shape.decimals, call.care.decimals].into_iter().flatten().min()
}

/// The name stands at the top, in a responses event's `response`, or in a messages event's `message`.
fn rename_in(document: &mut Value, name: &str) -> bool {
    let mut renamed = false;
    for pointer in ["/model", "/response/model", "/message/model"] {
        if let Some(model) = document.pointer_mut(pointer).filter(|model| **model != *name) {
            *model = name.into();
            renamed = true;
        }
    }
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_that_is_no_answer_of_the_protocol_is_refused() {
        let read = |route, text: &'static str| {
            let [some, all] =
                [false, true].map(|all| understood(&route, &Bytes::from_static(text.as_bytes()), &json::Limits::default(), all).is_ok());
            assert_eq!(some, all, "{text}");
            some
        };
        assert!(read(Route::ChatCompletions, r#"{"choices":[]}"#));
        assert!(read(Route::ChatCompletions, r#"{"choices":[],"error":null}"#));
        assert!(read(Route::Responses, r#"{"status":"failed","error":{"message":"no"}}"#));
        assert!(!read(Route::ChatCompletions, r#"{"error":{"message":"bad key sk-1"}}"#));
        assert!(!read(Route::Messages, "[1,2]"));
        assert!(!read(Route::Embeddings, "7"));
    }
}
