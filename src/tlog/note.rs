//! Signed notes (C2SP signed-note v1): a text, an empty line, and lines that sign the text.
//!
//! What is read is read strictly: a note that parses prints as the bytes it was parsed from. Lines of keys that nobody
//! knows are kept, for whoever verifies may want to tell of them.

use std::fmt;

use super::signature::Ed25519Key;
use super::vkey::{PublicKey, Vkey};
use super::{base64, cosignature, from_base64};

/// The most bytes of a note.
pub const MAX_NOTE: usize = 1 << 20;
/// The most signature lines of a note. The specification asks for 16 at least.
pub const MAX_SIGNATURES: usize = 64;
/// What a signature line begins with: an em dash and a space.
const DASH: &str = "\u{2014} ";

/// What is wrong with bytes that should be a note, or signature lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// More than [`MAX_NOTE`] bytes.
    TooLong,
    /// More than [`MAX_SIGNATURES`] signature lines.
    TooManySignatures,
    /// Not UTF-8.
    NotUtf8,
    /// A control character other than a newline.
    ControlCharacter,
    /// No empty line between a text and its signatures, or a text that does not end in a newline.
    NoText,
    /// No signature line.
    NoSignature,
    /// The last line does not end in a newline.
    TornLine,
    /// A line that is no signature line: dash, name, base64 of an ID and a signature.
    SignatureLine,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "the note is longer than 1 MiB",
            Self::TooManySignatures => "the note has more than 64 signatures",
            Self::NotUtf8 => "the note is not UTF-8",
            Self::ControlCharacter => "the note has a control character",
            Self::NoText => "the note has no text before an empty line",
            Self::NoSignature => "the note has no signature line",
            Self::TornLine => "the note's last line has no end",
            Self::SignatureLine => "a signature line is not a dash, a name and canonical base64",
        })
    }
}

impl std::error::Error for Malformed {}

/// One signature line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The key's name.
    pub name: String,
    /// The key's ID ([`Vkey::id`]).
    pub id: u32,
    /// What follows the ID: a signature, with what its kind puts before it. At least one byte.
    pub signature: Vec<u8>,
}

impl Line {
    /// The line of `key` with this signature.
    #[must_use]
    pub fn of(key: &Vkey, signature: Vec<u8>) -> Self {
        Self { name: key.name.clone(), id: key.id(), signature }
    }

    fn parse(line: &str) -> Result<Self, Malformed> {
        let (name, encoded) = line.strip_prefix(DASH).and_then(|rest| rest.split_once(' ')).ok_or(Malformed::SignatureLine)?;
        let bytes = from_base64(encoded).ok_or(Malformed::SignatureLine)?;
        let plain = !name.is_empty() && !name.contains(|c: char| c == '+' || c.is_whitespace());
        match bytes.split_first_chunk::<4>() {
            Some((id, signature)) if plain && !signature.is_empty() => {
                Ok(Self { name: name.into(), id: u32::from_be_bytes(*id), signature: signature.to_vec() })
            }
            _ => Err(Malformed::SignatureLine),
        }
    }

    /// Whether its name and ID are those of `key`.
    #[must_use]
    pub fn claims(&self, key: &Vkey) -> bool {
        self.name == key.name && self.id == key.id()
    }
}

/// The line with its newline.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{DASH}{} {}", self.name, base64(&[&self.id.to_be_bytes()[..], &self.signature].concat()))
    }
}

/// Reads signature lines alone, as a witness answers them: at least one, at most [`MAX_SIGNATURES`].
///
/// # Errors
/// What is wrong with them.
pub fn lines(bytes: &[u8]) -> Result<Vec<Line>, Malformed> {
    read_lines(plain_text(bytes)?)
}

fn read_lines(text: &str) -> Result<Vec<Line>, Malformed> {
    if text.is_empty() {
        return Err(Malformed::NoSignature);
    }
    let text = text.strip_suffix('\n').ok_or(Malformed::TornLine)?;
    // Counted before any is decoded.
    if text.split('\n').nth(MAX_SIGNATURES).is_some() {
        return Err(Malformed::TooManySignatures);
    }
    text.split('\n').map(Line::parse).collect()
}

fn plain_text(bytes: &[u8]) -> Result<&str, Malformed> {
    if bytes.len() > MAX_NOTE {
        return Err(Malformed::TooLong);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed::NotUtf8)?;
    if text.bytes().any(|byte| byte < b' ' && byte != b'\n') {
        return Err(Malformed::ControlCharacter);
    }
    Ok(text)
}

/// A note: its text, and the lines that sign it. Nothing of it may be believed before [`Note::open`] says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The text with its last newline.
    text: String,
    lines: Vec<Line>,
}

