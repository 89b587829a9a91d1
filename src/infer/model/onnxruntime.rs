//! The engine for ONNX files: one ONNX Runtime session.
//!
//! A session runs one call at a time (`run` takes it mutably, and ONNX Runtime is not thread-safe whatever it says). Each call brings its
//! own run options, by which it is stopped from outside. The flag is looked at between operators, so an operator that never ends keeps the
//! thread.
//!
//! Tensors of the protocol become tensors of the engine, and back: one copy each way.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use half::{bf16, f16};
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::{DynValue, Outlet, Shape, Tensor as OrtTensor, TensorElementType};

use super::engine::{Engine, Stop, shapes_agree};
use super::{Error, Refused, Runtime, Signature};
use crate::wire::tensor::{Datatype, Port, Tensor};

/// A session, and the file's signature, which it was found to agree with.
pub(super) struct OnnxRuntime {
    session: Session,
    signature: Signature,
    room: usize,
}

impl OnnxRuntime {
    /// Gives `bytes` to ONNX Runtime, and the files `beside` it that its tensors lie in: it opens none. `signature` is what was read in them;
    /// the outputs of a call may have `room` bytes together.
    pub(super) fn load<'f>(
        bytes: &[u8],
        beside: impl IntoIterator<Item = (&'f str, &'f [u8])>,
        signature: Signature,
        room: usize,
        runtime: &Runtime,
        stop: &Stop,
    ) -> Result<Self, Refused> {
        let mut builder = Session::builder(&runtime.environment().map_err(Refused::Runtime)?)
            .and_then(|builder| {
                Ok(builder
                    // The basic rewrites only: the extended ones have broken valid models, and the disabled level resolves external
                    // data against the working directory (which the walk over the file refuses; this is the second line).
                    .with_optimization_level(GraphOptimizationLevel::Level1)?
                    // A call is one thread's work; machines scale by models and calls, not by spinning pools.
                    .with_intra_threads(1)?
                    .with_inter_threads(1)?
                    .with_parallel_execution(false)?
                    .with_intra_op_spinning(false)?
                    .with_inter_op_spinning(false)?)
            })
            .map_err(|error| Refused::Engine(error.to_string()))?;
        for (name, file) in beside {
            let given = builder.with_external_initializer_file_in_memory(name, file.into());
            builder = given.map_err(|error| Refused::Engine(error.to_string()))?;
        }
        let canceler = builder.canceler();
        let cancel = move || drop(canceler.cancel());
        let session = stop.during(cancel, || builder.commit_from_memory(bytes)).map_err(|error| Refused::Engine(error.to_string()))?;
        if same(session.inputs(), &signature.inputs) && same(session.outputs(), &signature.outputs) {
            Ok(Self { session, signature, room })
        } else {
            Err(Refused::ReadDifferently)
        }
    }
}

impl OnnxRuntime {
    /// The outputs of a call may have so many bytes together, from here on.
    pub(super) fn hold_to(&mut self, room: usize) {
        self.room = room;
    }
}

/// Whether the engine reads the file as the walk over it did.
fn same(engine: &[Outlet], file: &[Port]) -> bool {
    let agree =
        |(outlet, port): (&Outlet, &Port)| outlet.name() == port.name && outlet.dtype().tensor_type() == Some(element(port.datatype));
    engine.len() == file.len() && engine.iter().zip(file).all(agree)
}

