//! What requests to language models may ask for that gives the model itself away (Carlini et al., 2024, arXiv 2403.06634):
//! log-probabilities of many alternatives, large bias maps, and both at once, from which full logits are computed.
//!
//! These rules know no caller and keep no state: one request breaks them or does not.

use serde::Deserialize;
use toml::Spanned;

use super::{Act, Care, Family, Finding, Mode, Weighed, decimals};
use crate::check::Request;
use crate::mistake::Mistake;

/// Alternatives a token whose log-probabilities may be asked for.
pub const DEFAULT_TOP_LOGPROBS: u64 = 5;

/// Entries that a bias map may have.
pub const DEFAULT_LOGIT_BIAS: usize = 16;

/// Decimals of log-probabilities.
pub const DEFAULT_DECIMALS: u8 = 2;

/// `[detect.parameters]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Its mode; the mode of `[detect]` where it is left out.
    pub mode: Option<Mode>,
    /// The most alternatives a token; 5 where it is left out.
    pub top_logprobs: Option<u64>,
    /// The most entries of a bias map; 16 where it is left out.
    pub logit_bias: Option<usize>,
    /// Whether log-probabilities may be answered to a request with a bias map.
    pub logprobs_with_logit_bias: bool,
    /// Decimals to which log-probabilities are rounded, at most 15; 2 where it is left out.
    pub decimals: Option<Spanned<u8>>,
}

/// The rules in force.
#[derive(Debug)]
pub(super) struct Parameters {
    top_logprobs: u64,
    logit_bias: usize,
    both: bool,
    decimals: u8,
}

impl Config {
    pub(super) fn compile(&self, mistakes: &mut Vec<Mistake>) -> Parameters {
        Parameters {
            top_logprobs: self.top_logprobs.unwrap_or(DEFAULT_TOP_LOGPROBS),
            logit_bias: self.logit_bias.unwrap_or(DEFAULT_LOGIT_BIAS),
            both: self.logprobs_with_logit_bias,
            decimals: decimals(self.decimals.as_ref(), mistakes).unwrap_or(DEFAULT_DECIMALS),
        }
    }
}

impl Family for Parameters {
    fn name(&self) -> &'static str {
        "parameters"
    }

    fn weigh(&self, request: &Request) -> Weighed {
        let Request::Language(asked) = request else { return Weighed::default() };
        let logprobs = asked.logprobs.filter(|alternatives| *alternatives > self.top_logprobs);
        let finding = if let Some(alternatives) = logprobs {
            Some(refused("parameters.top_logprobs", alternatives, self.top_logprobs))
        } else if asked.logit_bias > self.logit_bias {
            Some(refused("parameters.logit_bias", asked.logit_bias as u64, self.logit_bias as u64))
        } else if asked.logprobs.is_some() && asked.logit_bias > 0 && !self.both {
            let evidence = vec![("logit_bias", (asked.logit_bias as u64).into())];
            Some(Finding { rule: "parameters.logprobs_with_logit_bias", evidence, act: Act::Degrade })
        } else {
            None
        };
        let without_logprobs = matches!(&finding, Some(Finding { act: Act::Degrade, .. }));
        let care = Care { decimals: asked.logprobs.map(|_| self.decimals), without_logprobs, ..Care::default() };
        Weighed { care, finding }
    }
}

fn refused(rule: &'static str, asked: u64, most: u64) -> Finding {
    Finding { rule, evidence: vec![("asked", asked.into()), ("most", most.into())], act: Act::RefuseParameters }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Asked;

    fn weighed(logprobs: Option<u64>, logit_bias: usize) -> Weighed {
        let family = Config::default().compile(&mut Vec::new());
        family.weigh(&Request::Language(Asked { logprobs, logit_bias, ..Asked::default() }))
    }

    fn rule(weighed: &Weighed) -> Option<&'static str> {
        weighed.finding.as_ref().map(|finding| finding.rule)
    }

    #[test]
    fn each_cap_may_be_reached_and_not_passed() {
        assert_eq!(rule(&weighed(Some(5), 0)), None);
        assert_eq!(rule(&weighed(Some(6), 0)), Some("parameters.top_logprobs"));
        assert_eq!(rule(&weighed(None, 16)), None);
        assert_eq!(rule(&weighed(None, 17)), Some("parameters.logit_bias"));
    }

    #[test]
    fn log_probabilities_are_left_out_beside_a_bias_map_and_rounded_otherwise() {
        let both = weighed(Some(0), 1);
        assert_eq!(rule(&both), Some("parameters.logprobs_with_logit_bias"));
        assert!(both.care.without_logprobs);
        assert_eq!(weighed(Some(3), 0).care, Care { decimals: Some(2), ..Care::default() });
        assert_eq!(weighed(None, 0).care, Care::default());
        let allowed = Config { logprobs_with_logit_bias: true, ..Config::default() }.compile(&mut Vec::new());
        let asked = Asked { logprobs: Some(1), logit_bias: 1, ..Asked::default() };
        assert!(allowed.weigh(&Request::Language(asked)).finding.is_none());
    }
}
