//! An encoder whose weights are an ONNX file: the graph computes, what comes before and after it is the same as for any other.
//!
//! The graph takes `input_ids`, `attention_mask` and, where it wants them, `token_type_ids`, each `INT64` `[texts, tokens]`: what exporters of
//! Hugging Face write. What it gives is known by name and shape: vectors of tokens, which are pooled here; vectors of texts, which it has pooled
//! itself; or a classifier's scores.

use super::config::{Config, Task};
use super::folder::Pooling;
use super::heads::pooled;
use super::{Fault, Outline};
use crate::infer::model::engine::{Engine as _, Signature, Stop};
use crate::infer::model::onnxruntime::OnnxRuntime;
use crate::infer::model::source::MODEL;
use crate::infer::model::{Error, encoder};
use crate::wire::tensor::{Datatype, Port, Tensor};

/// Outputs that hold what an encoder answers, where a graph has more than one: the first that is there counts. Those of texts are pooled already.
const EMBEDDINGS: [&str; 4] = ["sentence_embedding", "embedding", "token_embeddings", "last_hidden_state"];
const SCORES: [&str; 1] = ["logits"];

/// What the graph is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    Ids,
    Mask,
    Types,
}

impl Input {
    fn of(name: &str) -> Option<Self> {
        match name {
            "input_ids" => Some(Self::Ids),
            "attention_mask" => Some(Self::Mask),
            "token_type_ids" => Some(Self::Types),
            _ => None,
        }
    }
}

/// An encoder that lacks its session and its tokenizer: the graph is found to be one for the files around it.
#[derive(Debug)]
pub struct Graph {
    outline: Outline,
    plan: Plan,
}

/// How the graph is called.
#[derive(Debug)]
struct Plan {
    /// In the graph's order.
    inputs: Vec<(String, Input)>,
    /// The place of the output that counts.
    output: usize,
    /// Whether it has numbers for each token, and not for each text.
    of_tokens: bool,
    /// Numbers of a token, or of a text.
    width: usize,
}

impl Graph {
    /// Holds what was read in the graph against the files around it.
    ///
    /// # Errors
    /// [`Fault`], in words for the operator.
    pub fn fit(graph: &Signature, files: &encoder::Files, options: &encoder::Options) -> Result<Self, Fault> {
        let outline = Outline::of(files, options)?;
        let plan = Plan::of(graph, &outline.config)?;
        if !plan.of_tokens && options.pooling.is_some() {
            return Err(wrong("its graph pools by itself: leave `pooling` out"));
        }
        Ok(Self { outline, plan })
    }

    /// What the encoder takes, as text or instead as tokens, and what it gives.
    #[must_use]
    pub fn signature(&self) -> &Signature {
        &self.outline.signature
    }

    pub(super) fn around(self, engine: OnnxRuntime) -> (Outline, Session) {
        (self.outline, Session { plan: self.plan, engine })
    }
}

impl Plan {
    fn of(graph: &Signature, config: &Config) -> Result<Self, Fault> {
        let free = |port: &Port, rank: usize| port.shape.len() == rank && port.shape[..2].iter().all(Option::is_none);
        let input = |port: &Port| match Input::of(&port.name) {
            Some(input) if port.datatype == Datatype::Int64 && free(port, 2) => Ok((port.name.clone(), input)),
            Some(_) => Err(wrong(&format!("its input {:?} is not INT64 of any number of texts and tokens", port.name))),
            None => Err(wrong(&format!("its input {:?} is not one of input_ids, attention_mask and token_type_ids", port.name))),
        };
        let inputs = graph.inputs.iter().map(input).collect::<Result<Vec<_>, _>>()?;
        let has = |wanted| inputs.iter().any(|(_, input)| *input == wanted);
        if !has(Input::Ids) {
            return Err(wrong("it has no input `input_ids`"));
        }
        if !has(Input::Mask) {
            return Err(wrong("it has no input `attention_mask`, so that what it says of a text would depend on the texts beside it"));
        }
        let names: &[&str] = if config.task == Task::Embed { &EMBEDDINGS } else { &SCORES };
        let named = || names.iter().find_map(|name| graph.outputs.iter().position(|port| port.name == *name));
        let output = if graph.outputs.len() == 1 { Some(0) } else { named() };
        let output = output.ok_or_else(|| wrong(&format!("none of its outputs is called {}", names.join(" or "))))?;
        let port = &graph.outputs[output];
        let told = |what: String| wrong(&format!("its output {:?} {what}", port.name));
        let of_tokens = match (port.shape.len(), config.task) {
            (2, Task::Embed | Task::ClassifySequences) => false,
            (3, Task::Embed | Task::ClassifyTokens) => true,
            (rank, _) => return Err(told(format!("has {rank} dimensions, which is not what the model's task answers"))),
        };
        // Whoever exported with a batch of one has a graph that takes no other.
        let free = port.shape[..port.shape.len() - 1].iter().all(Option::is_none);
        if port.datatype != Datatype::Fp32 || !free {
            return Err(told("is not FP32 of any number of texts".to_owned()));
        }
        let width = if config.task == Task::Embed { config.dimensions.hidden } else { config.labels.len() };
        // Some exporters leave the last dimension free. What comes is looked at.
        if port.shape[port.shape.len() - 1].is_some_and(|told| told != width as u64) {
            return Err(told(format!("is not {width} wide, as config.json has it")));
        }
        Ok(Self { inputs, output, of_tokens, width })
    }

