use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, SignatureAlgorithm};
use serde_json::{Value, json};

use super::certificate::tests::Authority;
use super::manifest::{Content, NEVER_SIGNED};
use super::sign::Seal;
use super::*;

pub(super) const CURVES: [&SignatureAlgorithm; 3] = [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ECDSA_P521_SHA512];

pub(super) fn now() -> SystemTime {
    SystemTime::now()
}

pub(super) fn manifest() -> Manifest {
    let files = BTreeMap::from([("a.onnx".to_owned(), Digest::of(b"a")), ("d/b".to_owned(), Digest::of(b"b"))]);
    Manifest::of_files(&files, NEVER_SIGNED.map(str::to_owned).into()).unwrap()
}

pub(super) fn by_key(pair: &KeyPair) -> Vec<u8> {
    Seal::with_key(key::PrivateKey::from_pem(pair.serialize_pem().as_bytes()).unwrap()).bundle(&manifest(), "m").unwrap()
}

pub(super) fn trusting(pair: &KeyPair) -> Trust {
    Trust::read(pair.public_key_pem().as_bytes()).unwrap()
}

/// The bundle with something changed in it, or in the statement.
pub(super) fn edited(bundle: &[u8], edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(bundle).unwrap();
    edit(&mut value);
    value.to_string().into_bytes()
}

fn statement() -> Value {
    serde_json::from_slice(&manifest().statement("m")).unwrap()
}

fn broken(statement: &Value) -> String {
    match Manifest::from_statement(statement.to_string().as_bytes()) {
        Err(Fault::StatementIsBroken(why)) => why,
        other => panic!("it was read: {other:?}"),
    }
}

#[test]
fn what_a_key_signed_is_verified_on_each_curve_and_by_no_other_key() {
    for curve in CURVES {
        let (pair, other) = (KeyPair::generate_for(curve).unwrap(), KeyPair::generate_for(curve).unwrap());
        let bundle = by_key(&pair);
        let signed = trusting(&pair).verify(&bundle, now()).unwrap();
        assert_eq!(signed.manifest, manifest());
        assert!(matches!(signed.signer, Signer::Key { .. }));
        assert!(matches!(trusting(&other).verify(&bundle, now()), Err(Fault::OtherKey(_))));
        // The hint is no proof: with another key's hint it is still the signature that decides.
        let Signer::Key { hint } = signed.signer else { unreachable!() };
        let hinted = edited(&by_key(&other), |bundle| bundle["verificationMaterial"]["publicKey"]["hint"] = hint.into());
        assert_eq!(trusting(&pair).verify(&hinted, now()).unwrap_err(), Fault::WrongSignature);
    }
}

#[test]
fn any_of_several_trusted_keys_counts() {
    let pairs: Vec<KeyPair> = CURVES.iter().map(|curve| KeyPair::generate_for(curve).unwrap()).collect();
    let pem: String = pairs.iter().map(KeyPair::public_key_pem).collect();
    let trust = Trust::read(pem.as_bytes()).unwrap();
    assert!(pairs.iter().all(|pair| trust.verify(&by_key(pair), now()).is_ok()));
    let many = pairs[0].public_key_pem().repeat(MAX_TRUSTED);
    assert!(Trust::read(many.as_bytes()).is_ok());
    assert!(Trust::read((many + &pairs[0].public_key_pem()).as_bytes()).is_err());
}

#[test]
fn one_bit_of_the_statement_or_of_the_signature_is_refused() {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let bundle = by_key(&pair);
    for (member, change) in [("payload", 40), ("payload", 300)] {
        let tampered = edited(&bundle, |bundle| {
            let mut bytes = STANDARD.decode(bundle["dsseEnvelope"][member].as_str().unwrap()).unwrap();
            bytes[change] ^= 1;
            bundle["dsseEnvelope"][member] = STANDARD.encode(bytes).into();
        });
        assert_eq!(trusting(&pair).verify(&tampered, now()).unwrap_err(), Fault::WrongSignature);
    }
    let signature = |change: &dyn Fn(&mut Vec<u8>)| {
        edited(&bundle, |bundle| {
            let sig = &mut bundle["dsseEnvelope"]["signatures"][0]["sig"];
            let mut bytes = STANDARD.decode(sig.as_str().unwrap()).unwrap();
            change(&mut bytes);
            *sig = STANDARD.encode(bytes).into();
        })
    };
    for change in [
        &(|bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1) as &dyn Fn(&mut Vec<u8>),
        // Bytes behind the DER, a length in two bytes, zeros, and nothing of use.
        &|bytes| bytes.push(0),
        &|bytes| drop(bytes.splice(1..2, [0x81, bytes[1]])),
        &|bytes| *bytes = vec![0x30, 6, 2, 1, 0, 2, 1, 0],
        &|bytes| *bytes = vec![0; 70],
    ] {
        assert_eq!(trusting(&pair).verify(&signature(change), now()).unwrap_err(), Fault::WrongSignature);
    }
}

