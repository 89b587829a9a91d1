//! Thieves of the owner's own, for calibration: a network trained on a transcript as often as it takes, and a kernel machine (`kernel.rs`) on
//! all of its rows as they are.
//!
//! The network: 64 features, 64 rectified units, the classes; Adam (Kingma and Ba 2015, <https://arxiv.org/abs/1412.6980>) over batches of 16, on
//! the cross-entropy of labels or the squared error of the centred logarithms of probabilities. It takes a few tenths of a second, and as many bytes
//! as the rows have, which is why callers have a [meter](super::meter) and only made-up transcripts a thief.
//!
//! Equal transcripts train equal thieves.

use super::holdout::{FEATURES, Features, Holdout, MOST_CLASSES};
use super::kernel;
use super::meter::{Answer, understood};

const UNITS: usize = 64;
const BATCH: usize = 16;
/// Steps over single rows: few rows are gone over 300 times, many rows as often as these allow.
const MOST_STEPS: usize = 80_000;
const MOST_ROUNDS: usize = 300;
const FEWEST_ROUNDS: usize = 20;
const RATE: f32 = 2e-3;
const DECAY: f32 = 1e-4;

/// How well the better thief agrees with the model on the holdout, from 0 to 1. Answers that are none are left out; a transcript of nothing
/// gives 0.
#[must_use]
pub fn fidelity<'a>(holdout: &Holdout, transcript: impl IntoIterator<Item = (&'a Features, Answer<'a>)>) -> f32 {
    trained(holdout, transcript, MOST_STEPS)
}

fn trained<'a>(holdout: &Holdout, transcript: impl IntoIterator<Item = (&'a Features, Answer<'a>)>, most_steps: usize) -> f32 {
    let width = holdout.width();
    let rows: Vec<Row> = transcript
        .into_iter()
        .filter_map(|(features, answer)| {
            let mut logarithms = [0.0; MOST_CLASSES];
            let class = understood(holdout, answer, &mut logarithms[..width])?;
            let target = match answer {
                Answer::Label(_) => Target::Slot(usize::from(holdout.slot(class))),
                Answer::Probabilities(_) => Target::Logarithms(logarithms),
            };
            Some(Row { features: *features.numbers(), target })
        })
        .collect();
    if rows.is_empty() {
        return 0.0;
    }
    let of_kernel = kernel::agreement_of(
        holdout,
        &rows.iter().map(|row| row.features).collect::<Vec<_>>(),
        &rows.iter().map(|row| row.target.scores()).collect::<Vec<_>>(),
    );
    let mut network = Network::new(width);
    network.train(&rows, most_steps);
    let (mut right, mut all) = (0_u32, 0_u32);
    for (row, slot) in holdout.rows().iter().zip(holdout.slots()) {
        let Some(slot) = slot else { continue };
        let (_, scores) = network.forward(row);
        let best = (0..width).fold(0, |best, at| if scores[at] > scores[best] { at } else { best });
        all += 1;
        right += u32::from(best == usize::from(*slot));
    }
    if all == 0 { 0.0 } else { of_kernel.max(right as f32 / all as f32) }
}

struct Row {
    features: [f32; FEATURES],
    target: Target,
}

enum Target {
    Slot(usize),
    Logarithms([f32; MOST_CLASSES]),
}

impl Target {
    /// What a copy is to say of each slot.
    fn scores(&self) -> [f32; MOST_CLASSES] {
        match self {
            Self::Slot(slot) => std::array::from_fn(|at| f32::from(u8::from(at == *slot))),
            Self::Logarithms(logarithms) => *logarithms,
        }
    }
}

/// The weights in one line: of each unit its inputs and a constant, then of each class its units and a constant.
struct Network {
    width: usize,
    weights: Vec<f32>,
    random: u64,
}

const INPUTS: usize = FEATURES + 1;
const HIDDEN: usize = UNITS + 1;

impl Network {
    fn new(width: usize) -> Self {
        let mut network = Self { width, weights: Vec::new(), random: 1 };
        // Glorot's bounds, the constants too.
        let first = (6.0 / (FEATURES + UNITS) as f32).sqrt();
        let second = (6.0 / (UNITS + width) as f32).sqrt();
        network.weights = (0..UNITS * INPUTS + width * HIDDEN)
            .map(|at| (network.uniform() * 2.0 - 1.0) * if at < UNITS * INPUTS { first } else { second })
            .collect();
        network
    }

