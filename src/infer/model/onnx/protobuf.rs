//! The wire format of Protocol Buffers, read field by field, without a copy.

use super::Fault;

/// One value of the wire format.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Varint(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32,
}

impl<'a> Value<'a> {
    pub(super) fn varint(self) -> Result<u64, Fault> {
        if let Self::Varint(value) = self { Ok(value) } else { Err(OTHER_KIND) }
    }

    pub(super) fn bytes(self) -> Result<&'a [u8], Fault> {
        if let Self::Bytes(bytes) = self { Ok(bytes) } else { Err(OTHER_KIND) }
    }

    pub(super) fn fixed32(self) -> Result<(), Fault> {
        if let Self::Fixed32 = self { Ok(()) } else { Err(OTHER_KIND) }
    }

    /// How many numbers a repeated field adds, each `width` bytes long, packed or not.
    pub(super) fn fixed(self, width: usize) -> Result<u64, Fault> {
        match (self, width) {
            (Self::Fixed32, 4) | (Self::Fixed64, 8) => Ok(1),
            (Self::Bytes(packed), _) if packed.len() % width == 0 => Ok((packed.len() / width) as u64),
            _ => Err(OTHER_KIND),
        }
    }

    /// Each number that a repeated field adds, packed or not.
    pub(super) fn each(self, mut take: impl FnMut(u64) -> Result<(), Fault>) -> Result<(), Fault> {
        match self {
            Self::Varint(value) => take(value),
            Self::Bytes(mut packed) => {
                while !packed.is_empty() {
                    take(varint(&mut packed)?)?;
                }
                Ok(())
            }
            Self::Fixed64 | Self::Fixed32 => Err(OTHER_KIND),
        }
    }
}

pub(super) const TRUNCATED: Fault = Fault::NotOnnx("it ends in the middle of a field");
pub(super) const OTHER_KIND: Fault = Fault::NotOnnx("a field is of another kind than ONNX says");

fn varint(from: &mut &[u8]) -> Result<u64, Fault> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first().ok_or(TRUNCATED)?;
        *from = rest;
        if shift == 63 && *byte > 1 {
            break;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Fault::NotOnnx("a number is longer than 64 bits"))
}

fn take<'a>(from: &mut &'a [u8], length: u64) -> Result<&'a [u8], Fault> {
    let length = usize::try_from(length).map_err(|_| TRUNCATED)?;
    let (head, rest) = from.split_at_checked(length).ok_or(TRUNCATED)?;
    *from = rest;
    Ok(head)
}

/// Calls `field` for each field of the message; it answers whether it knows the number. All but `repeated` may stand there once.
pub(super) fn message<'a>(
    name: &'static str,
    mut bytes: &'a [u8],
    repeated: &[u64],
    mut field: impl FnMut(u64, Value<'a>) -> Result<bool, Fault>,
) -> Result<(), Fault> {
    let mut seen = 0_u64;
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let number = tag >> 3;
        // Field numbers of ONNX end at 26; one past 63 has no bit in `seen`.
        if !(1..64).contains(&number) {
            return Err(Fault::UnknownField { message: name, number });
        }
        if !repeated.contains(&number) {
            if seen & (1 << number) != 0 {
                return Err(Fault::WrittenTwice { message: name, number });
            }
            seen |= 1 << number;
        }
        let value = match tag & 7 {
            0 => Value::Varint(varint(&mut bytes)?),
            1 => take(&mut bytes, 8).map(|_| Value::Fixed64)?,
            2 => {
                let length = varint(&mut bytes)?;
                Value::Bytes(take(&mut bytes, length)?)
            }
            5 => take(&mut bytes, 4).map(|_| Value::Fixed32)?,
            _ => return Err(Fault::NotOnnx("a field is of a kind that protobuf does not have")),
        };
        if !field(number, value)? {
            return Err(Fault::UnknownField { message: name, number });
        }
    }
    Ok(())
}
