//! How a write-ahead file lies on the disk.
//!
//! Segments `wal-00000000`, `wal-00000001`, …, each a header (`pclswal\n` · version u32 · first number u64 · first index u64 · CRC32C u32)
//! and records (length u32 · CRC32C u32 · number u64 · entry), all little-endian; the CRC is over length, number and entry.
//!
//! The *number* stands in the entry and may leave some out where entries were lost; the *index* is the entry's place in the tree and does not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::files::read_whole;
use crate::tlog::tile::MAX_ENTRY;

const MAGIC: &[u8; 8] = b"pclswal\n";
const VERSION: u32 = 2;
/// The longest segment in bytes: the one that writes begins another at 16 MiB, and a write takes no more than that.
pub(crate) const MAX_SEGMENT: u64 = 64 << 20;
/// The length of a segment's header.
pub(crate) const HEADER: usize = 32;
/// What a record takes beside its entry.
pub(crate) const FRAME: usize = 16;

/// The file of segment `number`.
pub(crate) fn path_of(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("wal-{number:08}"))
}

/// The number in a segment's file name.
pub(crate) fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("wal-")?;
    let number = digits.parse().ok()?;
    (format!("{number:08}") == digits).then_some(number)
}

/// What the header of a segment says: the number and the index of its first entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct First {
    pub(crate) seq: u64,
    pub(crate) index: u64,
}

impl First {
    /// The header that says so.
    pub(crate) fn header(self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..20].copy_from_slice(&self.seq.to_le_bytes());
        header[20..28].copy_from_slice(&self.index.to_le_bytes());
        let crc = crc32c::crc32c(&header[..28]);
        header[28..].copy_from_slice(&crc.to_le_bytes());
        header
    }

    /// What a segment that begins with a sound header of this version says.
    pub(crate) fn read(segment: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_le_bytes(segment.get(at..at + 8)?.try_into().ok()?));
        let first = Self { seq: number(12)?, index: number(20)? };
        (segment.get(..HEADER)? == first.header()).then_some(first)
    }
}

/// Appends the record of an entry.
pub(crate) fn frame(to: &mut Vec<u8>, seq: u64, entry: &[u8]) {
    let length = u32::try_from(entry.len()).unwrap_or(u32::MAX).to_le_bytes();
    to.extend_from_slice(&length);
    to.extend_from_slice(&checksum(&length, &seq.to_le_bytes(), entry).to_le_bytes());
    to.extend_from_slice(&seq.to_le_bytes());
    to.extend_from_slice(entry);
}

fn checksum(length: &[u8], seq: &[u8], entry: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(length), seq), entry)
}

/// A record as it lies in a segment.
pub(crate) struct Record<'a> {
    pub(crate) seq: u64,
    pub(crate) entry: &'a [u8],
}

impl<'a> Record<'a> {
    /// The whole, sound record at the beginning of `bytes`.
    pub(crate) fn read(bytes: &'a [u8]) -> Option<Self> {
        let head = bytes.get(..FRAME)?;
        let length = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
        if length == 0 || length > MAX_ENTRY {
            return None;
        }
        let entry = bytes.get(FRAME..FRAME + length)?;
        let sound = checksum(&head[..4], &head[8..], entry).to_le_bytes() == head[4..8];
        sound.then(|| Self {
            seq: u64::from_le_bytes([head[8], head[9], head[10], head[11], head[12], head[13], head[14], head[15]]),
            entry,
        })
    }

    /// How many bytes it takes.
    pub(crate) fn size(&self) -> usize {
        FRAME + self.entry.len()
    }
}

/// The numbers of the segments in a folder, in order.
pub(crate) fn numbers(directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for file in fs::read_dir(directory)? {
        numbers.extend(file?.file_name().to_str().and_then(segment_number));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Whether the last entry that the segments in a folder hold is the one before index `size`, with nothing behind it.
pub(crate) fn ends_with(directory: &Path, size: u64) -> io::Result<bool> {
    let Some(last) = numbers(directory)?.pop() else { return Ok(false) };
    let bytes = read_whole(&path_of(directory, last), MAX_SEGMENT)?;
    let Some(first) = First::read(&bytes) else { return Ok(false) };
    let (mut at, mut index) = (HEADER, first.index);
    while let Some(record) = Record::read(&bytes[at..]) {
        at += record.size();
        index += 1;
    }
    Ok(at == bytes.len() && index == size)
}

/// Whether `bytes`, the last there are, are the beginning of the record that number `next` would have: so a process that died while it
/// wrote leaves a segment, and so who looks meanwhile finds it. Of fewer bytes than stand before an entry nothing is known.
pub(crate) fn is_begun(bytes: &[u8], next: u64) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return false };
    let length = u32::from_le_bytes(*length) as usize;
    let number = rest.get(4..12) == Some(&next.to_le_bytes()[..]);
    // What is there whole was not cut off: its length is wrong.
    let whole = || {
        let mut entry = bytes.get(FRAME..).unwrap_or_default();
        ciborium::from_reader::<ciborium::Value, _>(&mut entry).is_ok() && entry.is_empty()
    };
    number && (1..=MAX_ENTRY).contains(&length) && bytes.len() < FRAME + length && !whole()
}

/// Whether a sound record that could follow lies anywhere in `bytes`.
pub(crate) fn sound_after(bytes: &[u8], next: u64) -> bool {
    let plausible = next..next.saturating_add(1 << 32);
    (0..bytes.len()).any(|at| Record::read(&bytes[at..]).is_some_and(|record| plausible.contains(&record.seq)))
}
