//! A model that runs in this machine.
//!
//! [`verify`] reads its bytes once and holds them to the digest that the policy names, or [`folder`] reads all its files and holds them to a
//! signature ([`signing`]); [`onnx`] walks them, bounded, and refuses what could
//! reach out of them or grow past them; the engine ([`runtime`], loaded from bytes that were hashed too) is given the very same bytes, on a
//! thread that owns it alone, behind a queue; and a run must succeed before the model is ready.
//!
//! The engine's C++ meets those bytes in a process of its own ([`worker`]), which gave up files, sockets, processes and rights before
//! (`walls`) and speaks with the gateway in `frames` of numbers.

pub mod attached;
pub mod batch;
pub mod calibration;
pub mod encoder;
mod engine;
pub mod falls;
pub mod folder;
pub mod format;
mod frames;
pub mod golden;
mod isolate;
pub mod onnx;
mod onnxruntime;
mod parcel;
mod queue;
pub mod runtime;
pub mod safetensors;
pub mod signing;
mod source;
pub mod verify;
mod walls;
pub mod worker;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use serde::Deserialize;
use toml::Spanned;

use crate::digest::Digest;
use crate::mistake::Mistake;
use crate::trail::{Assurance, Which, Who};
use crate::unit::{Size, Span};
use crate::wire::tensor::Tensor;

use attached::{Attached, MAX_CARD, MAX_GOLDEN};
use batch::Batching;
use calibration::Calibration;
use encoder::{Encoder, Graph};
use falls::Falls;
use golden::Golden;
use onnxruntime::OnnxRuntime;
use parcel::Parcel;
use queue::Queue;
use worker::{Inmate, Launch, Worker};

pub use engine::Signature;
pub use format::Format;
pub use onnx::Fault;
pub use runtime::Runtime;
pub use source::{Held, HeldTo, Source};
pub use verify::Verified;
pub use walls::{Isolation, Walls};

/// The largest ONNX file, unless the policy says otherwise. Protobuf itself ends at 2 GiB.
pub const DEFAULT_MAX_SIZE: Size = Size(512 << 20);

/// How many calls may wait for a model, unless the policy says otherwise. The one that runs is not counted.
pub const DEFAULT_QUEUE: usize = 64;

/// The most bytes that the outputs of one call may have together, unless the policy says otherwise.
pub const DEFAULT_MAX_OUTPUT: Size = Size(16 << 20);

/// How long a model may take to load and to run for the first time, unless the policy says otherwise.
pub const DEFAULT_LOAD_TIMEOUT: Span = Span(Duration::from_secs(60));

/// The least bound on a worker's address space: the program and ONNX Runtime take 90 MB of it.
const LEAST_MEMORY: Size = Size(128 << 20);

/// The longest queue that a policy may ask for: past it, the answers would come too late for anyone.
const MAX_QUEUE: usize = 65_536;

/// Which engine runs a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ONNX Runtime, one file, which takes and gives tensors: `[backend.onnx]`.
    Onnx,
    /// ONNX Runtime, the folder of an encoder, which takes texts: `[backend.onnx]` whose `path` is a folder.
    OnnxEncoder,
    /// The encoders, a folder: `[backend.safetensors]`.
    Safetensors,
}

impl Kind {
    /// The format, as statements and logs have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Onnx | Self::OnnxEncoder => "onnx",
            Self::Safetensors => "safetensors",
        }
    }

    /// Whether it is an encoder, which is a folder.
    #[must_use]
    pub const fn is_encoder(self) -> bool {
        matches!(self, Self::OnnxEncoder | Self::Safetensors)
    }
}

/// By which digests a policy names a model.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Named {
    /// A file, by its SHA-256 of 64 hexadecimal digits.
    File(String),
    /// The files of a folder, each by its own; no other is opened.
    Files(BTreeMap<String, String>),
}

