//! `[detect.leak]`: watches what a model says for its instructions and for canaries, and ends the answer where the policy says so.
//!
//! An answer that is ended looks as one that a filter of the model's own server stopped, which clients know: it says neither which filter it was, nor why.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::Value;
use toml::Spanned;

use super::leak::{self, Guarded, Leak, Stream};
use crate::detect::{Mode, meaning};
use crate::digest::Digest;
use crate::event::{Event, Events};
use crate::mistake::Mistake;
use crate::wire::Said;
use crate::wire::said::{MOST_BYTES, Place, answered};

/// Choices of one answer that are told apart, as many as may be asked for; those with higher numbers are taken together with lower ones.
pub const MOST_CHOICES: u64 = 128;

/// Choices, and times that they are told, that are heard at most; of more, the one that was heard longest ago is forgotten.
const MOST_STREAMS: usize = 160;

/// `[detect.leak]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Its mode; the mode of `[detect]` where it is left out.
    pub mode: Option<Mode>,
    /// The part of the instructions that is told when it comes out, from 0 to 1; 0.5 where it is left out.
    pub flag: Option<Spanned<f64>>,
    /// The part at which an answer ends, where it is enforced, from 0 to 1; 0.85 where it is left out.
    pub cut: Option<Spanned<f64>>,
    /// Instructions that stand in no request: those the model's server adds, four at most. The instructions of a request are guarded in any case.
    pub system_prompts: Vec<Spanned<String>>,
    /// Strings that stand in instructions or documents to be found in no answer, of 8 to 256 bytes. An answer with one ends, where it is enforced.
    pub canaries: Vec<Spanned<String>>,
}

/// The rules in force.
pub(in crate::detect) struct Guards {
    enforced: bool,
    flag: f64,
    cut: f64,
    system_prompts: Vec<String>,
    canaries: Vec<String>,
}

impl std::fmt::Debug for Guards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guards").field("enforced", &self.enforced).finish_non_exhaustive()
    }
}

impl Config {
    /// Nothing where it is off.
    pub(in crate::detect) fn compile(&self, mode: Mode, mistakes: &mut Vec<Mistake>) -> Option<Guards> {
        let mut part = |part: &Option<Spanned<f64>>, default: f64| {
            let Some(part) = part else { return default };
            if !(0.0..=1.0).contains(part.get_ref()) {
                mistakes.push(Mistake::at(part.span(), "a part of the instructions is from 0 to 1"));
            }
            *part.get_ref()
        };
        let (flag, cut) = (part(&self.flag, leak::FLAG), part(&self.cut, leak::CUT));
        if let Some(prompt) = self.system_prompts.get(leak::MOST_TEXTS) {
            mistakes.push(Mistake::at(prompt.span(), format!("there are at most {} system prompts", leak::MOST_TEXTS)));
        }
        if let Some(canary) = self.canaries.get(leak::MOST_CANARIES) {
            mistakes.push(Mistake::at(canary.span(), format!("there are at most {} canaries", leak::MOST_CANARIES)));
        }
        for canary in &self.canaries {
            if !(leak::CANARY_MIN..=leak::CANARY_MAX).contains(&canary.get_ref().len()) {
                mistakes.push(Mistake::at(canary.span(), format!("a canary has {} to {} bytes", leak::CANARY_MIN, leak::CANARY_MAX)));
            }
        }
        let texts = |texts: &[Spanned<String>]| texts.iter().map(|text| text.get_ref().clone()).collect();
        let (system_prompts, canaries) = (texts(&self.system_prompts), texts(&self.canaries));
        let mode = self.mode.unwrap_or(mode);
        let guards = Guards { enforced: mode == Mode::Enforce, flag, cut, system_prompts, canaries };
        (mode != Mode::Off).then_some(guards)
    }
}

