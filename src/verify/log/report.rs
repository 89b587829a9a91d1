//! What was found in a log.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::chain::Ended;

/// How many problems are told; more are counted.
const TOLD: usize = 100;

/// What was found in a log.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Whether everything holds.
    pub ok: bool,
    /// The log's origin, as its checkpoint names it.
    pub origin: Option<String>,
    /// How many entries there are.
    pub entries: u64,
    /// How many of them the checkpoint covers.
    pub covered: u64,
    /// The first entry that is there: those before it were pruned.
    pub first_index: u64,
    /// The root of the checkpoint's tree, in hex.
    pub root: Option<String>,
    /// Who signed the checkpoint: names and key ids.
    pub signed_by: Vec<String>,
    /// How many entries the newest checkpoint covers that witnesses have cosigned, and who did, as far as their keys are known.
    pub witnessed: Option<(u64, Vec<String>)>,
    /// How many of each kind.
    pub kinds: BTreeMap<&'static str, u64>,
    /// The last number.
    pub last_seq: Option<u64>,
    /// What its entries say of shards before it.
    pub ended: Vec<Ended>,
    /// Numbers that a restart left out and a signed entry accounts for, from and to.
    pub left_out: Vec<(u64, u64)>,
    /// No key was given, so the log's own were used: this shows that nothing is damaged, not whose log it is.
    pub integrity_only: bool,
    /// How many bytes at the end of the write-ahead file are no whole entry: what is left where a process died while it wrote, and what is
    /// found while one writes. The next start cuts it. It is a note where it is the beginning of the next entry, and else a problem.
    pub torn_bytes: u64,
    /// What is worth knowing and no problem.
    pub notes: Vec<String>,
    /// What does not hold: the first hundred.
    pub problems: Vec<String>,
    /// How many more problems there are.
    pub more_problems: u64,
}

impl Report {
    /// The report in one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let verdict = if self.ok { "holds" } else { "does not hold" };
        let scope = if self.integrity_only { "; integrity only: the keys are the log's own" } else { "" };
        let (entries, covered) = (self.entries, self.covered);
        let problems = self.problems.len() as u64 + self.more_problems;
        let first = if self.first_index > 0 { format!(" (those before {} were pruned)", self.first_index) } else { String::new() };
        format!("the log {verdict}: {entries} entries{first}, {covered} under the checkpoint, {problems} problems{scope}")
    }

    pub(crate) fn problem(&mut self, text: String) {
        if self.problems.len() < TOLD { self.problems.push(text) } else { self.more_problems += 1 }
    }
}
