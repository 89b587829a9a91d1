//! What an encoder computes: embeddings, then layers of attention and a feed-forward part, each added to its input and normalised after.

use candle_core::{D, Device, Module, Result, Tensor};
use candle_nn::ops::softmax_last_dim;
use candle_nn::{LayerNorm, Linear};

use super::Fault;
use super::architecture::{Architecture, Dimensions};
use super::config::Activation;
use super::gelu::Gelu;
use super::weights::Weights;

/// Whether a call that runs is to stop. It is asked between texts that are read and between layers, on the engine's own thread too.
pub type Stop<'s> = &'s (dyn Fn() -> bool + Sync);

/// What a run ended with.
pub(super) enum Ended {
    /// One vector for each place of each text: texts × longest × width.
    With(Tensor),
    /// It was told to stop.
    Stopped,
}

/// An encoder with its weights.
#[derive(Debug)]
pub(super) struct Layers {
    words: Tensor,
    /// One row for each place, the vector of the only token type added.
    places: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
    heads: usize,
}

#[derive(Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    activation: Activation,
    down: Linear,
    output_norm: LayerNorm,
}

impl Layers {
    pub(super) fn take(weights: &mut Weights, architecture: &Architecture, sizes: &Dimensions) -> std::result::Result<Self, Fault> {
        let names = &architecture.names;
        let table = |name: &str| format!("{name}.weight");
        let words = weights.of_encoder(&table(names.words), &[sizes.vocabulary, sizes.hidden])?;
        let positions = weights.of_encoder(&table(names.positions), &[sizes.positions, sizes.hidden])?;
        let first = sizes.first_position;
        let mut places = positions.narrow(0, first, sizes.positions - first).map_err(Fault::engine)?;
        if let Some(types) = names.types.filter(|_| sizes.types > 0) {
            let types = weights.of_encoder(&table(types), &[sizes.types, sizes.hidden])?;
            // Texts come one at a time, and all their tokens are of the first type.
            places = types.narrow(0, 0, 1).and_then(|first| places.broadcast_add(&first)).map_err(Fault::engine)?;
        }
        let norm = weights.norm(names.norm, sizes.hidden, sizes.epsilon)?;
        let layer = |place: usize| {
            let name = |part: &str| format!("{}.{place}.{part}", names.layer);
            let (hidden, inner, epsilon) = (sizes.hidden, sizes.intermediate, sizes.epsilon);
            Ok(Layer {
                query: weights.linear(&name(names.query), true, hidden, hidden)?,
                key: weights.linear(&name(names.key), true, hidden, hidden)?,
                value: weights.linear(&name(names.value), true, hidden, hidden)?,
                attention: weights.linear(&name(names.attention), true, hidden, hidden)?,
                attention_norm: weights.norm(&name(names.attention_norm), hidden, epsilon)?,
                up: weights.linear(&name(names.up), true, hidden, inner)?,
                activation: sizes.activation,
                down: weights.linear(&name(names.down), true, inner, hidden)?,
                output_norm: weights.norm(&name(names.output_norm), hidden, epsilon)?,
            })
        };
        let layers = (0..sizes.layers).map(layer).collect::<std::result::Result<_, Fault>>()?;
        Ok(Self { words, places, norm, layers, heads: sizes.heads })
    }

    /// Runs texts together, filled up to the longest with `padding`. Every token is in the vocabulary and no text is longer than the table of
    /// places.
    pub(super) fn run(&self, texts: &[&[u32]], padding: u32, stop: Stop) -> Result<Ended> {
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        let mut tokens = Vec::with_capacity(texts.len() * longest);
        for text in texts {
            tokens.extend_from_slice(text);
            tokens.resize(tokens.len() + longest - text.len(), padding);
        }
        let tokens = Tensor::from_vec(tokens, texts.len() * longest, &Device::Cpu)?;
        let places = self.places.narrow(0, 0, longest)?;
        let embedded = self.words.index_select(&tokens, 0)?.reshape((texts.len(), longest, ()))?.broadcast_add(&places)?;
        let mut hidden = self.norm.forward(&embedded)?;
        let mask = mask(texts, longest)?;
        for layer in &self.layers {
            if stop() {
                return Ok(Ended::Stopped);
            }
            hidden = layer.run(&hidden, mask.as_ref(), self.heads)?;
        }
        Ok(if stop() { Ended::Stopped } else { Ended::With(hidden) })
    }
}

/// What is added to the scores of attention so that nothing attends to padding; `None` where there is none.
fn mask(texts: &[&[u32]], longest: usize) -> Result<Option<Tensor>> {
    if texts.iter().all(|text| text.len() == longest) {
        return Ok(None);
    }
    let mut mask = Vec::with_capacity(texts.len() * longest);
    for text in texts {
        mask.resize(mask.len() + text.len(), 0.0_f32);
        mask.resize(mask.len() + longest - text.len(), f32::NEG_INFINITY);
    }
    Tensor::from_vec(mask, (texts.len(), 1, 1, longest), &Device::Cpu).map(Some)
}

impl Layer {
    fn run(&self, input: &Tensor, mask: Option<&Tensor>, heads: usize) -> Result<Tensor> {
        let attended = self.attention.forward(&self.attend(input, mask, heads)?)?;
        let attended = self.attention_norm.forward(&(attended + input)?)?;
        let inner = self.activation.of(&self.up.forward(&attended)?)?;
        self.output_norm.forward(&(self.down.forward(&inner)? + &attended)?)
    }

    fn attend(&self, input: &Tensor, mask: Option<&Tensor>, heads: usize) -> Result<Tensor> {
        let (texts, longest, width) = input.dims3()?;
        let each = width / heads;
        let split = |tensor: Tensor| tensor.reshape((texts, longest, heads, each))?.transpose(1, 2)?.contiguous();
        // Scaled before they are multiplied: there are fewer of them then.
        #[expect(clippy::cast_precision_loss, reason = "a width is far below 2^52")]
        let query = split((self.query.forward(input)? * (each as f64).sqrt().recip())?)?;
        let key = split(self.key.forward(input)?)?;
        let value = split(self.value.forward(input)?)?;
        let mut scores = query.matmul(&key.transpose(D::Minus2, D::Minus1)?)?;
        if let Some(mask) = mask {
            scores = scores.broadcast_add(mask)?;
        }
        softmax_last_dim(&scores)?.matmul(&value)?.transpose(1, 2)?.reshape((texts, longest, width))
    }
}

impl Activation {
    /// It of every element.
    pub(super) fn of(self, tensor: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gelu => tensor.apply_op1_no_bwd(&Gelu),
            Self::GeluTanh => tensor.gelu(),
            Self::Relu => tensor.relu(),
            Self::Tanh => tensor.tanh(),
        }
    }
}
