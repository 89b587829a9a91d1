//! Entries that no request leaves: models that were loaded, swapped, refused or retired, and policies that were put in force or refused.

use super::statement::{Signer, clip, fresh_id};
use crate::digest::Digest;
use crate::trail::Which;
use crate::verify::cbor::Writer;
use crate::verify::statement::Kind;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// A model was verified and is ready, where none stood before it.
    Loaded,
    /// A model was verified and is ready in the place of another: its file of the policy named that one before.
    Swapped,
    /// A model, or a policy, was not taken.
    Refused,
    /// A model is asked no more.
    Retired,
    /// A policy is in force.
    Accepted,
    /// Entries that are older than they are to be kept go.
    Pruned,
    /// A shard of the log has its last checkpoint.
    Ended,
}

impl Changed {
    /// The word for it in statements and events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Swapped => "swapped",
            Self::Refused => "refused",
            Self::Retired => "retired",
            Self::Accepted => "accepted",
            Self::Pruned => "pruned",
            Self::Ended => "ended",
        }
    }
}

/// A change, as its entry tells it.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// What happened.
    pub changed: Changed,
    /// To which model, or as which model the policy names what was refused; without one it happened to the policy.
    pub which: Option<&'a Which>,
    /// Why; cut at 256 bytes.
    pub reason: Option<&'a str>,
    /// The policy in force after it; none at a start that failed.
    pub policy: Option<Digest>,
}

impl Change<'_> {
    pub(super) const fn kind(&self) -> Kind {
        if self.which.is_some() { Kind::ModelLoad } else { Kind::PolicyChange }
    }
}

impl Signer {
    /// A statement about a change.
    pub(super) fn change(&self, seq: u64, t1: u64, change: &Change<'_>) -> Vec<u8> {
        let mut to = Writer::with_room(256);
        to.map(7 + usize::from(change.which.is_some()) + usize::from(change.policy.is_some()) + usize::from(self.has_build()));
        self.begin(&mut to, change.kind(), seq, t1, t1);
        if let Some(which) = change.which {
            // Of what was refused nothing is assured, not even that it is of the format that was asked for.
            model(&mut to, which, change.changed != Changed::Refused);
        }
        if let Some(policy) = &change.policy {
            to.uint(10).map(1).uint(1).bytes(policy.as_bytes());
        }
        self.end(&mut to);
        to.uint(18).map(1 + usize::from(change.reason.is_some())).uint(1).text(change.changed.as_str());
        if let Some(reason) = change.reason {
            to.uint(2).text(clip(reason));
        }
        self.seal(fresh_id(t1), t1, &to.done(), false)
    }
}

/// Writes which model, and, where it was verified, how sure that is.
pub(super) fn model(to: &mut Writer, which: &Which, assured: bool) {
    let version = Some(&which.version).filter(|version| !version.is_empty());
    to.uint(9).map(2 + usize::from(assured) + usize::from(version.is_some()) + usize::from(which.digest.is_some()));
    to.uint(1).text(clip(&which.name));
    if let Some(version) = version {
        to.uint(2).text(clip(version));
    }
    if let Some(digest) = &which.digest {
        to.uint(3).bytes(digest.as_bytes());
    }
    to.uint(4).text(clip(&which.format));
    if assured {
        to.uint(5).text(which.assurance.as_str());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::prove::statement::tests::{signer, trail};
    use crate::verify::statement::Statement;

    fn change(changed: Changed, reason: Option<&str>) -> (Vec<u8>, Statement) {
        let trail = trail(1_800_000_000);
        let change = Change { changed, which: trail.which.as_deref(), reason, policy: Some(Digest::of(b"policy")) };
        let entry = signer().change(7, 1_800_000_001_000_000_000, &change);
        let statement = Statement::read(&entry).unwrap();
        assert!(statement.signed_by(&signer().key.statement_vkey(&signer().origin)));
        (entry, statement)
    }

    #[test]
    fn a_loaded_model_is_told_with_its_digest_and_the_policy_that_names_it() {
        let (entry, statement) = change(Changed::Loaded, None);
        assert!(entry.len() < 600, "{}", entry.len());
        let view = statement.view();
        assert_eq!((&view["kind"], &view["change"]), (&json!("model-load"), &json!({ "outcome": "loaded" })));
        let sha256 = Digest::of(b"model").to_string();
        let model = json!({ "name": "digits", "version": "1", "sha256": sha256, "format": "onnx", "assurance": "verified-inprocess" });
        assert_eq!(view["model"], model);
        assert_eq!(view["policy"]["sha256"], Digest::of(b"policy").to_string());
        assert_eq!((view["seq"].as_u64(), statement.kind), (Some(7), Kind::ModelLoad));
    }

    #[test]
    fn a_refused_model_assures_nothing_and_says_why() {
        let view = change(Changed::Refused, Some("the file is not the model that the policy names")).1.view();
        assert_eq!(view["change"], json!({ "outcome": "refused", "reason": "the file is not the model that the policy names" }));
        assert_eq!(view["model"].get("assurance"), None);
    }

    #[test]
    fn a_change_of_the_policy_names_no_model() {
        let change = Change { changed: Changed::Refused, which: None, reason: Some("3 mistakes"), policy: Some(Digest::of(b"before")) };
        let statement = Statement::read(&signer().change(7, 1, &change)).unwrap();
        assert_eq!(statement.kind, Kind::PolicyChange);
        let view = statement.view();
        assert_eq!((&view["kind"], view.get("model")), (&json!("policy-change"), None));
        assert_eq!(view["policy"]["sha256"], Digest::of(b"before").to_string());
        let at_start = Change { policy: None, ..change };
        assert_eq!(Statement::read(&signer().change(7, 1, &at_start)).unwrap().view().get("policy"), None);
    }

    #[test]
    fn a_reason_of_the_bound_is_whole_and_a_longer_one_is_cut() {
        for (length, kept) in [(256, 256), (257, 256), (1 << 20, 256)] {
            let view = change(Changed::Refused, Some(&"x".repeat(length))).1.view();
            assert_eq!(view["change"]["reason"].as_str().unwrap().len(), kept);
        }
    }

    #[test]
    fn coset_reads_what_is_written_and_writes_the_same() {
        use coset::TaggedCborSerializable;
        let (entry, _) = change(Changed::Refused, Some("why"));
        let cose = coset::CoseSign1::from_tagged_slice(&entry).unwrap();
        let vkey = signer().key.statement_vkey(&signer().origin);
        cose.verify_signature(b"", |signature, message| if vkey.verifies(message, signature) { Ok(()) } else { Err(()) }).unwrap();
        assert_eq!(cose.to_tagged_vec().unwrap(), entry);
    }

    #[test]
    fn the_same_change_differs_in_nothing_but_its_id() {
        // The id is new each time; all else is the same, to the length of the entry.
        let (one, other) = (change(Changed::Swapped, Some("why")), change(Changed::Swapped, Some("why")));
        assert_eq!(one.0.len(), other.0.len());
        let mut views = [one.1.view(), other.1.view()];
        views.iter_mut().for_each(|view| ["id", "signature"].into_iter().for_each(|key| drop(view.as_object_mut().unwrap().remove(key))));
        assert_eq!(views[0], views[1]);
    }

    #[test]
    fn a_flipped_bit_anywhere_is_no_longer_signed() {
        let vkey = signer().key.statement_vkey(&signer().origin);
        let (entry, _) = change(Changed::Retired, None);
        for at in 0..entry.len() {
            let mut bad = entry.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(Statement::read(&bad).map_or(true, |statement| !statement.signed_by(&vkey)), "byte {at}");
        }
    }
}
