//! Encoders of the BERT family: from safetensors, on candle, without C++ or Python, or from ONNX, on ONNX Runtime. No file is read but those that
//! come as bytes.
//!
//! [`Encoder::load`] takes the files of a folder that were verified, and reads each strictly: `config.json` and the files of
//! sentence-transformers with closed schemas, `tokenizer.json`, and `model.safetensors` by [`super::safetensors::scan`], of which exactly the
//! tensors are taken that the architecture wants. What it is *not*: a host of any network. The architectures are those of the folder
//! `architecture`, one file each. [`Graph`] is the same with a graph of ONNX in place of the weights.
//!
//! A call brings texts or tokens, answers one row for each, and is asked to stop between layers.

mod architecture;
mod batch;
mod config;
mod folder;
mod gelu;
mod graph;
mod heads;
mod layers;
mod text;
mod weights;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use rayon::{ThreadPool, ThreadPoolBuilder};

use self::config::Config;
use self::folder::Sentences;
use self::heads::{Head, probabilities};
use self::layers::{Ended, Layers};
use self::text::{Row, Tokens};
use self::weights::Weights;
use super::Error;
use super::engine::{self, Signature};
use super::onnxruntime::OnnxRuntime;
use super::safetensors;
use crate::wire::json;
use crate::wire::tensor::{Datatype, Port, Tensor, holds};

pub use batch::{MAX_PLACES, MAX_SCORES};
pub use config::{MAX_CONFIG, MAX_LABELS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH, Probabilities, Task};
pub use folder::Pooling;
pub use graph::Graph;
pub use layers::Stop;
pub use text::{MAX_TEXT, MAX_TOKENIZER};

/// The files of a model by their path within its folder, as they were verified.
pub type Files = BTreeMap<String, Bytes>;

/// The files that are read, if they are there; the first three must be. The pooling may lie in another folder that `modules.json` names.
pub const READ: [&str; 6] = [config::FILE, weights::FILE, text::FILE, folder::MODULES, folder::POOLING, folder::SENTENCES];

/// The most texts of one call: as many as one call of `/v1/embeddings` may have at its owner's.
pub const MAX_TEXTS: usize = 2048;

/// What the operator may say of a model beside its files.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The pooling, in place of the one that the folder names.
    pub pooling: Option<Pooling>,
    /// Whether vectors are brought to length 1, in place of what the folder says.
    pub normalize: Option<bool>,
    /// The most bytes that the outputs of one call may have together.
    pub room: usize,
}

impl Options {
    /// As they go to a worker: what is said of the pooling, and of the length, a byte each.
    pub(super) fn bytes(&self) -> [u8; 2] {
        let pooling = self.pooling.map_or(0, |pooling| if pooling == Pooling::Cls { 1 } else { 2 });
        [pooling, self.normalize.map_or(0, |normalize| 1 + u8::from(normalize))]
    }

    /// The same, read; `room` is told apart.
    pub(super) fn from_bytes(bytes: &[u8], room: usize) -> Option<Self> {
        let [pooling, normalize] = bytes.try_into().ok()?;
        let pooling = [None, Some(Pooling::Cls), Some(Pooling::Mean)].get(usize::from(pooling)).copied()?;
        let normalize = [None, Some(false), Some(true)].get(usize::from(normalize)).copied()?;
        Some(Self { pooling, normalize, room })
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { pooling: None, normalize: None, room: super::DEFAULT_MAX_OUTPUT.0 }
    }
}

