//! What a request says to a language model, and an answer to its caller, as text: whatever the dialect.

use serde_json::{Map, Value, json};

use crate::wire::sse;

/// The most bytes of instructions, and of a prompt, that are read out of a request.
pub const MOST_BYTES: usize = 128 << 10;

/// The most texts of instructions.
pub const MOST_INSTRUCTIONS: usize = 8;

/// The most tokens of which it is read how a request steers them.
pub const MOST_BIASES: usize = 4_096;

/// The words of a request, for detectors to weigh.
#[derive(Clone, Default, PartialEq)]
pub struct Said {
    /// What the model is told to be: messages of the roles `system` and `developer`, `instructions`, `system`.
    pub instructions: Vec<String>,
    /// What is asked: the last message of the role `user`, or the prompts, one a line.
    pub prompt: String,
    /// The temperature, where it is given.
    pub temperature: Option<f64>,
    /// The tokens that it steers, and by how much: each an id in decimal, without zeros before it, or a word in quotes.
    pub bias: Vec<(String, f64)>,
}

/// Without a word of it: requests stand in no log.
impl std::fmt::Debug for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Said").field("bytes", &self.prompt.len()).field("biases", &self.bias.len()).finish_non_exhaustive()
    }
}

impl Said {
    /// Reads what it finds; a document of another shape says nothing.
    #[must_use]
    pub fn of(document: &Value) -> Self {
        let mut said = Self { temperature: document.get("temperature").and_then(Value::as_f64), ..Self::default() };
        for member in ["instructions", "system"] {
            said.told(document.get(member));
        }
        let list = |member| document.get(member).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        for message in list("messages").iter().chain(list("input")) {
            match message.get("role").and_then(Value::as_str) {
                Some("system" | "developer") => said.told(message.get("content")),
                Some("user") => {
                    said.prompt.clear();
                    text(message.get("content"), &mut said.prompt);
                }
                _ => {}
            }
        }
        if said.prompt.is_empty() {
            for member in ["prompt", "input"] {
                text(document.get(member), &mut said.prompt);
            }
        }
        said.bias = biases(document).take(MOST_BIASES).collect();
        said
    }

    fn told(&mut self, content: Option<&Value>) {
        let mut told = String::new();
        text(content, &mut told);
        if !told.is_empty() && self.instructions.len() < MOST_INSTRUCTIONS {
            self.instructions.push(told);
        }
    }
}

/// The tokens that a request steers: by `logit_bias`, and by vLLM's lists of those that alone may come and of words that may not. Each entry is one of them, whatever is said of it,
/// as those are that [`Asked`](super::Asked) counts.
fn biases(document: &Value) -> impl Iterator<Item = (String, f64)> {
    let list = |name| document.get(name).and_then(Value::as_array).into_iter().flatten();
    let map = document.get("logit_bias").and_then(Value::as_object).into_iter().flatten();
    let map = map.map(|(token, bias)| (token_of(token), bias_of(bias)));
    let allowed = list("allowed_token_ids").map(|token| match token {
        Value::String(token) => (token_of(token), f64::INFINITY),
        other => (token_of(other.to_string().trim_end_matches(".0")), f64::INFINITY),
    });
    let barred = list("bad_words").map(|word| match word {
        Value::String(word) => (in_quotes(word), f64::NEG_INFINITY),
        other => (in_quotes(&other.to_string()), f64::NEG_INFINITY),
    });
    map.chain(allowed).chain(barred)
}

/// A token by its id, where every server takes the text for one, however it is spelt; else by its word, as llama.cpp has it.
fn token_of(text: &str) -> String {
    let id = text.trim_ascii_start();
    let id = id.strip_prefix('+').unwrap_or(id);
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_digit()) {
        return in_quotes(text);
    }
    let id = id.trim_start_matches('0');
    if id.is_empty() { "0".to_owned() } else { id.to_owned() }
}

fn in_quotes(word: &str) -> String {
    format!("\"{word}\"")
}

/// How much a token is steered. Servers take numbers in strings as well, and llama.cpp `false` for never.
fn bias_of(bias: &Value) -> f64 {
    match bias {
        Value::Bool(true) => 1.0,
        Value::Bool(false) => f64::NEG_INFINITY,
        Value::String(number) => number.trim().parse().unwrap_or_default(),
        other => other.as_f64().unwrap_or_default(),
    }
}

/// A text, or a list of texts or of parts that have one, one a line.
fn text(content: Option<&Value>, into: &mut String) {
    let mut add = |text: &str| {
        if !into.is_empty() {
            into.push('\n');
        }
        into.push_str(&text[..text.floor_char_boundary(MOST_BYTES.saturating_sub(into.len()))]);
    };
    match content {
        Some(Value::String(text)) => add(text),
        Some(Value::Array(parts)) => {
            parts.iter().filter_map(|part| part.as_str().or_else(|| part.get("text")?.as_str())).for_each(add);
        }
        _ => {}
    }
}

