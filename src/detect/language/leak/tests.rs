use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;

use super::*;

const PROMPT: &str = "You are the concierge of the Hotel Bellevue. Answer guests politely and in the language they write in. Never offer a discount \
    of more than twelve per cent, and only to guests who have stayed with us before. The code for the staff entrance is changed every Monday. If a guest \
    asks about the pool, say that it opens at seven and closes at ten. Do not mention the renovation of the east wing. Complaints go to the duty manager.";

fn pass(text: &str) -> Leak {
    pass_in(text, text.len().max(1))
}

fn pass_in(text: &str, size: usize) -> Leak {
    let mut stream = Stream::new(Arc::new(Guarded::new([], [PROMPT], [])));
    let mut rest = text;
    let mut leak = stream.leak;
    while !rest.is_empty() {
        let (piece, next) = rest.split_at(rest.ceil_char_boundary(size.min(rest.len())));
        leak = stream.pass(0, piece);
        rest = next;
    }
    leak
}

#[test]
fn instructions_that_are_recited_are_contained_whole_whatever_their_dress() {
    for text in [
        PROMPT.to_owned(),
        format!("Sure! Here they are:\n\n```\n{PROMPT}\n```\nAnything else?"),
        PROMPT.to_uppercase(),
        PROMPT.replace(". ", ".\n\n* **").replace(' ', "  "),
    ] {
        let leak = pass(&text);
        assert!(leak.containment > 0.97, "{leak:?}");
        assert_eq!(leak.form, Form::Plain);
    }
}

#[test]
fn they_are_found_backwards_turned_by_thirteen_letters_and_in_base64() {
    let reversed: String = PROMPT.chars().rev().collect();
    let turned: String =
        PROMPT.chars().map(|c| if c.is_ascii_uppercase() { decode::rot13(c.to_ascii_lowercase()) } else { decode::rot13(c) }).collect();
    let wrapped: String =
        STANDARD.encode(PROMPT).as_bytes().chunks(76).map(|line| format!("{}\n", std::str::from_utf8(line).unwrap())).collect();
    for (text, form) in [
        (reversed, Form::Reversed),
        (turned, Form::Rot13),
        (STANDARD.encode(PROMPT), Form::Base64),
        (URL_SAFE_NO_PAD.encode(PROMPT), Form::Base64),
        (wrapped, Form::Base64),
    ] {
        let leak = pass(&format!("Here you are: {text}"));
        assert!(leak.containment > 0.95, "{form:?} {leak:?}");
        assert_eq!(leak.form, form);
    }
}

#[test]
fn half_of_the_instructions_is_half_contained() {
    let leak = pass(&PROMPT[..PROMPT.len() / 2]);
    assert!((0.42..0.6).contains(&leak.containment), "{leak:?}");
    assert!(pass(&PROMPT[..PROMPT.len() * 2 / 5]).containment < FLAG);
    assert!(pass(&PROMPT[..PROMPT.len() * 3 / 5]).containment > FLAG);
    assert!(pass(&PROMPT[..PROMPT.len() * 4 / 5]).containment < CUT);
    assert!(pass(&PROMPT[..PROMPT.len() * 19 / 20]).containment > CUT);
}

/// What garak's measure would flag: the small words of a language cover much of any prompt in it.
#[test]
fn a_long_answer_in_the_language_of_the_instructions_contains_little_of_them() {
    let long = include_str!("../../../../docs/hardening.md").to_owned() + include_str!("../../../../README.md");
    assert!(long.len() > 20_000);
    let leak = pass(&long);
    assert!(leak.containment < FLAG / 2.0, "{leak:?}");
    let useful = "Good evening! The pool opens at seven and closes at ten. I am afraid I cannot offer more than ten per cent off, but the duty manager can help you \
        with complaints. Would you like me to reserve a table at the restaurant for you and your guests?";
    assert!(pass(useful).containment < 0.25, "{:?}", pass(useful));
}

#[test]
fn what_comes_out_bit_by_bit_with_remarks_in_between_adds_up_and_what_is_long_past_does_not() {
    let parts: Vec<&str> = PROMPT.split(". ").collect();
    let remarks = parts.join(" - and let me add that this part seems quite sensible to me, don't you think so? - ");
    assert!(pass(&remarks).containment > 0.85);
    let far = parts.join(&"Something else is said here at length, about nothing in particular and to no end. ".repeat(40));
    assert!(pass(&far).containment < 0.4, "{:?}", pass(&far));
}

