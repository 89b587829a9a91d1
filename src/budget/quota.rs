//! A longer quota: so many in a window that begins with its first use. No burst comes on top, as it would with a bucket.

use std::time::{Duration, Instant};

use super::rate::Measure;

/// A quota, as far as it is used.
#[derive(Debug)]
pub(crate) struct Window {
    measure: Measure,
    /// More than the measure's count is debt, which the next window begins with.
    used: u64,
    from: Instant,
}

impl Window {
    /// A window of which nothing is used.
    pub(crate) fn unused(measure: Measure, from: Instant) -> Self {
        Self { measure, used: 0, from }
    }

    /// A window that began with its first use, and what was used of it since.
    pub(crate) fn begun(measure: Measure, used: u64, from: Instant) -> Self {
        Self { measure, used, from }
    }

    /// Begins the next window where this one is over.
    pub(crate) fn roll(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.from);
        let over = elapsed.as_nanos() / self.measure.per.as_nanos();
        let allowed = u128::from(self.measure.count).saturating_mul(over);
        self.used = self.used.saturating_sub(u64::try_from(allowed).unwrap_or(u64::MAX));
        if self.used == 0 {
            self.from = self.from.max(now);
        } else if over > 0 {
            let into = u64::try_from(elapsed.as_nanos() % self.measure.per.as_nanos()).unwrap_or(0);
            self.from = now.checked_sub(Duration::from_nanos(into)).unwrap_or(now);
        }
    }

    /// Puts another measure in force; what is used stays used.
    pub(crate) fn retune(&mut self, measure: Measure) {
        self.measure = measure;
    }

    /// How long until `units` are there; zero when they are.
    pub(crate) fn wait(&self, units: u64, now: Instant) -> Duration {
        if self.used.saturating_add(units) <= u64::from(self.measure.count) {
            Duration::ZERO
        } else {
            self.until_over(now).max(Duration::from_nanos(1))
        }
    }

    /// What is in force.
    pub(crate) fn measure(&self) -> Measure {
        self.measure
    }

    /// As many units as are ever there at once.
    pub(crate) fn most(&self) -> u64 {
        self.measure.count.into()
    }

    /// Takes `units`, there or not; what is not there is owed.
    pub(crate) fn take(&mut self, units: u64) {
        self.used = self.used.saturating_add(units);
    }

    /// Gives `units` back, which were taken before.
    pub(crate) fn give_back(&mut self, units: u64) {
        self.used = self.used.saturating_sub(units);
    }

    /// Units that are there.
    pub(crate) fn remaining(&self) -> u64 {
        u64::from(self.measure.count).saturating_sub(self.used)
    }

    /// How long until the window is over; zero where nothing of it is used.
    pub(crate) fn until_over(&self, now: Instant) -> Duration {
        if self.used == 0 { Duration::ZERO } else { self.measure.per.saturating_sub(now.saturating_duration_since(self.from)) }
    }

    /// Units that are used.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// When it began.
    pub(crate) fn began(&self) -> Instant {
        self.from
    }

    /// Whether nothing of it is used.
    pub(crate) fn is_unused(&self) -> bool {
        self.used == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Measure = Measure { count: 3, per: Duration::from_secs(86_400), burst: 3 };

    #[test]
    fn the_quota_passes_and_one_past_it_waits_for_the_next_window() {
        let start = Instant::now();
        let mut window = Window::unused(DAY, start);
        let first = start + Duration::from_secs(1_000);
        for _ in 0..3 {
            window.roll(first);
            assert_eq!(window.wait(1, first), Duration::ZERO);
            window.take(1);
        }
        assert_eq!(window.wait(1, first), DAY.per);
        let eve = first + DAY.per - Duration::from_nanos(1);
        window.roll(eve);
        assert_eq!(window.wait(1, eve), Duration::from_nanos(1));
        window.roll(first + DAY.per);
        assert_eq!(window.remaining(), 3);
    }

    #[test]
    fn what_was_overspent_is_owed_in_the_next_window() {
        let start = Instant::now();
        let mut window = Window::unused(DAY, start);
        window.take(5);
        window.roll(start + DAY.per);
        assert_eq!(window.remaining(), 1);
        window.roll(start + 2 * DAY.per);
        assert!(window.is_unused());
    }
}
