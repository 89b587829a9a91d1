use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;

mod kept;

fn terms(text: &str) -> Terms {
    let mut mistakes = Vec::new();
    let terms = toml::from_str::<Config>(text).unwrap().compile(&mut mistakes);
    assert!(mistakes.is_empty(), "{mistakes:?}");
    terms
}

fn who(caller: &str, tier: &str) -> Who {
    Who { caller: caller.into(), tenant: "acme".into(), tier: tier.into(), method: "api_key" }
}

struct Case {
    budget: Budget,
    terms: Terms,
    start: Instant,
}

impl Case {
    fn new(text: &str) -> Self {
        Self { budget: Budget::default(), terms: terms(text), start: Instant::now() }
    }

    fn ask(&self, caller: &str, tokens: Option<u64>, after: Duration) -> Result<Hold, Error> {
        let ask = tokens.map(|answer| Ask { prompt: 0, answer, said: true });
        self.budget.hold(&who(caller, ""), Some(&"m".into()), &self.terms, ask, self.start + after)
    }

    fn tokens_left(&self, caller: &str) -> u64 {
        let hold = self.ask(caller, None, Duration::ZERO).unwrap();
        hold.standing.left[2].unwrap().0
    }
}

const ZERO: Duration = Duration::ZERO;

fn headers(error: &Error) -> Vec<(String, String)> {
    error.refused().headers().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
}

#[test]
fn the_burst_passes_and_one_past_it_is_refused_with_headers() {
    let case = Case::new("[default]\nrequests = { rate = \"20/s\", burst = 40 }");
    let first = case.ask("a", None, ZERO).unwrap();
    let told: Vec<_> = first.standing.headers().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    assert_eq!(told, ["ratelimit-policy: \"default\";q=40;w=2", "ratelimit: \"default\";r=39;t=1"]);
    for _ in 1..40 {
        case.ask("a", None, ZERO).unwrap();
    }
    let error = case.ask("a", None, ZERO).unwrap_err();
    assert_eq!((error.code(), error.refused().rule()), ("budget.requests", "caller.requests"));
    assert!(headers(&error).contains(&("retry-after".into(), "1".into())));
    assert!(headers(&error).contains(&("ratelimit".into(), "\"default\";r=0;t=1".into())));
    assert!(case.ask("b", None, ZERO).is_ok());
    assert!(case.ask("a", None, Duration::from_millis(50)).is_ok());
}

#[test]
fn in_flight_is_released_by_dropping_the_hold_and_not_before() {
    let case = Case::new("[default]\nin_flight = 2");
    let first = case.ask("a", None, ZERO).unwrap();
    let _second = case.ask("a", None, ZERO).unwrap();
    assert_eq!(case.ask("a", None, ZERO).unwrap_err().code(), "budget.in_flight");
    drop(first);
    assert!(case.ask("a", None, ZERO).is_ok());
}

#[test]
fn what_the_model_refuses_costs_the_caller_nothing_and_looks_like_his_own_limit() {
    let case = Case::new("[default]\nrequests = { rate = \"1/h\", burst = 3 }\n[model]\nrequests = { rate = \"1/s\", burst = 2 }");
    case.ask("a", None, ZERO).unwrap();
    case.ask("b", None, ZERO).unwrap();
    for _ in 0..10 {
        let error = case.ask("a", None, ZERO).unwrap_err();
        assert_eq!((error.code(), error.refused().rule()), ("budget.requests", "model.requests"));
        assert!(headers(&error).iter().any(|(_, value)| value == "\"default\";r=0;t=1"));
    }
    assert!(case.ask("a", None, Duration::from_secs(1)).is_ok());
    assert!(case.ask("a", None, Duration::from_secs(2)).is_ok());
    assert_eq!(case.ask("a", None, Duration::from_secs(3)).unwrap_err().refused().rule(), "caller.requests");
}

