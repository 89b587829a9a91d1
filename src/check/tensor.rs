//! Tensors against what the model says of its inputs, and against the ranges of the policy.
//!
//! Numbers are read where they lie: one pass over the bytes of a tensor, without a branch on its type for each element.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use half::{bf16, f16};

use crate::wire::oip::InferRequest;
use crate::wire::tensor::{Datatype, Port, Tensor, elements, holds};

/// Tensors that one request may carry where no contract says how many.
pub const MOST_TENSORS: usize = 256;

/// Dimensions that one tensor may have where no contract says how many.
pub const MOST_DIMENSIONS: usize = 16;

/// What a model takes and gives, as it says itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contract {
    /// Its inputs, all of which a request must carry.
    pub inputs: Vec<Port>,
    /// Inputs that a request may carry in their place, all of them; none where it may not.
    pub instead: Vec<Port>,
    /// Its outputs, of which a request may name some.
    pub outputs: Vec<Port>,
    /// The most tokens of a text, where texts are what it takes.
    pub longest: Option<usize>,
    /// Whether the first dimensions of its inputs need not be of one length.
    pub apart: bool,
}

impl Contract {
    /// The inputs that a request with these tensors must carry.
    fn inputs_of(&self, sent: &[Tensor]) -> &[Port] {
        let other = self.instead.iter().any(|port| sent.first().is_some_and(|tensor| tensor.name == port.name));
        if other { &self.instead } else { &self.inputs }
    }

    /// Every input that a request may carry.
    pub fn every_input(&self) -> impl Iterator<Item = &Port> {
        self.inputs.iter().chain(&self.instead)
    }
}

/// What tensors are held against.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    pub(super) contract: Option<Contract>,
    /// The names that may be sent where there is no contract; all where it says none.
    pub(super) names: Option<BTreeSet<String>>,
    pub(super) max_batch: Option<u64>,
    /// The most rows of a request without a contract, where nothing else is said of its batch.
    pub(super) most_rows: Option<u64>,
    /// The longest free dimension after the batch.
    pub(super) max_length: Option<u64>,
    /// Inclusive bounds by tensor.
    pub(super) range: BTreeMap<String, (f64, f64)>,
    /// Tensors that may hold NaN and infinities.
    pub(super) nan: BTreeSet<String>,
    /// Whether all may.
    pub(super) any_nan: bool,
}

/// Which rule a tensor breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The model has no tensor of that name, or none of it may be sent; `check.tensor_name`.
    Name,
    /// A name stands twice; `check.tensor_twice`.
    Twice,
    /// An input of the model is not there; `check.tensor_missing`.
    Missing,
    /// More tensors than can be asked about; `check.tensors`.
    TooMany,
    /// Another element type than the model's; `check.datatype`.
    Datatype,
    /// Another number of dimensions, another length of one, or a length of 0; `check.shape`.
    Shape,
    /// The batch is not the same in all inputs, or empty; `check.batch`.
    Batch,
    /// The batch is longer than so many rows; `check.batch`.
    TooManyRows(u64),
    /// The bytes are not as many as type and shape say, or not what the type allows; `check.bytes`.
    Bytes,
    /// A number out of its range; `check.range`.
    Range,
    /// NaN or an infinity; `check.nan`.
    NotFinite,
}

/// A rule that a tensor breaks, and which tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The rule.
    pub broken: Broken,
    /// Where: `inputs` or `outputs`.
    pub list: &'static str,
    /// The tensor's place in that list; none where it is not there, or where the list as a whole is wrong.
    pub index: Option<usize>,
}

impl Broken {
    /// The static code.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Name => "check.tensor_name",
            Self::Twice => "check.tensor_twice",
            Self::Missing => "check.tensor_missing",
            Self::TooMany => "check.tensors",
            Self::Datatype => "check.datatype",
            Self::Shape => "check.shape",
            Self::Batch | Self::TooManyRows(_) => "check.batch",
            Self::Bytes => "check.bytes",
            Self::Range => "check.range",
            Self::NotFinite => "check.nan",
        }
    }
}

impl fmt::Display for Fault {
    /// The tensor's JSON Pointer.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "/{}/{index}", self.list),
            None => write!(f, "/{}", self.list),
        }
    }
}

