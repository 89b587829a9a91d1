use proptest::prelude::*;

use super::*;
use crate::secret::Secret;

const RECORDS: [&str; 3] = [
    "Patient 4711, born in March 1962, was admitted on Friday with pain in the left knee and sent home on Sunday with two crutches.",
    "The recipe for the glaze: nine parts of feldspar, three of chalk, one of iron, fired twice at twelve hundred degrees.",
    "Call me at noon.",
];

fn key() -> Arc<Key> {
    Arc::new(Key::from_secret(&Secret::new(vec![4; 32])))
}

fn corpus() -> Arc<Corpus> {
    Arc::new(Corpus::of(key(), &RECORDS).unwrap())
}

#[test]
fn what_is_recited_is_counted_in_words_whatever_its_capitals_and_marks() {
    let corpus = corpus();
    let words = words::words(RECORDS[0]).count();
    assert_eq!(corpus.recited(RECORDS[0]), words);
    assert_eq!(corpus.recited(&format!("It says: **{}** I think", RECORDS[0].to_uppercase().replace(' ', "\n"))), words);
    assert_eq!(corpus.recited("the glaze nine parts of feldspar"), WORDS);
    assert_eq!(corpus.recited("the glaze nine parts of sand"), 0);
    assert_eq!(corpus.recited("glaze nine parts of feldspar"), 0);
}

#[test]
fn words_of_two_records_and_records_of_few_words_are_not_recited() {
    let corpus = corpus();
    assert_eq!(corpus.recited("home on Sunday with two crutches. The recipe for the glaze"), WORDS);
    assert_eq!(corpus.recited("Sunday with two crutches. The recipe for the"), 0);
    assert_eq!(corpus.recited(RECORDS[2]), 0);
}

#[test]
fn other_texts_recite_nothing() {
    let corpus = corpus();
    let long = include_str!("../../../../docs/hardening.md");
    assert!(words::words(long).count() > 3_000);
    assert_eq!(corpus.recited(long), 0);
}

#[test]
fn the_filter_errs_as_seldom_as_it_says() {
    let text: String = (0..20_000).map(|n| format!("w{n} ")).collect();
    let key = key();
    let corpus = Corpus::of(key.clone(), &[&text]).unwrap();
    let wrong = (0..1_000_000_u64).filter(|n| corpus.has(key.order(*n))).count();
    assert!(wrong < 20, "{wrong}");
    assert_eq!(corpus.bits.len() * 64, (19_995_usize * 32).next_power_of_two());
}

#[test]
fn too_little_and_too_much_are_no_corpus() {
    assert_eq!(Corpus::of(key(), &["one two three four five"]).unwrap_err(), Error::OperatorGaveTooLittle);
    assert!(Corpus::of(key(), &["one two three four five six"]).is_ok());
    assert_eq!(Corpus::of(key(), &[]).unwrap_err(), Error::OperatorGaveTooLittle);
    // Whoever has so many texts waits for them; the bound is the same for fewer.
    let text = "a ".repeat(100 + WORDS - 1);
    assert!(Corpus::within(100, key(), &[&text]).is_ok());
    assert_eq!(Corpus::within(100, key(), &[&text, "one two three four five six"]).unwrap_err(), Error::OperatorGaveTooMuch);
}

proptest! {
    #[test]
    fn however_an_answer_is_cut_its_words_are_those_of_the_whole(text in "(?s)[a-zA-Zé模型 .]{0,300}", size in 1_usize..20) {
        let text = format!("{text}{}", "x".repeat(size * 5));
        let corpus = Corpus::of(key(), &[&text, "one two three four five six"]).unwrap();
        let corpus = Arc::new(corpus);
        let mut reader = Reader::new(corpus.clone());
        let mut rest = &text[..];
        while !rest.is_empty() {
            let (piece, next) = rest.split_at(rest.ceil_char_boundary(size.min(rest.len())));
            reader.pass(piece);
            rest = next;
        }
        let words = words::words(&text).count();
        prop_assert_eq!(reader.finish(), if words >= WORDS { words } else { 0 });
    }
}
