//! Completeness: whether the entries of a log are those that its heartbeats, and the gateway's metrics, have counted.
//!
//! Inclusion shows that an entry is there; it shows nothing of an entry that is not. Three counts do:
//!
//! 1. **Heartbeats against entries**, exactly. A heartbeat counts the entries of its process with a number below its own, by kind, and
//!    the bytes of their answers. Whoever takes an entry out, or puts one in, has to sign every heartbeat after it anew.
//! 2. **Metrics against entries**, exactly. The scrape counts the entries up to one number, which it tells by their sum. A log that went
//!    on since is read to that number.
//! 3. **Requests against entries**, within bounds. What was accepted is never less than the requests that entries are about, and more by
//!    what was in flight at that moment, what has no entry (gaps, refusals past the allowance, both told by heartbeats), and what was
//!    abandoned. A request has one entry, or two: an answer that did not come as far as the policy demands is refused by a second one,
//!    which tells by its trail that a model had answered.
//!
//! Gaps and refusals past the allowance are told by heartbeats within a second: in a process that goes on, those of the last second may
//! be in the metrics and not in the log yet. Nothing here looks at a signature or a proof: see [`super::log`].

mod openmetrics;

use std::collections::BTreeMap;
use std::io;

use serde::Serialize;

use super::census::{Census, Traffic};
use super::heartbeat::{Counted, Life};
use super::statement::{Kind, Statement};
pub use openmetrics::{MAX_METRICS, Metrics, NotMetrics};

/// How many problems are told; more are counted.
pub(crate) const TOLD: usize = 100;

/// What became of the counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reconciled {
    /// Whether all counts agree.
    pub ok: bool,
    /// Times that the log was opened.
    pub processes: u64,
    /// Heartbeats that agree with the entries before them.
    pub heartbeats: u64,
    /// Entries that a heartbeat or the metrics vouch for.
    pub counted: u64,
    /// Entries after the last heartbeat, which no count vouches for yet.
    pub uncounted: u64,
    /// What does not agree: the first hundred.
    pub problems: Vec<String>,
    /// How many more problems there are.
    pub more_problems: u64,
    /// What is worth knowing and is no disagreement.
    pub notes: Vec<String>,
}

/// Reads entries in order and holds the counts against them.
#[derive(Debug)]
pub struct Reconciler<'a> {
    metrics: Option<&'a Metrics>,
    reached: Reached,
    span: Option<Span>,
    /// The number of the first entry there is.
    first: Option<u64>,
    so_far: Reconciled,
}

/// How far the metrics' own part of the log was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    /// The process that the metrics are of has not begun.
    No,
    /// It has begun, and the entry that the metrics end at is still to come.
    Began,
    /// The entries agree; their bytes may agree further on.
    Entries,
    /// All was compared.
    All,
}

/// The entries of one process.
#[derive(Debug, Default)]
struct Span {
    census: Census,
    /// Whether its beginning is in the log. Where it is not, the first heartbeat is believed.
    known: bool,
    /// Entries since the last heartbeat that counted, and it itself: the next one vouches for them.
    since: u64,
    /// Those that follow it.
    after: u64,
    traffic: Traffic,
    gaps: u64,
    suppressed: BTreeMap<String, u64>,
    /// Entries that refuse an answer which has one, too.
    second: u64,
    ended: bool,
}

impl Span {
    /// How many requests the entries of `census` are about. Each second entry is behind an answer's: there are never more of them.
    fn requests(&self, census: &Census) -> u64 {
        census.about_requests() - self.second.min(census.of(Kind::Inference)).min(census.of(Kind::Error))
    }
}

/// Holds the heartbeats, and the metrics if there are any, against the entries of a log: indices and bytes, oldest first.
///
/// # Errors
/// When an entry cannot be read.
pub fn reconcile(entries: impl IntoIterator<Item = io::Result<(u64, Vec<u8>)>>, metrics: Option<&Metrics>) -> io::Result<Reconciled> {
    let mut reconciler = Reconciler::new(metrics);
    let mut next = None;
    for entry in entries {
        let (index, entry) = entry?;
        if next.replace(index.saturating_add(1)).is_some_and(|next| next < index) {
            reconciler.skip();
        }
        let statement = Statement::read(&entry).map_err(|error| io::Error::other(format!("entry {index}: {error}")))?;
        reconciler.entry(&statement);
    }
    Ok(reconciler.finish())
}