/// The bug of release 0.2: there the encoding was that of Python's `repr`, and its lengths were those.
#[test]
fn the_encoding_before_signing_is_dsses_own() {
    assert_eq!(bundle::pae(b"{}"), b"DSSEv1 28 application/vnd.in-toto+json 2 {}");
    let key = aws_lc_rs::signature::EcdsaKeyPair::generate(&aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let public = {
        use aws_lc_rs::encoding::AsDer;
        use aws_lc_rs::signature::KeyPair;
        let der: aws_lc_rs::encoding::PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
        key::PublicKey::from_spki(&SubjectPublicKeyInfoDer::from(der.as_ref())).unwrap()
    };
    let payload = manifest().statement("m");
    let text = format!("{:?}", String::from_utf8(payload.clone()).unwrap());
    let wrong = format!("DSSEv1 28 b'application/vnd.in-toto+json' {} b{text}", payload.len());
    let signature = key.sign(&aws_lc_rs::rand::SystemRandom::new(), wrong.as_bytes()).unwrap();
    let bundle = json!({
        "mediaType": bundle::MEDIA_TYPE,
        "verificationMaterial": { "publicKey": { "hint": public.hint() } },
        "dsseEnvelope": { "payload": STANDARD.encode(&payload), "payloadType": bundle::PAYLOAD_TYPE, "signatures": [{ "sig": STANDARD.encode(signature) }] },
    });
    assert_eq!(Trust::Keys(vec![public]).verify(bundle.to_string().as_bytes(), now()).unwrap_err(), Fault::WrongSignature);
}

#[test]
fn a_bundle_that_says_anything_twice_or_more_than_it_may_is_refused() {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let bundle = by_key(&pair);
    let why = |bytes: &[u8]| match Bundle::parse(bytes) {
        Err(Fault::BundleIsBroken(why)) => why,
        other => panic!("it was read: {other:?}"),
    };
    let text = String::from_utf8(bundle.clone()).unwrap();
    assert!(why(text.replace("{\"mediaType\"", "{\"mediaType\":\"x\",\"mediaType\"").as_bytes()).contains("twice"));
    assert!(why(format!("{text}x").as_bytes()).contains("follow"));
    assert!(why(&[b"[".repeat(500), b"]".repeat(500)].concat()).contains("deep"));
    assert!(why(&vec![b' '; bundle::MAX_BUNDLE + 1]).contains("larger"));
    let changed = |edit: fn(&mut Value)| why(&edited(&bundle, edit));
    for (edit, part) in [
        ((|b| b["more"] = json!(1)) as fn(&mut Value), "unknown member \"more\""),
        (|b| b["mediaType"] = json!("application/json"), "media type"),
        (|b| b["mediaType"] = json!("application/vnd.dev.sigstore.bundle.v9+json"), "media type"),
        (|b| b["dsseEnvelope"]["more"] = json!(1), "unknown member"),
        (|b| b["dsseEnvelope"]["payloadType"] = json!("text/plain"), "payload is not"),
        (|b| b["dsseEnvelope"]["signatures"][0]["more"] = json!(1), "unknown member"),
        (|b| b["dsseEnvelope"]["signatures"][0]["keyid"] = json!(1), "keyid"),
        (|b| b["dsseEnvelope"]["signatures"] = json!([]), "exactly one"),
        (|b| b["dsseEnvelope"]["signatures"] = json!([{ "sig": "YQ==" }, { "sig": "YQ==" }]), "exactly one"),
        (|b| b["dsseEnvelope"]["payload"] = json!("YR=="), "base64"),
        (|b| b["dsseEnvelope"]["payload"] = json!(""), "empty"),
        (|b| b["verificationMaterial"] = json!({}), "neither"),
        (|b| b["verificationMaterial"]["more"] = json!(1), "unknown member"),
        (|b| b["verificationMaterial"]["publicKey"] = json!({}), "neither `hint`"),
        (|b| b["verificationMaterial"]["publicKey"] = json!([]), "no object"),
        (|b| b["verificationMaterial"]["x509CertificateChain"] = json!({ "certificates": [] }), "two modes"),
        (|b| b["verificationMaterial"] = json!({ "x509CertificateChain": { "certificates": [] } }), "from 1 to"),
        (
            |b| b["verificationMaterial"] = json!({ "x509CertificateChain": { "certificates": vec![json!({ "rawBytes": "YQ==" }); 11] } }),
            "from 1 to",
        ),
        (|b| b["verificationMaterial"] = json!({ "certificate": { "rawBytes": "YQ==" } }), "no entry"),
        (|b| b["verificationMaterial"]["tlogEntries"] = json!({}), "tlogEntries"),
    ] {
        let told = changed(edit);
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[test]
fn what_older_signers_write_is_read() {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    for edit in [
        (|b| b["verificationMaterial"]["publicKey"] = json!({ "rawBytes": "YQ==", "keyDetails": "PKIX_ECDSA_P256_SHA_256" }))
            as fn(&mut Value),
        (|b| b["dsseEnvelope"]["signatures"][0]["keyid"] = Value::Null),
        (|b| drop(b["dsseEnvelope"]["signatures"][0].as_object_mut().unwrap().remove("keyid"))),
        (|b| drop(b["verificationMaterial"].as_object_mut().unwrap().remove("tlogEntries"))),
        (|b| b["mediaType"] = json!("application/vnd.dev.sigstore.bundle+json;version=0.2")),
    ] {
        assert!(trusting(&pair).verify(&edited(&by_key(&pair), edit), now()).is_ok());
    }
}

#[test]
fn a_statement_that_is_not_of_version_1_0_is_refused_with_what_is_wrong() {
    for (edit, part) in [
        ((|s| s["_type"] = json!("x")) as fn(&mut Value), "in-toto"),
        (|s| s["predicateType"] = json!("https://example.com/x"), "https://example.com/x"),
        (|s| s["predicateType"] = json!("https://model_signing/Digests/v0.1"), "0.2"),
        (|s| s["more"] = json!(1), "unknown member"),
        (|s| s["predicate"]["more"] = json!(1), "unknown member"),
        (|s| s["predicate"]["serialization"]["more"] = json!(1), "unknown member"),
        (|s| s["predicate"]["serialization"]["hash_type"] = json!("blake3"), "only sha256"),
        (|s| s["predicate"]["serialization"]["hash_type"] = json!("md5"), "not known"),
        (|s| s["predicate"]["serialization"]["method"] = json!("tar"), "not known"),
        (|s| s["predicate"]["serialization"]["method"] = json!("shards"), "shard_size"),
        (|s| s["predicate"]["serialization"]["shard_size"] = json!(1), "shard_size"),
        (|s| s["predicate"]["serialization"]["allow_symlinks"] = json!("no"), "allow_symlinks"),
        (|s| s["predicate"]["serialization"]["ignore_paths"] = json!(["*.bin"]), "ignored path"),
        (|s| s["predicate"]["serialization"]["ignore_paths"] = json!(["."]), "ignored path"),
        (|s| s["predicate"]["serialization"]["ignore_paths"] = json!(["../x"]), "ignored path"),
        (|s| s["predicate"]["serialization"]["ignore_paths"] = json!(["d"]), "listed and ignored"),
        (|s| s["predicate"]["resources"] = json!([]), "resources"),
        (|s| s["predicate"]["resources"][0]["algorithm"] = json!("blake2b"), "only sha256"),
        (|s| s["predicate"]["resources"][0]["digest"] = json!("00"), "lower-case"),
        (|s| s["predicate"]["resources"][0]["digest"] = json!(Digest::of(b"a").to_string().to_uppercase()), "lower-case"),
        (|s| s["predicate"]["resources"].as_array_mut().unwrap().reverse(), "not sorted"),
        (|s| s["predicate"]["resources"][1] = s["predicate"]["resources"][0].clone(), "twice"),
        (|s| s["subject"][0]["digest"]["sha256"] = json!(Digest::of(b"x").to_string()), "not that of its resources"),
        (|s| s["subject"][0]["name"] = json!(""), "no name"),
        (|s| s["subject"] = json!([]), "exactly one subject"),
        (|s| s["subject"] = json!([s["subject"][0], s["subject"][0]]), "exactly one subject"),
    ] {
        let mut changed = statement();
        edit(&mut changed);
        let told = broken(&changed);
        assert!(told.contains(part), "{part}: {told}");
    }
    let mut named = statement();
    named["subject"][0]["name"] = json!("any name");
    named["predicate"]["resources"][0]["annotations"] = json!({ "x": 1 });
    named["predicate"]["serialization"]["allow_symlinks"] = json!(true);
    named["predicate"]["serialization"].as_object_mut().unwrap().remove("ignore_paths");
    assert!(Manifest::from_statement(named.to_string().as_bytes()).is_ok());
}

#[test]
fn what_no_verifier_would_read_is_not_signed() {
    let of =
        |name: &str, ignored: &str| Manifest::of_files(&BTreeMap::from([(name.to_owned(), Digest::of(b"x"))]), vec![ignored.to_owned()]);
    assert!(of("a", "b").is_ok() && of(".", "b").is_ok());
    assert!(of("../a", "b").is_err() && of("a", "*.bin").is_err() && of("a", "/b").is_err() && of("a", "").is_err());
}

#[test]
fn resources_of_the_limit_are_read_and_one_more_is_not() {
    let digest = Digest::of(b"x");
    let many = |count: usize| {
        let files = (0..count).map(|number| (format!("{number:06}"), digest)).collect();
        let statement = Manifest::of_files(&files, Vec::new()).unwrap().statement("m");
        Manifest::from_statement(&statement).map(|manifest| manifest.files().len())
    };
    assert_eq!(many(manifest::MAX_RESOURCES), Ok(manifest::MAX_RESOURCES));
    assert!(many(manifest::MAX_RESOURCES + 1).unwrap_err().to_string().contains("resources"));
}

#[test]
fn names_that_could_mean_another_place_are_refused() {
    for name in [
        "/etc/passwd",
        "../x",
        "a/../x",
        "a/..",
        "..",
        ".",
        "",
        "a//b",
        "a/",
        "/",
        "./a",
        "a/./b",
        "a\\b",
        "a\0b",
        "a\nb",
        "a\u{7f}b",
        "a\u{85}b",
    ] {
        let mut changed = statement();
        changed["predicate"]["resources"] = json!([{ "name": name, "algorithm": "sha256", "digest": Digest::of(b"a").to_string() },
            { "name": "zzz", "algorithm": "sha256", "digest": Digest::of(b"a").to_string() }]);
        // The digest of the subject does not fit either, so that nothing but the name may be what is told.
        let told = if name == "." { continue } else { broken(&changed) };
        assert!(told.contains("does not name a file"), "{name:?}: {told}");
        assert!(!manifest::is_name(name));
    }
    assert!(manifest::is_name(&"x".repeat(1024)) && !manifest::is_name(&"x".repeat(1025)));
    assert!(manifest::is_name("Modèle: 1/…/a b.onnx") && manifest::is_name("..."));
}

fn sharded(size: u64, parts: &[&str]) -> Value {
    let digest = Digest::of(b"x");
    let root = Digest::of(&digest.as_bytes().repeat(parts.len()));
    let resources: Vec<Value> =
        parts.iter().map(|name| json!({ "name": name, "algorithm": "sha256", "digest": digest.to_string() })).collect();
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{ "name": "m", "digest": { "sha256": root.to_string() } }],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": { "resources": resources,
            "serialization": { "method": "shards", "hash_type": "sha256", "shard_size": size, "allow_symlinks": false } },
    })
}

