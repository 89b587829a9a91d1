//! Prints what the meter costs, and how near it comes to thieves; decides nothing.
//! `cargo test --lib -- --ignored --nocapture --test-threads 1 exposure::figures`
//!
//! For the second, `tests/exposure/thieves.py FOLDER` makes transcripts and trains thieves on them; `PORTCULLIS_TRANSCRIPTS` is FOLDER.
//! Optimised it takes a second for 48 points, and else some minutes. With `PORTCULLIS_OWN_THIEVES` the owner's own thieves are trained as well, as
//! calibration would, and what they correct is told beside what was measured.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use super::correction::{ABOVE, Correction, Thief};
use super::holdout::{FEATURES, Features, Holdout};
use super::meter::{Answer, Meter};
use super::thief;

#[test]
#[ignore = "measures, decides nothing"]
fn what_the_meter_costs() {
    let number = |at: usize| ((at * 2_654_435_761) % 1_000) as f32 / 250.0 - 2.0;
    let features = |at: usize| Features::of(&std::array::from_fn(|place| number(at * 64 + place)));
    let holdout = Holdout::new((0..512).map(|at| (features(at + 10_000), (at % 10) as u32)), 10).unwrap();
    let rows: Vec<(Features, Vec<f64>)> = (0..1_600)
        .map(|at| {
            let row: Vec<f64> = (0..10).map(|class| f64::from(number(at + class)).exp()).collect();
            let sum: f64 = row.iter().sum();
            (features(at), row.into_iter().map(|p| p / sum).collect())
        })
        .collect();
    let mut meter = Box::new(Meter::new(&holdout));
    let begun = Instant::now();
    for (features, row) in &rows {
        meter.learn(&holdout, features, Answer::Probabilities(row));
    }
    let each = begun.elapsed().as_secs_f64() / rows.len() as f64;
    let begun = Instant::now();
    for _ in 0..20 {
        black_box(meter.evaluate(&holdout, &Correction::default()));
    }
    let evaluation = begun.elapsed().as_secs_f64() / 20.0;
    let begun = Instant::now();
    let mut meter = Box::new(Meter::new(&holdout));
    for (features, row) in &rows {
        meter.learn(&holdout, features, Answer::Probabilities(row));
        if meter.is_due() {
            black_box(meter.evaluate(&holdout, &Correction::default()));
        }
    }
    let amortised = begun.elapsed().as_secs_f64() / rows.len() as f64;
    let study = meter.study().unwrap();
    let begun = Instant::now();
    black_box(study.on(&holdout));
    println!(
        "bytes {} learn {:.2} us, evaluate {:.2} ms, both over 1,600 rows {:.2} us a row; study {:.1} ms",
        meter.bytes(),
        each * 1e6,
        evaluation * 1e3,
        amortised * 1e6,
        begun.elapsed().as_secs_f64() * 1e3
    );
}