/// `[backend.onnx]` or `[backend.safetensors]` of a model's file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The model, relative to the file that names it: a file or the folder of an encoder for ONNX, a folder for safetensors.
    pub path: Spanned<PathBuf>,
    /// Its SHA-256, or those of its files; or else `signature` and `trust`.
    pub sha256: Option<Spanned<Named>>,
    /// An OpenSSF Model Signing bundle over the model's folder, relative to the file that names it.
    pub signature: Option<Spanned<PathBuf>>,
    /// Whose signature: PEM, a public key or the certificates of authorities.
    pub trust: Option<Spanned<PathBuf>>,
    /// The largest file that is read; [`DEFAULT_MAX_SIZE`].
    #[serde(default = "default_max_size")]
    pub max_size: Size,
    /// How many calls may wait, at least 1; [`DEFAULT_QUEUE`].
    pub queue: Option<Spanned<usize>>,
    /// The most bytes of one answer's tensors; [`DEFAULT_MAX_OUTPUT`].
    #[serde(default = "default_max_output")]
    pub max_output: Size,
    /// How long it may take until it is ready; [`DEFAULT_LOAD_TIMEOUT`].
    #[serde(default = "default_load_timeout")]
    pub load_timeout: Span,
    /// How it is walled in; [`Isolation::Required`].
    #[serde(default)]
    pub isolation: Isolation,
    /// The bound on its worker's address space; by default 512 MiB, four times the file and four times `max_output`.
    pub memory: Option<Spanned<Size>>,
    /// The shapes of the first run, by input. Free dimensions are 1 otherwise, which not every model takes.
    #[serde(default)]
    pub warm_up: BTreeMap<String, Vec<u64>>,
    /// Temperatures by which a classifier's scores are scaled, relative to the file that names it.
    pub calibration: Option<Spanned<PathBuf>>,
    /// What it says of itself, for people: a file of the model's folder, or one beside it with its digest.
    pub card: Option<Spanned<attached::Named>>,
    /// What it must answer before it is ready; named as the card is.
    pub golden: Option<Spanned<attached::Named>>,
    /// For encoders: how the vectors of tokens become one, in place of what the folder says.
    pub pooling: Option<Spanned<encoder::Pooling>>,
    /// For encoders: whether vectors are brought to length 1, in place of what the folder says.
    pub normalize: Option<Spanned<bool>>,
    /// Whether calls that wait at the same time are answered by one run; not, where it is left out.
    pub batch: Option<batch::Config>,
}

fn default_max_size() -> Size {
    DEFAULT_MAX_SIZE
}

fn default_max_output() -> Size {
    DEFAULT_MAX_OUTPUT
}

fn default_load_timeout() -> Span {
    DEFAULT_LOAD_TIMEOUT
}

impl Config {
    /// What is to be loaded. `folder` is that of the file that holds the block, `root` the policy folder, which no path may leave, by `..` or
    /// by a link.
    ///
    /// # Errors
    /// Every mistake in the block.
    pub fn resolve(&self, kind: Kind, name: &str, version: &str, folder: &Path, root: &Path) -> Result<Source, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let is_folder = folder.join(self.path.get_ref()).is_dir();
        let kind = if kind == Kind::Onnx && is_folder { Kind::OnnxEncoder } else { kind };
        if kind == Kind::Onnx {
            let spans = self.pooling.as_ref().map(Spanned::span).into_iter().chain(self.normalize.as_ref().map(Spanned::span));
            mistakes.extend(
                spans.map(|span| Mistake::at(span, "`pooling` and `normalize` are for encoders: [backend.safetensors], or a folder")),
            );
        } else if !self.warm_up.is_empty() {
            mistakes.push(Mistake::at(self.path.span(), "`warm_up` is for a file of [backend.onnx]: an encoder takes any text"));
        }
        let calibration = source::temperatures(self, folder, root).map_err(|mistake| mistakes.push(mistake)).ok().flatten();
        let mut attached = |key, named: &Option<Spanned<attached::Named>>, limit| {
            let resolved = named.as_ref().map(|named| Attached::resolve(key, named, (kind, self), (folder, root), limit)).transpose();
            resolved.map_err(|mistake| mistakes.push(mistake)).ok().flatten()
        };
        let (card, golden) = (attached("card", &self.card, MAX_CARD), attached("golden", &self.golden, MAX_GOLDEN));
        let held_to = source::held_to(self, kind, folder, root).map_err(|more| mistakes.extend(more)).ok();
        let queue = self.queue.as_ref().map_or(DEFAULT_QUEUE, |queue| *queue.get_ref());
        if let (Some(at), false) = (&self.queue, (1..=MAX_QUEUE).contains(&queue)) {
            mistakes.push(Mistake::at(at.span(), format!("`queue` is from 1 to {MAX_QUEUE}")));
        }
        if let Some(memory) = &self.memory {
            if self.isolation == Isolation::Thread {
                mistakes.push(Mistake::at(memory.span(), "`memory` bounds a worker, and `isolation = \"thread\"` has none"));
            } else if memory.get_ref().0 < LEAST_MEMORY.0 {
                mistakes.push(Mistake::at(memory.span(), "`memory` is at least \"128MiB\""));
            }
        }
        let batch = self.batch.as_ref().map(batch::Config::resolve).transpose().map_err(|more| mistakes.extend(more)).ok().flatten();
        match held_to {
            Some((path, held_to)) if mistakes.is_empty() => Ok(Source {
                kind,
                pooling: self.pooling.as_ref().map(|pooling| *pooling.get_ref()),
                normalize: self.normalize.as_ref().map(|normalize| *normalize.get_ref()),
                calibration,
                card,
                golden,
                name: name.into(),
                version: version.into(),
                path,
                held_to,
                bounds: Bounds {
                    size: self.max_size.0,
                    queue,
                    output: self.max_output.0,
                    load: self.load_timeout.0,
                    isolation: self.isolation,
                    memory: self.memory.as_ref().map(|memory| memory.get_ref().0),
                    warm_up: self.warm_up.clone(),
                    batch,
                    golden: None,
                },
            }),
            _ => Err(mistakes),
        }
    }
}

