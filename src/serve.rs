//! `portcullis serve`: opens what the policies name, serves until it is told to stop, and closes it in order.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::accept::{Accept, Bound};
use crate::admin::{self, Ready, Sources};
use crate::authenticate::jwks;
use crate::budget::Budget;
use crate::cli::No;
use crate::clock::Moment;
use crate::config::{self, Engines, Loaded, Made, Snapshot};
use crate::detect::{self, Detector};
use crate::heavy;
use crate::infer::{Inference, model};
use crate::mistake::Mistake;
use crate::outbound::{self, Alpn, ClientTls};
use crate::pipeline::{Gate, House};
use crate::prove::served::LogFile;
use crate::prove::{Build, EraseError, Erased, Erasure, Shards};
use crate::record::{Recorder, Served};
use crate::say::aside;
use crate::state::Store;
use crate::{across, disk, life, reload, state};

mod figures;
mod needs;
mod troubles;
pub(crate) mod watched;

/// Where the gateway listens, once it does.
#[derive(Clone, Debug)]
pub struct Listening {
    /// The data plane.
    pub accept: SocketAddr,
    /// Whether it speaks TLS.
    pub tls: bool,
    /// The operators' listener.
    pub admin: Option<SocketAddr>,
    /// The models' names.
    pub models: Vec<String>,
}

