//! The entries of a log with their indices, oldest first: the one place from which commands read them. Nothing is verified but the
//! checksums of records.
//!
//! They lie in bundles and, from where those end or before, in the write-ahead file. What was pruned at the beginning is left out. A copy
//! of the tiles without a write-ahead file is read up to its checkpoint.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::files::{Files, MAX_BUNDLE, of_file, open, read_whole};
use super::folder::CHECKPOINT;
use super::segment::{FRAME, First, HEADER, Record, numbers, path_of};
use crate::tlog::note::MAX_NOTE;
use crate::tlog::tile::{self, MAX_ENTRY, Tile, WIDTH};
use crate::tlog::{Checkpoint, Note};

/// How many bytes one read takes.
const PIECE: usize = 256 << 10;

/// An entry with its index.
pub type Indexed = (u64, Vec<u8>);

/// Indices and bytes of a log's entries. Memory holds a few hundred kilobytes of them, or one bundle, however long the log.
///
/// After its end it may be asked again: what was appended since comes next.
#[derive(Debug)]
pub struct Entries {
    directory: PathBuf,
    /// The index of the entry that is next.
    next: u64,
    /// Entries of a bundle.
    ready: VecDeque<Vec<u8>>,
    /// The segment that is read, and the one that is next where none is.
    segment: u64,
    file: Option<File>,
    /// Where in the segment `buffer` begins.
    offset: u64,
    buffer: Vec<u8>,
    at: usize,
    /// Whether a record at the very end that is not whole may be one that is just being written.
    live: bool,
    /// How many entries there must be, or why that is not known.
    covered: io::Result<u64>,
}

