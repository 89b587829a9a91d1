//! The integration tests: one binary, so that a clean clone links once.

mod journey;
mod layers;
mod limits;
mod routes;
mod support;
