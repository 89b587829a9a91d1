use super::*;
use crate::tlog::note::{NotOpened, Note};

// The example of the specification: the log's line, and a witness's whose key the specification does not tell.
const EXAMPLE: &str = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n\
    — example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n\
    — witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n";

fn checkpoint() -> Checkpoint {
    Checkpoint { origin: "log.example/a".into(), size: 15, root: [9; 32], extensions: Vec::new() }
}

fn cosigner(name: &str) -> Cosigner {
    Cosigner::new(name, Ed25519Key::from_seed(&[3; 32]).unwrap(), MlDsa44Key::from_seed(&[4; 32]).unwrap()).unwrap()
}

fn times(note: &Note, keys: &[Vkey]) -> Result<Vec<Option<u64>>, NotOpened> {
    note.open(keys).map(|opened| opened.verified.iter().map(|verified| verified.time).collect())
}

#[test]
fn the_messages_are_the_specifications_byte_for_byte() {
    let note = Note::parse(EXAMPLE.as_bytes()).unwrap();
    let (time, signature) = split(&note.lines()[1].signature).unwrap();
    assert_eq!((time, signature.len()), (1_679_315_147, 64));
    let expected = "cosignature/v1\ntime 1679315147\nexample.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";
    assert_eq!(ed25519_message(note.text(), time).unwrap(), expected.as_bytes());
    let message = ml_dsa_44_message("w.example", &checkpoint(), 0x0102_0304).unwrap();
    let expected =
        [b"subtree/v1\n\0\x09w.example\0\0\0\0\x01\x02\x03\x04\x0dlog.example/a".as_slice(), &[0; 8], b"\0\0\0\0\0\0\0\x0f", &[9; 32]]
            .concat();
    assert_eq!(message, expected);
}

#[test]
fn both_cosignatures_open_and_tell_their_time() {
    let (checkpoint, cosigner) = (checkpoint(), cosigner("w.example"));
    let note = Note::new(&checkpoint.to_string(), cosigner.cosign(&checkpoint, 1_700_000_000).unwrap().into()).unwrap();
    assert_eq!(times(&note, &cosigner.vkeys()), Ok(vec![Some(1_700_000_000); 2]));
    let again = Note::parse(note.to_string().as_bytes()).unwrap();
    assert_eq!(times(&again, &cosigner.vkeys()), Ok(vec![Some(1_700_000_000); 2]));
    assert_eq!(note.lines()[0].signature.len(), 8 + 64);
    assert_eq!(note.lines()[1].signature.len(), 8 + 2420);
}

#[test]
fn another_time_name_origin_size_or_root_is_not_what_was_cosigned() {
    let (first, cosigner) = (checkpoint(), cosigner("w.example"));
    let lines = cosigner.cosign(&first, 1_700_000_000).unwrap();
    let vkeys = cosigner.vkeys();
    for other in [
        Checkpoint { origin: "log.example/b".into(), ..first.clone() },
        Checkpoint { size: 16, ..first.clone() },
        Checkpoint { root: [8; 32], ..first.clone() },
    ] {
        for (line, vkey) in lines.iter().zip(&vkeys) {
            let note = Note::new(&other.to_string(), vec![line.clone()]).unwrap();
            assert_eq!(times(&note, std::slice::from_ref(vkey)), Err(NotOpened::WrongSignature(0)), "{other:?}");
        }
    }
    for (line, vkey) in lines.iter().zip(&vkeys) {
        for at in [0, 7, 8, line.signature.len() - 1] {
            let mut bad = line.clone();
            bad.signature[at] ^= 1;
            let note = Note::new(&first.to_string(), vec![bad]).unwrap();
            assert_eq!(times(&note, std::slice::from_ref(vkey)), Err(NotOpened::WrongSignature(0)), "{at}");
        }
        let short = Line { signature: line.signature[..7].to_vec(), ..line.clone() };
        let note = Note::new(&first.to_string(), vec![short]).unwrap();
        assert_eq!(times(&note, std::slice::from_ref(vkey)), Err(NotOpened::WrongSignature(0)));
    }
    // ML-DSA-44 covers the cosigner's name: under another one the same key did not sign this.
    let renamed = Vkey { name: "v.example".into(), key: vkeys[1].key.clone() };
    let note = Note::new(&first.to_string(), vec![Line::of(&renamed, lines[1].signature.clone())]).unwrap();
    assert_eq!(times(&note, &[renamed]), Err(NotOpened::WrongSignature(0)));
}

