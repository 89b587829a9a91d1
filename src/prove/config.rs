//! `[prove]` of `gateway.toml`, and `[prove]` of a model.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::key::{Key, KeyError};
use super::prune::SHORTEST;
use super::witness::{self, WitnessConfig, Witnesses};
use crate::mistake::Mistake;
use crate::unit::Span;
use crate::verify::label::{self, Label};

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
    pub key: Spanned<PathBuf>,
    /// The file of the key that the log had before: it hands the log over to `key` when it is opened, and signs checkpoints along until it
    /// is taken out here.
    pub previous_key: Option<Spanned<PathBuf>>,
    /// The file of the last checkpoint that was signed; `directory` with `.lock` after it unless given. It should lie where it is not
    /// restored together with the log.
    pub lock: Option<PathBuf>,
    /// Where the log is cut; one log for ever unless given.
    pub shards: Option<Sharding>,
    /// Which shard it is: not written by anybody, see [`Config::of_shard`].
    #[serde(skip)]
    shard: Option<Label>,
    /// How long entries are kept at least; for ever unless given.
    pub keep: Option<Spanned<Span>>,
    /// Who cosigns its checkpoints.
    #[serde(default)]
    pub witness: Vec<WitnessConfig>,
    /// How many of them are enough; all unless given.
    pub quorum: Option<Spanned<usize>>,
    /// A file that names them instead, and the quorum (C2SP tlog-policy).
    pub witness_policy: Option<Spanned<PathBuf>>,
}

/// Where a log is cut into shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharding {
    /// At the end of June and of December, in UTC.
    HalfYearly,
}

impl Config {
    /// What is wrong with it.
    #[must_use]
    pub fn mistakes(&self) -> Vec<Mistake> {
        let origin = self.origin.get_ref();
        // C2SP signed-note forbids spaces and "+" in a key's name; a structured field's string is printable ASCII.
        let plain = |c: u8| c.is_ascii_graphic() && !b"+\"\\".contains(&c);
        let mut mistakes = witness::mistakes(self);
        if let Some(keep) = self.keep.as_ref().filter(|keep| keep.get_ref().0 < SHORTEST) {
            mistakes.push(Mistake::at(keep.span(), "prove.keep must be one day or more, such as \"400d\""));
        }
        // A slash and the label come after it in the names of shards.
        let longest = if self.shards.is_some() { MAX_ORIGIN - 1 - label::LENGTH } else { MAX_ORIGIN };
        if !origin.is_empty() && origin.len() <= longest && origin.bytes().all(plain) {
            return mistakes;
        }
        let what = "prove.origin must be 1 to 128 (with prove.shards 121) printable ASCII characters without spaces, `+`, `\"` and `\\`, such as \"gateway.example/portcullis/node1\"";
        mistakes.push(Mistake::at(self.origin.span(), what));
        mistakes
    }

    /// What is wrong with the files that it names, of keys and of witnesses. Opening the log tells the same; here nothing is opened for writing.
    #[must_use]
    pub fn look(&self, base: &Path) -> Vec<Mistake> {
        let wrong = |key: &Spanned<PathBuf>| {
            let error = Key::from_file(&base.join(key.get_ref())).err()?;
            let mistake = Mistake::at(key.span(), error.to_string());
            Some(if let KeyError::Unreadable(_, error) = &error { mistake.unopened(error) } else { mistake })
        };
        let mut mistakes: Vec<Mistake> = std::iter::once(&self.key).chain(&self.previous_key).filter_map(wrong).collect();
        // Those of their text were told before.
        if witness::mistakes(self).is_empty() {
            mistakes.extend(Witnesses::resolve(self, base).err().unwrap_or_default());
        }
        mistakes
    }

