//! What is made of the encoder's vectors: one of a text, or scores.

use candle_core::{Result, Tensor};
use candle_nn::{Linear, Module};

use super::Fault;
use super::architecture::{Architecture, Dense};
use super::config::{Activation, Probabilities, Task};
use super::folder::Pooling;
use super::weights::Weights;

/// What answers.
#[derive(Debug)]
pub(super) enum Head {
    /// A vector a text.
    Pool { pooling: Pooling, normalize: bool },
    /// Scores a text, from its first token.
    Sequence(Steps),
    /// Scores a token.
    Token(Steps),
}

/// The layers of a classifier.
#[derive(Debug)]
pub(super) struct Steps(Vec<(Linear, Option<Activation>)>);

impl Head {
    pub(super) fn take(
        weights: &mut Weights,
        architecture: &Architecture,
        task: Task,
        pool: (Pooling, bool),
        sizes: (usize, usize),
    ) -> std::result::Result<Self, Fault> {
        Ok(match task {
            Task::Embed => Self::Pool { pooling: pool.0, normalize: pool.1 },
            Task::ClassifySequences => Self::Sequence(Steps::take(weights, architecture.sequence, sizes)?),
            Task::ClassifyTokens => Self::Token(Steps::take(weights, architecture.token, sizes)?),
        })
    }

    /// The numbers of each text, of these lengths, of what the encoder made of them.
    pub(super) fn answer(&self, hidden: &Tensor, lengths: &[usize]) -> Result<Vec<Vec<f32>>> {
        let (texts, longest, width) = hidden.dims3()?;
        match self {
            Self::Pool { pooling, normalize } => {
                let hidden = hidden.flatten_all()?.to_vec1::<f32>()?;
                let rows = hidden.chunks_exact(longest * width).zip(lengths);
                Ok(rows.map(|(row, length)| pooled(&row[..length * width], width, *pooling, *normalize)).collect())
            }
            Self::Sequence(steps) => {
                let first = hidden.narrow(1, 0, 1)?.reshape((texts, width))?.contiguous()?;
                steps.run(first)?.to_vec2::<f32>()
            }
            Self::Token(steps) => {
                let scores = steps.run(hidden.reshape((texts * longest, width))?)?;
                let labels = scores.dim(1)?;
                let scores = scores.flatten_all()?.to_vec1::<f32>()?;
                let rows = scores.chunks_exact(longest * labels).zip(lengths);
                Ok(rows.map(|(row, length)| row[..length * labels].to_vec()).collect())
            }
        }
    }
}

impl Steps {
    fn take(weights: &mut Weights, layers: &[Dense], (hidden, labels): (usize, usize)) -> std::result::Result<Self, Fault> {
        let layer = |layer: &Dense| {
            let to = if layer.then.is_some() { hidden } else { labels };
            Ok((weights.linear(layer.name, layer.of_encoder, hidden, to)?, layer.then))
        };
        layers.iter().map(layer).collect::<std::result::Result<_, Fault>>().map(Self)
    }

    fn run(&self, mut values: Tensor) -> Result<Tensor> {
        for (linear, then) in &self.0 {
            values = linear.forward(&values)?;
            if let Some(activation) = then {
                values = activation.of(&values)?;
            }
        }
        Ok(values)
    }
}

/// One vector of a text's vectors, of which there is at least one. Summed in double precision, so that it does not depend on how long the text is.
pub(super) fn pooled(vectors: &[f32], width: usize, pooling: Pooling, normalize: bool) -> Vec<f32> {
    let mut sums = vec![0.0_f64; width];
    let used = if pooling == Pooling::Cls { &vectors[..width] } else { vectors };
    for vector in used.chunks_exact(width) {
        sums.iter_mut().zip(vector).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    #[expect(clippy::cast_precision_loss, reason = "a text has far fewer than 2^52 tokens")]
    let count = (used.len() / width) as f64;
    // The least length that is divided by is that of sentence-transformers.
    let length = if normalize { sums.iter().map(|sum| (sum / count).powi(2)).sum::<f64>().sqrt().max(1e-12) } else { 1.0 };
    #[expect(clippy::cast_possible_truncation, reason = "back to the width of the weights")]
    sums.into_iter().map(|sum| (sum / count / length) as f32).collect()
}

/// Probabilities of scores, `labels` of them at a time.
pub(super) fn probabilities(scores: &[f32], labels: usize, kind: Probabilities) -> Vec<f32> {
    let mut all = Vec::with_capacity(scores.len());
    for scores in scores.chunks_exact(labels.max(1)) {
        let scores = scores.iter().map(|score| f64::from(*score));
        #[expect(clippy::cast_possible_truncation, reason = "back to the width of the scores")]
        match kind {
            Probabilities::Sigmoid => all.extend(scores.map(|score| ((-score).exp() + 1.0).recip() as f32)),
            Probabilities::Softmax => {
                let largest = scores.clone().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.clone().map(|score| (score - largest).exp()).sum();
                all.extend(scores.map(|score| ((score - largest).exp() / sum) as f32));
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_pooled_by_its_mean_or_its_first_token() {
        let vectors = [3.0, 4.0, 1.0, 0.0];
        assert_eq!(pooled(&vectors, 2, Pooling::Cls, false), [3.0, 4.0]);
        assert_eq!(pooled(&vectors, 2, Pooling::Cls, true), [0.6, 0.8]);
        assert_eq!(pooled(&vectors, 2, Pooling::Mean, false), [2.0, 2.0]);
        assert_eq!(pooled(&[0.0, 0.0], 2, Pooling::Mean, true), [0.0, 0.0]);
    }

    #[test]
    fn scores_become_probabilities() {
        assert_eq!(probabilities(&[1000.0, 1000.0, 0.0, 0.0], 2, Probabilities::Softmax), [0.5; 4]);
        assert_eq!(probabilities(&[0.0, f32::MAX], 2, Probabilities::Softmax), [0.0, 1.0]);
        assert_eq!(probabilities(&[0.0, 1000.0, -1000.0], 3, Probabilities::Sigmoid), [0.5, 1.0, 0.0]);
        assert!(probabilities(&[], 3, Probabilities::Softmax).is_empty());
    }
}
