//! The set of four characters in a row that instructions consist of.

use super::decode::Letters;
use super::{FEWEST_GRAMS, GRAM, MOST_GRAMS};

/// Different grams, numbered from 0. Open addressing over a table at most half full: 8 bytes a place.
#[derive(Debug)]
pub(super) struct Grams {
    places: Box<[(u32, u16)]>,
    count: u16,
    characters: usize,
}

const FREE: u16 = u16::MAX;

impl Grams {
    /// The grams of a text, unless it has too few.
    pub(super) fn of(text: &str) -> Option<Self> {
        let mut letters = Letters::default();
        let mut grams = Vec::new();
        let mut characters = 0;
        // Each character adds at most one gram that was not there; a text of repeats may be longer than what is looked at.
        for c in text.chars().take(4 * MOST_GRAMS) {
            letters.push(c, |gram| {
                characters += 1;
                grams.push(hash(&gram));
            });
        }
        grams.sort_unstable();
        grams.dedup();
        if grams.len() < FEWEST_GRAMS {
            return None;
        }
        // The order of the hashes is as good as any to leave some out, but runs would break: the table takes them from the beginning.
        let most = grams.len().min(MOST_GRAMS);
        let mut set = Self { places: vec![(0, FREE); (2 * most).next_power_of_two()].into(), count: 0, characters: 0 };
        let mut letters = Letters::default();
        for c in text.chars() {
            letters.push(c, |gram| {
                if usize::from(set.count) < most {
                    set.characters += 1;
                    set.insert(hash(&gram));
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
    pub(super) fn find(&self, gram: &[char; GRAM]) -> Option<u16> {
        let (_, number) = self.places[self.place(hash(gram))];
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

/// Two grams of one hash are taken for one, which one in four thousand millions is; whoever looks for such finds a false alarm about themselves.
fn hash(gram: &[char; GRAM]) -> u32 {
    let mixed = gram.iter().fold(0_u64, |hash, c| (hash ^ u64::from(u32::from(*c))).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23));
    (mixed ^ mixed >> 32) as u32
}
