//! The entry by which a log key hands the log over to another.
//!
//! The entry is signed by the log key before, and holds the consent of the one after: `VOUCH ‖ origin ‖ "\n" ‖ log key before ‖ log key after
//! ‖ statement key after ‖ SHA-256(checkpoint key after)`, signed by the log key after. Neither key alone makes one. Trust flows forward:
//! who knows the first log key follows the entries to the newest one.

use super::statement::Statement;
use crate::digest::Digest;
use crate::tlog::vkey::{PublicKey, Vkey};

/// What stands before all else that the log key after signs.
const VOUCH: &[u8] = b"portcullis/key-rotation/v1\n";

/// What the log key after signs: its consent.
pub(crate) fn vouched(origin: &str, before: &[u8], after: &[u8], statement: &[u8], checkpoint: &[u8]) -> Vec<u8> {
    [VOUCH, origin.as_bytes(), b"\n", before, after, statement, Digest::of(checkpoint).as_bytes()].concat()
}

impl Statement {
    /// The log keys before and after, of an entry that hands the log over and is signed by both. Whether the first one held the log is
    /// another question.
    #[must_use]
    pub fn hands_over(&self) -> Option<(Vkey, Vkey)> {
        let (after, consent, before) = self.rotation()?;
        let vkey = |key| Vkey { name: self.issuer.clone(), key: PublicKey::Log(key) };
        let (old, new) = (vkey(before), vkey(after));
        let endorsed = self.endorses();
        let [PublicKey::Statement(statement), PublicKey::MlDsa44(checkpoint)] = &endorsed[..] else { return None };
        let message = vouched(&self.issuer, &before, &after, statement, &checkpoint[..]);
        (old != new && self.signed_by(&old) && new.verifies(&message, consent)).then_some((old, new))
    }
}
