//! The names of shards: half-years, as `2026h2`.

use std::fmt;
use std::str::FromStr;

/// How many bytes a label takes.
pub(crate) const LENGTH: usize = 6;
/// The last year that four digits write; whatever a clock says beyond it is taken for that year.
const LAST_YEAR: u32 = 9_999;

/// A half-year in UTC. The later one is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label {
    year: u32,
    half: u32,
}

impl Label {
    /// The half-year of a month (YYYYMM).
    #[must_use]
    pub fn of_month(month: u32) -> Self {
        if month / 100 > LAST_YEAR {
            return Self { year: LAST_YEAR, half: 2 };
        }
        Self { year: month / 100, half: if month % 100 > 6 { 2 } else { 1 } }
    }

    /// The half-year after it.
    #[must_use]
    pub const fn next(self) -> Self {
        if self.half == 1 { Self { half: 2, ..self } } else { Self { year: self.year + 1, half: 1 } }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}h{}", self.year, self.half)
    }
}

/// A text that names no half-year.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotALabel;

impl FromStr for Label {
    type Err = NotALabel;

    /// Reads the one way in which it is written.
    fn from_str(text: &str) -> Result<Self, NotALabel> {
        let (year, half) = text.split_once('h').ok_or(NotALabel)?;
        let label = Self { year: year.parse().map_err(|_| NotALabel)?, half: half.parse().map_err(|_| NotALabel)? };
        if matches!(label.half, 1 | 2) && text.len() == LENGTH && label.to_string() == text { Ok(label) } else { Err(NotALabel) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(month: u32) -> String {
        Label::of_month(month).to_string()
    }

    #[test]
    fn a_half_year_ends_with_june_and_with_december() {
        assert_eq!([202_601, 202_606, 202_607, 202_612, 202_701].map(of), ["2026h1", "2026h1", "2026h2", "2026h2", "2027h1"]);
        assert_eq!([999_912, 1_000_001, u32::MAX].map(of), ["9999h2"; 3], "beyond what four digits write");
        let label: Label = "2026h1".parse().unwrap();
        assert_eq!([label.next(), label.next().next()].map(|label| label.to_string()), ["2026h2", "2027h1"]);
        assert!(label < label.next() && label.next() < label.next().next());
    }

    #[test]
    fn a_label_is_written_one_way() {
        assert_eq!("2026h2".parse::<Label>().unwrap().to_string(), "2026h2");
        for bad in ["", "2026", "2026h0", "2026h3", "2026H1", "02026h1", "+026h1", "226h1", "2026h01", "2026h1 ", "tile", "12026h1"] {
            assert_eq!(bad.parse::<Label>(), Err(NotALabel), "{bad:?}");
        }
    }
}
