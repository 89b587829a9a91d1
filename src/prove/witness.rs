//! Witnesses (C2SP tlog-witness v1, the log's side): each gets every checkpoint with the proof that it goes on from the
//! one before, and answers with its cosignature. A log that shows different trees to different people must win over a quorum
//! of them.
//!
//! Nothing that a witness says is believed before its key has signed it, but the size in a 409, which only chooses the
//! proof that is sent next.

mod config;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

pub(super) use self::config::mistakes;
pub use self::config::{Keys, WitnessConfig};
use crate::outbound::{FetchError, Kept, Limits};
use crate::tlog::add_checkpoint::{AddCheckpoint, NotARequest, size_in_conflict};
use crate::tlog::checkpoint::{Checkpoint, NotACheckpoint};
use crate::tlog::note::{self, Line, Malformed, NotOpened, Note};
use crate::tlog::policy::Quorum;
use crate::tlog::vkey::Vkey;

/// How long a witness may take for one answer, from the name to the last byte.
pub const WITHIN: Duration = Duration::from_secs(5);
/// The most bytes of an answer: room for [`note::MAX_SIGNATURES`] ML-DSA-44 lines.
pub const MAX_ANSWER: usize = 256 << 10;
/// How long a round waits for further witnesses once it has a quorum.
pub const GRACE: Duration = Duration::from_millis(20);
/// How long a witness that failed is left alone: at first, and at most. Each further failure doubles it.
pub const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// See [`FIRST_PAUSE`].
pub const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The operator wrote these URLs: they may be private, and plain on this machine.
const LIMITS: Limits = Limits { max_body: MAX_ANSWER, within: WITHIN, allow_private: true, allow_http: false };

/// The proof that this log's newest tree goes on from the one of so many leaves (RFC 6962 §2.1.2). It may read files, and is
/// asked on a thread that may wait.
pub type Consistency = Arc<dyn Fn(u64) -> io::Result<Vec<[u8; 32]>> + Send + Sync>;

/// The witnesses of a log.
#[derive(Debug)]
pub struct Witnesses {
    origin: String,
    /// Each with its place in the quorum.
    peers: Vec<(usize, Arc<Peer>)>,
    quorum: Quorum,
}

/// What a round of asking brought.
#[derive(Debug)]
#[must_use]
pub struct Cosigned {
    /// The cosignatures that verified, to add to the checkpoint's own lines.
    pub lines: Vec<Line>,
    /// Whether those who cosigned are enough.
    pub quorum: bool,
    /// Who did not cosign within the round, by name, and why; one that was still being asked when there were enough is not told.
    pub failures: Vec<(Arc<str>, Failure)>,
}

/// What a witness says that it knows of the log, if anything.
#[derive(Debug)]
pub struct Latest {
    /// The witness's name.
    pub witness: Arc<str>,
    /// The tree that it last cosigned, under its own signature; none if it never did.
    pub seen: Result<Option<Seen>, Failure>,
}

/// A tree that a witness has cosigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How many leaves.
    pub size: u64,
    /// Its root.
    pub root: [u8; 32],
}

/// Why a witness gave nothing.
#[derive(Debug)]
pub enum Failure {
    /// It failed lately, and is left alone for a while.
    LeftAlone,
    /// It has not yet answered for the checkpoint before.
    StillBusy,
    /// No answer.
    Unreached(FetchError),
    /// It refused: 403 where it does not know the log's key, 404 where not the log, 422 where the proof does not hold for it.
    Refused(StatusCode),
    /// It knows a larger tree than this log has: the log was set back, or another writes under its name.
    LogIsBehind(u64),
    /// It said 409 twice: someone else submits for this log.
    MovedMeanwhile(u64),
    /// Its 409 has no size.
    WitnessSentNoSize,
    /// What it sent are no signature lines.
    WitnessSentNoLines(Malformed),
    /// What it sent is no checkpoint.
    WitnessSentNoCheckpoint(NotACheckpoint),
    /// What it sent is of another log.
    WitnessSentAnotherLog,
    /// None of its keys has signed this.
    WitnessSignedOther(NotOpened),
    /// A cosignature without a time.
    WitnessSentNoTime,
    /// This log has no proof for it.
    LogHasNoProof(io::Error),
    /// This log's own checkpoint or proof is none.
    LogSentNoRequest(NotARequest),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeftAlone => f.write_str("failed lately and is left alone for a while"),
            Self::StillBusy => f.write_str("has not answered for the checkpoint before"),
            Self::Unreached(why) => write!(f, "gave no answer: {why}"),
            Self::Refused(status) => write!(f, "answered {}", status.as_u16()),
            Self::LogIsBehind(size) => write!(f, "has cosigned {size} entries, more than this log has"),
            Self::MovedMeanwhile(size) => write!(f, "went on to {size} entries while it was asked"),
            Self::WitnessSentNoSize => f.write_str("answered 409 without a size"),
            Self::WitnessSentNoLines(why) => write!(f, "sent no signature lines: {why}"),
            Self::WitnessSentNoCheckpoint(why) => write!(f, "sent no checkpoint: {why}"),
            Self::WitnessSentAnotherLog => f.write_str("sent a checkpoint of another log"),
            Self::WitnessSignedOther(why) => write!(f, "sent a cosignature that does not hold: {why}"),
            Self::WitnessSentNoTime => f.write_str("sent a cosignature without a time"),
            Self::LogHasNoProof(why) => write!(f, "cannot be sent a proof: {why}"),
            Self::LogSentNoRequest(why) => write!(f, "cannot be asked: {why}"),
        }
    }
}

