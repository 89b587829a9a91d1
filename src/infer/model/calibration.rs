//! Temperature scaling (Guo et al. 2017, arXiv:1706.04599): a classifier's probabilities, made to say how often it is right.
//!
//! `calibration.json` lies beside the model and is verified with it. It names the outputs that are scaled, and for each the temperature that was
//! fitted on held-out data:
//!
//! ```json
//! { "probabilities": { "temperature": 1.7 } }
//! ```
//!
//! `{ "temperature": 1.7 }` alone is the same for the output `probabilities`. An output of scores, not of probabilities, has `"of": "logits"`; one whose
//! labels do not exclude each other `"activation": "sigmoid"`. For any engine: it works on tensors of the answer.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use crate::wire::json::{self, Limits};
use crate::wire::tensor::{Datatype, Port, Tensor};

/// The file's name within a model's folder.
pub const FILE: &str = "calibration.json";

/// The largest file, in bytes.
pub const MAX_FILE: usize = 64 << 10;

/// The most outputs that a file may name.
pub const MAX_OUTPUTS: usize = 64;

/// The lowest temperature. Fitted ones are between 0.5 and 5; far outside, probabilities are all 0 and 1, or all alike.
pub const MIN_TEMPERATURE: f64 = 0.01;

/// The highest temperature.
pub const MAX_TEMPERATURE: f64 = 100.0;

/// The output that a file means which names none.
const DEFAULT_OUTPUT: &str = "probabilities";

/// How an output is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// What scores are divided by, from [`MIN_TEMPERATURE`] to [`MAX_TEMPERATURE`]. 1 changes nothing, more makes the model less sure.
    pub temperature: f64,
    /// What the output holds before it is scaled.
    #[serde(default)]
    pub of: Of,
    /// What makes probabilities of scores.
    #[serde(default)]
    pub activation: Activation,
}

/// What an output holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Of {
    /// Scores; the scaled output is probabilities.
    Logits,
    /// Probabilities, of which the scores are found again.
    #[default]
    Probabilities,
}

/// How scores become probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// Along the last dimension, one of the labels holds.
    #[default]
    Softmax,
    /// Each label holds or not.
    Sigmoid,
}

/// Why a file is refused: the one who made it is at fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is larger than [`MAX_FILE`].
    TooLarge,
    /// It is not strict JSON.
    Json(json::Error),
    /// It does not hold to its schema.
    Schema(String),
    /// A temperature is out of bounds.
    Temperature(String),
    /// By softmax, along a dimension that holds no labels.
    Labels(String),
    /// The model has no such output, or one that is not of floats with a last dimension.
    Output(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => write!(f, "{FILE} is larger than {MAX_FILE} bytes"),
            Self::Json(error) => write!(f, "{FILE} is not strict JSON: {error}"),
            Self::Schema(what) => write!(f, "{FILE}: {what}"),
            Self::Temperature(name) => {
                write!(f, "{FILE}: the temperature of {name:?} is not from {MIN_TEMPERATURE} to {MAX_TEMPERATURE}")
            }
            Self::Labels(name) => write!(
                f,
                "{FILE}: {name:?} has no dimension of labels that exclude each other; where each number is a probability of its own, say \"activation\": \"sigmoid\""
            ),
            Self::Output(name) => write!(f, "{FILE}: the model has no output {name:?} of FP32 or FP64 with a last dimension"),
        }
    }
}

impl std::error::Error for Fault {}

/// The scales of a model's outputs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calibration(BTreeMap<String, Scale>);

impl Calibration {
    /// Reads the file for a model of these outputs.
    ///
    /// # Errors
    /// The first [`Fault`].
    pub fn read(bytes: &[u8], outputs: &[Port]) -> Result<Self, Fault> {
        if bytes.len() > MAX_FILE {
            return Err(Fault::TooLarge);
        }
        let document = json::parse(bytes, &Limits::for_body(MAX_FILE)).map_err(Fault::Json)?;
        let schema = |error: serde_json::Error| Fault::Schema(error.to_string().chars().take(200).collect());
        let scales: BTreeMap<String, Scale> = if document.get("temperature").is_some_and(Value::is_number) {
            let scale = serde_json::from_value(document).map_err(schema)?;
            [(DEFAULT_OUTPUT.to_owned(), scale)].into()
        } else {
            serde_json::from_value(document).map_err(schema)?
        };
        if scales.is_empty() || scales.len() > MAX_OUTPUTS {
            return Err(Fault::Schema(format!("it names from 1 to {MAX_OUTPUTS} outputs")));
        }
        for (name, scale) in &scales {
            if !(MIN_TEMPERATURE..=MAX_TEMPERATURE).contains(&scale.temperature) {
                return Err(Fault::Temperature(name.chars().take(64).collect()));
            }
            let fits = |port: &&Port| matches!(port.datatype, Datatype::Fp32 | Datatype::Fp64) && !port.shape.is_empty();
            let named = || name.chars().take(64).collect();
            let port = outputs.iter().find(|port| port.name == *name).filter(fits).ok_or_else(|| Fault::Output(named()))?;
            // One free dimension is the batch; one label is always sure.
            if scale.activation == Activation::Softmax && matches!(port.shape[..], [None] | [.., Some(0 | 1)]) {
                return Err(Fault::Labels(named()));
            }
        }
        Ok(Self(scales))
    }

