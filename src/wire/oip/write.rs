//! From tensors to JSON, and bytes behind it.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use super::{InferRequest, InferResponse};
use crate::wire::tensor::{Datatype, Port, Tensor};

/// An answer as it goes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Its bytes.
    pub body: Bytes,
    /// Where it holds binary tensors, how long the JSON before them is: the value of [`super::HEADER_LENGTH`], and the media type is `application/octet-stream`.
    pub header_length: Option<usize>,
}

/// An answer cannot be written as JSON; the caller may ask for binary output (400), but for `Malformed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwritable {
    /// An element is NaN or infinite, which JSON cannot say. Triton refuses too; zero or null would be a lie.
    NotFinite,
    /// The datatype has no JSON form: `FP16`, `BF16`, and `BYTES` that are not UTF-8.
    BinaryOnly,
    /// The bytes do not hold the elements of the shape: the model's or the upstream's fault (500, 502).
    Malformed,
}

impl Unwritable {
    /// What is wrong, in words.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::NotFinite => "an output has values that are not finite; ask for binary output",
            Self::BinaryOnly => "an output has no JSON form; ask for binary output",
            Self::Malformed => "an output does not hold the elements of its shape",
        }
    }
}

impl std::fmt::Display for Unwritable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Unwritable {}

impl InferResponse {
    /// Writes it as the request asks: JSON, or JSON and binary tensors where any output is to be binary.
    ///
    /// # Errors
    /// See [`Unwritable`].
    pub fn encode(&self, request: &InferRequest) -> Result<Encoded, Unwritable> {
        if self.outputs.iter().any(|output| request.wants_binary(&output.name)) {
            let (length, body) = self.to_binary(|name| request.wants_binary(name))?;
            Ok(Encoded { body, header_length: Some(length) })
        } else {
            Ok(Encoded { body: self.to_json()?, header_length: None })
        }
    }

    /// JSON alone.
    ///
    /// # Errors
    /// See [`Unwritable`].
    pub fn to_json(&self) -> Result<Bytes, Unwritable> {
        self.to_binary(|_| false).map(|(_, body)| body)
    }

    /// JSON, and behind it the outputs that are to be binary; with the length of the JSON.
    ///
    /// # Errors
    /// See [`Unwritable`].
    pub fn to_binary(&self, binary: impl Fn(&str) -> bool) -> Result<(usize, Bytes), Unwritable> {
        let room = self.outputs.iter().map(|output| 128 + output.data.len() * 3).sum::<usize>();
        let mut out = Vec::with_capacity(128 + room);
        out.extend_from_slice(b"{\"model_name\":");
        put(&mut out, &self.model_name);
        out.extend_from_slice(b",\"model_version\":");
        put(&mut out, &self.model_version);
        if let Some(id) = &self.id {
            out.extend_from_slice(b",\"id\":");
            put(&mut out, id);
        }
        out.extend_from_slice(b",\"outputs\":[");
        tensors(&mut out, &self.outputs, &binary)?;
        out.extend_from_slice(b"]}");
        let length = out.len();
        for output in self.outputs.iter().filter(|output| binary(&output.name)) {
            out.extend_from_slice(&output.data);
        }
        Ok((length, out.into()))
    }
}

/// A request of these inputs and nothing else: its JSON, with the elements of those that JSON can say.
///
/// # Errors
/// [`Unwritable::Malformed`].
pub fn asked(inputs: &[Tensor]) -> Result<Asked, Unwritable> {
    let written = |binary: bool| {
        let mut out =
            Vec::with_capacity(128 + inputs.iter().map(|input| 128 + if binary { 0 } else { input.data.len() * 3 }).sum::<usize>());
        out.extend_from_slice(b"{\"inputs\":[");
        tensors(&mut out, inputs, &|_| binary)?;
        out.extend_from_slice(b"]}");
        Ok(out)
    };
    let (json, binary) = match written(false) {
        Ok(json) => (json, None),
        Err(Unwritable::Malformed) => return Err(Unwritable::Malformed),
        Err(Unwritable::NotFinite | Unwritable::BinaryOnly) => {
            (written(true)?, Some(inputs.iter().map(|input| &input.data[..]).collect::<Vec<_>>().concat()))
        }
    };
    Ok(Asked { json: String::from_utf8(json).map_err(|_| Unwritable::Malformed)?, binary })
}

/// A request that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its JSON.
    pub json: String,
    /// The elements of all of its tensors, where JSON cannot say some.
    pub binary: Option<Vec<u8>>,
}

