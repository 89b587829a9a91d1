//! Which dialect a caller speaks, and how a refusal reads in it.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};

use super::grpc::SERVICE;

/// The dialects of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// `/v1`: `{"error":{"message","type","param","code"}}`.
    OpenAi,
    /// `/v1/messages`: `{"type":"error","error":{"type","message"}}`.
    Anthropic,
    /// `/v2`: `{"error":"…"}`.
    Oip,
    /// `grpc-status` and `grpc-message` (see [`super::grpc::trailers`]); there is no body.
    Grpc,
    /// Elsewhere: RFC 9457.
    Problem,
}

impl Dialect {
    /// The dialect of a request, by its path; who says that it speaks gRPC is answered in gRPC wherever it asks.
    #[must_use]
    pub fn of(path: &str, content_type: Option<&HeaderValue>) -> Self {
        let under = |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if path.starts_with(SERVICE) || content_type.is_some_and(is_grpc) {
            Self::Grpc
        } else if under("/v1/messages") {
            Self::Anthropic
        } else if under("/v1") {
            Self::OpenAi
        } else if under("/v2") {
            Self::Oip
        } else {
            Self::Problem
        }
    }

    /// The header in which its clients look for the id of a request; gRPC has none.
    #[must_use]
    pub fn request_id(self) -> Option<HeaderName> {
        match self {
            Self::Anthropic => Some(HeaderName::from_static("request-id")),
            Self::OpenAi | Self::Oip | Self::Problem => Some(HeaderName::from_static("x-request-id")),
            Self::Grpc => None,
        }
    }
}

/// `application/grpc`, alone or with a suffix of its own (`+proto`) or a parameter; not `application/grpc-web`.
#[must_use]
pub fn is_grpc(content_type: &HeaderValue) -> bool {
    const NAME: usize = "application/grpc".len();
    let bytes = content_type.as_bytes();
    bytes.get(..NAME).is_some_and(|name| name.eq_ignore_ascii_case(b"application/grpc"))
        && bytes.get(NAME).is_none_or(|next| matches!(next, b'+' | b';' | b' '))
}

/// The body of a refusal and its media type. The code and message are static texts of the program; the parameter is where the mistake stands (a JSON Pointer).
/// gRPC has no body: its media type alone comes back.
#[must_use]
pub fn error_body(dialect: Dialect, status: StatusCode, code: &'static str, message: &str, param: Option<&str>) -> (&'static str, Bytes) {
    const JSON: &str = "application/json";
    let (media_type, document) = match dialect {
        Dialect::OpenAi => (JSON, json!({ "error": { "message": message, "type": openai_type(status), "param": param, "code": code } })),
        Dialect::Anthropic => {
            (JSON, json!({ "type": "error", "error": { "type": anthropic_type(status), "message": placed(message, param) } }))
        }
        Dialect::Oip => (JSON, json!({ "error": placed(message, param) })),
        Dialect::Grpc => return ("application/grpc", Bytes::new()),
        Dialect::Problem => {
            let title = status.canonical_reason().unwrap_or("Error");
            let mut document = json!({ "type": "about:blank", "title": title, "status": status.as_u16(), "detail": message, "code": code });
            if let (Some(members), Some(param)) = (document.as_object_mut(), param) {
                members.insert("pointer".to_owned(), Value::from(param));
            }
            ("application/problem+json", document)
        }
    };
    (media_type, Bytes::from(document.to_string()))
}

/// For dialects that have no member for the place.
#[must_use]
pub fn placed(message: &str, param: Option<&str>) -> String {
    match param.filter(|param| !param.is_empty()) {
        Some(param) => format!("{param}: {message}"),
        None => message.to_owned(),
    }
}

/// The types of OpenAI's own errors; its client tells errors apart by status, people read the type.
fn openai_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    }
}

/// The types of Anthropic's own errors.
fn anthropic_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        _ => "api_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_tells_the_dialect_and_grpc_tells_itself() {
        let of = |path: &str, media_type: Option<&'static str>| Dialect::of(path, media_type.map(HeaderValue::from_static).as_ref());
        assert_eq!(of("/v1/chat/completions", Some("application/json")), Dialect::OpenAi);
        assert_eq!(of("/v1", None), Dialect::OpenAi);
        assert_eq!(of("/v1/messages", None), Dialect::Anthropic);
        assert_eq!(of("/v1/messages/count_tokens", None), Dialect::Anthropic);
        assert_eq!(of("/v1/messagesx", None), Dialect::OpenAi);
        assert_eq!(of("/v2/models/m/infer", Some("application/octet-stream")), Dialect::Oip);
        assert_eq!(of("/v20", None), Dialect::Problem);
        assert_eq!(of("/predict", None), Dialect::Problem);
        assert_eq!(of("/inference.GRPCInferenceService/ModelInfer", None), Dialect::Grpc);
        assert_eq!(of("/other.Service/Call", Some("application/grpc+proto")), Dialect::Grpc);
        assert_eq!(of("/v1/models", Some("Application/GRPC; x=y")), Dialect::Grpc);
        assert_eq!(of("/v1/models", Some("application/grpc-web")), Dialect::OpenAi);
    }

    #[test]
    fn a_refusal_reads_as_the_dialect_has_it() {
        let body = |dialect, status: StatusCode, param| {
            let (media_type, bytes) = error_body(dialect, status, "check.shape", "must be \"x\"", param);
            (media_type, String::from_utf8(bytes.to_vec()).unwrap())
        };
        let json = |text: &str| ("application/json", text.to_owned());
        assert_eq!(
            body(Dialect::OpenAi, StatusCode::BAD_REQUEST, Some("/n")),
            json(r#"{"error":{"message":"must be \"x\"","type":"invalid_request_error","param":"/n","code":"check.shape"}}"#)
        );
        assert!(body(Dialect::OpenAi, StatusCode::TOO_MANY_REQUESTS, None).1.contains(r#""type":"rate_limit_error","param":null"#));
        assert_eq!(
            body(Dialect::Anthropic, StatusCode::NOT_FOUND, None),
            json(r#"{"type":"error","error":{"type":"not_found_error","message":"must be \"x\""}}"#)
        );
        assert_eq!(body(Dialect::Oip, StatusCode::BAD_REQUEST, Some("/inputs/0")), json(r#"{"error":"/inputs/0: must be \"x\""}"#));
        assert_eq!(
            body(Dialect::Problem, StatusCode::BAD_REQUEST, Some("/a")),
            (
                "application/problem+json",
                r#"{"type":"about:blank","title":"Bad Request","status":400,"detail":"must be \"x\"","code":"check.shape","pointer":"/a"}"#
                    .into()
            )
        );
        assert_eq!(body(Dialect::Grpc, StatusCode::BAD_REQUEST, None), ("application/grpc", String::new()));
    }
}
