//! Cosignatures (C2SP tlog-cosignature v1.1): what a witness says of a checkpoint, with the time at which it said so.
//!
//! A cosignature is a note's signature line whose signature begins with the time, 8 bytes big-endian. The kind `0x04`
//! (Ed25519) covers the time and the whole text; `0x06` (ML-DSA-44) covers the cosigner's name, the time, the log's origin,
//! the tree's size and its root, and nothing of the text's further lines.

use super::checkpoint::{Checkpoint, is_origin};
use super::note::Line;
use super::signature::{CannotSign, ED25519_PUBLIC, Ed25519Key, ML_DSA_44_PUBLIC, MlDsa44Key, ed25519_verifies, ml_dsa_44_verifies};
use super::vkey::{PublicKey, Vkey, is_name};

/// The last time that a cosignature may have, in seconds since 1970.
pub const MAX_TIME: u64 = i64::MAX as u64;
const LABEL: &[u8; 12] = b"subtree/v1\n\0";

/// A cosigner: a name and the two keys that sign under it. No `Debug`, no `Clone`.
pub struct Cosigner {
    name: String,
    ed25519: Ed25519Key,
    ml_dsa_44: MlDsa44Key,
}

impl Cosigner {
    /// The cosigner `name`; `None` where no key may have this name.
    #[must_use]
    pub fn new(name: &str, ed25519: Ed25519Key, ml_dsa_44: MlDsa44Key) -> Option<Self> {
        is_name(name).then(|| Self { name: name.into(), ed25519, ml_dsa_44 })
    }

    /// Its public keys: Ed25519, ML-DSA-44.
    #[must_use]
    pub fn vkeys(&self) -> [Vkey; 2] {
        [PublicKey::Cosigner(self.ed25519.public()), PublicKey::MlDsa44(self.ml_dsa_44.public())]
            .map(|key| Vkey { name: self.name.clone(), key })
    }

    /// Cosigns with both keys, as of `time` in seconds since 1970.
    ///
    /// # Errors
    /// When the library makes no signature, or the time is past [`MAX_TIME`].
    pub fn cosign(&self, checkpoint: &Checkpoint, time: u64) -> Result<[Line; 2], CannotSign> {
        Ok([
            sign_ed25519(&self.ed25519, &self.name, &checkpoint.to_string(), time)?,
            sign_ml_dsa_44(&self.ml_dsa_44, &self.name, checkpoint, time)?,
        ])
    }
}

/// The line of kind `0x04` by `key` under `name`, on a checkpoint's text.
///
/// # Errors
/// When the time is past [`MAX_TIME`].
pub fn sign_ed25519(key: &Ed25519Key, name: &str, text: &str, time: u64) -> Result<Line, CannotSign> {
    let vkey = Vkey { name: name.into(), key: PublicKey::Cosigner(key.public()) };
    let message = ed25519_message(text, time).ok_or(CannotSign)?;
    Ok(Line::of(&vkey, [&time.to_be_bytes()[..], &key.sign(&message)].concat()))
}

/// The line of kind `0x06` by `key` under `name`: a witness's, or, under its origin, the log's own.
///
/// # Errors
/// When the library makes no signature, the time is past [`MAX_TIME`], or name or origin are empty or too long.
pub fn sign_ml_dsa_44(key: &MlDsa44Key, name: &str, checkpoint: &Checkpoint, time: u64) -> Result<Line, CannotSign> {
    let vkey = Vkey { name: name.into(), key: PublicKey::MlDsa44(key.public()) };
    let message = ml_dsa_44_message(name, checkpoint, time).ok_or(CannotSign)?;
    Ok(Line::of(&vkey, [&time.to_be_bytes()[..], &key.sign(&message)?].concat()))
}

/// The time of an Ed25519 cosignature on `text` that holds.
pub(super) fn open_ed25519(public: &[u8; ED25519_PUBLIC], text: &str, signature: &[u8]) -> Option<u64> {
    let (time, signature) = split(signature)?;
    ed25519_verifies(public, &ed25519_message(text, time)?, signature).then_some(time)
}

/// The time of an ML-DSA-44 cosignature by `name` that holds, on a `text` that must be a checkpoint.
pub(super) fn open_ml_dsa_44(public: &[u8; ML_DSA_44_PUBLIC], name: &str, text: &str, signature: &[u8]) -> Option<u64> {
    let (time, signature) = split(signature)?;
    let message = ml_dsa_44_message(name, &Checkpoint::parse(text).ok()?, time)?;
    ml_dsa_44_verifies(public, &message, signature).then_some(time)
}

fn split(signature: &[u8]) -> Option<(u64, &[u8])> {
    signature.split_first_chunk().map(|(time, signature)| (u64::from_be_bytes(*time), signature))
}

fn ed25519_message(text: &str, time: u64) -> Option<Vec<u8>> {
    (time <= MAX_TIME).then(|| format!("cosignature/v1\ntime {time}\n{text}").into_bytes())
}

/// `cosigned_message` for the whole tree: `start` is zero, `end` is its size.
fn ml_dsa_44_message(name: &str, checkpoint: &Checkpoint, time: u64) -> Option<Vec<u8>> {
    if time > MAX_TIME || !is_name(name) || !is_origin(&checkpoint.origin) {
        return None;
    }
    let mut message = LABEL.to_vec();
    for (text, number) in [(name, time), (&checkpoint.origin, 0)] {
        message.push(u8::try_from(text.len()).ok()?);
        message.extend_from_slice(text.as_bytes());
        message.extend_from_slice(&number.to_be_bytes());
    }
    message.extend_from_slice(&checkpoint.size.to_be_bytes());
    message.extend_from_slice(&checkpoint.root);
    Some(message)
}

#[cfg(test)]
mod tests;
