//! A model's worker: what it cannot do, what its end costs, and whom it does not touch.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use portcullis::digest::Digest;
use serde_json::{Value, json};

use crate::support::ask::ask;
use crate::support::{Client, Folder, Gateway, PATIENCE, PROGRAM, Reply, hostile};

/// Whom containers and packages run as.
const NOBODY: u32 = 65534;

/// `portcullis walls --json`, as this user, or as another one where this is root.
fn walls(isolation: &str, user: Option<u32>) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("portcullis");
    fs::copy(PROGRAM, &program).unwrap();
    for path in [folder.path(), &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(&program);
    command.args(["walls", "--json", "--isolation", isolation]).current_dir("/");
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let output = command.output().unwrap();
    let told = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert!(output.status.success(), "{told:#}");
    told
}

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn the_walls_that_need_no_privilege_stand_for_everybody_and_whatever_is_tried_is_refused() {
    let users = if root() { vec![None, Some(NOBODY)] } else { vec![None] };
    for user in users {
        let told = walls("required", user);
        for wall in ["descriptors", "limits", "no-new-privileges", "capabilities", "undumpable", "dies-with-gateway", "landlock", "seccomp"]
        {
            assert!(told["walls"].as_array().unwrap().contains(&json!(wall)), "{wall} as {user:?}: {told:#}");
        }
        let attempts = told["attempts"].as_array().unwrap();
        assert_eq!(attempts.len(), 15 + 17);
        for attempt in attempts {
            // What it may not do while it serves is its end, but for memory, which is refused as memory always may be.
            let fate = match (attempt["while"].as_str().unwrap(), attempt["attempt"].as_str().unwrap()) {
                (_, "take more memory than its limit") => json!({ "refused": 12 }),
                ("loading", "read /etc/passwd" | "read /proc/1/environ" | "list /proc") => json!({ "refused": 13 }),
                ("loading", "raise its limits") => json!({ "refused": 1 }),
                _ => json!("killed"),
            };
            assert_eq!(attempt["fate"], fate, "as {user:?}: {attempt}");
        }
    }
}

/// As in a container that may make no namespaces: a user namespace in which there can be no other, without the capability for the rest.
#[test]
fn without_namespaces_the_other_walls_stand_and_strict_says_what_is_missing() {
    let inside = |isolation: &str| {
        let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-sys_admin --inh-caps=-all \"$0\" \"$@\"";
        let words = ["--user", "--map-root-user", "sh", "-c", script, PROGRAM, "walls", "--json", "--isolation", isolation];
        Command::new("unshare").args(words).output().unwrap()
    };
    let output = inside("required");
    if String::from_utf8_lossy(&output.stderr).contains("unshare failed") {
        eprintln!("this is such a container");
        return;
    }
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert!(output.status.success(), "{told:#}");
    let missing: Vec<&str> = told["missing"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for wall in ["user-namespace", "network-namespace", "ipc-namespace"] {
        assert!(missing.contains(&wall), "{told:#}");
    }
    assert!(told["attempts"].as_array().unwrap().iter().all(|attempt| attempt["fate"] != "succeeded"), "{told:#}");
    let output = inside("strict");
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("\"strict\"") && told.contains("user-namespace, network-namespace, ipc-namespace"), "{told}");
}

#[test]
fn a_worker_cannot_be_started_by_hand() {
    let output = Command::new(PROGRAM).arg("worker").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not by hand"));
}

/// A model's file in the folder, `name` and what is said of it.
fn model(folder: &Folder, name: &str, bytes: &[u8], more: &str) {
    folder.write(&format!("models/{name}.onnx"), bytes);
    let (digest, budget) = (Digest::of(bytes), "[budget.default]\nrequests = { rate = \"100000/s\", burst = 100000 }\nin_flight = 10000\n");
    folder.model(
        name,
        format!("name = \"{name}\"\npublic = true\n[backend.onnx]\npath = \"{name}.onnx\"\nsha256 = \"{digest}\"\n{more}\n{budget}"),
    );
}

const DIGITS: &[u8] = include_bytes!("../../policies/models/digits.onnx");

async fn digits(client: &mut Client, name: &str) -> Reply {
    let input = json!({ "name": "input", "datatype": "FP32", "shape": [1, 64], "data": vec![0.0; 64] });
    client.send(ask("POST", &format!("/v2/models/{name}/infer"), json!({ "inputs": [input] }).to_string())).await
}

