//! The sixth stop: what the input says of the one who sends it, beside what was asked before.
//!
//! Its value is the [`Cleared`]: an input, and the care with which to answer it.

use crate::check::Input;

/// How an answer is to be shaped before it leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Care {
    /// Round probabilities and log-probabilities to so many decimals.
    pub decimals: Option<u8>,
}

/// An input that detectors have weighed.
#[derive(Debug)]
pub struct Cleared {
    input: Input,
    care: Care,
}

impl Cleared {
    /// The input.
    #[must_use]
    pub fn input(&self) -> &Input {
        &self.input
    }

    /// The input, to settle its permit.
    pub fn input_mut(&mut self) -> &mut Input {
        &mut self.input
    }

    /// The care.
    #[must_use]
    pub fn care(&self) -> Care {
        self.care
    }
}
