//! Key sets (RFC 7517): read from a file, or fetched in the background and never on a request's account.

use std::future::Future;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, fs};

use arc_swap::ArcSwapOption;
use aws_lc_rs::signature::{self, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};
use tokio::sync::Notify;

use super::object;
use crate::clock::Moment;
use crate::digest::Digest;

/// The longest key set, in bytes.
pub const MAX_BYTES: usize = 256 * 1024;
/// The most keys in one set.
pub const MAX_KEYS: usize = 100;
/// The longest `kid`, in bytes.
pub const MAX_KID: usize = 256;
/// How long a fetch may take.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after a failed fetch the next one begins.
pub const RETRY: Duration = Duration::from_secs(30);
/// At most one fetch in this time is made because tokens name keys that the set does not have.
pub const UNKNOWN_KID_EVERY: Duration = Duration::from_secs(30);

/// Whatever broke a fetch.
pub type FetchError = Box<dyn std::error::Error + Send + Sync>;

/// Fetches a key set: no redirects, at most [`MAX_BYTES`].
pub trait Fetch: Send + Sync {
    /// The whole body of a 200 answer to `GET url`.
    fn fetch<'a>(&'a self, url: &'a str) -> Pin<Box<dyn Future<Output = Result<Bytes, FetchError>> + Send + 'a>>;
}

/// Why a key set was not taken; the last good one stays.
#[derive(Debug)]
pub enum Error {
    /// The operator's file could not be read.
    OperatorFileUnreadable(std::io::Error),
    /// The issuer could not be asked.
    IssuerUnreachable(FetchError),
    /// The issuer took longer than [`FETCH_TIMEOUT`].
    IssuerSlow,
    /// What was read is no key set that may be used.
    NotAKeySet(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OperatorFileUnreadable(error) => write!(f, "the key set's file cannot be read: {error}"),
            Self::IssuerUnreachable(error) => write!(f, "the key set cannot be fetched: {error}"),
            Self::IssuerSlow => f.write_str("the key set did not come in time"),
            Self::NotAKeySet(why) => write!(f, "the key set is refused: {why}"),
        }
    }
}

impl std::error::Error for Error {}

/// Where a key set comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    File(PathBuf),
    Url(String),
}

/// How a source is kept: what two configurations must agree on to share one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) issuer: Arc<str>,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) origin: Origin,
    pub(super) refresh: Duration,
    pub(super) max_stale: Duration,
}

/// One issuer's keys, and the place they come from.
pub struct Source {
    plan: Plan,
    held: ArcSwapOption<Held>,
    wake: Notify,
    /// When an unknown `kid` last asked for a fetch. Locked for nanoseconds, and only by tokens that fail.
    asked: Mutex<Option<Instant>>,
    failed: AtomicU64,
}

struct Held {
    set: Arc<Set>,
    fetched: Instant,
}

impl Source {
    pub(super) fn new(plan: Plan) -> Self {
        Self { plan, held: ArcSwapOption::empty(), wake: Notify::new(), asked: Mutex::new(None), failed: AtomicU64::new(0) }
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The issuer whose keys these are.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.plan.issuer
    }

