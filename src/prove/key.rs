//! The keys of a log, all from one file.
//!
//! The operator's Ed25519 key (PKCS#8 PEM) is the *log key*: it endorses the statement key in the log's entry 0 and will
//! sign checkpoints. HKDF-SHA-256 over its seed, one label per purpose, gives the *statement key* (Ed25519), the master of
//! the salts and the master of the pseudonyms. Whoever holds the file holds all of them; whoever steals the statement key
//! alone cannot sign a checkpoint.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use aws_lc_rs::{hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use uuid::Uuid;

use super::cbor::Writer;
use crate::digest::{Digest, Hasher};
use crate::secret::Secret;
use crate::trail::Who;

const STATEMENT_LABEL: &str = "portcullis/statement-key/v1";
const SALT_LABEL: &str = "portcullis/salt-master/v1";
const PSEUDONYM_LABEL: &str = "portcullis/pseudonym-master/v1";
/// What stands before the digest's input of a commitment.
pub(super) const COMMIT_LABEL: &[u8] = b"portcullis/commit/v1";
/// A key file is a few hundred bytes; more is not read.
const MAX_FILE: u64 = 16 * 1024;
/// C2SP signed-note: the byte for Ed25519 note signatures.
const NOTE_ED25519: u8 = 0x01;
/// C2SP signed-note: `0xff` and a longer name are a kind of key without a byte of its own.
const STATEMENT_KIND: &[u8] = b"\xffportcullis/cose-statement/ed25519:";

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
    log: Ed25519KeyPair,
    statement: Ed25519KeyPair,
    salts: hmac::Key,
    pseudonyms: hmac::Key,
}

impl Key {
    /// Reads a PKCS#8 PEM file; also says whether others than its owner may read it.
    ///
    /// # Errors
    /// When there is no such file, or no Ed25519 key in it.
    pub fn from_file(path: &Path) -> Result<(Self, Exposed), KeyError> {
        use std::io::Read;
        use std::os::unix::fs::PermissionsExt;
        let unreadable = |error| KeyError::Unreadable(path.into(), error);
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let mode = file.metadata().map_err(unreadable)?.permissions().mode();
        let mut text = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut text).map_err(unreadable)?;
        let text = Secret::new(text);
        let key = Self::from_pem(text.expose()).ok_or_else(|| KeyError::NotEd25519(path.into()))?;
        Ok((key, Exposed(mode & 0o077 != 0)))
    }

    /// Reads a PKCS#8 PEM, version 1 (without) or 2 (with the public key); `None` where it holds no Ed25519 key.
    #[must_use]
    pub fn from_pem(pem: &[u8]) -> Option<Self> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).ok()?;
        let log = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()).ok()?;
        let seed: Curve25519SeedBin<'_> = log.seed().ok()?.as_be_bytes().ok()?;
        let seed = Secret::new(seed.as_ref().to_vec());
        let statement = Ed25519KeyPair::from_seed_unchecked(seed.derive(STATEMENT_LABEL).expose()).ok()?;
        let mac = |label| hmac::Key::new(hmac::HMAC_SHA256, seed.derive(label).expose());
        Some(Self { log, statement, salts: mac(SALT_LABEL), pseudonyms: mac(PSEUDONYM_LABEL) })
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
        Vkey { name: origin.into(), kind: Kind::Log, public: public(&self.log) }
    }

    /// The statements' public key under `origin`.
    #[must_use]
    pub fn statement_vkey(&self, origin: &str) -> Vkey {
        Vkey { name: origin.into(), kind: Kind::Statement, public: public(&self.statement) }
    }

    /// Signs a statement.
    pub(super) fn sign_statement(&self, message: &[u8]) -> [u8; 64] {
        signature(&self.statement, message)
    }

    /// Signs the log's entry 0. A note and a COSE `Sig_structure` cannot be the same bytes: the second begins with `0x84`.
    pub(super) fn sign_endorsement(&self, message: &[u8]) -> [u8; 64] {
        signature(&self.log, message)
    }

    /// The salt of one commitment of one record.
    pub(super) fn salt(&self, id: Uuid, label: &str) -> [u8; 32] {
        tag(&self.salts, &[id.as_bytes(), label.as_bytes()])
    }

    /// The salted commitment to content with this digest: `SHA-256("portcullis/commit/v1" ‖ label ‖ salt ‖ digest)`.
    pub(super) fn commit(&self, id: Uuid, label: &str, digest: &Digest) -> Digest {
        commitment(label, &self.salt(id, label), digest)
    }

    /// Caller and tenant as the statements of `epoch` call them. Both differ from epoch to epoch and from tenant to tenant.
    pub(super) fn pseudonyms(&self, who: &Who, epoch: u32) -> ([u8; 16], [u8; 16]) {
        let of_tenant = tag(&self.pseudonyms, &[&epoch.to_be_bytes(), who.tenant.as_bytes()]);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &of_tenant);
        let half = |label: &str, name: &str| {
            let mut half = [0; 16];
            half.copy_from_slice(&tag(&key, &[label.as_bytes(), name.as_bytes()])[..16]);
            half
        };
        (half("caller:", &who.caller), half("tenant:", &who.tenant))
    }
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

fn tag(key: &hmac::Key, parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(key);
    parts.iter().for_each(|part| context.update(part));
    let mut out = [0; 32];
    out.copy_from_slice(context.sign().as_ref());
    out
}

fn public(pair: &Ed25519KeyPair) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(pair.public_key().as_ref());
    out
}

