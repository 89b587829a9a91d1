//! The fourth stop: how much. Requests, tokens and calls in flight; the caller's own bucket before the shared one.
//!
//! Its value is the [`Permit`]. What was reserved is settled when the answer's body has ended, or when the permit is dropped.
//!
//! `rate` and `quota` are the arithmetic, `gate` is the bounded map, `terms` is the policy. Here a request is held against
//! all of its limits under the locks of its caller and of its model, and only when it holds to all of them is any of them charged:
//! a refusal takes nothing, so nothing has to be given back, and no other request can see a state between.
//! What limits in shadow mode would have refused passes, and takes nothing of them.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue};

use crate::authorize::Grant;
use crate::trail::{Usage, Who};
use crate::wire::Asked;

pub(crate) mod gate;
mod kept;
mod meter;
mod quota;
mod rate;
mod terms;

pub use kept::Kept;
pub use terms::{Config, DEFAULT_BURST, DEFAULT_IN_FLIGHT, DEFAULT_REQUESTS, DEFAULT_SERVERWIDE, Flow, Quotas, Table, Terms};

use gate::Gate;
use meter::{Meter, Meters, Readings, Short};
use terms::{Limits, NAMES, whole_seconds};

/// Tokens reserved for each answer where neither the caller nor the policy caps them.
pub const DEFAULT_ANSWER_TOKENS: u64 = 1024;

/// Bytes counted as one token where nobody tells tokens.
pub const BYTES_A_TOKEN: u64 = 4;

/// Answers counted at most in a reservation, so that a caller's number cannot overflow it.
const MOST_ANSWERS: u64 = 1 << 16;

/// Tokens that one request is settled with at most, so that a broken upstream's count does not shut a caller out for good.
const MOST_TOKENS: u64 = 1 << 24;

/// How soon a caller may ask again who was refused for what is in flight, or for whom there was no room in memory.
const SOON: Duration = Duration::from_secs(1);

/// What a request reserves beside itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// Tokens of the prompt, estimated from its bytes.
    pub prompt: u64,
    /// Tokens of all answers that it may come to.
    pub answer: u64,
    /// Whether its caller said how many those may be. What nobody said is no more than there is ever room for.
    pub said: bool,
}

impl Ask {
    /// What a request to a language model may come to: its bytes / 4, and for each answer the tokens it asks for, up to the model's cap, else that
    /// cap, else 1024.
    #[must_use]
    pub fn language(body: usize, asked: &Asked, cap: Option<u64>) -> Self {
        // What asks for more than the cap is refused for that, and not for want of tokens.
        let each = [asked.max_tokens, cap].into_iter().flatten().min().unwrap_or(DEFAULT_ANSWER_TOKENS).min(u64::from(u32::MAX));
        let answer = each * asked.answers.clamp(1, MOST_ANSWERS);
        Self { prompt: estimate(body as u64), answer, said: asked.max_tokens.is_some() }
    }

    /// What a request may come to that is answered with no tokens, such as one for embeddings.
    #[must_use]
    pub fn prompt(body: usize) -> Self {
        Self { prompt: estimate(body as u64), ..Self::default() }
    }

    /// The same where there is room for at most so many tokens at once.
    fn within(self, most: u64) -> Self {
        if self.said { self } else { Self { answer: self.answer.min(most.saturating_sub(self.prompt)), ..self } }
    }

    fn tokens(self) -> u64 {
        self.prompt.saturating_add(self.answer)
    }
}

/// Tokens that `bytes` come to where nobody tells them.
#[must_use]
pub const fn estimate(bytes: u64) -> u64 {
    bytes.div_ceil(BYTES_A_TOKEN)
}

/// A grant for which there was room.
#[derive(Debug)]
pub struct Permit {
    grant: Grant,
    hold: Hold,
}

impl Permit {
    /// The grant.
    #[must_use]
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// The grant, to take its body.
    pub fn grant_mut(&mut self) -> &mut Grant {
        &mut self.grant
    }

    /// What a limit in shadow mode would have refused it with.
    pub fn take_shadowed(&mut self) -> Option<Error> {
        self.hold.shadowed.take()
    }

    /// What is held, to settle it.
    pub fn hold_mut(&mut self) -> &mut Hold {
        &mut self.hold
    }

    /// `RateLimit-Policy` and `RateLimit`, as of this request.
    pub fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<> {
        self.hold.standing.headers()
    }

