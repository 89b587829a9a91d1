//! A log that is cut into shards, each a log of its own: one is written, those before it have ended, or end with the requests that began
//! in them.
//!
//! A request belongs to the shard that was written when it began: who holds [`Shards::current`] reserves, signs and counts there, also when
//! the half-year ends meanwhile. The next shard is opened whole, with its keys endorsed and its first checkpoint to come, before it takes the
//! place of the one before; that is closed when nobody holds it any more, and an entry of the next says with what root. What was proved in
//! any of them is found, proved, disclosed and erased as before.
//!
//! A clock that goes back changes nothing: no shard before the newest is ever written again.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use serde_json::{Value as Json, json};
use uuid::Uuid;

use super::archive::{self, Archive, Ended, Shared};
use super::change::{Change, Changed};
use super::config::{Config, Sharding};
use super::cosign::Known;
use super::erasure::{EraseError, Erased, Erasure};
use super::found::Found;
use super::key::{Exposed, Key, Vkey};
use super::ledger::{Inner, Ledger, OpenError, Opened};
use super::log::{Fatal, OnFatal};
use super::served::{LogFile, PREFIX, WELL_KNOWN, hex};
use super::statement::Build;
use super::underway::Stream;
use super::witness::{Failure, Witnesses};
use crate::clock::month;
use crate::event::Events;
use crate::mistake::Mistake;
use crate::trail::Who;
use crate::verify::chain;
use crate::verify::folder::{SALTS, labels};
use crate::verify::label::Label;

/// How often it is looked whether the last request of a shard that ends is over.
const ENDING_EVERY: Duration = Duration::from_millis(100);
/// What stands in the place of a label in the URLs of the log that was there before there were shards.
const BEFORE: &str = "before";

/// The log, in one shard or in many. Cheap to clone; the last clone closes it.
#[derive(Clone)]
pub struct Shards(Arc<State>);

impl fmt::Debug for Shards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shards(…)")
    }
}

struct State {
    opening: Opening,
    current: ArcSwap<Inner>,
    /// Which that is; held while the next one is opened. None in a log without shards.
    label: tokio::sync::Mutex<Option<Label>>,
    /// Those before it, the oldest first.
    past: RwLock<Vec<Past>>,
    /// Why the next one did not open when its time had come; none where it did.
    not_rolled: Mutex<Option<String>>,
    shared: Shared,
}

/// A shard before the one that is written.
#[derive(Clone)]
struct Past {
    label: Option<Label>,
    archive: Arc<Archive>,
    ending: Arc<Ending>,
}

/// How a shard ends: once, and whoever else wants it ended waits for that.
#[derive(Default)]
struct Ending {
    /// `None` once it is closed and told of.
    open: Mutex<Option<Arc<Inner>>>,
}

impl Ending {
    fn of(old: Arc<Inner>) -> Arc<Self> {
        Arc::new(Self { open: Mutex::new(Some(old)) })
    }

    /// Whether the requests of it are over, and whatever is left to do is done too.
    fn is_over(&self) -> bool {
        match self.open.try_lock() {
            Ok(open) => open.is_none(),
            Err(TryLockError::Poisoned(open)) => open.into_inner().is_none(),
            Err(TryLockError::WouldBlock) => false,
        }
    }

    /// Closes it, unless that is done, and has it told in the log that `current` gives. Blocks for a few syncs.
    fn end(&self, current: impl FnOnce() -> Ledger) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(old) = open.take() else { return };
        let archive = old.archive.clone();
        Ledger(old).close();
        tell_ended(&current(), &archive);
    }
}

/// What every shard is opened with.
#[derive(Clone)]
struct Opening {
    config: Config,
    base: PathBuf,
    build: Build,
    events: Events,
    on_fatal: Fatal,
}

