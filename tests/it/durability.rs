//! What was acknowledged is not lost: the process may die at any moment, or be told to stop.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::ask::{ask, bare, chat, post_chat, post_stream};
use crate::support::upstream::whole;
use crate::support::{Client, Folder, Gateway, PATIENCE, Upstream};

const CLIENTS: usize = 8;

/// Receipts that clients hold.
type Held = Arc<Mutex<Vec<String>>>;

/// Asks the two models by turns until the connection ends, and keeps every receipt of a whole answer.
async fn load(mut client: Client, held: Held, count: Arc<watch::Sender<usize>>) {
    for turn in 0.. {
        let mut body = chat();
        body["model"] = json!(if turn % 2 == 0 { "chat" } else { "sure" });
        let Ok(reply) = client.try_send(ask("POST", "/v1/chat/completions", body.to_string())).await else { return };
        assert_eq!(reply.status, 200, "{reply:?}");
        held.lock().unwrap().push(reply.receipt().unwrap());
        count.send_modify(|count| *count += 1);
    }
}

struct Load {
    running: Vec<JoinHandle<()>>,
    count: watch::Receiver<usize>,
}

impl Load {
    async fn on(gateway: &Gateway, held: &Held) -> Self {
        let (tell, count) = watch::channel(0);
        let tell = Arc::new(tell);
        let mut running = Vec::new();
        for _ in 0..CLIENTS {
            running.push(tokio::spawn(load(gateway.h2().await, held.clone(), tell.clone())));
        }
        Self { running, count }
    }

    async fn has_had(&mut self, count: usize) {
        tokio::time::timeout(PATIENCE, self.count.wait_for(|had| *had >= count)).await.unwrap().unwrap();
    }

    async fn ends(self) {
        for client in self.running {
            tokio::time::timeout(PATIENCE, client).await.expect("a client still waits").unwrap();
        }
    }
}

fn folder(upstream: &Upstream) -> Folder {
    let folder = Folder::new();
    folder.upstream("chat", "openai", upstream, "", "");
    folder.upstream("sure", "openai", upstream, "", "[prove]\nmode = \"durable\"\n");
    folder
}

