use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue};
use serde_json::json;

use super::*;
use crate::wire::tensor::{Datatype, Port};

fn terms(text: &str, contract: Option<&Contract>, schema: Option<Value>) -> Terms {
    let policies = tempfile::tempdir().unwrap();
    std::fs::write(policies.path().join("schema.json"), schema.clone().unwrap_or_default().to_string()).unwrap();
    let text = if schema.is_some() { format!("schema = \"schema.json\"\n{text}") } else { text.to_owned() };
    let mut mistakes = Vec::new();
    let around = Around { policies: policies.path(), folder: policies.path(), max_body: 1 << 20, contract, later: ByName::default() };
    let terms = toml::from_str::<Config>(&text).unwrap().compile(around, &mut mistakes);
    assert!(mistakes.is_empty(), "{mistakes:?}");
    terms
}

/// What is understood of a body where nothing is in shadow.
fn understand(route: &Route, headers: &HeaderMap, bytes: &Bytes, parsed: Option<Value>, terms: &Terms) -> Result<Request, Error> {
    let mut shadowed = None;
    let understood = super::understand(route, headers, bytes, parsed, terms, &mut shadowed);
    assert_eq!(shadowed, None);
    understood
}

/// What refuses a body in a mode, and what would have.
fn in_mode(mode: &str, config: &str, contract: Option<&Contract>, schema: Option<Value>, sent: &Sent) -> [Option<&'static str>; 2] {
    let (headers, bytes, route) = sent;
    let mut shadowed = None;
    let terms = terms(&format!("mode = \"{mode}\"\n{config}"), contract, schema);
    let refused = super::understand(route, headers, bytes, None, &terms, &mut shadowed).err();
    [refused, shadowed].map(|error| error.map(|error| error.code()))
}

