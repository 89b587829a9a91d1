//! A version in the shadow: it is asked what another has answered already, and its answer is compared and forgotten.
//!
//! It stands outside the way of the request. A comparison begins once the answer is ready, in a task of its own, with its own
//! deadline; there are never more than [`AT_ONCE`] of one shadow, and a call that comes when all of them run is counted as skipped.
//! Whatever becomes of it, the caller does not notice.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use uuid::Uuid;

use super::model::{self, Model};
use crate::authorize::traffic::{Compare, Shadowing};
use crate::trail::Who;
use crate::wire::tensor::{Datatype, Tensor};

/// How many comparisons of one shadow may run or wait for its engine at once. It bounds what they hold in memory, too: each the inputs of
/// one request, its answer, and the shadow's.
pub const AT_ONCE: usize = 8;

/// How long a shadow may take for one call.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Answers of more bytes are compared on a thread that may take its time.
const COMPARED_IN_PLACE: usize = 256 << 10;

/// How a comparison ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The same, as far as the policy asks.
    Agree,
    /// Something else.
    Differ,
    /// The shadow gave no answer in time, or none at all.
    Failed,
    /// Too many comparisons ran already.
    Skipped,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 4] = [Self::Agree, Self::Differ, Self::Failed, Self::Skipped];

    /// The word for it in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agree => "agree",
            Self::Differ => "differ",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// What a shadow has come to so far. It outlives reloads that leave the shadow in its place.
#[derive(Debug)]
pub struct Tally {
    outcomes: [AtomicU64; Outcome::ALL.len()],
    /// The bits of the largest difference: of numbers that are not negative they are ordered as the numbers are.
    largest: AtomicU64,
    room: Arc<Semaphore>,
}

