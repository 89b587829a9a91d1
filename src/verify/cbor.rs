//! Deterministic CBOR (RFC 8949 §4.2.1): shortest heads, definite lengths, keys in bytewise order.
//!
//! The writer leaves the order of keys to its caller, who writes them ascending; [`canonical`] holds that from outside.

use ciborium::Value;

/// How deep a statement may nest; ours nest four deep.
const MAX_DEPTH: usize = 12;

/// Bytes of CBOR as they grow.
#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    /// An empty writer with room for `bytes`.
    pub(crate) fn with_room(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// What was written.
    pub(crate) fn done(self) -> Vec<u8> {
        self.0
    }

    fn head(&mut self, major: u8, value: u64) {
        let major = major << 5;
        match value {
            0..=23 => self.0.push(major | value as u8),
            24..=0xff => self.0.extend([major | 24, value as u8]),
            0x100..=0xffff => {
                self.0.push(major | 25);
                self.0.extend((value as u16).to_be_bytes());
            }
            0x1_0000..=0xffff_ffff => {
                self.0.push(major | 26);
                self.0.extend((value as u32).to_be_bytes());
            }
            _ => {
                self.0.push(major | 27);
                self.0.extend(value.to_be_bytes());
            }
        }
    }

    pub(crate) fn uint(&mut self, value: u64) -> &mut Self {
        self.head(0, value);
        self
    }

    /// The integer `-1 - value`.
    pub(crate) fn negative(&mut self, value: u64) -> &mut Self {
        self.head(1, value);
        self
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.head(2, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.head(3, text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    pub(crate) fn array(&mut self, items: usize) -> &mut Self {
        self.head(4, items as u64);
        self
    }

    pub(crate) fn map(&mut self, pairs: usize) -> &mut Self {
        self.head(5, pairs as u64);
        self
    }

    pub(crate) fn tag(&mut self, tag: u64) -> &mut Self {
        self.head(6, tag);
        self
    }

    pub(crate) fn bool(&mut self, value: bool) -> &mut Self {
        self.0.push(if value { 0xf5 } else { 0xf4 });
        self
    }

    pub(crate) fn null(&mut self) -> &mut Self {
        self.0.push(0xf6);
        self
    }

    fn value(&mut self, value: &Value) -> Option<()> {
        match value {
            Value::Integer(number) => match u64::try_from(*number) {
                Ok(number) => self.head(0, number),
                Err(_) => self.head(1, u64::try_from(-1 - i128::from(*number)).ok()?),
            },
            Value::Bytes(bytes) => drop(self.bytes(bytes)),
            Value::Text(text) => drop(self.text(text)),
            Value::Bool(value) => drop(self.bool(*value)),
            Value::Tag(tag, inner) => {
                self.tag(*tag);
                self.value(inner)?;
            }
            Value::Array(items) => {
                self.array(items.len());
                items.iter().try_for_each(|item| self.value(item))?;
            }
            Value::Map(pairs) => {
                self.map(pairs.len());
                let mut last = Vec::new();
                for (key, value) in pairs {
                    let mut encoded = Self::default();
                    encoded.value(key)?;
                    if encoded.0 <= last {
                        return None;
                    }
                    last = encoded.0;
                    self.0.extend_from_slice(&last);
                    self.value(value)?;
                }
            }
            // A payload that lies elsewhere.
            Value::Null => drop(self.null()),
            // Nothing of ours holds floats.
            _ => return None,
        }
        Some(())
    }
}

/// Reads one item that fills `bytes`, and only in the one encoding that [`Writer`] could have made of it.
pub(crate) fn canonical(bytes: &[u8]) -> Option<Value> {
    let value: Value = ciborium::de::from_reader_with_recursion_limit(bytes, MAX_DEPTH).ok()?;
    let mut again = Writer::with_room(bytes.len());
    again.value(&value)?;
    (again.0 == bytes).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_shortest_and_sorted_encoding_reads() {
        for good in [&[0x17][..], &[0x18, 24], &[0x20], &[0xa2, 1, 2, 2, 3], &[0xd2, 0x80], &[0xf5], &[0x1b, 0, 0, 0, 1, 0, 0, 0, 0]] {
            assert!(canonical(good).is_some(), "{good:02x?}");
        }
        let bad: [&[u8]; 9] = [
            &[0x18, 23],           // not the shortest head
            &[0x19, 0, 24],        // nor this
            &[0xa2, 2, 3, 1, 2],   // keys out of order
            &[0xa2, 1, 2, 1, 3],   // a key twice
            &[0x5f, 0x41, 0, 255], // indefinite length
            &[0x00, 0x00],         // something after it
            &[0xf7],               // undefined
            &[0x42, 0],            // cut short
            &[0x81; 40],           // too deep
        ];
        for bad in bad {
            assert!(canonical(bad).is_none(), "{bad:02x?}");
        }
    }
}
