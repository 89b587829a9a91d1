//! Inputs of which the model is unsure, more often than honest callers have them: extraction asks where it learns most
//! (Jagielski et al., 2020, arXiv 1909.01838), evasion ends there.

use super::{Family, Occasion, Reach, Signal};

pub(super) const FAMILY: Family = Family {
    name: "margin",
    atlas: &["AML.T0024.002", "AML.T0043.001"],
    owasp: &["ML05:2023"],
    reach: Reach::Act,
    advice: "compare with the caller's purpose: hard cases by trade are a reason to calibrate with its traffic",
    weigh,
};

fn weigh(occasion: &Occasion<'_>) -> Option<Signal> {
    let margin = occasion.told.margin?;
    occasion.seen.is_first().then(|| Signal::when(occasion.low(), "margin", margin)).flatten()
}
