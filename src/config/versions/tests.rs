use super::*;
use crate::authorize::traffic::{Compare, Shadowing};
use crate::wire::tensor::Datatype;

fn budget(text: &str) -> budget::Terms {
    let mut mistakes = Vec::new();
    let terms = toml::from_str::<budget::Config>(text).unwrap().compile(&mut mistakes);
    assert!(mistakes.is_empty());
    terms
}

fn port(name: &str, datatype: Datatype) -> Port {
    Port { name: name.to_owned(), datatype, shape: vec![None] }
}

/// A version that runs in this machine and says its share.
fn version(file: &str, share: u32) -> Standing {
    Standing {
        file: file.to_owned(),
        at: 7..8,
        resource: Resource { name: "m".into(), public: false, tenants: vec!["a".to_owned(), "b".to_owned()] },
        serves: Serves::Oip,
        route: None,
        budget: budget(""),
        traffic: Traffic::Answers { share, sticky: false },
        says_share: true,
        inputs: Some(vec![port("x", Datatype::Fp32), port("y", Datatype::Int64)]),
    }
}

fn silent(file: &str) -> Standing {
    Standing { says_share: false, traffic: Traffic::default(), ..version(file, 0) }
}

fn shadow(file: &str) -> Standing {
    let traffic = Traffic::Shadows(Shadowing { sample: 1.0, tolerance: 0.0, compare: Compare::Values });
    Standing { traffic, says_share: false, ..version(file, 0) }
}

/// The files that are told, with what is told of them.
fn told(files: &[Standing]) -> Vec<(String, String)> {
    disagreements(files).into_iter().map(|(file, mistake)| (file, mistake.what)).collect()
}

fn told_of_second(change: impl FnOnce(&mut Standing)) -> String {
    let mut second = version("b", 1);
    change(&mut second);
    let told = told(&[version("a", 1), second]);
    assert!(told.len() == 1 && told[0].0 == "b", "{told:?}");
    told[0].1.clone()
}

#[test]
fn versions_that_agree_are_no_mistake() {
    assert_eq!(told(&[version("a", 90), version("b", 10), version("c", 0)]), []);
    let reordered = Resource { tenants: vec!["b".to_owned(), "a".to_owned(), "a".to_owned()], ..version("", 0).resource };
    assert_eq!(told(&[version("a", 1), Standing { resource: reordered, ..version("b", 1) }]), []);
    assert_eq!(told(&[silent("a")]), [], "one version alone gets all");
    assert_eq!(told(&[silent("a"), version("b", 5)]), [], "of several one may say nothing");
    assert_eq!(told(&[silent("a"), shadow("b"), shadow("c")]), []);
    let other_name = Resource { name: "n".into(), public: true, tenants: Vec::new() };
    assert_eq!(told(&[silent("a"), Standing { resource: other_name, ..silent("b") }]), []);
}

#[test]
fn what_is_a_names_is_the_same_in_all_of_its_files() {
    assert!(told_of_second(|second| second.resource.public = true).contains("`public` and `tenants`"));
    assert!(told_of_second(|second| second.resource.tenants.truncate(1)).contains("`public` and `tenants`"));
    assert!(told_of_second(|second| second.serves = Serves::OpenAi).contains("[backend]"));
    assert!(told_of_second(|second| second.route = Some("/predict".to_owned())).contains("[route]"));
    assert!(told_of_second(|second| second.budget = budget("[default]\nin_flight = 1")).contains("[budget]"));
    assert!(told_of_second(|second| second.traffic = Traffic::Answers { share: 1, sticky: true }).contains("`sticky`"));
}

#[test]
fn somebody_must_have_a_share_and_only_one_may_say_nothing() {
    assert!(told(&[version("a", 0)])[0].1.contains("no version of `m` has a share"));
    assert!(told(&[version("a", 0), version("b", 0)])[0].1.contains("no version of `m` has a share"));
    let two = told(&[silent("a"), version("b", 1), silent("c")]);
    assert!(two.len() == 1 && two[0].0 == "c" && two[0].1.contains("nor a says"), "{two:?}");
    assert_eq!(told(&[silent("a"), silent("b"), silent("c")]).len(), 2);
}

#[test]
fn a_shadow_follows_a_version_that_answers_takes_the_same_and_runs_here() {
    assert!(told(&[shadow("a")])[0].1.contains("needs a version"));
    let upstream = Standing { inputs: None, serves: Serves::OpenAi, ..silent("a") };
    let shadow_upstream = Standing { inputs: None, serves: Serves::OpenAi, ..shadow("b") };
    assert!(told(&[upstream, shadow_upstream])[0].1.contains("only a model in this machine"));
    let reordered = vec![port("y", Datatype::Int64), port("x", Datatype::Fp32)];
    assert_eq!(told(&[silent("a"), Standing { inputs: Some(reordered), ..shadow("b") }]), []);
    for others in [vec![port("x", Datatype::Fp32)], vec![port("x", Datatype::Fp64), port("y", Datatype::Int64)]] {
        assert!(told(&[silent("a"), Standing { inputs: Some(others), ..shadow("b") }])[0].1.contains("inputs"));
    }
}

#[test]
fn as_many_versions_as_may_be_are_taken_and_one_more_is_told() {
    let files = |count: usize| (0..count).map(|file| version(&format!("{file:02}"), 1)).collect::<Vec<_>>();
    assert_eq!(told(&files(MAX_VERSIONS)), []);
    let past = told(&files(MAX_VERSIONS + 1));
    assert!(past.len() == 1 && past[0].0 == "16" && past[0].1.contains("17 versions"), "{past:?}");
}