/// The bounds of a model.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// The largest file, in bytes.
    pub size: usize,
    /// How many calls may wait.
    pub queue: usize,
    /// The most bytes that the outputs of one call may have together.
    pub output: usize,
    /// How long it may take until it is ready.
    pub load: Duration,
    /// How it is walled in.
    pub isolation: Isolation,
    /// The bound on its worker's address space, in bytes; none leaves it to the file's size.
    pub memory: Option<usize>,
    /// The shapes of the first run, by input.
    pub warm_up: BTreeMap<String, Vec<u64>>,
    /// How calls are joined; each runs alone where there is none.
    pub batch: Option<batch::Plan>,
    /// The file of what it must answer before it is ready.
    pub golden: Option<Bytes>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            size: DEFAULT_MAX_SIZE.0,
            queue: DEFAULT_QUEUE,
            output: DEFAULT_MAX_OUTPUT.0,
            load: DEFAULT_LOAD_TIMEOUT.0,
            isolation: Isolation::default(),
            memory: None,
            warm_up: BTreeMap::new(),
            batch: None,
            golden: None,
        }
    }
}

/// Why a model is not loaded. For the operator: it tells paths and digests, and never reaches a caller. Code `infer.model`.
#[derive(Debug)]
pub enum Refused {
    /// ONNX Runtime is missing or is not what it should be.
    Runtime(runtime::Broken),
    /// The file cannot be read.
    Unreadable(PathBuf, io::Error),
    /// It is a folder, a device or a pipe.
    NotAFile,
    /// It is larger than the policy allows.
    TooLarge {
        /// Bytes.
        limit: usize,
    },
    /// It is not the file that the policy names.
    WrongDigest {
        /// What the policy says.
        named: Digest,
        /// What the file has.
        found: Digest,
    },
    /// It is of a format that is not loaded.
    Format(Format),
    /// The folder is not what was signed, or the signature does not count.
    Folder(folder::Fault),
    /// It is no ONNX file, or one that is not loaded.
    Onnx(Fault),
    /// The engine did not take it.
    Engine(String),
    /// The engine understands its inputs and outputs otherwise than the walk over the file did.
    ReadDifferently,
    /// The first run failed.
    WarmUp(String),
    /// Its calls cannot be joined as the policy wants.
    Batch(String),
    /// It is no encoder that is run.
    Encoder(encoder::Fault),
    /// Its scores cannot be scaled as the file says.
    Calibration(calibration::Fault),
    /// A file that comes with it is longer than it may be.
    TooLongBeside {
        /// Its name.
        name: String,
        /// Bytes.
        limit: usize,
    },
    /// Its card is no text.
    Card,
    /// It does not answer what it must.
    Golden(golden::Fault),
    /// It was not ready in time.
    TookTooLong(Duration),
    /// The policy demands walls that do not stand on this machine.
    WallsMissing {
        /// What it demands.
        isolation: Isolation,
        /// What is missing of it.
        missing: Walls,
    },
    /// Its worker did not start, or died before it was ready.
    Worker(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runtime(broken) => write!(f, "{broken}"),
            Self::Unreadable(path, error) => write!(f, "{} cannot be read: {error}", path.display()),
            Self::NotAFile => f.write_str("the model is not a regular file. Name the .onnx file itself"),
            Self::TooLarge { limit } => write!(f, "the model is larger than `max_size`, which is {limit} bytes"),
            Self::WrongDigest { named, found } => {
                write!(f, "the file is not the model that the policy names: its SHA-256 is {found}, the policy says {named}")
            }
            Self::Format(format) => write!(f, "the file is {format}"),
            Self::Folder(fault) => write!(f, "{fault}"),
            Self::Onnx(fault) => write!(f, "the file is not loaded: {fault}"),
            Self::Engine(error) => write!(f, "the engine does not take the model: {error}"),
            Self::ReadDifferently => {
                f.write_str("ONNX Runtime understands the model's inputs and outputs otherwise than they are written in the file")
            }
            Self::WarmUp(error) => {
                write!(f, "the model's first run, on zeros, failed (`warm_up = {{ input = [1, 128] }}` gives the shapes to try): {error}")
            }
            Self::WallsMissing { isolation, missing } => write!(
                f,
                "isolation = \"{}\" demands walls that this machine does not give: {missing}. `portcullis walls` shows them all; \
                 \"best-effort\" loads the model behind those there are",
                isolation.as_str()
            ),
            Self::Worker(why) => write!(f, "the model's worker did not come up: {why}"),
            Self::Batch(why) => f.write_str(why),
            Self::Encoder(fault) => write!(f, "the model is not loaded: {fault}"),
            Self::Calibration(fault) => write!(f, "`calibration`: {fault}"),
            Self::TooLongBeside { name, limit } => write!(f, "{name:?} is longer than {limit} bytes"),
            Self::Card => f.write_str("`card` is not text in UTF-8"),
            Self::Golden(fault) => write!(f, "`golden`: {fault}"),
            Self::TookTooLong(limit) => write!(f, "the model was not ready within `load_timeout`, {} seconds", limit.as_secs_f32()),
        }
    }
}