async fn endless(client: &mut Client, times: i64) -> Reply {
    let inputs = json!([
        { "name": "times", "datatype": "INT64", "shape": [], "data": [times] },
        { "name": "x", "datatype": "FP32", "shape": [1], "data": [1.5] }
    ]);
    client.send(ask("POST", "/v2/models/endless/infer", json!({ "inputs": inputs }).to_string())).await
}

/// The processes whose command line has all of `words`, with their states.
fn processes(words: &[&str]) -> Vec<(u32, char)> {
    let known = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let state = stat.rsplit(')').next()?.trim().chars().next()?;
        words.iter().all(|word| line.contains(word)).then_some((pid, state))
    };
    fs::read_dir("/proc").unwrap().filter_map(|entry| known(entry.ok()?)).collect()
}

/// The worker of a model of this test, whose name no other has.
fn worker(name: &str) -> u32 {
    let found = processes(&["portcullis worker", &format!("--model={name}")]);
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].0
}

fn kill(pid: u32) {
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
}

/// Asks until it is answered; what else is said must be that there is no engine.
async fn until_answered(client: &mut Client, name: &str) -> usize {
    let (from, mut refused) = (Instant::now(), 0);
    loop {
        let reply = digits(client, name).await;
        if reply.status == 200 {
            return refused;
        }
        assert_eq!((reply.status.as_u16(), reply.reason()), (503, "infer.unavailable"));
        refused += 1;
        assert!(from.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Open descriptors of the gateway whose worker is `worker`.
fn descriptors(worker: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim();
    fs::read_dir(format!("/proc/{parent}/fd")).unwrap().count()
}

#[tokio::test]
async fn a_worker_that_is_killed_under_load_is_started_again_and_touches_no_other_model() {
    let folder = Folder::new();
    model(&folder, "killed-one", DIGITS, "");
    model(&folder, "other-one", DIGITS, "");
    let gateway = folder.serve().await;
    let client = gateway.h2().await;
    let other = tokio::spawn({
        let mut client = client.again();
        async move {
            let until = Instant::now() + Duration::from_secs(3);
            let mut answered = 0;
            while Instant::now() < until {
                digits(&mut client, "other-one").await.is(200);
                answered += 1;
            }
            answered
        }
    });
    let mut client = client.again();
    let mut before = 0;
    for round in 0..5 {
        until_answered(&mut client, "killed-one").await;
        let pid = worker("killed-one");
        if round == 0 {
            before = descriptors(pid);
        }
        let mut loaded = client.again();
        let load = tokio::spawn(async move {
            for _ in 0..20 {
                let reply = digits(&mut loaded, "killed-one").await;
                assert!(reply.status == 200 || reply.reason() == "infer.unavailable", "{reply:?}");
            }
        });
        kill(pid);
        load.await.unwrap();
    }
    until_answered(&mut client, "killed-one").await;
    assert!(other.await.unwrap() > 20);
    gateway.says("model killed-one: its worker is gone, killed from outside").await;
    // Every fall stands in the security log, and in the metrics that another worker took its place.
    let from = Instant::now();
    let falls = loop {
        let falls: Vec<Value> = folder.security_log().into_iter().filter(|line| line["event"] == "model.fell").collect();
        if falls.len() >= 5 {
            break falls;
        }
        assert!(from.elapsed() < PATIENCE, "{falls:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(falls.len(), 5, "{falls:#?}");
    for fall in &falls {
        assert_eq!(fall["model"], "killed-one");
        assert!(fall["why"].as_str().unwrap().contains("killed from outside"), "{fall}");
    }
    gateway.admin_until("/metrics", |_, text| text.contains("portcullis_model_restarts_total{model=\"killed-one\",version=\"\"} 5")).await;
    let (_, metrics) = gateway.admin("/metrics").await;
    assert!(metrics.contains("portcullis_model_restarts_total{model=\"other-one\",version=\"\"} 0"), "{metrics}");
    // Nothing is left of the dead: no descriptor, no zombie. The log and the operators' connections have some for a moment.
    let from = Instant::now();
    while descriptors(worker("killed-one")) > before {
        assert!(from.elapsed() < PATIENCE, "{} descriptors, {before} before", descriptors(worker("killed-one")));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(processes(&["--model=killed-one"]).iter().all(|(_, state)| *state != 'Z'));
    gateway.stop().await;
    assert!(processes(&["--model=killed-one"]).is_empty());
}

#[tokio::test]
async fn a_worker_that_had_died_unseen_costs_no_call() {
    let folder = Folder::new();
    model(&folder, "unseen-one", DIGITS, "");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    digits(&mut client, "unseen-one").await.is(200);
    let pid = worker("unseen-one");
    kill(pid);
    while processes(&["--model=unseen-one"]).iter().any(|(_, state)| *state != 'Z') {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // It is noticed at once, and the first calls may have to wait for the pause of a worker that was young.
    assert!(until_answered(&mut client, "unseen-one").await < 200);
    gateway.stop().await;
}

#[tokio::test]
async fn a_worker_that_crashes_is_told_to_have_crashed() {
    let folder = Folder::new();
    model(&folder, "crashed-one", DIGITS, "");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    for (number, signal) in ["-SEGV", "-BUS"].into_iter().enumerate() {
        until_answered(&mut client, "crashed-one").await;
        let pid = worker("crashed-one").to_string();
        // The first is taken by a handler of Rust's library, which then stands aside as it does where a fault happens again.
        for _ in 0..2 {
            let _ = Command::new("kill").args([signal, &pid]).status().unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let from = Instant::now();
        let told = loop {
            let told: Vec<String> = gateway.said().into_iter().filter(|line| line.contains("its worker is gone")).collect();
            if told.len() > number {
                break told;
            }
            assert!(from.elapsed() < PATIENCE, "{signal}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert!(told[number].contains("crashed-one: its worker is gone, crashed on memory that is not its own"), "{told:?}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn an_endless_loop_ends_by_its_deadline_and_the_next_call_works_in_the_same_worker() {
    let folder = Folder::new();
    folder.gateway("deadlines = { request = \"500ms\" }\n", "");
    model(&folder, "endless", &hostile::endless(), "");
    model(&folder, "beside-endless", DIGITS, "");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let pid = worker("endless");
    let from = Instant::now();
    let reply = endless(&mut client, i64::MAX).await;
    assert_eq!(reply.reason(), "infer.deadline", "{reply:?}");
    assert!(from.elapsed() < Duration::from_secs(5));
    digits(&mut client, "beside-endless").await.is(200);
    endless(&mut client, 3).await.is(200);
    assert_eq!(worker("endless"), pid);
    gateway.stop().await;
}

#[tokio::test]
async fn a_worker_that_hangs_is_killed_after_the_grace_and_the_next_call_works() {
    let folder = Folder::new();
    folder.gateway("deadlines = { request = \"300ms\" }\n", "");
    model(&folder, "hung-one", DIGITS, "");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    digits(&mut client, "hung-one").await.is(200);
    let pid = worker("hung-one");
    assert!(Command::new("kill").args(["-STOP", &pid.to_string()]).status().unwrap().success());
    let from = Instant::now();
    assert_eq!(digits(&mut client, "hung-one").await.reason(), "infer.deadline");
    assert!(from.elapsed() < Duration::from_secs(5));
    gateway.says("model hung-one: its worker is gone, killed by the gateway").await;
    // Those that wait meanwhile run into their own short deadlines.
    let from = Instant::now();
    while digits(&mut client, "hung-one").await.status != 200 {
        assert!(from.elapsed() < PATIENCE);
    }
    assert_ne!(worker("hung-one"), pid);
    gateway.stop().await;
}

#[tokio::test]
async fn a_memory_bomb_is_an_error_of_its_own_call_and_nobody_elses() {
    let folder = Folder::new();
    model(&folder, "bomb", &hostile::bomb(), "");
    model(&folder, "beside-bomb", DIGITS, "");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let pid = worker("bomb");
    let filled = |count: i64| {
        let shape = json!([{ "name": "shape", "datatype": "INT64", "shape": [2], "data": [count, 1024] }]);
        ask("POST", "/v2/models/bomb/infer", json!({ "inputs": shape }).to_string())
    };
    assert_eq!(client.send(filled(1024)).await.is(200).json()["outputs"][0]["data"], json!([1024 * 1024]));
    // 16 GiB.
    let reply = client.send(filled(4 << 20)).await;
    assert_eq!((reply.status.as_u16(), reply.reason()), (502, "infer.upstream"), "{reply:?}");
    digits(&mut client, "beside-bomb").await.is(200);
    client.send(filled(1024)).await.is(200);
    assert_eq!(worker("bomb"), pid);
    gateway.stop().await;
}

#[tokio::test]
async fn a_worker_dies_with_the_gateway_however_that_ends() {
    let folder = Folder::new();
    model(&folder, "orphan-one", DIGITS, "");
    let gateway = folder.serve().await;
    worker("orphan-one");
    gateway.kill();
    let from = Instant::now();
    while !processes(&["--model=orphan-one"]).is_empty() {
        assert!(from.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_worker_holds_nothing_but_its_sockets_and_says_nothing_to_anybody() {
    let (folder, home) = (Folder::new(), tempfile::tempdir().unwrap());
    model(&folder, "bare-one", DIGITS, "");
    let library = std::env::var_os("PORTCULLIS_ONNXRUNTIME").map_or_else(
        || {
            let data = std::env::var("XDG_DATA_HOME").unwrap_or_else(|_| format!("{}/.local/share", std::env::var("HOME").unwrap()));
            format!("{data}/portcullis/onnxruntime-1.28.0/libonnxruntime.so")
        },
        |named| named.to_str().unwrap().to_owned(),
    );
    let temporary = home.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    let set = |name: &str, value: &str| format!("{name}={value}");
    let (at, own) = (home.path().to_str().unwrap(), temporary.to_str().unwrap());
    let words = [
        set("HOME", at),
        set("XDG_CACHE_HOME", at),
        set("TMPDIR", own),
        set("PORTCULLIS_ONNXRUNTIME", &library),
        set("SECRET_OF_THE_GATEWAY", "1"),
    ];
    let words: Vec<&str> = std::iter::once("env").chain(words.iter().map(String::as_str)).collect();
    // A descriptor that its own parent left open does not get in.
    let shell = ["sh", "-c", "exec 9</dev/null; exec \"$0\" \"$@\""];
    let gateway = Gateway::start(&folder, &shell.into_iter().chain(words).collect::<Vec<_>>()).await;
    let mut client = gateway.h2().await;
    digits(&mut client, "bare-one").await.is(200);
    let pid = worker("bare-one");
    // What ends other programs is for the gateway, which drains first.
    for signal in ["-TERM", "-INT", "-HUP"] {
        assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
    }
    digits(&mut client, "bare-one").await.is(200);
    assert_eq!(worker("bare-one"), pid);
    if root() {
        let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
        let mut names: Vec<&str> = environment.split_terminator('\0').collect();
        names.sort_unstable();
        assert_eq!(names, ["ORT_DISABLE_TELEMETRY=1", "RAYON_NUM_THREADS=1"]);
        let mut open: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .map(|entry| fs::read_link(entry.unwrap().path()).unwrap().to_string_lossy().split(':').next().unwrap().to_owned())
            .collect();
        open.sort();
        assert_eq!(open, ["/dev/null", "/dev/null", "socket", "socket", "socket"]);
        // Another network than the gateway's, where the kernel gives one; and in either nothing that is connected anywhere.
        let sockets = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
        let own = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap() != fs::read_link("/proc/self/ns/net").unwrap();
        assert!(!own || sockets.lines().count() == 1, "{sockets}");
    }
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn the_start_says_which_walls_stand_for_which_model() {
    let folder = Folder::new();
    model(&folder, "walled-one", DIGITS, "");
    model(&folder, "free-one", DIGITS, "isolation = \"thread\"");
    let gateway = folder.serve().await;
    assert!(gateway.says("model walled-one: a worker behind walls").await.contains("landlock"));
    gateway.says("model free-one: isolation = \"thread\": no wall").await;
    let mut client = gateway.h2().await;
    digits(&mut client, "free-one").await.is(200);
    assert!(processes(&["--model=free-one"]).is_empty());
    gateway.stop().await;
    let log = folder.security_log();
    let loaded = |name: &str| log.iter().find(|event| event["event"] == "model.loaded" && event["model"] == name).unwrap().clone();
    assert_eq!(loaded("walled-one")["isolation"], "required");
    assert!(loaded("walled-one")["walls"].as_array().unwrap().contains(&json!("seccomp")));
    assert_eq!((&loaded("free-one")["isolation"], &loaded("free-one")["walls"]), (&json!("thread"), &json!([])));
}
