use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use http::header::{CONTENT_TYPE, TRAILER};
use http::{HeaderValue, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::infer::Payload;
use crate::prove::config::Terms;
use crate::prove::ledger::tests::{House, durable, house, now, statement_of, want};
use crate::prove::{Receipt, Want};
use crate::trail::End;
use crate::verify::log::verify_statement;

const WANT: (&str, &str) = ("provenance-want", "mode=async");
const TE: (&str, &str) = ("te", "gzip, Trailers");

const CHAT: [&str; 3] = ["data: {\"a\":1}\n\n", ": ping\n\n", "data: [DONE]\n\n"];

/// A stream of these pieces that, where it is whole, tells its end before its last piece leaves, as language streams do.
async fn stream(house: &House, terms: &Terms, want: Want, media_type: &'static str, pieces: &[&'static str], whole: bool) -> Receipt {
    let late = Late::default();
    let (telling, mut left) = (late.clone(), Vec::from(pieces).into_iter());
    let frames = std::iter::from_fn(move || match left.next() {
        Some(piece) => {
            if whole && left.len() == 0 {
                telling.ended(End { usage: None, complete: true });
            }
            Some(Ok(Frame::data(Bytes::from_static(piece.as_bytes()))))
        }
        None if whole => None,
        None => {
            telling.ended(End { usage: None, complete: false });
            Some(Err(Broken::from("it broke off")))
        }
    });
    let body = Body::stream(StreamBody::new(futures_util::stream::iter(frames)));
    let slot = house.ledger.reserve(terms, want).unwrap();
    let head = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(media_type))]);
    house.ledger.prove_parts(slot, StatusCode::OK, head, Payload::Stream(body, late), None, now()).await.unwrap()
}

async fn events(house: &House, want: Want, pieces: &[&'static str], whole: bool) -> Receipt {
    stream(house, &Terms::default(), want, "text/event-stream; charset=utf-8", pieces, whole).await
}

/// What arrived, and whether it broke.
async fn read(receipt: Receipt) -> (String, HeaderMap, bool) {
    let mut body = receipt.into_parts().2;
    let (mut bytes, mut trailers, mut broke) = (Vec::new(), HeaderMap::new(), false);
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => bytes.extend_from_slice(&data),
            Ok(Err(frame)) => trailers = frame.into_trailers().unwrap(),
            Err(_) => broke = true,
        }
    }
    (String::from_utf8(bytes).unwrap(), trailers, broke)
}

/// The line of the statement, and the stream without it.
fn taken_out(stream: &str) -> (Vec<u8>, String) {
    let from = stream.rfind(": provenance-statement=").unwrap();
    let length = stream[from..].find(['\r', '\n']).unwrap();
    let line = &stream[from..from + length];
    let end = if stream[from + length..].starts_with("\r\n") { 2 } else { 1 };
    let statement = STANDARD.decode(line.strip_prefix(": provenance-statement=").unwrap()).unwrap();
    (statement, [&stream[..from], &stream[from + length + end..]].concat())
}

/// How many events there are in these pieces, and the commitment to their root that a statement must hold which says `view`.
fn root(house: &House, view: &Value, pieces: &[&str]) -> (u64, String) {
    let mut events = Events::new();
    pieces.iter().for_each(|piece| events.update(piece.as_bytes()));
    let (count, root) = events.finish();
    let salting = house.ledger.0.signer.salts.of_subject(&now().who.unwrap(), view["seq"].as_u64().unwrap()).unwrap();
    (count, salting.commit(view["id"].as_str().unwrap().parse().unwrap(), "events", &root).to_string())
}

