//! How a log is opened: what stands on the disk is read, derived again, held against the lock file and what witnesses know, and gone on
//! with; or nothing is written at all.

use std::fmt;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, OnceLock};

use super::super::archive::{Archive, Shared};
use super::super::census::Counting;
use super::super::config::Config;
use super::super::cosign::{Known, SetBack};
use super::super::heartbeat::Heart;
use super::super::key::{Exposed, Key, KeyError, Vkey};
use super::super::lock::LockFile;
use super::super::log::{self, Fatal, Found, OnFatal, Poisoned, Recovered, SEGMENT, Until, Wal};
use super::super::prune::{Pruner, Told};
use super::super::publisher::{Desk, Publisher};
use super::super::rotation::{self, Vkeys, signer_of};
use super::super::salts::{self, MAX_SUBJECTS, Salts};
use super::super::statement::{Build, Signer};
use super::super::tree::{Derived, Tree};
use super::super::witness::Witnesses;
use super::entries::tell_counts;
use super::{Inner, Ledger};
use crate::clock::Moment;
use crate::event::Events;
use crate::tlog::{Checkpoint, Note};
use crate::verify::entries::Entries;
use crate::verify::files::{Files, TreeError};
use crate::verify::folder::{CHECKPOINT, KEYS, NEW, NEW_ENTRY, SALTS, WITNESSED, WITNESSED_NEW};
use crate::verify::heartbeat::Life;
use crate::verify::statement::Statement;

/// Numbers left out after a restart in which entries may have been lost that callers hold statements of, so that no number means two.
pub(super) const SKIP: u64 = 1 << 20;

/// Why the log does not open.
#[derive(Debug)]
pub enum OpenError {
    /// The key file gives no key.
    Key(KeyError),
    /// The write-ahead file does not open.
    Log(log::OpenError),
    /// A tile is missing, or cannot be written.
    Tree(TreeError),
    /// The file of the salts' keys does not open.
    Salts(salts::OpenError),
    /// Another key holds the log, or it is of another origin.
    AnotherKey(PathBuf),
    /// The lock file cannot be used, for instance since its folder may not be written to.
    LockFile(PathBuf, io::Error),
    /// Another process has the lock file.
    InUse(PathBuf),
    /// The file holds no checkpoint of this log.
    NotOurs(PathBuf),
    /// The log has fewer entries than a checkpoint in this file covers: it was restored from an older copy, or lost what it had synced.
    Behind(PathBuf, u64, u64),
    /// A checkpoint covers more entries than the write-ahead file has, and the tiles hold them: the write-ahead file is missing.
    Unwritten {
        /// The file.
        segment: PathBuf,
        /// How many entries the log has without it.
        there: u64,
        /// How many the checkpoint covers.
        covered: u64,
        /// How many the tiles hold.
        tiles: u64,
    },
    /// The log has other entries than a checkpoint in this file covers.
    Forked(PathBuf, u64),
    /// A witness has seen more of the log, or another one.
    SetBack(SetBack),
    /// The log in this folder is cut into shards, and the configuration says that it is not.
    InShards(PathBuf),
    /// The file of public keys cannot be written.
    Io(PathBuf, io::Error),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(error) => error.fmt(f),
            Self::Log(error) => error.fmt(f),
            Self::Salts(error) => error.fmt(f),
            Self::AnotherKey(path) => {
                write!(
                    f,
                    "{}: this log is of another key or origin; restore them, or name the key that it had until now as prove.previous_key to \
                     go on with the new one, or begin a log in another directory",
                    path.display()
                )
            }
            Self::Tree(error) => error.fmt(f),
            Self::LockFile(path, error) => {
                write!(f, "{}: {error}; the lock file lies beside the log unless prove.lock names another place", path.display())
            }
            Self::InUse(path) => write!(f, "{}: another process has this lock file open", path.display()),
            Self::NotOurs(path) => write!(
                f,
                "{}: this is no checkpoint of this log by its key; each log needs a lock file of its own (prove.lock)",
                path.display()
            ),
            Self::Behind(path, covered, there) => write!(
                f,
                "{}: a checkpoint over {covered} entries was signed, and the log has {there}: it is an older copy. Restore the newest one; \
                 where there is none, begin a log under another origin",
                path.display()
            ),
            Self::Unwritten { segment, there, covered, tiles } => write!(
                f,
                "{}: the write-ahead file is missing, or an older one: it ends after {there} entries, a checkpoint over {covered} was \
                 signed, and the tiles hold {tiles}. Restore it; where it is lost, begin a log in another directory under another origin: what \
                 this one holds can be read and verified as before",
                segment.display()
            ),
            Self::Forked(path, covered) => write!(
                f,
                "{}: a checkpoint over {covered} entries was signed, and the log has others in their place; restore what was there",
                path.display()
            ),
            Self::SetBack(error) => error.fmt(f),
            Self::InShards(path) => {
                write!(
                    f,
                    "{}: this log is cut into shards: set prove.shards = \"half-yearly\" as before, or name another directory",
                    path.display()
                )
            }
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for OpenError {}

impl OpenError {
    /// Whether the disk is full, and that is all.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Io(_, error) | Self::LockFile(_, error) => log::is_full(error),
            Self::Tree(TreeError::Io(_, error)) | Self::Log(log::OpenError::Io(_, error)) => log::is_full(error),
            Self::Salts(salts::OpenError::Io(_, error)) => log::is_full(error),
            _ => false,
        }
    }
}

