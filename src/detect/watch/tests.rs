use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use super::super::{Known, price};
use super::wealth::Wealth;
use super::*;
use crate::event::channel;
use crate::wire::tensor::Datatype;

mod exposure;
mod kept;
mod repeats;
mod texts;

const WIDTH: usize = 8;

fn fp32(shape: &[u64], values: &[f32]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor { name: "x".into(), datatype: Datatype::Fp32, shape: shape.to_vec(), data: data.into() }
}

fn row(values: &[f32]) -> Vec<Tensor> {
    vec![fp32(&[1, values.len() as u64], values)]
}

/// What the model says: two classes, by the first two numbers.
fn answer(values: &[f32]) -> Vec<Tensor> {
    let sure = 1.0 / (1.0 + (values[1] - values[0]).exp());
    row(&[sure, 1.0 - sure])
}

fn honest(callers: usize, rows: usize) -> Recorded {
    let (mut noise, mut recorded) = (Noise::new(&[4; 32], "honest"), Recorded::default());
    for caller in 0..callers {
        for _ in 0..rows {
            let values: Vec<f32> = (0..WIDTH).map(|_| noise.normal()).collect();
            recorded.add(caller, &row(&values), &answer(&values));
        }
    }
    recorded
}

pub(in crate::detect) fn watch(calibration: &str, policy: &str) -> Arc<Watch> {
    watch_with(calibration, "most = \"quarantine\"", policy)
}

pub(in crate::detect) fn watch_with(calibration: &str, ladder: &str, policy: &str) -> Arc<Watch> {
    compiled(calibration, ladder, policy, true)
}

pub(in crate::detect) fn watch_in_shadow(calibration: &str, policy: &str) -> Arc<Watch> {
    compiled(calibration, "", policy, false)
}

fn compiled(calibration: &str, ladder: &str, policy: &str, enforced: bool) -> Arc<Watch> {
    let (mut mistakes, exposing) = (Vec::new(), toml::from_str(policy).unwrap());
    let config: Config = toml::from_str(ladder).unwrap();
    let watch = config.compile(&exposing, Some(calibration), None, enforced, &mut mistakes);
    assert!(mistakes.is_empty(), "{mistakes:?}");
    Arc::new(watch.unwrap())
}

/// Puts a caller on a step, from the next row on.
pub(in crate::detect) fn stand(watch: &Watch, pupil: &Mutex<Pupil>, step: Step, now: Instant) {
    assert!(locked(pupil).ladder.spend(step, 0, 0, &watch.rungs, now));
}

pub(in crate::detect) fn calibration() -> String {
    calibrate("m", 0.1, honest(20, 12)).map_err(|error| error.to_string()).unwrap().text
}

struct Caller {
    known: Arc<Known>,
    room: Arc<Room>,
    events: Events,
    rows: u64,
}

impl Caller {
    fn new() -> Self {
        Self::in_room(Arc::new(Room::new(100)))
    }

    fn in_room(room: Arc<Room>) -> Self {
        Self { known: Arc::new(Known::new(Instant::now())), room, events: channel(1).0, rows: 0 }
    }

    fn lesson(&mut self, watch: &Arc<Watch>, inputs: Vec<Tensor>, now: Moment) -> Lesson {
        self.rows += 1;
        let who = Who { caller: "a".into(), tenant: "".into(), tier: "".into(), method: "api_key" };
        Lesson {
            caller: 1,
            cohorts: Vec::new(),
            watch: watch.clone(),
            pupil: self.known.clone(),
            room: self.room.clone(),
            unwatched: Arc::default(),
            studies: Studies::closed().into(),
            full: AtomicBool::default(),
            inputs,
            first: self.rows,
            more: 0,
            explained: Box::default(),
            who: who.into(),
            model: None,
            receipt: uuid::Uuid::from_u128(u128::from(self.rows)),
            events: self.events.clone(),
            at: now,
            _held: Held::default(),
        }
    }

    /// Asks about a row, and tells whether it was answered.
    fn ask(&mut self, watch: &Arc<Watch>, values: &[f32], now: Moment) -> bool {
        let answered = watch.manner(&self.known.pupil, self.rows + 1, now.mono).0 != Manner::NotNow;
        let lesson = self.lesson(watch, row(values), now);
        if answered {
            lesson.learn(&answer(values), &answer(values));
        }
        answered
    }

