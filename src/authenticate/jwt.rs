//! JWTs (RFC 7519, RFC 8725): the issuer chooses key set, algorithms and audience; the token chooses nothing.
//!
//! jsonwebtoken verifies signatures. What a token must look like is held here and more strictly than the library does:
//! it takes bad base64 in a payload, and at times skipped an `exp` of the wrong type (CVE-2026-25537).

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};
use toml::Spanned;

use super::config::{self, Claims};
use super::jwks::{NoKey, Origin, Plan, Source};
use super::verified::{Cache, Verified, Window};
use super::{Error, Failed, Identity, object};
use crate::clock::Moment;
use crate::digest::Digest;
use crate::mistake::Mistake;
use crate::trail::Who;
use crate::unit;

/// The algorithms that `algorithms` may name.
pub const ALGORITHMS: &[&str] = &["ES256", "ES384", "EdDSA", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"];
/// The `typ` headers that are taken where the policy names none, beside an absent one.
const TYPES: &[&str] = &["jwt", "at+jwt"];
/// The most audiences in one token.
const MAX_AUDIENCES: usize = 64;
/// The last second of the year 9999: a date past it is not meant as one.
const MAX_DATE: f64 = 253_402_300_799.0;

/// The issuers, and the tokens of theirs that were verified.
pub(super) struct Issuers {
    places: HashMap<Arc<str>, usize>,
    issuers: Vec<Issuer>,
    cache: Cache,
}

struct Issuer {
    name: Arc<str>,
    audience: Vec<String>,
    algorithms: Vec<Algorithm>,
    leeway: u64,
    types: Option<Vec<String>>,
    tenants: Option<HashSet<String>>,
    claims: Claims,
    source: Arc<Source>,
}

/// Whether a bearer's credential is a JWT and not an API key: three parts of base64url with dots between,
/// the last of which may be empty, so that an unsigned token is refused as one.
pub(super) fn is_token(text: &str) -> bool {
    let mut parts = text.split('.');
    let all = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_=".contains(&b));
    matches!((parts.next(), parts.next(), parts.next(), parts.next()), (Some(a), Some(b), Some(c), None)
        if !a.is_empty() && !b.is_empty() && all(a) && all(b) && all(c))
}

impl Issuers {
    /// Reads the issuers of `callers.toml` and their key sets' files, and tells what is wrong with them.
    pub(super) fn compile(issuers: &[config::Issuer], base: &Path, now: Moment, mistakes: &mut Vec<Mistake>) -> Self {
        if !issuers.is_empty() && !provider_verifies() {
            mistakes.push(Mistake::of_file("this build cannot verify signatures: the example of RFC 7515 A.3 does not hold"));
        }
        let mut seen = HashMap::new();
        let mut compiled = Vec::new();
        for issuer in issuers {
            let before = mistakes.len();
            config::once(&mut seen, issuer.issuer.get_ref(), issuer.issuer.span(), "this issuer", mistakes);
            let found = Issuer::compile(issuer, base, now, mistakes);
            if mistakes.len() == before {
                compiled.extend(found);
            }
        }
        let places = compiled.iter().enumerate().map(|(place, issuer)| (issuer.name.clone(), place)).collect();
        Self { places, issuers: compiled, cache: Cache::new() }
    }

    /// The sources of the issuers' keys.
    pub(super) fn sources(&self) -> impl Iterator<Item = &Arc<Source>> {
        self.issuers.iter().map(|issuer| &issuer.source)
    }

    /// Goes on with the keys that `before` has already fetched, where nothing about them changed.
    pub(super) fn go_on_from(&mut self, before: &Self) {
        for issuer in &mut self.issuers {
            let same = |source: &&Arc<Source>| source.is_fetched() && source.plan() == issuer.source.plan();
            if let Some(source) = before.sources().find(same) {
                issuer.source = source.clone();
            }
        }
    }

    /// Who holds this token; `digest` is that of all its bytes.
    pub(super) fn verify(&self, token: &str, digest: &Digest, now: Moment) -> Result<Arc<Identity>, Failed> {
        if let Some(known) = self.cache.find(digest)
            && self.issuers[known.issuer].source.generation(now) == Some(known.generation)
        {
            known.window.holds(now).map_err(|error| Failed::of(&known.identity, error))?;
            return Ok(known.identity);
        }
        let token = Token::read(token)?;
        // Only a key of the map: nothing of the token is believed before its signature held.
        let name = token.payload.get("iss").and_then(Value::as_str).ok_or(Error::Issuer)?;
        let place = *self.places.get(name).ok_or(Error::Issuer)?;
        let issuer = &self.issuers[place];
        let generation = issuer.signed(&token, now)?;
        let (identity, window) = issuer.believed(&token.payload)?;
        window.holds(now).map_err(|error| Failed::of(&identity, error))?;
        let identity = Arc::new(identity);
        self.cache.insert(*digest, Verified { identity: identity.clone(), issuer: place, generation, window });
        Ok(identity)
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.cache.len()
    }
}

/// A token in its parts, well formed and not believed.
struct Token<'a> {
    header: Map<String, Value>,
    payload: Map<String, Value>,
    message: &'a str,
    signature: &'a str,
}

