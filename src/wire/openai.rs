//! The OpenAI dialect: what a request asks for, what an answer used, and what the gateway changes in answers.
//!
//! What the gateway does not decide on passes as it is, unless the policy says `strict`.

pub mod embeddings;

use bytes::Bytes;
use serde_json::{Number, Value, json};

use super::asked::{Asked, Fields};
use super::shape::Shape;
use crate::trail::Usage;

/// Which of the dialect's endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `POST /v1/chat/completions`
    Chat,
    /// `POST /v1/completions`
    Completions,
    /// `POST /v1/responses`
    Responses,
    /// `POST /v1/embeddings`
    Embeddings,
}

/// What servers call the cap on an answer's tokens. Some take several of them on each endpoint.
const MAX_TOKENS: [&str; 4] = ["max_tokens", "max_completion_tokens", "max_output_tokens", N_PREDICT];

/// llama.cpp's own, which wins over the others there.
const N_PREDICT: &str = "n_predict";

/// What they call the number of answers; `n_cmpl` is llama.cpp's.
const ANSWERS: [&str; 3] = ["n", "best_of", "n_cmpl"];

/// What they call the number of alternatives to a token; `n_probs` is llama.cpp's.
const ALTERNATIVES: [&str; 2] = ["top_logprobs", "n_probs"];

/// Reads what a request asks for, and passes unknown fields.
///
/// # Errors
/// The first member that does not hold to its shape.
pub fn asked(kind: Kind, document: &Value) -> Result<Asked, Shape> {
    let fields = Fields::of(document)?;
    let mut asked = Asked { model: fields.model()?, answers: 1, ..Asked::default() };
    if kind == Kind::Embeddings {
        embeddings_input(fields)?;
        return Ok(asked);
    }
    let prompts = match kind {
        Kind::Chat => fields.messages().map(|()| 1)?,
        Kind::Completions => prompts(fields)?,
        Kind::Responses | Kind::Embeddings => responses_input(fields).map(|()| 1)?,
    };
    // What is known of any endpoint counts on each: a server that shares the code behind them takes it there, too.
    let answers = ANSWERS.iter().try_fold(None, |most, name| Ok(fields.positive(name)?.max(most)))?;
    asked.answers = answers.unwrap_or(1).saturating_mul(prompts);
    // None at all is an answer to completions, where it gives the prompt's own log-probabilities.
    let cap = |name| if kind == Kind::Completions || name == N_PREDICT { fields.count(name) } else { fields.positive(name) };
    asked.max_tokens = MAX_TOKENS.iter().try_fold(None, |most, name| Ok(cap(name)?.max(most)))?;
    asked.logprobs = logprobs(kind, fields)?;
    asked.stream = fields.bool("stream")?.unwrap_or(false);
    // vLLM's other ways to say which tokens may come.
    let listed = ["allowed_token_ids", "bad_words"].iter().try_fold(0, |sum, name| Ok(sum + fields.length(name)?))?;
    asked.logit_bias = fields.object("logit_bias")?.map_or(0, serde_json::Map::len) + listed;
    if let Some(options) = fields.object("stream_options")? {
        asked.include_usage = Fields(options).bool("include_usage").map_err(|shape| shape.under("/stream_options"))?;
    }
    Ok(asked)
}

/// Whether log-probabilities are asked for, and of how many alternatives.
fn logprobs(kind: Kind, fields: Fields) -> Result<Option<u64>, Shape> {
    let alternatives = ALTERNATIVES.iter().try_fold(None, |most, name| Ok(fields.count(name)?.max(most)))?.filter(|most| *most > 0);
    // vLLM's list of tokens whose log-probabilities are told, whatever they are.
    let chosen_tokens = Some(fields.length("logprob_token_ids")? as u64).filter(|count| *count > 0);
    // `true`, with `top_logprobs` beside it, on one endpoint; their number on the other.
    let chosen = match fields.find("logprobs") {
        Some(Value::Bool(chosen)) if kind != Kind::Completions => chosen.then_some(0),
        _ if kind == Kind::Chat => fields.bool("logprobs")?.and(None),
        _ => fields.count("logprobs")?,
    };
    let included = if kind == Kind::Responses && includes_logprobs(fields)? { Some(0) } else { None };
    // Some servers answer alternatives without `logprobs`: what may be answered is what is asked for.
    Ok(chosen.max(included).max(alternatives).max(chosen_tokens).max(fields.count("prompt_logprobs")?))
}

