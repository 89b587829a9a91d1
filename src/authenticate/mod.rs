//! The second stop: who calls.
//!
//! Its value is the [`Caller`]: a peer whose one credential held. There is no anonymous caller and no default.
//!
//! It is told by a JWT (`jwt`) whose issuer's keys are at hand ([`jwks`]), by an API key ([`api_key`]), or by a client
//! certificate (`mtls`). Nothing here waits for a network, a file or a database. Who fails often is answered 429
//! ([`failures`]), and nothing that a caller says of itself in other headers goes on ([`strip()`]).

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

use crate::accept::{ClientCertificate, Connection, Peer};
use crate::clock::Moment;
use crate::digest::Digest;
use crate::mistake::Mistake;
use crate::trail::Who;

pub mod api_key;
pub mod config;
pub mod failures;
pub mod jwks;
mod jwt;
mod mtls;
mod object;
mod strip;
mod verified;

pub use config::Config;
pub use failures::Failures;
pub use jwt::ALGORITHMS;
pub use strip::strip;
pub use verified::MAX_VERIFIED;

/// The longest credential, in bytes.
pub const MAX_CREDENTIAL: usize = 8 * 1024;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// What a verified credential says of its holder. Shared by all requests with that credential.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    /// The name, tenant, tier and method, as the logs write them.
    pub who: Arc<Who>,
    /// The roles.
    pub roles: Vec<Arc<str>>,
}

/// A peer whose credential held.
#[derive(Debug)]
pub struct Caller {
    peer: Peer,
    identity: Arc<Identity>,
}

impl Caller {
    fn from_api_key(peer: Peer, identity: Arc<Identity>) -> Self {
        Self { peer, identity }
    }

    fn from_verified_token(peer: Peer, identity: Arc<Identity>) -> Self {
        Self { peer, identity }
    }

    fn from_certificate(peer: Peer, identity: Arc<Identity>) -> Self {
        Self { peer, identity }
    }

    /// The request.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The request, to take its body.
    pub fn peer_mut(&mut self) -> &mut Peer {
        &mut self.peer
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Whether TLS verified a client certificate, be it the credential or only context.
    #[must_use]
    pub fn certificate(&self) -> bool {
        self.peer.connection().certificate.is_some()
    }
}

/// Why a credential did not let anyone in. All are 401 `authenticate.*` for the caller, save past the limit of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Error {
    /// `authenticate.missing`: no credential was sent.
    Missing,
    /// `authenticate.two_credentials`: more than one was sent.
    TwoCredentials,
    /// `authenticate.malformed`: it was not a bearer, too long, or no well-formed token.
    Malformed,
    /// `authenticate.unknown_key`: no API key has this digest.
    UnknownKey,
    /// `authenticate.expired`: it held once.
    Expired,
    /// `authenticate.not_yet`: `nbf` or `iat` lie ahead.
    NotYet,
    /// `authenticate.algorithm`: `alg` is not one of the issuer's, or not the key's.
    Algorithm,
    /// `authenticate.critical`: the header has `crit`.
    Critical,
    /// `authenticate.type`: `typ` says that the token is for something else, or it is nested.
    Type,
    /// `authenticate.issuer`: `iss` is missing or none of the configured.
    Issuer,
    /// `authenticate.key_unknown`: the issuer's key set has no key for this token.
    KeyUnknown,
    /// `authenticate.no_keys`: the issuer's key set was never fetched or is too old. Not charged as a failure.
    IssuerGaveNoKeys,
    /// `authenticate.signature`: the signature does not hold.
    Signature,
    /// `authenticate.audience`: `aud` is missing or names none of ours.
    Audience,
    /// `authenticate.claims`: a claim is missing, of the wrong type, or too long.
    Claims,
    /// `authenticate.certificate`: no `[[certificate]]` names the client certificate that came alone.
    CertificateUnknown,
}

