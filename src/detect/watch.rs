//! Watching what callers ask and are told: families of evidence, each bet on, in bounds that honest callers taught.
//!
//! [`Watch`] is what a model's policy says of it, [`Pupil`] what is known of one caller of one model, and [`Lesson`] what a request leaves to be
//! learned once its answer is known.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use serde::Deserialize;
use toml::Spanned;

use super::response::{Level, Response, Seed, Shaping};
use super::text::Key;
use super::text::substitution::Tokens;
use super::{Care, Known};
use crate::budget::gate::locked;
use crate::check::Contract;
use crate::clock::Moment;
use crate::digest::Digest;
use crate::event::{Event, Events, Name};
use crate::mistake::Mistake;
use crate::secret::Shared;
use crate::trail::Who;
use crate::unit::Span;
use crate::wire::tensor::{Datatype, Tensor};

mod awaited;
mod bounds;
mod calibrate;
mod cohort;
mod crowd;
mod due;
mod exact;
mod families;
#[cfg(test)]
mod figures;
pub(super) mod kept;
mod ladder;
mod lesson;
mod living;
mod loss;
mod near;
pub(super) mod noise;
mod room;
pub(super) mod rows;
mod space;
mod state;
mod study;
mod telling;
mod texts;
mod together;
mod wealth;

pub(super) use awaited::Held;
pub(super) use cohort::KINDS;
pub use ladder::Step;
pub use lesson::Lesson;
pub use loss::{Config as Exposing, Exposure};
pub(super) use room::{MOST as MOST_WATCHED, Room};
pub(super) use study::Studies;
pub(super) use together::Cohort;

use awaited::{Awaited, Most};
use bounds::{Calibration, Of, text_key};
use calibrate::Asked;
use cohort::{Company, Part};
use crowd::{Counted, Crowd};
use families::Reach;
use ladder::{Ladder, Rungs, Taken};
use living::Living;
use loss::{Budgets, Kept, Loss};
use noise::Noise;
use rows::{Rows, Told};
use state::State;
use together::Members;
use wealth::CEILING;

/// Rows after which a step comes, at least and at most: so many that nobody can tell which row it came for.
const DELAY: [u64; 2] = [5, 60];

/// After so long without evidence a caller is a step better off.
const CALM: Duration = Duration::from_secs(24 * 3_600);

/// The natural logarithm of the wealth from which on it is evidence that is not forgotten.
const EVIDENCE: f32 = 2.0;

/// Where a caller comes to whose budget of exposure is spent, and from where no calm takes it away; to [`Step::Price`] where answers have one.
const SPENT: Step = Step::Degrade;

/// Of so many requests of a caller that is throttled one is let through, and nobody can tell which it will be.
const ONE_IN: u64 = 4;

/// The part of a budget from which on what it bounds is evidence that is not forgotten.
const EVIDENCE_OF_BUDGET: f64 = 0.1;

/// `[detect.ladder]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The last step that is taken; where it is left out, `price` if answers have one and else `degrade`.
    pub most: Option<Spanned<Step>>,
    /// Whether answers may cost work, between `degrade` and `quarantine`; no, where it is left out and `most` is not `price`.
    pub price: Option<Spanned<bool>>,
    /// How long a caller must be without new evidence to be a step better off; 24 hours where it is left out.
    pub calm: Option<Spanned<Span>>,
    /// What the answers at the step `degrade` are; `labels` where it is left out.
    pub degrade: Lessening,
}

/// How answers tell less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lessening {
    /// The best class alone.
    #[default]
    Labels,
    /// The nearest of few answers (ModelGuard-S).
    Quantised,
    /// Of several inputs to a sigmoid one (reverse sigmoid).
    ReverseSigmoid,
    /// Scores that lead a search by scores astray (AAA, linear).
    Adversarial,
}

impl Lessening {
    const fn shaping(self) -> Shaping {
        match self {
            Self::Labels => Shaping::LabelOnly,
            Self::Quantised => Shaping::Quantised(Level::MOST),
            Self::ReverseSigmoid => Shaping::ReverseSigmoid(Level::MOST),
            Self::Adversarial => Shaping::Adversarial,
        }
    }
}

/// What honest callers asked and were told.
#[derive(Debug)]
pub struct Recorded {
    /// Of the space to which it is fitted: texts become rows as they are read.
    seed: Shared,
    key: Key,
    callers: calibrate::Recording,
    numbers: usize,
    /// Requests of numbers, of texts alone, and of both.
    requests: [usize; 3],
}