/// How long telemetry and the security log may take to write what is left, at the end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Serves the folder `policies` until SIGTERM or SIGINT; `ready` is called once requests are taken.
///
/// # Errors
/// Anything that keeps the gateway from starting as it is configured: there is no partial start.
pub fn run(policies: &Path, ready: impl FnOnce(&Listening)) -> Result<(), No> {
    let policies = policies.canonicalize().map_err(|error| {
        No::because(format!("{}: the policy folder cannot be read ({error}); --policies names another", policies.display()))
    })?;
    model::give_memory_back();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(No::because)?;
    let done = runtime.block_on(serve(policies, ready));
    // What still runs is background work that no request waits for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

async fn serve(policies: PathBuf, ready: impl FnOnce(&Listening)) -> Result<(), No> {
    // A file that may not grow any more is to be a failed write, which is waited out as a full disk is, and not the end. What is caught once
    // stays so.
    drop(signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw())).map_err(No::because)?);
    // Caught from here on: whoever asks for a reload as soon as it is ready, or before, must not end it.
    let hangup = signal(SignalKind::hangup()).map_err(No::because)?;
    let seen = reload::Look::at(&policies, &[]);
    let nothing = Made::default();
    let loaded = config::load(&policies, Moment::now(), &nothing, Engines::All).map_err(|mistakes| {
        life::refused_at_start(&policies, &nothing.take_refused());
        No(mistakes)
    });
    let Loaded { gateway, at_start, listeners, warnings, snapshot, made, turns, .. } = loaded?;
    let Some(config::Listeners { accept, admin }) = listeners else {
        return Err(No::because("files of the listeners are not here; `portcullis check` says which"));
    };
    let told = |mistakes: Vec<Mistake>| No(located(&policies, &mistakes));
    warnings.iter().for_each(|warning| aside!("portcullis: warning: {warning}"));
    watched::told(&snapshot, None, &policies).iter().for_each(|line| aside!("portcullis: {line}"));
    let accept = within_descriptors(accept);
    // Before the log, in which a start that comes to nothing is to leave no trace.
    let (state, kept) = gateway.state.as_ref().map(|state| Store::open(state, &policies)).transpose().map_err(No::because)?.unzip();
    let recorder = Recorder::new(&gateway.record, &policies).map_err(told)?;
    let events = recorder.events();
    let now = Moment::now().wall;
    let (known, unasked) = Shards::known(&gateway.prove, &policies, now).await.map_err(told)?;
    for (witness, failure) in unasked {
        aside!("portcullis: warning: the witness {witness} could not be asked what it has seen: it {failure}");
    }
    let (shards, opened) = Shards::open(
        now,
        &known,
        &gateway.prove,
        &policies,
        Build::of_this_program(),
        events.clone(),
        Box::new(|why| {
            // A sync that failed leaves it unknown what the disk holds; going on would promise what cannot be kept.
            aside!("portcullis: the provenance log cannot be written ({why}); stopping");
            std::process::abort();
        }),
    )
    .map_err(|error| {
        let room = if error.is_full() { "; make room on that disk, a few megabytes, and start it again" } else { "" };
        No::because(format!("the provenance log does not open: {error}{room}"))
    })?;
    if opened.key.0 {
        aside!("portcullis: warning: others than its owner may read the provenance key: chmod 600 it");
    }
    if opened.rotated {
        aside!("portcullis: the provenance log has gone over to the new key; its public keys are in keys.vkey");
    }
    if opened.salts_lost {
        aside!("portcullis: warning: the file of the salts' keys was not there: what the log committed to before cannot be opened");
    }
    if opened.recovered.cut_bytes > 0 {
        let what = if opened.recovered.unsynced_lost { "never synced" } else { "never acknowledged" };
        aside!("portcullis: the provenance log had a torn end; {} bytes that were {what} were cut", opened.recovered.cut_bytes);
    }
    shards.follow().map_err(told)?;
    let tls = accept.tls().cloned();
    if tls.is_none() {
        aside!("portcullis: warning: tls = \"off\": plain HTTP, on loopback alone");
    }
    let house = Arc::new(House {
        policy: ArcSwap::from_pointee(snapshot),
        budget: Budget::default(),
        detector: Detector::new(Moment::now().mono),
        inference: Inference::default(),
        shards,
        state: state.map(Arc::new),
        recorder,
        events,
        stale: AtomicBool::new(false),
        waiting: ArcSwap::default(),
    });
    if let Some(kept) = kept {
        aside!("portcullis: {}", kept.told());
        let policy = house.policy.load();
        let calibrations = detect::Terms::calibrations(policy.authorizer.models().iter().map(|model| &model.terms.detect));
        kept.restore(&house.budget, &house.detector, &calibrations, Moment::now());
    }
    let digest = house.policy.load().digest;
    turns.iter().for_each(|turn| house.tell_turn(turn, digest));
    let watched = Arc::new(disk::Watched::default());
    figures::observe(&house, accept.counters(), &watched);
    let keeping = keep_keys(&house.policy.load()).await.map_err(No::because)?;
    made.tend();

    let (stopping, stopped) = watch::channel(false);
    let admin = gateway.admin.as_ref().zip(admin).map(|(config, admin)| admin::bind(config, admin)).transpose().map_err(told)?;
    let bound = accept.bind().map_err(|error| {
        let listen = &gateway.accept.listen;
        told(vec![Mistake::at(listen.span(), format!("{} cannot be listened on: {error}", listen.get_ref()))])
    })?;
    let mut models: Vec<String> = house.policy.load().authorizer.models().iter().map(|model| model.resource.name.to_string()).collect();
    models.dedup();
    let listening = Listening { accept: bound.address(), tls: tls.is_some(), admin: admin.as_ref().map(|admin| admin.address()), models };
    let operators_tls = admin.as_ref().and_then(|admin| admin.tls().cloned());
    let listeners = [("accept", &tls), ("admin", &operators_tls)].into_iter().filter_map(|(name, tls)| Some((name, tls.clone()?)));
    let listeners: needs::Listeners = listeners.collect();
    needs::observe_certificates(&house, &listeners);
    let counted = [("accept", Some(bound.counters())), ("admin", admin.as_ref().map(Bound::counters))];
    figures::observe_turned_away(&house, counted.into_iter().filter_map(|(name, counters)| Some((name, counters?.clone()))));
    let handshakes =
        [("accept", tls.is_some(), Some(bound.counters())), ("admin", operators_tls.is_some(), admin.as_ref().map(Bound::counters))];
    needs::observe_handshakes(
        &house,
        handshakes.into_iter().filter_map(|(name, tls, counters)| Some((name, counters.filter(|_| tls)?.clone()))),
    );
    let warned = |listeners: &needs::Listeners| {
        let ended = needs::ended(listeners, SystemTime::now());
        ended.chain(needs::exposed(listeners)).for_each(|what| aside!("portcullis: warning: {what}"));
    };
    warned(&listeners);
    house.recorder.serves(Served { scheme: if tls.is_some() { "https" } else { "http" }, address: Some(listening.accept) });
    let changed_tls = {
        let listeners = listeners.clone();
        move |loaded: &config::Listeners| {
            let operators = loaded.admin.as_ref().and_then(Accept::tls);
            let turns = [(&tls, loaded.accept.tls()), (&operators_tls, operators)];
            if turns.iter().any(|(tls, new)| tls.is_some() != new.is_some()) {
                return Err(vec!["turning TLS on or off needs a restart".to_owned()]);
            }
            // All are good: now they take turns, with nothing left that could fail.
            turns.into_iter().filter_map(|(tls, new)| tls.as_ref().zip(new)).for_each(|(tls, new)| tls.follow(new));
            warned(&listeners);
            Ok(())
        }
    };
    let reloading = tokio::spawn(reload::watch(house.clone(), hangup, policies.clone(), (made, at_start), keeping, seen, changed_tls));
    let watching = tokio::spawn(disk::watch(house.clone(), watched.clone()));
    let tending = tokio::spawn(life::watch(house.clone()));
    let rolling = tokio::spawn(roll_over(house.shards.clone()));
    let looking = tokio::spawn(across::watch(house.clone()));
    let keeping_state = tokio::spawn(state::watch(house.clone()));
    let telling = tokio::spawn(troubles::watch(house.clone()));
    // Operators see a stop to its end: whoever balances load asks /readyz, and whoever stops it may want to know what is still running.
    let (drained_tell, drained_told) = watch::channel(false);
    let sources = Operators { house: house.clone(), listeners, watched, stopping: stopped.clone() };
    let operators = admin.map(|admin| tokio::spawn(admin::serve_admin(admin, Arc::new(sources), until(drained_told))));
    let interrupted = interrupted();
    tokio::spawn(async move {
        interrupted.await;
        let _ = stopping.send(true);
    });

    ready(&listening);
    if let Some(admin) = listening.admin {
        aside!("portcullis: operators on {admin}");
    }
    aside!("portcullis: ready on {}", listening.accept);
    let drained = bound.serve(Gate(house.clone()), until(stopped)).await;
    reloading.abort();
    watching.abort();
    tending.abort();
    rolling.abort();
    looking.abort();
    keeping_state.abort();
    telling.abort();
    if drained.cut > 0 {
        aside!("portcullis: {} request(s) were still running after {:?} and were cut", drained.cut, gateway.accept.drain.0);
    }
    let _ = drained_tell.send(true);
    if let Some(operators) = operators {
        let _ = operators.await;
    }
    if let Some(state) = house.state.clone() {
        let house = house.clone();
        let kept = tokio::task::spawn_blocking(move || {
            state.keep(&house);
            state.trouble()
        });
        kept.await
            .ok()
            .flatten()
            .iter()
            .for_each(|why| aside!("portcullis: warning: what callers have used and learned was not written: {why}"));
    }
    let closing = house.clone();
    let _ = tokio::task::spawn_blocking(move || closing.shards.close()).await;
    let _ = tokio::time::timeout(LAST_WORDS, watched::flushed(&house.policy.load())).await;
    house.recorder.finish(LAST_WORDS).await;
    aside!("portcullis: stopped; {} request(s) cut", drained.cut);
    Ok(())
}

