//! Many calls as one run: which may go together, how their rows are joined, and how the answers are parted again.
//!
//! It is *not* concerned with waiting: the queue decides when, and all of this is pure. A model takes part whose inputs and
//! outputs all begin with a free dimension, its rows, and whose policy says that a row's answer does not depend on the rows beside it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use toml::Spanned;

use super::{Error, Signature};
use crate::mistake::Mistake;
use crate::trail::Who;
use crate::unit::Span;
use crate::wire::tensor::{Datatype, Port, Tensor};

/// The most rows that a policy may join in one run.
pub const MAX_ROWS: usize = 4096;

/// The longest that a policy may have a call wait for others. What waits longer is no interactive call.
pub const MAX_DELAY: Duration = Duration::from_secs(1);

/// How much of a padded run may be padding: so many times what the calls sent.
const MAX_PADDED: usize = 2;

/// `[backend.….batch]` of a model's file: calls that wait at the same time are answered by one run.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The most rows of one run, from 2 to [`MAX_ROWS`]. A call with more runs alone.
    pub max: Spanned<usize>,
    /// How long the first call waits for others while there is room, at most [`MAX_DELAY`]. With none, calls are joined that came while the
    /// run before was busy.
    #[serde(default)]
    pub delay: Option<Spanned<Span>>,
    /// Whether calls of different tenants may share a run.
    #[serde(default)]
    pub across_tenants: bool,
    /// Inputs whose second dimension is the length of a text, each with what fills it up to the longest of a run. Without, only calls of
    /// equal lengths are joined.
    #[serde(default)]
    pub pad: BTreeMap<String, i64>,
}

/// How calls are joined; as the policy has it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The most rows of one run.
    pub max: usize,
    /// How long the first call waits for others.
    pub delay: Duration,
    /// Whether calls of different tenants may share a run.
    pub across_tenants: bool,
    /// Inputs that are filled up, and with what.
    pub pad: BTreeMap<String, i64>,
}

impl Config {
    /// # Errors
    /// Every mistake in the block.
    pub(super) fn resolve(&self) -> Result<Plan, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let max = *self.max.get_ref();
        if !(2..=MAX_ROWS).contains(&max) {
            mistakes.push(Mistake::at(self.max.span(), format!("`batch.max` is from 2 to {MAX_ROWS} rows; leave the block out for none")));
        }
        let delay = self.delay.as_ref().map_or(Duration::ZERO, |delay| delay.get_ref().0);
        if let (Some(at), true) = (&self.delay, delay > MAX_DELAY) {
            mistakes.push(Mistake::at(at.span(), "`batch.delay` is at most \"1s\""));
        }
        let plan = Plan { max, delay, across_tenants: self.across_tenants, pad: self.pad.clone() };
        if mistakes.is_empty() { Ok(plan) } else { Err(mistakes) }
    }
}

/// A [`Plan`] for one model.
#[derive(Debug)]
pub(super) struct Batching {
    pub(super) max: usize,
    pub(super) delay: Duration,
    across_tenants: bool,
    /// Inputs that are filled up, each with one element to do it.
    pads: BTreeMap<String, Vec<u8>>,
    /// For each output, whether its second dimension may be the length of a text.
    lengths: Vec<bool>,
}

impl Batching {
    /// The plan for a model of this signature; with none, each call runs alone.
    ///
    /// # Errors
    /// Why the model cannot be batched, for the operator.
    pub(super) fn new(plan: Option<&Plan>, signature: &Signature) -> Result<Self, String> {
        let Signature { inputs, instead, outputs, .. } = signature;
        let Some(Plan { max, delay, across_tenants, pad }) = plan else {
            return Ok(Self { max: 1, delay: Duration::ZERO, across_tenants: false, pads: BTreeMap::new(), lengths: Vec::new() });
        };
        if let Some(port) = inputs.iter().chain(instead).chain(outputs).find(|port| port.shape.first() != Some(&None)) {
            return Err(format!("its calls cannot be batched: the first dimension of `{}` is fixed in the model", port.name));
        }
        // The length of a text shows in such an output, and would be that of a neighbour's.
        let hidden = inputs.iter().any(|port| port.datatype == Datatype::Bytes);
        if let Some(port) = outputs.iter().find(|port| hidden && port.shape[1..].contains(&None)) {
            return Err(format!("its calls cannot be batched: `{}` is as long as the longest text of a run", port.name));
        }
        let element_of = |(name, value): (&String, &i64)| {
            let port = inputs.iter().chain(instead).find(|port| port.name == *name);
            let port = port.ok_or_else(|| format!("`batch.pad` names `{name}`, which is no input of the model"))?;
            Ok((name.clone(), element(port, *value)?))
        };
        let pads = pad.iter().map(element_of).collect::<Result<_, String>>()?;
        let lengths = outputs.iter().map(|port| !pad.is_empty() && port.shape.get(1) == Some(&None)).collect();
        Ok(Self { max: *max, delay: *delay, across_tenants: *across_tenants, pads, lengths })
    }

