//! `callers.toml`, as it is written.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;
use toml::value::Datetime;

use crate::mistake::Mistake;
use crate::unit;

/// How far the clocks of issuer and gateway may be apart, both ways, where `leeway` says nothing.
pub const LEEWAY: Duration = Duration::from_secs(30);
/// The most that `leeway` may be: more would make expiry a matter of taste.
pub const MOST_LEEWAY: Duration = Duration::from_secs(300);
/// How often a fetched key set is fetched again where `refresh` says nothing.
pub const REFRESH: Duration = Duration::from_secs(300);
/// The least that `refresh` may be: an issuer is not to be hammered.
pub const LEAST_REFRESH: Duration = Duration::from_secs(10);
/// For how long the last good key set serves while its source is down, where `max_stale` says nothing.
pub const MAX_STALE: Duration = Duration::from_secs(3_600);
/// The longest name, role, tenant or tier, in bytes, wherever it comes from.
pub const MAX_NAME: usize = 256;
/// The most roles that one caller may have.
pub const MAX_ROLES: usize = 64;

/// The whole of `callers.toml`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who issues JWTs.
    #[serde(default)]
    pub issuer: Vec<Issuer>,
    /// API keys, by hash.
    #[serde(default)]
    pub api_key: Vec<ApiKey>,
    /// Client certificates, by name.
    #[serde(default)]
    pub certificate: Vec<Certificate>,
}

/// `[[issuer]]`: whose JWTs are taken, and how they are read.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// The `iss` claim, matched byte for byte.
    pub issuer: Spanned<String>,
    /// A token must name at least one of these in `aud`. Required.
    pub audience: Spanned<Vec<String>>,
    /// The algorithms that signatures may use; never taken from the token. Asymmetric ones only.
    pub algorithms: Spanned<Vec<Spanned<String>>>,
    /// A file with the key set (RFC 7517), inside the policy folder. Either this or `jwks`.
    pub jwks_file: Option<Spanned<String>>,
    /// Where the key set is fetched in the background: `https`, or `http` on loopback. Either this or `jwks_file`.
    pub jwks: Option<Spanned<String>>,
    /// How far clocks may be apart, both ways; at most [`MOST_LEEWAY`]. Default [`LEEWAY`].
    pub leeway: Option<Spanned<unit::Span>>,
    /// How often `jwks` is fetched; at least [`LEAST_REFRESH`]. Default [`REFRESH`].
    pub refresh: Option<Spanned<unit::Span>>,
    /// For how long the last good `jwks` serves while its source is down; at least `refresh`. Default [`MAX_STALE`].
    pub max_stale: Option<Spanned<unit::Span>>,
    /// The `typ` headers that are taken (RFC 8725 §3.11), an absent one not among them.
    /// Default: absent, `JWT` or `at+jwt`.
    pub typ: Option<Spanned<Vec<String>>>,
    /// The tenants that this issuer may speak for; a token with another is refused. Default: any.
    pub tenants: Option<Vec<String>>,
    /// Which claims say what.
    #[serde(default)]
    pub claims: Claims,
}

/// `claims`: the names of the claims that say who the holder is. Top-level names, taken literally.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Claims {
    /// Who: a string. Default `sub`.
    pub caller: String,
    /// The tenant: a string, `""` if absent. Default `tenant`.
    pub tenant: String,
    /// The roles: an array of strings, or one string with spaces between. Default `roles`.
    pub roles: String,
    /// The tier: a string, `""` if absent. Default `tier`.
    pub tier: String,
}

impl Default for Claims {
    fn default() -> Self {
        Self { caller: "sub".into(), tenant: "tenant".into(), roles: "roles".into(), tier: "tier".into() }
    }
}

/// `[[api_key]]`: one key, known by its hash.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Its name: letters, digits, `.`, `_`, `-`; the caller is `api_key:ID`.
    pub id: Spanned<String>,
    /// SHA-256 of the secret as it is sent, 64 hexadecimal digits.
    pub sha256: Spanned<String>,
    /// The tenant. Default `""`.
    #[serde(default)]
    pub tenant: String,
    /// The roles. Default none.
    #[serde(default)]
    pub roles: Vec<String>,
    /// The tier. Default `""`.
    #[serde(default)]
    pub tier: String,
    /// From when on it is no longer taken: a date and time with an offset. Default never.
    pub expires: Option<Spanned<Datetime>>,
}

/// `[[certificate]]`: the callers that a verified client certificate names.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// A URI or DNS name of the subject alternative names, with at most one `*`, at its end.
    pub san: Spanned<String>,
    /// The tenant. Default `""`.
    #[serde(default)]
    pub tenant: String,
    /// The roles. Default none.
    #[serde(default)]
    pub roles: Vec<String>,
    /// The tier. Default `""`.
    #[serde(default)]
    pub tier: String,
}

/// Whether `text` can be a name in logs and policies: not empty, at most [`MAX_NAME`] bytes, no control characters.
#[must_use]
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME && !text.chars().any(|c| c.is_control() || is_invisible(c))
}

/// Bidirectional controls and zero-width characters, with which one name is made to look like another.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The mistakes in what every kind of caller has: tenant, tier and roles.
pub(super) fn names(place: &std::ops::Range<usize>, tenant: &str, tier: &str, roles: &[String], mistakes: &mut Vec<Mistake>) {
    for (key, text) in [("tenant", tenant), ("tier", tier)] {
        if !text.is_empty() && !is_name(text) {
            mistakes.push(Mistake::at(place.clone(), format!("{key} must be at most {MAX_NAME} bytes without control characters")));
        }
    }
    if roles.len() > MAX_ROLES {
        mistakes.push(Mistake::at(place.clone(), format!("a caller may have at most {MAX_ROLES} roles")));
    }
    if !roles.iter().all(|role| is_name(role)) {
        mistakes.push(Mistake::at(place.clone(), format!("a role must be 1 to {MAX_NAME} bytes without control characters")));
    }
}

/// Tells of `text` if it stood before; `what` says what it is.
pub(super) fn once<'a>(
    seen: &mut HashMap<&'a str, ()>,
    text: &'a str,
    place: std::ops::Range<usize>,
    what: &str,
    mistakes: &mut Vec<Mistake>,
) {
    if seen.insert(text, ()).is_some() {
        mistakes.push(Mistake::at(place, format!("{what} stands twice; each must be unique")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::instant;

    #[test]
    fn expiry_is_read_with_its_offset() {
        let at = |text: &str| instant(&text.parse().unwrap()).map(crate::clock::rfc3339);
        assert_eq!(at("2027-01-01T00:00:00Z").as_deref(), Some("2027-01-01T00:00:00.000Z"));
        assert_eq!(at("2024-02-29T23:30:00-01:00").as_deref(), Some("2024-03-01T00:30:00.000Z"));
        assert_eq!(at("1970-01-01T00:00:00Z").as_deref(), Some("1970-01-01T00:00:00.000Z"));
        assert_eq!(at("2027-01-01"), None);
        assert_eq!(at("2027-01-01T00:00:00"), None);
        assert_eq!(at("1969-12-31T23:59:59Z"), None);
    }

    #[test]
    fn an_unknown_key_stops_the_start() {
        for text in [
            "surprise = 1",
            "[[issuer]]\nissuer='a'\naudience=['b']\nalgorithms=['ES256']\nkey='x'",
            "[[api_key]]\nid='a'\nsha256=''\nsecret='x'",
        ] {
            assert!(toml::from_str::<Config>(text).is_err(), "{text}");
        }
    }
}
