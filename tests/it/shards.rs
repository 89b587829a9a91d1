//! `portcullis log` over a log in shards: over the folder that holds them, and over one of them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use portcullis::clock::from_rfc3339;
use portcullis::event::{self, Reader};
use portcullis::prove::{Build, Config, Key, Ledger, Shards};
use portcullis::verify::entries::Entries;
use portcullis::verify::statement::Statement;
use serde_json::Value;

use crate::logs::append;
use crate::support::{PATIENCE, PROGRAM};

const ORIGIN: &str = "gate.test/portcullis/node1";
const LABELS: [&str; 2] = ["2026h1", "2026h2"];

fn at(text: &str) -> SystemTime {
    from_rfc3339(text).unwrap()
}

/// A folder with a key, and a log in shards in `log`.
struct Logs {
    folder: tempfile::TempDir,
    shards: Shards,
    _events: Reader,
}

impl Logs {
    /// The log, in its first shard, with `entries` of its own beside those that open it.
    async fn begun(key: &[u8], entries: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("log.key"), key).unwrap();
        let logs = Self::opened(folder, "2026-06-30T23:59:00Z");
        logs.append(entries).await;
        logs
    }

    fn opened(folder: tempfile::TempDir, now: &str) -> Self {
        let config = format!("directory = \"log\"\norigin = \"{ORIGIN}\"\nkey = \"log.key\"\nshards = \"half-yearly\"");
        let config: Config = toml::from_str(&config).unwrap();
        let (events, reader) = event::channel(64);
        let on_fatal = Box::new(|error: &std::io::Error| panic!("{error}"));
        let (shards, _) = Shards::open(at(now), &[], &config, folder.path(), Build::default(), events, on_fatal).unwrap();
        Self { folder, shards, _events: reader }
    }

    async fn append(&self, entries: u64) {
        for number in 0..entries {
            append(&self.shards.current(), number).await;
        }
    }

    async fn rolled(&self) {
        assert_eq!(self.shards.roll_over(at("2026-07-01T00:00:00Z")).await.unwrap().unwrap().to_string(), LABELS[1]);
    }

    /// A closed log of two shards.
    async fn two(key: &[u8], entries: [u64; 2]) -> Self {
        let logs = Self::begun(key, entries[0]).await;
        logs.rolled().await;
        logs.append(entries[1]).await;
        logs.shards.close();
        logs
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(PROGRAM).arg("log").args(arguments).current_dir(self.folder.path()).output().unwrap()
    }

    fn lines(&self, arguments: &[&str]) -> Vec<Value> {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What it says on standard error when the answer is no.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn verified(&self, arguments: &[&str]) -> (bool, Value) {
        let output = self.run(&[&["verify", "--json"], arguments].concat());
        (output.status.success(), serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}")))
    }

    fn path(&self, label: &str) -> PathBuf {
        self.folder.path().join("log").join(label)
    }

    /// What the statements of a shard say, read without the commands.
    fn entries(&self, label: &str) -> Vec<Value> {
        Entries::of(&self.path(label)).unwrap().map(|entry| Statement::read(&entry.unwrap().1).unwrap().view()).collect()
    }

    /// The log key of a shard.
    fn log_key(&self, label: &str) -> String {
        fs::read_to_string(self.path(label).join("keys.vkey")).unwrap().lines().next().unwrap().to_owned()
    }
}

