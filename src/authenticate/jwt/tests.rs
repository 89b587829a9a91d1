use std::time::{Instant, UNIX_EPOCH};

use serde_json::json;

use super::*;
use crate::authenticate::Config;
use crate::authenticate::signer::{Signer, encode};

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://login.example/";

struct House {
    issuers: Issuers,
    folder: tempfile::TempDir,
}

impl House {
    fn new(keys: &[Value], more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("set.json"), json!({ "keys": keys }).to_string()).unwrap();
        let text = format!(
            "[[issuer]]\nissuer = \"{ISSUER}\"\naudience = [\"inference\", \"batch\"]\nalgorithms = [\"ES256\", \"ES384\", \"EdDSA\", \"RS256\"]\njwks_file = \"set.json\"\n{more}"
        );
        let config: Config = toml::from_str(&text).unwrap();
        let mut mistakes = Vec::new();
        let issuers = Issuers::compile(&config.issuer, folder.path(), at(NOW), &mut mistakes);
        assert!(mistakes.is_empty(), "{mistakes:?}");
        Self { issuers, folder }
    }

    fn ask_at(&self, token: &str, second: u64) -> Result<Arc<Identity>, Error> {
        self.issuers.verify(token, &Digest::of(token.as_bytes()), at(second)).map_err(|failed| failed.error)
    }

    fn ask(&self, token: &str) -> Result<Arc<Identity>, Error> {
        self.ask_at(token, NOW)
    }
}

fn at(seconds: u64) -> Moment {
    Moment { mono: Instant::now(), wall: UNIX_EPOCH + Duration::from_secs(seconds) }
}

fn claims() -> Value {
    json!({"iss": ISSUER, "sub": "ada", "aud": "inference", "exp": NOW + 600, "iat": NOW - 5, "tenant": "acme", "roles": ["app", "batch"], "tier": "gold"})
}

fn with(key: &str, value: impl Into<Value>) -> Value {
    let mut claims = claims();
    claims[key] = value.into();
    claims
}

fn without(key: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(key);
    claims
}

#[test]
fn every_algorithm_names_its_holder() {
    for signer in Signer::all() {
        let house = House::new(&[signer.jwk("k1")], "");
        let identity = house.ask(&signer.token("k1", &claims())).unwrap();
        assert_eq!(&*identity.who.caller, "jwt:https://login.example/#ada");
        assert_eq!((&*identity.who.tenant, &*identity.who.tier, identity.who.method), ("acme", "gold", "jwt"));
        assert_eq!(identity.roles.iter().map(|role| &**role).collect::<Vec<_>>(), ["app", "batch"]);
    }
}

#[test]
fn a_token_that_another_key_signed_does_not_hold() {
    for (signer, thief) in Signer::all().into_iter().zip(Signer::all()) {
        let house = House::new(&[signer.jwk("k1")], "");
        assert_eq!(house.ask(&thief.token("k1", &claims())), Err(Error::Signature));
        assert_eq!(house.issuers.remembered(), 0);
    }
}

#[test]
fn an_unsigned_token_does_not_hold() {
    let signer = Signer::es256();
    let house = House::new(&[signer.jwk("k1")], "");
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        for signature in ["", "AA"] {
            let token = format!("{}.{}.{signature}", encode(json!({"alg": alg}).to_string()), encode(claims().to_string()));
            assert!(is_token(&token));
            assert_eq!(house.ask(&token), Err(Error::Algorithm));
        }
    }
    let bare = format!("{}.{}.", encode(json!({"alg": "ES256", "kid": "k1"}).to_string()), encode(claims().to_string()));
    assert_eq!(house.ask(&bare), Err(Error::Signature));
}

