//! How much: exact under concurrency, settled by what was used, and given back when the answer has ended.

use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use http_body_util::BodyExt;
use serde_json::json;
use tokio::sync::Notify;

use crate::support::ask::{ask, chat, post_chat, post_stream};
use crate::support::upstream::{Streams, events, whole};
use crate::support::{Folder, Gateway, PATIENCE, Upstream};

async fn serving(upstream: &Upstream, budget: &str) -> (Folder, Gateway) {
    let folder = Folder::new();
    folder.upstream("chat", "openai", upstream, "", budget);
    let gateway = folder.serve().await;
    (folder, gateway)
}

/// What is left of a limit, as the answer tells it.
fn left(reply: &crate::support::Reply, name: &str) -> u64 {
    let text = reply.header("ratelimit");
    let at = text.find(&format!("\"{name}\";r=")).unwrap_or_else(|| panic!("{text:?}")) + name.len() + 5;
    text[at..].split(';').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn of_64_at_once_against_a_burst_of_10_exactly_10_pass() {
    let upstream = Upstream::language().await;
    let (_folder, gateway) = serving(&upstream, "[budget.default]\nrequests = { rate = \"1/day\", burst = 10 }\n").await;
    let mut connections = Vec::new();
    for _ in 0..8 {
        connections.push(gateway.h2().await);
    }
    let asked = (0..64).map(|index| {
        let mut client = connections[index % 8].again();
        async move { client.send(post_chat()).await }
    });
    let replies = join_all(asked).await;
    let count = |status: u16| replies.iter().filter(|reply| reply.status == status).count();
    assert_eq!((count(200), count(429)), (10, 54));
    assert_eq!(upstream.count(), 10);
    for reply in replies.iter().filter(|reply| reply.status == 429) {
        assert_eq!(reply.reason(), "budget.requests");
        assert!(reply.header("retry-after").parse::<u64>().unwrap() > 3_600, "{reply:?}");
    }
    // Every answer saw another place in the bucket: no two were let in on the same one.
    let mut places: Vec<u64> = replies.iter().filter(|reply| reply.status == 200).map(|reply| left(reply, "default")).collect();
    places.sort_unstable();
    assert_eq!(places, (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_models_own_limit_counts_all_callers_and_takes_nothing_from_who_is_refused() {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    let issuer = crate::support::Issuer::es256();
    issuer.trusted_by(&folder, &[]);
    let budget =
        "[budget.default]\nrequests = { rate = \"1/day\", burst = 5 }\n[budget.model]\nrequests = { rate = \"1/day\", burst = 6 }\n";
    folder.upstream("chat", "openai", &upstream, "", budget);
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    for _ in 0..4 {
        client.send(post_chat()).await.is(200);
    }
    let as_ada = || crate::support::ask::bare("POST", "/v1/chat/completions", chat().to_string(), Some(&issuer.good()));
    client.send(as_ada()).await.is(200);
    assert_eq!(left(&client.send(as_ada()).await.is(200), "default"), 3);
    let refused = client.send(as_ada()).await.is(429);
    // It reads like her own limit: nobody is told that others used the model up.
    assert_eq!((left(&refused, "default"), refused.reason()), (0, "budget.requests"));
    client.send(post_chat()).await.is(429);
    assert_eq!(upstream.count(), 6);
}

#[tokio::test]
async fn tokens_are_settled_from_usage_of_whole_answers_and_of_streams() {
    let upstream = Upstream::language().await;
    let budget = "[budget.default]\nrequests = { rate = \"1000/s\" }\ntokens = { rate = \"5000/day\" }\n[check]\nmax_tokens = 1000\n";
    let (_folder, gateway) = serving(&upstream, budget).await;
    let mut client = gateway.h2().await;
    let reserved = |body: usize| body.div_ceil(4) as u64 + 1_000;
    let length = chat().to_string().len();
    // The head is written before the answer has been settled, so it tells the reservation; the next one tells the settlement.
    let first = client.send(post_chat()).await.is(200);
    assert_eq!(left(&first, "tokens"), 5_000 - reserved(length));
    let second = client.send(post_stream()).await.is(200);
    let streamed = length + ",\"stream\":true".len();
    assert_eq!(left(&second, "tokens"), 5_000 - 15 - reserved(streamed));
    let third = client.send(post_chat()).await.is(200);
    assert_eq!(left(&third, "tokens"), 5_000 - 30 - reserved(length));
    // What the caller asks for is what is reserved, and more than is left is refused without being charged.
    let mut large = chat();
    large["n"] = json!(9);
    assert_eq!(client.send(ask("POST", "/v1/chat/completions", large.to_string())).await.is(429).reason(), "budget.tokens");
    assert_eq!(left(&client.send(post_chat()).await.is(200), "tokens"), 5_000 - 45 - reserved(length));
    assert_eq!(upstream.count(), 4);
}

#[tokio::test]
async fn a_place_in_flight_comes_back_when_the_stream_ends() {
    let mut streams = Streams::new().await;
    let budget = "[budget.default]\nrequests = { rate = \"1000/s\" }\nin_flight = 1\n";
    let (_folder, gateway) = serving(&streams.upstream, budget).await;
    let mut client = gateway.h2().await;
    for _ in 0..2 {
        let held = client.open(post_stream()).await.unwrap();
        assert_eq!(held.status(), 200);
        let writer = streams.next().await;
        let refused = client.send(post_chat()).await.is(429);
        assert_eq!((refused.reason(), refused.header("retry-after")), ("budget.in_flight", "1"));
        for event in events("chat", true) {
            writer.send(event.into()).await.unwrap();
        }
        drop(writer);
        let body = held.into_body().collect().await.unwrap().to_bytes();
        assert!(body.ends_with(b"data: [DONE]\n\n"));
    }
    assert_eq!(streams.upstream.count(), 2);
}

#[tokio::test]
async fn a_caller_who_leaves_stops_the_upstream_and_gives_the_place_back() {
    let mut streams = Streams::new().await;
    let budget = "[budget.default]\nrequests = { rate = \"1000/s\" }\nin_flight = 1\n";
    let (folder, gateway) = serving(&streams.upstream, budget).await;
    for _ in 0..2 {
        let mut client = gateway.h2().await;
        let held = client.open(post_stream()).await.unwrap();
        let id = crate::support::client::receipt(held.headers()).unwrap();
        let writer = streams.next().await;
        writer.send(events("chat", false)[0].clone().into()).await.unwrap();
        let mut body = held.into_body();
        body.frame().await.unwrap().unwrap();
        drop((body, client));
        tokio::time::timeout(PATIENCE, writer.closed()).await.expect("the upstream is still read");
        // The statement of what was broken off is written when it is.
        let mut asker = gateway.h2().await;
        let path = format!("/v1/receipts/{id}");
        let asked = std::time::Instant::now();
        loop {
            let reply = asker.send(ask("GET", &path, "")).await;
            if reply.status == 200 {
                break;
            }
            assert!(asked.elapsed() < PATIENCE, "{reply:?}");
        }
    }
    gateway.stop().await;
    let aborted = folder.entries().iter().filter(|entry| entry["kind"] == "aborted" && entry["resp"]["complete"] == false).count();
    assert_eq!(aborted, 2);
}

#[tokio::test]
async fn a_caller_who_leaves_before_the_answer_stops_the_upstream() {
    let (begun, dropped) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    struct Tells(Arc<Notify>);
    impl Drop for Tells {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let (began, told) = (begun.clone(), dropped.clone());
    let held = Arc::new(Mutex::new(true));
    let script_held = held.clone();
    let upstream = Upstream::start(move |_| {
        let (began, tells, hold) = (began.clone(), Tells(told.clone()), *script_held.lock().unwrap());
        async move {
            began.notify_one();
            if hold {
                std::future::pending::<()>().await;
            }
            drop(tells);
            whole(200, &json!({"object": "chat.completion", "model": "chat", "choices": []}))
        }
    })
    .await;
    let (_folder, gateway) = serving(&upstream, "[budget.default]\nrequests = { rate = \"1000/s\" }\nin_flight = 1\n").await;
    let mut client = gateway.h2().await;
    let asking = client.begin(post_chat()).await;
    let asking = tokio::spawn(asking);
    tokio::time::timeout(PATIENCE, begun.notified()).await.unwrap();
    asking.abort();
    drop(client);
    tokio::time::timeout(PATIENCE, dropped.notified()).await.expect("the upstream still works for nobody");
    *held.lock().unwrap() = false;
    gateway.h2().await.send(post_chat()).await.is(200);
}

#[tokio::test]
async fn failed_credentials_are_limited_by_address_and_good_ones_never() {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    folder.gateway("auth_failures = { rate = \"1/day\", burst = 5 }", "");
    folder.upstream("chat", "openai", &upstream, "", "");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let guess = |n: usize| crate::support::ask::bare("POST", "/v1/chat/completions", chat().to_string(), Some(&format!("pk_guess-{n}")));
    let mut statuses = Vec::new();
    for n in 0..8 {
        let reply = client.send(guess(n)).await;
        assert_eq!(reply.header("retry-after").is_empty(), reply.status == 401, "{reply:?}");
        statuses.push(reply.status.as_u16());
    }
    assert_eq!(statuses, [401, 401, 401, 401, 401, 429, 429, 429]);
    client.send(post_chat()).await.is(200);
    let mut elsewhere = gateway.dial().from(7, 7).connect().await.unwrap();
    elsewhere.send(guess(9)).await.is(401);
    // No credential is no guess.
    client.send(crate::support::ask::bare("GET", "/v1/models", "", None)).await.is(401);
}