impl Rules {
    /// Holds a request against the rules.
    pub(super) fn hold(&self, request: &InferRequest) -> Result<(), Fault> {
        if let Some(contract) = &self.contract {
            names(contract, request)?;
        } else if request.inputs.len() > MOST_TENSORS || request.outputs.len() > MOST_TENSORS {
            let list = if request.inputs.len() > MOST_TENSORS { "inputs" } else { "outputs" };
            return Err(Fault { broken: Broken::TooMany, list, index: None });
        } else if let Some(names) = &self.names
            && let Some(index) = request.inputs.iter().position(|tensor| !names.contains(&tensor.name))
        {
            return Err(at(index)(Broken::Name));
        }
        for index in 1..request.inputs.len() {
            if request.inputs[..index].iter().any(|other| other.name == request.inputs[index].name) {
                return Err(at(index)(Broken::Twice));
            }
        }
        if let Some(most) = self.most_rows.filter(|_| self.contract.is_none() && self.max_batch.is_none()) {
            // A tensor of numbers alone and in one dimension is one row.
            let row = matches!(&request.inputs[..], [only] if only.shape.len() == 1 && only.datatype != Datatype::Bytes);
            let longer = |tensor: &Tensor| tensor.shape.first().is_some_and(|rows| *rows > most);
            if let Some(index) = request.inputs.iter().position(longer).filter(|_| !row) {
                return Err(at(index)(Broken::TooManyRows(most)));
            }
        }
        let mut batch = None;
        for (index, tensor) in request.inputs.iter().enumerate() {
            self.shape(tensor, &mut batch).map_err(at(index))?;
            self.elements(tensor).map_err(at(index))?;
        }
        Ok(())
    }

    fn shape(&self, tensor: &Tensor, batch: &mut Option<u64>) -> Result<(), Broken> {
        let Some(contract) = &self.contract else {
            if tensor.shape.len() > MOST_DIMENSIONS {
                return Err(Broken::Shape);
            }
            let mut lengths = tensor.shape.iter().copied();
            let first = lengths.next();
            if self.max_length.is_some_and(|most| lengths.any(|length| length > most)) {
                return Err(Broken::Shape);
            }
            return self.batch(first.unwrap_or_default());
        };
        let port = contract.every_input().find(|port| port.name == tensor.name).ok_or(Broken::Name)?;
        if tensor.datatype != port.datatype {
            return Err(Broken::Datatype);
        }
        let fits = |(length, wanted): (&u64, &Option<u64>)| wanted.map_or(*length > 0, |wanted| wanted == *length);
        if tensor.shape.len() != port.shape.len() || !tensor.shape.iter().zip(&port.shape).all(fits) {
            return Err(Broken::Shape);
        }
        let free = |(length, wanted): (&u64, &Option<u64>)| wanted.is_none().then_some(*length);
        let mut lengths = tensor.shape.iter().zip(&port.shape).map(free);
        if let Some(length) = lengths.next().flatten() {
            let agrees = contract.apart || *batch.get_or_insert(length) == length;
            if !agrees {
                return Err(Broken::Batch);
            }
            self.batch(length)?;
        }
        if self.max_length.is_some_and(|most| lengths.flatten().any(|length| length > most)) {
            return Err(Broken::Shape);
        }
        Ok(())
    }

    /// Whether so many rows may be asked about at once.
    pub(super) fn batch(&self, rows: u64) -> Result<(), Broken> {
        self.max_batch.filter(|most| rows > *most).map_or(Ok(()), |most| Err(Broken::TooManyRows(most)))
    }

    fn elements(&self, tensor: &Tensor) -> Result<(), Broken> {
        let count = elements(&tensor.shape).ok_or(Broken::Shape)?;
        let (range, loose) = (self.range.get(&tensor.name), self.any_nan || self.nan.contains(&tensor.name));
        let data = &tensor.data[..];
        if !holds(tensor.datatype, count, data) {
            return Err(Broken::Bytes);
        }
        let (low, high) = range.copied().unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
        match tensor.datatype {
            // A bound is rounded to the tensor's own type: 0.1 in the policy is the 0.1 that a caller can send.
            Datatype::Fp32 => floats(data, low as f32, high as f32, f32::MAX, loose, f32::from_le_bytes),
            Datatype::Fp64 => floats(data, low, high, f64::MAX, loose, f64::from_le_bytes),
            Datatype::Fp16 => {
                let (low, high) = (f16::from_f64(low).to_f32(), f16::from_f64(high).to_f32());
                floats(data, low, high, f32::MAX, loose, |bytes| f16::from_le_bytes(bytes).to_f32())
            }
            Datatype::Bf16 => {
                let (low, high) = (bf16::from_f64(low).to_f32(), bf16::from_f64(high).to_f32());
                floats(data, low, high, f32::MAX, loose, |bytes| bf16::from_le_bytes(bytes).to_f32())
            }
            // A server that makes numbers of texts would take what no bound was held against.
            Datatype::Bytes if range.is_some() => Err(Broken::Datatype),
            Datatype::Bytes => Ok(()),
            _ if range.is_none() => Ok(()),
            datatype => {
                let within = integers(datatype, data, low.ceil() as i128, high.floor() as i128);
                if within { Ok(()) } else { Err(Broken::Range) }
            }
        }
    }
}

