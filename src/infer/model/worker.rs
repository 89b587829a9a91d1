//! An engine in a process of its own, behind walls: the gateway's side.
//!
//! The worker is this same program, started anew with nothing but a socket; what it needs comes with the first frame, as sealed memory:
//! the model's files, and the engine's library. It says which walls stand and what it read in the model, and then answers one call after
//! the other. Nothing of what it says is believed further than it was asked: kinds, sizes, places, datatypes and shapes are held to the
//! signature that the gateway itself read, and a worker that says anything else is killed.
//!
//! One that dies, or does not heed a stop, costs the call it had. It is started again from the same sealed bytes, at once if it had been
//! sound for a while and after growing pauses if not; calls that come in a pause are answered at once that there is none.
//!
//! Two sockets: on one a call and its answer follow each other, so that nobody hands anything on between two threads; the other tells the
//! worker to stop. The worker dies with the thread that started it, which is the queue's, and with either socket. That thread makes the calls
//! itself where they are joined, and lends the worker to a task (`lent`) where they are not.

#[cfg(fuzzing)]
pub mod fuzz;
mod inside;
mod lent;
pub mod probe;

use std::fmt;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use memfd::Memfd;

use super::engine::{Engine, Stop, fits};
use super::falls::{Fall, Falls};
use super::frames::{Blocks, Body, Broken, Frame, Kind, MAX_INPUT, MAX_WORDS, Patience, Reader, Wire, blocking, head, most_with};
use super::parcel::Parcel;
use super::{Bounds, Error, Isolation, Refused, Signature, Walls, unfit};
use crate::say::aside;
use crate::wire::tensor::{Datatype, Port, Tensor};

pub use inside::run;
pub(super) use lent::Lent;

/// The hidden command that is a worker.
pub const COMMAND: &str = "worker";

/// The least time that a worker has to heed a stop, before it is killed.
const LEAST_GRACE: Duration = Duration::from_secs(1);

/// The most that it has, however long its calls take.
const MOST_GRACE: Duration = Duration::from_secs(30);

/// How often whoever waits for a worker looks whether to wait on. The wait itself ends with the answer.
const TICK: Duration = Duration::from_millis(50);

/// So many short calls bring the grace down to some third of what it was.
const CALLS_BACK: u32 = 256;

/// A worker that lived for so long was sound: it is started again at once.
const SOUND: Duration = Duration::from_secs(10);

/// The first pause before a worker that was not sound is started again. Each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause. A caller who knows how to bring a model down keeps it from the others for so long; a start costs less than a fifth.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a worker's address space holds before any model: the program, ONNX Runtime, stacks, what allocators set aside (90 MB
/// together), and what a run takes that neither the file nor the answer shows. Bytes.
const BASE_MEMORY: u64 = 512 << 20;

/// The engine that a worker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inmate {
    /// ONNX Runtime, on one `.onnx` file.
    OnnxRuntime = 1,
    /// What tries to break out, for [`probe`]. No policy names it.
    Probe = 2,
    /// An encoder on candle, on the files of its folder; its options are [`Options::bytes`](super::encoder::Options::bytes).
    Encoder = 3,
    /// An encoder on ONNX Runtime, on the files of its folder; its options are those of the other.
    OnnxEncoder = 4,
    /// What is around the graph of such an encoder, without it: it says what it would take and give, and answers no call.
    Tokenizer = 5,
}

impl Inmate {
    const ALL: [Self; 5] = [Self::OnnxRuntime, Self::Probe, Self::Encoder, Self::OnnxEncoder, Self::Tokenizer];
}

