//! The Open Inference Protocol v2: requests and answers, as JSON and with the binary tensor extension.
//!
//! Numbers become elements only where they fit exactly into the type's range: nothing wraps, nothing becomes infinite.
//! `FP16` and `BF16` travel in binary only, as with Triton. Shared memory is refused: it would let a caller name memory of the server.

mod explain;
mod read;
mod write;

use bytes::Bytes;
use http::HeaderValue;
use serde_json::{Map, Value};

use super::json;
use super::shape::Shape;
use super::tensor::Tensor;

pub use explain::{BASE, Explain, METHOD, PREFIX, VALUES};
pub use read::{DIMENSIONS_MAX, NAME_MAX, TENSORS_MAX};
pub use write::{Asked, Encoded, Unwritable, asked, model_metadata, model_ready, server_live, server_metadata, server_ready};

pub(super) use read::{classification, distinct, shared_memory};

/// The header that tells how long the JSON before the binary tensors is, in requests and answers.
pub const HEADER_LENGTH: &str = "inference-header-content-length";

/// An inference request, whatever encoding it came in.
#[derive(Clone, Debug, Default)]
pub struct InferRequest {
    /// The request's id, which the answer repeats.
    pub id: Option<String>,
    /// Request parameters.
    pub parameters: Map<String, Value>,
    /// The input tensors.
    pub inputs: Vec<Tensor>,
    /// The parameters of each of them, in the same order, where they came as JSON.
    pub input_parameters: Vec<Map<String, Value>>,
    /// The outputs that are asked for; all of them where empty.
    pub outputs: Vec<RequestedOutput>,
    /// Whether outputs are to be binary unless an output says otherwise.
    pub binary_output: bool,
}

/// One output that is asked for.
#[derive(Clone, Debug, Default)]
pub struct RequestedOutput {
    /// Its name.
    pub name: String,
    /// Whether it is to be binary.
    pub binary: Option<bool>,
    /// Its parameters, where they came as JSON.
    pub parameters: Map<String, Value>,
}

/// An inference answer, whatever encoding it leaves in.
#[derive(Clone, Debug, Default)]
pub struct InferResponse {
    /// The model's name, as the caller wrote it.
    pub model_name: String,
    /// The version that answered.
    pub model_version: String,
    /// The request's id.
    pub id: Option<String>,
    /// The output tensors.
    pub outputs: Vec<Tensor>,
}

/// Why a body with binary tensors cannot be read: `check.json` or `check.shape`, 400, where a caller sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its JSON cannot be parsed.
    Json(json::Error),
    /// It does not hold to its shape.
    Shape(Shape),
}

impl From<Shape> for Fault {
    fn from(shape: Shape) -> Self {
        Self::Shape(shape)
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Json(error) => error.fmt(f),
            Self::Shape(shape) => shape.fmt(f),
        }
    }
}

impl std::error::Error for Fault {}

/// Reads `Inference-Header-Content-Length`: decimal digits alone.
#[must_use]
pub fn header_length(value: &HeaderValue) -> Option<usize> {
    let text = value.to_str().ok().filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse().ok()
}

impl InferRequest {
    /// Reads a request that is JSON alone.
    ///
    /// # Errors
    /// The first member that does not hold to its shape.
    pub fn from_json(document: &Value) -> Result<Self, Shape> {
        read::request(document, None)
    }

    /// Reads a request whose first bytes are JSON and whose others are binary tensors, which stay slices of the body. The JSON
    /// comes back too, for schemas.
    ///
    /// # Errors
    /// What is wrong with the JSON, or the first member that does not hold to its shape; sizes must add up exactly.
    pub fn from_binary(header_length: usize, body: &Bytes, limits: &json::Limits) -> Result<(Self, Value), Fault> {
        let (document, tail) = read::split(header_length, body, limits)?;
        Ok((read::request(&document, Some(tail))?, document))
    }

    /// Whether this output is to be binary.
    #[must_use]
    pub fn wants_binary(&self, output: &str) -> bool {
        self.outputs.iter().find(|asked| asked.name == output).and_then(|asked| asked.binary).unwrap_or(self.binary_output)
    }
}

impl InferResponse {
    /// Reads an answer that is JSON alone, as an upstream sends it.
    ///
    /// # Errors
    /// The first member that does not hold to its shape.
    pub fn from_json(document: &Value) -> Result<Self, Shape> {
        read::response(document, None)
    }

    /// Reads an answer with binary tensors, as an upstream sends it.
    ///
    /// # Errors
    /// What is wrong with the JSON, or the first member that does not hold to its shape; sizes must add up exactly.
    pub fn from_binary(header_length: usize, body: &Bytes, limits: &json::Limits) -> Result<Self, Fault> {
        let (document, tail) = read::split(header_length, body, limits)?;
        Ok(read::response(&document, Some(tail))?)
    }
}

#[cfg(test)]
mod tests;
