//! A statement as an event of OCSF 1.9, for a SIEM.
//!
//! | kind | class | activity |
//! | --- | --- | --- |
//! | inference, deny, error, aborted | API Activity (6003) | Read for GET and HEAD, else Other, "Infer" |
//! | model-load | Application Lifecycle (6002); the model is the application | Start: loaded or refused · Update: swapped · Stop: retired |
//! | policy-change, config-change | Entity Management (3004) of a policy | Update |
//! | key-rotation | Entity Management (3004) of a signing key | Activate |
//! | erasure | Entity Management (3004) of the salts | Delete |
//! | heartbeat | Event Log Activity (1008) of the log itself | Start, Stop, else Other, "Heartbeat" |
//!
//! What is known is told, and nothing else: a statement has no address, so the source endpoint, which OCSF requires, says that it is not
//! recorded; and an event is one moment, so that the beginning and the end of a request stand in its span.
//!
//! **Record integrity.** `raw_data` is the statement, in base64: the very bytes of the log's entry. The attestation is about them: its
//! fingerprint is their SHA-256, and its signature is the one inside them (COSE, RFC 9052). The JSON around them is not signed. It follows
//! from them: whoever doubts it verifies the statement and makes the event anew. OCSF 1.9 has no place for the key's id, which is in
//! the statement's header and, for search, under `unmapped`.

use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value as Json, json};

use crate::clock::rfc3339;
use crate::digest::Digest;

/// The version of OCSF that events name.
pub(super) const VERSION: &str = "1.9.0";

/// The event of a statement: its view, and its bytes.
#[must_use]
pub(super) fn event(view: &Json, entry: &[u8]) -> Json {
    let mut event = match text(view, &["kind"]).unwrap_or_default() {
        "inference" | "deny" | "error" | "aborted" => api_activity(view),
        "model-load" => model_load(view),
        "policy-change" | "config-change" => policy_change(view),
        "heartbeat" => heartbeat(view),
        kind => key_or_salts(view, kind),
    };
    attest(&mut event, view, entry);
    event
}

/// What all events of one class and activity have.
pub(super) struct Class {
    pub(super) uid: u64,
    pub(super) category: u64,
    pub(super) activity: u64,
    /// The word for an activity that is not the class's own.
    pub(super) other: Option<&'static str>,
    pub(super) severity: Severity,
    pub(super) profiles: &'static [&'static str],
}

#[derive(Clone, Copy)]
pub(super) enum Severity {
    Informational = 1,
    Low = 2,
    Medium = 3,
    High = 4,
}

impl Class {
    /// An event that happened `nanos` after 1970.
    pub(super) fn at(&self, nanos: u64, metadata: Json) -> Map<String, Json> {
        let mut event = Map::new();
        let severity = ["Unknown", "Informational", "Low", "Medium", "High"][self.severity as usize];
        let mut put = |key: &str, value: Json| event.insert(key.into(), value);
        put("activity_id", json!(self.activity));
        if let Some(other) = self.other {
            put("activity_name", json!(other));
        }
        put("category_uid", json!(self.category));
        put("class_uid", json!(self.uid));
        put("type_uid", json!(self.uid * 100 + self.activity));
        put("severity_id", json!(self.severity as u64));
        put("severity", json!(severity));
        put("time", json!(nanos / 1_000_000));
        put("timezone_offset", json!(0));
        put("metadata", metadata);
        event
    }

    fn of(&self, view: &Json) -> Map<String, Json> {
        let seq = number(view, &["seq"]).unwrap_or_default();
        let mut metadata = json!({
            "version": VERSION,
            "product": { "name": "Portcullis", "vendor_name": "Portcullis", "feature": { "name": "provenance log" } },
            "uid": view["id"],
            "log_name": view["origin"],
            "log_provider": "Portcullis",
            "log_version": view["v"].to_string(),
            "sequence": seq,
            "event_code": view["kind"],
            "logged_time": number(view, &["t1"]).unwrap_or_default() / 1_000_000,
            "original_time": rfc3339(UNIX_EPOCH + Duration::from_nanos(number(view, &["t0"]).unwrap_or_default())),
            "profiles": self.profiles,
        });
        if let Some(program) = view["build"].get("binary") {
            metadata["product"]["uid"] = program.clone();
        }
        self.at(number(view, &["t0"]).unwrap_or_default(), metadata)
    }
}

