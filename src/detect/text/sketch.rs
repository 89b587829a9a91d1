//! Where a text stands among texts: 64 numbers, a SimHash and a MinHash, in a few microseconds and without a model.
//!
//! The bytes of the text, four at a time, are counted into 512 buckets with keyed signs (a count sketch; Charikar et al., 2002; Weinberger et al.,
//! 2009, arXiv 0902.2206), whose inner products are those of the counts. A keyed rotation mixes the buckets. 64 of the turned numbers, brought to
//! length 1, keep angles (Johnson and Lindenstrauss); the signs of 128 others are the SimHash (Charikar, 2002). The five-word shingles of the text
//! give the MinHash, in one pass by one permutation (Li et al., 2012), whose empty bins take what a keyed draw finds elsewhere (Shrivastava, 2017).
//!
//! Near texts have near sketches; that texts are far apart in meaning is not to be seen here, nor that they say the same in other words.

use super::key::{BUCKETS, ROUNDS};
use super::{Key, looked_at, words};

/// How many numbers a text becomes.
pub const NUMBERS: usize = 64;

/// Bins of the MinHash; the similarity told by them has a standard error of at most 1/16.
pub const BINS: usize = 64;

/// Words of a shingle.
pub const SHINGLE: usize = 5;

/// A text's place.
#[derive(Clone, Debug, PartialEq)]
pub struct Sketch {
    /// Numbers of length 1 together, or all 0 for an empty text. Their inner products estimate the cosine of the counts of four bytes.
    pub z: [f32; NUMBERS],
    /// Its SimHash: the share of bits in which two differ estimates the angle between the counts, in half turns.
    pub simhash: u128,
    /// The MinHash of its shingles; all ones for a text without a word.
    pub minhash: [u32; BINS],
}

impl Sketch {
    /// Sketches `text`, or of what is longer than [`super::MOST_BYTES`] both its ends.
    #[must_use]
    pub fn of(key: &Key, text: &str) -> Self {
        let parts = looked_at(text);
        let turned = rotated(key, counted(key, parts));
        let z = numbers(&turned);
        let signs = &turned[BUCKETS / 4..][..128];
        let simhash = signs.iter().fold(0, |bits, number| bits << 1 | u128::from(*number > 0.0));
        Self { z, simhash, minhash: shingled(key, parts) }
    }

    /// Its [numbers](Self::z) alone, without the words that the MinHash takes a look at.
    #[must_use]
    pub fn numbers(key: &Key, text: &str) -> [f32; NUMBERS] {
        numbers(&rotated(key, counted(key, looked_at(text))))
    }

    /// In how many of 128 bits the SimHashes differ: 64 in the mean for texts that have nothing in common.
    #[must_use]
    pub fn hamming(&self, other: &Self) -> u32 {
        (self.simhash ^ other.simhash).count_ones()
    }

    /// About how much of the shingles of both texts they share (Jaccard), from 0 to 1; 0 where either has none.
    #[must_use]
    pub fn resemblance(&self, other: &Self) -> f64 {
        let pairs = self.minhash.iter().zip(&other.minhash);
        pairs.filter(|(one, other)| one == other && **one != u32::MAX).count() as f64 / BINS as f64
    }
}

/// The first of the turned numbers, of length 1 together.
fn numbers(turned: &[f32; BUCKETS]) -> [f32; NUMBERS] {
    let mut z: [f32; NUMBERS] = std::array::from_fn(|at| turned[at]);
    let length = z.iter().map(|number| number * number).sum::<f32>().sqrt();
    if length > 0.0 {
        z.iter_mut().for_each(|number| *number /= length);
    }
    z
}

/// The signed counts of every four bytes of each part.
fn counted(key: &Key, parts: [&str; 2]) -> [f32; BUCKETS] {
    let mut counts = [0_i32; BUCKETS];
    let mut count = |gram: u32| {
        let hash = key.gram(gram);
        counts[hash as usize % BUCKETS] += if hash >> 63 == 1 { 1 } else { -1 };
    };
    for part in parts.map(str::as_bytes) {
        match part {
            [] => {}
            [a] => count(u32::from_le_bytes([*a, 0, 0, 0])),
            [a, b] => count(u32::from_le_bytes([*a, *b, 0, 0])),
            [a, b, c, rest @ ..] => {
                let mut gram = u32::from_be_bytes([0, *a, *b, *c]);
                if rest.is_empty() {
                    count(gram);
                }
                for byte in rest {
                    gram = gram << 8 | u32::from(*byte);
                    count(gram);
                }
            }
        }
    }
    counts.map(|count| count as f32)
}

/// A rotation, but for the length, which is √512 for each round larger.
fn rotated(key: &Key, mut numbers: [f32; BUCKETS]) -> [f32; BUCKETS] {
    for round in 0..ROUNDS {
        numbers.iter_mut().zip(&key.signs[round]).for_each(|(number, sign)| *number *= sign);
        let mut half = BUCKETS / 2;
        while half > 0 {
            for pair in numbers.chunks_exact_mut(2 * half) {
                let (one, other) = pair.split_at_mut(half);
                for (one, other) in one.iter_mut().zip(other) {
                    (*one, *other) = (*one + *other, *one - *other);
                }
            }
            half /= 2;
        }
    }
    numbers
}

fn shingled(key: &Key, parts: [&str; 2]) -> [u32; BINS] {
    let mut bins = Bins::new();
    for part in parts {
        bins.shingles(key, words::words(part).map(|word| words::hash(key, word)), SHINGLE);
    }
    bins.filled(key)
}

/// The least hash of each of `N` bins.
pub(super) struct Bins<const N: usize>([u32; N]);

impl<const N: usize> Bins<N> {
    pub(super) fn new() -> Self {
        const { assert!(N.is_power_of_two() && N > 1) };
        Self([u32::MAX; N])
    }

    /// Takes in every `size` words in a row; of fewer words than that, all at once.
    pub(super) fn shingles(&mut self, key: &Key, words: impl Iterator<Item = u64>, size: usize) {
        let mut last = [0_u64; 8];
        let mut seen = 0;
        for word in words {
            last.copy_within(1.., 0);
            last[7] = word;
            seen += 1;
            if seen >= size {
                self.see(key.sequence(&last[8 - size..]));
            }
        }
        if (1..size).contains(&seen) {
            self.see(key.sequence(&last[8 - seen..]));
        }
    }

    fn see(&mut self, hash: u64) {
        let bin = &mut self.0[(hash >> (64 - N.trailing_zeros())) as usize];
        // All ones stands for nothing seen.
        *bin = (*bin).min(hash as u32 & !1);
    }

    /// The bins, those that saw nothing filled from others, in an order that the key alone decides.
    pub(super) fn filled(self, key: &Key) -> [u32; N] {
        let Self(bins) = self;
        if bins.iter().all(|bin| *bin == u32::MAX) {
            return bins;
        }
        std::array::from_fn(|at| {
            let mut draw = at as u64;
            while bins[draw as usize % N] == u32::MAX {
                draw = key.order(draw);
            }
            bins[draw as usize % N]
        })
    }
}

#[cfg(test)]
mod tests;