impl Default for Recorded {
    fn default() -> Self {
        let seed = Shared::random();
        Self { key: text_key(&seed), seed, callers: Vec::new(), numbers: 0, requests: [0; 3] }
    }
}

impl Recorded {
    /// Adds what one of the callers asked, and what it was told.
    pub fn add(&mut self, caller: usize, inputs: &[Tensor], said: &[Tensor]) {
        let (rows, of) = Rows::with_texts(inputs, &self.key);
        self.requests[of as usize] += 1;
        let told = Told::of(said, rows.all());
        if self.callers.len() <= caller {
            self.callers.resize_with(caller + 1, Vec::new);
        }
        self.numbers += rows.numbers.len() + rows.tokens.len() * size_of::<Tokens>() / size_of::<f32>();
        let exact = rows.exact.iter().copied().chain(std::iter::repeat(0));
        let tokens = rows.tokens.iter().map(|tokens| Some(Box::new(tokens.clone()))).chain(std::iter::repeat_with(|| None));
        let all = rows.iter().zip(told).zip(exact.zip(tokens));
        self.callers[caller].extend(all.map(|((row, told), (exact, tokens))| Asked { row: row.to_vec(), exact, tokens, told }));
    }

    /// What most of the requests are of.
    fn of(&self) -> Of {
        let [numbers, texts, both] = self.requests;
        match () {
            () if texts >= numbers.max(both) && texts > 0 => Of::Texts,
            () if both > 0 => Of::Both,
            () => Of::Numbers,
        }
    }

    /// Leaves out the rows of another width than most have, where a model takes more than one: one caller who asks for another is not to be
    /// in the way of all others. Tells how many.
    fn keep_commonest_width(&mut self) -> usize {
        let mut widths = std::collections::BTreeMap::<usize, usize>::new();
        self.callers.iter().flatten().for_each(|asked| *widths.entry(asked.row.len()).or_default() += 1);
        let all: usize = widths.values().sum();
        let Some((commonest, count)) = widths.into_iter().max_by_key(|(_, count)| *count) else { return 0 };
        if count < all {
            self.callers.iter_mut().for_each(|rows| rows.retain(|asked| asked.row.len() == commonest));
            self.callers.retain(|rows| !rows.is_empty());
        }
        all - count
    }

    /// Numbers that are held.
    #[must_use]
    pub fn numbers(&self) -> usize {
        self.numbers
    }
}

/// A calibration that was made.
#[derive(Debug)]
pub struct Made {
    /// The text of its file.
    pub text: String,
    /// Caller-days that it rests on.
    pub callers: usize,
    /// Their rows.
    pub rows: usize,
    /// False alarms about callers to which the bounds were not fitted.
    pub alarms: usize,
    /// The rate of false alarms a caller-day that they rule out, with 95 % confidence.
    pub at_most: f64,
    /// Rows of another width than most, which were left out.
    pub left: usize,
    /// Families that never alarm by these bounds: to them some honest caller is as odd as any attack.
    pub silent: Vec<String>,
    /// The fewest different rows with a class that a recording needs for copies to be tried on, where this one had fewer: then no budget of
    /// fidelity can be held.
    pub untried: Option<usize>,
}

/// Learns from what honest callers asked.
///
/// # Errors
/// When the evidence does not suffice, and how much is missing.
pub fn calibrate(model: &str, rate: f32, mut recorded: Recorded) -> Result<Made, impl std::fmt::Display> {
    let left = recorded.keep_commonest_width();
    let bounds = calibrate::calibrate(model, rate, (recorded.of(), recorded.seed.clone()), &recorded.callers)?;
    let bounds::Evidence { callers, rows, alarms, at_most, .. } = bounds.rests_on;
    let silent = bounds.bets.iter().filter(|(_, bet)| bet.alarm > CEILING || bet.rate >= 1.0).map(|(family, _)| family.clone()).collect();
    let untried = bounds.holdout.is_none().then_some(loss::ROWS_TO_TRY);
    let unwritten = |error| calibrate::Error::OperatorRecordedNothing(bounds::Error::OperatorGaveNoCalibration(error));
    let text = serde_json::to_string(&bounds).map_err(unwritten)?;
    Ok::<_, calibrate::Error>(Made { text, callers, rows, alarms, at_most, left, silent, untried })
}

