//! JSON objects of a closed schema, read member by member.

use serde_json::{Map, Value};

/// An object with no other members than `known`.
pub(super) fn closed<'v>(value: &'v Value, what: &str, known: &[&str]) -> Result<&'v Map<String, Value>, String> {
    let object = value.as_object().ok_or_else(|| format!("{what} is no object"))?;
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(format!("{what} has the unknown member {key:?}")),
        None => Ok(object),
    }
}

pub(super) fn member<'v>(object: &'v Map<String, Value>, key: &str) -> Result<&'v Value, String> {
    object.get(key).ok_or_else(|| format!("`{key}` is missing"))
}

pub(super) fn text<'v>(object: &'v Map<String, Value>, key: &str) -> Result<&'v str, String> {
    member(object, key)?.as_str().ok_or_else(|| format!("`{key}` is no text"))
}

pub(super) fn list<'v>(object: &'v Map<String, Value>, key: &str) -> Result<&'v [Value], String> {
    member(object, key)?.as_array().map(Vec::as_slice).ok_or_else(|| format!("`{key}` is no list"))
}
