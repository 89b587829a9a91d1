//! Many inputs close together of which one has another label than its neighbour, or hardly any margin: somebody is at a boundary.
//!
//! Closeness alone is a video, a retry, a sweep; it counts only with the label's word, and only in clusters larger than honest ones
//! with that word are.

use super::{Family, LooksAt, Occasion, Reach, Signal};

pub(super) const FAMILY: Family = Family {
    name: "flip",
    atlas: &["AML.T0043.001", "AML.T0015", "AML.T0024.000"],
    owasp: &["ML01:2023", "ML04:2023"],
    looks_at: LooksAt::Anything,
    reach: Reach::Act,
    honest: 0.1,
    advice: "look for one input of the caller in many variants; what it is changed into is what the attack wants",
    weigh,
};

fn weigh(occasion: &Occasion<'_>) -> Option<Signal> {
    let cluster = occasion.seen.cluster?;
    // One object that is hard to tell is one word, however often it is asked about: clusters are asked whenever they have doubled.
    let doubled =
        cluster.size.is_multiple_of(occasion.bounds.clusters.flip) && (cluster.size / occasion.bounds.clusters.flip).is_power_of_two();
    doubled.then(|| Signal::when(cluster.flips * 4 > cluster.size, "cluster", cluster.size as f32)).flatten()
}
