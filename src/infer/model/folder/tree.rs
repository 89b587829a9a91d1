//! Files below one folder, reached from its descriptor part by part and without following a link, so that whatever is moved or replaced
//! meanwhile, no name leads out of the folder that was opened.
//!
//! It is what `openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS` does, by the calls that every kernel and every container has: names
//! have no `..` ([`is_name`]), and each part is opened with `O_NOFOLLOW`.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use super::{Fault, Limits};
use crate::infer::model::signing::manifest::{Manifest, SINGLE, is_name};

/// How deep folders may nest.
pub(super) const MAX_DEPTH: usize = 32;

/// A folder that was opened, or one file in its place.
pub(super) enum Tree {
    Folder(OwnedFd),
    One {
        file: OwnedFd,
        /// What it is called.
        name: String,
    },
}

impl Tree {
    /// Opens what is at `path`, which the operator names and which may be a link.
    pub(super) fn open(path: &Path) -> Result<Self, Fault> {
        let not_there = |error: Errno| Fault::NotThere(error.into());
        // A pipe in its place must not be waited for.
        let opened =
            openat(rustix::fs::CWD, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).map_err(not_there)?;
        let about = rustix::fs::fstat(&opened).map_err(not_there)?;
        let name = || path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        match FileType::from_raw_mode(about.st_mode) {
            FileType::Directory => Ok(Self::Folder(opened)),
            FileType::RegularFile => Ok(Self::One { file: opened, name: name() }),
            _ => Err(Fault::NotAFile(name())),
        }
    }

    /// Every file below, with its length, but for what `skip` leaves out with all that is in it. Nothing of it is opened but folders.
    pub(super) fn files(&self, skip: impl Fn(&str) -> bool, limits: &Limits) -> Result<BTreeMap<String, u64>, Fault> {
        let Self::Folder(root) = self else { return Ok(BTreeMap::from([(SINGLE.to_owned(), 0)])) };
        let mut files = BTreeMap::new();
        let mut entries = 0_usize;
        let mut waiting = vec![(String::new(), 0)];
        while let Some((prefix, depth)) = waiting.pop() {
            let folder = if prefix.is_empty() { open(root, SINGLE, FOLDER, &prefix)? } else { below(root, &prefix, FOLDER)? };
            let unreadable = |error: Errno| Fault::Unreadable(prefix.clone(), error.into());
            for entry in Dir::read_from(&folder).map_err(unreadable)? {
                let entry = entry.map_err(unreadable)?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                entries += 1;
                if entries > limits.entries {
                    return Err(Fault::TooMany { limit: limits.entries });
                }
                let path = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
                let Ok(path) = name.to_str().map(path) else { return Err(Fault::Unspeakable(name.to_string_lossy().into_owned())) };
                if skip(&path) {
                    continue;
                }
                if !is_name(&path) {
                    return Err(Fault::Unspeakable(path));
                }
                let about = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(unreadable)?;
                match FileType::from_raw_mode(about.st_mode) {
                    FileType::RegularFile => drop(files.insert(path, u64::try_from(about.st_size).unwrap_or(0))),
                    FileType::Directory if depth + 1 > MAX_DEPTH => return Err(Fault::TooDeep(path)),
                    FileType::Directory => waiting.push((path, depth + 1)),
                    FileType::Symlink => return Err(Fault::Link(path)),
                    _ => return Err(Fault::NotAFile(path)),
                }
            }
        }
        Ok(files)
    }

    /// The file called so, to be read.
    pub(super) fn open_file(&self, name: &str) -> Result<File, Fault> {
        let unreadable = |error: Errno| Fault::Unreadable(name.to_owned(), error.into());
        let opened = match self {
            Self::One { file, .. } if name == SINGLE => file.try_clone().map_err(|error| Fault::Unreadable(name.to_owned(), error))?,
            Self::One { .. } => return Err(Fault::Missing(vec![name.to_owned()])),
            Self::Folder(_) if !is_name(name) => return Err(Fault::Unspeakable(name.to_owned())),
            Self::Folder(root) => below(root, name, OFlags::NONBLOCK)?,
        };
        let about = rustix::fs::fstat(&opened).map_err(unreadable)?;
        match FileType::from_raw_mode(about.st_mode) {
            FileType::RegularFile => Ok(opened.into()),
            _ => Err(Fault::NotAFile(name.to_owned())),
        }
    }

    /// What the manifest calls the file `name`. A single file is called so or so.
    pub(super) fn in_manifest<'n>(&'n self, name: &'n str, manifest: &Manifest) -> &'n str {
        match self {
            Self::One { name: own, .. } if name == SINGLE && !manifest.files().contains_key(SINGLE) => own,
            _ => name,
        }
    }

    /// What the file that the manifest calls `name` is called here.
    pub(super) fn on_disk<'n>(&self, name: &'n str, manifest: &Manifest) -> &'n str {
        match self {
            Self::One { name: own, .. } if own == name && manifest.files().len() == 1 => SINGLE,
            _ => name,
        }
    }
}

const FOLDER: OFlags = OFlags::DIRECTORY;

/// Opens what lies at `path` below `root`. `path` is a name ([`is_name`]).
fn below(root: &OwnedFd, path: &str, flags: OFlags) -> Result<OwnedFd, Fault> {
    let mut folder = None;
    let mut parts = path.split('/').peekable();
    while let Some(part) = parts.next() {
        let at = folder.as_ref().unwrap_or(root);
        let next = open(at, part, if parts.peek().is_some() { FOLDER } else { flags }, path)?;
        if parts.peek().is_none() {
            return Ok(next);
        }
        folder = Some(next);
    }
    Err(Fault::Missing(vec![path.to_owned()]))
}

fn open(at: &OwnedFd, part: &str, flags: OFlags, path: &str) -> Result<OwnedFd, Fault> {
    openat(at, part, flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).map_err(|error| match error {
        // With O_DIRECTORY a link is "not a directory".
        Errno::LOOP => Fault::Link(path.to_owned()),
        Errno::NOENT => Fault::Missing(vec![path.to_owned()]),
        Errno::NOTDIR
            if statat(at, part, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|about| FileType::from_raw_mode(about.st_mode) == FileType::Symlink) =>
        {
            Fault::Link(path.to_owned())
        }
        other => Fault::Unreadable(path.to_owned(), other.into()),
    })
}