    /// The refusal of a caller whose requests are spent, although this one's are not: what a later stop says that lets it ask less often.
    #[must_use]
    pub fn spent(&self) -> Error {
        let mut standing = Box::new(self.hold.standing.clone());
        for left in &mut standing.left[..2] {
            *left = left.map(|_| (0, whole_seconds(SOON)));
        }
        Error::CallerSpentRequests(Refused { retry_after: SOON, in_vain: false, rule: "ladder", standing })
    }

    /// The grant, and what is held. The hold travels inside the answer's body until its last byte.
    #[must_use]
    pub fn into_parts(self) -> (Grant, Hold) {
        (self.grant, self.hold)
    }
}

/// What a request holds while it is in flight: its place, and its reservation of tokens. Dropping it ends both.
#[derive(Debug)]
pub struct Hold {
    meters: Meters,
    standing: Standing,
    reserved: Option<Ask>,
    /// The tokens reserved of limits in shadow mode; nothing where one of those would have refused it.
    tried: Option<u64>,
    /// With what, until somebody is told.
    shadowed: Option<Error>,
    queries: u64,
    began: bool,
    delivered: u64,
}

impl Hold {
    /// Takes `more` requests beside the one that this is, for what it will ask its model in the caller's place. They count against the rates
    /// and quotas of requests alone, for it is still one request in flight. Those that are not [`queried`](Self::queried) until it is
    /// dropped are given back.
    ///
    /// # Errors
    /// The first limit that has no room for all of them; then nothing was charged. One in shadow mode is none.
    pub fn reserve_queries(&mut self, more: u64, now: Instant) -> Result<(), Error> {
        let mut own = self.meters.own.lock();
        own.roll(now);
        let mut shared = self.meters.shared.as_ref().map(|meter| meter.lock());
        if let Some(shared) = &mut shared {
            shared.roll(now);
        }
        let mine = own.wait_for_requests(more, now);
        if let Some(wait) = mine.or_else(|| shared.as_ref()?.wait_for_requests(more, now)) {
            return Err(Short::Requests(wait).refusal(mine.is_some(), own.standing(&self.standing.limits, now)));
        }
        own.take_requests(more);
        if let Some(shared) = &mut shared {
            shared.take_requests(more);
        }
        self.queries = self.queries.saturating_add(more);
        self.standing = own.standing(&self.standing.limits, now);

        let wait = |meter: &Readings| meter.tried.as_ref()?.wait_for_requests(more, now);
        let mine = wait(&own);
        let short = mine.or_else(|| wait(shared.as_ref()?)).map(Short::Requests);
        drop((own, shared));
        let Some(tokens) = self.tried else { return Ok(()) };
        if let Some(short) = short {
            // Refused, it would have given back all but itself.
            self.meters.each_tried(|meter| meter.correct(tokens, 0));
            self.meters.each_tried(Readings::leave);
            self.tried = None;
            self.shadowed = Some(short.refusal(mine.is_some(), self.standing.clone()));
        } else {
            self.meters.each_tried(|meter| meter.take_requests(more));
        }
        Ok(())
    }

    /// One of the reserved queries is made: it is owed, whatever becomes of it.
    pub fn queried(&mut self) {
        self.queries = self.queries.saturating_sub(1);
    }

    /// A model has been asked: from here on the tokens are owed, whatever becomes of the answer.
    pub fn began(&mut self) {
        self.began = true;
    }

    /// So many more bytes of the answer have come.
    pub fn delivered(&mut self, bytes: u64) {
        self.delivered = self.delivered.saturating_add(bytes);
    }

    /// The bytes of the answer that have come.
    #[must_use]
    pub fn so_far(&self) -> u64 {
        self.delivered
    }

    /// Puts the tokens that were used in the place of those that were reserved; what is past the reservation is owed.
    /// The first call counts, later ones change nothing.
    pub fn settle(&mut self, usage: Usage) {
        self.settle_at(usage.input.saturating_add(usage.output));
    }

    /// Settles with what the bytes that came amount to, and tells it. For answers that tell no usage; dropping the hold does the same.
    pub fn settle_by_bytes(&mut self) -> Usage {
        let usage = Usage { input: self.reserved.map_or(0, |ask| ask.prompt), output: estimate(self.delivered) };
        self.settle(usage);
        usage
    }

    fn settle_at(&mut self, used: u64) {
        let used = used.min(MOST_TOKENS);
        if let Some(ask) = self.reserved.take() {
            self.meters.each(|meter| meter.correct(ask.tokens(), used));
            self.tried.iter().for_each(|tokens| self.meters.each_tried(|meter| meter.correct(*tokens, used)));
        }
    }
}

