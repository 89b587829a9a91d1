//! `[detect.bias]`, `[detect.distillation]`, `[detect.probing]`: what callers ask of language models over time. One value for the process.
//!
//! These families tell people; of them only a budget of biased tokens refuses anything, as any budget does. What moves a caller on the ladder is decided elsewhere, by
//! more than one family.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::bias::{self, Biases};
use super::cohorts::Bounds;
use super::distillation::{self, Signs};
use super::habits::{self, Habits};
use super::phrases;
use super::templates::{Met, Templates};
use crate::budget::gate::{Gate, State};
use crate::clock::Moment;
use crate::detect::cohorts::Kinds;
use crate::detect::text::Key;
use crate::detect::text::skeleton::Skeleton;
use crate::detect::text::sketch::sketch;
use crate::detect::{Act, Care, Finding, Mode, Weighed};
use crate::trail::{Usage, Who};
use crate::wire::Asked;

mod look;

pub(in crate::detect) use look::Campaign;

/// Callers of language models that are remembered, for each model that they ask: 2,000 bytes each at first, [half a KiB](habits::MOST_BYTES) more for who
/// asks more than [`habits::FIRST`] prompts, 3.5 KiB more for who biases.
const MOST: usize = 20_000;

/// A caller that has not been heard of for so long may be forgotten, when there is need of room; before, the longest silent of those against whom
/// nothing stands.
const FORGET_AFTER: Duration = Duration::from_secs(86_400);

/// The part of a budget of biases from which on who has spent it gives way to nobody.
const EVIDENCE_OF_BUDGET: f64 = 0.1;

/// The weight of a window at which it is told.
pub const DISTILLS: f64 = 0.5;

/// The share of the last prompts that probe, from which on it is told.
pub const PROBES: f64 = 0.5;

/// Prompts before probing is told.
pub const PATIENCE: u32 = 8;

/// The last prompts that the share is of.
const LAST: f64 = 32.0;

/// `[detect.bias]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BiasConfig {
    /// Its mode; the mode of `[detect]` where it is left out.
    pub mode: Option<Mode>,
    /// How many distinct tokens a caller may bias, as long as it is remembered; no budget where it is left out.
    pub budget: Option<u64>,
}

/// `[detect.distillation]`, `[detect.probing]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WindowConfig {
    /// Its mode; the mode of `[detect]` where it is left out.
    pub mode: Option<Mode>,
}

/// The rules in force for one model.
#[derive(Clone, Copy, Debug)]
pub(in crate::detect) struct Rules {
    pub(in crate::detect) bias: Mode,
    pub(in crate::detect) budget: Option<u64>,
    pub(in crate::detect) distillation: Mode,
    pub(in crate::detect) probing: Mode,
    /// What joins callers whose evidence adds up.
    pub(in crate::detect) kinds: Kinds,
    /// How alike those must be who are joined by that.
    pub(in crate::detect) alike: Bounds,
}

impl Default for Rules {
    fn default() -> Self {
        let (kinds, alike) = (Kinds::default(), Bounds::default());
        Self { bias: Mode::Off, budget: None, distillation: Mode::Off, probing: Mode::Off, kinds, alike }
    }
}

impl Rules {
    pub(in crate::detect) fn are_off(&self) -> bool {
        [self.bias, self.distillation, self.probing].iter().all(|mode| *mode == Mode::Off)
    }
}

/// What is remembered of all callers of language models.
#[derive(Debug)]
pub(in crate::detect) struct Callers {
    key: Key,
    templates: Templates,
    callers: Gate<(Arc<str>, Arc<str>), Caller>,
    /// Requests of callers for whom there was no room.
    unwatched: AtomicU64,
    origin: Instant,
}

#[derive(Debug)]
struct Caller {
    /// Keyed digests of its name, and of the model's.
    digests: [u64; 2],
    known: Mutex<Known>,
    /// Seconds since the origin.
    seen: AtomicU64,
    origin: Instant,
}

#[derive(Debug, Default)]
struct Known {
    biases: Option<Box<Biases>>,
    window: distillation::Window,
    probing: f64,
    prompts: u32,
    habits: Option<Box<Habits>>,
    /// How many distinct tokens it may bias as one of a cohort that has spent the budget of one caller.
    share: Option<u64>,
    /// How far its biases have come: to the end of a budget, or to being told.
    biased: f64,
    /// What has been told, until it is no longer so.
    told: Told,
}

#[derive(Debug, Default)]
struct Told {
    bias: bool,
    distillation: bool,
    probing: bool,
}

