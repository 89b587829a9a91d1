//! What is held against requests as text: their media type, their coding, the tokens they ask for, their unknown members.

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use serde_json::{Map, Value};

use super::Error;
use crate::wire::{Shape, oip};

/// What a route takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    /// `application/json`, which must be said.
    Json,
    /// `application/json` or nothing said, as Triton's clients do.
    Tensors,
    /// `application/octet-stream`, `application/json`, a vendor's type, or nothing said: JSON and tensors after it.
    BinaryTensors,
    /// `application/grpc`, with or without `+proto`.
    Grpc,
}

/// Refuses a body that is coded or of another media type than the route takes.
pub(super) fn media_type(headers: &HeaderMap, takes: Takes) -> Result<(), Error> {
    let mut codings = headers.get_all(CONTENT_ENCODING).iter();
    if codings.any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Error::CallerSentCoded);
    }
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let fits = match (types.next(), types.next()) {
        (None, _) => matches!(takes, Takes::Tensors | Takes::BinaryTensors),
        (Some(_), Some(_)) => false,
        (Some(only), None) => only.to_str().is_ok_and(|text| takes.fits(text)),
    };
    if fits { Ok(()) } else { Err(Error::CallerSentMediaType) }
}

impl Takes {
    fn fits(self, text: &str) -> bool {
        let (kind, parameters) = text.split_once(';').map_or((text, None), |(kind, parameters)| (kind, Some(parameters)));
        let kind = kind.trim().to_ascii_lowercase();
        let json = kind == "application/json" && parameters.is_none_or(utf_8);
        match self {
            Self::Json | Self::Tensors => json,
            Self::BinaryTensors => json || kind == "application/octet-stream" || kind.starts_with("application/vnd."),
            Self::Grpc => kind == "application/grpc" || kind == "application/grpc+proto",
        }
    }
}

/// Whether a media type's parameters say no more than that it is UTF-8.
fn utf_8(parameters: &str) -> bool {
    let parameters = parameters.trim();
    let charset =
        |(name, value): (&str, &str)| name.eq_ignore_ascii_case("charset") && value.trim_matches('"').eq_ignore_ascii_case("utf-8");
    parameters.is_empty() || parameters.split_once('=').is_some_and(charset)
}

/// How many of the body's `length` bytes are JSON, where the binary tensor extension is used.
pub(super) fn header_length(headers: &HeaderMap, length: usize) -> Result<Option<usize>, Error> {
    let mut values = headers.get_all(oip::HEADER_LENGTH).iter();
    let (first, second) = (values.next(), values.next());
    let Some(value) = first else { return Ok(None) };
    let json = if second.is_none() { oip::header_length(value) } else { None };
    json.filter(|json| *json <= length).map(Some).ok_or(Error::CallerSentHeaderLength)
}

/// Refuses a request that asks for more tokens an answer than the cap.
pub(super) fn max_tokens(asked: Option<u64>, cap: Option<u64>) -> Result<(), Error> {
    match asked.zip(cap) {
        Some((asked, cap)) if asked > cap => Err(Error::CallerAskedForTooManyTokens(cap)),
        _ => Ok(()),
    }
}

/// Refuses members that the Open Inference Protocol does not know, of the request, its inputs and its outputs.
pub(super) fn only_known_members(document: &Value) -> Result<(), Shape> {
    let Value::Object(members) = document else { return Ok(()) };
    only(members, TENSORS)?;
    for (list, known) in [("inputs", TENSOR), ("outputs", OUTPUT)] {
        for (index, member) in members.get(list).and_then(Value::as_array).into_iter().flatten().enumerate() {
            if let Value::Object(members) = member {
                only(members, known).map_err(|shape| shape.under(&format!("/{list}/{index}")))?;
            }
        }
    }
    Ok(())
}

