//! The names of the tensors that may be sent to a model which says nothing of its inputs itself.
//!
//! Rules for tensors go by name, and not every server does: some read one tensor whatever it is called, and pass over those behind it.
//! There a tensor of another name passes the rules for the one that it is read as, and one more shows detectors rows that no model sees.
//! So where any rule goes by name, no other name than those of the policy may be sent.

use std::collections::BTreeSet;
use std::ops::Range;

use super::Config;
use crate::mistake::Mistake;
use crate::mode::Mode;

/// The inputs that rules of a later stop go by.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByName<'a> {
    /// What becomes of a request that breaks those rules.
    pub mode: Mode,
    /// The names, each with the place of its rule in the model's file.
    pub inputs: &'a [(&'a str, Range<usize>)],
}

impl Config {
    /// Whether requests with tensors of other names are refused, where the model has no contract.
    #[must_use]
    pub fn holds_names(&self, later: ByName<'_>) -> bool {
        self.names(later).is_some_and(|(mode, _)| mode == Mode::Enforce)
    }

    /// The names that may be sent, and what becomes of a request with others; nothing where all may be. Names are held as strictly as the
    /// strictest rule that goes by them.
    pub(super) fn names(&self, later: ByName<'_>) -> Option<(Mode, BTreeSet<String>)> {
        let said = self.inputs.iter().flat_map(|inputs| inputs.get_ref()).map(|name| name.get_ref().clone());
        let own: BTreeSet<String> = said.chain(self.mentioned().map(|(name, _)| name.to_owned())).collect();
        let modes = [(!own.is_empty()).then_some(self.mode), (!later.inputs.is_empty()).then_some(later.mode)];
        let mode = [Mode::Enforce, Mode::Shadow].into_iter().find(|mode| modes.contains(&Some(*mode)))?;
        Some((mode, own.into_iter().chain(later.inputs.iter().map(|(name, _)| (*name).to_owned())).collect()))
    }

    /// What is wrong with the list of names.
    pub(super) fn mistakes_in_names(&self, later: ByName<'_>) -> Vec<Mistake> {
        let Some(inputs) = &self.inputs else { return Vec::new() };
        let (span, inputs) = (inputs.span(), inputs.get_ref());
        if inputs.is_empty() {
            return vec![Mistake::at(span, "no tensor may be sent; name one or more, or leave it out")];
        }
        let twice = inputs.iter().enumerate().filter(|(at, name)| inputs[..*at].iter().any(|other| other.get_ref() == name.get_ref()));
        let twice = twice.map(|(_, name)| Mistake::at(name.span(), format!("{:?} stands twice", name.get_ref())));
        let mentioned = self.mentioned().chain(later.inputs.iter().map(|(name, at)| (*name, at.clone())));
        let left_out = mentioned.filter(|(name, _)| !inputs.iter().any(|input| input.get_ref() == name));
        let left_out = left_out.map(|(name, at)| Mistake::at(at, format!("check.inputs lets no tensor {name:?} be sent; add it there")));
        twice.chain(left_out).collect()
    }

    /// The tensors that other keys of the table name, each with its place.
    fn mentioned(&self) -> impl Iterator<Item = (&str, Range<usize>)> {
        let ranges = self.range.iter().map(|(name, range)| (&**name, range.span()));
        ranges.chain(self.nan.iter().map(|name| (&**name.get_ref(), name.span())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    fn names(text: &str, later: ByName<'_>) -> Option<(Mode, Vec<String>)> {
        config(text).names(later).map(|(mode, names)| (mode, names.into_iter().collect()))
    }

    #[test]
    fn the_names_that_may_be_sent_are_those_of_the_policy_as_strictly_as_its_strictest_rule() {
        let (input, none) = ([("input", 0..0)], ByName::default());
        let grid = |mode| ByName { mode, inputs: &input };
        let (enforce, shadow) = (Mode::Enforce, Mode::Shadow);
        for (text, later, expected) in [
            ("", none, None),
            ("max_batch = 3\nrange = {}\nnan = []", none, None),
            ("inputs = [\"b\", \"a\"]", none, Some((enforce, vec!["a", "b"]))),
            ("range = { a = [0.0, 1.0] }\nnan = [\"b\"]", none, Some((enforce, vec!["a", "b"]))),
            ("inputs = [\"a\", \"b\"]\nrange = { a = [0.0, 1.0] }", none, Some((enforce, vec!["a", "b"]))),
            ("", grid(enforce), Some((enforce, vec!["input"]))),
            ("", grid(shadow), Some((shadow, vec!["input"]))),
            ("", grid(Mode::Off), None),
            ("mode = \"shadow\"\ninputs = [\"input\"]", none, Some((shadow, vec!["input"]))),
            ("mode = \"off\"\ninputs = [\"input\"]", none, None),
            ("mode = \"off\"\ninputs = [\"input\", \"mask\"]", grid(enforce), Some((enforce, vec!["input", "mask"]))),
            ("mode = \"shadow\"\nrange = { a = [0.0, 1.0] }", grid(enforce), Some((enforce, vec!["a", "input"]))),
            ("range = { a = [0.0, 1.0] }", grid(shadow), Some((enforce, vec!["a", "input"]))),
        ] {
            let expected = expected.map(|(mode, names)| (mode, names.into_iter().map(str::to_owned).collect()));
            assert_eq!(names(text, later), expected, "{text} {later:?}");
            assert_eq!(config(text).holds_names(later), expected.is_some_and(|(mode, _)| mode == enforce), "{text} {later:?}");
        }
    }

    #[test]
    fn a_list_that_is_empty_names_one_twice_or_lacks_what_a_rule_goes_by_is_a_mistake_with_its_place() {
        let text = "inputs = [\"a\", \"b\", \"a\"]\nrange = { b = [0.0, 1.0], c = [0.0, 2.0] }\nnan = [\"a\", \"d\"]";
        let grids = [("a", 0..6), ("e", 1..2)];
        let mistakes = config(text).mistakes_in_names(ByName { mode: Mode::Off, inputs: &grids });
        let told: Vec<_> = mistakes.iter().map(|mistake| &text[mistake.span.clone().unwrap()]).collect();
        assert_eq!(told, ["\"a\"", "[0.0, 2.0]", "\"d\"", "n"]);
        assert_eq!(mistakes[0].span, Some(20..23));
        assert_eq!(config("inputs = []").mistakes_in_names(ByName::default()).len(), 1);
        assert!(
            config(text.split_once('\n').unwrap().1).mistakes_in_names(ByName { mode: Mode::Off, inputs: &grids }).is_empty(),
            "there is no list"
        );
    }
}
