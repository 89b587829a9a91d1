//! The worker's side: what the process does from its first moment to its last.
//!
//! The order is the point. Close what was inherited; hear what to run; raise the first walls; load the engine's library, which is pinned;
//! raise the second; and only then look at the model.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use bytes::Bytes;

use super::super::encoder::{self, Encoder, Files};
use super::super::engine::{Engine, Stop};
use super::super::folder::MAX_FILES;
use super::super::frames::{Body, Broken, Frame, Kind, MAX_INPUT, Reader, Wire, most_with};
use super::super::isolate::{self, Sealed};
use super::super::onnxruntime::OnnxRuntime;
use super::super::parcel::unpacked;
use super::super::source::MODEL;
use super::super::{Error, Refused, Runtime, Signature, Walls, onnx};
use super::probe::Prober;
use super::{
    FAILED_CONTRACT, FAILED_INPUTS, FAILED_MODEL, FAILED_TOO_MUCH, Inmate, REFUSED_ENGINE, REFUSED_OTHERWISE_READ, REFUSED_WORKER,
};
use crate::say::aside;
use crate::wire::tensor::Tensor;

/// The life of a worker. It is the first thing that the program does when it is started as one: nothing was opened yet, and there is one
/// thread.
#[must_use]
pub fn run() -> ExitCode {
    let closed = isolate::close_inherited();
    isolate::heed_no_signal();
    isolate::one_arena();
    // The program's link in /proc would be its name otherwise.
    let _ = rustix::thread::set_name(c"model worker");
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 0);
    let Some(mut wire) = socket.ok().filter(is_socket).map(|socket| Wire::new(UnixStream::from(socket))) else {
        aside!("portcullis: workers are started by the gateway, one for each model, and not by hand");
        return ExitCode::from(2);
    };
    let done = live(&mut wire, closed);
    if let Err(Ended::Refused(code, why)) = &done {
        let _ = wire.send(Kind::Refused, 0, &Body::default().number(*code).block(why.as_bytes()), &mut || true);
    }
    // Not by the way of destructors: the engine's may do what is walled off by now.
    isolate::leave(i32::from(done.is_err()))
}

fn is_socket(descriptor: &OwnedFd) -> bool {
    rustix::net::sockopt::socket_type(descriptor).is_ok()
}

/// Why a worker ends. That the gateway closed the socket is no reason.
enum Ended {
    Refused(u64, String),
    Broken,
}

impl From<Broken> for Ended {
    fn from(_: Broken) -> Self {
        Self::Broken
    }
}

/// What came with the greeting.
struct Hello {
    inmate: Inmate,
    demanded: Walls,
    gateway: i32,
    /// Of its address space, in bytes.
    bound: u64,
    room: usize,
    options: Bytes,
    stops: UnixStream,
    library: Option<OwnedFd>,
    /// Their names and lengths, and the memory in which they lie.
    files: Vec<(String, u64)>,
    memory: Option<OwnedFd>,
}

impl Hello {
    fn hear(wire: &mut Wire) -> Result<Self, Broken> {
        let malformed = Broken::Malformed("a greeting that is none");
        let (frame, descriptors) = wire.greeted()?;
        let mut reader = Reader::new(frame.body);
        let mut descriptors = descriptors.into_iter();
        let read = (|| {
            let inmate = reader.number().ok()?;
            let inmate = Inmate::ALL.into_iter().find(|known| *known as u64 == inmate)?;
            let demanded = Walls::from_bits(u32::try_from(reader.number().ok()?).ok()?)?;
            let gateway = i32::try_from(reader.number().ok()?).ok()?;
            let bound = reader.number().ok()?;
            let room = usize::try_from(reader.number().ok()?).ok()?;
            let stops = UnixStream::from(descriptors.next()?);
            let library = if reader.number().ok()? == 1 { Some(descriptors.next()?) } else { None };
            let count = usize::try_from(reader.number().ok()?).ok().filter(|count| *count <= MAX_FILES)?;
            let options = reader.block().ok()?;
            let files = (0..count).map(|_| Ok((reader.text()?, reader.number()?))).collect::<Result<Vec<_>, Broken>>().ok()?;
            let memory = descriptors.next();
            if memory.is_some() != (count > 0) || descriptors.next().is_some() {
                return None;
            }
            Some(Self { inmate, demanded, gateway, bound, room, options, stops, library, files, memory })
        })();
        reader.end()?;
        read.ok_or(malformed)
    }
}