    fn step(&self) -> Step {
        locked(&self.known.pupil).step()
    }

    fn exposure(&self) -> Exposure {
        locked(&self.known.pupil).exposure()
    }
}

/// Along one line, by one size.
fn search(at: u64) -> [f32; WIDTH] {
    std::array::from_fn(|place| (at % 512) as f32 * if place % 2 == 0 { 0.004 } else { -0.004 })
}

const DAY: Duration = Duration::from_secs(24 * 3_600);

#[test]
fn who_goes_on_is_not_forgiven_and_who_was_forgiven_is_heard_again() {
    let (watch, mut caller, now) = (watch(&calibration(), ""), Caller::new(), Moment::now());
    for at in 0..400 {
        caller.ask(&watch, &search(at), now);
    }
    let step = caller.step();
    assert!(step >= Step::Throttle, "{step:?}");
    for hours in 1..100 {
        for at in 0..8 {
            caller.ask(&watch, &search(400 + hours * 8 + at), now.after(DAY / 24 * u32::try_from(hours).unwrap()));
        }
    }
    assert!(caller.step() >= step, "an attack that goes on is not calm");
    // Away for a week, it is forgiven a step whenever it looks; what it does then is seen as it was at first.
    for days in 0..9 {
        let now = now.after(DAY * (10 + days));
        watch.manner(&caller.known.pupil, caller.rows, now.mono);
    }
    assert_eq!(caller.step(), Step::Observe);
    for at in 0..400 {
        caller.ask(&watch, &search(at * 2 + 1), now.after(DAY * 20));
    }
    assert!(caller.step() >= Step::Throttle);
}

#[test]
fn where_answers_have_a_price_a_spent_budget_is_paid_for_and_the_price_rises_with_what_is_told() {
    let calibration = calibration();
    let watch = watch_with(&calibration, "price = true", "bits = 0.5\nparameters = 10");
    let (mut caller, now, mut noise) = (Caller::new(), Moment::now(), Noise::new(&[6; 32], "thief"));
    assert_eq!(watch.due(&caller.known.pupil, 1), price::Difficulty::STANDING);
    for _ in 0..100 {
        let values: [f32; WIDTH] = std::array::from_fn(|_| noise.normal());
        caller.ask(&watch, &values, now);
    }
    assert_eq!(caller.step(), Step::Price);
    assert!(watch.due(&caller.known.pupil, 1) >= price::Difficulty::SPENT);
    assert!(
        watch.due(&caller.known.pupil, 4) > watch.due(&caller.known.pupil, 1)
            || watch.due(&caller.known.pupil, 1) == price::Difficulty::MOST
    );
    for days in 1..5 {
        let manner = watch.manner(&caller.known.pupil, caller.rows + 1, now.after(DAY * days).mono).0;
        assert!(matches!(manner, Manner::ForWork(_)), "{days}: what was learned is not unlearned by waiting");
    }
}

#[test]
fn in_shadow_a_caller_keeps_its_step_and_is_found_there_but_for_what_calm_takes() {
    let (calibration, now) = (calibration(), Instant::now());
    let (enforced, shadow) = (watch_with(&calibration, "most = \"block\"", ""), watch_in_shadow(&calibration, ""));
    let pupil = Mutex::new(Pupil::default());
    stand(&enforced, &pupil, Step::Quarantine, now);
    assert_eq!(enforced.manner(&pupil, 1, now).1, Some((Step::Observe, Step::Quarantine)));
    // However long it was, and though a policy in shadow ends its ladder earlier.
    assert_eq!(shadow.manner(&pupil, 2, now + 5 * CALM), (Manner::With(Care::default()), None));
    assert_eq!(locked(&pupil).step(), Step::Quarantine);
    assert_eq!(enforced.manner(&pupil, 3, now), (Manner::With(enforced.care(Step::Quarantine, 0.0)), None));
    let back = now + 5 * CALM;
    assert_eq!(enforced.manner(&pupil, 4, back).1, Some((Step::Quarantine, Step::Degrade)));
    assert_eq!(enforced.manner(&pupil, 5, back).1, None, "one step a time");
}

