//! What the policy says of explanations: the `[explain]` table of a model's file, and what one that is asked for comes to.
//!
//! An explanation holds a row against rows that stand for "nothing is known of this feature": the background. It asks the model what it
//! says of many mixtures of both, so that its price is known before any is made: it is paid like the requests that a caller would need to
//! ask the same.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;

use super::Contract;
use super::tensor::Rules;
use crate::digest::Digest;
use crate::mistake::Mistake;
use crate::wire::json::{self, Limits};
use crate::wire::oip::{self, InferRequest};
use crate::wire::tensor::{Datatype, Port, Tensor};

/// The largest background file, in bytes.
pub const MAX_FILE: usize = 4 << 20;

/// The most rows of a background. Its means change little past a hundred, and each row makes every explanation dearer.
pub const MAX_BACKGROUND: usize = 256;

/// The most features of a model that is explained: the elements of one row of all its inputs.
pub const MAX_FEATURES: usize = 1024;

/// The most permutations of one row that a policy may allow.
pub const MAX_SAMPLES: u64 = 256;

/// The most permutations that may be asked for, unless the policy says otherwise, and as many as are made where none are asked for.
pub const DEFAULT_SAMPLES: u64 = 8;

/// The most rows of one request that a policy may allow to be explained.
pub const MAX_ROWS: u64 = 64;

/// The most rows of one request that are explained, unless the policy says otherwise.
pub const DEFAULT_ROWS: u64 = 4;

/// The most rows that a model may be asked for one request, whatever the rest of the policy allows.
pub const MAX_EVALUATIONS: u64 = 1 << 20;

/// The most rows of one question to the model, however large the batches of callers may be.
pub const MAX_CHUNK: u64 = 256;

/// The `[explain]` table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The background, relative to the model's file: the JSON of an inference request, whose inputs are its rows.
    pub background: Spanned<PathBuf>,
    /// The SHA-256 of that file.
    pub sha256: Spanned<String>,
    /// The most permutations that may be asked for, at most [`MAX_SAMPLES`]; [`DEFAULT_SAMPLES`].
    pub max_samples: Option<Spanned<u64>>,
    /// The most rows of one request that are explained, at most [`MAX_ROWS`]; [`DEFAULT_ROWS`].
    pub max_rows: Option<Spanned<u64>>,
}

/// How a model may be explained.
#[derive(Debug)]
pub struct Terms {
    /// The background's inputs, in the order of the contract.
    background: Vec<Tensor>,
    digest: Digest,
    rows: u64,
    features: u64,
    max_samples: u64,
    max_rows: u64,
    chunk: u64,
}

/// An explanation that is asked for and may be given.
#[derive(Debug)]
pub struct Explanation {
    /// The request, whose answer is explained.
    pub request: InferRequest,
    /// Of which output.
    pub output: String,
    /// How many permutations of each row.
    pub samples: u64,
    /// How many rows.
    pub rows: u64,
    /// How it may be explained.
    pub terms: Arc<Terms>,
}

/// Why none is given. The caller's doing, all of it `check.explain`, 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unexplained {
    /// The policy allows none of this model.
    NotOffered,
    /// More permutations than the policy allows.
    TooManySamples,
    /// More rows than the policy allows.
    TooManyRows,
    /// No output of that name holds floats, or there are several and none was named.
    Output,
}

impl Unexplained {
    /// What is wrong, in words.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::NotOffered => "This model is not explained.",
            Self::TooManySamples => "More permutations are asked for than this model is explained with.",
            Self::TooManyRows => "More rows are sent than are explained at once.",
            Self::Output => "`explain_output` must name an output of floats, one row for each of the batch.",
        }
    }

    /// The part of the request that is at fault.
    #[must_use]
    pub const fn pointer(self) -> &'static str {
        match self {
            Self::NotOffered => "/parameters/explain",
            Self::TooManySamples => "/parameters/explain_samples",
            Self::TooManyRows => "/inputs/0/shape/0",
            Self::Output => "/parameters/explain_output",
        }
    }
}

impl Explanation {
    /// How many rows the model is asked about beside the request's own: the background once, and for each walk along a permutation the
    /// background under every mixture between all of it and the row.
    #[must_use]
    pub fn evaluations(&self) -> u64 {
        self.terms.evaluations(self.rows, self.samples)
    }

