use super::*;
use crate::secret::Secret;

const TEXT: &str = "The committee met on Tuesday to discuss the budget for the coming year, and after a long debate it agreed to raise the sums \
    set aside for roads and schools while those for the new town hall were cut by a third, which pleased nobody in particular.";
const OTHER: &str = "Whisk three eggs with sugar until pale, fold in flour and melted butter, pour the batter into a greased tin and bake \
    until a skewer comes out clean; let it cool before you dust it with cocoa and serve it beside berries and cream.";

fn key() -> Key {
    Key::from_secret(&Secret::new(vec![9; 32]))
}

fn cosine(one: &[f32; NUMBERS], other: &[f32; NUMBERS]) -> f32 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

#[test]
fn one_text_has_one_sketch_and_another_key_another() {
    let one = sketch(&key(), TEXT);
    assert_eq!(one, sketch(&key(), TEXT));
    assert!((cosine(&one, &one) - 1.0).abs() < 1e-5);
    assert!(cosine(&one, &sketch(&Key::random(), TEXT)).abs() < 0.6);
}

#[test]
fn a_word_changed_moves_a_sketch_little_and_another_text_lies_far() {
    let (one, near, far) = (sketch(&key(), TEXT), sketch(&key(), &TEXT.replace("schools", "libraries")), sketch(&key(), OTHER));
    assert!(cosine(&one, &near) > 0.85, "{}", cosine(&one, &near));
    assert!(cosine(&one, &far) < 0.6, "{}", cosine(&one, &far));
}

/// Under many keys, what is estimated is the true cosine of the counts of four bytes.
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
    let keys = (0..60).map(|byte| Key::from_secret(&Secret::new(vec![byte; 32])));
    let mean = keys.map(|key| f64::from(cosine(&sketch(&key, TEXT), &sketch(&key, &near)))).sum::<f64>() / 60.0;
    assert!((mean - truth).abs() < 0.05, "{mean} {truth}");
}

#[test]
fn a_text_of_few_bytes_has_a_sketch_and_an_empty_one_has_none() {
    assert_eq!(sketch(&key(), ""), [0.0; NUMBERS]);
    for text in ["a", "b", "ab", "abc", "abcd", "é", "模", "...!"] {
        let one = sketch(&key(), text);
        assert!((cosine(&one, &one) - 1.0).abs() < 1e-5, "{text}");
    }
}

#[test]
fn what_lies_between_the_ends_of_a_longer_text_is_not_looked_at() {
    let half = "one two three four five six. ".repeat(super::super::MOST_BYTES / 2 / 29);
    let pad = "x".repeat(super::super::MOST_BYTES / 2 - half.len());
    let long = |middle: &str| sketch(&key(), &format!("{half}{pad}{middle}{pad}{half}"));
    assert_eq!(long("seven"), long("eight"));
    let whole = |middle: &str| sketch(&key(), &format!("{half}{middle}{half}"));
    assert_ne!(whole("seven"), whole("eight"));
}

/// Each row of Walsh's and Hadamard's matrix has the sign of the parity of the bits that its number and the column's share.
#[test]
fn the_first_numbers_of_a_rotation_are_those_of_the_whole_matrix() {
    let key = key();
    let counts: [f32; BUCKETS] = std::array::from_fn(|at| ((at * 37) % 11) as f32 - 5.0);
    let mut whole = counts.map(f64::from);
    for signs in key.signs.iter() {
        let signed: Vec<f64> = whole.iter().zip(signs).map(|(number, sign)| number * f64::from(*sign)).collect();
        let parity = |row: usize, column: usize| if (row & column).count_ones() % 2 == 1 { -1.0 } else { 1.0 };
        whole = std::array::from_fn(|row| signed.iter().enumerate().map(|(column, number)| number * parity(row, column)).sum());
    }
    for (one, other) in rotated(&key, counts).iter().zip(whole) {
        assert!((f64::from(*one) - other).abs() < 1e-3 * other.abs().max(100.0), "{one} {other}");
    }
}