/// What was found when the ledger was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// What the write-ahead file held.
    pub recovered: Recovered,
    /// Whether others than its owner may read the key file, or that of the key before; worth a warning.
    pub key: Exposed,
    /// The key before has handed the log over to this one.
    pub rotated: bool,
    /// The log has entries, and the file of the salts' keys was not there: nobody can open what was committed to before, nor ask for it.
    pub salts_lost: bool,
}

impl Ledger {
    /// Opens the log that `config` names, or begins it; paths are relative to `base`. Blocks while it reads the write-ahead file.
    ///
    /// `on_fatal` is called when a sync fails; it should end the process, since what the disk holds is not known any more.
    ///
    /// # Errors
    /// When the key, the folder or the file cannot be used, or the log is damaged, in use, or another key's.
    pub fn open(config: &Config, base: &Path, build: Build, events: Events, on_fatal: OnFatal) -> Result<(Self, Opened), OpenError> {
        Self::open_after(&[], config, base, build, events, on_fatal.into(), Shared::default())
    }

    /// The same, for a log that goes on from all that is `known` of it to witnesses: where it does not, nothing is written or signed.
    ///
    /// # Errors
    /// Those of [`Ledger::open`], and [`OpenError::SetBack`].
    pub(in crate::prove) fn open_after(
        known: &[Known],
        config: &Config,
        base: &Path,
        build: Build,
        events: Events,
        on_fatal: Fatal,
        shared: Shared,
    ) -> Result<(Self, Opened), OpenError> {
        let (directory, key) = config.paths(base);
        let (key, Exposed(mut exposed)) = Key::from_file(&key).map_err(OpenError::Key)?;
        let mut previous = None;
        if let Some(path) = config.previous_path(base) {
            let (before, Exposed(too)) = Key::from_file(&path).map_err(OpenError::Key)?;
            exposed |= too;
            previous = Some(before).filter(|before| before.log_vkey("") != key.log_vkey(""));
        }
        let origin: Arc<str> = config.origin.get_ref().as_str().into();
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| OpenError::Io(path, error)
        };
        let (lock_path, newest) = (config.lock_path(base), directory.join(CHECKPOINT));
        let mut candidates: Vec<Vkeys> = [&key].into_iter().chain(&previous).map(|key| key.vkeys(&origin)).collect();
        // What cannot be read is told below, and nothing is cut on the strength of it.
        let covered = || {
            let signed = |path: &Path| Signed::read(&read_if_there(path).ok()?, path, &candidates).ok();
            match (signed(&lock_path), signed(&newest)) {
                (None, _) => u64::MAX,
                (Some(lock), newest) => Signed::size(&lock).max(newest.as_ref().map_or(0, Signed::size)),
            }
        };
        // Where the folder is gone, it is not begun anew.
        if let Ok(signed) = Signed::read(&read_if_there(&lock_path).unwrap_or_default(), &lock_path, &candidates)
            && signed.size() > 0
            && !directory.exists()
        {
            return Err(OpenError::Behind(lock_path, signed.size(), 0));
        }
        make_folder(&directory).map_err(|error| OpenError::Io(directory.clone(), error))?;
        // First everything is read; where the log does not go on from what was signed, nothing of it has changed.
        let mut read = Found::read(&directory, covered).map_err(OpenError::Log)?;
        let (entries, there) = (read.take_entries(), read.recovered().entries);
        // A log that is begun had no key before.
        let previous = previous.filter(|_| there > 0);
        candidates.truncate(1 + usize::from(previous.is_some()));
        let lock = LockFile::open(&lock_path).map_err(|error| OpenError::LockFile(lock_path.clone(), error))?;
        let lock = lock.ok_or_else(|| OpenError::InUse(lock_path.clone()))?;
        let here = Signed::read(&read_if_there(&newest).map_err(io(&newest))?, &newest, &candidates);
        let (apart, here) = match (Signed::read(lock.last(), &lock_path, &candidates), here) {
            (Ok(apart), Ok(here)) => (apart, here),
            // Unlike the lock file it is not synced, and may hold anything after lost power; a new one is about to be written.
            (Ok(apart), Err(_)) if apart.0.is_some() => (apart, Signed::default()),
            (Err(_), Ok(_)) => return Err(OpenError::NotOurs(lock_path)),
            (_, Err(OpenError::AnotherKey(_))) => return Err(OpenError::AnotherKey(directory)),
            (_, Err(no_checkpoint)) => return Err(no_checkpoint),
        };
        let covered = apart.size().max(here.size());
        if let Some(tiles) = here.covered_by_tiles(&directory).filter(|tiles| covered > there && *tiles > there) {
            let segment = read.next_segment().unwrap_or_else(|| directory.join("wal-…"));
            return Err(OpenError::Unwritten { segment, there, covered, tiles });
        }
        let derived = Derived::read(&directory, read.recovered().first_index, &entries).map_err(OpenError::Tree)?;
        apart.holds_for_derived(&derived, &lock_path)?;
        here.holds_for_derived(&derived, &newest)?;
        let known = || known.iter().filter(|known| *known.origin == *origin);
        known().try_for_each(|known| known.held_against_derived(&derived))?;

