//! A walk of the route table: what refuses on one route refuses on every route, in that route's dialect and with a receipt.

use http::StatusCode;
use portcullis::digest::Digest;

use crate::support::ask::{Row, every_route, post_chat};
use crate::support::client::Http;
use crate::support::{Folder, Gateway, Issuer, KEY, Reply, Upstream};

/// Strangers' receipts are 20 a second and address, and 200 a second in all; each row comes from an address of its own,
/// and so many rows share one gateway.
const ROWS_A_GATEWAY: usize = 12;

const CARD: &str = "# Digits\n";

/// A folder that serves every route, its models all behind `upstream` but for `digits`.
fn whole(upstream: &Upstream, more: &str) -> Folder {
    let folder = Folder::new();
    folder.write("models/digits.md", CARD);
    folder.digits(&format!("card = {{ path = \"digits.md\", sha256 = \"{}\" }}\n{more}", Digest::of(CARD.as_bytes())));
    folder.upstream("chat", "openai", upstream, "", more);
    folder.upstream("claude", "anthropic", upstream, "", more);
    folder.upstream("scoring", "raw", upstream, "", &format!("{more}\n[route]\npath = \"/predict\"\n"));
    folder
}

/// What is wrong with a refusal: its status, its code, or its form in the dialect of its route. Empty if nothing is.
fn faults(row: &Row, reply: &Reply, status: u16, grpc: &str, code: impl Fn(&str) -> bool) -> Vec<String> {
    let mut faults = Vec::new();
    let mut must = |holds: bool, what: &str| {
        if !holds {
            faults.push(what.to_owned());
        }
    };
    let reason = reply.reason();
    must(code(reason), &format!("code {reason:?}"));
    if row.is_grpc() {
        must(reply.status == StatusCode::OK, "gRPC tells its status in grpc-status");
        must(reply.header("grpc-status") == grpc, &format!("grpc-status {:?}", reply.header("grpc-status")));
        must(reply.header("content-type") == "application/grpc", "content-type");
        must(!reply.header("grpc-message").is_empty(), "grpc-message");
        must(reply.body.is_empty() && reply.trailers.is_empty(), "trailers only");
        return faults;
    }
    must(reply.status.as_u16() == status, &format!("status {}", reply.status));
    let Ok(body) = serde_json::from_slice::<serde_json::Value>(&reply.body) else { return vec![format!("no JSON: {:?}", reply.body)] };
    let text = |at: &str| body.pointer(at).and_then(serde_json::Value::as_str).is_some_and(|text| !text.is_empty());
    match row.template {
        "/v1/messages" => must(body["type"] == "error" && text("/error/type") && text("/error/message"), "Anthropic's form"),
        path if path.starts_with("/v1") => {
            let error = &body["error"];
            must(error["code"] == reason && text("/error/type") && text("/error/message"), "OpenAI's form");
            must(error.as_object().is_some_and(|error| error.len() == 4 && error.contains_key("param")), "OpenAI's members");
        }
        path if path.starts_with("/v2") => must(text("/error") && body.as_object().unwrap().len() == 1, "OIP's form"),
        _ => {
            must(body["status"] == status && body["code"] == reason && text("/title") && text("/detail"), "RFC 9457's form");
            must(reply.header("content-type") == "application/problem+json", "RFC 9457's media type");
        }
    }
    faults
}

fn has_receipt(reply: &Reply) -> bool {
    let statement = if reply.headers.contains_key("grpc-status") { "provenance-statement-bin" } else { "provenance-statement" };
    reply.receipt().is_some() && reply.headers.contains_key(statement)
}