    /// The log of one shard: its label is the last segment of the origin, the name of the folder, and the ending of the lock file. Without a
    /// label it is the log that was there before there were shards.
    #[must_use]
    pub fn of_shard(&self, label: Option<Label>) -> Self {
        let Some(label) = label else { return Self { shards: None, ..self.clone() } };
        let lock = self.lock.clone().unwrap_or_else(|| self.directory.with_added_extension("lock"));
        Self {
            directory: self.directory.join(label.to_string()),
            origin: Spanned::new(self.origin.span(), format!("{}/{label}", self.origin.get_ref())),
            lock: Some(lock.with_added_extension(label.to_string())),
            shards: None,
            shard: Some(label),
            ..self.clone()
        }
    }

    /// The name of the node: the last segment of the origin, before the label of a shard.
    #[must_use]
    pub fn node(&self) -> &str {
        let mut segments = self.origin.get_ref().rsplit('/').skip(usize::from(self.shard.is_some()));
        segments.next().unwrap_or_default()
    }

    /// The log's folder and the key's file, relative to the folder of the policies.
    #[must_use]
    pub fn paths(&self, base: &Path) -> (PathBuf, PathBuf) {
        (base.join(&self.directory), base.join(self.key.get_ref()))
    }

    /// The file of the key before, relative to the folder of the policies.
    #[must_use]
    pub fn previous_path(&self, base: &Path) -> Option<PathBuf> {
        self.previous_key.as_ref().map(|key| base.join(key.get_ref()))
    }

    /// Whether it names witnesses.
    #[must_use]
    pub fn has_witnesses(&self) -> bool {
        !self.witness.is_empty() || self.witness_policy.is_some()
    }

    /// The lock file, relative to the folder of the policies.
    #[must_use]
    pub fn lock_path(&self, base: &Path) -> PathBuf {
        base.join(self.lock.clone().unwrap_or_else(|| self.directory.with_added_extension("lock")))
    }
}

/// When an answer is released: each mode waits for what the one before it waits for, and more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
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

impl Mode {
    /// Every mode, the one that waits least first.
    pub(super) const ALL: [Self; 4] = [Self::Async, Self::Durable, Self::Included, Self::Witnessed];

    /// The word for it in policies and in `Provenance-Want`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Async => "async",
            Self::Durable => "durable",
            Self::Included => "included",
            Self::Witnessed => "witnessed",
        }
    }

    /// The mode of this word.
    pub(super) fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == word)
    }
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
    pub mode: Mode,
    /// What becomes of an answer that the log cannot take; `refuse` unless given.
    pub on_failure: OnFailure,
}

/// The terms under which a model's answers are proved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// How far an answer's entry must come before the answer is released. A caller may ask for more ([`super::Want`]), never for less.
    pub(super) mode: Mode,
    pub(super) on_failure: OnFailure,
}

impl Terms {
    /// The terms that a model's file asks for.
    #[must_use]
    pub fn resolve(config: &TermsConfig) -> Self {
        Self { mode: config.mode, on_failure: config.on_failure }
    }

