use bytes::Bytes;
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn refused(text: &[u8]) -> Error {
    parse(text, &Limits::default()).unwrap_err()
}

#[test]
fn a_key_that_stands_twice_is_refused_at_any_depth_and_however_it_is_written() {
    assert!(matches!(refused(br#"{"a":1,"a":2}"#), Error::DuplicateKey(_)));
    assert!(matches!(refused(br#"[{"x":{"a":1,"\u0061":2}}]"#), Error::DuplicateKey(_)));
    assert!(parse(br#"[{"a":1},{"a":2}]"#, &Limits::default()).is_ok());
}

#[test]
fn what_readers_disagree_about_is_refused() {
    for text in [
        &b"\xff"[..],
        b"\"\xc3\x28\"",
        b"\"\xed\xa0\x80\"",
        br#""\ud800""#,
        br#""\udc00""#,
        br#""\ud800x""#,
        br#"{"\ud800":1}"#,
        b"{\"\xff\":1}",
        b"NaN",
        b"[Infinity]",
        b"[-Infinity]",
        b"[01]",
        b"[1.]",
        b"[.5]",
        b"[+1]",
        b"[0x1]",
        b"[1,]",
        b"{\"a\":1,}",
        b"{a:1}",
        b"{'a':1}",
        b"// c\n1",
        b"\"a\nb\"",
        b"\xef\xbb\xbf{}",
        b"\0",
    ] {
        assert!(matches!(refused(text), Error::Syntax(_)), "{:?} gave {:?}", String::from_utf8_lossy(text), refused(text));
    }
    assert!(matches!(refused(b"[1"), Error::Truncated(_)));
    assert!(matches!(refused(b"{\"a\""), Error::Truncated(_)));
    assert!(matches!(refused(b"{} {}"), Error::Trailing(_)));
    assert!(matches!(refused(b"{}\0"), Error::Trailing(_)));
    assert_eq!(refused(b""), Error::Empty);
    assert_eq!(refused(b" \r\n\t"), Error::Empty);
}

#[test]
fn numbers_past_binary64_are_refused() {
    assert!(matches!(refused(b"[1e400]"), Error::NumberRange(_)));
    assert!(matches!(refused(b"[-1e309]"), Error::NumberRange(_)));
    assert_eq!(parse(b"18446744073709551615", &Limits::default()).unwrap(), json!(u64::MAX));
    assert_eq!(parse(b"1e-400", &Limits::default()).unwrap(), json!(0.0));
}

#[test]
fn a_number_may_have_as_many_digits_as_the_limit_and_no_more_wherever_it_stands() {
    for before in 0..300 {
        let number = |length: usize| format!("[{}0.{}]", " ".repeat(before), "1".repeat(length - 2));
        assert!(parse(number(NUMBER).as_bytes(), &Limits::default()).is_ok());
        assert_eq!(refused(number(NUMBER + 1).as_bytes()), Error::NumberLength(before + 1));
        let text = format!("[{}\"\\\"{}\", {}]", " ".repeat(before), "1".repeat(1000), "1".repeat(20));
        assert!(parse(text.as_bytes(), &Limits::default()).is_ok(), "digits in a string are no number");
    }
}

#[test]
fn a_string_that_never_ends_is_refused_even_beside_many_digits() {
    for end in ["", "\\", "\\\"", "x"] {
        assert!(parse(format!("[\"{}{end}", "1".repeat(1000)).as_bytes(), &Limits::default()).is_err());
    }
}

#[test]
fn a_document_may_nest_to_the_limit_and_no_deeper() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(parse(nested(DEPTH).as_bytes(), &Limits::default()).is_ok());
    assert!(matches!(refused(nested(DEPTH + 1).as_bytes()), Error::TooDeep(_)));
    assert!(matches!(refused("[".repeat(1_000_000).as_bytes()), Error::TooDeep(_)));
    assert!(matches!(refused("{\"a\":".repeat(1_000).as_bytes()), Error::TooDeep(_)));
    let deepest = Limits { depth: usize::MAX, ..Limits::default() };
    assert!(parse(nested(DEPTH_MAX).as_bytes(), &deepest).is_ok());
    assert!(matches!(parse(nested(DEPTH_MAX + 1).as_bytes(), &deepest), Err(Error::TooDeep(_))));
    assert!(parse(b"1", &Limits { depth: 0, ..Limits::default() }).is_ok());
}

#[test]
fn a_document_may_have_as_many_values_as_the_limit_and_no_more() {
    let limits = |values| Limits { values, ..Limits::default() };
    let five = b"[1,2,3,4,5]";
    assert!(parse(five, &limits(6 + ARRAY_COST)).is_ok());
    assert!(matches!(parse(five, &limits(5 + ARRAY_COST)), Err(Error::TooManyValues(_))));
    let object = br#"{"a":null}"#;
    assert!(parse(object, &limits(2 + MEMBER_COST + OBJECT_COST)).is_ok());
    assert!(matches!(parse(object, &limits(1 + MEMBER_COST + OBJECT_COST)), Err(Error::TooManyValues(_))));
    assert!(size_of::<Value>() <= 80, "the limit of values is made for this size");
    assert_eq!(Limits::for_body(0).values, VALUES_MIN);
    let picture = serde_json::to_vec(&vec![0.25; 150_528]).unwrap();
    assert!(matches!(refused(&picture), Error::TooManyValues(_)));
    assert!(parse(&picture, &Limits::for_body(4 * BODY)).is_ok());
}

#[test]
fn an_error_says_where_and_nothing_of_what() {
    let error = refused(b"{\n  \"secret\": 1,\n  \"secret\": 2\n}");
    let Error::DuplicateKey(at) = error else { panic!("{error:?}") };
    assert!((19..=28).contains(&at), "{at}");
    assert!(!error.to_string().contains("secret"));
}

#[test]
fn an_edit_leaves_every_other_byte() {
    let body = Bytes::from_static(b" { \"a\" : 1.50 ,\n\"mod\\u0065l\":  \"x\\n\" , \"messages\":[{\"model\":\"y\"}] }\n");
    let edited = edit(&body, &[("model", Edit::set_text("up/\"stream"))]).unwrap();
    assert_eq!(&edited[..], b" { \"a\" : 1.50 ,\n\"mod\\u0065l\":  \"up/\\\"stream\" , \"messages\":[{\"model\":\"y\"}] }\n");
    assert_eq!(edit(&body, &[("missing", Edit::replace_text("x"))]).unwrap(), body);
}

#[test]
fn an_edit_adds_what_is_missing() {
    let ask = [("stream_options", Edit::SetIn("include_usage", "true".into())), ("model", Edit::set_text("m"))];
    let edited = |text: &'static str| {
        let bytes = edit(&Bytes::from_static(text.as_bytes()), &ask).unwrap();
        parse(&bytes, &Limits::default()).unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    };
    assert_eq!(edited("{}"), r#"{"stream_options":{"include_usage":true},"model":"m"}"#);
    assert_eq!(edited(r#"{"a":1 }"#), r#"{"a":1,"stream_options":{"include_usage":true},"model":"m" }"#);
    assert_eq!(edited(r#"{"stream_options":null,"model":1}"#), r#"{"stream_options":{"include_usage":true},"model":"m"}"#);
    assert_eq!(
        edited(r#"{"model":1,"stream_options": { "x":1, "include_usage" :false}}"#),
        r#"{"model":"m","stream_options": { "x":1, "include_usage" :true}}"#
    );
    for text in ["[]", "1", "", "{\"a\"", "{\"stream_options\":3}"] {
        assert_eq!(edit(&Bytes::from_static(text.as_bytes()), &ask), None);
    }
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter_map("finite", |number| Number::from_f64(number).map(Value::Number)),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((".{0,6}", inner), 0..6).prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_valid_reads_as_serde_json_reads_it(value in value(), pretty: bool) {
        let text = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap();
        prop_assert_eq!(parse(&text, &Limits::default()).unwrap(), serde_json::from_slice::<Value>(&text).unwrap());
    }

    #[test]
    fn any_bytes_are_refused_or_read_as_serde_json_reads_them(text in "[\\[\\]{}\",:0-9a-c.eE+\\\\u \\-]{0,40}") {
        if let Ok(value) = parse(text.as_bytes(), &Limits::default()) {
            prop_assert_eq!(value, serde_json::from_str::<Value>(&text).unwrap());
        }
    }

    #[test]
    fn an_edit_changes_one_member_alone(value in value(), new in ".{0,8}") {
        let text = Bytes::from(serde_json::to_vec_pretty(&value).unwrap());
        match (edit(&text, &[("model", Edit::set_text(&new))]), value) {
            (Some(edited), Value::Object(mut members)) => {
                members.insert("model".into(), new.into());
                prop_assert_eq!(parse(&edited, &Limits::default()).unwrap(), Value::Object(members));
            }
            (None, value) => prop_assert!(!value.is_object()),
            (Some(_), _) => prop_assert!(false),
        }
    }
}

/// Not a gate: prints what a chat of 1 KB costs. Run with `--ignored --nocapture`, optimised.
#[test]
#[ignore = "a measurement"]
fn what_a_chat_costs() {
    let chat = serde_json::to_vec(&json!({
        "model": "chat", "stream": true, "temperature": 0.7, "max_tokens": 256,
        "messages": [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "hello ".repeat(140)}],
    }))
    .unwrap();
    let start = std::time::Instant::now();
    for _ in 0..100_000 {
        std::hint::black_box(parse(std::hint::black_box(&chat), &Limits::default())).unwrap();
    }
    println!("{} bytes: {:?} each", chat.len(), start.elapsed() / 100_000);
}

#[test]
fn of_a_document_that_is_skimmed_the_members_that_are_kept_are_there_and_no_others() {
    let text = br#"{"id":"a","usage":{"n":[1,{"a":2.5}]},"choices":[{"usage":1}],"response":null}"#;
    let skimmed = parse_members(text, &Limits::default(), &["usage", "response", "message"]).unwrap();
    assert_eq!(skimmed, json!({"usage": {"n": [1, {"a": 2.5}]}, "response": null}));
    assert_eq!(parse_members(b"[1]", &Limits::default(), &["usage"]).unwrap(), json!({}));
    let many: String = (0..40).map(|n| format!("\"k{n}\":1,")).collect();
    assert!(parse_members(format!("{{{many}\"usage\":1}}").as_bytes(), &Limits::default(), &["usage"]).is_ok());
    for again in ["k0", "k15", "k16", "k39", "usage"] {
        let text = format!("{{\"usage\":1,{many}\"{again}\":1}}");
        assert!(matches!(parse_members(text.as_bytes(), &Limits::default(), &["usage"]), Err(Error::DuplicateKey(_))), "{again}");
    }
}

#[test]
fn halves_of_characters_are_replaced_and_nothing_else() {
    let without = |text: &str| without_halves(text.as_bytes()).map(|bytes| String::from_utf8(bytes).unwrap());
    for (text, mended) in [
        (r#"{"a":"\ud83d"}"#, r#"{"a":"\ufffd"}"#),
        (r#"{"a":"\ude00\ud83d\ude00\ud83dx"}"#, r#"{"a":"\ufffd\ud83d\ude00\ufffdx"}"#),
        (r#"["\ud83d\n","\ud83d\u0041"]"#, r#"["\ufffd\n","\ufffd\u0041"]"#),
    ] {
        assert_eq!(without(text).as_deref(), Some(mended), "{text}");
    }
    for whole in [r#"{"a":"\ud83d\ude00"}"#, r#"{"a":"\\ud83d"}"#, r#"{"a":"\u0041"}"#, r#"{"a":"\ud8"#, "{}", "\\", ""] {
        assert_eq!(without(whole), None, "{whole}");
    }
}

proptest! {
    #[test]
    fn without_halves_whatever_it_is_given(bytes in proptest::collection::vec(any::<u8>(), 0..40), text in r"(\\ud83d|\\ude00|\\\\|\\u00e9|a){0,8}") {
        let _ = without_halves(&bytes);
        let text = format!("\"{text}\"");
        let mended = without_halves(text.as_bytes()).unwrap_or_else(|| text.clone().into_bytes());
        prop_assert!(serde_json::from_slice::<String>(&mended).is_ok(), "{text}");
    }

    #[test]
    fn what_is_skimmed_is_refused_exactly_where_it_would_be_parsed(
        text in r#"[\[{]{0,3}("(a|b|\\u0061)":([0-9]{1,3}|-1|1e400|1\.5|"x"|null|true|\{\}|\[1,2\]|\[\])[,}]?){0,5}[\]},]{0,3}"#,
        values in 0_usize..40,
        depth in 0_usize..5,
    ) {
        let limits = Limits { depth, values, number: 8 };
        let parsed = parse(text.as_bytes(), &limits);
        let skimmed = parse_members(text.as_bytes(), &limits, &["a"]);
        prop_assert_eq!(parsed.as_ref().err(), skimmed.as_ref().err());
        if let (Ok(parsed), Ok(skimmed)) = (parsed, skimmed) {
            prop_assert_eq!(parsed.get("a"), skimmed.get("a"));
        }
    }
}
