//! What every engine has in common: it has a signature, it answers one call after the other, and it can be told to stop.
//!
//! It is *not* concerned with who waits: [`queue`](super::queue) owns the engine on a thread of its own, and is all that callers see.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::falls::Falls;
use super::worker::{Fell, Lent};
use super::{Error, Walls};
use crate::wire::tensor::{Port, Tensor};

/// A loaded model. It lives on one thread, from its loading to its end.
pub(super) trait Engine: Send {
    /// What the model takes and gives. It stays the same for the engine's life.
    fn signature(&self) -> &Signature;

    /// One run. `inputs` are all of the signature's `inputs`, or all of its `instead`, in its order, and each [`fits`] its port; `wanted` are places in its outputs, and the
    /// answer has just those, in that order. It ends soon after `stop`, with an error; whoever gave the call does not listen any more.
    fn run(&mut self, inputs: &[Tensor], wanted: &[usize], stop: &Stop) -> Result<Vec<Tensor>, Error>;

    /// What is to be done between two calls. It is asked after each, and again when the time comes that it gives.
    fn tend(&mut self) -> Option<Instant> {
        None
    }

    /// What calls can be made over from a task, so that none has to wait for the engine's thread. It is taken back before anything else is
    /// asked of the engine; none, where the engine computes on that thread, or does not stand.
    fn lend(&mut self) -> Option<Lent> {
        None
    }

    /// What was lent, and whether it fell meanwhile.
    fn take_back(&mut self, _: Lent, _: Option<Fell>) {}

    /// What became of its workers; it has none where it shares the gateway's process.
    fn falls(&self) -> Arc<Falls> {
        Arc::default()
    }

    /// The walls around it; none where it shares the gateway's process.
    fn walls(&self) -> Walls {
        Walls::default()
    }
}

/// What a model takes and gives, as its file says: its contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Inputs, without those that have a value in the file already.
    pub inputs: Vec<Port>,
    /// Inputs that may be sent in place of `inputs`, all of them together; empty where there is no other way.
    pub instead: Vec<Port>,
    /// Outputs.
    pub outputs: Vec<Port>,
    /// The most tokens of a text, where texts are what it takes.
    pub longest: Option<usize>,
    /// Whether the file calls the first dimensions of its inputs by several names: they are then no one batch, and need not be of one length.
    pub apart: bool,
}

/// Whether `tensor` is one that `port` takes.
pub(super) fn fits(tensor: &Tensor, port: &Port) -> Result<(), Error> {
    let other = |why| Err(Error::CallerSentOtherInputs(why));
    if tensor.datatype != port.datatype {
        return other("an input is of another datatype than the model takes");
    }
    if !shapes_agree(&tensor.shape, &port.shape) {
        return other("an input is of another shape than the model takes");
    }
    match (tensor.elements(), tensor.datatype.width()) {
        (Some(elements), Some(width)) if elements.checked_mul(width) == Some(tensor.data.len()) => Ok(()),
        // Strings are counted as they are read.
        (Some(_), None) => Ok(()),
        _ => other("an input has more or less data than its shape says"),
    }
}

/// Whether `shape` is one of those that `port` stands for.
pub(super) fn shapes_agree(shape: &[u64], port: &[Option<u64>]) -> bool {
    shape.len() == port.len() && shape.iter().zip(port).all(|(length, wanted)| wanted.is_none_or(|wanted| wanted == *length))
}

/// Tells an engine to stop what it does: its caller went away, or time is up. Clones are the same one; once stopped, it stays so.
#[derive(Clone, Default)]
pub(super) struct Stop(Arc<Signal>);

#[derive(Default)]
struct Signal {
    stopped: AtomicBool,
    interrupt: Mutex<Option<Interrupt>>,
}

type Interrupt = Box<dyn FnOnce() + Send>;

impl Stop {
    pub(super) fn stop(&self) {
        self.with_interrupt(|interrupt| {
            self.0.stopped.store(true, Ordering::Release);
            if let Some(interrupt) = interrupt.take() {
                interrupt();
            }
        });
    }

    /// Cheap enough to be asked between two layers.
    pub(super) fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::Acquire)
    }

    /// Does `work` and lets `interrupt` stop it: that is called at most once, when the stop comes or at once if it came before, and never
    /// after this has returned. It must not block, as whoever stops waits for it. One `during` at a time.
    pub(super) fn during<T>(&self, interrupt: impl FnOnce() + Send + 'static, work: impl FnOnce() -> T) -> T {
        let _forgets = self.interrupts(interrupt);
        work()
    }

    /// The same for work that goes on as long as what is returned lives.
    pub(super) fn interrupts(&self, interrupt: impl FnOnce() + Send + 'static) -> Forgets<'_> {
        let forgets = Forgets(self);
        self.with_interrupt(|waiting| {
            if self.is_stopped() {
                interrupt();
            } else {
                *waiting = Some(Box::new(interrupt));
            }
        });
        forgets
    }

    /// Under the lock, so that an interrupt is either called while its work goes on, or not at all.
    fn with_interrupt(&self, act: impl FnOnce(&mut Option<Interrupt>)) {
        act(&mut self.0.interrupt.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stop({})", self.is_stopped())
    }
}

/// Takes the interrupt back however the work ends.
pub(super) struct Forgets<'a>(&'a Stop);

impl Drop for Forgets<'_> {
    fn drop(&mut self) {
        self.0.with_interrupt(|interrupt| *interrupt = None);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// How often the interrupt of a `during` was called by the time its work ended, and by now.
    fn during(stop: &Stop, work: impl FnOnce()) -> (usize, Arc<AtomicUsize>) {
        let called = Arc::new(AtomicUsize::new(0));
        let counts = called.clone();
        let count = move || {
            counts.fetch_add(1, Ordering::Relaxed);
        };
        let by_then = stop.during(count, || {
            work();
            called.load(Ordering::Relaxed)
        });
        (by_then, called)
    }

    #[test]
    fn a_stop_interrupts_the_work_that_goes_on_once() {
        let stop = Stop::default();
        let (by_then, called) = during(&stop, || {
            stop.clone().stop();
            stop.stop();
        });
        assert_eq!((by_then, called.load(Ordering::Relaxed), stop.is_stopped()), (1, 1, true));
    }

    #[test]
    fn a_stop_that_came_before_interrupts_the_next_work_at_once() {
        let stop = Stop::default();
        stop.stop();
        assert_eq!(during(&stop, || ()).0, 1);
    }

    #[test]
    fn a_stop_that_comes_after_the_work_interrupts_nothing_even_if_that_panicked() {
        let stop = Stop::default();
        let (by_then, called) = during(&stop, || ());
        stop.stop();
        assert_eq!((by_then, called.load(Ordering::Relaxed)), (0, 0));

        let stop = Stop::default();
        let called = Arc::new(AtomicUsize::new(0));
        let counts = called.clone();
        let count = move || {
            counts.fetch_add(1, Ordering::Relaxed);
        };
        let work = std::panic::AssertUnwindSafe(|| stop.during(count, || panic!("on purpose")));
        assert!(std::panic::catch_unwind(work).is_err());
        stop.stop();
        assert_eq!(called.load(Ordering::Relaxed), 0);
    }
}
