//! What each stop costs, for the chat of 1 KiB and of 64 KiB: the part of it that can be called from outside.
//! `cargo bench --profile release --bench stops [NAME]`
//!
//! A stop takes the value that the stop before it made, and such values cannot be made outside: so `authenticate`, `budget`
//! and `detect` have no bench of their own, and are measured with the whole way (`way.rs`, `peers/`).
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run says where and ends")]

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use serde_json::Value;

use portcullis::accept;
use portcullis::authenticate::Identity;
use portcullis::authorize::{Action, Circumstances, Policies, Resource};
use portcullis::check::Schema;
use portcullis::clock::Moment;
use portcullis::digest::Digest;
use portcullis::event;
use portcullis::infer::model::runtime::{Places, Runtime};
use portcullis::infer::model::{Bounds, Isolation, Model, Verified, worker};
use portcullis::prove::{Build, Config, Key, Ledger};
use portcullis::record::{Answered, Recorder};
use portcullis::trail::{Stop, Trace, Trail, Verdict, Who};
use portcullis::wire::tensor::{Datatype, Tensor};
use portcullis::wire::{json, openai};

/// How long each is run, in [`ROUNDS`] rounds of which the quickest counts: what other programs do only adds to it.
const LONG: Duration = Duration::from_millis(600);
const ROUNDS: u32 = 12;

fn bench<T>(name: &str, mut one: impl FnMut() -> T) {
    if std::env::args().skip(1).any(|only| !only.starts_with('-') && !name.contains(&only)) {
        return;
    }
    let (begin, mut count) = (Instant::now(), 0_u32);
    while begin.elapsed() < LONG / ROUNDS {
        black_box(one());
        count += 1;
    }
    let rounds = (0..ROUNDS).map(|_| {
        let begin = Instant::now();
        (0..count).for_each(|_| _ = black_box(one()));
        begin.elapsed() / count
    });
    let mut rounds: Vec<Duration> = rounds.collect();
    rounds.sort_unstable();
    let micros = |of: Duration| of.as_secs_f64() * 1e6;
    println!("{name:<44} {:9.2} µs   median {:9.2}", micros(rounds[0]), micros(rounds[rounds.len() / 2]));
}

fn main() {
    // A model's worker is the program that runs, which is this one here.
    if std::env::args().nth(1).is_some_and(|verb| verb == worker::COMMAND) {
        let _ = worker::run();
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _inside = runtime.enter();
    accept();
    authorize();
    check();
    infer(&runtime);
    prove(&runtime);
    record();
}

fn accept() {
    let request = Request::post("/v1/chat/completions").header(header::HOST, "localhost").header(header::CONTENT_TYPE, "application/json");
    let token = format!("Bearer {}", "x".repeat(300));
    let (head, ()) = request.header(header::AUTHORIZATION, token).header(header::CONTENT_LENGTH, 1024).body(()).unwrap().into_parts();
    bench("accept: judge a head", || accept::admissible(black_box(&head)));
}

fn who() -> Arc<Who> {
    Arc::new(Who { caller: "jwt:https://issuer.test#client-1".into(), tenant: "acme".into(), tier: "".into(), method: "jwt" })
}

fn authorize() {
    let rules = "permit (principal in Role::\"app\", action in [Action::\"chat\", Action::\"infer\"], resource)\n\
                 when { resource.public || resource.tenants.contains(principal.tenant) };";
    let policies = Policies::compile(rules, "access.cedar").unwrap();
    let identity = Identity { who: who(), roles: vec!["app".into()] };
    let resource = Resource { name: "m".into(), public: false, tenants: vec!["acme".to_owned()] };
    let circumstances = Circumstances { authentication: "jwt", certificate: false, address: IpAddr::from([127, 0, 0, 1]) };
    // Once for each caller and model; then the decision is kept.
    bench("authorize: judge anew, by Cedar", || policies.judge(&identity, Action::Chat, &resource, circumstances));
}

fn chat(size: usize) -> Bytes {
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(46);
    let mut messages = vec![serde_json::json!({"role": "system", "content": "You are a helpful assistant."})];
    let mut left = size - 190;
    while left > 33 {
        let length = left.min(2_000);
        messages.push(serde_json::json!({"role": "user", "content": &text[..length]}));
        left = left.saturating_sub(length + 33);
    }
    let body = serde_json::json!({"model": "m", "stream": false, "max_tokens": 256, "temperature": 0.7, "messages": messages});
    body.to_string().into()
}

fn check() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("chat.json");
    std::fs::write(&file, include_str!("peers/rust/tools/src/chat.schema.json")).unwrap();
    let schema = Schema::compile(&file).unwrap();
    let limits = json::Limits::default();
    for (size, name) in [(1 << 10, "1 KiB"), (64 << 10, "64 KiB")] {
        let body = chat(size);
        let document: Value = json::parse(&body, &limits).unwrap();
        bench(&format!("authorize: SHA-256 of {name}"), || Digest::of(&body));
        bench(&format!("authorize: parse and read {name}"), || {
            let document = json::parse(&body, &limits).unwrap();
            openai::asked(openai::Kind::Chat, &document).unwrap()
        });
        bench(&format!("check: the schema of {name}"), || schema.validate(black_box(&document)));
    }
}