fn headers(fields: &[(&'static str, String)]) -> HeaderMap {
    let value = |value: &str| HeaderValue::from_str(value).unwrap();
    fields.iter().map(|(name, text)| (HeaderName::from_static(name), value(text))).collect()
}

fn json_headers() -> HeaderMap {
    headers(&[("content-type", "application/json".into())])
}

fn chat(body: Value, terms: &Terms) -> Result<Request, Error> {
    understand(&Route::ChatCompletions, &json_headers(), &body.to_string().into(), None, terms)
}

fn infer() -> Route {
    Route::Oip { asks: OipAsks::Infer, model: Some("digits".into()), version: None }
}

fn contract() -> Contract {
    let port = Port { name: "input".into(), datatype: Datatype::Fp32, shape: vec![None, Some(2)] };
    Contract { inputs: vec![port], ..Contract::default() }
}

fn hello() -> Value {
    json!({"model": "chat", "messages": [{"role": "user", "content": "hello"}]})
}

#[test]
fn a_chat_is_understood_and_its_cap_on_tokens_holds() {
    let terms = terms("max_tokens = 4096", None, None);
    assert!(matches!(chat(hello(), &terms), Ok(Request::Language(asked)) if asked.model == "chat"));
    let mut body = hello();
    body["max_tokens"] = 4096.into();
    assert!(chat(body.clone(), &terms).is_ok());
    body["max_completion_tokens"] = 4097.into();
    assert_eq!(chat(body, &terms).unwrap_err().code(), "check.max_tokens");
}

#[test]
fn unknown_members_are_refused_only_where_the_policy_is_strict() {
    let mut body = hello();
    body["guided_json"] = json!({});
    assert!(chat(body.clone(), &terms("", None, None)).is_ok());
    assert_eq!(chat(body, &terms("strict = true", None, None)).unwrap_err().code(), "check.shape");
    let body = Bytes::from(json!({"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}], "x": 1}).to_string());
    assert!(understand(&infer(), &HeaderMap::new(), &body, None, &terms("", None, None)).is_ok());
    assert_eq!(
        understand(&infer(), &HeaderMap::new(), &body, None, &terms("strict = true", None, None)).unwrap_err().code(),
        "check.shape"
    );
}

#[test]
fn what_the_models_server_keeps_is_for_callers_only_where_the_policy_says_so() {
    let ask = |route: &Route, mut body: Value, more: &Value, config: &str| {
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        understand(route, &HeaderMap::new(), &Bytes::from(body.to_string()), None, &terms(config, None, None)).map(drop)
    };
    let (response, message) =
        (json!({"model": "m", "input": "x"}), json!({"model": "m", "max_tokens": 1, "messages": hello()["messages"]}));
    let reference = json!([{"role": "user", "content": "x"}, {"type": "item_reference", "id": "msg_1"}]);
    for (route, body, more, pointer) in [
        (Route::Responses, &response, json!({"previous_response_id": "resp_1"}), "/previous_response_id"),
        (Route::Responses, &response, json!({"conversation": {"id": "conv_1"}}), "/conversation"),
        (Route::Responses, &response, json!({"background": true}), "/background"),
        (Route::Responses, &response, json!({"input": reference}), "/input/1"),
        (Route::Responses, &response, json!({"input": [{"id": "msg_1"}]}), "/input/0"),
        (Route::Responses, &response, json!({"input": [{"id": "msg_1", "type": null}]}), "/input/0"),
        (Route::Responses, &response, json!({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}), "/input/0"),
        (
            Route::Responses,
            &response,
            json!({"input": [{"type": "reasoning", "id": "rs_1", "summary": ["x"], "encrypted_content": ""}]}),
            "/input/0",
        ),
        (Route::Responses, &response, json!({"input": [{"type": "image_generation_call", "id": "ig_1"}]}), "/input/0"),
        (
            Route::Responses,
            &response,
            json!({"input": [{"type": "code_interpreter_call", "id": "ci_1", "container_id": "cntr_1"}]}),
            "/input/0",
        ),
        (Route::Responses, &response, json!({"tools": [{"type": "code_interpreter", "container": "cntr_1"}]}), "/tools/0"),
        (
            Route::Responses,
            &response,
            json!({"tools": [{"type": "shell", "environment": {"type": "container_reference", "container_id": "c"}}]}),
            "/tools/0",
        ),
        (Route::ChatCompletions, &hello(), json!({"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}), "/messages/0"),
        (Route::ChatCompletions, &hello(), json!({"session_params": {"id": "s"}}), "/session_params"),
        (Route::ChatCompletions, &hello(), json!({"kv_transfer_params": {"remote_block_ids": [1]}}), "/kv_transfer_params"),
        (Route::Messages, &message, json!({"container": ["x"]}), "/container"),
        (Route::Messages, &message, json!({"container": {"Id": "container_1"}}), "/container"),
        (Route::Messages, &message, json!({"container": "container_1"}), "/container"),
        (Route::Messages, &message, json!({"container": {"id": "container_1", "skills": []}}), "/container"),
    ] {
        let refused = ask(&route, body.clone(), &more, "").unwrap_err();
        assert_eq!(refused.code(), "check.stored");
        assert!(matches!(refused, Error::CallerNamedStored(shape) if shape.pointer == pointer), "{more}");
        assert_eq!(ask(&route, body.clone(), &more, "stored = true"), Ok(()), "{more}");
    }
    for (route, body, more) in [
        (Route::Responses, &response, json!({"previous_response_id": null, "conversation": null, "background": false, "store": true})),
        (Route::Responses, &response, json!({"prompt": {"id": "pmpt_1"}})),
        (Route::Messages, &message, json!({"container": {"skills": []}})),
        (Route::Responses, &response, json!({"tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": []}}]})),
        (
            Route::Responses,
            &response,
            json!({"tools": [{"type": "function", "name": "f", "parameters": {"properties": {"container_id": {"type": "string"}}}}]}),
        ),
        (Route::Responses, &response, json!({"tools": [{"type": "mcp", "examples": [{"container": "web"}]}]})),
        (
            Route::Responses,
            &response,
            json!({"input": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x",
            "annotations": [{"type": "container_file_citation", "container_id": "cntr_1"}]}]}]}),
        ),
        (
            Route::ChatCompletions,
            &hello(),
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"container_id": "x"}}}]}),
        ),
        (Route::Responses, &response, json!({"input": [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}]})),
        (
            Route::Responses,
            &response,
            json!({"input": [{"type": "reasoning", "id": "rs_1", "content": [{"type": "reasoning_text", "text": "x"}]}]}),
        ),
        (Route::Responses, &response, json!({"input": [{"id": "msg_1", "role": "assistant", "content": "x"}]})),
        (Route::Responses, &response, json!({"input": [{"type": "function_call_output", "id": "f", "call_id": "c", "output": "x"}]})),
    ] {
        assert_eq!(ask(&route, body.clone(), &more, ""), Ok(()), "{more}");
    }
}

