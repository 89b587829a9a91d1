//! DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT without token types and pooler, under other names.

use super::{Architecture, Dense, Dimensions, Names};
use crate::infer::model::encoder::Fault;
use crate::infer::model::encoder::config::{Activation, Members};

pub(super) const DISTILBERT: Architecture = Architecture {
    types: &["distilbert"],
    classes: &["DistilBert"],
    read,
    prefix: "distilbert.",
    names: Names {
        words: "embeddings.word_embeddings",
        positions: "embeddings.position_embeddings",
        types: None,
        norm: "embeddings.LayerNorm",
        layer: "transformer.layer",
        query: "attention.q_lin",
        key: "attention.k_lin",
        value: "attention.v_lin",
        attention: "attention.out_lin",
        attention_norm: "sa_layer_norm",
        up: "ffn.lin1",
        down: "ffn.lin2",
        output_norm: "output_layer_norm",
    },
    sequence: &[
        Dense { name: "pre_classifier", of_encoder: false, then: Some(Activation::Relu) },
        Dense { name: "classifier", of_encoder: false, then: None },
    ],
    token: &[Dense { name: "classifier", of_encoder: false, then: None }],
    ignored: &["embeddings.position_ids", "vocab_transform.", "vocab_layer_norm.", "vocab_projector."],
};

fn read(members: &mut Members) -> Result<Dimensions, Fault> {
    // The sinusoidal table is in the file like a learnt one.
    members.inert(&["sinusoidal_pos_embds", "dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout"]);
    Ok(Dimensions {
        vocabulary: members.size("vocab_size")?,
        hidden: members.size("dim")?,
        layers: members.size("n_layers")?,
        heads: members.size("n_heads")?,
        intermediate: members.size("hidden_dim")?,
        positions: members.size("max_position_embeddings")?,
        first_position: 0,
        types: 0,
        epsilon: 1e-12,
        activation: members.activation("activation")?,
        padding: members.token("pad_token_id", 0)?,
    })
}
