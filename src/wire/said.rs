//! What a request says to a language model, and an answer to its caller, as text: whatever the dialect.

use serde_json::{Map, Value, json};

use crate::wire::sse;

/// The most bytes of instructions, and of a prompt, that are read out of a request.
pub const MOST_BYTES: usize = 128 << 10;

/// The most texts of instructions.
pub const MOST_INSTRUCTIONS: usize = 8;

/// The most entries of a bias map.
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
    /// The bias map.
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
        if let Some(bias) = document.get("logit_bias").and_then(Value::as_object) {
            let number = |(token, bias): (&String, &Value)| Some((token.clone(), bias.as_f64()?));
            said.bias = bias.iter().take(MOST_BIASES).filter_map(number).collect();
        }
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

/// Who says something in an answer: the number of a choice or output, and whether it is said aside, in what is only named or linked to.
pub type Speaker = (u64, bool);

/// What an answer, a chunk of a stream or an event of one says: words, thoughts that are shown, what tools and programs are given, and whatever else stands there as text. What a stream's last
/// events say again is heard again.
pub fn answered(document: &Value, mut each: impl FnMut(Speaker, &str)) {
    let index = |of: &Value, names: &[&str]| names.iter().find_map(|name| of.get(name)?.as_u64()).unwrap_or(0);
    if let Some(choices) = document.get("choices").and_then(Value::as_array) {
        for choice in choices {
            let speaker = (index(choice, &["index"]), false);
            ["text", "delta", "message"].iter().filter_map(|name| choice.get(name)).for_each(|said| words(speaker, said, &mut each));
        }
        return;
    }
    let kind = document.get("type").and_then(Value::as_str).unwrap_or_default();
    if kind.starts_with("content_block") {
        let speaker = (index(document, &["index"]), false);
        ["content_block", "delta"].iter().filter_map(|name| document.get(name)).for_each(|said| words(speaker, said, &mut each));
    } else if kind.starts_with("response.") {
        // Sound, not words.
        if !kind.contains("audio.delta") {
            let speaker = (index(document, &["output_index"]), false);
            PARTS.iter().filter_map(|name| document.get(name)).for_each(|said| words(speaker, said, &mut each));
        }
        outputs(document.pointer("/response/output"), &mut each);
    } else {
        // A whole answer of the responses or the messages API, or the beginning of one.
        outputs(document.get("output").or_else(|| document.get("content")).or_else(|| document.pointer("/message/content")), &mut each);
    }
}

/// The members of the responses API's events that say something.
const PARTS: [&str; 8] = ["delta", "text", "refusal", "arguments", "input", "code", "part", "item"];

/// Members that say nothing in words: what things are and are called by machines, and data.
const WORDLESS: [&str; 14] = [
    "b64_json",
    "bytes",
    "call_id",
    "data",
    "encrypted_content",
    "file_data",
    "id",
    "item_id",
    "logprobs",
    "object",
    "role",
    "signature",
    "status",
    "type",
];

/// Members that are said aside: one of them beside each word must not part the words.
const ASIDE: [&str; 6] = ["annotations", "citation", "citations", "name", "server_label", "url"];

fn outputs(parts: Option<&Value>, each: &mut impl FnMut(Speaker, &str)) {
    let parts = parts.and_then(Value::as_array).into_iter().flatten();
    parts.enumerate().for_each(|(at, part)| words((at as u64, false), part, each));
}

/// Every text in `said`; the parse bounded how deep this goes.
fn words(speaker: Speaker, said: &Value, each: &mut impl FnMut(Speaker, &str)) {
    match said {
        Value::String(text) => each(speaker, text),
        Value::Array(parts) => parts.iter().for_each(|part| words(speaker, part, each)),
        Value::Object(members) => {
            // An image, not a program's result.
            let is_image = members.get("type").is_some_and(|kind| kind == "image_generation_call");
            for (name, member) in members {
                match name.as_str() {
                    name if WORDLESS.contains(&name) || is_image && name == "result" => {}
                    // What a tool is given may say it by the names of its members.
                    "input" | "action" if member.is_object() => each(speaker, &member.to_string()),
                    name => words((speaker.0, speaker.1 || ASIDE.contains(&name)), member, each),
                }
            }
        }
        _ => {}
    }
}

/// Takes the words out of a whole answer, which then says that a filter did: `content_filter`, or `refusal` in the messages API, which clients know.
pub fn withhold(document: &mut Value) {
    let Some(answer) = document.as_object_mut() else { return };
    if let Some(choices) = answer.get_mut("choices").and_then(Value::as_array_mut) {
        choices.iter_mut().filter_map(Value::as_object_mut).for_each(withhold_choice);
    } else if answer.contains_key("output") {
        answer.insert("output".into(), json!([]));
        answer.insert("status".into(), "incomplete".into());
        answer.insert("incomplete_details".into(), json!({"reason": "content_filter"}));
    } else if answer.contains_key("content") {
        answer.insert("content".into(), json!([]));
        answer.insert("stop_reason".into(), "refusal".into());
    }
}

fn withhold_choice(choice: &mut Map<String, Value>) {
    choice.insert("finish_reason".into(), "content_filter".into());
    for (name, empty) in
        [("text", json!("")), ("message", json!({"role": "assistant", "content": ""})), ("delta", json!({})), ("logprobs", Value::Null)]
    {
        if let Some(value) = choice.get_mut(name) {
            *value = empty;
        }
    }
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
