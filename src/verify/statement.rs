//! One statement: what was answered, to whom, by what; as a COSE_Sign1 (RFC 9052) that is itself the log's entry.
//!
//! Protected header: `1` alg (-8, EdDSA) · `3` content type (60, `application/cbor` among the CoAP Content-Formats that RFC 9052 §3.1
//! takes numbers from; entries of early versions have [`CONTENT_TYPE`], 51 bytes more in each) · `4` kid ([`Vkey::kid`]) · `15` CWT claims (RFC 9597): `1` iss, the
//! log's origin; `2` sub, `urn:portcullis:r:<uuid>`, which tells what the CBOR is; `6` iat. The unprotected header is empty. The
//! payload is a map with these keys:
//!
//! | key | name | content |
//! | --- | --- | --- |
//! | 1 | `v` | 1 |
//! | 2 | `kind` | 1 inference · 2 deny · 3 error · 4 aborted · 5 model-load · 6 policy-change · 8 key-rotation · 9 erasure · 10 heartbeat (7 is kept for config-change) |
//! | 3 | `node` | the last segment of the origin, before the label of a shard |
//! | 4 | `seq` | the entry's number in this log, from 0, without gaps |
//! | 5, 6 | `t0`, `t1` | when the request arrived, when this was signed; ns since 1970 |
//! | 7 | `req` | `1` method · `2` route template · `3` media type · `4` length · `5` commit |
//! | 8 | `resp` | `1` status · `2` media type · `3` length · `4` commit · `5` complete · `6` bytes sent · `7` static code of a refusal · of a stream of events: `8` how many · `9` commit to the root of their tree |
//! | 9 | `model` | `1` name · `2` version · `3` sha256 · `4` format · `5` assurance |
//! | 10 | `policy` | `1` sha256 of the compiled policy |
//! | 11 | `principal` | `1` pseudonym (16 bytes) · `2` epoch (YYYYMM) · `3` method · `4` the tenant's pseudonym |
//! | 12 | `trail` | a list of `[stop, verdict, at most µs, rule?]`; stops 0 accept … 8 record; verdicts 0 passed, 1 shadowed, 2 refused; µs rounded up to a power of two |
//! | 13 | `trace` | `1` trace id · `2` span id |
//! | 14 | `usage` | `1` input tokens · `2` output tokens |
//! | 15 | `build` | `1` sha256 of the program · `2` sha256 of its configuration |
//! | 16 | `counts` | heartbeat, see below |
//! | 17 | `endorses` | key-rotation: the statement key (Ed25519), endorsed by the signature of the log key |
//! | 18 | `change` | model-load, policy-change: `1` outcome (loaded, swapped, refused, retired; accepted, refused, pruned, ended) · `2` reason |
//! | 19 | `rotation` | key-rotation, but for entry 0: `1` the log key from here on (Ed25519) · `2` its consent (`rotation.rs`) · `3` the log key before, which signs the entry · `4` resumed_after, as in `counts` |
//! | 20 | `erasure` | erasure: `1` how many keys were destroyed · `2` of what (subject, epoch, strangers) · `3`, `4` from and to which month (YYYYMM), of epochs and strangers |
//! | 21 | `checkpoint_key` | key-rotation: the log's second key for checkpoints (ML-DSA-44), endorsed likewise |
//! | 22 | `exposure` | how much of the model the caller may have learned with this answer, in tenths, rounded down; where it is metered |
//!
//! The `counts` of a heartbeat, of its process and since that began where nothing else is said:
//!
//! | key | name | content |
//! | --- | --- | --- |
//! | 1 | `gaps` | answers without an entry, since the last heartbeat that told any |
//! | 2 | `suppressed` | refusals without a receipt, by code, since the last heartbeat that told any |
//! | 3 | `resumed_after` | the last seq before a restart that may have lost entries |
//! | 4 | `life` | 1 the process began with this entry · 2 it runs · 3 it ends |
//! | 5 | `accepted` | requests that reached the way; ahead of those that entries are about by those in flight |
//! | 6 | `forwarded` | requests that were handed to a model or an upstream |
//! | 7 | `abandoned` | requests whose caller was gone before there was an answer; they leave no entry, or one that nobody waited for |
//! | 8 | `statements` | entries by kind, from the one that began the process, itself counted, up to this one, itself not: exact |
//! | 9 | `bytes` | the sum of `bytes sent` of those entries: exact |
//!
//! 4 to 9 stand in the heartbeats that are written when a log is opened, when it is closed and every minute between, and not in those
//! that tell of gaps and refusals alone.
//!
//! A model-load names the model under `model` and, under `policy`, the policy in force after it. Of a model that was refused `sha256` is what
//! the policy names, and there is no `assurance`. A policy-change has no `model`; of a policy that was refused `policy` is the one that stays.
//! One with the outcome `pruned` says in `reason` before which index entries go, as `prove.keep` wants it, and names no policy.
//! One with the outcome `ended` says in `reason` which shard of the log has ended, with how many entries and which root (hex), and names none.
//!
//! A media type is a text, or where it has one its CoAP Content-Format (RFC 7252 §12.3): 42 `application/octet-stream`, 50
//! `application/json`, 60 `application/cbor`.
//!
//! What is not known is left out. `len` and `commit` of an answer are of the bytes that were handed to the connection; of an aborted
//! stream, of the prefix that was. The events are the blocks of a `text/event-stream`, their tree that of RFC 6962: what its leaves are is told
//! in `prove/events.rs`. A comment line that carries this very statement inside a stream's last event is in none of the four. `complete` of a whole answer says that all of it was handed over, not that it arrived.
//!
//! **The caller reads this.** So it never says what a detector thought: a rule of `detect` is left out and its shadow verdict reads
//! as passed; a refusal by `budget` or by `detect` reads as one of `budget`, with neither the stops between, nor times, nor what was
//! known of the body; nor does a limit in shadow mode say whose it is. On any refusal the rules of all stops but `check` are left out:
//! which part of a credential did not hold, which rule denied, what an upstream did wrong. The security log has all of it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ciborium::Value;
use serde_json::{Map, Value as Json, json};
use uuid::Uuid;