#[test]
fn parts_of_files_are_put_together_in_either_order_and_must_cover_them() {
    let read = |size, parts: &[&str]| Manifest::from_statement(sharded(size, parts).to_string().as_bytes());
    let whole = read(100, &["w:0:100", "w:100:200", "w:200:250"]).unwrap();
    assert!(matches!(&whole.files()["w"], Content::Parts { length: 250, size: 100, digests } if digests.len() == 3));
    // By code points 10 stands before 5, by number behind it.
    let by_number = read(5, &["w:0:5", "w:5:10", "w:10:12"]).unwrap();
    let by_text = read(5, &["w:0:5", "w:10:12", "w:5:10"]).unwrap();
    assert_eq!(by_number.files(), by_text.files());
    for (size, fits) in
        [(json!(5.0), true), (json!(5.5), false), (json!(0), false), (json!(-5), false), (json!("5"), false), (json!(1e300), false)]
    {
        let mut statement = sharded(5, &["w:0:5", "w:5:10"]);
        statement["predicate"]["serialization"]["shard_size"] = size.clone();
        assert_eq!(Manifest::from_statement(statement.to_string().as_bytes()).is_ok(), fits, "{size}");
    }
    for (algorithm, fits) in
        [("sha256-sharded-5", true), ("sha256-sharded-6", false), ("blake2b-sharded-5", false), ("sha256-sharded", false)]
    {
        let mut statement = sharded(5, &["w:0:5", "w:5:10"]);
        statement["predicate"]["resources"][0]["algorithm"] = json!(algorithm);
        assert_eq!(Manifest::from_statement(statement.to_string().as_bytes()).is_ok(), fits, "{algorithm}");
    }
    assert!(read(5, &["a:b:0:5"]).unwrap().files().contains_key("a:b"));
    for parts in [
        &["w:0:5", "w:6:10"][..],
        &["w:5:10"],
        &["w:0:4", "w:4:8"],
        &["w:0:6"],
        &["w:0:0"],
        &["w:0:5", "w:0:5"],
        &["w:00:5"],
        &["w:+0:5"],
        &["w:0"],
        &["w"],
        &["w:-1:5"],
        &["w:0:99999999999999999999"],
        &["../w:0:5"],
    ] {
        assert!(read(5, parts).is_err(), "{parts:?}");
    }
}