#[test]
fn a_schema_holds_for_every_dialect_and_says_no_value() {
    let schema = json!({"properties": {"messages": {"items": {"properties": {"content": {"maxLength": 5}}}}}});
    let terms = terms("", None, Some(schema));
    assert!(chat(hello(), &terms).is_ok());
    let mut body = hello();
    body["messages"][0]["content"] = "sesame".into();
    let error = chat(body, &terms).unwrap_err();
    assert_eq!(error.code(), "check.schema");
    assert!(matches!(&error, Error::CallerBrokeSchema(place) if (place.pointer(), place.rule()) == ("/messages/0/content", "maxLength")));
    assert!(!format!("{error:?}").contains("sesame"));
}

#[test]
fn json_is_parsed_strictly_to_the_depth_of_the_policy() {
    let terms = terms("max_depth = 3", None, None);
    let raw = Route::Raw { path: "/predict".into(), model: "m".into() };
    let read = |text: &'static str| {
        understand(&raw, &json_headers(), &Bytes::from_static(text.as_bytes()), None, &terms).map_err(|error| error.code())
    };
    assert!(matches!(read("{\"a\":[[1]]}"), Ok(Request::Raw)));
    for text in ["{\"a\":[[[1]]]}", "{\"a\":1,\"a\":1}", "{\"a\":1}x", "", "{", "{\"a\":NaN}", "\u{feff}{}"] {
        assert_eq!(read(text).unwrap_err(), "check.json", "{text}");
    }
}

/// Headers, body, route.
type Sent = (HeaderMap, Bytes, Route);

/// A request for one row of two numbers, in every encoding of the protocol.
fn encodings(values: [f32; 2]) -> [Sent; 3] {
    encoded([1, 2], &values)
}

/// The same for any rows.
fn encoded(shape: [u32; 2], values: &[f32]) -> [Sent; 3] {
    let tensor = json!({"name": "input", "datatype": "FP32", "shape": shape, "data": values});
    let plain = Bytes::from(json!({"inputs": [tensor]}).to_string());

    let size = json!({"binary_data_size": 4 * values.len()});
    let part = json!({"inputs": [{"name": "input", "datatype": "FP32", "shape": shape, "parameters": size}]}).to_string();
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let binary =
        headers(&[("content-type", "application/octet-stream".into()), ("inference-header-content-length", part.len().to_string())]);
    let both: Vec<u8> = part.bytes().chain(raw.clone()).collect();

    let shape = shape.map(i64::from).to_vec();
    let input = grpc::InferTensor { name: "input".into(), datatype: "FP32".into(), shape, ..Default::default() };
    let message = grpc::ModelInferRequest {
        model_name: "digits".into(),
        inputs: vec![input],
        raw_input_contents: vec![raw.into()],
        ..Default::default()
    };
    let over_grpc = headers(&[("content-type", "application/grpc".into())]);
    [
        (HeaderMap::new(), plain, infer()),
        (binary, both.into(), infer()),
        (over_grpc, grpc::frame(&message).unwrap(), Route::Grpc(OipAsks::Infer)),
    ]
}

#[test]
fn contract_range_and_schema_hold_in_every_encoding_of_tensors() {
    let range = terms("range = { input = [0.0, 16.0] }", Some(&contract()), None);
    let schema = terms(
        "",
        Some(&contract()),
        Some(json!({"properties": {"inputs": {"items": {"properties": {"data": {"items": {"maximum": 16}}}}}}})),
    );
    for (headers, bytes, route) in encodings([0.0, 16.0]) {
        for terms in [&range, &schema] {
            let Ok(Request::Tensors(request)) = understand(&route, &headers, &bytes, None, terms) else { panic!("{route:?}") };
            assert_eq!(request.inputs[0].data.len(), 8);
        }
    }
    for (headers, bytes, route) in encodings([0.0, 16.5]) {
        assert_eq!(understand(&route, &headers, &bytes, None, &range).unwrap_err().code(), "check.range", "{route:?}");
        let Err(Error::CallerBrokeSchema(place)) = understand(&route, &headers, &bytes, None, &schema) else { panic!("{route:?}") };
        assert_eq!(place.pointer(), "/inputs/0/data/1");
    }
}

