//! What the tests share: a policy folder, the program that serves it, clients of it, and model servers behind it.
//!
//! Everything is real: the compiled program, TLS, sockets on loopback, files in a folder of its own.

#![allow(unreachable_pub, missing_docs, reason = "a test binary has no outside")]

pub mod ask;
pub mod client;
pub mod folder;
pub mod gateway;
pub mod hostile;
pub mod onnx;
pub mod tokens;
pub mod upstream;

/// The signer of the unit tests, so that there is one way to make a wrong token.
#[path = "../../../src/authenticate/signer.rs"]
#[allow(dead_code, reason = "the unit tests use all of it")]
mod signer;

pub use client::{Client, Reply};
pub use folder::Folder;
pub use gateway::Gateway;
pub use tokens::Issuer;
pub use upstream::Upstream;

use std::time::Duration;

/// How long anything may take before a test gives up; nothing waits so long unless it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The API key that every folder knows, of caller `api_key:app`, tenant `acme`, role `app`.
pub const KEY: &str = "pk_test-0123456789abcdefghijklmnopqrstuvwxyz";

/// The program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_portcullis");
