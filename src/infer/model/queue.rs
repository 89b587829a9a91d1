//! The way to an engine: one thread that owns it, and the bounded queue before it.
//!
//! Each call brings its own [`Stop`], by which its caller stops it from outside: when the deadline passes, and when the caller goes away.
//! An engine that does not heed it keeps the thread; its callers get their answer in time all the same.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::engine::{Engine, Stop, fits};
use super::frames::MAX_INPUT;
use super::{Bounds, Error, Refused, Signature, Walls};
use crate::wire::tensor::{Port, Tensor, elements};

/// How long an engine that was told to stop loading may take to do so. Afterwards its thread is left behind.
const STOP: Duration = Duration::from_secs(5);

/// An engine on its thread, and those who wait for it. When it is dropped the thread ends by itself; a call that runs was stopped when its
/// future was dropped.
#[derive(Debug)]
pub(super) struct Queue {
    calls: End,
    signature: Signature,
    walls: Walls,
}

impl Queue {
    /// Has `load` make the engine, on the thread where it will live, and waits until that has run once. The stop is for all of it.
    pub(super) fn start<L>(name: &str, bounds: &Bounds, load: L) -> Result<Self, Refused>
    where
        L: FnOnce(&Stop) -> Result<Box<dyn Engine>, Refused> + Send + 'static,
    {
        let calls = Arc::new(Calls::new(bounds.queue));
        let (ours, theirs) = (End(calls.clone()), End(calls));
        let stop = Stop::default();
        let stopped = stop.clone();
        let shapes = bounds.warm_up.clone();
        let (tell, told) = mpsc::channel();
        let body = move || match load(&stopped).and_then(|engine| warmed_up(engine, &shapes, &stopped)) {
            Ok(engine) => {
                // Nobody listens any more once the load was given up; the queue is closed then, and the thread ends.
                let _ = tell.send(Ok((engine.signature().clone(), engine.walls())));
                serve(engine, &theirs.0);
            }
            Err(refused) => drop(tell.send(Err(refused))),
        };
        // The kernel shows 15 bytes of it.
        let thread = std::thread::Builder::new().name(format!("model {name}")).spawn(body);
        thread.map_err(|error| Refused::Engine(error.to_string()))?;
        let (signature, walls) = wait_until_ready(&told, bounds.load, &stop)?;
        Ok(Self { calls: ours, signature, walls })
    }

    /// The walls that stood around the engine when it was ready.
    pub(super) fn walls(&self) -> Walls {
        self.walls
    }

    pub(super) fn signature(&self) -> &Signature {
        &self.signature
    }

    pub(super) async fn run(&self, inputs: Vec<Tensor>, outputs: &[String], deadline: Instant) -> Result<Vec<Tensor>, Error> {
        let wanted = self.wanted(outputs)?;
        let inputs = self.ordered(inputs)?;
        let stop = Stop::default();
        let (reply, answer) = oneshot::channel();
        self.calls.0.push(Call { inputs, wanted, stop: stop.clone(), reply })?;
        let mut stops = StopsUnlessAnswered(Some(stop));
        let answer = tokio::time::timeout_at(deadline.into(), answer).await.map_err(|_| Error::DeadlinePassed)?;
        stops.0 = None;
        answer.unwrap_or(Err(Error::EngineStopped))
    }

    /// The inputs in the model's order; each once, each of its type and shape.
    fn ordered(&self, mut inputs: Vec<Tensor>) -> Result<Vec<Tensor>, Error> {
        let ports = &self.signature.inputs;
        if inputs.len() != ports.len() {
            return Err(Error::CallerSentOtherInputs("more or fewer inputs than the model takes"));
        }
        for (index, port) in ports.iter().enumerate() {
            let found = inputs[index..].iter().position(|tensor| tensor.name == port.name);
            let found = found.ok_or(Error::CallerSentOtherInputs("an input that the model takes is missing"))?;
            inputs.swap(index, index + found);
            fits(&inputs[index], port)?;
        }
        Ok(inputs)
    }

    /// The places of the outputs that are asked for.
    fn wanted(&self, outputs: &[String]) -> Result<Vec<usize>, Error> {
        let ports = &self.signature.outputs;
        if outputs.is_empty() {
            return Ok((0..ports.len()).collect());
        }
        let mut wanted = Vec::with_capacity(outputs.len().min(ports.len()));
        for name in outputs {
            let place = ports.iter().position(|port| port.name == *name).filter(|place| !wanted.contains(place));
            wanted.push(place.ok_or(Error::CallerAskedForOtherOutputs)?);
        }
        Ok(wanted)
    }
}

#[cfg(test)]
impl Queue {
    /// How many calls wait.
    pub(super) fn waiting(&self) -> usize {
        self.calls.0.lock().calls.len()
    }
}