use super::cbor::{Writer, canonical};
use crate::digest::Digest;
use crate::tlog::signature::ML_DSA_44_PUBLIC;
use crate::tlog::tile::MAX_ENTRY;
use crate::tlog::vkey::{PublicKey, Vkey};

/// The payload's media type in entries of early versions.
pub const CONTENT_TYPE: &str = "application/vnd.portcullis.inference-statement+cbor";
/// The payload's media type, as a CoAP Content-Format: CBOR. What the CBOR is, the claims tell.
pub(crate) const CBOR: u64 = 60;
/// Media types that statements write as their CoAP Content-Format, in 2 bytes.
pub(crate) const FORMATS: [(u64, &str); 3] = [(42, "application/octet-stream"), (50, "application/json"), (CBOR, "application/cbor")];
/// What stands before the id in `sub`.
pub(crate) const SUBJECT: &str = "urn:portcullis:r:";
/// The stops of a trail, by their numbers.
pub(crate) const STOPS: [&str; 9] = ["accept", "authenticate", "authorize", "budget", "check", "detect", "infer", "prove", "record"];

/// The stop `infer` in a trail.
const INFER: u8 = 6;
/// The verdict `refused` in a trail.
const REFUSED: u8 = 2;
/// The code of a refusal because of the log.
pub(crate) const LOG_REFUSED: &str = "prove.unavailable";

/// What a statement is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// An answer that came to its end.
    Inference = 1,
    /// A refusal.
    Deny = 2,
    /// A failure that is not the caller's.
    Error = 3,
    /// A stream that broke off.
    Aborted = 4,
    /// A model that was loaded, swapped, refused or retired.
    ModelLoad = 5,
    /// A policy that was put in force or refused.
    PolicyChange = 6,
    /// A statement key, endorsed by the log key.
    KeyRotation = 8,
    /// A key of salts or pseudonyms that was destroyed.
    Erasure = 9,
    /// What has no entry of its own, counted.
    Heartbeat = 10,
}

impl Kind {
    /// Every kind, by its number.
    pub const ALL: [Self; 9] = [
        Self::Inference,
        Self::Deny,
        Self::Error,
        Self::Aborted,
        Self::ModelLoad,
        Self::PolicyChange,
        Self::KeyRotation,
        Self::Erasure,
        Self::Heartbeat,
    ];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inference => "inference",
            Self::Deny => "deny",
            Self::Error => "error",
            Self::Aborted => "aborted",
            Self::ModelLoad => "model-load",
            Self::PolicyChange => "policy-change",
            Self::KeyRotation => "key-rotation",
            Self::Erasure => "erasure",
            Self::Heartbeat => "heartbeat",
        }
    }
}

