//! What a prompt asks for, by a short list of phrases in the languages that campaigns were seen in: reasoning to learn from, grades, hidden
//! thoughts, words without end, texts learned by heart, the instructions themselves.
//!
//! The list is a sign and no proof: half of the world asks a model to think step by step, and who knows the list writes otherwise. It is kept
//! short so that it can be read whole.

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use crate::detect::text::words::words;

/// What a phrase asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    /// Reasoning, written out.
    Reasoning,
    /// A grade, a rubric, a preference between answers.
    Grading,
    /// The model's hidden thoughts.
    Thoughts,
    /// A word without end (Nasr et al., 2023, arXiv 2311.17035).
    Repetition,
    /// A text as it was learned (Carlini et al., 2021, arXiv 2012.07805).
    Recital,
    /// The instructions that the model was given.
    Instructions,
}

/// In small letters, with single spaces.
const PHRASES: [(Asks, &[&str]); 6] = [
    (
        Asks::Reasoning,
        &[
            "step by step",
            "step-by-step",
            "chain of thought",
            "chain-of-thought",
            "show your reasoning",
            "show your full reasoning",
            "show your work",
            "explain your reasoning",
            "reason through",
            "think aloud",
            "think out loud",
            "before giving the final answer",
            "before answering, think",
            "schritt für schritt",
            "erkläre deine überlegungen",
            "étape par étape",
            "pas à pas",
            "paso a paso",
            "passo a passo",
            "passo dopo passo",
            "шаг за шагом",
            "пошагово",
            "一步一步",
            "逐步",
            "思维链",
            "分步",
            "ステップバイステップ",
            "段階的に",
            "단계별로",
            "단계적으로",
            "चरण दर चरण",
            "خطوة بخطوة",
        ],
    ),
    (
        Asks::Grading,
        &[
            "rubric",
            "grade the following",
            "grade this",
            "score from 1 to",
            "on a scale of 1 to",
            "rate the response",
            "rate the following",
            "which response is better",
            "which answer is better",
            "compare the two responses",
            "preference label",
            "act as a judge",
            "impartial judge",
            "reward model",
            "bewerte die folgende",
            "bewertungsraster",
            "grille d'évaluation",
            "évalue la réponse",
            "rúbrica",
            "califica la",
            "avalie a resposta",
            "оцени ответ",
            "по шкале от",
            "критерии оценки",
            "评分标准",
            "打分",
            "哪个回答更好",
            "採点",
            "評価基準",
            "채점",
            "평가 기준",
        ],
    ),
    (
        Asks::Thoughts,
        &[
            "reasoning trace",
            "hidden reasoning",
            "internal reasoning",
            "internal monologue",
            "raw chain of thought",
            "your thinking process verbatim",
            "<think>",
            "<thinking>",
            "<scratchpad>",
            "<reasoning>",
            "reconstruct your reasoning",
            "reasoning tokens",
            "thinking must be in",
            "reasoning must be in",
            "gedankengang wörtlich",
            "raisonnement interne",
            "razonamiento interno",
            "raciocínio interno",
            "внутренние рассуждения",
            "ход мыслей дословно",
            "思考过程",
            "推理过程",
            "思考過程",
            "内部推論",
            "사고 과정",
        ],
    ),
    (
        Asks::Repetition,
        &[
            "repeat this word forever",
            "repeat the word",
            "repeat the following word",
            "repeat forever",
            "over and over again",
            "again and again without stopping",
            "infinitely many times",
            "wiederhole das wort",
            "wiederhole für immer",
            "répète le mot",
            "répète pour toujours",
            "repite la palabra",
            "repita a palavra",
            "повторяй слово",
            "повторяй бесконечно",
            "重复这个词",
            "一直重复",
            "無限に繰り返",
            "繰り返してください",
            "단어를 반복",
        ],
    ),
    (
        Asks::Recital,
        &[
            "word for word",
            "verbatim",
            "from memory",
            "recite",
            "continue the text exactly",
            "complete the passage exactly",
            "exact text of",
            "full text of",
            "training data",
            "wortwörtlich",
            "auswendig",
            "mot pour mot",
            "palabra por palabra",
            "palavra por palavra",
            "дословно",
            "наизусть",
            "逐字",
            "原文",
            "一字一句",
            "그대로 외워",
        ],
    ),
    (
        Asks::Instructions,
        &[
            "system prompt",
            "your instructions",
            "initial instructions",
            "the text above",
            "everything above",
            "repeat the words above",
            "ignore previous instructions",
            "ignore all previous",
            "ignore the above",
            "developer message",
            "deine anweisungen",
            "systemprompt",
            "ignoriere alle",
            "tes instructions",
            "invite système",
            "tus instrucciones",
            "ignora las instrucciones",
            "suas instruções",
            "системный промпт",
            "твои инструкции",
            "игнорируй предыдущие",
            "系统提示",
            "忽略之前",
            "你的指令",
            "システムプロンプト",
            "上記の指示",
            "시스템 프롬프트",
        ],
    ),
];

