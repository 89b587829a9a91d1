use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn pair() -> (Wire, Wire) {
    let (one, other) = UnixStream::pair().unwrap();
    for socket in [&one, &other] {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    (Wire::new(one), Wire::new(other))
}

/// The sockets' own timeouts are longer than any test.
fn patient() -> bool {
    true
}

fn write(wire: &Wire, bytes: &[u8]) {
    blocking(wire.write(&mut [IoSlice::new(bytes)], &mut Blocks(&mut patient))).unwrap();
}

fn ports() -> Vec<Port> {
    vec![
        Port { name: "first".into(), datatype: Datatype::Fp32, shape: vec![None, Some(2)] },
        Port { name: "second".into(), datatype: Datatype::Bytes, shape: vec![Some(1)] },
    ]
}

fn tensors(length: usize) -> Vec<Tensor> {
    let floats = Tensor { name: "first".into(), datatype: Datatype::Fp32, shape: vec![length as u64, 2], data: vec![7; 8 * length].into() };
    let words = Tensor { name: "second".into(), datatype: Datatype::Bytes, shape: vec![1], data: Bytes::from_static(b"\x02\0\0\0hi") };
    vec![floats, words]
}

#[test]
fn a_frame_arrives_as_it_was_sent_whether_small_or_large() {
    // Below and past what is sent in one piece, and past what the socket holds.
    for length in [0, 1, SMALL / 8, AHEAD, 1 << 17] {
        let (one, mut other) = pair();
        let sent = tensors(length);
        let body = Body::default().places(&[1, 0]).tensors(sent.iter().enumerate()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                one.send(Kind::Run, 9, &body, &mut patient).unwrap();
                one.send(Kind::Stop, 10, &Body::default(), &mut patient).unwrap();
            });
            let frame = other.receive(|_| Some(MAX_INPUT), &mut patient).unwrap();
            assert_eq!((frame.kind, frame.call), (Kind::Run, 9));
            let mut reader = Reader::new(frame.body);
            assert_eq!(reader.places(2).unwrap(), [1, 0]);
            assert_eq!(reader.tensors(&ports(), &[0, 1]).unwrap(), sent);
            let next = other.receive(|_| Some(0), &mut patient).unwrap();
            assert_eq!((next.kind, next.call), (Kind::Stop, 10));
        });
    }
}

#[test]
fn a_body_of_the_bound_passes_and_one_byte_more_is_refused_before_it_is_read() {
    let (one, mut other) = pair();
    let send = |length: usize| one.send(Kind::Refused, 0, &Body { about: vec![1; length], data: vec![] }, &mut patient).unwrap();
    send(10);
    assert_eq!(other.receive(|_| Some(10), &mut patient).unwrap().body.len(), 10);
    send(11);
    assert!(matches!(other.receive(|_| Some(10), &mut patient), Err(Broken::TooLarge)));
}

#[test]
fn a_length_that_is_only_claimed_costs_nothing() {
    // Four gigabytes are claimed and none is sent: it is refused at once, not awaited.
    let (one, mut other) = pair();
    write(&one, &head(Kind::Answer, u32::MAX as usize, 1).unwrap());
    assert!(matches!(other.receive(|_| Some(1 << 20), &mut patient), Err(Broken::TooLarge)));
}

#[test]
fn other_versions_and_kinds_and_a_closed_socket_are_told_apart() {
    let read = |bytes: &[u8]| {
        let (one, mut other) = pair();
        write(&one, bytes);
        drop(one);
        other.receive(|kind| (kind == Kind::Answer).then_some(8), &mut patient).unwrap_err()
    };
    let good = head(Kind::Answer, 0, 1).unwrap();
    let other = VERSION + 1;
    assert!(matches!(read(&[&other.to_le_bytes(), &good[2..]].concat()), Broken::OtherVersion(version) if version == other));
    assert!(matches!(read(&[&good[..2], &[99, 0], &good[4..]].concat()), Broken::OtherKind(99)));
    assert!(matches!(read(&head(Kind::Hello, 0, 1).unwrap()), Broken::OtherKind(1)));
    assert!(matches!(read(&good[..15]), Broken::Ended));
    assert!(matches!(read(&[]), Broken::Ended));
}

