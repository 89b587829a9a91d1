use http::{HeaderName, HeaderValue};
use http_body::Frame;
use http_body_util::StreamBody;

use super::*;
use crate::wire::Body;

const UNSAID: Unsaid<'_> = Unsaid { name: Some(("acme/theirs", "ours")), credential: None };
const OK: &[(&str, &str)] = &[("grpc-status", "0")];

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())).collect()
}

/// A reply of these pieces, and trailers where there are any.
fn reply(more: &[(&str, &str)], pieces: &[&'static [u8]], trailers: Option<&[(&str, &str)]>) -> Incoming {
    let mut frames: Vec<_> = pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece)))).collect();
    frames.extend(trailers.map(|trailers| Ok(Frame::trailers(headers(trailers)))));
    let mut told = headers(&[("content-type", "application/grpc")]);
    told.extend(headers(more));
    let body = Body::stream(StreamBody::new(futures_util::stream::iter(frames)));
    Incoming { status: StatusCode::OK, headers: told, body, framed: true }
}

async fn read(reply: Incoming) -> Result<Bytes, Error> {
    let deadline = Instant::now() + Duration::from_secs(5);
    message(reply, 8, &Memory::default(), deadline, UNSAID).await.map(|(bytes, _)| bytes)
}

fn broke(why: &'static str) -> Result<Bytes, Error> {
    Err(Error::UpstreamBroke(why))
}

#[tokio::test]
async fn one_message_comes_out_of_its_frame_in_however_many_pieces() {
    for pieces in [&[b"\0\0\0\0\x02ab" as &[u8]] as &[&[u8]], &[b"\0\0\0", b"\0\x02", b"a", b"b"]] {
        let pieces: Vec<&'static [u8]> = pieces.to_vec();
        assert_eq!(read(reply(&[], &pieces, Some(OK))).await.unwrap(), "ab");
    }
    assert_eq!(read(reply(&[("grpc-encoding", "identity")], &[b"\0\0\0\0\0"], Some(OK))).await.unwrap(), "");
    for kind in ["application/grpc+proto", "application/grpc;charset=utf-8"] {
        let mut answer = reply(&[], &[b"\0\0\0\0\0"], Some(OK));
        answer.headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        assert!(read(answer).await.is_ok(), "{kind}");
    }
}

#[tokio::test]
async fn what_is_no_such_reply_is_the_upstreams_fault() {
    let not_one = || broke("its answer is not one message");
    assert_eq!(read(reply(&[], &[], Some(OK))).await, not_one(), "nothing");
    assert_eq!(read(reply(&[], &[b"\0\0\0\0"], Some(OK))).await, not_one(), "half a frame");
    assert_eq!(read(reply(&[], &[b"\0\0\0\0\x03ab"], Some(OK))).await, not_one(), "half a message");
    assert_eq!(read(reply(&[], &[b"\0\0\0\0\x01ab"], Some(OK))).await, not_one(), "more than a message");
    assert_eq!(
        read(reply(&[], &[b"\0\0\0\0\x01a", b"\0\0\0\0\x01a"], Some(OK))).await,
        Err(Error::UpstreamBroke("its answer is not one message")),
        "two"
    );
    assert_eq!(read(reply(&[], &[b"\x02\0\0\0\x01a"], Some(OK))).await, not_one(), "another frame");
    let coded = || broke("it sent a coded answer");
    assert_eq!(read(reply(&[], &[b"\x01\0\0\0\x01a"], Some(OK))).await, coded());
    assert_eq!(read(reply(&[("grpc-encoding", "gzip")], &[b"\0\0\0\0\x01a"], Some(OK))).await, coded());
    assert_eq!(read(reply(&[("content-encoding", "gzip")], &[b"\0\0\0\0\x01a"], Some(OK))).await, coded());
    assert_eq!(read(reply(&[], &[b"\0\0\0\0\x01a"], None)).await, broke("its answer ended without a status"));
    assert_eq!(read(reply(&[], &[b"\0\0\0\0\x01a"], Some(&[("x", "y")]))).await, broke("its answer ended without a status"));
    assert_eq!(read(reply(OK, &[], None)).await, not_one(), "a status and no message");
    let mut web = reply(&[], &[b"\0\0\0\0\x01a"], Some(OK));
    web.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc-web"));
    assert_eq!(read(web).await, broke("its answer is not gRPC"));
    let mut page = reply(&[], &[b"<html>"], None);
    page.headers.remove(CONTENT_TYPE);
    assert_eq!(read(page).await, broke("its answer is not gRPC"));
}

#[tokio::test]
async fn a_message_may_be_as_long_as_the_cap_and_no_longer() {
    assert_eq!(read(reply(&[], &[b"\0\0\0\0\x08abcdefgh"], Some(OK))).await.unwrap(), "abcdefgh");
    assert_eq!(read(reply(&[], &[b"\0\0\0\0\x09abcdefghi"], Some(OK))).await, Err(Error::TooLarge));
    assert_eq!(read(reply(&[], &[b"\0\xff\xff\xff\xffab"], Some(OK))).await, Err(Error::TooLarge), "by its own word");
    let memory = Memory::default();
    let _all = memory.all_but(0);
    let full = message(reply(&[], &[b"\0\0\0\0\x01a"], Some(OK)), 8, &memory, Instant::now() + Duration::from_secs(5), UNSAID).await;
    assert_eq!(full.err(), Some(Error::Unavailable("the memory for answers is full")));
    let endless = Incoming { body: Body::stream(StreamBody::new(futures_util::stream::pending())), ..reply(&[], &[], None) };
    let late = message(endless, 8, &Memory::default(), Instant::now() + Duration::from_millis(5), UNSAID).await;
    assert_eq!(late.err(), Some(Error::Deadline));
}

