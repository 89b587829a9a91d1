//! `portcullis model`: what a file is, whose it is, and whether it would be loaded. Models and data sets alike; nothing is ever executed,
//! unpacked or fetched.

mod bom;
mod card;
mod scan;
mod weights;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Subcommand;
use serde_json::{Value, json};

use crate::cli::No;
use crate::digest::Digest;
use crate::infer::model::folder::{self, Limits, Seen};
use crate::infer::model::signing::bundle::{Bundle, MAX_BUNDLE};
use crate::infer::model::signing::key::{MAX_KEY, PrivateKey};
use crate::infer::model::signing::manifest::{Manifest, NEVER_SIGNED, SINGLE};
use crate::infer::model::signing::sign::Seal;
use crate::infer::model::signing::{Identity, MAX_TRUST, Signer, Trust};
use crate::infer::model::{self, Verified, onnx};
use crate::rollback;
use crate::say::{Unsaid, say};
use crate::whole;
use crate::wire::tensor::Port;

/// Examples of the commands.
pub const EXAMPLE: &str = "Examples:\n  portcullis model inspect policies/models/digits.onnx\n  portcullis model scan policies/models";

/// What to do with models.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Give the traffic of a model back to the version that served before.
    #[command(after_help = rollback::EXAMPLE)]
    Rollback(rollback::Arguments),
    /// What a file is: format, digest, inputs and outputs; or what a signature covers. Refuses formats that can run code.
    #[command(after_help = "Example:\n  portcullis model inspect policies/models/digits.onnx")]
    Inspect {
        /// The file: ONNX, safetensors, or a signature.
        file: PathBuf,
        /// One line of JSON.
        #[arg(long)]
        json: bool,
    },
    /// Hold a folder, or a single file, to its OpenSSF Model Signing bundle: every file is the one that was signed, and there is no other.
    #[command(after_help = "Example:\n  portcullis model verify minilm --signature minilm.sig --trust keys/models.pem")]
    Verify {
        /// The model or data set.
        path: PathBuf,
        /// The signature.
        #[arg(long, value_name = "S")]
        signature: PathBuf,
        /// Whose it must be: a public key, or certificates of authorities, in PEM.
        #[arg(long, value_name = "PEM")]
        trust: PathBuf,
        /// One line of JSON: {"ok","digest","files","bytes","signer"} or {"ok","why"}.
        #[arg(long)]
        json: bool,
    },
    /// Sign a folder, or a single file, as OpenSSF Model Signing v1.0 says. `model_signing verify` reads it too.
    #[command(
        after_help = "Examples:\n  openssl ecparam -name prime256v1 -genkey -noout -out key.pem; openssl pkey -in key.pem -pubout -out public.pem\n  \
                      portcullis model sign minilm --key key.pem --signature minilm.sig\n  \
                      portcullis model sign minilm --key leaf.key --certificate leaf.pem --chain issuers.pem --signature minilm.sig"
    )]
    Sign {
        /// The model or data set.
        path: PathBuf,
        /// The private key, in PEM: P-256, P-384 or P-521.
        #[arg(long, value_name = "PEM")]
        key: PathBuf,
        /// The key's certificate, to sign in the mode `certificate`.
        #[arg(long, value_name = "PEM")]
        certificate: Option<PathBuf>,
        /// The certificates of its issuers, up to the one that verifiers trust.
        #[arg(long, value_name = "PEM", requires = "certificate")]
        chain: Option<PathBuf>,
        /// Where the signature goes.
        #[arg(long, value_name = "S")]
        signature: PathBuf,
        /// A path in the folder that is left out; may be given more than once. `.git` and its like always are.
        #[arg(long, value_name = "NAME")]
        ignore: Vec<String>,
        /// One line of JSON: {"digest","files","bytes","signer"}.
        #[arg(long)]
        json: bool,
    },
    /// Say for each file what it is and whether it would be loaded; exit 1 if any could run code, hides what it holds, or is hostile.
    #[command(after_help = "Example:\n  portcullis model scan downloads/some-model")]
    Scan {
        /// A file or a folder.
        path: PathBuf,
        /// One line of JSON: {"ok","files":[{"name","kind","loaded","unsafe","why","tensors_of"}]}.
        #[arg(long)]
        json: bool,
    },
    /// A bill of materials: CycloneDX 1.6, as JSON.
    #[command(after_help = "Example:\n  portcullis model bom minilm --signature minilm.sig --trust keys/models.pem > minilm.cdx.json")]
    Bom {
        /// The model or data set.
        path: PathBuf,
        /// Its signature: who signed goes into the bill, once it is verified.
        #[arg(long, value_name = "S", requires = "trust")]
        signature: Option<PathBuf>,
        /// Whose it must be, in PEM.
        #[arg(long, value_name = "PEM", requires = "signature")]
        trust: Option<PathBuf>,
        /// On one line.
        #[arg(long)]
        json: bool,
    },
}

