//! Whose word holds where: from the keys that are given along the entries that endorse others. It flows forward only, from the key before
//! to the key after.

use super::super::statement::{Kind, Statement};
use crate::tlog::vkey::{Kind as KeyKind, Vkey};

/// What is trusted, while a log is read from its first entry to its last.
pub(super) struct Trust {
    /// The keys that were given, and those that were endorsed.
    keys: Vec<Vkey>,
    /// The log keys in order, each with the index from which on it holds the log.
    holders: Vec<(u64, Vkey)>,
    /// Who signs statements from here on.
    statements: Option<Vkey>,
}

impl Trust {
    /// Trust in these keys.
    pub(super) fn new(keys: Vec<Vkey>) -> Self {
        Self { keys, holders: Vec::new(), statements: None }
    }

    /// The keys that were given, and those that were endorsed so far.
    pub(super) fn keys(&self) -> &[Vkey] {
        &self.keys
    }

    /// Whether this key holds the log when it has `size` entries. Where no entry 0 told who does, any log key that is given may.
    pub(super) fn holds(&self, key: &Vkey, size: u64) -> bool {
        let holder = self.holders.iter().rev().find(|(from, _)| *from < size);
        key.kind() == KeyKind::Log && holder.map_or(self.holders.is_empty(), |(_, holder)| holder == key)
    }

    /// Holds the entry `index` against it, and goes on from there.
    ///
    /// # Errors
    /// With what does not hold.
    pub(super) fn follow(&mut self, statement: &Statement, index: u64) -> Result<(), &'static str> {
        const NO_KEY: &str = "signed by no key that is given or endorsed";
        let endorses = statement.kind == Kind::KeyRotation && !statement.has_rotation();
        if endorses != (index == 0) {
            return Err("entry 0, and no other, is the endorsement of the first statement key");
        }
        if statement.kind != Kind::KeyRotation {
            return match &self.statements {
                Some(key) if statement.signed_by(key) => Ok(()),
                Some(_) if self.keys.iter().any(|key| key.kind() == KeyKind::Statement && statement.signed_by(key)) => {
                    Err("signed by a statement key of another time than its own")
                }
                None if self.keys.iter().any(|key| key.kind() == KeyKind::Statement && statement.signed_by(key)) => Ok(()),
                _ => Err(NO_KEY),
            };
        }
        if index == 0 {
            let signer = self.keys.iter().find(|key| key.kind() == KeyKind::Log && statement.signed_by(key)).cloned();
            let signer = signer.ok_or("signed by no key that is given: the log key with which the log was begun leads to all others")?;
            self.hand_to(signer, statement, 0);
            return Ok(());
        }
        let (before, after) =
            statement.hands_over().ok_or("hands the log over and is not signed by both the key before and the one after")?;
        let known = match self.holders.last() {
            Some((_, holder)) if *holder == before => true,
            Some(_) => return Err("hands the log over, and is signed by a key that does not hold it"),
            None => self.keys.contains(&before),
        };
        // Who knows the key after alone knows that it was there from here on, and nothing of what stood before.
        if known || self.keys.contains(&after) {
            self.hand_to(after, statement, index);
        }
        if known { Ok(()) } else { Err(NO_KEY) }
    }

    fn hand_to(&mut self, log: Vkey, statement: &Statement, index: u64) {
        let endorsed = statement.endorses().into_iter().map(|key| Vkey { name: log.name.clone(), key });
        let endorsed: Vec<Vkey> = std::iter::once(log.clone()).chain(endorsed).collect();
        self.statements = endorsed.iter().find(|key| key.kind() == KeyKind::Statement).cloned();
        for key in endorsed {
            if !self.keys.contains(&key) {
                self.keys.push(key);
            }
        }
        self.holders.push((index, log));
    }
}
