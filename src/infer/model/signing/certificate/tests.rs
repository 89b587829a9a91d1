use std::time::Duration;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
};
use serde_json::Value;

use super::super::sign::Seal;
use super::super::tests::{CURVES, by_key, edited, manifest, now, trusting};
use super::super::{Signer, Trust, key};
use super::*;

/// An authority that issues certificates.
pub(in crate::infer::model::signing) struct Authority {
    pub(in crate::infer::model::signing) certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    pub(in crate::infer::model::signing) fn root(name: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let params = Self::params(name);
        Self { certificate: params.self_signed(&key).unwrap(), issuer: Issuer::new(params, key) }
    }

    fn below(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = Self::params(name);
        change(&mut params);
        Self { certificate: params.signed_by(&key, &self.issuer).unwrap(), issuer: Issuer::new(params, key) }
    }

    pub(in crate::infer::model::signing) fn leaf(
        &self,
        name: &str,
        key: &KeyPair,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Certificate {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        change(&mut params);
        params.signed_by(key, &self.issuer).unwrap()
    }

    pub(in crate::infer::model::signing) fn trust(&self) -> Trust {
        Trust::read(self.certificate.pem().as_bytes()).unwrap()
    }
}

fn by_certificate(key: &KeyPair, leaf: &Certificate, chain: &[&Certificate]) -> Vec<u8> {
    let key = key::PrivateKey::from_pem(key.serialize_pem().as_bytes()).unwrap();
    let chain: String = chain.iter().map(|certificate| certificate.pem()).collect();
    Seal::with_certificate(key, leaf.pem().as_bytes(), chain.as_bytes()).unwrap().bundle(&manifest(), "m").unwrap()
}

fn why(trust: &Trust, bundle: &[u8]) -> String {
    match trust.verify(bundle, now()) {
        Err(Fault::Certificate(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_certificate_counts_where_its_path_leads_to_a_trusted_authority() {
    let root = Authority::root("root");
    let middle = root.below("middle", |_| ());
    for curve in CURVES {
        let key = KeyPair::generate_for(curve).unwrap();
        let leaf = middle.leaf("signer", &key, |_| ());
        let bundle = by_certificate(&key, &leaf, &[&middle.certificate, &root.certificate]);
        let signed = root.trust().verify(&bundle, now()).unwrap();
        assert_eq!(signed.signer, Signer::Certificate { subject: "CN=signer".into(), fingerprint: Digest::of(leaf.der()) });
        assert!(why(&Authority::root("other").trust(), &bundle).contains("no authority in `trust`"));
        // An authority of the same name is not the same authority.
        assert!(why(&Authority::root("root").trust(), &bundle).contains("not signed by the one"));
        assert!(why(&root.trust(), &by_certificate(&key, &leaf, &[])).contains("no authority in `trust`"));
        // The root need not be in the chain, and the order of the chain says nothing.
        assert!(root.trust().verify(&by_certificate(&key, &leaf, &[&middle.certificate]), now()).is_ok());
        assert!(root.trust().verify(&by_certificate(&key, &leaf, &[&root.certificate, &middle.certificate]), now()).is_ok());
        // Modes are not mixed: the leaf's own key in `trust` does not make the certificate's signature one of the mode `key`.
        assert!(matches!(trusting(&key).verify(&bundle, now()), Err(Fault::OtherMode { .. })));
        assert!(matches!(root.trust().verify(&by_key(&key), now()), Err(Fault::OtherMode { .. })));
        // The chain is another's: the statement is not signed by that leaf.
        let other = KeyPair::generate_for(curve).unwrap();
        let swapped: Value =
            serde_json::from_slice(&by_certificate(&other, &middle.leaf("x", &other, |_| ()), &[&middle.certificate])).unwrap();
        let mixed = edited(&bundle, |bundle| bundle["verificationMaterial"] = swapped["verificationMaterial"].clone());
        assert_eq!(root.trust().verify(&mixed, now()).unwrap_err(), Fault::WrongSignature);
    }
}

#[test]
fn a_certificate_that_is_not_for_signing_is_refused() {
    let root = Authority::root("root");
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let judged = |change: fn(&mut CertificateParams)| root.trust().verify(&by_certificate(&key, &root.leaf("x", &key, change), &[]), now());
    let refused = |change: fn(&mut CertificateParams)| judged(change).unwrap_err().to_string();
    assert!(refused(|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]).contains("codeSigning"));
    assert!(refused(|leaf| leaf.key_usages = vec![KeyUsagePurpose::KeyEncipherment]).contains("digitalSignature"));
    assert!(
        refused(|leaf| {
            leaf.key_usages.clear();
            leaf.extended_key_usages.clear();
        })
        .contains("does not say")
    );
    // Either of the two is enough, as it is to the reference.
    assert!(judged(|leaf| leaf.key_usages.clear()).is_ok() && judged(|leaf| leaf.extended_key_usages.clear()).is_ok());
    let middle = root.below("no issuer", |middle| middle.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    assert!(why(&root.trust(), &by_certificate(&key, &middle.leaf("x", &key, |_| ()), &[&middle.certificate])).contains("no authority"));
    let middle = root.below("tls", |middle| middle.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert!(why(&root.trust(), &by_certificate(&key, &middle.leaf("x", &key, |_| ()), &[&middle.certificate])).contains("codeSigning"));
}

#[test]
fn validity_is_judged_now_and_not_when_the_certificate_was_made() {
    let root = Authority::root("root");
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let leaf = root.leaf("x", &key, |leaf| {
        leaf.not_before = rcgen::date_time_ymd(2025, 1, 1);
        leaf.not_after = rcgen::date_time_ymd(2025, 2, 1);
    });
    let bundle = by_certificate(&key, &leaf, &[]);
    let at = |seconds: u64| root.trust().verify(&bundle, SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    let (from, to) = (1_735_689_600, 1_738_368_000);
    assert!(at(from).is_ok() && at(to).is_ok());
    assert!(at(from - 1).unwrap_err().to_string().contains("not valid yet"));
    assert!(at(to + 1).unwrap_err().to_string().contains("expired"));
    let old = {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let mut params = Authority::params("old");
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        Authority { certificate: params.self_signed(&key).unwrap(), issuer: Issuer::new(params, key) }
    };
    assert!(why(&old.trust(), &by_certificate(&key, &old.leaf("x", &key, |_| ()), &[])).contains("no authority in `trust` is valid"));
}

#[test]
fn a_signers_certificate_issues_no_others() {
    let root = Authority::root("root");
    let signers_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let signers = root.leaf("signer", &signers_key, |_| ());
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "signer");
    let as_authority = Authority { certificate: root.leaf("signer", &signers_key, |_| ()), issuer: Issuer::new(params, signers_key) };
    for is_authority in [false, true] {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let forged = as_authority.leaf("forged", &key, |leaf| {
            if is_authority {
                leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }
        });
        let told = why(&root.trust(), &by_certificate(&key, &forged, &[&signers]));
        assert!(told.contains("is no authority") || told.contains("no authority in `trust`"), "{told}");
    }
}

/// `openssl req -x509` and the reference's own tests make such.
#[test]
fn a_signing_certificate_that_is_marked_as_an_authority_is_followed_as_strictly() {
    let authority = |leaf: &mut CertificateParams| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = Authority::root("root");
    let middle = root.below("middle", |_| ());
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let leaf = middle.leaf("signer", &key, authority);
    let bundle = by_certificate(&key, &leaf, &[&middle.certificate]);
    assert!(root.trust().verify(&bundle, now()).is_ok() && middle.trust().verify(&bundle, now()).is_ok());
    assert!(why(&Authority::root("root").trust(), &bundle).contains("no authority in `trust`"));
    assert!(why(&root.trust(), &by_certificate(&key, &leaf, &[])).contains("no authority in `trust`"));
    assert!(why(&root.trust(), &by_certificate(&key, &leaf, &[&root.certificate])).contains("no authority in `trust`"));

    let judged = |change: fn(&mut CertificateParams), below: fn(&mut CertificateParams)| {
        let middle = root.below("middle", below);
        let leaf = middle.leaf("signer", &key, |leaf| {
            authority(leaf);
            change(leaf);
        });
        root.trust().verify(&by_certificate(&key, &leaf, &[&middle.certificate]), now())
    };
    assert!(judged(|_| (), |_| ()).is_ok());
    assert!(judged(|leaf| leaf.not_after = rcgen::date_time_ymd(2020, 1, 1), |_| ()).is_err());
    assert!(judged(|_| (), |middle| middle.not_after = rcgen::date_time_ymd(2020, 1, 1)).is_err());
    assert!(judged(|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth], |_| ()).is_err());
    assert!(judged(|_| (), |middle| middle.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]).is_err());
    assert!(judged(|_| (), |middle| middle.key_usages = vec![KeyUsagePurpose::DigitalSignature]).is_err());
    assert!(judged(|_| (), |middle| middle.is_ca = IsCa::ExplicitNoCa).is_err());
    let critical = |leaf: &mut CertificateParams| {
        let mut unknown = rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
        unknown.set_criticality(true);
        leaf.custom_extensions.push(unknown);
    };
    assert!(judged(critical, |_| ()).is_err());
    assert!(judged(|_| (), critical).is_err());
    let constrained = |middle: &mut CertificateParams| {
        let permitted_subtrees = vec![rcgen::GeneralSubtree::DnsName("example".into())];
        middle.name_constraints = Some(rcgen::NameConstraints { permitted_subtrees, excluded_subtrees: vec![] });
    };
    assert!(judged(|_| (), constrained).is_err());
    // Nor may an authority with bounds on names vouch this way where it is the trusted one itself.
    let bounded = root.below("bounded", constrained);
    let leaf = bounded.leaf("signer", &key, authority);
    assert!(why(&bounded.trust(), &by_certificate(&key, &leaf, &[])).contains("no authority in `trust`"));
    let plain = root.below("plain", |_| ());
    let leaf = plain.leaf("signer", &key, authority);
    assert!(plain.trust().verify(&by_certificate(&key, &leaf, &[]), now()).is_ok());

    // A path length of none allows the signing certificate, which counts as no authority in between, and nothing more.
    let short = root.below("short", |middle| middle.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let leaf = short.leaf("signer", &key, authority);
    assert!(root.trust().verify(&by_certificate(&key, &leaf, &[&short.certificate]), now()).is_ok());
    let below = short.below("below", |_| ());
    let leaf = below.leaf("signer", &key, authority);
    assert!(why(&root.trust(), &by_certificate(&key, &leaf, &[&below.certificate, &short.certificate])).contains("longer"));

    // One that issued itself, trusted as it is.
    let mut own = Authority::params("own");
    own.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
    let own = own.self_signed(&key).unwrap();
    assert!(Trust::read(own.pem().as_bytes()).unwrap().verify(&by_certificate(&key, &own, &[]), now()).is_ok());
}

#[test]
fn a_certificate_of_another_key_signs_nothing() {
    let root = Authority::root("root");
    let (key, other) = (KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(), KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap());
    let leaf = root.leaf("x", &other, |_| ());
    let private = key::PrivateKey::from_pem(key.serialize_pem().as_bytes()).unwrap();
    assert!(matches!(Seal::with_certificate(private, leaf.pem().as_bytes(), b""), Err(Fault::SignerGave(_))));
}
