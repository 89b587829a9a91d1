//! The way to an engine: one thread that owns it, and the bounded queue before it, in which callers take turns.
//!
//! An engine that stands outside of this process is lent to a task, where calls are not joined: no call has to wake the thread then, which
//! is there for the engine's beginning, its falls and its end.
//!
//! Calls that wait at the same time may be answered by one run, as [`batch`](super::batch) has it: each leaves it when its caller goes away,
//! and the run is stopped when the last one has. Where a joined run fails each of its calls is run alone, so that one caller's inputs spoil
//! no other's answer.
//!
//! Each call brings its own [`Stop`], by which its caller stops it from outside: when the deadline passes, and when the caller goes away.
//! An engine that does not heed it keeps the thread; its callers get their answer in time all the same.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use super::batch::{Batching, Party, join, part};
use super::engine::{Engine, Stop, fits};
use super::falls::Falls;
use super::frames::MAX_INPUT;
use super::golden::Golden;
use super::worker::{Fell, Lent};
use super::{Bounds, Error, Refused, Signature, Walls};
use crate::trail::Who;
use crate::wire::tensor::{Datatype, Port, Tensor, elements};

/// How long a call of a joined run that brought the engine down waits for it to stand again.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long an engine that was told to stop loading may take to do so. Afterwards its thread is left behind.
const STOP: Duration = Duration::from_secs(5);

/// An engine on its thread, and those who wait for it. When it is dropped the thread ends by itself; a call that runs was stopped when its
/// future was dropped.
#[derive(Debug)]
pub(super) struct Queue {
    calls: End,
    signature: Signature,
    walls: Walls,
    falls: Arc<Falls>,
}

impl Queue {
    /// Has `load` make the engine, on the thread where it will live, and waits until that has run once. The stop is for all of it. Within a
    /// runtime, that may have a task for its calls.
    pub(super) fn start<L>(name: &str, bounds: &Bounds, load: L) -> Result<Self, Refused>
    where
        L: FnOnce(&Stop) -> Result<Box<dyn Engine>, Refused> + Send + 'static,
    {
        let calls = Arc::new(Calls::new(bounds.queue));
        let (ours, theirs) = (End(calls.clone()), End(calls));
        let stop = Stop::default();
        let stopped = stop.clone();
        let (shapes, plan, golden) = (bounds.warm_up.clone(), bounds.batch.clone(), bounds.golden.clone());
        let (tell, told) = mpsc::channel();
        let ready = move || {
            let mut engine = warmed_up(load(&stopped)?, &shapes, &stopped)?;
            if let Some(golden) = golden {
                let golden = Golden::read(&golden, engine.signature()).map_err(Refused::Golden)?;
                golden.hold(&mut *engine, &stopped).map_err(Refused::Golden)?;
            }
            let batching = Batching::new(plan.as_ref(), engine.signature()).map_err(Refused::Batch)?;
            Ok((engine, batching))
        };
        let runtime = Handle::try_current().ok().filter(|_| bounds.batch.is_none());
        let body = move || match ready() {
            Ok((engine, batching)) => {
                // Nobody listens any more once the load was given up; the queue is closed then, and the thread ends.
                let _ = tell.send(Ok((engine.signature().clone(), engine.walls(), engine.falls())));
                serve(engine, &batching, &theirs.0, runtime.as_ref());
            }
            Err(refused) => drop(tell.send(Err(refused))),
        };
        // The kernel shows 15 bytes of it.
        let thread = std::thread::Builder::new().name(format!("model {name}")).spawn(body);
        thread.map_err(|error| Refused::Engine(error.to_string()))?;
        let (signature, walls, falls) = wait_until_ready(&told, bounds.load, &stop)?;
        Ok(Self { calls: ours, signature, walls, falls })
    }

    /// The walls that stood around the engine when it was ready.
    pub(super) fn walls(&self) -> Walls {
        self.walls
    }

    /// What became of its workers.
    pub(super) fn falls(&self) -> &Falls {
        &self.falls
    }

    pub(super) fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Whether its thread lives.
    pub(super) fn is_open(&self) -> bool {
        !self.calls.0.lock().closed
    }

    /// How many calls wait.
    pub(super) fn waiting(&self) -> usize {
        self.calls.0.lock().count
    }

    pub(super) async fn run(
        &self,
        inputs: Vec<Tensor>,
        outputs: &[String],
        who: &Arc<Who>,
        deadline: Instant,
    ) -> Result<Vec<Tensor>, Error> {
        let wanted = self.wanted(outputs)?;
        let inputs = self.ordered(inputs)?;
        let stop = Stop::default();
        let (reply, answer) = oneshot::channel();
        self.calls.0.push(Call { inputs, wanted, who: who.clone(), stop: stop.clone(), reply })?;
        let mut stops = StopsUnlessAnswered(Some(stop));
        let answer = tokio::time::timeout_at(deadline.into(), answer).await.map_err(|_| Error::DeadlinePassed)?;
        stops.0 = None;
        answer.unwrap_or(Err(Error::EngineStopped))
    }