    /// The file that the keys are read from, if they are.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match &self.plan.origin {
            Origin::File(path) => Some(path),
            Origin::Url(_) => None,
        }
    }

    /// Whether the keys are fetched, so that [`Source::keep_fresh`] must run.
    #[must_use]
    pub fn is_fetched(&self) -> bool {
        matches!(self.plan.origin, Origin::Url(_))
    }

    /// How often the keys could not be renewed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Whether there are keys that may be used now.
    #[must_use]
    pub fn is_ready(&self, now: Moment) -> bool {
        self.usable(now).is_some()
    }

    /// The keys, unless they were fetched too long ago.
    pub(super) fn usable(&self, now: Moment) -> Option<Arc<Set>> {
        let held = self.held.load();
        let held = held.as_ref()?;
        let stale = self.is_fetched() && now.mono.saturating_duration_since(held.fetched) > self.plan.max_stale;
        (!stale).then(|| held.set.clone())
    }

    /// The generation of the keys that may be used now.
    pub(super) fn generation(&self, now: Moment) -> Option<u64> {
        let held = self.held.load();
        let held = held.as_ref()?;
        let stale = self.is_fetched() && now.mono.saturating_duration_since(held.fetched) > self.plan.max_stale;
        (!stale).then_some(held.set.generation)
    }

    /// Reads the file again; the last good keys stay when it is no good. Does nothing for fetched keys.
    ///
    /// # Errors
    /// When the file cannot be read or is no key set that may be used.
    pub fn reload(&self, now: Moment) -> Result<(), Error> {
        let Origin::File(path) = &self.plan.origin else { return Ok(()) };
        self.counted(read_file(path).and_then(|bytes| self.take(&bytes, now)))
    }

    /// Fetches the keys once; the last good ones stay when that fails. Reads the file where there is one.
    ///
    /// # Errors
    /// When the issuer does not answer in time, or not with a key set that may be used.
    pub async fn refresh(&self, fetch: &dyn Fetch, now: Moment) -> Result<(), Error> {
        let Origin::Url(url) = &self.plan.origin else { return self.reload(now) };
        let fetched = match tokio::time::timeout(FETCH_TIMEOUT, fetch.fetch(url)).await {
            Ok(fetched) => fetched.map_err(Error::IssuerUnreachable),
            Err(_) => Err(Error::IssuerSlow),
        };
        self.counted(fetched.and_then(|bytes| self.take(&bytes, now)))
    }

    /// Fetches the keys when they are due, after a failure, and when tokens name unknown ones; until it is dropped.
    /// `told` hears how each fetch ended.
    pub async fn keep_fresh(self: Arc<Self>, fetch: Arc<dyn Fetch>, told: impl Fn(&Self, Result<(), Error>) + Send) {
        if !self.is_fetched() {
            return;
        }
        let mut wait = self.due(Moment::now());
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.wake.notified() => {}
            }
            let result = self.refresh(&*fetch, Moment::now()).await;
            wait = if result.is_ok() { self.plan.refresh } else { RETRY.min(self.plan.refresh) };
            told(&self, result);
        }
    }

    /// A token named a key that the set does not have: asks for one fetch, unless one was asked for lately.
    /// Returns at once; the token at hand is refused.
    pub(super) fn ask(&self, now: Moment) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.is_none_or(|asked| now.mono.saturating_duration_since(asked) >= UNKNOWN_KID_EVERY) {
            *asked = Some(now.mono);
            self.wake.notify_one();
        }
    }

    fn due(&self, now: Moment) -> Duration {
        let held = self.held.load();
        held.as_ref().map_or(Duration::ZERO, |held| (held.fetched + self.plan.refresh).saturating_duration_since(now.mono))
    }

    fn take(&self, bytes: &[u8], now: Moment) -> Result<(), Error> {
        // The same bytes stay the same set, so that what was verified with it stays verified.
        let digest = Digest::of(bytes);
        let same = self.held.load().as_ref().map(|held| held.set.clone()).filter(|set| set.digest == digest);
        let set = match same {
            Some(set) => set,
            None => Arc::new(Set::read(bytes, &self.plan.algorithms)?),
        };
        self.held.store(Some(Arc::new(Held { set, fetched: now.mono })));
        Ok(())
    }

    fn counted(&self, result: Result<(), Error>) -> Result<(), Error> {
        if result.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    fs::File::open(path).and_then(|file| file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)).map_err(Error::OperatorFileUnreadable)?;
    Ok(bytes)
}

/// The keys of one set that may verify this issuer's tokens.
pub(super) struct Set {
    keys: Vec<Key>,
    digest: Digest,
    generation: u64,
}

/// One key, and what it may be used for.
pub(super) struct Key {
    kid: Option<String>,
    algorithms: Vec<Algorithm>,
    pub(super) key: DecodingKey,
}

/// Why a set has no key for a token.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoKey {
    /// No key has this `kid`, or there is none and the set leaves a choice.
    Unknown,
    /// The key is not for this algorithm.
    WrongAlgorithm,
}