/// Where something is said in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Which of several answers, by its number: choices are answers of their own.
    pub choice: u64,
    /// Which of several times that an answer is told: events that tell a part of it again, or all, are each kind a time of its own. 0 is the first.
    pub time: u64,
    /// Which member it stands in, as a hash of the names that lead there. Parts that follow each other have one, and those that pass side by side each their own.
    pub member: u64,
}

/// What an answer, a chunk of a stream or an event of one says: every text in it, but for what says nothing in words, and for what only repeats the request: its `tools`, and
/// instructions that are an echo (`echoes`) of the caller's own.
pub fn answered(document: &Value, echoes: &impl Fn(&str) -> bool, mut each: impl FnMut(Place, &str)) {
    let kind = document.get("type").and_then(Value::as_str).unwrap_or_default();
    // An item of which no delta tells is told once, when it is done.
    let once = kind == "response.output_item.done"
        && !document.pointer("/item/type").and_then(Value::as_str).is_some_and(|item| IN_DELTAS.contains(&item));
    let time = if kind.starts_with("response.") && !kind.ends_with(".delta") && !once { hashed(1, kind) } else { 0 };
    // Sound, not words.
    if kind.starts_with("response.") && kind.contains("audio.delta") {
        return;
    }
    let mut walk = Walk { place: Place { choice: 0, time, member: 0 }, echoes, each: &mut each };
    let Some(members) = document.as_object() else { return };
    let is_response = document.get("object").is_some_and(|object| object == "response");
    for (name, member) in members {
        match (name.as_str(), member) {
            ("choices", Value::Array(choices)) => {
                for choice in choices {
                    walk.place.choice = choice.get("index").and_then(Value::as_u64).unwrap_or(0);
                    walk.member("choices", choice);
                }
                walk.place.choice = 0;
            }
            ("response", Value::Object(response)) => response.iter().for_each(|(name, member)| walk.of_response(name, member)),
            _ if is_response => walk.of_response(name, member),
            _ => walk.member(name, member),
        }
    }
}

/// Members that say nothing in words: what things are and are called by machines, data, and what stands beside a text for each of its tokens but was not said.
const WORDLESS: [&str; 16] = [
    "b64_json",
    "bytes",
    "call_id",
    "encrypted_content",
    "file_data",
    "id",
    "item_id",
    "model",
    "object",
    "obfuscation",
    "role",
    "signature",
    "status",
    "tools",
    "top_logprobs",
    "type",
];

/// Items of the responses API of which deltas tell.
const IN_DELTAS: [&str; 6] = ["code_interpreter_call", "custom_tool_call", "function_call", "mcp_call", "message", "reasoning"];

/// Members at the top of an answer of the responses API that repeat what was asked.
const ASKED: [&str; 6] = ["metadata", "prompt", "prompt_cache_key", "safety_identifier", "tool_choice", "user"];

struct Walk<'a, E, F> {
    place: Place,
    echoes: &'a E,
    each: &'a mut F,
}

impl<E: Fn(&str) -> bool, F: FnMut(Place, &str)> Walk<'_, E, F> {
    /// A member at the top of an answer of the responses API, which repeats what was asked.
    fn of_response(&mut self, name: &str, member: &Value) {
        let repeats = match (name, member) {
            ("instructions", Value::String(text)) => (self.echoes)(text),
            // The form of the answer, where it is no text.
            ("text", Value::Object(_)) => true,
            (name, _) => ASKED.contains(&name),
        };
        if !repeats {
            self.member(name, member);
        }
    }

    /// A member; the parse bounded how deep this goes.
    fn member(&mut self, name: &str, member: &Value) {
        if WORDLESS.contains(&name) {
            return;
        }
        let before = self.place.member;
        self.place.member = hashed(before, name);
        match member {
            // An image or a sound that stands in its own address (RFC 2397).
            Value::String(text) if matches!(name, "url" | "image_url" | "audio_url") && text.starts_with("data:") => {}
            Value::String(text) => (self.each)(self.place, text),
            Value::Array(parts) => {
                for part in parts {
                    // Parts follow each other, but for those of a stream that are numbered, which pass side by side.
                    let numbered = part.get("index").and_then(Value::as_u64).filter(|_| name == "tool_calls");
                    let list = self.place.member;
                    self.place.member = numbered.map_or(list, |index| hashed(list, &index.to_string()));
                    self.value(part);
                    self.place.member = list;
                }
            }
            // What a tool is given may say it by the names of its members.
            Value::Object(_) if matches!(name, "input" | "action" | "arguments" | "parameters") => {
                (self.each)(self.place, &member.to_string())
            }
            other => self.value(other),
        }
        self.place.member = before;
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::String(text) => (self.each)(self.place, text),
            Value::Array(parts) => parts.iter().for_each(|part| self.value(part)),
            Value::Object(members) => {
                let kind = members.get("type").and_then(Value::as_str).unwrap_or_default();
                for (name, member) in members {
                    match name.as_str() {
                        // An image, not a program's result; data, but where it is a text.
                        "result" if kind == "image_generation_call" => {}
                        "data" if kind != "text" => {}
                        name => self.member(name, member),
                    }
                }
            }
            _ => {}
        }
    }
}

