//! `inference.GRPCInferenceService`, the gRPC form of the Open Inference Protocol: messages, framing, status.
//!
//! The messages are written by hand after KServe's `open_inference_grpc.proto` (field numbers are its own; Triton's agree) and derived by prost: no
//! build script, no protoc. prost refuses messages that nest more than 100 deep. How many tensors a message may have is
//! counted before it is decoded, because an empty one of two bytes becomes a hundred in memory.

mod message;
mod status;

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderValue;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::oip::{DIMENSIONS_MAX, TENSORS_MAX};

pub use message::*;
pub use status::{Code, MESSAGE_MAX, again, told, trailers};

/// What the path of every method begins with.
pub const SERVICE: &str = "/inference.GRPCInferenceService/";

/// The most entries a repeated field of a message may have at its top: tensors, raw contents, parameters.
pub const ENTRIES_MAX: usize = TENSORS_MAX;

/// The most parts that all tensors of a request, or of an answer, may have together: a parameter of a few bytes takes over a hundred in memory.
pub const PARTS_MAX: usize = 16 * ENTRIES_MAX;

/// The most strings that all tensors of a message may have as contents that are not raw: one of two bytes takes 32 in memory.
pub const STRINGS_MAX: usize = 1 << 20;

/// The tag of a tensor's contents that are not raw, and in those that of its strings.
const CONTENTS: u32 = 5;
const STRINGS: u32 = 8;

/// The tags of a request's inputs and of the outputs that are asked for, and that of an answer's outputs.
const TENSORS_OF_REQUEST: [u32; 2] = [5, 6];
const TENSORS_OF_ANSWER: [u32; 1] = [5];

/// The methods that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the protocol's")]
pub enum Method {
    ServerLive,
    ServerReady,
    ModelReady,
    ServerMetadata,
    ModelMetadata,
    ModelInfer,
}

impl Method {
    /// The method of a request's path; `None` is `UNIMPLEMENTED`.
    #[must_use]
    pub fn of(path: &str) -> Option<Self> {
        Some(match path.strip_prefix(SERVICE)? {
            "ServerLive" => Self::ServerLive,
            "ServerReady" => Self::ServerReady,
            "ModelReady" => Self::ModelReady,
            "ServerMetadata" => Self::ServerMetadata,
            "ModelMetadata" => Self::ModelMetadata,
            "ModelInfer" => Self::ModelInfer,
            _ => return None,
        })
    }
}

/// Why bytes are no message: the caller's fault (`check.grpc`, 3; `Compressed` is `check.coded`, 12, as the gRPC protocol has it), unless an upstream sent them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The message is compressed; only `identity` is spoken.
    Compressed,
    /// The five bytes before the message are missing, or their first is neither 0 nor 1.
    Frame,
    /// The message is longer than the cap.
    TooLong,
    /// The body ends before the message does.
    Truncated,
    /// Bytes, or a second message, follow the message.
    Trailing,
    /// It has more tensors, raw contents or parameters than [`ENTRIES_MAX`].
    TooManyEntries,
    /// It is no such message.
    Message,
}

impl Malformed {
    /// What is wrong, in words that hold nothing of the message.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Compressed => "compressed messages are not spoken",
            Self::Frame => "the body has no message frame",
            Self::TooLong => "the message is too long",
            Self::Truncated => "the message ends in the middle",
            Self::Trailing => "bytes follow the message",
            Self::TooManyEntries => "the message has too many entries",
            Self::Message => "the message cannot be decoded",
        }
    }
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Malformed {}

/// The one message of a unary body, out of its frame and still the body's bytes.
///
/// # Errors
/// See [`Malformed`]; the message may have at most so many bytes.
pub fn unframe(body: &Bytes, most: usize) -> Result<Bytes, Malformed> {
    let mut rest = body.clone();
    let flag = rest.try_get_u8().map_err(|_| Malformed::Frame)?;
    let length = rest.try_get_u32().map_err(|_| Malformed::Frame)? as usize;
    match flag {
        0 => {}
        1 => return Err(Malformed::Compressed),
        _ => return Err(Malformed::Frame),
    }
    if length > most {
        return Err(Malformed::TooLong);
    }
    match rest.len().cmp(&length) {
        std::cmp::Ordering::Less => Err(Malformed::Truncated),
        std::cmp::Ordering::Equal => Ok(rest),
        std::cmp::Ordering::Greater => Err(Malformed::Trailing),
    }
}

/// A message in its frame.
///
/// # Errors
/// [`Malformed::TooLong`] past 4 GiB, which a frame cannot say.
pub fn frame(message: &impl Message) -> Result<Bytes, Malformed> {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(5 + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).map_err(|_| Malformed::TooLong)?);
    // What is sized before it is written always has room.
    message.encode(&mut out).map_err(|_| Malformed::TooLong)?;
    Ok(out.freeze())
}

/// A message that came out of its frame.
///
/// # Errors
/// [`Malformed::TooManyEntries`], [`Malformed::Message`].
pub fn decode<M: Message + Default>(bytes: Bytes) -> Result<M, Malformed> {
    few_entries(bytes.clone())?;
    M::decode(bytes).map_err(|_| Malformed::Message)
}

