//! Answers as characters to compare: small letters and digits, turned letters, what base64 hides.

use super::grams::Gram;

/// Brings text to small letters and digits of any script, with one space for all that lies between two of them, and tells every four in a row.
#[derive(Debug, Default)]
pub(super) struct Letters {
    gram: Gram,
    count: usize,
    gap: bool,
}

impl Letters {
    /// Takes one more character.
    pub(super) fn push(&mut self, c: char, mut gram: impl FnMut(Gram)) {
        if !c.is_alphanumeric() {
            self.gap = true;
            return;
        }
        if std::mem::take(&mut self.gap) && self.count > 0 {
            self.one(' ', &mut gram);
        }
        if c.is_ascii() {
            self.one(c.to_ascii_lowercase(), &mut gram);
        } else {
            c.to_lowercase().for_each(|c| self.one(c, &mut gram));
        }
    }

    fn one(&mut self, c: char, gram: &mut impl FnMut(Gram)) {
        self.gram.push(c);
        self.count = (self.count + 1).min(super::GRAM);
        if self.count == super::GRAM {
            gram(self.gram);
        }
    }
}

/// Undoes the escapes of JSON's strings (RFC 8259, 7): what a tool is given, and what a model was to say as JSON, is such text within text. What only begins like one passes.
#[derive(Debug, Default)]
pub(super) struct Escapes {
    /// After a backslash; the hexadecimal digits that have come since its `u`.
    digits: Option<(u8, u32)>,
    backslash: bool,
    /// The first half of a character that takes two.
    high: u32,
}

impl Escapes {
    /// Takes one more character, and tells what is meant by it, once that is known.
    pub(super) fn push(&mut self, c: char, mut out: impl FnMut(char)) {
        if let Some((count, value)) = self.digits {
            let Some(digit) = c.to_digit(16) else {
                self.digits = None;
                out(c);
                return;
            };
            let (count, value) = (count + 1, value << 4 | digit);
            self.digits = (count < 4).then_some((count, value));
            if count == 4 {
                self.unit(value, out);
            }
        } else if std::mem::take(&mut self.backslash) {
            match c {
                'u' => self.digits = Some((0, 0)),
                'n' | 'r' | 't' | 'b' | 'f' => out(' '),
                other => out(other),
            }
        } else if c == '\\' {
            self.backslash = true;
        } else {
            out(c);
        }
    }

    /// A unit of UTF-16.
    fn unit(&mut self, value: u32, mut out: impl FnMut(char)) {
        let high = std::mem::take(&mut self.high);
        match value {
            0xd800..=0xdbff => self.high = value,
            0xdc00..=0xdfff if high != 0 => {
                char::from_u32(0x1_0000 + ((high - 0xd800) << 10) + (value - 0xdc00)).into_iter().for_each(out);
            }
            _ => out(char::from_u32(value).unwrap_or(' ')),
        }
    }
}

/// A small letter thirteen letters on.
pub(super) const fn rot13(c: char) -> char {
    match c {
        'a'..='m' => (c as u8 + 13) as char,
        'n'..='z' => (c as u8 - 13) as char,
        other => other,
    }
}

/// Decodes whatever may be base64, words included, from wherever a run of its alphabet begins; ends of lines are passed over. What comes out of a word is noise, which
/// is no run of anything.
#[derive(Debug, Default)]
pub(super) struct Base64 {
    bits: u32,
    count: u32,
    /// Bytes of a character that is not whole.
    utf8: [u8; 4],
    held: usize,
}

impl Base64 {
    /// Takes one more character of the answer, and tells what characters come out.
    pub(super) fn push(&mut self, c: char, mut out: impl FnMut(char)) {
        let six = match c {
            'A'..='Z' => c as u32 - 'A' as u32,
            'a'..='z' => c as u32 - 'a' as u32 + 26,
            '0'..='9' => c as u32 - '0' as u32 + 52,
            '+' | '-' => 62,
            '/' | '_' => 63,
            '\n' | '\r' => return,
            _ => {
                (self.bits, self.count, self.held) = (0, 0, 0);
                // What ends a run parts what came out of it from what comes next.
                out(' ');
                return;
            }
        };
        self.bits = self.bits << 6 | six;
        self.count += 6;
        if self.count >= 8 {
            self.count -= 8;
            self.byte((self.bits >> self.count) as u8, &mut out);
            self.bits &= (1 << self.count) - 1;
        }
    }

    fn byte(&mut self, byte: u8, out: &mut impl FnMut(char)) {
        if byte.is_ascii() {
            self.held = 0;
            out(byte.into());
            return;
        }
        if byte & 0xc0 == 0xc0 {
            self.held = 0;
        }
        if self.held < 4 {
            self.utf8[self.held] = byte;
            self.held += 1;
        }
        if let Some(c) = std::str::from_utf8(&self.utf8[..self.held]).ok().and_then(|text| text.chars().next()) {
            self.held = 0;
            out(c);
        } else if self.held == 4 {
            self.held = 0;
            out(' ');
        }
    }
}
