//! A log's tiles and bundles as they are read, and the entries that were kept when theirs were pruned.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::tlog::merkle::{self, Hash};
use crate::tlog::tile::{self, MAX_ENTRY, MAX_LEVEL, Tile, Tiles, WIDTH};

/// The longest bundle in bytes: 256 entries, each with its length before it.
pub(crate) const MAX_BUNDLE: u64 = WIDTH * (2 + MAX_ENTRY as u64);
/// The longest tile of hashes in bytes.
const MAX_TILE: u64 = WIDTH * 32;

/// What stands before the index in the name of a kept entry.
pub(crate) const KEPT: &str = "entry.";

/// The index in the name of a file of a kept entry, `entry.0` and so on.
pub(crate) fn kept_index(name: &str) -> Option<u64> {
    let index = name.strip_prefix(KEPT)?;
    index.parse().ok().filter(|number: &u64| number.to_string() == index)
}

/// Opens a file of a log that somebody else may have laid there: no link is followed, and nothing is opened but a file, as it was a
/// moment before.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_symlink() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a link, and a log has none"));
    }
    if kind.is_file() { File::open(path) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "not a file")) }
}

/// An error of the file `name` of a log.
pub(crate) fn of_file(name: impl fmt::Display) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{name}: {error}"))
}

/// The bytes of a file of a log, opened by [`open`]; an error where it has more than `most`.
pub(crate) fn read_whole(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("longer than {most} bytes, the most that a log has there")));
    }
    Ok(bytes)
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
        let most = if tile.level.is_some() { MAX_TILE } else { MAX_BUNDLE };
        match read_whole(&path, most) {
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

    /// The index of the first entry that is there, in a log of `size` of them: the bundles before it were pruned. Whoever prunes keeps entry
    /// 0 in a file of its own; where that is not there, nothing was pruned, and a bundle that is not there is missing.
    pub(crate) fn first_index(&self, size: u64) -> u64 {
        let there = |number| self.path(Tile { level: None, number, width: WIDTH as u16 }).exists();
        let (mut from, mut to) = (0, size / WIDTH);
        if to == 0 || there(0) || !self.keeps_the_first() {
            return 0;
        }
        while from < to {
            let middle = from + (to - from) / 2;
            if there(middle) { to = middle } else { from = middle + 1 }
        }
        from * WIDTH
    }

    /// What is missing of the full tiles and bundles before leaf `end`, by the names in their folders; no content is read.
    pub(crate) fn missing(&self, end: u64) -> io::Result<Option<String>> {
        let first = self.first_index(end) / WIDTH;
        let bundles = std::iter::once((None, first..end / WIDTH));
        let hashes = (0..=MAX_LEVEL).map(|level| (Some(level), 0..(end >> (8 * u32::from(level))) / WIDTH));
        let (mut missing, mut one) = (0_u64, None);
        for (level, numbers) in bundles.chain(hashes) {
            let (mut folder, mut there) = (PathBuf::new(), HashSet::new());
            for path in numbers.map(|number| self.path(Tile { level, number, width: WIDTH as u16 })) {
                let above = path.parent().unwrap_or(self.directory());
                if folder != above {
                    folder = above.to_owned();
                    there = match fs::read_dir(&folder) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => HashSet::new(),
                        files => files?.map(|file| Ok(file?.file_name())).collect::<io::Result<_>>()?,
                    };
                }
                if !path.file_name().is_some_and(|name| there.contains(name)) {
                    missing += 1;
                    one.get_or_insert(path);
                }
            }
        }
        // Without it nobody knows that what is not there was pruned.
        let kept = if first == 0 && !self.keeps_the_first() { format!(" (or, of a log that was pruned, {KEPT}0)") } else { String::new() };
        Ok(one.map(|one| match missing {
            1 => format!("{}{kept}", one.display()),
            _ => format!("{}{kept} and {} more", one.display(), missing - 1),
        }))
    }

    /// Whether entry 0 is in a file of its own, as whoever prunes keeps it.
    pub(crate) fn keeps_the_first(&self) -> bool {
        self.directory().join(format!("{KEPT}0")).exists()
    }

    /// The entries that were kept when their bundles were pruned, by their index.
    pub(crate) fn kept(&self) -> io::Result<BTreeMap<u64, Vec<u8>>> {
        let mut kept = BTreeMap::new();
        for file in fs::read_dir(self.directory())? {
            let file = file?;
            if let Some(index) = file.file_name().to_str().and_then(kept_index) {
                kept.insert(index, read_whole(&file.path(), MAX_ENTRY as u64).map_err(of_file(format!("{KEPT}{index}")))?);
            }
        }
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_longer_than_it_may_be_and_what_is_no_file_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("plain"), [7; 10]).unwrap();
        assert_eq!(read_whole(&path("plain"), 10).unwrap(), [7; 10]);
        let kind = |name: &str, most| read_whole(&path(name), most).unwrap_err().kind();
        assert_eq!(kind("plain", 9), io::ErrorKind::InvalidData);
        assert_eq!(kind("nothing", 9), io::ErrorKind::NotFound);
        std::os::unix::fs::symlink("plain", path("link")).unwrap();
        assert_eq!(kind("link", 10), io::ErrorKind::InvalidData);
        assert_eq!(kind("", 10), io::ErrorKind::InvalidData);
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert_eq!(kind("pipe", 10), io::ErrorKind::InvalidData);
        File::create(path("holes")).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(kind("holes", MAX_TILE), io::ErrorKind::InvalidData);
    }
}
