//! API keys: known by SHA-256 of the secret, looked up in memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::constant_time;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::config::{self, ApiKey};
use super::{Error, Failed, Identity};
use crate::clock::{self, Moment};
use crate::digest::Digest;
use crate::mistake::Mistake;
use crate::secret::Secret;
use crate::trail::Who;

/// What every generated secret begins with, so that scanners of leaked secrets know it.
pub const PREFIX: &str = "pcl_";
/// The randomness in a generated secret, in bytes: 192 bits.
const ENTROPY: usize = 24;

/// Secrets that stand in tutorials, defaults and tests. A key with one of them is no key.
const WELL_KNOWN: &[&str] = &[
    "",
    "0",
    "1",
    "123",
    "1234",
    "12345",
    "123456",
    "12345678",
    "123456789",
    "a",
    "abc",
    "abc123",
    "admin",
    "api-key",
    "api_key",
    "apikey",
    "bar",
    "changeit",
    "change-me",
    "change_me",
    "changeme",
    "default",
    "demo",
    "dev",
    "dummy",
    "EMPTY",
    "empty",
    "example",
    "foo",
    "foobar",
    "guest",
    "hello",
    "hello world",
    "key",
    "letmein",
    "local",
    "master",
    "my-api-key",
    "my-key",
    "my-secret",
    "mykey",
    "mysecret",
    "no-key",
    "none",
    "not-needed",
    "null",
    "password",
    "Password1",
    "pcl_",
    "placeholder",
    "portcullis",
    "private",
    "qwerty",
    "replace-me",
    "root",
    "s3cr3t",
    "secret",
    "sk-",
    "sk-0",
    "sk-1234",
    "sk-12345",
    "sk-123456",
    "sk-test",
    "sk-xxx",
    "sk-xxxx",
    "test",
    "test-key",
    "test123",
    "test_key",
    "testing",
    "testkey",
    "todo",
    "token",
    "token-abc123",
    "user",
    "x",
    "xxx",
    "xxxx",
    "your-api-key",
    "your_api_key",
    "YOUR_API_KEY",
];

/// The keys, by the digest of their secrets.
pub(super) struct Keys(HashMap<Digest, Key>);

struct Key {
    digest: Digest,
    identity: Arc<Identity>,
    expires: Option<SystemTime>,
}

impl Keys {
    /// Reads the keys of `callers.toml`, and tells what is wrong with them and what an operator may have overlooked.
    pub(super) fn compile(keys: &[ApiKey], now: Moment, mistakes: &mut Vec<Mistake>, warnings: &mut Vec<Mistake>) -> Self {
        let known: Vec<Digest> =
            WELL_KNOWN.iter().flat_map(|text| [Digest::of(text.as_bytes()), Digest::of(format!("{text}\n").as_bytes())]).collect();
        let mut ids = HashMap::new();
        let mut found: HashMap<Digest, Key> = HashMap::new();
        for key in keys {
            let id = key.id.get_ref().as_str();
            let tell = |place: std::ops::Range<usize>, what: &str| Mistake::at(place, format!("api_key \"{}\": {what}", id.escape_debug()));
            if id.is_empty() || id.len() > config::MAX_NAME || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
                mistakes.push(tell(key.id.span(), "id must be 1 to 256 letters, digits, \".\", \"_\" or \"-\""));
            }
            config::once(&mut ids, id, key.id.span(), "this id", mistakes);
            config::names(&key.id.span(), &key.tenant, &key.tier, &key.roles, mistakes);
            let expires = key.expires.as_ref().and_then(|expires| {
                let at = crate::clock::instant(expires.get_ref());
                match at {
                    None => {
                        mistakes.push(tell(expires.span(), "expires must be a date and time with an offset, such as 2027-01-01T00:00:00Z"))
                    }
                    Some(at) if at <= now.wall => {
                        warnings.push(tell(expires.span(), &format!("expired at {}; it is refused", clock::rfc3339(at))))
                    }
                    Some(_) => {}
                }
                at
            });
            let Ok(digest) = key.sha256.get_ref().parse::<Digest>() else {
                mistakes.push(tell(
                    key.sha256.span(),
                    "sha256 must be the 64 hexadecimal digits that `portcullis key new` prints: the SHA-256 of the secret, never the secret itself",
                ));
                continue;
            };
            let bytes = digest.as_bytes();
            if known.contains(&digest) || digest == Digest::of(id.as_bytes()) {
                mistakes.push(tell(key.sha256.span(), "sha256 is the digest of a well-known string; make a key with `portcullis key new`"));
            } else if bytes.windows(2).all(|pair| pair[0] == pair[1]) || is_counted(key.sha256.get_ref()) {
                mistakes.push(tell(key.sha256.span(), "sha256 is a placeholder; make a key with `portcullis key new`"));
            }
            let who = Who {
                caller: format!("api_key:{id}").into(),
                tenant: key.tenant.as_str().into(),
                tier: key.tier.as_str().into(),
                method: "api_key",
            };
            let identity = Arc::new(Identity { who: Arc::new(who), roles: key.roles.iter().map(|role| role.as_str().into()).collect() });
            if found.insert(digest, Key { digest, identity, expires }).is_some() {
                mistakes.push(tell(key.sha256.span(), "sha256 stands twice; each caller must have a key of its own"));
            }
        }
        Self(found)
    }

    /// Who holds the secret with this digest.
    pub(super) fn verify(&self, digest: &Digest, now: Moment) -> Result<Arc<Identity>, Failed> {
        let key = self.0.get(digest).ok_or(Error::UnknownKey)?;
        // The map compares as it likes; what lets somebody in is compared in constant time.
        constant_time::verify_slices_are_equal(key.digest.as_bytes(), digest.as_bytes()).map_err(|_| Error::UnknownKey)?;
        match key.expires {
            Some(expires) if now.wall >= expires => Err(Failed::of(&key.identity, Error::Expired)),
            _ => Ok(key.identity.clone()),
        }
    }
}

