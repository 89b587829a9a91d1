//! What a request's head must be before anyone looks at it: one host, one length, one plain path.
//!
//! Nothing is repaired. A target that would have to be normalised is refused, so that every later stop, every log and
//! every upstream see the same path. Names of models are the one thing in it that clients spell differently: slashes in
//! them may be escaped, and the route table alone undoes that, once.

use std::net::Ipv6Addr;

use http::request::Parts;
use http::{HeaderMap, Method, Version, header};

use super::Error;

/// The longest target, in bytes.
pub const MAX_TARGET: usize = 8 << 10;

/// Whether this head may go on.
///
/// What the HTTP library hides (bare line feeds, folded lines, repeated lengths it has merged) is refused before, by
/// the framing of the connection.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn admissible(head: &Parts) -> Result<(), Error> {
    method(head)?;
    target(head)?;
    host(head)?;
    length(head)?;
    for (name, value) in &head.headers {
        if name.as_str().contains('_') {
            return Err(Error::CallerSentBadHeader);
        }
        if name == header::CONTENT_ENCODING && !value.as_bytes().eq_ignore_ascii_case(b"identity") {
            return Err(Error::CallerSentCodedBody);
        }
        if name == header::EXPECT && !value.as_bytes().eq_ignore_ascii_case(b"100-continue") {
            return Err(Error::CallerExpectedUnknown);
        }
    }
    Ok(())
}

fn method(head: &Parts) -> Result<(), Error> {
    // An extended CONNECT over HTTP/2 (RFC 8441) is not offered, so it does not arrive as anything else.
    if head.method == Method::CONNECT || head.headers.contains_key(header::UPGRADE) {
        return Err(Error::CallerAskedForTunnel);
    }
    if head.method == Method::TRACE {
        return Err(Error::CallerUsedRefusedMethod);
    }
    Ok(())
}

fn target(head: &Parts) -> Result<(), Error> {
    let uri = &head.uri;
    // In HTTP/1.1 only an absolute form has a scheme or an authority; in HTTP/2 each is a field of its own.
    if head.version < Version::HTTP_2 && (uri.scheme().is_some() || uri.authority().is_some()) {
        return Err(Error::CallerSentBadTarget);
    }
    if head.version >= Version::HTTP_2 && !matches!(uri.scheme_str(), Some("https" | "http")) {
        return Err(Error::CallerSentBadTarget);
    }
    let Some(target) = uri.path_and_query() else { return Err(Error::CallerSentBadTarget) };
    if target.as_str().len() > MAX_TARGET {
        return Err(Error::CallerSentLongTarget);
    }
    if plain_path(target.path()) && target.query().unwrap_or("").bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(())
    } else {
        Err(Error::CallerSentBadTarget)
    }
}

/// Where a model's name follows. Names have slashes, and clients write those as they are or escaped.
const NAMES: [&str; 2] = ["/v1/models/", "/v2/models/"];

/// Whether `path` is absolute and means the same to everyone: no empty segment but the last, no dot segment, no
/// backslash, and no escape that is broken or stands for a separator, a dot or a NUL. Behind [`NAMES`] an escaped slash
/// is a slash: there it parts segments, of which none is empty or of dots either.
fn plain_path(path: &str) -> bool {
    let bytes = path.as_bytes();
    if bytes.first() != Some(&b'/') {
        return false;
    }
    let in_name = NAMES.iter().any(|prefix| path.starts_with(prefix));
    let segment = |from: usize| {
        let parts = |at: &usize| bytes[*at] == b'/' || in_name && escaped(bytes, *at) == Some(b'/');
        &bytes[from..(from..bytes.len()).find(parts).unwrap_or(bytes.len())]
    };
    for (at, &byte) in bytes.iter().enumerate() {
        match byte {
            b'/' => {
                let segment = segment(at + 1);
                let last = at + 1 + segment.len() == bytes.len();
                if matches!(segment, b"." | b"..") || (segment.is_empty() && !last) {
                    return false;
                }
            }
            b'%' => match escaped(bytes, at) {
                Some(b'/') if in_name && !matches!(segment(at + 3), b"" | b"." | b"..") => {}
                None | Some(b'/' | b'\\' | b'.' | 0) => return false,
                Some(_) => {}
            },
            b'\\' => return false,
            _ if !byte.is_ascii_graphic() => return false,
            _ => {}
        }
    }
    true
}

