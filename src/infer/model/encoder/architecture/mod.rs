//! The architectures that are known, each a file: the names it gives its tensors, how its `config.json` tells its dimensions, and what it
//! computes otherwise than the others. A new one is a file here and a line in [`ALL`].
//!
//! All are encoders of the same kind: embeddings, normalised, then layers of self-attention and a feed-forward part, each added to its input
//! and normalised after (Vaswani et al. 2017, Devlin et al. 2018). An encoder that normalises before, or turns positions, is another kind.

mod bert;
mod distilbert;
mod roberta;

use super::Fault;
use super::config::{Activation, Members};

/// Every architecture.
pub(super) const ALL: [&Architecture; 3] = [&bert::BERT, &distilbert::DISTILBERT, &roberta::ROBERTA];

/// One architecture.
#[derive(Debug)]
pub(super) struct Architecture {
    /// What `model_type` calls it.
    pub(super) types: &'static [&'static str],
    /// What the classes in `architectures` begin with.
    pub(super) classes: &'static [&'static str],
    /// Takes its own members out of `config.json`.
    pub(super) read: fn(&mut Members) -> Result<Dimensions, Fault>,
    /// What stands before the names of the encoder's tensors where a head stands beside it.
    pub(super) prefix: &'static str,
    /// The names of the encoder's tensors.
    pub(super) names: Names,
    /// The layers of sequence classification, which begin at the first token.
    pub(super) sequence: &'static [Dense],
    /// The layers of token classification, for each token.
    pub(super) token: &'static [Dense],
    /// The beginnings of names that may stand in the file and are not used: heads of other tasks, and tables that are counted anew.
    pub(super) ignored: &'static [&'static str],
}

/// The names of tensors, without `.weight` and `.bias`; those of a layer follow its place, as in `encoder.layer.3.output.dense`.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) words: &'static str,
    pub(super) positions: &'static str,
    pub(super) types: Option<&'static str>,
    pub(super) norm: &'static str,
    pub(super) layer: &'static str,
    pub(super) query: &'static str,
    pub(super) key: &'static str,
    pub(super) value: &'static str,
    pub(super) attention: &'static str,
    pub(super) attention_norm: &'static str,
    pub(super) up: &'static str,
    pub(super) down: &'static str,
    pub(super) output_norm: &'static str,
}

/// One layer of a head.
#[derive(Debug)]
pub(super) struct Dense {
    /// Its name.
    pub(super) name: &'static str,
    /// Whether it belongs to the encoder, whose prefix then stands before its name.
    pub(super) of_encoder: bool,
    /// What follows it; the last has none and gives the labels.
    pub(super) then: Option<Activation>,
}

/// The sizes of an encoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Dimensions {
    /// Tokens.
    pub(super) vocabulary: usize,
    /// The width between layers.
    pub(super) hidden: usize,
    /// Layers.
    pub(super) layers: usize,
    /// Heads of attention.
    pub(super) heads: usize,
    /// The width within the feed-forward part.
    pub(super) intermediate: usize,
    /// Rows of the table of positions.
    pub(super) positions: usize,
    /// The row of the first token's position.
    pub(super) first_position: usize,
    /// Rows of the table of token types; 0 where there is none.
    pub(super) types: usize,
    /// What keeps a normalisation from a division by zero.
    pub(super) epsilon: f64,
    /// What stands within the feed-forward part.
    pub(super) activation: Activation,
    /// The token that fills a text up.
    pub(super) padding: u32,
}
