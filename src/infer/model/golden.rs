//! Golden answers: what a model must say to given inputs before it is ready. The bytes of a model may be right and its answers wrong all the
//! same, by a fault of the engine, of its optimizer or of the machine; whoever made the model says what it said to them.
//!
//! The file is JSON: tensors as the Open Inference Protocol writes them, one case or several.
//!
//! ```json
//! { "cases": [ { "inputs": [ { "name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2] } ],
//!                "outputs": [ { "name": "y", "datatype": "FP32", "shape": [1, 1], "data": [3] } ] } ],
//!   "absolute": 1e-5, "relative": 1e-4 }
//! ```
//!
//! Floats may be off by `absolute` plus `relative` times what is expected; everything else is the same to the bit. Compared is what the model
//! says, before a calibration or `[answer]` changes it.

use std::fmt;

use serde::Deserialize;
use serde_json::{Value, json};

use super::engine::{Engine, Stop, fits};
use super::{Signature, attached};
use crate::wire::json::{self, Limits};
use crate::wire::oip::{InferRequest, InferResponse};
use crate::wire::tensor::{Datatype, Tensor};

/// The most cases of a file. Each is a run of the model.
pub const MAX_CASES: usize = 64;

/// How far a float may be off, unless the file says otherwise.
pub const DEFAULT_ABSOLUTE: f64 = 1e-5;

/// How far a float may be off for each unit of what is expected, unless the file says otherwise.
pub const DEFAULT_RELATIVE: f64 = 1e-4;

/// Why a model is not what its golden answers say, or why those say nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not strict JSON.
    Json(json::Error),
    /// It does not hold to its schema.
    Schema(String),
    /// It does not fit what the model takes and gives.
    Contract {
        /// From 0.
        case: usize,
        /// What does not fit.
        what: String,
    },
    /// The model did not answer.
    Failed {
        /// From 0.
        case: usize,
        /// Why.
        why: String,
    },
    /// The model says something else.
    Differs {
        /// From 0.
        case: usize,
        /// Which output.
        output: String,
        /// The largest difference of two floats, as text; what else differs where it is not of floats.
        by: String,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(error) => write!(f, "the file is not strict JSON: {error}"),
            Self::Schema(what) => f.write_str(what),
            Self::Contract { case, what } => write!(f, "case {case} does not fit the model: {what}"),
            Self::Failed { case, why } => write!(f, "the model does not answer case {case}: {why}"),
            Self::Differs { case, output, by } => write!(f, "the model's answer to case {case} is another: {output:?} {by}"),
        }
    }
}

impl std::error::Error for Fault {}

/// Golden answers that fit a model's contract.
#[derive(Clone, Debug)]
pub struct Golden {
    cases: Vec<Case>,
    absolute: f64,
    relative: f64,
}

#[derive(Clone, Debug)]
struct Case {
    /// In the order of the signature.
    inputs: Vec<Tensor>,
    /// Places of the outputs, and what is expected there.
    wanted: Vec<usize>,
    expected: Vec<Tensor>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    cases: Vec<Said>,
    #[serde(default = "absolute")]
    absolute: f64,
    #[serde(default = "relative")]
    relative: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    inputs: Value,
    outputs: Value,
}

fn absolute() -> f64 {
    DEFAULT_ABSOLUTE
}

fn relative() -> f64 {
    DEFAULT_RELATIVE
}

impl Golden {
    /// Reads the file for a model of this signature.
    ///
    /// # Errors
    /// The first [`Fault`].
    pub fn read(bytes: &[u8], signature: &Signature) -> Result<Self, Fault> {
        let document = json::parse(bytes, &Limits::for_body(attached::MAX_GOLDEN)).map_err(Fault::Json)?;
        let file: File = serde_json::from_value(document).map_err(|error| Fault::Schema(error.to_string().chars().take(200).collect()))?;
        if file.cases.is_empty() || file.cases.len() > MAX_CASES {
            return Err(Fault::Schema(format!("it has from 1 to {MAX_CASES} cases")));
        }
        // No NaN comes out of JSON.
        if file.absolute < 0.0 || file.relative < 0.0 {
            return Err(Fault::Schema("`absolute` and `relative` are not negative".to_owned()));
        }
        let cases = file.cases.into_iter().enumerate();
        let cases = cases.map(|(case, said)| Case::of(said, signature).map_err(|what| Fault::Contract { case, what }));
        Ok(Self { cases: cases.collect::<Result<_, _>>()?, absolute: file.absolute, relative: file.relative })
    }

