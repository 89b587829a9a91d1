//! The sixth stop: what the input says of the one who sends it, beside what was asked before.
//!
//! Its value is the [`Cleared`]: an input, and the care with which to answer it.
//!
//! Signals come in families, one file each. A family weighs a request and says what it finds; whether that is acted upon is the
//! policy's mode, which is applied here, once for all families.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use serde_json::{Value, json};
use toml::Spanned;

use self::language::callers::{Callers, Campaign, Listener};
use self::language::guard::Guard;
use self::price::{Brought, Desk, Price};
use crate::budget::gate::{Gate, MOST_ENTRIES, locked};
use crate::check::{Input, Request};
use crate::clock::Moment;
use crate::event::{Event, Events, Name};
use crate::heavy;
use crate::mistake::Mistake;
use crate::mode::Mode;
use crate::secret::{Secret, Shared};
use crate::trail::{Stop, Trail, Verdict, Who};
use crate::wire::oip::InferRequest;
use crate::wire::tensor;

pub mod cohorts;
pub mod distinct;
pub mod exposure;
pub mod kept;
mod known;
pub mod language;
mod meaning;
pub mod parameters;
pub mod precision;
pub mod price;
pub mod recording;
pub mod response;
mod terms;
pub mod text;
pub mod vectors;
pub mod watch;

pub(crate) use known::Known;
use vectors::Sight;
use watch::{Cohort, Exposure, Lesson, MOST_WATCHED, Manner, Room, Step, Studies};

pub use terms::{Config, Terms};

/// The most decimals that anything is rounded to: more than a 64-bit number tells.
pub(crate) const MOST_DECIMALS: u8 = 15;

/// How an answer is to be shaped before it leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Care {
    /// Round probabilities and log-probabilities to so many decimals.
    pub decimals: Option<u8>,
    /// Leave log-probabilities out.
    pub without_logprobs: bool,
    /// What else is done to probabilities and embeddings.
    pub response: response::Response,
}

impl Care {
    /// The greater care of two.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let decimals = [self.decimals, other.decimals].into_iter().flatten().min();
        let without_logprobs = self.without_logprobs || other.without_logprobs;
        Self { decimals, without_logprobs, response: self.response.and(other.response) }
    }
}

/// An input that detectors have weighed.
#[derive(Debug)]
pub struct Cleared {
    input: Input,
    care: Care,
    guard: Option<Box<Guard>>,
    listener: Option<Listener>,
    lesson: Option<Lesson>,
    sight: Option<Sight>,
}

impl Cleared {
    /// The input.
    #[must_use]
    pub fn input(&self) -> &Input {
        &self.input
    }

    /// The input, to settle its permit.
    pub fn input_mut(&mut self) -> &mut Input {
        &mut self.input
    }

    /// The care.
    #[must_use]
    pub fn care(&self) -> Care {
        self.care
    }

    /// What watches the answer, where there is anything to watch for.
    pub fn take_guard(&mut self) -> Option<Box<Guard>> {
        self.guard.take()
    }

    /// What hears how long the answer is, where anything does.
    pub fn take_listener(&mut self) -> Option<Listener> {
        self.listener.take()
    }

    /// What is to be learned of embeddings in its answer.
    pub fn take_sight(&mut self) -> Option<Sight> {
        self.sight.take()
    }

    /// Its parts; with them what is to be learned of its answer.
    #[must_use]
    pub fn into_parts(self) -> (Input, Care, Option<Lesson>) {
        (self.input, self.care, self.lesson)
    }
}

/// The mode of detectors of which the policy says none: what they would do is worth a look before they do it.
pub const DEFAULT_MODE: Mode = Mode::Shadow;

fn decimals(decimals: Option<&Spanned<u8>>, mistakes: &mut Vec<Mistake>) -> Option<u8> {
    let decimals = decimals?;
    if *decimals.get_ref() > MOST_DECIMALS {
        mistakes.push(Mistake::at(decimals.span(), format!("decimals are from 0 to {MOST_DECIMALS}")));
    }
    Some(*decimals.get_ref())
}

/// One family of signals.
trait Family: std::fmt::Debug + Send + Sync {
    /// Its name in the security log.
    fn name(&self) -> &'static str;

    /// What it says of a request.
    fn weigh(&self, request: &Request) -> Weighed;
}

/// What a family says of a request.
#[derive(Debug, Default)]
struct Weighed {
    /// The care with which to answer, where the family's mode is to enforce.
    care: Care,
    /// What is wrong, if anything.
    finding: Option<Finding>,
}

