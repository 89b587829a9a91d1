//! What is said of models whose callers are watched or recorded: at the start, in metrics, and the last of it at the end.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::authorize::Model;
use crate::config::{Snapshot, Terms};
use crate::detect;
use crate::detect::recording::{Tally, Why};
use crate::infer::Backend;
use crate::infer::shape::may_be_unshaped_scores;
use crate::pipeline::House;
use crate::record::metrics::{Kind, Observe};

/// What is told of them at the start and at reloads, a line each; what holds since `before` was told then.
pub(crate) fn told(snapshot: &Snapshot, before: Option<&Snapshot>, policies: &Path) -> Vec<String> {
    let known = |model: &Model<Terms>| {
        let models = before.into_iter().flat_map(|before| before.authorizer.models());
        models.into_iter().find(|known| (&known.which.name, &known.which.version) == (&model.which.name, &model.which.version))
    };
    let models = snapshot.authorizer.models();
    let mut versions: BTreeMap<&str, usize> = BTreeMap::new();
    models.iter().for_each(|model| *versions.entry(&model.which.name).or_default() += 1);
    let lines = models.iter().flat_map(|model| {
        let (name, detect) = (&model.which.name, &model.terms.detect);
        let version = if versions[&**name] > 1 { format!(" --version {}", model.which.version) } else { String::new() };
        let command = format!("portcullis calibrate --policies {} --model {name}{version}", policies.display());
        let known = known(model).map(|known| &known.terms.detect);
        let uncalibrated = (detect.is_uncalibrated() && !known.is_some_and(detect::Terms::is_uncalibrated)).then(|| {
            let how = match detect.recording().and_then(|recording| recording.book()) {
                Some(book) => format!("its recording has {} caller-days by now, and is learned from by {command}", book.tally().callers()),
                None => format!("have the gateway record them by [detect.recording], or give a recording: {command} --recording FILE"),
            };
            format!(
                "warning: model {name}: its callers are not watched, as if detect.mode were \"shadow\": nobody told what honest ones do; {how}"
            )
        });
        let path = |detect: &detect::Terms| detect.recording().map(|recording| recording.path().to_owned());
        let recorded = path(detect).filter(|recorded| known.and_then(path).as_ref() != Some(recorded));
        let recorded = recorded.map(|path| format!("model {name}: what its callers ask is recorded in {}, in the clear", path.display()));
        uncalibrated.into_iter().chain(recorded).chain(known.is_none().then(|| unshaped(model)).into_iter().flatten())
    });
    lines.collect()
}

/// Outputs of a model that may be scores, and that nothing is withheld of.
fn unshaped(model: &Model<Terms>) -> Vec<String> {
    let Backend::Model(runs_here) = &model.terms.infer.backend else { return Vec::new() };
    let scores = runs_here.signature().outputs.iter().filter(|port| may_be_unshaped_scores(port));
    let told = scores.map(|port| {
        format!(
            "warning: model {}: its output {} of {}s is taken for labels, which are told in full and not metered; if it is scores, the graph is to give them as floats",
            model.which.name,
            port.name.escape_debug(),
            port.datatype
        )
    });
    told.collect()
}

/// What is told of them for as long as the gateway runs.
pub(super) fn uncalibrated(snapshot: &Snapshot) -> Vec<String> {
    let models = snapshot.authorizer.models();
    let unwatched = models.iter().filter(|model| model.terms.detect.is_uncalibrated());
    let told = unwatched.map(|model| {
        let which = if model.which.version.is_empty() { "it".to_owned() } else { format!("its version {}", model.which.version) };
        format!("callers of {} are not watched: {which} has no calibration", model.which.name)
    });
    told.collect()
}

/// Resolves once what was asked is in the recordings.
pub(super) async fn flushed(snapshot: &Snapshot) {
    for model in snapshot.authorizer.models() {
        if let Some(book) = model.terms.detect.recording().and_then(|recording| recording.book()) {
            book.flush().await;
        }
    }
}

/// What recordings have come to.
pub(super) fn observe(house: &Arc<House>) {
    type Read = fn(&Tally, &Model<Terms>, &mut Observe<'_>);
    let callers: Read = |tally, model, observe| observe(&of(model), tally.callers() as f64);
    let rows: Read = |tally, model, observe| observe(&of(model), tally.rows() as f64);
    let left: Read = |tally, model, observe| {
        let [name, version] = of(model);
        Why::ALL.into_iter().for_each(|why| observe(&[name, version, ("why", why.as_str())], tally.left(why) as f64));
    };
    for (name, help, kind, read) in [
        ("portcullis_detect_recorded_callers", "Caller-days in the recording of a model", Kind::Gauge, callers),
        ("portcullis_detect_recorded_rows", "Rows written to the recording of a model", Kind::Counter, rows),
        ("portcullis_detect_unrecorded", "Requests that are not in the recording of a model, and why", Kind::Counter, left),
    ] {
        let weak = Arc::downgrade(house);
        house.recorder.metrics().watch(name, help, kind, move |observe| {
            let Some(house) = weak.upgrade() else { return };
            for model in house.policy.load().authorizer.models() {
                if let Some(book) = model.terms.detect.recording().and_then(|recording| recording.book()) {
                    read(book.tally(), model, observe);
                }
            }
        });
    }
}

fn of(model: &Model<Terms>) -> [(&'static str, &str); 2] {
    [("model", &*model.which.name), ("version", &*model.which.version)]
}