    /// Whether a call of these inputs can share a run at all; then, its rows.
    pub(super) fn rows(&self, inputs: &[Tensor]) -> Option<usize> {
        let rows = *inputs.first()?.shape.first()?;
        let rows = usize::try_from(rows).ok().filter(|rows| (1..=self.max).contains(rows))?;
        inputs.iter().all(|tensor| tensor.shape.first() == Some(&(rows as u64))).then_some(rows)
    }

    /// The longest second dimension of the inputs that are filled up.
    fn length(&self, inputs: &[Tensor]) -> usize {
        let filled = inputs.iter().filter(|tensor| self.pads.contains_key(&tensor.name));
        filled.filter_map(|tensor| usize::try_from(*tensor.shape.get(1)?).ok()).max().unwrap_or(0)
    }
}

/// One element of `port` with this value.
fn element(port: &Port, value: i64) -> Result<Vec<u8>, String> {
    let (name, datatype) = (&port.name, port.datatype);
    if port.shape.len() != 2 || port.shape[1].is_some() {
        return Err(format!("`batch.pad` names `{name}`, which is not rows of a free length"));
    }
    let other = || format!("`batch.pad` fills `{name}` with {value}, which is no {datatype}");
    Ok(match datatype {
        Datatype::Int64 => value.to_le_bytes().to_vec(),
        Datatype::Int32 => i32::try_from(value).map_err(|_| other())?.to_le_bytes().to_vec(),
        Datatype::Uint8 => vec![u8::try_from(value).map_err(|_| other())?],
        Datatype::Bool if matches!(value, 0 | 1) => vec![value as u8],
        #[expect(clippy::cast_precision_loss, reason = "what does not come back is refused")]
        Datatype::Fp32 if (value as f32) as i64 == value => (value as f32).to_le_bytes().to_vec(),
        _ => return Err(other()),
    })
}

/// A run in the making: what its calls have in common, and how large it is by now.
pub(super) struct Party<'b> {
    batching: &'b Batching,
    tenant: Arc<str>,
    shapes: Vec<(String, Vec<u64>)>,
    rows: usize,
    length: usize,
    /// Elements of one padded input that were sent.
    sent: usize,
}

impl<'b> Party<'b> {
    /// Begins with the call that is next; none where it runs alone.
    pub(super) fn of(batching: &'b Batching, who: &Who, inputs: &[Tensor]) -> Option<Self> {
        if batching.max < 2 {
            return None;
        }
        let rows = batching.rows(inputs)?;
        let length = batching.length(inputs);
        let shapes = inputs.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect();
        Some(Self { batching, tenant: who.tenant.clone(), shapes, rows, length, sent: rows * length })
    }

    pub(super) fn is_full(&self) -> bool {
        self.rows >= self.batching.max
    }

    /// Takes a call in, if it fits.
    pub(super) fn takes(&mut self, who: &Who, inputs: &[Tensor]) -> bool {
        let Some(rows) = self.batching.rows(inputs) else { return false };
        let length = self.batching.length(inputs);
        let (all_rows, longest, sent) = (self.rows + rows, self.length.max(length), self.sent + rows * length);
        let alike = self.shapes.len() == inputs.len()
            && self.shapes.iter().zip(inputs).all(|((name, shape), tensor)| {
                let from = if self.batching.pads.contains_key(name) { 2 } else { 1 };
                *name == tensor.name && shape.len() == tensor.shape.len() && shape[from..] == tensor.shape[from..]
            });
        let fits = alike
            && all_rows <= self.batching.max
            && all_rows.saturating_mul(longest) <= sent.saturating_mul(MAX_PADDED)
            && (self.batching.across_tenants || self.tenant == who.tenant);
        if fits {
            (self.rows, self.length, self.sent) = (all_rows, longest, sent);
        }
        fits
    }
}

