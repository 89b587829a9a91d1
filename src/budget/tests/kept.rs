//! What of budgets outlives the process.

use std::time::UNIX_EPOCH;

use super::*;
use crate::clock::Moment;

#[test]
fn what_is_used_outlives_the_process_and_what_has_come_since_is_there_again() {
    const TABLE: &str = "quota = { requests = \"3/day\", tokens = \"100/day\" }\nrequests = { rate = \"24/day\", burst = 12 }\ntokens = { rate = \"1000/s\" }";
    let case = Case::new(&format!("[default]\n{TABLE}\n[model]\nquota = {{ requests = \"4/day\" }}"));
    let moment = |after| Moment { mono: case.start + after, wall: UNIX_EPOCH + Duration::from_secs(1_795_000_000) + after };
    let (hour, day) = (Duration::from_secs(3_600), Duration::from_secs(86_400));
    case.ask("a", Some(70), ZERO).unwrap();
    case.ask("a", None, hour).unwrap();
    case.ask("idle", None, ZERO).unwrap();
    let kept = serde_json::to_string(&case.budget.kept(moment(hour)).collect::<Vec<_>>()).unwrap();
    assert!(!kept.contains("\"tokens\""), "a rate that is whole again in a second is not kept: {kept}");

    // Another process, which was started at another time by its clock that never steps.
    let again = |after| {
        let again = Case { budget: Budget::default(), terms: case.terms.clone(), start: case.start };
        let kept: Vec<Kept> = serde_json::from_str(&kept).unwrap();
        assert!(kept.iter().all(Kept::is_sound));
        kept.into_iter().for_each(|kept| again.budget.restore(kept, moment(after)));
        again
    };
    let soon = again(2 * hour);
    let left = soon.ask("a", None, 2 * hour).unwrap().standing.left;
    // Two requests of twelve were used, one an hour comes back; of the day's three none is left.
    assert_eq!(left.map(|left| left.unwrap().0), [11, 0, 1000, 100]);
    let error = soon.ask("a", None, 2 * hour).unwrap_err();
    assert_eq!((error.refused().rule(), error.refused().retry_after()), ("caller.requests", 22 * 3_600));
    let error = soon.ask("b", None, 2 * hour).unwrap_err();
    assert_eq!(error.refused().rule(), "model.requests", "of all callers three were used before");

    let next_day = again(day);
    let left = next_day.ask("a", None, day).unwrap().standing.left;
    assert_eq!(left[1].unwrap(), (2, 86_400), "a window that is over is over");
}

#[test]
fn what_no_limit_can_be_is_not_sound() {
    let of = |used: &str| serde_json::from_str::<Kept>(&format!("{{\"model\":\"m\",\"used\":[{used}]}}")).unwrap().is_sound();
    let limit = |count: u64, per: u64, burst: u64| {
        format!("{{\"limit\":\"token_quota\",\"count\":{count},\"per\":{per},\"burst\":{burst},\"used\":1,\"at\":0}}")
    };
    const DAY: u64 = 86_400_000_000_000;
    assert!(of(&limit(1, DAY, 1)) && of(&limit(1, 1, 1)) && of(""));
    for wrong in [limit(0, DAY, 1), limit(1, 0, 1), limit(1, DAY + 1, 1), limit(1, DAY, 0)] {
        assert!(!of(&wrong), "{wrong}");
    }
}
