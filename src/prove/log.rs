//! The write-ahead file: entries in order, each numbered, each with a checksum, never changed.
//!
//! How segments and records lie in the folder is told in `segment.rs`.
//!
//! **Who writes.** The tasks that answer requests do, not a thread of their own. A task draws its number, signs, and lays its entry in
//! its place; if nobody is writing it takes the lead and writes all that lie ready in one `write`, and again while more lie ready.
//! A `write` into the page cache takes a few microseconds, much less than to hand an entry to a thread and be woken by it: the
//! measurement at the foot of `log/tests.rs` shows both. Who finds a leader at work waits for it as a future, which blocks no thread.
//! One thread syncs: `fdatasync` is the call that takes milliseconds. It begins as soon as someone waits for it, so that a group is
//! what came during the sync before it; while nobody waits it syncs every [`SYNC_EVERY`].
//!
//! **Who reads.** What is synced waits for the tree, in order (`Wal::unpublished`), until `Wal::published` takes it away; a segment
//! whose entries all lie in full tiles on the disk is removed (`Wal::remove`).
//!
//! **What a failure does.** A full disk takes the entries that were being written back: whoever waits for them learns it, nothing is
//! appended until there is room again, and the entry after that tells which numbers are missing (`Wal::resume`). Any other failed
//! `write`, and any failed `fdatasync`, poisons the log: nothing is appended any more, since what the file then holds is not known
//! (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020). A failed sync also calls the [`OnFatal`] hook, which
//! is to end the process. Where the file is not at its path any more the log is poisoned too, and the process goes on: as long as it has the
//! file open, it can be copied back.
//!
//! **What the next start does.** What was written and not synced may be lost: when power was, or when a sync failed. Then numbers are left
//! out, since callers may hold statements that have them; and the file `lock` tells that it happened, until the entry that says so is
//! synced (`Wal::goes_on`). What a checkpoint covers was synced, and damage to it is never repaired.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::tlog::tile::MAX_ENTRY;
use crate::verify::folder::LOCK;
use crate::verify::segment::path_of;

mod lead;
mod recover;

pub(super) use lead::is_full;
use lead::{Segment, Shared, State, begin, has_room_for};

/// How long an entry may stay unsynced while nobody waits for it.
pub const SYNC_EVERY: Duration = Duration::from_millis(100);
/// A segment that has reached this many bytes is followed by another.
pub const SEGMENT: u64 = 16 << 20;
/// How many bytes may lie ready for a leader; past it nothing is reserved.
pub const MAX_WAITING: usize = 16 << 20;
/// How many bytes may be written and not be in the tree yet; past it nothing is reserved.
pub const MAX_UNPUBLISHED: usize = 64 << 20;
/// How much room a full disk must have again before anything is appended.
const ROOM: u64 = 1 << 20;

/// How long to ask for the lock: a process that is just being forked, or just ending, holds it for a moment longer.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_millis(200);

/// Called once when a sync has failed; it should end the process.
pub type OnFatal = Box<dyn Fn(&io::Error) + Send + Sync>;
/// The hook, for all who may meet a failed sync.
pub(super) type Fatal = Arc<dyn Fn(&io::Error) + Send + Sync>;
/// What a log holds when it is opened, from its first entry on.
pub(super) type Entries = Vec<Arc<[u8]>>;
/// Syncs what entries rest on.
type SyncFirst = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

/// Why a log does not open.
#[derive(Debug)]
pub enum OpenError {
    /// A file or the folder cannot be used.
    Io(PathBuf, io::Error),
    /// Another process has it open.
    InUse(PathBuf),
    /// A record is damaged and good ones follow it: this is no torn tail, and nothing is repaired.
    Damaged(PathBuf, u64, &'static str),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::InUse(path) => write!(f, "{}: another process has this log open", path.display()),
            Self::Damaged(path, at, why) => write!(f, "{}: damaged at byte {at}: {why}; restore it, or move the log aside", path.display()),
        }
    }
}

impl std::error::Error for OpenError {}

/// The log takes nothing any more: a write or a sync has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poisoned;

