//! Keys that can be destroyed: what salts commitments, and what makes pseudonyms.
//!
//! Every caller has a random key of its own, every month one for its pseudonyms, and one for what strangers sent. The salt of a
//! commitment is `HMAC-SHA-256(key, id ‖ label)`: who holds the key can open every commitment of that caller, and once it is destroyed
//! nobody can, the holder of the log's PEM included. The keys lie in the file `salts` of the log's folder, each wrapped
//! by a key, and under a name, that only the PEM's holder can tell, and in memory, where they are looked up. The file has a master of its
//! own, which the PEM opens: a log that goes on with another PEM has its keys still (`Salts::reseal`).
//!
//! **When a key is made.** Before the statement that uses it is laid in the log it is in the file (`write`), and the log's syncing thread
//! syncs the file before it syncs the log. So no statement that survives a loss of power lost its key to it.
//!
//! **Who can make the file grow.** Who is not authenticated has no key of its own. Those who are have one each, up to [`MAX_SUBJECTS`] of
//! them; the next ones' commitments are made with random salts that nobody keeps, which is counted, and nobody loses a key to them. The
//! same becomes of a commitment whose key cannot be written.
//!
//! **When a key is destroyed** the file is written anew without it and the old one is overwritten. Where the disk keeps
//! what was overwritten (flash behind a translation layer, copy-on-write and journaling file systems, snapshots, backups) the wrapped key
//! may lie there for longer, and opens with the PEM: such disks should be encrypted as a whole, and copies should not outlive what they are for.
//!
//! **Whose salt.** Each key says since which entry it was used. After an erasure a caller who comes again gets a new one; that is never
//! taken for what the old one salted. So does a month, for a stream that began in it and ends after the month's key was destroyed.

mod file;
mod rewrite;

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use arc_swap::ArcSwap;
use aws_lc_rs::hmac;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::key::commitment;
use super::pseudonyms::Pseudonyms;
use super::tree::at;
use crate::digest::Digest;
use crate::trail::Who;
use crate::verify::folder::{SALTS as FILE, SALTS_NEW as NEW, SALTS_OLD as OLD};

use file::{HEADER, Kept, RECORD};
pub(super) use file::{Name, Sealing, Wrapping};
use rewrite::{Leftover, Rewrite};

/// How many callers have a key of their own. At the cap the file is 93 MB long, and they take about 120 MB of memory.
pub const MAX_SUBJECTS: usize = 1_000_000;

/// Caller and tenant, as statements call them.
pub(super) type Pair = ([u8; 16], [u8; 16]);

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Whose {
    /// The salts of one caller of one tenant.
    Subject = 1,
    /// The pseudonyms of a month.
    Epoch = 2,
    /// The salts of a month's refusals that have no caller.
    Strangers = 3,
}

impl Whose {
    const ALL: [Self; 3] = [Self::Subject, Self::Epoch, Self::Strangers];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Subject => "subject",
            Self::Epoch => "epoch",
            Self::Strangers => "strangers",
        }
    }
}

/// Why the file of the keys does not open.
#[derive(Debug)]
pub enum OpenError {
    /// It, or what an erasure left beside it, cannot be used.
    Io(PathBuf, io::Error),
    /// It was begun with another PEM.
    AnotherKey(PathBuf),
    /// A record is damaged and is no torn tail.
    Damaged(PathBuf, u64, &'static str),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::AnotherKey(path) => {
                write!(
                    f,
                    "{}: these keys were sealed by another log's key; restore the key, or the file, or name the key that the log had \
                     before as prove.previous_key",
                    path.display()
                )
            }
            Self::Damaged(path, at, why) => write!(f, "{}: damaged at byte {at}: {why}; restore the file", path.display()),
        }
    }
}

impl std::error::Error for OpenError {}

/// A key that was destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Destroyed {
    pub(super) whose: Whose,
    /// Of an epoch and of strangers.
    pub(super) month: Option<u32>,
}

/// What was found when the file was opened.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// It was not there, and was begun.
    pub(super) begun: bool,
    /// How many bytes of a torn tail were cut off.
    pub(super) cut_bytes: u64,
    /// The key before this one sealed it: [`Salts::reseal`] is to be called once the log goes on with this one.
    pub(super) by_previous: bool,
    /// What was destroyed before the process died, and may have no entry yet; then `Salts::wipe` is to be called.
    pub(super) untold: Vec<Destroyed>,
}

