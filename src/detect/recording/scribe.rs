//! Who writes a recording, and decides what goes into it: a thread of its own, so that requests wait neither for the disk nor for a count.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::file::{self, Error, Found};
use super::pseudonyms::Pseudonyms;
use super::{Asked, Caps, MOST_LINE, Tally, Why};
use crate::lines::Sink;
use crate::say::aside;
use crate::wire::oip;
use crate::wire::tensor::Tensor;

/// So many callers find room in a recording: of what it may have, none has more than that part, after its first request.
const FEWEST_CALLERS: u64 = 100;

/// The one who writes a recording.
pub(super) struct Scribe {
    path: PathBuf,
    model: String,
    file: File,
    pseudonyms: Pseudonyms,
    /// Rows of the callers of the day, by their pseudonyms.
    rows: HashMap<String, u32>,
    /// Bytes of their lines that were written by this process.
    written: HashMap<String, u64>,
    /// Caller-days in the file.
    callers: usize,
    bytes: u64,
    tally: Arc<Tally>,
    /// Whether people know that it cannot be written.
    told: bool,
}

impl Scribe {
    pub(super) fn open(path: &Path, model: &str, day: u64, tally: Arc<Tally>) -> Result<Self, Error> {
        let mut pseudonyms = Pseudonyms::new(day);
        let (file, Found { callers, rows, bytes }) = file::open(path, model, || {
            pseudonyms = Pseudonyms::of(path, day)?;
            Ok(pseudonyms.day())
        })?;
        tally.callers.store(callers, Ordering::Relaxed);
        Ok(Self {
            path: path.to_owned(),
            model: model.to_owned(),
            file,
            pseudonyms,
            rows,
            written: HashMap::new(),
            callers,
            bytes,
            tally,
            told: false,
        })
    }

    /// Whether the file is not at its path any more, or not all of it: it was deleted once it was learned from, moved, or emptied.
    fn is_gone(&self) -> bool {
        let (Ok(here), Ok(there)) = (self.file.metadata(), fs::symlink_metadata(&self.path)) else { return true };
        (here.dev(), here.ino()) != (there.dev(), there.ino()) || here.len() < self.bytes
    }

    fn begin_anew(&mut self) -> Result<(), Error> {
        let (file, found) = file::open(&self.path, &self.model, || Ok(self.pseudonyms.day()))?;
        // What stands in it, if anything, was written under this key, or another: it is kept for the next start.
        self.pseudonyms.keep(&self.path)?;
        (self.file, self.callers, self.rows, self.bytes) = (file, found.callers, found.rows, found.bytes);
        Ok(())
    }

    /// Goes on to another day, if it is one.
    fn turn(&mut self, day: u64) {
        // What was asked just before midnight may come after what was asked past it.
        if self.pseudonyms.is_of(day) {
            return;
        }
        self.pseudonyms = Pseudonyms::new(day);
        self.rows.clear();
        self.written.clear();
        if let Err(why) = self.pseudonyms.keep(&self.path) {
            self.tell(&why);
        }
    }

    #[cfg(test)]
    pub(super) fn has_told(&self) -> bool {
        self.told
    }

    fn tell(&mut self, why: &dyn std::fmt::Display) {
        if !std::mem::replace(&mut self.told, true) {
            aside!("portcullis: warning: {}: what callers ask is not recorded: {why}", self.path.display());
        }
    }

