//! The open log, and what the pipeline asks of it.

use std::fmt;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, TRAILER};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use serde_json::{Value as Json, json};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::change::Change;
use super::config::{Config, OnFailure, Terms};
use super::key::{Exposed, Key, KeyError, Vkey};
use super::log::{self, OnFatal, Poisoned, Recovered, SEGMENT, Until, Wait, Wal};
use super::receipt::{CONTENT_DIGEST, Receipt, STATEMENT, State, content_digest, media_type, receipt_header, statement_header};
use super::refusals::Refusals;
use super::segment;
use super::statement::{Build, Counts, Kind, Sent, Signer, Statement};
use super::stream::Proving;
use crate::clock::Moment;
use crate::digest::Digest;
use crate::event::{Event, Events, Name};
use crate::infer::{Answer, Payload};
use crate::trail::{Content, Stop, Trail, Verdict, Who};
use crate::wire::Body;

/// Slots that may be taken at once: answers that are being made, streamed or waited for.
pub(super) const ROOM: usize = 32_768;
/// How long a refusal waits for its entry; then it leaves without a receipt. Only a disk that hangs takes so long.
pub(super) const REFUSAL_PATIENCE: Duration = Duration::from_millis(100);
/// Bodies longer than this are hashed on a thread that may take its time.
const HASHED_IN_PLACE: usize = 512 << 10;
/// Numbers left out after a restart in which entries may have been lost that callers hold statements of, so that no number means two.
const SKIP: u64 = 1 << 20;
/// How long after its request an entry may be appended and still be found: longer than any request's deadline should be.
const HORIZON: u64 = 15 * 60 * 1_000;
/// How far the clock may have stepped back, in milliseconds.
const SLACK: u64 = 5_000;
/// The most that one look-up reads.
const MAX_SCAN: u64 = 32 << 20;
/// Look-ups at once.
const FINDERS: usize = 2;
/// The file of the log's public keys.
pub(super) const KEYS: &str = "keys.vkey";

/// Why the log does not open.
#[derive(Debug)]
pub enum OpenError {
    /// The key file gives no key.
    Key(KeyError),
    /// The write-ahead file does not open.
    Log(log::OpenError),
    /// The log was begun with another key, or under another origin.
    AnotherKey(PathBuf),
    /// The file of public keys cannot be written.
    Io(PathBuf, io::Error),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(error) => error.fmt(f),
            Self::Log(error) => error.fmt(f),
            Self::AnotherKey(path) => {
                write!(
                    f,
                    "{}: this log was begun with another key or origin; restore them, or begin a log in another directory",
                    path.display()
                )
            }
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for OpenError {}

/// Why an answer is not released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The log cannot take an entry: full, poisoned, or closing. `prove.unavailable`, 503, gRPC 14.
    Unavailable,
}

/// An answer that was not released, with its trail for the refusal in its place.
#[derive(Debug)]
pub struct NotProved {
    /// Why.
    pub error: Error,
    /// The trail that came with it.
    pub trail: Trail,
}

/// What was found when the ledger was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// What the write-ahead file held.
    pub recovered: Recovered,
    /// Whether others than its owner may read the key file; worth a warning.
    pub key: Exposed,
}

/// What the log has done since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Entries written. Divided by `groups` it is the mean group.
    pub entries: u64,
    /// Groups they were written in.
    pub groups: u64,
    /// Entries laid ready and not written yet.
    pub waiting: usize,
    /// Slots that are taken.
    pub slots: usize,
    /// Answers that were served without an entry.
    pub gaps: u64,
    /// Syncs.
    pub syncs: u64,
    /// How long they took together.
    pub sync_time: Duration,
    /// Whether the log takes nothing any more.
    pub poisoned: bool,
    /// Refusals past their allowance, by code.
    pub suppressed: Vec<(&'static str, u64)>,
}

/// The open log. Cheap to clone; the last clone closes it.
#[derive(Clone)]
pub struct Ledger(Arc<Inner>);

pub(super) struct Inner {
    signer: Signer,
    wal: Wal,
    slots: AtomicUsize,
    gaps: AtomicU64,
    gaps_told: AtomicU64,
    refusals: Mutex<Refusals>,
    finders: Arc<Semaphore>,
    events: Events,
    opened: Moment,
}

