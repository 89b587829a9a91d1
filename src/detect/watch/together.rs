//! How a lesson is learned by the cohorts of its caller too.
//!
//! Of the locks, a caller's own comes first, and then one cohort's at a time.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::cohort;
use super::lesson::Answered;
use super::state::Alarm;
use super::{Counted, Exposure, KINDS, Ladder, Learned, Lesson, Part, Pupil, Reach, Rungs, Step, Taken, families};
use crate::budget::gate::locked;
use crate::detect::Known;
use crate::detect::cohorts::Kind;

/// A cohort of a caller.
#[derive(Debug)]
pub(in crate::detect) struct Cohort {
    pub(in crate::detect) kind: Kind,
    pub(in crate::detect) name: Arc<str>,
    pub(in crate::detect) known: Arc<Known>,
}

/// How many are in a cohort, as far as that matters.
#[derive(Debug, Default)]
pub(super) enum Members {
    #[default]
    Nobody,
    /// One caller, by its hash: what is known of it is known already, and not learned twice.
    One(u64, Weak<Known>),
    Many,
}

/// What a cohort has against a caller.
#[derive(Debug)]
pub(super) enum Said {
    Word(Alarm),
    Spent(Exposure),
}

/// The same, with the row and the cohort that it is about.
#[derive(Debug)]
pub(super) struct Heard<'a> {
    pub(super) row: u64,
    pub(super) cohort: &'a Cohort,
    /// How many callers the cohort has, about.
    pub(super) callers: u64,
    pub(super) said: Said,
    /// Where its word left the caller.
    pub(super) step: Step,
}

impl Lesson {
    /// The cohorts of the caller that have other callers too. No lock may be held. A cohort begins as what its first caller was, when its second
    /// comes: what one key learned, the next goes on with.
    pub(super) fn company(&self) -> Vec<&Cohort> {
        self.cohorts.iter().filter(|cohort| self.joins(cohort)).collect()
    }

    fn joins(&self, cohort: &Cohort) -> bool {
        let first = {
            let mut theirs = locked(&cohort.known.pupil);
            theirs.company.see(self.caller);
            match &theirs.members {
                Members::Many => return true,
                Members::One(caller, first) if *caller != self.caller => first.clone(),
                Members::Nobody | Members::One(..) => {
                    theirs.members = Members::One(self.caller, Arc::downgrade(&self.pupil));
                    return false;
                }
            }
        };
        let begins = first.upgrade().map(|first| {
            let first = locked(&first.pupil);
            let learned = first.living().map(|Learned { under, living, budgets, state, loss, .. }| Learned {
                under: *under,
                living: living.clone(),
                budgets: *budgets,
                state: state.clone(),
                counted: Counted::default(),
                loss: loss.clone(),
                told: false,
            });
            learned.collect::<Vec<_>>()
        });
        let mut theirs = locked(&cohort.known.pupil);
        if matches!(theirs.members, Members::One(..)) {
            theirs.members = Members::Many;
            if let Some(learned) = begins {
                theirs.learned = learned;
                for known in &mut theirs.learned {
                    if known.state.is_close() && !self.room.take(&cohort.known, known.under) {
                        known.state.step_back();
                        known.loss.step_back();
                    }
                }
            }
        }
        true
    }

