//! Whether the counts of a log, as `prove` writes them, are held against its entries.

use std::collections::BTreeMap;

use super::ledger::Error;
use super::statement::Sent;
use super::statement::tests::{sent, signer, trail};
use crate::trail::{Stop, Trail};
use crate::verify::census::{Census, Traffic};
use crate::verify::heartbeat::{Counted, Heartbeat, Life};
use crate::verify::reconcile::{Metrics, Reconciled, TOLD, reconcile};
use crate::verify::statement::Kind;

/// A log that is made in memory, by a process that counts as the ledger does.
#[derive(Default)]
struct Log {
    entries: Vec<Vec<u8>>,
    census: Census,
    traffic: Traffic,
    gaps: u64,
    suppressed: BTreeMap<String, u64>,
}

/// The bytes of each answer in these logs.
const ANSWER: u64 = 6;

impl Log {
    fn begun() -> Self {
        let mut log = Self::default();
        log.restart();
        log
    }

    fn next(&self) -> u64 {
        self.entries.len() as u64
    }

    fn restart(&mut self) {
        (self.census, self.traffic) = (Census::from(self.next()), Traffic::default());
        (self.gaps, self.suppressed) = Default::default();
        self.beat(Life::Began);
    }

    fn answers(&mut self, kind: Kind, count: u64) {
        for _ in 0..count {
            self.traffic.accepted += 1;
            self.traffic.forwarded += u64::from(kind == Kind::Inference);
            self.entries.push(signer().answer(kind, self.next(), 2_000_000_000, &trail(1), &sent()));
            self.census.count(kind, ANSWER);
        }
    }

    /// The refusal of the answer that was written last, under a receipt of its own: no request more.
    fn refuse_last(&mut self) {
        self.refuse(&trail(1));
    }

    fn refuse(&mut self, trail: &Trail) {
        let refused = Sent { status: 503, code: Some(Error::Unavailable.code()), usage: None, ..sent() };
        self.entries.push(signer().answer(Kind::Error, self.next(), 2_000_000_000, trail, &refused));
        self.census.count(Kind::Error, ANSWER);
    }

    fn beat(&mut self, life: Life) {
        let counted = Some(Counted { life, traffic: self.traffic, census: self.census });
        self.push(&Heartbeat { counted, ..Heartbeat::default() });
    }

    /// What has no entry of its own, and the heartbeat that tells it.
    fn unseen(&mut self, gaps: u64, refusals: u64) {
        self.traffic.accepted += gaps + refusals;
        self.gaps += gaps;
        *self.suppressed.entry("check.json".into()).or_default() += refusals;
        self.push(&Heartbeat { gaps, suppressed: vec![("check.json", refusals)], ..Heartbeat::default() });
    }

    fn push(&mut self, told: &Heartbeat<&'static str>) {
        self.entries.push(signer().heartbeat(self.next(), 1, 2, told));
        self.census.count(Kind::Heartbeat, 0);
    }

    fn metrics(&self) -> Metrics {
        Metrics { census: self.census, traffic: self.traffic, gaps: self.gaps, suppressed: self.suppressed.clone() }
    }

    fn held(&self, metrics: Option<&Metrics>) -> Reconciled {
        held(&self.entries, metrics)
    }
}

fn held(entries: &[Vec<u8>], metrics: Option<&Metrics>) -> Reconciled {
    reconcile(entries.iter().enumerate().map(|(seq, entry)| Ok((seq as u64, entry.clone()))), metrics).unwrap()
}

#[test]
fn a_log_agrees_with_its_own_heartbeats_and_metrics_at_every_moment() {
    let mut log = Log::begun();
    for _ in 0..3 {
        for kind in [Kind::Inference, Kind::Deny, Kind::Error, Kind::Aborted] {
            log.answers(kind, 2);
            assert!(log.held(Some(&log.metrics())).ok);
        }
        log.beat(Life::Runs);
    }
    log.answers(Kind::Deny, 1);
    let held = log.held(None);
    assert_eq!((held.ok, held.processes, held.heartbeats, held.uncounted), (true, 1, 3, 1), "{held:?}");
    // What was scraped in between agrees with what was written since.
    let before = log.metrics();
    log.answers(Kind::Inference, 5);
    log.beat(Life::Ended);
    let held = log.held(Some(&before));
    assert!(held.ok && held.notes.is_empty(), "{held:?}");
}

