//! The messages, and what they mean as tensors.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use serde_json::{Map, Number, Value, json};

use crate::wire::oip::{DIMENSIONS_MAX, InferRequest, InferResponse, NAME_MAX, RequestedOutput, classification, distinct, shared_memory};
use crate::wire::shape::Shape;
use crate::wire::tensor::{Datatype, Port, Tensor, elements, holds};

/// Asks whether the server lives.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ServerLiveRequest {}

/// Whether the server lives.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ServerLiveResponse {
    /// It does.
    #[prost(bool, tag = "1")]
    pub live: bool,
}

/// Asks whether the server is ready.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ServerReadyRequest {}

/// Whether the server is ready.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ServerReadyResponse {
    /// It is.
    #[prost(bool, tag = "1")]
    pub ready: bool,
}

/// Asks whether a model is ready.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelReadyRequest {
    /// The model.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its version; empty for any.
    #[prost(string, tag = "2")]
    pub version: String,
}

/// Whether a model is ready.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelReadyResponse {
    /// It is.
    #[prost(bool, tag = "1")]
    pub ready: bool,
}

/// Asks what the server is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ServerMetadataRequest {}

/// What the server is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ServerMetadataResponse {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its version.
    #[prost(string, tag = "2")]
    pub version: String,
    /// The protocol's extensions that it serves.
    #[prost(string, repeated, tag = "3")]
    pub extensions: Vec<String>,
}

/// Asks what a model is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelMetadataRequest {
    /// The model.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its version; empty for any.
    #[prost(string, tag = "2")]
    pub version: String,
}

/// What a model is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelMetadataResponse {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its versions.
    #[prost(string, repeated, tag = "2")]
    pub versions: Vec<String>,
    /// What runs it.
    #[prost(string, tag = "3")]
    pub platform: String,
    /// Its inputs.
    #[prost(message, repeated, tag = "4")]
    pub inputs: Vec<TensorMetadata>,
    /// Its outputs.
    #[prost(message, repeated, tag = "5")]
    pub outputs: Vec<TensorMetadata>,
}

/// What a model says of one tensor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorMetadata {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its datatype.
    #[prost(string, tag = "2")]
    pub datatype: String,
    /// Its dimensions; -1 where one is free.
    #[prost(int64, repeated, tag = "3")]
    pub shape: Vec<i64>,
}

impl From<&Port> for TensorMetadata {
    fn from(port: &Port) -> Self {
        // A dimension past i64 cannot be said, and no model has one.
        let length = |length: &Option<u64>| length.and_then(|length| i64::try_from(length).ok()).unwrap_or(-1);
        Self { name: port.name.clone(), datatype: port.datatype.as_str().to_owned(), shape: port.shape.iter().map(length).collect() }
    }
}

/// Asks a model.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelInferRequest {
    /// The model.
    #[prost(string, tag = "1")]
    pub model_name: String,
    /// Its version; empty for any.
    #[prost(string, tag = "2")]
    pub model_version: String,
    /// The request's id.
    #[prost(string, tag = "3")]
    pub id: String,
    /// Request parameters.
    #[prost(btree_map = "string, message", tag = "4")]
    pub parameters: BTreeMap<String, InferParameter>,
    /// The input tensors.
    #[prost(message, repeated, tag = "5")]
    pub inputs: Vec<InferTensor>,
    /// The outputs that are asked for; all of them where empty.
    #[prost(message, repeated, tag = "6")]
    pub outputs: Vec<InferRequestedOutputTensor>,
    /// The bytes of all inputs, in their order; or none, and each input has contents.
    #[prost(bytes = "bytes", repeated, tag = "7")]
    pub raw_input_contents: Vec<Bytes>,
}

/// A model's answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelInferResponse {
    /// The model.
    #[prost(string, tag = "1")]
    pub model_name: String,
    /// The version that answered.
    #[prost(string, tag = "2")]
    pub model_version: String,
    /// The request's id.
    #[prost(string, tag = "3")]
    pub id: String,
    /// Answer parameters.
    #[prost(btree_map = "string, message", tag = "4")]
    pub parameters: BTreeMap<String, InferParameter>,
    /// The output tensors.
    #[prost(message, repeated, tag = "5")]
    pub outputs: Vec<InferTensor>,
    /// The bytes of all outputs, in their order; or none, and each output has contents.
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub raw_output_contents: Vec<Bytes>,
}

/// `InferInputTensor` and `InferOutputTensor`, which have the same fields.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InferTensor {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its datatype.
    #[prost(string, tag = "2")]
    pub datatype: String,
    /// Its dimensions.
    #[prost(int64, repeated, tag = "3")]
    pub shape: Vec<i64>,
    /// Tensor parameters.
    #[prost(btree_map = "string, message", tag = "4")]
    pub parameters: BTreeMap<String, InferParameter>,
    /// Its elements, where they are not raw.
    #[prost(message, optional, boxed, tag = "5")]
    pub contents: Option<Box<InferTensorContents>>,
}

