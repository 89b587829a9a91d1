//! What lies in a log's folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::super::files::{MAX_BUNDLE, kept_index, of_file, read_whole};
use super::super::folder::{
    CHECKPOINT, CHECKPOINT_COSE, IDS, KEYS, LOCK, NEW, NEW_ENTRY, SALTS, SALTS_NEW, SALTS_OLD, WITNESSED, WITNESSED_NEW,
};
use super::super::label::Label;
use super::super::segment::segment_number;
use super::Report;
use crate::tlog::tile::Tile;
use crate::tlog::vkey::Vkey;

/// The longest file of public keys in bytes.
const MAX_KEYS: u64 = 64 << 10;
/// The most bytes in partial tiles: the newest of each level, and what crashes have left beside them.
const MAX_PARTIAL: usize = 256 << 20;

/// A file under `tile` that has a tile's name.
pub(super) enum Listed {
    Full(Tile),
    /// Read at once: in a log that goes on it is soon superseded.
    Partial(Tile, Vec<u8>),
}

/// Every file under `tile`. To be listed before the entries are read: of a log that goes on, those are then not behind.
pub(super) fn listed(directory: &Path) -> io::Result<Vec<(PathBuf, Option<Listed>)>> {
    let mut there = Vec::new();
    let (mut folders, mut partial) = (vec![directory.join("tile")], 0);
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    while let Some(folder) = folders.pop() {
        // A folder of partial tiles goes when its tile is full, and the first of all comes with the first entry.
        let files = match fs::read_dir(&folder) {
            Err(error) if gone(&error) => continue,
            files => files.map_err(of_file(folder.display()))?,
        };
        for file in files {
            let file = file?;
            let (path, kind) = (file.path(), file.file_type()?);
            if kind.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(directory).ok().and_then(Path::to_str).unwrap_or_default();
            let listed = match Tile::parse(name).filter(|_| kind.is_file()) {
                Some(tile) if tile.is_full() => Some(Listed::Full(tile)),
                Some(tile) => match read_whole(&path, MAX_BUNDLE) {
                    Err(error) if gone(&error) => continue,
                    bytes => {
                        let bytes = bytes.map_err(of_file(name))?;
                        partial += bytes.len();
                        if partial > MAX_PARTIAL {
                            return Err(io::Error::new(io::ErrorKind::InvalidData, "more in partial tiles than a log leaves there"));
                        }
                        Some(Listed::Partial(tile, bytes))
                    }
                },
                None => None,
            };
            there.push((path, listed));
        }
    }
    Ok(there)
}

/// Everything in the folder must be known.
pub(super) fn strangers(directory: &Path, report: &mut Report) -> io::Result<()> {
    // What `new` and `new.witnessed` hold was never part of the log: a crash leaves them, and the next start removes them.
    let files = [KEYS, LOCK, CHECKPOINT, CHECKPOINT_COSE, WITNESSED, IDS, NEW, WITNESSED_NEW, NEW_ENTRY];
    for file in fs::read_dir(directory)? {
        let file = file?;
        let name = file.file_name();
        let kind = file.file_type()?;
        let known = name.to_str().is_some_and(|name| match name {
            "tile" => kind.is_dir(),
            // The shards that came after this log was closed.
            label if label.parse::<Label>().is_ok() => kind.is_dir(),
            name => {
                kind.is_file()
                    && (files.contains(&name)
                        || [SALTS, SALTS_NEW, SALTS_OLD].contains(&name)
                        || segment_number(name).is_some()
                        || kept_index(name).is_some())
            }
        });
        if !known {
            report.problem(format!("{}: nothing that belongs to a log", Path::new(&name).display()));
        }
    }
    Ok(())
}

pub(super) fn own_keys(directory: &Path, report: &mut Report) -> io::Result<Vec<Vkey>> {
    let bytes = match read_whole(&directory.join(KEYS), MAX_KEYS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        bytes => bytes.map_err(of_file(KEYS))?,
    };
    let text = String::from_utf8(bytes).unwrap_or_else(|_| {
        report.problem(format!("{KEYS}: not text"));
        String::new()
    });
    let mut keys = Vec::new();
    for (line, text) in text.split_inclusive('\n').enumerate() {
        match text.strip_suffix('\n').and_then(|text| text.parse::<Vkey>().ok()).filter(|key| !keys.contains(key)) {
            Some(key) => keys.push(key),
            None => {
                report.problem(format!("{KEYS} line {}: not a key in its one canonical form, or one that stands there twice", line + 1))
            }
        }
    }
    Ok(keys)
}
