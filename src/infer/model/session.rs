//! The engine: one thread that owns one ONNX Runtime session, and the bounded queue before it.
//!
//! A session runs one call at a time (`run` takes it mutably, and ONNX Runtime is not thread-safe whatever it says). Each call brings its
//! own run options, by which its caller stops it from outside: when the deadline passes, and when the caller goes away. The flag is looked
//! at between operators, so an operator that never ends keeps the thread; its callers get their answer in time all the same.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ort::session::builder::{GraphOptimizationLevel, LoadCanceler};
use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::DynValue;
use tokio::sync::oneshot;

use super::engine::fits;
use super::tensor::{element, from_engine, into_engine};
use super::{Bounds, Error, Refused, Runtime, Signature};
use crate::wire::tensor::{Port, Tensor, elements};

/// How long an engine that was told to stop loading may take to do so. Afterwards its thread is left behind.
const STOP: Duration = Duration::from_secs(5);

/// The most bytes that the inputs of the first run may have together.
const MAX_WARM_UP: usize = 256 << 20;

/// A session on its thread.
#[derive(Debug)]
pub(super) struct Engine {
    queue: Arc<Queue>,
    signature: Arc<Signature>,
}

impl Engine {
    /// Gives `bytes` to ONNX Runtime and waits until the model has run once.
    pub(super) fn start(name: &str, bytes: Bytes, signature: Signature, bounds: &Bounds, runtime: &Runtime) -> Result<Self, Refused> {
        let signature = Arc::new(signature);
        let queue = Arc::new(Queue::new(bounds.queue));
        let warm_up = zeros(&signature.inputs, bounds)?;
        let (tell, told) = mpsc::channel();
        let start = Start { runtime: runtime.clone(), bytes, warm_up, signature: signature.clone(), room: bounds.output };
        let until = Closes(queue.clone());
        let body = move || {
            if let Some(session) = start.run(&tell) {
                // Nobody listens any more once the load was given up; the queue is closed then, and the thread ends.
                let _ = tell.send(Stage::Ready);
                serve(session, &until.0, &start.signature, start.room);
            }
        };
        // The kernel shows 15 bytes of it.
        let thread = std::thread::Builder::new().name(format!("model {name}")).spawn(body);
        thread.map_err(|error| Refused::Engine(error.to_string()))?;
        let engine = Self { queue, signature };
        wait_until_ready(&told, bounds.load).map(|()| engine)
    }

    pub(super) fn signature(&self) -> &Signature {
        &self.signature
    }

    pub(super) async fn run(&self, inputs: Vec<Tensor>, outputs: &[String], deadline: Instant) -> Result<Vec<Tensor>, Error> {
        let wanted = self.wanted(outputs)?;
        // Copied here and not on the engine's thread, which then has nothing to do but to run.
        let inputs = self.ordered(inputs)?.iter().map(into_engine).collect::<Result<_, _>>()?;
        let stop = Arc::new(RunOptions::new().map_err(|error| Error::ModelFailed(error.message().into()))?);
        let (reply, answer) = oneshot::channel();
        self.queue.push(Call { inputs, wanted, stop: stop.clone(), reply })?;
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
impl Engine {
    /// How many calls wait.
    pub(super) fn waiting(&self) -> usize {
        self.queue.lock().calls.len()
    }
}

impl Drop for Engine {
    /// The thread ends by itself; a call that runs was stopped when its future was dropped.
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// How far the thread has come.
enum Stage {
    Loading(LoadCanceler),
    WarmingUp(Arc<RunOptions>),
    Ready,
    Refused(Refused),
}

/// Waits for [`Stage::Ready`]. What takes longer than `limit` is told to stop.
fn wait_until_ready(told: &mpsc::Receiver<Stage>, limit: Duration) -> Result<(), Refused> {
    let until = Instant::now() + limit;
    let mut cancel: Box<dyn Fn()> = Box::new(|| ());
    loop {
        match told.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Stage::Loading(canceler)) => cancel = Box::new(move || drop(canceler.cancel())),
            Ok(Stage::WarmingUp(stop)) => cancel = Box::new(move || drop(stop.terminate())),
            Ok(Stage::Ready) => return Ok(()),
            Ok(Stage::Refused(refused)) => return Err(refused),
            Err(RecvTimeoutError::Disconnected) => return Err(Refused::Engine("its thread died".to_owned())),
            Err(RecvTimeoutError::Timeout) => {
                cancel();
                // A stage that begins just now must be stopped too.
                let stopped = Instant::now() + STOP;
                while let Ok(stage) = told.recv_timeout(stopped.saturating_duration_since(Instant::now())) {
                    match stage {
                        Stage::Loading(canceler) => drop(canceler.cancel()),
                        Stage::WarmingUp(stop) => drop(stop.terminate()),
                        Stage::Ready | Stage::Refused(_) => break,
                    }
                }
                return Err(Refused::TookTooLong(limit));
            }
        }
    }
}

/// What the thread needs to begin.
struct Start {
    runtime: Runtime,
    bytes: Bytes,
    warm_up: Vec<Tensor>,
    signature: Arc<Signature>,
    room: usize,
}

impl Start {
    /// Loads the model and runs it once; `None` when it was refused and that was told.
    fn run(&self, tell: &mpsc::Sender<Stage>) -> Option<Session> {
        let ready = self.load(tell).and_then(|mut session| {
            let refused = |why: String| Refused::WarmUp(why);
            let stop = Arc::new(RunOptions::new().map_err(|error| refused(error.to_string()))?);
            let _ = tell.send(Stage::WarmingUp(stop.clone()));
            let all: Vec<_> = (0..self.signature.outputs.len()).collect();
            let inputs = self.warm_up.iter().map(into_engine).collect::<Result<_, _>>();
            let ran = inputs.and_then(|inputs| answer(&mut session, inputs, &all, &stop, &self.signature, self.room));
            ran.map_err(|error| refused(error.to_string()))?;
            Ok(session)
        });
        ready.map_err(|refused| drop(tell.send(Stage::Refused(refused)))).ok()
    }