/// Digits that only count or repeat: `0123…`, `deadbeef` eight times.
fn is_counted(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    let counts = "0123456789abcdef".repeat(4);
    [1, 2, 4, 8, 16].iter().any(|n| text.as_bytes().chunks(*n).all(|part| part == &text.as_bytes()[..*n]))
        || text == counts
        || text == counts.chars().rev().collect::<String>()
}

/// A fresh secret of 192 bits, as callers send it, and its digest, as `callers.toml` keeps it.
///
/// The secret's text is ASCII: `pcl_` and 32 letters of base64url.
#[must_use]
pub fn generate() -> (Secret, Digest) {
    let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(Secret::random(ENTROPY).expose()));
    let digest = Digest::of(text.as_bytes());
    (Secret::new(text.into_bytes()), digest)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::authenticate::Config;

    fn compile(text: &str) -> (Keys, Vec<String>, Vec<String>) {
        let config: Config = toml::from_str(text).unwrap();
        let (mut mistakes, mut warnings) = (Vec::new(), Vec::new());
        let keys = Keys::compile(&config.api_key, at(1_800_000_000), &mut mistakes, &mut warnings);
        let texts = |list: Vec<Mistake>| list.into_iter().map(|mistake| mistake.what).collect();
        (keys, texts(mistakes), texts(warnings))
    }

    fn at(seconds: u64) -> Moment {
        Moment { mono: std::time::Instant::now(), wall: UNIX_EPOCH + Duration::from_secs(seconds) }
    }

    fn entry(id: &str, digest: &str, more: &str) -> String {
        format!("[[api_key]]\nid = \"{id}\"\nsha256 = \"{digest}\"\n{more}\n")
    }

    #[test]
    fn a_generated_key_is_long_new_and_found_by_its_digest() {
        let ((one, digest), (two, _)) = (generate(), generate());
        assert!(!one.equals(two.expose()));
        let text = std::str::from_utf8(one.expose()).unwrap();
        assert!(text.starts_with(PREFIX) && text.len() == 36 && !text.contains('.'));
        let (keys, mistakes, _) = compile(&entry("job", &digest.to_string(), "tenant='acme'\nroles=['app']\ntier='gold'"));
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let identity = keys.verify(&Digest::of(one.expose()), at(1)).unwrap();
        assert_eq!(&*identity.who.caller, "api_key:job");
        assert_eq!((&*identity.who.tenant, &*identity.who.tier, identity.who.method), ("acme", "gold", "api_key"));
        assert_eq!(keys.verify(&Digest::of(two.expose()), at(1)).unwrap_err(), Error::UnknownKey.into());
    }

    #[test]
    fn a_key_ends_at_its_expiry_and_not_before() {
        let (secret, digest) = generate();
        let (keys, _, warnings) = compile(&entry("job", &digest.to_string(), "expires = 2027-01-01T00:00:00Z"));
        assert_eq!(warnings.len(), 1);
        let digest = Digest::of(secret.expose());
        assert!(keys.verify(&digest, at(1_798_761_599)).is_ok());
        let expired = keys.verify(&digest, at(1_798_761_600)).unwrap_err();
        assert_eq!((expired.error, expired.whose.unwrap().caller.as_ref()), (Error::Expired, "api_key:job"));
    }

    #[test]
    fn placeholders_and_well_known_secrets_are_mistakes() {
        for secret in ["", "test", "changeme", "password", "secret", "sk-test", "job", "test\n"] {
            let (_, mistakes, _) = compile(&entry("job", &Digest::of(secret.as_bytes()).to_string(), ""));
            assert_eq!(mistakes.len(), 1, "{secret:?}");
        }
        let counted = "0123456789abcdef".repeat(4);
        for digest in ["0".repeat(64), "f".repeat(64), "deadbeef".repeat(8), counted, "a".repeat(63), "<64 hex digits>".into()] {
            let (_, mistakes, _) = compile(&entry("job", &digest, ""));
            assert_eq!(mistakes.len(), 1, "{digest:?}");
        }
    }

    #[test]
    fn every_mistake_is_told_and_none_echoes_a_secret() {
        let (_, digest) = generate();
        let text = entry("a", &digest.to_string(), "")
            + &entry("a", &digest.to_string(), "")
            + &entry("b c", "pcl_leaked", "expires = 2027-01-01");
        let (_, mistakes, _) = compile(&text);
        assert_eq!(mistakes.len(), 5, "{mistakes:?}");
        assert!(mistakes.iter().all(|mistake| !mistake.contains("pcl_leaked")));
    }
}