async fn walk_with_wrong_credentials(http: Http) {
    let upstream = Upstream::language().await;
    let (issuer, other) = (Issuer::es256(), Issuer::es256());
    let rows: Vec<Row> = every_route().into_iter().filter(|row| http == Http::Two || !row.is_grpc()).collect();
    let mut wrong = Vec::new();
    for (part, rows) in rows.chunks(ROWS_A_GATEWAY).enumerate() {
        let folder = whole(&upstream, "");
        issuer.trusted_by(&folder, &[&other]);
        let gateway = folder.serve().await;
        let mut receipts = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let mut client = gateway.dial().http(http).from(part as u8 + 1, index as u8 + 1).connect().await.unwrap();
            let mut credentials: Vec<(&str, Option<String>)> = vec![("no credential", None)];
            credentials.extend(issuer.wrong(&other).into_iter().map(|(what, credential)| (what, Some(credential))));
            for (what, credential) in credentials {
                let reply = client.send(row.request(credential.as_deref())).await;
                let mut faults = faults(row, &reply, 401, "16", |code| {
                    code == match what {
                        "no credential" => "authenticate.missing",
                        "expired" => "authenticate.expired",
                        _ => "authenticate.refused",
                    }
                });
                if !has_receipt(&reply) {
                    faults.push("no receipt".to_owned());
                }
                if reply.header("www-authenticate") != "Bearer" {
                    faults.push("no WWW-Authenticate".to_owned());
                }
                if !faults.is_empty() {
                    wrong.push(format!("{} {} with {what}: {faults:?}", row.method, row.template));
                }
                receipts.extend(reply.receipt());
            }
        }
        // The good ones still pass: the walk did not refuse because nothing works.
        gateway.h2().await.send(post_chat()).await.is(200);
        gateway.stop().await;
        let entries = folder.entries();
        let missing = receipts.iter().filter(|id| !entries.iter().any(|entry| entry["id"] == id.as_str())).count();
        assert_eq!(missing, 0, "receipts that the log does not hold");
        assert_eq!(folder.verified_log()["ok"], true);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(upstream.seen().iter().all(|seen| seen.uri.path() == "/v1/chat/completions"), "a refused request reached the upstream");
    assert_eq!(upstream.count(), rows.len().div_ceil(ROWS_A_GATEWAY));
}

#[tokio::test]
async fn every_route_refuses_a_wrong_credential_over_http2() {
    walk_with_wrong_credentials(Http::Two).await;
}

#[tokio::test]
async fn every_route_refuses_a_wrong_credential_over_http1() {
    walk_with_wrong_credentials(Http::One).await;
}

#[tokio::test]
async fn every_route_answers_a_good_credential() {
    let upstream = Upstream::language().await;
    let folder = whole(&upstream, "");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    for row in every_route() {
        let reply = client.send(row.request(Some(KEY))).await;
        if row.template == "/v1/receipts/{id}" {
            // There is no such receipt, which looks like any other thing that is not there.
            assert!(faults(&row, &reply, 404, "5", |code| code == "authorize.denied").is_empty(), "{reply:?}");
            continue;
        }
        assert_eq!(reply.status, 200, "{row:?}: {reply:?}");
        assert!(reply.receipt().is_some(), "{row:?}: {reply:?}");
        if row.is_grpc() {
            assert_eq!(reply.trailers.get("grpc-status").unwrap(), "0", "{row:?}: {reply:?}");
            assert!(reply.trailers.contains_key("provenance-statement-bin"), "{reply:?}");
        } else {
            assert!(has_receipt(&reply) && reply.headers.contains_key("content-digest"), "{row:?}: {reply:?}");
        }
    }
}