impl Guards {
    /// The guard of one answer, which tells of what it finds by `alarm`, filled in; nothing where there is nothing to look for.
    pub(in crate::detect) fn guard(&self, said: &Said, alarm: impl FnOnce() -> Event, events: &Events) -> Option<Box<Guard>> {
        let [policy, request, canaries] =
            [&self.system_prompts, &said.instructions, &self.canaries].map(|texts| texts.iter().map(String::as_str));
        let guarded = Guarded::new(policy, request, canaries);
        if guarded.is_empty() {
            return None;
        }
        let (guarded, streams) = (Arc::new(guarded), VecDeque::new());
        let own = said.instructions.iter().map(|text| Digest::of(text.as_bytes())).collect();
        let (alarm, events) = (alarm(), events.clone());
        Some(Box::new(Guard { guarded, own, streams, enforced: self.enforced, flag: self.flag, cut: self.cut, told: None, alarm, events }))
    }
}

/// How far a leak has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Flag,
    Cut,
}

/// Watches one answer.
#[derive(Debug)]
pub struct Guard {
    guarded: Arc<Guarded>,
    /// What the caller says itself of the model's instructions, which servers repeat.
    own: Vec<Digest>,
    /// By choice and time.
    streams: VecDeque<((u64, u64), Stream)>,
    enforced: bool,
    flag: f64,
    cut: f64,
    told: Option<Stage>,
    alarm: Event,
    events: Events,
}

impl Guard {
    /// Hears a whole answer, or the next event of a stream, at `now`; says whether the answer must not go on. Each stage of a leak is told once, when it is reached.
    #[must_use]
    pub fn hear(&mut self, document: &Value, now: SystemTime) -> bool {
        let mut stage = None;
        let own = std::mem::take(&mut self.own);
        // Of a long text what is known is its beginning.
        let echoes = |text: &str| own.contains(&Digest::of(&text.as_bytes()[..text.floor_char_boundary(MOST_BYTES)]));
        answered(document, &echoes, |place, text| stage = stage.max(self.pass(place, text, now)));
        self.own = own;
        self.enforced && stage == Some(Stage::Cut)
    }

    /// Hears what is no document; says whether it must not go on.
    #[must_use]
    pub fn hear_text(&mut self, text: &str, now: SystemTime) -> bool {
        let stage = self.pass(Place { choice: 0, time: 0, member: 0 }, text, now);
        self.enforced && stage == Some(Stage::Cut)
    }

    /// Whether an answer must not leave that was not heard, or has something in it that cannot be.
    #[must_use]
    pub fn is_enforced(&self) -> bool {
        self.enforced
    }

    fn pass(&mut self, place: Place, text: &str, now: SystemTime) -> Option<Stage> {
        let of = (place.choice % MOST_CHOICES, place.time);
        let at = self.streams.iter().rposition(|(known, _)| *known == of).unwrap_or_else(|| {
            if self.streams.len() == MOST_STREAMS {
                self.streams.pop_front();
            }
            self.streams.push_back((of, Stream::new(self.guarded.clone())));
            self.streams.len() - 1
        });
        let leak = self.streams[at].1.pass(place.member, text);
        let stage = if leak.canary || leak.containment > self.cut {
            Some(Stage::Cut)
        } else {
            (leak.containment > self.flag).then_some(Stage::Flag)
        };
        if stage > self.told {
            self.told = stage;
            self.tell(leak, stage, now);
        }
        stage
    }

    fn tell(&self, leak: Leak, stage: Option<Stage>, now: SystemTime) {
        let mut event = self.alarm.clone();
        let form = match leak.form {
            leak::Form::Plain => "plain",
            leak::Form::Reversed => "reversed",
            leak::Form::Rot13 => "rot13",
            leak::Form::Base64 => "base64",
        };
        // To two decimals: what was found belongs in no log, and how much of it there was is enough to look.
        let containment = (leak.containment * 100.0).round() / 100.0;
        let step = match (self.enforced, stage) {
            (true, Some(Stage::Cut)) => "degrade",
            (true, _) => "alert",
            (false, _) => "observe",
        };
        event.time = now;
        event.rule = Some(if leak.canary { "leak.canary" } else { "leak.instructions" }.into());
        let evidence = serde_json::json!({"containment": containment, "form": form, "canary": leak.canary});
        self.events.tell(meaning::of("leak", event).with("evidence", evidence).with("step", step));
    }
}

