use super::*;
use crate::secret::Secret;

const TEXT: &str = "The committee met on Tuesday to discuss the budget for the coming year, and after a long debate it agreed to raise the sums \
    set aside for roads and schools while those for the new town hall were cut by a third, which pleased nobody in particular.";
const OTHER: &str = "Whisk three eggs with sugar until pale, fold in flour and melted butter, pour the batter into a greased tin and bake \
    until a skewer comes out clean; let it cool before you dust it with cocoa and serve it beside berries and cream.";

fn key() -> Key {
    Key::from_secret(&Secret::new(vec![9; 32]))
}

fn cosine(one: &Sketch, other: &Sketch) -> f32 {
    one.z.iter().zip(&other.z).map(|(one, other)| one * other).sum()
}

#[test]
fn one_text_has_one_sketch_and_another_key_another() {
    let one = Sketch::of(&key(), TEXT);
    assert_eq!(one, Sketch::of(&key(), TEXT));
    assert!((cosine(&one, &one) - 1.0).abs() < 1e-5);
    assert_eq!(one.resemblance(&one), 1.0);
    let elsewhere = Sketch::of(&Key::random(), TEXT);
    assert!(cosine(&one, &elsewhere).abs() < 0.6);
    assert!(one.resemblance(&elsewhere) < 0.1);
}

#[test]
fn a_word_changed_moves_a_sketch_little_and_another_text_lies_far() {
    let (one, near, far) = (Sketch::of(&key(), TEXT), Sketch::of(&key(), &TEXT.replace("schools", "libraries")), Sketch::of(&key(), OTHER));
    assert!(cosine(&one, &near) > 0.85, "{}", cosine(&one, &near));
    assert!(cosine(&one, &far) < 0.6, "{}", cosine(&one, &far));
    assert!(one.hamming(&near) < 24, "{}", one.hamming(&near));
    assert!(one.hamming(&far) > 36, "{}", one.hamming(&far));
    assert!(one.resemblance(&near) > 0.6, "{}", one.resemblance(&near));
    assert!(one.resemblance(&far) < 0.05, "{}", one.resemblance(&far));
}

/// Under many keys, what is estimated is the true cosine of the counts of four bytes, and the true share of shingles.
#[test]
fn sketches_estimate_what_they_stand_for() {
    let near = TEXT.replace("roads and schools", "bridges and parks");
    let count = |text: &str| {
        let mut counts = std::collections::HashMap::<Vec<u8>, f64>::new();
        text.as_bytes().windows(4).for_each(|gram| *counts.entry(gram.to_vec()).or_default() += 1.0);
        counts
    };
    let (ours, theirs) = (count(TEXT), count(&near));
    let dot: f64 = ours.iter().map(|(gram, n)| n * theirs.get(gram).unwrap_or(&0.0)).sum();
    let norm = |counts: &std::collections::HashMap<Vec<u8>, f64>| counts.values().map(|n| n * n).sum::<f64>().sqrt();
    let truth = dot / norm(&ours) / norm(&theirs);
    let shingles = |text: &str| {
        let words: Vec<_> = words::words(text).map(str::to_owned).collect();
        words.windows(SHINGLE).map(<[String]>::to_vec).collect::<std::collections::HashSet<_>>()
    };
    let (mine, yours) = (shingles(TEXT), shingles(&near));
    let shared = mine.intersection(&yours).count() as f64 / mine.union(&yours).count() as f64;
    let pairs: Vec<_> = (0..60)
        .map(|byte| Key::from_secret(&Secret::new(vec![byte; 32])))
        .map(|key| (Sketch::of(&key, TEXT), Sketch::of(&key, &near)))
        .collect();
    let mean = |of: &dyn Fn(&Sketch, &Sketch) -> f64| pairs.iter().map(|(one, other)| of(one, other)).sum::<f64>() / 60.0;
    assert!((mean(&|one, other| cosine(one, other).into()) - truth).abs() < 0.05);
    let angle = mean(&|one, other| f64::from(one.hamming(other)) / 128.0 * std::f64::consts::PI);
    assert!((angle - truth.acos()).abs() < 0.06, "{angle} {}", truth.acos());
    assert!((mean(&|one, other| one.resemblance(other)) - shared).abs() < 0.04, "{shared}");
}

#[test]
fn a_text_of_few_bytes_or_words_has_a_sketch_and_an_empty_one_has_none() {
    let empty = Sketch::of(&key(), "");
    assert_eq!((empty.z, empty.simhash, empty.minhash), ([0.0; NUMBERS], 0, [u32::MAX; BINS]));
    assert_eq!(empty.resemblance(&empty), 0.0);
    let short: Vec<_> = ["a", "b", "ab", "abc", "abcd", "é", "模"].iter().map(|text| Sketch::of(&key(), text)).collect();
    for (at, one) in short.iter().enumerate() {
        assert!((cosine(one, one) - 1.0).abs() < 1e-5);
        assert!(short[..at].iter().all(|other| one.minhash != other.minhash));
    }
    assert_eq!(Sketch::of(&key(), "...!").minhash, [u32::MAX; BINS]);
}

#[test]
fn what_lies_between_the_ends_of_a_longer_text_is_not_looked_at() {
    let half = "one two three four five six. ".repeat(super::super::MOST_BYTES / 2 / 29);
    let pad = "x".repeat(super::super::MOST_BYTES / 2 - half.len());
    let long = |middle: &str| Sketch::of(&key(), &format!("{half}{pad}{middle}{pad}{half}"));
    assert_eq!(long("seven"), long("eight"));
    let whole = |middle: &str| Sketch::of(&key(), &format!("{half}{middle}{half}"));
    assert_ne!(whole("seven"), whole("eight"));
}
