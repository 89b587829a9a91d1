//! How a call ended: `grpc-status` and `grpc-message`.

use std::fmt::Write;

use http::{HeaderMap, HeaderValue, StatusCode};

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
fn escape(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    let mut left = MESSAGE_MAX;
    for character in message.chars() {
        match left.checked_sub(character.len_utf8()) {
            Some(rest) => left = rest,
            None => break,
        }
        if matches!(character, ' '..='~') && character != '%' {
            out.push(character);
        } else {
            for byte in character.encode_utf8(&mut [0; 4]).bytes() {
                // Writing to a string cannot fail.
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}