    /// How many requests of a caller that would take.
    #[must_use]
    pub fn queries(&self) -> u64 {
        self.evaluations().div_ceil(self.terms.chunk)
    }
}

impl Terms {
    /// The background's inputs, in the order of the contract.
    #[must_use]
    pub fn background(&self) -> &[Tensor] {
        &self.background
    }

    /// The digest of the background's file.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// How many rows the background has, at least 1.
    #[must_use]
    pub fn rows(&self) -> usize {
        usize::try_from(self.rows).unwrap_or(usize::MAX)
    }

    /// The most rows of one question to the model.
    #[must_use]
    pub fn chunk(&self) -> usize {
        usize::try_from(self.chunk).unwrap_or(usize::MAX)
    }

    /// At most about 2⁴³, whatever is put in within the bounds of this file.
    fn evaluations(&self, rows: u64, samples: u64) -> u64 {
        self.rows + rows * samples * 2 * (self.features - 1) * self.rows
    }

    /// What `asked` comes to for `request`, which holds to the contract.
    pub(super) fn explanation(
        self: &Arc<Self>,
        asked: oip::Explain,
        request: InferRequest,
        contract: &Contract,
    ) -> Result<Explanation, Unexplained> {
        let samples = asked.samples.unwrap_or(DEFAULT_SAMPLES.min(self.max_samples));
        if samples > self.max_samples {
            return Err(Unexplained::TooManySamples);
        }
        let rows = request.inputs.first().and_then(|tensor| tensor.shape.first().copied()).unwrap_or(0);
        if rows > self.max_rows {
            return Err(Unexplained::TooManyRows);
        }
        let mut outputs = contract.outputs.iter().filter(|port| explained(port));
        let output = match &asked.output {
            Some(name) => outputs.find(|port| port.name == *name),
            None => outputs.next().filter(|_| outputs.next().is_none()),
        };
        let output = output.ok_or(Unexplained::Output)?.name.clone();
        Ok(Explanation { request, output, samples, rows, terms: self.clone() })
    }
}

/// Whether an output can be explained: floats, one row for each of the batch.
fn explained(port: &Port) -> bool {
    matches!(port.datatype, Datatype::Fp32 | Datatype::Fp64) && port.shape.first() == Some(&None)
}

#[cfg(test)]
impl Terms {
    /// Of this background, without bounds, for the tests of later stops.
    pub(crate) fn of_background(background: Vec<Tensor>, rows: u64, features: u64) -> Self {
        let (max_samples, max_rows, chunk) = (u64::MAX, u64::MAX, MAX_CHUNK);
        Self { background, digest: Digest::of(b"background"), rows, features, max_samples, max_rows, chunk }
    }
}

impl Config {
    /// Turns the table into terms; what is wrong with it is added to `mistakes`. `rules` are those that requests are held against.
    pub(super) fn compile(&self, folder: &Path, root: &Path, rules: &Rules, mistakes: &mut Vec<Mistake>) -> Option<Arc<Terms>> {
        let bounded = |given: &Option<Spanned<u64>>, default, most: u64, mistakes: &mut Vec<Mistake>| {
            let Some(given) = given else { return default };
            if !(1..=most).contains(given.get_ref()) {
                mistakes.push(Mistake::at(given.span(), format!("it is from 1 to {most}")));
            }
            (*given.get_ref()).clamp(1, most)
        };
        let max_samples = bounded(&self.max_samples, DEFAULT_SAMPLES, MAX_SAMPLES, mistakes);
        let max_rows = bounded(&self.max_rows, DEFAULT_ROWS, MAX_ROWS, mistakes);
        let nowhere = || "only a model in this machine is explained: its answers are asked for many times".to_owned();
        let features = rules.contract.as_ref().ok_or_else(nowhere);
        let read = features.and_then(tabular).map_err(|what| Mistake::at(self.background.span(), what)).and_then(|features| {
            let (background, digest, rows) = self.background(folder, root, rules)?;
            Ok((features, background, digest, rows))
        });
        let (features, background, digest, rows) = match read {
            Ok(read) => read,
            Err(mistake) => {
                mistakes.push(mistake);
                return None;
            }
        };
        let chunk = rules.max_batch.unwrap_or(MAX_CHUNK).clamp(1, MAX_CHUNK);
        let terms = Terms { background, digest, rows, features, max_samples, max_rows, chunk };
        let dearest = terms.evaluations(max_rows, max_samples);
        if dearest > MAX_EVALUATIONS {
            let what = format!(
                "one request could ask the model about {dearest} rows, and {MAX_EVALUATIONS} are the most: allow fewer samples or rows, or \
                 give a shorter background"
            );
            mistakes.push(Mistake::at(self.background.span(), what));
        }
        Some(Arc::new(terms))
    }

