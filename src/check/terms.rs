//! What the policy says of bodies: the `[check]` table of a model's file, and what it comes to.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;

use super::schema::Schema;
use super::tensor::{Contract, Rules};
use super::{ByName, Error, explain};
use crate::mistake::Mistake;
use crate::mode::Mode;
use crate::unit::Size;
use crate::wire::json;
use crate::wire::tensor::{Datatype, Port};

/// The longest batch for a model in this machine of which the policy says nothing: it is what bounds the memory of one answer.
pub const DEFAULT_MAX_BATCH: u64 = 64;

/// The most rows of a request to a model behind an upstream, where detectors learn from each and the policy says nothing. It is many times what model
/// servers take at once, and learned in some milliseconds.
pub(super) const DEFAULT_MOST_ROWS: u64 = 1_024;

/// How deep JSON may nest where the policy says nothing. Tensors and chats need less than 10.
pub const DEFAULT_MAX_DEPTH: usize = 64;

/// How deep the policy may let it nest: parsing and validation recurse, and no deeper is read.
pub const MOST_DEPTH: usize = json::DEPTH_MAX;

/// The `[check]` table.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What becomes of a body that does not hold to what is narrowed here. What widens, and what keeps the gateway or a model in this machine whole, has no mode.
    pub mode: Mode,
    /// A JSON Schema for the body, relative to the model's file.
    pub schema: Option<Spanned<PathBuf>>,
    /// Whether fields that the protocol does not know are refused.
    pub strict: bool,
    /// Whether callers may name what the model's server keeps between requests, each whatever he knows the name of.
    pub stored: bool,
    /// The longest body; the house's cap where it is left out.
    pub max_body: Option<Spanned<Size>>,
    /// The longest batch, at least 1; where it is left out, 64 if the model runs in this machine, and 1,024 rows if it is calibrated and does not.
    pub max_batch: Option<Spanned<u64>>,
    /// The longest of the other dimensions that the model leaves free, such as a sequence of tokens, at least 1; bounded by the body alone where it is left out.
    pub max_length: Option<Spanned<u64>>,
    /// The names of the tensors that may be sent to a model that has no contract of its own; those that other rules name where it is left out, and all where none does.
    pub inputs: Option<Spanned<Vec<Spanned<String>>>>,
    /// Inclusive bounds, by the name of an input tensor.
    pub range: BTreeMap<String, Spanned<[f64; 2]>>,
    /// Input tensors that may hold NaN and infinities.
    pub nan: Vec<Spanned<String>>,
    /// The most tokens that an answer may be asked to have, at least 1; unbounded where it is left out.
    pub max_tokens: Option<Spanned<u64>>,
    /// How deep JSON may nest, at most 120; 64 where it is left out.
    pub max_depth: Option<Spanned<usize>>,
}

/// What a table is compiled with.
#[derive(Clone, Copy, Debug)]
pub struct Around<'a> {
    /// The folder of the policies, out of which no path may lead.
    pub policies: &'a Path,
    /// The folder of the model's file, to which paths are relative.
    pub folder: &'a Path,
    /// `accept.max_body`.
    pub max_body: usize,
    /// What the model says of itself; none behind an upstream.
    pub contract: Option<&'a Contract>,
    /// The inputs that detectors go by.
    pub later: ByName<'a>,
}

/// What a model's bodies are held against.
#[derive(Clone, Debug)]
pub struct Terms {
    pub(super) stored: bool,
    pub(super) max_body: usize,
    pub(super) max_depth: usize,
    /// To what bodies are held.
    pub(super) held: Narrowed,
    /// In shadow mode, to what they would be.
    pub(super) tried: Option<Arc<Narrowed>>,
    pub(super) explain: Option<Arc<explain::Terms>>,
}

/// What the owner of a model narrows its bodies to. Rules for tensors are more than that: the model's contract is among them.
#[derive(Clone, Debug, Default)]
pub(super) struct Narrowed {
    pub(super) schema: Option<Arc<Schema>>,
    pub(super) strict: bool,
    pub(super) max_tokens: Option<u64>,
    pub(super) rules: Rules,
}

