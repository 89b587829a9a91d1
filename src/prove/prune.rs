//! Removing what is older than it is to be kept, as C2SP tlog-tiles provides for it: bundles of entries go, from the front on, and the tiles
//! of hashes stay. So every proof of what remains, and of any two sizes, can be made and verified as before.
//!
//! A bundle goes when it is full, all of its entries are older than `keep` by the time they were signed at, the write-ahead file has no
//! need of it, and, where there are witnesses, a cosigned checkpoint covers it. First an entry tells that it goes, and is synced. Then, one
//! bundle after another: the entries in it that endorse keys are kept, each in a file of its own; the bundle is removed and its folder
//! synced; its ids are overwritten with zeros. Whatever stops in between, those that are gone are the first ones, and the next run goes on.
//!
//! A log whose disk is full takes no entry. There a few bundles go first, so that it does, and the entry tells of them with the others.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::change::{Change, Changed};
use super::heartbeat::Heart;
use super::ids::Ids;
use super::log::{Poisoned, Until, Wal};
use super::tree::at;
use crate::tlog::tile::{self, Tile, WIDTH};
use crate::tlog::{Checkpoint, Note};
use crate::verify::files::{Files, KEPT};
use crate::verify::folder::{IDS, NEW_ENTRY, WITNESSED};
use crate::verify::statement::{Kind, Statement};

/// How often it is looked whether something has become too old.
pub(super) const EVERY: Duration = Duration::from_secs(60 * 60);
/// The same after a run that failed.
pub(super) const AGAIN: Duration = Duration::from_secs(30);
/// The shortest time that entries may be kept.
pub(super) const SHORTEST: Duration = Duration::from_secs(24 * 60 * 60);
/// How many bundles one run removes, for each of which it syncs a folder; where there are more, the next run follows at once.
const MOST: u64 = 1_024;
/// How many a run removes where the disk is full: a few megabytes, more than the room that the log waits for.
const FIRST: u64 = 64;

/// Removes what is too old.
pub(super) struct Pruner {
    pub(super) files: Files,
    pub(super) ids: Arc<Ids>,
    pub(super) wal: Arc<Wal>,
    pub(super) heart: Arc<Heart>,
    pub(super) keep: Duration,
    /// Whether nothing goes that witnesses have not cosigned.
    pub(super) witnessed: bool,
    pub(super) told: Told,
}

/// What of a process's pruning the log tells.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// An entry tells that those before this one go.
    before: AtomicU64,
    /// Some went that no entry tells of yet, since the disk was full.
    owes: AtomicBool,
}

/// Bundles that may go, and the entries among theirs that stay.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    from: u64,
    to: u64,
    kept: Vec<(u64, Vec<u8>)>,
}

impl Pruner {
    /// Removes what is too old at `now`, in nanoseconds since 1970, unless `closing` says to stop. Says whether there is more.
    ///
    /// # Errors
    /// When a file cannot be read, written or removed, or the log does not take the entry that tells it: the next run goes on.
    pub(super) fn run(&self, now: u64, closing: impl Fn() -> bool) -> io::Result<bool> {
        let limit = self.limit()?;
        if limit >= WIDTH && !self.files.keeps_the_first() {
            self.keep_the_first()?;
        }
        let plan = self.plan(now, limit)?;
        // What a run before this one did not come to.
        if plan.from > 0 {
            self.forget(plan.from - 1)?;
        }
        // Nor is it known of what went before this process began whether it was told.
        let unknown = plan.from > 0 && self.told.before.load(Ordering::Relaxed) == 0;
        let owes = self.told.owes.load(Ordering::Relaxed) || unknown;
        if plan.from == plan.to && !owes || closing() {
            return Ok(false);
        }
        let full = self.wal.tally().full;
        let to = if full { plan.to.min(plan.from + FIRST) } else { plan.to };
        if !full {
            self.tell(now, to * WIDTH)?;
        }
        self.told.owes.store(full, Ordering::Relaxed);
        for number in plan.from..to {
            if closing() {
                return Ok(true);
            }
            let leaves = number * WIDTH..(number + 1) * WIDTH;
            for (index, entry) in plan.kept.iter().filter(|(index, _)| leaves.contains(index)) {
                self.keep(*index, entry)?;
            }
            self.remove(number)?;
            self.forget(number)?;
        }
        Ok(full || plan.to - plan.from == MOST)
    }

