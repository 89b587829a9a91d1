//! What a request to a language model asks for, as far as the gateway decides on it, whatever its dialect.

use serde_json::{Map, Value};

use super::shape::Shape;
use crate::trail::Usage;

/// The longest model name, in bytes; the longest names of public hubs have less than 200.
pub const MODEL_MAX: usize = 256;

/// The decided-on part of a chat, completion, responses, embeddings or messages request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Asked {
    /// The model's name, as the caller writes it: 1 to [`MODEL_MAX`] bytes, no control characters.
    pub model: String,
    /// Whether the answer is to be a stream.
    pub stream: bool,
    /// `stream_options.include_usage`, where it was given.
    pub include_usage: Option<bool>,
    /// The cap on the answer's tokens that was asked for (`max_tokens`, `max_completion_tokens`, `max_output_tokens`, `n_predict`): the largest of them.
    pub max_tokens: Option<u64>,
    /// How many answers (`n`, `best_of`, `n_cmpl`): the largest of them, times the number of prompts where a completion has several; at least 1.
    pub answers: u64,
    /// Whether log-probabilities are asked for, and of how many alternatives a token.
    pub logprobs: Option<u64>,
    /// How many entries `logit_bias`, `allowed_token_ids` and `bad_words` have together.
    pub logit_bias: usize,
    /// What it says, as far as detectors weigh it; nothing before the request was checked.
    pub said: Box<super::Said>,
}

/// The usage after one more part of a stream told it: servers count up, so each count's largest holds.
#[must_use]
pub fn later(so_far: Option<Usage>, told: Option<Usage>) -> Option<Usage> {
    match (so_far, told) {
        (Some(one), Some(other)) => Some(Usage { input: one.input.max(other.input), output: one.output.max(other.output) }),
        (one, other) => one.or(other),
    }
}

/// The members on which something is decided, of all dialects.
const DECIDED: [&str; 28] = [
    "allowed_token_ids",
    "background",
    "bad_words",
    "best_of",
    "container",
    "conversation",
    "include",
    "input",
    "kv_transfer_params",
    "logit_bias",
    "logprob_token_ids",
    "logprobs",
    "max_completion_tokens",
    "max_output_tokens",
    "max_tokens",
    "messages",
    "model",
    "n",
    "n_cmpl",
    "n_predict",
    "n_probs",
    "previous_response_id",
    "prompt",
    "prompt_logprobs",
    "session_params",
    "stream",
    "stream_options",
    "top_logprobs",
];

/// The members of a request's document; `null` counts as absent, as the dialects' own servers have it.
#[derive(Clone, Copy)]
pub(super) struct Fields<'v>(pub(super) &'v Map<String, Value>);

impl<'v> Fields<'v> {
    pub(super) fn of(document: &'v Value) -> Result<Self, Shape> {
        let members = document.as_object().ok_or_else(|| Shape::new("", "type", "the body must be a JSON object"))?;
        Shape::look_alike(members, &DECIDED)?;
        Ok(Self(members))
    }

    pub(super) fn find(self, key: &str) -> Option<&'v Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn model(self) -> Result<String, Shape> {
        let model = self.find("model").ok_or_else(|| Shape::new("/model", "required", "a model must be named"))?;
        let model = model.as_str().ok_or_else(|| Shape::new("/model", "type", "must be a string"))?;
        if model.is_empty() || model.len() > MODEL_MAX || model.chars().any(char::is_control) {
            return Err(Shape::new("/model", "range", "must be 1 to 256 bytes without control characters"));
        }
        Ok(model.to_owned())
    }

    pub(super) fn bool(self, key: &str) -> Result<Option<bool>, Shape> {
        self.find(key).map(|value| value.as_bool().ok_or_else(|| Shape::at_member(key, "type", "must be a boolean"))).transpose()
    }

    pub(super) fn count(self, key: &str) -> Result<Option<u64>, Shape> {
        self.find(key)
            .map(|value| value.as_u64().ok_or_else(|| Shape::at_member(key, "type", "must be a non-negative integer")))
            .transpose()
    }

    pub(super) fn positive(self, key: &str) -> Result<Option<u64>, Shape> {
        match self.count(key)? {
            Some(0) => Err(Shape::at_member(key, "range", "must be at least 1")),
            count => Ok(count),
        }
    }

    pub(super) fn object(self, key: &str) -> Result<Option<&'v Map<String, Value>>, Shape> {
        self.find(key).map(|value| value.as_object().ok_or_else(|| Shape::at_member(key, "type", "must be an object"))).transpose()
    }

    /// How many a list has, where it is given.
    pub(super) fn length(self, key: &str) -> Result<usize, Shape> {
        let list = self.find(key).map(|value| value.as_array().ok_or_else(|| Shape::at_member(key, "type", "must be an array")));
        Ok(list.transpose()?.map_or(0, Vec::len))
    }

    /// A list of objects, at least one.
    pub(super) fn messages(self) -> Result<(), Shape> {
        let messages = self.find("messages").ok_or_else(|| Shape::new("/messages", "required", "messages must be given"))?;
        let messages = messages.as_array().ok_or_else(|| Shape::new("/messages", "type", "must be an array"))?;
        if messages.is_empty() {
            return Err(Shape::new("/messages", "range", "must have at least one message"));
        }
        match messages.iter().position(|message| !message.get("role").is_some_and(Value::is_string)) {
            Some(at) => Err(Shape::new(format!("/messages/{at}/role"), "required", "every message must be an object with a role")),
            None => Ok(()),
        }
    }

    /// Refuses the first member that is not in the list.
    pub(super) fn only(self, known: &[&str]) -> Result<(), Shape> {
        match self.0.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(Shape::at_member(key, "unknown", "the field is not known")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_counts_up_over_a_stream() {
        let usage = |input, output| Some(Usage { input, output });
        assert_eq!([None, usage(25, 1), None, usage(0, 15)].into_iter().fold(None, later), usage(25, 15));
    }
}