#[test]
fn a_request_whose_answer_came_no_further_in_time_has_two_entries_and_is_one() {
    let mut log = Log::begun();
    log.answers(Kind::Inference, 2);
    log.refuse_last();
    log.beat(Life::Runs);
    log.answers(Kind::Inference, 1);
    log.refuse_last();
    log.beat(Life::Ended);
    let held = log.held(Some(&log.metrics()));
    assert!(held.ok && held.heartbeats == 2 && held.notes.is_empty(), "{held:?}");
    let late = |entries: &[Vec<u8>]| reconcile(entries.iter().map(|entry| Ok((0, entry.clone()))), None).unwrap();
    for pruned in 1..4 {
        assert!(late(&log.entries[pruned..]).ok, "{pruned}");
    }
    // One more that nobody asked for shows; and so does one that no answer stands behind.
    let fewer = Metrics { traffic: Traffic { accepted: 2, ..log.traffic }, ..log.metrics() };
    assert_eq!(log.held(Some(&fewer)).problems, ["the metrics count 2 accepted requests, and entries about 3"]);
    let mut alone = Log::begun();
    alone.refuse_last();
    alone.beat(Life::Runs);
    assert_eq!(alone.held(None).problems, ["seq 2: the heartbeat counts 0 accepted requests, and entries about 1"]);
}

#[test]
fn a_refusal_of_the_log_before_any_model_ran_is_a_request_of_its_own() {
    let mut log = Log::begun();
    log.answers(Kind::Inference, 1);
    let mut before = trail(1);
    before.steps.retain(|step| step.stop != Stop::Infer);
    log.refuse(&before);
    log.beat(Life::Runs);
    assert_eq!(log.held(None).problems, ["seq 3: the heartbeat counts 1 accepted requests, and entries about 2"]);
}

#[test]
fn an_entry_that_was_taken_out_shows_wherever_it_stood() {
    let mut log = Log::begun();
    log.answers(Kind::Inference, 3);
    log.beat(Life::Runs);
    log.answers(Kind::Deny, 2);
    let metrics = log.metrics();
    for at in 1..log.entries.len() {
        let mut fewer = log.entries.clone();
        fewer.remove(at);
        let last_heartbeat = 4;
        assert_eq!(held(&fewer, None).ok, at >= last_heartbeat, "{at}: a heartbeat after it shows it");
        assert!(!held(&fewer, Some(&metrics)).ok, "{at}: the metrics show it");
    }
    let problem = &held(&log.entries[..6], Some(&metrics)).problems[0];
    assert_eq!(problem, "the metrics count 7 entries since 0, the log holds 6");
    let mut fewer = log.entries.clone();
    fewer.remove(1);
    assert_eq!(
        held(&fewer, None).problems,
        [
            "seq 4: the heartbeat counts 3 entries of kind inference, the log holds 2",
            "seq 4: the heartbeat counts 18 bytes of answers, the entries tell 12"
        ]
    );
}

#[test]
fn an_entry_too_many_shows_and_is_told_once() {
    let mut log = Log::begun();
    log.answers(Kind::Inference, 3);
    log.beat(Life::Runs);
    log.beat(Life::Runs);
    let metrics = log.metrics();
    let mut more = log.entries.clone();
    more.insert(2, log.entries[1].clone());
    let told = held(&more, None);
    assert_eq!((told.ok, told.problems.len(), told.heartbeats), (false, 2, 1), "{told:?}");
    let more = [&more[..], &[]].concat();
    assert!(!held(&more, Some(&metrics)).ok);
    // Where one of another kind stands in its place, and the sum is right.
    let mut other = log.entries.clone();
    other[2] = signer().answer(Kind::Deny, 2, 2_000_000_000, &trail(1), &sent());
    assert!(!held(&other, None).ok && !held(&other, Some(&metrics)).ok);
}

#[test]
fn metrics_are_held_against_their_own_process_across_restarts() {
    let mut log = Log::begun();
    log.answers(Kind::Inference, 2);
    let first = log.metrics();
    // It was killed: there is no last heartbeat.
    log.restart();
    log.answers(Kind::Deny, 3);
    let second = log.metrics();
    log.beat(Life::Ended);
    log.restart();
    for metrics in [&first, &second, &log.metrics()] {
        let held = log.held(Some(metrics));
        assert!(held.ok && held.processes == 3, "{held:?}");
    }
    // What the killed process had counted and not written.
    let lost = Metrics {
        census: {
            let mut census = first.census;
            census.count(Kind::Inference, ANSWER);
            census
        },
        ..first.clone()
    };
    assert_eq!(log.held(Some(&lost)).problems, ["the metrics count 4 entries since 0, the log holds 3"]);
    let stranger = Metrics { census: Census::from(2), ..second };
    assert_eq!(log.held(Some(&stranger)).problems, ["the metrics are of a process that began with entry 2, which is not in the log"]);
}

