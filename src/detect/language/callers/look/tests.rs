use std::time::{Duration, Instant};

use super::super::tests::rules;
use super::*;
use crate::detect::language::habits::{FIRST, SPAN};
use crate::wire::{Asked, Said};

const SPANS_ASKED: u64 = 40;

struct Case {
    callers: Callers,
    start: Moment,
    address: IpAddr,
    told: Vec<&'static str>,
}

impl Case {
    fn new() -> Self {
        // At the start of a span, and of an hour.
        let start = Moment { mono: Instant::now(), wall: std::time::UNIX_EPOCH + Duration::from_secs(1_800_000_000) };
        Self { callers: Callers::new(start.mono), start, address: [127, 0, 0, 1].into(), told: Vec::new() }
    }

    fn at(&self, span: u64) -> Moment {
        self.start.after(Duration::from_secs(span * SPAN))
    }

    fn ask(&mut self, (caller, tenant): (&str, &str), said: Said, rules: Rules, at: Moment) -> Vec<&'static str> {
        let who = Arc::new(Who { caller: caller.into(), tenant: tenant.into(), tier: "".into(), method: "api_key" });
        let asked = Asked { max_tokens: Some(1), said: Box::new(said), ..Asked::default() };
        let (found, _) = self.callers.weigh((&who, self.address), "chat".into(), &asked, rules, at);
        let rules: Vec<_> = found.into_iter().filter_map(|(_, _, weighed)| Some(weighed.finding?.rule)).collect();
        self.told.extend(&rules);
        rules
    }

    fn groups(&self, span: u64) -> Vec<(String, usize)> {
        let looked = self.callers.looked(super::span(self.at(span))).remove("chat").unwrap_or_default();
        groups(&looked).into_iter().map(|(name, group)| (name, group.len())).collect()
    }
}

fn random(n: u64) -> u64 {
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}

const WORDS: [&str; 40] = [
    "river", "budget", "engine", "theorem", "violin", "harbour", "protein", "ledger", "orbit", "clause", "granite", "tariff", "cipher",
    "lattice", "fever", "canal", "parish", "quartz", "ballot", "enzyme", "saddle", "anchor", "prairie", "turbine", "sonnet", "mortgage",
    "glacier", "compass", "vaccine", "estuary", "syntax", "plough", "verdict", "magnet", "orchard", "neuron", "treaty", "furnace",
    "meadow", "archive",
];

fn words(seed: u64, count: u64) -> String {
    (0..count).map(|n| WORDS[random(seed * 1_000 + n + 1) as usize % WORDS.len()]).collect::<Vec<_>>().join(" ")
}

/// What a thief has a list of: one of 101 templates, that ask for graded reasoning.
fn graded(n: u64) -> Said {
    let prompt = format!("{}: think step by step, then grade it by the rubric. \"{n}\"", words(7_000 + n % 101, 30));
    Said { prompt, temperature: Some(1.0), ..Said::default() }
}

/// One of many strangers, each of whom talks of his own matters when he likes.
fn stranger(case: &mut Case, who: u64) {
    for span in (0..SPANS_ASKED).filter(|span| random(who << 32 | span).is_multiple_of(3)) {
        for n in 0..4 {
            let prompt = format!("{} what do you make of {}?", words(who, 12), words(who << 20 | span << 8 | n, 4));
            case.ask((&format!("api_key:stranger{who}x"), "other"), Said { prompt, ..Said::default() }, rules(), case.at(span));
        }
    }
}

/// Deals the thief's queue out to his keys in turn, `spans` of it busy.
fn campaign_of(case: &mut Case, keys: u64, from: u64) {
    let mut n = 0;
    for span in (from..from + SPANS_ASKED).filter(|span| random(99 << 32 | span).is_multiple_of(2)) {
        for _ in 0..3 * keys {
            let key = n % keys;
            let at = case.at(span).after(Duration::from_millis(n % 100 * 1_000 + random(n) % 5_000));
            case.ask((&format!("api_key:k{key}x"), &format!("t{}", key % 4)), graded(n), rules(), at);
            n += 1;
        }
    }
}

