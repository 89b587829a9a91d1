//! Where a text stands among texts: 64 numbers, in a few microseconds and without a model.
//!
//! The bytes of the text, four at a time, are counted into 512 buckets with keyed signs (a count sketch; Charikar et al., 2002; Weinberger et al.,
//! 2009, arXiv 0902.2206), whose inner products are those of the counts. A keyed rotation mixes the buckets. 64 of the turned numbers, brought to
//! length 1, keep angles (Johnson and Lindenstrauss).
//!
//! Near texts have near sketches; that texts are far apart in meaning is not to be seen here, nor that they say the same in other words.

use super::key::BUCKETS;
use super::{Key, looked_at};

/// How many numbers a text becomes.
pub const NUMBERS: usize = 64;

/// Sketches `text`, or of what is longer than [`super::MOST_BYTES`] both its ends: numbers of length 1 together, or all 0 for an empty text. Their inner
/// products estimate the cosine of the counts of four bytes.
#[must_use]
pub fn sketch(key: &Key, text: &str) -> [f32; NUMBERS] {
    let mut z = rotated(key, counted(key, looked_at(text)));
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

/// A rotation, but for the length, which is √512 for each round larger: of the turned numbers the first, which are all that is kept.
fn rotated(key: &Key, mut numbers: [f32; BUCKETS]) -> [f32; NUMBERS] {
    let [rounds @ .., last] = &*key.signs;
    for signs in rounds {
        turn(&mut numbers, signs);
        transform(&mut numbers);
    }
    turn(&mut numbers, last);
    // In the last round the sums alone lead to the first numbers.
    let mut half = BUCKETS / 2;
    while half >= NUMBERS {
        let (one, other) = numbers[..2 * half].split_at_mut(half);
        one.iter_mut().zip(other).for_each(|(one, other)| *one += *other);
        half /= 2;
    }
    let mut first = std::array::from_fn(|at| numbers[at]);
    transform(&mut first);
    first
}

fn turn(numbers: &mut [f32; BUCKETS], signs: &[f32; BUCKETS]) {
    numbers.iter_mut().zip(signs).for_each(|(number, sign)| *number *= sign);
}

/// Walsh and Hadamard's transform.
fn transform<const N: usize>(numbers: &mut [f32; N]) {
    let mut half = N / 2;
    while half >= 4 {
        for pair in numbers.chunks_exact_mut(2 * half) {
            let (one, other) = pair.split_at_mut(half);
            for (one, other) in one.iter_mut().zip(other) {
                (*one, *other) = (*one + *other, *one - *other);
            }
        }
        half /= 2;
    }
    // The last two steps at once: four numbers are what the processor takes at a time.
    for four in numbers.as_chunks_mut::<4>().0 {
        let [a, b, c, d] = *four;
        let [ac, bd] = [[a + c, a - c], [b + d, b - d]];
        *four = [ac[0] + bd[0], ac[0] - bd[0], ac[1] + bd[1], ac[1] - bd[1]];
    }
}

#[cfg(test)]
mod tests;
