//! From every way to fail to a static code, a status, and what the caller may read. One exhaustive match.
//!
//! What a caller reads never tells an upstream's name, a rule, a detector, or which of two things is missing.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::accept::http::METHODS;
use crate::detect::price::CHALLENGE_HEADER;
use crate::trail::Stop;
use crate::wire::grpc::{Code, Malformed};
use crate::wire::{json, read};
use crate::{accept, authenticate, authorize, budget, check, detect, infer, prove};

/// Why a request was refused, and by which stop.
#[derive(Debug)]
pub enum Refusal {
    /// By `accept`: its head may not go on.
    Accept(accept::Error),
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
    /// By a stop of the gateway, which could wait no longer for this one.
    Stopping(Stop),
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
    pub grpc: Code,
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
    fn new(code: &'static str, status: StatusCode, grpc: Code, message: impl Into<Cow<'static, str>>) -> Self {
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

/// How long a caller is asked to wait for what comes back by itself, in seconds.
const SOON: u64 = 1;

impl Refusal {
    /// The stop that refused.
    #[must_use]
    pub const fn stop(&self) -> Stop {
        match self {
            Self::Accept(_) => Stop::Accept,
            Self::Authenticate(_) => Stop::Authenticate,
            Self::Authorize(_) => Stop::Authorize,
            Self::Budget(_) => Stop::Budget,
            Self::Check(_) => Stop::Check,
            Self::Detect(_) => Stop::Detect,
            Self::Infer(_) => Stop::Infer,
            Self::Prove(_) => Stop::Prove,
            Self::Deadline(stop) | Self::Stopping(stop) | Self::Fault(stop) => *stop,
        }
    }

    /// What becomes of it.
    #[must_use]
    pub fn told(self) -> Told {
        match self {
            Self::Accept(error) => accept(error),
            Self::Authenticate(refused) => authenticate(refused),
            Self::Authorize(error) => authorize(error),
            Self::Budget(error) => budget(&error),
            Self::Check(error) => check(error),
            Self::Detect(error) => detect(&error),
            Self::Infer(error) => infer(error),
            Self::Prove(error) => prove(error),
            Self::Deadline(_) => deadline(),
            Self::Stopping(_) => Told::new(
                "infer.unavailable",
                StatusCode::SERVICE_UNAVAILABLE,
                Code::Unavailable,
                "The gateway stopped before there was an answer.",
            )
            .retry_after(SOON)
            .rule("the gateway stopped"),
            Self::Fault(_) => Told::new(
                "internal",
                StatusCode::INTERNAL_SERVER_ERROR,
                Code::Internal,
                "The gateway failed. The request was not answered.",
            ),
        }
    }
}

fn deadline() -> Told {
    Told::new("infer.deadline", StatusCode::GATEWAY_TIMEOUT, Code::DeadlineExceeded, "There was no answer in time.")
}

fn accept(error: accept::Error) -> Told {
    let told = |grpc| Told::new(error.code(), error.status(), grpc, error.public());
    match error {
        accept::Error::CallersCertificateEnded => told(Code::Unauthenticated).with([(header::WWW_AUTHENTICATE, HINT)]),
        accept::Error::CallerUsedRefusedMethod => told(Code::Unimplemented).with([(header::ALLOW, METHODS)]),
        accept::Error::CallerAbandonedTooMany => told(Code::ResourceExhausted).retry_after(SOON),
        accept::Error::CallerSentBadHost
        | accept::Error::CallerSentAmbiguousFraming
        | accept::Error::CallerSentBadTarget
        | accept::Error::CallerSentLongTarget
        | accept::Error::CallerAskedForTunnel
        | accept::Error::CallerSentBadHeader
        | accept::Error::CallerSentTooManyHeaders
        | accept::Error::CallerSentCodedBody
        | accept::Error::CallerExpectedUnknown
        | accept::Error::CallerSentBodyTooSlowly
        | accept::Error::CallerBrokeBody => told(Code::InvalidArgument),
    }
}

/// How a caller may say who it is (RFC 9110, 11.6.1: no 401 without).
const HINT: HeaderValue = HeaderValue::from_static("Bearer");

fn authenticate(refused: authenticate::Refused) -> Told {
    // One text for every way to fail, so that none tells which part of a credential was right.
    let (code, text) = (refused.public_code(), authenticate::Refused::TEXT);
    match refused.retry_after {
        Some(wait) => Told::new(code, refused.status(), Code::ResourceExhausted, text).retry_after(wait.as_secs_f64().ceil() as u64),
        None => Told::new(code, refused.status(), Code::Unauthenticated, text).with([(header::WWW_AUTHENTICATE, HINT)]),
    }
    .rule(refused.error.code())
}

/// The same for a path, a model and a version that are not there, and for those that are not this caller's.
fn denied() -> Told {
    Told::new("authorize.denied", StatusCode::NOT_FOUND, Code::NotFound, "There is no such path or model, or it is not yours to use.")
}

fn authorize(error: authorize::Error) -> Told {
    match error {
        authorize::Error::CallerAskedNoRoute => denied().rule("no such route"),
        authorize::Error::CallerAskedNoGrpcMethod => {
            let message = "The gRPC service has no such method here.";
            Told::new("authorize.denied", StatusCode::NOT_FOUND, Code::Unimplemented, message).rule("no such method")
        }
        authorize::Error::CallerUsedMethod(expected) => {
            Told::new("authorize.method", StatusCode::METHOD_NOT_ALLOWED, Code::Unimplemented, "That path takes another method.")
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
    Told::new(code, StatusCode::BAD_REQUEST, Code::InvalidArgument, message)
}

fn body(error: read::Error) -> Told {
    match error {
        read::Error::TheySentTooMuch => {
            let told = Told::new("check.too_large", StatusCode::PAYLOAD_TOO_LARGE, Code::InvalidArgument, "The body is too large.");
            told.with([(header::CONNECTION, HeaderValue::from_static("close"))])
        }
        read::Error::TheySentTooSlowly => {
            Told::new("check.too_slow", StatusCode::REQUEST_TIMEOUT, Code::InvalidArgument, "The body did not arrive in time.")
        }
        read::Error::TheyBrokeOff => bad("check.broken_off", "The body broke off."),
        read::Error::NoRoom => {
            Told::new("budget.room", StatusCode::TOO_MANY_REQUESTS, Code::ResourceExhausted, "Too many requests at the same time.")
                .retry_after(SOON)
        }
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
        "budget.tokens" if refused.in_vain() => "More tokens are asked for at once than there is ever room for: ask for fewer.",
        "budget.requests" if refused.in_vain() => "More is asked for at once than there is ever room for: ask for less.",
        "budget.tokens" => "Too many tokens for now.",
        "budget.in_flight" => "Too many requests at the same time.",
        _ => "Too many requests for now.",
    };
    Told::new(code, StatusCode::TOO_MANY_REQUESTS, Code::ResourceExhausted, message).with(refused.headers()).rule(refused.rule())
}

fn infer(error: infer::Error) -> Told {
    match error {
        infer::Error::Unavailable(why) => {
            Told::new("infer.unavailable", StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, "The model cannot answer now.")
                .retry_after(SOON)
                .rule(why)
        }
        infer::Error::UpstreamOverloaded(again) => {
            Told::new("infer.unavailable", StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, "The model has too much to do for now.")
                .retry_after(again.unwrap_or(SOON))
                .rule("the upstream is overloaded")
        }
        infer::Error::UpstreamBroke(why) => {
            Told::new("infer.upstream", StatusCode::BAD_GATEWAY, Code::Unavailable, "The model did not give a usable answer.").rule(why)
        }
        infer::Error::TooLarge => Told::new("infer.too_large", StatusCode::BAD_GATEWAY, Code::Unavailable, "The answer is too large."),
        infer::Error::Deadline => deadline(),
        infer::Error::UpstreamRefused(status, words) => {
            let words = words.map_or(Cow::Borrowed("The model server refused the request."), Cow::Owned);
            Told::new("infer.refused", status, Code::InvalidArgument, words)
        }
        infer::Error::CallerSentUnfit(why) => bad("infer.input", why),
        infer::Error::NoCard => Told::new("infer.card", StatusCode::NOT_FOUND, Code::NotFound, "The model has no card."),
        infer::Error::NoSuchReceipt => denied().rule("no such receipt"),
        infer::Error::ReceiptStillOpen => {
            let text = "The stream has not ended: its statement is signed when it does.";
            Told::new("infer.open", StatusCode::CONFLICT, Code::FailedPrecondition, text).retry_after(SOON)
        }
    }
}

fn prove(error: prove::Error) -> Told {
    match error {
        prove::Error::Unavailable => {
            let text = "The answer could not be recorded, so none is given.";
            Told::new(error.code(), StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, text).retry_after(SOON)
        }
        prove::Error::CallerSentBadWant => {
            let text = "`Provenance-Want` must be a dictionary such as `mode=durable, wait=500`; the modes are async, durable, included and witnessed, \
                        and the wait is 0 to 10000 milliseconds.";
            bad(error.code(), text)
        }
    }
}

fn check(error: check::Error) -> Told {
    let code = error.code();
    let at_tensor = |told: Told, fault: check::Fault| told.at(fault.to_string());
    match error {
        check::Error::Body(error) => body(error),
        check::Error::CallerSentTooMuch => body(read::Error::TheySentTooMuch),
        check::Error::CallerSentUnexpectedBody => bad(code, "That path takes no body."),
        check::Error::CallerSentMediaType => unsupported(code, "The body's media type is not the one that this path takes."),
        check::Error::CallerSentCoded => unsupported(code, "A body under a content coding is not taken."),
        check::Error::CallerSentHeaderLength => bad(code, "`Inference-Header-Content-Length` is not a decimal number within the body."),
        check::Error::CallerSentNoJson(error) => json(error),
        check::Error::CallerSentNoMessage(malformed) => message(malformed),
        check::Error::CallerSentShape(shape) | check::Error::CallerNamedStored(shape) => {
            bad(code, shape.text).at(shape.pointer).rule(shape.rule)
        }
        check::Error::CallerBrokeSchema(place) => {
            bad(code, format!("The body does not hold to the model's schema: {}.", place.rule())).at(place.pointer()).rule(place.rule())
        }
        check::Error::CallerAskedForTooManyTokens(cap) => {
            bad(code, format!("More tokens are asked for than this model may answer with, which are {cap}."))
        }
        check::Error::CallerSentTensor(fault) => at_tensor(bad(code, tensor(fault.broken)), fault),
        check::Error::CallerAskedToExplain(why) => bad(code, why.text()).at(why.pointer()),
    }
}

fn tensor(broken: check::Broken) -> Cow<'static, str> {
    let text = match broken {
        check::Broken::Name => "The model has no tensor of that name.",
        check::Broken::Twice => "Two tensors have the same name.",
        check::Broken::Missing => "An input of the model is missing.",
        check::Broken::TooMany => "There are too many tensors.",
        check::Broken::Datatype => "The datatype is not the model's.",
        check::Broken::Shape => "The shape does not fit the model's.",
        check::Broken::Batch => "The batch is empty, or not the same in all inputs.",
        check::Broken::TooManyRows(most) => return format!("The batch is longer than this model takes at once, which is {most}.").into(),
        check::Broken::Bytes => "The data does not hold as many elements as the shape says.",
        check::Broken::Range => "A number lies outside of what the model takes.",
        check::Broken::NotFinite => "A number is not finite.",
    };
    text.into()
}

fn unsupported(code: &'static str, message: &'static str) -> Told {
    Told::new(code, StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, message)
}

fn message(malformed: Malformed) -> Told {
    match malformed {
        Malformed::Compressed => unsupported("check.coded", malformed.text()),
        Malformed::TooLong => body(read::Error::TheySentTooMuch),
        Malformed::Frame | Malformed::Truncated | Malformed::Trailing | Malformed::TooManyEntries | Malformed::Message => {
            bad("check.grpc", malformed.text())
        }
    }
}

/// Deterministic rules that a caller can mend; whoever asked cannot tell them from any other limit of the model.
fn detect(error: &detect::Error) -> Told {
    match error {
        detect::Error::CallerAskedForTooMuch(rule) => bad(error.code(), "The parameters ask for more than this model tells.").rule(*rule),
        detect::Error::CallerSentTooFine(rule) => bad(error.code(), "The numbers are finer than this model takes.").rule(*rule),
        // The pipeline says it in the words of the budget, with the headers of one.
        detect::Error::CallerAsksTooOften => {
            Told::new(error.code(), StatusCode::TOO_MANY_REQUESTS, Code::ResourceExhausted, "Too many requests for now.").rule(error.rule())
        }
        detect::Error::CallerOwesWork(challenge) => {
            let text = "This answer costs work: solve `Portcullis-Work-Challenge`, and ask again with it in `Portcullis-Work`.";
            let challenge = HeaderValue::try_from(&**challenge).ok();
            Told::new(error.code(), StatusCode::TOO_MANY_REQUESTS, Code::ResourceExhausted, text)
                .with(challenge.map(|challenge| (HeaderName::from_static(CHALLENGE_HEADER), challenge)))
                .retry_after(SOON)
                .rule(error.rule())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_costs_work_is_refused_as_by_a_limit_with_the_challenge() {
        let told = Refusal::Detect(detect::Error::CallerOwesWork("v1.6.0.0.0".into())).told();
        assert_eq!((told.code, told.status, told.grpc), ("budget.work", StatusCode::TOO_MANY_REQUESTS, Code::ResourceExhausted));
        let headers: Vec<_> = told.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(headers, [("portcullis-work-challenge", "v1.6.0.0.0"), ("retry-after", "1")]);
        assert!(!["exposure", "detect", "ladder", "step", "v1"].iter().any(|word| told.message.contains(word)));
    }
}