        let (wal, mut recovered) = Wal::open(read, SEGMENT, on_fatal.clone()).map_err(OpenError::Log)?;
        for left in [NEW, WITNESSED_NEW, NEW_ENTRY] {
            let _ = std::fs::remove_file(directory.join(left));
        }
        let tree = derived.write().map_err(OpenError::Tree)?;
        // The write-ahead file may hold nothing but the beginning of a segment.
        if tree.size() > 0 && recovered.last_seq.is_none() {
            let last = tree.files().entry(tree.size() - 1, tree.size()).map_err(OpenError::Tree)?;
            recovered.last_seq = Statement::read(&last).ok().map(|last| last.seq);
        }
        // What cannot be read of it may be what there was no room for.
        let full = |error| match error {
            OpenError::Tree(_) if tree.owes() => OpenError::Io(directory.join("tile"), io::ErrorKind::StorageFull.into()),
            error => error,
        };
        apart.holds_for(&tree, &lock_path).map_err(full)?;
        here.holds_for(&tree, &newest).map_err(full)?;
        let signed_at = apart.1.max(here.1);
        known().try_for_each(|known| known.held_against(&tree)).map_err(full)?;
        let rotates = {
            let newest = [&here, &apart].into_iter().max_by_key(|signed| signed.size());
            let (covered, note) = newest.map_or((0, None), |signed| (signed.size(), signed.0.as_ref().map(|(note, _)| note)));
            let holder = match covered.checked_sub(recovered.first_index) {
                _ if tree.size() == 0 => Some(0),
                Some(known) => rotation::holder(&candidates, note, entries.iter().skip(usize::try_from(known).unwrap_or(usize::MAX))),
                // Both checkpoints were lost, and the write-ahead file has not all that followed.
                None => {
                    let all = Entries::of(&directory).map_err(io(&directory))?.filter_map(Result::ok);
                    rotation::holder(&candidates, note, all.filter(|(index, _)| *index >= covered).map(|(_, entry)| entry))
                }
            };
            holder.ok_or_else(|| OpenError::AnotherKey(directory.clone()))? > 0
        };
        let listed = keys_of(&directory, &candidates.concat(), Witnesses::keys_of(config, base));
        if !rotates {
            write_keys(&directory, &listed).map_err(io(&directory.join(KEYS)))?;
        }

        let next = recovered.last_seq.map_or(0, |last| last.saturating_add(1));
        let before = previous.as_ref().map(|previous| &**previous.sealing());
        let (salts, found) = Salts::open(&directory, key.sealing(), before, next, MAX_SUBJECTS).map_err(OpenError::Salts)?;
        let salts = Arc::new(salts);
        let to_sync = salts.clone();
        wal.sync_first(move || to_sync.sync());

