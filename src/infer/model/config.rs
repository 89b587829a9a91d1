//! What a policy says of a model that runs here, and the bounds that come of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use toml::Spanned;

use super::attached::{self, Attached, MAX_CARD, MAX_GOLDEN};
use super::{Isolation, Kind, Source, batch, encoder, source};
use crate::mistake::Mistake;
use crate::unit::{Size, Span};

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
pub(super) const MAX_QUEUE: usize = 65_536;

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
    /// Whatever it names, whether it is there or not; `folder` as for [`Config::resolve`].
    pub fn named(&self, folder: &Path) -> impl Iterator<Item = PathBuf> {
        let path = folder.join(self.path.get_ref());
        // A signature is over all that lies beside the model.
        let beside = self.signature.as_ref().and_then(|_| path.parent().map(Path::to_owned));
        let files = [&self.signature, &self.trust, &self.calibration].into_iter().flatten().map(Spanned::get_ref);
        let attached = [&self.card, &self.golden].into_iter().flatten().filter_map(|named| match named.get_ref() {
            attached::Named::InFolder(_) => None,
            attached::Named::Beside { path, .. } => Some(path.as_path()),
        });
        let files: Vec<PathBuf> = files.map(PathBuf::as_path).chain(attached).map(|file| folder.join(file)).collect();
        [path].into_iter().chain(beside).chain(files)
    }

    /// What is to be loaded. `folder` is that of the file that holds the block, `root` the policy folder, which no path may leave, by `..` or
    /// by a link.
    ///
    /// # Errors
    /// Every mistake in the block.
    pub fn resolve(&self, kind: Kind, name: &str, version: &str, folder: &Path, root: &Path) -> Result<Source, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        // Where the folder is gone, how its digests are written tells.
        let at = folder.join(self.path.get_ref());
        let is_folder = at.is_dir() || !at.exists() && self.sha256.as_ref().is_some_and(|named| matches!(named.get_ref(), Named::Files(_)));
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
