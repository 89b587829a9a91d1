//! The strict parse of JSON, the edits of a checked buffer, and the readers of requests and answers over what was parsed. What is accepted
//! every lax parser reads alike.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use portcullis::wire::json::{Edit, Error, Limits, edit, parse, parse_members};
use portcullis::wire::openai::embeddings::Request;
use portcullis::wire::openai::{self, Kind};
use portcullis::wire::{Said, anthropic};
use portcullis_fuzz::{for_json, seed, seeds, within};
use serde_json::Value;

fuzz_target!(init: seeds(made), |data: &[u8]| {
    let Some((depth, bytes)) = data.split_first() else { return };
    let limits = Limits { depth: usize::from(*depth), ..Limits::for_body(bytes.len()) };
    let read = within(for_json(bytes.len()), || parse(bytes, &limits));
    let theirs = serde_json::from_slice::<Value>(bytes);
    let document = match (read, theirs) {
        (Ok(ours), Ok(theirs)) => {
            assert_eq!(ours, theirs, "a lax parser reads something else");
            ours
        }
        (Ok(_), Err(error)) => panic!("a lax parser refuses it: {error}"),
        (Err(error), theirs) => {
            assert!(error.offset().is_none_or(|at| at <= bytes.len()));
            let stricter = matches!(
                error,
                Error::DuplicateKey(_) | Error::TooDeep(_) | Error::TooManyValues(_) | Error::NumberLength(_) | Error::NumberRange(_)
            );
            assert!(stricter || theirs.is_err(), "refused without a reason that is told: {error}");
            assert_eq!(parse_members(bytes, &limits, &["model"]).err().is_some(), true, "one reading accepts what the other refuses");
            return;
        }
    };
    let kept = parse_members(bytes, &limits, &["model", "stream"]).expect("one reading refuses what the other accepts");
    for key in ["model", "stream"] {
        assert_eq!(kept.get(key), document.get(key));
    }
    edits(bytes, &document);
    readers(&document);
});

/// An edit sets what it says, and leaves the rest as it was.
fn edits(bytes: &[u8], document: &Value) {
    let bytes = Bytes::copy_from_slice(bytes);
    let asked =
        [("model", Edit::set_text("m\"")), ("stream", Edit::Replace("true".to_owned())), ("options", Edit::SetIn("usage", "1".to_owned()))];
    let Some(edited) = edit(&bytes, &asked) else {
        let may = document
            .as_object()
            .is_none_or(|members| members.get("options").is_some_and(|options| !options.is_object() && !options.is_null()));
        return assert!(may, "an object is not edited");
    };
    let mut expected = document.clone();
    let members = expected.as_object_mut().expect("only objects are edited");
    members.insert("model".to_owned(), "m\"".into());
    if let Some(stream) = members.get_mut("stream") {
        *stream = true.into();
    }
    let options = members.entry("options").or_insert(Value::Null);
    if options.is_null() {
        *options = Value::Object(serde_json::Map::new());
    }
    options["usage"] = 1.into();
    let read = parse(&edited, &Limits { depth: 120, ..Limits::for_body(edited.len()) }).expect("what was edited is strict");
    assert_eq!(read, expected);
    assert_eq!(edit(&bytes, &[]), Some(bytes).filter(|_| document.is_object()));
}

fn readers(document: &Value) {
    for kind in [Kind::Chat, Kind::Completions, Kind::Responses, Kind::Embeddings] {
        // Both or the lax one alone.
        let (lax, strict) = (openai::asked(kind, document), openai::asked_strictly(kind, document));
        assert!(lax.is_ok() || strict.is_err(), "{kind:?}");
    }
    assert!(anthropic::asked(document).is_ok() || anthropic::asked_strictly(document).is_err());
    let _ = (openai::usage(document), anthropic::usage(document), openai::is_usage_only(document), Said::of(document));
    if let Ok(request) = Request::read(document) {
        let _ = within(1 << 24, || request.tensors(64).map(|tensors| tensors.len()));
    }
    let mut rounded = document.clone();
    openai::round_logprobs(&mut rounded, 2);
    openai::strip_logprobs(&mut rounded);
    assert!(!openai::strip_logprobs(&mut rounded), "what was stripped has none");
}

fn made() -> Vec<Vec<u8>> {
    let documents = [
        r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"n":2,"logprobs":true,"top_logprobs":3,"max_tokens":5}"#,
        r#"{"model":"m","prompt":["a",[1,2]],"best_of":3,"logprobs":1,"options":{"usage":0}}"#,
        r#"{"model":"m","input":["a","b"],"encoding_format":"base64","dimensions":8}"#,
        r#"{"model":"m","input":[[1,2,3],[4]]}"#,
        r#"{"model":"m","input":"hi","max_output_tokens":4,"include":["message.output_text.logprobs"]}"#,
        r#"{"model":"m","max_tokens":4,"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],"options":null}"#,
        r#"{"id":"x","choices":[{"index":0,"message":{"content":"a"},"logprobs":{"content":[{"token":"a","logprob":-0.123456,"top_logprobs":[]}]}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#,
        r#"{"type":"message_delta","delta":{"text":"a"},"usage":{"input_tokens":1,"output_tokens":2}}"#,
        r#"{"a":1,"\u0061":2}"#,
        r#"[1e400,-0,0.1e-7,123456789012345678901234567890,"\ud83d\ude00\ud800"]"#,
        " [[[[[[]]]],{\"\":{}}],null,true,false]\n",
    ];
    documents.iter().map(|document| seed(64, document)).collect()
}