fn only(members: &Map<String, Value>, known: &[&str]) -> Result<(), Shape> {
    let unknown = members.keys().find(|member| !known.contains(&member.as_str()));
    unknown.map_or(Ok(()), |member| Err(Shape::at_member(member, "unknown", "the protocol has no such member")))
}

/// Fields of an inference request (Open Inference Protocol v2), of its inputs and of its outputs.
const TENSORS: &[&str] = &["id", "parameters", "inputs", "outputs"];
const TENSOR: &[&str] = &["name", "shape", "datatype", "parameters", "data"];
const OUTPUT: &[&str] = &["name", "parameters"];

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use serde_json::json;

    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_route_takes_its_media_type_and_no_other() {
        let takes = |text: &'static str, takes| media_type(&headers(&[("content-type", text)]), takes).is_ok();
        for text in ["application/json", "Application/JSON; charset=UTF-8", "application/json;charset=\"utf-8\"", "application/json;"] {
            assert!(takes(text, Takes::Json), "{text}");
        }
        for text in [
            "text/json",
            "application/json; charset=utf-16",
            "application/jsonx",
            "application/x-www-form-urlencoded",
            "application/json, text/html",
            "",
        ] {
            assert!(!takes(text, Takes::Json) && !takes(text, Takes::BinaryTensors), "{text}");
        }
        assert!(takes("application/octet-stream", Takes::BinaryTensors) && !takes("application/octet-stream", Takes::Tensors));
        assert!(
            takes("application/grpc", Takes::Grpc)
                && takes("application/grpc+proto", Takes::Grpc)
                && !takes("application/grpc+json", Takes::Grpc)
        );
        assert!(media_type(&headers(&[]), Takes::Tensors).is_ok());
        assert!(matches!(media_type(&headers(&[]), Takes::Json), Err(Error::CallerSentMediaType)));
        let mut twice = headers(&[("content-type", "application/json")]);
        twice.append(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        assert!(media_type(&twice, Takes::Json).is_err());
    }

    #[test]
    fn a_coded_body_is_refused() {
        let coded = |coding| media_type(&headers(&[("content-type", "application/json"), ("content-encoding", coding)]), Takes::Json);
        assert!(coded("identity").is_ok());
        assert!(matches!(coded("gzip"), Err(Error::CallerSentCoded)));
        assert!(matches!(coded("identity, gzip"), Err(Error::CallerSentCoded)));
    }

    #[test]
    fn the_length_of_the_json_is_plain_digits_within_the_body() {
        let length = |text: &'static str| header_length(&headers(&[("inference-header-content-length", text)]), 100);
        assert!(matches!(length("100"), Ok(Some(100))));
        assert!(matches!(length("0"), Ok(Some(0))));
        for text in ["101", "+1", "-1", "1.0", " ", "", "0x1", "1 ", "99999999999999999999999"] {
            assert!(matches!(length(text), Err(Error::CallerSentHeaderLength)), "{text:?}");
        }
        assert!(matches!(header_length(&HeaderMap::new(), 0), Ok(None)));
    }

    #[test]
    fn the_cap_on_tokens_may_be_asked_for_and_no_more() {
        assert!(max_tokens(Some(4_096), Some(4_096)).is_ok());
        assert!(matches!(max_tokens(Some(4_097), Some(4_096)), Err(Error::CallerAskedForTooManyTokens(4_096))));
        assert!(max_tokens(None, Some(1)).is_ok() && max_tokens(Some(u64::MAX), None).is_ok());
    }

    #[test]
    fn unknown_members_are_told_by_their_place() {
        let place = only_known_members(&json!({"inputs": [{"name": "a"}, {"n/m": 1}]})).unwrap_err();
        assert_eq!((place.pointer.as_str(), place.rule), ("/inputs/1/n~1m", "unknown"));
        assert!(only_known_members(&json!({"inputs": [{"name": "a", "data": []}], "outputs": [{"name": "b"}]})).is_ok());
        assert!(only_known_members(&json!({"input": []})).is_err());
    }
}