/// How many keys there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Callers with a key of their own.
    pub subjects: u64,
    /// Entries, since the log was opened, whose salts or pseudonyms nobody kept: past the cap, or with a disk that took nothing.
    pub unkept: u64,
}

/// Why nothing was destroyed, or not all of it.
#[derive(Debug)]
pub(super) enum Error<E> {
    /// There is no such key.
    Unknown,
    /// The disk failed before the new file was in its place: nothing has changed.
    Before(io::Error),
    /// The disk failed after: which file holds is not known, and the log is to stop.
    After(io::Error),
    /// It is destroyed, and the log did not take the entry.
    Untold(E),
}

/// What one statement is salted with, and how it calls its caller.
#[derive(Clone)]
pub(super) struct Salting {
    key: Arc<hmac::Key>,
    pub(super) pair: Option<Pair>,
}

impl Salting {
    pub(super) fn of(key: &[u8], pair: Option<Pair>) -> Self {
        Self { key: Arc::new(hmac::Key::new(hmac::HMAC_SHA256, key)), pair }
    }

    /// The salt of one commitment of one record.
    pub(super) fn salt(&self, id: Uuid, label: &str) -> [u8; 32] {
        tag(&self.key, &[id.as_bytes(), label.as_bytes()])
    }

    /// The salted commitment to content with this digest.
    pub(super) fn commit(&self, id: Uuid, label: &str, digest: &Digest) -> Digest {
        commitment(label, &self.salt(id, label), digest)
    }
}

/// The keys of a log.
pub(super) struct Salts {
    wrapping: Arc<Wrapping>,
    directory: PathBuf,
    /// How many subjects there may be.
    most: usize,
    keys: RwLock<HashMap<Name, Box<Kept>>>,
    /// Held across I/O: by who makes a key, and by an erasure while the new file takes its place.
    writer: Mutex<Writer>,
    /// The file as the log's syncing thread knows it.
    synced_file: ArcSwap<File>,
    /// Whether the file has what is not synced.
    dirty: AtomicBool,
    /// Which file holds is not known any more.
    broken: AtomicBool,
    subjects: AtomicUsize,
    unkept: AtomicU64,
    known: Pseudonyms,
}

struct Writer {
    file: Arc<File>,
    length: u64,
    /// A key that is made now has salted no entry with a smaller number.
    since: u64,
    /// What the file begins with.
    header: [u8; HEADER],
}

impl Salts {
    /// Opens the keys in `directory`, of which the caller holds the lock, or begins them; what `previous` sealed opens too. `next` is the
    /// number of the log's next entry.
    pub(super) fn open(
        directory: &Path,
        sealing: &Sealing,
        previous: Option<&Sealing>,
        next: u64,
        most: usize,
    ) -> Result<(Self, Found), OpenError> {
        let path = directory.join(FILE);
        let io = |error| OpenError::Io(path.clone(), error);
        let mut found = Found::default();
        if !path.try_exists().map_err(io)? {
            if directory.join(OLD).try_exists().map_err(io)? {
                // No step of an erasure leaves it so: a hand did, and what lies there may be all that there is.
                return Err(OpenError::Io(path, io::Error::other(format!("it is missing, and {OLD} is there: restore it"))));
            }
            begin(directory, sealing).map_err(io)?;
            found.begun = true;
        }
        let leftover = rewrite::leftover(directory).map_err(io)?;
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(io)?;
        let bytes = fs::read(&path).map_err(io)?;
        let (wrapping, by_previous) = file::unsealed(&path, &bytes, sealing, previous)?;
        found.by_previous = by_previous;
        let (kept, sound) = file::read(&path, &bytes, &wrapping)?;
        let mut header = [0; HEADER];
        header.copy_from_slice(&bytes[..HEADER]);
        if sound < bytes.len() {
            file.set_len(sound as u64).map_err(io)?;
            found.cut_bytes = (bytes.len() - sound) as u64;
        }
        file.sync_all().map_err(io)?;
        let keys: HashMap<Name, Box<Kept>> = kept.into_iter().map(|(name, kept)| (name, Box::new(kept))).collect();
        if let Leftover::Old(bytes) = leftover {
            // Its first bytes are overwritten when its entry is in the log: then there is nothing to tell.
            if file::is_sound(&bytes) {
                let (old, _) = file::read(&directory.join(OLD), &bytes, &wrapping)?;
                found.untold = old.iter().filter(|(name, _)| !keys.contains_key(name)).map(|(_, kept)| kept.destroyed()).collect();
            }
            if found.untold.is_empty() {
                rewrite::wipe_old(directory).map_err(io)?;
            }
        }
        let subjects = keys.values().filter(|kept| kept.whose == Whose::Subject).count();
        let file = Arc::new(file);
        let salts = Self {
            wrapping,
            directory: directory.into(),
            most,
            keys: RwLock::new(keys),
            synced_file: ArcSwap::new(file.clone()),
            writer: Mutex::new(Writer { file, length: sound as u64, since: next, header }),
            dirty: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            subjects: AtomicUsize::new(subjects),
            unkept: AtomicU64::new(0),
            known: Pseudonyms::default(),
        };
        Ok((salts, found))
    }

