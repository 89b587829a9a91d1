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
use crate::digest::Digest;

/// `O_NONBLOCK`, so that a named pipe in a model's place cannot hang the start. Linux, x86-64 and AArch64.
const O_NONBLOCK: i32 = 0o4000;

/// How much of either end of an archive is searched for the names in it. Bytes.
const ARCHIVE_SEARCH: usize = 64 << 10;

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
        match recognise(&bytes) {
            Some(format) => Err(Refused::Format(format)),
            None => Ok(Self { bytes, digest }),
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

/// A format that is told by its first bytes and is not loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the formats'")]
pub enum Format {
    Pickle,
    PyTorch,
    Zip,
    Keras,
    Hdf5,
    SavedModel,
    Compressed,
    Numpy,
    OrtFlatbuffer,
    TfLite,
    Gguf,
    Safetensors,
    Executable,
    Tar,
}

impl fmt::Display for Format {
    /// What it is, why it is refused, and the safe way.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pickle => "a Python pickle: loading one runs whatever code is in it. Export the model to ONNX (skl2onnx, torch.onnx.export)",
            Self::PyTorch => {
                "a PyTorch or TorchScript archive: it holds pickles, and code. Export the model to ONNX with torch.onnx.export(…, external_data=False)"
            }
            Self::Zip => "a zip archive: nothing is unpacked here, for it may hold pickles. Name the .onnx file itself",
            Self::Keras => "a Keras archive: its layers may carry code. Export the model to ONNX (tf2onnx, or model.export(format=\"onnx\"))",
            Self::Hdf5 => "HDF5, as Keras writes it: Lambda layers carry code. Export the model to ONNX (tf2onnx)",
            Self::SavedModel => "a TensorFlow SavedModel: its graph may read and write files. Convert it to ONNX (tf2onnx)",
            Self::Compressed => {
                "compressed (joblib writes pickles so): nothing is unpacked here. Export the model to ONNX and name the .onnx file itself"
            }
            Self::Numpy => "a numpy array: it may hold pickled objects, and is no model. Export the model to ONNX",
            Self::OrtFlatbuffer => {
                "an .ort file: ONNX Runtime's own flatbuffer, whose graph cannot be checked before it is loaded. Use the .onnx file it was made from"
            }
            Self::TfLite => "a TensorFlow Lite flatbuffer. Convert the model to ONNX (tf2onnx --tflite)",
            Self::Gguf => "GGUF or GGML: such models run behind an upstream, not in this process",
            Self::Safetensors => "safetensors, which is weights without a graph: [backend.onnx] needs an .onnx file",
            Self::Executable => "a program or a shared library, and no model",
            Self::Tar => "a tar archive: nothing is unpacked here. Name the .onnx file itself",
        })
    }
}

/// The format of `bytes`, if it is one that is known and refused. `None` says nothing good of them: it is for the ONNX reader to judge.
#[must_use]
pub fn recognise(bytes: &[u8]) -> Option<Format> {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let at = |offset: usize, magic: &[u8]| bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if starts(b"PK\x03\x04") || starts(b"PK\x05\x06") || starts(b"PK\x07\x08") {
        return Some(archive(bytes));
    }
    if [0, 512, 1024, 2048].iter().any(|offset| at(*offset, b"\x89HDF\r\n\x1a\n")) {
        return Some(Format::Hdf5);
    }
    let compressed: [&[u8]; 9] = [
        b"\x1f\x8b",
        b"BZh",
        b"\xfd7zXZ\0",
        b"\x5d\0\0",
        b"\x28\xb5\x2f\xfd",
        b"\x04\x22\x4d\x18",
        b"ZF", // joblib's own frame, before 0.10
        b"\x78\x9c",
        b"\x78\xda",
    ];
    if compressed.iter().any(|magic| starts(magic)) || starts(b"\x78\x01") || starts(b"\x78\x5e") {
        return Some(Format::Compressed);
    }
    if starts(b"\x93NUMPY") {
        return Some(Format::Numpy);
    }
    if at(4, b"ORTM") {
        return Some(Format::OrtFlatbuffer);
    }
    if at(4, b"TFL3") {
        return Some(Format::TfLite);
    }
    if starts(b"GGUF") || starts(b"lmgg") || starts(b"tjgg") {
        return Some(Format::Gguf);
    }
    if starts(b"\x7fELF") || starts(b"MZ") || starts(b"#!") {
        return Some(Format::Executable);
    }
    if at(257, b"ustar") {
        return Some(Format::Tar);
    }
    if bytes.len() > 8 && at(8, b"{") && bytes[..8].iter().rev().take(4).all(|byte| *byte == 0) {
        return Some(Format::Safetensors);
    }
    is_pickle(bytes).then_some(Format::Pickle)
}