#[test]
fn what_has_no_entry_is_told_by_a_heartbeat_or_not_told_yet() {
    let mut log = Log::begun();
    log.answers(Kind::Inference, 1);
    log.unseen(2, 5);
    assert!(log.held(Some(&log.metrics())).notes.is_empty());
    let scraped = Metrics { gaps: 3, ..log.metrics() };
    let held = log.held(Some(&scraped));
    assert!(held.ok, "{held:?}");
    assert_eq!(held.notes, ["1 answers without an entry are in the metrics and not told by a heartbeat yet"]);
    let fewer = Metrics { suppressed: BTreeMap::from([("check.json".into(), 4)]), ..log.metrics() };
    assert_eq!(log.held(Some(&fewer)).problems, ["the metrics count 4 refusals check.json without a receipt, the heartbeats tell 5"]);
    log.beat(Life::Ended);
    assert_eq!(
        log.held(Some(&scraped)).problems,
        ["the metrics count 3 answers without an entry, the heartbeats of the whole process tell 1 fewer"]
    );
}

#[test]
fn bytes_agree_with_an_entry_at_or_after_the_one_the_scrape_ends_at() {
    let mut log = Log::begun();
    log.answers(Kind::Inference, 2);
    let mut metrics = log.metrics();
    log.answers(Kind::Inference, 2);
    metrics.census.bytes += ANSWER;
    assert!(log.held(Some(&metrics)).ok, "an answer more between the two readings of one scrape");
    metrics.census.bytes += 1;
    assert_eq!(log.held(Some(&metrics)).problems, ["the metrics count 19 bytes of answers, the entries tell 24"]);
    metrics.census.bytes = 25;
    assert_eq!(log.held(Some(&metrics)).problems, ["the metrics count 25 bytes of answers, the entries tell 24"]);
    metrics.census.bytes = 11;
    assert_eq!(log.held(Some(&metrics)).problems, ["the metrics count 11 bytes of answers, the entries tell 12"]);
}

#[test]
fn requests_are_never_fewer_than_their_entries_and_never_become_fewer() {
    let mut log = Log::begun();
    log.answers(Kind::Inference, 2);
    let fewer = Metrics { traffic: Traffic { accepted: 1, ..log.traffic }, ..log.metrics() };
    assert_eq!(log.held(Some(&fewer)).problems, ["the metrics count 1 accepted requests, and entries about 2"]);
    let more = Metrics { traffic: Traffic { forwarded: 3, ..log.traffic }, ..log.metrics() };
    assert!(!log.held(Some(&more)).ok);
    log.traffic.accepted += 3;
    log.beat(Life::Runs);
    log.traffic.accepted -= 1;
    log.beat(Life::Ended);
    let held = log.held(None);
    assert_eq!(held.problems, ["seq 4: the heartbeat counts fewer requests than the one before it"]);
    assert!(held.notes[0].contains("2 requests were still in flight"), "{held:?}");
}

#[test]
fn a_log_whose_beginning_was_pruned_is_held_from_its_first_heartbeat_on() {
    let mut log = Log::begun();
    log.answers(Kind::Inference, 3);
    log.beat(Life::Runs);
    log.answers(Kind::Inference, 3);
    log.beat(Life::Runs);
    let late = |entries: &[Vec<u8>]| reconcile(entries.iter().map(|entry| Ok((0, entry.clone()))), None).unwrap();
    let whole = late(&log.entries[2..]);
    assert_eq!((whole.ok, whole.heartbeats), (true, 2), "{whole:?}");
    let mut fewer = log.entries[2..].to_vec();
    fewer.remove(4);
    assert!(!late(&fewer).ok);
}

#[test]
fn only_so_many_problems_are_told_and_the_rest_is_counted() {
    let mut log = Log::begun();
    for _ in 0..=TOLD {
        log.census.add(Kind::Deny, 1);
        log.traffic.accepted += 1;
        log.beat(Life::Runs);
    }
    let held = log.held(None);
    assert_eq!((held.problems.len(), held.more_problems), (TOLD, 1));
}
