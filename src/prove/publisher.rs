//! The one that makes checkpoints: a thread that takes what is synced into the tree, signs its root, and tells who waits.
//!
//! In this order, so that whatever stops in between loses nothing and contradicts nothing: entries are synced in the write-ahead file;
//! tiles are written; the checkpoint is signed; the lock file takes it, synced; the checkpoint is where readers find it;
//! what it supersedes is removed. A full disk is waited out: the entries stay where they are, and so does the last checkpoint.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::heartbeat::Heart;
use super::lock::{LockFile, Swap};
use super::log::{Fatal, Poisoned, Wal, is_full, wants_descriptors};
use super::prune::{self, Pruner};
use super::tree::{Tree, Unsettled, at};
use crate::clock::Moment;
use crate::tlog::Checkpoint;
use crate::tlog::merkle::{self, Hash};
use crate::verify::files::Files;
use crate::verify::folder::{CHECKPOINT, CHECKPOINT_COSE, NEW};
use crate::verify::heartbeat::Life;
use crate::verify::proof::SignedRoot;

/// How often a checkpoint is made while there is something new and nobody waits for it. Each costs some milliseconds, half of them for new files.
pub const CHECKPOINT_EVERY: Duration = Duration::from_millis(200);
/// The same where an answer is held back until a checkpoint covers it.
const AWAITED_EVERY: Duration = Duration::from_millis(100);
/// How often it is looked whether a full disk has room again.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// How long there may have been no checkpoint for a failure before answers that need one are refused at once: as long as cosignatures may
/// be missing. It was tried some fifteen times by then.
pub const STALLED: Duration = super::cosign::UNWITNESSED;
/// How often something is read again since the log grew meanwhile.
const PATIENCE: usize = 64;

/// A checkpoint that was published.
#[derive(Debug)]
pub(super) struct Published {
    /// How many entries it covers.
    pub(super) size: u64,
    /// Every number below is covered.
    pub(super) below: u64,
    /// The root over them.
    pub(super) root: Hash,
    /// The signed note.
    pub(super) note: String,
    /// The root as COSE receipts need it; none before the first checkpoint.
    pub(super) signed_root: Option<SignedRoot>,
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Checkpoints.
    pub checkpoints: u64,
    /// Entries that the newest covers.
    pub size: u64,
    /// How often one could not be made, for instance since the disk was full.
    pub failures: u64,
    /// How often what is too old could not be removed.
    pub unpruned: u64,
}

/// The running thread.
pub(super) struct Publisher {
    shared: Arc<Shared>,
    published: watch::Receiver<Arc<Published>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    closing: AtomicBool,
    /// How many answers wait for a checkpoint.
    awaited: Mutex<usize>,
    /// Where the thread rests between checkpoints.
    hurry: Condvar,
    checkpoints: AtomicU64,
    failures: AtomicU64,
    /// Since when no checkpoint could be made, and why the last one could not; none where one could.
    failing: Mutex<Option<(Instant, String)>>,
    /// The process has begun to count, and may remove what is too old.
    prunes: AtomicBool,
    unpruned: AtomicU64,
    /// Why the last run that was to remove what is too old did not.
    not_pruning: Mutex<Option<String>>,
    /// What was missing of the log's files when it was opened.
    missing: Mutex<Option<String>>,
}

/// What the thread works with.
pub(super) struct Desk {
    pub(super) directory: PathBuf,
    pub(super) wal: Arc<Wal>,
    pub(super) tree: Tree,
    pub(super) lock: LockFile,
    pub(super) heart: Arc<Heart>,
    /// When the newest checkpoint was signed, in seconds since 1970; no later one says that it was earlier, whatever the clock says.
    pub(super) signed_at: u64,
    pub(super) on_fatal: Fatal,
    /// Removes what is too old, where anything ever is.
    pub(super) pruner: Option<Pruner>,
    /// Whether a full disk is waited out before the first checkpoint too.
    pub(super) patient: bool,
}