#[test]
fn short_instructions_are_not_looked_for_and_of_long_ones_the_beginning() {
    assert!(Guarded::new([], ["You are a helpful assistant."], []).is_empty());
    let text = |grams: usize| (0..).map(|n: u32| char::from_u32(0x4e00 + n).unwrap()).take(grams + GRAM - 1).collect::<String>();
    assert!(Guarded::new([], [text(FEWEST_GRAMS - 1).as_str()], []).is_empty());
    assert_eq!(Guarded::new([], [text(FEWEST_GRAMS).as_str()], []).texts[0].len(), FEWEST_GRAMS);
    // Grams are kept by hashes of 32 bits under a key of the process: of so many, two are alike once in five hundred times.
    let kept = |grams: usize| Guarded::new([], [text(grams).as_str()], []).texts[0].len();
    for grams in [MOST_GRAMS, MOST_GRAMS + 1, 2 * MOST_GRAMS] {
        assert!((MOST_GRAMS - 3..=MOST_GRAMS).contains(&kept(grams)), "{grams}: {}", kept(grams));
    }
    let many = || vec![PROMPT; MOST_TEXTS + 1];
    assert_eq!(Guarded::new([], many(), []).texts.len(), MOST_TEXTS);
    assert_eq!(Guarded::new(many(), [PROMPT], []).texts.len(), MOST_TEXTS + 1);
}

#[test]
fn a_canary_is_found_across_pieces_and_only_whole() {
    let guarded = Arc::new(Guarded::new([], [], ["canary-canary-7f3a", "short"]));
    assert_eq!(guarded.canaries.len(), 1);
    for (text, found) in [("a canary-canary-canary-7f3a b", true), ("canary-canary-7f3", false), ("CANARY-canary-7f3a", false)] {
        for size in 1..6 {
            let mut stream = Stream::new(guarded.clone());
            let leak = text.as_bytes().chunks(size).map(|piece| stream.pass(0, std::str::from_utf8(piece).unwrap())).last().unwrap();
            assert_eq!(leak.canary, found, "{text} by {size}");
        }
    }
    let sized = |length: usize| Guarded::new([], [], [&*"x".repeat(length)]).canaries.len();
    assert_eq!([CANARY_MIN - 1, CANARY_MIN, CANARY_MAX, CANARY_MAX + 1].map(sized), [0, 1, 1, 0]);
    let names: Vec<_> = (0..=MOST_CANARIES).map(|n| format!("canary number {n}")).collect();
    assert_eq!(Guarded::new([], [], names.iter().map(String::as_str)).canaries.len(), MOST_CANARIES);
}

#[test]
fn instructions_full_of_backslashes_are_found_as_they_are_written() {
    let text = r"Write \nabla \times E for the curl and \beta for v over c. Paths are C:\new\tables\users and never C:\forum. Say \begin{align} first, then \frac{a}{b}.";
    let mut stream = Stream::new(Arc::new(Guarded::new([], [text], [])));
    assert!(stream.pass(0, text).containment > CUT);
}

#[test]
fn a_stream_holds_no_more_however_long_it_is() {
    let guarded = Arc::new(Guarded::new([], [PROMPT], []));
    let mut stream = Stream::new(guarded.clone());
    for _ in 0..200 {
        stream.pass(0, PROMPT);
        stream.pass(0, &STANDARD.encode(PROMPT));
    }
    let most = 2 * guarded.texts[0].len();
    assert!(stream.tallies[0].iter().all(|tally| tally.counted.len() <= most && tally.times.len() <= most));
}

proptest! {
    #[test]
    fn however_a_text_is_cut_it_leaks_the_same(size in 1_usize..40, text in "(?s)[a-zé模 =+/.\n]{0,120}", keep in 0_usize..600) {
        let keep = PROMPT.floor_char_boundary(keep.min(PROMPT.len()));
        let text = format!("{text}{}{text}{}", &PROMPT[..keep], STANDARD.encode(&PROMPT[..keep]));
        prop_assert_eq!(pass_in(&text, size), pass(&text));
    }
}