impl Engine for OnnxRuntime {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, inputs: &[Tensor], wanted: &[usize], stop: &Stop) -> Result<Vec<Tensor>, Error> {
        let Self { session, signature, room } = self;
        let failed = |error: ort::Error| Error::ModelFailed(error.message().into());
        // They outlive the outputs: ONNX Runtime gives the memory of an input back as that of an output where the graph has one tensor as
        // both, and `ort` lets go of inputs that are given to it once the session has run.
        let values = inputs.iter().map(into_engine).collect::<Result<Vec<_>, Error>>()?;
        let names = signature.inputs.iter().map(|port| Cow::Borrowed(port.name.as_str()));
        let lent: Vec<_> = names.zip(&values).map(|(name, value)| (name, SessionInputValue::from(value))).collect();
        let options = Arc::new(RunOptions::new().map_err(failed)?);
        let terminated = options.clone();
        // It fails on a null pointer only.
        let terminate = move || drop(terminated.terminate());
        let outputs = stop.during(terminate, || session.run_with_options(lent, &*options)).map_err(failed)?;
        let mut room = *room;
        let pick = |place: &usize| {
            let port = signature.outputs.get(*place).ok_or(Error::CallerAskedForOtherOutputs)?;
            let value = outputs.get(&port.name).ok_or(Error::ModelBrokeItsContract("an output is missing"))?;
            let tensor = from_engine(value, port, room)?;
            room = room.saturating_sub(tensor.data.len());
            Ok(tensor)
        };
        wanted.iter().map(pick).collect()
    }
}

/// The engine's name for a datatype.
fn element(datatype: Datatype) -> TensorElementType {
    match datatype {
        Datatype::Bool => TensorElementType::Bool,
        Datatype::Uint8 => TensorElementType::Uint8,
        Datatype::Uint16 => TensorElementType::Uint16,
        Datatype::Uint32 => TensorElementType::Uint32,
        Datatype::Uint64 => TensorElementType::Uint64,
        Datatype::Int8 => TensorElementType::Int8,
        Datatype::Int16 => TensorElementType::Int16,
        Datatype::Int32 => TensorElementType::Int32,
        Datatype::Int64 => TensorElementType::Int64,
        Datatype::Fp16 => TensorElementType::Float16,
        Datatype::Bf16 => TensorElementType::Bfloat16,
        Datatype::Fp32 => TensorElementType::Float32,
        Datatype::Fp64 => TensorElementType::Float64,
        Datatype::Bytes => TensorElementType::String,
    }
}

/// The engine's tensor. Only for one that [`fits`](super::engine::fits).
fn into_engine(tensor: &Tensor) -> Result<DynValue, Error> {
    let dimension = |length: &u64| i64::try_from(*length).map_err(|_| Error::CallerSentOtherInputs("a dimension is too long"));
    let shape = tensor.shape.iter().map(dimension).collect::<Result<Vec<_>, _>>()?;
    let data = &tensor.data;
    macro_rules! numbers {
        ($number:ty) => {{
            let (each, _) = data.as_chunks::<{ size_of::<$number>() }>();
            let numbers: Vec<$number> = each.iter().map(|bytes| <$number>::from_le_bytes(*bytes)).collect();
            OrtTensor::from_array((shape, numbers)).map(OrtTensor::into_dyn)
        }};
    }
    let value = match tensor.datatype {
        Datatype::Bool => OrtTensor::from_array((shape, data.iter().map(|byte| *byte != 0).collect::<Vec<_>>())).map(OrtTensor::into_dyn),
        Datatype::Uint8 => OrtTensor::from_array((shape, data.to_vec())).map(OrtTensor::into_dyn),
        Datatype::Uint16 => numbers!(u16),
        Datatype::Uint32 => numbers!(u32),
        Datatype::Uint64 => numbers!(u64),
        Datatype::Int8 => numbers!(i8),
        Datatype::Int16 => numbers!(i16),
        Datatype::Int32 => numbers!(i32),
        Datatype::Int64 => numbers!(i64),
        Datatype::Fp16 => numbers!(f16),
        Datatype::Bf16 => numbers!(bf16),
        Datatype::Fp32 => numbers!(f32),
        Datatype::Fp64 => numbers!(f64),
        Datatype::Bytes => {
            let strings = strings(data, tensor.elements())?;
            OrtTensor::from_string_array((shape, strings.as_slice())).map(OrtTensor::into_dyn)
        }
    };
    value.map_err(|error| Error::ModelFailed(error.message().into()))
}

