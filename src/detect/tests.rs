use std::time::Duration;

use super::known::FORGET_AFTER;
use super::*;
use crate::digest::Digest;
use crate::event::{Reader, channel};
use crate::trail::Trace;
use crate::wire::Asked;

struct Case {
    detector: Detector,
    terms: Terms,
    events: Events,
    reader: Reader,
    trail: Trail,
    now: Moment,
}

impl Case {
    fn new(text: &str) -> Self {
        let mut mistakes = Vec::new();
        let terms = toml::from_str::<Config>(text).unwrap().compile(None, None, &mut mistakes);
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let (events, reader) = channel(16);
        let now = Moment::now();
        let trace = Trace { trace_id: [0; 16], span_id: [0; 8], sampled: false };
        let address = std::net::IpAddr::from([127, 0, 0, 1]);
        let trail = Trail::new(now, address, http::Method::POST, "1.1", Digest::of(b""), trace);
        Self { detector: Detector::new(now.mono), terms, events, reader, trail, now }
    }

    fn ask(&mut self, logprobs: u64, logit_bias: usize) -> Result<Care, Error> {
        let who = Arc::new(Who { caller: "api_key:a".into(), tenant: "acme".into(), tier: "".into(), method: "api_key" });
        let request = Request::Language(Asked { logprobs: Some(logprobs), logit_bias, ..Asked::default() });
        let judged = self.detector.judge(&who, Some(&"chat".into()), &request, &self.terms, &mut self.trail, &self.events, self.now);
        judged.map(|judged| judged.care)
    }

    async fn alarms(self) -> Vec<Event> {
        let Self { events, mut reader, .. } = self;
        drop(events);
        let mut alarms = Vec::new();
        while let Some(event) = reader.next().await {
            alarms.push(event);
        }
        alarms
    }
}

fn more(event: &Event, key: &str) -> Value {
    event.more.iter().find(|(name, _)| *name == key).unwrap().1.clone()
}

#[tokio::test]
async fn in_shadow_an_alarm_is_told_and_the_answer_is_what_it_would_have_been() {
    let mut case = Case::new("");
    assert_eq!(case.ask(1, 0), Ok(Care::default()));
    assert_eq!(case.ask(6, 0), Ok(Care::default()));
    assert_eq!(case.trail.steps.len(), 1);
    assert_eq!((case.trail.steps[0].stop, case.trail.steps[0].verdict), (Stop::Detect, Verdict::Shadowed));
    let alarms = case.alarms().await;
    assert_eq!(alarms.len(), 1);
    assert_eq!((alarms[0].name, alarms[0].code), (Name::DetectAlarm, None));
    assert_eq!(more(&alarms[0], "family"), "parameters");
    assert_eq!(more(&alarms[0], "query"), 2);
    assert_eq!(more(&alarms[0], "step"), "observe");
    assert_eq!(more(&alarms[0], "evidence"), serde_json::json!({"asked": 6, "most": 5}));
}

#[tokio::test]
async fn enforced_a_request_past_a_cap_is_refused_as_by_a_limit() {
    let mut case = Case::new("mode = \"enforce\"");
    assert_eq!(case.ask(5, 0), Ok(Care { decimals: Some(2), ..Care::default() }));
    let error = case.ask(6, 0).unwrap_err();
    assert_eq!((error.code(), error.rule()), ("check.parameters", "parameters.top_logprobs"));
    assert!(case.trail.steps.is_empty());
    let alarms = case.alarms().await;
    assert_eq!((more(&alarms[0], "step"), alarms[0].code), ("refuse".into(), Some("check.parameters")));
}

#[tokio::test]
async fn enforced_log_probabilities_beside_a_bias_map_are_left_out_and_it_is_told() {
    let mut case = Case::new("mode = \"enforce\"");
    assert!(case.ask(1, 1).unwrap().without_logprobs);
    assert_eq!(more(&case.alarms().await[0], "step"), "degrade");
}

#[tokio::test]
async fn a_family_has_the_mode_of_all_unless_it_says_its_own() {
    let mut case = Case::new("mode = \"off\"");
    assert_eq!(case.ask(1_000, 1_000), Ok(Care::default()));
    assert!(case.alarms().await.is_empty());
    let mut case = Case::new("mode = \"off\"\nparameters = { mode = \"enforce\" }");
    assert!(case.ask(1_000, 0).is_err());
    let mut case = Case::new("mode = \"enforce\"\nparameters = { mode = \"off\" }");
    assert_eq!(case.ask(1_000, 0), Ok(Care::default()));
    assert!(toml::from_str::<Config>("mode = \"on\"").is_err());
}

