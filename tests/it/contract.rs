//! The contract's own examples: every file that it shows is taken as it stands there.

use std::fs;
use std::path::Path;

use portcullis::digest::Digest;
use serde_json::Value;

use crate::support::Folder;

/// A file of the examples, as the contract has it.
fn example(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/contract").join(file)).unwrap()
}

/// The folder of the examples, with what they leave to be filled in, and without any file that is no policy.
fn folder() -> Folder {
    let folder = Folder::new();
    folder.digits("");
    fs::remove_dir_all(folder.policies().join("tls")).unwrap();
    for file in ["gateway.toml", "access.cedar", "models/chat.toml"] {
        folder.write(file, example(file));
    }
    let key = Digest::of(b"a secret that is long enough to be none of the known ones").to_string();
    folder.write("callers.toml", example("callers.toml").replace("<64 hex digits, as `portcullis key new` prints them>", &key));
    let model = Digest::of(&fs::read(folder.policies().join("models/digits.onnx")).unwrap()).to_string();
    folder.write("models/digits.toml", example("models/digits.toml").replacen('…', &model, 1));
    folder.write("schemas/digits.json", "{\"type\": \"object\"}");
    let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/keys/login.jwks.json");
    folder.write("keys/login.jwks.json", fs::read(keys).unwrap());
    folder
}

#[test]
fn the_examples_of_the_contract_are_taken_as_they_stand() {
    let output = folder().run(&["check", "policies", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["ok"]), (Some(0), &Value::Bool(true)), "{report:#}");
    let missing = report["missing"].as_array().unwrap();
    for file in ["server.pem", "server.key", "clients.pem", "clients.crl", "provenance.key", "libonnxruntime.so", "the credential's file"] {
        assert!(missing.iter().any(|line| line.as_str().unwrap().contains(file)), "{file}: {missing:#?}");
    }
    assert_eq!(missing.len(), 7, "{missing:#?}");
    let warnings = report["warnings"].as_array().unwrap();
    assert!(warnings.len() == 1 && warnings[0].as_str().unwrap().contains("models/chat.toml:8:6: ca is not used"), "{warnings:#?}");
}
