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

use decode::{Base64, Escapes, Letters};
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

/// The most texts of a policy that are looked for, and of one request: the first ones. Neither takes the place of the other's.
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
    /// Guards instructions of a policy and of a request, each by itself, and canaries. What passes a bound above is left out.
    #[must_use]
    pub fn new<'a>(
        policy: impl IntoIterator<Item = &'a str>,
        request: impl IntoIterator<Item = &'a str>,
        canaries: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let request = request.into_iter().filter_map(Grams::of).take(MOST_TEXTS);
        let texts = policy.into_iter().filter_map(Grams::of).take(MOST_TEXTS).chain(request).collect();
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

/// One answer as it passes: one choice of a stream, or a whole one.
///
/// It may be said in several places that pass side by side, such as a text, its thoughts and what tools are given: each is read by itself, and what came out
/// of all of them is counted together. It takes some hundred bytes a place, and for each of the guarded texts that come out at most 18 bytes a gram and form: 290 KiB for
/// instructions of [`MOST_GRAMS`] in all forms at once, 14 KiB for instructions of a thousand characters in plain.
#[derive(Debug)]
pub struct Stream {
    guarded: Arc<Guarded>,
    readers: VecDeque<(u64, Reader)>,
    tallies: Vec<[Tally; FORMS.len()]>,
    leak: Leak,
}

const FORMS: [Form; 4] = [Form::Plain, Form::Reversed, Form::Rot13, Form::Base64];

/// The most places of one answer that are read side by side; of more, the one that was read longest ago is forgotten.
pub const MOST_PLACES: usize = 32;

impl Stream {
    /// An answer that has not begun.
    #[must_use]
    pub fn new(guarded: Arc<Guarded>) -> Self {
        let tallies = guarded.texts.iter().map(|_| Default::default()).collect();
        let leak = Leak { containment: 0.0, form: Form::Plain, canary: false };
        Self { guarded, readers: VecDeque::new(), tallies, leak }
    }

    /// Passes more of what the answer says in this place, cut anywhere between characters, and tells what has come out so far.
    pub fn pass(&mut self, place: u64, text: &str) -> Leak {
        let Self { guarded, readers, tallies, leak } = self;
        match readers.iter().rposition(|(known, _)| *known == place) {
            // The one that is read on is the last, where it is looked for first.
            Some(at) if at + 1 < readers.len() => {
                let found = readers.remove(at);
                readers.extend(found);
            }
            Some(_) => {}
            None => {
                if readers.len() == MOST_PLACES {
                    readers.pop_front();
                }
                readers.push_back((place, Reader::new(guarded)));
            }
        }
        if let Some((_, reader)) = readers.back_mut() {
            reader.pass(text, guarded, tallies, leak);
        }
        *leak
    }
}

/// Reads what is said in one place.
#[derive(Debug)]
struct Reader {
    escapes: Escapes,
    plain: Letters,
    base64: Base64,
    decoded: Letters,
    runs: Vec<[Run; FORMS.len()]>,
    /// How much of each canary has come, as it was written, and with the escapes of JSON undone.
    matched: Vec<[u32; 2]>,
}

impl Reader {
    fn new(guarded: &Guarded) -> Self {
        let runs = guarded.texts.iter().map(|_| Default::default()).collect();
        let matched = vec![[0; 2]; guarded.canaries.len()];
        let (plain, decoded) = (Letters::default(), Letters::default());
        Self { escapes: Escapes::default(), plain, base64: Base64::default(), decoded, runs, matched }
    }

    fn pass(&mut self, text: &str, guarded: &Guarded, tallies: &mut [[Tally; FORMS.len()]], leak: &mut Leak) {
        let Self { escapes, plain, base64, decoded, runs, matched } = self;
        for (canary, [written, _]) in guarded.canaries.iter().zip(&mut *matched) {
            leak.canary |= text.bytes().any(|byte| canary.step(written, byte));
        }
        for c in text.chars() {
            escapes.push(c, |c| {
                for (canary, [_, meant]) in guarded.canaries.iter().zip(&mut *matched) {
                    leak.canary |= c.encode_utf8(&mut [0; 4]).bytes().any(|byte| canary.step(meant, byte));
                }
                let all = || guarded.texts.iter().enumerate();
                plain.push(c, |gram| {
                    for (at, text) in all() {
                        for (form, gram) in [gram.plain, gram.reversed, gram.turned].into_iter().enumerate() {
                            runs[at][form].see(&mut tallies[at][form], text, text.find(gram), leak, FORMS[form]);
                        }
                    }
                });
                base64.push(c, |c| {
                    decoded.push(c, |gram| {
                        for (at, text) in all() {
                            runs[at][3].see(&mut tallies[at][3], text, text.find(gram.plain), leak, FORMS[3]);
                        }
                    });
                });
            });
        }
    }
}

/// A run of grams of one text in one form, in one place.
#[derive(Debug, Default)]
struct Run {
    position: u64,
    length: usize,
    /// The run's first grams, before it is long enough to count.
    pending: [u16; RUN],
}

/// What counts of one text in one form, in whatever place. Nothing is allocated before a run is long enough.
#[derive(Debug, Default)]
struct Tally {
    /// As far as the longest place has come.
    position: u64,
    counted: VecDeque<(u32, u16)>,
    times: Vec<u16>,
    distinct: usize,
}

impl Run {
    fn see(&mut self, tally: &mut Tally, text: &Grams, found: Option<u16>, leak: &mut Leak, form: Form) {
        self.position += 1;
        tally.position = tally.position.max(self.position);
        let Some(gram) = found else {
            self.length = 0;
            return;
        };
        self.length += 1;
        if self.length < RUN {
            self.pending[self.length - 1] = gram;
            return;
        }
        if self.length == RUN {
            for gram in self.pending.into_iter().take(RUN - 1) {
                tally.count(text, gram);
            }
        }
        tally.count(text, gram);
        let containment = tally.distinct as f64 / text.len() as f64;
        if containment > leak.containment {
            (leak.containment, leak.form) = (containment, form);
        }
    }
}

impl Tally {
    fn count(&mut self, text: &Grams, gram: u16) {
        if self.times.is_empty() {
            self.times = vec![0; text.len()];
        }
        // No answer has so many characters; past them, all that counted is as old as can be.
        let position = u32::try_from(self.position).unwrap_or(u32::MAX);
        let (oldest, most) = (position.saturating_sub((SPAN * text.characters()) as u32), 2 * text.len());
        while self.counted.front().is_some_and(|(position, _)| *position < oldest) || self.counted.len() >= most {
            let Some((_, gone)) = self.counted.pop_front() else { break };
            let times = &mut self.times[usize::from(gone)];
            *times -= 1;
            self.distinct -= usize::from(*times == 0);
        }
        self.counted.push_back((position, gram));
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
