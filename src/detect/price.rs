//! Priced answers: work that a caller does before he is answered, more of it the more of the model he has had.
//!
//! A challenge is a line of text that this process signed; nothing of it is kept until it comes back. The work is memory-hard (Argon2id,
//! RFC 9106, over 1 MiB in one pass), so that graphics cards are not a thousand times cheaper than the gateway's processor; holding it
//! against the challenge is one such pass, well below a millisecond and a half, on a thread that serves nobody meanwhile.
//!
//! # On the wire
//!
//! A refused request carries `portcullis-work-challenge: v1.D.E.N.M`, all but the version in lower-case hexadecimal digits:
//!
//! * `D`: the difficulty, in bits;
//! * `E`: when it ends, in seconds since the Unix epoch, by the clock of when the first was made;
//! * `N`: 16 bytes that make it the only one of its kind;
//! * `M`: HMAC-SHA-256, cut to 16 bytes, over all of it, the caller's and the model's names, and the number of rows that are asked about.
//!
//! The request is sent again with `portcullis-work: <challenge>.C`, where `C` is the 8 bytes, in hexadecimal digits, of a counter for which
//!
//! `Argon2id(password = C as 8 bytes, salt = first 16 bytes of SHA-256(challenge), m = 1024 KiB, t = 1, p = 1, 16 bytes out, version 0x13)`
//!
//! begins with `D` bits that are zero. `docs/solve_work.py` does that.
//!
//! # What it is worth
//!
//! It prices answers and forbids none: a thief with a budget pays. Each bit doubles what he pays. Asked are those who stand on the ladder's
//! step `price`, for evidence or for a budget that is spent; nobody else pays anything.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use aws_lc_rs::{constant_time, digest, hmac};
use http::HeaderMap;
use tokio::sync::Semaphore;

use crate::budget::gate::{Gate, State};
use crate::clock::Moment;
use crate::secret::Secret;

/// The header of a refusal that asks for work.
pub const CHALLENGE_HEADER: &str = "portcullis-work-challenge";

/// The header of a request that brings work.
pub const WORK_HEADER: &str = "portcullis-work";

/// KiB of memory that one attempt takes.
pub const MEMORY_KIB: u32 = 1024;

/// The longest work header that is read: a challenge and a counter are shorter.
pub const MOST_HEADER_BYTES: usize = 160;

/// Challenges that a caller can have brought back, and that have not ended yet. More are refused: their words must be remembered so that
/// none is brought twice. 16 bytes each.
pub const MOST_OPEN: usize = 64;

/// Callers of whom that is remembered at once; each of them holds at most 1 KiB and what the map costs.
pub const MOST_CALLERS: usize = 10_000;

/// Counters that are held against their challenges at the same time. Each takes a processor and [`MEMORY_KIB`] for a millisecond; more of
/// them wait in the order in which they came, for as long as their requests may take.
pub const MOST_LOOKS: usize = 4;

/// What a challenge lasts at least.
const SHORTEST: Duration = Duration::from_secs(60);

/// What it lasts longer for each attempt that it asks for on average. One takes a millisecond or two, and one caller in a thousand needs
/// seven times the average.
const PER_ATTEMPT: Duration = Duration::from_millis(14);

const NONCE_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
const SALT_BYTES: usize = 16;
const VERSION: &str = "v1";

/// How many bits of an attempt must be zero: 2 to the power of it are the attempts that it takes on average.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difficulty(u8);

impl Difficulty {
    /// A few milliseconds.
    pub const LEAST: Self = Self(2);

    /// What a row costs when the whole budget is spent: 1,024 attempts, one to two seconds.
    pub const SPENT: Self = Self(10);

    /// What a row costs at least on the ladder's step, also for a caller who has spent little of his budget, or has none: 64 attempts, a tenth
    /// of a second. It is what a row costs at three quarters of a budget: who stands there gave cause in what he asked, and the least
    /// would cost him no more than the look at it costs the gateway.
    pub const STANDING: Self = Self(6);

