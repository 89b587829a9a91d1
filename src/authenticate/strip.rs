//! What a caller's headers may not say to the stops behind this one: who they are, where they come from, what was proved.

use http::header::{self, HeaderMap, HeaderName};

/// Names that carry a credential, an identity, an origin or a hop, whatever their value.
const NAMES: &[&str] = &[
    "authorization",
    "cookie",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "x-amz-security-token",
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "via",
    "forwarded",
    "forwarded-for",
    "remote-user",
    "remote-addr",
    "true-client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
    "client-ip",
    "from",
    "client-cert",
    "client-cert-chain",
    "x-caller",
    "x-email",
    "x-identity",
    "x-jwt",
    "x-principal",
    "x-spiffe-id",
    "x-groups",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-host",
    "x-scheme",
    "x-rewrite-url",
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
];

/// Beginnings of such names. `provenance-` and `portcullis-` are ours to say.
const BEGINNINGS: &[&str] = &[
    "x-forwarded",
    "x-user",
    "x-auth",
    "x-consumer",
    "x-tenant",
    "x-client-cert",
    "x-ssl-",
    "x-tls-",
    "x-remote-",
    "x-original-",
    "x-role",
    "x-scope",
    "x-account",
    "x-credential",
    "x-authenticated-",
    "x-webauth-",
    "x-amzn-oidc-",
    "x-goog-authenticated-",
    "x-goog-iap-",
    "x-ms-client-principal",
    "x-envoy-",
    "x-portcullis-",
    "ssl-client-",
    "provenance-",
    "portcullis-",
];

/// Names that later stops judge a body by: `Connection` may not take them away.
const KEPT: &[HeaderName] =
    &[header::HOST, header::CONTENT_TYPE, header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::ACCEPT, header::EXPECT];

/// Removes credentials, identities, forwarding and hop-by-hop headers (RFC 9110 §7.6.1, those named in `Connection`
/// with them), and every name with `_`, which servers behind take for `-`.
pub fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| !KEPT.contains(name))
        .collect();
    named.into_iter().for_each(|name| drop(headers.remove(name)));
    let gone: Vec<HeaderName> = headers.keys().filter(|name| is_foreign(name.as_str())).cloned().collect();
    gone.into_iter().for_each(|name| drop(headers.remove(name)));
}

fn is_foreign(name: &str) -> bool {
    name.contains('_') || NAMES.contains(&name) || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn after(pairs: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        strip(&mut headers);
        headers.keys().map(|name| name.to_string()).collect()
    }

    #[test]
    fn a_client_cannot_name_itself_or_its_way() {
        for name in [
            "authorization",
            "x-api-key",
            "x-user",
            "x-user-id",
            "x-userid",
            "x-forwarded-for",
            "x-forwarded-user",
            "forwarded",
            "x-real-ip",
            "x-auth-request-email",
            "x-consumer-username",
            "x-tenant",
            "x-tenant-id",
            "remote-user",
            "remote_user",
            "x_forwarded_for",
            "via",
            "x-client-cert",
            "client-cert",
            "provenance-receipt",
            "provenance-statement",
            "portcullis-reason",
            "te",
            "upgrade",
            "keep-alive",
            "transfer-encoding",
            "cookie",
            "proxy-authorization",
        ] {
            assert_eq!(after(&[(name, "x"), ("content-type", "application/json")]), ["content-type"], "{name}");
        }
    }

    #[test]
    fn every_value_of_a_repeated_header_goes() {
        assert!(after(&[("x-user", "a"), ("x-user", "b"), ("authorization", "a"), ("authorization", "b")]).is_empty());
    }

    #[test]
    fn what_connection_names_goes_save_what_bodies_are_judged_by() {
        assert_eq!(
            after(&[
                ("connection", "close, X-Odd ,content-encoding"),
                ("connection", "other"),
                ("x-odd", "1"),
                ("other", "1"),
                ("content-encoding", "gzip")
            ]),
            ["content-encoding"]
        );
    }

    #[test]
    fn what_requests_need_stays() {
        let kept = [
            "host",
            "content-type",
            "content-length",
            "accept",
            "anthropic-version",
            "inference-header-content-length",
            "traceparent",
            "user-agent",
        ];
        assert_eq!(after(&kept.map(|name| (name, "1"))), kept);
    }
}
