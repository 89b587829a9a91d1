//! An alarm of the security log as a Detection Finding of OCSF 1.9.
//!
//! The provenance log has none: a caller reads its statements, so a refusal by a detector reads there like any other limit. The security
//! log names the family, the rule and the evidence, and the receipt under which the provenance log has the request. It is not signed, so
//! that its findings attest nothing.

use serde_json::{Map, Value as Json, json};

use super::ocsf::{Class, Severity, VERSION, text};
use crate::clock::from_rfc3339;

/// Why a line of the security log is no finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotAFinding {
    /// It is an event of another name.
    AnotherEvent,
    /// It is not a JSON object with `time` and `event`.
    NotALine,
}

/// The finding of a line.
///
/// # Errors
/// When the line is none of `detect.alarm`.
pub(super) fn finding(line: &str) -> Result<Json, NotAFinding> {
    let line: Json = serde_json::from_str(line).map_err(|_| NotAFinding::NotALine)?;
    let (Some(event), Some(time)) = (text(&line, &["event"]), text(&line, &["time"]).and_then(from_rfc3339)) else {
        return Err(NotAFinding::NotALine);
    };
    if event != "detect.alarm" {
        return Err(NotAFinding::AnotherEvent);
    }
    let nanos = time.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
    Ok(Json::Object(of_alarm(&line, nanos)))
}

fn of_alarm(line: &Json, nanos: u64) -> Map<String, Json> {
    let (family, step) = (text(line, &["family"]).unwrap_or("unknown"), text(line, &["step"]).unwrap_or_default());
    let (receipt, model, rule) = (text(line, &["receipt"]), text(line, &["model"]), text(line, &["rule"]));
    let (severity, action, disposition) = match step {
        "refuse" => (Severity::High, (2, "Denied"), (2, "Blocked")),
        "degrade" => (Severity::Medium, (4, "Modified"), (7, "Custom Action")),
        _ => (Severity::Medium, (3, "Observed"), (15, "Detected")),
    };
    let class = Class { uid: 2004, category: 2, activity: 1, other: None, severity, profiles: &["security_control"] };
    let time = nanos / 1_000_000;
    let product = json!({ "name": "Portcullis", "vendor_name": "Portcullis", "feature": { "name": "security log" } });
    let mut metadata = json!({ "version": VERSION, "product": product, "event_code": "detect.alarm", "profiles": class.profiles });
    if let Some(receipt) = receipt {
        metadata["correlation_uid"] = json!(receipt);
    }
    let mut event = class.at(nanos, metadata);
    let mut put = |key: &str, value: Json| event.insert(key.into(), value);
    put("status_id", json!(1));
    put("status", json!("New"));
    put("is_alert", json!(true));
    put("action_id", json!(action.0));
    put("action", json!(action.1));
    put("disposition_id", json!(disposition.0));
    put("disposition", json!(disposition.1));
    if let Some(code) = text(line, &["code"]) {
        put("status_code", json!(code));
    }
    let title = format!("{family}{}", model.map_or_else(String::new, |model| format!(" on {model}")));
    put("message", json!(title));

    let mut analytic = json!({ "type_id": 2, "type": "Behavioral", "name": family, "category": "detect" });
    if let Some(rule) = rule {
        analytic["uid"] = json!(rule);
    }
    // One alarm a request and rule: the receipt and the rule name it, without a receipt the moment does, with what was looked at then.
    let cohort = || text(line, &["cohort", "name"]).map_or_else(String::new, |cohort| format!("/{}/{cohort}", model.unwrap_or_default()));
    let at = receipt.map_or_else(|| format!("{nanos}{}", cohort()), str::to_owned);
    let uid = [at, family.to_owned(), rule.unwrap_or_default().to_owned()].join("/");
    let mut info = json!({ "uid": uid, "title": title, "created_time": time, "analytic": analytic, "data_sources": ["security log"] });
    if let Some(receipt) = receipt {
        // API Activity, of whatever activity.
        info["related_events"] = json!([{ "uid": receipt, "type": "provenance statement" }]);
    }
    put("finding_info", info);

    let mut evidence = json!({ "name": family, "data": { "evidence": line["evidence"], "query": line["query"], "step": step } });
    if line["cohort"].is_object() {
        evidence["data"]["cohort"] = line["cohort"].clone();
    }
    if let Some(caller) = text(line, &["caller"]) {
        let mut user = json!({ "uid": caller });
        if let Some(tenant) = text(line, &["tenant"]) {
            user["org"] = json!({ "name": tenant });
        }
        evidence["actor"] = json!({ "user": user });
    }
    put("evidences", json!([evidence]));
    if let Some(model) = model {
        put("resources", json!([{ "name": model, "type": "AI model", "role_id": 1, "role": "Target" }]));
    }
    event
}