#[test]
fn the_public_key_is_no_secret_to_sign_with() {
    for signer in Signer::all() {
        let house = House::new(&[signer.jwk("k1")], "");
        for secret in [signer.public(), encode(signer.public()).into_bytes(), signer.jwk("k1").to_string().into_bytes()] {
            for (alg, kind) in [("HS256", aws_lc_rs::hmac::HMAC_SHA256), ("HS512", aws_lc_rs::hmac::HMAC_SHA512)] {
                let message = format!("{}.{}", encode(json!({"alg": alg, "kid": "k1"}).to_string()), encode(claims().to_string()));
                let tag = aws_lc_rs::hmac::sign(&aws_lc_rs::hmac::Key::new(kind, &secret), message.as_bytes());
                assert_eq!(house.ask(&format!("{message}.{}", encode(tag))), Err(Error::Algorithm));
                // Under the name of the algorithm that is expected it is only a bad signature.
                let message = format!("{}.{}", encode(json!({"alg": signer.alg(), "kid": "k1"}).to_string()), encode(claims().to_string()));
                let tag = aws_lc_rs::hmac::sign(&aws_lc_rs::hmac::Key::new(kind, &secret), message.as_bytes());
                assert_eq!(house.ask(&format!("{message}.{}", encode(tag))), Err(Error::Signature));
            }
        }
    }
}

#[test]
fn the_header_cannot_swap_algorithm_or_curve() {
    let signers = Signer::all();
    for signer in &signers {
        let house = House::new(&[signer.jwk("k1")], "");
        for alg in ["ES256", "ES384", "EdDSA", "RS256", "RS512", "PS256", "ES512", "Ed25519", "es256", "ES256 ", "HS256"] {
            if alg != signer.alg() {
                let token = signer.token_of(&json!({"alg": alg, "kid": "k1"}).to_string(), claims().to_string().as_bytes());
                assert_eq!(house.ask(&token), Err(Error::Algorithm), "{alg} with a key for {}", signer.alg());
            }
        }
    }
    let house = House::new(&[signers[0].jwk("p256"), signers[1].jwk("p384")], "");
    let swapped = signers[1].token_of(&json!({"alg": "ES256", "kid": "p256"}).to_string(), claims().to_string().as_bytes());
    assert_eq!(house.ask(&swapped), Err(Error::Signature));
    for alg in [json!(null), json!(["ES256"]), json!(1)] {
        let token = signers[0].token_of(&json!({"alg": alg, "kid": "p256"}).to_string(), claims().to_string().as_bytes());
        assert_eq!(house.ask(&token), Err(Error::Malformed));
    }
}

#[test]
fn a_signature_of_another_shape_does_not_hold() {
    for signer in Signer::all() {
        let house = House::new(&[signer.jwk("k1")], "");
        let token = signer.token("k1", &claims());
        let (message, signature) = token.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let mut flipped = signature.clone();
        flipped[0] ^= 1;
        let half = signature.len() / 2;
        let (zero_r, zero_s) = ([&vec![0; half][..], &signature[half..]].concat(), [&signature[..half], &vec![0; half]].concat());
        for wrong in [
            signature[..signature.len() - 1].to_vec(),
            signature[1..].to_vec(),
            [&signature[..], &[0]].concat(),
            [&[0], &signature[..]].concat(),
            vec![0; signature.len()],
            vec![0xff; signature.len()],
            zero_r,
            zero_s,
            flipped,
            vec![0],
        ] {
            assert_eq!(house.ask(&format!("{message}.{}", encode(wrong))), Err(Error::Signature));
        }
    }
    let signer = Signer::es256();
    let house = House::new(&[signer.jwk("k1")], "");
    let message = format!("{}.{}", encode(json!({"alg": "ES256", "kid": "k1"}).to_string()), encode(claims().to_string()));
    assert_eq!(house.ask(&format!("{message}.{}", encode(signer.sign_der(message.as_bytes())))), Err(Error::Signature));
}

#[test]
fn what_was_signed_cannot_be_changed() {
    let signer = Signer::es256();
    let house = House::new(&[signer.jwk("k1")], "");
    let token = signer.token("k1", &claims());
    let mut parts = token.split('.');
    let (header, signature) = (parts.next().unwrap(), parts.next_back().unwrap());
    let payload = encode(with("sub", "eve").to_string());
    assert_eq!(house.ask(&format!("{header}.{payload}.{signature}")), Err(Error::Signature));
}

