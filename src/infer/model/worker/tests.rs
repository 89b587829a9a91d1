//! Both sides against a peer that says what it likes. What a real worker does behind its walls is in `tests/it/walls.rs`, which has the
//! program to start one.

use std::io::Write;

use bytes::Bytes;
use proptest::prelude::*;

use super::super::frames::HEAD;
use super::*;
use crate::wire::tensor::Port;

fn port(name: &str, datatype: Datatype, shape: &[Option<u64>]) -> Port {
    Port { name: name.into(), datatype, shape: shape.into() }
}

/// Bytes of an answer.
const ROOM: usize = 64;

fn outputs() -> Vec<Port> {
    vec![port("y", Datatype::Fp32, &[None]), port("words", Datatype::Bytes, &[None])]
}

fn launch() -> Launch {
    let signature =
        Signature { inputs: vec![port("x", Datatype::Fp32, &[None])], instead: vec![], longest: None, apart: false, outputs: outputs() };
    Launch {
        name: "test".into(),
        inmate: Inmate::OnnxRuntime,
        options: vec![],
        library: None,
        files: Parcel::default(),
        isolation: Isolation::Required,
        memory: 1 << 30,
        room: ROOM,
        limit: Duration::from_secs(5),
        signature: Some(signature),
    }
}

/// A process that does nothing, and the other ends of the sockets to it.
pub(super) fn process() -> (Process, Wire, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (stops, heeds) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    ours.set_write_timeout(Some(Duration::from_millis(1))).unwrap();
    stops.set_nonblocking(true).unwrap();
    let child = Reaped(Command::new("sleep").arg("1000").spawn().unwrap());
    let process = Process {
        child,
        wire: Wire::new(ours),
        stops: Arc::new(stops),
        walls: Walls::default(),
        grace: Grace::default(),
        since: Instant::now(),
    };
    (process, Wire::new(theirs), heeds)
}

pub(super) fn floats(numbers: &[f32]) -> Tensor {
    let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    Tensor { name: "y".into(), datatype: Datatype::Fp32, shape: vec![numbers.len() as u64], data: data.into() }
}

fn words(data: &'static [u8], count: u64) -> Tensor {
    Tensor { name: "words".into(), datatype: Datatype::Bytes, shape: vec![count], data: Bytes::from_static(data) }
}

/// What comes of a call for `wanted` when the worker answers with `frame`.
fn answer(wanted: &[usize], kind: Kind, call: u64, body: &Body) -> Result<Result<Vec<Tensor>, Error>, Broken> {
    let (mut process, peer, _heeds) = process();
    peer.send(kind, call, body, &mut || true).unwrap();
    process.call(7, &Body::default(), wanted, (&outputs(), ROOM), &Stop::default()).map_err(|(broken, began)| {
        assert!(began);
        broken
    })
}

pub(super) fn of(tensors: &[(usize, &Tensor)]) -> Body {
    Body::default().tensors(tensors.iter().copied()).unwrap()
}

#[test]
fn an_answer_that_is_what_was_asked_for_is_believed() {
    let (y, strings) = (floats(&[1.0, 2.0]), words(b"\x02\0\0\0hi\0\0\0\0", 2));
    let both = answer(&[1, 0], Kind::Answer, 7, &of(&[(1, &strings), (0, &y)])).unwrap().unwrap();
    assert_eq!(both, [strings, y]);
}

#[test]
fn an_answer_of_the_room_passes_and_one_byte_more_does_not() {
    let full = floats(&[0.5; 16]);
    assert!(answer(&[0], Kind::Answer, 7, &of(&[(0, &full)])).unwrap().is_ok());
    let more = floats(&[0.5; 17]);
    assert!(matches!(answer(&[0], Kind::Answer, 7, &of(&[(0, &more)])), Err(Broken::Malformed("an output that does not fit"))));
    let much = floats(&[0.5; 1 << 20]);
    let (mut process, peer, _heeds) = process();
    std::thread::spawn(move || peer.send(Kind::Answer, 7, &of(&[(0, &much)]), &mut || true));
    let refused = process.call(7, &Body::default(), &[0], (&outputs(), ROOM), &Stop::default());
    assert!(matches!(refused, Err((Broken::TooLarge, true))));
}