/// An output that is asked for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InferRequestedOutputTensor {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Output parameters.
    #[prost(btree_map = "string, message", tag = "2")]
    pub parameters: BTreeMap<String, InferParameter>,
}

/// A parameter's value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InferParameter {
    /// The value.
    #[prost(oneof = "ParameterChoice", tags = "1, 2, 3, 4, 5")]
    pub parameter_choice: Option<ParameterChoice>,
}

/// What a parameter's value may be.
#[derive(Clone, PartialEq, prost::Oneof)]
#[expect(missing_docs, reason = "the names are the protocol's")]
pub enum ParameterChoice {
    #[prost(bool, tag = "1")]
    Bool(bool),
    #[prost(int64, tag = "2")]
    Int64(i64),
    #[prost(string, tag = "3")]
    String(String),
    #[prost(double, tag = "4")]
    Double(f64),
    #[prost(uint64, tag = "5")]
    Uint64(u64),
}

/// Elements by their type; exactly the list of the tensor's datatype is filled.
#[derive(Clone, PartialEq, prost::Message)]
#[expect(missing_docs, reason = "the names are the protocol's")]
pub struct InferTensorContents {
    #[prost(bool, repeated, tag = "1")]
    pub bool_contents: Vec<bool>,
    #[prost(int32, repeated, tag = "2")]
    pub int_contents: Vec<i32>,
    #[prost(int64, repeated, tag = "3")]
    pub int64_contents: Vec<i64>,
    #[prost(uint32, repeated, tag = "4")]
    pub uint_contents: Vec<u32>,
    #[prost(uint64, repeated, tag = "5")]
    pub uint64_contents: Vec<u64>,
    #[prost(float, repeated, tag = "6")]
    pub fp32_contents: Vec<f32>,
    #[prost(double, repeated, tag = "7")]
    pub fp64_contents: Vec<f64>,
    #[prost(bytes = "bytes", repeated, tag = "8")]
    pub bytes_contents: Vec<Bytes>,
}

impl ModelInferRequest {
    /// What it asks for. Raw contents stay slices of the message.
    ///
    /// # Errors
    /// The first field that does not hold to its shape.
    pub fn to_request(&self) -> Result<InferRequest, Shape> {
        if self.inputs.is_empty() {
            return Err(Shape::new("/inputs", "range", "must have at least one input"));
        }
        let mut outputs = Vec::with_capacity(self.outputs.len());
        for (at, output) in self.outputs.iter().enumerate() {
            let place = format!("/outputs/{at}");
            named(&output.name, &place)?;
            shared_memory(output.parameters.keys(), &place)?;
            classification(output.parameters.keys(), &place)?;
            outputs.push(RequestedOutput { name: output.name.clone(), ..RequestedOutput::default() });
        }
        distinct(outputs.iter().map(|output| output.name.as_str()), "outputs")?;
        Ok(InferRequest {
            id: id(&self.id)?,
            parameters: parameters(&self.parameters)?,
            inputs: tensors(&self.inputs, &self.raw_input_contents, "inputs", "raw_input_contents")?,
            outputs,
            ..InferRequest::default()
        })
    }
}

impl ModelInferResponse {
    /// What it answers, as an upstream sends it.
    ///
    /// # Errors
    /// The first field that does not hold to its shape.
    pub fn to_response(&self) -> Result<InferResponse, Shape> {
        Ok(InferResponse {
            model_name: self.model_name.clone(),
            model_version: self.model_version.clone(),
            id: id(&self.id)?,
            outputs: tensors(&self.outputs, &self.raw_output_contents, "outputs", "raw_output_contents")?,
        })
    }
}

impl ModelMetadataResponse {
    /// The same, as HTTP has it: the body of `GET /v2/models/{m}`.
    #[must_use]
    pub fn to_json(&self) -> Bytes {
        let ports = |ports: &[TensorMetadata]| -> Vec<Value> {
            ports.iter().map(|port| json!({ "name": port.name, "datatype": port.datatype, "shape": port.shape })).collect()
        };
        let (inputs, outputs) = (ports(&self.inputs), ports(&self.outputs));
        let document =
            json!({ "name": self.name, "versions": self.versions, "platform": self.platform, "inputs": inputs, "outputs": outputs });
        Bytes::from(document.to_string())
    }
}

