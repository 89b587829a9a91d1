//! How much of a model is gone: what its answers can have told at most, and how good a copy they make.
//!
//! Two numbers that no caller can lower by looking honest. [`bits`] adds up what answers can have told of the parameters; [`meter`]
//! learns from a caller's answers what a thief would learn, and says how well it does on the owner's own [`holdout`].
//! [`correction`] leads what the meter measures to what thieves reached who were trained on the same answers.

pub mod bits;
pub mod correction;
pub mod holdout;
mod kept;
mod kernel;
pub mod meter;
mod moments;
pub mod thief;

#[cfg(test)]
mod figures;
