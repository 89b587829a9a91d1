//! The header of a safetensors file, for people: what is in it. Refused where readers could differ about it.

use std::collections::BTreeMap;

use crate::wire::json;

/// The longest header, in bytes: those of published models of a thousand tensors have 100 KiB.
const MAX_HEADER: usize = 8 << 20;

/// What a header says.
#[derive(Debug)]
pub(super) struct Header {
    /// How many tensors.
    pub(super) tensors: usize,
    /// How many numbers they have together.
    pub(super) parameters: u64,
    /// How many tensors there are of each type.
    pub(super) datatypes: BTreeMap<String, usize>,
}

impl Header {
    /// Reads it, and that the tensors cover the rest of the file without gap or overlap.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let (length, rest) = bytes.split_first_chunk::<8>().ok_or("it has no header")?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok().filter(|length| *length <= MAX_HEADER && *length <= rest.len());
        let (header, data) = rest.split_at(length.ok_or("its header is longer than 8 MiB, or than the file")?);
        if !header.starts_with(b"{") {
            return Err("its header does not begin with a brace".to_owned());
        }
        let header = json::parse(header, &json::Limits::for_body(header.len())).map_err(|error| format!("its header: {error}"))?;
        let mut read = Self { tensors: 0, parameters: 0, datatypes: BTreeMap::new() };
        let mut ranges = Vec::new();
        for (name, tensor) in header.as_object().into_iter().flatten().filter(|(name, _)| *name != "__metadata__") {
            let broken = || format!("its tensor {name:?} is not described as one");
            let tensor = tensor.as_object().filter(|tensor| tensor.len() == 3).ok_or_else(broken)?;
            let numbers = |key: &str| -> Option<Vec<u64>> { tensor.get(key)?.as_array()?.iter().map(serde_json::Value::as_u64).collect() };
            let datatype = tensor.get("dtype").and_then(serde_json::Value::as_str).ok_or_else(broken)?;
            let bits = bits(datatype).ok_or_else(|| format!("its tensor {name:?} is of the unknown type {datatype:?}"))?;
            let count = numbers("shape").and_then(|shape| shape.iter().try_fold(1_u64, |count, length| count.checked_mul(*length)));
            let count = count.ok_or_else(broken)?;
            let Some([from, to]) = numbers("data_offsets").and_then(|offsets| <[u64; 2]>::try_from(offsets).ok()) else {
                return Err(broken());
            };
            let size = count.checked_mul(bits).filter(|bits| bits.is_multiple_of(8)).map(|bits| bits / 8);
            if size.is_none() || to.checked_sub(from) != size {
                return Err(format!("its tensor {name:?} has another length than its shape says"));
            }
            ranges.push((from, to));
            read.tensors += 1;
            read.parameters = read.parameters.checked_add(count).ok_or_else(broken)?;
            *read.datatypes.entry(datatype.to_owned()).or_default() += 1;
        }
        ranges.sort_unstable();
        let end = ranges.iter().try_fold(0, |end, (from, to)| (*from == end).then_some(*to));
        if end == Some(data.len() as u64) { Ok(read) } else { Err("its tensors overlap, or leave bytes out".to_owned()) }
    }
}

/// Bits of one number.
fn bits(datatype: &str) -> Option<u64> {
    Some(match datatype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
    }

    #[test]
    fn a_header_is_counted() {
        let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"I64","shape":[],"data_offsets":[24,32]}}"#;
        let read = Header::read(&file(header, 32)).unwrap();
        assert_eq!((read.tensors, read.parameters, read.datatypes["F32"], read.datatypes["I64"]), (2, 7, 1, 1));
    }

    #[test]
    fn headers_that_lie_are_refused() {
        let one = |offsets: &str, shape: &str| format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#);
        assert!(Header::read(&file(&one("[0,8]", "[2]"), 8)).is_ok());
        for (header, data) in [
            (one("[0,8]", "[2]"), 9),
            (one("[4,12]", "[2]"), 12),
            (one("[0,8]", "[3]"), 8),
            (one("[8,0]", "[2]"), 8),
            (one("[0,8]", "[4611686018427387904,4]"), 8),
            (one("[0,8]", "[2]").replace("F32", "F33"), 8),
            (one("[0,8]", "[2]").replace("\"a\":", "\"a\":1,\"a\":"), 8),
            (one("[0,8]", "[2]").replace('{', " {"), 8),
        ] {
            assert!(Header::read(&file(&header, data)).is_err(), "{header}");
        }
        let long = [&(u64::MAX).to_le_bytes()[..], b"{}"].concat();
        assert!(Header::read(&long).is_err());
        assert!(Header::read(b"short").is_err());
    }
}