impl Default for Tally {
    fn default() -> Self {
        Self { outcomes: Default::default(), largest: AtomicU64::new(0), room: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Tally {
    /// How many comparisons ended so.
    #[must_use]
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize].load(Ordering::Relaxed)
    }

    /// The largest finite difference between two values that were compared.
    #[must_use]
    pub fn largest(&self) -> f64 {
        f64::from_bits(self.largest.load(Ordering::Relaxed))
    }

    fn ended(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Runs a comparison of `given` with what `ask` brings by the deadline it is handed, if there is room.
    fn follow<R>(self: &Arc<Self>, terms: Shadowing, given: Arc<[Tensor]>, ask: impl FnOnce(Instant) -> R)
    where
        R: Future<Output = Result<Vec<Tensor>, model::Error>> + Send + 'static,
    {
        let Ok(permit) = self.room.clone().try_acquire_owned() else { return self.ended(Outcome::Skipped) };
        let deadline = Instant::now() + DEADLINE;
        let (tally, asked) = (self.clone(), ask(deadline));
        tokio::spawn(async move {
            let _permit = permit;
            // An engine keeps its deadline itself; this one holds where it does not.
            let Ok(Ok(theirs)) = tokio::time::timeout_at(deadline.into(), asked).await else { return tally.ended(Outcome::Failed) };
            let bytes: usize = given.iter().map(|tensor| tensor.data.len()).sum();
            let compared = if bytes > COMPARED_IN_PLACE {
                tokio::task::spawn_blocking(move || compared(&given, &theirs, terms)).await.ok()
            } else {
                Some(compared(&given, &theirs, terms))
            };
            let Some((agree, largest)) = compared else { return tally.ended(Outcome::Failed) };
            tally.largest.fetch_max(largest.to_bits(), Ordering::Relaxed);
            tally.ended(if agree { Outcome::Agree } else { Outcome::Differ });
        });
    }
}

/// One shadow of a name.
#[derive(Debug)]
pub struct Shadow {
    /// Who is asked.
    pub model: Arc<Model>,
    /// How it is compared.
    pub terms: Shadowing,
    /// What came of it.
    pub tally: Arc<Tally>,
}

/// A call that will be followed by shadows once it is answered.
pub(super) struct Copied {
    shadows: Vec<Arc<Shadow>>,
    inputs: Vec<Tensor>,
    who: Arc<Who>,
}

/// In whose name shadows are asked: no caller's, so that they take nobody's turn, but of the tenant, whose calls share no run with others'.
const CALLER: &str = "shadow";

/// The inputs of the request `id`, where shadows take a copy of it; the copy shares the bytes.
pub(super) fn copied(shadows: &[Arc<Shadow>], id: Uuid, who: &Who, inputs: &[Tensor]) -> Option<Copied> {
    let shadows: Vec<_> = shadows.iter().filter(|shadow| sampled(id, shadow.terms.sample)).cloned().collect();
    let asks = || Who { caller: CALLER.into(), tenant: who.tenant.clone(), tier: "".into(), method: who.method };
    (!shadows.is_empty()).then(|| Copied { shadows, inputs: inputs.to_vec(), who: Arc::new(asks()) })
}

/// By the lowest 32 bits of the id, which are random and have no weight in the draw between versions.
fn sampled(id: Uuid, sample: f64) -> bool {
    f64::from(id.as_u128() as u32) < sample * 4_294_967_296.0
}

impl Copied {
    /// Asks the shadows for the same outputs, and compares what they say with what was `given`.
    pub(super) fn follow(self, given: &Arc<[Tensor]>, outputs: &Arc<[String]>) {
        for shadow in self.shadows {
            let (inputs, outputs, model, who) = (self.inputs.clone(), outputs.clone(), shadow.model.clone(), self.who.clone());
            shadow.tally.follow(shadow.terms, given.clone(), |deadline| async move { model.run(inputs, &outputs, &who, deadline).await });
        }
    }
}

/// Whether two answers agree, and the largest finite difference between their values.
fn compared(given: &[Tensor], theirs: &[Tensor], terms: Shadowing) -> (bool, f64) {
    let theirs: HashMap<&str, &Tensor> = theirs.iter().map(|tensor| (&*tensor.name, tensor)).collect();
    let (mut agree, mut largest) = (theirs.len() == given.len(), 0.0_f64);
    for one in given {
        let Some(other) = theirs.get(&*one.name).filter(|other| other.datatype == one.datatype && other.shape == one.shape) else {
            agree = false;
            continue;
        };
        let (Some(values), Some(others)) = (floats(one), floats(other)) else {
            agree &= one.data == other.data;
            continue;
        };
        let mut within = true;
        for (a, b) in values.all().zip(others.all()) {
            let off = (a - b).abs();
            // Two infinities of one sign are the same, as are two that are no number; their difference is none.
            let same = a == b || a.is_nan() && b.is_nan();
            within &= same || off <= terms.tolerance;
            largest = largest.max(if off.is_finite() { off } else { 0.0 });
        }
        agree &= match terms.compare {
            Compare::Values => within,
            Compare::Labels => {
                let classes = one.shape.last().and_then(|classes| usize::try_from(*classes).ok()).unwrap_or(1).max(1);
                values.labels(classes).eq(others.labels(classes))
            }
        };
    }
    (agree, largest)
}

/// The values of a floating tensor, read one by one: a copy of all of them would be several times as large as the tensor.
#[derive(Clone, Copy)]
struct Floats<'t> {
    data: &'t [u8],
    width: usize,
    read: fn(&[u8]) -> f64,
}

impl<'t> Floats<'t> {
    fn all(self) -> impl Iterator<Item = f64> + 't {
        self.data.chunks_exact(self.width).map(self.read)
    }

    /// The place of the largest value of each row of so many; of equals the first.
    fn labels(self, classes: usize) -> impl Iterator<Item = Option<usize>> + 't {
        self.data.chunks(self.width.saturating_mul(classes)).map(move |row| {
            let values = Self { data: row, ..self }.all().enumerate();
            values.reduce(|best, next| if next.1.total_cmp(&best.1).is_gt() { next } else { best }).map(|(place, _)| place)
        })
    }
}

/// The values of a tensor, if they are of a floating type.
fn floats(tensor: &Tensor) -> Option<Floats<'_>> {
    fn fixed<const W: usize>(bytes: &[u8]) -> [u8; W] {
        bytes.first_chunk().copied().unwrap_or([0; W])
    }
    let read: fn(&[u8]) -> f64 = match tensor.datatype {
        Datatype::Fp32 => |bytes| f64::from(f32::from_le_bytes(fixed(bytes))),
        Datatype::Fp64 => |bytes| f64::from_le_bytes(fixed(bytes)),
        Datatype::Fp16 => |bytes| half::f16::from_le_bytes(fixed(bytes)).to_f64(),
        Datatype::Bf16 => |bytes| half::bf16::from_le_bytes(fixed(bytes)).to_f64(),
        _ => return None,
    };
    Some(Floats { data: &tensor.data, width: tensor.datatype.width()?, read })
}

#[cfg(test)]
mod tests;
