//! Reading the write-ahead file when it is opened: first all of it, then what is to be mended of it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{OpenError, Recovered, Segment};
use crate::verify::segment::{First, HEADER, Record, numbers, path_of, sound_after};

/// What the segments hold.
#[derive(Default)]
pub(super) struct Read {
    pub(super) recovered: Recovered,
    pub(super) segments: Vec<Segment>,
    /// The number after the last.
    pub(super) next: u64,
    /// Every entry that is there, from [`Recovered::first_index`] on.
    pub(super) entries: Vec<Arc<[u8]>>,
    mends: Vec<Mend>,
}

/// What is to be done before anything is appended.
enum Mend {
    /// It holds nothing, or nothing that was promised.
    Remove(PathBuf),
    /// The file has these bytes from there on, and ends with them.
    Rewrite(PathBuf, u64, Vec<u8>),
}

/// Reads every segment, and says what is there and which number is next. Nothing is written before [`Read::mend`], which cuts a torn tail
/// off the last.
///
/// What is cut: a record that is not whole, if no sound one follows it; that is what the death of a process leaves. Where what was not
/// synced may be `lost`, the pages that did reach the disk are any of them: then everything is cut from the first damage on, sound records
/// too, if what comes before it holds the `covered` entries of a checkpoint. A sync takes what was written before it too, so that behind
/// the damage nothing was synced.
pub(super) fn recover(directory: &Path, covered: u64, lost: bool) -> Result<Read, OpenError> {
    let mut read = Read::default();
    let numbers = numbers(directory).map_err(|error| OpenError::Io(directory.into(), error))?;
    // A segment that holds no record was begun and not used before the process died.
    let used = |number: &u64| fs::metadata(path_of(directory, *number)).is_ok_and(|file| file.len() > HEADER as u64);
    let last_used = numbers.iter().rposition(used);
    for (at, number) in numbers.iter().enumerate() {
        let path = path_of(directory, *number);
        let failed = |error| OpenError::Io(path.clone(), error);
        let mut bytes = fs::read(&path).map_err(failed)?;
        let after_all = last_used.is_none_or(|last| at > last);
        if after_all && (at > 0 || bytes.len() < HEADER) {
            read.recovered.cut_bytes += bytes.len() as u64;
            read.mends.push(Mend::Remove(path));
            continue;
        }
        let damaged = |at: usize, why| OpenError::Damaged(path.clone(), at as u64, why);
        let first = match First::read(&bytes).ok_or("the header is not one of this version").and_then(|first| read.follows(*number, first))
        {
            Ok(first) => first,
            // The first segment is not cut away whole unless it never had anything.
            Err(_) if lost && read.index() >= covered && (at > 0 || numbers.len() == 1 && !sound_after(&bytes, 0)) => {
                read.remove_from(directory, &numbers[at..])?;
                break;
            }
            Err(why) => return Err(damaged(0, why)),
        };
        let (end, unsynced) = segment(*number, first, &bytes, covered, &mut read, &damaged)?;
        let cut = end < bytes.len();
        if cut {
            let more = last_used.is_some_and(|last| at < last);
            let unsure = more || sound_after(&bytes[end + 1..], read.next);
            if unsure && !(lost && read.index() >= covered) {
                return Err(damaged(end, "a record is damaged, and good ones follow it"));
            }
            // First what follows, so that a death in between leaves what can be cut again.
            read.remove_from(directory, &numbers[at + 1..])?;
            read.recovered.cut_bytes += (bytes.len() - end) as u64;
        }
        bytes.truncate(end);
        read.mends.push(Mend::Rewrite(path, unsynced as u64, bytes.split_off(unsynced)));
        if cut {
            break;
        }
    }
    Ok(read)
}

/// Reads the sound records of one segment; says where they end, and where those begin that no checkpoint covers.
fn segment(
    number: u64,
    first: First,
    bytes: &[u8],
    covered: u64,
    read: &mut Read,
    damaged: &impl Fn(usize, &'static str) -> OpenError,
) -> Result<(usize, usize), OpenError> {
    if read.segments.is_empty() {
        read.recovered.first_index = first.index;
    }
    read.next = first.seq;
    let (mut at, mut unsynced) = (HEADER, if first.index < covered { HEADER } else { 0 });
    while let Some(record) = Record::read(&bytes[at..]) {
        if record.seq < read.next {
            return Err(damaged(at, "a number was used before"));
        }
        read.next = record.seq + 1;
        read.recovered.last_seq = Some(record.seq);
        read.entries.push(record.entry.into());
        at += record.size();
        if read.index() <= covered {
            unsynced = at;
        }
    }
    read.recovered.entries = read.index();
    read.segments.push(Segment { number, first_index: first.index });
    Ok((at, unsynced))
}

impl Mend {
    fn done(self) -> Result<(), OpenError> {
        match self {
            Self::Remove(path) => fs::remove_file(&path).map_err(|error| OpenError::Io(path, error)),
            Self::Rewrite(path, from, bytes) => {
                let written = OpenOptions::new().write(true).open(&path).and_then(|file| {
                    file.set_len(from + bytes.len() as u64)?;
                    // What is read is about to be published: it may not be lost any more. After a failed sync the system takes pages for
                    // written that it could not write; only what is written again is synced again.
                    file.write_all_at(&bytes, from)?;
                    file.sync_all()
                });
                written.map_err(|error| OpenError::Io(path, error))
            }
        }
    }
}

impl Read {
    /// Cuts what is to be cut, and syncs what is to be synced.
    pub(super) fn mend(&mut self) -> Result<(), OpenError> {
        self.mends.drain(..).try_for_each(Mend::done)
    }

    /// Has segments removed, the last first.
    fn remove_from(&mut self, directory: &Path, numbers: &[u64]) -> Result<(), OpenError> {
        for number in numbers.iter().rev() {
            let path = path_of(directory, *number);
            self.recovered.cut_bytes += fs::metadata(&path).map_err(|error| OpenError::Io(path.clone(), error))?.len();
            self.mends.push(Mend::Remove(path));
        }
        Ok(())
    }

    /// The index of the next entry.
    fn index(&self) -> u64 {
        self.recovered.first_index + self.entries.len() as u64
    }

    /// What a segment's header says, if it goes on from what was read before it.
    fn follows(&self, number: u64, first: First) -> Result<First, &'static str> {
        match self.segments.last() {
            Some(before) if before.number + 1 != number => Err("the segment before it is missing"),
            Some(_) if first.index != self.index() => Err("it does not begin where the segment before it ends"),
            _ if first.seq < self.next => Err("its numbers were used before"),
            _ => Ok(first),
        }
    }
}