/// How often it is looked whether the log's half-year is over.
const ROLL_EVERY: Duration = Duration::from_secs(1);
/// How long after a shard of the log that did not open it is tried again.
const ROLL_AGAIN: Duration = Duration::from_secs(60);

/// Goes on in the next shard of the log when its time has come, until the task is dropped.
async fn roll_over(shards: Shards) {
    loop {
        tokio::time::sleep(ROLL_EVERY).await;
        match shards.roll_over(Moment::now().wall).await {
            Ok(None) => {}
            Ok(Some(label)) => aside!("portcullis: the provenance log goes on in its shard {label}"),
            // It is a trouble meanwhile, and told as one.
            Err(_) => tokio::time::sleep(ROLL_AGAIN).await,
        }
    }
}

/// Descriptors that callers' connections leave to the log, the policies, upstreams and operators: a quarter of all, but
/// not fewer than this, and never more than half.
const LEAST_RESERVED: u64 = 256;

/// The listener, with no more connections than leave descriptors to everything else. Without that, a stranger's open
/// connections would keep the log from growing, policies from being read again, and operators out.
fn within_descriptors(accept: Accept) -> Accept {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // The soft limit is there for programs that use select(2). Where it may not be raised it stands.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let most = for_callers(getrlimit(Resource::Nofile).current);
    if most < accept.max_connections() {
        let wanted = accept.max_connections();
        aside!("portcullis: warning: at most {most} connections instead of {wanted}: raise the limit of open files (ulimit -n)");
    }
    accept.with_at_most(most)
}

