use super::*;
use crate::detect::language::bias::{ALARM, MAPS};
use crate::detect::language::distillation::{PATIENCE, Prompt};
use crate::detect::language::phrases;
use crate::detect::text::Key;
use crate::detect::text::skeleton::Skeleton;
use crate::secret::Secret;

fn key() -> Key {
    Key::from_secret(&Secret::new(vec![3; 32]))
}

fn together(callers: usize) -> Together {
    Together { callers: vec![Past::default(); callers] }
}

/// A caller with these templates, of which each prompt asks for what `text` asks for, four an hour from an hour on, day and night.
fn window(templates: impl Iterator<Item = u64>, text: &str, hour: u64) -> Window {
    let mut window = Window::default();
    let skeleton = Skeleton::of(&key(), text);
    for (n, simhash) in templates.enumerate() {
        let skeleton = Skeleton { simhash, ..skeleton };
        let at = hour * 3_600_000 + n as u64 * 900_000;
        window.ask(&Prompt { skeleton: &skeleton, found: phrases::found(text), temperature: Some(1.0), at });
    }
    window
}

fn random(n: u64) -> u64 {
    key().digest([&n.to_le_bytes()[..]])
}

const GRADES: &str = "Think step by step, then grade the following answer by the rubric and explain each deduction.";

#[test]
fn of_one_caller_the_level_is_its_own_bound_and_of_n_it_grows_by_the_logarithm() {
    let told = |callers: usize, weight: f64| {
        let weights = std::iter::repeat_n(weight, callers);
        together(callers).sum(Sign::Probing, weights, HONEST_PROBES, PROBES).is_some()
    };
    assert!(told(1, PROBES) && !told(1, PROBES - 1e-9));
    for callers in [2, 4, 16, 256, 4_096] {
        let each = HONEST_PROBES + (PROBES - HONEST_PROBES) * (1.0 + (callers as f64).ln()) / callers as f64;
        assert!(told(callers, each + 1e-9) && !told(callers, each - 1e-9), "{callers}");
    }
    assert!(!told(100_000, HONEST_PROBES), "of what is honest nothing adds up");
}

#[test]
fn who_gave_nothing_is_not_among_those_it_rests_on_and_who_gave_most_comes_first() {
    let weights = [0.3, 0.0, 0.9, HONEST_PROBES, 0.6];
    let found = together(5).sum(Sign::Probing, weights.into_iter(), HONEST_PROBES, PROBES).unwrap();
    assert_eq!(found.by, [2, 4, 0]);
}

#[test]
fn templates_that_no_caller_repeats_and_all_share_are_repeated() {
    let mut all = Together::default();
    for caller in 0..16_u64 {
        // Each has every template once, in an order of its own.
        let window = window((0..64).map(|n| random((n + 7 * caller) % 64)), GRADES, 500_000);
        assert!(window.signs().weight() < HONEST, "{:?}", window.signs());
        all.add(Past { window, ..Past::default() });
    }
    let found = all.found();
    assert_eq!((found.len(), found[0].sign, found[0].by.len()), (1, Sign::Distillation, 16));
    let mut apart = Together::default();
    for caller in 0..16 {
        apart.add(Past { window: window((0..64).map(|n| random(1_000 + 64 * caller + n)), GRADES, 500_000), ..Past::default() });
    }
    assert!(apart.found().is_empty(), "each its own templates");
}

#[test]
fn templates_of_others_are_met_within_eight_bits() {
    let met = |bits: u32| {
        let window = window((0..PATIENCE.into()).map(random), GRADES, 500_000);
        let theirs: Vec<_> = window.templates().iter().map(|hash| (1, hash ^ ((1 << bits) - 1))).collect();
        signs(0, &window, &theirs).repetition
    };
    assert_eq!(met(NEAR), 1.0);
    assert!(met(NEAR + 1) < 0.2);
}

#[test]
fn of_templates_so_many_are_held_against_each_and_those_past_them_are_not() {
    // Two callers of one template each, with others of 32 templates between them.
    let told = |between: u64| {
        let mut all = Together::default();
        all.add(Past { window: window((0..2 * 32).map(random), GRADES, 500_000), ..Past::default() });
        for caller in 0..between {
            all.add(Past { window: window((0..32).map(|n| random(9_000 + 32 * caller + n)), "Good morning.", 500_000), ..Past::default() });
        }
        all.add(Past { window: window((32..2 * 32).map(random), GRADES, 500_000), ..Past::default() });
        let met = all.callers.iter().enumerate().flat_map(|(at, past)| past.window.templates().iter().map(move |hash| (at, *hash)));
        let templates: Vec<_> = met.take(MOST_TEMPLATES).collect();
        signs(0, &all.callers[0].window, &templates).repetition
    };
    let most = MOST_TEMPLATES as u64 / 32;
    assert_eq!(told(most - 2), 1.0);
    assert!(told(most - 1) < 0.2);
}

#[test]
fn a_team_without_anything_odd_is_never_told_however_large_it_is() {
    for text in ["Translate the letter below into German.", "Let's think step by step: what does the customer want?"] {
        let one = Past { window: window(std::iter::repeat_n(random(1), 200), text, 500_000), ..Past::default() };
        let mut team = Together { callers: vec![one; 1_000] };
        (0..9).for_each(|hour| {
            team.add(Past { window: window(std::iter::repeat_n(random(1), 200), text, 500_001 + hour), ..Past::default() })
        });
        assert!(team.found().is_empty(), "{text}: {:?}", team.found());
    }
}

#[test]
fn maps_and_tokens_of_all_are_counted_once_each_up_to_their_levels() {
    let biases = |tokens: std::ops::Range<u32>, most: Option<u64>| {
        let mut biases = Biases::default();
        let key = key();
        tokens.for_each(|token| {
            biases.see(&key, 7, [(token.to_string().as_str(), 100.0)], most);
        });
        Past { biases: Some(Box::new(biases)), ..Past::default() }
    };
    // For four callers 16 × (1 + ln 4) = 38.2 maps.
    let maps = |last: u32| {
        let mut all = Together::default();
        (0..3).for_each(|caller| all.add(biases(12 * caller..12 * caller + 12, Some(1))));
        all.add(biases(0..last, Some(1)));
        all.add(biases(36..36 + last, Some(1)));
        all.callers.remove(3);
        all.found().first().map(|found| (found.sign, found.by.len()))
    };
    assert_eq!((maps(2), maps(3)), (None, Some((Sign::Bias, 4))));
    assert_eq!(MAPS, 16);
    // The same twelve of four callers are twelve.
    let mut same = Together::default();
    (0..4).for_each(|_| same.add(biases(0..12, Some(1))));
    assert!(same.found().is_empty());
    // For two callers 5,000 × (1 + ln 2) = 8,466 tokens, give or take three in a hundred.
    let tokens = |each: u32| {
        let mut all = Together::default();
        (0..2).for_each(|caller| all.add(biases(caller * each..(caller + 1) * each, None)));
        !all.found().is_empty()
    };
    assert_eq!(ALARM, 5_000.0);
    assert!(!tokens(3_800) && tokens(4_700));
}
