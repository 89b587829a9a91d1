//! The reply to a gRPC call: one message, and behind it how the call ended.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};

use super::{MEANT, Unsaid, told};
use crate::infer::Error;
use crate::infer::memory::{Memory, Share};
use crate::infer::upstream::Incoming;
use crate::wire::grpc::{self, Code, Malformed};
use crate::wire::read;

/// The length of a message's frame.
const FRAME: usize = 5;

/// Reads the one message of at most `most` bytes of a call that went well, out of the memory that all answers share. `name` is what the
/// upstream calls the model, and what stands for it in its words.
///
/// # Errors
/// Whatever the call's status says, [`Error::TooLarge`] past `most`, [`Error::Unavailable`] without memory, [`Error::Deadline`], or
/// that it is no such reply.
pub(in crate::infer) async fn message(
    incoming: Incoming,
    most: usize,
    memory: &Memory,
    deadline: Instant,
    unsaid: Unsaid<'_>,
) -> Result<(Bytes, Share), Error> {
    if incoming.status != StatusCode::OK {
        // Who answers a call with another status is no gRPC server, but one before it, and what it says is not about the tensors.
        return Err(match super::refused(incoming, deadline, unsaid).await {
            Error::UpstreamRefused(status, _) if status != StatusCode::PAYLOAD_TOO_LARGE => {
                Error::UpstreamBroke("it answered a call with an HTTP status")
            }
            error => error,
        });
    }
    let Incoming { headers, mut body, .. } = incoming;
    let speaks = |kind: &str| kind == "application/grpc" || kind.starts_with("application/grpc+") || kind.starts_with("application/grpc;");
    if !headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).is_some_and(speaks) {
        return Err(Error::UpstreamBroke("its answer is not gRPC"));
    }
    super::uncoded(&headers)?;
    if headers.get("grpc-encoding").is_some_and(|coding| coding != "identity") {
        return Err(CODED);
    }
    let mut share = memory.share()?;
    let cap = most.saturating_add(FRAME);
    let read = read::whole_with_trailers(&mut body, cap, deadline, |bytes| share.grow_to(bytes).is_ok()).await;
    let (bytes, trailers) = read.map_err(super::unread)?;
    match Code::of_call(&headers, trailers.as_ref()) {
        Some((Code::Ok, _)) => {}
        Some((code, said)) => return Err(refused(code, said, unsaid)),
        None => return Err(Error::UpstreamBroke("its answer ended without a status")),
    }
    let message = grpc::unframe(&bytes, most).map_err(|malformed| match malformed {
        Malformed::Compressed => CODED,
        Malformed::TooLong => Error::TooLarge,
        _ => Error::UpstreamBroke("its answer is not one message"),
    })?;
    Ok((message, share))
}

const CODED: Error = Error::UpstreamBroke("it sent a coded answer");

/// What to make of a status: the same as of the HTTP status that says it.
fn refused(code: Code, headers: &HeaderMap, unsaid: Unsaid<'_>) -> Error {
    let words = grpc::told(headers);
    let caller_is_at_fault = |status| Error::UpstreamRefused(status, words.as_deref().map(|words| told(words, unsaid)));
    match code {
        Code::InvalidArgument | Code::OutOfRange => caller_is_at_fault(StatusCode::BAD_REQUEST),
        // What MLServer says where it says 422 over HTTP.
        Code::FailedPrecondition => caller_is_at_fault(StatusCode::UNPROCESSABLE_ENTITY),
        Code::ResourceExhausted if words.as_deref().is_some_and(is_of_length) => caller_is_at_fault(StatusCode::PAYLOAD_TOO_LARGE),
        Code::ResourceExhausted | Code::Unavailable => Error::UpstreamOverloaded(grpc::again(headers).and_then(seconds)),
        Code::DeadlineExceeded => Error::Deadline,
        Code::Unauthenticated | Code::PermissionDenied => Error::UpstreamBroke("it refuses the gateway's credential"),
        Code::NotFound | Code::Unimplemented => Error::UpstreamBroke("it does not know the model or the path"),
        Code::Cancelled => Error::UpstreamBroke("it gave the call up"),
        Code::Ok | Code::Unknown | Code::AlreadyExists | Code::Aborted | Code::Internal | Code::DataLoss => {
            Error::UpstreamBroke("it failed")
        }
    }
}

/// Whether it is a message's length that is too much, for which gRPC has no status of its own: so say it the libraries in C++, Go and Java.
fn is_of_length(words: &str) -> bool {
    words.contains("larger than max") || words.contains("exceeds maximum size")
}

/// Whole seconds, no fewer than are waited, as far as the upstream means anything by it.
fn seconds(wait: Duration) -> Option<u64> {
    let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
    MEANT.contains(&seconds).then_some(seconds)
}

#[cfg(test)]
mod tests;