/// What was found when the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// How many whole entries the log has, those that lie in tiles alone among them.
    pub entries: u64,
    /// The index of the first that the write-ahead file still holds.
    pub first_index: u64,
    /// How many bytes of a torn tail were cut off.
    pub cut_bytes: u64,
    /// The last number, where there is one.
    pub last_seq: Option<u64>,
    /// Whether the machine was started anew since the log was last open, or a sync had failed then: entries that were not synced may be
    /// lost.
    pub unsynced_lost: bool,
}

/// What the log has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Entries written.
    pub entries: u64,
    /// Groups they were written in.
    pub groups: u64,
    /// Entries laid ready and not written yet.
    pub waiting: usize,
    /// Syncs.
    pub syncs: u64,
    /// How long they took together.
    pub sync_time: Duration,
    /// Bytes that are written and not in the tree yet.
    pub unpublished: usize,
    /// Whether it is poisoned.
    pub poisoned: bool,
    /// Whether the disk is full.
    pub full: bool,
}

/// A write-ahead file as it lies in its folder, which nobody else can write to. Nothing of it has changed.
pub(super) struct Found {
    directory: PathBuf,
    lock: File,
    read: recover::Read,
}

impl Found {
    /// Reads the log in `directory`, which must exist.
    ///
    /// `covered` is asked once nobody else can write: the entries of a lower index were synced, since a checkpoint covers them.
    pub(super) fn read(directory: &Path, covered: impl FnOnce() -> u64) -> Result<Self, OpenError> {
        let lock = hold(directory)?;
        let mut before = Vec::new();
        (&lock).take(256).read_to_end(&mut before).map_err(|error| OpenError::Io(directory.join(LOCK), error))?;
        let lost = lost_since(&before, &boot());
        let mut read = recover::recover(directory, covered(), lost)?;
        read.recovered.unsynced_lost = lost && read.recovered.entries > 0;
        Ok(Self { directory: directory.into(), lock, read })
    }

    /// What there is.
    pub(super) fn recovered(&self) -> Recovered {
        self.read.recovered
    }

    /// The entries that are there.
    pub(super) fn take_entries(&mut self) -> Entries {
        std::mem::take(&mut self.read.entries)
    }

    /// The segment that would have the next entry, if one is missing; none where there is no telling.
    pub(super) fn next_segment(&self) -> Option<PathBuf> {
        let last = self.read.segments.last()?;
        // One without an entry was begun in its place.
        let after = u64::from(last.first_index < self.read.recovered.entries);
        Some(path_of(&self.directory, last.number + after))
    }
}

/// An open write-ahead file.
pub(super) struct Wal {
    shared: Arc<Shared>,
    syncer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// Which promise a caller waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// Nothing: it is laid ready, and written by whoever leads.
    Ready,
    /// `write` has returned: it survives the death of the process.
    Written,
    /// `fdatasync` has returned: it survives the loss of power.
    Synced,
}

/// A wait for an entry; `None` if it is over already.
pub(super) struct Wait(Option<oneshot::Receiver<()>>);

impl Wait {
    /// Whether it is over already.
    pub(super) fn is_over(&self) -> bool {
        self.0.is_none()
    }

    /// Waits, on a thread that may block and belongs to no runtime.
    pub(super) fn done_here(self) -> Result<(), Poisoned> {
        self.0.map_or(Ok(()), |told| told.blocking_recv().map_err(|_| Poisoned))
    }

    /// Waits.
    pub(super) async fn done(self) -> Result<(), Poisoned> {
        match self.0 {
            None => Ok(()),
            Some(told) => told.await.map_err(|_| Poisoned),
        }
    }
}

