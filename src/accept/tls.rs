//! TLS 1.3 and 1.2 for the listener's side: loading, checking, replacing, and reading the client's certificate.
//!
//! There is no 0-RTT (rustls accepts none unless told how much) and no renegotiation (rustls has none). X25519MLKEM768
//! is preferred, because recorded traffic can be opened later. Tickets are encrypted with keys that rotate, and every
//! reload starts with new ones, so a session from before a revocation cannot be resumed after it.

use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use toml::Spanned;
use x509_parser::extensions::GeneralName;

use super::ClientCertificate;
use super::config::{Alpn, ClientAuth, TlsConfig};
use crate::clock::rfc3339;
use crate::digest::Digest;
use crate::mistake::Mistake;

/// The longest file of certificates, keys or revocation lists that is read, in bytes.
pub const MAX_FILE: u64 = 16 << 20;
/// Names of one client certificate that are kept; further ones are ignored.
pub const MAX_NAMES: usize = 64;
/// The longest name that is kept, in bytes (RFC 1035 allows 253, SPIFFE IDs 2048).
pub const MAX_NAME: usize = 2048;

/// The configuration that new handshakes use, replaceable while connections live.
#[derive(Debug)]
pub struct Tls {
    current: ArcSwap<InForce>,
    config: TlsConfig,
    folder: PathBuf,
}

#[derive(Debug)]
pub(super) struct InForce {
    server: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    ends: i64,
    lists_end: Option<i64>,
    /// The key's file, where others than its owner may read it.
    exposed: Option<PathBuf>,
}

/// What a client showed of itself in the handshake, which is to hold for each request: connections outlive certificates and revocations.
pub(super) struct Shown {
    tls: Arc<Tls>,
    chain: Vec<CertificateDer<'static>>,
    ends: i64,
    /// By what it was verified last.
    by: ArcSwap<InForce>,
}

impl Shown {
    /// Verified by the handshake, under what is in force or was a moment ago. None where nothing was shown.
    pub(super) fn new(tls: &Arc<Tls>, chain: Option<&[CertificateDer<'static>]>, by: Arc<InForce>) -> Option<Self> {
        let chain = chain.filter(|chain| !chain.is_empty())?.to_vec();
        let ends = ends(chain.get(..1)?);
        Some(Self { tls: tls.clone(), chain, ends, by: ArcSwap::new(by) })
    }

    /// Whether it holds at `now`: verified again where other files are in force.
    pub(super) fn holds(&self, now: SystemTime) -> bool {
        if seconds(now) > self.ends {
            return false;
        }
        let in_force = self.tls.current.load();
        if Arc::ptr_eq(&in_force, &self.by.load()) {
            return true;
        }
        let Some((first, others)) = self.chain.split_first() else { return false };
        let verifier = &in_force.verifier;
        let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        let holds = verifier.offer_client_auth() && verifier.verify_client_cert(first, others, now).is_ok();
        if holds {
            self.by.store(in_force.clone());
        }
        holds
    }
}

impl Tls {
    /// Loads what `config` names. Relative paths are relative to `folder` and may not leave it.
    ///
    /// # Errors
    /// Every file that cannot be read or does not hold what it should, and a key that is not the certificate's.
    pub fn load(config: &TlsConfig, folder: &Path) -> Result<Self, Vec<Mistake>> {
        let in_force = server_config(config, folder)?;
        Ok(Self { current: ArcSwap::from_pointee(in_force), config: config.clone(), folder: folder.to_owned() })
    }

    /// Puts in force for new handshakes what `other` loaded. Connections that are open go on as they are.
    pub fn follow(&self, other: &Self) {
        self.current.store(other.current());
    }

    /// Reads the same files again. All or nothing: with any mistake, what is in force stays.
    ///
    /// # Errors
    /// As [`Tls::load`].
    pub fn reload(&self) -> Result<(), Vec<Mistake>> {
        Self::load(&self.config, &self.folder).map(|loaded| self.follow(&loaded))
    }

    /// What new handshakes use.
    pub(super) fn current(&self) -> Arc<InForce> {
        self.current.load_full()
    }

    /// When the first certificate of the chain ends that it shows, in seconds since 1970.
    #[must_use]
    pub fn ends(&self) -> i64 {
        self.current.load().ends
    }

    /// When the first of the revocation lists is not believed any more, in the same seconds: its `nextUpdate`. None where there are none.
    #[must_use]
    pub fn lists_end(&self) -> Option<i64> {
        self.current.load().lists_end
    }

    /// The file of its key, where others than its owner may read it; worth a warning.
    #[must_use]
    pub fn exposed(&self) -> Option<PathBuf> {
        self.current.load().exposed.clone()
    }

