use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};

use super::super::finding::{NotAFinding, finding};
use super::*;
use crate::clock::Moment;
use crate::prove::{Build, Change, Changed, Config, Erasure, Key, Ledger};
use crate::trail::{Assurance, Content, Stop, Trace, Trail, Usage, Verdict, Which, Who};
use crate::verify::entries::Entries;
use crate::verify::statement::{Kind, Statement};

/// What of OCSF's schema these events may use, as JSON Schema; `tests/data/make_ocsf.py` tells where it is from.
const SCHEMA: &str = include_str!("../../../tests/data/ocsf.json");

/// What the schema has against an event.
fn wrong(event: &Json) -> Vec<String> {
    let mut schema: Json = serde_json::from_str(SCHEMA).unwrap();
    schema["$ref"] = json!(format!("#/classes/{}", event["class_uid"]));
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut wrong: Vec<String> = validator.iter_errors(event).map(|error| format!("{}: {error}", error.instance_path())).collect();
    // What JSON Schema does not say: each id and its word belong together, and so do class, category, activity and type.
    let id = |name: &str| event[name].as_u64().unwrap_or_default();
    if id("type_uid") != id("class_uid") * 100 + id("activity_id") {
        wrong.push("type_uid".into());
    }
    if event["activity_id"] == 99 && event.get("activity_name").is_none() {
        wrong.push("activity_name: an activity that is not the class's own has a name".into());
    }
    wrong
}

fn trail() -> Trail {
    let trace = Trace { trace_id: [1; 16], span_id: [2; 8], sampled: false };
    let mut trail = Trail::new(Moment::now(), [192, 0, 2, 7].into(), Method::POST, "2", Digest::of(b"policy"), trace);
    trail.route = "/v2/models/{model}/infer".into();
    trail.who = Some(Arc::new(Who { caller: "api_key:a".into(), tenant: "acme".into(), tier: "".into(), method: "api_key" }));
    trail.which = Some(which());
    trail.request = Content { media_type: Some("application/json".into()), length: 7, digest: Some(Digest::of(b"request")) };
    trail.usage = Some(Usage { input: 3, output: 5 });
    for stop in [Stop::Authenticate, Stop::Authorize] {
        trail.step(stop, Verdict::Passed, None, Instant::now(), Instant::now());
    }
    trail
}

fn which() -> Arc<Which> {
    let digest = Some(Digest::of(b"model"));
    Arc::new(Which { name: "digits".into(), version: "1".into(), digest, format: "onnx".into(), assurance: Assurance::VerifiedInProcess })
}

/// A log with what a gateway writes without a model, each as its view and its entry.
async fn log() -> (tempfile::TempDir, Vec<(Json, Vec<u8>)>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("key"), Key::generate_pem().expose()).unwrap();
    let config: Config = toml::from_str("directory = \"log\"\norigin = \"gw.example/node1\"\nkey = \"key\"").unwrap();
    let (events, _reader) = crate::event::channel(8);
    let build = Build { binary: Some(Digest::of(b"program")), config: Some(Digest::of(b"config")) };
    let (ledger, _) = Ledger::open(&config, folder.path(), build, events, Box::new(|_| {})).unwrap();
    let refuse = |trail, code, status| ledger.refuse(trail, code, status, HeaderMap::new(), Bytes::from_static(b"{}"));
    refuse(trail(), "check.schema", StatusCode::BAD_REQUEST).await;
    refuse(trail(), "infer.unavailable", StatusCode::SERVICE_UNAVAILABLE).await;
    let trace = Trace { trace_id: [1; 16], span_id: [2; 8], sampled: false };
    let stranger = Trail::new(Moment::now(), [192, 0, 2, 8].into(), Method::GET, "1.1", Digest::of(b"policy"), trace);
    refuse(stranger, "authenticate.missing", StatusCode::UNAUTHORIZED).await;
    let which = which();
    for changed in [Changed::Loaded, Changed::Swapped, Changed::Refused, Changed::Retired] {
        let reason = (changed == Changed::Refused).then_some("another file");
        ledger.tell(&Change { changed, which: Some(&which), reason, policy: Some(Digest::of(b"policy")) });
    }
    ledger.tell(&Change { changed: Changed::Accepted, which: None, reason: None, policy: Some(Digest::of(b"policy")) });
    ledger.tell(&Change { changed: Changed::Refused, which: None, reason: Some("3 mistakes"), policy: None });
    ledger.close();
    let read = |entry: Vec<u8>| (Statement::read(&entry).unwrap().view(), entry);
    let entries = Entries::of(&folder.path().join("log")).unwrap().map(|entry| read(entry.unwrap().1)).collect();
    (folder, entries)
}