/// `model-signing` sorts paths by their parts, so that `a/b` stands before `a.txt`.
#[test]
fn both_orders_of_names_are_read() {
    let digest = Digest::of(b"x");
    let read = |names: [&str; 2]| {
        let mut changed = sharded(1, &["x:0:1", "y:0:1"]);
        changed["predicate"]["serialization"] = json!({ "method": "files", "hash_type": "sha256", "allow_symlinks": false });
        changed["predicate"]["resources"] =
            names.iter().map(|name| json!({ "name": name, "algorithm": "sha256", "digest": digest.to_string() })).collect();
        Manifest::from_statement(changed.to_string().as_bytes())
    };
    assert_eq!(read(["a/b", "a.txt"]).unwrap().files(), read(["a.txt", "a/b"]).unwrap().files());
    assert!(read(["b", "a"]).is_err() && read(["a", "a"]).is_err());
}

#[test]
fn a_trust_file_of_anything_else_is_the_operators_mistake() {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let issuer = Authority::root("root");
    let leaf = issuer.leaf("leaf", &pair, |_| ());
    let told = |pem: &str| match Trust::read(pem.as_bytes()) {
        Err(Fault::OperatorTrusts(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(told("").contains("no PEM block") && told("identity = \"a\"").contains("no PEM block"));
    assert!(told("identity = \"a\"\nissuer = \"\"").contains("no PEM block"));
    assert!(told(&pair.serialize_pem()).contains("private key"));
    assert!(told(&ed25519.public_key_pem()).contains("P-256"));
    assert!(told(&(pair.public_key_pem() + &issuer.certificate.pem())).contains("either"));
    // A leaf in the place of an authority would let its holder name others.
    assert!(told(&leaf.pem()).contains("no authority"));
    assert!(told(&pair.public_key_pem().replace("MF", "!!")).contains("PEM"));
    assert!(told(&" ".repeat(MAX_TRUST + 1)).contains("1 MiB"));
}

#[test]
fn private_keys_of_other_kinds_are_refused_in_words() {
    let told = |pem: &str| key::PrivateKey::from_pem(pem.as_bytes()).err().map(|fault| fault.to_string()).unwrap_or_default();
    assert!(told("").contains("no private key"));
    assert!(told(&KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem()).contains("P-256"));
    assert!(told("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n").contains("decrypt"));
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    assert!(told(&pair.serialize_pem().repeat(2)).contains("two keys"));
    assert!(told(&" ".repeat(key::MAX_KEY + 1)).contains("64 KiB"));
}

/// The specification's own vectors, which the repository does not carry.
fn vectors() -> Option<PathBuf> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data/oms");
    let home = std::env::var_os("PORTCULLIS_OMS_VECTORS").map_or(beside, PathBuf::from).join("test-vectors/v1.0");
    if home.is_dir() {
        return Some(home);
    }
    let missing = format!(
        "the test vectors of OpenSSF Model Signing v1.0 are not in {}: set PORTCULLIS_OMS_VECTORS to a copy of ossf/model-signing-spec",
        home.display()
    );
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{missing}");
    eprintln!("skipped: {missing}");
    None
}

/// What is in the vectors' folder, judged as far as it can be without the signers' keys.
#[test]
fn the_specifications_test_vectors_behave_as_it_says() {
    let Some(home) = vectors() else { return };
    let read = |folder: &str| -> Vec<(String, Vec<u8>)> {
        let files = std::fs::read_dir(home.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap())).collect()
    };
    let judged = |bytes: &[u8]| Bundle::parse(bytes).and_then(|bundle| Ok((Manifest::from_statement(&bundle.payload)?, bundle)));
    let (mut valid, mut invalid) = (0, 0);
    for (name, bytes) in read("valid") {
        let (manifest, bundle) = judged(&bytes).unwrap_or_else(|fault| panic!("{name}: {fault}"));
        assert_eq!(manifest.files().len(), 2, "{name}");
        let fits = match name.split('.').next().unwrap() {
            "key" => matches!(bundle.material, Material::Key { hint: Some(_) }),
            "certificate" => matches!(&bundle.material, Material::Chain(chain) if chain.len() == 2),
            "sigstore" => bundle.material == Material::Sigstore,
            other => panic!("a vector of an unknown mode: {other}"),
        };
        assert!(fits, "{name}");
        valid += 1;
    }
    for folder in ["invalid", "invalid-payload"] {
        for (name, bytes) in read(folder) {
            assert!(judged(&bytes).is_err(), "{name} was read");
            // Whoever is trusted, none is verified.
            let pair = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
            assert!(trusting(&pair).verify(&bytes, now()).is_err() && Authority::root("x").trust().verify(&bytes, now()).is_err());
            invalid += 1;
        }
    }
    assert!(valid >= 3 && invalid >= 5, "{valid} and {invalid} vectors");
}

#[cfg(not(feature = "sigstore"))]
fn sigstore_vector(bytes: &[u8], trust: &Trust) {
    assert_eq!(trust.verify(bytes, now()).unwrap_err(), Fault::NoSigstore);
    assert!(Fault::NoSigstore.to_string().contains("model sign"));
}

/// Offline, under the trust root that is built in.
#[cfg(feature = "sigstore")]
fn sigstore_vector(bytes: &[u8], trust: &Trust) {
    let signed = trust.verify(bytes, now()).unwrap();
    assert!(matches!(&signed.signer, Signer::Identity(signer) if signer.identity == "stefanb@us.ibm.com"));
    assert_eq!(signed.manifest.files().len(), 2);
    let other = |identity: &str, issuer: &str| {
        Trust::Identity(Identity { identity: identity.to_owned(), issuer: issuer.to_owned() }).verify(bytes, now())
    };
    let issuer = "https://sigstore.verify.ibm.com/oauth2";
    assert!(other("stefanb@us.ibm.com", issuer).is_ok());
    for (identity, issuer) in [("other@us.ibm.com", issuer), ("us.ibm.com", issuer), ("stefanb@us.ibm.com", "https://accounts.google.com")]
    {
        assert!(matches!(other(identity, issuer), Err(Fault::Sigstore(_))), "{identity} {issuer}");
    }
    let changes: [fn(&mut Value); 5] = [
        |b| drop(b["verificationMaterial"]["tlogEntries"][0].as_object_mut().unwrap().remove("inclusionProof")),
        |b| {
            b["verificationMaterial"]["tlogEntries"][0]["inclusionProof"]["hashes"][0] =
                json!("P439a1wjUaISQbG2jSIGT1cYyPX/NrcxVNhfdV7vC58A")
        },
        |b| b["verificationMaterial"]["tlogEntries"][0]["integratedTime"] = json!("1760062341"),
        |b| b["verificationMaterial"]["tlogEntries"][0]["logIndex"] = json!("1"),
        |b| {
            let payload = STANDARD.decode(b["dsseEnvelope"]["payload"].as_str().unwrap()).unwrap();
            let other = String::from_utf8(payload).unwrap().replace("v1.1.0-sigstore", "v1.1.0-sigstorE");
            b["dsseEnvelope"]["payload"] = STANDARD.encode(other).into();
        },
    ];
    for (number, change) in changes.into_iter().enumerate() {
        assert!(matches!(trust.verify(&edited(bytes, change), now()), Err(Fault::Sigstore(_))), "change {number}");
    }
}

/// The vector of the mode `certificate` brings its intermediate authority, which makes it one that can be verified whole.
#[test]
fn the_certificate_vector_verifies_under_its_own_authority_and_the_others_tell_why_not() {
    let Some(home) = vectors() else { return };
    let read = |name: &str| std::fs::read(home.join("valid").join(name)).unwrap();
    let bytes = read("certificate.bundle.json");
    let Material::Chain(chain) = Bundle::parse(&bytes).unwrap().material else { panic!("not of the mode certificate") };
    let trust = Trust::Authorities(vec![chain[1].clone()]);
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600); // 2026-01-01
    let signed = trust.verify(&bytes, at).unwrap();
    assert_eq!(signed.manifest.root().to_string(), "92745110b1ab4368471cbe31664e10174e954b113a3df333db860317b2c6dec4");
    assert!(trust.verify(&bytes, at + Duration::from_secs(10 * 366 * 86_400)).is_err());
    let trust = Trust::read(b"identity = \"stefanb@us.ibm.com\"\nissuer = \"https://sigstore.verify.ibm.com/oauth2\"\n").unwrap();
    assert!(matches!(trust.verify(&bytes, at), Err(Fault::OtherMode { made: "certificate", trusted: "an identity" })));
    sigstore_vector(&read("sigstore.bundle.json"), &trust);
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    assert!(matches!(trusting(&pair).verify(&read("key.bundle.json"), at), Err(Fault::OtherKey(_))));
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 300, failure_persistence: None, ..Default::default() })]

    /// Whatever stands in a statement, what is read of it names files of one folder and sums up to its digest.
    #[test]
    fn no_statement_is_read_that_names_another_place(names in proptest::collection::vec("[a-b./:\\\\~\u{0}é0-9-]{0,6}", 1..5), size in proptest::option::of(0_u64..12)) {
        let mut statement = sharded(size.unwrap_or(1), &names.iter().map(String::as_str).collect::<Vec<_>>());
        if size.is_none() {
            statement["predicate"]["serialization"] = json!({ "method": "files", "hash_type": "sha256", "allow_symlinks": false });
        }
        if let Ok(manifest) = Manifest::from_statement(statement.to_string().as_bytes()) {
            proptest::prop_assert!(manifest.files().keys().all(|name| manifest::is_name(name) || name == "."));
        }
    }

    #[test]
    fn bytes_that_are_changed_anywhere_never_verify_and_never_panic(at in 0_usize..4000, to in 0_u8..=255) {
        let (bundle, trust) = &*SIGNED;
        let mut changed = bundle.clone();
        let at = at % changed.len();
        let same = changed[at] == to;
        changed[at] = to;
        // Base64 and hints aside, nothing in a bundle is without meaning.
        let verified = trust.verify(&changed, now());
        let hint = String::from_utf8_lossy(bundle).find("\"hint\"").unwrap();
        proptest::prop_assert!(same || verified.is_err() || (hint..hint + 80).contains(&at) || is_in_keyid(bundle, at));
    }
}

static SIGNED: std::sync::LazyLock<(Vec<u8>, Trust)> = std::sync::LazyLock::new(|| {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    (by_key(&pair), trusting(&pair))
});

/// `keyid` is text that says nothing.
fn is_in_keyid(bundle: &[u8], at: usize) -> bool {
    let keyid = String::from_utf8_lossy(bundle).find("\"keyid\"").unwrap();
    (keyid..keyid + 12).contains(&at)
}
