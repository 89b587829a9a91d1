//! Who computes logits by biases: one token is pushed up at a time, under the same prompt, until every entry of the vocabulary has been
//! (Carlini et al., 2024, arXiv 2403.06634; Finlayson et al., 2024, arXiv 2403.09539).
//!
//! A token is biased whatever it is steered by: `logit_bias`, a list of those that alone may come, a list of words that may not.
//!
//! Honest callers bias a fixed list, of words they want or do not want. Their distinct ids are below a thousand in all, and their maps are few.

use std::collections::{HashMap, HashSet};

use crate::detect::distinct::Distinct;
use crate::detect::text::Key;

/// Distinct token ids that honest callers stay below.
pub const BENIGN: f64 = 1_000.0;

/// Distinct token ids at which the weight is 1; the same for maps beyond the first of each prompt.
pub const ALARM: f64 = 5_000.0;

/// Distinct maps under one prompt, with an answer of at most one token each, at which the weight is 1.
pub const MAPS: usize = 16;

/// Prompts of a caller whose maps are counted. Who takes turns among more of them is seen by all pairs of prompt and map.
pub const PROMPTS: usize = 16;

/// What is taken for each prompt from the maps under all of them: the one that an honest caller has, and a quarter more, about four standard errors of
/// both counts. So decoys, one map under a fresh prompt each, hide one map of an attack for four of theirs.
const USUAL: f64 = 1.25;

/// What a caller has biased, in about 3.5 KiB.
#[derive(Clone, Debug, Default)]
pub struct Biases {
    tokens: Distinct<1_024>,
    pairs: Distinct<512>,
    biased: Distinct<512>,
    maps: Distinct<64>,
    prompts: Vec<Prompt>,
    clock: u32,
    told: (f64, f64),
}

#[derive(Clone, Debug)]
struct Prompt {
    digest: u64,
    maps: [u32; MAPS],
    count: u8,
    used: u32,
}

/// What is known after one more request with a bias map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// About how many distinct token ids were biased, within 3 % in the mean.
    pub tokens: f64,
    /// About how many distinct pairs of prompt and map there were beyond one, and a quarter, for each prompt; 0 for who has fewer than [`MAPS`] maps in all.
    pub varied: f64,
    /// Distinct maps under this prompt with at most one token of an answer; counted up to [`MAPS`].
    pub maps: usize,
    /// From 0 to 1.
    pub weight: f64,
}

impl Seen {
    /// Whether a budget of distinct token ids is passed: a limit, whatever the weight.
    #[must_use]
    pub fn has_spent(&self, budget: u64) -> bool {
        self.tokens.round() > budget as f64
    }
}

impl Biases {
    /// Sees a request: the digest of its prompt, the map as it was sent, in any order, and how many tokens may be answered. A request without a map is nothing to see.
    pub fn see<'a>(&mut self, key: &Key, prompt: u64, map: impl IntoIterator<Item = (&'a str, f64)>, most_tokens: Option<u64>) -> Seen {
        let mut digest = 0_u64;
        let (mut changed, mut empty) = (false, true);
        for (token, bias) in map {
            let token = key.word(token.as_bytes());
            changed |= self.tokens.see(token);
            digest = digest.wrapping_add(key.sequence(&[token, bias.to_bits()]));
            empty = false;
        }
        if empty {
            return self.seen(0);
        }
        changed |= self.pairs.see(key.sequence(&[prompt, digest]));
        changed |= self.biased.see(key.sequence(&[prompt]));
        changed |= self.maps.see(key.sequence(&[digest]));
        if changed {
            let varied = (self.pairs.estimate() - USUAL * self.biased.estimate()).max(0.0);
            // A few lists, whatever they depend on, are no one's attack.
            let varied = if self.maps.estimate() < MAPS as f64 { 0.0 } else { varied };
            self.told = (self.tokens.estimate(), varied);
        }
        let short = most_tokens.is_some_and(|most| most <= 1);
        let maps = if short { self.count(prompt, digest as u32) } else { 0 };
        self.seen(maps)
    }

    fn seen(&self, maps: usize) -> Seen {
        let (tokens, varied) = self.told;
        let many = |count: f64| ((count / BENIGN).ln() / (ALARM / BENIGN).ln()).clamp(0.0, 1.0);
        let weight = if maps >= MAPS { 1.0 } else { many(tokens).max(many(varied)) };
        Seen { tokens, varied, maps, weight }
    }

    /// How many maps there were under this prompt. Where there is no room, the prompt with the fewest is forgotten, and of those the oldest.
    fn count(&mut self, digest: u64, map: u32) -> usize {
        self.clock = self.clock.wrapping_add(1);
        let clock = self.clock;
        let place = self.prompts.iter().position(|prompt| prompt.digest == digest);
        let fresh = Prompt { digest, maps: [0; MAPS], count: 0, used: clock };
        let prompt = match place {
            Some(place) => &mut self.prompts[place],
            None if self.prompts.len() < PROMPTS => {
                self.prompts.push(fresh);
                let last = self.prompts.len() - 1;
                &mut self.prompts[last]
            }
            None => {
                let age = |prompt: &Prompt| u32::MAX - clock.wrapping_sub(prompt.used);
                let least = (0..PROMPTS).min_by_key(|at| (self.prompts[*at].count, age(&self.prompts[*at]))).unwrap_or(0);
                self.prompts[least] = fresh;
                &mut self.prompts[least]
            }
        };
        prompt.used = clock;
        let known = usize::from(prompt.count);
        if known < MAPS && !prompt.maps[..known].contains(&map) {
            prompt.maps[known] = map;
            prompt.count += 1;
        }
        prompt.count.into()
    }
}

