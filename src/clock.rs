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

    /// Milliseconds since the Unix epoch at which the monotonic clock read `at`, before this moment.
    #[must_use]
    pub fn millis_of(&self, at: Instant) -> u64 {
        let wall = self.wall.checked_sub(self.mono.saturating_duration_since(at));
        let since = wall.and_then(|wall| wall.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// What the monotonic clock would have read so many milliseconds after the Unix epoch, in another process too. What lies ahead, since the wall
    /// clock was set back, is now.
    #[must_use]
    pub fn mono_of(&self, millis: u64) -> Instant {
        let wall = UNIX_EPOCH.checked_add(Duration::from_millis(millis));
        let ago = wall.and_then(|wall| self.wall.duration_since(wall).ok()).unwrap_or_default();
        self.mono.checked_sub(ago).unwrap_or(self.mono)
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

/// The point in time that `written` names, to the nanosecond; none if it has no date, no time, no offset, or lies before 1970.
#[must_use]
pub fn instant(written: &toml::value::Datetime) -> Option<SystemTime> {
    let (date, time, offset) = (written.date?, written.time?, written.offset?);
    let minutes = match offset {
        toml::value::Offset::Z => 0,
        toml::value::Offset::Custom { minutes } => i64::from(minutes),
    };
    // Howard Hinnant's days_from_civil.
    let (month, day) = (i64::from(date.month), i64::from(date.day));
    let year = i64::from(date.year) - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    let seconds =
        days * 86_400 + i64::from(time.hour) * 3_600 + i64::from(time.minute) * 60 + i64::from(time.second.unwrap_or(0)) - minutes * 60;
    UNIX_EPOCH.checked_add(Duration::new(u64::try_from(seconds).ok()?, time.nanosecond.unwrap_or(0)))
}

/// The point in time that a text of RFC 3339 names; none of anything else, and of what lies before 1970.
#[must_use]
pub fn from_rfc3339(text: &str) -> Option<SystemTime> {
    instant(&text.parse().ok()?)
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
    fn a_time_is_found_again_by_another_process_and_is_never_ahead() {
        let now = Moment { mono: Instant::now(), wall: UNIX_EPOCH + Duration::from_millis(1_795_219_199_250) };
        let ago = now.mono - Duration::from_millis(1_500);
        assert_eq!(now.millis_of(ago), 1_795_219_197_750);
        let day = Duration::from_secs(86_400);
        let later = Moment { mono: now.mono + day, wall: now.wall + 3 * day };
        assert_eq!(later.mono_of(now.millis_of(ago)), ago - 2 * day, "the process was gone for two days");
        let set_back = Moment { wall: now.wall - day, ..now };
        assert_eq!(set_back.mono_of(now.millis_of(ago)), now.mono);
        assert_eq!(Moment { wall: UNIX_EPOCH, ..now }.millis_of(ago), 0);
    }

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
    #[test]
    fn a_time_that_was_written_is_read_again_and_anything_else_is_not() {
        for millis in [0, 951_782_400_123, 1_795_219_199_000, 1_709_164_800_001, 4_102_444_800_999] {
            let time = UNIX_EPOCH + Duration::from_millis(millis);
            assert_eq!(from_rfc3339(&rfc3339(time)), Some(time), "{}", rfc3339(time));
        }
        let noon = UNIX_EPOCH + Duration::from_secs(1_795_176_000);
        assert_eq!(from_rfc3339("2026-11-20T12:00:00Z"), Some(noon));
        assert_eq!(from_rfc3339("2026-11-20T14:30:00+02:30"), Some(noon));
        assert_eq!(from_rfc3339("2026-11-20t04:00:00.5-08:00"), Some(noon + Duration::from_millis(500)));
        for wrong in [
            "",
            "2026-11-20",
            "12:00:00Z",
            "2026-11-20T12:00:00",
            "2026-02-30T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+00:01",
            "yesterday",
        ] {
            assert!(from_rfc3339(wrong).is_none(), "{wrong}");
        }
    }
}
