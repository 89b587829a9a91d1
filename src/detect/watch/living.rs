//! Which calibrations some policy has. Policies are read anew when they are reloaded, before the old ones go: what holds is kept through it.

use std::sync::{Arc, Mutex, Weak};

use crate::budget::gate::locked;
use crate::digest::Digest;

/// A calibration that a policy has, for as long as it is kept.
#[derive(Debug)]
pub(super) struct Living;

/// All that there are: as many as models have versions, and those of policies that are going.
static ALL: Mutex<Vec<(Digest, Weak<Living>)>> = Mutex::new(Vec::new());

impl Living {
    /// That of a calibration by the digest of its file.
    pub(super) fn of(calibration: Digest) -> Arc<Self> {
        let mut all = locked(&ALL);
        let known = all.iter().find(|(digest, _)| *digest == calibration).and_then(|(_, living)| living.upgrade());
        known.unwrap_or_else(|| {
            all.retain(|(_, living)| living.strong_count() > 0);
            let living = Arc::new(Self);
            all.push((calibration, Arc::downgrade(&living)));
            living
        })
    }
}
