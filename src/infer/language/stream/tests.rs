use http_body_util::{BodyExt, StreamBody};

use super::super::super::memory::Memory;
use super::super::MOST_TOKENS;
use super::*;

fn metered(route: Route, events: &[&'static str], then_waits: bool) -> (Metered, Late) {
    use futures_util::{StreamExt, stream};
    let frames: Vec<Result<_, Broken>> = events.iter().map(|event| Ok(Frame::data(Bytes::from_static(event.as_bytes())))).collect();
    let frames = stream::iter(frames);
    let body =
        if then_waits { Body::stream(StreamBody::new(frames.chain(stream::pending()))) } else { Body::stream(StreamBody::new(frames)) };
    let late = Late::default();
    let metered = Metered {
        upstream: Some(body),
        splitter: Splitter::new(2 * EVENT),
        limits: json::Limits::for_body(2 * EVENT),
        share: Memory::default().share().unwrap(),
        much: None,
        ready: VecDeque::new(),
        takes_out_usage: false,
        name: "chat".into(),
        named: "\"model\":\"chat\"".into(),
        decimals: None,
        without_logprobs: false,
        guard: None,
        listener: None,
        response: None,
        cut: None,
        closing: None,
        usage: None,
        said_it_is_done: false,
        last: None,
        cut_short: false,
        hold: Hold::of_nobody(),
        late: late.clone(),
        route,
    };
    (metered, late)
}

const START: &str = "data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\n\n";
const DELTA: &str = "data: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"a word and another word\"}}\n\n";
const END: &str = "data: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":9}}\n\ndata: {\"type\":\"message_stop\"}\n\n";

#[tokio::test]
async fn who_leaves_before_the_usage_is_told_owes_for_what_came() {
    let (mut left, late) = metered(Route::Messages, &[START, DELTA, DELTA], true);
    for _ in 0..3 {
        left.frame().await.unwrap().unwrap();
    }
    drop(left);
    let usage = late.end().unwrap().usage.unwrap();
    let came = (START.len() + 2 * DELTA.len()) as u64;
    assert_eq!((usage.input, usage.output), (25, budget::estimate(came)));

    let (stayed, late) = metered(Route::Messages, &[START, DELTA, DELTA, END], false);
    stayed.collect().await.unwrap();
    assert_eq!(late.end().unwrap().usage, Some(Usage { input: 25, output: 9 }));
}

#[tokio::test]
async fn an_event_is_as_long_as_a_whole_answer_may_be_and_takes_its_memory() {
    let event = |length: usize| -> &'static str { format!("data: {}\n\n", "a".repeat(length - 8)).leak() };
    let passes = async |length: usize, left: usize| {
        let memory = Memory::default();
        let _others = memory.all_but(left);
        let (mut stream, _) = metered(Route::ChatCompletions, &[event(length), "data: [DONE]\n\n"], false);
        stream.share = memory.share().unwrap();
        stream.collect().await.map(|whole| whole.to_bytes().len() - 14).map_err(|error| error.to_string())
    };
    assert_eq!(passes(EVENT, 0).await, Ok(EVENT));
    assert_eq!(passes(2 * EVENT, 4 * EVENT).await, Ok(2 * EVENT));
    assert_eq!(passes(2 * EVENT + 1, 5 * EVENT).await.unwrap_err(), "the upstream sent an event that is too long");
    assert_eq!(passes(2 * EVENT, EVENT).await.unwrap_err(), "the memory for answers is full");
}

#[tokio::test]
async fn withheld_log_probabilities_leave_in_no_chunk() {
    const CHUNK: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"logprobs\":{\"content\":[{\"logprob\":-0.25}]}}]}\n\n";
    const ODD: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"\\ud83d\"},\"logprobs\":{\"content\":[{\"logprob\":-0.25}]}}]}\n\n";
    let (mut stream, _) = metered(Route::ChatCompletions, &[CHUNK, ODD, "data: [DONE]\n\n"], false);
    stream.without_logprobs = true;
    let told = stream.collect().await.unwrap().to_bytes();
    let told = String::from_utf8_lossy(&told);
    assert!(told.contains("\"content\":\"a\"") && told.contains("\"logprobs\":null") && told.contains("[DONE]"), "{told}");
    assert!(!told.contains("0.25"), "{told}");
}

const NAMED: &str = "data: {\"model\":\"acme/secret-7b\",\"choices\":[]}\n\n";
const DONE: &str = "data: [DONE]\n\n";

fn of_chat(pieces: &[&'static str], decimals: Option<u8>) -> (Metered, Late) {
    let (mut body, late) = metered(Route::ChatCompletions, pieces, false);
    (body.takes_out_usage, body.decimals) = (true, decimals);
    (body, late)
}

/// What a caller reads, whether the stream ended cleanly, and whether it is told to be complete.
async fn read(mut body: Metered, late: Late) -> (String, bool, bool) {
    let (mut text, mut clean) = (String::new(), true);
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap()),
            Err(_) => clean = false,
        }
    }
    (text, clean, late.end().unwrap().complete)
}

