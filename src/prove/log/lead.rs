//! Who leads: writes what lies ready, and syncs what is written.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Fatal, Poisoned, SYNC_EVERY, SyncFirst, Tally, Until, Wait, held, wants_descriptors};
use crate::verify::segment::{First, HEADER, frame, path_of};

/// The most that one `write` takes, if a single entry is not longer.
const GROUP: usize = 256 << 10;
/// After so many groups a leader leaves the lead to the syncing thread, so that it comes to its own answer.
const LEAD: usize = 16;
/// How often it is looked whether the file is still there while nothing is written to it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A log's files, and what stands where on the way to them: for all who append, and for the thread that syncs.
pub(super) struct Shared {
    pub(super) directory: PathBuf,
    /// The same, open: to sync it must not fail for want of a descriptor.
    pub(super) folder: File,
    /// Locked for as long as the log is open; names the boot since which nothing that was written can be lost.
    pub(super) lock: File,
    pub(super) segment: u64,
    pub(super) state: Mutex<State>,
    pub(super) wake: Condvar,
    /// Where the publisher waits for something that is not in the tree yet.
    pub(super) grown: Condvar,
    pub(super) on_fatal: Fatal,
    pub(super) sync_first: OnceLock<SyncFirst>,
}

pub(super) struct State {
    /// The next number to be drawn.
    pub(super) next: u64,
    /// The number of the first entry in `ready`: those below were taken by a leader.
    pub(super) taken: u64,
    /// Entries from number `taken` on, each in its place once it is signed.
    pub(super) ready: VecDeque<Option<Arc<[u8]>>>,
    pub(super) ready_bytes: usize,
    /// What is written and not in the tree yet, with its numbers.
    pub(super) unpublished: VecDeque<(u64, Arc<[u8]>)>,
    pub(super) unpublished_bytes: usize,
    /// The index of the next entry that is written.
    pub(super) index: u64,
    /// Every number below is in the file.
    pub(super) written: u64,
    /// Every number below is on the disk.
    pub(super) synced: u64,
    pub(super) leading: bool,
    pub(super) hand_over: bool,
    pub(super) poisoned: bool,
    /// The disk is full: nothing is appended but what resumes.
    pub(super) no_room: bool,
    pub(super) failure: Option<io::Error>,
    pub(super) closing: bool,
    pub(super) syncer_waits: bool,
    pub(super) publisher_waits: bool,
    pub(super) on_write: Vec<(u64, oneshot::Sender<()>)>,
    pub(super) on_sync: Vec<(u64, oneshot::Sender<()>)>,
    pub(super) file: Arc<File>,
    /// Bytes in `file`.
    pub(super) length: u64,
    /// Segments that were followed by another and are not synced yet.
    pub(super) full: Vec<Arc<File>>,
    pub(super) segments: Vec<Segment>,
    pub(super) buffer: Vec<u8>,
    pub(super) tally: Tally,
}

/// Which segment, and the index of its first entry.
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) first_index: u64,
}

impl State {
    /// Whether nothing may be appended.
    pub(super) fn refuses(&self) -> bool {
        self.poisoned || self.closing || self.no_room
    }

    /// The next number, and a place for its entry.
    pub(super) fn draw(&mut self) -> u64 {
        self.ready.push_back(None);
        self.next += 1;
        self.next - 1
    }
}

impl Shared {
    pub(super) fn poison(&self) {
        let mut state = held(&self.state);
        state.poisoned = true;
        // Whoever waits learns it from the closed channel.
        state.on_write.clear();
        state.on_sync.clear();
        drop(state);
        self.wake.notify_all();
    }