    /// What a statement about `who`, whose request arrived in `month`, is salted with. Keys that are not there are made.
    ///
    /// `seq` is the statement's number. Without one keys are only made ready, so that nothing is written between the number and the entry.
    pub(super) fn of(&self, who: Option<&Arc<Who>>, month: u32, seq: Option<u64>) -> Salting {
        let Some(who) = who else {
            let key = self.or_make(self.wrapping.strangers(month), Whose::Strangers, month, seq);
            return Salting::of(&*key.unwrap_or_else(thrown_away), None);
        };
        self.known.or_make(who, month, || {
            let name = self.wrapping.subject(&who.tenant, &who.caller);
            let key = self.or_make(name, Whose::Subject, 0, seq);
            let epoch = self.or_make(self.wrapping.epoch(month), Whose::Epoch, month, seq);
            let keep = key.is_some() && epoch.is_some();
            let pair = pair(&epoch.unwrap_or_else(thrown_away), &name, &who.tenant);
            (Salting::of(&*key.unwrap_or_else(thrown_away), Some(pair)), keep)
        })
    }

    /// How the statements of `month` call this caller; `None` if its key is not there.
    pub(super) fn pseudonyms(&self, who: &Who, month: u32) -> Option<Pair> {
        let epoch = self.kept().get(&self.wrapping.epoch(month))?.key.clone();
        Some(pair(&epoch, &self.wrapping.subject(&who.tenant, &who.caller), &who.tenant))
    }

    /// What the entry `seq` about this caller was salted with, if its key is still there.
    pub(super) fn of_subject(&self, who: &Who, seq: u64) -> Option<Salting> {
        self.salted_with(&self.wrapping.subject(&who.tenant, &who.caller), seq)
    }

    /// The same for the caller whom the statements of `month` call `pseudonym`: tries every name there is, up to half a second of work.
    pub(super) fn of_pseudonym(&self, pseudonym: &[u8], month: u32, seq: u64) -> Option<Salting> {
        let (epoch, names) = {
            let kept = self.kept();
            let epoch = kept.get(&self.wrapping.epoch(month))?.key.clone();
            let subjects = kept.iter().filter(|(_, kept)| kept.whose == Whose::Subject);
            (epoch, subjects.map(|(name, _)| *name).collect::<Vec<Name>>())
        };
        let epoch = hmac::Key::new(hmac::HMAC_SHA256, &*epoch);
        let name = names.into_iter().find(|name| half(&epoch, CALLER, name) == pseudonym)?;
        self.salted_with(&name, seq)
    }

    /// What the entry `seq`, which names no caller, was salted with.
    pub(super) fn of_strangers(&self, month: u32, seq: u64) -> Option<Salting> {
        self.salted_with(&self.wrapping.strangers(month), seq)
    }

    fn salted_with(&self, name: &Name, seq: u64) -> Option<Salting> {
        let kept = self.kept();
        let kept = kept.get(name).filter(|kept| kept.since <= seq)?;
        Some(Salting::of(&*kept.key, None))
    }

