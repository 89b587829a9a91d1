//! Few answers in the place of many: the quantiser of ModelGuard-S (Tang et al. 2024), without its memory.
//!
//! ModelGuard's ordered incremental quantisation keeps a list of answers for each best class and gives the first that lies within ε (in ℓ₁)
//! of the true one, or adds the true one to the list. What is given then depends on who asked what before: the list has to be bounded, it
//! begins anew with the process, it differs between replicas, and one caller's queries choose the answers of another, who can see them in
//! it. So the list here is one that exists beforehand: the points of grids in the simplex, from coarse to fine, in order. The first whose
//! point lies within ε is given, never the nearest. It takes no memory, equal rows get equal answers for as long as the seed stays, asking
//! again tells nothing, and rows that differ in their last bits, as those of different batches do, fall on the same point unless one lies
//! on the edge of a cell.
//!
//! The edges are secret: within a step of the grid, each class rounds up from a place between 0.3 and 0.7 that the seed decides, so that
//! nobody finds the cells but by asking. An exact zero stays one. ε is in ℓ₁, at most 2.

use aws_lc_rs::digest;

use crate::detect::response::{Level, Seed};

use super::row::normalize;

/// ε at the farthest level. From 1 on the answers are all but labels.
const FARTHEST: f64 = 1.0;

/// Where rounding up begins, within a step.
const EDGES: (f64, f64) = (0.3, 0.7);

/// How far, in ℓ₁, an answer of this level may lie from the true one.
#[must_use]
pub fn farthest(level: Level) -> f64 {
    FARTHEST * level.part()
}

/// Shapes a row of probabilities.
pub fn shape(row: &mut [f64], best: usize, level: Level, seed: &Seed) {
    normalize(row, best);
    let epsilon = farthest(level);
    // On a grid as fine as the last every row lies within ε: rounding moves each of k numbers by 0.7 steps at most, the crown by
    // 1.9, and making the sum 1 again at most doubles it.
    let finest = epsilon / (2.0 * (row.len() as f64 + 3.0));
    let edges = edges(row.len(), seed);
    let mut step = epsilon;
    let mut point = Vec::with_capacity(row.len());
    loop {
        let last = step <= finest;
        place(row, best, step, &edges, &mut point);
        let distance: f64 = row.iter().zip(&point).map(|(value, point)| (value - point).abs()).sum();
        if distance <= epsilon || last {
            row.copy_from_slice(&point);
            return;
        }
        step = (step / 2.0).max(finest);
    }
}

/// The point of the grid for a row.
fn place(row: &[f64], best: usize, step: f64, edges: &[f64], point: &mut Vec<f64>) {
    point.clear();
    point.extend(row.iter().zip(edges).map(|(value, edge)| {
        let steps = value / step;
        step * if steps.fract() >= *edge { steps.ceil() } else { steps.floor() }
    }));
    let rival = point.iter().enumerate().filter(|(place, _)| *place != best).map(|(_, value)| *value).fold(0.0, f64::max);
    if rival >= point[best] {
        point[best] = rival + step / 2.0;
    }
    normalize(point, best);
}

/// Where each class rounds up.
fn edges(classes: usize, seed: &Seed) -> Vec<f64> {
    let mut edges = Vec::with_capacity(classes.next_multiple_of(16));
    let mut block = 0_u64;
    while edges.len() < classes {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"portcullis/shape/quantised/v1");
        context.update(seed.expose());
        context.update(&block.to_be_bytes());
        let bytes = context.finish();
        edges.extend(bytes.as_ref().as_chunks::<2>().0.iter().map(|pair| {
            let part = f64::from(u16::from_be_bytes(*pair)) / f64::from(u16::MAX);
            EDGES.0 + (EDGES.1 - EDGES.0) * part
        }));
        block += 1;
    }
    edges.truncate(classes);
    edges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaped(row: &[f64], level: u8, seed: u8) -> Vec<f64> {
        let mut row = row.to_vec();
        let best = super::super::row::best(&row);
        shape(&mut row, best, Level::of(level), &Seed::from_secret([seed; 16]));
        row
    }

    #[test]
    fn rows_in_one_cell_get_one_answer_and_another_seed_cuts_other_cells() {
        let row = [0.62, 0.25, 0.1, 0.03];
        let near = [0.620_001, 0.249_999, 0.1, 0.03];
        assert_eq!(shaped(&row, 8, 1), shaped(&near, 8, 1));
        assert_eq!(shaped(&row, 8, 1), shaped(&row, 8, 1));
        let cells =
            |seed| (0..200).map(|at| shaped(&[0.5 + f64::from(at) / 500.0, 0.5 - f64::from(at) / 500.0], 4, seed)).collect::<Vec<_>>();
        assert_ne!(cells(1), cells(2));
    }

    #[test]
    fn a_farther_level_has_fewer_answers() {
        let answers = |level| {
            let mut answers: Vec<String> = (0..500)
                .map(|at| {
                    let first = 0.34 + f64::from(at) / 800.0;
                    let second = (1.0 - first) * (0.5 + f64::from(at * 7 % 100) / 250.0);
                    format!("{:.6?}", shaped(&[first, second, 1.0 - first - second], level, 3))
                })
                .collect();
            answers.sort_unstable();
            answers.dedup();
            answers.len()
        };
        let (few, many) = (answers(8), answers(1));
        assert!(few * 4 < many, "{few} {many}");
        assert!(many < 500);
    }
}
