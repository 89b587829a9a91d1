use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use http_body_util::BodyExt;
use serde_json::{Value as Json, json};

use super::open::{SKIP, Signed};
use super::*;
use crate::event::Reader;
use crate::prove::Changed;
use crate::prove::archive::FINDERS;
use crate::prove::config::{Config, Mode};
use crate::prove::key::Key;
use crate::prove::statement::Build;
use crate::prove::statement::tests::trail;
use crate::tlog::{Checkpoint, Note};
use crate::trail::{End, Late, Usage};
use crate::verify::log::{verify_dir, verify_statement};
use crate::verify::show::{Select, show};
use crate::wire::body::Broken;

pub(in crate::prove) struct House {
    pub(in crate::prove) folder: tempfile::TempDir,
    pub(in crate::prove) ledger: Ledger,
    events: Reader,
}

pub(in crate::prove) fn config() -> Config {
    toml::from_str("directory = \"data/log\"\norigin = \"gw.example/node1\"\nkey = \"provenance.key\"").unwrap()
}

pub(in crate::prove) fn open_in(folder: &Path) -> Result<(Ledger, Opened, Reader), OpenError> {
    let (events, reader) = crate::event::channel(64);
    let build = Build { binary: Some(Digest::of(b"program")), config: None };
    Ledger::open(&config(), folder, build, events, Box::new(|_| {})).map(|(ledger, opened)| (ledger, opened, reader))
}

pub(in crate::prove) fn house() -> House {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("provenance.key"), Key::generate_pem().expose()).unwrap();
    let (ledger, _, events) = open_in(folder.path()).unwrap();
    House { folder, ledger, events }
}

impl House {
    pub(in crate::prove) fn log(&self) -> PathBuf {
        self.folder.path().join("data/log")
    }

    /// Everything in the log, as JSON.
    pub(in crate::prove) fn shown(&self) -> Vec<Json> {
        show(&self.log(), Select::All).unwrap().collect::<io::Result<_>>().unwrap()
    }

    /// Waits until a checkpoint covers every entry there is.
    pub(in crate::prove) async fn published(&self) {
        let last = self.shown().last().and_then(|view| view["seq"].as_u64()).unwrap();
        assert!(self.ledger.0.publisher.covers(last).await);
    }

    /// The kinds of all entries but the heartbeats with which a process begins and ends.
    pub(in crate::prove) fn kinds(&self) -> Vec<String> {
        self.shown()
            .iter()
            .filter(|view| view["counts"].get("life").is_none())
            .map(|view| view["kind"].as_str().unwrap().to_owned())
            .collect()
    }
}

pub(in crate::prove) fn now() -> Trail {
    let mut now = trail(Moment::now().unix_seconds());
    now.id = Uuid::now_v7();
    now
}

pub(in crate::prove) fn durable() -> Terms {
    Terms { mode: Mode::Durable, on_failure: OnFailure::Refuse }
}

fn serve() -> Terms {
    Terms { mode: Mode::Async, on_failure: OnFailure::Serve }
}

pub(in crate::prove) fn head() -> HeaderMap {
    HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"))])
}

pub(in crate::prove) async fn answer(ledger: &Ledger, terms: &Terms) -> Result<Receipt, Box<NotProved>> {
    let slot = ledger.reserve(terms, Want::default()).unwrap();
    ledger.prove_parts(slot, StatusCode::OK, head(), Payload::Whole("the answer".into()), None, now()).await
}

/// A stream of what a test says, which fills `Late` when it ends or is dropped.
struct Upstream(std::vec::IntoIter<Result<&'static str, &'static str>>, Late, bool);

impl http_body::Body for Upstream {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let next = self.0.next();
        if next.is_none() {
            self.1.ended(End { usage: Some(Usage { input: 1, output: 2 }), complete: self.2 });
        }
        Poll::Ready(next.map(|piece| piece.map(|data| Frame::data(data.into())).map_err(Into::into)))
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.1.ended(End { usage: Some(Usage { input: 1, output: 1 }), complete: false });
    }
}

/// What a caller says in the head of a request that has ten more seconds.
pub(in crate::prove) fn want(head: &[(&'static str, &'static str)]) -> Want {
    let headers = head.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
    Want::of_request(&HeaderMap::from_iter(headers), Instant::now() + Duration::from_secs(10)).unwrap()
}