fn signature(pair: &Ed25519KeyPair, message: &[u8]) -> [u8; 64] {
    let mut out = [0; 64];
    out.copy_from_slice(pair.sign(message).as_ref());
    out
}

/// What a public key of a log is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Checkpoints, and the endorsement of statement keys.
    Log,
    /// Statements.
    Statement,
}

/// A public key of a log, as `keys.vkey` and `--key` write it (C2SP signed-note): `NAME+HASH+BASE64(KIND ‖ KEY)`.
///
/// KIND is the byte `0x01` for a log key; for a statement key, which signs no notes, the byte `0xff` and the text
/// `portcullis/cose-statement/ed25519:`. HASH is the first four bytes of SHA-256(NAME ‖ `0x0a` ‖ KIND ‖ KEY) in hex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vkey {
    /// The origin.
    pub name: String,
    /// What it signs.
    pub kind: Kind,
    /// The Ed25519 public key.
    pub public: [u8; 32],
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
    /// The `kid` of its statements: the first eight bytes of the key's COSE thumbprint (RFC 9679).
    #[must_use]
    pub fn kid(&self) -> [u8; 8] {
        let mut cose = Writer::with_room(40);
        // {1 (kty): 1 (OKP), -1 (crv): 6 (Ed25519), -2 (x): key}
        cose.map(3).uint(1).uint(1).negative(0).uint(6).negative(1).bytes(&self.public);
        let mut kid = [0; 8];
        kid.copy_from_slice(&Digest::of(&cose.done()).0[..8]);
        kid
    }

    /// Whether `signature` is this key's over `message`.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.public).verify(message, signature).is_ok()
    }

    fn typed(&self) -> Vec<u8> {
        let kind: &[u8] = match self.kind {
            Kind::Log => &[NOTE_ED25519],
            Kind::Statement => STATEMENT_KIND,
        };
        [kind, &self.public].concat()
    }

    fn hash(&self) -> u32 {
        let digest = Digest::of(&[self.name.as_bytes(), b"\n", &self.typed()].concat());
        u32::from_be_bytes([digest.0[0], digest.0[1], digest.0[2], digest.0[3]])
    }
}

impl fmt::Display for Vkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:08x}+{}", self.name, self.hash(), STANDARD.encode(self.typed()))
    }
}

impl std::str::FromStr for Vkey {
    type Err = NotAVkey;

    fn from_str(text: &str) -> Result<Self, NotAVkey> {
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(_), Some(typed)) = (parts.next(), parts.next(), parts.next()) else { return Err(NotAVkey) };
        let typed = STANDARD.decode(typed).map_err(|_| NotAVkey)?;
        let (kind, public) = match typed.strip_prefix(STATEMENT_KIND) {
            Some(public) => (Kind::Statement, public),
            None => (Kind::Log, typed.strip_prefix(&[NOTE_ED25519]).ok_or(NotAVkey)?),
        };
        let vkey = Self { name: name.into(), kind, public: public.try_into().map_err(|_| NotAVkey)? };
        // One key has one text: what prints otherwise has a wrong hash, or base64 that was not the canonical one.
        if name.is_empty() || vkey.to_string() != text { Err(NotAVkey) } else { Ok(vkey) }
    }
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
        assert_eq!(hex(&one.log_vkey("o").public), "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        let two = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(one.log.to_pkcs8().unwrap()));
        let two = Key::from_pem(two.as_bytes()).unwrap();
        assert_eq!(one.log_vkey("o"), two.log_vkey("o"));
        assert_eq!(one.statement_vkey("o"), two.statement_vkey("o"));
        assert_ne!(one.log_vkey("o").public, one.statement_vkey("o").public);
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
    fn verifier_keys_read_as_they_are_written_and_no_other_way() {
        let key = Key::from_pem(RFC8032.as_bytes()).unwrap();
        for vkey in [key.log_vkey("gw.example/a"), key.statement_vkey("gw.example/a")] {
            let text = vkey.to_string();
            assert_eq!(text.parse(), Ok(vkey));
            for at in 0..text.len() {
                let mut bad = text.clone().into_bytes();
                bad[at] ^= 1;
                let bad = String::from_utf8(bad).unwrap();
                assert_eq!(bad.parse::<Vkey>(), Err(NotAVkey), "{bad}");
            }
            assert!(format!("{text}\n").parse::<Vkey>().is_err());
        }
    }

    #[test]
    fn pseudonyms_differ_by_epoch_and_tenant() {
        let key = Key::from_pem(RFC8032.as_bytes()).unwrap();
        let who = |tenant: &str| Who { caller: "api_key:a".into(), tenant: tenant.into(), tier: "".into(), method: "api_key" };
        let first = key.pseudonyms(&who("acme"), 202_611);
        assert_eq!(first, key.pseudonyms(&who("acme"), 202_611));
        assert_ne!(first.0, key.pseudonyms(&who("acme"), 202_612).0);
        assert_ne!(first.0, key.pseudonyms(&who("other"), 202_611).0);
        assert_ne!(first.0, first.1);
    }

    #[test]
    fn a_commitment_opens_with_its_salt_and_digest_alone() {
        let key = Key::from_pem(RFC8032.as_bytes()).unwrap();
        let (id, digest) = (Uuid::nil(), Digest::of(b"answer"));
        assert_eq!(key.commit(id, "response", &digest), commitment("response", &key.salt(id, "response"), &digest));
        assert_ne!(key.commit(id, "response", &digest), key.commit(id, "request", &digest));
        assert_ne!(key.commit(id, "response", &digest), key.commit(Uuid::max(), "response", &digest));
    }
}