fn every_receipt_is_in_the_log(folder: &Folder, held: &Held) {
    let report = folder.verified_log();
    assert_eq!(report["ok"], true, "{report:#}");
    let logged: HashSet<String> = folder.entries().iter().map(|entry| entry["id"].as_str().unwrap().to_owned()).collect();
    let held = held.lock().unwrap();
    let lost = held.iter().filter(|id| !logged.contains(*id)).count();
    assert_eq!(lost, 0, "of {} receipts", held.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_killed_as_soon_as_it_is_open_can_be_verified() {
    let upstream = Upstream::language().await;
    let folder = folder(&upstream);
    folder.serve().await.kill();
    every_receipt_is_in_the_log(&folder, &Held::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_under_load_loses_no_receipt() {
    let upstream = Upstream::language().await;
    let folder = folder(&upstream);
    let held = Held::default();
    for round in 1..=5 {
        let gateway = folder.serve().await;
        let mut load = Load::on(&gateway, &held).await;
        load.has_had(60 + 37 * round).await;
        gateway.kill();
        load.ends().await;
        every_receipt_is_in_the_log(&folder, &held);
    }
    // A last start finds everything, goes on, and stops in order.
    let gateway = folder.serve().await;
    let last = gateway.h2().await.send(post_chat()).await.receipt().unwrap();
    held.lock().unwrap().push(last);
    gateway.stop().await;
    every_receipt_is_in_the_log(&folder, &held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_under_load_loses_nothing_and_cuts_nobody() {
    let upstream = Upstream::language().await;
    let folder = folder(&upstream);
    let held = Held::default();
    let gateway = folder.serve().await;
    let mut load = Load::on(&gateway, &held).await;
    load.has_had(200).await;
    let said = gateway.stop().await;
    assert!(said.iter().any(|line| line.contains("stopped; 0 request(s) cut")), "{said:#?}");
    load.ends().await;
    every_receipt_is_in_the_log(&folder, &held);
    // Whatever was asked of a model was answered to the one who asked.
    assert_eq!(upstream.count(), held.lock().unwrap().len());
}

#[tokio::test]
async fn a_stop_waits_for_what_is_in_flight() {
    let (release, released) = watch::channel(false);
    let upstream = Upstream::start(move |_| {
        let mut released = released.clone();
        async move {
            let _ = released.wait_for(|released| *released).await;
            whole(200, &json!({"object": "chat.completion", "model": "chat", "choices": []}))
        }
    })
    .await;
    let folder = folder(&upstream);
    let gateway = folder.serve().await;
    let (mut one, mut two) = (gateway.h1().await, gateway.h2().await);
    let (one, two) = (tokio::spawn(async move { one.send(post_chat()).await }), tokio::spawn(async move { two.send(post_chat()).await }));
    upstream.has_seen(2).await;
    gateway.signal("TERM");
    // Nobody new is let in.
    let asked = std::time::Instant::now();
    while gateway.dial().connect().await.is_ok() {
        assert!(asked.elapsed() < PATIENCE, "it still takes connections");
    }
    // Operators see it to its end.
    let (status, body) = gateway.admin("/readyz").await;
    assert!(status == 503 && body.contains("told to stop"), "{status} {body}");
    assert_eq!(gateway.admin("/livez").await.0, 200);
    assert!((gateway.metric("http_server_active_requests").await - 2.0).abs() < f64::EPSILON);
    release.send(true).unwrap();
    let held = Held::default();
    for reply in [one.await.unwrap(), two.await.unwrap()] {
        held.lock().unwrap().push(reply.is(200).receipt().unwrap());
    }
    gateway.says("stopped; 0 request(s) cut").await;
    assert!(gateway.ended().await.success());
    every_receipt_is_in_the_log(&folder, &held);
}

#[tokio::test]
async fn a_stop_that_has_waited_long_enough_says_whom_it_cut_and_signs_how_far_they_came() {
    const STREAMS: usize = 40;
    let (tell, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let upstream = Upstream::start(move |_| {
        let (writer, response) = crate::support::upstream::stream("text/event-stream");
        let _ = tell.send(writer);
        async move { response }
    })
    .await;
    let folder = folder(&upstream);
    folder.gateway("drain = \"300ms\"", "");
    let gateway = folder.serve().await;
    let client = gateway.h2().await;
    let mut cut = Vec::new();
    for _ in 0..STREAMS {
        let held = client.again().open(post_stream()).await.unwrap();
        let id = crate::support::client::receipt(held.headers()).unwrap();
        let writer = begun.recv().await.unwrap();
        writer.send(crate::support::upstream::events("chat", false)[0].clone().into()).await.unwrap();
        cut.push((id, held, writer));
    }
    gateway.signal("TERM");
    gateway.says(&format!("stopped; {STREAMS} request(s) cut")).await;
    assert!(gateway.ended().await.success());
    let entries = folder.entries();
    for (id, held, _writer) in cut {
        assert!(crate::support::Reply::read(held).await.is_err(), "what was cut must not look like a whole answer");
        let entry = entries.iter().find(|entry| entry["id"] == id.as_str()).expect("the stream that was cut has its statement");
        assert_eq!((&entry["kind"], &entry["resp"]["complete"]), (&json!("aborted"), &json!(false)));
    }
}

#[tokio::test]
async fn a_stop_refuses_what_has_no_answer_before_it_cuts() {
    let upstream = Upstream::start(|_| std::future::pending::<http::Response<crate::support::upstream::Body>>()).await;
    let folder = folder(&upstream);
    folder.gateway("drain = \"2s\"", "");
    let gateway = folder.serve().await;
    let (mut one, mut two) = (gateway.h1().await, gateway.h2().await);
    let (one, two) = (tokio::spawn(async move { one.send(post_chat()).await }), tokio::spawn(async move { two.send(post_chat()).await }));
    upstream.has_seen(2).await;
    gateway.signal("TERM");
    let refused: Vec<String> = [one.await.unwrap(), two.await.unwrap()]
        .into_iter()
        .map(|reply| {
            let reply = reply.is(503);
            assert_eq!(reply.reason(), "infer.unavailable");
            reply.receipt().unwrap()
        })
        .collect();
    gateway.says("stopped; 0 request(s) cut").await;
    assert!(gateway.ended().await.success());
    let entries = folder.entries();
    for id in refused {
        let entry = entries.iter().find(|entry| entry["id"] == id.as_str()).expect("the refusal has its entry");
        assert_eq!(entry["kind"], "error");
    }
    let counts = entries.iter().rfind(|entry| entry["counts"]["life"] == 3).expect("the log was closed");
    assert_eq!(counts["counts"]["abandoned"], 0, "{counts}");
}

#[tokio::test]
async fn a_log_without_checkpoints_says_so_and_why_and_refuses_at_once_what_needs_them() {
    let upstream = Upstream::language().await;
    let folder = folder(&upstream);
    folder.upstream("included", "openai", &upstream, "", "[prove]\nmode = \"included\"\n");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let asked = |model: &str| {
        let mut body = chat();
        body["model"] = json!(model);
        ask("POST", "/v1/chat/completions", body.to_string())
    };
    client.send(asked("included")).await.is(200);
    // No tile can be written where there is no folder for it.
    let (tiles, aside) = (folder.log().join("tile"), folder.log().join("aside"));
    std::fs::rename(&tiles, &aside).unwrap();
    std::fs::write(&tiles, "").unwrap();
    client.send(asked("chat")).await.is(200);
    let told = gateway.says("no checkpoint of the provenance log can be made: ").await;
    assert!(told.contains("log/tile/") && told.contains("Not a directory"), "{told}");
    gateway.admin_until("/readyz", |status, body| status == 200 && body.contains("log/tile/")).await;
    tokio::time::sleep(portcullis::prove::publisher::STALLED).await;
    let (before, from) = (upstream.count(), std::time::Instant::now());
    assert_eq!(client.send(asked("included")).await.is(503).reason(), "prove.unavailable");
    assert!(from.elapsed() < std::time::Duration::from_secs(2), "{:?}", from.elapsed());
    assert_eq!(upstream.count(), before, "no model is asked for it");
    // What needs none goes on.
    client.send(asked("chat")).await.is(200);
    std::fs::remove_file(&tiles).unwrap();
    std::fs::rename(&aside, &tiles).unwrap();
    gateway.says("over: no checkpoint").await;
    gateway.admin_until("/readyz", |_, body| body == "ready\n").await;
    client.send(asked("included")).await.is(200);
    gateway.stop().await;
    let log = folder.security_log();
    for event in ["log.failed", "log.recovered"] {
        let told: Vec<_> = log.iter().filter(|line| line["event"] == event).collect();
        assert!(told.len() == 1 && told[0]["part"] == "checkpoint", "{event}: {told:?}");
    }
    assert_eq!(folder.verified_log()["ok"], true);
}

#[tokio::test]
async fn where_every_model_refuses_for_want_of_checkpoints_the_gateway_is_not_ready() {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    let model = |on_failure: &str| {
        let prove = format!("[prove]\nmode = \"included\"\non_failure = \"{on_failure}\"\n");
        folder.upstream("included", "openai", &upstream, "", &prove);
    };
    model("refuse");
    let gateway = folder.serve().await;
    let (tiles, aside) = (folder.log().join("tile"), folder.log().join("aside"));
    std::fs::rename(&tiles, &aside).unwrap();
    std::fs::write(&tiles, "").unwrap();
    let mut client = gateway.h2().await;
    client.send(bare("GET", "/v1/models", "", None)).await.is(401);
    let why = "no checkpoint of the provenance log can be made: ";
    // At first it may be over in time for those who wait.
    gateway.admin_until("/readyz", |status, body| status == 200 && body.contains(why)).await;
    gateway.admin_until("/readyz", |status, body| status == 503 && body.contains(why)).await;
    model("serve");
    gateway.admin_until("/readyz", |status, body| status == 200 && body.contains(why)).await;
    std::fs::remove_file(&tiles).unwrap();
    std::fs::rename(&aside, &tiles).unwrap();
    gateway.admin_until("/readyz", |_, body| body == "ready\n").await;
}

/// Who verifies a log need not trust who wrote it: what lies there may be a trap.
#[tokio::test]
async fn files_that_no_log_has_are_told_and_never_waited_for_or_held() {
    let upstream = Upstream::language().await;
    let folder = folder(&upstream);
    let gateway = folder.serve().await;
    gateway.h2().await.send(post_chat()).await.is(200);
    gateway.stop().await;
    let sound = std::fs::metadata(folder.log().join("ids")).unwrap().len();
    type Trap = fn(&std::path::Path);
    let hole: Trap = |path| std::fs::File::options().write(true).create(true).truncate(false).open(path).unwrap().set_len(1 << 42).unwrap();
    let link: Trap = |path| {
        let _ = std::fs::remove_file(path);
        std::os::unix::fs::symlink("/dev/zero", path).unwrap();
    };
    let pipe: Trap = |path| {
        let _ = std::fs::remove_file(path);
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    for file in [
        "ids",
        "checkpoint",
        "checkpoint.cose",
        "keys.vkey",
        "witnessed",
        "entry.0",
        "wal-00000000",
        "tile/0/000.p/1",
        "tile/entries/000.p/1",
    ] {
        for (trap, lay) in [("a hole", hole), ("a link", link), ("a pipe", pipe)] {
            let copy = folder.home().join("copy");
            assert!(std::process::Command::new("cp").arg("-r").arg(folder.log()).arg(&copy).status().unwrap().success());
            std::fs::create_dir_all(copy.join(file).parent().unwrap()).unwrap();
            lay(&copy.join(file));
            for command in ["verify", "show"] {
                // A gigabyte is far more than a log of this size needs.
                let script = format!("ulimit -v 1048576; exec timeout 20 \"$0\" log {command} copy >/dev/null");
                let mut limited = std::process::Command::new("sh");
                let output = limited.args(["-c", &script, env!("CARGO_BIN_EXE_portcullis")]).current_dir(folder.home()).output().unwrap();
                let code = output.status.code();
                // To show entries is not to look at everything.
                let expected = if command == "verify" { code == Some(1) } else { matches!(code, Some(0 | 1)) };
                assert!(expected, "{command} with {trap} for {file}: {output:?}");
            }
            std::fs::remove_dir_all(copy).unwrap();
        }
    }
    assert_eq!(std::fs::metadata(folder.log().join("ids")).unwrap().len(), sound);
    assert_eq!(folder.verified_log()["ok"], true);
}
