//! Recordings as they are read: those that a gateway wrote, and those that people made.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

use super::file::is_head;
use crate::wire::json::Limits;
use crate::wire::oip::{Fault, InferRequest};

/// Bytes of one line.
pub const MOST_LINE: usize = 16 << 20;

/// What a caller asked.
#[derive(Debug, Deserialize)]
pub struct Line {
    /// The caller-day.
    pub caller: String,
    /// The request in the Open Inference Protocol.
    body: Value,
    /// The elements of its tensors in base64, where JSON cannot say them.
    #[serde(default)]
    binary: Option<String>,
    /// What was answered, where it was recorded too: then the model is not asked.
    #[serde(default)]
    pub answer: Option<Value>,
}

impl Line {
    /// The request.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn request(&self) -> Result<InferRequest, Fault> {
        let Some(binary) = &self.binary else { return Ok(InferRequest::from_json(&self.body)?) };
        // What is no base64 is as many elements as none are.
        let mut whole = self.body.to_string().into_bytes();
        let length = whole.len();
        whole.extend(STANDARD.decode(binary).unwrap_or_default());
        Ok(InferRequest::from_binary(length, &whole.into(), &Limits::for_body(MOST_LINE))?.0)
    }
}

/// A piece of a file that a newline ends.
pub(super) enum Piece {
    /// Without it.
    Whole(Vec<u8>),
    /// The file's last, which none ends.
    Torn(Vec<u8>),
    /// Longer than [`MOST_LINE`].
    TooLong,
}

/// The pieces of a file, of which one is held at a time.
pub(super) struct Pieces<R>(R);

impl<R: BufRead> Pieces<R> {
    pub(super) fn new(from: R) -> Self {
        Self(from)
    }

    fn next_piece(&mut self) -> io::Result<Option<Piece>> {
        let mut line = Vec::new();
        // One more for the newline.
        let read = (&mut self.0).take(MOST_LINE as u64 + 1).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(None);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
            return Ok(Some(Piece::Whole(line)));
        }
        if line.len() <= MOST_LINE {
            return Ok(Some(Piece::Torn(line)));
        }
        self.0.skip_until(b'\n')?;
        Ok(Some(Piece::TooLong))
    }
}

impl<R: BufRead> Iterator for Pieces<R> {
    type Item = io::Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_piece().transpose()
    }
}

/// What a line of a recording is.
#[derive(Debug)]
pub enum Entry {
    /// What a caller asked.
    Line(Box<Line>),
    /// A piece of one: the end of the file, or what a gateway that was killed, or a full disk, left behind.
    Torn,
}

/// A recording, line by line, each with its number.
pub struct Reader {
    pieces: Pieces<BufReader<File>>,
    number: usize,
    of_gateway: bool,
}

impl Reader {
    /// Opens a recording.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut first = Vec::new();
        let _ = BufReader::new(File::open(path)?).take(1_024).read_until(b'\n', &mut first)?;
        Ok(Self { pieces: Pieces::new(BufReader::new(File::open(path)?)), number: 0, of_gateway: is_head(&first) })
    }

    /// Whether a gateway wrote it: then a line that is none is torn, and no mistake of a person.
    #[must_use]
    pub fn is_of_gateway(&self) -> bool {
        self.of_gateway
    }

    /// What a piece is, nothing where it is the head or empty; and why it is none of these.
    fn entry(&self, piece: io::Result<Piece>) -> Result<Option<Entry>, String> {
        let (line, torn) = match piece.map_err(|error| error.to_string())? {
            Piece::Whole(line) => (line, false),
            Piece::Torn(line) => (line, true),
            Piece::TooLong if self.of_gateway => return Ok(Some(Entry::Torn)),
            Piece::TooLong => return Err(format!("a line is at most {MOST_LINE} bytes")),
        };
        if line.trim_ascii().is_empty() || self.number == 1 && self.of_gateway {
            return Ok(None);
        }
        match serde_json::from_slice(&line) {
            Ok(line) => Ok(Some(Entry::Line(line))),
            Err(_) if torn || self.of_gateway => Ok(Some(Entry::Torn)),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Iterator for Reader {
    type Item = (usize, Result<Entry, String>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let piece = self.pieces.next()?;
            self.number += 1;
            match self.entry(piece) {
                Ok(None) => {}
                Ok(Some(entry)) => return Some((self.number, Ok(entry))),
                Err(why) => return Some((self.number, Err(why))),
            }
        }
    }
}