    /// Asks the model, and holds what it says against what is expected.
    pub(super) fn hold(&self, engine: &mut dyn Engine, stop: &Stop) -> Result<(), Fault> {
        for (case, Case { inputs, wanted, expected }) in self.cases.iter().enumerate() {
            let failed = |error: super::Error| Fault::Failed { case, why: error.to_string() };
            let answer = engine.run(inputs, wanted, stop).map_err(failed)?;
            for (found, expected) in answer.iter().zip(expected) {
                self.same(found, expected).map_err(|by| Fault::Differs { case, output: expected.name.clone(), by })?;
            }
        }
        Ok(())
    }

    fn same(&self, found: &Tensor, expected: &Tensor) -> Result<(), String> {
        if (found.datatype, &found.shape) != (expected.datatype, &expected.shape) {
            return Err(format!("is {} {:?}, not {} {:?}", found.datatype, found.shape, expected.datatype, expected.shape));
        }
        let (Some(theirs), Some(ours)) = (floats(found), floats(expected)) else {
            return if found.data == expected.data { Ok(()) } else { Err("holds other values".to_owned()) };
        };
        let off = |(found, expected): (&f64, &f64)| (found - expected).abs();
        let within = |pair: (&f64, &f64)| off(pair) <= self.absolute + self.relative * pair.1.abs();
        if theirs.len() == ours.len() && theirs.iter().zip(&ours).all(within) {
            return Ok(());
        }
        // A NaN is off by itself, whatever the others are.
        let largest = theirs.iter().zip(&ours).map(off).fold(0.0, |most: f64, off| if off.is_nan() || off > most { off } else { most });
        Err(format!("is off by {largest:e}"))
    }
}

impl Case {
    fn of(said: Said, signature: &Signature) -> Result<Self, String> {
        let request = InferRequest::from_json(&json!({ "inputs": said.inputs })).map_err(|shape| shape.to_string())?;
        let response = json!({ "model_name": "golden", "outputs": said.outputs });
        let mut expected = InferResponse::from_json(&response).map_err(|shape| shape.to_string())?.outputs;
        let mut inputs = request.inputs;
        let other = signature.instead.iter().any(|port| inputs.first().is_some_and(|tensor| tensor.name == port.name));
        let ports = if other { &signature.instead } else { &signature.inputs };
        if inputs.len() != ports.len() {
            return Err("it has more or fewer inputs than the model".to_owned());
        }
        inputs.sort_by_key(|tensor| ports.iter().position(|port| port.name == tensor.name));
        for (tensor, port) in inputs.iter().zip(ports) {
            if tensor.name != port.name {
                return Err(format!("the input {:?} is missing", port.name));
            }
            fits(tensor, port).map_err(|error| format!("{:?}: {error}", port.name))?;
        }
        if expected.is_empty() {
            return Err("it expects no output".to_owned());
        }
        let place = |tensor: &Tensor| signature.outputs.iter().position(|port| port.name == tensor.name);
        expected.sort_by_key(place);
        let places = expected.iter().map(|tensor| place(tensor).ok_or_else(|| format!("the model has no output {:?}", tensor.name)));
        Ok(Self { inputs, wanted: places.collect::<Result<_, _>>()?, expected })
    }
}

fn floats(tensor: &Tensor) -> Option<Vec<f64>> {
    match tensor.datatype {
        Datatype::Fp32 => Some(tensor.data.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()),
        Datatype::Fp64 => Some(tensor.data.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
