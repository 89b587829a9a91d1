//! From JSON, and bytes behind it, to tensors.

use std::collections::HashSet;

use bytes::{Bytes, BytesMut};
use serde_json::{Map, Value};

use super::{Fault, InferRequest, InferResponse, RequestedOutput};
use crate::wire::json::{self, Limits};
use crate::wire::shape::Shape;
use crate::wire::tensor::{Datatype, Tensor, elements, holds};

/// The most tensors in one request or answer.
pub const TENSORS_MAX: usize = 256;

/// The most dimensions of a tensor; ONNX Runtime's own kernels know no more than eight.
pub const DIMENSIONS_MAX: usize = 32;

/// The longest name of a tensor and the longest id, in bytes.
pub const NAME_MAX: usize = 512;

pub(super) fn split(header_length: usize, body: &Bytes, limits: &Limits) -> Result<(Value, Bytes), Fault> {
    if header_length > body.len() {
        return Err(Shape::new("", "binary", "the JSON is told to be longer than the body").into());
    }
    let mut tail = body.clone();
    let head = tail.split_to(header_length);
    Ok((json::parse(&head, limits).map_err(Fault::Json)?, tail))
}

pub(super) fn request(document: &Value, tail: Option<Bytes>) -> Result<InferRequest, Shape> {
    let members = object(document, "")?;
    Shape::look_alike(members, &["id", "inputs", "outputs", "parameters"])?;
    let parameters = parameters(members, "")?;
    let (inputs, input_parameters) = tensors(members, "inputs", tail)?;
    if inputs.is_empty() {
        return Err(Shape::new("/inputs", "range", "must have at least one input"));
    }
    let mut outputs = Vec::new();
    for (at, output) in list(members, "outputs")?.unwrap_or_default().iter().enumerate() {
        let place = format!("/outputs/{at}");
        let output = object(output, &place)?;
        let own = self::parameters(output, &place)?;
        shared_memory(own.keys(), &place)?;
        classification(own.keys(), &place)?;
        outputs.push(RequestedOutput { name: name(output, &place)?, binary: flag(&own, "binary_data", &place)?, parameters: own });
    }
    distinct(outputs.iter().map(|output| output.name.as_str()), "outputs")?;
    Ok(InferRequest {
        id: id(members)?,
        binary_output: flag(&parameters, "binary_data_output", "")?.unwrap_or(false),
        parameters,
        inputs,
        input_parameters,
        outputs,
    })
}

pub(super) fn response(document: &Value, tail: Option<Bytes>) -> Result<InferResponse, Shape> {
    let members = object(document, "")?;
    let (outputs, _) = tensors(members, "outputs", tail)?;
    let model_name = text(members, "model_name", "")?.ok_or_else(|| Shape::new("/model_name", "required", "must be given"))?;
    Ok(InferResponse {
        model_name: model_name.to_owned(),
        model_version: text(members, "model_version", "")?.unwrap_or_default().to_owned(),
        id: id(members)?,
        outputs,
    })
}

/// Refuses names that stand twice.
pub(in crate::wire) fn distinct<'n>(names: impl Iterator<Item = &'n str>, list: &str) -> Result<(), Shape> {
    let mut seen = HashSet::new();
    for (at, name) in names.enumerate() {
        if !seen.insert(name) {
            return Err(Shape::new(format!("/{list}/{at}/name"), "duplicate", "the name stands twice"));
        }
    }
    Ok(())
}

/// Refuses parameters that name memory of the server.
pub(in crate::wire) fn shared_memory<'k>(mut keys: impl Iterator<Item = &'k String>, place: &str) -> Result<(), Shape> {
    match keys.any(|key| key.starts_with("shared_memory")) {
        true => Err(Shape::new(format!("{place}/parameters"), "shared_memory", "shared memory is not served")),
        false => Ok(()),
    }
}

/// Refuses outputs as classes (Triton's classification extension): scores in texts would go around the shape of the answer.
pub(in crate::wire) fn classification<'k>(mut keys: impl Iterator<Item = &'k String>, place: &str) -> Result<(), Shape> {
    match keys.any(|key| key == "classification") {
        true => Err(Shape::new(format!("{place}/parameters"), "classification", "the classification extension is not served")),
        false => Ok(()),
    }
}

/// The tensors of a list, and the parameters of each.
type Listed = (Vec<Tensor>, Vec<Map<String, Value>>);

