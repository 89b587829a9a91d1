//! A student that bends: kernel ridge regression on the rows that are [kept](super::kept) of a transcript.
//!
//! Its kernel is the arc-cosine of first order (Cho and Saul 2009), with a constant: what a network of one layer of rectified units tends to, the
//! more units it has. It is solved and not trained, so equal rows give equal copies, and it takes some milliseconds for a hundred rows and a
//! tenth of a second for [`MOST_ROWS`](super::kept::MOST_ROWS); too long for a request, which is why it is asked for apart from the
//! [meter's](super::meter) other students.

use super::holdout::{FEATURES, Holdout, MOST_CLASSES};
use super::kept::{Kept, best};

/// Ridges, as parts of the mean of the kernel's diagonal: answers that tell more ask for the lesser; the better counts.
const RIDGES: [f32; 2] = [1e-3, 1e-1];

/// The mean square of a row's length, beside the constant's 1.
const SQUARE: f32 = FEATURES as f32;

/// Fewer rows than that are no transcript.
const FEWEST_ROWS: usize = 2;

/// The part of the holdout on which the better copy agrees with the model; 0 for fewer than two rows.
#[must_use]
pub(super) fn agreement(holdout: &Holdout, kept: &Kept) -> f32 {
    let (rows, targets): (Vec<[f32; FEATURES]>, Vec<[f32; MOST_CLASSES]>) = kept.rows().unzip();
    agreement_of(holdout, &rows, &targets)
}

/// The same of rows as they are.
pub(super) fn agreement_of(holdout: &Holdout, rows: &[[f32; FEATURES]], targets: &[[f32; MOST_CLASSES]]) -> f32 {
    let count = rows.len();
    if count < FEWEST_ROWS {
        return 0.0;
    }
    let middle: [f32; MOST_CLASSES] = std::array::from_fn(|slot| targets.iter().map(|row| row[slot]).sum::<f32>() / count as f32);
    let points: Vec<Scaled> = rows.iter().map(|row| Scaled::of(row, holdout.spread())).collect();
    // The lower triangle, in rows that are as long as the matrix is wide.
    let mut square = vec![0.0; count * count];
    for (at, point) in points.iter().enumerate() {
        square[at * count..=at * count + at].iter_mut().zip(&points).for_each(|(place, other)| *place = point.kernel(other));
    }
    let trace = (0..count).map(|at| square[at * (count + 1)]).sum::<f32>() / count as f32;
    let copies: Vec<Vec<f32>> =
        RIDGES.iter().filter_map(|ridge| weights(&square, targets, &middle, ridge * trace, holdout.width())).collect();
    let mut right = vec![0_u32; copies.len()];
    let mut all = 0;
    let mut near = vec![0.0; count];
    for (row, slot) in holdout.rows().iter().zip(holdout.slots()) {
        let Some(slot) = slot else { continue };
        let point = Scaled::of(row, holdout.spread());
        near.iter_mut().zip(&points).for_each(|(near, other)| *near = point.kernel(other));
        all += 1;
        for (right, weights) in right.iter_mut().zip(&copies) {
            let mut scores = [f32::NEG_INFINITY; MOST_CLASSES];
            let of_slots = scores.iter_mut().zip(&middle).zip(weights.chunks_exact(count));
            of_slots.for_each(|((score, middle), weights)| *score = middle + dot(&near, weights));
            *right += u32::from(best(&scores) == usize::from(*slot));
        }
    }
    let most = right.into_iter().max().unwrap_or(0);
    if all == 0 { 0.0 } else { most as f32 / all as f32 }
}

/// A row in the scale that the kernel asks for.
struct Scaled {
    numbers: [f32; FEATURES],
    /// With the constant.
    length: f32,
}

impl Scaled {
    fn of(row: &[f32; FEATURES], spread: f32) -> Self {
        let scale = (SQUARE / spread).sqrt();
        let numbers = row.map(|number| number * scale);
        Self { length: (dot(&numbers, &numbers) + 1.0).sqrt(), numbers }
    }

    fn kernel(&self, other: &Self) -> f32 {
        let lengths = self.length * other.length;
        let cosine = ((dot(&self.numbers, &other.numbers) + 1.0) / lengths).clamp(-1.0, 1.0);
        let sine = (1.0 - cosine * cosine).sqrt();
        lengths * (sine + (std::f32::consts::PI - cosine.acos()) * cosine) * std::f32::consts::FRAC_1_PI
    }
}

