//! `portcullis model bom`: a bill of materials, CycloneDX 1.6 (ECMA-424), for a model or a data set.
//!
//! Digests are what this program found; licence, base model and data sets are what the model's card claims. Who signed stands in it only
//! once the signature was verified over these very files.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::card::Card;
use super::scan::{Finding, findings};
use super::{Proven, proven, told};
use crate::cli::No;
use crate::clock;
use crate::digest::Digest;
use crate::infer::model::Signature;
use crate::infer::model::folder::{self, Limits, Seen};
use crate::infer::model::signing::Signer;
use crate::infer::model::signing::manifest::{Manifest, SINGLE};
use crate::say::say;
use crate::wire::tensor::Port;

/// Licences as model hubs write them, and as SPDX does. Others are given by their name.
const LICENCES: [(&str, &str); 20] = [
    ("apache-2.0", "Apache-2.0"),
    ("mit", "MIT"),
    ("bsd-2-clause", "BSD-2-Clause"),
    ("bsd-3-clause", "BSD-3-Clause"),
    ("isc", "ISC"),
    ("mpl-2.0", "MPL-2.0"),
    ("gpl-2.0", "GPL-2.0-only"),
    ("gpl-3.0", "GPL-3.0-only"),
    ("lgpl-3.0", "LGPL-3.0-only"),
    ("agpl-3.0", "AGPL-3.0-only"),
    ("cc0-1.0", "CC0-1.0"),
    ("cc-by-4.0", "CC-BY-4.0"),
    ("cc-by-sa-4.0", "CC-BY-SA-4.0"),
    ("cc-by-nc-4.0", "CC-BY-NC-4.0"),
    ("cc-by-nc-sa-4.0", "CC-BY-NC-SA-4.0"),
    ("cc-by-nd-4.0", "CC-BY-ND-4.0"),
    ("odbl", "ODbL-1.0"),
    ("pddl", "PDDL-1.0"),
    ("unlicense", "Unlicense"),
    ("artistic-2.0", "Artistic-2.0"),
];

/// Runs it.
pub(super) fn run(path: &Path, signed: Option<(&Path, &Path)>, json: bool) -> Result<(), No> {
    let (files, digest, signer) = match signed {
        Some((signature, trust)) => {
            let Proven { manifest, signer, files } = proven(path, signature, trust)?;
            (files, manifest.root(), Some(signer))
        }
        None => {
            let files = folder::hash(path, &[], None, &Limits::TO_HASH).map_err(|fault| told(path, &fault))?;
            let digests = files.iter().map(|(name, seen)| (name.clone(), seen.digest)).collect();
            let manifest = Manifest::of_files(&digests, Vec::new()).map_err(|name| told(path, &folder::Fault::Unspeakable(name)))?;
            (files, manifest.root(), None)
        }
    };
    let real = path.canonicalize().map_err(|error| told(path, &error))?;
    let name = real.file_name().and_then(|name| name.to_str()).unwrap_or("model").to_owned();
    let lengths = files.iter().map(|(name, seen)| (name.clone(), seen.length)).collect();
    let mut findings = findings(path, &lengths)?;
    if let Some(half) = findings.get(SINGLE).filter(|finding| !finding.needs.is_empty()) {
        // A bill that leaves the weights out would be none.
        return Err(told(path, &half.why.as_deref().unwrap_or_default()));
    }
    let named = |(file, seen): (String, Seen)| {
        let finding = findings.remove(&file)?;
        Some(Found { name: if file == SINGLE { name.clone() } else { file }, seen, finding })
    };
    let found: Vec<Found> = files.into_iter().filter_map(named).collect();
    let bill = bill(&name, digest, &found, &Card::of(path), signer.as_ref(), SystemTime::now());
    if json {
        say!("{bill}")?;
    } else {
        say!("{bill:#}")?;
    }
    Ok(())
}

