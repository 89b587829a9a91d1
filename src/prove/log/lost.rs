//! What lost power, failed syncs and hands leave of a write-ahead file.

use super::*;

/// Opens a log of which a checkpoint covers the first `covered` entries, in another boot than the one before.
fn open_after_lost_power(directory: &Path, covered: u64) -> Result<Recovered, OpenError> {
    std::fs::write(directory.join(LOCK), "another boot").unwrap();
    Wal::open(Found::read(directory, || covered)?, 500, Arc::new(|_| {})).map(|(_, recovered)| recovered)
}

#[test]
fn after_lost_power_everything_from_the_first_damage_on_goes_unless_a_checkpoint_covers_it() {
    let (folder, bytes) = written(5);
    let file = path_of(folder.path(), 0);
    let third: usize = HEADER + (0..3).map(|seq| entry(seq).len() + FRAME).sum::<usize>();
    let mut bad = bytes.clone();
    // A page that never reached the disk, and the one behind it did.
    bad[third..third + entry(3).len()].fill(0);
    std::fs::write(&file, &bad).unwrap();
    assert!(matches!(open(folder.path()), Err(OpenError::Damaged(..))), "no power was lost: this is something else");
    assert!(matches!(open_after_lost_power(folder.path(), 4), Err(OpenError::Damaged(..))), "it was synced");
    assert_eq!(std::fs::read(&file).unwrap(), bad, "nothing is repaired");
    let recovered = open_after_lost_power(folder.path(), 3).unwrap();
    assert_eq!((recovered.entries, recovered.last_seq, recovered.unsynced_lost), (3, Some(2), true));
    assert_eq!(recovered.cut_bytes, (bytes.len() - third) as u64);
    assert_eq!(std::fs::read(&file).unwrap(), bytes[..third]);
}

#[test]
fn after_lost_power_a_segment_that_reached_the_disk_before_an_earlier_one_goes_too() {
    // The end of a segment is missing, torn, or was never a segment: in each case what follows was not synced.
    let damages: [fn(&mut Vec<u8>); 3] = [
        |bytes| bytes.truncate(HEADER + Record::read(&bytes[HEADER..]).unwrap().size()),
        |bytes| bytes.truncate(HEADER + 20),
        |bytes| bytes.fill(0),
    ];
    for damage in damages {
        let folder = tempfile::tempdir().unwrap();
        let (wal, _) = open_with(folder.path(), 500).unwrap();
        (0..60).for_each(|_| drop(wal.append(Until::Ready, entry).unwrap()));
        let first = held(&wal.shared.state).segments[2].first_index;
        drop(wal);
        let last = numbers(folder.path()).unwrap().len();
        assert!(last > 4);
        let mut bytes = std::fs::read(path_of(folder.path(), 2)).unwrap();
        damage(&mut bytes);
        std::fs::write(path_of(folder.path(), 2), &bytes).unwrap();
        assert!(matches!(open_with(folder.path(), 500), Err(OpenError::Damaged(..))));
        assert!(matches!(open_after_lost_power(folder.path(), 60), Err(OpenError::Damaged(..))));
        assert_eq!(numbers(folder.path()).unwrap().len(), last, "nothing is removed");
        let recovered = open_after_lost_power(folder.path(), first).unwrap();
        assert!(recovered.entries >= first && recovered.entries <= first + 1, "{recovered:?}");
        assert!(numbers(folder.path()).unwrap().len() <= 3);
        assert!(entries(folder.path()).into_iter().eq((0..recovered.entries).map(|seq| (seq, entry(seq)))));
    }
}

#[test]
fn a_log_whose_first_segment_never_reached_the_disk_begins_anew_and_one_that_held_something_does_not() {
    let (folder, bytes) = written(2);
    std::fs::write(path_of(folder.path(), 0), vec![0; bytes.len()]).unwrap();
    assert_eq!(open_after_lost_power(folder.path(), 0).unwrap().entries, 0);
    std::fs::write(path_of(folder.path(), 0), [&[0; HEADER][..], &bytes[HEADER..]].concat()).unwrap();
    assert!(matches!(open_after_lost_power(folder.path(), 0), Err(OpenError::Damaged(..))));
}

