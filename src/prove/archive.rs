//! A log as it is read: the one that is being written, and the shards that have ended.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value as Json;
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use super::config::Config;
use super::cosign::Cosigning;
use super::disclosure::{disclosure, made_for};
use super::found::{Found, Included};
use super::ids::Ids;
use super::key::{Key, Vkey};
use super::ledger::OpenError;
use super::ledger::open::{Signed, keys_of, write_keys};
use super::log::{self, Wal};
use super::publisher::{Published, retried};
use super::receipt::State;
use super::rotation::Vkeys;
use super::salts::{self, MAX_SUBJECTS, Salts, Sealing};
use super::underway::Underway;
use super::witness::Witnesses;
use crate::tlog::merkle;
use crate::tlog::{Checkpoint, Note};
use crate::trail::Who;
use crate::verify::files::Files;
use crate::verify::folder::{CHECKPOINT, CHECKPOINT_COSE, KEYS, WITNESSED};
use crate::verify::proof::SignedRoot;
use crate::verify::segment;
use crate::verify::statement::{Statement, id_of};

/// How long who asks for a proof waits for the checkpoint; one is made five times a second.
const INCLUSION_PATIENCE: Duration = Duration::from_secs(2);
/// Look-ups at once.
pub(super) const FINDERS: usize = 2;

/// What look-ups, erasures and streams in all shards of a log have in common.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) finders: Arc<Semaphore>,
    /// One erasure at a time.
    pub(super) eraser: Arc<Semaphore>,
    /// The streams that have not ended, in whatever shard they began.
    pub(super) underway: Arc<Underway>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { finders: Arc::new(Semaphore::new(FINDERS)), eraser: Arc::new(Semaphore::new(1)), underway: Arc::default() }
    }
}

/// What can be read of a log.
pub(super) struct Archive {
    pub(super) origin: Arc<str>,
    pub(super) files: Files,
    pub(super) ids: Arc<Ids>,
    pub(super) salts: Arc<Salts>,
    /// The newest checkpoint; of a log that has ended, the last.
    pub(super) published: watch::Receiver<Arc<Published>>,
    /// Set once, where there are witnesses.
    pub(super) cosigning: OnceLock<Cosigning>,
    /// Every public key that the log has or had.
    pub(super) vkeys: Vec<Vkey>,
    /// Where that is not published yet lies; none of a shard that had ended before this process began.
    pub(super) wal: Option<Arc<Wal>>,
    /// Keeps other processes from the folder of such a shard.
    pub(super) _held: Option<File>,
}

/// A shard that has ended, as it was found.
pub(super) struct Ended {
    pub(super) archive: Archive,
    pub(super) salts: salts::Found,
}