#[test]
fn in_shadow_nobody_is_asked_for_work() {
    let mut mistakes = Vec::new();
    let (config, exposing): (Config, Exposing) =
        (toml::from_str("price = true").unwrap(), toml::from_str("bits = 0.5\nparameters = 10").unwrap());
    let watch = Arc::new(config.compile(&exposing, Some(&calibration()), None, false, &mut mistakes).unwrap());
    let (mut caller, now, mut noise) = (Caller::new(), Moment::now(), Noise::new(&[6; 32], "thief"));
    for _ in 0..200 {
        let values: [f32; WIDTH] = std::array::from_fn(|_| noise.normal());
        caller.ask(&watch, &values, now);
        assert_eq!(watch.manner(&caller.known.pupil, caller.rows, now.mono), (Manner::With(Care::default()), None));
    }
    assert!(caller.exposure().bits > 115.0);
}

#[test]
fn a_caller_who_takes_turns_between_versions_is_known_to_both() {
    let now = Moment::now();
    let versions = [watch(&calibration(), "bits = 1.0\nparameters = 10"), watch(&calibration(), "bits = 1.0\nparameters = 10")];
    let mut caller = Caller::new();
    let mut noise = Noise::new(&[6; 32], "thief");
    for at in 0..100 {
        let values: [f32; WIDTH] = std::array::from_fn(|_| noise.normal());
        caller.ask(&versions[at % 2], &values, now);
    }
    assert_eq!(locked(&caller.known.pupil).learned.iter().map(|learned| learned.state.rows).collect::<Vec<_>>(), [50, 50]);
    assert_eq!((caller.exposure().rows, caller.step()), (100, Step::Degrade));
    // What no policy has any more is let go when there is something new.
    drop(versions);
    caller.ask(&watch(&calibration(), ""), &[0.5; WIDTH], now);
    assert_eq!(locked(&caller.known.pupil).learned.len(), 1);
}

#[test]
fn a_search_whose_answers_nobody_reads_is_seen() {
    let (watch, mut caller, now) = (watch(&calibration(), ""), Caller::new(), Moment::now());
    for at in 0..200 {
        caller.lesson(&watch, row(&search(at)), now).learn(&[], &[]);
    }
    assert!(caller.step() >= Step::Alert);
}

#[test]
fn one_of_each_four_requests_is_let_through_and_nobody_knows_which() {
    let mut throttle = Throttle::default();
    let rounds: Vec<[bool; 4]> = (0..200).map(|_| std::array::from_fn(|_| throttle.lets_through())).collect();
    assert!(rounds.iter().all(|round| round.iter().filter(|through| **through).count() == 1));
    for place in 0..4 {
        assert!(rounds.iter().any(|round| round[place]), "{place}");
    }
}

#[test]
fn who_finds_no_place_is_counted_and_who_has_evidence_against_him_keeps_his() {
    let (watch, now) = (watch(&calibration(), ""), Moment::now());
    let room = Arc::new(Room::new(2));
    let mut thief = Caller::in_room(room.clone());
    for at in 0..400 {
        thief.ask(&watch, &search(at), now);
    }
    assert!(thief.step() >= Step::Alert);
    let mut noise = Noise::new(&[8; 32], "others");
    let mut asks = |caller: &mut Caller, rows: usize| {
        for _ in 0..rows {
            caller.ask(&watch, &std::array::from_fn::<_, WIDTH, _>(|_| noise.normal()), now);
        }
    };
    let close = |caller: &Caller| locked(&caller.known.pupil).learned[0].state.is_close();
    let (mut first, mut second) = (Caller::in_room(room.clone()), Caller::in_room(room.clone()));
    asks(&mut first, 3);
    assert!(!close(&first), "three rows are kept of everyone");
    asks(&mut first, 1);
    assert!(close(&first));
    // Whoever has asked since the last round keeps his place once.
    asks(&mut second, 4);
    assert!(close(&first) && !close(&second));
    asks(&mut second, 1);
    assert!(!close(&first) && close(&second), "it goes to who asks from who is silent");
    assert!(close(&thief), "however long he is silent");
    assert_eq!(room.taken(), 2);
    assert_eq!(first.exposure().rows, 4, "what was learned stays");
}