#[test]
fn a_caller_past_his_own_limit_drains_nobody_elses() {
    let case = Case::new("[default]\nrequests = { rate = \"1/h\", burst = 1 }\n[model]\nrequests = { rate = \"1/h\", burst = 3 }");
    case.ask("greedy", None, ZERO).unwrap();
    for _ in 0..100 {
        assert_eq!(case.ask("greedy", None, ZERO).unwrap_err().refused().rule(), "caller.requests");
    }
    assert!(case.ask("b", None, ZERO).is_ok());
    assert!(case.ask("c", None, ZERO).is_ok());
}

#[test]
fn tokens_are_reserved_before_and_settled_once_after() {
    let case = Case::new("[default]\nrequests = { rate = \"1000/s\" }\ntokens = { rate = \"1000/h\" }");
    let mut hold = case.ask("a", Some(1_000), ZERO).unwrap();
    assert_eq!(case.ask("a", Some(1), ZERO).unwrap_err().code(), "budget.tokens");
    hold.began();
    hold.settle(Usage { input: 100, output: 200 });
    hold.settle(Usage { input: 0, output: 0 });
    drop(hold);
    assert_eq!(case.tokens_left("a"), 700);
    let over = case.ask("a", Some(701), ZERO).unwrap_err();
    assert_eq!(over.refused().retry_after(), 4);
    assert!(case.ask("a", Some(700), ZERO).is_ok());
}

#[test]
fn overspend_is_owed() {
    let case = Case::new("[default]\ntokens = { rate = \"1000/h\" }");
    case.ask("a", Some(10), ZERO).unwrap().settle(Usage { input: 500, output: 1_000 });
    let error = case.ask("a", Some(1), ZERO).unwrap_err();
    assert_eq!(error.refused().retry_after(), 1_804);
    assert_eq!(case.ask("a", Some(1), Duration::from_secs(1_800)).unwrap_err().code(), "budget.tokens");
}

#[test]
fn a_dropped_hold_keeps_what_was_delivered_and_gives_all_back_when_no_model_was_asked() {
    let case = Case::new("[default]\ntokens = { rate = \"1000/h\" }");
    drop(case.ask("a", Some(900), ZERO).unwrap());
    assert_eq!(case.tokens_left("a"), 1_000);

    let ask = Ask { prompt: 100, answer: 500, said: true };
    let mut hold = case.budget.hold(&who("a", ""), Some(&"m".into()), &case.terms, Some(ask), case.start).unwrap();
    hold.began();
    hold.delivered(399);
    hold.delivered(2);
    drop(hold);
    assert_eq!(case.tokens_left("a"), 1_000 - 100 - 101);
}

#[test]
fn quotas_hold_beside_rates() {
    let case = Case::new("[default]\nquota = { requests = \"3/day\", tokens = \"100/day\" }");
    for _ in 0..3 {
        case.ask("a", Some(1), ZERO).unwrap();
    }
    let error = case.ask("a", Some(1), ZERO).unwrap_err();
    assert_eq!((error.code(), error.refused().retry_after()), ("budget.requests", 86_400));
    assert_eq!(case.ask("b", Some(101), ZERO).unwrap_err().code(), "budget.tokens");
    assert!(case.ask("b", Some(100), ZERO).is_ok());
}

#[test]
fn a_reload_changes_the_rate_and_forgets_nothing() {
    let mut case = Case::new("[default]\nrequests = { rate = \"1/h\", burst = 5 }");
    for _ in 0..5 {
        case.ask("a", None, ZERO).unwrap();
    }
    case.terms = terms("[default]\nrequests = { rate = \"1/h\", burst = 6 }");
    assert!(case.ask("a", None, ZERO).is_ok());
    assert!(case.ask("a", None, ZERO).is_err());
}

#[test]
fn many_names_neither_reset_a_bucket_nor_push_out_a_busy_one() {
    let budget = Budget::with_capacity(64);
    let terms = terms("[default]\nrequests = { rate = \"1/h\", burst = 1 }");
    let now = Instant::now();
    let model: Arc<str> = "m".into();
    budget.hold(&who("a", ""), Some(&model), &terms, None, now).unwrap();
    let mut full = 0;
    for name in 0..10_000 {
        if let Err(error) = budget.hold(&who(&name.to_string(), ""), Some(&model), &terms, None, now) {
            assert_eq!((error.code(), error.refused().retry_after()), ("budget.room", 1));
            full += 1;
        }
    }
    assert_eq!(full, 10_000 + 1 - budget.callers());
    assert!(budget.callers() <= 64);
    assert_eq!(budget.hold(&who("a", ""), Some(&model), &terms, None, now).unwrap_err().code(), "budget.requests");
    // Once their buckets are full again, they make room.
    assert!(budget.hold(&who("new", ""), Some(&model), &terms, None, now + Duration::from_secs(3_600)).is_ok());
}

