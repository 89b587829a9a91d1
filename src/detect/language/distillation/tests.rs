use super::*;
use crate::detect::language::phrases;
use crate::detect::text::Key;
use crate::secret::Secret;

const SUBJECTS: [&str; 12] =
    ["tides", "violins", "taxes", "volcanoes", "bees", "harbours", "bridges", "proteins", "sonnets", "engines", "glaciers", "markets"];
const HOUR: u64 = 3_600_000;

fn key() -> Key {
    Key::from_secret(&Secret::new(vec![3; 32]))
}

fn ask(window: &mut Window, text: &str, temperature: Option<f64>, at: u64) {
    let skeleton = Skeleton::of(&key(), text);
    window.ask(&Prompt { skeleton: &skeleton, found: phrases::found(text), temperature, at });
}

fn graded(n: usize) -> String {
    format!(
        "You are an expert teacher. Think step by step and show your full reasoning, then grade the following answer by the rubric \
         from 1 to 10 and explain each deduction. Question {n}: \"how do {} work?\"",
        SUBJECTS[n % 12]
    )
}

#[test]
fn who_collects_graded_reasoning_by_one_template_weighs_much() {
    let mut window = Window::default();
    for n in 0..200_usize {
        ask(&mut window, &graded(n), Some(1.0), HOUR + n as u64 * 400_000);
        window.answer(80, 900);
    }
    let signs = window.signs();
    assert_eq!((signs.repetition, signs.pinned), (1.0, 1.0));
    assert!(signs.elicitation > 0.9 && signs.length > 0.8 && signs.pace > 0.95 && signs.hours > 0.9, "{signs:?}");
    assert!(signs.weight() > 0.9);
}

#[test]
fn a_product_with_one_template_and_nothing_else_weighs_little() {
    let mut window = Window::default();
    for n in 0..200_usize {
        ask(
            &mut window,
            &format!("Summarise the ticket below in one sentence for the support team: \"{}\"", SUBJECTS[n % 12]),
            Some(0.2),
            n as u64 * 60_000,
        );
        window.answer(400, 40);
    }
    let signs = window.signs();
    assert_eq!((signs.repetition, signs.elicitation, signs.length), (1.0, 0.0, 0.0));
    assert!(signs.weight() < 0.3, "{signs:?}");
}

#[test]
fn people_who_talk_weigh_nothing() {
    let mut window = Window::default();
    let mut at = HOUR;
    for n in 0..60_usize {
        let subject = SUBJECTS[n % 12];
        let text = match n % 6 {
            0 => format!("What can you tell me about {subject} that most people have never heard of?"),
            1 => format!("I am writing a story in which {subject} play a part; how might it begin?"),
            2 => format!("Could a child understand {subject}?"),
            3 => format!("Shorten this for me please, it is about {subject} and why my uncle feared them all his life."),
            4 => format!("My teacher says {subject} were more common in the past. Was she right, and where can I read about it?"),
            _ => format!("List five books on {subject}"),
        };
        at += [2_000, 40_000, 5_000, 900_000][n % 4];
        ask(&mut window, &format!("{text} {n}"), None, at);
        window.answer(60, 120);
    }
    assert!(window.signs().pace < 0.1 && window.signs().weight() < 0.1, "{:?}", window.signs());
}

#[test]
fn nothing_weighs_before_the_sixteenth_prompt() {
    let mut window = Window::default();
    for n in 0..PATIENCE as usize {
        assert_eq!(window.signs(), Signs::default());
        ask(&mut window, &graded(n), Some(1.0), n as u64 * 1_000);
    }
    assert!(window.signs().weight() > 0.5);
}

#[test]
fn hours_older_than_a_day_are_not_counted() {
    let mut window = Window::default();
    (0..24).for_each(|hour| ask(&mut window, "x", None, (100 + hour) * HOUR));
    assert_eq!(window.signs().hours, 1.0);
    ask(&mut window, "x", None, 124 * HOUR);
    assert_eq!(window.signs().hours, 1.0);
    ask(&mut window, "x", None, 146 * HOUR);
    assert_eq!(window.signs().hours, 3.0 / 24.0);
}

#[test]
fn what_changed_is_seen_after_a_window() {
    let mut window = Window::default();
    (0..300).for_each(|n| ask(&mut window, &graded(n), Some(1.0), n as u64));
    (0..600).for_each(|n| ask(&mut window, &format!("{n} {}", SUBJECTS[n % 12]), None, n as u64));
    assert!(window.signs().elicitation < 0.05, "{:?}", window.signs());
}
