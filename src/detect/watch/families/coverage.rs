//! How much of the input space a caller has been to, for as much as it asked: too fast is a sweep, too slow is one point from all sides
//! (Dubiński et al., 2023, arXiv 2310.08571).

use super::window::size;
use super::{Family, LooksAt, Occasion, Reach, Signal};

pub(super) const FAMILY: Family = Family {
    name: "coverage",
    atlas: &["AML.T0024.002"],
    owasp: &["ML05:2023"],
    looks_at: LooksAt::Anything,
    reach: Reach::Alert,
    honest: 0.25,
    advice: "compare how widely the caller asks with what it needs the model for",
    weigh,
};

fn weigh(occasion: &Occasion<'_>) -> Option<Signal> {
    let at = occasion.seen.is_first().then(|| size(occasion.sums.count)).flatten()?;
    let [least, most] = *occasion.bounds.coverage.get(at)?;
    let buckets = occasion.sums.buckets as f32;
    Signal::when(buckets < least || buckets > most, "buckets", buckets)
}