async fn stream(house: &House, terms: &Terms, pieces: &[Result<&'static str, &'static str>], complete: bool) -> Receipt {
    let late = Late::default();
    let body = Body::stream(Upstream(Vec::from(pieces).into_iter(), late.clone(), complete));
    let slot = house.ledger.reserve(terms, want(&[("te", "trailers")])).unwrap();
    house.ledger.prove_parts(slot, StatusCode::OK, head(), Payload::Stream(body, late), None, now()).await.unwrap()
}

pub(in crate::prove) fn statement_of(headers: &HeaderMap) -> Vec<u8> {
    let text = headers["provenance-statement"].to_str().unwrap();
    STANDARD.decode(text.strip_prefix(':').unwrap().strip_suffix(':').unwrap()).unwrap()
}

#[tokio::test]
async fn a_whole_answer_carries_its_statement_and_the_log_has_the_same_bytes() {
    let house = house();
    let receipt = answer(&house.ledger, &Terms::default()).await.unwrap();
    let id = receipt.id().unwrap().to_string();
    let expected = format!("id=\"{id}\", log=\"gw.example/node1\", state=promised, loc=\"/v1/receipts/{id}\"");
    assert_eq!(receipt.headers()["provenance-receipt"], expected);
    let digest = STANDARD.encode(Digest::of(b"the answer").as_bytes());
    assert_eq!(receipt.headers()["content-digest"], format!("sha-256=:{digest}:"));
    assert_eq!(receipt.trail().steps.last().unwrap().stop, Stop::Prove);
    assert_eq!(receipt.content().media_type.as_deref(), Some("application/json"));
    let entry = statement_of(receipt.headers());
    let [_, key, _] = house.ledger.vkeys();
    let statement = verify_statement(&entry, &key).unwrap();
    assert_eq!((statement.seq, statement.id.to_string()), (2, id));
    let found = house.ledger.find(receipt.id().unwrap(), receipt.trail().who.as_ref().unwrap(), false).await.unwrap();
    assert_eq!(found.statement(), &entry);
    assert_eq!(found.json()["view"]["kind"], "inference");
    assert_eq!(house.kinds(), ["key-rotation", "inference"]);
    assert_eq!(receipt.into_parts().2.collect().await.unwrap().to_bytes(), "the answer");
    assert_eq!(house.ledger.counters().slots, 0);
}

#[tokio::test]
async fn a_receipt_is_found_by_its_caller_alone() {
    let house = house();
    let mut receipts = Vec::new();
    for _ in 0..1_500 {
        receipts.push(answer(&house.ledger, &Terms::default()).await.unwrap());
    }
    let who = receipts[0].trail().who.clone().unwrap();
    let other = Who { caller: "api_key:b".into(), tenant: "acme".into(), tier: "".into(), method: "api_key" };
    for at in [0, 700, 1_499] {
        let id = receipts[at].id().unwrap();
        assert!(house.ledger.find(id, &who, false).await.is_some());
        assert!(house.ledger.find(id, &other, false).await.is_none());
    }
    assert!(house.ledger.find(Uuid::now_v7(), &who, false).await.is_none());
    assert!(house.ledger.find(Uuid::nil(), &who, false).await.is_none());
    // And after a restart, from the files.
    let House { folder, ledger, .. } = house;
    ledger.close();
    drop((ledger, receipts.split_off(1)));
    let (ledger, opened, _events) = open_in(folder.path()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((opened.recovered.entries, opened.recovered.cut_bytes), (1_503, 0));
    assert!(ledger.find(receipts[0].id().unwrap(), &who, false).await.is_some());
}

#[test]
fn a_look_up_that_nobody_waits_for_any_more_still_counts() {
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let house = house();
        let receipt = answer(&house.ledger, &Terms::default()).await.unwrap();
        let (id, who) = (receipt.id().unwrap(), receipt.trail().who.clone().unwrap());
        let (release, released) = std::sync::mpsc::channel::<()>();
        let busy = tokio::task::spawn_blocking(move || released.recv().is_err());
        for _ in 0..FINDERS {
            assert!(futures_util::FutureExt::now_or_never(house.ledger.find(id, &who, false)).is_none());
        }
        assert_eq!(house.ledger.0.shared.finders.available_permits(), 0);
        drop(release);
        assert!(busy.await.unwrap());
        assert!(house.ledger.find(id, &who, false).await.is_some());
    });
}