fn api_activity(view: &Json) -> Json {
    let kind = text(view, &["kind"]).unwrap_or_default();
    let (method, route) = (text(view, &["req", "method"]).unwrap_or_default(), text(view, &["req", "route"]).unwrap_or_default());
    let status = number(view, &["resp", "status"]).unwrap_or_default();
    let code = text(view, &["resp", "code"]);
    let reads = matches!(method, "GET" | "HEAD");
    let class = Class {
        uid: 6003,
        category: 6,
        activity: if reads { 2 } else { 99 },
        other: (!reads).then_some("Infer"),
        severity: match kind {
            "inference" => Severity::Informational,
            "error" => Severity::Medium,
            _ => Severity::Low,
        },
        profiles: &["ai_operation", "record_integrity", "security_control", "trace"],
    };
    let mut event = class.of(view);
    let succeeded = kind == "inference" && status < 400;
    event.insert("status_id".into(), json!(if succeeded { 1 } else { 2 }));
    event.insert("status".into(), json!(if succeeded { "Success" } else { "Failure" }));
    event.insert("status_code".into(), json!(code.map_or_else(|| status.to_string(), str::to_owned)));
    let named = text(view, &["model", "name"]).map_or_else(String::new, |model| format!(" of {model}"));
    event.insert("message".into(), json!(format!("{kind}: {method} {route}{named}, {}", code.map_or(status.to_string(), str::to_owned))));

    let (action, disposition) = control(kind, code.unwrap_or_default());
    control_of(&mut event, action, disposition);
    put_policy(&mut event, view);
    put_model(&mut event, view);

    let user = match text(view, &["principal", "pseudonym"]) {
        Some(pseudonym) => {
            let mut user = json!({ "uid": pseudonym, "type_id": 99, "type": "Pseudonym" });
            if let Some(tenant) = text(view, &["principal", "tenant"]) {
                user["org"] = json!({ "uid": tenant });
            }
            user
        }
        None => json!({ "name": "not authenticated", "type_id": 0 }),
    };
    event.insert("actor".into(), json!({ "user": user }));
    event.insert("src_endpoint".into(), json!({ "name": "not recorded", "type_id": 0 }));
    event.insert("dst_endpoint".into(), json!({ "name": view["node"], "svc_name": view["origin"] }));
    let mut api = json!({
        "operation": if route.is_empty() { method.to_owned() } else { format!("{method} {route}") },
        "request": { "uid": view["id"] },
        "response": { "code": status },
        "service": { "name": "Portcullis", "uid": view["origin"] },
    });
    if let Some(code) = code {
        api["response"]["error"] = json!(code);
    }
    event.insert("api".into(), api);

    let mut request = json!({ "http_method": method, "uid": view["id"] });
    if !route.is_empty() {
        request["url"] = json!({ "path": route });
    }
    // Of a body that was not read the statement has neither commitment nor length.
    if view["req"].get("commit").is_some() {
        copy(&mut request, "body_length", view, &["req", "len"]);
    }
    if let Some(media_type) = text(view, &["req", "content_type"]) {
        request["http_headers"] = json!([{ "name": "content-type", "value": media_type }]);
    }
    let mut response = json!({ "code": status, "latency": millis(view) });
    copy(&mut response, "body_length", view, &["resp", "bytes_sent"]);
    copy(&mut response, "content_type", view, &["resp", "content_type"]);
    event.insert("http_request".into(), request);
    event.insert("http_response".into(), response);

    let (from, to) = (number(view, &["t0"]).unwrap_or_default() / 1_000_000, number(view, &["t1"]).unwrap_or_default() / 1_000_000);
    if let (Some(trace), Some(span)) = (text(view, &["trace", "trace_id"]), text(view, &["trace", "span_id"])) {
        let span = json!({ "uid": span, "start_time": from, "end_time": to, "duration": millis(view), "status_code": status.to_string() });
        event.insert("trace".into(), json!({ "uid": trace, "span": span }));
    }
    if let (Some(input), Some(output)) = (number(view, &["usage", "input"]), number(view, &["usage", "output"])) {
        let tokens = json!({
            "ai_role_id": 2, "prompt_tokens": input, "completion_tokens": output, "total_tokens": input.saturating_add(output),
            "service": { "name": "Portcullis", "uid": view["origin"] },
        });
        event.insert("message_context".into(), tokens);
    }
    let commits = json!({ "request": view["req"].get("commit"), "response": view["resp"].get("commit") });
    event.insert("unmapped".into(), json!({ "commits": commits, "complete": view["resp"].get("complete"), "trail": view["trail"] }));
    Json::Object(event)
}

/// What the gateway did, and what came of it: ids of action and disposition.
fn control(kind: &str, code: &str) -> (u64, u64) {
    match (kind, code) {
        ("inference" | "aborted", _) => (1, 1),
        ("error", _) => (99, 27),
        (_, code) if code.starts_with("authenticate.") => (2, 26),
        (_, code) if code.starts_with("authorize.") => (2, 2),
        _ => (2, 25),
    }
}

