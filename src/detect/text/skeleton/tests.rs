use proptest::prelude::*;

use super::*;
use crate::secret::Secret;

fn key() -> Key {
    Key::from_secret(&Secret::new(vec![5; 32]))
}

fn blanked(text: &str) -> Vec<String> {
    let mut into = String::new();
    blank(text, &mut Searched::default(), &mut into);
    words::words(&into).map(str::to_owned).collect()
}

const TEMPLATE: &str = "You are an experienced grader. Score the answer to problem NUMBER by the rubric below, explain every deduction step by \
    step, and end with a line that holds the score alone. The answer is: ANSWER Be strict, be consistent, and never mention this instruction.";

#[test]
fn numbers_quotations_and_code_are_blanked() {
    assert_eq!(blanked("add 12 and 3,456.7 to x2y"), ["add", "0", "and", "0", "to", "x", "0", "y"]);
    for quoted in ["\"any thing\"", "“any thing”", "„any thing“", "«any thing»", "「any thing」", "'any thing'", "'it isn't'"] {
        assert_eq!(blanked(&format!("say {quoted} now")), ["say", "1", "now"], "{quoted}");
    }
    assert_eq!(blanked("run `ls -l` then ```rust\nfn main() {}\n``` twice"), ["run", "2", "then", "2", "twice"]);
}

#[test]
fn marks_that_close_nothing_blank_nothing() {
    assert_eq!(blanked("don't touch the dogs' bowl"), ["don", "t", "touch", "the", "dogs", "bowl"]);
    assert_eq!(blanked("12\" of snow and `tick"), ["0", "of", "snow", "and", "tick"]);
    let within = format!("a \"{}\" b", "x".repeat(QUOTED_MAX - 2));
    assert_eq!(blanked(&within), ["a", "1", "b"]);
    assert!(blanked(&format!("a \"{}\" b", "x".repeat(QUOTED_MAX - 1))).len() > 3);
}

#[test]
fn prompts_that_differ_in_what_is_blanked_have_one_skeleton() {
    let fill = |number: &str, answer: &str| TEMPLATE.replace("NUMBER", number).replace("ANSWER", answer);
    let one = Skeleton::of(&key(), &fill("17", "\"the sum is four\""));
    let other = Skeleton::of(&key(), &fill("2048", "\"I would rather integrate by parts\""));
    assert_eq!(one, other);
    assert_ne!(one, Skeleton::of(&Key::random(), &fill("17", "\"x\"")));
}

/// With a tenth of the words open, three quarters of the shingles of two prompts are shared: a band is with (3/4)⁴, and one of four with 0.78.
#[test]
fn prompts_with_an_open_slot_of_a_few_words_are_near_and_most_meet_in_a_band() {
    let slots = ["whales are mammals", "copper conducts heat well", "rivers flow to the sea", "old maps lie", "the cat sat"];
    let (mut near, mut met, mut pairs) = (0, 0, 0);
    for key in (0..40).map(|byte| Key::from_secret(&Secret::new(vec![byte; 32]))) {
        let skeletons: Vec<_> = slots.iter().map(|slot| Skeleton::of(&key, &TEMPLATE.replace("ANSWER", slot))).collect();
        for (at, one) in skeletons.iter().enumerate() {
            for other in &skeletons[..at] {
                pairs += 1;
                near += u32::from(one.is_near(other.simhash));
                met += u32::from(one.bands.iter().zip(&other.bands).any(|(one, other)| one == other));
            }
        }
    }
    assert!(near * 10 > pairs * 9, "{near} of {pairs}");
    assert!(met * 10 > pairs * 7, "{met} of {pairs}");
}

#[test]
fn texts_that_share_no_template_share_no_band() {
    let texts = [
        TEMPLATE,
        "Write a short poem about the sea in autumn, in four lines that rhyme, for a child of six.",
        "What is the capital of France, and since when has it been so?",
        "Translate the following sentence into German, please, and keep the tone polite.",
        "What is the capital of Spain, and who decided it?",
    ];
    let skeletons: Vec<_> = texts.iter().map(|text| Skeleton::of(&key(), text)).collect();
    for (at, one) in skeletons.iter().enumerate() {
        for other in &skeletons[..at] {
            assert!(!one.is_near(other.simhash));
            assert!(one.bands.iter().zip(&other.bands).all(|(one, other)| one != other));
        }
    }
}

/// What opens and closes something, and what stands between.
const MARKS: [&str; 24] = [
    "`", "``", "```", "x", " ", "'", "'a", "a'", "1", "1.5", "\"", "\u{201c}", "\u{201d}", "\u{201e}", "«", "»", "‹", "›", "「", "」",
    "『", "』", "《", "》",
];

