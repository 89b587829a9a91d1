//! Inputs of which the model is unsure, more often than honest callers have them: extraction asks where it learns most
//! (Jagielski et al., 2020, arXiv 1909.01838), evasion ends there.

use super::{Family, LooksAt, Occasion, Reach, Signal};

pub(super) const FAMILY: Family = Family {
    name: "margin",
    atlas: &["AML.T0024.002", "AML.T0043.001"],
    owasp: &["ML05:2023"],
    looks_at: LooksAt::Anything,
    reach: Reach::Act,
    honest: 0.1,
    advice: "compare with the caller's purpose: hard cases by trade are a reason to calibrate with its traffic",
    weigh,
};

fn weigh(occasion: &Occasion<'_>) -> Option<Signal> {
    let margin = occasion.told.margin?;
    // One object that is hard to tell is one word, from whatever side it is seen.
    occasion.new.then(|| Signal::when(occasion.low(), "margin", margin)).flatten()
}