    /// The line of a request under its caller's pseudonym, and how many of its rows are in it.
    fn line(&self, name: &str, asked: Asked) -> Result<(String, u32), Why> {
        let Asked { rows, inputs, caps, .. } = asked;
        let known = self.rows.get(name).copied();
        let taken = admit(known, self.callers, rows, &caps)?;
        let inputs = if taken < rows { cut(inputs, rows, taken).ok_or(Why::Rows)? } else { inputs };
        let written = oip::asked(&inputs).map_err(|_| Why::Disk)?;
        let mut line = String::with_capacity(written.json.len() + 128);
        // Names are dates and hexadecimal digits: nothing in them is to be escaped.
        let _ = write!(line, "{{\"caller\":\"{name}\",\"rows\":{taken},\"body\":{}", written.json);
        if let Some(binary) = written.binary {
            let _ = write!(line, ",\"binary\":\"{}\"", STANDARD.encode(binary));
        }
        line.push_str("}\n");
        if line.len() > MOST_LINE {
            return Err(Why::Disk);
        }
        let length = line.len() as u64;
        let theirs = self.written.get(name).map_or(0, |written| written + length);
        if self.bytes.saturating_add(length) > caps.bytes || theirs > caps.bytes / FEWEST_CALLERS {
            return Err(Why::Bytes);
        }
        Ok((line, taken))
    }
}

/// How many of a caller's rows are recorded, of which so many are already if it is known.
fn admit(known: Option<u32>, callers: usize, rows: u32, caps: &Caps) -> Result<u32, Why> {
    if known.is_none() && callers >= caps.callers {
        return Err(Why::Callers);
    }
    let left = caps.rows.saturating_sub(known.unwrap_or(0));
    if left == 0 || rows > left && !caps.batched {
        return Err(Why::Rows);
    }
    Ok(rows.min(left))
}

/// The first rows of a batch; nothing where its tensors are no batch.
fn cut(inputs: Vec<Tensor>, rows: u32, to: u32) -> Option<Vec<Tensor>> {
    let cut = |mut tensor: Tensor| {
        let (first, rows) = (tensor.shape.first_mut()?, rows as usize);
        if *first == 1 {
            return Some(tensor);
        }
        if *first != rows as u64 {
            return None;
        }
        *first = u64::from(to);
        let kept = match tensor.datatype.width() {
            Some(_) => tensor.data.len().is_multiple_of(rows).then(|| tensor.data.len() / rows * to as usize)?,
            // Each after its length.
            None => tensor.strings().take(tensor.elements()?).map(|text| 4 + text.len()).sum(),
        };
        tensor.data.truncate(kept);
        Some(tensor)
    };
    inputs.into_iter().map(cut).collect()
}

impl Sink for Scribe {
    type Item = Asked;

    fn lines(&mut self, asked: Asked, batch: &mut String) -> u64 {
        self.tally.waiting.fetch_sub(asked.weight, Ordering::Relaxed);
        if batch.is_empty() && self.is_gone() {
            if let Err(why) = self.begin_anew() {
                self.tell(&why);
                self.tally.leave(Why::Disk, 1);
                return 0;
            }
            self.tally.callers.store(self.callers, Ordering::Relaxed);
        }
        self.turn(asked.day);
        let name = self.pseudonyms.name(&asked.caller);
        let most = asked.caps.rows;
        match self.line(&name, asked) {
            Ok((line, rows)) => {
                batch.push_str(&line);
                self.bytes += line.len() as u64;
                *self.written.entry(name.clone()).or_default() += line.len() as u64;
                let known = self.rows.entry(name).or_insert_with(|| {
                    self.callers += 1;
                    0
                });
                *known = known.saturating_add(rows);
                self.tally.callers.store(self.callers, Ordering::Relaxed);
                self.tally.rows.fetch_add(u64::from(rows), Ordering::Relaxed);
                1
            }
            Err(why) => {
                // What follows what was left out is no beginning of its caller's day: smaller requests are not to fill the gap.
                if let Some(known) = self.rows.get_mut(&name).filter(|_| why != Why::Disk) {
                    *known = (*known).max(most);
                }
                self.tally.leave(why, 1);
                0
            }
        }
    }

    fn write(&mut self, batch: &[u8]) -> io::Result<()> {
        self.file.write_all(batch)?;
        self.told = false;
        Ok(())
    }

    fn reopen(&mut self) -> bool {
        false
    }

    fn lost(&mut self, lines: u64, why: &io::Error) {
        self.tell(why);
        self.tally.leave(Why::Disk, lines);
        if let Ok(file) = self.file.metadata() {
            self.bytes = file.len();
        }
    }
}
