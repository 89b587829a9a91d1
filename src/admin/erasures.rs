//! `POST /v1/erasures`: the one thing that an operator does here.
//!
//! The body is `{"caller": C, "tenant": T}` (a missing tenant is none), `{"epoch": YYYYMM}` or `{"strangers": YYYYMM}`, the answer JSON.
//! On loopback there is no credential, so that a page in a browser on this machine must not be able to ask: beyond the guard of the
//! `Host`, a request that names an `Origin` is refused, and one without `content-type: application/json` and `portcullis-admin: 1`, which
//! no form can send, and no script to another origin without a preflight that is never answered.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde::Deserialize;
use serde_json::json;

use crate::accept::Peer;
use crate::prove::{EraseError, Erased, Erasure};
use crate::wire::{Body, read};

/// The path.
pub const PATH: &str = "/v1/erasures";
/// The header that no form can send; its value is `1`.
pub const HEADER: &str = "portcullis-admin";
/// The longest body in bytes.
pub const MAX_BODY: usize = 4 << 10;
/// Months are told as YYYYMM, from this year on.
const FIRST_YEAR: u32 = 1970;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    tenant: Option<String>,
    caller: Option<String>,
    epoch: Option<u32>,
    strangers: Option<u32>,
}

/// Whether this is a month as YYYYMM.
#[must_use]
pub const fn is_month(month: u32) -> bool {
    matches!(month % 100, 1..=12) && month / 100 >= FIRST_YEAR && month / 100 <= 9999
}

/// Judges the request and has `erase` do it.
pub(super) async fn answer<F: Future<Output = Result<Erased, EraseError>>>(
    mut peer: Peer,
    erase: impl FnOnce(Erasure) -> F,
) -> Response<Body> {
    if let Err((status, why)) = may_ask(peer.headers()) {
        return refused(status, why);
    }
    let deadline = peer.deadline();
    let body = match read::whole(&mut peer.take_body(), MAX_BODY, deadline).await {
        Ok(body) => body,
        Err(read::Error::TheySentTooMuch) => return refused(StatusCode::PAYLOAD_TOO_LARGE, "the body may be 4 KiB long"),
        Err(_) => return refused(StatusCode::BAD_REQUEST, "the body did not come whole"),
    };
    let Some(erasure) = asked(&body) else {
        let why = "expected {\"caller\": C, \"tenant\": T}, {\"epoch\": YYYYMM} or {\"strangers\": YYYYMM}";
        return refused(StatusCode::BAD_REQUEST, why);
    };
    match erase(erasure).await {
        Ok(erased) => said(StatusCode::OK, erased.json().to_string()),
        Err(error) => refused(status(&error), &error.to_string()),
    }
}

fn may_ask(headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
    let is = |name: &str, wanted: &str| {
        let mut values = headers.get_all(name).iter();
        matches!((values.next(), values.next()), (Some(value), None) if value.as_bytes().eq_ignore_ascii_case(wanted.as_bytes()))
    };
    if headers.contains_key(header::ORIGIN) {
        return Err((StatusCode::FORBIDDEN, "a browser's page may not ask"));
    }
    if !is(HEADER, "1") {
        return Err((StatusCode::FORBIDDEN, "the header `portcullis-admin: 1` is missing"));
    }
    if !is("content-type", "application/json") {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body is `content-type: application/json`"));
    }
    Ok(())
}

/// What a body asks for; `None` where it is anything but one erasure.
fn asked(body: &[u8]) -> Option<Erasure> {
    let Asked { tenant, caller, epoch, strangers } = serde_json::from_slice(body).ok()?;
    match (tenant, caller, epoch, strangers) {
        (tenant, Some(caller), None, None) => Some(Erasure::Subject { tenant: tenant.unwrap_or_default(), caller }),
        (None, None, Some(month), None) => is_month(month).then_some(Erasure::Epoch(month)),
        (None, None, None, Some(month)) => is_month(month).then_some(Erasure::Strangers(month)),
        _ => None,
    }
}

const fn status(error: &EraseError) -> StatusCode {
    match error {
        EraseError::OperatorNamedUnknown | EraseError::OperatorTookAway(_) => StatusCode::NOT_FOUND,
        EraseError::OperatorNamedThisMonth(_) => StatusCode::CONFLICT,
        EraseError::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        EraseError::Disk(_) | EraseError::Unfinished(_) | EraseError::Untold => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn refused(status: StatusCode, why: &str) -> Response<Body> {
    said(status, json!({ "erased": false, "why": why }).to_string())
}

fn said(status: StatusCode, json: String) -> Response<Body> {
    let mut response = Response::new(Body::from(Bytes::from(json + "\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn what_a_page_in_a_browser_could_send_is_refused() {
        const JSON: (&str, &str) = ("content-type", "application/json");
        const OURS: (&str, &str) = (HEADER, "1");
        let ask = |pairs: &[(&'static str, &'static str)]| may_ask(&headers(pairs)).map_err(|(status, _)| status.as_u16());
        assert_eq!(ask(&[JSON, OURS]), Ok(()));
        // A form has no header of its own and no such type; a script has an origin, if only `null`.
        assert_eq!(ask(&[("content-type", "text/plain"), ("origin", "http://evil.example")]), Err(403));
        assert_eq!(ask(&[JSON]), Err(403));
        assert_eq!(ask(&[OURS]), Err(415));
        for origin in ["null", "http://localhost:9443", ""] {
            assert_eq!(ask(&[JSON, OURS, ("origin", origin)]), Err(403), "{origin}");
        }
        for kind in
            ["text/plain", "application/json;x", "application/x-www-form-urlencoded", "multipart/form-data", "text/plain, application/json"]
        {
            assert_eq!(ask(&[("content-type", kind), OURS]), Err(415), "{kind}");
        }
        assert_eq!(ask(&[JSON, JSON, OURS]), Err(415));
        assert_eq!(ask(&[JSON, (HEADER, "0")]), Err(403));
        assert_eq!(ask(&[JSON, OURS, OURS]), Err(403));
    }

    #[test]
    fn a_body_asks_for_one_thing_and_nothing_else() {
        let subject = |tenant: &str| Some(Erasure::Subject { tenant: tenant.into(), caller: "api_key:a".into() });
        assert_eq!(asked(br#"{"caller": "api_key:a", "tenant": "acme"}"#), subject("acme"));
        assert_eq!(asked(br#"{"caller": "api_key:a"}"#), subject(""));
        assert_eq!(asked(br#"{"epoch": 202612}"#), Some(Erasure::Epoch(202_612)));
        assert_eq!(asked(br#"{"strangers": 202601}"#), Some(Erasure::Strangers(202_601)));
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"tenant": "acme"}"#,
            r#"{"epoch": 202600}"#,
            r#"{"epoch": 202613}"#,
            r#"{"epoch": 196912}"#,
            r#"{"epoch": 1000001}"#,
            r#"{"epoch": -1}"#,
            r#"{"epoch": "202611"}"#,
            r#"{"epoch": 202611, "strangers": 202611}"#,
            r#"{"epoch": 202611, "tenant": "acme"}"#,
            r#"{"caller": "a", "epoch": 202611}"#,
            r#"{"caller": "a", "caller": "b"}"#,
            r#"{"caller": "a", "who": "b"}"#,
            r#"{"caller": "a"} x"#,
        ] {
            assert_eq!(asked(bad.as_bytes()), None, "{bad}");
        }
    }
}