impl std::error::Error for Refused {}

impl From<folder::Fault> for Refused {
    fn from(fault: folder::Fault) -> Self {
        Self::Folder(fault)
    }
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        Self::Onnx(fault)
    }
}

/// Why a call had no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The inputs are not the model's: `check.tensor`, 400. `check` refuses them before; this holds the line behind it.
    CallerSentOtherInputs(&'static str),
    /// An output was asked for that the model does not have, or twice: `check.output`, 400.
    CallerAskedForOtherOutputs,
    /// As many calls wait as may: `infer.unavailable`, 503.
    QueueIsFull,
    /// The engine's thread is gone: `infer.unavailable`, 503.
    EngineStopped,
    /// The deadline passed while it waited or ran: `infer.deadline`, 504. The run was told to stop.
    DeadlinePassed,
    /// The engine gave up on these inputs, for example on shapes that do not fit each other: `infer.failed`, 502. The text is for the log.
    ModelFailed(Arc<str>),
    /// An output is not of the type or the shape that the file declares: `infer.failed`, 502.
    ModelBrokeItsContract(&'static str),
    /// The outputs are larger than the bound: `infer.too_large`, 502.
    ModelAnsweredTooMuch,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CallerSentOtherInputs(why) | Self::ModelBrokeItsContract(why) => f.write_str(why),
            Self::CallerAskedForOtherOutputs => f.write_str("the model has no such output, or it is asked for twice"),
            Self::QueueIsFull => f.write_str("too many calls wait for the model"),
            Self::EngineStopped => f.write_str("the model's engine has stopped"),
            Self::DeadlinePassed => f.write_str("the model did not answer in time"),
            Self::ModelFailed(why) => write!(f, "the model failed: {why}"),
            Self::ModelAnsweredTooMuch => f.write_str("the model's answer is too large"),
        }
    }
}

impl std::error::Error for Error {}

/// A model that was verified, is loaded and has run once. Dropping it stops its thread.
#[derive(Debug)]
pub struct Model {
    queue: Queue,
    isolation: Isolation,
    which: Arc<Which>,
    file: Digest,
    others: BTreeMap<String, Digest>,
    calibration: Option<Calibration>,
    card: Option<Bytes>,
    load_micros: u64,
}

