//! Work on many bytes, which takes its time: others' requests are not to wait for it.
//!
//! A thread of the runtime has many requests. One that reads sixty megabytes of JSON there holds up all of them for as long as that takes. So
//! work on [`MANY`] bytes and more has the thread to itself, while the runtime goes on with the others on another; and as much of it as there are
//! processors is done at a time, in the order in which it came, since each of those threads would have an even share of them. What is done before anybody
//! knows whether the caller may ask has turns of its own, half as many, so that who may ask nothing keeps nobody waiting who may.

use std::sync::LazyLock;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Below it, work is over before others would have been led to another thread, or about.
pub const MANY: usize = 128 << 10;

static TURNS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(processors()));
static TURNS_OF_STRANGERS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(processors().div_ceil(2)));

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Does `what` is to be done with so many bytes. It waits for nothing where they are few, and where a runtime has one thread alone.
pub async fn work<T>(bytes: usize, what: impl FnOnce() -> T) -> T {
    in_turn(&TURNS, bytes, what).await
}

/// The same for a caller of whom it is not known yet whether he may ask.
pub async fn work_of_stranger<T>(bytes: usize, what: impl FnOnce() -> T) -> T {
    in_turn(&TURNS_OF_STRANGERS, bytes, what).await
}

/// Whether work on so many bytes waits for a turn here.
#[must_use]
pub fn is_much(bytes: usize) -> bool {
    bytes >= MANY && Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() != RuntimeFlavor::CurrentThread)
}

/// A turn, for who cannot wait in [`work`].
#[derive(Debug)]
pub struct Turn {
    _permit: Option<SemaphorePermit<'static>>,
}

/// Waits for a turn.
pub async fn turn() -> Turn {
    // It is never closed.
    Turn { _permit: TURNS.acquire().await.ok() }
}

impl Turn {
    /// Does `what` was waited for. Only where [`is_much`] says that it is much.
    pub fn work<T>(self, what: impl FnOnce() -> T) -> T {
        tokio::task::block_in_place(what)
    }
}

async fn in_turn<T>(turns: &Semaphore, bytes: usize, what: impl FnOnce() -> T) -> T {
    if !is_much(bytes) {
        return what();
    }
    // It is never closed.
    let _turn = turns.acquire().await.ok();
    tokio::task::block_in_place(what)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn others_go_on_beside_work_on_many_bytes_of_which_a_processor_does_one_at_a_time() {
        let processors = std::thread::available_parallelism().unwrap().get();
        let (now, most) = (&*Box::leak(Box::new(AtomicUsize::new(0))), &*Box::leak(Box::new(AtomicUsize::new(0))));
        let all: Vec<_> = (0..processors + 2)
            .map(|_| {
                tokio::spawn(work(MANY, || {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(200));
                    now.fetch_sub(1, Ordering::SeqCst);
                }))
            })
            .collect();
        // The only thread has this task, too.
        while now.load(Ordering::SeqCst) < processors {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for work in all {
            work.await.unwrap();
        }
        assert_eq!(most.load(Ordering::SeqCst), processors);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn work_on_few_bytes_is_done_where_it_is_and_strangers_wait_for_each_other_alone() {
        let mut turns = Vec::new();
        while let Ok(turn) = TURNS_OF_STRANGERS.try_acquire() {
            turns.push(turn);
        }
        assert_eq!(work_of_stranger(MANY - 1, || 7).await, 7);
        assert!(tokio::time::timeout(Duration::from_millis(50), work_of_stranger(MANY, || 7)).await.is_err());
        assert_eq!(work(MANY, || 7).await, 7);
    }

    #[tokio::test]
    async fn a_runtime_of_one_thread_does_it_all_the_same() {
        assert_eq!(work(MANY, || 7).await, 7);
    }
}
