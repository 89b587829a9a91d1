//! Where a model's bytes come from, and what they are held to: the digest of its file, or a signature over its folder.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use toml::Spanned;

use super::attached::{Attached, MAX_CARD, MAX_GOLDEN};
use super::encoder::Pooling;
use super::folder::{self, Folder, Limits};
use super::signing::bundle::MAX_BUNDLE;
use super::signing::{MAX_TRUST, Trust};
use super::{Bounds, Config, Kind, Named, Refused, Verified, calibration};
use crate::digest::Digest;
use crate::mistake::Mistake;

/// The name under which an ONNX file is known, whatever its own.
pub(super) const MODEL: &str = "model.onnx";

/// The file of a folder that holds the weights.
pub(super) const WEIGHTS: &str = "model.safetensors";

/// A model to load.
#[derive(Clone, Debug)]
pub struct Source {
    /// Which engine runs it.
    pub kind: Kind,
    /// An encoder's pooling, in place of what its folder says.
    pub pooling: Option<Pooling>,
    /// Whether an encoder's vectors are brought to length 1, in place of what its folder says.
    pub normalize: Option<bool>,
    /// The file of temperatures, as it was read with the policy, and where it stands.
    pub calibration: Option<(PathBuf, Bytes)>,
    /// What it says of itself, for people.
    pub card: Option<Attached>,
    /// What it must answer before it is ready.
    pub golden: Option<Attached>,
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
    /// The digest of each of its files.
    Files(BTreeMap<String, Digest>),
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
    /// Reads the model and holds it to what it must be. Certificates are judged at `now`.
    ///
    /// # Errors
    /// [`Refused`] says why it is not the model.
    pub fn verify(&self, now: SystemTime) -> Result<Held, Refused> {
        let limits = Limits::to_load(self.bounds.size);
        let folder = match &self.held_to {
            HeldTo::Digest(digest) => {
                let file = Verified::from_file(&self.path, *digest, self.bounds.size)?;
                return self.held([(MODEL.to_owned(), file)].into(), *digest, &BTreeMap::new());
            }
            HeldTo::Files(digests) => Folder::named(&self.path, digests, &limits)?,
            HeldTo::Signature(signature) => {
                let root = if self.kind.is_encoder() { &self.path } else { self.path.parent().ok_or(Refused::NotAFile)? };
                Folder::signed(root, &signature.bundle, signature.beside.as_deref(), &signature.trust, now, &limits)?
            }
        };
        let digest = folder.digest();
        if self.kind.is_encoder() {
            let mut files = folder.files().clone();
            if self.kind == Kind::OnnxEncoder {
                let file = files.remove(MODEL).ok_or_else(|| folder::Fault::Missing(vec![MODEL.to_owned()]))?;
                files.insert(MODEL.to_owned(), file.loadable()?);
            }
            return self.held(files, digest, folder.files());
        }
        let name = self.path.file_name().and_then(|name| name.to_str()).ok_or(Refused::NotAFile)?;
        let file = folder.file(name).ok_or_else(|| folder::Fault::Missing(vec![name.to_owned()]))?;
        self.held([(MODEL.to_owned(), file.clone().loadable()?)].into(), digest, folder.files())
    }

    /// The model, and what comes with it, of which some lies in its folder.
    fn held(&self, files: BTreeMap<String, Verified>, digest: Digest, folder: &BTreeMap<String, Verified>) -> Result<Held, Refused> {
        let attached = |attached: &Option<Attached>, limit| attached.as_ref().map(|attached| attached.bytes(folder, limit)).transpose();
        let (card, golden) = (attached(&self.card, MAX_CARD)?, attached(&self.golden, MAX_GOLDEN)?);
        if card.as_ref().is_some_and(|card| std::str::from_utf8(card).is_err()) {
            return Err(Refused::Card);
        }
        let mut beside = BTreeMap::new();
        if self.kind != Kind::Safetensors {
            let own = self.path.file_name().and_then(|name| name.to_str()).filter(|_| self.kind == Kind::Onnx);
            let others = folder.iter().filter(|(name, _)| Some(name.as_str()) != own && *name != MODEL);
            beside.extend(others.map(|(name, file)| (name.clone(), file.clone())));
        }
        Ok(Held { kind: self.kind, files, beside, digest, card, golden })
    }