impl State for Caller {
    fn is_idle(&self, now: Instant) -> bool {
        let seen = self.origin + Duration::from_secs(self.seen.load(Ordering::Relaxed));
        now.saturating_duration_since(seen) > FORGET_AFTER
    }

    fn gives_way(&self) -> Option<u64> {
        // Whoever is just asking is not silent.
        let known = match self.known.try_lock() {
            Ok(known) => known,
            Err(TryLockError::Poisoned(known)) => known.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        (!known.has_evidence()).then(|| self.seen.load(Ordering::Relaxed))
    }
}

impl Callers {
    pub(in crate::detect) fn new(now: Instant) -> Self {
        Self { key: Key::random(), templates: Templates::new(), callers: Gate::new(MOST), unwatched: AtomicU64::new(0), origin: now }
    }

    /// Requests that nobody weighed, since there was no room for their callers.
    pub(in crate::detect) fn unwatched(&self) -> u64 {
        self.unwatched.load(Ordering::Relaxed)
    }

    /// What the families say of a request, each with its name and its mode; and who waits to hear how long the answer is, where a family asks. When
    /// there is no room for a new caller, it is counted, and what a budget would have to be kept of is past it.
    pub(in crate::detect) fn weigh(
        &self,
        (who, address): (&Arc<Who>, IpAddr),
        model: Arc<str>,
        asked: &Asked,
        rules: Rules,
        now: Moment,
    ) -> (Vec<(Mode, &'static str, Weighed)>, Option<Listener>) {
        let make = || Caller {
            digests: [&who.caller, &model].map(|name| self.key.digest([name.as_bytes()])),
            known: Mutex::default(),
            seen: AtomicU64::new(0),
            origin: self.origin,
        };
        if rules.are_off() {
            return (Vec::new(), None);
        }
        let Some(caller) = self.callers.entry((who.caller.clone(), model.clone()), now.mono, make) else {
            self.unwatched.fetch_add(1, Ordering::Relaxed);
            let bounded = rules.bias == Mode::Enforce && rules.budget.is_some() && !asked.said.bias.is_empty();
            let evidence = vec![("unwatched", true.into())];
            let finding = bounded.then(|| Finding { rule: "bias.budget", evidence, act: Act::RefuseParameters });
            let weighed = finding.map(|finding| (rules.bias, "bias", Weighed { care: Care::default(), finding: Some(finding) }));
            return (weighed.into_iter().collect(), None);
        };
        caller.seen.fetch_max(now.mono.saturating_duration_since(self.origin).as_secs(), Ordering::Relaxed);
        // What is known is whole between its statements, so that what another thread left may be used.
        let mut known = caller.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        let mut find = |mode: Mode, name, finding| found.push((mode, name, Weighed { care: Care::default(), finding: Some(finding) }));
        if rules.bias != Mode::Off && !asked.said.bias.is_empty() {
            known.bias(&self.key, asked, rules.budget).into_iter().for_each(|finding| find(rules.bias, "bias", finding));
        }
        if asked.said.prompt.is_empty() {
            return (found, None);
        }
        let phrases = phrases::found(&asked.said.prompt);
        known.prompts = known.prompts.saturating_add(1);
        if rules.kinds.is_empty() {
            known.habits = None;
        } else if known.prompts > habits::FIRST {
            let habits = known.habits.get_or_insert_with(|| Box::new(Habits::new(who.clone(), address, rules)));
            (habits.address, habits.rules) = (address, rules);
            habits.ask(&sketch(&self.key, &asked.said.prompt), habits::span(now));
        }
        if rules.distillation != Mode::Off {
            let skeleton = Skeleton::of(&self.key, &asked.said.prompt);
            let at = now.unix_nanos() / 1_000_000;
            known.window.ask(&distillation::Prompt { skeleton: &skeleton, found: phrases, temperature: asked.said.temperature, at });
            let [name, place] = caller.digests;
            let met = self.templates.meet(&skeleton.bands.map(|band| band ^ place), name, now.unix_seconds());
            known.distillation(met).into_iter().for_each(|finding| find(rules.distillation, "distillation", finding));
        }
        if rules.probing != Mode::Off {
            known.probing(phrases.probing()).into_iter().for_each(|finding| find(rules.probing, "probing", finding));
        }
        drop(known);
        (found, (rules.distillation != Mode::Off).then_some(Listener(caller)))
    }
}

/// Waits to hear how long the answer to a prompt is.
#[derive(Debug)]
pub struct Listener(Arc<Caller>);

impl Listener {
    /// Hears it, where the model's server told. It weighs with the caller's next prompt.
    pub fn hear(self, usage: Usage) {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner).window.answer(usage.input, usage.output);
    }
}

impl Known {
    /// Whether a new one would not be the same, to speak of: something is told of it or half way to that, or its biases have come some of the way.
    fn has_evidence(&self) -> bool {
        let Told { bias, distillation, probing } = self.told;
        let half = self.window.signs().weight() > DISTILLS / 2.0 || self.probing > PROBES / 2.0;
        bias || distillation || probing || self.share.is_some() || self.biased >= EVIDENCE_OF_BUDGET || half
    }

