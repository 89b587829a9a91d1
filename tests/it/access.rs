//! Who may do what: no difference between what is not there and what is not yours, and closed when in doubt.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::ask::{ask, bare, chat, digit, post_chat};
use crate::support::tokens::claims;
use crate::support::{Folder, Issuer, KEY, Reply, Upstream};

/// An answer without what differs between any two: ids, times, digests of them.
fn bare_of_ids(reply: &Reply) -> (u16, Vec<u8>, BTreeSet<String>, Vec<String>) {
    let names = reply.headers.keys().map(|name| name.as_str().to_owned()).collect();
    let same = [
        "content-type",
        "content-length",
        "portcullis-reason",
        "ratelimit",
        "ratelimit-policy",
        "allow",
        "content-digest",
        "grpc-status",
        "grpc-message",
    ];
    let values = same.iter().map(|name| format!("{name}: {}", reply.header(name))).collect();
    (reply.status.as_u16(), reply.body.to_vec(), names, values)
}

async fn two_tenants() -> (Upstream, Folder, Issuer) {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    folder.digits("");
    folder.upstream("chat", "openai", &upstream, "", "");
    folder.upstream("claude", "anthropic", &upstream, "", "");
    let url = upstream.url();
    for (name, protocol, more) in [("hers", "openai", ""), ("theirs", "raw", "[route]\npath = \"/hers\"\n"), ("tensors", "oip", "")] {
        folder.model(name, format!("name = \"{name}\"\nversion = \"7\"\ntenants = [\"other\"]\n[backend.upstream]\nprotocol = \"{protocol}\"\nurls = [\"{url}\"]\n{more}"));
    }
    let issuer = Issuer::es256();
    issuer.trusted_by(&folder, &[]);
    (upstream, folder, issuer)
}

#[tokio::test]
async fn whoever_fails_to_come_in_is_counted_at_the_operators_listener_too() {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    folder.upstream("chat", "openai", &upstream, "", "");
    let mut text = folder.read("gateway.toml");
    let tls = "client_auth = \"required\"\nclient_ca = \"tls/ca.pem\"\n";
    text += &format!("[admin.tls]\ncertificate = \"tls/server.pem\"\nkey = \"tls/server.key\"\n{tls}");
    folder.write("gateway.toml", text);
    let gateway = folder.serve().await;
    // TLS 1.3 is shaken before the server has seen that there is no certificate.
    for _ in 0..2 {
        let client = gateway.dial_admin().connect().await;
        assert!(client.is_err() || client.unwrap().try_send(bare("GET", "/livez", "", None)).await.is_err());
    }
    let mut operator = gateway.dial_admin().certificate(folder.client_certificate("spiffe://acme.example/ops")).connect().await.unwrap();
    let metrics = operator.send(bare("GET", "/metrics", "", None)).await.is(200);
    let metrics = std::str::from_utf8(&metrics.body).unwrap();
    for (listener, count) in [("accept", 0), ("admin", 2)] {
        let line = format!("portcullis_handshakes_failed_total{{listener=\"{listener}\",why=\"certificate\"}} {count}");
        assert!(metrics.lines().any(|there| there.starts_with(&line)), "{line}");
    }
}