/// Why a model is not loaded. The one who made the files is at fault; the words are for the operator.
#[derive(Debug)]
pub enum Fault {
    /// A file that every model has is not there.
    Missing(&'static str),
    /// A file is larger than it may be.
    TooLarge(&'static str, usize),
    /// A file is not the JSON that the gateway reads.
    Json(&'static str, json::Error),
    /// `config.json` says something that is not run.
    Config(String),
    /// A file of sentence-transformers says something that is not run.
    Sentences(&'static str, String),
    /// `tokenizer.json` is none, or not one for this encoder.
    Tokenizer(String),
    /// `model.safetensors` does not hold to its format.
    Safetensors(safetensors::Fault),
    /// A tensor is missing, of another shape, or one too many.
    Weights(String, String),
    /// The graph of `model.onnx` is none of an encoder of this size and task.
    Graph(String),
    /// The engine gave up.
    Engine(String),
}

impl Fault {
    #[expect(clippy::needless_pass_by_value, reason = "it is handed to `map_err`")]
    fn engine(error: candle_core::Error) -> Self {
        Self::Engine(error.to_string())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(name) => write!(f, "{name} is not among the model's files"),
            Self::TooLarge(name, limit) => write!(f, "{name} is larger than {limit} bytes"),
            Self::Json(name, error) => write!(f, "{name} is not strict JSON: {error}"),
            Self::Config(what) => write!(f, "{}: {what}", config::FILE),
            Self::Sentences(name, what) => write!(f, "{name}: {what}"),
            Self::Tokenizer(what) => write!(f, "{}: {what}", text::FILE),
            Self::Safetensors(fault) => write!(f, "{}: {fault}", weights::FILE),
            Self::Weights(name, what) => write!(f, "{}: tensor {name:?} {what}", weights::FILE),
            Self::Graph(what) => f.write_str(what),
            Self::Engine(what) => write!(f, "the engine does not take the model: {what}"),
        }
    }
}

impl std::error::Error for Fault {}

/// One thing to embed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'i> {
    /// A text. What is longer than the model's limit is cut off, as sentence-transformers does.
    Text(&'i str),
    /// Tokens of the model's own vocabulary, taken as they are: the special ones are the caller's to write, and too many are refused.
    Tokens(&'i [u32]),
}

/// What a call to embed answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedded {
    /// One vector for each item, in their order.
    pub vectors: Vec<Vec<f32>>,
    /// How many tokens the encoder read, special ones among them and padding not.
    pub tokens: u64,
}

/// An encoder that is loaded.
///
/// It takes either of two sets of inputs, and exactly one of them in a call:
///
/// * `text`, `BYTES` `[-1]`, UTF-8: the `inputs` of [`Encoder::signature`]. Texts longer than the model's limit are cut.
/// * `input_ids` and `attention_mask`, both `INT64` `[-1,-1]`: its `instead`. Each row's mask is ones, at least one, and then
///   zeros; what it hides is not looked at. A token outside of the vocabulary, or a row that is too long, is refused.
///
/// A model that embeds answers `embedding`, `FP32` `[-1,dimensions]`. A classifier of texts answers `logits` and `probabilities`, `FP32` `[-1,labels]`; a
/// classifier of tokens the same for each token, `[-1,-1,labels]`, with zeros behind a shorter text, and `offsets`, `INT64` `[-1,-1,2]`: the character
/// of the text at which each token begins and the one behind its end, zeros for special tokens and where tokens were sent. Every model also answers
/// `tokens`, `INT64` `[-1]`: how many tokens of each text it read.
///
/// It computes on one thread, whatever the machine has: a call is one thread's work, and machines scale by models and calls.
#[derive(Debug)]
pub struct Encoder {
    reading: Reading,
    weights: Computes,
}

/// What computes.
#[derive(Debug)]
enum Computes {
    /// candle, on a thread of its own.
    Layers(Box<(Layers, Head)>, ThreadPool),
    /// ONNX Runtime.
    Graph(graph::Session),
}

/// What the files beside the weights say.
#[derive(Debug)]
struct Reading {
    outline: Outline,
    tokens: Tokens,
}

/// The same without the tokenizer: small files of closed schemas, which may be looked at without walls.
#[derive(Debug)]
struct Outline {
    signature: Signature,
    config: Config,
    /// The most tokens of a text.
    longest: usize,
    lower_case: bool,
    pooling: (Pooling, bool),
    /// The most bytes that the outputs of one call may have together.
    room: usize,
}

impl Outline {
    fn of(files: &Files, options: &Options) -> Result<Self, Fault> {
        let sentences = Sentences::read(files)?;
        let config = Config::read(file(files, config::FILE)?, sentences.told)?;
        let sizes = &config.dimensions;
        if sentences.width.is_some_and(|width| width != sizes.hidden) {
            return Err(Fault::Sentences(folder::POOLING, "`word_embedding_dimension` is not the encoder's width".to_owned()));
        }
        let places = sizes.positions - sizes.first_position;
        let longest = sentences.longest.map_or(places, |longest| longest.min(places));
        let pooling = (options.pooling.unwrap_or(sentences.pooling), options.normalize.unwrap_or(sentences.normalize));
        let signature = ports(&config, longest);
        Ok(Self { signature, config, longest, lower_case: sentences.lower_case, pooling, room: options.room })
    }

    /// With its tokenizer, which is a program in all but name: nobody bounds what it takes but the walls around it.
    fn with_tokens(self, files: &Files) -> Result<Reading, Fault> {
        let tokens = Tokens::read(file(files, text::FILE)?, self.config.dimensions.vocabulary, self.longest, self.lower_case)?;
        Ok(Reading { outline: self, tokens })
    }
}

/// What an encoder around a graph would take and give, when its tokenizer was found to be one for it too. The graph is not looked at, by
/// [`Graph::fit`] it was before.
///
/// # Errors
/// [`Fault`], in words for the operator.
pub(super) fn around_a_graph(files: &Files, options: &Options) -> Result<Signature, Fault> {
    Ok(Outline::of(files, options)?.with_tokens(files)?.outline.signature)
}

fn file<'f>(files: &'f Files, name: &'static str) -> Result<&'f Bytes, Fault> {
    files.get(name).ok_or(Fault::Missing(name))
}

impl Encoder {
    /// Reads the files and makes the engine. The bytes are not kept: the weights are copied once, as 32-bit floats.
    ///
    /// # Errors
    /// [`Fault`], in words for the operator.
    pub fn load(files: &Files, options: &Options) -> Result<Self, Fault> {
        Self::load_on(Self::thread()?, files, options)
    }

    /// The thread that it computes on, made before there is a model: in a worker none can be made once the model is looked at. It has begun
    /// when this returns, and has multiplied once, so that whatever is looked up for the first product has been.
    pub(super) fn thread() -> Result<ThreadPool, Fault> {
        // The global pool would have a thread for each processor, and products of this size gain nothing from it.
        let pool = ThreadPoolBuilder::new().num_threads(1).thread_name(|_| "encoder".to_owned()).build();
        let pool = pool.map_err(|error| Fault::Engine(error.to_string()))?;
        let one = || {
            let ones = candle_core::Tensor::ones((64, 64), candle_core::DType::F32, &candle_core::Device::Cpu)?;
            ones.matmul(&ones).map(drop)
        };
        pool.install(one).map_err(Fault::engine)?;
        Ok(pool)
    }

    /// The same as [`Encoder::load`], on a thread that is there.
    pub(super) fn load_on(pool: ThreadPool, files: &Files, options: &Options) -> Result<Self, Fault> {
        let reading = Outline::of(files, options)?.with_tokens(files)?;
        let (config, sizes) = (&reading.outline.config, &reading.outline.config.dimensions);
        let bytes = file(files, weights::FILE)?;
        let layout = safetensors::scan(bytes).map_err(Fault::Safetensors)?;
        let mut weights = Weights::new(bytes, layout, config.architecture.prefix);
        let layers = Layers::take(&mut weights, config.architecture, sizes)?;
        let head =
            Head::take(&mut weights, config.architecture, config.task, reading.outline.pooling, (sizes.hidden, config.labels.len()))?;
        weights.end(config.architecture.ignored)?;
        Ok(Self { reading, weights: Computes::Layers(Box::new((layers, head)), pool) })
    }

    /// The same with a graph, which is loaded, in place of the weights. The tokenizer is read here.
    pub(super) fn around(graph: Graph, files: &Files, engine: OnnxRuntime) -> Result<Self, Fault> {
        let (outline, session) = graph.around(engine);
        Ok(Self { reading: outline.with_tokens(files)?, weights: Computes::Graph(session) })
    }

    /// What it takes, as text or instead as tokens, and what it gives.
    #[must_use]
    pub fn signature(&self) -> &Signature {
        &self.reading.outline.signature
    }

    /// What it answers.
    #[must_use]
    pub fn task(&self) -> Task {
        self.reading.outline.config.task
    }

    /// The names of a classifier's labels, in the order of its scores.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.reading.outline.config.labels
    }

    /// The most tokens of a text, special ones among them.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.reading.outline.longest
    }

    /// Runs a call. `wanted` are places in the signature's outputs, and the answer is in their order.
    ///
    /// # Errors
    /// [`Error`] says who is at fault; [`Error::DeadlinePassed`] when `stop` said so.
    pub fn run(&mut self, inputs: &[Tensor], wanted: &[usize], stop: Stop) -> Result<Vec<Tensor>, Error> {
        self.run_until(inputs, wanted, stop, &engine::Stop::default())
    }

    /// The same, of which `interrupt` ends what does not ask `stop`.
    fn run_until(&mut self, inputs: &[Tensor], wanted: &[usize], stop: Stop, interrupt: &engine::Stop) -> Result<Vec<Tensor>, Error> {
        if wanted.iter().any(|place| *place >= self.signature().outputs.len()) {
            return Err(Error::CallerAskedForOtherOutputs);
        }
        let rows = self.reading.rows(inputs, stop)?;
        let answers = self.answers(&rows, stop, interrupt)?;
        let (outline, longest) = (&self.reading.outline, longest(&rows));
        Ok(wanted.iter().map(|place| outline.output(&outline.signature.outputs[*place], &rows, &answers, longest)).collect())
    }

    /// Embeds items. For a model whose [`Encoder::task`] is [`Task::Embed`].
    ///
    /// # Errors
    /// [`Error`], as [`Encoder::run`].
    pub fn embed(&mut self, items: &[Item], stop: Stop) -> Result<Embedded, Error> {
        if self.task() != Task::Embed {
            return Err(Error::CallerSentOtherInputs("the model does not embed"));
        }
        few_enough(items.len())?;
        let row = |item: &Item| match item {
            _ if stop() => Err(Error::DeadlinePassed),
            Item::Text(text) => self.reading.tokens.encode(text, false),
            Item::Tokens(tokens) => Ok(Row { tokens: tokens.to_vec(), ..Row::default() }),
        };
        let rows = items.iter().map(row).collect::<Result<Vec<_>, _>>()?;
        let vectors = self.answers(&rows, stop, &engine::Stop::default())?;
        Ok(Embedded { vectors, tokens: rows.iter().map(|row| row.tokens.len() as u64).sum() })
    }

    /// The numbers of each row, whatever the head.
    fn answers(&mut self, rows: &[Row], stop: Stop, interrupt: &engine::Stop) -> Result<Vec<Vec<f32>>, Error> {
        let outline = &self.reading.outline;
        let sizes = &outline.config.dimensions;
        for row in rows {
            outline.runs(&row.tokens)?;
        }
        outline.has_room_for(rows)?;
        let lengths: Vec<usize> = rows.iter().map(|row| row.tokens.len()).collect();
        let mut answers = vec![Vec::new(); rows.len()];
        for run in batch::runs(&lengths, sizes.heads) {
            let texts: Vec<&[u32]> = run.iter().map(|place| rows[*place].tokens.as_slice()).collect();
            let found = match &mut self.weights {
                Computes::Layers(model, pool) => {
                    let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
                    let failed = |error: candle_core::Error| Error::ModelFailed(Arc::from(error.to_string()));
                    let (layers, head) = &**model;
                    let ran = pool.install(|| match layers.run(&texts, sizes.padding, stop)? {
                        Ended::With(hidden) => head.answer(&hidden, &lengths).map(Some),
                        Ended::Stopped => Ok(None),
                    });
                    ran.map_err(failed)?.ok_or(Error::DeadlinePassed)?
                }
                Computes::Graph(_) if stop() => return Err(Error::DeadlinePassed),
                Computes::Graph(session) => session.answer(outline, &texts, interrupt)?,
            };
            for (place, answer) in run.into_iter().zip(found) {
                if answer.iter().any(|number| !number.is_finite()) {
                    return Err(Error::ModelFailed("an answer is not finite".into()));
                }
                answers[place] = answer;
            }
        }
        Ok(answers)
    }
}

impl Reading {
    /// The tokens of each text of a call.
    fn rows(&self, inputs: &[Tensor], stop: Stop) -> Result<Vec<Row>, Error> {
        let find = |name: &str| inputs.iter().find(|tensor| tensor.name == name);
        let both = (find("input_ids"), find("attention_mask"));
        match (inputs.len(), find("text"), both) {
            (1, Some(text), _) => self.rows_of_text(text, stop),
            (2, None, (Some(ids), Some(mask))) => rows_of_tokens(ids, mask),
            _ => Err(Error::CallerSentOtherInputs("the model takes either `text`, or `input_ids` and `attention_mask`")),
        }
    }

