//! What bytes are, told by themselves and never by a name.
//!
//! Two formats are loaded, ONNX and safetensors, each by a reader of its own. The others that are told here are refused with the reason
//! and the safe way. What it is *not*: a scanner whose silence means that bytes are harmless. Whatever is not known is for the reader of a
//! loaded format to judge, and that refuses everything which is not wholly its own.

use std::fmt;
use std::sync::LazyLock;

use aho_corasick::AhoCorasick;

mod pickle;

/// How much of either end of an archive is searched for the names in it, and of other files for words that tell a dialect. Bytes.
pub const SEARCHED: usize = 64 << 10;

/// A format that is told by content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the formats'")]
pub enum Format {
    Pickle,
    Joblib,
    PyTorch,
    TorchScript,
    JavaObjects,
    Zip,
    Keras,
    Hdf5,
    SavedModel,
    Compressed,
    SevenZip,
    Tar,
    Numpy,
    NumpyObjects,
    NumpyArchive,
    OrtFlatbuffer,
    TfLite,
    Gguf,
    Safetensors,
    Executable,
    LfsPointer,
}

/// What can go wrong with a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Danger {
    /// None by itself: it is only not what is loaded here.
    None,
    /// It may hold any of the others, and nothing is unpacked here.
    Hides,
    /// Loading it may run code that is in it.
    RunsCode,
}

impl Format {
    /// What its loaders do.
    #[must_use]
    pub fn danger(self) -> Danger {
        match self {
            Self::Safetensors | Self::Numpy | Self::TfLite | Self::Gguf | Self::LfsPointer => Danger::None,
            Self::Zip | Self::Compressed | Self::SevenZip | Self::Tar | Self::NumpyArchive | Self::OrtFlatbuffer => Danger::Hides,
            Self::Pickle
            | Self::Joblib
            | Self::PyTorch
            | Self::TorchScript
            | Self::JavaObjects
            | Self::Keras
            | Self::Hdf5
            | Self::SavedModel
            | Self::NumpyObjects
            | Self::Executable => Danger::RunsCode,
        }
    }

    /// One word, for programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Pickle => "pickle",
            Self::Joblib => "joblib",
            Self::PyTorch => "pytorch",
            Self::TorchScript => "torchscript",
            Self::JavaObjects => "java",
            Self::Zip => "zip",
            Self::Keras => "keras",
            Self::Hdf5 => "hdf5",
            Self::SavedModel => "savedmodel",
            Self::Compressed => "compressed",
            Self::SevenZip => "7z",
            Self::Tar => "tar",
            Self::Numpy => "npy",
            Self::NumpyObjects => "npy-objects",
            Self::NumpyArchive => "npz",
            Self::OrtFlatbuffer => "ort",
            Self::TfLite => "tflite",
            Self::Gguf => "gguf",
            Self::Safetensors => "safetensors",
            Self::Executable => "executable",
            Self::LfsPointer => "git-lfs",
        }
    }
}

