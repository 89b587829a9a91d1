//! Attacks that other gateways fell to, one test a row of the table in `docs/hardening.md`.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::ask::{ask, bare, chat, post_chat, post_stream};
use crate::support::client::Http;
use crate::support::tokens::claims;
use crate::support::upstream::{events, stream, whole};
use crate::support::{Folder, Gateway, Issuer, KEY, PATIENCE, Reply, Upstream};

/// The credential that the gateway has for its upstream.
const THEIRS: &str = "sk-upstream-canary-77f1c2";

async fn before(upstream: &Upstream) -> (Folder, Gateway) {
    let folder = Folder::new();
    folder.write("keys/upstream.token", THEIRS);
    folder.upstream("chat", "openai", upstream, "credential_file = \"../keys/upstream.token\"\n", "");
    let gateway = folder.serve().await;
    (folder, gateway)
}

/// Sends bytes as they are over HTTP/1.1 and reads until the other end closes.
async fn raw(gateway: &Gateway, bytes: impl AsRef<[u8]>) -> String {
    let mut stream = gateway.dial().http(Http::One).raw().await.unwrap();
    stream.write_all(bytes.as_ref()).await.unwrap();
    let mut answer = Vec::new();
    // An end without close_notify is an end all the same.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection stays open");
    String::from_utf8_lossy(&answer).into_owned()
}

fn post(head: &str, body: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\nconnection: close\r\n{head}\r\n\r\n{body}"
    )
}