impl Opening {
    fn open(&self, label: Option<Label>, known: &[Known], shared: &Shared) -> Result<(Ledger, Opened), OpenError> {
        let config = self.config.of_shard(label);
        Ledger::open_after(known, &config, &self.base, self.build.clone(), self.events.clone(), self.on_fatal.clone(), shared.clone())
    }
}

/// Why the log goes on in the shard that it has.
#[derive(Debug)]
pub enum NotRolled {
    /// The witnesses of the next one cannot be named.
    OperatorConfigured(Vec<Mistake>),
    /// The next one does not open.
    Open(OpenError),
    /// It was given up.
    Cut,
}

impl fmt::Display for NotRolled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OperatorConfigured(mistakes) => write!(f, "{} mistakes in its witnesses", mistakes.len()),
            Self::Open(error) => error.fmt(f),
            Self::Cut => f.write_str("it was given up"),
        }
    }
}

impl std::error::Error for NotRolled {}

/// The half-year of this moment, in UTC.
fn half_year(time: SystemTime) -> Label {
    Label::of_month(month(time))
}

/// The shard that is to be written at `now`: that of the half-year, or a later one that is there already.
fn due(there: &[Option<Label>], now: SystemTime) -> Label {
    there.iter().flatten().copied().fold(half_year(now), Label::max)
}

impl Shards {
    /// What witnesses know of the shards that [`Shards::open`] may write to; tells which could not be asked, and why.
    ///
    /// # Errors
    /// The mistakes in their configuration.
    pub async fn known(config: &Config, base: &Path, now: SystemTime) -> Result<(Vec<Known>, Vec<(Arc<str>, Failure)>), Vec<Mistake>> {
        let (mut known, mut unasked) = (Vec::new(), Vec::new());
        let mut written = vec![None];
        if config.shards.is_some() {
            // An older one than the last was closed by whoever began the last.
            let there = labels(&config.paths(base).0).unwrap_or_default();
            let label = Some(due(&there, now));
            written = there.iter().copied().rfind(|there| *there != label).into_iter().chain([label]).collect();
        }
        for label in written {
            if let Some(witnesses) = Witnesses::resolve(&config.of_shard(label), base)? {
                let (more, failed) = witnesses.known().await;
                known.extend(more);
                unasked.extend(failed);
            }
        }
        Ok((known, unasked))
    }

    /// Opens the log that `config` names, or begins it, in the shard of `now`; closes the shards before it that a process before this one
    /// could not close. It goes on from all that is `known` of it to witnesses, or nothing is written. Blocks while it reads.
    ///
    /// `on_fatal` is called when a sync fails; it should end the process, since what the disk holds is not known any more.
    ///
    /// # Errors
    /// When a key, a folder or a file cannot be used, or the log is damaged, in use, set back, or another key's.
    pub fn open(
        now: SystemTime,
        known: &[Known],
        config: &Config,
        base: &Path,
        build: Build,
        events: Events,
        on_fatal: OnFatal,
    ) -> Result<(Self, Opened), OpenError> {
        let shared = Shared::default();
        let opening = Opening { config: config.clone(), base: base.to_owned(), build, events, on_fatal: on_fatal.into() };
        let (directory, key) = config.paths(base);
        let there = labels(&directory).map_err(|error| OpenError::Io(directory.clone(), error))?;
        let label = match config.shards {
            Some(Sharding::HalfYearly) => Some(due(&there, now)),
            None if there.iter().any(Option::is_some) => return Err(OpenError::InShards(directory)),
            None => None,
        };
        let (mut past, mut found, mut all) = (Vec::new(), Vec::new(), None::<Opened>);
        let before: Vec<Option<Label>> = there.into_iter().filter(|there| *there != label).collect();
        // The log's key, and the one before it.
        let mut keys: Vec<Key> = Vec::new();
        if !before.is_empty() {
            for path in std::iter::once(key).chain(config.previous_path(base)) {
                keys.push(Key::from_file(&path).map_err(OpenError::Key)?.0);
            }
        }
        if let Some(key) = keys.first() {
            let previous = keys.get(1).map(|previous| &**previous.sealing());
            for label in before {
                let ended = Archive::ended(&config.of_shard(label), base, key.sealing(), previous)?;
                let archive = match ended {
                    Some(Ended { archive, salts }) => {
                        let archive = Arc::new(archive);
                        found.push((archive.clone(), salts));
                        archive
                    }
                    None => {
                        let (ledger, opened) = opening.open(label, known, &shared)?;
                        // One that waits for room would end without its last checkpoint.
                        if ledger.0.publisher.newest().size == 0 {
                            return Err(OpenError::Io(config.of_shard(label).paths(base).0, io::ErrorKind::StorageFull.into()));
                        }
                        ledger.close();
                        all = Some(opened.and(all));
                        ledger.0.archive.clone()
                    }
                };
                past.push(Past { label, archive, ending: Arc::default() });
            }
        }
        let (ledger, opened) = opening.open(label, known, &shared)?;
        for (archive, salts) in found {
            let path = || archive.files.directory().join(SALTS);
            ledger.0.finish_erasures(&archive.salts, &salts.untold).map_err(|error| OpenError::Io(path(), error))?;
            if let Some(key) = keys.first().filter(|_| salts.by_previous) {
                archive.salts.reseal(key.sealing()).map_err(|error| OpenError::Io(path(), error))?;
            }
        }
        if let Some(Past { archive, .. }) = past.last().filter(|past| past.archive.is_signed_by(&keys)) {
            tell_ended(&ledger, archive);
        }
        let (current, label) = (ArcSwap::new(ledger.0), tokio::sync::Mutex::new(label));
        let state = State { opening, current, label, past: RwLock::new(past), not_rolled: Mutex::default(), shared };
        Ok((Self(Arc::new(state)), opened.and(all)))
    }