#[cfg(test)]
impl Hold {
    /// What a caller of no name holds, for the tests of later stops.
    pub(crate) fn of_nobody() -> Self {
        let who = Who { caller: "".into(), tenant: "".into(), tier: "".into(), method: "api_key" };
        match Budget::default().hold(&who, None, &Terms::default(), Some(Ask::default()), Instant::now()) {
            Ok(hold) => hold,
            Err(error) => panic!("{error:?}"),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.began {
            self.settle_by_bytes();
        } else {
            self.settle_at(0);
        }
        let unasked = std::mem::take(&mut self.queries);
        self.meters.each(|meter| meter.give_back_requests(unasked));
        self.meters.each(Readings::leave);
        if self.tried.is_some() {
            self.meters.each_tried(|meter| meter.give_back_requests(unasked));
            self.meters.each_tried(Readings::leave);
        }
    }
}

/// Why there was no room. Each is 429 with `Retry-After`; the caller cannot tell his own limit from the model's.
#[derive(Debug)]
pub enum Error {
    /// Too many requests; `budget.requests`.
    CallerSpentRequests(Refused),
    /// Too many tokens; `budget.tokens`.
    CallerSpentTokens(Refused),
    /// Too many requests not yet answered to the end; `budget.in_flight`.
    CallerHasTooManyInFlight(Refused),
    /// The gateway keeps the state of as many busy callers as it can; `budget.room`.
    TooManyCallers(Refused),
}

impl Error {
    /// The static code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::CallerSpentRequests(_) => "budget.requests",
            Self::CallerSpentTokens(_) => "budget.tokens",
            Self::CallerHasTooManyInFlight(_) => "budget.in_flight",
            Self::TooManyCallers(_) => "budget.room",
        }
    }

    /// What goes with the refusal.
    #[must_use]
    pub const fn refused(&self) -> &Refused {
        match self {
            Self::CallerSpentRequests(refused)
            | Self::CallerSpentTokens(refused)
            | Self::CallerHasTooManyInFlight(refused)
            | Self::TooManyCallers(refused) => refused,
        }
    }
}

/// What goes with a refusal.
#[derive(Debug)]
pub struct Refused {
    retry_after: Duration,
    in_vain: bool,
    rule: &'static str,
    /// Boxed, because an error is returned through many hands and seldom.
    standing: Box<Standing>,
}

impl Refused {
    /// Whole seconds, rounded up, at least 1.
    #[must_use]
    pub fn retry_after(&self) -> u64 {
        whole_seconds(self.retry_after).max(1)
    }

    /// Whether it asked for more than there ever is room for, so that asking again is in vain.
    #[must_use]
    pub const fn in_vain(&self) -> bool {
        self.in_vain
    }

    /// The limit that refused, for the log and never for the caller: `caller.…` or `model.…`.
    #[must_use]
    pub const fn rule(&self) -> &'static str {
        self.rule
    }

    /// `RateLimit-Policy`, `RateLimit` and `Retry-After`.
    pub fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<> {
        self.standing.headers().chain([(RETRY_AFTER, HeaderValue::from(self.retry_after()))])
    }
}

/// How a caller stands with each of his limits: what is left, and the seconds until all of it is there again.
#[derive(Clone, Debug)]
struct Standing {
    limits: Arc<Limits>,
    left: [Option<(u64, u64)>; NAMES.len()],
}

impl Standing {
    /// The two header fields of draft-ietf-httpapi-ratelimit-headers-10, §3 and §4.
    fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<> {
        let mut text = String::with_capacity(32);
        for (name, left) in NAMES.iter().zip(self.left) {
            if let Some((remaining, reset)) = left {
                let comma = if text.is_empty() { "" } else { ", " };
                // Writing to a String does not fail.
                let _ = write!(text, "{comma}\"{name}\";r={remaining};t={reset}");
            }
        }
        let mut now = if text.is_empty() { None } else { HeaderValue::try_from(text).ok() };
        // It is another one in each answer: HTTP/2 need not keep it in its table.
        now.iter_mut().for_each(|value| value.set_sensitive(true));
        let policy = self.limits.policy.clone().map(|value| (HeaderName::from_static("ratelimit-policy"), value));
        policy.into_iter().chain(now.map(|value| (HeaderName::from_static("ratelimit"), value)))
    }
}