/// Room in the log for one answer; given back when dropped.
pub struct Slot {
    inner: Arc<Inner>,
    terms: Terms,
    /// Without room there is a gap to count, and nothing to give back.
    room: bool,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("terms", &self.terms).field("room", &self.room).finish_non_exhaustive()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.room {
            self.inner.slots.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Slot {
    pub(super) fn terms(&self) -> Terms {
        self.terms
    }

    pub(super) fn append(&self, kind: Kind, trail: &Trail, sent: &Sent<'_>, until: Until) -> Result<(Arc<[u8]>, Wait), Poisoned> {
        if self.room { self.inner.append(kind, trail, sent, until) } else { Err(Poisoned) }
    }

    /// Counts an answer that has no entry, and tells whose it was: the security log is all that will ever know.
    pub(super) fn gap(&self, trail: &Trail) {
        self.inner.gaps.fetch_add(1, Ordering::Relaxed);
        let mut event =
            Event::new(Name::LogGap, SystemTime::now()).with("trace", format!("{:032x}", u128::from_be_bytes(trail.trace.trace_id)));
        event.caller = trail.who.as_ref().map(|who| who.caller.clone());
        event.tenant = trail.who.as_ref().map(|who| who.tenant.clone());
        event.model = trail.which.as_ref().map(|which| which.name.clone());
        self.inner.events.tell(event);
    }
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ledger(…)")
    }
}

impl Ledger {
    /// Opens the log that `config` names, or begins it; paths are relative to `base`. Blocks while it reads the write-ahead file.
    ///
    /// `on_fatal` is called when a sync fails; it should end the process, since what the disk holds is not known any more.
    ///
    /// # Errors
    /// When the key, the folder or the file cannot be used, or the log is damaged, in use, or another key's.
    pub fn open(config: &Config, base: &Path, build: Build, events: Events, on_fatal: OnFatal) -> Result<(Self, Opened), OpenError> {
        let (directory, key) = config.paths(base);
        let (key, exposed) = Key::from_file(&key).map_err(OpenError::Key)?;
        std::fs::create_dir_all(&directory).map_err(|error| OpenError::Io(directory.clone(), error))?;
        let origin: Arc<str> = config.origin.get_ref().as_str().into();
        let (log_vkey, statement_vkey) = (key.log_vkey(&origin), key.statement_vkey(&origin));
        let (wal, recovered) = Wal::open(&directory, SEGMENT, signed_millis, on_fatal).map_err(OpenError::Log)?;
        match first_entry(&directory) {
            Some((0, first)) if !first.signed_by(&log_vkey) => return Err(OpenError::AnotherKey(directory)),
            Some((1.., first)) if !first.signed_by(&statement_vkey) => return Err(OpenError::AnotherKey(directory)),
            _ => {}
        }
        write_keys(&directory, &[log_vkey, statement_vkey]).map_err(|error| OpenError::Io(directory.join(KEYS), error))?;

        let inner = Inner {
            signer: Signer::new(key, origin, build),
            wal,
            slots: AtomicUsize::new(0),
            gaps: AtomicU64::new(0),
            gaps_told: AtomicU64::new(0),
            refusals: Mutex::default(),
            finders: Arc::new(Semaphore::new(FINDERS)),
            events,
            opened: Moment::now(),
        };
        let poisoned = |Poisoned| OpenError::Io(directory.clone(), io::Error::other("the first entry could not be written"));
        let now = Moment::now().unix_nanos();
        match recovered.last_seq {
            None => {
                inner.wal.append(now / 1_000_000, Until::Ready, |_| inner.signer.endorsement(now)).map_err(poisoned)?;
            }
            Some(last) if recovered.cut_bytes > 0 || recovered.machine_restarted => {
                inner.wal.skip_to(last + 1 + SKIP);
                inner.heartbeat(Counts { resumed_after: Some(last), ..Counts::default() }).map_err(poisoned)?;
            }
            Some(_) => {}
        }
        let inner = Arc::new(inner);
        let weak = Arc::downgrade(&inner);
        let told = std::thread::Builder::new().name("prove-count".into()).spawn(move || tell_counts(&weak));
        told.map_err(|error| OpenError::Io(directory, error))?;
        Ok((Self(inner), Opened { recovered, key: exposed }))
    }

    /// The log's public keys, as `keys.vkey` has them: the log key, the statement key.
    #[must_use]
    pub fn vkeys(&self) -> [Vkey; 2] {
        let Signer { key, origin, .. } = &self.0.signer;
        [key.log_vkey(origin), key.statement_vkey(origin)]
    }

    /// Whether an entry could be taken now, for `/readyz`.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.0.wal.has_room() && self.0.slots.load(Ordering::Relaxed) < ROOM
    }

