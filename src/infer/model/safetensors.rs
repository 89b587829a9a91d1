//! The strict reading of a safetensors header, before any tensor is made of the file.
//!
//! The format is eight bytes of length, a JSON header of that length, and the data. What readers of the format disagree about is refused
//! here, so that the file which is signed has one meaning: a name that stands twice (some take the first, some the last), fields that only
//! some know, holes, overlaps and trailing bytes in which something else can hide. And what makes readers slow is bounded before it is
//! parsed: the `safetensors` crate takes headers up to 100 MB, whose 1.4 million empty tensors cost it more than a gigabyte.
//!
//! It is *not* the loader: it says where each tensor lies in the same bytes, and copies none of them. See
//! <https://github.com/huggingface/safetensors#format>.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde_json::{Map, Value};

use crate::wire::json::{self, Limits};

/// The longest header, in bytes. A tensor takes about 110 of them; the largest models of public hubs stay below 1 MiB a file.
pub const MAX_HEADER: usize = 4 << 20;

/// The most tensors. An encoder has a few hundred, the largest shard of a model with experts some thousands.
pub const MAX_TENSORS: usize = 16_384;

/// The most tensors without an element. Only odd files have any; they cost a reader the same as full ones and the file nothing.
pub const MAX_EMPTY: usize = 16;

/// The longest name of a tensor, in bytes.
pub const MAX_NAME: usize = 256;

/// The most dimensions of a tensor.
pub const MAX_RANK: usize = 8;

/// The most entries of `__metadata__`.
pub const MAX_METADATA: usize = 1024;

/// The key of the free text beside the tensors.
const METADATA: &str = "__metadata__";

/// The length that stands before the header, in bytes.
const PREFIX: usize = 8;

/// Values that one tensor costs the JSON reader: its key, itself, three members, two lists, and at most so many numbers.
const VALUES_PER_TENSOR: usize = 32 + MAX_RANK;

/// The header's limits as JSON: a list within a tensor within the header, and no number longer than 2^64.
const LIMITS: Limits = Limits { depth: 3, values: MAX_TENSORS * VALUES_PER_TENSOR + 4 * MAX_METADATA, number: 20 };

/// The element types of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the format's")]
pub enum Dtype {
    Bool,
    F4,
    F6E2M3,
    F6E3M2,
    U8,
    I8,
    F8E5M2,
    F8E4M3,
    F8E8M0,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

impl Dtype {
    /// Each type with the format's name for it and the bits of one element.
    const ALL: [(Self, &'static str, u64); 20] = [
        (Self::Bool, "BOOL", 8),
        (Self::F4, "F4", 4),
        (Self::F6E2M3, "F6_E2M3", 6),
        (Self::F6E3M2, "F6_E3M2", 6),
        (Self::U8, "U8", 8),
        (Self::I8, "I8", 8),
        (Self::F8E5M2, "F8_E5M2", 8),
        (Self::F8E4M3, "F8_E4M3", 8),
        (Self::F8E8M0, "F8_E8M0", 8),
        (Self::I16, "I16", 16),
        (Self::U16, "U16", 16),
        (Self::F16, "F16", 16),
        (Self::BF16, "BF16", 16),
        (Self::I32, "I32", 32),
        (Self::U32, "U32", 32),
        (Self::F32, "F32", 32),
        (Self::C64, "C64", 64),
        (Self::F64, "F64", 64),
        (Self::I64, "I64", 64),
        (Self::U64, "U64", 64),
    ];

    /// The format's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|entry| entry.0 == self).map_or("", |entry| entry.1)
    }

