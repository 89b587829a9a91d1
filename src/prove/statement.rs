//! Makes statements: what was answered, to whom, by what. Their fields are told where they are read, in [`crate::verify::statement`].

use std::sync::Arc;

use uuid::Uuid;

use super::change::model;
use super::key::Key;
use super::salts::Salts;
use crate::clock::month;
use crate::digest::Digest;
use crate::tlog::merkle::Hash;
use crate::tlog::signature::CannotSign;
use crate::tlog::{Checkpoint, Note};
use crate::trail::{Step, Stop, Trail, Usage, Verdict};
use crate::verify::cbor::Writer;
use crate::verify::proof::SignedRoot;
use crate::verify::statement::{CBOR, FORMATS, Kind, SUBJECT, to_be_signed};

/// The longest text in a statement, in bytes; longer ones are cut, so that the entry's bound holds whatever a caller sends.
const MAX_TEXT: usize = 256;
/// How many steps a statement tells; a way has nine stops.
const MAX_STEPS: usize = 32;

/// What stands in every statement of one process.
#[derive(Clone, Debug, Default)]
pub struct Build {
    /// SHA-256 of the program's file.
    pub binary: Option<Digest>,
    /// SHA-256 of its configuration.
    pub config: Option<Digest>,
}

impl Build {
    /// The digest of the program that runs; reads its file once, which takes a moment.
    #[must_use]
    pub fn of_this_program() -> Self {
        let file = std::env::current_exe().and_then(std::fs::File::open);
        Self { binary: file.and_then(Digest::of_stream).ok(), config: None }
    }
}

/// Signs statements for one log.
pub(super) struct Signer {
    pub(super) key: Key,
    pub(super) origin: Arc<str>,
    node: String,
    kid: [u8; 8],
    pub(super) log_kid: [u8; 8],
    endorsed: [u8; 32],
    build: Build,
    pub(super) salts: Arc<Salts>,
    /// The key before, which signs checkpoints along.
    previous: Option<Key>,
}

/// The answer, as far as its statement speaks of it.
pub(super) struct Sent<'a> {
    pub(super) status: u16,
    pub(super) media_type: Option<&'a str>,
    pub(super) length: u64,
    pub(super) digest: Digest,
    pub(super) complete: bool,
    pub(super) code: Option<&'static str>,
    pub(super) usage: Option<Usage>,
    /// How many events a stream of them had, and the root of their tree.
    pub(super) events: Option<(u64, Digest)>,
}

impl Signer {
    pub(super) fn new(key: Key, origin: Arc<str>, build: Build, salts: Arc<Salts>) -> Self {
        let (log, statement) = (key.log_vkey(&origin), key.statement_vkey(&origin));
        let endorsed = key.statement_public();
        let node = origin.rsplit('/').next().unwrap_or_default().to_owned();
        Self { key, node, kid: statement.kid(), log_kid: log.kid(), endorsed, origin, build, salts, previous: None }
    }

    /// With this name of the node, where it is not the origin's last segment.
    pub(super) fn of_node(self, node: &str) -> Self {
        Self { node: node.to_owned(), ..self }
    }

    /// With the key before it, which signs checkpoints along.
    pub(super) fn after(self, previous: Option<Key>) -> Self {
        Self { previous, ..self }
    }

    /// The key before, where it still signs along.
    pub(super) fn previous(&self) -> Option<&Key> {
        self.previous.as_ref()
    }

    /// Signs a checkpoint with this key, and along with it with the log key before: see `rotation.rs`.
    pub(super) fn sign_checkpoint(&self, checkpoint: &Checkpoint, time: u64) -> Result<Note, CannotSign> {
        let note = self.key.sign_checkpoint(checkpoint, time)?;
        match &self.previous {
            None => Ok(note),
            Some(previous) => note.and(vec![previous.sign_along(checkpoint)]).map_err(|_| CannotSign),
        }
    }

    /// Signs the root of a tree of `size` leaves for receipts; `time` is in seconds since 1970.
    pub(super) fn sign_root(&self, root: Hash, size: u64, time: u64) -> SignedRoot {
        SignedRoot::sign(root, size, &self.origin, &self.log_kid, time, |message| self.key.sign_endorsement(message))
    }

    /// Makes ready what a statement about this request needs, so that nothing is waited for between its number and its entry.
    pub(super) fn prepare(&self, trail: &Trail) {
        self.salts.of(trail.who.as_ref(), month(trail.arrived.wall), None);
    }