    /// At least 0 and below 1 (SplitMix64).
    fn uniform(&mut self) -> f32 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1_u32 << 24) as f32
    }

    fn forward(&self, features: &[f32; FEATURES]) -> ([f32; UNITS], [f32; MOST_CLASSES]) {
        let (first, second) = self.weights.split_at(UNITS * INPUTS);
        let mut units = [0.0; UNITS];
        for (unit, weights) in units.iter_mut().zip(first.chunks_exact(INPUTS)) {
            *unit = (dot(features, &weights[..FEATURES]) + weights[FEATURES]).max(0.0);
        }
        let mut scores = [0.0; MOST_CLASSES];
        for (score, weights) in scores.iter_mut().zip(second.chunks_exact(HIDDEN)) {
            *score = dot(&units, &weights[..UNITS]) + weights[UNITS];
        }
        (units, scores)
    }

    /// Adds the gradient of one row's loss.
    fn backward(&self, row: &Row, gradient: &mut [f32]) {
        let (units, mut scores) = self.forward(&row.features);
        let scores = &mut scores[..self.width];
        match &row.target {
            Target::Slot(slot) => {
                let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                scores.iter_mut().for_each(|score| *score = (*score - most).exp());
                let sum: f32 = scores.iter().sum();
                scores.iter_mut().for_each(|score| *score /= sum);
                scores[*slot] -= 1.0;
            }
            Target::Logarithms(logarithms) => scores.iter_mut().zip(logarithms).for_each(|(score, wanted)| *score -= wanted),
        }
        let (first, second) = gradient.split_at_mut(UNITS * INPUTS);
        let mut back = [0.0; UNITS];
        let weights = self.weights[UNITS * INPUTS..].chunks_exact(HIDDEN);
        for ((error, gradient), weights) in scores.iter().zip(second.chunks_exact_mut(HIDDEN)).zip(weights) {
            gradient.iter_mut().zip(units.iter().chain(&[1.0])).for_each(|(gradient, unit)| *gradient += error * unit);
            back.iter_mut().zip(weights).for_each(|(back, weight)| *back += error * weight);
        }
        for ((back, unit), gradient) in back.iter().zip(&units).zip(first.chunks_exact_mut(INPUTS)) {
            if *unit > 0.0 {
                gradient.iter_mut().zip(row.features.iter().chain(&[1.0])).for_each(|(gradient, x)| *gradient += back * x);
            }
        }
    }

    fn train(&mut self, rows: &[Row], most_steps: usize) {
        let rounds = (most_steps / rows.len()).clamp(FEWEST_ROUNDS, MOST_ROUNDS);
        let (mut mean, mut square) = (vec![0.0_f32; self.weights.len()], vec![0.0_f32; self.weights.len()]);
        let mut gradient = vec![0.0_f32; self.weights.len()];
        let mut order: Vec<usize> = (0..rows.len()).collect();
        let mut step = 0_i32;
        for round in 0..rounds {
            for at in (1..order.len()).rev() {
                // The cast is of a number below the length.
                order.swap(at, (self.uniform() * (at + 1) as f32) as usize);
            }
            // The rate falls to a tenth, so that the end is a rest.
            let rate = RATE * (1.0 - 0.9 * round as f32 / rounds as f32);
            for batch in order.chunks(BATCH) {
                gradient.fill(0.0);
                batch.iter().for_each(|at| self.backward(&rows[*at], &mut gradient));
                step += 1;
                let (first, second) = (1.0 - 0.9_f32.powi(step), 1.0 - 0.999_f32.powi(step));
                let moments = mean.iter_mut().zip(&mut square);
                for ((weight, gradient), (mean, square)) in self.weights.iter_mut().zip(&gradient).zip(moments) {
                    let gradient = gradient / batch.len() as f32 + DECAY * *weight;
                    *mean += 0.1 * (gradient - *mean);
                    *square += 0.001 * (gradient * gradient - *square);
                    *weight -= rate * (*mean / first) / ((*square / second).sqrt() + 1e-8);
                }
            }
        }
    }
}

/// In eight sums, which the compiler can keep apart.
fn dot(a: &[f32; FEATURES], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 8];
    for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Enough for these: the tests are not optimised.
    const STEPS: usize = 6_000;

    /// The sign of a product: what nothing linear tells.
    fn rows(from: u32, count: u32) -> Vec<(Features, u32)> {
        (from..from + count)
            .map(|at| {
                let hashed = at.wrapping_mul(0x9E37_79B9) ^ 0x55AA;
                let x = (hashed >> 8 & 0xFF) as f32 / 64.0 - 2.0;
                let y = (hashed >> 20 & 0xFF) as f32 / 64.0 - 2.0;
                let mut features = [0.0; FEATURES];
                (features[0], features[1]) = (x, y);
                (Features::of(&features), u32::from(x * y > 0.0))
            })
            .collect()
    }

    #[test]
    fn it_learns_what_is_not_linear_the_more_rows_the_better() {
        let holdout = Holdout::new(rows(100_000, 300), 2).unwrap();
        let taught = |count| {
            let transcript = rows(0, count);
            trained(&holdout, transcript.iter().map(|(features, label)| (features, Answer::Label(*label))), STEPS)
        };
        let (few, many) = (taught(10), taught(150));
        assert!(many > 0.85, "{many}");
        assert!(few < many, "{few} {many}");
        assert_eq!(taught(20), taught(20), "equal transcripts train equal thieves");
    }

    #[test]
    fn probabilities_are_learned_from_too_and_nothing_from_nothing() {
        let holdout = Holdout::new(rows(100_000, 300), 2).unwrap();
        let transcript = rows(0, 150);
        let answers: Vec<[f64; 2]> = transcript.iter().map(|(_, label)| if *label == 1 { [0.1, 0.9] } else { [0.9, 0.1] }).collect();
        let told = transcript.iter().zip(&answers).map(|((features, _), row)| (features, Answer::Probabilities(row)));
        assert!(trained(&holdout, told, STEPS) > 0.85);
        assert_eq!(fidelity(&holdout, []), 0.0);
        assert_eq!(fidelity(&holdout, [(&transcript[0].0, Answer::Label(7))]), 0.0);
    }
}