    fn named(name: &str) -> Option<(Self, u64)> {
        Self::ALL.iter().find(|entry| entry.1 == name).map(|entry| (entry.0, entry.2))
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where one tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, at most [`MAX_RANK`]; their product times the width of an element is the length of `range`.
    pub shape: Vec<usize>,
    /// Its bytes, from the start of the file.
    pub range: Range<usize>,
}

/// A header that holds to the format. Every byte of the file belongs to the length, the header, or exactly one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// By name.
    pub tensors: BTreeMap<String, Entry>,
    /// The free text of `__metadata__`. It decides nothing.
    pub metadata: BTreeMap<String, String>,
}

/// Why a file is no safetensors that is loaded. The one who made the file is at fault; the words are for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The file ends before its header does.
    Truncated,
    /// The header is longer than [`MAX_HEADER`].
    HeaderTooLong(u64),
    /// The header does not begin with `{`, or other than spaces follow its `}`.
    NotAnObject,
    /// The header is not the JSON that the gateway reads: a duplicate name is among the reasons.
    Json(json::Error),
    /// More than [`MAX_TENSORS`].
    TooManyTensors(usize),
    /// More than [`MAX_EMPTY`] tensors have no element.
    TooManyEmpty,
    /// `__metadata__` is not a map of at most [`MAX_METADATA`] texts.
    Metadata,
    /// A tensor is not as it should be.
    Tensor(String, Wrong),
    /// Bytes before this tensor belong to none, or also to the one before it.
    NotAdjacent(String),
    /// Bytes follow the last tensor.
    Trailing,
}

/// What is wrong with a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Its name is empty, longer than [`MAX_NAME`], or has control characters.
    Name,
    /// It has not exactly `dtype`, `shape` and `data_offsets`.
    Fields,
    /// Its type is not one of the format's.
    Dtype,
    /// Its shape is not a list of at most [`MAX_RANK`] lengths.
    Shape,
    /// Its number of bits overflows, or ends within a byte.
    Size,
    /// Its offsets are not two numbers in order within the file.
    Offsets,
    /// Its offsets hold more or fewer bytes than its type and shape.
    Length,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("the file ends before its header does"),
            Self::HeaderTooLong(length) => write!(f, "the header claims {length} bytes; at most {MAX_HEADER} are read"),
            Self::NotAnObject => f.write_str("the header is not one JSON object, padded with spaces alone"),
            Self::Json(error) => write!(f, "the header is not strict JSON: {error}"),
            Self::TooManyTensors(count) => write!(f, "{count} tensors; at most {MAX_TENSORS} are read"),
            Self::TooManyEmpty => write!(f, "more than {MAX_EMPTY} tensors have no element"),
            Self::Metadata => write!(f, "`{METADATA}` is not an object of at most {MAX_METADATA} texts"),
            Self::Tensor(name, wrong) => write!(f, "tensor {name:?}: {wrong}"),
            Self::NotAdjacent(name) => write!(f, "tensor {name:?} does not begin where the one before it ends"),
            Self::Trailing => f.write_str("bytes follow the last tensor"),
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => write!(f, "a name has 1 to {MAX_NAME} bytes without control characters"),
            Self::Fields => f.write_str("it has not exactly the fields dtype, shape and data_offsets"),
            Self::Dtype => f.write_str("its dtype is not one of the format's"),
            Self::Shape => write!(f, "its shape is not a list of at most {MAX_RANK} lengths"),
            Self::Size => f.write_str("its size overflows or ends within a byte"),
            Self::Offsets => f.write_str("its offsets are not two numbers in order within the file"),
            Self::Length => f.write_str("its offsets hold more or fewer bytes than its dtype and shape"),
        }
    }
}

impl std::error::Error for Fault {}