    /// A statement about an answer or a refusal.
    pub(super) fn answer(&self, kind: Kind, seq: u64, t1: u64, trail: &Trail, sent: &Sent<'_>) -> Vec<u8> {
        let id = trail.id;
        let steps = &trail.steps;
        let limited = steps.iter().any(|step| step.verdict == Verdict::Refused && matches!(step.stop, Stop::Budget | Stop::Detect));
        let mut to = Writer::with_room(512);
        let usage = sent.usage.or(trail.usage);
        let optional = usize::from(trail.which.is_some()) + usize::from(trail.who.is_some()) + usize::from(usage.is_some());
        let optional = optional + usize::from(trail.exposure.is_some());
        to.map(11 + optional + usize::from(self.has_build()));
        self.begin(&mut to, kind, seq, trail.arrived.unix_nanos(), t1);

        // Pseudonyms hold for a month.
        let epoch = month(trail.arrived.wall);
        let salting = self.salts.of(trail.who.as_ref(), epoch, Some(seq));
        let known = (!limited).then(|| trail.request.digest.map(|digest| salting.commit(id, "request", &digest))).flatten();
        let media_type = trail.request.media_type.as_deref();
        to.uint(7).map(2 + usize::from(media_type.is_some()) + usize::from(!limited) + usize::from(known.is_some()));
        to.uint(1).text(clip(trail.method.as_str())).uint(2).text(clip(&trail.route));
        if let Some(media_type) = media_type {
            content_type(to.uint(3), media_type);
        }
        if !limited {
            to.uint(4).uint(trail.request.length);
        }
        if let Some(commit) = known {
            to.uint(5).bytes(commit.as_bytes());
        }

        let events = 2 * usize::from(sent.events.is_some());
        to.uint(8).map(5 + usize::from(sent.media_type.is_some()) + usize::from(sent.code.is_some()) + events);
        to.uint(1).uint(sent.status.into());
        if let Some(media_type) = sent.media_type {
            content_type(to.uint(2), media_type);
        }
        to.uint(3).uint(sent.length).uint(4).bytes(salting.commit(id, "response", &sent.digest).as_bytes());
        to.uint(5).bool(sent.complete).uint(6).uint(sent.length);
        if let Some(code) = sent.code {
            to.uint(7).text(clip(code));
        }
        if let Some((count, root)) = &sent.events {
            to.uint(8).uint(*count).uint(9).bytes(salting.commit(id, "events", root).as_bytes());
        }

        if let Some(which) = &trail.which {
            model(&mut to, which, true);
        }
        to.uint(10).map(1).uint(1).bytes(trail.policy.as_bytes());
        if let (Some(who), Some((caller, tenant))) = (&trail.who, salting.pair) {
            to.uint(11).map(4).uint(1).bytes(&caller).uint(2).uint(epoch.into()).uint(3).text(clip(who.method)).uint(4).bytes(&tenant);
        }
        told(&mut to, steps, limited);
        to.uint(13).map(2).uint(1).bytes(&trail.trace.trace_id).uint(2).bytes(&trail.trace.span_id);
        if let Some(usage) = usage {
            to.uint(14).map(2).uint(1).uint(usage.input).uint(2).uint(usage.output);
        }
        self.end(&mut to);
        if let Some(exposure) = trail.exposure {
            // The cast is of a number from 0 to 10.
            to.uint(22).uint((exposure.clamp(0.0, 1.0) * 10.0) as u64);
        }
        self.seal(id, t1, &to.done(), false)
    }

    /// The log's entry 0: the log key's word for the statement key.
    pub(super) fn endorsement(&self, t1: u64) -> Vec<u8> {
        let mut to = Writer::with_room(128);
        to.map(8 + usize::from(self.has_build()));
        self.begin(&mut to, Kind::KeyRotation, 0, t1, t1);
        self.end(&mut to);
        to.uint(17).bytes(&self.endorsed).uint(21).bytes(self.key.checkpoint_vkey(&self.origin).key.bytes());
        self.seal(fresh_id(t1), t1, &to.done(), true)
    }

    pub(super) fn begin(&self, to: &mut Writer, kind: Kind, seq: u64, t0: u64, t1: u64) {
        to.uint(1).uint(1).uint(2).uint(kind as u64).uint(3).text(clip(&self.node)).uint(4).uint(seq).uint(5).uint(t0).uint(6).uint(t1);
    }

