//! From every way to fail to a static code, a status, and what the caller may read. One exhaustive match.
//!
//! What a caller reads never tells an upstream's name, a rule, a detector, or which of two things is missing.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::trail::Stop;
use crate::wire::{json, read};
use crate::{authenticate, authorize, budget, check, detect, infer, prove};

/// Why a request was refused, and by which stop.
#[derive(Debug)]
pub enum Refusal {
    /// By `authenticate`.
    Authenticate(authenticate::Refused),
    /// By `authorize`.
    Authorize(authorize::Error),
    /// By `budget`.
    Budget(budget::Error),
    /// By `check`.
    Check(check::Error),
    /// By `detect`.
    Detect(detect::Error),
    /// By `infer`.
    Infer(infer::Error),
    /// By `prove`.
    Prove(prove::Error),
    /// By the clock: the whole request's deadline passed at this stop.
    Deadline(Stop),
    /// By a fault of the gateway itself at this stop.
    Fault(Stop),
}

/// What becomes of a refusal.
#[derive(Debug)]
pub struct Told {
    /// The static code: `Portcullis-Reason`, and the name in logs and metrics.
    pub code: &'static str,
    /// The HTTP status.
    pub status: StatusCode,
    /// The gRPC status.
    pub grpc: u8,
    /// What the caller may read.
    pub message: Cow<'static, str>,
    /// The part of the request that is at fault, as a JSON Pointer.
    pub param: Option<String>,
    /// Headers that belong to the refusal.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What the security log may know beyond that.
    pub rule: Option<Arc<str>>,
}

impl Told {
    fn new(code: &'static str, status: StatusCode, grpc: u8, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, status, grpc, message: message.into(), param: None, headers: Vec::new(), rule: None }
    }

    fn at(mut self, param: impl Into<String>) -> Self {
        let param = param.into();
        self.param = (!param.is_empty()).then_some(param);
        self
    }

    fn rule(mut self, rule: impl Into<Arc<str>>) -> Self {
        self.rule = Some(rule.into());
        self
    }

    fn retry_after(mut self, seconds: u64) -> Self {
        self.headers.push((header::RETRY_AFTER, HeaderValue::from(seconds.max(1))));
        self
    }

    fn with(mut self, headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>) -> Self {
        self.headers.extend(headers);
        self
    }
}

/// gRPC status codes, as the contract pairs them with HTTP's.
mod grpc {
    pub(super) const INVALID_ARGUMENT: u8 = 3;
    pub(super) const DEADLINE_EXCEEDED: u8 = 4;
    pub(super) const NOT_FOUND: u8 = 5;
    pub(super) const RESOURCE_EXHAUSTED: u8 = 8;
    pub(super) const UNIMPLEMENTED: u8 = 12;
    pub(super) const INTERNAL: u8 = 13;
    pub(super) const UNAVAILABLE: u8 = 14;
    pub(super) const UNAUTHENTICATED: u8 = 16;
}

/// How long a caller is asked to wait for what comes back by itself, in seconds.
const SOON: u64 = 1;

impl Refusal {
    /// The stop that refused.
    #[must_use]
    pub const fn stop(&self) -> Stop {
        match self {
            Self::Authenticate(_) => Stop::Authenticate,
            Self::Authorize(_) => Stop::Authorize,
            Self::Budget(_) => Stop::Budget,
            Self::Check(_) => Stop::Check,
            Self::Detect(_) => Stop::Detect,
            Self::Infer(_) => Stop::Infer,
            Self::Prove(_) => Stop::Prove,
            Self::Deadline(stop) | Self::Fault(stop) => *stop,
        }
    }

    /// What becomes of it.
    #[must_use]
    pub fn told(self) -> Told {
        match self {
            Self::Authenticate(refused) => authenticate(refused),
            Self::Authorize(error) => authorize(error),
            Self::Budget(error) => budget(&error),
            Self::Check(error) => check(error),
            Self::Detect(error) => detect(&error),
            Self::Infer(error) => infer(error),
            Self::Prove(prove::Error::Unavailable) => {
                Told::new("prove.unavailable", StatusCode::SERVICE_UNAVAILABLE, grpc::UNAVAILABLE, "The answer could not be recorded, so none is given.")
                    .retry_after(SOON)
            }
            Self::Deadline(_) => deadline(),
            Self::Fault(_) => Told::new("internal", StatusCode::INTERNAL_SERVER_ERROR, grpc::INTERNAL, "The gateway failed. The request was not answered."),
        }
    }
}

fn deadline() -> Told {
    Told::new("infer.deadline", StatusCode::GATEWAY_TIMEOUT, grpc::DEADLINE_EXCEEDED, "There was no answer in time.")
}

