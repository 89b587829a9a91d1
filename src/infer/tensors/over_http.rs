//! From a model server that speaks the Open Inference Protocol over HTTP.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde_json::Value;

use super::{JSON, NOT_THE_PROTOCOL, OCTETS, asks, encoded, shaped};
use crate::authorize::OipAsks;
use crate::check::Request;
use crate::heavy;
use crate::infer::memory::Memory;
use crate::infer::passing::{self, Read};
use crate::infer::upstream::{Outgoing, Upstream};
use crate::infer::{Answer, Call, Error, Held, reply, shape, whole};
use crate::trail::{Assurance, TRACEPARENT, Trail};
use crate::wire::json::{self, Edit};
use crate::wire::oip::{self, HEADER_LENGTH, InferResponse};

/// Its metadata, whether it is ready, or what it says to the tensors.
pub(in crate::infer) async fn from_upstream(
    mut call: Box<Call>,
    upstream: &Arc<Upstream>,
    shape: &shape::Config,
    memory: &Memory,
    trail: &mut Trail,
) -> Result<Answer, Error> {
    debug_assert!(trail.which.as_ref().is_none_or(|which| which.assurance == Assurance::UpstreamAsserted));
    let asks = asks(&call.route);
    let theirs = upstream.model().cloned().unwrap_or_else(|| call.name.clone());
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    headers.extend(trail.trace.parent_of_call().map(|parent| (TRACEPARENT, parent)));
    let (method, tail) = match asks {
        OipAsks::Infer => {
            let header_length = call.headers.get(HEADER_LENGTH);
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(if header_length.is_some() { OCTETS } else { JSON }));
            headers.extend(header_length.map(|length| (http::HeaderName::from_static(HEADER_LENGTH), length.clone())));
            (Method::POST, "/infer")
        }
        OipAsks::ModelReady => (Method::GET, "/ready"),
        _ => (Method::GET, ""),
    };
    // Which of ours the caller named has led to this upstream, and means nothing there.
    let version = upstream.version().map(|version| format!("/versions/{version}")).unwrap_or_default();
    let path = format!("/v2/models/{theirs}{version}{tail}").try_into();
    let path_and_query = path.map_err(|_| Error::UpstreamBroke("the model's name there cannot stand in a path"))?;
    call.hold.began();
    let incoming = upstream.send(Outgoing { method, path_and_query, headers, body: call.bytes.clone() }, call.deadline).await?;
    if !incoming.status.is_success() {
        return Err(reply::refused(incoming, call.deadline, upstream.unsaid(Some((&theirs, &call.name)))).await);
    }
    reply::uncoded(&incoming.headers)?;
    let header_length = match incoming.headers.get(HEADER_LENGTH) {
        Some(value) => Some(oip::header_length(value).ok_or(Error::UpstreamBroke("its header length is no number"))?),
        None => None,
    };
    let media_type = if header_length.is_some() { OCTETS } else { JSON };
    let (incoming, mut call) = match passing::if_larger(incoming, call, shape, media_type).await? {
        Read::Small(incoming, call) => (incoming, call),
        Read::Large(mut answer) => {
            answer.headers.extend(header_length.map(|length| (http::HeaderName::from_static(HEADER_LENGTH), HeaderValue::from(length))));
            return Ok(*answer);
        }
    };
    let (bytes, share) = reply::whole(incoming, shape.max_body(), memory, call.deadline).await?;
    call.hold.delivered(bytes.len() as u64);
    let held = |call: Box<Call>| Held { _budget: Some(call.hold), _memory: Some(share) };
    if asks != OipAsks::Infer {
        let told = told_of(bytes, asks, &call, shape)?;
        return Ok(whole(StatusCode::OK, JSON, told, held(call)));
    }
    let Request::Tensors(request) = std::mem::replace(&mut call.request, Request::Nothing) else {
        return Err(Error::Unavailable("the route carries no tensors"));
    };
    let mut response = heavy::work(bytes.len(), || understood(&bytes, header_length, shape)).await?;
    if shape.leaves_tensors_alone(call.care) {
        let length = bytes.len();
        let (bytes, header_length) = heavy::work(length, || named_ours(bytes, header_length, &response, &call)).await?;
        shaped(&mut response, &request, shape, &mut call, trail).await;
        let mut answer = whole(StatusCode::OK, if header_length.is_some() { OCTETS } else { JSON }, bytes, held(call));
        if let Some(length) = header_length {
            answer.headers.insert(HEADER_LENGTH, HeaderValue::from(length));
        }
        return Ok(answer);
    }
    shaped(&mut response, &request, shape, &mut call, trail).await;
    (response.model_name, response.model_version) = (call.name.to_string(), call.version.to_string());
    let held = held(call);
    heavy::work(bytes.len(), || encoded(&response, &request, held)).await
}

/// Whatever an upstream answers must be the protocol, whether or not it is shaped.
fn understood(bytes: &Bytes, header_length: Option<usize>, shape: &shape::Config) -> Result<InferResponse, Error> {
    let limits = json::Limits::for_body(shape.max_body());
    match header_length {
        Some(length) => InferResponse::from_binary(length, bytes, &limits).map_err(|_| NOT_THE_PROTOCOL),
        None => {
            let document = json::parse(bytes, &limits).map_err(|_| NOT_THE_PROTOCOL)?;
            InferResponse::from_json(&document).map_err(|_| NOT_THE_PROTOCOL)
        }
    }
}

/// The bytes of `response` with our name and version of the model in place of the upstream's; every other byte stays.
fn named_ours(bytes: Bytes, header_length: Option<usize>, response: &InferResponse, call: &Call) -> Result<(Bytes, Option<usize>), Error> {
    if response.model_name == *call.name && response.model_version == *call.version {
        return Ok((bytes, header_length));
    }
    let version = if call.version.is_empty() { Edit::replace_text("") } else { Edit::set_text(&call.version) };
    let edits = [("model_name", Edit::replace_text(&call.name)), ("model_version", version)];
    let mut tail = bytes;
    let head = tail.split_to(header_length.unwrap_or(tail.len()));
    let head = json::edit(&head, &edits).ok_or(NOT_THE_PROTOCOL)?;
    Ok(match header_length {
        None => (head, None),
        Some(_) => (Bytes::from([&head[..], &tail[..]].concat()), Some(head.len())),
    })
}

/// An upstream's metadata under our name and our versions of the model, since a caller names ours; servers that answer readiness with
/// nothing are given words.
fn told_of(bytes: Bytes, asks: OipAsks, call: &Call, shape: &shape::Config) -> Result<Bytes, Error> {
    if asks == OipAsks::ModelReady {
        return Ok(oip::model_ready(&call.name, true));
    }
    let document =
        json::parse(&bytes, &json::Limits::for_body(shape.max_body())).map_err(|_| Error::UpstreamBroke("its metadata is not JSON"))?;
    if document.get("name").is_none_or(|name| !matches!(name, Value::String(_))) {
        return Err(Error::UpstreamBroke("its metadata names no model"));
    }
    let versions = Value::from_iter(call.versions.iter().map(|version| &**version)).to_string();
    let edits = [("name", Edit::replace_text(&call.name)), ("versions", Edit::Set(versions))];
    Ok(json::edit(&bytes, &edits).unwrap_or(bytes))
}
