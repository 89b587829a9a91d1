//! Whether the shards of a log are a chain: each that has ended is as an entry of the next one says that it ended.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::files::Files;
use super::log::{Report, hex};
use super::statement::{Kind, Statement, map, text};

/// How a shard ended, as the reason in an entry of the next one says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ended {
    /// Its origin.
    pub origin: String,
    /// How many entries it has.
    pub entries: u64,
    /// The root over them, in hex.
    pub root: String,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ended with {} entries, root {}", self.origin, self.entries, self.root)
    }
}

impl Ended {
    /// Reads what [`Ended`] displays as; an origin has no spaces.
    #[must_use]
    pub fn read(reason: &str) -> Option<Self> {
        let (origin, rest) = reason.split_once(" ended with ")?;
        let (entries, root) = rest.split_once(" entries, root ")?;
        let ended = Self { origin: origin.to_owned(), entries: entries.parse().ok()?, root: root.to_owned() };
        (ended.to_string() == reason).then_some(ended)
    }
}

impl Statement {
    /// How a shard ended, in an entry that tells it.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        let change = (self.kind == Kind::PolicyChange).then(|| map(&self.fields, 18)).flatten()?;
        text(change, 1).filter(|outcome| *outcome == "ended")?;
        Ended::read(text(change, 2)?)
    }
}

/// Holds what the entries of shards say of one another against the shards, which lie in `folders`, the oldest first. Of those that say what
/// is not so it becomes a problem; what they say of shards that are not there is returned.
///
/// A shard that is written should have been verified before those that have ended: what it says of them was so by then.
pub fn hold_together(folders: &[PathBuf], reports: &mut [Report]) -> Vec<Ended> {
    let (mut wrong, mut absent) = (Vec::new(), Vec::new());
    let said: Vec<(usize, &Ended)> =
        reports.iter().enumerate().flat_map(|(at, report)| report.ended.iter().map(move |ended| (at, ended))).collect();
    for (place, (at, ended)) in said.iter().copied().enumerate() {
        let last = said[place + 1..].iter().all(|(_, later)| later.origin != ended.origin);
        match folders.iter().zip(&*reports).find(|(_, report)| report.origin.as_deref() == Some(&*ended.origin)) {
            Some((folder, report)) if has_ended(folder, report, ended, last) => {}
            Some((_, report)) => {
                let (entries, root) = (report.entries, report.root.as_deref().unwrap_or("none"));
                wrong.push((at, format!("an entry says that {ended}, and that shard has {entries} entries, root {root}")));
            }
            None if last => absent.push(ended.clone()),
            None => {}
        }
    }
    for (at, problem) in wrong {
        reports[at].problem(problem);
        reports[at].ok = false;
    }
    absent
}

/// Whether a shard is as the last word on it says that it ended; or, of words before that, was so on its way: a crash may leave a shard that
/// has ended in such a state that the next start opens it again, and ends it again.
fn has_ended(folder: &Path, report: &Report, ended: &Ended, last: bool) -> bool {
    let Ended { entries, root, .. } = ended;
    if last {
        return (report.entries, report.covered, report.root.as_ref()) == (*entries, *entries, Some(root));
    }
    *entries <= report.covered && Files::of(folder).root(*entries, report.covered).is_ok_and(|there| hex(&there) == *root)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::tlog::merkle;
    use crate::tlog::tile::Tile;

    fn report(label: &str, entries: u64, root: &str, ended: &[&str]) -> Report {
        let ended = ended.iter().map(|reason| Ended::read(reason).unwrap()).collect();
        Report { ok: true, origin: Some(label.into()), entries, covered: entries, root: Some(root.into()), ended, ..Report::default() }
    }

    #[test]
    fn an_ending_has_one_text() {
        let text = "gw.example/node1/2026h1 ended with 7 entries, root 00ff";
        assert_eq!(Ended::read(text).unwrap().to_string(), text);
        for bad in ["", "a ended with entries, root 00", "a ended with 07 entries, root 00", "a ended with +7 entries, root 00", "a 7 00"] {
            assert_eq!(Ended::read(bad), None, "{bad:?}");
        }
    }

    /// Nothing is read there.
    fn nowhere(count: usize) -> Vec<PathBuf> {
        vec![PathBuf::from("nowhere"); count]
    }

    #[test]
    fn a_shard_that_is_not_as_the_next_one_says_is_a_problem_of_that() {
        let next = || report("a/2", 3, "22", &["a/1 ended with 7 entries, root 11"]);
        let mut shards = [report("a/1", 7, "11", &[]), next()];
        assert_eq!((hold_together(&nowhere(2), &mut shards).len(), shards.iter().all(|report| report.ok)), (0, true));
        let mut behind = report("a/1", 7, "11", &[]);
        behind.covered = 6;
        for other in [report("a/1", 6, "11", &[]), report("a/1", 8, "11", &[]), report("a/1", 7, "12", &[]), behind] {
            let mut shards = [other, next()];
            assert!(hold_together(&nowhere(2), &mut shards).is_empty());
            assert_eq!((shards[0].ok, shards[1].ok, shards[1].problems.len()), (true, false, 1), "{shards:?}");
        }
        let mut shards = [next()];
        assert_eq!(hold_together(&nowhere(1), &mut shards), next().ended);
        assert!(shards[0].ok, "one that was taken away is no problem");
    }

    #[test]
    fn a_shard_that_ended_twice_had_the_first_root_on_its_way_to_the_second() {
        let folder = tempfile::tempdir().unwrap();
        let leaves = [merkle::leaf(b"one"), merkle::leaf(b"two")];
        let tile = Files::of(folder.path()).path(Tile::of(Some(0), 0, 2).unwrap());
        fs::create_dir_all(tile.parent().unwrap()).unwrap();
        fs::write(tile, leaves.as_flattened()).unwrap();
        let root = hex(&merkle::node(&leaves[0], &leaves[1]));
        let last = format!("a/1 ended with 2 entries, root {root}");
        for (before, holds) in [(hex(&leaves[0]), true), (hex(&leaves[1]), false), (root.clone(), false)] {
            let before = format!("a/1 ended with 1 entries, root {before}");
            for (said, holds) in [([&*before, &last], holds), ([&last, &before], false)] {
                let mut shards = [report("a/1", 2, &root, &[]), report("a/2", 9, "22", &said)];
                hold_together(&[folder.path().to_owned(), "nowhere".into()], &mut shards);
                assert_eq!(shards[1].ok, holds, "{said:?}");
            }
        }
        let before = format!("a/1 ended with 3 entries, root {root}");
        let mut shards = [report("a/1", 2, &root, &[]), report("a/2", 9, "22", &[&before, &last])];
        hold_together(&[folder.path().to_owned(), "nowhere".into()], &mut shards);
        assert!(!shards[1].ok, "it was never longer than it is");
    }
}
