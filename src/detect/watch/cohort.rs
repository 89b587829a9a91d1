//! Callers who may be one: what is kept of a cohort, and what it says of those who belong to it.
//!
//! A thief with many keys leaves on each of them too little to be seen, and on all of them together what he would have left on one. So a
//! cohort is watched like a caller: the rows of all go into one state, where a search along a line is one line again, whichever keys its
//! steps came with.
//!
//! # How often a cohort may be wrong
//! A family's wealth does not fall below a floor, and so false alarms are in proportion to rows: among honest rows, wealth comes to A within
//! T of them with a probability of at most about T·e^(-A) (Shin, Ramdas and Rinaldo, 2024, arXiv 2203.03532). The level at which a caller
//! alarms gives the policy's rate for the rows of one caller in a day. A cohort of n callers asks n times as many, and a caller is of up to
//! [`KINDS`] cohorts: a level that is higher by ln([`KINDS`]·n) leaves each cohort, on its day, with a part of that rate such that all cohorts
//! together add at most as many alarms as the callers have alone. n is counted, not declared; with more keys a thief raises the
//! level by the logarithm of what he adds in evidence.
//!
//! That is for rows whose mean is at most the benign rate, on the average over the cohort, which a recording says of all honest callers together
//! and not of a cohort of the oddest kind alone. What keeps those quiet is measured: 3,000 honest callers each of a model of digits and of a
//! table, in groups of 2 to 50 of one kind or of all, came to no alarm but of two pairs of 1,500, both of `outlier`, which only tells. Callers who take turns look like a search that goes back and forth, and that is known by its going
//! back ([`Seen::returned`](super::near::Seen)).

use super::bounds::Calibration;
use super::families::{COUNT, Signal};
use super::rows::Told;
use super::space::Point;
use super::state::{Alarm, State};
use super::wealth::Wealth;
use crate::detect::distinct::Distinct;

/// How many kinds of cohorts there are.
pub(in crate::detect) const KINDS: usize = 3;

/// The natural logarithm of what a caller must have won of its cohort's evidence, to be spoken of for it.
const PART: f32 = 2.0;

/// Those who belong to a cohort.
#[derive(Clone, Debug, Default)]
pub(super) struct Company {
    callers: Distinct<64>,
    /// How much higher the level of an alarm is.
    surplus: f32,
}

impl Company {
    /// Counts a caller by a keyed hash of its name.
    pub(super) fn see(&mut self, caller: u64) {
        if self.callers.see(caller) {
            self.surplus = (KINDS as f64 * self.callers.estimate().max(1.0)).ln() as f32;
        }
    }

    /// About how many they are.
    pub(super) fn callers(&self) -> u64 {
        self.callers.estimate().round() as u64
    }
}

/// A caller's part in the evidence against a cohort of its.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Part {
    /// What its own rows would have won, as the cohort sees them.
    wealth: [Wealth; COUNT],
    /// The families that have been told of.
    told: [bool; COUNT],
    /// It was told that the cohort's budget is spent.
    pub(super) spent: bool,
}

/// Lets a cohort learn from a row of one of its callers, and says what it now holds against that one: families that stand at their level, to
/// whose evidence the caller has given, once each for as long as they stand.
pub(super) fn learn(
    state: &mut State,
    company: &Company,
    part: &mut Part,
    calibration: &Calibration,
    (point, told, new): (&Point, &Told, bool),
) -> Vec<Alarm> {
    let mut heard = [None::<Signal>; COUNT];
    state.learn_of(calibration, point, told, new, |family, signal| heard[family] = Some(signal));
    let mut words = Vec::new();
    for (family, signal) in heard.iter().enumerate() {
        let (Some(signal), bet) = (*signal, calibration.bets[family]) else { continue };
        part.wealth[family] = part.wealth[family].after(signal.odd, bet);
        let wealth = state.wealth[family];
        if wealth.0 <= 0.0 {
            part.told[family] = false;
        }
        let stands = wealth.0 >= bet.alarm + company.surplus;
        if stands && signal.odd > bet.rate && part.wealth[family].0 >= PART && !part.told[family] {
            part.told[family] = true;
            words.push(Alarm { family, signal, wealth });
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_callers_need_more_evidence_by_the_logarithm_and_each_is_counted_once() {
        let mut company = Company::default();
        for caller in 1..=16_u64 {
            for _ in 0..3 {
                company.see(caller.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            }
            let exactly = (KINDS as f32 * caller as f32).ln();
            assert!((company.surplus - exactly).abs() < 0.3, "{caller}: {} for {exactly}", company.surplus);
        }
        assert!((13..=19).contains(&company.callers()));
    }
}