type Ready = (Signature, Walls);

/// Waits for the word of the thread. What takes longer than `limit` is told to stop.
fn wait_until_ready(told: &mpsc::Receiver<Result<Ready, Refused>>, limit: Duration, stop: &Stop) -> Result<Ready, Refused> {
    match told.recv_timeout(limit) {
        Ok(ready) => ready,
        Err(RecvTimeoutError::Disconnected) => Err(Refused::Engine("its thread died".to_owned())),
        Err(RecvTimeoutError::Timeout) => {
            stop.stop();
            // What it says now is too late.
            let _ = told.recv_timeout(STOP);
            Err(Refused::TookTooLong(limit))
        }
    }
}

/// The engine, after its first run.
fn warmed_up(mut engine: Box<dyn Engine>, shapes: &BTreeMap<String, Vec<u64>>, stop: &Stop) -> Result<Box<dyn Engine>, Refused> {
    let signature = engine.signature();
    let all: Vec<_> = (0..signature.outputs.len()).collect();
    let inputs = zeros(&signature.inputs, shapes)?;
    engine.run(&inputs, &all, stop).map_err(|error| Refused::WarmUp(error.to_string()))?;
    Ok(engine)
}

/// Inputs of zeros, with the `shapes` that the policy gives, or 1 for each free dimension.
fn zeros(ports: &[Port], shapes: &BTreeMap<String, Vec<u64>>) -> Result<Vec<Tensor>, Refused> {
    let refused = |why: &str| Refused::WarmUp(why.to_owned());
    if shapes.keys().any(|name| ports.iter().all(|port| port.name != *name)) {
        return Err(refused("`warm_up` names an input that the model does not have"));
    }
    let mut room = MAX_INPUT;
    ports
        .iter()
        .map(|port| {
            let shape = match shapes.get(&port.name) {
                Some(shape) => shape.clone(),
                None => port.shape.iter().map(|length| length.unwrap_or(1)).collect(),
            };
            // An empty string is its length alone, four zeros.
            let size = elements(&shape).and_then(|count| count.checked_mul(port.datatype.width().unwrap_or(4)));
            let size = size.filter(|size| *size <= room).ok_or_else(|| refused("its inputs are larger than 256 MiB"))?;
            room -= size;
            let tensor = Tensor { name: port.name.clone(), datatype: port.datatype, shape, data: vec![0; size].into() };
            fits(&tensor, port).map_err(|error| Refused::WarmUp(error.to_string()))?;
            Ok(tensor)
        })
        .collect()
}

/// The thread's life: one call after the other, until the queue is closed.
fn serve(mut engine: Box<dyn Engine>, calls: &Calls) {
    let mut again = None;
    loop {
        match calls.next(again) {
            Next::Call(call) => {
                let answer = engine.run(&call.inputs, &call.wanted, &call.stop);
                // Whoever asked may have gone.
                let _ = call.reply.send(answer);
            }
            Next::Due => {}
            Next::Closed => return,
        }
        again = engine.tend();
    }
}

/// What the engine's thread has to do next.
enum Next {
    Call(Call),
    /// The engine wanted to be asked again by now.
    Due,
    Closed,
}

/// One call that waits for the engine.
struct Call {
    inputs: Vec<Tensor>,
    wanted: Vec<usize>,
    stop: Stop,
    reply: oneshot::Sender<Result<Vec<Tensor>, Error>>,
}

/// Stops the run when its caller no longer waits for it.
struct StopsUnlessAnswered(Option<Stop>);

impl Drop for StopsUnlessAnswered {
    fn drop(&mut self) {
        if let Some(stop) = &self.0 {
            stop.stop();
        }
    }
}

/// Calls that wait, at most so many. The lock is held for a push or a pop.
struct Calls {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    capacity: usize,
}

struct Waiting {
    calls: VecDeque<Call>,
    closed: bool,
}

impl Calls {
    fn new(capacity: usize) -> Self {
        let waiting = Mutex::new(Waiting { calls: VecDeque::new(), closed: false });
        Self { waiting, arrived: Condvar::new(), capacity }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, call: Call) -> Result<(), Error> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(Error::EngineStopped);
        }
        if waiting.calls.len() >= self.capacity {
            // Those whose callers have gone must not keep the living out.
            waiting.calls.retain(|call| !call.stop.is_stopped());
            if waiting.calls.len() >= self.capacity {
                return Err(Error::QueueIsFull);
            }
        }
        waiting.calls.push_back(call);
        drop(waiting);
        self.arrived.notify_one();
        Ok(())
    }

    /// The next call whose caller still waits, or that it is `due`.
    fn next(&self, due: Option<Instant>) -> Next {
        let mut waiting = self.lock();
        loop {
            if waiting.closed {
                return Next::Closed;
            }
            while let Some(call) = waiting.calls.pop_front() {
                if !call.stop.is_stopped() {
                    return Next::Call(call);
                }
            }
            waiting = match due.map(|due| due.saturating_duration_since(Instant::now())) {
                None => self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return Next::Due,
                Some(left) => self.arrived.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    /// Whoever waits is told that the engine stopped.
    fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        waiting.calls.clear();
        drop(waiting);
        self.arrived.notify_one();
    }
}

impl std::fmt::Debug for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} calls", self.lock().calls.len(), self.capacity)
    }
}

