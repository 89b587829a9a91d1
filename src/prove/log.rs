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
//! **What a failure does.** Any failed `write` or `fdatasync` poisons the log: nothing is appended any more, since what the file then
//! holds is not known (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020). A failed sync also calls the
//! [`OnFatal`] hook, which is to end the process.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::segment::{HEADER, Record, first_number, frame, header, numbers, path_of};
use super::statement::MAX_ENTRY;

/// How long an entry may stay unsynced while nobody waits for it.
pub const SYNC_EVERY: Duration = Duration::from_millis(100);
/// A segment that has reached this many bytes is followed by another.
pub const SEGMENT: u64 = 64 << 20;
/// How many bytes may lie ready for a leader; past it nothing is reserved.
pub const MAX_WAITING: usize = 16 << 20;
/// The most that one `write` takes, if a single entry is not longer.
const GROUP: usize = 256 << 10;
/// After so many groups a leader leaves the lead to the syncing thread, so that it comes to its own answer.
const LEAD: usize = 16;
/// One mark of time is kept in memory for so many bytes of log: 6 KiB a segment.
const MARK: u64 = 256 << 10;

/// How long to ask for the lock: a process that is just being forked, or just ending, holds it for a moment longer.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);

const LOCK: &str = "lock";

/// Called once when a sync has failed; it should end the process.
pub type OnFatal = Box<dyn Fn(&io::Error) + Send + Sync>;

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
    /// How many whole entries there are.
    pub entries: u64,
    /// How many bytes of a torn tail were cut off.
    pub cut_bytes: u64,
    /// The last number, where there is one.
    pub last_seq: Option<u64>,
    /// Whether the machine was started anew since the log was last open: entries that were not synced may be lost.
    pub machine_restarted: bool,
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
    /// Whether it is poisoned.
    pub poisoned: bool,
}

/// An open write-ahead file.
pub(super) struct Wal {
    shared: Arc<Shared>,
    syncer: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Held for as long as the log is open.
    _lock: File,
}

struct Shared {
    directory: PathBuf,
    segment: u64,
    state: Mutex<State>,
    wake: Condvar,
    on_fatal: OnFatal,
}

struct State {
    /// The next number to be drawn.
    next: u64,
    /// The number of the first entry in `ready`: those below were taken by a leader.
    taken: u64,
    /// Entries from number `taken` on, each in its place once it is signed.
    ready: VecDeque<Option<Vec<u8>>>,
    ready_bytes: usize,
    /// Every number below is in the file.
    written: u64,
    /// Every number below is on the disk.
    synced: u64,
    leading: bool,
    hand_over: bool,
    poisoned: bool,
    failure: Option<io::Error>,
    closing: bool,
    syncer_waits: bool,
    on_write: Vec<(u64, oneshot::Sender<()>)>,
    on_sync: Vec<(u64, oneshot::Sender<()>)>,
    file: Arc<File>,
    /// Bytes in `file`.
    length: u64,
    /// Segments that were followed by another and are not synced yet.
    full: Vec<Arc<File>>,
    segments: Vec<Segment>,
    buffer: Vec<u8>,
    tally: Tally,
}

/// Where in the file which time stands.
struct Segment {
    number: u64,
    marks: Vec<Mark>,
}

#[derive(Clone, Copy)]
struct Mark {
    offset: u64,
    /// Milliseconds since 1970.
    time: u64,
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

