//! Rules that are tried before they bite: whoever breaks one in shadow mode is answered, and it is written down.

use std::time::Instant;

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use portcullis::wire::grpc as message;
use serde_json::{Value, json};

use crate::support::ask::{ask, chat, digit, framed, post_chat, post_stream};
use crate::support::upstream::{events, stream};
use crate::support::{Client, Folder, Gateway, PATIENCE, Reply, Upstream};

/// A chat of which `[check]` in shadow says that it asks for too much, whole or as a stream.
fn greedy(stream: bool) -> Request<Bytes> {
    let mut body = chat();
    body["max_tokens"] = json!(6);
    body["stream"] = json!(stream);
    ask("POST", "/v1/chat/completions", body.to_string())
}

/// A picture whose first pixel is `pixel`, as JSON or over gRPC.
fn picture(pixel: f32, grpc: bool) -> Request<Bytes> {
    let mut pixels = vec![1.0; 64];
    pixels[0] = pixel;
    if !grpc {
        let mut body: Value = serde_json::from_str(&digit()).unwrap();
        body["inputs"][0]["data"] = json!(pixels);
        return ask("POST", "/v2/models/digits/infer", body.to_string());
    }
    let contents = message::InferTensorContents { fp32_contents: pixels, ..Default::default() };
    let input = message::InferTensor {
        name: "input".to_owned(),
        datatype: "FP32".to_owned(),
        shape: vec![1, 64],
        contents: Some(Box::new(contents)),
        ..Default::default()
    };
    let request = message::ModelInferRequest { model_name: "digits".to_owned(), inputs: vec![input], ..Default::default() };
    ask("POST", "/inference.GRPCInferenceService/ModelInfer", framed(&request))
}

