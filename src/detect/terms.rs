//! What a policy says of detection, and what is looked for in a model's requests that comes of it.

use std::ops::Range;
use std::sync::Arc;

use serde::Deserialize;

use super::language::callers;
use super::language::guard::{self, Guards};
use super::recording::{self, Recording};
use super::watch::{self, Watch};
use super::{DEFAULT_MODE, Family, cohorts, language, parameters, precision, vectors};
use crate::check::Contract;
use crate::mistake::Mistake;
use crate::mode::Mode;
use crate::wire::openai::embeddings::VECTORS;

/// The `[detect]` table.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The mode of all families that say none of their own; [`DEFAULT_MODE`] where it is left out.
    pub mode: Option<Mode>,
    /// What may be asked of language models.
    pub parameters: parameters::Config,
    /// How fine the numbers of tensors may be.
    pub precision: precision::Config,
    /// Who computes logits by biases.
    pub bias: callers::BiasConfig,
    /// Who builds training sets.
    pub distillation: callers::WindowConfig,
    /// Who asks for what was learned by heart.
    pub probing: callers::WindowConfig,
    /// What comes out of instructions.
    pub leak: guard::Config,
    /// What is done about a caller whose rows are odd.
    pub ladder: watch::Config,
    /// How much of the model one caller may learn.
    pub exposure: watch::Exposing,
    /// How much of the space of embeddings one caller may see before they become noisy.
    pub vectors: vectors::Config,
    /// What joins callers whose evidence and exposure add up.
    pub cohorts: cohorts::Kinds,
    /// How alike callers of language models must be to be joined by that.
    pub alike: language::cohorts::Config,
    /// Where what is asked is written down, to be calibrated from.
    pub recording: Option<recording::Config>,
}

/// The families that weigh a model's requests, those that are off left out.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    pub(super) families: Arc<[(Mode, Box<dyn Family>)]>,
    pub(super) watch: Option<Arc<Watch>>,
    pub(super) cohorts: cohorts::Kinds,
    /// What callers ask is to be acted upon, and nobody knows what honest ones do.
    pub(super) uncalibrated: bool,
    pub(super) callers: callers::Rules,
    /// Of embeddings; none where it gives none.
    pub(super) vectors: Option<Mode>,
    pub(super) guards: Option<Arc<Guards>>,
    pub(super) recording: Option<Recording>,
}

impl Terms {
    /// Where what is asked is written down.
    #[must_use]
    pub fn recording(&self) -> Option<&Recording> {
        self.recording.as_ref()
    }

    /// Has what is asked written down.
    pub fn record(&mut self, recording: Recording) {
        self.recording = Some(recording);
    }

    /// Whether each row that callers ask about is learned from.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.watch.is_some()
    }

    /// Whether what callers ask is to be acted upon and cannot be, for want of a calibration.
    #[must_use]
    pub fn is_uncalibrated(&self) -> bool {
        self.uncalibrated
    }
}

impl Config {
    /// Whether answers must be read: for what must not pass, or for what they tell of the model, where that has a budget. `speaks` says whether the
    /// model is one of language: what the mode of `[detect]` says of leaks holds for no other.
    #[must_use]
    pub fn withholds(&self, speaks: bool) -> bool {
        let leak = self.leak.mode.or(speaks.then_some(self.mode.unwrap_or(DEFAULT_MODE)));
        leak == Some(Mode::Enforce) || self.exposure.has_budgets()
    }

    /// The inputs whose numbers are to lie on a grid, each with the place of that in the file, and the mode of it.
    #[must_use]
    pub fn graded(&self) -> (Mode, Vec<(&str, Range<usize>)>) {
        let mode = self.precision.mode.or(self.mode).unwrap_or(DEFAULT_MODE);
        (mode, self.precision.inputs.iter().map(|(name, grid)| (&**name, grid.span())).collect())
    }

    /// Turns the table and the calibration beside the model into terms; what is wrong with them is added to `mistakes`.
    pub fn compile(&self, calibration: Option<&str>, contract: Option<&Contract>, mistakes: &mut Vec<Mistake>) -> Terms {
        let mode = self.mode.unwrap_or(DEFAULT_MODE);
        let or = |own: Option<Mode>| own.unwrap_or(mode);
        let families: [(Option<Mode>, Box<dyn Family>); 2] = [
            (self.parameters.mode, Box::new(self.parameters.compile(mistakes))),
            (self.precision.mode, Box::new(self.precision.compile(contract, mistakes))),
        ];
        let families = families.into_iter().map(|(own, family)| (or(own), family));
        let callers = callers::Rules {
            bias: or(self.bias.mode),
            budget: self.bias.budget,
            distillation: or(self.distillation.mode),
            probing: or(self.probing.mode),
            kinds: self.cohorts,
            alike: self.alike.compile(mistakes),
        };
        let embeds = contract.is_some_and(|contract| contract.outputs.iter().any(|output| output.name == VECTORS));
        let vectors = embeds.then(|| or(self.vectors.mode));
        let guards = self.leak.compile(mode, mistakes).map(Arc::new);
        let calibration = calibration.filter(|_| mode != Mode::Off);
        let enforced = mode == Mode::Enforce;
        // Of a model elsewhere nobody knows whether it takes numbers, unless its policy sets budgets for what it tells of them.
        let uncalibrated = enforced && calibration.is_none() && (contract.is_some() || self.exposure.has_budgets());
        let watch = self.ladder.compile(&self.exposure, calibration, contract, enforced, mistakes);
        let families = families.filter(|(mode, _)| *mode != Mode::Off).collect();
        Terms { families, watch: watch.map(Arc::new), cohorts: self.cohorts, uncalibrated, callers, vectors, guards, recording: None }
    }
}
