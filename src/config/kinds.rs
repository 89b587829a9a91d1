//! What a model's file may say by the kind of the model: a limit that is never looked at is a gate that stands open, and is not taken.

use toml::de::{DeTable, DeValue};

use crate::authorize::Serves;
use crate::check::Contract;
use crate::mistake::{Mistake, keys};
use crate::wire::openai::embeddings::VECTORS;

/// What decides of which kinds a model is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Of {
    serves: Serves,
    /// It takes texts, whose tokens it counts.
    texts: bool,
    /// Sentence embeddings are among its outputs.
    embeds: bool,
}

impl Of {
    pub(super) fn new(serves: Serves, contract: Option<&Contract>) -> Self {
        let texts = contract.is_some_and(|contract| contract.longest.is_some());
        let embeds = contract.is_some_and(|contract| contract.outputs.iter().any(|output| output.name == VECTORS));
        Self { serves, texts, embeds }
    }

    fn is_language(self) -> bool {
        matches!(self.serves, Serves::OpenAi | Serves::Anthropic)
    }

    fn is_here(self) -> bool {
        matches!(self.serves, Serves::Oip | Serves::Embeddings)
    }
}

/// Kinds of models.
struct Kinds {
    /// Which they are.
    has: fn(Of) -> bool,
    /// What they are called.
    called: &'static str,
}

const LANGUAGE: Kinds = Kinds { has: Of::is_language, called: "upstreams of protocol \"openai\" or \"anthropic\"" };
const TENSORS: Kinds = Kinds {
    has: |of| of.is_here() || matches!(of.serves, Serves::OipHttp | Serves::OipGrpc),
    called: "models in this machine and upstreams of protocol \"oip\" or \"oip-grpc\"",
};
const TENSORS_ELSEWHERE: Kinds =
    Kinds { has: |of| matches!(of.serves, Serves::OipHttp | Serves::OipGrpc), called: "upstreams of protocol \"oip\" or \"oip-grpc\"" };
const HERE: Kinds = Kinds { has: Of::is_here, called: "models in this machine" };
/// An answer over gRPC is one message, which is read whole.
const STREAMED: Kinds =
    Kinds { has: |of| !of.is_here() && of.serves != Serves::OipGrpc, called: "upstreams of every protocol but \"oip-grpc\"" };
const EMBEDDING: Kinds = Kinds { has: |of| of.embeds, called: "models in this machine that embed sentences" };
const COUNTING: Kinds = Kinds {
    has: |of| of.is_language() || of.texts || of.embeds,
    called: "models whose tokens are counted: language models, and those in this machine that take texts",
};
const NOT_RAW: Kinds = Kinds { has: |of| of.serves != Serves::Raw, called: "all models but upstreams of protocol \"raw\"" };

/// Keys that not every kind of model can hold to, each with those that can.
const KEYS: &[(&str, &Kinds)] = &[
    ("check.strict", &NOT_RAW),
    ("check.stored", &LANGUAGE),
    ("check.max_tokens", &LANGUAGE),
    ("check.max_batch", &TENSORS),
    ("check.max_length", &TENSORS),
    ("check.inputs", &TENSORS_ELSEWHERE),
    ("check.range", &TENSORS),
    ("check.nan", &TENSORS),
    ("explain", &HERE),
    ("detect.parameters", &LANGUAGE),
    ("detect.bias", &LANGUAGE),
    ("detect.distillation", &LANGUAGE),
    ("detect.probing", &LANGUAGE),
    ("detect.leak", &LANGUAGE),
    ("detect.alike", &LANGUAGE),
    ("detect.precision", &TENSORS),
    ("detect.ladder", &TENSORS),
    ("detect.exposure", &TENSORS),
    ("detect.vectors", &EMBEDDING),
    ("detect.cohorts", &NOT_RAW),
    ("answer.top", &TENSORS),
    ("answer.decimals", &NOT_RAW),
    ("answer.logits", &TENSORS),
    ("answer.stream", &STREAMED),
];

/// The same of each table of limits.
const LIMITS: &[(&str, &Kinds)] = &[("tokens", &COUNTING), ("quota.tokens", &COUNTING)];