/// Waits for so many events of a name, and gives them.
async fn told(folder: &Folder, event: &str, count: usize) -> Vec<Value> {
    let asked = Instant::now();
    loop {
        let lines: Vec<Value> = folder.security_log().into_iter().filter(|line| line["event"] == event).collect();
        if lines.len() >= count {
            return lines;
        }
        assert!(asked.elapsed() < PATIENCE, "{event} is not told {count} times: {lines:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// The step of a stop in the receipt of an answer, as its caller reads it.
async fn step(client: &mut Client, reply: &Reply, stop: &str) -> Value {
    let path = format!("/v1/receipts/{}", reply.receipt().unwrap());
    let receipt = client.send(ask("GET", &path, "")).await.is(200).json();
    let text = receipt.to_string();
    let found = receipt.pointer("/view/trail").and_then(Value::as_array).unwrap_or_else(|| panic!("{text}"));
    found.iter().find(|step| step["stop"] == stop).unwrap_or_else(|| panic!("{text}")).clone()
}

async fn decided(gateway: &Gateway, stop: &str, verdict: &str) -> f64 {
    gateway.metric(&format!("portcullis_decisions_total{{stop=\"{stop}\",verdict=\"{verdict}\",code=\"\"}}")).await
}

#[tokio::test]
async fn a_body_that_a_rule_in_shadow_would_refuse_is_answered_and_told_of() {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    folder.upstream("chat", "openai", &upstream, "", "[check]\nmode = \"shadow\"\nmax_tokens = 5\nschema = \"../schemas/chat.json\"\n");
    folder.write("schemas/chat.json", json!({"properties": {"user": {"maxLength": 5}}}).to_string());
    folder.digits("[check]\nmode = \"shadow\"\nrange = { input = [0.0, 16.0] }\n[budget.default]\nrequests = { rate = \"1000/s\" }\n");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    // At the limit nothing is told.
    for request in [post_chat(), post_stream(), picture(16.0, false), picture(16.0, true)] {
        client.send(request).await.is(200);
    }
    let whole = client.send(greedy(false)).await.is(200);
    let streamed = client.send(greedy(true)).await.is(200);
    assert!(streamed.body.ends_with(b"data: [DONE]\n\n"));
    let over_json = client.send(picture(16.5, false)).await.is(200);
    let over_grpc = client.send(picture(16.5, true)).await.is(200);
    assert_eq!(over_grpc.trailers.get("grpc-status").unwrap(), "0");
    let mut long = chat();
    long["user"] = json!("somebody");
    let unfit = client.send(ask("POST", "/v1/chat/completions", long.to_string())).await.is(200);
    // What the protocol demands is no rule of the owner's, and refusals are no would-be ones.
    let mut empty = chat();
    (empty["messages"], empty["max_tokens"]) = (json!([]), json!(6));
    client.send(ask("POST", "/v1/chat/completions", empty.to_string())).await.is(400);

    let lines = told(&folder, "check.shadowed", 5).await;
    assert_eq!(lines.len(), 5, "{lines:#?}");
    let expected = [
        (&whole, "chat", "check.max_tokens", Value::Null, Value::Null),
        (&streamed, "chat", "check.max_tokens", Value::Null, Value::Null),
        (&over_json, "digits", "check.range", Value::Null, json!("/inputs/0")),
        (&over_grpc, "digits", "check.range", Value::Null, json!("/inputs/0")),
        (&unfit, "chat", "check.schema", json!("maxLength"), json!("/user")),
    ];
    for (line, (reply, model, code, rule, place)) in lines.iter().zip(expected) {
        assert_eq!((&line["caller"], &line["tenant"], &line["model"]), (&json!("api_key:app"), &json!("acme"), &json!(model)), "{line}");
        assert_eq!((&line["code"], &line["rule"], &line["place"]), (&json!(code), &rule, &place), "{line}");
        assert_eq!(line["receipt"].as_str(), reply.receipt().as_deref(), "{line}");
        assert!(!line.to_string().contains("somebody"), "{line}");
    }
    assert_eq!((decided(&gateway, "check", "shadowed").await, decided(&gateway, "check", "passed").await), (5.0, 4.0));
    assert_eq!(told(&folder, "request.refused", 1).await.len(), 1);
    let seen = step(&mut client, &unfit, "check").await;
    assert_eq!((&seen["verdict"], &seen["rule"]), (&json!("shadowed"), &json!("maxLength")));
    let seen = step(&mut client, &over_json, "check").await;
    assert_eq!((&seen["verdict"], &seen["rule"]), (&json!("shadowed"), &json!("check.range")));
}

#[tokio::test]
async fn what_was_in_shadow_bites_once_it_is_enforced_and_no_more_once_it_is_off() {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    let in_mode = |mode: &str| folder.upstream("chat", "openai", &upstream, "", &format!("[check]\nmode = \"{mode}\"\nmax_tokens = 5\n"));
    in_mode("shadow");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    client.send(greedy(false)).await.is(200);
    let mut digests = vec![gateway.policy().await];
    for (mode, status, reloads) in [("enforce", 400, 1), ("off", 200, 2)] {
        in_mode(mode);
        told(&folder, "policy.reloaded", reloads).await;
        for stream in [false, true] {
            let reply = client.send(greedy(stream)).await.is(status);
            assert_eq!(reply.reason(), if status == 400 { "check.max_tokens" } else { "" });
        }
        digests.push(gateway.policy().await);
    }
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), 3);
    assert_eq!(told(&folder, "check.shadowed", 1).await.len(), 1);
}

#[tokio::test]
async fn a_request_past_a_limit_in_shadow_is_answered_and_told_of() {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    let limits = "[budget.default]\nrequests = { rate = \"1000/s\" }\n[budget.model]\nmode = \"shadow\"\nrequests = { rate = \"1/day\", burst = 2 }\n";
    folder.upstream("chat", "openai", &upstream, "", limits);
    folder.digits("[budget.default]\nmode = \"shadow\"\nrequests = { rate = \"1/day\", burst = 2 }\n");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    // At the limit nothing is told, nor what is left of one that refuses nobody.
    for request in [post_chat(), post_stream()] {
        let reply = client.send(request).await.is(200);
        assert_eq!(reply.header("ratelimit-policy"), "\"default\";q=1000;w=1");
    }
    for grpc in [false, true] {
        let reply = client.send(picture(1.0, grpc)).await.is(200);
        // What the house says where nobody enforces anything else.
        assert_eq!((reply.header("ratelimit-policy"), reply.header("retry-after")), ("\"default\";q=50;w=5", ""));
    }
    let whole = client.send(post_chat()).await.is(200);
    let streamed = client.send(post_stream()).await.is(200);
    assert!(streamed.body.ends_with(b"data: [DONE]\n\n"));
    let over_json = client.send(picture(1.0, false)).await.is(200);
    let over_grpc = client.send(picture(1.0, true)).await.is(200);
    assert_eq!(over_grpc.trailers.get("grpc-status").unwrap(), "0");

    let lines = told(&folder, "budget.shadowed", 4).await;
    assert_eq!(lines.len(), 4, "{lines:#?}");
    let expected = [
        (&whole, "chat", "model.requests"),
        (&streamed, "chat", "model.requests"),
        (&over_json, "digits", "caller.requests"),
        (&over_grpc, "digits", "caller.requests"),
    ];
    for (line, (reply, model, rule)) in lines.iter().zip(expected) {
        assert_eq!((&line["caller"], &line["tenant"], &line["model"]), (&json!("api_key:app"), &json!("acme"), &json!(model)), "{line}");
        assert_eq!((&line["code"], &line["rule"]), (&json!("budget.requests"), &json!(rule)), "{line}");
        assert_eq!(line["receipt"].as_str(), reply.receipt().as_deref(), "{line}");
    }
    assert_eq!((decided(&gateway, "budget", "shadowed").await, decided(&gateway, "budget", "passed").await), (4.0, 4.0));
    // Callers hear that they are past a limit, and not whose it is.
    let seen = step(&mut client, &whole, "budget").await;
    assert_eq!((&seen["verdict"], seen.get("rule")), (&json!("shadowed"), None));
    assert!(folder.security_log().iter().all(|line| line["event"] != "request.refused"));
}

#[tokio::test]
async fn streams_past_a_limit_in_flight_pass_in_shadow_and_bite_once_it_is_enforced() {
    let (tell, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let upstream = Upstream::start(move |_| {
        let (sender, response) = stream("text/event-stream");
        let _ = tell.send(sender);
        async move { response }
    })
    .await;
    let folder = Folder::new();
    let in_mode = |mode: &str| {
        let limits = format!("[budget.default]\nmode = \"{mode}\"\nrequests = {{ rate = \"1000/s\" }}\nin_flight = 1\n");
        folder.upstream("chat", "openai", &upstream, "", &limits);
    };
    in_mode("shadow");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let reply = client.open(post_stream()).await.unwrap();
        assert_eq!(reply.status(), 200);
        held.push((reply, tokio::time::timeout(PATIENCE, begun.recv()).await.unwrap().unwrap()));
    }
    let lines = told(&folder, "budget.shadowed", 2).await;
    assert!(lines.iter().all(|line| line["code"] == "budget.in_flight" && line["rule"] == "caller.in_flight"), "{lines:#?}");
    in_mode("enforce");
    told(&folder, "policy.reloaded", 1).await;
    assert_eq!(client.send(post_chat()).await.is(429).reason(), "budget.in_flight");
    assert_eq!(told(&folder, "request.refused", 1).await[0]["rule"], "caller.in_flight");
    for (reply, writer) in held {
        for event in events("chat", true) {
            writer.send(event.into()).await.unwrap();
        }
        drop(writer);
        assert!(reply.into_body().collect().await.unwrap().to_bytes().ends_with(b"data: [DONE]\n\n"));
    }
    // All places came back, those beyond the limit too.
    let reply = client.open(post_stream()).await.unwrap();
    assert_eq!(reply.status(), 200);
    assert_eq!(client.send(post_chat()).await.is(429).reason(), "budget.in_flight");
    in_mode("off");
    told(&folder, "policy.reloaded", 2).await;
    assert_eq!(client.open(post_stream()).await.unwrap().status(), 200);
    assert_eq!(told(&folder, "budget.shadowed", 2).await.len(), 2);
}

#[tokio::test]
async fn one_request_is_told_of_once_by_each_stop_that_would_have_refused_it() {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    let rules = "[budget.default]\nmode = \"shadow\"\nrequests = { rate = \"1/day\", burst = 1 }\ntokens = { rate = \"1/day\" }\n\
                 [check]\nmode = \"shadow\"\nmax_tokens = 5\nstrict = true\n";
    folder.upstream("chat", "openai", &upstream, "", rules);
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    client.send(greedy(false)).await.is(200);
    client.send(greedy(false)).await.is(200);
    let check = told(&folder, "check.shadowed", 2).await;
    let budget = told(&folder, "budget.shadowed", 2).await;
    assert_eq!((check.len(), budget.len()), (2, 2));
    assert!(budget.iter().all(|line| line["code"] == "budget.tokens"), "{budget:#?}");
    assert_eq!(
        check.iter().map(|line| &line["receipt"]).collect::<Vec<_>>(),
        budget.iter().map(|line| &line["receipt"]).collect::<Vec<_>>()
    );
}
