//! A standing worker in the hands of a task, which waits for it as it would for a client.
//!
//! A call over the engine's thread wakes that thread twice, once for the call and once for the answer; on a small model that is what most
//! of its time goes into. Here the task that has the queue writes the call itself, and the runtime hears of the answer. Only calls are made:
//! a worker that falls is given back, and the thread that started it, with which it dies, buries it and starts the next.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::Notify;

use super::super::engine::Stop;
use super::super::frames::{Broken, Patience, is_not_now};
use super::super::{Error, Signature};
use super::{Fell, Process, TICK, asked};
use crate::wire::tensor::Tensor;

/// Who has read or written so many bytes at once lets others have the runtime's thread before the next: copies take their time, and a worker
/// may be quick to give more.
const MUCH: usize = 64 << 10;

/// So long the answer of a call that has the engine to itself is looked for before the runtime waits for it: a processor that fell asleep is
/// hardly awake again before a small model has answered.
const SOON: Duration = Duration::from_micros(100);

/// Looked for in vain that often, one time after the other, an answer is waited for the next 62 times.
const MOST_IN_VAIN: u32 = 6;

/// A standing worker that was lent.
pub(in super::super) struct Lent {
    process: Process,
    answers: Watched,
    signature: Arc<Signature>,
    room: usize,
    calls: u64,
    stopped: Arc<Notify>,
    /// How often an answer was looked for in vain since one was found, and how many calls more are waited for at once.
    in_vain: u32,
    waits: u32,
}

/// The worker's socket, as the runtime watches it: for something to read alone, as it watches a pipe. As a socket it would be told of every
/// call that the worker takes out of it, too, and wake for nothing.
type Watched = pipe::Receiver;

impl Lent {
    /// It must be called within a runtime. Where that does not watch the socket there is nothing to lend.
    pub(super) fn new(process: Process, signature: Arc<Signature>, room: usize, calls: u64) -> Result<Self, Process> {
        let socket = process.wire.socket();
        let watched = socket.set_nonblocking(true).and_then(|()| Watched::from_owned_fd_unchecked(OwnedFd::from(socket.try_clone()?)));
        match watched {
            Ok(answers) => Ok(Self { process, answers, signature, room, calls, stopped: Arc::default(), in_vain: 0, waits: 0 }),
            Err(_) => {
                let _ = socket.set_nonblocking(false);
                Err(process)
            }
        }
    }

    /// The process and how many calls were made of it, for the thread that started it.
    pub(super) fn end(self) -> (Process, u64) {
        // The thread would spin on one that does not block; this fails for no open one.
        let _ = self.process.wire.socket().set_nonblocking(false);
        (self.process, self.calls)
    }

    /// One call, whose inputs and outputs are those of [`Engine::run`](super::super::engine::Engine::run), `alone` if no other waits for the
    /// engine. Past an error the worker is to be given back.
    pub(in super::super) async fn call(
        &mut self,
        inputs: &[Tensor],
        wanted: &[usize],
        stop: &Stop,
        alone: bool,
    ) -> Result<Result<Vec<Tensor>, Error>, Fell> {
        let body = match asked(&self.signature, inputs, wanted) {
            Ok(body) => body,
            Err(error) => return Ok(Err(error)),
        };
        self.calls += 1;
        let (tells, stopped) = (self.process.interrupt(self.calls), self.stopped.clone());
        let _interrupts = stop.interrupts(move || {
            tells();
            stopped.notify_one();
        });
        let grace = self.process.grace.length();
        let until_stopped = UntilStopped { stop: Some(stop), stopped: &self.stopped, grace, until: None };
        let looks = alone && self.waits == 0;
        let mut patience = Awaits { looks, ..Awaits::new(&self.answers, until_stopped) };
        let from = Instant::now();
        let answer = self.process.exchange(self.calls, &body, wanted, (&self.signature.outputs, self.room), &mut patience).await;
        let found = patience.found;
        if answer.is_ok() {
            self.process.grace.ended(from.elapsed(), stop);
        }
        self.learn(looks, found);
        answer
    }

    /// Looking costs a processor's time, so it is given up where it is in vain, for longer each time.
    fn learn(&mut self, looked: bool, found: bool) {
        if !looked {
            self.waits = self.waits.saturating_sub(1);
        } else if found {
            self.in_vain = 0;
        } else {
            self.in_vain = MOST_IN_VAIN.min(self.in_vain + 1);
            self.waits = (1 << self.in_vain) - 2;
        }
    }