#[test]
fn a_suspicion_keeps_a_place_until_somebody_must_have_it_and_a_cause_for_ever() {
    let (watch, now) = (watch(&calibration(), "bits = 0.5\nparameters = 100"), Moment::now());
    let room = Arc::new(Room::new(1));
    let mut noise = Noise::new(&[8; 32], "others");
    let mut asks = |caller: &mut Caller, rows: usize| {
        for _ in 0..rows {
            caller.ask(&watch, &std::array::from_fn::<_, WIDTH, _>(|_| noise.normal()), now);
        }
    };
    let close = |caller: &Caller| locked(&caller.known.pupil).learned[0].state.is_close();
    let [mut first, mut second, mut third] = [(); 3].map(|()| Caller::in_room(room.clone()));
    asks(&mut first, 4);
    locked(&first.known.pupil).learned[0].state.wealth[1] = Wealth(EVIDENCE + 1.0);
    asks(&mut second, 5);
    assert!(!close(&first) && close(&second), "nobody else could give way");
    assert_eq!(locked(&first.known.pupil).learned[0].state.wealth[1], Wealth(EVIDENCE + 1.0), "and the suspicion stays");
    // A tenth of the budget is spent: what it was spent on is not to be forgotten.
    asks(&mut second, 40);
    asks(&mut third, 40);
    assert!(close(&second) && !close(&third));
    assert!(second.exposure().bits > 0.1 * 0.5 * 2400.0, "{}", second.exposure().bits);
}

#[test]
fn what_is_kept_of_a_caller_is_less_than_a_kibibyte_at_first_and_32_when_watched() {
    let (watch, now) = (watch(&calibration(), ""), Moment::now());
    let mut noise = Noise::new(&[8; 32], "size");
    let mut caller = Caller::new();
    let mut kept = |rows: u64| {
        while caller.rows < rows {
            caller.ask(&watch, &std::array::from_fn::<_, WIDTH, _>(|_| noise.normal()), now);
        }
        let pupil = locked(&caller.known.pupil);
        let learned: usize = pupil.learned.iter().map(|learned| learned.state.kept() + learned.loss.kept()).sum();
        size_of::<Known>() + pupil.learned.capacity() * size_of::<Learned>() + learned
    };
    let (first, few, many) = (kept(1), kept(3), kept(1_000));
    // These callers taught too little for a holdout: there is no meter among what they keep, and one takes so much at most.
    let many = many + Loss::MOST_KEPT;
    assert!(first <= 1 << 10, "{first}");
    assert!(few <= 3 << 9, "three rows are kept: {few}");
    assert!(many <= 32 << 10, "{many}");
}

#[test]
fn repeats_are_no_evidence_of_what_is_honest() {
    let of_inputs = |different: usize| {
        let mut recorded = Recorded::default();
        for caller in 0..20 {
            for number in 0..12 {
                let values: Vec<f32> = (0..WIDTH).map(|at| ((number % different) * (at + 1)) as f32 / 64.0).collect();
                recorded.add(caller, &row(&values), &answer(&values));
            }
        }
        calibrate("m", 0.1, recorded).map_err(|error| error.to_string()).map(drop)
    };
    let refused = of_inputs(1).unwrap_err();
    assert!(refused.starts_with("the recording has 1 different inputs") && refused.contains("record 9 more"), "{refused}");
    assert!(of_inputs(9).unwrap_err().contains("record 1 more"));
    assert_eq!(of_inputs(10), Ok(()));
}

#[test]
fn rows_of_another_width_are_left_out_and_told_and_callers_of_no_others_with_them() {
    let mut recorded = honest(20, 12);
    let calibrated = |recorded| calibrate("m", 0.1, recorded).map_err(|error| error.to_string());
    recorded.add(3, &row(&[0.5; WIDTH + 1]), &answer(&[0.5; WIDTH]));
    recorded.add(20, &row(&[0.5; WIDTH - 1]), &answer(&[0.5; WIDTH]));
    let made = calibrated(recorded).unwrap();
    assert_eq!((made.left, made.callers, made.rows), (2, 20, 240));
    assert_eq!(calibrated(honest(20, 12)).unwrap().left, 0);
}

fn sent(name: &str, shape: &[u64]) -> Tensor {
    let count = shape.iter().product::<u64>();
    let data: Vec<u8> = (0..count).map(|at| at as u8).collect();
    Tensor { name: name.into(), datatype: Datatype::Uint8, shape: shape.to_vec(), data: data.into() }
}

#[test]
fn a_label_that_is_no_classes_number_is_a_mistake_where_a_model_is_calibrated() {
    let mut recorded = honest(20, 12);
    let label = |label: i64| Tensor { datatype: Datatype::Int64, data: label.to_le_bytes().to_vec().into(), ..fp32(&[1], &[]) };
    recorded.add(3, &row(&[1.0; WIDTH]), &[label(5_000_000_000)]);
    let mistake = calibrate("m", 0.1, recorded).map_err(|error| error.to_string()).unwrap_err();
    assert!(mistake.contains("a label is the number of a class"), "{mistake}");
}

