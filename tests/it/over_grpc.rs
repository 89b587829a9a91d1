//! A model server that speaks the Open Inference Protocol over gRPC, asked in each form that callers have.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use portcullis::wire::grpc as message;
use prost::Message;
use serde_json::{Value, json};

use crate::support::ask::{ask, framed};
use crate::support::upstream::{Body, Seen, call};
use crate::support::{Client, Folder, Gateway, Reply, Upstream};

const SERVICE: &str = "/inference.GRPCInferenceService/";

/// Answers with `y`, which is `x`, under its own names; id `wait` never, an id that is a number with that status, and an id of [`NONSENSE`] so.
async fn model(seen: Seen) -> Response<Body> {
    let ok = || message::trailers(message::Code::Ok, "");
    let body = || seen.body.slice(5..);
    match seen.uri.path().strip_prefix(SERVICE).unwrap() {
        "ModelInfer" => {
            let asked = message::ModelInferRequest::decode(body()).unwrap();
            if asked.id == "wait" {
                std::future::pending::<()>().await;
            }
            if let Some(code) = asked.id.parse::<usize>().ok().and_then(|number| message::Code::ALL.get(number)) {
                let mut trailers = message::trailers(*code, "theirs takes 4 numbers");
                trailers.insert("grpc-retry-pushback-ms", HeaderValue::from_static("6500"));
                return call(Bytes::new(), trailers);
            }
            let output = message::InferTensor { name: "y".into(), ..asked.inputs[0].clone() };
            let mut answer = message::ModelInferResponse {
                model_name: asked.model_name,
                model_version: "1".into(),
                id: asked.id,
                parameters: asked.parameters,
                outputs: vec![output],
                raw_output_contents: asked.raw_input_contents,
            };
            if let Some((_, spoil)) = NONSENSE.iter().find(|(id, _)| *id == answer.id) {
                spoil(&mut answer);
            }
            call(framed(&answer), ok())
        }
        "ModelMetadata" => {
            let asked = message::ModelMetadataRequest::decode(body()).unwrap();
            let dimensions = if asked.name == "wide" { 1_000_000 } else { 1 };
            let port = message::TensorMetadata { name: "x".into(), datatype: "FP32".into(), shape: vec![-1; dimensions] };
            let versions = vec![asked.version];
            let told =
                message::ModelMetadataResponse { name: asked.name, versions, platform: "p".into(), inputs: vec![port], outputs: vec![] };
            call(framed(&told), ok())
        }
        "ModelReady" => {
            let asked = message::ModelReadyRequest::decode(body()).unwrap();
            call(framed(&message::ModelReadyResponse { ready: asked.name != "asleep" }), ok())
        }
        other => panic!("{other}"),
    }
}

type Spoil = fn(&mut message::ModelInferResponse);

/// What no answer to raw contents may be, by the id of the request.
const NONSENSE: [(&str, Spoil); 7] = [
    ("one raw more", |answer| answer.raw_output_contents.push(Bytes::new())),
    ("raw of another length", |answer| answer.raw_output_contents[0].truncate(3)),
    ("another shape", |answer| answer.outputs[0].shape.push(2)),
    ("a negative shape", |answer| answer.outputs[0].shape[0] = -1),
    ("no type", |answer| answer.outputs[0].datatype = "FP31".into()),
    ("an output twice", |answer| {
        answer.outputs.push(answer.outputs[0].clone());
        answer.raw_output_contents.push(answer.raw_output_contents[0].clone());
    }),
    ("no model", |answer| answer.model_name.clear()),
];

