//! A look across callers, every quarter of an hour: who works together, and what they asked taken together.
//!
//! No request waits for it: of each caller a copy is made under its lock, and all else is done with those.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Weak};

use serde_json::Value;

use super::{Caller, Callers, Known, Rules};
use crate::budget::gate::locked;
use crate::clock::Moment;
use crate::detect::Mode;
use crate::detect::cohorts::Kind;
use crate::detect::language::bias::{self, Union};
use crate::detect::language::cohorts::{MOST_MEMBERS, Member, SPANS, cohorts};
use crate::detect::language::habits::span;
use crate::detect::language::together::{Found, Past, Sign, Together};
use crate::trail::Who;

/// Callers of a campaign that are named, those who gave most.
const NAMED: usize = 32;

/// What their names take at most in the security log, whose lines are cut past a length: nobody has his campaign cut by names that take much.
const NAMED_BYTES: usize = 6 << 10;

/// Spans after which what goes on is told again: a day.
const AGAIN: u32 = SPANS as u32;

/// Distinct tokens that a caller may bias whatever others of its cohort did: more than honest lists have.
const LIST: u64 = 64;

/// What several callers did together.
#[derive(Debug)]
pub(in crate::detect) struct Campaign {
    /// Which family tells of it, by which rule and in which mode.
    pub(in crate::detect) family: &'static str,
    pub(in crate::detect) rule: &'static str,
    pub(in crate::detect) mode: Mode,
    pub(in crate::detect) model: Arc<str>,
    /// The name of the cohort, and how many callers it has.
    pub(in crate::detect) cohort: (String, usize),
    /// Whose evidence it is, as far as they are named, and how many they are.
    pub(in crate::detect) by: (Vec<Arc<Who>>, usize),
    pub(in crate::detect) evidence: Vec<(&'static str, Value)>,
}

/// A caller as of the look.
struct Looked {
    who: Arc<Who>,
    address: IpAddr,
    rules: Rules,
    member: Member,
    /// How much there is against it: who is looked at where not all can be.
    odd: f64,
    state: Weak<Caller>,
    share: Option<u64>,
}

impl Callers {
    /// Looks at all callers of all models who asked within the day.
    pub(in crate::detect) fn look(&self, now: Moment) -> Vec<Campaign> {
        let span = span(now);
        self.looked(span).into_iter().flat_map(|(model, callers)| of_model(&model, callers, span)).collect()
    }

    fn looked(&self, span: u32) -> BTreeMap<Arc<str>, Vec<Looked>> {
        let mut models: BTreeMap<Arc<str>, Vec<Looked>> = BTreeMap::new();
        for ((_, model), state) in self.callers.each() {
            let looked = locked(&state.known).looked(span, Arc::downgrade(&state));
            models.entry(model).or_default().extend(looked);
        }
        models
    }
}

impl Known {
    fn looked(&self, span: u32, state: Weak<Caller>) -> Option<Looked> {
        let habits = self.habits.as_ref()?;
        let tokens = self.biases.as_ref().map_or(0.0, |biases| biases.tokens());
        Some(Looked {
            who: habits.who.clone(),
            address: habits.address,
            rules: habits.rules,
            member: habits.member(span)?,
            odd: self.window.signs().elicitation.max(self.probing).max(tokens / bias::BENIGN),
            state,
            share: None,
        })
    }

