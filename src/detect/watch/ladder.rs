//! What is done about a caller, step by step.
//!
//! A step needs the word of a family, and never two in a row on the word of the same one. Each comes a random number of rows after the word, or
//! after the step before it, so that a caller cannot tell for which of them it came (Feng et al., 2023, arXiv 2303.06280), and stays until the
//! caller was calm for long.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::clock::Moment;

/// The steps, from the least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Nothing is done.
    #[default]
    Observe,
    /// People are told.
    Alert,
    /// A quarter of the requests is let through, as if the limit were lower.
    Throttle,
    /// Answers tell less.
    Degrade,
    /// Answers cost work.
    Price,
    /// Answers are labels alone.
    Quarantine,
    /// Nothing is answered.
    Block,
}

impl Step {
    const ALL: [Self; 7] = [Self::Observe, Self::Alert, Self::Throttle, Self::Degrade, Self::Price, Self::Quarantine, Self::Block];

    /// The step's name in events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Alert => "alert",
            Self::Throttle => "throttle",
            Self::Degrade => "degrade",
            Self::Price => "price",
            Self::Quarantine => "quarantine",
            Self::Block => "block",
        }
    }

    /// The next step of those that the owner allows.
    fn next(self, rungs: &Rungs) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step > self && *step <= rungs.most && (*step != Self::Price || rungs.price))
    }

    fn before(self, rungs: &Rungs) -> Self {
        Self::ALL.into_iter().rev().find(|step| *step < self && (*step != Self::Price || rungs.price)).unwrap_or_default()
    }
}

/// What the owner allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rungs {
    /// The last step.
    pub(super) most: Step,
    /// Whether answers may cost work.
    pub(super) price: bool,
    /// Rows after which a step comes, at least and at most.
    pub(super) delay: [u64; 2],
    /// After so long without a word a step is taken back.
    pub(super) calm: Duration,
}

/// Where a caller stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ladder {
    step: Step,
    /// The family whose word the last step was taken on.
    by: Option<u8>,
    /// The row from which each step holds that is decided and has not come, and [`NEVER`] for the others.
    from: [u64; Step::ALL.len()],
    /// When the last word came.
    heard: Option<Instant>,
}

/// Where a caller stands, as it outlives the process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    step: Step,
    by: Option<u8>,
    /// Steps that are decided and have not come, each with its row.
    due: Vec<(Step, u64)>,
    /// In milliseconds since 1970.
    heard: Option<u64>,
}

impl Kept {
    /// Whether it says no more than that nothing was ever done.
    pub(super) fn is_at_rest(&self) -> bool {
        self.step == Step::Observe && self.due.is_empty()
    }
}

/// The row of a step that is not decided.
const NEVER: u64 = u64::MAX;

impl Default for Ladder {
    fn default() -> Self {
        Self { step: Step::default(), by: None, from: [NEVER; Step::ALL.len()], heard: None }
    }
}

/// What became of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It moves the caller, now or soon.
    Moves(Step),
    /// It moves nothing until another family has spoken.
    Waits,
}

impl Ladder {
    /// As it is kept.
    pub(super) fn kept(&self, now: Moment) -> Kept {
        let due = Step::ALL.into_iter().zip(self.from).filter(|(_, row)| *row != NEVER).collect();
        Kept { step: self.step, by: self.by, due, heard: self.heard.map(|heard| now.millis_of(heard)) }
    }

    /// As it was kept.
    pub(super) fn restored(kept: &Kept, now: Moment) -> Self {
        let mut from = [NEVER; Step::ALL.len()];
        kept.due.iter().for_each(|(step, row)| from[*step as usize] = *row);
        Self { step: kept.step, by: kept.by, from, heard: kept.heard.map(|heard| now.mono_of(heard)) }
    }

    /// Takes the word of a family, at a row, with so many rows to wait.
    pub(super) fn take(&mut self, family: u8, may_act: bool, row: u64, wait: u64, rungs: &Rungs, now: Instant) -> Taken {
        self.heard = Some(now);
        let decided = self.decided();
        let next = decided.next(rungs).filter(|next| *next == Step::Alert || may_act && self.by != Some(family));
        let Some(next) = next else { return Taken::Waits };
        self.by = Some(family);
        if next == Step::Alert {
            // Of this the caller sees nothing.
            self.step = next;
        } else {
            // Each step is lived through before the next.
            let before = self.from[decided as usize];
            let begun = if before == NEVER { row } else { before.max(row) };
            self.from[next as usize] = begun.saturating_add(wait);
        }
        Taken::Moves(next)
    }

    /// The last step that is decided, whether it has come or not.
    fn decided(&self) -> Step {
        Step::ALL.into_iter().rev().find(|step| self.from[*step as usize] != NEVER).unwrap_or(self.step)
    }