fn authenticate(refused: authenticate::Refused) -> Told {
    const HINT: HeaderValue = HeaderValue::from_static("Bearer");
    // One text for every way to fail, so that none tells which part of a credential was right.
    let (code, text) = (refused.public_code(), authenticate::Refused::TEXT);
    match refused.retry_after {
        Some(wait) => Told::new(code, refused.status(), grpc::RESOURCE_EXHAUSTED, text).retry_after(wait.as_secs_f64().ceil() as u64),
        None => Told::new(code, refused.status(), grpc::UNAUTHENTICATED, text).with([(header::WWW_AUTHENTICATE, HINT)]),
    }
    .rule(refused.error.code())
}

/// The same for a path, a model and a version that are not there, and for those that are not this caller's.
fn denied() -> Told {
    Told::new("authorize.denied", StatusCode::NOT_FOUND, grpc::NOT_FOUND, "There is no such model, or it is not yours to use.")
}

fn authorize(error: authorize::Error) -> Told {
    match error {
        authorize::Error::CallerAskedNoRoute => denied().rule("no such route"),
        authorize::Error::CallerUsedMethod(expected) => {
            Told::new("authorize.method", StatusCode::METHOD_NOT_ALLOWED, grpc::UNIMPLEMENTED, "That path takes another method.")
                .with([(header::ALLOW, HeaderValue::from_static(expected))])
        }
        authorize::Error::Denied(rules) => denied().rule(rules),
        authorize::Error::OperatorRuleErred(why) => denied().rule(format!("a rule could not be evaluated: {why}")),
        authorize::Error::Body(error) => body(error),
        authorize::Error::Json(error) => json(error),
        authorize::Error::Shape(shape) => bad("check.shape", shape.text).at(shape.pointer).rule(shape.rule),
        authorize::Error::CallerSentBadMessage(malformed) => message(malformed),
    }
}

fn bad(code: &'static str, message: impl Into<Cow<'static, str>>) -> Told {
    Told::new(code, StatusCode::BAD_REQUEST, grpc::INVALID_ARGUMENT, message)
}

fn body(error: read::Error) -> Told {
    match error {
        read::Error::CallerSentTooMuch => {
            let told = Told::new("check.too_large", StatusCode::PAYLOAD_TOO_LARGE, grpc::INVALID_ARGUMENT, "The body is too large.");
            told.with([(header::CONNECTION, HeaderValue::from_static("close"))])
        }
        read::Error::CallerSentTooSlowly => Told::new("check.too_slow", StatusCode::REQUEST_TIMEOUT, grpc::INVALID_ARGUMENT, "The body did not arrive in time."),
        read::Error::CallerBrokeOff => bad("check.broken_off", "The body broke off."),
    }
}

fn json(error: json::Error) -> Told {
    bad("check.json", error.to_string())
}

fn budget(error: &budget::Error) -> Told {
    let (code, refused) = match error {
        budget::Error::CallerSpentRequests(refused) => ("budget.requests", refused),
        budget::Error::CallerSpentTokens(refused) => ("budget.tokens", refused),
        budget::Error::CallerHasTooManyInFlight(refused) => ("budget.in_flight", refused),
        budget::Error::TooManyCallers(refused) => ("budget.room", refused),
    };
    let message = match code {
        "budget.tokens" => "Too many tokens for now.",
        "budget.in_flight" => "Too many requests at the same time.",
        _ => "Too many requests for now.",
    };
    Told::new(code, StatusCode::TOO_MANY_REQUESTS, grpc::RESOURCE_EXHAUSTED, message).with(refused.headers())
}

fn infer(error: infer::Error) -> Told {
    match error {
        infer::Error::Unavailable(why) => {
            Told::new("infer.unavailable", StatusCode::SERVICE_UNAVAILABLE, grpc::UNAVAILABLE, "The model cannot answer now.").retry_after(SOON).rule(why)
        }
        infer::Error::UpstreamBroke(why) => {
            Told::new("infer.upstream", StatusCode::BAD_GATEWAY, grpc::UNAVAILABLE, "The model server did not give a usable answer.").rule(why)
        }
        infer::Error::TooLarge => Told::new("infer.too_large", StatusCode::BAD_GATEWAY, grpc::UNAVAILABLE, "The answer is too large."),
        infer::Error::Deadline => deadline(),
        infer::Error::UpstreamRefused(status, words) => {
            let words = words.map_or(Cow::Borrowed("The model server refused the request."), Cow::Owned);
            Told::new("infer.refused", status, grpc::INVALID_ARGUMENT, words)
        }
        infer::Error::CallerSentUnfit(why) => bad("infer.input", why),
        infer::Error::NoSuchReceipt => denied().rule("no such receipt"),
    }
}