#[test]
fn the_names_of_inputs_hold_in_every_encoding_whichever_key_says_them() {
    for sent in encodings([0.0, 16.0]) {
        for config in ["inputs = [\"input\", \"mask\"]", "range = { input = [0.0, 16.0] }", "nan = [\"input\"]"] {
            assert_eq!(in_mode("enforce", config, None, None, &sent), [None, None], "{config} {sent:?}");
            let config = config.replace("input\"", "x\"").replace("input ", "x ");
            for (mode, expected) in
                [("enforce", [Some("check.tensor_name"), None]), ("shadow", [None, Some("check.tensor_name")]), ("off", [None, None])]
            {
                assert_eq!(in_mode(mode, &config, None, None, &sent), expected, "{mode} {config} {sent:?}");
            }
        }
        // A grid has a mode of its own.
        let folder = std::path::Path::new(".");
        let become_of = |mode, contract| {
            let later = ByName { mode, inputs: &[("x", 0..0)] };
            let around = Around { policies: folder, folder, max_body: 1 << 20, contract, later };
            let terms = Config { mode: crate::mode::Mode::Off, ..Config::default() }.compile(around, &mut Vec::new());
            let mut shadowed = None;
            let refused = super::understand(&sent.2, &sent.0, &sent.1, None, &terms, &mut shadowed).err();
            [refused, shadowed].map(|error| error.map(|error| error.code()))
        };
        assert_eq!(become_of(crate::mode::Mode::Enforce, None), [Some("check.tensor_name"), None]);
        assert_eq!(become_of(crate::mode::Mode::Shadow, None), [None, Some("check.tensor_name")]);
        assert_eq!(become_of(crate::mode::Mode::Off, None), [None, None]);
        assert_eq!(become_of(crate::mode::Mode::Enforce, Some(&contract())), [None, None], "the model says its names itself");
    }
}

#[test]
fn a_grpc_message_is_one_whole_plain_frame() {
    let terms = terms("", None, None);
    let [_, _, (headers, bytes, route)] = encodings([1.0, 2.0]);
    let code = |bytes: Vec<u8>| understand(&route, &headers, &bytes.into(), None, &terms).unwrap_err().code();
    let changed = |at: usize, byte| {
        let mut bytes = bytes.to_vec();
        bytes[at] = byte;
        bytes
    };
    assert_eq!(code(changed(0, 1)), "check.coded");
    assert_eq!(code(changed(0, 2)), "check.grpc");
    assert_eq!(code(changed(1, 0x7f)), "check.too_large");
    assert_eq!(code(bytes[..bytes.len() - 1].to_vec()), "check.grpc");
    assert_eq!(code(Vec::new()), "check.grpc");
}

#[test]
fn only_routes_that_take_a_body_have_one() {
    assert!(!takes_body(&Route::Models(None), &Method::GET));
    assert!(!takes_body(&Route::Oip { asks: OipAsks::Ready, model: None, version: None }, &Method::GET));
    let raw = Route::Raw { path: "/predict".into(), model: "m".into() };
    assert!(takes_body(&raw, &Method::POST) && !takes_body(&raw, &Method::GET));
    assert!(nothing(&Body::Empty).is_ok());
    assert_eq!(nothing(&Body::Whole(Bytes::from_static(b"x"))), Err(Error::CallerSentUnexpectedBody));
}

