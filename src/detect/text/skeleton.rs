//! What many prompts of one template have in common: the prompt with its numbers, quotations and code blanked.
//!
//! A template is known again in two ways: by its SimHash, where a few words change; and by four bands, each of the least four of its three-word
//! shingles (Broder, 1997), of which one or another falls wholly within what is fixed even where a third of the words is not, so that prompts meet in a
//! table by equality alone.
//!
//! A slot that is neither number, quotation nor code stays; a template whose greater part is such a slot is not known again.

use super::{Key, looked_at, words};

/// Bands of a template.
pub const BANDS: usize = 4;

/// Least shingles of a band.
const ROWS: usize = 4;

/// Words of a shingle: fewer would meet in phrases that everybody writes.
const SHINGLE: usize = 3;

/// The longest quotation that is blanked, in bytes; marks farther apart are taken for marks of their own.
const QUOTED_MAX: usize = 16 << 10;

/// In how many bits of 64 the SimHashes of two prompts of one template differ at most: an angle whose cosine is 0.77. Texts that have only the
/// small words of a language in common differ in 27 ± 4.
pub const NEAR: u32 = 14;

/// What a prompt's template is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skeleton {
    /// SimHash of its words and pairs of words.
    pub simhash: u64,
    /// Equal ones mean that a part of the template is the same.
    pub bands: [u64; BANDS],
}

impl Skeleton {
    /// The skeleton of `prompt`, or of what is longer than [`super::MOST_BYTES`] that of both ends.
    #[must_use]
    pub fn of(key: &Key, prompt: &str) -> Self {
        let mut blanked = String::with_capacity(prompt.len().min(super::MOST_BYTES) + 8);
        for part in looked_at(prompt) {
            blank(part, &mut Searched::default(), &mut blanked);
        }
        let mut votes = Votes::default();
        let mut before = 0;
        let mut bins = Bins::<{ BANDS * ROWS }>::new();
        let hashes = words::words(&blanked).map(|word| words::hash(key, word)).inspect(|hash| {
            votes.cast(*hash, key.sequence(&[before, *hash]));
            before = *hash;
        });
        bins.shingles::<SHINGLE>(key, hashes);
        let least = bins.filled(key);
        let band = |band: usize| {
            let rows: [u64; ROWS] = std::array::from_fn(|row| u64::from(least[band * ROWS + row]));
            key.sequence(&[band as u64, rows[0], rows[1], rows[2], rows[3]])
        };
        Self { simhash: votes.majority(), bands: std::array::from_fn(band) }
    }

    /// Whether both may be of one template.
    #[must_use]
    pub fn is_near(&self, simhash: u64) -> bool {
        (self.simhash ^ simhash).count_ones() <= NEAR
    }
}

/// The least hash of each of `N` bins: a MinHash in one pass by one permutation (Li et al., 2012), whose empty bins take what a keyed draw finds
/// elsewhere (Shrivastava, 2017).
struct Bins<const N: usize>([u32; N]);

impl<const N: usize> Bins<N> {
    fn new() -> Self {
        const { assert!(N.is_power_of_two() && N > 1) };
        Self([u32::MAX; N])
    }

    /// Takes in every `SIZE` words in a row; of fewer words than that, all at once.
    fn shingles<const SIZE: usize>(&mut self, key: &Key, words: impl Iterator<Item = u64>) {
        let mut last = [0_u64; SIZE];
        let mut seen = 0;
        for word in words {
            last.copy_within(1.., 0);
            last[SIZE - 1] = word;
            seen += 1;
            if seen >= SIZE {
                self.see(key.sequence(&last));
            }
        }
        if (1..SIZE).contains(&seen) {
            self.see(key.sequence(&last[SIZE - seen..]));
        }
    }

    fn see(&mut self, hash: u64) {
        let bin = &mut self.0[(hash >> (64 - N.trailing_zeros())) as usize];
        // All ones stands for nothing seen.
        *bin = (*bin).min(hash as u32 & !1);
    }

