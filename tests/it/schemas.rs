//! The schemas that editors use say what the program says: the same keys in every table, and the shipped policies hold to them.

use std::fs;
use std::path::Path;

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn schema(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(root().join(format!("docs/schemas/{name}.schema.json"))).unwrap()).unwrap()
}

/// TOML as the JSON that says the same; dates become text.
fn json(value: toml::Value) -> Value {
    match value {
        toml::Value::Table(table) => table.into_iter().map(|(key, value)| (key, json(value))).collect(),
        toml::Value::Array(array) => array.into_iter().map(json).collect(),
        toml::Value::Datetime(date) => Value::from(date.to_string()),
        other => serde_json::to_value(other).unwrap(),
    }
}

#[test]
fn the_shipped_policies_hold_to_the_schemas() {
    for (file, name) in
        [("gateway.toml", "gateway"), ("callers.toml", "callers"), ("models/digits.toml", "model"), ("models/chat.toml", "model")]
    {
        let text = fs::read_to_string(root().join("policies").join(file)).unwrap();
        let validator = jsonschema::validator_for(&schema(name)).unwrap();
        let document = json(toml::from_str(&text).unwrap());
        let wrong: Vec<String> = validator.iter_errors(&document).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(wrong.is_empty(), "{file}: {wrong:?}");
    }
}

/// Walks every closed table of a schema, puts a key into it that nobody knows, and reads from what the program answers
/// which keys it knows there.
fn tables(schema: &Value, path: &mut Vec<String>, found: &mut Vec<(Vec<String>, Vec<String>)>) {
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        let mut keys: Vec<String> = properties.keys().cloned().collect();
        keys.sort();
        found.push((path.clone(), keys));
        for (key, inner) in properties {
            path.push(key.clone());
            tables(inner, path, found);
            path.pop();
        }
    }
    if let Some(items) = schema.get("items").filter(|items| items.get("properties").is_some()) {
        let last = path.pop().unwrap();
        path.push(format!("{last}[]"));
        tables(items, path, found);
        path.pop();
        path.push(last);
    }
}

/// A document whose one table at `path` holds one unknown key.
fn document(path: &[String]) -> String {
    let unknown = "zzzzzzzz = 1";
    match path {
        [] => unknown.to_owned(),
        path => {
            let keys: Vec<&str> = path.iter().map(|key| key.trim_end_matches("[]")).collect();
            if path.last().is_some_and(|last| last.ends_with("[]")) && !path[..path.len() - 1].iter().any(|key| key.ends_with("[]")) {
                return format!("[[{}]]\n{unknown}", keys.join("."));
            }
            table(path, &keys, unknown)
        }
    }
}

fn table(path: &[String], keys: &[&str], unknown: &str) -> String {
    if path[0].ends_with("[]") {
        format!("[[{}]]\n[{}]\n{unknown}", keys[0], keys.join("."))
    } else {
        format!("[{}]\n{unknown}", keys.join("."))
    }
}

fn known<T: serde::de::DeserializeOwned>(text: &str) -> Vec<String> {
    let message = toml::from_str::<T>(text).map(|_| ()).unwrap_err().message().to_owned();
    assert!(message.starts_with("unknown field `zzzzzzzz`"), "{text}\n{message}");
    let mut keys: Vec<String> = message.split('`').skip(3).step_by(2).map(str::to_owned).collect();
    keys.sort();
    keys
}

fn compare<T: serde::de::DeserializeOwned>(name: &str) {
    let mut found = Vec::new();
    tables(&schema(name), &mut Vec::new(), &mut found);
    assert!(!found.is_empty());
    for (path, keys) in found {
        assert_eq!(known::<T>(&document(&path)), keys, "{name}: {path:?}");
    }
}

#[test]
fn every_table_has_the_keys_that_the_program_knows() {
    compare::<portcullis::config::Gateway>("gateway");
    compare::<portcullis::authenticate::Config>("callers");
    compare::<portcullis::config::ModelFile>("model");
    compare::<portcullis::witness::config::Config>("witness");
}
