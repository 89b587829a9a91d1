use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::digest::Digest;
use crate::prove::config::{Config, Mode, Terms};
use crate::prove::key::commitment;
use crate::prove::ledger::tests::answer;
use crate::prove::ledger::{Ledger, OpenError, Opened};
use crate::prove::statement::Build;
use crate::prove::statement::tests::{signer, trail};
use crate::trail::Who;
use crate::verify::entries::Entries;
use crate::verify::folder::CHECKPOINT;
use crate::verify::log::{Report, verify_dir, verify_statement};
use crate::verify::proof::verify_receipt;
use crate::verify::proved::Proved;
use crate::verify::reconcile::reconcile;
use crate::verify::show::Select;

const ORIGIN: &str = "gw.example/node1";

/// A log whose key was rotated as often as it says, with an answer in each period.
struct Rotated {
    folder: tempfile::TempDir,
    keys: Vec<Vkeys>,
}

fn key_file(folder: &Path, number: usize) -> PathBuf {
    let path = folder.join(format!("{number}.pem"));
    if !path.exists() {
        std::fs::write(&path, Key::generate_pem().expose()).unwrap();
    }
    path
}

pub(in crate::prove) fn open(folder: &Path, key: usize, previous: Option<usize>) -> Result<(Ledger, Opened), OpenError> {
    [Some(key), previous].into_iter().flatten().for_each(|number| drop(key_file(folder, number)));
    let previous = previous.map(|number| format!("previous_key = \"{number}.pem\"")).unwrap_or_default();
    let text = format!("directory = \"log\"\norigin = \"{ORIGIN}\"\nkey = \"{key}.pem\"\n{previous}");
    let config: Config = toml::from_str(&text).unwrap();
    let (events, _) = crate::event::channel(64);
    let build = Build { binary: Some(Digest::of(b"program")), config: None };
    Ledger::open(&config, folder, build, events, Box::new(|_| {}))
}

async fn period(folder: &Path, key: usize, previous: Option<usize>) -> Opened {
    let (ledger, opened) = open(folder, key, previous).unwrap_or_else(|error| panic!("{error}"));
    ledger.accept().over();
    answer(&ledger, &Terms { mode: Mode::Included, ..Terms::default() }).await.unwrap();
    ledger.close();
    opened
}

async fn rotated(times: usize) -> Rotated {
    let folder = tempfile::tempdir().unwrap();
    assert!(!period(folder.path(), 0, None).await.rotated);
    for key in 1..=times {
        assert!(period(folder.path(), key, Some(key - 1)).await.rotated);
    }
    let keys = (0..=times).map(|number| Key::from_file(&key_file(folder.path(), number)).unwrap().0.vkeys(ORIGIN)).collect();
    Rotated { folder, keys }
}

impl Rotated {
    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn entries(&self) -> Vec<Vec<u8>> {
        Entries::of(&self.log()).unwrap().map(|entry| entry.unwrap().1).collect()
    }

    fn verify(&self, keys: &[&Vkey]) -> Report {
        verify_dir(&self.log(), Some(&keys.iter().copied().cloned().collect::<Vec<_>>())).unwrap()
    }

    /// The place of the entry that hands the log over for the last time.
    fn last_rotation(&self) -> usize {
        self.entries().iter().rposition(|entry| Statement::read(entry).unwrap().has_rotation()).unwrap()
    }

    /// The write-ahead file with these entries in the place of those from `at` on, which the tiles have not yet.
    fn rewrite(&self, at: usize, with: &[Vec<u8>]) {
        use crate::verify::segment::{First, frame, path_of};
        let mut bytes = First { seq: 0, index: 0 }.header().to_vec();
        let all = self.entries();
        for entry in all[..at].iter().chain(with) {
            frame(&mut bytes, Statement::read(entry).unwrap().seq, entry);
        }
        std::fs::write(path_of(&self.log(), 0), bytes).unwrap();
    }

    fn signer(&self, key: usize) -> Signer {
        let other = signer();
        let key = Key::from_file(&key_file(self.folder.path(), key)).unwrap().0;
        Signer::new(key, ORIGIN.into(), Build::default(), other.salts)
    }
}

fn tells(report: &Report, what: &str) -> bool {
    !report.ok && report.problems.iter().any(|problem| problem.contains(what))
}