/// What becomes of a request that nothing refuses out of hand.
#[derive(Debug, Default)]
struct Judged {
    care: Care,
    listener: Option<Listener>,
    lesson: Option<Lesson>,
    /// What it costs, where it costs anything.
    price: Option<Price>,
}

/// Something that is wrong with a request.
#[derive(Debug)]
struct Finding {
    rule: &'static str,
    /// Numbers, for an investigator.
    evidence: Vec<(&'static str, Value)>,
    act: Act,
}

/// What enforcing means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// The answer is shaped with the care that goes with the finding.
    Degrade,
    /// It is told to people.
    Tell,
    /// The request is refused for its parameters.
    RefuseParameters,
    /// The request is refused for the precision of its numbers.
    RefuseStep,
}

/// A refusal. The first two say no more than `check` would of a limit: the rules are fixed and keep no state, so that the caller can mend
/// the request and learns nothing of any detector by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// More log-probabilities or bias entries than may be asked for; `check.parameters`, 400. The rule is for the log.
    CallerAskedForTooMuch(&'static str),
    /// Numbers off the grid of an input; `check.step`, 400. The rule is for the log.
    CallerSentTooFine(&'static str),
    /// The caller is throttled or blocked; `budget.requests`, 429, as for any caller who asks too often.
    CallerAsksTooOften,
    /// The answer costs work that the caller did not bring; `budget.work`, 429. The challenge is for the caller.
    CallerOwesWork(Box<str>),
}

impl Error {
    /// The static code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::CallerAskedForTooMuch(_) => "check.parameters",
            Self::CallerSentTooFine(_) => "check.step",
            Self::CallerAsksTooOften => "budget.requests",
            Self::CallerOwesWork(_) => "budget.work",
        }
    }

    /// The rule that decided, for the log and never for the caller.
    #[must_use]
    pub const fn rule(&self) -> &'static str {
        match self {
            Self::CallerAskedForTooMuch(rule) | Self::CallerSentTooFine(rule) => rule,
            Self::CallerAsksTooOften | Self::CallerOwesWork(_) => "ladder",
        }
    }
}

/// What is remembered of callers. One for the process.
#[derive(Debug)]
pub struct Detector {
    known: Gate<(Arc<str>, Arc<str>), Known>,
    /// Apart from callers: addresses are anybody's, and are not to take the places of those who ask.
    cohorts: Gate<(Arc<str>, Arc<str>), Known>,
    callers: Callers,
    desk: Desk,
    nameless: Arc<str>,
    hasher: RandomState,
    /// By which the space of embeddings is cut.
    secret: Shared,
    /// Where callers and cohorts are watched closely.
    room: Arc<Room>,
    /// Requests that were to be watched, and rows that were to be watched closely, and found no room.
    unwatched: Arc<AtomicU64>,
    /// Where copies are tried that take too long for a request.
    studies: Arc<Studies>,
    origin: Instant,
}