    /// Stands on a step; those up to it do not come any more.
    fn stand(&mut self, step: Step) {
        self.step = step;
        self.from[..=step as usize].fill(NEVER);
    }

    /// Moves the caller to a step for a budget that is spent, after so many rows; never back.
    pub(super) fn spend(&mut self, step: Step, row: u64, wait: u64, rungs: &Rungs, now: Instant) -> bool {
        let step = step.min(rungs.most);
        if self.decided() >= step {
            return false;
        }
        (self.from[step as usize], self.heard) = (row.saturating_add(wait), Some(now));
        true
    }

    /// The reason for which the caller stands where it does goes on: calm begins now.
    pub(super) fn hear(&mut self, now: Instant) {
        self.heard = self.heard.max(Some(now));
    }

    /// Keeps the caller from a step below `least`, once it has come there.
    pub(super) fn hold(&mut self, least: Step, rungs: &Rungs, now: Instant) {
        if self.step == least.min(rungs.most) {
            self.hear(now);
        }
    }

    /// The step that holds at a row, and the one before where it is another since the last time this was asked. Nobody stands higher than the
    /// owner allows by now.
    pub(super) fn at(&mut self, row: u64, rungs: &Rungs, now: Instant) -> (Step, Option<Step>) {
        let before = self.step;
        self.from[rungs.most as usize + 1..].fill(NEVER);
        if self.step > rungs.most {
            self.stand(rungs.most);
        } else if let Some(step) = Step::ALL.into_iter().rev().find(|step| self.from[*step as usize] <= row) {
            self.stand(step);
        } else if self.step > Step::Observe && self.heard.is_some_and(|heard| now.saturating_duration_since(heard) >= rungs.calm) {
            (self.step, self.heard, self.by) = (self.step.before(rungs), Some(now), None);
        }
        (self.step, (self.step != before).then_some(before))
    }