/// Runs one of them.
///
/// # Errors
/// The answer is no, and why.
pub fn run(verb: Verb) -> Result<(), No> {
    match verb {
        Verb::Inspect { file, json } => inspect(&file, json),
        Verb::Verify { path, signature, trust, json } => verify(&path, &signature, &trust, json),
        Verb::Sign { path, key, certificate, chain, signature, ignore, json } => {
            let seal = seal(&key, certificate.as_deref(), chain.as_deref())?;
            sign(&path, &seal, &signature, ignore, json)
        }
        Verb::Rollback(arguments) => rollback::run(&arguments),
        Verb::Scan { path, json } => scan::run(&path, json),
        Verb::Bom { path, signature, trust, json } => bom::run(&path, signature.as_deref().zip(trust.as_deref()), json),
    }
}

fn inspect(file: &Path, json: bool) -> Result<(), No> {
    let told = |why: &dyn std::fmt::Display| No::because(format!("{}: {why}", file.display()));
    let verified = Verified::inspected(file, model::DEFAULT_MAX_SIZE.0);
    let (format, bytes, digest, more) = match verified {
        Ok(verified) if verified.bytes().trim_ascii_start().starts_with(b"{") => {
            return inspect_signature(file, verified.bytes(), json);
        }
        Ok(verified) => {
            let (signature, needed) = onnx::read_apart(verified.bytes(), &onnx::Limits::DEFAULT).map_err(|fault| told(&fault))?;
            let ports = |ports: &[Port]| -> Value {
                ports.iter().map(|port| json!({ "name": port.name, "datatype": port.datatype.as_str(), "shape": port.shape })).collect()
            };
            let mut more = json!({ "inputs": ports(&signature.inputs), "outputs": ports(&signature.outputs) });
            if !needed.is_empty() {
                extend(&mut more, json!({ "tensors_in": needed }));
            }
            ("onnx", verified.bytes().len(), verified.digest(), more)
        }
        Err(model::Refused::Format(model::Format::Safetensors)) => {
            let bytes = bounded(file, model::DEFAULT_MAX_SIZE.0)?;
            let header = weights::Header::read(&bytes).map_err(|why| told(&why))?;
            let more = json!({ "tensors": header.tensors, "parameters": header.parameters, "datatypes": header.datatypes });
            ("safetensors", bytes.len(), Digest::of(&bytes), more)
        }
        // It names the file itself.
        Err(refused @ model::Refused::Unreadable(..)) => return Err(No::because(refused)),
        Err(refused) => return Err(told(&refused)),
    };
    if json {
        let mut line = json!({ "format": format, "bytes": bytes, "sha256": digest.to_string() });
        extend(&mut line, more);
        say!("{line}")?;
        return Ok(());
    }
    say!("format   {format}\nbytes    {bytes}\nsha256   {digest}")?;
    for (key, value) in more.as_object().into_iter().flatten() {
        match value {
            Value::Array(ports) => ports.iter().try_for_each(|port| tell_port(key.trim_end_matches('s'), port))?,
            Value::Object(files) if key == "tensors_in" => {
                files.iter().try_for_each(|(name, bytes)| say!("tensors  in {name:?}, of which they need {bytes} bytes"))?;
            }
            Value::Object(counts) => counts.iter().try_for_each(|(name, count)| say!("{:<8} {count}", name.escape_debug().to_string()))?,
            other => say!("{key:<8} {other}")?,
        }
    }
    Ok(())
}

fn tell_port(kind: &str, port: &Value) -> Result<(), Unsaid> {
    let shape: Vec<String> =
        port["shape"].as_array().into_iter().flatten().map(|n| n.as_u64().map_or("?".to_owned(), |n| n.to_string())).collect();
    let text = |key: &str| port[key].as_str().unwrap_or_default().to_owned();
    // A file that nobody vouches for may have any name in it: what would steer a terminal, or look like another line, is escaped.
    say!("{kind:<8} {} {} [{}]", text("name").escape_debug(), text("datatype"), shape.join(", "))
}

/// What a signature says. Nobody vouches for it.
fn inspect_signature(file: &Path, bytes: &[u8], json: bool) -> Result<(), No> {
    let bundle = Bundle::parse(bytes).map_err(|fault| told(file, &fault))?;
    let manifest = Manifest::from_statement(&bundle.payload).map_err(|fault| told(file, &fault))?;
    let mode = bundle.material.mode();
    let names: Vec<&String> = manifest.files().keys().collect();
    if json {
        say!(
            "{}",
            json!({ "format": "signature", "mode": mode, "digest": manifest.root().to_string(), "files": names, "verified": false })
        )?;
    } else {
        say!("format   signature, not verified\nmode     {mode}\ndigest   {}", manifest.root())?;
        names.iter().try_for_each(|name| say!("file     {}", name.escape_debug()))?;
    }
    Ok(())
}

/// What was found to be as it was signed.
struct Proven {
    manifest: Manifest,
    signer: Signer,
    files: std::collections::BTreeMap<String, Seen>,
}