    /// The inputs in the model's order; each once, each of its type and shape.
    fn ordered(&self, mut inputs: Vec<Tensor>) -> Result<Vec<Tensor>, Error> {
        let Signature { inputs: ports, instead, .. } = &self.signature;
        let other = instead.iter().any(|port| inputs.first().is_some_and(|tensor| tensor.name == port.name));
        let ports = if other { instead } else { ports };
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

type Ready = (Signature, Walls, Arc<Falls>);

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
    let (zeros, ports) = (numbers(&signature.inputs, shapes, |_| None)?, signature.inputs.clone());
    let mut ran = engine.run(&zeros, &all, stop);
    drop(zeros);
    // A model may have good reason not to take zeros: it divides by them.
    if matches!(ran, Err(Error::ModelFailed(_))) && !stop.is_stopped() {
        ran = engine.run(&numbers(&ports, shapes, one)?, &all, stop).or(ran);
    }
    ran.map_err(|error| Refused::WarmUp(error.to_string()))?;
    Ok(engine)
}

/// How the number one is written; strings have none.
fn one(datatype: Datatype) -> Option<Vec<u8>> {
    let width = datatype.width()?;
    Some(match datatype {
        Datatype::Fp16 => half::f16::ONE.to_le_bytes().to_vec(),
        Datatype::Bf16 => half::bf16::ONE.to_le_bytes().to_vec(),
        Datatype::Fp32 => 1_f32.to_le_bytes().to_vec(),
        Datatype::Fp64 => 1_f64.to_le_bytes().to_vec(),
        _ => 1_u64.to_le_bytes()[..width].to_vec(),
    })
}

/// Inputs all of the same number, zeros where `number` has none, with the `shapes` that the policy gives, or 1 for each free dimension.
fn numbers(
    ports: &[Port],
    shapes: &BTreeMap<String, Vec<u64>>,
    number: impl Fn(Datatype) -> Option<Vec<u8>>,
) -> Result<Vec<Tensor>, Refused> {
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
            let data = number(port.datatype).map_or_else(|| vec![0; size], |number| number.repeat(size / number.len()));
            let tensor = Tensor { name: port.name.clone(), datatype: port.datatype, shape, data: data.into() };
            fits(&tensor, port).map_err(|error| Refused::WarmUp(error.to_string()))?;
            Ok(tensor)
        })
        .collect()
}

/// The thread's life: one run after the other, until the queue is closed.
fn serve(mut engine: Box<dyn Engine>, batching: &Batching, calls: &Arc<Calls>, runtime: Option<&Handle>) {
    let _within = runtime.map(Handle::enter);
    let mut again = None;
    loop {
        let lent = runtime.and_then(|runtime| Some((runtime, engine.lend()?)));
        let next = if let Some((runtime, lent)) = lent {
            let (give, back) = mpsc::channel();
            calls.lent(true);
            runtime.spawn(attend(lent, calls.clone(), give));
            // The runtime has ended, and the worker with it.
            let Ok(Back { lent, fell, call }) = back.recv() else { return };
            calls.lent(false);
            let closed = fell.is_none();
            engine.take_back(lent, fell);
            match call {
                Some(call) => Next::Run(vec![call]),
                None if closed => return,
                None => Next::Due,
            }
        } else {
            calls.next(batching, again)
        };
        match next {
            Next::Run(mut batch) => {
                let joined = batch.len() > 1;
                if joined {
                    batch = together(&mut *engine, batching, batch);
                }
                for Call { inputs, wanted, stop, reply, .. } in batch {
                    if joined {
                        stand_up(&mut *engine);
                    }
                    if !stop.is_stopped() {
                        // Whoever asked may have gone.
                        let _ = reply.send(engine.run(&inputs, &wanted, &stop));
                    }
                }
            }
            Next::Due => {}
            Next::Closed => return,
        }
        again = engine.tend();
    }
}

/// What the task gives back: the engine, why it is not called any longer if it fell, and a call that it had not begun with.
struct Back {
    lent: Lent,
    fell: Option<Fell>,
    call: Option<Call>,
}

