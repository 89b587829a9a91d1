use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde_json::Value;

use super::super::bounds::{Bounds, Calibration, Of};
use super::super::calibrate::{Asked, fit, placed};
use super::super::loss::Kept;
use super::super::noise::Noise;
use super::super::rows::Told;
use super::super::{Crowd, DELAY, Exposing, Held, Living, Manner, Most, Room, Shaping, Studies, Watch};
use super::*;
use crate::clock::Moment;
use crate::digest::Digest;
use crate::event::{Event, Events, Reader, channel};
use crate::trail::Who;
use crate::wire::tensor::{Datatype, Tensor};

const WIDTH: usize = 8;

/// Whole numbers around 50, as honest callers send them.
fn honest(noise: &mut Noise) -> [f32; WIDTH] {
    std::array::from_fn(|_| (0..4).map(|_| noise.uniform() * 25.0).sum::<f32>().round())
}

/// The probability that the model tells of the second class.
fn score(row: &[f32; WIDTH]) -> f32 {
    1.0 / (1.0 + (-(row[0] + row[1] - row[2] - row[3]) / 8.0).exp())
}

fn tensor(values: &[f32]) -> Vec<Tensor> {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    vec![Tensor { name: "x".into(), datatype: Datatype::Fp32, shape: vec![1, values.len() as u64], data: data.into() }]
}

/// What 100 honest callers teach.
fn learned() -> Bounds {
    let mut noise = Noise::new(&[1; 32], "honest");
    let told = |row: &[f32; WIDTH]| Told::of(&tensor(&[1.0 - score(row), score(row)]), 1)[0];
    let asked = |row: [f32; WIDTH]| Asked { row: row.to_vec(), exact: 0, tokens: None, told: told(&row) };
    let callers = (0..100).map(|_| (0..20).map(|_| honest(&mut noise)).map(asked).collect());
    let recording: Vec<Vec<_>> = callers.collect();
    let (space, points) = placed([7; 32].into(), &recording).unwrap();
    let points: Vec<_> = points.iter().map(|points| &points[..]).collect();
    let (mut bounds, _) = fit("m", 0.01, (Of::Numbers, &space), &points).unwrap();
    let firsts: Vec<_> = points.iter().flat_map(|points| &points[..2]).collect();
    bounds.holdout = Some(Kept::uncorrected(&firsts));
    bounds
}

struct Place {
    watch: Arc<Watch>,
    family: Arc<str>,
    cohort: Arc<Known>,
    room: Arc<Room>,
    events: Events,
    reader: Reader,
    now: Moment,
}

impl Place {
    fn new(budget: &str) -> Self {
        static BOUNDS: OnceLock<Bounds> = OnceLock::new();
        let bounds = BOUNDS.get_or_init(learned).clone();
        let budgets = toml::from_str::<Exposing>(budget).unwrap().compile(&mut Vec::new());
        let rungs = Rungs { most: Step::Block, price: false, delay: DELAY, calm: std::time::Duration::from_secs(86_400) };
        let calibration = Calibration::of(bounds).unwrap();
        let watch = Watch {
            enforced: true,
            calibration,
            rungs,
            degrade: Shaping::LabelOnly,
            budgets,
            crowd: Crowd::default(),
            digest: Digest::of(b"calibration"),
            living: Living::of(Digest::of(b"calibration")),
            most: Most::default(),
        };
        let (events, reader) = channel(4_096);
        let now = Moment::now();
        Self {
            watch: Arc::new(watch),
            family: "family:key".into(),
            cohort: Arc::new(Known::new(now.mono)),
            room: Arc::new(Room::new(100)),
            events,
            reader,
            now,
        }
    }

    fn key(&self) -> Arc<Known> {
        Arc::new(Known::new(self.now.mono))
    }

    fn ask(&self, key: usize, known: &Arc<Known>, first: u64, row: &[f32; WIDTH]) {
        let said = tensor(&[1.0 - score(row), score(row)]);
        self.ask_for(key, known, first, row, &said);
    }

    fn ask_for(&self, key: usize, known: &Arc<Known>, first: u64, row: &[f32; WIDTH], told: &[Tensor]) {
        let said = tensor(&[1.0 - score(row), score(row)]);
        self.learn((key, known), first, tensor(row), (&said, told));
    }

    fn learn(&self, (key, known): (usize, &Arc<Known>), first: u64, inputs: Vec<Tensor>, (said, told): (&[Tensor], &[Tensor])) {
        let lesson = Lesson {
            more: 0,
            explained: Box::default(),
            watch: self.watch.clone(),
            pupil: known.clone(),
            room: self.room.clone(),
            unwatched: Arc::default(),
            studies: Studies::closed().into(),
            full: AtomicBool::default(),
            cohorts: vec![Cohort { kind: Kind::Family, name: self.family.clone(), known: self.cohort.clone() }],
            caller: Noise::new(&[9; 32], &format!("key-{key}")).next(),
            inputs,
            first,
            who: Arc::new(Who { caller: format!("key-{key}").into(), tenant: "".into(), tier: "".into(), method: "api_key" }),
            model: None,
            receipt: uuid::Uuid::from_u128(u128::from(first)),
            events: self.events.clone(),
            at: self.now,
            _held: Held::default(),
        };
        lesson.learn(said, told).unwrap();
    }

