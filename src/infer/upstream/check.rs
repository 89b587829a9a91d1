//! Whether a replica says that it is well.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method};

use super::replica::{Failed, Replica, Then, Turn};
use super::{Error, Incoming, Outgoing};
use crate::wire::grpc::{self, Code, ServerReadyRequest, ServerReadyResponse};
use crate::wire::read;

/// The longest a health check waits, however rare the checks are.
const CHECK_WITHIN: Duration = Duration::from_secs(5);
/// How much of a health check's answer is read.
const CHECK_MAX_BODY: usize = 64 << 10;

/// One health check: well is whoever answers with 2xx, and over gRPC says that it is ready, before the next is due.
pub(super) async fn check(replica: &Arc<Replica>, path: &PathAndQuery, every: Duration) {
    let within = every.min(CHECK_WITHIN);
    let request = match replica.settings.grpc {
        true => Outgoing::of_call(path.clone(), grpc::frame(&ServerReadyRequest {}).unwrap_or_default(), within),
        false => Outgoing { method: Method::GET, path_and_query: path.clone(), headers: HeaderMap::new(), body: Bytes::new() },
    };
    let deadline = Instant::now() + within;
    let well = match Turn::of_check(replica).send(request, deadline).await {
        Ok(answer) => is_well(answer, replica.settings.grpc, deadline).await,
        Err(Failed::Unsent { then: Then::RatherElsewhere, .. }) => false,
        // A connection that was stale says nothing, and neither does a replica that has all the requests it may have.
        Err(Failed::Unsent { then: Then::Anew, .. } | Failed::Unsent { error: Error::Full, .. }) => return,
        Err(_) => false,
    };
    replica.checked(well);
}

async fn is_well(answer: Incoming, grpc: bool, deadline: Instant) -> bool {
    let Incoming { status, headers, mut body, .. } = answer;
    // Read to its end, so that the connection can be used again.
    let read = read::whole_with_trailers(&mut body, CHECK_MAX_BODY, deadline, |_| true).await;
    if !grpc {
        return status.is_success();
    }
    let Ok((bytes, trailers)) = read else { return false };
    let ready = || grpc::decode::<ServerReadyResponse>(grpc::unframe(&bytes, CHECK_MAX_BODY).ok()?).ok();
    let went_well = matches!(Code::of_call(&headers, trailers.as_ref()), Some((Code::Ok, _)));
    status.is_success() && went_well && ready().is_some_and(|told| told.ready)
}
