//! Reading the write-ahead file when it is opened.

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::sync::Arc;

use super::super::segment::{First, HEADER, Record, numbers, path_of};
use super::{OpenError, Recovered, Segment};

/// What the segments hold.
#[derive(Default)]
pub(super) struct Read {
    pub(super) recovered: Recovered,
    pub(super) segments: Vec<Segment>,
    /// The number after the last.
    pub(super) next: u64,
    /// Every entry that is there, from [`Recovered::first_index`] on.
    pub(super) entries: Vec<Arc<[u8]>>,
}

/// Reads every segment, cuts a torn tail off the last, and says what was there and which number is next.
pub(super) fn recover(directory: &Path) -> Result<Read, OpenError> {
    let mut read = Read::default();
    let numbers = numbers(directory).map_err(|error| OpenError::Io(directory.into(), error))?;
    // A segment that holds no record was begun and not used before the process died.
    let used = |number: &u64| fs::metadata(path_of(directory, *number)).is_ok_and(|file| file.len() > HEADER as u64);
    let last_used = numbers.iter().rposition(used);
    for (at, number) in numbers.iter().enumerate() {
        let path = path_of(directory, *number);
        let failed = |error| OpenError::Io(path.clone(), error);
        let bytes = fs::read(&path).map_err(failed)?;
        let after_all = last_used.is_none_or(|last| at > last);
        if after_all && (at > 0 || bytes.len() < HEADER) {
            read.recovered.cut_bytes += bytes.len() as u64;
            fs::remove_file(&path).map_err(failed)?;
            continue;
        }
        let damaged = |at: usize, why| OpenError::Damaged(path.clone(), at as u64, why);
        let end = segment(*number, &bytes, &mut read, &damaged)?;
        if end < bytes.len() {
            let more = last_used.is_some_and(|last| at < last);
            if more || good_after(&bytes[end + 1..], read.next) {
                return Err(damaged(end, "a record is damaged, and good ones follow it"));
            }
            let file = OpenOptions::new().write(true).open(&path).map_err(failed)?;
            file.set_len(end as u64).map_err(failed)?;
            read.recovered.cut_bytes += (bytes.len() - end) as u64;
        }
        // What is read is about to be published: it may not be lost any more.
        File::open(&path).and_then(|file| file.sync_all()).map_err(failed)?;
    }
    Ok(read)
}

/// Reads the sound records of one segment; says where they end.
fn segment(number: u64, bytes: &[u8], read: &mut Read, damaged: &impl Fn(usize, &'static str) -> OpenError) -> Result<usize, OpenError> {
    let first = First::read(bytes).ok_or_else(|| damaged(0, "the header is not one of this version"))?;
    match read.segments.last() {
        None => read.recovered.first_index = first.index,
        Some(before) if before.number + 1 != number => return Err(damaged(0, "the segment before it is missing")),
        Some(_) if first.index != read.index() => return Err(damaged(0, "it does not begin where the segment before it ends")),
        Some(_) => {}
    }
    if first.seq < read.next {
        return Err(damaged(0, "its numbers were used before"));
    }
    read.next = first.seq;
    let mut at = HEADER;
    while let Some(record) = Record::read(&bytes[at..]) {
        if record.seq < read.next {
            return Err(damaged(at, "a number was used before"));
        }
        read.next = record.seq + 1;
        read.recovered.last_seq = Some(record.seq);
        read.entries.push(record.entry.into());
        at += record.size();
    }
    read.recovered.entries = read.index();
    read.segments.push(Segment { number, first_index: first.index });
    Ok(at)
}

impl Read {
    /// The index of the next entry.
    fn index(&self) -> u64 {
        self.recovered.first_index + self.entries.len() as u64
    }
}

/// Whether a sound record that could follow lies anywhere in `bytes`.
fn good_after(bytes: &[u8], next: u64) -> bool {
    let plausible = next..next + (1 << 32);
    (0..bytes.len()).any(|at| Record::read(&bytes[at..]).is_some_and(|record| plausible.contains(&record.seq)))
}
