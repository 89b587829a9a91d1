//! The open log, and what the pipeline asks of it.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, TRAILER};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use serde_json::Value as Json;
use uuid::Uuid;

use super::archive::{self, Archive, Shared};
use super::change::Change;
use super::config::{Mode, OnFailure, Terms};
use super::cosign::{self, Cosigning};
use super::erasure::{EraseError, Erased, Erasure};
use super::found::Found;
use super::heartbeat::Heart;
use super::key::Vkey;
use super::log::{self, Poisoned, Until, Wal};
use super::publisher::{self, Publisher};
use super::receipt::{CONTENT_DIGEST, Receipt, STATEMENT, State, content_digest, media_type, receipt_header, statement_header};
use super::refusals::Refusals;
use super::release::{Appended, Unkept};
use super::salts;
use super::statement::{Sent, Signer};
use super::stream::Proving;
use super::want::Want;
use crate::clock::Moment;
use crate::digest::Digest;
use crate::event::{Event, Events, Name};
use crate::infer::{Answer, Payload};
use crate::trail::{Content, Stop, Trail, Verdict, Who};
use crate::verify::census::{Census, Traffic};
use crate::verify::heartbeat::Life;
use crate::verify::statement::{Kind, LOG_REFUSED};
use crate::wire::Body;

mod entries;
pub(super) mod open;

pub use open::{OpenError, Opened};

/// Slots that may be taken at once: answers that are being made, streamed or waited for.
pub(super) const ROOM: usize = 32_768;
/// How long a refusal waits for its entry; then it leaves without a receipt. Only a disk that hangs takes so long.
pub(super) const REFUSAL_PATIENCE: Duration = Duration::from_millis(100);
/// Bodies longer than this are hashed on a thread that may take its time.
const HASHED_IN_PLACE: usize = 512 << 10;

/// Why an answer is not released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The log cannot take an entry (full, poisoned, or closing), or the witnesses that the policy demands are not enough.
    /// `prove.unavailable`, 503, gRPC 14.
    Unavailable,
    /// `Provenance-Want` is not what it should be. `prove.want`, 400, gRPC 3.
    CallerSentBadWant,
}

impl Error {
    /// The static code.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Unavailable => LOG_REFUSED,
            Self::CallerSentBadWant => "prove.want",
        }
    }
}

/// An answer that was not released, with its trail for the refusal in its place.
#[derive(Debug)]
pub struct NotProved {
    /// Why.
    pub error: Error,
    /// The trail that came with it.
    pub trail: Trail,
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
    /// Bytes that are written and not in the tree yet.
    pub unpublished: usize,
    /// Whether the disk is full, and the log waits for room.
    pub full: bool,
    /// Checkpoints, what the newest covers, and how often one could not be made.
    pub checkpoints: publisher::Tally,
    /// What witnesses have done; nothing where there are none.
    pub witnesses: Option<cosign::Tally>,
    /// The keys of the salts.
    pub salts: salts::Tally,
    /// Refusals past their allowance, by code.
    pub suppressed: Vec<(&'static str, u64)>,
    /// What requests did.
    pub traffic: Traffic,
}

/// The open log. Cheap to clone; the last clone closes it.
#[derive(Clone)]
pub struct Ledger(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) signer: Arc<Signer>,
    pub(super) wal: Arc<Wal>,
    pub(super) publisher: Publisher,
    /// What can be read of it, while it is written and after.
    pub(super) archive: Arc<Archive>,
    slots: AtomicUsize,
    gaps: AtomicU64,
    gaps_told: AtomicU64,
    refusals: Mutex<Refusals>,
    pub(super) heart: Arc<Heart>,
    shared: Shared,
    events: Events,
}

