//! The fifth stop: what is sent. The body within its cap and deadline, parsed once, held against its contract.
//!
//! Its value is the [`Input`]: bytes that were read whole and understood. They are the bytes that are used.

use bytes::Bytes;

use crate::budget::Permit;
use crate::wire::{Asked, oip};

/// What the body was understood to ask for.
#[derive(Debug)]
pub enum Request {
    /// No body: a question about a model, the server or a receipt.
    Nothing,
    /// A request to a language model in the OpenAI or Anthropic dialect.
    Language(Asked),
    /// Tensors, of the Open Inference Protocol in any of its encodings.
    Tensors(oip::InferRequest),
    /// JSON for a path that the operator declared.
    Raw,
}

/// A permitted request whose body holds to its contract.
#[derive(Debug)]
pub struct Input {
    permit: Permit,
    bytes: Bytes,
    request: Request,
}

impl Input {
    /// The permit.
    #[must_use]
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// The permit, to settle it.
    pub fn permit_mut(&mut self) -> &mut Permit {
        &mut self.permit
    }

    /// The body's bytes, as they were checked.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What they ask for.
    #[must_use]
    pub fn request(&self) -> &Request {
        &self.request
    }
}