fn told(view: &Value) -> (u64, String) {
    (view["resp"]["n_events"].as_u64().unwrap(), view["resp"]["events_commit"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn trailers_come_where_te_says_so_and_nowhere_else() {
    let house = house();
    for (want, there) in [(want(&[]), false), (want(&[WANT]), false), (want(&[TE]), true), (want(&[TE, WANT]), true)] {
        let receipt = events(&house, want, &CHAT, true).await;
        assert_eq!(receipt.headers().get_all(TRAILER).iter().count(), if there { 2 } else { 0 });
        let (stream, trailers, broke) = read(receipt).await;
        assert_eq!((trailers.contains_key("provenance-statement"), trailers.contains_key("content-digest")), (there, there));
        assert_eq!((trailers.is_empty(), broke), (!there, false));
        assert_eq!(stream.contains("provenance"), want.in_stream());
        if there {
            let view = verify_statement(&statement_of(&trailers), &house.ledger.vkeys()[1]).unwrap().view();
            assert_eq!(told(&view), root(&house, &view, &CHAT));
            assert_eq!(told(&view).0, 3);
        }
    }
}

#[tokio::test]
async fn who_wants_it_finds_the_statement_inside_the_last_event() {
    let house = house();
    let stop = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
    let crlf = "event: response.completed\r\ndata: {\"type\":\"response.completed\"}\r\n\r\n";
    let endings = [
        ("data: [DONE]\n\n", "\ndata: [DONE]\n\n"),
        (stop, "\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"),
        (crlf, "\r\nevent: response.completed\r\ndata: {\"type\":\"response.completed\"}\r\n\r\n"),
        ("data: [DONE]\r\r", "\rdata: [DONE]\r\r"),
        ("data: [DONE]", "\ndata: [DONE]"),
    ];
    for before in ["data: 1\n\n", "data: 1\r\r", "data: 1\r\n\r\n"] {
        for (last, ends) in endings {
            let pieces = [before, last];
            let receipt = events(&house, want(&[WANT]), &pieces, true).await;
            let id = receipt.id().unwrap();
            let (stream, trailers, _) = read(receipt).await;
            assert!(trailers.is_empty());
            let rest = stream.strip_prefix(before).unwrap();
            assert!(rest.starts_with(": provenance-statement=") && rest.ends_with(ends), "no block of its own: {stream:?}");
            let (entry, without) = taken_out(&stream);
            assert_eq!(without, pieces.concat());
            let statement = verify_statement(&entry, &house.ledger.vkeys()[1]).unwrap();
            assert_eq!(statement.id, id);
            let view = statement.view();
            assert_eq!((told(&view), told(&view).0), (root(&house, &view, &pieces), 2));
            assert_eq!(view["resp"]["len"], without.len());
        }
    }
}

#[tokio::test]
async fn a_stream_without_a_want_passes_byte_for_byte() {
    let house = house();
    assert_eq!(read(events(&house, want(&[]), &CHAT, true).await).await.0, CHAT.concat());
}

#[tokio::test]
async fn no_line_is_put_where_it_could_break_a_client() {
    let house = house();
    // Comments alone, two blocks at once, the rest of a block.
    for last in [": bye\n\n", "data: 2\n\ndata: [DONE]\n\n", "\n"] {
        let (stream, ..) = read(events(&house, want(&[WANT]), &["data: 1\n\n", last], true).await).await;
        assert_eq!(stream, ["data: 1\n\n", last].concat());
    }
    let (stream, ..) = read(events(&house, want(&[WANT]), &["data: 1\n", "data: [DONE]\n\n"], true).await).await;
    assert_eq!(stream, "data: 1\ndata: [DONE]\n\n");
    // Nor in what are no events.
    let receipt = self::stream(&house, &Terms::default(), want(&[WANT]), "application/json", &["{\"a\":", "1}"], true).await;
    assert_eq!(read(receipt).await.0, "{\"a\":1}");
    let view = house.shown().pop().unwrap();
    assert_eq!((&view["kind"], view["resp"].get("n_events"), view["resp"].get("events_commit")), (&Value::from("inference"), None, None));
}

#[tokio::test]
async fn a_stream_that_was_cut_commits_to_its_prefix_and_carries_no_line() {
    let house = house();
    let pieces = ["data: 1\n\n", "data: 2\n\ndata: cu"];
    let (stream, trailers, broke) = read(events(&house, want(&[WANT, TE]), &pieces, false).await).await;
    assert_eq!((stream, trailers.is_empty(), broke), (pieces.concat(), true, true));
    let view = house.shown().pop().unwrap();
    assert_eq!((&view["kind"], told(&view), told(&view).0), (&Value::from("aborted"), root(&house, &view, &pieces), 3));
    drop(events(&house, want(&[WANT]), &pieces, true).await);
    let view = house.shown().pop().unwrap();
    assert_eq!((&view["kind"], told(&view)), (&Value::from("aborted"), root(&house, &view, &[])));
}

#[tokio::test]
async fn a_grpc_stream_has_its_trailers_whatever_te_says() {
    let house = house();
    let late = Late::default();
    late.ended(End { usage: None, complete: true });
    let body = Body::stream(StreamBody::new(futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"message")))])));
    let slot = house.ledger.reserve(&Terms::default(), want(&[WANT])).unwrap();
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
    let head = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/grpc"))]);
    let payload = Payload::Stream(body, late);
    let receipt = house.ledger.prove_parts(slot, StatusCode::OK, head, payload, Some(trailers), now()).await.unwrap();
    assert!(!receipt.headers().contains_key(TRAILER));
    let (stream, trailers, _) = read(receipt).await;
    assert_eq!((&stream[..], &trailers["grpc-status"]), ("message", &HeaderValue::from_static("0")));
    assert!(!trailers.contains_key("provenance-statement"));
    verify_statement(&STANDARD_NO_PAD.decode(&trailers["provenance-statement-bin"]).unwrap(), &house.ledger.vkeys()[1]).unwrap();
}

