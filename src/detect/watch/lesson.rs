//! What a request leaves to be learned once its answer is known.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::{Value, json};

use super::super::exposure::bits::{Grain, Told as Tells};
use super::super::exposure::meter::Answer;
use super::super::{Known, meaning};
use super::families::{self, Family, Reach};
use super::ladder::{Ladder, Rungs, Taken};
use super::noise::Noise;
use super::rows::{Rows, Scores, Told};
use super::space::Point;
use super::state::Alarm;
use super::telling::{Row, Telling};
use super::together::{Cohort, Heard, Said};
use super::wealth::Wealth;
use super::{Exposure, Held, Learned, Pupil, Room, Step, Studies, Watch, telling, texts};
use crate::budget::gate::locked;
use crate::clock::Moment;
use crate::digest::Digest;
use crate::event::{Event, Events, Name};
use crate::heavy;
use crate::trail::Who;
use crate::wire::tensor::{self, Tensor};

/// What a request leaves to be learned once its answer is known.
#[derive(Debug)]
pub struct Lesson {
    pub(in crate::detect) watch: Arc<Watch>,
    pub(in crate::detect) pupil: Arc<Known>,
    pub(in crate::detect) room: Arc<Room>,
    /// Counts rows of callers for whom there is no place.
    pub(in crate::detect) unwatched: Arc<AtomicU64>,
    /// Where copies are tried that take long.
    pub(in crate::detect) studies: Arc<Studies>,
    /// There was no place for one of its rows.
    pub(in crate::detect) full: AtomicBool,
    /// What else learns from it.
    pub(in crate::detect) cohorts: Vec<Cohort>,
    /// A keyed hash of the caller's name.
    pub(in crate::detect) caller: u64,
    pub(in crate::detect) inputs: Vec<Tensor>,
    /// The number of its first row.
    pub(in crate::detect) first: u64,
    /// What its model is asked beside each of them, to explain it.
    pub(in crate::detect) more: u32,
    /// The output that is explained, where one is.
    pub(in crate::detect) explained: Box<str>,
    pub(in crate::detect) who: Arc<Who>,
    pub(in crate::detect) model: Option<Arc<str>>,
    pub(in crate::detect) receipt: uuid::Uuid,
    pub(in crate::detect) events: Events,
    pub(in crate::detect) at: Moment,
    /// What its caller has under way for it, until it is learned or dropped.
    pub(in crate::detect) _held: Held,
}

/// Rows after which the lock of a caller is let go: whoever asks beside a long batch under the same name does not wait for all of it.
const PIECE: usize = 64;

/// What a row is like as work, however few numbers it has: it takes about as long as so many bytes of JSON.
const ROW: usize = 1 << 10;

/// One row, and what it was told.
#[derive(Clone, Copy)]
pub(super) struct Answered<'a> {
    pub(super) point: &'a Point,
    pub(super) told: &'a Told,
    /// The scores that it was told, if any.
    pub(super) scores: &'a [f32],
    /// The bits.
    pub(super) row: &'a Row,
}

impl Lesson {
    /// Learns, and in its turn where that is much.
    pub async fn learn_in_turn(self, said: &[Tensor], told_of_it: &[Tensor]) -> Option<Exposure> {
        heavy::work(self.size(), || self.learn(said, told_of_it)).await
    }

    /// How much work it is, about, in bytes.
    pub(super) fn size(&self) -> usize {
        let bytes: usize = self.inputs.iter().map(|tensor| tensor.data.len()).sum();
        let rows = tensor::rows(&self.inputs);
        let width = size_of::<f32>() * self.watch.calibration.width();
        // A text that is of every row is read with each.
        let common = match self.watch.calibration.key {
            Some(_) => texts::common(&self.inputs, rows),
            None => 0,
        };
        bytes.saturating_add(rows.saturating_mul(width.max(ROW).saturating_add(common)))
    }

