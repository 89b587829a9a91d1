//! The secret with which texts are hashed: who does not know it can neither find two texts of one sketch nor read one from the other.
//!
//! Digests, by which prompts and templates are told apart for days, are HMAC-SHA-256. What is computed for every word and every four
//! bytes of a text is a keyed mixer instead: it is no pseudo-random function to whoever sees its outputs, but nobody does, and it takes a nanosecond.

use aws_lc_rs::hmac;
use zeroize::Zeroize;

use crate::secret::Secret;

/// The numbers of a count sketch: what the rotation turns.
pub(super) const BUCKETS: usize = 512;

/// How often the sketch is multiplied by signs and transformed: three times make a rotation that is as good as a random one for
/// hashing angles (Andoni et al., 2015, arXiv 1509.02897).
pub(super) const ROUNDS: usize = 3;

/// A key of 32 bytes, spread out for each of its uses.
pub struct Key {
    grams: [u64; 2],
    words: [u64; 2],
    orders: [u64; 2],
    /// Signs of the rotation, as numbers.
    pub(super) signs: Box<[[f32; BUCKETS]; ROUNDS]>,
    digest: hmac::Key,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.grams.zeroize();
        self.words.zeroize();
        self.orders.zeroize();
        self.signs.as_flattened_mut().zeroize();
    }
}

impl Key {
    /// The key that `secret` stands for: the same secret gives the same sketches, in every process.
    #[must_use]
    pub fn from_secret(secret: &Secret) -> Self {
        let mut signs = Box::new([[0.0; BUCKETS]; ROUNDS]);
        for (part, signs) in signs.as_flattened_mut().chunks_mut(256).enumerate() {
            let bits = secret.derive(&format!("detect/text/rotation/{part}"));
            for (at, sign) in signs.iter_mut().enumerate() {
                *sign = if bits.expose()[at / 8] >> (at % 8) & 1 == 1 { 1.0 } else { -1.0 };
            }
        }
        Self {
            grams: pair(&secret.derive("detect/text/grams")),
            words: pair(&secret.derive("detect/text/words")),
            orders: pair(&secret.derive("detect/text/orders")),
            signs,
            digest: hmac::Key::new(hmac::HMAC_SHA256, secret.derive("detect/text/digest").expose()),
        }
    }

    /// A fresh key, that no other process has.
    #[must_use]
    pub fn random() -> Self {
        Self::from_secret(&Secret::random(32))
    }

    /// A digest of parts, each with its length: the first 8 bytes of their HMAC-SHA-256.
    #[must_use]
    pub fn digest<'a>(&self, parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
        let mut context = hmac::Context::with_key(&self.digest);
        for part in parts {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let tag = context.sign();
        u64::from_le_bytes(std::array::from_fn(|at| tag.as_ref()[at]))
    }

    /// A hash of four bytes.
    pub(in crate::detect) fn gram(&self, gram: u32) -> u64 {
        fold(u64::from(gram) ^ self.grams[0], self.grams[1])
    }

    /// A hash of bytes as they are given.
    pub(in crate::detect) fn word(&self, word: &[u8]) -> u64 {
        self.bytes(word, 0)
    }

    /// The same for a word of ASCII letters and digits, with its capitals taken for small letters: the bit by which they differ is set in every digit.
    pub(in crate::detect) fn folded(&self, word: &[u8]) -> u64 {
        self.bytes(word, 0x2020_2020_2020_2020)
    }

    fn bytes(&self, bytes: &[u8], set: u64) -> u64 {
        let mut hash = self.words[0] ^ bytes.len() as u64;
        let (chunks, rest) = bytes.as_chunks::<8>();
        for chunk in chunks {
            hash = fold(hash ^ (u64::from_le_bytes(*chunk) | set), self.words[1]);
        }
        let last = big_endian(rest);
        self.order(fold(hash ^ (last | set), self.words[1]))
    }

