//! Bundles, manifests, certificates and files of trusted keys, as a model's signer or whoever exchanged them wrote them. Nothing but what was
//! signed is ever believed, and what a manifest lists are names of files below a folder.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use portcullis::infer::model::signing::Trust;
use portcullis::infer::model::signing::bundle::{Bundle, Material};
use portcullis::infer::model::signing::key::PrivateKey;
use portcullis::infer::model::signing::manifest::{Content, Manifest, NEVER_SIGNED, SINGLE, is_name};
use portcullis::infer::model::signing::sign::Seal;
use portcullis_fuzz::{for_json, seed, seeds, within};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::json;

fuzz_target!(init: seeds(made), |data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    match mode % 5 {
        0 => bundle(rest),
        1 => manifest(rest),
        2 => exchanged(rest),
        3 => certified(rest),
        _ => _ = Trust::read(rest).map(|trust| format!("{trust:?}")),
    }
});

fn bundle(bytes: &[u8]) {
    let Ok(bundle) = within(for_json(bytes.len()), || Bundle::parse(bytes)) else { return };
    assert!(bundle.signed_bytes().ends_with(&bundle.payload) && !bundle.payload.is_empty() && !bundle.signature.is_empty());
    if let Material::Chain(chain) = &bundle.material {
        assert!((1..=10).contains(&chain.len()));
    }
    manifest(&bundle.payload);
    for world in [&WORLD.by_key, &WORLD.by_authority] {
        if let Ok(signed) = world.verify(bytes, WORLD.now) {
            assert_eq!(signed.manifest, WORLD.manifest, "only one manifest was ever signed");
        }
    }
}

/// What a statement lists are names of files below a folder, and it is written as it was read.
fn manifest(bytes: &[u8]) {
    let Ok(manifest) = within(for_json(bytes.len()), || Manifest::from_statement(bytes)) else { return };
    assert!(!manifest.files().is_empty());
    let mut whole = BTreeMap::new();
    for (name, content) in manifest.files() {
        assert!(is_name(name) || name == SINGLE, "{name:?}");
        assert!(!manifest.ignores(name) || NEVER_SIGNED.contains(&name.as_str()), "{name:?} is listed and ignored");
        match content {
            Content::Whole(digest) => _ = whole.insert(name.clone(), *digest),
            Content::Parts { size, length, digests } => assert_eq!(length.div_ceil(*size), digests.len() as u64),
        }
    }
    let single = whole.contains_key(SINGLE) && whole.len() > 1;
    if whole.len() == manifest.files().len() && !single {
        let again = Manifest::of_files(&whole, Vec::new()).expect("names that were read");
        assert_eq!(Manifest::from_statement(&again.statement("model")).as_ref(), Ok(&again));
    }
}

/// The one signed bundle with some bytes exchanged: whatever is still believed is what was signed.
fn exchanged(edits: &[u8]) {
    for (base, trust) in [(&WORLD.signed_by_key, &WORLD.by_key), (&WORLD.signed_by_certificate, &WORLD.by_authority)] {
        if let Ok(signed) = trust.verify(&edited(base, edits), WORLD.now) {
            assert_eq!(signed.manifest, WORLD.manifest);
        }
    }
}

/// The signing certificate with some bytes exchanged, or any other: it counts only as the authority signed it.
fn certified(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let leaf = if kind % 2 == 0 { edited(&WORLD.leaf, bytes) } else { bytes.to_vec() };
    let mut bundle: serde_json::Value = serde_json::from_slice(&WORLD.signed_by_certificate).expect("JSON");
    bundle["verificationMaterial"]["x509CertificateChain"]["certificates"][0]["rawBytes"] = json!(STANDARD.encode(&leaf));
    if WORLD.by_authority.verify(bundle.to_string().as_bytes(), WORLD.now).is_ok() {
        assert_eq!(leaf, WORLD.leaf, "another certificate counts");
    }
}

/// Each three bytes exchange one.
fn edited(base: &[u8], edits: &[u8]) -> Vec<u8> {
    let mut edited = base.to_vec();
    for edit in edits.as_chunks::<3>().0 {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % edited.len();
        edited[at] = edit[2];
    }
    edited
}

struct World {
    now: SystemTime,
    manifest: Manifest,
    leaf: Vec<u8>,
    authority: String,
    signed_by_key: Vec<u8>,
    signed_by_certificate: Vec<u8>,
    by_key: Trust,
    by_authority: Trust,
}

static WORLD: LazyLock<World> = LazyLock::new(World::new);

impl World {
    /// A signer with a key of his own, whom an authority has certified, and the one manifest that he signed.
    fn new() -> Self {
        let mut authority = CertificateParams::new(Vec::new()).expect("no names");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key")).expect("a certificate");
        let mut leaf = CertificateParams::new(vec!["signer.example".to_owned()]).expect("a name");
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        let pair = KeyPair::generate().expect("a key");
        let leaf = leaf.signed_by(&pair, &authority).expect("a certificate");
        let key = || PrivateKey::from_pem(pair.serialize_pem().as_bytes()).expect("a key on P-256");
        let files =
            ["config.json", "folder/a", "model.safetensors"].map(|name| (name.to_owned(), portcullis::digest::Digest::of(name.as_bytes())));
        let manifest = Manifest::of_files(&files.into(), vec!["ignored".to_owned()]).expect("names");
        let sign = |seal: Seal| seal.bundle(&manifest, "model").expect("a signature");
        let certified = Seal::with_certificate(key(), leaf.pem().as_bytes(), b"").expect("his certificate");
        Self {
            // Within the certificates' time, which is from 1975 on.
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            leaf: leaf.der().to_vec(),
            authority: authority.pem(),
            signed_by_key: sign(Seal::with_key(key())),
            signed_by_certificate: sign(certified),
            by_key: Trust::read(pair.public_key_pem().as_bytes()).expect("a public key"),
            by_authority: Trust::read(authority.pem().as_bytes()).expect("an authority"),
            manifest,
        }
    }
}

fn made() -> Vec<Vec<u8>> {
    let world = &*WORLD;
    assert!(
        world.by_key.verify(&world.signed_by_key, world.now).is_ok()
            && world.by_authority.verify(&world.signed_by_certificate, world.now).is_ok()
    );
    let statement = world.manifest.statement("model");
    let digest = portcullis::digest::Digest::of(b"a");
    let parts = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{ "name": "model", "digest": { "sha256": portcullis::digest::Digest::of(digest.as_bytes()).to_string() } }],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": { "method": "shards", "shard_size": 10, "hash_type": "sha256", "allow_symlinks": false, "ignore_paths": ["b/"] },
            "resources": [{ "name": "a:0:7", "algorithm": "sha256-sharded-10", "digest": digest.to_string() }],
        },
    });
    let certificate = STANDARD.encode(&world.leaf);
    let sigstore = json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": { "certificate": { "rawBytes": certificate }, "tlogEntries": [{}] },
        "dsseEnvelope": {
            "payload": STANDARD.encode(&statement),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{ "sig": "AAAA" }],
        },
    });
    vec![
        seed(0, &world.signed_by_key),
        seed(0, &world.signed_by_certificate),
        seed(0, sigstore.to_string()),
        seed(1, &statement),
        seed(1, parts.to_string()),
        seed(2, [0, 1, 0, 200, 2, b'x']),
        seed(3, [0, 10, 0, 1]),
        seed(3, [&[1], &world.leaf[..]].concat()),
        seed(4, &world.authority),
        seed(4, "identity = \"a@example.com\"\nissuer = \"https://example.com\"\n"),
    ]
}