    /// The file whose exchange on disk is noticed, if `path` is where the policy says that the model stands: the weights.
    #[must_use]
    pub fn weights(&self, path: PathBuf) -> PathBuf {
        match self.kind {
            Kind::Onnx => path,
            Kind::OnnxEncoder => path.join(MODEL),
            Kind::Safetensors => path.join(WEIGHTS),
        }
    }

    /// Where the names of the model's files begin, for the same `path`; none where it is a file without a folder.
    #[must_use]
    pub fn folder(&self, path: &Path) -> Option<PathBuf> {
        if self.kind.is_encoder() { Some(path.to_owned()) } else { path.parent().map(Path::to_owned) }
    }

    /// The digest by which the policy names the model; none where a signature says what it is.
    #[must_use]
    pub fn named(&self) -> Option<Digest> {
        match &self.held_to {
            HeldTo::Digest(digest) => Some(*digest),
            HeldTo::Files(_) | HeldTo::Signature(_) => None,
        }
    }

    /// The files that it names beside the model.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let of_signature = match &self.held_to {
            HeldTo::Digest(_) | HeldTo::Files(_) => [].iter(),
            HeldTo::Signature(signature) => signature.files.iter(),
        };
        let attached = [&self.card, &self.golden].into_iter().flatten().filter_map(Attached::path);
        of_signature.chain(self.calibration.as_ref().map(|(path, _)| path)).chain(attached)
    }
}

impl fmt::Debug for Signature {
    /// Everything that decides, so that two which print alike are alike.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({:?} of {:?}, beside {:?})", Digest::of(&self.bundle), self.trust, self.beside)
    }
}

/// A model's files as they were verified, and the digest by which it is known: that of a folder is the one over all its files.
#[derive(Debug)]
pub struct Held {
    /// Which engine runs them.
    pub kind: Kind,
    /// By their names; an ONNX file is one, under `model.onnx`.
    pub files: BTreeMap<String, Verified>,
    /// The other files of a folder that an ONNX model lies in, by their names: its tensors may lie there.
    pub beside: BTreeMap<String, Verified>,
    /// The model's digest.
    pub digest: Digest,
    /// Its card, text in UTF-8.
    pub card: Option<Bytes>,
    /// What it must answer.
    pub golden: Option<Bytes>,
}

impl Held {
    /// The digests of all files but the weights, by their names below the model's folder.
    #[must_use]
    pub fn others(&self) -> BTreeMap<String, Digest> {
        let files = self.files.iter().filter(|(name, _)| **name != self.name_of_weights());
        files.chain(&self.beside).map(|(name, file)| (name.clone(), file.digest())).collect()
    }

    fn name_of_weights(&self) -> &'static str {
        if self.kind == Kind::Safetensors { WEIGHTS } else { MODEL }
    }

    /// The weights' file.
    ///
    /// # Errors
    /// There is none.
    pub fn weights(&self) -> Result<&Verified, Refused> {
        let name = self.name_of_weights();
        self.files.get(name).ok_or_else(|| folder::Fault::Missing(vec![name.to_owned()]).into())
    }
}

/// The bytes of the file of temperatures, and where it stands. No path leaves `root`.
pub(super) fn temperatures(config: &Config, folder: &Path, root: &Path) -> Result<Option<(PathBuf, Bytes)>, Mistake> {
    let Some(path) = &config.calibration else { return Ok(None) };
    let told = |what: String| Mistake::at(path.span(), what);
    let real = within("calibration", &folder.join(path.get_ref()), root).map_err(told)?;
    let bytes = bounded(&real, calibration::MAX_FILE).map_err(|error| told(format!("`calibration`: {error}")))?;
    Ok(Some((real, bytes)))
}

