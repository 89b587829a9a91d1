use super::super::Exposing;
use super::*;

fn may_spend(under_way: u64, has: Exposure, policy: &str, is_measured: bool) -> bool {
    let budgets = toml::from_str::<Exposing>(policy).unwrap().compile(&mut Vec::new());
    Awaited::of(under_way, 23.0).may_spend(has, &budgets, is_measured)
}

#[test]
fn as_many_rows_as_were_learned_are_under_way_where_fidelity_is_bounded_whatever_those_taught() {
    let after = |rows, under_way| may_spend(under_way, Exposure { rows, ..Exposure::default() }, "fidelity = 0.9", true);
    assert!(!after(0, 255) && after(0, 256));
    assert!(!after(20, 255) && after(20, 256), "rubbish comes first, and teaches nothing");
    assert!(!after(300, 299) && after(300, 300));
}

#[test]
fn who_is_not_measured_and_who_has_no_budget_is_held_to_none() {
    assert!(!may_spend(4_096, Exposure::default(), "fidelity = 0.9", false));
    assert!(!may_spend(4_096, Exposure::default(), "", true));
    assert!(may_spend(6, Exposure::default(), "bits = 0.5\nparameters = 10", false));
    let spent = Exposure { bits: 1_000.0, ..Exposure::default() };
    assert!(!may_spend(0, spent, "bits = 0.5\nparameters = 10", false), "what is spent is not under way");
}