/// Which kind of zip: told by the names in it, which stand in clear at both ends.
fn archive(bytes: &[u8]) -> Format {
    let ends = [&bytes[..bytes.len().min(ARCHIVE_SEARCH)], &bytes[bytes.len().saturating_sub(ARCHIVE_SEARCH)..]];
    let holds = |name: &[u8]| ends.iter().any(|end| end.windows(name.len()).any(|window| window == name));
    if holds(b"data.pkl") || holds(b"constants.pkl") || holds(b"TORCHSCRIPT") {
        Format::PyTorch
    } else if holds(b"model.weights.h5") || holds(b"config.json") && holds(b"metadata.json") {
        Format::Keras
    } else if holds(b".pkl") || holds(b".pickle") || holds(b".joblib") {
        Format::Pickle
    } else if holds(b".npy") {
        Format::Numpy
    } else {
        Format::Zip
    }
}

/// Protocols 2 to 5 open with their number. Protocols 0 and 1 have no mark: they open with an opcode and end with the opcode STOP, a full stop.
fn is_pickle(bytes: &[u8]) -> bool {
    if let [0x80, 0..=5, ..] = bytes {
        return true;
    }
    let ends = bytes.trim_ascii_end().ends_with(b".");
    match bytes {
        // 0x28 is also how an ONNX file would begin that starts with its own version, so the next opcode is asked for too.
        [b'(', next, ..] => ends && b"dlitcSVIFNKMJLGUXTq(]})".contains(next),
        [first, ..] => ends && b"cSVIFNLGUTX]})KMJ".contains(first),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1 << 20;

    fn judged(bytes: &[u8]) -> Result<Verified, Refused> {
        Verified::from_bytes(Bytes::copy_from_slice(bytes), Digest::of(bytes), LIMIT)
    }

    fn zip_with(name: &str) -> Vec<u8> {
        let mut bytes = b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        bytes.extend_from_slice(&(name.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(name.as_bytes());
        bytes
    }

    #[test]
    fn formats_that_run_code_are_refused_with_the_safe_way() {
        let hdf5_behind_a_user_block = [&[0; 512][..], b"\x89HDF\r\n\x1a\n"].concat();
        let cases: [(&[u8], Format); 24] = [
            (b"cposix\nsystem\n(S'id'\ntR.", Format::Pickle),
            (b"(dp0\nS'a'\np1\nI1\ns.", Format::Pickle),
            (b"(lp0\n.", Format::Pickle),
            (b"}q\0X\x01\0\0\0aq\x01K\x01s.", Format::Pickle),
            (b"\x80\x02}q\0.", Format::Pickle),
            (b"\x80\x03}q\0.", Format::Pickle),
            (b"\x80\x04\x95\x0b\0\0\0\0\0\0\0}.", Format::Pickle),
            (b"\x80\x05\x95\x0b\0\0\0\0\0\0\0}.", Format::Pickle),
            (&zip_with("archive/data.pkl"), Format::PyTorch),
            (&zip_with("model.pkl"), Format::Pickle),
            (&zip_with("model.weights.h5"), Format::Keras),
            (&zip_with("arr_0.npy"), Format::Numpy),
            (&zip_with("readme"), Format::Zip),
            (b"\x89HDF\r\n\x1a\n\0\0", Format::Hdf5),
            (&hdf5_behind_a_user_block, Format::Hdf5),
            (b"\x1f\x8b\x08\0", Format::Compressed),
            (b"\x78\x9c\x03\0", Format::Compressed),
            (b"BZh9", Format::Compressed),
            (b"\x93NUMPY\x01\0", Format::Numpy),
            (b"\x18\0\0\0ORTM\0\0", Format::OrtFlatbuffer),
            (b"\x1c\0\0\0TFL3", Format::TfLite),
            (b"GGUF\x03\0\0\0", Format::Gguf),
            (b"\x7fELF\x02", Format::Executable),
            (b"\x10\0\0\0\0\0\0\0{\"a\":{}}", Format::Safetensors),
        ];
        for (bytes, format) in cases {
            match judged(bytes) {
                Err(Refused::Format(found)) => assert_eq!(found, format, "{bytes:?}"),
                other => panic!("{format:?} was not refused as such: {other:?}"),
            }
        }
    }

    #[test]
    fn the_bundled_model_is_none_of_them() {
        assert_eq!(recognise(include_bytes!("../../../policies/models/digits.onnx")), None);
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
