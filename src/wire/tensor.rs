//! Tensors as the Open Inference Protocol v2 knows them.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

/// The element types of the Open Inference Protocol v2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the protocol's")]
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    Bytes,
}

impl Datatype {
    /// Every type.
    pub const ALL: [Self; 14] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Bf16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
    ];

    /// The protocol's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }

    /// Bytes of one element; `None` for `BYTES`, whose elements each carry their length.
    #[must_use]
    pub const fn width(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }
}

impl fmt::Display for Datatype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownDatatype;

impl FromStr for Datatype {
    type Err = UnknownDatatype;

    fn from_str(text: &str) -> Result<Self, UnknownDatatype> {
        Self::ALL.into_iter().find(|datatype| datatype.as_str() == text).ok_or(UnknownDatatype)
    }
}

/// One named tensor. `data` is row-major and little-endian; `BYTES` elements each follow a little-endian `u32` length.
#[derive(Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub datatype: Datatype,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// Its elements.
    pub data: Bytes,
}

impl Tensor {
    /// How many elements the shape holds; `None` when the product overflows.
    #[must_use]
    pub fn elements(&self) -> Option<usize> {
        elements(&self.shape)
    }

    /// The elements of a `BYTES` tensor, without their lengths; a wrong length ends them.
    pub fn strings(&self) -> impl Iterator<Item = Bytes> + use<> {
        let mut rest = self.data.clone();
        std::iter::from_fn(move || {
            let length = u32::from_le_bytes(*rest.first_chunk()?) as usize;
            if rest.len() - 4 < length {
                return None;
            }
            let _length = rest.split_to(4);
            Some(rest.split_to(length))
        })
    }
}

/// How many rows a batch has: the greatest first dimension of its tensors, in whatever order they are sent. A dimension beside a zero is the caller's
/// word for nothing: there are no more rows than bytes.
#[must_use]
pub fn rows(tensors: &[Tensor]) -> usize {
    let rows =
        tensors.iter().filter_map(|tensor| Some(usize::try_from(*tensor.shape.first()?).unwrap_or(usize::MAX).min(tensor.data.len())));
    rows.max().unwrap_or(0)
}

/// Whether bytes are exactly so many elements of a type: the width times the count, `BOOL` only 0 and 1 (anything else is
/// undefined to the code behind us), and the lengths of `BYTES` adding up.
#[must_use]
pub fn holds(datatype: Datatype, count: usize, data: &[u8]) -> bool {
    match datatype.width() {
        Some(width) => count.checked_mul(width) == Some(data.len()) && (datatype != Datatype::Bool || data.iter().all(|byte| *byte <= 1)),
        None => {
            let (mut rest, mut found) = (data, 0_usize);
            while let Some((length, behind)) = rest.split_first_chunk::<4>() {
                let Some(behind) = behind.get(u32::from_le_bytes(*length) as usize..) else { return false };
                (rest, found) = (behind, found + 1);
            }
            rest.is_empty() && found == count
        }
    }
}

/// What a model says of one of its inputs or outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub datatype: Datatype,
    /// Its dimensions; `None` where any length is taken. The first is the batch, where it is free.
    pub shape: Vec<Option<u64>>,
}

/// How many elements a shape holds; `None` when the product overflows.
#[must_use]
pub fn elements(shape: &[u64]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |product, dimension| product.checked_mul(usize::try_from(*dimension).ok()?))
}

impl fmt::Debug for Tensor {
    /// Never the elements.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {} {:?}, {} bytes)", self.name, self.datatype, self.shape, self.data.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datatypes_read_back_as_written() {
        for datatype in Datatype::ALL {
            assert_eq!(datatype.as_str().parse(), Ok(datatype));
        }
        assert_eq!("fp32".parse::<Datatype>(), Err(UnknownDatatype));
    }

    #[test]
    fn bytes_hold_exactly_the_elements_that_are_told() {
        assert!(holds(Datatype::Fp32, 2, &[0; 8]));
        assert!(!holds(Datatype::Fp32, 2, &[0; 7]));
        assert!(!holds(Datatype::Fp32, 2, &[0; 9]));
        assert!(!holds(Datatype::Fp64, usize::MAX, &[]));
        assert!(holds(Datatype::Bool, 2, &[0, 1]));
        assert!(!holds(Datatype::Bool, 2, &[0, 2]));
        assert!(holds(Datatype::Bytes, 2, b"\x01\0\0\0a\0\0\0\0"));
        assert!(!holds(Datatype::Bytes, 1, b"\x01\0\0\0a\0\0\0\0"));
        assert!(!holds(Datatype::Bytes, 1, b"\x02\0\0\0a"));
        assert!(!holds(Datatype::Bytes, 1, b"\xff\xff\xff\xffa"));
        assert!(!holds(Datatype::Bytes, 0, b"\0"));
        let data = Bytes::from_static(b"\x01\0\0\0a\0\0\0\0");
        let tensor = Tensor { name: String::new(), datatype: Datatype::Bytes, shape: vec![2], data };
        assert_eq!(tensor.strings().collect::<Vec<_>>(), ["a", ""]);
    }

    #[test]
    fn a_shape_that_overflows_has_no_count() {
        assert_eq!(elements(&[u64::MAX, 2]), None);
        assert_eq!(elements(&[]), Some(1));
        assert_eq!(elements(&[3, 0, 5]), Some(0));
    }
}