fn live(wire: &mut Wire, closed: bool) -> Result<(), Ended> {
    let Hello { inmate, demanded, gateway, bound, room, options, stops, library, files, memory } = Hello::hear(wire)?;
    let mut walls = isolate::first(bound, gateway);
    if closed {
        walls = walls.with(Walls::DESCRIPTORS);
    }
    let prepared = prepare(inmate, library, &options)?;
    // The mapping is read only: nothing is looked at yet.
    let mapped = memory.map(|memory| Sealed::map(&memory)).transpose();
    let mapped = mapped.map_err(|error| Ended::Refused(REFUSED_WORKER, format!("its files cannot be mapped: {error}")))?;
    let files = mapped.map_or_else(|| Some(Files::new()), |mapped| unpacked(mapped, files)).ok_or(Ended::Broken)?;
    let current = Arc::new(Current::default());
    heed(stops, current.clone())?;
    if !isolate::second() {
        walls = walls.without(Walls::SECCOMP);
    }
    if !demanded.without(walls).is_empty() {
        // The gateway reads the same in these, and says it.
        wire.send(Kind::Raised, 0, &Body::default().number(u64::from(walls.bits())), &mut || true)?;
        return Err(Ended::Broken);
    }
    wire.send(Kind::Raised, 0, &Body::default().number(u64::from(walls.bits())), &mut || true)?;
    let engine = prepared.load(files, &options, room)?;
    wire.send(Kind::Ready, 0, &Body::default().signature(engine.signature()), &mut || true)?;
    serve(wire, engine, &current)
}

/// An engine that is ready for a model: its library is loaded, and every thread that it will ever have runs, and has begun. After the second
/// wall none can be made, and one that is only on its way is killed for what a thread does first.
enum Prepared {
    OnnxRuntime(Runtime),
    OnnxEncoder(Runtime),
    Encoder(rayon::ThreadPool),
    Tokenizer,
    Probe(Prober),
}

fn prepare(inmate: Inmate, library: Option<OwnedFd>, options: &[u8]) -> Result<Prepared, Ended> {
    match (inmate, library) {
        (Inmate::OnnxRuntime | Inmate::OnnxEncoder, Some(library)) => {
            let runtime = Runtime::from_sealed(library).and_then(|runtime| runtime.environment().map(|_| runtime.clone()));
            let prepared = if inmate == Inmate::OnnxRuntime { Prepared::OnnxRuntime } else { Prepared::OnnxEncoder };
            runtime.map(prepared).map_err(|broken| Ended::Refused(REFUSED_WORKER, broken.to_string()))
        }
        (Inmate::Encoder, None) => {
            Encoder::thread().map(Prepared::Encoder).map_err(|fault| Ended::Refused(REFUSED_WORKER, fault.to_string()))
        }
        (Inmate::Tokenizer, None) => Ok(Prepared::Tokenizer),
        (Inmate::Probe, None) => Ok(Prepared::Probe(Prober::new(options))),
        _ => Err(Ended::Broken),
    }
}