#[test]
fn that_power_was_lost_is_told_until_a_start_came_so_far_as_to_write_it_down() {
    let (folder, _) = written(2);
    assert!(!open(folder.path()).unwrap().1.unsynced_lost);
    for _ in 0..2 {
        // Each of these starts dies before its first entry is synced.
        assert!(open_after_lost_power(folder.path(), 0).unwrap().unsynced_lost);
        let (_, recovered) = Wal::open(Found::read(folder.path(), || 0).unwrap(), SEGMENT, Arc::new(|_| {})).unwrap();
        assert!(recovered.unsynced_lost);
    }
    assert!(open(folder.path()).unwrap().1.unsynced_lost);
    assert!(!open(folder.path()).unwrap().1.unsynced_lost);
    // A system that does not name its boot is one that may have been started anew.
    for (before, now, lost) in [("a", "a", false), ("a", "b", true), ("", "a", true), ("", "", true)] {
        assert_eq!(lost_since(before.as_bytes(), now.as_bytes()), lost, "{before:?} {now:?}");
    }
}

#[test]
fn after_a_failed_sync_the_next_start_takes_what_was_not_synced_for_lost() {
    let (folder, _) = written(2);
    let (wal, _) = open(folder.path()).unwrap();
    let (_keep, pipe) = std::io::pipe().unwrap();
    held(&wal.shared.state).file = Arc::new(File::from(std::os::fd::OwnedFd::from(pipe)));
    wal.append(Until::Ready, entry).unwrap();
    drop(wal);
    assert!(open(folder.path()).unwrap().1.unsynced_lost);
}

/// Waits until nothing is taken any more; gives why.
fn stopped(wal: &Wal) -> String {
    for _ in 0..500 {
        if wal.tally().poisoned {
            assert!(wal.append(Until::Ready, entry).is_err());
            return wal.failure().unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("entries go on into a file that nobody finds");
}

#[test]
fn a_file_that_is_removed_while_it_is_written_takes_nothing_more_and_can_be_copied_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = path_of(folder.path(), 0);
    for (before, writes) in [(0, true), (1, false), (1, true)] {
        let (wal, recovered) = open(folder.path()).unwrap();
        assert_eq!((recovered.entries, recovered.unsynced_lost), (before, before > 0), "what was put back may be an older one");
        std::fs::remove_file(&file).unwrap();
        // Who waits for a sync is not told that it is there; where nothing is written it is seen too.
        let wait = writes.then(|| wal.append(Until::Synced, entry).unwrap().2);
        assert!(wait.is_none_or(|wait| wait.done_here().is_err()));
        let why = stopped(&wal);
        let open = why.split_once("copy ").and_then(|(_, rest)| rest.split_once(" there")).unwrap_or_else(|| panic!("{why}")).0;
        assert!(why.contains("wal-00000000 was taken away"), "{why}");
        std::fs::copy(open, &file).unwrap();
    }
    assert_eq!(entries(folder.path()), (0..2).map(|seq| (seq, entry(seq))).collect::<Vec<_>>());
}

#[test]
fn a_folder_that_is_moved_away_while_it_is_written_takes_nothing_more() {
    let above = tempfile::tempdir().unwrap();
    let (folder, elsewhere) = (above.path().join("log"), above.path().join("elsewhere"));
    std::fs::create_dir(&folder).unwrap();
    let (wal, _) = open(&folder).unwrap();
    wal.append(Until::Ready, entry).unwrap();
    std::fs::rename(&folder, &elsewhere).unwrap();
    assert!(stopped(&wal).contains("put it back"));
    drop(wal);
    std::fs::rename(&elsewhere, &folder).unwrap();
    assert_eq!(open(&folder).unwrap().1.entries, 1);
}
