//! What is wrong with a document that could be parsed.

use std::fmt;

use serde_json::{Map, Value};

/// The longest pointer that is told, in bytes; a longer one is cut. Keys are the caller's own words, so they are bounded.
const POINTER_MAX: usize = 200;

/// Where a document does not hold to its shape, and which rule it breaks. Never a value. Intended as `check.shape`, 400.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The place, as a JSON Pointer (RFC 6901), at most 200 bytes; empty for the whole document.
    pub pointer: String,
    /// The rule's name: `required`, `type`, `range`, `unknown`, …
    pub rule: &'static str,
    /// The rule in words.
    pub text: &'static str,
}

impl Shape {
    /// A rule broken at a place that is already a JSON Pointer.
    pub fn new(pointer: impl Into<String>, rule: &'static str, text: &'static str) -> Self {
        let mut pointer = pointer.into();
        if pointer.len() > POINTER_MAX {
            let cut = (0..=POINTER_MAX).rev().find(|at| pointer.is_char_boundary(*at)).unwrap_or(0);
            pointer.truncate(cut);
        }
        Self { pointer, rule, text }
    }

    /// What is named there is kept by the model's server, for whoever knows its name.
    #[must_use]
    pub fn kept(pointer: impl Into<String>) -> Self {
        Self::new(
            pointer,
            "stored",
            "what the model's server keeps between requests is not for this gateway's callers: send what it says, reasoning with its `encrypted_content`",
        )
    }

    /// A rule broken at a member of the document, whose key is escaped here.
    #[must_use]
    pub fn at_member(key: &str, rule: &'static str, text: &'static str) -> Self {
        let short = key.char_indices().nth(POINTER_MAX).map_or(key, |(at, _)| &key[..at]);
        Self::new(format!("/{}", short.replace('~', "~0").replace('/', "~1")), rule, text)
    }

    /// Refuses keys that are another spelling of one in `decided`. Go's and .NET's readers take `Model` for `model`, and the last
    /// of them wins: what was judged would not be what is run.
    ///
    /// # Errors
    /// The first such key.
    pub fn look_alike(members: &Map<String, Value>, decided: &[&str]) -> Result<(), Self> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        // The two letters beyond ASCII that Unicode's simple folding makes ASCII of: the long s and the Kelvin sign.
        let folded = |letter: char| match letter {
            '\u{17f}' => 's',
            '\u{212a}' => 'k',
            other => other.to_ascii_lowercase(),
        };
        let mut odd = members.keys().filter(|key| !key.bytes().all(plain));
        match odd.find(|key| decided.iter().any(|known| key.chars().map(folded).eq(known.chars()))) {
            Some(key) => Err(Self::at_member(key, "look_alike", "the field is spelt almost like one that is known")),
            None => Ok(()),
        }
    }

    /// The same mistake, told from further out.
    #[must_use]
    pub fn under(self, prefix: &str) -> Self {
        Self::new(format!("{prefix}{}", self.pointer), self.rule, self.text)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pointer.is_empty() { f.write_str(self.text) } else { write!(f, "{}: {}", self.pointer, self.text) }
    }
}

impl std::error::Error for Shape {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_escaped_and_cut_at_a_character() {
        assert_eq!(Shape::at_member("a/b~c", "unknown", "").pointer, "/a~1b~0c");
        let long = Shape::at_member(&"é".repeat(400), "unknown", "");
        assert!(long.pointer.len() <= POINTER_MAX && long.pointer.ends_with('é'));
    }
}
