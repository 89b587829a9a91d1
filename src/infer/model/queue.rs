//! The way to an engine: one thread that owns it, and the bounded queue before it, in which callers take turns.
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

use tokio::sync::oneshot;

use super::batch::{Batching, Party, join, part};
use super::engine::{Engine, Stop, fits};
use super::frames::MAX_INPUT;
use super::{Bounds, Error, Refused, Signature, Walls};
use crate::trail::Who;
use crate::wire::tensor::{Port, Tensor, elements};

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
        let (shapes, plan) = (bounds.warm_up.clone(), bounds.batch.clone());
        let (tell, told) = mpsc::channel();
        let ready = move || {
            let engine = warmed_up(load(&stopped)?, &shapes, &stopped)?;
            let batching = Batching::new(plan.as_ref(), engine.signature()).map_err(Refused::Batch)?;
            Ok((engine, batching))
        };
        let body = move || match ready() {
            Ok((engine, batching)) => {
                // Nobody listens any more once the load was given up; the queue is closed then, and the thread ends.
                let _ = tell.send(Ok((engine.signature().clone(), engine.walls())));
                serve(engine, &batching, &theirs.0);
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

    /// Whether its thread lives.
    pub(super) fn is_open(&self) -> bool {
        !self.calls.0.lock().closed
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

#[cfg(test)]
impl Queue {
    /// How many calls wait.
    pub(super) fn waiting(&self) -> usize {
        self.calls.0.lock().count
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

/// The thread's life: one run after the other, until the queue is closed.
fn serve(mut engine: Box<dyn Engine>, batching: &Batching, calls: &Calls) {
    let mut again = None;
    loop {
        match calls.next(batching, again) {
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
    arrived: Condvar,
    capacity: usize,
}

/// Each caller's calls in their order, and the callers in the order of their turns: whoever is served goes to the end of the line, so that
/// one with many calls does not keep out one with few.
#[derive(Default)]
struct Waiting {
    calls: HashMap<Arc<str>, VecDeque<Call>>,
    turns: VecDeque<Arc<str>>,
    count: usize,
    closed: bool,
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
        Self { waiting: Mutex::default(), arrived: Condvar::new(), capacity }
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
            if waiting.count >= self.capacity {
                return Err(Error::QueueIsFull);
            }
        }
        waiting.push(call);
        drop(waiting);
        self.arrived.notify_one();
        Ok(())
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
        *waiting = Waiting { closed: true, ..Waiting::default() };
        drop(waiting);
        self.arrived.notify_one();
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
mod tests {
    use super::*;
    use crate::infer::model::batch::Plan;
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
        let signature = Signature { inputs: vec![], instead: vec![], outputs: vec![output], longest: None };
        Queue::start("scripted", &Bounds::default(), |_| Ok(Box::new(Scripted(signature, answers, false)))).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn who(caller: &str) -> Arc<Who> {
        Arc::new(Who { caller: caller.into(), tenant: "t".into(), tier: "".into(), method: "api_key" })
    }

    fn anyone() -> Arc<Who> {
        who("anyone")
    }

    /// An engine that doubles numbers, waits at `gate` before each run after the first, tells the rows of each run, and fails where a row is
    /// negative.
    struct Doubler(Signature, std::sync::mpsc::Receiver<()>, mpsc::Sender<Vec<f32>>, bool);

    impl Engine for Doubler {
        fn signature(&self) -> &Signature {
            &self.0
        }

        fn run(&mut self, inputs: &[Tensor], _: &[usize], stop: &Stop) -> Result<Vec<Tensor>, Error> {
            if !std::mem::replace(&mut self.3, true) {
                return Ok(vec![rows(&[0.0])]);
            }
            while self.1.try_recv().is_err() {
                if stop.is_stopped() {
                    return Err(Error::EngineStopped);
                }
                std::thread::yield_now();
            }
            let numbers: Vec<f32> = inputs[0].data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let _ = self.2.send(numbers.clone());
            if numbers.iter().any(|number| *number < 0.0) {
                return Err(Error::ModelFailed("negative".into()));
            }
            Ok(vec![rows(&numbers.iter().map(|number| number * 2.0).collect::<Vec<_>>())])
        }
    }

    fn rows(numbers: &[f32]) -> Tensor {
        let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        Tensor { name: "x".into(), datatype: Datatype::Fp32, shape: vec![numbers.len() as u64], data: data.into() }
    }

    fn doubler(max: usize) -> (Arc<Queue>, mpsc::Sender<()>, mpsc::Receiver<Vec<f32>>) {
        let (open, gate) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let port = Port { name: "x".into(), datatype: Datatype::Fp32, shape: vec![None] };
        let signature = Signature { inputs: vec![port.clone()], instead: vec![], outputs: vec![port], longest: None };
        let batch = Some(Plan { max, delay: Duration::ZERO, across_tenants: false, pad: BTreeMap::new() });
        let bounds = Bounds { batch, ..Bounds::default() };
        let queue = Queue::start("doubler", &bounds, move |_| Ok(Box::new(Doubler(signature, gate, tell, false)))).unwrap();
        (Arc::new(queue), open, told)
    }

    /// Lets a call in and waits until it is in its place.
    async fn ask(queue: &Arc<Queue>, caller: &str, numbers: &[f32]) -> tokio::task::JoinHandle<Result<Vec<Tensor>, Error>> {
        let (queue, caller, numbers, before) = (queue.clone(), who(caller), rows(numbers), queue.waiting());
        let asked = queue.clone();
        let call = tokio::spawn(async move { asked.run(vec![numbers], &[], &caller, soon()).await });
        while queue.waiting() == before && !call.is_finished() {
            tokio::task::yield_now().await;
        }
        call
    }

    /// Has the engine busy with a first call, so that what comes after it waits.
    async fn busy(queue: &Arc<Queue>) -> tokio::task::JoinHandle<Result<Vec<Tensor>, Error>> {
        let first = queue.clone();
        let call = tokio::spawn(async move { first.run(vec![rows(&[100.0])], &[], &anyone(), soon()).await });
        while queue.waiting() > 0 || Arc::strong_count(queue) < 2 {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        call
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
    async fn an_engine_is_tended_after_each_run_and_when_it_wanted_to_be() {
        let (tell, told) = mpsc::channel();
        let signature = Signature { inputs: vec![], instead: vec![], outputs: vec![], longest: None };
        let queue = Queue::start("tended", &Bounds::default(), |_| Ok(Box::new(Tended(signature, 3, tell)))).unwrap();
        assert!(told.try_recv().is_err());
        queue.run(vec![], &[], &anyone(), soon()).await.unwrap();
        for _ in 0..3 {
            told.recv_timeout(Duration::from_secs(20)).unwrap();
        }
        assert!(told.recv_timeout(Duration::from_millis(20)).is_err());
        queue.run(vec![], &[], &anyone(), soon()).await.unwrap();
        told.recv_timeout(Duration::from_secs(20)).unwrap();
    }

    #[tokio::test]
    async fn calls_that_waited_together_are_answered_by_one_run_each_with_its_own() {
        let (queue, open, told) = doubler(8);
        let first = busy(&queue).await;
        let calls = [ask(&queue, "a", &[1.0, 2.0]).await, ask(&queue, "b", &[3.0]).await, ask(&queue, "a", &[4.0]).await];
        (0..2).for_each(|_| open.send(()).unwrap());
        first.await.unwrap().unwrap();
        let [a, b, again] = calls;
        assert_eq!(a.await.unwrap().unwrap(), [rows(&[2.0, 4.0])]);
        assert_eq!(b.await.unwrap().unwrap(), [rows(&[6.0])]);
        assert_eq!(again.await.unwrap().unwrap(), [rows(&[8.0])]);
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [vec![100.0], vec![1.0, 2.0, 3.0, 4.0]]);
    }

    #[tokio::test]
    async fn one_callers_bad_inputs_spoil_no_others_answer() {
        let (queue, open, _told) = doubler(8);
        let first = busy(&queue).await;
        let (good, bad) = (ask(&queue, "a", &[1.0]).await, ask(&queue, "b", &[-1.0]).await);
        (0..4).for_each(|_| open.send(()).unwrap());
        first.await.unwrap().unwrap();
        assert_eq!(good.await.unwrap().unwrap(), [rows(&[2.0])]);
        assert!(matches!(bad.await.unwrap(), Err(Error::ModelFailed(_))));
    }

    /// An engine that doubles numbers, falls where one is negative, and stands again a moment later.
    struct Falls(Signature, Option<Instant>, mpsc::Receiver<()>, bool);

    impl Engine for Falls {
        fn signature(&self) -> &Signature {
            &self.0
        }

        fn run(&mut self, inputs: &[Tensor], _: &[usize], _: &Stop) -> Result<Vec<Tensor>, Error> {
            let numbers: Vec<f32> = inputs[0].data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            // The first run is the one on zeros; the second waits until the others are in their places.
            if numbers == [100.0] && !std::mem::replace(&mut self.3, true) {
                let _ = self.2.recv();
            }
            if self.1.is_some() || numbers.iter().any(|number| *number < 0.0) {
                self.1.get_or_insert_with(|| Instant::now() + Duration::from_millis(50));
                return Err(Error::EngineStopped);
            }
            Ok(vec![rows(&numbers.iter().map(|number| number * 2.0).collect::<Vec<_>>())])
        }

        fn tend(&mut self) -> Option<Instant> {
            self.1 = self.1.filter(|until| Instant::now() < *until);
            self.1
        }
    }

    #[tokio::test]
    async fn who_shared_a_run_with_what_brought_the_engine_down_is_answered_all_the_same() {
        let (open, gate) = mpsc::channel();
        let port = Port { name: "x".into(), datatype: Datatype::Fp32, shape: vec![None] };
        let signature = Signature { inputs: vec![port.clone()], instead: vec![], outputs: vec![port], longest: None };
        let batch = Some(Plan { max: 8, delay: Duration::ZERO, across_tenants: false, pad: BTreeMap::new() });
        let bounds = Bounds { batch, ..Bounds::default() };
        let queue = Arc::new(Queue::start("falls", &bounds, move |_| Ok(Box::new(Falls(signature, None, gate, false)))).unwrap());
        let first = busy(&queue).await;
        let calls = [ask(&queue, "a", &[1.0]).await, ask(&queue, "bad", &[-1.0]).await, ask(&queue, "c", &[3.0]).await];
        open.send(()).unwrap();
        first.await.unwrap().unwrap();
        let [a, bad, c] = calls;
        assert_eq!(a.await.unwrap().unwrap(), [rows(&[2.0])]);
        assert_eq!(bad.await.unwrap(), Err(Error::EngineStopped));
        assert_eq!(c.await.unwrap().unwrap(), [rows(&[6.0])]);
    }

    #[tokio::test]
    async fn callers_take_turns_however_many_calls_one_has() {
        let (queue, open, told) = doubler(2);
        let first = busy(&queue).await;
        let mut calls = Vec::new();
        for number in [1.0, 2.0, 3.0, 4.0] {
            calls.push(ask(&queue, "greedy", &[number]).await);
        }
        calls.push(ask(&queue, "modest", &[50.0]).await);
        (0..4).for_each(|_| open.send(()).unwrap());
        first.await.unwrap().unwrap();
        for call in calls {
            call.await.unwrap().unwrap();
        }
        assert_eq!(told.try_iter().nth(1).unwrap(), [1.0, 50.0], "the second caller is in the very next run");
    }

    #[tokio::test]
    async fn a_cancelled_call_leaves_the_batch_and_the_last_one_stops_it() {
        let (queue, open, told) = doubler(8);
        let first = busy(&queue).await;
        let (gone, stays) = (ask(&queue, "a", &[1.0]).await, ask(&queue, "b", &[2.0]).await);
        gone.abort();
        let _ = gone.await;
        (0..2).for_each(|_| open.send(()).unwrap());
        first.await.unwrap().unwrap();
        assert_eq!(stays.await.unwrap().unwrap(), [rows(&[4.0])]);
        assert_eq!(told.try_iter().nth(1).unwrap(), [2.0], "who had gone before the run is not in it");

        // Both go away while the run waits for its gate: it is stopped, and the next call is answered.
        let first = busy(&queue).await;
        let both = [ask(&queue, "a", &[5.0]).await, ask(&queue, "b", &[6.0]).await];
        open.send(()).unwrap();
        first.await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        both.iter().for_each(tokio::task::JoinHandle::abort);
        for call in both {
            let _ = call.await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        // The gate first: the engine is idle and may take the call before anybody sees it wait.
        open.send(()).unwrap();
        let next = ask(&queue, "c", &[7.0]).await;
        assert_eq!(next.await.unwrap().unwrap(), [rows(&[14.0])]);
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
        assert_eq!(queue.run(vec![], &[], &anyone(), deadline).await, Err(Error::DeadlinePassed));
        assert_eq!(queue.run(vec![], &[], &anyone(), soon()).await, Ok(vec![]));
    }

    #[tokio::test]
    async fn when_an_engine_dies_its_callers_are_told_and_nobody_else_waits() {
        let queue = start(|_| panic!("on purpose"));
        for _ in 0..2 {
            assert_eq!(queue.run(vec![], &[], &anyone(), soon()).await, Err(Error::EngineStopped));
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