    /// Scales the tensor in place if its name is one of those that the file names. Its type and shape stay.
    pub fn apply(&self, tensor: &mut Tensor) {
        let Some(scale) = self.0.get(&tensor.name) else { return };
        let labels = tensor.shape.last().map_or(0, |length| usize::try_from(*length).unwrap_or(usize::MAX));
        if labels == 0 {
            return;
        }
        let mut numbers: Vec<f64> = match tensor.datatype {
            Datatype::Fp32 => tensor.data.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect(),
            Datatype::Fp64 => tensor.data.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect(),
            _ => return,
        };
        numbers.chunks_exact_mut(labels).for_each(|row| scale.apply(row));
        #[expect(clippy::cast_possible_truncation, reason = "back to the width that it had")]
        let data: Vec<u8> = if tensor.datatype == Datatype::Fp32 {
            numbers.iter().flat_map(|number| (*number as f32).to_le_bytes()).collect()
        } else {
            numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
        };
        tensor.data = data.into();
    }
}

impl Scale {
    /// Scales one row. What holds nothing but zeros, such as the padding of a shorter text, stays so where it holds probabilities.
    pub fn apply(&self, row: &mut [f64]) {
        let padding = self.of == Of::Probabilities && self.activation == Activation::Softmax && row.iter().all(|number| *number == 0.0);
        if padding {
            return;
        }
        for number in &mut *row {
            let score = match (self.of, self.activation) {
                (Of::Logits, _) => *number,
                // The scores but for what they have in common, which softmax takes out again.
                (Of::Probabilities, Activation::Softmax) => number.ln(),
                (Of::Probabilities, Activation::Sigmoid) => number.ln() - (-*number).ln_1p(),
            };
            *number = score / self.temperature;
        }
        match self.activation {
            Activation::Sigmoid => row.iter_mut().for_each(|score| *score = ((-*score).exp() + 1.0).recip()),
            Activation::Softmax => {
                let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                row.iter_mut().for_each(|score| *score = (*score - largest).exp());
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|score| *score /= sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn port(name: &str, datatype: Datatype, shape: &[Option<u64>]) -> Port {
        Port { name: name.into(), datatype, shape: shape.to_vec() }
    }

    fn outputs() -> Vec<Port> {
        vec![
            port("probabilities", Datatype::Fp32, &[None, Some(3)]),
            port("logits", Datatype::Fp64, &[None, Some(3)]),
            port("label", Datatype::Int64, &[None]),
            port("scalar", Datatype::Fp32, &[]),
        ]
    }

    fn read(text: &str) -> Result<Calibration, Fault> {
        Calibration::read(text.as_bytes(), &outputs())
    }

    fn tensor(name: &str, rows: &[[f32; 3]]) -> Tensor {
        let data: Vec<u8> = rows.iter().flatten().flat_map(|number| number.to_le_bytes()).collect();
        Tensor { name: name.into(), datatype: Datatype::Fp32, shape: vec![rows.len() as u64, 3], data: data.into() }
    }

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        tensor.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    #[test]
    fn the_schema_is_closed() {
        assert_eq!(read(r#"{"temperature":1.7}"#), read(r#"{"probabilities":{"temperature":1.7}}"#));
        assert!(read(r#"{"logits":{"temperature":2,"of":"logits","activation":"sigmoid"},"probabilities":{"temperature":1}}"#).is_ok());
        for text in [
            "{}",
            "[]",
            r#"{"temperature":"1.7"}"#,
            r#"{"temperature":1.7,"bias":0}"#,
            r#"{"probabilities":{}}"#,
            r#"{"probabilities":{"temperature":1.7,"of":"scores"}}"#,
            r#"{"probabilities":{"temperature":1.7,"more":1}}"#,
        ] {
            assert!(matches!(read(text), Err(Fault::Schema(_))), "{text}");
        }
        assert!(matches!(read(r#"{"temperature":1,"temperature":2}"#), Err(Fault::Json(_))));
        for name in ["embedding", "label", "scalar"] {
            assert_eq!(read(&format!(r#"{{"{name}":{{"temperature":1}}}}"#)), Err(Fault::Output(name.into())));
        }
    }

    #[test]
    fn labels_that_exclude_each_other_are_two_at_the_least_and_not_the_batch() {
        let read = |shape: &[Option<u64>], activation: &str| {
            let outputs = [port("p", Datatype::Fp32, shape)];
            Calibration::read(format!(r#"{{"p":{{"temperature":2,"activation":"{activation}"}}}}"#).as_bytes(), &outputs)
        };
        for shape in [&[None][..], &[None, Some(1)], &[Some(1)]] {
            assert_eq!(read(shape, "softmax"), Err(Fault::Labels("p".into())), "{shape:?}");
            assert!(read(shape, "sigmoid").is_ok(), "{shape:?}");
        }
        for shape in [&[None, Some(2)][..], &[None, None], &[Some(2)], &[None, Some(1), Some(3)]] {
            assert!(read(shape, "softmax").is_ok(), "{shape:?}");
        }
    }

    #[test]
    fn bounds_hold_at_their_limit_and_one_past_it() {
        let temperature = |temperature: &str| read(&format!(r#"{{"temperature":{temperature}}}"#));
        assert!(temperature("0.01").is_ok() && temperature("100").is_ok());
        for wrong in ["0.0099", "100.1", "0", "-1", "1e300"] {
            assert_eq!(temperature(wrong), Err(Fault::Temperature("probabilities".into())), "{wrong}");
        }
        let padded = |length: usize| format!("{}{}", r#"{"temperature":1}"#, " ".repeat(length - 17));
        assert!(read(&padded(MAX_FILE)).is_ok());
        assert_eq!(read(&padded(MAX_FILE + 1)), Err(Fault::TooLarge));
        let many = |count: usize| {
            let ports: Vec<_> = (0..count).map(|at| port(&at.to_string(), Datatype::Fp32, &[None, None])).collect();
            let members: Vec<_> = (0..count).map(|at| format!(r#""{at}":{{"temperature":1}}"#)).collect();
            Calibration::read(format!("{{{}}}", members.join(",")).as_bytes(), &ports)
        };
        assert!(many(MAX_OUTPUTS).is_ok());
        assert!(many(MAX_OUTPUTS + 1).is_err());
    }

    #[test]
    fn probabilities_are_scaled_as_their_scores_are() {
        let calibration = read(r#"{"temperature":2}"#).unwrap();
        // Scores of 0, 2 and 4.
        let sum: f32 = [0.0_f32, 2.0, 4.0].iter().map(|score| score.exp()).sum();
        let mut answer = tensor("probabilities", &[[1.0 / sum, 2.0_f32.exp() / sum, 4.0_f32.exp() / sum], [0.0, 0.0, 1.0], [0.0; 3]]);
        calibration.apply(&mut answer);
        let halved: f32 = [0.0_f32, 1.0, 2.0].iter().map(|score| score.exp()).sum();
        let expected = [1.0 / halved, 1.0_f32.exp() / halved, 2.0_f32.exp() / halved, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0];
        for (found, expected) in numbers(&answer).into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
        }
        let mut other = tensor("logits", &[[1.0, 2.0, 3.0]]);
        calibration.apply(&mut other);
        assert_eq!(other, tensor("logits", &[[1.0, 2.0, 3.0]]));
    }

    #[test]
    fn scores_become_probabilities() {
        let scale = |activation| Scale { temperature: 2.0, of: Of::Logits, activation };
        let mut row = [0.0, 2.0 * 3.0_f64.ln()];
        scale(Activation::Softmax).apply(&mut row);
        assert!((row[0] - 0.25).abs() < 1e-12 && (row[1] - 0.75).abs() < 1e-12);
        let mut row = [0.0, 2.0 * 3.0_f64.ln()];
        scale(Activation::Sigmoid).apply(&mut row);
        assert!((row[0] - 0.5).abs() < 1e-12 && (row[1] - 0.75).abs() < 1e-12);
        let mut row = [0.9, 0.0, 1.0];
        Scale { of: Of::Probabilities, ..scale(Activation::Sigmoid) }.apply(&mut row);
        assert!((row[0] - 0.75).abs() < 1e-12);
        assert_eq!(row[1..], [0.0, 1.0]);
    }

    proptest! {
        #[test]
        fn the_order_of_labels_stays_and_they_sum_to_one(scores in prop::collection::vec(-20.0_f64..20.0, 1..8), temperature in 0.01_f64..100.0) {
            let mut row = scores.clone();
            Scale { temperature, of: Of::Logits, activation: Activation::Softmax }.apply(&mut row);
            prop_assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            for (a, b) in scores.iter().zip(&row) {
                for (c, d) in scores.iter().zip(&row) {
                    prop_assert!(a < c && b <= d || a >= c);
                }
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Calibration::read(&bytes, &outputs());
        }
    }
}