impl From<&InferRequest> for ModelInferRequest {
    /// Always with raw contents; the parameters that belong to the binary tensor extension of HTTP stay there. The model is not named yet.
    fn from(request: &InferRequest) -> Self {
        let input = |(at, tensor): (usize, &Tensor)| InferTensor {
            parameters: request.input_parameters.get(at).map(told).unwrap_or_default(),
            ..InferTensor::of(tensor)
        };
        let output =
            |output: &RequestedOutput| InferRequestedOutputTensor { name: output.name.clone(), parameters: told(&output.parameters) };
        Self {
            id: request.id.clone().unwrap_or_default(),
            parameters: told(&request.parameters),
            inputs: request.inputs.iter().enumerate().map(input).collect(),
            outputs: request.outputs.iter().map(output).collect(),
            raw_input_contents: request.inputs.iter().map(|tensor| tensor.data.clone()).collect(),
            ..Self::default()
        }
    }
}

impl InferTensor {
    /// What a tensor is, without its elements.
    fn of(tensor: &Tensor) -> Self {
        Self {
            name: tensor.name.clone(),
            datatype: tensor.datatype.as_str().to_owned(),
            // A tensor in memory has no dimension past i64, but for one beside a zero.
            shape: tensor.shape.iter().map(|length| i64::try_from(*length).unwrap_or(i64::MAX)).collect(),
            ..Self::default()
        }
    }
}

/// Parameters that came as JSON, which are strings, numbers and booleans.
fn told(parameters: &Map<String, Value>) -> BTreeMap<String, InferParameter> {
    const OF_THE_EXTENSION: [&str; 3] = ["binary_data", "binary_data_size", "binary_data_output"];
    let choice = |value: &Value| match value {
        Value::Bool(value) => Some(ParameterChoice::Bool(*value)),
        Value::String(text) => Some(ParameterChoice::String(text.clone())),
        Value::Number(number) => Some(match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => ParameterChoice::Int64(number),
            (None, Some(number)) => ParameterChoice::Uint64(number),
            (None, None) => ParameterChoice::Double(number.as_f64()?),
        }),
        _ => None,
    };
    let sent = parameters.iter().filter(|(key, _)| !OF_THE_EXTENSION.contains(&key.as_str()));
    sent.filter_map(|(key, value)| Some((key.clone(), InferParameter { parameter_choice: Some(choice(value)?) }))).collect()
}

impl From<&InferResponse> for ModelInferResponse {
    /// Always with raw contents, as Triton answers.
    fn from(response: &InferResponse) -> Self {
        Self {
            model_name: response.model_name.clone(),
            model_version: response.model_version.clone(),
            id: response.id.clone().unwrap_or_default(),
            parameters: BTreeMap::new(),
            outputs: response.outputs.iter().map(InferTensor::of).collect(),
            raw_output_contents: response.outputs.iter().map(|tensor| tensor.data.clone()).collect(),
        }
    }
}

fn tensors(list: &[InferTensor], raw: &[Bytes], key: &str, raw_key: &str) -> Result<Vec<Tensor>, Shape> {
    if !raw.is_empty() && raw.len() != list.len() {
        return Err(Shape::at_member(raw_key, "range", "must have one entry for each tensor"));
    }
    let mut tensors = Vec::with_capacity(list.len());
    for (at, tensor) in list.iter().enumerate() {
        tensors.push(self::tensor(tensor, raw.get(at)).map_err(|shape| shape.under(&format!("/{key}/{at}")))?);
    }
    distinct(tensors.iter().map(|tensor| tensor.name.as_str()), key)?;
    Ok(tensors)
}

fn tensor(tensor: &InferTensor, raw: Option<&Bytes>) -> Result<Tensor, Shape> {
    named(&tensor.name, "")?;
    shared_memory(tensor.parameters.keys(), "")?;
    let datatype: Datatype = tensor.datatype.parse().map_err(|_| Shape::new("/datatype", "datatype", "is no datatype of the protocol"))?;
    if tensor.shape.len() > DIMENSIONS_MAX {
        return Err(Shape::new("/shape", "range", "has too many dimensions"));
    }
    let length = |length: &i64| u64::try_from(*length).map_err(|_| Shape::new("/shape", "range", "must not be negative"));
    let shape: Vec<u64> = tensor.shape.iter().map(length).collect::<Result<_, _>>()?;
    let count = elements(&shape).ok_or_else(|| Shape::new("/shape", "range", "has too many elements"))?;
    let data = match (raw, tensor.contents.as_deref()) {
        (Some(_), Some(contents)) if *contents != InferTensorContents::default() => {
            return Err(Shape::new("/contents", "binary", "a tensor has either contents or raw contents"));
        }
        (Some(raw), _) => raw.clone(),
        (None, contents) => match contents {
            Some(contents) => from_contents(datatype, contents)?,
            None => Bytes::new(),
        },
    };
    if !holds(datatype, count, &data) {
        return Err(Shape::new("", "elements", "the tensor does not hold the elements of its shape"));
    }
    Ok(Tensor { name: tensor.name.clone(), datatype, shape, data })
}