    /// The most that is asked for: 65,536 attempts, a minute or two.
    pub const MOST: Self = Self(16);

    /// So many bits, held between the least and the most.
    #[must_use]
    pub fn of(bits: u8) -> Self {
        Self(bits.clamp(Self::LEAST.0, Self::MOST.0))
    }

    /// The price of `rows` rows for a caller who has spent a part of an exposure budget; `None` while answers are free.
    ///
    /// Up to half of the budget nothing is asked. From there on the bits rise evenly from [`Difficulty::LEAST`] to
    /// [`Difficulty::SPENT`] at the whole budget, then by one for each further tenth of it; a batch costs what its rows would, rounded
    /// up to a power of two. What is no number counts as all of the budget, twice.
    #[must_use]
    pub fn of_spent(spent: f64, rows: u32) -> Option<Self> {
        const FREE: f64 = 0.5;
        let spent = if spent.is_nan() { 2.0 } else { spent };
        if spent <= FREE {
            return None;
        }
        let rise = f64::from(Self::SPENT.0 - Self::LEAST.0);
        let bits = if spent <= 1.0 {
            f64::from(Self::LEAST.0) + (rise * (spent - FREE) / (1.0 - FREE)).floor()
        } else {
            f64::from(Self::SPENT.0) + ((spent - 1.0) * 10.0 + 1e-9).floor()
        };
        Some(Self::of_rows(bits, rows))
    }

    /// The price of `rows` rows for a caller on the ladder's step who has spent a part of an exposure budget, 0 where he has none: as by
    /// [`Difficulty::of_spent`], and for each row never less than [`Difficulty::STANDING`].
    #[must_use]
    pub fn on_the_step(spent: f64, rows: u32) -> Self {
        let least = Self::of_rows(f64::from(Self::STANDING.0), rows);
        Self::of_spent(spent, rows).map_or(least, |bits| bits.max(least))
    }

    /// So many bits a row, for so many rows.
    fn of_rows(bits: f64, rows: u32) -> Self {
        let bits = bits + f64::from(rows.max(1)).log2().ceil();
        // Held between 2 and 16 before the cast.
        Self(bits.clamp(f64::from(Self::LEAST.0), f64::from(Self::MOST.0)) as u8)
    }

    /// The bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// How long a challenge of this difficulty lasts.
    #[must_use]
    pub fn lasts(self) -> Duration {
        SHORTEST + PER_ATTEMPT * (1 << self.0)
    }
}

/// What an answer costs whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// The caller.
    pub caller: Arc<str>,
    /// The model; `""` for one without a name.
    pub model: Arc<str>,
    /// The rows that are asked about. Part of what a challenge is for, so that nobody has many rows for the price of one.
    pub rows: u32,
    /// What they cost together.
    pub due: Difficulty,
}

/// The work that a request brings, as it stands in its head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Brought(Option<Box<str>>);

impl Brought {
    /// Reads a request's head. Of a line past [`MOST_HEADER_BYTES`], of several, and of one that is not ASCII nothing is kept but that it
    /// was there: it is of no challenge's form.
    #[must_use]
    pub fn of_request(headers: &HeaderMap) -> Self {
        let mut lines = headers.get_all(WORK_HEADER).iter();
        let Some(line) = lines.next() else { return Self(None) };
        let line = line.to_str().ok().filter(|line| lines.next().is_none() && line.len() <= MOST_HEADER_BYTES);
        Self(Some(line.unwrap_or_default().into()))
    }
}

