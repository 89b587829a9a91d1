//! Texts that differ from another of the caller's in a word or three, in a chain that is longer than people make them, at which the model says another
//! class or hardly knows which: searches for the words that change its mind (TextFooler, Jin et al., 2020, arXiv 1907.11932; TextAttack, Morris et
//! al., 2020, arXiv 2005.05909).
//!
//! Texts that stand alone are no opinion: whoever sends others in between does not pay for it with what was seen.

use super::{Family, LooksAt, Occasion, Reach, Signal};

pub(super) const FAMILY: Family = Family {
    name: "substitution",
    atlas: &["AML.T0043.001", "AML.T0015"],
    owasp: &["ML01:2023"],
    looks_at: LooksAt::Texts,
    reach: Reach::Act,
    honest: 0.1,
    advice: "look for one text of the caller in many wordings; the last of them is what the attack wanted. Templates and explainers make chains \
             too: record and calibrate with their traffic",
    weigh,
};

fn weigh(occasion: &Occasion<'_>) -> Option<Signal> {
    let link = occasion.link?;
    Some(Signal { odd: link.weight?, evidence: ("links", f32::from(link.links)) })
}
