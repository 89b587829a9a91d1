//! Prints what the log costs; decides nothing. `cargo test --release --lib -- --ignored --nocapture --test-threads 1 figures::`

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;

use super::config::{Mode, OnFailure, Terms};
use super::ledger::tests::{House, head, house, now};
use super::statement::Sent;
use super::statement::tests::{sent, signer, trail};
use super::tree::Tree;
use super::want::Want;
use crate::digest::Digest;
use crate::infer::Payload;
use crate::tlog::merkle::{self, verify_inclusion};
use crate::tlog::tile::{MAX_LEVEL, Tile};
use crate::verify::entries::Entries;
use crate::verify::proof::verify_receipt;
use crate::verify::statement::Kind;

fn terms(mode: Mode) -> Terms {
    Terms { mode, on_failure: OnFailure::Refuse }
}

fn at(sorted: &[Duration], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3
}

/// What lies under a folder, in bytes, without the write-ahead file.
fn kept(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap());
    files
        .filter(|file| !file.file_name().to_str().unwrap().starts_with("wal-"))
        .map(|file| if file.file_type().unwrap().is_dir() { kept(&file.path()) } else { file.metadata().unwrap().len() })
        .sum()
}

/// How long each of `each` answers of `tasks` callers takes to be proved, in order of length.
async fn proved(house: &House, mode: Mode, tasks: usize, each: usize) -> Vec<Duration> {
    let running: Vec<_> = (0..tasks)
        .map(|_| {
            let ledger = house.ledger.clone();
            tokio::spawn(async move {
                let mut took = Vec::with_capacity(each);
                for _ in 0..each {
                    let begun = Instant::now();
                    let slot = ledger.reserve(&terms(mode), Want::default()).unwrap();
                    let whole = Payload::Whole(Bytes::from_static(b"the answer"));
                    ledger.prove_parts(slot, StatusCode::OK, head(), whole, None, now()).await.unwrap();
                    took.push(begun.elapsed());
                }
                took
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in running {
        all.extend(task.await.unwrap());
    }
    all.sort_unstable();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, decides nothing"]
async fn what_the_modes_cost() {
    let house = house();
    println!("{:>10} {:>8} {:>10} {:>10} {:>12}", "mode", "callers", "p50 ms", "p99 ms", "answers/s");
    for (mode, tasks, each) in [
        (Mode::Async, 1, 20_000),
        (Mode::Async, 32, 5_000),
        (Mode::Durable, 1, 100),
        (Mode::Durable, 32, 100),
        (Mode::Included, 1, 30),
        (Mode::Included, 32, 30),
    ] {
        let begun = Instant::now();
        let took = proved(&house, mode, tasks, each).await;
        let rate = took.len() as f64 / begun.elapsed().as_secs_f64();
        println!("{:>10} {tasks:>8} {:>10.3} {:>10.3} {rate:>12.0}", mode.as_str(), at(&took, 0.5), at(&took, 0.99));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, decides nothing"]
async fn how_many_statements_a_second_and_how_soon_they_are_included() {
    loaded(None).await;
    // The load that the log is to carry; beyond it the sampled entries wait for the cores, not for the log.
    loaded(Some(Duration::from_micros(3_200))).await;
}

/// 32 callers, each as fast as it can or at this pace.
async fn loaded(pace: Option<Duration>) {
    let house = house();
    let begun = Instant::now();
    let load = {
        let (ledger, until) = (house.ledger.clone(), begun + Duration::from_secs(10));
        let callers: Vec<_> = (0..32)
            .map(|_| {
                let ledger = ledger.clone();
                tokio::spawn(async move {
                    let mut count = 0_u64;
                    let mut ticks = pace.map(tokio::time::interval);
                    while Instant::now() < until {
                        if let Some(ticks) = &mut ticks {
                            ticks.tick().await;
                        }
                        let slot = ledger.reserve(&terms(Mode::Async), Want::default()).unwrap();
                        let whole = Payload::Whole(Bytes::from_static(b"the answer"));
                        ledger.prove_parts(slot, StatusCode::OK, head(), whole, None, now()).await.unwrap();
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        async move {
            let mut count = 0;
            for caller in callers {
                count += caller.await.unwrap();
            }
            count
        }
    };
    // Beside the load, one entry after the other from its release until a checkpoint covers it.
    let sampled = {
        let ledger = house.ledger.clone();
        tokio::spawn(async move {
            let mut took = Vec::new();
            let digest = Digest::of(b"the answer");
            while begun.elapsed() < Duration::from_secs(10) {
                let slot = ledger.reserve(&terms(Mode::Async), Want::default()).unwrap();
                let sent =
                    Sent { status: 200, media_type: None, length: 10, digest, complete: true, code: None, usage: None, events: None };
                let appended = slot.append(Kind::Inference, &now(), &sent, super::log::Until::Written).unwrap();
                appended.wait.done().await.unwrap();
                let released = Instant::now();
                assert!(ledger.0.publisher.covers(appended.seq).await);
                took.push(released.elapsed());
                tokio::time::sleep(Duration::from_millis(7)).await;
            }
            took.sort_unstable();
            took
        })
    };
    let count = load.await;
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    let took = sampled.await.unwrap();
    println!(
        "{rate:.0} statements a second on this machine's cores, async, 32 callers, {}",
        pace.map_or("as fast as they can", |_| "paced")
    );
    println!(
        "from release to inclusion under that load: p50 {:.0} ms, p99 {:.0} ms, {} samples",
        at(&took, 0.5),
        at(&took, 0.99),
        took.len()
    );
    house.ledger.close();
    let entries = Entries::of(&house.log()).unwrap().count() as u64;
    let size: u64 = Entries::of(&house.log()).unwrap().map(|entry| entry.unwrap().1.len() as u64).sum();
    println!("{} bytes an entry, {} with everything that is kept of it", size / entries, kept(&house.log()) / entries);
    println!("{:?}", house.ledger.counters());
}

/// Ten million entries of 40 bytes: what a proof reads does not depend on their length.
#[test]
#[ignore = "measures, decides nothing"]
fn what_a_proof_in_a_log_of_ten_million_reads() {
    const SIZE: u64 = 10_000_000;
    let folder = tempfile::tempdir().unwrap();
    let entry = |number: u64| -> Arc<[u8]> { format!("entry {number:034}").into_bytes().into() };
    let mut tree = Tree::open(folder.path(), 0, &[]).unwrap();
    let begun = Instant::now();
    while tree.size() < SIZE {
        let from = tree.size();
        let batch: Vec<_> = (from..(from + 50_000).min(SIZE)).map(entry).collect();
        tree.add(&batch).unwrap();
        tree.sweep().unwrap();
    }
    println!("{SIZE} entries in {:.1?}, {} MB", begun.elapsed(), kept(folder.path()) >> 20);
    let (files, root) = (tree.files().clone(), tree.root());
    for index in [0, 1, SIZE / 3, SIZE / 2, SIZE - 1] {
        let begun = Instant::now();
        let read = files.entry(index, SIZE).unwrap();
        let path = merkle::inclusion(index, SIZE, &mut files.subtrees(SIZE, SIZE)).unwrap();
        let took = begun.elapsed();
        verify_inclusion(index, SIZE, &merkle::leaf(&read), &path, &root).unwrap();
        println!("entry {index}: {} hashes, {took:.1?}", path.len());
    }
    let tiles = (0..=MAX_LEVEL).filter(|level| Tile::of(Some(*level), 0, SIZE).is_some()).count();
    println!("{tiles} levels: at most two tiles of each, 8 KiB, and one bundle");
    let begun = Instant::now();
    drop(tree);
    let tail: Vec<_> = (SIZE - 30_000..SIZE).map(entry).collect();
    let tree = Tree::open(folder.path(), SIZE - 30_000, &tail).unwrap();
    assert_eq!(tree.root(), root);
    println!("opened again, with 30,000 entries in the write-ahead file, in {:.1?}", begun.elapsed());
}

/// Perfect subtrees over so many leaves that they fill one.
struct Levels(Vec<Vec<merkle::Hash>>);

impl Levels {
    fn over(entries: &[Vec<u8>]) -> Self {
        let mut levels = vec![entries.iter().map(|entry| merkle::leaf(entry)).collect::<Vec<_>>()];
        while let Some(below) = levels.last().filter(|level| level.len() > 1) {
            let above = below.as_chunks::<2>().0.iter().map(|[left, right]| merkle::node(left, right)).collect();
            levels.push(above);
        }
        Self(levels)
    }
}

impl merkle::Subtrees for Levels {
    type Error = std::convert::Infallible;

    fn subtree(&mut self, height: u8, index: u64) -> Result<merkle::Hash, Self::Error> {
        Ok(self.0[usize::from(height)][index as usize])
    }
}

/// An experiment, which is not how statements are signed: those that wait are the leaves of a small tree (RFC 6962), its root is signed once,
/// and each carries its receipt (RFC 9942) in the place of a signature of its own.
#[test]
#[ignore = "measures, decides nothing"]
fn what_one_signature_for_many_statements_would_save() {
    const ROUNDS: usize = 2_000;
    let signer = signer();
    let vkey = signer.key.log_vkey(&signer.origin);
    let (trail, sent) = (trail(1_800_000_000), sent());
    let entry = |seq: u64| signer.answer(Kind::Inference, seq, 1_800_000_001_000_000_000, &trail, &sent);
    let begun = Instant::now();
    let whole: Vec<Vec<u8>> = (0..4_096).map(entry).collect();
    println!("a statement of {} bytes, composed and signed alone: {:.1} us", whole[0].len(), begun.elapsed().as_secs_f64() * 1e6 / 4_096.0);
    println!("{:>10} {:>12} {:>12} {:>22}", "statements", "us alone", "us together", "bytes more an entry");
    for together in [1, 2, 4, 8, 16, 32, 64, 128] {
        let statements = &whole[..together];
        let (mut alone, mut shared, mut bytes) = (Duration::ZERO, Duration::ZERO, 0);
        for round in 0..ROUNDS.div_ceil(together) {
            let begun = Instant::now();
            let signatures: Vec<[u8; 64]> = statements.iter().map(|statement| signer.key.sign_statement(statement)).collect();
            alone += begun.elapsed();
            let begun = Instant::now();
            let mut levels = Levels::over(statements);
            let root = merkle::root(together as u64, &mut levels).unwrap();
            let signed = signer.sign_root(root, together as u64, 1_800_000_001);
            let receipts: Vec<Vec<u8>> = (0..together as u64)
                .map(|index| signed.receipt(index, together as u64, &merkle::inclusion(index, together as u64, &mut levels).unwrap()))
                .collect();
            shared += begun.elapsed();
            bytes = receipts[0].len();
            assert_eq!(signatures.len(), together);
            let at = round % together;
            assert_eq!(verify_receipt(&receipts[at], &statements[at], &vkey), Ok((at as u64, together as u64)));
        }
        let each = |took: Duration| took.as_secs_f64() * 1e6 / (ROUNDS.div_ceil(together) * together) as f64;
        println!("{together:>10} {:>12.1} {:>12.1} {:>22}", each(alone), each(shared), bytes as i64 - 64);
    }
}
