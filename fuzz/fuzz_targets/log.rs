//! What lies in a log's folder, or comes from one: segments of the write-ahead file, statements, signed roots, receipts, bundles and tiles.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::fuzz::log;
use portcullis::tlog::tile::{self, Tile};
use portcullis::tlog::vkey::{PublicKey, Vkey};
use portcullis::verify::proof::{SignedRoot, transparent, verify_receipt};
use portcullis::verify::statement::Statement;
use portcullis_fuzz::{seed, seeds, within};

fuzz_target!(init: seeds(made), |data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    // A value of CBOR takes 32 bytes in memory for one in the file, in lists that double.
    within(256 * data.len() + (1 << 20), || match mode % 6 {
        0 => _ = log::records(rest),
        1 => damaged(rest),
        2 => statement(rest),
        3 => root(rest),
        4 => bundle(rest),
        _ => tiles(rest),
    });
});

/// Entries that were written are read as they were; of a segment that was cut or changed in one byte, those before that place are.
fn damaged(data: &[u8]) {
    let [at, more, flip, rest @ ..] = data else { return };
    let entries: Vec<&[u8]> = rest.split(|byte| *byte == b'\n').filter(|entry| !entry.is_empty()).collect();
    let mut segment = log::segment(5, 3, &entries);
    let ((seq, index), records) = log::records(&segment).expect("a segment");
    assert_eq!((seq, index), (5, 3));
    assert_eq!(records.iter().map(|(_, entry)| *entry).collect::<Vec<_>>(), entries);
    assert!(records.iter().zip(5..).all(|((seq, _), expected)| *seq == expected));
    let at = usize::from(u16::from_le_bytes([*at, *more])) % segment.len();
    if *flip == 0 {
        segment.truncate(at);
    } else {
        segment[at] ^= flip;
    }
    let sound = log::records(&segment);
    // The header is whole before the first byte of a record.
    assert_eq!(sound.is_some(), at >= 32);
    if let Some((_, records)) = sound {
        let before: Vec<&[u8]> = records.iter().map(|(_, entry)| *entry).collect();
        assert!(entries.starts_with(&before), "damage made an entry");
        let mut end = 32;
        let whole = entries.iter().take_while(|entry| {
            end += 16 + entry.len();
            end <= at
        });
        assert_eq!(before.len(), whole.count(), "exactly those before the damage are read");
    }
}

fn key() -> Vkey {
    Vkey { name: "example.com/log".to_owned(), key: PublicKey::Statement([7; 32]) }
}

fn statement(entry: &[u8]) {
    let Ok(statement) = Statement::read(entry) else { return };
    let _ = statement.view().to_string();
    let _ = (statement.endorses(), statement.resumed_after(), statement.commits().count(), statement.hands_over());
    assert!(!statement.signed_by(&key()), "nobody has signed it");
    let with = transparent(entry, b"receipt").expect("a statement takes a receipt");
    assert!(Statement::read(&with).is_err(), "an entry has nothing in its unprotected header");
}

fn root(bytes: &[u8]) {
    if let Some(root) = SignedRoot::read(bytes) {
        assert_eq!(root.encode(), bytes, "it has one encoding");
        let _ = root.size();
        let receipt = root.receipt(1, 2, &[[1; 32]]);
        assert!(verify_receipt(&receipt, b"entry", &key()).is_err());
    }
    assert!(verify_receipt(bytes, b"entry", &key()).is_err(), "nobody has signed it");
}

fn bundle(bytes: &[u8]) {
    if let Some(entries) = tile::entries(bytes) {
        let mut again = Vec::new();
        entries.iter().for_each(|entry| tile::bundle(&mut again, entry));
        assert_eq!(again, bytes, "a bundle has one encoding");
    }
    assert_eq!(tile::hashes(bytes).map(|hashes| hashes.concat()), (bytes.len() % 32 == 0).then(|| bytes.to_vec()));
}

