//! What of budgets is to outlive the process: quotas, and rates that take long to be whole again, as far as they are used.
//!
//! It is written down in the time of the wall, and read back as of the moment: what has come since is there again. What limits in shadow mode have used
//! is not kept.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Budget;
use super::meter::Meter;
use super::quota::Window;
use super::rate::{Bucket, Measure};
use crate::clock::Moment;

/// A rate that is whole again sooner is not kept.
const SOON: Duration = Duration::from_secs(60);

/// The longest time in which a limit counts.
const LONGEST: Duration = Duration::from_secs(86_400);

/// What one caller of a model has used, or all of its callers together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Nobody where it is of all callers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    caller: Option<Arc<str>>,
    /// Of no name where it is of the gateway itself.
    model: Arc<str>,
    used: Vec<Used>,
}

/// One limit, as far as it is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Used {
    limit: Limit,
    count: u32,
    /// In so many nanoseconds.
    per: u64,
    burst: u32,
    /// Units of a quota; of a rate nanoseconds until all of it is there again.
    used: u64,
    /// When the window of the quota began, or as of when the rate was looked at, in milliseconds since 1970.
    at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Limit {
    Requests,
    RequestQuota,
    Tokens,
    TokenQuota,
}

impl Kept {
    /// Whether a limit can be what it says.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let sound = |used: &Used| used.count > 0 && used.burst > 0 && (1..=LONGEST.as_nanos()).contains(&u128::from(used.per));
        self.used.iter().all(sound)
    }
}

impl Used {
    fn new(limit: Limit, measure: Measure, used: u64, at: Instant, now: Moment) -> Self {
        let per = u64::try_from(measure.per.as_nanos()).unwrap_or(u64::MAX);
        Self { limit, count: measure.count, per, burst: measure.burst, used, at: now.millis_of(at) }
    }

    fn of_rate(limit: Limit, bucket: Option<&Bucket>, now: Moment) -> Option<Self> {
        let bucket = bucket.filter(|bucket| bucket.until_full() >= SOON)?;
        let used = u64::try_from(bucket.until_full().as_nanos()).unwrap_or(u64::MAX);
        Some(Self::new(limit, bucket.measure(), used, now.mono, now))
    }

    fn of_quota(limit: Limit, window: Option<&Window>, now: Moment) -> Option<Self> {
        let window = window.filter(|window| !window.is_unused())?;
        Some(Self::new(limit, window.measure(), window.used(), window.began(), now))
    }

    fn measure(&self) -> Measure {
        Measure { count: self.count, per: Duration::from_nanos(self.per), burst: self.burst }
    }

    fn rate(&self, now: Moment) -> Bucket {
        Bucket::used(self.measure(), Duration::from_nanos(self.used), now.mono_of(self.at))
    }

    fn quota(&self, now: Moment) -> Window {
        Window::begun(self.measure(), self.used, now.mono_of(self.at))
    }
}

impl Meter {
    fn kept(&self, now: Moment) -> Vec<Used> {
        let mut readings = self.lock();
        readings.roll(now.mono);
        let used = [
            Used::of_rate(Limit::Requests, readings.requests.as_ref(), now),
            Used::of_quota(Limit::RequestQuota, readings.request_quota.as_ref(), now),
            Used::of_rate(Limit::Tokens, readings.tokens.as_ref(), now),
            Used::of_quota(Limit::TokenQuota, readings.token_quota.as_ref(), now),
        ];
        used.into_iter().flatten().collect()
    }

    fn restored(used: &[Used], now: Moment) -> Self {
        let meter = Self::new(now.mono);
        {
            let mut readings = meter.lock();
            for used in used {
                match used.limit {
                    Limit::Requests => readings.requests = Some(used.rate(now)),
                    Limit::RequestQuota => readings.request_quota = Some(used.quota(now)),
                    Limit::Tokens => readings.tokens = Some(used.rate(now)),
                    Limit::TokenQuota => readings.token_quota = Some(used.quota(now)),
                }
            }
        }
        meter
    }
}

impl Budget {
    /// Everything that is used and will not be there again at once.
    pub fn kept(&self, now: Moment) -> impl Iterator<Item = Kept> {
        let own = self.callers.each().map(move |((caller, model), meter)| Kept { caller: Some(caller), model, used: meter.kept(now) });
        let shared = self.models.each().map(move |(model, meter)| Kept { caller: None, model, used: meter.kept(now) });
        own.chain(shared).filter(|kept| !kept.used.is_empty())
    }

    /// Takes back what was kept before the process began, ahead of all requests.
    pub fn restore(&self, kept: Kept, now: Moment) {
        let meter = Meter::restored(&kept.used, now);
        match kept.caller {
            Some(caller) => self.callers.restore((caller, kept.model), meter),
            None => self.models.restore(kept.model, meter),
        }
    }
}