/// A request of a model, whose tensors may have [`PARTS_MAX`] parts.
///
/// # Errors
/// [`Malformed::TooManyEntries`], [`Malformed::Message`].
pub fn decode_request(bytes: Bytes) -> Result<ModelInferRequest, Malformed> {
    few_parts(bytes.clone(), &TENSORS_OF_REQUEST)?;
    decode(bytes)
}

/// A model's answer, as an upstream sends it; its tensors too may have [`PARTS_MAX`] parts.
///
/// # Errors
/// [`Malformed::TooManyEntries`], [`Malformed::Message`].
pub fn decode_answer(bytes: Bytes) -> Result<ModelInferResponse, Malformed> {
    few_parts(bytes.clone(), &TENSORS_OF_ANSWER)?;
    decode(bytes)
}

/// What an upstream says of a model. None has tensors of more dimensions than a request may give.
///
/// # Errors
/// [`Malformed::TooManyEntries`], [`Malformed::Message`].
pub fn decode_metadata(bytes: Bytes) -> Result<ModelMetadataResponse, Malformed> {
    let told: ModelMetadataResponse = decode(bytes)?;
    let fits = |port: &TensorMetadata| port.shape.len() <= DIMENSIONS_MAX;
    if told.inputs.iter().chain(&told.outputs).all(fits) { Ok(told) } else { Err(Malformed::TooManyEntries) }
}

/// The model and version that a request about a model names; its other fields are skipped.
///
/// # Errors
/// [`Malformed::Message`].
pub fn named(message: Bytes) -> Result<(String, Option<String>), Malformed> {
    // Every such request has its name at 1 and its version at 2.
    let ModelReadyRequest { name, version } = Message::decode(message).map_err(|_| Malformed::Message)?;
    Ok((name, Some(version).filter(|version| !version.is_empty())))
}

fn few_entries(mut bytes: Bytes) -> Result<(), Malformed> {
    // Tags of the messages here are below 8; prost skips what is unknown without keeping it.
    let mut counts = [0_usize; 8];
    while bytes.has_remaining() {
        let (tag, wire) = decode_key(&mut bytes).map_err(|_| Malformed::Message)?;
        if let (Some(count), WireType::LengthDelimited) = (counts.get_mut(tag as usize), wire) {
            *count += 1;
            if *count > ENTRIES_MAX {
                return Err(Malformed::TooManyEntries);
            }
        }
        skip_field(wire, tag, &mut bytes, DecodeContext::default()).map_err(|_| Malformed::Message)?;
    }
    Ok(())
}

fn few_parts(mut bytes: Bytes, tensors: &[u32]) -> Result<(), Malformed> {
    let (mut parts, mut strings) = (0, 0);
    while bytes.has_remaining() {
        let (tag, wire) = decode_key(&mut bytes).map_err(|_| Malformed::Message)?;
        if tensors.contains(&tag) && wire == WireType::LengthDelimited {
            let (more, of_strings) = parts_of(bytes.clone())?;
            (parts, strings) = (parts + more, strings + of_strings);
            if parts > PARTS_MAX || strings > STRINGS_MAX {
                return Err(Malformed::TooManyEntries);
            }
        }
        skip_field(wire, tag, &mut bytes, DecodeContext::default()).map_err(|_| Malformed::Message)?;
    }
    Ok(())
}

/// How many fields of their own length a tensor's message has (name, type, shape, contents, and each parameter), and how many strings
/// are its contents.
fn parts_of(bytes: Bytes) -> Result<(usize, usize), Malformed> {
    let mut tensor = inner(bytes)?;
    let (mut parts, mut strings) = (0, 0);
    while tensor.has_remaining() {
        let (tag, wire) = decode_key(&mut tensor).map_err(|_| Malformed::Message)?;
        if tag == CONTENTS && wire == WireType::LengthDelimited {
            strings += strings_of(inner(tensor.clone())?)?;
        }
        skip_field(wire, tag, &mut tensor, DecodeContext::default()).map_err(|_| Malformed::Message)?;
        parts += usize::from(wire == WireType::LengthDelimited);
    }
    Ok((parts, strings))
}

fn strings_of(mut contents: Bytes) -> Result<usize, Malformed> {
    let mut strings = 0;
    while contents.has_remaining() {
        let (tag, wire) = decode_key(&mut contents).map_err(|_| Malformed::Message)?;
        skip_field(wire, tag, &mut contents, DecodeContext::default()).map_err(|_| Malformed::Message)?;
        strings += usize::from(tag == STRINGS);
    }
    Ok(strings)
}

/// The message that begins with its length.
fn inner(mut bytes: Bytes) -> Result<Bytes, Malformed> {
    let length = decode_varint(&mut bytes).ok().and_then(|length| usize::try_from(length).ok());
    length.filter(|length| *length <= bytes.len()).map(|length| bytes.slice(..length)).ok_or(Malformed::Message)
}

/// Reads `grpc-timeout`: one to eight digits and a unit (gRPC over HTTP/2).
#[must_use]
pub fn timeout(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits.iter().fold(0_u64, |count, digit| count * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// Writes `grpc-timeout`: milliseconds, as far as eight digits go, and seconds past that; never nothing.
#[must_use]
pub fn timeout_value(timeout: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let milliseconds = timeout.as_millis().max(1);
    let text = if milliseconds <= MOST { format!("{milliseconds}m") } else { format!("{}S", u128::from(timeout.as_secs()).min(MOST)) };
    // Digits and a letter.
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("1m"))
}

#[cfg(test)]
mod tests;
