//! Which bundles of a log were pruned, as it is at the moment: a log that goes on may prune while it is read.

use std::path::Path;

use super::super::files::Files;
use crate::tlog::tile::{Tile, WIDTH};

/// The bundles that are gone from the beginning of a log.
pub(super) struct Gone {
    files: Files,
    /// So many are known to be.
    bundles: u64,
}

impl Gone {
    /// Those of the log in `directory`.
    pub(super) fn of(directory: &Path) -> Self {
        Self { files: Files::of(directory), bundles: 0 }
    }

    /// Whether the bundle `number` was pruned: all before it are gone too, and entry 0 is kept beside the log.
    pub(super) fn has(&mut self, number: u64) -> bool {
        let there = |number| self.files.path(Tile { level: None, number, width: WIDTH as u16 }).exists();
        if number >= self.bundles && self.files.keeps_the_first() && !(self.bundles..=number).rev().any(there) {
            self.bundles = number + 1;
        }
        number < self.bundles
    }
}
