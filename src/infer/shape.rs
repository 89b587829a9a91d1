//! The shape of an answer: how much of what the model said is told.
//!
//! Names, shapes and types of tensors stay; what is withheld is zero, what is rounded is rounded. Integer and string
//! tensors (labels) are left as they are.

use bytes::{Bytes, BytesMut};
use serde::Deserialize;

use crate::detect::{Care, MOST_DECIMALS};
use crate::mistake::Mistake;
use crate::unit::Size;
use crate::wire::tensor::{Datatype, Tensor};

/// `[answer]` of a model's file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Keep the best so many classes, zero the rest.
    pub top: Option<u32>,
    /// Round probabilities to so many decimals, at most 15.
    pub decimals: Option<u8>,
    /// The most that is buffered to be digested and signed; default 16 MiB.
    pub max_body: Option<Size>,
    /// Deliver what is larger as a stream instead of refusing it.
    #[serde(default)]
    pub stream: bool,
}

/// The most that is buffered of one answer, unless its model says otherwise.
pub const MAX_BODY: Size = Size(16 << 20);

impl Config {
    /// The cap on one whole answer, in bytes.
    #[must_use]
    pub fn max_body(&self) -> usize {
        self.max_body.unwrap_or(MAX_BODY).0
    }

    /// What would tell nothing, or is no number of decimals.
    #[must_use]
    pub fn mistakes(&self) -> Vec<Mistake> {
        let wrong = [
            (self.top == Some(0), "answer.top = 0 keeps no class; say 1 or more, or leave it out"),
            (self.decimals.is_some_and(|decimals| decimals > MOST_DECIMALS), "answer.decimals are from 0 to 15"),
            (self.max_body == Some(Size(0)), "answer.max_body of 0 bytes lets no answer pass; say \"1B\" or more, or leave it out"),
        ];
        wrong.into_iter().filter(|(wrong, _)| *wrong).map(|(_, what)| Mistake::of_file(what)).collect()
    }

    /// Whether tensors leave as the model made them.
    #[must_use]
    pub fn leaves_tensors_alone(&self, care: Care) -> bool {
        self.top.is_none() && self.decimals.is_none() && care.decimals.is_none()
    }

    /// Shapes every floating tensor of an answer.
    pub fn tensors(&self, tensors: &mut [Tensor], care: Care) {
        if self.leaves_tensors_alone(care) {
            return;
        }
        // The coarser of what the owner always wants and what the detectors want now.
        let decimals = [self.decimals, care.decimals].into_iter().flatten().min();
        for tensor in tensors {
            match tensor.datatype {
                Datatype::Fp32 => self.floats::<4>(tensor, decimals, |b| f64::from(f32::from_le_bytes(b)), |x| (x as f32).to_le_bytes()),
                Datatype::Fp64 => self.floats::<8>(tensor, decimals, f64::from_le_bytes, f64::to_le_bytes),
                Datatype::Fp16 => {
                    self.floats::<2>(tensor, decimals, |b| half::f16::from_le_bytes(b).to_f64(), |x| half::f16::from_f64(x).to_le_bytes());
                }
                Datatype::Bf16 => {
                    self.floats::<2>(
                        tensor,
                        decimals,
                        |b| half::bf16::from_le_bytes(b).to_f64(),
                        |x| half::bf16::from_f64(x).to_le_bytes(),
                    );
                }
                _ => {}
            }
        }
    }

    fn floats<const W: usize>(&self, tensor: &mut Tensor, decimals: Option<u8>, read: fn([u8; W]) -> f64, write: fn(f64) -> [u8; W]) {
        let classes = match tensor.shape.last().copied().map(usize::try_from) {
            Some(Ok(classes)) if classes > 0 => classes,
            _ => return,
        };
        let mut values: Vec<f64> = tensor.data.as_chunks::<W>().0.iter().map(|bytes| read(*bytes)).collect();
        for row in values.chunks_mut(classes) {
            if let Some(top) = self.top {
                keep_best(row, top as usize);
            }
            if let Some(decimals) = decimals {
                row.iter_mut().for_each(|value| *value = rounded(*value, decimals));
            }
        }
        let mut data = BytesMut::with_capacity(tensor.data.len());
        values.iter().for_each(|value| data.extend_from_slice(&write(*value)));
        tensor.data = Bytes::from(data);
    }
}

/// Zeroes all but the best `top`; of equals the first stays.
fn keep_best(row: &mut [f64], top: usize) {
    if top >= row.len() {
        return;
    }
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
    order[top..].iter().for_each(|index| row[*index] = 0.0);
}

/// `value` to so many decimals; what is not finite stays what it is.
#[must_use]
pub fn rounded(value: f64, decimals: u8) -> f64 {
    let scale = 10_f64.powi(i32::from(decimals.min(15)));
    let scaled = value * scale;
    if scaled.is_finite() { scaled.round() / scale } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fp32(shape: &[u64], values: &[f32]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor { name: "p".into(), datatype: Datatype::Fp32, shape: shape.to_vec(), data: data.into() }
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    fn shaped(config: &Config, care: Care, tensor: Tensor) -> Tensor {
        let mut tensors = [tensor];
        config.tensors(&mut tensors, care);
        let [tensor] = tensors;
        tensor
    }

    #[test]
    fn top_keeps_the_best_of_each_row_and_the_shape() {
        let config = Config { top: Some(1), ..Config::default() };
        let tensor = shaped(&config, Care::default(), fp32(&[2, 3], &[0.2, 0.5, 0.3, 0.4, 0.4, 0.2]));
        assert_eq!(values(&tensor), [0.0, 0.5, 0.0, 0.4, 0.0, 0.0]);
        assert_eq!(tensor.shape, [2, 3]);
    }

    #[test]
    fn the_coarser_rounding_wins() {
        let config = Config { decimals: Some(3), ..Config::default() };
        let care = Care { decimals: Some(1), ..Care::default() };
        assert_eq!(values(&shaped(&config, care, fp32(&[1, 2], &[0.123_45, 0.987_65]))), [0.1, 1.0]);
        assert_eq!(values(&shaped(&config, Care::default(), fp32(&[1, 1], &[0.123_45]))), [0.123]);
    }

    #[test]
    fn labels_and_what_is_not_finite_stay() {
        let config = Config { top: Some(1), decimals: Some(0), ..Config::default() };
        let label =
            Tensor { name: "label".into(), datatype: Datatype::Int64, shape: vec![1], data: Bytes::from_static(&[7, 0, 0, 0, 0, 0, 0, 0]) };
        assert_eq!(shaped(&config, Care::default(), label.clone()), label);
        assert!(values(&shaped(&config, Care::default(), fp32(&[1], &[f32::NAN])))[0].is_nan());
        assert!(rounded(f64::INFINITY, 2).is_infinite());
        assert_eq!(rounded(f64::MAX, 15), f64::MAX);
    }
}
