//! The stop `prove`.

mod cbor;
pub mod key;
pub mod log;
pub mod statement;
