//! From texts to tokens, by the model's own `tokenizer.json`.
//!
//! Its padding and truncation are not used: they are what somebody trained with (128 tokens for all-MiniLM-L6-v2, whose own limit is 256).

use std::borrow::Cow;
use std::collections::HashSet;

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

/// The tokens of a text.
#[derive(Debug, Default)]
pub(super) struct Row {
    pub(super) tokens: Vec<u32>,
    /// The first character of each, and the one behind its last; the special ones stand nowhere, `(0, 0)`. Empty where it was not asked for.
    pub(super) places: Vec<(usize, usize)>,
}

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
        let mut tokenizer = unbroken(|| Tokenizer::from_bytes(bytes)).map_err(fault)?;
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
        // What a post-processor adds need not be in the vocabulary; and it must add something, as the vector of nothing is nothing.
        let empty = tokens.encode("", false).map_err(|error| fault(error.to_string()))?.tokens;
        if empty.is_empty() || empty.iter().any(|token| *token as usize >= vocabulary) {
            return Err(fault("it puts no token around a text, or one that the encoder does not have".to_owned()));
        }
        Ok(tokens)
    }

    /// The tokens of a text, with the special ones around it, cut to the limit; and where in the text they stand, if that is wanted.
    pub(super) fn encode(&self, text: &str, places: bool) -> Result<Row, Error> {
        if text.len() > MAX_TEXT {
            return Err(Error::CallerSentOtherInputs("a text is longer than 256 KiB"));
        }
        let text = if self.lower_case { Cow::Owned(text.to_lowercase()) } else { Cow::Borrowed(text) };
        let encode = || if places { self.tokenizer.encode_char_offsets(text, true) } else { self.tokenizer.encode_fast(text, true) };
        let encoding = unbroken(encode).map_err(|error| Error::ModelFailed(error.into()))?;
        let places = if places { encoding.get_offsets().to_vec() } else { Vec::new() };
        Ok(Row { tokens: encoding.get_ids().to_vec(), places })
    }
}

/// What the library says. It panics over some files that it takes, for instance over a template that names a token which it does not give.
fn unbroken<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    let called = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    called.map_err(|_| "the tokenizer is broken".to_owned())?.map_err(|error| error.to_string())
}

impl std::fmt::Debug for Tokens {
    /// Never the vocabulary.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({} in the vocabulary)", self.tokenizer.get_vocab_size(true))
    }
}