#[test]
fn dates_must_be_numbers_and_expiry_must_be_there() {
    let signer = Signer::es256();
    let house = House::new(&[signer.jwk("k1")], "");
    let wrong =
        [json!("1900000000"), json!(null), json!([NOW + 600]), json!({}), json!(true), json!(-1), json!(1e300), json!(253_402_300_800_u64)];
    for date in ["exp", "nbf", "iat"] {
        for value in &wrong {
            assert_eq!(house.ask(&signer.token("k1", &with(date, value.clone()))), Err(Error::Claims), "{date} {value}");
        }
    }
    assert_eq!(house.ask(&signer.token("k1", &without("exp"))), Err(Error::Claims));
    assert!(house.ask(&signer.token("k1", &without("iat"))).is_ok());
    assert!(house.ask(&signer.token("k1", &with("exp", NOW as f64 + 0.5))).is_ok());
}

#[test]
fn a_token_holds_from_nbf_to_exp_with_leeway_both_ways() {
    let signer = Signer::es256();
    let house = House::new(&[signer.jwk("k1")], "leeway = \"30s\"");
    let token = signer.token("k1", &with("nbf", NOW));
    for (second, holds) in [(NOW - 31, Err(Error::NotYet)), (NOW - 30, Ok(())), (NOW + 629, Ok(())), (NOW + 630, Err(Error::Expired))] {
        assert_eq!(house.ask_at(&token, second).map(drop), holds, "{second}");
    }
    // And again, now that it is remembered: no memory outlives the token.
    assert_eq!(house.issuers.remembered(), 1);
    for (second, holds) in [(NOW - 31, Err(Error::NotYet)), (NOW - 30, Ok(())), (NOW + 629, Ok(())), (NOW + 630, Err(Error::Expired))] {
        assert_eq!(house.ask_at(&token, second).map(drop), holds, "{second}");
    }
    // Its signature held: whose it was is known, for the security log.
    for house in [&house, &House::new(&[signer.jwk("k1")], "leeway = \"30s\"")] {
        let failed = house.issuers.verify(&token, &Digest::of(token.as_bytes()), at(NOW + 630)).unwrap_err();
        assert!(failed.whose.is_some_and(|who| who.caller.ends_with("#ada")));
    }
    let future = signer.token("k1", &with("iat", NOW + 31));
    assert_eq!(house.ask(&future), Err(Error::NotYet));
}

#[test]
fn the_audience_must_be_ours() {
    let signer = Signer::es256();
    let house = House::new(&[signer.jwk("k1")], "");
    for good in [json!("inference"), json!("batch"), json!(["other", "inference"])] {
        assert!(house.ask(&signer.token("k1", &with("aud", good))).is_ok());
    }
    let many: Vec<String> = (0..64).map(|n| n.to_string()).chain(["inference".into()]).collect();
    for bad in [
        json!("other"),
        json!(["other"]),
        json!([]),
        json!(""),
        json!(null),
        json!("inference "),
        json!("Inference"),
        json!({"inference": 1}),
        json!(["inference", 1]),
        json!([["inference"]]),
        json!(many),
    ] {
        assert_eq!(house.ask(&signer.token("k1", &with("aud", bad.clone()))), Err(Error::Audience), "{bad}");
    }
    assert_eq!(house.ask(&signer.token("k1", &without("aud"))), Err(Error::Audience));
}

#[test]
fn the_issuer_is_matched_byte_for_byte() {
    let signer = Signer::es256();
    let house = House::new(&[signer.jwk("k1")], "");
    for bad in [
        json!("https://login.example"),
        json!("https://LOGIN.example/"),
        json!("https://login.example/ "),
        json!(""),
        json!(null),
        json!([ISSUER]),
    ] {
        assert_eq!(house.ask(&signer.token("k1", &with("iss", bad))), Err(Error::Issuer));
    }
    assert_eq!(house.ask(&signer.token("k1", &without("iss"))), Err(Error::Issuer));
}

