//! Numbers that are finer than the model's honest callers send them. Instruments, pixels and prices come on a grid;
//! random and optimised queries, from which small models are computed, do not.
//!
//! The grid of each input is the operator's word. What is off it is counted; noise in the last digits of a type is not.

use std::collections::BTreeMap;

use half::{bf16, f16};
use serde::Deserialize;
use toml::Spanned;

use super::{Act, Care, Family, Finding, Mode, Weighed, decimals};
use crate::check::{Contract, Request, unfit_input};
use crate::mistake::Mistake;
use crate::wire::tensor::{Datatype, Tensor};

/// The part of an input's numbers that may be off its grid.
pub const DEFAULT_FRACTION: f64 = 0.05;

/// How far off the grid still counts as on it, in steps.
const TOLERANCE: f64 = 1e-3;

/// `[detect.precision]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Its mode; the mode of `[detect]` where it is left out.
    pub mode: Option<Mode>,
    /// The grid of each input tensor that has one.
    pub inputs: BTreeMap<String, Spanned<Grid>>,
    /// The part of an input's numbers that may be off its grid, from 0 to 1; 0.05 where it is left out.
    pub fraction: Option<Spanned<f64>>,
    /// Decimals to which the numbers of answers are rounded, at most 15; not rounded where it is left out.
    pub decimals: Option<Spanned<u8>>,
}

/// A grid: one of the two.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// Numbers are multiples of this, which is more than 0.
    pub step: Option<f64>,
    /// Numbers have so many decimals, at most 15.
    pub decimals: Option<u8>,
}

/// The rules in force.
#[derive(Debug)]
pub(super) struct Precision {
    steps: BTreeMap<String, f64>,
    fraction: f64,
    decimals: Option<u8>,
}

impl Config {
    pub(super) fn compile(&self, contract: Option<&Contract>, mistakes: &mut Vec<Mistake>) -> Precision {
        let mut steps = BTreeMap::new();
        for (name, grid) in &self.inputs {
            mistakes.extend(unfit_input(name, grid.span(), contract));
            match *grid.get_ref() {
                Grid { step: Some(step), decimals: None } if step.is_finite() && step > 0.0 => {
                    steps.insert(name.clone(), step);
                }
                Grid { step: None, decimals: Some(decimals) } if decimals <= super::MOST_DECIMALS => {
                    steps.insert(name.clone(), 10_f64.powi(-i32::from(decimals)));
                }
                _ => mistakes.push(Mistake::at(grid.span(), "a grid is either { step = more than 0 } or { decimals = 0 to 15 }")),
            }
        }
        if let Some(fraction) = self.fraction.as_ref().filter(|fraction| !(0.0..=1.0).contains(fraction.get_ref())) {
            mistakes.push(Mistake::at(fraction.span(), "a fraction is from 0 to 1"));
        }
        let fraction = self.fraction.as_ref().map_or(DEFAULT_FRACTION, |fraction| *fraction.get_ref());
        Precision { steps, fraction, decimals: decimals(self.decimals.as_ref(), mistakes) }
    }
}

impl Family for Precision {
    fn name(&self) -> &'static str {
        "precision"
    }

    fn weigh(&self, request: &Request) -> Weighed {
        let Some(request) = request.tensors() else { return Weighed::default() };
        let care = Care { decimals: self.decimals, ..Care::default() };
        let finding = request.inputs.iter().enumerate().find_map(|(index, tensor)| {
            let step = self.steps.get(&tensor.name)?;
            let (off, of) = off_grid(tensor, *step);
            let evidence = || vec![("input", (index as u64).into()), ("off", off.into()), ("of", of.into())];
            let fine = off as f64 > self.fraction * of as f64;
            fine.then(|| Finding { rule: "precision.step", evidence: evidence(), act: Act::RefuseStep })
        });
        Weighed { care, finding }
    }
}

/// How many of a tensor's numbers are off the grid, and how many there are.
fn off_grid(tensor: &Tensor, step: f64) -> (u64, u64) {
    // What a type cannot tell apart is no precision: half a unit in the last place, relative to the number.
    let count = |bits: i32| Off { step, noise: 2_f64.powi(-bits) };
    let data = &tensor.data[..];
    match tensor.datatype {
        Datatype::Fp16 => count(11).all(data, |bytes| f16::from_le_bytes(bytes).into()),
        Datatype::Bf16 => count(8).all(data, |bytes| bf16::from_le_bytes(bytes).into()),
        Datatype::Fp32 => count(24).all(data, |bytes| f32::from_le_bytes(bytes).into()),
        Datatype::Fp64 => count(53).all(data, f64::from_le_bytes),
        Datatype::Uint8 => count(53).all(data, |bytes| u8::from_le_bytes(bytes).into()),
        Datatype::Uint16 => count(53).all(data, |bytes| u16::from_le_bytes(bytes).into()),
        Datatype::Uint32 => count(53).all(data, |bytes| u32::from_le_bytes(bytes).into()),
        Datatype::Uint64 => count(53).all(data, |bytes| u64::from_le_bytes(bytes) as f64),
        Datatype::Int8 => count(53).all(data, |bytes| i8::from_le_bytes(bytes).into()),
        Datatype::Int16 => count(53).all(data, |bytes| i16::from_le_bytes(bytes).into()),
        Datatype::Int32 => count(53).all(data, |bytes| i32::from_le_bytes(bytes).into()),
        Datatype::Int64 => count(53).all(data, |bytes| i64::from_le_bytes(bytes) as f64),
        // Numbers as texts would pass with any precision, to a server that reads them.
        Datatype::Bytes => (1, 1),
        Datatype::Bool => (0, 0),
    }
}

