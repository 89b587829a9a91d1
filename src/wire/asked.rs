//! What a request to a language model asks for, as far as the gateway decides on it, whatever its dialect.

/// The decided-on part of a chat, completion, responses, embeddings or messages request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Asked {
    /// The model's name, as the caller writes it.
    pub model: String,
    /// Whether the answer is to be a stream.
    pub stream: bool,
    /// `stream_options.include_usage`, where it was given.
    pub include_usage: Option<bool>,
    /// The cap on the answer's tokens that was asked for (`max_tokens`, `max_completion_tokens`, `max_output_tokens`): the largest of them.
    pub max_tokens: Option<u64>,
    /// How many answers (`n`, `best_of`): the larger of them, at least 1.
    pub answers: u64,
    /// Whether log-probabilities are asked for, and of how many alternatives a token.
    pub logprobs: Option<u64>,
    /// How many entries `logit_bias` has.
    pub logit_bias: usize,
}