#[test]
fn a_reservation_is_bytes_by_four_and_the_asked_or_capped_answer_times_answers() {
    let asked = |max_tokens, answers| Asked { max_tokens, answers, ..Asked::default() };
    assert_eq!(Ask::language(401, &asked(None, 0), None), Ask { prompt: 101, answer: 1_024, said: false });
    assert_eq!(Ask::language(400, &asked(None, 2), Some(4_096)), Ask { prompt: 100, answer: 8_192, said: false });
    assert_eq!(Ask::language(0, &asked(Some(5), 3), Some(4_096)), Ask { prompt: 0, answer: 15, said: true });
    // What is past the cap is refused for that, by the next stop.
    assert_eq!(Ask::language(0, &asked(Some(100_000), 1), Some(4_096)), Ask { prompt: 0, answer: 4_096, said: true });
    assert!(Ask::language(usize::MAX, &asked(Some(u64::MAX), u64::MAX), None).tokens() > u64::from(u32::MAX));
}

#[test]
fn exactly_the_burst_passes_however_many_threads_ask_at_once() {
    const THREADS: usize = 8;
    let case = Case::new(
        "[default]\nrequests = { rate = \"1/day\", burst = 60 }\ntokens = { rate = \"100000/day\" }\nin_flight = 1000\n\
         [model]\nrequests = { rate = \"1/day\", burst = 100 }",
    );
    let barrier = Barrier::new(THREADS);
    let passed: Vec<(usize, usize)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (case, barrier) = (&case, &barrier);
                scope.spawn(move || {
                    let caller = thread % 2;
                    barrier.wait();
                    let held = (0..100).filter_map(|_| case.ask(["a", "b"][caller], Some(10), ZERO).ok()).map(|mut hold| {
                        hold.began();
                        hold.settle(Usage { input: 3, output: 4 });
                    });
                    (caller, held.count())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(passed.iter().map(|(_, count)| count).sum::<usize>(), 100);
    for caller in 0..2 {
        let count: usize = passed.iter().filter(|(of, _)| *of == caller).map(|(_, count)| count).sum();
        assert!(count <= 60);
        let meter = case.budget.callers.entry((["a", "b"][caller].into(), "m".into()), case.start, || Meter::new(case.start)).unwrap();
        let readings = meter.lock();
        assert_eq!(readings.in_flight, 0);
        assert_eq!(readings.tokens.as_ref().unwrap().remaining(), 100_000 - 7 * count as u64);
    }
}

#[test]
fn no_more_are_in_flight_at_any_time_than_allowed_however_many_threads_ask() {
    const THREADS: usize = 8;
    let case = Case::new("[default]\nrequests = { rate = \"1000000/s\" }\nin_flight = 3\n[model]\nin_flight = 5");
    let (own, all) = ([const { AtomicUsize::new(0) }; 4], AtomicUsize::new(0));
    let (own_peak, all_peak, passed) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let barrier = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (case, own, all, own_peak, all_peak, passed, barrier) = (&case, &own, &all, &own_peak, &all_peak, &passed, &barrier);
            scope.spawn(move || {
                let mine = &own[thread % 4];
                barrier.wait();
                for _ in 0..2_000 {
                    let Ok(hold) = case.ask(["a", "b", "c", "d"][thread % 4], None, ZERO) else { continue };
                    own_peak.fetch_max(mine.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    all_peak.fetch_max(all.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    passed.fetch_add(1, Ordering::SeqCst);
                    std::thread::yield_now();
                    mine.fetch_sub(1, Ordering::SeqCst);
                    all.fetch_sub(1, Ordering::SeqCst);
                    drop(hold);
                }
            });
        }
    });
    assert!(passed.into_inner() > 0);
    assert!(own_peak.into_inner() <= 3);
    assert!(all_peak.into_inner() <= 5);
    for caller in ["a", "b", "c", "d"] {
        assert!(case.ask(caller, None, ZERO).is_ok(), "every place is free again");
    }
}

#[test]
fn a_bucket_is_never_forgotten_while_threads_crowd_the_map() {
    let case = Case {
        budget: Budget::with_capacity(64),
        terms: terms("[default]\nrequests = { rate = \"1/day\", burst = 20 }"),
        start: Instant::now(),
    };
    let passed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (case, passed) = (&case, &passed);
            scope.spawn(move || {
                for turn in 0..500 {
                    if case.ask("steady", None, ZERO).is_ok() {
                        passed.fetch_add(1, Ordering::SeqCst);
                    }
                    let _ = case.ask(&format!("{thread}-{turn}"), None, ZERO);
                }
            });
        }
    });
    // Either there was no room for the name at all, or its one bucket let exactly the burst pass.
    assert!(matches!(passed.into_inner(), 0 | 20));
    assert!(case.budget.callers() <= 64);
}

