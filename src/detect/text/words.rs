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
            let byte = *bytes.get(start)?;
            if byte.is_ascii() {
                if byte.is_ascii_alphanumeric() {
                    break byte as char;
                }
                start += 1;
                continue;
            }
            let wide = self.rest[start..].chars().next()?;
            if wide.is_alphanumeric() {
                break wide;
            }
            start += wide.len_utf8();
        };
        let mut end = start + first.len_utf8();
        if !stands_alone(first) {
            while let Some(byte) = bytes.get(end) {
                let next = if byte.is_ascii() { *byte as char } else { self.rest[end..].chars().next()? };
                if !next.is_alphanumeric() || stands_alone(next) || end + next.len_utf8() - start > MOST_BYTES {
                    break;
                }
                end += next.len_utf8();
            }
        }
        let word = &self.rest[start..end];
        self.rest = &self.rest[end..];
        Some(word)
    }
}

/// Characters of the scripts of Chinese and Japanese.
pub(in crate::detect) fn stands_alone(c: char) -> bool {
    matches!(u32::from(c), 0x3040..=0x30ff | 0x3400..=0x9fff | 0xf900..=0xfaff | 0x2_0000..=0x3_ffff)
}

/// The keyed hash of a word, the same for its capitals.
pub(in crate::detect) fn hash(key: &Key, word: &str) -> u64 {
    let mut folded = [0; MOST_BYTES];
    let bytes = word.as_bytes();
    if let Some(folded) = folded.get_mut(..bytes.len()).filter(|_| word.is_ascii()) {
        folded.copy_from_slice(bytes);
        folded.make_ascii_lowercase();
        return key.word(folded);
    }
    key.word(word.to_lowercase().as_bytes())
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
    }
}
