//! A model that is a folder: every file that a manifest lists, read once, hashed while it is read, and held to its digest.
//!
//! The manifest comes from a trusted signature, or from the digests in a policy. Only files that it lists are opened; under a signature, a
//! file that it does not list is refused, because whoever put it there wants it to be found. Nothing is opened a second time: what
//! [`Folder::file`] gives are the bytes that were hashed.

mod tree;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;

use super::Verified;
use super::signing::manifest::{Content, MAX_RESOURCES, Manifest};
use super::signing::{self, Signer, Trust};
use crate::digest::{Digest, Hasher};
use tree::Tree;

/// How much is read and hashed at once, in bytes.
const CHUNK: u64 = 1 << 20;

/// The most threads that hash at the same time. Past it, the disk is what is waited for.
const MAX_THREADS: usize = 8;

/// The most files of a model that is to be loaded: more than published ones have, of which some keep every tensor in a file of its own.
pub const MAX_FILES: usize = 10_000;

/// How many files are named in a refusal.
const NAMED: usize = 3;

/// What a folder may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Files and folders.
    pub entries: usize,
}

impl Limits {
    /// For a model that is to be loaded: at most so many bytes, and [`MAX_FILES`].
    #[must_use]
    pub fn to_load(bytes: usize) -> Self {
        Self { bytes: bytes as u64, entries: MAX_FILES }
    }

    /// For commands, which keep nothing: any size, and as many files as a manifest lists.
    pub const TO_HASH: Self = Self { bytes: u64::MAX, entries: MAX_RESOURCES };
}

/// The files of a model, verified, in memory.
#[derive(Clone, Debug)]
pub struct Folder {
    files: BTreeMap<String, Verified>,
    digest: Digest,
    signer: Option<Signer>,
}

impl Folder {
    /// Reads the folder at `root` and holds it to a signature: `bundle` are the signature file's bytes, `beside` its name where it lies in
    /// the folder itself ([`signature_in`]).
    ///
    /// # Errors
    /// [`Fault`] says why the folder is not what was signed, or why the signature does not count.
    pub fn signed(
        root: &Path,
        bundle: &[u8],
        beside: Option<&str>,
        trust: &Trust,
        now: SystemTime,
        limits: &Limits,
    ) -> Result<Self, Fault> {
        let signing::Signed { manifest, signer } = trust.verify(bundle, now)?;
        let tree = Tree::open(root)?;
        listed(&tree, &manifest, beside, limits)?;
        let files = read_all(&tree, &manifest, limits, true)?;
        let files = files.into_iter().map(|(name, read)| (name, Verified::of_hashed(read.bytes, read.digest))).collect();
        Ok(Self { files, digest: manifest.root(), signer: Some(signer) })
    }

    /// Reads those files of the folder at `root` that `digests` names, and no others: what else is in the folder is left alone.
    ///
    /// # Errors
    /// [`Fault`] says why they are not what was named.
    pub fn named(root: &Path, digests: &BTreeMap<String, Digest>, limits: &Limits) -> Result<Self, Fault> {
        if digests.is_empty() {
            return Err(Fault::Empty);
        }
        if digests.len() > limits.entries {
            return Err(Fault::TooMany { limit: limits.entries });
        }
        let manifest = Manifest::of_files(digests, Vec::new()).map_err(Fault::Unspeakable)?;
        let files = read_all(&Tree::open(root)?, &manifest, limits, true)?;
        let files = files.into_iter().map(|(name, read)| (name, Verified::of_hashed(read.bytes, read.digest))).collect();
        Ok(Self { files, digest: manifest.root(), signer: None })
    }

    /// A file by its name in the manifest.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&Verified> {
        self.files.get(name)
    }

    /// All files by name.
    #[must_use]
    pub fn files(&self) -> &BTreeMap<String, Verified> {
        &self.files
    }

    /// The model's digest: SHA-256 over the digests of its files (OMS v1.0, 6.5.1).
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Whose signature it was held to, if it was.
    #[must_use]
    pub fn signer(&self) -> Option<&Signer> {
        self.signer.as_ref()
    }
}

/// A file that was hashed and not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub length: u64,
}

/// Holds the folder, or the one file, at `root` to a manifest, and keeps nothing of it.
///
/// # Errors
/// [`Fault`] says why it is not what was signed.
pub fn compare(root: &Path, manifest: &Manifest, beside: Option<&str>, limits: &Limits) -> Result<BTreeMap<String, Seen>, Fault> {
    let tree = Tree::open(root)?;
    listed(&tree, manifest, beside, limits)?;
    let read = read_all(&tree, manifest, limits, false)?;
    Ok(read.into_iter().map(|(name, read)| (name, Seen { digest: read.digest, length: read.length })).collect())
}

