//! What one caller of a model has used, or all of them, and what there is room for.
//!
//! Limits in shadow mode have readings of their own, beside those of the limits that are enforced, which are charged as if they were enforced: a request that
//! they would have refused takes nothing of them.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::gate::{State, locked};
use super::quota::Window;
use super::rate::{Bucket, Measure};
use super::terms::{Limits, whole_seconds};
use super::{Error, Refused, SOON, Standing};

/// The meters that a request is charged to.
#[derive(Debug)]
pub(super) struct Meters {
    pub(super) own: Arc<Meter>,
    pub(super) shared: Option<Arc<Meter>>,
}

impl Meters {
    pub(super) fn each(&self, change: impl Fn(&mut Readings)) {
        for meter in [Some(&self.own), self.shared.as_ref()].into_iter().flatten() {
            change(&mut meter.lock());
        }
    }

    /// The same with the readings of the limits in shadow mode.
    pub(super) fn each_tried(&self, change: impl Fn(&mut Readings)) {
        self.each(|readings| readings.tried.iter_mut().for_each(|tried| change(tried)));
    }
}

/// What one caller of one model, or all callers of a model, have used.
#[derive(Debug)]
pub(super) struct Meter(Mutex<Readings>);

/// What is read on a meter.
#[derive(Debug)]
pub(super) struct Readings {
    pub(super) requests: Option<Bucket>,
    pub(super) request_quota: Option<Window>,
    pub(super) tokens: Option<Bucket>,
    pub(super) token_quota: Option<Window>,
    pub(super) in_flight: u32,
    made: Instant,
    /// Those of the limits in shadow mode, where there ever were some.
    pub(super) tried: Option<Box<Readings>>,
}

impl Meter {
    pub(super) fn new(now: Instant) -> Self {
        Self(Mutex::new(Readings::new(now)))
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Readings> {
        locked(&self.0)
    }
}

impl State for Meter {
    fn is_idle(&self, now: Instant) -> bool {
        let mut readings = self.lock();
        readings.roll(now);
        readings.is_idle()
    }
}

impl Readings {
    fn new(now: Instant) -> Self {
        Self { requests: None, request_quota: None, tokens: None, token_quota: None, in_flight: 0, made: now, tried: None }
    }

    fn is_idle(&self) -> bool {
        self.in_flight == 0
            && [&self.requests, &self.tokens].into_iter().flatten().all(|bucket| bucket.until_full().is_zero())
            && [&self.request_quota, &self.token_quota].into_iter().flatten().all(Window::is_unused)
            && self.tried.as_ref().is_none_or(|tried| tried.is_idle())
    }

    /// Brings the readings to `now` and puts `limits` in force.
    pub(super) fn look(&mut self, limits: &Limits, now: Instant) {
        self.roll(now);
        let nothing = Limits::default();
        let to_try = limits.tried.as_deref();
        if to_try.is_some() && self.tried.is_none() {
            // Those who are in flight leave these readings too.
            self.tried = Some(Box::new(Self { in_flight: self.in_flight, ..Self::new(now) }));
        }
        if let Some(tried) = &mut self.tried {
            let to_try = to_try.unwrap_or(&nothing);
            follow((&mut self.requests, limits.requests), (&mut tried.requests, to_try.requests), Bucket::measure);
            follow((&mut self.tokens, limits.tokens), (&mut tried.tokens, to_try.tokens), Bucket::measure);
            follow((&mut self.request_quota, limits.request_quota), (&mut tried.request_quota, to_try.request_quota), Window::measure);
            follow((&mut self.token_quota, limits.token_quota), (&mut tried.token_quota, to_try.token_quota), Window::measure);
            tried.tune(to_try, now);
        }
        self.tune(limits, now);
    }

    fn tune(&mut self, limits: &Limits, now: Instant) {
        let made = self.made;
        for (bucket, measure) in [(&mut self.requests, limits.requests), (&mut self.tokens, limits.tokens)] {
            tune(bucket, measure, |measure| Bucket::full(measure, made.max(now)), Bucket::retune);
        }
        for (window, measure) in [(&mut self.request_quota, limits.request_quota), (&mut self.token_quota, limits.token_quota)] {
            tune(window, measure, |measure| Window::unused(measure, now), Window::retune);
        }
    }

    pub(super) fn roll(&mut self, now: Instant) {
        [&mut self.requests, &mut self.tokens].into_iter().flatten().for_each(|bucket| bucket.refill(now));
        [&mut self.request_quota, &mut self.token_quota].into_iter().flatten().for_each(|window| window.roll(now));
        self.tried.iter_mut().for_each(|tried| tried.roll(now));
    }

    /// The first limit that has no room for one request of `tokens`, and when it may have.
    pub(super) fn short_of(&self, limits: &Limits, tokens: u64, now: Instant) -> Option<Short> {
        if let Some(wait) = self.wait_for_requests(1, now) {
            return Some(Short::Requests(wait));
        }
        // What reserves no tokens owes none, and a debt of tokens does not hold it up.
        if let Some(wait) = wait(&self.tokens, &self.token_quota, tokens, now).filter(|_| tokens > 0) {
            return Some(Short::Tokens(wait));
        }
        limits.in_flight.filter(|most| self.in_flight >= *most).map(|_| Short::InFlight)
    }

    /// The same of the limits in shadow mode.
    pub(super) fn would_be_short_of(&self, limits: &Limits, tokens: u64, now: Instant) -> Option<Short> {
        self.tried.as_ref()?.short_of(limits.tried.as_ref()?, tokens, now)
    }