impl Entries {
    /// Those of the log in `directory`, which nobody writes to: what is left over at its end is damage.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn of(directory: &Path) -> io::Result<Self> {
        let segment = numbers(directory)?.first().copied().unwrap_or(0);
        let (next, ready, buffer) = (0, VecDeque::new(), Vec::new());
        Ok(Self { directory: directory.into(), next, ready, segment, file: None, offset: 0, buffer, at: 0, live: false, covered: Ok(0) })
    }

    /// Those of a log that may be growing: a record at its end that is not whole is not read yet.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn of_live(directory: &Path) -> io::Result<Self> {
        Ok(Self { live: true, ..Self::of(directory)? })
    }

    /// The same, and after the last an error where entries are missing that the checkpoint covers, as it is now, or where it cannot be read.
    /// What a checkpoint covers was written before it, so that a log which grows meanwhile has them all.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn of_covered(directory: &Path) -> io::Result<Self> {
        let covered = covered(directory);
        Ok(Self { covered, ..Self::of_live(directory)? })
    }

    /// The index of the entry that comes next.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.next
    }

    /// The index of the first entry that is there: those before it were pruned.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn first_index(directory: &Path) -> io::Result<u64> {
        let size = match numbers(directory)?.first() {
            Some(number) => first_of(directory, *number)?.map_or(0, |first| first.index),
            None => covered(directory)?,
        };
        Ok(Files::of(directory).first_index(size))
    }

    /// The last `count` entries of a log that may be growing, and what comes after them. Reads from the end, segment by segment.
    ///
    /// # Errors
    /// When a file cannot be read or is damaged, and when entries are missing that the checkpoint covers.
    pub fn last(directory: &Path, count: usize) -> io::Result<(VecDeque<Indexed>, Self)> {
        let segments = numbers(directory)?;
        let mut back = 1;
        loop {
            let from = segments.len().saturating_sub(back);
            let mut entries = Self::of_covered(directory)?;
            entries.segment = segments.get(from).copied().unwrap_or(entries.segment);
            let first = segments.get(from).map_or(Ok(None), |number| first_of(directory, *number))?;
            if first.is_none() && from > 0 {
                // It has just been begun, and has no header yet.
                back += 1;
                continue;
            }
            let first = first.map_or(0, |first| first.index);
            // From before the write-ahead file, as many as are wanted.
            entries.next = if from == 0 { first.saturating_sub(count as u64) } else { first };
            let mut last = VecDeque::new();
            for entry in &mut entries {
                last.push_back(entry?);
                if last.len() > count {
                    last.pop_front();
                }
            }
            if last.len() == count || from == 0 {
                return Ok((last, entries));
            }
            back *= 2;
        }
    }

    /// Reads more of the segment; nothing at its end.
    fn more(&mut self) -> io::Result<usize> {
        let Some(file) = &mut self.file else { return Ok(0) };
        self.buffer.drain(..self.at);
        (self.offset, self.at) = (self.offset + self.at as u64, 0);
        let kept = self.buffer.len();
        self.buffer.resize(kept + PIECE, 0);
        let read = file.seek(SeekFrom::Start(self.offset + kept as u64)).and_then(|_| file.read(&mut self.buffer[kept..]));
        self.buffer.truncate(kept + read.as_ref().copied().unwrap_or(0));
        read.map_err(of_file(name_of(self.segment)))
    }

    /// Goes to where the next entry is; `false` while it is nowhere.
    fn open(&mut self) -> io::Result<bool> {
        let segments = numbers(&self.directory)?;
        // Those behind were removed once tiles had what they held.
        let Some(number) = segments.iter().copied().find(|number| *number >= self.segment) else {
            let size = if segments.is_empty() { covered(&self.directory)? } else { 0 };
            return if self.next < size { self.bundle(size, size) } else { Ok(false) };
        };
        let path = path_of(&self.directory, number);
        let mut file = match open(&path) {
            // It was removed since: tiles have what it held, and another follows it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.segment = number + 1;
                return Ok(true);
            }
            file => file.map_err(of_file(name_of(number)))?,
        };
        let mut header = [0; HEADER];
        if file.read(&mut header).map_err(of_file(name_of(number)))? < HEADER {
            return Ok(false);
        }
        let Some(first) = First::read(&header) else {
            self.segment = number + 1;
            return Err(io::Error::other(format!("{}: the header is damaged, or of another version", name_of(number))));
        };
        if self.next < first.index {
            return self.bundle(first.index, u64::MAX);
        }
        (self.segment, self.file, self.offset, self.at, self.next) = (number, Some(file), HEADER as u64, 0, first.index);
        self.buffer.clear();
        Ok(true)
    }

    /// Reads the bundle of the next entry up to `end`, in a log of `size` entries.
    fn bundle(&mut self, end: u64, size: u64) -> io::Result<bool> {
        let files = Files::of(&self.directory);
        let bundle = |number| Tile::of(None, number, size).unwrap_or(Tile { level: None, number, width: WIDTH as u16 });
        // What was pruned is whole bundles from the beginning on.
        if !files.path(bundle(self.next / WIDTH)).exists() {
            self.next = self.next.max(files.first_index(end));
        }
        let bundle = bundle(self.next / WIDTH);
        let within = (self.next % WIDTH) as usize;
        if self.next >= end {
            return Ok(true);
        }
        let read = match read_whole(&files.path(bundle), MAX_BUNDLE) {
            // It was pruned since: it is asked again what is there.
            Err(error) if error.kind() == io::ErrorKind::NotFound && files.first_index(end) > self.next => return Ok(true),
            read => read.map_err(of_file(bundle)),
        };
        let bytes = read.inspect_err(|_| self.next = end)?;
        let Some(entries) = tile::entries(&bytes).filter(|entries| entries.len() == usize::from(bundle.width)) else {
            self.next = end;
            return Err(io::Error::other(format!("{bundle}: cut short")));
        };
        let count = usize::try_from(end - self.next).unwrap_or(usize::MAX);
        self.ready = entries[within..].iter().take(count).map(|entry| entry.to_vec()).collect();
        Ok(true)
    }

    /// There is nothing more. Told once, what is missing is waited for.
    fn end(&mut self) -> io::Result<Option<Indexed>> {
        let (covered, next) = (std::mem::replace(&mut self.covered, Ok(0))?, self.next);
        // Where a record was damaged, nobody knows what is next, and that was told.
        if next >= covered {
            return Ok(None);
        }
        let missing = covered - next;
        let after = self.file.as_ref().map(|_| format!(" after byte {} of {}", self.offset + self.at as u64, name_of(self.segment)));
        let after = after.unwrap_or_default();
        Err(io::Error::other(format!(
            "{missing} entries are missing, from {next} on: the checkpoint covers {covered}, and the write-ahead file has no other{after}"
        )))
    }

    fn step(&mut self) -> io::Result<Option<Indexed>> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                self.next += 1;
                return Ok(Some((self.next - 1, entry)));
            }
            if let Some(record) = self.buffer.get(self.at..).and_then(Record::read) {
                self.at += record.size();
                self.next += 1;
                return Ok(Some((self.next - 1, record.entry.to_vec())));
            }
            if self.file.is_none() {
                if self.open()? { continue } else { return self.end() }
            }
            // A whole record is never longer: what is there already is none.
            let enough = self.buffer.len() - self.at >= FRAME + MAX_ENTRY;
            if !enough && self.more()? > 0 {
                continue;
            }
            let left = self.buffer.len() - self.at;
            let followed = numbers(&self.directory)?.last().is_some_and(|last| *last > self.segment);
            if !followed && !enough && (self.live || left == 0) {
                return self.end();
            }
            // The writer leaves a segment only when it is whole: what was written before the next one began is there now.
            if !enough && self.more()? > 0 {
                continue;
            }
            let (place, segment) = (self.offset + self.at as u64, self.segment);
            self.file = None;
            self.segment += 1;
            self.buffer.clear();
            self.at = 0;
            if left > 0 {
                // How many are missing is for the next segment to say.
                self.next = u64::MAX;
                return Err(io::Error::other(format!("a damaged or torn record at byte {place} of segment {segment}")));
            }
        }
    }
}