/// The digests of a policy, as they are written: one for a file, one each for the files of a folder.
fn named(kind: Kind, named: &Spanned<Named>) -> Result<HeldTo, Mistake> {
    let told = |what: String| Mistake::at(named.span(), what);
    match (named.get_ref(), kind) {
        (Named::File(digest), Kind::Onnx) => digest.parse().map(HeldTo::Digest).map_err(|error| told(format!("`sha256`: {error}"))),
        (Named::Files(digests), Kind::OnnxEncoder | Kind::Safetensors) => {
            let one = |(name, digest): (&String, &String)| {
                let digest = digest.parse().map_err(|error| told(format!("`sha256` of {name:?}: {error}")))?;
                Ok((name.clone(), digest))
            };
            digests.iter().map(one).collect::<Result<_, _>>().map(HeldTo::Files)
        }
        (Named::Files(_), Kind::Onnx) => Err(told("`sha256` of an ONNX file is one digest".to_owned())),
        (Named::File(_), Kind::OnnxEncoder | Kind::Safetensors) => {
            let weights = if kind == Kind::Safetensors { WEIGHTS } else { MODEL };
            Err(told(format!("`sha256` of a folder names each file: sha256 = {{ \"{weights}\" = \"…\", … }}")))
        }
    }
}

/// The real path of the model, and what it is held to. No path leaves `root`.
pub(super) fn held_to(config: &Config, kind: Kind, folder: &Path, root: &Path) -> Result<(PathBuf, HeldTo), Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let mut real = |key: &str, path: &Spanned<PathBuf>, within: fn(&str, &Path, &Path) -> Result<PathBuf, String>| {
        let real = within(key, &folder.join(path.get_ref()), root);
        real.map_err(|what| mistakes.push(Mistake::at(path.span(), what))).ok()
    };
    let path = real("path", &config.path, once_within);
    let (signature, trust) = (
        config.signature.as_ref().map(|path| (path, real("signature", path, within))),
        config.trust.as_ref().map(|path| (path, real("trust", path, within))),
    );
    let held_to = match (&config.sha256, signature, trust) {
        (Some(digests), None, None) => named(kind, digests).map_err(|mistake| mistakes.push(mistake)).ok(),
        (None, Some((signature_at, signature)), Some((trust_at, trust))) => match (&path, signature, trust) {
            (Some(path), Some(signature), Some(trust)) => {
                let told = |at: &Spanned<PathBuf>, what: String| vec![Mistake::at(at.span(), what)];
                let bundle = bounded(&signature, MAX_BUNDLE).map_err(|error| told(signature_at, format!("`signature`: {error}")))?;
                let pem = bounded(&trust, MAX_TRUST).map_err(|error| told(trust_at, format!("`trust`: {error}")))?;
                let read = Trust::read(&pem).map_err(|fault| told(trust_at, format!("`trust`: {fault}")))?;
                let root = if kind.is_encoder() { Some(path.as_path()) } else { path.parent() };
                let beside = root.and_then(|root| folder::signature_in(root, &signature));
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
pub(super) fn within(key: &str, path: &Path, root: &Path) -> Result<PathBuf, String> {
    real_within(key, path, path.canonicalize(), root)
}

/// The same for a path at which nothing need be any longer: the model of a file that is gone may run, from what was verified.
fn once_within(key: &str, path: &Path, root: &Path) -> Result<PathBuf, String> {
    real_within(key, path, path.canonicalize().or_else(|error| where_it_stood(path).ok_or(error)), root)
}

/// What the real path of a file was that is gone, or whose folder is, if that was no link. A link that leads nowhere is there.
fn where_it_stood(path: &Path) -> Option<PathBuf> {
    let (above, folder) = path.ancestors().skip(1).find_map(|above| Some((above, above.canonicalize().ok()?)))?;
    let gone = path.strip_prefix(above).ok()?;
    let first = folder.join(gone.components().next()?);
    let is_gone = first.symlink_metadata().is_err() && gone.components().all(|part| matches!(part, Component::Normal(_)));
    is_gone.then(|| folder.join(gone))
}

fn real_within(key: &str, path: &Path, real: io::Result<PathBuf>, root: &Path) -> Result<PathBuf, String> {
    let missing = |path: &Path, error: io::Error| format!("`{key}`: {} cannot be found: {error}", path.display());
    let real = real.map_err(|error| missing(path, error))?;
    let root = root.canonicalize().map_err(|error| missing(root, error))?;
    if real.starts_with(&root) { Ok(real) } else { Err(format!("`{key}` leaves the policy folder: put the file inside it")) }
}

/// A small file, whole.
pub(super) fn bounded(path: &Path, limit: usize) -> io::Result<Bytes> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit { Err(io::Error::other(format!("it is larger than {limit} bytes"))) } else { Ok(bytes.into()) }
}