fn control_of(event: &mut Map<String, Json>, action: u64, disposition: u64) {
    event.insert("action_id".into(), json!(action));
    match action {
        1 => event.insert("action".into(), json!("Allowed")),
        2 => event.insert("action".into(), json!("Denied")),
        _ => event.insert("action".into(), json!("Failed")),
    };
    event.insert("disposition_id".into(), json!(disposition));
    let word = match disposition {
        1 => "Allowed",
        2 => "Blocked",
        25 => "Rejected",
        26 => "Unauthorized",
        _ => "Error",
    };
    event.insert("disposition".into(), json!(word));
}

fn put_policy(event: &mut Map<String, Json>, view: &Json) {
    if let Some(policy) = text(view, &["policy", "sha256"]) {
        event.insert("policy".into(), json!({ "name": "compiled policy", "uid": policy, "is_applied": true }));
    }
}

/// The model, and who provides it as far as the gateway knows: behind an upstream, somebody.
fn put_model(event: &mut Map<String, Json>, view: &Json) {
    let Some(name) = text(view, &["model", "name"]) else { return };
    let upstream = text(view, &["model", "assurance"]) == Some("upstream-asserted");
    let mut model = json!({ "name": name, "ai_provider": if upstream { "External" } else { "Internal" } });
    copy(&mut model, "version", view, &["model", "version"]);
    copy(&mut model, "uid", view, &["model", "sha256"]);
    event.insert("ai_model".into(), model);
}

fn model_load(view: &Json) -> Json {
    let outcome = text(view, &["change", "outcome"]).unwrap_or_default();
    let refused = outcome == "refused";
    let class = Class {
        uid: 6002,
        category: 6,
        activity: match outcome {
            "swapped" => 8,
            "retired" => 4,
            _ => 3,
        },
        other: None,
        severity: if refused { Severity::High } else { Severity::Informational },
        profiles: &["ai_operation", "record_integrity", "security_control"],
    };
    let mut event = class.of(view);
    let name = text(view, &["model", "name"]).unwrap_or_default();
    changed(&mut event, view, &format!("model {name} {outcome}"));
    let (action, disposition) = if refused { (2, 2) } else { (1, 1) };
    control_of(&mut event, action, disposition);
    put_policy(&mut event, view);
    put_model(&mut event, view);
    let mut app = json!({ "name": name });
    copy(&mut app, "version", view, &["model", "version"]);
    copy(&mut app, "uid", view, &["model", "sha256"]);
    event.insert("app".into(), app);
    event.insert("unmapped".into(), json!({}));
    Json::Object(event)
}

fn policy_change(view: &Json) -> Json {
    let refused = text(view, &["change", "outcome"]) == Some("refused");
    let severity = if refused { Severity::Medium } else { Severity::Informational };
    let class = Class { uid: 3004, category: 3, activity: 3, other: None, severity, profiles: &["record_integrity"] };
    let mut event = class.of(view);
    let of_log = matches!(text(view, &["change", "outcome"]), Some("pruned" | "ended"));
    let of = match text(view, &["kind"]) {
        _ if of_log => "log",
        Some("config-change") => "configuration",
        _ => "policy",
    };
    changed(&mut event, view, &format!("{of} {}", text(view, &["change", "outcome"]).unwrap_or("changed")));
    let mut entity = json!({ "type_id": 5, "type": "Policy", "name": format!("compiled {of}") });
    if of_log {
        entity = json!({ "type_id": 99, "type": "Log", "name": "provenance log" });
    }
    if let Some(policy) = text(view, &["policy", "sha256"]) {
        // Of a change that was refused, the policy that stays.
        entity["uid"] = json!(policy);
        entity["policy"] = json!({ "name": "compiled policy", "uid": policy, "is_applied": true });
    }
    event.insert("entity".into(), entity);
    event.insert("unmapped".into(), json!({}));
    Json::Object(event)
}

fn key_or_salts(view: &Json, kind: &str) -> Json {
    let (activity, what) = match kind {
        "key-rotation" => (10, "signing key"),
        "erasure" => (4, "salts of a subject"),
        // A kind of a later version, told by its name.
        _ => (99, kind),
    };
    let (other, severity) = ((activity == 99).then_some("Other"), Severity::Informational);
    let class = Class { uid: 3004, category: 3, activity, other, severity, profiles: &["record_integrity"] };
    let mut event = class.of(view);
    event.insert("status_id".into(), json!(1));
    event.insert("status".into(), json!("Success"));
    event.insert("message".into(), json!(kind));
    let mut entity = json!({ "type_id": 99, "type": what, "name": what });
    copy(&mut entity, "uid", view, &["endorses"]);
    event.insert("entity".into(), entity);
    let own: Map<String, Json> =
        ["endorses", "rotation", "erasure"].into_iter().filter_map(|name| Some((name.to_owned(), view.get(name)?.clone()))).collect();
    event.insert("unmapped".into(), Json::Object(own));
    Json::Object(event)
}

