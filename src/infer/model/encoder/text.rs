//! From texts to tokens, by the model's own `tokenizer.json`.
//!
//! Its padding and truncation are not used: they are what somebody trained with (128 tokens for all-MiniLM-L6-v2, whose own limit is 256).

use std::collections::HashSet;
use std::sync::Arc;

use tokenizers::utils::truncation::TruncationParams;
use tokenizers::{PostProcessor, Tokenizer};

use super::Fault;
use crate::infer::model::Error;
use crate::wire::json::{self, Limits};

/// The file's name.
pub(super) const FILE: &str = "tokenizer.json";

/// The largest `tokenizer.json`, in bytes. That of XLM-RoBERTa, with 250,000 tokens, has 17 MB.
pub const MAX_TOKENIZER: usize = 32 << 20;

/// The longest text, in bytes: 512 tokens take about 3 KiB, and what is cut off is read all the same.
pub const MAX_TEXT: usize = 256 << 10;

/// A tokenizer whose every token the encoder has.
pub(super) struct Tokens {
    tokenizer: Tokenizer,
    lower_case: bool,
}

impl Tokens {
    /// Reads `tokenizer.json`. A text is cut to `longest` tokens, those around it included, of a vocabulary of so many.
    pub(super) fn read(bytes: &[u8], vocabulary: usize, longest: usize, lower_case: bool) -> Result<Self, Fault> {
        if bytes.len() > MAX_TOKENIZER {
            return Err(Fault::TooLarge(FILE, MAX_TOKENIZER));
        }
        // Read strictly before it is read for good: duplicate keys and deep nesting are for nobody to interpret.
        json::parse_members(bytes, &Limits::for_body(MAX_TOKENIZER), &[]).map_err(|error| Fault::Json(FILE, error))?;
        let fault = |what: String| Fault::Tokenizer(what.chars().take(200).collect());
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| fault(error.to_string()))?;
        let all: HashSet<u32> = tokenizer.get_vocab(true).into_values().collect();
        if all.iter().any(|token| *token as usize >= vocabulary) {
            return Err(fault(format!("it has tokens beyond the encoder's {vocabulary}")));
        }
        // The library subtracts these from the limit without looking.
        let around = tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(false));
        if around >= longest {
            return Err(fault(format!("it puts {around} tokens around a text, of at most {longest}")));
        }
        let truncation = TruncationParams { max_length: longest, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|error| fault(error.to_string()))?;
        tokenizer.with_padding(None);
        let tokens = Self { tokenizer, lower_case };
        // What a post-processor adds need not be in the vocabulary.
        let sample = tokens.encode("a").map_err(|error| fault(error.to_string()))?;
        if sample.iter().any(|token| *token as usize >= vocabulary) {
            return Err(fault("it puts tokens around a text that the encoder does not have".to_owned()));
        }
        Ok(tokens)
    }

    /// The tokens of a text, with the special ones around it, cut to the limit.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        if text.len() > MAX_TEXT {
            return Err(Error::CallerSentOtherInputs("a text is longer than 256 KiB"));
        }
        let encoding =
            if self.lower_case { self.tokenizer.encode_fast(text.to_lowercase(), true) } else { self.tokenizer.encode_fast(text, true) };
        let encoding = encoding.map_err(|error| Error::ModelFailed(Arc::from(error.to_string())))?;
        Ok(encoding.get_ids().to_vec())
    }
}

impl std::fmt::Debug for Tokens {
    /// Never the vocabulary.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({} in the vocabulary)", self.tokenizer.get_vocab_size(true))
    }
}