    /// Lets the cohorts learn from a row that the caller had not asked before, or from what it told more than then, in bits, and moves the caller
    /// as far as their word goes.
    pub(super) fn learn_together<'a>(
        &self,
        cohorts: &[&'a Cohort],
        (ladder, known, parts): (&mut Ladder, &mut Learned, &mut [Part; KINDS]),
        (answered, repeated): (&Answered<'_>, Option<f64>),
        row: u64,
        heard: &mut Vec<Heard<'a>>,
    ) {
        let new = known.state.new;
        for cohort in cohorts {
            let part = &mut parts[cohort.kind as usize];
            let (words, has, callers) = {
                let mut theirs = locked(&cohort.known.pupil);
                let Pupil { learned, company, .. } = &mut *theirs;
                cohort.known.asked.store(true, Ordering::Relaxed);
                let (theirs, others) = Learned::of(learned, &self.watch);
                self.look_closely(theirs, &cohort.known);
                let Answered { point, told, .. } = *answered;
                let repeats = theirs.state.repeats;
                let words = match repeated {
                    None => cohort::learn(&mut theirs.state, company, part, &self.watch.calibration, (point, told, new)),
                    Some(_) => Vec::new(),
                };
                let repeat = repeated.is_some() || theirs.state.repeats != repeats;
                // What the cohort has forgotten by now, the caller has not; and what is not remembered at all was not told before.
                let more = theirs.state.told(point, answered.row).or(repeated).unwrap_or_else(|| answered.row.bits());
                self.lose(theirs, answered, more, repeat);
                (words, theirs.loss.exposure().and(others), company.callers())
            };
            for said in words.into_iter().map(Said::Word) {
                self.follow(ladder, known, &said, row);
                heard.push(Heard { row, cohort, callers, said, step: self.watch.step_of(ladder) });
            }
            self.spend_together((ladder, known, part), cohort, (has, callers), row, heard);
        }
    }

    /// Charges the cohorts for a row that nobody looks at.
    pub(super) fn charge_together<'a>(
        &self,
        cohorts: &[&'a Cohort],
        (ladder, known, parts): (&mut Ladder, &mut Learned, &mut [Part; KINDS]),
        bits: f64,
        row: u64,
        heard: &mut Vec<Heard<'a>>,
    ) {
        for cohort in cohorts {
            let (has, callers) = {
                let mut theirs = locked(&cohort.known.pupil);
                let Pupil { learned, company, .. } = &mut *theirs;
                let (theirs, others) = Learned::of(learned, &self.watch);
                theirs.loss.charge(bits);
                (theirs.loss.exposure().and(others), company.callers())
            };
            self.spend_together((ladder, known, &mut parts[cohort.kind as usize]), cohort, (has, callers), row, heard);
        }
    }

    /// Holds a caller to the budget of a cohort that `has` so much, for as long as it goes on asking. Of that people are told once.
    fn spend_together<'a>(
        &self,
        (ladder, known, part): (&mut Ladder, &mut Learned, &mut Part),
        cohort: &'a Cohort,
        (has, callers): (Exposure, u64),
        row: u64,
        heard: &mut Vec<Heard<'a>>,
    ) {
        if !self.watch.budgets.is_past(has) {
            return;
        }
        let said = Said::Spent(has);
        self.follow(ladder, known, &said, row);
        if !std::mem::replace(&mut part.spent, true) {
            heard.push(Heard { row, cohort, callers, said, step: self.watch.step_of(ladder) });
        }
    }

    /// A cohort's word goes as far as a throttle: who is told less must have given cause himself.
    fn follow(&self, ladder: &mut Ladder, known: &mut Learned, said: &Said, row: u64) {
        if !self.watch.enforced {
            return;
        }
        let (wait, rungs, now) = (self.wait(row), self.watch.rungs, self.at.mono);
        match said {
            Said::Word(word) => {
                let rungs = Rungs { most: rungs.most.min(Step::Throttle), ..rungs };
                let may_act = families::ALL[word.family].reach == Reach::Act;
                if let Taken::Moves(_) = ladder.take(word.family as u8, may_act, row, wait, &rungs, now) {
                    // Those of the caller's own that waited for another's word may speak again.
                    (0..families::COUNT).filter(|family| *family != word.family).for_each(|family| {
                        if known.state.alarmed[family] {
                            known.state.listen(family);
                        }
                    });
                }
            }
            Said::Spent(_) => {
                let step = if self.has_cause(known) { Step::Degrade } else { Step::Throttle };
                ladder.spend(step, row, wait, &rungs, now);
                ladder.hold(step, &rungs, now);
            }
        }
    }

    /// Whether the caller alone has come to an alarm that may be acted upon.
    fn has_cause(&self, known: &Learned) -> bool {
        let bets = &self.watch.calibration.bets;
        let act = families::ALL.iter().map(|family| family.reach == Reach::Act);
        act.zip(&known.state.richest).zip(bets).any(|((act, richest), bet)| act && richest.0 >= bet.alarm)
    }
}

#[cfg(test)]
mod tests;
