//! A model that runs in this machine.
//!
//! [`verify`] reads its bytes once and holds them to the digest that the policy names, or [`folder`] reads all its files and holds them to a
//! signature ([`signing`]); [`onnx`] walks them, bounded, and refuses what could
//! reach out of them or grow past them; the engine ([`runtime`], loaded from bytes that were hashed too) is given the very same bytes, on a
//! thread that owns it alone, behind a queue; and a run must succeed before the model is ready.
//!
//! The engine's C++ meets those bytes in a process of its own ([`worker`]), which gave up files, sockets, processes and rights before
//! (`walls`) and speaks with the gateway in `frames` of numbers.
//!
//! What a policy says of a model is in `config`, and how each kind of engine is started in `start`.

pub mod attached;
pub mod batch;
pub mod calibration;
mod config;
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
mod start;
mod unfit;
pub mod verify;
mod walls;
pub mod worker;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use crate::digest::Digest;
use crate::trail::{Assurance, Which, Who};
use crate::wire::tensor::Tensor;

use batch::Batching;
use calibration::Calibration;
use falls::Falls;
use golden::Golden;
use queue::Queue;
use worker::Inmate;

pub use config::{Bounds, Config, DEFAULT_LOAD_TIMEOUT, DEFAULT_MAX_OUTPUT, DEFAULT_MAX_SIZE, DEFAULT_QUEUE, Named};
pub use engine::Signature;
pub use format::Format;
pub use isolate::give_memory_back;
pub use onnx::Fault;
pub use runtime::Runtime;
pub use source::{Held, HeldTo, Source};
pub use verify::Verified;
pub use walls::{Isolation, Walls};

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
                write!(
                    f,
                    "the model's first run, on zeros and on ones, failed (`warm_up = {{ input = [1, 128] }}` gives the shapes to try): {error}"
                )
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
            Kind::Onnx => start::onnx(&source.name, held.weights()?, &held.beside, &bounds, &runtime().map_err(Refused::Runtime)?)?,
            Kind::OnnxEncoder => start::onnx_encoder(source, &held, &bounds, &runtime().map_err(Refused::Runtime)?)?,
            Kind::Safetensors => start::encoder(source, &held, &bounds)?,
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
        let queue = start::onnx(name, verified, &BTreeMap::new(), bounds, runtime)?;
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
            Kind::Onnx => onnx::read_beside(held.weights()?.bytes(), &onnx::Limits::DEFAULT, &start::lengths(&held.beside))?.0,
            Kind::OnnxEncoder => {
                let (_, needed, fitted) = start::fitted(source, &held)?;
                let others = held.beside.iter().filter(|(name, _)| needed.contains_key(*name)).map(|(_, file)| file);
                let rest = others.chain([held.weights()?]).map(|file| file.bytes().len()).sum();
                start::told_by_a_worker(source, Inmate::Tokenizer, &start::read(&held), rest, Some(fitted.signature().clone()))?
            }
            Kind::Safetensors => start::told_by_a_worker(source, Inmate::Encoder, &start::read(&held), 0, None)?,
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

    /// How many calls wait for it.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.waiting()
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