#[test]
fn every_route_takes_its_own_media_type() {
    for (headers, _, route) in encodings([1.0, 2.0]) {
        assert_eq!(text::media_type(&headers, takes(&route, &headers)), Ok(()), "{route:?}");
        let mut other = headers.clone();
        other.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        assert_eq!(text::media_type(&other, takes(&route, &other)), Err(Error::CallerSentMediaType), "{route:?}");
        let wrong = text::media_type(&headers, takes(&Route::ChatCompletions, &headers));
        assert_eq!(wrong, Err(Error::CallerSentMediaType), "{route:?}");
    }
    // Tensors after the JSON have to be told by the header as well.
    let binary = headers(&[("content-type", "application/octet-stream".into())]);
    assert_eq!(text::media_type(&binary, takes(&infer(), &binary)), Err(Error::CallerSentMediaType));
    assert_eq!(takes(&Route::Messages, &binary), Takes::Json);
}

/// The stop, without the values around it.
async fn read(
    content: Content,
    route: &Route,
    method: &Method,
    headers: &HeaderMap,
    terms: &Terms,
    deadline: Instant,
) -> Result<(Bytes, Request), Error> {
    let wanted = wants_body(route, method, headers)?;
    let (bytes, parsed) = whole(content, wanted, terms, deadline).await?;
    let request = if wanted { understand(route, headers, &bytes, parsed, terms)? } else { Request::Nothing };
    Ok((bytes, request))
}

async fn read_chat(content: Content, max_body: usize) -> Result<(Bytes, Request), Error> {
    let terms = terms(&format!("max_body = \"{max_body}B\""), None, None);
    let deadline = Instant::now() + std::time::Duration::from_secs(60);
    read(content, &Route::ChatCompletions, &Method::POST, &json_headers(), &terms, deadline).await
}

#[tokio::test]
async fn the_models_own_cap_holds_whether_or_not_the_body_was_read_before() {
    let bytes = Bytes::from(hello().to_string());
    for whole in [true, false] {
        let content = || if whole { Content::Read(bytes.clone(), Some(hello())) } else { Content::Unread(Body::Whole(bytes.clone())) };
        let (read, _) = read_chat(content(), bytes.len()).await.unwrap();
        assert_eq!(read.as_ptr(), bytes.as_ptr(), "the bytes that were checked are the bytes that came");
        assert_eq!(read_chat(content(), bytes.len() - 1).await.unwrap_err(), Error::Body(read::Error::TheySentTooMuch));
    }
}

#[tokio::test]
async fn a_body_of_the_wrong_type_is_refused_before_it_is_read() {
    let endless = Body::stream(http_body_util::StreamBody::new(futures_util::stream::pending::<
        Result<http_body::Frame<Bytes>, crate::wire::body::Broken>,
    >()));
    let (terms, far) = (terms("", None, None), Instant::now() + std::time::Duration::from_secs(3_600));
    let refused = read(Content::Unread(endless), &Route::ChatCompletions, &Method::POST, &HeaderMap::new(), &terms, far).await;
    assert_eq!(refused.unwrap_err(), Error::CallerSentMediaType);
}

#[tokio::test]
async fn a_question_with_a_body_is_refused() {
    let terms = Terms::without_model(1_024);
    let ask =
        async |content| read(content, &Route::Models(None), &Method::GET, &HeaderMap::new(), &terms, Instant::now()).await.map(|_| ());
    assert_eq!(ask(Content::Unread(Body::Empty)).await, Ok(()));
    assert_eq!(ask(Content::Read(Bytes::new(), None)).await, Ok(()));
    let bytes = Bytes::from_static(b"{}");
    assert_eq!(ask(Content::Unread(Body::Whole(bytes.clone()))).await, Err(Error::CallerSentUnexpectedBody));
    assert_eq!(ask(Content::Read(bytes, None)).await, Err(Error::CallerSentUnexpectedBody));
}

