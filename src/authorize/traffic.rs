//! Versions of one model, side by side: which of them answers a request, and which only listen.
//!
//! Several files may carry the same name and other versions. A request that names a version gets that one; of the others
//! each version gets its share. Which one is drawn from the randomness of the request's own id, or, where the file says
//! `sticky`, from the caller's name: by rendezvous hashing (Thaler and Ravishankar, 1996) with weights, so that a caller
//! stays where it is over restarts, on every node, and when shares change moves only towards what has grown. The hash is
//! keyed with the model's name and with no secret: a caller that may use a model may name any version of it anyway.

use std::cmp::Ordering;
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;
use uuid::Uuid;

use super::Model;
use crate::digest::Hasher;
use crate::mistake::Mistake;
use crate::trail::Which;

/// The largest `share`.
pub const MAX_SHARE: u32 = 1_000;

/// The share of the one version of a name that says none.
pub const DEFAULT_SHARE: u32 = 100;

/// How many versions of one name there may be, shadows among them: each is loaded, and each is a series of metrics.
pub const MAX_VERSIONS: usize = 16;

/// How far an answer of a shadow may be off in any value and still agree, unless the file says otherwise.
pub const DEFAULT_TOLERANCE: f64 = 0.001;

/// `[traffic]` of a model's file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrafficConfig {
    /// The weight of this version among those of its name, 0 to [`MAX_SHARE`]; [`DEFAULT_SHARE`] for the one that says none.
    pub share: Option<Spanned<u32>>,
    /// Whether a caller keeps its version; the same in all files of a name.
    #[serde(default)]
    pub sticky: bool,
    /// Whether this version never answers, and is asked the same as those that do.
    pub shadow: Option<Spanned<bool>>,
    /// A shadow's: the share of calls that are copied to it, over 0 and up to 1; all of them.
    pub sample: Option<Spanned<f64>>,
    /// A shadow's: how far a value may be off; [`DEFAULT_TOLERANCE`].
    pub tolerance: Option<Spanned<f64>>,
    /// A shadow's: what of its answers is compared; values.
    pub compare: Option<Spanned<Compare>>,
}

/// What of two answers is compared. Tensors of other types than floating point are compared bit by bit, whatever is said here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compare {
    /// Every value, within the tolerance.
    #[default]
    Values,
    /// Where the largest value of each row stands, the row being the last dimension.
    Labels,
}

/// What a version is there for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Traffic {
    /// It answers.
    Answers {
        /// Its weight, [`DEFAULT_SHARE`] where its file says none.
        share: u32,
        /// Whether a caller keeps its version.
        sticky: bool,
    },
    /// It is asked, and nobody hears the answer.
    Shadows(Shadowing),
}

/// How the answers of a shadow are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shadowing {
    /// The share of calls that are copied.
    pub sample: f64,
    /// How far a value may be off.
    pub tolerance: f64,
    /// What is compared.
    pub compare: Compare,
}

impl Default for Traffic {
    fn default() -> Self {
        Self::Answers { share: DEFAULT_SHARE, sticky: false }
    }
}

impl TrafficConfig {
    /// What the table comes to; what is wrong with it is added to `mistakes`.
    #[must_use]
    pub fn resolve(&self, mistakes: &mut Vec<Mistake>) -> Traffic {
        let mut wrong = |at: std::ops::Range<usize>, what: &str| mistakes.push(Mistake::at(at, what));
        if let Some(share) = self.share.as_ref().filter(|share| *share.get_ref() > MAX_SHARE) {
            wrong(share.span(), &format!("`share` is a weight from 0 to {MAX_SHARE}"));
        }
        if let Some(sample) = self.sample.as_ref().filter(|sample| !(*sample.get_ref() > 0.0 && *sample.get_ref() <= 1.0)) {
            wrong(sample.span(), "`sample` is a share of calls: over 0.0 and up to 1.0");
        }
        if let Some(tolerance) =
            self.tolerance.as_ref().filter(|tolerance| !(tolerance.get_ref().is_finite() && *tolerance.get_ref() >= 0.0))
        {
            wrong(tolerance.span(), "`tolerance` is how far a value may be off: 0.0 or more");
        }
        if let Some(shadow) = self.shadow.as_ref().filter(|shadow| *shadow.get_ref()) {
            if self.share.is_some() || self.sticky {
                wrong(shadow.span(), "a version with `shadow = true` never answers: leave out `share` and `sticky`");
            }
            return Traffic::Shadows(Shadowing {
                sample: self.sample.as_ref().map_or(1.0, |sample| *sample.get_ref()),
                tolerance: self.tolerance.as_ref().map_or(DEFAULT_TOLERANCE, |tolerance| *tolerance.get_ref()),
                compare: self.compare.as_ref().map(|compare| *compare.get_ref()).unwrap_or_default(),
            });
        }
        let of_shadows =
            [self.sample.as_ref().map(Spanned::span), self.tolerance.as_ref().map(Spanned::span), self.compare.as_ref().map(Spanned::span)];
        if let Some(span) = of_shadows.into_iter().flatten().next() {
            wrong(span, "`sample`, `tolerance` and `compare` are a shadow's: add `shadow = true`, or leave them out");
        }
        Traffic::Answers { share: self.share.as_ref().map_or(DEFAULT_SHARE, |share| *share.get_ref()), sticky: self.sticky }
    }
}

