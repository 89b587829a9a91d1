//! A leaf: the formats of transparency logs, and what verifies them.
//!
//! It knows nothing of the server: no files, no sockets, no clock. Everything in it is a function of bytes, so that a
//! verifier can be built from this folder alone. Cryptography enters by [`crate::digest`] and [`signature`], and nowhere else.
//!
//! | file | format | specification |
//! | --- | --- | --- |
//! | [`vkey`] | verifier keys | C2SP signed-note |
//! | [`note`] | texts with signature lines | C2SP signed-note |
//! | [`checkpoint`] | the head of a tree, as a note's text | C2SP tlog-checkpoint |
//! | [`cosignature`] | timestamped signatures on checkpoints | C2SP tlog-cosignature |
//! | [`merkle`] | trees, proofs of inclusion and of consistency | RFC 6962 §2.1, RFC 9162 §2.1 |
//! | [`tile`] | which hashes and entries lie in which file | C2SP tlog-tiles |
//! | [`add_checkpoint`] | what a log sends to a witness | C2SP tlog-witness |
//! | [`policy`] | which witnesses are enough | C2SP tlog-policy |

pub mod add_checkpoint;
pub mod checkpoint;
pub mod cosignature;
pub mod merkle;
pub mod note;
pub mod policy;
pub mod signature;
pub mod tile;
#[cfg(test)]
pub(crate) mod trial;
pub mod vkey;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

pub use checkpoint::Checkpoint;
pub use note::Note;
pub use vkey::{PublicKey, Vkey};

/// Base64 with padding (RFC 4648 §4). The engine refuses what it would not have written itself: a bit set in the last
/// digit, padding that is missing or too long, a line break.
fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// A decimal number as the specifications write it: ASCII digits, no sign, no leading zero. At most 2^63 - 1, which is
/// where every tool of the field stops.
fn decimal(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten().filter(|number| *number <= i64::MAX as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_one_text() {
        assert_eq!(decimal("0"), Some(0));
        assert_eq!(decimal("20852163"), Some(20_852_163));
        assert_eq!(decimal("9223372036854775807"), Some(i64::MAX as u64));
        for bad in ["", "00", "01", "+1", "-1", " 1", "1 ", "1_0", "0x1", "１", "9223372036854775808", "18446744073709551616"] {
            assert_eq!(decimal(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn bytes_have_one_base64() {
        assert_eq!(from_base64("AAE="), Some(vec![0, 1]));
        // one bit in the last digit, no padding, too much of it, a line break, the alphabet of URLs
        for bad in ["AAF=", "AAE", "AAE==", "AAE=\n", "AA\nE=", "AA-_", "A"] {
            assert_eq!(from_base64(bad), None, "{bad:?}");
        }
    }
}