/// Every key of the file `text` that such a model cannot hold to.
pub(super) fn mistakes(text: &str, of: Of) -> Vec<Mistake> {
    let Ok(document) = DeTable::parse(text) else { return Vec::new() };
    let tiers = keys::find(document.get_ref(), "budget.tier").and_then(|(_, tiers)| tiers.get_ref().as_table());
    let tiers = tiers.into_iter().flat_map(|tiers| tiers.keys().map(|tier| format!("budget.tier.{}", tier.get_ref())));
    let tables: Vec<String> = ["budget.default", "budget.model"].map(String::from).into_iter().chain(tiers).collect();
    let limits = tables.iter().flat_map(|table| LIMITS.iter().map(move |(name, kinds)| (format!("{table}.{name}"), *kinds)));
    let keys = KEYS.iter().map(|(name, kinds)| ((*name).to_owned(), *kinds)).chain(limits);
    let told = keys.filter(|(_, kinds)| !(kinds.has)(of)).filter_map(|(name, kinds)| {
        let name = &*name;
        let (at, value) = keys::find(document.get_ref(), name)?;
        asks(value.get_ref()).then(|| Mistake::at(at, format!("{name} would have no effect on this model: it is for {}", kinds.called)))
    });
    told.collect()
}

/// Whether a value asks for anything: what is off, or holds nothing, is kept by every model.
fn asks(value: &DeValue<'_>) -> bool {
    match value {
        DeValue::Boolean(on) => *on,
        DeValue::Array(items) => !items.is_empty(),
        DeValue::Table(table) => {
            let off = keys::find(table, "mode").is_some_and(|(_, mode)| mode.get_ref().as_str() == Some("off"));
            !off && !table.is_empty()
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Serves; 7] =
        [Serves::OpenAi, Serves::Anthropic, Serves::Oip, Serves::Embeddings, Serves::OipHttp, Serves::OipGrpc, Serves::Raw];

    fn of(serves: Serves) -> Of {
        Of { serves, texts: serves == Serves::Embeddings, embeds: serves == Serves::Embeddings }
    }

    #[test]
    fn a_key_is_told_where_the_model_cannot_hold_to_it() {
        let told_of = |text: &str| ALL.map(|serves| mistakes(text, of(serves)).len());
        for (text, told) in [
            ("[check]\nmax_tokens = 3\n", [0, 0, 1, 1, 1, 1, 1]),
            ("[check]\nstrict = true\n", [0, 0, 0, 0, 0, 0, 1]),
            ("[check]\nrange = { x = [0.0, 1.0] }\nmax_batch = 3\n", [2, 2, 0, 0, 0, 0, 2]),
            ("[check]\ninputs = [\"x\"]\n", [1, 1, 1, 1, 0, 0, 1]),
            ("[detect.leak]\nmode = \"enforce\"\n", [0, 0, 1, 1, 1, 1, 1]),
            ("[detect.vectors]\nmode = \"enforce\"\n", [1, 1, 1, 0, 1, 1, 1]),
            ("[detect]\nexposure.bits = 0.5\n", [1, 1, 0, 0, 0, 0, 1]),
            ("[answer]\ntop = 3\ndecimals = 2\n", [1, 1, 0, 0, 0, 0, 2]),
            ("answer.stream = true\n", [0, 0, 1, 1, 0, 1, 0]),
            ("[check]\nmax_body = \"1MiB\"\nmax_depth = 3\n[detect]\nmode = \"enforce\"\n", [0; 7]),
            ("[check]\nstrict = false\nnan = []\nrange = {}\n[detect.leak]\nmode = \"off\"\n", [0; 7]),
            ("[budget]\ndefault = { requests = { rate = \"1/s\" }, tokens = { rate = \"1/s\" } }\n", [0, 0, 1, 0, 1, 1, 1]),
            ("[budget.tier.gold.quota]\ntokens = \"5/day\"\n[budget.model]\ntokens = { rate = \"1/s\" }\n", [0, 0, 2, 0, 2, 2, 2]),
        ] {
            assert_eq!(told_of(text), told, "{text}");
        }
        let texts = Of { texts: true, ..of(Serves::Oip) };
        assert_eq!(mistakes("[budget]\ndefault.tokens = { rate = \"1/s\" }\n", texts).len(), 0);
        let text = "[check]\n\nmax_tokens = 3\n";
        let [mistake] = &mistakes(text, of(Serves::Oip))[..] else { panic!("one mistake") };
        assert!(mistake.located(std::path::Path::new("m"), text).starts_with("m:3:1: check.max_tokens "), "{mistake}");
        assert!(mistake.what.contains("openai"));
    }
}
