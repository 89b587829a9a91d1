//! The keys of a log, all from one file.
//!
//! The operator's Ed25519 key (PKCS#8 PEM) is the *log key*: it endorses the statement key in the log's entry 0 and signs
//! checkpoints. HKDF-SHA-256 over its seed, one label per purpose, gives the ML-DSA-44 key that signs the checkpoints too,
//! the *statement key* (Ed25519), and the key that seals the file of the random keys of salts and pseudonyms (`salts.rs`), which can be
//! destroyed. Whoever holds the file holds all of them; whoever steals the statement key alone cannot sign a checkpoint.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use aws_lc_rs::rand;
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;

use super::salts::Sealing;
use crate::digest::{Digest, Hasher};
use crate::secret::Secret;
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::cosignature;
use crate::tlog::note::{self, Line, Note};
use crate::tlog::signature::{CannotSign, Ed25519Key, MlDsa44Key};
pub use crate::tlog::vkey::{Kind, NotAVkey, PublicKey, Vkey};

const STATEMENT_LABEL: &str = "portcullis/statement-key/v1";
const CHECKPOINT_LABEL: &str = "portcullis/checkpoint-ml-dsa-44/v1";
/// What stands before the digest's input of a commitment.
pub(super) const COMMIT_LABEL: &[u8] = b"portcullis/commit/v1";
/// A key file is a few hundred bytes; more is not read.
const MAX_FILE: u64 = 16 * 1024;

/// Why a key file gives no key.
#[derive(Debug)]
pub enum KeyError {
    /// It cannot be read.
    Unreadable(PathBuf, io::Error),
    /// It is not a PEM of an Ed25519 key in PKCS#8.
    NotEd25519(PathBuf),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(path, error) => write!(f, "{}: {error}", path.display()),
            Self::NotEd25519(path) => {
                write!(f, "{}: not an Ed25519 key; expected PKCS#8 PEM, as `openssl genpkey -algorithm ed25519` writes it", path.display())
            }
        }
    }
}

impl std::error::Error for KeyError {}

/// The keys of a log. No `Debug`, no `Clone`.
pub struct Key {
    log: Ed25519Key,
    checkpoints: MlDsa44Key,
    statement: Ed25519Key,
    sealing: Arc<Sealing>,
}

impl Key {
    /// Reads a PKCS#8 PEM file; also says whether others than its owner may read it.
    ///
    /// # Errors
    /// When there is no such file, or no Ed25519 key in it.
    pub fn from_file(path: &Path) -> Result<(Self, Exposed), KeyError> {
        let (seed, exposed) = seed_from_file(path)?;
        let key = Self::from_seed(&seed).ok_or_else(|| KeyError::NotEd25519(path.into()))?;
        Ok((key, exposed))
    }

    /// Reads a PKCS#8 PEM, version 1 (without) or 2 (with the public key); `None` where it holds no Ed25519 key.
    #[must_use]
    pub fn from_pem(pem: &[u8]) -> Option<Self> {
        Self::from_seed(&seed_from_pem(pem)?)
    }

    fn from_seed(seed: &Secret) -> Option<Self> {
        Some(Self {
            log: Ed25519Key::from_seed(seed.expose())?,
            checkpoints: MlDsa44Key::from_seed(seed.derive(CHECKPOINT_LABEL).expose())?,
            statement: Ed25519Key::from_seed(seed.derive(STATEMENT_LABEL).expose())?,
            sealing: Sealing::new(seed)?,
        })
    }

    /// A fresh key as PKCS#8 PEM, for `demo`; whoever writes it gives the file mode 0600.
    ///
    /// # Panics
    /// When the operating system gives no randomness.
    #[must_use]
    pub fn generate_pem() -> Secret {
        #[expect(clippy::expect_used, reason = "without randomness no key may be made")]
        let der = Ed25519KeyPair::generate_pkcs8v1(&rand::SystemRandom::new()).expect("the operating system has randomness");
        let text = Secret::new(STANDARD.encode(der.as_ref()).into_bytes());
        let mut pem = b"-----BEGIN PRIVATE KEY-----\n".to_vec();
        for line in text.expose().chunks(64) {
            pem.extend_from_slice(line);
            pem.push(b'\n');
        }
        pem.extend_from_slice(b"-----END PRIVATE KEY-----\n");
        Secret::new(pem)
    }

