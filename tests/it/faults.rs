//! A disk that fails: each call that the log makes of the system, failing at one place after another.
//!
//! The program is the real one; `faults.c` stands between it and the C library, which the standard library calls for every write, sync,
//! rename and open. `fallocate`, which only asks whether a full disk has room again, is called without it, so that the answer is always yes
//! and the next write finds out.

use std::collections::HashSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use portcullis::verify::entries::Entries;
use portcullis::verify::log::verify_dir;
use serde_json::json;

use crate::support::ask::ask;
use crate::support::{Client, Folder, Gateway, PATIENCE, PROGRAM, Reply, Upstream};

const ENOSPC: i32 = 28;
const EIO: i32 = 5;
const EMFILE: i32 = 24;

/// The calls, as `faults.c` numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Write = 1,
    /// A write of which half arrives: the next one fails as a whole.
    Half,
    Pwrite,
    Fsync,
    Fdatasync,
    Rename,
    Open,
    Truncate,
    Unlink,
}

/// The library that is preloaded, compiled once.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = LIBRARY.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("faults.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/faults.c");
        let compiled = Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&path).arg(source).arg("-ldl").status().unwrap();
        assert!(compiled.success(), "a C compiler is needed, as it is to build aws-lc");
        (folder, path)
    });
    path
}

/// The file by which the library is told what to fail.
struct Plan(PathBuf);

impl Plan {
    fn new(folder: &Folder) -> Self {
        let plan = Self(folder.home().join("plan"));
        fs::write(&plan.0, [0; 24]).unwrap();
        plan
    }

    /// From the call after `pass` others on, `count` fail with `error`; all of them, if that is negative.
    fn fail(&self, call: Call, error: i32, pass: i32, count: i32) {
        self.write([call as i32, error, pass, count]);
    }

    fn over(&self) {
        self.write([0; 4]);
    }

