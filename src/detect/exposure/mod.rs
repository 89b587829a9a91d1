//! How much of a model is gone: what its answers can have told at most, and how good a copy they make.
//!
//! Two numbers that no caller can lower by looking honest. [`bits`] adds up what answers can have told of the parameters; [`meter`]
//! learns from a caller's answers what a thief would learn, and says how well it does on the owner's own inputs.

pub mod bits;