/// The refusal of the log above as an answer.
fn answered(refusal: &(Json, Vec<u8>), kind: &str, status: u64) -> Json {
    let mut view = refusal.0.clone();
    (view["kind"], view["resp"]["status"]) = (json!(kind), json!(status));
    view["resp"].as_object_mut().unwrap().remove("code");
    event(&view, &refusal.1)
}

#[tokio::test]
async fn every_entry_of_a_log_is_an_event_that_the_schema_allows() {
    let (_folder, entries) = log().await;
    let mut classes = Vec::new();
    for (view, entry) in &entries {
        let event = event(view, entry);
        assert_eq!(wrong(&event), [""; 0], "{event:#}");
        classes.push((event["type_uid"].as_u64().unwrap(), event["status_id"].as_u64().unwrap(), event["severity_id"].as_u64().unwrap()));
    }
    let refusals = [(600_399, 2, 2), (600_399, 2, 3), (600_302, 2, 2)];
    let models = [(600_203, 1, 1), (600_208, 1, 1), (600_203, 2, 4), (600_204, 1, 1)];
    let expected =
        [&[(300_410, 1, 1), (100_806, 1, 1)][..], &refusals, &models, &[(300_403, 1, 1), (300_403, 2, 3), (100_807, 1, 1)]].concat();
    assert_eq!(classes, expected);
}

#[tokio::test]
async fn an_answer_tells_caller_model_policy_request_answer_and_trace() {
    let (_folder, entries) = log().await;
    let refusal = &entries[2];
    let event = answered(refusal, "inference", 200);
    assert_eq!(wrong(&event), [""; 0], "{event:#}");
    assert_eq!((&event["status_id"], &event["status_code"], &event["severity_id"]), (&json!(1), &json!("200"), &json!(1)));
    assert_eq!((&event["action_id"], &event["disposition_id"]), (&json!(1), &json!(1)));
    assert_eq!(event["actor"]["user"]["uid"], refusal.0["principal"]["pseudonym"]);
    assert_eq!(event["actor"]["user"]["org"]["uid"], refusal.0["principal"]["tenant"]);
    let model = json!({ "name": "digits", "ai_provider": "Internal", "version": "1", "uid": Digest::of(b"model").to_string() });
    assert_eq!(event["ai_model"], model);
    assert_eq!(event["policy"]["uid"], Digest::of(b"policy").to_string());
    assert_eq!(event["http_request"]["url"]["path"], "/v2/models/{model}/infer");
    assert_eq!((&event["http_request"]["body_length"], &event["http_response"]["code"]), (&json!(7), &json!(200)));
    assert_eq!((&event["trace"]["uid"], &event["trace"]["span"]["uid"]), (&json!("01".repeat(16)), &json!("02".repeat(8))));
    assert_eq!(event["trace"]["span"]["start_time"], event["time"]);
    assert_eq!(event["message_context"]["total_tokens"], 8);
    // One moment, and no aggregate: OCSF 1.9 keeps these three for those.
    assert!(["start_time", "end_time", "duration"].iter().all(|key| event.get(key).is_none()));
    let text = event.to_string();
    assert!(!text.contains("api_key:a") && !text.contains("192.0.2.7"), "{text}");
}