/// The `Sig_structure` of RFC 9052 §4.4, without external data.
pub(crate) fn to_be_signed(protected: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut message = Writer::with_room(protected.len() + payload.len() + 24);
    message.array(4).text("Signature1").bytes(protected).bytes(&[]).bytes(payload);
    message.done()
}

/// The id in an entry of ours, without reading the rest of it.
pub(crate) fn id_of(entry: &[u8]) -> Option<Uuid> {
    let at = memchr::memmem::find(entry, SUBJECT.as_bytes())? + SUBJECT.len();
    Uuid::try_parse_ascii(entry.get(at..at + 36)?).ok()
}

/// A statement, read back. Nothing of it is believed before [`Statement::signed_by`] holds.
#[derive(Debug)]
pub struct Statement {
    protected: Vec<u8>,
    payload: Vec<u8>,
    signature: Vec<u8>,
    /// The kid it names.
    pub kid: Vec<u8>,
    /// The origin it names.
    pub issuer: String,
    /// The receipt's id.
    pub id: Uuid,
    /// When it says it was signed, in seconds.
    pub issued: u64,
    /// What it is about.
    pub kind: Kind,
    /// Its number.
    pub seq: u64,
    /// When it says it was signed, in nanoseconds.
    pub signed_at: u64,
    pub(crate) fields: Vec<(Value, Value)>,
}

/// Why bytes are no statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAStatement(&'static str);

impl std::fmt::Display for NotAStatement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not a statement: {}", self.0)
    }
}

impl std::error::Error for NotAStatement {}

impl Statement {
    /// Reads the bytes of an entry: deterministic CBOR throughout, and no field that this version does not know how to read.
    ///
    /// # Errors
    /// When they are anything else.
    pub fn read(entry: &[u8]) -> Result<Self, NotAStatement> {
        let no = NotAStatement;
        if entry.len() > MAX_ENTRY {
            return Err(no("longer than 65,535 bytes"));
        }
        let Some(Value::Tag(18, inner)) = canonical(entry) else { return Err(no("not a tagged COSE_Sign1 in deterministic CBOR")) };
        let Value::Array(parts) = *inner else { return Err(no("COSE_Sign1 is an array")) };
        let Ok([Value::Bytes(protected), Value::Map(unprotected), Value::Bytes(payload), Value::Bytes(signature)]) =
            <[Value; 4]>::try_from(parts)
        else {
            return Err(no("COSE_Sign1 has four parts"));
        };
        if !unprotected.is_empty() {
            return Err(no("nothing may stand in the unprotected header"));
        }
        let Some(Value::Map(header)) = canonical(&protected) else { return Err(no("the protected header is not deterministic CBOR")) };
        let Some(Value::Map(fields)) = canonical(&payload) else { return Err(no("the payload is not deterministic CBOR")) };
        let is_cbor = unsigned(&header, 3) == Some(CBOR) || text(&header, 3) == Some(CONTENT_TYPE);
        let (Some(-8), true, Some(Value::Bytes(kid)), Some(Value::Map(claims)), 4) =
            (integer(&header, 1), is_cbor, field(&header, 4), field(&header, 15), header.len())
        else {
            return Err(no("the protected header has other fields"));
        };
        let id = text(claims, 2).and_then(|subject| subject.strip_prefix(SUBJECT)).and_then(|id| Uuid::parse_str(id).ok());
        let (Some(issuer), Some(id), Some(issued), 3) = (text(claims, 1), id, unsigned(claims, 6), claims.len()) else {
            return Err(no("the claims are not iss, sub and iat"));
        };
        if text(claims, 2).is_some_and(|subject| subject[SUBJECT.len()..] != id.hyphenated().to_string()) {
            return Err(no("the id is not in its canonical form"));
        }
        let kind = unsigned(&fields, 2).and_then(|kind| Kind::ALL.into_iter().find(|known| *known as u64 == kind));
        let (Some(1), Some(kind), Some(seq), Some(signed_at)) = (unsigned(&fields, 1), kind, unsigned(&fields, 4), unsigned(&fields, 6))
        else {
            return Err(no("version, kind, seq or time is missing or unknown"));
        };
        let (kid, issuer) = (kid.clone(), issuer.to_owned());
        Ok(Self { protected, payload, signature, kid, issuer, id, issued, kind, seq, signed_at, fields })
    }

    /// Whether `vkey` signed it, names it, and is of the origin it names.
    #[must_use]
    pub fn signed_by(&self, vkey: &Vkey) -> bool {
        self.kid == vkey.kid() && self.issuer == vkey.name && vkey.verifies(&to_be_signed(&self.protected, &self.payload), &self.signature)
    }