#[test]
fn an_answer_that_is_anything_else_is_not_believed() {
    let y = floats(&[1.0]);
    let wrong: Vec<(&str, Body)> = vec![
        ("nothing", of(&[])),
        ("another output", of(&[(1, &words(b"\0\0\0\0", 1))])),
        ("more outputs", of(&[(0, &y), (1, &words(b"", 0))])),
        ("a place that is none", of(&[(2, &y)])),
        ("another datatype", of(&[(0, &Tensor { datatype: Datatype::Int32, ..y.clone() })])),
        ("another rank", of(&[(0, &Tensor { shape: vec![1, 1], ..y.clone() })])),
        ("a longer shape", of(&[(0, &Tensor { shape: vec![2], ..y.clone() })])),
        ("a shape that overflows", of(&[(0, &Tensor { shape: vec![u64::MAX], ..y.clone() })])),
        ("rubbish", Body::default().block(&[7; 40])),
    ];
    for (what, body) in wrong {
        let answer = answer(&[0], Kind::Answer, 7, &body);
        assert!(matches!(answer, Err(Broken::Malformed(_))), "{what}: {answer:?}");
    }
    for data in [&b"\x02\0\0\0\xff\xff"[..], b"\x09\0\0\0short", b"\0\0\0\0\0\0\0\0", b"\0\0\0", b""] {
        let answer = answer(&[1], Kind::Answer, 7, &of(&[(1, &words(data, 1))]));
        assert!(matches!(answer, Err(Broken::Malformed(_))), "{data:?}: {answer:?}");
    }
    assert!(matches!(answer(&[0], Kind::Answer, 6, &of(&[(0, &y)])), Err(Broken::Malformed("an answer to another call"))));
    assert!(matches!(answer(&[0], Kind::Ready, 7, &Body::default()), Err(Broken::OtherKind(3))));
}

#[test]
fn a_truth_value_is_0_or_1_and_nothing_else_is_believed() {
    let flags = |data: &'static [u8]| {
        let tensor = Tensor { name: "flags".into(), datatype: Datatype::Bool, shape: vec![2], data: Bytes::from_static(data) };
        let frame = Frame { kind: Kind::Answer, call: 7, body: of(&[(0, &tensor)]).bytes() };
        answered(frame, 7, &[0], (&[port("flags", Datatype::Bool, &[None])], ROOM))
    };
    assert!(matches!(flags(&[0, 1]), Ok(Ok(_))));
    assert!(matches!(flags(&[0, 2]), Err(Broken::Malformed("an output that does not fit"))));
}

#[test]
fn a_failure_is_told_and_its_words_never_reach_a_caller() {
    let fails = |code| answer(&[0], Kind::Failed, 7, &Body::default().number(code).block(b"<script>"));
    assert_eq!(fails(FAILED_MODEL).unwrap(), Err(Error::ModelFailed("<script>".into())));
    assert_eq!(fails(FAILED_TOO_MUCH).unwrap(), Err(Error::ModelAnsweredTooMuch));
    for code in [FAILED_INPUTS, FAILED_CONTRACT] {
        let told = fails(code).unwrap().unwrap_err();
        assert!(!told.to_string().contains("script"), "{told}");
    }
    assert!(matches!(fails(99), Err(Broken::Malformed("a failure that is none"))));
}

fn hears(launch: &Launch, frames: &[(Kind, Body)]) -> Result<Process, Refused> {
    let (process, peer, _heeds) = process();
    for (kind, body) in frames {
        peer.send(*kind, 0, body, &mut || true).unwrap();
    }
    drop(peer);
    process.ready(launch, &mut || true).map(|(process, signature)| {
        assert!(launch.signature.as_ref().is_none_or(|read| *read == signature));
        process
    })
}

fn raised(walls: u64) -> (Kind, Body) {
    (Kind::Raised, Body::default().number(walls))
}