impl<'a> Token<'a> {
    fn read(token: &'a str) -> Result<Self, Error> {
        let (message, signature) = token.rsplit_once('.').ok_or(Error::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(Error::Malformed)?;
        // Strict: no padding, no whitespace, no bits left over (RFC 7515 §2), for else one token has many spellings.
        let object = |part: &str| URL_SAFE_NO_PAD.decode(part).ok().and_then(|bytes| object::read(&bytes)).ok_or(Error::Malformed);
        let (header, payload) = (object(header)?, object(payload)?);
        URL_SAFE_NO_PAD.decode(signature).map_err(|_| Error::Malformed)?;
        Ok(Self { header, payload, message, signature })
    }
}

impl Issuer {
    /// Whether the header keeps the rules and the signature holds; the generation of the keys that said so.
    /// `jku`, `x5u`, `jwk` and `x5c` are not read (RFC 8725 §3.10).
    fn signed(&self, token: &Token<'_>, now: Moment) -> Result<u64, Error> {
        let header = &token.header;
        let named = header.get("alg").and_then(Value::as_str).ok_or(Error::Malformed)?;
        let algorithm = algorithm(named).filter(|algorithm| self.algorithms.contains(algorithm)).ok_or(Error::Algorithm)?;
        // No extension is understood here, so any that must be understood refuses (RFC 7515 §4.1.11).
        if header.contains_key("crit") {
            return Err(Error::Critical);
        }
        self.is_meant_for_access(header)?;
        let kid = match header.get("kid") {
            None => None,
            Some(Value::String(kid)) => Some(kid.as_str()),
            Some(_) => return Err(Error::Malformed),
        };
        let keys = self.source.usable(now).ok_or_else(|| {
            self.source.ask(now);
            Error::IssuerGaveNoKeys
        })?;
        let key = keys.find(kid, algorithm).map_err(|none| match none {
            NoKey::Unknown => {
                self.source.ask(now);
                Error::KeyUnknown
            }
            NoKey::WrongAlgorithm => Error::Algorithm,
        })?;
        match jsonwebtoken::crypto::verify(token.signature, token.message.as_bytes(), &key.key, algorithm) {
            Ok(true) => Ok(keys.generation()),
            _ => Err(Error::Signature),
        }
    }

    /// Refuses tokens that the same issuer signs for other purposes (RFC 8725 §3.11): logout tokens, proofs of
    /// possession, nested tokens.
    fn is_meant_for_access(&self, header: &Map<String, Value>) -> Result<(), Error> {
        if header.contains_key("cty") {
            return Err(Error::Type);
        }
        let holds = match (header.get("typ"), &self.types) {
            (None, types) => types.is_none(),
            (Some(Value::String(typ)), types) => {
                let typ = short_type(typ);
                types.as_ref().map_or_else(|| TYPES.contains(&typ.as_str()), |types| types.contains(&typ))
            }
            (Some(_), _) => false,
        };
        if holds { Ok(()) } else { Err(Error::Type) }
    }

    /// What a token whose signature held says of its holder, and when.
    fn believed(&self, payload: &Map<String, Value>) -> Result<(Identity, Window), Error> {
        let names_us = |name: &str| self.audience.iter().any(|audience| audience == name);
        let ours = match payload.get("aud") {
            Some(Value::String(name)) => names_us(name),
            Some(Value::Array(names)) => {
                names.len() <= MAX_AUDIENCES && names.iter().all(Value::is_string) && names.iter().filter_map(Value::as_str).any(names_us)
            }
            _ => false,
        };
        if !ours {
            return Err(Error::Audience);
        }
        let until = date(payload, "exp")?.ok_or(Error::Claims)?.floor() as u64;
        let begins = [date(payload, "nbf")?, date(payload, "iat")?].into_iter().flatten().fold(0.0, f64::max).ceil() as u64;
        let window = Window { from: begins.saturating_sub(self.leeway), until: until.saturating_add(self.leeway) };

        let text = |name: &str| match payload.get(name) {
            None => Ok(""),
            Some(Value::String(text)) if text.is_empty() || config::is_name(text) => Ok(text.as_str()),
            Some(_) => Err(Error::Claims),
        };
        let (subject, tenant, tier) = (text(&self.claims.caller)?, text(&self.claims.tenant)?, text(&self.claims.tier)?);
        let allowed = self.tenants.as_ref().is_none_or(|tenants| tenants.contains(tenant));
        if subject.is_empty() || !allowed {
            return Err(Error::Claims);
        }
        let who = Who { caller: format!("jwt:{}#{subject}", self.name).into(), tenant: tenant.into(), tier: tier.into(), method: "jwt" };
        Ok((Identity { who: Arc::new(who), roles: roles(payload.get(&self.claims.roles))? }, window))
    }