#[test]
fn rows_are_counted_by_caller_and_model_and_the_count_is_bounded() {
    let now = Instant::now();
    let detector = Detector::with_capacity(64, now);
    let who = |name: &str| Who { caller: name.into(), tenant: "".into(), tier: "".into(), method: "api_key" };
    let m: Arc<str> = "m".into();
    assert_eq!(detector.count(&who("a"), Some(&m), 1, now).map(|(_, count)| count), Some(1));
    assert_eq!(detector.count(&who("a"), Some(&m), 32, now).map(|(_, count)| count), Some(33));
    // Where two fall on one place, by a hash that is another in each process, the second is not counted.
    let others = (0..20).map(|name: u32| detector.count(&who("a"), Some(&name.to_string().into()), 1, now));
    let counted: Vec<u64> = others.flatten().map(|(_, count)| count).collect();
    assert!(!counted.is_empty() && counted.iter().all(|count| *count == 1), "{counted:?}");
    let known = (0..1_000).filter(|name: &u32| detector.count(&who(&name.to_string()), Some(&m), 1, now).is_some()).count();
    assert!(known <= 62);
    assert_eq!(detector.count(&who("a"), Some(&m), 1, now).map(|(_, count)| count), Some(34));
    let later = now + FORGET_AFTER + Duration::from_secs(2);
    assert_eq!(detector.count(&who("new"), Some(&m), 1, later).map(|(_, count)| count), Some(1));
}

#[test]
fn what_cannot_be_kept_is_told_also_without_a_calibration() {
    let compiled = |text: &str| {
        let mut mistakes = Vec::new();
        let terms = toml::from_str::<Config>(text).unwrap().compile(None, None, &mut mistakes);
        (mistakes.len(), terms.is_uncalibrated())
    };
    assert_eq!(compiled("[exposure]\nfidelity = 1.1"), (1, false));
    assert_eq!(compiled("[ladder]\ncalm = \"0s\""), (1, false));
    assert_eq!(compiled("[ladder]\nmost = \"price\""), (0, false));
    assert_eq!(compiled("[ladder]\nmost = \"degrade\"\nprice = true"), (1, false));
    assert_eq!(compiled("[ladder]\nmost = \"price\"\nprice = false"), (1, false));
    assert_eq!(compiled("[ladder]\nmost = \"block\""), (0, false));
    assert_eq!(compiled("[exposure]\nfidelity = 1.0"), (0, false));
    assert_eq!(compiled("mode = \"enforce\"\n[exposure]\nfidelity = 1.0"), (0, true), "a budget that nobody counts against");
    assert_eq!(compiled("mode = \"enforce\""), (0, false));
}

#[test]
fn whoever_finds_no_room_to_be_watched_is_answered_and_counted() {
    use crate::wire::oip::InferRequest;
    let mut case = Case::new("");
    case.detector = Detector::with_capacity(64, case.now.mono);
    case.terms.watch = Some(watch::tests::watch(&watch::tests::calibration(), ""));
    let request = Request::Tensors(InferRequest::default());
    let mut watched = 0;
    for name in 0..200 {
        let who = Arc::new(Who { caller: name.to_string().into(), tenant: "".into(), tier: "".into(), method: "api_key" });
        let judged = case.detector.judge(&who, Some(&"m".into()), &request, &case.terms, &mut case.trail, &case.events, case.now);
        watched += u64::from(judged.unwrap().lesson.is_some());
    }
    assert!((1..=64).contains(&watched), "{watched}");
    assert_eq!(case.detector.unwatched(), 200 - watched);
}

