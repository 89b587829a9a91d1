//! The integration tests: one binary, so that a clean clone links once.

mod descriptors;
mod layers;