    /// Syncs what was written since the last call; for the log's syncing thread, before it syncs the log.
    pub(super) fn sync(&self) -> io::Result<()> {
        if self.broken.load(Ordering::Acquire) {
            return Err(io::Error::other("the file of the salts' keys could not be synced after an erasure"));
        }
        if self.dirty.swap(false, Ordering::AcqRel) { self.synced_file.load().sync_data() } else { Ok(()) }
    }

    /// How many keys there are.
    pub(super) fn tally(&self) -> Tally {
        let subjects = self.subjects.load(Ordering::Relaxed) as u64;
        Tally { subjects, unkept: self.unkept.load(Ordering::Relaxed) }
    }

    /// The name of the key that salts what this caller of this tenant sends and gets.
    pub(super) fn subject(&self, tenant: &str, caller: &str) -> Name {
        self.wrapping.subject(tenant, caller)
    }

    /// The name of the key of a month.
    pub(super) fn month(&self, whose: Whose, month: u32) -> Name {
        if whose == Whose::Strangers { self.wrapping.strangers(month) } else { self.wrapping.epoch(month) }
    }

    /// Destroys a key: in the file, in memory, and then lets `tell` append the entry about it, whose number it returns.
    ///
    /// One at a time. [`Salts::wipe`] is to follow once that entry is on the disk. Blocks for four syncs; what needs a new key meanwhile
    /// waits for the last two of them.
    pub(super) fn erase<T, E>(&self, name: Name, tell: impl FnOnce(Destroyed) -> Result<(u64, T), E>) -> Result<T, Error<E>> {
        let destroyed = self.kept().get(&name).ok_or(Error::Unknown)?.destroyed();
        let before = |error: io::Error| Error::Before(at(&self.directory.join(FILE), &error));
        // What an erasure before this one could not overwrite.
        rewrite::leftover(&self.directory).and_then(|_| rewrite::wipe_old(&self.directory)).map_err(before)?;
        let (file, length, header) = {
            let writer = held(&self.writer);
            (writer.file.clone(), writer.length, writer.header)
        };
        let mut new = Rewrite::begin(&self.directory, &header, Some(name)).map_err(before)?;
        new.catch_up(&file, length).map_err(before)?;
        let mut writer = held(&self.writer);
        new.catch_up(&writer.file, writer.length).and_then(|()| new.keep_old()).map_err(before)?;
        let (file, length) = new.put().map_err(before)?;
        let in_its_place = rewrite::sync(&self.directory);
        (writer.file, writer.length) = (Arc::new(file), length);
        self.synced_file.store(writer.file.clone());
        let forgotten = self.keys.write().unwrap_or_else(PoisonError::into_inner).remove(&name);
        if forgotten.is_some_and(|kept| kept.whose == Whose::Subject) {
            self.subjects.fetch_sub(1, Ordering::AcqRel);
        }
        self.known.forget();
        if let Err(error) = in_its_place {
            self.broken.store(true, Ordering::Release);
            return Err(Error::After(at(&self.directory.join(FILE), &error)));
        }
        // Numbers are drawn one after another: who draws a greater one than the entry's finds the key gone. Who needs a new key now waits
        // for the writer, and gets one that is younger than the entry.
        let (seq, told) = tell(destroyed).map_err(Error::Untold)?;
        writer.since = writer.since.max(seq.saturating_add(1));
        Ok(told)
    }

    /// Seals the file for another PEM, which opens it from then on in the place of the one that sealed it. Blocks for four syncs; what
    /// needs a new key meanwhile waits.
    ///
    /// A crash leaves the file as it was or as it is to be, whole. What the old header was overwritten with may not reach what a disk keeps
    /// of the old one, as with an erasure.
    pub(super) fn reseal(&self, sealing: &Sealing) -> io::Result<()> {
        let header = sealing.header(&self.wrapping).ok_or_else(no_randomness)?;
        let mut writer = held(&self.writer);
        let mut new = Rewrite::begin(&self.directory, &header, None)?;
        new.catch_up(&writer.file, writer.length)?;
        let (file, length) = new.put()?;
        let old = std::mem::replace(&mut writer.file, Arc::new(file));
        (writer.length, writer.header) = (length, header);
        self.synced_file.store(writer.file.clone());
        rewrite::sync(&self.directory).inspect_err(|_| self.broken.store(true, Ordering::Release))?;
        rewrite::wipe_header(&old)
    }