#[test]
fn a_count_of_tokens_that_cannot_be_does_not_shut_a_caller_out_for_good() {
    let case = Case::new("[default]\ntokens = { rate = \"16777216/s\" }");
    case.ask("a", Some(1), ZERO).unwrap().settle(Usage { input: u64::MAX, output: u64::MAX });
    assert!(case.ask("a", Some(1), ZERO).is_err());
    assert!(case.ask("a", Some(1), Duration::from_secs(1)).is_ok());
}

#[derive(Clone, Debug)]
enum End {
    Settled(u32, u32),
    Dropped(u16),
    NeverBegan,
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        (0_u32..50_000, 0_u32..50_000).prop_map(|(input, output)| End::Settled(input, output)),
        any::<u16>().prop_map(End::Dropped),
        Just(End::NeverBegan),
    ]
}

proptest! {
    #[test]
    fn the_sum_of_settlements_is_the_sum_of_usage(calls in prop::collection::vec((0_u32..10_000, 0_u32..10_000, end()), 1..40)) {
        const MUCH: u64 = 4_000_000_000;
        let budget = Budget::default();
        let terms = terms("[default]\nrequests = { rate = \"1000/s\" }\ntokens = { rate = \"4000000000/day\" }\n[model]\ntokens = { rate = \"4000000000/day\" }");
        let (now, model) = (Instant::now(), Arc::<str>::from("m"));
        let mut used = 0;
        let mut held = Vec::new();
        for (prompt, answer, end) in calls {
            let ask = Ask { prompt: prompt.into(), answer: answer.into(), said: true };
            held.push((budget.hold(&who("a", ""), Some(&model), &terms, Some(ask), now).unwrap(), end));
        }
        for (mut hold, end) in held {
            match end {
                End::Settled(input, output) => {
                    hold.began();
                    hold.settle(Usage { input: input.into(), output: output.into() });
                    used += u64::from(input) + u64::from(output);
                }
                End::Dropped(bytes) => {
                    hold.began();
                    hold.delivered(bytes.into());
                    used += hold.reserved.unwrap().prompt + estimate(bytes.into());
                }
                End::NeverBegan => {}
            }
        }
        let own = budget.callers.entry(("a".into(), "m".into()), now, || Meter::new(now)).unwrap();
        let shared = budget.models.entry("m".into(), now, || Meter::new(now)).unwrap();
        for meter in [own, shared] {
            prop_assert_eq!(meter.lock().tokens.as_ref().unwrap().remaining(), MUCH - used);
            prop_assert_eq!(meter.lock().in_flight, 0);
        }
    }
}

