use super::*;

// The example of the specification, with its key.
const KEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
const NOTE: &str = "This is an example message.\n\n\
    — example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";
const QUASIMODO: &str = "Ognuno sta solo sul cuor della terra\ntrafitto da un raggio di sole:\n\ned è subito sera.\n\n\
    — quasimodo.example/salvatore NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ2i5ddnGITLlC+EhfLW9oJKONrMouFSQU0xMcXxj99ihAQwaqP3ZekRwNtIc=\n";

fn key(seed: u8) -> Ed25519Key {
    Ed25519Key::from_seed(&[seed; 32]).unwrap()
}

fn vkey(name: &str, seed: u8) -> Vkey {
    Vkey { name: name.into(), key: PublicKey::Log(key(seed).public()) }
}

fn parsed(text: &str) -> Result<Note, Malformed> {
    Note::parse(text.as_bytes())
}

#[test]
fn the_specifications_note_opens_with_its_key() {
    let note = parsed(NOTE).unwrap();
    let keys = [KEY.parse().unwrap()];
    let opened = note.open(&keys).unwrap();
    assert_eq!(opened, Opened { verified: vec![Verified { key: 0, line: 0, time: None }], unknown: vec![] });
    assert_eq!((note.text(), note.to_string()), ("This is an example message.\n", NOTE.into()));
    for at in 0..note.text().len() {
        let mut bad = NOTE.as_bytes().to_vec();
        bad[at] ^= 1;
        assert!(Note::parse(&bad).map_or(true, |note| note.open(&keys).is_err()), "{at}");
    }
}

#[test]
fn a_text_may_have_empty_lines() {
    let note = parsed(QUASIMODO).unwrap();
    assert!(note.text().ends_with("sole:\n\ned è subito sera.\n"));
    assert_eq!(note.lines().len(), 1);
    assert_eq!(note.to_string(), QUASIMODO);
}

#[test]
fn what_is_no_note_is_told_apart() {
    let line = sign(&key(1), "k", "t\n").to_string();
    let torn = line.trim_end();
    let short = "— k AAAAAA==\n";
    for (bad, why) in [
        (String::new(), Malformed::NoText),
        ("t\n".into(), Malformed::NoText),
        (format!("t\n{line}"), Malformed::NoText),
        ("t\n\n".into(), Malformed::NoSignature),
        (format!("t\n\n{torn}"), Malformed::TornLine),
        (format!("t\n\n{line}x\n"), Malformed::SignatureLine),
        (format!("t\n\nx\n{line}"), Malformed::SignatureLine),
        (format!("t\n\n{}", line.replace('—', "-")), Malformed::SignatureLine),
        (format!("t\n\n{}", line.replace("— k", "—  k")), Malformed::SignatureLine),
        (format!("t\n\n{}", line.replace("— k", "— k+")), Malformed::SignatureLine),
        (format!("t\n\n{}", line.replace("— k", "— k\u{a0}")), Malformed::SignatureLine),
        (format!("t\n\n{}", line.replace("— k ", "— k  ")), Malformed::SignatureLine),
        (format!("t\n\n{torn} \n"), Malformed::SignatureLine),
        (format!("t\n\n{short}"), Malformed::SignatureLine),
        (format!("t\n\n{}", line.replace("=\n", "\n")), Malformed::SignatureLine),
        (format!("t\r\n\n{line}"), Malformed::ControlCharacter),
        (format!("t\0\n\n{line}"), Malformed::ControlCharacter),
        (format!("t\t\n\n{line}"), Malformed::ControlCharacter),
        (format!("t\n\n{torn}\r\n"), Malformed::ControlCharacter),
    ] {
        assert_eq!(parsed(&bad), Err(why), "{bad:?}");
    }
    assert_eq!(Note::parse(b"\xff\n\n"), Err(Malformed::NotUtf8));
    // five bytes are an ID and the shortest signature
    assert!(parsed("t\n\n— k AAAAAAA=\n").is_ok());
    assert!(parsed(&format!("\n\n{line}")).is_ok(), "a text of one empty line");
}

