//! Numbers that look random and follow from a secret: SHA-256 of the seed, what they are for, and a count.

use zeroize::Zeroizing;

use crate::digest::Digest;

/// A stream of them.
pub(in crate::detect) struct Noise {
    block: Zeroizing<Vec<u8>>,
    count: u64,
    words: [u64; 4],
    left: usize,
    spare: Option<f32>,
}

impl Noise {
    /// The stream for one purpose.
    pub(in crate::detect) fn new(seed: &[u8], purpose: &str) -> Self {
        let mut block = Zeroizing::new(Vec::with_capacity(seed.len() + purpose.len() + 8));
        block.extend_from_slice(seed);
        block.extend_from_slice(purpose.as_bytes());
        block.extend_from_slice(&[0; 8]);
        Self { block, count: 0, words: [0; 4], left: 0, spare: None }
    }

    pub(in crate::detect) fn next(&mut self) -> u64 {
        if self.left == 0 {
            let at = self.block.len() - 8;
            self.block[at..].copy_from_slice(&self.count.to_le_bytes());
            let digest = Digest::of(&self.block);
            for (word, bytes) in self.words.iter_mut().zip(digest.0.as_chunks::<8>().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            (self.count, self.left) = (self.count + 1, 4);
        }
        self.left -= 1;
        self.words[self.left]
    }

    /// From 0 up to 1.
    pub(in crate::detect) fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u32 << 24) as f32
    }

    /// Of the standard normal distribution (Box and Muller, 1958).
    pub(in crate::detect) fn normal(&mut self) -> f32 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        let (sine, cosine) = (self.uniform() * std::f32::consts::TAU).sin_cos();
        self.spare = Some(radius * sine);
        radius * cosine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_follows_from_its_seed_and_its_purpose() {
        let first = |seed, purpose| Noise::new(&[seed; 32], purpose).next();
        assert_eq!(first(1, "a"), first(1, "a"));
        assert_ne!(first(1, "a"), first(2, "a"));
        assert_ne!(first(1, "a"), first(1, "b"));
    }

    #[test]
    fn normal_numbers_have_mean_0_and_variance_1() {
        let mut noise = Noise::new(&[7; 32], "test");
        let numbers: Vec<f64> = (0..20_000).map(|_| f64::from(noise.normal())).collect();
        let mean = numbers.iter().sum::<f64>() / 20_000.0;
        let variance = numbers.iter().map(|number| (number - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}