impl<'a> Reconciler<'a> {
    /// Nothing read yet.
    #[must_use]
    pub fn new(metrics: Option<&'a Metrics>) -> Self {
        Self { metrics, reached: Reached::No, span: None, first: None, so_far: Reconciled::default() }
    }

    /// Takes the next entry.
    pub fn entry(&mut self, statement: &Statement) {
        self.first.get_or_insert(statement.seq);
        let heartbeat = statement.heartbeat();
        if statement.kind == Kind::Heartbeat && heartbeat.is_none() {
            self.problem(format!("seq {}: a heartbeat whose counts cannot be read", statement.seq));
        }
        let counted = heartbeat.as_ref().and_then(|heartbeat| heartbeat.counted);
        if let Some(Counted { life: Life::Began, census, .. }) = counted {
            self.close();
            if census.entries() != 0 || census.bytes != 0 {
                self.problem(format!("seq {}: a process begins, and counts entries before it", statement.seq));
            }
            self.so_far.processes += 1;
            self.span = Some(Span { census: Census::from(statement.seq), known: true, ..Span::default() });
            if self.metrics.is_some_and(|metrics| metrics.census.began == statement.seq) {
                self.reached = Reached::Began;
            }
        } else if let Some(counted) = counted {
            self.held_against(statement.seq, counted);
        }
        self.compare();
        let span = self.span.get_or_insert_default();
        if let Some(heartbeat) = heartbeat {
            span.gaps = span.gaps.saturating_add(heartbeat.gaps);
            for (code, count) in heartbeat.suppressed {
                *span.suppressed.entry(code).or_default() += count;
            }
        }
        span.second += u64::from(statement.refuses_an_answer());
        span.census.count(statement.kind, statement.bytes_sent());
        span.since += 1;
        span.after = if counted.is_some() { 0 } else { span.after + 1 };
    }

    /// Entries before the next one were pruned while those before them were read: it is gone on from there, as in a log that begins there.
    fn skip(&mut self) {
        (self.span, self.first) = (None, None);
        if self.reached != Reached::All {
            self.reached = Reached::No;
        }
    }

    /// All that was found.
    #[must_use]
    pub fn finish(mut self) -> Reconciled {
        self.close();
        let began_before = |metrics: &Metrics| self.first.is_some_and(|first| first > metrics.census.began);
        if let (Some(metrics), Reached::No) = (self.metrics.filter(|metrics| began_before(metrics)), self.reached) {
            let began = metrics.census.began;
            self.so_far.notes.push(format!("the metrics count from entry {began} on, which was pruned: they were not compared"));
        } else if let (Some(metrics), Reached::No) = (self.metrics, self.reached) {
            self.problem(format!("the metrics are of a process that began with entry {}, which is not in the log", metrics.census.began));
        }
        self.so_far.ok = self.so_far.problems.is_empty();
        self.so_far
    }

    /// A heartbeat that counts, before it is counted itself.
    fn held_against(&mut self, seq: u64, counted: Counted) {
        let mut problems = Vec::new();
        let span = self.span.get_or_insert_default();
        if span.known {
            for (kind, held) in span.census.kinds() {
                let told = counted.census.of(kind);
                if told != held {
                    problems
                        .push(format!("seq {seq}: the heartbeat counts {told} entries of kind {}, the log holds {held}", kind.as_str()));
                }
            }
            if counted.census.bytes != span.census.bytes {
                let (told, held) = (counted.census.bytes, span.census.bytes);
                problems.push(format!("seq {seq}: the heartbeat counts {told} bytes of answers, the entries tell {held}"));
            }
        } else {
            // Of what was pruned, or cut off, any failure may have been a second entry.
            let unseen = |kind| counted.census.of(kind).saturating_sub(span.census.of(kind));
            span.second += unseen(Kind::Error).min(unseen(Kind::Inference));
        }
        let (now, before) = (counted.traffic, span.traffic);
        if now.accepted < before.accepted || now.forwarded < before.forwarded || now.abandoned < before.abandoned {
            problems.push(format!("seq {seq}: the heartbeat counts fewer requests than the one before it"));
        }
        problems.extend(bounds(&format!("seq {seq}: the heartbeat counts"), now, span.requests(&counted.census)));
        if problems.is_empty() {
            self.so_far.heartbeats += 1;
            self.so_far.counted += span.since;
        }
        // Each disagreement is told once: from here on the heartbeat is believed.
        let began = span.census.began;
        (span.census, span.known, span.since, span.traffic) = (counted.census, true, 0, now);
        span.census.began = began;
        span.ended = counted.life == Life::Ended;
        problems.into_iter().for_each(|problem| self.problem(problem));
    }