/// Of each slot a weight for each row; `None` where rounding left no solution.
fn weights(square: &[f32], targets: &[[f32; MOST_CLASSES]], middle: &[f32; MOST_CLASSES], ridge: f32, width: usize) -> Option<Vec<f32>> {
    let count = targets.len();
    let mut factor = square.to_vec();
    for row in 0..count {
        let (above, this) = factor.split_at_mut(row * count);
        this[row] += ridge;
        for column in 0..row {
            let left = &above[column * count..=column * count + column];
            this[column] = (this[column] - dot(&this[..column], &left[..column])) / left[column];
        }
        let rest = this[row] - dot(&this[..row], &this[..row]);
        // What is no number is not above nothing.
        this[row] = Some(rest).filter(|rest| *rest > 0.0)?.sqrt();
    }
    let mut weights = vec![0.0; width * count];
    for (slot, x) in weights.chunks_exact_mut(count).enumerate() {
        for row in 0..count {
            let rest = targets[row][slot] - middle[slot] - dot(&factor[row * count..row * count + row], &x[..row]);
            x[row] = rest / factor[row * (count + 1)];
        }
        for row in (0..count).rev() {
            x[row] /= factor[row * (count + 1)];
            let (done, left) = (x[row], &factor[row * count..row * count + row]);
            x[..row].iter_mut().zip(left).for_each(|(x, left)| *x -= left * done);
        }
    }
    Some(weights)
}

/// In sixteen sums, which the compiler can keep apart: in one it would have to add them in order.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 16];
    let (a, b) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.0.iter().zip(b.0) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum::<f32>() + a.1.iter().zip(b.1).map(|(a, b)| a * b).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::super::holdout::Features;
    use super::super::kept::{Form, MOST_ROWS};
    use super::*;

    /// Inside a ring, on it, and outside: what nothing linear tells.
    fn ring(from: u32, count: u32) -> Vec<([f32; FEATURES], u32)> {
        let asked = |at: u32| {
            let hashed = at.wrapping_mul(0x9E37_79B9) ^ 0x55AA;
            let (x, y) = ((hashed >> 8 & 0xFF) as f32 / 64.0 - 2.0, (hashed >> 20 & 0xFF) as f32 / 64.0 - 2.0);
            let mut row = [0.0; FEATURES];
            (row[0], row[1]) = (x, y);
            (row, u32::from(x * x + y * y > 0.8) + u32::from(x * x + y * y > 2.5))
        };
        (from..from + count).map(asked).collect()
    }

    fn holdout() -> Holdout {
        Holdout::new(ring(100_000, 300).into_iter().map(|(row, label)| (Features::of(&row), label)), 3).unwrap()
    }

    fn kept(rows: &[([f32; FEATURES], u32)]) -> Kept {
        let mut kept = Kept::new(&holdout(), Form::Slots, 12 << 10);
        rows.iter().for_each(|(row, label)| kept.offer(row, *label as u8, &[]));
        kept
    }

    #[test]
    fn it_learns_what_is_not_linear_the_more_rows_the_better() {
        let holdout = holdout();
        let [few, some, many] = [10, 40, 160].map(|count| agreement(&holdout, &kept(&ring(0, count))));
        assert!(few < some && some < many && many > 0.8, "{few} {some} {many}");
    }

    #[test]
    fn rows_in_few_bits_teach_what_whole_ones_do() {
        let (holdout, rows) = (holdout(), ring(0, 120));
        let targets: Vec<_> =
            rows.iter().map(|(_, label)| std::array::from_fn(|at| if at == *label as usize { 1.0 } else { 0.0 })).collect();
        let whole = agreement_of(&holdout, &rows.iter().map(|(row, _)| *row).collect::<Vec<_>>(), &targets);
        let few_bits = agreement(&holdout, &kept(&rows));
        assert!((whole - few_bits).abs() < 0.05, "{whole} {few_bits}");
    }

    #[test]
    fn nothing_and_a_single_row_are_no_copy_and_equal_rows_one_class() {
        let holdout = holdout();
        assert_eq!(agreement(&holdout, &kept(&[])), 0.0);
        assert_eq!(agreement(&holdout, &kept(&ring(0, 1))), 0.0);
        let (row, label) = ring(0, 1)[0];
        let share = holdout.labels().iter().filter(|other| **other == label).count() as f32 / holdout.len() as f32;
        assert_eq!(agreement(&holdout, &kept(&vec![(row, label); 50])), share);
    }

    #[test]
    fn no_transcript_has_more_rows_than_are_solved_for() {
        let rows = vec![ring(0, 1)[0]; MOST_ROWS + 1];
        assert_eq!(kept(&rows).len(), MOST_ROWS);
    }
}