    fn rows_of_text(&self, tensor: &Tensor, stop: Stop) -> Result<Vec<Row>, Error> {
        let other = |why| Err(Error::CallerSentOtherInputs(why));
        let [count] = tensor.shape[..] else { return other("`text` has one dimension") };
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        few_enough(count)?;
        if tensor.datatype != Datatype::Bytes || !holds(Datatype::Bytes, count, &tensor.data) {
            return other("`text` is not as many BYTES as its shape says");
        }
        let row = |bytes: Bytes| match std::str::from_utf8(&bytes) {
            _ if stop() => Err(Error::DeadlinePassed),
            Ok(text) => self.tokens.encode(text, self.outline.config.task == Task::ClassifyTokens),
            Err(_) => Err(Error::CallerSentOtherInputs("a text is not UTF-8")),
        };
        tensor.strings().map(row).collect()
    }
}

impl Outline {
    /// Whether the encoder can run a row.
    fn runs(&self, row: &[u32]) -> Result<(), Error> {
        let sizes = &self.config.dimensions;
        let other = |why| Err(Error::CallerSentOtherInputs(why));
        if row.is_empty() {
            return other("a text has no token");
        }
        if row.len() > self.longest {
            return other("a text has more tokens than the model takes");
        }
        if row.iter().any(|token| *token as usize >= sizes.vocabulary) {
            return other("a token is not in the model's vocabulary");
        }
        // Their places are counted without padding, which nobody who means a text puts into it.
        if sizes.first_position > 0 && row.contains(&sizes.padding) {
            return other("a text has padding in it");
        }
        Ok(())
    }