    /// The keys that an entry of kind key-rotation endorses: that of statements, and the second one of checkpoints.
    #[must_use]
    pub fn endorses(&self) -> Vec<PublicKey> {
        if self.kind != Kind::KeyRotation {
            return Vec::new();
        }
        let of_statements = bytes(&self.fields, 17).and_then(|key| key.try_into().ok()).map(PublicKey::Statement);
        let of_checkpoints =
            bytes(&self.fields, 21).and_then(|key| <Box<[u8; ML_DSA_44_PUBLIC]>>::try_from(key.to_vec().into_boxed_slice()).ok());
        of_statements.into_iter().chain(of_checkpoints.map(PublicKey::MlDsa44)).collect()
    }

    /// The last number before a restart that may have lost entries, in a heartbeat or a rotation that says so.
    #[must_use]
    pub fn resumed_after(&self) -> Option<u64> {
        match self.kind {
            Kind::Heartbeat => unsigned(map(&self.fields, 16)?, 3),
            Kind::KeyRotation => unsigned(map(&self.fields, 19)?, 4),
            _ => None,
        }
    }

    /// Whether it refuses an answer that stands in an entry before it, which did not come as far as the policy demands in time: the code is
    /// the log's, and `infer` had passed the request. Where the log refuses a request that has no entry yet, no model has run.
    pub(crate) fn refuses_an_answer(&self) -> bool {
        let code = map(&self.fields, 8).and_then(|answer| text(answer, 7));
        let steps = field(&self.fields, 12).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let number = |value: Option<&Value>| value.and_then(Value::as_integer).and_then(|number| u8::try_from(number).ok());
        let answered = |step: &Value| {
            let step = step.as_array().map(Vec::as_slice).unwrap_or_default();
            number(step.first()) == Some(INFER) && number(step.get(1)).is_some_and(|verdict| verdict != REFUSED)
        };
        self.kind == Kind::Error && code == Some(LOG_REFUSED) && steps.iter().any(answered)
    }

    /// What an entry that hands the log over says: the log key after, its consent, and the log key before.
    pub(crate) fn rotation(&self) -> Option<([u8; 32], &[u8], [u8; 32])> {
        let told = (self.kind == Kind::KeyRotation).then(|| map(&self.fields, 19)).flatten()?;
        Some((bytes(told, 1)?.try_into().ok()?, bytes(told, 2)?, bytes(told, 3)?.try_into().ok()?))
    }

    /// Whether it is an entry that says anything of handing the log over.
    pub(crate) fn has_rotation(&self) -> bool {
        field(&self.fields, 19).is_some()
    }

    /// The commitments that it holds, by their labels: to the request's bytes, the answer's, and the root of a stream's events.
    pub fn commits(&self) -> impl Iterator<Item = (&'static str, Digest)> {
        const COMMITS: [(&str, i64, i64); 3] = [("request", 7, 5), ("response", 8, 4), ("events", 8, 9)];
        COMMITS.into_iter().filter_map(|(label, part, key)| {
            let commit = bytes(map(&self.fields, part)?, key)?.try_into().ok()?;
            Some((label, Digest(commit)))
        })
    }

    /// When its request arrived, as it says.
    pub(crate) fn arrived(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(unsigned(&self.fields, 5).unwrap_or_default())
    }

    /// The caller's pseudonym and its month; none where nobody was known.
    pub(crate) fn principal(&self) -> Option<(&[u8], u32)> {
        let principal = map(&self.fields, 11)?;
        Some((bytes(principal, 1)?, u32::try_from(unsigned(principal, 2)?).ok()?))
    }

    /// What it says, with names for the numbers; bytes are hex.
    #[must_use]
    pub fn view(&self) -> Json {
        let mut view = Map::new();
        view.insert("id".into(), json!(self.id.hyphenated().to_string()));
        view.insert("origin".into(), json!(self.issuer));
        view.insert("issued".into(), json!(self.issued));
        view.insert("kid".into(), json!(hex(&self.kid)));
        for (key, value) in &self.fields {
            let number = key.as_integer().and_then(|key| usize::try_from(key).ok()).unwrap_or_default();
            let (name, inner): (&str, &[&str]) = FIELDS.get(number).copied().unwrap_or(("", &[]));
            let name = if name.is_empty() { number.to_string() } else { name.to_owned() };
            let value = match number {
                2 => json!(self.kind.as_str()),
                12 => trail_view(value),
                7 | 8 => with_media_type(named(value, inner)),
                _ => named(value, inner),
            };
            view.insert(name, value);
        }
        view.insert("signature".into(), json!(STANDARD.encode(&self.signature)));
        Json::Object(view)
    }
}

