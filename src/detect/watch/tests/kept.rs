//! What is known of a caller outlives the process.

use super::*;
use crate::detect::watch::kept::{Calibrations, Kept};

/// As another process reads what this one wrote.
fn written(caller: &Caller, now: Moment) -> Option<Kept> {
    let kept = locked(&caller.known.pupil).kept(now)?;
    let text = serde_json::to_string(&kept).unwrap();
    let read = serde_json::from_str::<Kept>(&text).unwrap();
    assert_eq!(read, kept);
    assert!(read.is_sound(), "{text}");
    Some(read)
}

fn restarted(before: &Caller, kept: &Kept, watches: &[&Arc<Watch>], now: Moment) -> Caller {
    let calibrations: Calibrations = watches.iter().copied().collect();
    let pupil = Pupil::restored(kept, false, &calibrations, now);
    Caller { known: Arc::new(Known::restored(now.mono, before.rows, pupil)), rows: before.rows, ..Caller::new() }
}

#[test]
fn a_budget_that_was_spent_is_spent_and_the_step_is_stood_on_until_the_caller_was_calm() {
    let (watch, now) = (watch(&calibration(), "bits = 0.5\nparameters = 10"), Moment::now());
    let (mut caller, mut noise) = (Caller::new(), Noise::new(&[6; 32], "thief"));
    assert_eq!(written(&caller, now), None, "of nobody nothing is kept");
    let mut ask = |caller: &mut Caller, rows: usize, now| {
        for _ in 0..rows {
            caller.ask(&watch, &std::array::from_fn::<_, WIDTH, _>(|_| noise.normal()), now);
        }
    };
    ask(&mut caller, 4, now);
    let (part, half) = (caller.exposure(), written(&caller, now).unwrap());
    ask(&mut caller, 96, now);
    assert_eq!(caller.step(), Step::Degrade);
    let (spent, whole) = (caller.exposure(), written(&caller, now).unwrap());

    let later = now.after(DAY / 4);
    let mut again = restarted(&caller, &half, &[&watch], later);
    assert_eq!(again.exposure(), part);
    assert!(locked(&again.known.pupil).has_evidence(), "nobody loses his place for whom some of a budget is spent");
    ask(&mut again, 1, later);
    assert!(again.exposure().bits > part.bits && again.exposure().rows == part.rows + 1, "it goes on from there");

    let again = restarted(&caller, &whole, &[&watch], later);
    assert_eq!((again.exposure(), again.step()), (spent, Step::Degrade));
    let Manner::With(care) = watch.manner(&again.known.pupil, again.rows + 1, later.mono).0 else { panic!("nobody is turned away") };
    assert_eq!(care.response.shaping, Shaping::LabelOnly);

    // Under another calibration it is nothing, and the step stays.
    let other = self::watch(&calibration(), "bits = 0.5\nparameters = 10");
    let elsewhere = restarted(&caller, &whole, &[&other], later);
    assert_eq!((elsewhere.exposure().rows, elsewhere.step()), (0, Step::Degrade));
    assert_eq!(other.manner(&elsewhere.known.pupil, elsewhere.rows + 1, later.mono).1, None);
    let calm = now.after(DAY);
    assert_eq!(other.manner(&elsewhere.known.pupil, elsewhere.rows + 1, calm.mono).1, Some((Step::Degrade, Step::Throttle)));
}

#[test]
fn a_step_that_was_decided_comes_after_its_rows() {
    let (watch, now) = (watch(&calibration(), ""), Moment::now());
    let mut caller = Caller::new();
    caller.ask(&watch, &[0.5; WIDTH], now);
    assert!(locked(&caller.known.pupil).ladder.spend(Step::Degrade, 1, 30, &watch.rungs, now.mono));
    let again = restarted(&caller, &written(&caller, now).unwrap(), &[&watch], now);
    assert_eq!(watch.manner(&again.known.pupil, 30, now.mono).1, None);
    assert_eq!(watch.manner(&again.known.pupil, 31, now.mono).1, Some((Step::Observe, Step::Degrade)));
}

#[test]
fn what_cannot_be_is_not_sound() {
    let of = |fidelity: &str, bits: &str, calibration: &str| {
        let ladder = "{\"step\":\"alert\",\"by\":1,\"due\":[[\"block\",7]],\"heard\":0}";
        let learned = format!("{{\"calibration\":\"{calibration}\",\"fidelity\":{fidelity},\"bits\":{bits},\"rows\":1,\"told\":false}}");
        serde_json::from_str::<Kept>(&format!("{{\"ladder\":{ladder},\"learned\":[{learned}]}}")).is_ok_and(|kept| kept.is_sound())
    };
    let digest = Digest::of(b"").to_string();
    assert!(of("1.0", "0.5", &digest));
    for (fidelity, bits, calibration) in
        [("1.1", "0.5", &*digest), ("-0.1", "0.5", &digest), ("0.5", "-1", &digest), ("0.5", "1e999", &digest), ("0.5", "1", "ab")]
    {
        assert!(!of(fidelity, bits, calibration), "{fidelity} {bits} {calibration}");
    }
}