/// Either end of the queue. It is closed with the first of them: nobody waits for a dead thread, and no thread for nobody.
#[derive(Debug)]
struct End(Arc<Calls>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tensor::Datatype;

    /// An engine without an input, which gives what `answers` says. Its first run always succeeds.
    struct Scripted<F>(Signature, F, bool);

    impl<F: FnMut(&Stop) -> Result<Vec<Tensor>, Error> + Send> Engine for Scripted<F> {
        fn signature(&self) -> &Signature {
            &self.0
        }

        fn run(&mut self, _: &[Tensor], _: &[usize], stop: &Stop) -> Result<Vec<Tensor>, Error> {
            if std::mem::replace(&mut self.2, true) { (self.1)(stop) } else { Ok(Vec::new()) }
        }
    }

    fn start<F: FnMut(&Stop) -> Result<Vec<Tensor>, Error> + Send + 'static>(answers: F) -> Queue {
        let output = Port { name: "y".into(), datatype: Datatype::Fp32, shape: vec![] };
        let signature = Signature { inputs: vec![], outputs: vec![output] };
        Queue::start("scripted", &Bounds::default(), |_| Ok(Box::new(Scripted(signature, answers, false)))).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    /// It wants to be asked again at once, until it was `left` times.
    struct Tended(Signature, usize, mpsc::Sender<()>);

    impl Engine for Tended {
        fn signature(&self) -> &Signature {
            &self.0
        }

        fn run(&mut self, _: &[Tensor], _: &[usize], _: &Stop) -> Result<Vec<Tensor>, Error> {
            Ok(Vec::new())
        }

        fn tend(&mut self) -> Option<Instant> {
            let _ = self.2.send(());
            self.1 = self.1.saturating_sub(1);
            (self.1 > 0).then(|| Instant::now() + Duration::from_millis(1))
        }
    }

    #[tokio::test]
    async fn an_engine_is_tended_after_each_call_and_when_it_wanted_to_be() {
        let (tell, told) = mpsc::channel();
        let signature = Signature { inputs: vec![], outputs: vec![] };
        let queue = Queue::start("tended", &Bounds::default(), |_| Ok(Box::new(Tended(signature, 3, tell)))).unwrap();
        assert!(told.try_recv().is_err());
        queue.run(vec![], &[], soon()).await.unwrap();
        for _ in 0..3 {
            told.recv_timeout(Duration::from_secs(20)).unwrap();
        }
        assert!(told.recv_timeout(Duration::from_millis(20)).is_err());
        queue.run(vec![], &[], soon()).await.unwrap();
        told.recv_timeout(Duration::from_secs(20)).unwrap();
    }

    #[tokio::test]
    async fn an_engine_that_only_asks_between_its_layers_is_stopped_by_its_caller() {
        let mut calls = 0;
        let queue = start(move |stop| {
            calls += 1;
            while calls == 1 && !stop.is_stopped() {
                std::thread::yield_now();
            }
            Ok(Vec::new())
        });
        let deadline = Instant::now() + Duration::from_millis(20);
        assert_eq!(queue.run(vec![], &[], deadline).await, Err(Error::DeadlinePassed));
        assert_eq!(queue.run(vec![], &[], soon()).await, Ok(vec![]));
    }

    #[tokio::test]
    async fn when_an_engine_dies_its_callers_are_told_and_nobody_else_waits() {
        let queue = start(|_| panic!("on purpose"));
        for _ in 0..2 {
            assert_eq!(queue.run(vec![], &[], soon()).await, Err(Error::EngineStopped));
        }
    }

    #[test]
    fn an_engine_that_is_not_loaded_in_time_is_told_to_stop() {
        let bounds = Bounds { load: Duration::from_millis(20), ..Bounds::default() };
        let (tell, told) = mpsc::channel();
        let refused = Queue::start("slow", &bounds, move |stop| {
            while !stop.is_stopped() {
                std::thread::yield_now();
            }
            let _ = tell.send(());
            Err(Refused::Engine("stopped".to_owned()))
        });
        assert!(matches!(refused, Err(Refused::TookTooLong(_))), "{refused:?}");
        assert!(told.recv_timeout(STOP).is_ok());
    }
}
