//! Verifier keys, as `keys.vkey`, `--key` and policies write them (C2SP signed-note): `NAME+ID+BASE64(KIND ‖ KEY)`.

use std::fmt;
use std::str::FromStr;

use super::signature::{ED25519_PUBLIC, ML_DSA_44_PUBLIC, ed25519_verifies, ml_dsa_44_verifies};
use super::{base64, from_base64};
use crate::digest::Digest;

/// The longest name of a key in bytes: an ML-DSA-44 cosignature has one byte for the length of it.
pub const MAX_NAME: usize = 255;

const NOTE: u8 = 0x01;
const COSIGNER: u8 = 0x04;
const ML_DSA_44: u8 = 0x06;
/// `0xff` and a longer name are a kind of key without a byte of its own.
const STATEMENT: &[u8] = b"\xffportcullis/cose-statement/ed25519:";

/// What a public key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `0x01`, Ed25519: a log's checkpoints, and the endorsement of statement keys.
    Log,
    /// `0x04`, Ed25519: a witness's timestamped cosignatures.
    Cosigner,
    /// `0x06`, ML-DSA-44: timestamped cosignatures, a witness's and a log's own.
    MlDsa44,
    /// `0xff` and `portcullis/cose-statement/ed25519:`: statements (COSE_Sign1), and no notes.
    Statement,
}

/// A public key, and with it what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// [`Kind::Log`].
    Log([u8; ED25519_PUBLIC]),
    /// [`Kind::Cosigner`].
    Cosigner([u8; ED25519_PUBLIC]),
    /// [`Kind::MlDsa44`].
    MlDsa44(Box<[u8; ML_DSA_44_PUBLIC]>),
    /// [`Kind::Statement`].
    Statement([u8; ED25519_PUBLIC]),
}

impl PublicKey {
    /// What it is for.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Log(_) => Kind::Log,
            Self::Cosigner(_) => Kind::Cosigner,
            Self::MlDsa44(_) => Kind::MlDsa44,
            Self::Statement(_) => Kind::Statement,
        }
    }

    /// The key's own bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Log(key) | Self::Cosigner(key) | Self::Statement(key) => key,
            Self::MlDsa44(key) => &**key,
        }
    }

    /// KIND ‖ KEY.
    fn typed(&self) -> Vec<u8> {
        let kind: &[u8] = match self {
            Self::Log(_) => &[NOTE],
            Self::Cosigner(_) => &[COSIGNER],
            Self::MlDsa44(_) => &[ML_DSA_44],
            Self::Statement(_) => STATEMENT,
        };
        [kind, self.bytes()].concat()
    }

    fn from_typed(typed: &[u8]) -> Option<Self> {
        if let Some(key) = typed.strip_prefix(STATEMENT) {
            return Some(Self::Statement(key.try_into().ok()?));
        }
        let (kind, key) = typed.split_first()?;
        Some(match *kind {
            NOTE => Self::Log(key.try_into().ok()?),
            COSIGNER => Self::Cosigner(key.try_into().ok()?),
            ML_DSA_44 => Self::MlDsa44(Box::new(key.try_into().ok()?)),
            _ => return None,
        })
    }
}

/// A public key and its name: for a log its origin, for a witness a URL without its scheme.
///
/// In `NAME+ID+BASE64(KIND ‖ KEY)` ID is [`Vkey::id`] in hex, and KIND as [`Kind`] tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vkey {
    /// Its name, as signature lines have it.
    pub name: String,
    /// The key.
    pub key: PublicKey,
}

/// The text is no verifier key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAVkey;

impl fmt::Display for NotAVkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a verifier key; expected NAME+HASH+BASE64, as keys.vkey has them")
    }
}

impl std::error::Error for NotAVkey {}

impl Vkey {
    /// What it is for.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.key.kind()
    }

    /// The ID in its signature lines: the first four bytes of SHA-256(NAME ‖ `0x0a` ‖ KIND ‖ KEY), big-endian.
    #[must_use]
    pub fn id(&self) -> u32 {
        let digest = Digest::of(&[self.name.as_bytes(), b"\n", &self.key.typed()].concat());
        u32::from_be_bytes([digest.0[0], digest.0[1], digest.0[2], digest.0[3]])
    }

    /// The `kid` of what it signs in COSE: the first eight bytes of the key's COSE thumbprint (RFC 9679).
    #[must_use]
    pub fn kid(&self) -> [u8; 8] {
        let head: &[u8] = match &self.key {
            // {1 (kty): 7 (AKP), 3 (alg): -48 (ML-DSA-44), -1 (pub): 1312 bytes}
            PublicKey::MlDsa44(_) => &[0xa3, 0x01, 0x07, 0x03, 0x38, 0x2f, 0x20, 0x59, 0x05, 0x20],
            // {1 (kty): 1 (OKP), -1 (crv): 6 (Ed25519), -2 (x): 32 bytes}
            _ => &[0xa3, 0x01, 0x01, 0x20, 0x06, 0x21, 0x58, 0x20],
        };
        let mut kid = [0; 8];
        kid.copy_from_slice(&Digest::of(&[head, self.key.bytes()].concat()).0[..8]);
        kid
    }

    /// Whether `signature` is this key's over `message`, the bare signature over the bare bytes: what a note's or a
    /// checkpoint's signature line holds is judged by [`super::Note::open`].
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.key {
            PublicKey::Log(key) | PublicKey::Cosigner(key) | PublicKey::Statement(key) => ed25519_verifies(key, message, signature),
            PublicKey::MlDsa44(key) => ml_dsa_44_verifies(key, message, signature),
        }
    }
}