    /// Waits.
    pub(super) async fn done(self) -> Result<(), Poisoned> {
        match self.0 {
            None => Ok(()),
            Some(told) => told.await.map_err(|_| Poisoned),
        }
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wal {
    /// Opens or begins the log in `directory`, which must exist; reads all of it. `time_of` tells the time of an entry in
    /// milliseconds since 1970, for the marks.
    pub(super) fn open(
        directory: &Path,
        segment: u64,
        time_of: impl Fn(&[u8]) -> u64,
        on_fatal: OnFatal,
    ) -> Result<(Self, Recovered), OpenError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| OpenError::Io(path, error)
        };
        let lock_path = directory.join(LOCK);
        let mut lock =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&lock_path).map_err(io(&lock_path))?;
        let asked = Instant::now();
        while let Err(refused) = lock.try_lock() {
            match refused {
                std::fs::TryLockError::WouldBlock if asked.elapsed() < LOCK_PATIENCE => std::thread::sleep(LOCK_PATIENCE / 20),
                std::fs::TryLockError::WouldBlock => return Err(OpenError::InUse(directory.into())),
                std::fs::TryLockError::Error(error) => return Err(OpenError::Io(lock_path, error)),
            }
        }
        // The lock file names the boot in which the log was last open.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let mut before = String::new();
        (&lock).take(256).read_to_string(&mut before).map_err(io(&lock_path))?;
        let (mut recovered, segments, next) = recover(directory, &time_of)?;
        recovered.machine_restarted = recovered.last_seq.is_some() && before != boot;
        lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| lock.write_all(boot.as_bytes())).map_err(io(&lock_path))?;

        let mut state = State {
            next,
            taken: next,
            ready: VecDeque::new(),
            ready_bytes: 0,
            written: next,
            synced: next,
            leading: false,
            hand_over: false,
            poisoned: false,
            failure: None,
            closing: false,
            syncer_waits: false,
            on_write: Vec::new(),
            on_sync: Vec::new(),
            file: Arc::new(lock.try_clone().map_err(io(&lock_path))?),
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
                file.sync_all().map_err(io(&path))?;
                state.file = Arc::new(file);
            }
            None => begin(directory, &mut state, next).map_err(io(directory))?,
        }
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(io(directory))?;
        let shared = Arc::new(Shared { directory: directory.into(), segment, state: Mutex::new(state), wake: Condvar::new(), on_fatal });
        let for_syncer = shared.clone();
        let syncer = std::thread::Builder::new().name("prove-sync".into()).spawn(move || for_syncer.sync_until_closed());
        let syncer = syncer.map_err(io(directory))?;
        Ok((Self { shared, syncer: Mutex::new(Some(syncer)), _lock: lock }, recovered))
    }

    /// Whether an entry may be laid ready: not poisoned, and what waits has not outgrown its bound.
    pub(super) fn has_room(&self) -> bool {
        let state = held(&self.shared.state);
        !state.poisoned && !state.closing && state.ready_bytes < MAX_WAITING
    }

    /// Draws the next number, has `make` sign the entry with it, and lays it ready; leads if nobody does.
    ///
    /// `time` is when, in milliseconds since 1970. Between the number and the entry nothing waits, so no number is left without one.
    pub(super) fn append(&self, time: u64, until: Until, make: impl FnOnce(u64) -> Vec<u8>) -> Result<(u64, Arc<[u8]>, Wait), Poisoned> {
        let seq = {
            let mut state = held(&self.shared.state);
            if state.poisoned || state.closing {
                return Err(Poisoned);
            }
            state.ready.push_back(None);
            state.next += 1;
            state.next - 1
        };
        // A panic in `make` would leave a hole that nothing could ever be written past.
        let hole = PoisonOnDrop(&self.shared);
        let entry = make(seq);
        if entry.len() > MAX_ENTRY {
            return Err(Poisoned);
        }
        std::mem::forget(hole);
        let copy: Arc<[u8]> = entry.as_slice().into();
        let wait = self.shared.lay(seq, time, entry, until)?;
        Ok((seq, copy, wait))
    }

    /// Skips numbers that may have been given out and lost; only right after opening.
    pub(super) fn skip_to(&self, seq: u64) {
        let mut state = held(&self.shared.state);
        debug_assert!(state.ready.is_empty() && seq >= state.next, "numbers are skipped only before the first entry");
        (state.next, state.taken, state.written, state.synced) = (seq, seq, seq, seq);
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
        Tally { waiting: state.ready.len(), poisoned: state.poisoned, ..state.tally }
    }

    /// Where to look for an entry whose request arrived at `from` and which was appended before `to` (ms since 1970): pieces of
    /// segments, oldest first, at most `bytes` together.
    pub(super) fn places(&self, from: u64, to: u64, bytes: u64) -> Vec<Place> {
        let state = held(&self.shared.state);
        let (mut places, mut left) = (Vec::new(), bytes);
        for (index, segment) in state.segments.iter().enumerate() {
            let last = index + 1 == state.segments.len();
            let end = if last { state.length } else { u64::MAX };
            let first = segment.marks.partition_point(|mark| mark.time < from).saturating_sub(1);
            let Some(start) = segment.marks.get(first) else { continue };
            // The segment ended before: the next one began before `from` too.
            if !last && state.segments[index + 1].marks.first().is_some_and(|mark| mark.time < from) {
                continue;
            }
            if start.time > to || left == 0 {
                break;
            }
            let past = segment.marks.partition_point(|mark| mark.time <= to);
            let end = segment.marks.get(past).map_or(end, |mark| mark.offset);
            let length = end.saturating_sub(start.offset).min(left);
            left = left.saturating_sub(length.min(SEGMENT));
            places.push(Place { path: path_of(&self.shared.directory, segment.number), offset: start.offset, length });
        }
        places
    }

    /// Writes and syncs what there is and stops the thread. Later appends fail.
    pub(super) fn close(&self) {
        held(&self.shared.state).closing = true;
        self.shared.wake.notify_all();
        if let Some(syncer) = held(&self.syncer).take() {
            let _ = syncer.join();
        }
    }

    #[cfg(test)]
    pub(super) fn poison(&self) {
        self.shared.poison();
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.close();
    }
}