    /// Overwrites and unlinks the file that an erasure replaced.
    pub(super) fn wipe(&self) -> io::Result<()> {
        rewrite::wipe_old(&self.directory).map_err(|error| at(&self.directory.join(OLD), &error))
    }

    fn kept(&self) -> RwLockReadGuard<'_, HashMap<Name, Box<Kept>>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key of this name, made where it is not there; `None` where it cannot be kept.
    fn or_make(&self, name: Name, whose: Whose, month: u32, seq: Option<u64>) -> Option<Zeroizing<[u8; 32]>> {
        let known = || self.kept().get(&name).map(|kept| kept.key.clone());
        let full = || whose == Whose::Subject && self.subjects.load(Ordering::Acquire) >= self.most;
        if let Some(key) = known() {
            return Some(key);
        }
        if full() {
            self.count(seq);
            return None;
        }
        let mut writer = held(&self.writer);
        if let Some(key) = known() {
            return Some(key);
        }
        if full() {
            self.count(seq);
            return None;
        }
        let kept = Kept { whose, month, since: writer.since, key: thrown_away() };
        let record = self.wrapping.seal(&name, &kept);
        // Where it fails the length stays: the next one is written over what came of this one.
        let written = record.and_then(|record| writer.file.write_all_at(&record, writer.length).ok());
        if written.is_none() {
            self.count(seq);
            // Were the key made later, it would seem to have salted this entry.
            writer.since = writer.since.max(seq.map_or(0, |seq| seq.saturating_add(1)));
            return None;
        }
        writer.length += RECORD as u64;
        self.dirty.store(true, Ordering::Release);
        if whose == Whose::Subject {
            self.subjects.fetch_add(1, Ordering::AcqRel);
        }
        let key = kept.key.clone();
        self.keys.write().unwrap_or_else(PoisonError::into_inner).insert(name, Box::new(kept));
        Some(key)
    }

    fn count(&self, seq: Option<u64>) {
        self.unkept.fetch_add(u64::from(seq.is_some()), Ordering::Relaxed);
    }
}

impl Kept {
    fn destroyed(&self) -> Destroyed {
        Destroyed { whose: self.whose, month: (self.whose != Whose::Subject).then_some(self.month) }
    }
}

/// A file without a key in it, whole or not there at all.
fn begin(directory: &Path, sealing: &Sealing) -> io::Result<()> {
    // One that was being begun when the process died.
    match fs::remove_file(directory.join(NEW)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let header = Wrapping::fresh().and_then(|wrapping| sealing.header(&wrapping)).ok_or_else(no_randomness)?;
    rewrite::begun(directory, &header)?;
    fs::rename(directory.join(NEW), directory.join(FILE))?;
    rewrite::sync(directory)
}

fn no_randomness() -> io::Error {
    io::Error::other("the operating system gives no randomness")
}

/// A fresh key. As a salt that nobody keeps it closes a commitment for good.
fn thrown_away() -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    #[expect(clippy::expect_used, reason = "without randomness no key may be made")]
    aws_lc_rs::rand::fill(&mut *key).expect("the operating system has randomness");
    key
}

const CALLER: &[u8] = b"caller:";
const TENANT: &[u8] = b"tenant:";

fn pair(epoch: &[u8; 32], subject: &Name, tenant: &str) -> Pair {
    let key = hmac::Key::new(hmac::HMAC_SHA256, epoch);
    (half(&key, CALLER, subject), half(&key, TENANT, tenant.as_bytes()))
}

fn half(key: &hmac::Key, label: &[u8], name: &[u8]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&tag(key, &[label, name])[..16]);
    half
}

fn tag(key: &hmac::Key, parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(key);
    parts.iter().for_each(|part| context.update(part));
    let mut out = [0; 32];
    out.copy_from_slice(context.sign().as_ref());
    out
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "salts/tests.rs"]
mod tests;