fn chat_with(more: Value) -> String {
    let mut body = chat();
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

#[tokio::test]
async fn a_credential_is_a_hash_and_never_part_of_a_query() {
    let upstream = Upstream::language().await;
    let (_folder, gateway) = before(&upstream).await;
    let mut client = gateway.h2().await;
    for credential in ["'or'1'='1", "app'--", "app", "%00", "*", "../../tls/server.key", "${KEY}", "{{KEY}}"] {
        let reply = client.send(bare("GET", "/v1/models", "", Some(credential))).await;
        assert_eq!((reply.status.as_u16(), reply.reason()), (401, "authenticate.refused"), "{credential}");
    }
    // A key with one byte more, or one less, is another key.
    for credential in [format!("{KEY}x"), KEY[1..].to_owned(), KEY.to_uppercase()] {
        client.send(bare("GET", "/v1/models", "", Some(&credential))).await.is(401);
    }
}

#[tokio::test]
async fn host_cannot_choose_another_route() {
    let upstream = Upstream::language().await;
    let (_folder, gateway) = before(&upstream).await;
    let body = chat().to_string();
    let length = body.len();
    for host in ["host: localhost/v1/models?", "host: localhost\r\nhost: other", "host:", "host: user@localhost", "x: no-host", "host: a b"]
    {
        let answer = raw(&gateway, post(&format!("{host}\r\ncontent-length: {length}"), &body)).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{host:?}: {answer}");
    }
    // What rewrites paths elsewhere is only a header here: a stranger's request for an open path stays what it is.
    for header in ["x-original-url", "x-rewrite-url", "x-forwarded-prefix", "x-forwarded-path", "x-http-method-override"] {
        let answer = raw(
            &gateway,
            format!("GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {KEY}\r\n{header}: /v1/chat/completions\r\n\r\n"),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"object\":\"list\""), "{header}: {answer}");
    }
    // Paths that a second parser would read otherwise name nothing.
    let mut client = gateway.h2().await;
    for path in ["//v1/models", "/v1/./models", "/v1/../v1/models", "/v1%2fmodels", "/v1/models/../../v2", "/V1/models", "/v1/models;a=b"] {
        let reply = client.send(ask("GET", path, "")).await;
        assert!(matches!(reply.status.as_u16(), 400 | 404), "{path}: {reply:?}");
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_failed_key_check_leaves_nobody() {
    let upstream = Upstream::language().await;
    let (_folder, gateway) = before(&upstream).await;
    let mut client = gateway.h2().await;
    for authorization in ["", "Bearer", "Bearer ", "Basic YXBwOmFwcA==", "bearer null", "Bearer undefined", "Token x", "Bearer a b"] {
        let mut request = bare("GET", "/v1/models", "", None);
        request.headers_mut().insert("authorization", authorization.parse().unwrap());
        client.send(request).await.is(401);
    }
    let mut twice = ask("GET", "/v1/models", "");
    twice.headers_mut().append("authorization", format!("Bearer {KEY}").parse().unwrap());
    assert_eq!(client.send(twice).await.is(401).reason(), "authenticate.two_credentials");
    let mut both = ask("GET", "/v1/models", "");
    both.headers_mut().insert("x-api-key", KEY.parse().unwrap());
    assert_eq!(client.send(both).await.is(401).reason(), "authenticate.two_credentials");
    // A credential belongs into a header: nowhere else is one looked for.
    client.send(bare("GET", &format!("/v1/models?api_key={KEY}&access_token={KEY}"), "", None)).await.is(401);
    let mut cookie = bare("GET", "/v1/models", "", None);
    cookie.headers_mut().insert("cookie", format!("token={KEY}").parse().unwrap());
    client.send(cookie).await.is(401);
}

#[tokio::test]
async fn a_cached_identity_belongs_to_one_whole_token() {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    folder.upstream("chat", "openai", &upstream, "", "");
    let issuer = Issuer::es256();
    issuer.trusted_by(&folder, &[]);
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let with = |token: &str| bare("POST", "/v1/chat/completions", chat().to_string(), Some(token));
    let token = issuer.good();
    client.send(with(&token)).await.is(200);
    client.send(with(&token)).await.is(200);
    let (message, signature) = token.rsplit_once('.').unwrap();
    let (header, payload) = message.split_once('.').unwrap();
    let other = issuer.token("k1", &{
        let mut claims = claims();
        claims["sub"] = json!("eve");
        claims["org"] = json!("other");
        claims
    });
    let others: Vec<&str> = other.split('.').collect();
    for wrong in [
        format!("{message}.{}", others[2]),
        format!("{header}.{}.{signature}", others[1]),
        format!("{header}.{payload}.{}", &signature[..signature.len() - 2]),
        format!("{token}AA"),
        format!("{token}="),
        format!("{token}."),
    ] {
        assert_eq!(client.send(with(&wrong)).await.status, 401, "{wrong}");
    }
    // The same issuer's token for another tenant is another caller, cached or not.
    client.send(with(&other)).await.is(404);
    client.send(with(&token)).await.is(200);
    client.send(with(&other)).await.is(404);
}

#[tokio::test]
async fn forged_identity_headers_name_nobody() {
    let upstream = Upstream::language().await;
    let (folder, gateway) = before(&upstream).await;
    let mut client = gateway.h2().await;
    let honest = client.send(post_chat()).await.is(200);
    let mut forged = post_chat();
    let names = [
        "x-user-id",
        "x-tenant",
        "x-consumer-username",
        "x-forwarded-user",
        "x-forwarded-for",
        "remote-user",
        "x-caller",
        "client-cert",
        "x-roles",
    ];
    for name in names {
        forged.headers_mut().insert(name, "root".parse().unwrap());
    }
    let forged = client.send(forged).await.is(200);
    let mut alone = bare("GET", "/v1/models", "", None);
    alone.headers_mut().insert("x-forwarded-user", "app".parse().unwrap());
    client.send(alone).await.is(401);
    gateway.stop().await;
    let entries = folder.entries();
    let principal = |reply: &Reply| entries.iter().find(|entry| entry["id"] == reply.receipt().unwrap()).unwrap()["principal"].clone();
    assert_eq!(principal(&honest), principal(&forged));
    assert!(folder.security_log().iter().all(|line| !line.to_string().contains("root")));
}

#[tokio::test]
async fn the_caller_cannot_choose_the_upstream() {
    let (upstream, canary) = (Upstream::language().await, Upstream::json(json!({})).await);
    let (_folder, gateway) = before(&upstream).await;
    let elsewhere = canary.url();
    let body = chat_with(json!({
        "api_base": elsewhere, "base_url": elsewhere, "custom_host": elsewhere, "callback": elsewhere,
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": elsewhere}}]}]
    }));
    let mut client = gateway.h2().await;
    let mut request = ask("POST", &format!("/v1/chat/completions?api_base={elsewhere}"), body.clone());
    for name in ["x-portkey-custom-host", "helicone-target-url", "x-upstream", "x-api-base", "x-forwarded-host", "destination"] {
        request.headers_mut().insert(name, elsewhere.parse().unwrap());
    }
    client.send(request).await.is(200);
    // The target in absolute form, as to a proxy, and CONNECT.
    let answer = raw(
        &gateway,
        format!("GET {elsewhere}/v1/models HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n\r\n"),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    let authority = elsewhere.trim_start_matches("http://");
    let answer = raw(&gateway, format!("CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\nauthorization: Bearer {KEY}\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert_eq!((upstream.count(), canary.count()), (1, 0));
    assert_eq!(upstream.seen()[0].body, body.as_bytes());
}

#[tokio::test]
async fn what_a_caller_writes_is_never_carried_out() {
    let upstream = Upstream::language().await;
    let (folder, gateway) = before(&upstream).await;
    let touched = folder.home().join("touched");
    let command = format!("$(touch {0}) `touch {0}` ; touch {0}", touched.display());
    let content = format!("{{{{ 7*7 }}}} ${{jndi:ldap://127.0.0.1/x}} {{% include '/etc/passwd' %}} __import__('os') {command}");
    let body = chat_with(json!({
        "messages": [{"role": "user", "content": content}], "chat_template": "{{ cycler.__init__.__globals__.os.popen('id') }}",
        "tools": [{"type": "function", "function": {"name": "shell", "parameters": {"$ref": "file:///etc/passwd"}}}]
    }));
    gateway.h2().await.send(ask("POST", "/v1/chat/completions", body.clone())).await.is(200);
    assert_eq!(upstream.seen()[0].body, body.as_bytes());
    assert!(!touched.exists());
}

#[tokio::test]
async fn every_purpose_has_a_key_of_its_own() {
    let upstream = Upstream::language().await;
    let (folder, gateway) = before(&upstream).await;
    gateway.h2().await.send(post_chat()).await.is(200);
    gateway.stop().await;
    let keys = std::fs::read_to_string(folder.log().join("keys.vkey")).unwrap();
    let keys: Vec<&str> = keys.lines().collect();
    // The log's, the statements', and the log's second one for checkpoints.
    assert!(keys.len() == 3 && keys.iter().collect::<HashSet<_>>().len() == 3, "{keys:?}");
    // The log's key endorses the statements' key, and signs no answer.
    let entries = folder.entries();
    let entries = entries.iter().filter(|entry| entry["kind"] != "heartbeat");
    let kids: Vec<(&Value, &Value)> = entries.map(|entry| (&entry["kind"], &entry["kid"])).collect();
    assert_eq!((kids.len(), kids[0].0), (2, &json!("key-rotation")));
    assert_ne!(kids[0].1, kids[1].1);
}

#[tokio::test]
async fn nobody_gets_the_answer_to_anothers_question() {
    let counter = std::sync::atomic::AtomicU64::new(0);
    let upstream = Upstream::start(move |_| {
        let count = counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        async move { whole(200, &json!({"object": "chat.completion", "model": "chat", "count": count, "choices": []})) }
    })
    .await;
    let (_folder, gateway) = before(&upstream).await;
    let mut client = gateway.h2().await;
    for count in 0..3 {
        assert_eq!(client.send(post_chat()).await.is(200).json()["count"], count);
    }
}

#[tokio::test]
async fn a_provider_key_never_comes_back_in_a_header() {
    let upstream = Upstream::start(|seen| async move {
        let theirs = seen.headers["authorization"].to_str().unwrap().to_owned();
        let asked: Value = serde_json::from_slice(&seen.body).unwrap();
        let status = asked["user"].as_str().map_or(200, |status| status.parse().unwrap());
        let (kind, text) = match (status, asked["stream"] == true) {
            (200, true) => ("text/event-stream", events("chat", true).concat()),
            (200, false) => ("application/json", json!({"object": "chat.completion", "model": "chat", "choices": []}).to_string()),
            _ => ("application/json", json!({"error": {"message": format!("bad key {theirs}")}}).to_string()),
        };
        let mut response = Response::builder().status(status).header("content-type", kind);
        for name in [
            "authorization",
            "x-api-key",
            "set-cookie",
            "server",
            "x-request-id",
            "location",
            "x-provider-key",
            "www-authenticate",
            "via",
            "portcullis-reason",
        ] {
            response = response.header(name, &theirs);
        }
        response.body(Full::new(Bytes::from(text)).boxed_unsync()).unwrap()
    })
    .await;
    let (_folder, gateway) = before(&upstream).await;
    for mut client in [gateway.h1().await, gateway.h2().await] {
        let mut replies = vec![client.send(post_chat()).await.is(200), client.send(post_stream()).await.is(200)];
        for status in ["401", "403", "404", "429", "500", "302"] {
            let reply = client.send(ask("POST", "/v1/chat/completions", chat_with(json!({"user": status})))).await;
            assert!(matches!(reply.status.as_u16(), 502 | 503), "{reply:?}");
            replies.push(reply);
        }
        for reply in replies {
            let seen = format!("{:?} {:?} {:?}", reply.headers, reply.trailers, reply.body);
            assert!(!seen.contains("canary"), "{seen}");
            for name in ["set-cookie", "server", "location", "x-provider-key", "authorization"] {
                assert!(!reply.headers.contains_key(name), "{name}: {seen}");
            }
        }
    }
}

#[tokio::test]
async fn no_secret_stands_in_any_log() {
    let upstream = Upstream::start(|seen| async move {
        let mut answer = whole(200, &json!({"object": "chat.completion", "model": "chat", "choices": [], "text": "answer-canary"}));
        if seen.uri.path() == "/v1/completions" {
            *answer.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
        }
        answer
    })
    .await;
    let folder = Folder::new();
    folder.write("keys/upstream.token", THEIRS);
    folder.upstream("chat", "openai", &upstream, "credential_file = \"../keys/upstream.token\"\n", "");
    let issuer = Issuer::es256();
    issuer.trusted_by(&folder, &[]);
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let token = issuer.good();
    let wrong = "pk_wrong-key-canary-123456";
    let body = chat_with(json!({"messages": [{"role": "user", "content": "prompt-canary"}]}));
    for credential in [KEY, &token, wrong] {
        for (method, path, body) in [
            ("POST", "/v1/chat/completions", body.as_str()),
            ("POST", "/v1/completions", "{\"model\":\"chat\",\"prompt\":\"prompt-canary\"}"),
            ("POST", "/v1/chat/completions", "{\"model\":\"prompt-canary\",\"messages\":[]}"),
            ("POST", "/v1/chat/completions", "{\"prompt-canary\":"),
            ("GET", "/v1/models/prompt-canary?key=query-canary", ""),
        ] {
            let mut request = bare(method, path, body.to_owned(), Some(credential));
            request.headers_mut().insert("cookie", "cookie-canary".parse().unwrap());
            request.headers_mut().insert("user-agent", "agent-canary".parse().unwrap());
            client.send(request).await;
        }
    }
    let metrics = gateway.admin("/metrics").await.1;
    let said = gateway.stop().await.join("\n");
    let mut places = vec![("metrics".to_owned(), metrics.into_bytes()), ("stderr".to_owned(), said.into_bytes())];
    places.push(("security log".to_owned(), std::fs::read(folder.home().join("security.log")).unwrap()));
    let mut left = vec![folder.log(), folder.log().with_extension("lock")];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            places.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
    let key = folder.read("tls/provenance.key");
    let key = key.lines().nth(1).unwrap();
    for (place, bytes) in &places {
        let text = String::from_utf8_lossy(bytes);
        let signature = token.rsplit('.').next().unwrap();
        for secret in [KEY, signature, token.as_str(), wrong, THEIRS, key, "canary"] {
            assert!(!text.contains(secret), "{secret} stands in {place}");
        }
    }
    for file in ["/wal-00000000", "/salts", "/checkpoint", "/tile/entries/000.p/", "/log.lock"] {
        assert!(places.iter().any(|(place, _)| place.contains(file)), "the log has its files: {file}");
    }
}

#[tokio::test]
async fn logs_take_no_injection() {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    folder.upstream("chat", "openai", &upstream, "", "");
    let issuer = Issuer::es256();
    issuer.trusted_by(&folder, &[]);
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let nasty = "x\r\n{\"event\":\"policy.reloaded\",\"forged\":true}\n\u{1b}[31mred\u{1b}[0m\u{202e}\u{0}\"";
    let mut named = claims();
    named["sub"] = json!(nasty);
    client.send(bare("POST", "/v1/chat/completions", chat().to_string(), Some(&issuer.token("k1", &named)))).await.is(401);
    let token = issuer.token_of(&json!({"alg": "ES256", "kid": nasty}), &claims());
    client.send(bare("POST", "/v1/chat/completions", chat().to_string(), Some(&token))).await.is(401);
    client.send(ask("POST", "/v1/chat/completions", chat_with(json!({"model": nasty})))).await.is(400);
    client.send(ask("POST", "/v1/chat/completions", json!({nasty: 1, "model": "chat"}).to_string())).await.is(400);
    let mut agent = post_chat();
    agent.headers_mut().insert("user-agent", http::HeaderValue::from_bytes(b"\xffevil\t\"} {\"event\":\"forged\"").unwrap());
    client.send(agent).await.is(200);
    let said = gateway.stop().await.join("\n");
    let text = std::fs::read(folder.home().join("security.log")).unwrap();
    let text = String::from_utf8(text).expect("the log is UTF-8");
    for (place, text) in [("stderr", &said), ("the security log", &text)] {
        assert!(!text.contains('\u{1b}') && !text.contains("forged") && !text.contains('\u{202e}'), "{place}: {text}");
    }
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        lines.iter().filter(|line| line["event"] == "request.refused" || line["event"] == "authenticate.failed").count(),
        lines.len()
    );
}

#[tokio::test]
async fn both_lengths_are_refused() {
    let upstream = Upstream::language().await;
    let (_folder, gateway) = before(&upstream).await;
    let smuggled = format!("GET /v1/models HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n\r\n");
    let body = chat().to_string();
    let length = body.len();
    let chunked = format!("{length:x}\r\n{body}\r\n0\r\n\r\n");
    for (head, body) in [
        (format!("content-length: {length}\r\ntransfer-encoding: chunked"), format!("{chunked}{smuggled}")),
        (format!("transfer-encoding: chunked\r\ncontent-length: {length}"), format!("{chunked}{smuggled}")),
        (format!("content-length: {length}\r\ncontent-length: 5"), format!("{body}{smuggled}")),
        (format!("content-length: {length}, {length}"), format!("{body}{smuggled}")),
        (format!("content-length: +{length}"), body.clone()),
        ("transfer-encoding: chunked\r\ntransfer-encoding: chunked".to_owned(), format!("{chunked}{smuggled}")),
        ("transfer-encoding: identity, chunked".to_owned(), format!("{chunked}{smuggled}")),
        ("transfer-encoding : chunked".to_owned(), format!("{chunked}{smuggled}")),
        ("transfer-encoding:\x0bchunked".to_owned(), format!("{chunked}{smuggled}")),
        ("transfer-encoding: chunked".to_owned(), format!("{length:x};a=\n\r\n{body}\r\n0\r\n\r\n{smuggled}")),
    ] {
        let answer = raw(&gateway, post(&format!("host: localhost\r\n{head}"), &body).replace("connection: close\r\n", "")).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{head:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "what came behind was answered, too: {head:?}: {answer}");
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_stream_passes_the_same_stops() {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    let more = "[check]\nmax_tokens = 100\nmax_body = \"4KiB\"\n[detect.parameters]\nmode = \"enforce\"\n";
    folder.upstream("chat", "openai", &upstream, "", more);
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    for (more, reason) in [
        (json!({"max_tokens": 101}), "check.max_tokens"),
        (json!({"max_tokens": "many"}), "check.shape"),
        (json!({"user": "x".repeat(5_000)}), "check.too_large"),
        (json!({"logprobs": true, "top_logprobs": 20}), "check.parameters"),
        (json!({"model": "other"}), "authorize.denied"),
    ] {
        let mut reasons = Vec::new();
        for streams in [true, false] {
            let mut body: Value = serde_json::from_str(&chat_with(more.clone())).unwrap();
            body["stream"] = json!(streams);
            let reply = client.send(ask("POST", "/v1/chat/completions", body.to_string())).await;
            assert!(reply.reason().starts_with(reason) && reply.receipt().is_some(), "{reply:?}");
            reasons.push((reply.status, reply.reason().to_owned(), reply.body));
        }
        assert_eq!(reasons[0], reasons[1]);
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_no_success() {
    let (tell, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let upstream = Upstream::start(move |_| {
        let (writer, response) = stream("text/event-stream");
        let _ = tell.send(writer);
        async move { response }
    })
    .await;
    let (folder, gateway) = before(&upstream).await;
    for http in [Http::One, Http::Two] {
        let mut client = gateway.dial().http(http).connect().await.unwrap();
        let held = client.open(post_stream()).await.unwrap();
        let writer = begun.recv().await.unwrap();
        // The upstream ends without `[DONE]`, which looks like an end to HTTP and is none to the protocol.
        writer.send(events("chat", false)[0].clone().into()).await.unwrap();
        drop(writer);
        let _ = tokio::time::timeout(PATIENCE, Reply::read(held)).await.expect("the stream stays open");
    }
    gateway.stop().await;
    let kinds: Vec<(Value, Value)> = folder
        .entries()
        .iter()
        .filter(|entry| entry.get("resp").is_some())
        .map(|entry| (entry["kind"].clone(), entry["resp"]["complete"].clone()))
        .collect();
    assert_eq!(kinds, vec![(json!("aborted"), json!(false)); 2]);
}

#[tokio::test]
async fn a_gap_in_the_guard_denies() {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    folder.upstream("chat", "openai", &upstream, "", "");
    // An issuer whose keys were never fetched: nothing listens there.
    folder.callers(
        "[[issuer]]\nissuer = \"https://login.example/\"\naudience = [\"inference\"]\nalgorithms = [\"ES256\"]\njwks = \"http://127.0.0.1:9/keys\"\n\
         claims = { tenant = \"org\" }\n",
    );
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let reply = client.send(bare("POST", "/v1/chat/completions", chat().to_string(), Some(&Issuer::es256().good()))).await;
    assert_eq!((reply.status.as_u16(), reply.reason()), (401, "authenticate.refused"));
    // The others need not wait for it, and the operator is told.
    client.send(post_chat()).await.is(200);
    let (status, told) = gateway.admin("/readyz").await;
    assert!(status == 200 && told.contains("no keys from https://login.example/"), "{told}");
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn files_that_vanish_shut_nobody_out_and_let_nobody_in() {
    let upstream = Upstream::language().await;
    let (folder, gateway) = before(&upstream).await;
    let mut client = gateway.h2().await;
    client.send(post_chat()).await.is(200);
    for file in ["callers.toml", "access.cedar", "models/chat.toml"] {
        std::fs::remove_file(folder.policies().join(file)).unwrap();
    }
    gateway.signal("HUP");
    gateway.admin_until("/readyz", |_, body| body.contains("policies were refused")).await;
    client.send(post_chat()).await.is(200);
    client.send(bare("GET", "/v1/models", "", None)).await.is(401);
}

#[tokio::test]
async fn concurrent_requests_cannot_share_one_budget() {
    let upstream = Upstream::start(|_| async {
        // Long enough that all would be let in, were they charged only when they are answered.
        tokio::time::sleep(Duration::from_millis(50)).await;
        whole(200, &json!({"object": "chat.completion", "model": "chat", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}))
    })
    .await;
    let folder = Folder::new();
    let budget = "[budget.default]\nrequests = { rate = \"1000/s\" }\ntokens = { rate = \"3000/day\" }\n[check]\nmax_tokens = 900\n";
    folder.upstream("chat", "openai", &upstream, "", budget);
    let gateway = folder.serve().await;
    let client = gateway.h2().await;
    let asked = (0..32).map(|_| {
        let mut client = client.again();
        async move { client.send(post_chat()).await }
    });
    let replies = futures_util::future::join_all(asked).await;
    // Each reserves 916 of 3000 tokens, so three fit however they arrive.
    let passed = replies.iter().filter(|reply| reply.status == 200).count();
    assert_eq!((passed, upstream.count()), (3, 3));
    assert!(replies.iter().filter(|reply| reply.status != 200).all(|reply| reply.reason() == "budget.tokens"));
}

#[tokio::test]
async fn tokens_are_settled_once() {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    let budget = "[budget.default]\nrequests = { rate = \"1000/s\" }\ntokens = { rate = \"10000/day\" }\n[check]\nmax_tokens = 100\n";
    folder.upstream("chat", "openai", &upstream, "", budget);
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    for turn in 0..20 {
        client.send(if turn % 2 == 0 { post_chat() } else { post_stream() }).await.is(200);
    }
    let reply = client.send(post_chat()).await.is(200);
    let reserved = 100 + chat().to_string().len().div_ceil(4);
    let expected = 10_000 - 20 * 15 - reserved;
    assert!(reply.header("ratelimit").contains(&format!("\"tokens\";r={expected};")), "{} and not {expected}", reply.header("ratelimit"));
}

#[tokio::test]
async fn huge_bad_requests_get_small_errors() {
    let upstream = Upstream::language().await;
    let (_folder, gateway) = before(&upstream).await;
    let mut client = gateway.h2().await;
    let long = "needle".repeat(20_000);
    let bodies = [
        format!("{{\"{long}\": 1"),
        format!("{{\"model\": \"{long}\", \"messages\": []}}"),
        format!("{{\"model\": [\"{long}\"]}}"),
        format!("{{\"model\": \"chat\", \"messages\": \"{long}\"}}"),
        format!("{{\"{long}\": 1, \"{long}\": 2}}"),
        "[".repeat(200_000),
        "{\"a\":".repeat(100_000),
        format!("[{}]", "1e999999,".repeat(50_000)),
        "\u{feff}{}".to_owned(),
        "\"\\ud800\"".repeat(10_000),
    ];
    for path in ["/v1/chat/completions", "/v1/messages", "/v1/embeddings", "/v1/responses"] {
        for body in &bodies {
            let reply = client.send(ask("POST", path, body.clone())).await;
            assert!(matches!(reply.status.as_u16(), 400 | 404), "{path}: {}", reply.status);
            assert!(reply.body.len() < 1_024 && !reply.body.windows(12).any(|part| part == b"needleneedle"), "{path}: {:?}", reply.body);
            let head: usize = reply.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
            assert!(head < 8_192, "{head} bytes of headers");
        }
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_body_past_the_cap_is_too_large_and_not_bad_json() {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    folder.gateway("max_body = \"64KiB\"", "");
    folder.upstream("chat", "openai", &upstream, "", "");
    let gateway = folder.serve().await;
    let empty = chat_with(json!({"user": ""})).len();
    for http in [Http::One, Http::Two] {
        let at = |length: usize| ask("POST", "/v1/chat/completions", chat_with(json!({"user": "x".repeat(length - empty)})));
        let mut client = gateway.dial().http(http).connect().await.unwrap();
        client.send(at(64 << 10)).await.is(200);
        let reply = client.send(at((64 << 10) + 1)).await.is(413);
        assert_eq!(reply.reason(), "check.too_large");
    }
    assert_eq!(upstream.count(), 2);
}