impl Model {
    /// Reads it once, verifies it, and loads those bytes. It blocks, for milliseconds up to the bound: not for a request's task. `runtime` is
    /// asked for ONNX models alone.
    ///
    /// # Errors
    /// [`Refused`], in words for the operator.
    pub fn load(source: &Source, runtime: impl FnOnce() -> Result<Runtime, runtime::Broken>) -> Result<Self, Refused> {
        let from = Instant::now();
        let held = source.verify(SystemTime::now())?;
        let bounds = Bounds { golden: held.golden.clone(), ..source.bounds.clone() };
        let queue = match source.kind {
            Kind::Onnx => onnx(&source.name, held.weights()?, &held.beside, &bounds, &runtime().map_err(Refused::Runtime)?)?,
            Kind::OnnxEncoder => onnx_encoder(source, &held, &bounds, &runtime().map_err(Refused::Runtime)?)?,
            Kind::Safetensors => encoder(source, &held, &bounds)?,
        };
        let calibration = calibration(source, queue.signature())?;
        let file = held.weights()?.digest();
        let which = which(&source.name, &source.version, held.digest, source.kind);
        let (isolation, others, card) = (bounds.isolation, held.others(), held.card);
        Ok(Self { queue, isolation, which, file, others, calibration, card, load_micros: micros(from) })
    }

    /// Loads an ONNX model whose bytes are in this process, such as the bundled one.
    ///
    /// # Errors
    /// [`Refused`], in words for the operator.
    pub fn from_verified(name: &str, version: &str, verified: &Verified, bounds: &Bounds, runtime: &Runtime) -> Result<Self, Refused> {
        let from = Instant::now();
        let queue = onnx(name, verified, &BTreeMap::new(), bounds, runtime)?;
        let which = which(&name.into(), &version.into(), verified.digest(), Kind::Onnx);
        Ok(Self {
            queue,
            isolation: bounds.isolation,
            which,
            file: verified.digest(),
            others: BTreeMap::new(),
            calibration: None,
            card: None,
            load_micros: micros(from),
        })
    }

    /// What a model would take and give, and its digest, without an engine for ONNX. The tokenizer of an encoder, which is a program in all but
    /// name, is read by a worker, and so are the weights of one from safetensors: behind the walls that this machine gives, whatever the
    /// policy demands, and within the memory that the model would have.
    ///
    /// # Errors
    /// [`Refused`], in words for the operator.
    pub fn contract(source: &Source) -> Result<(Digest, Signature), Refused> {
        let held = source.verify(SystemTime::now())?;
        let signature = match source.kind {
            Kind::Onnx => onnx::read_beside(held.weights()?.bytes(), &onnx::Limits::DEFAULT, &lengths(&held.beside))?.0,
            Kind::OnnxEncoder => {
                let (_, needed, fitted) = fitted(source, &held)?;
                let others = held.beside.iter().filter(|(name, _)| needed.contains_key(*name)).map(|(_, file)| file);
                let rest = others.chain([held.weights()?]).map(|file| file.bytes().len()).sum();
                told_by_a_worker(source, Inmate::Tokenizer, &read(&held), rest, Some(fitted.signature().clone()))?
            }
            Kind::Safetensors => told_by_a_worker(source, Inmate::Encoder, &read(&held), 0, None)?,
        };
        Batching::new(source.bounds.batch.as_ref(), &signature).map_err(Refused::Batch)?;
        calibration(source, &signature)?;
        held.golden.as_deref().map(|golden| Golden::read(golden, &signature)).transpose().map_err(Refused::Golden)?;
        Ok((held.digest, signature))
    }

