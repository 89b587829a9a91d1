//! `portcullis model scan`: what each file is, and whether it would be loaded. A file that is not known is not unsafe, and is not loaded.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::{bounded, weights};
use crate::cli::No;
use crate::infer::model::folder::{self, Limits};
use crate::infer::model::format::{Danger, recognise};
use crate::infer::model::signing::bundle::Bundle;
use crate::infer::model::signing::manifest::SINGLE;
use crate::infer::model::{self, Format, Signature, onnx};
use crate::say::say;
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
    /// What an ONNX model takes and gives.
    pub(super) signature: Option<Signature>,
    /// The files in which tensors of an ONNX model lie, below its own folder, and how long each must be.
    pub(super) needs: onnx::Needed,
    /// The models whose tensors lie in it.
    pub(super) tensors_of: Vec<String>,
}

impl Finding {
    pub(super) fn new(kind: &'static str, loaded: bool, dangerous: bool, why: Option<String>) -> Self {
        Self { kind, loaded, dangerous, why, signature: None, needs: onnx::Needed::new(), tensors_of: Vec::new() }
    }
}

/// Runs it.
pub(super) fn run(path: &Path, json: bool) -> Result<(), No> {
    let names = match folder::names(path, &Limits::TO_HASH) {
        Ok(names) => names,
        // A link or a device: what lies behind it was not seen, so nothing is said of the rest.
        Err(fault) => {
            if json {
                say!("{}", json!({ "ok": false, "why": fault.to_string() }))?;
            }
            return Err(super::told(path, &fault));
        }
    };
    let called = |name: String| if name == SINGLE { path.display().to_string() } else { name };
    let findings: Vec<(String, Finding)> = findings(path, &names)?.into_iter().map(|(name, finding)| (called(name), finding)).collect();
    let ok = findings.iter().all(|(_, finding)| !finding.dangerous);
    if json {
        let files: Vec<Value> = findings
            .iter()
            .map(|(name, finding)| {
                let Finding { kind, loaded, dangerous, why, tensors_of, .. } = finding;
                json!({ "name": name, "kind": kind, "loaded": loaded, "unsafe": dangerous, "why": why, "tensors_of": tensors_of })
            })
            .collect();
        say!("{}", json!({ "ok": ok, "files": files }))?;
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
            let of = if finding.tensors_of.is_empty() { String::new() } else { format!(" (tensors of {})", finding.tensors_of.join(", ")) };
            say!("{verdict:<7} {:<12} {}{}{why}", finding.kind, name.escape_debug(), of.escape_debug())?;
        }
    }
    let count = findings.iter().filter(|(_, finding)| finding.dangerous).count();
    if ok { Ok(()) } else { Err(No::because(format!("{count} of {} file(s) are unsafe", findings.len()))) }
}

/// What the files are that lie at `path`, by their names there with their lengths; and whether each model finds its tensors among them.
pub(super) fn findings(path: &Path, lengths: &BTreeMap<String, u64>) -> Result<BTreeMap<String, Finding>, No> {
    let mut findings = BTreeMap::new();
    for name in lengths.keys() {
        let file = if name == SINGLE { path.to_owned() } else { path.join(name) };
        findings.insert(name.clone(), look(&file)?);
    }
    find_tensors(&mut findings, lengths);
    Ok(findings)
}

/// Holds what models say of other files against those that there are.
fn find_tensors(findings: &mut BTreeMap<String, Finding>, lengths: &BTreeMap<String, u64>) {
    let mut of = Vec::new();
    for (name, finding) in findings.iter_mut().filter(|(_, finding)| !finding.needs.is_empty()) {
        if name == SINGLE {
            finding.loaded = false;
            finding.why = Some(format!("its tensors lie in other files ({}): name its folder", some(&finding.needs)));
            continue;
        }
        // They lie below the folder of the model.
        let folder = name.rfind('/').map_or("", |end| &name[..=end]);
        let there = |file: &String| Some((file.clone(), *lengths.get(&format!("{folder}{file}"))?));
        let beside: onnx::Beside = finding.needs.keys().filter_map(there).collect();
        match onnx::suffices(&finding.needs, &beside) {
            Ok(()) => {
                let bytes = beside.values().chain([&lengths[name]]).copied().fold(0, u64::saturating_add);
                if bytes > model::DEFAULT_MAX_SIZE.0 as u64 {
                    finding.loaded = false;
                    finding.why = Some(format!("it is larger than {} bytes, with its tensors", model::DEFAULT_MAX_SIZE.0));
                }
                of.extend(finding.needs.keys().map(|file| (format!("{folder}{file}"), name.clone())));
            }
            // Whoever has half of a model has nothing that could do harm.
            Err(onnx::Fault::NotBeside(file)) => {
                finding.loaded = false;
                finding.why = Some(format!("a tensor's data lie in {file:?}, which is not in the model's folder"));
            }
            Err(fault) => (finding.loaded, finding.dangerous, finding.why) = (false, true, Some(fault.to_string())),
        }
    }
    for (file, model) in of {
        let Some(finding) = findings.get_mut(&file) else { continue };
        // Numbers have no form of their own. What has one is called by it, and judged by it.
        if matches!(finding.kind, "unknown" | "text" | "empty") {
            finding.kind = "onnx-data";
            finding.loaded = finding.why.is_none();
        }
        finding.tensors_of.push(model);
    }
}

fn some(needs: &onnx::Needed) -> String {
    const NAMED: usize = 3;
    let shown: Vec<String> = needs.keys().take(NAMED).map(|name| format!("{name:?}")).collect();
    let more = needs.len().saturating_sub(NAMED);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

/// Reads a file and says what it is.
fn look(path: &Path) -> Result<Finding, No> {
    let length = std::fs::metadata(path).map_err(|error| super::told(path, &error))?.len();
    let limit = model::DEFAULT_MAX_SIZE.0;
    if length > limit as u64 {
        let mut head = Vec::new();
        let read =
            std::fs::File::open(path).and_then(|file| std::io::Read::read_to_end(&mut std::io::Read::take(file, 1 << 20), &mut head));
        read.map_err(|error| super::told(path, &error))?;
        return Ok(match recognise(&head) {
            Some(Format::Safetensors) | None => {
                let kind = if recognise(&head).is_some() { "safetensors" } else { "unknown" };
                Finding::new(kind, false, false, Some(format!("it is larger than {limit} bytes, and only its beginning was looked at")))
            }
            Some(format) => refused(format),
        });
    }
    Ok(judge(&bounded(path, limit)?))
}

/// What these bytes are.
fn judge(bytes: &[u8]) -> Finding {
    let harmless = |kind| Finding::new(kind, false, false, None);
    let hostile = |kind, why: String| Finding::new(kind, false, true, Some(why));
    match recognise(bytes) {
        Some(Format::Safetensors) => match weights::Header::read(bytes) {
            Ok(_) => Finding::new("safetensors", true, false, None),
            Err(why) => hostile("safetensors", why),
        },
        Some(format) => refused(format),
        None if looks_like_onnx(bytes) => match onnx::read_apart(bytes, &onnx::Limits::DEFAULT) {
            Ok((signature, needs)) => Finding { signature: Some(signature), needs, ..Finding::new("onnx", true, false, None) },
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
    Finding::new(format.word(), false, format.danger() != Danger::None, Some(format.to_string()))
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