    fn bias(&mut self, key: &Key, asked: &Asked, budget: Option<u64>) -> Option<Finding> {
        let said = &asked.said;
        let prompt = key.digest(said.instructions.iter().chain([&said.prompt]).map(String::as_bytes));
        let map = said.bias.iter().map(|(token, bias)| (token.as_str(), *bias));
        let mut seen = self.biases.get_or_insert_default().see(key, prompt, map, asked.max_tokens);
        // What is not read is not counted: it would be past any budget, and no honest list is as long.
        let unread = asked.logit_bias.saturating_sub(said.bias.len());
        if unread > 0 {
            seen.weight = 1.0;
        }
        let spent = budget.map_or(0.0, |budget| seen.tokens / (budget as f64).max(1.0));
        self.biased = self.biased.max(spent).max(seen.weight).max(seen.maps as f64 / bias::MAPS as f64);
        let mut evidence = vec![("tokens", whole(seen.tokens)), ("varied", whole(seen.varied)), ("maps", (seen.maps as u64).into())];
        if unread > 0 {
            evidence.push(("unread", (unread as u64).into()));
        }
        if let Some(budget) = budget.filter(|budget| unread > 0 || seen.has_spent(self.share.unwrap_or(u64::MAX).min(*budget))) {
            let rule = if unread > 0 || seen.has_spent(budget) { "bias.budget" } else { "bias.share" };
            return Some(Finding { rule, evidence, act: Act::RefuseParameters });
        }
        let rule = if seen.maps >= bias::MAPS { "bias.maps" } else { "bias.tokens" };
        once(&mut self.told.bias, seen.weight >= 1.0, false).then(|| Finding { rule, evidence, act: Act::Tell })
    }

    fn distillation(&mut self, met: Option<Met>) -> Option<Finding> {
        let signs = self.window.signs();
        let Signs { repetition, elicitation, length, pinned, pace, hours } = signs;
        // One template with hundreds of callers, each of which repeats it, is a campaign whatever it asks for.
        let (alone, shared) = (signs.weight(), repetition * met.map_or(0.0, |met| met.weight()));
        let evidence = || {
            let shares = [
                ("repetition", repetition),
                ("elicitation", elicitation),
                ("length", length),
                ("pinned", pinned),
                ("pace", pace),
                ("hours", hours),
            ];
            let callers = ("callers", whole(met.map_or(0.0, |met| met.callers)));
            shares.into_iter().map(|(name, share)| (name, hundredths(share))).chain([callers]).collect()
        };
        let weight = alone.max(shared);
        let rule = if shared > alone { "distillation.template" } else { "distillation.window" };
        once(&mut self.told.distillation, weight >= DISTILLS, weight > DISTILLS / 2.0).then(|| Finding {
            rule,
            evidence: evidence(),
            act: Act::Tell,
        })
    }

    fn probing(&mut self, probing: f64) -> Option<Finding> {
        self.probing += (probing - self.probing) / f64::from(self.prompts).min(LAST);
        let many = self.prompts >= PATIENCE && self.probing >= PROBES;
        once(&mut self.told.probing, many, self.probing > PROBES / 2.0).then(|| Finding {
            rule: "probing.phrases",
            evidence: vec![("share", hundredths(self.probing))],
            act: Act::Tell,
        })
    }
}

/// Whether to tell: what was told is not told again for as long as it `lasts`.
fn once(told: &mut bool, is: bool, lasts: bool) -> bool {
    let tell = is && !*told;
    *told = is || *told && lasts;
    tell
}

fn hundredths(share: f64) -> serde_json::Value {
    ((share * 100.0).round() / 100.0).into()
}

fn whole(number: f64) -> serde_json::Value {
    (number.round() as u64).into()
}

#[cfg(test)]
mod tests;
