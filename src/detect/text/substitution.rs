//! Chains of texts that differ in a word or three: how word-level attacks on classifiers look from the gate (TextFooler, Jin et al., 2020, arXiv
//! 1907.11932; BAE; TextAttack, Morris et al., 2020, arXiv 2005.05909). They ask about one text with each word left out, then with one synonym after
//! another, until the label flips.
//!
//! People do it too: they mend a typo, or ask what if; and programs ask about texts of one template, or which word an answer comes from. A chain
//! therefore weighs nothing until it is longer than people make them, an exact repeat adds no link, and of the links of a long chain those weigh at
//! which the model's word changes, or at which it hardly knows which to give: a search ends there, and follows what leads there.

use super::{Key, looked_at, words};

/// Tokens that a text is kept as.
pub const TOKENS: usize = 64;

/// Texts of a caller that are kept.
pub const TEXTS: usize = 16;

/// Tokens that may be changed, left out or put in between two texts of a chain.
pub const EDITS: usize = 3;

/// Links that a chain may have before it weighs anything: a person who tries wordings makes a few.
pub const PATIENCE: u16 = 4;

/// Links past [`PATIENCE`] with which a chain weighs its most.
pub const FULL: u16 = 12;

/// What a link with a sign weighs at least, once its chain is longer than [`PATIENCE`].
pub const LEAST: f32 = 0.5;

/// A text as keyed hashes of its words, 32 bits each. A text of more than [`TOKENS`] words is kept as so many groups of words: a word that was changed
/// in it changes one of them, a word that was put in all that follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    hashes: [u32; TOKENS],
    count: u8,
    /// Words of a group.
    width: u16,
    /// A bit for each hash. Each edit changes at most two, so that most texts are told apart without a look at their words.
    present: u64,
}

impl Tokens {
    /// The tokens of `text`, or of what is longer than [`super::MOST_BYTES`] those of both its ends.
    #[must_use]
    pub fn of(key: &Key, text: &str) -> Self {
        let words = || looked_at(text).into_iter().flat_map(words::words);
        let mut tokens = Self { hashes: [0; TOKENS], count: 0, width: 1, present: 0 };
        let mut groups = 0;
        for (at, word) in words().enumerate() {
            if at < TOKENS {
                tokens.hashes[at] = words::hash(key, word) as u32;
            }
            groups = at + 1;
        }
        if groups > TOKENS {
            // A group is at most 64 KiB of one-letter words by 64.
            let width = groups.div_ceil(TOKENS);
            let mut so_far = [0_u64; TOKENS];
            words().enumerate().for_each(|(at, word)| so_far[at / width] = key.sequence(&[so_far[at / width], words::hash(key, word)]));
            groups = groups.div_ceil(width);
            tokens.hashes = so_far.map(|hash| hash as u32);
            tokens.width = width as u16;
        }
        tokens.count = groups as u8;
        tokens.present = tokens.list().iter().fold(0, |present, hash| present | 1 << (hash & 63));
        tokens
    }

    fn list(&self) -> &[u32] {
        &self.hashes[..usize::from(self.count)]
    }

    /// How many tokens must be changed, left out or put in to make one of the other, if it is no more than [`EDITS`].
    #[must_use]
    pub fn edits(&self, other: &Self) -> Option<usize> {
        let apart = (self.present ^ other.present).count_ones() as usize;
        if self.width != other.width || self.count.abs_diff(other.count) as usize > EDITS || apart > 2 * EDITS {
            return None;
        }
        let (one, other) = (self.list(), other.list());
        let same = one.iter().zip(other).take_while(|(one, other)| one == other).count();
        let (one, other) = (&one[same..], &other[same..]);
        let same = one.iter().rev().zip(other.iter().rev()).take_while(|(one, other)| one == other).count();
        distance(&one[..one.len() - same], &other[..other.len() - same])
    }
}

