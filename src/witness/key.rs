//! `portcullis witness key`, and the keys of a witness: both from the seed of one Ed25519 key, by HKDF with a label each. So
//! the PEM of a log and that of a witness may even be the same file without one key signing two kinds of things.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::No;
use crate::prove::Key;
use crate::prove::key::{Exposed, seed_from_file};
use crate::say::{aside, say};
use crate::tlog::cosignature::Cosigner;
use crate::tlog::signature::{Ed25519Key, MlDsa44Key};

const ED25519_LABEL: &str = "portcullis/witness-ed25519/v1";
const ML_DSA_44_LABEL: &str = "portcullis/witness-ml-dsa-44/v1";

/// `portcullis witness key`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The witness's name: a URL without its scheme.
    #[arg(long)]
    name: String,
    /// Where to write a new key; the file must not exist.
    #[arg(long, value_name = "FILE", required_unless_present = "key")]
    out: Option<PathBuf>,
    /// A key that there is already, as `openssl genpkey -algorithm ed25519` makes it too.
    #[arg(long, value_name = "FILE", conflicts_with = "out")]
    key: Option<PathBuf>,
    /// One line of JSON: {"name","keys"}.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), No> {
    let file = match (&arguments.key, &arguments.out) {
        (Some(file), _) => file,
        (None, Some(file)) => {
            // Judged before anything is written.
            if !crate::tlog::vkey::is_name(&arguments.name) {
                return Err(No::because(NOT_A_NAME));
            }
            write(file).map_err(|error| {
                let file = file.display();
                No::because(match error.kind() {
                    ErrorKind::AlreadyExists => {
                        format!("{file}: there is such a file, which is left as it is; --key {file} tells its keys")
                    }
                    _ => format!("{file}: the key cannot be written ({error})"),
                })
            })?;
            file
        }
        (None, None) => return Err(No::because("name a file: --out for a new key, --key for one that there is")),
    };
    let (cosigner, Exposed(exposed)) = cosigner(&arguments.name, file).map_err(No::because)?;
    if exposed {
        aside!("portcullis: warning: others than its owner may read {}", file.display());
    }
    let keys = cosigner.vkeys().map(|key| key.to_string());
    if arguments.json {
        say!("{}", serde_json::json!({ "name": arguments.name, "keys": keys }))?;
    } else {
        keys.iter().try_for_each(|key| say!("{key}"))?;
    }
    Ok(())
}

const NOT_A_NAME: &str = "a name has 1 to 255 bytes, and neither spaces nor `+`, such as witness.example/w1";

fn write(file: &Path) -> std::io::Result<()> {
    let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    out.write_all(Key::generate_pem().expose())?;
    out.sync_all()
}

/// The cosigner `name` of the key in `file`.
pub(super) fn cosigner(name: &str, file: &Path) -> Result<(Cosigner, Exposed), String> {
    let (seed, exposed) = seed_from_file(file).map_err(|error| error.to_string())?;
    let cosigner = Ed25519Key::from_seed(seed.derive(ED25519_LABEL).expose())
        .zip(MlDsa44Key::from_seed(seed.derive(ML_DSA_44_LABEL).expose()))
        .and_then(|(ed25519, ml_dsa_44)| Cosigner::new(name, ed25519, ml_dsa_44));
    Ok((cosigner.ok_or(NOT_A_NAME)?, exposed))
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 8032 §7.1 test 1, wrapped as PKCS#8 version 1.
    const RFC8032: &str =
        "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";

    #[test]
    fn the_keys_of_a_witness_are_those_that_others_derive_and_not_a_logs() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), RFC8032).unwrap();
        let (cosigner, exposed) = cosigner("w.example", file.path()).unwrap();
        assert_eq!(exposed, Exposed(false));
        // pyca/cryptography 50: HKDF-SHA-256 with the salt "portcullis/v1", then Ed25519 and ML-DSA-44 from 32 bytes each.
        assert_eq!(cosigner.vkeys().map(|key| key.id()), [0xe0f3_cc20, 0x8499_030b]);
        let log = Key::from_file(file.path()).unwrap().0;
        let of_log = [log.log_vkey("w.example"), log.checkpoint_vkey("w.example"), log.statement_vkey("w.example")];
        assert!(cosigner.vkeys().iter().all(|key| of_log.iter().all(|other| other.key.bytes() != key.key.bytes())));
    }

    #[test]
    fn a_bad_name_or_file_gives_no_key() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), RFC8032).unwrap();
        assert_eq!(cosigner("w w", file.path()).err().as_deref(), Some(NOT_A_NAME));
        std::fs::write(file.path(), "x").unwrap();
        assert!(cosigner("w", file.path()).is_err());
    }
}