impl Detector {
    /// For 100,000 pairs of caller and model. When more than that are heard of within the hour, new ones are weighed without a count of
    /// their rows, their alarms have no `query`, and they are [not watched](Self::unwatched).
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self::with_capacity(MOST_ENTRIES, now)
    }

    /// The same for `most` pairs.
    #[must_use]
    pub fn with_capacity(most: usize, now: Instant) -> Self {
        let hasher = RandomState::new();
        Self {
            known: Gate::new(most),
            cohorts: Gate::new(most),
            callers: Callers::new(now),
            desk: Desk::new(&Secret::random(32), now),
            nameless: "".into(),
            hasher,
            secret: Shared::random(),
            room: Arc::new(Room::new(MOST_WATCHED)),
            unwatched: Arc::default(),
            studies: Arc::default(),
            origin: now,
        }
    }

    /// Requests whose callers, or one of their cohorts, were not watched, since more than there is room for asked within the hour, or of a language model
    /// within the day; and rows for which there was no place to be watched closely, or that were more than is looked at.
    #[must_use]
    pub fn unwatched(&self) -> u64 {
        self.unwatched.load(Ordering::Relaxed) + self.callers.unwatched()
    }

    /// Copies of callers that were to be tried, and were not yet for want of time.
    #[must_use]
    pub fn unstudied(&self) -> u64 {
        self.studies.missed()
    }

    /// Callers and cohorts that are watched closely.
    #[must_use]
    pub fn watched(&self) -> usize {
        self.room.taken()
    }

    /// Where answers are paid for.
    #[must_use]
    pub fn desk(&self) -> &Desk {
        &self.desk
    }

    /// What every caller may have learned of each model it asked, as of now, and every cohort of several callers under its own name
    /// (`tenant:`, `family:` or `address:`); those with nothing left out. It waits for those who are being learned from, and of callers none for it.
    #[must_use]
    pub fn exposed(&self) -> Vec<Exposed> {
        let exposed = |((caller, model), known): ((Arc<str>, Arc<str>), Arc<Known>)| {
            let (exposure, step) = {
                let pupil = locked(&known.pupil);
                (pupil.exposure(), pupil.step())
            };
            (exposure.rows > 0 || step > Step::Observe).then_some(Exposed { caller, model, step, exposure })
        };
        self.known.each().chain(self.cohorts.each()).filter_map(exposed).collect()
    }

    /// Weighs an input. What a family finds is told as `detect.alarm`; in shadow it leaves a shadowed step on the trail and nothing else.
    /// The step with which the stop passes or refuses is the pipeline's to write. `work` is looked at only where the answer costs some.
    ///
    /// # Errors
    /// The first finding that is enforced by refusing, and work that is owed.
    pub async fn weigh(
        &self,
        input: Input,
        terms: &Terms,
        work: &Brought,
        trail: &mut Trail,
        events: &Events,
        now: Moment,
    ) -> Result<Cleared, Error> {
        let grant = input.permit().grant();
        let who = &grant.caller().identity().who;
        let model = grant.which().map(|which| &which.name);
        let request = input.request();
        let look = || {
            let judged = self.judge(who, model, request, terms, trail, events, now)?;
            let sight = self.sight(who, model, request, terms, trail, events, now);
            let guard = match (&terms.guards, request) {
                (Some(guards), Request::Language(asked)) => guards.guard(&asked.said, || alarm(who, model, trail, now), events),
                _ => None,
            };
            Ok((judged, sight, guard))
        };
        let (Judged { mut care, listener, lesson, price }, sight, guard) = heavy::work(input.bytes().len(), look).await?;
        if let Some(sight) = sight.as_ref().filter(|sight| sight.enforced) {
            care = care.and(vectors::care(&sight.known.seen_vectors, &self.secret));
        }
        if let Some(price) = price {
            self.collect(&price, work, now).await?;
        }
        if let (Some(recording), Some(tensors)) = (&terms.recording, input.request().tensors()) {
            recording.take(&input.permit().grant().caller().identity().who, tensors, now.wall);
        }
        Ok(Cleared { input, care, guard, listener, lesson, sight })
    }

    /// Takes the work that an answer costs. Whatever is wrong with it, the caller is told no more than what to do next.
    async fn collect(&self, price: &Price, work: &Brought, now: Moment) -> Result<(), Error> {
        // Since the request's head came, much time may have passed with its body.
        let now = if Instant::now() > now.mono { Moment::now() } else { now };
        let taken = self.desk.take(work, price, now).await;
        taken.map_err(|_| Error::CallerOwesWork(self.desk.ask(price, now).into()))
    }

    /// Looks at what callers of language models did together, and tells of campaigns. It takes up to a second or two of one processor, and no request waits
    /// for it: to be called every quarter of an hour, where blocking is allowed.
    pub fn look_across(&self, events: &Events, now: Moment) {
        for Campaign { family, rule, mode, model, cohort: (name, callers), by: (by, count), evidence } in self.callers.look(now) {
            let names = by.iter().map(|who| &*who.caller).collect::<Value>();
            let more = [("by", count.into()), ("callers", names)];
            let evidence = evidence.into_iter().chain(more).map(|(key, value)| (key.to_owned(), value)).collect();
            let mut event = meaning::of(family, Event::new(Name::DetectAlarm, now.wall))
                .with("cohort", json!({ "name": name, "callers": callers }))
                .with("evidence", Value::Object(evidence))
                .with("step", if mode == Mode::Enforce { "alert" } else { "observe" });
            event.rule = Some(rule.into());
            event.model = Some(model);
            let tenant = by.first().map(|who| who.tenant.clone());
            event.tenant = tenant.filter(|tenant| by.len() == count && by.iter().all(|who| who.tenant == *tenant));
            events.tell(event);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "they are the parts of the input that families may see, and where findings go")]
    fn judge(
        &self,
        who: &Arc<Who>,
        model: Option<&Arc<str>>,
        request: &Request,
        terms: &Terms,
        trail: &mut Trail,
        events: &Events,
        now: Moment,
    ) -> Result<Judged, Error> {
        if terms.families.is_empty() && terms.watch.is_none() && terms.callers.are_off() || matches!(request, Request::Nothing) {
            return Ok(Judged::default());
        }
        let rows = rows(request);
        let (known, query) = self.count(who, model, rows, now.mono).unzip();
        let (mut care, address) = (Care::default(), trail.address);
        let families = terms.families.iter().map(|(mode, family)| (*mode, family.name(), family.weigh(request)));
        // Not before the families that keep no state: what they refuse teaches nothing of the caller.
        let mut listener = None;
        let callers = std::iter::once_with(|| match request {
            Request::Language(asked) => {
                let model = model.unwrap_or(&self.nameless).clone();
                let (found, listens) = self.callers.weigh((who, address), model, asked, terms.callers, now);
                listener = listens;
                found
            }
            _ => Vec::new(),
        });
        for (mode, family, weighed) in families.chain(callers.flatten()) {
            let enforced = mode == Mode::Enforce;
            if enforced {
                care = care.and(weighed.care);
            }
            let Some(finding) = weighed.finding else { continue };
            let step = match (enforced, finding.act) {
                (false, _) => "observe",
                (true, Act::Degrade) => "degrade",
                (true, Act::Tell) => "alert",
                (true, Act::RefuseParameters | Act::RefuseStep) => "refuse",
            };
            let mut event = meaning::of(family, alarm(who, model, trail, now));
            if let Some(query) = query {
                event = event.with("query", query);
            }
            let evidence = finding.evidence.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            event = event.with("evidence", Value::Object(evidence)).with("step", step);
            event.rule = Some(finding.rule.into());
            match (enforced, finding.act) {
                (true, Act::RefuseParameters) => event.code = Some("check.parameters"),
                (true, Act::RefuseStep) => event.code = Some("check.step"),
                (true, Act::Degrade | Act::Tell) => {}
                (false, _) => trail.step(Stop::Detect, Verdict::Shadowed, event.rule.clone(), now.mono, now.mono),
            }
            events.tell(event);
            match (enforced, finding.act) {
                (true, Act::RefuseParameters) => return Err(Error::CallerAskedForTooMuch(finding.rule)),
                (true, Act::RefuseStep) => return Err(Error::CallerSentTooFine(finding.rule)),
                (true, Act::Degrade | Act::Tell) | (false, _) => {}
            }
        }
        let Some(watch) = &terms.watch else { return Ok(Judged { care, listener, ..Judged::default() }) };
        let (Some(known), Some(query)) = (known, query) else {
            // Nobody is refused for the number of others; that it happens is told.
            self.unwatched.fetch_add(1, Ordering::Relaxed);
            return Ok(Judged { care, listener, ..Judged::default() });
        };
        let first = query.saturating_sub(rows) + 1;
        // The output that is explained, and what the model is asked beside each row for that; among the rows they are counted already.
        let (explained, more) = match request {
            Request::Explain(explanation) => (explanation.output.as_str(), explanation.evaluations() / explanation.rows.max(1)),
            _ => ("", 0),
        };
        let named = request.tensors().map_or(&[][..], |request| &request.outputs).iter().map(|output| &*output.name);
        let beside = Some(explained).filter(|explained| !explained.is_empty() && named.len() > 0);
        let bits = watch.most(named.chain(beside));
        // A step that comes with one row of a batch holds for all of it.
        let (manner, moved, held) = watch.manner_of(&known, (rows, bits), query, now.mono);
        if let Some((from, to)) = moved {
            watch::tell_moved(who, model, trail.id, (from, to), events, now);
        }
        let (lessened, price) = match manner {
            Manner::With(care) => (care, None),
            Manner::ForWork(care) => {
                let rows = u32::try_from(rows).unwrap_or(u32::MAX);
                let (caller, model) = (who.caller.clone(), model.unwrap_or(&self.nameless).clone());
                (care, Some(Price { caller, model, rows, due: watch.due(&known.pupil, rows) }))
            }
            Manner::NotNow => return Err(Error::CallerAsksTooOften),
        };
        let lesson = request.tensors().map(|request| Lesson {
            watch: watch.clone(),
            pupil: known,
            room: self.room.clone(),
            unwatched: self.unwatched.clone(),
            studies: self.studies.clone(),
            full: AtomicBool::default(),
            cohorts: self.cohorts(who, model, trail.address, terms, now.mono),
            caller: self.hasher.hash_one(&who.caller),
            inputs: request.inputs.clone(),
            first,
            more: u32::try_from(more).unwrap_or(u32::MAX),
            explained: explained.into(),
            who: who.clone(),
            model: model.cloned(),
            receipt: trail.id,
            events: events.clone(),
            at: now,
            _held: held,
        });
        Ok(Judged { care: care.and(lessened), listener, lesson, price })
    }

    /// What is to be learned of the embeddings that a request asks for, if there may be any.
    #[expect(clippy::too_many_arguments, reason = "they are the parts of the input that families may see, and where findings go")]
    fn sight(
        &self,
        who: &Arc<Who>,
        model: Option<&Arc<str>>,
        request: &Request,
        terms: &Terms,
        trail: &Trail,
        events: &Events,
        at: Moment,
    ) -> Option<Sight> {
        let mode = terms.vectors.filter(|mode| *mode != Mode::Off)?;
        request.tensors()?;
        let known = self.entry(&self.known, who.caller.clone(), model, at.mono);
        // Of a calibrated model it was counted when it was judged.
        if known.is_none() && terms.watch.is_none() {
            self.unwatched.fetch_add(1, Ordering::Relaxed);
        }
        Some(Sight {
            known: known?,
            secret: self.secret.clone(),
            enforced: mode == Mode::Enforce,
            who: who.clone(),
            model: model.cloned(),
            receipt: trail.id,
            events: events.clone(),
            at,
        })
    }

    /// Counts `rows` more, and tells the number of the last of them: a request is judged when all of its rows are known.
    fn count(&self, who: &Who, model: Option<&Arc<str>>, rows: u64, now: Instant) -> Option<(Arc<Known>, u64)> {
        let entry = self.entry(&self.known, who.caller.clone(), model, now)?;
        let before = entry.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| Some(count.saturating_add(rows)));
        let count = before.unwrap_or_else(|count| count).saturating_add(rows);
        Some((entry, count))
    }

    fn entry(
        &self,
        gate: &Gate<(Arc<str>, Arc<str>), Known>,
        name: Arc<str>,
        model: Option<&Arc<str>>,
        now: Instant,
    ) -> Option<Arc<Known>> {
        let entry = gate.entry((name, model.unwrap_or(&self.nameless).clone()), now, || Known::new(self.origin))?;
        entry.see(now);
        Some(entry)
    }

    /// The cohorts of a caller for which there is room.
    fn cohorts(&self, who: &Who, model: Option<&Arc<str>>, address: IpAddr, terms: &Terms, now: Instant) -> Vec<Cohort> {
        let cohorts = terms.cohorts.of(who, address).into_iter().filter_map(|(kind, name)| {
            let name: Arc<str> = name.into();
            let known = self.entry(&self.cohorts, name.clone(), model, now);
            if known.is_none() {
                self.unwatched.fetch_add(1, Ordering::Relaxed);
            }
            Some(Cohort { kind, known: known?, name })
        });
        cohorts.collect()
    }
}

/// An alarm about a request, without what it is about.
fn alarm(who: &Who, model: Option<&Arc<str>>, trail: &Trail, now: Moment) -> Event {
    let mut event = Event::new(Name::DetectAlarm, now.wall);
    event.caller = Some(who.caller.clone());
    event.tenant = Some(who.tenant.clone());
    event.model = model.cloned();
    event.receipt = Some(trail.id);
    event
}

/// How many rows a request asks about: the longest first dimension of its tensors, else one. An explanation tells of the model what the rows
/// tell that it is asked about for it, and they count.
fn rows(request: &Request) -> u64 {
    if let Request::Explain(explanation) = request {
        return explanation.rows.max(1).saturating_add(explanation.evaluations());
    }
    request.tensors().map_or(1, rows_of)
}

fn rows_of(tensors: &InferRequest) -> u64 {
    tensor::rows(&tensors.inputs).max(1) as u64
}

/// How a caller of a model stands.
#[derive(Clone, Debug)]
pub struct Exposed {
    /// The caller.
    pub caller: Arc<str>,
    /// The model.
    pub model: Arc<str>,
    /// The step of the ladder.
    pub step: Step,
    /// How much of the model it may have.
    pub exposure: Exposure,
}

#[cfg(test)]
mod tests;
