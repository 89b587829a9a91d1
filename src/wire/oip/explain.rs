//! What a caller asks of an explanation, in the `parameters` of an inference request. Values there are scalars, over HTTP and over gRPC.

use serde_json::{Map, Value};

use super::read::NAME_MAX;
use crate::wire::shape::Shape;

/// The one method that is served: Shapley values by permutations, each walked forward and back.
pub const METHOD: &str = "permutation_shap";

/// What the names of the tensors begin with that an explanation adds to an answer.
pub const PREFIX: &str = "explain.";

/// The tensor of the base value.
pub const BASE: &str = "explain.base";

/// What the names of the tensors of attributions begin with; the input's own name follows.
pub const VALUES: &str = "explain.values.";

const ASKED: &str = "explain";
const SAMPLES: &str = "explain_samples";
const OUTPUT: &str = "explain_output";

/// An explanation that is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explain {
    /// `explain_samples`: how many permutations, at least 1.
    pub samples: Option<u64>,
    /// `explain_output`: which output is explained.
    pub output: Option<String>,
}

impl Explain {
    /// What the parameters ask for; none where they ask for no explanation.
    ///
    /// # Errors
    /// A parameter that begins with `explain` and does not hold to its shape, or that nobody knows: what is misspelt would cost the caller dearly.
    pub fn read(parameters: &Map<String, Value>) -> Result<Option<Self>, Shape> {
        let wrong = |key: &str, rule, text| Err(Shape::new(format!("/parameters/{key}"), rule, text));
        let mut asked = None;
        let mut explain = Self::default();
        for (key, value) in parameters.iter().filter(|(key, _)| key.starts_with(ASKED)) {
            match key.as_str() {
                ASKED if value == METHOD => asked = Some(()),
                ASKED => return wrong(ASKED, "enum", "must be \"permutation_shap\""),
                SAMPLES => match value.as_u64().filter(|samples| *samples > 0) {
                    Some(samples) => explain.samples = Some(samples),
                    None => return wrong(SAMPLES, "range", "must be an integer of at least 1"),
                },
                OUTPUT => match value.as_str().filter(|name| (1..=NAME_MAX).contains(&name.len())) {
                    Some(name) => explain.output = Some(name.to_owned()),
                    None => return wrong(OUTPUT, "type", "must be the name of an output"),
                },
                _ => return Err(Shape::new("/parameters", "unknown", "a parameter that begins with `explain` is not known")),
            }
        }
        if asked.is_none() && explain != Self::default() {
            return wrong(ASKED, "required", "must be given where its other parameters are");
        }
        Ok(asked.map(|()| explain))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(parameters: Value) -> Result<Option<Explain>, &'static str> {
        Explain::read(parameters.as_object().unwrap()).map_err(|shape| shape.rule)
    }

    #[test]
    fn an_explanation_is_asked_for_by_scalars() {
        assert_eq!(read(json!({"binary_data_output": true})), Ok(None));
        assert_eq!(read(json!({"explain": "permutation_shap"})), Ok(Some(Explain::default())));
        let asked = read(json!({"explain": "permutation_shap", "explain_samples": 1, "explain_output": "p"}));
        assert_eq!(asked, Ok(Some(Explain { samples: Some(1), output: Some("p".into()) })));
    }

    #[test]
    fn what_is_misspelt_or_out_of_range_is_refused() {
        let long = "x".repeat(NAME_MAX + 1);
        for (parameters, rule) in [
            (json!({"explain": true}), "enum"),
            (json!({"explain": "kernel_shap"}), "enum"),
            (json!({"explain_samples": 1}), "required"),
            (json!({"explain_output": "p"}), "required"),
            (json!({"explain": METHOD, "explain_samples": 0}), "range"),
            (json!({"explain": METHOD, "explain_samples": -1}), "range"),
            (json!({"explain": METHOD, "explain_samples": 1.5}), "range"),
            (json!({"explain": METHOD, "explain_samples": "1"}), "range"),
            (json!({"explain": METHOD, "explain_output": 1}), "type"),
            (json!({"explain": METHOD, "explain_output": ""}), "type"),
            (json!({"explain": METHOD, "explain_output": long}), "type"),
            (json!({"explain": METHOD, "explain_sample": 1}), "unknown"),
        ] {
            assert_eq!(read(parameters.clone()), Err(rule), "{parameters}");
        }
        assert!(read(json!({"explain": METHOD, "explain_output": "x".repeat(NAME_MAX)})).is_ok());
    }
}