#[test]
fn queries_pass_up_to_what_is_left_and_those_that_were_not_made_come_back() {
    let case = Case::new("[default]\nrequests = { rate = \"1/h\", burst = 10 }\nquota = { requests = \"20/day\" }");
    let mut hold = case.ask("a", None, ZERO).unwrap();
    let error = hold.reserve_queries(10, case.start).unwrap_err();
    assert_eq!((error.code(), error.refused().rule()), ("budget.requests", "caller.requests"));
    hold.reserve_queries(9, case.start).unwrap();
    assert_eq!((hold.standing.left[0].unwrap().0, hold.standing.left[1].unwrap().0), (0, 10));
    assert!(case.ask("a", None, ZERO).is_err());
    (0..4).for_each(|_| hold.queried());
    drop(hold);
    let left = case.ask("a", None, ZERO).unwrap().standing.left;
    assert_eq!((left[0].unwrap().0, left[1].unwrap().0), (4, 14));
    // More than were reserved are none.
    let mut hold = case.ask("b", None, ZERO).unwrap();
    hold.reserve_queries(1, case.start).unwrap();
    (0..3).for_each(|_| hold.queried());
    drop(hold);
    assert_eq!(case.ask("b", None, ZERO).unwrap().standing.left[0].unwrap().0, 7);
}

#[test]
fn queries_that_all_callers_of_the_model_have_no_room_for_cost_nobody_anything() {
    let case = Case::new("[default]\nrequests = { rate = \"1/h\", burst = 10 }\n[model]\nrequests = { rate = \"1/h\", burst = 5 }");
    let mut hold = case.ask("a", None, ZERO).unwrap();
    let error = hold.reserve_queries(5, case.start).unwrap_err();
    assert_eq!((error.code(), error.refused().rule()), ("budget.requests", "model.requests"));
    hold.reserve_queries(4, case.start).unwrap();
    assert_eq!(hold.standing.left[0].unwrap().0, 5);
    assert_eq!(case.ask("b", None, ZERO).unwrap_err().refused().rule(), "model.requests");
    drop(hold);
    assert!(case.ask("b", None, ZERO).is_ok());
}

#[test]
fn who_says_nothing_of_the_length_reserves_no_more_than_there_ever_is() {
    for limits in ["tokens = { rate = \"100/min\" }", "tokens = { rate = \"500/s\" }\nquota = { tokens = \"100/day\" }"] {
        let case = Case::new(&format!("[default]\n{limits}"));
        let ask = |answer, said| case.budget.hold(&who("a", ""), None, &case.terms, Some(Ask { prompt: 10, answer, said }), case.start);
        // All that there is, at once; a second one waits.
        let held = ask(1_024, false).unwrap();
        assert!(ask(1_024, false).is_err());
        drop(held);
        assert!(ask(90, true).is_ok());
    }
}

#[test]
fn who_asks_for_more_than_there_ever_is_reads_that_and_what_there_is() {
    for (limits, left) in [
        ("tokens = { rate = \"100/min\" }", "\"tokens\";r=100;t=0"),
        (
            "tokens = { rate = \"500/s\", burst = 1000 }\nquota = { tokens = \"100/day\" }",
            "\"tokens\";r=1000;t=0, \"token-quota\";r=100;t=0",
        ),
    ] {
        let case = Case::new(&format!("[default]\nrequests = {{ rate = \"10/s\" }}\n{limits}"));
        let error = case.ask("a", Some(101), Duration::ZERO).unwrap_err();
        assert!(error.code() == "budget.tokens" && error.refused().in_vain());
        let headers: Vec<_> = error.refused().headers().collect();
        let limit = headers.iter().find(|(name, _)| name == "ratelimit").unwrap();
        assert_eq!(limit.1.to_str().unwrap(), format!("\"default\";r=10;t=0, {left}"));
        drop(case.ask("a", Some(100), Duration::ZERO).unwrap());
    }
}

#[test]
fn of_rate_and_quota_only_the_one_that_is_spent_reads_zero() {
    let case = Case::new("[default]\nrequests = { rate = \"10/s\", burst = 20 }\nquota = { requests = \"2/day\" }");
    for _ in 0..2 {
        drop(case.ask("a", None, Duration::ZERO).unwrap());
    }
    let error = case.ask("a", None, Duration::ZERO).unwrap_err();
    assert!(!error.refused().in_vain());
    let limit = error.refused().headers().find(|(name, _)| name == "ratelimit").unwrap().1;
    assert_eq!(limit, "\"default\";r=18;t=1, \"quota\";r=0;t=86400");
}