/// Everything that a worker is started with, as often as it must be.
#[derive(Debug)]
pub(super) struct Launch {
    /// The model's name, as `ps` shows it.
    pub(super) name: String,
    pub(super) inmate: Inmate,
    /// What the engine wants to know; its own format.
    pub(super) options: Vec<u8>,
    /// The engine's library, if it has one.
    pub(super) library: Option<Arc<Memfd>>,
    /// The model's files.
    pub(super) files: Parcel,
    pub(super) isolation: Isolation,
    /// The bound on its address space, in bytes: [`memory_for`].
    pub(super) memory: u64,
    /// The most bytes of one answer's tensors.
    pub(super) room: usize,
    /// How long a start may take.
    pub(super) limit: Duration,
    /// What the gateway read in the model; the worker must read the same, then and whenever it is started again. `None` where the gateway
    /// reads nothing of it: what the first worker reads stands.
    pub(super) signature: Option<Signature>,
}

impl Launch {
    /// An engine on these files, within a model's bounds; what else it needs is to be set.
    pub(super) fn new(name: &str, inmate: Inmate, files: Parcel, bounds: &Bounds) -> Self {
        Self {
            name: name.to_owned(),
            inmate,
            options: Vec::new(),
            library: None,
            memory: memory(bounds, files.size()),
            files,
            isolation: bounds.isolation,
            room: bounds.output,
            limit: bounds.load,
            signature: None,
        }
    }
}

/// The bound on the address space of the worker of a model of so many bytes, in bytes.
pub(super) fn memory(bounds: &Bounds, model: usize) -> u64 {
    bounds.memory.map_or_else(|| memory_for(model, bounds.output), |memory| memory as u64)
}

/// The same, unless the policy says otherwise: 512 MiB, four times the model (its file, what is
/// parsed of it, what is packed for the kernels, and room to work), and four times the largest answer.
fn memory_for(model: usize, output: usize) -> u64 {
    BASE_MEMORY.saturating_add(4 * model as u64).saturating_add(4 * output as u64)
}

/// Why a worker is not listened to any longer, and whether it had begun with a call.
pub(super) type Fell = (Broken, bool);

/// A worker, standing or fallen.
pub(super) struct Worker {
    launch: Launch,
    signature: Arc<Signature>,
    process: Option<Process>,
    pause: Pause,
    /// That of the process that stands or, where there is none, of the last one.
    grace: Grace,
    calls: u64,
    falls: Arc<Falls>,
}

impl Worker {
    /// Starts it, and waits until its model is loaded. It must be called on the thread that will own it: the worker dies with that.
    ///
    /// # Errors
    /// [`Refused`] says why there is none.
    pub(super) fn start(mut launch: Launch, stop: &Stop) -> Result<Self, Refused> {
        let (process, signature) = Process::start(&launch, &mut || !stop.is_stopped())?;
        launch.signature = Some(signature.clone());
        let signature = Arc::new(signature);
        Ok(Self {
            launch,
            signature,
            process: Some(process),
            pause: Pause::default(),
            grace: Grace::default(),
            calls: 0,
            falls: Arc::default(),
        })
    }

    /// Starts it again if it has fallen and the pause is over.
    fn raise(&mut self) {
        if self.process.is_some() || !self.pause.is_over(Instant::now()) {
            return;
        }
        match Process::start(&self.launch, &mut || true) {
            Ok((process, _)) => {
                self.process = Some(Process { grace: self.grace, ..process });
                self.falls.raised();
            }
            Err(refused) => {
                self.pause.fell(Duration::ZERO, Instant::now());
                self.tell(&format!("its worker does not start again: {refused}"));
            }
        }
    }

    /// Kills it, if it has not died by itself, and tells why. `called` says whether it had begun with a call.
    fn bury(&mut self, broken: &Broken, called: bool) {
        if let Some(process) = self.process.take() {
            let lived = process.since.elapsed();
            self.grace = process.grace;
            let end = process.end();
            // It was sound, if slower than anyone waits; and whoever has it killed so had it for the grace before.
            if !matches!(broken, Broken::GivenUp) {
                self.pause.fell(lived, Instant::now());
            }
            self.tell(&format!("its worker is gone, {end} ({broken}), and is started again"));
            self.falls.fell(Fall { at: SystemTime::now(), why: format!("{end} ({broken})"), called });
        }
    }

