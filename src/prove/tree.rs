//! The log's tree on the disk: tiles and bundles as C2SP tlog-tiles lays them.
//!
//! Its files are made from the write-ahead file and can be made again from it, so none is synced when it is written: a checkpoint
//! covers only entries that the write-ahead file holds synced. A segment of that is removed once the full tiles that hold its entries
//! are settled on the disk. When the log is opened, everything that the write-ahead file still speaks of is derived again.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::ids::Ids;
use super::log::is_full;
use crate::tlog::merkle::Hash;
use crate::tlog::tile::{self, Edge, Tile, WIDTH};
use crate::verify::files::{Files, TreeError};
use crate::verify::folder::{IDS, NEW};

/// An open tree. One thread writes it; anybody may read its files.
pub(super) struct Tree {
    files: Files,
    edge: Edge,
    /// The partial bundle at the right edge.
    bundle: Vec<u8>,
    ids: Arc<Ids>,
    unsettled: Unsettled,
    /// What was written since the last sweep: what it supersedes is still there.
    unswept: Vec<Tile>,
    /// What a full disk had no room for when the tree was opened: the entries, and the edge before them.
    owed: Option<(Edge, Vec<Arc<[u8]>>)>,
}

/// Full tiles that were written and may not have reached the disk.
#[derive(Default)]
pub(super) struct Unsettled(Vec<Tile>);

/// A tree as it is to be, of which nothing is written yet.
pub(super) struct Derived {
    files: Files,
    /// As it is before `entries`; whole bundles stand before them.
    before: Edge,
    entries: Vec<Arc<[u8]>>,
}

impl Derived {
    /// The tree of a log whose write-ahead file holds `entries`, the first of which has the index `first`.
    ///
    /// # Errors
    /// When a tile from before `first` is missing.
    pub(super) fn read(directory: &Path, first: u64, entries: &[Arc<[u8]>]) -> Result<Self, TreeError> {
        let files = Files::of(directory);
        let start = first - first % WIDTH;
        let before = Edge::of(start, |tile| rebuild(&files, tile))?;
        // The write-ahead file may begin in the middle of a bundle, which then is full and on the disk.
        let number = start / WIDTH;
        let mut all: Vec<Arc<[u8]>> = Vec::new();
        if first > start {
            let before = Tile { level: None, number, width: WIDTH as u16 };
            let (path, bundle) = (files.path(before), files.read(before)?);
            let there =
                tile::entries(&bundle).filter(|there| there.len() as u64 == WIDTH).ok_or_else(|| TreeError::Missing(path.clone()))?;
            let split = (first - start) as usize;
            if there[split..].iter().zip(entries).any(|(one, other)| **one != **other) {
                return Err(TreeError::Differs(path));
            }
            all.extend(there[..split].iter().map(|entry| Arc::from(*entry)));
        }
        all.extend(entries.iter().cloned());
        Ok(Self { files, before, entries: all })
    }

    /// How many leaves it has.
    pub(super) fn size(&self) -> u64 {
        self.before.size() + self.entries.len() as u64
    }

    /// The root of its first `size` leaves, where its files are not needed for that.
    pub(super) fn root(&self, size: u64) -> Option<Hash> {
        let more = usize::try_from(size.checked_sub(self.before.size())?).ok()?;
        let mut edge = self.before.clone();
        self.entries.get(..more)?.iter().for_each(|entry| edge.push(entry, |_, _, _| {}));
        Some(edge.root())
    }

    /// Writes what is not in its files.
    ///
    /// # Errors
    /// When a file cannot be written. A full disk is none: see [`Tree::catch_up`].
    pub(super) fn write(self) -> Result<Tree, TreeError> {
        let Self { files, before: edge, entries } = self;
        let directory = files.directory().to_owned();
        let bundle = |number| files.read(Tile { level: None, number, width: WIDTH as u16 }).ok();
        let ids = Ids::open(&directory, edge.size(), bundle).map_err(|error| TreeError::Io(directory.join(IDS), error))?;
        let ids = Arc::new(ids);
        let mut tree = Tree { files, edge, bundle: Vec::new(), ids, unsettled: Unsettled::default(), unswept: Vec::new(), owed: None };
        match tree.add(&entries) {
            Err(error) if is_full(&error) => tree.owe(entries),
            added => added.map_err(|error| TreeError::Io(directory.join("tile"), error))?,
        }
        // Nothing is swept: the checkpoint that is in the folder may be older, and whoever reads it reads its partial tiles.
        Ok(tree)
    }
}

impl Tree {
    /// Reads and writes it at once; see [`Derived`].
    #[cfg(test)]
    pub(super) fn open(directory: &Path, first: u64, entries: &[Arc<[u8]>]) -> Result<Self, TreeError> {
        Derived::read(directory, first, entries)?.write()
    }

    /// Goes on with entries that are not in its files.
    fn owe(&mut self, entries: Vec<Arc<[u8]>>) {
        let before = self.edge.clone();
        for entry in &entries {
            tile::bundle(&mut self.bundle, entry);
            let bundle = &mut self.bundle;
            self.edge.push(entry, |level, _, _| {
                if level == 0 {
                    bundle.clear();
                }
            });
        }
        self.owed = Some((before, entries));
    }

    /// Whether its files lack something that a full disk had no room for.
    pub(super) fn owes(&self) -> bool {
        self.owed.is_some()
    }

    /// Writes what a full disk had no room for when it was opened. To be called before anything is added, and before its root is signed.
    ///
    /// # Errors
    /// When a file cannot be written, and as long as there is no room.
    pub(super) fn catch_up(&mut self) -> io::Result<()> {
        let Some((before, entries)) = self.owed.take() else { return Ok(()) };
        // Whole bundles stand before them.
        (self.edge, self.bundle) = (before, Vec::new());
        let added = self.add(&entries);
        if added.is_err() {
            self.owe(entries);
        }
        added
    }

