//! Lines on their way to a sink, which is mostly a file: who gives them never waits for it.
//!
//! They pass a bounded channel to a thread of their own, which alone touches the sink, and are appended in whole batches. What finds the
//! channel full is told to who gave it, and what a write lost to the sink.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tokio::sync::oneshot;

/// How many bytes one write takes at the most, a longer line aside.
pub const MAX_BATCH: usize = 256 * 1_024;

/// Where lines go. Its thread alone calls it.
pub trait Sink: Send + 'static {
    /// What is given.
    type Item: Send + 'static;

    /// Adds to a batch the lines that an item comes to, each ended by a newline. Tells how many.
    fn lines(&mut self, item: Self::Item, batch: &mut String) -> u64;

    /// Hands a batch to the system, whole.
    ///
    /// # Errors
    /// When it could not, or not all of it.
    fn write(&mut self, batch: &[u8]) -> io::Result<()>;

    /// Opens the sink anew, as log rotation wants it. Whether it did: else the old one stays in use.
    fn reopen(&mut self) -> bool;

    /// A write failed, which lost so many lines.
    fn lost(&mut self, lines: u64, why: &io::Error);
}

#[derive(Debug)]
enum Order<T> {
    Item(T),
    Reopen,
    Flush(oneshot::Sender<()>),
}

/// The end that takes what is to be written. Once every clone of it is gone, what still waits is written and the sink closed.
#[derive(Debug)]
pub struct Lines<T> {
    to: SyncSender<Order<T>>,
}

impl<T> Clone for Lines<T> {
    fn clone(&self) -> Self {
        Self { to: self.to.clone() }
    }
}

impl<T: Send + 'static> Lines<T> {
    /// Starts the thread `name`, for which `capacity` items may wait.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(name: &str, capacity: usize, sink: impl Sink<Item = T>) -> io::Result<Self> {
        let (to, from) = sync_channel(capacity);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || write(&from, sink))?;
        Ok(Self { to })
    }

    /// Whether there was room for `item`. Never waits.
    #[must_use]
    pub fn give(&self, item: T) -> bool {
        self.to.try_send(Order::Item(item)).is_ok()
    }

    /// Has the sink opened anew.
    pub fn reopen(&self) {
        let _ = self.to.try_send(Order::Reopen);
    }

    /// Resolves once every line so far was handed to the system; at once where the channel is full.
    /// The caller bounds the wait: a sink that is stuck does not answer.
    pub async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        if self.to.try_send(Order::Flush(done)).is_ok() {
            let _ = wait.await;
        }
    }
}

fn write<S: Sink>(from: &Receiver<Order<S::Item>>, mut sink: S) {
    let mut batch = String::new();
    // A write that failed half-way left a piece of a line behind: the next one starts on a line of its own.
    let mut torn = false;
    while let Ok(first) = from.recv() {
        let mut lines = 0;
        let mut next = Some(first);
        let mut order = None;
        while let Some(one) = next.take() {
            match one {
                Order::Item(item) => lines += sink.lines(item, &mut batch),
                other => order = Some(other),
            }
            if order.is_none() && batch.len() < MAX_BATCH {
                next = from.try_recv().ok();
            }
        }
        if !batch.is_empty() {
            if torn {
                batch.insert(0, '\n');
            }
            let written = sink.write(batch.as_bytes());
            torn = written.is_err();
            if let Err(why) = written {
                sink.lost(lines, &why);
            }
            batch.clear();
        }
        match order {
            Some(Order::Reopen) => torn &= !sink.reopen(),
            Some(Order::Flush(done)) => _ = done.send(()),
            Some(Order::Item(_)) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as blocking;

    use super::*;

    /// Its second write fails half-way.
    struct Fails(usize, blocking::Sender<Result<Vec<u8>, u64>>);

    impl Sink for Fails {
        type Item = &'static str;

        fn lines(&mut self, item: &'static str, batch: &mut String) -> u64 {
            batch.push_str(item);
            1
        }

        fn write(&mut self, batch: &[u8]) -> io::Result<()> {
            self.0 += 1;
            if self.0 == 2 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let _ = self.1.send(Ok(batch.to_vec()));
            Ok(())
        }

        fn reopen(&mut self) -> bool {
            true
        }

        fn lost(&mut self, lines: u64, why: &io::Error) {
            assert_eq!(why.kind(), io::ErrorKind::StorageFull);
            let _ = self.1.send(Err(lines));
        }
    }

    /// What comes of items that are each written by themselves.
    async fn told(reopen: bool) -> Vec<Result<Vec<u8>, u64>> {
        let (tell, told) = blocking::channel();
        let lines = Lines::start("test", 4, Fails(0, tell)).unwrap();
        for item in ["one\n", "two\n", "three\n", "four\n"] {
            assert!(lines.give(item));
            lines.flush().await;
            if reopen {
                lines.reopen();
            }
        }
        drop(lines);
        told.iter().collect()
    }

    #[tokio::test]
    async fn what_a_full_disk_loses_is_told_and_the_next_line_stands_alone() {
        let written = |text: &str| Ok(text.as_bytes().to_vec());
        assert_eq!(told(false).await, [written("one\n"), Err(1), written("\nthree\n"), written("four\n")]);
        assert_eq!(told(true).await, [written("one\n"), Err(1), written("three\n"), written("four\n")], "a new file has no torn line");
    }
}