/// Levenshtein's distance, in the band of cells that can be at most [`EDITS`] (Ukkonen, 1985).
fn distance(one: &[u32], other: &[u32]) -> Option<usize> {
    const BAND: usize = 2 * EDITS + 1;
    const FAR: usize = EDITS + 1;
    // Cell c of row r stands for the first r of one and the first r + c - EDITS of the other.
    let mut row: [usize; BAND] = std::array::from_fn(|cell| cell.checked_sub(EDITS).unwrap_or(FAR).min(FAR));
    for (at, token) in one.iter().enumerate() {
        let mut next = [FAR; BAND];
        for cell in 0..BAND {
            let Some(column) = (at + 1 + cell).checked_sub(EDITS).filter(|column| *column <= other.len()) else { continue };
            let left_out = row.get(cell + 1).copied().unwrap_or(FAR) + 1;
            let put_in = if cell > 0 { next[cell - 1] + 1 } else { FAR };
            let changed = column.checked_sub(1).map_or(FAR, |before| row[cell] + usize::from(*token != other[before]));
            next[cell] = left_out.min(put_in).min(changed).min(FAR);
        }
        row = next;
    }
    let last = (other.len() + EDITS).checked_sub(one.len())?;
    row.get(last).copied().filter(|edits| *edits <= EDITS)
}

/// What a model said of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The class, where it gave one.
    pub label: Option<u32>,
    /// It hardly knew which.
    pub unsure: bool,
}

/// What a text adds to its chain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Links of the chain with this one.
    pub links: u16,
    /// The model said another class of it than of the text it is nearest to, or hardly knew which.
    pub sign: bool,
    /// From 0, as people do it, to 1; `None` in a chain that is no longer than people make them, which says nothing either way.
    pub weight: Option<f32>,
}

/// The last texts of a caller for one model, in about 4.5 KiB.
#[derive(Clone, Debug, Default)]
pub struct Chains {
    texts: Vec<Text>,
    clock: u32,
}

#[derive(Clone, Debug)]
struct Text {
    tokens: Tokens,
    label: Option<u32>,
    links: u16,
    used: u32,
}

impl Chains {
    /// Keeps a text and what was said of it; the link that it adds, if one of those that are kept is within [`EDITS`] and is not the same.
    ///
    /// When there is no room, a text of the shortest chain is forgotten, and of those the one that was met longest ago: other texts sent in between do not wash a chain out.
    pub fn learn(&mut self, tokens: &Tokens, said: Said) -> Option<Link> {
        // A text without a word is near any other of its kind, and means nothing.
        if tokens.count == 0 {
            return None;
        }
        self.clock = self.clock.wrapping_add(1);
        let found =
            self.texts.iter().enumerate().filter_map(|(slot, text)| Some((text.tokens.edits(tokens)?, u16::MAX - text.links, slot)));
        let link = match found.min() {
            Some((edits, _, slot)) => {
                let text = &mut self.texts[slot];
                text.used = self.clock;
                if edits == 0 {
                    return None;
                }
                text.links = text.links.saturating_add(1);
                let flipped = text.label.zip(said.label).is_some_and(|(before, now)| before != now);
                let sign = flipped || said.unsure;
                Some(Link { links: text.links, sign, weight: weight(text.links, sign) })
            }
            None => None,
        };
        let text = Text { tokens: tokens.clone(), label: said.label, links: link.map_or(0, |link| link.links), used: self.clock };
        if self.texts.len() < TEXTS {
            self.texts.reserve_exact(TEXTS - self.texts.len());
            self.texts.push(text);
        } else {
            let clock = self.clock;
            let place = (0..TEXTS).min_by_key(|slot| (self.texts[*slot].links, u32::MAX - clock.wrapping_sub(self.texts[*slot].used)));
            self.texts[place?] = text;
        }
        link
    }

    /// Bytes that are kept apart from it.
    #[cfg(test)]
    pub(in crate::detect) fn kept(&self) -> usize {
        self.texts.capacity() * size_of::<Text>()
    }
}

fn weight(links: u16, sign: bool) -> Option<f32> {
    let past = links.checked_sub(PATIENCE).filter(|past| *past > 0)?;
    Some(if sign { (f32::from(past.min(FULL)) / f32::from(FULL)).max(LEAST) } else { 0.0 })
}

#[cfg(test)]
mod tests;