/// The locked file that keeps other processes from a log's folder, for as long as it is open.
pub(super) fn hold(directory: &Path) -> Result<File, OpenError> {
    let path = directory.join(LOCK);
    let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let lock = lock.map_err(|error| OpenError::Io(path.clone(), error))?;
    let asked = Instant::now();
    while let Err(refused) = lock.try_lock() {
        match refused {
            std::fs::TryLockError::WouldBlock if asked.elapsed() < LOCK_PATIENCE => std::thread::sleep(LOCK_PATIENCE / 20),
            std::fs::TryLockError::WouldBlock => return Err(OpenError::InUse(directory.into())),
            std::fs::TryLockError::Error(error) => return Err(OpenError::Io(path, error)),
        }
    }
    Ok(lock)
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wal {
    /// Opens or begins the log that was found; syncs it.
    pub(super) fn open(found: Found, segment: u64, on_fatal: Fatal) -> Result<(Self, Recovered), OpenError> {
        let Found { directory, lock, mut read } = found;
        let directory = &*directory;
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| OpenError::Io(path, error)
        };
        read.mend()?;
        let recover::Read { recovered, segments, next, .. } = read;
        let folder = File::open(directory).map_err(io(directory))?;

        let mut state = State {
            next,
            taken: next,
            ready: VecDeque::new(),
            ready_bytes: 0,
            unpublished: VecDeque::new(),
            unpublished_bytes: 0,
            index: recovered.entries,
            written: next,
            synced: next,
            leading: false,
            hand_over: false,
            poisoned: false,
            no_room: false,
            failure: None,
            closing: false,
            syncer_waits: false,
            publisher_waits: false,
            on_write: Vec::new(),
            on_sync: Vec::new(),
            file: Arc::new(lock.try_clone().map_err(io(&directory.join(LOCK)))?),
            length: 0,
            full: Vec::new(),
            segments,
            buffer: Vec::new(),
            tally: Tally::default(),
        };
        match state.segments.last() {
            Some(last) => {
                let path = path_of(directory, last.number);
                let file = OpenOptions::new().read(true).append(true).open(&path).map_err(io(&path))?;
                state.length = file.metadata().map_err(io(&path))?.len();
                state.file = Arc::new(file);
            }
            None => begin(directory, &mut state, next).map_err(io(directory))?,
        }
        folder.sync_all().map_err(io(directory))?;
        let shared = Arc::new(Shared {
            directory: directory.into(),
            folder,
            lock,
            segment,
            state: Mutex::new(state),
            wake: Condvar::new(),
            grown: Condvar::new(),
            on_fatal,
            sync_first: OnceLock::new(),
        });
        let for_syncer = shared.clone();
        let syncer = std::thread::Builder::new().name("prove-sync".into()).spawn(move || for_syncer.sync_until_closed());
        let syncer = syncer.map_err(io(directory))?;
        Ok((Self { shared, syncer: Mutex::new(Some(syncer)) }, recovered))
    }

    /// Syncs what is written, and only then notes that nothing was lost up to here, or that what was is told. To be called before anybody
    /// is promised anything; blocks for a sync.
    pub(super) fn goes_on(&self) -> io::Result<()> {
        // Not by way of the syncing thread: whoever opens a log may be in a runtime, where nothing can be waited for like that.
        if self.shared.sync(held(&self.shared.state)).poisoned {
            return Err(io::Error::other("the log could not be synced"));
        }
        // Over what is there, for which a full disk has room.
        let (mut lock, boot, mut there) = (&self.shared.lock, boot(), Vec::new());
        lock.rewind()?;
        lock.take(256).read_to_end(&mut there)?;
        if there == boot {
            return Ok(());
        }
        lock.rewind()?;
        lock.write_all(&boot)?;
        lock.set_len(boot.len() as u64)
    }

    /// What is synced before the log each time, so that no entry is on the disk before what it rests on. Set once, before there is an entry.
    pub(super) fn sync_first(&self, first: impl Fn() -> io::Result<()> + Send + Sync + 'static) {
        let _ = self.shared.sync_first.set(Box::new(first));
    }

    /// Whether an entry may be laid ready: not poisoned, not full, and what waits has not outgrown its bounds.
    pub(super) fn has_room(&self) -> bool {
        let state = held(&self.shared.state);
        !state.refuses() && state.ready_bytes < MAX_WAITING && state.unpublished_bytes < MAX_UNPUBLISHED
    }

    /// Draws the next number, has `make` sign the entry with it, and lays it ready; leads if nobody does.
    ///
    /// Between the number and the entry nothing waits, so no number is left without one.
    #[cfg(test)]
    pub(super) fn append(&self, until: Until, make: impl FnOnce(u64) -> Vec<u8>) -> Result<(u64, Arc<[u8]>, Wait), Poisoned> {
        self.append_counted(until, |_| (), |seq, ()| make(seq))
    }

    /// The same; `count` is called with the number while nobody else can draw one, so that what it counts is counted in the order of the
    /// numbers, and what it tells goes to `make`. It holds up everybody, and must be quick.
    pub(super) fn append_counted<T>(
        &self,
        until: Until,
        count: impl FnOnce(u64) -> T,
        make: impl FnOnce(u64, T) -> Vec<u8>,
    ) -> Result<(u64, Arc<[u8]>, Wait), Poisoned> {
        let (seq, counted) = {
            let mut state = held(&self.shared.state);
            if state.refuses() {
                return Err(Poisoned);
            }
            let counted = count(state.next);
            (state.draw(), counted)
        };
        self.lay(seq, until, |seq| make(seq, counted))
    }

    fn lay(&self, seq: u64, until: Until, make: impl FnOnce(u64) -> Vec<u8>) -> Result<(u64, Arc<[u8]>, Wait), Poisoned> {
        // A panic in `make` would leave a hole that nothing could ever be written past.
        let hole = PoisonOnDrop(&self.shared);
        let entry = make(seq);
        if entry.len() > MAX_ENTRY {
            return Err(Poisoned);
        }
        std::mem::forget(hole);
        let entry: Arc<[u8]> = entry.into();
        let wait = self.shared.lay(seq, entry.clone(), until)?;
        Ok((seq, entry, wait))
    }

    /// Where the disk was full and has room again: appends what `make` says of the last number that was written, before anything else;
    /// `count` as above. Says whether it did.
    pub(super) fn resume<T>(&self, count: impl FnOnce(u64) -> T, make: impl FnOnce(u64, u64, T) -> Vec<u8>) -> bool {
        let (seq, last, counted) = {
            let mut state = held(&self.shared.state);
            if !state.no_room || state.poisoned || state.closing || !has_room_for(&state.file, state.length, ROOM) {
                return false;
            }
            state.no_room = false;
            state.failure = None;
            let counted = count(state.next);
            (state.draw(), state.written.saturating_sub(1), counted)
        };
        self.lay(seq, Until::Ready, |seq| make(seq, last, counted)).is_ok()
    }

    /// Waits until what is written now is synced; blocks. Says below which number everything is.
    pub(super) fn sync(&self) -> Result<u64, Poisoned> {
        let told = {
            let mut state = held(&self.shared.state);
            if state.poisoned {
                return Err(Poisoned);
            }
            if state.synced == state.written {
                return Ok(state.synced);
            }
            let (tell, told) = oneshot::channel();
            let last = state.written - 1;
            state.on_sync.push((last, tell));
            told
        };
        self.shared.wake.notify_all();
        told.blocking_recv().map_err(|_| Poisoned)?;
        Ok(self.synced())
    }

    /// Waits until something is written that is not in the tree yet, the log is closed, or `patience` is over.
    pub(super) fn wait_for_unpublished(&self, patience: Duration) {
        let mut state = held(&self.shared.state);
        if state.unpublished.is_empty() && !state.closing {
            state.publisher_waits = true;
            state = self.shared.grown.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0;
            state.publisher_waits = false;
        }
    }

    /// What is written and not in the tree yet, oldest first, with its numbers.
    pub(super) fn unpublished(&self) -> Vec<(u64, Arc<[u8]>)> {
        held(&self.shared.state).unpublished.iter().cloned().collect()
    }

    /// The `count` oldest are in the tree.
    pub(super) fn published(&self, count: usize) {
        let mut state = held(&self.shared.state);
        let bytes: usize = state.unpublished.drain(..count).map(|(_, entry)| entry.len()).sum();
        state.unpublished_bytes -= bytes;
    }

    /// The index of the first entry that the segments hold.
    pub(super) fn first_index(&self) -> u64 {
        held(&self.shared.state).segments.first().map_or(0, |segment| segment.first_index)
    }

    /// The segments that hold nothing from `index` on, and are followed by others.
    pub(super) fn behind(&self, index: u64) -> Vec<u64> {
        let state = held(&self.shared.state);
        state.segments.windows(2).take_while(|pair| pair[1].first_index <= index).map(|pair| pair[0].number).collect()
    }

    /// Removes segments that [`Wal::behind`] named; what they hold must lie synced elsewhere. One that cannot be removed is read again at
    /// the next start, which changes nothing.
    ///
    /// # Errors
    /// When a sync fails. Each removal is synced: a segment that came back without the one after it would stop the next start.
    pub(super) fn remove(&self, numbers: &[u64]) -> io::Result<()> {
        for number in numbers {
            if std::fs::remove_file(path_of(&self.shared.directory, *number)).is_err() {
                return Ok(());
            }
            self.shared.folder.sync_all()?;
            held(&self.shared.state).segments.retain(|segment| segment.number != *number);
        }
        Ok(())
    }

    /// A wait for an entry that was laid ready before.
    pub(super) fn wait(&self, seq: u64, until: Until) -> Result<Wait, Poisoned> {
        self.shared.wait(held(&self.shared.state), seq, until)
    }

    /// Skips numbers that may have been given out and lost; only right after opening.
    pub(super) fn skip_to(&self, seq: u64) {
        let mut state = held(&self.shared.state);
        debug_assert!(state.ready.is_empty() && seq >= state.next, "numbers are skipped only before the first entry");
        (state.next, state.taken, state.written, state.synced) = (seq, seq, seq, seq);
    }

    /// The next number.
    pub(super) fn next(&self) -> u64 {
        held(&self.shared.state).next
    }

    /// What poisoned it.
    pub(super) fn failure(&self) -> Option<String> {
        held(&self.shared.state).failure.as_ref().map(io::Error::to_string)
    }

    /// Every number below is on the disk.
    pub(super) fn synced(&self) -> u64 {
        held(&self.shared.state).synced
    }

    /// What was done so far.
    pub(super) fn tally(&self) -> Tally {
        let state = held(&self.shared.state);
        Tally {
            waiting: state.ready.len(),
            unpublished: state.unpublished_bytes,
            poisoned: state.poisoned,
            full: state.no_room,
            ..state.tally
        }
    }

    /// Writes and syncs what there is and stops the thread. Later appends fail.
    pub(super) fn close(&self) {
        held(&self.shared.state).closing = true;
        self.shared.wake.notify_all();
        self.shared.grown.notify_all();
        if let Some(syncer) = held(&self.syncer).take() {
            let _ = syncer.join();
        }
    }

    /// As if so many more bytes were written, or fewer, and no checkpoint came.
    #[cfg(test)]
    pub(super) fn pretend_unpublished(&self, bytes: isize) {
        let mut state = held(&self.shared.state);
        state.unpublished_bytes = state.unpublished_bytes.checked_add_signed(bytes).unwrap();
    }

    /// As if the disk were full, until it is looked at again.
    #[cfg(test)]
    pub(super) fn pretend_full(&self) {
        held(&self.shared.state).no_room = true;
    }

    /// Takes nothing any more, since of `error`.
    pub(super) fn poison(&self, error: &io::Error) {
        held(&self.shared.state).failure = Some(io::Error::new(error.kind(), error.to_string()));
        self.shared.poison();
    }

    /// Whether it is being closed, or is.
    pub(super) fn is_closing(&self) -> bool {
        held(&self.shared.state).closing
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.close();
    }
}

struct PoisonOnDrop<'a>(&'a Shared);

impl Drop for PoisonOnDrop<'_> {
    fn drop(&mut self) {
        self.0.poison();
    }
}

/// The boot that this is; nothing where the system does not tell.
fn boot() -> Vec<u8> {
    std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// Whether what was written and not synced may be lost, where the lock file names `before` and this boot is `boot`.
fn lost_since(before: &[u8], boot: &[u8]) -> bool {
    boot.is_empty() || before != boot
}

/// Whether a failure says that there are no more descriptors.
pub(super) fn wants_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    error.raw_os_error().is_some_and(|code| [Errno::MFILE, Errno::NFILE].contains(&Errno::from_raw_os_error(code)))
}

#[cfg(test)]
#[path = "log/tests.rs"]
mod tests;
