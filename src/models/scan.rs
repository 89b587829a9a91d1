//! `portcullis model scan`: what each file is, and whether it would be loaded. A file that is not known is not unsafe, and is not loaded.

use std::path::Path;

use serde_json::{Value, json};

use super::{bounded, weights};
use crate::cli::No;
use crate::infer::model::folder::{self, Limits};
use crate::infer::model::format::{Danger, recognise};
use crate::infer::model::signing::bundle::Bundle;
use crate::infer::model::signing::manifest::SINGLE;
use crate::infer::model::{self, Format, onnx};
use crate::wire::json;

/// The longest text or JSON that is looked into, in bytes.
const MAX_TEXT: usize = 16 << 20;

/// What a file is.
#[derive(Debug)]
pub(super) struct Finding {
    /// One word for it.
    pub(super) kind: &'static str,
    /// Whether a backend would take it as a model.
    pub(super) loaded: bool,
    /// Whether it could do harm where it is loaded by others, or would be harmful here.
    pub(super) dangerous: bool,
    /// Why it is not loaded.
    pub(super) why: Option<String>,
}

/// Runs it.
pub(super) fn run(path: &Path, json: bool) -> Result<(), No> {
    let names = folder::names(path, &Limits::TO_HASH).map_err(|fault| {
        // A link or a device: what lies behind it was not seen, so nothing is said of the rest.
        if json {
            println!("{}", json!({ "ok": false, "why": fault.to_string() }));
        }
        super::told(path, &fault)
    })?;
    let mut findings = Vec::new();
    for name in names.keys() {
        let file = if name == SINGLE { path.to_owned() } else { path.join(name) };
        let name = if name == SINGLE { path.display().to_string() } else { name.clone() };
        findings.push((name, look(&file)?));
    }
    let ok = findings.iter().all(|(_, finding)| !finding.dangerous);
    if json {
        let files: Vec<Value> = findings
            .iter()
            .map(|(name, finding)| {
                json!({ "name": name, "kind": finding.kind, "loaded": finding.loaded, "unsafe": finding.dangerous, "why": finding.why })
            })
            .collect();
        println!("{}", json!({ "ok": ok, "files": files }));
    } else {
        for (name, finding) in &findings {
            let verdict = if finding.dangerous {
                "UNSAFE"
            } else if finding.loaded {
                "loaded"
            } else {
                "-"
            };
            let why = finding.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            println!("{verdict:<7} {:<12} {}{why}", finding.kind, name.escape_debug());
        }
    }
    let count = findings.iter().filter(|(_, finding)| finding.dangerous).count();
    if ok { Ok(()) } else { Err(No::because(format!("{count} of {} file(s) are unsafe", findings.len()))) }
}

/// Reads a file and says what it is.
pub(super) fn look(path: &Path) -> Result<Finding, No> {
    let length = std::fs::metadata(path).map_err(|error| super::told(path, &error))?.len();
    let limit = model::DEFAULT_MAX_SIZE.0;
    if length > limit as u64 {
        let mut head = Vec::new();
        let read =
            std::fs::File::open(path).and_then(|file| std::io::Read::read_to_end(&mut std::io::Read::take(file, 1 << 20), &mut head));
        read.map_err(|error| super::told(path, &error))?;
        return Ok(match recognise(&head) {
            Some(Format::Safetensors) | None => Finding {
                kind: if recognise(&head).is_some() { "safetensors" } else { "unknown" },
                loaded: false,
                dangerous: false,
                why: Some(format!("it is larger than {limit} bytes, and only its beginning was looked at")),
            },
            Some(format) => refused(format),
        });
    }
    Ok(judge(&bounded(path, limit)?))
}

/// What these bytes are.
pub(super) fn judge(bytes: &[u8]) -> Finding {
    let harmless = |kind| Finding { kind, loaded: false, dangerous: false, why: None };
    let hostile = |kind, why: String| Finding { kind, loaded: false, dangerous: true, why: Some(why) };
    match recognise(bytes) {
        Some(Format::Safetensors) => match weights::Header::read(bytes) {
            Ok(_) => Finding { kind: "safetensors", loaded: true, dangerous: false, why: None },
            Err(why) => hostile("safetensors", why),
        },
        Some(format) => refused(format),
        None if looks_like_onnx(bytes) => match onnx::read(bytes, &onnx::Limits::DEFAULT) {
            Ok(_) => Finding { kind: "onnx", loaded: true, dangerous: false, why: None },
            Err(fault) => hostile("onnx", fault.to_string()),
        },
        None if bytes.is_empty() => harmless("empty"),
        None if bytes.len() <= MAX_TEXT && matches!(bytes.trim_ascii_start(), [b'{' | b'[', ..]) => {
            if Bundle::parse(bytes).is_ok() {
                return harmless("signature");
            }
            match json::parse(bytes, &json::Limits::for_body(bytes.len())) {
                Ok(document) if names_code(&document) => hostile(
                    "json",
                    "it names Python code to be run when the model is loaded (auto_map). It is not run here; load the model nowhere with trust_remote_code"
                        .to_owned(),
                ),
                Ok(_) => harmless("json"),
                Err(_) => harmless("text"),
            }
        }
        None if std::str::from_utf8(&bytes[..bytes.len().min(MAX_TEXT)]).is_ok_and(|text| !text.contains('\0')) => harmless("text"),
        None => harmless("unknown"),
    }
}

fn refused(format: Format) -> Finding {
    Finding { kind: format.word(), loaded: false, dangerous: format.danger() != Danger::None, why: Some(format.to_string()) }
}

/// A version of the format that exists, then a field that a model has.
fn looks_like_onnx(bytes: &[u8]) -> bool {
    const MAX_VERSION: u8 = 32;
    matches!(bytes, [0x08, 1..=MAX_VERSION, 0x12 | 0x1a | 0x22 | 0x28 | 0x32 | 0x3a | 0x42 | 0x72, ..])
}

/// Whether a model's configuration names code of its own, at its top or one object deeper, as tokenizers' do.
fn names_code(document: &Value) -> bool {
    let has = |value: &Value| {
        value.get("auto_map").is_some_and(|map| !map.is_null()) || value.get("custom_pipelines").is_some_and(|map| !map.is_null())
    };
    has(document) || document.as_object().into_iter().flatten().any(|(_, inner)| has(inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_loaded_is_safe_and_the_rest_says_why() {
        let cases: [(&[u8], &str, bool, bool); 11] = [
            (include_bytes!("../../policies/models/digits.onnx"), "onnx", true, false),
            (b"\x02\0\0\0\0\0\0\0{}", "safetensors", true, false),
            (b"\x02\0\0\0\0\0\0\0{}rubbish", "safetensors", false, true),
            (b"\x08\x09\x12\x01a\xa2\x01\0", "onnx", false, true),
            (b"\x80\x04.", "pickle", false, true),
            (b"PK\x03\x04", "zip", false, true),
            (b"GGUF\x03\0\0\0", "gguf", false, false),
            (b"{\"auto_map\": {\"AutoModel\": \"x.Y\"}}", "json", false, true),
            (b"{\"model_type\": \"bert\"}", "json", false, false),
            (b"# A model", "text", false, false),
            (b"\0\x01\x02", "unknown", false, false),
        ];
        for (bytes, kind, loaded, dangerous) in cases {
            let found = judge(bytes);
            assert_eq!((found.kind, found.loaded, found.dangerous), (kind, loaded, dangerous), "{:?}", found.why);
            assert_eq!(found.why.is_some(), dangerous || kind == "gguf");
        }
    }
}