impl fmt::Display for Format {
    /// What it is, why it is refused, and the safe way.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pickle => {
                "a Python pickle: loading one runs whatever code is in it. Export the model to ONNX (skl2onnx, torch.onnx.export) or save \
                 its tensors as safetensors"
            }
            Self::Joblib => "a joblib file, which is a Python pickle: loading one runs whatever code is in it. Export the model to ONNX (skl2onnx)",
            Self::PyTorch => {
                "a PyTorch checkpoint: it holds pickles, whose loading runs code. Save its tensors with safetensors.torch.save_file, or export \
                 the model with torch.onnx.export(…, external_data=False)"
            }
            Self::TorchScript => {
                "a TorchScript archive: it holds code, and pickles. Export the model to ONNX with torch.onnx.export(…, external_data=False)"
            }
            Self::JavaObjects => "serialized Java objects: loading them may run code. Export the model to ONNX",
            Self::Zip => "a zip archive: nothing is unpacked here, for it may hold pickles. Name the .onnx file itself",
            Self::Keras => "a Keras archive: its layers may carry code. Export the model to ONNX (tf2onnx, or model.export(format=\"onnx\"))",
            Self::Hdf5 => "HDF5, as Keras writes it: Lambda layers carry code. Export the model to ONNX (tf2onnx)",
            Self::SavedModel => "a TensorFlow SavedModel: its graph may read and write files. Convert it to ONNX (tf2onnx)",
            Self::Compressed => {
                "compressed (joblib writes pickles so): nothing is unpacked here. Export the model to ONNX and name the .onnx file itself"
            }
            Self::SevenZip => "a 7z or RAR archive: nothing is unpacked here. Name the .onnx file itself",
            Self::Tar => "a tar archive: nothing is unpacked here. Name the .onnx file itself",
            Self::Numpy => "a numpy array, and no model. Export the model to ONNX",
            Self::NumpyObjects => "a numpy array of Python objects: loading it unpickles them, which runs code. Save it with a numeric dtype",
            Self::NumpyArchive => {
                "an archive of numpy arrays, which may hold pickled objects: nothing is unpacked here. Save its tensors as safetensors"
            }
            Self::OrtFlatbuffer => {
                "an .ort file: ONNX Runtime's own flatbuffer, whose graph cannot be checked before it is loaded. Use the .onnx file it was made from"
            }
            Self::TfLite => "a TensorFlow Lite flatbuffer. Convert the model to ONNX (tf2onnx --tflite)",
            Self::Gguf => "GGUF or GGML: such models run behind an upstream, not in this process",
            Self::Safetensors => "safetensors, which is weights without a graph: [backend.onnx] needs an .onnx file",
            Self::Executable => "a program or a shared library, and no model",
            Self::LfsPointer => "a pointer of git-lfs, in whose place the file was not fetched: run `git lfs pull`",
        })
    }
}

/// The format of `bytes`, if it is one that is told by its first bytes. The whole file is needed: some tell themselves at their end.
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
    const COMPRESSED: [&[u8]; 12] = [
        b"\x1f\x8b",
        b"BZh",
        b"\xfd7zXZ\0",
        b"\x5d\0\0",
        b"\x28\xb5\x2f\xfd",
        b"\x04\x22\x4d\x18",
        b"ZF", // joblib's own frame, before 0.10
        b"\x78\x9c",
        b"\x78\xda",
        b"\x78\x01",
        b"\x78\x5e",
        b"\xff\x06\0\0sNaPpY",
    ];
    if COMPRESSED.iter().any(|magic| starts(magic)) {
        return Some(Format::Compressed);
    }
    if starts(b"7z\xbc\xaf\x27\x1c") || starts(b"Rar!\x1a\x07") {
        return Some(Format::SevenZip);
    }
    if starts(b"\x93NUMPY") {
        return Some(if has_objects(bytes) { Format::NumpyObjects } else { Format::Numpy });
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
    if starts(b"\x7fELF") || starts(b"MZ") || starts(b"#!") || starts(b"\xcf\xfa\xed\xfe") {
        return Some(Format::Executable);
    }
    if starts(b"\xac\xed\0\x05") {
        return Some(Format::JavaObjects);
    }
    if starts(b"version https://git-lfs.github.com/spec/") {
        return Some(Format::LfsPointer);
    }
    if is_tar(bytes) {
        return Some(Format::Tar);
    }
    if is_saved_model(bytes) {
        return Some(Format::SavedModel);
    }
    if bytes.len() > 8 && at(8, b"{") && bytes[..8].iter().rev().take(4).all(|byte| *byte == 0) {
        return Some(Format::Safetensors);
    }
    pickle::is_pickle(bytes).then(|| pickled(bytes))
}

