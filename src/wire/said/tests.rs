use super::*;

fn heard(document: Value) -> Vec<(u64, String)> {
    let mut heard = Vec::new();
    answered(&document, |(choice, _), text| heard.push((choice, text.to_owned())));
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
fn temperature_and_biases_are_read_where_they_are_numbers() {
    let said = Said::of(&json!({"temperature": 0.7, "logit_bias": {"5": -100, "6": "no", "7": 1.5}}));
    assert_eq!(said.temperature, Some(0.7));
    assert_eq!(said.bias, [("5".to_owned(), -100.0), ("7".to_owned(), 1.5)]);
    let many: Map<String, Value> = (0..=MOST_BIASES).map(|token| (token.to_string(), 1.into())).collect();
    assert_eq!(Said::of(&json!({"logit_bias": many})).bias.len(), MOST_BIASES);
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
    heard_is(json!({"choices": [{"index": 2, "delta": {"role": "assistant", "reasoning_content": "r"}}]}), &[(2, "r")]);
    heard_is(json!({"choices": [{"index": 2, "delta": {"content": "a"}}]}), &[(2, "a")]);
    heard_is(json!({"choices": [{"index": 0, "text": "a"}]}), &[(0, "a")]);
    heard_is(
        json!({"object": "response", "output": [{"type": "reasoning"}, {"type": "message", "content": [{"type": "output_text", "text": "a"}]}]}),
        &[(1, "a")],
    );
    heard_is(json!({"type": "response.output_text.delta", "output_index": 1, "delta": "a"}), &[(1, "a")]);
    heard_is(json!({"type": "response.output_text.done", "output_index": 1, "text": "a"}), &[(1, "a")]);
    heard_is(json!({"type": "response.output_audio.delta", "output_index": 1, "delta": "UklGRg=="}), &[]);
    let created = json!({"type": "response.created", "response": {"instructions": "be kind", "output": []}});
    heard_is(created, &[]);
    heard_is(
        json!({"type": "message", "content": [{"type": "text", "text": "a"}, {"type": "tool_use", "input": {"x": "b"}}]}),
        &[(0, "a"), (1, "{\"x\":\"b\"}")],
    );
    heard_is(json!({"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "a"}}), &[(1, "a")]);
    heard_is(json!({"type": "ping"}), &[]);
    heard_is(json!({"usage": {}, "choices": []}), &[]);
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
    ] {
        heard_is(message(said.clone()), &[(0, "secret")]);
        heard_is(delta(said), &[(0, "secret")]);
    }
    for item in [
        json!({"type": "message", "id": "m", "role": "assistant", "content": [{"type": "refusal", "refusal": "secret"}]}),
        json!({"type": "function_call", "call_id": "c", "arguments": "secret"}),
        json!({"type": "custom_tool_call", "call_id": "c", "input": "secret"}),
        json!({"type": "reasoning", "summary": [{"type": "summary_text", "text": "secret"}], "encrypted_content": "gAAA"}),
        json!({"type": "code_interpreter_call", "code": "secret", "status": "completed"}),
        json!({"type": "code_interpreter_call", "outputs": [{"type": "logs", "logs": "secret"}]}),
        json!({"type": "mcp_call", "output": "secret"}),
    ] {
        heard_is(json!({"object": "response", "instructions": "be kind", "output": [item.clone()]}), &[(0, "secret")]);
        heard_is(json!({"type": "response.output_item.done", "output_index": 3, "item": item.clone()}), &[(3, "secret")]);
        heard_is(json!({"type": "response.completed", "response": {"instructions": "be kind", "output": [item]}}), &[(0, "secret")]);
    }
    for action in [json!({"type": "search", "query": "secret"}), json!({"command": ["echo", "secret"]}), json!({"secret": 1})] {
        let item = json!({"type": "web_search_call", "action": action});
        heard_is(json!({"output": [item]}), &[(0, &action.to_string())]);
    }
    let image = json!({"type": "image_generation_call", "result": "iVBORw0K", "revised_prompt": "secret"});
    heard_is(json!({"output": [image]}), &[(0, "secret")]);
    heard_is(json!({"type": "content_block_start", "index": 2, "content_block": {"type": "text", "text": "secret"}}), &[(2, "secret")]);
    heard_is(json!({"type": "message_start", "message": {"content": [{"type": "text", "text": "secret"}]}}), &[(0, "secret")]);
    heard_is(json!({"type": "content_block_delta", "delta": {"type": "signature_delta", "signature": "c2ln"}}), &[]);
}

#[test]
fn what_is_named_beside_the_words_does_not_part_them() {
    let mut heard = Vec::new();
    let tool = json!({"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "secret"}});
    let chunk = json!({"choices": [{"index": 0, "delta": {"tool_calls": [tool], "annotations": [{"url_citation": {"title": "t"}}]}}]});
    answered(&chunk, |speaker, text| heard.push((speaker, text.to_owned())));
    heard.sort();
    assert_eq!(heard, [((0, false), "secret".into()), ((0, true), "f".into()), ((0, true), "t".into())]);
}

#[test]
fn an_answer_that_is_withheld_says_nothing_but_that() {
    for document in [
        json!({"model": "m", "choices": [{"index": 0, "message": {"role": "assistant", "content": "a", "tool_calls": []}, "logprobs": {"content": []}, "finish_reason": "stop"}]}),
        json!({"model": "m", "choices": [{"index": 0, "text": "a", "finish_reason": "stop"}]}),
        json!({"model": "m", "object": "response", "status": "completed", "output": [{"content": [{"text": "a"}]}]}),
        json!({"model": "m", "type": "message", "stop_reason": "end_turn", "content": [{"type": "text", "text": "a"}]}),
    ] {
        let mut withheld = document.clone();
        withhold(&mut withheld);
        assert!(heard(withheld.clone()).iter().all(|(_, text)| text.is_empty()), "{withheld}");
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
