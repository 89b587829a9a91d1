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
    let signature = Signature { inputs: vec![], instead: vec![], outputs: vec![output], longest: None, apart: false };
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
    let signature = Signature { inputs: vec![port.clone()], instead: vec![], outputs: vec![port], longest: None, apart: false };
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
    let signature = Signature { inputs: vec![], instead: vec![], outputs: vec![], longest: None, apart: false };
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
    let signature = Signature { inputs: vec![port.clone()], instead: vec![], outputs: vec![port], longest: None, apart: false };
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

/// Lets a call in where the queue is full, and waits until somebody was sent away for it.
async fn push_in(queue: &Arc<Queue>, caller: &str, numbers: &[f32]) -> tokio::task::JoinHandle<Result<Vec<Tensor>, Error>> {
    let (queue, caller, numbers) = (queue.clone(), who(caller), rows(numbers));
    let call = tokio::spawn(async move { queue.run(vec![numbers], &[], &caller, soon()).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    call
}

#[tokio::test(flavor = "multi_thread")]
async fn one_caller_with_many_calls_does_not_keep_out_one_with_few() {
    let (queue, open, told) = doubler(2);
    let first = busy(&queue).await;
    let mut many = Vec::new();
    for number in 0..super::super::DEFAULT_QUEUE {
        many.push(ask(&queue, "greedy", &[1_000.0 + number as f32]).await);
    }
    assert_eq!(ask(&queue, "greedy", &[1.0]).await.await.unwrap(), Err(Error::QueueIsFull), "who has the most gets no more");
    let few = [push_in(&queue, "modest", &[2.0]).await, push_in(&queue, "modest", &[3.0]).await];
    assert_eq!(queue.waiting(), super::super::DEFAULT_QUEUE);
    (0..200).for_each(|_| open.send(()).unwrap());
    first.await.unwrap().unwrap();
    for call in few {
        call.await.unwrap().unwrap();
    }
    assert_eq!(told.try_iter().nth(1).unwrap(), [1_000.0, 2.0], "they take turns");
    let mut answers = Vec::new();
    for call in many {
        answers.push(call.await.unwrap());
    }
    let (answered, sent_away) = answers.split_at(answers.len() - 2);
    assert!(answered.iter().all(Result::is_ok), "the calls that came last make room");
    assert_eq!(sent_away, [Err(Error::QueueIsFull), Err(Error::QueueIsFull)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_has_many_calls_the_queue_is_full_for_everyone_alike() {
    let (queue, open, _told) = doubler(2);
    let first = busy(&queue).await;
    let mut calls = Vec::new();
    for caller in 0..super::super::DEFAULT_QUEUE {
        calls.push(ask(&queue, &caller.to_string(), &[1.0]).await);
    }
    assert_eq!(ask(&queue, "late", &[2.0]).await.await.unwrap(), Err(Error::QueueIsFull));
    (0..200).for_each(|_| open.send(()).unwrap());
    first.await.unwrap().unwrap();
    for call in calls {
        call.await.unwrap().unwrap();
    }
}
