use std::net::SocketAddr;
use std::time::{Instant, UNIX_EPOCH};

use serde_json::json;

use super::signer::Signer;
use super::*;
use crate::unit::Rate;

const NOW: u64 = 1_800_000_000;

struct House {
    gate: Authenticator,
    key: String,
    signer: Signer,
    _folder: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        Self::with_burst(1_000)
    }

    fn with_burst(burst: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let signer = Signer::es256();
        std::fs::write(folder.path().join("set.json"), json!({"keys": [signer.jwk("k")]}).to_string()).unwrap();
        let (secret, digest) = api_key::generate();
        let text = format!(
            "[[issuer]]\nissuer = \"https://login.example/\"\naudience = [\"inference\"]\nalgorithms = [\"ES256\"]\njwks_file = \"set.json\"\n\
             [[api_key]]\nid = \"job\"\nsha256 = \"{digest}\"\ntenant = \"acme\"\n\
             [[certificate]]\nsan = \"spiffe://acme.example/*\"\ntenant = \"acme\"\n"
        );
        let failures = Arc::new(Failures::new(Rate { count: 1, per: Duration::from_secs(1) }, burst));
        let gate = Authenticator::compile(&toml::from_str(&text).unwrap(), folder.path(), failures, at(NOW))
            .map_err(|mistakes| format!("{mistakes:?}"));
        let key = String::from_utf8(secret.expose().to_vec()).unwrap();
        Self { gate: gate.unwrap(), key, signer, _folder: folder }
    }

    fn token(&self) -> String {
        self.signer.token("k", &json!({"iss": "https://login.example/", "sub": "ada", "aud": "inference", "exp": NOW + 60}))
    }

    fn ask(&self, certificate: Option<&str>, headers: &[(&'static str, &str)]) -> Result<String, Refused> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let certificate = certificate.map(|name| Arc::new(ClientCertificate { names: vec![name.into()], fingerprint: Digest::default() }));
        let connection = Connection { address: SocketAddr::from(([127, 0, 0, 1], 4_000)), certificate };
        let named = self.gate.admit(&connection, &mut map, at(NOW));
        assert!(!map.contains_key("authorization") && !map.contains_key("x-api-key"), "the credential stayed");
        named.map(|named| {
            let (Named::ApiKey(identity) | Named::Token(identity) | Named::Certificate(identity)) = named;
            identity.who.caller.to_string()
        })
    }

    fn error(&self, certificate: Option<&str>, headers: &[(&'static str, &str)]) -> Error {
        self.ask(certificate, headers).unwrap_err().error
    }
}

fn at(seconds: u64) -> Moment {
    Moment { mono: Instant::now(), wall: UNIX_EPOCH + Duration::from_secs(seconds) }
}

const OURS: &str = "spiffe://acme.example/web";

#[test]
fn each_kind_of_credential_names_its_caller() {
    let house = House::new();
    let (key, token) = (format!("Bearer {}", house.key), format!("bearer  {}", house.token()));
    assert_eq!(house.ask(None, &[("authorization", &key)]).unwrap(), "api_key:job");
    assert_eq!(house.ask(None, &[("x-api-key", &house.key)]).unwrap(), "api_key:job");
    assert_eq!(house.ask(None, &[("authorization", &token)]).unwrap(), "jwt:https://login.example/#ada");
    assert_eq!(house.ask(Some(OURS), &[]).unwrap(), "cert:spiffe://acme.example/web");
}

#[test]
fn there_is_no_anonymous_caller() {
    let house = House::new();
    assert_eq!(house.error(None, &[]), Error::Missing);
    assert_eq!(house.error(None, &[("x-user", "admin"), ("cookie", "session=1")]), Error::Missing);
    assert_eq!(house.error(Some("spiffe://rival.example/web"), &[]), Error::CertificateUnknown);
}

#[test]
fn two_credentials_are_refused_and_one_that_is_sent_wins_over_a_certificate() {
    let house = House::new();
    let key = format!("Bearer {}", house.key);
    for two in [
        [("authorization", key.as_str()), ("x-api-key", house.key.as_str())],
        [("authorization", &key), ("authorization", &key)],
        [("x-api-key", &house.key), ("x-api-key", "other")],
        [("authorization", ""), ("x-api-key", &house.key)],
    ] {
        assert_eq!(house.error(None, &two), Error::TwoCredentials);
    }
    assert_eq!(house.ask(Some(OURS), &[("authorization", &key)]).unwrap(), "api_key:job");
    // Whoever asks through mutual TLS may be any client, Anthropic's too.
    assert_eq!(house.ask(Some(OURS), &[("x-api-key", &house.key)]).unwrap(), "api_key:job");
    // What fails is not saved by the certificate.
    assert_eq!(house.error(Some(OURS), &[("x-api-key", "wrong")]), Error::UnknownKey);
    assert_eq!(house.error(Some(OURS), &[("authorization", "Bearer wrong")]), Error::UnknownKey);
    assert_eq!(house.error(Some(OURS), &[("authorization", "Basic dTpw")]), Error::Malformed);
}

#[test]
fn what_is_no_bearer_is_malformed() {
    let house = House::new();
    let key = &house.key;
    for bad in [
        "",
        "Bearer",
        "Bearer ",
        &format!("Basic {key}"),
        &format!("Token {key}"),
        key,
        &format!("Bearer {key} x"),
        &format!("Bearer\t{key}"),
        &format!("Bearer {key}, Bearer {key}"),
        "Bearer \u{e9}",
    ] {
        assert_eq!(house.error(None, &[("authorization", bad)]), Error::Malformed, "{bad:?}");
    }
    assert_eq!(house.error(None, &[("x-api-key", "")]), Error::Malformed);
    assert_eq!(house.error(None, &[("x-api-key", "a b")]), Error::Malformed);
    for wrong in [&key[1..], &key[..key.len() - 1], &format!("{key}x"), &key.to_ascii_uppercase()] {
        assert_eq!(house.error(None, &[("x-api-key", wrong)]), Error::UnknownKey);
    }
    // A token goes in `Authorization` alone.
    assert_eq!(house.error(None, &[("x-api-key", &house.token())]), Error::UnknownKey);
}

#[test]
fn a_credential_of_8_kib_is_judged_and_a_longer_one_is_not() {
    let house = House::new();
    assert_eq!(house.error(None, &[("x-api-key", &"k".repeat(MAX_CREDENTIAL))]), Error::UnknownKey);
    assert_eq!(house.error(None, &[("x-api-key", &"k".repeat(MAX_CREDENTIAL + 1))]), Error::Malformed);
    let padded = |length: usize| {
        let claims = |fill: usize| json!({"iss": "https://login.example/", "sub": "ada", "aud": "inference", "exp": NOW + 60, "x": "x".repeat(fill)});
        (0..length).map(|fill| house.signer.token("k", &claims(length * 3 / 4 - 400 + fill))).find(|token| token.len() >= length).unwrap()
    };
    let long = padded(MAX_CREDENTIAL + 1);
    assert_eq!(house.error(None, &[("authorization", &format!("Bearer {long}"))]), Error::Malformed);
    let fits = padded(MAX_CREDENTIAL - 4);
    assert!(fits.len() <= MAX_CREDENTIAL);
    assert!(house.ask(None, &[("authorization", &format!("Bearer {fits}"))]).is_ok());
}

#[test]
fn past_the_limit_failures_are_429_and_good_credentials_still_hold() {
    let house = House::with_burst(3);
    let guess = || house.ask(None, &[("authorization", "Bearer guess")]).unwrap_err();
    for _ in 0..3 {
        assert_eq!(guess().status().as_u16(), 401);
        // A request without a credential is no guess: it is neither charged nor throttled.
        assert_eq!(house.ask(None, &[]).unwrap_err().status().as_u16(), 401);
    }
    let past = guess();
    assert_eq!((past.status().as_u16(), past.public_code(), past.error), (429, Refused::THROTTLED, Error::UnknownKey));
    assert!(past.retry_after.is_some_and(|wait| wait > Duration::ZERO && wait <= Duration::from_secs(1)));
    assert!(house.ask(None, &[("x-api-key", &house.key)]).is_ok());
    assert!(house.ask(None, &[("authorization", &format!("Bearer {}", house.token()))]).is_ok());
    assert_eq!(house.ask(None, &[]).unwrap_err().public_code(), "authenticate.missing");
}

#[test]
fn callers_cannot_tell_which_check_failed() {
    let told = |error| Refused { error, whose: None, retry_after: None }.public_code();
    for error in [
        Error::UnknownKey,
        Error::NotYet,
        Error::Algorithm,
        Error::Critical,
        Error::Type,
        Error::Issuer,
        Error::KeyUnknown,
        Error::IssuerGaveNoKeys,
        Error::Signature,
        Error::Audience,
        Error::Claims,
        Error::CertificateUnknown,
    ] {
        assert_eq!(told(error), "authenticate.refused");
    }
}

#[test]
fn expiry_is_told_only_to_the_holder_of_a_token_that_was_good() {
    let house = House::new();
    let claims = json!({"iss": "https://login.example/", "sub": "ada", "aud": "inference", "exp": 1});
    let ask = |token: String| house.error(None, &[("authorization", &format!("Bearer {token}"))]);
    assert_eq!(ask(house.signer.token("k", &claims)), Error::Expired);
    assert_eq!(ask(Signer::es256().token("k", &claims)), Error::Signature);
}

#[tokio::test]
async fn fetched_keys_go_on_through_a_reload_that_does_not_change_them() {
    struct One(Vec<u8>);
    impl jwks::Fetch for One {
        fn fetch<'a>(&'a self, _: &'a str) -> std::pin::Pin<Box<dyn Future<Output = Result<bytes::Bytes, jwks::FetchError>> + Send + 'a>> {
            Box::pin(async { Ok(self.0.clone().into()) })
        }
    }
    let signer = Signer::eddsa();
    let fetch = One(json!({"keys": [signer.jwk("k")]}).to_string().into_bytes());
    let compile = |algorithms: &str| {
        let text = format!("[[issuer]]\nissuer = \"a\"\naudience = [\"x\"]\nalgorithms = [{algorithms}]\njwks = \"https://a.example/\"");
        let failures = Arc::new(Failures::new(Rate { count: 1, per: Duration::from_secs(1) }, 1));
        Authenticator::compile(&toml::from_str(&text).unwrap(), Path::new("."), failures, at(NOW)).map_err(drop).unwrap()
    };
    let now = at(NOW);
    let ready = |gate: &Authenticator| gate.sources().all(|source| source.is_ready(now));
    let first = compile("\"EdDSA\"");
    assert!(!ready(&first));
    let token = signer.token("k", &json!({"iss": "a", "sub": "s", "aud": "x", "exp": NOW + 9}));
    assert_eq!(first.issuers.verify(&token, &Digest::of(token.as_bytes()), now), Err(Error::IssuerGaveNoKeys.into()));
    for source in first.sources() {
        source.refresh(&fetch, now).await.unwrap();
    }
    assert!(first.issuers.verify(&token, &Digest::of(token.as_bytes()), now).is_ok());
    let second = compile("\"EdDSA\"").going_on_from(&first);
    assert!(second.issuers.verify(&token, &Digest::of(token.as_bytes()), now).is_ok());
    assert!(!ready(&compile("\"EdDSA\", \"ES256\"").going_on_from(&second)));
}

#[test]
fn all_mistakes_of_the_file_are_told_together() {
    let text = "[[issuer]]\nissuer = \"a\"\naudience = []\nalgorithms = [\"HS256\"]\n[[api_key]]\nid = \"\"\nsha256 = \"x\"\n[[certificate]]\nsan = \"*\"\n";
    let failures = Arc::new(Failures::new(Rate { count: 1, per: Duration::from_secs(1) }, 1));
    let mistakes = Authenticator::compile(&toml::from_str(text).unwrap(), Path::new("."), failures, at(NOW)).err().unwrap();
    assert_eq!(mistakes.len(), 6, "{mistakes:?}");
}
