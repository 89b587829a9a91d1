//! Commands and who reads what they tell: one that stops reading, and a disk that is full.

use std::fs::OpenOptions;
use std::process::{Command, Output, Stdio};

use crate::support::ask::{ask, digit};
use crate::support::{Folder, PATIENCE, PROGRAM};

/// A folder with a model, a key and a log of a few entries.
async fn served() -> Folder {
    let folder = Folder::new();
    folder.digits("");
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    for _ in 0..3 {
        client.send(ask("POST", "/v2/models/digits/infer", digit())).await.is(200);
    }
    gateway.stop().await;
    folder
}

fn run(folder: &Folder, line: &str, stdout: Stdio) -> Output {
    let child = Command::new(PROGRAM).args(line.split(' ')).current_dir(folder.home()).stdout(stdout).stderr(Stdio::piped()).spawn();
    child.unwrap().wait_with_output().unwrap()
}

fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const TELLING: [&str; 17] = [
    "check policies",
    "check policies --json",
    "check --cedar-schema",
    "key list --policies policies",
    "key list --policies policies --json",
    "log verify log",
    "log verify log --json",
    "log show log",
    "log show log 1",
    "log export log",
    "log export log --format json",
    "log tail log",
    "log tail log --follow",
    "log proof log --index 1",
    "model inspect policies/models/digits.onnx",
    "model scan policies/models",
    "model bom policies/models/digits.onnx",
];

#[tokio::test]
async fn a_command_whose_answer_is_lost_on_a_full_disk_fails_and_one_whose_reader_has_seen_enough_does_not() {
    let folder = served().await;
    for line in TELLING {
        let output = run(&folder, line, full());
        let why = said(&output);
        assert_eq!(output.status.code(), Some(1), "{line}: {why}");
        assert_eq!(why.trim(), "portcullis: standard output: No space left on device (os error 28)", "{line}");
        let output = run(&folder, line, closed());
        assert_eq!((output.status.code(), &*said(&output)), (Some(0), ""), "{line}");
    }
    // What the answer is does not hang on who reads it.
    std::fs::remove_file(folder.log().join("checkpoint.cose")).unwrap();
    assert_eq!(run(&folder, "log verify log", closed()).status.code(), Some(1));
}

#[test]
fn what_cannot_be_read_or_written_is_told_once_and_with_what_it_was_for() {
    let folder = Folder::new();
    folder.write("there.pem", "x");
    for (line, told) in [
        ("model inspect nowhere", "portcullis: nowhere cannot be read: No such file or directory (os error 2)"),
        ("serve --policies nowhere", "nowhere: the policy folder cannot be read"),
        ("witness key --name w.example/w --out ../policies/there.pem", "there is such a file, which is left as it is"),
        ("key list --policies nowhere", "nowhere: no policy folder"),
        ("health https://127.0.0.1:9443", "speaks TLS"),
        ("exposure 192.0.2.1:9443", "on this machine alone"),
    ] {
        let line = line.replace("../policies/", folder.policies().join("").to_str().unwrap());
        let output = run(&folder, &line, Stdio::piped());
        assert!(output.status.code() == Some(1) && said(&output).contains(told), "{line}: {}", said(&output));
    }
}

#[tokio::test]
async fn a_full_disk_under_standard_error_ends_nothing() {
    let folder = Folder::new();
    folder.digits("");
    let child = Command::new(PROGRAM).args(["check", "nowhere"]).current_dir(folder.home()).stderr(full()).status();
    assert_eq!(child.unwrap().code(), Some(1));
    let mut gateway = Command::new(PROGRAM);
    let mut gateway =
        gateway.args(["serve", "--policies"]).arg(folder.policies()).current_dir(folder.home()).stderr(full()).spawn().unwrap();
    // Once it takes the signal in its own hand (proc_pid_status(5)), all that a start tells was told, or is told before the signal is heard.
    let heeds = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.id())).unwrap_or_default();
        let caught = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigCgt:")?.trim(), 16).ok());
        caught.is_some_and(|caught| caught >> 14 & 1 == 1)
    };
    let asked = std::time::Instant::now();
    while !heeds() {
        assert!(asked.elapsed() < PATIENCE, "it does not start");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let signalled = Command::new("kill").args(["-TERM", &gateway.id().to_string()]).status().unwrap();
    assert!(signalled.success());
    assert_eq!(gateway.wait().unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_log_that_is_not_whole_is_not_shown_as_if_it_were() {
    let folder = served().await;
    let file = folder.log().join("wal-00000000");
    let whole = std::fs::read(&file).unwrap();
    for (bytes, read) in [(whole.len() - 1, true), (0, false)] {
        std::fs::write(&file, &whole[..bytes]).unwrap();
        for line in ["log show log", "log export log", "log tail log"] {
            let output = run(&folder, line, Stdio::piped());
            assert_eq!(output.status.code(), Some(1), "{line}");
            assert!(said(&output).contains("entries are missing"), "{line}: {}", said(&output));
            assert_eq!(!output.stdout.is_empty(), read && !line.contains("tail"), "{line}");
        }
    }
    std::fs::write(&file, &whole).unwrap();
    assert_eq!(run(&folder, "log show log", Stdio::piped()).status.code(), Some(0));
    // Nothing is written where half of what was asked for is not there.
    let output = run(&folder, "log export log --security-log nowhere", Stdio::piped());
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    for line in ["log verify policies", "log verify nowhere", "log show policies"] {
        let output = run(&folder, line, Stdio::piped());
        assert!(output.status.code() == Some(1) && said(&output).contains("no log lies here"), "{line}: {}", said(&output));
    }
}

#[tokio::test]
async fn a_proof_waits_for_the_half_of_a_checkpoint_that_is_not_there_yet() {
    let folder = served().await;
    let file = folder.log().join("checkpoint.cose");
    let good = std::fs::read(&file).unwrap();
    std::fs::write(&file, b"").unwrap();
    let child =
        Command::new(PROGRAM).args(["log", "proof", "log", "--index", "1"]).current_dir(folder.home()).stdout(Stdio::null()).spawn();
    // It begins meanwhile, or after: either is well.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    std::fs::write(&file, good).unwrap();
    assert!(child.unwrap().wait().unwrap().success());
}

#[tokio::test]
async fn a_key_whose_secret_nobody_could_read_is_taken_back() {
    let folder = Folder::new();
    let before = folder.read("callers.toml");
    for line in ["key new lost --policies policies", "key new lost --policies policies --json"] {
        for stdout in [full(), closed()] {
            let output = run(&folder, line, stdout);
            assert_eq!(output.status.code(), Some(1), "{line}");
            assert!(said(&output).contains("standard output: ") && said(&output).contains("the key was taken back"), "{}", said(&output));
            assert_eq!(folder.read("callers.toml"), before, "{line}");
        }
    }
}
