//! How a log goes on with other keys: the entry by which the log key before hands it over, and who holds a log that is opened.
//!
//! How such an entry is read, and why it is signed by both keys, is told in [`crate::verify::rotation`].
//!
//! The ML-DSA-44 line of a checkpoint is by who holds the log, and by nobody else: the key before signs along with its Ed25519 line alone,
//! for those who know no other yet.

use super::key::{Key, Vkey};
use super::statement::{Signer, fresh_id};
use crate::tlog::Note;
use crate::verify::cbor::Writer;
use crate::verify::rotation::vouched;
use crate::verify::statement::{Kind, Statement};

/// The public keys of a log under one PEM: the log key, the statement key, and the second key of checkpoints.
pub(super) type Vkeys = [Vkey; 3];

impl Key {
    /// The three public keys under `origin`.
    pub(super) fn vkeys(&self, origin: &str) -> Vkeys {
        [self.log_vkey(origin), self.statement_vkey(origin), self.checkpoint_vkey(origin)]
    }
}

impl Signer {
    /// The entry by which `before` hands the log over to this one. `resumed_after` is the last number before a restart that may have lost
    /// entries, where none has told it yet.
    pub(super) fn rotation(&self, seq: u64, t1: u64, before: &Key, resumed_after: Option<u64>) -> Vec<u8> {
        let [log, statement, checkpoint] = self.key.vkeys(&self.origin);
        let old = before.log_vkey(&self.origin);
        let message = vouched(&self.origin, old.key.bytes(), log.key.bytes(), statement.key.bytes(), checkpoint.key.bytes());
        let mut to = Writer::with_room(1_800);
        to.map(9 + usize::from(self.has_build()));
        self.begin(&mut to, Kind::KeyRotation, seq, t1, t1);
        self.end(&mut to);
        to.uint(17).bytes(statement.key.bytes());
        to.uint(19).map(3 + usize::from(resumed_after.is_some())).uint(1).bytes(log.key.bytes());
        to.uint(2).bytes(&self.key.sign_endorsement(&message)).uint(3).bytes(old.key.bytes());
        if let Some(last) = resumed_after {
            to.uint(4).uint(last);
        }
        to.uint(21).bytes(checkpoint.key.bytes());
        self.seal_by(fresh_id(t1), t1, &to.done(), &old.kid(), |message| before.sign_endorsement(message))
    }
}

/// Which of `candidates` signed this checkpoint as the one who holds the log.
pub(super) fn signer_of(note: &Note, candidates: &[Vkeys]) -> Option<usize> {
    candidates.iter().position(|[log, _, checkpoint]| {
        let opened = note.open(&[log.clone(), checkpoint.clone()]);
        opened.is_ok_and(|opened| opened.signed_by(0) && opened.signed_by(1))
    })
}

/// Whose the log is that has these newest checkpoints and, from the size of the newest on, these entries: the place in `candidates`.
///
/// Without a checkpoint `entries` are all there are, and the first of them tells.
pub(super) fn holder(
    candidates: &[Vkeys],
    checkpoint: Option<&Note>,
    entries: impl IntoIterator<Item = impl AsRef<[u8]>>,
) -> Option<usize> {
    let mut entries = entries.into_iter();
    let at = match checkpoint {
        Some(note) => signer_of(note, candidates)?,
        None => {
            let first = entries.next().and_then(|entry| Statement::read(entry.as_ref()).ok())?;
            candidates.iter().position(|[log, ..]| first.kind == Kind::KeyRotation && first.signed_by(log))?
        }
    };
    let mut holds = candidates[at][0].clone();
    for entry in entries {
        let handed = Statement::read(entry.as_ref()).ok().and_then(|statement| statement.hands_over());
        if let Some((_, after)) = handed.filter(|(before, _)| *before == holds) {
            holds = after;
        }
    }
    candidates.iter().position(|[log, ..]| *log == holds)
}

#[cfg(test)]
#[path = "rotation/tests.rs"]
pub(in crate::prove) mod tests;