    fn write(&self, [call, error, pass, count]: [i32; 4]) {
        use std::os::unix::fs::FileExt;
        let file = fs::OpenOptions::new().write(true).open(&self.0).unwrap();
        let bytes = |numbers: &[i32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>();
        // Off while it changes, and the call last: what is read in between is no other plan.
        file.write_all_at(&bytes(&[0]), 0).unwrap();
        file.write_all_at(&bytes(&[error, pass, count, 0, 0]), 4).unwrap();
        file.write_all_at(&bytes(&[call]), 0).unwrap();
    }

    /// How many calls failed since it was last written.
    fn failed(&self) -> i32 {
        let bytes = fs::read(&self.0).unwrap();
        i32::from_le_bytes(bytes[20..24].try_into().unwrap())
    }

    /// The words before the program that put it under this plan.
    fn words(&self, folder: &Folder) -> Vec<String> {
        let log = fs::canonicalize(folder.home()).unwrap().join("log");
        vec![
            "env".to_owned(),
            format!("LD_PRELOAD={}", library().display()),
            format!("FAULTS_PLAN={}", self.0.display()),
            // The lock file beside the folder, `log.lock`, begins like this too.
            format!("FAULTS_UNDER={}", log.display()),
        ]
    }
}

fn folder(upstream: &Upstream) -> Folder {
    let folder = Folder::new();
    // The calls of the program name the log as its policies do.
    let log = fs::canonicalize(folder.home()).unwrap().join("log");
    let gateway = folder.read("gateway.toml").replace("\"../log\"", &format!("{:?}", log.display().to_string()));
    folder.write("gateway.toml", gateway);
    folder.upstream("chat", "openai", upstream, "", "");
    folder.upstream("sure", "openai", upstream, "", "[prove]\nmode = \"durable\"\n");
    folder.upstream("kind", "openai", upstream, "", "[prove]\non_failure = \"serve\"\n");
    folder
}

/// The statements that were promised.
type Held = HashSet<Vec<u8>>;

/// What became of requests.
#[derive(Debug, Default)]
struct Seen {
    answered: usize,
    refused: usize,
    without: usize,
    /// The connection ended.
    gone: bool,
}

async fn asked(client: &mut Client, model: &str) -> Option<Reply> {
    let body = json!({"model": model, "messages": [{"role": "user", "content": "hello"}]}).to_string();
    client.try_send(ask("POST", "/v1/chat/completions", body)).await.ok()
}

/// Asks each model by turns, and holds that each answer is one of those that its policy allows.
async fn requests(gateway: &Gateway, rounds: usize, held: &mut Held) -> Seen {
    let mut seen = Seen::default();
    let Ok(mut client) = gateway.dial().connect().await else { return Seen { gone: true, ..seen } };
    for _ in 0..rounds {
        for model in ["chat", "sure", "kind"] {
            let Some(reply) = asked(&mut client, model).await else { return Seen { gone: true, ..seen } };
            let statement = reply.header("provenance-statement").trim_matches(':').to_owned();
            match (reply.status.as_u16(), statement.is_empty()) {
                (200, false) => {
                    seen.answered += 1;
                    assert!(held.insert(STANDARD.decode(statement).unwrap()));
                }
                (200, true) if model == "kind" => seen.without += 1,
                (503, true) if model != "kind" && reply.reason() == "prove.unavailable" => {
                    assert!(reply.receipt().is_none(), "{reply:?}");
                    seen.refused += 1;
                }
                // It is let in, and the log may take what tells of it while it did not take the answer.
                (503, false) if model != "kind" && reply.reason() == "prove.unavailable" => {
                    seen.refused += 1;
                    assert!(held.insert(STANDARD.decode(statement).unwrap()));
                }
                _ => panic!("{model}: {reply:?}"),
            }
        }
    }
    seen
}

/// The log is as it should be, but for a torn end where a process died, and has everything that was promised.
fn holds(folder: &Folder, held: &Held, when: &str) {
    let report = verify_dir(&folder.log(), None).unwrap();
    let forgiven = usize::from(report.torn_bytes > 0);
    assert!(report.problems.len() <= forgiven, "{when}: {report:#?}");
    let entries: Held = Entries::of_live(&folder.log()).unwrap().map(|entry| entry.unwrap().1).collect();
    assert_eq!(entries.len() as u64, report.entries, "{when}: no entry twice");
    let lost = held.iter().filter(|statement| !entries.contains(*statement)).count();
    assert_eq!(lost, 0, "{when}: of {} statements", held.len());
}

/// Starts without faults, answers, stops in order.
async fn goes_on(folder: &Folder, held: &mut Held, when: &str) {
    let gateway = folder.serve().await;
    let seen = requests(&gateway, 2, held).await;
    assert_eq!((seen.answered, seen.gone), (6, false), "{when}: {seen:?}");
    gateway.stop().await;
    holds(folder, held, when);
    let report = folder.verified_log();
    assert_eq!(report["ok"], true, "{when}: {report:#}");
}

async fn under(plan: &Plan, folder: &Folder) -> Gateway {
    let words = plan.words(folder);
    Gateway::start(folder, &words.iter().map(String::as_str).collect::<Vec<_>>()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_full_disk_does_not_take_is_refused_or_counted_and_it_goes_on_without_a_restart() {
    let upstream = Upstream::language().await;
    let folder = folder(&upstream);
    let plan = Plan::new(&folder);
    let gateway = under(&plan, &folder).await;
    let mut held = Held::new();
    let mut without = 0;
    for (call, error) in [
        (Call::Write, ENOSPC),
        (Call::Half, ENOSPC),
        (Call::Pwrite, ENOSPC),
        (Call::Rename, ENOSPC),
        (Call::Rename, EIO),
        (Call::Open, ENOSPC),
        (Call::Open, EMFILE),
        (Call::Unlink, EIO),
    ] {
        for pass in [0, 1, 2, 5] {
            let when = format!("{call:?} fails with {error} after {pass}");
            assert_eq!(requests(&gateway, 1, &mut held).await.answered, 3, "before {when}");
            // Half a write that arrives is followed by one that does not.
            plan.fail(call, error, pass, -1);
            let from = Instant::now();
            while plan.failed() == 0 || from.elapsed() < Duration::from_millis(120) {
                let seen = requests(&gateway, 3, &mut held).await;
                assert!(!seen.gone, "{when}: it ended: {:#?}", gateway.said());
                without += seen.without;
                assert!(from.elapsed() < PATIENCE, "{when}: never met");
            }
            if call == Call::Write {
                let before = upstream.count();
                let seen = requests(&gateway, 3, &mut held).await;
                assert_eq!((seen.answered, seen.refused, seen.without), (0, 6, 3), "{when}");
                // No model is asked whose answer would be refused, but at the moment when it is tried again.
                assert!(upstream.count() - before <= seen.without + 1, "{when}: models were asked");
                without += seen.without;
                let (status, body) = gateway.admin("/readyz").await;
                let cause = format!("the provenance log takes no entries: {}: No space left", folder.log().display());
                // At the moment when it is tried again it takes some.
                assert!(status == 200 || body.contains(&cause) || !body.contains("takes no"), "{when}: {body}");
            }
            plan.over();
            gateway.admin_until("/readyz", |status, _| status == 200).await;
        }
    }
    assert_eq!(requests(&gateway, 1, &mut held).await.answered, 3);
    assert_eq!(gateway.metric("portcullis_log_gaps_total").await, without as f64);
    gateway.stop().await;
    holds(&folder, &held, "at the end");
    let report = folder.verified_log();
    assert_eq!(report["ok"], true, "{report:#}");
    // Every gap is told by an entry, once there was room again.
    let told: u64 = folder.entries().iter().filter_map(|entry| entry["counts"]["gaps"].as_u64()).sum();
    assert_eq!(told, without as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_whose_disk_is_full_opens_and_waits_for_room_and_is_ready_where_no_model_demands_it() {
    let upstream = Upstream::language().await;
    for (call, serves) in [(Call::Write, false), (Call::Write, true), (Call::Rename, false)] {
        let when = format!("{call:?}, {serves}");
        let folder = folder(&upstream);
        if serves {
            for model in ["chat", "sure"] {
                folder.upstream(model, "openai", &upstream, "", "[prove]\non_failure = \"serve\"\n");
            }
        }
        let mut held = Held::new();
        goes_on(&folder, &mut held, "at first").await;
        let plan = Plan::new(&folder);
        plan.fail(call, ENOSPC, 0, -1);
        let gateway = under(&plan, &folder).await;
        let mut client = gateway.dial().connect().await.unwrap();
        // Without tiles there is no checkpoint, and entries are taken all the same.
        let takes = call == Call::Rename;
        let mut without = 0;
        for model in ["kind", "chat"] {
            let reply = asked(&mut client, model).await.unwrap();
            let answered = takes || serves || model == "kind";
            assert_eq!(reply.status == 200, answered, "{when}: {reply:?}");
            without += usize::from(answered && reply.receipt().is_none());
            if let (true, Some(statement)) = (answered, reply.headers.get("provenance-statement")) {
                held.insert(STANDARD.decode(statement.to_str().unwrap().trim_matches(':')).unwrap());
            }
        }
        let ready = if takes || serves { 200 } else { 503 };
        let cause = if takes { "no checkpoint of the provenance log can be made" } else { "the provenance log takes no entries" };
        gateway.admin_until("/readyz", |_, body| body.contains("provenance log")).await;
        let (status, body) = gateway.admin("/readyz").await;
        assert!(status == ready && body.contains(cause) && body.contains("No space left"), "{when}: {status} {body}");
        let reply = client.try_send(ask("GET", "/v2/health/ready", String::new())).await.unwrap();
        assert_eq!(reply.status.as_u16(), ready, "{when}: {reply:?}");
        plan.over();
        gateway.admin_until("/readyz", |status, body| status == 200 && !body.contains("provenance log")).await;
        assert_eq!(requests(&gateway, 1, &mut held).await.answered, 3, "{when}");
        assert_eq!(gateway.metric("portcullis_log_gaps_total").await > 0.0, without > 0, "{when}");
        gateway.stop().await;
        holds(&folder, &held, &when);
        let report = folder.verified_log();
        assert_eq!(report["ok"], true, "{when}: {report:#}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_fails_ends_it_and_what_was_promised_is_there_at_the_next_start() {
    let upstream = Upstream::language().await;
    for call in [Call::Fdatasync, Call::Fsync] {
        let folder = folder(&upstream);
        let (mut held, mut left_out) = (Held::new(), 0);
        goes_on(&folder, &mut held, "at first").await;
        for (error, pass) in [(EIO, 0), (EIO, 1), (ENOSPC, 2), (EIO, 5)] {
            let when = format!("{call:?} fails with {error} after {pass}");
            let plan = Plan::new(&folder);
            let gateway = under(&plan, &folder).await;
            assert_eq!(requests(&gateway, 1, &mut held).await.answered, 3);
            plan.fail(call, error, pass, 1);
            let from = Instant::now();
            while !requests(&gateway, 3, &mut held).await.gone {
                assert!(from.elapsed() < PATIENCE, "{when}: it goes on");
            }
            let said = gateway.said();
            assert_eq!(gateway.ended().await.signal(), Some(6), "{when}: it ends itself: {said:#?}");
            holds(&folder, &held, &when);
            goes_on(&folder, &mut held, &when).await;
            // Where entries may have been lost numbers are left out, and an entry says so. The other syncs are of the lock file.
            let now = verify_dir(&folder.log(), None).unwrap().left_out.len();
            assert_eq!(now > left_out, call == Call::Fdatasync, "{when}");
            left_out = now;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_fails_leaves_a_log_that_takes_nothing_or_goes_on_and_never_a_half() {
    let upstream = Upstream::language().await;
    for call in [Call::Write, Call::Half] {
        let folder = folder(&upstream);
        let mut held = Held::new();
        // Before its first checkpoint a log cannot be verified.
        goes_on(&folder, &mut held, "at first").await;
        for pass in [0, 1, 3] {
            let when = format!("{call:?} fails after {pass}");
            let plan = Plan::new(&folder);
            let gateway = under(&plan, &folder).await;
            assert_eq!(requests(&gateway, 1, &mut held).await.answered, 3);
            plan.fail(call, EIO, pass, if call == Call::Half { 1 } else { -1 });
            for _ in 0..20 {
                assert!(!requests(&gateway, 1, &mut held).await.gone, "{when}: {:#?}", gateway.said());
            }
            plan.over();
            let after = requests(&gateway, 1, &mut held).await;
            assert!(after.answered == 3 || after.refused == 2 && after.without == 1, "{when}: {after:?}");
            gateway.kill();
            holds(&folder, &held, &when);
            goes_on(&folder, &mut held, &when).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_fails_anywhere_fails_in_order_and_the_next_one_finds_everything() {
    let upstream = Upstream::language().await;
    let folder = folder(&upstream);
    let mut held = Held::new();
    goes_on(&folder, &mut held, "at first").await;
    let mut failures = 0;
    for (call, error) in [
        (Call::Write, ENOSPC),
        (Call::Pwrite, EIO),
        (Call::Fsync, EIO),
        (Call::Fdatasync, EIO),
        (Call::Rename, EIO),
        (Call::Open, EMFILE),
        (Call::Truncate, EIO),
        (Call::Unlink, EIO),
    ] {
        for pass in [0, 1, 2, 4, 7, 11] {
            // As a process leaves it that is killed: with something that no checkpoint covers.
            let gateway = folder.serve().await;
            requests(&gateway, 1, &mut held).await;
            gateway.kill();
            let when = format!("{call:?} fails with {error} in a start after {pass}");
            let plan = Plan::new(&folder);
            plan.fail(call, error, pass, 1);
            let ready = starts(&plan, &folder);
            let met = plan.failed() > 0;
            failures += u32::from(!ready);
            holds(&folder, &held, &when);
            // It came so far that there was no such call any more.
            if !met {
                break;
            }
        }
        goes_on(&folder, &mut held, &format!("{call:?}")).await;
    }
    assert!(failures >= 8, "{failures} starts failed");
}

/// Whether it came to be ready, and is killed then; otherwise it has ended itself with a word why.
fn starts(plan: &Plan, folder: &Folder) -> bool {
    use std::io::{BufRead, BufReader};
    let words = plan.words(folder);
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .args([PROGRAM, "serve", "--policies", folder.policies().to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = Vec::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok) {
        let ready = line.contains("ready on ");
        said.push(line);
        if ready {
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
    }
    let status = child.wait().unwrap();
    assert!(status.code() == Some(1) || status.signal() == Some(6), "{status}: {said:#?}");
    assert!(said.iter().any(|line| line.contains("provenance log")), "{said:#?}");
    false
}
