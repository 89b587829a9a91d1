//! Whether a replica is given requests: decided from what happened, without a clock and without I/O.

use std::time::{Duration, Instant};

/// So many requests must fail one after the other, with none that ended well between them.
pub(super) const EJECT_AFTER: u32 = 5;
/// The first ejection; each further one in a row takes twice as long.
pub(super) const EJECT_FIRST: Duration = Duration::from_millis(250);
/// The longest ejection: a replica that came back is asked within this time.
pub(super) const EJECT_MOST: Duration = Duration::from_secs(1);
/// A replica that does nothing of what it is asked for so long, with no answer that ended well, fails with each request more: the end of a connection, which has
/// many undone at once, is over by then.
pub(super) const UNDONE_FOR: Duration = Duration::from_secs(1);
/// So many health checks must fail one after the other.
pub(super) const DOWN_AFTER: u32 = 2;

/// What a replica is good for at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Requests.
    Open,
    /// Requests, if there is nothing better: its health checks fail, which is an opinion, where an ejection is experience.
    Doubtful,
    /// One request, to find out.
    Probe,
    /// Nothing before then.
    Shut(Instant),
}

/// How a replica stands.
#[derive(Debug, Default)]
pub(super) struct Standing {
    failures: u32,
    /// Since when it did nothing of what it was asked.
    undone: Option<Instant>,
    ejections: u32,
    until: Option<Instant>,
    probing: bool,
    checks_failed: u32,
}

impl Standing {
    /// What it is good for at `now`.
    pub(super) fn way(&self, now: Instant) -> Way {
        match self.until {
            Some(until) if now < until => Way::Shut(until),
            // Somebody is finding out already. When that takes long, the next may not try before this.
            Some(_) if self.probing => Way::Shut(now + EJECT_FIRST),
            Some(_) => Way::Probe,
            None if self.checks_failed >= DOWN_AFTER => Way::Doubtful,
            None => Way::Open,
        }
    }