    /// What has ended by `now`, and what that costs, for the operator.
    pub fn ended(&self, now: SystemTime) -> impl Iterator<Item = String> {
        let now = seconds(now);
        let since = |ends: i64| rfc3339(UNIX_EPOCH + Duration::from_secs(u64::try_from(ends).unwrap_or_default()));
        let certificate = Some(self.ends()).filter(|ends| now > *ends);
        let list = self.lists_end().filter(|ends| now > *ends);
        let certificate = certificate.map(|ends| format!("its certificate ended at {}: callers refuse it", since(ends)));
        let list = list.map(|ends| {
            format!(
                "a revocation list was good until {}: no client certificate of its authority is accepted before there is a newer one",
                since(ends)
            )
        });
        certificate.into_iter().chain(list)
    }
}

fn server_config(config: &TlsConfig, folder: &Path) -> Result<InForce, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let chain = keep(certificates(&config.certificate, folder), &mut mistakes);
    let key = keep(private_key(&config.key, folder), &mut mistakes);
    let verifier = client_verifier(config, folder, &mut mistakes);
    let alpn = config.alpn.as_ref().map_or(vec![Alpn::H2, Alpn::Http1], |alpn| alpn.get_ref().clone());
    if let (true, Some(written)) = (alpn.is_empty(), &config.alpn) {
        mistakes.push(Mistake::at(written.span(), "alpn names no protocol; \"h2\" and \"http/1.1\" are known"));
    }
    if let Some(Err(what)) = chain.as_ref().map(|chain| valid_now(chain, SystemTime::now())) {
        mistakes.push(Mistake::at(config.certificate.span(), what));
    }
    let (Some(chain), Some(key), Some((verifier, lists_end)), true) = (chain, key, verifier, mistakes.is_empty()) else {
        return Err(mistakes);
    };
    let ends = ends(&chain);
    let at = folder.join(config.key.get_ref());
    let exposed = std::fs::metadata(&at).is_ok_and(|about| about.mode() & 0o077 != 0).then_some(at);

    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| vec![Mistake::of_file(format!("TLS cannot be set up: {error}"))])?;
    // This checks that the key is the certificate's.
    let mut server = builder
        .with_client_cert_verifier(verifier.clone())
        .with_single_cert(chain, key)
        .map_err(|error| vec![Mistake::at(config.key.span(), format!("the certificate and the key do not make a pair: {error}"))])?;
    server.ticketer = aws_lc_rs::Ticketer::new().map_err(|error| vec![Mistake::of_file(format!("no key for session tickets: {error}"))])?;
    server.alpn_protocols = alpn.iter().map(|alpn| alpn.as_bytes().to_vec()).collect();
    Ok(InForce { server: Arc::new(server), verifier, ends, lists_end, exposed })
}

/// When the first certificate of `chain` ends; what cannot be read does not.
fn ends(chain: &[CertificateDer<'_>]) -> i64 {
    let each = chain.iter().filter_map(|der| x509_parser::parse_x509_certificate(der).ok());
    each.map(|(_, certificate)| certificate.validity().not_after.timestamp()).min().unwrap_or(i64::MAX)
}

impl InForce {
    pub(super) fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }
}

impl Alpn {
    fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::H2 => b"h2",
            Self::Http1 => b"http/1.1",
        }
    }
}

/// Verifies client certificates, and when it stops to believe its revocation lists.
type Verifies = (Arc<dyn ClientCertVerifier>, Option<i64>);

fn client_verifier(config: &TlsConfig, folder: &Path, mistakes: &mut Vec<Mistake>) -> Option<Verifies> {
    let auth = config.client_auth.as_ref().map_or(ClientAuth::Off, |auth| *auth.get_ref());
    if auth == ClientAuth::Off {
        for file in [&config.client_ca, &config.client_crl].into_iter().flatten() {
            mistakes.push(Mistake::at(file.span(), "this has no effect without client_auth = \"optional\" or \"required\""));
        }
        return Some((WebPkiClientVerifier::no_client_auth(), None));
    }
    let Some(file) = &config.client_ca else {
        let span = config.client_auth.as_ref().map(Spanned::span).unwrap_or_default();
        mistakes.push(Mistake::at(span, "client_auth needs client_ca, the authorities whose certificates are accepted"));
        return None;
    };
    let lists = config.client_crl.as_ref().map(|file| keep(revocations(file, folder), mistakes));
    let mut roots = RootCertStore::empty();
    for certificate in keep(certificates(file, folder), mistakes)? {
        if let Err(error) = roots.add(certificate) {
            mistakes.push(Mistake::at(file.span(), format!("not a certificate of an authority: {error}")));
            return None;
        }
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(aws_lc_rs::default_provider()));
    if auth == ClientAuth::Optional {
        builder = builder.allow_unauthenticated();
    }
    let mut lists_end = None;
    if let Some(lists) = lists {
        let lists = lists?;
        lists_end = lists.iter().filter_map(|list| next_update(list)).min();
        // A list past its nextUpdate says nothing of now, so it is not believed.
        builder = builder.with_crls(lists).enforce_revocation_expiration();
    }
    let built = builder
        .build()
        .map_err(|error| Mistake::at(file.span(), format!("client certificates cannot be verified with these files: {error}")));
    Some((keep(built, mistakes)?, lists_end))
}