/// How many of `descriptors` callers may have; none stands for no limit.
fn for_callers(descriptors: Option<u64>) -> usize {
    let most = descriptors.map_or(u64::MAX, |all| all - LEAST_RESERVED.max(all / 4).min(all / 2));
    usize::try_from(most).unwrap_or(usize::MAX)
}

/// Mistakes of parts that read `gateway.toml`, with their lines.
fn located(policies: &Path, mistakes: &[Mistake]) -> Vec<String> {
    let file = policies.join("gateway.toml");
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    mistakes.iter().map(|mistake| mistake.located(&file, &text)).collect()
}

/// Signals are caught from the call on, and not only once the future is first polled: whoever stops a gateway that has just said that it
/// is ready must not kill it.
fn interrupted() -> impl Future<Output = ()> + Send {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async move {
        let (Ok(mut terminate), Ok(mut interrupt)) = signals else { return };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

async fn until(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Issuers whose keys are fetched are asked once before the port opens, and from then on in the background, until what
/// is returned is dropped.
///
/// # Errors
/// The system's authorities cannot be read, without which no issuer can be asked.
pub async fn keep_keys(policy: &Snapshot) -> Result<JoinSet<()>, String> {
    let mut keeping = JoinSet::new();
    if policy.authenticator.sources().all(|source| !source.is_fetched()) {
        return Ok(keeping);
    }
    let tls = ClientTls::build(None, Alpn::Http1).map_err(|error| format!("issuers cannot be asked for keys: {error}"))?;
    let fetch: Arc<dyn jwks::Fetch> = Arc::new(Fetcher(tls));
    let told = |source: &jwks::Source, result: Result<(), jwks::Error>| {
        // Callers of this issuer are refused once there are no keys that may be used; the others need not wait for it.
        if let Err(error) = result {
            let left = if source.is_ready(Moment::now()) { "keys could not be renewed, the last ones serve" } else { "no keys" };
            aside!("portcullis: warning: issuer {}: {left}: {error}", source.issuer());
        }
    };
    let missing = policy.authenticator.sources().filter(|source| source.is_fetched() && !source.is_ready(Moment::now()));
    // All at once: a revocation in the policies that are to come waits for the slowest issuer, not for the sum of them.
    let asking = missing.map(|source| async { told(source, source.refresh(&*fetch, Moment::now()).await) });
    futures_util::future::join_all(asking).await;
    for source in policy.authenticator.sources().filter(|source| source.is_fetched()) {
        keeping.spawn(source.clone().keep_fresh(fetch.clone(), told));
    }
    Ok(keeping)
}

/// Fetches key sets over HTTPS, by the rules of `outbound`.
struct Fetcher(Arc<rustls::ClientConfig>);

impl jwks::Fetch for Fetcher {
    fn fetch<'a>(&'a self, url: &'a str) -> Pin<Box<dyn Future<Output = Result<Bytes, jwks::FetchError>> + Send + 'a>> {
        Box::pin(async move {
            // The operator wrote the URL; his issuer may well be in his own network.
            let limits = outbound::Limits { allow_private: true, ..outbound::Limits::default() };
            let fetched = outbound::fetch(url, &self.0, &limits).await;
            fetched.map(|fetched| fetched.body).map_err(Into::into)
        })
    }
}

/// What operators may read.
struct Operators {
    house: Arc<House>,
    listeners: needs::Listeners,
    /// The files under the models in force.
    watched: Arc<disk::Watched>,
    /// Whether it was told to stop.
    stopping: watch::Receiver<bool>,
}

impl Sources for Operators {
    fn ready(&self) -> Ready {
        let house = &self.house;
        if *self.stopping.borrow() {
            return Ready::No(vec!["it was told to stop, and takes no new connections".to_owned()]);
        }
        let troubles = troubles::of(house);
        let now = Moment::now();
        let policy = house.policy.load();
        let stops: Vec<_> = troubles.iter().filter(|trouble| trouble.stops_all(house)).map(ToString::to_string).collect();
        if !stops.is_empty() {
            return Ready::No(stops);
        }
        let mut notes = Vec::new();
        if house.stale.load(Ordering::Relaxed) {
            notes.push("the last policies were refused; the ones before them are in force".to_owned());
        }
        let waiting = house.waiting.load();
        if !waiting.is_empty() {
            notes.push(format!("gateway.toml has changed where that waits for a restart: {}", waiting.join(", ")));
        }
        notes.extend(
            policy.authenticator.sources().filter(|source| !source.is_ready(now)).map(|source| format!("no keys from {}", source.issuer())),
        );
        notes.extend(needs::ended(&self.listeners, now.wall));
        notes.extend(troubles.iter().map(ToString::to_string));
        notes.extend(self.watched.changed());
        notes.extend(watched::uncalibrated(&policy));
        if notes.is_empty() { Ready::Yes } else { Ready::Degraded(notes) }
    }

    fn metrics(&self) -> String {
        self.house.recorder.metrics().render()
    }

    async fn exposure(&self) -> String {
        // However many callers there are, and whoever of them is being learned from.
        heavy::work(heavy::MANY, || exposures(self.house.detector.exposed())).await
    }

    async fn log(&self, path: &str) -> Option<LogFile> {
        self.house.shards.serve(path).await
    }

    async fn erase(&self, erasure: Erasure) -> Result<Erased, EraseError> {
        self.house.shards.erase(erasure).await
    }
}

/// As `/v1/exposure` tells it.
fn exposures(mut exposed: Vec<detect::Exposed>) -> String {
    exposed.sort_by(|a, b| {
        b.exposure.fidelity.total_cmp(&a.exposure.fidelity).then_with(|| (&a.caller, &a.model).cmp(&(&b.caller, &b.model)))
    });
    let told = |exposed: &detect::Exposed| {
        let detect::watch::Exposure { fidelity, bits, rows } = exposed.exposure;
        let step = exposed.step.as_str();
        serde_json::json!({ "caller": exposed.caller, "model": exposed.model, "fidelity": fidelity, "bits": bits, "rows": rows, "step": step })
    };
    serde_json::Value::from_iter(exposed.iter().map(told)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_never_get_the_last_descriptors() {
        assert_eq!([64, 512, 1_024, 20_000].map(|all| for_callers(Some(all))), [32, 256, 768, 15_000]);
        assert_eq!(for_callers(None), usize::MAX);
    }
}