impl Archive {
    /// The shard that `config` names, if nothing more is to be done for it: its last checkpoint covers every entry, and is the one in its
    /// lock file. Where it is not so `None`: it is to be opened as a log is, and closed.
    ///
    /// # Errors
    /// When another process has it open, or the salts' keys cannot be used.
    pub(super) fn ended(config: &Config, base: &Path, sealing: &Sealing, before: Option<&Sealing>) -> Result<Option<Ended>, OpenError> {
        let (directory, _) = config.paths(base);
        let held = log::hold(&directory).map_err(OpenError::Log)?;
        let read = |name: &str| fs::read(directory.join(name)).ok();
        let last = || {
            let (note, signed_root) = (Note::parse(&read(CHECKPOINT)?).ok()?, SignedRoot::read(&read(CHECKPOINT_COSE)?)?);
            let Checkpoint { size, root, .. } = Checkpoint::parse(note.text()).ok()?;
            // A lock file that is gone says nothing against it: it is kept elsewhere, and shards that have ended may outlive it.
            let apart = match fs::read(config.lock_path(base)) {
                Ok(apart) if !apart.is_empty() => Some(Checkpoint::parse(Note::parse(&apart).ok()?.text()).ok()?),
                _ => None,
            };
            let same = |size_there: u64, root_there: &merkle::Hash| size_there == size && *root_there == root;
            let whole = apart.is_none_or(|apart| same(apart.size, &apart.root))
                && *signed_root.root() == root
                && segment::ends_with(&directory, size).ok()?
                && Files::of(&directory).root(size, size).ok()? == root;
            whole.then(|| Published { size, below: u64::MAX, root, note: note.to_string(), signed_root: Some(signed_root) })
        };
        let Some(published) = last() else { return Ok(None) };
        let Ok(ids) = Ids::ended(&directory, published.size) else { return Ok(None) };
        let (salts, found) = Salts::open(&directory, sealing, before, u64::MAX, MAX_SUBJECTS).map_err(OpenError::Salts)?;
        let origin: Arc<str> = config.origin.get_ref().as_str().into();
        let keys = fs::read_to_string(directory.join(KEYS)).unwrap_or_default();
        let vkeys = keys.lines().filter_map(|line| line.parse().ok()).filter(|key: &Vkey| key.name == *origin);
        let vkeys: Vec<Vkey> = vkeys.collect();
        let cosigning = OnceLock::new();
        if let Some(cosigned) = read(WITNESSED).and_then(|note| cosigned(&note, &published)) {
            let _ = cosigning.set(Cosigning::over(cosigned));
        } else if config.has_witnesses() && !vkeys.is_empty() {
            // Those that are about to cosign it may be others than those that were asked while it was written.
            let listed = keys_of(&directory, &vkeys, Witnesses::keys_of(config, base));
            match write_keys(&directory, &listed) {
                // Where nothing can be written, nothing will be cosigned either, and that is told as it fails.
                Err(error) if matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied) => {}
                written => written.map_err(|error| OpenError::Io(directory.join(KEYS), error))?,
            }
        }
        let archive = Self {
            origin,
            files: Files::of(&directory),
            ids: Arc::new(ids),
            salts: Arc::new(salts),
            published: watch::channel(Arc::new(published)).1,
            cosigning,
            vkeys,
            wal: None,
            _held: Some(held),
        };
        Ok(Some(Ended { archive, salts: found }))
    }

    /// The newest checkpoint, or where there are witnesses the newest that enough of them have cosigned, as soon as there is one.
    pub(super) fn newest_for_others(&self) -> Arc<Published> {
        let witnessed = self.cosigning.get().map(|cosigning| cosigning.newest.borrow().clone());
        witnessed.filter(|witnessed| witnessed.size > 0).unwrap_or_else(|| self.published.borrow().clone())
    }

    /// Whether its folder was taken away.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.files.directory().try_exists(), Ok(false))
    }

    /// Whether its newest checkpoint bears the signature of one of these keys. A shard that has ended is read as it lies there, and its own
    /// list of keys says nothing of who wrote it.
    pub(super) fn is_signed_by(&self, keys: &[Key]) -> bool {
        let candidates: Vec<Vkeys> = keys.iter().map(|key| key.vkeys(&self.origin)).collect();
        let note = self.published.borrow().note.clone();
        Signed::read(note.as_bytes(), self.files.directory(), &candidates).is_ok_and(|signed| signed.size() > 0)
    }

    /// Waits until a checkpoint covers the entry of number `seq`; says whether it does, and not that the log was closed before.
    async fn covers(&self, seq: u64) -> bool {
        self.published.clone().wait_for(|published| published.below > seq).await.is_ok()
    }

    /// The entry of this id, and how far it has come.
    fn look_up(&self, id: Uuid) -> Option<Found> {
        // A method or a media type that a caller wrote may mention the id too: only the statement of this id will do.
        let of_id = |entry: &[u8]| Statement::read(entry).ok().filter(|statement| statement.id == id);
        // First what is not published: it may be published meanwhile, and is found in the tree then. What is published is there already, also
        // where the write-ahead file has not let go of it yet.
        let below = self.published.borrow().below;
        for (wal, seq, entry) in self.wal.iter().flat_map(|wal| wal.unpublished().into_iter().map(move |(seq, entry)| (wal, seq, entry))) {
            if seq >= below
                && id_of(&entry) == Some(id)
                && let Some(statement) = of_id(&entry)
            {
                let state = if seq < wal.synced() { State::Durable } else { State::Promised };
                return Some(Found { entry: Bytes::from_owner(entry), statement, state, included: None });
            }
        }
        retried(&self.published, |published| {
            let known = self.ids.find(id).ok()?.into_iter().filter(|index| *index < published.size);
            known.into_iter().find_map(|index| {
                let entry = self.files.entry(index, published.size).ok()?;
                let statement = of_id(&entry)?;
                // A proof under a cosigned checkpoint says more, also where that is not the newest.
                let witnessed = self.cosigning.get().map(|cosigning| cosigning.newest.borrow().clone());
                let witnessed = witnessed.filter(|witnessed| index < witnessed.size);
                let state = if witnessed.is_some() { State::Witnessed } else { State::Included };
                let under = witnessed.unwrap_or_else(|| published.clone());
                let path = merkle::inclusion(index, under.size, &mut self.files.subtrees(under.size, published.size)).ok()?;
                let included = Some(Included { index, path, published: under });
                Some(Found { entry: entry.into(), statement, state, included })
            })
        })
    }
}

