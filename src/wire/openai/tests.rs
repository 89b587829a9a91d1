use super::*;

fn chat(more: Value) -> Value {
    let mut document = json!({ "model": "chat", "messages": [{ "role": "user", "content": "hello" }] });
    if let (Value::Object(document), Value::Object(more)) = (&mut document, more) {
        document.extend(more);
    }
    document
}

fn broken(kind: Kind, document: &Value) -> (String, &'static str) {
    let shape = asked(kind, document).unwrap_err();
    (shape.pointer, shape.rule)
}

#[test]
fn a_chat_asks_for_what_it_says() {
    let plain = asked(Kind::Chat, &chat(json!({}))).unwrap();
    assert_eq!(plain, Asked { model: "chat".into(), answers: 1, ..Asked::default() });
    let full = chat(json!({
        "stream": true, "stream_options": {"include_usage": true}, "n": 3, "max_tokens": 10, "max_completion_tokens": 20,
        "logprobs": true, "top_logprobs": 5, "logit_bias": {"50256": -100, "1": 1}, "vendor_field": {},
    }));
    let expected = Asked {
        model: "chat".into(),
        stream: true,
        include_usage: Some(true),
        max_tokens: Some(20),
        answers: 3,
        logprobs: Some(5),
        logit_bias: 2,
        ..Asked::default()
    };
    assert_eq!(asked(Kind::Chat, &full).unwrap(), expected);
    let nulls = chat(json!({"stream": null, "n": null, "max_tokens": null, "logprobs": null, "logit_bias": null, "stream_options": null}));
    assert_eq!(asked(Kind::Chat, &nulls).unwrap(), plain);
}

#[test]
fn a_field_that_does_not_hold_to_its_shape_is_named() {
    for (more, pointer, rule) in [
        (json!({"model": null}), "/model", "required"),
        (json!({"model": 3}), "/model", "type"),
        (json!({"model": ""}), "/model", "range"),
        (json!({"model": "x".repeat(257)}), "/model", "range"),
        (json!({"model": "a\nb"}), "/model", "range"),
        (json!({"messages": []}), "/messages", "range"),
        (json!({"messages": "hello"}), "/messages", "type"),
        (json!({"messages": [{"role": "user"}, "x"]}), "/messages/1/role", "required"),
        (json!({"stream": "true"}), "/stream", "type"),
        (json!({"stream": 1}), "/stream", "type"),
        (json!({"n": 0}), "/n", "range"),
        (json!({"n": -1}), "/n", "type"),
        (json!({"n": 1.5}), "/n", "type"),
        (json!({"n": "2"}), "/n", "type"),
        (json!({"max_tokens": 0}), "/max_tokens", "range"),
        (json!({"max_completion_tokens": 1e30}), "/max_completion_tokens", "type"),
        (json!({"logprobs": 1}), "/logprobs", "type"),
        (json!({"top_logprobs": -1}), "/top_logprobs", "type"),
        (json!({"logit_bias": []}), "/logit_bias", "type"),
        (json!({"stream_options": true}), "/stream_options", "type"),
        (json!({"stream_options": {"include_usage": 1}}), "/stream_options/include_usage", "type"),
    ] {
        assert_eq!(broken(Kind::Chat, &chat(more.clone())), (pointer.to_owned(), rule), "{more}");
    }
    assert!(asked(Kind::Chat, &chat(json!({"model": "x".repeat(256)}))).is_ok());
    assert_eq!(broken(Kind::Chat, &json!([])), (String::new(), "type"));
    assert_eq!(broken(Kind::Chat, &json!({"model": "m"})), ("/messages".into(), "required"));
}

#[test]
fn log_probabilities_are_noticed_in_each_endpoint() {
    let chat_of = |more| asked(Kind::Chat, &chat(more)).unwrap().logprobs;
    assert_eq!(chat_of(json!({"logprobs": true})), Some(0));
    assert_eq!(chat_of(json!({"logprobs": false})), None);
    assert_eq!(chat_of(json!({"top_logprobs": 2})), Some(2));
    assert_eq!(chat_of(json!({"prompt_logprobs": 7})), Some(7));
    let completion = |more: Value| asked(Kind::Completions, &json!({"model": "m", "prompt": "p", "logprobs": more})).unwrap().logprobs;
    assert_eq!(completion(json!(0)), Some(0));
    assert_eq!(completion(json!(5)), Some(5));
    assert_eq!(completion(json!(null)), None);
    let response = |more: Value| asked(Kind::Responses, &json!({"model": "m", "input": "p", "include": more})).unwrap().logprobs;
    assert_eq!(response(json!(["message.output_text.logprobs"])), Some(0));
    assert_eq!(response(json!(["reasoning.encrypted_content"])), None);
    assert_eq!(asked(Kind::Responses, &json!({"model": "m", "input": "p", "top_logprobs": 20})).unwrap().logprobs, Some(20));
}

