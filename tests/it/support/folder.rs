//! A policy folder, written file by file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use portcullis::digest::Digest;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer as Signs, KeyPair, KeyUsagePurpose, SanType,
    date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{Gateway, KEY, PROGRAM};

/// A small classifier: 64 numbers in, ten probabilities and a label out.
const DIGITS: &[u8] = include_bytes!("../../../policies/models/digits.onnx");

/// Who may do what, in most tests.
const ACCESS: &str = r#"@id("apps use public models and those of their tenant")
permit (principal in Role::"app", action, resource)
when { resource.public || resource.tenants.contains(principal.tenant) };
"#;

/// A folder of its own for one test, gone when the test is.
pub struct Folder {
    home: tempfile::TempDir,
    authority: Signs<'static, KeyPair>,
}

/// A certificate and its key, as a client shows them.
pub struct Shown(pub Vec<CertificateDer<'static>>, pub PrivateKeyDer<'static>);

impl Folder {
    /// Certificates, keys, one API key and the usual Cedar; no model yet.
    pub fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        authority.distinguished_name.push(DnType::CommonName, "Authority of a test");
        let key = KeyPair::generate().unwrap();
        let pem = authority.self_signed(&key).unwrap().pem();
        let folder = Self { home, authority: Signs::new(authority, key) };
        folder.write("tls/ca.pem", pem);
        folder.server_certificate("first");
        folder.write("tls/provenance.key", portcullis::prove::key::Key::generate_pem().expose());
        folder.gateway("", "");
        folder.callers("");
        folder.write("access.cedar", ACCESS);
        folder
    }

    /// `gateway.toml`, with more keys in `[accept]` and in `[accept.tls]`.
    pub fn gateway(&self, accept: &str, tls: &str) {
        self.write(
            "gateway.toml",
            format!(
                "[accept]\nlisten = \"127.0.0.1:0\"\n{accept}\n\n[accept.tls]\ncertificate = \"tls/server.pem\"\nkey = \"tls/server.key\"\n{tls}\n\n\
                 [admin]\nlisten = \"127.0.0.1:0\"\n\n\
                 [prove]\ndirectory = \"../log\"\norigin = \"test.example/node\"\nkey = \"tls/provenance.key\"\n\n\
                 [record]\nsecurity_log = \"../security.log\"\n"
            ),
        );
    }

    /// `callers.toml`: the API key that every folder knows, and `more`.
    pub fn callers(&self, more: &str) {
        let digest = Digest::of(KEY.as_bytes());
        self.write(
            "callers.toml",
            format!("[[api_key]]\nid = \"app\"\nsha256 = \"{digest}\"\ntenant = \"acme\"\nroles = [\"app\"]\ntier = \"gold\"\n\n{more}"),
        );
    }

    /// A model's file.
    pub fn model(&self, name: &str, text: impl AsRef<str>) -> &Self {
        self.write(&format!("models/{name}.toml"), text.as_ref());
        self
    }

    /// The digits classifier, in the gateway's own process.
    pub fn digits(&self, more: &str) -> &Self {
        self.write("models/digits.onnx", DIGITS);
        let digest = Digest::of(DIGITS);
        self.model(
            "digits",
            format!(
                "name = \"digits\"\nversion = \"1\"\npublic = true\n[backend.onnx]\npath = \"digits.onnx\"\nsha256 = \"{digest}\"\n{more}"
            ),
        )
    }

    /// A model behind `upstream`, open to tenant `acme`. Without a `[budget]` in `more` it is as good as unlimited.
    pub fn upstream(&self, name: &str, protocol: &str, upstream: &super::Upstream, backend: &str, more: &str) -> &Self {
        let budget = if more.contains("[budget") {
            ""
        } else {
            "[budget.default]\nrequests = { rate = \"100000/s\", burst = 100000 }\nin_flight = 10000\n"
        };
        let url = upstream.url();
        self.model(
            name,
            format!(
                "name = \"{name}\"\nversion = \"7\"\ntenants = [\"acme\"]\n[backend.upstream]\nprotocol = \"{protocol}\"\nurls = [\"{url}\"]\n{backend}\n{budget}{more}"
            ),
        )
    }

    /// Writes a file of the folder, whole, as editors do: beside it, then in its place.
    pub fn write(&self, file: &str, bytes: impl AsRef<[u8]>) -> &Self {
        let path = self.policies().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let beside = path.with_extension("beside");
        fs::write(&beside, bytes).unwrap();
        fs::rename(&beside, &path).unwrap();
        self
    }

    /// A file of the folder.
    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.policies().join(file)).unwrap()
    }

    /// A new certificate for the server, for `localhost` and this machine; `name` stands in its subject.
    pub fn server_certificate(&self, name: &str) {
        let mut server = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        server.distinguished_name.push(DnType::CommonName, name);
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        server.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let certificate = server.signed_by(&key, &self.authority).unwrap().pem();
        self.write("tls/server.key", key.serialize_pem());
        self.write("tls/server.pem", certificate);
    }

    /// A client certificate of the folder's authority with the URI `san`.
    pub fn client_certificate(&self, san: &str) -> Shown {
        let mut client = CertificateParams::new(Vec::new()).unwrap();
        client.subject_alt_names = vec![SanType::URI(san.try_into().unwrap())];
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        client.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let certificate = client.signed_by(&key, &self.authority).unwrap();
        Shown(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    /// A revocation list of the folder's authority that names nobody, to be followed by another when that year begins.
    pub fn revocation_list(&self, year: i32) -> String {
        let params = rcgen::CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(year, 1, 1),
            crl_number: 1u64.into(),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.authority).unwrap().pem().unwrap()
    }

    /// The authority that clients trust.
    pub fn roots(&self) -> Arc<rustls::RootCertStore> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.read("tls/ca.pem").as_bytes()).unwrap()).unwrap();
        Arc::new(roots)
    }

    /// The folder itself.
    pub fn policies(&self) -> PathBuf {
        self.home.path().join("policies")
    }

    /// The provenance log.
    pub fn log(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// What the security log holds, a JSON object a line.
    pub fn security_log(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.home.path().join("security.log")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Serves the folder.
    pub async fn serve(&self) -> Gateway {
        Gateway::start(self, &[]).await
    }

    /// Runs a command of the program to its end, in the folder's home.
    pub fn run(&self, arguments: &[&str]) -> Output {
        Command::new(PROGRAM).args(arguments).current_dir(self.home.path()).output().unwrap()
    }

    /// `log verify`: whether it holds, and the report.
    pub fn verified_log(&self) -> serde_json::Value {
        let output = self.run(&["log", "verify", "log", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    /// Every entry of the log, as `log show` tells it.
    pub fn entries(&self) -> Vec<serde_json::Value> {
        let output = self.run(&["log", "show", "log"]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The folder's home: policies, log, security log.
    pub fn home(&self) -> &Path {
        self.home.path()
    }
}