/// The model `adder` of version 7, which the server calls `theirs` and 1; `shaped`, `small`, `asleep` and `wide`.
async fn gate(deadlines: &str) -> (Upstream, Folder, Gateway) {
    let upstream = Upstream::over_http2(model).await;
    let folder = Folder::new();
    folder.write("keys/upstream.token", "canary-token\n");
    folder.gateway(deadlines, "");
    let credential = "credential_file = \"../keys/upstream.token\"";
    folder.upstream("adder", "oip-grpc", &upstream, &format!("model = \"theirs\"\nmodel_version = \"1\"\n{credential}"), "");
    folder.upstream("shaped", "oip-grpc", &upstream, "", "[answer]\ndecimals = 1\n");
    folder.upstream("small", "oip-grpc", &upstream, "", "[answer]\nmax_body = \"64B\"\n");
    folder.upstream("asleep", "oip-grpc", &upstream, "", "");
    folder.upstream("wide", "oip-grpc", &upstream, "", "");
    let gateway = folder.serve().await;
    (upstream, folder, gateway)
}

fn sent(upstream: &Upstream) -> (Seen, message::ModelInferRequest) {
    let seen = upstream.seen().pop().unwrap();
    let asked = message::ModelInferRequest::decode(seen.body.slice(5..)).unwrap();
    (seen, asked)
}

fn infer(model: &str, id: &str, data: &[f32]) -> Request<Bytes> {
    let body = json!({
        "id": id, "parameters": {"priority": 3},
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [data.len()], "data": data, "parameters": {"content_type": "np"}}],
    });
    ask("POST", &format!("/v2/models/{model}/infer"), body.to_string())
}

fn infer_by_call(model: &str, id: &str, version: &str) -> Request<Bytes> {
    let contents = message::InferTensorContents { fp32_contents: vec![0.25, 2.0], ..Default::default() };
    let x = message::InferTensor {
        name: "x".into(),
        datatype: "FP32".into(),
        shape: vec![2],
        contents: Some(Box::new(contents)),
        ..Default::default()
    };
    let asked = message::ModelInferRequest {
        model_name: model.into(),
        model_version: version.into(),
        id: id.into(),
        parameters: [("priority".to_owned(), message::InferParameter { parameter_choice: Some(message::ParameterChoice::Int64(3)) })]
            .into(),
        inputs: vec![x],
        ..Default::default()
    };
    ask("POST", &format!("{SERVICE}ModelInfer"), framed(&asked))
}

async fn called<M: Message + Default>(client: &mut Client, request: Request<Bytes>) -> M {
    let reply = client.send(request).await.is(200);
    assert_eq!(reply.trailers["grpc-status"], "0", "{reply:?}");
    M::decode(reply.body.slice(5..)).unwrap()
}

fn named(reply: &Reply) -> Value {
    let told = reply.json();
    json!([told["model_name"], told["model_version"], told["id"]])
}