/// The inputs of several calls as those of one, in their order.
pub(super) fn join(batching: &Batching, calls: &[&[Tensor]]) -> Vec<Tensor> {
    let longest = calls.iter().map(|inputs| batching.length(inputs)).max().unwrap_or(0);
    let first = calls.first().copied().unwrap_or_default();
    let joined = |(place, like): (usize, &Tensor)| {
        let tensors = || calls.iter().filter_map(|inputs| inputs.get(place));
        let rows = tensors().filter_map(|tensor| tensor.shape.first()).sum();
        let mut shape = like.shape.clone();
        shape[0] = rows;
        let data = match batching.pads.get(&like.name) {
            None => {
                let mut data = BytesMut::with_capacity(tensors().map(|tensor| tensor.data.len()).sum());
                tensors().for_each(|tensor| data.extend_from_slice(&tensor.data));
                data
            }
            Some(pad) => {
                shape[1] = longest as u64;
                let width = longest * pad.len();
                let mut data = BytesMut::with_capacity(width * usize::try_from(rows).unwrap_or(0));
                for tensor in tensors() {
                    let length = tensor.shape.get(1).map_or(0, |length| usize::try_from(*length).unwrap_or(0));
                    let rows = tensor.shape.first().map_or(0, |rows| usize::try_from(*rows).unwrap_or(0));
                    for row in 0..rows {
                        data.extend_from_slice(&tensor.data[row * length * pad.len()..(row + 1) * length * pad.len()]);
                        (length..longest).for_each(|_| data.extend_from_slice(pad));
                    }
                }
                data
            }
        };
        Tensor { name: like.name.clone(), datatype: like.datatype, shape, data: data.freeze() }
    };
    first.iter().enumerate().map(joined).collect()
}

/// The answer of a joined run as those of its calls, in their order. `places` are those of the outputs in the model's signature.
///
/// # Errors
/// The model answered other rows than it was given.
pub(super) fn part(batching: &Batching, calls: &[&[Tensor]], places: &[usize], outputs: Vec<Tensor>) -> Result<Vec<Vec<Tensor>>, Error> {
    let rows: Vec<usize> = calls.iter().map(|inputs| batching.rows(inputs).unwrap_or(0)).collect();
    let lengths: Vec<usize> = calls.iter().map(|inputs| batching.length(inputs)).collect();
    let (total, longest) = (rows.iter().sum::<usize>(), lengths.iter().copied().max().unwrap_or(0));
    let mut answers: Vec<Vec<Tensor>> = calls.iter().map(|_| Vec::with_capacity(outputs.len())).collect();
    for (place, output) in places.iter().zip(outputs) {
        if output.shape.first() != Some(&(total as u64)) {
            return Err(Error::ModelBrokeItsContract("an output has other rows than the inputs"));
        }
        let of_texts = batching.lengths.get(*place).copied().unwrap_or(false) && output.shape.get(1) == Some(&(longest as u64));
        let mut rest = output.data.clone();
        for ((answer, rows), length) in answers.iter_mut().zip(&rows).zip(&lengths) {
            let mut shape = output.shape.clone();
            shape[0] = *rows as u64;
            let mut data = match output.datatype {
                Datatype::Bytes => rest.split_to(strings(&rest, shape.iter().product())?),
                _ => rest.split_to(output.data.len() / total * rows),
            };
            if of_texts && *length < longest {
                if output.datatype == Datatype::Bytes {
                    return Err(Error::ModelBrokeItsContract("an output of texts was filled up"));
                }
                if data.is_empty() {
                    return Err(Error::ModelBrokeItsContract("an output of texts is empty"));
                }
                let (wide, narrow) = (data.len() / rows, data.len() / rows / longest * length);
                let mut cut = BytesMut::with_capacity(narrow * rows);
                data.chunks_exact(wide).for_each(|row| cut.extend_from_slice(&row[..narrow]));
                (data, shape[1]) = (cut.freeze(), *length as u64);
            }
            answer.push(Tensor { name: output.name.clone(), datatype: output.datatype, shape, data });
        }
    }
    Ok(answers)
}

/// How many bytes so many strings take, each behind its length.
fn strings(data: &Bytes, count: u64) -> Result<usize, Error> {
    let mut at = 0_usize;
    for _ in 0..count {
        let length = data.get(at..).and_then(<[u8]>::first_chunk).map(|length| u32::from_le_bytes(*length) as usize);
        let end = length.and_then(|length| at.checked_add(4)?.checked_add(length)).filter(|end| *end <= data.len());
        at = end.ok_or(Error::ModelBrokeItsContract("an output of strings ends in the middle"))?;
    }
    Ok(at)
}

#[cfg(test)]
mod tests;
