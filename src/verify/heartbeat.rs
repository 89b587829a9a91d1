//! What a heartbeat tells: the counts of its process up to its own number.

use ciborium::Value;

use super::census::{Census, Traffic};
use super::statement::{Kind, Statement, map, unsigned};

/// Where in the life of its process a heartbeat stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Life {
    /// The process has opened the log, or goes on after a full disk took entries back. Its counts are all zero: what is counted follows it.
    Began = 1,
    /// It runs.
    Runs = 2,
    /// It closes the log. Answers that are cut then may still follow.
    Ended = 3,
}

/// What a process has done up to a heartbeat's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Where it stands.
    pub life: Life,
    /// What requests did.
    pub traffic: Traffic,
    /// The entries from the one that began the process up to this one, which is not counted. Read back, [`Census::began`] is 0: it is not told.
    pub census: Census,
}

/// What a heartbeat tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat<C> {
    /// Answers without an entry, since it was last told.
    pub gaps: u64,
    /// Refusals without a receipt, by code, since it was last told.
    pub suppressed: Vec<(C, u64)>,
    /// The last number before a restart that may have lost entries.
    pub resumed_after: Option<u64>,
    /// What was counted; not in a heartbeat that was written for gaps and refusals alone.
    pub counted: Option<Counted>,
}

impl Statement {
    /// What a heartbeat tells; `None` of other entries, and of counts that this version cannot read.
    #[must_use]
    pub fn heartbeat(&self) -> Option<Heartbeat<String>> {
        let counts = (self.kind == Kind::Heartbeat).then(|| map(&self.fields, 16)).flatten()?;
        let counted = match unsigned(counts, 4) {
            None => None,
            Some(life) => {
                let life = [Life::Began, Life::Runs, Life::Ended].into_iter().find(|known| *known as u64 == life)?;
                let traffic = Traffic { accepted: unsigned(counts, 5)?, forwarded: unsigned(counts, 6)?, abandoned: unsigned(counts, 7)? };
                let mut census = Census::from(0);
                census.bytes = unsigned(counts, 9)?;
                for (name, count) in named(map(counts, 8)?)? {
                    census.add(Kind::ALL.into_iter().find(|kind| kind.as_str() == name)?, count);
                }
                Some(Counted { life, traffic, census })
            }
        };
        Some(Heartbeat {
            gaps: unsigned(counts, 1)?,
            suppressed: map(counts, 2).map_or(Some(Vec::new()), named)?,
            resumed_after: unsigned(counts, 3),
            counted,
        })
    }

    /// The bytes of the answer that it tells were handed over; nothing where it is about no answer.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        map(&self.fields, 8).and_then(|answer| unsigned(answer, 6)).unwrap_or(0)
    }
}

fn named(counts: &[(Value, Value)]) -> Option<Vec<(String, u64)>> {
    let pair = |(name, count): &(Value, Value)| Some((name.as_text()?.to_owned(), u64::try_from(count.as_integer()?).ok()?));
    counts.iter().map(pair).collect()
}
