//! What the policy says of budgets: the `[budget]` table of a model's file, and that of the gateway's, and what they come to.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use serde::Deserialize;
use toml::Spanned;

use super::rate::Measure;
use crate::mistake::Mistake;
use crate::mode::Mode;
use crate::unit::Rate;

/// Requests a caller may send to a model of which the policy says nothing.
pub const DEFAULT_REQUESTS: Rate = Rate { count: 10, per: Duration::from_secs(1) };

/// How many of them at once.
pub const DEFAULT_BURST: u32 = 50;

/// Requests of a caller that may be in flight to a model of which the policy says nothing.
pub const DEFAULT_IN_FLIGHT: u32 = 64;

/// Requests a caller may send about the gateway itself, for lists of models, receipts and health: a receipt for every answer of a busy model.
pub const DEFAULT_SERVERWIDE: (Rate, u32) = (Rate { count: 100, per: Duration::from_secs(1) }, 500);

/// The `[budget]` table.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Each caller's own. What it leaves out is the house's default: 10 requests a second, 50 at once ([`DEFAULT_SERVERWIDE`] where no model is named), 64
    /// in flight, tokens unbounded.
    pub default: Table,
    /// All callers of the model together; what it leaves out is unbounded.
    pub model: Table,
    /// In the place of `default` for callers of a tier; what a tier leaves out stands in `default`.
    pub tier: BTreeMap<String, Table>,
}

/// One table of limits.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Table {
    /// What becomes of a request past one of these limits. A table that is not enforced replaces nothing.
    pub mode: Mode,
    /// Requests.
    pub requests: Option<Flow>,
    /// Tokens, of prompts and answers together.
    pub tokens: Option<Flow>,
    /// Requests that have not been answered to the last byte; at least 1.
    pub in_flight: Option<Spanned<u32>>,
    /// Longer quotas, beside the rates.
    pub quota: Quotas,
}

/// So many in how long.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    /// How fast it refills.
    pub rate: Rate,
    /// How many at once, at least 1; as many as the rate's count where it is left out.
    pub burst: Option<Spanned<u32>>,
}

/// Quotas for a window that begins with its first use. A restart begins new windows, unless their state is kept.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quotas {
    /// Requests.
    pub requests: Option<Rate>,
    /// Tokens.
    pub tokens: Option<Rate>,
}

/// What a model's budget comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    pub(super) default: Arc<Limits>,
    pub(super) tiers: HashMap<Box<str>, Arc<Limits>>,
    pub(super) model: Option<Arc<Limits>>,
}

impl Default for Terms {
    /// The house's defaults, for requests that name no model and models that name no budget.
    fn default() -> Self {
        Config::default().compile(&mut Vec::new())
    }
}

impl Terms {
    /// The limits of a caller of `tier`.
    pub(super) fn of_tier(&self, tier: &str) -> &Arc<Limits> {
        self.tiers.get(tier).unwrap_or(&self.default)
    }
}

/// One set of limits, in force.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) requests: Option<Measure>,
    pub(super) request_quota: Option<Measure>,
    pub(super) tokens: Option<Measure>,
    pub(super) token_quota: Option<Measure>,
    pub(super) in_flight: Option<u32>,
    /// `RateLimit-Policy`, as callers read it.
    pub(super) policy: Option<HeaderValue>,
    /// What would hold in their place, or beside them, if the tables in shadow mode were enforced; it tries nothing itself.
    pub(super) tried: Option<Box<Limits>>,
}

/// How callers read the names of limits, in the order of [`Limits::measures`].
pub(super) const NAMES: [&str; 4] = ["default", "quota", "tokens", "token-quota"];

impl Limits {
    /// Requests, their quota, tokens, their quota.
    pub(super) fn measures(&self) -> [Option<Measure>; 4] {
        [self.requests, self.request_quota, self.tokens, self.token_quota]
    }

    /// Those that `enforced` has not.
    fn beyond(self, enforced: &Self) -> Self {
        let new = |tried: Option<Measure>, enforced| tried.filter(|_| tried != enforced);
        Self {
            requests: new(self.requests, enforced.requests),
            request_quota: new(self.request_quota, enforced.request_quota),
            tokens: new(self.tokens, enforced.tokens),
            token_quota: new(self.token_quota, enforced.token_quota),
            in_flight: self.in_flight.filter(|_| self.in_flight != enforced.in_flight),
            policy: None,
            tried: None,
        }
    }

    fn bounds(&self) -> bool {
        self.in_flight.is_some() || self.measures().iter().any(Option::is_some)
    }

    /// As many tokens as there is ever room for at once.
    pub(super) fn most_tokens(&self) -> Option<u64> {
        let most = [self.tokens.map(|measure| measure.burst), self.token_quota.map(|measure| measure.count)];
        most.into_iter().flatten().min().map(u64::from)
    }
}

impl Config {
    /// Turns the table into terms; what is wrong with it is added to `mistakes`.
    pub fn compile(&self, mistakes: &mut Vec<Mistake>) -> Terms {
        self.compile_with((DEFAULT_REQUESTS, DEFAULT_BURST), mistakes)
    }