    /// Holds the metrics against what was read so far, once that is as much as they count.
    fn compare(&mut self) {
        let (Some(metrics), Some(span)) = (self.metrics, &self.span) else { return };
        let mut problems = Vec::new();
        if self.reached == Reached::Began && span.census.entries() >= metrics.census.entries() {
            self.reached = Reached::Entries;
            for ((kind, held), (_, told)) in span.census.kinds().zip(metrics.census.kinds()) {
                if told != held {
                    problems.push(format!("the metrics count {told} entries of kind {}, the log holds {held} up to there", kind.as_str()));
                }
            }
            if span.gaps > metrics.gaps {
                problems.push(format!("the metrics count {} answers without an entry, the heartbeats tell {}", metrics.gaps, span.gaps));
            }
            for (code, told) in &span.suppressed {
                let counted = metrics.suppressed.get(code).copied().unwrap_or(0);
                if *told > counted {
                    problems.push(format!("the metrics count {counted} refusals {code} without a receipt, the heartbeats tell {told}"));
                }
            }
            problems.extend(bounds("the metrics count", metrics.traffic, span.requests(&metrics.census)));
            self.so_far.counted = self.so_far.counted.max(metrics.census.entries());
        }
        // The bytes were read after the entries: they are those of one of the entries from there on.
        if self.reached == Reached::Entries && span.census.bytes >= metrics.census.bytes {
            self.reached = Reached::All;
            if span.census.bytes > metrics.census.bytes {
                let (told, held) = (metrics.census.bytes, span.census.bytes);
                problems.push(format!("the metrics count {told} bytes of answers, the entries tell {held}"));
            }
        }
        problems.into_iter().for_each(|problem| self.problem(problem));
    }

    /// The process is over, or the log is.
    fn close(&mut self) {
        self.compare();
        let Some(span) = self.span.take() else { return };
        self.so_far.uncounted = span.after;
        if let (Some(metrics), Reached::Began | Reached::Entries | Reached::All) = (self.metrics, self.reached)
            && metrics.census.began == span.census.began
        {
            if self.reached == Reached::Began {
                let (told, held) = (metrics.census.entries(), span.census.entries());
                self.problem(format!("the metrics count {told} entries since {}, the log holds {held}", metrics.census.began));
            } else if self.reached == Reached::Entries {
                let (told, held) = (metrics.census.bytes, span.census.bytes);
                self.problem(format!("the metrics count {told} bytes of answers, the entries tell {held}"));
            }
            self.reached = Reached::All;
            self.untold("answers without an entry", span.ended, metrics.gaps, span.gaps);
            for (code, counted) in &metrics.suppressed {
                let told = span.suppressed.get(code).copied().unwrap_or(0);
                self.untold(&format!("refusals {code} without a receipt"), span.ended, *counted, told);
            }
        }
        if span.ended {
            let suppressed = span.suppressed.values().sum::<u64>();
            let accounted = span.requests(&span.census) + span.gaps + suppressed + span.traffic.abandoned;
            if let Some(lost @ 1..) = span.traffic.accepted.checked_sub(accounted) {
                self.so_far.notes.push(format!(
                    "of the process that began with entry {}, {lost} requests were still in flight when it ended, or were refused without an entry",
                    span.census.began
                ));
            }
        }
    }

    fn untold(&mut self, what: &str, ended: bool, counted: u64, told: u64) {
        match counted.saturating_sub(told) {
            0 => {}
            more if ended => {
                self.problem(format!("the metrics count {counted} {what}, the heartbeats of the whole process tell {more} fewer"))
            }
            more => self.so_far.notes.push(format!("{more} {what} are in the metrics and not told by a heartbeat yet")),
        }
    }

    fn problem(&mut self, text: String) {
        if self.so_far.problems.len() < TOLD { self.so_far.problems.push(text) } else { self.so_far.more_problems += 1 }
    }
}

/// No request has an entry that was not accepted, and none was forwarded that was not.
fn bounds(who: &str, traffic: Traffic, requests: u64) -> Option<String> {
    if traffic.accepted < requests {
        return Some(format!("{who} {} accepted requests, and entries about {requests}", traffic.accepted));
    }
    (traffic.accepted < traffic.forwarded)
        .then(|| format!("{who} {} accepted requests, and {} that were forwarded", traffic.accepted, traffic.forwarded))
}
