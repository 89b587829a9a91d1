//! `config.json`: which architecture, how large, for which task. It is read with a closed schema and runs nothing: a member that names code
//! is refused, and so is one that nobody here knows, because it may change what is computed.

use serde_json::{Map, Value};

use super::Fault;
use super::architecture::{self, Architecture, Dimensions};
use crate::wire::json::{self, Limits};

/// The file's name.
pub(super) const FILE: &str = "config.json";

/// The largest of the small JSON files beside the weights, in bytes. Ten thousand labels take 500 KiB.
pub const MAX_CONFIG: usize = 1 << 20;

/// The most tokens of a vocabulary. The largest of today's encoders has 256,000.
pub const MAX_VOCABULARY: usize = 1 << 20;

/// The widest encoder, between and within its layers.
pub const MAX_WIDTH: usize = 1 << 15;

/// The most layers.
pub const MAX_LAYERS: usize = 128;

/// The most positions: attention takes the square of it.
pub const MAX_POSITIONS: usize = 8192;

/// The most labels of a classifier.
pub const MAX_LABELS: usize = 10_000;

/// Members that name code to run, or weights stored otherwise than they are computed with.
const REFUSED: [&str; 5] = ["auto_map", "custom_pipelines", "trust_remote_code", "quantization_config", "pruned_heads"];

/// Members of every configuration that decide nothing here: training, generation, and where the file came from.
const INERT: [&str; 32] = [
    "_name_or_path",
    "_num_labels",
    "attn_implementation",
    "bos_token_id",
    "cls_token_id",
    "decoder_start_token_id",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "gradient_checkpointing",
    "initializer_range",
    "label2id",
    "language",
    "mask_token_id",
    "max_length",
    "min_length",
    "num_beams",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "prefix",
    "return_dict",
    "sep_token_id",
    "task_specific_params",
    "tie_weights_",
    "tie_word_embeddings",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_bfloat16",
    "use_cache",
];

/// What stands between two linear layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activation {
    /// Gaussian error linear unit, exact.
    Gelu,
    /// The same by its approximation with the hyperbolic tangent.
    GeluTanh,
    /// Rectified linear unit.
    Relu,
    /// Hyperbolic tangent.
    Tanh,
}

/// What the model answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// One vector a text.
    Embed,
    /// One set of scores a text.
    ClassifySequences,
    /// One set of scores a token.
    ClassifyTokens,
}

/// How scores become probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probabilities {
    /// One of the labels holds.
    Softmax,
    /// Each label holds or not.
    Sigmoid,
}

/// What `config.json` says.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) architecture: &'static Architecture,
    pub(super) dimensions: Dimensions,
    pub(super) task: Task,
    /// The names of the labels; without a classifier there are none.
    pub(super) labels: Vec<String>,
    pub(super) probabilities: Probabilities,
}

impl Config {
    /// Reads the file. `sentences` tells that the folder is one of sentence-transformers: the encoder is then all that is used of the model.
    pub(super) fn read(bytes: &[u8], sentences: bool) -> Result<Self, Fault> {
        let mut members = Members::read(bytes)?;
        for key in REFUSED {
            match members.take(key) {
                // Empty is how it is written where there is nothing.
                None | Some(Value::Null | Value::Bool(false)) => {}
                Some(Value::Object(members)) if members.is_empty() => {}
                Some(_) => return Err(wrong(key, "is refused: it names code to run, or weights that are not stored as they are")),
            }
        }
        let kind = members.text("model_type")?.ok_or_else(|| wrong("model_type", "is missing"))?;
        let known = architecture::ALL.into_iter().find(|known| known.types.contains(&kind.as_str()));
        let architecture = known.ok_or_else(|| {
            let known: Vec<_> = architecture::ALL.iter().flat_map(|known| known.types).copied().collect();
            Fault::Config(format!("`model_type` {} is not one that is run: {}", shown(&kind), known.join(", ")))
        })?;
        let dimensions = (architecture.read)(&mut members)?;
        bounded(&dimensions)?;
        let task = task(&mut members, architecture, sentences)?;
        let mut labels = labels(&mut members)?;
        let problem = members.text("problem_type")?;
        let probabilities = match problem.as_deref() {
            Some("single_label_classification") => Probabilities::Softmax,
            Some("multi_label_classification") => Probabilities::Sigmoid,
            Some(_) => return Err(wrong("problem_type", "is not single_label_classification or multi_label_classification")),
            // A single score has no other to be weighed against.
            None if labels.len() == 1 => Probabilities::Sigmoid,
            None => Probabilities::Softmax,
        };
        if task == Task::Embed {
            labels.clear();
        }
        members.must_be_false("is_encoder_decoder")?;
        members.inert(&INERT);
        members.inert(&["chunk_size_feed_forward"]);
        members.end()?;
        Ok(Self { architecture, dimensions, task, labels, probabilities })
    }
}

