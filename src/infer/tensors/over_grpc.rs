//! From a model server that speaks the Open Inference Protocol over gRPC, whatever form of it the caller speaks.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::StatusCode;
use http::uri::PathAndQuery;

use super::{JSON, NOT_THE_PROTOCOL, asks, encoded, framed, shaped};
use crate::authorize::{OipAsks, Route};
use crate::check::Request;
use crate::heavy;
use crate::infer::memory::Memory;
use crate::infer::upstream::{Outgoing, Upstream};
use crate::infer::{Answer, Call, Error, Held, reply, shape, whole};
use crate::trail::{Assurance, TRACEPARENT, Trail};
use crate::wire::grpc::{self as message, Malformed};
use crate::wire::oip::{self, InferRequest, InferResponse};

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
    let over_grpc = matches!(call.route, Route::Grpc(_));
    let theirs = upstream.model().cloned().unwrap_or_else(|| call.name.clone());
    let (name, version) = (theirs.to_string(), upstream.version().map(ToString::to_string).unwrap_or_default());
    let request = match std::mem::replace(&mut call.request, Request::Nothing) {
        Request::Tensors(request) => request,
        _ => InferRequest::default(),
    };
    let (method, framed_call) = match asks {
        OipAsks::Infer => (INFER, heavy::work(call.bytes.len(), || asked(&call, &request, name, version)).await?),
        OipAsks::ModelReady => (READY, message::frame(&message::ModelReadyRequest { name, version }).map_err(unsayable)?),
        _ => (METADATA, message::frame(&message::ModelMetadataRequest { name, version }).map_err(unsayable)?),
    };
    let within = call.deadline.saturating_duration_since(Instant::now());
    let mut outgoing = Outgoing::of_call(PathAndQuery::from_static(method), framed_call, within);
    outgoing.headers.extend(trail.trace.parent_of_call().map(|parent| (TRACEPARENT, parent)));
    call.hold.began();
    let incoming = upstream.send(outgoing, call.deadline).await?;
    let unsaid = upstream.unsaid(Some((&theirs, &call.name)));
    let (bytes, share) = reply::call::message(incoming, shape.max_body(), memory, call.deadline, unsaid).await?;
    call.hold.delivered(bytes.len() as u64);
    let held = |call: Box<Call>| Held { _budget: Some(call.hold), _memory: Some(share) };
    match asks {
        OipAsks::Infer => {}
        OipAsks::ModelReady => {
            let told: message::ModelReadyResponse = message::decode(bytes).map_err(|_| NOT_THE_PROTOCOL)?;
            return match (over_grpc, told.ready) {
                (true, ready) => framed(&message::ModelReadyResponse { ready }, held(call)),
                (false, true) => Ok(whole(StatusCode::OK, JSON, oip::model_ready(&call.name, true), held(call))),
                (false, false) => Err(Error::Unavailable("the model is not ready there")),
            };
        }
        _ => {
            let told = message::decode_metadata(bytes).map_err(|_| NOT_THE_PROTOCOL)?;
            if told.name.is_empty() {
                return Err(Error::UpstreamBroke("its metadata names no model"));
            }
            // Ours, as a caller names ours.
            let versions = call.versions.iter().map(ToString::to_string).collect();
            let told = message::ModelMetadataResponse { name: call.name.to_string(), versions, ..told };
            return if over_grpc { framed(&told, held(call)) } else { Ok(whole(StatusCode::OK, JSON, told.to_json(), held(call))) };
        }
    }
    let length = bytes.len();
    let (mut theirs, mut response) = heavy::work(length, || understood(bytes)).await?;
    shaped(&mut response, &request, shape, &mut call, trail).await;
    (response.model_name, response.model_version) = (call.name.to_string(), call.version.to_string());
    let untouched = shape.leaves_tensors_alone(call.care);
    let held = held(call);
    let encode = || match (over_grpc, untouched) {
        // With the parameters and in the form in which the server wrote it.
        (true, true) => {
            (theirs.model_name, theirs.model_version) = (response.model_name, response.model_version);
            framed(&theirs, held)
        }
        (true, false) => framed(&message::ModelInferResponse::from(&response), held),
        (false, _) => encoded(&response, &request, held),
    };
    heavy::work(length, encode).await
}

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const READY: &str = "/inference.GRPCInferenceService/ModelReady";
const METADATA: &str = "/inference.GRPCInferenceService/ModelMetadata";

/// The call that asks what was checked: of a gRPC caller its own message, with the names that the upstream knows; of any other one that
/// says the same.
fn asked(call: &Call, request: &InferRequest, name: String, version: String) -> Result<Bytes, Error> {
    let mut asked = match call.route {
        Route::Grpc(_) => message::unframe(&call.bytes, call.bytes.len()).and_then(message::decode_request).map_err(unsayable)?,
        _ => message::ModelInferRequest::from(request),
    };
    (asked.model_name, asked.model_version) = (name, version);
    message::frame(&asked).map_err(unsayable)
}

/// What was read once is read again; past 4 GiB nobody gets.
fn unsayable(_: Malformed) -> Error {
    Error::Unavailable("the request cannot be said over gRPC")
}

/// Whatever an upstream answers must be the protocol, whether or not it is shaped.
fn understood(bytes: Bytes) -> Result<(message::ModelInferResponse, InferResponse), Error> {
    let theirs = message::decode_answer(bytes).map_err(|_| NOT_THE_PROTOCOL)?;
    let response = theirs.to_response().map_err(|_| NOT_THE_PROTOCOL)?;
    if response.model_name.is_empty() { Err(NOT_THE_PROTOCOL) } else { Ok((theirs, response)) }
}