fn keep<T>(result: Result<T, Mistake>, mistakes: &mut Vec<Mistake>) -> Option<T> {
    result.map_err(|mistake| mistakes.push(mistake)).ok()
}

fn read(path: &Spanned<PathBuf>, folder: &Path) -> Result<Vec<u8>, Mistake> {
    let written = path.get_ref();
    let mistake = |what: String| Mistake::at(path.span(), what);
    if written.is_relative() && leaves(written) {
        return Err(mistake("this path leaves the policy folder".to_owned()));
    }
    let whole = folder.join(written);
    let told = |error: std::io::Error| mistake(format!("{} cannot be read: {error}", written.display())).unopened(&error);
    let about = std::fs::metadata(&whole).map_err(told)?;
    if !about.is_file() || about.len() > MAX_FILE {
        return Err(mistake(format!("{} is not a file of at most {} MiB", written.display(), MAX_FILE >> 20)));
    }
    std::fs::read(&whole).map_err(told)
}

/// Whether a relative path climbs out of where it starts.
fn leaves(path: &Path) -> bool {
    let mut depth = 0i32;
    path.components().any(|component| {
        match component {
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
            _ => {}
        }
        depth < 0
    })
}

fn certificates(path: &Spanned<PathBuf>, folder: &Path) -> Result<Vec<CertificateDer<'static>>, Mistake> {
    let pem = read(path, folder)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(Mistake::at(path.span(), format!("{} holds no certificate in PEM", path.get_ref().display()))),
        Err(error) => Err(Mistake::at(path.span(), format!("{} is not PEM: {error}", path.get_ref().display()))),
    }
}

fn private_key(path: &Spanned<PathBuf>, folder: &Path) -> Result<PrivateKeyDer<'static>, Mistake> {
    let pem = zeroize::Zeroizing::new(read(path, folder)?);
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| Mistake::at(path.span(), format!("{} holds no private key in PEM", path.get_ref().display())))
}

fn revocations(path: &Spanned<PathBuf>, folder: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, Mistake> {
    let bytes = read(path, folder)?;
    if bytes.first() == Some(&0x30) {
        return Ok(vec![CertificateRevocationListDer::from(bytes)]);
    }
    let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Mistake::at(path.span(), format!("{} holds no revocation list", path.get_ref().display()))),
    }
}

/// Until when a list says what is revoked. One that does not say is of no use either (RFC 5280, 5.1.2.5), which the verifier tells.
fn next_update(list: &CertificateRevocationListDer<'_>) -> Option<i64> {
    let (_, list) = x509_parser::parse_x509_crl(list).ok()?;
    list.next_update().map(|time| time.timestamp())
}

/// Whether the first certificate of `chain` is valid at `now`.
fn valid_now(chain: &[CertificateDer<'_>], now: SystemTime) -> Result<(), &'static str> {
    let parsed = chain.first().and_then(|first| x509_parser::parse_x509_certificate(first).ok());
    let Some((_, certificate)) = parsed else { return Err("the first certificate cannot be read") };
    let now = seconds(now);
    if now > certificate.validity().not_after.timestamp() {
        return Err("the certificate has expired");
    }
    if now < certificate.validity().not_before.timestamp() {
        return Err("the certificate is not valid yet");
    }
    Ok(())
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Reads the names of a client certificate that TLS verified. `None` if it is not valid at `now`: a resumed session
/// is not verified again, and may outlive its certificate.
pub(super) fn client_certificate(der: &CertificateDer<'_>, now: SystemTime) -> Option<ClientCertificate> {
    valid_now(std::slice::from_ref(der), now).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let extension = certificate.subject_alternative_name().ok()?;
    let all = extension.map_or(&[][..], |extension| &extension.value.general_names);
    let of = |wanted: fn(&GeneralName<'_>) -> bool| all.iter().filter(move |name| wanted(name));
    let uris = of(|name| matches!(name, GeneralName::URI(_)));
    let hosts = of(|name| matches!(name, GeneralName::DNSName(_)));
    let names = uris.chain(hosts).filter_map(|name| match name {
        // A name with anything but visible ASCII could pass for another one in a log or a pattern, and so could a host
        // that is written as a URI, which an authority that looks only at URIs would sign.
        GeneralName::URI(text) | GeneralName::DNSName(text) => {
            let of_its_kind = match name {
                GeneralName::URI(_) => text.contains("://"),
                _ => !text.contains([':', '/']),
            };
            let plain = !text.is_empty() && text.len() <= MAX_NAME && text.bytes().all(|byte| byte.is_ascii_graphic());
            (plain && of_its_kind).then(|| Arc::from(*text))
        }
        _ => None,
    });
    Some(ClientCertificate { names: names.take(MAX_NAMES).collect(), fingerprint: Digest::of(der) })
}
