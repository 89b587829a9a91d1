//! Evidence as wealth: a test by betting for each family (Shekhar and Ramdas, 2023, arXiv 2112.09162).
//!
//! A family's signal is a number from 0 to 1 whose mean for an honest caller is at most the benign rate. Whoever bets on more than that
//! keeps, on the average, no more than he had: wealth is an e-process, and the probability that it ever grows to 1/α is at most α (Ville, 1939).
//! So that a caller who was honest for long does not have that as a credit, wealth does not fall below a floor, which makes it an e-detector
//! (Shin, Ramdas and Rinaldo, 2024, arXiv 2203.03532). What that costs is measured when a model is calibrated.

use serde::{Deserialize, Serialize};

/// The natural logarithm of the least wealth.
const FLOOR: f32 = -1.0;

/// The natural logarithm of the most wealth: more says nothing more.
pub(super) const CEILING: f32 = 60.0;

/// The most that is staked.
const BOLDEST: f32 = 20.0;

/// How a family bets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bet {
    /// The most that the mean of an honest caller's signal is.
    pub(super) rate: f32,
    /// The natural logarithm of the wealth at which the family alarms.
    pub(super) alarm: f32,
}

impl Bet {
    /// That of a family which never speaks.
    pub(super) const SILENT: Self = Self { rate: 1.0, alarm: f32::INFINITY };

    /// What is staked: as much as never loses more than half of the wealth.
    pub(super) fn stake(self) -> f32 {
        (0.5 / self.rate.max(f32::MIN_POSITIVE)).min(BOLDEST)
    }
}

/// The logarithm of a family's wealth.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Wealth(pub(super) f32);

impl Wealth {
    /// After a signal from 0 to 1.
    pub(super) fn after(self, signal: f32, bet: Bet) -> Self {
        let grown = self.0 + (bet.stake() * (signal.clamp(0.0, 1.0) - bet.rate)).max(-0.99).ln_1p();
        Self(grown.clamp(FLOOR, CEILING))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::watch::noise::Noise;

    const BET: Bet = Bet { rate: 0.05, alarm: 6.907_755 };

    #[test]
    fn an_honest_caller_who_always_was_hardly_ever_comes_to_an_alarm() {
        let mut noise = Noise::new(&[3; 32], "honest");
        let mut ever = 0;
        for _ in 0..20_000 {
            let mut wealth = Wealth(0.0);
            for _ in 0..50 {
                let signal = f32::from(noise.uniform() < BET.rate);
                wealth = wealth.after(signal, BET);
                if wealth.0 >= BET.alarm {
                    ever += 1;
                    break;
                }
            }
        }
        // 20 are expected at most without a floor, which multiplies that by a few: what it comes to is measured by calibrate.
        assert!(ever <= 120, "{ever}");
    }

    #[test]
    fn signals_that_go_on_come_to_an_alarm_soon() {
        let mut wealth = Wealth(FLOOR);
        let soon = (1..10).find(|_| {
            wealth = wealth.after(1.0, BET);
            wealth.0 >= BET.alarm
        });
        assert_eq!(soon, Some(4));
    }

    #[test]
    fn wealth_stays_between_its_bounds() {
        let mut wealth = Wealth(0.0);
        (0..1_000).for_each(|_| wealth = wealth.after(0.0, BET));
        assert_eq!(wealth.0, FLOOR);
        (0..1_000).for_each(|_| wealth = wealth.after(1.0, BET));
        assert_eq!(wealth.0, CEILING);
    }
}
