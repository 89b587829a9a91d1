//! Whether the instructions of a model come out of it: how much of them stands in the answer, as it passes.
//!
//! Both are brought to small letters and digits with single spaces between. Of the instructions the set of four characters in a row is kept; of the answer, each four
//! that belong to a run of at least [`RUN`] of the set count, for as long as they lie within the last [`SPAN`] lengths of the instructions. The share of the set that counts at once
//! is the containment (garak's detector of extracted prompts has the same measure without runs, over whole answers; a long answer in the language of
//! the instructions would contain half of any prompt by its small words alone). The answer is also read backwards, turned by thirteen letters (rot13), and as base64.
//!
//! A paraphrase, a translation and any other cipher pass: instructions are no place for a secret (OWASP LLM07:2025). What has been sent of a stream cannot be called
//! back: at the default bounds, most of the instructions have left when it is cut.

use std::collections::VecDeque;
use std::sync::Arc;

mod decode;
mod grams;

use decode::{Base64, Letters};
use grams::Grams;

/// Characters of a gram, which is what garak uses.
pub const GRAM: usize = 4;

/// Grams in a row, all of the instructions, from which on they count: eleven characters.
pub const RUN: usize = 8;

/// In how many lengths of the instructions what counts must lie, so that remarks in between hide nothing.
pub const SPAN: usize = 4;

/// Different grams of instructions that are looked for: about 5 KiB of text. Of longer ones, those from their beginning.
pub const MOST_GRAMS: usize = 4_096;

/// Instructions with fewer different grams are not looked for: a sentence of the trade, as "you are a helpful assistant", stands in many an answer.
pub const FEWEST_GRAMS: usize = 48;

/// The most texts of one request that are looked for, the first ones.
pub const MOST_TEXTS: usize = 4;

/// The containment that is told.
pub const FLAG: f64 = 0.5;

/// The containment at which an answer ends.
pub const CUT: f64 = 0.85;

/// What must not come out of a model: instructions, and canaries.
#[derive(Debug, Default)]
pub struct Guarded {
    texts: Vec<Grams>,
    canaries: Vec<Canary>,
}

/// A string that stands in instructions for no other reason than to be found elsewhere, with the prefix function of Knuth, Morris and Pratt.
struct Canary {
    bytes: Box<[u8]>,
    borders: Box<[u32]>,
}

impl std::fmt::Debug for Canary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Canary")
    }
}

/// The longest canary, in bytes.
pub const CANARY_MAX: usize = 256;

/// The shortest canary, in bytes: what is shorter is found by chance.
pub const CANARY_MIN: usize = 8;

/// The most canaries.
pub const MOST_CANARIES: usize = 16;

impl Guarded {
    /// Guards instructions, each by itself, and canaries. What passes a bound above is left out.
    #[must_use]
    pub fn new<'a>(texts: impl IntoIterator<Item = &'a str>, canaries: impl IntoIterator<Item = &'a str>) -> Self {
        let texts = texts.into_iter().filter_map(Grams::of).take(MOST_TEXTS).collect();
        let fits = |canary: &&str| (CANARY_MIN..=CANARY_MAX).contains(&canary.len());
        let canaries = canaries.into_iter().filter(fits).take(MOST_CANARIES).map(Canary::new).collect();
        Self { texts, canaries }
    }

    /// Whether there is nothing to look for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty() && self.canaries.is_empty()
    }
}

/// In what form instructions came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As they are.
    Plain,
    /// Backwards.
    Reversed,
    /// Turned by thirteen letters.
    Rot13,
    /// As base64, in the standard or the URL-safe alphabet.
    Base64,
}

/// What has come out of a model so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Leak {
    /// The largest containment that any of the instructions had at any time, from 0 to 1.
    pub containment: f64,
    /// In which form.
    pub form: Form,
    /// Whether a canary came out, in plain.
    pub canary: bool,
}

/// One answer as it passes: one choice of a stream, or a whole text.
///
/// It takes some hundred bytes, and for each of the guarded texts that come out at most 16 bytes a gram and form: 256 KiB for instructions of [`MOST_GRAMS`] in all forms at once, 12 KiB for
/// instructions of a thousand characters in plain.
#[derive(Debug)]
pub struct Stream {
    guarded: Arc<Guarded>,
    plain: Letters,
    base64: Base64,
    decoded: Letters,
    trackers: Vec<[Tracker; FORMS.len()]>,
    matched: Vec<u32>,
    leak: Leak,
}