impl Narrowed {
    /// What refuses no tensors of a model elsewhere.
    fn to_nothing() -> Self {
        Self { rules: Rules { any_nan: true, ..Rules::default() }, ..Self::default() }
    }

    /// What is left of it where its owner does not enforce it: what keeps the model whole, and what its owner allows beyond that.
    fn loosened(&self) -> Self {
        let contract = self.rules.contract.clone();
        let max_batch = contract.as_ref().map(|_| self.rules.max_batch.map_or(DEFAULT_MAX_BATCH, |most| most.max(DEFAULT_MAX_BATCH)));
        // What a model elsewhere can take is known to its owner alone.
        let (nan, any_nan) = (self.rules.nan.clone(), contract.is_none());
        Self { rules: Rules { contract, max_batch, nan, any_nan, ..Rules::default() }, ..Self::default() }
    }
}

impl Terms {
    /// For requests that name no model: a body of at most `max_body` bytes, and no more said of it.
    #[must_use]
    pub fn without_model(max_body: usize) -> Self {
        Self { stored: false, max_body, max_depth: DEFAULT_MAX_DEPTH, held: Narrowed::default(), tried: None, explain: None }
    }

    /// Holds a body to a rule: refuses where the rule is enforced, and where it is tried writes down what it would have refused, the first of several.
    pub(super) fn hold<T>(&self, shadowed: &mut Option<Error>, mut rule: impl FnMut(&Narrowed) -> Result<T, Error>) -> Result<T, Error> {
        let held = rule(&self.held)?;
        if let (None, Some(tried)) = (&shadowed, &self.tried) {
            *shadowed = rule(tried).err();
        }
        Ok(held)
    }

    /// Lets the model be explained as `config` says; what is wrong with that is added to `mistakes`.
    pub fn explain(&mut self, config: &explain::Config, around: Around<'_>, mistakes: &mut Vec<Mistake>) {
        let rules = &self.tried.as_deref().unwrap_or(&self.held).rules;
        self.explain = config.compile(around.folder, around.policies, rules, mistakes);
    }

    /// Bounds the rows of a request, since detectors learn from each.
    pub fn watch_rows(&mut self) {
        let written = self.tried.as_ref().and_then(|tried| tried.rules.max_batch);
        self.held.rules.most_rows = Some(written.unwrap_or_default().max(DEFAULT_MOST_ROWS));
    }

    /// The longest body, in bytes.
    #[must_use]
    pub fn max_body(&self) -> usize {
        self.max_body
    }

    /// Whether the model takes texts, of which it counts the tokens.
    #[must_use]
    pub fn takes_texts(&self) -> bool {
        self.held.rules.contract.as_ref().is_some_and(|contract| contract.longest.is_some())
    }

    /// The most tokens that an answer may be asked to have, where that is enforced.
    #[must_use]
    pub fn max_tokens(&self) -> Option<u64> {
        self.held.max_tokens
    }

    /// How deep JSON may nest.
    #[must_use]
    pub fn max_depth(&self) -> usize {
        self.max_depth
    }
}