#[test]
fn sixteen_keys_in_turn_each_below_the_bound_are_told_as_one_campaign_and_no_stranger_with_them() {
    let mut case = Case::new();
    (0..12).for_each(|who| stranger(&mut case, who));
    campaign_of(&mut case, 16, 0);
    assert!(case.told.is_empty(), "alone nobody is told of: {:?}", case.told);
    let campaigns = case.callers.look(case.at(SPANS_ASKED));
    assert_eq!(campaigns.len(), 1, "{campaigns:?}");
    let Campaign { rule, cohort, by, evidence, .. } = &campaigns[0];
    assert_eq!((*rule, cohort.1, by.1), ("distillation.cohort", 16, 16));
    assert_eq!(cohort.0, "alike:api_key:k0x");
    assert!(by.0.len() == 16 && by.0.iter().all(|who| who.caller.starts_with("api_key:k")), "{by:?}");
    assert!(evidence.iter().any(|(name, value)| *name == "elicitation" && value.as_f64() == Some(1.0)), "{evidence:?}");
    // Not again as long as it lasts, until a day later.
    assert!(case.callers.look(case.at(SPANS_ASKED)).is_empty());
    campaign_of(&mut case, 16, u64::from(AGAIN) + 1);
    assert_eq!(case.callers.look(case.at(u64::from(AGAIN) + SPANS_ASKED)).len(), 1);
}

#[test]
fn a_team_that_does_one_job_at_office_hours_is_a_cohort_and_nothing_is_told_of_it() {
    let mut case = Case::new();
    (0..12).for_each(|who| stranger(&mut case, who));
    for key in 0..24 {
        for span in (4..36).filter(|span| (8..24).contains(&(span % 28))) {
            for n in 0..3 + random(key << 32 | span) % 2 {
                let prompt = format!(
                    "Let's think step by step: summarise this customer's complaint in one sentence: \"{}\"",
                    words(key << 16 | span << 4 | n, 20)
                );
                let said = Said { prompt, temperature: Some(0.0), ..Said::default() };
                case.ask(
                    (&format!("api_key:desk{key}x"), "acme"),
                    said,
                    rules(),
                    case.at(span).after(Duration::from_secs(random(key ^ n << 8) % 900)),
                );
            }
        }
    }
    assert!(case.told.is_empty(), "{:?}", case.told);
    let groups = case.groups(SPANS_ASKED);
    assert!(groups.iter().any(|(name, count)| name == "alike:api_key:desk0x" && *count == 24), "{groups:?}");
    assert!(case.callers.look(case.at(SPANS_ASKED)).is_empty());
}

#[test]
fn keys_of_one_family_that_bias_together_are_told_and_share_one_budget_and_other_tenants_do_not() {
    let mut case = Case::new();
    let rules = Rules { budget: Some(100), ..rules() };
    let bias = |token: u64| Said { prompt: "x".into(), bias: vec![(token.to_string(), 100.0)], ..Said::default() };
    for key in 0..16 {
        (0..12).for_each(|n| drop(case.ask((&format!("api_key:k-{key}"), "acme"), bias(12 * key + n), rules, case.at(0))));
    }
    (0..12).for_each(|n| drop(case.ask(("api_key:k-99", "other"), bias(n), rules, case.at(0))));
    assert!(case.told.is_empty());
    let campaigns = case.callers.look(case.at(0));
    assert_eq!((campaigns.len(), campaigns[0].rule, campaigns[0].by.1), (1, "bias.cohort", 16));
    assert_eq!(campaigns[0].cohort.0, "family:acme/k");
    // 192 tokens of all are past the budget of one, and each is left its even part of it, or a list. Of so many the count errs by a few.
    let used = |case: &mut Case, caller: (&str, &str), most: u64| {
        let refused = |rules: Vec<&str>| rules.iter().any(|rule| ["bias.share", "bias.budget"].contains(rule));
        12 + (12..most).filter(|n| !refused(case.ask(caller, bias(5_000 + n), rules, case.at(0)))).count() as u64
    };
    let shared = used(&mut case, ("api_key:k-3", "acme"), 80);
    assert!(shared.abs_diff(LIST) <= 10, "{shared}");
    let alone = used(&mut case, ("api_key:k-99", "other"), 200);
    assert!(alone.abs_diff(100) <= 12, "{alone}");
    assert!(case.told.contains(&"bias.share") && case.told.contains(&"bias.budget"));
    // Once they are no cohort, each has its own again.
    let alone = Rules { kinds: vec![Kind::Alike].into(), ..rules };
    for key in 0..16 {
        case.ask((&format!("api_key:k-{key}"), "acme"), Said { prompt: "y".into(), ..Said::default() }, alone, case.at(1));
    }
    case.callers.look(case.at(1));
    assert!(case.ask(("api_key:k-3", "acme"), bias(5_012), alone, case.at(1)).is_empty());
}