    /// Whether its engine's thread lives. One that died, by a fault of ours, takes no calls any more and is to be loaded again.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.queue.is_open()
    }

    /// What it takes, and what it gives: its contract.
    #[must_use]
    pub fn signature(&self) -> &Signature {
        self.queue.signature()
    }

    /// Which model it is, for receipts and spans.
    #[must_use]
    pub fn which(&self) -> Arc<Which> {
        self.which.clone()
    }

    /// The digest of the file that was loaded, which is not that of the model where a signature covers more than one.
    #[must_use]
    pub fn file(&self) -> Digest {
        self.file
    }

    /// The digests of the files that were verified with it, by their names below its folder; those of the weights are not among them.
    #[must_use]
    pub fn others(&self) -> &BTreeMap<String, Digest> {
        &self.others
    }

    /// Its card, text in UTF-8.
    #[must_use]
    pub fn card(&self) -> Option<&Bytes> {
        self.card.as_ref()
    }

    /// What became of its workers.
    #[must_use]
    pub fn falls(&self) -> &Falls {
        self.queue.falls()
    }

    /// How it is walled in, and the walls that stood when it was ready.
    #[must_use]
    pub fn walls(&self) -> (Isolation, Walls) {
        (self.isolation, self.queue.walls())
    }

    /// The same in words, for the operator, who is told what does not stand by its name.
    #[must_use]
    pub fn walled(&self) -> String {
        let (isolation, walls) = self.walls();
        if isolation == Isolation::Thread {
            return "isolation = \"thread\": no wall stands around its engine, which shares the gateway's process".to_owned();
        }
        let missing = Walls::every().without(walls);
        let not = if missing.is_empty() { String::new() } else { format!("; not: {missing}") };
        format!("a worker behind walls (isolation = \"{}\"): {walls}{not}", isolation.as_str())
    }

    /// How long reading, verifying, loading and the first run took together, in microseconds.
    #[must_use]
    pub fn load_micros(&self) -> u64 {
        self.load_micros
    }

    /// Runs it for `who`: callers take turns. `outputs` names those that are wanted, in their order; all of them where it is empty. When the
    /// deadline passes, or the future is dropped, a call that waits is skipped and one that runs is told to stop.
    ///
    /// # Errors
    /// [`Error`] says who is at fault.
    pub async fn run(&self, inputs: Vec<Tensor>, outputs: &[String], who: &Arc<Who>, deadline: Instant) -> Result<Vec<Tensor>, Error> {
        let mut answer = self.queue.run(inputs, outputs, who, deadline).await?;
        if let Some(calibration) = &self.calibration {
            answer.iter_mut().for_each(|tensor| calibration.apply(tensor));
        }
        Ok(answer)
    }
}

/// An ONNX model, by ONNX Runtime.
fn onnx(
    name: &str,
    verified: &Verified,
    beside: &BTreeMap<String, Verified>,
    bounds: &Bounds,
    runtime: &Runtime,
) -> Result<Queue, Refused> {
    let (signature, used) = onnx::read_beside(verified.bytes(), &onnx::Limits::DEFAULT, &lengths(beside))?;
    let beside = beside.iter().filter(|(name, _)| used.contains_key(*name)).map(|(name, file)| (name.clone(), file.bytes().clone()));
    let beside: Vec<(String, Bytes)> = beside.collect();
    if bounds.isolation == Isolation::Thread {
        let (bytes, runtime, room) = (verified.bytes().clone(), runtime.clone(), bounds.output);
        return Queue::start(name, bounds, move |stop| {
            let beside = beside.iter().map(|(name, file)| (name.as_str(), &file[..]));
            Ok(Box::new(OnnxRuntime::load(&bytes, beside, signature, room, &runtime, stop)?))
        });
    }
    let beside = beside.iter().map(|(name, file)| (name.as_str(), &file[..]));
    let files = std::iter::once((source::MODEL, &verified.bytes()[..])).chain(beside);
    let launch = Launch::new(name, Inmate::OnnxRuntime, Parcel::of(files).map_err(Refused::Worker)?, bounds);
    let launch = Launch { library: Some(runtime.library().clone()), signature: Some(signature), ..launch };
    Queue::start(name, bounds, move |stop| Ok(Box::new(Worker::start(launch, stop)?)))
}

fn lengths(files: &BTreeMap<String, Verified>) -> onnx::Beside {
    files.iter().map(|(name, file)| (name.clone(), file.bytes().len() as u64)).collect()
}

/// An encoder, from those files of its folder that one reads.
fn encoder(source: &Source, held: &Held, bounds: &Bounds) -> Result<Queue, Refused> {
    let (files, options) = (read(held), options(source));
    if bounds.isolation == Isolation::Thread {
        return Queue::start(&source.name, bounds, move |_| Ok(Box::new(Encoder::load(&files, &options).map_err(Refused::Encoder)?)));
    }
    let launch = Launch::new(&source.name, Inmate::Encoder, packed(&files)?, bounds);
    let launch = Launch { options: options.bytes().to_vec(), ..launch };
    Queue::start(&source.name, bounds, move |stop| Ok(Box::new(Worker::start(launch, stop)?)))
}