    pub(super) fn charge(&mut self, tokens: u64) {
        self.in_flight = self.in_flight.saturating_add(1);
        self.take_requests(1);
        take(&mut self.tokens, &mut self.token_quota, tokens);
    }

    pub(super) fn wait_for_requests(&self, units: u64, now: Instant) -> Option<Wait> {
        wait(&self.requests, &self.request_quota, units, now)
    }

    pub(super) fn take_requests(&mut self, units: u64) {
        take(&mut self.requests, &mut self.request_quota, units);
    }

    pub(super) fn give_back_requests(&mut self, units: u64) {
        give_back(&mut self.requests, &mut self.request_quota, units);
    }

    /// Puts `used` tokens in the place of those `reserved`.
    pub(super) fn correct(&mut self, reserved: u64, used: u64) {
        let (more, less) = (used.saturating_sub(reserved), reserved.saturating_sub(used));
        take(&mut self.tokens, &mut self.token_quota, more);
        give_back(&mut self.tokens, &mut self.token_quota, less);
    }

    /// A request is answered to its end.
    pub(super) fn leave(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    pub(super) fn standing(&self, limits: &Arc<Limits>, now: Instant) -> Standing {
        let bucket = |bucket: &Bucket| (bucket.remaining(), whole_seconds(bucket.until_full()));
        let window = |window: &Window| (window.remaining(), whole_seconds(window.until_over(now)));
        let left = [
            self.requests.as_ref().map(bucket),
            self.request_quota.as_ref().map(window),
            self.tokens.as_ref().map(bucket),
            self.token_quota.as_ref().map(window),
        ];
        Standing { limits: limits.clone(), left }
    }
}

/// How long until a bucket and a window have room for `units`, where they have not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    time: Duration,
    /// The window is the one that is waited for.
    for_window: bool,
    /// They never have room for so many.
    in_vain: bool,
}

fn wait(bucket: &Option<Bucket>, window: &Option<Window>, units: u64, now: Instant) -> Option<Wait> {
    let of_bucket = bucket.as_ref().map_or(Duration::ZERO, |bucket| bucket.wait(units));
    let of_window = window.as_ref().map_or(Duration::ZERO, |window| window.wait(units, now));
    let in_vain =
        bucket.as_ref().is_some_and(|bucket| units > bucket.most()) || window.as_ref().is_some_and(|window| units > window.most());
    let time = of_bucket.max(of_window);
    (!time.is_zero()).then_some(Wait { time, for_window: of_window > of_bucket, in_vain })
}

fn take(bucket: &mut Option<Bucket>, window: &mut Option<Window>, units: u64) {
    bucket.iter_mut().for_each(|bucket| bucket.take(units));
    window.iter_mut().for_each(|window| window.take(units));
}

fn give_back(bucket: &mut Option<Bucket>, window: &mut Option<Window>, units: u64) {
    bucket.iter_mut().for_each(|bucket| bucket.give_back(units));
    window.iter_mut().for_each(|window| window.give_back(units));
}

/// A limit whose mode has changed takes along what is used of it.
fn follow<M>(enforced: (&mut Option<M>, Option<Measure>), tried: (&mut Option<M>, Option<Measure>), measure: fn(&M) -> Measure) {
    let goes = |from: &Option<M>, stays: Option<Measure>, to: Option<Measure>| {
        from.as_ref().is_some_and(|meter| to == Some(measure(meter)) && to != stays)
    };
    if goes(tried.0, tried.1, enforced.1) {
        *enforced.0 = tried.0.take();
    } else if goes(enforced.0, enforced.1, tried.1) {
        *tried.0 = enforced.0.take();
    }
}

fn tune<M>(meter: &mut Option<M>, measure: Option<Measure>, make: impl FnOnce(Measure) -> M, retune: impl FnOnce(&mut M, Measure)) {
    match (meter.as_mut(), measure) {
        (Some(meter), Some(measure)) => retune(meter, measure),
        (None, Some(measure)) => *meter = Some(make(measure)),
        (_, None) => *meter = None,
    }
}

/// A limit without room, and how long until it may have some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Short {
    Requests(Wait),
    Tokens(Wait),
    InFlight,
}

impl Short {
    /// The refusal. For the limit that refused the caller reads that nothing is left, whether it was his own or the model's; but where he asked for more
    /// than there ever is, what there is.
    pub(super) fn refusal(self, own: bool, mut standing: Standing) -> Error {
        let mut spent = |[rate, quota]: [usize; 2], wait: Wait| {
            let at = if wait.for_window && standing.left[quota].is_some() || standing.left[rate].is_none() { quota } else { rate };
            if !wait.in_vain {
                standing.left[at] = standing.left[at].map(|_| (0, whole_seconds(wait.time).max(1)));
            }
        };
        let refused =
            |Wait { time: retry_after, in_vain, .. }, rule, standing| Refused { retry_after, in_vain, rule, standing: Box::new(standing) };
        match self {
            Self::Requests(wait) => {
                spent([0, 1], wait);
                let rule = if own { "caller.requests" } else { "model.requests" };
                Error::CallerSpentRequests(refused(wait, rule, standing))
            }
            Self::Tokens(wait) => {
                spent([2, 3], wait);
                let rule = if own { "caller.tokens" } else { "model.tokens" };
                Error::CallerSpentTokens(refused(wait, rule, standing))
            }
            Self::InFlight => {
                let rule = if own { "caller.in_flight" } else { "model.in_flight" };
                Error::CallerHasTooManyInFlight(Refused { retry_after: SOON, in_vain: false, rule, standing: Box::new(standing) })
            }
        }
    }
}