/// Reads the header of `bytes`, the whole file. Time and memory follow the header's length, at most [`MAX_HEADER`]; the data is not touched.
///
/// # Errors
/// The first [`Fault`].
pub fn scan(bytes: &[u8]) -> Result<Layout, Fault> {
    let (length, rest) = bytes.split_first_chunk::<PREFIX>().ok_or(Fault::Truncated)?;
    let length = u64::from_le_bytes(*length);
    let within = usize::try_from(length).ok().filter(|length| *length <= MAX_HEADER).ok_or(Fault::HeaderTooLong(length))?;
    let (header, data) = rest.split_at_checked(within).ok_or(Fault::Truncated)?;
    // Only a closing brace may stand before the padding, and only spaces are padding: what JSON otherwise skips could differ between readers.
    let text = header.trim_ascii_end();
    if header.first() != Some(&b'{') || text.last() != Some(&b'}') || header[text.len()..].iter().any(|byte| *byte != b' ') {
        return Err(Fault::NotAnObject);
    }
    let Value::Object(mut members) = json::parse(text, &LIMITS).map_err(Fault::Json)? else { return Err(Fault::NotAnObject) };
    let metadata = members.remove(METADATA).map_or(Ok(BTreeMap::new()), texts)?;
    if members.len() > MAX_TENSORS {
        return Err(Fault::TooManyTensors(members.len()));
    }
    let mut tensors = BTreeMap::new();
    for (name, value) in members {
        match entry(&name, &value, data.len()) {
            Ok(entry) => _ = tensors.insert(name, entry),
            Err(wrong) => return Err(Fault::Tensor(shortened(name), wrong)),
        }
    }
    if tensors.values().filter(|entry| entry.range.is_empty()).count() > MAX_EMPTY {
        return Err(Fault::TooManyEmpty);
    }
    adjacent(&tensors, data.len())?;
    let start = PREFIX + within;
    for entry in tensors.values_mut() {
        entry.range = entry.range.start + start..entry.range.end + start;
    }
    Ok(Layout { tensors, metadata })
}

/// A name for a message: the file's maker may have written anything.
fn shortened(name: String) -> String {
    name.chars().take(64).collect()
}

fn texts(value: Value) -> Result<BTreeMap<String, String>, Fault> {
    let Value::Object(members) = value else { return Err(Fault::Metadata) };
    if members.len() > MAX_METADATA {
        return Err(Fault::Metadata);
    }
    members.into_iter().map(|(key, value)| if let Value::String(text) = value { Ok((key, text)) } else { Err(Fault::Metadata) }).collect()
}

/// One tensor, with its range from the start of the data.
fn entry(name: &str, value: &Value, data: usize) -> Result<Entry, Wrong> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(Wrong::Name);
    }
    let fields: &Map<String, Value> = value.as_object().ok_or(Wrong::Fields)?;
    let (Some(dtype), Some(shape), Some(offsets), 3) = (fields.get("dtype"), fields.get("shape"), fields.get("data_offsets"), fields.len())
    else {
        return Err(Wrong::Fields);
    };
    let (dtype, bits) = dtype.as_str().and_then(Dtype::named).ok_or(Wrong::Dtype)?;
    let shape = shape.as_array().filter(|shape| shape.len() <= MAX_RANK).ok_or(Wrong::Shape)?;
    let shape = shape.iter().map(length).collect::<Option<Vec<_>>>().ok_or(Wrong::Shape)?;
    let bits = shape.iter().try_fold(bits, |product, dimension| product.checked_mul(*dimension as u64)).ok_or(Wrong::Size)?;
    if bits % 8 != 0 {
        return Err(Wrong::Size);
    }
    let [start, end] = offsets.as_array().map(Vec::as_slice).ok_or(Wrong::Offsets)? else { return Err(Wrong::Offsets) };
    let (start, end) = length(start).zip(length(end)).filter(|(start, end)| start <= end && *end <= data).ok_or(Wrong::Offsets)?;
    if (end - start) as u64 != bits / 8 {
        return Err(Wrong::Length);
    }
    Ok(Entry { dtype, shape, range: start..end })
}

fn length(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|length| usize::try_from(length).ok())
}

/// Whether the tensors are the data, end to end.
fn adjacent(tensors: &BTreeMap<String, Entry>, data: usize) -> Result<(), Fault> {
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(_, entry)| (entry.range.start, entry.range.end));
    let mut at = 0;
    for (name, entry) in order {
        if entry.range.start != at {
            return Err(Fault::NotAdjacent(shortened(name.clone())));
        }
        at = entry.range.end;
    }
    if at == data { Ok(()) } else { Err(Fault::Trailing) }
}

#[cfg(test)]
mod tests;
