//! The one strict parse of JSON (RFC 8259, narrowed as I-JSON, RFC 7493, is).
//!
//! Two parsers that read one body differently are a way past a check. So what readers are known to disagree about is
//! refused here: duplicate keys, lone surrogates, invalid UTF-8, numbers past binary64, bytes after the document.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Number, Value};

mod edit;
mod halves;

pub use edit::{Edit, edit};
pub use halves::without_halves;

/// How deep a document may nest, unless a limit says otherwise. Requests of today's clients nest less than ten deep, JSON Schemas of tools less than thirty.
pub const DEPTH: usize = 64;

/// The deepest limit that can be asked for: serde_json itself refuses at 128.
pub const DEPTH_MAX: usize = 120;

/// The longest number, in bytes. The longest that a binary64 prints as is 24; an honest 64-bit integer has 20. Long
/// literals cost readers behind us quadratic time (CPython refuses 4300 digits for that reason).
pub const NUMBER: usize = 128;

/// Bytes of a body that must stand behind each value in it, on average: a value takes 72 to 80 bytes in memory, so that a parse takes about ten times the cap.
const BYTES_PER_VALUE: usize = 7;

/// As many values as any body may have, whatever its cap.
const VALUES_MIN: usize = 16 * 1024;

/// The cap on bodies that the default limits are made for.
const BODY: usize = 1024 * 1024;

/// What one parse may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How deep arrays and objects may nest, at most [`DEPTH_MAX`]; a scalar has depth 0, `[]` has depth 1.
    pub depth: usize,
    /// How many values may stand in the document. A container that is not empty counts for as many more as its first allocation
    /// holds, and a key counts for one.
    pub values: usize,
    /// The longest number literal, in bytes.
    pub number: usize,
}

impl Limits {
    /// For bodies of at most so many bytes: memory for values stays within about ten times the cap.
    #[must_use]
    pub fn for_body(cap: usize) -> Self {
        Self { depth: DEPTH, values: (cap / BYTES_PER_VALUE).max(VALUES_MIN), number: NUMBER }
    }
}

impl Default for Limits {
    /// For bodies of at most 1 MiB.
    fn default() -> Self {
        Self::for_body(BODY)
    }
}

/// Why bytes are no JSON that the gateway reads: the caller's fault (`check.json`, 400), unless an upstream sent them (`infer.protocol`, 502).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is nothing.
    Empty,
    /// The syntax is broken, a string is not UTF-8, has a lone surrogate or a raw control character.
    Syntax(usize),
    /// The document ends in the middle.
    Truncated(usize),
    /// Bytes follow the document.
    Trailing(usize),
    /// A key stands twice in one object.
    DuplicateKey(usize),
    /// It nests too deep.
    TooDeep(usize),
    /// It has too many values.
    TooManyValues(usize),
    /// A number is not a finite binary64.
    NumberRange(usize),
    /// A number's literal is too long.
    NumberLength(usize),
}

impl Error {
    /// What is wrong, in words that hold nothing of the document.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Empty => "the body is empty",
            Self::Syntax(_) => "the body is not valid JSON in UTF-8",
            Self::Truncated(_) => "the JSON ends in the middle",
            Self::Trailing(_) => "bytes follow the JSON document",
            Self::DuplicateKey(_) => "a key stands twice in one object",
            Self::TooDeep(_) => "the JSON nests too deep",
            Self::TooManyValues(_) => "the JSON has too many values",
            Self::NumberRange(_) => "a number is out of range",
            Self::NumberLength(_) => "a number has too many digits",
        }
    }

    /// About where it was noticed, in bytes from the start (at or just past the offender).
    #[must_use]
    pub const fn offset(self) -> Option<usize> {
        match self {
            Self::Empty => None,
            Self::Syntax(at)
            | Self::Truncated(at)
            | Self::Trailing(at)
            | Self::DuplicateKey(at)
            | Self::TooDeep(at)
            | Self::TooManyValues(at)
            | Self::NumberRange(at)
            | Self::NumberLength(at) => Some(at),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offset() {
            Some(at) => write!(f, "{} (at byte {at})", self.text()),
            None => f.write_str(self.text()),
        }
    }
}

impl std::error::Error for Error {}

