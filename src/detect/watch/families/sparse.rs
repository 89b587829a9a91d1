//! Steps of one size along one coordinate after another: finite differences and one-pixel searches (Chen et al., 2017, arXiv 1708.03999;
//! Guo et al., 2019, arXiv 1905.07121). A what-if tool goes along one coordinate and then the next; an explainer of flags looks like this, which
//! is why this family tells people and does nothing.

use super::{Family, LooksAt, Occasion, Reach, Signal};

/// Steps of the inputs' own grid up to which a change is no step.
const COARSE: f32 = 1.5;

pub(super) const FAMILY: Family = Family {
    name: "sparse",
    atlas: &["AML.T0043.001", "AML.T0024.002"],
    owasp: &["ML01:2023", "ML05:2023"],
    looks_at: LooksAt::Numbers,
    reach: Reach::Alert,
    honest: 0.2,
    advice: "ask the caller whether an explainer or a what-if tool runs; give it parameters.explain instead, which is metered",
    weigh,
};

fn weigh(occasion: &Occasion<'_>) -> Option<Signal> {
    let (cluster, change) = (occasion.seen.cluster?, occasion.seen.change?);
    // A pixel that flickers is of the inputs' own grid.
    let flicker = occasion.bounds.space.grid.is_some_and(|grid| change.size <= grid * COARSE);
    Signal::when(occasion.seen.stepped && !flicker, "cluster", cluster.size as f32)
}