    fn compile(written: &config::Issuer, base: &Path, now: Moment, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let name = written.issuer.get_ref().as_str();
        let place = written.issuer.span();
        if !config::is_name(name) || name.contains('#') {
            mistakes.push(Mistake::at(place.clone(), "issuer must be 1 to 256 bytes without control characters and without \"#\""));
        }
        let audience = written.audience.get_ref();
        if audience.is_empty() || audience.iter().any(|audience| audience.trim().is_empty()) {
            mistakes.push(Mistake::at(written.audience.span(), "audience must name at least one audience, none of them empty"));
        }
        if written.algorithms.get_ref().is_empty() {
            mistakes
                .push(Mistake::at(written.algorithms.span(), format!("algorithms must name at least one of {}", ALGORITHMS.join(", "))));
        }
        let algorithms = written.algorithms.get_ref().iter().filter_map(|name| configured(name, mistakes)).collect();
        let claims = &written.claims;
        if [&claims.caller, &claims.tenant, &claims.roles, &claims.tier].into_iter().any(String::is_empty) {
            mistakes.push(Mistake::at(place.clone(), "claims: the name of a claim must not be empty"));
        }
        if let Some(types) = &written.typ
            && (types.get_ref().is_empty() || types.get_ref().iter().any(String::is_empty))
        {
            mistakes.push(Mistake::at(types.span(), "typ must name at least one type, such as \"at+jwt\""));
        }
        let mut span = |key: &Option<Spanned<unit::Span>>, default: Duration, least: Duration, most: Duration, what: &str| {
            let value = key.as_ref().map_or(default, |key| key.get_ref().0);
            if let Some(key) = key
                && !(least..=most).contains(&value)
            {
                mistakes.push(Mistake::at(key.span(), what));
            }
            value
        };
        let day = Duration::from_secs(86_400);
        let leeway = span(&written.leeway, config::LEEWAY, Duration::ZERO, config::MOST_LEEWAY, "leeway may be at most \"5m\"");
        let refresh = span(&written.refresh, config::REFRESH, config::LEAST_REFRESH, day, "refresh must be between \"10s\" and \"1d\"");
        let max_stale =
            span(&written.max_stale, config::MAX_STALE.max(refresh), refresh, day * 7, "max_stale must be between refresh and \"7d\"");
        let origin = match (&written.jwks_file, &written.jwks) {
            (Some(file), None) => inside(base, file, mistakes).map(Origin::File),
            (None, Some(url)) if is_fetchable(url.get_ref()) => Some(Origin::Url(url.get_ref().clone())),
            (None, Some(url)) => {
                mistakes.push(Mistake::at(
                    url.span(),
                    "jwks must be an https URL without credentials or fragment; http is for loopback addresses only",
                ));
                None
            }
            (Some(_), Some(url)) => {
                mistakes.push(Mistake::at(url.span(), "jwks and jwks_file are both set; keep one"));
                None
            }
            (None, None) => {
                mistakes.push(Mistake::at(place.clone(), "an issuer needs jwks_file or jwks"));
                None
            }
        }?;
        let plan = Plan { issuer: name.into(), algorithms, origin, refresh, max_stale };
        let algorithms = plan.algorithms.clone();
        let source = Source::new(plan);
        if let Some(file) = &written.jwks_file
            && !algorithms.is_empty()
            && let Err(error) = source.reload(now)
        {
            mistakes.push(Mistake::at(file.span(), error.to_string()));
        }
        Some(Self {
            name: name.into(),
            audience: audience.clone(),
            algorithms,
            leeway: leeway.as_secs(),
            types: written.typ.as_ref().map(|types| types.get_ref().iter().map(|typ| short_type(typ)).collect()),
            tenants: written.tenants.as_ref().map(|tenants| tenants.iter().cloned().collect()),
            claims: claims.clone(),
            source: Arc::new(source),
        })
    }
}

impl Window {
    fn holds(self, now: Moment) -> Result<(), Error> {
        let now = now.unix_seconds();
        if now >= self.until {
            Err(Error::Expired)
        } else if now < self.from {
            Err(Error::NotYet)
        } else {
            Ok(())
        }
    }
}

/// The algorithm of exactly this name, if it is one that may ever be used.
fn algorithm(name: &str) -> Option<Algorithm> {
    ALGORITHMS.contains(&name).then(|| name.parse().ok()).flatten()
}

fn configured(name: &Spanned<String>, mistakes: &mut Vec<Mistake>) -> Option<Algorithm> {
    let text = name.get_ref().as_str();
    let found = algorithm(text);
    if found.is_none() {
        let what = match text.to_ascii_uppercase().as_str() {
            "NONE" => "\"none\" is no algorithm: every token would hold".to_owned(),
            "HS256" | "HS384" | "HS512" => {
                "HS algorithms are refused: whoever can verify could also sign; use ES256, EdDSA or RS256".to_owned()
            }
            _ => {
                let nearest = ALGORITHMS.iter().max_by(|a, b| strsim::jaro_winkler(a, text).total_cmp(&strsim::jaro_winkler(b, text)));
                let nearest = nearest.copied().unwrap_or("ES256");
                format!("this algorithm is not known; did you mean \"{nearest}\"? Known are {}", ALGORITHMS.join(", "))
            }
        };
        mistakes.push(Mistake::at(name.span(), what));
    }
    found
}

/// A media type as `typ` writes it: in lower case, without `application/` (RFC 7515 §4.1.9).
fn short_type(typ: &str) -> String {
    let typ = typ.to_ascii_lowercase();
    typ.strip_prefix("application/").map_or_else(|| typ.clone(), str::to_owned)
}

/// A NumericDate (RFC 7519 §2); none if absent. Any other type refuses, so that it cannot be skipped.
fn date(payload: &Map<String, Value>, name: &str) -> Result<Option<f64>, Error> {
    match payload.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => number.as_f64().filter(|date| (0.0..=MAX_DATE).contains(date)).map(Some).ok_or(Error::Claims),
        Some(_) => Err(Error::Claims),
    }
}

