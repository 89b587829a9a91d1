//! A statement that was asked for, with what shows that the log has it, in every form.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value as Json, json};

use super::ids;
use super::publisher::Published;
use super::receipt::State;
use crate::tlog::merkle::{self, Hash};
use crate::tlog::{Checkpoint, Note};
use crate::verify::files::{Files, TreeError};
use crate::verify::folder::{CHECKPOINT, CHECKPOINT_COSE, IDS};
use crate::verify::log::Select;
use crate::verify::proof::{self, SignedRoot};
use crate::verify::statement::Statement;

/// How often a proof is begun again since the log grew meanwhile.
const PATIENCE: usize = 4;

/// The statement, and how far it has come.
#[derive(Debug)]
pub struct Found {
    pub(super) entry: Bytes,
    pub(super) statement: Statement,
    pub(super) state: State,
    pub(super) included: Option<Included>,
}

/// Where an entry stands in the tree of a checkpoint.
#[derive(Debug)]
pub(super) struct Included {
    pub(super) index: u64,
    pub(super) path: Vec<Hash>,
    pub(super) published: Arc<Published>,
}

impl Found {
    /// The COSE_Sign1, the very bytes of the log's entry (`application/cose; cose-type="cose-sign1"`).
    #[must_use]
    pub fn statement(&self) -> &Bytes {
        &self.entry
    }

    /// The COSE receipt (RFC 9942) of the newest checkpoint; none before one covers the entry.
    #[must_use]
    pub fn receipt(&self) -> Option<Vec<u8>> {
        let Included { index, path, published } = self.included.as_ref()?;
        Some(published.signed_root.as_ref()?.receipt(*index, published.size, path))
    }

    /// The transparent statement (RFC 9943): the statement with its receipt.
    #[must_use]
    pub fn transparent(&self) -> Option<Vec<u8>> {
        proof::transparent(&self.entry, &self.receipt()?)
    }

    /// The C2SP tlog-proof.
    #[must_use]
    pub fn tlog_proof(&self) -> Option<String> {
        let Included { index, path, published } = self.included.as_ref()?;
        Some(proof::tlog_proof(*index, path, &published.note))
    }

    /// The receipt for people: where it stands, the statement, what that says, and what shows that the log has it.
    #[must_use]
    pub fn json(&self) -> Json {
        let mut view = json!({
            "id": self.statement.id.hyphenated().to_string(),
            "log": self.statement.issuer,
            "state": self.state.as_str(),
            "statement": STANDARD.encode(&self.entry),
            "view": self.statement.view(),
        });
        if let Some(Included { index, path, published }) = &self.included {
            view["inclusion"] = json!({
                "index": index,
                "size": published.size,
                "path": path.iter().map(|hash| STANDARD.encode(hash)).collect::<Vec<_>>(),
                "root": STANDARD.encode(published.root),
                "checkpoint": published.note,
            });
        }
        view
    }
}

/// Why a log gives no proof of an entry.
#[derive(Debug)]
pub enum NoProof {
    /// A file cannot be read.
    Io(PathBuf, io::Error),
    /// A tile is missing.
    Tree(TreeError),
    /// The file holds no checkpoint, or not the root of the other one: a crash between the two leaves that, and the next start mends it.
    Checkpoint(PathBuf),
    /// No checkpoint covers such an entry.
    NoSuchEntry,
    /// If there was such an entry, it was pruned: the first that is there has this index.
    Pruned(u64),
}

impl fmt::Display for NoProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Tree(error) => error.fmt(f),
            Self::Checkpoint(path) => write!(f, "{}: no checkpoint, or one of another root than the others", path.display()),
            Self::NoSuchEntry => f.write_str("no checkpoint covers such an entry"),
            Self::Pruned(first) => write!(f, "pruned: entries before {first} are gone, and such an entry would be among them"),
        }
    }
}

impl std::error::Error for NoProof {}

impl Found {
    /// The entry of a log folder, with its proof under the newest checkpoint there. Reads the checkpoint, the file of ids or a few bundles
    /// to find it, and one tile of each level; checks no signature.
    ///
    /// # Errors
    /// When there is no such entry, or what it takes to prove it is not there.
    pub fn in_folder(directory: &Path, select: Select) -> Result<Self, NoProof> {
        let mut outcome = Err(NoProof::NoSuchEntry);
        for _ in 0..PATIENCE {
            outcome = Self::once(directory, select);
            // A gateway that goes on removes partial tiles and replaces both files of a checkpoint, one after the other.
            if !matches!(outcome, Err(NoProof::Tree(_) | NoProof::Checkpoint(_))) {
                break;
            }
        }
        outcome
    }

