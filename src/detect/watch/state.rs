//! What is kept of one caller of one model, or of a cohort of callers.

use super::bounds::Calibration;
use super::families::{self, COUNT, Occasion, Reach, Signal, Sums};
use super::near::{self, Near};
use super::rows::Told;
use super::space::{BUCKETS, Point};
use super::telling::Row;
use super::wealth::Wealth;
use crate::detect::text::substitution::{Chains, Said};

/// Rows up to which no more is kept of a caller than they are.
const AT_FIRST: u64 = near::FIRST as u64 - 1;

/// What is kept of everyone.
#[derive(Clone, Debug)]
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
    /// With the last row a family that may act said again what it had alarmed about.
    pub(super) insists: bool,
    /// What it asked last.
    near: Near,
    /// What is kept of those who are watched closely.
    close: Option<Box<Close>>,
    /// Its last row was like nothing that is remembered of it.
    pub(super) new: bool,
}

/// What is kept of a caller that is watched closely.
#[derive(Clone, Debug)]
struct Close {
    sums: Sums,
    /// Where it has been.
    buckets: [u64; BUCKETS / 64],
    /// Its last texts, where it sends any.
    chains: Option<Box<Chains>>,
}

impl Default for Close {
    fn default() -> Self {
        Self { sums: Sums::default(), buckets: [0; BUCKETS / 64], chains: None }
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
            insists: false,
            near: Near::default(),
            close: None,
            new: false,
        }
    }
}

impl State {
    /// Learns from a row of a cohort: `new` is whether it was like nothing that its own caller asked. Of many callers less is remembered of each, and
    /// a camera that is moved is as odd in company as it is alone.
    pub(super) fn learn_of(&mut self, calibration: &Calibration, point: &Point, told: &Told, new: bool, heard: impl FnMut(usize, Signal)) {
        self.weigh(calibration, point, told, Some(new), heard);
    }

    /// Learns from a row and what it was told; tells which families come to an alarm with it. A family that has alarmed is silent until it is
    /// [listened to](Self::listen).
    pub(super) fn learn(&mut self, calibration: &Calibration, point: &Point, told: &Told, heard: impl FnMut(usize, Signal)) -> Vec<Alarm> {
        self.weigh(calibration, point, told, None, heard)
    }

    /// The same for one whom there is always room to watch closely.
    pub(super) fn learn_closely(
        &mut self,
        calibration: &Calibration,
        point: &Point,
        told: &Told,
        heard: impl FnMut(usize, Signal),
    ) -> Vec<Alarm> {
        if self.should_be_close() {
            self.come_close();
        }
        self.learn(calibration, point, told, heard)
    }

