//! The two kinds of signature that the formats use, and nothing of the formats: Ed25519 (RFC 8032) and ML-DSA-44 (FIPS 204,
//! "pure", with an empty context).

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, ML_DSA_44, ML_DSA_44_SIGNING, PqdsaKeyPair, UnparsedPublicKey};

/// Bytes of an Ed25519 public key.
pub const ED25519_PUBLIC: usize = 32;
/// Bytes of an Ed25519 signature.
pub const ED25519_SIGNATURE: usize = 64;
/// Bytes of an ML-DSA-44 public key.
pub const ML_DSA_44_PUBLIC: usize = 1312;
/// Bytes of an ML-DSA-44 signature.
pub const ML_DSA_44_SIGNATURE: usize = 2420;
/// Bytes of the seed of either.
pub const SEED: usize = 32;

/// Whether `signature` is Ed25519 of `message` under `public`.
#[must_use]
pub fn ed25519_verifies(public: &[u8; ED25519_PUBLIC], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public).verify(message, signature).is_ok()
}

/// Whether `signature` is ML-DSA-44 of `message` under `public`.
#[must_use]
pub fn ml_dsa_44_verifies(public: &[u8; ML_DSA_44_PUBLIC], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ML_DSA_44, public).verify(message, signature).is_ok()
}

/// The library made no signature: it had no randomness, or no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CannotSign;

impl fmt::Display for CannotSign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the signature could not be made")
    }
}

impl std::error::Error for CannotSign {}

/// An Ed25519 key. No `Debug`, no `Clone`.
pub struct Ed25519Key(Ed25519KeyPair);

impl Ed25519Key {
    /// The key of RFC 8032's 32-byte seed; `None` for a seed of another length.
    #[must_use]
    pub fn from_seed(seed: &[u8]) -> Option<Self> {
        Ed25519KeyPair::from_seed_unchecked(seed).ok().map(Self)
    }

    /// Its public key.
    #[must_use]
    pub fn public(&self) -> [u8; ED25519_PUBLIC] {
        let mut out = [0; ED25519_PUBLIC];
        out.copy_from_slice(self.0.public_key().as_ref());
        out
    }

    /// Its signature of `message`; always the same one.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; ED25519_SIGNATURE] {
        let mut out = [0; ED25519_SIGNATURE];
        out.copy_from_slice(self.0.sign(message).as_ref());
        out
    }
}

/// An ML-DSA-44 key. No `Debug`, no `Clone`.
pub struct MlDsa44Key(PqdsaKeyPair);

impl MlDsa44Key {
    /// The key of FIPS 204's 32-byte seed ξ; `None` for a seed of another length.
    #[must_use]
    pub fn from_seed(seed: &[u8]) -> Option<Self> {
        PqdsaKeyPair::from_seed(&ML_DSA_44_SIGNING, seed).ok().map(Self)
    }

    /// Its public key.
    #[must_use]
    pub fn public(&self) -> Box<[u8; ML_DSA_44_PUBLIC]> {
        let mut out = Box::new([0; ML_DSA_44_PUBLIC]);
        out.copy_from_slice(self.0.public_key().as_ref());
        out
    }

    /// Its signature of `message`, hedged: another one each time.
    ///
    /// # Errors
    /// When the library makes none.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CannotSign> {
        let mut out = vec![0; ML_DSA_44_SIGNATURE];
        match self.0.sign(message, &mut out) {
            Ok(ML_DSA_44_SIGNATURE) => Ok(out),
            _ => Err(CannotSign),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn each_verifies_its_own_signature_and_no_other() {
        let (ed25519, ml_dsa) = (Ed25519Key::from_seed(&[7; SEED]).unwrap(), MlDsa44Key::from_seed(&[7; SEED]).unwrap());
        let (short, long) = (ed25519.sign(b"m"), ml_dsa.sign(b"m").unwrap());
        assert!(ed25519_verifies(&ed25519.public(), b"m", &short));
        assert!(!ed25519_verifies(&ed25519.public(), b"n", &short));
        assert!(ml_dsa_44_verifies(&ml_dsa.public(), b"m", &long));
        assert!(!ml_dsa_44_verifies(&ml_dsa.public(), b"n", &long));
        for at in [0, 1000, ML_DSA_44_SIGNATURE - 1] {
            let mut bad = long.clone();
            bad[at] ^= 1;
            assert!(!ml_dsa_44_verifies(&ml_dsa.public(), b"m", &bad), "{at}");
        }
        assert!(!ml_dsa_44_verifies(&ml_dsa.public(), b"m", &long[1..]));
        assert!(!ed25519_verifies(&ed25519.public(), b"m", &long));
    }

    #[test]
    fn a_seed_has_32_bytes_and_gives_one_key() {
        assert!(Ed25519Key::from_seed(&[0; SEED - 1]).is_none() && Ed25519Key::from_seed(&[0; SEED + 1]).is_none());
        assert!(MlDsa44Key::from_seed(&[0; SEED - 1]).is_none() && MlDsa44Key::from_seed(&[0; SEED + 1]).is_none());
        assert_eq!(MlDsa44Key::from_seed(&[0; SEED]).unwrap().public(), MlDsa44Key::from_seed(&[0; SEED]).unwrap().public());
        assert_ne!(MlDsa44Key::from_seed(&[0; SEED]).unwrap().public(), MlDsa44Key::from_seed(&[1; SEED]).unwrap().public());
        // As dilithium-py 1.5.1 and pyca/cryptography 50 (OpenSSL) derive it.
        let (seed, expected) = ((0..32).collect::<Vec<u8>>(), "9f107644c1084526af3bc8098680b05499a2325a644e388fb4f970e058d19d46");
        assert_eq!(Digest::of(&*MlDsa44Key::from_seed(&seed).unwrap().public()).to_string(), expected);
    }
}