/// The life of an engine that was lent: one call after the other, until it falls or the queue is closed.
async fn attend(mut lent: Lent, calls: Arc<Calls>, give: mpsc::Sender<Back>) {
    let (fell, call) = loop {
        let call = tokio::select! {
            biased;
            call = calls.called() => call,
            broken = lent.falls() => break (Some((broken, false)), None),
        };
        let Some((call, alone)) = call else { break (None, None) };
        match lent.call(&call.inputs, &call.wanted, &call.stop, alone).await {
            // Whoever asked may have gone.
            Ok(answer) => drop(call.reply.send(answer)),
            Err((broken, true)) => break (Some((broken, true)), None),
            Err((broken, false)) => break (Some((broken, false)), Some(call)),
        }
    };
    let _ = give.send(Back { lent, fell, call });
}

/// Waits until an engine that fell stands again, as long as its neighbours' fault may cost a call: whoever was in a run with what brought it
/// down is not to blame.
fn stand_up(engine: &mut dyn Engine) {
    let until = Instant::now() + PATIENCE;
    while let Some(again) = engine.tend().filter(|again| *again <= until) {
        std::thread::sleep(again.saturating_duration_since(Instant::now()));
    }
}

/// What the engine's thread has to do next.
enum Next {
    /// The calls of the next run, at least one.
    Run(Vec<Call>),
    /// The engine wanted to be asked again by now.
    Due,
    Closed,
}

/// Answers several calls by one run. Those that come back are to be run alone.
fn together(engine: &mut dyn Engine, batching: &Batching, calls: Vec<Call>) -> Vec<Call> {
    let inputs: Vec<&[Tensor]> = calls.iter().map(|call| call.inputs.as_slice()).collect();
    let joined = join(batching, &inputs);
    let mut places: Vec<usize> = calls.iter().flat_map(|call| call.wanted.iter().copied()).collect();
    places.sort_unstable();
    places.dedup();
    let (stop, left) = (Stop::default(), Arc::new(AtomicUsize::new(calls.len())));
    let stops: Vec<&Stop> = calls.iter().map(|call| &call.stop).collect();
    let outputs = until_all_leave(&stops, &stop, &left, &mut || engine.run(&joined, &places, &stop));
    let Ok(answers) = outputs.and_then(|outputs| part(batching, &inputs, &places, outputs)) else { return calls };
    for (call, answer) in calls.into_iter().zip(answers) {
        let pick = |place: &usize| answer.get(places.binary_search(place).unwrap_or(usize::MAX)).cloned();
        let picked: Option<Vec<Tensor>> = call.wanted.iter().map(pick).collect();
        let _ = call.reply.send(picked.ok_or(Error::ModelBrokeItsContract("an output is missing")));
    }
    Vec::new()
}

/// Does `work`, and fires `all` once each of `stops` has come.
fn until_all_leave<T>(stops: &[&Stop], all: &Stop, left: &Arc<AtomicUsize>, work: &mut dyn FnMut() -> T) -> T {
    let Some((first, others)) = stops.split_first() else { return work() };
    let (stop, count) = (all.clone(), left.clone());
    let leaves = move || {
        if count.fetch_sub(1, Ordering::AcqRel) == 1 {
            stop.stop();
        }
    };
    first.during(leaves, || until_all_leave(others, all, left, work))
}

/// One call that waits for the engine.
struct Call {
    inputs: Vec<Tensor>,
    wanted: Vec<usize>,
    who: Arc<Who>,
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
    /// For the thread.
    arrived: Condvar,
    /// For the task.
    heard: Notify,
    capacity: usize,
}

/// Each caller's calls in their order, and the callers in the order of their turns: whoever is served goes to the end of the line, and where there is no
/// room, [one with many calls makes some](Self::make_room) for one with few.
#[derive(Default)]
struct Waiting {
    calls: HashMap<Arc<str>, VecDeque<Call>>,
    turns: VecDeque<Arc<str>>,
    count: usize,
    closed: bool,
    /// Whether a task has the engine, and not the thread.
    lent: bool,
}

impl Waiting {
    fn push(&mut self, call: Call) {
        let of_caller = self.calls.entry(call.who.caller.clone()).or_default();
        if of_caller.is_empty() {
            self.turns.push_back(call.who.caller.clone());
        }
        of_caller.push_back(call);
        self.count += 1;
    }

    /// Takes out the last call of the caller with the most of them, for one of `caller`, who has fewer even with it. Where nobody has so many, the queue is
    /// full for everyone alike, and who came first stays.
    fn make_room(&mut self, caller: &str) -> Option<Call> {
        let has = |caller: &str| self.calls.get(caller).map_or(0, VecDeque::len);
        // Of several, the one whose turn is the last.
        let greediest = self.turns.iter().max_by_key(|caller| has(caller))?;
        if has(caller) + 1 >= has(greediest) {
            return None;
        }
        let last = self.calls.get_mut(greediest)?.pop_back()?;
        self.count -= 1;
        Some(last)
    }

