use super::*;

fn heard(document: Value) -> Vec<(u64, String)> {
    let mut heard = Vec::new();
    answered(&document, &|text| text == "be kind", |place, text| heard.push((place.choice, text.to_owned())));
    heard
}

fn heard_is(document: Value, expected: &[(u64, &str)]) {
    let expected: Vec<_> = expected.iter().map(|(choice, text)| (*choice, (*text).to_owned())).collect();
    assert_eq!(heard(document.clone()), expected, "{document}");
}

#[test]
fn every_dialect_says_its_instructions_and_its_prompt() {
    let parts =
        json!([{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "here"}]);
    for (document, instructions, prompt) in [
        (
            json!({"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "one"}, {"role": "assistant", "content": "no"},
            {"role": "developer", "content": parts.clone()}, {"role": "user", "content": "two"}]}),
            vec!["be kind", "look\nhere"],
            "two",
        ),
        (
            json!({"system": [{"type": "text", "text": "be kind"}], "messages": [{"role": "user", "content": parts}]}),
            vec!["be kind"],
            "look\nhere",
        ),
        (json!({"system": "be kind", "messages": []}), vec!["be kind"], ""),
        (json!({"instructions": "be kind", "input": "hello"}), vec!["be kind"], "hello"),
        (
            json!({"input": [{"role": "developer", "content": "be kind"}, {"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]}),
            vec!["be kind"],
            "hello",
        ),
        (json!({"prompt": ["one", "two"]}), vec![], "one\ntwo"),
        (json!({"prompt": [1, 2]}), vec![], ""),
        (json!({"input": ["one"]}), vec![], "one"),
        (json!([]), vec![], ""),
    ] {
        let said = Said::of(&document);
        assert_eq!(
            (said.instructions, said.prompt),
            (instructions.into_iter().map(str::to_owned).collect(), prompt.to_owned()),
            "{document}"
        );
    }
}

#[test]
fn temperature_is_read_and_so_are_tokens_whatever_is_said_of_them() {
    let said = Said::of(&json!({"temperature": 0.7, "logit_bias": {"5": -100, "6": "no", "7": 1.5, "8": false, "9": "-2"}}));
    assert_eq!(said.temperature, Some(0.7));
    let bias = [("5", -100.0), ("6", 0.0), ("7", 1.5), ("8", f64::NEG_INFINITY), ("9", -2.0)];
    assert_eq!(said.bias, bias.map(|(token, bias)| (token.to_owned(), bias)));
    let many: Map<String, Value> = (0..=MOST_BIASES).map(|token| (token.to_string(), 1.into())).collect();
    assert_eq!(Said::of(&json!({"logit_bias": many})).bias.len(), MOST_BIASES);
}

#[test]
fn tokens_that_alone_may_come_and_words_that_may_not_are_steered_as_well() {
    let said = Said::of(&json!({"logit_bias": {"1": 2}, "allowed_token_ids": [5, 1], "bad_words": ["x", "5"]}));
    let (only, never) = (f64::INFINITY, f64::NEG_INFINITY);
    let bias = [("1", 2.0), ("5", only), ("1", only), ("\"x\"", never), ("\"5\"", never)];
    assert_eq!(said.bias, bias.map(|(token, bias)| (token.to_owned(), bias)));
    let many = Said::of(&json!({"logit_bias": {"1": 2}, "allowed_token_ids": vec![7; MOST_BIASES]}));
    assert_eq!(many.bias.len(), MOST_BIASES);
}

#[test]
fn a_token_is_one_however_its_id_is_spelt() {
    let tokens = |document: Value| Said::of(&document).bias.into_iter().map(|(token, _)| token).collect::<Vec<_>>();
    for id in ["1000", "0001000", "+1000", " 1000"] {
        assert_eq!(tokens(json!({"logit_bias": {id: 1}})), ["1000"], "{id:?}");
        assert_eq!(tokens(json!({"allowed_token_ids": [id]})), ["1000"], "{id:?}");
    }
    assert_eq!(tokens(json!({"allowed_token_ids": [1000, 1e3, 0, 10]})), ["1000", "1000", "0", "10"]);
    assert_eq!(tokens(json!({"logit_bias": {"000": 1}})), ["0"]);
    // What a server may take for a word is not the token of that number.
    assert_eq!(
        tokens(json!({"logit_bias": {"10 ": 1, "": 1, "+": 1, "yes": 1, "-1": 1}})).iter().filter(|token| token.starts_with('"')).count(),
        5
    );
    assert_eq!(tokens(json!({"bad_words": ["10", "010"]})), ["\"10\"", "\"010\""]);
}

#[test]
fn what_is_read_is_bounded() {
    let at = |length: usize| Said::of(&json!({"prompt": "é".repeat(length)})).prompt.len();
    assert_eq!(at(MOST_BYTES / 2), MOST_BYTES);
    assert_eq!(at(MOST_BYTES / 2 + 1), MOST_BYTES);
    let several = Said::of(&json!({"prompt": ["x".repeat(MOST_BYTES), "y"]})).prompt;
    assert!(several.len() <= MOST_BYTES + 1 && !several.contains('y'));
    let messages = |count: usize| json!({"messages": vec![json!({"role": "system", "content": "x"}); count]});
    assert_eq!(Said::of(&messages(MOST_INSTRUCTIONS)).instructions.len(), MOST_INSTRUCTIONS);
    assert_eq!(Said::of(&messages(MOST_INSTRUCTIONS + 1)).instructions.len(), MOST_INSTRUCTIONS);
}

#[test]
fn every_dialect_answers_whole_and_in_pieces() {
    heard_is(
        json!({"choices": [{"index": 0, "message": {"content": "a"}}, {"index": 1, "message": {"content": null, "tool_calls": [{"function": {"arguments": "b"}}]}}]}),
        &[(0, "a"), (1, "b")],
    );
    heard_is(
        json!({"choices": [{"index": 2, "delta": {"role": "assistant", "reasoning_content": "r", "content": "a"}}]}),
        &[(2, "r"), (2, "a")],
    );
    heard_is(json!({"choices": [{"index": 0, "text": "a"}]}), &[(0, "a")]);
    heard_is(
        json!({"object": "response", "output": [{"type": "reasoning"}, {"type": "message", "content": [{"type": "output_text", "text": "a"}]}]}),
        &[(0, "a")],
    );
    heard_is(json!({"type": "response.output_text.delta", "output_index": 1, "delta": "a"}), &[(0, "a")]);
    heard_is(json!({"type": "response.output_text.done", "output_index": 1, "text": "a"}), &[(0, "a")]);
    heard_is(json!({"type": "response.output_audio.delta", "output_index": 1, "delta": "UklGRg=="}), &[]);
    heard_is(
        json!({"type": "message", "content": [{"type": "text", "text": "a"}, {"type": "tool_use", "input": {"x": "b"}}]}),
        &[(0, "a"), (0, "{\"x\":\"b\"}")],
    );
    heard_is(json!({"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "a"}}), &[(0, "a")]);
    heard_is(json!({"type": "ping"}), &[]);
    heard_is(json!({"usage": {}, "choices": []}), &[]);
    heard_is(json!(["a"]), &[]);
}

#[test]
fn whatever_an_answer_says_it_in_is_heard() {
    let message = |message: Value| json!({"choices": [{"index": 0, "message": message}]});
    let delta = |delta: Value| json!({"choices": [{"index": 0, "delta": delta}]});
    for said in [
        json!({"role": "assistant", "content": [{"type": "text", "text": "secret"}]}),
        json!({"refusal": "secret"}),
        json!({"function_call": {"arguments": "secret"}}),
        json!({"tool_calls": [{"id": "a", "type": "custom", "custom": {"input": "secret"}}]}),
        json!({"audio": {"id": "x", "data": "UklGRg==", "transcript": "secret"}}),
        json!({"annotations": [{"type": "url_citation", "url_citation": {"title": "secret"}}]}),
        json!({"reasoning": "secret"}),
        json!({"images": [{"image_url": {"url": "data:image/png;base64,iVBORw0K"}}], "content": "secret"}),
    ] {
        heard_is(message(said.clone()), &[(0, "secret")]);
        heard_is(delta(said), &[(0, "secret")]);
    }
    heard_is(
        json!({"choices": [{"index": 0, "logprobs": {"content": [{"token": "secret", "bytes": [1], "top_logprobs": [{"token": "other"}]}]}}]}),
        &[(0, "secret")],
    );
    heard_is(json!({"choices": [], "search_results": [{"snippet": "secret"}]}), &[(0, "secret")]);
    heard_is(json!({"choices": [], "prompt": [{"text": "secret"}]}), &[(0, "secret")]);
    // The address of a picture, and not whatever begins like one.
    heard_is(message(json!({"content": "data: secret"})), &[(0, "data: secret")]);
    for item in [
        json!({"type": "message", "id": "m", "role": "assistant", "content": [{"type": "refusal", "refusal": "secret"}]}),
        json!({"type": "function_call", "call_id": "c", "arguments": "secret"}),
        json!({"type": "custom_tool_call", "call_id": "c", "input": "secret"}),
        json!({"type": "reasoning", "summary": [{"type": "summary_text", "text": "secret"}], "encrypted_content": "gAAA"}),
        json!({"type": "code_interpreter_call", "code": "secret", "status": "completed"}),
        json!({"type": "code_interpreter_call", "outputs": [{"type": "logs", "logs": "secret"}]}),
        json!({"type": "mcp_call", "output": "secret"}),
        json!({"type": "image_generation_call", "result": "iVBORw0K", "revised_prompt": "secret"}),
        json!({"type": "web_fetch", "source": {"type": "text", "data": "secret"}}),
        json!({"type": "mcp_list_tools", "tools": [{"description": "be kind"}], "error": "secret"}),
    ] {
        heard_is(json!({"object": "response", "instructions": "be kind", "output": [item.clone()]}), &[(0, "secret")]);
        heard_is(json!({"type": "response.output_item.done", "output_index": 3, "item": item.clone()}), &[(0, "secret")]);
        let response = json!({"instructions": "be kind", "tools": [{"name": "f"}], "text": {"format": {"type": "text"}}, "output": [item]});
        heard_is(json!({"type": "response.completed", "response": response}), &[(0, "secret")]);
    }
    for given in [json!({"type": "search", "query": "secret"}), json!({"command": ["echo", "secret"]}), json!({"secret": 1})] {
        heard_is(json!({"output": [{"type": "web_search_call", "action": given}]}), &[(0, &given.to_string())]);
        heard_is(json!({"output": [{"type": "tool_search_call", "arguments": given}]}), &[(0, &given.to_string())]);
    }
    for event in [
        json!({"type": "response.output_text.annotation.added", "annotation": {"title": "secret"}}),
        json!({"type": "response.shell_call_command.done", "command": "secret"}),
        json!({"type": "response.created", "response": {"instructions": [{"role": "system", "content": "secret"}]}}),
        json!({"type": "response.created", "response": {"instructions": "secret"}}),
        json!({"type": "content_block_start", "index": 2, "content_block": {"type": "text", "text": "secret"}}),
        json!({"type": "message_start", "message": {"model": "m", "content": [{"type": "text", "text": "secret"}]}}),
    ] {
        heard_is(event, &[(0, "secret")]);
    }
    heard_is(json!({"type": "content_block_delta", "delta": {"type": "signature_delta", "signature": "c2ln"}}), &[]);
}

#[test]
fn what_passes_side_by_side_stands_in_places_of_its_own_and_what_follows_in_one() {
    let places = |document: Value| {
        let mut places = Vec::new();
        answered(&document, &|_| false, |place, _| places.push(place));
        places
    };
    let tool = |index: u64| json!({"index": index, "function": {"name": "f", "arguments": "a"}});
    let chunk = |delta: Value| json!({"choices": [{"index": 0, "delta": delta}]});
    let side = places(chunk(
        json!({"reasoning": "a", "reasoning_details": [{"text": "a", "format": "f"}], "channel": "c", "tool_calls": [tool(0), tool(1)]}),
    ));
    let apart: std::collections::BTreeSet<Place> = side.iter().copied().collect();
    assert_eq!((side.len(), apart.len()), (8, 8));
    assert_eq!(places(chunk(json!({"reasoning": "b"}))), side[..1], "the next chunk goes on there");
    let block = |index: u64| json!({"type": "content_block_delta", "index": index, "delta": {"text": "a"}});
    assert_eq!(places(block(0)), places(block(7)));
    let [first, second] = &places(json!({"output": [{"content": [{"text": "a"}]}, {"content": [{"text": "b"}]}]}))[..] else { panic!() };
    assert_eq!(first, second);
    let time = |kind: &str| places(json!({"type": kind, "delta": "a", "text": "a"}))[0].time;
    assert_eq!((time("response.output_text.delta"), time("response.reasoning_text.delta")), (0, 0));
    let item = |kind: &str| places(json!({"type": "response.output_item.done", "item": {"type": kind, "query": "a"}}))[0].time;
    assert!(item("web_search_call") == 0 && item("message") != 0);
    assert!(time("response.output_text.done") != time("response.completed") && time("response.output_text.done") != 0);
}

#[test]
fn what_nobody_reads_is_taken_out_wherever_it_stands() {
    let mut answer = json!({
        "prompt_logprobs": [null, {"5": {"decoded_token": "secret"}}], "prompt_token_ids": [1], "prompt_text": null, "model": "m",
        "choices": [{"index": 0, "token_ids": [1, 2], "message": {"content": "a"}}],
    });
    assert!(take_out_unread(&mut answer));
    assert_eq!(answer, json!({"prompt_text": null, "model": "m", "choices": [{"index": 0, "message": {"content": "a"}}]}));
    assert!(!take_out_unread(&mut answer));
    let given = json!({"content": [{"type": "tool_use", "input": {"prompt_text": "a cat", "token_ids": [1]}}], "choices": [{"message": {"tool_calls": [
        {"function": {"arguments": {"raw_output": true}}}]}}], "response": {"tools": [{"parameters": {"token_ids": {}}}]}});
    let mut answer = given.clone();
    assert!(!take_out_unread(&mut answer) && answer == given);
}

#[test]
fn an_answer_that_is_withheld_says_nothing_but_that() {
    for document in [
        json!({"model": "m", "choices": [{"index": 0, "message": {"role": "assistant", "content": "a", "tool_calls": []}, "logprobs": {"content": []}, "finish_reason": "stop"}]}),
        json!({"model": "m", "choices": [{"index": 0, "text": "a", "finish_reason": "stop"}]}),
        json!({"model": "m", "object": "response", "status": "completed", "output": [{"content": [{"text": "a"}]}]}),
        json!({"model": "m", "type": "message", "stop_reason": "end_turn", "content": [{"type": "text", "text": "a"}]}),
        json!({"model": "m", "choices": [{"index": 0, "message": {"content": "a"}, "token_ids": [1], "reasoning": "b"}], "citations": ["c"], "extra": "d"}),
        json!({"model": "m", "object": "response", "output": [], "output_text": "a", "output_messages": [{"content": "a"}], "instructions": "b"}),
    ] {
        let mut withheld = document.clone();
        withhold(&mut withheld);
        assert!(heard(withheld.clone()).iter().all(|(_, text)| ["", "content_filter", "refusal"].contains(&text.as_str())), "{withheld}");
        assert_eq!(withheld["model"], "m");
        let text = withheld.to_string();
        assert!(text.contains("content_filter") || text.contains("refusal"), "{text}");
    }
}

#[test]
fn a_stream_that_is_cut_ends_as_its_dialect_does() {
    let text = |(events, last): (Vec<bytes::Bytes>, bytes::Bytes)| [events.concat(), last.to_vec()].concat();
    let chat = cut(&json!({"id": "x", "choices": [{"index": 0, "delta": {"content": "a"}}], "usage": {"completion_tokens": 1}}), None, 5);
    assert_eq!(chat.1, "data: [DONE]\n\n");
    assert_eq!(chat.0.concat(), b"data: {\"id\":\"x\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"content_filter\"}]}\n\n");
    let told = json!({"id": "r", "object": "response", "status": "in_progress", "output": []});
    let responses = cut(&json!({"type": "response.output_text.delta", "sequence_number": 7, "delta": "a"}), Some(&told), 5);
    let responses = String::from_utf8(text(responses)).unwrap();
    assert!(
        responses.starts_with("event: response.incomplete\ndata: ")
            && responses.contains("\"status\":\"incomplete\"")
            && responses.contains("\"id\":\"r\"")
    );
    let messages =
        String::from_utf8(text(cut(&json!({"type": "content_block_delta", "index": 1, "delta": {"text": "a"}}), None, 5))).unwrap();
    assert!(
        messages.contains("\"index\":1")
            && messages.contains("\"output_tokens\":5")
            && messages.ends_with("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n")
    );
}
