//! Where a tensor's data lie that are not in the file: `TensorProto.external_data`, pairs of a key and a value.
//!
//! Closed like everything here. A location is the exact name of a file that was verified with the model: it is looked up and never opened, so
//! that there is nothing to climb out of. Offset and length are decimal and lie within that file.

use std::collections::BTreeMap;

use super::protobuf::message;
use super::{Beside, Fault, shown};
use crate::infer::model::signing::manifest::is_name;

/// The files in which a model's tensors lie, by their names, with the bytes that each must have at least.
pub type Needed = BTreeMap<String, u64>;

/// Where the data of one tensor lie.
#[derive(Debug, Default)]
pub(super) struct External<'a> {
    location: Option<&'a [u8]>,
    offset: Option<u64>,
    length: Option<u64>,
}

impl<'a> External<'a> {
    /// Reads one pair more.
    pub(super) fn add(&mut self, entry: &'a [u8]) -> Result<(), Fault> {
        let (mut key, mut of): (&[u8], &[u8]) = (b"", b"");
        message("StringStringEntryProto", entry, &[], |number, value| {
            match number {
                1 => key = value.bytes()?,
                2 => of = value.bytes()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        // An address in this process, for those who made the session in it.
        if of.windows(MARKER.len()).any(|window| window == MARKER) {
            return Err(Fault::MemoryAddress);
        }
        let twice = match key {
            b"location" => self.location.replace(of).is_some(),
            b"offset" => self.offset.replace(decimal(of)?).is_some(),
            b"length" => self.length.replace(decimal(of)?).is_some(),
            // What it is for, a digest of another kind, is said by the manifest.
            b"checksum" => false,
            _ => return Err(Fault::External("has a key that ONNX does not know")),
        };
        if twice { Err(Fault::External("has a key twice")) } else { Ok(()) }
    }

    /// Takes note that all of `bytes` lie in their file.
    pub(super) fn note(&self, bytes: u64, needed: &mut Needed) -> Result<(), Fault> {
        let location = self.location.ok_or(Fault::External("names no file"))?;
        let name = std::str::from_utf8(location).ok().filter(|name| is_name(name)).ok_or_else(|| Fault::OutsideFolder(shown(location)))?;
        let end = self.offset.unwrap_or(0).checked_add(bytes).ok_or(Fault::External("lie past the end of any file"))?;
        // Left out, they reach to the file's end; one engine takes that for all of it and another for what the shape needs.
        if self.length != Some(bytes) {
            return Err(Fault::External("have another length than their shape, or none"));
        }
        match needed.get_mut(name) {
            Some(known) => *known = end.max(*known),
            None => _ = needed.insert(name.to_owned(), end),
        }
        Ok(())
    }
}

/// Whether every file that is needed is there, and long enough.
///
/// # Errors
/// [`Fault::NotBeside`] or [`Fault::PastEnd`], of the first that is not.
pub fn suffices(needed: &Needed, beside: &Beside) -> Result<(), Fault> {
    needed.iter().try_for_each(|(name, end)| match beside.get(name) {
        None => Err(Fault::NotBeside(shown(name.as_bytes()))),
        Some(size) if size < end => Err(Fault::PastEnd { name: shown(name.as_bytes()), end: *end, size: *size }),
        Some(_) => Ok(()),
    })
}

const MARKER: &[u8] = b"_ORT_MEM_ADDR_";

/// Digits alone: no sign, no space, nothing that readers take differently.
fn decimal(text: &[u8]) -> Result<u64, Fault> {
    let number = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    number.and_then(|text| text.parse().ok()).ok_or(Fault::External("have an offset or a length that is no number"))
}