/// Whose pickle it is.
fn pickled(bytes: &[u8]) -> Format {
    // PyTorch before 1.6 opens with its magic number, 0x1950a86a20f9469cfc6c, pickled by itself.
    if bytes.get(2..).is_some_and(|rest| rest.starts_with(b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19")) {
        return Format::PyTorch;
    }
    let start = &bytes[..bytes.len().min(SEARCHED)];
    if holds(start, b"joblib.numpy_pickle") { Format::Joblib } else { Format::Pickle }
}

fn holds(bytes: &[u8], word: &[u8]) -> bool {
    memchr::memmem::find(bytes, word).is_some()
}

/// Which kind of zip: told by the names in it, which stand in clear at both ends.
fn archive(bytes: &[u8]) -> Format {
    let ends = [&bytes[..bytes.len().min(SEARCHED)], &bytes[bytes.len().saturating_sub(SEARCHED)..]];
    let holds = |name: &[u8]| ends.iter().any(|end| holds(end, name));
    if holds(b"constants.pkl") || holds(b"TORCHSCRIPT") {
        Format::TorchScript
    } else if holds(b"data.pkl") {
        Format::PyTorch
    } else if holds(b"model.weights.h5") || holds(b"config.json") && holds(b"metadata.json") {
        Format::Keras
    } else if holds(b".pkl") || holds(b".pickle") {
        Format::Pickle
    } else if holds(b".joblib") {
        Format::Joblib
    } else if holds(b".npy") {
        // Arrays that are stored and not deflated show their headers.
        if ends.iter().any(|end| has_objects(end)) { Format::NumpyObjects } else { Format::NumpyArchive }
    } else {
        Format::Zip
    }
}

/// Whether a header of a numpy array among `bytes` names the type of Python objects: a dtype of kind `O`, alone or in a record.
fn has_objects(bytes: &[u8]) -> bool {
    static OBJECTS: LazyLock<AhoCorasick> = LazyLock::new(|| {
        #[expect(clippy::expect_used, reason = "the words are constants, and a test builds it")]
        AhoCorasick::new(["'|O", "'O'", "\"|O", "'O8'", "'<O", "'>O", "'=O", "object"]).expect("eight words can be built")
    });
    array_headers(bytes).any(|header| OBJECTS.is_match(header))
}

/// The headers of numpy arrays among `bytes`, of which no byte is in two: where another one begins, what is left of the one before it is read as that one's.
fn array_headers(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    /// Longer than any header that numpy reads without being told to trust it.
    const HEADER: usize = 10_000;
    let mut magics = memchr::memmem::find_iter(bytes, b"\x93NUMPY").peekable();
    std::iter::from_fn(move || {
        let (at, next) = (magics.next()?, magics.peek());
        let header = &bytes[at..next.map_or(bytes.len(), |next| *next).min(at + HEADER)];
        let end = memchr::memchr(b'\n', &header[8.min(header.len())..]).map_or(header.len(), |end| end + 8);
        Some(&header[..end.min(header.len())])
    })
}

/// The magic of POSIX and GNU, or the checksum of the header, which tars of before 1988 have too.
fn is_tar(bytes: &[u8]) -> bool {
    let Some(header) = bytes.get(..512) else { return false };
    if header[257..].starts_with(b"ustar") {
        return true;
    }
    let octal: Vec<u8> = header[148..156].iter().copied().filter(|byte| !matches!(byte, b' ' | 0)).collect();
    let named = std::str::from_utf8(&octal).ok().filter(|text| !text.is_empty()).and_then(|text| u32::from_str_radix(text, 8).ok());
    // The sum counts its own field as spaces.
    let sum: u32 = header.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
    named == Some(sum) && header[0] != 0
}

/// `saved_model.pb`: schema version 1, then a graph whose first field is a message. An ONNX file of IR version 1 goes on with its
/// producer's name, which does not begin with a line feed.
fn is_saved_model(bytes: &[u8]) -> bool {
    let Some(rest) = bytes.strip_prefix(b"\x08\x01\x12") else { return false };
    let length = rest.iter().take(10).take_while(|byte| **byte & 0x80 != 0).count() + 1;
    rest.get(length) == Some(&0x0a)
}

#[cfg(test)]
mod tests;
