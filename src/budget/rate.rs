//! One bucket: so many at once, refilled at so many in how long. Pure arithmetic on whole numbers; time is handed in.
//!
//! This is the generic cell rate algorithm (ITU-T I.371) with two things that `governor` does not offer and that are needed here:
//! what was reserved can be given back, and what was overspent is owed. It is also told a new rate without being emptied.

use std::time::{Duration, Instant};

/// How much a bucket or a window holds and how fast it fills again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Measure {
    /// How many in `per`; never 0.
    pub(crate) count: u32,
    /// In how long; never 0, at most a day.
    pub(crate) per: Duration,
    /// How many at once; never 0.
    pub(crate) burst: u32,
}

impl Measure {
    /// How long an empty bucket takes to be full.
    pub(crate) fn window(&self) -> Duration {
        nanos((u128::from(self.burst) * self.cost()).div_ceil(u128::from(self.count)))
    }

    /// As many as pass in so many seconds, evenly; no less than at once.
    pub(crate) fn within(&self, seconds: u64) -> u64 {
        let evenly = u128::from(self.count) * Duration::from_secs(seconds).as_nanos() / self.per.as_nanos();
        u64::try_from(evenly).unwrap_or(u64::MAX).max(self.burst.into())
    }

    /// What one unit costs. A bucket counts in units times nanoseconds, so that no rate is ever rounded.
    fn cost(&self) -> u128 {
        self.per.as_nanos()
    }
}

/// Past this, more debt is not told apart: 2³³ units at a rate by the day, 2⁵⁰ by the second. It keeps all products within 128 bits.
const MOST_USED: u128 = 1 << 80;

/// A bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    measure: Measure,
    /// What is used and not yet refilled, in units times `per`; more than `burst` times `per` is debt.
    used: u128,
    at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub(crate) fn full(measure: Measure, at: Instant) -> Self {
        Self { measure, used: 0, at }
    }

    /// A bucket that is full again so long after `at`.
    pub(crate) fn used(measure: Measure, until_full: Duration, at: Instant) -> Self {
        let used = until_full.as_nanos().saturating_mul(u128::from(measure.count)).min(MOST_USED);
        Self { measure, used, at }
    }

    /// Refills what has come since the last look. A `now` that lies before it changes nothing.
    pub(crate) fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_nanos();
        self.used = self.used.saturating_sub(elapsed.saturating_mul(u128::from(self.measure.count)));
        self.at = self.at.max(now);
    }

    /// Puts another measure in force; what is used stays used.
    pub(crate) fn retune(&mut self, measure: Measure) {
        if self.measure != measure {
            self.used = (self.used * measure.cost() / self.measure.cost()).min(MOST_USED);
            self.measure = measure;
        }
    }

    /// How long until `units` are there; zero when they are. More than the bucket holds is never there: then it is the whole window.
    pub(crate) fn wait(&self, units: u64) -> Duration {
        let Some(room) = self.holds().checked_sub(self.price(units)) else { return self.measure.window() };
        nanos(self.used.saturating_sub(room).div_ceil(u128::from(self.measure.count)))
    }

    /// What is in force.
    pub(crate) fn measure(&self) -> Measure {
        self.measure
    }

    /// As many units as are ever there at once.
    pub(crate) fn most(&self) -> u64 {
        self.measure.burst.into()
    }

    /// Takes `units`, there or not; what is not there is owed.
    pub(crate) fn take(&mut self, units: u64) {
        self.used = self.used.saturating_add(self.price(units)).min(MOST_USED);
    }

    /// Gives `units` back, which were taken before.
    pub(crate) fn give_back(&mut self, units: u64) {
        self.used = self.used.saturating_sub(self.price(units));
    }

    /// Whole units that are there.
    pub(crate) fn remaining(&self) -> u64 {
        u64::try_from(self.holds().saturating_sub(self.used) / self.measure.cost()).unwrap_or(u64::MAX)
    }

    /// How long until it is full.
    pub(crate) fn until_full(&self) -> Duration {
        nanos(self.used.div_ceil(u128::from(self.measure.count)))
    }

    fn holds(&self) -> u128 {
        u128::from(self.measure.burst) * self.measure.cost()
    }

    fn price(&self, units: u64) -> u128 {
        u128::from(units) * self.measure.cost()
    }
}