#[tokio::test]
async fn whoever_knows_the_first_key_follows_to_the_newest_and_nobody_back() {
    for times in [1, 2] {
        let log = rotated(times).await;
        let report = log.verify(&[&log.keys[0][0]]);
        assert!(report.ok, "{report:?}");
        assert_eq!(report.kinds["key-rotation"], times as u64 + 1);
        let all: Vec<&Vkey> = log.keys.iter().rev().map(|keys| &keys[0]).collect();
        assert!(log.verify(&all).ok);
        assert!(verify_dir(&log.log(), None).unwrap().ok);
        let newest = log.verify(&all[..1]);
        assert!(tells(&newest, "the log key with which the log was begun"), "{newest:?}");
        // From where it took the log over, the newest vouches for itself.
        let told = |at: usize| newest.problems.iter().any(|problem| problem.contains(&format!("seq {at}:")));
        assert!(told(log.last_rotation()) && !told(log.last_rotation() + 1), "{newest:?}");
        let listed = std::fs::read_to_string(log.log().join("keys.vkey")).unwrap();
        let listed: Vec<Vkey> = listed.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(listed, log.keys.iter().rev().flatten().cloned().collect::<Vec<_>>());
        assert!(reconcile(Entries::of(&log.log()).unwrap(), None).unwrap().ok);
    }
}

#[tokio::test]
async fn statements_of_each_period_are_its_statement_keys_and_receipts_of_all_are_the_newest_log_keys() {
    let log = rotated(2).await;
    let mut period = 0;
    for (index, entry) in log.entries().iter().enumerate() {
        let statement = Statement::read(entry).unwrap();
        period += usize::from(statement.has_rotation());
        if statement.kind != Kind::KeyRotation {
            verify_statement(entry, &log.keys[period][1]).unwrap();
        }
        let receipt = Proved::in_folder(&log.log(), Select::Index(index as u64)).unwrap().receipt();
        assert_eq!(verify_receipt(&receipt, entry, &log.keys[2][0]).unwrap().0, index as u64);
        assert!(verify_receipt(&receipt, entry, &log.keys[1][0]).is_err());
    }
    assert_eq!(period, 2);
}

#[tokio::test]
async fn while_the_key_before_is_named_checkpoints_open_with_either_log_key() {
    let log = rotated(1).await;
    let note = || Note::parse(&std::fs::read(log.log().join(CHECKPOINT)).unwrap()).unwrap();
    for (old, open_with) in [(Some(0), vec![0, 1]), (None, vec![1])] {
        let (ledger, opened) = open(log.folder.path(), 1, old).unwrap_or_else(|error| panic!("{error}"));
        assert!(!opened.rotated);
        assert_eq!(ledger.all_vkeys(), [log.keys[1].to_vec(), log.keys[0].to_vec()].concat());
        ledger.close();
        for key in 0..2 {
            assert_eq!(note().open(&log.keys[key][..1]).is_ok(), open_with.contains(&key));
        }
        assert_eq!(signer_of(&note(), &[log.keys[0].clone(), log.keys[1].clone()]), Some(1), "the holder alone signs with ML-DSA-44");
        assert!(log.verify(&[&log.keys[0][0]]).ok);
    }
}

#[tokio::test]
async fn the_key_before_opens_the_log_no_more_and_a_strange_one_never_does() {
    let log = rotated(1).await;
    for (key, previous) in [(0, None), (2, None), (2, Some(3)), (2, Some(0)), (0, Some(2))] {
        let refused = open(log.folder.path(), key, previous);
        assert!(matches!(refused, Err(OpenError::AnotherKey(_))), "{key} after {previous:?}");
    }
    let error = open(log.folder.path(), 2, None).map(drop).unwrap_err().to_string();
    assert!(error.contains("prove.previous_key"), "{error}");
    // Back to the old one it goes as to any other: by an entry.
    assert!(period(log.folder.path(), 0, Some(1)).await.rotated);
    assert!(log.verify(&[&log.keys[0][0]]).ok);
    // A log that is begun was nobody's before.
    let fresh = tempfile::tempdir().unwrap();
    key_file(fresh.path(), 1);
    assert!(!period(fresh.path(), 0, Some(1)).await.rotated);
    assert_eq!(std::fs::read_to_string(fresh.path().join("log/keys.vkey")).unwrap().lines().count(), 3);
}

