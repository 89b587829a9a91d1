//! What leaves the log for others: events for a SIEM, counts for an auditor, the last entries for whoever watches.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::ask::{ask, bare, post_chat, post_stream};
use crate::support::{Folder, Gateway, Reply, Upstream};

/// A gateway that has answered, streamed and refused.
async fn asked(folder: &Folder) -> Gateway {
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    for _ in 0..5 {
        client.send(post_chat()).await.is(200);
    }
    Reply::read(client.again().open(post_stream()).await.unwrap()).await.unwrap().is(200);
    client.send(ask("POST", "/v1/chat/completions", "{\"model\": \"chat\", \"messages\": 7}")).await.is(400);
    client.send(bare("POST", "/v1/chat/completions", "", None)).await.is(401);
    client.send(ask("GET", "/v1/models", "")).await.is(200);
    gateway
}

fn folder(upstream: &Upstream) -> Folder {
    let folder = Folder::new();
    folder.upstream("chat", "openai", upstream, "", "");
    folder
}

fn lines(folder: &Folder, arguments: &[&str]) -> Vec<Value> {
    let output = folder.run(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What the schema of OCSF, as far as these events may use it, has against one.
fn wrong(event: &Value) -> Vec<String> {
    let mut schema: Value = serde_json::from_str(include_str!("../data/ocsf.json")).unwrap();
    schema["$ref"] = json!(format!("#/classes/{}", event["class_uid"]));
    let validator = jsonschema::validator_for(&schema).unwrap();
    validator.iter_errors(event).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

#[tokio::test]
async fn a_log_that_was_served_is_exported_as_events_that_the_schema_allows() {
    let upstream = Upstream::language().await;
    let folder = folder(&upstream);
    asked(&folder).await.stop().await;
    let entries = folder.entries();
    let events = lines(&folder, &["log", "export", "log"]);
    assert_eq!(events.len(), entries.len());
    for (event, entry) in events.iter().zip(&entries) {
        assert_eq!(wrong(event), [""; 0], "{event:#}");
        assert_eq!((&event["metadata"]["uid"], &event["metadata"]["sequence"]), (&entry["id"], &entry["seq"]));
    }
    let of = |class: u64| events.iter().filter(|event| event["class_uid"] == class).count();
    let about_requests = entries.iter().filter(|entry| entry.get("resp").is_some()).count();
    assert_eq!((of(6003), of(1008)), (about_requests, 2));
    // The other format is what `show` tells, and one entry can be had alone.
    assert_eq!(lines(&folder, &["log", "export", "log", "--format", "json"]), entries);
    let last = entries.last().unwrap();
    assert_eq!(lines(&folder, &["log", "export", "log", "--id", last["id"].as_str().unwrap()]), events[events.len() - 1..]);
    assert_eq!(lines(&folder, &["log", "export", "log", "--seq", "0"]), events[..1]);
    assert_eq!(folder.run(&["log", "export", "log", "--seq", "99"]).status.code(), Some(1));
    assert_eq!(folder.run(&["log", "export", "log", "--since", "yesterday"]).status.code(), Some(2));
    // Each is on one side of any moment.
    let middle = entries[4]["t1"].as_u64().unwrap();
    let middle = portcullis::clock::rfc3339(std::time::UNIX_EPOCH + std::time::Duration::from_nanos(middle));
    let before = lines(&folder, &["log", "export", "log", "--until", &middle]);
    let after = lines(&folder, &["log", "export", "log", "--since", &middle]);
    assert_eq!([before, after].concat(), events);
}

#[tokio::test]
async fn alarms_of_the_security_log_are_exported_as_findings() {
    let upstream = Upstream::language().await;
    let folder = folder(&upstream);
    folder.upstream("chat", "openai", &upstream, "", "[detect]\nmode = \"enforce\"");
    let gateway = folder.serve().await;
    let body = json!({"model": "chat", "messages": [{"role": "user", "content": "hi"}], "logprobs": true, "top_logprobs": 20});
    let refused = gateway.h2().await.send(ask("POST", "/v1/chat/completions", body.to_string())).await;
    assert_eq!(refused.reason(), "check.parameters");
    gateway.stop().await;
    let events = lines(&folder, &["log", "export", "log", "--security-log", "security.log"]);
    let findings: Vec<&Value> = events.iter().filter(|event| event["class_uid"] == 2004).collect();
    assert_eq!(findings.len(), 1, "{events:#?}");
    assert_eq!(wrong(findings[0]), [""; 0], "{:#}", findings[0]);
    assert_eq!(findings[0]["metadata"]["correlation_uid"], refused.receipt().unwrap().as_str());
    // The provenance log, which the caller reads, knows nothing of it.
    assert!(events.iter().filter(|event| event["class_uid"] != 2004).all(|event| !event.to_string().contains("logprobs")));
}

#[tokio::test]
async fn metrics_of_a_gateway_that_runs_agree_with_its_log_and_others_do_not() {
    let upstream = Upstream::language().await;
    let folder = folder(&upstream);
    let gateway = asked(&folder).await;
    let (_, text) = gateway.admin("/metrics").await;
    std::fs::write(folder.home().join("metrics.txt"), &text).unwrap();
    // It goes on, and the log with it.
    gateway.h2().await.send(post_chat()).await.is(200);
    let verify = |file: &str| {
        let output = folder.run(&["log", "verify", "log", "--json", "--reconcile", file]);
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default())
    };
    let (code, report) = verify("metrics.txt");
    assert_eq!(code, Some(0), "{report:#}");
    gateway.stop().await;
    let (code, report) = verify("metrics.txt");
    assert_eq!((code, &report["counts"]["heartbeats"], &report["counts"]["uncounted"]), (Some(0), &json!(1), &json!(0)), "{report:#}");
    assert_eq!(report["counts"]["notes"], json!([]));
    // One answer more than the log has.
    let count = "portcullis_log_statements_total{kind=\"inference\"} 7";
    assert!(text.contains(count), "{text}");
    std::fs::write(folder.home().join("more.txt"), text.replace(count, "portcullis_log_statements_total{kind=\"inference\"} 8")).unwrap();
    let (code, report) = verify("more.txt");
    assert_eq!((code, report["ok"].as_bool()), (Some(1), Some(false)), "{report:#}");
    std::fs::write(folder.home().join("half.txt"), &text[..text.len() / 2]).unwrap();
    assert_eq!(verify("half.txt").0, Some(1));
}

#[tokio::test]
async fn the_tail_of_a_log_is_followed_until_it_is_interrupted() {
    let upstream = Upstream::language().await;
    let folder = folder(&upstream);
    let gateway = asked(&folder).await;
    let all = folder.entries();
    assert_eq!(lines(&folder, &["log", "tail", "log", "-n", "2"]), all[all.len() - 2..]);
    assert_eq!(folder.run(&["log", "tail", "log", "-n", "10001"]).status.code(), Some(2));
    let mut tail = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    let tail = tail.args(["log", "tail", "log", "--lines", "1", "--follow"]).current_dir(folder.home());
    let mut tail = tail.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(tail.stdout.take().unwrap()).lines();
    let mut next = move || serde_json::from_str::<Value>(&out.next().unwrap().unwrap()).unwrap();
    assert_eq!(next(), all[all.len() - 1]);
    let answer = gateway.h2().await.send(post_chat()).await.is(200);
    let seen = tokio::task::spawn_blocking(move || next()["id"].as_str().unwrap().to_owned());
    assert_eq!(seen.await.unwrap(), answer.receipt().unwrap());
    assert!(Command::new("kill").args(["-INT", &tail.id().to_string()]).status().unwrap().success());
    assert_eq!(tail.wait().unwrap().code(), Some(0));
    gateway.stop().await;
}