#[tokio::test]
async fn a_model_that_is_not_there_looks_like_one_that_is_not_yours() {
    let (upstream, folder, _issuer) = two_tenants().await;
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let named = |model: &str| {
        let mut chat = chat();
        chat["model"] = json!(model);
        ask("POST", "/v1/chat/completions", chat.to_string())
    };
    let groups = [
        // Not hers, not there, there for another protocol, and one that a look-alike names.
        vec![named("hers"), named("none"), named("digits"), named("ch\u{430}t"), named("")],
        vec![ask("GET", "/v1/models/hers", ""), ask("GET", "/v1/models/none", "")],
        vec![
            ask("POST", "/v2/models/tensors/infer", digit()),
            ask("POST", "/v2/models/none/infer", digit()),
            ask("POST", "/v2/models/digits/versions/2/infer", digit()),
            ask("POST", "/v2/models/tensors/versions/7/infer", digit()),
            ask("POST", "/v2/models/chat/infer", digit()),
        ],
        vec![ask("GET", "/v2/models/tensors", ""), ask("GET", "/v2/models/none", ""), ask("GET", "/v2/models/digits/versions/9/ready", "")],
        vec![ask("POST", "/hers", "{}"), ask("POST", "/none", "{}")],
    ];
    for group in groups {
        let mut answers = Vec::new();
        for request in group {
            let what = format!("{} {:?}", request.uri(), request.body());
            let reply = client.send(request).await;
            if reply.reason() == "check.shape" {
                // The empty name is no name, which the request itself shows.
                continue;
            }
            assert_eq!((reply.status.as_u16(), reply.reason()), (404, "authorize.denied"), "{what}");
            answers.push((what, bare_of_ids(&reply)));
        }
        for (what, answer) in &answers[1..] {
            assert_eq!(answer, &answers[0].1, "{what} and {}", answers[0].0);
        }
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn lists_show_a_caller_what_the_caller_may_use() {
    let (_upstream, folder, issuer) = two_tenants().await;
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let names = |reply: &Reply| -> Vec<String> {
        reply.json()["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
    };
    let mine = client.send(ask("GET", "/v1/models", "")).await.is(200);
    assert_eq!(names(&mine), ["chat", "claude", "digits"]);
    let mut other = claims();
    other["org"] = json!("other");
    let theirs = client.send(bare("GET", "/v1/models", "", Some(&issuer.token("k1", &other)))).await.is(200);
    assert_eq!(names(&theirs), ["digits", "hers", "tensors", "theirs"]);
    other["roles"] = json!([]);
    let nothing = client.send(bare("GET", "/v1/models", "", Some(&issuer.token("k1", &other)))).await.is(200);
    assert_eq!(nothing.json()["data"], json!([]));
    client.send(ask("GET", "/v1/models/digits", "")).await.is(200);
}

#[tokio::test]
async fn a_rule_that_errs_denies_and_one_in_shadow_is_only_told() {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    folder.upstream("chat", "openai", &upstream, "", "");
    let issuer = Issuer::es256();
    issuer.trusted_by(&folder, &[]);
    // Cedar skips a rule that overflows; a forbid that is skipped would have let everybody in.
    let errs =
        "@id(\"overflows\")\nforbid (principal, action, resource)\nwhen { principal.tier == \"gold\" && 9223372036854775807 + 1 == 0 };\n";
    let shadow = "@id(\"soon\")\n@mode(\"shadow\")\nforbid (principal, action == Action::\"chat\", resource);\n";
    folder.write("access.cedar", format!("{}{errs}{shadow}", folder.read("access.cedar")));
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let erred = client.send(post_chat()).await.is(404);
    assert_eq!(erred.reason(), "authorize.denied");
    let mut silver = claims();
    silver["tier"] = json!("silver");
    let passed = client.send(bare("POST", "/v1/chat/completions", chat().to_string(), Some(&issuer.token("k1", &silver)))).await.is(200);
    assert_eq!(upstream.count(), 1);
    gateway.stop().await;
    let entries = folder.entries();
    let entry = |id: &str| entries.iter().find(|entry| entry["id"] == id).unwrap().to_string();
    assert!(entry(&passed.receipt().unwrap()).contains("soon"), "{}", entry(&passed.receipt().unwrap()));
    // The caller hears nothing of the rule; the security log names it.
    assert!(!String::from_utf8_lossy(&erred.body).contains("overflows"));
    let told = folder.security_log();
    let refused: Vec<&Value> = told.iter().filter(|event| event["event"] == "request.refused").collect();
    assert!(refused.iter().any(|event| event["rule"].as_str().is_some_and(|rule| rule.contains("overflows"))), "{refused:#?}");
}

#[tokio::test]
async fn the_security_log_says_which_model_was_denied_and_whose_key_has_ended() {
    let (_upstream, folder, _issuer) = two_tenants().await;
    let ended = format!("{KEY}-that-has-ended");
    let sha256 = portcullis::digest::Digest::of(ended.as_bytes());
    let expires = "expires = 2020-01-01T00:00:00Z";
    folder.callers(&format!("[[api_key]]\nid = \"old\"\nsha256 = \"{sha256}\"\ntenant = \"acme\"\nroles = [\"app\"]\n{expires}\n"));
    let shadow = "@id(\"soon\")\n@mode(\"shadow\")\npermit (principal, action == Action::\"chat\", resource == Model::\"hers\");\n";
    folder.write("access.cedar", folder.read("access.cedar") + shadow);
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let named = |model: &str| {
        let mut chat = chat();
        chat["model"] = json!(model);
        ask("POST", "/v1/chat/completions", chat.to_string())
    };
    let (no_rule, no_model) = ("no rule permits", "no such model");
    let cases = [
        (named("hers"), Some("hers"), "/v1/chat/completions", no_rule),
        (named("tensors"), Some("tensors"), "/v1/chat/completions", "the model does not serve this route"),
        (named("made-up"), None, "/v1/chat/completions", no_model),
        (ask("POST", "/hers", "{}"), Some("theirs"), "/hers", no_rule),
        (
            ask("POST", "/v2/models/digits/versions/9/infer", digit()),
            Some("digits"),
            "/v2/models/{model}/versions/{version}/infer",
            "no such version",
        ),
    ];
    let mut expected = Vec::new();
    for (request, model, route, rule) in cases {
        let id = client.send(request).await.is(404).receipt().unwrap();
        expected.push((id, json!([model, route, rule])));
    }
    let late = client.send(bare("GET", "/v1/models", "", Some(&ended))).await.is(401);
    gateway.stop().await;
    let (told, entries) = (folder.security_log(), folder.entries());
    for (id, expected) in &expected {
        let event = told.iter().find(|event| event["event"] == "request.refused" && event["receipt"] == id.as_str()).unwrap();
        assert_eq!(&json!([event.get("model"), event["route"], event["rule"]]), expected, "{event}");
        // Its caller reads the entry.
        let entry = entries.iter().find(|entry| entry["id"] == id.as_str()).unwrap();
        assert_eq!(entry.get("model"), None, "{entry}");
        assert_ne!(entry["req"]["route"], "/hers", "{entry}");
    }
    let shadowed: Vec<&Value> = told.iter().filter(|event| event["event"] == "authorize.shadowed").collect();
    assert_eq!((shadowed.len(), &shadowed[0]["model"], &shadowed[0]["receipt"]), (1, &json!("hers"), &json!(expected[0].0)));
    let failed = told.iter().find(|event| event["event"] == "authenticate.failed").unwrap();
    assert_eq!(
        (&failed["caller"], &failed["tenant"], &failed["rule"]),
        (&json!("api_key:old"), &json!("acme"), &json!("authenticate.expired"))
    );
    let entry = entries.iter().find(|entry| entry["id"] == late.receipt().unwrap().as_str()).unwrap();
    assert_eq!(entry.get("principal"), None, "{entry}");
}