    async fn alarms(self) -> Vec<Event> {
        let Self { events, watch, cohort, mut reader, .. } = self;
        drop((events, watch, cohort));
        let mut alarms = Vec::new();
        while let Some(event) = reader.next().await {
            alarms.push(event);
        }
        alarms
    }
}

fn more(event: &Event, key: &str) -> Value {
    event.more.iter().find(|(name, _)| *name == key).map_or(Value::Null, |(_, value)| value.clone())
}

/// The n-th of a walk along a line, in steps that no honest caller's grid has.
fn walk(n: usize) -> [f32; WIDTH] {
    std::array::from_fn(|at| 30.0 + at as f32 * 3.0 + n as f32 * (0.413 + at as f32 * 0.071))
}

#[tokio::test]
async fn what_many_keys_ask_in_turn_is_seen_and_throttles_those_who_asked_it_and_nobody_else() {
    let place = Place::new("");
    let keys: Vec<_> = (0..32).map(|_| place.key()).collect();
    let (neighbour, mut noise) = (place.key(), Noise::new(&[2; 32], "neighbour"));
    for n in 0..64 {
        place.ask(n % 32, &keys[n % 32], n as u64 / 32 + 1, &walk(n));
        place.ask(99, &neighbour, n as u64 + 1, &honest(&mut noise));
    }
    let manner = |known: &Known| (0..3).map(|_| place.watch.manner(&known.pupil, 1_000, Instant::now()).0).collect::<Vec<_>>();
    let throttled = keys.iter().filter(|known| manner(known).contains(&Manner::NotNow)).count();
    assert!(throttled >= 8, "{throttled}");
    assert!(keys.iter().all(|known| locked(&known.pupil).ladder.step() <= Step::Throttle), "nobody has cause of its own for more");
    assert!(!manner(&neighbour).contains(&Manner::NotNow));
    let alarms = place.alarms().await;
    assert!(alarms.iter().all(|alarm| more(alarm, "cohort")["name"] == "family:key"), "two rows a key are no alarm");
    assert!(alarms.iter().all(|alarm| alarm.caller.as_deref() != Some("key-99")));
    let first: usize = alarms[0].caller.as_deref().unwrap()["key-".len()..].parse().unwrap();
    assert!(first < 20, "{first}");
    let callers = more(alarms.last().unwrap(), "cohort")["callers"].as_u64().unwrap();
    assert!((25..=41).contains(&callers), "{callers}");
}

#[tokio::test]
async fn callers_who_take_turns_with_what_if_tools_are_no_search() {
    let place = Place::new("");
    let mut noise = Noise::new(&[3; 32], "tools");
    let keys = [place.key(), place.key()];
    let bases = [honest(&mut noise), honest(&mut noise)];
    for n in 0..40 {
        let mut row = bases[n % 2];
        row[0] = 30.0 + n as f32;
        place.ask(n % 2, &keys[n % 2], n as u64 / 2 + 1, &row);
    }
    let alarms = place.alarms().await;
    assert!(alarms.is_empty(), "{alarms:?}");
}

#[test]
fn a_cohort_begins_as_its_first_caller_was_when_the_second_comes() {
    let place = Place::new("");
    let (first, second, mut noise) = (place.key(), place.key(), Noise::new(&[4; 32], "rows"));
    let rows = || locked(&place.cohort.pupil).exposure().rows;
    for n in 0..10 {
        place.ask(0, &first, n + 1, &honest(&mut noise));
    }
    assert_eq!(rows(), 0, "one caller is no cohort");
    place.ask(1, &second, 1, &honest(&mut noise));
    assert_eq!(rows(), 11);
    place.ask(0, &first, 11, &honest(&mut noise));
    assert_eq!(rows(), 12);
}

#[tokio::test]
async fn a_budget_that_a_cohort_has_spent_throttles_and_does_no_more_without_cause() {
    // A row tells 23 bits and the budget is 240: ten rows are within it, and the eleventh is past.
    let place = Place::new("bits = 0.01\nparameters = 1000");
    let keys = [place.key(), place.key()];
    let mut noise = Noise::new(&[5; 32], "rows");
    for n in 0..12 {
        place.ask(n % 2, &keys[n % 2], n as u64 / 2 + 1, &honest(&mut noise));
    }
    let bits = locked(&place.cohort.pupil).exposure().bits;
    for known in &keys {
        place.watch.manner(&known.pupil, 1_000, Instant::now());
        assert_eq!(locked(&known.pupil).ladder.step(), Step::Throttle, "{bits}");
    }
    let alarms = place.alarms().await;
    assert_eq!(alarms.len(), 2, "one for each, once: {alarms:?}");
    assert!(alarms.iter().all(|alarm| more(alarm, "family") == "exposure" && more(alarm, "cohort")["callers"] == 2));
}

