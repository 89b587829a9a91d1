//! All that a caller asked, against all that honest callers ask: the maximum mean discrepancy in random features (Gretton et al., 2012;
//! Rahimi and Recht, 2007), without bias, when the count of first inputs comes to one of a few sizes.

use super::{Family, LooksAt, Occasion, Reach, Signal, Sums};

pub(super) const FAMILY: Family = Family {
    name: "window",
    atlas: &["AML.T0024.002", "AML.T0005.001"],
    owasp: &["ML05:2023"],
    looks_at: LooksAt::Anything,
    reach: Reach::Alert,
    honest: 0.25,
    advice: "the caller's inputs as a whole are of another kind; when its data have drifted, record and calibrate anew",
    weigh,
};

/// The counts of first inputs at which windows and coverage are looked at.
pub(in crate::detect::watch) const SIZES: [u32; 12] = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024];

/// Which of the sizes a count is.
pub(in crate::detect::watch) fn size(count: u32) -> Option<usize> {
    SIZES.iter().position(|size| *size == count)
}

fn weigh(occasion: &Occasion<'_>) -> Option<Signal> {
    let at = occasion.seen.is_first().then(|| size(occasion.sums.count)).flatten()?;
    let most = *occasion.bounds.window.get(at)?;
    let apart = apart(occasion.sums, &occasion.bounds.mean_phi);
    Signal::when(apart > most, "discrepancy", apart / most)
}

/// The unbiased square of the discrepancy between what `sums` hold and a mean.
pub(in crate::detect::watch) fn apart(sums: &Sums, mean: &[f32]) -> f32 {
    let count = sums.count as f32;
    let own: f32 = sums.phi.iter().map(|sum| sum * sum).sum();
    let both: f32 = sums.phi.iter().zip(mean).map(|(sum, mean)| sum * mean).sum();
    let theirs: f32 = mean.iter().map(|mean| mean * mean).sum();
    (own - sums.squares) / (count * (count - 1.0)).max(1.0) - 2.0 * both / count + theirs
}
