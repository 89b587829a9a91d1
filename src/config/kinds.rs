//! What a model's file may say by the kind of the model: a limit that is never looked at is a gate that stands open, and is not taken.

use toml::de::{DeTable, DeValue};

use crate::authorize::Serves;
use crate::mistake::{Mistake, keys};

/// Kinds of models.
struct Kinds {
    /// Which they are.
    has: fn(Serves) -> bool,
    /// What they are called.
    called: &'static str,
}

const LANGUAGE: Kinds = Kinds {
    has: |serves| matches!(serves, Serves::OpenAi | Serves::Anthropic),
    called: "upstreams of protocol \"openai\" or \"anthropic\"",
};
const TENSORS: Kinds = Kinds {
    has: |serves| matches!(serves, Serves::Oip | Serves::Embeddings | Serves::OipHttp),
    called: "models in this machine and upstreams of protocol \"oip\"",
};
const HERE: Kinds = Kinds { has: |serves| matches!(serves, Serves::Oip | Serves::Embeddings), called: "models in this machine" };
const ELSEWHERE: Kinds = Kinds { has: |serves| !(HERE.has)(serves), called: "upstreams" };
const NOT_RAW: Kinds = Kinds { has: |serves| serves != Serves::Raw, called: "all models but upstreams of protocol \"raw\"" };

/// Keys that not every kind of model can hold to, each with those that can.
const KEYS: &[(&str, &Kinds)] = &[
    ("check.strict", &NOT_RAW),
    ("check.stored", &LANGUAGE),
    ("check.max_tokens", &LANGUAGE),
    ("check.max_batch", &TENSORS),
    ("check.max_length", &TENSORS),
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
    ("detect.vectors", &HERE),
    ("detect.cohorts", &NOT_RAW),
    ("answer.top", &TENSORS),
    ("answer.decimals", &NOT_RAW),
    ("answer.logits", &TENSORS),
    ("answer.stream", &ELSEWHERE),
];

/// Every key of the file `text` that a model which serves so cannot hold to.
pub(super) fn mistakes(text: &str, serves: Serves) -> Vec<Mistake> {
    let Ok(document) = DeTable::parse(text) else { return Vec::new() };
    let beyond = KEYS.iter().filter(|(_, kinds)| !(kinds.has)(serves));
    let told = beyond.filter_map(|(name, kinds)| {
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

    const ALL: [Serves; 6] = [Serves::OpenAi, Serves::Anthropic, Serves::Oip, Serves::Embeddings, Serves::OipHttp, Serves::Raw];

    #[test]
    fn a_key_is_told_where_the_model_cannot_hold_to_it() {
        let of = |text: &str| ALL.map(|serves| mistakes(text, serves).len());
        for (text, told) in [
            ("[check]\nmax_tokens = 3\n", [0, 0, 1, 1, 1, 1]),
            ("[check]\nstrict = true\n", [0, 0, 0, 0, 0, 1]),
            ("[check]\nrange = { x = [0.0, 1.0] }\nmax_batch = 3\n", [2, 2, 0, 0, 0, 2]),
            ("[detect.leak]\nmode = \"enforce\"\n", [0, 0, 1, 1, 1, 1]),
            ("[detect]\nexposure.bits = 0.5\n", [1, 1, 0, 0, 0, 1]),
            ("[answer]\ntop = 3\ndecimals = 2\n", [1, 1, 0, 0, 0, 2]),
            ("answer.stream = true\n", [0, 0, 1, 1, 0, 0]),
            ("[check]\nmax_body = \"1MiB\"\nmax_depth = 3\n[detect]\nmode = \"enforce\"\n", [0; 6]),
            ("[check]\nstrict = false\nnan = []\nrange = {}\n[detect.leak]\nmode = \"off\"\n", [0; 6]),
        ] {
            assert_eq!(of(text), told, "{text}");
        }
        let text = "[check]\n\nmax_tokens = 3\n";
        let [mistake] = &mistakes(text, Serves::Oip)[..] else { panic!("one mistake") };
        assert!(mistake.located(std::path::Path::new("m"), text).starts_with("m:3:1: check.max_tokens "), "{mistake}");
        assert!(mistake.what.contains("openai"));
    }
}