/// The elements of `BYTES`: each follows its length. The engine's strings are UTF-8 and end at a NUL.
fn strings(mut data: &[u8], elements: Option<usize>) -> Result<Vec<String>, Error> {
    let mut strings = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk::<4>() {
        let (text, rest) = rest
            .split_at_checked(u32::from_le_bytes(*length) as usize)
            .ok_or(Error::CallerSentOtherInputs("a BYTES element is longer than the data"))?;
        let text = std::str::from_utf8(text).ok().filter(|text| !text.contains('\0'));
        strings.push(text.ok_or(Error::CallerSentOtherInputs("the model's strings are UTF-8 without NUL"))?.to_owned());
        data = rest;
    }
    if data.is_empty() && Some(strings.len()) == elements {
        Ok(strings)
    } else {
        Err(Error::CallerSentOtherInputs("an input has more or less data than its shape says"))
    }
}

/// The protocol's tensor, if the engine's is what `port` declares and has at most `room` bytes.
fn from_engine(value: &DynValue, port: &Port, room: usize) -> Result<Tensor, Error> {
    let broke = |why| Err(Error::ModelBrokeItsContract(why));
    let dtype = value.dtype();
    let (Some(kind), Some(shape)) = (dtype.tensor_type(), dtype.tensor_shape()) else {
        return broke("an output is not a tensor");
    };
    if kind != element(port.datatype) {
        return broke("an output is of another datatype than the model declares");
    }
    let Ok(dimensions) = shape.iter().map(|length| u64::try_from(*length)).collect::<Result<Vec<_>, _>>() else {
        return broke("an output has a negative dimension");
    };
    if !shapes_agree(&dimensions, &port.shape) {
        return broke("an output is of another shape than the model declares");
    }
    // Strings have four bytes of length each.
    let least = crate::wire::tensor::elements(&dimensions).and_then(|count| count.checked_mul(port.datatype.width().unwrap_or(4)));
    if least.is_none_or(|least| least > room) {
        return Err(Error::ModelAnsweredTooMuch);
    }
    let data = bytes_of(value, port.datatype, room)?;
    Ok(Tensor { name: port.name.clone(), datatype: port.datatype, shape: dimensions, data })
}

fn bytes_of(value: &DynValue, datatype: Datatype, room: usize) -> Result<Bytes, Error> {
    let failed = |error: ort::Error| Error::ModelFailed(error.message().into());
    macro_rules! numbers {
        ($number:ty) => {{
            let (_, numbers): (&Shape, &[$number]) = value.try_extract_tensor().map_err(failed)?;
            let mut bytes = Vec::with_capacity(size_of_val(numbers));
            numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
            bytes
        }};
    }
    let bytes = match datatype {
        Datatype::Bool => value.try_extract_tensor::<bool>().map_err(failed)?.1.iter().map(|bit| u8::from(*bit)).collect(),
        Datatype::Uint8 => value.try_extract_tensor::<u8>().map_err(failed)?.1.to_vec(),
        Datatype::Uint16 => numbers!(u16),
        Datatype::Uint32 => numbers!(u32),
        Datatype::Uint64 => numbers!(u64),
        Datatype::Int8 => numbers!(i8),
        Datatype::Int16 => numbers!(i16),
        Datatype::Int32 => numbers!(i32),
        Datatype::Int64 => numbers!(i64),
        Datatype::Fp16 => numbers!(f16),
        Datatype::Bf16 => numbers!(bf16),
        Datatype::Fp32 => numbers!(f32),
        Datatype::Fp64 => numbers!(f64),
        Datatype::Bytes => {
            let (_, strings) = value.try_extract_strings().map_err(failed)?;
            let mut bytes = Vec::new();
            for text in strings {
                if bytes.len() + 4 + text.len() > room {
                    return Err(Error::ModelAnsweredTooMuch);
                }
                let length = u32::try_from(text.len()).map_err(|_| Error::ModelAnsweredTooMuch)?;
                bytes.extend_from_slice(&length.to_le_bytes());
                bytes.extend_from_slice(text.as_bytes());
            }
            bytes
        }
    };
    Ok(bytes.into())
}