/// A line that a known key signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Which of the keys that were given.
    pub key: usize,
    /// Which of the note's lines.
    pub line: usize,
    /// When it was signed, in seconds since 1970, for kinds of signatures that say so.
    pub time: Option<u64>,
}

/// What a note's lines came to. At least one is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Opened {
    /// The lines of known keys, in the note's order. A key may have signed twice.
    pub verified: Vec<Verified>,
    /// The lines of keys that were not given, in the note's order: nobody may believe anything of them.
    pub unknown: Vec<usize>,
}

impl Opened {
    /// Whether the key at this place of those that were given has signed.
    #[must_use]
    pub fn signed_by(&self, key: usize) -> bool {
        self.verified.iter().any(|verified| verified.key == key)
    }
}

/// Why a note may not be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotOpened {
    /// None of the keys has signed it.
    NoKnownSignature,
    /// A line, by its place from 0, has the name and the ID of a key that did not sign this text.
    WrongSignature(usize),
}

impl fmt::Display for NotOpened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKnownSignature => f.write_str("no signature of a known key"),
            Self::WrongSignature(line) => write!(f, "signature line {} is wrong", line + 1),
        }
    }
}

impl std::error::Error for NotOpened {}

impl Note {
    /// Reads a note.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let whole = plain_text(bytes)?;
        // The last empty line, for a text may have empty lines of its own.
        let text = whole.rfind("\n\n").ok_or(Malformed::NoText)? + 1;
        Ok(Self { text: whole[..text].into(), lines: read_lines(&whole[text + 1..])? })
    }

    /// A note to be: `text`, which ends in a newline, and its first signature lines.
    ///
    /// # Errors
    /// When the whole would not parse.
    pub fn new(text: &str, lines: Vec<Line>) -> Result<Self, Malformed> {
        let note = Self { text: text.into(), lines };
        if Self::parse(note.to_string().as_bytes())? == note { Ok(note) } else { Err(Malformed::SignatureLine) }
    }

    /// The same with more lines.
    ///
    /// # Errors
    /// When the whole would not parse.
    pub fn and(mut self, lines: impl IntoIterator<Item = Line>) -> Result<Self, Malformed> {
        self.lines.extend(lines);
        Self::new(&self.text, self.lines)
    }

    /// The text with its last newline.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The signature lines.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Verifies each line whose name and ID are those of one of `keys`. Statement keys sign no notes and match nothing.
    ///
    /// # Errors
    /// When one of these lines does not verify, or there is none.
    pub fn open(&self, keys: &[Vkey]) -> Result<Opened, NotOpened> {
        let mut opened = Opened { verified: Vec::new(), unknown: Vec::new() };
        for (place, line) in self.lines.iter().enumerate() {
            let mut claimed = false;
            let mut right = None;
            // Two keys may share name and ID by accident or by ill will: the line is right if one of them made it.
            for (key, vkey) in keys.iter().enumerate().filter(|(_, key)| line.claims(key)) {
                let Some(verdict) = verdict(vkey, &self.text, &line.signature) else { continue };
                claimed = true;
                if let Verdict::Right(time) = verdict {
                    right = right.or(Some(Verified { key, line: place, time }));
                }
            }
            match right {
                Some(verified) => opened.verified.push(verified),
                None if claimed => return Err(NotOpened::WrongSignature(place)),
                None => opened.unknown.push(place),
            }
        }
        if opened.verified.is_empty() { Err(NotOpened::NoKnownSignature) } else { Ok(opened) }
    }
}

enum Verdict {
    Right(Option<u64>),
    Wrong,
}

/// What `key` says of a signature on `text`; `None` of a key that signs no notes.
fn verdict(key: &Vkey, text: &str, signature: &[u8]) -> Option<Verdict> {
    let time = match &key.key {
        PublicKey::Statement(_) => return None,
        PublicKey::Log(_) => key.verifies(text.as_bytes(), signature).then_some(None),
        PublicKey::Cosigner(public) => cosignature::open_ed25519(public, text, signature).map(Some),
        PublicKey::MlDsa44(public) => cosignature::open_ml_dsa_44(public, &key.name, text, signature).map(Some),
    };
    Some(time.map_or(Verdict::Wrong, Verdict::Right))
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.lines.iter().try_for_each(|line| line.fmt(f))
    }
}

/// The line of kind `0x01` by `key` under `name`: Ed25519 over the text.
#[must_use]
pub fn sign(key: &Ed25519Key, name: &str, text: &str) -> Line {
    let vkey = Vkey { name: name.into(), key: PublicKey::Log(key.public()) };
    Line::of(&vkey, key.sign(text.as_bytes()).to_vec())
}

#[cfg(test)]
mod tests;
