//! `portcullis demo`: the whole gateway on one machine with nothing prepared.
//!
//! It writes a policy folder like any other (certificate, caller, model, three lines of Cedar) and serves it, so that
//! what is tried here is what runs elsewhere.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use crate::cli::{DemoArgs, No};
use crate::digest::Digest;
use crate::prove::key;
use crate::say::{self, aside, say};
use crate::{keys, serve};

/// A small classifier of handwritten digits: 64 numbers from 0 to 16 in, ten probabilities and a label out.
const DIGITS: &[u8] = include_bytes!("../policies/models/digits.onnx");

/// A handwritten zero of scikit-learn's bundled data set, eight rows of eight.
const A_ZERO: &str = "0,0,5,13,9,1,0,0,0,0,13,15,10,15,5,0,0,3,15,2,0,11,8,0,0,4,12,0,0,8,8,0,0,5,8,0,0,9,8,0,0,4,11,0,1,12,7,0,0,2,14,5,10,12,0,0,0,0,6,13,10,0,0,0";

/// Prepares the folder and serves it until it is told to stop.
///
/// # Errors
/// The folder cannot be written, the port is taken, or ONNX Runtime is not on this machine (and how to get it).
pub fn run(arguments: &DemoArgs) -> Result<(), No> {
    let home = match &arguments.directory {
        Some(directory) => directory.clone(),
        None => std::env::temp_dir().join(format!("portcullis-demo-{}", uuid::Uuid::now_v7().simple())),
    };
    let prepared = prepare(&home, arguments.port).map_err(|error| No::because(format!("{}: {error}", home.display())))?;
    let api_key = keys::new(&prepared.policies.join("callers.toml"), "demo", "demo", &["app".to_owned()], "", None)?.secret;
    let json = arguments.json;
    serve::run(&prepared.policies, |listening| {
        let url = format!("https://{}", listening.accept);
        let admin_url = listening.admin.map(|admin| format!("http://{admin}")).unwrap_or_default();
        if let Err(error) = secret(&home.join("env"), environment(&url, &admin_url, &prepared, &api_key).as_bytes()) {
            aside!("portcullis: {}: {error}", home.join("env").display());
        }
        let told = if json {
            let (ca, policies) = (&prepared.ca, &prepared.policies);
            say!(
                "{}",
                serde_json::json!({ "url": url, "admin_url": admin_url, "ca": ca, "api_key": api_key, "policies": policies, "models": listening.models })
            )
        } else {
            say::bytes(greeting(&url, &admin_url, &prepared, &api_key).as_bytes())
        };
        if let Err(error) = told {
            aside!("portcullis: {error}");
        }
    })
}

struct Prepared {
    policies: PathBuf,
    ca: PathBuf,
}

fn prepare(home: &Path, port: u16) -> std::io::Result<Prepared> {
    let policies = home.join("policies");
    if policies.exists() {
        return Err(std::io::Error::other(
            "a demo was prepared here before; serve it with `portcullis serve`, delete it, or name another folder",
        ));
    }
    for folder in ["models", "schemas", "tls", "rehearsals"] {
        fs::create_dir_all(policies.join(folder))?;
    }
    fs::set_permissions(home, fs::Permissions::from_mode(0o700))?;
    let ca = certificates(&policies.join("tls")).map_err(std::io::Error::other)??;
    secret(&policies.join("tls/provenance.key"), key::Key::generate_pem().expose())?;
    fs::write(policies.join("models/digits.onnx"), DIGITS)?;
    let gateway = format!(
        "[accept]\nlisten = \"127.0.0.1:{port}\"\n\n[accept.tls]\ncertificate = \"tls/server.pem\"\nkey = \"tls/server.key\"\n\n\
         [admin]\nlisten = \"127.0.0.1:0\"\n\n\
         [prove]\ndirectory = \"../log\"\norigin = \"localhost/portcullis/demo\"\nkey = \"tls/provenance.key\"\n\n\
         [record]\nsecurity_log = \"../security.log\"\n"
    );
    fs::write(policies.join("gateway.toml"), gateway)?;
    let access = "permit (\n  principal in Role::\"app\",\n  action in [Action::\"chat\", Action::\"complete\", Action::\"embed\", Action::\"infer\", Action::\"metadata\"],\n  resource\n)\nwhen { resource.public || resource.tenants.contains(principal.tenant) };\n";
    fs::write(policies.join("access.cedar"), access)?;
    let digits = format!(
        "name = \"digits\"\nversion = \"1\"\npublic = true\n\n[backend.onnx]\npath = \"digits.onnx\"\nsha256 = \"{}\"\n\n\
         [check]\nmax_batch = 32\nrange = {{ input = [0.0, 16.0] }}\n\n\
         [budget.default]\nrequests = {{ rate = \"200/s\", burst = 400 }}\nin_flight = 64\n",
        Digest::of(DIGITS)
    );
    fs::write(policies.join("models/digits.toml"), digits)?;
    Ok(Prepared { policies, ca })
}