    pub(super) fn has_build(&self) -> bool {
        self.build.binary.is_some() || self.build.config.is_some()
    }

    pub(super) fn end(&self, to: &mut Writer) {
        if !self.has_build() {
            return;
        }
        let Build { binary, config } = &self.build;
        to.uint(15).map(usize::from(binary.is_some()) + usize::from(config.is_some()));
        if let Some(binary) = binary {
            to.uint(1).bytes(binary.as_bytes());
        }
        if let Some(config) = config {
            to.uint(2).bytes(config.as_bytes());
        }
    }

    pub(super) fn seal(&self, id: Uuid, t1: u64, payload: &[u8], by_log_key: bool) -> Vec<u8> {
        if by_log_key {
            self.seal_by(id, t1, payload, &self.log_kid, |message| self.key.sign_endorsement(message))
        } else {
            self.seal_by(id, t1, payload, &self.kid, |message| self.key.sign_statement(message))
        }
    }

    /// The entry with this payload, signed with `sign`, the key's of this `kid`.
    pub(super) fn seal_by(&self, id: Uuid, t1: u64, payload: &[u8], kid: &[u8], sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Vec<u8> {
        let mut subject = [0; SUBJECT.len() + 36];
        subject[..SUBJECT.len()].copy_from_slice(SUBJECT.as_bytes());
        id.hyphenated().encode_lower(&mut subject[SUBJECT.len()..]);
        let subject = std::str::from_utf8(&subject).unwrap_or_default();
        let mut protected = Writer::with_room(192);
        protected.map(4).uint(1).negative(7).uint(3).uint(CBOR).uint(4).bytes(kid);
        protected.uint(15).map(3).uint(1).text(&self.origin).uint(2).text(subject).uint(6).uint(t1 / 1_000_000_000);
        let protected = protected.done();
        let signature = sign(&to_be_signed(&protected, payload));
        let mut entry = Writer::with_room(protected.len() + payload.len() + 80);
        entry.tag(18).array(4).bytes(&protected).map(0).bytes(payload).bytes(&signature);
        entry.done()
    }
}

/// Writes the trail as its caller may read it.
fn told(to: &mut Writer, steps: &[Step], limited: bool) {
    let steps = &steps[..steps.len().min(MAX_STEPS)];
    if limited {
        let before = steps.iter().take_while(|step| step.stop < Stop::Budget);
        to.uint(12).array(before.clone().count() + 1);
        before.for_each(|step| item(to, step, step.verdict, None));
        to.array(3).uint(Stop::Budget as u64).uint(2).uint(0);
        return;
    }
    let refused = steps.iter().any(|step| step.verdict == Verdict::Refused);
    to.uint(12).array(steps.len());
    for step in steps {
        match step.stop {
            Stop::Detect => item(to, step, Verdict::Passed, None),
            // Whose limit it was is told to nobody whom it refuses, and so to nobody whom it would have refused.
            Stop::Budget if step.verdict == Verdict::Shadowed => item(to, step, step.verdict, None),
            // Of a refusal the caller was told what `check` held against the request, and nothing else that a stop found.
            stop if refused && stop != Stop::Check => item(to, step, step.verdict, None),
            _ => item(to, step, step.verdict, step.rule.as_deref()),
        }
    }
}

fn item(to: &mut Writer, step: &Step, verdict: Verdict, rule: Option<&str>) {
    let verdict = match verdict {
        Verdict::Passed => 0,
        Verdict::Shadowed => 1,
        Verdict::Refused => 2,
    };
    let micros = step.micros.checked_next_power_of_two().unwrap_or(u32::MAX);
    to.array(3 + usize::from(rule.is_some())).uint(step.stop as u64).uint(verdict).uint(micros.into());
    if let Some(rule) = rule {
        to.text(clip(rule));
    }
}

/// Writes a media type in the shorter of its two forms.
fn content_type(to: &mut Writer, media_type: &str) {
    match FORMATS.iter().find(|(_, known)| *known == media_type) {
        Some((format, _)) => to.uint(*format),
        None => to.text(clip(media_type)),
    };
}

pub(super) fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

pub(super) fn fresh_id(nanos: u64) -> Uuid {
    Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, nanos / 1_000_000_000, (nanos % 1_000_000_000) as u32))
}

#[cfg(test)]
#[path = "statement/tests.rs"]
pub(in crate::prove) mod tests;
