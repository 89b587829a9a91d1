//! What a log loses, and what it does not: power, space, its newest files.

use super::*;

#[tokio::test]
async fn while_nobody_is_let_in_refusals_and_gaps_add_up_and_are_told_afterwards() {
    let house = house();
    let refuse = || house.ledger.refuse(now(), "prove.unavailable", StatusCode::SERVICE_UNAVAILABLE, head(), "{}".into());
    let slot = house.ledger.reserve(&serve(), Want::default()).unwrap();
    drop(slot);
    house.ledger.0.wal.pretend_unpublished(log::MAX_UNPUBLISHED as isize);
    let entries = house.ledger.counters().entries;
    for _ in 0..50 {
        assert_eq!(refuse().await.state(), State::None);
        let slot = house.ledger.reserve(&serve(), Want::default()).unwrap();
        house.ledger.prove_parts(slot, StatusCode::OK, head(), Payload::Whole("x".into()), None, now()).await.unwrap();
        assert!(house.ledger.0.tell_counts().is_none());
    }
    assert_eq!(house.ledger.counters().entries, entries, "memory holds no more than its bound");
    house.ledger.0.wal.pretend_unpublished(-(log::MAX_UNPUBLISHED as isize));
    assert_eq!(refuse().await.state(), State::Promised);
    house.ledger.close();
    let shown = house.shown();
    let told = |path: &str| shown.iter().filter_map(|view| view.pointer(path)?.as_u64()).sum::<u64>();
    assert_eq!((told("/counts/gaps"), told("/counts/suppressed/prove.unavailable")), (50, 50));
}

/// A closed log with so many entries, the two heartbeats among them.
async fn closed(entries: usize) -> tempfile::TempDir {
    let House { folder, ledger, .. } = house();
    for _ in 0..entries - 3 {
        answer(&ledger, &Terms::default()).await.unwrap();
    }
    ledger.close();
    folder
}

fn reopened(folder: &Path) -> (Ledger, Opened) {
    let (ledger, opened, _) = open_in(folder).unwrap_or_else(|error| panic!("{error}"));
    (ledger, opened)
}

#[tokio::test]
async fn a_checkpoint_file_that_lost_power_left_as_anything_is_written_anew_and_a_lock_file_is_not() {
    let folder = closed(5).await;
    let (newest, lock) = (folder.path().join("data/log/checkpoint"), folder.path().join("data/log.lock"));
    let length = std::fs::metadata(&newest).unwrap().len() as usize;
    for left in [vec![], vec![0; length], b"torn".to_vec()] {
        std::fs::write(&newest, &left).unwrap();
        let (ledger, _) = reopened(folder.path());
        ledger.close();
        assert!(verify_dir(&folder.path().join("data/log"), None).unwrap().ok);
    }
    std::fs::write(&lock, vec![0; length]).unwrap();
    assert!(matches!(open_in(folder.path()), Err(OpenError::NotOurs(path)) if path == lock));
    // Without the other to go by, neither is this one.
    std::fs::write(&lock, b"").unwrap();
    std::fs::write(&newest, vec![0; length]).unwrap();
    assert!(matches!(open_in(folder.path()), Err(OpenError::NotOurs(path)) if path == newest));
}

#[tokio::test]
async fn no_checkpoint_says_that_it_is_older_than_the_one_before_it() {
    let folder = closed(5).await;
    let lock = folder.path().join("data/log.lock");
    let (_, key) = config().paths(folder.path());
    let (key, _) = Key::from_file(&key).unwrap();
    let note = Note::parse(&std::fs::read(&lock).unwrap()).unwrap();
    let checkpoint = Checkpoint::parse(note.text()).unwrap();
    // As it is when the clock goes back by a day.
    let later = Moment::now().unix_seconds() + 86_400;
    std::fs::write(&lock, key.sign_checkpoint(&checkpoint, later).unwrap().to_string()).unwrap();
    let (ledger, _) = reopened(folder.path());
    answer(&ledger, &Terms { mode: Mode::Included, ..durable() }).await.unwrap();
    ledger.close();
    let vkeys = ledger.vkeys();
    let signed = Signed::read(&std::fs::read(&lock).unwrap(), &lock, std::slice::from_ref(&vkeys)).unwrap();
    assert!(signed.size() > checkpoint.size && signed.1 >= later, "{} {later}", signed.1);
}

