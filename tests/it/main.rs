//! The integration tests: one binary, so that a clean clone links once.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod access;
mod beside;
mod commands;
mod contract;
mod descriptors;
mod docs;
mod durability;
mod export;
mod faults;
mod hardening;
mod journey;
mod kills;
mod layers;
mod life;
mod limits;
mod logs;
mod modes;
mod names;
mod oracle;
mod over_grpc;
mod policies;
mod reload;
mod routes;
mod schemas;
mod shards;
mod state;
mod support;
mod turned_away;
mod walls;
