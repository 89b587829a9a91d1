//! What is remembered of texts: keyed sketches, from which no text can be read, and which nobody outside can aim at.
//!
//! No word is understood here. [`sketch`] places a text among others by its bytes, [`skeleton`] by what is left of it when
//! its numbers, quotations and code are blanked, and [`substitution`] follows chains of texts that differ in a word or three.

pub mod key;
pub mod skeleton;
pub mod sketch;
pub mod substitution;
pub mod words;

pub use key::Key;

/// The bytes of one text that are looked at; of what is longer, the first and the last half of as many.
///
/// Sketches take about 5 ns a byte: a text of this length a third of a millisecond, and no text more.
pub const MOST_BYTES: usize = 64 << 10;

/// The parts of a text that are looked at, on whole characters.
pub(in crate::detect) fn looked_at(text: &str) -> [&str; 2] {
    if text.len() <= MOST_BYTES {
        return [text, ""];
    }
    let head = text.floor_char_boundary(MOST_BYTES / 2);
    let tail = text.ceil_char_boundary(text.len() - MOST_BYTES / 2);
    [&text[..head], &text[tail..]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_at_the_bound_is_looked_at_whole_and_of_a_longer_one_both_ends() {
        let text = "a".repeat(MOST_BYTES);
        assert_eq!(looked_at(&text), [&text[..], ""]);
        let text = format!("{text}b");
        let [head, tail] = looked_at(&text);
        assert_eq!((head.len(), tail.len()), (MOST_BYTES / 2, MOST_BYTES / 2));
        assert!(tail.ends_with('b'));
        let wide = "й".repeat(MOST_BYTES);
        assert!(looked_at(&wide).iter().all(|part| part.len() == MOST_BYTES / 2));
        let odd = format!("x{wide}");
        assert!(looked_at(&odd).iter().all(|part| part.len() <= MOST_BYTES / 2));
    }
}