/// What a limit in shadow mode would have refused a request with.
fn would(hold: &Hold) -> Option<(&'static str, &'static str)> {
    hold.shadowed.as_ref().map(|error| (error.code(), error.refused().rule()))
}

#[test]
fn past_a_limit_in_shadow_a_request_passes_and_past_none_that_is_off() {
    for (limit, ask, named) in [
        ("requests = { rate = \"1/day\", burst = 2 }", None, ("budget.requests", "requests")),
        ("quota = { requests = \"2/day\" }", None, ("budget.requests", "requests")),
        ("tokens = { rate = \"2/day\" }", Some(1), ("budget.tokens", "tokens")),
        ("quota = { tokens = \"2/day\" }", Some(1), ("budget.tokens", "tokens")),
        ("in_flight = 2", None, ("budget.in_flight", "in_flight")),
    ] {
        for (table, whose) in [("default", "caller"), ("model", "model"), ("tier.gold", "caller")] {
            let ended = |mode: &str| -> Vec<Result<_, _>> {
                let case = Case::new(&format!("[{table}]\nmode = \"{mode}\"\n{limit}"));
                let ask = ask.map(|answer| Ask { prompt: 0, answer, said: true });
                let hold = |_| case.budget.hold(&who("a", "gold"), Some(&"m".into()), &case.terms, ask, case.start);
                // All at once: each is in flight while the next is asked.
                let holds: Vec<_> = (0..4).map(hold).collect();
                let named = |hold: &Result<Hold, Error>| match hold {
                    Ok(hold) => Ok(would(hold)),
                    Err(error) => Err((error.code(), error.refused().rule())),
                };
                holds.iter().map(named).collect()
            };
            let rule = format!("{whose}.{}", named.1);
            let named = (named.0, rule.as_str());
            assert_eq!(ended("enforce"), [Ok(None), Ok(None), Err(named), Err(named)], "{table} {limit}");
            assert_eq!(ended("shadow"), [Ok(None), Ok(None), Ok(Some(named)), Ok(Some(named))], "{table} {limit}");
            assert_eq!(ended("off"), [Ok(None); 4], "{table} {limit}");
        }
    }
}

#[test]
fn callers_read_of_enforced_limits_alone() {
    let case = Case::new("[default]\nmode = \"shadow\"\ntokens = { rate = \"5/h\" }\nquota = { requests = \"1/day\" }");
    case.ask("a", Some(5), ZERO).unwrap();
    let hold = case.ask("a", Some(5), ZERO).unwrap();
    assert_eq!(would(&hold), Some(("budget.requests", "caller.requests")));
    let told: Vec<_> = hold.standing.headers().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    assert_eq!(told, ["ratelimit-policy: \"default\";q=50;w=5", "ratelimit: \"default\";r=48;t=1"]);
}

#[test]
fn a_table_in_shadow_loosens_nothing() {
    let case = Case::new(
        "[default]\nrequests = { rate = \"1/h\", burst = 2 }\nin_flight = 2\n\
         [tier.gold]\nmode = \"shadow\"\nrequests = { rate = \"100/s\" }\nin_flight = 1\n",
    );
    let ask = || case.budget.hold(&who("a", "gold"), Some(&"m".into()), &case.terms, None, case.start);
    let first = ask().unwrap();
    let second = ask().unwrap();
    assert_eq!([would(&first), would(&second)], [None, Some(("budget.in_flight", "caller.in_flight"))]);
    assert_eq!(ask().unwrap_err().code(), "budget.requests");
}

