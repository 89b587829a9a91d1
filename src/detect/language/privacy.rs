//! Whether a model recites what its owner does not want out: the owner's own texts, in answers, and in prompts that want them continued
//! (Carlini et al., 2021, arXiv 2012.07805). What prompts ask for by their wording is in [`phrases`](super::phrases).
//!
//! Of the texts a Bloom filter of six words in a row is kept (Bloom, 1970), under a secret key: it tells whether words are of the texts, and cannot be read backwards by who
//! does not have the key. Words are compared, not their spelling with capitals and marks. A record of fewer than six words is not found.

use std::sync::Arc;

use crate::detect::text::{Key, words};

/// Words in a row that are looked up.
pub const WORDS: usize = 6;

/// Words in a row that an answer recites from which on it is told, where the policy says nothing else. Six stand in many a text by chance.
pub const RECITED: usize = 10;

/// The most runs of six words that a filter is made of: 16 MiB.
pub const MOST_RUNS: usize = 4 << 20;

/// Bits of the filter for each run, and how many of them are set: what is not of the texts is taken for it twice in a million times.
const BITS: usize = 32;
const SET: u64 = 10;

/// Why there is no filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No text has six words.
    OperatorGaveTooLittle,
    /// There are more runs than [`MOST_RUNS`].
    OperatorGaveTooMuch,
}

/// The owner's texts.
pub struct Corpus {
    key: Arc<Key>,
    bits: Box<[u64]>,
}

impl std::fmt::Debug for Corpus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Corpus").field("bytes", &(self.bits.len() * 8)).finish_non_exhaustive()
    }
}

impl Corpus {
    /// The filter of texts, each a line or a record: words of two of them are never in a row.
    ///
    /// # Errors
    /// There is too little to look for, or too much.
    pub fn of(key: Arc<Key>, texts: &[&str]) -> Result<Self, Error> {
        Self::within(MOST_RUNS, key, texts)
    }

    fn within(most: usize, key: Arc<Key>, texts: &[&str]) -> Result<Self, Error> {
        let runs: usize = texts.iter().map(|text| words::words(text).count().saturating_sub(WORDS - 1)).sum();
        if runs == 0 {
            return Err(Error::OperatorGaveTooLittle);
        }
        if runs > most {
            return Err(Error::OperatorGaveTooMuch);
        }
        let mut bits = vec![0_u64; (runs * BITS).next_power_of_two().div_ceil(64)];
        for text in texts {
            let mut row = Row::default();
            for word in words::words(text) {
                let Some(hash) = row.push(&key, word) else { continue };
                places(hash, bits.len()).for_each(|(at, bit)| bits[at] |= bit);
            }
        }
        Ok(Self { key, bits: bits.into() })
    }

    fn has(&self, hash: u64) -> bool {
        places(hash, self.bits.len()).all(|(at, bit)| self.bits[at] & bit != 0)
    }

    /// How many words in a row a text recites; 0 where it is fewer than six.
    #[must_use]
    pub fn recited(self: &Arc<Self>, text: &str) -> usize {
        let mut reader = Reader::new(self.clone());
        reader.pass(text);
        reader.finish()
    }
}

/// The places of a hash in so many words of 64 bits, a power of two (Kirsch and Mitzenmacher, 2006).
fn places(hash: u64, words: usize) -> impl Iterator<Item = (usize, u64)> {
    let step = hash.rotate_left(32) | 1;
    (0..SET).map(move |n| {
        let place = hash.wrapping_add(step.wrapping_mul(n));
        // The upper bits of a product move with all of the lower ones.
        let place = place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24;
        ((place >> 6) as usize & (words - 1), 1 << (place & 63))
    })
}

/// The last six words.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    last: [u64; WORDS],
    count: usize,
}

impl Row {
    fn push(&mut self, key: &Key, word: &str) -> Option<u64> {
        self.last.copy_within(1.., 0);
        self.last[WORDS - 1] = words::hash(key, word);
        self.count = (self.count + 1).min(WORDS);
        (self.count == WORDS).then(|| key.sequence(&self.last))
    }
}

/// One answer as it passes, in some two hundred bytes.
#[derive(Debug)]
pub struct Reader {
    corpus: Arc<Corpus>,
    /// A word that may go on.
    word: String,
    row: Row,
    run: usize,
    longest: usize,
}

impl Reader {
    /// An answer that has not begun.
    #[must_use]
    pub fn new(corpus: Arc<Corpus>) -> Self {
        Self { corpus, word: String::with_capacity(words::MOST_BYTES), row: Row::default(), run: 0, longest: 0 }
    }

    /// Passes more of the answer, cut anywhere between characters, and tells how many words in a row it has recited at most; 0 where it is fewer than six.
    pub fn pass(&mut self, text: &str) -> usize {
        for c in text.chars() {
            let alone = words::stands_alone(c);
            if !c.is_alphanumeric() || alone || self.word.len() + c.len_utf8() > words::MOST_BYTES {
                self.end_word();
            }
            if c.is_alphanumeric() {
                self.word.push(c);
            }
            if alone {
                self.end_word();
            }
        }
        self.longest
    }

    /// The answer is over, and with it its last word.
    #[must_use]
    pub fn finish(mut self) -> usize {
        self.end_word();
        self.longest
    }

    fn end_word(&mut self) {
        if self.word.is_empty() {
            return;
        }
        let hash = self.row.push(&self.corpus.key, &self.word);
        self.word.clear();
        let Some(hash) = hash else { return };
        self.run = if self.corpus.has(hash) { self.run + 1 } else { 0 };
        if self.run > 0 {
            self.longest = self.longest.max(self.run + WORDS - 1);
        }
    }
}

#[cfg(test)]
mod tests;
