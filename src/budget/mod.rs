//! The fourth stop: how much. Requests, tokens and calls in flight; the caller's own bucket before the shared one.
//!
//! Its value is the [`Permit`]. What was reserved is settled when the answer's body has ended, or when the permit is dropped.

use crate::authorize::Grant;

/// A grant for which there was room.
#[derive(Debug)]
pub struct Permit {
    grant: Grant,
}

impl Permit {
    /// The grant.
    #[must_use]
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// The grant, to take its body.
    pub fn grant_mut(&mut self) -> &mut Grant {
        &mut self.grant
    }
}
