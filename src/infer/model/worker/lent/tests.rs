//! A worker that says what it likes, as tasks meet it. A real one behind its walls is in `tests/it/walls.rs`.

use std::collections::VecDeque;
use std::sync::mpsc;
use std::time::Duration;

use super::super::super::Bounds;
use super::super::super::engine::Engine;
use super::super::super::frames::{Frame, Kind, Reader, Wire};
use super::super::super::queue::Queue;
use super::super::LEAST_GRACE;
use super::super::tests::{floats, of, process};
use super::*;
use crate::trail::Who;
use crate::wire::tensor::{Datatype, Port};

/// Bytes of an answer: several times what a socket holds.
const ROOM: usize = 8 << 20;

fn signature() -> Arc<Signature> {
    let port = Port { name: "y".into(), datatype: Datatype::Fp32, shape: vec![None] };
    Arc::new(Signature { inputs: vec![port.clone()], instead: vec![], outputs: vec![port], longest: None, apart: false })
}

fn lent() -> (Lent, Wire, net::UnixStream) {
    let (process, peer, heeds) = process();
    let lent = Lent::new(process, signature(), ROOM, 6).unwrap_or_else(|_| panic!("it is not watched"));
    (lent, peer, heeds)
}

/// What the worker hears next.
fn hears(peer: &mut Wire) -> Result<(u64, Vec<Tensor>), Broken> {
    let Frame { call, body, .. } = peer.receive(|kind| (kind == Kind::Run).then_some(ROOM + 1000), &mut || true)?;
    let mut reader = Reader::new(body);
    assert_eq!((reader.number()?, reader.places(1)?), (0, vec![0]));
    Ok((call, reader.tensors(&signature().inputs, &[0])?))
}

/// A worker that gives back what it hears, until its socket ends or it has answered so often.
fn echoes(mut peer: Wire, times: usize) -> std::thread::JoinHandle<Vec<u64>> {
    std::thread::spawn(move || {
        let mut calls = Vec::new();
        while calls.len() < times
            && let Ok((call, tensors)) = hears(&mut peer)
        {
            calls.push(call);
            peer.send(Kind::Answer, call, &of(&[(0, &tensors[0])]), &mut || true).unwrap();
        }
        calls
    })
}

