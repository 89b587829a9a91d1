//! Signed notes, checkpoints, verifier keys, witness policies and what witnesses are asked and answer. What is read is written as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::tlog::add_checkpoint::{AddCheckpoint, size_in_conflict};
use portcullis::tlog::policy::Policy;
use portcullis::tlog::vkey::Vkey;
use portcullis::tlog::{Checkpoint, Note, note};
use portcullis_fuzz::{file, seed, seeds, within};

fuzz_target!(init: seeds(made), |data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    within(64 * data.len() + (1 << 20), || match mode % 5 {
        0 => read_note(rest),
        1 => {
            let Ok(text) = std::str::from_utf8(rest) else { return };
            if let Ok(checkpoint) = Checkpoint::parse(text) {
                assert_eq!(checkpoint.to_string(), text, "a checkpoint has one text");
            }
            if let Ok(key) = text.parse::<Vkey>() {
                assert_eq!(key.to_string(), text, "a key has one text");
                let _ = (key.kid(), key.verifies(b"message", &[0; 64]));
            }
        }
        2 => {
            if let Ok(request) = AddCheckpoint::parse(rest) {
                assert_eq!(request.to_string().as_bytes(), rest, "a request has one text");
                assert_eq!(&Checkpoint::parse(request.note().text()).expect("read before"), request.checkpoint());
            }
        }
        3 => {
            if let Ok(policy) = Policy::parse(rest) {
                // More witnesses are never worse than fewer, and all are as good as any.
                let all = policy.quorum.met(&|_| true);
                assert!(all || !policy.quorum.met(&|place| place % 2 == 0));
            }
        }
        _ => {
            if let Ok(lines) = note::lines(rest) {
                let again: String = lines.iter().map(ToString::to_string).collect();
                assert_eq!(again.as_bytes(), rest, "lines have one text");
            }
            if let Some(size) = size_in_conflict(rest) {
                assert_eq!(format!("{size}\n").as_bytes(), rest, "a size has one text");
            }
        }
    });
});

fn read_note(bytes: &[u8]) {
    let Ok(note) = Note::parse(bytes) else { return };
    assert_eq!(note.to_string().as_bytes(), bytes, "a note has one text");
    assert_eq!(Note::new(note.text(), note.lines().to_vec()).as_ref(), Ok(&note));
    let keys: Vec<Vkey> = KEYS.lines().filter_map(|key| key.parse().ok()).collect();
    if note.open(&keys).is_ok() {
        assert_eq!(note.text(), TEXT, "one text alone was signed");
    }
}

/// The keys of `tests/data/cosigned.note`, and the text that they signed.
const KEYS: &str = include_str!("../../tests/data/cosigned.vkeys");
const TEXT: &str = {
    let note = include_str!("../../tests/data/cosigned.note");
    let mut at = 0;
    while note.as_bytes()[at] != b'\n' || note.as_bytes()[at + 1] != b'\n' {
        at += 1;
    }
    note.split_at(at + 1).0
};

fn made() -> Vec<Vec<u8>> {
    let note = file("tests/data/cosigned.note");
    let read = Note::parse(&note).expect("a note");
    let keys = KEYS.lines().filter(|key| key.parse::<Vkey>().is_ok()).map(|key| seed(1, key));
    let proof = "PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n";
    let witness = KEYS.lines().filter(|key| key.parse::<Vkey>().is_ok()).enumerate();
    let policy: String = witness.map(|(at, key)| format!("witness w{at} {key} https://example.com\n")).collect();
    let lines: String = read.lines().iter().map(ToString::to_string).collect();
    let others = [
        seed(0, &note),
        seed(1, read.text()),
        seed(2, [format!("old 7\n{proof}{proof}\n").as_bytes(), &note].concat()),
        seed(3, format!("{policy}group g any w0\nquorum g\n")),
        seed(3, "quorum none\n"),
        seed(4, lines),
        seed(4, "20852014\n"),
    ];
    others.into_iter().chain(keys).collect()
}