/// Room in the log for one answer; given back when dropped.
pub struct Slot {
    pub(super) inner: Arc<Inner>,
    pub(super) terms: Terms,
    pub(super) want: Want,
    /// Without room there is a gap to count, and nothing to give back.
    room: bool,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("terms", &self.terms).field("want", &self.want).field("room", &self.room).finish_non_exhaustive()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.room {
            self.inner.slots.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Inner {
    /// Whether at `now` what `mode` waits for has been missing for so long that it is not to be expected: there was no checkpoint for
    /// [`publisher::STALLED`], or there were not enough witnesses for [`cosign::UNWITNESSED`].
    pub(super) fn lacks(&self, mode: Mode, now: Instant) -> bool {
        mode >= Mode::Included && self.publisher.is_stalled(now) || mode == Mode::Witnessed && self.lacks_witnesses(now)
    }

    fn lacks_witnesses(&self, now: Instant) -> bool {
        self.archive.cosigning.get().is_some_and(|cosigning| cosigning.is_stalled(now))
    }
}

impl Slot {
    /// Signs and appends, and tells what [`Slot::kept`] waits for.
    pub(super) fn append(&self, kind: Kind, trail: &Trail, sent: &Sent<'_>, until: Until) -> Result<Appended, Poisoned> {
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
    /// The log's public keys from here on, as `keys.vkey` begins with them: the log key, the statement key, and the log's second key for
    /// checkpoints (ML-DSA-44).
    #[must_use]
    pub fn vkeys(&self) -> [Vkey; 3] {
        self.0.signer.key.vkeys(&self.0.signer.origin)
    }

    /// The same, and after them those that the log had before: the newest first.
    #[must_use]
    pub fn all_vkeys(&self) -> Vec<Vkey> {
        self.0.archive.vkeys.clone()
    }

    /// Why no entry could be taken now, for `/readyz`; none where one could.
    #[must_use]
    pub fn refuses(&self) -> Option<String> {
        if !self.0.wal.has_room() {
            let why = self.failure().map(|why| format!("{}: {why}", self.0.archive.files.directory().display()));
            // What is written waits in memory for the tree.
            let why = why.or_else(|| self.0.publisher.failing());
            return Some(why.unwrap_or_else(|| "more waits to be written than may".to_owned()));
        }
        let full = self.0.slots.load(Ordering::Relaxed) >= ROOM;
        full.then(|| format!("{ROOM} answers are being made, streamed or waited for"))
    }

    /// Why there is no new checkpoint, where one could not be made.
    #[must_use]
    pub fn uncheckpointed(&self) -> Option<String> {
        self.0.publisher.failing()
    }

    /// Why entries that are older than they are kept were not removed, where they were not.
    #[must_use]
    pub fn not_pruning(&self) -> Option<String> {
        self.0.publisher.not_pruning()
    }

    /// What was missing of the log's files when it was opened.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        self.0.publisher.missing()
    }

    /// The witnesses that did not cosign when they were last asked to, and why.
    #[must_use]
    pub fn unwitnessed(&self) -> Vec<(Arc<str>, String)> {
        self.0.archive.cosigning.get().map(Cosigning::failing).unwrap_or_default()
    }

    /// Whether there have not been enough cosignatures for so long that answers which need them are refused, or leave without.
    #[must_use]
    pub fn is_unwitnessed(&self) -> bool {
        self.0.lacks_witnesses(Instant::now())
    }

    /// Whether every answer under these terms is refused now, since what they demand of the log has been missing for long.
    #[must_use]
    pub fn holds_up(&self, terms: &Terms) -> bool {
        !terms.serves() && self.0.lacks(terms.mode, Instant::now())
    }

    /// Room for one answer, taken before the model runs, so that no model runs whose answer could not be proved. What the policy demands and
    /// what the caller wants meet here.
    ///
    /// # Errors
    /// When there is none and `terms` say to refuse. Where they say to serve, the slot has no room and a gap is counted. Also when they demand
    /// a checkpoint, say to refuse, and none could be made for [`publisher::STALLED`]; or witnesses, and there have not been enough of them
    /// for [`cosign::UNWITNESSED`].
    pub fn reserve(&self, terms: &Terms, want: Want) -> Result<Slot, Error> {
        let inner = self.0.clone();
        if self.holds_up(terms) {
            return Err(Error::Unavailable);
        }
        let taken = inner.slots.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| (taken < ROOM).then_some(taken + 1));
        let mut slot = Slot { inner, terms: *terms, want, room: taken.is_ok() };
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

    /// Proves an answer: signs its statement, appends it, waits as the terms and the caller ask, and sets the headers.
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
                    if slot.want.trailers() && trailers.is_none() {
                        headers.append(TRAILER, HeaderValue::from(CONTENT_DIGEST));
                        headers.append(TRAILER, HeaderValue::from(STATEMENT));
                    }
                    // What has trailers, or a line more than it came with, has no length of its own in HTTP/1.1.
                    headers.remove(CONTENT_LENGTH);
                }
                let content = Content { media_type, length: 0, digest: None };
                let place = slot.room.then(|| self.0.shared.underway.begin(&trail, &self.0.signer.origin));
                let body = Proving::new(body, late.clone(), trail.clone(), status.as_u16(), content.clone(), trailers, slot, place);
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
            events: None,
        };
        let outcome = match slot.append(Kind::Inference, &trail, &sent, Until::Written) {
            Ok(Appended { seq, entry, wait }) => slot.kept(seq, wait).await.map(|state| (entry, state)),
            Err(Poisoned) => Err(Unkept::Unwritten),
        };
        let grpc = trailers.is_some();
        let mut trailers = trailers.unwrap_or_default();
        let state = match outcome {
            Ok((entry, state)) => {
                receipt_header(&mut headers, trail.id, &self.0.signer.origin, state);
                if grpc {
                    statement_header(&mut trailers, &entry, true);
                } else {
                    content_digest(&mut headers, &digest);
                    statement_header(&mut headers, &entry, false);
                }
                state
            }
            Err(unkept) if slot.terms.on_failure == OnFailure::Refuse => {
                if unkept == Unkept::Late {
                    // The answer's entry has this id. The refusal's is another, in the same trace.
                    trail.id = Uuid::now_v7();
                }
                return Err(Box::new(NotProved { error: Error::Unavailable, trail }));
            }
            Err(_) => {
                slot.gap(&trail);
                State::None
            }
        };
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
        let second = from.saturating_duration_since(self.0.heart.opened.mono).as_secs();
        let mut state = State::None;
        if !self.0.wal.has_room() {
            // Nobody else is let in then; refusals alone would go on to fill the memory.
            self.0.refusals().suppress(code, 1);
        } else if granted || self.0.refusals().allow(trail.address, second, code) {
            let failure = status.is_server_error() || code.starts_with("infer.") || code == Error::Unavailable.code();
            let kind = if failure { Kind::Error } else { Kind::Deny };
            let (length, media_type) = (content.length, content.media_type.as_deref());
            let sent =
                Sent { status: status.as_u16(), media_type, length, digest, complete: true, code: Some(code), usage: None, events: None };
            let appended = self.0.append(kind, &trail, &sent, Until::Written).ok();
            if let Some(Appended { entry, wait, .. }) = appended
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

    /// The statement of this id, if it was made for this caller, or the caller `audits`; for any other caller, and for no such id, `None`.
    pub async fn find(&self, id: Uuid, who: &Who, audits: bool) -> Option<Found> {
        archive::find(&self.0.shared, vec![self.0.archive.clone()], id, who, audits).await.map(|(_, found)| found)
    }

    /// The same, once a checkpoint covers it: waits for that, two seconds at the most.
    pub async fn find_included(&self, id: Uuid, who: &Who, audits: bool) -> Option<Found> {
        archive::find_included(&self.0.shared, vec![self.0.archive.clone()], id, who, audits).await
    }

    /// The salts of this id's commitments, for whom [`Ledger::find`] gives its statement. `None` too where there is no commitment, and
    /// where the key is gone: who asks for what was erased hears what a stranger hears.
    pub async fn disclose(&self, id: Uuid, who: &Arc<Who>, audits: bool) -> Option<Json> {
        archive::disclose(&self.0.shared, vec![self.0.archive.clone()], id, who, audits).await
    }

    /// Destroys a key, appends the entry that tells it, waits until that is synced, and overwrites what held the key.
    ///
    /// It goes on where nobody waits for it any more.
    ///
    /// # Errors
    /// See [`EraseError`]. Of an unknown key, and of one whose month is not over, nothing is appended.
    pub async fn erase(&self, erasure: Erasure) -> Result<Erased, EraseError> {
        let ledger = self.clone();
        let going = tokio::spawn(async move {
            let _permit = ledger.0.shared.eraser.acquire().await.map_err(|_| EraseError::Unavailable)?;
            ledger.erase_in(Vec::new(), erasure).await
        });
        going.await.map_err(|error| EraseError::Unfinished(io::Error::other(error)))?
    }

    /// The same in the logs `others` too, of which this one tells: by who has the permit for it.
    pub(super) async fn erase_in(&self, others: Vec<Arc<Archive>>, erasure: Erasure) -> Result<Erased, EraseError> {
        let fault = |error| EraseError::Unfinished(io::Error::other(error));
        let (inner, others) = (self.0.clone(), Arc::new(others));
        let there = others.clone();
        let (erased, wait) = tokio::task::spawn_blocking(move || inner.erase(&erasure, &there)).await.map_err(fault)??;
        wait.done().await.map_err(|Poisoned| EraseError::Untold)?;
        let inner = self.0.clone();
        let wiped = tokio::task::spawn_blocking(move || {
            // Each is wiped, whatever becomes of the others; one whose folder went meanwhile has nothing to wipe.
            let there = others.iter().filter(|other| !other.is_gone()).map(|other| &other.salts);
            there.chain([&inner.signer.salts]).map(|salts| salts.wipe()).fold(Ok(()), Result::and)
        });
        wiped.await.map_err(fault)?.map_err(EraseError::Unfinished).map(|()| erased)
    }

    /// Writes down a change that no request made. It is laid ready and not waited for: entries stand in the order in which they came, so
    /// that it stands before the first answer that the change brought about. A log that takes nothing takes no change either.
    pub fn tell(&self, change: &Change<'_>) {
        let now = Moment::now().unix_nanos();
        let _ = self.0.enter(change.kind(), 0, Until::Ready, |seq| self.0.signer.change(seq, now, change));
    }

    /// What was done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let log::Tally { entries, groups, waiting, syncs, sync_time, unpublished, poisoned, full } = self.0.wal.tally();
        let checkpoints = self.0.publisher.tally();
        let witnesses = self.0.archive.cosigning.get().map(Cosigning::tally);
        let (slots, gaps) = (self.0.slots.load(Ordering::Relaxed), self.0.gaps.load(Ordering::Relaxed));
        let suppressed = self.0.refusals().suppressed();
        let salts = self.0.signer.salts.tally();
        let traffic = self.0.heart.counting.traffic();
        Counters {
            entries,
            groups,
            waiting,
            slots,
            gaps,
            syncs,
            sync_time,
            poisoned,
            unpublished,
            full,
            checkpoints,
            witnesses,
            salts,
            suppressed,
            traffic,
        }
    }