impl Prepared {
    /// The model, whose bytes are looked at here for the first time.
    fn load(self, files: Files, options: &[u8], room: usize) -> Result<Box<dyn Engine>, Ended> {
        let (runtime, encodes) = match self {
            Self::OnnxRuntime(runtime) => (runtime, false),
            Self::OnnxEncoder(runtime) => (runtime, true),
            Self::Encoder(thread) => {
                let options = encoder::Options::from_bytes(options, room).ok_or(Ended::Broken)?;
                let loaded = Encoder::load_on(thread, &files, &options);
                return loaded.map(|encoder| Box::new(encoder) as _).map_err(|fault| Ended::Refused(REFUSED_ENGINE, fault.to_string()));
            }
            Self::Tokenizer => {
                let options = encoder::Options::from_bytes(options, room).ok_or(Ended::Broken)?;
                let told = encoder::around_a_graph(&files, &options);
                return told.map(|told| Box::new(Told(told)) as _).map_err(|fault| Ended::Refused(REFUSED_ENGINE, fault.to_string()));
            }
            Self::Probe(prober) => return Ok(Box::new(prober)),
        };
        let bytes = files.get(MODEL).ok_or(Ended::Broken)?;
        let others = || files.iter().filter(|(name, _)| *name != MODEL);
        let beside = others().map(|(name, file)| (name.clone(), file.len() as u64)).collect();
        // The gateway has read the files, too, and compares. Here nobody waits for a stop: whoever waits too long kills.
        let load = || {
            let (graph, used) = onnx::read_beside(bytes, &onnx::Limits::DEFAULT, &beside)?;
            let beside = others().filter(|(name, _)| used.contains_key(*name)).map(|(name, file)| (name.as_str(), &file[..]));
            if !encodes {
                let engine = OnnxRuntime::load(bytes, beside, graph, room, &runtime, &Stop::default())?;
                return Ok(Box::new(engine) as Box<dyn Engine>);
            }
            let options = encoder::Options::from_bytes(options, room).ok_or(Refused::ReadDifferently)?;
            let fitted = encoder::Graph::fit(&graph, &files, &options).map_err(Refused::Encoder)?;
            let engine = OnnxRuntime::load(bytes, beside, graph, room, &runtime, &Stop::default())?;
            let encoder = Encoder::around(fitted, &files, engine).map_err(Refused::Encoder)?;
            Ok(Box::new(encoder) as Box<dyn Engine>)
        };
        load().map_err(|refused| match refused {
            Refused::Engine(why) => Ended::Refused(REFUSED_ENGINE, why),
            Refused::Encoder(fault) => Ended::Refused(REFUSED_ENGINE, fault.to_string()),
            Refused::ReadDifferently => Ended::Refused(REFUSED_OTHERWISE_READ, String::new()),
            other => Ended::Refused(REFUSED_WORKER, other.to_string()),
        })
    }
}

/// What was read, of what nothing is asked.
struct Told(Signature);

impl Engine for Told {
    fn signature(&self) -> &Signature {
        &self.0
    }

    fn run(&mut self, _: &[Tensor], _: &[usize], _: &Stop) -> Result<Vec<Tensor>, Error> {
        Err(Error::EngineStopped)
    }
}

/// The call that runs, for the thread that hears of stops.
#[derive(Default)]
struct Current(Mutex<State>);

#[derive(Default)]
struct State {
    runs: Option<(u64, Stop)>,
    /// The last call that is not wanted any more: its stop may come before it does.
    stopped: u64,
}

impl Current {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, call: u64) -> Stop {
        let stop = Stop::default();
        let mut state = self.lock();
        if state.stopped >= call {
            stop.stop();
        }
        state.runs = Some((call, stop.clone()));
        stop
    }

    fn stop(&self, call: u64) {
        let mut state = self.lock();
        state.stopped = state.stopped.max(call);
        if let Some((_, stop)) = state.runs.as_ref().filter(|(runs, _)| *runs == call) {
            stop.stop();
        }
    }
}

/// Hears of stops, on a thread of its own. When that socket ends the gateway is gone, or rid of this worker.
fn heed(stops: UnixStream, current: Arc<Current>) -> Result<(), Ended> {
    let (tell, told) = mpsc::channel();
    let body = move || {
        let mut wire = Wire::new(stops);
        let _ = tell.send(());
        while let Ok(frame) = wire.receive(|kind| (kind == Kind::Stop).then_some(0), &mut || true) {
            current.stop(frame.call);
        }
        isolate::leave(0)
    };
    let thread = std::thread::Builder::new().name("stops".into()).stack_size(STACK).spawn(body);
    thread.map_err(|error| Ended::Refused(REFUSED_WORKER, format!("it gets no thread: {error}")))?;
    // A thread begins with system calls that the second wall knows no more.
    told.recv().map_err(|_| Ended::Broken)
}

/// Bytes of the stack of a thread that reads sixteen bytes at a time.
const STACK: usize = 256 << 10;

/// One call after the other, until the socket ends.
fn serve(wire: &mut Wire, mut engine: Box<dyn Engine>, current: &Current) -> Result<(), Ended> {
    let Signature { inputs, instead, outputs, .. } = engine.signature().clone();
    let outputs = outputs.len();
    let most = most_with(MAX_INPUT, inputs.len().max(instead.len()), outputs);
    loop {
        let Frame { call, body, .. } = match wire.receive(|kind| (kind == Kind::Run).then_some(most), &mut || true) {
            Err(Broken::Ended) => return Ok(()),
            frame => frame?,
        };
        let mut reader = Reader::new(body);
        let ports = if reader.number()? == 1 { &instead } else { &inputs };
        let wanted = reader.places(outputs)?;
        let tensors = reader.tensors(ports, &(0..ports.len()).collect::<Vec<_>>())?;
        let stop = current.begin(call);
        let answer = engine.run(&tensors, &wanted, &stop);
        match answer {
            Ok(answer) => {
                let body = Body::default().tensors(wanted.iter().copied().zip(&answer))?;
                wire.send(Kind::Answer, call, &body, &mut || true)?;
            }
            Err(error) => {
                let (code, why) = failure(&error);
                wire.send(Kind::Failed, call, &Body::default().number(code).block(why.as_bytes()), &mut || true)?;
            }
        }
    }
}

