//! The formats of transparency logs, and what it takes to verify them: a leaf that knows nothing of the server, its files or its clock.
//!
//! | part | format |
//! | --- | --- |
//! | [`merkle`] | Merkle trees of RFC 6962 §2.1 and RFC 9162 §2.1: roots, proofs of inclusion and of consistency |
//! | [`tile`] | C2SP tlog-tiles: which hashes and entries lie in which file |
//!
//! Its one use of the world is SHA-256, through [`crate::digest`].

pub mod merkle;
pub mod tile;