/// What the escape stands for that begins at `at`, if one does.
fn escaped(bytes: &[u8], at: usize) -> Option<u8> {
    let [b'%', digits @ ..] = bytes.get(at..at + 3)? else { return None };
    // `from_str_radix` takes a sign, an escape has none.
    let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
    u8::from_str_radix(digits, 16).ok()
}

fn host(head: &Parts) -> Result<(), Error> {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let (named, more) = (hosts.next(), hosts.next());
    let authority = head.uri.authority().map(|authority| authority.as_str());
    let named = named.map(|named| named.to_str().map_err(|_| Error::CallerSentBadHost)).transpose()?;
    let agreed = match (authority, named) {
        (Some(authority), Some(named)) => authority.eq_ignore_ascii_case(named).then_some(authority),
        (one, other) => one.or(other),
    };
    if more.is_none() && agreed.is_some_and(plain_host) { Ok(()) } else { Err(Error::CallerSentBadHost) }
}

/// Whether `host` is `name`, `address` or `[address]`, and at most one port after it (RFC 3986 §3.2.2, without escapes).
fn plain_host(host: &str) -> bool {
    let (name, port) = match host.rfind(':') {
        Some(colon) if !host[colon..].contains(']') => (&host[..colon], Some(&host[colon + 1..])),
        _ => (host, None),
    };
    let name_holds = match name.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => {
            (1..=253).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~'))
        }
    };
    let port_holds = port.is_none_or(|port| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok());
    name_holds && port_holds
}