impl Biases {
    /// About how many distinct token ids were biased.
    #[must_use]
    pub fn tokens(&self) -> f64 {
        self.told.0
    }

    /// Distinct maps under a prompt, with at most one token of an answer; counted up to [`MAPS`].
    #[must_use]
    pub fn maps_under(&self, prompt: u64) -> usize {
        self.prompts.iter().find(|known| known.digest == prompt).map_or(0, |known| known.count.into())
    }
}

/// What several callers have biased: each token, and each map under a prompt, once. For n callers it holds at most n·[`PROMPTS`]·[`MAPS`] maps.
#[derive(Debug, Default)]
pub struct Union {
    tokens: Distinct<1_024>,
    maps: HashMap<u64, HashSet<u32>>,
}

impl Union {
    /// Adds those of a caller, whose key was the same.
    pub fn add(&mut self, biases: &Biases) {
        self.tokens.merge(&biases.tokens);
        for prompt in &biases.prompts {
            self.maps.entry(prompt.digest).or_default().extend(&prompt.maps[..usize::from(prompt.count)]);
        }
    }

    /// About how many distinct token ids they are.
    #[must_use]
    pub fn tokens(&self) -> f64 {
        self.tokens.estimate()
    }

    /// The prompt under which there are the most maps, and how many.
    #[must_use]
    pub fn most_maps(&self) -> (u64, usize) {
        self.maps.iter().map(|(prompt, maps)| (*prompt, maps.len())).max_by_key(|(_, maps)| *maps).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn key() -> Key {
        Key::from_secret(&Secret::new(vec![2; 32]))
    }

    fn one(biases: &mut Biases, prompt: u64, token: u32, most: Option<u64>) -> Seen {
        biases.see(&key(), prompt, [(token.to_string().as_str(), 100.0)], most)
    }

    #[test]
    fn a_fixed_list_weighs_nothing_however_often_it_is_sent() {
        let mut biases = Biases::default();
        let list: Vec<String> = (0..32).map(|token| token.to_string()).collect();
        for prompt in 0..20_000 {
            let seen = biases.see(&key(), prompt, list.iter().map(|token| (token.as_str(), -100.0)), None);
            assert_eq!(seen.weight, 0.0);
            assert!((seen.tokens - 32.0).abs() < 2.0);
        }
    }

    #[test]
    fn sixteen_maps_under_one_prompt_for_one_token_each_are_an_attack_and_fifteen_are_not() {
        let mut biases = Biases::default();
        let seen: Vec<_> = (0..16).map(|token| one(&mut biases, 7, token, Some(1))).collect();
        assert_eq!((seen[14].maps, seen[14].weight), (15, 0.0));
        assert_eq!((seen[15].maps, seen[15].weight), (16, 1.0));
        assert_eq!(one(&mut biases, 8, 99, Some(1)).maps, 1);
    }

    #[test]
    fn the_same_map_again_and_longer_answers_are_not_counted_as_maps() {
        let mut biases = Biases::default();
        (0..64).for_each(|_| assert_eq!(one(&mut biases, 7, 1, Some(1)).maps, 1));
        let swapped = [("1", 1.0), ("2", 2.0)];
        biases.see(&key(), 7, swapped, Some(1));
        assert_eq!(biases.see(&key(), 7, swapped.into_iter().rev(), Some(1)).maps, 2);
        assert_eq!(one(&mut biases, 7, 3, Some(2)).maps, 0);
        assert_eq!(one(&mut biases, 7, 4, None).maps, 0);
    }

    #[test]
    fn thousands_of_tokens_over_many_prompts_weigh_more_and_more() {
        let mut biases = Biases::default();
        let mut weights = Vec::new();
        for token in 0..6_000 {
            let seen = one(&mut biases, u64::from(token), token, Some(1));
            if [900, 2_300, 5_999].contains(&token) {
                weights.push(seen.weight);
                assert!((seen.tokens / f64::from(token) - 1.0).abs() < 0.1, "{seen:?}");
            }
        }
        assert_eq!(weights[0], 0.0);
        assert!((0.3..0.7).contains(&weights[1]), "{weights:?}");
        assert_eq!(weights[2], 1.0);
        assert_eq!(biases.prompts.len(), PROMPTS);
    }

    #[test]
    fn a_few_tokens_pushed_up_in_turn_under_many_prompts_weigh_however_the_turns_go() {
        let mut biases = Biases::default();
        // No prompt keeps a place among those whose maps are counted.
        let turns = (0..40).flat_map(|token| (0..200).map(move |prompt| (prompt, token)));
        let last = turns.map(|(prompt, token)| one(&mut biases, prompt, token, None)).last().unwrap();
        assert_eq!((last.maps, last.weight), (0, 1.0), "{last:?}");
        assert!((last.varied / 7_750.0 - 1.0).abs() < 0.15 && last.tokens < 50.0, "{last:?}");
        // Decoys hide a quarter of their number.
        let last = (1_000..4_000).map(|prompt| one(&mut biases, prompt, 7, None)).last().unwrap();
        assert_eq!(last.weight, 1.0, "{last:?}");
    }

    #[test]
    fn a_few_lists_under_any_number_of_prompts_and_a_list_for_each_prompt_weigh_nothing() {
        let (mut few, mut own) = (Biases::default(), Biases::default());
        for prompt in 0..40_000_u32 {
            for list in 0..4 {
                assert_eq!(one(&mut few, prompt.into(), list, None).weight, 0.0);
            }
            let value = f64::from(prompt);
            assert_eq!(own.see(&key(), prompt.into(), [("7", value)], None).weight, 0.0);
        }
    }

    #[test]
    fn a_prompt_under_attack_is_not_forgotten_for_others_asked_in_between() {
        let mut biases = Biases::default();
        one(&mut biases, 7, 0, Some(1));
        one(&mut biases, 7, 1, Some(1));
        for token in 2..16 {
            (0..2 * PROMPTS as u64).for_each(|other| {
                one(&mut biases, 1_000 + other, 5, Some(1));
            });
            one(&mut biases, 7, token, Some(1));
        }
        assert_eq!(one(&mut biases, 7, 0, Some(1)).maps, 16);
    }

    #[test]
    fn what_two_callers_biased_is_counted_once() {
        let (mut mine, mut theirs, mut union) = (Biases::default(), Biases::default(), Union::default());
        let see = |biases: &mut Biases, prompt, tokens: std::ops::Range<u32>| {
            tokens.for_each(|token| {
                one(biases, prompt, token, Some(1));
            });
        };
        see(&mut mine, 7, 0..12);
        see(&mut theirs, 7, 6..20);
        see(&mut theirs, 8, 0..5);
        union.add(&mine);
        union.add(&theirs);
        assert_eq!((union.most_maps(), union.tokens().round()), ((7, 20), 20.0));
        assert_eq!((mine.maps_under(7), theirs.maps_under(7), mine.maps_under(8)), (12, 14, 0));
        assert_eq!((mine.tokens().round(), theirs.tokens().round()), (12.0, 19.0));
    }

    #[test]
    fn a_budget_is_spent_past_it_and_not_at_it() {
        let seen = |tokens| Seen { tokens, varied: 0.0, maps: 0, weight: 0.0 };
        assert!(!seen(5_000.4).has_spent(5_000));
        assert!(seen(5_001.0).has_spent(5_000));
    }
}