/// The order of versions: numbers in them as numbers, so that `10` comes after `9` and `1.10` after `1.9`; all else as text.
#[must_use]
pub fn by_version(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (one, other) = (piece(&mut a), piece(&mut b));
        let numbers = one.starts_with(|c: char| c.is_ascii_digit()) && other.starts_with(|c: char| c.is_ascii_digit());
        let order = if numbers {
            let (one, other) = (one.trim_start_matches('0'), other.trim_start_matches('0'));
            one.len().cmp(&other.len()).then(one.cmp(other))
        } else {
            one.cmp(other)
        };
        if order.is_ne() || one.is_empty() {
            return order;
        }
    }
}

/// Takes the digits, or what is no digit, off the front.
fn piece<'a>(text: &mut &'a str) -> &'a str {
    let digit = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != digit).unwrap_or(text.len());
    let (piece, rest) = text.split_at(end);
    *text = rest;
    piece
}

/// The versions of one name.
#[derive(Debug)]
pub(super) struct Versions<T> {
    /// Those that answer, in the order of their versions; never empty.
    answering: Vec<Arc<Model<T>>>,
    shadows: Vec<Arc<Model<T>>>,
    /// The sum of shares.
    total: u64,
    sticky: bool,
}

impl<T> Versions<T> {
    /// Those of one name; `None` if none of them answers.
    pub(super) fn new(models: Vec<Arc<Model<T>>>) -> Option<Self> {
        let (mut answering, shadows): (Vec<_>, Vec<_>) =
            models.into_iter().partition(|model| matches!(model.traffic, Traffic::Answers { .. }));
        answering.sort_by(|a, b| by_version(&a.which.version, &b.which.version));
        let total = answering.iter().map(|model| u64::from(share(model))).sum();
        let sticky = answering.iter().any(|model| matches!(model.traffic, Traffic::Answers { sticky: true, .. }));
        (!answering.is_empty()).then_some(Self { answering, shadows, total, sticky })
    }

    /// All of them, shadows last.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Model<T>>> {
        self.answering.iter().chain(&self.shadows)
    }

    /// Those that answer, in the order of their versions.
    pub(super) fn answering(&self) -> impl Iterator<Item = &Arc<Which>> {
        self.answering.iter().map(|model| &model.which)
    }

    /// The one with the largest share, of equals the last: it speaks for the name where no version is asked to answer.
    pub(super) fn foremost(&self) -> &Arc<Model<T>> {
        self.answering.iter().max_by_key(|model| share(model)).unwrap_or(&self.answering[0])
    }

    /// The one that a request names. A shadow cannot be named.
    pub(super) fn named(&self, version: &str) -> Option<&Arc<Model<T>>> {
        self.answering.iter().find(|model| *model.which.version == *version)
    }

    /// The one that answers the request `id` of `caller`.
    pub(super) fn drawn(&self, id: Uuid, caller: &str) -> &Arc<Model<T>> {
        if self.answering.len() == 1 || self.total == 0 {
            return self.foremost();
        }
        if self.sticky {
            let weighed = self.answering.iter().filter(|model| share(model) > 0);
            let best = weighed.max_by(|a, b| claim(a, caller).total_cmp(&claim(b, caller)));
            return best.unwrap_or_else(|| self.foremost());
        }
        // The low 62 bits of a UUIDv7 are random (RFC 9562 §5.7).
        let random = id.as_u128() & ((1 << 62) - 1);
        let mut point = ((random * u128::from(self.total)) >> 62) as u64;
        for model in &self.answering {
            let share = u64::from(share(model));
            if point < share {
                return model;
            }
            point -= share;
        }
        self.foremost()
    }
}

fn share<T>(model: &Model<T>) -> u32 {
    match model.traffic {
        Traffic::Answers { share, .. } => share,
        Traffic::Shadows(_) => 0,
    }
}

/// How strongly a version claims a caller: the logarithm of a number between 0 and 1 that hangs on both, over its share.
fn claim<T>(model: &Model<T>, caller: &str) -> f64 {
    let mut hasher = Hasher::new();
    hasher.update(b"portcullis/traffic/v1");
    for part in [&*model.which.name, &*model.which.version, caller] {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    let [a, b, c, d, e, f, g, h, ..] = hasher.finish().0;
    let number = (u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 11) as f64 + 0.5;
    (number / (1_u64 << 53) as f64).ln() / f64::from(share(model))
}

#[cfg(test)]
mod tests;