impl Config {
    /// Turns the table into terms; what is wrong with it is added to `mistakes`. Reads the schema, and so belongs where policies are read.
    pub fn compile(&self, around: Around<'_>, mistakes: &mut Vec<Mistake>) -> Terms {
        let schema = self.schema.as_ref().and_then(|path| match schema(path, around) {
            Ok(schema) => Some(Arc::new(schema)),
            Err(mistake) => {
                mistakes.push(mistake);
                None
            }
        });
        let least = [&self.max_batch, &self.max_length, &self.max_tokens];
        for zero in least.into_iter().flatten().filter(|number| *number.get_ref() == 0) {
            mistakes.push(Mistake::at(zero.span(), "0 lets nothing pass; say 1 or more, or leave it out"));
        }
        if let Some(zero) = self.max_body.as_ref().filter(|size| size.get_ref().0 == 0) {
            mistakes.push(Mistake::at(zero.span(), "a body of 0 bytes lets nothing pass; say \"1B\" or more, or leave it out"));
        }
        if let Some(depth) = self.max_depth.as_ref().filter(|depth| !(1..=MOST_DEPTH).contains(depth.get_ref())) {
            mistakes.push(Mistake::at(depth.span(), format!("a depth is from 1 to {MOST_DEPTH}")));
        }
        for (name, range) in &self.range {
            let [low, high] = *range.get_ref();
            if low.is_nan() || high.is_nan() || low > high {
                mistakes.push(Mistake::at(range.span(), format!("the range of {name:?} holds nothing; write [lowest, highest]")));
            }
            mistakes.extend(unfit_input(name, range.span(), around.contract));
        }
        for name in &self.nan {
            mistakes.extend(unfit_input(name.get_ref(), name.span(), around.contract));
        }
        let unnamed = around.contract.is_none();
        if unnamed {
            mistakes.extend(self.mistakes_in_names(around.later));
        }
        let given = |number: &Option<Spanned<u64>>| number.as_ref().map(|number| *number.get_ref());
        let written = Narrowed {
            schema,
            strict: self.strict,
            max_tokens: given(&self.max_tokens),
            rules: Rules {
                contract: around.contract.cloned(),
                max_batch: given(&self.max_batch).or(around.contract.map(|_| DEFAULT_MAX_BATCH)),
                names: None,
                most_rows: None,
                max_length: given(&self.max_length),
                range: self.range.iter().map(|(name, range)| (name.clone(), (range.get_ref()[0], range.get_ref()[1]))).collect(),
                nan: self.nan.iter().map(|name| name.get_ref().clone()).collect(),
                any_nan: false,
            },
        };
        let (mut held, mut tried) = match self.mode {
            Mode::Enforce => (written, None),
            Mode::Shadow => (written.loosened(), Some(written)),
            Mode::Off => (written.loosened(), None),
        };
        match self.names(around.later).filter(|_| unnamed) {
            Some((Mode::Enforce, names)) => held.rules.names = Some(names),
            Some((_, names)) => tried.get_or_insert_with(Narrowed::to_nothing).rules.names = Some(names),
            None => {}
        }
        Terms {
            stored: self.stored,
            max_body: self.max_body.as_ref().map_or(around.max_body, |size| size.get_ref().0),
            max_depth: self.max_depth.as_ref().map_or(DEFAULT_MAX_DEPTH, |depth| (*depth.get_ref()).min(MOST_DEPTH)),
            held,
            tried: tried.map(Arc::new),
            explain: None,
        }
    }
}

fn schema(path: &Spanned<PathBuf>, around: Around<'_>) -> Result<Schema, Mistake> {
    let out = || Mistake::at(path.span(), "the schema's path leads out of the policy folder; move the schema into it");
    if path.get_ref().components().any(|part| matches!(part, Component::RootDir | Component::Prefix(_))) {
        return Err(out());
    }
    let file = around.folder.join(path.get_ref());
    let unread =
        |error: std::io::Error| Mistake::at(path.span(), format!("the schema {} cannot be read: {error}", path.get_ref().display()));
    let (resolved, root) = (file.canonicalize().map_err(unread)?, around.policies.canonicalize().map_err(unread)?);
    // Told by its place in the folder, however it is written.
    let inside = resolved.strip_prefix(root).map_err(|_| out())?;
    Schema::compile(&around.policies.join(inside))
}