    /// The bins, those that saw nothing filled from others, in an order that the key alone decides.
    fn filled(self, key: &Key) -> [u32; N] {
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

/// Counts, for each of 64 bits, in how many hashes it is set: bit n of each count lies in plane n, so that a hash is added with a carry for all 64 at once.
#[derive(Default)]
struct Votes {
    planes: [u64; 20],
    cast: u32,
}

impl Votes {
    /// Counts two at once: both are added to the lowest plane, and at most one carry goes on.
    fn cast(&mut self, one: u64, other: u64) {
        let [lowest, planes @ ..] = &mut self.planes;
        let either = one ^ other;
        let mut carry = one & other | either & *lowest;
        *lowest ^= either;
        for plane in planes {
            if carry == 0 {
                break;
            }
            (*plane, carry) = (*plane ^ carry, *plane & carry);
        }
        self.cast += 2;
    }

    /// The bits that are set in more than half of them: all counts are compared with the half at once, from their highest digit down.
    fn majority(&self) -> u64 {
        let half = self.cast / 2;
        let (mut more, mut equal) = (0, u64::MAX);
        for (plane, bits) in self.planes.iter().enumerate().rev() {
            if half >> plane & 1 == 1 {
                equal &= bits;
            } else {
                more |= equal & bits;
                equal &= !bits;
            }
        }
        more
    }
}

/// What stands for numbers, quotations and code. Digits stand for nothing else in a skeleton.
const NUMBER: &str = " 0 ";
const QUOTED: &str = " 1 ";
const CODE: &str = " 2 ";

/// Marks that open a quotation, and those that close it.
const QUOTES: [(char, char); 8] =
    [('"', '"'), ('\u{201c}', '\u{201d}'), ('\u{201e}', '\u{201c}'), ('«', '»'), ('‹', '›'), ('「', '」'), ('『', '』'), ('《', '》')];

/// The longest run of backticks that opens code: nobody writes as many, and each length costs a look of its own.
const FENCE_MAX: usize = 16;

fn blank(text: &str, searched: &mut Searched, blanked: &mut String) {
    let bytes = text.as_bytes();
    // What is copied begins at `plain`; what is looked at is at `at`, which lies between characters.
    let (mut plain, mut at) = (0, 0);
    while let Some(more) = bytes[at..].iter().position(|byte| OPENS[usize::from(*byte)]) {
        at += more;
        let rest = &text[at..];
        let Some(c) = rest.chars().next() else { break };
        let mut opened = c.len_utf8();
        let hidden = match c {
            '0'..='9' => Some((at + rest.bytes().take_while(|byte| matches!(byte, b'0'..=b'9' | b'.' | b',' | b'_')).count(), NUMBER)),
            '`' => {
                opened = rest.bytes().take_while(|byte| *byte == b'`').count();
                searched.fence(text, at, opened).map(|end| (end, CODE))
            }
            '\'' if !text[plain..at].ends_with(char::is_alphanumeric) => searched.single(text, at).map(|end| (end, QUOTED)),
            '\'' => None,
            c => {
                let kind = QUOTES.iter().position(|(open, _)| *open == c);
                kind.and_then(|kind| searched.quotation(text, at, kind)).map(|end| (end, QUOTED))
            }
        };
        match hidden {
            Some((end, mark)) => {
                blanked.push_str(&text[plain..at]);
                blanked.push_str(mark);
                at = end;
                plain = at;
            }
            None => at += opened,
        }
    }
    blanked.push_str(&text[plain..]);
}

/// The first bytes of what may open something.
static OPENS: [bool; 256] = {
    let mut opens = [false; 256];
    let mut digit = b'0';
    while digit <= b'9' {
        opens[digit as usize] = true;
        digit += 1;
    }
    opens[b'`' as usize] = true;
    opens[b'\'' as usize] = true;
    let mut at = 0;
    while at < QUOTES.len() {
        opens[QUOTES[at].0.encode_utf8(&mut [0; 4]).as_bytes()[0] as usize] = true;
        at += 1;
    }
    opens
};

/// Where a text was searched in vain, by the mark that would close something: no part of it is searched for one mark twice, so that marks which nothing
/// closes cost no more than others.
#[derive(Default)]
struct Searched {
    /// For each of [`QUOTES`], up to where there is none that closes it.
    quotes: [usize; QUOTES.len()],
    /// The same for fences, by their length.
    fences: [usize; FENCE_MAX + 1],
    /// Bytes that were searched.
    #[cfg(test)]
    steps: usize,
}

impl Searched {
    /// Where the quotation of a kind ends that opens at `at`.
    fn quotation(&mut self, text: &str, at: usize, kind: usize) -> Option<usize> {
        let (open, close) = QUOTES[kind];
        let from = self.quotes[kind].max(at + open.len_utf8());
        let end = self.find(text, at, from, close.encode_utf8(&mut [0; 4]));
        if end.is_none() {
            self.quotes[kind] = window(text, at);
        }
        end
    }

    /// Where the code ends that a fence of so many backticks at `at` opens.
    fn fence(&mut self, text: &str, at: usize, length: usize) -> Option<usize> {
        let from = *self.fences.get(length)?;
        let end = self.find(text, at, from.max(at + length), &text[at..at + length]);
        if end.is_none() {
            // One may begin before the end of the window, and end after it.
            self.fences[length] = text.floor_char_boundary(window(text, at) + 1 - length);
        }
        end
    }

    /// Where the quotation in single marks ends that opens at `at`. What closes it is not followed by a letter: that is an apostrophe. No more than sixteen
    /// marks are looked at, so that no part of a text is searched more often than that.
    fn single(&mut self, text: &str, at: usize) -> Option<usize> {
        let mut end = at + 1;
        for _ in 0..16 {
            end = self.find(text, at, end, "'")?;
            if !text[end..].starts_with(char::is_alphanumeric) {
                return Some(end);
            }
        }
        None
    }

    /// The end of the first mark that begins at `from` or after, and ends within what may be quoted by what opens at `at`.
    fn find(&mut self, text: &str, at: usize, from: usize, mark: &str) -> Option<usize> {
        let within = text.get(from..window(text, at))?;
        let end = within.find(mark).map(|found| from + found + mark.len());
        #[cfg(test)]
        {
            self.steps += end.map_or(within.len(), |end| end - from);
        }
        end
    }
}

/// The end of what may be quoted by what opens at `at`.
fn window(text: &str, at: usize) -> usize {
    text.floor_char_boundary((at + QUOTED_MAX).min(text.len()))
}

#[cfg(test)]
mod tests;
