//! Model servers of no known protocol, at a path that the operator declared: JSON in, JSON out.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::memory::Memory;
use super::passing::{self, Read};
use super::upstream::{Outgoing, Upstream};
use super::{Answer, Call, Error, Held, reply, shape, whole};
use crate::authorize::Route;
use crate::trail::{TRACEPARENT, Trail};
use crate::wire::json;

pub(super) async fn from_upstream(
    mut call: Box<Call>,
    upstream: &Arc<Upstream>,
    shape: &shape::Config,
    memory: &Memory,
    trail: &mut Trail,
) -> Result<Answer, Error> {
    let Route::Raw { path, .. } = &call.route else { return Err(Error::Unavailable("the route declares no path")) };
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.extend(trail.trace.parent_of_call().map(|parent| (TRACEPARENT, parent)));
    let outgoing = Outgoing {
        method: Method::POST,
        path_and_query: http::uri::PathAndQuery::from_maybe_shared(Bytes::from(path.to_string()))
            .map_err(|_| Error::Unavailable("the declared path is no path"))?,
        headers,
        body: call.bytes.clone(),
    };
    call.hold.began();
    let incoming = upstream.send(outgoing, call.deadline).await?;
    if !incoming.status.is_success() {
        return Err(reply::refused(incoming, call.deadline, upstream.unsaid(None)).await);
    }
    reply::uncoded(&incoming.headers)?;
    let (incoming, mut call) = match passing::if_larger(incoming, call, shape, "application/json").await? {
        Read::Small(incoming, call) => (incoming, call),
        Read::Large(answer) => return Ok(*answer),
    };
    let framed = incoming.framed;
    let (bytes, share) = reply::whole(incoming, shape.max_body(), memory, call.deadline).await?;
    let document = json::parse(&bytes, &json::Limits::for_body(shape.max_body()))
        .map_err(|_| Error::UpstreamBroke("its answer is not strict JSON"))?;
    // An object or a list shows where it ends; of a number whose end is not marked, nobody knows whether it is whole.
    if !(framed || document.is_object() || document.is_array()) {
        return Err(Error::UpstreamBroke("the end of its answer is not marked"));
    }
    call.hold.delivered(bytes.len() as u64);
    trail.usage = Some(call.hold.settle_by_bytes());
    Ok(whole(StatusCode::OK, "application/json", bytes, Held { _budget: Some(call.hold), _memory: Some(share) }))
}
