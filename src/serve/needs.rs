//! What the gateway needs of others, for those who watch it: certificates that end, issuers whose keys come, model servers that answer,
//! models that keep up.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use crate::accept::{Counters, Tls};
use crate::authenticate::jwks::Source;
use crate::clock::Moment;
use crate::infer::Backend;
use crate::infer::upstream::ReplicaState;
use crate::pipeline::House;
use crate::record::metrics::Kind;
use crate::record::names::metric;

/// The listeners that have TLS, by name.
pub(super) type Listeners = Arc<[(&'static str, Arc<Tls>)]>;

pub(super) fn observe_certificates(house: &Arc<House>, listeners: &Listeners) {
    type Read = fn(&Tls) -> Option<i64>;
    let certificates: Read = |tls| Some(tls.ends());
    let revocations: Read = |tls| tls.lists_end();
    for (of, read) in [(metric::CERTIFICATE_EXPIRY, certificates), (metric::REVOCATIONS_EXPIRY, revocations)] {
        let listeners = listeners.clone();
        house.recorder.metrics().watch(of.prometheus, of.help, Kind::Gauge, move |observe| {
            for (listener, tls) in &*listeners {
                read(tls).into_iter().for_each(|ends| observe(&[("listener", listener)], ends as f64));
            }
        });
    }
}

/// Keys that others may read.
pub(super) fn exposed(listeners: &Listeners) -> impl Iterator<Item = String> {
    let keys = listeners.iter().filter_map(|(_, tls)| tls.exposed());
    keys.map(|key| format!("others than its owner may read {}: chmod 600 it", key.display()))
}

/// The handshakes of listeners that have TLS, which failed.
pub(super) fn observe_handshakes(house: &Arc<House>, counted: impl Iterator<Item = (&'static str, Arc<Counters>)>) {
    let counted: Vec<_> = counted.collect();
    let of = metric::HANDSHAKES_FAILED;
    house.recorder.metrics().watch(of.prometheus, of.help, Kind::Counter, move |observe| {
        for (listener, counters) in &counted {
            for (why, count) in [
                ("certificate", &counters.handshakes_certificate),
                ("slow", &counters.handshakes_slow),
                ("broken", &counters.handshakes_broken),
                ("refused", &counters.handshakes_refused),
            ] {
                observe(&[("listener", listener), ("why", why)], count.load(Ordering::Relaxed) as f64);
            }
        }
    });
}

/// What of it has ended by `now`.
pub(super) fn ended(listeners: &Listeners, now: SystemTime) -> impl Iterator<Item = String> {
    listeners.iter().flat_map(move |(listener, tls)| tls.ended(now).map(move |what| format!("TLS of `{listener}`: {what}")))
}

pub(super) fn observe(house: &Arc<House>) {
    observe_issuers(house);
    observe_upstreams(house);
    let of = metric::MODEL_QUEUE_DEPTH;
    let weak = Arc::downgrade(house);
    house.recorder.metrics().watch(of.prometheus, of.help, Kind::Gauge, move |observe| {
        for model in weak.upgrade().iter().flat_map(|house| house.running()) {
            let which = model.which();
            observe(&[("model", &*which.name), ("version", &*which.version)], model.waiting() as f64);
        }
    });
}

fn observe_issuers(house: &Arc<House>) {
    type Read = fn(&Source) -> f64;
    let ready: Read = |source| f64::from(source.is_ready(Moment::now()));
    let failed: Read = |source| source.failed() as f64;
    for (of, kind, read) in [(metric::KEYS_READY, Kind::Gauge, ready), (metric::KEYS_FAILED, Kind::Counter, failed)] {
        let weak = Arc::downgrade(house);
        house.recorder.metrics().watch(of.prometheus, of.help, kind, move |observe| {
            let Some(house) = weak.upgrade() else { return };
            house.policy.load().authenticator.sources().for_each(|source| observe(&[("issuer", source.issuer())], read(source)));
        });
    }
}

fn observe_upstreams(house: &Arc<House>) {
    type Read = fn(&ReplicaState) -> f64;
    let up: Read = |replica| f64::from(!replica.ejected && !replica.doubtful);
    let in_flight: Read = |replica| replica.in_flight as f64;
    let idle: Read = |replica| replica.idle as f64;
    let opened: Read = |replica| replica.opened as f64;
    for (of, kind, read) in [
        (metric::UPSTREAM_UP, Kind::Gauge, up),
        (metric::UPSTREAM_IN_FLIGHT, Kind::Gauge, in_flight),
        (metric::UPSTREAM_IDLE, Kind::Gauge, idle),
        (metric::UPSTREAM_OPENED, Kind::Counter, opened),
    ] {
        let weak = Arc::downgrade(house);
        house.recorder.metrics().watch(of.prometheus, of.help, kind, move |observe| {
            let Some(house) = weak.upgrade() else { return };
            for model in house.policy.load().authorizer.models() {
                let Backend::Upstream(upstream) = &model.terms.infer.backend else { continue };
                for replica in upstream.replicas() {
                    let labels = [("model", &*model.which.name), ("version", &*model.which.version), ("replica", &*replica.origin)];
                    observe(&labels, read(&replica));
                }
            }
        });
    }
}