    fn background(&self, folder: &Path, root: &Path, rules: &Rules) -> Result<(Vec<Tensor>, Digest, u64), Mistake> {
        let told = |what: String| Mistake::at(self.background.span(), what);
        let named: Digest = self.sha256.get_ref().parse().map_err(|error| Mistake::at(self.sha256.span(), format!("`sha256`: {error}")))?;
        let bytes = within(&folder.join(self.background.get_ref()), root).map_err(|error| told(format!("the background {error}")))?;
        let digest = Digest::of(&bytes);
        if digest != named {
            return Err(Mistake::at(self.sha256.span(), format!("the background is not the file that is named: its SHA-256 is {digest}")));
        }
        let document = json::parse(&bytes, &Limits::for_body(MAX_FILE)).map_err(|error| told(format!("the background: {error}")))?;
        let request = InferRequest::from_json(&document).map_err(|shape| told(format!("the background: {shape}")))?;
        let rules = Rules { max_batch: Some(MAX_BACKGROUND as u64), ..rules.clone() };
        rules.hold(&request).map_err(|fault| told(format!("the background: {fault} breaks {}", fault.broken.code())))?;
        let mut background = request.inputs;
        let ports = rules.contract.map(|contract| contract.inputs).unwrap_or_default();
        background.sort_by_key(|tensor| ports.iter().position(|port| port.name == tensor.name));
        let rows = background.first().and_then(|tensor| tensor.shape.first().copied()).unwrap_or(0);
        Ok((background, digest, rows))
    }
}

/// How many features a row has.
fn tabular(contract: &Contract) -> Result<u64, String> {
    let others = "only a model of tables is explained: each input holds numbers, a batch of rows of one length";
    let texts = || {
        let found = contract.inputs.iter().find(|port| port.datatype == Datatype::Bytes);
        found
            .map(|port| format!("{others}; its input {:?} holds texts (BYTES), which have no features to share an answer among", port.name))
    };
    if contract.longest.is_some() || !contract.instead.is_empty() {
        return Err(texts().unwrap_or_else(|| others.to_owned()));
    }
    let mut features = 0_u64;
    for port in &contract.inputs {
        let row = port.shape.split_first().filter(|(batch, _)| batch.is_none()).map(|(_, row)| row);
        let row = row.and_then(|row| row.iter().try_fold(1_u64, |product, length| product.checked_mul((*length)?)));
        let row = row.filter(|_| port.datatype.width().is_some());
        let row = row.ok_or_else(|| texts().unwrap_or_else(|| format!("{others}, which {:?} does not", port.name)))?;
        features = features.saturating_add(row);
    }
    if !(1..=MAX_FEATURES as u64).contains(&features) {
        return Err("a model that is explained has from 1 to 1024 features".to_owned());
    }
    if contract.outputs.iter().any(|port| port.name.starts_with(oip::PREFIX)) {
        return Err("an output whose name begins with `explain.` would be taken for an explanation".to_owned());
    }
    let has_scores = contract.outputs.iter().any(explained);
    if has_scores { Ok(features) } else { Err("the model has no output of FP32 or FP64 that could be explained".to_owned()) }
}

/// The bytes of a file that lies within `root`, by no link out of it.
fn within(file: &Path, root: &Path) -> Result<Vec<u8>, String> {
    let unread = |error: std::io::Error| format!("cannot be read: {error}");
    let (real, root) = (file.canonicalize().map_err(unread)?, root.canonicalize().map_err(unread)?);
    if !real.starts_with(root) {
        return Err("leaves the policy folder: put the file inside it".to_owned());
    }
    if !std::fs::metadata(&real).map_err(unread)?.is_file() {
        return Err("is not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    std::fs::File::open(real).and_then(|file| file.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes)).map_err(unread)?;
    if bytes.len() > MAX_FILE { Err(format!("is larger than {MAX_FILE} bytes")) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests;
