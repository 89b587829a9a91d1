//! The entries of a log that nobody need have open, in order: from its bundles, and from the write-ahead file what these do not have yet.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::publisher::CHECKPOINT;
use super::segment::{First, HEADER, Record, numbers, path_of};
use super::tree::Files;
use crate::tlog::tile::{self, Tile, WIDTH};
use crate::tlog::{Checkpoint, Note};

/// The entries of the log in `directory` with their indices, oldest first. One bundle or one segment at a time is in memory.
///
/// Bundles that were pruned are left out. A copy of the tiles without a write-ahead file is read up to its checkpoint.
///
/// # Errors
/// When the folder cannot be read.
pub fn entries(directory: &Path) -> io::Result<Entries> {
    let segments = numbers(directory)?;
    let in_tiles = match segments.first() {
        Some(first) => {
            let path = path_of(directory, *first);
            let head = fs::File::open(&path).and_then(|file| {
                let mut head = Vec::new();
                io::Read::read_to_end(&mut io::Read::take(file, HEADER as u64), &mut head)?;
                Ok(head)
            })?;
            First::read(&head).ok_or_else(|| io::Error::other(format!("{}: the header is damaged", path.display())))?.index
        }
        None => checkpoint(directory)?.map_or(0, |checkpoint| checkpoint.size),
    };
    let whole = if segments.is_empty() { in_tiles } else { u64::MAX };
    let files = Files::of(directory);
    // What was pruned is a beginning of whole bundles.
    let mut number = 0;
    while number * WIDTH < in_tiles && Tile::of(None, number, whole).is_some_and(|bundle| !files.path(bundle).exists()) {
        number += 1;
    }
    let segments = segments.into_iter();
    Ok(Entries { directory: directory.into(), files, next: number * WIDTH, in_tiles, whole, segments, ready: Vec::new().into_iter() })
}

/// The newest checkpoint in `directory`, of which no signature is checked; none where there is none.
fn checkpoint(directory: &Path) -> io::Result<Option<Checkpoint>> {
    match fs::read(directory.join(CHECKPOINT)) {
        Ok(note) => Ok(Note::parse(&note).ok().and_then(|note| Checkpoint::parse(note.text()).ok())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// See [`entries`].
pub struct Entries {
    directory: PathBuf,
    files: Files,
    next: u64,
    /// Every entry below is in a bundle.
    in_tiles: u64,
    /// How large the log is, where bundles are all there is.
    whole: u64,
    segments: std::vec::IntoIter<u64>,
    ready: std::vec::IntoIter<(u64, Vec<u8>)>,
}

impl Entries {
    fn bundle(&mut self) -> io::Result<Vec<(u64, Vec<u8>)>> {
        let number = self.next / WIDTH;
        let bundle = Tile::of(None, number, self.whole).unwrap_or(Tile { level: None, number, width: WIDTH as u16 });
        let path = self.files.path(bundle);
        let bytes = fs::read(&path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        let entries = tile::entries(&bytes).filter(|entries| entries.len() == usize::from(bundle.width));
        let entries = entries.ok_or_else(|| io::Error::other(format!("{}: cut short", path.display())))?;
        let entries = (number * WIDTH..self.in_tiles).zip(entries.into_iter().map(<[u8]>::to_vec)).collect::<Vec<_>>();
        self.next = number * WIDTH + entries.len() as u64;
        Ok(entries)
    }

    fn segment(&mut self, number: u64) -> io::Result<Vec<(u64, Vec<u8>)>> {
        let bytes = fs::read(path_of(&self.directory, number))?;
        let damaged = |at: usize| io::Error::other(format!("wal-{number:08} byte {at}: a damaged or torn record"));
        let (mut at, mut entries) = (HEADER, Vec::new());
        let first = First::read(&bytes).ok_or_else(|| damaged(0))?;
        while let Some(record) = Record::read(&bytes[at..]) {
            at += record.size();
            entries.push((first.index + entries.len() as u64, record.entry.to_vec()));
        }
        if at < bytes.len() { Err(damaged(at)) } else { Ok(entries) }
    }
}

impl Iterator for Entries {
    type Item = io::Result<(u64, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.ready.next() {
                return Some(Ok(entry));
            }
            let read = if self.next < self.in_tiles {
                self.bundle()
            } else {
                let number = self.segments.next()?;
                self.segment(number)
            };
            match read {
                Ok(entries) => self.ready = entries.into_iter(),
                Err(error) => {
                    // Nothing behind it can be told in order.
                    (self.next, self.segments) = (self.in_tiles, Vec::new().into_iter());
                    return Some(Err(error));
                }
            }
        }
    }
}