#[tokio::test]
async fn an_entry_that_only_mentions_an_id_does_not_hide_its_receipt() {
    let house = house();
    let trail = now();
    let (id, who) = (trail.id, trail.who.clone().unwrap());
    let mut mentions = now();
    mentions.method = http::Method::from_bytes(id.hyphenated().to_string().as_bytes()).unwrap();
    let refuse = |trail| house.ledger.refuse(trail, "check.json", StatusCode::BAD_REQUEST, head(), Bytes::new());
    refuse(mentions).await;
    refuse(trail).await;
    assert!(house.ledger.find(id, &who, false).await.is_some());
}

#[tokio::test]
async fn durable_answers_say_so_once_they_are_synced() {
    let house = house();
    let receipt = answer(&house.ledger, &durable()).await.unwrap();
    assert!(receipt.headers()["provenance-receipt"].to_str().unwrap().contains("state=durable"));
    assert!(house.ledger.counters().syncs > 0);
    let found = house.ledger.find(receipt.id().unwrap(), receipt.trail().who.as_ref().unwrap(), false).await.unwrap();
    assert!(matches!(found.json()["state"].as_str(), Some("durable" | "included")));
}

#[tokio::test]
async fn grpc_answers_carry_the_statement_in_their_trailers() {
    let house = house();
    let slot = house.ledger.reserve(&Terms::default(), Want::default()).unwrap();
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
    let payload = Payload::Whole("message".into());
    let receipt = house.ledger.prove_parts(slot, StatusCode::OK, HeaderMap::new(), payload, Some(trailers), now()).await.unwrap();
    assert!(receipt.headers().contains_key("provenance-receipt"));
    assert!(!receipt.headers().contains_key("provenance-statement"));
    let body = receipt.into_parts().2.collect().await.unwrap();
    let trailers = body.trailers().unwrap().clone();
    assert_eq!(trailers["grpc-status"], "0");
    let entry = STANDARD_NO_PAD.decode(&trailers["provenance-statement-bin"]).unwrap();
    verify_statement(&entry, &house.ledger.vkeys()[1]).unwrap();
    assert_eq!(body.to_bytes(), "message");
}

#[tokio::test]
async fn a_stream_that_ends_is_one_entry_written_before_its_end_is_told() {
    let house = house();
    for terms in [Terms::default(), durable()] {
        let receipt = stream(&house, &terms, &[Ok("one "), Ok("two")], true).await;
        assert!(receipt.headers()["provenance-receipt"].to_str().unwrap().contains("state=open"));
        assert!(!receipt.headers().contains_key("content-digest"));
        let (before, mut body) = (house.kinds().len(), receipt.into_parts().2);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one ");
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "two");
        assert_eq!(house.kinds().len(), before);
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(house.kinds().len(), before + 1);
        let view = verify_statement(&statement_of(&trailers), &house.ledger.vkeys()[1]).unwrap().view();
        assert_eq!((&view["kind"], &view["resp"]["bytes_sent"], &view["usage"]["output"]), (&json!("inference"), &json!(7), &json!(2)));
        assert_eq!(trailers["content-digest"], format!("sha-256=:{}:", STANDARD.encode(Digest::of(b"one two").as_bytes())));
        assert!(body.frame().await.is_none());
        drop(body);
        assert_eq!(house.kinds().len(), before + 1);
    }
    assert_eq!(house.ledger.counters().slots, 0);
}

#[tokio::test]
async fn a_stream_that_breaks_or_is_dropped_is_one_aborted_entry_of_its_prefix() {
    let house = house();
    let mut broken = stream(&house, &durable(), &[Ok("one "), Err("upstream broke"), Ok("two")], true).await.into_parts().2;
    assert!(broken.frame().await.unwrap().is_ok());
    assert!(broken.frame().await.unwrap().is_err());
    assert!(broken.frame().await.is_none());
    drop(broken);
    let mut dropped = stream(&house, &Terms::default(), &[Ok("one "), Ok("two")], true).await.into_parts().2;
    assert!(dropped.frame().await.unwrap().is_ok());
    drop(dropped);
    drop(stream(&house, &Terms::default(), &[Ok("one ")], true).await);
    // The upstream ended it in order, and says that it was cut short.
    let short = stream(&house, &Terms::default(), &[Ok("one ")], false).await.into_parts().2;
    assert!(short.collect().await.unwrap().trailers().is_none());
    assert_eq!(house.kinds(), ["key-rotation", "aborted", "aborted", "aborted", "aborted"]);
    let shown = house.shown();
    let sent: Vec<_> = shown[2..].iter().map(|view| (view["resp"]["bytes_sent"].clone(), view["resp"]["complete"].clone())).collect();
    assert_eq!(sent, [(json!(4), json!(false)), (json!(4), json!(false)), (json!(0), json!(false)), (json!(4), json!(false))]);
    // On drop the usage is what the adaptor inside told when it was dropped.
    assert_eq!(shown[3]["usage"]["output"], 1);
    assert_eq!(house.ledger.counters().slots, 0);
}

