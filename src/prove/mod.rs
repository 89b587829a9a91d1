//! The eighth stop: what was answered to whom by what, signed, and written where it cannot be changed unseen.
//!
//! Its value is the [`Receipt`]: an answer or a refusal that carries its signed [statement](crate::verify::statement), which the
//! [write-ahead file](log) holds before the answer is released. It does not say that the answer arrived.

mod archive;
mod census;
mod change;
mod config;
pub mod cosign;
mod disclosure;
mod erasure;
mod events;
#[cfg(test)]
mod figures;
mod found;
mod heartbeat;
mod ids;
pub mod key;
mod ledger;
mod lock;
pub mod log;
#[cfg(test)]
mod proved;
mod prune;
mod pseudonyms;
pub mod publisher;
mod receipt;
#[cfg(test)]
mod reconciled;
mod refusals;
mod release;
mod rotation;
pub mod salts;
pub mod served;
mod shards;
mod statement;
mod stream;
pub mod tree;
mod underway;
#[cfg(test)]
mod verified;
mod want;
pub mod witness;

pub use change::{Change, Changed};
pub use config::{Config, Mode, OnFailure, Sharding, Terms, TermsConfig};
pub use erasure::{EraseError, Erased, Erasure};
pub use found::Found;
pub use key::Key;
pub use ledger::{Accepted, Counters, Error, Ledger, NotProved, OpenError, Opened, Slot};
pub use receipt::{Receipt, State};
pub use shards::{NotRolled, Shards};
pub use statement::Build;
pub use underway::Stream;
pub use want::{MAX_WAIT, Want};
pub use witness::Witnesses;