    fn weigh(
        &mut self,
        calibration: &Calibration,
        point: &Point,
        told: &Told,
        of_caller: Option<bool>,
        mut heard: impl FnMut(usize, Signal),
    ) -> Vec<Alarm> {
        let Calibration { bounds, space, bets, .. } = calibration;
        self.rows += 1;
        self.insists = false;
        let low = told.margin.is_some_and(|margin| margin < bounds.low_margin);
        // The cast is of a number that was held below its bound.
        let query = self.rows.min(u64::from(u32::MAX)) as u32;
        let mut seen = self.near.look(space, point, told, (low, near::most(bounds.of, self.is_close())), bounds.radius, query);
        // Callers take turns: what leads from one's input to another's and back is no search, nor where the one has meanwhile changed a number.
        if of_caller.is_some() && (seen.returned || seen.swept) {
            seen.line = None;
        }
        self.new = seen.is_new();
        if seen.repeat {
            self.repeats += 1;
            return Vec::new();
        }
        let (none, mut kernel) = (Sums::default(), 0.0);
        if seen.is_first() {
            let phi = space.features(&point.z);
            kernel = phi.iter().zip(&bounds.mean_phi).map(|(phi, mean)| phi * mean).sum();
            if let Some(close) = &mut self.close {
                let bucket = space.bucket(&point.z);
                let (word, bit) = (&mut close.buckets[bucket / 64], 1 << (bucket % 64));
                let new = u32::from(*word & bit == 0);
                *word |= bit;
                close.sums.add(&phi, new);
            }
        }
        let link = match (&mut self.close, &point.tokens) {
            (Some(close), Some(tokens)) => close.chains.get_or_insert_default().learn(tokens, Said { label: told.label, unsure: low }),
            _ => None,
        };
        let new = self.new && of_caller.unwrap_or(true);
        let sums = self.close.as_ref().map_or(&none, |close| &close.sums);
        let occasion = Occasion { seen: &seen, point, told, bounds, sums, new, link, kept: space.sampled().0, kernel };
        let mut alarms = Vec::new();
        for (at, family) in families::ALL.iter().enumerate().filter(|(_, family)| family.speaks(bounds.of)) {
            let Some(signal) = (family.weigh)(&occasion) else { continue };
            heard(at, signal);
            self.wealth[at] = self.wealth[at].after(signal.odd, bets[at]);
            if self.wealth[at].0 > self.richest[at].0 {
                self.richest[at] = self.wealth[at];
            }
            if self.wealth[at].0 < bets[at].alarm {
                continue;
            }
            if self.alarmed[at] {
                self.insists |= signal.odd > 0.5 && family.reach == Reach::Act;
            } else {
                self.alarmed[at] = true;
                alarms.push(Alarm { family: at, signal, wealth: self.wealth[at] });
            }
        }
        alarms
    }

    /// Remembers what a row was told, and tells how many bits that is more than it was told when it was asked before; nothing of a row that is
    /// not remembered.
    pub(super) fn told(&mut self, point: &Point, row: &Row) -> Option<f64> {
        self.near.told(point.digest, row)
    }

    /// Whether more is kept of the caller than a few rows.
    pub(super) fn is_close(&self) -> bool {
        self.close.is_some()
    }

    /// Whether the next row is one for which more should be kept.
    pub(super) fn should_be_close(&self) -> bool {
        self.close.is_none() && self.rows >= AT_FIRST
    }

    /// Keeps more of the caller from now on.
    pub(super) fn come_close(&mut self) {
        self.close.get_or_insert_default();
    }

    /// Bytes that are kept apart from it.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        let chains = |close: &Close| close.chains.as_ref().map_or(0, |chains| size_of::<Chains>() + chains.kept());
        self.near.kept() + self.close.as_ref().map_or(0, |close| size_of::<Close>() + chains(close))
    }

    /// Keeps no more of the caller than at first, but what its families have won.
    pub(super) fn step_back(&mut self) {
        self.close = None;
        self.near.forget();
    }

    /// The most that any family had that may act: what only tells makes nobody a discovery.
    pub(super) fn acting(&self) -> Wealth {
        let of_acting = families::ALL.iter().zip(self.richest).filter(|(family, _)| family.reach == Reach::Act);
        Wealth(of_acting.map(|(_, wealth)| wealth.0).fold(0.0, f32::max))
    }

    /// Lets a family begin anew, once its word has had its effect.
    pub(super) fn listen(&mut self, family: usize) {
        (self.wealth[family], self.alarmed[family]) = (Wealth::default(), false);
    }

    /// The same for all that have alarmed: what they said has been forgiven, and is to be heard when they say it again.
    pub(super) fn forgive(&mut self) {
        for family in 0..COUNT {
            if self.alarmed[family] {
                self.listen(family);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_that_only_tells_makes_nobody_a_discovery() {
        let mut state = State::default();
        for (at, family) in families::ALL.iter().enumerate() {
            state.richest[at] = Wealth(if family.reach == Reach::Act { 3.0 } else { 50.0 });
        }
        assert_eq!(state.acting(), Wealth(3.0));
    }
}
