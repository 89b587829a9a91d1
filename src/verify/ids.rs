//! Which entry has which id: 16 bytes for each, in the order of the entries; zeros where an entry was pruned.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use uuid::Uuid;

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
    let mut ids = BufReader::with_capacity(PIECE, File::open(path)?);
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