    fn load(&self, tell: &mpsc::Sender<Stage>) -> Result<Session, Refused> {
        let mut builder = Session::builder(self.runtime.environment())
            .and_then(|builder| {
                Ok(builder
                    // The basic rewrites only: the extended ones have broken valid models, and the disabled level resolves external
                    // data against the working directory (which the walk over the file refuses; this is the second line).
                    .with_optimization_level(GraphOptimizationLevel::Level1)?
                    // A call is one thread's work; machines scale by models and calls, not by spinning pools.
                    .with_intra_threads(1)?
                    .with_inter_threads(1)?
                    .with_parallel_execution(false)?
                    .with_intra_op_spinning(false)?
                    .with_inter_op_spinning(false)?)
            })
            .map_err(|error| Refused::Engine(error.to_string()))?;
        let _ = tell.send(Stage::Loading(builder.canceler()));
        let session = builder.commit_from_memory(&self.bytes).map_err(|error| Refused::Engine(error.to_string()))?;
        let same = |engine: &[ort::value::Outlet], file: &[Port]| {
            engine.len() == file.len()
                && engine
                    .iter()
                    .zip(file)
                    .all(|(outlet, port)| outlet.name() == port.name && outlet.dtype().tensor_type() == Some(element(port.datatype)))
        };
        if same(session.inputs(), &self.signature.inputs) && same(session.outputs(), &self.signature.outputs) {
            Ok(session)
        } else {
            Err(Refused::ReadDifferently)
        }
    }
}

/// Inputs of zeros, with the shapes that the policy gives, or 1 for each free dimension.
fn zeros(ports: &[Port], bounds: &Bounds) -> Result<Vec<Tensor>, Refused> {
    let refused = |why: &str| Refused::WarmUp(why.to_owned());
    if bounds.warm_up.keys().any(|name| ports.iter().all(|port| port.name != *name)) {
        return Err(refused("`warm_up` names an input that the model does not have"));
    }
    let mut room = MAX_WARM_UP;
    ports
        .iter()
        .map(|port| {
            let shape = match bounds.warm_up.get(&port.name) {
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
fn serve(mut session: Session, queue: &Queue, signature: &Signature, room: usize) {
    while let Some(call) = queue.next() {
        let answer = answer(&mut session, call.inputs, &call.wanted, &call.stop, signature, room);
        // Whoever asked may have gone.
        let _ = call.reply.send(answer);
    }
}

/// One run. `inputs` are in the model's order.
fn answer(
    session: &mut Session,
    inputs: Vec<DynValue>,
    wanted: &[usize],
    stop: &RunOptions,
    signature: &Signature,
    mut room: usize,
) -> Result<Vec<Tensor>, Error> {
    let values = signature.inputs.iter().zip(inputs);
    let values: Vec<_> = values.map(|(port, value)| (Cow::Borrowed(port.name.as_str()), SessionInputValue::from(value))).collect();
    let outputs = session.run_with_options(values, stop).map_err(|error| Error::ModelFailed(error.message().into()))?;
    let pick = |place: &usize| {
        let port = signature.outputs.get(*place).ok_or(Error::CallerAskedForOtherOutputs)?;
        let value = outputs.get(&port.name).ok_or(Error::ModelBrokeItsContract("an output is missing"))?;
        let tensor = from_engine(value, port, room)?;
        room = room.saturating_sub(tensor.data.len());
        Ok(tensor)
    };
    wanted.iter().map(pick).collect()
}

/// One call that waits for the session.
struct Call {
    inputs: Vec<DynValue>,
    wanted: Vec<usize>,
    stop: Arc<RunOptions>,
    reply: oneshot::Sender<Result<Vec<Tensor>, Error>>,
}

/// Stops the run when its caller no longer waits for it.
struct StopsUnlessAnswered(Option<Arc<RunOptions>>);

impl Drop for StopsUnlessAnswered {
    fn drop(&mut self) {
        if let Some(stop) = &self.0 {
            // It fails on a null pointer only.
            let _ = stop.terminate();
        }
    }
}

/// Calls that wait, at most so many. The lock is held for a push or a pop.
struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    capacity: usize,
}

struct Waiting {
    calls: VecDeque<Call>,
    closed: bool,
}

impl Queue {
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
            waiting.calls.retain(|call| !call.reply.is_closed());
            if waiting.calls.len() >= self.capacity {
                return Err(Error::QueueIsFull);
            }
        }
        waiting.calls.push_back(call);
        drop(waiting);
        self.arrived.notify_one();
        Ok(())
    }

    /// The next call whose caller still waits; `None` once the queue is closed.
    fn next(&self) -> Option<Call> {
        let mut waiting = self.lock();
        loop {
            if waiting.closed {
                return None;
            }
            while let Some(call) = waiting.calls.pop_front() {
                if !call.reply.is_closed() {
                    return Some(call);
                }
            }
            waiting = self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner);
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

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queue({} of {} calls)", self.lock().calls.len(), self.capacity)
    }
}

/// Closes the queue however the thread ends, so that nobody waits for a dead one.
struct Closes(Arc<Queue>);

impl Drop for Closes {
    fn drop(&mut self) {
        self.0.close();
    }
}
