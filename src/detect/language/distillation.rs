//! What a caller's last prompts and answers look like beside those of one who builds a training set: one template over and over, reasoning or grading
//! asked for, long answers to short prompts, one temperature, an even pace, around the clock.
//!
//! Each sign alone is what some honest caller does all day: a product has a template, a benchmark one temperature, a nightly job an even pace. Only
//! repetition together with the others weighs.

use super::phrases::Found;
use crate::detect::text::skeleton::Skeleton;

/// Templates of the last prompts that are kept.
pub const TEMPLATES: usize = 32;

/// Prompts before anything weighs.
pub const PATIENCE: u32 = 16;

/// About how many of the last prompts a share is of.
pub const WINDOW: f64 = 128.0;

/// Tokens answered for each token asked at which the sign of long answers is 1; it is 0 where there are no more than were asked.
pub const LONG: f64 = 16.0;

/// A prompt, as far as this looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    /// Its template.
    pub skeleton: &'a Skeleton,
    /// What it asks for.
    pub found: Found,
    /// The temperature that was asked for, if one was.
    pub temperature: Option<f64>,
    /// Milliseconds since the epoch.
    pub at: u64,
}

/// The last prompts and answers of a caller, in less than 500 bytes.
#[derive(Clone, Debug, Default)]
pub struct Window {
    templates: Ring,
    count: u32,
    repeated: Mean,
    elicited: Mean,
    pinned: Mean,
    temperature: Option<f64>,
    long: Mean,
    last: Option<u64>,
    gap: Mean,
    square: Mean,
    hours: [u32; 24],
}

#[derive(Clone, Debug, Default)]
struct Ring {
    simhashes: Vec<u64>,
    next: usize,
}

/// A mean of the last values, each of which fades by 1/[`WINDOW`] with every one after it; of fewer values it is the plain mean.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    value: f64,
    weight: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.weight = (self.weight + 1.0).min(WINDOW);
        self.value += (value - self.value) / self.weight;
    }
}

/// The signs, each from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Signs {
    /// The share of prompts whose template is that of another among the 32 before.
    pub repetition: f64,
    /// How much of reasoning, grading or hidden thoughts is asked for.
    pub elicitation: f64,
    /// How much longer answers are than their prompts, by the logarithm, in the mean.
    pub length: f64,
    /// The share of prompts that ask for the temperature of the one before.
    pub pinned: f64,
    /// How even the pace is: 1 less the coefficient of variation of the gaps, which is 1 for independent arrivals and more for people.
    pub pace: f64,
    /// The part of the last 24 hours in which there were prompts.
    pub hours: f64,
}

impl Signs {
    /// Repetition, by the mean of the others in the order of how seldom honest callers show them. It is less than 0.3 for any caller that asks for no
    /// reasoning and no grading and does not get long answers.
    #[must_use]
    pub fn weight(&self) -> f64 {
        let others = 0.5 * self.elicitation + 0.2 * self.length + 0.1 * (self.pinned + self.pace + self.hours);
        self.repetition * others
    }
}

impl Window {
    /// Sees a prompt.
    pub fn ask(&mut self, prompt: &Prompt) {
        let Ring { simhashes, next } = &mut self.templates;
        let met = simhashes.iter().any(|simhash| prompt.skeleton.is_near(*simhash));
        if simhashes.len() < TEMPLATES {
            simhashes.push(prompt.skeleton.simhash);
        } else {
            simhashes[*next] = prompt.skeleton.simhash;
            *next = (*next + 1) % TEMPLATES;
        }
        // The first prompt can repeat nothing, and says nothing.
        if self.count > 0 {
            self.repeated.add(f64::from(u8::from(met)));
            self.pinned.add(f64::from(u8::from(prompt.temperature.is_some() && prompt.temperature == self.temperature)));
        }
        self.elicited.add(prompt.found.elicitation());
        self.temperature = prompt.temperature;
        if let Some(last) = self.last {
            let gap = prompt.at.saturating_sub(last) as f64;
            self.gap.add(gap);
            self.square.add(gap * gap);
        }
        self.last = Some(prompt.at);
        let hour = prompt.at / 3_600_000;
        self.hours[(hour % 24) as usize] = u32::try_from(hour).unwrap_or(u32::MAX);
        self.count = self.count.saturating_add(1);
    }

    /// The templates of the last prompts, by their SimHashes.
    #[must_use]
    pub fn templates(&self) -> &[u64] {
        &self.templates.simhashes
    }

    /// Sees how many tokens an answer used; one that is not known is not seen. Each counts alike, so that one long prompt among many hides nothing.
    pub fn answer(&mut self, input: u64, output: u64) {
        let ratio = output.max(1) as f64 / input.max(1) as f64;
        self.long.add((ratio.ln() / LONG.ln()).clamp(0.0, 1.0));
    }

    /// The signs; all 0 before there are [`PATIENCE`] prompts.
    #[must_use]
    pub fn signs(&self) -> Signs {
        let Some(last) = self.last.filter(|_| self.count >= PATIENCE) else { return Signs::default() };
        let deviation = (self.square.value - self.gap.value * self.gap.value).max(0.0).sqrt();
        // Requests at once have no pace.
        let pace = if self.gap.value >= 1.0 { 1.0 - deviation / self.gap.value } else { 0.0 };
        let hour = u32::try_from(last / 3_600_000).unwrap_or(u32::MAX);
        let active = self.hours.iter().filter(|seen| **seen > 0 && hour.saturating_sub(**seen) < 24).count();
        Signs {
            repetition: self.repeated.value,
            elicitation: self.elicited.value,
            length: self.long.value,
            pinned: self.pinned.value,
            pace: pace.clamp(0.0, 1.0),
            hours: active as f64 / 24.0,
        }
    }
}

#[cfg(test)]
mod tests;
