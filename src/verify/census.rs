//! Counts of entries and of requests, as heartbeats tell them and as `/metrics` does.

use super::statement::Kind;

/// A place for each kind, by its number.
const PLACES: usize = 16;

/// Entries by kind, and the bytes of answers that they tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// The number of the heartbeat with which this process began, itself counted.
    pub began: u64,
    /// Bytes of the answers and refusals that the entries are about, as far as they were sent.
    pub bytes: u64,
    by_kind: [u64; PLACES],
}

impl Census {
    /// Nothing, from entry `began` on.
    #[must_use]
    pub fn from(began: u64) -> Self {
        Self { began, ..Self::default() }
    }

    /// One entry more, about an answer of `bytes`.
    pub fn count(&mut self, kind: Kind, bytes: u64) {
        self.add(kind, 1);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// More entries of one kind.
    pub fn add(&mut self, kind: Kind, entries: u64) {
        let place = &mut self.by_kind[kind as usize % PLACES];
        *place = place.saturating_add(entries);
    }

    /// How many entries of a kind.
    #[must_use]
    pub fn of(&self, kind: Kind) -> u64 {
        self.by_kind[kind as usize % PLACES]
    }

    /// How many entries in all.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.by_kind.iter().fold(0, |sum, entries| sum.saturating_add(*entries))
    }

    /// How many entries about requests: answers, refusals, failures, streams that broke off.
    #[must_use]
    pub fn about_requests(&self) -> u64 {
        [Kind::Inference, Kind::Deny, Kind::Error, Kind::Aborted].into_iter().map(|kind| self.of(kind)).sum()
    }

    /// Each kind with its count.
    pub fn kinds(&self) -> impl Iterator<Item = (Kind, u64)> {
        Kind::ALL.into_iter().map(|kind| (kind, self.of(kind)))
    }
}

/// What requests did, counted as it happens and in no order with the entries: at any moment `accepted` is ahead by what is in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests that were handed to a model or an upstream, whatever came of it.
    pub forwarded: u64,
    /// Requests whose caller, or whose connection, was gone before there was an answer.
    pub abandoned: u64,
    /// Requests that reached the way.
    pub accepted: u64,
}