impl Publisher {
    /// Puts what an earlier process left, and what was appended since, under a checkpoint of this one, and starts the thread. `below` is the number after the last
    /// that `desk.tree` holds. Blocks for a sync.
    ///
    /// # Errors
    /// When that checkpoint cannot be made; of a full disk only where `desk.patient` says so.
    pub(super) fn start(mut desk: Desk, below: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let none = Published { size: 0, below: 0, root: merkle::empty(), note: String::new(), signed_root: None };
        let (tell, published) = watch::channel(Arc::new(none));
        let (settle, to_settle) = mpsc::channel();
        let (wal, files, on_fatal) = (desk.wal.clone(), desk.tree.files().clone(), desk.on_fatal.clone());
        let (settler, patient) = (Settler { wal, files, on_fatal, pruner: desk.pruner.take(), shared: shared.clone() }, desk.patient);
        let settling = thread::Builder::new().name("prove-settle".into()).spawn(move || settler.run(&to_settle))?;
        let gathered = Some((0, below));
        let mut work = Work { desk, shared: shared.clone(), tell, settle, unsettled: Unsettled::default(), gathered };
        // An entry that hands the log over is under the first checkpoint of who goes on, or there is none. A log that is new has one
        // too, of no entries: killed at once, it is still one that can be verified.
        let first = || {
            work.desk.wal.sync().map_err(|Poisoned| io::Error::other("what was written first could not be synced"))?;
            work.gather()?;
            work.publish()
        };
        // On a thread of its own, for who opens a log may be one that drives tasks and may not wait for another.
        let first = thread::scope(|scope| {
            let first = thread::Builder::new().spawn_scoped(scope, first)?;
            first.join().unwrap_or_else(|_| Err(io::Error::other("the first checkpoint could not be made")))
        });
        match first {
            Err(error) if patient && is_full(&error) => {
                shared.failures.fetch_add(1, Ordering::Relaxed);
                shared.went(Err(&error));
            }
            first => first?,
        }
        let running = move || {
            work.run();
            drop(work);
            let _ = settling.join();
        };
        let thread = thread::Builder::new().name("prove-publish".into()).spawn(running)?;
        Ok(Self { shared, published, thread: Mutex::new(Some(thread)) })
    }

    /// What is too old goes from now on.
    pub(super) fn prune(&self) {
        self.shared.prunes.store(true, Ordering::Release);
    }

    /// The newest checkpoint, now and from now on.
    pub(super) fn published(&self) -> &watch::Receiver<Arc<Published>> {
        &self.published
    }

    /// The newest checkpoint.
    pub(super) fn newest(&self) -> Arc<Published> {
        self.published.borrow().clone()
    }

    /// Waits until a checkpoint covers the entry of number `seq`; says whether it does, and not that the log was closed before.
    pub(super) async fn covers(&self, seq: u64) -> bool {
        let _awaiting = Awaiting::by(&self.shared);
        self.published.clone().wait_for(|published| published.below > seq).await.is_ok()
    }

    /// Why there is no new checkpoint, where one could not be made.
    pub(super) fn failing(&self) -> Option<String> {
        self.shared.failing().as_ref().map(|(_, why)| why.clone())
    }

    /// Why what is too old was not removed, where that did not go well.
    pub(super) fn not_pruning(&self) -> Option<String> {
        told(&self.shared.not_pruning).clone()
    }

    /// What was missing of the log's files when it was opened.
    pub(super) fn missing(&self) -> Option<String> {
        told(&self.shared.missing).clone()
    }

    /// Whether at `now` none could be made for so long that none is promised.
    pub(super) fn is_stalled(&self, now: Instant) -> bool {
        self.shared.failing().as_ref().is_some_and(|(since, _)| now.saturating_duration_since(*since) > STALLED)
    }

    /// As if the failure of now had begun so long ago.
    #[cfg(test)]
    pub(super) fn failed_since(&self, ago: Duration) {
        self.shared.failing().as_mut().expect("it fails").0 -= ago;
    }

    pub(super) fn tally(&self) -> Tally {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Tally {
            checkpoints: of(&self.shared.checkpoints),
            size: self.newest().size,
            failures: of(&self.shared.failures),
            unpruned: of(&self.shared.unpruned),
        }
    }

