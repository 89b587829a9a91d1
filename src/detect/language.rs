//! What requests to language models, and their answers, say of theft: of the last layer ([`bias`]), of what the model can do ([`templates`],
//! [`distillation`], [`phrases`]), of its instructions ([`leak`]), of what it has learned by heart ([`privacy`]), alone or as one of many ([`habits`], [`cohorts`], [`together`]).
//!
//! Those are pure values, which read no clock and tell nobody; [`callers`] and [`guard`] hold them for callers and answers as the policy says. Numbers called weights are from
//! 0, as honest callers have it, to 1. None of them is proof: each is one witness among the families.
//!
//! What cannot be seen: a copy learned from natural prompts, spread over accounts that ask few each; a leak that is paraphrased, translated or enciphered in another way
//! than those of [`leak`]; whether an answer was learned by heart where the owner has not said what to look for.

pub mod bias;
pub mod callers;
pub mod cohorts;
pub mod distillation;
pub mod guard;
pub mod habits;
pub mod leak;
pub mod phrases;
pub mod privacy;
pub mod templates;
pub mod together;