#[test]
fn in_one_cohort_with_another_tenant_nobody_loses_of_his_budget() {
    let rules = Rules { budget: Some(100), kinds: vec![Kind::Address].into(), ..rules() };
    let bias = |token: u64| Said { prompt: token.to_string(), bias: vec![(token.to_string(), 1.0)], ..Said::default() };
    let refused = |tenants: [&str; 2]| {
        let mut case = Case { address: [203, 0, 113, 1].into(), ..Case::new() };
        for (at, tenant) in tenants.into_iter().enumerate() {
            let caller = format!("api_key:{at}");
            (0..75).for_each(|n| drop(case.ask((&caller, tenant), bias(100 * at as u64 + n), rules, case.at(0))));
        }
        case.callers.look(case.at(0));
        assert_eq!(case.groups(0), [("address:203.0.113.0/24".to_owned(), 2)]);
        case.ask(("api_key:0", tenants[0]), bias(1), rules, case.at(0))
    };
    assert_eq!(refused(["acme", "acme"]), ["bias.share"]);
    assert!(refused(["acme", "other"]).is_empty());
}

/// Callers of whom `odd` says how much is against them; those of the tenant `acme` probe.
fn looked(names: impl Iterator<Item = (u64, &'static str, f64)>) -> (Vec<Arc<Caller>>, Vec<Looked>) {
    let rules = Rules { kinds: vec![Kind::Tenant].into(), ..rules() };
    let (origin, member) = (Instant::now(), Member { sum: [0.0; 64], prompts: 100, rates: [1; SPANS] });
    let one = |(name, tenant, odd): (u64, &str, f64)| {
        let who = Arc::new(Who { caller: format!("api_key:{name}").into(), tenant: tenant.into(), tier: "".into(), method: "api_key" });
        let known = Known { probing: if tenant.is_empty() { 0.0 } else { 0.4 }, ..Known::default() };
        let state = Arc::new(Caller { digests: [0; 2], known: known.into(), seen: 0.into(), origin });
        let address = [127, 0, 0, 1].into();
        let looked = Looked { who, address, rules, member: member.clone(), odd, state: Arc::downgrade(&state), share: None };
        (state, looked)
    };
    names.map(one).unzip()
}

#[test]
fn so_many_callers_are_looked_at_and_of_one_more_it_is_the_least_odd_that_is_not() {
    let told = |others: usize| {
        let others = (0..others as u64).map(|name| (1_000 + name, "", 1.0));
        let (_held, looked) = looked(others.chain((0..8).map(|name| (name, "acme", 0.4))));
        of_model(&"chat".into(), looked, 1).first().map(|campaign| campaign.cohort.1)
    };
    assert_eq!(told(MOST_MEMBERS - 8), Some(8));
    assert_eq!(told(MOST_MEMBERS - 7), Some(7));
    let (_held, looked) =
        looked((0..MOST_MEMBERS as u64 + 50).map(|name| (1_000 + name, "", 0.0)).chain((0..8).map(|name| (name, "acme", 0.4))));
    assert_eq!(
        of_model(&"chat".into(), looked, 1).first().map(|campaign| campaign.cohort.1),
        Some(8),
        "against whom there is more come first"
    );
}

#[test]
fn of_a_campaign_so_many_are_named_and_all_are_counted() {
    let named = |callers: u64| {
        let (_held, looked) = looked((0..callers).map(|name| (name, "acme", 0.4)));
        let campaign = of_model(&"chat".into(), looked, 1).remove(0);
        (campaign.by.0.len(), campaign.by.1)
    };
    assert_eq!(named(NAMED as u64), (NAMED, NAMED));
    assert_eq!(named(NAMED as u64 + 1), (NAMED, NAMED + 1));
    // Of names that take much, as many as fit.
    let who = |length: usize| Who { caller: "é".repeat(length).into(), tenant: "".into(), tier: "".into(), method: "jwt" };
    let (_held, mut looked) = looked((0..3).map(|name| (name, "acme", 0.4)));
    let mut fit = |length: usize| {
        looked.iter_mut().for_each(|looked| looked.who = Arc::new(who(length)));
        super::named(&looked.iter().collect::<Vec<_>>()).len()
    };
    assert_eq!((fit(NAMED_BYTES / 12), fit(NAMED_BYTES / 12 + 1)), (2, 1));
}

#[test]
fn of_who_asks_a_few_times_nothing_is_kept() {
    let mut case = Case::new();
    (0..FIRST).for_each(|_| drop(case.ask(("api_key:a", ""), graded(1), rules(), case.at(0))));
    assert!(case.callers.looked(super::span(case.at(0))).values().all(Vec::is_empty));
    case.ask(("api_key:a", ""), graded(1), rules(), case.at(0));
    assert_eq!(case.callers.looked(super::span(case.at(0)))["chat"].len(), 1);
    let none = Rules { kinds: Vec::new().into(), ..rules() };
    case.ask(("api_key:a", ""), graded(1), none, case.at(0));
    assert!(case.callers.looked(super::span(case.at(0))).values().all(Vec::is_empty), "where callers are joined by nothing");
}