fn proven(path: &Path, signature: &Path, trust: &Path) -> Result<Proven, No> {
    let trust = Trust::read(&bounded(trust, MAX_TRUST)?).map_err(|fault| told(trust, &fault))?;
    let signed = trust.verify(&bounded(signature, MAX_BUNDLE)?, SystemTime::now()).map_err(|fault| told(signature, &fault))?;
    let beside = folder::signature_in(path, signature);
    let files = folder::compare(path, &signed.manifest, beside.as_deref(), &Limits::TO_HASH).map_err(|fault| told(path, &fault))?;
    Ok(Proven { manifest: signed.manifest, signer: signed.signer, files })
}

fn verify(path: &Path, signature: &Path, trust: &Path, json: bool) -> Result<(), No> {
    match proven(path, signature, trust) {
        Ok(Proven { manifest, signer, files }) => Ok(tell(json, &json!({ "ok": true }), manifest.root(), &files, &signer)?),
        Err(no) => {
            if json {
                say!("{}", json!({ "ok": false, "why": no.0.join("; ") }))?;
            }
            Err(no)
        }
    }
}

fn tell(
    json: bool,
    first: &Value,
    digest: Digest,
    files: &std::collections::BTreeMap<String, Seen>,
    signer: &Signer,
) -> Result<(), Unsaid> {
    let bytes: u64 = files.values().map(|seen| seen.length).sum();
    if json {
        let mut line = first.clone();
        extend(&mut line, json!({ "digest": digest.to_string(), "files": files.len(), "bytes": bytes, "signer": signer_json(signer) }));
        say!("{line}")
    } else {
        say!("digest   {digest}\nfiles    {}\nbytes    {bytes}\nsigner   {}", files.len(), signer)
    }
}

fn signer_json(signer: &Signer) -> Value {
    match signer {
        Signer::Key { hint } => json!({ "mode": "key", "hint": hint }),
        Signer::Certificate { subject, fingerprint } => {
            json!({ "mode": "certificate", "subject": subject, "fingerprint": fingerprint.to_string() })
        }
        Signer::Identity(Identity { identity, issuer }) => json!({ "mode": "sigstore", "identity": identity, "issuer": issuer }),
    }
}

fn seal(key: &Path, certificate: Option<&Path>, chain: Option<&Path>) -> Result<Seal, No> {
    let private = PrivateKey::from_pem(&zeroize::Zeroizing::new(bounded(key, MAX_KEY)?)).map_err(|fault| told(key, &fault))?;
    let Some(certificate) = certificate else { return Ok(Seal::with_key(private)) };
    let chain = chain.map(|chain| bounded(chain, MAX_TRUST)).transpose()?.unwrap_or_default();
    Seal::with_certificate(private, &bounded(certificate, MAX_TRUST)?, &chain).map_err(|fault| told(certificate, &fault))
}

fn sign(path: &Path, seal: &Seal, signature: &Path, ignore: Vec<String>, json: bool) -> Result<(), No> {
    let beside = folder::signature_in(path, signature);
    let files = folder::hash(path, &ignore, beside.as_deref(), &Limits::TO_HASH).map_err(|fault| told(path, &fault))?;
    let single = files.len() == 1 && files.contains_key(SINGLE);
    let mut ignored: Vec<String> = if single { Vec::new() } else { NEVER_SIGNED.map(str::to_owned).into() };
    ignored.extend(ignore);
    // Whoever verifies with other tools has the signature lying there too.
    ignored.extend(beside.filter(|_| !single));
    let digests = files.iter().map(|(name, seen)| (name.clone(), seen.digest)).collect();
    let manifest = Manifest::of_files(&digests, ignored).map_err(|name| told(path, &folder::Fault::Unspeakable(name)))?;
    let real = path.canonicalize().map_err(|error| told(path, &error))?;
    let name = real.file_name().and_then(|name| name.to_str()).unwrap_or("model");
    let bundle = seal.bundle(&manifest, name).map_err(|fault| told(path, &fault))?;
    whole::ready(signature, &bundle, 0o666).and_then(whole::Ready::put).map_err(|error| told(signature, &error))?;
    let signer = seal.signer().map_err(|fault| told(path, &fault))?;
    Ok(tell(json, &json!({}), manifest.root(), &files, &signer)?)
}

/// A file, whole, of at most so many bytes.
fn bounded(path: &Path, limit: usize) -> Result<Vec<u8>, No> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limit as u64 + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => Err(told(path, &error)),
        Ok(_) if bytes.len() > limit => Err(told(path, &format!("it is larger than {limit} bytes"))),
        Ok(_) => Ok(bytes),
    }
}

fn told(path: &Path, why: &dyn std::fmt::Display) -> No {
    No::because(format!("{}: {why}", path.display()))
}

/// The members of the second object behind those of the first.
fn extend(first: &mut Value, second: Value) {
    if let (Value::Object(first), Value::Object(second)) = (first, second) {
        first.extend(second);
    }
}
