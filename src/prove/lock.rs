//! The last checkpoint that was signed, kept apart from the log.
//!
//! No checkpoint leaves before this file has it, synced; none replaces one that this process did not put there. So a log that was
//! restored from an older copy, or that a second process writes, is noticed before it signs another history.
//!
//! The file is replaced whole, and locked (`flock`) before it is there; a lock on a file that was replaced meanwhile is none.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::log::LOCK_PATIENCE;

/// A checkpoint is a few thousand bytes; more is not read.
const MAX: u64 = 1 << 20;

/// The locked file.
pub(super) struct LockFile {
    path: PathBuf,
    /// The folder it lies in, open: to sync it must not fail for want of a descriptor.
    folder: File,
    file: File,
    last: Vec<u8>,
}

impl LockFile {
    /// Opens or makes the file; it stays locked for as long as this lives. `None` if another process has it.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        let folder = File::open(path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        let asked = Instant::now();
        loop {
            let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
            match file.try_lock() {
                Ok(()) if same(&file, path)? => {
                    let mut last = Vec::new();
                    (&mut file).take(MAX).read_to_end(&mut last)?;
                    return Ok(Some(Self { path: path.into(), folder, file, last }));
                }
                // It was replaced between the two.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if asked.elapsed() >= LOCK_PATIENCE => return Ok(None),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// What it holds: a checkpoint, or nothing.
    pub(super) fn last(&self) -> &[u8] {
        &self.last
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts `next` in the place of what this process put there last, and syncs it.
    ///
    /// # Errors
    /// When something else is there, which is another writer's; and when the file cannot be written.
    pub(super) fn swap(&mut self, next: &[u8]) -> Result<(), Swap> {
        let there = std::fs::read(&self.path).map_err(Swap::Io)?;
        if there != self.last || !same(&self.file, &self.path).map_err(Swap::Io)? {
            return Err(Swap::Taken);
        }
        let mut name = self.path.clone().into_os_string();
        name.push(".new");
        let new = PathBuf::from(name);
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(Swap::Io)?;
        file.lock().and_then(|()| file.write_all(next)).map_err(Swap::Io)?;
        file.sync_all().map_err(Swap::Sync)?;
        std::fs::rename(&new, &self.path).map_err(Swap::Io)?;
        self.folder.sync_all().map_err(Swap::Sync)?;
        (self.file, self.last) = (file, next.to_vec());
        Ok(())
    }
}

/// Why a checkpoint could not be put in its place.
#[derive(Debug)]
pub(super) enum Swap {
    /// Somebody else has put another there.
    Taken,
    /// It cannot be written; nothing has changed.
    Io(io::Error),
    /// It was written and may not have reached the disk.
    Sync(io::Error),
}

fn same(file: &File, path: &Path) -> io::Result<bool> {
    let (one, other) = (file.metadata()?, std::fs::metadata(path));
    Ok(other.is_ok_and(|other| (one.dev(), one.ino()) == (other.dev(), other.ino())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_last_is_there_and_is_replaced_by_its_writer_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.lock");
        let mut lock = LockFile::open(&path).unwrap().unwrap();
        assert_eq!(lock.last(), b"");
        lock.swap(b"one").unwrap();
        lock.swap(b"two").unwrap();
        assert!(LockFile::open(&path).unwrap().is_none(), "it is locked, though it was replaced twice");
        drop(lock);
        let mut lock = LockFile::open(&path).unwrap().unwrap();
        assert_eq!(lock.last(), b"two");
        // An older copy was put back under it.
        std::fs::write(&path, b"one").unwrap();
        assert!(matches!(lock.swap(b"three"), Err(Swap::Taken)));
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        // The same text in another file is another writer's too.
        std::fs::write(&path, b"two").unwrap();
        std::fs::copy(&path, folder.path().join("copy")).unwrap();
        std::fs::rename(folder.path().join("copy"), &path).unwrap();
        assert!(matches!(lock.swap(b"three"), Err(Swap::Taken)));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(lock.swap(b"three"), Err(Swap::Io(_))));
    }
}