    /// The log's public key under `origin`.
    #[must_use]
    pub fn log_vkey(&self, origin: &str) -> Vkey {
        Vkey { name: origin.into(), key: PublicKey::Log(self.log.public()) }
    }

    /// The log's second public key under `origin`: ML-DSA-44, for checkpoints alone.
    #[must_use]
    pub fn checkpoint_vkey(&self, origin: &str) -> Vkey {
        Vkey { name: origin.into(), key: PublicKey::MlDsa44(self.checkpoints.public()) }
    }

    /// The statements' public key under `origin`.
    #[must_use]
    pub fn statement_vkey(&self, origin: &str) -> Vkey {
        Vkey { name: origin.into(), key: PublicKey::Statement(self.statement.public()) }
    }

    /// The statements' public key alone, as entry 0 endorses it.
    pub(super) fn statement_public(&self) -> [u8; 32] {
        self.statement.public()
    }

    /// Signs a checkpoint as C2SP tlog-checkpoint asks a log to: under the origin a line by the log key (`0x01`) and one by
    /// the ML-DSA-44 key (`0x06`), which says that at `time`, in seconds since 1970, this was the largest tree.
    ///
    /// # Errors
    /// When no signature could be made.
    pub fn sign_checkpoint(&self, checkpoint: &Checkpoint, time: u64) -> Result<Note, CannotSign> {
        let text = checkpoint.to_string();
        let lines = vec![
            note::sign(&self.log, &checkpoint.origin, &text),
            cosignature::sign_ml_dsa_44(&self.checkpoints, &checkpoint.origin, checkpoint, time)?,
        ];
        Note::new(&text, lines).map_err(|_| CannotSign)
    }

    /// The log key's line under a checkpoint that another key of the log signs.
    pub(super) fn sign_along(&self, checkpoint: &Checkpoint) -> Line {
        note::sign(&self.log, &checkpoint.origin, &checkpoint.to_string())
    }

    /// Signs a statement.
    pub(super) fn sign_statement(&self, message: &[u8]) -> [u8; 64] {
        self.statement.sign(message)
    }

    /// Signs the log's entry 0. A note and a COSE `Sig_structure` cannot be the same bytes: the second begins with `0x84`.
    pub(super) fn sign_endorsement(&self, message: &[u8]) -> [u8; 64] {
        self.log.sign(message)
    }

    /// What seals the keys of salts and pseudonyms.
    pub(super) fn sealing(&self) -> &Arc<Sealing> {
        &self.sealing
    }
}

/// The seed of the Ed25519 key in a PKCS#8 PEM file; also says whether others than its owner may read it.
///
/// # Errors
/// When there is no such file, or no Ed25519 key in it.
pub fn seed_from_file(path: &Path) -> Result<(Secret, Exposed), KeyError> {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    let unreadable = |error| KeyError::Unreadable(path.into(), error);
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.permissions().mode();
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text).map_err(unreadable)?;
    let text = Secret::new(text);
    let seed = seed_from_pem(text.expose()).ok_or_else(|| KeyError::NotEd25519(path.into()))?;
    Ok((seed, Exposed(mode & 0o077 != 0)))
}

fn seed_from_pem(pem: &[u8]) -> Option<Secret> {
    let der = PrivatePkcs8KeyDer::from_pem_slice(pem).ok()?;
    let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()).ok()?;
    let seed: Curve25519SeedBin<'_> = key.seed().ok()?.as_be_bytes().ok()?;
    Some(Secret::new(seed.as_ref().to_vec()))
}