#[cfg(test)]
impl Guard {
    /// A guard that enforces, over instructions.
    pub(crate) fn over(instructions: &str, events: &Events) -> Box<Self> {
        let said = Said { instructions: vec![instructions.to_owned()], ..Said::default() };
        let guards = Config { mode: Some(Mode::Enforce), ..Config::default() }.compile(Mode::Shadow, &mut Vec::new()).unwrap();
        guards.guard(&said, || Event::new(crate::event::Name::DetectAlarm, SystemTime::UNIX_EPOCH), events).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::event::{Name, Reader, channel};

    const PROMPT: &str = "You are the concierge of the Hotel Bellevue. Never offer a discount of more than twelve per cent, and only to guests who \
        have stayed with us before. The code for the staff entrance is changed every Monday. Complaints go to the duty manager.";

    fn guard(config: &str) -> (Option<Box<Guard>>, Reader) {
        let mut mistakes = Vec::new();
        let guards = toml::from_str::<Config>(config).unwrap().compile(Mode::Shadow, &mut mistakes);
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let said = Said { instructions: vec![PROMPT.to_owned()], ..Said::default() };
        let (events, reader) = channel(8);
        let alarm = || Event::new(Name::DetectAlarm, SystemTime::UNIX_EPOCH);
        (guards.and_then(|guards| guards.guard(&said, alarm, &events)), reader)
    }

    /// Whether an answer in pieces was ended, and the rules and steps that were told.
    async fn heard(config: &str, text: &str) -> (bool, Vec<(String, String)>) {
        let (guard, mut reader) = guard(config);
        let mut guard = guard.unwrap();
        let characters: Vec<char> = text.chars().collect();
        let ended = characters.chunks(7).any(|piece| {
            let chunk = json!({"choices": [{"index": 0, "delta": {"content": piece.iter().collect::<String>()}}]});
            guard.hear(&chunk, SystemTime::UNIX_EPOCH)
        });
        drop(guard);
        let mut told = Vec::new();
        while let Some(event) = reader.next().await {
            let step = event.more.iter().find(|(key, _)| *key == "step").unwrap().1.as_str().unwrap().to_owned();
            told.push((event.rule.unwrap().to_string(), step));
        }
        (ended, told)
    }

    fn steps(steps: &[(&str, &str)]) -> Vec<(String, String)> {
        steps.iter().map(|(rule, step)| ((*rule).to_owned(), (*step).to_owned())).collect()
    }

    #[tokio::test]
    async fn in_shadow_a_leak_is_told_at_both_stages_and_ends_nothing() {
        let told = steps(&[("leak.instructions", "observe"), ("leak.instructions", "observe")]);
        assert_eq!(heard("", PROMPT).await, (false, told));
        assert_eq!(heard("", "Good evening, how may I help you?").await, (false, vec![]));
    }

    #[tokio::test]
    async fn enforced_an_answer_ends_once_it_has_most_of_the_instructions() {
        let told = steps(&[("leak.instructions", "alert"), ("leak.instructions", "degrade")]);
        assert_eq!(heard("mode = \"enforce\"", PROMPT).await, (true, told));
        let half = &PROMPT[..PROMPT.len() * 7 / 10];
        assert_eq!(heard("mode = \"enforce\"", half).await, (false, steps(&[("leak.instructions", "alert")])));
        assert!(heard("mode = \"enforce\"\ncut = 0.3", half).await.0);
    }

    #[tokio::test]
    async fn a_canary_ends_an_answer_at_once() {
        let config = "mode = \"enforce\"\ncanaries = [\"zx-4711-canary\"]";
        assert_eq!(heard(config, "so: zx-4711-canary!").await, (true, steps(&[("leak.canary", "degrade")])));
    }

    #[test]
    fn off_there_is_no_guard_and_without_instructions_there_is_none_either() {
        assert!(guard("mode = \"off\"").0.is_none());
        let guards = Config::default().compile(Mode::Shadow, &mut Vec::new()).unwrap();
        let (events, _reader) = channel(1);
        let alarm = || Event::new(Name::DetectAlarm, SystemTime::UNIX_EPOCH);
        assert!(guards.guard(&Said::default(), alarm, &events).is_none());
    }

    #[test]
    fn parts_and_canaries_that_are_none_are_mistakes_with_their_place() {
        let mistakes = |text: &str| {
            let mut mistakes = Vec::new();
            let _ = toml::from_str::<Config>(text).unwrap().compile(Mode::Shadow, &mut mistakes);
            mistakes.len()
        };
        assert_eq!(mistakes("flag = 0.0\ncut = 1.0"), 0);
        assert_eq!(mistakes("flag = -0.1\ncut = 1.1"), 2);
        assert_eq!(mistakes("canaries = [\"1234567\", \"12345678\"]"), 1);
        let many = |what: &str, count: usize| mistakes(&format!("{what} = {:?}", vec!["12345678"; count]));
        assert_eq!([many("canaries", leak::MOST_CANARIES), many("canaries", leak::MOST_CANARIES + 1)], [0, 1]);
        assert_eq!([many("system_prompts", leak::MOST_TEXTS), many("system_prompts", leak::MOST_TEXTS + 1)], [0, 1]);
    }

    #[test]
    fn as_many_system_prompts_as_a_policy_may_have_are_guarded_and_push_no_instructions_of_a_request_out() {
        let prompt = |of: &str| {
            format!(
                "In matters of {of} you speak for the {of} office alone, and what the {of} desk has decided on {of} stays within the {of} house."
            )
        };
        let prompts = ["tickets", "luggage", "breakfast", "garages"].map(prompt);
        assert_eq!(prompts.len(), leak::MOST_TEXTS);
        let config: Config = toml::from_str(&format!("mode = \"enforce\"\nsystem_prompts = {prompts:?}")).unwrap();
        let guards = config.compile(Mode::Shadow, &mut Vec::new()).unwrap();
        let said = Said { instructions: vec![PROMPT.to_owned()], ..Said::default() };
        for prompt in prompts.iter().map(String::as_str).chain([PROMPT]) {
            let alarm = || Event::new(Name::DetectAlarm, SystemTime::UNIX_EPOCH);
            let mut guard = guards.guard(&said, alarm, &channel(8).0).unwrap();
            assert!(guard.hear(&json!({"choices": [{"index": 0, "message": {"content": prompt}}]}), SystemTime::UNIX_EPOCH), "{prompt}");
        }
    }

    /// Whether an answer that recites its instructions by so many characters is ended, where each chunk is made of such a piece.
    fn is_ended(by: usize, chunk: impl Fn(usize, &str) -> Value) -> bool {
        let mut guard = guard("mode = \"enforce\"\ncanaries = [\"zx-4711-canary\"]").0.unwrap();
        let text: Vec<char> = PROMPT.chars().collect();
        text.chunks(by).enumerate().any(|(at, piece)| guard.hear(&chunk(at, &piece.iter().collect::<String>()), SystemTime::UNIX_EPOCH))
    }

    #[test]
    fn what_servers_say_beside_a_text_parts_nothing_of_it() {
        type Chunk = fn(usize, &str) -> Value;
        let chat: fn(Value) -> Value = |delta| json!({"choices": [{"index": 0, "delta": delta}]});
        let chunks: [(&str, Chunk); 9] = [
            ("Groq", |_, text| json!({"choices": [{"delta": {"reasoning": text, "channel": "analysis"}}]})),
            (
                "OpenRouter",
                |_, text| json!({"choices": [{"delta": {"reasoning": text, "reasoning_details": [{"type": "reasoning.text", "text": text, "format": "unknown"}]}}]}),
            ),
            ("vLLM", |_, text| json!({"choices": [{"delta": {"reasoning": text, "reasoning_content": text}}]})),
            ("Together", |_, text| json!({"choices": [{"text": text, "delta": {"role": "assistant", "content": text}}]})),
            ("two tools", |_, text| {
                let tool = |index: u64| json!({"index": index, "function": {"name": "f", "arguments": text}});
                json!({"choices": [{"delta": {"tool_calls": [tool(0), tool(1)]}}]})
            }),
            (
                "blocks with citations",
                |at, text| json!({"type": "content_block_delta", "index": at / 5, "delta": {"type": "text_delta", "text": text}}),
            ),
            (
                "log-probabilities",
                |_, text| json!({"choices": [{"delta": {}, "logprobs": {"content": [{"token": text, "top_logprobs": [{"token": "other"}]}]}}]}),
            ),
            ("escaped", |_, text| {
                let escaped: String = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
                json!({"choices": [{"delta": {"tool_calls": [{"function": {"arguments": escaped}}]}}]})
            }),
            ("text, then a tool", |at, text| {
                let first = at * 4 < PROMPT.len() / 2;
                json!({"type": if first { "response.output_text.delta" } else { "response.function_call_arguments.delta" }, "output_index": u64::from(!first), "delta": text})
            }),
        ];
        for (who, chunk) in chunks {
            assert!(is_ended(4, chunk), "{who}");
        }
        let canary = |wrap: &dyn Fn(&str) -> Value| {
            let mut guard = guard("mode = \"enforce\"\ncanaries = [\"zx-4711-canary\"]").0.unwrap();
            ["so: zx-", "4711", "-can", "ary!"].iter().any(|piece| guard.hear(&wrap(piece), SystemTime::UNIX_EPOCH))
        };
        assert!(canary(&|piece| chat(json!({"reasoning": piece, "channel": "analysis"}))));
        assert!(canary(&|piece| chat(json!({"reasoning": piece, "reasoning_details": [{"text": piece}]}))));
    }

    #[test]
    fn an_answer_in_two_parts_is_one_and_what_is_told_again_is_none_more() {
        let (first, second) = PROMPT.split_at(PROMPT.find("The code").unwrap());
        let hears = |documents: &[Value]| {
            let mut guard = guard("mode = \"enforce\"").0.unwrap();
            documents.iter().any(|document| guard.hear(document, SystemTime::UNIX_EPOCH))
        };
        let parts = json!({"output": [{"type": "message", "content": [{"text": first}]}, {"type": "function_call", "arguments": second}]});
        assert!(hears(&[parts]));
        assert!(!hears(&[json!({"output": [{"type": "message", "content": [{"text": first}]}]})]));
        // The end of one telling and the beginning of the next are no one text.
        let far = format!("{second} {} {first}", "and so on it went from day to day ".repeat(400));
        let told = [
            json!({"type": "response.output_text.delta", "delta": far}),
            json!({"type": "response.output_text.done", "text": far}),
            json!({"type": "response.content_part.done", "part": {"text": far}}),
            json!({"type": "response.completed", "response": {"output": [{"content": [{"text": far}]}]}}),
        ];
        assert!(!hears(&told));
        // What the caller said himself is repeated to him.
        assert!(!hears(&[json!({"type": "response.created", "response": {"instructions": PROMPT, "output": []}})]));
        assert!(hears(&[json!({"type": "response.created", "response": {"instructions": [{"content": PROMPT}], "output": []}})]));
    }

    #[test]
    fn choices_are_watched_apart_and_no_more_than_may_be_asked_for() {
        let mut guard = guard("mode = \"enforce\"").0.unwrap();
        let half = |choice: u64, half: &str| json!({"choices": [{"index": choice, "delta": {"content": half}}]});
        let (first, second) = PROMPT.split_at(PROMPT.len() / 2);
        for choice in 0..MOST_CHOICES {
            let half = half(choice, if choice % 2 == 0 { first } else { second });
            assert!(!guard.hear(&half, SystemTime::UNIX_EPOCH));
        }
        assert_eq!(guard.streams.len() as u64, MOST_CHOICES);
        assert!(guard.hear(&half(MOST_CHOICES, second), SystemTime::UNIX_EPOCH), "it is taken together with the first");
        (0..1_000).for_each(|time| {
            let event = json!({"type": format!("response.{time}.done"), "text": "hello"});
            assert!(!guard.hear(&event, SystemTime::UNIX_EPOCH));
        });
        assert_eq!(guard.streams.len(), MOST_STREAMS);
    }
}
