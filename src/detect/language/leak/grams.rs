//! The set of four characters in a row that instructions consist of.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use super::decode::{Escapes, Letters, rot13};
use super::{FEWEST_GRAMS, MOST_GRAMS};

/// Four characters in a row, 16 bits of each: those beyond the basic plane that are alike in them are taken for one another.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gram {
    /// As they came, the last in the lowest bits.
    pub(super) plain: u64,
    /// Backwards.
    pub(super) reversed: u64,
    /// Turned by thirteen letters.
    pub(super) turned: u64,
}

impl Gram {
    pub(super) fn push(&mut self, c: char) {
        self.plain = self.plain << 16 | u64::from(c as u16);
        self.reversed = self.reversed >> 16 | u64::from(c as u16) << 48;
        self.turned = self.turned << 16 | u64::from(rot13(c) as u16);
    }
}

/// By which grams are hashed: fresh for each process, so that nobody can write instructions whose grams all have one place, and make every look
/// for one a walk over thousands.
static KEYS: LazyLock<[u64; 2]> = LazyLock::new(|| {
    let keys = RandomState::new();
    [keys.hash_one(0), keys.hash_one(1) | 1 | 1 << 63]
});

/// Different grams, numbered from 0. Open addressing over a table at most half full: 8 bytes a place.
#[derive(Debug)]
pub(super) struct Grams {
    keys: [u64; 2],
    places: Box<[(u32, u16)]>,
    count: u16,
    characters: usize,
}

const FREE: u16 = u16::MAX;

impl Grams {
    /// The grams of a text, unless it has too few.
    pub(super) fn of(text: &str) -> Option<Self> {
        // Answers are read so too.
        let text = &unescaped(text);
        let keys = *KEYS;
        let mut letters = Letters::default();
        let mut grams = Vec::new();
        let mut characters = 0;
        // Each character adds at most one gram that was not there; a text of repeats may be longer than what is looked at.
        for c in text.chars().take(4 * MOST_GRAMS) {
            letters.push(c, |gram| {
                characters += 1;
                grams.push(hash(&keys, gram.plain));
            });
        }
        grams.sort_unstable();
        grams.dedup();
        if grams.len() < FEWEST_GRAMS {
            return None;
        }
        // The order of the hashes is as good as any to leave some out, but runs would break: the table takes them from the beginning.
        let most = grams.len().min(MOST_GRAMS);
        let mut set = Self { keys, places: vec![(0, FREE); (2 * most).next_power_of_two()].into(), count: 0, characters: 0 };
        let mut letters = Letters::default();
        for c in text.chars() {
            letters.push(c, |gram| {
                if usize::from(set.count) < most {
                    set.characters += 1;
                    set.insert(hash(&keys, gram.plain));
                }
            });
            if usize::from(set.count) == most {
                break;
            }
        }
        Some(set)
    }

    /// How many different ones there are.
    pub(super) fn len(&self) -> usize {
        self.count.into()
    }

    /// How many characters of the text they are of.
    pub(super) fn characters(&self) -> usize {
        self.characters
    }

    /// The number of a gram.
    pub(super) fn find(&self, gram: u64) -> Option<u16> {
        let (_, number) = self.places[self.place(hash(&self.keys, gram))];
        (number != FREE).then_some(number)
    }

    fn insert(&mut self, hash: u32) {
        let place = self.place(hash);
        if self.places[place].1 == FREE {
            self.places[place] = (hash, self.count);
            self.count += 1;
        }
    }

    /// Where the hash stands, or would.
    fn place(&self, hash: u32) -> usize {
        let mut place = hash as usize & (self.places.len() - 1);
        while self.places[place].1 != FREE && self.places[place].0 != hash {
            place = (place + 1) & (self.places.len() - 1);
        }
        place
    }
}

/// The text with escapes undone that it does not have, unless it is of backslashes: what matters is that both sides are read alike.
fn unescaped(text: &str) -> String {
    let (mut escapes, mut out) = (Escapes::default(), String::with_capacity(text.len()));
    text.chars().for_each(|c| escapes.push(c, |c| out.push(c)));
    out
}

/// Two grams of one hash are taken for one, which one in four thousand millions is.
fn hash(keys: &[u64; 2], gram: u64) -> u32 {
    let product = u128::from(gram ^ keys[0]) * u128::from(keys[1]);
    ((product >> 64) as u64 ^ product as u64) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn grams_of_one_place_under_one_key_lie_apart_under_another() {
        let place = |keys: &[u64; 2], gram| hash(keys, gram) % (2 * MOST_GRAMS as u32);
        let (one, other) = ([0x2545_f491_4f6c_dd1d, 0x9e37_79b9_7f4a_7c15], [0x1b87_3593_cc9e_2d51, 0xd6e8_feb8_6659_fd93]);
        let letters = |n: u64| 0x0061_0061_0000_0000 | (0x4e00 + (n >> 14)) << 16 | (0x4e00 + (n & 0x3fff));
        let chosen: Vec<u64> = (0..1 << 20).map(letters).filter(|gram| place(&one, *gram) == 7).take(64).collect();
        assert_eq!(chosen.len(), 64);
        let places: HashSet<u32> = chosen.iter().map(|gram| place(&other, *gram)).collect();
        assert!(places.len() > 56, "{}", places.len());
        assert_ne!(KEYS[0], 0);
    }
}
