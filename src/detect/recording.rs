//! What callers of a model ask, written down so that `portcullis calibrate` can learn from it what honest ones do.
//!
//! It keeps inputs in the clear, so it is the owner's choice: without `[detect.recording]` nothing is written. Callers stand in it by a
//! pseudonym of a day, by a key that is gone with the day: one caller in it is one caller-day. No request waits for it, and none fails for it:
//! what cannot be written is counted. Nobody has more in it than the caps allow, so that nobody can be most of what is learned.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::Deserialize;
use toml::Spanned;

use crate::check::Contract;
use crate::lines::Lines;
use crate::mistake::Mistake;
use crate::trail::Who;
use crate::unit::Size;
use crate::wire::oip::InferRequest;
use crate::wire::tensor::Tensor;

mod file;
mod pseudonyms;
mod read;
mod scribe;

pub use file::{Error, delete};
pub use read::{Entry, Line, MOST_LINE, Reader};

use scribe::Scribe;

/// Caller-days that a recording holds, unless the policy says otherwise: enough for a rate of one false alarm in 20,000 caller-days.
pub const CALLERS: usize = 20_000;
/// The most that it can be told to hold.
pub const MOST_CALLERS: usize = 1_000_000;

/// Rows of one caller-day, unless the policy says otherwise: past that bounds change by little.
pub const ROWS: u32 = 256;
/// The most that can be kept of one.
pub const MOST_ROWS: u32 = 65_536;

/// Bytes of the file, unless the policy says otherwise.
pub const BYTES: Size = Size(256 << 20);
/// The least that is any use, and the most.
pub const BYTES_RANGE: [Size; 2] = [Size(1 << 10), Size(64 << 30)];

/// Requests that may wait to be written, and bytes of their tensors. What more comes is counted and not written.
pub const MOST_WAITING: usize = 4_096;
/// See [`MOST_WAITING`].
pub const MOST_WAITING_BYTES: usize = 32 << 20;

/// What a request that waits takes beside its tensors' elements.
const OVERHEAD: usize = 256;

/// `[detect.recording]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The file, relative to the model's; it may lie outside of the policy folder.
    pub file: Spanned<PathBuf>,
    /// The most caller-days in it.
    pub callers: Option<Spanned<usize>>,
    /// The most rows of one.
    pub rows: Option<Spanned<u32>>,
    /// The most bytes of it.
    pub bytes: Option<Spanned<Size>>,
}

/// How much is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Caller-days.
    pub callers: usize,
    /// Rows of one.
    pub rows: u32,
    /// Bytes.
    pub bytes: u64,
    /// Whether the model takes any number of rows, so that a batch can be cut to those that are still wanted.
    batched: bool,
}

impl Config {
    /// Where is recorded, and how much; what is wrong is added to `mistakes`. Relative paths are relative to `base`.
    pub fn resolve(&self, base: &Path, contract: Option<&Contract>, mistakes: &mut Vec<Mistake>) -> (PathBuf, Caps) {
        let at = self.file.span();
        if contract.is_none() {
            mistakes.push(Mistake::at(
                at.clone(),
                "what a model elsewhere answers is not recorded: give `portcullis calibrate --recording` a file with its answers",
            ));
        }
        if self.file.get_ref().file_name().is_none() {
            mistakes.push(Mistake::at(at, "`file` is the path of a file, as \"../../NAME.recording.jsonl\""));
        }
        let caps = Caps {
            callers: within("callers", self.callers.as_ref(), CALLERS, [1, MOST_CALLERS], mistakes),
            rows: within("rows", self.rows.as_ref(), ROWS, [1, MOST_ROWS], mistakes),
            bytes: within("bytes", self.bytes.as_ref(), BYTES, BYTES_RANGE, mistakes).0 as u64,
            batched: contract.is_some_and(|contract| contract.inputs.iter().all(|input| input.shape.first() == Some(&None))),
        };
        let path = base.join(self.file.get_ref());
        // Two names of one folder are no two files.
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
        let path = folder.zip(path.file_name()).map_or_else(|| path.clone(), |(folder, name)| folder.join(name));
        (path, caps)
    }
}

fn within<T: Copy + PartialOrd + std::fmt::Debug>(
    name: &str,
    told: Option<&Spanned<T>>,
    otherwise: T,
    [least, most]: [T; 2],
    mistakes: &mut Vec<Mistake>,
) -> T {
    let Some(told) = told else { return otherwise };
    if *told.get_ref() < least || *told.get_ref() > most {
        mistakes.push(Mistake::at(told.span(), format!("`{name}` is from {least:?} to {most:?}")));
    }
    *told.get_ref()
}