fn key() -> Vec<u8> {
    Key::generate_pem().expose().to_vec()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let there = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            copy(&file.path(), &there);
        } else {
            fs::copy(file.path(), there).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shard_is_verified_under_the_key_of_any_of_them() {
    let logs = Logs::two(&key(), [20, 5]).await;
    let counts = LABELS.map(|label| logs.entries(label).len() as u64);
    for keys in [vec![], vec!["--key".to_owned(), logs.log_key("2026h1")], vec!["--key".to_owned(), logs.log_key("2026h2")]] {
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let (ok, report) = logs.verified(&[&["log"], &keys[..]].concat());
        assert!(ok && report["ok"] == true, "{report:#}");
        assert_eq!(report["shards"].as_object().unwrap().keys().collect::<Vec<_>>(), LABELS);
        assert_eq!(LABELS.map(|label| report["shards"][label]["entries"].as_u64().unwrap()), counts);
        for label in LABELS {
            assert_eq!(report["shards"][label]["origin"], format!("{ORIGIN}/{label}"));
            assert_eq!(report["shards"][label]["integrity_only"], keys.is_empty());
            // And each of them alone.
            let shard = format!("log/{label}");
            let (ok, report) = logs.verified(&[&[&*shard], &keys[..]].concat());
            assert!(ok && report["ok"] == true && report.get("shards").is_none(), "{report:#}");
        }
        assert_eq!(report["shards"]["2026h2"]["ended"][0]["entries"], counts[0]);
    }
    let told = String::from_utf8(logs.run(&["verify", "log"]).stdout).unwrap();
    for line in ["log/2026h1: the log holds", "log/2026h2: the log holds", "log: 2 of 2 shards hold"] {
        assert!(told.contains(line), "{line}: {told}");
    }
    let other = Key::from_pem(&key()).unwrap().log_vkey(ORIGIN).to_string();
    assert!(!logs.verified(&["log", "--key", &other]).0);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_one_shard_is_told_of_that_one_and_the_log_does_not_hold() {
    for (damaged, sound) in [(0, 1), (1, 0)] {
        let logs = Logs::two(&key(), [3, 3]).await;
        let file = logs.path(LABELS[damaged]).join("wal-00000000");
        let mut bytes = fs::read(&file).unwrap();
        bytes[200] ^= 1;
        fs::write(&file, bytes).unwrap();
        let (ok, report) = logs.verified(&["log"]);
        assert!(!ok && report["ok"] == false, "{report:#}");
        assert_eq!(report["shards"][LABELS[damaged]]["ok"], false);
        assert_eq!(report["shards"][LABELS[sound]]["problems"].as_array().unwrap().len(), usize::from(damaged == 0), "{report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_was_exchanged_for_another_of_the_same_key_contradicts_the_next_one() {
    let key = key();
    let (logs, other) = (Logs::two(&key, [4, 2]).await, Logs::two(&key, [3, 2]).await);
    let trusted = logs.log_key("2026h1");
    fs::remove_dir_all(logs.path("2026h1")).unwrap();
    let (ok, _) = logs.verified(&["log", "--key", &trusted]);
    assert!(ok, "one that was taken away is no problem");
    let told = String::from_utf8(logs.run(&["verify", "log"]).stdout).unwrap();
    assert!(told.contains(&format!("note: an entry says that {ORIGIN}/2026h1 ended with")), "{told}");
    copy(&other.path("2026h1"), &logs.path("2026h1"));
    for label in LABELS {
        assert!(logs.verified(&[&format!("log/{label}"), "--key", &trusted]).0, "each is sound alone");
    }
    let (ok, report) = logs.verified(&["log", "--key", &trusted]);
    assert!(!ok && report["ok"] == false, "{report:#}");
    let problems = report["shards"]["2026h2"]["problems"].as_array().unwrap();
    assert!(problems.len() == 1 && problems[0].as_str().unwrap().contains("2026h1 ended with"), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_a_crash_had_ended_twice_is_still_as_both_entries_say() {
    let Logs { folder, shards, _events } = Logs::two(&key(), [3, 2]).await;
    drop(shards);
    // It was synced last, and the power was lost before.
    fs::remove_file(folder.path().join("log/2026h1/ids")).unwrap();
    let logs = Logs::opened(folder, "2026-07-01T09:00:00Z");
    logs.shards.close();
    let (ok, report) = logs.verified(&["log"]);
    assert!(ok, "{report:#}");
    let said: Vec<u64> =
        report["shards"]["2026h2"]["ended"].as_array().unwrap().iter().map(|ended| ended["entries"].as_u64().unwrap()).collect();
    assert!(said.len() == 2 && said[0] < said[1], "{said:?}");
    assert_eq!(report["shards"]["2026h1"]["entries"], said[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_all_shards_are_shown_and_exported_in_order_and_each_is_found() {
    let logs = Logs::two(&key(), [17, 18]).await;
    let [first, second] = LABELS.map(|label| logs.entries(label));
    let all = [&first[..], &second[..]].concat();
    assert_eq!(logs.lines(&["show", "log"]), all);
    assert_eq!(logs.lines(&["export", "log", "--format", "json"]), all);
    let ids = |events: &[Value]| events.iter().map(|event| event["metadata"]["uid"].clone()).collect::<Vec<_>>();
    let exported = logs.lines(&["export", "log"]);
    assert_eq!(ids(&exported), all.iter().map(|entry| entry["id"].clone()).collect::<Vec<_>>());
    for (label, entries) in LABELS.iter().zip([&first, &second]) {
        let shard = format!("log/{label}");
        assert_eq!(&logs.lines(&["show", &shard]), entries);
        assert_eq!(&logs.lines(&["export", &shard, "--format", "json"]), entries);
    }
    for entry in &all {
        let id = entry["id"].as_str().unwrap();
        for dir in ["log".to_owned(), format!("log/{}", entry["origin"].as_str().unwrap().rsplit('/').next().unwrap())] {
            assert_eq!(&logs.lines(&["show", &dir, id]), std::slice::from_ref(entry), "{dir}");
            assert_eq!(&logs.lines(&["export", &dir, "--format", "json", "--id", id]), std::slice::from_ref(entry), "{dir}");
            let proof = &logs.lines(&["proof", &dir, "--id", id])[0];
            assert_eq!((&proof["view"], &proof["log"], &proof["state"]), (entry, &entry["origin"], &Value::from("included")), "{dir}");
        }
    }
    // Each shard counts anew.
    assert_eq!(logs.lines(&["show", "log", "3"]), [first[3].clone(), second[3].clone()]);
    assert_eq!(logs.lines(&["export", "log", "--format", "json", "--seq", "3"]), [first[3].clone(), second[3].clone()]);
    for number in [["--seq", "3"], ["--index", "3"]] {
        let told = logs.refused(&[&["proof", "log"], &number[..]].concat());
        assert!(LABELS.iter().all(|label| told.contains(&format!("log/{label}"))), "{told}");
        assert_eq!(logs.lines(&[&["proof", "log/2026h1"], &number[..]].concat())[0]["view"], first[3]);
    }
    let nobody = uuid::Uuid::now_v7().to_string();
    for arguments in [["show", "log", &nobody].as_slice(), &["export", "log", "--id", &nobody], &["proof", "log", "--id", &nobody]] {
        assert!(logs.refused(arguments).contains("such an entry") || logs.refused(arguments).contains("no such entry"), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_is_proved_though_a_newer_shard_proves_nothing_yet() {
    let logs = Logs::two(&key(), [3, 3]).await;
    let [old, new] = LABELS.map(|label| logs.entries(label)[2]["id"].as_str().unwrap().to_owned());
    for file in ["checkpoint", "checkpoint.cose"] {
        fs::remove_file(logs.path("2026h2").join(file)).unwrap();
    }
    assert_eq!(logs.lines(&["proof", "log", "--id", &old])[0]["id"], old);
    let told = logs.refused(&["proof", "log", "--id", &new]);
    assert!(told.contains("log/2026h2"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_entries_are_those_of_as_many_shards_as_it_takes() {
    let logs = Logs::two(&key(), [6, 4]).await;
    let [first, second] = LABELS.map(|label| logs.entries(label));
    let all = [&first[..], &second[..]].concat();
    for lines in [0, 1, second.len() - 1, second.len(), second.len() + 1, all.len(), all.len() + 1] {
        let expected = &all[all.len().saturating_sub(lines)..];
        assert_eq!(logs.lines(&["tail", "log", "--lines", &lines.to_string()]), expected, "{lines}");
    }
    for (label, entries) in LABELS.iter().zip([&first, &second]) {
        assert_eq!(&logs.lines(&["tail", &format!("log/{label}"), "--lines", "100"]), entries);
    }
}

/// A process that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_a_log_follows_it_into_the_next_shard() {
    let logs = Logs::begun(&key(), 2).await;
    let mut tail = Command::new(PROGRAM);
    tail.args(["log", "tail", "log", "--lines", "1", "--follow"]).current_dir(logs.folder.path()).stdout(Stdio::piped());
    let mut tail = Running(tail.spawn().unwrap());
    let (to, told) = mpsc::channel();
    let out = BufReader::new(tail.0.stdout.take().unwrap());
    std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| to.send(line)));
    let next = || serde_json::from_str::<Value>(&told.recv_timeout(PATIENCE).unwrap()).unwrap();
    let last = next();
    assert_eq!((&last["origin"], &last["seq"]), (&Value::from(format!("{ORIGIN}/2026h1")), &Value::from(3)));
    logs.rolled().await;
    logs.append(2).await;
    logs.shards.close();
    let [first, second] = LABELS.map(|label| logs.entries(label));
    let mut rest = [&first[4..], &second[..]].concat();
    // Those of the two shards come beside one another, each in its order.
    while !rest.is_empty() {
        let entry = next();
        let at = rest.iter().position(|there| there["origin"] == entry["origin"]).unwrap();
        assert_eq!(rest.remove(at), entry);
    }
    assert!(told.recv_timeout(Duration::from_millis(600)).is_err(), "nothing comes twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_was_followed_to_its_end_may_be_taken_away() {
    let logs = Logs::begun(&key(), 2).await;
    let mut tail = Command::new(PROGRAM);
    tail.args(["log", "tail", "log", "--lines", "1", "--follow"]).current_dir(logs.folder.path()).stdout(Stdio::piped());
    let mut tail = Running(tail.spawn().unwrap());
    let (to, told) = mpsc::channel();
    let out = BufReader::new(tail.0.stdout.take().unwrap());
    std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| to.send(line)));
    let next = || serde_json::from_str::<Value>(&told.recv_timeout(PATIENCE).unwrap()).unwrap();
    next();
    logs.rolled().await;
    while next()["change"]["outcome"] != "ended" {}
    // It is let go of when it is looked at again, and what is new in the next one is told then.
    for entries in 1..4 {
        logs.append(1).await;
        while next()["kind"] != "error" {}
        if entries == 2 {
            fs::rename(logs.folder.path().join("log").join(LABELS[0]), logs.folder.path().join("taken")).unwrap();
        }
    }
    assert!(tail.0.try_wait().unwrap().is_none());
}

#[test]
fn where_no_log_lies_it_is_said_what_to_name() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("data/log")).unwrap();
    let id = uuid::Uuid::now_v7().to_string();
    for arguments in [&["show"][..], &["tail"], &["export"], &["proof", "--id", &id]] {
        let output = Command::new(PROGRAM).arg("log").args(arguments).arg(folder.path().join("data")).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), told.contains("name the folder with its `checkpoint`")),
            (Some(1), true),
            "{arguments:?}: {told}"
        );
    }
    let output = Command::new(PROGRAM).args(["log", "verify"]).arg(folder.path().join("data")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test]
async fn an_entry_is_exported_by_its_number_where_numbers_were_left_out() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("log.key"), key()).unwrap();
    let open = || {
        let config: Config = toml::from_str(&format!("directory = \"log\"\norigin = \"{ORIGIN}\"\nkey = \"log.key\"")).unwrap();
        let (events, _reader) = event::channel(1);
        Ledger::open(&config, folder.path(), Build::default(), events, Box::new(|error| panic!("{error}"))).unwrap().0
    };
    let ledger = open();
    append(&ledger, 0).await;
    ledger.close();
    drop(ledger);
    // As it is found after the power was lost: nobody knows whether callers hold statements of entries that were.
    fs::write(folder.path().join("log/lock"), "another boot").unwrap();
    let ledger = open();
    append(&ledger, 0).await;
    ledger.close();
    let entries: Vec<Value> =
        Entries::of(&folder.path().join("log")).unwrap().map(|entry| Statement::read(&entry.unwrap().1).unwrap().view()).collect();
    let last = entries.last().unwrap();
    assert!(last["seq"].as_u64().unwrap() > entries.len() as u64, "numbers were left out: {last}");
    let run = |number: &str| {
        let arguments = ["log", "export", "log", "--format", "json", "--seq", number];
        Command::new(PROGRAM).args(arguments).current_dir(folder.path()).output().unwrap()
    };
    let output = run(&last["seq"].to_string());
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), *last, "{output:?}");
    // Its place in the tree is no number.
    assert_eq!(run(&(entries.len() - 1).to_string()).status.code(), Some(1));
}