#[tokio::test]
async fn there_is_room_for_so_many_and_not_one_more() {
    let house = house();
    let mut slots: Vec<_> = (0..ROOM).map(|_| house.ledger.reserve(&Terms::default(), Want::default()).unwrap()).collect();
    assert!(house.ledger.refuses().is_some());
    assert_eq!(house.ledger.reserve(&Terms::default(), Want::default()).unwrap_err(), Error::Unavailable);
    // Refusals are not held up by it, and who is to be served is served, without a receipt and counted.
    let refused = house.ledger.refuse(now(), "prove.unavailable", StatusCode::SERVICE_UNAVAILABLE, head(), "{}".into()).await;
    assert_eq!(refused.state(), State::Promised);
    let slot = house.ledger.reserve(&serve(), Want::default()).unwrap();
    let receipt = house.ledger.prove_parts(slot, StatusCode::OK, head(), Payload::Whole("x".into()), None, now()).await.unwrap();
    assert_eq!((receipt.state(), receipt.id()), (State::None, None));
    assert!(!receipt.headers().contains_key("provenance-receipt"));
    assert_eq!(house.ledger.counters().gaps, 1);
    slots.pop();
    assert!(house.ledger.reserve(&Terms::default(), Want::default()).is_ok());
}

#[tokio::test]
async fn a_poisoned_log_refuses_or_serves_as_the_terms_say() {
    let mut house = house();
    let (early, kind, open) = (
        house.ledger.reserve(&Terms::default(), Want::default()).unwrap(),
        house.ledger.reserve(&serve(), Want::default()).unwrap(),
        house.ledger.reserve(&durable(), Want::default()).unwrap(),
    );
    let late = Late::default();
    let upstream = Body::stream(Upstream(vec![Ok("one")].into_iter(), late.clone(), true));
    let streaming = house.ledger.prove_parts(open, StatusCode::OK, head(), Payload::Stream(upstream, late), None, now()).await.unwrap();
    house.ledger.poison();
    assert!(house.ledger.counters().poisoned);
    assert_eq!(house.ledger.reserve(&Terms::default(), Want::default()).unwrap_err(), Error::Unavailable);
    let whole = || Payload::Whole("x".into());
    let refused = house.ledger.prove_parts(early, StatusCode::OK, head(), whole(), None, now()).await.unwrap_err();
    assert_eq!(refused.error, Error::Unavailable);
    let served = house.ledger.prove_parts(kind, StatusCode::OK, head(), whole(), None, now()).await.unwrap();
    assert_eq!(served.state(), State::None);
    let gap = house.events.next().await.unwrap();
    assert_eq!(gap.name, Name::LogGap);
    assert_eq!((gap.caller.as_deref(), gap.model.as_deref()), (Some("api_key:a"), Some("digits")), "whose answer it was");
    // A stream that began before cannot end as if it were proved.
    assert!(streaming.into_parts().2.collect().await.is_err());
    let denied = house.ledger.refuse(refused.trail, "prove.unavailable", StatusCode::SERVICE_UNAVAILABLE, head(), "{}".into()).await;
    assert_eq!((denied.state(), denied.status()), (State::None, StatusCode::SERVICE_UNAVAILABLE));
}

