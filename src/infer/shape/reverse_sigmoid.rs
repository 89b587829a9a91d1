//! Reverse sigmoid (Lee et al. 2018, <https://arxiv.org/abs/1806.00054>): y′ ∝ y − β(σ(γ·logit y) − ½).
//!
//! A number above a half comes out lower and one below it higher, and the map folds: unequal rows can give equal ones. There are attacks
//! that undo it (D-DAE, partial Bayes), and none is needed by a thief who trains on labels. It is here because policies ask for it; the
//! [quantiser](super::quantised) is the better choice.

use crate::detect::response::Level;

use super::row::{crown, normalize};

/// β at the farthest level.
const MOST: f64 = 0.7;

/// γ.
const STEEPNESS: f64 = 0.2;

/// Probabilities are held off 0 and 1 by so much, where a logit has no end.
const EDGE: f64 = 1e-6;

/// Shapes a row of probabilities.
pub fn shape(row: &mut [f64], best: usize, level: Level) {
    let beta = MOST * level.part();
    for value in row.iter_mut() {
        let held = value.clamp(EDGE, 1.0 - EDGE);
        let logit = (held / (1.0 - held)).ln();
        *value = (*value - beta * (1.0 / (1.0 + (-STEEPNESS * logit).exp()) - 0.5)).max(0.0);
    }
    normalize(row, best);
    crown(row, best);
}
