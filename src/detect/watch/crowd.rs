//! How the callers of a model stand beside each other, so that among many of them nobody is acted against by chance alone.
//!
//! Over all callers of a model the rate of false discoveries among those that are acted against is kept (e-BH: Wang and Ramdas, 2022,
//! arXiv 2009.02824). That takes no more than to know how many callers have at least as much evidence against them.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::families::COUNT;
use super::wealth::Wealth;

/// The part of callers acted against who may be honest.
const FALSE_DISCOVERIES: f32 = 0.1;

/// Whole natural logarithms of wealth that are told apart.
const STEPS: usize = 62;

/// Callers of one model, counted by their wealth.
#[derive(Debug)]
pub(super) struct Crowd {
    known: AtomicUsize,
    /// How many have at least so much.
    rich: [AtomicUsize; STEPS],
}

/// Where a caller was counted last; nowhere at first.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counted {
    /// In which crowd: that of policies that are no longer in force counts no more.
    crowd: usize,
    step: usize,
}

impl Default for Crowd {
    fn default() -> Self {
        Self { known: AtomicUsize::new(0), rich: std::array::from_fn(|_| AtomicUsize::new(0)) }
    }
}

impl Crowd {
    /// Counts a caller whose richest family has `wealth`, and tells whether it is among the discoveries. The mean over all families is an
    /// e-value where each is, and is at least the richest over their count.
    pub(super) fn discovers(&self, counted: &mut Counted, wealth: Wealth) -> bool {
        let value = (wealth.0 - (COUNT as f32).ln()).max(0.0);
        let step = (value as usize).min(STEPS - 1);
        let this = std::ptr::from_ref(self).addr();
        if counted.crowd != this {
            *counted = Counted { crowd: this, step: 0 };
            self.known.fetch_add(1, Ordering::Relaxed);
        }
        while counted.step < step {
            counted.step += 1;
            self.rich[counted.step].fetch_add(1, Ordering::Relaxed);
        }
        // A caller who once was as rich is still one of them.
        let as_rich = self.rich[step].load(Ordering::Relaxed).max(1);
        value >= (self.known.load(Ordering::Relaxed).max(1) as f32 / (as_rich as f32 * FALSE_DISCOVERIES)).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn among_more_callers_more_is_demanded_and_less_where_many_are_as_rich() {
        let crowd = Crowd::default();
        let rich = Wealth((COUNT as f32 * 1_001.0).ln());
        assert!(crowd.discovers(&mut Counted::default(), rich));
        for _ in 0..99 {
            crowd.discovers(&mut Counted::default(), Wealth(0.0));
        }
        let mut last = Counted::default();
        // 101 of whom two are as rich.
        assert!(crowd.discovers(&mut last, rich));
        let alone = Crowd::default();
        for _ in 0..100 {
            alone.discovers(&mut Counted::default(), Wealth(0.0));
        }
        assert!(!alone.discovers(&mut Counted::default(), rich), "one of 101 needs 1,010");
    }

    #[test]
    fn a_caller_is_counted_once() {
        let (crowd, mut counted) = (Crowd::default(), Counted::default());
        for _ in 0..10 {
            crowd.discovers(&mut counted, Wealth(8.0));
        }
        assert_eq!(crowd.known.load(Ordering::Relaxed), 1);
        assert_eq!(crowd.rich[5].load(Ordering::Relaxed), 1);
    }
}