#[tokio::test]
async fn whoever_stands_on_the_price_is_answered_for_work_and_each_refusal_brings_a_new_challenge() {
    use crate::wire::oip::InferRequest;
    use crate::wire::tensor::{Datatype, Tensor};
    let mut case = Case::new("");
    let watch = watch::tests::watch_with(&watch::tests::calibration(), "price = true", "");
    case.terms.watch = Some(watch.clone());
    let who = Arc::new(Who { caller: "api_key:a".into(), tenant: "acme".into(), tier: "".into(), method: "api_key" });
    let model: Arc<str> = "m".into();
    let asked = |rows: u64| {
        let input = Tensor { name: "x".into(), datatype: Datatype::Uint8, shape: vec![rows, 1], data: vec![0; rows as usize].into() };
        Request::Tensors(InferRequest { inputs: vec![input], ..InferRequest::default() })
    };
    let ask = |case: &mut Case, rows| {
        case.detector.judge(&who, Some(&model), &asked(rows), &case.terms, &mut case.trail, &case.events, case.now).unwrap()
    };
    assert_eq!(ask(&mut case, 1).price, None);
    let known = case.detector.count(&who, Some(&model), 0, case.now.mono).unwrap().0;
    watch::tests::stand(&watch, &known.pupil, Step::Price, case.now.mono);
    let Judged { care, price, .. } = ask(&mut case, 1);
    assert_eq!(care.response.shaping, response::Shaping::LabelOnly);
    let price = price.unwrap();
    assert_eq!((&*price.caller, &*price.model, price.rows, price.due), ("api_key:a", "m", 1, price::Difficulty::STANDING));
    assert_eq!(ask(&mut case, 3).price.unwrap().due.bits(), price::Difficulty::STANDING.bits() + 2);

    let challenge = |refused: Result<(), Error>| match refused.unwrap_err() {
        Error::CallerOwesWork(challenge) => challenge,
        error => panic!("{error:?}"),
    };
    let first = challenge(case.detector.collect(&price, &Brought::default(), case.now).await);
    let work = price::tests::bring(&price::tests::solved(&first));
    assert_eq!(case.detector.collect(&price, &work, case.now).await, Ok(()));
    let second = challenge(case.detector.collect(&price, &work, case.now).await);
    assert_ne!(first, second);
    let work = price::tests::bring(&price::tests::solved(&second));
    assert_eq!(case.detector.collect(&price, &work, case.now).await, Ok(()));
    assert_eq!(case.detector.desk().challenges(), 2);
    let moves: Vec<_> = case.alarms().await.into_iter().map(|event| (event.name, more(&event, "step"))).collect();
    assert_eq!(moves, [(Name::DetectMoved, "price".into())], "people are told once");
}

#[test]
fn any_number_of_addresses_takes_no_callers_place() {
    let now = Instant::now();
    let detector = Detector::with_capacity(64, now);
    let who = |name: &str| Who { caller: name.into(), tenant: "".into(), tier: "".into(), method: "api_key" };
    let m: Arc<str> = "m".into();
    let from = |block: u16| IpAddr::from([203, (block >> 8) as u8, block as u8, 1]);
    let kept = (0..1_000).map(|block| detector.cohorts(&who("a"), Some(&m), from(block), &Terms::default(), now).len()).sum::<usize>();
    assert!((1..=64).contains(&kept), "{kept}");
    assert!(detector.count(&who("b"), Some(&m), 1, now).is_some());
}

#[test]
fn a_dimension_beside_a_zero_neither_counts_rows_nor_overflows_the_count() {
    use crate::wire::oip::InferRequest;
    use crate::wire::tensor::{Datatype, Tensor};
    let tensor = |shape: &[u64], data: &'static [u8]| {
        let tensor = Tensor { name: "x".into(), datatype: Datatype::Uint8, shape: shape.to_vec(), data: data.into() };
        rows(&Request::Tensors(InferRequest { inputs: vec![tensor], ..InferRequest::default() }))
    };
    assert_eq!((tensor(&[u64::MAX, 0], b""), tensor(&[3, 2], b"abcdef"), tensor(&[], b"a")), (1, 3, 1));
    let now = Instant::now();
    let detector = Detector::with_capacity(64, now);
    let who = Who { caller: "a".into(), tenant: "".into(), tier: "".into(), method: "api_key" };
    for _ in 0..2 {
        assert_eq!(detector.count(&who, None, u64::MAX, now).map(|(_, count)| count), Some(u64::MAX));
    }
}

#[test]
fn care_adds_up_to_the_greater() {
    let coarse = Care { decimals: Some(1), ..Care::default() };
    let without = Care { decimals: Some(3), without_logprobs: true, ..Care::default() };
    assert_eq!(coarse.and(without), Care { decimals: Some(1), without_logprobs: true, ..Care::default() });
    assert_eq!(Care::default().and(coarse), coarse);
}

#[test]
fn an_explanation_counts_as_the_rows_that_its_model_is_asked_about() {
    let terms = crate::check::explain::Terms::of_background(Vec::new(), 10, 5);
    let explanation = crate::check::Explanation {
        request: crate::wire::oip::InferRequest::default(),
        output: "score".into(),
        samples: 3,
        rows: 2,
        terms: Arc::new(terms),
    };
    assert_eq!(rows(&Request::Explain(Box::new(explanation))), 2 + 10 + 2 * 3 * 2 * 4 * 10);
}