/// A file of the model.
struct Found {
    name: String,
    seen: Seen,
    finding: Finding,
}

impl Found {
    fn is_model(&self) -> bool {
        // Whatever holds parameters, loaded here or not.
        !matches!(
            self.finding.kind,
            "text" | "json" | "empty" | "unknown" | "signature" | "npy" | "npz" | "zip" | "compressed" | "tar" | "7z"
        )
    }
}

fn bill(name: &str, digest: Digest, found: &[Found], card: &Card, signer: Option<&Signer>, now: SystemTime) -> Value {
    let is_model = found.iter().any(Found::is_model) || card.config("model_type").is_some();
    let about = format!("sha256:{digest}");
    let part = |name: &str| format!("{about}#{name}");
    let mut component = json!({
        "type": if is_model { "machine-learning-model" } else { "data" },
        "bom-ref": about,
        "name": card.first("model_name").unwrap_or(name),
        "hashes": [hash(digest)],
    });
    let mut put = |key: &str, value: Value| super::extend(&mut component, json!({ key: value }));
    if let Some(licence) = card.first("license") {
        put("licenses", json!([licence_of(licence, card)]));
    }
    if !card.all("tags").is_empty() {
        put("tags", json!(card.all("tags")));
    }
    if is_model {
        put("modelCard", model_card(&about, found, card));
    } else {
        put(
            "data",
            json!([{ "type": "dataset", "name": name, "contents": { "properties": [property("files", &found.len().to_string())] } }]),
        );
    }
    if let Some(base) = card.first("base_model").or(card.config("_name_or_path").filter(|base| base.contains('/'))) {
        put("pedigree", json!({ "ancestors": [{ "type": "machine-learning-model", "name": base }] }));
    }
    let mut properties =
        vec![property("digest", "SHA-256 over the files' SHA-256 in the order of their names (OpenSSF Model Signing v1.0, 6.5.1)")];
    match signer {
        Some(Signer::Key { hint }) => properties.extend([property("signature:mode", "key"), property("signature:key", hint)]),
        Some(Signer::Certificate { subject, fingerprint }) => properties.extend([
            property("signature:mode", "certificate"),
            property("signature:subject", subject),
            property("signature:certificate", &fingerprint.to_string()),
        ]),
        Some(Signer::Identity(signer)) => properties.extend([
            property("signature:mode", "sigstore"),
            property("signature:identity", &signer.identity),
            property("signature:issuer", &signer.issuer),
        ]),
        None => properties.push(property("signature:mode", "none")),
    }
    put("properties", json!(properties));
    let files: Vec<Value> = found
        .iter()
        .map(|file| {
            let finding = &file.finding;
            let mut properties = vec![
                property("kind", finding.kind),
                property("bytes", &file.seen.length.to_string()),
                property("loaded", if finding.loaded { "yes" } else { "no" }),
            ];
            properties.extend(finding.why.as_ref().map(|why| property("why", why)));
            properties.extend(finding.tensors_of.iter().map(|model| property("tensors-of", model)));
            json!({
                "type": "file",
                "bom-ref": part(&file.name),
                "name": file.name,
                "hashes": [hash(file.seen.digest)],
                "properties": properties,
            })
        })
        .collect();
    put("components", json!(files));
    let datasets: Vec<Value> = if is_model {
        card.all("datasets")
            .iter()
            .map(|name| json!({ "type": "data", "bom-ref": dataset(name), "name": name, "data": [{ "type": "dataset", "name": name }] }))
            .collect()
    } else {
        Vec::new()
    };
    let on: Vec<&Value> = datasets.iter().map(|dataset| &dataset["bom-ref"]).collect();
    let mut dependencies = vec![json!({ "ref": about, "dependsOn": on })];
    let mut tensors: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for file in found {
        file.finding.tensors_of.iter().for_each(|model| tensors.entry(model).or_default().push(part(&file.name)));
    }
    dependencies.extend(tensors.iter().map(|(model, files)| json!({ "ref": part(model), "dependsOn": files })));
    json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": format!("urn:uuid:{}", uuid::Uuid::now_v7()),
        "version": 1,
        "metadata": {
            "timestamp": clock::rfc3339(now),
            "tools": { "components": [{ "type": "application", "name": "portcullis", "version": env!("CARGO_PKG_VERSION") }] },
            "component": component,
        },
        "components": datasets,
        "dependencies": dependencies,
    })
}