    /// The same of requests that name no model.
    pub fn compile_serverwide(&self, mistakes: &mut Vec<Mistake>) -> Terms {
        self.compile_with(DEFAULT_SERVERWIDE, mistakes)
    }

    fn compile_with(&self, (rate, burst): (Rate, u32), mistakes: &mut Vec<Mistake>) -> Terms {
        for table in [&self.default, &self.model].into_iter().chain(self.tier.values()) {
            table.judge(mistakes);
        }
        let house = Table {
            requests: Some(Flow { rate, burst: Some(Spanned::new(0..0, burst)) }),
            in_flight: Some(Spanned::new(0..0, DEFAULT_IN_FLIGHT)),
            ..Table::default()
        };
        let default = |tried| self.default.says(tried).over(&house);
        let tier = |table: &Table| Arc::new(limits(|tried| table.says(tried).over(&default(tried))));
        let tiers = self.tier.iter().map(|(name, table)| (name.as_str().into(), tier(table))).collect();
        let model = limits(|tried| self.model.says(tried));
        let bounded = model.bounds() || model.tried.is_some();
        Terms { default: Arc::new(limits(default)), tiers, model: bounded.then(|| Arc::new(model)) }
    }
}

/// The limits of a table as it is enforced, and what is tried beside them: what it would say with the tables in shadow mode.
fn limits(table: impl Fn(bool) -> Table) -> Limits {
    let enforced = table(false).limits();
    let tried = table(true).limits().beyond(&enforced);
    Limits { tried: tried.bounds().then(|| Box::new(tried)), ..enforced }
}

impl Table {
    /// This table where it is enforced, or `tried` and in shadow mode; else one that says nothing.
    fn says(&self, tried: bool) -> Self {
        match self.mode {
            Mode::Enforce => self.clone(),
            Mode::Shadow if tried => self.clone(),
            Mode::Shadow | Mode::Off => Self::default(),
        }
    }

    /// This table, and what it leaves out from `under`.
    fn over(&self, under: &Self) -> Self {
        Self {
            mode: Mode::Enforce,
            requests: self.requests.clone().or_else(|| under.requests.clone()),
            tokens: self.tokens.clone().or_else(|| under.tokens.clone()),
            in_flight: self.in_flight.clone().or_else(|| under.in_flight.clone()),
            quota: Quotas { requests: self.quota.requests.or(under.quota.requests), tokens: self.quota.tokens.or(under.quota.tokens) },
        }
    }

    fn judge(&self, mistakes: &mut Vec<Mistake>) {
        let bursts = [&self.requests, &self.tokens].into_iter().flatten().filter_map(|flow| flow.burst.as_ref());
        for burst in bursts.filter(|burst| *burst.get_ref() == 0) {
            mistakes
                .push(Mistake::at(burst.span(), "a burst of 0 lets nothing pass; say 1 or more, or leave it out for the rate's own count"));
        }
        if let Some(none) = self.in_flight.as_ref().filter(|in_flight| *in_flight.get_ref() == 0) {
            mistakes.push(Mistake::at(none.span(), "0 in flight lets nothing pass; say 1 or more"));
        }
    }

    fn limits(&self) -> Limits {
        let quota = |rate: Rate| Measure { count: rate.count, per: rate.per, burst: rate.count };
        let (requests, tokens) = (self.requests.as_ref().map(Flow::measure), self.tokens.as_ref().map(Flow::measure));
        let (request_quota, token_quota) = (self.quota.requests.map(quota), self.quota.tokens.map(quota));
        let in_flight = self.in_flight.as_ref().map(|most| (*most.get_ref()).max(1));
        let mut limits = Limits { requests, request_quota, tokens, token_quota, in_flight, policy: None, tried: None };
        limits.policy = policy(&limits);
        limits
    }
}

impl Flow {
    fn measure(&self) -> Measure {
        let burst = self.burst.as_ref().map_or(self.rate.count, |burst| *burst.get_ref()).max(1);
        Measure { count: self.rate.count, per: self.rate.per, burst }
    }
}

fn policy(limits: &Limits) -> Option<HeaderValue> {
    let items: Vec<String> = (NAMES.iter().zip(limits.measures()))
        .filter_map(|(name, measure)| {
            let measure = measure?;
            let window = whole_seconds(measure.window());
            Some(format!("\"{name}\";q={};w={window}", measure.within(window)))
        })
        .collect();
    if items.is_empty() { None } else { HeaderValue::try_from(items.join(", ")).ok() }
}

