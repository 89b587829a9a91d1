//! Numbers finer than honest inputs are, or outside of where they lie: finite differences and unbounded search directions need both
//! (Tramèr et al., 2016, arXiv 1609.02943). It has no opinion where honest inputs lie on no grid.

use super::{Family, LooksAt, Occasion, Reach, Signal};

/// The part of a row that may be off.
const MAY_BE_OFF: f32 = 0.02;

pub(super) const FAMILY: Family = Family {
    name: "precision",
    atlas: &["AML.T0024.002", "AML.T0043.001"],
    owasp: &["ML05:2023", "ML01:2023"],
    looks_at: LooksAt::Numbers,
    reach: Reach::Act,
    honest: 0.02,
    advice: "hold the input to its grid and range in the model's file: [detect.precision] and check.range",
    weigh,
};

fn weigh(occasion: &Occasion<'_>) -> Option<Signal> {
    let off = occasion.point.off;
    (!occasion.seen.repeat && occasion.bounds.space.grid.is_some()).then(|| Signal::when(off > MAY_BE_OFF, "off", off)).flatten()
}