fn heartbeat(view: &Json) -> Json {
    let (activity, other, word) = match number(view, &["counts", "life"]) {
        Some(1) => (6, None, "the log was opened"),
        Some(3) => (7, None, "the log was closed"),
        Some(_) => (99, Some("Heartbeat"), "the log is written"),
        None => (99, Some("Heartbeat"), "answers or refusals that have no entry"),
    };
    let gaps = number(view, &["counts", "gaps"]).unwrap_or_default() > 0 || view["counts"].get("resumed_after").is_some();
    let severity = if gaps { Severity::Medium } else { Severity::Informational };
    let class = Class { uid: 1008, category: 1, activity, other, severity, profiles: &["record_integrity"] };
    let mut event = class.of(view);
    // A heartbeat's t0 is when the process began.
    event.insert("time".into(), json!(number(view, &["t1"]).unwrap_or_default() / 1_000_000));
    event.insert("status_id".into(), json!(1));
    event.insert("status".into(), json!("Success"));
    event.insert("message".into(), json!(word));
    event.insert("log_name".into(), view["origin"].clone());
    event.insert("log_provider".into(), json!("Portcullis"));
    event.insert("log_type_id".into(), json!(2));
    event.insert("log_type".into(), json!("Application"));
    event.insert("unmapped".into(), json!({ "counts": view["counts"] }));
    Json::Object(event)
}

/// How a change ended, and why.
fn changed(event: &mut Map<String, Json>, view: &Json, what: &str) {
    let refused = text(view, &["change", "outcome"]) == Some("refused");
    event.insert("status_id".into(), json!(if refused { 2 } else { 1 }));
    event.insert("status".into(), json!(if refused { "Failure" } else { "Success" }));
    event.insert("message".into(), json!(what));
    if let Some(reason) = text(view, &["change", "reason"]) {
        event.insert("status_detail".into(), json!(reason));
    }
}

/// The statement itself, and what it attests.
fn attest(event: &mut Json, view: &Json, entry: &[u8]) {
    let digest = json!({
        "algorithm_id": 3, "algorithm": "SHA-256", "encoding_id": 1, "encoding": "Hex", "serialization_id": 1, "serialization": "Flat",
        "value": Digest::of(entry).to_string(),
    });
    let signature = json!({
        "algorithm_id": 99, "algorithm": "EdDSA", "serialization_id": 4, "serialization": "COSE",
        "created_time": number(view, &["t1"]).unwrap_or_default() / 1_000_000,
        "digest": digest,
    });
    let (origin, seq) = (text(view, &["origin"]).unwrap_or_default(), number(view, &["seq"]).unwrap_or_default());
    event["attestation_list"] = json!([{
        "uid": format!("{origin}#{seq}"), "chain_uid": origin, "authority_uid": origin, "fingerprint": digest, "signatures": [signature],
    }]);
    event["raw_data"] = json!(STANDARD.encode(entry));
    event["raw_data_hash"] = digest;
    event["raw_data_size"] = json!(entry.len());
    event["unmapped"]["kid"] = view["kid"].clone();
    event["unmapped"]["leaf_index"] = json!(seq);
    for (name, path) in [
        ("principal_epoch", ["principal", "epoch"]),
        ("principal_method", ["principal", "method"]),
        ("model_format", ["model", "format"]),
        ("model_assurance", ["model", "assurance"]),
        ("config_sha256", ["build", "config"]),
    ] {
        copy(&mut event["unmapped"], name, view, &path);
    }
}

fn millis(view: &Json) -> u64 {
    number(view, &["t1"]).unwrap_or_default().saturating_sub(number(view, &["t0"]).unwrap_or_default()) / 1_000_000
}

fn at<'a>(view: &'a Json, path: &[&str]) -> Option<&'a Json> {
    path.iter().try_fold(view, |value, key| value.get(key))
}

pub(super) fn text<'a>(view: &'a Json, path: &[&str]) -> Option<&'a str> {
    at(view, path)?.as_str()
}

fn number(view: &Json, path: &[&str]) -> Option<u64> {
    at(view, path)?.as_u64()
}

fn copy(to: &mut Json, key: &str, view: &Json, path: &[&str]) {
    if let Some(value) = at(view, path) {
        to[key] = value.clone();
    }
}

#[cfg(test)]
#[path = "ocsf/tests.rs"]
mod tests;