    pub(super) fn lay(&self, seq: u64, entry: Arc<[u8]>, until: Until) -> Result<Wait, Poisoned> {
        let mut state = held(&self.state);
        if state.poisoned {
            return Err(Poisoned);
        }
        // Nothing is taken out before it is in its place, so the place is there, unless the disk was full meanwhile.
        let place = seq.checked_sub(state.taken).and_then(|place| usize::try_from(place).ok());
        let Some(place) = place.and_then(|place| state.ready.get_mut(place)) else { return Err(Poisoned) };
        let length = entry.len();
        *place = Some(entry);
        state.ready_bytes += length;
        if !state.leading && state.ready.front().is_some_and(Option::is_some) {
            state = self.lead(state, LEAD);
        }
        // Taken back: the leader found the disk full.
        if state.taken > seq && state.written <= seq && !state.leading {
            return Err(Poisoned);
        }
        self.wait(state, seq, until)
    }

    pub(super) fn wait(&self, mut state: MutexGuard<'_, State>, seq: u64, until: Until) -> Result<Wait, Poisoned> {
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
    fn lead<'a>(&'a self, mut state: MutexGuard<'a, State>, groups: usize) -> MutexGuard<'a, State> {
        state.leading = true;
        for _ in 0..groups {
            let mut buffer = std::mem::take(&mut state.buffer);
            buffer.clear();
            let mut bytes = 0;
            let mut taken = Vec::new();
            let first = state.taken;
            while let Some(Some(entry)) = state.ready.front() {
                if !taken.is_empty() && buffer.len() + entry.len() > GROUP {
                    break;
                }
                let seq = first + taken.len() as u64;
                frame(&mut buffer, seq, entry);
                bytes += entry.len();
                taken.extend(state.ready.pop_front().flatten().map(|entry| (seq, entry)));
            }
            let count = taken.len() as u64;
            if taken.is_empty() {
                state.buffer = buffer;
                break;
            }
            state.taken += count;
            state.ready_bytes -= bytes;
            if state.length >= self.segment
                && let Err(error) = follow(&self.directory, &mut state, first)
            {
                // Nothing was written: where it may pass, it is waited for as a full disk is.
                return if is_full(&error) || wants_descriptors(&error) { self.full(state, error) } else { self.failed(state, error) };
            }
            let at = state.length;
            let file = state.file.clone();
            drop(state);
            let outcome = (&*file).write_all(&buffer);
            state = held(&self.state);
            if let Err(error) = outcome {
                // A torn record would be cut at the next start anyway; without one the log can be verified as it lies.
                let whole = file.set_len(at).is_ok();
                return if whole && is_full(&error) { self.full(state, error) } else { self.failed(state, error) };
            }
            state.written = first + count;
            state.length += buffer.len() as u64;
            state.index += count;
            state.unpublished_bytes += bytes;
            state.unpublished.extend(taken);
            if std::mem::take(&mut state.publisher_waits) {
                self.grown.notify_one();
            }
            state.tally.entries += count;
            state.tally.groups += 1;
            state.buffer = buffer;
            let written = state.written;
            release(&mut state.on_write, written);
        }
        state.leading = false;
        state.hand_over = state.ready.front().is_some_and(Option::is_some);
        state
    }

    /// Takes back everything that is not written: its numbers are left out, and whoever waits for it learns it.
    fn full<'a>(&'a self, mut state: MutexGuard<'a, State>, error: io::Error) -> MutexGuard<'a, State> {
        let written = state.written;
        state.no_room = true;
        state.failure = Some(error);
        state.ready.clear();
        state.ready_bytes = 0;
        state.taken = state.next;
        state.on_write.clear();
        state.on_sync.retain(|(seq, _)| *seq < written);
        state.leading = false;
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

    pub(super) fn sync_until_closed(&self) {
        let (mut last, mut looked) = (Instant::now(), Instant::now());
        let mut state = held(&self.state);
        loop {
            if looked.elapsed() >= LOOK_EVERY && !state.poisoned {
                drop(state);
                looked = Instant::now();
                state = self.look();
            }
            if state.hand_over && !state.leading && !state.poisoned {
                state = self.lead(state, LEAD);
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

    pub(super) fn sync<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let (full, file, written) = (std::mem::take(&mut state.full), state.file.clone(), state.written);
        drop(state);
        let from = Instant::now();
        let new_names = if full.is_empty() { Ok(()) } else { self.folder.sync_all() };
        let first = self.sync_first.get().map_or(Ok(()), |first| first());
        let outcome = full.iter().try_for_each(|file| file.sync_data()).and(new_names).and(first).and_then(|()| file.sync_data());
        let took = from.elapsed();
        if let Err(error) = outcome {
            self.poison();
            // The system may count what it could not write as written, and give it back or not: the next start must not trust it.
            let _ = self.lock.set_len(0);
            (self.on_fatal)(&error);
            let mut state = held(&self.state);
            state.failure = Some(error);
            return state;
        }
        let mut state = self.look();
        // Also where the file is not there any more: it is on the disk, if nowhere else then in the tree, which takes what is synced.
        state.synced = state.synced.max(written);
        state.tally.syncs += 1;
        state.tally.sync_time += took;
        release(&mut state.on_sync, written);
        state
    }

    /// Takes nothing any more where the file that is written is not the one at its path: what is acknowledged could not be found again.
    pub(super) fn look(&self) -> MutexGuard<'_, State> {
        let state = held(&self.state);
        let Some(number) = state.segments.last().map(|last| last.number) else { return state };
        let file = state.file.clone();
        drop(state);
        let astray = astray(&file, &path_of(&self.directory, number));
        let mut state = held(&self.state);
        // Once another follows it, it may be removed.
        if let Some(why) = astray.filter(|_| !state.poisoned && state.segments.last().is_some_and(|last| last.number == number)) {
            state.failure = Some(io::Error::other(why));
            drop(state);
            self.poison();
            // Whatever is put in its place may lack what callers hold statements of: the next start must leave numbers out.
            let _ = self.lock.set_len(0);
            state = held(&self.state);
        }
        state
    }
}

/// Why `file` is not the one at `path`, and what can be done; nothing where it is, or where that cannot be told.
fn astray(file: &File, path: &Path) -> Option<String> {
    let here = file.metadata().ok()?;
    match std::fs::metadata(path) {
        Ok(there) if (there.dev(), there.ino()) == (here.dev(), here.ino()) => return None,
        Ok(_) => {}
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => {}
        Err(_) => return None,
    }
    let name = path.file_name().unwrap_or_default().display();
    // As long as it is open it can be read.
    let rescue = match here.nlink() {
        0 => format!("before this process ends, copy /proc/{}/fd/{} there, as its user", std::process::id(), file.as_raw_fd()),
        _ => "put it back there".to_owned(),
    };
    Some(format!("the write-ahead file {name} was taken away while it was written; {rescue}, and start anew"))
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

/// Whether a failure says that there is no room, and that nothing else is wrong.
pub(in crate::prove) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// Whether a file of `length` bytes could grow by `more`; they are kept for it. Where the file system cannot tell, it is tried.
pub(super) fn has_room_for(file: &File, length: u64, more: u64) -> bool {
    // What is kept for a file beyond its end is not held against the limit of the process, which a write then meets.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
    if limit.is_some_and(|limit| length.saturating_add(more) > limit) {
        return false;
    }
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, length, more) {
        Ok(()) => true,
        Err(error) => !is_full(&error.into()),
    }
}

pub(super) fn begin(directory: &Path, state: &mut State, first: u64) -> io::Result<()> {
    let number = state.segments.last().map_or(0, |last| last.number + 1);
    let path = path_of(directory, number);
    let mut file = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(&path)?;
    let first_index = state.index;
    if let Err(error) = file.write_all(&First { seq: first, index: first_index }.header()) {
        // It must not stand in the way of the next try.
        let _ = std::fs::remove_file(&path);
        return Err(error);
    }
    (state.file, state.length) = (Arc::new(file), HEADER as u64);
    state.segments.push(Segment { number, first_index });
    Ok(())
}
