//! The life of models: versions side by side and in the shadow, swapped under load, taken back, and watched on disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use portcullis::digest::Digest;
use portcullis::verify::statement::Statement;
use portcullis::wire::grpc as message;
use serde_json::{Value, json};

use crate::support::ask::{ask, framed, post_chat};
use crate::support::onnx::adder;
use crate::support::upstream::{Seen, whole};
use crate::support::{Client, Folder, Gateway, PATIENCE, Reply, Upstream};

const UNLIMITED: &str = "[budget.default]\nrequests = { rate = \"100000/s\", burst = 100000 }\nin_flight = 10000\n";

/// A version of the model `adder` in the file `models/FILE.toml`, which adds `number`.
fn version(folder: &Folder, file: &str, version: &str, number: f32, more: &str) {
    folder.write(&format!("models/{number}.onnx"), adder(number));
    folder.model(file, text(version, number, more));
}

fn text(version: &str, number: f32, more: &str) -> String {
    let sha256 = Digest::of(&adder(number));
    format!(
        "name = \"adder\"\nversion = \"{version}\"\npublic = true\n[backend.onnx]\npath = \"{number}.onnx\"\nsha256 = \"{sha256}\"\n{UNLIMITED}{more}"
    )
}

fn add(path: &str) -> http::Request<Bytes> {
    ask("POST", path, json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [40.0]}]}).to_string())
}

/// What was added, the version that the answer names, and the signed statement of it.
fn added(reply: &Reply) -> (f64, String, Value) {
    let answer = reply.json();
    let sum = answer["outputs"][0]["data"][0].as_f64().unwrap_or_else(|| panic!("{answer}"));
    (sum - 40.0, answer["model_version"].as_str().unwrap().to_owned(), statement(reply))
}

fn statement(reply: &Reply) -> Value {
    let statement = STANDARD.decode(reply.header("provenance-statement").trim_matches(':')).unwrap();
    Statement::read(&statement).unwrap().view()
}

/// Asks so often without naming a version, and counts what was added; the receipt must name the version that did.
async fn counted(client: &mut Client, requests: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..requests {
        let (number, version, statement) = added(&client.send(add("/v2/models/adder/infer")).await.is(200));
        assert_eq!(statement["model"]["version"], version);
        assert_eq!(statement["model"]["sha256"], Digest::of(&adder(number as f32)).to_string());
        *counts.entry(version).or_default() += 1;
    }
    counts
}

