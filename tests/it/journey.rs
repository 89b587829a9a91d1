//! Requests that are answered: who sends them, what the upstream receives, and what comes back.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::support::ask::{NO_RECEIPT, ask, bare, chat, digit, post_chat, post_stream};
use crate::support::client::{Http, receipt};
use crate::support::tokens::claims;
use crate::support::upstream::{Seen, Streams, events};
use crate::support::{Folder, Issuer, KEY, PATIENCE, Reply, Upstream};

/// The credential that the gateway has for its upstream.
const THEIRS: &str = "sk-upstream-0f1e2d3c4b5a";

/// Headers that a caller might hope go on.
const HOPEFUL: [(&str, &str); 21] = [
    ("x-forwarded-for", "203.0.113.9"),
    ("x-forwarded-host", "evil.example"),
    ("forwarded", "for=203.0.113.9"),
    ("x-real-ip", "203.0.113.9"),
    ("x-user-id", "root"),
    ("x-tenant", "other"),
    ("cookie", "session=stolen"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("tracestate", "evil=1"),
    ("baggage", "user=root"),
    ("x-request-id", "from the caller"),
    ("user-agent", "Caller/1.0"),
    ("accept-encoding", "gzip"),
    ("accept-language", "en"),
    ("openai-organization", "org-of-the-caller"),
    ("x-goog-api-key", "of-the-caller"),
    ("x-original-url", "/admin"),
    ("x-http-method-override", "DELETE"),
    ("provenance-receipt", "id=\"forged\""),
    ("portcullis-work", "v1.6.6b4a1d80.00000000000000000000000000000000.00000000000000000000000000000000.0000000000000000"),
    ("x-anything", "else"),
];

fn hopeful(mut request: Request<Bytes>) -> Request<Bytes> {
    for (name, value) in HOPEFUL {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    request
}

/// The headers of a request as the upstream saw them.
fn headers(seen: &Seen) -> BTreeMap<&str, &str> {
    let headers: BTreeMap<_, _> = seen.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    assert_eq!(headers.len(), seen.headers.len(), "a header came twice: {:?}", seen.headers);
    headers
}

fn is_answered(reply: &Reply) {
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(reply.receipt().is_some(), "{reply:?}");
    assert!(reply.headers.contains_key("provenance-statement"), "{reply:?}");
}

/// A folder with `digits` in the gateway and `chat` behind `upstream`.
fn folder(upstream: &Upstream, backend: &str) -> Folder {
    let folder = Folder::new();
    folder.write("keys/upstream.token", format!("{THEIRS}\n"));
    folder.digits("");
    folder.upstream("chat", "openai", upstream, &format!("credential_file = \"../keys/upstream.token\"\n{backend}"), "");
    folder
}

#[tokio::test]
async fn an_api_key_and_tokens_of_every_kind_get_answers() {
    let upstream = Upstream::language().await;
    let folder = folder(&upstream, "");
    let issuers = [Issuer::es256(), Issuer::eddsa(), Issuer::rs256()];
    issuers[0].trusted_by(&folder, &[&issuers[1], &issuers[2]]);
    let gateway = folder.serve().await;
    let mut credentials = vec![KEY.to_owned()];
    credentials.extend(issuers.iter().zip(["k1", "k2", "k3"]).map(|(issuer, kid)| issuer.token(kid, &claims())));
    for http in [Http::One, Http::Two] {
        let mut client = gateway.dial().http(http).connect().await.unwrap();
        for credential in &credentials {
            let reply = client.send(bare("POST", "/v1/chat/completions", chat().to_string(), Some(credential))).await;
            is_answered(&reply);
            assert_eq!(reply.json()["choices"][0]["message"]["content"], "hello");
            let reply = client.send(bare("POST", "/v2/models/digits/infer", digit(), Some(credential))).await;
            is_answered(&reply);
            assert_eq!(reply.json()["model_name"], "digits");
        }
    }
    assert_eq!(upstream.count(), 2 * credentials.len());
    gateway.stop().await;
    let methods: Vec<String> =
        folder.entries().iter().filter_map(|entry| Some(entry.get("principal")?["method"].as_str()?.to_owned())).collect();
    assert_eq!(methods.iter().filter(|method| *method == "api_key").count(), 4);
    assert_eq!(methods.iter().filter(|method| *method == "jwt").count(), 12);
}

#[tokio::test]
async fn a_client_certificate_gets_answers_and_a_bearer_wins_over_it() {
    let upstream = Upstream::language().await;
    let folder = folder(&upstream, "");
    folder.gateway("", "client_ca = \"tls/ca.pem\"\nclient_auth = \"optional\"");
    folder.callers("[[certificate]]\nsan = \"spiffe://acme.example/*\"\ntenant = \"acme\"\nroles = [\"app\"]\n");
    let shadowed = "@id(\"told\")\n@mode(\"shadow\")\nforbid (principal, action, resource) when { context.certificate };\n";
    folder.write("access.cedar", folder.read("access.cedar") + shadowed);
    let gateway = folder.serve().await;
    let nobody = || bare("POST", "/v1/chat/completions", chat().to_string(), None);

    let mut known = gateway.with_certificate(folder.client_certificate("spiffe://acme.example/batch")).await;
    is_answered(&known.send(nobody()).await);
    is_answered(&known.send(bare("POST", "/v2/models/digits/infer", digit(), None)).await);
    // The bearer names the caller; a bad one is not mended by a good certificate.
    is_answered(&known.send(post_chat()).await);
    let reply = known.send(bare("POST", "/v1/chat/completions", chat().to_string(), Some("pk_wrong"))).await;
    assert_eq!((reply.status.as_u16(), reply.reason()), (401, "authenticate.refused"));

    let mut unknown = gateway.with_certificate(folder.client_certificate("spiffe://elsewhere.example/batch")).await;
    assert_eq!(unknown.send(nobody()).await.is(401).reason(), "authenticate.refused");
    is_answered(&unknown.send(post_chat()).await);
    // Another authority's certificate does not come past the handshake.
    let stranger = Folder::new().client_certificate("spiffe://acme.example/batch");
    let refused = match gateway.dial().certificate(stranger).connect().await {
        Err(_) => true,
        Ok(mut client) => client.try_send(post_chat()).await.is_err(),
    };
    assert!(refused);
    assert_eq!(gateway.h2().await.send(nobody()).await.is(401).reason(), "authenticate.missing");
    gateway.stop().await;
    let methods: Vec<Value> =
        folder.entries().iter().filter(|entry| entry["kind"] == "inference").map(|entry| entry["principal"]["method"].clone()).collect();
    assert_eq!(methods, ["certificate", "certificate", "api_key", "api_key"]);
}

#[tokio::test]
async fn without_a_required_certificate_there_is_no_connection() {
    let upstream = Upstream::language().await;
    let folder = folder(&upstream, "");
    folder.gateway("", "client_ca = \"tls/ca.pem\"\nclient_auth = \"required\"");
    folder.callers("[[certificate]]\nsan = \"spiffe://acme.example/*\"\ntenant = \"acme\"\nroles = [\"app\"]\n");
    let gateway = folder.serve().await;
    for http in [Http::One, Http::Two] {
        // In TLS 1.3 the client hears of it after its own side is done.
        let refused = match gateway.dial().http(http).connect().await {
            Err(_) => true,
            Ok(mut client) => client.try_send(post_chat()).await.is_err(),
        };
        assert!(refused);
    }
    let mut known = gateway.with_certificate(folder.client_certificate("spiffe://acme.example/batch")).await;
    is_answered(&known.send(bare("POST", "/v1/chat/completions", chat().to_string(), None)).await);
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn the_upstream_receives_what_the_gateway_understood_and_nothing_of_the_caller() {
    let upstream = Upstream::language().await;
    let folder = folder(&upstream, "");
    let gateway = folder.serve().await;
    // Odd but valid: the bytes must arrive as they are, spaces, escapes, unknown members and all.
    let body = "{ \"messages\" : [ {\"role\":\"user\",\"content\":\"h\\u00e9llo \\/ w\u{f6}rld\"} ],\n\t\"model\":\"chat\", \"x-unknown\": 1.50e2 }";
    for http in [Http::One, Http::Two] {
        let mut client = gateway.dial().http(http).connect().await.unwrap();
        let mut request = hopeful(ask("POST", "/v1/chat/completions?debug=1&model=other", body));
        if http == Http::One {
            request.headers_mut().insert("connection", "x-named, keep-alive".parse().unwrap());
            request.headers_mut().insert("x-named", "hop".parse().unwrap());
        }
        is_answered(&client.send(request).await);
    }
    for seen in upstream.seen() {
        assert_eq!((seen.method.as_str(), seen.uri.to_string().as_str()), ("POST", "/v1/chat/completions"));
        assert_eq!(seen.body, body.as_bytes());
        let (length, bearer) = (body.len().to_string(), format!("Bearer {THEIRS}"));
        let expected = BTreeMap::from([
            ("host", upstream.url()["http://".len()..].to_owned()),
            ("content-type", "application/json".to_owned()),
            ("accept", "application/json".to_owned()),
            ("content-length", length),
            ("authorization", bearer),
        ]);
        let expected: BTreeMap<&str, &str> = expected.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(headers(&seen), expected);
    }
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn only_the_model_is_replaced_and_the_answer_has_the_callers_name_for_it() {
    let upstream = Upstream::language().await;
    let folder = folder(&upstream, "model = \"meta-llama/Llama-3.1-8B\"");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let body = "{ \"model\" : \"chat\",  \"messages\":[{\"role\":\"user\",\"content\":\"say \\\"model\\\": \\\"chat\\\"\"}] , \"seed\":7}";
    let reply = client.send(ask("POST", "/v1/chat/completions", body)).await;
    is_answered(&reply);
    assert_eq!(reply.json()["model"], "chat");
    assert!(!String::from_utf8_lossy(&reply.body).contains("Llama"));
    assert_eq!(upstream.seen()[0].body, body.replacen("\"chat\"", "\"meta-llama/Llama-3.1-8B\"", 1).as_bytes());
}

#[tokio::test]
async fn a_stream_asks_for_usage_and_takes_it_out_again() {
    let upstream = Upstream::language().await;
    let folder = folder(&upstream, "");
    let gateway = folder.serve().await;
    for mut client in [gateway.h1().await, gateway.h2().await] {
        let reply = client.send(hopeful(post_stream())).await;
        assert_eq!((reply.status.as_u16(), reply.header("content-type")), (200, "text/event-stream"), "{reply:?}");
        let text = String::from_utf8(reply.body.to_vec()).unwrap();
        assert!(text.contains("one ") && text.contains("two") && text.ends_with("data: [DONE]\n\n"), "{text}");
        assert!(!text.contains("prompt_tokens"), "{text}");
        assert!(reply.header("provenance-receipt").contains("state=open"));
    }
    let seen = &upstream.seen()[0];
    let expected: Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!(expected["stream_options"], json!({"include_usage": true}));
    assert_eq!(headers(seen)["accept"], "text/event-stream");
    assert_eq!(headers(seen).len(), 5, "{:?}", headers(seen));
}

#[tokio::test]
async fn anthropic_goes_on_with_its_version_and_its_own_credential_header() {
    let upstream = Upstream::language().await;
    let folder = folder(&upstream, "");
    folder.upstream("claude", "anthropic", &upstream, "credential_file = \"../keys/upstream.token\"\n", "");
    let gateway = folder.serve().await;
    let body = json!({"model": "claude", "max_tokens": 16, "messages": [{"role": "user", "content": "hello"}]}).to_string();
    let mut request = hopeful(bare("POST", "/v1/messages", body.clone(), None));
    request.headers_mut().insert("x-api-key", KEY.parse().unwrap());
    request.headers_mut().insert("anthropic-version", "2023-01-01".parse().unwrap());
    is_answered(&gateway.h1().await.send(request).await);
    let seen = &upstream.seen()[0];
    let headers = headers(seen);
    assert_eq!((headers["x-api-key"], headers["anthropic-version"]), (THEIRS, "2023-01-01"));
    assert_eq!((headers.len(), &seen.body[..]), (6, body.as_bytes()), "{headers:?}");
}

#[tokio::test]
async fn a_receipt_is_for_the_caller_it_was_made_for() {
    let upstream = Upstream::language().await;
    let folder = folder(&upstream, "");
    let issuer = Issuer::es256();
    issuer.trusted_by(&folder, &[]);
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let id = client.send(post_chat()).await.receipt().unwrap();
    let path = format!("/v1/receipts/{id}");
    let found = client.send(ask("GET", &path, "")).await.is(200);
    assert!(String::from_utf8_lossy(&found.body).contains(&id));
    let theirs = client.send(bare("GET", &path, "", Some(&issuer.good()))).await.is(404);
    let none = client.send(ask("GET", "/v1/receipts/0192aaaa-bbbb-7ccc-8ddd-eeeeffff0000", "")).await.is(404);
    assert_eq!(theirs.body, none.body);
    assert_eq!((theirs.reason(), none.reason()), ("authorize.denied", "authorize.denied"));
}

#[tokio::test]
async fn the_receipt_of_a_stream_says_that_it_is_open_until_it_has_ended() {
    let mut streams = Streams::new().await;
    let folder = folder(&streams.upstream, "");
    let issuer = Issuer::es256();
    issuer.trusted_by(&folder, &[]);
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let held = client.open(post_stream()).await.unwrap();
    let (id, writer) = (receipt(held.headers()).unwrap(), streams.next().await);
    let path = format!("/v1/receipts/{id}");
    let open = client.send(ask("GET", &path, "")).await.is(200).json();
    assert_eq!((&open["id"], &open["state"], &open["view"]["model"]["name"]), (&json!(id), &json!("open"), &json!("chat")));
    assert!(open["log"].is_string() && open["view"]["t0"].is_u64() && open.get("statement").is_none(), "{open}");
    for form in [".statement", ".cose", ".scitt", ".tlog-proof", ".disclosure"] {
        let reply = client.send(ask("GET", &format!("{path}{form}"), "")).await.is(409);
        assert_eq!((reply.reason(), reply.header("retry-after")), ("infer.open", "1"), "{form}");
        // To everybody else it is what a receipt is that is not there.
        let theirs = client.send(bare("GET", &format!("{path}{form}"), "", Some(&issuer.good()))).await.is(404);
        let none = client.send(ask("GET", &format!("/v1/receipts/{NO_RECEIPT}{form}"), "")).await.is(404);
        assert_eq!((&theirs.body, theirs.reason()), (&none.body, "authorize.denied"), "{form}");
    }
    client.send(bare("GET", &path, "", Some(&issuer.good()))).await.is(404);
    for event in events("chat", true) {
        writer.send(event.into()).await.unwrap();
    }
    drop(writer);
    held.into_body().collect().await.unwrap();
    let ended = client.send(ask("GET", &path, "")).await.is(200).json();
    assert!(ended["state"] != "open" && ended["statement"].is_string(), "{ended}");
    assert_eq!((&ended["view"]["kind"], &ended["view"]["t0"]), (&json!("inference"), &open["view"]["t0"]));
    assert_eq!(ended["view"]["model"], open["view"]["model"]);
    // One that its caller gives up.
    let held = client.open(post_stream()).await.unwrap();
    let (id, _writer) = (receipt(held.headers()).unwrap(), streams.next().await);
    drop(held);
    let gone = async {
        loop {
            let told = client.send(ask("GET", &format!("/v1/receipts/{id}"), "")).await.is(200).json();
            if told["state"] != "open" {
                break told;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, gone).await.unwrap()["view"]["kind"], "aborted");
}

#[tokio::test]
async fn what_can_be_got_can_be_asked_for_without_its_bytes() {
    let upstream = Upstream::language().await;
    let folder = folder(&upstream, "");
    let gateway = folder.serve().await;
    let mut receipts = Vec::new();
    for mut client in [gateway.h1().await, gateway.h2().await] {
        for path in
            ["/v1/models", "/v1/models/chat", "/v2", "/v2/health/live", "/v2/models/digits", "/v2/models/digits/ready", "/v2/models/none"]
        {
            let got = client.send(ask("GET", path, "")).await;
            let head = client.send(ask("HEAD", path, "")).await;
            assert_eq!((head.status, head.body.len()), (got.status, 0), "{path}");
            assert_eq!(head.header("content-length"), got.body.len().to_string(), "{path}");
            assert_eq!(head.header("content-type"), got.header("content-type"), "{path}");
            // Of what is sent, which is nothing (RFC 9530, B.3).
            assert_eq!(head.header("content-digest"), "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:", "{path}");
            receipts.push(head.receipt().unwrap());
        }
        let wrong = client.send(ask("POST", "/v1/models", "{}")).await.is(405);
        assert_eq!(wrong.header("allow"), "GET, HEAD");
        client.send(bare("HEAD", "/v1/models", "", None)).await.is(401);
        let wrong = client.send(ask("HEAD", "/v1/chat/completions", "")).await.is(405);
        assert_eq!(wrong.header("allow"), "POST");
    }
    gateway.stop().await;
    for entry in folder.entries().iter().filter(|entry| receipts.iter().any(|id| entry["id"] == id.as_str())) {
        assert_eq!((&entry["req"]["method"], &entry["resp"]["bytes_sent"]), (&json!("HEAD"), &json!(0)), "{entry}");
    }
}