impl std::error::Error for Failure {}

/// One witness.
#[derive(Debug)]
struct Peer {
    name: Arc<str>,
    keys: Vec<Vkey>,
    submit: Kept,
    monitor: Kept,
    /// Held while it is asked.
    state: Arc<Mutex<State>>,
    /// Why it did not cosign when it was last asked to, where it did not.
    failing: std::sync::Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct State {
    /// The size that it is thought to know.
    size: u64,
    failures: u32,
    not_before: Option<Instant>,
}

impl State {
    fn failed(&mut self, now: Instant) {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(LONGEST_PAUSE);
        self.failures += 1;
        self.not_before = Some(now + pause);
    }

    fn succeeded(&mut self, size: u64) {
        *self = Self { size, ..Self::default() };
    }
}

impl Witnesses {
    fn new(origin: &str, peers: Vec<(usize, Peer)>, quorum: Quorum) -> Self {
        let peers = peers.into_iter().map(|(place, peer)| (place, Arc::new(peer))).collect();
        Self { origin: origin.into(), peers, quorum }
    }

    /// The log that they are asked about.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Their names, in the order of the configuration.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.peers.iter().map(|(_, peer)| &*peer.name)
    }

    /// Their keys, for those who verify.
    pub fn keys(&self) -> impl Iterator<Item = &Vkey> {
        self.peers.iter().flat_map(|(_, peer)| &peer.keys)
    }

    /// Those that did not cosign when they were last asked to, and why.
    #[must_use]
    pub fn failing(&self) -> Vec<(Arc<str>, String)> {
        self.peers.iter().filter_map(|(_, peer)| Some((peer.name.clone(), peer.failing().clone()?))).collect()
    }

    /// Whether these witnesses, by their places among [`Self::names`], are enough.
    #[must_use]
    pub fn enough(&self, cosigned: &[usize]) -> bool {
        self.quorum.met(&|place| cosigned.iter().any(|at| self.peers.get(*at).is_some_and(|(there, _)| *there == place)))
    }

    /// Asks every witness to cosign `checkpoint`, a note with the log's own signatures. Ends when enough have and the
    /// [`GRACE`] is over, or when all have answered, which each does within twice [`WITHIN`]: a proof that is refused with 409
    /// is sent once more. One that is still being asked is asked on in the background, and meanwhile left out of further rounds.
    pub async fn cosign(&self, checkpoint: &Note, consistency: &Consistency) -> Cosigned {
        let (send, mut receive) = mpsc::unbounded_channel();
        let mut failures = Vec::new();
        for (at, (_, peer)) in self.peers.iter().enumerate() {
            match peer.state.clone().try_lock_owned() {
                Err(_) => failures.push((peer.name.clone(), Failure::StillBusy)),
                Ok(state) if state.not_before.is_some_and(|until| Instant::now() < until) => {
                    failures.push((peer.name.clone(), Failure::LeftAlone));
                }
                Ok(state) => {
                    let (peer, checkpoint, consistency, send) = (peer.clone(), checkpoint.clone(), consistency.clone(), send.clone());
                    tokio::spawn(async move {
                        // A round that has ended hears no more.
                        let _ = send.send((at, peer.add_checkpoint(state, &checkpoint, &consistency).await));
                    });
                }
            }
        }
        drop(send);
        let (mut lines, mut cosigned) = (Vec::new(), Vec::new());
        let mut until: Option<Instant> = None;
        loop {
            let patience = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            let answer = tokio::select! {
                biased;
                answer = receive.recv() => answer,
                () = patience => None,
            };
            match answer {
                None => break,
                Some((at, Ok(of_one))) => {
                    lines.extend(of_one);
                    cosigned.push(at);
                    if until.is_none() && self.enough(&cosigned) {
                        until = Some(Instant::now() + GRACE);
                    }
                }
                Some((at, Err(failure))) => failures.push((self.peers[at].1.name.clone(), failure)),
            }
        }
        Cosigned { lines, quorum: self.enough(&cosigned), failures }
    }

    /// Asks every witness for the checkpoint that it last cosigned, all at once, within [`WITHIN`]. A log whose tree is
    /// smaller than one of these, or has another root at its size, has lost entries or is not the only one of its name.
    pub async fn latest(&self) -> Vec<Latest> {
        let mut asked = JoinSet::new();
        for (at, (_, peer)) in self.peers.iter().enumerate() {
            let (peer, origin) = (peer.clone(), self.origin.clone());
            asked.spawn(async move { (at, Latest { witness: peer.name.clone(), seen: peer.latest(&origin).await }) });
        }
        let mut latest = asked.join_all().await;
        latest.sort_by_key(|(at, _)| *at);
        latest.into_iter().map(|(_, latest)| latest).collect()
    }
}