/// Why work is not taken. None of them tells the caller more than that he is to work again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is none.
    CallerSentNone,
    /// The header is not of the form above.
    CallerSentMalformed,
    /// The challenge is not of this process, not for this caller, this model or so many rows.
    CallerSentForeign,
    /// The challenge has ended.
    CallerWasLate,
    /// The challenge asks for less than the answer costs by now.
    CallerWorkedTooLittle,
    /// The counter does not solve it.
    CallerSentWrong,
    /// The challenge was brought back before, solved or not.
    CallerSentTwice,
    /// The caller has brought back [`MOST_OPEN`] challenges that have not ended yet.
    CallerSentTooMany,
    /// [`MOST_CALLERS`] others pay at the moment.
    Full,
    /// Nobody looked: the process ends.
    Ending,
}

impl Error {
    const ALL: [Self; 10] = [
        Self::CallerSentNone,
        Self::CallerSentMalformed,
        Self::CallerSentForeign,
        Self::CallerWasLate,
        Self::CallerWorkedTooLittle,
        Self::CallerSentWrong,
        Self::CallerSentTwice,
        Self::CallerSentTooMany,
        Self::Full,
        Self::Ending,
    ];

    /// The word for it in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CallerSentNone => "none",
            Self::CallerSentMalformed => "malformed",
            Self::CallerSentForeign => "foreign",
            Self::CallerWasLate => "late",
            Self::CallerWorkedTooLittle => "too_little",
            Self::CallerSentWrong => "wrong",
            Self::CallerSentTwice => "twice",
            Self::CallerSentTooMany => "too_many",
            Self::Full => "full",
            Self::Ending => "ending",
        }
    }
}

/// Makes challenges, and takes work. One for the process: its key is, too, so that challenges end with it.
#[derive(Debug)]
pub struct Desk {
    key: hmac::Key,
    spent: Gate<Arc<str>, Spent>,
    looks: Arc<Semaphore>,
    origin: Instant,
    /// When it was first asked the time, on both clocks.
    set: OnceLock<Moment>,
    challenges: AtomicU64,
    taken: AtomicU64,
    /// In the order of [`Error::ALL`].
    refused: [AtomicU64; Error::ALL.len()],
}