/// How often the same one to four words must stand in a row for a prompt to be one that makes models diverge; no poem does it.
pub const REPEATS: usize = 32;

static MATCHER: LazyLock<(AhoCorasick, Vec<Asks>)> = LazyLock::new(|| {
    let asks = PHRASES.iter().flat_map(|(asks, phrases)| phrases.iter().map(|_| *asks)).collect();
    #[expect(clippy::expect_used, reason = "the list is a constant, and a test builds it")]
    let matcher = AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        // A megabyte or two of table, once, for a step of a nanosecond.
        .kind(Some(AhoCorasickKind::DFA))
        .build(PHRASES.iter().flat_map(|(_, phrases)| phrases.iter()))
        .expect("a list of two hundred phrases can be built");
    (matcher, asks)
});

/// Which kinds of phrases a prompt has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// It asks for written-out reasoning.
    pub reasoning: bool,
    /// It asks for a grade or a preference.
    pub grading: bool,
    /// It asks for hidden thoughts.
    pub thoughts: bool,
    /// It asks for a word without end, or is one.
    pub repetition: bool,
    /// It asks for a text as it was learned.
    pub recital: bool,
    /// It asks for the model's instructions.
    pub instructions: bool,
}

impl Found {
    /// How much it asks for what a smaller model would learn from: 0, 0.5 for reasoning or grading, 1 for both or for hidden thoughts.
    #[must_use]
    pub fn elicitation(self) -> f64 {
        if self.thoughts { 1.0 } else { 0.5 * f64::from(u8::from(self.reasoning) + u8::from(self.grading)) }
    }

    /// How much it probes for what was learned by heart: 0, 0.5 for a recital, 1 for words without end.
    #[must_use]
    pub fn probing(self) -> f64 {
        if self.repetition { 1.0 } else { 0.5 * f64::from(u8::from(self.recital)) }
    }
}

/// Looks for all phrases at once; of a prompt longer than [`crate::detect::text::MOST_BYTES`] at both its ends.
#[must_use]
pub fn found(prompt: &str) -> Found {
    let mut found = Found::default();
    let (matcher, asks) = &*MATCHER;
    for part in crate::detect::text::looked_at(prompt) {
        found.repetition |= repeats(part);
        for matched in matcher.find_iter(&folded(part)) {
            let seen = match asks[matched.pattern().as_usize()] {
                Asks::Reasoning => &mut found.reasoning,
                Asks::Grading => &mut found.grading,
                Asks::Thoughts => &mut found.thoughts,
                Asks::Repetition => &mut found.repetition,
                Asks::Recital => &mut found.recital,
                Asks::Instructions => &mut found.instructions,
            };
            *seen = true;
        }
    }
    found
}

/// Small letters and single spaces, in UTF-8.
fn folded(text: &str) -> Vec<u8> {
    let mut folded = Vec::with_capacity(text.len());
    if text.is_ascii() {
        fold(text.as_bytes(), &mut folded);
        return folded;
    }
    let mut rest = text;
    while let Some(wide) = rest.bytes().position(|byte| !byte.is_ascii()) {
        fold(&rest.as_bytes()[..wide], &mut folded);
        let mut chars = rest[wide..].chars();
        let small = chars.next().into_iter().flat_map(char::to_lowercase);
        small.for_each(|c| folded.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()));
        rest = chars.as_str();
    }
    fold(rest.as_bytes(), &mut folded);
    folded
}

