//! A bundle: Sigstore's JSON (v0.1 to v0.3), as OMS v1.0 narrows it, read once by the strict parser and by a closed schema.
//!
//! What OMS closes is closed, and so is `verificationMaterial`: it holds one kind of material and nothing that is not known.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use serde_json::{Map, Value};

use super::Fault;
use super::object::{closed, list, member, text};
use crate::wire::json;

/// The largest bundle, in bytes: a manifest of a hundred thousand files takes less.
pub const MAX_BUNDLE: usize = 32 << 20;

/// The most certificates in a bundle: a leaf, and more authorities between it and the root than anyone has.
const MAX_CHAIN: usize = 10;

/// The type of the payload that OMS signs.
pub(super) const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// What bundles call themselves now.
pub(super) const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// What they have called themselves.
const MEDIA_TYPES: [&str; 4] = [
    MEDIA_TYPE,
    "application/vnd.dev.sigstore.bundle+json;version=0.3",
    "application/vnd.dev.sigstore.bundle+json;version=0.2",
    "application/vnd.dev.sigstore.bundle+json;version=0.1",
];

/// By what a signature is to be verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Material {
    /// A public key, which the verifier has.
    Key {
        /// Which one, as the bundle says: SHA-256 of its PEM text in hexadecimal. Older bundles say nothing, or the key itself.
        hint: Option<String>,
    },
    /// A certificate and those of its issuers, the leaf first. At least one.
    Chain(Vec<CertificateDer<'static>>),
    /// A certificate of Sigstore's authority and an entry in its transparency log.
    Sigstore,
}

impl Material {
    /// The mode that it is of.
    #[must_use]
    pub fn mode(&self) -> &'static str {
        match self {
            Self::Key { .. } => "key",
            Self::Chain(_) => "certificate",
            Self::Sigstore => "sigstore",
        }
    }
}

/// A bundle that is well-formed. Nothing of it is verified.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// By what it is to be verified.
    pub material: Material,
    /// The statement, whose bytes are signed.
    pub payload: Vec<u8>,
    /// The signature: ECDSA, in DER.
    pub signature: Vec<u8>,
}

impl Bundle {
    /// Reads a bundle.
    ///
    /// # Errors
    /// [`Fault::BundleIsBroken`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        Self::read(bytes).map_err(Fault::BundleIsBroken)
    }

    fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_BUNDLE {
            return Err("it is larger than 32 MiB".to_owned());
        }
        let parsed = json::parse(bytes, &json::Limits::for_body(bytes.len())).map_err(|error| error.to_string())?;
        let bundle = closed(&parsed, "the bundle", &["mediaType", "verificationMaterial", "dsseEnvelope"])?;
        let media_type = text(bundle, "mediaType")?;
        if !MEDIA_TYPES.contains(&media_type) {
            return Err(format!("its media type {media_type:?} is not one of a Sigstore bundle up to v0.3"));
        }
        let material = material(member(bundle, "verificationMaterial")?)?;
        let envelope = closed(member(bundle, "dsseEnvelope")?, "the envelope", &["payload", "payloadType", "signatures"])?;
        if text(envelope, "payloadType")? != PAYLOAD_TYPE {
            return Err(format!("its payload is not of the type {PAYLOAD_TYPE}"));
        }
        let payload = decoded(envelope, "payload")?;
        let [signature] = list(envelope, "signatures")? else { return Err("it has not exactly one signature".to_owned()) };
        let signature = closed(signature, "the signature", &["sig", "keyid"])?;
        if !matches!(signature.get("keyid"), None | Some(Value::Null | Value::String(_))) {
            return Err("`keyid` is no text".to_owned());
        }
        Ok(Self { material, payload, signature: decoded(signature, "sig")? })
    }

    /// What the signature is over: DSSE's pre-authentication encoding of the payload.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        pae(&self.payload)
    }
}

/// DSSE's pre-authentication encoding (protocol v1): type and payload, each behind its length, so that neither can be moved into the other.
pub(super) fn pae(payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

fn material(value: &Value) -> Result<Material, String> {
    const KINDS: [&str; 3] = ["publicKey", "x509CertificateChain", "certificate"];
    let known = ["publicKey", "x509CertificateChain", "certificate", "tlogEntries", "timestampVerificationData"];
    let material = closed(value, "`verificationMaterial`", &known)?;
    let entries = match material.get("tlogEntries") {
        None => &[],
        Some(Value::Array(entries)) if entries.iter().all(Value::is_object) => entries.as_slice(),
        Some(_) => return Err("`tlogEntries` is no list of entries".to_owned()),
    };
    if material.get("timestampVerificationData").is_some_and(|data| !data.is_object()) {
        return Err("`timestampVerificationData` is no object".to_owned());
    }
    let kinds: Vec<(&str, &Value)> = KINDS.iter().filter_map(|kind| Some((*kind, material.get(*kind)?))).collect();
    match kinds.as_slice() {
        [("publicKey", Value::Object(key))] => {
            let hint = key.get("hint").map(|hint| hint.as_str().ok_or_else(|| "`hint` is no text".to_owned())).transpose()?;
            if hint.is_none() && !key.get("rawBytes").is_some_and(Value::is_string) {
                return Err("`publicKey` has neither `hint` nor `rawBytes`".to_owned());
            }
            Ok(Material::Key { hint: hint.map(str::to_owned) })
        }
        [("x509CertificateChain", Value::Object(chain))] => {
            let certificates = list(chain, "certificates")?;
            if certificates.is_empty() || certificates.len() > MAX_CHAIN {
                return Err(format!("its chain has not from 1 to {MAX_CHAIN} certificates"));
            }
            certificates.iter().map(certificate).collect::<Result<_, _>>().map(Material::Chain)
        }
        [("certificate", value)] => {
            certificate(value)?;
            if entries.is_empty() {
                return Err("it has a certificate of Sigstore and no entry of a transparency log".to_owned());
            }
            Ok(Material::Sigstore)
        }
        [] => Err("`verificationMaterial` has neither `publicKey` nor `x509CertificateChain` nor `certificate`".to_owned()),
        [(kind, _)] => Err(format!("`{kind}` is no object")),
        _ => Err("`verificationMaterial` has material of two modes".to_owned()),
    }
}

fn certificate(value: &Value) -> Result<CertificateDer<'static>, String> {
    let certificate = value.as_object().ok_or_else(|| "a certificate is no object".to_owned())?;
    decoded(certificate, "rawBytes").map(CertificateDer::from)
}

/// Canonical base64 of at least one byte.
fn decoded(object: &Map<String, Value>, key: &str) -> Result<Vec<u8>, String> {
    let bytes = STANDARD.decode(text(object, key)?).map_err(|_| format!("`{key}` is not base64"))?;
    if bytes.is_empty() { Err(format!("`{key}` is empty")) } else { Ok(bytes) }
}
