//! Which entry has which id: 16 bytes for each, in the order of the entries; zeros where an entry was pruned.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use uuid::Uuid;

use super::files::open;

/// The bytes of an id.
pub(crate) const ID: u64 = 16;
/// How much a search reads at a time.
const PIECE: usize = 1 << 20;

/// The index of the oldest entry with this id, in the file of a log that may be growing; reads all of it.
pub(crate) fn search(path: &Path, id: Uuid) -> io::Result<Option<u64>> {
    // An id of zeros stands in the place of what was pruned.
    if id.is_nil() {
        return Ok(None);
    }
    let mut ids = BufReader::with_capacity(PIECE, open(path)?);
    let mut there = [0; ID as usize];
    for index in 0.. {
        match ids.read_exact(&mut there) {
            Ok(()) if there == *id.as_bytes() => return Ok(Some(index)),
            Ok(()) => {}
            // Or in the middle of one that is just being written.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The file of a log's ids as it was long when it was opened; whatever its length, little of it is held.
pub(crate) struct Ids {
    file: Option<File>,
    length: u64,
}

impl Ids {
    /// That of `path`; of no length where there is none that can be read.
    pub(crate) fn open(path: &Path) -> Self {
        let file = open(path).ok();
        let length = file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |about| about.len());
        Self { file, length }
    }

    /// Its bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Whether another id than `id` stands in the place of the entry `index`, or a piece of one. What is not that long says nothing.
    pub(crate) fn differs(&self, index: u64, id: Option<Uuid>) -> io::Result<bool> {
        let Some(file) = self.file.as_ref().filter(|_| self.length.div_ceil(ID) > index) else { return Ok(false) };
        let mut there = [0; ID as usize];
        match read_at(file, index * ID, &mut there) {
            Ok(()) => Ok(id.is_none_or(|id| there != *id.as_bytes())),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Whether only zeros stand in the places of the first `count` entries, as far as it has them.
    pub(crate) fn forgets(&self, count: u64) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(true) };
        let (mut at, end) = (0, count.saturating_mul(ID).min(self.length));
        let mut piece = vec![0; PIECE];
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            read_at(file, at, &mut piece[..wanted])?;
            if piece[..wanted].iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += wanted as u64;
        }
        Ok(true)
    }
}

fn read_at(mut file: &File, at: u64, into: &mut [u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(into)
}
