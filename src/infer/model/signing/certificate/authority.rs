//! The path of a signing certificate that is marked as an authority itself, which `webpki` takes for no end entity.
//!
//! RFC 5280, 6.1, without what such paths do not need: it is the first issuer that fits and no search, names are compared byte by byte,
//! and name constraints are refused where they stand rather than applied.

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{ASN1Time, X509Certificate};

use super::{Fault, parsed, refused};

/// Whether a certificate may issue others.
pub(super) fn may_issue(certificate: &X509Certificate<'_>) -> bool {
    let issues = matches!(certificate.basic_constraints(), Ok(Some(constraints)) if constraints.value.ca);
    let signs = match certificate.key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.key_cert_sign()),
        Err(_) => false,
    };
    issues && signs
}

/// Follows `leaf` through `between` to one of `trusted`, whose own validity was judged.
pub(super) fn follow(
    leaf: &X509Certificate<'_>,
    between: &[CertificateDer<'static>],
    trusted: &[&CertificateDer<'static>],
    now: ASN1Time,
) -> Result<(), Fault> {
    let between: Vec<(&CertificateDer<'_>, X509Certificate<'_>)> =
        between.iter().map(|der| Ok((der, parsed(der)?))).collect::<Result<_, Fault>>()?;
    let trusted: Vec<(&CertificateDer<'_>, X509Certificate<'_>)> =
        trusted.iter().map(|der| Ok((*der, parsed(der)?))).collect::<Result<_, Fault>>()?;
    // Bounds on names are not read here, so that an authority which has them may not vouch this way.
    let bounded = |issuer: &X509Certificate<'_>| issuer.name_constraints().map_or(true, |bounds| bounds.is_some());
    let trusted: Vec<_> = trusted.into_iter().filter(|(_, issuer)| !bounded(issuer)).collect();
    is_plain(leaf, now)?;
    let mut current = leaf;
    // Each step takes another certificate, so the path ends.
    let mut taken = vec![false; between.len()];
    // How many authorities stand between the signing certificate and the next issuer; those that issued themselves do not count.
    let mut below = 0;
    loop {
        if trusted.iter().any(|(der, issuer)| issued(current, der, issuer) && length_allows(issuer, below)) {
            return Ok(());
        }
        let next = between.iter().enumerate().find(|(at, (der, issuer))| !taken[*at] && may_issue(issuer) && issued(current, der, issuer));
        let Some((at, (_, issuer))) = next else { return Err(refused("it leads to no authority in `trust`")) };
        is_plain(issuer, now)?;
        if !length_allows(issuer, below) {
            return Err(refused("the path is longer than one of its authorities allows"));
        }
        if issuer.extended_key_usage().is_ok_and(|purposes| purposes.is_some_and(|purposes| !purposes.value.code_signing)) {
            return Err(refused("one that issued it names purposes and codeSigning is not among them"));
        }
        taken[at] = true;
        below += usize::from(issuer.subject().as_raw() != issuer.issuer().as_raw());
        current = issuer;
    }
}

/// Valid now, and without an extension that would have to be understood and is not.
fn is_plain(certificate: &X509Certificate<'_>, now: ASN1Time) -> Result<(), Fault> {
    if !certificate.validity().is_valid_at(now) {
        return Err(refused("it, or one that it leads to, has expired or is not valid yet. Sign again with one that is valid"));
    }
    // A map of them refuses an extension that stands twice.
    if certificate.extensions_map().is_err() {
        return Err(refused("an extension stands twice in it, or in one that it leads to"));
    }
    let understood = certificate.extensions().iter().all(|extension| {
        let known = matches!(
            extension.parsed_extension(),
            ParsedExtension::BasicConstraints(_) | ParsedExtension::KeyUsage(_) | ParsedExtension::ExtendedKeyUsage(_)
        );
        let constrains = matches!(extension.parsed_extension(), ParsedExtension::NameConstraints(_));
        !constrains && (known || !extension.critical) && extension.parsed_extension().error().is_none()
    });
    if understood { Ok(()) } else { Err(refused("it, or one that it leads to, has an extension that is not understood")) }
}

/// Whether `issuer` is named as the issuer of `certificate` and its key signed it.
fn issued(certificate: &X509Certificate<'_>, der: &CertificateDer<'_>, issuer: &X509Certificate<'_>) -> bool {
    if certificate.issuer().as_raw() != issuer.subject().as_raw() {
        return false;
    }
    let Ok(key) = EndEntityCert::try_from(der) else { return false };
    let signature = &certificate.signature_value.data;
    // The key's own kind decides which of them can hold; which one the certificate names adds nothing.
    webpki::ALL_VERIFICATION_ALGS
        .iter()
        .any(|algorithm| key.verify_signature(*algorithm, certificate.tbs_certificate.as_ref(), signature).is_ok())
}

fn length_allows(issuer: &X509Certificate<'_>, below: usize) -> bool {
    let constraints = issuer.basic_constraints().ok().flatten();
    let limit = constraints.and_then(|constraints| constraints.value.path_len_constraint);
    limit.is_none_or(|limit| below <= usize::try_from(limit).unwrap_or(usize::MAX))
}
