//! The door of the fuzz target `frames`: each side against a peer that says what it likes, over a real socket.

use std::cell::RefCell;
use std::net::Shutdown;

use super::super::frames::{HEAD, MAX_DESCRIPTORS};
use super::*;
use crate::wire::tensor::holds;

/// The most bytes that a peer says: what the sockets hold of them, and of the answers, before anybody reads.
pub const MOST: usize = 4 << 10;

/// The most bytes of an answer's tensors.
const ROOM: usize = 1 << 10;

/// The number of the call that is answered.
const CALL: u64 = 7;

fn port(name: &str, datatype: Datatype, shape: &[Option<u64>]) -> Port {
    Port { name: name.into(), datatype, shape: shape.into() }
}

fn outputs() -> Vec<Port> {
    let (floats, words) = (port("y", Datatype::Fp32, &[None, Some(2)]), port("words", Datatype::Bytes, &[None]));
    vec![floats, words, port("flags", Datatype::Bool, &[None])]
}

/// Two ends of a socket; the other one has said `bytes` and says nothing more, and takes what it is told.
fn pair(bytes: &[u8]) -> (UnixStream, UnixStream) {
    let (one, other) = UnixStream::pair().expect("a socket");
    (&other).write_all(&bytes[..bytes.len().min(MOST)]).expect("room in a new socket");
    other.shutdown(Shutdown::Write).expect("an open socket");
    (one, other)
}

thread_local! {
    /// A process that has ended, and in its place whatever a socket says.
    static PROCESS: RefCell<Process> = RefCell::new({
        let (socket, stops) = UnixStream::pair().expect("a socket");
        let child = Reaped(Command::new("true").spawn().expect("a process"));
        Process { child, wire: Wire::new(socket), stops: Arc::new(stops), walls: Walls::default(), since: Instant::now() }
    });
}

/// A worker starts and says `bytes`. What it is believed to have read in its model is what it wrote.
pub fn starts(bytes: &[u8]) {
    let (socket, _peer) = pair(bytes);
    let launch = Launch {
        name: "fuzz".into(),
        inmate: Inmate::OnnxRuntime,
        options: Vec::new(),
        library: None,
        files: Parcel::default(),
        isolation: Isolation::Required,
        memory: 0,
        room: ROOM,
        limit: Duration::from_secs(5),
        signature: None,
    };
    let heard = PROCESS.with_borrow_mut(|process| {
        process.wire = Wire::new(socket);
        process.hear(&launch, &mut || true)
    });
    match heard {
        Ok(signature) => {
            let body = Body::default().signature(&signature).bytes();
            // After two heads, and eight bytes of walls.
            assert_eq!(bytes[2 * HEAD + 8..][..body.len()], body[..], "a signature has one encoding");
        }
        Err(Ok(refused)) => _ = refused.to_string(),
        Err(Err(broken)) => _ = broken.to_string(),
    }
}

/// A worker answers a call for the outputs that are `wanted` by `bytes`. What is believed holds to what was asked.
pub fn answers(wanted: &[usize], bytes: &[u8]) {
    let (socket, _peer) = pair(bytes);
    let outputs = outputs();
    let answer = PROCESS.with_borrow_mut(|process| {
        process.wire = Wire::new(socket);
        process.call(CALL, &Body::default(), wanted, (&outputs, ROOM), &Stop::default())
    });
    match answer {
        Ok(Ok(tensors)) => {
            assert_eq!(tensors.len(), wanted.len());
            assert!(tensors.iter().map(|tensor| tensor.data.len()).sum::<usize>() <= ROOM, "more than there was room for");
            for (place, tensor) in wanted.iter().zip(&tensors) {
                let port = &outputs[*place];
                assert_eq!((&tensor.name, tensor.datatype, tensor.shape.len()), (&port.name, port.datatype, port.shape.len()));
                assert!(port.shape.iter().zip(&tensor.shape).all(|(port, length)| port.is_none_or(|port| port == *length)));
                assert!(tensor.elements().is_some_and(|count| holds(tensor.datatype, count, &tensor.data)), "{tensor:?}");
            }
        }
        Ok(Err(error)) => _ = error.to_string(),
        Err((broken, _)) => _ = broken.to_string(),
    }
}

/// The gateway greets a worker with a body of `bytes` and so many descriptors. Files come in one of them, or there are none.
pub fn greets(descriptors: usize, bytes: &[u8]) {
    let (one, other) = UnixStream::pair().expect("a socket");
    let descriptors = descriptors.clamp(1, MAX_DESCRIPTORS);
    // A socket, as the first one is.
    let sent: Vec<BorrowedFd<'_>> = (0..descriptors).map(|_| other.as_fd()).collect();
    Wire::new(one).greet(&Body::of(&bytes[..bytes.len().min(MOST)]), &sent, &mut || true).expect("a new socket takes a greeting");
    if let Some(files) = inside::echo::hears(other) {
        assert!(descriptors > usize::from(files > 0), "{files} files of {descriptors} descriptors");
    }
}

/// The gateway calls a worker by `bytes`; the worker answers with frames that the gateway reads again, each of which is an answer or a failure.
pub fn calls(bytes: &[u8]) {
    let (socket, peer) = pair(bytes);
    let _ = inside::echo::serves(socket);
    let mut wire = Wire::new(peer);
    while let Ok(frame) = wire.receive(|kind| matches!(kind, Kind::Answer | Kind::Failed).then_some(MOST), &mut || true) {
        if frame.kind == Kind::Answer {
            let count = Reader::new(frame.body.clone()).number().expect("how many tensors");
            let places: Vec<usize> = (0..count as usize).collect();
            let ports = [port("x", Datatype::Uint8, &[None])];
            let tensors = Reader::new(frame.body.clone()).tensors(&ports, &places).expect("an answer reads back");
            let again = Body::default().tensors(places.iter().copied().zip(&tensors)).expect("and can be sent again");
            assert_eq!(again.bytes(), frame.body, "tensors have one encoding");
        }
    }
}

/// A frame of this kind, as it lies on the socket: for seeds.
#[must_use]
pub fn frame(kind: u16, call: u64, body: &[u8]) -> Vec<u8> {
    let mut frame = head(Kind::Answer, body.len(), call).expect("a short body").to_vec();
    frame[2..4].copy_from_slice(&kind.to_le_bytes());
    [&frame, body].concat()
}

/// Bodies that are in order: of [`starts`] (walls, then a signature), of [`answers`], and of [`calls`].
#[must_use]
pub fn bodies() -> [Vec<u8>; 4] {
    let signature = Signature { inputs: outputs(), instead: vec![], outputs: outputs(), longest: Some(512), apart: false };
    let tensor = |name: &str, datatype, shape: &[u64], data: &'static [u8]| Tensor {
        name: name.into(),
        datatype,
        shape: shape.into(),
        data: data.into(),
    };
    let answer = [
        tensor("y", Datatype::Fp32, &[1, 2], &[0; 8]),
        tensor("words", Datatype::Bytes, &[2], b"\x02\0\0\0hi\0\0\0\0"),
        tensor("flags", Datatype::Bool, &[2], &[0, 1]),
    ];
    let call = [tensor("x", Datatype::Uint8, &[3], b"abc")];
    let tensors = |body: Body, tensors: &[Tensor]| body.tensors(tensors.iter().enumerate()).expect("few dimensions").bytes().to_vec();
    [
        Body::default().number(u64::from(Walls::CORE.bits())).bytes().to_vec(),
        Body::default().signature(&signature).bytes().to_vec(),
        tensors(Body::default(), &answer),
        tensors(Body::default().number(0).places(&[0]), &call),
    ]
}
