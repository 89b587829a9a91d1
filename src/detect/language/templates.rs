//! Which templates are in use, and by how many callers: the hallmark of campaigns that take a model's abilities through hundreds of accounts is one template
//! with many callers (Anthropic, "Detecting and preventing distillation attacks", 2026).
//!
//! One table for the process, of a fixed size. A template is a band of a [`Skeleton`](crate::detect::text::skeleton::Skeleton), so that prompts meet here by
//! equality although parts of them vary.
//!
//! # Forgetting
//! A bucket is chosen by a keyed hash, so nobody outside knows which prompts share one. In a full bucket a new template takes one from the credit of the
//! poorest, and its place only once nothing is left, so that templates met once push out one another and nobody else (after Misra and Gries, 1982). To have one forgotten that
//! was met n times takes seven others of its bucket that were each met as often, and n new ones after them: 8 n prompts in one of 8,192 buckets that cannot be aimed at.
//! Credit halves in a week, so that what is no longer used makes room.

use std::sync::{Mutex, PoisonError};

use crate::detect::distinct::Distinct;

/// Templates that are kept, in at most 6 MiB, which are taken as they are needed.
pub const TEMPLATES: usize = BUCKETS * WAYS;

const BUCKETS: usize = 8_192;
const WAYS: usize = 8;

/// In which credit halves, in seconds.
pub const HALF_LIFE: u64 = 7 * 86_400;

/// Callers of a template at which it begins to weigh: a team, or a tenant with a key for each of its services.
pub const FEW: f64 = 8.0;

/// Callers of a template at which it weighs 1.
pub const MANY: f64 = 256.0;

/// The table.
#[derive(Debug)]
pub struct Templates {
    buckets: Box<[Mutex<Vec<Template>>]>,
}

#[derive(Debug)]
struct Template {
    band: u64,
    callers: Distinct<64>,
    estimate: f32,
    credit: u32,
    /// Seconds since the epoch, of the last time credit was reckoned.
    seen: u32,
}

/// What is known of a template after one more prompt of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Met {
    /// How often it was met, older times counted less.
    pub times: u32,
    /// About how many different callers it had, within 13 %; few are counted exactly.
    pub callers: f64,
}

impl Met {
    /// From 0 for [`FEW`] callers to 1 for [`MANY`], by the logarithm of their number.
    #[must_use]
    pub fn weight(&self) -> f64 {
        ((self.callers / FEW).ln() / (MANY / FEW).ln()).clamp(0.0, 1.0)
    }
}

impl Default for Templates {
    fn default() -> Self {
        Self::new()
    }
}

impl Templates {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self { buckets: std::iter::repeat_with(|| Mutex::new(Vec::new())).take(BUCKETS).collect() }
    }

    /// Meets the bands of a prompt of `caller`, a keyed hash of its name, at `now`, in seconds since the epoch; the band with the most callers counts. Nothing where none of them
    /// has a place.
    pub fn meet(&self, bands: &[u64], caller: u64, now: u64) -> Option<Met> {
        let met = bands.iter().filter_map(|band| self.one(*band, caller, now));
        met.max_by(|one, other| one.callers.total_cmp(&other.callers).then(one.times.cmp(&other.times)))
    }

    fn one(&self, band: u64, caller: u64, now: u64) -> Option<Met> {
        let now = u32::try_from(now).unwrap_or(u32::MAX);
        // Bands are keyed hashes: their upper bits are as good as any.
        let bucket = &self.buckets[(band >> 32) as usize % BUCKETS];
        // A bucket is whole after every statement below, so one that another thread died in may be used.
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(template) = bucket.iter_mut().find(|template| template.band == band) {
            template.reckon(now);
            template.credit = template.credit.saturating_add(1);
            if template.callers.see(caller) {
                template.estimate = template.callers.estimate() as f32;
            }
            return Some(template.met());
        }
        if bucket.len() == WAYS {
            bucket.iter_mut().for_each(|template| template.reckon(now));
            let poorest = (0..WAYS).min_by_key(|at| bucket[*at].credit)?;
            bucket[poorest].credit = bucket[poorest].credit.saturating_sub(1);
            if bucket[poorest].credit > 0 {
                return None;
            }
            bucket.swap_remove(poorest);
        }
        let mut template = Template { band, callers: Distinct::new(), estimate: 1.0, credit: 1, seen: now };
        template.callers.see(caller);
        let met = template.met();
        bucket.reserve_exact(1);
        bucket.push(template);
        Some(met)
    }
}

impl Template {
    fn met(&self) -> Met {
        Met { times: self.credit, callers: self.estimate.into() }
    }

    fn reckon(&mut self, now: u32) {
        let halvings = u64::from(now.saturating_sub(self.seen)) / HALF_LIFE;
        if halvings > 0 {
            self.credit = self.credit.checked_shr(halvings as u32).unwrap_or(0);
            self.seen = self.seen.saturating_add((halvings * HALF_LIFE) as u32);
        }
    }
}

#[cfg(test)]
mod tests;
