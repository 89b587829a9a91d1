//! What an upstream's reply must be before anything of it is passed on.

pub(super) mod call;

use std::ops::RangeInclusive;
use std::time::Instant;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use serde_json::Value;

use super::Error;
use super::memory::{Memory, Share};
use super::upstream::Incoming;
use crate::wire::read;

/// The most of an upstream's error that is read.
const ERROR_MAX: usize = 64 << 10;

/// The most of an upstream's own words that a caller is told, in characters.
const WORDS_MAX: usize = 400;

/// How long an upstream may have a caller wait, in seconds.
const MEANT: RangeInclusive<u64> = 1..=3600;

/// Reads a whole answer of at most `most` bytes, out of the memory that all answers share.
///
/// # Errors
/// [`Error::TooLarge`] past `most`, [`Error::Unavailable`] without memory, [`Error::Deadline`], or a broken body.
pub(super) async fn whole(incoming: Incoming, most: usize, memory: &Memory, deadline: Instant) -> Result<(Bytes, Share), Error> {
    let mut share = memory.share()?;
    let announced = incoming.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > most) {
        return Err(Error::TooLarge);
    }
    let mut body = incoming.body;
    let read = read::whole_with_room(&mut body, most, deadline, |bytes| share.grow_to(bytes).is_ok()).await;
    Ok((read.map_err(unread)?, share))
}

fn unread(error: read::Error) -> Error {
    match error {
        read::Error::TheySentTooMuch => Error::TooLarge,
        read::Error::TheySentTooSlowly => Error::Deadline,
        read::Error::TheyBrokeOff => Error::UpstreamBroke("its answer broke off"),
        read::Error::NoRoom => Error::Unavailable("the memory for answers is full"),
    }
}

/// Upstreams are asked for `identity`; a coded answer could not be checked, and is not passed on.
///
/// # Errors
/// The answer is coded.
pub(super) fn uncoded(headers: &HeaderMap) -> Result<(), Error> {
    match headers.get(CONTENT_ENCODING) {
        None => Ok(()),
        Some(coding) if coding.as_bytes().eq_ignore_ascii_case(b"identity") => Ok(()),
        Some(_) => Err(Error::UpstreamBroke("it sent a coded answer")),
    }
}

/// What an upstream's words may say and callers are not to read.
#[derive(Clone, Copy, Default)]
pub(super) struct Unsaid<'a> {
    /// What the upstream calls the model, and what stands for it; the caller knows only the second.
    pub(super) name: Option<(&'a str, &'a str)>,
    /// The credential that the gateway has there.
    pub(super) credential: Option<&'a str>,
}

/// What to make of a reply that is not a success.
///
/// Where the upstream says that the request itself is at fault, the caller needs its words to mend it; those are
/// shortened and stripped of control characters and of what is to stay unsaid. Everything else is between the gateway and the upstream.
pub(super) async fn refused(mut incoming: Incoming, deadline: Instant, unsaid: Unsaid<'_>) -> Error {
    match incoming.status {
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => {
            let words = match read::whole(&mut incoming.body, ERROR_MAX, deadline).await {
                Ok(bytes) => words(&bytes, unsaid),
                Err(_) => None,
            };
            Error::UpstreamRefused(incoming.status, words)
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Error::UpstreamOverloaded(again(&incoming.headers)),
        // What Anthropic says for it.
        status if status.as_u16() == 529 => Error::UpstreamOverloaded(again(&incoming.headers)),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::UpstreamBroke("it refuses the gateway's credential"),
        StatusCode::NOT_FOUND => Error::UpstreamBroke("it does not know the model or the path"),
        status if status.is_redirection() => Error::UpstreamBroke("it redirects, which is not followed"),
        status if status.is_server_error() => Error::UpstreamBroke("it failed"),
        _ => Error::UpstreamBroke("it answered with a status that means nothing here"),
    }
}

/// In how many seconds an upstream wants to be asked again, as far as it says that in seconds and means anything by it.
fn again(headers: &HeaderMap) -> Option<u64> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().filter(|seconds| MEANT.contains(seconds))
}