    /// The first call of the caller whose turn comes after `skipped` others, if `wanted` says so; the caller's next turn is the last.
    fn pop(&mut self, skipped: usize, wanted: impl FnOnce(&Call) -> bool) -> Option<Call> {
        let caller = self.turns.get(skipped)?;
        let calls = self.calls.get_mut(caller)?;
        if !calls.front().is_some_and(wanted) {
            return None;
        }
        let (call, caller) = (calls.pop_front()?, self.turns.remove(skipped)?);
        self.count -= 1;
        if calls.is_empty() {
            self.calls.remove(&caller);
        } else {
            self.turns.push_back(caller);
        }
        Some(call)
    }

    /// Lets go of those whose callers have gone.
    fn forget_stopped(&mut self) {
        self.calls.retain(|_, calls| {
            calls.retain(|call| !call.stop.is_stopped());
            !calls.is_empty()
        });
        self.turns.retain(|caller| self.calls.contains_key(caller));
        self.count = self.calls.values().map(VecDeque::len).sum();
    }

    /// The next call whose caller still waits.
    fn next(&mut self) -> Option<Call> {
        while let Some(call) = self.pop(0, |_| true) {
            if !call.stop.is_stopped() {
                return Some(call);
            }
        }
        None
    }

    /// Adds to a run whatever fits, a call of each caller in turn.
    fn fill(&mut self, party: &mut Party<'_>, batch: &mut Vec<Call>) {
        let mut skipped = 0;
        while skipped < self.turns.len() && !party.is_full() {
            match self.pop(skipped, |call| call.stop.is_stopped() || party.takes(&call.who, &call.inputs)) {
                Some(call) if call.stop.is_stopped() => {}
                Some(call) => batch.push(call),
                None => skipped += 1,
            }
        }
    }
}

impl Calls {
    fn new(capacity: usize) -> Self {
        Self { waiting: Mutex::default(), arrived: Condvar::new(), heard: Notify::new(), capacity }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, call: Call) -> Result<(), Error> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(Error::EngineStopped);
        }
        if waiting.count >= self.capacity {
            // Those whose callers have gone must not keep the living out.
            waiting.forget_stopped();
        }
        let mut gone = None;
        if waiting.count >= self.capacity {
            gone = Some(waiting.make_room(&call.who.caller).ok_or(Error::QueueIsFull)?);
        }
        waiting.push(call);
        self.wake(waiting);
        if let Some(gone) = gone {
            let _ = gone.reply.send(Err(Error::QueueIsFull));
        }
        Ok(())
    }

    /// There is something to look at, for whoever of the two has the engine.
    fn wake(&self, waiting: MutexGuard<'_, Waiting>) {
        let lent = waiting.lent;
        drop(waiting);
        if lent { self.heard.notify_one() } else { self.arrived.notify_one() }
    }

    /// Whether a task has the engine from now on. Whoever gets it looks at what waits first.
    fn lent(&self, lent: bool) {
        self.lock().lent = lent;
    }

    /// The next call, for which a task waits, and whether it is the only one; none once the queue is closed.
    async fn called(&self) -> Option<(Call, bool)> {
        loop {
            {
                let mut waiting = self.lock();
                if waiting.closed {
                    return None;
                }
                if let Some(call) = waiting.next() {
                    return Some((call, waiting.count == 0));
                }
            }
            self.heard.notified().await;
        }
    }

    /// The calls of the next run, or that it is `due`.
    fn next(&self, batching: &Batching, due: Option<Instant>) -> Next {
        let mut waiting = self.lock();
        let first = loop {
            if waiting.closed {
                return Next::Closed;
            }
            if let Some(call) = waiting.next() {
                break call;
            }
            waiting = match due.map(|due| due.saturating_duration_since(Instant::now())) {
                None => self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return Next::Due,
                Some(left) => self.arrived.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        };
        let party = Party::of(batching, &first.who, &first.inputs);
        let mut batch = vec![first];
        let Some(mut party) = party else { return Next::Run(batch) };
        let until = Instant::now() + batching.delay;
        loop {
            waiting.fill(&mut party, &mut batch);
            let left = until.saturating_duration_since(Instant::now());
            if party.is_full() || left.is_zero() || waiting.closed {
                return Next::Run(batch);
            }
            waiting = self.arrived.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whoever waits is told that the engine stopped.
    fn close(&self) {
        let mut waiting = self.lock();
        *waiting = Waiting { closed: true, lent: waiting.lent, ..Waiting::default() };
        self.wake(waiting);
    }
}

impl std::fmt::Debug for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} calls", self.lock().count, self.capacity)
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
mod tests;