/// Hashes every file of the folder, or the one file, at `root`, to be signed or told. `ignored` are left out, and what no signature covers.
///
/// # Errors
/// [`Fault`], also for a link and for a name that could not be signed.
pub fn hash(root: &Path, ignored: &[String], beside: Option<&str>, limits: &Limits) -> Result<BTreeMap<String, Seen>, Fault> {
    let tree = Tree::open(root)?;
    // An empty manifest knows what is ignored.
    let ignoring = Manifest::of_files(&BTreeMap::new(), ignored.to_vec()).map_err(Fault::Unspeakable)?;
    let names = tree.files(|path| ignoring.ignores(path) || beside == Some(path), limits)?;
    if names.is_empty() {
        return Err(Fault::Empty);
    }
    let names: Vec<&str> = names.keys().map(String::as_str).collect();
    let read = in_parallel(&names, limits, |name, room| read(&tree, name, None, room, false))?;
    Ok(read.into_iter().map(|(name, read)| (name, Seen { digest: read.digest, length: read.length })).collect())
}

/// The files of a folder with their lengths, none of which is opened; links and devices are faults here too.
///
/// # Errors
/// [`Fault`].
pub fn names(root: &Path, limits: &Limits) -> Result<BTreeMap<String, u64>, Fault> {
    Tree::open(root)?.files(|_| false, limits)
}

/// Where the signature lies, if it lies in the folder that it signs: its name there, which no manifest can list.
#[must_use]
pub fn signature_in(root: &Path, signature: &Path) -> Option<String> {
    // The file itself is not followed: it is what is called so in the folder that is left out.
    let folder = signature.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).canonicalize().ok()?;
    let inside = folder.strip_prefix(root.canonicalize().ok()?).ok()?.join(signature.file_name()?);
    inside.to_str().map(str::to_owned)
}

/// Whether the folder holds what the manifest lists and nothing else.
fn listed(tree: &Tree, manifest: &Manifest, beside: Option<&str>, limits: &Limits) -> Result<(), Fault> {
    let found = tree.files(|path| manifest.ignores(path) || beside == Some(path), limits)?;
    let is_listed = |name: &String| manifest.files().contains_key(tree.in_manifest(name, manifest));
    let unlisted = found.iter().filter(|(name, length)| !(is_listed(name) || manifest.leaves_out_empty_files() && **length == 0));
    let unlisted: Vec<String> = unlisted.map(|(name, _)| name.clone()).collect();
    if !unlisted.is_empty() {
        return Err(Fault::Unlisted(unlisted));
    }
    // What is missing shows when it is opened; here it is told of all of them.
    let missing: Vec<String> = manifest.files().keys().filter(|name| !found.contains_key(tree.on_disk(name, manifest))).cloned().collect();
    if missing.is_empty() { Ok(()) } else { Err(Fault::Missing(missing)) }
}

/// A file that was read.
struct Whole {
    bytes: Bytes,
    length: u64,
    digest: Digest,
    /// Digests of its parts, if parts were asked for.
    parts: Vec<Digest>,
}

/// Every file of the manifest, held to its digest.
fn read_all(tree: &Tree, manifest: &Manifest, limits: &Limits, keep: bool) -> Result<BTreeMap<String, Whole>, Fault> {
    let names: Vec<&str> = manifest.files().keys().map(String::as_str).collect();
    in_parallel(&names, limits, |name, room| {
        let changed = || Fault::Changed(name.to_owned());
        let content = manifest.files().get(name).ok_or_else(changed)?;
        let on_disk = tree.on_disk(name, manifest);
        match content {
            Content::Whole(digest) => Some(read(tree, on_disk, None, room, keep)?).filter(|read| read.digest == *digest),
            Content::Parts { size, length, digests } => {
                Some(read(tree, on_disk, Some(*size), room, keep)?).filter(|read| read.parts == *digests && read.length == *length)
            }
        }
        .ok_or_else(changed)
    })
}

