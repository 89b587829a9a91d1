//! Signatures over models: OpenSSF Model Signing v1.0 (OMS), in its modes `key` and `certificate`.
//!
//! The mode `sigstore` is verified by builds with the feature of that name.
//!
//! A signature is a file of its own, a Sigstore bundle ([`bundle`]): a DSSE envelope around an in-toto statement, whose predicate is the
//! [`manifest`], the list of every file of the model with its digest. [`Trust`] says whose signature counts, by public keys ([`key`]) or by
//! certificate authorities ([`certificate`]); nothing in the bundle is trusted for itself. [`sign`] makes such bundles. What it is *not*: the
//! comparison of the manifest with files, which is [`super::folder`]'s, over the bytes that are loaded.
//!
//! Stricter than the reference implementation (`model-signing` 1.1.1) on purpose: the validity of certificates is judged now and not at the
//! certificate's own first moment, the faulty encoding of its release 0.2 is not tried, and links are never followed.

pub mod bundle;
pub mod certificate;
pub mod key;
pub mod manifest;
mod object;
pub mod sign;
#[cfg(feature = "sigstore")]
mod sigstore;

use std::fmt;
use std::time::SystemTime;

use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use serde::Deserialize;

use crate::digest::Digest;

use bundle::{Bundle, Material};
use key::PublicKey;
use manifest::Manifest;

/// The largest file of trusted keys or certificates, in bytes.
pub const MAX_TRUST: usize = 1 << 20;

/// How many keys or certificates may be trusted together: enough for a rotation of several signers.
const MAX_TRUSTED: usize = 64;

/// Whose signatures count.
#[derive(Clone)]
pub enum Trust {
    /// Those of any of these keys.
    Keys(Vec<PublicKey>),
    /// Those of certificates that any of these authorities issued for signing code.
    Authorities(Vec<CertificateDer<'static>>),
    /// Those that Sigstore's authority certified to be of this identity.
    Identity(Identity),
}

/// Whom Sigstore must have seen: both are compared whole.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// An address or a URI, as it stands in the certificate.
    pub identity: String,
    /// The OpenID Connect issuer that vouched for it.
    pub issuer: String,
}

impl Trust {
    /// Reads a file: PEM of public keys, or of certificates of authorities, and not both; or two lines of TOML, `identity = "…"` and
    /// `issuer = "…"`.
    ///
    /// # Errors
    /// [`Fault`] of the operator.
    pub fn read(file: &[u8]) -> Result<Self, Fault> {
        if file.len() > MAX_TRUST {
            return Err(Fault::OperatorTrusts("the file of `trust` is larger than 1 MiB"));
        }
        if memchr::memmem::find(file, b"-----BEGIN ").is_some() {
            return Self::from_pem(file);
        }
        let identity = std::str::from_utf8(file).ok().and_then(|text| toml::from_str::<Identity>(text).ok());
        match identity.filter(|identity| !identity.identity.is_empty() && !identity.issuer.is_empty()) {
            Some(identity) => Ok(Self::Identity(identity)),
            None => Err(Fault::OperatorTrusts(
                "the file of `trust` holds no PEM block: it takes a public key, or the certificate of an authority (or, for the mode \
                 `sigstore`, `identity` and `issuer` in TOML)",
            )),
        }
    }