struct Off {
    step: f64,
    noise: f64,
}

impl Off {
    fn all<const W: usize>(&self, data: &[u8], read: impl Fn([u8; W]) -> f64) -> (u64, u64) {
        let chunks = data.as_chunks::<W>().0;
        (chunks.iter().map(|bytes| u64::from(self.is(read(*bytes)))).sum(), chunks.len() as u64)
    }

    /// What is not finite is on every grid: whether it may be sent is asked elsewhere.
    fn is(&self, value: f64) -> bool {
        let steps = value / self.step;
        (steps - steps.round()).abs() > TOLERANCE + steps.abs() * self.noise
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::oip::InferRequest;
    use crate::wire::tensor::Port;

    fn family(text: &str) -> (Precision, Vec<Mistake>) {
        let mut mistakes = Vec::new();
        let family = toml::from_str::<Config>(text).unwrap().compile(None, &mut mistakes);
        (family, mistakes)
    }

    fn fp32(values: &[f32]) -> Request {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>().into();
        let tensor = Tensor { name: "input".into(), datatype: Datatype::Fp32, shape: vec![values.len() as u64], data };
        Request::Tensors(InferRequest { inputs: vec![tensor], ..InferRequest::default() })
    }

    #[test]
    fn numbers_on_the_grid_pass_and_a_fraction_past_the_allowed_does_not() {
        let (family, _) = family("inputs = { input = { step = 1.0 } }\nfraction = 0.25");
        assert!(family.weigh(&fp32(&[0.0, 16.0, 3.0, 5.5])).finding.is_none());
        let finding = family.weigh(&fp32(&[0.0, 16.0, 3.2, 5.5])).finding.unwrap();
        assert_eq!(finding.rule, "precision.step");
        assert_eq!(finding.evidence, [("input", 0.into()), ("off", 2.into()), ("of", 4.into())]);
        assert!(family.weigh(&Request::Nothing).finding.is_none());
        let text = Tensor { name: "input".into(), datatype: Datatype::Bytes, shape: vec![1], data: b"\x03\0\0\x005.5"[..].into() };
        let text = Request::Tensors(InferRequest { inputs: vec![text], ..InferRequest::default() });
        assert!(family.weigh(&text).finding.is_some(), "a number as a text is as fine as its sender likes");
    }

    #[test]
    fn a_grid_that_is_none_is_a_mistake_with_its_place() {
        for text in ["step = 0.0", "step = -1.0", "step = inf", "step = 1.0, decimals = 1", "decimals = 16", ""] {
            assert_eq!(family(&format!("inputs = {{ x = {{ {text} }} }}")).1.len(), 1, "{text}");
        }
        assert_eq!(family("fraction = 1.5\ndecimals = 16").1.len(), 2);
        let inputs = vec![Port { name: "text".into(), datatype: Datatype::Bytes, shape: vec![None] }];
        let (contract, mut mistakes) = (Contract { inputs, ..Contract::default() }, Vec::new());
        for name in ["text", "txt"] {
            let config: Config = toml::from_str(&format!("inputs = {{ {name} = {{ step = 1.0 }} }}")).unwrap();
            config.compile(Some(&contract), &mut mistakes);
        }
        let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        assert!(told[0].contains("holds BYTES, which are no numbers") && told[1].contains("the nearest it has is \"text\""), "{told:?}");
        assert_eq!(told.len(), 2);
    }

    proptest! {
        #[test]
        fn what_was_rounded_to_the_grid_is_on_it_whatever_its_type(value in -1e4_f64..1e4, decimals in 0_u8..4) {
            let step = 10_f64.powi(-i32::from(decimals));
            let rounded = (value / step).round() * step;
            for (datatype, data) in [
                (Datatype::Fp64, rounded.to_le_bytes().to_vec()),
                (Datatype::Fp32, (rounded as f32).to_le_bytes().to_vec()),
                (Datatype::Fp16, f16::from_f64(rounded).to_le_bytes().to_vec()),
                (Datatype::Bf16, bf16::from_f64(rounded).to_le_bytes().to_vec()),
            ] {
                let tensor = Tensor { name: String::new(), datatype, shape: vec![1], data: data.into() };
                prop_assert_eq!(off_grid(&tensor, step), (0, 1), "{} {}", datatype, rounded);
            }
        }
    }
}