const FORMS: [Form; 4] = [Form::Plain, Form::Reversed, Form::Rot13, Form::Base64];

impl Stream {
    /// An answer that has not begun.
    #[must_use]
    pub fn new(guarded: Arc<Guarded>) -> Self {
        let trackers = guarded.texts.iter().map(|_| Default::default()).collect();
        let matched = vec![0; guarded.canaries.len()];
        let leak = Leak { containment: 0.0, form: Form::Plain, canary: false };
        Self { guarded, plain: Letters::default(), base64: Base64::default(), decoded: Letters::default(), trackers, matched, leak }
    }

    /// Passes more of the answer, cut anywhere between characters, and tells what has come out so far.
    pub fn pass(&mut self, text: &str) -> Leak {
        let guarded = self.guarded.clone();
        for (canary, matched) in guarded.canaries.iter().zip(&mut self.matched) {
            self.leak.canary |= text.bytes().any(|byte| canary.step(matched, byte));
        }
        if guarded.texts.is_empty() {
            return self.leak;
        }
        for c in text.chars() {
            let Self { plain, base64, decoded, trackers, leak, .. } = self;
            plain.push(c, |gram| {
                for (text, trackers) in guarded.texts.iter().zip(&mut *trackers) {
                    trackers[0].see(text, text.find(gram.plain), leak, Form::Plain);
                    trackers[1].see(text, text.find(gram.reversed), leak, Form::Reversed);
                    trackers[2].see(text, text.find(gram.turned), leak, Form::Rot13);
                }
            });
            base64.push(c, |c| {
                decoded.push(c, |gram| {
                    for (text, trackers) in guarded.texts.iter().zip(&mut *trackers) {
                        trackers[3].see(text, text.find(gram.plain), leak, Form::Base64);
                    }
                });
            });
        }
        self.leak
    }
}

/// What counts of one text in one form. Nothing is allocated before a run is long enough.
#[derive(Debug, Default)]
struct Tracker {
    position: u64,
    run: usize,
    /// The run's first grams, before it is long enough to count.
    pending: [u16; RUN],
    counted: VecDeque<(u64, u16)>,
    times: Vec<u16>,
    distinct: usize,
}

impl Tracker {
    fn see(&mut self, text: &Grams, found: Option<u16>, leak: &mut Leak, form: Form) {
        self.position += 1;
        let Some(gram) = found else {
            self.run = 0;
            return;
        };
        self.run += 1;
        if self.run < RUN {
            self.pending[self.run - 1] = gram;
            return;
        }
        if self.times.is_empty() {
            self.times = vec![0; text.len()];
        }
        if self.run == RUN {
            for gram in self.pending.into_iter().take(RUN - 1) {
                self.count(text, gram);
            }
        }
        self.count(text, gram);
        let containment = self.distinct as f64 / text.len() as f64;
        if containment > leak.containment {
            (leak.containment, leak.form) = (containment, form);
        }
    }

    fn count(&mut self, text: &Grams, gram: u16) {
        let (oldest, most) = (self.position.saturating_sub((SPAN * text.characters()) as u64), 2 * text.len());
        while self.counted.front().is_some_and(|(position, _)| *position < oldest) || self.counted.len() >= most {
            let Some((_, gone)) = self.counted.pop_front() else { break };
            let times = &mut self.times[usize::from(gone)];
            *times -= 1;
            self.distinct -= usize::from(*times == 0);
        }
        self.counted.push_back((self.position, gram));
        let times = &mut self.times[usize::from(gram)];
        self.distinct += usize::from(*times == 0);
        *times += 1;
    }
}

impl Canary {
    fn new(text: &str) -> Self {
        let bytes: Box<[u8]> = text.as_bytes().into();
        let mut borders = vec![0_u32; bytes.len()];
        let mut border = 0;
        for at in 1..bytes.len() {
            while border > 0 && bytes[at] != bytes[border] {
                border = borders[border - 1] as usize;
            }
            border += usize::from(bytes[at] == bytes[border]);
            borders[at] = border as u32;
        }
        Self { bytes, borders: borders.into() }
    }

    /// Takes one more byte; whether the canary ends with it.
    fn step(&self, matched: &mut u32, byte: u8) -> bool {
        let mut at = *matched as usize;
        while at > 0 && (at == self.bytes.len() || self.bytes[at] != byte) {
            at = self.borders[at - 1] as usize;
        }
        at += usize::from(self.bytes[at] == byte);
        *matched = at as u32;
        at == self.bytes.len()
    }
}

#[cfg(test)]
mod tests;