/// A piece of a segment.
pub(super) struct Place {
    path: PathBuf,
    offset: u64,
    length: u64,
}

impl Place {
    /// Gives every whole record of it to `found`, until that returns something.
    pub(super) fn scan<T>(&self, mut found: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
        let file = File::open(&self.path).ok()?;
        let (mut buffer, mut offset, mut left) = (Vec::new(), self.offset, self.length);
        loop {
            let carried = buffer.len();
            let piece = usize::try_from(left.min(MARK)).unwrap_or(0);
            buffer.resize(carried + piece, 0);
            let read = file.read_at(&mut buffer[carried..], offset).ok()?;
            buffer.truncate(carried + read);
            (offset, left) = (offset + read as u64, left - read as u64);
            let mut at = 0;
            while let Some(record) = Record::read(&buffer[at..]) {
                at += record.size();
                if let Some(value) = found(record.entry) {
                    return Some(value);
                }
            }
            buffer.drain(..at);
            if read == 0 || left == 0 {
                return None;
            }
        }
    }
}

struct PoisonOnDrop<'a>(&'a Shared);

impl Drop for PoisonOnDrop<'_> {
    fn drop(&mut self) {
        self.0.poison();
    }
}

impl Shared {
    fn poison(&self) {
        let mut state = held(&self.state);
        state.poisoned = true;
        // Whoever waits learns it from the closed channel.
        state.on_write.clear();
        state.on_sync.clear();
        drop(state);
        self.wake.notify_all();
    }

    fn lay(&self, seq: u64, time: u64, entry: Vec<u8>, until: Until) -> Result<Wait, Poisoned> {
        let mut state = held(&self.state);
        if state.poisoned {
            return Err(Poisoned);
        }
        state.ready_bytes += entry.len();
        // Nothing is taken out before it is in its place, so the place is there.
        let place = usize::try_from(seq - state.taken).unwrap_or(usize::MAX);
        if let Some(place) = state.ready.get_mut(place) {
            *place = Some(entry);
        }
        if !state.leading && state.ready.front().is_some_and(Option::is_some) {
            state = self.lead(state, time, LEAD);
        }
        if state.poisoned {
            return Err(Poisoned);
        }
        let wait = match until {
            Until::Written if state.written <= seq => {
                let (tell, told) = oneshot::channel();
                state.on_write.push((seq, tell));
                Wait(Some(told))
            }
            Until::Synced if state.synced <= seq => {
                let (tell, told) = oneshot::channel();
                state.on_sync.push((seq, tell));
                Wait(Some(told))
            }
            _ => Wait(None),
        };
        if state.syncer_waits && (until == Until::Synced || state.hand_over) {
            state.syncer_waits = false;
            self.wake.notify_one();
        }
        Ok(wait)
    }