/// An authority for this folder alone, and a server certificate for this machine; the authority's key is not kept.
fn certificates(tls: &Path) -> Result<std::io::Result<PathBuf>, rcgen::Error> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority.distinguished_name.push(DnType::CommonName, "Portcullis demo authority");
    let authority_key = KeyPair::generate()?;
    let authority_pem = authority.self_signed(&authority_key)?.pem();
    let issuer = Issuer::new(authority, authority_key);

    let mut server = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()])?;
    server.distinguished_name.push(DnType::CommonName, "localhost");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = server.signed_by(&key, &issuer)?.pem();

    let write = || {
        let ca = tls.join("ca.pem");
        fs::write(&ca, &authority_pem)?;
        fs::write(tls.join("server.pem"), certificate + &authority_pem)?;
        secret(&tls.join("server.key"), key.serialize_pem().as_bytes())?;
        Ok(ca)
    };
    Ok(write())
}

/// Writes what only this user may read.
fn secret(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
}

/// The same facts for a shell: `. FOLDER/env`.
fn environment(url: &str, admin_url: &str, prepared: &Prepared, key: &str) -> String {
    let (ca, policies, log) = (prepared.ca.display(), prepared.policies.display(), prepared.policies.with_file_name("log"));
    format!(
        "export URL='{url}' ADMIN='{admin_url}' CA='{ca}' KEY='{key}' POLICIES='{policies}' LOG='{}'\nexport ZERO='{A_ZERO}'\n",
        log.display()
    )
}

fn greeting(url: &str, admin_url: &str, prepared: &Prepared, key: &str) -> String {
    let (ca, policies) = (prepared.ca.display(), prepared.policies.display());
    let log = prepared.policies.with_file_name("log");
    let log = log.display();
    format!(
        "Portcullis is ready on {url}\nPolicies: {policies}\nRecord:   {log}\n\nClassify a handwritten zero, and get a signed receipt for the answer:\n\n\
         curl -i --cacert {ca} -H 'authorization: Bearer {key}' \\\n  {url}/v2/models/digits/infer \\\n  --json '{{\"inputs\":[{{\"name\":\"input\",\"datatype\":\"FP32\",\"shape\":[1,64],\"data\":[{A_ZERO}]}}]}}'\n\n\
         What the model is, and what it takes:\n\n\
         curl --cacert {ca} -H 'authorization: Bearer {key}' {url}/v2/models/digits\n\n\
         Without a credential there is no answer, and that leaves a receipt too:\n\n\
         curl -i --cacert {ca} {url}/v2/models/digits\n\n\
         Verify what was recorded, offline, and look at the metrics:\n\n\
         portcullis log verify {log}\n\
         curl {admin_url}/metrics\n\n\
         Stop with Ctrl-C.\n"
    )
}