    /// Learns from what the model said, before anything is withheld of it, and from what of it the caller was told. Tells how much of the
    /// model the caller may have by now.
    pub(in crate::detect) fn learn(self, said: &[Tensor], told_of_it: &[Tensor]) -> Option<Exposure> {
        let calibration = &self.watch.calibration;
        let rows = match &calibration.key {
            Some(key) => Rows::with_texts(&self.inputs, key).0,
            None => Rows::of(&self.inputs),
        };
        let rows = rows.fitted(calibration.space.mean());
        if rows.width != calibration.width() {
            return None;
        }
        let told = Told::of(said, rows.all());
        let mut alarms: Vec<(u64, Alarm, Step)> = Vec::new();
        let (scores, telling) = (Scores::of(told_of_it, told.len()), Telling::of(told_of_it, told.len()));
        let (mut spent, mut heard) = (None, Vec::new());
        let company = self.company();
        self.pupil.asked.store(true, Ordering::Relaxed);
        self.unwatched.fetch_add(rows.left as u64, Ordering::Relaxed);
        for first in (0..told.len()).step_by(PIECE) {
            // Nobody waits for what is the same for every caller.
            let points: Vec<Point> = rows.iter().enumerate().skip(first).take(PIECE).map(|(at, row)| self.point(&rows, at, row)).collect();
            let mut pupil = locked(&self.pupil.pupil);
            let Pupil { ladder, learned, parts, .. } = &mut *pupil;
            let (known, others) = Learned::of(learned, &self.watch);
            for (at, told) in told.iter().enumerate().skip(first).take(PIECE) {
                let number = self.first.saturating_add(at as u64);
                let row = telling.row(at, self.watch.classes().max(told.classes)).explained(&self.explained, self.more);
                if let Some(point) = points.get(at - first) {
                    let repeats = known.state.repeats;
                    self.look_closely(known, &self.pupil);
                    for alarm in known.state.learn(calibration, point, told, |_, _| {}) {
                        self.climb(ladder, known, &alarm, number);
                        alarms.push((number, alarm, self.watch.step_of(ladder)));
                    }
                    let scores = scores.as_ref().and_then(|scores| scores.iter().nth(at)).unwrap_or_default();
                    let answered = Answered { point, told, scores, row: &row };
                    let repeat = known.state.repeats != repeats;
                    let more = known.state.told(point, &row).unwrap_or_else(|| row.bits());
                    self.lose(known, &answered, more, repeat);
                    // A repeat that tells no more than was told before costs nothing.
                    if !repeat || more > 0.0 {
                        let repeated = repeat.then_some(more);
                        self.learn_together(&company, (ladder, known, parts), (&answered, repeated), number, &mut heard);
                    }
                    if known.state.insists {
                        ladder.hear(self.at.mono);
                    }
                } else {
                    // It is not looked at, and was answered: it may be a repeat, and costs what a new one does.
                    known.loss.charge(row.bits());
                    self.charge_together(&company, (ladder, known, parts), row.bits(), number, &mut heard);
                }
                if self.watch.budgets.is_past(known.loss.exposure().and(others)) {
                    if self.watch.enforced {
                        ladder.spend(self.watch.spent(), number, self.wait(number), &self.watch.rungs, self.at.mono);
                    }
                    if !std::mem::replace(&mut known.told, true) {
                        spent = Some((number, self.watch.step_of(ladder)));
                    }
                }
            }
        }
        let exposure = {
            let mut pupil = locked(&self.pupil.pupil);
            let (known, others) = Learned::of(&mut pupil.learned, &self.watch);
            // Honest callers are of the crowd as well.
            self.watch.crowd.discovers(&mut known.counted, Wealth::default());
            known.loss.exposure().and(others)
        };
        if let Some((row, step)) = spent {
            self.tell_spent(row, exposure, step, None);
        }
        alarms.into_iter().for_each(|(row, alarm, step)| self.tell(row, &alarm, step, None));
        for heard in &heard {
            match heard.said {
                Said::Word(alarm) => self.tell(heard.row, &alarm, heard.step, Some(heard)),
                Said::Spent(exposure) => self.tell_spent(heard.row, exposure, heard.step, Some(heard)),
            }
        }
        Some(exposure)
    }

    fn point(&self, rows: &Rows, at: usize, row: &[f32]) -> Point {
        let mut point = self.watch.calibration.space.point(row);
        point.digest ^= rows.exact.get(at).copied().unwrap_or_default();
        point.tokens = rows.tokens.get(at).cloned().map(Box::new);
        point
    }

