//! Files that come with a model: its card, its golden answers. One lies in the model's folder, and what makes the folder the model makes it the
//! model's too; or beside it, and the policy names its digest. Either way its bytes are read once.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Deserialize;
use toml::Spanned;

use super::source::{bounded, within};
use super::{Config, Kind, Refused, Verified, folder};
use crate::digest::Digest;
use crate::mistake::Mistake;

/// The longest model card, in bytes.
pub const MAX_CARD: usize = 1 << 20;

/// The longest file of golden answers, in bytes.
pub const MAX_GOLDEN: usize = 16 << 20;

/// How a policy names such a file.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Named {
    /// By its name in the model's folder.
    InFolder(String),
    /// By its path, relative to the file that names it, and its digest.
    Beside {
        /// The path.
        path: PathBuf,
        /// The SHA-256.
        sha256: String,
    },
}

/// A file that comes with a model.
#[derive(Clone)]
pub enum Attached {
    /// To be found in the model's folder, under this name.
    InFolder(String),
    /// As it was read with the policy, and where it stands.
    Beside(PathBuf, Digest, Bytes),
}

impl fmt::Debug for Attached {
    /// Everything that decides, so that two which print alike are alike.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InFolder(name) => write!(f, "InFolder({name:?})"),
            Self::Beside(_, digest, _) => write!(f, "Beside({digest})"),
        }
    }
}

impl Attached {
    /// What the key `key` of a model's block names. No path leaves `root`.
    pub(super) fn resolve(
        key: &str,
        named: &Spanned<Named>,
        (kind, config): (Kind, &Config),
        (folder, root): (&Path, &Path),
        limit: usize,
    ) -> Result<Self, Mistake> {
        let told = |what: String| Mistake::at(named.span(), what);
        match named.get_ref() {
            Named::InFolder(name) if kind.is_encoder() || config.signature.is_some() => Ok(Self::InFolder(name.clone())),
            Named::InFolder(_) => Err(told(format!(
                "`{key}` of a model that is one file is named with its digest: {key} = {{ path = \"…\", sha256 = \"…\" }}"
            ))),
            Named::Beside { path, sha256 } => {
                let wanted: Digest = sha256.parse().map_err(|error| told(format!("`{key}`: `sha256`: {error}")))?;
                let real = within(key, &folder.join(path), root).map_err(told)?;
                let bytes = bounded(&real, limit).map_err(|error| told(format!("`{key}`: {error}")))?;
                let found = Digest::of(&bytes);
                if found == wanted {
                    Ok(Self::Beside(real, found, bytes))
                } else {
                    Err(told(format!("`{key}` is not the file that is named: its SHA-256 is {found}")))
                }
            }
        }
    }

    /// Its bytes, where `files` are those of the model's folder, verified.
    pub(super) fn bytes(&self, files: &BTreeMap<String, Verified>, limit: usize) -> Result<Bytes, Refused> {
        match self {
            Self::Beside(_, _, bytes) => Ok(bytes.clone()),
            Self::InFolder(name) => {
                let file = files.get(name).ok_or_else(|| folder::Fault::Missing(vec![name.clone()]))?;
                if file.bytes().len() > limit {
                    Err(Refused::TooLongBeside { name: name.clone(), limit })
                } else {
                    Ok(file.bytes().clone())
                }
            }
        }
    }

    /// Where it stands, if that is not the model's folder.
    pub(super) fn path(&self) -> Option<&PathBuf> {
        if let Self::Beside(path, ..) = self { Some(path) } else { None }
    }
}
