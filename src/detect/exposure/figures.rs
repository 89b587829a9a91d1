//! Prints what the meter costs, and how near it comes to thieves; decides nothing.
//! `cargo test --lib -- --ignored --nocapture --test-threads 1 exposure::figures`
//!
//! For the second, `tests/exposure/thieves.py FOLDER` makes transcripts and trains thieves on them; `PORTCULLIS_TRANSCRIPTS` is FOLDER.
//! With `PORTCULLIS_OWN_THIEVES` the owner's own thieves are trained as well, as calibration would.

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
    let mut meter = Box::new(Meter::new());
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
    let mut meter = Box::new(Meter::new());
    for (features, row) in &rows {
        meter.learn(&holdout, features, Answer::Probabilities(row));
        if meter.is_due() {
            black_box(meter.evaluate(&holdout, &Correction::default()));
        }
    }
    let amortised = begun.elapsed().as_secs_f64() / rows.len() as f64;
    println!(
        "bytes {} learn {:.2} us, evaluate {:.2} ms, both over 1,600 rows {:.2} us a row",
        size_of::<Meter>(),
        each * 1e6,
        evaluation * 1e3,
        amortised * 1e6
    );
}

/// A file of little-endian floats of 32 bits.
fn floats(path: &Path) -> Vec<f32> {
    fs::read(path).unwrap().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn sketches(path: &Path) -> Vec<Features> {
    floats(path).as_chunks::<FEATURES>().0.iter().map(Features::of).collect()
}

struct Point {
    world: String,
    attack: String,
    answers: String,
    thief: Thief,
    /// What the owner's own thief had of the same transcript, where calibration would make it up.
    own: Option<Thief>,
    made_up: bool,
}

#[test]
#[ignore = "needs transcripts"]
fn how_near_the_meter_comes_to_thieves() {
    let Ok(folder) = std::env::var("PORTCULLIS_TRANSCRIPTS") else { return };
    let folder = Path::new(&folder);
    let mut points = Vec::new();
    let mut lines: Vec<String> = Vec::new();
    for line in fs::read_to_string(folder.join("thieves.tsv")).unwrap().lines() {
        let [world, attack, answers, rows, fidelity, made_up] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let labels: Vec<u32> = floats(&folder.join(format!("{world}.labels"))).iter().map(|label| *label as u32).collect();
        let probabilities = floats(&folder.join(format!("{world}.{attack}.answers")));
        let queries = sketches(&folder.join(format!("{world}.{attack}.queries")));
        let classes = probabilities.len() / queries.len();
        let holdout = Holdout::new(sketches(&folder.join(format!("{world}.holdout"))).into_iter().zip(labels), classes as u32).unwrap();
        let rows: usize = rows.parse().unwrap();
        let mut meter = Box::new(Meter::new());
        let told: Vec<Vec<f64>> = probabilities.chunks_exact(classes).map(|row| row.iter().map(|p| f64::from(*p)).collect()).collect();
        let answer = |row| {
            let row: &Vec<f64> = row;
            let best = row.iter().enumerate().fold(0, |best, (at, p)| if *p > row[best] { at } else { best });
            if answers == "label" { Answer::Label(best as u32) } else { Answer::Probabilities(row) }
        };
        let transcript = || queries.iter().zip(&told).take(rows).map(|(features, row)| (features, answer(row)));
        transcript().for_each(|(features, answer)| meter.learn(&holdout, features, answer));
        let measured = meter.evaluate(&holdout, &Correction::default()).measured;
        let thief = Thief { measured, rows: rows as u32, fidelity: fidelity.parse().unwrap() };
        lines.push(format!(
            "{world:8} {attack:10} {answers:6} {rows:5} thief {fidelity} meter {measured:.3} {:+.3}",
            measured - thief.fidelity
        ));
        let own = made_up == "1" && std::env::var_os("PORTCULLIS_OWN_THIEVES").is_some();
        let own = own.then(|| Thief { fidelity: thief::fidelity(&holdout, transcript()).max(measured), ..thief });
        points.push(Point { world: world.into(), attack: attack.into(), answers: answers.into(), thief, own, made_up: made_up == "1" });
    }
    lines.iter().for_each(|line| println!("{line}"));
    let mut worlds: Vec<&str> = points.iter().map(|point| point.world.as_str()).collect();
    worlds.sort_unstable();
    worlds.dedup();
    for world in worlds {
        let of_world = || points.iter().filter(|point| point.world == world);
        let told = |name: &str, curve: &Correction, which: &dyn Fn(&Point) -> bool| {
            let gaps: Vec<f64> = of_world()
                .filter(|point| which(point))
                .map(|point| f64::from(curve.corrected(point.thief.measured, point.thief.rows) - point.thief.fidelity))
                .collect();
            let part = |count: usize| count as f64 / gaps.len() as f64;
            let near = part(gaps.iter().filter(|gap| gap.abs() <= 0.05 + 1e-6).count());
            let below = part(gaps.iter().filter(|gap| **gap <= ABOVE + 1e-6).count());
            println!("{world:8} {name:28} points {:3} within 0.05 {near:.3} bound from below {below:.3}", gaps.len());
        };
        told("as measured", &Correction::default(), &|_| true);
        told("as measured, probabilities", &Correction::default(), &|point| point.answers == "prob");
        told("as measured, labels", &Correction::default(), &|point| point.answers == "label");
        let thieves: Vec<Thief> = of_world().filter(|point| point.made_up).map(|point| point.thief).collect();
        if let Some(curve) = Correction::fit(&thieves) {
            println!("{world:8} {curve:?}");
            told("corrected", &curve, &|_| true);
            told("corrected, unseen attacks", &curve, &|point| !point.made_up);
        }
        let own: Vec<Thief> = of_world().filter_map(|point| point.own).collect();
        if let Some(curve) = Correction::fit(&own) {
            let gap = |point: &Point| point.own.map(|own| f64::from(own.fidelity - point.thief.fidelity).abs());
            let gaps: Vec<f64> = of_world().filter_map(gap).collect();
            println!(
                "{world:8} own thieves within 0.05 {:.3} {curve:?}",
                gaps.iter().filter(|gap| **gap <= 0.05).count() as f64 / gaps.len() as f64
            );
            told("corrected by own thieves", &curve, &|_| true);
            told("corrected by own, unseen", &curve, &|point| !point.made_up);
        }
        let mut attacks: Vec<&str> = of_world().map(|point| point.attack.as_str()).collect();
        attacks.sort_unstable();
        attacks.dedup();
        for attack in attacks {
            told(&format!("as measured, {attack}"), &Correction::default(), &|point| point.attack == attack);
        }
    }
}
