//! An entry of a log's folder with what shows that the log has it, for who holds the folder alone. No signature is checked.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::files::{Files, TreeError, read_whole};
use super::folder::{CHECKPOINT, CHECKPOINT_COSE, IDS};
use super::ids;
use super::proof::{self, Inclusion, SignedRoot};
use super::show::Select;
use super::statement::Statement;
use crate::tlog::merkle::{self, Hash};
use crate::tlog::note::MAX_NOTE;
use crate::tlog::{Checkpoint, Note};

/// An entry, and its proof under the newest checkpoint.
#[derive(Debug)]
pub struct Proved {
    entry: Vec<u8>,
    statement: Statement,
    index: u64,
    size: u64,
    path: Vec<Hash>,
    root: Hash,
    checkpoint: String,
    signed_root: SignedRoot,
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

impl NoProof {
    /// Whether it may be for the moment alone: a gateway that goes on removes partial tiles, and replaces both files of a checkpoint, one after
    /// the other.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Tree(_) | Self::Checkpoint(_))
    }
}

impl Proved {
    /// The entry of a log folder, with its proof under the newest checkpoint there. Reads the checkpoint, the file of ids or a few bundles
    /// to find it, and one tile of each level; checks no signature.
    ///
    /// # Errors
    /// When there is no such entry, or what it takes to prove it is not there: see [`NoProof::may_pass`].
    pub fn in_folder(directory: &Path, select: Select) -> Result<Self, NoProof> {
        let read = |name: &str| {
            let path = directory.join(name);
            read_whole(&path, MAX_NOTE as u64).map_err(|error| NoProof::Io(path, error))
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
        Ok(Self { entry, statement, index, size, path, root, checkpoint: note.to_string(), signed_root })
    }

    /// The COSE_Sign1, the very bytes of the log's entry.
    #[must_use]
    pub fn entry(&self) -> &[u8] {
        &self.entry
    }

    /// What it says.
    #[must_use]
    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    /// The COSE receipt (RFC 9942).
    #[must_use]
    pub fn receipt(&self) -> Vec<u8> {
        self.signed_root.receipt(self.index, self.size, &self.path)
    }

    /// The transparent statement (RFC 9943): the statement with its receipt.
    #[must_use]
    pub fn transparent(&self) -> Option<Vec<u8>> {
        proof::transparent(&self.entry, &self.receipt())
    }

    /// The C2SP tlog-proof.
    #[must_use]
    pub fn tlog_proof(&self) -> String {
        proof::tlog_proof(self.index, &self.path, &self.checkpoint)
    }

    /// The receipt for people, as a gateway answers it.
    #[must_use]
    pub fn json(&self) -> Json {
        let Self { index, size, path, root, checkpoint, .. } = self;
        let inclusion = Inclusion { index: *index, size: *size, path, root, checkpoint };
        proof::json(&self.entry, &self.statement, "included", Some(&inclusion))
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
    let (mut from, mut to) = (files.first_index(size), size.min(seq.saturating_add(1)));
    while from < to {
        let middle = from + (to - from) / 2;
        let entry = files.entry(middle, size).map_err(NoProof::Tree)?;
        let there = Statement::read(&entry).map_err(|_| NoProof::NoSuchEntry)?.seq;
        match there.cmp(&seq) {
            std::cmp::Ordering::Equal => return Ok(Some(middle)),
            std::cmp::Ordering::Less => from = middle + 1,
            std::cmp::Ordering::Greater => to = middle,
        }
    }
    Ok(None)
}