/// The list of the datatype, narrowed where it fits; every other list must be empty.
fn from_contents(datatype: Datatype, contents: &InferTensorContents) -> Result<Bytes, Shape> {
    let InferTensorContents {
        bool_contents: bools,
        int_contents: ints,
        int64_contents: int64s,
        uint_contents: uints,
        uint64_contents: uint64s,
        fp32_contents: fp32s,
        fp64_contents: fp64s,
        bytes_contents: strings,
    } = contents;
    let lengths = [bools.len(), ints.len(), int64s.len(), uints.len(), uint64s.len(), fp32s.len(), fp64s.len(), strings.len()];
    let (list, data) = match datatype {
        Datatype::Bool => (0, pack(bools, |value| Some([u8::from(*value)]))),
        Datatype::Int8 => (1, pack(ints, |value| i8::try_from(*value).ok().map(i8::to_le_bytes))),
        Datatype::Int16 => (1, pack(ints, |value| i16::try_from(*value).ok().map(i16::to_le_bytes))),
        Datatype::Int32 => (1, pack(ints, |value| Some(value.to_le_bytes()))),
        Datatype::Int64 => (2, pack(int64s, |value| Some(value.to_le_bytes()))),
        Datatype::Uint8 => (3, pack(uints, |value| u8::try_from(*value).ok().map(u8::to_le_bytes))),
        Datatype::Uint16 => (3, pack(uints, |value| u16::try_from(*value).ok().map(u16::to_le_bytes))),
        Datatype::Uint32 => (3, pack(uints, |value| Some(value.to_le_bytes()))),
        Datatype::Uint64 => (4, pack(uint64s, |value| Some(value.to_le_bytes()))),
        Datatype::Fp32 => (5, pack(fp32s, |value| Some(value.to_le_bytes()))),
        Datatype::Fp64 => (6, pack(fp64s, |value| Some(value.to_le_bytes()))),
        Datatype::Fp16 | Datatype::Bf16 => return Err(Shape::new("/contents", "datatype", "this datatype travels in raw contents only")),
        Datatype::Bytes => {
            let mut out = BytesMut::with_capacity(strings.iter().map(|element| element.len() + 4).sum());
            let fits = strings.iter().all(|element| {
                u32::try_from(element.len()).is_ok_and(|length| {
                    out.extend_from_slice(&length.to_le_bytes());
                    out.extend_from_slice(element);
                    true
                })
            });
            (7, fits.then(|| out.freeze()))
        }
    };
    if lengths.iter().enumerate().any(|(at, length)| at != list && *length > 0) {
        return Err(Shape::new("/contents", "datatype", "has elements of another datatype"));
    }
    data.ok_or_else(|| Shape::new("/contents", "datatype", "an element does not fit the datatype"))
}

fn pack<T, const N: usize>(values: &[T], write: impl Fn(&T) -> Option<[u8; N]>) -> Option<Bytes> {
    let mut out = BytesMut::with_capacity(values.len() * N);
    for value in values {
        out.extend_from_slice(&write(value)?);
    }
    Some(out.freeze())
}

fn named(name: &str, place: &str) -> Result<(), Shape> {
    match name.len() {
        1..=NAME_MAX => Ok(()),
        0 => Err(Shape::new(format!("{place}/name"), "required", "must be given")),
        _ => Err(Shape::new(format!("{place}/name"), "range", "is too long")),
    }
}

fn id(id: &str) -> Result<Option<String>, Shape> {
    if id.len() > NAME_MAX {
        return Err(Shape::new("/id", "range", "is too long"));
    }
    Ok((!id.is_empty()).then(|| id.to_owned()))
}

fn parameters(parameters: &BTreeMap<String, InferParameter>) -> Result<Map<String, Value>, Shape> {
    let value = |parameter: &InferParameter| match parameter.parameter_choice.as_ref()? {
        ParameterChoice::Bool(value) => Some(Value::from(*value)),
        ParameterChoice::Int64(value) => Some(Value::from(*value)),
        ParameterChoice::String(value) => Some(Value::from(value.as_str())),
        ParameterChoice::Double(value) => Number::from_f64(*value).map(Value::Number),
        ParameterChoice::Uint64(value) => Some(Value::from(*value)),
    };
    let wrong = || Shape::new("/parameters", "type", "a parameter has no value, or none that is finite");
    parameters.iter().map(|(key, parameter)| Ok((key.clone(), value(parameter).ok_or_else(wrong)?))).collect()
}