/// The mistake of naming an input that the model does not have, or one that holds no numbers.
pub(crate) fn unfit_input(name: &str, span: std::ops::Range<usize>, contract: Option<&Contract>) -> Option<Mistake> {
    let contract = contract?;
    let Some(port) = contract.every_input().find(|port| port.name == name) else {
        let near = |port: &&Port| strsim::damerau_levenshtein(&port.name, name);
        let right =
            contract.every_input().min_by_key(near).map_or(String::new(), |port| format!("; the nearest it has is {:?}", port.name));
        return Some(Mistake::at(span, format!("the model has no input {name:?}{right}")));
    };
    (port.datatype == Datatype::Bytes).then(|| Mistake::at(span, format!("the input {name:?} holds BYTES, which are no numbers")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(text: &str, contract: Option<&Contract>) -> (Terms, Vec<Mistake>) {
        let policies = tempfile::tempdir().unwrap();
        let folder = policies.path().join("models");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::create_dir_all(policies.path().join("schemas")).unwrap();
        std::fs::write(policies.path().join("schemas/good.json"), "{}").unwrap();
        std::fs::write(policies.path().join("schemas/bad.json"), "{\"type\": 5}").unwrap();
        let config: Config = toml::from_str(text).unwrap();
        let mut mistakes = Vec::new();
        let around = Around { policies: policies.path(), folder: &folder, max_body: 1 << 20, contract, later: ByName::default() };
        (config.compile(around, &mut mistakes), mistakes)
    }

    fn contract() -> Contract {
        let port = |name: &str, datatype| Port { name: name.into(), datatype, shape: vec![None] };
        Contract { inputs: vec![port("input", Datatype::Fp32), port("words", Datatype::Bytes)], ..Contract::default() }
    }

    #[test]
    fn the_rows_of_a_watched_upstream_are_bounded_in_every_mode_and_by_no_less_than_its_owner_allows() {
        for (text, held, most_rows) in [
            ("", None, 1_024),
            ("max_batch = 4096", Some(4_096), 1_024),
            ("mode = \"shadow\"\nmax_batch = 10", None, 1_024),
            ("mode = \"shadow\"\nmax_batch = 4096", None, 4_096),
            ("mode = \"off\"\nmax_batch = 4096", None, 1_024),
        ] {
            let mut terms = compiled(text, None).0;
            terms.watch_rows();
            assert_eq!((terms.held.rules.max_batch, terms.held.rules.most_rows), (held, Some(most_rows)), "{text}");
        }
    }

    #[test]
    fn defaults_are_the_houses_and_a_contract_bounds_the_batch() {
        let (terms, mistakes) = compiled("", None);
        assert!(mistakes.is_empty());
        assert_eq!((terms.max_body(), terms.max_tokens(), terms.max_depth()), (1 << 20, None, DEFAULT_MAX_DEPTH));
        assert_eq!(terms.held.rules.max_batch, None);
        assert_eq!(compiled("", Some(&contract())).0.held.rules.max_batch, Some(DEFAULT_MAX_BATCH));
        let (terms, mistakes) = compiled(
            "schema = \"../schemas/good.json\"\nmax_batch = 3\nmax_body = \"64KiB\"\nrange = { input = [0.0, 16.0] }",
            Some(&contract()),
        );
        assert!(mistakes.is_empty(), "{mistakes:?}");
        assert!(terms.held.schema.is_some());
        assert_eq!((terms.held.rules.max_batch, terms.max_body), (Some(3), 65_536));
    }

    #[test]
    fn all_mistakes_are_told_at_once_and_each_with_its_place() {
        let text = "max_batch = 0\nmax_tokens = 0\nmax_body = \"0B\"\nmax_depth = 121\nnan = [\"word\"]\nschema = \"/etc/hostname\"\n\
                    range = { inptu = [0.0, 1.0], words = [0.0, 1.0], input = [2.0, 1.0] }";
        let (_, mistakes) = compiled(text, Some(&contract()));
        let told: Vec<_> = mistakes.iter().map(|mistake| &text[mistake.span.clone().unwrap()]).collect();
        assert_eq!(told, ["\"/etc/hostname\"", "0", "0", "\"0B\"", "121", "[0.0, 1.0]", "[2.0, 1.0]", "[0.0, 1.0]", "\"word\""]);
        assert!(mistakes.iter().any(|mistake| mistake.what.contains("nearest it has is \"input\"")));
        assert!(mistakes.iter().any(|mistake| mistake.what.contains("nearest it has is \"words\"")));
    }

    #[test]
    fn a_schema_that_does_not_compile_is_told_with_its_file() {
        let (_, mistakes) = compiled("schema = \"../schemas/bad.json\"", None);
        assert!(mistakes[0].file.as_ref().unwrap().ends_with("schemas/bad.json"));
        assert!(mistakes[0].what.contains("/type"));
        assert!(compiled("schema = \"../schemas/none.json\"", None).1[0].span.is_some());
        assert!(compiled("schema = \"../../x.json\"", None).1[0].span.is_some());
    }
}
