//! Entries about keys that were destroyed: how many, and of what; never whose.

use std::fmt;
use std::io;

use serde_json::{Value as Json, json};
use uuid::Uuid;

use super::log::Poisoned;
use super::salts::{self, Destroyed, Name, Salts, Whose};
use super::statement::Signer;
use crate::verify::cbor::Writer;
use crate::verify::statement::Kind;

/// What is to be destroyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Erasure {
    /// The key of one caller's salts: nobody can open a commitment to what it sent or got any more.
    Subject {
        /// Its tenant; `""` if it has none.
        tenant: String,
        /// `api_key:ID`, `jwt:ISSUER#SUB` or `cert:SAN`.
        caller: String,
    },
    /// The key of a month's pseudonyms (YYYYMM): nobody can tell any more who they were, nor that two of them were one.
    Epoch(u32),
    /// The key of the salts of a month's refusals without a caller (YYYYMM).
    Strangers(u32),
}

impl Erasure {
    /// The month that it is about.
    #[must_use]
    pub const fn month(&self) -> Option<u32> {
        match self {
            Self::Subject { .. } => None,
            Self::Epoch(month) | Self::Strangers(month) => Some(*month),
        }
    }

    /// The name of its key among these.
    pub(super) fn name(&self, salts: &Salts) -> Name {
        match self {
            Self::Subject { tenant, caller } => salts.subject(tenant, caller),
            Self::Epoch(month) => salts.month(Whose::Epoch, *month),
            Self::Strangers(month) => salts.month(Whose::Strangers, *month),
        }
    }
}

/// What was destroyed, and the entry that tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Erased {
    /// How many keys.
    pub keys: u64,
    /// Of what.
    pub whose: Whose,
    /// Of which month (YYYYMM); none of a subject.
    pub month: Option<u32>,
    /// The entry's id.
    pub id: Uuid,
    /// The entry's number.
    pub seq: u64,
    /// The shards whose folders are gone: nothing was erased there.
    pub passed_over: Vec<String>,
}

impl Erased {
    /// `{"erased": true, "keys", "of", "from", "to", "id", "seq", "passed_over"}`; `from` and `to` (YYYYMM) are null for a subject.
    #[must_use]
    pub fn json(&self) -> Json {
        let Self { keys, whose, month, id, seq, passed_over } = self;
        let id = id.hyphenated().to_string();
        json!({
            "erased": true, "keys": keys, "of": whose.as_str(), "from": month, "to": month, "id": id, "seq": seq, "passed_over": passed_over,
        })
    }
}

/// Why nothing was destroyed, or not all was done that belongs to it.
#[derive(Debug)]
pub enum EraseError {
    /// There is no such key: the caller never had one or it is gone, or nothing was called or salted with one in that month.
    OperatorNamedUnknown,
    /// There is no such key in the shards that are there, and the folders of these are gone.
    OperatorTookAway(Vec<String>),
    /// The month is not over, and what comes yet would be made with a new key as if with the old one.
    OperatorNamedThisMonth(u32),
    /// The log takes no entries; nothing was destroyed.
    Unavailable,
    /// The disk failed, and nothing was destroyed.
    Disk(io::Error),
    /// The disk failed when the key was destroyed already: the log stops, and the next start brings it to its end.
    Unfinished(io::Error),
    /// The key is destroyed and the log could not take the entry: the next start appends it.
    Untold,
}

impl fmt::Display for EraseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OperatorNamedUnknown => f.write_str("there is no such key: it never was, or it was erased before"),
            Self::OperatorTookAway(gone) => {
                let gone = gone.join(", ");
                write!(f, "there is no such key in the shards that are there; gone, and passed over: {gone}")
            }
            Self::OperatorNamedThisMonth(month) => write!(f, "{month} is not over: its keys can be erased from the next month on"),
            Self::Unavailable => f.write_str("the log takes no entries; nothing was erased"),
            Self::Disk(error) => write!(f, "nothing was erased: {error}"),
            Self::Unfinished(error) => write!(f, "the key is gone, but not all was done ({error}); start the gateway anew to finish it"),
            Self::Untold => f.write_str("the key is gone, but the log did not take the entry; the next start appends it"),
        }
    }
}

impl std::error::Error for EraseError {}

impl From<salts::Error<Poisoned>> for EraseError {
    fn from(error: salts::Error<Poisoned>) -> Self {
        match error {
            salts::Error::Unknown => Self::OperatorNamedUnknown,
            salts::Error::Before(error) => Self::Disk(error),
            salts::Error::After(error) => Self::Unfinished(error),
            salts::Error::Untold(Poisoned) => Self::Untold,
        }
    }
}

impl Signer {
    /// A statement about `keys` destroyed keys.
    pub(super) fn erasure(&self, seq: u64, id: Uuid, t1: u64, keys: u64, of: Destroyed) -> Vec<u8> {
        let mut to = Writer::with_room(128);
        to.map(7 + usize::from(self.has_build()));
        self.begin(&mut to, Kind::Erasure, seq, t1, t1);
        self.end(&mut to);
        to.uint(20).map(2 + 2 * usize::from(of.month.is_some())).uint(1).uint(keys).uint(2).text(of.whose.as_str());
        if let Some(month) = of.month {
            to.uint(3).uint(month.into()).uint(4).uint(month.into());
        }
        self.seal(id, t1, &to.done(), false)
    }
}

#[cfg(test)]
#[path = "erasure/tests.rs"]
mod tests;