    /// A hash of hashes in their order.
    pub(in crate::detect) fn sequence(&self, hashes: &[u64]) -> u64 {
        self.order(hashes.iter().fold(self.orders[0], |hash, next| fold(hash ^ next, self.orders[1])))
    }

    /// A hash of a hash, with all of its bits uniform.
    pub(in crate::detect) fn order(&self, hash: u64) -> u64 {
        let hash = fold(hash ^ self.orders[0], self.orders[1]);
        hash ^ hash >> 29
    }
}

/// The number that up to seven bytes are, the first of them the highest: as two halves, which may have bytes in common.
fn big_endian(bytes: &[u8]) -> u64 {
    if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        u64::from(u32::from_be_bytes(*first)) << (8 * (bytes.len() - 4)) | u64::from(u32::from_be_bytes(*last))
    } else if let (Some(first), Some(last)) = (bytes.first_chunk::<2>(), bytes.last_chunk::<2>()) {
        u64::from(u16::from_be_bytes(*first)) << (8 * (bytes.len() - 2)) | u64::from(u16::from_be_bytes(*last))
    } else {
        bytes.first().copied().map_or(0, u64::from)
    }
}

/// Both halves of a product, which every bit of both factors moves. A factor that is even or small would let bits go.
fn fold(a: u64, key: u64) -> u64 {
    let product = u128::from(a) * u128::from(key);
    (product >> 64) as u64 ^ product as u64
}

fn pair(secret: &Secret) -> [u64; 2] {
    let [first, second] = [0, 8].map(|at| u64::from_le_bytes(std::array::from_fn(|byte| secret.expose()[at + byte])));
    [first, second | 1 | 1 << 63]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_secret_gives_one_key_and_another_another() {
        let [one, same, other] = [1, 1, 2].map(|byte| Key::from_secret(&Secret::new(vec![byte; 32])));
        let hashes = |key: &Key| [key.gram(7), key.word(b"word"), key.sequence(&[1, 2]), key.digest([b"a".as_slice()])];
        assert_eq!(hashes(&one), hashes(&same));
        assert!(hashes(&one).iter().zip(hashes(&other)).all(|(one, other)| *one != other));
        assert_ne!(one.signs, other.signs);
        assert_ne!(Key::random().word(b"word"), Key::random().word(b"word"));
    }

    #[test]
    fn words_and_sequences_hash_apart_whatever_their_length_and_order() {
        let key = Key::from_secret(&Secret::new(vec![3; 32]));
        let words = ["", "\0", "a", "b", "ab", "ba", "abcdefgh", "abcdefgh\0", "abcdefghi", "abcdefghabcdefgh"];
        let hashes: std::collections::HashSet<_> = words.iter().map(|word| key.word(word.as_bytes())).collect();
        assert_eq!(hashes.len(), words.len());
        assert_ne!(key.sequence(&[1, 2]), key.sequence(&[2, 1]));
        assert_ne!(key.digest([b"ab".as_slice(), b"c"]), key.digest([b"a".as_slice(), b"bc"]));
    }

    #[test]
    fn up_to_seven_bytes_are_the_number_that_they_are_one_by_one() {
        let bytes = [0x81, 2, 0x83, 4, 0x85, 6, 0x87];
        for length in 0..=bytes.len() {
            let one_by_one = bytes[..length].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
            assert_eq!(big_endian(&bytes[..length]), one_by_one, "{length}");
        }
    }

    #[test]
    fn each_bit_of_a_hash_is_set_for_half_of_the_words() {
        let key = Key::from_secret(&Secret::new(vec![4; 32]));
        let mut set = [0_u32; 64];
        for word in 0..4_000_u32 {
            let hash = key.word(word.to_string().as_bytes());
            set.iter_mut().enumerate().for_each(|(bit, set)| *set += (hash >> bit & 1) as u32);
        }
        // Five standard deviations of 4,000 tosses are 158.
        assert!(set.iter().all(|set| set.abs_diff(2_000) < 158), "{set:?}");
    }
}