#[test]
fn only_ed25519_covers_the_extension_lines() {
    let (plain, cosigner) = (checkpoint(), cosigner("w.example"));
    let lines = cosigner.cosign(&plain, 5).unwrap();
    let extended = Checkpoint { extensions: vec!["more".into()], ..plain };
    let [ed25519, ml_dsa] = lines.map(|line| Note::new(&extended.to_string(), vec![line]).unwrap());
    assert_eq!(times(&ed25519, &cosigner.vkeys()), Err(NotOpened::WrongSignature(0)));
    assert_eq!(times(&ml_dsa, &cosigner.vkeys()), Ok(vec![Some(5)]));
}

#[test]
fn ml_dsa_44_signs_nothing_but_checkpoints() {
    let (checkpoint, cosigner) = (checkpoint(), cosigner("w.example"));
    let [_, line] = cosigner.cosign(&checkpoint, 5).unwrap();
    let note = Note::new("no checkpoint\n", vec![line]).unwrap();
    assert_eq!(times(&note, &cosigner.vkeys()), Err(NotOpened::WrongSignature(0)));
}

#[test]
fn a_time_names_and_origins_are_bounded() {
    let (at_limit, cosigner) = (checkpoint(), cosigner(&"w".repeat(255)));
    assert!(cosigner.cosign(&at_limit, MAX_TIME).is_ok());
    assert_eq!(cosigner.cosign(&at_limit, MAX_TIME + 1), Err(CannotSign));
    assert!(cosigner.cosign(&Checkpoint { origin: "o".repeat(255), ..checkpoint() }, 0).is_ok());
    assert_eq!(cosigner.cosign(&Checkpoint { origin: "o".repeat(256), ..checkpoint() }, 0), Err(CannotSign));
    let keys = || (Ed25519Key::from_seed(&[3; 32]).unwrap(), MlDsa44Key::from_seed(&[4; 32]).unwrap());
    for bad in ["", "a b", "a+b", &"w".repeat(256)] {
        let (ed25519, ml_dsa_44) = keys();
        assert!(Cosigner::new(bad, ed25519, ml_dsa_44).is_none(), "{bad:?}");
    }
    // A line whose time is past the limit is wrong, whatever is signed in it.
    let mut line = cosigner.cosign(&at_limit, 0).unwrap()[0].clone();
    line.signature[..8].copy_from_slice(&(MAX_TIME + 1).to_be_bytes());
    let note = Note::new(&at_limit.to_string(), vec![line]).unwrap();
    assert_eq!(times(&note, &cosigner.vkeys()), Err(NotOpened::WrongSignature(0)));
}

#[test]
fn what_openssl_and_dilithium_py_signed_opens() {
    let note = include_bytes!("../../../tests/data/cosigned.note");
    let keys: Vec<Vkey> = include_str!("../../../tests/data/cosigned.vkeys").lines().map(|line| line.parse().unwrap()).collect();
    let parsed = Note::parse(note).unwrap();
    assert_eq!(parsed.to_string().as_bytes(), note);
    let opened = parsed.open(&keys).unwrap();
    let time = Some(1_764_115_200);
    let lines: Vec<_> = opened.verified.iter().map(|line| (line.key, line.time)).collect();
    assert_eq!(lines, [(0, None), (1, time), (2, time), (3, time)]);
    // With any other text or signature one of the four is wrong.
    for at in (0..note.len()).step_by(97) {
        let mut bad = note.to_vec();
        bad[at] ^= 1;
        let all = Note::parse(&bad).ok().and_then(|note| note.open(&keys).ok()).is_some_and(|opened| opened.verified.len() == 4);
        assert!(!all, "byte {at}");
    }
}
