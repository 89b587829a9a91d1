//! `[prove]` of `gateway.toml`, and `[prove]` of a model.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use crate::mistake::Mistake;

/// The longest origin in bytes: it stands in every statement and every receipt header.
const MAX_ORIGIN: usize = 128;

/// `[prove]` of `gateway.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the log lives; made where it does not exist.
    pub directory: PathBuf,
    /// The log's name, as receipts and checkpoints write it: a URL without its scheme.
    pub origin: Spanned<String>,
    /// The file of the log's key, Ed25519 in PKCS#8 PEM.
    pub key: PathBuf,
    /// The file of the last checkpoint that was signed; `directory` with `.lock` after it unless given. It should lie where it is not
    /// restored together with the log.
    pub lock: Option<PathBuf>,
}

impl Config {
    /// What is wrong with it.
    #[must_use]
    pub fn mistakes(&self) -> Vec<Mistake> {
        let origin = self.origin.get_ref();
        // C2SP signed-note forbids spaces and "+" in a key's name; a structured field's string is printable ASCII.
        let plain = |c: u8| c.is_ascii_graphic() && !b"+\"\\".contains(&c);
        if !origin.is_empty() && origin.len() <= MAX_ORIGIN && origin.bytes().all(plain) {
            return Vec::new();
        }
        let what = "prove.origin must be 1 to 128 printable ASCII characters without spaces, `+`, `\"` and `\\`, such as \"gateway.example/portcullis/node1\"";
        vec![Mistake::at(self.origin.span(), what)]
    }

    /// The log's folder and the key's file, relative to the folder of the policies.
    #[must_use]
    pub fn paths(&self, base: &Path) -> (PathBuf, PathBuf) {
        (base.join(&self.directory), base.join(&self.key))
    }

    /// The lock file, relative to the folder of the policies.
    #[must_use]
    pub fn lock_path(&self, base: &Path) -> PathBuf {
        base.join(self.lock.clone().unwrap_or_else(|| self.directory.with_added_extension("lock")))
    }
}

/// When an answer is released.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Its entry is in the write-ahead file.
    #[default]
    Async,
    /// Its entry is synced.
    Durable,
    /// A checkpoint covers it.
    Included,
    /// A quorum of witnesses has cosigned the checkpoint.
    Witnessed,
}

/// What becomes of an answer that the log cannot take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// It is refused, and the model is not run.
    #[default]
    Refuse,
    /// It is served without a receipt, and counted.
    Serve,
}

/// `[prove]` of a model, as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TermsConfig {
    /// When an answer is released; `async` unless given.
    pub mode: Option<Spanned<Mode>>,
    /// What becomes of an answer that the log cannot take; `refuse` unless given.
    pub on_failure: OnFailure,
}

/// The terms under which a model's answers are proved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Whether an answer waits until its entry is synced.
    pub(super) durable: bool,
    pub(super) on_failure: OnFailure,
}

impl Terms {
    /// The terms that a model's file asks for.
    ///
    /// # Errors
    /// For a mode that needs the transparency log.
    pub fn resolve(config: &TermsConfig) -> Result<Self, Mistake> {
        let mode = config.mode.as_ref().map(|mode| (*mode.get_ref(), mode.span()));
        let durable = match mode {
            Some((Mode::Included | Mode::Witnessed, at)) => {
                let what = "this mode needs the transparency log, which this version does not have yet; use \"async\" or \"durable\"";
                return Err(Mistake::at(at, what));
            }
            Some((Mode::Durable, _)) => true,
            Some((Mode::Async, _)) | None => false,
        };
        Ok(Self { durable, on_failure: config.on_failure })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(text: &str) -> Result<Terms, Option<std::ops::Range<usize>>> {
        let config: TermsConfig = toml::from_str(text).map_err(|_| None)?;
        Terms::resolve(&config).map_err(|mistake| mistake.span)
    }

    #[test]
    fn terms_read_as_written() {
        assert_eq!(terms(""), Ok(Terms { durable: false, on_failure: OnFailure::Refuse }));
        assert_eq!(terms("mode = \"durable\"\non_failure = \"serve\""), Ok(Terms { durable: true, on_failure: OnFailure::Serve }));
        assert_eq!(terms("mode = \"witnessed\""), Err(Some(7..18)));
        assert_eq!(terms("mode = \"included\""), Err(Some(7..17)));
        assert_eq!(terms("mode = \"never\""), Err(None));
        assert_eq!(terms("modus = \"async\""), Err(None));
    }

    #[test]
    fn an_origin_is_bounded_and_plain() {
        let mistakes = |origin: &str| {
            let text = format!("directory = \"d\"\norigin = '{origin}'\nkey = \"k\"");
            toml::from_str::<Config>(&text).unwrap().mistakes().len()
        };
        assert_eq!(mistakes("gateway.example/portcullis/node1"), 0);
        assert_eq!(mistakes(&"a".repeat(MAX_ORIGIN)), 0);
        for bad in ["", "a b", "a+b", "a\"b", "ä", "a\\b", &"a".repeat(MAX_ORIGIN + 1)] {
            assert_eq!(mistakes(bad), 1, "{bad:?}");
        }
    }
}