    /// Those of what is answered for no model: the log may be missed where it may be missed by every model.
    pub fn of_all<'a>(models: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut models = models.into_iter().peekable();
        let serve = models.peek().is_some() && models.all(Self::serves);
        Self { on_failure: if serve { OnFailure::Serve } else { OnFailure::Refuse }, ..Self::default() }
    }

    /// Whether there is no answer without witnesses.
    #[must_use]
    pub fn needs_witnesses(&self) -> bool {
        self.mode == Mode::Witnessed && !self.serves()
    }

    /// Whether there is an answer where the log takes nothing.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.on_failure == OnFailure::Serve
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(text: &str) -> Result<Terms, toml::de::Error> {
        let config: TermsConfig = toml::from_str(text)?;
        Ok(Terms::resolve(&config))
    }

    #[test]
    fn terms_read_as_written() {
        assert_eq!(terms(""), Ok(Terms { mode: Mode::Async, on_failure: OnFailure::Refuse }));
        assert_eq!(terms("mode = \"durable\"\non_failure = \"serve\""), Ok(Terms { mode: Mode::Durable, on_failure: OnFailure::Serve }));
        for mode in Mode::ALL {
            assert_eq!(terms(&format!("mode = \"{}\"", mode.as_str())).unwrap().mode, mode);
            assert_eq!(Mode::of(mode.as_str()), Some(mode));
        }
        assert!(terms("mode = \"never\"").is_err());
        assert!(terms("modus = \"async\"").is_err());
    }

    #[test]
    fn the_log_may_be_missed_where_no_model_demands_it() {
        let terms = |text: &[&str]| Terms::of_all(&text.iter().map(|text| terms(text).unwrap()).collect::<Vec<_>>());
        let serve = "mode = \"included\"\non_failure = \"serve\"";
        assert_eq!(terms(&[]), Terms::default());
        assert_eq!(terms(&[serve, ""]), Terms::default());
        assert_eq!(terms(&[serve, serve]), Terms { on_failure: OnFailure::Serve, ..Terms::default() });
        assert!(terms(&[serve]).serves() && !terms(&["", serve]).serves());
    }

    #[test]
    fn each_mode_waits_for_more_than_the_one_before_it() {
        assert!(Mode::ALL.is_sorted_by(|one, other| one < other));
    }

    #[test]
    fn entries_are_kept_for_a_day_at_least() {
        let mistakes = |keep: &str| {
            let text = format!("directory = \"d\"\norigin = \"a\"\nkey = \"k\"\nkeep = \"{keep}\"");
            toml::from_str::<Config>(&text).unwrap().mistakes().len()
        };
        assert_eq!(["1d", "24h", "86400s", "400d"].map(mistakes), [0; 4]);
        assert_eq!(["86399s", "23h", "0s"].map(mistakes), [1; 3]);
    }

    #[test]
    fn a_shard_is_a_log_of_its_own_of_the_same_node() {
        let config = |more: &str| -> Config {
            toml::from_str(&format!("directory = \"data/log\"\norigin = \"gw.example/node1\"\nkey = \"k\"\n{more}")).unwrap()
        };
        let base = Path::new("/policies");
        for (more, lock) in [("", "/policies/data/log.lock.2026h2"), ("lock = \"/mnt/last\"", "/mnt/last.2026h2")] {
            let whole = config(&format!("shards = \"half-yearly\"\n{more}"));
            let shard = whole.of_shard(Some("2026h2".parse().unwrap()));
            assert_eq!(shard.paths(base).0, Path::new("/policies/data/log/2026h2"));
            assert_eq!((&**shard.origin.get_ref(), shard.node()), ("gw.example/node1/2026h2", "node1"));
            assert_eq!(shard.lock_path(base), Path::new(lock));
            assert_eq!(shard.key, whole.key);
        }
        let before = config("shards = \"half-yearly\"").of_shard(None);
        assert_eq!((before.paths(base).0, before.lock_path(base)), ("/policies/data/log".into(), "/policies/data/log.lock".into()));
        assert_eq!((&**before.origin.get_ref(), before.node()), ("gw.example/node1", "node1"));
        assert!(toml::from_str::<Config>("directory = \"d\"\norigin = \"a\"\nkey = \"k\"\nshards = \"yearly\"").is_err());
    }

    #[test]
    fn the_origin_of_a_shard_has_room_for_its_label() {
        for (shards, longest) in [("", MAX_ORIGIN), ("shards = \"half-yearly\"", MAX_ORIGIN - 7)] {
            for (length, mistakes) in [(longest, 0), (longest + 1, 1)] {
                let text = format!("directory = \"d\"\norigin = '{}'\nkey = \"k\"\n{shards}", "a".repeat(length));
                assert_eq!(toml::from_str::<Config>(&text).unwrap().mistakes().len(), mistakes, "{shards:?} {length}");
            }
        }
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
