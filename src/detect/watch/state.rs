//! What is kept of one caller of one model, or of a cohort of callers.

use super::bounds::Calibration;
use super::families::{self, COUNT, Occasion, Own, Signal, Sums};
use super::near::{Near, Seen};
use super::rows::Told;
use super::space::{BUCKETS, Point, SAMPLE, STEPS, Z};
use super::wealth::Wealth;

/// Rows of which nothing but their digests is kept: whoever asks no more than that is not watched closely.
const AT_FIRST: usize = 3;

/// Rows to which a caller's own mean is half believed.
const FEW: f32 = 5.0;

/// Rows that the mean goes back.
const LONG: f32 = 64.0;

/// What is kept of everyone.
#[derive(Debug)]
pub(super) struct State {
    /// Rows that were learned from.
    pub(super) rows: u64,
    /// Of them, rows that had been asked before.
    pub(super) repeats: u64,
    /// What each family has won.
    pub(super) wealth: [Wealth; COUNT],
    /// The most that each family ever had.
    pub(super) richest: [Wealth; COUNT],
    /// Those of the families that have alarmed since they were last listened to.
    pub(super) alarmed: [bool; COUNT],
    /// The digests of its first rows.
    first: [u64; AT_FIRST],
    /// Where the caller has been.
    buckets: [u64; BUCKETS / 64],
    /// What is kept of those who are watched closely.
    close: Option<Box<Close>>,
}

/// What is kept of a caller that is watched closely.
#[derive(Debug, Default)]
struct Close {
    near: Near,
    sums: Sums,
    mean: Mean,
}

/// What a caller's rows have in common.
#[derive(Debug)]
struct Mean {
    count: f32,
    z: [f32; Z],
    sample: [f32; SAMPLE],
}

impl Default for Mean {
    fn default() -> Self {
        Self { count: 0.0, z: [0.0; Z], sample: [0.0; SAMPLE] }
    }
}

impl Mean {
    /// How a row stands to the mean of those before, which then has it too. A few rows have no mean yet.
    fn apart(&mut self, point: &Point, kept: usize) -> Own {
        let known = self.count / (self.count + FEW);
        let of = |numbers: f32, mean: f32| (numbers - known * mean).powi(2);
        let distance = point.z.iter().zip(&self.z).map(|(z, mean)| of(*z, *mean)).sum();
        let coordinates = || point.sample[..kept].iter().map(|kept| f32::from(*kept) / STEPS);
        let energy = coordinates().zip(&self.sample).map(|(number, mean)| of(number, *mean)).sum::<f32>() / kept as f32;
        self.count += 1.0;
        let share = 1.0 / self.count.min(LONG);
        self.z.iter_mut().zip(&point.z).for_each(|(mean, z)| *mean += (z - *mean) * share);
        self.sample.iter_mut().zip(coordinates()).for_each(|(mean, number)| *mean += (number - *mean) * share);
        Own { distance, energy }
    }
}

/// A family that has come to its alarm with a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Alarm {
    /// Which, in [`families::ALL`].
    pub(super) family: usize,
    /// What it said of the row.
    pub(super) signal: Signal,
    /// What it has won.
    pub(super) wealth: Wealth,
}

impl Default for State {
    fn default() -> Self {
        Self {
            rows: 0,
            repeats: 0,
            wealth: [Wealth::default(); COUNT],
            richest: [Wealth::default(); COUNT],
            alarmed: [false; COUNT],
            first: [0; AT_FIRST],
            buckets: [0; BUCKETS / 64],
            close: None,
        }
    }
}

impl State {
    /// Learns from a row and what it was told; tells which families come to an alarm with it. A family that has alarmed is silent until it is
    /// [listened to](Self::listen).
    pub(super) fn learn(
        &mut self,
        calibration: &Calibration,
        point: &Point,
        told: &Told,
        mut heard: impl FnMut(usize, Signal),
    ) -> Vec<Alarm> {
        let Calibration { bounds, space, bets, .. } = calibration;
        self.rows += 1;
        let low = told.margin.is_some_and(|margin| margin < bounds.low_margin);
        let seen = match (&mut self.close, usize::try_from(self.rows - 1)) {
            (None, Ok(row)) if row < AT_FIRST => {
                let repeat = self.first.contains(&point.digest);
                self.first[row] = point.digest;
                Seen { repeat, follows: row > 0, ..Seen::default() }
            }
            (close, _) => close.get_or_insert_default().near.look(space, point, told, low, bounds.radius, self.rows),
        };
        if seen.repeat {
            self.repeats += 1;
            return Vec::new();
        }
        let (none, mut kernel) = (Sums::default(), 0.0);
        if seen.is_first() {
            let phi = space.features(&point.z);
            kernel = phi.iter().zip(&bounds.mean_phi).map(|(phi, mean)| phi * mean).sum();
            let bucket = space.bucket(&point.z);
            let (word, bit) = (&mut self.buckets[bucket / 64], 1 << (bucket % 64));
            let new = u32::from(*word & bit == 0);
            *word |= bit;
            if let Some(close) = &mut self.close {
                close.sums.add(&phi, new);
            }
        }
        let own = match &mut self.close {
            Some(close) => close.mean.apart(point, space.sampled().0),
            None => Own { distance: f32::INFINITY, energy: f32::INFINITY },
        };
        let sums = self.close.as_ref().map_or(&none, |close| &close.sums);
        let occasion = Occasion { seen: &seen, point, told, bounds, sums, own: &own, kept: space.sampled().0, kernel };
        let mut alarms = Vec::new();
        for (at, family) in families::ALL.iter().enumerate() {
            let Some(signal) = (family.weigh)(&occasion) else { continue };
            heard(at, signal);
            self.wealth[at] = self.wealth[at].after(signal.odd, bets[at]);
            if self.wealth[at].0 > self.richest[at].0 {
                self.richest[at] = self.wealth[at];
            }
            if self.wealth[at].0 >= bets[at].alarm && !self.alarmed[at] {
                self.alarmed[at] = true;
                alarms.push(Alarm { family: at, signal, wealth: self.wealth[at] });
            }
        }
        alarms
    }

    /// Lets a family begin anew, once its word has had its effect.
    pub(super) fn listen(&mut self, family: usize) {
        (self.wealth[family], self.alarmed[family]) = (Wealth::default(), false);
    }
}
