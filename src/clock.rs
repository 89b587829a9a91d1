//! Time, read in one place and handed on as a value: no decision reads a clock of its own.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One reading of both clocks.
///
/// Deadlines and rates use `mono`, which never steps; receipts, logs and token lifetimes use `wall`.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The monotonic clock.
    pub mono: Instant,
    /// The wall clock.
    pub wall: SystemTime,
}

impl Moment {
    /// Reads both clocks now.
    #[must_use]
    pub fn now() -> Self {
        Self { mono: Instant::now(), wall: SystemTime::now() }
    }

    /// Nanoseconds since the Unix epoch; 0 for a wall clock set before it.
    #[must_use]
    pub fn unix_nanos(&self) -> u64 {
        let since = self.wall.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Whole seconds since the Unix epoch; 0 for a wall clock set before it.
    #[must_use]
    pub fn unix_seconds(&self) -> u64 {
        self.wall.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
    }

    /// The moment `later` after this one, on both clocks.
    #[must_use]
    pub fn after(&self, later: Duration) -> Self {
        Self { mono: self.mono + later, wall: self.wall + later }
    }
}

/// Whole microseconds between two monotonic readings, 0 if they are the wrong way round.
#[must_use]
pub fn micros_between(from: Instant, to: Instant) -> u32 {
    u32::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u32::MAX)
}

/// RFC 3339 in UTC with milliseconds, for logs and people.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (year, month, day) = civil(since.as_secs() / 86_400);
    let second = since.as_secs() % 86_400;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z", second / 3_600, second / 60 % 60, second % 60, since.subsec_millis())
}

/// The month in UTC, as YYYYMM.
#[must_use]
pub fn month(time: SystemTime) -> u32 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (year, month, _) = civil(since.as_secs() / 86_400);
    u32::try_from(year * 100 + month).unwrap_or(u32::MAX)
}

/// Year, month and day of a day counted from 1970-01-01, by Howard Hinnant's civil_from_days.
fn civil(days: u64) -> (i64, i64, i64) {
    let z = days as i64 + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_knows_leap_days_and_the_epoch() {
        assert_eq!(rfc3339(UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_millis(951_782_400_123)), "2000-02-29T00:00:00.123Z");
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(1_795_219_199)), "2026-11-20T23:59:59.000Z");
        assert_eq!(
            [0, 951_782_400, 1_795_219_199].map(|second| month(UNIX_EPOCH + Duration::from_secs(second))),
            [197_001, 200_002, 202_611]
        );
    }
}