/// Parses one whole document within limits. The caller bounds its bytes.
///
/// # Errors
/// See [`Error`]; nothing of the document is in it.
pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Value, Error> {
    if bytes.iter().all(|byte| is_space(*byte)) {
        return Err(Error::Empty);
    }
    if let Some(at) = long_number(bytes, limits.number) {
        return Err(Error::NumberLength(at));
    }
    let state = State { left: Cell::new(limits.values), fault: Cell::new(None) };
    read(bytes, &state, Seed { state: &state, depth: limits.depth.min(DEPTH_MAX) })
}

/// The same reading of the same documents, of which nothing is built but the members `kept` of the outermost object.
///
/// # Errors
/// Those of [`parse`].
pub fn parse_members(bytes: &[u8], limits: &Limits, kept: &[&str]) -> Result<Value, Error> {
    if bytes.iter().all(|byte| is_space(*byte)) {
        return Err(Error::Empty);
    }
    if let Some(at) = long_number(bytes, limits.number) {
        return Err(Error::NumberLength(at));
    }
    let state = State { left: Cell::new(limits.values), fault: Cell::new(None) };
    let members = read(bytes, &state, Skim { seed: Seed { state: &state, depth: limits.depth.min(DEPTH_MAX) }, kept })?;
    Ok(Value::Object(members))
}

/// Reads one document to the end of the bytes.
fn read<'de, S: DeserializeSeed<'de>>(bytes: &'de [u8], state: &State, seed: S) -> Result<S::Value, Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let parsed = seed.deserialize(&mut reader).map_err(|error| {
        let at = offset(bytes, &error);
        match state.fault.get() {
            Some(Fault::DuplicateKey) => Error::DuplicateKey(at),
            Some(Fault::TooDeep) => Error::TooDeep(at),
            Some(Fault::TooManyValues) => Error::TooManyValues(at),
            Some(Fault::NumberRange) => Error::NumberRange(at),
            None if error.is_eof() => Error::Truncated(at),
            // The library tells these apart only by their words; a test holds them.
            None if error.to_string().starts_with("number out of range") => Error::NumberRange(at),
            None => Error::Syntax(at),
        }
    })?;
    reader.end().map_err(|error| Error::Trailing(offset(bytes, &error)))?;
    Ok(parsed)
}

#[derive(Clone, Copy)]
enum Fault {
    DuplicateKey,
    TooDeep,
    TooManyValues,
    NumberRange,
}

struct State {
    left: Cell<usize>,
    fault: Cell<Option<Fault>>,
}

impl State {
    fn fail<E: serde::de::Error>(&self, fault: Fault) -> E {
        self.fault.set(Some(fault));
        E::custom("refused")
    }

    fn spend<E: serde::de::Error>(&self, values: usize) -> Result<(), E> {
        match self.left.get().checked_sub(values) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => Err(self.fail(Fault::TooManyValues)),
        }
    }
}

/// What the first allocation of an array and of an object costs, in values: `Vec` starts with four elements, an object
/// with four entries of a value, a key and a hash, and a table.
const ARRAY_COST: usize = 3;
const OBJECT_COST: usize = 7;

/// What an entry costs beside its value: its key, its hash, its place in the table.
const MEMBER_COST: usize = 1;

#[derive(Clone, Copy)]
struct Seed<'s> {
    state: &'s State,
    depth: usize,
}

