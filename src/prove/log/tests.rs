use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::verify::segment::{FRAME, HEADER, Record, numbers};

fn open_with(directory: &Path, segment: u64) -> Result<(Wal, Recovered), OpenError> {
    // What is opened by a test has lost nothing, unless the test says so.
    let opened = Wal::open(Found::read(directory, || 0)?, segment, Arc::new(|_| {}))?;
    opened.0.goes_on().unwrap();
    Ok(opened)
}

fn open(directory: &Path) -> Result<(Wal, Recovered), OpenError> {
    open_with(directory, SEGMENT)
}

fn entry(seq: u64) -> Vec<u8> {
    format!("entry number {seq} {}", "x".repeat((seq % 7) as usize * 10)).into_bytes()
}

/// A log with `count` entries and the bytes of its one segment.
fn written(count: u64) -> (tempfile::TempDir, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let (wal, _) = open(folder.path()).unwrap();
    (0..count).for_each(|_| drop(wal.append(Until::Ready, entry).unwrap()));
    drop(wal);
    let bytes = std::fs::read(path_of(folder.path(), 0)).unwrap();
    (folder, bytes)
}

fn entries(directory: &Path) -> Vec<(u64, Vec<u8>)> {
    let mut all = Vec::new();
    for number in numbers(directory).unwrap() {
        let bytes = std::fs::read(path_of(directory, number)).unwrap();
        let mut at = HEADER;
        while let Some(record) = Record::read(&bytes[at..]) {
            at += record.size();
            all.push((record.seq, record.entry.to_vec()));
        }
        assert_eq!(at, bytes.len());
    }
    all
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_and_no_number_is_used_again() {
    let (folder, bytes) = written(5);
    let last = entry(4).len() + FRAME;
    for cut in 1..last {
        std::fs::write(path_of(folder.path(), 0), &bytes[..bytes.len() - cut]).unwrap();
        let (wal, recovered) = open(folder.path()).unwrap();
        assert_eq!((recovered.entries, recovered.cut_bytes, recovered.last_seq), (4, (last - cut) as u64, Some(3)), "cut {cut}");
        assert_eq!(wal.append(Until::Ready, entry).unwrap().0, 4);
    }
    assert_eq!(entries(folder.path()).len(), 5);
}

#[test]
fn damage_before_good_records_stops_the_start() {
    let (folder, bytes) = written(5);
    let last = bytes.len() - entry(4).len() - FRAME;
    for at in 0..last {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        std::fs::write(path_of(folder.path(), 0), &bad).unwrap();
        assert!(matches!(open(folder.path()), Err(OpenError::Damaged(..))), "byte {at}");
        assert_eq!(std::fs::read(path_of(folder.path(), 0)).unwrap(), bad, "nothing is repaired");
    }
}

#[test]
fn one_process_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).unwrap();
    assert!(matches!(open(folder.path()), Err(OpenError::InUse(_))));
    drop(first);
    assert!(open(folder.path()).is_ok());
}