/// Refuses members that are unknown to today's API.
///
/// # Errors
/// The first of them, or of those that are spelt almost like one that is known.
pub fn only_known_members(kind: Kind, document: &Value) -> Result<(), Shape> {
    Fields::of(document)?.only(known(kind))
}

/// Where a request names what the model's server has kept of another, or is to keep for one: an answer before, a conversation, an answer that is not waited for, an item
/// by its name alone, a container that ran programs, a recording, what a server of one's own keeps of a session. Whoever knows its name has it, as all callers have one credential there.
#[must_use]
pub fn stored(document: &Value) -> Option<Shape> {
    let fields = Fields(document.as_object()?);
    let member = ["previous_response_id", "conversation", "session_params", "kv_transfer_params"]
        .into_iter()
        .find(|name| fields.find(name).is_some());
    let member = member.or_else(|| fields.find("background").is_some_and(|asked| *asked != Value::Bool(false)).then_some("background"));
    if let Some(name) = member {
        return Some(Shape::kept(format!("/{name}")));
    }
    let first = |list: &'static str, is: fn(&Value) -> bool| {
        let at = fields.find(list)?.as_array()?.iter().position(is)?;
        Some(Shape::kept(format!("/{list}/{at}")))
    };
    let recorded = |message: &Value| message.pointer("/audio/id").is_some_and(|id| !id.is_null());
    first("input", |item| is_reference(item) || names_container(item))
        .or_else(|| first("tools", names_container))
        .or_else(|| first("messages", recorded))
}

/// Whether an item has a name and nothing to say: what it says is what is kept under that.
fn is_reference(item: &Value) -> bool {
    let member = |name: &str| item.get(name).filter(|value| !value.is_null());
    let says = |name: &str| match member(name) {
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(list)) => !list.is_empty(),
        other => other.is_some(),
    };
    match member("type").and_then(Value::as_str) {
        Some("item_reference") => true,
        Some("reasoning") => member("id").is_some() && !says("encrypted_content") && !says("content"),
        Some("image_generation_call") => member("id").is_some() && !says("result"),
        Some(_) => false,
        None => member("id").is_some() && member("role").is_none(),
    }
}

/// Whether a tool is to work in a container that has a name, or an item has done so; one that is made for it has none. What schemas and citations say of containers is not asked of the server.
fn names_container(part: &Value) -> bool {
    let is_tool = part.get("type").and_then(Value::as_str).is_some_and(|kind| kind != "function" && kind != "message");
    let named = |at: &str| part.pointer(at).is_some_and(|id| !id.is_null());
    is_tool && (part.get("container").is_some_and(Value::is_string) || named("/container_id") || named("/environment/container_id"))
}

/// One string or list of tokens is one prompt; a list of either is as many.
fn prompts(fields: Fields) -> Result<u64, Shape> {
    let Some(prompt) = fields.find("prompt") else { return Ok(1) };
    match prompt {
        Value::String(_) => Ok(1),
        Value::Array(list) if list.iter().all(Value::is_u64) => Ok(1),
        Value::Array(list) if list.iter().all(Value::is_string) || list.iter().all(tokens) => Ok(list.len() as u64),
        _ => Err(Shape::new("/prompt", "type", "must be a string, strings, tokens or lists of tokens")),
    }
}

fn tokens(value: &Value) -> bool {
    value.as_array().is_some_and(|list| list.iter().all(Value::is_u64))
}