fn nanos(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TWENTY: Measure = Measure { count: 20, per: Duration::from_secs(1), burst: 40 };

    #[test]
    fn the_burst_passes_and_one_past_it_waits_for_one_interval() {
        let start = Instant::now();
        let mut bucket = Bucket::full(TWENTY, start);
        for left in (0..40).rev() {
            assert_eq!(bucket.wait(1), Duration::ZERO);
            bucket.take(1);
            assert_eq!(bucket.remaining(), left);
        }
        assert_eq!(bucket.wait(1), Duration::from_millis(50));
        bucket.refill(start + Duration::from_nanos(49_999_999));
        assert_eq!(bucket.wait(1), Duration::from_nanos(1));
        bucket.refill(start + Duration::from_millis(50));
        assert_eq!(bucket.wait(1), Duration::ZERO);
        assert_eq!(TWENTY.window(), Duration::from_secs(2));
    }

    #[test]
    fn more_than_the_bucket_holds_never_passes() {
        let bucket = Bucket::full(TWENTY, Instant::now());
        assert_eq!(bucket.wait(40), Duration::ZERO);
        assert_eq!(bucket.wait(41), Duration::from_secs(2));
        assert_eq!(bucket.wait(u64::MAX), Duration::from_secs(2));
    }

    #[test]
    fn debt_is_paid_before_anything_passes() {
        let start = Instant::now();
        let mut bucket = Bucket::full(TWENTY, start);
        bucket.take(60);
        assert_eq!(bucket.remaining(), 0);
        assert_eq!(bucket.wait(1), Duration::from_millis(1_050));
        bucket.take(u64::MAX);
        bucket.refill(start + Duration::from_secs(86_400));
        assert_ne!(bucket.wait(1), Duration::ZERO);
    }

    #[test]
    fn time_that_steps_back_refills_nothing_twice() {
        let start = Instant::now();
        let mut bucket = Bucket::full(TWENTY, start);
        bucket.take(40);
        bucket.refill(start + Duration::from_millis(50));
        bucket.refill(start);
        bucket.refill(start + Duration::from_millis(50));
        assert_eq!(bucket.remaining(), 1);
    }

    #[test]
    fn another_rate_keeps_what_is_used() {
        let mut bucket = Bucket::full(TWENTY, Instant::now());
        bucket.take(30);
        bucket.retune(Measure { count: 100_000, per: Duration::from_secs(86_400), burst: 31 });
        assert_eq!(bucket.remaining(), 1);
        bucket.retune(Measure { count: 1, per: Duration::from_secs(1), burst: 10 });
        assert_eq!(bucket.wait(1), Duration::from_secs(21));
    }

    proptest! {
        #[test]
        fn no_more_passes_than_the_burst_and_what_was_refilled(
            count in 1_u32..=u32::MAX, per in prop::sample::select(vec![1_u64, 60, 3_600, 86_400]), burst in 1_u32..200,
            steps in prop::collection::vec((0_u64..2_000_000_000, 1_u64..5), 1..200),
        ) {
            let measure = Measure { count, per: Duration::from_secs(per), burst };
            let start = Instant::now();
            let (mut now, mut passed) = (start, 0_u128);
            let mut bucket = Bucket::full(measure, start);
            for (gap, units) in steps {
                now += Duration::from_nanos(gap);
                bucket.refill(now);
                if bucket.wait(units).is_zero() {
                    bucket.take(units);
                    passed += u128::from(units);
                }
                let refilled = (now - start).as_nanos() * u128::from(count);
                prop_assert!(passed * measure.cost() <= u128::from(burst) * measure.cost() + refilled);
            }
        }

        #[test]
        fn after_the_wait_it_passes_and_a_nanosecond_before_it_does_not(
            count in 1_u32..=u32::MAX, burst in 1_u32..1_000, taken in 1_u64..2_000, units in 1_u64..1_000,
        ) {
            let measure = Measure { count, per: Duration::from_secs(60), burst };
            let start = Instant::now();
            let mut bucket = Bucket::full(measure, start);
            bucket.take(taken);
            prop_assume!(units <= u64::from(burst));
            let wait = bucket.wait(units);
            if !wait.is_zero() {
                bucket.refill(start + wait - Duration::from_nanos(1));
                prop_assert!(!bucket.wait(units).is_zero());
            }
            bucket.refill(start + wait);
            prop_assert!(bucket.wait(units).is_zero());
        }
    }
}
