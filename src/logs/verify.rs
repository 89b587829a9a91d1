//! `portcullis log verify`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::{at, shards as all_shards};
use crate::cli::No;
use crate::prove::key::{Kind, Vkey};
use crate::say::{Unsaid, say};
use crate::verify::chain::hold_together;
use crate::verify::entries::Entries;
use crate::verify::folder::folders;
use crate::verify::label::Label;
use crate::verify::log::{Report, verify_dir};
use crate::verify::reconcile::{MAX_METRICS, Metrics, Reconciled, reconcile};

/// Verifies a log, or each of its shards and that they are a chain; tells what was found.
///
/// # Errors
/// When it does not hold, without words: they were told.
pub(super) fn verify(dir: &Path, keys: &[Vkey], metrics: Option<&Path>, json: bool) -> Result<(), No> {
    // Read first: what the log has beyond it was appended since.
    let metrics = metrics.map(read_metrics).transpose()?;
    let shards = match folders(dir).map_err(at(dir))? {
        // What is missing of a log is for the report to say, as long as anything of one is there.
        none if none.is_empty() && dir.join("tile").is_dir() => vec![dir.to_owned()],
        _ => all_shards(dir)?,
    };
    let alone = shards.len() == 1 && shards[0] == dir;
    let (mut reports, mut counts) = (Vec::new(), Vec::new());
    // The newest first: what it says of those before it was so by then.
    for shard in shards.iter().rev() {
        let label = label_of(shard);
        let renamed = !alone || label.is_some();
        let keys: Vec<Vkey> = if renamed { keys.iter().map(|key| of_shard(key, label)).collect() } else { keys.to_vec() };
        let report = verify_dir(shard, (!keys.is_empty()).then_some(&keys)).map_err(at(shard))?;
        // The metrics are of the shard that is written.
        let metrics = metrics.as_ref().filter(|_| counts.is_empty());
        // Both speak of the same entries, whatever was appended since; what the metrics count may have been on its way by then.
        let end = if report.ok && metrics.is_none() { report.entries } else { u64::MAX };
        let verified = |entry: &io::Result<(u64, Vec<u8>)>| entry.as_ref().map_or(true, |(index, _)| *index < end);
        let counted = Entries::of_live(shard).and_then(|entries| reconcile(entries.take_while(verified), metrics));
        reports.push(report);
        counts.push(counted.unwrap_or_else(|error| Reconciled { problems: vec![error.to_string()], ..Reconciled::default() }));
    }
    reports.reverse();
    counts.reverse();
    let absent = hold_together(&shards, &mut reports);
    let all = || shards.iter().zip(reports.iter().zip(&counts));
    let sound = all().filter(|(_, (report, counts))| report.ok && counts.ok).count();
    let ok = sound == shards.len();
    if json {
        let named = all().map(|(shard, (report, counts))| {
            let name = label_of(shard).map_or_else(|| ".".to_owned(), |label| label.to_string());
            (name, verified(report, counts))
        });
        match (alone, named) {
            (true, mut named) => named.try_for_each(|(_, told)| say!("{told}"))?,
            (false, named) => say!("{}", serde_json::json!({ "ok": ok, "shards": named.collect::<serde_json::Map<_, _>>() }))?,
        }
    } else {
        for (at_shard, (shard, (report, counts))) in all().enumerate() {
            let shard = if alone { String::new() } else { format!("{}: ", shard.display()) };
            tell_verified(&shard, report, counts, metrics.is_some() && at_shard + 1 == shards.len())?;
        }
        if !alone {
            let dir = dir.display();
            absent.iter().try_for_each(|ended| say!("{dir}: note: an entry says that {ended}; its folder is not here"))?;
            say!("{dir}: {sound} of {} shards hold", shards.len())?;
        }
    }
    if ok { Ok(()) } else { Err(No(Vec::new())) }
}

/// The label of a shard's folder.
pub(super) fn label_of(shard: &Path) -> Option<Label> {
    shard.file_name()?.to_str()?.parse().ok()
}

/// A log key under the name of another shard of the same log: who trusts it in one trusts it in all of them.
fn of_shard(key: &Vkey, label: Option<Label>) -> Vkey {
    if key.kind() != Kind::Log {
        return key.clone();
    }
    let log = match key.name.rsplit_once('/') {
        Some((log, last)) if last.parse::<Label>().is_ok() => log,
        _ => &*key.name,
    };
    let name = label.map_or_else(|| log.to_owned(), |label| format!("{log}/{label}"));
    Vkey { name, key: key.key.clone() }
}

/// For people; `shard` stands before each line.
fn tell_verified(shard: &str, report: &Report, counts: &Reconciled, with_metrics: bool) -> Result<(), Unsaid> {
    let mut told = report.problems.iter().map(|problem| ("", problem)).chain(counts.problems.iter().map(|problem| ("counts: ", problem)));
    told.try_for_each(|(part, problem)| say!("{shard}{part}{problem}"))?;
    report.notes.iter().chain(&counts.notes).try_for_each(|note| say!("{shard}note: {note}"))?;
    say!("{shard}{}", report.summary())?;
    let verdict = if counts.ok { "agree" } else { "do not agree" };
    let with = if with_metrics { " and the metrics" } else { "" };
    say!(
        "{shard}the counts of {} heartbeats{with} {verdict} with the entries; {} entries follow the last heartbeat",
        counts.heartbeats,
        counts.uncounted
    )
}

fn verified(report: &Report, counts: &Reconciled) -> serde_json::Value {
    let mut told = serde_json::json!(report);
    told["ok"] = (report.ok && counts.ok).into();
    told["counts"] = serde_json::json!(counts);
    told
}

fn read_metrics(path: &Path) -> Result<Metrics, No> {
    let told = |why: String| No::because(format!("{}: {why}", path.display()));
    let mut text = String::new();
    let from: Box<dyn Read> =
        if path == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(path).map_err(|error| told(error.to_string()))?) };
    from.take(MAX_METRICS as u64 + 1).read_to_string(&mut text).map_err(|error| told(error.to_string()))?;
    Metrics::read(&text).map_err(|error| told(error.to_string()))
}