#[test]
fn keys_of_the_token_are_not_used() {
    let (signer, thief) = (Signer::es256(), Signer::es256());
    let house = House::new(&[signer.jwk("k1")], "");
    let header = |key: &str, value: Value| {
        let mut header = json!({"alg": "ES256", "kid": "k1"});
        header[key] = value;
        header.to_string()
    };
    for (key, value) in [
        ("jwk", thief.jwk("k1")),
        ("jku", json!("http://127.0.0.1:1/set.json")),
        ("x5u", json!("http://127.0.0.1:1/c")),
        ("x5c", json!(["AAAA"])),
    ] {
        assert_eq!(house.ask(&thief.token_of(&header(key, value.clone()), claims().to_string().as_bytes())), Err(Error::Signature));
        // Ignored, not refused: a token that carries one and is signed by the issuer's key holds.
        assert!(house.ask(&signer.token_of(&header(key, value), claims().to_string().as_bytes())).is_ok());
    }
    for crit in [json!(["exp"]), json!([]), json!(["b64"]), json!(null)] {
        assert_eq!(house.ask(&signer.token_of(&header("crit", crit), claims().to_string().as_bytes())), Err(Error::Critical));
    }
}

#[test]
fn a_kid_is_a_name_and_nothing_else() {
    let signer = Signer::es256();
    let house = House::new(&[signer.jwk("k1"), Signer::eddsa().jwk("k2")], "");
    let elsewhere = house.folder.path().join("set.json").display().to_string();
    for kid in ["../../../dev/null", "/dev/null", "k1\0", "", "K1", "' OR 1=1 --", "http://127.0.0.1:1/", elsewhere.as_str()] {
        assert_eq!(house.ask(&signer.token(kid, &claims())), Err(Error::KeyUnknown), "{kid:?}");
    }
    for kid in [json!(1), json!(null), json!(["k1"]), json!({"k1": 1})] {
        let token = signer.token_of(&json!({"alg": "ES256", "kid": kid}).to_string(), claims().to_string().as_bytes());
        assert_eq!(house.ask(&token), Err(Error::Malformed));
    }
}

