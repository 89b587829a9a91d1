//! Certificates: from the signing one to an authority that is trusted, every step of it judged now.
//!
//! A path is validated by `webpki` (RFC 5280). What that does not look at is added: the signing certificate must be meant for signing
//! (`digitalSignature`, and `codeSigning` where it names purposes at all), and a trusted authority must be one, and valid itself. A signing
//! certificate that is marked as an authority, as `openssl req -x509` makes them and as the reference's own tests have, is no end entity to
//! `webpki`; its path is walked in `authority`. What it is *not*: a check of revocation. Take a compromised authority out of `trust`.

mod authority;

use std::time::{SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use super::Fault;
use super::key::PublicKey;
use crate::digest::Digest;

/// id-kp-codeSigning, 1.3.6.1.5.5.7.3.3 (RFC 5280, 4.2.1.12): the content of its DER.
const CODE_SIGNING: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x03];

/// Whose certificate it is, once it is known to count.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) key: PublicKey,
    pub(super) subject: String,
    pub(super) fingerprint: Digest,
}

/// Whether a certificate can be trusted as an authority.
pub(super) fn is_authority(der: &CertificateDer<'static>) -> Result<(), Fault> {
    let refused = |why| Err(Fault::OperatorTrusts(why));
    let Ok(certificate) = parsed(der) else { return refused("a certificate of `trust` cannot be read") };
    if !authority::may_issue(&certificate) {
        return refused(
            "a certificate of `trust` is no authority's: whoever holds its key could issue others. Give the certificate that issued it, \
             or sign with a key and give its public key",
        );
    }
    if webpki::anchor_from_trusted_cert(der).is_err() { refused("a certificate of `trust` cannot be read") } else { Ok(()) }
}

/// Follows `chain`, the signing certificate first, to one of `authorities`.
pub(super) fn verify(chain: &[CertificateDer<'static>], authorities: &[CertificateDer<'static>], now: SystemTime) -> Result<Leaf, Fault> {
    let Some((der, between)) = chain.split_first() else { return Err(refused("there is none")) };
    let leaf = parsed(der)?;
    may_sign(&leaf)?;
    let since = now.duration_since(UNIX_EPOCH).map_err(|_| refused("this machine's clock stands before 1970"))?;
    let time = i64::try_from(since.as_secs()).ok().and_then(|seconds| ASN1Time::from_timestamp(seconds).ok());
    let time = time.ok_or_else(|| refused("this machine's clock stands past year 9999"))?;
    let mut trusted = Vec::new();
    for authority in authorities {
        if parsed(authority)?.validity().is_valid_at(time) {
            trusted.push(authority);
        }
    }
    if trusted.is_empty() {
        return Err(refused("no authority in `trust` is valid now"));
    }
    let entity = EndEntityCert::try_from(der).map_err(|error| refused(why(&error)))?;
    if leaf.is_ca() {
        authority::follow(&leaf, between, &trusted, time)?;
    } else {
        let anchors: Result<Vec<_>, _> = trusted.iter().map(|authority| webpki::anchor_from_trusted_cert(authority)).collect();
        let anchors = anchors.map_err(|error| refused(why(&error)))?;
        let (at, usage) = (UnixTime::since_unix_epoch(since), KeyUsage::required_if_present(CODE_SIGNING));
        let path = entity.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, between, at, usage, None, None);
        let path = path.map_err(|error| refused(why(&error)))?;
        // webpki does not look at the key usage of those in between.
        for issuer in path.intermediate_certificates() {
            if !authority::may_issue(&parsed(&issuer.der())?) {
                return Err(refused("one that issued it is no authority"));
            }
        }
    }
    Ok(Leaf {
        // From the parser that followed the path, so that no other reading of the certificate gives another key.
        key: PublicKey::from_spki(&entity.subject_public_key_info())
            .map_err(|_| refused("its key is no elliptic-curve key on P-256, P-384 or P-521"))?,
        subject: leaf.subject().to_string(),
        fingerprint: Digest::of(der),
    })
}

/// A certificate and nothing behind it.
fn parsed<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Fault> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(refused("a certificate cannot be read")),
    }
}

/// What it may be used for, if it says so, must be signing; and it must say so by one of the two ways, as the reference asks too.
fn may_sign(leaf: &X509Certificate<'_>) -> Result<(), Fault> {
    let unreadable = |_| refused("its extensions cannot be read, or stand twice");
    let usage = leaf.key_usage().map_err(unreadable)?;
    let purposes = leaf.extended_key_usage().map_err(unreadable)?;
    if usage.as_ref().is_some_and(|usage| !usage.value.digital_signature()) {
        return Err(refused("its key usage leaves out digitalSignature"));
    }
    if purposes.as_ref().is_some_and(|purposes| !purposes.value.code_signing) {
        return Err(refused("it names purposes and codeSigning is not among them"));
    }
    if usage.is_none() && purposes.is_none() {
        return Err(refused("it does not say that it is for signing, by the key usage digitalSignature or the purpose codeSigning"));
    }
    Ok(())
}

fn refused(why: impl Into<String>) -> Fault {
    Fault::Certificate(why.into())
}

/// In words for whoever signs.
fn why(error: &webpki::Error) -> String {
    match error {
        webpki::Error::CertExpired { .. } => "it, or one that it leads to, has expired. Sign again with one that is valid".to_owned(),
        webpki::Error::CertNotValidYet { .. } => "it, or one that it leads to, is not valid yet".to_owned(),
        webpki::Error::UnknownIssuer => "it leads to no authority in `trust`".to_owned(),
        webpki::Error::EndEntityUsedAsCa => "one that issued it is no authority".to_owned(),
        webpki::Error::InvalidSignatureForPublicKey => "it was not signed by the one that it names as its issuer".to_owned(),
        webpki::Error::RequiredEkuNotFoundContext(_) => "one that issued it names purposes and codeSigning is not among them".to_owned(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
pub(super) mod tests;