#[tokio::test]
async fn tensors_of_other_names_than_the_policy_says_do_not_come_to_the_model() {
    let upstream = Upstream::over_http2(model).await;
    let folder = Folder::new();
    folder.upstream("listed", "oip-grpc", &upstream, "", "[check]\ninputs = [\"x\", \"mask\"]\n");
    folder.upstream("ranged", "oip-grpc", &upstream, "", "[check]\nrange = { x = [0.0, 9.0] }\n");
    folder.upstream("graded", "oip-grpc", &upstream, "", "[detect]\nmode = \"enforce\"\nprecision.inputs = { x = { step = 0.25 } }\n");
    folder.upstream("tried", "oip-grpc", &upstream, "", "[check]\nmode = \"shadow\"\ninputs = [\"y\"]\n");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let tensor = |name: &str| json!({"name": name, "datatype": "FP32", "shape": [1], "data": [0.25]});
    let json = |model: &str, names: &[&str]| {
        let inputs: Vec<Value> = names.iter().map(|name| tensor(name)).collect();
        ask("POST", &format!("/v2/models/{model}/infer"), json!({ "inputs": inputs }).to_string())
    };
    let binary = |model: &str, names: &[&str]| {
        let part = |name: &&str| json!({"name": name, "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}});
        let head = json!({ "inputs": names.iter().map(part).collect::<Vec<_>>() }).to_string();
        let bytes = 0.25_f32.to_le_bytes().repeat(names.len());
        let mut request = ask("POST", &format!("/v2/models/{model}/infer"), [head.as_bytes(), &bytes].concat());
        request.headers_mut().insert("inference-header-content-length", head.len().into());
        request
    };
    let over_grpc = |model: &str, names: &[&str]| {
        let input =
            |name: &&str| message::InferTensor { name: (*name).into(), datatype: "FP32".into(), shape: vec![1], ..Default::default() };
        let asked = message::ModelInferRequest {
            model_name: model.into(),
            inputs: names.iter().map(input).collect(),
            raw_input_contents: vec![Bytes::copy_from_slice(&0.25_f32.to_le_bytes()); names.len()],
            ..Default::default()
        };
        ask("POST", &format!("{SERVICE}ModelInfer"), framed(&asked))
    };
    for model in ["listed", "ranged", "graded", "tried"] {
        for request in [json(model, &["x"]), binary(model, &["x"])] {
            client.send(request).await.is(200);
        }
        called::<message::ModelInferResponse>(&mut client, over_grpc(model, &["x"])).await;
    }
    client.send(json("listed", &["mask"])).await.is(200);
    let before = upstream.seen().len();
    for (names, reason) in [
        (&["anything"][..], "check.tensor_name"),
        (&["x", "a"], "check.tensor_name"),
        (&["a", "x"], "check.tensor_name"),
        (&["x", "x"], "check.shape"),
    ] {
        for model in ["listed", "ranged", "graded"] {
            for request in [json(model, names), binary(model, names)] {
                assert_eq!(client.send(request).await.is(400).reason(), reason, "{model} {names:?}");
            }
            let reply = client.send(over_grpc(model, names)).await.is(200);
            assert_eq!((reply.header("grpc-status"), reply.reason()), ("3", reason), "{model} {names:?}");
        }
    }
    assert_eq!(upstream.seen().len(), before, "nothing of it was sent");
}

#[tokio::test]
async fn json_binary_and_calls_get_the_answer_of_a_call_under_our_names() {
    let (upstream, _folder, gateway) = gate("").await;
    let mut client = gateway.h2().await;
    let reply = client.send(infer("adder", "i", &[0.25, 2.0])).await.is(200);
    assert_eq!(named(&reply), json!(["adder", "7", "i"]));
    assert_eq!(reply.json()["outputs"], json!([{"name": "y", "datatype": "FP32", "shape": [2], "data": [0.25, 2.0]}]));
    let (seen, asked) = sent(&upstream);
    let header = |name: &str| seen.headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    assert_eq!(
        (header("content-type"), header("te"), header("authorization")),
        ("application/grpc".into(), "trailers".into(), "Bearer canary-token".into())
    );
    let within = message::timeout(&seen.headers["grpc-timeout"]).unwrap();
    assert!(within <= Duration::from_secs(120) && within > Duration::from_secs(60), "{within:?}");
    let mut names: Vec<&str> = seen.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["authorization", "content-length", "content-type", "grpc-accept-encoding", "grpc-timeout", "te"]);
    assert_eq!((&*asked.model_name, &*asked.model_version, &*asked.id), ("theirs", "1", "i"));
    let text = |text: &str| message::InferParameter { parameter_choice: Some(message::ParameterChoice::String(text.into())) };
    assert_eq!(asked.inputs[0].parameters["content_type"], text("np"));
    assert_eq!(asked.parameters["priority"].parameter_choice, Some(message::ParameterChoice::Int64(3)));
    let bytes = [0.25_f32.to_le_bytes(), 2.0_f32.to_le_bytes()].concat();
    assert_eq!(asked.raw_input_contents.concat(), bytes);

    let x = json!({"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}});
    let head = json!({"inputs": [x], "parameters": {"binary_data_output": true}}).to_string();
    let mut binary = ask("POST", "/v2/models/adder/versions/7/infer", [head.as_bytes(), &bytes].concat());
    binary.headers_mut().insert("inference-header-content-length", head.len().into());
    let reply = client.send(binary).await.is(200);
    let length: usize = reply.header("inference-header-content-length").parse().unwrap();
    let told: Value = serde_json::from_slice(&reply.body[..length]).unwrap();
    assert_eq!((&told["model_name"], &told["model_version"], &reply.body[length..]), (&json!("adder"), &json!("7"), &bytes[..]));
    let (_, asked) = sent(&upstream);
    assert!(asked.parameters.is_empty() && asked.inputs[0].parameters.is_empty(), "what is HTTP's own stays there: {asked:?}");

    // A call of typed contents stays one, and so does its answer.
    let told: message::ModelInferResponse = called(&mut client, infer_by_call("adder", "j", "7")).await;
    assert_eq!((&*told.model_name, &*told.model_version, &*told.id), ("adder", "7", "j"));
    assert_eq!(told.outputs[0].contents.as_ref().unwrap().fp32_contents, [0.25, 2.0]);
    assert_eq!(told.parameters["priority"].parameter_choice, Some(message::ParameterChoice::Int64(3)));
    let (_, asked) = sent(&upstream);
    assert_eq!((&*asked.model_name, &*asked.model_version), ("theirs", "1"));
    assert_eq!(asked.inputs[0].contents.as_ref().unwrap().fp32_contents, [0.25, 2.0]);

    // What is shaped is made anew, with raw contents.
    let reply = client.send(infer("shaped", "i", &[0.22, 0.78])).await.is(200);
    assert_eq!(reply.json()["outputs"][0]["data"], json!([0.2, 0.8]));
    let told: message::ModelInferResponse = called(&mut client, infer_by_call("shaped", "i", "")).await;
    assert!(told.outputs[0].contents.is_none() && told.raw_output_contents[0].len() == 8, "{told:?}");
    assert_eq!((&*told.model_name, &*told.model_version), ("shaped", "7"));
    client.send(ask("POST", "/v2/models/adder/versions/1/infer", "{}")).await.is(404);
    assert_eq!(client.send(infer_by_call("adder", "i", "1")).await.reason(), "authorize.denied");
}

#[tokio::test]
async fn metadata_and_readiness_are_asked_by_calls_and_told_in_the_callers_form() {
    let (upstream, _folder, gateway) = gate("").await;
    let mut client = gateway.h2().await;
    for path in ["/v2/models/adder", "/v2/models/adder/versions/7"] {
        let told = client.send(ask("GET", path, "")).await.is(200).json();
        let inputs = json!([{"name": "x", "datatype": "FP32", "shape": [-1]}]);
        assert_eq!(told, json!({"name": "adder", "versions": ["7"], "platform": "p", "inputs": inputs, "outputs": []}));
        let seen = upstream.seen().pop().unwrap();
        let asked = message::ModelMetadataRequest::decode(seen.body.slice(5..)).unwrap();
        assert_eq!((seen.uri.path(), &*asked.name, &*asked.version), ("/inference.GRPCInferenceService/ModelMetadata", "theirs", "1"));
        client.send(ask("GET", &format!("{path}/ready"), "")).await.is(200);
        let seen = upstream.seen().pop().unwrap();
        let asked = message::ModelReadyRequest::decode(seen.body.slice(5..)).unwrap();
        assert_eq!((seen.uri.path(), &*asked.name, &*asked.version), ("/inference.GRPCInferenceService/ModelReady", "theirs", "1"));
    }
    let of = |name: &str| message::ModelMetadataRequest { name: name.into(), version: "7".into() };
    let told: message::ModelMetadataResponse =
        called(&mut client, ask("POST", &format!("{SERVICE}ModelMetadata"), framed(&of("adder")))).await;
    assert_eq!((&*told.name, told.versions, &*told.platform, told.inputs.len()), ("adder", vec!["7".to_owned()], "p", 1));
    for (name, is_ready) in [("adder", true), ("asleep", false)] {
        let told: message::ModelReadyResponse = called(&mut client, ask("POST", &format!("{SERVICE}ModelReady"), framed(&of(name)))).await;
        assert_eq!(told.ready, is_ready, "{name}");
    }
    assert_eq!(client.send(ask("GET", "/v2/models/asleep/ready", "")).await.is(503).reason(), "infer.unavailable");
}

#[tokio::test]
async fn a_status_is_told_in_the_callers_own_terms() {
    let (_upstream, _folder, gateway) = gate("").await;
    let mut client = gateway.h2().await;
    for (code, status, reason, grpc, wait) in [
        ("3", 400, "infer.refused", "3", ""),
        ("9", 422, "infer.refused", "3", ""),
        ("4", 504, "infer.deadline", "4", ""),
        ("8", 503, "infer.unavailable", "14", "7"),
        ("14", 503, "infer.unavailable", "14", "7"),
        ("5", 502, "infer.upstream", "14", ""),
        ("13", 502, "infer.upstream", "14", ""),
        ("16", 502, "infer.upstream", "14", ""),
    ] {
        let reply = client.send(infer("adder", code, &[1.0])).await.is(status);
        assert_eq!((reply.reason(), reply.header("retry-after")), (reason, wait), "{code}");
        let told = reply.json()["error"].as_str().unwrap().to_owned();
        assert_eq!(told.contains("adder takes 4 numbers"), reason == "infer.refused", "{told}");
        assert!(!told.contains("theirs"), "{told}");
        let reply = client.send(infer_by_call("adder", code, "")).await.is(200);
        let of = |name: &str| reply.trailers.get(name).or(reply.headers.get(name)).map_or("", |value| value.to_str().unwrap());
        assert_eq!((of("grpc-status"), reply.reason()), (grpc, reason), "{code}");
    }
    assert_eq!(client.send(infer("small", "i", &[0.5; 32])).await.is(502).reason(), "infer.too_large");
}

#[tokio::test]
async fn an_answer_that_does_not_hold_together_is_the_upstreams_fault() {
    let (_upstream, _folder, gateway) = gate("").await;
    let mut client = gateway.h2().await;
    for (id, _) in NONSENSE {
        for model in ["adder", "shaped"] {
            let reply = client.send(infer(model, id, &[1.0])).await.is(502);
            assert_eq!(reply.reason(), "infer.upstream", "{model}: {id}");
        }
    }
    assert_eq!(client.send(ask("GET", "/v2/models/wide", "")).await.is(502).reason(), "infer.upstream");
    client.send(infer("adder", "well", &[1.0])).await.is(200);
}

#[tokio::test]
async fn a_call_ends_at_the_deadline_of_the_request_which_the_server_is_told() {
    let (upstream, _folder, gateway) = gate("deadlines = { request = \"500ms\" }").await;
    let mut client = gateway.h2().await;
    let reply = client.send(infer("adder", "wait", &[1.0])).await;
    assert_eq!((reply.status.as_u16(), reply.reason()), (504, "infer.deadline"));
    let (seen, _) = sent(&upstream);
    assert!(message::timeout(&seen.headers["grpc-timeout"]).unwrap() <= Duration::from_millis(500));
}

#[tokio::test]
async fn a_file_that_would_have_a_call_pass_unread_is_a_mistake() {
    let upstream = Upstream::over_http2(model).await;
    let folder = Folder::new();
    folder.upstream("adder", "oip-grpc", &upstream, "", "[answer]\nstream = true\n");
    let told = folder.run(&["check", "policies"]);
    assert_eq!(told.status.code(), Some(1), "{told:?}");
    let text = String::from_utf8([told.stdout, told.stderr].concat()).unwrap();
    assert!(text.contains("answer.stream would have no effect on this model"), "{text}");
    folder.upstream("adder", "oip-grpc", &upstream, "health = { every = \"5s\" }", "");
    assert!(folder.run(&["check", "policies"]).status.success());
}