/// What a model's policy says of recording.
#[derive(Clone, Debug)]
pub struct Recording {
    path: PathBuf,
    caps: Caps,
    /// Where a gateway runs.
    book: Option<Arc<Book>>,
}

impl Recording {
    /// What is asked goes to `book`, as far as `caps` allow; nowhere without one.
    #[must_use]
    pub fn new(path: PathBuf, caps: Caps, book: Option<Arc<Book>>) -> Self {
        Self { path, caps, book }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What stands in it, where a gateway runs.
    #[must_use]
    pub fn book(&self) -> Option<&Arc<Book>> {
        self.book.as_ref()
    }

    /// Has written down what a caller asks. Neither waits nor fails.
    pub(super) fn take(&self, who: &Who, request: &InferRequest, now: SystemTime) {
        let Some(book) = &self.book else { return };
        if request.inputs.iter().all(|tensor| tensor.data.is_empty()) {
            return;
        }
        let weight = OVERHEAD + request.inputs.iter().map(|tensor| tensor.data.len()).sum::<usize>();
        let tally = &book.tally;
        let room = tally.waiting.fetch_add(weight, Ordering::Relaxed).saturating_add(weight) <= MOST_WAITING_BYTES;
        let asked = || Asked {
            caller: who.caller.clone(),
            day: now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400),
            rows: u32::try_from(super::rows_of(request)).unwrap_or(u32::MAX),
            // Tensors may be slices of a body that is much larger than all of them: while this waits, it is to hold no more than it weighs.
            inputs: request.inputs.iter().map(|tensor| Tensor { data: Bytes::copy_from_slice(&tensor.data), ..tensor.clone() }).collect(),
            caps: self.caps,
            weight,
        };
        if !room || !book.lines.give(asked()) {
            tally.waiting.fetch_sub(weight, Ordering::Relaxed);
            tally.leave(Why::Queue, 1);
        }
    }
}

/// A request on its way to the file.
#[derive(Debug)]
struct Asked {
    caller: Arc<str>,
    /// Days since 1970-01-01, in UTC.
    day: u64,
    rows: u32,
    inputs: Vec<Tensor>,
    caps: Caps,
    weight: usize,
}

/// A recording that is being written: one for each file, whatever becomes of the policies that name it.
#[derive(Debug)]
pub struct Book {
    lines: Lines<Asked>,
    tally: Arc<Tally>,
}

impl Book {
    /// Opens the recording of `model` at `path`, or begins it.
    ///
    /// # Errors
    /// When the file is none that may be written, or no recording of this model.
    pub fn open(path: &Path, model: &str, now: SystemTime) -> Result<Self, Error> {
        let day = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400);
        let tally = Arc::new(Tally::default());
        let scribe = Scribe::open(path, model, day, tally.clone())?;
        let lines = Lines::start("recording", MOST_WAITING, scribe).map_err(Error::Unopened)?;
        Ok(Self { lines, tally })
    }

    /// How much is in it, and how much is not.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Resolves once all that was asked so far was handed to the system. The caller bounds the wait.
    pub async fn flush(&self) {
        self.lines.flush().await;
    }
}

/// Why a request is not in a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// More came than could be written.
    Queue,
    /// Its caller has as many rows in it as one may have.
    Rows,
    /// It has as many callers as it may have.
    Callers,
    /// It has as many bytes as it may have.
    Bytes,
    /// It could not be written, or its line would have been too long to be read.
    Disk,
}

impl Why {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Queue, Self::Rows, Self::Callers, Self::Bytes, Self::Disk];

    /// The label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Rows => "rows",
            Self::Callers => "callers",
            Self::Bytes => "bytes",
            Self::Disk => "disk",
        }
    }
}

/// What a recording has come to.
#[derive(Debug, Default)]
pub struct Tally {
    waiting: AtomicUsize,
    callers: AtomicUsize,
    rows: AtomicU64,
    left: [AtomicU64; Why::ALL.len()],
}

impl Tally {
    /// Caller-days in the file.
    #[must_use]
    pub fn callers(&self) -> usize {
        self.callers.load(Ordering::Relaxed)
    }

    /// Rows that were written since the start.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// Requests that are not in the file, since the start.
    #[must_use]
    pub fn left(&self, why: Why) -> u64 {
        self.left[why as usize].load(Ordering::Relaxed)
    }

    fn leave(&self, why: Why, requests: u64) {
        self.left[why as usize].fetch_add(requests, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