    /// The shard that is written, for all that one request does.
    #[must_use]
    pub fn current(&self) -> Ledger {
        Ledger(self.0.current.load_full())
    }

    /// Goes on in the next shard, if its half-year has begun at `now`; says in which. The one before it is closed when its last request is
    /// over.
    ///
    /// # Errors
    /// When the next one does not open: the log goes on in the one that it has, and this may be asked again.
    pub async fn roll_over(&self, now: SystemTime) -> Result<Option<Label>, NotRolled> {
        let rolled = self.roll(now).await;
        let why = rolled.as_ref().err().map(ToString::to_string);
        *self.0.not_rolled.lock().unwrap_or_else(PoisonError::into_inner) = why;
        rolled
    }

    /// Why the log is in the shard before still, where the next one did not open.
    #[must_use]
    pub fn not_rolled(&self) -> Option<String> {
        self.0.not_rolled.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn roll(&self, now: SystemTime) -> Result<Option<Label>, NotRolled> {
        let mut label = self.0.label.lock().await;
        let next = half_year(now);
        if label.is_none_or(|label| next <= label) {
            return Ok(None);
        }
        let opening = self.0.opening.clone();
        let witnesses = Witnesses::resolve(&opening.config.of_shard(Some(next)), &opening.base).map_err(NotRolled::OperatorConfigured)?;
        let known = match &witnesses {
            Some(witnesses) => witnesses.known().await.0,
            None => Vec::new(),
        };
        let shared = self.0.shared.clone();
        let opened = tokio::task::spawn_blocking(move || opening.open(Some(next), &known, &shared));
        let (ledger, _) = opened.await.map_err(|_| NotRolled::Cut)?.map_err(NotRolled::Open)?;
        if let Some(witnesses) = witnesses {
            ledger.follow(witnesses);
        }
        let old = self.0.current.load_full();
        // First: who looks something up finds it in one place or the other, or in both.
        let (held, ending) = (Arc::downgrade(&old), Ending::of(old.clone()));
        let past = Past { label: *label, archive: old.archive.clone(), ending: ending.clone() };
        self.0.past.write().unwrap_or_else(PoisonError::into_inner).push(past);
        drop(self.0.current.swap(ledger.0));
        drop(old);
        *label = Some(next);
        tokio::spawn(self.clone().end(held, ending));
        Ok(Some(next))
    }

    /// Closes a shard once nobody but its ending holds it any more: nobody can come to hold it either, since it is the current one no longer.
    async fn end(self, held: Weak<Inner>, ending: Arc<Ending>) {
        while held.strong_count() > 1 {
            tokio::time::sleep(ENDING_EVERY).await;
        }
        let _ = tokio::task::spawn_blocking(move || ending.end(|| self.current())).await;
    }

    /// Has the checkpoints of every shard cosigned from now on: those of the one that is written, and the last one of those before it that
    /// has not enough cosignatures. To be called once.
    ///
    /// # Errors
    /// The mistakes in the configuration of the witnesses.
    pub fn follow(&self) -> Result<(), Vec<Mistake>> {
        let Opening { config, base, .. } = &self.0.opening;
        let current = self.current().0.archive.clone();
        let past = self.past();
        let label = self.0.label.try_lock().map_or(None, |label| *label);
        let all = past.iter().map(|past| (past.label, &past.archive)).chain([(label, &current)]);
        for (label, archive) in all.filter(|(_, archive)| archive.cosigning.get().is_none()) {
            if let Some(witnesses) = Witnesses::resolve(&config.of_shard(label), base)? {
                archive.follow(witnesses);
            }
        }
        Ok(())
    }

    /// The stream of this id that has not ended, for whom [`Shards::find`] will give its statement.
    #[must_use]
    pub fn underway(&self, id: Uuid, who: &Who, audits: bool) -> Option<Stream> {
        self.0.shared.underway.find(id, who, audits)
    }

    /// See [`Ledger::find`]; in whatever shard.
    pub async fn find(&self, id: Uuid, who: &Who, audits: bool) -> Option<Found> {
        archive::find(&self.0.shared, self.archives(), id, who, audits).await.map(|(_, found)| found)
    }

    /// See [`Ledger::find_included`]; in whatever shard.
    pub async fn find_included(&self, id: Uuid, who: &Who, audits: bool) -> Option<Found> {
        archive::find_included(&self.0.shared, self.archives(), id, who, audits).await
    }

    /// See [`Ledger::disclose`]; in whatever shard.
    pub async fn disclose(&self, id: Uuid, who: &Arc<Who>, audits: bool) -> Option<Json> {
        archive::disclose(&self.0.shared, self.archives(), id, who, audits).await
    }

    /// See [`Ledger::erase`]; in all shards. The one that is written tells of it, once, with the number of keys. Those whose folders are gone
    /// are passed over.
    ///
    /// # Errors
    /// See [`EraseError`].
    pub async fn erase(&self, erasure: Erasure) -> Result<Erased, EraseError> {
        let shards = self.clone();
        let going = tokio::spawn(async move {
            let _permit = shards.0.shared.eraser.acquire().await.map_err(|_| EraseError::Unavailable)?;
            let (current, past) = (shards.current(), shards.past());
            let others = past.into_iter().filter(|past| !Arc::ptr_eq(&past.archive, &current.0.archive));
            let (gone, there): (Vec<Past>, Vec<Past>) = others.partition(|past| past.archive.is_gone());
            let name = |past: Past| past.label.map_or_else(|| BEFORE.to_owned(), |label| label.to_string());
            let passed_over: Vec<String> = gone.into_iter().map(name).collect();
            match current.erase_in(there.into_iter().map(|past| past.archive).collect(), erasure).await {
                Err(EraseError::OperatorNamedUnknown) if !passed_over.is_empty() => Err(EraseError::OperatorTookAway(passed_over)),
                erased => erased.map(|erased| Erased { passed_over, ..erased }),
            }
        });
        going.await.map_err(|error| EraseError::Unfinished(io::Error::other(error)))?
    }

    /// See [`Ledger::serve`], which is what `/log/` has; each shard is under `/log/LABEL/` too.
    pub async fn serve(&self, path: &str) -> Option<LogFile> {
        let current = self.current();
        if path == WELL_KNOWN {
            return Some(LogFile::fresh("application/json", self.description(&current).to_string()));
        }
        let (first, rest) = path.strip_prefix(PREFIX)?.split_once('/').unwrap_or_default();
        let of_shard = |label: Option<Label>| label.map_or_else(|| BEFORE == first, |label| label.to_string() == first);
        if let Some(past) = self.past().into_iter().find(|past| of_shard(past.label)) {
            return past.archive.serve(rest).await;
        }
        let origin = &current.0.archive.origin;
        let is_current = first.parse::<Label>().is_ok() && self.in_shards() && origin.rsplit('/').next() == Some(first);
        if is_current { current.0.archive.serve(rest).await } else { current.serve(path).await }
    }

    /// Closes all of it: appends the last counts, writes, syncs and publishes what there is. Blocks for a few syncs.
    pub fn close(&self) {
        for past in self.past() {
            past.ending.end(|| self.current());
        }
        self.current().close();
    }

    fn in_shards(&self) -> bool {
        self.0.opening.config.shards.is_some()
    }

    fn past(&self) -> Vec<Past> {
        self.0.past.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where receipts may be: the newest first.
    fn archives(&self) -> Vec<Arc<Archive>> {
        // The current one first: what it was before this is in the past when that is read.
        let current = self.current().0.archive.clone();
        std::iter::once(current).chain(self.past().into_iter().rev().map(|past| past.archive)).collect()
    }

    /// What [`Ledger`] says of itself, and where the other shards are, and how the next one will be called.
    fn description(&self, current: &Ledger) -> Json {
        let mut description = current.description();
        if !self.in_shards() {
            return description;
        }
        let name = |label: Option<Label>| label.map_or_else(|| BEFORE.to_owned(), |label| label.to_string());
        let shards = self.past().into_iter().map(|Past { label, archive, ending }| {
            let newest = archive.newest_for_others();
            json!({
                "label": name(label),
                "origin": &*archive.origin,
                "prefix": format!("{PREFIX}{}/", name(label)),
                "vkeys": archive.vkeys.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "ended": ending.is_over(),
                "size": newest.size,
                "root": hex(&newest.root),
            })
        });
        description["shards"] = shards.collect();
        let label: Option<Label> = current.0.archive.origin.rsplit('/').next().and_then(|label| label.parse().ok());
        if let Some(label) = label {
            description["label"] = json!(label.to_string());
            description["prefix"] = json!(format!("{PREFIX}{label}/"));
            let next = self.0.opening.config.of_shard(Some(label.next()));
            let vkeys = current.vkeys().map(|vkey| Vkey { name: next.origin.get_ref().clone(), ..vkey }.to_string());
            description["next"] = json!({ "label": label.next().to_string(), "origin": next.origin.get_ref(), "vkeys": vkeys });
        }
        description
    }
}

/// Writes down with what a shard has ended.
fn tell_ended(ledger: &Ledger, ended: &Archive) {
    let last = ended.published.borrow().clone();
    let reason = chain::Ended { origin: ended.origin.to_string(), entries: last.size, root: hex(&last.root) }.to_string();
    ledger.tell(&Change { changed: Changed::Ended, which: None, reason: Some(&reason), policy: None });
}

impl Opened {
    /// With what was found in another shard.
    fn and(mut self, other: Option<Self>) -> Self {
        let Some(other) = other else { return self };
        self.recovered.cut_bytes += other.recovered.cut_bytes;
        self.recovered.unsynced_lost |= other.recovered.unsynced_lost;
        self.key = Exposed(self.key.0 || other.key.0);
        self.rotated |= other.rotated;
        self.salts_lost |= other.salts_lost;
        self
    }
}

#[cfg(test)]
#[path = "shards/tests.rs"]
mod tests;