impl Error {
    /// The static code, for logs and counters.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Missing => "authenticate.missing",
            Self::TwoCredentials => "authenticate.two_credentials",
            Self::Malformed => "authenticate.malformed",
            Self::UnknownKey => "authenticate.unknown_key",
            Self::Expired => "authenticate.expired",
            Self::NotYet => "authenticate.not_yet",
            Self::Algorithm => "authenticate.algorithm",
            Self::Critical => "authenticate.critical",
            Self::Type => "authenticate.type",
            Self::Issuer => "authenticate.issuer",
            Self::KeyUnknown => "authenticate.key_unknown",
            Self::IssuerGaveNoKeys => "authenticate.no_keys",
            Self::Signature => "authenticate.signature",
            Self::Audience => "authenticate.audience",
            Self::Claims => "authenticate.claims",
            Self::CertificateUnknown => "authenticate.certificate",
        }
    }

    /// Whether a credential was tried and failed, which is what guessing looks like. One that was not sent is no
    /// guess, and one that could not be judged is not the caller's fault.
    const fn is_charged(self) -> bool {
        !matches!(self, Self::Missing | Self::IssuerGaveNoKeys)
    }
}

/// A request that nobody could be named for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why, for the log.
    pub error: Error,
    /// Whose the credential is, where it held once and is sure; for the security log alone.
    pub whose: Option<Arc<Who>>,
    /// Past the limit of failures: 429 instead of 401, and when a failure is answered as one again.
    pub retry_after: Option<Duration>,
}

impl Refused {
    /// What the caller reads, whatever the reason.
    pub const TEXT: &'static str = "The credential is missing or does not hold.";
    /// The code past the limit of failures, for the caller and the counters.
    pub const THROTTLED: &'static str = "budget.auth_failures";

    /// The code that the caller may read. It tells apart only what follows from the request's bytes alone, or what the
    /// holder of a credential that once held may know; which check failed is for the log ([`Error::code`]).
    #[must_use]
    pub const fn public_code(&self) -> &'static str {
        match self.error {
            _ if self.retry_after.is_some() => Self::THROTTLED,
            error @ (Error::Missing | Error::TwoCredentials | Error::Malformed | Error::Expired) => error.code(),
            _ => "authenticate.refused",
        }
    }

    /// 401, or 429 past the limit of failures.
    #[must_use]
    pub const fn status(&self) -> http::StatusCode {
        if self.retry_after.is_some() { http::StatusCode::TOO_MANY_REQUESTS } else { http::StatusCode::UNAUTHORIZED }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.error.code())
    }
}

impl std::error::Error for Refused {}

/// Why a credential did not hold, and whose it is where that is sure all the same.
#[derive(Debug, PartialEq, Eq)]
struct Failed {
    error: Error,
    whose: Option<Arc<Who>>,
}

impl Failed {
    /// One that names its holder, and does not hold now.
    fn of(identity: &Identity, error: Error) -> Self {
        Self { error, whose: Some(identity.who.clone()) }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, whose: None }
    }
}

/// Everyone who may call, as one `callers.toml` says. Does not change; a reload makes a new one.
pub struct Authenticator {
    keys: api_key::Keys,
    issuers: jwt::Issuers,
    names: mtls::Names,
    failures: Arc<Failures>,
    warnings: Vec<Mistake>,
}

/// By what authority somebody was named.
#[derive(Debug)]
enum Named {
    ApiKey(Arc<Identity>),
    Token(Arc<Identity>),
    Certificate(Arc<Identity>),
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authenticator(…)")
    }
}

impl Authenticator {
    /// Compiles `callers.toml`, which lies in `base`. `failures` outlives reloads, so that one does not forgive anybody.
    ///
    /// # Errors
    /// All mistakes that were found.
    pub fn compile(callers: &Config, base: &Path, failures: Arc<Failures>, now: Moment) -> Result<Self, Vec<Mistake>> {
        let (mut mistakes, mut warnings) = (Vec::new(), Vec::new());
        let keys = api_key::Keys::compile(&callers.api_key, now, &mut mistakes, &mut warnings);
        let issuers = jwt::Issuers::compile(&callers.issuer, base, now, &mut mistakes);
        let names = mtls::Names::compile(&callers.certificate, &mut mistakes);
        if callers.api_key.is_empty() && callers.issuer.is_empty() && callers.certificate.is_empty() {
            warnings.push(Mistake::of_file("no [[issuer]], [[api_key]] or [[certificate]]: nobody can call"));
        }
        if mistakes.is_empty() { Ok(Self { keys, issuers, names, failures, warnings }) } else { Err(mistakes) }
    }

