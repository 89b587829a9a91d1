//! What verifies a log offline: the files, the public keys and the formats are all that it needs.
//!
//! It knows nothing of the server that writes them, so that it can be read alone and built for other machines: there are no sockets, tasks,
//! clocks and configuration in it. The writing halves of what is read here are in `prove`.

pub(crate) mod cbor;
pub mod entries;
pub mod files;
pub mod folder;
pub mod label;
pub(crate) mod segment;