    /// Whether all outputs together are within the bound. Known before anything runs.
    fn has_room_for(&self, rows: &[Row]) -> Result<(), Error> {
        let longest = longest(rows);
        let (labels, width) = (self.config.labels.len(), self.config.dimensions.hidden);
        let numbers = match self.config.task {
            Task::Embed => width,
            Task::ClassifySequences => 2 * labels,
            // `offsets` are two numbers of twice the width.
            Task::ClassifyTokens => (2 * labels + 4) * longest,
        };
        // `tokens` takes two numbers' room.
        let bytes = (numbers + 2).saturating_mul(rows.len()).saturating_mul(size_of::<f32>());
        if bytes <= self.room { Ok(()) } else { Err(Error::ModelAnsweredTooMuch) }
    }

    fn output(&self, port: &Port, rows: &[Row], answers: &[Vec<f32>], longest: usize) -> Tensor {
        let mut shape = vec![rows.len() as u64];
        shape.extend(port.shape.iter().skip(1).map(|length| length.unwrap_or(longest as u64)));
        let data = match port.name.as_str() {
            "tokens" => rows.iter().flat_map(|row| (row.tokens.len() as u64).to_le_bytes()).collect(),
            "offsets" => offsets(rows, longest),
            name => self.scores(name, answers, longest),
        };
        Tensor { name: port.name.clone(), datatype: port.datatype, shape, data: data.into() }
    }

