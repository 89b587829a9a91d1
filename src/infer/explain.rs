//! What each feature of a row has to do with the answer: Shapley values, by permutations of the features, each walked forward and back
//! (Štrumbelj and Kononenko 2014, <https://doi.org/10.1007/s10115-013-0679-x>; antithetic as Mitchell et al. 2022, <https://jmlr.org/papers/v23/21-0439.html>).
//!
//! A walk begins where nothing is known of the row, so that the model is asked about the background in its place, and gets to know one feature
//! after the other. What the mean of the answers changes by at a feature's turn is that feature's share. The shares of a walk sum to the
//! answer less the base value whatever the permutation, and so do their means; over features that act alone or in pairs, a walk forward and
//! back is exact.
//!
//! What is explained is the answer as this caller is given it: calibrated, rounded, cut to its best classes. An explanation tells of the model
//! nothing that its price in requests would not have told. Permutations are drawn from the model, the background and the row: the same
//! question has the same answer, whatever else is in the batch.

mod walks;

use super::model::Model;
use super::shape;
use super::{Call, Error};
use crate::check::Explanation;
use crate::detect::Care;
use crate::wire::oip;
use crate::wire::tensor::{Datatype, Tensor};

use walks::{Tally, Walks};

/// The most attributions of one answer: 8 MiB of them.
const MAX_VALUES: usize = 1 << 20;

/// The tensors that explain `told`, which is the answer to `inputs` as the caller is given it: the base value, and the attributions to each
/// input, of the shape of the input and of the output together.
///
/// # Errors
/// Those of the model; [`Error::TooLarge`] past [`MAX_VALUES`].
pub(super) async fn explain(
    explanation: &Explanation,
    inputs: &[Tensor],
    told: &Tensor,
    model: &Model,
    shape: &shape::Config,
    call: &mut Call,
) -> Result<Vec<Tensor>, Error> {
    let rows = usize::try_from(explanation.rows).unwrap_or(usize::MAX);
    let told_values = floats(told, rows)?;
    let width = told_values.len() / rows.max(1);
    let inputs = &in_order(explanation, inputs);
    let walks = Walks::new(explanation, inputs, model.which().digest);
    let values = rows.checked_mul(walks.features()).and_then(|values| values.checked_mul(width));
    if values.is_none_or(|values| values > MAX_VALUES) {
        return Err(Error::TooLarge);
    }
    let mut tally = Tally::new(&walks, &told_values, width);
    let wanted = [explanation.output.clone()];
    let mut next = 0;
    while next < walks.count() {
        let end = (next + explanation.terms.chunk()).min(walks.count());
        let question = walks.question(next..end);
        call.hold.queried();
        let answer = model.run(question, &wanted, &call.who, call.deadline).await.map_err(super::tensors::from_engine)?;
        let answer = shaped(answer, shape, call.care, end - next)?;
        if answer.len() != (end - next) * width {
            return Err(OTHER_SHAPE);
        }
        for (index, row) in (next..end).zip(answer.chunks_exact(width.max(1))) {
            tally.take(index, row);
        }
        next = end;
    }
    let output = told.shape.get(1..).unwrap_or_default();
    Ok(tally.tensors(inputs, output))
}

/// The inputs in the model's order: that of the caller changes nothing about the question.
fn in_order(explanation: &Explanation, inputs: &[Tensor]) -> Vec<Tensor> {
    let mut inputs = inputs.to_vec();
    inputs.sort_by_key(|input| explanation.terms.background().iter().position(|other| other.name == input.name));
    inputs
}

const OTHER_SHAPE: Error = Error::UpstreamBroke("the model's answers have other shapes than before");

/// The one output that was asked for, as the caller would be given it.
fn shaped(mut answer: Vec<Tensor>, shape: &shape::Config, care: Care, rows: usize) -> Result<Vec<f64>, Error> {
    shape.tensors(&mut answer, care, rows);
    let [tensor] = &answer[..] else { return Err(OTHER_SHAPE) };
    floats(tensor, rows)
}

/// The numbers of an output with one row for each of the batch.
fn floats(tensor: &Tensor, rows: usize) -> Result<Vec<f64>, Error> {
    if tensor.shape.first().copied() != u64::try_from(rows).ok() {
        return Err(Error::UpstreamBroke("an output that is explained has not one row for each of the batch"));
    }
    match tensor.datatype {
        Datatype::Fp32 => Ok(tensor.data.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()),
        Datatype::Fp64 => Ok(tensor.data.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()),
        _ => Err(Error::UpstreamBroke("an output that is explained holds no floats")),
    }
}

fn fp64(name: String, shape: Vec<u64>, values: &[f64]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor { name, datatype: Datatype::Fp64, shape, data: data.into() }
}

impl Tally<'_> {
    /// The base value as one row, and the attributions by input.
    fn tensors(self, inputs: &[Tensor], output: &[u64]) -> Vec<Tensor> {
        let (base, parts) = self.shares();
        let mut tensors = vec![fp64(oip::BASE.to_owned(), [&[1], output].concat(), &base)];
        for (input, values) in inputs.iter().zip(parts) {
            tensors.push(fp64(format!("{}{}", oip::VALUES, input.name), [&input.shape, output].concat(), &values));
        }
        tensors
    }
}

#[cfg(test)]
mod tests;