#[test]
fn a_worker_is_ready_when_its_walls_stand_and_it_has_read_the_same_model() {
    let launch = launch();
    let core = u64::from(Walls::CORE.bits());
    let read = launch.signature.clone().unwrap();
    let same = || (Kind::Ready, Body::default().signature(&read));
    assert_eq!(hears(&launch, &[raised(core), same()]).unwrap().walls, Walls::CORE);

    let other = Signature { inputs: vec![], ..read.clone() };
    let other = || (Kind::Ready, Body::default().signature(&other));
    // Where the gateway has read nothing of it, what the worker has read stands.
    assert!(hears(&Launch { signature: None, ..self::launch() }, &[raised(core), other()]).is_ok());
    let refused = hears(&launch, &[raised(core), other()]).err();
    assert!(matches!(refused, Some(Refused::ReadDifferently)));
    let refused = hears(&launch, &[raised(core & !u64::from(Walls::LANDLOCK.bits())), same()]).err();
    assert!(matches!(refused, Some(Refused::WallsMissing { missing: Walls::LANDLOCK, .. })));
    for frames in [vec![raised(1 << 40), same()], vec![raised(1 << 31), same()], vec![same()], vec![raised(core), raised(core)], vec![]] {
        assert!(matches!(hears(&launch, &frames).err(), Some(Refused::Worker(_))), "{frames:?}");
    }
}

#[test]
fn a_worker_says_why_it_refuses() {
    let refuses = |code| hears(&launch(), &[(Kind::Refused, Body::default().number(code).block(b"because"))]).err().unwrap();
    assert!(matches!(refuses(REFUSED_ENGINE), Refused::Engine(why) if why == "because"));
    assert!(matches!(refuses(REFUSED_OTHERWISE_READ), Refused::ReadDifferently));
    assert!(matches!(refuses(REFUSED_WORKER), Refused::Worker(why) if why == "because"));
    assert!(matches!(refuses(99), Refused::Worker(_)));
}

#[test]
fn a_strict_model_is_refused_where_namespaces_are_not_given() {
    let launch = Launch { isolation: Isolation::Strict, ..launch() };
    let refused = hears(&launch, &[raised(u64::from(Walls::CORE.bits()))]).err().unwrap();
    let told = refused.to_string();
    assert!(told.contains("\"strict\"") && told.contains("user-namespace, network-namespace, ipc-namespace"), "{told}");
}

#[test]
fn a_worker_that_heeds_no_stop_is_given_up_after_the_grace() {
    let (mut process, _peer, heeds) = process();
    let stop = Stop::default();
    stop.stop();
    let from = Instant::now();
    let gave_up = process.call(7, &Body::default(), &[0], (&outputs(), ROOM), &stop);
    assert!(matches!(gave_up, Err((Broken::GivenUp, true))));
    assert!(from.elapsed() >= LEAST_GRACE && from.elapsed() < 10 * LEAST_GRACE, "{:?}", from.elapsed());
    // It was told to.
    let frame = Wire::new(heeds).receive(|kind| (kind == Kind::Stop).then_some(0), &mut || true).unwrap();
    assert_eq!(frame.call, 7);
}

#[test]
fn a_call_to_a_worker_that_had_died_before_it_has_not_begun() {
    let (mut process, peer, _heeds) = process();
    drop(peer);
    // Another test may be making a process just now, which holds a copy of everything until it is another program.
    while process.wire.socket().write(&[0]).is_ok() {}
    let failed = process.call(7, &Body::default(), &[0], (&outputs(), ROOM), &Stop::default());
    assert!(matches!(failed, Err((Broken::Ended, false))));
}

#[test]
fn pauses_grow_to_their_bound_and_a_worker_that_was_sound_is_started_at_once() {
    let now = Instant::now();
    let mut pause = Pause::default();
    assert!(pause.is_over(now));
    let mut lengths = Vec::new();
    for _ in 0..12 {
        pause.fell(Duration::ZERO, now);
        let length = pause.until.unwrap() - now;
        assert!(!pause.is_over(now + length - Duration::from_nanos(1)) && pause.is_over(now + length));
        lengths.push(length);
    }
    assert_eq!(lengths[..3], [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]);
    assert_eq!(lengths[11], LONGEST_PAUSE);
    pause.fell(SOUND - Duration::from_nanos(1), now);
    assert_eq!(pause.length, LONGEST_PAUSE);
    pause.fell(SOUND, now);
    assert!(pause.is_over(now));
    pause.fell(Duration::ZERO, now);
    assert_eq!(pause.length, FIRST_PAUSE);
}

