//! Heartbeats: entries that count, so that one that is missing shows.
//!
//! One when the log is opened, one when it is closed, and one every [`EVERY`] between them. Each tells what this process has done up to
//! its own number: the entries before it by kind, the bytes of their answers, and what became of requests. A heartbeat of another sort is
//! written within a second of the first answer without an entry or refusal without a receipt; it counts those alone.

use std::sync::Arc;
use std::time::Duration;

use ciborium::Value;

use super::census::{Census, Counting, Traffic};
use super::statement::{Signer, clip, fresh_id};
use crate::clock::Moment;
use crate::verify::cbor::Writer;
use crate::verify::statement::{Kind, Statement, map, unsigned};

/// How often the counts are told, in a process that does not end.
pub const EVERY: Duration = Duration::from_secs(60);
/// How many codes a heartbeat tells; there are fewer in the program.
const MAX_CODES: usize = 128;

/// Where in the life of its process a heartbeat stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Life {
    /// The process has opened the log, or goes on after a full disk took entries back. Its counts are all zero: what is counted follows it.
    Began = 1,
    /// It runs.
    Runs = 2,
    /// It closes the log. Answers that are cut then may still follow.
    Ended = 3,
}

/// What a process has done up to a heartbeat's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Where it stands.
    pub life: Life,
    /// What requests did.
    pub traffic: Traffic,
    /// The entries from the one that began the process up to this one, which is not counted. Read back, [`Census::began`] is 0: it is not told.
    pub census: Census,
}

/// What a heartbeat tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat<C> {
    /// Answers without an entry, since it was last told.
    pub gaps: u64,
    /// Refusals without a receipt, by code, since it was last told.
    pub suppressed: Vec<(C, u64)>,
    /// The last number before a restart that may have lost entries.
    pub resumed_after: Option<u64>,
    /// What was counted; not in a heartbeat that was written for gaps and refusals alone.
    pub counted: Option<Counted>,
}

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

impl Statement {
    /// What a heartbeat tells; `None` of other entries, and of counts that this version cannot read.
    #[must_use]
    pub fn heartbeat(&self) -> Option<Heartbeat<String>> {
        let counts = (self.kind == Kind::Heartbeat).then(|| map(&self.fields, 16)).flatten()?;
        let counted = match unsigned(counts, 4) {
            None => None,
            Some(life) => {
                let life = [Life::Began, Life::Runs, Life::Ended].into_iter().find(|known| *known as u64 == life)?;
                let traffic = Traffic { accepted: unsigned(counts, 5)?, forwarded: unsigned(counts, 6)?, abandoned: unsigned(counts, 7)? };
                let mut census = Census::from(0);
                census.bytes = unsigned(counts, 9)?;
                for (name, count) in named(map(counts, 8)?)? {
                    census.add(Kind::ALL.into_iter().find(|kind| kind.as_str() == name)?, count);
                }
                Some(Counted { life, traffic, census })
            }
        };
        Some(Heartbeat {
            gaps: unsigned(counts, 1)?,
            suppressed: map(counts, 2).map_or(Some(Vec::new()), named)?,
            resumed_after: unsigned(counts, 3),
            counted,
        })
    }

    /// The bytes of the answer that it tells were handed over; nothing where it is about no answer.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        map(&self.fields, 8).and_then(|answer| unsigned(answer, 6)).unwrap_or(0)
    }
}

fn named(counts: &[(Value, Value)]) -> Option<Vec<(String, u64)>> {
    let pair = |(name, count): &(Value, Value)| Some((name.as_text()?.to_owned(), u64::try_from(count.as_integer()?).ok()?));
    counts.iter().map(pair).collect()
}

#[cfg(test)]
#[path = "heartbeat/tests.rs"]
mod tests;