#[tokio::test]
async fn refusals_of_strangers_have_an_allowance_and_the_rest_is_counted_by_code() {
    let house = house();
    let stranger = || {
        let mut stranger = now();
        stranger.steps.truncate(1);
        stranger.who = None;
        stranger.step(Stop::Authenticate, Verdict::Refused, None, stranger.arrived.mono, stranger.arrived.mono);
        stranger
    };
    let mut made = 0;
    for _ in 0..50 {
        let receipt = house.ledger.refuse(stranger(), "authenticate.missing", StatusCode::UNAUTHORIZED, head(), "{}".into()).await;
        assert_eq!(receipt.status(), StatusCode::UNAUTHORIZED);
        made += usize::from(receipt.state() == State::Promised);
    }
    // Fifty take far less than a second, but its edge may fall among them.
    assert!(made == 20 || made == 40, "{made}");
    // Who was granted is not counted among the strangers.
    for _ in 0..50 {
        let receipt = house.ledger.refuse(now(), "check.schema", StatusCode::BAD_REQUEST, head(), "{}".into()).await;
        assert_eq!(receipt.state(), State::Promised);
    }
    house.ledger.close();
    let shown = house.shown();
    let told: u64 = shown.iter().filter_map(|view| view["counts"]["suppressed"]["authenticate.missing"].as_u64()).sum();
    assert_eq!(told, 50 - made as u64);
    assert_eq!(house.ledger.counters().suppressed, [("authenticate.missing", told)]);
    let denied: Vec<_> = shown.iter().filter(|view| view["kind"] == "deny").collect();
    assert_eq!(denied.len(), made + 50);
    assert_eq!(denied[0]["resp"]["code"], "authenticate.missing");
    assert_eq!(denied[0].get("principal"), None);
    assert!(verify_dir(&house.log(), Some(&house.ledger.vkeys()[..1])).unwrap().ok);
}

#[tokio::test]
async fn the_last_bytes_of_a_stream_leave_once_its_entry_is_kept() {
    use crate::trail::End;
    for (terms, synced) in [(Terms::default(), false), (durable(), true)] {
        let house = house();
        let late = Late::default();
        let (telling, mut pieces) = (late.clone(), vec!["one", "data: [DONE]"].into_iter());
        // As language streams do: how it ended is told before the event that says so leaves.
        let frames = futures_util::stream::iter(std::iter::from_fn(move || {
            let piece = pieces.next()?;
            if pieces.len() == 0 {
                telling.ended(End { usage: None, complete: true });
            }
            Some(Ok(Frame::data(Bytes::from_static(piece.as_bytes()))))
        }));
        let slot = house.ledger.reserve(&terms, want(&[("te", "trailers")])).unwrap();
        let body = Body::stream(http_body_util::StreamBody::new(frames));
        let receipt = house.ledger.prove_parts(slot, StatusCode::OK, head(), Payload::Stream(body, late), None, now()).await.unwrap();
        let mut body = receipt.into_parts().2;
        let before = house.ledger.counters();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
        assert_eq!(house.ledger.counters().entries, before.entries);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: [DONE]");
        let after = house.ledger.counters();
        assert_eq!(after.entries, before.entries + 1);
        assert!(!synced || after.syncs > before.syncs, "durable is synced first");
        assert!(body.frame().await.unwrap().unwrap().trailers_ref().is_some());
        assert!(body.frame().await.is_none());
    }
}

#[tokio::test]
async fn a_stream_is_found_while_it_is_open_and_after_that_in_the_log() {
    let house = house();
    let (who, underway) = (now().who.unwrap(), house.ledger.0.shared.underway.clone());
    let (whole, broken) = ([Ok("one"), Ok("two")], [Ok("one"), Err("it broke off")]);
    for (pieces, complete, is_read) in [(whole, true, true), (broken, false, true), (whole, false, false)] {
        let receipt = stream(&house, &Terms::default(), &pieces, complete).await;
        let id = receipt.id().unwrap();
        assert!(underway.find(id, &who, false).is_some() && house.ledger.find(id, &who, true).await.is_none());
        let body = receipt.into_parts().2;
        if is_read {
            let _ = body.collect().await;
        } else {
            drop(body);
        }
        while underway.find(id, &who, false).is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(house.ledger.find(id, &who, false).await.is_some(), "it is found in one place or the other");
    }
}

#[tokio::test]
async fn who_is_over_budget_cannot_fill_the_log_with_that() {
    let house = house();
    let mut made = 0;
    for _ in 0..100 {
        let mut trail = now();
        trail.steps.retain(|step| step.stop < Stop::Budget);
        trail.step(Stop::Budget, Verdict::Refused, None, trail.arrived.mono, trail.arrived.mono);
        let receipt = house.ledger.refuse(trail, "budget.requests", StatusCode::TOO_MANY_REQUESTS, head(), "{}".into()).await;
        made += usize::from(receipt.state() == State::Promised);
    }
    assert!(made == 20 || made == 40, "{made}");
}

