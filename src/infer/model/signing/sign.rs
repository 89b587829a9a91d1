//! Making signatures: a manifest of files becomes a bundle that `model-signing` and this program verify.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::bundle::{MEDIA_TYPE, PAYLOAD_TYPE, pae};
use super::key::{PrivateKey, PublicKey};
use super::manifest::Manifest;
use super::{Fault, Signer};
use crate::digest::Digest;

/// Who signs.
pub struct Seal {
    key: PrivateKey,
    /// The certificate of the key, and those of its issuers; none in the mode `key`.
    chain: Vec<CertificateDer<'static>>,
}

impl Seal {
    /// Signs with a key alone: the verifier has its public key.
    #[must_use]
    pub fn with_key(key: PrivateKey) -> Self {
        Self { key, chain: Vec::new() }
    }

    /// Signs with a key and its certificate: the verifier has that of an authority. PEM; `chain` holds those between the two.
    ///
    /// # Errors
    /// The certificate is not the key's, or there is not exactly one, or a file is not PEM.
    pub fn with_certificate(key: PrivateKey, certificate: &[u8], chain: &[u8]) -> Result<Self, Fault> {
        let read = |pem: &[u8], why: &'static str| -> Result<Vec<CertificateDer<'static>>, Fault> {
            CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| Fault::SignerGave(why))
        };
        let mut all = read(certificate, "the file of `--certificate` is not valid PEM")?;
        let [leaf] = all.as_slice() else {
            return Err(Fault::SignerGave("the file of `--certificate` holds not exactly one certificate: its issuers go into `--chain`"));
        };
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| Fault::SignerGave("the certificate cannot be read"))?;
        let of_certificate = PublicKey::from_spki(&SubjectPublicKeyInfoDer::from(parsed.public_key().raw)).ok();
        if of_certificate != Some(key.public()?) {
            return Err(Fault::SignerGave("the certificate is not that of the key"));
        }
        all.extend(read(chain, "the file of `--chain` is not valid PEM")?);
        Ok(Self { key, chain: all })
    }

    /// Who that is, as a verifier will say.
    ///
    /// # Errors
    /// The key has no public key, or the certificate cannot be read.
    pub fn signer(&self) -> Result<Signer, Fault> {
        match self.chain.first() {
            None => Ok(Signer::Key { hint: self.key.public()?.hint() }),
            Some(der) => {
                let (_, leaf) = X509Certificate::from_der(der).map_err(|_| Fault::SignerGave("the certificate cannot be read"))?;
                Ok(Signer::Certificate { subject: leaf.subject().to_string(), fingerprint: Digest::of(der) })
            }
        }
    }

    /// The bundle over a manifest, for a model of this name.
    ///
    /// # Errors
    /// The key does not sign.
    pub fn bundle(&self, manifest: &Manifest, name: &str) -> Result<Vec<u8>, Fault> {
        let payload = manifest.statement(name);
        let signature = self.key.sign(&pae(&payload))?;
        let certificates: Vec<Value> = self.chain.iter().map(|der| json!({ "rawBytes": STANDARD.encode(der) })).collect();
        let material = if certificates.is_empty() {
            json!({ "publicKey": { "hint": self.key.public()?.hint() }, "tlogEntries": [] })
        } else {
            json!({ "x509CertificateChain": { "certificates": certificates }, "tlogEntries": [] })
        };
        let bundle = json!({
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": material,
            "dsseEnvelope": {
                "payload": STANDARD.encode(&payload),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{ "sig": STANDARD.encode(&signature), "keyid": "" }],
            },
        });
        Ok(bundle.to_string().into_bytes())
    }
}