/// An encoder, from an ONNX file and those files beside it that one reads. Its tokenizer is not looked at here, unless the encoder shares this process.
fn onnx_encoder(source: &Source, held: &Held, bounds: &Bounds, runtime: &Runtime) -> Result<Queue, Refused> {
    let (graph, used, fitted) = fitted(source, held)?;
    let model = held.weights()?.bytes().clone();
    let beside = held.beside.iter().filter(|(name, _)| used.contains_key(*name)).map(|(name, file)| (name.clone(), file.bytes().clone()));
    let (beside, mut files): (BTreeMap<String, Bytes>, _) = (beside.collect(), read(held));
    if bounds.isolation == Isolation::Thread {
        let (runtime, room) = (runtime.clone(), bounds.output);
        return Queue::start(&source.name, bounds, move |stop| {
            let beside = beside.iter().map(|(name, file)| (name.as_str(), &file[..]));
            let engine = OnnxRuntime::load(&model, beside, graph, room, &runtime, stop)?;
            Ok(Box::new(Encoder::around(fitted, &files, engine).map_err(Refused::Encoder)?))
        });
    }
    files.extend(beside);
    files.insert(source::MODEL.to_owned(), model);
    let launch = Launch::new(&source.name, Inmate::OnnxEncoder, packed(&files)?, bounds);
    let (library, options, signature) =
        (Some(runtime.library().clone()), options(source).bytes().to_vec(), Some(fitted.signature().clone()));
    let launch = Launch { library, options, signature, ..launch };
    Queue::start(&source.name, bounds, move |stop| Ok(Box::new(Worker::start(launch, stop)?)))
}

/// What a worker reads in these files of an encoder; `rest` are the bytes of those that it would have with them if it served.
fn told_by_a_worker(
    source: &Source,
    inmate: Inmate,
    files: &encoder::Files,
    rest: usize,
    signature: Option<Signature>,
) -> Result<Signature, Refused> {
    // What stands is told where it serves; another machine may check.
    let bounds = Bounds { isolation: Isolation::BestEffort, ..source.bounds.clone() };
    let files = packed(files)?;
    let memory = worker::memory(&bounds, files.size().saturating_add(rest));
    let launch =
        Launch { options: options(source).bytes().to_vec(), memory, signature, ..Launch::new(&source.name, inmate, files, &bounds) };
    // It ends when it is dropped.
    Ok(engine::Engine::signature(&Worker::start(launch, &engine::Stop::default())?).clone())
}

fn packed(files: &encoder::Files) -> Result<Parcel, Refused> {
    Parcel::of(files.iter().map(|(name, file)| (name.as_str(), &file[..]))).map_err(Refused::Worker)
}

/// What the graph of an encoder takes and gives, the files beside it that its tensors lie in, and the encoder around it.
fn fitted(source: &Source, held: &Held) -> Result<(Signature, onnx::Needed, Graph), Refused> {
    let (graph, used) = onnx::read_beside(held.weights()?.bytes(), &onnx::Limits::DEFAULT, &lengths(&held.beside))?;
    let fitted = Graph::fit(&graph, &read(held), &options(source)).map_err(Refused::Encoder)?;
    Ok((graph, used, fitted))
}

/// The files that an encoder reads. The pooling may lie in any folder that its list of modules names.
fn read(held: &Held) -> encoder::Files {
    let others = if held.kind == Kind::Safetensors { source::MODEL } else { source::WEIGHTS };
    let wanted = |name: &str| (encoder::READ.contains(&name) || name.ends_with("/config.json")) && name != others;
    held.files.iter().filter(|(name, _)| wanted(name)).map(|(name, file)| (name.clone(), file.bytes().clone())).collect()
}

fn options(source: &Source) -> encoder::Options {
    encoder::Options { pooling: source.pooling, normalize: source.normalize, room: source.bounds.output }
}

fn calibration(source: &Source, signature: &Signature) -> Result<Option<Calibration>, Refused> {
    let file = source.calibration.as_ref();
    file.map(|(_, bytes)| Calibration::read(bytes, &signature.outputs).map_err(Refused::Calibration)).transpose()
}

fn which(name: &Arc<str>, version: &Arc<str>, digest: Digest, kind: Kind) -> Arc<Which> {
    let (name, version, format) = (name.clone(), version.clone(), kind.as_str().into());
    Arc::new(Which { name, version, digest: Some(digest), format, assurance: Assurance::VerifiedInProcess })
}

fn micros(from: Instant) -> u64 {
    u64::try_from(from.elapsed().as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