/// Does `each` for every name, several at a time; the first fault ends it.
fn in_parallel<'n>(
    names: &[&'n str],
    limits: &Limits,
    each: impl Fn(&'n str, &AtomicU64) -> Result<Whole, Fault> + Sync,
) -> Result<BTreeMap<String, Whole>, Fault> {
    let room = AtomicU64::new(limits.bytes);
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Ok(BTreeMap::new()));
    let work = || {
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            let read = each(name, &room);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            match (&mut *done, read) {
                (Ok(files), Ok(read)) => drop(files.insert((*name).to_owned(), read)),
                (Ok(_), Err(fault)) => *done = Err(fault.of_limits(limits)),
                (Err(_), _) => return,
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS).min(names.len());
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a file from its first byte to its last, once, taking its bytes out of `room`.
fn read(tree: &Tree, name: &str, part: Option<u64>, room: &AtomicU64, keep: bool) -> Result<Whole, Fault> {
    let mut file: File = tree.open_file(name)?;
    let unreadable = |error| Fault::Unreadable(name.to_owned(), error);
    let mut bytes = Vec::new();
    if keep {
        // A hint only: the file may grow or shrink while it is read.
        let hint = file.metadata().map_err(unreadable)?.len().min(room.load(Ordering::Relaxed));
        bytes.reserve_exact(usize::try_from(hint).unwrap_or(0) + 1);
    }
    let mut whole = Hasher::new();
    let (mut current, mut in_part, mut parts) = (Hasher::new(), 0_u64, Vec::new());
    let mut length = 0_u64;
    loop {
        let from = bytes.len();
        let taken = (&mut file).take(CHUNK).read_to_end(&mut bytes).map_err(unreadable)? as u64;
        if taken == 0 {
            break;
        }
        room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(taken))
            .map_err(|_| Fault::TooLarge { limit: 0 })?;
        length += taken;
        let mut chunk = &bytes[from..];
        whole.update(chunk);
        while let Some(size) = part.filter(|_| !chunk.is_empty()) {
            let (this, rest) = chunk.split_at(usize::try_from(size - in_part).unwrap_or(usize::MAX).min(chunk.len()));
            current.update(this);
            in_part += this.len() as u64;
            chunk = rest;
            if in_part == size {
                parts.push(std::mem::take(&mut current).finish());
                in_part = 0;
            }
        }
        if !keep {
            bytes.clear();
        }
    }
    if in_part > 0 {
        parts.push(current.finish());
    }
    Ok(Whole { bytes: bytes.into(), length, digest: whole.finish(), parts })
}

/// Why a folder is not the model. For the operator: it tells names.
#[derive(Debug)]
pub enum Fault {
    /// The signature does not count.
    Signature(signing::Fault),
    /// It is neither a folder nor a file, or cannot be opened.
    NotThere(io::Error),
    /// A file cannot be read.
    Unreadable(String, io::Error),
    /// A link, which is never followed.
    Link(String),
    /// A device, a pipe or a socket.
    NotAFile(String),
    /// A name that no manifest can hold.
    Unspeakable(String),
    /// Files that are not listed.
    Unlisted(Vec<String>),
    /// Files that are listed and not there.
    Missing(Vec<String>),
    /// A file is not the one that was signed or named.
    Changed(String),
    /// There is no file.
    Empty,
    /// Folders in folders, too many.
    TooDeep(String),
    /// Files and folders, too many.
    TooMany {
        /// The most.
        limit: usize,
    },
    /// Bytes, too many.
    TooLarge {
        /// The most.
        limit: u64,
    },
}

impl Fault {
    /// With the bound, which whoever reads a file does not know.
    fn of_limits(self, limits: &Limits) -> Self {
        if let Self::TooLarge { .. } = self { Self::TooLarge { limit: limits.bytes } } else { self }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// The first few, quoted, so that no name can write a line of its own.
        fn some(names: &[String]) -> String {
            let shown: Vec<String> = names.iter().take(NAMED).map(|name| format!("{name:?}")).collect();
            let more = names.len().saturating_sub(NAMED);
            if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
        }
        match self {
            Self::Signature(fault) => write!(f, "{fault}"),
            Self::NotThere(error) => write!(f, "the model cannot be opened: {error}"),
            Self::Unreadable(name, error) => write!(f, "{name:?} cannot be read: {error}"),
            Self::Link(name) => write!(f, "{name:?} is a symbolic link, which is not followed: put the file itself there (cp -rL)"),
            Self::NotAFile(name) => write!(f, "{name:?} is a device, a pipe or a socket"),
            Self::Unspeakable(name) => write!(
                f,
                "{name:?} is no name for a file of a model: relative, with `/`, in UTF-8, without control characters and backslashes"
            ),
            Self::Unlisted(names) => {
                write!(
                    f,
                    "not listed by the signature: {}. The signed folder holds the model alone: take them out, or sign again",
                    some(names)
                )
            }
            Self::Missing(names) => write!(f, "listed and not there: {}", some(names)),
            Self::Changed(name) => write!(f, "{name:?} is not the file that was signed or named: its digest differs"),
            Self::Empty => f.write_str("the model has no file"),
            Self::TooDeep(name) => write!(f, "{name:?} lies deeper than {} folders", tree::MAX_DEPTH),
            Self::TooMany { limit } => write!(f, "the folder holds more than {limit} files and folders"),
            Self::TooLarge { limit } => write!(f, "the files are larger than {limit} bytes together (`max_size`)"),
        }
    }
}

impl std::error::Error for Fault {}

impl From<signing::Fault> for Fault {
    fn from(fault: signing::Fault) -> Self {
        Self::Signature(fault)
    }
}

#[cfg(test)]
mod tests;
