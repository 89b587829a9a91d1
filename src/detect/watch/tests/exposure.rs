//! Budgets of what callers learn of a model.

use super::*;

#[test]
fn a_budget_that_is_spent_is_not_given_back_for_being_calm() {
    let (watch, mut caller, now) = (watch(&calibration(), "bits = 0.5\nparameters = 10"), Caller::new(), Moment::now());
    let mut noise = Noise::new(&[6; 32], "thief");
    for _ in 0..100 {
        let values: [f32; WIDTH] = std::array::from_fn(|_| noise.normal());
        caller.ask(&watch, &values, now);
    }
    assert_eq!(caller.step(), Step::Degrade);
    for days in 1..5 {
        watch.manner(&caller.known.pupil, caller.rows + 1, now.after(DAY * days).mono);
        assert_eq!(caller.step(), Step::Degrade, "{days}");
    }
    assert!(caller.exposure().bits >= 115.0);
}

#[test]
fn a_budget_of_fidelity_that_nobody_could_count_against_is_a_mistake() {
    let made = calibrate("m", 0.1, honest(20, 12)).map_err(|error| error.to_string()).unwrap();
    assert_eq!(made.untried, Some(384), "who calibrates is told");
    let (calibration, mut mistakes) = (made.text, Vec::new());
    let mut told = |exposing: &str, calibration| {
        Config::default().compile(&toml::from_str(exposing).unwrap(), calibration, None, true, &mut mistakes);
        std::mem::take(&mut mistakes).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let [mistake] = &told("fidelity = 0.5", Some(&calibration))[..] else { panic!("one mistake") };
    assert!(mistake.contains("at least 384 different ones"), "{mistake}");
    assert!(told("bits = 0.5\nparameters = 10", Some(&calibration)).is_empty());
    assert!(told("fidelity = 0.5", None).is_empty(), "without any, it runs in shadow");
}

#[test]
fn an_explanation_is_charged_for_what_its_model_was_asked() {
    let (watch, now) = (watch(&calibration(), ""), Moment::now());
    let bits = |more| {
        let mut caller = Caller::new();
        let lesson = Lesson { more, ..caller.lesson(&watch, row(&[0.5; WIDTH]), now) };
        lesson.learn(&answer(&[0.3, 0.1]), &answer(&[0.3, 0.1])).unwrap().bits
    };
    assert_eq!(bits(9), bits(0) * 10.0);
}

#[test]
fn answers_tell_less_by_grades_as_a_budget_is_spent_and_labels_when_it_is() {
    let watch = watch(&calibration(), "bits = 0.5\nparameters = 10");
    let shaping = |step, spent| watch.care(step, spent).response.shaping;
    assert_eq!(shaping(Step::Observe, 0.5), Shaping::AsIs);
    assert_eq!(shaping(Step::Observe, 0.51), Shaping::Quantised(Level::LEAST));
    assert_eq!(shaping(Step::Throttle, 0.99), Shaping::Quantised(Level::MOST));
    assert_eq!(shaping(Step::Observe, 1.0), Shaping::LabelOnly, "before the step has come");
    assert_eq!(shaping(Step::Degrade, 0.0), Shaping::LabelOnly);
    let grade = |spent| watch.care(Step::Observe, spent);
    assert_eq!(grade(0.60), grade(0.61), "within a grade equal inputs get equal answers");
    assert_ne!(grade(0.60), grade(0.70));
}

#[test]
fn what_degraded_answers_are_is_the_owners_and_a_budget_that_is_spent_leaves_labels() {
    let (calibration, mut mistakes) = (calibration(), Vec::new());
    let mut compiled = |ladder: &str| {
        let (config, exposing) = (toml::from_str::<Config>(ladder).unwrap(), toml::from_str("bits = 0.5\nparameters = 10").unwrap());
        config.compile(&exposing, Some(&calibration), None, true, &mut mistakes).unwrap()
    };
    let watch = compiled("degrade = \"adversarial\"");
    assert_eq!(watch.care(Step::Degrade, 0.0).response.shaping, Shaping::Adversarial);
    assert_eq!(watch.care(Step::Degrade, 1.0).response.shaping, Shaping::LabelOnly);
    assert_eq!(watch.care(Step::Quarantine, 0.0).response.shaping, Shaping::LabelOnly);
    let watch = compiled("most = \"throttle\"");
    assert_eq!(watch.care(Step::Throttle, 0.9).response.shaping, Shaping::AsIs, "the owner allows no less");
    assert!(toml::from_str::<Config>("degrade = \"noise\"").is_err());
}

#[test]
fn who_asks_for_labels_first_is_charged_for_the_scores_that_come_after() {
    let (watch, now) = (watch(&calibration(), ""), Moment::now());
    let label =
        || vec![Tensor { name: "label".into(), datatype: Datatype::Int64, shape: vec![1], data: 1_i64.to_le_bytes().to_vec().into() }];
    let mut noise = Noise::new(&[11; 32], "twice");
    let (mut once, mut twice, mut explained) = (Caller::new(), Caller::new(), Caller::new());
    for _ in 0..8 {
        let values: [f32; WIDTH] = std::array::from_fn(|_| noise.normal());
        let said = answer(&values);
        once.lesson(&watch, row(&values), now).learn(&said, &said);
        for told in [&label(), &said, &said, &label()] {
            twice.lesson(&watch, row(&values), now).learn(&said, told);
        }
        explained.lesson(&watch, row(&values), now).learn(&said, &label());
        for _ in 0..2 {
            let lesson = Lesson { more: 100, explained: "x".into(), ..explained.lesson(&watch, row(&values), now) };
            lesson.learn(&said, &said);
        }
    }
    let (once, twice, explained) = (once.exposure(), twice.exposure(), explained.exposure());
    assert!(once.bits >= 8.0 * 20.0, "{once:?}");
    assert!((once.bits - twice.bits).abs() < 0.1, "{once:?} {twice:?}");
    assert_eq!((once.rows, twice.rows, explained.rows), (8, 8, 8));
    assert!((explained.bits - 101.0 * once.bits).abs() < 1.0, "{once:?} {explained:?}");
}

#[test]
fn what_is_under_way_is_counted_and_a_burst_takes_one_request_past_a_budget_at_most() {
    // 23 bits a row, of 120: requests of two rows each.
    let (watch, caller, now) = (watch(&calibration(), "bits = 0.5\nparameters = 10"), Caller::new(), Moment::now());
    let burst = || {
        let asked = (0..40).map(|at| watch.manner_of(&caller.known, (2, 23.0), 2 * at + 1, now.mono));
        let asked: Vec<_> = asked.map(|(manner, _, held)| (manner, held)).collect();
        asked.iter().filter(|(manner, _)| *manner == Manner::With(Care::default())).count()
    };
    assert_eq!(burst(), 3, "two are within it, and the third is past");
    assert_eq!(locked(&caller.known.pupil).awaited, Awaited::default(), "what is dropped is given back");
    assert_eq!(burst(), 3);
    let (far, none) = (watch_with(&calibration(), "", "bits = 0.5\nparameters = 10000"), watch_with(&calibration(), "", ""));
    for watch in [far, none] {
        let asked: Vec<_> = (0..40).map(|at| watch.manner_of(&caller.known, (2, 23.0), at + 1, now.mono)).collect();
        assert!(asked.iter().all(|(manner, ..)| *manner == Manner::With(Care::default())), "who is far from a budget notices nothing");
    }
}

#[test]
fn a_reload_forgets_nothing_and_what_is_told_of_versions_adds_up() {
    let (one, other, policy, now) = (calibration(), calibration(), "bits = 0.5\nparameters = 10", Moment::now());
    let (mut caller, mut noise) = (Caller::new(), Noise::new(&[12; 32], "reload"));
    let mut ask = |caller: &mut Caller, watch: &Arc<Watch>, rows: usize| {
        (0..rows).for_each(|_| assert!(caller.ask(watch, &std::array::from_fn::<_, WIDTH, _>(|_| noise.normal()), now)));
    };
    let first = watch(&one, policy);
    ask(&mut caller, &first, 3);
    let told = caller.exposure();
    assert!(told.bits >= 60.0);
    // Both are read anew, then the old one goes; and the other version is asked first.
    let (first, second) = (watch(&one, policy), (watch(&other, policy), drop(first)).0);
    let rows = |caller: &Caller| locked(&caller.known.pupil).learned.iter().map(|learned| learned.state.rows).collect::<Vec<_>>();
    ask(&mut caller, &second, 1);
    assert_eq!(rows(&caller), [3, 1]);
    assert!(caller.exposure().bits > told.bits + 20.0, "{:?}", caller.exposure());
    // What is told of both is of one model: together they spend the budget that neither does.
    ask(&mut caller, &first, 1);
    ask(&mut caller, &second, 1);
    assert!(second.budgets.is_past(caller.exposure()));
    let Manner::With(care) = second.manner(&caller.known.pupil, caller.rows + 1, now.mono).0 else { panic!("nobody is turned away") };
    assert_eq!(care.response.shaping, Shaping::LabelOnly);
    // A calibration that is gone takes along what was learned under it.
    drop(first);
    let third = watch(&calibration(), policy);
    ask(&mut caller, &third, 1);
    assert_eq!(rows(&caller), [2, 1]);
    assert_eq!(caller.exposure().rows, 3);
}

#[tokio::test]
async fn what_was_learned_under_a_calibration_that_is_gone_counts_no_longer_and_a_budget_is_told_of_anew() {
    let (one, other, policy, now) = (calibration(), calibration(), "bits = 0.5\nparameters = 10", Moment::now());
    let (events, mut reader) = channel(64);
    let (mut caller, mut noise) = (Caller { events, ..Caller::new() }, Noise::new(&[14; 32], "gone"));
    let mut ask = |caller: &mut Caller, watch: &Arc<Watch>, rows: usize| {
        for _ in 0..rows {
            caller.ask(watch, &std::array::from_fn::<_, WIDTH, _>(|_| noise.normal()), now);
        }
    };
    let (first, second) = (watch(&one, policy), watch(&other, policy));
    ask(&mut caller, &second, 1);
    let of_second = caller.exposure();
    ask(&mut caller, &first, 6);
    assert!(first.budgets.is_past(caller.exposure()));
    drop(first);
    assert_eq!(caller.exposure(), of_second);
    // Of what was two versions one is left, and nobody else was asked.
    ask(&mut caller, &second, 1);
    assert_eq!(locked(&caller.known.pupil).learned.len(), 1);
    assert!(!second.budgets.is_past(caller.exposure()));
    ask(&mut caller, &second, 5);
    drop(caller);
    let mut told = 0;
    while let Some(event) = reader.next().await {
        told += u32::from(event.rule.as_deref() == Some("exposure"));
    }
    assert_eq!(told, 2);
}

#[tokio::test]
async fn who_takes_turns_between_a_version_with_a_budget_and_one_without_is_told_of_once() {
    let (events, mut reader) = channel(64);
    let (mut caller, mut noise) = (Caller { events, ..Caller::new() }, Noise::new(&[16; 32], "turns"));
    let versions = [watch(&calibration(), "bits = 0.5\nparameters = 10"), watch(&calibration(), "")];
    for turn in 0..40 {
        caller.ask(&versions[turn % 2], &std::array::from_fn::<_, WIDTH, _>(|_| noise.normal()), Moment::now());
    }
    assert!(versions[0].budgets.is_past(caller.exposure()));
    drop(caller);
    let mut told = 0;
    while let Some(event) = reader.next().await {
        told += u32::from(event.rule.as_deref() == Some("exposure"));
    }
    assert_eq!(told, 1);
}

#[test]
fn what_was_spent_under_a_calibration_that_is_gone_is_no_evidence() {
    let (first, mut caller) = (watch(&calibration(), "bits = 0.5\nparameters = 10"), Caller::new());
    let mut noise = Noise::new(&[15; 32], "gone");
    caller.ask(&first, &std::array::from_fn::<_, WIDTH, _>(|_| noise.normal()), Moment::now());
    assert!(locked(&caller.known.pupil).has_evidence());
    drop(first);
    assert!(!locked(&caller.known.pupil).has_evidence());
}