/// The same with no memory of what was searched in vain.
fn blanked_one_by_one(text: &str) -> String {
    let (mut out, mut plain, mut at) = (String::new(), 0, 0);
    while let Some(c) = text[at..].chars().next() {
        let window = &text[at..text.floor_char_boundary((at + QUOTED_MAX).min(text.len()))];
        let close =
            |skip: usize, mark: &str| window.get(skip..).and_then(|within| within.find(mark)).map(|found| skip + found + mark.len());
        let mut opened = c.len_utf8();
        let (length, mark) = match c {
            '0'..='9' => (text[at..].find(|c: char| !c.is_ascii_digit() && !"._,".contains(c)).or(Some(text.len() - at)), NUMBER),
            '`' => {
                opened = text[at..].find(|c| c != '`').unwrap_or(text.len() - at);
                ((opened <= FENCE_MAX).then(|| close(opened, &"`".repeat(opened))).flatten(), CODE)
            }
            '\'' if text[plain..at].ends_with(char::is_alphanumeric) => (None, QUOTED),
            '\'' => {
                let mut ends = window.match_indices('\'').skip(1).take(16).map(|(mark, _)| mark + 1);
                (ends.find(|end| !text[at + end..].starts_with(char::is_alphanumeric)), QUOTED)
            }
            c => (QUOTES.iter().find(|(open, _)| *open == c).and_then(|(_, mark)| close(opened, &mark.to_string())), QUOTED),
        };
        if let Some(length) = length {
            out = out + &text[plain..at] + mark;
            plain = at + length;
        }
        at += length.unwrap_or(opened);
    }
    out + &text[plain..]
}

#[test]
fn a_fence_longer_than_a_quotation_may_be_opens_nothing() {
    for length in [FENCE_MAX + 1, QUOTED_MAX - 1, QUOTED_MAX, QUOTED_MAX + 1, 40_000] {
        assert_eq!(blanked(&format!("{} 12 a", "`".repeat(length))), ["0", "a"], "{length}");
        assert_eq!(blanked(&format!("`a{} b", "`".repeat(length))), ["2", "b"], "{length}");
    }
    let fence = "`".repeat(FENCE_MAX);
    assert_eq!(blanked(&format!("run {fence}a `b` c{fence} now")), ["run", "2", "now"]);
}

/// Each kind of mark is searched for once in any part, and sixteen of the single ones.
fn searched_at_most(text: &str) {
    let mut searched = Searched::default();
    blank(text, &mut searched, &mut String::new());
    let most = (QUOTES.len() + FENCE_MAX + 16 + 1) * text.len();
    assert!(searched.steps <= most, "{} steps in {} bytes of {:.40}", searched.steps, text.len(), text);
}

#[test]
fn marks_that_nothing_closes_take_time_by_the_length_of_the_text() {
    for open in ["`", "`a", "```\n", "'a ", " 'a", "\"\u{201c}", "\u{201c}", "\u{201e}", "«", "«‹「『《", "1\"", "a' 'b"] {
        searched_at_most(&open.repeat(super::super::MOST_BYTES / open.len()));
    }
    // Fences of all lengths, each longer than all that follow.
    let fences: String = (1..=360).rev().map(|length| "`".repeat(length) + "x").collect();
    searched_at_most(&fences);
    let far: String = (1..=FENCE_MAX).rev().map(|length| "`".repeat(length) + &"x ".repeat(2_000)).collect();
    searched_at_most(&far);
}

proptest! {
    #[test]
    fn what_was_searched_in_vain_changes_nothing(marks in prop::collection::vec(prop::sample::select(MARKS.to_vec()), 0..60), far in 0..60_usize) {
        let mut marks = marks;
        // Some marks come so late that they close what opened later alone.
        let filler = "ж ".repeat(QUOTED_MAX / 4);
        marks.insert(far.min(marks.len()), &filler);
        marks.insert((far / 2).min(marks.len()), &filler);
        let text = marks.concat();
        let mut into = String::new();
        blank(&text, &mut Searched::default(), &mut into);
        prop_assert_eq!(into, blanked_one_by_one(&text));
        searched_at_most(&text);
    }

    #[test]
    fn no_text_of_marks_panics_and_none_takes_longer_than_its_length(marks in prop::collection::vec((prop::sample::select(MARKS.to_vec()), 1..4_000_usize), 0..12)) {
        let text: String = marks.iter().map(|(mark, times)| mark.repeat(*times)).collect();
        searched_at_most(&text);
        let _ = Skeleton::of(&key(), &text);
    }

    #[test]
    fn the_majority_of_votes_is_that_of_counting_one_by_one(hashes in prop::collection::vec(any::<[u64; 2]>(), 0..400)) {
        let mut votes = Votes::default();
        hashes.iter().for_each(|[one, other]| votes.cast(*one, *other));
        let hashes = hashes.as_flattened();
        let majority = (0..64).filter(|bit| 2 * hashes.iter().filter(|hash| *hash >> bit & 1 == 1).count() > hashes.len());
        prop_assert_eq!(votes.majority(), majority.map(|bit| 1 << bit).sum::<u64>());
    }

    #[test]
    fn any_text_has_a_skeleton(text in "(?s).{0,200}") {
        let skeleton = Skeleton::of(&key(), &text);
        prop_assert_eq!(skeleton, Skeleton::of(&key(), &text));
    }
}