        let signer = Signer::new(key, origin.clone(), build, salts.clone()).of_node(config.node()).after(previous);
        let (signer, wal) = (Arc::new(signer), Arc::new(wal));
        let (files, ids) = (tree.files().clone(), tree.ids().clone());
        let now = Moment::now().unix_nanos();
        let mut resumed_after = None;
        match recovered.last_seq {
            None => drop(wal.append_counted(Until::Ready, |_| (), |_, ()| signer.endorsement(now))),
            Some(last) if recovered.cut_bytes > 0 || recovered.unsynced_lost => {
                wal.skip_to(last + 1 + SKIP);
                resumed_after = Some(last);
            }
            Some(last) => resumed_after = (wal.next() != last + 1).then_some(last),
        }
        let unwritten = |Poisoned| OpenError::Io(directory.clone(), io::Error::other("the first entry could not be written"));
        if let Some(before) = signer.previous().filter(|_| rotates) {
            let resumed_after = resumed_after.take();
            let told = wal.append_counted(Until::Ready, |_| (), |seq, ()| signer.rotation(seq, now, before, resumed_after));
            told.map(drop).map_err(unwritten)?;
        }
        let heart = Arc::new(Heart { signer: signer.clone(), counting: Counting::default(), opened: Moment::now() });
        let pruner = config.keep.as_ref().map(|keep| Pruner {
            files: files.clone(),
            ids: ids.clone(),
            wal: wal.clone(),
            heart: heart.clone(),
            keep: keep.get_ref().0,
            witnessed: config.has_witnesses(),
            told: Told::default(),
        });
        // A log that goes on waits for room as it does while it runs. One that is begun, or handed over, or has to tell that entries were
        // lost, does that first.
        let patient = recovered.last_seq.is_some() && !rotates && resumed_after.is_none();
        let desk =
            Desk { directory: directory.clone(), wal: wal.clone(), tree, lock, heart: heart.clone(), signed_at, on_fatal, pruner, patient };
        let publisher = Publisher::start(desk, next).map_err(io(&directory))?;
        if rotates {
            // Before the entry that endorses them is in the log, nothing may name them.
            write_keys(&directory, &listed).map_err(io(&directory.join(KEYS)))?;
        }
        let vkeys = listed.into_iter().filter(|key| key.name == *signer.origin).collect();
        let archive = Archive {
            origin,
            files,
            ids,
            salts,
            published: publisher.published().clone(),
            cosigning: OnceLock::new(),
            vkeys,
            wal: Some(wal.clone()),
            _held: None,
        };
        let inner = Inner {
            signer,
            wal,
            publisher,
            archive: Arc::new(archive),
            slots: AtomicUsize::new(0),
            gaps: AtomicU64::new(0),
            gaps_told: AtomicU64::new(0),
            refusals: Mutex::default(),
            heart,
            shared,
            events,
        };
        let begun = inner.count(Life::Began, resumed_after);
        if begun.is_err() && !(patient && inner.wal.tally().full) {
            return Err(if inner.wal.tally().full {
                OpenError::Io(directory, io::ErrorKind::StorageFull.into())
            } else {
                unwritten(Poisoned)
            });
        }
        // Before anybody is promised anything: were these lost, the next start would give the same numbers out again.
        inner.wal.goes_on().map_err(|error| OpenError::Io(directory.clone(), error))?;
        inner.finish_erasures(&inner.signer.salts, &found.untold).map_err(|error| OpenError::Io(directory.join(SALTS), error))?;
        if found.by_previous {
            // Until the log is of the new key, the old one alone opens them.
            inner.signer.salts.reseal(inner.signer.key.sealing()).map_err(io(&directory.join(SALTS)))?;
        }
        inner.publisher.prune();
        let salts_lost = found.begun && recovered.last_seq.is_some();
        let inner = Arc::new(inner);
        let weak = Arc::downgrade(&inner);
        let told = std::thread::Builder::new().name("prove-count".into()).spawn(move || tell_counts(&weak));
        told.map_err(|error| OpenError::Io(directory, error))?;
        Ok((Self(inner), Opened { recovered, key: Exposed(exposed), salts_lost, rotated: rotates }))
    }
}

/// What is in a file, or nothing where there is none.
fn read_if_there(path: &Path) -> io::Result<Vec<u8>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}

/// The checkpoint in a file, and when it was signed; no checkpoint and no time in an empty file.
#[derive(Default)]
pub(in crate::prove) struct Signed(pub(super) Option<(Note, Checkpoint)>, pub(super) u64);