#[tokio::test]
async fn a_log_whose_write_ahead_file_holds_no_entry_any_more_goes_on_from_its_tiles() {
    let folder = closed(256).await;
    let log = folder.path().join("data/log");
    std::fs::remove_file(log.join("wal-00000000")).unwrap();
    // It was begun for entries that a full disk then took back.
    let header = crate::verify::segment::First { seq: 260, index: 256 }.header();
    std::fs::write(log.join("wal-00000001"), header).unwrap();
    assert!(verify_dir(&log, None).unwrap().ok);
    let (ledger, opened) = reopened(folder.path());
    assert_eq!((opened.recovered.entries, opened.recovered.last_seq), (256, Some(255)));
    assert!(answer(&ledger, &Terms { mode: Mode::Included, ..durable() }).await.is_ok());
    ledger.close();
    let report = verify_dir(&log, None).unwrap();
    assert!(report.ok, "{report:?}");
    assert_eq!((report.left_out, report.kinds["key-rotation"]), (vec![(256, 259)], 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_ahead_file_that_is_taken_away_takes_no_answer_with_it_and_no_more_are_let_in() {
    let house = house();
    let wal = house.log().join("wal-00000000");
    answer(&house.ledger, &Terms::default()).await.unwrap();
    std::fs::remove_file(&wal).unwrap();
    let promised = answer(&house.ledger, &Terms::default()).await.unwrap().id().unwrap();
    assert!(answer(&house.ledger, &durable()).await.is_err(), "it is on no disk");
    let why = house.ledger.refuses().unwrap();
    assert!(why.starts_with(house.log().to_str().unwrap()) && why.contains("wal-00000000 was taken away"), "{why}");
    assert_eq!(house.ledger.reserve(&durable(), Want::default()).err(), Some(Error::Unavailable));
    house.ledger.close();
    assert!(house.shown().iter().any(|view| view["id"] == promised.to_string()), "what was promised is in the tiles");
}

/// Every file of a folder, with what is in it.
fn files(folder: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let (mut files, mut left) = (std::collections::BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(path) = left.pop() {
        match std::fs::read_dir(&path) {
            Ok(there) => left.extend(there.map(|file| file.unwrap().path())),
            Err(_) => drop(files.insert(path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    files
}

#[tokio::test]
async fn a_start_that_is_refused_changes_nothing_and_names_the_write_ahead_file_that_is_missing() {
    let folder = closed(300).await;
    let log = folder.path().join("data/log");
    let wal = log.join("wal-00000000");
    let whole = std::fs::read(&wal).unwrap();
    let refused = || {
        let before = files(folder.path());
        let why = open_in(folder.path()).err().unwrap();
        assert!(files(folder.path()) == before, "{why}");
        why
    };
    std::fs::remove_file(&wal).unwrap();
    let why = refused().to_string();
    assert!(why.starts_with(log.join("wal-").to_str().unwrap()) && why.contains("over 300 ") && why.contains("hold 300"), "{why}");
    assert_eq!(show(&log, Select::All).unwrap().count(), 300);
    // As a start left it that did not look first; and an older copy of it, with a torn tail.
    for end in [crate::verify::segment::HEADER, whole.len() / 2] {
        std::fs::write(&wal, &whole[..end]).unwrap();
        assert!(matches!(refused(), OpenError::Unwritten { tiles: 300, covered: 300, .. }));
    }
    // The whole folder from an older copy.
    std::fs::write(&wal, &whole[..whole.len() / 2]).unwrap();
    std::fs::remove_dir_all(log.join("tile")).unwrap();
    assert!(matches!(refused(), OpenError::Behind(_, 300, _)));
    // Other entries in their place.
    let other = closed(320).await;
    std::fs::copy(other.path().join("data/log/wal-00000000"), &wal).unwrap();
    assert!(matches!(refused(), OpenError::Forked(_, 300)));
    std::fs::write(&wal, &whole).unwrap();
    reopened(folder.path()).0.close();
    // And where the folder is gone, none is made.
    std::fs::remove_dir_all(&log).unwrap();
    assert!(matches!(refused(), OpenError::Behind(..)));
    assert!(!log.exists());
}

#[tokio::test]
async fn whatever_pages_lost_power_leaves_nothing_covered_is_lost_and_no_number_is_used_again() {
    const SECTOR: usize = 512;
    const ROUNDS: u64 = 60;
    let folder = closed(12).await;
    let log = folder.path().join("data/log");
    let wal = log.join("wal-00000000");
    let synced = std::fs::read(&wal).unwrap();
    let kept: Vec<Vec<u8>> = crate::verify::entries::Entries::of(&log).unwrap().map(|entry| entry.unwrap().1).collect();
    // What the disk had when the last checkpoint was made; and then much was written that no sync reached.
    let before = tempfile::tempdir().unwrap();
    copy(folder.path(), before.path());
    let (ledger, _) = reopened(folder.path());
    for _ in 0..12 {
        answer(&ledger, &Terms::default()).await.unwrap();
    }
    let promised = ledger.0.wal.next();
    ledger.close();
    drop(ledger);
    let written = std::fs::read(&wal).unwrap();
    assert_eq!(written[..synced.len()], synced);
    let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |end: usize| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        (dice % end as u64) as usize
    };
    for round in 0..ROUNDS {
        let after = tempfile::tempdir().unwrap();
        copy(before.path(), after.path());
        let mut left = written[..synced.len() + below(written.len() - synced.len() + 1)].to_vec();
        let end = left.len();
        for sector in (0..end).step_by(SECTOR) {
            // Of a sector that was synced and written to again the older bytes stay.
            let new = sector.max(synced.len())..end.min(sector + SECTOR);
            if !new.is_empty() && below(2) == 0 {
                left[new].fill(0);
            }
        }
        let log = after.path().join("data/log");
        std::fs::write(log.join("wal-00000000"), &left).unwrap();
        std::fs::write(log.join("lock"), "another boot").unwrap();
        let (ledger, opened) = reopened(after.path());
        assert!(opened.recovered.unsynced_lost && opened.recovered.entries >= kept.len() as u64, "round {round}: {opened:?}");
        let receipt = answer(&ledger, &Terms::default()).await.unwrap();
        let statement = verify_statement(&statement_of(receipt.headers()), &ledger.vkeys()[1]).unwrap();
        assert!(statement.seq >= promised, "round {round}: number {} was given out before", statement.seq);
        ledger.close();
        let report = verify_dir(&log, Some(&ledger.vkeys()[..1])).unwrap();
        assert!(report.ok, "round {round}: {report:?}");
        let there: Vec<Vec<u8>> = crate::verify::entries::Entries::of(&log).unwrap().map(|entry| entry.unwrap().1).collect();
        assert!(there.starts_with(&kept), "round {round}");
    }
}

/// Copies a folder with everything in it.
fn copy(from: &Path, to: &Path) {
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let to = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&to).unwrap();
            copy(&file.path(), &to);
        } else {
            std::fs::copy(file.path(), to).unwrap();
        }
    }
}
