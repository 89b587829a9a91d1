//! Where a model's bytes come from, and what they are held to: the digest of its file, or a signature over its folder.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use toml::Spanned;

use super::folder::{self, Folder, Limits};
use super::signing::bundle::MAX_BUNDLE;
use super::signing::{MAX_TRUST, Trust};
use super::{Bounds, Config, Refused, Verified};
use crate::digest::Digest;
use crate::mistake::Mistake;

/// A model to load.
#[derive(Clone, Debug)]
pub struct Source {
    /// The name that callers write.
    pub name: Arc<str>,
    /// Its version; `""` if none.
    pub version: Arc<str>,
    /// The file.
    pub path: PathBuf,
    /// What it must be.
    pub held_to: HeldTo,
    /// Its bounds.
    pub bounds: Bounds,
}

/// What makes a file the model.
#[derive(Clone, Debug)]
pub enum HeldTo {
    /// Its own digest.
    Digest(Digest),
    /// A signature over the folder that it lies in.
    Signature(Arc<Signature>),
}

/// A signature as it was read with the policy, and whose it must be.
pub struct Signature {
    /// The bundle's bytes; they are not read again.
    bundle: Bytes,
    /// Its name in the signed folder, if it lies there.
    beside: Option<String>,
    trust: Trust,
    /// The files of both, at whose change a reload looks again.
    files: [PathBuf; 2],
}

impl Source {
    /// Reads the model and holds it to what it must be: its bytes, and the digest by which it is known. That of a folder is the one over all
    /// its files. Certificates are judged at `now`.
    ///
    /// # Errors
    /// [`Refused`] says why it is not the model.
    pub fn verify(&self, now: SystemTime) -> Result<(Verified, Digest), Refused> {
        match &self.held_to {
            HeldTo::Digest(digest) => Verified::from_file(&self.path, *digest, self.bounds.size).map(|verified| (verified, *digest)),
            HeldTo::Signature(signature) => {
                let (Some(root), Some(name)) = (self.path.parent(), self.path.file_name().and_then(|name| name.to_str())) else {
                    return Err(Refused::NotAFile);
                };
                let limits = Limits::to_load(self.bounds.size);
                let folder = Folder::signed(root, &signature.bundle, signature.beside.as_deref(), &signature.trust, now, &limits)?;
                let file = folder.file(name).ok_or_else(|| folder::Fault::Missing(vec![name.to_owned()]))?;
                Ok((file.clone().loadable()?, folder.digest()))
            }
        }
    }

    /// The digest by which the policy names the model; none where a signature says what it is.
    #[must_use]
    pub fn named(&self) -> Option<Digest> {
        match &self.held_to {
            HeldTo::Digest(digest) => Some(*digest),
            HeldTo::Signature(_) => None,
        }
    }

    /// The files that it names beside the model.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        match &self.held_to {
            HeldTo::Digest(_) => [].iter(),
            HeldTo::Signature(signature) => signature.files.iter(),
        }
    }
}

impl fmt::Debug for Signature {
    /// Everything that decides, so that two which print alike are alike.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({:?} of {:?}, beside {:?})", Digest::of(&self.bundle), self.trust, self.beside)
    }
}

/// The real path of the model, and what it is held to. No path leaves `root`.
pub(super) fn held_to(config: &Config, folder: &Path, root: &Path) -> Result<(PathBuf, HeldTo), Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let mut real = |key: &str, path: &Spanned<PathBuf>| {
        let real = within(key, &folder.join(path.get_ref()), root);
        real.map_err(|what| mistakes.push(Mistake::at(path.span(), what))).ok()
    };
    let path = real("path", &config.path);
    let (signature, trust) = (
        config.signature.as_ref().map(|path| (path, real("signature", path))),
        config.trust.as_ref().map(|path| (path, real("trust", path))),
    );
    let held_to = match (&config.sha256, signature, trust) {
        (Some(text), None, None) => match text.get_ref().parse() {
            Ok(digest) => Some(HeldTo::Digest(digest)),
            Err(error) => {
                mistakes.push(Mistake::at(text.span(), format!("`sha256`: {error}")));
                None
            }
        },
        (None, Some((signature_at, signature)), Some((trust_at, trust))) => match (&path, signature, trust) {
            (Some(path), Some(signature), Some(trust)) => {
                let told = |at: &Spanned<PathBuf>, what: String| vec![Mistake::at(at.span(), what)];
                let bundle = bounded(&signature, MAX_BUNDLE).map_err(|error| told(signature_at, format!("`signature`: {error}")))?;
                let pem = bounded(&trust, MAX_TRUST).map_err(|error| told(trust_at, format!("`trust`: {error}")))?;
                let read = Trust::read(&pem).map_err(|fault| told(trust_at, format!("`trust`: {fault}")))?;
                let beside = path.parent().and_then(|root| folder::signature_in(root, &signature));
                Some(HeldTo::Signature(Arc::new(Signature { bundle, beside, trust: read, files: [signature, trust] })))
            }
            _ => None,
        },
        (None, None, None) => {
            let what = "`sha256` is missing: the digest that `sha256sum` prints for the file; or `signature` and `trust`";
            mistakes.push(Mistake::at(config.path.span(), what));
            None
        }
        (Some(text), _, _) => {
            mistakes.push(Mistake::at(text.span(), "`sha256` or `signature` with `trust`: give either"));
            None
        }
        (None, Some((at, _)), None) | (None, None, Some((at, _))) => {
            mistakes.push(Mistake::at(at.span(), "`signature` and `trust` belong together: the bundle, and whose it must be"));
            None
        }
    };
    match (path, held_to) {
        (Some(path), Some(held_to)) if mistakes.is_empty() => Ok((path, held_to)),
        _ => Err(mistakes),
    }
}

/// The real path, if it is within `root`.
fn within(key: &str, path: &Path, root: &Path) -> Result<PathBuf, String> {
    let missing = |path: &Path, error: io::Error| format!("`{key}`: {} cannot be found: {error}", path.display());
    let real = path.canonicalize().map_err(|error| missing(path, error))?;
    let root = root.canonicalize().map_err(|error| missing(root, error))?;
    if real.starts_with(&root) { Ok(real) } else { Err(format!("`{key}` leaves the policy folder: put the file inside it")) }
}

/// A small file, whole.
fn bounded(path: &Path, limit: usize) -> io::Result<Bytes> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit { Err(io::Error::other(format!("it is larger than {limit} bytes"))) } else { Ok(bytes.into()) }
}