#[test]
fn an_explanation_is_asked_for_in_every_encoding_and_given_where_the_policy_offers_it() {
    let port = |name: &str, width| Port { name: name.into(), datatype: Datatype::Fp32, shape: vec![None, Some(width)] };
    let contract = Contract { inputs: vec![port("input", 2)], outputs: vec![port("score", 1)], ..Contract::default() };
    let plain = terms("", Some(&contract), None);
    let mut offered = terms("", Some(&contract), None);
    offered.explain = Some(std::sync::Arc::new(explain::Terms::of_background(Vec::new(), 3, 2)));
    let tensor = json!({"name": "input", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]});
    let body = |parameters: Value| Bytes::from(json!({"inputs": [tensor], "parameters": parameters}).to_string());
    let asked = body(json!({"explain": "permutation_shap", "explain_samples": 4}));
    let understood = |body: &Bytes, terms: &Terms| understand(&infer(), &HeaderMap::new(), body, None, terms);

    assert!(matches!(understood(&body(json!({})), &offered), Ok(Request::Tensors(_))));
    let Ok(Request::Explain(explanation)) = understood(&asked, &offered) else { panic!() };
    assert_eq!((explanation.samples, &*explanation.output, explanation.evaluations()), (4, "score", 3 + 4 * 2 * 3));
    let binary = headers(&[("content-type", "application/octet-stream".into()), (oip::HEADER_LENGTH, asked.len().to_string())]);
    assert!(matches!(understand(&infer(), &binary, &asked, None, &offered), Ok(Request::Explain(_))));
    assert_eq!(understood(&asked, &plain).unwrap_err(), Error::CallerAskedToExplain(Unexplained::NotOffered));
    assert_eq!(understood(&asked, &plain).unwrap_err().code(), "check.explain");
    assert_eq!(understood(&body(json!({"explain": true})), &plain).unwrap_err().code(), "check.shape");
    // What another server makes of it is its own business.
    assert!(matches!(understood(&asked, &terms("", None, None)), Ok(Request::Tensors(_))));

    let parameter = grpc::InferParameter { parameter_choice: Some(grpc::ParameterChoice::String("permutation_shap".into())) };
    let message = grpc::ModelInferRequest {
        model_name: "digits".into(),
        parameters: [("explain".to_owned(), parameter)].into(),
        inputs: vec![grpc::InferTensor { name: "input".into(), datatype: "FP32".into(), shape: vec![1, 2], ..Default::default() }],
        raw_input_contents: vec![Bytes::from(vec![0; 8])],
        ..Default::default()
    };
    let framed = grpc::frame(&message).unwrap();
    let headers = headers(&[("content-type", "application/grpc".into())]);
    assert!(matches!(understand(&Route::Grpc(OipAsks::Infer), &headers, &framed, None, &offered), Ok(Request::Explain(_))));
}

/// A chat with a member more, over HTTP.
fn chatting(member: &str, value: Value) -> Sent {
    let mut body = hello();
    body[member] = value;
    (json_headers(), body.to_string().into(), Route::ChatCompletions)
}

