//! The checkpoints of a log, and the roots that its tree had at their sizes.

use std::io;
use std::path::Path;

use super::super::files::{of_file, read_whole};
use super::super::folder::{CHECKPOINT, CHECKPOINT_COSE, WITNESSED};
use super::super::proof::SignedRoot;
use super::Report;
use crate::tlog::merkle::Hash;
use crate::tlog::note::MAX_NOTE;
use crate::tlog::tile::Edge;
use crate::tlog::{Checkpoint, Note};

/// What the log says of its tree.
pub(super) struct Heads {
    pub(super) note: Option<(Note, Checkpoint)>,
    /// The newest checkpoint that witnesses have cosigned, and the root that the tree had at its size.
    pub(super) witnessed: Option<(Note, Checkpoint, Option<Hash>)>,
    pub(super) signed_root: Option<SignedRoot>,
    /// The root at the checkpoint's size, and the size, that or a later one, at which the tree had the root of `checkpoint.cose`.
    pub(super) found: (Option<Hash>, Option<u64>),
}

impl Heads {
    pub(super) fn read(directory: &Path, report: &mut Report) -> io::Result<Self> {
        let mut read = |name: &str| match read_whole(&directory.join(name), MAX_NOTE as u64) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                report.problem(format!("{name}: missing"));
                Ok(None)
            }
            Err(error) => Err(of_file(name)(error)),
        };
        let (note, cose) = (read(CHECKPOINT)?, read(CHECKPOINT_COSE)?);
        let parsed = note.as_ref().map(|bytes| {
            let note = Note::parse(bytes).map_err(|error| error.to_string())?;
            let checkpoint = Checkpoint::parse(note.text()).map_err(|error| error.to_string())?;
            Ok::<_, String>((note, checkpoint))
        });
        let note = match parsed {
            Some(Ok(note)) => Some(note),
            Some(Err(error)) => {
                report.problem(format!("{CHECKPOINT}: {error}"));
                None
            }
            None => None,
        };
        let signed_root = cose.as_ref().and_then(|bytes| SignedRoot::read(bytes));
        if cose.is_some() && signed_root.is_none() {
            report.problem(format!("{CHECKPOINT_COSE}: not a signed root in its one encoding"));
        }
        let witnessed = match read_whole(&directory.join(WITNESSED), MAX_NOTE as u64) {
            Ok(bytes) => {
                let parsed = Note::parse(&bytes).ok().and_then(|note| Some((Checkpoint::parse(note.text()).ok()?, note)));
                if parsed.is_none() {
                    report.problem(format!("{WITNESSED}: not a checkpoint"));
                }
                parsed.map(|(checkpoint, note)| (note, checkpoint, None))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(of_file(WITNESSED)(error)),
        };
        Ok(Self { note, witnessed, signed_root, found: (None, None) })
    }

    /// The tree has `size` leaves and this root.
    pub(super) fn see(&mut self, edge: &Edge) {
        let at = self.note.as_ref().map(|(_, checkpoint)| checkpoint.size);
        if at == Some(edge.size()) {
            self.found.0 = Some(edge.root());
        }
        if let Some((.., root)) = self.witnessed.as_mut().filter(|(_, checkpoint, _)| checkpoint.size == edge.size()) {
            *root = Some(edge.root());
        }
        // It is written just before the checkpoint, so that after a crash it may be one ahead.
        if let Some(signed) = &self.signed_root
            && at.is_some_and(|at| at <= edge.size())
            && signed.size() == Some(edge.size())
        {
            self.found.1 = (*signed.root() == edge.root()).then(|| edge.size());
        }
    }
}