fn task(members: &mut Members, architecture: &Architecture, sentences: bool) -> Result<Task, Fault> {
    let class = match members.take("architectures") {
        Some(Value::Array(mut classes)) if classes.len() == 1 => classes.pop(),
        None | Some(Value::Null) => None,
        Some(_) => return Err(wrong("architectures", "is not a list of one name")),
    };
    let class = match (class, sentences) {
        (_, true) => return Ok(Task::Embed),
        (Some(Value::String(class)), false) => class,
        (_, false) => return Err(wrong("architectures", "is missing: it says what the model is for")),
    };
    match architecture.classes.iter().find_map(|prefix| class.strip_prefix(prefix)) {
        Some("Model" | "ForMaskedLM" | "ForPreTraining") => Ok(Task::Embed),
        Some("ForSequenceClassification") => Ok(Task::ClassifySequences),
        Some("ForTokenClassification") => Ok(Task::ClassifyTokens),
        _ => Err(Fault::Config(format!("`architectures`: {} is for a task that is not served", shown(&class)))),
    }
}

/// The labels in their order, from `id2label` or `num_labels`; without either there are two, as the configuration's owner has it.
fn labels(members: &mut Members) -> Result<Vec<String>, Fault> {
    let count = members.optional_size("num_labels")?;
    let too_many = || wrong("id2label", "has too many labels");
    let names = match members.take("id2label") {
        None | Some(Value::Null) => {
            let count = count.unwrap_or(2);
            if count > MAX_LABELS {
                return Err(too_many());
            }
            return Ok((0..count).map(|at| format!("LABEL_{at}")).collect());
        }
        Some(Value::Object(names)) => names,
        Some(_) => return Err(wrong("id2label", "is not an object")),
    };
    if names.len() > MAX_LABELS {
        return Err(too_many());
    }
    let name = |at: usize| names.get(&at.to_string()).and_then(Value::as_str).map(str::to_owned);
    let found = (0..names.len()).map(name).collect::<Option<Vec<_>>>();
    found
        .filter(|found| !found.is_empty() && count.is_none_or(|count| count == found.len()))
        .ok_or_else(|| wrong("id2label", "does not name the labels from 0 on, or not as many as `num_labels`"))
}

fn bounded(dimensions: &Dimensions) -> Result<(), Fault> {
    let Dimensions { vocabulary, hidden, layers, heads, intermediate, positions, first_position, types, .. } = *dimensions;
    let within = vocabulary <= MAX_VOCABULARY
        && hidden <= MAX_WIDTH
        && intermediate <= MAX_WIDTH
        && layers <= MAX_LAYERS
        && positions <= MAX_POSITIONS
        && first_position < positions
        && types <= MAX_WIDTH
        && (dimensions.padding as usize) < vocabulary;
    if !within {
        return Err(Fault::Config("the encoder is larger than any that is run, or its padding token is outside of it".to_owned()));
    }
    if heads > hidden || !hidden.is_multiple_of(heads) {
        return Err(Fault::Config("its width is not divided by its number of heads".to_owned()));
    }
    Ok(())
}