    /// Publishes what is synced and stops. The write-ahead file must be closed before.
    pub(super) fn close(&self) {
        self.shared.closing.store(true, Ordering::Release);
        drop(held(&self.shared.awaited));
        self.shared.hurry.notify_one();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn failing(&self) -> MutexGuard<'_, Option<(Instant, String)>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how the last try went; since when it goes wrong is when it first did.
    fn went(&self, outcome: Result<(), &io::Error>) {
        let mut failing = self.failing();
        let since = failing.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        *failing = outcome.err().map(|why| (since, why.to_string()));
    }

    /// Rests until the next checkpoint is due: sooner where somebody waits for it, and no longer where the log is closed.
    fn rest(&self, since: Instant) {
        let mut awaited = held(&self.awaited);
        loop {
            let every = if *awaited > 0 { AWAITED_EVERY } else { CHECKPOINT_EVERY };
            let left = every.saturating_sub(since.elapsed());
            if left.is_zero() || self.closing.load(Ordering::Acquire) {
                return;
            }
            awaited = self.hurry.wait_timeout(awaited, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// One answer that waits for a checkpoint, for as long as it does.
struct Awaiting<'a>(&'a Shared);

impl<'a> Awaiting<'a> {
    fn by(shared: &'a Shared) -> Self {
        *held(&shared.awaited) += 1;
        shared.hurry.notify_one();
        Self(shared)
    }
}

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        *held(&self.0.awaited) -= 1;
    }
}

/// A text is whole at any time.
fn told(text: &Mutex<Option<String>>) -> MutexGuard<'_, Option<String>> {
    text.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A count is whole at any time.
fn held(awaited: &Mutex<usize>) -> MutexGuard<'_, usize> {
    awaited.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads tiles of the newest checkpoint. Partial ones are removed when a newer one has wider ones: then `read` is asked of that.
pub(super) fn retried<T>(newest: &watch::Receiver<Arc<Published>>, read: impl Fn(&Arc<Published>) -> Option<T>) -> Option<T> {
    for _ in 0..PATIENCE {
        let published = newest.borrow().clone();
        if let Some(found) = read(&published) {
            return Some(found);
        }
        if newest.borrow().size == published.size {
            return None;
        }
    }
    None
}

struct Work {
    desk: Desk,
    shared: Arc<Shared>,
    tell: watch::Sender<Arc<Published>>,
    settle: Sender<(Unsettled, Vec<u64>)>,
    unsettled: Unsettled,
    /// What is in the tree and under no checkpoint yet: how many entries, and the number after them.
    gathered: Option<(usize, u64)>,
}

impl Work {
    fn run(&mut self) {
        let mut since = Instant::now();
        loop {
            // Read before the last look: what was written before it is seen.
            let closing = self.shared.closing.load(Ordering::Acquire);
            if !closing {
                self.desk.wal.wait_for_unpublished(if self.gathered.is_some() { CHECKPOINT_EVERY } else { RETRY_EVERY });
                self.shared.rest(since);
                since = Instant::now();
                // The counts begin anew: they had counted what was taken back.
                let heart = &self.desk.heart;
                let told = |seq, last, counted| heart.beat(seq, Life::Began, Some(last), counted);
                self.desk.wal.resume(|seq| heart.count(Life::Began, seq), told);
            }
            let over = closing || self.desk.wal.tally().poisoned;
            self.step();
            // Whoever waits for a checkpoint of a log that takes nothing any more learns it from the closed channel.
            if over {
                return;
            }
        }
    }

    fn step(&mut self) {
        let outcome = self.gather().and_then(|new| if new { self.publish() } else { Ok(()) });
        if outcome.is_err() {
            self.shared.failures.fetch_add(1, Ordering::Relaxed);
        }
        self.shared.went(outcome.as_ref().copied());
    }

    /// Takes what is synced into the tree; says whether there is something to publish.
    fn gather(&mut self) -> io::Result<bool> {
        self.desk.tree.catch_up()?;
        // A poisoned write-ahead file syncs nothing more, and what it had synced is published still.
        let below = self.desk.wal.sync().unwrap_or_else(|_| self.desk.wal.synced());
        let known = self.gathered.map_or(0, |(count, _)| count);
        let new: Vec<_> = self.desk.wal.unpublished().into_iter().skip(known).take_while(|(seq, _)| *seq < below).collect();
        if let Some((seq, _)) = new.last() {
            let next = seq + 1;
            let entries: Vec<_> = new.into_iter().map(|(_, entry)| entry).collect();
            self.desk.tree.add(&entries)?;
            self.gathered = Some((known + entries.len(), next));
        }
        Ok(self.gathered.is_some())
    }

    fn publish(&mut self) -> io::Result<()> {
        let Some((count, below)) = self.gathered else { return Ok(()) };
        let Desk { directory, wal, tree, lock, heart, signed_at, on_fatal, .. } = &mut self.desk;
        let signer = &heart.signer;
        let (size, root, now) = (tree.size(), tree.root(), Moment::now().unix_seconds().max(*signed_at));
        let checkpoint = Checkpoint { origin: signer.origin.to_string(), size, root, extensions: Vec::new() };
        let note = signer.sign_checkpoint(&checkpoint, now).map_err(|_| io::Error::other("no checkpoint could be signed"))?;
        let note = note.to_string();
        let signed_root = signer.sign_root(root, size, now);
        match lock.swap(note.as_bytes()) {
            Ok(()) => *signed_at = now,
            Err(Swap::Io(error)) => return Err(at(lock.path(), &error)),
            Err(Swap::Taken) => {
                let error = io::Error::other("another process, or an older copy, has replaced the lock file of this log");
                wal.poison(&error);
                on_fatal(&error);
                return Err(error);
            }
            Err(Swap::Sync(error)) => {
                wal.poison(&error);
                on_fatal(&error);
                return Err(error);
            }
        }
        replace(directory, CHECKPOINT_COSE, &signed_root.encode())?;
        replace(directory, CHECKPOINT, note.as_bytes())?;
        self.shared.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.tell.send_replace(Arc::new(Published { size, below, root, note, signed_root: Some(signed_root) }));
        wal.published(count);
        self.gathered = None;
        // Only now: whoever looks for a tile of the checkpoint before finds that there is a newer one, and asks again of that.
        tree.sweep()?;

        self.unsettled.extend(tree.unsettled());
        let behind = wal.behind(self.unsettled.leaves());
        if !behind.is_empty() {
            // The other end is gone only after a failed sync, which is fatal.
            let _ = self.settle.send((std::mem::take(&mut self.unsettled), behind));
        }
        Ok(())
    }
}

/// Syncs full tiles, and removes the segments that are needed no more, and the bundles that are too old. It takes a second, and nobody waits
/// for it.
struct Settler {
    wal: Arc<Wal>,
    files: Files,
    on_fatal: Fatal,
    pruner: Option<Pruner>,
    shared: Arc<Shared>,
}

impl Settler {
    fn run(&self, to_settle: &Receiver<(Unsettled, Vec<u64>)>) {
        // A thousand names a folder, and no content. Those that the write-ahead file still speaks of were just written.
        let missing = self.files.missing(self.wal.first_index());
        *told(&self.shared.missing) = missing.unwrap_or_else(|error| Some(error.to_string()));
        let mut due = Instant::now();
        loop {
            match to_settle.recv_timeout(RETRY_EVERY) {
                Ok((unsettled, behind)) => {
                    let outcome = loop {
                        match unsettled.settle(&self.files).and_then(|()| self.wal.remove(&behind)) {
                            // Who has opened too many connections does not end the process.
                            Err(error) if wants_descriptors(&error) => thread::sleep(RETRY_EVERY),
                            outcome => break outcome,
                        }
                        if self.wal.is_closing() {
                            return;
                        }
                    };
                    if let Err(error) = outcome {
                        self.wal.poison(&error);
                        (self.on_fatal)(&error);
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.shared.prunes.load(Ordering::Acquire) && Instant::now() >= due {
                due = Instant::now() + self.prune();
            }
        }
    }

    /// Says after which time there may be more to remove.
    fn prune(&self) -> Duration {
        let Some(pruner) = &self.pruner else { return prune::EVERY };
        let outcome = pruner.run(Moment::now().unix_nanos(), || self.shared.closing.load(Ordering::Acquire));
        *told(&self.shared.not_pruning) = outcome.as_ref().err().map(ToString::to_string);
        match outcome {
            Ok(true) => Duration::ZERO,
            Ok(false) => prune::EVERY,
            Err(_) => {
                self.shared.unpruned.fetch_add(1, Ordering::Relaxed);
                prune::AGAIN
            }
        }
    }
}

/// Puts a file in the place of another, whole.
fn replace(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = directory.join(NEW);
    let written = fs::write(&new, bytes).and_then(|()| fs::rename(&new, directory.join(name)));
    written.map_err(|error| {
        let _ = fs::remove_file(&new);
        at(&directory.join(name), &error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_checkpoint_has_it_sooner_and_a_log_that_closes_rests_no_more() {
        let shared = Shared::default();
        let rests = |shared: &Shared| {
            let since = Instant::now();
            shared.rest(since);
            since.elapsed()
        };
        assert!(rests(&shared) >= CHECKPOINT_EVERY);
        let awaiting = Awaiting::by(&shared);
        // The machine may take the thread off its core for as long as that, but not each time.
        assert!((0..20).any(|_| rests(&shared) < CHECKPOINT_EVERY));
        assert!(rests(&shared) >= AWAITED_EVERY);
        drop(awaiting);
        assert!(rests(&shared) >= CHECKPOINT_EVERY);
        shared.closing.store(true, Ordering::Release);
        assert!((0..20).any(|_| rests(&shared) < AWAITED_EVERY));
    }

    #[test]
    fn what_goes_wrong_has_gone_wrong_since_it_first_did_and_is_over_when_it_goes_well() {
        let shared = Shared::default();
        shared.went(Err(&io::Error::other("first")));
        let since = shared.failing().clone().unwrap().0;
        shared.went(Err(&io::Error::other("second")));
        assert_eq!(*shared.failing(), Some((since, "second".to_owned())));
        shared.went(Ok(()));
        assert_eq!(*shared.failing(), None);
    }
}