/// What a model's policy says of those who ask it.
#[derive(Debug)]
pub struct Watch {
    /// Whether the ladder is climbed, or only told of.
    enforced: bool,
    calibration: Calibration,
    rungs: Rungs,
    degrade: Shaping,
    budgets: Budgets,
    crowd: Crowd,
    /// Of the calibration's file: what was learned in another space is nothing in this.
    digest: Digest,
    living: Arc<Living>,
    /// What one row tells at most.
    most: Most,
}

impl Config {
    /// Turns a calibration and the table into a watch, nothing without one; what is wrong is added to `mistakes` in any case.
    pub(super) fn compile(
        &self,
        exposing: &Exposing,
        calibration: Option<&str>,
        contract: Option<&Contract>,
        enforced: bool,
        mistakes: &mut Vec<Mistake>,
    ) -> Option<Watch> {
        let (budgets, rungs) = (exposing.compile(mistakes), self.rungs(mistakes));
        let calibration = calibration?;
        let read =
            Calibration::read(calibration.as_bytes()).map_err(|error| mistakes.push(Mistake::of_file(format!("the calibration: {error}"))));
        let calibration_of = Digest::of(calibration.as_bytes());
        let calibration = read.ok()?;
        let width = contract.filter(|_| calibration.bounds.of != Of::Texts).and_then(width);
        if calibration.bounds.of != Of::Numbers && contract.is_some_and(|contract| !takes_texts(contract)) {
            mistakes.push(Mistake::of_file("the model takes no texts, and its calibration is of texts: calibrate anew"));
        }
        if width.is_some_and(|width| width != calibration.width()) {
            let (has, was) = (width.unwrap_or_default(), calibration.width());
            mistakes
                .push(Mistake::of_file(format!("the model takes {has} numbers a row, and its calibration is of {was}: calibrate anew")));
        }
        if let (None, Some(fidelity)) = (&calibration.bounds.holdout, &exposing.fidelity) {
            let what = format!(
                "nobody would count against it: the calibration has no rows to try a copy on. Record at least {} different ones that are answered with classes and calibrate anew, or bound `bits`",
                loss::ROWS_TO_TRY
            );
            mistakes.push(Mistake::at(fidelity.span(), what));
        }
        let (degrade, crowd) = (self.degrade.shaping(), Crowd::default());
        let most = Most::of(contract, calibration.bounds.holdout.as_ref().map_or(0, Kept::classes));
        let (digest, living) = (calibration_of, Living::of(calibration_of));
        Some(Watch { enforced, calibration, rungs, degrade, budgets, crowd, digest, living, most })
    }

    fn rungs(&self, mistakes: &mut Vec<Mistake>) -> Rungs {
        let (most, price) = self.most_and_price(mistakes);
        if let Some(calm) = self.calm.as_ref().filter(|calm| calm.get_ref().0.is_zero()) {
            mistakes.push(Mistake::at(calm.span(), "calm is longer than no time"));
        }
        Rungs { most, price, delay: DELAY, calm: self.calm.as_ref().map_or(CALM, |calm| calm.get_ref().0) }
    }
}

/// Whether texts are among a model's inputs, or what may be sent in their place.
fn takes_texts(contract: &Contract) -> bool {
    contract.every_input().any(|input| texts::is_text(&input.name, input.datatype))
}

/// Numbers a row of a model's inputs, where they are all known.
fn width(contract: &Contract) -> Option<usize> {
    let of_input =
        |shape: &[Option<u64>]| shape.iter().skip(1).map(|dimension| usize::try_from((*dimension)?).ok()).product::<Option<usize>>();
    let numeric = contract.inputs.iter().filter(|input| input.datatype != Datatype::Bytes);
    numeric.map(|input| of_input(&input.shape)).sum()
}

/// What is known of one caller of one model, or of a cohort of them.
#[derive(Debug, Default)]
pub struct Pupil {
    ladder: Ladder,
    /// By the calibrations of the model's versions, between which a caller may choose.
    learned: Vec<Learned>,
    /// What is under way.
    awaited: Awaited,
    throttle: Throttle,
    /// Of a caller, its part in each kind of its cohorts.
    parts: [Part; KINDS],
    /// Of a cohort, its callers.
    company: Company,
    members: Members,
}