#[test]
fn what_is_enforced_refuses_beside_what_is_tried_and_then_nothing_is_tried() {
    let case = Case::new(
        "[default]\nrequests = { rate = \"1/h\", burst = 3 }\n[model]\nmode = \"shadow\"\nrequests = { rate = \"1/h\", burst = 2 }",
    );
    assert_eq!([(); 3].map(|()| would(&case.ask("a", None, ZERO).unwrap())), [None, None, Some(("budget.requests", "model.requests"))]);
    assert_eq!(case.ask("a", None, ZERO).unwrap_err().refused().rule(), "caller.requests");
    // What was refused, or would have been, took nothing of the model's.
    let hour = Duration::from_secs(3_600);
    assert_eq!(would(&case.ask("b", None, hour).unwrap()), None);
    assert_eq!(would(&case.ask("b", None, hour).unwrap()), Some(("budget.requests", "model.requests")));
}

#[test]
fn a_reservation_of_who_says_no_length_is_cut_for_each_mode_by_its_own_limits() {
    let case = Case::new("[default]\ntokens = { rate = \"500/h\" }\n[model]\nmode = \"shadow\"\ntokens = { rate = \"100/h\" }");
    let ask = Ask { prompt: 10, answer: 1_024, said: false };
    let hold = case.budget.hold(&who("a", ""), Some(&"m".into()), &case.terms, Some(ask), case.start).unwrap();
    assert_eq!((would(&hold), hold.tried, hold.standing.left[2].unwrap().0), (None, Some(100), 0));
    assert_eq!(would(&case.ask("b", Some(1), ZERO).unwrap()), Some(("budget.tokens", "model.tokens")));
    drop(hold);
    assert_eq!(would(&case.ask("b", Some(100), ZERO).unwrap()), None);
}

#[test]
fn a_limit_bites_at_once_when_it_leaves_the_shadow_and_nobody_is_in_debt_for_what_passed() {
    let text = "requests = { rate = \"1000/s\" }\ntokens = { rate = \"100/h\" }\nin_flight = 3";
    let in_mode = |mode: &str| terms(&format!("[default]\nmode = \"{mode}\"\n{text}"));
    let mut case = Case { terms: in_mode("shadow"), ..Case::new("") };
    let mut first = case.ask("a", Some(100), ZERO).unwrap();
    let over: Vec<_> = (0..4).map(|_| case.ask("a", Some(100), ZERO).unwrap()).collect();
    assert!(over.iter().all(|hold| would(hold) == Some(("budget.tokens", "caller.tokens"))));
    case.terms = in_mode("enforce");
    // What passed beyond the limit is not owed: the wait is that of the hundred which it allows.
    let error = case.ask("a", Some(100), ZERO).unwrap_err();
    assert_eq!((error.code(), error.refused().retry_after()), ("budget.tokens", 3_600));
    // All that is in flight counts, whatever it was charged to.
    assert_eq!(case.ask("a", None, ZERO).unwrap_err().code(), "budget.in_flight");
    drop(over);
    first.settle(Usage { input: 40, output: 0 });
    drop(first);
    assert_eq!(case.tokens_left("a"), 100);
}

#[test]
fn a_limit_that_goes_to_the_shadow_and_back_keeps_what_is_used_of_it() {
    let in_mode = |mode: &str| terms(&format!("[default]\nmode = \"{mode}\"\nquota = {{ requests = \"3/day\", tokens = \"100/day\" }}"));
    let mut case = Case { terms: in_mode("enforce"), ..Case::new("") };
    (0..2).for_each(|_| drop(case.ask("a", Some(0), ZERO).unwrap()));
    case.terms = in_mode("shadow");
    assert_eq!([(); 2].map(|()| would(&case.ask("a", Some(0), ZERO).unwrap())), [None, Some(("budget.requests", "caller.requests"))]);
    case.terms = in_mode("enforce");
    assert_eq!(case.ask("a", Some(0), ZERO).unwrap_err().refused().retry_after(), 86_400);
    case.terms = in_mode("off");
    case.ask("a", Some(0), ZERO).unwrap();
    case.terms = in_mode("enforce");
    case.ask("a", Some(0), ZERO).unwrap();
}