impl Desk {
    /// With a key of its own, from the secret of the process.
    #[must_use]
    pub fn new(secret: &Secret, now: Instant) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, secret.derive("detect/price/v1").expose()),
            spent: Gate::new(MOST_CALLERS),
            looks: Arc::new(Semaphore::new(MOST_LOOKS)),
            origin: now,
            set: OnceLock::new(),
            challenges: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            refused: [const { AtomicU64::new(0) }; Error::ALL.len()],
        }
    }

    /// Challenges that were made.
    #[must_use]
    pub fn challenges(&self) -> u64 {
        self.challenges.load(Ordering::Relaxed)
    }

    /// How requests that owed work came out: `taken`, and why not.
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let refused = Error::ALL.iter().zip(&self.refused).map(|(error, count)| (error.as_str(), count));
        std::iter::once(("taken", &self.taken)).chain(refused).map(|(outcome, count)| (outcome, count.load(Ordering::Relaxed)))
    }

    /// A fresh challenge for one answer.
    #[must_use]
    pub fn ask(&self, price: &Price, now: Moment) -> String {
        let mut nonce = [0; NONCE_BYTES];
        nonce.copy_from_slice(Secret::random(NONCE_BYTES).expose());
        self.challenge(price, nonce, self.time(now))
    }

    /// The time in seconds since the Unix epoch, as the wall clock showed it first: what is set back later, or forward, ends no challenge
    /// before its time and makes none good again.
    fn time(&self, now: Moment) -> u64 {
        let set = self.set.get_or_init(|| now);
        set.unix_seconds().saturating_add(now.mono.saturating_duration_since(set.mono).as_secs())
    }

    /// The challenge for one answer. `nonce` is 16 fresh random bytes, `now` is in seconds since the Unix epoch.
    #[must_use]
    fn challenge(&self, price: &Price, nonce: [u8; NONCE_BYTES], now: u64) -> String {
        self.challenges.fetch_add(1, Ordering::Relaxed);
        let ends = now.saturating_add(price.due.lasts().as_secs());
        let mut text = format!("{VERSION}.{:x}.{ends:x}.{}", price.due.0, hex(&nonce));
        let tag = self.tag(&text, price);
        text.push('.');
        text.push_str(&hex(&tag));
        text
    }

    /// Takes the work that a request brings for its answer. All that is cheap is looked at first; a challenge is spent by the first counter
    /// that comes with it, right or wrong, so that nobody has attempts made here for nothing. A challenge that was made one bit below
    /// what is due is still taken: the price may have risen while the caller worked.
    ///
    /// The last look takes about a millisecond of processor time and has a thread for itself, no more than [`MOST_LOOKS`] at the same time.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn take(&self, brought: &Brought, price: &Price, now: Moment) -> Result<(), Error> {
        let taken = match self.look(brought, price, now) {
            Ok(attempt) => self.attempt(attempt).await,
            Err(error) => Err(error),
        };
        match taken {
            Ok(()) => &self.taken,
            Err(error) => &self.refused[error as usize],
        }
        .fetch_add(1, Ordering::Relaxed);
        taken
    }

    async fn attempt(&self, attempt: Attempt) -> Result<(), Error> {
        let place = self.looks.clone().acquire_owned().await.map_err(|_| Error::Ending)?;
        let holds = tokio::task::spawn_blocking(move || {
            // The place is given back with the processor, also where the caller hung up meanwhile.
            let _place = place;
            attempt.holds()
        });
        if holds.await.map_err(|_| Error::Ending)? { Ok(()) } else { Err(Error::CallerSentWrong) }
    }

    /// All but the last look.
    fn look(&self, brought: &Brought, price: &Price, now: Moment) -> Result<Attempt, Error> {
        let header = brought.0.as_deref().ok_or(Error::CallerSentNone)?;
        let work = Work::read(header).ok_or(Error::CallerSentMalformed)?;
        let tag = self.tag(work.signed, price);
        if constant_time::verify_slices_are_equal(&tag, &work.tag).is_err() {
            return Err(Error::CallerSentForeign);
        }
        let time = self.time(now);
        if work.ends <= time {
            return Err(Error::CallerWasLate);
        }
        if work.difficulty.0 + 1 < price.due.0 {
            return Err(Error::CallerWorkedTooLittle);
        }
        let spent = self.spent.entry(price.caller.clone(), now.mono, || Spent::new(self.origin)).ok_or(Error::Full)?;
        let ends = now.mono.saturating_duration_since(self.origin).as_secs().saturating_add(work.ends - time);
        spent.spend(work.tag, ends, now.mono)?;
        Ok(Attempt { challenge: work.challenge.into(), counter: work.counter, difficulty: work.difficulty })
    }

    fn tag(&self, text: &str, price: &Price) -> [u8; TAG_BYTES] {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [text, &price.caller, &price.model] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        context.update(&price.rows.to_be_bytes());
        let tag = context.sign();
        let mut short = [0; TAG_BYTES];
        short.copy_from_slice(&tag.as_ref()[..TAG_BYTES]);
        short
    }
}

/// The header of a request that brings work, taken apart.
struct Work<'a> {
    /// All of the challenge.
    challenge: &'a str,
    /// All of it that is signed.
    signed: &'a str,
    difficulty: Difficulty,
    ends: u64,
    tag: [u8; TAG_BYTES],
    counter: [u8; 8],
}

impl<'a> Work<'a> {
    fn read(header: &'a str) -> Option<Self> {
        if header.len() > MOST_HEADER_BYTES {
            return None;
        }
        let (challenge, counter) = header.rsplit_once('.')?;
        let (signed, tag) = challenge.rsplit_once('.')?;
        let [version, difficulty, ends, nonce] = signed.split('.').collect::<Vec<_>>().try_into().ok()?;
        if version != VERSION {
            return None;
        }
        bytes::<NONCE_BYTES>(nonce)?;
        let bits = u8::try_from(number(difficulty)?).ok()?;
        let difficulty = Difficulty::of(bits);
        (difficulty.0 == bits).then_some(())?;
        Some(Self { challenge, signed, difficulty, ends: number(ends)?, tag: bytes(tag)?, counter: bytes(counter)? })
    }
}

