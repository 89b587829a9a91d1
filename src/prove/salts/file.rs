//! How the keys lie in their file.
//!
//! A header (`pclsalt\n` · version u32 · nonce 12 · sealed master 48 · CRC32C u32) and records of one length (name 16 · nonce 12 ·
//! sealed 61 · CRC32C u32), little-endian; each CRC is over all that stands before it in its header or record. What is sealed
//! (AES-256-GCM-SIV, RFC 8452): in the header, by a key from the log's PEM and with `portcullis/salts-master/v1` as associated data, 32
//! random bytes, the *master*; in a record, by a key from the master and with `portcullis/salts/v1` and the name as associated data, whose
//! u8 · month u32 · since u64 · key 32.
//!
//! So another PEM takes the place of the first one where the header alone is written anew. `name` is HMAC-SHA-256 under a key from the
//! master, cut to 16 bytes: who holds the file alone learns how many keys there are, and nothing else.

use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use super::{OpenError, Whose};
use crate::secret::Secret;

const MAGIC: &[u8; 8] = b"pclsalt\n";
const VERSION: u32 = 2;
const NAMES_LABEL: &str = "portcullis/salt-names/v1";
const WRAP_LABEL: &str = "portcullis/salt-wrap/v1";
const SEALED_FOR: &[u8] = b"portcullis/salts/v1";
const SEAL_LABEL: &str = "portcullis/salt-seal/v1";
const MASTER_FOR: &[u8] = b"portcullis/salts-master/v1";

/// The length of the header.
pub(super) const HEADER: usize = PREFIX + NONCE + MASTER + TAG + 4;
/// What a header begins with: magic and version.
const PREFIX: usize = 12;
const MASTER: usize = 32;
const TAG: usize = 16;
/// The length of a record.
pub(super) const RECORD: usize = NAME + NONCE + SEALED + 4;
const NAME: usize = 16;
const NONCE: usize = 12;
const PLAIN: usize = 1 + 4 + 8 + 32;
const SEALED: usize = PLAIN + TAG;

/// What a key is looked up by.
pub(in crate::prove) type Name = [u8; NAME];

/// A key as it is in memory. No `Debug`; wiped where it lay when it is dropped.
pub(super) struct Kept {
    pub(super) whose: Whose,
    /// Of an epoch and of strangers; 0 of a subject.
    pub(super) month: u32,
    /// No entry with a smaller number was salted with this key.
    pub(super) since: u64,
    pub(super) key: Zeroizing<[u8; 32]>,
}

/// What seals the master of a file: a key from the PEM.
pub(in crate::prove) struct Sealing(RandomizedNonceKey);

impl Sealing {
    /// That of this seed.
    pub(in crate::prove) fn new(seed: &Secret) -> Option<Arc<Self>> {
        Some(Arc::new(Self(RandomizedNonceKey::new(&AES_256_GCM_SIV, seed.derive(SEAL_LABEL).expose()).ok()?)))
    }

    /// The header of a file with the master of `wrapping`; `None` where the system gives no randomness for its nonce.
    pub(super) fn header(&self, wrapping: &Wrapping) -> Option<[u8; HEADER]> {
        let mut sealed = Zeroizing::new(Vec::with_capacity(MASTER + TAG));
        sealed.extend_from_slice(wrapping.master.expose());
        let nonce = self.0.seal_in_place_append_tag(Aad::from(MASTER_FOR), &mut *sealed).ok()?;
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..PREFIX].copy_from_slice(&VERSION.to_le_bytes());
        header[PREFIX..PREFIX + NONCE].copy_from_slice(nonce.as_ref());
        header[PREFIX + NONCE..HEADER - 4].copy_from_slice(&sealed);
        let crc = crc32c::crc32c(&header[..HEADER - 4]);
        header[HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
        Some(header)
    }

    /// What names and wraps the keys of the file that begins with `header`; `None` where another PEM sealed its master.
    pub(in crate::prove) fn open(&self, header: &[u8]) -> Option<Arc<Wrapping>> {
        let nonce = Nonce::try_assume_unique_for_key(header.get(PREFIX..PREFIX + NONCE)?).ok()?;
        let mut sealed = Zeroizing::new(header.get(PREFIX + NONCE..HEADER - 4)?.to_vec());
        let master = self.0.open_in_place(nonce, Aad::from(MASTER_FOR), &mut sealed).ok()?;
        Wrapping::new(Secret::new(master.to_vec()))
    }
}

/// What names and wraps keys: two keys from the master of their file.
pub(in crate::prove) struct Wrapping {
    master: Secret,
    names: hmac::Key,
    aead: RandomizedNonceKey,
}

impl Wrapping {
    /// That of a file that is begun.
    pub(super) fn fresh() -> Option<Arc<Self>> {
        Self::new(Secret::random(MASTER))
    }

    fn new(master: Secret) -> Option<Arc<Self>> {
        let names = hmac::Key::new(hmac::HMAC_SHA256, master.derive(NAMES_LABEL).expose());
        let aead = RandomizedNonceKey::new(&AES_256_GCM_SIV, master.derive(WRAP_LABEL).expose()).ok()?;
        Some(Arc::new(Self { master, names, aead }))
    }

    /// The name of a caller's key. The tenant's length stands before it, so that no two pairs are one text.
    pub(super) fn subject(&self, tenant: &str, caller: &str) -> Name {
        self.name(&[b"subject", &(tenant.len() as u64).to_le_bytes(), tenant.as_bytes(), caller.as_bytes()])
    }

    /// The name of the key of a month's pseudonyms.
    pub(super) fn epoch(&self, month: u32) -> Name {
        self.name(&[b"epoch", &month.to_le_bytes()])
    }

