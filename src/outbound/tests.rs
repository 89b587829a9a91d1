use bytes::Bytes;
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

#[test]
fn an_origin_is_scheme_host_and_port() {
    for (text, https, host, port) in [
        ("https://models.example", true, "models.example", 443),
        ("http://models.example/", false, "models.example", 80),
        ("http://127.0.0.1:8000", false, "127.0.0.1", 8000),
        ("https://[::1]:8443", true, "::1", 8443),
        ("https://[::1]", true, "::1", 443),
    ] {
        let origin = Origin::parse(text).unwrap();
        assert_eq!((origin.is_https(), origin.host(), origin.port()), (https, host, port));
    }
    for bad in [
        "",
        "/",
        "models.example",
        "//models.example",
        "ftp://a",
        "http://",
        "http://a/v1",
        "http://a/?q",
        "http://a?q",
        "http://a#f",
        "http://user@a",
        "http://u:p@a",
        "http://a:0",
        "http://a:",
        "http://a:65536",
        "http://a b",
        "http://a_$",
        "http://a:80:80",
        "unix:/socket",
    ] {
        assert!(Origin::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn only_public_addresses_are_public() {
    for private in [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.127.255.255",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.19.255.255",
        "203.0.113.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "2002:7f00:1::",
        "2001::1",
        "2001:db8::1",
        "3fff::1",
        "5f00::1",
    ] {
        assert!(!is_public(private.parse().unwrap()), "{private}");
    }
    for public in [
        "1.1.1.1",
        "100.63.255.255",
        "100.128.0.1",
        "172.32.0.1",
        "198.20.0.1",
        "223.255.255.255",
        "2606:4700::1111",
        "2001:4860:4860::8888",
    ] {
        assert!(is_public(public.parse().unwrap()), "{public}");
    }
}

#[test]
fn what_cannot_be_trusted_is_told() {
    assert_eq!(ClientTls::build(Some(b""), Alpn::Http1).unwrap_err(), TlsMistake::OperatorGaveNoCertificate);
    assert_eq!(ClientTls::build(Some(b"no PEM"), Alpn::Http1).unwrap_err(), TlsMistake::OperatorGaveNoCertificate);
    let bad = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert_eq!(ClientTls::build(Some(bad), Alpn::Http1).unwrap_err(), TlsMistake::OperatorGaveBadCertificate(1));
}

fn no_tls() -> Arc<ClientConfig> {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    ClientTls::build(Some(key.cert.pem().as_bytes()), Alpn::Http1).unwrap()
}

fn local() -> Limits {
    Limits { max_body: 10, within: Duration::from_millis(500), allow_private: true, allow_http: false }
}

/// The URL of a server that answers one request with `answer`, and says whether it heard one.
async fn source(answer: &'static str, then_close: bool) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys?x=1", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut heard = vec![0; 4096];
        let length = tcp.read(&mut heard).await.unwrap();
        tcp.write_all(answer.as_bytes()).await.unwrap();
        if !then_close {
            let _ = tcp.read(&mut [0; 1]).await;
        }
        String::from_utf8_lossy(&heard[..length]).into_owned()
    });
    (url, task)
}

#[tokio::test]
async fn a_fetch_ends_with_a_whole_body_or_an_error() {
    let cases: &[(&str, bool, Result<&str, FetchError>)] = &[
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789", false, Ok("0123456789")),
        ("HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n0123456789a", false, Err(FetchError::SourceSentTooMuch)),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\n012345\r\n5\r\n6789a\r\n0\r\n\r\n",
            false,
            Err(FetchError::SourceSentTooMuch),
        ),
        ("HTTP/1.1 200 OK\r\n\r\n01234", true, Ok("01234")),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n01234", true, Err(FetchError::SourceBrokeProtocol)),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n01234", false, Err(FetchError::TimedOut)),
        (
            "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n",
            false,
            Err(FetchError::SourceAnswered(StatusCode::FOUND)),
        ),
        ("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", false, Err(FetchError::SourceAnswered(StatusCode::INTERNAL_SERVER_ERROR))),
        ("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 1\r\n\r\n0", false, Err(FetchError::SourceSentCoded)),
        ("SSH-2.0\r\n\r\n", false, Err(FetchError::SourceBrokeProtocol)),
        ("", true, Err(FetchError::SourceBrokeProtocol)),
        ("", false, Err(FetchError::TimedOut)),
    ];
    let tls = no_tls();
    for (answer, then_close, expected) in cases {
        let (url, heard) = source(answer, *then_close).await;
        let fetched = fetch(&url, &tls, &local()).await;
        assert_eq!(fetched.map(|fetched| fetched.body), expected.map(|body| Bytes::from_static(body.as_bytes())), "{answer}");
        let heard = heard.await.unwrap();
        assert!(heard.starts_with("GET /keys?x=1 HTTP/1.1\r\nhost: 127.0.0.1:"), "{heard}");
    }
}

#[tokio::test]
async fn a_private_address_is_not_fetched_from_unless_allowed() {
    let (url, heard) = source("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", true).await;
    let tls = no_tls();
    let public = Limits { allow_private: false, allow_http: true, ..local() };
    assert_eq!(fetch(&url, &tls, &public).await.unwrap_err(), FetchError::Unreached(Unreached::AddressForbidden));
    let by_name = url.replace("127.0.0.1", "localhost");
    assert_eq!(fetch(&by_name, &tls, &public).await.unwrap_err(), FetchError::Unreached(Unreached::AddressForbidden));
    assert!(!heard.is_finished());
    heard.abort();
}

#[test]
fn http_is_fetched_from_this_machine_alone_unless_allowed() {
    assert!(fetchable("http://127.0.0.1:8080/jwks", &local()).is_ok());
    assert!(fetchable("http://localhost/jwks", &local()).is_ok());
    assert!(fetchable("http://login.example/jwks", &local()).is_err());
    assert!(fetchable("http://127.0.0.1/jwks", &Limits::default()).is_err());
    assert!(fetchable("https://login.example/jwks", &Limits::default()).is_ok());
    assert!(fetchable("http://login.example/jwks", &Limits { allow_http: true, ..local() }).is_ok());
    assert!(fetchable("https://user:pass@login.example/jwks", &Limits::default()).is_err());
}