#[tokio::test]
async fn after_lost_power_no_number_is_used_again_and_the_log_still_verifies() {
    let House { folder, ledger, .. } = house();
    answer(&ledger, &Terms::default()).await.unwrap();
    ledger.close();
    drop(ledger);
    std::fs::write(folder.path().join("data/log/lock"), "another boot").unwrap();
    let (ledger, opened, _events) = open_in(folder.path()).unwrap_or_else(|error| panic!("{error}"));
    assert!(opened.recovered.unsynced_lost);
    let receipt = answer(&ledger, &Terms::default()).await.unwrap();
    let view = verify_statement(&statement_of(receipt.headers()), &ledger.vkeys()[1]).unwrap();
    // 0 the endorsement, 1 began, 2 the answer, 3 ended; then as many are left out, and the next begins.
    assert_eq!(view.seq, 3 + 1 + SKIP + 1);
    ledger.close();
    let report = verify_dir(&folder.path().join("data/log"), Some(&ledger.vkeys()[..1])).unwrap();
    assert!(report.ok, "{report:?}");
    assert_eq!(report.left_out, [(4, 3 + SKIP)]);
}

#[tokio::test]
async fn another_key_or_origin_does_not_continue_a_log() {
    let House { folder, ledger, .. } = house();
    ledger.close();
    drop(ledger);
    let (ledger, ..) = open_in(folder.path()).unwrap_or_else(|error| panic!("{error}"));
    ledger.close();
    drop(ledger);
    std::fs::write(folder.path().join("provenance.key"), Key::generate_pem().expose()).unwrap();
    assert!(matches!(open_in(folder.path()), Err(OpenError::AnotherKey(_))));
}

#[tokio::test]
async fn a_request_that_is_dropped_while_it_waits_still_has_its_entry() {
    let house = house();
    let terms = durable();
    {
        let mut waiting = std::pin::pin!(answer(&house.ledger, &terms));
        std::future::poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_ready())).await;
    }
    assert_eq!(house.kinds(), ["key-rotation", "inference"]);
    assert_eq!(house.ledger.counters().slots, 0);
}

/// Prints what the whole stop costs. Run it in release: `cargo test --release --lib -- --ignored --nocapture what_a_receipt_costs`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, decides nothing"]
async fn what_a_receipt_costs() {
    let house = house();
    for tasks in [1, 2, 32] {
        let from = Instant::now();
        let running: Vec<_> = (0..tasks)
            .map(|_| {
                let ledger = house.ledger.clone();
                tokio::spawn(async move {
                    for _ in 0..10_000 {
                        answer(&ledger, &Terms::default()).await.unwrap();
                    }
                })
            })
            .collect();
        for task in running {
            task.await.unwrap();
        }
        println!("{tasks} tasks: {:?} an answer", from.elapsed() / (10_000 * tasks));
    }
    println!("{:?}", house.ledger.counters());
}

#[tokio::test]
async fn a_change_stands_before_the_answers_that_come_after_it_and_a_log_that_takes_nothing_takes_none() {
    let house = house();
    let which = now().which.unwrap();
    let loaded = Change { changed: Changed::Loaded, which: Some(&which), reason: None, policy: None };
    house.ledger.tell(&loaded);
    let slot = house.ledger.reserve(&durable(), Want::default()).unwrap();
    house.ledger.prove_parts(slot, StatusCode::OK, HeaderMap::new(), Payload::Whole(Bytes::new()), None, now()).await.unwrap();
    house.ledger.close();
    house.ledger.tell(&loaded);
    assert_eq!(house.kinds(), ["key-rotation", "model-load", "inference"]);
    house.published().await;
    assert!(verify_dir(&house.log(), None).unwrap().ok);
    // Nobody's receipt: it was made for no caller.
    let id = house.shown()[2]["id"].as_str().unwrap().parse().unwrap();
    assert!(house.ledger.find(id, now().who.as_ref().unwrap(), false).await.is_none());
}

fn reconciled(path: &Path, metrics: Option<&crate::verify::reconcile::Metrics>) -> crate::verify::reconcile::Reconciled {
    crate::verify::reconcile::reconcile(crate::verify::entries::Entries::of_live(path).unwrap(), metrics).unwrap()
}