#[test]
fn a_limit_in_flight_that_goes_to_the_shadow_counts_those_who_were_there_before() {
    let in_mode = |mode: &str| terms(&format!("[default]\nmode = \"{mode}\"\nin_flight = 2"));
    let mut case = Case { terms: in_mode("enforce"), ..Case::new("") };
    let mut held = std::collections::VecDeque::from([(); 2].map(|()| case.ask("a", None, ZERO).unwrap()));
    case.terms = in_mode("shadow");
    let over = case.ask("a", None, ZERO).unwrap();
    assert_eq!(would(&over), Some(("budget.in_flight", "caller.in_flight")));
    drop(over);
    for _ in 0..4 {
        held.pop_front();
        held.push_back(case.ask("a", None, ZERO).unwrap());
        assert_eq!(would(&held[1]), None);
        assert!(would(&case.ask("a", None, ZERO).unwrap()).is_some());
    }
}

#[test]
fn queries_past_a_limit_in_shadow_pass_and_take_nothing_of_it() {
    let case = Case::new(
        "[default]\nrequests = { rate = \"1/h\", burst = 100 }\n[model]\nmode = \"shadow\"\nrequests = { rate = \"1/h\", burst = 10 }\nin_flight = 1\n",
    );
    let mut hold = case.ask("a", None, ZERO).unwrap();
    hold.reserve_queries(10, case.start).unwrap();
    assert_eq!(would(&hold), Some(("budget.requests", "model.requests")));
    // Refused, it would be in flight no more.
    assert_eq!(would(&case.ask("a", None, ZERO).unwrap()), None);
    (0..4).for_each(|_| hold.queried());
    drop(hold);
    // Two of ten are used, as they would be where the queries were refused; of what is enforced six are.
    let mut hold = case.ask("a", None, ZERO).unwrap();
    hold.reserve_queries(7, case.start).unwrap();
    assert_eq!(would(&hold), None);
    assert_eq!(hold.reserve_queries(87, case.start).unwrap_err().refused().rule(), "caller.requests");
    drop(hold);
    assert_eq!(would(&case.ask("a", None, ZERO).unwrap()), None);
}

proptest! {
    #[test]
    fn a_limit_in_shadow_would_have_refused_just_what_it_refuses_where_it_is_enforced(
        steps in prop::collection::vec((0_u64..2_000, any::<bool>(), (0_u64..60, any::<bool>()), 0_u64..80, 0_usize..3), 1..100),
    ) {
        let text = |mode: &str| format!(
            "[default]\nrequests = {{ rate = \"1000/s\" }}\nin_flight = 1000\n\
             [tier.gold]\nmode = \"{mode}\"\nrequests = {{ rate = \"2/s\", burst = 4 }}\ntokens = {{ rate = \"20/s\", burst = 90 }}\nin_flight = 3\n\
             quota = {{ requests = \"40/min\", tokens = \"900/min\" }}\n\
             [model]\nmode = \"{mode}\"\nrequests = {{ rate = \"3/s\", burst = 6 }}\ntokens = {{ rate = \"30/s\", burst = 50 }}\nin_flight = 5\n"
        );
        let [enforced, tried] = ["enforce", "shadow"].map(|mode| Case::new(&text(mode)));
        let (mut after, mut held) = (ZERO, std::collections::VecDeque::<(Option<Hold>, Hold)>::new());
        for (gap, who_asks, (answer, said), used, ends) in steps {
            after += Duration::from_millis(gap);
            for (one, other) in held.drain(..ends.min(held.len())) {
                one.into_iter().chain([other]).for_each(|mut hold| hold.settle(Usage { input: used, output: 0 }));
            }
            let caller = who(if who_asks { "a" } else { "b" }, "gold");
            let ask = |case: &Case| {
                case.budget.hold(&caller, Some(&"m".into()), &case.terms, Some(Ask { prompt: 0, answer, said }), case.start + after)
            };
            let (ended, passed) = (ask(&enforced), ask(&tried).unwrap());
            let expected = ended.as_ref().err().map(|error| (error.code(), error.refused().rule()));
            prop_assert_eq!(would(&passed), expected);
            held.push_back((ended.ok(), passed));
        }
        drop(held);
        let meter = tried.budget.models.entry("m".into(), tried.start, || Meter::new(tried.start)).unwrap();
        let readings = meter.lock();
        prop_assert_eq!((readings.in_flight, readings.tried.as_ref().unwrap().in_flight), (0, 0));
    }
}