    /// The shape of its answer to these texts.
    fn shape(&self, texts: &[&[u32]]) -> Vec<u64> {
        let (texts, longest, width) = (texts.len() as u64, longest(texts) as u64, self.width as u64);
        if self.of_tokens { vec![texts, longest, width] } else { vec![texts, width] }
    }

    /// The numbers of each text.
    fn rows(&self, task: Task, (pooling, normalize): (Pooling, bool), texts: &[&[u32]], answer: &Tensor) -> Result<Vec<Vec<f32>>, Error> {
        let shape = self.shape(texts);
        if answer.shape != shape {
            return Err(Error::ModelBrokeItsContract("its graph answers in another shape than an encoder of its size"));
        }
        let each = usize::try_from(shape[1..].iter().product::<u64>()).unwrap_or(usize::MAX).max(1);
        let numbers: Vec<f32> = answer.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let rows = numbers.chunks_exact(each).zip(texts);
        Ok(rows
            .map(|(row, text)| match (task, self.of_tokens) {
                (Task::Embed, true) => pooled(&row[..text.len() * self.width], self.width, pooling, normalize),
                // One vector is its own mean.
                (Task::Embed, false) => pooled(row, self.width, Pooling::Mean, normalize),
                (Task::ClassifyTokens, _) => row[..text.len() * self.width].to_vec(),
                (Task::ClassifySequences, _) => row.to_vec(),
            })
            .collect())
    }
}

/// The graph, loaded.
pub(super) struct Session {
    plan: Plan,
    engine: OnnxRuntime,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl Session {
    /// The numbers of each text, filled up to the longest with a token that the mask hides.
    pub(super) fn answer(&mut self, outline: &Outline, texts: &[&[u32]], stop: &Stop) -> Result<Vec<Vec<f32>>, Error> {
        let longest = longest(texts);
        let shape = vec![texts.len() as u64, longest as u64];
        let tensor = |(name, input): &(String, Input)| {
            let mut data = Vec::with_capacity(texts.len() * longest * size_of::<i64>());
            for text in texts {
                let mut write = |number: i64| data.extend_from_slice(&number.to_le_bytes());
                for place in 0..longest {
                    let token = text.get(place);
                    write(match input {
                        Input::Ids => token.copied().unwrap_or(outline.config.dimensions.padding).into(),
                        Input::Mask => token.is_some().into(),
                        Input::Types => 0,
                    });
                }
            }
            Tensor { name: name.clone(), datatype: Datatype::Int64, shape: shape.clone(), data: data.into() }
        };
        let inputs: Vec<Tensor> = self.plan.inputs.iter().map(tensor).collect();
        // What has another shape is not copied.
        let bytes = self.plan.shape(texts).iter().try_fold(size_of::<f32>() as u64, |bytes, length| bytes.checked_mul(*length));
        self.engine.hold_to(bytes.and_then(|bytes| usize::try_from(bytes).ok()).ok_or(Error::ModelAnsweredTooMuch)?);
        let answers = self.engine.run(&inputs, &[self.plan.output], stop)?;
        let [answer] = &answers[..] else { return Err(Error::ModelBrokeItsContract("an output is missing")) };
        self.plan.rows(outline.config.task, outline.pooling, texts, answer)
    }
}

fn longest(texts: &[&[u32]]) -> usize {
    texts.iter().map(|text| text.len()).max().unwrap_or(0)
}

fn wrong(what: &str) -> Fault {
    Fault::Graph(format!("{MODEL}: {what}"))
}

#[cfg(test)]
mod tests;