/// A text of the file as a message may hold it.
fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(64).collect::<String>())
}

fn wrong(key: &str, what: &str) -> Fault {
    Fault::Config(format!("`{key}` {what}"))
}

/// The members of `config.json` that nobody has taken yet.
#[derive(Debug)]
pub(super) struct Members {
    left: Map<String, Value>,
    padding_was_told: bool,
}

impl Members {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Fault> {
        match parse(FILE, bytes)? {
            Value::Object(left) => Ok(Self { left, padding_was_told: false }),
            _ => Err(Fault::Config("it is not an object".to_owned())),
        }
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.left.remove(key)
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, Fault> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(wrong(key, "is not a text")),
        }
    }

    fn optional_size(&mut self, key: &str) -> Result<Option<usize>, Fault> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64().and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0) {
                Some(size) => Ok(Some(size)),
                None => Err(wrong(key, "is not a number from 1 on")),
            },
        }
    }

    /// A number from 1 on, which must be there.
    pub(super) fn size(&mut self, key: &str) -> Result<usize, Fault> {
        self.optional_size(key)?.ok_or_else(|| wrong(key, "is missing"))
    }

    /// A token's number.
    pub(super) fn token(&mut self, key: &str, default: u32) -> Result<u32, Fault> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => {
                self.padding_was_told = true;
                value.as_u64().and_then(|token| u32::try_from(token).ok()).ok_or_else(|| wrong(key, "is not a token's number"))
            }
        }
    }

    /// Whether the file names the padding token.
    pub(super) fn padding_was_told(&self) -> bool {
        self.padding_was_told
    }

    /// A small positive number.
    pub(super) fn epsilon(&mut self, key: &str, default: f64) -> Result<f64, Fault> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_f64().filter(|epsilon| (0.0..=0.1).contains(epsilon)).ok_or_else(|| wrong(key, "is not from 0 to 0.1")),
        }
    }

    /// An activation; the exact Gaussian error unit where none is named.
    pub(super) fn activation(&mut self, key: &str) -> Result<Activation, Fault> {
        match self.text(key)?.as_deref() {
            None | Some("gelu") => Ok(Activation::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
            Some("relu") => Ok(Activation::Relu),
            Some(_) => Err(wrong(key, "is not gelu, gelu_new, gelu_pytorch_tanh or relu")),
        }
    }

    /// A text that may only say what is computed anyway.
    pub(super) fn must_be(&mut self, key: &str, only: &str) -> Result<(), Fault> {
        match self.text(key)? {
            Some(text) if text != only => Err(Fault::Config(format!("`{key}` is not {only:?}, the only one that is computed"))),
            _ => Ok(()),
        }
    }

    /// A switch that may only be off.
    pub(super) fn must_be_false(&mut self, key: &str) -> Result<(), Fault> {
        match self.take(key) {
            None | Some(Value::Null | Value::Bool(false)) => Ok(()),
            Some(_) => Err(wrong(key, "is not false")),
        }
    }

    /// Members that may stand there and decide nothing.
    pub(super) fn inert(&mut self, keys: &[&str]) {
        self.left.retain(|key, _| !keys.contains(&key.as_str()));
    }

    fn end(self) -> Result<(), Fault> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(key) => Err(Fault::Config(format!("{} is not known, and may change what is computed", shown(key)))),
        }
    }
}

/// One of the small JSON files beside the weights.
pub(super) fn parse(name: &'static str, bytes: &[u8]) -> Result<Value, Fault> {
    if bytes.len() > MAX_CONFIG {
        return Err(Fault::TooLarge(name, MAX_CONFIG));
    }
    json::parse(bytes, &Limits::for_body(MAX_CONFIG)).map_err(|error| Fault::Json(name, error))
}

#[cfg(test)]
mod tests;
