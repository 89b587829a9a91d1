//! The integration tests: one binary, so that a clean clone links once.

mod access;
mod durability;
mod journey;
mod layers;
mod limits;
mod reload;
mod routes;
mod support;