fn names(contract: &Contract, request: &InferRequest) -> Result<(), Fault> {
    let knows = |ports: &[Port], name: &str| ports.iter().any(|port| port.name == name);
    let inputs = contract.inputs_of(&request.inputs);
    for (index, tensor) in request.inputs.iter().enumerate() {
        if !knows(inputs, &tensor.name) {
            return Err(at(index)(Broken::Name));
        }
        // More inputs than the model has, all of known names, can only mean a name that stands twice.
        if index >= inputs.len() {
            return Err(at(index)(Broken::Twice));
        }
    }
    for (index, output) in request.outputs.iter().enumerate() {
        let fault = |broken| Fault { broken, list: "outputs", index: Some(index) };
        if !knows(&contract.outputs, &output.name) {
            return Err(fault(Broken::Name));
        }
        if index >= contract.outputs.len() || request.outputs[..index].iter().any(|other| other.name == output.name) {
            return Err(fault(Broken::Twice));
        }
    }
    if inputs.iter().any(|port| !request.inputs.iter().any(|tensor| tensor.name == port.name)) {
        return Err(Fault { broken: Broken::Missing, list: "inputs", index: None });
    }
    Ok(())
}

fn at(index: usize) -> impl Fn(Broken) -> Fault {
    move |broken| Fault { broken, list: "inputs", index: Some(index) }
}

/// A floating-point type that can be held between bounds.
trait Float: Copy + PartialOrd + std::ops::Neg<Output = Self> {}
impl Float for f32 {}
impl Float for f64 {}

fn floats<const W: usize, T: Float>(data: &[u8], low: T, high: T, max: T, loose: bool, read: impl Fn([u8; W]) -> T) -> Result<(), Broken> {
    let chunks = data.as_chunks::<W>().0;
    let finite = |value: T| value >= -max && value <= max;
    if loose {
        let within = chunks.iter().fold(true, |all, bytes| {
            let value = read(*bytes);
            all & (!finite(value) | ((value >= low) & (value <= high)))
        });
        return if within { Ok(()) } else { Err(Broken::Range) };
    }
    // NaN is within no bounds, so one comparison with each bound finds all there is; folded without a way out early, it is done on vectors.
    let (least, most) = (if low < -max { -max } else { low }, if high > max { max } else { high });
    let within = chunks.iter().fold(true, |all, bytes| {
        let value = read(*bytes);
        all & (value >= least) & (value <= most)
    });
    if within {
        return Ok(());
    }
    Err(if chunks.iter().all(|bytes| finite(read(*bytes))) { Broken::Range } else { Broken::NotFinite })
}

fn integers(datatype: Datatype, data: &[u8], low: i128, high: i128) -> bool {
    fn all<const W: usize>(data: &[u8], low: i128, high: i128, read: impl Fn([u8; W]) -> i128) -> bool {
        data.as_chunks::<W>().0.iter().all(|bytes| (low..=high).contains(&read(*bytes)))
    }
    match datatype {
        Datatype::Bool | Datatype::Uint8 => all(data, low, high, |bytes| u8::from_le_bytes(bytes).into()),
        Datatype::Uint16 => all(data, low, high, |bytes| u16::from_le_bytes(bytes).into()),
        Datatype::Uint32 => all(data, low, high, |bytes| u32::from_le_bytes(bytes).into()),
        Datatype::Uint64 => all(data, low, high, |bytes| u64::from_le_bytes(bytes).into()),
        Datatype::Int8 => all(data, low, high, |bytes| i8::from_le_bytes(bytes).into()),
        Datatype::Int16 => all(data, low, high, |bytes| i16::from_le_bytes(bytes).into()),
        Datatype::Int32 => all(data, low, high, |bytes| i32::from_le_bytes(bytes).into()),
        Datatype::Int64 => all(data, low, high, |bytes| i64::from_le_bytes(bytes).into()),
        // These are not whole numbers and are held elsewhere.
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64 | Datatype::Bytes => false,
    }
}

#[cfg(test)]
mod tests;
