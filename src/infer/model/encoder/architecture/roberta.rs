//! RoBERTa (Liu et al. 2019, arXiv:1907.11692), XLM-RoBERTa (Conneau et al. 2019, arXiv:1911.02116) and CamemBERT (Martin et al. 2019,
//! arXiv:1911.03894): BERT whose positions are counted from behind the padding token's number, and whose classification head is its own.

use super::{Architecture, Dense, Dimensions, bert};
use crate::infer::model::encoder::Fault;
use crate::infer::model::encoder::config::{Activation, Members};

pub(super) const ROBERTA: Architecture = Architecture {
    types: &["camembert", "roberta", "xlm-roberta"],
    classes: &["Camembert", "Roberta", "XLMRoberta"],
    read,
    prefix: "roberta.",
    names: bert::NAMES,
    sequence: &[
        Dense { name: "classifier.dense", of_encoder: false, then: Some(Activation::Tanh) },
        Dense { name: "classifier.out_proj", of_encoder: false, then: None },
    ],
    token: &[Dense { name: "classifier", of_encoder: false, then: None }],
    ignored: &["embeddings.position_ids", "embeddings.token_type_ids", "pooler.dense.", "lm_head."],
};

fn read(members: &mut Members) -> Result<Dimensions, Fault> {
    let mut dimensions = bert::read(members)?;
    if !members.padding_was_told() {
        dimensions.padding = 1;
    }
    dimensions.first_position = dimensions.padding as usize + 1;
    Ok(dimensions)
}
