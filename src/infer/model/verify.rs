//! The bytes of a model: read once, whole, within a size, held to the digest that the policy names, and of a format that cannot run code.
//!
//! What passes is a [`Verified`], and only its bytes reach an engine. Nothing is opened again by its path.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use bytes::Bytes;

use super::Refused;
use super::format::{Format, recognise};
use crate::digest::Digest;

/// `O_NONBLOCK`, so that a named pipe in a model's place cannot hang the start. Linux, x86-64 and AArch64.
const O_NONBLOCK: i32 = 0o4000;

/// Bytes that are what the policy names.
#[derive(Clone)]
pub struct Verified {
    bytes: Bytes,
    digest: Digest,
}

impl Verified {
    /// Reads the file at `path` once, and holds it to `digest`. At most `limit` bytes.
    ///
    /// # Errors
    /// [`Refused`] says why the file is not the model.
    pub fn from_file(path: &Path, digest: Digest, limit: usize) -> Result<Self, Refused> {
        Self::from_bytes(read(path, limit)?, digest, limit)
    }

    /// Reads the file at `path` to say what it is: its digest is whatever it is. Not for loading.
    ///
    /// # Errors
    /// [`Refused`] says why no model of this file would be loaded.
    pub fn inspected(path: &Path, limit: usize) -> Result<Self, Refused> {
        let bytes = read(path, limit)?;
        let digest = Digest::of(&bytes);
        Self::from_bytes(bytes, digest, limit)
    }

    /// Holds `bytes` to `digest`. At most `limit` bytes.
    ///
    /// # Errors
    /// [`Refused`] says why they are not the model.
    pub fn from_bytes(bytes: Bytes, digest: Digest, limit: usize) -> Result<Self, Refused> {
        if bytes.len() > limit {
            return Err(Refused::TooLarge { limit });
        }
        let found = Digest::of(&bytes);
        if found != digest {
            return Err(Refused::WrongDigest { named: digest, found });
        }
        Self { bytes, digest }.loadable()
    }

    /// Bytes that were hashed while they were read, and held to `digest`, of whatever format they are.
    pub(super) fn of_hashed(bytes: Bytes, digest: Digest) -> Self {
        Self { bytes, digest }
    }

    /// The same, unless they are of a format that is refused as a model: [`recognise`].
    ///
    /// # Errors
    /// [`Refused::Format`].
    pub fn loadable(self) -> Result<Self, Refused> {
        match recognise(&self.bytes) {
            Some(format) => Err(Refused::Format(format)),
            None => Ok(self),
        }
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Their digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

/// The file, once and whole.
fn read(path: &Path, limit: usize) -> Result<Bytes, Refused> {
    let unreadable = |error| Refused::Unreadable(path.to_path_buf(), error);
    let mut file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path).map_err(unreadable)?;
    let about = file.metadata().map_err(unreadable)?;
    if about.is_dir() {
        let saved = ["saved_model.pb", "saved_model.pbtxt", "keras_metadata.pb"].iter().any(|name| path.join(name).exists());
        return Err(if saved { Refused::Format(Format::SavedModel) } else { Refused::NotAFile });
    }
    if !about.is_file() {
        return Err(Refused::NotAFile);
    }
    if about.len() > limit as u64 {
        return Err(Refused::TooLarge { limit });
    }
    // The length is a hint only: the file may grow or shrink while it is read.
    let mut bytes = Vec::with_capacity(usize::try_from(about.len()).unwrap_or(0) + 1);
    (&mut file).take(limit as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes.into())
}

impl fmt::Debug for Verified {
    /// Never the bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verified({:?}, {} bytes)", self.digest, self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1 << 20;

    #[test]
    fn a_format_that_runs_code_is_refused_though_its_digest_is_right() {
        let bytes = b"cposix\nsystem\n(S'id'\ntR.";
        let refused = Verified::from_bytes(Bytes::from_static(bytes), Digest::of(bytes), LIMIT).unwrap_err();
        assert!(matches!(refused, Refused::Format(Format::Pickle)), "{refused}");
    }

    #[test]
    fn a_saved_model_folder_and_a_plain_folder_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let read = || Verified::from_file(folder.path(), Digest::default(), LIMIT).unwrap_err();
        assert!(matches!(read(), Refused::NotAFile));
        std::fs::write(folder.path().join("saved_model.pb"), b"").unwrap();
        assert!(matches!(read(), Refused::Format(Format::SavedModel)));
    }

    #[test]
    fn a_device_in_the_models_place_is_refused() {
        assert!(matches!(Verified::from_file(Path::new("/dev/zero"), Digest::default(), LIMIT), Err(Refused::NotAFile)));
    }

    #[test]
    fn a_file_of_the_limit_is_read_and_one_byte_more_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        let bytes = vec![1_u8; 100];
        std::fs::write(&path, &bytes).unwrap();
        assert!(Verified::from_file(&path, Digest::of(&bytes), 100).is_ok());
        assert!(matches!(Verified::from_file(&path, Digest::of(&bytes), 99), Err(Refused::TooLarge { limit: 99 })));
        assert!(matches!(Verified::from_bytes(bytes.clone().into(), Digest::of(&bytes), 99), Err(Refused::TooLarge { limit: 99 })));
    }

    #[test]
    fn one_changed_bit_is_refused() {
        let mut bytes = include_bytes!("../../../policies/models/digits.onnx").to_vec();
        let digest = Digest::of(&bytes);
        bytes[5000] ^= 1;
        assert!(matches!(Verified::from_bytes(bytes.into(), digest, LIMIT), Err(Refused::WrongDigest { .. })));
    }

    #[test]
    fn a_file_that_changes_after_it_was_read_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        std::fs::write(&path, b"good").unwrap();
        let verified = Verified::from_file(&path, Digest::of(b"good"), LIMIT).unwrap();
        std::fs::write(&path, b"evil").unwrap();
        assert_eq!(verified.bytes().as_ref(), b"good");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(Digest::of(verified.bytes()), verified.digest());
    }
}