    /// Writes what lies ready from the front, group by group; without the lock while the system works.
    fn lead<'a>(&'a self, mut state: MutexGuard<'a, State>, time: u64, groups: usize) -> MutexGuard<'a, State> {
        state.leading = true;
        for _ in 0..groups {
            let mut buffer = std::mem::take(&mut state.buffer);
            buffer.clear();
            let (mut count, mut bytes) = (0, 0);
            let first = state.taken;
            while let Some(Some(entry)) = state.ready.front() {
                if count > 0 && buffer.len() + entry.len() > GROUP {
                    break;
                }
                frame(&mut buffer, first + count, entry);
                (count, bytes) = (count + 1, bytes + entry.len());
                state.ready.pop_front();
            }
            if count == 0 {
                state.buffer = buffer;
                break;
            }
            state.taken += count;
            state.ready_bytes -= bytes;
            if state.length >= self.segment
                && let Err(error) = follow(&self.directory, &mut state, first)
            {
                return self.failed(state, error);
            }
            let at = state.length;
            let file = state.file.clone();
            drop(state);
            let outcome = (&*file).write_all(&buffer);
            state = held(&self.state);
            if let Err(error) = outcome {
                // A torn record would be cut at the next start anyway; without one the log can be verified as it lies.
                let _ = file.set_len(at);
                return self.failed(state, error);
            }
            state.written = first + count;
            state.length += buffer.len() as u64;
            state.tally.entries += count;
            state.tally.groups += 1;
            if let Some(segment) = state.segments.last_mut()
                && segment.marks.last().is_none_or(|mark| at >= mark.offset + MARK)
            {
                segment.marks.push(Mark { offset: at, time });
            }
            state.buffer = buffer;
            let written = state.written;
            release(&mut state.on_write, written);
        }
        state.leading = false;
        state.hand_over = state.ready.front().is_some_and(Option::is_some);
        state
    }

    fn failed<'a>(&'a self, mut state: MutexGuard<'a, State>, error: io::Error) -> MutexGuard<'a, State> {
        state.failure = Some(error);
        drop(state);
        self.poison();
        let mut state = held(&self.state);
        state.leading = false;
        state
    }

    fn sync_until_closed(&self) {
        let mut last = Instant::now();
        let mut state = held(&self.state);
        loop {
            if state.hand_over && !state.leading && !state.poisoned {
                let time = state.segments.last().and_then(|segment| segment.marks.last()).map_or(0, |mark| mark.time);
                state = self.lead(state, time, LEAD);
            }
            if state.poisoned {
                return;
            }
            let dirty = state.synced < state.written;
            let wanted = !state.on_sync.is_empty() || state.closing;
            if !dirty || !(wanted || last.elapsed() >= SYNC_EVERY) {
                if state.closing && state.ready.is_empty() && !state.leading {
                    return;
                }
                state.syncer_waits = true;
                state = self.wake.wait_timeout(state, SYNC_EVERY).unwrap_or_else(PoisonError::into_inner).0;
                state.syncer_waits = false;
                continue;
            }
            state = self.sync(state);
            last = Instant::now();
        }
    }

    fn sync<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let (full, file, written) = (std::mem::take(&mut state.full), state.file.clone(), state.written);
        drop(state);
        let from = Instant::now();
        let new_names = if full.is_empty() { Ok(()) } else { File::open(&self.directory).and_then(|directory| directory.sync_all()) };
        let outcome = full.iter().try_for_each(|file| file.sync_data()).and(new_names).and_then(|()| file.sync_data());
        let took = from.elapsed();
        if let Err(error) = outcome {
            self.poison();
            (self.on_fatal)(&error);
            let mut state = held(&self.state);
            state.failure = Some(error);
            return state;
        }
        let mut state = held(&self.state);
        state.synced = written;
        state.tally.syncs += 1;
        state.tally.sync_time += took;
        release(&mut state.on_sync, written);
        state
    }
}

