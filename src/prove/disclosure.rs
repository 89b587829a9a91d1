//! What opens the commitments of one record: its salts, for who may have them.
//!
//! A salt opens the one commitment that it belongs to and says nothing of any other record.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value as Json, json};

use super::salts::{Salting, Salts};
use crate::clock::month;
use crate::trail::Who;
use crate::verify::statement::Statement;

/// How a commitment is opened, in words that a person can follow.
const HOW: &str = "commit = SHA-256(\"portcullis/commit/v1\" || label || salt || SHA-256(content)), where label is its ASCII text, salt and \
                   commit are 32 bytes each, and SHA-256(content) is the 32 bytes of Content-Digest (RFC 9530); for the label \"events\" the \
                   root of the tree over the stream's events (RFC 6962) stands in its place";

/// The salts of `statement`, for the caller it was made for or an auditor; `None` when it has no commitment, or its key is gone.
pub(super) fn disclosure(statement: &Statement, who: &Who, salts: &Salts) -> Option<Json> {
    let salting = salting(statement, who, salts)?;
    let commitments: Vec<Json> = statement
        .commits()
        .map(|(label, commit)| {
            let salt = salting.salt(statement.id, label);
            json!({ "label": label, "salt": STANDARD.encode(salt), "commit": STANDARD.encode(commit.as_bytes()) })
        })
        .collect();
    (!commitments.is_empty()).then(|| {
        json!({
            "id": statement.id.hyphenated().to_string(),
            "log": statement.issuer,
            "commitments": commitments,
            "how": HOW,
        })
    })
}

/// Whether a statement was made for this caller, as the holder of the keys can tell.
pub(super) fn made_for(statement: &Statement, who: &Who, salts: &Salts) -> bool {
    let Some((pseudonym, epoch)) = statement.principal() else { return false };
    salts.pseudonyms(who, epoch).is_some_and(|(caller, _)| *pseudonym == caller)
}

fn salting(statement: &Statement, who: &Who, salts: &Salts) -> Option<Salting> {
    match statement.principal() {
        None => salts.of_strangers(month(statement.arrived()), statement.seq),
        Some(_) if made_for(statement, who, salts) => salts.of_subject(who, statement.seq),
        Some((pseudonym, epoch)) => salts.of_pseudonym(pseudonym, epoch, statement.seq),
    }
}
