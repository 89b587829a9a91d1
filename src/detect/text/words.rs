//! The words of a text in any script: runs of letters and digits. Where a script has no spaces, each character is a word.

use super::Key;

/// The most bytes of a word; a longer run of letters is as many words.
pub const MOST_BYTES: usize = 48;

/// The words of `text`, in order, as they are written.
pub fn words(text: &str) -> Words<'_> {
    Words { rest: text }
}

/// See [`words`].
#[derive(Clone, Debug)]
pub struct Words<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let bytes = self.rest.as_bytes();
        let mut start = 0;
        // Most of most texts is ASCII, and is not decoded.
        let first = loop {
            start = past(bytes, start, Is::Between);
            if is(*bytes.get(start)?, Is::Word) {
                break None;
            }
            match self.rest[start..].chars().next()? {
                wide if wide.is_alphanumeric() => break Some(wide),
                wide => start += wide.len_utf8(),
            }
        };
        let most = bytes.len().min(start + MOST_BYTES);
        let mut end = start + first.map_or(0, char::len_utf8);
        if first.is_none_or(|first| !stands_alone(first)) {
            loop {
                end = past(&bytes[..most], end, Is::Word);
                if end >= most || !is(bytes[end], Is::Wide) {
                    break;
                }
                match self.rest[end..].chars().next()? {
                    wide if wide.is_alphanumeric() && !stands_alone(wide) && end + wide.len_utf8() <= most => end += wide.len_utf8(),
                    _ => break,
                }
            }
        }
        let word = &self.rest[start..end];
        self.rest = &self.rest[end..];
        Some(word)
    }
}

/// The first place from `at` on whose byte is something else.
fn past(bytes: &[u8], mut at: usize, what: Is) -> usize {
    while bytes.get(at).is_some_and(|byte| is(*byte, what)) {
        at += 1;
    }
    at
}

fn is(byte: u8, what: Is) -> bool {
    IS[usize::from(byte)] == what
}

/// What a byte is in a text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Is {
    /// A letter or a digit of ASCII.
    Word,
    /// Anything else of ASCII.
    Between,
    /// A part of another character.
    Wide,
}

static IS: [Is; 256] = {
    let mut is = [Is::Between; 256];
    let mut byte = 0;
    while byte < 256 {
        if byte >= 128 {
            is[byte] = Is::Wide;
        } else if (byte as u8).is_ascii_alphanumeric() {
            is[byte] = Is::Word;
        }
        byte += 1;
    }
    is
};

/// Characters of the scripts of Chinese and Japanese.
pub(in crate::detect) fn stands_alone(c: char) -> bool {
    matches!(u32::from(c), 0x3040..=0x30ff | 0x3400..=0x9fff | 0xf900..=0xfaff | 0x2_0000..=0x3_ffff)
}

/// The keyed hash of a word, the same for its capitals.
pub(in crate::detect) fn hash(key: &Key, word: &str) -> u64 {
    if word.is_ascii() { key.folded(word.as_bytes()) } else { key.word(word.to_lowercase().as_bytes()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[test]
    fn words_are_runs_of_letters_and_digits_in_any_script() {
        let found: Vec<_> = words("Don't panic: 42 naïve cafés, привет!").collect();
        assert_eq!(found, ["Don", "t", "panic", "42", "naïve", "cafés", "привет"]);
        assert_eq!(words("模型 abc漢字かな").collect::<Vec<_>>(), ["模", "型", "abc", "漢", "字", "か", "な"]);
        assert_eq!(words(" \t–—… ").count(), 0);
        assert_eq!(words("").count(), 0);
    }

    #[test]
    fn a_word_at_the_bound_is_one_and_a_byte_more_makes_two() {
        assert_eq!(words(&"a".repeat(MOST_BYTES)).count(), 1);
        assert_eq!(words(&"a".repeat(MOST_BYTES + 1)).map(str::len).collect::<Vec<_>>(), [MOST_BYTES, 1]);
        assert_eq!(words(&"é".repeat(MOST_BYTES)).map(str::len).collect::<Vec<_>>(), [MOST_BYTES, MOST_BYTES]);
    }

    #[test]
    fn capitals_hash_as_small_letters_do() {
        let key = Key::from_secret(&Secret::new(vec![1; 32]));
        assert_eq!(hash(&key, "Hello"), hash(&key, "hELLO"));
        assert_eq!(hash(&key, "ПРИВЕТ"), hash(&key, "привет"));
        assert_ne!(hash(&key, "hello"), hash(&key, "hallo"));
        let words = ["x1", "x2", "abcdefgh", "abcdefghi", "abcdefgh0", "Z", "0", "p", "P0", "l0l0l0l0"];
        let hashes: std::collections::HashSet<_> = words.iter().map(|word| hash(&key, word)).collect();
        assert_eq!(hashes.len(), words.len());
    }
}
