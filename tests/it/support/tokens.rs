//! An issuer of tokens, right ones and wrong ones.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::Folder;
use super::signer::{Signer, encode};

/// The `iss` of its tokens.
pub const ISSUER: &str = "https://login.example/";

/// Somebody who signs tokens with one key, called `k1`.
pub struct Issuer(Signer);

/// Now, in seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The claims of ada, of tenant `acme` and role `app`, for ten minutes.
pub fn claims() -> Value {
    json!({"iss": ISSUER, "sub": "ada", "aud": "inference", "iat": now() - 5, "exp": now() + 600, "org": "acme", "roles": ["app"], "tier": "gold"})
}

impl Issuer {
    /// With a key for ES256.
    pub fn es256() -> Self {
        Self(Signer::es256())
    }

    /// With a key for EdDSA.
    pub fn eddsa() -> Self {
        Self(Signer::eddsa())
    }

    /// With a key for RS256.
    pub fn rs256() -> Self {
        Self(Signer::rs256())
    }

    /// Makes `folder` trust it, and `others` with it; the keys are called `k1`, `k2` and so on.
    pub fn trusted_by(&self, folder: &Folder, others: &[&Self]) {
        self.publish(folder, others);
        folder.callers(&format!(
            "[[issuer]]\nissuer = \"{ISSUER}\"\naudience = [\"inference\"]\nalgorithms = [\"ES256\", \"EdDSA\", \"RS256\"]\n\
             jwks_file = \"keys/login.jwks.json\"\nclaims = {{ caller = \"sub\", tenant = \"org\", roles = \"roles\", tier = \"tier\" }}\n"
        ));
    }

    /// Writes the key set.
    pub fn publish(&self, folder: &Folder, others: &[&Self]) {
        let keys: Vec<Value> =
            [self].iter().chain(others).enumerate().map(|(index, issuer)| issuer.0.jwk(&format!("k{}", index + 1))).collect();
        folder.write("keys/login.jwks.json", json!({ "keys": keys }).to_string());
    }

    /// A token under `kid` with these claims.
    pub fn token(&self, kid: &str, claims: &Value) -> String {
        self.0.token(kid, claims)
    }

    /// A token with another header.
    pub fn token_of(&self, header: &Value, claims: &Value) -> String {
        self.0.token_of(&header.to_string(), claims.to_string().as_bytes())
    }

    /// A good token of its claims under the name `k1`.
    pub fn good(&self) -> String {
        self.token("k1", &claims())
    }

    /// Credentials that must not let anyone in, each with what is wrong; `other` signs under the name `k2`.
    pub fn wrong(&self, other: &Self) -> Vec<(&'static str, String)> {
        let with = |key: &str, value: Value| {
            let mut claims = claims();
            claims[key] = value;
            self.token("k1", &claims)
        };
        let forged = {
            let token = self.good();
            let (message, signature) = token.rsplit_once('.').unwrap();
            let mut signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
            signature[7] ^= 1;
            format!("{message}.{}", encode(signature))
        };
        let none = format!("{}.{}.", encode(json!({"alg": "none", "typ": "JWT"}).to_string()), encode(claims().to_string()));
        let hs256 = {
            let message = format!("{}.{}", encode(json!({"alg": "HS256", "kid": "k1"}).to_string()), encode(claims().to_string()));
            let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &self.0.public());
            format!("{message}.{}", encode(aws_lc_rs::hmac::sign(&key, message.as_bytes())))
        };
        vec![
            ("a forged signature", forged),
            ("expired", with("exp", json!(now() - 3_600))),
            ("another audience", with("aud", json!("somebody else"))),
            ("another issuer", with("iss", json!("https://evil.example/"))),
            ("alg none", none),
            ("HS256 with the public key", hs256),
            ("ES256 under the name of another key", other.token("k1", &claims())),
            ("an unknown API key", "pk_unknown-0123456789abcdefghijklmnopqrstuv".to_owned()),
        ]
    }
}
