//! The door of the fuzz target `log`: the segments of a write-ahead file.

use super::segment::{First, HEADER, Record, frame, sound_after};

/// A segment that begins with number `seq` at `index`, and holds `entries`.
#[must_use]
pub fn segment(seq: u64, index: u64, entries: &[&[u8]]) -> Vec<u8> {
    let mut segment = First { seq, index }.header().to_vec();
    for (at, entry) in entries.iter().enumerate() {
        frame(&mut segment, seq.wrapping_add(at as u64), entry);
    }
    segment
}

/// What the sound header of a segment says, and its sound records from the front: the number of each, and its entry.
#[must_use]
pub fn records(segment: &[u8]) -> Option<((u64, u64), Vec<(u64, &[u8])>)> {
    let first = First::read(segment)?;
    let (mut at, mut records) = (HEADER, Vec::new());
    while let Some(record) = Record::read(&segment[at..]) {
        at += record.size();
        records.push((record.seq, record.entry));
    }
    let _ = sound_after(&segment[at..], first.seq.wrapping_add(records.len() as u64));
    Some(((first.seq, first.index), records))
}