#[tokio::test]
async fn biased_tokens_past_a_budget_are_refused_as_parameters_are() {
    let mut case = Case::new("mode = \"enforce\"\nbias = { budget = 4 }\nparameters = { mode = \"off\" }");
    let who = Arc::new(Who { caller: "api_key:a".into(), tenant: "acme".into(), tier: "".into(), method: "api_key" });
    let asked = |case: &mut Case, token: u32| {
        let said = crate::wire::Said { prompt: "hello".into(), bias: vec![(token.to_string(), 100.0)], ..crate::wire::Said::default() };
        let request = Request::Language(Asked { said: Box::new(said), ..Asked::default() });
        case.detector.judge(&who, Some(&"chat".into()), &request, &case.terms, &mut case.trail, &case.events, case.now)
    };
    assert!((0..4).all(|token| asked(&mut case, token).is_ok()));
    let error = (4..6).find_map(|token| asked(&mut case, token).err()).unwrap();
    assert_eq!((error.code(), error.rule()), ("check.parameters", "bias.budget"));
    let alarms = case.alarms().await;
    assert_eq!((more(&alarms[0], "family"), more(&alarms[0], "step")), ("bias".into(), "refuse".into()));
}

#[tokio::test]
async fn keys_that_bias_together_are_told_by_one_alarm_with_their_names_and_then_refused_as_by_their_own_budget() {
    let mut case = Case::new("mode = \"enforce\"\nbias = { budget = 100 }\nparameters = { mode = \"off\" }");
    let ask = |case: &mut Case, key: u64, token: u64| {
        let who = Arc::new(Who { caller: format!("api_key:k-{key}").into(), tenant: "acme".into(), tier: "".into(), method: "api_key" });
        let said = crate::wire::Said { prompt: "x".into(), bias: vec![(token.to_string(), 100.0)], ..Default::default() };
        let request = Request::Language(Asked { logit_bias: 1, max_tokens: Some(1), said: Box::new(said), ..Asked::default() });
        case.detector.judge(&who, Some(&"chat".into()), &request, &case.terms, &mut case.trail, &case.events, case.now).map(|_| ())
    };
    for key in 0..16 {
        (0..12).for_each(|n| ask(&mut case, key, 12 * key + n).unwrap());
    }
    case.detector.look_across(&case.events, case.now);
    case.detector.look_across(&case.events, case.now);
    let error = (0..80).find_map(|n| ask(&mut case, 3, 1_000 + n).err()).unwrap();
    assert_eq!((error.code(), error.rule()), ("check.parameters", "bias.share"));
    let alarms = case.alarms().await;
    let rules: Vec<_> = alarms.iter().filter_map(|alarm| alarm.rule.as_deref()).collect();
    assert_eq!(rules, ["bias.cohort", "bias.maps", "bias.share"]);
    assert_eq!((more(&alarms[0], "family"), more(&alarms[0], "step")), ("bias".into(), "alert".into()));
    assert_eq!(more(&alarms[0], "cohort"), json!({ "name": "family:acme/k", "callers": 16 }));
    assert!(more(&alarms[0], "atlas").as_array().is_some_and(|ids| !ids.is_empty()));
    let evidence = more(&alarms[0], "evidence");
    assert_eq!((&evidence["maps"], &evidence["by"]), (&json!(192), &json!(16)));
    assert_eq!(evidence["callers"].as_array().map(Vec::len), Some(16));
    assert_eq!((alarms[0].caller.as_deref(), alarms[0].tenant.as_deref(), alarms[0].model.as_deref()), (None, Some("acme"), Some("chat")));
}

#[test]
fn an_enforced_guard_lets_no_answer_pass_unread_wherever_its_mode_is_said() {
    let withholds = |text: &str, speaks: bool| toml::from_str::<Config>(text).unwrap().withholds(speaks);
    assert!(withholds("[leak]\nmode = \"enforce\"", true));
    assert!(withholds("mode = \"enforce\"\n[leak]\ncanaries = [\"zx-4711-canary\"]", true), "the mode of `[detect]` where it says none");
    assert!(!withholds("mode = \"enforce\"\n[leak]\nmode = \"shadow\"", true));
    assert!(!withholds("", true));
    assert!(!withholds("mode = \"enforce\"", false), "of tensors nothing is heard");
}

