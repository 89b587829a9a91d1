use proptest::prelude::*;

use super::*;
use crate::secret::Secret;

const REVIEW: &str = "the film is a warm and funny story about two sisters who open a bakery in a small town by the sea";

fn key() -> Key {
    Key::from_secret(&Secret::new(vec![6; 32]))
}

fn send(chains: &mut Chains, text: &str, label: u32) -> Option<Link> {
    chains.learn(&Tokens::of(&key(), text), Said { label: Some(label), unsure: false })
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
fn a_chain_says_nothing_until_it_is_longer_than_people_make_them_and_then_weighs_by_its_signs() {
    for unsure in [false, true] {
        let mut chains = Chains::default();
        let mut send = |text: &str| chains.learn(&Tokens::of(&key(), text), Said { label: Some(1), unsure });
        assert_eq!(send(REVIEW), None);
        let words: Vec<_> = REVIEW.split(' ').collect();
        for left_out in 0..words.len() {
            let text: Vec<_> = words.iter().enumerate().filter(|(at, _)| *at != left_out).map(|(_, word)| *word).collect();
            let link = send(&text.join(" ")).unwrap();
            assert_eq!((link.links as usize, link.sign), (left_out + 1, unsure));
            assert_eq!(link.weight.is_some(), link.links > PATIENCE, "{link:?}");
            assert_eq!(link.weight.is_some_and(|weight| weight > 0.0), unsure && link.links > PATIENCE, "{link:?}");
            assert_eq!(link.weight == Some(1.0), unsure && link.links >= PATIENCE + FULL, "{link:?}");
        }
    }
}

#[test]
fn a_flip_in_a_long_chain_weighs_at_once_and_one_in_a_short_chain_nothing() {
    let mut chains = Chains::default();
    send(&mut chains, REVIEW, 1);
    for (at, synonym) in ["tepid", "mild", "cosy", "hearty"].into_iter().enumerate() {
        let link = send(&mut chains, &REVIEW.replace("warm", synonym), at as u32 % 2).unwrap();
        assert_eq!(link.weight, None);
    }
    assert_eq!(send(&mut chains, &REVIEW.replace("warm", "lukewarm"), 9).unwrap(), Link { links: 5, sign: true, weight: Some(LEAST) });
    let link = chains.learn(&Tokens::of(&key(), &REVIEW.replace("warm", "cool")), Said::default()).unwrap();
    assert_eq!((link.sign, link.weight), (false, Some(0.0)), "where there are no labels, none can flip");
}

#[test]
fn exact_repeats_add_no_link() {
    let mut chains = Chains::default();
    for label in 0..50 {
        assert_eq!(send(&mut chains, REVIEW, label), None);
    }
    assert_eq!(send(&mut chains, &REVIEW.replace("warm", "cool"), 0).unwrap().links, 1);
}

#[test]
fn other_texts_in_between_do_not_wash_a_chain_out() {
    let mut chains = Chains::default();
    send(&mut chains, REVIEW, 0);
    send(&mut chains, &REVIEW.replace("warm", "w0"), 0);
    let mut last = None;
    for n in 1..12 {
        for other in 0..2 * TEXTS {
            assert_eq!(send(&mut chains, &numbered(8).replace('w', &format!("n{n}o{other}x")), 0), None);
        }
        last = send(&mut chains, &REVIEW.replace("warm", &format!("w{n}")), 0);
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
    assert_eq!(send(&mut chains, "...", 0), None);
    assert_eq!(send(&mut chains, "!!!", 0), None);
    assert_eq!(send(&mut chains, "?", 0), None);
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
