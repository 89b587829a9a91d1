//! Secrets: no `Debug`, no `Clone` by accident, compared in constant time, wiped on drop.
//!
//! What still leaks: the length, and whatever a caller does with [`Secret::expose`].

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use aws_lc_rs::{constant_time, hkdf};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

/// Bytes that must not be printed, logged or compared byte by byte.
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes ownership of `bytes`, which are wiped when the secret is dropped.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// `length` fresh bytes from the system's generator.
    ///
    /// # Panics
    /// When the operating system gives no randomness: nothing may go on without it.
    #[must_use]
    pub fn random(length: usize) -> Self {
        let mut bytes = Zeroizing::new(vec![0; length]);
        #[expect(clippy::expect_used, reason = "without randomness no key may be made")]
        aws_lc_rs::rand::fill(&mut bytes).expect("the operating system has randomness");
        Self(bytes)
    }

    /// The bytes, for the one call that needs them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Whether both are the same, in time that depends on the length alone.
    #[must_use]
    pub fn equals(&self, other: &[u8]) -> bool {
        constant_time::verify_slices_are_equal(&self.0, other).is_ok()
    }

    /// A key for one purpose: HKDF-SHA-256 (RFC 5869) with this secret as input and `label` as info.
    #[must_use]
    pub fn derive(&self, label: &str) -> Self {
        let mut key = Zeroizing::new(vec![0; 32]);
        let pseudorandom = hkdf::Salt::new(hkdf::HKDF_SHA256, b"portcullis/v1").extract(&self.0);
        #[expect(clippy::expect_used, reason = "32 bytes is far below HKDF's bound of 255 blocks")]
        pseudorandom.expand(&[label.as_bytes()], hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut key)).expect("HKDF gives 32 bytes");
        Self(key)
    }
}

/// A secret of 32 bytes that several hold and none changes. Printed it says nothing of itself; it is serialised as it is, as a list of its bytes, for
/// files that are secret as a whole.
#[derive(Clone)]
pub struct Shared(Arc<Secret>);

impl Shared {
    /// Fresh bytes from the system's generator.
    #[must_use]
    pub fn random() -> Self {
        Self(Arc::new(Secret::random(32)))
    }
}

impl From<[u8; 32]> for Shared {
    fn from(bytes: [u8; 32]) -> Self {
        Self(Arc::new(Secret::new(bytes.to_vec())))
    }
}

impl Deref for Shared {
    type Target = Secret;

    fn deref(&self) -> &Secret {
        &self.0
    }
}

impl PartialEq for Shared {
    fn eq(&self, other: &Self) -> bool {
        self.equals(other.expose())
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared(..)")
    }
}

impl Serialize for Shared {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.expose().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Shared {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Secret::new(Vec::deserialize(deserializer)?);
        if bytes.expose().len() == 32 {
            Ok(Self(Arc::new(bytes)))
        } else {
            Err(de::Error::invalid_length(bytes.expose().len(), &"32 bytes"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_per_label() {
        let master = Secret::new(vec![7; 32]);
        assert!(master.derive("a").equals(master.derive("a").expose()));
        assert!(!master.derive("a").equals(master.derive("b").expose()));
    }

    #[test]
    fn what_is_shared_comes_back_from_a_file_and_prints_nothing() {
        let shared = Shared::from([200; 32]);
        let kept = serde_json::to_string(&shared).unwrap();
        assert_eq!(serde_json::from_str::<Shared>(&kept).unwrap(), shared);
        assert_ne!(Shared::random(), shared);
        assert!(!format!("{shared:?}").contains("200"));
        for wrong in [31, 33] {
            let said = serde_json::from_str::<Shared>(&serde_json::to_string(&vec![0; wrong]).unwrap()).unwrap_err().to_string();
            assert!(said.contains("32 bytes"), "{said}");
        }
    }

    #[test]
    fn a_prefix_is_not_equal() {
        assert!(!Secret::new(vec![1, 2, 3]).equals(&[1, 2]));
        assert!(!Secret::new(vec![1, 2, 3]).equals(&[]));
    }
}
