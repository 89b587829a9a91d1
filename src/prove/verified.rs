//! Whether what verifies a log finds what is wrong with one: logs as `prove` writes them, and what was done to them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::prove::change::{Change, Changed};
use crate::prove::config::Terms;
use crate::prove::key::Key;
use crate::prove::ledger::tests::{answer, house};
use crate::tlog::Vkey;
use crate::verify::folder::{CHECKPOINT, CHECKPOINT_COSE, IDS, KEYS};
use crate::verify::log::verify_dir;
use crate::verify::segment::{First, HEADER, Record, frame, sound_after};
use crate::verify::show::{Select, show};

async fn log() -> (tempfile::TempDir, PathBuf, [Vkey; 3]) {
    let house = house();
    for _ in 0..3 {
        answer(&house.ledger, &Terms::default()).await.unwrap();
    }
    house.ledger.close();
    let (path, keys) = (house.log(), house.ledger.vkeys());
    (house.folder, path, keys)
}

#[tokio::test]
async fn a_sound_log_holds_under_its_own_keys_and_under_the_log_key_alone() {
    let (_folder, path, keys) = log().await;
    let own = verify_dir(&path, None).unwrap();
    assert!(own.ok && own.integrity_only, "{own:?}");
    assert!(own.summary().ends_with("integrity only: the keys are the log's own"));
    let given = verify_dir(&path, Some(&keys[..1])).unwrap();
    assert!(given.ok && !given.integrity_only, "{given:?}");
    assert_eq!((given.entries, given.last_seq, given.kinds["inference"]), (6, Some(5), 3));
    let other = Key::from_pem(Key::generate_pem().expose()).unwrap();
    assert!(!verify_dir(&path, Some(&[other.log_vkey("gw.example/node1")])).unwrap().ok);
    assert!(!verify_dir(&path, Some(&[])).unwrap().ok);
}

#[tokio::test]
async fn a_byte_flipped_anywhere_fails() {
    let (_folder, path, keys) = log().await;
    for name in ["wal-00000000", KEYS] {
        let good = fs::read(path.join(name)).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(path.join(name), &bad).unwrap();
            assert!(!verify_dir(&path, Some(&keys)).unwrap().ok, "{name} byte {at}");
        }
        fs::write(path.join(name), [&good[..], &[0]].concat()).unwrap();
        assert!(!verify_dir(&path, None).unwrap().ok, "{name} with a byte more");
        fs::write(path.join(name), &good[..good.len() - 1]).unwrap();
        assert!(!verify_dir(&path, None).unwrap().ok, "{name} with a byte less");
        fs::write(path.join(name), &good).unwrap();
    }
    assert!(verify_dir(&path, Some(&keys)).unwrap().ok);
}

#[tokio::test]
async fn what_does_not_belong_there_fails() {
    let (_folder, path, keys) = log().await;
    for name in ["notes.txt", "wal-1", "wal-00000001", "wal-00000007"] {
        fs::write(path.join(name), b"").unwrap();
        assert!(!verify_dir(&path, Some(&keys)).unwrap().ok, "{name}");
        fs::remove_file(path.join(name)).unwrap();
    }
    let own = fs::read_to_string(path.join(KEYS)).unwrap();
    let other = Key::from_pem(Key::generate_pem().expose()).unwrap().log_vkey("gw.example/node1");
    fs::write(path.join(KEYS), format!("{own}{other}\n")).unwrap();
    assert!(!verify_dir(&path, Some(&keys)).unwrap().ok);
}

#[tokio::test]
async fn entries_taken_out_or_put_in_another_order_fail() {
    let (_folder, path, keys) = log().await;
    let file = path.join("wal-00000000");
    let bytes = fs::read(&file).unwrap();
    let (mut records, mut at) = (Vec::new(), HEADER);
    while let Some(record) = Record::read(&bytes[at..]) {
        records.push(&bytes[at..at + record.size()]);
        at += record.size();
    }
    for order in [&[0, 1, 3, 4, 5][..], &[0, 2, 1, 3, 4, 5], &[1, 2, 3, 4, 5], &[0, 1, 1, 2, 3, 4, 5]] {
        let picked: Vec<u8> = order.iter().flat_map(|index| records[*index].iter().copied()).collect();
        fs::write(&file, [&bytes[..HEADER], &picked].concat()).unwrap();
        assert!(!verify_dir(&path, Some(&keys)).unwrap().ok, "{order:?}");
    }
}

