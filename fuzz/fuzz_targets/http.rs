//! HTTP/1.1 framing, read before the HTTP library reads it: the two agree on every message that the library hands on.
#![no_main]

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use libfuzzer_sys::fuzz_target;
use portcullis::fuzz::accept;
use portcullis_fuzz::{seed, seeds};

fuzz_target!(init: seeds(made), |data: &[u8]| {
    let Some((cut, bytes)) = data.split_first() else { return };
    let (messages, strict) = accept::messages(bytes, usize::from(*cut));
    let ours: Vec<(&[u8], Vec<u8>)> = messages.iter().map(|range| taken_apart(&bytes[range.clone()])).collect();
    // What comes after the first byte that is not strict is never handed on.
    let theirs = by_hyper(&bytes[..strict]);
    assert!(theirs.len() <= ours.len(), "the library saw {} messages and the framing {}", theirs.len(), ours.len());
    for ((method, body), (line, own)) in theirs.iter().zip(&ours) {
        assert!(line.starts_with(method.as_bytes()), "{method} is not the method of {}", line.escape_ascii());
        assert_eq!(body.as_slice(), own.as_slice(), "the bodies differ after {}", line.escape_ascii());
    }
});

/// The request line of a message and its body, read as simply as can be from bytes that are one message.
fn taken_apart(message: &[u8]) -> (&[u8], Vec<u8>) {
    let end = message.windows(4).position(|four| four == b"\r\n\r\n").expect("a head has an end") + 4;
    let (head, mut rest) = message.split_at(end);
    let mut lines = head.split(|byte| *byte == b'\n');
    let line = lines.next().unwrap_or_default();
    let chunked = lines.any(|line| line.to_ascii_lowercase().starts_with(b"transfer-encoding:"));
    if !chunked {
        return (line, rest.to_vec());
    }
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n").expect("a size has an end");
        let digits = rest[..end].split(|byte| *byte == b';').next().unwrap_or_default();
        let size = usize::from_str_radix(std::str::from_utf8(digits).expect("digits"), 16).expect("a size");
        if size == 0 {
            return (line, body);
        }
        body.extend_from_slice(&rest[end + 2..][..size]);
        rest = &rest[end + 2 + size + 2..];
    }
}

thread_local! {
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
}

/// The requests that the library hands on whole, as the gateway has it set up.
fn by_hyper(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let sees = seen.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let sees = sees.clone();
        async move {
            let method = request.method().to_string();
            if let Ok(body) = request.into_body().collect().await {
                sees.borrow_mut().push((method, body.to_bytes().to_vec()));
            }
            Ok::<_, Infallible>(Response::builder().status(404).body(Empty::<Bytes>::new()).expect("an answer"))
        }
    });
    let io = TokioIo::new(tokio::io::join(bytes, tokio::io::sink()));
    let mut builder = http1::Builder::new();
    builder.half_close(false).header_read_timeout(None).max_buf_size(64 << 10);
    let _ = RUNTIME.with(|runtime| runtime.block_on(builder.serve_connection(io, service)));
    seen.take()
}

fn made() -> Vec<Vec<u8>> {
    let messages: [&[u8]; 8] = [
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nhost: a\r\nTransfer-Encoding:chunked\r\n\r\n3;a=b;c\r\nabc\r\n0\r\nx: y\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n",
    ];
    let together = seed(3, messages.concat());
    messages.iter().map(|message| seed(7, message)).chain([together]).collect()
}