    /// Keeps entry 0 before its bundle is old: a disk that is full by then has no room for it.
    fn keep_the_first(&self) -> io::Result<()> {
        let entry = self.files.entry(0, WIDTH).map_err(|error| io::Error::other(error.to_string()))?;
        self.keep(0, &entry)
    }

    fn keep(&self, index: u64, entry: &[u8]) -> io::Result<()> {
        let directory = self.files.directory();
        keep(directory, index, entry).map_err(|error| at(&directory.join(format!("{KEPT}{index}")), &error))
    }

    fn forget(&self, bundle: u64) -> io::Result<()> {
        self.ids.forget(bundle).map_err(|error| at(&self.files.directory().join(IDS), &error))
    }

    /// Entries before this one may go.
    fn limit(&self) -> io::Result<u64> {
        // Its segments go when their entries lie in settled tiles, under a checkpoint. What it begins with may begin in a bundle.
        let limit = self.wal.first_index();
        if !self.witnessed {
            return Ok(limit);
        }
        match fs::read(self.files.directory().join(WITNESSED)) {
            Ok(note) => {
                let checkpoint = Note::parse(&note).ok().and_then(|note| Checkpoint::parse(note.text()).ok());
                Ok(checkpoint.map_or(0, |checkpoint| checkpoint.size).min(limit))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    fn plan(&self, now: u64, limit: u64) -> io::Result<Plan> {
        let from = self.files.first_index(limit) / WIDTH;
        let mut plan = Plan { from, to: from, kept: Vec::new() };
        let keep = u64::try_from(self.keep.as_nanos()).unwrap_or(u64::MAX);
        while plan.to < limit / WIDTH && plan.to - from < MOST {
            let bundle = Tile { level: None, number: plan.to, width: WIDTH as u16 };
            let unreadable = || io::Error::other(format!("{bundle}: cannot be read as entries, and stays"));
            let bytes = self.files.read(bundle).map_err(|error| io::Error::other(error.to_string()))?;
            let entries = tile::entries(&bytes).filter(|entries| entries.len() as u64 == WIDTH).ok_or_else(unreadable)?;
            let mut kept = Vec::new();
            for (entry, index) in entries.into_iter().zip(plan.to * WIDTH..) {
                let statement = Statement::read(entry).map_err(|_| unreadable())?;
                if now.saturating_sub(statement.signed_at) <= keep {
                    return Ok(plan);
                }
                if statement.kind == Kind::KeyRotation {
                    kept.push((index, entry.to_vec()));
                }
            }
            plan.kept.extend(kept);
            plan.to += 1;
        }
        Ok(plan)
    }

    /// Tells in the log that the entries before `index` go, and waits until that is synced.
    fn tell(&self, now: u64, index: u64) -> io::Result<()> {
        if self.told.before.load(Ordering::Relaxed) >= index {
            return Ok(());
        }
        let reason = format!("entries before {index}");
        let change = Change { changed: Changed::Pruned, which: None, reason: Some(&reason), policy: None };
        let counted = |_| {
            self.heart.counting.count(change.kind(), 0);
        };
        let told = self.wal.append_counted(Until::Ready, counted, |seq, ()| self.heart.signer.change(seq, now, &change));
        let lost = |Poisoned| io::Error::other("the log does not take the entry that tells what goes");
        let (seq, ..) = told.map_err(lost)?;
        if self.wal.sync().map_err(lost)? <= seq {
            return Err(lost(Poisoned));
        }
        self.told.before.store(index, Ordering::Relaxed);
        Ok(())
    }

    /// Removes a bundle, durably, so that what is gone is always the beginning.
    fn remove(&self, number: u64) -> io::Result<()> {
        let path = self.files.path(Tile { level: None, number, width: WIDTH as u16 });
        let removed = fs::remove_file(&path).and_then(|()| File::open(path.parent().unwrap_or(self.files.directory()))?.sync_all());
        removed.map_err(|error| at(&path, &error))
    }
}

/// Writes the entry `index` into a file of its own, whole or not at all.
fn keep(directory: &Path, index: u64, entry: &[u8]) -> io::Result<()> {
    let new = directory.join(NEW_ENTRY);
    let mut file = File::create(&new)?;
    file.write_all(entry)?;
    file.sync_all()?;
    fs::rename(&new, directory.join(format!("{KEPT}{index}")))?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
#[path = "prune/tests.rs"]
mod tests;