/// The same of `chat`.
async fn told(pieces: &[&'static str], decimals: Option<u8>) -> (String, bool, bool) {
    let (body, late) = of_chat(pieces, decimals);
    read(body, late).await
}

#[tokio::test]
async fn a_models_server_says_nothing_in_the_gateways_name() {
    let pieces = [
        ": ping\n\n: provenance-statement=AAAA\n\n",
        "data: {\"model\":\"chat\"}\n:provenance-statement=BBBB\n\n",
        ": provenance-",
        "statement=CCCC\r\ndata: {\"model\":\"acme/secret-7b\"}\r\n\r\n",
        "data: \": provenance-statement=\"\n\n",
        ": provenance-statement=DDDD\ndata: [DONE]\n\n: provenance-statement=EEEE\n\n",
    ];
    let passed = ": ping\n\n:\n\ndata: {\"model\":\"chat\"}\n:\n\n:\r\ndata: {\"model\":\"chat\"}\r\n\r\n\
                  data: \": provenance-statement=\"\n\n:\ndata: [DONE]\n\n";
    assert_eq!(told(&pieces, None).await, (passed.to_owned(), true, true));
}

#[tokio::test]
async fn a_stream_that_said_it_is_done_ends_cleanly_and_every_other_breaks() {
    let passed = NAMED.replace("acme/secret-7b", "chat");
    assert_eq!(told(&[NAMED, DONE], None).await, (format!("{passed}{DONE}"), true, true));
    assert_eq!(told(&[NAMED], None).await, (passed.clone(), false, false));
    assert_eq!(told(&[NAMED, ": half"], None).await, (format!("{passed}: half"), false, false));
    assert_eq!(told(&[], None).await, (String::new(), false, false));
}

#[tokio::test]
async fn whoever_hangs_up_after_the_end_was_told_had_the_whole_answer_and_before_it_not() {
    for (read, complete) in [(1, false), (2, true)] {
        let (mut body, late) = of_chat(&[NAMED, DONE, "more"], None);
        for _ in 0..read {
            body.frame().await.unwrap().unwrap();
        }
        drop(body);
        assert_eq!(late.end().unwrap().complete, complete, "{read}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_keeps_its_body_open_delays_the_last_event_by_its_grace() {
    let (mut body, late) = metered(Route::ChatCompletions, &[DONE], true);
    let from = tokio::time::Instant::now();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), DONE);
    assert_eq!(from.elapsed(), GRACE);
    assert!(late.end().unwrap().complete, "it is told before the last event leaves");
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn an_event_that_cannot_be_read_does_not_pass_what_it_must_not_tell() {
    const INFINITE: &str = "data: {\"x\":-Infinity,\"model\":\"acme/secret-7b\"}\n\n";
    const FINE: &str = "data: {\"x\":-Infinity,\"logprobs\":[{\"logprob\":-0.123456}]}\n\n";
    assert_eq!(told(&[INFINITE, DONE], None).await, (String::new(), false, false));
    assert_eq!(told(&[FINE, DONE], Some(2)).await, (String::new(), false, false));
    assert_eq!(told(&["data: ping\n\n", DONE], Some(2)).await, (format!("data: ping\n\n{DONE}"), true, true));
}

#[tokio::test]
async fn a_stream_that_is_cut_has_ended_with_its_last_event_and_not_before() {
    let chat = |text: &str| format!("data: {}\n\n", serde_json::json!({"choices": [{"index": 0, "delta": {"content": text}}]}));
    let block =
        |text: &str| format!("data: {}\n\n", serde_json::json!({"type": "content_block_delta", "index": 0, "delta": {"text": text}}));
    type Event<'a> = &'a dyn Fn(&str) -> String;
    const STOP: &str = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
    let cases: [(Route, Event<'_>, usize, &str); 2] = [(Route::ChatCompletions, &chat, 2, DONE), (Route::Messages, &block, 3, STOP)];
    for (route, event, own, last) in cases {
        // All of it comes at once.
        let text: String = INSTRUCTIONS.split_inclusive(' ').map(event).collect();
        let (mut stream, late) = metered(route, &[&*text.leak()], true);
        stream.guard = Some(Guard::over(INSTRUCTIONS, &crate::event::channel(4).0));
        let mut frames = Vec::new();
        while let Some(frame) = stream.frame().await {
            assert!(late.end().is_none() || frames.last() != Some(&last.to_owned()));
            frames.push(String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap());
            assert_eq!(late.end().is_some(), frames.last().unwrap() == last, "{frames:?}");
        }
        assert!(frames.len() > own + 20 && late.end().unwrap().complete, "{frames:?}");
    }
}

#[tokio::test]
async fn half_a_character_is_read_as_clients_read_it_and_passes_as_it_came() {
    const HALF: &str = "data: {\"x\":\"\\ud83d\",\"choices\":[]}\n\n";
    let (mut stream, _) = metered(Route::ChatCompletions, &[HALF, DONE], false);
    stream.guard = Some(Guard::over(INSTRUCTIONS, &crate::event::channel(1).0));
    assert_eq!(stream.collect().await.unwrap().to_bytes(), format!("{HALF}{DONE}"));
    const NAMED: &str = "data: {\"x\":\"\\ud83d\",\"model\":\"acme/secret-7b\"}\n\n";
    assert_eq!(told(&[NAMED, DONE], None).await.0, format!("data: {{\"x\":\"\u{fffd}\",\"model\":\"chat\"}}\n\n{DONE}"));
}

#[tokio::test]
async fn an_enforcing_guard_lets_nothing_pass_that_it_cannot_hear() {
    const UNREADABLE: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"x\":-Infinity}]}\n\n";
    const TOKENS: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"token_ids\":[5]}]}\n\n";
    let told = async |event: &'static str| {
        let (mut stream, _) = metered(Route::ChatCompletions, &[event, DONE], false);
        stream.guard = Some(Guard::over(INSTRUCTIONS, &crate::event::channel(1).0));
        stream.collect().await.map(|whole| String::from_utf8(whole.to_bytes().to_vec()).unwrap()).map_err(|error| error.to_string())
    };
    assert_eq!(told(UNREADABLE).await.unwrap_err(), "the upstream sent an event that cannot be read");
    // What keeps a connection open is no document.
    for alive in ["data: \n\n", "data: ping\n\n", ": ping\n\n"] {
        assert_eq!(told(alive).await.unwrap(), format!("{alive}{DONE}"));
    }
    let recited: &'static str = format!("data: {INSTRUCTIONS}\n\n").leak();
    assert!(told(recited).await.is_err());
    assert_eq!(told(TOKENS).await.unwrap(), format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"a\"}}}}]}}\n\n{DONE}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_long_event_is_read_beside_the_others_in_its_order_and_its_memory_comes_back() {
    let event = |length: usize| -> &'static str { format!("data: {{\"model\":\"theirs\",\"x\":\"{}\"}}\n\n", "a".repeat(length)).leak() };
    let memory = Memory::default();
    let events = [event(1), event(EVENT + 1), event(2), event(heavy::MANY), event(3), DONE];
    let (mut stream, late) = metered(Route::ChatCompletions, &events, false);
    (stream.share, stream.splitter) = (memory.share().unwrap(), Splitter::new(4 * EVENT));
    let mut lengths = Vec::new();
    let mut held = Vec::new();
    while let Some(frame) = stream.frame().await {
        lengths.push(frame.unwrap().into_data().unwrap().len());
        held.push(!memory.is_whole());
    }
    let around = event(0).len() - "theirs".len() + "chat".len();
    assert_eq!(
        lengths,
        [1, EVENT + 1, 2, heavy::MANY, 3].map(|length| length + around).into_iter().chain([DONE.len()]).collect::<Vec<_>>()
    );
    assert!(!held.last().unwrap(), "{held:?}");
    assert!(late.end().unwrap().complete);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_long_last_event_that_nothing_ends_waits_for_its_turn_too() {
    let cut_short: &'static str = format!("data: {{\"model\":\"theirs\",\"x\":\"{}\"}}", "a".repeat(heavy::MANY)).leak();
    let (stream, late) = metered(Route::ChatCompletions, &[cut_short], false);
    let mut turns = Vec::new();
    for _ in 0..std::thread::available_parallelism().unwrap().get() {
        turns.push(heavy::turn().await);
    }
    let reading = tokio::spawn(stream.collect());
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert!(!reading.is_finished());
    assert!(late.end().is_none());
    drop(turns);
    assert_eq!(reading.await.unwrap().unwrap_err().to_string(), "the upstream's stream broke off");
    assert!(!late.end().unwrap().complete);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_long_event_of_more_values_than_a_whole_answer_may_have_is_not_understood() {
    let many: &'static str = format!("data: {{\"model\":\"theirs\",\"x\":[{}1]}}\n\n", "1,".repeat(EVENT)).leak();
    let (mut stream, _) = metered(Route::ChatCompletions, &[many, DONE], false);
    stream.splitter = Splitter::new(4 * EVENT);
    assert_eq!(stream.collect().await.unwrap_err().to_string(), "the upstream sent an event that cannot be read");
}

const INSTRUCTIONS: &str = "You are the concierge of the Hotel Bellevue. Never offer a discount of more than twelve per cent, and only to \
    guests who have stayed with us before. The code for the staff entrance is changed every Monday.";

/// What a caller reads of a stream whose upstream recites its instructions, word by word, and goes on, and whether it ended cleanly and was complete.
async fn recited(route: Route, first: &str, event: impl Fn(&str) -> String) -> (String, bool, bool) {
    let words = INSTRUCTIONS.split_inclusive(' ').chain(["and", " so", " on", " it", " went"]);
    let pieces: Vec<&'static str> = std::iter::once(first.to_owned()).chain(words.map(event)).map(|piece| &*piece.leak()).collect();
    let (mut body, late) = metered(route, &pieces, true);
    let (events, _reader) = crate::event::channel(4);
    body.guard = Some(Guard::over(INSTRUCTIONS, &events));
    read(body, late).await
}

#[tokio::test]
async fn a_stream_that_recites_its_instructions_ends_as_if_a_filter_of_the_server_had_stopped_it() {
    let chat =
        |word: &str| format!("data: {}\n\n", serde_json::json!({"model": "theirs", "choices": [{"index": 0, "delta": {"content": word}}]}));
    let (text, clean, complete) = recited(Route::ChatCompletions, ": hi\n\n", chat).await;
    assert!(clean && complete);
    assert!(text.ends_with("\"finish_reason\":\"content_filter\"}]}\n\ndata: [DONE]\n\n"), "{text}");
    assert!(text.contains("Bellevue") && !text.contains("Monday") && !text.contains("went") && !text.contains("theirs"), "{text}");

    let response = |kind: &str, more: Value| format!("event: {kind}\ndata: {more}\n\n");
    let created = response(
        "response.created",
        serde_json::json!({"type": "response.created", "response": {"id": "r1", "model": "theirs", "output": []}}),
    );
    let delta =
        |word: &str| response("response.output_text.delta", serde_json::json!({"type": "response.output_text.delta", "delta": word}));
    let (text, clean, complete) = recited(Route::Responses, &created, delta).await;
    assert!(clean && complete && !text.contains("Monday") && !text.contains("theirs"), "{text}");
    let last = text.rsplit("data: ").next().unwrap();
    assert!(last.contains("\"r1\"") && last.contains("content_filter") && last.contains("response.incomplete"), "{last}");

    let delta = |word: &str| {
        response(
            "content_block_delta",
            serde_json::json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}),
        )
    };
    let (text, clean, complete) = recited(Route::Messages, ": hi\n\n", delta).await;
    assert!(clean && complete && !text.contains("Monday"), "{text}");
    assert!(text.contains("\"stop_reason\":\"refusal\"") && text.ends_with("{\"type\":\"message_stop\"}\n\n"), "{text}");
}

#[test]
fn an_upstream_cannot_tell_more_tokens_than_can_be_added_up() {
    let told = |text| usage_of(&Route::ChatCompletions, &serde_json::from_str(text).unwrap()).unwrap();
    let huge = told(r#"{"usage":{"prompt_tokens":18446744073709551615,"completion_tokens":4294967297}}"#);
    assert_eq!(huge, Usage { input: MOST_TOKENS, output: MOST_TOKENS });
    let most = told(r#"{"usage":{"prompt_tokens":4294967296,"completion_tokens":0}}"#);
    assert_eq!(most, Usage { input: MOST_TOKENS, output: 0 });
}

#[tokio::test]
async fn an_error_in_the_middle_of_a_stream_says_that_there_was_one_and_none_of_its_words() {
    let told = async |route, event: &'static str| {
        let (stream, _) = metered(route, &[event, "data: [DONE]\n\n"], false);
        String::from_utf8(stream.collect().await.unwrap().to_bytes().to_vec()).unwrap()
    };
    const CHAT: &str = "data: {\"error\":{\"message\":\"out of memory on gpu-7.internal\",\"type\":\"server_error\",\"code\":500}}\n\n";
    const BARE: &str = "data: {\"error\":\"gpu-7.internal\"}\n\n";
    const MESSAGES: &str =
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"gpu-7.internal\"}}\n\n";
    for (route, event, left) in [
        (Route::ChatCompletions, CHAT, "\"type\":\"server_error\",\"code\":500"),
        (Route::Completions, BARE, "\"error\":{"),
        (Route::Messages, MESSAGES, "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\""),
    ] {
        let told = told(route, event).await;
        assert!(told.contains(left) && told.contains("did not give a usable answer") && !told.contains("internal"), "{told}");
    }
    const WORD: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"error\\\"\"}}],\"error\":null}\n\n";
    assert!(told(Route::ChatCompletions, WORD).await.starts_with(WORD));
    const FAILED: &str = "data: {\"type\":\"response.failed\",\"response\":{\"error\":{\"message\":\"too long\"}}}\n\n";
    assert!(told(Route::Responses, FAILED).await.contains("too long"));
}