fn tiles(bytes: &[u8]) {
    let Ok(path) = std::str::from_utf8(bytes) else { return };
    let Some(tile) = Tile::parse(path) else { return };
    assert_eq!(tile.to_string(), path, "a tile has one path");
    let leaves = tile.leaves();
    assert!(leaves.start < leaves.end, "{path} speaks of the leaves {leaves:?}");
}

fn made() -> Vec<Vec<u8>> {
    let entry = written::statement();
    let segment = log::segment(0, 0, &[&entry, b"another"]);
    let mut bundle = Vec::new();
    [&entry[..], b"", b"x"].iter().for_each(|entry| tile::bundle(&mut bundle, entry));
    let root = written::root();
    let receipt = SignedRoot::read(&root).expect("a signed root").receipt(1, 2, &[[1; 32]]);
    let paths = ["tile/0/000", "tile/entries/x001/234.p/7", "tile/7/x281/x474/x976/x710/655"];
    let paths = paths.map(|path| seed(5, path));
    let others = [
        seed(0, segment),
        seed(1, b"\x28\0\0one\ntwo\nthree"),
        seed(1, b"\x28\0\x01one\ntwo\nthree"),
        seed(2, &entry),
        seed(3, root),
        seed(3, receipt),
        seed(4, bundle),
    ];
    others.into_iter().chain(paths).collect()
}

/// CBOR, written by hand: seeds need not be signed.
mod written {
    /// A head: the major type, and a number below 256.
    fn head(major: u8, number: usize) -> Vec<u8> {
        match u8::try_from(number).expect("short seeds") {
            number @ 0..24 => vec![major << 5 | number],
            number => vec![major << 5 | 24, number],
        }
    }

    fn uint(number: usize) -> Vec<u8> {
        head(0, number)
    }

    fn bytes(bytes: &[u8]) -> Vec<u8> {
        [head(2, bytes.len()), bytes.to_vec()].concat()
    }

    fn text(text: &str) -> Vec<u8> {
        [head(3, text.len()), text.as_bytes().to_vec()].concat()
    }

    fn map(pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let pairs_in_order = pairs.iter().flat_map(|(key, value)| [key.clone(), value.clone()]);
        std::iter::once(head(5, pairs.len())).chain(pairs_in_order).collect::<Vec<_>>().concat()
    }

    fn sign1(protected: &[u8], payload: &[u8]) -> Vec<u8> {
        [head(6, 18), head(4, 4), bytes(protected), map(&[]), bytes(payload), bytes(&[9; 64])].concat()
    }

    pub fn statement() -> Vec<u8> {
        let id = text("urn:portcullis:r:01890a5d-ac96-774b-bcce-b302099a8057");
        let claims = map(&[(uint(1), text("example.com/log")), (uint(2), id), (uint(6), uint(100))]);
        let header = map(&[(uint(1), head(1, 7)), (uint(3), uint(60)), (uint(4), bytes(&[8; 8])), (uint(15), claims)]);
        let request =
            map(&[(uint(1), text("POST")), (uint(2), text("/v1")), (uint(3), uint(50)), (uint(4), uint(9)), (uint(5), bytes(&[3; 32]))]);
        let trail = [head(4, 1), head(4, 3), uint(0), uint(0), uint(7)].concat();
        let payload = map(&[
            (uint(1), uint(1)),
            (uint(2), uint(0)),
            (uint(4), uint(5)),
            (uint(5), uint(6)),
            (uint(6), uint(7)),
            (uint(7), request),
            (uint(12), trail),
        ]);
        sign1(&header, &payload)
    }

    pub fn root() -> Vec<u8> {
        let claims = map(&[(uint(1), text("example.com/log")), (uint(2), text("urn:portcullis:t:2")), (uint(6), uint(100))]);
        let vds = vec![0x19, 0x01, 0x8b];
        sign1(&map(&[(uint(1), head(1, 7)), (uint(4), bytes(&[8; 8])), (uint(15), claims), (vds, uint(1))]), &[5; 32])
    }
}