#[test]
fn what_is_narrowed_refuses_or_would_have_or_does_neither_by_its_mode() {
    let schema = json!({"properties": {"seed": {"maximum": 5}, "inputs": {"items": {"properties": {"data": {"items": {"maximum": 2}}}}}}});
    let two = contract();
    let free =
        Contract { inputs: vec![Port { name: "input".into(), datatype: Datatype::Fp32, shape: vec![None, None] }], ..Contract::default() };
    let strict = |more: Value| {
        let mut body = json!({"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        (HeaderMap::new(), Bytes::from(body.to_string()), infer())
    };
    let mut cases = vec![
        ("max_tokens = 9", None, None, chatting("max_tokens", 9.into()), chatting("max_tokens", 10.into()), "check.max_tokens"),
        ("strict = true", None, None, chatting("seed", 1.into()), chatting("sead", 1.into()), "check.shape"),
        ("strict = true", None, None, strict(json!({"id": "x"})), strict(json!({"di": "x"})), "check.shape"),
        ("", None, Some(schema.clone()), chatting("seed", 5.into()), chatting("seed", 6.into()), "check.schema"),
    ];
    for encoding in 0..3 {
        let sent = |shape, values: &[f32]| encoded(shape, values)[encoding].clone();
        let row = |values: [f32; 2]| sent([1, 2], &values);
        for contract in [None, Some(&two)] {
            cases.push(("max_batch = 1", contract, None, row([0.0; 2]), sent([2, 2], &[0.0; 4]), "check.batch"));
            cases.push(("range = { input = [0, 2] }", contract, None, row([0.0, 2.0]), row([0.0, 2.5]), "check.range"));
            cases.push(("", contract, Some(schema.clone()), row([0.0, 2.0]), row([0.0, 2.5]), "check.schema"));
        }
        for contract in [None, Some(&free)] {
            cases.push(("max_length = 2", contract, None, row([0.0; 2]), sent([1, 3], &[0.0; 3]), "check.shape"));
        }
        // JSON has no NaN.
        if encoding > 0 {
            cases.push(("", None, None, row([f32::MAX, 0.0]), row([f32::NAN, 0.0]), "check.nan"));
        }
    }
    for (config, contract, schema, at, past, code) in cases {
        let become_of = |mode, sent| in_mode(mode, config, contract, schema.clone(), sent);
        for mode in ["enforce", "shadow", "off"] {
            assert_eq!(become_of(mode, &at), [None, None], "{mode} {config} {at:?}");
        }
        assert_eq!(become_of("enforce", &past), [Some(code), None], "{config} {past:?}");
        assert_eq!(become_of("shadow", &past), [None, Some(code)], "{config} {past:?}");
        assert_eq!(become_of("off", &past), [None, None], "{config} {past:?}");
    }
}

#[test]
fn what_keeps_the_gateway_and_the_model_whole_holds_in_any_mode() {
    let two = contract();
    let config = "max_batch = 70\nmax_depth = 4\nmax_body = \"1KiB\"";
    let raw = |text: &str| (json_headers(), Bytes::from(text.to_owned()), Route::Raw { path: "/predict".into(), model: "m".into() });
    let binary = |shape, values: &[f32]| encoded(shape, values)[1].clone();
    let mut short = binary([1, 2], &[0.0; 2]);
    short.1.truncate(short.1.len() - 4);
    let named = (
        HeaderMap::new(),
        Bytes::from(json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}).to_string()),
        infer(),
    );
    let cases = [
        (raw("{\"a\":1,\"a\":1}"), None, "check.json"),
        (raw("{\"a\":[[[[1]]]]}"), None, "check.json"),
        (chatting("messages", json!([])), None, "check.shape"),
        (chatting("session_params", json!({"id": "s"})), None, "check.stored"),
        (named, Some(&two), "check.tensor_name"),
        (binary([1, 3], &[0.0; 3]), Some(&two), "check.shape"),
        (binary([71, 2], &[0.0; 142]), Some(&two), "check.batch"),
        (binary([1, 2], &[0.0, f32::NAN]), Some(&two), "check.nan"),
        (short, Some(&two), "check.shape"),
    ];
    for (sent, contract, code) in &cases {
        for mode in ["enforce", "shadow", "off"] {
            assert_eq!(in_mode(mode, config, *contract, None, sent), [Some(*code), None], "{mode} {sent:?}");
        }
    }
    // What is allowed beyond the defaults is allowed in any mode, and the default is there for whoever says less.
    for (most, refused) in [(70, None), (16, Some("check.batch"))] {
        for mode in ["shadow", "off"] {
            let config = format!("max_batch = {most}\nnan = [\"input\"]");
            let sent = binary([65, 2], &[f32::NAN; 130]);
            assert_eq!(in_mode(mode, &config, Some(&two), None, &sent), [refused, None], "{mode} {config}");
        }
    }
}

#[test]
fn of_several_rules_the_first_would_have_refused_and_names_no_value() {
    let schema = json!({"properties": {"seed": {"maximum": 5}}});
    let terms = terms("mode = \"shadow\"\nmax_tokens = 9", None, Some(schema));
    let mut body = hello();
    body["seed"] = 987_654.into();
    let would = |body: &Value| {
        let mut shadowed = None;
        super::understand(&Route::ChatCompletions, &json_headers(), &body.to_string().into(), None, &terms, &mut shadowed).unwrap();
        shadowed.unwrap()
    };
    let found = would(&body);
    assert!(matches!(&found, Error::CallerBrokeSchema(place) if (place.pointer(), place.rule()) == ("/seed", "maximum")));
    assert!(!format!("{found:?}").contains("987"));
    body["max_tokens"] = 10.into();
    assert_eq!(would(&body), Error::CallerAskedForTooManyTokens(9));
    // The cap that is tried is no cap on what is reserved.
    assert_eq!(terms.max_tokens(), None);
}
