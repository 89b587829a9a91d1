//! A log's tiles and bundles as they are read, and the entries that were kept when theirs were pruned.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::tlog::merkle::{self, Hash};
use crate::tlog::tile::{self, Tile, Tiles, WIDTH};

/// What stands before the index in the name of a kept entry.
pub(crate) const KEPT: &str = "entry.";

/// The index in the name of a file of a kept entry, `entry.0` and so on.
pub(crate) fn kept_index(name: &str) -> Option<u64> {
    let index = name.strip_prefix(KEPT)?;
    index.parse().ok().filter(|number: &u64| number.to_string() == index)
}

/// Why a tree does not open.
#[derive(Debug)]
pub enum TreeError {
    /// A file cannot be read or written.
    Io(PathBuf, io::Error),
    /// A tile or bundle that the log needs is not there, or is not whole.
    Missing(PathBuf),
    /// The write-ahead file and a bundle say different things of one entry.
    Differs(PathBuf),
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Missing(path) => write!(f, "{}: the log needs this tile, and it is missing or cut short; restore it", path.display()),
            Self::Differs(path) => write!(f, "{}: this bundle and the write-ahead file differ; restore them together", path.display()),
        }
    }
}

impl std::error::Error for TreeError {}

/// Where a log's tiles lie.
#[derive(Clone, Debug)]
pub(crate) struct Files(Arc<Path>);

impl Files {
    /// The tiles of the log in `directory`.
    pub(crate) fn of(directory: &Path) -> Self {
        Self(directory.into())
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.0
    }

    pub(crate) fn path(&self, tile: Tile) -> PathBuf {
        self.0.join(tile.to_string())
    }

    /// The bytes of a tile or bundle.
    pub(crate) fn read(&self, tile: Tile) -> Result<Vec<u8>, TreeError> {
        let path = self.path(tile);
        match fs::read(&path) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(TreeError::Missing(path)),
            Err(error) => Err(TreeError::Io(path, error)),
        }
    }

    /// The first `tile.width` hashes of a tile, or entries of a bundle, in a log of `size` leaves: the file may have grown since.
    pub(crate) fn read_grown(&self, tile: Tile, size: u64) -> Result<Vec<u8>, TreeError> {
        let missing = || TreeError::Missing(self.path(tile));
        let now = Tile::of(tile.level, tile.number, size).filter(|now| now.width >= tile.width).ok_or_else(missing)?;
        let mut bytes = self.read(now)?;
        let length = match tile.level {
            Some(_) => usize::from(tile.width) * 32,
            None => {
                let entries = tile::entries(&bytes).ok_or_else(missing)?;
                let kept = entries.get(..usize::from(tile.width)).ok_or_else(missing)?;
                kept.iter().map(|entry| 2 + entry.len()).sum()
            }
        };
        if bytes.len() < length {
            return Err(missing());
        }
        bytes.truncate(length);
        Ok(bytes)
    }

    /// The hashes of a tile of the tree of `size` leaves.
    pub(crate) fn hashes(&self, tile: Tile, size: u64) -> Result<Vec<Hash>, TreeError> {
        tile::hashes(&self.read_grown(tile, size)?).ok_or_else(|| TreeError::Missing(self.path(tile)))
    }

    /// The subtrees of the tree of the first `size` leaves, in a log that has `now` of them.
    pub(crate) fn subtrees(&self, size: u64, now: u64) -> Tiles<impl FnMut(Tile) -> Result<Vec<Hash>, TreeError>> {
        let files = self.clone();
        Tiles::new(size, move |tile| files.hashes(tile, now))
    }

    /// The root of the tree of the first `size` leaves, in a log that has `now` of them.
    pub(crate) fn root(&self, size: u64, now: u64) -> Result<Hash, TreeError> {
        merkle::root(size, &mut self.subtrees(size, now))
    }

    /// The entry `index` of a log of `size` leaves.
    pub(crate) fn entry(&self, index: u64, size: u64) -> Result<Vec<u8>, TreeError> {
        let bundle = Tile::of(None, index / WIDTH, size).filter(|_| index < size);
        let Some(bundle) = bundle else { return Err(TreeError::Missing(self.0.join(format!("entry {index}")))) };
        let bytes = self.read(bundle)?;
        let entries = tile::entries(&bytes).ok_or_else(|| TreeError::Missing(self.path(bundle)))?;
        entries.get((index % WIDTH) as usize).map(|entry| entry.to_vec()).ok_or_else(|| TreeError::Missing(self.path(bundle)))
    }

    /// The index of the first entry that is there, in a log of `size` of them: the bundles before it were pruned.
    pub(crate) fn first_index(&self, size: u64) -> u64 {
        let there = |number| self.path(Tile { level: None, number, width: WIDTH as u16 }).exists();
        let (mut from, mut to) = (0, size / WIDTH);
        if to == 0 || there(0) {
            return 0;
        }
        while from < to {
            let middle = from + (to - from) / 2;
            if there(middle) { to = middle } else { from = middle + 1 }
        }
        from * WIDTH
    }

    /// The entries that were kept when their bundles were pruned, by their index.
    pub(crate) fn kept(&self) -> io::Result<BTreeMap<u64, Vec<u8>>> {
        let mut kept = BTreeMap::new();
        for file in fs::read_dir(self.directory())? {
            let file = file?;
            if let Some(index) = file.file_name().to_str().and_then(kept_index) {
                kept.insert(index, fs::read(file.path())?);
            }
        }
        Ok(kept)
    }
}
