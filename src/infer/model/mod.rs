//! A model that runs in this machine.
//!
//! [`verify`] reads its bytes once and holds them to the digest that the policy names; [`onnx`] walks them, bounded, and refuses what could
//! reach out of them or grow past them; the engine ([`runtime`], loaded from bytes that were hashed too) is given the very same bytes, on a
//! thread that owns it alone, behind a queue; and a run must succeed before the model is ready.
//!
//! The engine's C++ meets those bytes in a process of its own ([`worker`]), which gave up files, sockets, processes and rights before
//! ([`walls`]) and speaks with the gateway in [`frames`] of numbers.

pub mod batch;
pub mod calibration;
pub mod encoder;
mod engine;
mod frames;
mod isolate;
pub mod onnx;
mod onnxruntime;
mod queue;
pub mod runtime;
pub mod safetensors;
pub mod verify;
mod walls;
pub mod worker;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Deserialize;
use toml::Spanned;

use crate::digest::Digest;
use crate::mistake::Mistake;
use crate::trail::{Assurance, Which, Who};
use crate::unit::{Size, Span};
use crate::wire::tensor::Tensor;

use encoder::Encoder;
use onnxruntime::OnnxRuntime;
use queue::Queue;
use worker::{Inmate, Launch, Worker};

pub use engine::Signature;
pub use onnx::Fault;
pub use runtime::Runtime;
pub use verify::{Format, Verified};
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

/// `[backend.onnx]` of a model's file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The model, relative to the file that names it.
    pub path: Spanned<PathBuf>,
    /// Its SHA-256, 64 hexadecimal digits.
    pub sha256: Option<Spanned<String>>,
    /// A signature in place of the digest.
    pub signature: Option<Spanned<PathBuf>>,
    /// Whose signature.
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
    pub fn resolve(&self, name: &str, version: &str, folder: &Path, root: &Path) -> Result<Source, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        for (key, value) in [("signature", &self.signature), ("trust", &self.trust)] {
            if let Some(value) = value {
                let what = format!("`{key}` is not supported yet: name the file's digest with `sha256`");
                mistakes.push(Mistake::at(value.span(), what));
            }
        }
        let digest = match &self.sha256 {
            None => Err(Mistake::at(self.path.span(), "`sha256` is missing: the digest that `sha256sum` prints for the file")),
            Some(text) => text.get_ref().parse::<Digest>().map_err(|error| Mistake::at(text.span(), format!("`sha256`: {error}"))),
        };
        let digest = digest.map_err(|mistake| mistakes.push(mistake)).ok();
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
        let path = within(&folder.join(self.path.get_ref()), root);
        let path = path.map_err(|what| mistakes.push(Mistake::at(self.path.span(), what))).ok();
        match (path, digest) {
            (Some(path), Some(digest)) if mistakes.is_empty() => Ok(Source {
                name: name.into(),
                version: version.into(),
                path,
                digest,
                bounds: Bounds {
                    size: self.max_size.0,
                    queue,
                    output: self.max_output.0,
                    load: self.load_timeout.0,
                    isolation: self.isolation,
                    memory: self.memory.as_ref().map(|memory| memory.get_ref().0),
                    warm_up: self.warm_up.clone(),
                    batch,
                },
            }),
            _ => Err(mistakes),
        }
    }
}

/// The real path, if it is within `root`.
fn within(path: &Path, root: &Path) -> Result<PathBuf, String> {
    let missing = |path: &Path, error: io::Error| format!("`path`: {} cannot be found: {error}", path.display());
    let real = path.canonicalize().map_err(|error| missing(path, error))?;
    let root = root.canonicalize().map_err(|error| missing(root, error))?;
    if real.starts_with(&root) { Ok(real) } else { Err("`path` leaves the policy folder: put the model inside it".to_owned()) }
}

/// A model to load.
#[derive(Clone, Debug)]
pub struct Source {
    /// The name that callers write.
    pub name: Arc<str>,
    /// Its version; `""` if none.
    pub version: Arc<str>,
    /// The file.
    pub path: PathBuf,
    /// What it must hash to.
    pub digest: Digest,
    /// Its bounds.
    pub bounds: Bounds,
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
            Self::TookTooLong(limit) => write!(f, "the model was not ready within `load_timeout`, {} seconds", limit.as_secs_f32()),
        }
    }
}