/// The payload's names by number, and the names inside.
const FIELDS: [(&str, &[&str]); 23] = [
    ("", &[]),
    ("v", &[]),
    ("kind", &[]),
    ("node", &[]),
    ("seq", &[]),
    ("t0", &[]),
    ("t1", &[]),
    ("req", &["method", "route", "content_type", "len", "commit"]),
    ("resp", &["status", "content_type", "len", "commit", "complete", "bytes_sent", "code", "n_events", "events_commit"]),
    ("model", &["name", "version", "sha256", "format", "assurance"]),
    ("policy", &["sha256"]),
    ("principal", &["pseudonym", "epoch", "method", "tenant"]),
    ("trail", &[]),
    ("trace", &["trace_id", "span_id"]),
    ("usage", &["input", "output"]),
    ("build", &["binary", "config"]),
    ("counts", &["gaps", "suppressed", "resumed_after", "life", "accepted", "forwarded", "abandoned", "statements", "bytes"]),
    ("endorses", &[]),
    ("change", &["outcome", "reason"]),
    ("rotation", &["log_key", "consent", "before", "resumed_after"]),
    ("erasure", &["keys", "of", "from", "to"]),
    ("checkpoint_key", &[]),
    ("exposure", &[]),
];

fn named(value: &Value, names: &[&str]) -> Json {
    match value {
        Value::Integer(number) => u64::try_from(*number).map_or_else(|_| json!(i64::try_from(*number).unwrap_or_default()), |n| json!(n)),
        Value::Bytes(bytes) => json!(hex(bytes)),
        Value::Text(text) => json!(text),
        Value::Bool(value) => json!(value),
        Value::Array(items) => items.iter().map(|item| named(item, &[])).collect(),
        Value::Map(pairs) => Json::Object(
            pairs
                .iter()
                .map(|(key, value)| {
                    let number = key.as_integer().and_then(|key| usize::try_from(key).ok());
                    let name = number.and_then(|number| names.get(number.checked_sub(1)?).copied());
                    let name = name.or(key.as_text()).map_or_else(|| number.unwrap_or_default().to_string(), str::to_owned);
                    (name, named(value, &[]))
                })
                .collect(),
        ),
        _ => Json::Null,
    }
}

/// The view of a request or an answer, whose media type may be a number.
fn with_media_type(mut view: Json) -> Json {
    let format = view["content_type"].as_u64().and_then(|number| FORMATS.iter().find(|(format, _)| *format == number));
    if let Some((_, media_type)) = format {
        view["content_type"] = json!(media_type);
    }
    view
}

fn trail_view(value: &Value) -> Json {
    let number = |value: Option<&Value>| value.and_then(Value::as_integer).and_then(|number| u32::try_from(number).ok());
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .map(|item| {
            let parts = item.as_array().map(Vec::as_slice).unwrap_or_default();
            let stop = number(parts.first()).and_then(|stop| STOPS.get(stop as usize).copied());
            let verdict = number(parts.get(1)).and_then(|verdict| ["passed", "shadowed", "refused"].get(verdict as usize).copied());
            let mut view = json!({ "stop": stop, "verdict": verdict, "at_most_micros": number(parts.get(2)) });
            if let Some(rule) = parts.get(3).and_then(Value::as_text) {
                view["rule"] = json!(rule);
            }
            view
        })
        .collect()
}

fn field(map: &[(Value, Value)], key: i64) -> Option<&Value> {
    map.iter().find(|(name, _)| *name == Value::Integer(key.into())).map(|(_, value)| value)
}

fn integer(map: &[(Value, Value)], key: i64) -> Option<i64> {
    i64::try_from(field(map, key)?.as_integer()?).ok()
}

pub(crate) fn unsigned(map: &[(Value, Value)], key: i64) -> Option<u64> {
    u64::try_from(field(map, key)?.as_integer()?).ok()
}

pub(crate) fn text(map: &[(Value, Value)], key: i64) -> Option<&str> {
    field(map, key)?.as_text()
}

fn bytes(map: &[(Value, Value)], key: i64) -> Option<&[u8]> {
    field(map, key)?.as_bytes().map(Vec::as_slice)
}

pub(crate) fn map(fields: &[(Value, Value)], key: i64) -> Option<&[(Value, Value)]> {
    field(fields, key)?.as_map().map(Vec::as_slice)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