#[test]
fn whoever_waits_may_give_up() {
    let (one, other) = UnixStream::pair().unwrap();
    one.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let mut asked = 0;
    let mut patient = || {
        asked += 1;
        asked < 3
    };
    assert!(matches!(Wire::new(one).receive(|_| Some(0), &mut patient), Err(Broken::GivenUp)));
    assert_eq!(asked, 3);
    drop(other);
}

#[test]
fn a_byte_now_and_then_holds_nobody_on() {
    // Neither of these ever comes whole; whoever waits may say so long before that. One is read ahead, and one straight to where it goes.
    for length in [AHEAD - 1, 1 << 30] {
        let (one, other) = UnixStream::pair().unwrap();
        one.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let trickle = std::thread::spawn(move || while (&other).write_all(&[1]).is_ok() {});
        let mut left = 100;
        let mut patient = || {
            left -= 1;
            left > 0
        };
        let mut wire = Wire::new(one);
        let broken = blocking(wire.body(head(Kind::Answer, length, 1).unwrap(), |_| Some(length), &mut Blocks(&mut patient))).unwrap_err();
        assert!(matches!(broken, Broken::GivenUp));
        drop(wire);
        trickle.join().unwrap();
    }
}

#[test]
fn a_signature_arrives_as_it_was_sent() {
    let sent =
        Signature { inputs: ports(), instead: ports()[1..].to_vec(), outputs: ports()[..1].to_vec(), longest: Some(512), apart: false };
    let mut reader = Reader::new(Body::default().signature(&sent).bytes());
    assert_eq!(reader.signature().unwrap(), sent);
    reader.end().unwrap();
    let sent = Signature { longest: None, ..sent };
    assert_eq!(Reader::new(Body::default().signature(&sent).bytes()).signature().unwrap(), sent);
}

#[test]
fn tensors_are_those_that_were_asked_for_and_nothing_is_left_over() {
    let sent = tensors(3);
    let body = Body::default().tensors(sent.iter().enumerate()).unwrap().bytes();
    let read = |body: Bytes, places: &[usize]| Reader::new(body).tensors(&ports(), places);
    assert!(read(body.clone(), &[0, 1]).is_ok());
    for places in [&[1, 0][..], &[0], &[0, 1, 1], &[0, 2], &[]] {
        assert!(matches!(read(body.clone(), places), Err(Broken::Malformed(_))), "{places:?}");
    }
    let longer: Bytes = body.iter().copied().chain([0]).collect();
    assert!(matches!(read(longer, &[0, 1]), Err(Broken::Malformed("something is left over"))));
    for cut in 0..body.len() {
        assert!(read(body.slice(..cut), &[0, 1]).is_err(), "{cut}");
    }
}

#[test]
fn as_many_dimensions_as_may_be_pass_and_one_more_does_not() {
    let of = |rank: usize| {
        let tensor = Tensor { name: "first".into(), datatype: Datatype::Int8, shape: vec![1; rank], data: Bytes::from_static(b"1") };
        Body::default().tensors([(0, &tensor)].into_iter())
    };
    let body = of(MAX_RANK).unwrap().bytes();
    assert!(body.len() <= most_with(1, 1, 0));
    assert!(Reader::new(body.clone()).tensors(&ports(), &[0]).is_ok());
    assert!(of(MAX_RANK + 1).is_err());
    // And when the other side says it nevertheless.
    let mut lies = body.to_vec();
    lies[8 + 2 + 1] = MAX_RANK as u8 + 1;
    assert!(Reader::new(lies.into()).tensors(&ports(), &[0]).is_err());
}