fn release(waiting: &mut Vec<(u64, oneshot::Sender<()>)>, below: u64) {
    let mut at = 0;
    while at < waiting.len() {
        if waiting[at].0 < below {
            let _ = waiting.swap_remove(at).1.send(());
        } else {
            at += 1;
        }
    }
}

/// Leaves a full segment and begins the next with number `first`.
fn follow(directory: &Path, state: &mut State, first: u64) -> io::Result<()> {
    let before = state.file.clone();
    begin(directory, state, first)?;
    state.full.push(before);
    Ok(())
}

fn begin(directory: &Path, state: &mut State, first: u64) -> io::Result<()> {
    let number = state.segments.last().map_or(0, |last| last.number + 1);
    let mut file = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(path_of(directory, number))?;
    file.write_all(&header(first))?;
    (state.file, state.length) = (Arc::new(file), HEADER as u64);
    state.segments.push(Segment { number, marks: Vec::new() });
    Ok(())
}

/// Reads every segment, cuts a torn tail off the last, and says what was there and which number is next.
fn recover(directory: &Path, time_of: &impl Fn(&[u8]) -> u64) -> Result<(Recovered, Vec<Segment>, u64), OpenError> {
    let (mut recovered, mut segments, mut next) = (Recovered::default(), Vec::<Segment>::new(), 0);
    let numbers = numbers(directory).map_err(|error| OpenError::Io(directory.into(), error))?;
    // A segment that holds no record was begun and not used before the process died.
    let used = |number: &u64| std::fs::metadata(path_of(directory, *number)).is_ok_and(|file| file.len() > HEADER as u64);
    let last_used = numbers.iter().rposition(used);
    for (index, number) in numbers.iter().enumerate() {
        let path = path_of(directory, *number);
        let failed = |error| OpenError::Io(path.clone(), error);
        let damaged = |at: usize, why| OpenError::Damaged(path.clone(), at as u64, why);
        let bytes = std::fs::read(&path).map_err(failed)?;
        let after_all = last_used.is_none_or(|last| index > last);
        if after_all && (index > 0 || bytes.len() < HEADER) {
            recovered.cut_bytes += bytes.len() as u64;
            std::fs::remove_file(&path).map_err(failed)?;
            continue;
        }
        let first = first_number(&bytes).ok_or_else(|| damaged(0, "the header is not one of this version"))?;
        if segments.last().is_some_and(|before| before.number + 1 != *number) {
            return Err(damaged(0, "the segment before it is missing"));
        }
        if first < next {
            return Err(damaged(0, "its numbers were used before"));
        }
        next = first;
        let (mut at, mut marks) = (HEADER, Vec::<Mark>::new());
        while let Some(record) = Record::read(&bytes[at..]) {
            if record.seq < next {
                return Err(damaged(at, "a number was used before"));
            }
            if marks.last().is_none_or(|mark| at as u64 >= mark.offset + MARK) {
                marks.push(Mark { offset: at as u64, time: time_of(record.entry) });
            }
            next = record.seq + 1;
            recovered.entries += 1;
            recovered.last_seq = Some(record.seq);
            at += record.size();
        }
        if at < bytes.len() {
            let more = last_used.is_some_and(|last| index < last);
            if more || good_after(&bytes[at + 1..], next) {
                return Err(damaged(at, "a record is damaged, and good ones follow it"));
            }
            let file = OpenOptions::new().write(true).open(&path).map_err(failed)?;
            file.set_len(at as u64).and_then(|()| file.sync_all()).map_err(failed)?;
            recovered.cut_bytes += (bytes.len() - at) as u64;
        }
        segments.push(Segment { number: *number, marks });
    }
    Ok((recovered, segments, next))
}

/// Whether a sound record that could follow lies anywhere in `bytes`.
fn good_after(bytes: &[u8], next: u64) -> bool {
    let plausible = next..next + (1 << 32);
    (0..bytes.len()).any(|at| Record::read(&bytes[at..]).is_some_and(|record| plausible.contains(&record.seq)))
}

#[cfg(test)]
#[path = "log/tests.rs"]
mod tests;