impl Peer {
    /// `keys` is not empty, and has one name.
    fn new(keys: Vec<Vkey>, submit: Kept, monitor: Kept) -> Self {
        let name = keys.first().map_or("", |key| &key.name).into();
        Self { name, keys, submit, monitor, state: Arc::default(), failing: std::sync::Mutex::default() }
    }

    fn failing(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.failing.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn add_checkpoint(
        &self,
        mut state: OwnedMutexGuard<State>,
        checkpoint: &Note,
        consistency: &Consistency,
    ) -> Result<Vec<Line>, Failure> {
        let result = self.ask(&mut state, checkpoint, consistency).await;
        match &result {
            Ok((size, _)) => state.succeeded(*size),
            Err(_) => state.failed(Instant::now()),
        }
        *self.failing() = result.as_ref().err().map(Failure::to_string);
        result.map(|(_, lines)| lines)
    }

    async fn ask(&self, state: &mut State, note: &Note, consistency: &Consistency) -> Result<(u64, Vec<Line>), Failure> {
        let size = Checkpoint::parse(note.text()).map_err(|why| Failure::LogSentNoRequest(NotARequest::Checkpoint(why)))?.size;
        let mut corrected = false;
        loop {
            // What it is thought to know may be what it once said without a signature: a size past ours is asked for again.
            let old = if state.size > size { 0 } else { state.size };
            let proof = match old {
                0 => Vec::new(),
                _ if old == size => Vec::new(),
                _ => {
                    let consistency = consistency.clone();
                    let proof = tokio::task::spawn_blocking(move || consistency(old)).await;
                    proof.unwrap_or_else(|died| Err(io::Error::other(died))).map_err(Failure::LogHasNoProof)?
                }
            };
            let request = AddCheckpoint::new(old, proof, note.clone()).map_err(Failure::LogSentNoRequest)?.to_string();
            let answer = self.submit.ask(Method::POST, "/add-checkpoint", Some("text/plain; charset=utf-8"), Bytes::from(request)).await;
            let answer = answer.map_err(Failure::Unreached)?;
            match answer.status {
                StatusCode::OK => return self.believe(note, &answer.body).map(|lines| (size, lines)),
                StatusCode::CONFLICT => {
                    let theirs = size_in_conflict(&answer.body).ok_or(Failure::WitnessSentNoSize)?;
                    state.size = theirs;
                    if theirs > size {
                        return Err(Failure::LogIsBehind(theirs));
                    }
                    if corrected || theirs == old {
                        return Err(Failure::MovedMeanwhile(theirs));
                    }
                    corrected = true;
                }
                status => return Err(Failure::Refused(status)),
            }
        }
    }

    /// Those of the answered lines that this witness's keys made on this checkpoint.
    fn believe(&self, checkpoint: &Note, answer: &[u8]) -> Result<Vec<Line>, Failure> {
        let lines = note::lines(answer).map_err(Failure::WitnessSentNoLines)?;
        let answered = Note::new(checkpoint.text(), lines).map_err(Failure::WitnessSentNoLines)?;
        let opened = answered.open(&self.keys).map_err(Failure::WitnessSignedOther)?;
        if opened.verified.iter().any(|line| line.time.is_none_or(|time| time == 0)) {
            return Err(Failure::WitnessSentNoTime);
        }
        Ok(opened.verified.iter().map(|line| answered.lines()[line.line].clone()).collect())
    }

    async fn latest(&self, origin: &str) -> Result<Option<Seen>, Failure> {
        let path = format!("/{}/checkpoint", Checkpoint::origin_hash(origin));
        let answer = self.monitor.ask(Method::GET, &path, None, Bytes::new()).await.map_err(Failure::Unreached)?;
        let seen = match answer.status {
            StatusCode::NOT_FOUND => None,
            StatusCode::OK => Some(self.seen(origin, &answer.body)?),
            status => return Err(Failure::Refused(status)),
        };
        self.state.lock().await.size = seen.map_or(0, |seen| seen.size);
        Ok(seen)
    }

    fn seen(&self, origin: &str, answer: &[u8]) -> Result<Seen, Failure> {
        let note = Note::parse(answer).map_err(Failure::WitnessSentNoLines)?;
        let _ = note.open(&self.keys).map_err(Failure::WitnessSignedOther)?;
        let checkpoint = Checkpoint::parse(note.text()).map_err(Failure::WitnessSentNoCheckpoint)?;
        if checkpoint.origin != origin {
            return Err(Failure::WitnessSentAnotherLog);
        }
        Ok(Seen { size: checkpoint.size, root: checkpoint.root })
    }
}

#[cfg(test)]
mod tests;