#[test]
fn what_one_endpoint_knows_is_noticed_on_the_others() {
    let documents = [
        (Kind::Chat, json!({"model": "m", "messages": [{"role": "user", "content": "p"}]})),
        (Kind::Completions, json!({"model": "m", "prompt": "p"})),
        (Kind::Responses, json!({"model": "m", "input": "p"})),
    ];
    for (kind, document) in documents {
        let with = |more: Value| {
            let mut document = document.clone();
            document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            asked(kind, &document).unwrap()
        };
        for name in ["max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"] {
            assert_eq!(with(json!({"max_tokens": 5, "max_output_tokens": 5, name: 300})).max_tokens, Some(300), "{kind:?} {name}");
        }
        for name in ["n", "best_of", "n_cmpl"] {
            assert_eq!(with(json!({name: 3})).answers, 3, "{kind:?} {name}");
        }
        for name in ["top_logprobs", "n_probs", "prompt_logprobs"] {
            assert_eq!(with(json!({name: 9})).logprobs, Some(9), "{kind:?} {name}");
        }
        assert_eq!(with(json!({"logprob_token_ids": [1, 2, 3], "top_logprobs": 2})).logprobs, Some(3), "{kind:?}");
        assert_eq!(with(json!({"logit_bias": {"1": 1}, "allowed_token_ids": [1, 2], "bad_words": ["x"]})).logit_bias, 4, "{kind:?}");
        let mut listed = document.clone();
        listed["logit_bias"] = json!([[15043, 1.0]]);
        assert_eq!(broken(kind, &listed), ("/logit_bias".into(), "type"), "llama.cpp's list of pairs is refused, {kind:?}");
        assert_eq!(with(json!({"n_probs": 0, "top_logprobs": 0})).logprobs, None);
        assert_eq!(with(json!({"logit_bias": {"1": 1, "2": 1}})).logit_bias, 2, "{kind:?}");
        assert_eq!(with(json!({"stream_options": {"include_usage": false}})).include_usage, Some(false));
    }
    let response = |logprobs: Value| asked(Kind::Responses, &json!({"model": "m", "input": "p", "logprobs": logprobs})).unwrap().logprobs;
    assert_eq!((response(json!(true)), response(json!(4)), response(json!(false))), (Some(0), Some(4), None));
    assert_eq!(
        broken(Kind::Responses, &json!({"model": "m", "input": "p", "max_output_tokens": 0})),
        ("/max_output_tokens".into(), "range")
    );
}

#[test]
fn each_prompt_of_a_completion_is_an_answer() {
    let answers = |prompt: Value| asked(Kind::Completions, &json!({"model": "m", "prompt": prompt, "n": 2, "best_of": 4})).unwrap().answers;
    assert_eq!(answers(json!("p")), 4);
    assert_eq!(answers(json!(["p", "q", "r"])), 12);
    assert_eq!(answers(json!([1, 2, 3])), 4);
    assert_eq!(answers(json!([[1, 2], [3]])), 8);
    assert_eq!(broken(Kind::Completions, &json!({"model": "m", "prompt": ["p", 1]})), ("/prompt".into(), "type"));
}

#[test]
fn inputs_hold_to_their_shape() {
    for input in [json!("a"), json!(["a", "b"]), json!([1, 2]), json!([[1], [2, 3]])] {
        assert!(asked(Kind::Embeddings, &json!({"model": "m", "input": input})).is_ok());
    }
    for input in [json!(null), json!([]), json!({}), json!(["a", 1]), json!([1.5]), json!([["a"]])] {
        assert!(asked(Kind::Embeddings, &json!({"model": "m", "input": input})).is_err());
    }
    assert!(asked(Kind::Responses, &json!({"model": "m", "input": [{"role": "user", "content": "x"}]})).is_ok());
    assert!(asked(Kind::Responses, &json!({"model": "m", "prompt": {"id": "p"}})).is_ok());
    assert_eq!(broken(Kind::Responses, &json!({"model": "m"})), ("/input".into(), "required"));
    assert_eq!(broken(Kind::Responses, &json!({"model": "m", "input": [1]})), ("/input/0".into(), "type"));
}

#[test]
fn strictly_an_unknown_field_is_named() {
    assert!(only_known_members(Kind::Chat, &chat(json!({"temperature": 0.5, "tools": []}))).is_ok());
    let shape = only_known_members(Kind::Chat, &chat(json!({"guided/json": {}}))).unwrap_err();
    assert_eq!((shape.pointer.as_str(), shape.rule), ("/guided~1json", "unknown"));
    assert!(only_known_members(Kind::Embeddings, &json!({"model": "m", "input": "x", "encoding_format": "base64"})).is_ok());
}