#[tokio::test]
async fn a_crash_between_the_steps_leaves_a_log_that_goes_on_with_both_keys_and_rotates_once() {
    // 0: nothing was written · 1: the entry lies in the write-ahead file alone · 2: the lock file has the new checkpoint, readers do not ·
    // 3: the checkpoint is out, keys.vkey names the old keys alone, and the salts are still sealed by the old key.
    for step in 0..=3 {
        let log = rotated(0).await;
        let folder = log.folder.path();
        let copy = |name: &str| std::fs::read(folder.join(name)).unwrap();
        let before: Vec<_> =
            ["log/checkpoint", "log/checkpoint.cose", "log.lock", "log/keys.vkey", "log/salts"].map(|name| (name, copy(name))).into();
        if step > 0 {
            let (ledger, opened) = open(folder, 1, Some(0)).unwrap_or_else(|error| panic!("{error}"));
            assert!(opened.rotated);
            ledger.close();
            drop(ledger);
            let kept = log.last_rotation() + 1;
            let back = match step {
                1 => &before[..],
                2 => &[before[0].clone(), before[1].clone(), before[3].clone(), before[4].clone()],
                _ => &before[3..],
            };
            if step < 3 {
                log.rewrite(kept, &[]);
            }
            if step == 2 {
                // The checkpoint of the new key that the lock file has is that over the rotation entry.
                let mut edge = crate::tlog::tile::Edge::default();
                log.entries()[..kept].iter().for_each(|entry| edge.push(entry, |_, _, _| {}));
                let checkpoint =
                    crate::tlog::Checkpoint { origin: ORIGIN.into(), size: kept as u64, root: edge.root(), extensions: Vec::new() };
                let note = log.signer(1).sign_checkpoint(&checkpoint, 1).unwrap();
                std::fs::write(folder.join("log.lock"), note.to_string()).unwrap();
            }
            back.iter().for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes).unwrap());
        }
        if step > 0 {
            assert!(matches!(open(folder, 0, None), Err(OpenError::AnotherKey(_) | OpenError::NotOurs(_))), "step {step}");
        }
        let opened = period(folder, 1, Some(0)).await;
        assert_eq!(opened.rotated, step == 0, "step {step}");
        let report = log.verify(&[&log.keys[0][0]]);
        assert!(report.ok, "step {step}: {report:?}");
        assert_eq!(report.kinds["key-rotation"], 2, "step {step}");
        // And after it with the new key alone.
        period(folder, 1, None).await;
        assert!(log.verify(&[&log.keys[0][0]]).ok);
    }
}

#[tokio::test]
async fn after_lost_power_the_rotation_tells_which_numbers_are_missing() {
    let log = rotated(0).await;
    std::fs::write(log.log().join("lock"), "another boot").unwrap();
    assert!(period(log.folder.path(), 1, Some(0)).await.rotated);
    let report = log.verify(&[&log.keys[0][0]]);
    assert!(report.ok, "{report:?}");
    assert_eq!(report.left_out.len(), 1);
}

#[tokio::test]
async fn what_was_committed_to_before_opens_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let (ledger, _) = open(folder.path(), 0, None).unwrap();
    let id = answer(&ledger, &Terms::default()).await.unwrap().id().unwrap();
    ledger.close();
    drop(ledger);
    let (ledger, opened) = open(folder.path(), 1, Some(0)).unwrap();
    assert!(opened.rotated && !opened.salts_lost);
    ledger.close();
    drop(ledger);
    let (ledger, _) = open(folder.path(), 1, None).unwrap();
    let who: Arc<Who> = trail(1).who.unwrap();
    let found = ledger.find(id, &who, false).await.unwrap();
    let disclosed = ledger.disclose(id, &who, false).await.unwrap();
    assert!(disclosed.to_string().contains("salt"), "{disclosed}");
    let salt = ledger.0.signer.salts.of_subject(&who, found.statement.seq).unwrap().salt(id, "response");
    let commit = found.statement.commits().find(|(label, _)| *label == "response").unwrap().1;
    assert_eq!(commitment("response", &salt, &Digest::of(b"the answer")), commit);
}

