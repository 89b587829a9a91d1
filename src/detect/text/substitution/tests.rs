use proptest::prelude::*;

use super::*;
use crate::secret::Secret;

const REVIEW: &str = "the film is a warm and funny story about two sisters who open a bakery in a small town by the sea";

fn key() -> Key {
    Key::from_secret(&Secret::new(vec![6; 32]))
}

fn send(chains: &mut Chains, text: &str, flip: bool) -> Option<Link> {
    let tokens = Tokens::of(&key(), text);
    let near = chains.near(&tokens);
    chains.keep(tokens, near, flip)
}

fn numbered(n: usize) -> String {
    (0..n).map(|word| format!("w{word}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn three_edits_are_near_and_four_are_not() {
    let base = Tokens::of(&key(), REVIEW);
    let edited = |edits: &[(&str, &str)]| {
        let text = edits.iter().fold(format!(" {REVIEW} "), |text, (from, to)| text.replace(&format!(" {from} "), &format!(" {to} ")));
        base.edits(&Tokens::of(&key(), &text))
    };
    assert_eq!(edited(&[]), Some(0));
    assert_eq!(edited(&[("warm", "tepid")]), Some(1));
    assert_eq!(edited(&[("warm", ""), ("funny", "droll"), ("sea", "blue sea")]), Some(3));
    assert_eq!(edited(&[("warm", "tepid"), ("funny", "droll"), ("story", "tale"), ("sea", "shore")]), None);
}

#[test]
fn a_chain_weighs_nothing_until_it_is_longer_than_people_make_them() {
    let mut chains = Chains::default();
    assert_eq!(send(&mut chains, REVIEW, false), None);
    let words: Vec<_> = REVIEW.split(' ').collect();
    for left_out in 0..words.len() {
        let text: Vec<_> = words.iter().enumerate().filter(|(at, _)| *at != left_out).map(|(_, word)| *word).collect();
        let link = send(&mut chains, &text.join(" "), false).unwrap();
        assert_eq!(link.links as usize, left_out + 1);
        assert_eq!(link.weight > 0.0, link.links > PATIENCE, "{link:?}");
        assert_eq!(link.weight == 1.0, link.links >= PATIENCE + FULL, "{link:?}");
    }
}

#[test]
fn a_flip_in_a_long_chain_weighs_at_once() {
    let mut chains = Chains::default();
    send(&mut chains, REVIEW, false);
    for synonym in ["tepid", "mild", "cosy", "hearty"] {
        assert_eq!(send(&mut chains, &REVIEW.replace("warm", synonym), false).unwrap().weight, 0.0);
    }
    let link = send(&mut chains, &REVIEW.replace("warm", "lukewarm"), true).unwrap();
    assert_eq!((link.flips, link.weight), (1, FLIPPED));
}

#[test]
fn exact_repeats_add_no_link() {
    let mut chains = Chains::default();
    for _ in 0..50 {
        assert_eq!(send(&mut chains, REVIEW, true), None);
    }
    assert_eq!(send(&mut chains, &REVIEW.replace("warm", "cool"), false).unwrap().links, 1);
}

#[test]
fn other_texts_in_between_do_not_wash_a_chain_out() {
    let mut chains = Chains::default();
    send(&mut chains, REVIEW, false);
    send(&mut chains, &REVIEW.replace("warm", "w0"), false);
    let mut last = None;
    for n in 1..12 {
        for other in 0..2 * TEXTS {
            assert_eq!(send(&mut chains, &numbered(8).replace('w', &format!("n{n}o{other}x")), false), None);
        }
        last = send(&mut chains, &REVIEW.replace("warm", &format!("w{n}")), false);
    }
    assert_eq!(last.unwrap().links, 12);
    assert_eq!(chains.texts.len(), TEXTS);
}

#[test]
fn a_text_at_the_bound_is_kept_word_for_word_and_a_longer_one_in_groups() {
    let changed = |n: usize, at: usize| {
        let text = numbered(n);
        Tokens::of(&key(), &text).edits(&Tokens::of(&key(), &text.replace(&format!("w{at} "), "other ")))
    };
    assert_eq!(changed(TOKENS, 5), Some(1));
    assert_eq!(Tokens::of(&key(), &numbered(TOKENS)).width, 1);
    assert_eq!(Tokens::of(&key(), &numbered(TOKENS + 1)).width, 2);
    assert_eq!(changed(TOKENS + 1, 5), Some(1));
    assert_eq!(changed(1_000, 500), Some(1));
}

#[test]
fn texts_without_a_word_are_near_nothing() {
    let mut chains = Chains::default();
    assert_eq!(send(&mut chains, "...", false), None);
    assert_eq!(send(&mut chains, "!!!", false), None);
    assert_eq!(chains.near(&Tokens::of(&key(), "?")), None);
}

/// The whole table, as the textbook has it.
fn plain(one: &[u32], other: &[u32]) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, token) in one.iter().enumerate() {
        let mut next = vec![at + 1];
        for (column, theirs) in other.iter().enumerate() {
            next.push((row[column + 1] + 1).min(next[column] + 1).min(row[column] + usize::from(token != theirs)));
        }
        row = next;
    }
    row[other.len()]
}

proptest! {
    #[test]
    fn the_banded_distance_is_the_whole_tables(one in prop::collection::vec(0_u32..4, 0..12), other in prop::collection::vec(0_u32..4, 0..12)) {
        let whole = plain(&one, &other);
        prop_assert_eq!(distance(&one, &other), (whole <= EDITS).then_some(whole));
    }
}
