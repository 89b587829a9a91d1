//! What a log's folder holds: the names of its files, but for those of segments, tiles and kept entries, and the shards in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::label::Label;
use super::segment;

/// The newest checkpoint, a signed note.
pub(crate) const CHECKPOINT: &str = "checkpoint";
/// Its root as COSE_Sign1.
pub(crate) const CHECKPOINT_COSE: &str = "checkpoint.cose";
/// The newest checkpoint that a quorum of witnesses has cosigned.
pub(crate) const WITNESSED: &str = "checkpoint.witnessed";
/// What that is called until it is whole.
pub(crate) const WITNESSED_NEW: &str = "new.witnessed";
/// The log's public keys.
pub(crate) const KEYS: &str = "keys.vkey";
/// Which entry has which id.
pub(crate) const IDS: &str = "ids";
/// Locked by who writes.
pub(crate) const LOCK: &str = "lock";
/// What a file is called until it is whole.
pub(crate) const NEW: &str = "new";
/// What a kept entry is called until it is whole.
pub(crate) const NEW_ENTRY: &str = "new.entry";
/// The keys of salts and pseudonyms.
pub(crate) const SALTS: &str = "salts";
/// What they are called until they are whole.
pub(crate) const SALTS_NEW: &str = "salts.new";
/// The keys before, until an entry tells what was destroyed.
pub(crate) const SALTS_OLD: &str = "salts.old";

/// The logs in a folder, in order: that which lies in it itself, under no label, and its shards.
///
/// # Errors
/// When the folder cannot be read. One that is not there has none.
pub(crate) fn labels(directory: &Path) -> io::Result<Vec<Option<Label>>> {
    let mut found = Vec::new();
    let files = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        files => files?,
    };
    for file in files {
        let file = file?;
        let label = file.file_name().to_str().and_then(|name| name.parse::<Label>().ok());
        if label.is_some() && file.file_type()?.is_dir() && holds_a_log(&file.path())? {
            found.push(label);
        }
    }
    if holds_a_log(directory)? {
        found.push(None);
    }
    found.sort_unstable();
    Ok(found)
}

/// The folders of the logs in a folder, in order: itself, where a log lies in it, and its shards.
///
/// # Errors
/// When the folder cannot be read. One that is not there has none.
pub fn folders(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let labels = labels(directory)?.into_iter();
    Ok(labels.map(|label| label.map_or_else(|| directory.to_owned(), |label| directory.join(label.to_string()))).collect())
}

fn holds_a_log(directory: &Path) -> io::Result<bool> {
    Ok(directory.join(CHECKPOINT).try_exists()? || !segment::numbers(directory)?.is_empty())
}
