//! Prints how soon attacks are seen, and how often honest callers are taken for one; decides nothing.
//! `cargo test --release --lib -- --ignored --nocapture watch::figures`
//!
//! `PORTCULLIS_RECORDINGS` is a folder with `calibrate.jsonl`, `test.jsonl` and `attacks.jsonl`, as `tests/attacks/record.py` makes them, and
//! `PORTCULLIS_FPR` the rate of false alarms, one in 1,000 where it is left out.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::bounds::Calibration;
use super::rows::{Rows, Told};
use super::state::State;
use super::{Recorded, families};
use crate::wire::oip::{InferRequest, InferResponse};

#[derive(Deserialize)]
struct Line {
    caller: String,
    kind: String,
    body: Value,
    answer: Value,
}

fn lines(path: &Path) -> impl Iterator<Item = (Line, InferRequest, InferResponse)> {
    BufReader::new(File::open(path).unwrap()).lines().map(|line| {
        let line: Line = serde_json::from_str(&line.unwrap()).unwrap();
        let (asked, said) = (InferRequest::from_json(&line.body).unwrap(), InferResponse::from_json(&line.answer).unwrap());
        (line, asked, said)
    })
}

/// A caller: of what kind, what is kept of it, its rows, and the row at which each family first alarmed.
#[derive(Default)]
struct Seen {
    kind: String,
    state: State,
    rows: u64,
    alarms: BTreeMap<&'static str, u64>,
}

/// What a calibration says of the callers of a recording, by their names.
fn seen(calibration: &Calibration, path: &Path) -> Vec<Seen> {
    let mut callers: BTreeMap<String, Seen> = BTreeMap::new();
    for (line, asked, said) in lines(path) {
        let caller = callers.entry(line.caller).or_insert_with(|| Seen { kind: line.kind, ..Seen::default() });
        let rows = Rows::of(&asked.inputs);
        for (row, told) in rows.iter().zip(Told::of(&said.outputs, rows.all())) {
            caller.rows += 1;
            for alarm in caller.state.learn_closely(calibration, &calibration.space.point(row), &told, |_, _| {}) {
                caller.alarms.entry(families::ALL[alarm.family].name).or_insert(caller.rows);
            }
        }
    }
    callers.into_values().collect()
}

#[test]
#[ignore = "needs recordings"]
fn how_soon_attacks_are_seen() {
    let Ok(folder) = std::env::var("PORTCULLIS_RECORDINGS") else { return };
    let (folder, rate) = (Path::new(&folder), std::env::var("PORTCULLIS_FPR").map_or(1e-3, |rate| rate.parse().unwrap()));
    let (mut recorded, mut numbers) = (Recorded::default(), BTreeMap::new());
    for (line, asked, said) in lines(&folder.join("calibrate.jsonl")) {
        let next = numbers.len();
        recorded.add(*numbers.entry(line.caller).or_insert(next), &asked.inputs, &said.outputs);
    }
    let made = super::calibrate("recorded", rate, recorded).unwrap_or_else(|error| panic!("{error}"));
    println!("calibrated: {} callers, {} rows, {} alarms, silent {:?}", made.callers, made.rows, made.alarms, made.silent);
    let calibration = Calibration::read(made.text.as_bytes()).unwrap();
    for (family, bet) in families::ALL.iter().zip(&calibration.bets) {
        println!("  {:14} {bet:?}", family.name);
    }
    let honest = seen(&calibration, &folder.join("test.jsonl"));
    let alarmed: Vec<&Seen> = honest.iter().filter(|caller| !caller.alarms.is_empty()).collect();
    println!(
        "honest: {} of {} callers alarmed, {} rows",
        alarmed.len(),
        honest.len(),
        honest.iter().map(|caller| caller.rows).sum::<u64>()
    );
    alarmed.iter().for_each(|caller| println!("  {:14} {:?}", caller.kind, caller.alarms));
    let mut attacks: BTreeMap<&str, Vec<&Seen>> = BTreeMap::new();
    let attackers = seen(&calibration, &folder.join("attacks.jsonl"));
    attackers.iter().for_each(|caller| attacks.entry(&caller.kind).or_default().push(caller));
    println!("attack                       runs  seen  rows until then (median), by family");
    for (kind, callers) in attacks {
        let median = |rows: &dyn Fn(&Seen) -> Option<u64>| {
            let mut all: Vec<u64> = callers.iter().map(|caller| rows(caller).unwrap_or(u64::MAX)).collect();
            all.sort_unstable();
            let median = all[all.len() / 2];
            (all.iter().filter(|rows| **rows < u64::MAX).count(), if median < u64::MAX { median.to_string() } else { "never".to_owned() })
        };
        let (found, rows) = median(&|caller| caller.alarms.values().copied().min());
        print!("{kind:28} {:4}  {found:4}  {rows:6}", callers.len());
        for family in families::ALL {
            let (found, rows) = median(&|caller| caller.alarms.get(family.name).copied());
            if found > 0 {
                print!("  {} {rows} ({found})", family.name);
            }
        }
        println!();
    }
}