    /// Room for one answer, taken before the model runs, so that no model runs whose answer could not be proved.
    ///
    /// # Errors
    /// When there is none and `terms` say to refuse. Where they say to serve, the slot has no room and a gap is counted.
    pub fn reserve(&self, terms: &Terms) -> Result<Slot, Error> {
        let inner = self.0.clone();
        let taken = inner.slots.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| (taken < ROOM).then_some(taken + 1));
        let mut slot = Slot { inner, terms: *terms, room: taken.is_ok() };
        if slot.room && slot.inner.wal.has_room() {
            return Ok(slot);
        }
        match terms.on_failure {
            OnFailure::Refuse => Err(Error::Unavailable),
            OnFailure::Serve => {
                if std::mem::take(&mut slot.room) {
                    slot.inner.slots.fetch_sub(1, Ordering::Relaxed);
                }
                Ok(slot)
            }
        }
    }

    /// Proves an answer: signs its statement, appends it, waits as the terms ask, and sets the headers.
    ///
    /// A stream is released at once with `state=open`; it is signed when it ends, breaks or is dropped.
    ///
    /// # Errors
    /// When the log cannot take the entry and the terms say to refuse.
    pub async fn prove(&self, slot: Slot, answer: Answer, trail: Trail) -> Result<Receipt, Box<NotProved>> {
        let (status, headers, payload, trailers, held) = answer.into_parts();
        let mut receipt = self.prove_parts(slot, status, headers, payload, trailers, trail).await?;
        receipt.hold(held);
        Ok(receipt)
    }

    pub(super) async fn prove_parts(
        &self,
        slot: Slot,
        status: StatusCode,
        mut headers: HeaderMap,
        payload: Payload,
        trailers: Option<HeaderMap>,
        mut trail: Trail,
    ) -> Result<Receipt, Box<NotProved>> {
        let from = Instant::now();
        let media_type = media_type(&headers);
        let bytes = match payload {
            Payload::Whole(bytes) => bytes,
            Payload::Stream(body, late) => {
                trail.step(Stop::Prove, Verdict::Passed, None, from, Instant::now());
                let trail = Arc::new(trail);
                let state = if slot.room { State::Open } else { State::None };
                if slot.room {
                    receipt_header(&mut headers, trail.id, &self.0.signer.origin, State::Open);
                    headers.append(TRAILER, HeaderValue::from(CONTENT_DIGEST));
                    headers.append(TRAILER, HeaderValue::from(STATEMENT));
                    // What has trailers has no length of its own in HTTP/1.1.
                    headers.remove(CONTENT_LENGTH);
                }
                let content = Content { media_type, length: 0, digest: None };
                let trailers = trailers.unwrap_or_default();
                let body = Proving::new(body, late.clone(), trail.clone(), status.as_u16(), content.clone(), trailers, slot);
                return Ok(Receipt { status, headers, body: Body::stream(body), trail, late: Some(late), state, content });
            }
        };
        let digest = digest_of(&bytes).await;
        let sent = Sent {
            status: status.as_u16(),
            media_type: media_type.as_deref(),
            length: bytes.len() as u64,
            digest,
            complete: true,
            code: None,
            usage: None,
        };
        let (until, mut state) = if slot.terms.durable { (Until::Synced, State::Durable) } else { (Until::Written, State::Promised) };
        let outcome = match slot.append(Kind::Inference, &trail, &sent, until) {
            Ok((entry, wait)) => wait.done().await.map(|()| entry),
            Err(poisoned) => Err(poisoned),
        };
        let grpc = trailers.is_some();
        let mut trailers = trailers.unwrap_or_default();
        match outcome {
            Ok(entry) => {
                receipt_header(&mut headers, trail.id, &self.0.signer.origin, state);
                if grpc {
                    statement_header(&mut trailers, &entry, true);
                } else {
                    content_digest(&mut headers, &digest);
                    statement_header(&mut headers, &entry, false);
                }
            }
            Err(Poisoned) if slot.terms.on_failure == OnFailure::Refuse => {
                return Err(Box::new(NotProved { error: Error::Unavailable, trail }));
            }
            Err(Poisoned) => {
                slot.gap(&trail);
                state = State::None;
            }
        }
        trail.step(Stop::Prove, Verdict::Passed, None, from, Instant::now());
        let content = Content { media_type, length: bytes.len() as u64, digest: Some(digest) };
        let body = if grpc {
            let frames = [Ok(Frame::data(bytes)), Ok(Frame::trailers(trailers))];
            Body::stream(StreamBody::new(futures_util::stream::iter(frames)))
        } else {
            bytes.into()
        };
        Ok(Receipt { status, headers, body, trail: Arc::new(trail), late: None, state, content })
    }

    /// Gives a refusal its receipt, where it may have one. Never fails, and waits `REFUSAL_PATIENCE` at the most.
    ///
    /// `code` is the one that the caller reads, and `status`, `headers` and `body` are the answer as the caller gets it. Where the trail
    /// has no passed `authorize`, or a refusal by `budget`, it draws on the allowance of strangers; past it there is no receipt, and it is counted.
    pub async fn refuse(&self, mut trail: Trail, code: &'static str, status: StatusCode, mut headers: HeaderMap, body: Bytes) -> Receipt {
        let from = Instant::now();
        let digest = Digest::of(&body);
        let content = Content { media_type: media_type(&headers), length: body.len() as u64, digest: Some(digest) };
        let ended = |stop, refused| trail.steps.iter().any(|step| step.stop == stop && (step.verdict == Verdict::Refused) == refused);
        // Whom the budget refuses could otherwise fill the log with nothing but that.
        let granted = ended(Stop::Authorize, false) && !ended(Stop::Budget, true);
        let second = from.saturating_duration_since(self.0.opened.mono).as_secs();
        let mut state = State::None;
        if granted || self.0.refusals().allow(trail.address, second, code) {
            let failure = status.is_server_error() || code.starts_with("infer.") || code.starts_with("prove.");
            let kind = if failure { Kind::Error } else { Kind::Deny };
            let (length, media_type) = (content.length, content.media_type.as_deref());
            let sent = Sent { status: status.as_u16(), media_type, length, digest, complete: true, code: Some(code), usage: None };
            let appended = self.0.append(kind, &trail, &sent, Until::Written).ok();
            if let Some((entry, wait)) = appended
                && (wait.is_over() || matches!(tokio::time::timeout(REFUSAL_PATIENCE, wait.done()).await, Ok(Ok(()))))
            {
                state = State::Promised;
                let grpc = headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
                receipt_header(&mut headers, trail.id, &self.0.signer.origin, state);
                statement_header(&mut headers, &entry, grpc);
                if !grpc {
                    content_digest(&mut headers, &digest);
                }
                trail.step(Stop::Prove, Verdict::Passed, None, from, Instant::now());
            }
        }
        Receipt { status, headers, body: body.into(), trail: Arc::new(trail), late: None, state, content }
    }

    /// The statement of this id, if it was made for this caller; for any other caller, and for no such id, `None`.
    ///
    /// Reads at most 32 MiB of the log from the id's own time on, on a thread that may block, two look-ups at once.
    pub async fn find(&self, id: Uuid, who: &Who) -> Option<Found> {
        let (seconds, nanos) = id.get_timestamp().filter(|_| id.get_version_num() == 7)?.to_unix();
        let arrived = seconds.saturating_mul(1_000).saturating_add(u64::from(nanos) / 1_000_000);
        let permit = self.0.finders.clone().acquire_owned().await.ok()?;
        let inner = self.0.clone();
        let found = tokio::task::spawn_blocking(move || {
            // Held by the look-up itself: it goes on when nobody waits for it any more, and still counts then.
            let _permit = permit;
            let needle = id.hyphenated().to_string();
            let places = inner.wal.places(arrived.saturating_sub(SLACK), arrived.saturating_add(HORIZON), MAX_SCAN);
            // A method or a media type that a caller wrote may mention the id too: only the statement of this id will do.
            let of_id = |entry: &[u8]| {
                let statement = mentions(entry, needle.as_bytes()).then(|| Statement::read(entry).ok()).flatten()?;
                (statement.id == id).then(|| (entry.to_vec(), statement))
            };
            places.iter().find_map(|place| place.scan(of_id))
        });
        let (entry, statement) = found.await.ok().flatten()?;
        let durable = statement.seq < self.0.wal.synced();
        let for_them = statement.made_for(who, &self.0.signer.key);
        for_them.then(|| Found { entry: entry.into(), durable, statement })
    }

    /// Writes down a change that no request made. It is laid ready and not waited for: entries stand in the order in which they came, so
    /// that it stands before the first answer that the change brought about. A log that takes nothing takes no change either.
    pub fn tell(&self, change: &Change<'_>) {
        let now = Moment::now().unix_nanos();
        let _ = self.0.wal.append(now / 1_000_000, Until::Ready, |seq| self.0.signer.change(seq, now, change));
    }

    /// What was done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let log::Tally { entries, groups, waiting, syncs, sync_time, poisoned } = self.0.wal.tally();
        let (slots, gaps) = (self.0.slots.load(Ordering::Relaxed), self.0.gaps.load(Ordering::Relaxed));
        let suppressed = self.0.refusals().suppressed();
        Counters { entries, groups, waiting, slots, gaps, syncs, sync_time, poisoned, suppressed }
    }

    /// What the system said when the log was poisoned.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.0.wal.failure()
    }

    /// Tells the last counts, writes and syncs what there is; later appends fail. Blocks for a sync.
    pub fn close(&self) {
        self.0.tell_counts();
        self.0.wal.close();
    }

    #[cfg(test)]
    pub(super) fn poison(&self) {
        self.0.wal.poison();
    }
}