#[tokio::test]
async fn calls_are_answered_whether_small_or_larger_than_the_socket() {
    let (mut lent, peer, _heeds) = lent();
    let worker = echoes(peer, usize::MAX);
    for length in [1, 0, 1 << 20, 3, ROOM / 4, 2] {
        let sent = vec![floats(&vec![0.5; length])];
        assert_eq!(lent.call(&sent, &[0], &Stop::default(), true).await.unwrap().unwrap(), sent, "{length}");
    }
    assert!(matches!(
        lent.call(&[floats(&vec![0.0; ROOM / 4 + 1])], &[0], &Stop::default(), true).await,
        Err((Broken::Malformed(_), true))
    ));
    assert_eq!(lent.calls, 13);
    drop(lent);
    assert_eq!(worker.join().unwrap(), (7..=13).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_is_given_back_blocks_again_and_counts_on() {
    let (mut lent, peer, _heeds) = lent();
    let worker = echoes(peer, 2);
    let sent = vec![floats(&[1.0])];
    lent.call(&sent, &[0], &Stop::default(), true).await.unwrap().unwrap();
    let (mut process, calls) = lent.end();
    assert_eq!(calls, 7);
    assert!(!rustix::fs::fcntl_getfl(process.wire.socket()).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
    let body = asked(&signature(), &sent, &[0]).unwrap();
    let answer = process.call(8, &body, &[0], (&signature().outputs, ROOM), &Stop::default()).unwrap().unwrap();
    assert_eq!((answer, worker.join().unwrap()), (sent, vec![7, 8]));
}

#[tokio::test]
async fn a_stop_is_passed_on_and_who_does_not_heed_it_is_given_up_after_the_grace() {
    let (mut lent, _peer, heeds) = lent();
    let mut heeds = Wire::new(heeds);
    let sent = vec![floats(&[1.0])];
    for (call, early) in [(7, true), (8, false)] {
        let stop = Stop::default();
        if early {
            stop.stop();
        }
        let stops = stop.clone();
        let late = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            stops.stop();
        });
        let from = Instant::now();
        assert!(matches!(lent.call(&sent, &[0], &stop, true).await, Err((Broken::GivenUp, true))));
        assert!(from.elapsed() >= LEAST_GRACE && from.elapsed() < 10 * LEAST_GRACE, "{:?}", from.elapsed());
        assert_eq!(heeds.receive(|kind| (kind == Kind::Stop).then_some(0), &mut || true).unwrap().call, call);
        late.await.unwrap();
    }
}

#[tokio::test]
async fn a_worker_that_takes_a_call_by_and_by_is_given_up_after_the_grace_too() {
    let (mut lent, peer, _heeds) = lent();
    let slow = std::thread::spawn(move || {
        let mut some = [0; 16 << 10];
        while std::io::Read::read(&mut peer.socket(), &mut some).is_ok_and(|read| read > 0) {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let (stop, from) = (Stop::default(), Instant::now());
    let stops = stop.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        stops.stop();
    });
    assert!(matches!(lent.call(&[floats(&vec![0.0; ROOM / 4])], &[0], &stop, true).await, Err((Broken::GivenUp, true))));
    assert!(from.elapsed() >= LEAST_GRACE && from.elapsed() < 5 * LEAST_GRACE, "{:?}", from.elapsed());
    drop(lent);
    slow.join().unwrap();
}

#[tokio::test]
async fn a_worker_whose_calls_take_long_has_longer_to_heed_a_stop() {
    let (mut lent, mut peer, _heeds) = lent();
    let takes = LEAST_GRACE + LEAST_GRACE / 2;
    let worker = std::thread::spawn(move || {
        for _ in 0..2 {
            let (call, tensors) = hears(&mut peer).unwrap();
            std::thread::sleep(takes);
            peer.send(Kind::Answer, call, &of(&[(0, &tensors[0])]), &mut || true).unwrap();
        }
        peer
    });
    let (sent, given_up) = (vec![floats(&[1.0])], Stop::default());
    lent.call(&sent, &[0], &Stop::default(), true).await.unwrap().unwrap();
    given_up.stop();
    assert_eq!(lent.call(&sent, &[0], &given_up, true).await.unwrap().unwrap(), sent);
    // What was learned goes with the process.
    assert!(lent.end().0.grace.length() >= 2 * takes);
    worker.join().unwrap();
}

#[tokio::test]
async fn the_stop_of_one_call_does_not_stop_the_next() {
    let (mut lent, mut peer, _heeds) = lent();
    let worker = std::thread::spawn(move || {
        for wait in [Duration::ZERO, LEAST_GRACE + Duration::from_millis(200)] {
            let (call, tensors) = hears(&mut peer).unwrap();
            std::thread::sleep(wait);
            peer.send(Kind::Answer, call, &of(&[(0, &tensors[0])]), &mut || true).unwrap();
        }
        peer
    });
    let sent = vec![floats(&[1.0])];
    // Nobody waited for the word of this stop, so it is still there in the next call, which takes longer than the grace.
    let stop = Stop::default();
    stop.stop();
    assert_eq!(lent.call(&sent, &[0], &stop, true).await.unwrap().unwrap(), sent);
    lent.stopped.notify_one();
    assert_eq!(lent.call(&sent, &[0], &Stop::default(), true).await.unwrap().unwrap(), sent);
    worker.join().unwrap();
}

#[tokio::test]
async fn an_answer_is_looked_for_as_long_as_it_is_found_and_seldom_where_it_is_not() {
    let (mut lent, mut peer, _heeds) = lent();
    let sent = [floats(&[1.0])];
    let mut at_once = async |lent: &mut Lent, alone| {
        // It lies in the socket before anybody looks.
        peer.send(Kind::Answer, lent.calls + 1, &of(&[(0, &sent[0])]), &mut || true).unwrap();
        lent.call(&sent, &[0], &Stop::default(), alone).await.unwrap().unwrap();
        hears(&mut peer).unwrap();
        (lent.in_vain, lent.waits)
    };
    assert_eq!(at_once(&mut lent, true).await, (0, 0));
    // What no call needs to wait for is not counted, nor what was not looked for.
    assert_eq!((at_once(&mut lent, false).await, lent.calls), ((0, 0), 8));
    lent.in_vain = 1;
    assert_eq!(at_once(&mut lent, false).await, (1, 0));
    lent.waits = 2;
    assert_eq!(at_once(&mut lent, true).await, (1, 1));
    assert_eq!(at_once(&mut lent, false).await, (1, 0));
    assert_eq!(at_once(&mut lent, true).await, (0, 0));
    drop(lent);

    let (mut lent, mut peer, _heeds) = self::lent();
    let slow = std::thread::spawn(move || {
        while let Ok((call, tensors)) = hears(&mut peer) {
            std::thread::sleep(10 * SOON);
            peer.send(Kind::Answer, call, &of(&[(0, &tensors[0])]), &mut || true).unwrap();
        }
    });
    let mut looked = Vec::new();
    for call in 1..=260 {
        let before = lent.waits;
        lent.call(&sent, &[0], &Stop::default(), true).await.unwrap().unwrap();
        if before == 0 {
            looked.push((call, lent.in_vain, lent.waits));
        }
    }
    let most = (1 << MOST_IN_VAIN) - 2;
    assert_eq!(
        looked,
        [(1, 1, 0), (2, 2, 2), (5, 3, 6), (12, 4, 14), (27, 5, 30), (58, 6, most), (121, 6, most), (184, 6, most), (247, 6, most)]
    );
    drop(lent);
    slow.join().unwrap();
}

#[tokio::test]
async fn a_worker_that_ends_or_says_what_nobody_asked_for_is_noticed_between_two_calls() {
    let (mut lent, peer, _heeds) = lent();
    assert!(tokio::time::timeout(Duration::from_millis(50), lent.falls()).await.is_err(), "it is silent, and stands");
    peer.send(Kind::Answer, 7, &of(&[(0, &floats(&[1.0]))]), &mut || true).unwrap();
    assert!(matches!(lent.falls().await, Broken::Malformed("it came unasked")));

    let (mut lent, peer, _heeds) = self::lent();
    let worker = echoes(peer, 1);
    lent.call(&[floats(&[1.0])], &[0], &Stop::default(), true).await.unwrap().unwrap();
    worker.join().unwrap();
    assert!(matches!(lent.falls().await, Broken::Ended));
    assert!(matches!(lent.call(&[floats(&[1.0])], &[0], &Stop::default(), true).await, Err((Broken::Ended, false))), "it had not begun");
}

#[tokio::test]
async fn what_came_unasked_is_not_forgotten_where_nobody_waited_for_it_to_the_end() {
    let (mut lent, peer, _heeds) = lent();
    peer.send(Kind::Answer, 7, &of(&[(0, &floats(&[1.0; 40_000]))]), &mut || true).unwrap();
    while lent.process.wire.unread() == 0 {
        // A call that comes in between.
        tokio::select! { biased; () = tokio::task::yield_now() => {}, _ = lent.falls() => {} }
    }
    assert!(matches!(lent.falls().await, Broken::Malformed("it came unasked")));
}

#[tokio::test]
async fn an_answer_and_what_follows_it_unasked_are_told_apart() {
    let (mut lent, mut peer, _heeds) = lent();
    let worker = std::thread::spawn(move || {
        let (call, tensors) = hears(&mut peer).unwrap();
        for call in [call, call + 1] {
            peer.send(Kind::Answer, call, &of(&[(0, &tensors[0])]), &mut || true).unwrap();
        }
        peer
    });
    lent.call(&[floats(&[1.0])], &[0], &Stop::default(), true).await.unwrap().unwrap();
    let _peer = worker.join().unwrap();
    assert!(matches!(lent.falls().await, Broken::Malformed("it came unasked")));
}

/// An engine on scripted workers, one after the other. It tells what its thread does.
struct Lends {
    signature: Arc<Signature>,
    standing: VecDeque<Process>,
    tells: mpsc::Sender<&'static str>,
    begun: bool,
}

impl Engine for Lends {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, inputs: &[Tensor], _: &[usize], _: &Stop) -> Result<Vec<Tensor>, Error> {
        // The first is the one on zeros.
        if std::mem::replace(&mut self.begun, true) {
            let _ = self.tells.send("ran");
        }
        Ok(inputs.to_vec())
    }

    fn lend(&mut self) -> Option<Lent> {
        Lent::new(self.standing.pop_front()?, self.signature.clone(), ROOM, 0).ok()
    }

    fn take_back(&mut self, lent: Lent, fell: Option<Fell>) {
        drop(lent.end());
        let _ = self.tells.send(match fell {
            None => "closed",
            Some((_, true)) => "fell with a call",
            Some((_, false)) => "fell",
        });
    }
}

fn queue<const N: usize>() -> (Queue, [Wire; N], mpsc::Receiver<&'static str>) {
    let mut standing = VecDeque::new();
    let peers = [(); N].map(|()| {
        let (process, peer, heeds) = process();
        // A worker that heeds no stop.
        std::mem::forget(heeds);
        standing.push_back(process);
        peer
    });
    let (tells, told) = mpsc::channel();
    let engine = Lends { signature: signature(), standing, tells, begun: false };
    let queue = Queue::start("lends", &Bounds::default(), move |_| Ok(Box::new(engine))).unwrap();
    (queue, peers, told)
}

async fn ask(queue: &Queue) -> Result<Vec<Tensor>, Error> {
    let who = Arc::new(Who { caller: "c".into(), tenant: "t".into(), tier: "".into(), method: "api_key" });
    queue.run(vec![floats(&[1.0])], &[], &who, Instant::now() + Duration::from_secs(20)).await
}

/// What the thread did next.
fn next(told: &mpsc::Receiver<&'static str>) -> &'static str {
    told.recv_timeout(Duration::from_secs(20)).unwrap_or_else(|error| match error {
        mpsc::RecvTimeoutError::Disconnected => "ended",
        mpsc::RecvTimeoutError::Timeout => "nothing",
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standing_worker_is_called_by_a_task_and_the_thread_only_hears_of_its_end() {
    let (queue, [peer], told) = queue();
    let worker = echoes(peer, usize::MAX);
    for _ in 0..100 {
        assert_eq!(ask(&queue).await, Ok(vec![floats(&[1.0])]));
    }
    assert!(told.try_recv().is_err());
    drop(queue);
    assert_eq!((next(&told), next(&told)), ("closed", "ended"));
    assert_eq!(worker.join().unwrap().len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_falls_in_a_call_costs_that_call_and_the_next_worker_is_lent_too() {
    let (queue, [mut first, second], told) = queue();
    let worker = std::thread::spawn(move || hears(&mut first).map(drop));
    assert_eq!(ask(&queue).await, Err(Error::EngineStopped));
    worker.join().unwrap().unwrap();
    assert_eq!(next(&told), "fell with a call");
    let worker = echoes(second, usize::MAX);
    assert_eq!(ask(&queue).await, Ok(vec![floats(&[1.0])]));
    assert!(told.try_recv().is_err(), "the second answered it");
    drop(queue);
    assert_eq!((next(&told), worker.join().unwrap().len()), ("closed", 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_falls_between_two_calls_costs_none() {
    let (queue, [first, second], told) = queue();
    drop(first);
    assert_eq!(next(&told), "fell");
    let worker = echoes(second, 1);
    assert_eq!(ask(&queue).await, Ok(vec![floats(&[1.0])]));
    worker.join().unwrap();
    // None stands any more: the thread answers by itself.
    assert_eq!(next(&told), "fell");
    assert_eq!((ask(&queue).await, next(&told)), (Ok(vec![floats(&[1.0])]), "ran"));
}

#[tokio::test]
async fn a_call_that_a_fallen_worker_had_not_begun_with_is_answered_all_the_same() {
    let (queue, [peer], told) = queue();
    let worker = echoes(peer, 1);
    ask(&queue).await.unwrap();
    // It has ended, and the runtime, which is this thread, has not heard of it.
    worker.join().unwrap();
    assert_eq!(ask(&queue).await, Ok(vec![floats(&[1.0])]));
    assert_eq!((next(&told), next(&told)), ("fell", "ran"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_dropped_in_a_call_ends_with_it() {
    let (queue, [mut peer], told) = queue();
    let heard = std::thread::spawn(move || hears(&mut peer).map(|_| peer));
    let _ = tokio::time::timeout(Duration::from_millis(50), ask(&queue)).await;
    // It does not answer, and heeds no stop.
    let _peer = heard.join().unwrap().unwrap();
    drop(queue);
    assert_eq!((next(&told), next(&told)), ("fell with a call", "ended"));
}

#[test]
fn when_the_runtime_ends_so_do_the_worker_and_its_thread() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (queue, [peer], told) = runtime.block_on(async { queue() });
    let worker = echoes(peer, usize::MAX);
    runtime.block_on(ask(&queue)).unwrap();
    drop(runtime);
    // Its socket has ended, and nobody took it back.
    assert_eq!(worker.join().unwrap().len(), 1);
    assert_eq!(next(&told), "ended");
    assert!(!queue.is_open());
}