    fn from_pem(pem: &[u8]) -> Result<Self, Fault> {
        let mut keys = Vec::new();
        let mut authorities = Vec::new();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
            match section.map_err(|_| Fault::OperatorTrusts("the file of `trust` is not valid PEM"))? {
                (SectionKind::PublicKey, der) => keys.push(PublicKey::from_spki(&SubjectPublicKeyInfoDer::from(der))?),
                (SectionKind::Certificate, der) => authorities.push(CertificateDer::from(der)),
                (SectionKind::PrivateKey | SectionKind::EcPrivateKey | SectionKind::RsaPrivateKey, _) => {
                    return Err(Fault::OperatorTrusts(
                        "the file of `trust` holds a private key: to verify takes the public key (openssl pkey -in key.pem -pubout)",
                    ));
                }
                _ => return Err(Fault::OperatorTrusts("the file of `trust` holds something else than public keys or certificates")),
            }
        }
        if keys.len() + authorities.len() > MAX_TRUSTED {
            return Err(Fault::OperatorTrusts("the file of `trust` holds more than 64 keys or certificates"));
        }
        match (keys.is_empty(), authorities.is_empty()) {
            (false, true) => Ok(Self::Keys(keys)),
            (true, false) => {
                authorities.iter().try_for_each(certificate::is_authority)?;
                Ok(Self::Authorities(authorities))
            }
            (true, true) => Err(Fault::OperatorTrusts(
                "the file of `trust` holds no PEM block: it takes a public key, or the certificate of an authority",
            )),
            (false, false) => Err(Fault::OperatorTrusts("the file of `trust` holds keys and certificates: give either")),
        }
    }

    /// Verifies a bundle at `now`, and gives what was signed and by whom.
    ///
    /// # Errors
    /// [`Fault`] says why the signature does not count.
    pub fn verify(&self, bytes: &[u8], now: SystemTime) -> Result<Signed, Fault> {
        let bundle = Bundle::parse(bytes)?;
        let signer = match (&bundle.material, self) {
            (Material::Key { hint }, Self::Keys(keys)) => {
                let key = keys.iter().find(|key| key.verifies(&bundle.signed_bytes(), &bundle.signature));
                let key = key.ok_or_else(|| match hint {
                    Some(hint) if keys.iter().all(|key| key.hint() != *hint) => Fault::OtherKey(hint.clone()),
                    _ => Fault::WrongSignature,
                })?;
                Signer::Key { hint: key.hint() }
            }
            (Material::Chain(chain), Self::Authorities(authorities)) => {
                let leaf = certificate::verify(chain, authorities, now)?;
                if !leaf.key.verifies(&bundle.signed_bytes(), &bundle.signature) {
                    return Err(Fault::WrongSignature);
                }
                Signer::Certificate { subject: leaf.subject, fingerprint: leaf.fingerprint }
            }
            #[cfg(feature = "sigstore")]
            (Material::Sigstore, Self::Identity(identity)) => {
                sigstore::verify(bytes, &bundle.payload, identity)?;
                Signer::Identity(identity.clone())
            }
            #[cfg(not(feature = "sigstore"))]
            (Material::Sigstore, _) => return Err(Fault::NoSigstore),
            (material, trust) => return Err(Fault::OtherMode { made: material.mode(), trusted: trust.kind() }),
        };
        Ok(Signed { manifest: Manifest::from_statement(&bundle.payload)?, signer })
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Keys(_) => "public keys",
            Self::Authorities(_) => "certificates of authorities",
            Self::Identity(_) => "an identity",
        }
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keys(keys) => f.debug_tuple("Keys").field(keys).finish(),
            Self::Identity(identity) => identity.fmt(f),
            Self::Authorities(authorities) => {
                f.debug_list().entries(authorities.iter().map(|authority| Digest::of(authority.as_ref()))).finish()
            }
        }
    }
}

/// What a trusted signature says.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The files.
    pub manifest: Manifest,
    /// Who signed.
    pub signer: Signer,
}

/// Who signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signer {
    /// The holder of a key.
    Key {
        /// SHA-256 of the public key's PEM text, in hexadecimal, as bundles hint at it.
        hint: String,
    },
    /// The holder of a certificate.
    Certificate {
        /// Its subject, as RFC 4514 writes names.
        subject: String,
        /// SHA-256 of the certificate.
        fingerprint: Digest,
    },
    /// Whom Sigstore certified.
    Identity(Identity),
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { hint } => write!(f, "key {}", hint.escape_debug()),
            Self::Certificate { subject, fingerprint } => write!(f, "certificate {subject:?} ({fingerprint})"),
            Self::Identity(Identity { identity, issuer }) => write!(f, "identity {identity:?} of {issuer:?}"),
        }
    }
}

/// Why a signature does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// What is trusted cannot be.
    OperatorTrusts(&'static str),
    /// The bundle is not one, or not one that is understood.
    BundleIsBroken(String),
    /// The statement in the bundle is not one of OMS v1.0, or contradicts itself.
    StatementIsBroken(String),
    /// It was made in another mode than the one that is trusted.
    OtherMode {
        /// How it was made.
        made: &'static str,
        /// What is trusted.
        trusted: &'static str,
    },
    /// It was made with a key that is not trusted; its hint.
    OtherKey(String),
    /// The signature is not over these bytes, or not of the trusted key.
    WrongSignature,
    /// The certificate does not lead to a trusted authority, or may not sign.
    Certificate(String),
    /// It was made without a key of one's own, by Sigstore, and this build does not verify such.
    NoSigstore,
    /// Sigstore's certificate or its log's entry does not count.
    Sigstore(String),
    /// The signer's key cannot be used.
    SignerGave(&'static str),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OperatorTrusts(why) | Self::SignerGave(why) => f.write_str(why),
            Self::BundleIsBroken(why) => write!(f, "the signature is no OpenSSF Model Signing bundle: {why}"),
            Self::StatementIsBroken(why) => write!(f, "the signature's statement is not of OpenSSF Model Signing v1.0: {why}"),
            Self::OtherMode { made, trusted } => {
                write!(f, "the signature was made in the mode `{made}`, and `trust` holds {trusted}: give what it was made with")
            }
            Self::OtherKey(hint) => write!(f, "the signature was made with another key than those of `trust`: its hint is {hint:?}"),
            Self::WrongSignature => f.write_str("the signature is wrong: it is of another key, or of another statement"),
            Self::Certificate(why) => write!(f, "the signing certificate does not count: {why}"),
            Self::NoSigstore => f.write_str(
                "the signature was made in the mode `sigstore` (keyless), which this build does not verify: build it with the feature \
                 `sigstore`, or sign the folder with a key: portcullis model sign PATH --key KEY.pem --signature PATH.sig",
            ),
            Self::Sigstore(why) => write!(f, "the signature of the mode `sigstore` does not count: {why}"),
        }
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests;