#[test]
fn a_note_is_bounded_in_bytes_and_signatures() {
    let line = sign(&key(1), "k", "t\n").to_string();
    let of = |count: usize| format!("t\n\n{}", line.repeat(count));
    assert_eq!(parsed(&of(MAX_SIGNATURES)).unwrap().lines().len(), MAX_SIGNATURES);
    assert_eq!(parsed(&of(MAX_SIGNATURES + 1)), Err(Malformed::TooManySignatures));
    let long = |length: usize| format!("{}\n\n{line}", "t".repeat(length - 2 - line.len()));
    assert_eq!(long(MAX_NOTE).len(), MAX_NOTE);
    assert!(parsed(&long(MAX_NOTE)).is_ok());
    assert_eq!(parsed(&long(MAX_NOTE + 1)), Err(Malformed::TooLong));
    assert_eq!(lines(line.repeat(MAX_SIGNATURES).as_bytes()).unwrap().len(), MAX_SIGNATURES);
    assert_eq!(lines(line.repeat(MAX_SIGNATURES + 1).as_bytes()), Err(Malformed::TooManySignatures));
    assert_eq!(lines(b""), Err(Malformed::NoSignature));
    assert_eq!(lines(format!("{line}\n").as_bytes()), Err(Malformed::SignatureLine));
}

#[test]
fn unknown_lines_are_ignored_and_kept_in_sight() {
    let (text, keys) = ("t\n", [vkey("a", 1), vkey("b", 2)]);
    let other_name = sign(&key(1), "c", text);
    let other_id = Line { id: 7, ..sign(&key(1), "a", text) };
    let note = Note::new(text, vec![other_name.clone(), sign(&key(2), "b", text), other_id, sign(&key(1), "a", text)]).unwrap();
    let opened = note.open(&keys).unwrap();
    assert_eq!(opened.unknown, [0, 2]);
    assert_eq!(opened.verified.iter().map(|verified| (verified.key, verified.line)).collect::<Vec<_>>(), [(1, 1), (0, 3)]);
    assert!(opened.signed_by(0) && opened.signed_by(1) && !opened.signed_by(2));
    assert_eq!(Note::new(text, vec![other_name]).unwrap().open(&keys), Err(NotOpened::NoKnownSignature));
    assert_eq!(note.open(&[]), Err(NotOpened::NoKnownSignature));
}

#[test]
fn one_wrong_line_of_a_known_key_spoils_the_note() {
    let text = "t\n";
    let forged = Line { id: vkey("a", 1).id(), ..sign(&key(2), "a", text) };
    let note = Note::new(text, vec![sign(&key(1), "a", text), forged.clone()]).unwrap();
    assert_eq!(note.open(&[vkey("a", 1)]), Err(NotOpened::WrongSignature(1)));
    // Whoever does not know that key is not concerned.
    let note = Note::new(text, vec![sign(&key(2), "b", text), forged]).unwrap();
    assert_eq!(note.open(&[vkey("b", 2)]).unwrap().unknown, [1]);
}

#[test]
fn a_statement_key_signs_no_note() {
    let vkey = Vkey { name: "a".into(), key: PublicKey::Statement(key(1).public()) };
    let note = Note::new("t\n", vec![Line::of(&vkey, key(1).sign(b"t\n").to_vec())]).unwrap();
    assert_eq!(note.open(&[vkey]), Err(NotOpened::NoKnownSignature));
}

#[test]
fn what_would_not_parse_is_not_made() {
    let line = sign(&key(1), "a", "t\n");
    assert_eq!(Note::new("t", vec![line.clone()]), Err(Malformed::NoText));
    assert_eq!(Note::new("t\n", vec![]), Err(Malformed::NoSignature));
    assert_eq!(Note::new("t\n", vec![Line { name: "a b".into(), ..line.clone() }]), Err(Malformed::SignatureLine));
    assert!(Note::new("t\n", vec![Line { name: "a\n".into(), ..line.clone() }]).is_err());
    // A text that ends in an empty line has it for its own.
    assert_eq!(Note::new("t\n\n", vec![line.clone()]).unwrap().text(), "t\n\n");
    let full = Note::new("t\n", vec![line.clone(); MAX_SIGNATURES]).unwrap();
    assert_eq!(full.and([line]), Err(Malformed::TooManySignatures));
}