#[test]
fn who_goes_on_asking_of_a_spent_cohort_is_not_forgiven_for_it() {
    let mut place = Place::new("bits = 0.01\nparameters = 1000");
    let keys = [place.key(), place.key()];
    let mut noise = Noise::new(&[5; 32], "rows");
    let calm = place.watch.rungs.calm;
    let step = |place: &Place, key: usize| {
        place.watch.manner(&keys[key].pupil, 1_000, place.now.mono);
        locked(&keys[key].pupil).ladder.step()
    };
    for n in 0..12 {
        place.ask(n % 2, &keys[n % 2], n as u64 / 2 + 1, &honest(&mut noise));
    }
    assert_eq!([0, 1].map(|key| step(&place, key)), [Step::Throttle; 2]);
    // The one asks a row every half of that time, and the other nothing.
    for n in 0..3 {
        place.now.mono += calm / 2;
        place.ask(0, &keys[0], 20 + n, &honest(&mut noise));
        assert_eq!(step(&place, 0), Step::Throttle, "{n}");
    }
    assert_eq!(step(&place, 1), Step::Alert);
    // It asks again.
    place.ask(1, &keys[1], 30, &honest(&mut noise));
    assert_eq!(step(&place, 1), Step::Throttle);
}

#[test]
fn what_is_not_looked_at_costs_the_cohort_as_well() {
    let bits = |rows: u64| {
        let (place, mut noise) = (Place::new(""), Noise::new(&[6; 32], "rows"));
        let keys = [place.key(), place.key()];
        (0..2).for_each(|key| place.ask(key, &keys[key], 1, &honest(&mut noise)));
        // Beside the rows lies one tensor that is sent once: no more of them than it has bytes for are looked at.
        let bytes = |shape: [u64; 2]| {
            let data = vec![7; (shape[0] * shape[1]) as usize];
            Tensor { name: "x".into(), datatype: Datatype::Uint8, shape: shape.to_vec(), data: data.into() }
        };
        let mut said = tensor(&[0.25, 0.75].repeat(rows as usize));
        said[0].shape = vec![rows, 2];
        place.learn((0, &keys[0]), 2, vec![bytes([rows, 1]), bytes([1, 60_000])], (&said, &said));
        locked(&place.cohort.pupil).exposure().bits
    };
    assert!(bits(40) > bits(20) + 6.0 * 20.0, "{} {}", bits(40), bits(20));
}

#[test]
fn what_one_key_asks_the_label_of_another_is_charged_the_scores_of() {
    let bits = |first: bool| {
        let place = Place::new("");
        let (keys, mut noise) = ([place.key(), place.key()], Noise::new(&[6; 32], "rows"));
        place.ask(0, &keys[0], 1, &honest(&mut noise));
        place.ask(1, &keys[1], 1, &honest(&mut noise));
        for n in 2..12 {
            let row = honest(&mut noise);
            if first {
                place.ask_for(0, &keys[0], n, &row, &tensor(&[0.0, 1.0]));
            }
            place.ask(1, &keys[1], n, &row);
            // Its own, that it asked the label of.
            if first {
                place.ask(0, &keys[0], n, &row);
            }
        }
        locked(&place.cohort.pupil).exposure().bits
    };
    assert!(bits(true) >= bits(false) - 0.1 && bits(true) < bits(false) + 0.1, "{} {}", bits(true), bits(false));
}

#[test]
fn what_a_cohort_had_learned_before_a_restart_is_gone_on_with_and_held_against_each_of_its_keys() {
    let mut place = Place::new("bits = 0.5\nparameters = 10");
    let (keys, mut noise) = ([place.key(), place.key()], Noise::new(&[6; 32], "rows"));
    for n in 0..40 {
        place.ask(n % 2, &keys[n % 2], n as u64 / 2 + 1, &honest(&mut noise));
    }
    let exposure = |known: &Arc<Known>| locked(&known.pupil).exposure();
    let had = exposure(&place.cohort);
    assert!(had.rows >= 30 && place.watch.budgets.is_past(had), "{had:?}");
    let now = Moment::now();
    let kept = locked(&place.cohort.pupil).kept(now).unwrap();
    let pupil = Pupil::restored(&kept, true, &[&place.watch].into_iter().collect(), now);
    place.cohort = Arc::new(Known::restored(now.mono, 40, pupil));
    assert_eq!(exposure(&place.cohort), had);
    // One key asks, then the other.
    let keys = [place.key(), place.key()];
    for (n, known) in keys.iter().enumerate() {
        place.ask(n, known, 1, &honest(&mut noise));
        let has = exposure(&place.cohort);
        assert!(has.rows == had.rows + n as u64 + 1 && has.bits > had.bits && has.fidelity >= had.fidelity, "{has:?}");
    }
}