/// Whether a key may have this name: neither empty nor with a Unicode space, a control character or a plus sign.
/// Beyond the specification: at most [`MAX_NAME`] bytes.
#[must_use]
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME && !name.contains(|c: char| c == '+' || c.is_whitespace() || c < ' ')
}

impl fmt::Display for Vkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:08x}+{}", self.name, self.id(), base64(&self.key.typed()))
    }
}

impl FromStr for Vkey {
    type Err = NotAVkey;

    fn from_str(text: &str) -> Result<Self, NotAVkey> {
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(_), Some(typed)) = (parts.next(), parts.next(), parts.next()) else { return Err(NotAVkey) };
        let key = from_base64(typed).and_then(|typed| PublicKey::from_typed(&typed)).ok_or(NotAVkey)?;
        let vkey = Self { name: name.into(), key };
        // One key has one text: what prints otherwise has a wrong ID.
        if is_name(name) && vkey.to_string() == text { Ok(vkey) } else { Err(NotAVkey) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::signature::{Ed25519Key, MlDsa44Key};
    use super::*;

    fn every_kind(name: &str) -> [Vkey; 4] {
        let (short, long) = (Ed25519Key::from_seed(&[1; 32]).unwrap().public(), MlDsa44Key::from_seed(&[1; 32]).unwrap().public());
        [PublicKey::Log(short), PublicKey::Cosigner(short), PublicKey::MlDsa44(long), PublicKey::Statement(short)]
            .map(|key| Vkey { name: name.into(), key })
    }

    #[test]
    fn verifier_keys_read_as_they_are_written_and_no_other_way() {
        for vkey in every_kind("gw.example/a") {
            let text = vkey.to_string();
            assert_eq!(text.parse(), Ok(vkey));
            for at in 0..text.len() {
                let mut bad = text.clone().into_bytes();
                bad[at] ^= 1;
                let bad = String::from_utf8(bad).unwrap();
                assert_eq!(bad.parse::<Vkey>(), Err(NotAVkey), "{bad}");
            }
            for bad in [format!("{text}\n"), format!(" {text}"), text[..text.len() - 1].into(), text.to_uppercase()] {
                assert!(bad.parse::<Vkey>().is_err(), "{bad}");
            }
        }
    }

    #[test]
    fn one_key_for_two_purposes_has_two_ids() {
        let ids = every_kind("w").map(|vkey| vkey.id());
        assert!((1..4).all(|at| !ids[..at].contains(&ids[at])));
    }

    #[test]
    fn a_name_is_bounded_and_holds_neither_space_nor_plus() {
        assert!(is_name("witness.example/w1") && is_name("ä") && is_name(&"a".repeat(MAX_NAME)));
        for bad in ["", "a b", "a+b", "a\u{a0}b", "a\u{2003}b", "a\tb", "a\nb", "a\u{1}b", &"a".repeat(MAX_NAME + 1)] {
            assert!(!is_name(bad), "{bad:?}");
        }
        let long = Vkey { name: "a".repeat(MAX_NAME + 1), ..every_kind("a")[0].clone() };
        assert_eq!(long.to_string().parse::<Vkey>(), Err(NotAVkey));
    }

    #[test]
    fn the_specifications_key_reads() {
        let text = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
        let vkey: Vkey = text.parse().unwrap();
        assert_eq!((vkey.name.as_str(), vkey.kind(), vkey.id()), ("example.com/foo", Kind::Log, 0x530d_903a));
    }

    #[test]
    fn other_kinds_and_other_lengths_are_no_keys() {
        for typed in [vec![2; 33], vec![1; 32], vec![1; 34], vec![6; 33], [STATEMENT, &[0; 31]].concat(), vec![0xff; 33], Vec::new()] {
            assert_eq!(PublicKey::from_typed(&typed), None, "{typed:?}");
        }
    }
}