    /// How many leaves it has.
    pub(super) fn size(&self) -> u64 {
        self.edge.size()
    }

    /// Its root.
    pub(super) fn root(&self) -> Hash {
        self.edge.root()
    }

    pub(super) fn files(&self) -> &Files {
        &self.files
    }

    pub(super) fn ids(&self) -> &Arc<Ids> {
        &self.ids
    }

    /// Adds entries and writes what changes: all of it, or the tree is as it was and may be asked again.
    ///
    /// # Errors
    /// When a file cannot be written, for instance since the disk is full.
    pub(super) fn add(&mut self, entries: &[Arc<[u8]>]) -> io::Result<()> {
        let (old, mut edge) = (self.edge.size(), self.edge.clone());
        let mut bundle = self.bundle.clone();
        let mut written = Vec::new();
        let mut outcome = Ok(());
        for entry in entries {
            tile::bundle(&mut bundle, entry);
            edge.push(entry, |level, number, hashes| {
                if level == 0 {
                    let full = Tile { level: None, number, width: WIDTH as u16 };
                    outcome = std::mem::replace(&mut outcome, Ok(())).and_then(|()| write(&self.files, full, &bundle));
                    written.push(full);
                    bundle.clear();
                }
                let full = Tile { level: Some(level), number, width: WIDTH as u16 };
                outcome = std::mem::replace(&mut outcome, Ok(())).and_then(|()| write(&self.files, full, hashes.as_flattened()));
                written.push(full);
            });
        }
        outcome?;
        for partial in Tile::added(old, edge.size()).filter(|tile| !tile.is_full()) {
            let bytes = partial.level.map_or(&bundle[..], |level| edge.partial(level).as_flattened());
            write(&self.files, partial, bytes)?;
            written.push(partial);
        }
        self.ids.add(old, entries).map_err(|error| at(&self.files.directory().join(IDS), &error))?;
        self.unsettled.0.extend(written.iter().filter(|tile| tile.is_full()));
        self.unswept.extend(written);
        (self.edge, self.bundle) = (edge, bundle);
        Ok(())
    }

    /// Removes the partial tiles that others have superseded.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub(super) fn sweep(&mut self) -> io::Result<()> {
        for tile in self.unswept.drain(..) {
            let full = Tile { width: WIDTH as u16, ..tile };
            let partials = self.files.directory().join(format!("{full}.p"));
            if tile.is_full() {
                match fs::remove_dir_all(&partials) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => continue,
                }
            }
            // In order of width, so that of several written since the last sweep the last is kept.
            for file in fs::read_dir(&partials)? {
                let file = file?;
                if file.file_name().to_str().and_then(|name| name.parse::<u16>().ok()).is_none_or(|width| width < tile.width) {
                    fs::remove_file(file.path())?;
                }
            }
        }
        Ok(())
    }

    /// The full tiles that were written since the last time this was asked.
    pub(super) fn unsettled(&mut self) -> Unsettled {
        std::mem::take(&mut self.unsettled)
    }
}

impl Unsettled {
    /// Adds those of `other`.
    pub(super) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Every leaf below is in full tiles: in these, or in such as were settled before.
    pub(super) fn leaves(&self) -> u64 {
        self.0.iter().map(|tile| tile.leaves().end).max().unwrap_or(0)
    }

    /// Syncs the files and the folders they lie in.
    ///
    /// # Errors
    /// When a sync fails: what the disk holds is not known then.
    pub(super) fn settle(&self, files: &Files) -> io::Result<()> {
        let mut folders = std::collections::BTreeSet::new();
        for tile in &self.0 {
            let path = files.path(*tile);
            File::open(&path)?.sync_all()?;
            // A folder is new in the one above it.
            let above = path.ancestors().skip(1).take_while(|folder| folder.starts_with(files.directory()));
            folders.extend(above.map(Path::to_owned));
        }
        File::open(files.directory().join(IDS))?.sync_all()?;
        folders.iter().rev().try_for_each(|folder| File::open(folder)?.sync_all())
    }
}

/// The hashes of a partial tile, from the full tiles below it.
fn rebuild(files: &Files, tile: Tile) -> Result<Vec<Hash>, TreeError> {
    let below = tile.level.and_then(|level| level.checked_sub(1));
    (0..u64::from(tile.width))
        .map(|at| {
            let child = Tile { level: below, number: tile.number * WIDTH + at, width: WIDTH as u16 };
            let bytes = files.read(child)?;
            let hashes = tile::hashes(&bytes).filter(|hashes| hashes.len() as u64 == WIDTH);
            hashes.map(|hashes| tile::join(&hashes)).ok_or_else(|| TreeError::Missing(files.path(child)))
        })
        .collect()
}

/// Writes a file as a whole or not at all. One that reads as it should is written too: after a failed sync it may read so and not be
/// on the disk, and only what is written again is synced again.
fn write(files: &Files, tile: Tile, bytes: &[u8]) -> io::Result<()> {
    let path = files.path(tile);
    let new = files.directory().join(NEW);
    let written = fs::write(&new, bytes).and_then(|()| match fs::rename(&new, &path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path.parent().unwrap_or(files.directory()))?;
            fs::rename(&new, &path)
        }
        outcome => outcome,
    });
    written.map_err(|error| {
        let _ = fs::remove_file(&new);
        at(&path, &error)
    })
}

/// The same failure, with the file that it is about.
pub(super) fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
#[path = "tree/tests.rs"]
mod tests;