fn failure(error: &Error) -> (u64, &str) {
    match error {
        Error::CallerSentOtherInputs(why) => (FAILED_INPUTS, why),
        Error::ModelBrokeItsContract(_) => (FAILED_CONTRACT, ""),
        Error::ModelAnsweredTooMuch => (FAILED_TOO_MUCH, ""),
        Error::ModelFailed(why) => (FAILED_MODEL, why),
        // None of an engine's own.
        Error::CallerAskedForOtherOutputs | Error::QueueIsFull | Error::EngineStopped | Error::DeadlinePassed => (FAILED_MODEL, ""),
    }
}

#[cfg(any(test, fuzzing))]
pub(super) mod echo;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::super::signing::manifest::MAX_NAME;
    use super::echo::echo;
    use super::*;
    use crate::wire::tensor::Datatype;

    fn call(wire: &mut Wire, call: u64, bytes: &'static [u8]) -> Frame {
        let tensor =
            Tensor { name: "x".into(), datatype: Datatype::Uint8, shape: vec![bytes.len() as u64], data: Bytes::from_static(bytes) };
        let body = Body::default().number(0).places(&[0]).tensors([(0, &tensor)].into_iter()).unwrap();
        wire.send(Kind::Run, call, &body, &mut || true).unwrap();
        wire.receive(|_| Some(1000), &mut || true).unwrap()
    }

    #[test]
    fn calls_are_answered_one_after_the_other_and_a_stop_may_come_before_its_call() {
        let (one, other) = UnixStream::pair().unwrap();
        let current = Arc::new(Current::default());
        let heeded = current.clone();
        let worker = std::thread::spawn(move || serve(&mut Wire::new(other), echo(), &heeded).is_ok());
        let mut wire = Wire::new(one);
        let answer = call(&mut wire, 1, b"one");
        assert_eq!((answer.kind, answer.call), (Kind::Answer, 1));
        current.stop(3);
        assert_eq!(call(&mut wire, 3, b"three").kind, Kind::Failed);
        assert_eq!(call(&mut wire, 4, b"four").kind, Kind::Answer);
        // A stop that comes too late is nobody's.
        current.stop(4);
        assert_eq!(call(&mut wire, 5, b"five").kind, Kind::Answer);
        drop(wire);
        assert!(worker.join().unwrap());
    }

    /// What a worker hears of a greeting with so many files, all of whose names are as long as a name may be.
    fn heard(files: usize) -> Option<usize> {
        let (one, other) = UnixStream::pair().unwrap();
        let files: Vec<String> = (0..files).map(|number| format!("{number:0>MAX_NAME$}")).collect();
        let body = [Inmate::Encoder as u64, 0, 1, 1 << 30, 1 << 20, 0, files.len() as u64].into_iter().fold(Body::default(), Body::number);
        let body = files.iter().fold(body.block(b""), |body, name| body.block(name.as_bytes()).number(7));
        let hears = std::thread::spawn(move || super::echo::hears(other));
        let own = one.try_clone().unwrap();
        // The worker may have stopped reading by then.
        let _ = Wire::new(one).greet(&body, &[own.as_fd(), own.as_fd()], &mut || true);
        hears.join().unwrap()
    }

    #[test]
    fn a_greeting_brings_as_many_files_as_a_model_may_have_and_no_more() {
        assert_eq!(heard(0), None, "a memory without files");
        for files in [1, 33, MAX_FILES] {
            assert_eq!(heard(files), Some(files));
        }
        assert_eq!(heard(MAX_FILES + 1), None);
    }

    #[test]
    fn a_failure_says_whose_it_is() {
        assert_eq!(failure(&Error::CallerSentOtherInputs("x")), (FAILED_INPUTS, "x"));
        assert_eq!(failure(&Error::ModelFailed("why".into())), (FAILED_MODEL, "why"));
    }
}
