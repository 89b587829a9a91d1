//! The integration tests: one binary, so that a clean clone links once.

mod layers;
mod routes;
mod support;