/// The state of all budgets. One for the process: it outlives the policies, whose rates it takes at each request.
#[derive(Debug)]
pub struct Budget {
    callers: Gate<(Arc<str>, Arc<str>), Meter>,
    models: Gate<Arc<str>, Meter>,
    nameless: Arc<str>,
}

impl Default for Budget {
    fn default() -> Self {
        Self::with_capacity(gate::MOST_ENTRIES)
    }
}

impl Budget {
    /// State for `most` pairs of caller and model, and for as many models; see `gate` for what that costs and what happens past it.
    #[must_use]
    pub fn with_capacity(most: usize) -> Self {
        Self { callers: Gate::new(most), models: Gate::new(most), nameless: "".into() }
    }

    /// Pairs of caller and model that stand in memory now.
    #[must_use]
    pub fn callers(&self) -> usize {
        self.callers.len()
    }

    /// Lets the request pass, and charges it, when it holds to all its limits.
    ///
    /// # Errors
    /// The first limit to which it does not hold; then nothing was charged.
    pub fn admit<T>(&self, grant: Grant<T>, terms: &Terms, ask: Option<Ask>, now: Instant) -> Result<Permit, Error> {
        let model = grant.which().map(|which| &which.name);
        let hold = self.hold(&grant.caller().identity().who, model, terms, ask, now)?;
        Ok(Permit { grant: grant.without_terms(), hold })
    }

    fn hold(&self, who: &Who, model: Option<&Arc<str>>, terms: &Terms, ask: Option<Ask>, now: Instant) -> Result<Hold, Error> {
        let limits = terms.of_tier(&who.tier);
        let name = model.unwrap_or(&self.nameless).clone();
        let own = self.callers.entry((who.caller.clone(), name.clone()), now, || Meter::new(now));
        let shared = terms.model.as_ref().map(|limits| (limits, self.models.entry(name, now, || Meter::new(now))));
        let (Some(own), false) = (own, matches!(shared, Some((_, None)))) else {
            let standing = Box::new(Standing { limits: limits.clone(), left: [None; NAMES.len()] });
            return Err(Error::TooManyCallers(Refused { retry_after: SOON, in_vain: false, rule: "room", standing }));
        };
        let shared = shared.and_then(|(limits, meter)| Some((limits, meter?)));

        let all = || [Some(limits), terms.model.as_ref()].into_iter().flatten();
        let within = |ask: Ask, most: Option<u64>| most.map_or(ask, |most| ask.within(most));
        let ask = ask.map(|ask| within(ask, all().filter_map(|limits| limits.most_tokens()).min()));
        let tokens = ask.map_or(0, Ask::tokens);
        let to_try = all().filter_map(|limits| limits.tried.as_ref()?.most_tokens()).min();
        let tokens_tried = ask.map_or(0, |ask| within(ask, to_try).tokens());
        let mut own_meter = own.lock();
        own_meter.look(limits, now);
        // The caller's lock is always taken before the model's, so no two requests wait for each other.
        let mut shared_meter = shared.as_ref().map(|(limits, meter)| (limits, meter.lock()));
        if let Some((limits, meter)) = &mut shared_meter {
            meter.look(limits, now);
        }
        let short = own_meter.short_of(limits, tokens, now).map(|short| (short, true)).or_else(|| {
            let (limits, meter) = shared_meter.as_ref()?;
            Some((meter.short_of(limits, tokens, now)?, false))
        });
        if let Some((short, own)) = short {
            return Err(short.refusal(own, own_meter.standing(limits, now)));
        }
        let would = own_meter.would_be_short_of(limits, tokens_tried, now).map(|short| (short, true)).or_else(|| {
            let (limits, meter) = shared_meter.as_ref()?;
            Some((meter.would_be_short_of(limits, tokens_tried, now)?, false))
        });
        for meter in [Some(&mut own_meter), shared_meter.as_mut().map(|(_, meter)| meter)].into_iter().flatten() {
            meter.charge(tokens);
            meter.tried.iter_mut().filter(|_| would.is_none()).for_each(|tried| tried.charge(tokens_tried));
        }
        let standing = own_meter.standing(limits, now);
        drop((own_meter, shared_meter));
        let tried = would.is_none().then_some(tokens_tried);
        let shadowed = would.map(|(short, own)| short.refusal(own, standing.clone()));
        let meters = Meters { own, shared: shared.map(|(_, meter)| meter) };
        Ok(Hold { meters, standing, reserved: ask, tried, shadowed, queries: 0, began: false, delivered: 0 })
    }
}

#[cfg(test)]
mod tests;
