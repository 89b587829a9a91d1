//! The tensors that an architecture wants, each of the shape that it wants, and no other.

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor};
use candle_nn::{LayerNorm, Linear};

use super::Fault;
use crate::infer::model::safetensors::{Dtype, Layout};

/// The file's name.
pub(super) const FILE: &str = "model.safetensors";

/// The tensors of a file, of which each is taken once.
#[derive(Debug)]
pub(super) struct Weights<'b> {
    bytes: &'b [u8],
    layout: Layout,
    left: BTreeSet<String>,
    prefix: &'static str,
}

impl<'b> Weights<'b> {
    /// `bytes` are the very ones that `layout` was read from.
    pub(super) fn new(bytes: &'b [u8], layout: Layout, prefix: &'static str) -> Self {
        let left = layout.tensors.keys().cloned().collect();
        Self { bytes, layout, left, prefix }
    }

    /// A tensor of the encoder, whose name may begin with the architecture's.
    pub(super) fn of_encoder(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, Fault> {
        let prefixed = format!("{}{name}", self.prefix);
        if self.left.contains(&prefixed) { self.take(&prefixed, shape) } else { self.take(name, shape) }
    }

    /// A tensor under its full name, as 32-bit floats.
    pub(super) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, Fault> {
        let wrong = |what: String| Fault::Weights(name.to_owned(), what);
        let entry = self.layout.tensors.get(name).filter(|_| self.left.contains(name)).ok_or_else(|| wrong("is missing".to_owned()))?;
        if entry.shape != shape {
            return Err(wrong(format!("is {:?} where the configuration makes it {shape:?}", entry.shape)));
        }
        let dtype = match entry.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F64 => DType::F64,
            other => return Err(wrong(format!("is of {other}; F32, F16, BF16 and F64 are run"))),
        };
        // The one copy: the engine owns its memory.
        let tensor = Tensor::from_raw_buffer(&self.bytes[entry.range.clone()], dtype, shape, &Device::Cpu);
        let tensor = tensor.and_then(|tensor| tensor.to_dtype(DType::F32)).map_err(Fault::engine)?;
        self.left.remove(name);
        Ok(tensor)
    }

    /// A linear layer of the encoder or of a head.
    pub(super) fn linear(&mut self, name: &str, of_encoder: bool, from: usize, to: usize) -> Result<Linear, Fault> {
        let take = if of_encoder { Self::of_encoder } else { Self::take };
        let weight = take(self, &format!("{name}.weight"), &[to, from])?;
        let bias = take(self, &format!("{name}.bias"), &[to])?;
        Ok(Linear::new(weight, Some(bias)))
    }

    /// A normalisation of the encoder. Files that came from TensorFlow call its tensors `gamma` and `beta`.
    pub(super) fn norm(&mut self, name: &str, width: usize, epsilon: f64) -> Result<LayerNorm, Fault> {
        let old = |left: &BTreeSet<String>, name: &str, prefix: &str| {
            let name = format!("{name}.gamma");
            left.contains(&format!("{prefix}{name}")) || left.contains(&name)
        };
        let [scale, shift] = if old(&self.left, name, self.prefix) { ["gamma", "beta"] } else { ["weight", "bias"] };
        let scale = self.of_encoder(&format!("{name}.{scale}"), &[width])?;
        let shift = self.of_encoder(&format!("{name}.{shift}"), &[width])?;
        Ok(LayerNorm::new(scale, shift, epsilon))
    }

    /// Refuses the first tensor that nobody took and whose name does not begin with one that may be ignored.
    pub(super) fn end(self, ignored: &[&str]) -> Result<(), Fault> {
        let prefix = self.prefix;
        let unknown = |name: &&String| {
            let name = name.strip_prefix(prefix).unwrap_or(name);
            !ignored.iter().any(|known| name.starts_with(known))
        };
        match self.left.iter().find(unknown) {
            None => Ok(()),
            Some(name) => Err(Fault::Weights(name.clone(), "is not one that the architecture has".to_owned())),
        }
    }
}