#[tokio::test]
async fn every_route_refuses_past_its_limit() {
    let upstream = Upstream::language().await;
    let limits = "[budget.default]\nrequests = { rate = \"1/day\", burst = 1 }\n";
    let folder = whole(&upstream, limits);
    // What names no model has limits of its own.
    folder.write("gateway.toml", format!("{}\n{limits}", folder.read("gateway.toml")));
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let mut wrong = Vec::new();
    // One address has an allowance of 20 receipts a second for refusals like these, and must not be able to fill the log with more.
    let mut receipts = 0;
    for row in every_route() {
        let mut refused = None;
        for _ in 0..3 {
            let reply = client.send(row.request(Some(KEY))).await;
            if reply.reason() != "" && reply.reason() != "authorize.denied" {
                refused = Some(reply);
                break;
            }
        }
        let Some(reply) = refused else {
            wrong.push(format!("{} is never refused", row.template));
            continue;
        };
        let mut faults = faults(&row, &reply, 429, "8", |code| code == "budget.requests");
        if reply.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds < 1) || reply.header("retry-after").is_empty() {
            faults.push(format!("retry-after {:?}", reply.header("retry-after")));
        }
        if !reply.header("ratelimit").contains("\"default\";r=0") || !reply.header("ratelimit-policy").contains("\"default\";q=") {
            faults.push("RateLimit headers".to_owned());
        }
        receipts += usize::from(has_receipt(&reply));
        if !faults.is_empty() {
            wrong.push(format!("{} {}: {faults:?}", row.method, row.template));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(receipts >= 20, "{receipts} receipts");
    let asked: Vec<String> = upstream.seen().iter().map(|seen| seen.uri.path().to_owned()).collect();
    assert_eq!(asked, ["/v1/chat/completions", "/v1/messages", "/predict"], "one request a model, and no more");
}

/// Serves `folder` with a log that takes 24 KiB and then no more, and fills it.
async fn with_a_full_log(folder: &Folder) -> Gateway {
    // The limit comes after the start, which copies models into memory files.
    let gateway = folder.serve().await;
    gateway.limit("fsize", 24 << 10);
    // Refusals of strangers are entries too; each address may leave twenty a second.
    for address in 1..=10 {
        let mut client = gateway.dial().from(9, address).connect().await.unwrap();
        for _ in 0..15 {
            client.send(crate::support::ask::bare("GET", "/v1/models", "", None)).await.is(401);
        }
    }
    gateway.admin_until("/readyz", |status, body| status == 503 && body.contains("provenance log")).await;
    gateway
}

#[tokio::test]
async fn every_route_refuses_when_the_log_takes_nothing_more() {
    let upstream = Upstream::language().await;
    let folder = whole(&upstream, "");
    let gateway = with_a_full_log(&folder).await;
    let mut client = gateway.h2().await;
    let mut wrong = Vec::new();
    for row in every_route() {
        let reply = client.send(row.request(Some(KEY))).await;
        let mut faults = faults(&row, &reply, 503, "14", |code| code == "prove.unavailable");
        if reply.header("retry-after").is_empty() {
            faults.push("no Retry-After".to_owned());
        }
        if reply.receipt().is_some() {
            faults.push("a receipt that nothing stands behind".to_owned());
        }
        if !faults.is_empty() {
            wrong.push(format!("{} {}: {faults:?}", row.method, row.template));
        }
        // Who is nobody hears that, whatever the log's state.
        let stranger = client.send(row.request(None)).await;
        assert_eq!(stranger.reason(), "authenticate.missing");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(upstream.count(), 0, "a model was asked for an answer that could not be proved");
    gateway.kill();
    // What was acknowledged before is whole.
    assert_eq!(folder.verified_log()["ok"], true, "{:#}", folder.verified_log());
}

#[tokio::test]
async fn what_is_in_no_row_is_not_there() {
    let upstream = Upstream::language().await;
    let folder = whole(&upstream, "");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    for path in ["/", "/v1", "/v1/files", "/admin", "/metrics", "/livez", "/v2/models", "/v2/repository/index", "/predict/", "/predictx"] {
        let reply = client.send(crate::support::ask::ask("GET", path, "")).await;
        assert_eq!((reply.status.as_u16(), reply.reason()), (404, "authorize.denied"), "{path}");
        let stranger = client.send(crate::support::ask::bare("GET", path, "", None)).await;
        assert_eq!((stranger.status.as_u16(), stranger.reason()), (401, "authenticate.missing"), "{path}");
    }
    assert_eq!(upstream.count(), 0);
}
