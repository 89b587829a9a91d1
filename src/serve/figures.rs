//! Metrics that are read from the parts that keep them, when they are asked for.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::accept::Counters;
use crate::disk;
use crate::infer::shadow::Outcome;
use crate::pipeline::House;
use crate::record::metrics::Kind;
use crate::record::names::metric;

use super::{needs, watched};

/// Numbers that parts keep themselves, read when they are asked for.
pub(super) fn observe(house: &Arc<House>, counters: &Arc<Counters>, disks: &Arc<disk::Watched>) {
    let metrics = house.recorder.metrics();
    let weak = Arc::downgrade(house);
    let watched = |read: fn(&House) -> f64| {
        let weak = weak.clone();
        move |observe: &mut crate::record::metrics::Observe<'_>| {
            if let Some(house) = weak.upgrade() {
                observe(&[], read(&house));
            }
        }
    };
    metrics.watch(
        "portcullis_policy_stale",
        "Whether the last policies were refused",
        Kind::Gauge,
        watched(|house| f64::from(house.stale.load(Ordering::Relaxed))),
    );
    metrics.watch(
        "portcullis_log_entries",
        "Entries of the provenance log",
        Kind::Counter,
        watched(|house| house.shards.current().counters().entries as f64),
    );
    metrics.watch(
        "portcullis_log_queue_depth",
        "Entries that wait to be written",
        Kind::Gauge,
        watched(|house| house.shards.current().counters().waiting as f64),
    );
    metrics.watch(
        "portcullis_log_syncs",
        "Syncs of the provenance log",
        Kind::Counter,
        watched(|house| house.shards.current().counters().syncs as f64),
    );
    metrics.watch(
        "portcullis_log_sync_seconds",
        "Time that syncs took",
        Kind::Sum,
        watched(|house| house.shards.current().counters().sync_time.as_secs_f64()),
    );
    observe_log(house);
    metrics.watch(
        "portcullis_salt_subjects",
        "Callers with a key for the salts of what they send and get",
        Kind::Gauge,
        watched(|house| house.shards.current().counters().salts.subjects as f64),
    );
    metrics.watch(
        "portcullis_salt_unkept",
        "Entries whose commitments nobody can open: past the cap of callers with a key, or with a disk that took none",
        Kind::Counter,
        watched(|house| house.shards.current().counters().salts.unkept as f64),
    );
    metrics.watch(
        "portcullis_detect_unwatched",
        "Requests whose callers were not watched, and rows that were not watched closely, for want of room",
        Kind::Counter,
        watched(|house| house.detector.unwatched() as f64),
    );
    metrics.watch(
        "portcullis_detect_unstudied",
        "Copies of callers' answers that were to be trained and tried, and had to wait for want of time",
        Kind::Counter,
        watched(|house| house.detector.unstudied() as f64),
    );
    metrics.watch(
        "portcullis_detect_watched",
        "Callers and cohorts that are watched closely",
        Kind::Gauge,
        watched(|house| house.detector.watched() as f64),
    );
    observe_price(house);
    metrics.watch("portcullis_budget_callers", "Callers whose budget is kept", Kind::Gauge, watched(|house| house.budget.callers() as f64));
    let weak = Arc::downgrade(house);
    metrics.watch("portcullis_policy_info", "The policy in force", Kind::Gauge, move |observe| {
        if let Some(house) = weak.upgrade() {
            observe(&[("digest", &house.policy.load().digest.to_string())], 1.0);
        }
    });
    observe_models(house, disks);
    watched::observe(house);
    needs::observe(house);
    let open = counters.clone();
    metrics.watch("portcullis_connections", "Open connections", Kind::Gauge, move |observe| {
        observe(&[], open.open.load(Ordering::Relaxed) as f64)
    });
}