#[tokio::test]
async fn what_the_gateway_did_is_told_truthfully() {
    let (_folder, entries) = log().await;
    let told = |event: &Json| {
        let ids = ["action_id", "disposition_id", "status_id"].map(|key| event[key].as_u64().unwrap());
        (ids, event["status_code"].as_str().unwrap().to_owned())
    };
    let of = |seq: usize| event(&entries[seq].0, &entries[seq].1);
    assert_eq!(told(&of(2)), ([2, 25, 2], "check.schema".into()));
    assert_eq!(told(&of(3)), ([99, 27, 2], "infer.unavailable".into()));
    assert_eq!(told(&of(4)), ([2, 26, 2], "authenticate.missing".into()));
    assert_eq!(of(4)["actor"]["user"]["name"], "not authenticated");
    assert_eq!(of(4)["http_request"].get("body_length"), None, "nobody read it");
    assert_eq!(told(&answered(&entries[2], "aborted", 200)), ([1, 1, 2], "200".into()));
    // What an upstream refused and the gateway passed on was allowed, and failed.
    assert_eq!(told(&answered(&entries[2], "inference", 422)), ([1, 1, 2], "422".into()));
    let mut view = entries[2].0.clone();
    (view["resp"]["code"], view["model"]["assurance"]) = (json!("authorize.denied"), json!("upstream-asserted"));
    let denied = event(&view, &[]);
    assert_eq!((told(&denied).0, &denied["ai_model"]["ai_provider"]), ([2, 2, 2], &json!("External")));
    assert_eq!(wrong(&denied), [""; 0]);
}

#[tokio::test]
async fn the_attestation_is_of_the_statement_that_the_event_carries() {
    let (_folder, entries) = log().await;
    for (seq, (view, entry)) in entries.iter().enumerate() {
        let event = event(view, entry);
        let carried = STANDARD.decode(event["raw_data"].as_str().unwrap()).unwrap();
        assert_eq!((&carried, event["raw_data_size"].as_u64()), (entry, Some(entry.len() as u64)));
        let attestation = &event["attestation_list"][0];
        let digest = Digest::of(&carried).to_string();
        assert_eq!((&attestation["fingerprint"]["value"], &event["raw_data_hash"]["value"]), (&json!(digest), &json!(digest)));
        assert_eq!(
            (&attestation["uid"], &attestation["chain_uid"]),
            (&json!(format!("gw.example/node1#{seq}")), &json!("gw.example/node1"))
        );
        assert_eq!((&attestation["signatures"][0]["algorithm"], &event["metadata"]["sequence"]), (&json!("EdDSA"), &json!(seq)));
        assert_eq!(event["unmapped"]["kid"], view["kid"]);
        // Whoever has the statement makes the same event again.
        assert_eq!(super::event(&Statement::read(&carried).unwrap().view(), &carried), event);
    }
}

/// A log that is handed to another key after the power was lost, and tells what was destroyed, pruned and ended.
async fn log_of_two_keys() -> (tempfile::TempDir, Vec<(Json, Vec<u8>)>) {
    let folder = tempfile::tempdir().unwrap();
    ["one", "two"].iter().for_each(|key| std::fs::write(folder.path().join(key), Key::generate_pem().expose()).unwrap());
    let open = |keys: &str| {
        let config: Config = toml::from_str(&format!("directory = \"log\"\norigin = \"gw.example/node1\"\n{keys}")).unwrap();
        let (events, _reader) = crate::event::channel(8);
        Ledger::open(&config, folder.path(), Build::default(), events, Box::new(|_| {})).unwrap().0
    };
    let ledger = open("key = \"one\"");
    ledger.refuse(trail(), "authorize.denied", StatusCode::FORBIDDEN, HeaderMap::new(), Bytes::new()).await;
    ledger.close();
    drop(ledger);
    std::fs::write(folder.path().join("log/lock"), "another boot").unwrap();
    let ledger = open("key = \"two\"\nprevious_key = \"one\"");
    ledger.erase(Erasure::Subject { tenant: "acme".into(), caller: "api_key:a".into() }).await.unwrap();
    for (changed, reason) in
        [(Changed::Pruned, "entries before 256"), (Changed::Ended, "gw.example/node1/2026h1 ended with 3 entries, root 00")]
    {
        ledger.tell(&Change { changed, which: None, reason: Some(reason), policy: None });
    }
    ledger.close();
    let read = |entry: Vec<u8>| (Statement::read(&entry).unwrap().view(), entry);
    let entries = Entries::of(&folder.path().join("log")).unwrap().map(|entry| read(entry.unwrap().1)).collect();
    (folder, entries)
}

#[tokio::test]
async fn what_a_log_tells_of_itself_and_its_keys_is_allowed_too() {
    let (_folder, entries) = log_of_two_keys().await;
    let mut types = Vec::new();
    for (view, entry) in &entries {
        let event = event(view, entry);
        assert_eq!(wrong(&event), [""; 0], "{event:#}");
        types.push(event["type_uid"].as_u64().unwrap());
    }
    // Opened, refused, closed; handed over, opened, erased, pruned, ended, closed.
    assert_eq!(types, [300_410, 100_806, 600_399, 100_807, 300_410, 100_806, 300_404, 300_403, 300_403, 100_807]);
    assert!(entries[4].0["rotation"]["resumed_after"].is_u64(), "{}", entries[4].0);
}