    /// Waits until the worker ends, or says what nobody asked for: between two calls it does neither.
    pub(in super::super) async fn falls(&mut self) -> Broken {
        let until_stopped = UntilStopped { stop: None, stopped: &self.stopped, grace: Duration::ZERO, until: None };
        self.process.wire.breaks_silence(&mut Awaits::new(&self.answers, until_stopped)).await
    }
}

/// Waits for a worker as the runtime tells of it, as long as its call is not stopped.
struct Awaits<'a> {
    answers: &'a Watched,
    /// The same socket, from when a call did not fit into it until it is written.
    calls: Option<UnixStream>,
    until_stopped: UntilStopped<'a>,
    /// Whether the answer's beginning is still to be looked for, and whether it was found.
    looks: bool,
    found: bool,
}

impl<'a> Awaits<'a> {
    fn new(answers: &'a Watched, until_stopped: UntilStopped<'a>) -> Self {
        Self { answers, calls: None, until_stopped, looks: false, found: false }
    }

    async fn write(&mut self, mut io: impl FnMut() -> io::Result<usize>) -> io::Result<Result<usize, Broken>> {
        let Some(calls) = &self.calls else {
            let written = io();
            if written.as_ref().is_err_and(is_not_now) {
                let socket = self.answers.as_fd().try_clone_to_owned().map(net::UnixStream::from);
                match socket.and_then(UnixStream::from_std) {
                    Ok(socket) => self.calls = Some(socket),
                    // There may be a descriptor again before the call is stopped.
                    Err(_) => tokio::time::sleep(TICK).await,
                }
            }
            return written.map(Ok);
        };
        match self.until_stopped.wait(calls.writable()).await {
            Ok(()) => calls.try_io(Interest::WRITABLE, io).map(Ok),
            Err(broken) => Ok(Err(broken)),
        }
    }

    async fn read(&mut self, most: usize, mut io: impl FnMut() -> io::Result<usize>) -> io::Result<Result<usize, Broken>> {
        if std::mem::take(&mut self.looks) {
            let until = Instant::now() + SOON;
            // At least once, however long this thread slept in between.
            loop {
                match io() {
                    Err(error) if is_not_now(&error) => {}
                    done => {
                        self.found = true;
                        return done.map(Ok);
                    }
                }
                if Instant::now() >= until {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        if let Err(broken) = self.until_stopped.wait(self.answers.readable()).await {
            return Ok(Err(broken));
        }
        let mut part = None;
        let read = self.answers.try_io(|| match io() {
            // The rest would have come with it: the runtime need not look again before it hears of more.
            Ok(bytes) if bytes < most => {
                part = Some(bytes);
                Err(io::ErrorKind::WouldBlock.into())
            }
            other => other,
        });
        part.map_or(read, Ok).map(Ok)
    }
}

impl Patience for Awaits<'_> {
    async fn ready(&mut self, interest: Interest, most: usize, mut io: impl FnMut() -> io::Result<usize>) -> Result<usize, Broken> {
        loop {
            tokio::task::coop::consume_budget().await;
            let done = if interest.is_writable() { self.write(&mut io).await } else { self.read(most, &mut io).await };
            match done {
                Ok(done) => {
                    if matches!(done, Ok(bytes) if bytes >= MUCH) {
                        tokio::task::yield_now().await;
                    }
                    return done;
                }
                Err(error) if is_not_now(&error) && !self.is_left() => return Err(Broken::GivenUp),
                Err(error) if is_not_now(&error) || error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn is_left(&mut self) -> bool {
        self.until_stopped.is_left()
    }
}

/// Once the call is stopped, the grace is left.
struct UntilStopped<'a> {
    /// None between two calls.
    stop: Option<&'a Stop>,
    /// May have been told of the call before.
    stopped: &'a Notify,
    grace: Duration,
    until: Option<Instant>,
}

impl UntilStopped<'_> {
    async fn wait(&mut self, ready: impl Future<Output = io::Result<()>>) -> Result<(), Broken> {
        let mut ready = pin!(ready);
        let ready = loop {
            match self.until {
                Some(until) => break tokio::time::timeout_at(until.into(), ready).await.map_err(|_| Broken::GivenUp)?,
                None => tokio::select! {
                    biased;
                    ready = &mut ready => break ready,
                    () = self.stopped.notified() => { self.is_left(); }
                },
            }
        };
        ready.map_err(Broken::Socket)
    }

    fn is_left(&mut self) -> bool {
        !self.stop.is_some_and(Stop::is_stopped) || Instant::now() < *self.until.get_or_insert_with(|| Instant::now() + self.grace)
    }
}

#[cfg(test)]
mod tests;
