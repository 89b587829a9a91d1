//! Why an ONNX file is not loaded, and what its maker can do about it.

use std::fmt;

/// Why a file is not loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is told in full by its text")]
pub enum Fault {
    NotOnnx(&'static str),
    UnknownField { message: &'static str, number: u64 },
    WrittenTwice { message: &'static str, number: u64 },
    ExternalData,
    External(&'static str),
    OutsideFolder(String),
    NotBeside(String),
    PastEnd { name: String, end: u64, size: u64 },
    MemoryAddress,
    Domain(String),
    SessionOptions,
    Sparse,
    Functions,
    Training,
    Devices,
    Locale,
    Segment,
    Past { what: &'static str, limit: u64 },
    NegativeDimension,
    DataLength,
    DataType(u64),
    NotABool,
    Port { name: String, why: &'static str },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOnnx(why) => write!(f, "it is not an ONNX file: {why}"),
            Self::UnknownField { message, number } => {
                write!(f, "{message} has a field {number} that ONNX does not know: a newer format, or rubbish behind the model")
            }
            Self::WrittenTwice { message, number } => {
                write!(f, "field {number} of {message} is written twice, and parsers differ on which one counts")
            }
            Self::ExternalData => f.write_str(
                "it has tensors outside of the file that are no initializers of its graph, or texts, or half of them in it. Save it as one \
                 file: onnx.save_model(model, path, save_as_external_data=False)",
            ),
            Self::External(what) => write!(f, "a tensor's data outside the file {what}"),
            Self::OutsideFolder(name) => write!(
                f,
                "a tensor's data are said to lie at {name:?}, which is no plain path below the model's folder: relative, with `/`, without `..`"
            ),
            Self::NotBeside(name) => write!(
                f,
                "a tensor's data lie in {name:?}, which is not among the files that were verified with the model. Sign its folder with that \
                 file in it (portcullis model sign), name the file under `sha256` of an encoder's folder, or save the model as one file: \
                 onnx.save_model(model, path, save_as_external_data=False)"
            ),
            Self::PastEnd { name, end, size } => {
                write!(f, "a tensor's data are said to lie in {name:?} up to byte {end}, and that file has {size}")
            }
            Self::MemoryAddress => f.write_str("a tensor names an address in memory as its data: this is an attack on ONNX Runtime"),
            Self::Domain(domain) => write!(
                f,
                "it needs operators of the domain {domain:?}; only ai.onnx and ai.onnx.ml are loaded. Export it without custom \
                 or engine-specific operators (an optimised file often has them: use the one it was made from)"
            ),
            Self::SessionOptions => f.write_str("its metadata sets options of the engine (ort_config). Save it without them"),
            Self::Sparse => f.write_str("it has sparse tensors, which take any amount of memory when they are loaded. Save them dense"),
            Self::Functions => f.write_str(
                "it has functions of its own, which expand to any size when they are loaded. Save it with them inlined: \
                 onnx.inliner.inline_local_functions",
            ),
            Self::Training => f.write_str("it has training graphs. Export it for inference"),
            Self::Devices => f.write_str("it is laid out for several devices. Export it for one"),
            Self::Locale => f.write_str(
                "its StringNormalizer goes by a locale of the machine, `en_US` where it names none, which a walled worker may not read and another \
                 machine may not have. Export it with locale=\"C\"",
            ),
            Self::Segment => f.write_str("a tensor is stored in segments, which ONNX Runtime does not read"),
            Self::Past { what, limit } => write!(f, "it has {what} past the limit of {limit}"),
            Self::NegativeDimension => f.write_str("a dimension is negative. A free one has a name, or nothing"),
            Self::DataLength => f.write_str("a tensor has more or less data than its shape says"),
            Self::DataType(number) => write!(f, "a tensor has the element type {number}, which is not known"),
            Self::NotABool => f.write_str("a tensor of BOOL holds other bytes than 0 and 1"),
            Self::Port { name, why } => write!(f, "its input or output {name:?} {why}"),
        }
    }
}

impl std::error::Error for Fault {}