fn length(head: &Parts) -> Result<(), Error> {
    let count = |headers: &HeaderMap, name| headers.get_all(name).iter().count();
    let lengths = count(&head.headers, header::CONTENT_LENGTH);
    let codings = count(&head.headers, header::TRANSFER_ENCODING);
    let chunked = head.headers.get(header::TRANSFER_ENCODING).is_none_or(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"));
    let coding_possible = codings == 0 || head.version == Version::HTTP_11;
    if lengths + codings <= 1 && chunked && coding_possible { Ok(()) } else { Err(Error::CallerSentAmbiguousFraming) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(version: Version, method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().version(version).method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn h1(uri: &str, headers: &[(&str, &str)]) -> Result<(), Error> {
        admissible(&head(Version::HTTP_11, "POST", uri, &[&[("host", "gateway.example")], headers].concat()))
    }

    #[test]
    fn an_honest_head_goes_on() {
        assert_eq!(h1("/v1/chat/completions?beta=true", &[("content-length", "2"), ("expect", "100-continue")]), Ok(()));
        assert_eq!(h1("/v2/models/a%20b/infer", &[("transfer-encoding", "chunked")]), Ok(()));
        assert_eq!(h1("/", &[("content-encoding", "identity")]), Ok(()));
        assert_eq!(h1("/a.b/.c/..d/", &[]), Ok(()));
        assert_eq!(admissible(&head(Version::HTTP_2, "GET", "https://gateway.example/v2", &[])), Ok(()));
        assert_eq!(admissible(&head(Version::HTTP_2, "GET", "https://gateway.example/v2", &[("host", "GATEWAY.example")])), Ok(()));
    }

    #[test]
    fn a_path_that_would_need_normalising_is_refused() {
        for path in [
            "//v1",
            "/v1//x",
            "/.",
            "/..",
            "/v1/./x",
            "/v1/../x",
            "/v1/..",
            "/%2e%2e/x",
            "/%2E",
            "/v1%2fx",
            "/v1%2Fx",
            "/v1%5cx",
            "/v1%5Cx",
            "/v1%00",
            "/v1/%",
            "/v1/%2",
            "/v1/%zz",
            "/v1/%+1",
            "/v1\\x",
            "/v1/models%2fa",
            "/v1%2fmodels/a",
            "/v2/models%2Fa/infer",
            "/%2fv2/models/a",
            "/v1/receipts/a%2Fb",
            "/V2/models/a%2Fb",
            "/predict%2Fx",
        ] {
            assert!(!plain_path(path), "{path}");
        }
        assert_eq!(h1("http://gateway.example/v1", &[]), Err(Error::CallerSentBadTarget));
        assert_eq!(h1("*", &[]), Err(Error::CallerSentBadTarget));
        assert!(plain_path("/") && plain_path("/v1/") && plain_path("/v1/%41"));
    }

    #[test]
    fn a_slash_in_the_name_of_a_model_may_be_escaped_and_parts_segments_all_the_same() {
        for path in [
            "/v1/models/meta-llama%2FLlama-3.1-8B",
            "/v1/models/meta-llama%2fLlama-3.1-8B",
            "/v2/models/a%2Fb%2fc/versions/1/infer",
            "/v2/models/a%2F.b/infer",
            "/v2/models/a%2F...",
            "/v2/models/a%252Fb",
        ] {
            assert!(plain_path(path), "{path}");
        }
        for name in [
            "%2F",
            "a%2F",
            "%2Fa",
            "a%2F%2Fb",
            "a%2F/b",
            "a/%2Fb",
            "a%2F.",
            "a%2F..",
            "a%2F..%2Fb",
            "a%2F../b",
            ".%2Fa",
            "..%2Fa",
            "a/..%2Fb",
            "a%2F%2e%2e",
            "%2e%2e%2Fa",
            "%2E%2E/a",
            "a%2F%2E",
            "a%5Cb",
            "a%2F%00",
            "a%00",
            "a%2",
            "a%",
            "a%%2Fb",
            "a%2Gb",
            "a%+Fb",
            "a%2F\\b",
        ] {
            for path in [format!("/v1/models/{name}"), format!("/v2/models/{name}"), format!("/v2/models/{name}/infer")] {
                assert!(!plain_path(&path), "{path}");
            }
        }
    }

    #[test]
    fn the_longest_target_passes_and_one_byte_more_does_not() {
        let path = format!("/{}", "a".repeat(MAX_TARGET - 1));
        assert_eq!(h1(&path, &[]), Ok(()));
        assert_eq!(h1(&format!("{path}a"), &[]), Err(Error::CallerSentLongTarget));
    }

    #[test]
    fn exactly_one_valid_host() {
        for hosts in
            [&[][..], &["a", "a"], &[""], &["a/b"], &["u@a"], &["a:b"], &["a:65536"], &["a b"], &["[::1"], &["[zz]"], &["a%2e"], &["a,b"]]
        {
            let headers: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            assert_eq!(admissible(&head(Version::HTTP_11, "GET", "/", &headers)), Err(Error::CallerSentBadHost), "{hosts:?}");
        }
        for host in ["a", "a.example:8443", "127.0.0.1:1", "[::1]", "[::1]:65535", "my_service:80"] {
            assert_eq!(admissible(&head(Version::HTTP_11, "GET", "/", &[("host", host)])), Ok(()), "{host}");
        }
        let differing = head(Version::HTTP_2, "GET", "https://a/", &[("host", "b")]);
        assert_eq!(admissible(&differing), Err(Error::CallerSentBadHost));
        let userinfo = head(Version::HTTP_2, "GET", "https://u@a/", &[]);
        assert_eq!(admissible(&userinfo), Err(Error::CallerSentBadHost));
    }

    #[test]
    fn one_length_told_in_one_way() {
        for headers in [
            &[("transfer-encoding", "chunked"), ("content-length", "1")][..],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            &[("content-length", "1"), ("content-length", "1")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", ",chunked")],
            &[("transfer-encoding", "identity")],
        ] {
            assert_eq!(h1("/", headers), Err(Error::CallerSentAmbiguousFraming), "{headers:?}");
        }
        let old = head(Version::HTTP_10, "POST", "/", &[("host", "a"), ("transfer-encoding", "chunked")]);
        assert_eq!(admissible(&old), Err(Error::CallerSentAmbiguousFraming));
    }

    #[test]
    fn tunnels_codings_expectations_and_odd_names_are_refused() {
        assert_eq!(h1("/", &[("upgrade", "websocket")]), Err(Error::CallerAskedForTunnel));
        assert_eq!(h1("/", &[("content-encoding", "gzip")]), Err(Error::CallerSentCodedBody));
        assert_eq!(h1("/", &[("content-encoding", "identity"), ("content-encoding", "zstd")]), Err(Error::CallerSentCodedBody));
        assert_eq!(h1("/", &[("expect", "200-ok")]), Err(Error::CallerExpectedUnknown));
        assert_eq!(h1("/", &[("x_user", "root")]), Err(Error::CallerSentBadHeader));
        assert_eq!(admissible(&head(Version::HTTP_11, "CONNECT", "a:1", &[("host", "a")])), Err(Error::CallerAskedForTunnel));
        assert_eq!(admissible(&head(Version::HTTP_11, "TRACE", "/", &[("host", "a")])), Err(Error::CallerUsedRefusedMethod));
    }
}