    /// The name of the key of a month's strangers.
    pub(super) fn strangers(&self, month: u32) -> Name {
        self.name(&[b"strangers", &month.to_le_bytes()])
    }

    fn name(&self, parts: &[&[u8]]) -> Name {
        let mut context = hmac::Context::with_key(&self.names);
        parts.iter().for_each(|part| context.update(part));
        let mut name = [0; NAME];
        name.copy_from_slice(&context.sign().as_ref()[..NAME]);
        name
    }

    /// The record of a key; `None` where the system gives no randomness for its nonce.
    pub(super) fn seal(&self, name: &Name, kept: &Kept) -> Option<[u8; RECORD]> {
        let mut plain = Zeroizing::new(Vec::with_capacity(SEALED));
        plain.push(kept.whose as u8);
        plain.extend_from_slice(&kept.month.to_le_bytes());
        plain.extend_from_slice(&kept.since.to_le_bytes());
        plain.extend_from_slice(&*kept.key);
        let nonce = self.aead.seal_in_place_append_tag(Aad::from(sealed_for(name)), &mut *plain).ok()?;
        let mut record = [0; RECORD];
        record[..NAME].copy_from_slice(name);
        record[NAME..NAME + NONCE].copy_from_slice(nonce.as_ref());
        record[NAME + NONCE..RECORD - 4].copy_from_slice(&plain);
        let crc = crc32c::crc32c(&record[..RECORD - 4]);
        record[RECORD - 4..].copy_from_slice(&crc.to_le_bytes());
        Some(record)
    }

    fn open(&self, record: &[u8]) -> Option<(Name, Kept)> {
        let name: Name = record.get(..NAME)?.try_into().ok()?;
        let nonce = Nonce::try_assume_unique_for_key(record.get(NAME..NAME + NONCE)?).ok()?;
        let mut sealed = Zeroizing::new(record.get(NAME + NONCE..RECORD - 4)?.to_vec());
        let plain = self.aead.open_in_place(nonce, Aad::from(sealed_for(&name)), &mut sealed).ok()?;
        let whose = Whose::ALL.into_iter().find(|whose| *whose as u8 == plain[0])?;
        let month = u32::from_le_bytes(plain.get(1..5)?.try_into().ok()?);
        let since = u64::from_le_bytes(plain.get(5..13)?.try_into().ok()?);
        let mut key = Zeroizing::new([0; 32]);
        key.copy_from_slice(plain.get(13..PLAIN)?);
        Some((name, Kept { whose, month, since, key }))
    }
}

#[cfg(test)]
impl Wrapping {
    /// Every key that unwraps at any place in `bytes`.
    pub(in crate::prove) fn every_key_in(&self, bytes: &[u8]) -> Vec<[u8; 32]> {
        bytes.windows(RECORD).filter_map(|record| Some(*self.open(record)?.1.key)).collect()
    }
}

fn sealed_for(name: &Name) -> [u8; SEALED_FOR.len() + NAME] {
    let mut bytes = [0; SEALED_FOR.len() + NAME];
    bytes[..SEALED_FOR.len()].copy_from_slice(SEALED_FOR);
    bytes[SEALED_FOR.len()..].copy_from_slice(name);
    bytes
}

/// The name in a record.
pub(super) fn name_of(record: &[u8]) -> &[u8] {
    &record[..NAME]
}

/// Whether a header is sound: of this version, and whole. Whose it is is another question.
pub(super) fn is_sound(header: &[u8]) -> bool {
    let begun = header.len() >= HEADER && header.starts_with(MAGIC) && header[8..PREFIX] == VERSION.to_le_bytes();
    begun && crc32c::crc32c(&header[..HEADER - 4]).to_le_bytes() == header[HEADER - 4..HEADER]
}

/// What names and wraps the keys in `bytes`, the content of the file `path`, and whether it is `previous` that sealed it.
pub(super) fn unsealed(
    path: &Path,
    bytes: &[u8],
    sealing: &Sealing,
    previous: Option<&Sealing>,
) -> Result<(Arc<Wrapping>, bool), OpenError> {
    if !is_sound(bytes) {
        return Err(OpenError::Damaged(path.into(), 0, "the header is not one of this version"));
    }
    let by_this = sealing.open(bytes).map(|wrapping| (wrapping, false));
    let opened = by_this.or_else(|| Some((previous?.open(bytes)?, true)));
    opened.ok_or_else(|| OpenError::AnotherKey(path.into()))
}

/// Every key in `bytes`, the content of the file `path`, and the length of the sound part of it: past that is a torn tail.
pub(super) fn read(path: &Path, bytes: &[u8], wrapping: &Wrapping) -> Result<(Vec<(Name, Kept)>, usize), OpenError> {
    let damaged = |at: usize, why| OpenError::Damaged(path.into(), at as u64, why);
    if !is_sound(bytes) {
        return Err(damaged(0, "the header is not one of this version"));
    }
    let records = bytes[HEADER..].chunks_exact(RECORD);
    let sound = |record: &[u8]| crc32c::crc32c(&record[..RECORD - 4]).to_le_bytes() == record[RECORD - 4..];
    let mut kept = Vec::with_capacity(records.len());
    let mut at = HEADER;
    for record in records.clone().take_while(|record| sound(record)) {
        // A checksum that holds over a seal that does not is no accident of the disk.
        kept.push(wrapping.open(record).ok_or_else(|| damaged(at, "a key does not unwrap: it was changed, or is of another log"))?);
        at += RECORD;
    }
    if records.skip(kept.len() + 1).any(sound) {
        return Err(damaged(at, "a record is damaged, and good ones follow it"));
    }
    Ok((kept, at))
}