#[test]
fn usage_is_read_from_answers_chunks_and_events() {
    let tokens = |input, output| Some(Usage { input, output });
    let whole = json!({"id": "chatcmpl-1", "object": "chat.completion", "choices": [{"index": 0}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}});
    assert_eq!(usage(&whole), tokens(9, 12));
    assert!(!is_usage_only(&whole));
    let last = json!({"object": "chat.completion.chunk", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 12}});
    assert_eq!(usage(&last), tokens(9, 12));
    assert!(is_usage_only(&last));
    let ordinary = json!({"object": "chat.completion.chunk", "choices": [{"delta": {"content": "x"}}], "usage": null});
    assert_eq!(usage(&ordinary), None);
    assert!(!is_usage_only(&ordinary));
    assert!(!is_usage_only(&json!({"choices": [], "prompt_filter_results": []})));
    assert_eq!(usage(&json!({"object": "list", "data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}})), tokens(8, 0));
    let completed = json!({"type": "response.completed", "response": {"usage": {"input_tokens": 37, "output_tokens": 11}}});
    assert_eq!(usage(&completed), tokens(37, 11));
    assert_eq!(usage(&json!({"type": "response.created", "response": {"usage": null}})), None);
    assert_eq!(usage(&json!({"usage": {"prompt_tokens": -1}})), None);
}

#[test]
fn log_probabilities_are_rounded_and_nothing_else_is() {
    let mut answer = json!({"created": 1.23456, "choices": [
        {"logprobs": {"content": [{"token": "a", "logprob": -0.123456, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -9999.0}]}]}},
        {"logprobs": {"tokens": ["a"], "token_logprobs": [null, -1.98765], "top_logprobs": [{"a": -0.55555}], "text_offset": [3]}},
    ], "output": [{"content": [{"logprobs": [{"logprob": -0.00049}]}]}]});
    assert!(round_logprobs(&mut answer, 2));
    let expected = json!({"created": 1.23456, "choices": [
        {"logprobs": {"content": [{"token": "a", "logprob": -0.12, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -9999.0}]}]}},
        {"logprobs": {"tokens": ["a"], "token_logprobs": [null, -1.99], "top_logprobs": [{"a": -0.56}], "text_offset": [3]}},
    ], "output": [{"content": [{"logprobs": [{"logprob": -0.0}]}]}]});
    assert_eq!(answer, expected);
    assert!(!round_logprobs(&mut answer, 2));
    let mut huge = json!({"logprob": -1e308});
    assert!(!round_logprobs(&mut huge, 255));
}

#[test]
fn models_are_listed() {
    let list = models([Listed { id: "chat", created: 1, owned_by: "acme" }]);
    assert_eq!(list, r#"{"object":"list","data":[{"id":"chat","object":"model","created":1,"owned_by":"acme"}]}"#);
}

/// Ollama and whatever else reads JSON with Go's `encoding/json` takes the last of `model` and `MODEL`.
#[test]
fn a_key_that_other_readers_take_for_one_that_was_judged_is_refused() {
    for key in ["Model", "MODEL", "Max_Tokens", "\u{17f}tream", "best_oF", "Logprobs", "N"] {
        let mut document = json!({"model": "chat", "messages": [{"role": "user", "content": "x"}]});
        document[key] = json!("other");
        assert_eq!(asked(Kind::Chat, &document).unwrap_err().rule, "look_alike", "{key}");
    }
    let tools = json!({"model": "chat", "messages": [{"role": "user", "content": "x"}], "X-Own": 1, "chat_template_kwargs": {"Model": 1}});
    assert!(asked(Kind::Chat, &tools).is_ok());
}

#[test]
fn log_probabilities_are_left_out_wherever_they_stand() {
    let mut chat = json!({"choices": [{"message": {"content": "logprobs"}, "logprobs": {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": []}]}}], "prompt_logprobs": [null, {"1": {"logprob": -1}}]});
    assert!(strip_logprobs(&mut chat));
    assert_eq!(chat, json!({"choices": [{"message": {"content": "logprobs"}, "logprobs": null}], "prompt_logprobs": []}));
    assert!(!strip_logprobs(&mut chat));
    let mut event = json!({"type": "response.output_text.delta", "delta": "a", "logprobs": [{"token": "a", "logprob": -0.1}]});
    assert!(strip_logprobs(&mut event));
    assert_eq!(event["logprobs"], json!([]));
}

#[test]
fn the_words_that_one_server_has_of_its_own_are_no_way_around_a_cap() {
    let more = |kind, mut more: Value| {
        more["model"] = json!("chat");
        more["messages"] = json!([{"role": "user", "content": "x"}]);
        asked(kind, &more)
    };
    for kind in [Kind::Chat, Kind::Completions] {
        assert_eq!(more(kind, json!({"max_tokens": 1, "n_predict": 100_000})).unwrap().max_tokens, Some(100_000));
        assert_eq!(more(kind, json!({"n_predict": -1})).unwrap_err().pointer, "/n_predict");
        assert_eq!(more(kind, json!({"n_probs": 10})).unwrap().logprobs, Some(10));
        assert_eq!(more(kind, json!({"n_probs": 0})).unwrap().logprobs, None);
        assert_eq!(more(kind, json!({"n": 1, "best_of": 20})).unwrap().answers, 20);
    }
}
