//! A connection's bytes, watched: how they are framed (HTTP/1.1), how fast a head arrives, how fast an answer is taken.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::Counters;
use super::framing::Framing;
use super::http::Live;

/// Bytes that a stalled write must move before its deadline starts anew: less is as good as none.
const PROGRESS: usize = 4 << 10;

/// A byte that no HTTP/1.1 parser accepts anywhere outside a body. The first byte that `framing` refuses is replaced
/// by it, so that the HTTP library answers 400 and closes, as it does for what it refuses itself.
const POISON: u8 = 0;

/// What ends a head.
const END: &[u8; 4] = b"\r\n\r\n";

/// A watched connection.
pub(super) struct Guard<I> {
    io: I,
    /// Bytes that were read to learn the protocol, and how many of them are not handed on yet.
    before: [u8; 24],
    unread: std::ops::Range<u8>,
    framing: Option<Box<Framing>>,
    poisoned: bool,
    /// Whether the first head has ended; until then silence counts as a slow head.
    begun: bool,
    headers: Duration,
    idle: Duration,
    slow_head: Timer,
    slow_write: Timer,
    moved: usize,
    live: Arc<Live>,
}

/// A deadline that exists only while something is waited for. The allocation stays for the next wait.
#[derive(Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    running: bool,
}

impl Timer {
    /// Starts it unless it runs, and says whether it has passed.
    fn passed(&mut self, limit: Duration, cx: &mut Context<'_>) -> bool {
        let sleep = self.sleep.get_or_insert_with(|| {
            self.running = true;
            Box::pin(tokio::time::sleep(limit))
        });
        if !self.running {
            self.running = true;
            sleep.as_mut().reset(Instant::now() + limit);
        }
        sleep.as_mut().poll(cx).is_ready()
    }

    fn stop(&mut self) {
        self.running = false;
    }
}

impl<I> Guard<I> {
    /// Watches `io`, of which `before` was already read; `strict` for HTTP/1.1.
    pub(super) fn new(io: I, before: &[u8], strict: bool, headers: Duration, idle: Duration, live: Arc<Live>) -> Self {
        let mut kept = [0; 24];
        let length = before.len().min(kept.len());
        kept[..length].copy_from_slice(&before[..length]);
        Self {
            io,
            before: kept,
            unread: 0..u8::try_from(length).unwrap_or(24),
            framing: strict.then(|| Box::new(Framing::new())),
            poisoned: false,
            begun: false,
            headers,
            idle,
            slow_head: Timer::default(),
            slow_write: Timer::default(),
            moved: 0,
            live,
        }
    }

    /// Reads the framing of what was filled in from `from` on.
    fn judge(&mut self, buf: &mut ReadBuf<'_>, from: usize) {
        let Some(framing) = &mut self.framing else { return };
        let fresh = &mut buf.filled_mut()[from..];
        if let Err(wrong) = framing.read(fresh) {
            fresh[wrong.0] = POISON;
            self.poisoned = true;
            self.live.misframed();
            buf.set_filled(from + wrong.0 + 1);
            self.slow_head.stop();
            if framing.before_body() {
                // The library looks at a head that came in pieces only once it seems whole.
                self.before[..END.len()].copy_from_slice(END);
                self.unread = 0..END.len() as u8;
            }
        } else if !framing.in_head() {
            self.begun |= !buf.filled()[from..].is_empty();
            self.slow_head.stop();
        }
    }

    fn stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.slow_write.passed(self.idle, cx) {
            Counters::add(&self.live.counters.stalled);
            return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the answer is not being read"));
        }
        Poll::Pending
    }

    fn wrote(&mut self, result: Poll<io::Result<usize>>, offered: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match result {
            Poll::Ready(Ok(count)) => {
                self.moved = self.moved.saturating_add(count);
                if self.moved >= PROGRESS || count == offered {
                    self.slow_write.stop();
                    self.moved = 0;
                }
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => self.stalled(cx).map(Err),
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Guard<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let from = buf.filled().len();
        if !this.unread.is_empty() {
            let kept = &this.before[usize::from(this.unread.start)..usize::from(this.unread.end)];
            let count = kept.len().min(buf.remaining());
            buf.put_slice(&kept[..count]);
            this.unread.start += u8::try_from(count).unwrap_or(24);
            if !this.poisoned {
                this.judge(buf, from);
            }
            return Poll::Ready(Ok(()));
        }
        // After the wrong byte there is no message to wait for: the connection ends once the 400 is written.
        if this.poisoned {
            return Poll::Ready(Ok(()));
        }
        match Pin::new(&mut this.io).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                this.judge(buf, from);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                let waits_for_head = this.framing.as_ref().is_some_and(|framing| framing.in_head() || !this.begun);
                if waits_for_head && this.slow_head.passed(this.headers, cx) {
                    Counters::add(&this.live.counters.stalled);
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the head did not arrive in time")));
                }
                Poll::Pending
            }
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Guard<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write(cx, bytes);
        this.wrote(result, bytes.len(), cx)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let offered = bytes.iter().map(|slice| slice.len()).sum();
        let result = Pin::new(&mut this.io).poll_write_vectored(cx, bytes);
        this.wrote(result, offered, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.io).poll_flush(cx) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => this.stalled(cx).map(Err),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.io).poll_shutdown(cx) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => this.stalled(cx).map(Err),
        }
    }
}