impl std::error::Error for Refused {}

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
    load_micros: u64,
}

impl Model {
    /// Reads the file once, verifies it, and loads those bytes. It blocks, for milliseconds up to the bound: not for a request's task.
    ///
    /// # Errors
    /// [`Refused`], in words for the operator.
    pub fn load(source: &Source, runtime: &Runtime) -> Result<Self, Refused> {
        let from = Instant::now();
        let verified = Verified::from_file(&source.path, source.digest, source.bounds.size)?;
        Self::start(&source.name, &source.version, &verified, &source.bounds, runtime, from)
    }

    /// Loads a model whose bytes are in this process, such as the bundled one.
    ///
    /// # Errors
    /// [`Refused`], in words for the operator.
    pub fn from_verified(name: &str, version: &str, verified: &Verified, bounds: &Bounds, runtime: &Runtime) -> Result<Self, Refused> {
        Self::start(&name.into(), &version.into(), verified, bounds, runtime, Instant::now())
    }

    /// Loads an encoder from the files of its folder, which were verified as one and have `digest` together. Only those that an encoder reads
    /// are handed on.
    ///
    /// # Errors
    /// [`Refused`], in words for the operator.
    pub fn encoder(
        name: &str,
        version: &str,
        digest: Digest,
        mut files: encoder::Files,
        options: &encoder::Options,
        bounds: &Bounds,
    ) -> Result<Self, Refused> {
        let from = Instant::now();
        files.retain(|file, _| encoder::READ.contains(&file.as_str()) || file.ends_with("/config.json"));
        let options = encoder::Options { room: bounds.output, ..*options };
        let queue = if bounds.isolation == Isolation::Thread {
            let load = move || Encoder::load(&files, &options).map_err(|fault| Refused::Engine(fault.to_string()));
            Queue::start(name, bounds, move |_| Ok(Box::new(load()?)))?
        } else {
            let sealed = files.iter().map(|(file, bytes)| Ok((file.clone(), runtime::sealed(file, bytes).map_err(Refused::Worker)?)));
            let sealed = sealed.collect::<Result<Vec<_>, Refused>>()?;
            let size = files.values().map(Bytes::len).sum();
            drop(files);
            let launch = Launch::new(name, Inmate::Encoder, sealed, size, bounds);
            let launch = Launch { options: options.bytes().to_vec(), ..launch };
            Queue::start(name, bounds, move |stop| Ok(Box::new(Worker::start(launch, stop)?)))?
        };
        Ok(Self::of(queue, name.into(), version.into(), digest, "safetensors", bounds, from))
    }

    fn start(
        name: &Arc<str>,
        version: &Arc<str>,
        verified: &Verified,
        bounds: &Bounds,
        runtime: &Runtime,
        from: Instant,
    ) -> Result<Self, Refused> {
        let signature = onnx::read(verified.bytes(), &onnx::Limits::DEFAULT)?;
        let (runtime, room) = (runtime.clone(), bounds.output);
        let queue = if bounds.isolation == Isolation::Thread {
            let bytes = verified.bytes().clone();
            Queue::start(name, bounds, move |stop| Ok(Box::new(OnnxRuntime::load(&bytes, signature, room, &runtime, stop)?)))?
        } else {
            let file = runtime::sealed("model.onnx", verified.bytes()).map_err(Refused::Worker)?;
            let launch = Launch::new(name, Inmate::OnnxRuntime, vec![("model.onnx".to_owned(), file)], verified.bytes().len(), bounds);
            let launch = Launch { library: Some(runtime.library().clone()), signature: Some(signature), ..launch };
            Queue::start(name, bounds, move |stop| Ok(Box::new(Worker::start(launch, stop)?)))?
        };
        Ok(Self::of(queue, name.clone(), version.clone(), verified.digest(), "onnx", bounds, from))
    }

    fn of(queue: Queue, name: Arc<str>, version: Arc<str>, digest: Digest, format: &str, bounds: &Bounds, from: Instant) -> Self {
        let which = Which { name, version, digest: Some(digest), format: format.into(), assurance: Assurance::VerifiedInProcess };
        let load_micros = u64::try_from(from.elapsed().as_micros()).unwrap_or(u64::MAX);
        Self { queue, isolation: bounds.isolation, which: which.into(), load_micros }
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
        self.queue.run(inputs, outputs, who, deadline).await
    }
}

#[cfg(test)]
mod tests;