/// Seconds, rounded up.
pub(super) fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(text: &str) -> (Terms, Vec<Mistake>) {
        let mut mistakes = Vec::new();
        let terms = toml::from_str::<Config>(text).unwrap().compile(&mut mistakes);
        (terms, mistakes)
    }

    #[test]
    fn without_a_table_the_house_defaults_hold() {
        let (terms, mistakes) = compiled("");
        assert!(mistakes.is_empty());
        assert_eq!(terms.default.requests, Some(Measure { count: 10, per: Duration::from_secs(1), burst: 50 }));
        assert_eq!(terms.default.in_flight, Some(64));
        assert_eq!(terms.default.tokens, None);
        assert!(terms.model.is_none());
    }

    #[test]
    fn what_names_no_model_has_a_wider_default_and_the_same_tables() {
        let serverwide = |text: &str| toml::from_str::<Config>(text).unwrap().compile_serverwide(&mut Vec::new());
        let terms = serverwide("");
        assert_eq!(terms.default.requests, Some(Measure { count: 100, per: Duration::from_secs(1), burst: 500 }));
        assert_eq!(terms.default.in_flight, Some(64));
        let terms = serverwide("[default]\nrequests = { rate = \"1/min\", burst = 2 }");
        assert_eq!(terms.default.requests, Some(Measure { count: 1, per: Duration::from_secs(60), burst: 2 }));
    }

    #[test]
    fn a_tier_stands_in_the_place_of_default_and_inherits_what_it_leaves_out() {
        let (terms, _) = compiled(
            "[default]\nrequests = { rate = \"20/s\", burst = 40 }\nin_flight = 8\n\
             [tier.gold]\nrequests = { rate = \"200/s\" }\nquota = { requests = \"1000/day\" }\n",
        );
        let gold = terms.of_tier("gold");
        assert_eq!(gold.requests, Some(Measure { count: 200, per: Duration::from_secs(1), burst: 200 }));
        assert_eq!(gold.in_flight, Some(8));
        assert_eq!(gold.policy.as_ref().unwrap(), "\"default\";q=200;w=1, \"quota\";q=1000;w=86400");
        assert_eq!(terms.of_tier("silver").policy.as_ref().unwrap(), "\"default\";q=40;w=2");
        // A window has whole seconds, and as much passes in it as the rate gives.
        let (terms, _) = compiled("[default]\nrequests = { rate = \"1000/s\", burst = 100 }\ntokens = { rate = \"3/s\", burst = 10 }");
        assert_eq!(terms.of_tier("").policy.as_ref().unwrap(), "\"default\";q=1000;w=1, \"tokens\";q=12;w=4");
    }

    #[test]
    fn a_table_in_shadow_is_tried_beside_what_would_hold_without_it() {
        let text = |[default, gold, model]: [&str; 3]| {
            format!(
                "[default]\nmode = \"{default}\"\nrequests = {{ rate = \"20/s\" }}\ntokens = {{ rate = \"9/s\" }}\n\
                 [tier.gold]\nmode = \"{gold}\"\nrequests = {{ rate = \"200/s\" }}\n[model]\nmode = \"{model}\"\nin_flight = 5\n"
            )
        };
        let counts = |limits: &Limits| (limits.requests.map(|measure| measure.count), limits.tokens.map(|measure| measure.count));
        let house = Some(DEFAULT_REQUESTS.count);

        let (terms, _) = compiled(&text(["shadow", "enforce", "shadow"]));
        let gold = terms.of_tier("gold");
        assert_eq!((counts(gold), counts(gold.tried.as_ref().unwrap())), ((Some(200), None), (None, Some(9))));
        assert_eq!(gold.policy.as_ref().unwrap(), "\"default\";q=200;w=1");
        let default = terms.of_tier("");
        assert_eq!((counts(default), counts(default.tried.as_ref().unwrap())), ((house, None), (Some(20), Some(9))));
        // Nobody wrote how many may be in flight: the house's own is enforced, and not tried a second time.
        assert_eq!((default.in_flight, default.tried.as_ref().unwrap().in_flight), (Some(DEFAULT_IN_FLIGHT), None));
        let model = terms.model.as_ref().unwrap();
        assert_eq!((model.in_flight, model.tried.as_ref().unwrap().in_flight), (None, Some(5)));

        let (terms, _) = compiled(&text(["enforce", "shadow", "enforce"]));
        let gold = terms.of_tier("gold");
        assert_eq!((counts(gold), counts(gold.tried.as_ref().unwrap())), ((Some(20), Some(9)), (Some(200), None)));
        let (terms, _) = compiled(&text(["enforce", "off", "off"]));
        let gold = terms.of_tier("gold");
        assert_eq!((counts(gold), &gold.tried, &terms.model), ((Some(20), Some(9)), &None, &None));
        let (terms, _) = compiled(&text(["off", "enforce", "off"]));
        assert_eq!((counts(terms.of_tier("gold")), counts(terms.of_tier(""))), ((Some(200), None), (house, None)));
        // What is off is read all the same.
        assert_eq!(compiled("[model]\nmode = \"off\"\nin_flight = 0").1.len(), 1);
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        let text = "[default]\nrequests = { rate = \"20/s\", burst = 0 }\nin_flight = 0\n[tier.a]\ntokens = { rate = \"1/s\", burst = 0 }";
        let (_, mistakes) = compiled(text);
        assert_eq!(mistakes.len(), 3);
        assert!(mistakes.iter().all(|mistake| &text[mistake.span.clone().unwrap()] == "0"));
        for unknown in ["[other]", "[default]\nrate = \"1/s\"", "[default]\nrequests = { rate = \"0/s\" }", "[model]\nmode = \"on\""] {
            assert!(toml::from_str::<Config>(unknown).is_err(), "{unknown}");
        }
    }
}