    fn past(&self) -> Past {
        Past { window: self.window.clone(), probing: self.probing, biases: self.biases.clone() }
    }
}

fn of_model(model: &Arc<str>, mut callers: Vec<Looked>, span: u32) -> Vec<Campaign> {
    // Those first against whom there is most: whoever wants to be left out by the number of others must have them do what he does.
    callers.sort_by(|one, other| {
        let most = other.odd.total_cmp(&one.odd).then(other.member.prompts.cmp(&one.member.prompts));
        most.then_with(|| one.who.caller.cmp(&other.who.caller))
    });
    let most = callers.len().min(MOST_MEMBERS);
    let mut found = Vec::new();
    for (name, group) in groups(&callers[..most]) {
        let mut together = Together::default();
        let mut members = Vec::with_capacity(group.len());
        let mut budgets: HashMap<Arc<str>, (Union, Vec<usize>)> = HashMap::new();
        for at in group {
            let Some(state) = callers[at].state.upgrade() else { continue };
            let past = locked(&state.known).past();
            if let Some(biases) = past.biases.as_ref().filter(|_| callers[at].rules.budget.is_some()) {
                // Of one tenant alone: by what and when he asks, anybody can come into the cohort of another.
                let (union, by) = budgets.entry(callers[at].who.tenant.clone()).or_default();
                union.add(biases);
                by.push(at);
            }
            together.add(past);
            members.push(at);
        }
        budgets.into_values().for_each(|(union, by)| share(&mut callers, &union, &by));
        found.extend(together.found().into_iter().filter_map(|found| campaign(model, &callers, (&name, &members), found, span)));
    }
    for looked in &callers {
        if let Some(state) = looked.state.upgrade() {
            locked(&state.known).share = looked.share;
        }
    }
    found
}

/// Callers that are joined by something, by its name.
fn groups(callers: &[Looked]) -> Vec<(String, Vec<usize>)> {
    let mut named: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, looked) in callers.iter().enumerate() {
        looked.rules.kinds.of(&looked.who, looked.address).into_iter().for_each(|(_, name)| named.entry(name).or_default().push(at));
    }
    let alike: Vec<usize> = (0..callers.len()).filter(|at| callers[*at].rules.kinds.contains(Kind::Alike)).collect();
    if let Some(first) = alike.first() {
        let members: Vec<Member> = alike.iter().map(|at| callers[*at].member.clone()).collect();
        let mut joined: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (at, cohort) in cohorts(&members, callers[*first].rules.alike).into_iter().enumerate() {
            cohort.into_iter().for_each(|cohort| joined.entry(cohort).or_default().push(alike[at]));
        }
        for group in joined.into_values() {
            // Of the same callers, the same name at every look.
            let first = group.iter().map(|at| &callers[*at].who.caller).min();
            named.insert(format!("alike:{}", first.map_or("", |caller| caller)), group);
        }
    }
    named.into_iter().filter(|(_, group)| group.len() > 1).collect()
}

/// Past the budget of one caller, each of those who biased has an even part of it, by all the cohorts it is of the least.
fn share(callers: &mut [Looked], union: &Union, by: &[usize]) {
    let tokens = union.tokens().round();
    for at in by {
        let looked = &mut callers[*at];
        let Some(budget) = looked.rules.budget.filter(|budget| by.len() > 1 && tokens > *budget as f64) else { continue };
        let part = (budget / by.len() as u64).max(LIST);
        looked.share = Some(looked.share.unwrap_or(part).min(part));
    }
}

/// What is to be told, unless most of those who are part of it were told of already.
fn campaign(model: &Arc<str>, callers: &[Looked], (name, members): (&str, &[usize]), found: Found, span: u32) -> Option<Campaign> {
    let by: Vec<&Looked> = found.by.iter().map(|at| &callers[members[*at]]).collect();
    let rules = by.first()?.rules;
    let (family, rule, mode) = match found.sign {
        Sign::Distillation => ("distillation", "distillation.cohort", rules.distillation),
        Sign::Probing => ("probing", "probing.cohort", rules.probing),
        Sign::Bias => ("bias", "bias.cohort", rules.bias),
    };
    if mode == Mode::Off {
        return None;
    }
    let mut known = 0;
    for state in by.iter().filter_map(|looked| looked.state.upgrade()) {
        if let Some(habits) = &mut locked(&state.known).habits {
            let told = &mut habits.told[found.sign as usize];
            known += usize::from(*told > 0 && span.saturating_sub(*told) < AGAIN);
            *told = span;
        }
    }
    (2 * known <= by.len()).then(|| Campaign {
        family,
        rule,
        mode,
        model: model.clone(),
        cohort: (name.to_owned(), members.len()),
        by: (named(&by), by.len()),
        evidence: found.evidence,
    })
}

/// The first callers, as many as may be named.
fn named(by: &[&Looked]) -> Vec<Arc<Who>> {
    let mut bytes = 0;
    let fits = |who: &&Arc<Who>| {
        // A character that is not ASCII, or none of text, is written as one or two escapes of six.
        bytes += who.caller.chars().map(|c| if matches!(c, ' '..='~') { 2 } else { 6 * c.len_utf16() }).sum::<usize>();
        bytes <= NAMED_BYTES
    };
    by.iter().take(NAMED).map(|looked| &looked.who).take_while(fits).cloned().collect()
}

#[cfg(test)]
mod tests;