fn tensors(members: &Map<String, Value>, key: &str, mut tail: Option<Bytes>) -> Result<Listed, Shape> {
    let values = list(members, key)?.ok_or_else(|| Shape::at_member(key, "required", "must be given"))?;
    let (mut tensors, mut parameters) = (Vec::with_capacity(values.len()), Vec::with_capacity(values.len()));
    for (at, value) in values.iter().enumerate() {
        let (tensor, own) = tensor(value, tail.as_mut()).map_err(|shape| shape.under(&format!("/{key}/{at}")))?;
        tensors.push(tensor);
        parameters.push(own);
    }
    distinct(tensors.iter().map(|tensor| tensor.name.as_str()), key)?;
    match tail {
        Some(tail) if !tail.is_empty() => Err(Shape::at_member(key, "binary", "bytes follow the last binary tensor")),
        _ => Ok((tensors, parameters)),
    }
}

fn tensor(value: &Value, tail: Option<&mut Bytes>) -> Result<(Tensor, Map<String, Value>), Shape> {
    let members = object(value, "")?;
    Shape::look_alike(members, &["data", "datatype", "name", "parameters", "shape"])?;
    let name = name(members, "")?;
    let datatype = text(members, "datatype", "")?.ok_or_else(|| Shape::new("/datatype", "required", "must be given"))?;
    let datatype: Datatype = datatype.parse().map_err(|_| Shape::new("/datatype", "datatype", "is no datatype of the protocol"))?;
    let shape = shape(members)?;
    let count = elements(&shape).ok_or_else(|| Shape::new("/shape", "range", "has too many elements"))?;
    let parameters = parameters(members, "")?;
    shared_memory(parameters.keys(), "")?;
    let given = members.get("data");
    let data = match (parameters.get("binary_data_size"), given) {
        (Some(_), Some(_)) => return Err(Shape::new("/data", "binary", "a tensor has either data or binary data")),
        (Some(size), None) => {
            let place = "/parameters/binary_data_size";
            let tail = tail.ok_or_else(|| Shape::new(place, "binary", "binary data needs Inference-Header-Content-Length"))?;
            let size = size.as_u64().and_then(|size| usize::try_from(size).ok());
            let size = size.ok_or_else(|| Shape::new(place, "type", "must be a non-negative integer"))?;
            if size > tail.len() {
                return Err(Shape::new(place, "binary", "is more than the body has"));
            }
            let data = tail.split_to(size);
            if !holds(datatype, count, &data) {
                return Err(Shape::new(place, "elements", "the binary data does not hold the elements of the shape"));
            }
            data
        }
        (None, None) => return Err(Shape::new("/data", "required", "must be given")),
        (None, Some(data)) => from_numbers(datatype, &shape, count, data)?,
    };
    Ok((Tensor { name, datatype, shape, data }, parameters))
}

fn shape(members: &Map<String, Value>) -> Result<Vec<u64>, Shape> {
    let list = list_of(members, "shape", DIMENSIONS_MAX, "has too many dimensions")?;
    let list = list.ok_or_else(|| Shape::new("/shape", "required", "must be given"))?;
    let dimension = |(at, value): (usize, &Value)| {
        value.as_u64().ok_or_else(|| Shape::new(format!("/shape/{at}"), "type", "must be a non-negative integer"))
    };
    list.iter().enumerate().map(dimension).collect()
}

/// The elements are either one flat list or nested as the shape says. Nothing is set aside for a count that the values do not back.
fn from_numbers(datatype: Datatype, shape: &[u64], count: usize, data: &Value) -> Result<Bytes, Shape> {
    let list = data.as_array().ok_or_else(|| Shape::new("/data", "type", "must be an array"))?;
    let width = match datatype {
        Datatype::Fp16 | Datatype::Bf16 => return Err(Shape::new("/data", "datatype", "this datatype travels in binary only")),
        _ => datatype.width(),
    };
    let mut out = Elements { datatype, count: 0, bytes: BytesMut::with_capacity(list.len() * width.unwrap_or(8)) };
    if shape.len() > 1 && list.first().is_some_and(Value::is_array) {
        nested(&mut out, shape, list)?;
    } else {
        for value in list {
            out.push(value)?;
        }
    }
    if out.count != count {
        return Err(Shape::new("/data", "elements", "does not have as many elements as the shape"));
    }
    Ok(out.bytes.freeze())
}

/// As deep as the shape is long, which is bounded.
fn nested(out: &mut Elements, shape: &[u64], list: &[Value]) -> Result<(), Shape> {
    let Some((length, inner)) = shape.split_first() else {
        return Err(Shape::new("/data", "elements", "nests deeper than the shape"));
    };
    if usize::try_from(*length) != Ok(list.len()) {
        return Err(Shape::new("/data", "elements", "is not nested as the shape says"));
    }
    for value in list {
        match value {
            Value::Array(list) => nested(out, inner, list)?,
            _ if inner.is_empty() => out.push(value)?,
            _ => return Err(Shape::new("/data", "elements", "is not nested as the shape says")),
        }
    }
    Ok(())
}

struct Elements {
    datatype: Datatype,
    count: usize,
    bytes: BytesMut,
}