impl Set {
    /// Reads a key set. Keys that are not for verifying with one of `algorithms` are left out, as RFC 7517 §5 asks;
    /// a set with a secret in it, or with one `kid` twice, is refused whole.
    fn read(bytes: &[u8], algorithms: &[Algorithm]) -> Result<Self, Error> {
        static GENERATION: AtomicU64 = AtomicU64::new(1);
        let refused = |why| Err(Error::NotAKeySet(why));
        if bytes.len() > MAX_BYTES {
            return refused("it is longer than 256 KiB");
        }
        let Some(document) = object::read(bytes) else {
            return refused("it is not a JSON object without duplicate keys");
        };
        let Some(entries) = document.get("keys").and_then(Value::as_array) else {
            return refused("it has no array \"keys\"");
        };
        if entries.len() > MAX_KEYS {
            return refused("it has more than 100 keys");
        }
        let mut kids = std::collections::HashSet::new();
        let mut keys = Vec::new();
        for entry in entries {
            let Some(entry) = entry.as_object() else { return refused("a key is not an object") };
            if text(entry, "kty") == Some("oct")
                || ["k", "d", "p", "q", "dp", "dq", "qi", "oth"].iter().any(|part| entry.contains_key(*part))
            {
                return refused("it holds a symmetric or private key, which is thereby known to others");
            }
            let kid = match entry.get("kid") {
                None => None,
                Some(Value::String(kid)) if kid.len() <= MAX_KID => Some(kid.clone()),
                Some(_) => return refused("a kid is not a string of at most 256 bytes"),
            };
            if kid.as_ref().is_some_and(|kid| !kids.insert(kid.clone())) {
                return refused("one kid stands twice");
            }
            if let Some((algorithms, key)) = public_key(entry, algorithms) {
                keys.push(Key { kid, algorithms, key });
            }
        }
        if keys.is_empty() {
            return refused("it has no key for the configured algorithms");
        }
        Ok(Self { keys, digest: Digest::of(bytes), generation: GENERATION.fetch_add(1, Ordering::Relaxed) })
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// The key that `kid` names; without a `kid` the only one for `algorithm`. A `kid` is compared and nothing else.
    pub(super) fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<&Key, NoKey> {
        if let Some(kid) = kid {
            let key = self.keys.iter().find(|key| key.kid.as_deref() == Some(kid)).ok_or(NoKey::Unknown)?;
            return if key.algorithms.contains(&algorithm) { Ok(key) } else { Err(NoKey::WrongAlgorithm) };
        }
        let mut fitting = self.keys.iter().filter(|key| key.algorithms.contains(&algorithm));
        match (fitting.next(), fitting.next()) {
            (Some(key), None) => Ok(key),
            _ => Err(NoKey::Unknown),
        }
    }
}

fn text<'a>(entry: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    entry.get(name).and_then(Value::as_str)
}

/// The key in `entry`, and those of `allowed` that it is for; none if it is for something else or too weak.
fn public_key(entry: &Map<String, Value>, allowed: &[Algorithm]) -> Option<(Vec<Algorithm>, DecodingKey)> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    if entry.get("use").is_some_and(|purpose| purpose != "sig") {
        return None;
    }
    if let Some(operations) = entry.get("key_ops")
        && !operations.as_array().is_some_and(|operations| operations.iter().any(|operation| operation == "verify"))
    {
        return None;
    }
    let bytes = |name: &str| text(entry, name).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let (kind, key): (&[Algorithm], DecodingKey) = match (text(entry, "kty")?, text(entry, "crv")) {
        ("EC", Some(curve @ ("P-256" | "P-384"))) => {
            let (kind, length, verifier): (&[Algorithm], _, &signature::EcdsaVerificationAlgorithm) = if curve == "P-256" {
                (&[ES256], 32, &signature::ECDSA_P256_SHA256_FIXED)
            } else {
                (&[ES384], 48, &signature::ECDSA_P384_SHA384_FIXED)
            };
            let (x, y) = (bytes("x")?, bytes("y")?);
            if x.len() != length || y.len() != length {
                return None;
            }
            let point = [&[4][..], &x, &y].concat();
            // A point that is not on the curve would be found out at every token; here it is found out once.
            ParsedPublicKey::new(verifier, &point).ok()?;
            (kind, DecodingKey::from_ec_der(&point))
        }
        ("OKP", Some("Ed25519")) => {
            let x = bytes("x").filter(|x| x.len() == 32)?;
            (&[EdDSA], DecodingKey::from_ed_der(&x))
        }
        ("RSA", _) => {
            let (n, e) = (bytes("n")?, bytes("e")?);
            let leading = n.first().filter(|byte| **byte != 0)?.leading_zeros() as usize;
            let bits = n.len() * 8 - leading;
            let odd = |number: &[u8]| number.last().is_some_and(|byte| byte & 1 == 1);
            if !(2_048..=8_192).contains(&bits) || !odd(&n) || !odd(&e) || e.len() > 4 || e == [1] || e[0] == 0 {
                return None;
            }
            (&[RS256, RS384, RS512, PS256, PS384, PS512], DecodingKey::from_rsa_raw_components(&n, &e))
        }
        _ => return None,
    };
    let stated = match entry.get("alg") {
        None => None,
        // RFC 9864 calls EdDSA over this curve "Ed25519".
        Some(Value::String(name)) if name == "Ed25519" => Some(EdDSA),
        Some(Value::String(name)) => Some(name.parse::<Algorithm>().ok()?),
        Some(_) => return None,
    };
    let algorithms: Vec<Algorithm> =
        kind.iter().copied().filter(|kind| allowed.contains(kind) && stated.is_none_or(|stated| stated == *kind)).collect();
    (!algorithms.is_empty()).then_some((algorithms, key))
}

#[cfg(test)]
mod tests;
