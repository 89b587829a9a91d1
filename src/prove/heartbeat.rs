//! Heartbeats: entries that count, so that one that is missing shows.
//!
//! One when the log is opened, one when it is closed, and one every [`EVERY`] between them. Each tells what this process has done up to
//! its own number: the entries before it by kind, the bytes of their answers, and what became of requests. A heartbeat of another sort is
//! written within a second of the first answer without an entry or refusal without a receipt; it counts those alone.

use std::sync::Arc;
use std::time::Duration;

use super::census::Counting;
use super::statement::{Signer, clip, fresh_id};
use crate::clock::Moment;
use crate::verify::cbor::Writer;
use crate::verify::census::{Census, Traffic};
use crate::verify::heartbeat::{Counted, Heartbeat, Life};
use crate::verify::statement::Kind;

/// How often the counts are told, in a process that does not end.
pub(super) const EVERY: Duration = Duration::from_secs(60);
/// How many codes a heartbeat tells; there are fewer in the program.
const MAX_CODES: usize = 128;

/// What heartbeats are made of.
pub(super) struct Heart {
    pub(super) signer: Arc<Signer>,
    pub(super) counting: Counting,
    /// When this process opened the log.
    pub(super) opened: Moment,
}

impl Heart {
    /// Counts a heartbeat that draws the number `seq`, and tells what stood before it. To be called under the lock of the numbers: a
    /// request is accepted before it has an entry, so that no entry is ahead of what was accepted.
    pub(super) fn count(&self, life: Life, seq: u64) -> (Census, Traffic) {
        if life == Life::Began {
            self.counting.begin(seq);
        }
        (self.counting.count(Kind::Heartbeat, 0), self.counting.traffic())
    }

    /// The heartbeat of number `seq` that tells these counts.
    pub(super) fn beat(&self, seq: u64, life: Life, resumed_after: Option<u64>, (census, traffic): (Census, Traffic)) -> Vec<u8> {
        let counted = Some(Counted { life, traffic, census });
        self.entry(seq, &Heartbeat { resumed_after, counted, ..Heartbeat::default() })
    }

    /// A heartbeat of number `seq`.
    pub(super) fn entry(&self, seq: u64, told: &Heartbeat<&'static str>) -> Vec<u8> {
        self.signer.heartbeat(seq, self.opened.unix_nanos(), Moment::now().unix_nanos(), told)
    }
}

impl Signer {
    /// A count of what has no entry of its own, and of what has.
    pub(super) fn heartbeat(&self, seq: u64, t0: u64, t1: u64, told: &Heartbeat<&'static str>) -> Vec<u8> {
        let mut to = Writer::with_room(256);
        to.map(7 + usize::from(self.has_build()));
        self.begin(&mut to, Kind::Heartbeat, seq, t0, t1);
        self.end(&mut to);
        let codes = told.suppressed.len().min(MAX_CODES);
        let counted = if told.counted.is_some() { 6 } else { 0 };
        to.uint(16).map(1 + usize::from(codes > 0) + usize::from(told.resumed_after.is_some()) + counted).uint(1).uint(told.gaps);
        if codes > 0 {
            to.uint(2);
            by_name(&mut to, told.suppressed.iter().take(codes).map(|(code, count)| (clip(code), *count)).collect());
        }
        if let Some(last) = told.resumed_after {
            to.uint(3).uint(last);
        }
        if let Some(Counted { life, traffic, census }) = &told.counted {
            to.uint(4).uint(*life as u64).uint(5).uint(traffic.accepted).uint(6).uint(traffic.forwarded).uint(7).uint(traffic.abandoned);
            to.uint(8);
            by_name(&mut to, census.kinds().filter(|(_, count)| *count > 0).map(|(kind, count)| (kind.as_str(), count)).collect());
            to.uint(9).uint(census.bytes);
        }
        self.seal(fresh_id(t1), t1, &to.done(), false)
    }
}

/// A map from texts to counts, in the bytewise order of the encoded keys (RFC 8949 §4.2.1): a shorter text has a smaller head.
fn by_name(to: &mut Writer, mut counts: Vec<(&str, u64)>) {
    counts.sort_unstable_by_key(|(name, _)| (name.len(), *name));
    to.map(counts.len());
    for (name, count) in counts {
        to.text(name).uint(count);
    }
}

#[cfg(test)]
#[path = "heartbeat/tests.rs"]
mod tests;
