//! What was asked and is not learned yet, counted against budgets while it is under way: many requests at once take no more past one than the last
//! of them alone does.
//!
//! Bits are held for as many rows as were asked, at the most that one can tell. What rows teach a copy is only known once their answers are, and those
//! before them say nothing of it, as they may have been rubbish: where a copy's fidelity is bounded, no more rows are under way than were learned
//! before, or [`FIRST_ROWS`].

use std::sync::Arc;

use super::loss::{Budgets, Exposure};
use super::rows::is_floating;
use super::{Pupil, telling};
use crate::budget::gate::locked;
use crate::check::Contract;
use crate::detect::Known;
use crate::detect::exposure::bits::{Grain, Told};

/// Rows that may be under way before anything is known of what they teach.
const FIRST_ROWS: u64 = 256;

/// What is under way of one caller.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Awaited {
    rows: u64,
    bits: f64,
}

impl Awaited {
    pub(super) fn of(rows: u64, bits_a_row: f64) -> Self {
        Self { rows, bits: bits_a_row * rows as f64 }
    }

    fn add(&mut self, other: Self) {
        *self = Self { rows: self.rows.saturating_add(other.rows), bits: self.bits + other.bits };
    }

    fn take(&mut self, other: Self) {
        let rows = self.rows.saturating_sub(other.rows);
        // What sums lose in rounding is not to stay.
        *self = Self { rows, bits: if rows == 0 { 0.0 } else { (self.bits - other.bits).max(0.0) } };
    }

    /// Whether a budget may be spent with all that is under way of a caller who `has` so much. Of a copy's fidelity none is, where it is not measured.
    pub(super) fn may_spend(&self, has: Exposure, budgets: &Budgets, is_measured: bool) -> bool {
        if self.rows == 0 {
            return false;
        }
        let copied = is_measured && budgets.bounds_fidelity() && self.rows >= has.rows.max(FIRST_ROWS);
        copied || budgets.told(has.bits + self.bits) >= 1.0
    }
}

/// What one request has under way; given back when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Held(Option<(Arc<Known>, Awaited)>);

impl Held {
    /// Counts what a request asks for as under way, with the lock of the caller's pupil held.
    pub(super) fn of(known: &Arc<Known>, pupil: &mut Pupil, asked: Awaited) -> Self {
        pupil.awaited.add(asked);
        Self(Some((known.clone(), asked)))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some((known, asked)) = self.0.take() {
            locked(&known.pupil).awaited.take(asked);
        }
    }
}

/// The most bits that the outputs of a model tell of a row, by their names; what has no bound in the contract counts as `likely`, what the owner's
/// rows say of its classes.
#[derive(Clone, Debug, Default)]
pub(super) struct Most {
    outputs: Vec<(String, f64)>,
    likely: f64,
    label: f64,
}

impl Most {
    pub(super) fn of(contract: Option<&Contract>, classes: u32) -> Self {
        let likely = Told::Numbers { count: classes.max(1), grain: Grain::Single }.bits();
        let label = Told::Label { classes: classes.max(2) }.bits();
        let outputs = contract.map_or(&[][..], |contract| &contract.outputs).iter().map(|port| {
            let grain = telling::finest(port.datatype);
            let mut count = port.shape.iter().skip(1).map(|dimension| u32::try_from((*dimension)?).ok());
            let count = count.try_fold(1_u32, |all, dimension| Some(all.saturating_mul(dimension?)));
            let bits = count.map_or(likely, |count| Told::Numbers { count, grain }.bits());
            (port.name.clone(), if is_floating(port.datatype) { bits } else { label })
        });
        Self { outputs: outputs.collect(), likely, label }
    }

    /// Of a row of which these outputs are asked for, or all where none is named.
    pub(super) fn of_row<'a>(&self, named: impl Iterator<Item = &'a str>) -> f64 {
        let mut named = named.peekable();
        if named.peek().is_none() {
            let all: f64 = self.outputs.iter().map(|(_, bits)| bits).sum();
            return if self.outputs.is_empty() { self.likely } else { all };
        }
        named.map(|name| self.outputs.iter().find(|(output, _)| output == name).map_or(self.likely, |(_, bits)| *bits)).sum()
    }

    /// Of a row that is answered with a label.
    pub(super) fn label(&self) -> f64 {
        self.label
    }
}

#[cfg(test)]
mod tests;
