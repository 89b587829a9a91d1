//! What a model says of itself: the front matter of its `README.md` (a model card), and its `config.json`. Claims, not facts.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::bounded;
use crate::wire::json;

/// The longest card or configuration that is read, in bytes.
const MAX_CARD: usize = 1 << 20;

/// The most values of one key.
const MAX_VALUES: usize = 256;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Card {
    /// Keys of the front matter, each with its values.
    said: BTreeMap<String, Vec<String>>,
    /// `config.json`.
    config: Value,
}

impl Card {
    /// Reads what there is in a folder.
    pub(super) fn of(folder: &Path) -> Self {
        let read = |name: &str| bounded(&folder.join(name), MAX_CARD).ok();
        let said = read("README.md").and_then(|bytes| String::from_utf8(bytes).ok()).map(|text| front_matter(&text)).unwrap_or_default();
        let config = read("config.json").and_then(|bytes| json::parse(&bytes, &json::Limits::for_body(bytes.len())).ok());
        Self { said, config: config.unwrap_or_default() }
    }

    /// All values of a key of the front matter.
    pub(super) fn all(&self, key: &str) -> &[String] {
        self.said.get(key).map_or(&[], Vec::as_slice)
    }

    /// The first value of a key of the front matter.
    pub(super) fn first(&self, key: &str) -> Option<&str> {
        self.all(key).first().map(String::as_str)
    }

    /// A text of `config.json`.
    pub(super) fn config(&self, key: &str) -> Option<&str> {
        match self.config.get(key)? {
            Value::Array(values) => values.first()?.as_str(),
            value => value.as_str(),
        }
    }
}

/// The top level of a YAML front matter, as model cards write it: `key: value`, `key: [a, b]`, and lists below a key. What is nested deeper
/// is left out.
fn front_matter(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut said: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut lines = text.trim_start_matches('\u{feff}').lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return said;
    }
    let mut current: Option<String> = None;
    for line in lines {
        if line.trim_end() == "---" {
            return said;
        }
        let unindented = line.trim_start();
        if let Some(value) = unindented.strip_prefix("- ").and_then(scalar) {
            let Some(values) = current.as_ref().and_then(|key| said.get_mut(key)) else { continue };
            if values.len() < MAX_VALUES && !value.contains(": ") {
                values.push(value);
            }
        } else if let Some((key, value)) = line.split_once(':').filter(|(key, _)| !key.starts_with([' ', '\t', '#', '-'])) {
            let values = match value.trim().strip_prefix('[').and_then(|value| value.strip_suffix(']')) {
                Some(inline) => inline.split(',').filter_map(scalar).take(MAX_VALUES).collect(),
                None => scalar(value).into_iter().collect(),
            };
            said.insert(key.trim().to_owned(), values);
            current = Some(key.trim().to_owned());
        } else if line.starts_with([' ', '\t']) && unindented.contains(':') {
            current = None;
        }
    }
    // It never ended, so it was none.
    BTreeMap::new()
}

/// A value without its quotes and its comment; none for nothing.
fn scalar(value: &str) -> Option<String> {
    let value = value.split(" #").next().unwrap_or_default().trim();
    let value = value.trim_matches(|c| c == '"' || c == '\'');
    (!value.is_empty() && !value.starts_with(['|', '>', '{', '&'])).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_card_is_read_at_its_top_level() {
        let text = "---\nlicense: apache-2.0 # ours\nlanguage: [en, 'de']\nbase_model: \"a/b\"\ndatasets:\n- s2orc\n- c4\ntags:\n  - x\n\
                    model-index:\n- name: m\n  results:\n    - task: t\npipeline_tag: sentence-similarity\n---\n# Not: this\n";
        let said = front_matter(text);
        let all = |key: &str| said.get(key).cloned().unwrap_or_default().join(",");
        assert_eq!((all("license"), all("language"), all("base_model")), ("apache-2.0".into(), "en,de".into(), "a/b".into()));
        assert_eq!((all("datasets"), all("tags"), all("pipeline_tag")), ("s2orc,c4".into(), "x".into(), "sentence-similarity".into()));
        assert!(!said.contains_key("# Not"));
    }

    #[test]
    fn text_without_a_front_matter_or_with_half_of_one_says_nothing() {
        assert!(front_matter("# Title\nlicense: mit\n").is_empty());
        assert!(front_matter("---\nlicense: mit\n").is_empty());
    }
}
