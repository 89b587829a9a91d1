//! Policies change while requests are on their way: all or nothing, and nobody is lost.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use tokio::sync::watch;

use crate::support::ask::{bare, chat, post_chat, post_stream};
use crate::support::upstream::whole;
use crate::support::{Client, Folder, Gateway, Issuer, PATIENCE, Upstream};

const NOBODY: &str = "@id(\"nobody\")\nforbid (principal, action, resource);\n";

async fn serving() -> (Upstream, Folder, Gateway) {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    folder.upstream("chat", "openai", &upstream, "", "");
    let gateway = folder.serve().await;
    (upstream, folder, gateway)
}

/// Asks until the answer has this status, and tells how long that took.
async fn until(client: &mut Client, status: u16) -> Duration {
    let asked = Instant::now();
    loop {
        if client.send(post_chat()).await.status == status {
            return asked.elapsed();
        }
        assert!(asked.elapsed() < PATIENCE, "never {status}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the security log has so many events of a name.
async fn told(folder: &Folder, event: &str, count: usize) {
    let asked = Instant::now();
    while folder.security_log().iter().filter(|line| line["event"] == event).count() < count {
        assert!(asked.elapsed() < PATIENCE, "{event} is not told {count} times: {:#?}", folder.security_log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_changed_policy_holds_for_new_requests_within_two_seconds() {
    let (_upstream, folder, gateway) = serving().await;
    let mut client = gateway.h2().await;
    client.send(post_chat()).await.is(200);
    let before = folder.read("access.cedar");
    folder.write("access.cedar", format!("{before}{NOBODY}"));
    assert!(until(&mut client, 404).await < Duration::from_secs(2));
    folder.write("access.cedar", before);
    assert!(until(&mut client, 200).await < Duration::from_secs(2));
    told(&folder, "policy.reloaded", 2).await;
}

#[tokio::test]
async fn a_model_that_does_not_verify_is_told_and_the_one_before_it_serves_on() {
    let (_upstream, folder, gateway) = serving().await;
    folder.digits("");
    told(&folder, "model.loaded", 1).await;
    let good = folder.read("models/digits.toml");
    let digest = good.split('"').find(|part| part.len() == 64).unwrap();
    folder.write("models/digits.toml", good.replace(digest, &"0".repeat(64)));
    told(&folder, "model.refused", 1).await;
    told(&folder, "policy.refused", 1).await;
    let refused = folder.security_log().into_iter().find(|event| event["event"] == "model.refused").unwrap();
    assert_eq!(refused["model"], "digits");
    gateway.h2().await.send(post_chat()).await.is(200);
}

#[tokio::test]
async fn a_model_that_comes_after_the_file_that_names_it_is_taken_when_it_is_there() {
    let (_upstream, folder, gateway) = serving().await;
    folder.digits("");
    told(&folder, "policy.reloaded", 1).await;
    let (text, model) = (folder.read("models/digits.toml"), folder.policies().join("models/digits.onnx"));
    let bytes = std::fs::read(&model).unwrap();
    let second = folder.policies().join("models/second.onnx");
    folder.model("second", text.replace("\"digits\"", "\"second\"").replace("digits.onnx", "second.onnx"));
    told(&folder, "policy.refused", 1).await;
    // Another file first, and then the one that is meant.
    std::fs::write(&second, &bytes[..bytes.len() / 2]).unwrap();
    told(&folder, "policy.refused", 2).await;
    gateway.admin_until("/readyz", |_, body| body.contains("policies were refused")).await;
    std::fs::write(&second, &bytes).unwrap();
    told(&folder, "policy.reloaded", 2).await;
    gateway.admin_until("/readyz", |_, body| !body.contains("policies were refused")).await;
    // No more than there was a reason for.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let count = |event: &str| folder.security_log().iter().filter(|line| line["event"] == event).count();
    assert_eq!((count("policy.refused"), count("policy.reloaded")), (2, 2));
}

#[tokio::test]
async fn a_broken_policy_leaves_the_old_one_in_force_and_says_so() {
    let (_upstream, folder, gateway) = serving().await;
    let mut client = gateway.h2().await;
    let good = folder.read("models/chat.toml");
    assert_eq!(gateway.admin("/readyz").await, (200, "ready\n".to_owned()));
    let before = gateway.policy().await;
    // The change that is right comes with one that is wrong: neither holds.
    folder.write("access.cedar", folder.read("access.cedar") + NOBODY);
    folder.write("models/chat.toml", format!("{good}\n[budgett]\n"));
    gateway.admin_until("/readyz", |status, body| status == 200 && body.contains("policies were refused")).await;
    client.send(post_chat()).await.is(200);
    assert_eq!(gateway.policy().await, before);
    assert!((gateway.metric("portcullis_policy_stale").await - 1.0).abs() < f64::EPSILON);
    told(&folder, "policy.refused", 1).await;
    let line = gateway.says("policies refused").await;
    assert!(line.contains("models/chat.toml:") && line.contains("budgett") && line.contains("did you mean `budget`"), "{line}");
    folder.write("models/chat.toml", good);
    until(&mut client, 404).await;
    gateway.admin_until("/readyz", |status, body| (status, body) == (200, "ready\n")).await;
    assert_ne!(gateway.policy().await, before);
}

#[tokio::test]
async fn a_file_that_is_half_written_waits_for_its_other_half() {
    let (_upstream, folder, gateway) = serving().await;
    let mut client = gateway.h2().await;
    let text = folder.read("access.cedar") + NOBODY;
    let path = folder.policies().join("access.cedar");
    // In place, as careless tools do; the first half ends within a rule.
    std::fs::write(&path, &text[..text.len() - 20]).unwrap();
    gateway.admin_until("/readyz", |_, body| body.contains("policies were refused")).await;
    client.send(post_chat()).await.is(200);
    std::fs::write(&path, &text).unwrap();
    until(&mut client, 404).await;
    gateway.admin_until("/readyz", |_, body| body == "ready\n").await;
}

#[tokio::test]
async fn a_hangup_reloads_at_once() {
    let (_upstream, folder, gateway) = serving().await;
    gateway.signal("HUP");
    told(&folder, "policy.reloaded", 1).await;
    folder.write("access.cedar", folder.read("access.cedar") + NOBODY);
    gateway.signal("HUP");
    told(&folder, "policy.reloaded", 2).await;
    gateway.h2().await.send(post_chat()).await.is(404);
}

#[tokio::test]
async fn a_model_whose_callers_nobody_watches_is_told_when_it_comes_once_and_by_version() {
    let (_upstream, folder, gateway) = serving().await;
    let count = || gateway.said().iter().filter(|line| line.contains("model digits: its callers are not watched")).count();
    folder.digits("[detect]\nmode = \"enforce\"\n");
    told(&folder, "policy.reloaded", 1).await;
    let note = "callers of digits are not watched: its version 1 has no calibration";
    gateway.admin_until("/readyz", |status, body| status == 200 && body.contains(note)).await;
    gateway.says("model digits: its callers are not watched").await;
    // What was told before is not told at each reload.
    folder.write("access.cedar", folder.read("access.cedar") + "// more\n");
    told(&folder, "policy.reloaded", 2).await;
    folder.digits("[detect]\nmode = \"shadow\"\n");
    gateway.admin_until("/readyz", |_, body| body == "ready\n").await;
    assert_eq!(count(), 1);
    folder.digits("[detect]\nmode = \"enforce\"\n");
    gateway.admin_until("/readyz", |_, body| body.contains(note)).await;
    let asked = Instant::now();
    while count() < 2 {
        assert!(asked.elapsed() < PATIENCE, "not told again: {:#?}", gateway.said());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_a_reload_cannot_change_is_told_until_it_is_as_it_was() {
    let (_upstream, folder, gateway) = serving().await;
    let before = folder.read("gateway.toml");
    folder.write("gateway.toml", before.replace("[accept]\n", "[accept]\ndrain = \"33s\"\n") + "sample = 0.5\n");
    gateway.admin_until("/readyz", |status, body| status == 200 && body.contains("restart: accept.drain, record.sample")).await;
    assert!(gateway.says("waits for a restart").await.ends_with(": accept.drain, record.sample"));
    told(&folder, "policy.reloaded", 1).await;
    let event = folder.security_log().into_iter().find(|line| line["event"] == "policy.reloaded").unwrap();
    assert_eq!(event["restart"], json!(["accept.drain", "record.sample"]));
    folder.write("gateway.toml", before);
    gateway.admin_until("/readyz", |_, body| body == "ready\n").await;
    told(&folder, "policy.reloaded", 2).await;
    let log = folder.security_log();
    assert_eq!(log.iter().rfind(|line| line["event"] == "policy.reloaded").unwrap().get("restart"), None);
}

#[tokio::test]
async fn a_security_log_that_cannot_be_opened_anew_is_told_until_it_is() {
    let (_upstream, folder, gateway) = serving().await;
    let path = folder.home().join("security.log");
    std::fs::rename(&path, folder.home().join("security.log.1")).unwrap();
    std::fs::create_dir(&path).unwrap();
    gateway.signal("HUP");
    let line = gateway.says("the security log could not be opened anew").await;
    assert!(line.contains("goes on in the file that it had: ") && line.contains("security.log: neither a pipe nor a folder"), "{line}");
    gateway.admin_until("/readyz", |status, body| status == 200 && body.contains("could not be opened anew")).await;
    std::fs::remove_dir(&path).unwrap();
    gateway.signal("HUP");
    gateway.admin_until("/readyz", |_, body| body == "ready\n").await;
    told(&folder, "policy.reloaded", 1).await;
}

#[tokio::test]
async fn a_new_certificate_is_shown_and_old_connections_live_on() {
    let (_upstream, folder, gateway) = serving().await;
    let (mut old, mut old_http1) = (gateway.h2().await, gateway.h1().await);
    old.send(post_chat()).await.is(200);
    old_http1.send(post_chat()).await.is(200);
    let first = old.certificate.clone().unwrap();
    folder.server_certificate("second");
    let asked = Instant::now();
    let mut new = loop {
        let client = gateway.h2().await;
        if client.certificate.as_ref() != Some(&first) {
            break client;
        }
        assert!(asked.elapsed() < Duration::from_secs(3), "the old certificate is still shown");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    for client in [&mut new, &mut old, &mut old_http1] {
        client.send(post_chat()).await.is(200);
    }
    // A key that does not fit its certificate changes nothing.
    folder.write("tls/server.key", "no key");
    gateway.admin_until("/readyz", |_, body| body.contains("policies were refused")).await;
    assert_eq!(gateway.h2().await.certificate, new.certificate);
    old.send(post_chat()).await.is(200);
}

#[tokio::test]
async fn a_revocation_list_that_has_ended_is_told_until_there_is_a_newer_one() {
    const EXPIRY: &str = "portcullis_revocations_expiry_timestamp_seconds{listener=\"accept\"}";
    let (_upstream, folder, gateway) = serving().await;
    assert!(!gateway.admin("/metrics").await.1.contains(EXPIRY));
    let before = folder.read("gateway.toml");
    folder.write("tls/clients.crl", folder.revocation_list(2024));
    let client_auth = "[accept.tls]\nclient_auth = \"optional\"\nclient_ca = \"tls/ca.pem\"\nclient_crl = \"tls/clients.crl\"\n";
    folder.write("gateway.toml", before.replace("[accept.tls]\n", client_auth));
    gateway.admin_until("/readyz", |status, body| status == 200 && body.contains("good until 2024-01-01T00:00:00.000Z")).await;
    assert!(gateway.says("warning: TLS of `accept`").await.contains("2024-01-01"));
    assert!((gateway.metric(EXPIRY).await - 1_704_067_200.0).abs() < f64::EPSILON);
    // Who shows none is none the worse.
    gateway.h2().await.send(post_chat()).await.is(200);
    folder.write("tls/clients.crl", folder.revocation_list(2099));
    gateway.admin_until("/readyz", |status, body| (status, body) == (200, "ready\n")).await;
    assert!(gateway.metric(EXPIRY).await > 4e9);
}

#[tokio::test]
async fn a_rotated_key_set_takes_the_new_key_and_refuses_the_old() {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    folder.upstream("chat", "openai", &upstream, "", "");
    let (old, new) = (Issuer::es256(), Issuer::es256());
    old.trusted_by(&folder, &[]);
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let (old_token, new_token) = (old.good(), new.good());
    let with = |token: &str| bare("POST", "/v1/chat/completions", chat().to_string(), Some(token));
    // Twice, so that the second comes out of the cache of verified tokens.
    client.send(with(&old_token)).await.is(200);
    client.send(with(&old_token)).await.is(200);
    client.send(with(&new_token)).await.is(401);
    new.publish(&folder, &[]);
    gateway.signal("HUP");
    told(&folder, "policy.reloaded", 1).await;
    client.send(with(&new_token)).await.is(200);
    assert_eq!(client.send(with(&old_token)).await.is(401).reason(), "authenticate.refused");
}

#[tokio::test]
async fn a_revoked_api_key_is_refused_from_then_on() {
    let (_upstream, folder, gateway) = serving().await;
    let mut client = gateway.h2().await;
    client.send(post_chat()).await.is(200);
    folder.write("callers.toml", folder.read("callers.toml").replace("id = \"app\"", "id = \"app\"\nexpires = 2020-01-01T00:00:00Z"));
    gateway.signal("HUP");
    told(&folder, "policy.reloaded", 1).await;
    assert_eq!(client.send(post_chat()).await.is(401).reason(), "authenticate.expired");
}

#[tokio::test]
async fn what_is_in_flight_across_twenty_reloads_is_neither_lost_nor_mixed() {
    const IN_FLIGHT: usize = 500;
    const RELOADS: usize = 20;
    let (release, released) = watch::channel(false);
    let upstream = Upstream::start(move |seen| {
        let mut released = released.clone();
        async move {
            let asked: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
            if asked["messages"][0]["content"] == "wait" {
                let _ = released.wait_for(|released| *released).await;
            }
            whole(200, &json!({"object": "chat.completion", "model": "chat", "echo": asked["user"], "choices": []}))
        }
    })
    .await;
    let folder = Folder::new();
    folder.upstream("chat", "openai", &upstream, "", "");
    let gateway = folder.serve().await;
    let ask = |content: &str, user: String| {
        let body = json!({"model": "chat", "user": user, "messages": [{"role": "user", "content": content}]});
        crate::support::ask::ask("POST", "/v1/chat/completions", body.to_string())
    };
    let mut connections = Vec::new();
    for _ in 0..8 {
        connections.push(gateway.h2().await);
    }
    let mut waiting = Vec::new();
    for index in 0..IN_FLIGHT {
        let mut client = connections[index % 8].again();
        let request = ask("wait", format!("held {index}"));
        waiting.push(tokio::spawn(async move { client.send(request).await }));
        // Each needs a connection of its own: more at once than an upstream's backlog holds would have to wait longer than they may.
        if (index + 1) % 50 == 0 {
            upstream.has_seen(index + 1).await;
        }
    }

    let mut client = gateway.h2().await;
    let first = gateway.policy().await;
    let mut expected: HashMap<String, String> = HashMap::new();
    let mut before = first.clone();
    for reload in 0..RELOADS {
        // By turns a rule and the model's own file, which opens its upstream anew.
        let (file, comment) = if reload % 2 == 0 { ("access.cedar", "//") } else { ("models/chat.toml", "#") };
        folder.write(file, format!("{}{comment} reload {reload}\n", folder.read(file)));
        gateway.signal("HUP");
        let asked = Instant::now();
        let mut meanwhile = 0;
        let now = loop {
            let now = gateway.policy().await;
            if now != before {
                break now;
            }
            let reply = client.send(ask("go", format!("between {reload} {meanwhile}"))).await.is(200);
            assert_eq!(reply.json()["echo"], format!("between {reload} {meanwhile}"));
            meanwhile += 1;
            assert!(asked.elapsed() < PATIENCE, "reload {reload} does not come: {:#?}", gateway.said());
        };
        let reply = client.send(ask("go", format!("after {reload}"))).await.is(200);
        assert_eq!(reply.json()["echo"], format!("after {reload}"));
        expected.insert(reply.receipt().unwrap(), now.clone());
        before = now;
    }
    release.send(true).unwrap();
    for (index, reply) in join_all(waiting).await.into_iter().enumerate() {
        let reply = reply.unwrap().is(200);
        assert_eq!(reply.json()["echo"], format!("held {index}"));
        expected.insert(reply.receipt().unwrap(), first.clone());
    }
    gateway.stop().await;
    let entries = folder.entries();
    let digests: HashMap<&str, &str> =
        entries.iter().filter_map(|entry| Some((entry["id"].as_str()?, entry.get("policy")?["sha256"].as_str()?))).collect();
    for (id, policy) in &expected {
        assert_eq!(digests.get(id.as_str()), Some(&policy.as_str()), "a receipt names another policy than the one in force");
    }
    let refused = entries.iter().filter(|entry| entry["kind"] != "inference" && entry.get("resp").is_some()).count();
    assert_eq!((expected.len(), refused), (IN_FLIGHT + RELOADS, 0));
}

#[tokio::test]
async fn a_stream_outlives_the_policy_it_began_under() {
    let (tell, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let upstream = Upstream::start(move |_| {
        let (writer, response) = crate::support::upstream::stream("text/event-stream");
        let _ = tell.send(writer);
        async move { response }
    })
    .await;
    let folder = Folder::new();
    folder.upstream("chat", "openai", &upstream, "", "");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let mut asks = post_stream();
    asks.headers_mut().insert("te", http::HeaderValue::from_static("trailers"));
    let held = client.open(asks).await.unwrap();
    let writer = begun.recv().await.unwrap();
    folder.write("access.cedar", folder.read("access.cedar") + NOBODY);
    folder.write("models/chat.toml", folder.read("models/chat.toml") + "# another file\n");
    gateway.signal("HUP");
    told(&folder, "policy.reloaded", 1).await;
    client.send(post_chat()).await.is(404);
    for event in crate::support::upstream::events("chat", true) {
        writer.send(event.into()).await.unwrap();
    }
    drop(writer);
    let reply = crate::support::Reply::read(held).await.unwrap();
    assert!(reply.body.ends_with(b"data: [DONE]\n\n"));
    assert!(reply.trailers.contains_key("provenance-statement"), "{reply:?}");
}
