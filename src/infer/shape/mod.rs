//! The shape of an answer: how much of what the model said is told.
//!
//! Names, shapes and types of tensors stay; what is withheld is zero, or below what is told where zero is not; what is rounded is rounded. Integer and string
//! tensors (labels) are left as they are. Each shape is a file, and works on one row of numbers; no row knows of its neighbours, so that an
//! input is answered alike alone and in a batch. All of them keep the best class of a row of probabilities, in the type that is written.
//!
//! Any perturbation that keeps the best class protects no better than the label-only answer does: a thief can throw the rest away.

use bytes::{Bytes, BytesMut};
use serde::Deserialize;

use crate::detect::response::{Coverage, Response, Shaping};
use crate::detect::{Care, MOST_DECIMALS};
use crate::mistake::Mistake;
use crate::unit::Size;
use crate::wire::openai::embeddings::VECTORS;
use crate::wire::tensor::{Datatype, Port, Tensor};

pub mod adversarial;
pub mod noise;
pub mod one_hot;
pub mod quantised;
pub mod reverse_sigmoid;
pub mod rounding;
pub mod row;

pub use rounding::rounded;
use row::Kind;

/// `[answer]` of a model's file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Keep the best so many classes. The others are zero; where that is not below what is kept, as among logits, they are
    /// as unlikely as anything that is told.
    pub top: Option<u32>,
    /// Round probabilities to so many decimals, at most 15.
    pub decimals: Option<u8>,
    /// Output tensors that hold logits, or logarithms of probabilities. Where the detectors have answers tell less, these are shaped as the
    /// probabilities that they stand for, and leave as logarithms of probabilities.
    #[serde(default)]
    pub logits: Vec<String>,
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
        self.top.is_none() && self.decimals.is_none() && care.decimals.is_none() && care.response.is_nothing()
    }

    /// Shapes every floating tensor of an answer to so many rows: a tensor of one dimension has a number for each of them where it is as
    /// long, and is one row otherwise.
    pub fn tensors(&self, tensors: &mut [Tensor], care: Care, rows: usize) {
        if self.leaves_tensors_alone(care) {
            return;
        }
        // The coarser of what the owner always wants and what the detectors want now.
        let decimals = [self.decimals, care.decimals].into_iter().flatten().min();
        for tensor in tensors {
            let logits = self.logits.iter().any(|name| **name == *tensor.name);
            let classes = classes(&tensor.shape, rows);
            let (top, embeds) = (self.top.map(|top| top as usize), tensor.name == VECTORS);
            let noise = embeds && care.response.covered != Coverage::default();
            let how = How { classes, top, decimals, logits, embeds, noise, response: care.response };
            match tensor.datatype {
                Datatype::Fp32 => floats::<4>(tensor, &how, |b| f64::from(f32::from_le_bytes(b)), |x| (x as f32).to_le_bytes()),
                Datatype::Fp64 => floats::<8>(tensor, &how, f64::from_le_bytes, f64::to_le_bytes),
                Datatype::Fp16 => {
                    floats::<2>(tensor, &how, |b| half::f16::from_le_bytes(b).to_f64(), |x| half::f16::from_f64(x).to_le_bytes());
                }
                Datatype::Bf16 => {
                    floats::<2>(tensor, &how, |b| half::bf16::from_le_bytes(b).to_f64(), |x| half::bf16::from_f64(x).to_le_bytes());
                }
                _ => {}
            }
        }
    }
}

/// Whether a tensor that is left as it is, as labels are, may hold scores: rows of numbers of eight bits, which quantised models give.
#[must_use]
pub fn may_be_unshaped_scores(port: &Port) -> bool {
    matches!(port.datatype, Datatype::Uint8 | Datatype::Int8) && matches!(*port.shape, [_, width] if width != Some(1))
}

/// What is done to the rows of one tensor.
struct How {
    /// Numbers a row.
    classes: usize,
    top: Option<usize>,
    decimals: Option<u8>,
    logits: bool,
    /// Whether rows are embeddings.
    embeds: bool,
    /// Whether they are to be noisy.
    noise: bool,
    response: Response,
}