#[test]
fn segments_follow_one_another_and_numbers_go_on() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let (wal, recovered) = open_with(folder.path(), 500).unwrap();
        assert_eq!(recovered.entries, round * 40);
        (0..40).for_each(|_| drop(wal.append(Until::Ready, entry).unwrap()));
    }
    assert!(numbers(folder.path()).unwrap().len() > 5);
    assert!(entries(folder.path()).into_iter().eq((0..120).map(|seq| (seq, entry(seq)))));
    // A segment that was begun and never used is begun anew; one that is missing is not forgiven.
    let next = numbers(folder.path()).unwrap().len() as u64;
    std::fs::write(path_of(folder.path(), next), b"pcls").unwrap();
    assert_eq!(open_with(folder.path(), 500).unwrap().1.cut_bytes, 4);
    std::fs::remove_file(path_of(folder.path(), 2)).unwrap();
    assert!(matches!(open_with(folder.path(), 500), Err(OpenError::Damaged(..))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_tasks_append_at_once_and_every_entry_is_there_once() {
    let folder = tempfile::tempdir().unwrap();
    let wal = Arc::new(open_with(folder.path(), 20_000).unwrap().0);
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let wal = wal.clone();
            tokio::spawn(async move {
                for round in 0..500 {
                    let until = if (task + round) % 50 == 0 { Until::Synced } else { Until::Written };
                    let (_, _, wait) = wal.append(until, entry).unwrap();
                    wait.done().await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let tally = wal.tally();
    assert_eq!((tally.entries, tally.waiting), (4_000, 0));
    assert!(tally.syncs > 0 && tally.groups <= 4_000);
    drop(wal);
    assert!(entries(folder.path()).into_iter().eq((0..4_000).map(|seq| (seq, entry(seq)))));
}

#[tokio::test]
async fn durable_waits_for_a_sync_and_the_others_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let (wal, _) = open(folder.path()).unwrap();
    let (_, _, wait) = wal.append(Until::Written, entry).unwrap();
    assert!(wait.is_over());
    let (seq, _, wait) = wal.append(Until::Synced, entry).unwrap();
    wait.done().await.unwrap();
    assert!(held(&wal.shared.state).synced > seq);
    assert!(wal.tally().syncs >= 1);
}

#[tokio::test]
async fn a_hole_holds_back_what_follows_until_it_is_filled() {
    let folder = tempfile::tempdir().unwrap();
    let (wal, _) = open(folder.path()).unwrap();
    let mut inner = None;
    // While number 0 is being signed, number 1 is laid ready: it must wait, and be written right after.
    let (seq, _, wait) = wal
        .append(Until::Written, |seq| {
            let (later, _, wait) = wal.append(Until::Written, entry).unwrap();
            assert_eq!((later, wait.is_over(), wal.tally().entries), (1, false, 0));
            inner = Some(wait);
            entry(seq)
        })
        .unwrap();
    assert!(seq == 0 && wait.is_over());
    inner.unwrap().done().await.unwrap();
    assert_eq!(wal.tally().groups, 1);
}

#[tokio::test]
async fn a_failed_write_poisons_and_whoever_waits_learns_it() {
    let folder = tempfile::tempdir().unwrap();
    let (wal, _) = open(folder.path()).unwrap();
    wal.append(Until::Ready, entry).unwrap();
    // A descriptor that cannot be written to stands for a disk that cannot.
    held(&wal.shared.state).file = Arc::new(File::open(path_of(folder.path(), 0)).unwrap());
    assert!(wal.append(Until::Written, entry).is_err());
    assert!(!wal.has_room() && wal.tally().poisoned);
    assert!(wal.failure().is_some());
    assert!(wal.append(Until::Ready, entry).is_err());
    drop(wal);
    assert_eq!(open(folder.path()).unwrap().1.entries, 1);
}

#[tokio::test]
async fn a_failed_sync_is_fatal() {
    let folder = tempfile::tempdir().unwrap();
    let called = Arc::new(AtomicBool::new(false));
    let hook = called.clone();
    let (wal, ..) =
        Wal::open(Found::read(folder.path(), || 0).unwrap(), SEGMENT, Arc::new(move |_| hook.store(true, Ordering::SeqCst))).unwrap();
    // A pipe takes bytes and cannot be synced.
    let (_keep, pipe) = std::io::pipe().unwrap();
    held(&wal.shared.state).file = Arc::new(File::from(std::os::fd::OwnedFd::from(pipe)));
    let (_, _, wait) = wal.append(Until::Synced, entry).unwrap();
    assert_eq!(wait.done().await, Err(Poisoned));
    wal.close();
    assert!(called.load(Ordering::SeqCst));
}

#[test]
fn there_is_room_up_to_the_bound_and_not_past_it() {
    let folder = tempfile::tempdir().unwrap();
    let (wal, _) = open(folder.path()).unwrap();
    held(&wal.shared.state).ready_bytes = MAX_WAITING - 1;
    assert!(wal.has_room());
    held(&wal.shared.state).ready_bytes = MAX_WAITING;
    assert!(!wal.has_room());
    held(&wal.shared.state).ready_bytes = 0;
    held(&wal.shared.state).unpublished_bytes = MAX_UNPUBLISHED - 1;
    assert!(wal.has_room());
    held(&wal.shared.state).unpublished_bytes = MAX_UNPUBLISHED;
    assert!(!wal.has_room());
}

const LIMITED: &str = "PORTCULLIS_TEST_LOG_LIMITED";

/// Runs in a process of its own, whose files may not grow past a limit that it can raise: what a full disk is, without a disk.
#[test]
fn a_full_disk_takes_back_what_it_did_not_write_and_the_next_entry_says_so() {
    if let Ok(folder) = std::env::var(LIMITED) {
        return run_full(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    // The signal would end the process before the error could be seen.
    let status = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$0\" --exact --nocapture \"$1\""])
        .arg(std::env::current_exe().unwrap())
        .arg("prove::log::tests::a_full_disk_takes_back_what_it_did_not_write_and_the_next_entry_says_so")
        .env(LIMITED, folder.path())
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

fn run_full(folder: &Path) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let (wal, _) = open(folder).unwrap();
    (0..3).for_each(|_| drop(wal.append(Until::Ready, entry).unwrap()));
    let length = std::fs::metadata(path_of(folder, 0)).unwrap().len();
    let before = getrlimit(Resource::Fsize);
    // The next record is begun, and does not fit.
    setrlimit(Resource::Fsize, Rlimit { current: Some(length + 20), ..before }).unwrap();
    let outcome = wal.append(Until::Written, |seq| {
        // Laid ready behind the one that will fail.
        assert!(wal.append(Until::Ready, entry).is_ok());
        entry(seq)
    });
    assert!(outcome.is_err(), "who waits for it learns it");
    assert_eq!(std::fs::metadata(path_of(folder, 0)).unwrap().len(), length, "no half of it stays");
    assert!(!wal.has_room() && wal.append(Until::Ready, entry).is_err());
    assert_eq!((wal.tally().full, wal.tally().poisoned, wal.tally().waiting), (true, false, 0));
    let said = |seq, last, ()| format!("number {seq} after {last}").into_bytes();
    assert!(!wal.resume(|_| (), said), "there is still no room");
    assert!(!wal.has_room(), "nor was there for a moment");
    setrlimit(Resource::Fsize, before).unwrap();
    assert!(wal.resume(|_| (), said));
    assert!(!wal.resume(|_| (), said), "once");
    assert_eq!(wal.append(Until::Written, entry).unwrap().0, 6);
    drop(wal);
    let (_, recovered) = open(folder).unwrap();
    assert_eq!((recovered.entries, recovered.last_seq, recovered.cut_bytes), (5, Some(6), 0));
    let seqs: Vec<u64> = entries(folder).iter().map(|(seq, _)| *seq).collect();
    assert_eq!(seqs, [0, 1, 2, 5, 6]);
    assert_eq!(entries(folder)[3].1, b"number 5 after 2");
}

#[test]
fn segments_are_removed_from_the_front_and_the_index_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (wal, _) = open_with(folder.path(), 500).unwrap();
    (0..40).for_each(|_| drop(wal.append(Until::Ready, entry).unwrap()));
    let behind = wal.behind(20);
    assert!(!behind.is_empty() && wal.behind(0).is_empty());
    assert!(wal.behind(u64::MAX).len() == numbers(folder.path()).unwrap().len() - 1, "the last is in use");
    wal.remove(&behind).unwrap();
    assert_eq!(wal.behind(20), [0_u64; 0]);
    drop(wal);
    let mut found = Found::read(folder.path(), || 0).unwrap();
    let there = found.take_entries();
    let (wal, recovered) = Wal::open(found, 500, Arc::new(|_| {})).unwrap();
    assert!((1..=20).contains(&recovered.first_index), "{recovered:?}");
    assert_eq!((recovered.entries, recovered.last_seq), (40, Some(39)));
    assert!(there.iter().enumerate().all(|(at, bytes)| **bytes == entry(recovered.first_index + at as u64)));
    assert_eq!(wal.append(Until::Ready, entry).unwrap().0, 40);
}

#[test]
fn an_entry_longer_than_its_bound_is_never_written() {
    let folder = tempfile::tempdir().unwrap();
    let (wal, _) = open(folder.path()).unwrap();
    assert!(wal.append(Until::Ready, |_| vec![0; MAX_ENTRY]).is_ok());
    assert!(wal.append(Until::Ready, |_| vec![0; MAX_ENTRY + 1]).is_err());
}

const CHILD: &str = "PORTCULLIS_TEST_LOG_CHILD";

#[test]
fn no_acknowledged_entry_is_lost_when_the_process_is_killed() {
    if let Ok(folder) = std::env::var(CHILD) {
        let (wal, _) = open_with(Path::new(&folder), 100_000).unwrap();
        let mut out = std::io::stderr();
        loop {
            let (seq, _, wait) = wal.append(Until::Written, entry).unwrap();
            assert!(wait.is_over());
            writeln!(out, "ack {seq}").unwrap();
        }
    }
    use std::io::BufRead;
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "prove::log::tests::no_acknowledged_entry_is_lost_when_the_process_is_killed"])
            .env(CHILD, folder.path())
            .stderr(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
        let mut acknowledged = None;
        for (count, line) in lines.map_while(Result::ok).filter(|line| line.starts_with("ack ")).enumerate() {
            acknowledged = line.strip_prefix("ack ").and_then(|seq| seq.parse::<u64>().ok()).or(acknowledged);
            if count == 2_000 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let (wal, recovered) = open(folder.path()).unwrap();
        assert!(recovered.last_seq >= acknowledged && acknowledged.is_some(), "{recovered:?} {acknowledged:?}");
        drop(wal);
        assert!(entries(folder.path()).into_iter().enumerate().all(|(at, (seq, bytes))| seq == at as u64 && bytes == entry(seq)));
    }
}

/// Prints what one append costs, in place and through a thread. Run it in release: `cargo test --release --lib -- --ignored --nocapture what_an_append_costs`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, decides nothing"]
async fn what_an_append_costs() {
    const EACH: u32 = 20_000;
    let folder = tempfile::tempdir().unwrap();
    let wal = Arc::new(open(folder.path()).unwrap().0);
    for tasks in [1, 2, 16, 64] {
        let from = Instant::now();
        let groups = wal.tally().groups;
        let tasks: Vec<_> = (0..tasks)
            .map(|_| {
                let wal = wal.clone();
                tokio::spawn(async move {
                    let mut worst = Duration::ZERO;
                    for _ in 0..EACH {
                        let from = Instant::now();
                        let (_, _, wait) = wal.append(Until::Written, |_| vec![7; 600]).unwrap();
                        wait.done().await.unwrap();
                        worst = worst.max(from.elapsed());
                        tokio::task::yield_now().await;
                    }
                    worst
                })
            })
            .collect();
        let (count, mut worst) = (tasks.len() as u32 * EACH, Duration::ZERO);
        for task in tasks {
            worst = worst.max(task.await.unwrap());
        }
        let groups = wal.tally().groups - groups;
        println!(
            "in place: {} tasks, {:?} an entry, worst {worst:?}, {} entries in {groups} groups",
            count / EACH,
            from.elapsed() / count,
            count
        );
    }
    // The other way: one thread writes what a channel brings, and answers each by a oneshot.
    let (to, from) = std::sync::mpsc::sync_channel::<(Vec<u8>, oneshot::Sender<()>)>(65_536);
    let mut file = File::create(folder.path().join("thread")).unwrap();
    let thread = std::thread::spawn(move || {
        while let Ok(first) = from.recv() {
            let mut group = vec![first];
            group.extend(from.try_iter().take(400));
            file.write_all(&group.iter().flat_map(|(bytes, _)| bytes.iter().copied()).collect::<Vec<_>>()).unwrap();
            group.into_iter().for_each(|(_, tell)| assert!(tell.send(()).is_ok()));
        }
    });
    for tasks in [1, 2, 16, 64] {
        let from = Instant::now();
        let tasks: Vec<_> = (0..tasks)
            .map(|_| {
                let to = to.clone();
                tokio::spawn(async move {
                    for _ in 0..EACH {
                        let (tell, told) = oneshot::channel();
                        to.send((vec![7; 600], tell)).unwrap();
                        told.await.unwrap();
                    }
                })
            })
            .collect();
        let count = tasks.len() as u32 * EACH;
        for task in tasks {
            task.await.unwrap();
        }
        println!("by a thread: {} tasks, {:?} an entry", count / EACH, from.elapsed() / count);
    }
    drop(to);
    thread.join().unwrap();
}

#[path = "lost.rs"]
mod lost;
