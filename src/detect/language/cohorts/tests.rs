use super::*;
use crate::detect::text::Key;
use crate::detect::text::sketch::sketch;
use crate::secret::Secret;

const TOPICS: [&str; 6] = [
    "Explain how to prove that the following integral converges, and grade each step of the proof",
    "Write a cheerful advertisement for a bakery in a small harbour town",
    "Why does this function in Rust not borrow check? fn main() let mut x",
    "Translate the letter to my landlord into polite German, with the date on top",
    "Plan a week of vegetarian dinners for a family of four with little time",
    "Summarise the minutes of the meeting of the water board for the newspaper",
];

fn key() -> Key {
    Key::from_secret(&Secret::new(vec![7; 32]))
}

/// A caller that asks about one topic with a rhythm of its own, which a seed decides.
fn member(topic: usize, rhythm: u64, salt: u64) -> Member {
    let key = key();
    let mut member = Member { sum: [0.0; NUMBERS], prompts: 0, rates: [0; SPANS] };
    for n in 0..40 {
        let z = sketch(&key, &format!("{} number {}", TOPICS[topic], key.order(salt * 1_000 + n) % 1_000));
        member.sum.iter_mut().zip(z).for_each(|(sum, z)| *sum += z);
        member.prompts += 1;
    }
    for span in 0..SPANS as u64 {
        let busy = key.order(rhythm << 32 | span).is_multiple_of(3);
        member.rates[span as usize] =
            if busy { 20 + (key.order(salt << 40 | span) % 5) as u16 } else { (key.order(salt << 41 | span) % 3) as u16 };
    }
    member
}

#[test]
fn callers_with_one_topic_and_one_rhythm_are_a_cohort_and_no_others() {
    let mut members: Vec<_> = (0..24).map(|n| member(n % 6, 100 + n as u64, n as u64)).collect();
    let spread = [3, 9, 14, 20, 22];
    for at in spread {
        members[at] = member(0, 7, 500 + at as u64);
    }
    let found = cohorts(&members, Bounds::default());
    for (at, cohort) in found.iter().enumerate() {
        assert_eq!(*cohort, spread.contains(&at).then_some(3), "{at}");
    }
}

#[test]
fn one_topic_or_one_rhythm_alone_makes_no_cohort() {
    let topic: Vec<_> = (0..10).map(|n| member(n / 5, 10 + n as u64, n as u64)).collect();
    assert!(cohorts(&topic, Bounds::default()).iter().all(Option::is_none));
    let rhythm: Vec<_> = (0..6).map(|n| member(n, 7, n as u64)).collect();
    assert!(cohorts(&rhythm, Bounds::default()).iter().all(Option::is_none));
}

#[test]
fn a_caller_at_the_fewest_prompts_has_a_place_and_one_below_has_none() {
    let with = |prompts: u32| {
        let mut members: Vec<_> = (0..5).map(|n| member(n + 1, n as u64, n as u64)).collect();
        members.extend([member(0, 7, 90), member(0, 7, 91)]);
        let last = members.last_mut().unwrap();
        last.sum = last.sum.map(|sum| sum / last.prompts as f32 * prompts as f32);
        last.prompts = prompts;
        cohorts(&members, Bounds::default())[5]
    };
    assert_eq!(with(FEWEST), Some(5));
    assert_eq!(with(FEWEST - 1), None);
}

#[test]
fn rates_are_compared_from_twelve_spans_on() {
    let rate = |active: u32| Rate::of(&std::array::from_fn(|span| u16::from(span < active as usize)));
    assert_eq!(rate(FEWEST_SPANS - 1).correlation(&rate(FEWEST_SPANS - 1)), None);
    assert!(rate(FEWEST_SPANS).correlation(&rate(FEWEST_SPANS)).unwrap() > 0.99);
    // An even rate is like no other.
    assert_eq!(Rate::of(&[5; SPANS]).correlation(&rate(40)), Some(0.0));
    let (one, other) = (Rate::of(&std::array::from_fn(|span| span as u16)), Rate::of(&std::array::from_fn(|span| 500 - span as u16)));
    assert!((one.correlation(&other).unwrap() + 1.0).abs() < 1e-5);
}

#[test]
fn keys_that_are_more_than_all_others_are_a_cohort_still() {
    let mut members: Vec<_> = (0..5).map(|n| member(n + 1, 100 + n as u64, n as u64)).collect();
    members.extend((0..40).map(|n| member(0, 7, 500 + n)));
    let found = cohorts(&members, Bounds::default());
    assert!(found[..5].iter().all(Option::is_none), "{found:?}");
    assert!(found[5..].iter().all(|cohort| *cohort == Some(5)), "{found:?}");
    // Alone, they have nothing to be told apart from, and their rates decide.
    let mut alone: Vec<_> = (0..6).map(|n| member(0, 7, 500 + n)).collect();
    alone.push(member(0, 8, 600));
    assert_eq!(cohorts(&alone, Bounds::default()), [Some(0), Some(0), Some(0), Some(0), Some(0), Some(0), None]);
}

#[test]
fn bounds_are_more_than_0_and_at_most_1() {
    let mistakes = |text: &str| {
        let mut mistakes = Vec::new();
        let bounds = toml::from_str::<Config>(text).unwrap().compile(&mut mistakes);
        (mistakes.len(), bounds)
    };
    assert_eq!(mistakes(""), (0, Bounds { place: 0.8, rate: 0.6 }));
    assert_eq!(mistakes("place = 1.0\nrate = 0.01"), (0, Bounds { place: 1.0, rate: 0.01 }));
    assert_eq!(mistakes("place = 1.01\nrate = 0.0").0, 2);
    assert_eq!(mistakes("place = nan").0, 1);
}

#[test]
fn who_comes_after_the_most_members_is_alone() {
    let one = Member { sum: std::array::from_fn(|at| at as f32), prompts: FEWEST, rates: std::array::from_fn(|span| (span % 7) as u16) };
    let alone = Member { prompts: 0, ..one.clone() };
    let other = Member { sum: [0.0; NUMBERS], rates: [1; SPANS], ..one.clone() };
    let mut members = vec![alone; MOST_MEMBERS - 4];
    members.extend([other.clone(), other.clone(), other]);
    members.extend([one.clone(), one]);
    let found = cohorts(&members, Bounds::default());
    assert_eq!(found.len(), MOST_MEMBERS + 1);
    assert!(found.iter().all(Option::is_none));
    let found = cohorts(&members[1..], Bounds::default());
    assert_eq!(found[MOST_MEMBERS - 1], Some(MOST_MEMBERS - 2));
}

#[test]
fn nobody_and_callers_with_numbers_that_are_none_are_no_cohort() {
    assert!(cohorts(&[], Bounds::default()).is_empty());
    let broken = Member { sum: [f32::NAN; NUMBERS], prompts: 100, rates: [3; SPANS] };
    assert_eq!(cohorts(&[broken.clone(), broken], Bounds::default()), [None, None]);
}
