//! Noise on embeddings that grows with how much of their space a caller has covered (B4B: Dubiński et al. 2023,
//! <https://arxiv.org/abs/2310.08571>).
//!
//! A caller with one task stays in a corner of the space; one who copies the encoder must see all of it. The standard deviation is
//! λ(e^(ln(α/λ)·c/β) − 1) at a coverage of c per cent: nothing to speak of up to a half, 0.8 at 80 per cent, against numbers of a mean
//! square of 1.
//!
//! It is drawn from the seed and the embedding itself, so that asking again gives the same noise and nothing averages out. The embedding is
//! taken to six bits of its numbers' mean size for that, since the last bits of a sum differ between batches; an embedding on the edge of
//! two such cells can still get one of two noises.

use std::f64::consts::TAU;

use aws_lc_rs::hmac;

use crate::detect::response::{Coverage, Seed};

/// λ: the noise is as small as this at first.
const LEAST: f64 = 1e-6;
/// α: what it reaches at a coverage of β.
const REACHED: f64 = 0.8;
/// β, in per cent.
const AT: f64 = 80.0;

/// How far from 1 the length of an embedding may be that is kept at 1.
const UNIT: f64 = 1e-3;

/// The standard deviation of the noise, in units of the numbers' root mean square.
#[must_use]
pub fn deviation(covered: Coverage) -> f64 {
    LEAST * (((REACHED / LEAST).ln() * covered.percent() / AT).exp() - 1.0)
}

/// Adds the noise to one embedding. One of length 1 keeps it; one that is not finite, or zero, stays.
pub fn shape(row: &mut [f64], covered: Coverage, seed: &Seed) {
    let length = row.iter().map(|value| value * value).sum::<f64>().sqrt();
    if covered == Coverage::default() || !length.is_finite() || length == 0.0 {
        return;
    }
    let size = length / (row.len() as f64).sqrt();
    let deviation = deviation(covered) * size;
    let mut draws = Draws::of(row, size, covered, seed);
    for pair in row.chunks_mut(2) {
        // Box and Muller's two normal numbers of two uniform ones.
        let radius = (-2.0 * draws.uniform().ln()).sqrt();
        let angle = TAU * draws.uniform();
        for (value, part) in pair.iter_mut().zip([angle.cos(), angle.sin()]) {
            *value += deviation * radius * part;
        }
    }
    if (length - 1.0).abs() <= UNIT {
        let noisy = row.iter().map(|value| value * value).sum::<f64>().sqrt();
        if noisy > 0.0 {
            row.iter_mut().for_each(|value| *value /= noisy);
        }
    }
}

/// Uniform numbers (SplitMix64) from 64 bits that the seed and the embedding decide, and nobody finds without the seed.
struct Draws(u64);

impl Draws {
    fn of(row: &[f64], size: f64, covered: Coverage, seed: &Seed) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, seed.expose());
        let mut context = hmac::Context::with_key(&key);
        context.update(b"portcullis/shape/noise/v1");
        // Noise that only grew would be told from what it is added to by two answers.
        context.update(&covered.percent().to_be_bytes());
        for value in row {
            // The cast saturates: what is that far out is far out.
            context.update(&((value / size * 64.0).round() as i32).to_be_bytes());
        }
        let tag = context.sign();
        Self(tag.as_ref().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)))
    }

    /// Above 0 and at most 1.
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        ((z >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: Seed = Seed::from_secret([5; 16]);

    fn embedding(length: f64) -> Vec<f64> {
        let mut row: Vec<f64> = (0..384).map(|at| f64::from(at * 37 % 101) - 50.0).collect();
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        row.iter_mut().for_each(|x| *x *= length / norm);
        row
    }

    fn noisy(row: &[f64], covered: f64, seed: &Seed) -> Vec<f64> {
        let mut row = row.to_vec();
        shape(&mut row, Coverage::of(covered), seed);
        row
    }

    fn distance(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
    }

    #[test]
    fn the_noise_grows_with_coverage_as_the_paper_has_it() {
        assert_eq!(deviation(Coverage::default()), 0.0);
        assert!(deviation(Coverage::of(0.4)) < 1e-3, "half of the way costs an honest caller nothing");
        assert!((deviation(Coverage::of(0.8)) - 0.8).abs() < 1e-4);
        assert!(deviation(Coverage::ALL) > 10.0);
    }

    #[test]
    fn equal_embeddings_get_equal_noise_and_another_seed_another() {
        let row = embedding(3.0);
        assert_eq!(noisy(&row, 0.7, &SEED), noisy(&row, 0.7, &SEED));
        assert_ne!(noisy(&row, 0.7, &SEED), noisy(&row, 0.7, &Seed::from_secret([6; 16])));
        let last_bit: Vec<f64> = row.iter().map(|x| x * (1.0 + 1e-9)).collect();
        assert!(distance(&noisy(&row, 0.7, &SEED), &noisy(&last_bit, 0.7, &SEED)) < 1e-6);
    }

    #[test]
    fn two_grades_do_not_give_away_what_is_under_both() {
        let row = embedding(3.0);
        let [less, more] = [0.70, 0.75].map(|covered| noisy(&row, covered, &SEED));
        let [small, large] = [0.70, 0.75].map(|covered| deviation(Coverage::of(covered)));
        // What would be left if both were the same draw.
        let drawn: Vec<f64> = less.iter().zip(&more).map(|(less, more)| (large * less - small * more) / (large - small)).collect();
        assert!(distance(&drawn, &row) > distance(&less, &row));
    }

    #[test]
    fn the_noise_has_the_size_that_is_said() {
        let row = embedding(3.0);
        let size = 3.0 / 384_f64.sqrt();
        let found = distance(&row, &noisy(&row, 0.8, &SEED)) / 384_f64.sqrt() / size;
        assert!((found - 0.8).abs() < 0.12, "{found}");
    }

    #[test]
    fn an_embedding_of_length_one_keeps_it_and_others_have_none_to_keep() {
        let unit = noisy(&embedding(1.0), 0.8, &SEED);
        assert!((unit.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-9);
        assert_ne!(unit, embedding(1.0));
        for row in [vec![f64::NAN, 1.0], vec![0.0, 0.0], vec![]] {
            assert_eq!(format!("{:?}", noisy(&row, 1.0, &SEED)), format!("{row:?}"));
        }
    }
}