/// The last checkpoint of a log as it was cosigned, where this note is that.
fn cosigned(note: &[u8], last: &Published) -> Option<Published> {
    let note = Note::parse(note).ok()?;
    let checkpoint = Checkpoint::parse(note.text()).ok()?;
    let same = (checkpoint.size, checkpoint.root) == (last.size, last.root);
    same.then(|| Published { note: note.to_string(), signed_root: last.signed_root.clone(), ..*last })
}

/// The statement of this id and the log that has it, if it was made for this caller, or the caller `audits`; for any other caller, and for
/// no such id, `None`. The first of `archives` that has it is asked no further.
///
/// Reads one bundle and one tile of each level, on a thread that may block, two look-ups at once.
pub(super) async fn find(shared: &Shared, archives: Vec<Arc<Archive>>, id: Uuid, who: &Who, audits: bool) -> Option<(Arc<Archive>, Found)> {
    if id.get_version_num() != 7 {
        return None;
    }
    let permit = shared.finders.clone().acquire_owned().await.ok()?;
    let found = tokio::task::spawn_blocking(move || {
        // Held by the look-up itself: it goes on when nobody waits for it any more, and still counts then.
        let _permit = permit;
        archives.into_iter().find_map(|archive| archive.look_up(id).map(|found| (archive, found)))
    });
    let (archive, found) = found.await.ok().flatten()?;
    let for_them = audits || made_for(&found.statement, who, &archive.salts);
    for_them.then_some((archive, found))
}

/// The same, once a checkpoint covers it: waits for that, two seconds at the most.
pub(super) async fn find_included(shared: &Shared, archives: Vec<Arc<Archive>>, id: Uuid, who: &Who, audits: bool) -> Option<Found> {
    let (archive, found) = find(shared, archives, id, who, audits).await?;
    if found.included.is_some() {
        return Some(found);
    }
    tokio::time::timeout(INCLUSION_PATIENCE, archive.covers(found.statement.seq)).await.ok().filter(|covered| *covered)?;
    find(shared, vec![archive], id, who, audits).await.map(|(_, found)| found).filter(|found| found.included.is_some())
}

/// The salts of this id's commitments, for whom [`find`] gives its statement. `None` too where there is no commitment, and where the key
/// is gone: who asks for what was erased hears what a stranger hears.
pub(super) async fn disclose(shared: &Shared, archives: Vec<Arc<Archive>>, id: Uuid, who: &Arc<Who>, audits: bool) -> Option<Json> {
    let (archive, found) = find(shared, archives, id, who, audits).await?;
    let permit = shared.finders.clone().acquire_owned().await.ok()?;
    let who = who.clone();
    let disclosed = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        disclosure(&found.statement, &who, &archive.salts)
    });
    disclosed.await.ok().flatten()
}