    /// The step, as of the last row.
    pub(super) fn step(&self) -> Step {
        self.step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNGS: Rungs = Rungs { most: Step::Block, price: false, delay: [5, 60], calm: Duration::from_secs(86_400) };

    #[test]
    fn no_two_steps_are_taken_on_the_word_of_one_family() {
        let (mut ladder, now) = (Ladder::default(), Instant::now());
        assert_eq!(ladder.take(1, true, 10, 5, &RUNGS, now), Taken::Moves(Step::Alert));
        assert_eq!(ladder.take(1, true, 11, 5, &RUNGS, now), Taken::Waits);
        assert_eq!(ladder.take(2, true, 12, 5, &RUNGS, now), Taken::Moves(Step::Throttle));
        assert_eq!(ladder.take(2, true, 13, 5, &RUNGS, now), Taken::Waits);
        assert_eq!(ladder.take(1, true, 14, 5, &RUNGS, now), Taken::Moves(Step::Degrade));
    }

    #[test]
    fn every_step_is_lived_through_however_many_words_come_at_once() {
        let (mut ladder, now) = (Ladder::default(), Instant::now());
        // Two families, in turn, on ten rows in a row.
        for row in 0..10 {
            ladder.take((row % 2) as u8, true, row, 20, &RUNGS, now);
        }
        let steps: Vec<(u64, Step)> = (10..200).filter_map(|row| ladder.at(row, &RUNGS, now).1.map(|_| (row, ladder.step()))).collect();
        assert_eq!(steps, [(21, Step::Throttle), (41, Step::Degrade), (61, Step::Quarantine), (81, Step::Block)]);
    }

    #[test]
    fn who_stands_higher_than_is_allowed_by_now_comes_down_at_once_and_no_higher_any_more() {
        let (mut ladder, now) = (Ladder::default(), Instant::now());
        for row in 0..4 {
            ladder.take((row % 2) as u8, true, row, 5, &RUNGS, now);
        }
        assert_eq!(ladder.at(15, &RUNGS, now), (Step::Degrade, Some(Step::Alert)), "two steps were due");
        let lower = Rungs { most: Step::Throttle, ..RUNGS };
        assert_eq!(ladder.at(16, &lower, now), (Step::Throttle, Some(Step::Degrade)));
        assert_eq!(ladder.at(1_000, &RUNGS, now), (Step::Throttle, None), "what was to come does not");
        assert_eq!(ladder.at(1_001, &Rungs { most: Step::Observe, ..RUNGS }, now), (Step::Observe, Some(Step::Throttle)));
    }

    #[test]
    fn a_family_that_only_tells_moves_nobody_past_an_alert() {
        let (mut ladder, now) = (Ladder::default(), Instant::now());
        assert_eq!(ladder.take(0, false, 1, 5, &RUNGS, now), Taken::Moves(Step::Alert));
        assert_eq!(ladder.take(3, false, 2, 5, &RUNGS, now), Taken::Waits);
        assert_eq!(ladder.at(1_000, &RUNGS, now), (Step::Alert, None));
    }

    #[test]
    fn a_step_comes_after_its_rows_and_stays_until_the_caller_was_calm() {
        let (mut ladder, now) = (Ladder::default(), Instant::now());
        ladder.take(1, true, 10, 5, &RUNGS, now);
        ladder.take(2, true, 20, 7, &RUNGS, now);
        assert_eq!(ladder.at(26, &RUNGS, now), (Step::Alert, None));
        assert_eq!(ladder.at(27, &RUNGS, now), (Step::Throttle, Some(Step::Alert)));
        assert_eq!(ladder.at(28, &RUNGS, now + RUNGS.calm - Duration::from_secs(1)), (Step::Throttle, None));
        assert_eq!(ladder.at(29, &RUNGS, now + RUNGS.calm), (Step::Alert, Some(Step::Throttle)));
        assert_eq!(ladder.at(30, &RUNGS, now + RUNGS.calm), (Step::Alert, None), "one step a time");
    }

    #[test]
    fn a_caller_whose_reason_goes_on_is_not_calm() {
        let (mut ladder, now) = (Ladder::default(), Instant::now());
        ladder.take(1, true, 10, 5, &RUNGS, now);
        ladder.take(2, true, 20, 7, &RUNGS, now);
        assert_eq!(ladder.at(27, &RUNGS, now).0, Step::Throttle);
        ladder.hear(now + RUNGS.calm / 2);
        assert_eq!(ladder.at(28, &RUNGS, now + RUNGS.calm), (Step::Throttle, None));
        ladder.hear(now);
        assert_eq!(ladder.at(29, &RUNGS, now + RUNGS.calm * 3 / 2).0, Step::Alert);
    }

    #[test]
    fn a_step_that_is_held_is_not_left_and_one_above_it_is() {
        let (mut ladder, now) = (Ladder::default(), Instant::now());
        assert!(ladder.spend(Step::Quarantine, 1, 5, &RUNGS, now));
        assert_eq!(ladder.at(6, &RUNGS, now).0, Step::Quarantine);
        for days in 1..5 {
            let now = now + RUNGS.calm * days;
            ladder.hold(Step::Degrade, &RUNGS, now);
            assert_eq!(ladder.at(7, &RUNGS, now).0, Step::Degrade, "{days}");
        }
    }

    #[test]
    fn a_price_is_one_step_up_from_less_and_one_down_from_quarantine() {
        let rungs = Rungs { price: true, ..RUNGS };
        let (mut ladder, mut now) = (Ladder::default(), Instant::now());
        let mut steps = Vec::new();
        for row in 0..6 {
            ladder.take((row % 2) as u8, true, row, 0, &rungs, now);
            steps.push(ladder.at(row, &rungs, now).0);
        }
        assert_eq!(steps, [Step::Alert, Step::Throttle, Step::Degrade, Step::Price, Step::Quarantine, Step::Block]);
        steps.clear();
        for row in 6..12 {
            now += rungs.calm;
            steps.push(ladder.at(row, &rungs, now).0);
        }
        assert_eq!(steps, [Step::Quarantine, Step::Price, Step::Degrade, Step::Throttle, Step::Alert, Step::Observe]);
        // Without one, who stands there goes back to the step that there is.
        let mut ladder = Ladder::default();
        assert!(ladder.spend(Step::Price, 1, 5, &rungs, now));
        assert_eq!(ladder.at(6, &rungs, now).0, Step::Price);
        assert_eq!(ladder.at(7, &RUNGS, now + RUNGS.calm).0, Step::Degrade);
        let last = Rungs { most: Step::Price, ..rungs };
        assert_eq!((Step::Degrade.next(&last), Step::Price.next(&last)), (Some(Step::Price), None));
    }

    #[test]
    fn steps_that_the_owner_does_not_allow_are_not_taken() {
        let rungs = Rungs { most: Step::Throttle, ..RUNGS };
        let (mut ladder, now) = (Ladder::default(), Instant::now());
        for family in 0..6 {
            ladder.take(family, true, 1, 5, &rungs, now);
        }
        assert_eq!(ladder.at(100, &rungs, now).0, Step::Throttle);
        assert!(!ladder.spend(Step::Degrade, 100, 5, &rungs, now));
        assert_eq!(Step::Degrade.next(&RUNGS), Some(Step::Quarantine), "without a price, there is none to pay");
        assert_eq!(Step::Degrade.next(&Rungs { price: true, ..RUNGS }), Some(Step::Price));
    }
}
