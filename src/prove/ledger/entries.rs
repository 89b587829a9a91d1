//! What is entered: answers, erasures, and counts of what has no entry of its own.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use super::Inner;
use crate::clock::{Moment, month};
use crate::prove::archive::Archive;
use crate::prove::erasure::{EraseError, Erased, Erasure};
use crate::prove::heartbeat;
use crate::prove::log::{Poisoned, Until, Wait};
use crate::prove::refusals::Refusals;
use crate::prove::release::Appended;
use crate::prove::salts::{self, Destroyed, Salts};
use crate::prove::statement::{Sent, fresh_id};
use crate::trail::Trail;
use crate::verify::heartbeat::{Heartbeat, Life};
use crate::verify::statement::Kind;

impl Inner {
    pub(super) fn close(&self) {
        self.wal.close();
        self.publisher.close();
    }

    pub(super) fn append(&self, kind: Kind, trail: &Trail, sent: &Sent<'_>, until: Until) -> Result<Appended, Poisoned> {
        self.signer.prepare(trail);
        // The monotonic clock since the arrival, so that the end is never before the beginning.
        let t1 = trail.arrived.after(trail.arrived.mono.elapsed()).unix_nanos();
        self.enter(kind, sent.length, until, |seq| self.signer.answer(kind, seq, t1, trail, sent))
    }

    /// Appends an entry about an answer of `bytes`, counted with its number.
    pub(super) fn enter(&self, kind: Kind, bytes: u64, until: Until, make: impl FnOnce(u64) -> Vec<u8>) -> Result<Appended, Poisoned> {
        let counted = |_| {
            self.heart.counting.count(kind, bytes);
        };
        let (seq, entry, wait) = self.wal.append_counted(until, counted, |seq, ()| make(seq))?;
        Ok(Appended { seq, entry, wait })
    }

    /// An entry that counts what came before its own number in this process.
    pub(super) fn count(&self, life: Life, resumed_after: Option<u64>) -> Result<(), Poisoned> {
        let told = |seq, counted| self.heart.beat(seq, life, resumed_after, counted);
        self.wal.append_counted(Until::Ready, |seq| self.heart.count(life, seq), told).map(|_| ())
    }

    /// Destroys the keys of one subject or month, in this log and in `others`, and tells how many they were.
    pub(super) fn erase(&self, erasure: &Erasure, others: &[Arc<Archive>]) -> Result<(Erased, Wait), EraseError> {
        if !self.wal.has_room() {
            return Err(EraseError::Unavailable);
        }
        let this_month = month(SystemTime::now());
        if let Some(month) = erasure.month().filter(|month| *month == this_month) {
            return Err(EraseError::OperatorNamedThisMonth(month));
        }
        let mut gone: Option<(u64, Destroyed)> = None;
        for other in others {
            // Where a shard still ends requests, numbers from here on find the key gone.
            let told = |of| Ok::<_, Poisoned>((other.wal.as_ref().map_or(0, |wal| wal.next().saturating_sub(1)), of));
            match other.salts.erase(erasure.name(&other.salts), told) {
                Ok(of) => gone = Some((gone.map_or(0, |(keys, _)| keys) + 1, of)),
                Err(salts::Error::Unknown) => {}
                Err(error) => return Err(self.erased_in_part(gone, error.into())),
            }
        }
        let keys = gone.map_or(0, |(keys, _)| keys);
        let salts = &self.signer.salts;
        let told = |of| self.tell_erasure(keys + 1, of).map(|(erased, wait)| (erased.seq, (erased, wait)));
        match (salts.erase(erasure.name(salts), told), gone) {
            (Err(salts::Error::Unknown), Some((keys, of))) => self.tell_erasure(keys, of).map_err(|Poisoned| EraseError::Untold),
            (Err(error), gone) => Err(self.erased_in_part(gone, error.into())),
            (Ok(done), _) => Ok(done),
        }
    }

    /// Tells of the keys that were destroyed before `error`: an erasure that is tried again would wipe what the next start tells them by.
    fn erased_in_part(&self, gone: Option<(u64, Destroyed)>, error: EraseError) -> EraseError {
        match gone {
            None => error,
            Some((keys, of)) => match self.tell_erasure(keys, of) {
                Ok(_) => EraseError::Unfinished(io::Error::other(error)),
                Err(Poisoned) => EraseError::Untold,
            },
        }
    }

    fn tell_erasure(&self, keys: u64, of: Destroyed) -> Result<(Erased, Wait), Poisoned> {
        let now = Moment::now().unix_nanos();
        let id = fresh_id(now);
        let Appended { seq, wait, .. } = self.enter(Kind::Erasure, 0, Until::Synced, |seq| self.signer.erasure(seq, id, now, keys, of))?;
        Ok((Erased { keys, whose: of.whose, month: of.month, id, seq, passed_over: Vec::new() }, wait))
    }

    /// What a process before this one destroyed and did not live to tell. It may have: an erasure is told twice rather than never.
    pub(in crate::prove) fn finish_erasures(&self, salts: &Salts, untold: &[Destroyed]) -> io::Result<()> {
        for of in untold {
            let lost = |Poisoned| io::Error::other("the log does not take the entry about what was erased");
            let (erased, _) = self.tell_erasure(1, *of).map_err(lost)?;
            // Before it is synced, what it tells of may not be overwritten: that would be the last that is known of it.
            while self.wal.synced() <= erased.seq {
                if self.wal.tally().poisoned {
                    return Err(lost(Poisoned));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        if untold.is_empty() { Ok(()) } else { salts.wipe() }
    }

    /// One entry for what has none of its own, if there was any since the last. Gives how it goes on being written, and what to take back
    /// if it is not.
    pub(super) fn tell_counts(&self) -> Option<(Wait, Heartbeat<&'static str>)> {
        // As long as the log takes nothing they add up.
        if !self.wal.has_room() {
            return None;
        }
        let suppressed = self.refusals().untold();
        let gaps = self.gaps.load(Ordering::Relaxed);
        let gaps = gaps - self.gaps_told.swap(gaps, Ordering::Relaxed);
        if gaps == 0 && suppressed.is_empty() {
            return None;
        }
        let told = Heartbeat { gaps, suppressed, ..Heartbeat::default() };
        match self.enter(Kind::Heartbeat, 0, Until::Written, |seq| self.heart.entry(seq, &told)) {
            Ok(Appended { wait, .. }) => Some((wait, told)),
            Err(Poisoned) => {
                self.untell(told);
                None
            }
        }
    }

    /// A full disk took back what [`Inner::tell_counts`] told: the next one tells it.
    pub(super) fn untell(&self, told: Heartbeat<&'static str>) {
        self.gaps_told.fetch_sub(told.gaps, Ordering::Relaxed);
        self.refusals().untell(told.suppressed);
    }

    pub(super) fn refusals(&self) -> std::sync::MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells each second what has no entry of its own, and now and then that the process runs, until the log is gone.
pub(super) fn tell_counts(inner: &Weak<Inner>) {
    let mut last = Instant::now();
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let Some(inner) = inner.upgrade() else { return };
        if let Some((wait, told)) = inner.tell_counts()
            && wait.done_here().is_err()
        {
            inner.untell(told);
        }
        if last.elapsed() >= heartbeat::EVERY {
            last = Instant::now();
            // As above.
            let _ = inner.count(Life::Runs, None);
        }
    }
}