fn embeddings_input(fields: Fields) -> Result<(), Shape> {
    match fields.find("input") {
        None => Err(Shape::new("/input", "required", "an input must be given")),
        Some(Value::String(_)) => Ok(()),
        Some(Value::Array(list)) if list.is_empty() => Err(Shape::new("/input", "range", "must not be empty")),
        Some(Value::Array(list)) if list.iter().all(Value::is_string) || list.iter().all(Value::is_u64) || list.iter().all(tokens) => {
            Ok(())
        }
        Some(_) => Err(Shape::new("/input", "type", "must be a string, strings, tokens or lists of tokens")),
    }
}

/// An input may be missing where a stored prompt is named.
fn responses_input(fields: Fields) -> Result<(), Shape> {
    match fields.find("input") {
        None if fields.find("prompt").is_some() => Ok(()),
        None => Err(Shape::new("/input", "required", "an input must be given")),
        Some(Value::String(_)) => Ok(()),
        Some(Value::Array(list)) => match list.iter().position(|item| !item.is_object()) {
            Some(at) => Err(Shape::new(format!("/input/{at}"), "type", "must be an object")),
            None if list.is_empty() => Err(Shape::new("/input", "range", "must not be empty")),
            None => Ok(()),
        },
        Some(_) => Err(Shape::new("/input", "type", "must be a string or an array")),
    }
}

fn includes_logprobs(fields: Fields) -> Result<bool, Shape> {
    let Some(include) = fields.find("include") else { return Ok(false) };
    let list = include.as_array().filter(|list| list.iter().all(Value::is_string));
    let list = list.ok_or_else(|| Shape::new("/include", "type", "must be an array of strings"))?;
    Ok(list.iter().any(|item| item == "message.output_text.logprobs"))
}

/// What an answer, a chunk of a stream or an event of one says it used. Counts are for the whole answer, so where several come, each count's largest holds.
/// `response.completed` and its like carry the answer, and so its usage, in `response`.
#[must_use]
pub fn usage(document: &Value) -> Option<Usage> {
    let usage = document.get("usage").filter(|usage| usage.is_object()).or_else(|| document.get("response")?.get("usage"))?;
    let count = |names: [&str; 2]| names.iter().find_map(|name| usage.get(name)?.as_u64());
    let input = count(["prompt_tokens", "input_tokens"]);
    let output = count(["completion_tokens", "output_tokens"]);
    (input.is_some() || output.is_some()).then(|| Usage { input: input.unwrap_or(0), output: output.unwrap_or(0) })
}

/// Whether a chunk is the one that `stream_options.include_usage` adds: no choices, and usage. It is taken out where the gateway asked and the caller did not.
#[must_use]
pub fn is_usage_only(chunk: &Value) -> bool {
    chunk.get("usage").is_some_and(Value::is_object) && chunk.get("choices").and_then(Value::as_array).is_some_and(Vec::is_empty)
}

/// One line of `GET /v1/models`.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// What callers write.
    pub id: &'a str,
    /// Seconds since 1970.
    pub created: u64,
    /// Who is told as its owner.
    pub owned_by: &'a str,
}

impl Listed<'_> {
    fn to_value(self) -> Value {
        json!({ "id": self.id, "object": "model", "created": self.created, "owned_by": self.owned_by })
    }
}

/// The body of `GET /v1/models`.
pub fn models<'a>(listed: impl IntoIterator<Item = Listed<'a>>) -> Bytes {
    let data: Vec<Value> = listed.into_iter().map(Listed::to_value).collect();
    Bytes::from(json!({ "object": "list", "data": data }).to_string())
}

/// The body of `GET /v1/models/{id}`.
#[must_use]
pub fn model(listed: Listed) -> Bytes {
    Bytes::from(listed.to_value().to_string())
}