#[tokio::test]
async fn only_the_last_event_waits_for_the_log() {
    for (terms, want) in [(durable(), want(&[])), (Terms::default(), want(&[("provenance-want", "mode=durable")]))] {
        let house = house();
        let mut body = stream(&house, &terms, want, "text/event-stream", &CHAT, true).await.into_parts().2;
        let before = house.ledger.counters().entries;
        for piece in &CHAT[..2] {
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), piece);
        }
        assert_eq!(house.ledger.counters().entries, before);
        assert!(body.frame().await.unwrap().unwrap().into_data().unwrap().ends_with(b"data: [DONE]\n\n"));
        let after = house.ledger.counters();
        assert_eq!((after.entries, after.syncs > 0), (before + 1, true));
        assert!(body.frame().await.is_none());
        assert_eq!(house.ledger.counters().slots, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn however_a_stream_is_cut_into_frames_its_statement_says_the_same(cuts in proptest::collection::vec(0_usize..70, 0..8)) {
        const STREAM: &str = "\u{FEFF}data: 1\r\n\r\n: ping\n\nevent: e\rdata: 2\r\r\ndata: caf\u{e9}\n\n\ndata: [DONE]\n\n";
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| STREAM.is_char_boundary(*cut)).chain([0, STREAM.len()]).collect();
        cuts.sort_unstable();
        let pieces: Vec<&'static str> = cuts.windows(2).map(|pair| &STREAM[pair[0]..pair[1]]).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (told, expected) = runtime.block_on(async {
            let house = house();
            let (stream, ..) = read(events(&house, want(&[]), &pieces, true).await).await;
            assert_eq!(stream, STREAM);
            let view = house.shown().pop().unwrap();
            (told(&view), root(&house, &view, &[STREAM]))
        });
        prop_assert_eq!(told, expected);
    }
}

#[tokio::test]
async fn a_stream_that_is_served_without_its_entry_carries_no_statement() {
    let terms = Terms { on_failure: OnFailure::Serve, ..durable() };
    for late in [false, true] {
        let house = house();
        let receipt = stream(&house, &terms, want(&[WANT, TE]), "text/event-stream", &CHAT, true).await;
        let mut body = receipt.into_parts().2;
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let second = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let last = if late {
            let mut last = std::pin::pin!(body.frame());
            // Its entry is written and waits for a sync, unless that is over already; then it stands, however far it came.
            let early = futures_util::FutureExt::now_or_never(last.as_mut());
            house.ledger.poison();
            match early {
                Some(last) => last,
                None => last.await,
            }
        } else {
            house.ledger.poison();
            body.frame().await
        };
        let last = last.unwrap().unwrap().into_data().unwrap();
        let trailers = body.frame().await.and_then(|frame| frame.unwrap().into_trailers().ok()).unwrap_or_default();
        assert_eq!(trailers.contains_key("provenance-statement"), late);
        assert_eq!(house.ledger.counters().gaps, u64::from(!late));
        let whole = [&first[..], &second[..], &last[..]].concat();
        let whole = String::from_utf8(whole).unwrap();
        assert_eq!(if late { taken_out(&whole).1 } else { whole }, CHAT.concat());
    }
}