const DIGITS: &[u8] = include_bytes!("../policies/models/digits.onnx");

fn digits(isolation: Isolation) -> Model {
    let runtime = Runtime::load(&Places::of_process(None)).unwrap();
    let bounds = Bounds { isolation, ..Bounds::default() };
    let verified = Verified::from_bytes(Bytes::from_static(DIGITS), Digest::of(DIGITS), bounds.size).unwrap();
    Model::from_verified("digits", "1", &verified, &bounds, &runtime).unwrap()
}

/// What a worker adds to a call, in turns with a thread of this process; the first is a caller of one row.
fn infer(runtime: &tokio::runtime::Runtime) {
    let name = "infer: a worker beside a thread";
    if std::env::args().skip(1).any(|only| !only.starts_with('-') && !name.contains(&only)) {
        return;
    }
    let models =
        [("thread", digits(Isolation::Thread)), ("worker", digits(Isolation::Required))].map(|(name, model)| (name, Arc::new(model)));
    let who = who();
    for rows in [1_u64, 16, 256, 4096] {
        let data = vec![0; rows as usize * 64 * 4];
        let input = Tensor { name: "input".into(), datatype: Datatype::Fp32, shape: vec![rows, 64], data: data.into() };
        let (turns, calls) = if rows > 1000 { (10, 20) } else { (40, 100) };
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..turns {
            for ((_, model), times) in models.iter().zip(&mut times) {
                // On a task, as the gateway has it: a caller on a thread of its own would wait for one more thread.
                let (model, input, who) = (model.clone(), input.clone(), who.clone());
                let turn = runtime.spawn(async move {
                    let mut times = Vec::new();
                    for _ in 0..calls {
                        let begin = Instant::now();
                        model.run(vec![input.clone()], &[], &who, begin + Duration::from_secs(60)).await.unwrap();
                        times.push(begin.elapsed().as_secs_f64() * 1e6);
                    }
                    times
                });
                times.extend(runtime.block_on(turn).unwrap());
            }
        }
        for ((which, _), times) in models.iter().zip(&mut times) {
            times.sort_unstable_by(f64::total_cmp);
            let (half, last) = (times[times.len() / 2], times[times.len() * 99 / 100]);
            println!("infer: {rows:>4} rows of digits, in a {which:<19} {half:9.2} µs   p99    {last:9.2}");
        }
    }
    let mut starts: Vec<u64> = (0..9).map(|_| digits(Isolation::Required).load_micros()).collect();
    starts.sort_unstable();
    println!("infer: from verified bytes to ready, in a worker {:9.2} ms   worst  {:9.2}", starts[4] as f64 / 1e3, starts[8] as f64 / 1e3);
}

/// A way that has come to its end.
fn trail() -> Trail {
    let arrived = Moment::now();
    let trace = Trace { trace_id: [7; 16], span_id: [7; 8], sampled: false };
    let mut trail = Trail::new(arrived, IpAddr::from([127, 0, 0, 1]), Method::POST, "1.1", Digest::of(b"policy"), trace);
    trail.route = "/v1/chat/completions".into();
    trail.action = Some("chat");
    trail.who = Some(who());
    trail.request.length = 1024;
    trail.request.digest = Some(Digest::of(b"request"));
    for stop in Stop::ALL.into_iter().take(7) {
        trail.step(stop, Verdict::Passed, None, arrived.mono, arrived.mono);
    }
    trail
}

fn prove(runtime: &tokio::runtime::Runtime) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("log.key"), Key::generate_pem().expose()).unwrap();
    let config: Config = toml::from_str("directory = \"log\"\norigin = \"localhost/bench\"\nkey = \"log.key\"").unwrap();
    let (events, _reader) = event::channel(1);
    let (ledger, _) = Ledger::open(&config, folder.path(), Build::default(), events, Box::new(|_| ())).unwrap();
    let body = Bytes::from(vec![b'x'; 600]);
    // A refusal past authorization: it is signed, written and answered like any answer.
    bench("prove: sign, write, and make the headers", || {
        runtime.block_on(ledger.refuse(trail(), "infer.unavailable", StatusCode::BAD_GATEWAY, HeaderMap::new(), body.clone()))
    });
}

fn record() {
    let folder = tempfile::tempdir().unwrap();
    let config = toml::from_str("security_log = \"security.log\"").unwrap();
    let recorder = Recorder::new(&config, folder.path()).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let trail = Arc::new(trail());
    let body = Bytes::from_static(b"{}");
    bench("record: begin and end a request", || {
        let (_, active) = recorder.begin(&headers, false);
        let (headers, body, trail) = (headers.clone(), body.clone().into(), trail.clone());
        let answered = Answered { status: StatusCode::OK, headers, body, trail, receipt: None, late: None, code: None };
        recorder.record(active, answered, Instant::now()).into_response()
    });
}
