//! The Open Inference Protocol v2: requests and answers, as JSON and with the binary tensor extension.

use serde_json::{Map, Value};

use super::tensor::Tensor;

/// An inference request, whatever encoding it came in.
#[derive(Clone, Debug, Default)]
pub struct InferRequest {
    /// The request's id, which the answer repeats.
    pub id: Option<String>,
    /// Request parameters.
    pub parameters: Map<String, Value>,
    /// The input tensors.
    pub inputs: Vec<Tensor>,
    /// The outputs that are asked for; all of them where empty.
    pub outputs: Vec<RequestedOutput>,
    /// Whether outputs are to be binary unless an output says otherwise.
    pub binary_output: bool,
}

/// One output that is asked for.
#[derive(Clone, Debug)]
pub struct RequestedOutput {
    /// Its name.
    pub name: String,
    /// Whether it is to be binary.
    pub binary: Option<bool>,
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