#[test]
fn rows_of_a_batch_that_says_more_than_it_holds_cost_what_new_ones_do_and_are_counted() {
    let (watch, mut caller) = (watch(&calibration(), ""), Caller::new());
    let lesson = caller.lesson(&watch, vec![sent("a", &[20, 1]), sent("b", &[1, 60_000])], Moment::now());
    let unwatched = lesson.unwatched.clone();
    let said = [fp32(&[20, 2], &[0.75, 0.25].repeat(20))];
    assert_eq!(lesson.learn(&said, &said).unwrap().rows, 20);
    assert_eq!(unwatched.load(std::sync::atomic::Ordering::Relaxed), 20 - 8, "eight of them are looked at");
}

#[test]
fn who_asks_beside_a_long_batch_of_the_same_caller_does_not_wait_for_all_of_it() {
    // A busy machine may not run the one who waits while the lock is free: he has more than one try, each with some sixty gaps.
    let got_between = || {
        let (watch, mut caller) = (watch(&calibration(), ""), Caller::new());
        let lesson = caller.lesson(&watch, vec![sent("x", &[4_000, WIDTH as u64])], Moment::now());
        let learns = std::thread::spawn(move || lesson.learn(&[], &[]));
        let mut between = false;
        while !between && !learns.is_finished() {
            let rows = locked(&caller.known.pupil).learned.first().map_or(0, |learned| learned.state.rows);
            between = (1..4_000).contains(&rows);
            std::thread::yield_now();
        }
        learns.join().unwrap();
        between
    };
    assert!((0..40).any(|_| got_between()));
}

/// What `outlier` is told of a caller who asks some rows as everybody does and then `rows`, at one false alarm in 1,000: the row of its alarm.
fn outlying(rows: impl Iterator<Item = [f32; WIDTH]>) -> Option<usize> {
    let mut text: serde_json::Value = serde_json::from_str(&calibration()).unwrap();
    text["bets"]["outlier"] = serde_json::json!({ "rate": 0.02, "alarm": 9.2 });
    let calibration = Calibration::read(text.to_string().as_bytes()).unwrap();
    let (mut state, mut noise) = (State::default(), Noise::new(&[13; 32], "as everybody"));
    let mut alarms = |values: &[f32; WIDTH]| {
        let said = answer(values);
        let told = Told::of(&said, 1)[0];
        let alarms = state.learn_closely(&calibration, &calibration.space.point(values), &told, |_, _| {});
        alarms.iter().any(|alarm| families::ALL[alarm.family].name == "outlier")
    };
    assert!(!(0..4).any(|_| alarms(&std::array::from_fn(|_| noise.normal()))));
    rows.take(100).position(|values| alarms(&values))
}

#[test]
fn who_asks_with_rows_of_another_kind_is_told_of_though_all_of_his_are() {
    let mut noise = Noise::new(&[14; 32], "of another kind");
    let found = outlying(std::iter::from_fn(|| Some(std::array::from_fn(|_| 2.0 + noise.normal()))));
    assert!(found.is_some_and(|row| row < 10), "{found:?}");
}

#[test]
fn a_camera_that_is_moved_is_odd_once() {
    let mut noise = Noise::new(&[15; 32], "a camera");
    assert_eq!(outlying(std::iter::from_fn(|| Some(std::array::from_fn(|_| 4.0 + 0.05 * noise.normal())))), None);
}

#[test]
fn much_is_learned_in_turn_and_little_where_it_is() {
    let (watch, mut caller) = (watch(&calibration(), ""), Caller::new());
    let mut size = |inputs: Vec<Tensor>| caller.lesson(&watch, inputs, Moment::now()).size();
    assert!(size(vec![sent("x", &[1, 8])]) < crate::heavy::MANY);
    assert!(size(vec![sent("x", &[32, 8])]) < crate::heavy::MANY);
    assert!(size(vec![sent("x", &[1_000, 1])]) >= crate::heavy::MANY, "few bytes, and many rows");
    assert!(size(vec![sent("x", &[1, 200_000])]) >= crate::heavy::MANY);
}