async fn told(folder: &Folder, event: &str, count: usize) -> Vec<Value> {
    let asked = Instant::now();
    loop {
        let found: Vec<Value> = folder.security_log().into_iter().filter(|line| line["event"] == event).collect();
        if found.len() >= count {
            return found;
        }
        assert!(asked.elapsed() < PATIENCE, "{event} is not told {count} times: {:#?}", folder.security_log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Asks for a reload, and waits until another policy is in force. The gateway may have looked by itself a moment before: then it reads
/// the same folder twice.
async fn reloaded(gateway: &Gateway, before: &str) -> String {
    gateway.signal("HUP");
    replaced(gateway, before).await
}

/// Waits until another policy is in force.
async fn replaced(gateway: &Gateway, before: &str) -> String {
    let asked = Instant::now();
    loop {
        let now = gateway.policy().await;
        if now != before {
            return now;
        }
        assert!(asked.elapsed() < PATIENCE, "the policy stays: {:#?}", gateway.said());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until a metric has this value.
async fn metric(gateway: &Gateway, name: &str, expected: f64) {
    gateway
        .admin_until("/metrics", |_, text| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).map_or(0.0, |rest| rest.trim().parse().unwrap());
            (line - expected).abs() < 1e-6
        })
        .await;
}

#[tokio::test]
async fn versions_stand_side_by_side_and_share_the_traffic_and_the_one_that_is_named_answers() {
    let folder = Folder::new();
    version(&folder, "one", "1", 1.0, "[traffic]\nshare = 75\n");
    version(&folder, "two", "2", 2.0, "[traffic]\nshare = 25\n");
    version(&folder, "ten", "10", 10.0, "[traffic]\nshare = 0\n");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let counts = counted(&mut client, 400).await;
    // Five standard deviations of 400 draws at one in four.
    assert!((57..=143).contains(&counts["2"]) && counts["1"] + counts["2"] == 400, "{counts:?}");
    for (version, number) in [("1", 1.0), ("2", 2.0), ("10", 10.0)] {
        let (found, named, statement) = added(&client.send(add(&format!("/v2/models/adder/versions/{version}/infer"))).await.is(200));
        assert_eq!((found, &*named, &statement["model"]["version"]), (number, version, &json!(version)));
        client.send(ask("GET", &format!("/v2/models/adder/versions/{version}/ready"), "")).await.is(200);
    }
    client.send(add("/v2/models/adder/versions/3/infer")).await.is(404);
    for path in ["/v2/models/adder", "/v2/models/adder/versions/2"] {
        assert_eq!(client.send(ask("GET", path, "")).await.is(200).json()["versions"], json!(["1", "2", "10"]));
    }
    let listed = client.send(ask("GET", "/v1/models", "")).await.is(200).json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed["data"][0]["id"], "adder");

    let infer = message::ModelInferRequest {
        model_name: "adder".to_owned(),
        model_version: "10".to_owned(),
        inputs: vec![message::InferTensor {
            name: "x".to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![1, 1],
            contents: Some(Box::new(message::InferTensorContents { fp32_contents: vec![40.0], ..Default::default() })),
            ..Default::default()
        }],
        ..Default::default()
    };
    let reply = client.send(ask("POST", "/inference.GRPCInferenceService/ModelInfer", framed(&infer))).await.is(200);
    let answer: message::ModelInferResponse = prost::Message::decode(reply.body.slice(5..)).unwrap();
    assert_eq!((&*answer.model_version, &*answer.raw_output_contents.concat()), ("10", &50.0_f32.to_le_bytes()[..]));
    let other = message::ModelInferRequest { model_version: "3".to_owned(), ..infer };
    let reply = client.send(ask("POST", "/inference.GRPCInferenceService/ModelInfer", framed(&other))).await;
    assert_eq!(reply.reason(), "authorize.denied");
}

#[tokio::test]
async fn a_caller_keeps_its_version_where_the_policy_is_sticky() {
    let folder = Folder::new();
    version(&folder, "one", "1", 1.0, "[traffic]\nshare = 50\nsticky = true\n");
    version(&folder, "two", "2", 2.0, "[traffic]\nshare = 50\nsticky = true\n");
    let gateway = folder.serve().await;
    let first = counted(&mut gateway.h2().await, 40).await;
    assert_eq!(first.len(), 1, "one caller, one version: {first:?}");
    gateway.stop().await;
    assert_eq!(counted(&mut folder.serve().await.h2().await, 40).await, first, "and after a restart");
}

#[tokio::test]
async fn all_versions_draw_on_one_budget() {
    let folder = Folder::new();
    for (file, name, number) in [("one", "1", 1.0), ("two", "2", 2.0)] {
        version(&folder, file, name, number, "[traffic]\nshare = 50\n");
        let few = "[budget.default]\nrequests = { rate = \"1/h\", burst = 3 }\n";
        folder.write(&format!("models/{file}.toml"), folder.read(&format!("models/{file}.toml")).replace(UNLIMITED, few));
    }
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    for version in ["1", "2", "1"] {
        client.send(add(&format!("/v2/models/adder/versions/{version}/infer"))).await.is(200);
    }
    for version in ["1", "2"] {
        client.send(add(&format!("/v2/models/adder/versions/{version}/infer"))).await.is(429);
    }
}

#[tokio::test]
async fn a_shadow_is_asked_and_compared_and_never_heard() {
    let folder = Folder::new();
    version(&folder, "one", "1", 1.0, "");
    version(&folder, "near", "2", 1.0625, "[traffic]\nshadow = true\ntolerance = 0.0625\n");
    version(&folder, "far", "3", 3.0, "[traffic]\nshadow = true\ntolerance = 0.0625\n");
    version(&folder, "label", "4", 4.0, "[traffic]\nshadow = true\ncompare = \"labels\"\n");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    for _ in 0..5 {
        let (number, version, _) = added(&client.send(add("/v2/models/adder/infer")).await.is(200));
        assert_eq!((number, &*version), (1.0, "1"));
    }
    let shadow =
        |version: &str, outcome: &str| format!("portcullis_shadow_total{{model=\"adder\",version=\"{version}\",outcome=\"{outcome}\"}} ");
    for (version, outcome, off) in [("2", "agree", 0.0625), ("3", "differ", 2.0), ("4", "agree", 3.0)] {
        metric(&gateway, &shadow(version, outcome), 5.0).await;
        metric(&gateway, &format!("portcullis_shadow_difference{{model=\"adder\",version=\"{version}\"}} "), off).await;
        client.send(add(&format!("/v2/models/adder/versions/{version}/infer"))).await.is(404);
    }
    // What is refused was not answered, so that nothing is compared; what is only told is no call.
    client.send(ask("POST", "/v2/models/adder/infer", json!({"inputs": []}).to_string())).await.is(400);
    assert_eq!(client.send(ask("GET", "/v2/models/adder", "")).await.is(200).json()["versions"], json!(["1"]));
    // The counts outlive a reload that leaves the shadows in their places.
    folder.write("access.cedar", folder.read("access.cedar") + "// again\n");
    reloaded(&gateway, &gateway.policy().await).await;
    added(&client.send(add("/v2/models/adder/infer")).await.is(200));
    metric(&gateway, &shadow("3", "differ"), 6.0).await;
    let entries = folder.entries();
    let versions: Vec<&Value> =
        entries.iter().filter(|entry| entry["kind"] == "inference").filter_map(|entry| entry["model"].get("version")).collect();
    assert!(versions.iter().all(|version| **version == "1"), "{versions:?}");
}

#[tokio::test]
async fn a_sample_is_all_that_a_shadow_is_asked() {
    let folder = Folder::new();
    version(&folder, "one", "1", 1.0, "");
    version(&folder, "two", "2", 2.0, "[traffic]\nshadow = true\nsample = 0.25\n");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    for _ in 0..400 {
        client.send(add("/v2/models/adder/infer")).await.is(200);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut asked = 0.0;
    for outcome in ["agree", "differ", "failed", "skipped"] {
        asked += gateway.metric(&format!("portcullis_shadow_total{{model=\"adder\",version=\"2\",outcome=\"{outcome}\"}}")).await;
    }
    assert!((57.0..=143.0).contains(&asked), "{asked}");
}

/// Swaps the versions of several models at each reload, while callers ask without a pause longer than `pause`: nobody is refused, and
/// each answer's statement names the model that computed it.
async fn swapped_under_load(reloads: usize, pause: Duration) {
    const SWAPPED: usize = 4;
    const CALLERS: usize = 8;
    let folder = Folder::new();
    let swap = |model: usize, number: f32, comment: usize| {
        let name = format!("adder{model}");
        folder
            .model(&name, text(&number.to_string(), number, &format!("# reload {comment}\n")).replace("\"adder\"", &format!("\"{name}\"")));
    };
    folder.write("models/1.onnx", adder(1.0)).write("models/2.onnx", adder(2.0));
    (0..SWAPPED).for_each(|model| swap(model, 1.0, 0));
    let gateway = folder.serve().await;
    let over = Arc::new(AtomicBool::new(false));
    let mut callers = Vec::new();
    for caller in 0..CALLERS {
        // A connection of its own, which ends after 100,000 requests.
        let (mut client, over) = (gateway.h2().await, over.clone());
        callers.push(tokio::spawn(async move {
            let (name, mut answers) = (format!("adder{}", caller % SWAPPED), BTreeMap::<String, usize>::new());
            while !over.load(Ordering::Relaxed) {
                let (number, version, statement) = added(&client.send(add(&format!("/v2/models/{name}/infer"))).await.is(200));
                assert_eq!(version, number.to_string(), "another version is named than the one that computed it");
                assert_eq!((&statement["model"]["name"], &statement["model"]["version"]), (&json!(name), &json!(version)));
                assert_eq!(statement["model"]["sha256"], Digest::of(&adder(number as f32)).to_string());
                *answers.entry(version).or_default() += 1;
                tokio::time::sleep(pause).await;
            }
            answers
        }));
    }
    let (mut before, began) = (gateway.policy().await, Instant::now());
    for reload in 1..=reloads {
        (0..SWAPPED).for_each(|model| swap(model, if reload % 2 == 0 { 1.0 } else { 2.0 }, reload));
        before = reloaded(&gateway, &before).await;
        assert!(callers.iter().all(|caller| !caller.is_finished()), "a caller was lost at reload {reload}");
    }
    let took = began.elapsed();
    over.store(true, Ordering::Relaxed);
    let mut answers = BTreeMap::<String, usize>::new();
    for caller in callers {
        caller.await.unwrap().into_iter().for_each(|(version, count)| *answers.entry(version).or_default() += count);
    }
    assert!(answers.values().all(|count| *count >= reloads), "both versions answered: {answers:?}");
    gateway.stop().await;
    let report = folder.verified_log();
    // Those at the start aside, each swap brings one model and takes one.
    let swaps = (report["kinds"]["model-load"].as_u64().unwrap() as usize - SWAPPED) / 2;
    println!("{swaps} swaps in {reloads} reloads in {took:.1?}; answers by version: {answers:?}, none lost");
    assert_eq!(report["ok"], true, "{report}");
    // A test that was kept from writing for a tenth of a second may have had a few of its files read with those of the next reload.
    assert!((reloads * SWAPPED * 99 / 100..=reloads * SWAPPED).contains(&swaps), "{report}");
    assert!(report["kinds"]["policy-change"].as_u64() >= Some(reloads as u64), "{report}");
    assert_eq!((report["kinds"].get("error"), report["kinds"].get("deny")), (None, None), "{report}");
}

#[tokio::test]
async fn two_hundred_swaps_under_load_lose_no_request_and_mix_no_receipt() {
    swapped_under_load(50, Duration::from_millis(2)).await;
}

/// `cargo test --test it -- --ignored --nocapture ten_thousand`: some ten minutes, for each reload waits until the folder is still.
#[tokio::test]
#[ignore = "it takes some ten minutes"]
async fn ten_thousand_swaps_under_load_lose_no_request_and_mix_no_receipt() {
    swapped_under_load(2_500, Duration::from_millis(20)).await;
}

#[tokio::test]
async fn a_rollback_moves_the_traffic_of_a_running_gateway_and_every_state_between_is_a_policy() {
    let folder = Folder::new();
    version(&folder, "one", "1", 1.0, "# ours\n[traffic]\nshare = 0\n");
    version(&folder, "two", "2", 2.0, "[traffic]\nshare = 90\n");
    version(&folder, "three", "3", 3.0, "");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let before = gateway.policy().await;
    let output = folder.run(&["model", "rollback", "adder", "--policies", "policies", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report, json!({"model": "adder", "to": "2", "from": ["3"]}));
    reloaded(&gateway, &before).await;
    let asked = Instant::now();
    while counted(&mut client, 30).await != BTreeMap::from([("2".to_owned(), 30)]) {
        assert!(asked.elapsed() < PATIENCE);
    }
    assert!(folder.read("models/one.toml").contains("# ours\n"));

    // From the same start, each of the writes alone in the order in which they are made.
    let output = folder.run(&["model", "rollback", "adder", "--policies", "policies", "--to", "1"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("version \"1\" gets all"), "{output:?}");
    let (one, two) = (folder.read("models/one.toml"), folder.read("models/two.toml"));
    folder.write("models/two.toml", two.replace("share = 0", "share = 100"));
    assert!(folder.run(&["check", "policies"]).status.success(), "after the first write both have a share");
    folder.write("models/two.toml", two);
    assert!(folder.run(&["check", "policies"]).status.success());
    assert!(one.contains("share = 100"));

    for wrong in [&["adder"] as &[&str], &["adder", "--to", "9"], &["nobody"]] {
        let words: Vec<&str> = ["model", "rollback", "--policies", "policies"].into_iter().chain(wrong.iter().copied()).collect();
        let output = folder.run(&words);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{output:?}");
    }
    assert_eq!(folder.run(&["model", "rollback"]).status.code(), Some(2));
    assert!(folder.security_log().iter().all(|event| event["event"] != "policy.refused"));
}

#[tokio::test]
async fn a_file_that_changes_under_a_running_model_is_told_once_and_changes_nothing() {
    let folder = Folder::new();
    version(&folder, "one", "1", 1.0, "");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let before = gateway.policy().await;
    folder.write("models/1.onnx", adder(7.0));
    let event = told(&folder, "model.changed", 1).await.remove(0);
    let digests = (Digest::of(&adder(1.0)).to_string(), Digest::of(&adder(7.0)).to_string());
    assert_eq!((event["named"].as_str().unwrap(), event["sha256"].as_str().unwrap()), (&*digests.0, &*digests.1));
    assert_eq!((&event["model"], &event["version"], &event["found"]), (&json!("adder"), &json!("1"), &json!("another file")));
    metric(&gateway, "portcullis_model_changed{model=\"adder\",version=\"1\"} ", 1.0).await;
    // Two looks more.
    tokio::time::sleep(2 * portcullis::disk::EVERY + Duration::from_millis(500)).await;
    assert_eq!(told(&folder, "model.changed", 1).await.len(), 1);
    assert_eq!((added(&client.send(add("/v2/models/adder/infer")).await.is(200)).0, gateway.policy().await), (1.0, before));
    folder.write("models/1.onnx", adder(1.0));
    metric(&gateway, "portcullis_model_changed{model=\"adder\",version=\"1\"} ", 0.0).await;
    assert_eq!(told(&folder, "model.changed", 1).await.len(), 1);
}

#[tokio::test]
async fn a_model_whose_file_is_gone_runs_on_and_what_the_policy_says_besides_is_in_force() {
    let folder = Folder::new();
    version(&folder, "one", "1", 1.0, "");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let before = gateway.policy().await;
    std::fs::remove_file(folder.policies().join("models/1.onnx")).unwrap();
    let event = told(&folder, "model.changed", 1).await.remove(0);
    assert_eq!(event["found"], "gone");
    let note = "the file 1.onnx of model adder version 1 is gone: it runs on, and a restart would be refused";
    gateway.admin_until("/readyz", |status, body| status == 200 && body.contains(note)).await;
    // A key is taken back, of all times now.
    let callers = folder.read("callers.toml");
    folder.write("callers.toml", callers.replace("id = \"app\"", "id = \"app\"\nexpires = 2020-01-01T00:00:00Z"));
    let after = replaced(&gateway, &before).await;
    assert_eq!(client.send(add("/v2/models/adder/infer")).await.is(401).reason(), "authenticate.expired");
    folder.write("callers.toml", callers);
    replaced(&gateway, &after).await;
    assert_eq!(added(&client.send(add("/v2/models/adder/infer")).await.is(200)).0, 1.0);
    // What would have to be read anew cannot be.
    folder.write("models/one.toml", folder.read("models/one.toml").replace("[backend.onnx]", "[backend.onnx]\nqueue = 3"));
    let refused = told(&folder, "policy.refused", 1).await.remove(0);
    assert!(refused["mistakes"][0].as_str().unwrap().contains("models/1.onnx cannot be read: No such file"), "{refused}");
    assert_eq!(added(&client.send(add("/v2/models/adder/infer")).await.is(200)).0, 1.0);
    gateway.stop().await;
}

/// The entries of changes, as outcome, version and what else matters.
fn changes(folder: &Folder) -> Vec<(String, String, Value)> {
    let entries = folder.entries().into_iter().filter(|entry| entry.get("change").is_some());
    entries
        .map(|entry| (entry["kind"].as_str().unwrap().to_owned(), entry["change"]["outcome"].as_str().unwrap().to_owned(), entry))
        .collect()
}

#[tokio::test]
async fn the_log_tells_the_life_of_every_model() {
    let folder = Folder::new();
    version(&folder, "adder", "1", 1.0, "");
    let gateway = folder.serve().await;
    let first = gateway.policy().await;
    version(&folder, "adder", "2", 2.0, "");
    let second = replaced(&gateway, &first).await;
    // A third beside it is loaded, not swapped.
    version(&folder, "beside", "3", 3.0, "[traffic]\nshare = 1\n");
    let third = replaced(&gateway, &second).await;
    // One that is not what the policy names is refused, and the policy with it.
    folder.write("models/beside.toml", folder.read("models/beside.toml").replace(&Digest::of(&adder(3.0)).to_string(), &"0".repeat(64)));
    told(&folder, "policy.refused", 1).await;
    std::fs::remove_file(folder.policies().join("models/beside.toml")).unwrap();
    let last = replaced(&gateway, &third).await;
    assert_eq!(last, second, "the folder is what it was");
    gateway.stop().await;

    let report = folder.verified_log();
    assert_eq!(
        (&report["ok"], &report["kinds"]["model-load"], &report["kinds"]["policy-change"]),
        (&json!(true), &json!(6), &json!(4)),
        "{report}"
    );
    let found = changes(&folder);
    let told: Vec<(&str, &str, &str)> =
        found.iter().map(|(kind, outcome, entry)| (&**kind, &**outcome, entry["model"]["version"].as_str().unwrap_or_default())).collect();
    let expected = [
        ("model-load", "loaded", "1"),
        ("policy-change", "accepted", ""),
        ("model-load", "swapped", "2"),
        ("model-load", "retired", "1"),
        ("policy-change", "accepted", ""),
        ("model-load", "loaded", "3"),
        ("model-load", "refused", "3"),
        ("policy-change", "refused", ""),
        ("policy-change", "accepted", ""),
        ("model-load", "retired", "3"),
    ];
    assert_eq!(told, expected);
    let policies: Vec<&str> = found.iter().map(|(_, _, entry)| entry["policy"]["sha256"].as_str().unwrap()).collect();
    let expected = [&first, &second, &second, &second, &third, &third, &third, &third, &last, &last];
    assert_eq!(policies, expected.map(String::as_str));
    let refused = &found[6].2;
    assert_eq!((&refused["model"]["sha256"], refused["model"].get("assurance")), (&json!("0".repeat(64)), None));
    assert!(refused["change"]["reason"].as_str().unwrap().contains("not the model that the policy names"), "{refused}");
    assert_eq!(found[7].2["change"]["reason"], "1 mistake(s)");
    assert_eq!(found[2].2["model"]["sha256"], Digest::of(&adder(2.0)).to_string());
}

#[tokio::test]
async fn a_model_that_keeps_the_gateway_from_starting_stands_in_the_log() {
    let folder = Folder::new();
    version(&folder, "adder", "1", 1.0, "");
    folder.write("models/1.onnx", adder(7.0));
    let output = folder.run(&["serve", "--policies", "policies"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let found = changes(&folder);
    assert_eq!(found.len(), 1);
    let (kind, outcome, entry) = &found[0];
    assert_eq!((&**kind, &**outcome, &entry["model"]["name"], entry.get("policy")), ("model-load", "refused", &json!("adder"), None));
    assert_eq!(folder.verified_log()["ok"], true);
    // Mended, it starts, and goes on in the same log.
    folder.write("models/1.onnx", adder(1.0));
    folder.serve().await.stop().await;
    let outcomes: Vec<String> = changes(&folder).into_iter().map(|(_, outcome, _)| outcome).collect();
    assert_eq!((outcomes, &folder.verified_log()["ok"]), (vec!["refused".to_owned(), "loaded".to_owned()], &json!(true)));
}

#[test]
fn versions_that_do_not_agree_are_told_with_their_places() {
    let cases: [(&str, &str, &str); 7] = [
        ("share = 1001", "two.toml:14:9:", "0 to 1000"),
        ("share = 1\nsticky = true", "two.toml:1:8:", "`sticky`"),
        ("shadow = true\nshare = 1", "two.toml:14:10:", "never answers"),
        ("shadow = true\nsample = 0.0", "two.toml:15:10:", "over 0.0"),
        ("sample = 0.5", "two.toml:14:10:", "a shadow's"),
        ("shar = 1", "two.toml:14:1:", "did you mean `share`"),
        ("", "two.toml:1:8:", "neither this file nor models/one.toml"),
    ];
    for (traffic, at, words) in cases {
        let folder = Folder::new();
        version(&folder, "one", "1", 1.0, "");
        version(&folder, "two", "2", 2.0, &format!("\n\n\n[traffic]\n{traffic}\n"));
        let output = folder.run(&["check", "policies"]);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{traffic}: {told}");
        assert!(told.lines().any(|line| line.contains(at) && line.contains(words)), "{traffic}: {told}");
    }
}

#[test]
fn beside_a_file_that_is_wrong_in_itself_its_neighbours_are_not_blamed() {
    let folder = Folder::new();
    version(&folder, "two", "2", 2.0, "[traffic]\nshadow = true\n");
    let told = || String::from_utf8(folder.run(&["check", "policies"]).stderr).unwrap();
    assert!(told().contains("two.toml:1:8: a shadow needs a version of the same name that answers"), "{}", told());
    // With a version that answers, but for a slip in its file, the slip is all there is to mend.
    for (slip, words) in [("[traffic]\nshare = 5000\n", "one.toml:11:9:"), ("[trafic]\n", "did you mean `traffic`")] {
        version(&folder, "one", "1", 1.0, slip);
        assert!(told().contains(words) && told().contains("\n1 mistake(s)"), "{}", told());
    }
    version(&folder, "one", "1", 1.0, "");
    assert_eq!(told(), "");
}

/// A version behind `upstream`.
fn behind(folder: &Folder, name: &str, version: &str, upstream: &Upstream, route: &str, backend: &str, traffic: &str) {
    let url = upstream.url();
    folder.model(
        &format!("{name}-{version}"),
        format!(
            "name = \"{name}\"\nversion = \"{version}\"\npublic = true\n{route}\n[backend.upstream]\nurls = [\"{url}\"]\n{backend}\n{UNLIMITED}{traffic}"
        ),
    );
}

#[tokio::test]
async fn versions_behind_model_servers_share_the_traffic_of_every_protocol() {
    let (one, two) = (Upstream::language().await, Upstream::language().await);
    let folder = Folder::new();
    for (version, upstream, share) in [("1", &one, 75), ("2", &two, 25)] {
        let traffic = format!("[traffic]\nshare = {share}\n");
        behind(&folder, "chat", version, upstream, "", "protocol = \"openai\"", &traffic);
        behind(&folder, "scoring", version, upstream, "[route]\npath = \"/predict\"", "protocol = \"raw\"", &traffic);
    }
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    for request in [post_chat(), ask("POST", "/predict", "{}")] {
        let mut counts = BTreeMap::<String, usize>::new();
        let before = (one.seen().len(), two.seen().len());
        for _ in 0..200 {
            let reply = client.send(request.clone()).await;
            let statement = STANDARD.decode(reply.header("provenance-statement").trim_matches(':')).unwrap();
            let view = Statement::read(&statement).unwrap().view();
            *counts.entry(view["model"]["version"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        // Five standard deviations of 200 draws at one in four.
        assert!((20..=80).contains(&counts["2"]), "{counts:?}");
        let seen = (one.seen().len() - before.0, two.seen().len() - before.1);
        assert_eq!(seen, (counts["1"], counts["2"]), "the receipt names the version that was asked");
    }
    let listed = client.send(ask("GET", "/v1/models", "")).await.is(200).json();
    let names: Vec<&str> = listed["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["chat", "scoring"]);
}

#[tokio::test]
async fn the_order_of_its_inputs_says_nothing_of_how_an_answer_is_shaped() {
    let upstream = Upstream::start(|_: Seen| async move {
        let y = json!({"name": "y", "datatype": "FP32", "shape": [2], "data": [0.25, 0.75]});
        whole(200, &json!({"model_name": "m", "model_version": "1", "outputs": [y]}))
    })
    .await;
    let folder = Folder::new();
    behind(&folder, "top", "1", &upstream, "", "protocol = \"oip\"", "[answer]\ntop = 1\n");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let (one, two) = (
        json!({"name": "a", "datatype": "FP32", "shape": [1], "data": [1.0]}),
        json!({"name": "b", "datatype": "FP32", "shape": [2, 1], "data": [1.0, 2.0]}),
    );
    for inputs in [[&two, &one], [&one, &two]] {
        let told = client.send(ask("POST", "/v2/models/top/infer", json!({"inputs": inputs}).to_string())).await.is(200).json();
        assert_eq!(told["outputs"][0]["data"], json!([0.25, 0.75]), "a probability for each of two rows");
    }
}

#[tokio::test]
async fn callers_name_our_versions_and_a_model_server_is_asked_for_its_own() {
    let upstream = Upstream::start(|seen: Seen| async move {
        match seen.uri.path().rsplit('/').next() {
            Some("ready") => whole(200, &json!({})),
            // With a member and a number that would not come back from tensors.
            Some("infer") if !seen.headers.contains_key("inference-header-content-length") => {
                let y =
                    json!({"name": "y", "datatype": "FP32", "shape": [1], "data": [0.10000000001], "parameters": {"content_type": "np"}});
                whole(200, &json!({"model_name": "theirs", "model_version": "1", "id": "i", "outputs": [y]}))
            }
            Some("infer") => {
                let y = json!({"name": "y", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}});
                let head = json!({"model_version": "1", "model_name": "theirs", "outputs": [y]}).to_string();
                let mut answer = whole(200, &json!({}));
                answer.headers_mut().insert("inference-header-content-length", head.len().into());
                *answer.body_mut() = Full::new(Bytes::from([head.as_bytes(), &2.0_f32.to_le_bytes()].concat())).boxed_unsync();
                answer
            }
            _ => whole(200, &json!({"name": "theirs", "versions": ["1"], "platform": "p", "inputs": [], "outputs": []})),
        }
    })
    .await;
    let folder = Folder::new();
    let oip = "protocol = \"oip\"\nmodel = \"theirs\"";
    behind(&folder, "several", "9", &upstream, "", oip, "[traffic]\nshare = 1\n");
    behind(&folder, "several", "10", &upstream, "", oip, "[traffic]\nshare = 0\n");
    behind(&folder, "single", "2024", &upstream, "", &format!("{oip}\nmodel_version = \"1\""), "");
    behind(&folder, "none", "", &upstream, "", oip, "");
    behind(&folder, "shaped", "7", &upstream, "", oip, "[answer]\ndecimals = 1\n");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let several = client.send(ask("GET", "/v2/models/several", "")).await.is(200).json();
    assert_eq!((&several["name"], &several["versions"], &several["platform"]), (&json!("several"), &json!(["9", "10"]), &json!("p")));
    let single = client.send(ask("GET", "/v2/models/single", "")).await.is(200).json();
    assert_eq!((&single["name"], &single["versions"]), (&json!("single"), &json!(["2024"])));
    assert_eq!(client.send(ask("GET", "/v2/models/none", "")).await.is(200).json()["versions"], json!([]));

    let json_body = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}).to_string();
    let binary_head =
        json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}]}).to_string();
    let theirs = || upstream.seen().last().unwrap().uri.path().to_owned();
    for (name, version, there) in
        [("several", "9", ""), ("several", "10", ""), ("single", "2024", "/versions/1"), ("none", "", ""), ("shaped", "7", "")]
    {
        let named = if version.is_empty() { String::new() } else { format!("/versions/{version}") };
        client.send(ask("GET", &format!("/v2/models/{name}{named}"), "")).await.is(200);
        assert_eq!(theirs(), format!("/v2/models/theirs{there}"));
        client.send(ask("GET", &format!("/v2/models/{name}{named}/ready"), "")).await.is(200);
        assert_eq!(theirs(), format!("/v2/models/theirs{there}/ready"));
        for path in [format!("/v2/models/{name}{named}/infer"), format!("/v2/models/{name}/infer")] {
            let reply = client.send(ask("POST", &path, json_body.clone())).await.is(200);
            assert_eq!(theirs(), format!("/v2/models/theirs{there}/infer"));
            let told = reply.json();
            // Without a version in its path a request of `several` is the one's that has a share.
            let version = if path.contains("several/infer") { "9" } else { version };
            assert_eq!((&told["model_name"], &told["model_version"]), (&json!(name), &json!(version)), "{path}");
            assert_eq!(statement(&reply)["model"]["version"].as_str().unwrap_or_default(), version);
            let data = if name == "shaped" { json!([0.1]) } else { json!([0.10000000001]) };
            assert_eq!(told["outputs"][0]["data"], data);
            assert_eq!(told["outputs"][0]["parameters"]["content_type"].as_str(), (name != "shaped").then_some("np"));
        }
        let mut binary = ask("POST", &format!("/v2/models/{name}{named}/infer"), [binary_head.as_bytes(), &[0; 4]].concat());
        binary.headers_mut().insert("inference-header-content-length", binary_head.len().into());
        binary.headers_mut().insert("content-type", http::HeaderValue::from_static("application/octet-stream"));
        let reply = client.send(binary).await.is(200);
        if name == "shaped" {
            assert_eq!((&reply.json()["model_name"], &reply.json()["model_version"]), (&json!(name), &json!(version)));
            continue;
        }
        let length: usize = reply.headers["inference-header-content-length"].to_str().unwrap().parse().unwrap();
        let told: Value = serde_json::from_slice(&reply.body[..length]).unwrap();
        assert_eq!((&told["model_name"], &told["model_version"]), (&json!(name), &json!(version)));
        assert_eq!(reply.body[length..], 2.0_f32.to_le_bytes());
    }
    for path in ["several/versions/1", "several/versions/11/infer", "single/versions/1/ready", "none/versions/1", "none/versions/"] {
        let (method, body) = if path.ends_with("infer") { ("POST", json_body.clone()) } else { ("GET", String::new()) };
        client.send(ask(method, &format!("/v2/models/{path}"), body)).await.is(404);
    }
}