impl Signed {
    /// Reads `note`, which was in the file `path` and must be by one of `candidates`.
    pub(in crate::prove) fn read(note: &[u8], path: &Path, candidates: &[Vkeys]) -> Result<Self, OpenError> {
        if note.is_empty() {
            return Ok(Self::default());
        }
        let no_checkpoint = || OpenError::NotOurs(path.to_owned());
        let note = Note::parse(note).map_err(|_| no_checkpoint())?;
        let checkpoint = Checkpoint::parse(note.text()).map_err(|_| no_checkpoint())?;
        let ours = candidates.iter().any(|[log, ..]| log.name == checkpoint.origin) && signer_of(&note, candidates).is_some();
        let opened = note.open(&candidates.concat()).ok().filter(|_| ours);
        let opened = opened.ok_or_else(|| OpenError::AnotherKey(path.to_owned()))?;
        let time = opened.verified.iter().filter_map(|line| line.time).max().unwrap_or(0);
        Ok(Self(Some((note, checkpoint)), time))
    }

    /// How many entries it covers.
    pub(in crate::prove) fn size(&self) -> u64 {
        self.0.as_ref().map_or(0, |(_, checkpoint)| checkpoint.size)
    }

    /// How many entries the tiles hold, where they hold what it covers.
    fn covered_by_tiles(&self, directory: &Path) -> Option<u64> {
        let (_, checkpoint) = self.0.as_ref()?;
        let root = Files::of(directory).root(checkpoint.size, checkpoint.size).ok()?;
        (root == checkpoint.root).then_some(checkpoint.size)
    }

    /// Holds that the tree is to go on from it, as far as that can be told before anything is written.
    fn holds_for_derived(&self, tree: &Derived, path: &Path) -> Result<(), OpenError> {
        let Some((_, checkpoint)) = &self.0 else { return Ok(()) };
        if checkpoint.size > tree.size() {
            return Err(OpenError::Behind(path.to_owned(), checkpoint.size, tree.size()));
        }
        let same = tree.root(checkpoint.size).is_none_or(|root| root == checkpoint.root);
        if same { Ok(()) } else { Err(OpenError::Forked(path.to_owned(), checkpoint.size)) }
    }

    /// Holds that the tree goes on from it.
    fn holds_for(&self, tree: &Tree, path: &Path) -> Result<(), OpenError> {
        let Some((_, checkpoint)) = &self.0 else { return Ok(()) };
        if checkpoint.size > tree.size() {
            return Err(OpenError::Behind(path.to_owned(), checkpoint.size, tree.size()));
        }
        let root = tree.files().root(checkpoint.size, tree.size()).map_err(OpenError::Tree)?;
        if root == checkpoint.root { Ok(()) } else { Err(OpenError::Forked(path.to_owned(), checkpoint.size)) }
    }
}

/// Makes a folder and those above it, where they are not there, so that lost power does not take them away again.
fn make_folder(directory: &Path) -> io::Result<()> {
    let missing = directory.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).count();
    std::fs::create_dir_all(directory)?;
    // A folder is new in the one above it.
    let above = directory.ancestors().skip(1).take(missing.max(1));
    above
        .map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
        .try_for_each(|above| std::fs::File::open(above)?.sync_all())
}

/// What `keys.vkey` is to say: `keys`, then the log's keys before them that it says already, then those of witnesses; and those of witnesses
/// before them that it says already, for as long as the newest checkpoint that a quorum has cosigned is theirs.
pub(in crate::prove) fn keys_of(directory: &Path, keys: &[Vkey], witnesses: Vec<Vkey>) -> Vec<Vkey> {
    let there = std::fs::read_to_string(directory.join(KEYS)).unwrap_or_default();
    let there: Vec<Vkey> = there.lines().filter_map(|line| line.parse().ok()).collect();
    let cosigned = std::fs::read(directory.join(WITNESSED)).ok().and_then(|note| Note::parse(&note).ok());
    let cosigned_by = |key: &Vkey| cosigned.iter().flat_map(Note::lines).any(|line| (&*line.name, line.id) == (&*key.name, key.id()));
    let own = |key: &&Vkey| key.name == keys[0].name;
    let mut listed = keys.to_vec();
    let before =
        there.iter().filter(own).cloned().chain(witnesses).chain(there.iter().filter(|key| !own(key) && cosigned_by(key)).cloned());
    for key in before {
        if !listed.contains(&key) {
            listed.push(key);
        }
    }
    listed
}

/// Writes the public keys where they are not there already.
pub(in crate::prove) fn write_keys(directory: &Path, keys: &[Vkey]) -> io::Result<()> {
    let text: String = keys.iter().map(|key| format!("{key}\n")).collect();
    let path = directory.join(KEYS);
    if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    let new = directory.join(NEW);
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, &path)?;
    std::fs::File::open(directory)?.sync_all()
}
