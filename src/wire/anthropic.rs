//! The Anthropic dialect: what a message request asks for, and what an answer used.

use serde_json::Value;

use super::asked::{Asked, Fields};
use super::shape::Shape;
use crate::trail::Usage;

/// Reads what `POST /v1/messages` asks for, and passes unknown fields.
///
/// # Errors
/// The first member that does not hold to its shape.
pub fn asked(document: &Value) -> Result<Asked, Shape> {
    let fields = Fields::of(document)?;
    let model = fields.model()?;
    fields.messages()?;
    let max_tokens = fields.positive("max_tokens")?;
    if max_tokens.is_none() {
        return Err(Shape::new("/max_tokens", "required", "max_tokens must be given"));
    }
    Ok(Asked { model, stream: fields.bool("stream")?.unwrap_or(false), max_tokens, answers: 1, ..Asked::default() })
}

/// Refuses members that are unknown to today's API.
///
/// # Errors
/// The first of them, or of those that are spelt almost like one that is known.
pub fn only_known_members(document: &Value) -> Result<(), Shape> {
    Fields::of(document)?.only(&KNOWN)
}

/// Where a request names what the model's server has kept of another: the container in which it ran programs. One that is made for it says no more than its `skills`.
#[must_use]
pub fn stored(document: &Value) -> Option<Shape> {
    let made = match document.get("container") {
        None | Some(Value::Null) => true,
        Some(Value::Object(container)) => container.iter().all(|(name, value)| name == "skills" || value.is_null()),
        Some(_) => false,
    };
    (!made).then(|| Shape::kept("/container"))
}

/// What an answer or an event of a stream says it used. Counts are for the whole answer so far, so where several come, each count's largest holds:
/// `message_start` tells the input, `message_delta` the output. Input counts what was read from and written to the prompt cache too.
#[must_use]
pub fn usage(document: &Value) -> Option<Usage> {
    let usage = document.get("usage").filter(|usage| usage.is_object()).or_else(|| document.get("message")?.get("usage"))?;
    let count = |name: &str| usage.get(name).and_then(Value::as_u64);
    let inputs = ["input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"].map(count);
    let output = count("output_tokens");
    let any = output.is_some() || inputs.iter().any(Option::is_some);
    any.then(|| Usage { input: inputs.into_iter().flatten().fold(0, u64::saturating_add), output: output.unwrap_or(0) })
}

/// The members of today's requests.
const KNOWN: [&str; 20] = [
    "cache_control",
    "container",
    "context_management",
    "inference_geo",
    "max_tokens",
    "mcp_servers",
    "messages",
    "metadata",
    "model",
    "output_config",
    "service_tier",
    "stop_sequences",
    "stream",
    "system",
    "temperature",
    "thinking",
    "tool_choice",
    "tools",
    "top_k",
    "top_p",
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_message_asks_for_what_it_says() {
        let document = json!({"model": "claude", "max_tokens": 1024, "stream": true, "messages": [{"role": "user", "content": "Hello"}]});
        let expected = Asked { model: "claude".into(), stream: true, max_tokens: Some(1024), answers: 1, ..Asked::default() };
        assert_eq!(asked(&document).unwrap(), expected);
        assert_eq!(only_known_members(&document), Ok(()));
    }

    #[test]
    fn what_is_required_is_required() {
        let without = |key: &str| {
            let mut document = json!({"model": "claude", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]});
            document.as_object_mut().unwrap().remove(key);
            asked(&document).unwrap_err()
        };
        for key in ["model", "max_tokens", "messages"] {
            assert_eq!((without(key).pointer, without(key).rule), (format!("/{key}"), "required"));
        }
        let zero = json!({"model": "claude", "max_tokens": 0, "messages": [{"role": "user", "content": "x"}]});
        assert_eq!(asked(&zero).unwrap_err().rule, "range");
    }

    #[test]
    fn strictly_an_unknown_field_is_named() {
        let document = json!({"model": "c", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}], "n": 2});
        assert!(asked(&document).is_ok());
        assert_eq!(only_known_members(&document).unwrap_err().pointer, "/n");
    }

    #[test]
    fn usage_is_read_from_answers_and_events() {
        let whole = json!({"type": "message", "usage": {"input_tokens": 10, "cache_read_input_tokens": 5, "cache_creation_input_tokens": null, "output_tokens": 6}});
        assert_eq!(usage(&whole), Some(Usage { input: 15, output: 6 }));
        let start = json!({"type": "message_start", "message": {"usage": {"input_tokens": 25, "output_tokens": 1}}});
        assert_eq!(usage(&start), Some(Usage { input: 25, output: 1 }));
        let delta = json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}});
        assert_eq!(usage(&delta), Some(Usage { input: 0, output: 15 }));
        assert_eq!(usage(&json!({"type": "ping"})), None);
    }
}