/// A file of little-endian floats of 32 bits.
fn floats(path: &Path) -> Vec<f32> {
    fs::read(path).unwrap().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn sketches(path: &Path) -> Vec<Features> {
    floats(path).as_chunks::<FEATURES>().0.iter().map(Features::of).collect()
}

/// One transcript: an attack on a world, so many rows of it.
struct Point {
    world: String,
    attack: String,
    answers: String,
    rows: u32,
    /// What the best thief has, the best of those that are not apart, and the best on the holdout itself.
    thieves: [f32; 3],
    /// What the students have that are tried on a request, and all students.
    measured: [f32; 2],
}

fn points(folder: &Path) -> Vec<Point> {
    let mut points = Vec::new();
    for line in fs::read_to_string(folder.join("thieves.tsv")).unwrap().lines() {
        let [world, attack, answers, rows, best, _, others, at_home] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let labels: Vec<u32> = floats(&folder.join(format!("{world}.labels"))).iter().map(|label| *label as u32).collect();
        let probabilities = floats(&folder.join(format!("{world}.{attack}.answers")));
        let queries = sketches(&folder.join(format!("{world}.{attack}.queries")));
        let classes = probabilities.len() / queries.len();
        let holdout = Holdout::new(sketches(&folder.join(format!("{world}.holdout"))).into_iter().zip(labels), classes as u32).unwrap();
        let rows: u32 = rows.parse().unwrap();
        let mut meter = Box::new(Meter::new(&holdout));
        let told: Vec<Vec<f64>> = probabilities.chunks_exact(classes).map(|row| row.iter().map(|p| f64::from(*p)).collect()).collect();
        let answer = |row| {
            let row: &Vec<f64> = row;
            let best = row.iter().enumerate().fold(0, |best, (at, p)| if *p > row[best] { at } else { best });
            if answers == "label" { Answer::Label(best as u32) } else { Answer::Probabilities(row) }
        };
        let transcript = || queries.iter().zip(&told).take(rows as usize).map(|(features, row)| (features, answer(row)));
        transcript().for_each(|(features, answer)| meter.learn(&holdout, features, answer));
        let on_request = meter.evaluate(&holdout, &Correction::default()).measured;
        let measured = [on_request, meter.evaluate_wholly(&holdout, &Correction::default()).measured];
        let thieves = [best, others, at_home].map(|fidelity| fidelity.parse().unwrap());
        points.push(Point { world: world.into(), attack: attack.into(), answers: answers.into(), rows, thieves, measured });
    }
    points
}

/// As a calibration corrects: by thieves of the labels of what honest callers ask.
fn corrected(folder: &Path, world: &str) -> Option<Correction> {
    let labels = floats(&folder.join(format!("{world}.labels")));
    let probabilities = floats(&folder.join(format!("{world}.natural.answers")));
    let queries = sketches(&folder.join(format!("{world}.natural.queries")));
    let classes = probabilities.len() / queries.len();
    let rows = sketches(&folder.join(format!("{world}.holdout"))).into_iter().zip(labels.iter().map(|label| *label as u32));
    let holdout = Holdout::new(rows, classes as u32).unwrap();
    let best = |row: &[f32]| (0..classes).fold(0, |best, at| if row[at] > row[best] { at } else { best }) as u32;
    let told: Vec<(&Features, u32)> = queries.iter().zip(probabilities.chunks_exact(classes).map(best)).collect();
    let mut thieves = Vec::new();
    for rows in [25, 50, 100, 200, 400, 800_usize].into_iter().filter(|rows| *rows <= told.len()) {
        for draw in 0..4_usize {
            // A step that shares no factor with their number goes through all.
            let drawn = (0..rows).map(|at| told[((at + draw * rows) * 7_919) % told.len()]).map(|(row, label)| (row, Answer::Label(label)));
            let mut meter = Box::new(Meter::new(&holdout));
            drawn.clone().for_each(|(features, answer)| meter.learn(&holdout, features, answer));
            let measured = meter.evaluate_wholly(&holdout, &Correction::default()).measured;
            thieves.push(Thief { measured, rows: rows as u32, fidelity: thief::fidelity(&holdout, drawn) });
        }
    }
    Correction::fit(&thieves)
}

/// Points within 0.05 of a thief, points that lie above him by no more than is allowed, and all.
#[derive(Default)]
struct Bars {
    near: u32,
    below: u32,
    all: u32,
}

impl Bars {
    fn add(&mut self, told: f32, thief: f32) {
        self.near += u32::from((told - thief).abs() <= 0.05 + 1e-6);
        self.below += u32::from(f64::from(told - thief) <= ABOVE + 1e-6);
        self.all += 1;
    }

    fn percent(&self) -> String {
        let part = |count| f64::from(count) / f64::from(self.all) * 100.0;
        format!("{:5.1} {:5.1}", part(self.near), part(self.below))
    }
}

#[test]
#[ignore = "needs transcripts"]
fn how_near_the_meter_comes_to_thieves() {
    let Ok(folder) = std::env::var("PORTCULLIS_TRANSCRIPTS") else { return };
    let points = points(Path::new(&folder));
    for Point { world, attack, answers, rows, thieves: [best, others, _], measured: [on_request, all], .. } in &points {
        println!(
            "{world:12} {attack:10} {answers:6} {rows:5} thief {best:.3} ({others:.3}) meter {all:.3} ({on_request:.3}) {:+.3}",
            all - best
        );
    }
    let worlds: BTreeSet<&str> = points.iter().map(|point| point.world.as_str()).collect();
    let own = std::env::var_os("PORTCULLIS_OWN_THIEVES").is_some();
    let curves: BTreeMap<&str, Correction> =
        worlds.into_iter().filter(|_| own).filter_map(|world| Some((world, corrected(Path::new(&folder), world)?))).collect();
    curves.iter().for_each(|(world, curve)| println!("{world} {curve:?}"));
    // By answers, by attack and in all: on a request, with the kernel, the same held against other thieves and against thieves on the holdout, corrected.
    let mut table: BTreeMap<String, [Bars; 5]> = BTreeMap::new();
    for point in &points {
        let curve = curves.get(point.world.as_str()).copied().unwrap_or_default();
        let [best, others, at_home] = point.thieves;
        let [on_request, all] = point.measured;
        let of_answers = format!("{} {}", point.world, point.answers);
        for key in [of_answers, format!("- {}", point.attack), "all".to_owned()] {
            let bars = table.entry(key).or_default();
            let told = [(on_request, best), (all, best), (all, others), (all, at_home), (curve.corrected(all, point.rows), best)];
            bars.iter_mut().zip(told).for_each(|(bars, (told, thief))| bars.add(told, thief));
        }
    }
    println!("% within 0.05, % a bound from below:  points  on request  all students  (other thieves)  (at home)  corrected");
    for (key, bars) in &table {
        println!("{key:36} {:5}  {}", bars[0].all, bars.iter().map(Bars::percent).collect::<Vec<_>>().join("   "));
    }
}