    /// The same, with the keys that `before` had already fetched from issuers about which nothing changed.
    #[must_use]
    pub fn going_on_from(mut self, before: &Self) -> Self {
        self.issuers.go_on_from(&before.issuers);
        self
    }

    /// What is allowed but may be an oversight: keys that have expired, nobody to call.
    #[must_use]
    pub fn warnings(&self) -> &[Mistake] {
        &self.warnings
    }

    /// The issuers' key sets: [`jwks::Source::refresh`] once before the port opens, then
    /// [`jwks::Source::keep_fresh`] in the background, for as long as this is in force.
    pub fn sources(&self) -> impl Iterator<Item = &Arc<jwks::Source>> {
        self.issuers.sources()
    }

    /// Names the one who sent this request, and takes the credential and all else that names somebody out of its headers.
    ///
    /// # Errors
    /// When there is not exactly one credential, or it does not hold.
    pub fn authenticate(&self, mut peer: Peer, now: Moment) -> Result<Caller, Refused> {
        let named = self.admit(&peer.connection().clone(), peer.headers_mut(), now)?;
        Ok(match named {
            Named::ApiKey(identity) => Caller::from_api_key(peer, identity),
            Named::Token(identity) => Caller::from_verified_token(peer, identity),
            Named::Certificate(identity) => Caller::from_certificate(peer, identity),
        })
    }

    /// Who a client certificate names, whether or not it holds any longer.
    #[must_use]
    pub fn holder(&self, certificate: &ClientCertificate) -> Option<Arc<Who>> {
        self.names.verify(certificate).map(|identity| identity.who.clone())
    }

    fn admit(&self, connection: &Connection, headers: &mut HeaderMap, now: Moment) -> Result<Named, Refused> {
        let named = self.name(connection.certificate.as_deref(), headers, now);
        strip(headers);
        named.map_err(|Failed { error, whose }| {
            let charged = if error.is_charged() { self.failures.charge(connection.address.ip(), now.mono) } else { Ok(()) };
            Refused { error, whose, retry_after: charged.err() }
        })
    }

    fn name(&self, certificate: Option<&ClientCertificate>, headers: &HeaderMap, now: Moment) -> Result<Named, Failed> {
        let (bearer, key) = (one(headers, &AUTHORIZATION)?, one(headers, &X_API_KEY)?);
        let (credential, may_be_token) = match (bearer, key) {
            (Some(_), Some(_)) => return Err(Error::TwoCredentials.into()),
            // What a request says alone wins over its connection's certificate.
            (Some(bearer), None) => (bearer_of(bearer)?, true),
            (None, Some(key)) => (visible(key)?, false),
            (None, None) => {
                let certificate = certificate.ok_or(Error::Missing)?;
                return self.names.verify(certificate).map(Named::Certificate).ok_or(Error::CertificateUnknown.into());
            }
        };
        if credential.is_empty() || credential.len() > MAX_CREDENTIAL {
            return Err(Error::Malformed.into());
        }
        let digest = Digest::of(credential.as_bytes());
        if may_be_token && jwt::is_token(credential) {
            self.issuers.verify(credential, &digest, now).map(Named::Token)
        } else {
            self.keys.verify(&digest, now).map(Named::ApiKey)
        }
    }
}

/// The only value of a header; none if it is absent.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Error> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(Error::TwoCredentials),
    }
}

/// What stands behind `Bearer` (RFC 6750 §2.1; the scheme's case does not matter, RFC 9110 §11.1).
fn bearer_of(value: &HeaderValue) -> Result<&str, Error> {
    let text = value.to_str().map_err(|_| Error::Malformed)?;
    let (scheme, credential) = text.split_once(' ').ok_or(Error::Malformed)?;
    let credential = credential.trim_start_matches(' ');
    let whole = scheme.eq_ignore_ascii_case("bearer") && credential.bytes().all(|b| b.is_ascii_graphic());
    if whole { Ok(credential) } else { Err(Error::Malformed) }
}

fn visible(value: &HeaderValue) -> Result<&str, Error> {
    value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_graphic())).ok_or(Error::Malformed)
}

#[cfg(test)]
mod signer;
#[cfg(test)]
mod tests;
