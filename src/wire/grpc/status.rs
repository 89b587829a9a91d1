//! How a call ended: `grpc-status` and `grpc-message`.

use std::time::Duration;

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode, utf8_percent_encode};
use prost::Message;

/// The longest message that is sent, in bytes before escaping; what is longer is cut.
pub const MESSAGE_MAX: usize = 1024;

/// The codes of gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the protocol's")]
#[repr(u8)]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    /// Every code, by its number.
    pub const ALL: [Self; 17] = [
        Self::Ok,
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// What an upstream's `grpc-status` says; what is unknown is `Unknown`.
    #[must_use]
    pub fn read(value: &HeaderValue) -> Self {
        let number = value.to_str().ok().and_then(|text| text.parse::<usize>().ok());
        number.and_then(|number| Self::ALL.get(number)).copied().unwrap_or(Self::Unknown)
    }

    /// How an upstream's call ended, and the headers that say it: its trailers, or where there are none its headers. `None` where neither do.
    #[must_use]
    pub fn of_call<'h>(headers: &'h HeaderMap, trailers: Option<&'h HeaderMap>) -> Option<(Self, &'h HeaderMap)> {
        let said = trailers.unwrap_or(headers);
        said.get("grpc-status").map(|code| (Self::read(code), said))
    }

    /// The code of a refusal that has this HTTP status elsewhere.
    #[must_use]
    pub fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            200..=299 => Self::Ok,
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 => Self::NotFound,
            408 | 504 => Self::DeadlineExceeded,
            429 => Self::ResourceExhausted,
            405 | 501 => Self::Unimplemented,
            400..=499 => Self::InvalidArgument,
            502 | 503 => Self::Unavailable,
            500..=599 => Self::Internal,
            _ => Self::Unknown,
        }
    }
}

/// The trailers that end a call (or, where nothing was sent, its headers).
#[must_use]
pub fn trailers(code: Code, message: &str) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert("grpc-status", HeaderValue::from(u16::from(code.number())));
    // What is escaped is printable ASCII, which every header takes.
    if let Ok(value) = HeaderValue::from_str(&escape(message))
        && !message.is_empty()
    {
        trailers.insert("grpc-message", value);
    }
    trailers
}

/// Percent-encoding as gRPC over HTTP/2 has it: everything but printable ASCII, and the percent sign.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

fn escape(message: &str) -> String {
    utf8_percent_encode(&message[..message.floor_char_boundary(MESSAGE_MAX)], ESCAPED).to_string()
}

/// What an upstream's `grpc-message` says: as it was before it was escaped. What is no escape stays, as gRPC over HTTP/2 has it.
#[must_use]
pub fn told(headers: &HeaderMap) -> Option<String> {
    let escaped = headers.get("grpc-message")?.as_bytes();
    Some(percent_decode(escaped).decode_utf8_lossy().into_owned()).filter(|text| !text.is_empty())
}

/// After what time an upstream wants to be asked again, as its status or its trailers say: `RetryInfo` in `grpc-status-details-bin`
/// (`google.rpc.Status`), `grpc-retry-pushback-ms` (gRFC A6), or `retry-after` in seconds.
#[must_use]
pub fn again(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.parse::<u64>().ok();
    retry_info(headers)
        .or_else(|| number("grpc-retry-pushback-ms").map(Duration::from_millis))
        .or_else(|| number(RETRY_AFTER.as_str()).map(Duration::from_secs))
}

/// Binary headers come with and without padding.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&base64::alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// `google.rpc.Status`, as far as it is read here.
#[derive(Clone, PartialEq, prost::Message)]
struct Details {
    #[prost(message, repeated, tag = "3")]
    details: Vec<Detail>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, prost::Message)]
struct Detail {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    delay: Option<Delay>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, PartialEq, prost::Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

fn retry_info(headers: &HeaderMap) -> Option<Duration> {
    let bytes = BASE64.decode(headers.get("grpc-status-details-bin")?.as_bytes()).ok()?;
    let details = Details::decode(bytes.as_slice()).ok()?.details;
    let info = details.iter().find(|detail| detail.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(info.value.as_slice()).ok()?.delay?;
    Duration::from_secs(u64::try_from(delay.seconds).ok()?).checked_add(Duration::from_nanos(u64::try_from(delay.nanos).ok()?))
}
