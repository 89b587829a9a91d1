//! Inputs that honest callers do not send: far from all of theirs, by distance, by kernel, by energy or by roughness.
//!
//! Only what is new is weighed: a camera that is moved sees one odd picture, and then others like it. Who asks with rows of another kind asks
//! with rows that are not alike either. Honest callers drift, and so this family tells people and does nothing.

use super::{Family, LooksAt, Occasion, Reach, Signal};

pub(super) const FAMILY: Family = Family {
    name: "outlier",
    atlas: &["AML.T0024.002", "AML.T0043.002"],
    owasp: &["ML05:2023"],
    looks_at: LooksAt::Anything,
    reach: Reach::Alert,
    honest: 0.01,
    advice: "compare the caller's inputs with what the model is for; when its data have drifted, record and calibrate anew",
    weigh,
};

fn weigh(occasion: &Occasion<'_>) -> Option<Signal> {
    if !occasion.new {
        return None;
    }
    let (bounds, point) = (&occasion.bounds.outlier, occasion.point);
    let far = distance(point) / bounds.distance;
    let odd = [
        beyond(far),
        beyond(bounds.kernel / occasion.kernel.max(f32::MIN_POSITIVE)) * 2.0,
        beyond(point.energy / bounds.energy[1]),
        beyond(bounds.energy[0] / point.energy.max(f32::MIN_POSITIVE)),
        beyond(point.rough / bounds.rough[1]),
        beyond(bounds.rough[0] / point.rough.max(f32::MIN_POSITIVE)),
    ];
    Some(Signal { odd: odd.into_iter().fold(0.0, f32::max).min(1.0), evidence: ("distance", far) })
}

/// How odd it is to be so many times at a bound: a third as much beyond is as odd as can be.
fn beyond(times: f32) -> f32 {
    ((times - 1.0) * 3.0).clamp(0.0, 1.0)
}

/// The square of the Mahalanobis distance in the projection.
pub(in crate::detect::watch) fn distance(point: &super::Point) -> f32 {
    point.z.iter().map(|number| number * number).sum()
}