    fn tell(&self, what: &str) {
        aside!("portcullis: model {}: {what}", self.launch.name);
    }
}

impl Engine for Worker {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, inputs: &[Tensor], wanted: &[usize], stop: &Stop) -> Result<Vec<Tensor>, Error> {
        let body = asked(&self.signature, inputs, wanted)?;
        // Once more for a worker that had died before the call, unseen.
        for _ in 0..2 {
            self.raise();
            let Some(process) = &mut self.process else { break };
            self.calls += 1;
            match process.call(self.calls, &body, wanted, (&self.signature.outputs, self.launch.room), stop) {
                Ok(answer) => return answer,
                Err((broken, began)) => {
                    self.bury(&broken, began);
                    if began {
                        break;
                    }
                }
            }
        }
        Err(Error::EngineStopped)
    }

    fn walls(&self) -> Walls {
        self.process.as_ref().map_or(Walls::default(), |process| process.walls)
    }

    fn falls(&self) -> Arc<Falls> {
        self.falls.clone()
    }

    fn tend(&mut self) -> Option<Instant> {
        self.raise();
        self.process.is_none().then(|| self.pause.until()).flatten()
    }

    fn lend(&mut self) -> Option<Lent> {
        let process = self.process.take()?;
        Lent::new(process, self.signature.clone(), self.launch.room, self.calls).map_err(|process| self.process = Some(process)).ok()
    }

    fn take_back(&mut self, lent: Lent, fell: Option<Fell>) {
        let (process, calls) = lent.end();
        (self.process, self.calls) = (Some(process), calls);
        if let Some((broken, began)) = fell {
            self.bury(&broken, began);
        }
    }
}

/// What a call for the `wanted` outputs of these inputs says.
fn asked(signature: &Signature, inputs: &[Tensor], wanted: &[usize]) -> Result<Body, Error> {
    if inputs.iter().fold(0_usize, |sum, tensor| sum.saturating_add(tensor.data.len())) > MAX_INPUT {
        return Err(Error::CallerSentOtherInputs("the inputs are larger than 256 MiB together"));
    }
    let Signature { inputs: first, instead, .. } = signature;
    let named = |ports: &[Port]| ports.len() == inputs.len() && ports.iter().zip(inputs).all(|(port, tensor)| port.name == tensor.name);
    let other = !named(first) && named(instead);
    let body = Body::default().number(u64::from(other)).places(wanted).tensors(inputs.iter().enumerate());
    body.map_err(|_| Error::CallerSentOtherInputs("an input has too many dimensions"))
}

/// When to start a worker again. A decision about times; it reads no clock.
#[derive(Debug, Default)]
struct Pause {
    length: Duration,
    until: Option<Instant>,
}