    /// The entries since this process opened the log, by kind: exactly those that have a number below `began` plus their sum.
    #[must_use]
    pub fn census(&self) -> Census {
        self.0.heart.counting.census()
    }

    /// Counts a request that begins. Unless it is told to be [`Accepted::over`], its end counts it as abandoned.
    #[must_use = "dropped at once, the request counts as abandoned"]
    pub fn accept(&self) -> Accepted {
        self.0.heart.counting.accept();
        Accepted(Some(self.0.clone()))
    }

    /// Counts a request that is handed to a model or an upstream.
    pub fn forward(&self) {
        self.0.heart.counting.forward();
    }

    /// What the system said when the log was poisoned.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.0.wal.failure()
    }

    /// Tells the last counts, writes, syncs and publishes what there is; later appends fail. Blocks for a sync.
    pub fn close(&self) {
        drop(self.0.tell_counts());
        // A log that takes nothing any more takes no last word either.
        let _ = self.0.count(Life::Ended, None);
        self.0.close();
    }

    #[cfg(test)]
    pub(super) fn poison(&self) {
        self.0.wal.poison(&io::Error::other("a test"));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// A request that has begun and is counted.
pub struct Accepted(Option<Arc<Inner>>);

impl fmt::Debug for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Accepted")
    }
}

impl Accepted {
    /// There is an answer, or the beginning of one.
    pub fn over(mut self) {
        self.0 = None;
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        if let Some(inner) = self.0.take() {
            inner.heart.counting.abandon();
        }
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

#[cfg(test)]
#[path = "ledger/tests.rs"]
pub(in crate::prove) mod tests;
