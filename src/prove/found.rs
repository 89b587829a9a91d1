//! A statement that was asked for, with what shows that the log has it, in every form.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value as Json;

use super::publisher::Published;
use super::receipt::State;
use crate::tlog::merkle::Hash;
use crate::verify::proof::{self, Inclusion};
use crate::verify::statement::Statement;

/// The statement, and how far it has come.
#[derive(Debug)]
pub struct Found {
    pub(super) entry: Bytes,
    pub(super) statement: Statement,
    pub(super) state: State,
    pub(super) included: Option<Included>,
}

/// Where an entry stands in the tree of a checkpoint.
#[derive(Debug)]
pub(super) struct Included {
    pub(super) index: u64,
    pub(super) path: Vec<Hash>,
    pub(super) published: Arc<Published>,
}

impl Found {
    /// The COSE_Sign1, the very bytes of the log's entry (`application/cose; cose-type="cose-sign1"`).
    #[must_use]
    pub fn statement(&self) -> &Bytes {
        &self.entry
    }

    /// The COSE receipt (RFC 9942) of the newest checkpoint; none before one covers the entry.
    #[must_use]
    pub fn receipt(&self) -> Option<Vec<u8>> {
        let Included { index, path, published } = self.included.as_ref()?;
        Some(published.signed_root.as_ref()?.receipt(*index, published.size, path))
    }

    /// The transparent statement (RFC 9943): the statement with its receipt.
    #[must_use]
    pub fn transparent(&self) -> Option<Vec<u8>> {
        proof::transparent(&self.entry, &self.receipt()?)
    }

    /// The C2SP tlog-proof.
    #[must_use]
    pub fn tlog_proof(&self) -> Option<String> {
        let Included { index, path, published } = self.included.as_ref()?;
        Some(proof::tlog_proof(*index, path, &published.note))
    }

    /// The receipt for people: where it stands, the statement, what that says, and what shows that the log has it.
    #[must_use]
    pub fn json(&self) -> Json {
        let inclusion = self.included.as_ref().map(|Included { index, path, published }| Inclusion {
            index: *index,
            size: published.size,
            path,
            root: &published.root,
            checkpoint: &published.note,
        });
        proof::json(&self.entry, &self.statement, self.state.as_str(), inclusion.as_ref())
    }
}