impl How {
    /// Shapes one row. `narrowed` is what a number is once it is written.
    fn row(&self, row: &mut [f64], narrowed: impl Fn(f64) -> f64) {
        match Kind::of(row, self.logits) {
            Kind::Numbers | Kind::Probability | Kind::Probabilities if self.noise && self.response.shaping != Shaping::LabelOnly => {
                noise::shape(row, self.response.covered, &self.response.seed);
                self.coarsened(row, None, narrowed);
            }
            // What stands beside a number that is none is not told in the place of what was to be withheld.
            Kind::Broken if self.response.shaping != Shaping::AsIs => one_hot::broken(row),
            Kind::Numbers if self.response.shaping == Shaping::LabelOnly => {
                let before = row.to_vec();
                one_hot::numbers(row);
                // What a narrow type cannot hold any more stays.
                row.iter_mut().zip(before).filter(|(value, _)| !narrowed(**value).is_finite()).for_each(|(value, before)| *value = before);
            }
            Kind::Broken | Kind::Numbers => self.coarsened(row, None, narrowed),
            Kind::Probability => row.iter_mut().for_each(|p| *p = self.single(*p, &narrowed)),
            Kind::Probabilities => {
                let best = row::best(row);
                respond(row, best, &self.response);
                self.coarsened(row, Some(best), &narrowed);
                row.iter_mut().for_each(|value| *value = narrowed(*value));
                if row::best(row) != best {
                    row::crown(row, best);
                }
            }
            // Without a response they are numbers like others: those that are kept are rounded, and left alone.
            Kind::Logits if self.response.shaping == Shaping::AsIs => self.coarsened(row, None, narrowed),
            Kind::Logits => {
                let best = row::best(row);
                row::softmax(row);
                respond(row, best, &self.response);
                if let Some(top) = self.top {
                    rounding::keep_best(row, top, |_| 0.0);
                }
                row::logarithms(row);
                if let Some(decimals) = self.decimals {
                    row.iter_mut().for_each(|value| *value = rounded(*value, decimals));
                }
                if row::best(&row.iter().map(|value| narrowed(*value)).collect::<Vec<_>>()) != best {
                    row[best] = 0.0;
                }
            }
        }
    }

    /// Shapes the probability of the second of two classes as that of both. The class stays, which is the second from a half on.
    fn single(&self, p: f64, narrowed: impl Fn(f64) -> f64) -> f64 {
        let second = p >= 0.5;
        let mut both = [1.0 - p, p];
        respond(&mut both, usize::from(second), &self.response);
        let coarse = |p| self.decimals.map_or(p, |decimals| rounded(p, decimals));
        let told = narrowed(coarse(both[1]));
        if (told >= 0.5) == second {
            return told;
        }
        let step = self.decimals.map_or(0.0, |decimals| 0.1_f64.powi(decimals.into())).max(row::OVER);
        coarse(if second { 0.5 } else { (0.5 - step).max(0.0) })
    }

    /// Keeps few of a row, and rounds them. Of probabilities it is told which is the `best`.
    fn coarsened(&self, row: &mut [f64], best: Option<usize>, narrowed: impl Fn(f64) -> f64) {
        if let Some(top) = self.top {
            // Scores are positive, and of one that is withheld zero says nothing; a logit of zero is a good one, which would say more than it is.
            let zero = best.is_some() || self.embeds;
            rounding::keep_best(row, top, |least| if zero || least > 0.0 && !self.logits { 0.0 } else { row::below(least, narrowed) });
        }
        match (self.decimals, best) {
            (Some(decimals), Some(best)) => rounding::shape(row, best, decimals),
            (Some(decimals), None) => row.iter_mut().for_each(|value| *value = rounded(*value, decimals)),
            (None, _) => {}
        }
    }
}

/// Carries out what the ladder wants done to a row of probabilities.
pub fn respond(row: &mut [f64], best: usize, response: &Response) {
    match response.shaping {
        Shaping::AsIs => {}
        Shaping::Adversarial => adversarial::shape(row, best),
        Shaping::ReverseSigmoid(level) => reverse_sigmoid::shape(row, best, level),
        Shaping::Quantised(level) => quantised::shape(row, best, level, &response.seed),
        Shaping::LabelOnly => one_hot::shape(row, best),
    }
}

/// Numbers a row of a tensor of this shape.
fn classes(shape: &[u64], rows: usize) -> usize {
    match shape {
        [] => 1,
        [length] if rows > 1 && *length == rows as u64 => 1,
        [.., last] => usize::try_from(*last).unwrap_or(usize::MAX).max(1),
    }
}

fn floats<const W: usize>(tensor: &mut Tensor, how: &How, read: fn([u8; W]) -> f64, write: fn(f64) -> [u8; W]) {
    let mut values: Vec<f64> = tensor.data.as_chunks::<W>().0.iter().map(|bytes| read(*bytes)).collect();
    values.chunks_mut(how.classes).for_each(|row| how.row(row, |value| read(write(value))));
    let mut data = BytesMut::with_capacity(tensor.data.len());
    values.iter().for_each(|value| data.extend_from_slice(&write(*value)));
    tensor.data = Bytes::from(data);
}

#[cfg(test)]
mod tests;
