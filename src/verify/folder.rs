//! What a log's folder holds: the names of its files, but for those of segments, tiles and kept entries, and the shards in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::files::read_whole;
use super::label::Label;
use super::segment::{self, FRAME, First, HEADER, Record, is_begun, path_of};
use crate::tlog::tile::MAX_ENTRY;

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
    if directory.join(CHECKPOINT).try_exists()? {
        return Ok(true);
    }
    match segment::numbers(directory) {
        Ok(segments) => Ok(!segments.is_empty() && !is_being_made(directory, &segments)?),
        // It was taken away since it was listed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a log without a checkpoint never had one: it is being made, or was when a process died. The first checkpoint comes after the entry
/// that endorses its keys and before any other, and what lies there until then is nothing that anybody was told of.
fn is_being_made(directory: &Path, segments: &[u64]) -> io::Result<bool> {
    if segments != [0] {
        return Ok(false);
    }
    let bytes = match read_whole(&path_of(directory, 0), (HEADER + FRAME + MAX_ENTRY) as u64) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(false),
        Err(error) => return Err(error),
    };
    let Some(rest) = bytes.get(HEADER..) else { return Ok(true) };
    let first = Record::read(rest).is_some_and(|first| first.size() == rest.len());
    Ok(First::read(&bytes).is_some() && (rest.len() < FRAME || first || is_begun(rest, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::segment::frame;

    #[test]
    fn a_shard_is_a_log_once_it_has_a_checkpoint_or_more_than_the_entry_before_that() {
        let folder = tempfile::tempdir().unwrap();
        let shard = folder.path().join("2026h2");
        let there = || labels(folder.path()).unwrap().len();
        fs::create_dir(&shard).unwrap();
        assert_eq!(there(), 0);
        let mut bytes = First { seq: 0, index: 0 }.header().to_vec();
        frame(&mut bytes, 0, b"\x44keys");
        for end in [0, HEADER - 1, HEADER, HEADER + 14, bytes.len() - 1, bytes.len()] {
            fs::write(path_of(&shard, 0), &bytes[..end]).unwrap();
            assert_eq!(there(), 0, "{end}");
        }
        fs::write(shard.join(CHECKPOINT), b"").unwrap();
        assert_eq!(there(), 1);
        fs::remove_file(shard.join(CHECKPOINT)).unwrap();
        // Whoever takes the checkpoint of a log away leaves what followed it.
        let mut damaged = bytes.clone();
        damaged[HEADER + 20] ^= 1;
        let damaged_header = [&[7], &bytes[1..]].concat();
        frame(&mut bytes, 1, b"began");
        for log in [damaged, damaged_header, bytes.clone()] {
            fs::write(path_of(&shard, 0), log).unwrap();
            assert_eq!(there(), 1);
        }
        fs::write(path_of(&shard, 0), &bytes[..HEADER]).unwrap();
        fs::write(path_of(&shard, 1), &bytes[..HEADER]).unwrap();
        assert_eq!(there(), 1);
    }
}
