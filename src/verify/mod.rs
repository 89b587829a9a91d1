//! What verifies a log and its receipts offline: the files, the public keys and the formats are all that it needs.
//!
//! It knows nothing of the server that writes them, so that it can be read alone and built for other machines: there are no sockets, tasks,
//! clocks and configuration in it. With [`crate::tlog`] and [`crate::digest`] it is whole; a test reads its `use` lines and holds that. The
//! writing halves of what is read here are in `prove`.
//!
//! | file | what it reads |
//! | --- | --- |
//! | [`log`] | a folder, everything in which it derives again from the entries |
//! | [`chain`] | shards, and what they say of one another |
//! | [`statement`] | an entry: its signature, and what it says |
//! | `rotation` | the entry by which one log key hands over to another |
//! | [`proof`] | signed roots, COSE receipts and tlog-proofs |
//! | [`mod@show`] | what statements say, unverified |
//! | [`proved`] | one entry of a folder, with its proof |
//! | [`mod@reconcile`], [`heartbeat`], [`census`] | what heartbeats and metrics count, against the entries |
//! | [`entries`] | a log's entries in order, from bundles and segments |
//! | [`files`], `segment`, `ids`, [`folder`], [`label`] | how a log lies on the disk |
//! | `cbor` | CBOR, in its one deterministic encoding |

pub(crate) mod cbor;
pub mod census;
pub mod chain;
pub mod entries;
pub mod files;
pub mod folder;
#[cfg(fuzzing)]
pub mod fuzz;
pub mod heartbeat;
pub(crate) mod ids;
pub mod label;
pub mod log;
pub mod proof;
pub mod proved;
pub mod reconcile;
pub(crate) mod rotation;
pub(crate) mod segment;
pub mod show;
pub mod statement;