impl Inner {
    fn append(&self, kind: Kind, trail: &Trail, sent: &Sent<'_>, until: Until) -> Result<(Arc<[u8]>, Wait), Poisoned> {
        // The monotonic clock since the arrival, so that the end is never before the beginning.
        let t1 = trail.arrived.after(trail.arrived.mono.elapsed()).unix_nanos();
        let (_, entry, wait) = self.wal.append(t1 / 1_000_000, until, |seq| self.signer.answer(kind, seq, t1, trail, sent))?;
        Ok((entry, wait))
    }

    fn heartbeat(&self, counts: Counts) -> Result<(), Poisoned> {
        let (from, now) = (self.opened.unix_nanos(), Moment::now().unix_nanos());
        self.wal.append(now / 1_000_000, Until::Ready, |seq| self.signer.heartbeat(seq, from, now, &counts)).map(|_| ())
    }

    /// One entry for what has none of its own, if there was any since the last.
    fn tell_counts(&self) {
        let suppressed = self.refusals().untold();
        let gaps = self.gaps.load(Ordering::Relaxed);
        let gaps = gaps - self.gaps_told.swap(gaps, Ordering::Relaxed);
        if gaps > 0 || !suppressed.is_empty() {
            // A poisoned log takes no count either; the counters have it.
            let _ = self.heartbeat(Counts { gaps, suppressed, resumed_after: None });
        }
    }