/// What listeners turned away before it came to any stop that tells of it.
pub(super) fn observe_turned_away(house: &Arc<House>, counted: impl Iterator<Item = (&'static str, Arc<Counters>)>) {
    let counted: Vec<_> = counted.collect();
    let of = metric::TURNED_AWAY;
    house.recorder.metrics().watch(of.prometheus, of.help, Kind::Counter, move |observe| {
        for (listener, counters) in &counted {
            counters.turned_away().for_each(|(why, count)| observe(&[("listener", listener), ("why", why)], count as f64));
        }
    });
}

/// What answers cost, and who paid.
fn observe_price(house: &Arc<House>) {
    let metrics = house.recorder.metrics();
    let weak = Arc::downgrade(house);
    metrics.watch("portcullis_detect_challenges", "Refusals that asked for work", Kind::Counter, move |observe| {
        if let Some(house) = weak.upgrade() {
            observe(&[], house.detector.desk().challenges() as f64);
        }
    });
    let weak = Arc::downgrade(house);
    metrics.watch("portcullis_detect_work", "Requests whose answers cost work, by what came of it", Kind::Counter, move |observe| {
        if let Some(house) = weak.upgrade() {
            house.detector.desk().outcomes().for_each(|(outcome, count)| observe(&[("outcome", outcome)], count as f64));
        }
    });
}

/// What the log's heartbeats tell too, so that `portcullis log verify --reconcile` can hold one against the other. A scrape reads them in
/// this order: the entries first, and then what is never behind them.
fn observe_log(house: &Arc<House>) {
    type Read = fn(&House, &mut crate::record::metrics::Observe<'_>);
    let began: Read = |house, observe| observe(&[], house.shards.current().census().began as f64);
    let statements: Read = |house, observe| {
        house.shards.current().census().kinds().for_each(|(kind, count)| observe(&[("kind", kind.as_str())], count as f64));
    };
    let bytes: Read = |house, observe| observe(&[], house.shards.current().census().bytes as f64);
    let forwarded: Read = |house, observe| observe(&[], house.shards.current().counters().traffic.forwarded as f64);
    let accepted: Read = |house, observe| observe(&[], house.shards.current().counters().traffic.accepted as f64);
    let suppressed: Read = |house, observe| {
        house.shards.current().counters().suppressed.iter().for_each(|(code, count)| observe(&[("code", code)], *count as f64));
    };
    let gaps: Read = |house, observe| observe(&[], house.shards.current().counters().gaps as f64);
    let size: Read = |house, observe| observe(&[], house.shards.current().counters().checkpoints.size as f64);
    let checkpoints: Read = |house, observe| observe(&[], house.shards.current().counters().checkpoints.checkpoints as f64);
    let failures: Read = |house, observe| observe(&[], house.shards.current().counters().checkpoints.failures as f64);
    let unpruned: Read = |house, observe| observe(&[], house.shards.current().counters().checkpoints.unpruned as f64);
    let full: Read = |house, observe| observe(&[], f64::from(house.shards.current().counters().full));
    let witnessed: Read = |house, observe| {
        house.shards.current().counters().witnesses.iter().for_each(|witnesses| observe(&[], witnesses.size as f64));
    };
    let unwitnessed: Read = |house, observe| {
        let failures = house.shards.current().counters().witnesses.map(|witnesses| witnesses.failures).unwrap_or_default();
        failures.iter().for_each(|(witness, count)| observe(&[("witness", witness)], *count as f64));
    };
    for (of, kind, read) in [
        (metric::LOG_SIZE, Kind::Gauge, size),
        (metric::LOG_CHECKPOINTS, Kind::Counter, checkpoints),
        (metric::LOG_CHECKPOINT_FAILURES, Kind::Counter, failures),
        (metric::LOG_PRUNE_FAILURES, Kind::Counter, unpruned),
        (metric::LOG_FULL, Kind::Gauge, full),
        (metric::LOG_WITNESSED_SIZE, Kind::Gauge, witnessed),
        (metric::LOG_WITNESS_FAILURES, Kind::Counter, unwitnessed),
        (metric::LOG_BEGAN, Kind::Gauge, began),
        (metric::LOG_STATEMENTS, Kind::Counter, statements),
        (metric::LOG_BYTES, Kind::Counter, bytes),
        (metric::LOG_FORWARDED, Kind::Counter, forwarded),
        (metric::LOG_ACCEPTED, Kind::Counter, accepted),
        (metric::LOG_SUPPRESSED, Kind::Counter, suppressed),
        (metric::LOG_GAPS, Kind::Counter, gaps),
    ] {
        let weak = Arc::downgrade(house);
        house.recorder.metrics().watch(of.prometheus, of.help, kind, move |observe| {
            if let Some(house) = weak.upgrade() {
                read(&house, observe);
            }
        });
    }
}

/// What shadows have come to, and the files under running models.
fn observe_models(house: &Arc<House>, disks: &Arc<disk::Watched>) {
    let metrics = house.recorder.metrics();
    let weak = Arc::downgrade(house);
    metrics.watch(metric::SHADOW.prometheus, metric::SHADOW.help, Kind::Counter, move |observe| {
        for shadow in weak.upgrade().iter().flat_map(|house| house.policy.load().shadows.clone()) {
            let which = shadow.model.which();
            for outcome in Outcome::ALL {
                let labels = [("model", &*which.name), ("version", &*which.version), ("outcome", outcome.as_str())];
                observe(&labels, shadow.tally.count(outcome) as f64);
            }
        }
    });
    let weak = Arc::downgrade(house);
    metrics.watch(metric::SHADOW_DIFFERENCE.prometheus, metric::SHADOW_DIFFERENCE.help, Kind::Gauge, move |observe| {
        for shadow in weak.upgrade().iter().flat_map(|house| house.policy.load().shadows.clone()) {
            let which = shadow.model.which();
            observe(&[("model", &*which.name), ("version", &*which.version)], shadow.tally.largest());
        }
    });
    let weak = Arc::downgrade(house);
    metrics.watch(metric::MODEL_RESTARTS.prometheus, metric::MODEL_RESTARTS.help, Kind::Counter, move |observe| {
        for model in weak.upgrade().iter().flat_map(|house| house.running()) {
            let which = model.which();
            observe(&[("model", &*which.name), ("version", &*which.version)], model.falls().restarts() as f64);
        }
    });
    let disks = disks.clone();
    metrics.watch(metric::MODEL_CHANGED.prometheus, metric::MODEL_CHANGED.help, Kind::Gauge, move |observe| {
        disks.each(|which, changed| observe(&[("model", &*which.name), ("version", &*which.version)], f64::from(changed)));
    });
}
