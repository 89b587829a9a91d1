//! `[detect.leak]`: watches what a model says for its instructions and for canaries, and ends the answer where the policy says so.
//!
//! An answer that is ended looks as one that a filter of the model's own server stopped, which clients know: it says neither which filter it was, nor why.

use std::sync::Arc;
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::Value;
use toml::Spanned;

use super::leak::{self, Guarded, Leak, Stream};
use crate::detect::{Mode, meaning};
use crate::event::{Event, Events};
use crate::mistake::Mistake;
use crate::wire::Said;
use crate::wire::said::{Speaker, answered};

/// Choices of one answer that are told apart, and what each says aside; those with higher numbers are taken together with lower ones.
pub const MOST_CHOICES: usize = 16;

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
    /// Instructions that stand in no request: those the model's server adds. The instructions of a request are guarded in any case.
    pub system_prompts: Vec<String>,
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
        if let Some(canary) = self.canaries.get(leak::MOST_CANARIES) {
            mistakes.push(Mistake::at(canary.span(), format!("there are at most {} canaries", leak::MOST_CANARIES)));
        }
        for canary in &self.canaries {
            if !(leak::CANARY_MIN..=leak::CANARY_MAX).contains(&canary.get_ref().len()) {
                mistakes.push(Mistake::at(canary.span(), format!("a canary has {} to {} bytes", leak::CANARY_MIN, leak::CANARY_MAX)));
            }
        }
        let canaries = self.canaries.iter().map(|canary| canary.get_ref().clone()).collect();
        let mode = self.mode.unwrap_or(mode);
        let guards = Guards { enforced: mode == Mode::Enforce, flag, cut, system_prompts: self.system_prompts.clone(), canaries };
        (mode != Mode::Off).then_some(guards)
    }
}

impl Guards {
    /// The guard of one answer, which tells of what it finds by `alarm`, filled in; nothing where there is nothing to look for.
    pub(in crate::detect) fn guard(&self, said: &Said, alarm: impl FnOnce() -> Event, events: &Events) -> Option<Box<Guard>> {
        let texts = self.system_prompts.iter().chain(&said.instructions).map(String::as_str);
        let guarded = Guarded::new(texts, self.canaries.iter().map(String::as_str));
        if guarded.is_empty() {
            return None;
        }
        let (guarded, speakers) = (Arc::new(guarded), Vec::new());
        let (alarm, events) = (alarm(), events.clone());
        Some(Box::new(Guard { guarded, speakers, enforced: self.enforced, flag: self.flag, cut: self.cut, told: None, alarm, events }))
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
    speakers: Vec<(Speaker, Stream)>,
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
        answered(document, |speaker, text| stage = stage.max(self.pass(speaker, text, now)));
        self.enforced && stage == Some(Stage::Cut)
    }

    fn pass(&mut self, (choice, aside): Speaker, text: &str, now: SystemTime) -> Option<Stage> {
        let speaker = (choice % MOST_CHOICES as u64, aside);
        let place = self.speakers.iter().position(|(known, _)| *known == speaker).unwrap_or_else(|| {
            self.speakers.push((speaker, Stream::new(self.guarded.clone())));
            self.speakers.len() - 1
        });
        let leak = self.speakers[place].1.pass(text);
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
        let many = |count: usize| format!("canaries = {:?}", vec!["12345678"; count]);
        assert_eq!((mistakes(&many(leak::MOST_CANARIES)), mistakes(&many(leak::MOST_CANARIES + 1))), (0, 1));
    }

    #[test]
    fn choices_are_watched_apart_and_no_more_than_sixteen() {
        let mut guard = guard("mode = \"enforce\"").0.unwrap();
        for choice in 0..100 {
            let chunk = json!({"choices": [{"index": choice, "delta": {"content": "hello", "name": "f"}}]});
            assert!(!guard.hear(&chunk, SystemTime::UNIX_EPOCH));
        }
        assert_eq!(guard.speakers.len(), 2 * MOST_CHOICES);
    }
}
