//! Where and when a caller asks, for as long as a day: by that, callers who work together are [found](super::cohorts).
//!
//! Of the many who ask a few times nothing is kept: who comes with ever new keys fills no memory by it.

use std::net::IpAddr;
use std::sync::Arc;

use super::callers::Rules;
use super::cohorts::{Member, SPANS};
use super::together::SIGNS;
use crate::clock::Moment;
use crate::detect::text::sketch::NUMBERS;
use crate::trail::Who;

/// Prompts of a caller of which nothing is kept.
pub const FIRST: u32 = 8;

/// The bytes of one caller's habits at most: 11 MiB for all that are [remembered](super::callers).
pub const MOST_BYTES: usize = 576;

const _: () = assert!(size_of::<Habits>() <= MOST_BYTES);

/// Seconds of a span.
pub const SPAN: u64 = 900;

/// Prompts from which on older ones count half.
const FADE: u32 = 1_024;

/// The span that a moment lies in, counted from the epoch.
pub(super) fn span(now: Moment) -> u32 {
    u32::try_from(now.unix_seconds() / SPAN).unwrap_or(u32::MAX)
}

/// Those of one caller of one model.
#[derive(Clone, Debug)]
pub(super) struct Habits {
    pub(super) who: Arc<Who>,
    /// Where it asked from last.
    pub(super) address: IpAddr,
    /// Under which rules.
    pub(super) rules: Rules,
    /// In which span people were last told of it as one of a campaign, by sign; 0 for never.
    pub(super) told: [u32; SIGNS],
    member: Member,
    last: u32,
}

impl Habits {
    pub(super) fn new(who: Arc<Who>, address: IpAddr, rules: Rules) -> Self {
        let member = Member { sum: [0.0; NUMBERS], prompts: 0, rates: [0; SPANS] };
        Self { who, address, rules, told: [0; SIGNS], member, last: 0 }
    }

    /// Sees a prompt by its sketch.
    pub(super) fn ask(&mut self, sketch: &[f32; NUMBERS], span: u32) {
        // A clock that was set back counts on where it was.
        let span = span.max(self.last);
        self.pass(span);
        let Member { sum, prompts, rates } = &mut self.member;
        if *prompts >= FADE {
            *prompts /= 2;
            sum.iter_mut().for_each(|number| *number *= 0.5);
        }
        sum.iter_mut().zip(sketch).for_each(|(sum, number)| *sum += number);
        *prompts += 1;
        let rate = &mut rates[span as usize % SPANS];
        *rate = rate.saturating_add(1);
    }

    /// The caller as of a span; nothing for who was silent all day.
    pub(super) fn member(&self, span: u32) -> Option<Member> {
        let mut now = self.clone();
        now.pass(span.max(self.last));
        now.member.rates.iter().any(|rate| *rate > 0).then_some(now.member)
    }

    /// Clears the spans after the last one, up to and with this one.
    fn pass(&mut self, span: u32) {
        let passed = (span - self.last).min(SPANS as u32);
        (0..passed).for_each(|back| self.member.rates[(span - back) as usize % SPANS] = 0);
        self.last = span;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn habits() -> Habits {
        let who = Who { caller: "a".into(), tenant: "".into(), tier: "".into(), method: "api_key" };
        Habits::new(Arc::new(who), [127, 0, 0, 1].into(), Rules::default())
    }

    #[test]
    fn a_day_of_rates_is_kept_and_a_span_more_pushes_the_oldest_out() {
        let mut habits = habits();
        let day = SPANS as u32;
        (1_000..1_000 + day).for_each(|span| habits.ask(&[1.0; NUMBERS], span));
        let rates = habits.member(1_000 + day - 1).unwrap().rates;
        assert_eq!(rates, [1; SPANS]);
        let rates = habits.member(1_000 + day).unwrap().rates;
        assert_eq!((rates.iter().filter(|rate| **rate == 0).count(), rates[1_000 % SPANS]), (1, 0));
        assert!(habits.member(1_000 + 2 * day - 2).is_some());
        assert_eq!(habits.member(1_000 + 2 * day - 1), None, "silent for a day");
        // What a look leaves out is still there.
        assert_eq!(habits.member(1_000 + day - 1).unwrap().rates, [1; SPANS]);
    }

    #[test]
    fn the_same_span_of_two_callers_has_one_place_whenever_they_came() {
        let (mut one, mut other) = (habits(), habits());
        one.ask(&[0.0; NUMBERS], 70);
        (0..3).for_each(|_| one.ask(&[0.0; NUMBERS], 500));
        (0..3).for_each(|_| other.ask(&[0.0; NUMBERS], 500));
        assert_eq!(one.member(510).unwrap().rates, other.member(510).unwrap().rates);
    }

    #[test]
    fn a_clock_that_is_set_back_loses_nothing_and_counts_on() {
        let mut habits = habits();
        habits.ask(&[0.0; NUMBERS], 500);
        habits.ask(&[0.0; NUMBERS], 400);
        assert_eq!(habits.member(450).unwrap().rates[500 % SPANS], 2);
        (0..70_000).for_each(|_| habits.ask(&[0.0; NUMBERS], 500));
        assert_eq!(habits.member(500).unwrap().rates[500 % SPANS], u16::MAX);
    }

    #[test]
    fn a_caller_is_where_its_last_prompts_are() {
        let mut habits = habits();
        (0..FADE).for_each(|_| habits.ask(&[1.0; NUMBERS], 1));
        (0..4 * FADE).for_each(|_| habits.ask(&[-1.0; NUMBERS], 1));
        let member = habits.member(1).unwrap();
        assert!(member.prompts <= FADE && member.sum[0] / (member.prompts as f32) < -0.9);
    }
}