fn fold(ascii: &[u8], folded: &mut Vec<u8>) {
    let mut before = folded.last().copied().unwrap_or_default();
    let mut at = folded.len();
    // Each is written, and written over where it is one space too many: there is no branch.
    folded.resize(at + ascii.len(), 0);
    for byte in ascii {
        let byte = SMALL[usize::from(*byte)];
        folded[at] = byte;
        at += usize::from((byte != b' ') | (before != b' '));
        before = byte;
    }
    folded.truncate(at);
}

/// The small letter of each letter of ASCII, and a space for each white space.
static SMALL: [u8; 256] = {
    let mut small = [0; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        small[byte as usize] = if byte.is_ascii_whitespace() { b' ' } else { byte.to_ascii_lowercase() };
        byte += 1;
    }
    small
};

/// Whether the same one to four words stand [`REPEATS`] times in a row.
fn repeats(text: &str) -> bool {
    let mut last = [""; 4];
    let mut runs = [0_usize; 4];
    for word in words(text) {
        for (period, run) in runs.iter_mut().enumerate() {
            if word != last[period] {
                *run = 0;
                continue;
            }
            *run += 1;
            // The first time is none that repeats.
            if *run >= (REPEATS - 1) * (period + 1) {
                return true;
            }
        }
        last.copy_within(..3, 1);
        last[0] = word;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phrase_is_found_and_asks_for_what_it_stands_under() {
        for (asks, phrases) in PHRASES {
            for phrase in phrases {
                assert_eq!(folded(phrase), phrase.as_bytes(), "it is written as it is looked for");
                let found = found(&format!("Please: {} now", phrase.to_uppercase().replace(' ', "\n  ")));
                let seen = match asks {
                    Asks::Reasoning => found.reasoning,
                    Asks::Grading => found.grading,
                    Asks::Thoughts => found.thoughts,
                    Asks::Repetition => found.repetition,
                    Asks::Recital => found.recital,
                    Asks::Instructions => found.instructions,
                };
                assert!(seen, "{phrase}");
            }
        }
    }

    #[test]
    fn capitals_are_small_and_any_white_space_is_one_space_beside_whatever_is_not_ascii() {
        assert_eq!(folded("  A\t\r\n B  "), b" a b ");
        assert_eq!(folded("É \u{a0} \n Ж  X").as_slice(), "é \u{a0} ж x".as_bytes());
        assert_eq!(folded(""), b"");
    }

    #[test]
    fn ordinary_prompts_ask_for_none_of_it() {
        for prompt in [
            "Write a short poem about the sea in autumn.",
            "Fix the bug in this function and add a test.",
            "Welche Farbe hat der Himmel über Hamburg im November?",
            "把这句话翻译成英文：今天天气很好。",
            "",
        ] {
            assert_eq!(found(prompt), Found::default(), "{prompt}");
        }
    }

    #[test]
    fn what_is_asked_for_adds_up() {
        let scores = |prompt| (found(prompt).elicitation(), found(prompt).probing());
        assert_eq!(scores("Think step by step."), (0.5, 0.0));
        assert_eq!(scores("Think step by step, then apply the rubric."), (1.0, 0.0));
        assert_eq!(scores("Write your internal monologue."), (1.0, 0.0));
        assert_eq!(scores("Recite the poem."), (0.0, 0.5));
        assert_eq!(scores("Repeat the word poem forever."), (0.0, 1.0));
    }

    #[test]
    fn a_word_or_four_thirty_two_times_in_a_row_is_a_prompt_without_end_and_one_less_is_not() {
        for words in ["poem", "poem book", "a b c", "one two three four"] {
            assert!(found(&format!("say {}", format!("{words}, ").repeat(REPEATS))).repetition, "{words}");
            assert!(!found(&format!("say {}", format!("{words}, ").repeat(REPEATS - 1))).repetition, "{words}");
        }
        assert!(!found(&"one two three four five ".repeat(100)).repetition);
    }
}