/// Rounds every log-probability in an answer or a chunk to so many decimals (at most 15); says whether anything changed.
/// It knows them by the names of their members, wherever they stand: a new place for them in the dialect is then rounded too.
pub fn round_logprobs(document: &mut Value, decimals: u8) -> bool {
    round(document, 10_f64.powi(i32::from(decimals.min(15))), false)
}

/// Takes every log-probability out of an answer or a chunk, and leaves what servers write where none were asked for; says whether anything changed.
pub fn strip_logprobs(document: &mut Value) -> bool {
    match document {
        Value::Array(list) => list.iter_mut().fold(false, |changed, item| strip_logprobs(item) | changed),
        Value::Object(members) => members.iter_mut().fold(false, |changed, (key, member)| {
            if !LOGPROBS.contains(&key.as_str()) {
                return strip_logprobs(member) | changed;
            }
            // A list stays a list: the responses API has one in every event of a text.
            let nothing = if member.is_array() { json!([]) } else { Value::Null };
            let told = *member != nothing;
            *member = nothing;
            changed | told
        }),
        _ => false,
    }
}

/// The members that hold log-probabilities; the parse bounded how deep this goes.
const LOGPROBS: [&str; 5] = ["logprobs", "logprob", "top_logprobs", "token_logprobs", "prompt_logprobs"];

fn round(value: &mut Value, scale: f64, inside: bool) -> bool {
    match value {
        Value::Number(number) if inside && number.is_f64() => {
            let rounded = number.as_f64().map(|exact| (exact * scale).round() / scale);
            // What is too large to scale has no decimals to lose.
            match rounded.and_then(Number::from_f64).filter(|rounded| rounded != number) {
                Some(rounded) => {
                    *number = rounded;
                    true
                }
                None => false,
            }
        }
        Value::Array(list) => list.iter_mut().fold(false, |changed, item| round(item, scale, inside) | changed),
        Value::Object(members) => members
            .iter_mut()
            .fold(false, |changed, (key, member)| round(member, scale, inside || LOGPROBS.contains(&key.as_str())) | changed),
        _ => false,
    }
}

/// The members of today's requests, of the dialect's owner; what single servers add is unknown here.
const fn known(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Chat => &[
            "audio",
            "frequency_penalty",
            "function_call",
            "functions",
            "logit_bias",
            "logprobs",
            "max_completion_tokens",
            "max_tokens",
            "messages",
            "metadata",
            "modalities",
            "model",
            "n",
            "parallel_tool_calls",
            "prediction",
            "presence_penalty",
            "prompt_cache_key",
            "prompt_cache_retention",
            "reasoning_effort",
            "response_format",
            "safety_identifier",
            "seed",
            "service_tier",
            "stop",
            "store",
            "stream",
            "stream_options",
            "temperature",
            "tool_choice",
            "tools",
            "top_logprobs",
            "top_p",
            "user",
            "verbosity",
            "web_search_options",
        ],
        Kind::Completions => &[
            "best_of",
            "echo",
            "frequency_penalty",
            "logit_bias",
            "logprobs",
            "max_tokens",
            "model",
            "n",
            "presence_penalty",
            "prompt",
            "seed",
            "stop",
            "stream",
            "stream_options",
            "suffix",
            "temperature",
            "top_p",
            "user",
        ],
        Kind::Responses => &[
            "background",
            "context_management",
            "conversation",
            "include",
            "input",
            "instructions",
            "max_output_tokens",
            "max_tool_calls",
            "metadata",
            "model",
            "parallel_tool_calls",
            "previous_response_id",
            "prompt",
            "prompt_cache_key",
            "prompt_cache_retention",
            "reasoning",
            "safety_identifier",
            "service_tier",
            "store",
            "stream",
            "stream_options",
            "temperature",
            "text",
            "tool_choice",
            "tools",
            "top_logprobs",
            "top_p",
            "truncation",
            "user",
        ],
        Kind::Embeddings => &["dimensions", "encoding_format", "input", "model", "user"],
    }
}

#[cfg(test)]
mod tests;
