//! What a witness remembers of one log: the checkpoint that it cosigned last, in one file, which is also what monitors are
//! shown.
//!
//! The file is replaced whole: written beside, synced, renamed, and the folder synced, before a cosignature leaves. A failure
//! before the rename has changed nothing. After it nobody knows what the disk holds, and the witness signs nothing more.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::StatusCode;

use crate::say::aside;
use crate::tlog::add_checkpoint::{AddCheckpoint, NotARequest};
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::cosignature::Cosigner;
use crate::tlog::merkle::{empty, verify_consistency};
use crate::tlog::note::{Line, MAX_NOTE, NotOpened, Note};
use crate::tlog::vkey::Vkey;

/// Why there is no cosignature.
#[derive(Clone, Debug)]
pub enum Refused {
    /// 400: not a request.
    CallerSentNoRequest(NotARequest),
    /// 400: the body broke off, or was too slow.
    CallerBrokeBody,
    /// 404: this witness was told of no log of that origin.
    OriginUnknown,
    /// 403: none of the log's keys has signed it, or a line in the name of one is wrong.
    NotSignedByLog(NotOpened),
    /// 400: the old size is larger than the new one.
    OldSizeIsLarger,
    /// 409: the old size is not the one that this witness knows, which is here.
    OldSizeDiffers(u64),
    /// 422: the tree does not go on from the one that this witness knows, or no proof shows it.
    NotConsistent,
    /// 500: nothing has changed, and another try may do.
    WitnessCannotWrite(Arc<io::Error>),
    /// 500: nothing is signed any more until an operator has looked.
    DiskUncertain(Arc<io::Error>),
    /// 500: the same, for requests after it; and a signature that could not be made.
    WitnessFailed,
}

impl Refused {
    /// The status that tlog-witness gives it.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::CallerSentNoRequest(_) | Self::CallerBrokeBody | Self::OldSizeIsLarger => StatusCode::BAD_REQUEST,
            Self::OriginUnknown => StatusCode::NOT_FOUND,
            Self::NotSignedByLog(_) => StatusCode::FORBIDDEN,
            Self::OldSizeDiffers(_) => StatusCode::CONFLICT,
            Self::NotConsistent => StatusCode::UNPROCESSABLE_ENTITY,
            Self::WitnessCannotWrite(_) | Self::DiskUncertain(_) | Self::WitnessFailed => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CallerSentNoRequest(why) => why.fmt(f),
            Self::CallerBrokeBody => f.write_str("the body did not arrive whole and in time"),
            Self::OriginUnknown => f.write_str("the origin is not known here"),
            Self::NotSignedByLog(why) => why.fmt(f),
            Self::OldSizeIsLarger => f.write_str("the old size is larger than the checkpoint's"),
            Self::OldSizeDiffers(size) => write!(f, "the size known here is {size}"),
            Self::NotConsistent => f.write_str("the checkpoint is not shown to go on from the one known here"),
            // What the disk says is for the operator.
            Self::WitnessCannotWrite(_) | Self::DiskUncertain(_) | Self::WitnessFailed => f.write_str("the witness cannot sign now"),
        }
    }
}

impl std::error::Error for Refused {}

/// What is remembered of one log.
#[derive(Debug)]
pub struct Book {
    file: PathBuf,
    keys: Vec<Vkey>,
    latest: Option<Latest>,
}

#[derive(Debug)]
struct Latest {
    checkpoint: Checkpoint,
    /// With the log's signatures and this witness's.
    note: Note,
    /// This witness's lines.
    lines: String,
    time: u64,
}

/// A file of a witness is not what it wrote.
#[derive(Debug)]
pub struct NotABook(PathBuf, String);

impl fmt::Display for NotABook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; without it this witness might sign two histories of one log", self.0.display(), self.1)
    }
}

impl std::error::Error for NotABook {}

