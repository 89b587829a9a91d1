use std::collections::BTreeMap;

use super::*;
use crate::authorize::{Resource, Serves};
use crate::trail::Assurance;

fn model(version: &str, traffic: Traffic) -> Arc<Model<()>> {
    let which =
        Which { name: "m".into(), version: version.into(), digest: None, format: "onnx".into(), assurance: Assurance::VerifiedInProcess };
    let resource = Resource { name: "m".into(), public: true, tenants: Vec::new() };
    Arc::new(Model { which: Arc::new(which), resource, serves: Serves::Oip, traffic, terms: Arc::new(()) })
}

fn versions(shares: &[(&str, u32)], sticky: bool) -> Versions<()> {
    Versions::new(shares.iter().map(|(version, share)| model(version, Traffic::Answers { share: *share, sticky })).collect()).unwrap()
}

fn shadow() -> Traffic {
    Traffic::Shadows(Shadowing { sample: 1.0, tolerance: 0.0, compare: Compare::Values })
}

/// How often each version is drawn by so many requests of their own, each of another caller.
fn drawn(versions: &Versions<()>, requests: u32) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for request in 0..requests {
        let id = Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, 1_800_000_000, 0));
        *counts.entry(versions.drawn(id, &format!("api_key:{request}")).which.version.to_string()).or_default() += 1;
    }
    counts
}

fn told(text: &str) -> (Traffic, Vec<String>) {
    let config: TrafficConfig = toml::from_str(text).unwrap();
    let mut mistakes = Vec::new();
    let traffic = config.resolve(&mut mistakes);
    (traffic, mistakes.into_iter().map(|mistake| mistake.what).collect())
}

#[test]
fn requests_are_split_by_shares_however_they_are_drawn() {
    for sticky in [false, true] {
        let counts = drawn(&versions(&[("1", 900), ("2", 100), ("3", 0)], sticky), 20_000);
        // Five standard deviations of 20,000 draws at one in ten.
        assert!((1_788..=2_212).contains(&counts["2"]), "sticky {sticky}: {counts:?}");
        assert_eq!(counts.get("3"), None, "a version without a share is drawn by nobody");
    }
}

#[test]
fn one_version_gets_all_whatever_its_share() {
    assert_eq!(drawn(&versions(&[("1", 1)], false), 100), BTreeMap::from([("1".to_owned(), 100)]));
}

#[test]
fn a_sticky_caller_keeps_its_version_and_moves_only_towards_what_has_grown() {
    let (before, after) = (versions(&[("1", 90), ("2", 10)], true), versions(&[("1", 70), ("2", 30)], true));
    let mut moved = 0;
    for caller in 0..5_000 {
        let caller = format!("jwt:https://issuer#{caller}");
        let at = |versions: &Versions<()>| versions.drawn(Uuid::from_u128(caller.len() as u128), &caller).which.version.clone();
        assert_eq!(at(&before), before.drawn(Uuid::now_v7(), &caller).which.version, "whatever the request");
        match (&*at(&before), &*at(&after)) {
            ("2", "1") => panic!("{caller} moved to a version whose share has shrunk"),
            ("1", "2") => moved += 1,
            _ => {}
        }
    }
    assert!((860..=1_140).contains(&moved), "a fifth of the callers moves: {moved}");
}

#[test]
fn the_edges_of_the_draw_belong_to_the_first_and_the_last_version() {
    let versions = versions(&[("1", 1), ("2", 1)], false);
    assert_eq!(&*versions.drawn(Uuid::from_u128(0), "").which.version, "1");
    assert_eq!(&*versions.drawn(Uuid::from_u128((1 << 61) - 1), "").which.version, "1");
    assert_eq!(&*versions.drawn(Uuid::from_u128(1 << 61), "").which.version, "2");
    assert_eq!(&*versions.drawn(Uuid::from_u128(u128::MAX), "").which.version, "2");
}

#[test]
fn a_shadow_is_neither_drawn_nor_named_nor_listed() {
    let answering = model("1", Traffic::default());
    let versions = Versions::new(vec![answering, model("2", shadow())]).unwrap();
    assert_eq!(drawn(&versions, 100).keys().collect::<Vec<_>>(), ["1"]);
    assert!(versions.named("1").is_some() && versions.named("2").is_none());
    assert_eq!((versions.answering().count(), versions.all().count()), (1, 2));
    assert!(Versions::new(vec![model("2", shadow())]).is_none(), "a shadow alone serves nobody");
}

#[test]
fn the_largest_share_speaks_for_the_name_and_of_equals_the_last_version() {
    assert_eq!(&*versions(&[("9", 50), ("10", 49)], false).foremost().which.version, "9");
    assert_eq!(&*versions(&[("9", 50), ("10", 50)], false).foremost().which.version, "10");
}

#[test]
fn versions_are_ordered_as_people_count() {
    let mut versions = ["10", "9", "1.10.0", "1.9.7", "", "v2", "1.9", "v10", "010", "2024-05-01", "a"];
    versions.sort_by(|a, b| by_version(a, b));
    assert_eq!(versions, ["", "1.9", "1.9.7", "1.10.0", "9", "10", "010", "2024-05-01", "a", "v2", "v10"]);
    // Numbers past any integer are still numbers.
    assert_eq!(by_version(&"9".repeat(50), &format!("1{}", "0".repeat(50))), Ordering::Less);
}

#[test]
fn what_a_table_says_is_taken_at_its_limits_and_told_past_them() {
    assert_eq!(told(""), (Traffic::Answers { share: 100, sticky: false }, Vec::new()));
    assert_eq!(told("share = 0\nsticky = true"), (Traffic::Answers { share: 0, sticky: true }, Vec::new()));
    assert_eq!(told("share = 1000").1, Vec::<String>::new());
    assert!(told("share = 1001").1[0].contains("from 0 to 1000"));
    assert!(toml::from_str::<TrafficConfig>("share = -1").is_err());
    let all = Shadowing { sample: 1.0, tolerance: 0.001, compare: Compare::Values };
    assert_eq!(told("shadow = true"), (Traffic::Shadows(all), Vec::new()));
    assert_eq!(told("shadow = true\nsample = 0.5\ntolerance = 0.0\ncompare = \"labels\"").1, Vec::<String>::new());
    for wrong in ["sample = 0.0", "sample = 1.01", "sample = nan", "tolerance = -0.1", "tolerance = inf", "share = 1", "sticky = true"] {
        assert_eq!(told(&format!("shadow = true\n{wrong}")).1.len(), 1, "{wrong}");
    }
    for of_shadows in ["sample = 0.5", "tolerance = 0.1", "compare = \"labels\"", "shadow = false\nsample = 0.5"] {
        assert!(told(of_shadows).1[0].contains("shadow = true"), "{of_shadows}");
    }
}