impl Elements {
    fn push(&mut self, value: &Value) -> Result<(), Shape> {
        let put = match self.datatype {
            Datatype::Bool => value.as_bool().map(|value| self.put([u8::from(value)])),
            Datatype::Uint8 => value.as_u64().and_then(|value| u8::try_from(value).ok()).map(|value| self.put(value.to_le_bytes())),
            Datatype::Uint16 => value.as_u64().and_then(|value| u16::try_from(value).ok()).map(|value| self.put(value.to_le_bytes())),
            Datatype::Uint32 => value.as_u64().and_then(|value| u32::try_from(value).ok()).map(|value| self.put(value.to_le_bytes())),
            Datatype::Uint64 => value.as_u64().map(|value| self.put(value.to_le_bytes())),
            Datatype::Int8 => value.as_i64().and_then(|value| i8::try_from(value).ok()).map(|value| self.put(value.to_le_bytes())),
            Datatype::Int16 => value.as_i64().and_then(|value| i16::try_from(value).ok()).map(|value| self.put(value.to_le_bytes())),
            Datatype::Int32 => value.as_i64().and_then(|value| i32::try_from(value).ok()).map(|value| self.put(value.to_le_bytes())),
            Datatype::Int64 => value.as_i64().map(|value| self.put(value.to_le_bytes())),
            Datatype::Fp32 => {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "rounding to the nearest is what a float is; what became infinite is refused"
                )]
                let narrow = |value: f64| Some(value as f32).filter(|value| value.is_finite());
                value.as_f64().and_then(narrow).map(|value| self.put(value.to_le_bytes()))
            }
            Datatype::Fp64 => value.as_f64().map(|value| self.put(value.to_le_bytes())),
            Datatype::Bytes => value.as_str().and_then(|text| {
                let length = u32::try_from(text.len()).ok()?;
                self.bytes.extend_from_slice(&length.to_le_bytes());
                self.bytes.extend_from_slice(text.as_bytes());
                Some(())
            }),
            Datatype::Fp16 | Datatype::Bf16 => None,
        };
        put.ok_or_else(|| Shape::new("/data", "datatype", "an element does not fit the datatype"))?;
        self.count += 1;
        Ok(())
    }

    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.bytes.extend_from_slice(&bytes);
    }
}

fn object<'v>(value: &'v Value, place: &str) -> Result<&'v Map<String, Value>, Shape> {
    value.as_object().ok_or_else(|| Shape::new(place, "type", "must be an object"))
}

fn list<'v>(members: &'v Map<String, Value>, key: &str) -> Result<Option<&'v [Value]>, Shape> {
    list_of(members, key, TENSORS_MAX, "has too many tensors")
}

fn list_of<'v>(members: &'v Map<String, Value>, key: &str, most: usize, more: &'static str) -> Result<Option<&'v [Value]>, Shape> {
    match members.get(key) {
        None => Ok(None),
        Some(Value::Array(list)) if list.len() <= most => Ok(Some(list)),
        Some(Value::Array(_)) => Err(Shape::at_member(key, "range", more)),
        Some(_) => Err(Shape::at_member(key, "type", "must be an array")),
    }
}

fn text<'v>(members: &'v Map<String, Value>, key: &str, place: &str) -> Result<Option<&'v str>, Shape> {
    let wrong = |rule, text| Shape::at_member(key, rule, text).under(place);
    match members.get(key) {
        None => Ok(None),
        Some(Value::String(text)) if text.len() <= NAME_MAX => Ok(Some(text)),
        Some(Value::String(_)) => Err(wrong("range", "is too long")),
        Some(_) => Err(wrong("type", "must be a string")),
    }
}

fn name(members: &Map<String, Value>, place: &str) -> Result<String, Shape> {
    match text(members, "name", place)? {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(Shape::new(format!("{place}/name"), "required", "must be given")),
    }
}

fn id(members: &Map<String, Value>) -> Result<Option<String>, Shape> {
    Ok(text(members, "id", "")?.filter(|id| !id.is_empty()).map(str::to_owned))
}

fn parameters(members: &Map<String, Value>, place: &str) -> Result<Map<String, Value>, Shape> {
    match members.get("parameters") {
        None => Ok(Map::new()),
        Some(Value::Object(parameters))
            if parameters.values().all(|value| value.is_string() || value.is_number() || value.is_boolean()) =>
        {
            Ok(parameters.clone())
        }
        Some(_) => Err(Shape::new(format!("{place}/parameters"), "type", "must be an object of strings, numbers and booleans")),
    }
}

fn flag(parameters: &Map<String, Value>, key: &str, place: &str) -> Result<Option<bool>, Shape> {
    let wrong = || Shape::new(format!("{place}/parameters/{key}"), "type", "must be a boolean");
    parameters.get(key).map(|value| value.as_bool().ok_or_else(wrong)).transpose()
}