#[tokio::test]
async fn every_kind_of_entry_and_every_class_of_the_schema_is_held_against_the_other() {
    let ((_one, mut entries), (_two, others)) = (log().await, log_of_two_keys().await);
    entries.extend(others);
    let of = |kind: &str| entries.iter().find(|(view, _)| view["kind"] == kind).unwrap();
    let mut made: Vec<Json> = entries.iter().map(|(view, entry)| event(view, entry)).collect();
    let refusal = of("deny");
    for (kind, status) in [("inference", 200), ("inference", 422), ("aborted", 200), ("error", 502), ("deny", 403)] {
        made.push(answered(refusal, kind, status));
    }
    // An answer with all that one may have, and one with as little.
    let mut full = refusal.clone();
    full.0["kind"] = json!("inference");
    (full.0["resp"]["n_events"], full.0["resp"]["events_commit"]) = (json!(7), json!("00".repeat(32)));
    full.0["exposure"] = json!(3);
    made.push(event(&full.0, &full.1));
    for name in ["model", "principal", "usage", "trace", "policy", "build"] {
        full.0.as_object_mut().unwrap().remove(name);
        made.push(event(&full.0, &full.1));
    }
    let heartbeat = of("heartbeat");
    for counts in [
        json!({ "gaps": 0, "life": 2 }),
        json!({ "gaps": 3 }),
        json!({ "gaps": 0, "suppressed": { "accept.full": 9 } }),
        json!({ "gaps": 0, "resumed_after": 7, "life": 1 }),
    ] {
        let mut view = heartbeat.0.clone();
        view["counts"] = counts;
        made.push(event(&view, &heartbeat.1));
    }
    let erasure = of("erasure");
    for of in ["subject", "epoch", "strangers"] {
        let mut view = erasure.0.clone();
        view["erasure"] = json!({ "keys": 1, "of": of, "from": 202_601, "to": 202_601 });
        made.push(event(&view, &erasure.1));
    }
    made.push(finding(ALARM).unwrap());
    for event in &made {
        assert_eq!(wrong(event), [""; 0], "{event:#}");
    }
    let kinds: BTreeSet<&str> = made.iter().filter_map(|event| event["metadata"]["event_code"].as_str()).collect();
    let expected: BTreeSet<&str> = Kind::ALL.into_iter().map(Kind::as_str).chain(["detect.alarm"]).collect();
    assert_eq!(kinds, expected);
    let schema: Json = serde_json::from_str(SCHEMA).unwrap();
    let classes: BTreeSet<String> = made.iter().map(|event| event["class_uid"].to_string()).collect();
    assert_eq!(classes, schema["classes"].as_object().unwrap().keys().cloned().collect());
}

#[tokio::test]
async fn kinds_of_other_versions_are_events_too() {
    let (_folder, entries) = log().await;
    for (kind, expected) in [("config-change", 300_403), ("erasure", 300_404), ("something-new", 300_499)] {
        let mut view = entries[0].0.clone();
        view["kind"] = json!(kind);
        let event = event(&view, &entries[0].1);
        assert_eq!((wrong(&event), event["type_uid"].as_u64()), (Vec::new(), Some(expected)));
    }
}

#[tokio::test]
async fn the_schema_refuses_what_is_unknown_missing_mistyped_or_not_in_its_lists() {
    let (_folder, entries) = log().await;
    let good = answered(&entries[2], "inference", 200);
    let with = |change: &dyn Fn(&mut Json)| {
        let mut bad = good.clone();
        change(&mut bad);
        wrong(&bad)
    };
    assert!(with(&|_| {}).is_empty());
    assert!(!with(&|event| event["colour"] = json!("blue")).is_empty(), "an attribute that the class does not know");
    assert!(!with(&|event| event["api"]["colour"] = json!("blue")).is_empty(), "or an object");
    assert!(!with(&|event| event["attestation_list"][0]["signatures"][0]["kid"] = json!("00")).is_empty(), "or one in a list of lists");
    for required in ["activity_id", "actor", "api", "category_uid", "metadata", "severity_id", "src_endpoint", "time"] {
        let gone = with(&|event| drop(event.as_object_mut().unwrap().remove(required)));
        let told = format!("\"{required}\" is a required property");
        assert!(gone.iter().any(|why| why.contains(&told)), "{required}: {gone:?}");
    }
    assert!(!with(&|event| event["time"] = json!("now")).is_empty());
    assert!(!with(&|event| event["disposition_id"] = json!(28)).is_empty());
    assert!(!with(&|event| event["attestation_list"][0]["fingerprint"]["algorithm_id"] = json!(21)).is_empty());
    assert!(!with(&|event| event["actor"] = json!({})).is_empty(), "one of several is required");
    assert!(!with(&|event| event["type_uid"] = json!(600_301)).is_empty());
}

