//! Keys: ECDSA on P-256, P-384 and P-521, with SHA-256, SHA-384 and SHA-512, the three that OMS v1.0 asks for.

use std::fmt;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1,
    ECDSA_P521_SHA512_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, EcdsaVerificationAlgorithm, KeyPair, UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::{PemObject, SectionKind};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;
use zeroize::Zeroizing;

use super::Fault;
use crate::digest::Digest;

/// The largest file of a private key, in bytes.
pub const MAX_KEY: usize = 64 << 10;

/// How many characters a line of PEM has (RFC 7468).
const PEM_LINE: usize = 64;

/// A public key.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    curve: Curve,
    /// `SubjectPublicKeyInfo`, in DER.
    spki: Vec<u8>,
    /// The point alone, which is what is verified with.
    point: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    fn algorithm(self) -> &'static EcdsaVerificationAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_ASN1,
            Self::P384 => &ECDSA_P384_SHA384_ASN1,
            Self::P521 => &ECDSA_P521_SHA512_ASN1,
        }
    }
}

impl PublicKey {
    /// Reads a `SubjectPublicKeyInfo`.
    ///
    /// # Errors
    /// It is of another kind than those three, or broken.
    pub fn from_spki(der: &SubjectPublicKeyInfoDer<'_>) -> Result<Self, Fault> {
        let refused =
            Fault::OperatorTrusts("a key is no elliptic-curve key on P-256, P-384 or P-521, which are those that models are signed with");
        let (rest, spki) = SubjectPublicKeyInfo::from_der(der).map_err(|_| refused.clone())?;
        let curve = spki.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
        let curve = match curve {
            Some(oid) if oid == OID_EC_P256 => Curve::P256,
            Some(oid) if oid == OID_NIST_EC_P384 => Curve::P384,
            Some(oid) if oid == OID_NIST_EC_P521 => Curve::P521,
            _ => return Err(refused),
        };
        if !rest.is_empty() || spki.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY {
            return Err(refused);
        }
        Ok(Self { curve, spki: der.to_vec(), point: spki.subject_public_key.data.to_vec() })
    }

    /// Whether `signature` is this key's over `message`.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.curve.algorithm(), &self.point).verify(message, signature).is_ok()
    }

    /// By what bundles name it: SHA-256 of its PEM text, in hexadecimal.
    #[must_use]
    pub fn hint(&self) -> String {
        let text = STANDARD.encode(&self.spki);
        let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
        for line in text.as_bytes().chunks(PEM_LINE) {
            pem.extend(line.iter().map(|byte| char::from(*byte)));
            pem.push('\n');
        }
        pem.push_str("-----END PUBLIC KEY-----\n");
        Digest::of(pem.as_bytes()).to_string()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({:?})", self.curve, Digest::of(&self.spki))
    }
}

/// A private key. It has no `Debug`.
pub struct PrivateKey(EcdsaKeyPair);

impl PrivateKey {
    /// Reads the PEM of an unencrypted key, in PKCS #8 or in SEC 1 (RFC 5915), before which openssl may have put the curve's parameters.
    ///
    /// # Errors
    /// [`Fault::SignerGave`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, Fault> {
        const ALGORITHMS: [&EcdsaSigningAlgorithm; 3] =
            [&ECDSA_P256_SHA256_ASN1_SIGNING, &ECDSA_P384_SHA384_ASN1_SIGNING, &ECDSA_P521_SHA512_ASN1_SIGNING];
        if pem.len() > MAX_KEY {
            return Err(Fault::SignerGave("the key's file is larger than 64 KiB"));
        }
        if memchr::memmem::find(pem, b"ENCRYPTED").is_some() {
            return Err(Fault::SignerGave("the key is encrypted: decrypt it first (openssl pkey -in key.pem -out plain.pem)"));
        }
        let mut found = None;
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
            match section.map_err(|_| Fault::SignerGave("the key's file is not valid PEM"))? {
                (SectionKind::PrivateKey | SectionKind::EcPrivateKey, der) if found.is_none() => found = Some(Zeroizing::new(der)),
                (SectionKind::PrivateKey | SectionKind::EcPrivateKey, _) => return Err(Fault::SignerGave("the key's file holds two keys")),
                _ => {}
            }
        }
        let der = found
            .ok_or(Fault::SignerGave("the key's file holds no private key in PEM (openssl ecparam -name prime256v1 -genkey -noout)"))?;
        let pair = ALGORITHMS.iter().find_map(|algorithm| EcdsaKeyPair::from_private_key_der(algorithm, &der).ok());
        pair.map(Self).ok_or(Fault::SignerGave(
            "the key is no elliptic-curve key on P-256, P-384 or P-521, which are those that models are signed with",
        ))
    }

    /// Its public key.
    ///
    /// # Errors
    /// The library could not write it out.
    pub fn public(&self) -> Result<PublicKey, Fault> {
        let der: PublicKeyX509Der<'_> = self.0.public_key().as_der().map_err(|_| Fault::SignerGave("the key has no public key"))?;
        PublicKey::from_spki(&SubjectPublicKeyInfoDer::from(der.as_ref()))
    }

    /// Signs; ECDSA, in DER.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Fault> {
        let signature = self.0.sign(&SystemRandom::new(), message).map_err(|_| Fault::SignerGave("the key does not sign"))?;
        Ok(signature.as_ref().to_vec())
    }
}