impl Pause {
    /// A worker that had `lived` for so long is gone.
    fn fell(&mut self, lived: Duration, now: Instant) {
        if lived >= SOUND {
            *self = Self { length: Duration::ZERO, until: Some(now) };
        } else {
            self.length = (self.length * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            self.until = Some(now + self.length);
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }

    fn until(&self) -> Option<Instant> {
        self.until
    }
}

/// How long a worker may take to heed a stop. An engine heeds it between two operators, and what one of them takes is not known, but no more
/// than a whole call: so the longest that was answered tells, of those that nobody stopped, which are within their deadlines. Whoever gives up on a slow model would have
/// it killed otherwise, for all. It comes down again by and by, where calls are short.
#[derive(Clone, Copy, Debug, Default)]
struct Grace {
    longest: Duration,
}

impl Grace {
    /// A call ended, past so long.
    fn ended(&mut self, took: Duration, stop: &Stop) {
        if !stop.is_stopped() {
            self.longest = took.max(self.longest - self.longest / CALLS_BACK);
        }
    }

    fn length(self) -> Duration {
        (self.longest * 2).clamp(LEAST_GRACE, MOST_GRACE)
    }
}

/// A process and the two sockets to it.
struct Process {
    child: Reaped,
    wire: Wire,
    stops: Arc<UnixStream>,
    walls: Walls,
    grace: Grace,
    since: Instant,
}

impl Process {
    /// Starts a worker and waits until it is ready, as long as `patient` says and no longer than the launch's limit.
    fn start(launch: &Launch, patient: &mut dyn FnMut() -> bool) -> Result<(Self, Signature), Refused> {
        let from = Instant::now();
        let mut patient = || patient() && from.elapsed() < launch.limit;
        let process = Self::spawn(launch, &mut patient).map_err(|error| Refused::Worker(error.to_string()))?;
        process.ready(launch, &mut patient).map_err(|refused| match refused {
            Refused::Worker(_) if from.elapsed() >= launch.limit => Refused::TookTooLong(launch.limit),
            other => other,
        })
    }

    fn spawn(launch: &Launch, patient: &mut dyn FnMut() -> bool) -> std::io::Result<Self> {
        let (wire, theirs) = UnixStream::pair()?;
        let (stops, heeds) = UnixStream::pair()?;
        wire.set_read_timeout(Some(TICK))?;
        wire.set_write_timeout(Some(TICK))?;
        stops.set_nonblocking(true)?;
        // The program that runs, whatever has become of its file.
        let mut command = Command::new(PROGRAM);
        command.arg0("portcullis").arg(COMMAND).arg(format!("--model={}", launch.name)).env_clear().envs(ENVIRONMENT).current_dir("/");
        // What a terminal sends is for the gateway.
        command.process_group(0);
        let child = command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let process = Self {
            child: Reaped(child),
            wire: Wire::new(wire),
            stops: Arc::new(stops),
            walls: Walls::default(),
            grace: Grace::default(),
            since: Instant::now(),
        };
        let hello = Body::default()
            .number(launch.inmate as u64)
            .number(u64::from(launch.isolation.demanded().bits()))
            .number(u64::from(std::process::id()))
            .number(launch.memory)
            .number(launch.room as u64)
            .number(u64::from(launch.library.is_some()))
            .number(launch.files.files().len() as u64)
            .block(&launch.options);
        let hello = launch.files.files().iter().fold(hello, |hello, (name, length)| hello.block(name.as_bytes()).number(*length));
        let library = launch.library.iter().map(|library| library.as_file().as_fd());
        let descriptors: Vec<BorrowedFd<'_>> = std::iter::once(heeds.as_fd()).chain(library).chain(launch.files.memory()).collect();
        process.wire.greet(&hello, &descriptors, patient).map_err(std::io::Error::other)?;
        Ok(process)
    }

    /// Hears which walls stand and what the worker read.
    fn ready(mut self, launch: &Launch, patient: &mut dyn FnMut() -> bool) -> Result<(Self, Signature), Refused> {
        let heard = self.hear(launch, patient);
        let signature = heard.map_err(|error| match error {
            Ok(refused) => refused,
            Err(Broken::GivenUp) => Refused::Worker(Broken::GivenUp.to_string()),
            Err(broken) => Refused::Worker(format!("{broken}; {}", self.child.end_now())),
        })?;
        Ok((self, signature))
    }

    fn hear(&mut self, launch: &Launch, patient: &mut dyn FnMut() -> bool) -> Result<Signature, Result<Refused, Broken>> {
        let words = |expected: Kind| move |kind| (kind == expected || kind == Kind::Refused).then_some(MAX_WORDS);
        let Frame { kind, body, .. } = self.wire.receive(words(Kind::Raised), patient).map_err(Err)?;
        let mut reader = Reader::new(body);
        if kind == Kind::Refused {
            return Err(Self::refused(reader));
        }
        let bits = reader.number().ok().and_then(|bits| u32::try_from(bits).ok());
        self.walls = bits.and_then(Walls::from_bits).ok_or(Err(Broken::Malformed("walls that are none")))?;
        reader.end().map_err(Err)?;
        // The worker ends by itself then; this does not depend on it.
        let missing = launch.isolation.demanded().without(self.walls);
        if !missing.is_empty() {
            return Err(Ok(Refused::WallsMissing { isolation: launch.isolation, missing }));
        }
        let Frame { kind, body, .. } = self.wire.receive(words(Kind::Ready), patient).map_err(Err)?;
        let mut reader = Reader::new(body);
        if kind == Kind::Refused {
            return Err(Self::refused(reader));
        }
        let signature = reader.signature().map_err(Err)?;
        reader.end().map_err(Err)?;
        let same = launch.signature.as_ref().is_none_or(|read| signature == *read);
        if same { Ok(signature) } else { Err(Ok(Refused::ReadDifferently)) }
    }

    fn refused(mut reader: Reader) -> Result<Refused, Broken> {
        let (code, why) = (reader.number()?, reader.reason()?);
        match code {
            REFUSED_ENGINE => Ok(Refused::Engine(why)),
            REFUSED_OTHERWISE_READ => Ok(Refused::ReadDifferently),
            REFUSED_WORKER => Ok(Refused::Worker(why)),
            _ => Err(Broken::Malformed("a refusal that is none")),
        }
    }

    /// One call, on the thread that it blocks. The error says, too, whether the worker may have begun with it.
    fn call(
        &mut self,
        call: u64,
        body: &Body,
        wanted: &[usize],
        expected: (&[Port], usize),
        stop: &Stop,
    ) -> Result<Result<Vec<Tensor>, Error>, Fell> {
        let (mut told, grace) = (None, self.grace.length());
        let mut patient = || !stop.is_stopped() || told.get_or_insert_with(Instant::now).elapsed() < grace;
        let from = Instant::now();
        let answer = stop.during(self.interrupt(call), || blocking(self.exchange(call, body, wanted, expected, &mut Blocks(&mut patient))));
        if answer.is_ok() {
            self.grace.ended(from.elapsed(), stop);
        }
        answer
    }

    /// Tells the worker to give the call up. One that does not even read this is killed after the grace.
    fn interrupt(&self, call: u64) -> impl FnOnce() + Send + 'static {
        let stops = self.stops.clone();
        move || drop(head(Kind::Stop, 0, call).map(|head| (&*stops).write_all(&head)))
    }

    /// A call and its answer.
    async fn exchange(
        &mut self,
        call: u64,
        body: &Body,
        wanted: &[usize],
        expected: (&[Port], usize),
        patience: &mut impl Patience,
    ) -> Result<Result<Vec<Tensor>, Error>, Fell> {
        let most = |kind| match kind {
            Kind::Answer => Some(most_with(expected.1, wanted.len(), 0)),
            Kind::Failed => Some(MAX_WORDS),
            _ => None,
        };
        self.wire.send_by(Kind::Run, call, body, patience).await.map_err(|broken| {
            let began = !matches!(broken, Broken::Ended);
            (broken, began)
        })?;
        let frame = self.wire.receive_by(most, patience).await.map_err(|broken| (broken, true))?;
        answered(frame, call, wanted, expected).map_err(|broken| (broken, true))
    }

    /// Kills it and says how it ended.
    fn end(mut self) -> String {
        self.child.end_now()
    }
}

/// What a frame says to a call, if it is an answer to that: outputs of these ports, of so many bytes together.
fn answered(
    frame: Frame,
    call: u64,
    wanted: &[usize],
    (outputs, mut room): (&[Port], usize),
) -> Result<Result<Vec<Tensor>, Error>, Broken> {
    if frame.call != call {
        return Err(Broken::Malformed("an answer to another call"));
    }
    let mut reader = Reader::new(frame.body);
    if frame.kind == Kind::Failed {
        let (code, why) = (reader.number()?, reader.reason()?);
        reader.end()?;
        // Callers may read some of these texts, so none of them is the worker's own.
        return Ok(Err(match code {
            FAILED_INPUTS => Error::CallerSentOtherInputs(unfit::told(&why)),
            FAILED_MODEL => Error::ModelFailed(why.into()),
            FAILED_CONTRACT => Error::ModelBrokeItsContract("an output is not what the model declares"),
            FAILED_TOO_MUCH => Error::ModelAnsweredTooMuch,
            _ => return Err(Broken::Malformed("a failure that is none")),
        }));
    }
    let tensors = reader.tensors(outputs, wanted)?;
    for (place, tensor) in wanted.iter().zip(&tensors) {
        let fitting = outputs.get(*place).is_some_and(|port| fits(tensor, port).is_ok()) && whole(tensor);
        room = room.checked_sub(tensor.data.len()).filter(|_| fitting).ok_or(Broken::Malformed("an output that does not fit"))?;
    }
    Ok(Ok(tensors))
}

/// Whether the elements are what their datatype says: strings as many as the shape says, each as long as it says, and of BOOL only 0 and 1.
fn whole(tensor: &Tensor) -> bool {
    match tensor.datatype {
        Datatype::Bytes => {}
        Datatype::Bool => return tensor.data.iter().all(|byte| *byte <= 1),
        _ => return true,
    }
    let (mut rest, mut found) = (&tensor.data[..], 0_usize);
    while let Some((length, more)) = rest.split_first_chunk::<4>() {
        let Some((text, after)) = more.split_at_checked(u32::from_le_bytes(*length) as usize) else { return false };
        if std::str::from_utf8(text).is_err() {
            return false;
        }
        (rest, found) = (after, found + 1);
    }
    rest.is_empty() && Some(found) == tensor.elements()
}

const REFUSED_ENGINE: u64 = 1;
const REFUSED_OTHERWISE_READ: u64 = 2;
const REFUSED_WORKER: u64 = 3;

const FAILED_INPUTS: u64 = 1;
const FAILED_MODEL: u64 = 2;
const FAILED_CONTRACT: u64 = 3;
const FAILED_TOO_MUCH: u64 = 4;

/// The kernel's own link to the running program.
const PROGRAM: &str = "/proc/self/exe";

/// All that a worker's environment holds: no telemetry, whatever the library is, and no more threads than one for computing.
const ENVIRONMENT: [(&str, &str); 2] = [("ORT_DISABLE_TELEMETRY", "1"), ("RAYON_NUM_THREADS", "1")];

/// A child that leaves no zombie behind, however its owner ends.
struct Reaped(Child);

impl Reaped {
    /// Kills it unless it is dead, and says how it ended.
    fn end_now(&mut self) -> String {
        // A worker that closed its socket dies in a moment, and how it does tells more than that it was killed.
        let until = Instant::now() + TICK;
        while Instant::now() < until {
            match self.0.try_wait() {
                Ok(Some(status)) => return How(status).to_string(),
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                Err(_) => break,
            }
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
        "killed by the gateway".to_owned()
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How a process ended, for the operator.
struct How(ExitStatus);

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.signal(), self.0.code()) {
            (Some(libc::SIGSYS), _) => f.write_str("killed by seccomp: it made a system call that is walled off"),
            (Some(libc::SIGKILL), _) => f.write_str("killed from outside (the kernel does that when memory runs out)"),
            (Some(libc::SIGSEGV | libc::SIGBUS), _) => f.write_str("crashed on memory that is not its own"),
            (Some(libc::SIGABRT), _) => f.write_str("it gave up (abort)"),
            (Some(signal), _) => write!(f, "ended by signal {signal}"),
            (None, code) => write!(f, "ended with exit code {}", code.unwrap_or(-1)),
        }
    }
}

#[cfg(test)]
mod tests;