#[tokio::test]
async fn statements_are_shown_by_id_by_number_and_all() {
    let (_folder, path, _) = log().await;
    let all: Vec<_> = show(&path, Select::All).unwrap().map(Result::unwrap).collect();
    assert_eq!(all.len(), 6);
    let id = all[2]["id"].as_str().unwrap().parse().unwrap();
    let by_id: Vec<_> = show(&path, Select::Id(id)).unwrap().map(Result::unwrap).collect();
    assert_eq!(by_id, all[2..3]);
    let by_seq: Vec<_> = show(&path, Select::Seq(3)).unwrap().map(Result::unwrap).collect();
    assert_eq!(by_seq, all[3..4]);
}

#[tokio::test]
async fn a_torn_end_is_told_as_such_and_damage_to_what_was_synced_is_not() {
    let (_folder, path, keys) = log().await;
    let file = path.join("wal-00000000");
    let good = fs::read(&file).unwrap();
    let first = Record::read(&good[HEADER..]).unwrap().size();
    for torn in 1..first {
        // Written up to here when it was killed.
        fs::write(&file, [&good[..], &good[HEADER..HEADER + torn]].concat()).unwrap();
        let report = verify_dir(&path, Some(&keys)).unwrap();
        assert_eq!((report.ok, report.torn_bytes, report.problems.len()), (false, torn as u64, 1), "{torn}: {report:?}");
    }
    fs::write(&file, &good[..good.len() - 1]).unwrap();
    assert_eq!(verify_dir(&path, Some(&keys)).unwrap().torn_bytes, 0, "the checkpoint covers the last entry");
    fs::write(&file, &good).unwrap();
    for length in [0, 1, HEADER - 1] {
        fs::write(path.join("wal-00000001"), &good[..length]).unwrap();
        let report = verify_dir(&path, Some(&keys)).unwrap();
        assert_eq!((report.ok, report.torn_bytes, report.problems.len()), (false, length as u64, 1), "{report:?}");
    }
}

#[tokio::test]
async fn an_end_that_begins_the_next_entry_is_what_a_kill_leaves_and_the_log_holds() {
    let (_folder, path, keys) = log().await;
    let file = path.join("wal-00000000");
    let good = fs::read(&file).unwrap();
    let record = |seq: u64| {
        let mut record = Vec::new();
        // A string of bytes in CBOR.
        frame(&mut record, seq, b"\x58\x1dwhat was to be the next entry");
        record
    };
    let next = record(6);
    for torn in 1..next.len() {
        fs::write(&file, [&good[..], &next[..torn]].concat()).unwrap();
        let report = verify_dir(&path, Some(&keys)).unwrap();
        // Of less than what stands before an entry nothing is known.
        let known = torn >= 16;
        assert_eq!((report.ok, report.torn_bytes, report.notes.len()), (known, torn as u64, usize::from(known)), "{torn}: {report:?}");
    }
    // Bytes of another number, or that are no beginning, are nobody's.
    let mut damaged = next.clone();
    damaged[20] ^= 1;
    // A length that is wrong, of an entry that is there.
    let mut longer = next.clone();
    longer[0] ^= 64;
    for end in [&record(7)[..20], &record(5)[..20], &damaged, &longer, &[0; 40], &[7; 40]] {
        fs::write(&file, [&good[..], end].concat()).unwrap();
        let report = verify_dir(&path, Some(&keys)).unwrap();
        assert!(!report.ok && report.notes.is_empty(), "{report:?}");
    }
}

#[tokio::test]
async fn a_file_that_is_damaged_is_told_of_once_and_one_that_cannot_be_read_by_its_name() {
    let house = house();
    for _ in 0..300 {
        answer(&house.ledger, &Terms::default()).await.unwrap();
    }
    house.ledger.close();
    let path = house.log();
    let size = verify_dir(&path, None).unwrap().covered;
    for tile in ["tile/0/000".to_owned(), "tile/entries/000".to_owned(), format!("tile/0/001.p/{}", size - 256)] {
        let good = fs::read(path.join(&tile)).unwrap();
        let mut bad = good.clone();
        bad[40] ^= 1;
        fs::write(path.join(&tile), bad).unwrap();
        let problems = verify_dir(&path, None).unwrap().problems;
        assert!(problems.len() == 1 && problems[0].contains(&tile), "{problems:?}");
        fs::remove_file(path.join(&tile)).unwrap();
        let problems = verify_dir(&path, None).unwrap().problems;
        assert!(problems.len() == 1 && problems[0].contains("missing"), "{problems:?}");
        fs::write(path.join(&tile), good).unwrap();
    }
    assert!(verify_dir(&path, None).unwrap().ok);
    for file in ["wal-00000000", CHECKPOINT, KEYS] {
        let aside = path.with_extension("aside");
        fs::rename(path.join(file), &aside).unwrap();
        fs::create_dir(path.join(file)).unwrap();
        let why = verify_dir(&path, None).unwrap_err().to_string();
        assert!(why.starts_with(&format!("{file}: ")), "{why}");
        fs::remove_dir(path.join(file)).unwrap();
        fs::rename(aside, path.join(file)).unwrap();
    }
}