fn roles(claim: Option<&Value>) -> Result<Vec<Arc<str>>, Error> {
    let roles: Vec<&str> = match claim {
        None => Vec::new(),
        Some(Value::String(roles)) => roles.split(' ').filter(|role| !role.is_empty()).take(config::MAX_ROLES + 1).collect(),
        Some(Value::Array(roles)) => roles.iter().map(Value::as_str).collect::<Option<_>>().ok_or(Error::Claims)?,
        Some(_) => return Err(Error::Claims),
    };
    if roles.len() > config::MAX_ROLES || !roles.iter().all(|role| config::is_name(role)) {
        return Err(Error::Claims);
    }
    Ok(roles.into_iter().map(Into::into).collect())
}

/// The file that a policy names, which must lie in the policy folder, links followed.
fn inside(base: &Path, file: &Spanned<String>, mistakes: &mut Vec<Mistake>) -> Option<PathBuf> {
    let path = Path::new(file.get_ref());
    let mut tell = |what: String| {
        mistakes.push(Mistake::at(file.span(), what));
        None
    };
    if file.get_ref().is_empty() || !path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return tell("jwks_file must be a path inside the policy folder, relative to this file".into());
    }
    match (base.canonicalize(), base.join(path).canonicalize()) {
        (Ok(base), Ok(path)) if path.starts_with(&base) => Some(path),
        (Ok(_), Ok(_)) => tell("jwks_file leads out of the policy folder".into()),
        (Err(error), _) | (_, Err(error)) => tell(format!("jwks_file cannot be read: {error}")),
    }
}

fn is_fetchable(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    let Some(authority) = uri.authority() else { return false };
    let host = authority.host().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    let scheme = uri.scheme_str();
    !host.is_empty()
        && !authority.as_str().contains('@')
        && !url.contains('#')
        && (scheme == Some("https") || scheme == Some("http") && loopback)
}

/// One real verification, of the example in RFC 7515 A.3, and one that must fail: a build whose cryptography is
/// missing is found out at the start and not at the first request.
fn provider_verifies() -> bool {
    const X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
    const Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";
    const MESSAGE: &str =
        "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    const SIGNATURE: &str = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    let Ok(key) = DecodingKey::from_ec_components(X, Y) else { return false };
    let verify = |message: &str| jsonwebtoken::crypto::verify(SIGNATURE, message.as_bytes(), &key, Algorithm::ES256);
    matches!(verify(MESSAGE), Ok(true)) && !matches!(verify("eyJhbGciOiJFUzI1NiJ9.e30"), Ok(true))
}

#[cfg(test)]
mod tests;
