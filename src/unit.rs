//! Quantities as the policy files write them: `"250ms"`, `"64KiB"`, `"20/s"`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// A length of time: `"250ms"`, `"5s"`, `"2m"`, `"1h"`, `"1d"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A number of bytes: `"512B"`, `"64KiB"`, `"4MiB"`, `"1GiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub usize);

/// How many in how long: `"20/s"`, `"600/min"`, `"5000/h"`, `"100000/day"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many; never 0.
    pub count: u32,
    /// In how long.
    pub per: Duration,
}

/// Splits `"250ms"` into 250 and `"ms"`.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    Some((text[..end].parse().ok()?, &text[end..]))
}

fn span(text: &str) -> Option<Span> {
    let (number, unit) = number_and_unit(text)?;
    let seconds = |each: u64| number.checked_mul(each).map(Duration::from_secs);
    Some(Span(match unit {
        "ms" => Duration::from_millis(number),
        "s" => seconds(1)?,
        "m" | "min" => seconds(60)?,
        "h" => seconds(3_600)?,
        "d" => seconds(86_400)?,
        _ => return None,
    }))
}

fn size(text: &str) -> Option<Size> {
    let (number, unit) = number_and_unit(text)?;
    let scale = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(scale)?.try_into().ok().map(Size)
}

fn rate(text: &str) -> Option<Rate> {
    let (count, unit) = text.split_once('/')?;
    let per = match unit {
        "s" => 1,
        "m" | "min" => 60,
        "h" | "hour" => 3_600,
        "d" | "day" => 86_400,
        _ => return None,
    };
    let count = count.parse().ok().filter(|count| *count > 0)?;
    Some(Rate { count, per: Duration::from_secs(per) })
}

struct Text<T>(fn(&str) -> Option<T>, &'static str);

impl<T> de::Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.1)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text(span, "a duration such as \"250ms\", \"5s\", \"2m\", \"1h\" or \"1d\""))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text(size, "a size such as \"512B\", \"64KiB\", \"4MiB\" or \"1GiB\""))
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text(rate, "a rate such as \"20/s\", \"600/min\", \"5000/h\" or \"100000/day\", at least 1"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_written() {
        assert_eq!(span("250ms"), Some(Span(Duration::from_millis(250))));
        assert_eq!(span("1h"), Some(Span(Duration::from_secs(3_600))));
        assert_eq!(size("64KiB"), Some(Size(65_536)));
        assert_eq!(rate("600/min"), Some(Rate { count: 600, per: Duration::from_secs(60) }));
    }

    #[test]
    fn what_is_not_a_quantity_is_refused() {
        for bad in ["", "5", "s", "-5s", "5 s", "1.5s", "5S", "99999999999999999999s"] {
            assert_eq!(span(bad), None, "{bad:?}");
        }
        for bad in ["64KB", "64", "18446744073709551615GiB", "-1B"] {
            assert_eq!(size(bad), None, "{bad:?}");
        }
        for bad in ["0/s", "20", "20/", "20/week", "4294967296/s"] {
            assert_eq!(rate(bad), None, "{bad:?}");
        }
    }
}