    /// A request is on its way there; whether it is the one that finds out.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let probe = self.way(now) == Way::Probe;
        self.probing |= probe;
        probe
    }

    /// The probe's answer has begun: others may follow, but the next failure ejects again.
    pub(super) fn answered(&mut self, probe: bool) {
        if probe {
            self.probing = false;
            self.until = None;
            self.failures = EJECT_AFTER - 1;
        }
    }

    /// An answer was read to its end. One from before an ejection says nothing of what came after it.
    pub(super) fn ended_well(&mut self) {
        self.undone = None;
        if self.until.is_none() {
            self.failures = 0;
            self.ejections = 0;
        }
    }

    /// A request failed there by the replica's fault. Those that began before an ejection do not make it longer.
    pub(super) fn failed(&mut self, probe: bool, now: Instant) {
        if self.until.is_some() && !probe {
            return;
        }
        self.failures = self.failures.saturating_add(1);
        if probe || self.failures >= EJECT_AFTER {
            let wait = EJECT_FIRST.saturating_mul(1 << self.ejections.min(16)).min(EJECT_MOST);
            self.until = Some(now + wait);
            self.ejections = self.ejections.saturating_add(1);
            self.probing = false;
        }
    }

    /// The replica said that it did nothing of a request. That is no failure, unless it is all it does; who is to find out has.
    pub(super) fn undone(&mut self, probe: bool, now: Instant) {
        let since = *self.undone.get_or_insert(now);
        if probe || now.saturating_duration_since(since) >= UNDONE_FOR {
            self.failed(probe, now);
        }
    }

    /// The probe was given up without finding out.
    pub(super) fn probe_given_up(&mut self) {
        self.probing = false;
    }

    /// A health check ended.
    pub(super) fn checked(&mut self, well: bool) {
        self.checks_failed = if well { 0 } else { self.checks_failed.saturating_add(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_undone_is_a_failure_only_where_nothing_is_done_for_long() {
        let (mut standing, now) = (Standing::default(), Instant::now());
        (0..100).for_each(|_| standing.undone(false, now));
        let late = now + UNDONE_FOR;
        (1..EJECT_AFTER).for_each(|_| standing.undone(false, late));
        assert_eq!(standing.way(late), Way::Open);
        standing.ended_well();
        standing.undone(false, late);
        (0..100).for_each(|_| standing.undone(false, late + UNDONE_FOR - Duration::from_millis(1)));
        assert_eq!(standing.way(late), Way::Open, "an answer begins it anew");
        (0..EJECT_AFTER).for_each(|_| standing.undone(false, late + UNDONE_FOR));
        let until = late + UNDONE_FOR + EJECT_FIRST;
        assert_eq!(standing.way(late + UNDONE_FOR), Way::Shut(until));
        assert!(standing.begin(until));
        standing.undone(true, until);
        assert_eq!(standing.way(until), Way::Shut(until + 2 * EJECT_FIRST), "a probe that is left undone has failed");
    }

    fn after(standing: &mut Standing, failures: u32, now: Instant) {
        (0..failures).for_each(|_| standing.failed(false, now));
    }

    #[test]
    fn one_failure_fewer_than_the_limit_ejects_nobody() {
        let (mut standing, now) = (Standing::default(), Instant::now());
        after(&mut standing, EJECT_AFTER - 1, now);
        assert_eq!(standing.way(now), Way::Open);
        standing.ended_well();
        after(&mut standing, EJECT_AFTER - 1, now);
        assert_eq!(standing.way(now), Way::Open, "a good end begins the count anew");
        after(&mut standing, 1, now);
        assert_eq!(standing.way(now), Way::Shut(now + EJECT_FIRST));
    }

    #[test]
    fn each_failed_probe_doubles_the_wait_up_to_its_bound() {
        let (mut standing, mut now) = (Standing::default(), Instant::now());
        after(&mut standing, EJECT_AFTER, now);
        for wait in [EJECT_FIRST, EJECT_FIRST * 2, EJECT_MOST, EJECT_MOST] {
            assert_eq!(standing.way(now), Way::Shut(now + wait));
            now += wait;
            assert_eq!(standing.way(now), Way::Probe);
            assert!(standing.begin(now));
            assert!(matches!(standing.way(now), Way::Shut(_)), "one probe at a time");
            assert!(!standing.begin(now));
            standing.failed(true, now);
        }
    }

    #[test]
    fn a_probe_that_is_answered_lets_others_in_and_a_good_end_forgives() {
        let (mut standing, mut now) = (Standing::default(), Instant::now());
        after(&mut standing, EJECT_AFTER, now);
        now += EJECT_FIRST;
        assert!(standing.begin(now));
        standing.answered(true);
        assert_eq!(standing.way(now), Way::Open);
        standing.failed(false, now);
        assert_eq!(standing.way(now), Way::Shut(now + EJECT_FIRST * 2), "not forgiven before an answer ended well");
        now += EJECT_FIRST * 2;
        assert!(standing.begin(now));
        standing.answered(true);
        standing.ended_well();
        after(&mut standing, EJECT_AFTER - 1, now);
        assert_eq!(standing.way(now), Way::Open);
    }

    #[test]
    fn a_probe_that_was_given_up_is_taken_by_the_next() {
        let (mut standing, mut now) = (Standing::default(), Instant::now());
        after(&mut standing, EJECT_AFTER, now);
        now += EJECT_FIRST;
        assert!(standing.begin(now));
        standing.probe_given_up();
        assert_eq!(standing.way(now), Way::Probe);
    }

    #[test]
    fn late_news_changes_no_ejection() {
        let (mut standing, now) = (Standing::default(), Instant::now());
        after(&mut standing, EJECT_AFTER + 50, now);
        standing.ended_well();
        assert_eq!(standing.way(now), Way::Shut(now + EJECT_FIRST));
    }

    #[test]
    fn failed_checks_make_doubtful_and_one_good_check_mends_it() {
        let (mut standing, now) = (Standing::default(), Instant::now());
        standing.checked(false);
        assert_eq!(standing.way(now), Way::Open);
        standing.checked(false);
        assert_eq!(standing.way(now), Way::Doubtful);
        standing.checked(true);
        assert_eq!(standing.way(now), Way::Open);
    }
}