const ALARM: &str = r#"{"time":"2026-11-20T12:00:00.250Z","event":"detect.alarm","caller":"api_key:a","tenant":"acme","model":"digits",
"code":"check.step","rule":"precision","receipt":"0192f5c4-7a5b-7cc0-8000-5f6b7f1d2a11","family":"precision","query":41,"evidence":{"rows":3},"step":"refuse"}"#;

#[test]
fn an_alarm_is_a_finding_with_its_family_evidence_and_receipt() {
    let found = finding(ALARM).unwrap();
    assert_eq!(wrong(&found), [""; 0], "{found:#}");
    assert_eq!((&found["type_uid"], &found["time"]), (&json!(200_401), &json!(1_795_176_000_250_u64)));
    assert_eq!((&found["action_id"], &found["disposition_id"], &found["is_alert"]), (&json!(2), &json!(2), &json!(true)));
    assert_eq!(found["finding_info"]["analytic"]["name"], "precision");
    assert_eq!(found["finding_info"]["related_events"][0]["uid"], "0192f5c4-7a5b-7cc0-8000-5f6b7f1d2a11");
    assert_eq!(found["evidences"][0]["data"], json!({ "evidence": { "rows": 3 }, "query": 41, "step": "refuse" }));
    assert_eq!(found["evidences"][0]["actor"]["user"]["uid"], "api_key:a");
    for (step, action) in [("degrade", 4), ("observe", 3)] {
        let found = finding(&ALARM.replace("\"step\":\"refuse\"", &format!("\"step\":\"{step}\""))).unwrap();
        assert_eq!((wrong(&found), found["action_id"].as_u64()), (Vec::new(), Some(action)), "{step}");
    }
}

#[test]
fn campaigns_that_one_look_found_are_findings_of_their_own_with_who_is_of_them() {
    let line = |first: &str| {
        let line = r#"{"time":"2026-11-20T12:00:00.250Z","event":"detect.alarm","model":"chat","rule":"distillation.cohort","family":"distillation",
"cohort":{"name":"alike:FIRST","callers":16},"evidence":{"weight":2.4,"by":16,"callers":["FIRST"]},"step":"observe"}"#;
        finding(&line.replace("FIRST", first)).unwrap()
    };
    let (one, other) = (line("api_key:a"), line("api_key:b"));
    assert_eq!(wrong(&one), [""; 0], "{one:#}");
    assert_ne!(one["finding_info"]["uid"], other["finding_info"]["uid"]);
    assert_eq!(one["evidences"][0]["data"]["cohort"], json!({ "name": "alike:api_key:a", "callers": 16 }));
    assert_eq!(one["evidences"][0]["data"]["evidence"]["callers"], json!(["api_key:a"]));
}

#[test]
fn a_line_that_is_no_alarm_is_no_finding_and_one_with_little_in_it_is() {
    assert_eq!(finding(&ALARM.replace("detect.alarm", "request.refused")).unwrap_err(), NotAFinding::AnotherEvent);
    for torn in ["", "{", "[]", "{\"event\":\"detect.alarm\"}", "{\"event\":\"detect.alarm\",\"time\":\"yesterday\"}"] {
        assert_eq!(finding(torn).unwrap_err(), NotAFinding::NotALine, "{torn}");
    }
    let cut = finding("{\"event\":\"detect.alarm\",\"time\":\"2026-11-20T12:00:00.250Z\",\"cut\":true}").unwrap();
    assert_eq!(wrong(&cut), [""; 0], "{cut:#}");
}
