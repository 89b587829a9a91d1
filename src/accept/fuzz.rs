//! The door of the fuzz target `http`: where messages begin and end, as [`Framing`] reads them.

use std::ops::Range;

use super::framing::{Framing, Wrong};

/// The messages that are whole in `bytes`, and how many of the bytes are strict HTTP/1.1.
///
/// # Panics
/// When the reading depends on how the bytes were cut: at once, byte by byte, or in pieces of `cut` bytes.
#[must_use]
pub fn messages(bytes: &[u8], cut: usize) -> (Vec<Range<usize>>, usize) {
    let (mut framing, mut messages, mut begun, mut strict) = (Framing::new(), Vec::new(), None, bytes.len());
    for (at, byte) in bytes.iter().enumerate() {
        if framing.read(&[*byte]).is_err() {
            strict = at;
            break;
        }
        let begin = *begun.get_or_insert(at);
        if framing.before_body() && !framing.in_head() {
            // An empty line may stand before a request.
            if bytes[begin] != b'\r' {
                messages.push(begin..at + 1);
            }
            begun = None;
        }
    }
    let wrong = (strict < bytes.len()).then_some(Wrong(strict));
    assert_eq!(Framing::new().read(bytes).err(), wrong, "at once");
    let mut pieces = Framing::new();
    let first = bytes.chunks(cut.max(1)).enumerate().find_map(|(piece, bytes)| {
        let wrong = pieces.read(bytes).err()?;
        Some(Wrong(piece * cut.max(1) + wrong.0))
    });
    assert_eq!(first, wrong, "in pieces of {cut}");
    (messages, strict)
}