impl Seed<'_> {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        match self.depth.checked_sub(1) {
            Some(depth) => Ok(Self { depth, ..self }),
            None => Err(self.state.fail(Fault::TooDeep)),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.state.spend(1).map(|()| Value::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        self.state.spend(1).map(|()| Value::Bool(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.state.spend(1).map(|()| Value::Number(value.into()))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.state.spend(1).map(|()| Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        self.state.spend(1)?;
        Number::from_f64(value).map(Value::Number).ok_or_else(|| self.state.fail(Fault::NumberRange))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.state.spend(1).map(|()| Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        self.state.spend(1)?;
        let inner = self.deeper()?;
        let mut values = Vec::new();
        while let Some(value) = access.next_element_seed(inner)? {
            if values.is_empty() {
                self.state.spend(ARRAY_COST)?;
            }
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        self.state.spend(1)?;
        let inner = self.deeper()?;
        let mut members = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if members.is_empty() {
                self.state.spend(OBJECT_COST)?;
            }
            self.state.spend(MEMBER_COST)?;
            match members.entry(key) {
                Entry::Vacant(slot) => slot.insert(access.next_value_seed(inner)?),
                Entry::Occupied(_) => return Err(self.state.fail(Fault::DuplicateKey)),
            };
        }
        Ok(Value::Object(members))
    }
}

/// Reads like [`Seed`] and spends the same, but builds only the members that are kept.
#[derive(Clone, Copy)]
struct Skim<'s> {
    seed: Seed<'s>,
    kept: &'s [&'s str],
}

impl<'de> DeserializeSeed<'de> for Skim<'_> {
    type Value = Map<String, Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Skim<'_> {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        self.seed.state.spend(1).map(|()| Map::new())
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<Self::Value, E> {
        self.seed.state.spend(1).map(|()| Map::new())
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Self::Value, E> {
        self.seed.state.spend(1).map(|()| Map::new())
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Self::Value, E> {
        self.seed.state.spend(1).map(|()| Map::new())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Self::Value, E> {
        self.seed.visit_f64(value).map(|_| Map::new())
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Self::Value, E> {
        self.seed.state.spend(1).map(|()| Map::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let state = self.seed.state;
        state.spend(1)?;
        let inner = Self { seed: self.seed.deeper()?, kept: &[] };
        let mut empty = true;
        while access.next_element_seed(inner)?.is_some() {
            if std::mem::take(&mut empty) {
                state.spend(ARRAY_COST)?;
            }
        }
        Ok(Map::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let state = self.seed.state;
        state.spend(1)?;
        let inner = self.seed.deeper()?;
        let (mut members, mut keys) = (Map::new(), Keys::default());
        while let Some(key) = access.next_key_seed(Key)? {
            if keys.few.is_empty() {
                state.spend(OBJECT_COST)?;
            }
            state.spend(MEMBER_COST)?;
            let kept = self.kept.iter().find(|kept| **kept == key);
            if !keys.add(key) {
                return Err(state.fail(Fault::DuplicateKey));
            }
            match kept {
                Some(kept) => _ = members.insert((*kept).to_owned(), access.next_value_seed(inner)?),
                None => _ = access.next_value_seed(Self { seed: inner, kept: &[] })?,
            }
        }
        Ok(members)
    }
}

/// The keys of one object: compared one by one while they are few.
#[derive(Default)]
struct Keys<'de> {
    few: Vec<Cow<'de, str>>,
    more: HashSet<Cow<'de, str>>,
}

impl<'de> Keys<'de> {
    const FEW: usize = 16;

    /// Whether it is a new one.
    fn add(&mut self, key: Cow<'de, str>) -> bool {
        if self.few.contains(&key) {
            return false;
        }
        if self.few.len() < Self::FEW {
            self.few.push(key);
            return true;
        }
        self.more.insert(key)
    }
}

/// A key, borrowed from the bytes unless it is written with escapes.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, key: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(key))
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(key.to_owned()))
    }
}

/// The first number literal longer than `most`. Numbers are runs of few characters, so one byte in `most` is looked at, and only
/// where a run is too long is the document read from its start to see whether it stands in a string.
fn long_number(bytes: &[u8], most: usize) -> Option<usize> {
    let digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
    let run = bytes.iter().enumerate().skip(most).step_by(most.max(1)).find(|(at, byte)| {
        digit(byte) && {
            let before = bytes[..*at].iter().rev().take(most).take_while(|byte| digit(byte)).count();
            let after = bytes[*at..].iter().take(most + 1).take_while(|byte| digit(byte)).count();
            before + after > most
        }
    });
    run?;
    let (mut at, mut start) = (0, None);
    while let Some(byte) = bytes.get(at) {
        if *byte == b'"' {
            start = None;
            at += 1;
            while let Some(next) = bytes.get(at..)?.iter().position(|byte| matches!(byte, b'"' | b'\\')) {
                at += next;
                if bytes[at] == b'"' {
                    break;
                }
                at += 2;
            }
        } else if digit(byte) {
            let first = *start.get_or_insert(at);
            if at - first >= most {
                return Some(first);
            }
        } else {
            start = None;
        }
        at += 1;
    }
    None
}

const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

/// serde_json counts lines from 1 and bytes of the line from 1.
fn offset(bytes: &[u8], error: &serde_json::Error) -> usize {
    let line = match error.line() {
        0 | 1 => 0,
        line => bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(line - 2).map_or(0, |(at, _)| at + 1),
    };
    (line + error.column().saturating_sub(1)).min(bytes.len())
}

#[cfg(test)]
mod tests;
