//! What engines say of inputs that they do not take. Callers read it, so of what a worker says only these words pass, and none of its own.

/// Instead of anything else that a worker says.
const OTHERWISE: &str = "the model's engine does not take these inputs";

/// Every text of an engine's.
const KNOWN: [&str; 18] = [
    "a BYTES element is longer than the data",
    "a dimension is too long",
    "a text has more tokens than the model takes",
    "a text has no token",
    "a text has padding in it",
    "a text is longer than 256 KiB",
    "a text is not UTF-8",
    "a token is not in the model's vocabulary",
    "`attention_mask` is not ones and then zeros",
    "`attention_mask` is of another shape than `input_ids`",
    "`input_ids` and `attention_mask` are not as many INT64 as their shape says",
    "`input_ids` has two dimensions",
    "`text` has one dimension",
    "`text` is not as many BYTES as its shape says",
    "an input has more or less data than its shape says",
    "more than 2048 texts",
    "the model takes either `text`, or `input_ids` and `attention_mask`",
    "the model's strings are UTF-8 without NUL",
];

/// What a caller is told where a worker says `why`.
pub(super) fn told(why: &str) -> &'static str {
    KNOWN.iter().find(|known| **known == why).unwrap_or(&OTHERWISE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts that an engine's source gives for inputs that it does not take.
    fn said(source: &str) -> Vec<&str> {
        let texts = ["CallerSentOtherInputs(\"", " other(\""].into_iter().flat_map(|before| source.split(before).skip(1));
        texts.filter_map(|after| after.split('"').next()).collect()
    }

    #[test]
    fn every_text_of_an_engines_passes_and_no_other() {
        let sources = [include_str!("onnxruntime.rs"), include_str!("encoder/mod.rs"), include_str!("encoder/text.rs")];
        let mut found: Vec<&str> = sources.into_iter().flat_map(said).filter(|text| *text != "the model does not embed").collect();
        found.sort_unstable();
        found.dedup();
        let mut known = KNOWN.to_vec();
        known.sort_unstable();
        assert_eq!(found, known);
        assert!(found.iter().all(|text| told(text) == *text));
        assert_eq!((told("<script>"), told("")), (OTHERWISE, OTHERWISE));
    }
}
