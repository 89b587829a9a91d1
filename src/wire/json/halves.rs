//! Halves of characters, which no strict reader takes, and which servers write that cut a text between two units of UTF-16.

/// The same text with U+FFFD in the place of each half of a character, which is an escape of one unit of UTF-16 whose other half is missing; none where there is no such.
#[must_use]
pub fn without_halves(bytes: &[u8]) -> Option<Vec<u8>> {
    let unit = |at: usize| {
        let digits = bytes.get(at..at + 6).filter(|escape| escape.starts_with(b"\\u"))?;
        u16::from_str_radix(std::str::from_utf8(&digits[2..]).ok()?, 16).ok()
    };
    let (mut mended, mut from, mut at) = (Vec::new(), 0, 0);
    while let Some(next) = memchr::memchr(b'\\', bytes.get(at..)?) {
        at += next;
        at += match (unit(at), unit(at + 6)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => {
                mended.extend_from_slice(&bytes[from..at]);
                mended.extend_from_slice(b"\\ufffd");
                from = at + 6;
                6
            }
            (Some(_), _) => 6,
            // The character behind it is escaped, whichever.
            (None, _) => 2,
        };
    }
    (from > 0).then(|| {
        mended.extend_from_slice(&bytes[from..]);
        mended
    })
}