fn words(bytes: &[u8], unsaid: Unsaid<'_>) -> Option<String> {
    let document: Value = serde_json::from_slice(bytes).ok()?;
    let text = ["/error/message", "/error", "/message", "/detail"].iter().find_map(|at| document.pointer(at)?.as_str());
    let text = text.map(str::to_owned).or_else(|| Some(details(document.get("detail")?.as_array()?)).filter(|text| !text.is_empty()))?;
    Some(told(&text, unsaid))
}

/// What FastAPI, and MLServer with it, says of a body that is not what it takes: for each place what is wrong there.
fn details(all: &[Value]) -> String {
    let place = |step: &Value| step.as_str().map(str::to_owned).or_else(|| step.as_u64().map(|at| at.to_string()));
    let one = |detail: &Value| {
        let places: Vec<String> = detail.get("loc").and_then(Value::as_array).into_iter().flatten().filter_map(place).collect();
        let wrong = detail.get("msg")?.as_str()?;
        Some(if places.is_empty() { wrong.to_owned() } else { format!("{}: {wrong}", places.join(".")) })
    };
    all.iter().filter_map(one).collect::<Vec<_>>().join("; ")
}

/// What a caller is told of an upstream's words.
fn told(text: &str, Unsaid { name, credential }: Unsaid<'_>) -> String {
    let text = credential.map_or_else(|| text.to_owned(), |credential| text.replace(credential, "[credential]"));
    let text = match name {
        Some((theirs, ours)) => text.replace(theirs, ours),
        None => text,
    };
    text.chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstreams_words_are_found_and_shortened() {
        let words = |bytes: &[u8]| words(bytes, Unsaid::default());
        assert_eq!(words(br#"{"error":{"message":"too\u0007 long"}}"#).unwrap(), "too long");
        assert_eq!(words(br#"{"error":"bad shape"}"#).unwrap(), "bad shape");
        let of_fastapi = br#"{"detail":[{"type":"missing","loc":["body","inputs",0,"shape"],"msg":"Field required","input":{"secret":1}},{"msg":"odd"}]}"#;
        assert_eq!(words(of_fastapi).unwrap(), "body.inputs.0.shape: Field required; odd");
        assert_eq!(words(br#"{"detail":[{"loc":1}]}"#), None);
        assert_eq!(words(b"<html>"), None);
        let long = format!(r#"{{"message":"{}"}}"#, "x".repeat(5_000));
        assert_eq!(words(long.as_bytes()).unwrap().len(), WORDS_MAX);
    }

    #[test]
    fn an_upstreams_words_do_not_tell_what_it_calls_the_model() {
        let unsaid = Unsaid { name: Some(("acme/secret-7b", "chat")), credential: Some("sk-1234") };
        let told = words(br#"{"error":"`acme/secret-7b` takes 4096 tokens"}"#, unsaid);
        assert_eq!(told.unwrap(), "`chat` takes 4096 tokens");
        let told = words(br#"{"error":"sk-1234 may not: acme/secret-7b (Bearer sk-1234)"}"#, unsaid);
        assert_eq!(told.unwrap(), "[credential] may not: chat (Bearer [credential])");
        let long = format!(r#"{{"error":"{}sk-1234"}}"#, "x".repeat(WORDS_MAX - 3));
        assert!(!words(long.as_bytes(), unsaid).unwrap().contains("sk-"), "nor the beginning of it");
    }

    #[test]
    fn an_upstream_says_in_how_many_seconds_it_may_be_asked_again() {
        let said = |text: &'static str| again(&HeaderMap::from_iter([(RETRY_AFTER, http::HeaderValue::from_static(text))]));
        assert_eq!((said("7"), said("1"), said("3600")), (Some(7), Some(1), Some(3600)));
        for text in ["0", "3601", "-1", "1.5", "soon", "Fri, 27 Nov 2026 05:00:00 GMT"] {
            assert_eq!(said(text), None, "{text}");
        }
        assert_eq!(again(&HeaderMap::new()), None);
    }

    #[test]
    fn a_coded_answer_is_not_passed_on() {
        let coded = |coding: &'static str| HeaderMap::from_iter([(CONTENT_ENCODING, http::HeaderValue::from_static(coding))]);
        assert!(uncoded(&HeaderMap::new()).is_ok());
        assert!(uncoded(&coded("identity")).is_ok());
        assert!(uncoded(&coded("gzip")).is_err());
    }
}