    /// Has a caller or a cohort watched closely from its fourth row on, if there is a place.
    pub(super) fn look_closely(&self, known: &mut Learned, who: &Arc<Known>) {
        if !known.state.should_be_close() {
            return;
        }
        // Where there was no place for one row of a request there is none for the next.
        let full = self.full.load(Ordering::Relaxed);
        if !full && self.room.take(who, self.watch.digest) {
            known.state.come_close();
        } else {
            self.full.store(true, Ordering::Relaxed);
            self.unwatched.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts what a row told of the model, or told more than when it was asked before. Bits are counted whether or not the owner's rows are
    /// there to try a copy on.
    pub(super) fn lose(&self, known: &mut Learned, answered: &Answered<'_>, bits: f64, repeat: bool) {
        let Learned { loss, state, .. } = known;
        match repeat {
            true if bits > 0.0 => loss.charge_more(bits),
            true => return,
            false => loss.charge(bits),
        }
        let Answered { point, told, scores, .. } = answered;
        let Some(owned) = self.watch.calibration.owned.as_ref().filter(|_| state.is_close()) else { return };
        let probabilities: Vec<f64> = scores.iter().map(|value| f64::from(*value)).collect();
        let answer = match (telling::tells(&probabilities, Grain::Single), told.label) {
            (Tells::Probabilities { .. }, _) => Answer::Probabilities(&probabilities),
            (_, Some(label)) => Answer::Label(label),
            (_, None) => return,
        };
        loss.learn(owned, &self.studies, point, answer);
    }

    /// Rows to wait before a step holds, from what only the gateway knows.
    pub(super) fn wait(&self, row: u64) -> u64 {
        let Rungs { delay: [least, most], .. } = self.watch.rungs;
        let parts = [self.watch.calibration.bounds.space.seed.expose(), self.receipt.as_bytes(), &row.to_le_bytes()];
        least + Noise::new(&Digest::of(&parts.concat()).0, "delay").next() % (most - least + 1)
    }

    fn tell_spent(&self, row: u64, exposure: Exposure, step: Step, cohort: Option<&Heard<'_>>) {
        let mut event = meaning::of("exposure", Event::new(Name::DetectAlarm, self.at.wall))
            .with("query", row)
            .with("evidence", json!({ "fidelity": exposure.fidelity, "bits": exposure.bits, "rows": exposure.rows }))
            .with("step", step.as_str());
        event.rule = Some("exposure".into());
        self.events.tell(self.about(event, cohort));
    }

    fn about(&self, mut event: Event, cohort: Option<&Heard<'_>>) -> Event {
        if let Some(heard) = cohort {
            event = event.with("cohort", json!({ "name": heard.cohort.name, "callers": heard.callers }));
        }
        event.caller = Some(self.who.caller.clone());
        event.tenant = Some(self.who.tenant.clone());
        event.model.clone_from(&self.model);
        event.receipt = Some(self.receipt);
        event
    }

    fn climb(&self, ladder: &mut Ladder, known: &mut Learned, alarm: &Alarm, row: u64) {
        if !self.watch.enforced {
            return;
        }
        let wait = self.wait(row);
        // Past a lower limit goes only what holds among all callers of the model.
        let discovered = self.watch.crowd.discovers(&mut known.counted, known.state.acting());
        let rungs =
            Rungs { most: if discovered { self.watch.rungs.most } else { self.watch.rungs.most.min(Step::Throttle) }, ..self.watch.rungs };
        let may_act = families::ALL[alarm.family].reach == Reach::Act;
        if let Taken::Moves(_) = ladder.take(alarm.family as u8, may_act, row, wait, &rungs, self.at.mono) {
            // Its word is spent, and those that waited for another's may speak again.
            for family in 0..families::COUNT {
                if family == alarm.family || known.state.alarmed[family] {
                    known.state.listen(family);
                }
            }
        }
    }

    fn tell(&self, row: u64, alarm: &Alarm, step: Step, cohort: Option<&Heard<'_>>) {
        let Family { name, atlas, owasp, advice, .. } = families::ALL[alarm.family];
        let (key, number) = alarm.signal.evidence;
        let rate = self.watch.calibration.bounds.rate;
        let evidence = json!({ key: number, "wealth": alarm.wealth.0.exp(), "rate": rate, "rows": row });
        let mut event = Event::new(Name::DetectAlarm, self.at.wall)
            .with("family", *name)
            .with("query", row)
            .with("evidence", evidence)
            .with("step", step.as_str())
            .with("atlas", Value::from_iter(atlas.iter().copied()))
            .with("owasp", Value::from_iter(owasp.iter().copied()))
            .with("advice", *advice);
        event.rule = Some((*name).into());
        self.events.tell(self.about(event, cohort));
    }
}
