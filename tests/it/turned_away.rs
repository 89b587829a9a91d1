//! What the first stop turns away ends as every refusal does: with a receipt, counted, and told in the security log. What is no request is counted.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use portcullis::wire::grpc as message;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::ask::{ask, bare, chat, framed, post_chat};
use crate::support::client::Http;
use crate::support::{Folder, Gateway, PATIENCE, Upstream};

/// A request whose body says that it is compressed.
fn coded(mut request: Request<Bytes>) -> Request<Bytes> {
    request.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    request
}

async fn serving() -> (Upstream, Folder, Gateway) {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    folder.digits("");
    folder.upstream("chat", "openai", &upstream, "", "");
    let gateway = folder.serve().await;
    (upstream, folder, gateway)
}

#[tokio::test]
async fn what_is_turned_away_is_counted_told_and_has_a_receipt() {
    let (upstream, folder, gateway) = serving().await;
    let (mut h2, mut h1) = (gateway.h2().await, gateway.h1().await);
    let mut named = Vec::new();
    for (request, status, code) in [
        (coded(post_chat()), 415, "accept.coded"),
        (ask("GET", "/v2/../../etc/passwd", ""), 400, "accept.target"),
        (ask("TRACE", "/v2", ""), 405, "accept.method"),
    ] {
        let replies = [h2.send(request.clone()).await, h1.send(request).await];
        h1 = gateway.h1().await;
        for reply in replies {
            assert_eq!((reply.status.as_u16(), reply.reason()), (status, code), "{reply:?}");
            for header in ["provenance-statement", "content-digest", "traceparent"] {
                assert!(reply.headers.contains_key(header), "{header}: {reply:?}");
            }
            // No 405 says less than what would be taken (RFC 9110, 15.5.6).
            assert_eq!(reply.header("allow"), if status == 405 { "GET, HEAD, POST" } else { "" });
            named.push((reply.receipt().unwrap(), code));
        }
    }
    let mut stream = gateway.dial().http(Http::One).raw().await.unwrap();
    stream.write_all(b"GET /v2 HTTP/1.1\r\nhost: evil.example:x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400"));

    for (labels, count) in [("code=\"accept.coded\"", 2.0), ("code=\"accept.target\"", 2.0), ("code=\"accept.method\"", 2.0)] {
        assert!((gateway.metric(&format!("portcullis_refused_total{{{labels}}}")).await - count).abs() < f64::EPSILON, "{labels}");
    }
    let metrics = gateway.admin("/metrics").await.1;
    for labels in ["stop=\"accept\",verdict=\"refused\",code=\"accept.coded\"", "method=\"POST\",route=\"\",status=\"415\""] {
        assert!(metrics.contains(labels), "{labels}: {metrics}");
    }
    assert_eq!(upstream.count(), 0);
    gateway.stop().await;
    let (entries, events) = (folder.entries(), folder.security_log());
    for (id, code) in named {
        let entry = entries.iter().find(|entry| entry["id"] == id.as_str()).unwrap();
        assert_eq!((&entry["kind"], &entry["resp"]["code"]), (&Value::from("deny"), &Value::from(code)));
        let event = events.iter().find(|event| event["receipt"] == id.as_str()).unwrap();
        assert_eq!((&event["event"], &event["code"]), (&Value::from("request.refused"), &Value::from(code)));
        assert_eq!(event["address"], "127.0.0.1");
    }
}

#[tokio::test]
async fn what_comes_to_be_no_request_is_counted() {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    folder.upstream("chat", "openai", &upstream, "", "");
    folder.gateway("max_connections = 1\ndeadlines = { headers = \"300ms\" }", "");
    let gateway = folder.serve().await;
    let away = async |why: &str| gateway.metric(&format!("portcullis_turned_away_total{{listener=\"accept\",why=\"{why}\"}}")).await;
    let nobody = || gateway.admin_until("/metrics", |_, body| body.lines().any(|line| line.starts_with("portcullis_connections 0")));
    let mut held = gateway.h1().await;
    held.send(post_chat()).await.is(200);
    assert!(gateway.dial().raw().await.is_err(), "one connection too many");
    drop(held);
    let both = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    for (sent, answered) in [(both, "HTTP/1.1 400"), ("GET / HT", "")] {
        nobody().await;
        let mut stream = gateway.dial().http(Http::One).raw().await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(answer.get(..12).unwrap_or_default(), answered.as_bytes());
    }
    nobody().await;
    for (why, count) in
        [("framing", 1.0), ("oversized", 0.0), ("http2", 0.0), ("head", 0.0), ("stalled", 1.0), ("connections", 1.0), ("accept_error", 0.0)]
    {
        assert!((away(why).await - count).abs() < f64::EPSILON, "{why}: {}", gateway.admin("/metrics").await.1);
    }
    gateway.stop().await;
    assert!(folder.security_log().iter().all(|event| event["event"] != "request.refused"));
}