/// A counter for a challenge that is good and is spent by it.
#[derive(Debug)]
struct Attempt {
    challenge: Box<str>,
    counter: [u8; 8],
    difficulty: Difficulty,
}

impl Attempt {
    /// Whether the counter solves the challenge: about a millisecond.
    fn holds(&self) -> bool {
        zeros(&attempt(&self.challenge, self.counter)) >= u32::from(self.difficulty.0)
    }
}

/// What one caller has brought back and has not ended: the tags, and when each ends in seconds since the origin.
#[derive(Debug)]
struct Spent {
    open: Mutex<Open>,
    origin: Instant,
}

#[derive(Debug, Default)]
struct Open {
    tags: Vec<([u8; 8], u64)>,
    /// Tags that ended before are gone.
    purged: u64,
}

impl Spent {
    fn new(origin: Instant) -> Self {
        Self { open: Mutex::default(), origin }
    }

    fn spend(&self, tag: [u8; TAG_BYTES], ends: u64, now: Instant) -> Result<(), Error> {
        // Half of a tag is told from 63 others as well as the whole.
        let [a, b, c, d, e, f, g, h, ..] = tag;
        let short = [a, b, c, d, e, f, g, h];
        let now = now.saturating_duration_since(self.origin).as_secs();
        // What is behind the lock is whole after every line.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.purged = open.purged.max(now);
        let purged = open.purged;
        open.tags.retain(|(_, ends)| *ends >= purged);
        // Of a request whose body was long in coming, `now` is old: what its challenge would be told from is forgotten.
        if ends < purged {
            return Err(Error::CallerWasLate);
        }
        if open.tags.iter().any(|(other, _)| *other == short) {
            return Err(Error::CallerSentTwice);
        }
        if open.tags.len() >= MOST_OPEN {
            return Err(Error::CallerSentTooMany);
        }
        open.tags.push((short, ends));
        Ok(())
    }
}

impl State for Spent {
    fn is_idle(&self, now: Instant) -> bool {
        let now = now.saturating_duration_since(self.origin).as_secs();
        self.open.lock().unwrap_or_else(PoisonError::into_inner).tags.iter().all(|(_, ends)| *ends < now)
    }
}

/// One attempt: what must begin with zeros.
fn attempt(challenge: &str, counter: [u8; 8]) -> [u8; 16] {
    let salt = digest::digest(&digest::SHA256, challenge.as_bytes());
    #[expect(clippy::expect_used, reason = "the parameters are constants within Argon2's bounds, which a test runs")]
    let parameters = Params::new(MEMORY_KIB, 1, 1, Some(16)).expect("the parameters are Argon2's");
    let mut memory = vec![Block::default(); parameters.block_count()];
    let mut out = [0; 16];
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters);
    #[expect(clippy::expect_used, reason = "lengths are constants within Argon2's bounds, which a test runs")]
    argon.hash_password_into_with_memory(&counter, &salt.as_ref()[..SALT_BYTES], &mut out, &mut memory).expect("lengths are Argon2's");
    out
}

/// How many bits from the first on are zero.
fn zeros(bytes: &[u8; 16]) -> u32 {
    u128::from_be_bytes(*bytes).leading_zeros()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Hexadecimal digits in the one form that is written: in lower case, without leading zeros.
fn number(text: &str) -> Option<u64> {
    let value = u64::from_str_radix(text, 16).ok()?;
    (format!("{value:x}") == text).then_some(value)
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
pub(super) mod tests;