#[test]
fn the_grace_follows_the_longest_call_within_its_bounds() {
    let after = |calls: &[Duration]| {
        let mut grace = Grace::default();
        calls.iter().for_each(|took| grace.ended(*took, &Stop::default()));
        grace.length()
    };
    let one = Duration::from_nanos(1);
    assert_eq!((after(&[]), after(&[LEAST_GRACE / 2])), (LEAST_GRACE, LEAST_GRACE));
    assert_eq!(after(&[one, LEAST_GRACE / 2 + one]), LEAST_GRACE + 2 * one);
    assert_eq!((after(&[MOST_GRACE / 2]), after(&[MOST_GRACE / 2 + one])), (MOST_GRACE, MOST_GRACE));
    // Short calls bring it down, and calls that were given up say nothing.
    let mut calls = vec![MOST_GRACE / 2];
    calls.resize(1 + CALLS_BACK as usize, one);
    assert!((0.36..0.37).contains(&(after(&calls).as_secs_f64() / MOST_GRACE.as_secs_f64())));
    let (mut grace, stop) = (Grace::default(), Stop::default());
    stop.stop();
    grace.ended(MOST_GRACE, &stop);
    assert_eq!(grace.length(), LEAST_GRACE);
}

#[test]
fn a_worker_that_was_given_up_is_started_again_at_once_and_what_it_took_is_kept() {
    let mut worker = Worker {
        signature: Arc::new(launch().signature.unwrap()),
        launch: launch(),
        process: None,
        pause: Pause::default(),
        grace: Grace::default(),
        calls: 0,
        falls: Arc::default(),
    };
    let mut falls_by = |broken: Broken| {
        let grace = Grace { longest: Duration::from_secs(3) };
        worker.process = Some(Process { grace, ..process().0 });
        worker.bury(&broken, true);
        assert_eq!((worker.process.is_none(), worker.grace.length()), (true, 2 * grace.longest));
        worker.pause.is_over(Instant::now())
    };
    assert_eq!((falls_by(Broken::GivenUp), falls_by(Broken::Ended)), (true, false));
    assert_eq!(worker.falls.take().0.len(), 2);
}

#[test]
fn memory_is_bounded_by_the_model_and_its_answers() {
    assert_eq!(memory_for(0, 0), BASE_MEMORY);
    assert_eq!(memory_for(100, 10), BASE_MEMORY + 440);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_worker_says_the_gateway_stands(kind in 0u16..10, call in 6u64..9, body in prop::collection::vec(any::<u8>(), 0..200), early in any::<bool>()) {
        let (mut process, peer, _heeds) = process();
        let mut bytes = head(Kind::Answer, body.len(), call).unwrap().to_vec();
        bytes[2..4].copy_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&body);
        let socket = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(peer.socket(), 0).unwrap());
        (&socket).write_all(&bytes).unwrap();
        drop((peer, socket));
        if early {
            let _ = process.ready(&launch(), &mut || true);
        } else if let Ok(Ok(tensors)) = process.call(7, &Body::default(), &[0, 1], (&outputs(), ROOM), &Stop::default()) {
            prop_assert!(tensors.iter().map(|tensor| tensor.data.len()).sum::<usize>() <= 64);
        }
    }

    #[test]
    fn whatever_comes_a_worker_does_not_panic(kind in 0u16..10, body in prop::collection::vec(any::<u8>(), 0..200)) {
        let (one, other) = UnixStream::pair().unwrap();
        let mut bytes = head(Kind::Run, body.len(), 1).unwrap().to_vec();
        bytes[2..4].copy_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&body);
        prop_assert!(bytes.len() >= HEAD);
        (&one).write_all(&bytes).unwrap();
        let _ = one.shutdown(std::net::Shutdown::Write);
        let again = other.try_clone().unwrap();
        let _ = inside::echo::hears(other);
        let _ = inside::echo::serves(again);
    }
}