    /// An output of floats. Behind a shorter text there are zeros.
    fn scores(&self, name: &str, answers: &[Vec<f32>], longest: usize) -> Vec<u8> {
        let labels = self.config.labels.len();
        let each = match self.config.task {
            Task::Embed => self.config.dimensions.hidden,
            Task::ClassifySequences => labels,
            Task::ClassifyTokens => longest * labels,
        };
        let mut data = Vec::with_capacity(answers.len() * each * size_of::<f32>());
        for answer in answers {
            let start = data.len();
            let mut write = |numbers: &[f32]| numbers.iter().for_each(|number| data.extend_from_slice(&number.to_le_bytes()));
            if name == "probabilities" {
                write(&probabilities(answer, labels, self.config.probabilities));
            } else {
                write(answer);
            }
            data.resize(start + each * size_of::<f32>(), 0);
        }
        data
    }
}

impl engine::Engine for Encoder {
    fn signature(&self) -> &Signature {
        Self::signature(self)
    }

    fn run(&mut self, inputs: &[Tensor], wanted: &[usize], stop: &engine::Stop) -> Result<Vec<Tensor>, Error> {
        self.run_until(inputs, wanted, &|| stop.is_stopped(), stop)
    }
}

fn longest(rows: &[Row]) -> usize {
    rows.iter().map(|row| row.tokens.len()).max().unwrap_or(0)
}

fn offsets(rows: &[Row], longest: usize) -> Vec<u8> {
    let each = 2 * size_of::<i64>();
    let mut data = Vec::with_capacity(rows.len() * longest * each);
    for row in rows {
        let start = data.len();
        for (from, to) in &row.places {
            data.extend_from_slice(&(*from as u64).to_le_bytes());
            data.extend_from_slice(&(*to as u64).to_le_bytes());
        }
        data.resize(start + longest * each, 0);
    }
    data
}

fn few_enough(texts: usize) -> Result<(), Error> {
    if texts <= MAX_TEXTS { Ok(()) } else { Err(Error::CallerSentOtherInputs("more than 2048 texts")) }
}

/// The tokens that the mask shows.
fn rows_of_tokens(ids: &Tensor, mask: &Tensor) -> Result<Vec<Row>, Error> {
    let other = |why| Err(Error::CallerSentOtherInputs(why));
    let [texts, longest] = ids.shape[..] else { return other("`input_ids` has two dimensions") };
    if mask.shape != ids.shape {
        return other("`attention_mask` is of another shape than `input_ids`");
    }
    few_enough(usize::try_from(texts).unwrap_or(usize::MAX))?;
    for tensor in [ids, mask] {
        let whole = tensor.elements().is_some_and(|count| holds(Datatype::Int64, count, &tensor.data));
        if tensor.datatype != Datatype::Int64 || !whole {
            return other("`input_ids` and `attention_mask` are not as many INT64 as their shape says");
        }
    }
    if texts > 0 && longest == 0 {
        return other("a text has no token");
    }
    // Within memory already, so within its address space.
    let longest = usize::try_from(longest).unwrap_or(usize::MAX).max(1);
    let numbers = |tensor: &Tensor| -> Vec<i64> { tensor.data.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect() };
    let (ids, mask) = (numbers(ids), numbers(mask));
    let row = |(ids, mask): (&[i64], &[i64])| {
        let shown = mask.iter().take_while(|shown| **shown == 1).count();
        if mask[shown..].iter().any(|hidden| *hidden != 0) {
            return Err(Error::CallerSentOtherInputs("`attention_mask` is not ones and then zeros"));
        }
        let token = |id: &i64| u32::try_from(*id).map_err(|_| Error::CallerSentOtherInputs("a token is not in the model's vocabulary"));
        let tokens = ids[..shown].iter().map(token).collect::<Result<_, _>>()?;
        Ok(Row { tokens, ..Row::default() })
    };
    ids.chunks_exact(longest).zip(mask.chunks_exact(longest)).map(row).collect()
}

fn ports(config: &Config, longest: usize) -> Signature {
    let port = |name: &str, datatype, shape: &[Option<u64>]| Port { name: name.to_owned(), datatype, shape: shape.to_vec() };
    let labels = Some(config.labels.len() as u64);
    let scores = |shape: &[Option<u64>]| ["logits", "probabilities"].map(|name| port(name, Datatype::Fp32, shape)).to_vec();
    let mut outputs = match config.task {
        Task::Embed => vec![port("embedding", Datatype::Fp32, &[None, Some(config.dimensions.hidden as u64)])],
        Task::ClassifySequences => scores(&[None, labels]),
        Task::ClassifyTokens => scores(&[None, None, labels]),
    };
    if config.task == Task::ClassifyTokens {
        outputs.push(port("offsets", Datatype::Int64, &[None, None, Some(2)]));
    }
    outputs.push(port("tokens", Datatype::Int64, &[None]));
    let instead = ["input_ids", "attention_mask"].map(|name| port(name, Datatype::Int64, &[None, None])).to_vec();
    Signature { inputs: vec![port("text", Datatype::Bytes, &[None])], instead, outputs, longest: Some(longest), apart: false }
}

#[cfg(test)]
mod tests;
