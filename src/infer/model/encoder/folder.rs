//! The files beside the weights that sentence-transformers writes: which modules follow the encoder, how its tokens are pooled, how long a
//! text may be. Each with a closed schema.

use serde::Deserialize;
use serde_json::Value;

use super::config::parse;
use super::{Fault, Files};

/// The list of modules.
pub(super) const MODULES: &str = "modules.json";

/// The pooling, where `modules.json` does not name another folder.
pub(super) const POOLING: &str = "1_Pooling/config.json";

/// The limits of the text.
pub(super) const SENTENCES: &str = "sentence_bert_config.json";

/// How the vectors of tokens become one of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The vector of the first token.
    Cls,
    /// The mean over the text's tokens, padding not among them.
    Mean,
}

/// What follows the encoder, and what comes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sentences {
    /// Whether the folder is one of sentence-transformers.
    pub(super) told: bool,
    pub(super) pooling: Pooling,
    /// Whether a vector is brought to length 1.
    pub(super) normalize: bool,
    /// How wide the pooling expects the encoder to be.
    pub(super) width: Option<usize>,
    /// The most tokens of a text.
    pub(super) longest: Option<usize>,
    /// Whether the text is made lower case before it is cut into tokens.
    pub(super) lower_case: bool,
}

impl Sentences {
    /// Reads what is there. Without these files the tokens' mean is taken and brought to length 1, as callers of `/v1/embeddings` expect it.
    pub(super) fn read(files: &Files) -> Result<Self, Fault> {
        let mut read = Self { told: false, pooling: Pooling::Mean, normalize: true, width: None, longest: None, lower_case: false };
        let mut pooling = POOLING.to_owned();
        if let Some(bytes) = files.get(MODULES) {
            let modules: Vec<Module> = typed(MODULES, bytes)?;
            let kinds: Vec<_> = modules.iter().map(Module::kind).collect();
            read.normalize = match kinds.as_slice() {
                ["Transformer", "Pooling"] => false,
                ["Transformer", "Pooling", "Normalize"] => true,
                _ => return Err(Fault::Sentences(MODULES, "its modules are not Transformer, Pooling and perhaps Normalize".to_owned())),
            };
            if !modules[0].path.is_empty() {
                return Err(Fault::Sentences(MODULES, "its encoder lies in another folder".to_owned()));
            }
            pooling = format!("{}/config.json", modules[1].path);
            read.told = true;
        }
        match files.get(&pooling) {
            Some(bytes) => {
                let file: PoolingFile = typed(POOLING, bytes)?;
                read.pooling = file.pooling()?;
                read.width = Some(file.word_embedding_dimension);
                read.told = true;
            }
            None if read.told => return Err(Fault::Sentences(MODULES, "it names a pooling whose config.json is not there".to_owned())),
            None => {}
        }
        if let Some(bytes) = files.get(SENTENCES) {
            let file: SentencesFile = typed(SENTENCES, bytes)?;
            if file.max_seq_length == Some(0) {
                return Err(Fault::Sentences(SENTENCES, "`max_seq_length` is 0".to_owned()));
            }
            (read.longest, read.lower_case) = (file.max_seq_length, file.do_lower_case);
        }
        Ok(read)
    }
}

fn typed<T: for<'de> Deserialize<'de>>(name: &'static str, bytes: &[u8]) -> Result<T, Fault> {
    let value: Value = parse(name, bytes)?;
    serde_json::from_value(value).map_err(|error| Fault::Sentences(name, error.to_string().chars().take(200).collect()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Module {
    #[serde(rename = "idx")]
    _place: u64,
    #[serde(rename = "name")]
    _name: String,
    path: String,
    #[serde(rename = "type")]
    class: String,
}

impl Module {
    /// The last word of a class of sentence-transformers itself. A class of anyone else would be code that comes with the model.
    fn kind(&self) -> &str {
        if self.class.starts_with("sentence_transformers.") { self.class.rsplit('.').next().unwrap_or("") } else { "" }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PoolingFile {
    word_embedding_dimension: usize,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
    /// It matters only where a text begins with a prompt, which is not offered.
    #[serde(rename = "include_prompt", default)]
    _include_prompt: bool,
}

impl PoolingFile {
    fn pooling(&self) -> Result<Pooling, Fault> {
        let others = self.pooling_mode_max_tokens
            || self.pooling_mode_mean_sqrt_len_tokens
            || self.pooling_mode_weightedmean_tokens
            || self.pooling_mode_lasttoken;
        match (self.pooling_mode_cls_token, self.pooling_mode_mean_tokens, others) {
            (true, false, false) => Ok(Pooling::Cls),
            (false, true, false) => Ok(Pooling::Mean),
            _ => Err(Fault::Sentences(POOLING, "exactly one of the mean and the first token is pooled, and nothing else".to_owned())),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SentencesFile {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}