#[test]
fn a_reason_is_short_and_on_one_line() {
    let reason = Reader::new(Body::default().block(b"no\nfield: \x1b[31m\xff").bytes()).reason().unwrap();
    assert_eq!(reason, "no field:  [31m\u{fffd}");
    let long = Reader::new(Body::default().block(&[b'x'; MAX_REASON + 1]).bytes()).reason().unwrap();
    assert_eq!(long.len(), MAX_REASON);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_a_reader_panic_or_give_more_than_it_was_given(bytes in prop::collection::vec(any::<u8>(), 0..300), places in prop::collection::vec(0usize..3, 0..3)) {
        let body = Bytes::from(bytes);
        if let Ok(tensors) = Reader::new(body.clone()).tensors(&ports(), &places) {
            prop_assert!(tensors.iter().map(|tensor| tensor.data.len()).sum::<usize>() <= body.len());
        }
        if let Ok(signature) = Reader::new(body.clone()).signature() {
            prop_assert!(signature.inputs.len() + signature.outputs.len() <= body.len() / 20);
        }
        if let Ok(places) = Reader::new(body.clone()).places(5) {
            prop_assert!(places.len() <= 5);
        }
        let _ = Reader::new(body.clone()).text();
        let _ = Reader::new(body).reason();
    }

    #[test]
    fn a_changed_byte_never_panics_and_never_gives_other_lengths(at in 0usize..200, to in any::<u8>()) {
        let sent = tensors(4);
        let mut body = Body::default().tensors(sent.iter().enumerate()).unwrap().bytes().to_vec();
        let at = at % body.len();
        body[at] = to;
        if let Ok(read) = Reader::new(body.into()).tensors(&ports(), &[0, 1]) {
            let length = |tensors: &[Tensor]| tensors.iter().map(|tensor| tensor.data.len()).sum::<usize>();
            prop_assert_eq!(length(&read), length(&sent));
        }
    }

    #[test]
    fn no_bytes_on_the_socket_make_either_side_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), version in any::<bool>()) {
        let (one, mut other) = pair();
        let mut bytes = bytes;
        if version && bytes.len() >= 4 {
            let kind = bytes[2] % 10;
            bytes[..2].copy_from_slice(&VERSION.to_le_bytes());
            bytes[2..4].copy_from_slice(&[kind, 0]);
        }
        write(&one, &bytes);
        drop(one);
        while let Ok(frame) = other.receive(|_| Some(100), &mut patient) {
            prop_assert!(frame.body.len() <= 100);
        }
    }
}

/// Waits as a thread does, and tells the most that it was asked for at once.
struct Most(usize);

impl Patience for Most {
    async fn ready(&mut self, interest: Interest, most: usize, io: impl FnMut() -> io::Result<usize>) -> Result<usize, Broken> {
        self.0 = self.0.max(most);
        Blocks(&mut patient).ready(interest, most, io).await.inspect(|bytes| assert!(*bytes <= most))
    }

    fn is_left(&mut self) -> bool {
        true
    }
}

#[test]
fn no_more_is_read_or_written_at_once_than_the_bound() {
    // One piece, and pieces of which three fit.
    for data in [vec![vec![7; 3 * AT_ONCE + 5]], vec![vec![7; AT_ONCE / 3]; 10]] {
        let (one, mut other) = pair();
        let body = Body { about: vec![1; 10], data: data.into_iter().map(Bytes::from).collect() };
        let sent = body.bytes();
        let writes = std::thread::spawn(move || {
            let mut most = Most(0);
            blocking(one.send_by(Kind::Run, 1, &body, &mut most)).unwrap();
            most.0
        });
        let mut most = Most(0);
        let frame = blocking(other.receive_by(|_| Some(MAX_INPUT), &mut most)).unwrap();
        assert_eq!(frame.body, sent);
        assert_eq!(most.0, AT_ONCE);
        assert!((AT_ONCE - 100..=AT_ONCE).contains(&writes.join().unwrap()));
    }
}