#[test]
fn without_a_kid_there_must_be_one_key_to_choose_from() {
    let (signer, other) = (Signer::es256(), Signer::es256());
    let token = signer.token_of(r#"{"alg":"ES256"}"#, claims().to_string().as_bytes());
    assert!(House::new(&[signer.jwk("k1"), Signer::eddsa().jwk("k2")], "").ask(&token).is_ok());
    assert_eq!(House::new(&[signer.jwk("k1"), other.jwk("k2")], "").ask(&token), Err(Error::KeyUnknown));
}

#[test]
fn another_issuers_key_does_not_speak_for_this_one() {
    let (signer, other) = (Signer::es256(), Signer::es256());
    let folder = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for (name, key) in [("a", &signer), ("b", &other)] {
        std::fs::write(folder.path().join(name), json!({"keys": [key.jwk(name)]}).to_string()).unwrap();
        text += &format!("[[issuer]]\nissuer = \"{name}\"\naudience = [\"inference\"]\nalgorithms = [\"ES256\"]\njwks_file = \"{name}\"\n");
    }
    let config: Config = toml::from_str(&text).unwrap();
    let issuers = Issuers::compile(&config.issuer, folder.path(), at(NOW), &mut Vec::new());
    let ask =
        |token: String| issuers.verify(&token, &Digest::of(token.as_bytes()), at(NOW)).map(|identity| identity.who.caller.to_string());
    assert_eq!(ask(other.token("b", &with("iss", "a"))), Err(Error::KeyUnknown.into()));
    assert_eq!(ask(other.token("a", &with("iss", "a"))), Err(Error::Signature.into()));
    assert_eq!(ask(other.token("b", &with("iss", "b"))), Ok("jwt:b#ada".into()));
}

#[test]
fn json_must_be_one_object_without_duplicates() {
    let signer = Signer::es256();
    let house = House::new(&[signer.jwk("k1")], "");
    let header = r#"{"alg":"ES256","kid":"k1"}"#;
    let whole = claims().to_string();
    let doubled = whole.replacen('{', "{\"sub\":\"eve\",", 1);
    let escaped = whole.replacen('{', "{\"s\\u0075b\":\"eve\",", 1);
    for payload in
        [doubled.as_str(), &escaped, "[]", "\"x\"", "1", "null", "", &format!("{whole}x"), &format!("[{whole}]"), "{\"a\":\"\\ud800\"}"]
    {
        assert_eq!(house.ask(&signer.token_of(header, payload.as_bytes())), Err(Error::Malformed), "{payload}");
    }
    assert_eq!(house.ask(&signer.token_of(header, b"{\"a\":\"\xff\"}")), Err(Error::Malformed));
    let two = r#"{"alg":"ES256","alg":"none","kid":"k1"}"#;
    assert_eq!(house.ask(&signer.token_of(two, whole.as_bytes())), Err(Error::Malformed));
    let nested = whole.replacen('{', &format!("{{\"x\":{}{},", "[".repeat(2_000), "]".repeat(2_000)), 1);
    assert_eq!(house.ask(&signer.token_of(header, nested.as_bytes())), Err(Error::Malformed));
}

#[test]
fn base64_is_strict_in_every_part() {
    let signer = Signer::es256();
    let house = House::new(&[signer.jwk("k1")], "");
    // 64 bytes of signature end in a sextet with four spare bits, 1-byte payload remainders likewise.
    let signed = |message: String| format!("{message}.{}", encode(signer.sign(message.as_bytes())));
    let header = encode(r#"{"alg":"ES256","kid":"k1" }"#.trim());
    let mut payload = claims().to_string();
    while payload.len() % 3 != 1 {
        payload.push(' ');
    }
    let payload = encode(payload);
    assert!(house.ask(&signed(format!("{header}.{payload}"))).is_ok());
    let last = payload.len() - 1;
    let spare = |text: &str| {
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let place = alphabet.find(&text[text.len() - 1..]).unwrap();
        format!("{}{}", &text[..text.len() - 1], &alphabet[place + 1..=place + 1])
    };
    for wrong in [
        format!("{payload}=="),
        format!("{payload}="),
        spare(&payload),
        format!("{} {}", &payload[..9], &payload[9..]),
        format!("{}\n{}", &payload[..9], &payload[9..]),
        format!("{}+", &payload[..last]),
        format!("{}/", &payload[..last]),
        format!("{payload}A"),
        String::new(),
    ] {
        assert_eq!(house.ask(&signed(format!("{header}.{wrong}"))), Err(Error::Malformed), "{wrong}");
    }
    let good = signed(format!("{header}.{payload}"));
    for wrong in [
        format!("{good}="),
        format!("{good}=="),
        format!("{good}\n"),
        format!(" {good}"),
        format!("{good}."),
        format!(".{good}"),
        spare(&good),
    ] {
        assert!(house.ask(&wrong).is_err(), "{wrong}");
    }
}

#[test]
fn only_three_parts_are_a_token() {
    for text in ["a.b.c", "a.b.", "a-_.b.c=="] {
        assert!(is_token(text), "{text}");
    }
    for text in ["", "a", "a.b", "a.b.c.d", "a.b.c.", ".b.c", "a..c", "..", "a.b.c/", "a.b c.d", "pcl_abc"] {
        assert!(!is_token(text), "{text}");
    }
}

#[test]
fn tokens_for_other_purposes_are_refused() {
    let signer = Signer::es256();
    let typed =
        |typ: Value| signer.token_of(&json!({"alg": "ES256", "kid": "k1", "typ": typ}).to_string(), claims().to_string().as_bytes());
    let house = House::new(&[signer.jwk("k1")], "");
    for typ in ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt"] {
        assert!(house.ask(&typed(typ.into())).is_ok(), "{typ}");
    }
    for typ in [json!("logout+jwt"), json!("dpop+jwt"), json!("secevent+jwt"), json!("JOSE"), json!(""), json!(1), json!(null)] {
        assert_eq!(house.ask(&typed(typ)), Err(Error::Type));
    }
    let nested = signer.token_of(r#"{"alg":"ES256","kid":"k1","cty":"JWT"}"#, claims().to_string().as_bytes());
    assert_eq!(house.ask(&nested), Err(Error::Type));
    let strict = House::new(&[signer.jwk("k1")], "typ = [\"at+jwt\"]");
    assert!(strict.ask(&typed("application/at+jwt".into())).is_ok());
    assert_eq!(strict.ask(&typed("JWT".into())), Err(Error::Type));
    assert_eq!(strict.ask(&signer.token_of(r#"{"alg":"ES256","kid":"k1"}"#, claims().to_string().as_bytes())), Err(Error::Type));
}

#[test]
fn claims_are_strings_of_bounded_length() {
    let signer = Signer::es256();
    let house = House::new(&[signer.jwk("k1")], "");
    for bad in
        [json!(""), json!(1), json!(null), json!(["ada"]), json!("a\nb"), json!("a\u{202e}b"), json!("a\u{0}"), json!("a".repeat(257))]
    {
        assert_eq!(house.ask(&signer.token("k1", &with("sub", bad.clone()))), Err(Error::Claims), "sub {bad}");
        if bad != "" {
            assert_eq!(house.ask(&signer.token("k1", &with("tenant", bad.clone()))), Err(Error::Claims), "tenant {bad}");
            assert_eq!(house.ask(&signer.token("k1", &with("tier", bad.clone()))), Err(Error::Claims), "tier {bad}");
        }
    }
    assert_eq!(house.ask(&signer.token("k1", &without("sub"))), Err(Error::Claims));
    assert!(house.ask(&signer.token("k1", &with("sub", "a".repeat(256)))).is_ok());
    let roles = |number: usize| (0..number).map(|n| n.to_string()).collect::<Vec<_>>();
    let count = |value: Value| house.ask(&signer.token("k1", &with("roles", value))).map(|identity| identity.roles.len());
    assert_eq!(count(json!(roles(64))), Ok(64));
    assert_eq!(count(json!(roles(65))), Err(Error::Claims));
    assert_eq!(count(json!(roles(64).join(" "))), Ok(64));
    assert_eq!(count(json!(roles(65).join(" "))), Err(Error::Claims));
    assert_eq!(count(json!("  app   batch ")), Ok(2));
    assert_eq!(count(json!("")), Ok(0));
    for bad in [json!(1), json!(null), json!([1]), json!([""]), json!({"app": true}), json!(["a\n"])] {
        assert_eq!(count(bad), Err(Error::Claims));
    }
}

#[test]
fn claims_have_the_names_the_policy_says_and_tenants_are_its_own() {
    let signer = Signer::eddsa();
    let house = House::new(
        &[signer.jwk("k1")],
        "claims = { caller = \"client\", tenant = \"org\", roles = \"scope\", tier = \"plan\" }\ntenants = [\"acme\"]",
    );
    let mut claims = claims();
    for (key, value) in [("client", "job"), ("org", "acme"), ("scope", "app"), ("plan", "free")] {
        claims[key] = value.into();
    }
    let identity = house.ask(&signer.token("k1", &claims)).unwrap();
    assert_eq!(&*identity.who.caller, "jwt:https://login.example/#job");
    assert_eq!((&*identity.who.tenant, &*identity.who.tier), ("acme", "free"));
    claims["org"] = "rival".into();
    assert_eq!(house.ask(&signer.token("k1", &claims)), Err(Error::Claims));
    claims.as_object_mut().unwrap().remove("org");
    assert_eq!(house.ask(&signer.token("k1", &claims)), Err(Error::Claims));
}

#[test]
fn a_token_is_verified_once_and_again_when_keys_change() {
    let (old, new) = (Signer::es256(), Signer::es256());
    let house = House::new(&[old.jwk("k1")], "");
    let token = old.token("k1", &claims());
    let first = house.ask(&token).unwrap();
    assert!(Arc::ptr_eq(&first, &house.ask(&token).unwrap()));
    let source = house.issuers.sources().next().unwrap();
    // The same bytes again change nothing.
    source.reload(at(NOW)).unwrap();
    assert!(Arc::ptr_eq(&first, &house.ask(&token).unwrap()));
    let file = house.folder.path().join("set.json");
    // A file that is no good leaves the last good keys, and says so.
    std::fs::write(&file, "{").unwrap();
    assert!(source.reload(at(NOW)).is_err());
    assert!(house.ask(&token).is_ok());
    assert_eq!(source.failed(), 1);
    // A rotation drops what the old keys verified, at once.
    std::fs::write(&file, json!({"keys": [new.jwk("k2")]}).to_string()).unwrap();
    source.reload(at(NOW)).unwrap();
    assert_eq!(house.ask(&token), Err(Error::KeyUnknown));
    assert!(house.ask(&new.token("k2", &claims())).is_ok());
}

#[test]
fn only_what_was_verified_is_remembered() {
    let signer = Signer::es256();
    let house = House::new(&[signer.jwk("k1")], "");
    for token in
        [signer.token("k1", &with("exp", 1)), signer.token("k1", &with("aud", "x")), Signer::es256().token("k1", &claims()), "a.b.c".into()]
    {
        assert!(house.ask(&token).is_err());
    }
    assert_eq!(house.issuers.remembered(), 0);
}

fn mistakes(text: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("set.json"), json!({"keys": [Signer::eddsa().jwk("k1"), Signer::es256().jwk("k2")]}).to_string())
        .unwrap();
    std::fs::write(folder.path().join("empty.json"), "{\"keys\":[]}").unwrap();
    let config: Config = toml::from_str(text).unwrap();
    let mut mistakes = Vec::new();
    Issuers::compile(&config.issuer, folder.path(), at(NOW), &mut mistakes);
    assert!(mistakes.iter().all(|mistake| mistake.span.as_ref().is_some_and(|span| span.end <= text.len())));
    mistakes.into_iter().map(|mistake| mistake.what).collect()
}

#[test]
fn mistakes_in_an_issuer_are_told_all_at_once() {
    let issuer = |fields: &str| format!("[[issuer]]\nissuer = \"a\"\n{fields}");
    let base = "audience = [\"x\"]\nalgorithms = [\"ES256\"]\n";
    assert!(mistakes(&issuer(&format!("{base}jwks_file = \"set.json\""))).is_empty());
    assert!(mistakes(&issuer(&format!("{base}jwks = \"https://login.example/keys\""))).is_empty());
    assert!(mistakes(&issuer(&format!("{base}jwks = \"http://127.0.0.1:9/keys\""))).is_empty());
    for wrong in [
        "audience = []\nalgorithms = [\"ES256\"]\njwks_file = \"set.json\"",
        "audience = [\"\"]\nalgorithms = [\"ES256\"]\njwks_file = \"set.json\"",
        "audience = [\"x\"]\nalgorithms = []\njwks_file = \"set.json\"",
        "audience = [\"x\"]\nalgorithms = [\"ES256\"]",
        "audience = [\"x\"]\nalgorithms = [\"ES256\"]\njwks_file = \"set.json\"\njwks = \"https://a/\"",
        "audience = [\"x\"]\nalgorithms = [\"ES256\"]\njwks = \"http://login.example/\"",
        "audience = [\"x\"]\nalgorithms = [\"ES256\"]\njwks = \"https://user:word@login.example/\"",
        "audience = [\"x\"]\nalgorithms = [\"ES256\"]\njwks = \"file:///etc/passwd\"",
        "audience = [\"x\"]\nalgorithms = [\"ES256\"]\njwks_file = \"missing.json\"",
        "audience = [\"x\"]\nalgorithms = [\"ES256\"]\njwks_file = \"empty.json\"",
        "audience = [\"x\"]\nalgorithms = [\"ES256\"]\njwks_file = \"../set.json\"",
        "audience = [\"x\"]\nalgorithms = [\"ES256\"]\njwks_file = \"/etc/passwd\"",
        "audience = [\"x\"]\nalgorithms = [\"RS256\"]\njwks_file = \"set.json\"",
        "audience = [\"x\"]\nalgorithms = [\"ES256\"]\njwks_file = \"set.json\"\nleeway = \"301s\"",
        "audience = [\"x\"]\nalgorithms = [\"ES256\"]\njwks_file = \"set.json\"\nrefresh = \"9s\"",
        "audience = [\"x\"]\nalgorithms = [\"ES256\"]\njwks_file = \"set.json\"\nmax_stale = \"1m\"",
        "audience = [\"x\"]\nalgorithms = [\"ES256\"]\njwks_file = \"set.json\"\ntyp = []",
        "audience = [\"x\"]\nalgorithms = [\"ES256\"]\njwks_file = \"set.json\"\nclaims = { caller = \"\" }",
    ] {
        assert_eq!(mistakes(&issuer(wrong)).len(), 1, "{wrong} {:?}", mistakes(&issuer(wrong)));
    }
    let twice = issuer(&format!("{base}jwks_file = \"set.json\"\n")).repeat(2);
    assert_eq!(mistakes(&twice).len(), 1);
    assert_eq!(mistakes("[[issuer]]\nissuer = \"\"\naudience = []\nalgorithms = [\"none\", \"HS256\", \"ES265\"]").len(), 6);
}

#[test]
fn algorithms_that_cannot_be_pinned_are_refused_with_the_reason() {
    let told = |name: &str| {
        mistakes(&format!("[[issuer]]\nissuer = \"a\"\naudience = [\"x\"]\nalgorithms = [\"ES256\", \"{name}\"]\njwks_file = \"set.json\""))
    };
    assert!(told("none")[0].contains("every token would hold"));
    assert!(told("HS256")[0].contains("could also sign"));
    assert!(told("ES265")[0].contains("did you mean \"ES256\""));
    assert!(told("EdDsa")[0].contains("did you mean \"EdDSA\""));
}

#[cfg(unix)]
#[test]
fn a_link_does_not_lead_out_of_the_policy_folder() {
    let (inner, outer) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(outer.path().join("set.json"), json!({"keys": [Signer::es256().jwk("k")]}).to_string()).unwrap();
    std::os::unix::fs::symlink(outer.path().join("set.json"), inner.path().join("set.json")).unwrap();
    let config: Config =
        toml::from_str("[[issuer]]\nissuer = \"a\"\naudience = [\"x\"]\nalgorithms = [\"ES256\"]\njwks_file = \"set.json\"").unwrap();
    let mut mistakes = Vec::new();
    Issuers::compile(&config.issuer, inner.path(), at(NOW), &mut mistakes);
    assert_eq!(mistakes.len(), 1);
}

#[test]
fn the_other_spelling_of_an_ecdsa_signature_names_the_same_holder_and_no_more() {
    // The order of P-256. With (r, s) also (r, n - s) is a signature of the same message: RFC 7518 does not refuse it,
    // and nobody here takes a token's digest for anything but a memory of its verification.
    let order: Digest = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551".parse().unwrap();
    let signer = Signer::es256();
    let house = House::new(&[signer.jwk("k1")], "");
    let token = signer.token("k1", &claims());
    let (message, signature) = token.rsplit_once('.').unwrap();
    let mut signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let mut borrow = 0;
    for place in (0..32).rev() {
        let left = i16::from(order.as_bytes()[place]) - i16::from(signature[32 + place]) - borrow;
        borrow = i16::from(left < 0);
        signature[32 + place] = left.rem_euclid(256) as u8;
    }
    let other = format!("{message}.{}", encode(signature));
    assert_ne!(token, other);
    assert_eq!(house.ask(&token).unwrap(), house.ask(&other).unwrap());
}