fn model_card(about: &str, found: &[Found], card: &Card) -> Value {
    let mut parameters = Map::new();
    let mut put = |key: &str, value: Option<Value>| drop(value.map(|value| parameters.insert(key.to_owned(), value)));
    put("task", card.first("pipeline_tag").map(Value::from));
    put("architectureFamily", card.config("model_type").map(Value::from));
    put("modelArchitecture", card.config("architectures").map(Value::from));
    let datasets: Vec<Value> = card.all("datasets").iter().map(|name| json!({ "ref": dataset(name) })).collect();
    put("datasets", (!datasets.is_empty()).then(|| datasets.into()));
    let ports = |of: fn(&Signature) -> &[Port]| -> Option<Value> {
        let ports: Vec<Value> = found
            .iter()
            .filter(|file| file.finding.loaded)
            .filter_map(|file| file.finding.signature.as_ref())
            .flat_map(of)
            .map(|port| json!({ "format": told_port(port) }))
            .collect();
        (!ports.is_empty()).then(|| ports.into())
    };
    put("inputs", ports(|signature| &signature.inputs));
    put("outputs", ports(|signature| &signature.outputs));
    json!({ "bom-ref": format!("{about}#card"), "modelParameters": parameters })
}

/// `input: FP32 [?, 64]`.
fn told_port(port: &Port) -> String {
    let shape: Vec<String> = port.shape.iter().map(|length| length.map_or("?".to_owned(), |length| length.to_string())).collect();
    format!("{}: {} [{}]", port.name, port.datatype, shape.join(", "))
}

fn licence_of(licence: &str, card: &Card) -> Value {
    let known = LICENCES.iter().find(|(hub, _)| hub.eq_ignore_ascii_case(licence));
    match (known, card.first("license_name"), card.first("license_link")) {
        (Some((_, spdx)), _, _) => json!({ "license": { "id": spdx } }),
        (None, name, Some(link)) if link.starts_with("https://") => json!({ "license": { "name": name.unwrap_or(licence), "url": link } }),
        (None, name, _) => json!({ "license": { "name": name.unwrap_or(licence) } }),
    }
}

fn dataset(name: &str) -> String {
    format!("dataset:{name}")
}

fn hash(digest: Digest) -> Value {
    json!({ "alg": "SHA-256", "content": digest.to_string() })
}

fn property(name: &str, value: &str) -> Value {
    json!({ "name": format!("portcullis:{name}"), "value": value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_data_is_a_data_set_and_a_folder_with_weights_is_a_model() {
        let found = |kind| {
            let finding = Finding::new(kind, false, false, None);
            vec![Found { name: "f".into(), seen: Seen { digest: Digest::of(b"f"), length: 1 }, finding }]
        };
        let kind = |kind| {
            bill("x", Digest::of(b"x"), &found(kind), &Card::default(), None, SystemTime::UNIX_EPOCH)["metadata"]["component"]["type"]
                .clone()
        };
        assert_eq!((kind("text"), kind("safetensors")), (json!("data"), json!("machine-learning-model")));
    }

    #[test]
    fn licences_have_the_names_that_spdx_gives_them_or_their_own() {
        assert_eq!(licence_of("apache-2.0", &Card::default()), json!({ "license": { "id": "Apache-2.0" } }));
        assert_eq!(licence_of("openrail", &Card::default()), json!({ "license": { "name": "openrail" } }));
    }
}