    fn once(directory: &Path, select: Select) -> Result<Self, NoProof> {
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read(&path).map_err(|error| NoProof::Io(path, error))
        };
        let (note, cose) = (read(CHECKPOINT)?, read(CHECKPOINT_COSE)?);
        let no_checkpoint = || NoProof::Checkpoint(directory.join(CHECKPOINT));
        let note = Note::parse(&note).map_err(|_| no_checkpoint())?;
        let Checkpoint { size, root, .. } = Checkpoint::parse(note.text()).map_err(|_| no_checkpoint())?;
        let signed_root = SignedRoot::read(&cose).filter(|signed| *signed.root() == root).ok_or_else(no_checkpoint)?;
        let files = Files::of(directory);
        let index = match select {
            Select::Index(index) => Some(index),
            Select::Id(id) => {
                let path = directory.join(IDS);
                ids::search(&path, id).map_err(|error| NoProof::Io(path, error))?
            }
            Select::Seq(seq) => of_number(&files, size, seq)?,
            Select::All => None,
        };
        let Some(index) = index.filter(|index| *index < size) else {
            return Err(pruned(&files, size, select).map_or(NoProof::NoSuchEntry, NoProof::Pruned));
        };
        if let Some(first) = Some(files.first_index(size)).filter(|first| index < *first) {
            return Err(NoProof::Pruned(first));
        }
        let entry = files.entry(index, size).map_err(NoProof::Tree)?;
        let statement = Statement::read(&entry).map_err(|_| NoProof::NoSuchEntry)?;
        let path = merkle::inclusion(index, size, &mut files.subtrees(size, size)).map_err(NoProof::Tree)?;
        let published = Arc::new(Published { size, below: 0, root, note: note.to_string(), signed_root: Some(signed_root) });
        Ok(Self { entry: entry.into(), statement, state: State::Included, included: Some(Included { index, path, published }) })
    }
}

/// The index of the first entry that is there, where one that was not found may have stood before it.
fn pruned(files: &Files, size: u64, select: Select) -> Option<u64> {
    let first = Some(files.first_index(size)).filter(|first| *first > 0)?;
    let there = files.entry(first, size).ok().and_then(|entry| Statement::read(&entry).ok())?;
    let before = match select {
        Select::Seq(seq) => seq < there.seq,
        // A UUIDv7 says when its request arrived, in milliseconds, which is before its entry was signed.
        Select::Id(id) => {
            let latest = (there.id.as_u128() >> 80).max(u128::from(there.signed_at / 1_000_000));
            id.get_version_num() == 7 && id.as_u128() >> 80 <= latest
        }
        Select::Index(index) => index < first,
        Select::All => false,
    };
    before.then_some(first)
}

/// The index of the entry with this number: numbers ascend with indices, and may leave some out.
fn of_number(files: &Files, size: u64, seq: u64) -> Result<Option<u64>, NoProof> {
    let (mut from, mut to) = (0, size.min(seq.saturating_add(1)));
    while from < to {
        let middle = from + (to - from) / 2;
        let entry = match files.entry(middle, size) {
            // It was pruned, and so was all before it.
            Err(TreeError::Missing(_)) => {
                from = middle + 1;
                continue;
            }
            entry => entry.map_err(NoProof::Tree)?,
        };
        let there = Statement::read(&entry).map_err(|_| NoProof::NoSuchEntry)?.seq;
        match there.cmp(&seq) {
            std::cmp::Ordering::Equal => return Ok(Some(middle)),
            std::cmp::Ordering::Less => from = middle + 1,
            std::cmp::Ordering::Greater => to = middle,
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prove::config::Terms;
    use crate::prove::ledger::tests::{answer, house};
    use crate::verify::proof::verify_receipt;

    #[tokio::test]
    async fn every_entry_of_a_folder_is_proved_by_id_by_number_and_by_index() {
        let house = house();
        for _ in 0..300 {
            answer(&house.ledger, &Terms::default()).await.unwrap();
        }
        house.ledger.close();
        let (log, keys) = (house.log(), house.ledger.vkeys());
        let mut size = 0;
        for (index, entry) in crate::verify::entries::Entries::of(&log).unwrap().map(Result::unwrap) {
            let by_index = Found::in_folder(&log, Select::Index(index)).unwrap();
            assert_eq!(by_index.statement(), &entry);
            let receipt = by_index.receipt().unwrap();
            let proved = verify_receipt(&receipt, &entry, &keys[0]).unwrap();
            assert_eq!(proved.0, index);
            assert!(verify_receipt(&receipt, &entry[1..], &keys[0]).is_err());
            assert!(verify_receipt(&receipt, &entry, &keys[1]).is_err());
            for select in [Select::Id(by_index.statement.id), Select::Seq(by_index.statement.seq)] {
                assert_eq!(Found::in_folder(&log, select).unwrap().receipt().unwrap(), receipt);
            }
            size = proved.1;
        }
        assert!(size > 300);
        for nothing in [Select::Index(size), Select::Seq(u64::MAX), Select::Id(uuid::Uuid::now_v7()), Select::Id(uuid::Uuid::nil())] {
            assert!(matches!(Found::in_folder(&log, nothing), Err(NoProof::NoSuchEntry)), "{nothing:?}");
        }
        fs::write(log.join(CHECKPOINT_COSE), b"another").unwrap();
        assert!(matches!(Found::in_folder(&log, Select::Index(0)), Err(NoProof::Checkpoint(_))));
    }

    #[tokio::test]
    async fn a_flipped_bit_in_a_receipt_proves_nothing() {
        let house = house();
        answer(&house.ledger, &Terms::default()).await.unwrap();
        house.ledger.close();
        let found = Found::in_folder(&house.log(), Select::Index(1)).unwrap();
        let receipt = found.receipt().unwrap();
        for at in 0..receipt.len() * 8 {
            let mut bad = receipt.clone();
            bad[at / 8] ^= 1 << (at % 8);
            let outcome = verify_receipt(&bad, found.statement(), &house.ledger.vkeys()[0]);
            assert!(outcome.is_err(), "bit {at}: {outcome:?}");
        }
    }
}