#[test]
fn whoever_reads_exposures_keeps_nobody_waiting_for_a_caller_who_is_learned_from() {
    let now = Instant::now();
    let detector = Arc::new(Detector::new(now));
    let who = |name: String| Who { caller: name.into(), tenant: "".into(), tier: "".into(), method: "api_key" };
    let busy = detector.count(&who("busy".into()), None, 1, now).unwrap().0;
    let learning = locked(&busy.pupil);
    let reader = detector.clone();
    let reads = std::thread::spawn(move || reader.exposed().len());
    std::thread::sleep(Duration::from_millis(100));
    let asking = detector.clone();
    let asks = std::thread::spawn(move || (0..2_000).filter(|n| asking.count(&who(format!("other-{n}")), None, 1, now).is_some()).count());
    let since = Instant::now();
    while !asks.is_finished() && since.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let waits = !asks.is_finished();
    drop(learning);
    assert_eq!(asks.join().unwrap(), 2_000);
    reads.join().unwrap();
    assert!(!waits, "other callers waited for a lock of the map");
}

#[test]
fn a_burst_takes_one_request_past_a_budget_and_what_is_dropped_is_given_back() {
    use crate::wire::oip::InferRequest;
    use crate::wire::tensor::{Datatype, Tensor};
    let mut case = Case::new("");
    let who = |name: &str| Arc::new(Who { caller: name.into(), tenant: "acme".into(), tier: "".into(), method: "api_key" });
    let input = Tensor { name: "x".into(), datatype: Datatype::Uint8, shape: vec![2, 1], data: vec![0; 2].into() };
    let request = Request::Tensors(InferRequest { inputs: vec![input], ..InferRequest::default() });
    let model: Arc<str> = "m".into();
    let mut burst = |name: &str, watch: Arc<watch::Watch>| {
        case.terms.watch = Some(watch);
        let ask =
            |_| case.detector.judge(&who(name), Some(&model), &request, &case.terms, &mut case.trail, &case.events, case.now).unwrap();
        (0..40).map(ask).collect::<Vec<Judged>>()
    };
    let as_it_is = |judged: &[Judged]| judged.iter().filter(|judged| judged.care == Care::default()).count();
    let calibration = watch::tests::calibration();
    // Two rows of 23 bits each, of 120.
    let bounded = || watch::tests::watch(&calibration, "bits = 0.5\nparameters = 10");
    let first = burst("a", bounded());
    assert_eq!(as_it_is(&first), 3);
    assert!(first[3..].iter().all(|judged| judged.care.response.shaping == response::Shaping::LabelOnly && judged.price.is_none()));
    assert_eq!(as_it_is(&burst("a", bounded())), 0, "as long as they are under way");
    assert_eq!(as_it_is(&burst("b", bounded())), 3, "another caller has a budget of his own");
    drop(first);
    assert_eq!(as_it_is(&burst("a", bounded())), 3, "what is dropped was not told, and nobody climbed for it");
    let free = burst("a", watch::tests::watch(&calibration, ""));
    let tried = burst("a", watch::tests::watch_in_shadow(&calibration, "bits = 0.5\nparameters = 10"));
    assert_eq!((as_it_is(&free), as_it_is(&tried)), (40, 40));
    assert_eq!(as_it_is(&burst("a", bounded())), 3, "nothing is held where there is no budget, nor in shadow");
}

#[test]
fn an_explanation_is_held_for_as_many_rows_as_it_asks_its_model_about() {
    let mut case = Case::new("");
    let who = Arc::new(Who { caller: "a".into(), tenant: "acme".into(), tier: "".into(), method: "api_key" });
    // One row, and 10 + 1 * 1 * 2 * 1 * 10 more beside it: 31, of 23 bits each, of 4,008.
    let ask = |case: &mut Case| {
        let terms = Arc::new(crate::check::explain::Terms::of_background(Vec::new(), 10, 2));
        let explanation = crate::check::Explanation { request: <_>::default(), output: "score".into(), samples: 1, rows: 1, terms };
        let request = Request::Explain(Box::new(explanation));
        case.detector.judge(&who, Some(&"m".into()), &request, &case.terms, &mut case.trail, &case.events, case.now).unwrap()
    };
    case.terms.watch = Some(watch::tests::watch(&watch::tests::calibration(), "bits = 0.5\nparameters = 334"));
    let judged: Vec<_> = (0..12).map(|_| ask(&mut case)).collect();
    assert_eq!(
        judged.iter().filter(|judged| judged.care == Care::default()).count(),
        6,
        "five of 713 bits are within 4,008, and the sixth is past"
    );
}