impl Book {
    /// The book of the log `origin` in `directory`, which may hold none yet.
    ///
    /// # Errors
    /// When the file cannot be read, or is not a checkpoint of this log that the log or this witness has signed.
    pub fn open(directory: &Path, origin: &str, keys: Vec<Vkey>, cosigner: &Cosigner) -> Result<Self, NotABook> {
        let file = directory.join(format!("{}.checkpoint", Checkpoint::origin_hash(origin)));
        let bad = |why: &dyn fmt::Display| NotABook(file.clone(), why.to_string());
        let mut bytes = Vec::new();
        match File::open(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self { file, keys, latest: None }),
            opened => {
                let opened = opened.map_err(|error| bad(&error))?;
                opened.take(MAX_NOTE as u64 + 1).read_to_end(&mut bytes).map_err(|error| bad(&error))?;
            }
        }
        let note = Note::parse(&bytes).map_err(|why| bad(&why))?;
        let checkpoint = Checkpoint::parse(note.text()).map_err(|why| bad(&why))?;
        if checkpoint.origin != origin {
            return Err(bad(&"the checkpoint is of another log"));
        }
        let own = cosigner.vkeys();
        // After a change of the witness's key or name the log's signature still shows that the file is whole.
        let all: Vec<Vkey> = own.iter().chain(&keys).cloned().collect();
        let opened = note.open(&all).map_err(|why| bad(&why))?;
        let mine = opened.verified.iter().filter(|line| line.key < own.len());
        let time = mine.clone().filter_map(|line| line.time).max().unwrap_or(0);
        let lines = mine.map(|line| note.lines()[line.line].to_string()).collect();
        let latest = Some(Latest { checkpoint, note, lines, time });
        Ok(Self { file, keys, latest })
    }

    /// The checkpoint that was cosigned last.
    #[must_use]
    pub fn latest(&self) -> Option<&Note> {
        self.latest.as_ref().map(|latest| &latest.note)
    }

    /// Judges `request`, remembers its checkpoint, and gives the cosignatures as of `now`, in seconds since 1970.
    ///
    /// # Errors
    /// Why there are none. Only [`Refused::DiskUncertain`] may have changed anything.
    pub fn add(&mut self, request: &AddCheckpoint, cosigner: &Cosigner, now: u64) -> Result<String, Refused> {
        let opened = request.note().open(&self.keys).map_err(Refused::NotSignedByLog)?;
        let (checkpoint, note) = (request.checkpoint(), request.note());
        let by_log: Vec<Line> = opened.verified.iter().map(|line| note.lines()[line.line].clone()).collect();
        let latest = self.latest.as_ref();
        if latest.is_some_and(|latest| latest.checkpoint.size == checkpoint.size && latest.checkpoint.root != checkpoint.root) {
            self.keep_evidence(note.text(), by_log.clone());
        }
        judge(request, latest.map(|latest| &latest.checkpoint))?;
        // A clock that was set back does not set a time back that was signed.
        let time = latest.map_or(now, |latest| now.max(latest.time));
        // The same within one second is the same again: whoever repeats a log's checkpoint makes no disk work.
        if let Some(same) = latest.filter(|latest| latest.time == time && latest.checkpoint == *checkpoint && !latest.lines.is_empty()) {
            return Ok(same.lines.clone());
        }
        let own = cosigner.cosign(checkpoint, time).map_err(|_| Refused::WitnessFailed)?;
        let lines = own.iter().map(ToString::to_string).collect();
        let note = Note::new(note.text(), own.into_iter().chain(by_log).collect());
        let note = note.map_err(|why| Refused::CallerSentNoRequest(NotARequest::Note(why)))?;
        self.replace(&note)?;
        self.latest = Some(Latest { checkpoint: checkpoint.clone(), note, lines, time });
        Ok(self.latest.as_ref().map(|latest| latest.lines.clone()).unwrap_or_default())
    }

    fn replace(&self, note: &Note) -> Result<(), Refused> {
        let beside = self.file.with_extension("new");
        let write = || {
            // Another file each time: what a failed sync left in the old one must not count as written.
            match fs::remove_file(&beside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = File::create_new(&beside)?;
            file.write_all(note.to_string().as_bytes())?;
            file.sync_all()
        };
        write().map_err(|error| Refused::WitnessCannotWrite(Arc::new(error)))?;
        let uncertain = |error| Refused::DiskUncertain(Arc::new(error));
        fs::rename(&beside, &self.file).map_err(uncertain)?;
        let folder = self.file.parent().unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(uncertain)
    }

    /// Two trees of one size under the log's own signature prove what it did. The first such checkpoint is kept beside the
    /// book; it is no part of what is cosigned, and a disk that does not take it is no reason to say anything else.
    fn keep_evidence(&self, text: &str, by_log: Vec<Line>) {
        let file = self.file.with_extension("fork");
        let Ok(note) = Note::new(text, by_log) else { return };
        if let Ok(mut new) = File::create_new(&file) {
            let kept = new.write_all(note.to_string().as_bytes()).and_then(|()| new.sync_all());
            let what = if kept.is_ok() { "is kept" } else { "could not be kept" };
            aside!("portcullis: the log has signed two trees of one size; the second checkpoint {what} in {}", file.display());
        }
    }
}

/// Whether a checkpoint that its log has signed may follow on `known`, by the rules of tlog-witness in their order.
///
/// # Errors
/// Why it may not.
pub fn judge(request: &AddCheckpoint, known: Option<&Checkpoint>) -> Result<(), Refused> {
    let (old, new) = (request.old(), request.checkpoint());
    if old > new.size {
        return Err(Refused::OldSizeIsLarger);
    }
    let (size, root) = known.map_or((0, empty()), |known| (known.size, known.root));
    if old != size {
        return Err(Refused::OldSizeDiffers(size));
    }
    if new.size == 0 && new.root != empty() {
        return Err(Refused::NotConsistent);
    }
    verify_consistency(old, new.size, request.proof(), &root, &new.root).map_err(|_| Refused::NotConsistent)
}