/// The requests of a caller who is throttled.
#[derive(Debug, Default)]
struct Throttle {
    count: u64,
    /// Which of the round is let through.
    through: u64,
}

impl Throttle {
    /// Whether the next request is let through: one of each [`ONE_IN`] in a row, which nobody knows beforehand.
    fn lets_through(&mut self) -> bool {
        let at = self.count % ONE_IN;
        if at == 0 {
            let mut dice = [0; 8];
            // Without randomness it is the first of each round.
            let _ = aws_lc_rs::rand::fill(&mut dice);
            self.through = u64::from_le_bytes(dice) % ONE_IN;
        }
        self.count += 1;
        at == self.through
    }
}

/// What was learned of a caller under one calibration.
#[derive(Debug)]
struct Learned {
    under: Digest,
    /// Gone when no policy has the calibration any more.
    living: Weak<Living>,
    /// Of the policy under which it was learned last.
    budgets: Budgets,
    state: State,
    counted: Counted,
    loss: Loss,
    /// It was told that a budget is spent.
    told: bool,
}

impl Learned {
    /// What was learned under a watch's calibration, and what was told of the model's other versions. What was under a calibration that no policy
    /// has any more is let go.
    fn of<'a>(all: &'a mut Vec<Self>, watch: &Watch) -> (&'a mut Self, Exposure) {
        all.retain(Self::is_living);
        let at = all.iter().position(|learned| learned.under == watch.digest).unwrap_or_else(|| {
            let (state, counted, loss) = (State::default(), Counted::default(), Loss::default());
            // Nearly everyone asks one version.
            all.reserve_exact(1);
            let living = Arc::downgrade(&watch.living);
            all.push(Self { under: watch.digest, living, budgets: watch.budgets, state, counted, loss, told: false });
            all.len() - 1
        });
        let others = all.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, learned)| learned.loss.exposure());
        let others = others.fold(Exposure::default(), Exposure::and);
        (all[at].living, all[at].budgets) = (Arc::downgrade(&watch.living), watch.budgets);
        (&mut all[at], others)
    }

    fn is_living(&self) -> bool {
        self.living.strong_count() > 0
    }
}

impl Pupil {
    /// What was learned under calibrations that some policy has.
    fn living(&self) -> impl Iterator<Item = &Learned> {
        self.learned.iter().filter(|learned| learned.is_living())
    }

    pub(super) fn exposure(&self) -> Exposure {
        self.living().map(|learned| learned.loss.exposure()).fold(Exposure::default(), Exposure::and)
    }

    pub(super) fn step(&self) -> Step {
        self.ladder.step()
    }

    /// Whether a new one would not be the same: some family won, the ladder was climbed, or some of a budget is spent.
    pub(super) fn has_evidence(&self) -> bool {
        self.is_suspected() || self.has_cause()
    }

    /// Whether some family has won, which takes no more than a few odd rows.
    fn is_suspected(&self) -> bool {
        self.living().any(|learned| learned.state.wealth.iter().any(|wealth| wealth.0 > EVIDENCE))
    }

    /// Whether the ladder was climbed, or some of a budget is spent.
    fn has_cause(&self) -> bool {
        let has = self.exposure();
        let spent = |learned: &Learned| learned.budgets.spent(has) >= EVIDENCE_OF_BUDGET;
        self.ladder.step() > Step::Observe || self.living().any(spent)
    }
}

/// Tells that a caller was moved on the ladder.
pub(super) fn tell_moved(who: &Who, model: Option<&Arc<str>>, receipt: uuid::Uuid, (from, to): (Step, Step), events: &Events, now: Moment) {
    let name = if to == Step::Quarantine { Name::CallerQuarantined } else { Name::DetectMoved };
    let mut event = Event::new(name, now.wall).with("from", from.as_str()).with("step", to.as_str());
    event.caller = Some(who.caller.clone());
    event.tenant = Some(who.tenant.clone());
    event.model = model.cloned();
    event.receipt = Some(receipt);
    events.tell(event);
}

/// How a caller is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// With so much care.
    With(Care),
    /// With so much care, once work was done for it.
    ForWork(Care),
    /// Not now.
    NotNow,
}

impl Watch {
    /// How a caller is to be answered the last of whose rows is `row`.
    #[cfg(test)]
    pub(super) fn manner(&self, pupil: &std::sync::Mutex<Pupil>, row: u64, now: Instant) -> (Manner, Option<(Step, Step)>) {
        self.answer(&mut locked(pupil), row, now)
    }

