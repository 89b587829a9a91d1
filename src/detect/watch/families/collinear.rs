//! Inputs on one line, step after step: searches along a direction, by halving or by walking (Tramèr et al., 2016; Park et al., 2025,
//! arXiv 2503.02986). Sweeps of one coordinate or two are not lines but what `sparse` counts.

use super::{Family, LooksAt, Occasion, Reach, Signal};

pub(super) const FAMILY: Family = Family {
    name: "collinear",
    atlas: &["AML.T0043.001", "AML.T0024.002"],
    owasp: &["ML01:2023", "ML05:2023"],
    looks_at: LooksAt::Numbers,
    reach: Reach::Act,
    honest: 0.03,
    advice: "look at the caller's last inputs in order; a search for a boundary walks along lines",
    weigh,
};

fn weigh(occasion: &Occasion<'_>) -> Option<Signal> {
    let line = occasion.seen.line?;
    Signal::when(occasion.seen.on_a_line(), "cosine", line)
}
