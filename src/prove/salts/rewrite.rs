//! The file without one of its keys, or with another header, put in the place of the file as it was.
//!
//! In this order, each step done before the next begins: the new file is written beside the old one and synced · the old one is given a
//! second name · the new one takes its first name, in one step · the entry is appended · the old one is overwritten with zeros, synced
//! and unlinked. Whoever opens the folder after any of them finds either the old file whole or the new file whole, and by the second
//! name what is left to do: see [`leftover`]. With another header and every key it takes its place likewise, without the second
//! name: there is nothing to tell of, and of the old one only the header is overwritten.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::file::{HEADER, Name, RECORD, name_of};
use super::{FILE, NEW, OLD};

/// So much is read, or overwritten, at once.
const PIECE: usize = 64 << 10;

/// A new file, on its way.
pub(super) struct Rewrite<'a> {
    directory: &'a Path,
    without: Option<Name>,
    new: File,
    /// How much of the old file is in it.
    copied: u64,
    /// How long it is.
    length: u64,
}

impl<'a> Rewrite<'a> {
    /// Begins it beside the old one.
    pub(super) fn begin(directory: &'a Path, header: &[u8; HEADER], without: Option<Name>) -> io::Result<Self> {
        discard_new(directory)?;
        let new = begun(directory, header)?;
        Ok(Self { directory, without, new, copied: HEADER as u64, length: HEADER as u64 })
    }

    /// Copies what the old file has up to `end` and the new one has not, and syncs it.
    pub(super) fn catch_up(&mut self, old: &File, end: u64) -> io::Result<()> {
        let mut buffer = vec![0; PIECE / RECORD * RECORD];
        while self.copied < end {
            let piece = usize::try_from(end - self.copied).unwrap_or(usize::MAX).min(buffer.len());
            old.read_exact_at(&mut buffer[..piece], self.copied)?;
            for record in buffer[..piece].chunks_exact(RECORD).filter(|record| self.without.is_none_or(|name| name_of(record) != name)) {
                self.new.write_all_at(record, self.length)?;
                self.length += RECORD as u64;
            }
            self.copied += piece as u64;
        }
        self.new.sync_all()
    }

    /// Gives the old file its second name, by which it is found and overwritten whatever happens.
    pub(super) fn keep_old(&self) -> io::Result<()> {
        fs::hard_link(self.directory.join(FILE), self.directory.join(OLD))?;
        sync(self.directory)
    }

    /// Puts the new one in its place; the directory is not synced yet.
    pub(super) fn put(self) -> io::Result<(File, u64)> {
        fs::rename(self.directory.join(NEW), self.directory.join(FILE))?;
        Ok((self.new, self.length))
    }
}

/// Writes a new file with nothing but its header beside the one there may be.
pub(super) fn begun(directory: &Path, header: &[u8; HEADER]) -> io::Result<File> {
    let mut new = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(directory.join(NEW))?;
    new.write_all(header)?;
    new.sync_all()?;
    Ok(new)
}

/// Syncs the names in a directory.
pub(super) fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// What an erasure that did not come to its end left behind.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Leftover {
    /// Nothing, or a new file that had not taken its place, which is gone now.
    Nothing,
    /// The old file, which is to be compared with the new one, told of, and overwritten.
    Old(Vec<u8>),
}

/// Clears up what stood before the new file had taken its place, and finds what was left to do after it had.
pub(super) fn leftover(directory: &Path) -> io::Result<Leftover> {
    discard_new(directory)?;
    let (current, old) = (directory.join(FILE), directory.join(OLD));
    let mut file = match File::open(&old) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Leftover::Nothing),
        file => file?,
    };
    let (one, other) = (fs::metadata(&current)?, file.metadata()?);
    if (one.dev(), one.ino()) == (other.dev(), other.ino()) {
        // It is the file that holds: only its second name goes.
        fs::remove_file(&old)?;
        sync(directory)?;
        return Ok(Leftover::Nothing);
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(Leftover::Old(bytes))
}

/// Overwrites the header of a file that has no name any more: what it sealed opens no more with the key that sealed it.
pub(super) fn wipe_header(old: &File) -> io::Result<()> {
    old.write_all_at(&[0; HEADER], 0)?;
    old.sync_all()
}

/// Overwrites the old file with zeros, syncs it, and unlinks it. Nothing to do where there is none.
pub(super) fn wipe_old(directory: &Path) -> io::Result<()> {
    wipe(&directory.join(OLD))?;
    sync(directory)
}

/// It holds copies of every other key: those go with it.
fn discard_new(directory: &Path) -> io::Result<()> {
    wipe(&directory.join(NEW))
}

fn wipe(path: &Path) -> io::Result<()> {
    let file = match OpenOptions::new().write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let (zeros, length) = ([0; PIECE], file.metadata()?.len());
    let mut at = 0;
    while at < length {
        let piece = zeros.len().min(usize::try_from(length - at).unwrap_or(usize::MAX));
        file.write_all_at(&zeros[..piece], at)?;
        at += piece as u64;
    }
    file.sync_all()?;
    fs::remove_file(path)
}