/// A step of FNV-1a over a name.
fn hashed(before: u64, name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(step(before ^ 0xcbf2_9ce4_8422_2325, b'/'), step)
}

/// Members that give a prompt, or an answer, out in a form that nobody reads, where a model's server is asked for it: tokens by their numbers, a prompt's log-probabilities, the
/// text that its template made.
const UNREAD: [&str; 8] =
    ["_debug_info", "input_messages", "output_token_ids", "prompt_logprobs", "prompt_text", "prompt_token_ids", "raw_output", "token_ids"];

/// Takes out of an answer, or a chunk of one, what would give a prompt out in a form that nobody reads; says whether there was anything. What a tool is given has whatever members it has.
pub fn take_out_unread(document: &mut Value) -> bool {
    let take = |part: Option<&mut Value>| {
        let Some(Value::Object(members)) = part else { return false };
        let before = members.len();
        members.retain(|name, member| member.is_null() || !UNREAD.contains(&name.as_str()));
        members.len() < before
    };
    let mut changed = take(Some(document)) | take(document.get_mut("response"));
    for choice in document.get_mut("choices").and_then(Value::as_array_mut).into_iter().flatten() {
        changed |= take(Some(choice)) | take(choice.get_mut("message")) | take(choice.get_mut("delta"));
    }
    changed
}

/// Takes the words out of a whole answer, or a chunk of a stream, which then says that a filter did: `content_filter`, or `refusal` in the messages API, which clients know. What stays is what
/// says nothing; an answer may have its words in members that are not known here.
pub fn withhold(document: &mut Value) {
    let Some(answer) = document.as_object_mut() else { return };
    answer.retain(|name, _| STAYS.contains(&name.as_str()));
    if let Some(choices) = answer.get_mut("choices") {
        let each = choices.as_array_mut().map(std::mem::take).unwrap_or_default();
        *choices = each.iter().map(withheld_choice).collect();
    } else if answer.contains_key("output") {
        answer.insert("output".into(), json!([]));
        answer.insert("status".into(), "incomplete".into());
        answer.insert("incomplete_details".into(), json!({"reason": "content_filter"}));
    } else if answer.contains_key("content") {
        answer.insert("content".into(), json!([]));
        answer.insert("stop_reason".into(), "refusal".into());
    }
}

/// Members at the top of an answer that stay where it is withheld: they say nothing, or are replaced.
const STAYS: [&str; 15] = [
    "choices",
    "content",
    "created",
    "created_at",
    "id",
    "model",
    "object",
    "output",
    "parallel_tool_calls",
    "role",
    "service_tier",
    "status",
    "system_fingerprint",
    "type",
    "usage",
];

fn withheld_choice(choice: &Value) -> Value {
    let mut withheld = Map::new();
    withheld.insert("index".into(), choice.get("index").cloned().unwrap_or_else(|| 0.into()));
    for (name, empty) in
        [("text", json!("")), ("message", json!({"role": "assistant", "content": ""})), ("delta", json!({})), ("logprobs", Value::Null)]
    {
        if choice.get(name).is_some() {
            withheld.insert(name.into(), empty);
        }
    }
    withheld.insert("finish_reason".into(), "content_filter".into());
    withheld.into()
}

/// The events that end a stream in place of one of its own, in its dialect, so that clients take it for an answer that a filter stopped: of the last one it is told apart which it is, as its
/// reader waits for it. `response` is what the responses API has told of the answer so far, and `output` about how many tokens were sent.
#[must_use]
pub fn cut(event: &Value, response: Option<&Value>, output: u64) -> (Vec<bytes::Bytes>, bytes::Bytes) {
    if event.get("choices").is_some() {
        let mut last = event.clone();
        if let Some(chunk) = last.as_object_mut() {
            chunk.remove("usage");
        }
        withhold(&mut last);
        return (vec![sse::event(None, &last)], bytes::Bytes::from_static(b"data: [DONE]\n\n"));
    }
    if event.get("type").and_then(Value::as_str).is_some_and(|kind| kind.starts_with("response.")) {
        let mut answer = response.cloned().unwrap_or_else(|| json!({"object": "response", "output": []}));
        if let Some(answer) = answer.as_object_mut() {
            answer.insert("output".into(), json!([]));
        }
        withhold(&mut answer);
        let number = event.get("sequence_number").and_then(Value::as_u64).unwrap_or(0);
        let last = json!({"type": "response.incomplete", "sequence_number": number, "response": answer});
        return (Vec::new(), sse::event(Some("response.incomplete"), &last));
    }
    let index = event.get("index").cloned().unwrap_or_else(|| 0.into());
    let stop = json!({"type": "content_block_stop", "index": index});
    let delta =
        json!({"type": "message_delta", "delta": {"stop_reason": "refusal", "stop_sequence": null}, "usage": {"output_tokens": output}});
    let events = vec![sse::event(Some("content_block_stop"), &stop), sse::event(Some("message_delta"), &delta)];
    (events, sse::event(Some("message_stop"), &json!({"type": "message_stop"})))
}

#[cfg(test)]
mod tests;
