//! Where copies are tried that take too long for a request: one thread, a queue that does not grow, and a part of one core.
//!
//! A request leaves what is to be studied and goes on; what comes of it is heard at the caller's next. When there is no room nothing waits: it is
//! counted, and offered again some rows later. So equal transcripts come to equal estimates once all was studied, and a lower one while
//! something was missed.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::Instant;

use super::loss::Owned;
use crate::detect::exposure::meter::Study;

/// Studies that wait, each of at most 12 KiB: less than a mebibyte altogether.
const MOST_WAITING: usize = 64;

/// The thread rests so many times as long as it worked: it takes a quarter of a core at most.
const REST: u32 = 3;

/// Rows after which what found no room is offered again.
pub(super) const AGAIN: u32 = 8;

/// The queue, and the thread behind it, which begins with the first study and ends with the queue.
#[derive(Debug)]
pub(in crate::detect) struct Studies {
    queue: OnceLock<Option<SyncSender<Task>>>,
    room: usize,
    missed: AtomicU64,
}

impl Default for Studies {
    fn default() -> Self {
        Self::with_room(MOST_WAITING)
    }
}

impl Studies {
    fn with_room(room: usize) -> Self {
        Self { queue: OnceLock::new(), room, missed: AtomicU64::new(0) }
    }

    /// One that never has room.
    #[cfg(test)]
    pub(in crate::detect) fn closed() -> Self {
        Self { queue: None.into(), ..Self::default() }
    }

    /// Studies that found no room.
    pub(in crate::detect) fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Takes a study along, if there is room.
    pub(super) fn take(&self, study: Study, owned: &Arc<Owned>, heard: &Heard) -> bool {
        let task = Task { study, owned: owned.clone(), heard: Arc::downgrade(&heard.0) };
        let queue = self.queue.get_or_init(|| {
            let (queue, tasks) = sync_channel(self.room);
            // Without a thread there is nobody to study, which is counted.
            thread::Builder::new().name("detect-study".into()).spawn(move || study_all(&tasks)).ok().map(|_| queue)
        });
        let taken = queue.as_ref().is_some_and(|queue| queue.try_send(task).is_ok());
        if !taken {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }
}

/// One study, and where what comes of it is heard.
#[derive(Debug)]
struct Task {
    study: Study,
    owned: Arc<Owned>,
    heard: Weak<AtomicU32>,
}

impl Task {
    fn done(self) {
        // Whom nobody watches any more, nobody asks after.
        if let Some(heard) = self.heard.upgrade() {
            heard.fetch_max(self.owned.studied(&self.study).max(0.0).to_bits(), Ordering::Relaxed);
        }
    }
}

fn study_all(tasks: &Receiver<Task>) {
    while let Ok(task) = tasks.recv() {
        let begun = Instant::now();
        task.done();
        thread::sleep(begun.elapsed() * REST);
    }
}

/// The most that studies of one caller came to. Its clone hears nothing of what is under way.
#[derive(Debug, Default)]
pub(super) struct Heard(Arc<AtomicU32>);

impl Heard {
    /// From 0 to 1, and never less than before.
    pub(super) fn fidelity(&self) -> f32 {
        f32::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// Bytes that are kept apart from it: the number and the two counts beside it.
    #[cfg(test)]
    pub(super) const BYTES: usize = size_of::<AtomicU32>() + 2 * size_of::<usize>();
}

impl Clone for Heard {
    fn clone(&self) -> Self {
        Self(Arc::new(self.0.load(Ordering::Relaxed).into()))
    }
}

#[cfg(test)]
mod tests;
