//! The file of a recording: who may have one, and what already stands in it.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufReader, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::read::{Piece, Pieces};

/// The format that is written, and the only one that is gone on with.
const FORMAT: u32 = 1;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    recording: u32,
    model: String,
}

/// Why a file is not recorded to.
#[derive(Debug)]
pub enum Error {
    /// A symbolic link: what it points to may be anybody's choice.
    OperatorNamedALink,
    /// A folder, a pipe, a device.
    OperatorNamedNoFile,
    /// Others than its owner may read or write it, or another user owns it.
    OperatorLetOthersIn,
    /// It is not empty, and no recording of this model.
    OperatorNamedAnother,
    /// One of these is so of the file of its pseudonyms' key.
    Beside(Box<Error>),
    /// It cannot be opened, read or begun.
    Unopened(io::Error),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OperatorNamedALink => f.write_str("it is a symbolic link: name the file itself"),
            Self::OperatorNamedNoFile => f.write_str("it is no file"),
            Self::OperatorLetOthersIn => {
                f.write_str("others may read it, and it holds what callers ask: chmod 600, and let the gateway's user own it")
            }
            Self::OperatorNamedAnother => f.write_str("it is no recording of this model: move it away, or name another file"),
            Self::Beside(error) => write!(f, "of the file beside it, .pseudonyms: {error}"),
            Self::Unopened(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Unopened(error)
    }
}

/// What stands in a recording.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Its caller-days.
    pub callers: usize,
    /// Rows of those of the day that was asked for, by their names.
    pub rows: HashMap<String, u32>,
    /// Its bytes.
    pub bytes: u64,
}

/// Opens a secret file, made if it is not there, for its owner alone.
pub(super) fn open_secret(path: &Path, options: &mut OpenOptions) -> Result<File, Error> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    // To open a pipe that nobody reads would wait for ever, but for NONBLOCK, which means nothing to files.
    let opened = options.mode(0o600).custom_flags(flags.bits().cast_signed()).open(path);
    let file = opened.map_err(|error| match fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => Error::OperatorNamedALink,
        Ok(found) if !found.is_file() => Error::OperatorNamedNoFile,
        _ => Error::Unopened(error),
    })?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(Error::OperatorNamedNoFile);
    }
    if found.mode() & 0o077 != 0 || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::OperatorLetOthersIn);
    }
    Ok(file)
}

/// Opens the recording of `model` for appending, and reads what stands in it; of the caller-days whose names begin with the `day`, their rows
/// too. The day is asked for once it is sure that the file may be recorded to.
pub(super) fn open(path: &Path, model: &str, day: impl FnOnce() -> Result<String, Error>) -> Result<(File, Found), Error> {
    let file = open_secret(path, OpenOptions::new().read(true).append(true).create(true))?;
    let mut found = Found { bytes: file.metadata()?.len(), ..Found::default() };
    let mut pieces = Pieces::new(BufReader::new(&file));
    let mut head = serde_json::to_string(&Head { recording: FORMAT, model: model.to_owned() }).map_err(io::Error::other)?;
    head.push('\n');
    match pieces.next().transpose()? {
        None => found.bytes += write(&file, &head)?,
        // The first line was torn by a full disk.
        Some(Piece::Torn(line)) if head.as_bytes().starts_with(&line) => found.bytes += write(&file, &head[line.len()..])?,
        Some(Piece::Whole(line)) if is_head_of(&line, model) => {}
        Some(_) => return Err(Error::OperatorNamedAnother),
    }
    let (day, hasher) = (day()?, RandomState::new());
    let (mut callers, mut torn) = (HashSet::new(), false);
    for piece in pieces {
        let line = match piece? {
            Piece::Whole(line) => line,
            Piece::Torn(_) => {
                torn = true;
                continue;
            }
            Piece::TooLong => continue,
        };
        // What is torn is a line of its own since the start after it.
        let Ok(Counted { caller, rows }) = serde_json::from_slice(&line) else { continue };
        callers.insert(hasher.hash_one(&caller));
        if caller.starts_with(&day) {
            let known = found.rows.entry(caller).or_default();
            *known = known.saturating_add(rows);
        }
    }
    found.callers = callers.len();
    if torn {
        found.bytes += write(&file, "\n")?;
    }
    Ok((file, found))
}

fn write(mut file: &File, text: &str) -> io::Result<u64> {
    file.write_all(text.as_bytes())?;
    Ok(text.len() as u64)
}

fn is_head_of(line: &[u8], model: &str) -> bool {
    serde_json::from_slice(line).is_ok_and(|head: Head| head.recording == FORMAT && head.model == model)
}

/// Of a line, what is counted.
#[derive(Deserialize)]
struct Counted {
    caller: String,
    #[serde(default)]
    rows: u32,
}

/// Where the key of the pseudonyms of a recording lies.
pub(super) fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pseudonyms");
    name.into()
}

/// Deletes a recording, and the key of its pseudonyms. A gateway that writes to it begins a new one.
///
/// # Errors
/// When it cannot be deleted.
pub fn delete(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    match fs::remove_file(beside(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether a first line is that of a recording which a gateway wrote.
pub(super) fn is_head(line: &[u8]) -> bool {
    serde_json::from_slice::<Head>(line).is_ok()
}