#[tokio::test]
async fn neither_key_alone_hands_a_log_over() {
    let log = rotated(1).await;
    let at = log.last_rotation();
    let [old, new] = [0, 1].map(|key| log.signer(key));
    let honest = Statement::read(&log.entries()[at]).unwrap();
    let (seq, t1) = (honest.seq, honest.signed_at);
    // As it was, it is taken again.
    let again = new.rotation(seq, t1, &old.key, None);
    assert_eq!(Statement::read(&again).unwrap().hands_over(), Some((log.keys[0][0].clone(), log.keys[1][0].clone())));
    // The new one alone signs in the place of the old one, and names it, or itself.
    let payload = |after: &Signer, consent: &[u8], before: &Vkey| {
        let [log, statement, checkpoint] = after.key.vkeys(ORIGIN);
        let mut to = Writer::with_room(1_800);
        to.map(9);
        after.begin(&mut to, Kind::KeyRotation, seq, t1, t1);
        to.uint(17).bytes(statement.key.bytes());
        to.uint(19).map(3).uint(1).bytes(log.key.bytes()).uint(2).bytes(consent).uint(3).bytes(before.key.bytes());
        to.uint(21).bytes(checkpoint.key.bytes());
        to.done()
    };
    let consent = honest.rotation().unwrap().1.to_vec();
    let signed = |payload: &[u8], by: &Signer, kid: &Vkey| {
        by.seal_by(fresh_id(t1), t1, payload, &kid.kid(), |message| by.key.sign_endorsement(message))
    };
    let (old_key, new_key) = (&log.keys[0][0], &log.keys[1][0]);
    let by_new = payload(&new, &consent, old_key);
    let by_itself = payload(&new, &consent, new_key);
    // The old one alone has no consent of the new one, or that for other keys.
    let third = log.signer(2);
    let without = payload(&new, &[0; 64], old_key);
    let borrowed = payload(&third, &consent, old_key);
    for (forged, why) in [
        (signed(&by_new, &new, old_key), "the new key under the old one's name"),
        (signed(&by_new, &new, new_key), "the new key"),
        (signed(&by_itself, &new, new_key), "the new key from itself"),
        (signed(&without, &old, old_key), "without consent"),
        (signed(&borrowed, &old, old_key), "with the consent to another"),
        // A stranger hands over to itself, all signatures sound.
        (third.rotation(seq, t1, &log.signer(3).key, None), "a stranger"),
        (old.endorsement(t1), "the endorsement of the first entry"),
    ] {
        log.rewrite(at, &[forged]);
        assert!(tells(&log.verify(&[old_key]), "seq "), "{why}");
        let refused = log.verify(&[old_key]).problems.iter().any(|problem| {
            problem.contains("is not signed by both") || problem.contains("does not hold it") || problem.contains("entry 0, and no other")
        });
        assert!(refused, "{why}: {:?}", log.verify(&[old_key]));
    }
}

#[tokio::test]
async fn the_old_keys_sign_nothing_any_more_after_the_rotation() {
    let log = rotated(1).await;
    let [old, new] = [0, 1].map(|key| log.signer(key));
    let all = log.entries();
    let last = Statement::read(all.last().unwrap()).unwrap();
    let (seq, t1) = (last.seq + 1, last.signed_at);
    for (entry, why) in [
        (old.heartbeat(seq, t1, t1, &Default::default()), "of another time than its own"),
        // The old key hands over once more, to a third that consents.
        (log.signer(2).rotation(seq, t1, &old.key, None), "by a key that does not hold it"),
    ] {
        log.rewrite(all.len(), &[entry]);
        let report = log.verify(&[&log.keys[0][0]]);
        assert!(tells(&report, why), "{report:?}");
    }
    log.rewrite(all.len(), &[new.heartbeat(seq, t1, t1, &Default::default())]);
    assert!(log.verify(&[&log.keys[0][0]]).ok, "{:?}", log.verify(&[&log.keys[0][0]]));
    // A checkpoint of the old key over what the new one holds.
    log.rewrite(all.len(), &[]);
    let path = log.log().join(CHECKPOINT);
    let note = Note::parse(&std::fs::read(&path).unwrap()).unwrap();
    let checkpoint = crate::tlog::Checkpoint::parse(note.text()).unwrap();
    std::fs::write(&path, old.sign_checkpoint(&checkpoint, 1).unwrap().to_string()).unwrap();
    assert!(tells(&log.verify(&[&log.keys[0][0]]), "checkpoint: not signed by the log's own key"));
}

#[test]
fn a_flipped_bit_anywhere_hands_nothing_over() {
    let (one, other) = (signer(), signer());
    let other = Signer::new(Key::from_pem(Key::generate_pem().expose()).unwrap(), one.origin.clone(), Build::default(), other.salts);
    let entry = other.rotation(7, 1_800_000_000_000_000_000, &one.key, Some(5));
    let statement = Statement::read(&entry).unwrap();
    assert!(statement.hands_over().is_some());
    assert_eq!((statement.resumed_after(), statement.view()["rotation"]["resumed_after"].as_u64()), (Some(5), Some(5)));
    for at in 0..entry.len() {
        let mut bad = entry.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(Statement::read(&bad).map_or(true, |statement| statement.hands_over().is_none()), "byte {at}");
    }
}
