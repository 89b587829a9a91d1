//! BERT (Devlin et al. 2018, arXiv:1810.04805), and MiniLM, which is a small one.

use super::{Architecture, Dense, Dimensions, Names};
use crate::infer::model::encoder::Fault;
use crate::infer::model::encoder::config::{Activation, Members};

pub(super) const BERT: Architecture = Architecture {
    types: &["bert"],
    classes: &["Bert"],
    read,
    prefix: "bert.",
    names: NAMES,
    sequence: &[
        Dense { name: "pooler.dense", of_encoder: true, then: Some(Activation::Tanh) },
        Dense { name: "classifier", of_encoder: false, then: None },
    ],
    token: &[Dense { name: "classifier", of_encoder: false, then: None }],
    ignored: &["embeddings.position_ids", "embeddings.token_type_ids", "pooler.dense.", "cls.predictions.", "cls.seq_relationship."],
};

/// The names that those who followed BERT kept.
pub(super) const NAMES: Names = Names {
    words: "embeddings.word_embeddings",
    positions: "embeddings.position_embeddings",
    types: Some("embeddings.token_type_embeddings"),
    norm: "embeddings.LayerNorm",
    layer: "encoder.layer",
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    attention: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    output_norm: "output.LayerNorm",
};

pub(super) fn read(members: &mut Members) -> Result<Dimensions, Fault> {
    members.must_be("position_embedding_type", "absolute")?;
    members.must_be_false("is_decoder")?;
    members.must_be_false("add_cross_attention")?;
    members.inert(&["attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout", "use_cache", "gradient_checkpointing"]);
    // BERT's first files tell how wide the pooler was to be; no code has ever read it.
    members.inert(&[
        "directionality",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
    ]);
    Ok(Dimensions {
        vocabulary: members.size("vocab_size")?,
        hidden: members.size("hidden_size")?,
        layers: members.size("num_hidden_layers")?,
        heads: members.size("num_attention_heads")?,
        intermediate: members.size("intermediate_size")?,
        positions: members.size("max_position_embeddings")?,
        first_position: 0,
        types: members.size("type_vocab_size")?,
        epsilon: members.epsilon("layer_norm_eps", 1e-12)?,
        activation: members.activation("hidden_act")?,
        padding: members.token("pad_token_id", 0)?,
    })
}