    fn refusals(&self) -> std::sync::MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell_counts(inner: &Weak<Inner>) {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let Some(inner) = inner.upgrade() else { return };
        inner.tell_counts();
    }
}

/// A statement that was asked for by the caller it was made for.
#[derive(Debug)]
pub struct Found {
    entry: Bytes,
    durable: bool,
    statement: Statement,
}

impl Found {
    /// The COSE_Sign1, the very bytes of the log's entry (`application/cose; cose-type="cose-sign1"`).
    #[must_use]
    pub fn cose(&self) -> &Bytes {
        &self.entry
    }

    /// The receipt for people: where it stands, the statement, and what that says.
    #[must_use]
    pub fn json(&self) -> Json {
        json!({
            "id": self.statement.id.hyphenated().to_string(),
            "log": self.statement.issuer,
            "state": if self.durable { State::Durable } else { State::Promised }.as_str(),
            "statement": STANDARD.encode(&self.entry),
            "view": self.statement.view(),
        })
    }
}

async fn digest_of(bytes: &Bytes) -> Digest {
    if bytes.len() > HASHED_IN_PLACE {
        let there = bytes.clone();
        if let Ok(digest) = tokio::task::spawn_blocking(move || Digest::of(&there)).await {
            return digest;
        }
    }
    Digest::of(bytes)
}

fn signed_millis(entry: &[u8]) -> u64 {
    Statement::read(entry).map_or(0, |statement| statement.signed_at / 1_000_000)
}

fn mentions(entry: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(entry, needle).is_some()
}

/// The first entry of the first segment, and its number.
fn first_entry(directory: &Path) -> Option<(u64, Statement)> {
    let first = segment::first_record(directory).ok()??;
    Some((first.0, Statement::read(&first.1).ok()?))
}

/// Writes the public keys where they are not there already.
fn write_keys(directory: &Path, keys: &[Vkey]) -> io::Result<()> {
    let text: String = keys.iter().map(|key| format!("{key}\n")).collect();
    let path = directory.join(KEYS);
    if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    let new = directory.join("keys.vkey.new");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, &path)?;
    std::fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
#[path = "ledger/tests.rs"]
pub(in crate::prove) mod tests;