#[tokio::test]
async fn every_status_is_what_the_same_is_over_http() {
    let at_fault = |status, words: &str| Error::UpstreamRefused(status, Some(words.to_owned()));
    let expected = |code: Code| match code {
        Code::InvalidArgument | Code::OutOfRange => at_fault(StatusCode::BAD_REQUEST, "ours is 50% wrong"),
        Code::FailedPrecondition => at_fault(StatusCode::UNPROCESSABLE_ENTITY, "ours is 50% wrong"),
        Code::ResourceExhausted | Code::Unavailable => Error::UpstreamOverloaded(None),
        Code::DeadlineExceeded => Error::Deadline,
        Code::Unauthenticated | Code::PermissionDenied => Error::UpstreamBroke("it refuses the gateway's credential"),
        Code::NotFound | Code::Unimplemented => Error::UpstreamBroke("it does not know the model or the path"),
        Code::Cancelled => Error::UpstreamBroke("it gave the call up"),
        _ => Error::UpstreamBroke("it failed"),
    };
    for code in Code::ALL.into_iter().skip(1) {
        let number = code.number().to_string();
        let status = [("grpc-status", number.as_str()), ("grpc-message", "acme/theirs%07 is 50%25 wrong")];
        assert_eq!(read(reply(&[], &[], Some(&status))).await, Err(expected(code)), "{code:?}");
        assert_eq!(read(reply(&status, &[], None)).await, Err(expected(code)), "{code:?}, in the headers alone");
        // What came before a status that is no success is not passed on.
        assert_eq!(read(reply(&[], &[b"\0\0\0\0\x01a"], Some(&status))).await, Err(expected(code)), "{code:?}, after a message");
    }
    for unknown in ["17", "-1", "ok", ""] {
        assert_eq!(read(reply(&[], &[], Some(&[("grpc-status", unknown)]))).await, broke("it failed"), "{unknown}");
    }
    let silent = read(reply(&[], &[], Some(&[("grpc-status", "3")]))).await;
    assert_eq!(silent, Err(Error::UpstreamRefused(StatusCode::BAD_REQUEST, None)));
    let long = "x".repeat(5_000);
    match read(reply(&[], &[], Some(&[("grpc-status", "3"), ("grpc-message", &long)]))).await {
        Err(Error::UpstreamRefused(_, Some(words))) => assert_eq!(words.len(), 400),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_that_has_too_much_to_do_says_how_long_and_a_message_that_is_too_long_is_the_callers() {
    // google.rpc.Status with a RetryInfo of 6.5 s, of which whole seconds are made.
    let details = "CAgSBGJ1c3kaNgoodHlwZS5nb29nbGVhcGlzLmNvbS9nb29nbGUucnBjLlJldHJ5SW5mbxIKCggIBhCAyrXuAQ";
    for (field, value, wait) in [
        ("grpc-retry-pushback-ms", "1500", Some(2)),
        ("retry-after", "7", Some(7)),
        ("grpc-status-details-bin", details, Some(7)),
        ("grpc-retry-pushback-ms", "-1", None),
        ("retry-after", "3601", None),
        ("retry-after", "0", None),
        ("grpc-status-details-bin", "AAAA", None),
        ("grpc-status-details-bin", "?", None),
    ] {
        for code in ["8", "14"] {
            let told = read(reply(&[], &[], Some(&[("grpc-status", code), (field, value)]))).await;
            assert_eq!(told, Err(Error::UpstreamOverloaded(wait)), "{field} {value}");
        }
    }
    for words in [
        "Received message larger than max (5 vs. 4)",
        "grpc: received message larger than max (5 vs. 4)",
        "gRPC message exceeds maximum size 4: 5",
    ] {
        let told = read(reply(&[], &[], Some(&[("grpc-status", "8"), ("grpc-message", words)]))).await;
        assert_eq!(told, Err(Error::UpstreamRefused(StatusCode::PAYLOAD_TOO_LARGE, Some(words.to_owned()))));
    }
}

#[tokio::test]
async fn an_http_status_is_not_about_the_tensors() {
    let answered = |status: u16| async move {
        let mut answer = reply(&[("retry-after", "9")], &[b"{\"error\":\"no\"}"], None);
        answer.status = StatusCode::from_u16(status).unwrap();
        read(answer).await
    };
    for status in [400, 422] {
        assert_eq!(answered(status).await, broke("it answered a call with an HTTP status"));
    }
    assert_eq!(answered(413).await, Err(Error::UpstreamRefused(StatusCode::PAYLOAD_TOO_LARGE, Some("no".to_owned()))));
    assert_eq!(answered(401).await, broke("it refuses the gateway's credential"));
    assert_eq!(answered(404).await, broke("it does not know the model or the path"));
    for status in [429, 503] {
        assert_eq!(answered(status).await, Err(Error::UpstreamOverloaded(Some(9))));
    }
    for status in [500, 502, 504] {
        assert_eq!(answered(status).await, broke("it failed"));
    }
}