fn tensors(out: &mut Vec<u8>, all: &[Tensor], binary: &impl Fn(&str) -> bool) -> Result<(), Unwritable> {
    for (at, tensor) in all.iter().enumerate() {
        out.extend_from_slice(if at == 0 { b"{\"name\":" } else { b",{\"name\":" });
        put(out, &tensor.name);
        out.extend_from_slice(b",\"datatype\":");
        put(out, tensor.datatype.as_str());
        out.extend_from_slice(b",\"shape\":");
        put(out, &tensor.shape);
        if binary(&tensor.name) {
            out.extend_from_slice(b",\"parameters\":{\"binary_data_size\":");
            put(out, &tensor.data.len());
            out.extend_from_slice(b"}}");
        } else {
            out.extend_from_slice(b",\"data\":[");
            elements(out, tensor)?;
            out.extend_from_slice(b"]}");
        }
    }
    Ok(())
}

/// Strings, numbers and lists of numbers always have JSON, and a `Vec` always takes it.
fn put(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    let written = serde_json::to_writer(out, value);
    debug_assert!(written.is_ok());
}

fn elements(out: &mut Vec<u8>, tensor: &Tensor) -> Result<(), Unwritable> {
    if !tensor.elements().is_some_and(|count| crate::wire::tensor::holds(tensor.datatype, count, &tensor.data)) {
        return Err(Unwritable::Malformed);
    }
    match tensor.datatype {
        Datatype::Bool => each(out, &tensor.data, |[byte]: [u8; 1]| Some(byte != 0)),
        Datatype::Uint8 => each(out, &tensor.data, |bytes| Some(u8::from_le_bytes(bytes))),
        Datatype::Uint16 => each(out, &tensor.data, |bytes| Some(u16::from_le_bytes(bytes))),
        Datatype::Uint32 => each(out, &tensor.data, |bytes| Some(u32::from_le_bytes(bytes))),
        Datatype::Uint64 => each(out, &tensor.data, |bytes| Some(u64::from_le_bytes(bytes))),
        Datatype::Int8 => each(out, &tensor.data, |bytes| Some(i8::from_le_bytes(bytes))),
        Datatype::Int16 => each(out, &tensor.data, |bytes| Some(i16::from_le_bytes(bytes))),
        Datatype::Int32 => each(out, &tensor.data, |bytes| Some(i32::from_le_bytes(bytes))),
        Datatype::Int64 => each(out, &tensor.data, |bytes| Some(i64::from_le_bytes(bytes))),
        Datatype::Fp32 => each(out, &tensor.data, |bytes| Some(f32::from_le_bytes(bytes)).filter(|value| value.is_finite())),
        Datatype::Fp64 => each(out, &tensor.data, |bytes| Some(f64::from_le_bytes(bytes)).filter(|value| value.is_finite())),
        Datatype::Fp16 | Datatype::Bf16 => Err(Unwritable::BinaryOnly),
        Datatype::Bytes => {
            for (at, element) in tensor.strings().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                put(out, std::str::from_utf8(&element).map_err(|_| Unwritable::BinaryOnly)?);
            }
            Ok(())
        }
    }
}

/// Only floats may have no value here.
fn each<const N: usize, T: Serialize>(out: &mut Vec<u8>, data: &[u8], read: impl Fn([u8; N]) -> Option<T>) -> Result<(), Unwritable> {
    for (at, bytes) in data.as_chunks().0.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        put(out, &read(*bytes).ok_or(Unwritable::NotFinite)?);
    }
    Ok(())
}

/// The body of `GET /v2`.
#[must_use]
pub fn server_metadata(name: &str, version: &str, extensions: &[&str]) -> Bytes {
    Bytes::from(json!({ "name": name, "version": version, "extensions": extensions }).to_string())
}

/// The body of `GET /v2/models/{m}`.
#[must_use]
pub fn model_metadata(name: &str, versions: &[&str], platform: &str, inputs: &[Port], outputs: &[Port]) -> Bytes {
    let ports = |ports: &[Port]| -> Vec<Value> {
        let port = |port: &Port| {
            // A free dimension is -1 on the wire.
            let shape: Vec<Value> = port.shape.iter().map(|length| length.map_or(Value::from(-1), Value::from)).collect();
            json!({ "name": port.name, "datatype": port.datatype.as_str(), "shape": shape })
        };
        ports.iter().map(port).collect()
    };
    let document = json!({ "name": name, "versions": versions, "platform": platform, "inputs": ports(inputs), "outputs": ports(outputs) });
    Bytes::from(document.to_string())
}

/// The body of `GET /v2/health/live`.
#[must_use]
pub fn server_live(live: bool) -> Bytes {
    Bytes::from(json!({ "live": live }).to_string())
}

/// The body of `GET /v2/health/ready`.
#[must_use]
pub fn server_ready(ready: bool) -> Bytes {
    Bytes::from(json!({ "ready": ready }).to_string())
}

/// The body of `GET /v2/models/{m}/ready`.
#[must_use]
pub fn model_ready(name: &str, ready: bool) -> Bytes {
    Bytes::from(json!({ "name": name, "ready": ready }).to_string())
}