#[tokio::test]
async fn a_segment_may_be_begun_for_numbers_that_a_full_disk_took_back() {
    let house = house();
    answer(&house.ledger, &Terms::default()).await.unwrap();
    house.ledger.close();
    let (path, keys) = (house.log(), house.ledger.vkeys());
    let file = path.join("wal-00000000");
    let bytes = fs::read(&file).unwrap();
    // Of the second segment the header names a number that was left out, and one that was used.
    let (mut split, mut at) = (Vec::new(), HEADER);
    while let Some(record) = Record::read(&bytes[at..]) {
        split.push((record.seq, at));
        at += record.size();
    }
    let (seq, at) = split[2];
    fs::write(&file, &bytes[..at]).unwrap();
    for (named, holds) in [(seq, true), (seq + 1, false), (seq - 1, false)] {
        fs::write(path.join("wal-00000001"), [&First { seq: named, index: 2 }.header()[..], &bytes[at..]].concat()).unwrap();
        let report = verify_dir(&path, Some(&keys)).unwrap();
        assert_eq!(report.ok, holds, "{named}: {report:?}");
    }
}

/// Copies a folder into another, in the place of what is there.
fn put(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let there = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            put(&file.path(), &there);
        } else {
            fs::copy(file.path(), there).unwrap();
        }
    }
}

#[tokio::test]
async fn a_kill_before_a_tile_that_is_full_by_then_was_written_leaves_a_log_that_holds() {
    let house = house();
    for _ in 0..250 {
        answer(&house.ledger, &Terms::default()).await.unwrap();
    }
    house.published().await;
    let (path, aside) = (house.log(), tempfile::tempdir().unwrap());
    put(&path, aside.path());
    for _ in 0..50 {
        answer(&house.ledger, &Terms::default()).await.unwrap();
    }
    house.ledger.close();
    // What a kill leaves: the entries are written, and nothing was made of the last of them.
    put(&aside.path().join("tile"), &path.join("tile"));
    for file in [CHECKPOINT, CHECKPOINT_COSE, IDS] {
        fs::copy(aside.path().join(file), path.join(file)).unwrap();
    }
    let report = verify_dir(&path, None).unwrap();
    assert!(report.ok && report.covered < 256 && report.entries > 300, "{report:?}");
    let partial = path.join(format!("tile/0/000.p/{}", report.covered));
    let mut bytes = fs::read(&partial).unwrap();
    bytes[0] ^= 1;
    fs::write(&partial, bytes).unwrap();
    assert!(!verify_dir(&path, None).unwrap().ok);
}

#[tokio::test]
async fn a_word_on_a_shard_that_is_said_again_after_another_is_the_last_one() {
    let house = house();
    let words =
        [(1, "11"), (1, "11"), (2, "22"), (1, "11")].map(|(entries, root)| format!("a/1 ended with {entries} entries, root {root}"));
    for word in &words {
        house.ledger.tell(&Change { changed: Changed::Ended, which: None, reason: Some(word), policy: None });
    }
    house.ledger.close();
    let report = verify_dir(&house.log(), None).unwrap();
    assert_eq!(report.ended.iter().map(|ended| ended.entries).collect::<Vec<_>>(), [1, 2, 1]);
}

#[tokio::test]
async fn a_checkpoint_of_any_size_is_looked_at_in_no_more_time_than_the_log_has_entries() {
    let (_folder, path, _) = log().await;
    let note = fs::read_to_string(path.join(CHECKPOINT)).unwrap();
    let size = note.lines().nth(1).unwrap();
    fs::write(path.join(CHECKPOINT), note.replacen(&format!("\n{size}\n"), "\n4611686018427387904\n", 1)).unwrap();
    let report = verify_dir(&path, None).unwrap();
    assert!(!report.ok);
    assert!(report.problems.len() < 100, "{}", report.problems.len());
}

#[test]
fn no_number_is_too_large_to_be_looked_for() {
    for next in [0, u64::MAX - 1, u64::MAX] {
        assert!(!sound_after(&[0; 64], next));
    }
}