fn scraped(ledger: &Ledger) -> crate::verify::reconcile::Metrics {
    // In the order in which a scrape reads them.
    let census = ledger.census();
    let Counters { traffic, gaps, suppressed, .. } = ledger.counters();
    let suppressed = suppressed.into_iter().map(|(code, count)| (code.to_owned(), count)).collect();
    crate::verify::reconcile::Metrics { census, traffic, gaps, suppressed }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn heartbeats_and_metrics_agree_exactly_with_entries_that_are_appended_beside_them() {
    let House { folder, ledger, .. } = house();
    let path = folder.path().join("data/log");
    let running: Vec<_> = (0..8)
        .map(|task| {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                for _ in 0..100 {
                    let accepted = ledger.accept();
                    if task % 2 == 0 {
                        ledger.forward();
                        answer(&ledger, &Terms::default()).await.unwrap();
                    } else {
                        ledger.refuse(now(), "check.json", StatusCode::BAD_REQUEST, head(), "{}".into()).await;
                    }
                    accepted.over();
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let mut scrapes = Vec::new();
    while running.iter().any(|task| !task.is_finished()) {
        ledger.0.count(Life::Runs, None).unwrap();
        scrapes.push(scraped(&ledger));
        tokio::task::yield_now().await;
    }
    for task in running {
        task.await.unwrap();
    }
    ledger.close();
    scrapes.push(scraped(&ledger));
    assert!(scrapes.len() > 2, "there were heartbeats while requests ran");
    for metrics in [&scrapes[0], &scrapes[scrapes.len() / 2], &scrapes[scrapes.len() - 2], &scrapes[scrapes.len() - 1]] {
        let found = reconciled(&path, Some(metrics));
        assert!(found.ok && found.notes.is_empty(), "{found:?}");
        assert_eq!((found.processes, found.heartbeats, found.uncounted), (1, scrapes.len() as u64, 0));
    }
    let last = &scrapes[scrapes.len() - 1];
    assert_eq!((last.traffic.accepted, last.traffic.forwarded, last.traffic.abandoned), (800, 400, 0));
    assert_eq!((last.census.of(Kind::Inference), last.census.of(Kind::Deny)), (400, 400));
    assert!(verify_dir(&path, None).unwrap().ok);
}

#[tokio::test]
async fn a_process_counts_from_its_own_beginning_and_what_nobody_waits_for_is_abandoned() {
    let House { folder, ledger, .. } = house();
    let path = folder.path().join("data/log");
    drop(ledger.accept());
    ledger.close();
    drop(ledger);
    let (ledger, ..) = open_in(folder.path()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((ledger.census().began, ledger.census().entries(), ledger.counters().traffic.accepted), (3, 1, 0));
    let accepted = ledger.accept();
    answer(&ledger, &Terms::default()).await.unwrap();
    accepted.over();
    let found = reconciled(&path, Some(&scraped(&ledger)));
    assert!(found.ok, "{found:?}");
    ledger.close();
    let shown: Vec<Json> = show(&path, Select::All).unwrap().collect::<io::Result<_>>().unwrap();
    let lives: Vec<_> = shown.iter().filter_map(|view| view["counts"]["life"].as_u64()).collect();
    assert_eq!(lives, [1, 3, 1, 3]);
    assert_eq!(shown[2]["counts"]["abandoned"], 1);
    assert_eq!(shown[5]["counts"]["statements"], json!({ "inference": 1, "heartbeat": 1 }));
    assert_eq!(shown[5]["counts"]["bytes"], 10);
}

#[tokio::test]
async fn a_gap_is_told_by_a_heartbeat_and_by_the_metrics() {
    let house = house();
    let full: Vec<_> = (0..ROOM).map(|_| house.ledger.reserve(&Terms::default(), Want::default()).unwrap()).collect();
    let accepted = house.ledger.accept();
    let slot = house.ledger.reserve(&serve(), Want::default()).unwrap();
    house.ledger.prove_parts(slot, StatusCode::OK, head(), Payload::Whole("x".into()), None, now()).await.unwrap();
    accepted.over();
    drop(full);
    house.ledger.close();
    let metrics = scraped(&house.ledger);
    assert_eq!(metrics.gaps, 1);
    let found = reconciled(&house.log(), Some(&metrics));
    assert!(found.ok && found.notes.is_empty(), "{found:?}");
    let hidden = crate::verify::reconcile::Metrics { gaps: 2, ..metrics };
    assert!(!reconciled(&house.log(), Some(&hidden)).ok);
}

#[path = "lost.rs"]
mod lost;