    /// How a caller is to be answered the last of whose rows is `row`, where it asks so many and is held to be told `bits` of each until that is
    /// learned or dropped.
    pub(super) fn manner_of(
        &self,
        known: &Arc<Known>,
        (rows, bits): (u64, f64),
        row: u64,
        now: Instant,
    ) -> (Manner, Option<(Step, Step)>, Held) {
        let mut pupil = locked(&known.pupil);
        let (manner, moved) = self.answer(&mut pupil, row, now);
        let held = match manner {
            Manner::With(care) | Manner::ForWork(care) if self.enforced && self.budgets.are_any() => {
                let bits = if care.response.shaping == Shaping::LabelOnly { self.most.label() } else { bits };
                Held::of(known, &mut pupil, Awaited::of(rows, bits))
            }
            _ => Held::default(),
        };
        (manner, moved, held)
    }

    /// The most bits that a row tells of which these outputs are asked for, or all where none is named.
    pub(super) fn most<'a>(&self, outputs: impl Iterator<Item = &'a str>) -> f64 {
        self.most.of_row(outputs)
    }

    fn answer(&self, pupil: &mut Pupil, row: u64, now: Instant) -> (Manner, Option<(Step, Step)>) {
        if !self.enforced {
            return (Manner::With(Care::default()), None);
        }
        // What was learned is not unlearned by waiting, and what is under way is as good as learned where all together would spend it.
        let has = pupil.exposure();
        let spent = self.budgets.spent(has);
        let shown = if spent < 1.0 && pupil.awaited.may_spend(has, &self.budgets, self.calibration.owned.is_some()) { 1.0 } else { spent };
        if spent >= 1.0 {
            pupil.ladder.hold(self.spent(), &self.rungs, now);
        }
        let (step, from) = pupil.ladder.at(row, &self.rungs, now);
        if from.is_some_and(|from| from > step) {
            pupil.learned.iter_mut().for_each(|learned| learned.state.forgive());
        }
        let moved = from.map(|from| (from, step));
        let manner = match step {
            Step::Block => Manner::NotNow,
            Step::Price | Step::Quarantine => self.priced(step, shown),
            Step::Throttle => {
                if pupil.throttle.lets_through() {
                    Manner::With(self.care(step, shown))
                } else {
                    Manner::NotNow
                }
            }
            Step::Observe | Step::Alert | Step::Degrade => Manner::With(self.care(step, shown)),
        };
        (manner, moved)
    }

    /// How much less answers tell at a step, or once so much of a budget is spent. It does not follow each row, but grades: equal inputs get
    /// equal answers within one.
    fn care(&self, step: Step, spent: f64) -> Care {
        let by_step = match step {
            Step::Quarantine | Step::Block => Shaping::LabelOnly,
            Step::Degrade | Step::Price if spent >= 1.0 => Shaping::LabelOnly,
            Step::Degrade | Step::Price => self.degrade,
            Step::Observe | Step::Alert | Step::Throttle => Shaping::AsIs,
        };
        let graded = Level::of_spent(spent.min(1.0)).filter(|_| self.rungs.most >= Step::Degrade);
        // What is spent is spent, before the ladder has come to it.
        let by_budget = graded.map_or(Shaping::AsIs, |level| if spent >= 1.0 { Shaping::LabelOnly } else { Shaping::Quantised(level) });
        // From degrade on it is what the owner chose for it, until all is spent.
        let shaping = if by_step == Shaping::AsIs { by_budget } else { by_step };
        if shaping == Shaping::AsIs {
            return Care::default();
        }
        let mut noise = Noise::new(self.calibration.bounds.space.seed.expose(), step.as_str());
        let seed = u128::from(noise.next()) << 64 | u128::from(noise.next());
        let response = Response { shaping, seed: Seed::from_secret(seed.to_le_bytes()), ..Response::default() };
        Care { response, ..Care::default() }
    }

    /// How many classes the owner's rows are of; 0 without any.
    fn classes(&self) -> u32 {
        self.calibration.bounds.holdout.as_ref().map_or(0, Kept::classes)
    }

    fn step_of(&self, ladder: &Ladder) -> Step {
        if self.enforced { ladder.step() } else { Step::Observe }
    }
}

#[cfg(test)]
pub(super) mod tests;