/// The name of a segment's file.
fn name_of(number: u64) -> String {
    path_of(Path::new(""), number).display().to_string()
}

/// What the header of a segment says; nothing where it is not there, or not sound.
fn first_of(directory: &Path, number: u64) -> io::Result<Option<First>> {
    let mut header = [0; HEADER];
    match open(&path_of(directory, number)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(of_file(name_of(number))(error)),
        Ok(mut file) => Ok((file.read(&mut header)? == HEADER).then(|| First::read(&header)).flatten()),
    }
}

/// How many entries the newest checkpoint covers, of which no signature is checked; 0 where there is none.
fn covered(directory: &Path) -> io::Result<u64> {
    match read_whole(&directory.join(CHECKPOINT), MAX_NOTE as u64) {
        Ok(note) => {
            let checkpoint = Note::parse(&note).ok().and_then(|note| Checkpoint::parse(note.text()).ok());
            checkpoint.map(|checkpoint| checkpoint.size).ok_or_else(|| io::Error::other(format!("{CHECKPOINT}: not a checkpoint")))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(of_file(CHECKPOINT)(error)),
    }
}

impl Iterator for Entries {
    type Item = io::Result<Indexed>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{OpenOptions, write};
    use std::io::Write;

    use super::super::segment::frame;
    use super::*;

    fn segment(directory: &Path, number: u64, first: u64, entries: u64) -> Vec<u8> {
        let mut bytes = First { seq: first, index: first }.header().to_vec();
        (first..first + entries).for_each(|seq| frame(&mut bytes, seq, format!("entry {seq}").as_bytes()));
        write(path_of(directory, number), &bytes).unwrap();
        bytes
    }

    fn numbers_of(entries: &mut Entries) -> Vec<u64> {
        entries.map(|entry| entry.unwrap().0).collect()
    }

    #[test]
    fn all_segments_are_read_in_order_with_the_longest_entries_in_them() {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = segment(folder.path(), 3, 0, 2);
        let longest = vec![7; MAX_ENTRY];
        (2..12).for_each(|seq| frame(&mut bytes, seq, &longest));
        write(path_of(folder.path(), 3), &bytes).unwrap();
        segment(folder.path(), 4, 12, 3);
        let entries: Vec<_> = Entries::of(folder.path()).unwrap().map(Result::unwrap).collect();
        assert_eq!(entries.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), (0..15).collect::<Vec<_>>());
        assert_eq!((&entries[11].1, entries[14].1.as_slice()), (&longest, &b"entry 14"[..]));
        assert!(Entries::of(&folder.path().join("nowhere")).is_err());
    }

    #[test]
    fn what_is_appended_comes_when_it_is_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut entries = Entries::of_live(folder.path()).unwrap();
        assert_eq!(numbers_of(&mut entries), [0_u64; 0]);
        segment(folder.path(), 0, 0, 2);
        assert_eq!(numbers_of(&mut entries), [0, 1]);
        let mut more = Vec::new();
        (2..4).for_each(|seq| frame(&mut more, seq, b"more"));
        let mut file = OpenOptions::new().append(true).open(path_of(folder.path(), 0)).unwrap();
        file.write_all(&more[..30]).unwrap();
        assert_eq!(numbers_of(&mut entries), [2], "a record that is half there is not read yet");
        file.write_all(&more[30..]).unwrap();
        assert_eq!(numbers_of(&mut entries), [3]);
        segment(folder.path(), 1, 4, 1);
        assert_eq!(numbers_of(&mut entries), [4]);
        assert_eq!(numbers_of(&mut entries), [0_u64; 0]);
    }

    #[test]
    fn damage_is_told_once_and_what_follows_it_in_another_segment_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = segment(folder.path(), 0, 0, 3);
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        write(path_of(folder.path(), 0), &bytes).unwrap();
        let tell = |entries: Entries| entries.map(|entry| entry.ok().map(|(seq, _)| seq)).collect::<Vec<_>>();
        assert_eq!(tell(Entries::of(folder.path()).unwrap()), [Some(0), Some(1), None]);
        segment(folder.path(), 1, 3, 1);
        for entries in [Entries::of(folder.path()).unwrap(), Entries::of_live(folder.path()).unwrap()] {
            assert_eq!(tell(entries), [Some(0), Some(1), None, Some(3)]);
        }
        // A length that promises more than any entry has.
        let mut bytes = segment(folder.path(), 0, 0, 1);
        bytes.extend(vec![0xff; 2 * PIECE]);
        write(path_of(folder.path(), 0), &bytes).unwrap();
        assert_eq!(tell(Entries::of_live(folder.path()).unwrap()), [Some(0), None, Some(3)]);
    }

    /// A checkpoint that covers so many entries; nobody looks at its root and its signature here.
    fn checkpoint(directory: &Path, covered: u64) {
        let root = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [0; 32]);
        let line = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [7; 68]);
        write(directory.join(CHECKPOINT), format!("log.example\n{covered}\n{root}\n\n\u{2014} log.example {line}\n")).unwrap();
    }

    #[test]
    fn what_a_checkpoint_covers_and_is_not_there_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let whole = segment(folder.path(), 0, 0, 5);
        checkpoint(folder.path(), 5);
        assert_eq!(numbers_of(&mut Entries::of_covered(folder.path()).unwrap()), [0, 1, 2, 3, 4]);
        let short = |count: usize| {
            let mut entries = Entries::of_covered(folder.path()).unwrap();
            let read = (&mut entries).take_while(Result::is_ok).count();
            let why = Entries::last(folder.path(), count).map(drop).unwrap_err().to_string();
            let mut again = Entries::of_covered(folder.path()).unwrap();
            let told = again.find_map(Result::err).unwrap().to_string();
            assert_eq!((why, entries.next().is_none()), (told.clone(), true));
            (read, told)
        };
        for (bytes, read, what) in [
            (
                whole.len() - 1,
                4,
                "1 entries are missing, from 4 on: the checkpoint covers 5, and the write-ahead file has no other after byte",
            ),
            (
                HEADER,
                0,
                "5 entries are missing, from 0 on: the checkpoint covers 5, and the write-ahead file has no other after byte 32 of wal-00000000",
            ),
            (HEADER - 1, 0, "5 entries are missing, from 0 on: the checkpoint covers 5, and the write-ahead file has no other"),
            (0, 0, "5 entries are missing"),
        ] {
            write(path_of(folder.path(), 0), &whole[..bytes]).unwrap();
            for count in [0, 1, 10] {
                let (there, told) = short(count);
                assert!(there == read && told.starts_with(what), "{bytes}: {there} entries, {told}");
            }
        }
        // A log that grows: what no checkpoint covers may be half there, and the next segment may have just been begun.
        write(path_of(folder.path(), 0), &whole[..whole.len() - 1]).unwrap();
        checkpoint(folder.path(), 4);
        write(path_of(folder.path(), 1), b"").unwrap();
        write(path_of(folder.path(), 0), &whole).unwrap();
        assert_eq!(numbers_of(&mut Entries::of_covered(folder.path()).unwrap()), [0, 1, 2, 3, 4]);
        for count in [0, 2] {
            let (last, mut rest) = Entries::last(folder.path(), count).unwrap();
            assert_eq!((last.len(), numbers_of(&mut rest).len()), (count, 0));
        }
        write(folder.path().join(CHECKPOINT), b"none").unwrap();
        let told: Vec<_> = Entries::of_covered(folder.path()).unwrap().map(|entry| entry.ok().map(|(index, _)| index)).collect();
        assert_eq!(told, [Some(0), Some(1), Some(2), Some(3), Some(4), None]);
    }

    #[test]
    fn the_last_so_many_are_found_from_the_end_across_segments() {
        let folder = tempfile::tempdir().unwrap();
        (0..5).for_each(|number| drop(segment(folder.path(), number, number * 3, 3)));
        for count in [0, 1, 3, 4, 14, 15, 16] {
            let (last, mut rest) = Entries::last(folder.path(), count).unwrap();
            let expected: Vec<_> = (15_u64.saturating_sub(count as u64)..15).collect();
            assert_eq!(last.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), expected, "{count}");
            assert_eq!(numbers_of(&mut rest), [0_u64; 0]);
        }
    }
}