#[tokio::test]
async fn who_speaks_grpc_is_turned_away_in_grpc() {
    let (_upstream, _folder, gateway) = serving().await;
    let body = framed(&message::ModelReadyRequest { name: "digits".to_owned(), ..Default::default() });
    let reply = gateway.h2().await.send(coded(ask("POST", "/inference.GRPCInferenceService/ModelReady", body))).await.is(200);
    assert_eq!((reply.header("grpc-status"), reply.reason(), reply.body.len()), ("3", "accept.coded", 0), "{reply:?}");
    assert!(reply.receipt().is_some() && reply.headers.contains_key("provenance-statement-bin"), "{reply:?}");
}

#[tokio::test]
async fn what_is_turned_away_cannot_fill_the_log() {
    let (_upstream, folder, gateway) = serving().await;
    let mut client = gateway.h2().await;
    let mut with = 0;
    for _ in 0..60 {
        with += usize::from(client.send(coded(post_chat())).await.is(415).receipt().is_some());
    }
    assert!((20..60).contains(&with), "{with}");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    gateway.stop().await;
    let entries = folder.entries();
    assert_eq!(entries.iter().filter(|entry| entry["resp"]["code"] == "accept.coded").count(), with);
    let summed: u64 = entries.iter().filter_map(|entry| entry["counts"]["suppressed"]["accept.coded"].as_u64()).sum();
    assert_eq!(summed, 60 - with as u64);
    let events = folder.security_log();
    let events: Vec<&Value> = events.iter().filter(|event| event["code"] == "accept.coded").collect();
    assert_eq!(events.len(), 60);
    // Each names its entry, or where there is none its trace alone.
    let named: Vec<&Value> = events.iter().filter_map(|event| event.get("receipt")).collect();
    assert!(named.len() == with && named.iter().all(|id| entries.iter().any(|entry| entry["id"] == **id)));
    assert!(events.iter().all(|event| event["trace"].is_string()));
}

#[tokio::test]
async fn a_certificate_that_holds_no_longer_is_told_with_its_holder() {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    folder.upstream("chat", "openai", &upstream, "", "");
    folder.gateway("", "client_ca = \"tls/ca.pem\"\nclient_auth = \"optional\"\nclient_crl = \"tls/clients.crl\"");
    folder.write("tls/clients.crl", folder.revocation_list(2099));
    folder.callers("[[certificate]]\nsan = \"spiffe://acme.example/*\"\ntenant = \"acme\"\nroles = [\"app\"]\n");
    let gateway = folder.serve().await;
    let mut client = gateway.with_certificate(folder.client_certificate("spiffe://acme.example/batch")).await;
    let request = || bare("POST", "/v1/chat/completions", chat().to_string(), None);
    client.send(request()).await.is(200);
    // Past its end nobody with a certificate gets in, and whoever is in goes.
    folder.write("tls/clients.crl", folder.revocation_list(2024));
    gateway.admin_until("/readyz", |_, body| body.contains("2024-01-01")).await;
    let reply = client.send(request()).await.is(401);
    assert_eq!(reply.reason(), "accept.certificate");
    assert_eq!(reply.header("www-authenticate"), "Bearer");
    gateway.stop().await;
    let events = folder.security_log();
    let event = events.iter().find(|event| event["code"] == "accept.certificate").unwrap();
    assert_eq!(event["event"], "authenticate.failed");
    assert_eq!((&event["caller"], &event["tenant"]), (&"cert:spiffe://acme.example/batch".into(), &"acme".into()));
    assert_eq!(event["receipt"], reply.receipt().unwrap().as_str());
}