/// Whether others than a key file's owner may read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Exposed(pub bool);

/// `SHA-256("portcullis/commit/v1" ‖ label ‖ salt ‖ digest)`: who has the salt and a `Content-Digest` can open it without the body.
#[must_use]
pub fn commitment(label: &str, salt: &[u8; 32], digest: &Digest) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(COMMIT_LABEL);
    hasher.update(label.as_bytes());
    hasher.update(salt);
    hasher.update(digest.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 8032 §7.1 test 1, wrapped as PKCS#8 version 1.
    const RFC8032: &str =
        "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn both_versions_of_pkcs8_give_the_same_keys() {
        let one = Key::from_pem(RFC8032.as_bytes()).unwrap();
        assert_eq!(hex(one.log_vkey("o").key.bytes()), "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        let pair =
            Ed25519KeyPair::from_pkcs8_maybe_unchecked(PrivatePkcs8KeyDer::from_pem_slice(RFC8032.as_bytes()).unwrap().secret_pkcs8_der());
        let two = STANDARD.encode(pair.unwrap().to_pkcs8().unwrap());
        let two = format!("-----BEGIN PRIVATE KEY-----\n{two}\n-----END PRIVATE KEY-----\n");
        let two = Key::from_pem(two.as_bytes()).unwrap();
        assert_eq!(one.log_vkey("o"), two.log_vkey("o"));
        assert_eq!(one.statement_vkey("o"), two.statement_vkey("o"));
        assert_eq!(one.checkpoint_vkey("o"), two.checkpoint_vkey("o"));
        assert_ne!(one.log_vkey("o").key.bytes(), one.statement_vkey("o").key.bytes());
    }

    #[test]
    fn what_is_not_an_ed25519_key_is_refused() {
        for bad in [
            "",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            &RFC8032.replace("PRIVATE", "PUBLIC"),
            &RFC8032.replace("MC4", "MC5"),
        ] {
            assert!(Key::from_pem(bad.as_bytes()).is_none(), "{bad}");
        }
        assert!(matches!(Key::from_file(Path::new("/nowhere/key.pem")), Err(KeyError::Unreadable(..))));
    }

    #[test]
    fn a_fresh_key_reads_and_an_open_file_is_told() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), Key::generate_pem().expose()).unwrap();
        assert_eq!(Key::from_file(file.path()).unwrap().1, Exposed(false));
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(Key::from_file(file.path()).unwrap().1, Exposed(true));
    }

    #[test]
    fn the_second_key_of_a_log_is_the_one_that_others_derive() {
        // pyca/cryptography 50: HKDF-SHA-256 with the salt "portcullis/v1", ML-DSA-44 from its 32 bytes.
        let key = Key::from_pem(RFC8032.as_bytes()).unwrap();
        assert_eq!(key.checkpoint_vkey("gw.example/a").id(), 0xea38_f099);
    }

    #[test]
    fn a_checkpoint_is_signed_by_both_keys_of_the_log() {
        let key = Key::from_pem(RFC8032.as_bytes()).unwrap();
        let checkpoint = Checkpoint { origin: "gw.example/a".into(), size: 3, root: [7; 32], extensions: Vec::new() };
        let note = key.sign_checkpoint(&checkpoint, 1_764_114_702).unwrap();
        let opened = note.open(&[key.log_vkey("gw.example/a"), key.checkpoint_vkey("gw.example/a")]).unwrap();
        assert_eq!(opened.verified.iter().map(|line| (line.key, line.time)).collect::<Vec<_>>(), [(0, None), (1, Some(1_764_114_702))]);
        assert!(opened.unknown.is_empty());
        assert!(note.open(&[key.log_vkey("gw.example/b")]).is_err());
        // A name that no key may have gives no note, whatever the checkpoint says.
        assert!(key.sign_checkpoint(&Checkpoint { origin: "a b".into(), ..checkpoint }, 0).is_err());
    }
}
