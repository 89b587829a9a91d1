//! `portcullis calibrate`: learns from a recording what honest callers of a model do, and writes it beside the model.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::No;
use crate::clock::Moment;
use crate::config::{self, Engines, Made};
use crate::detect::watch::{Recorded, calibrate};
use crate::infer::Backend;
use crate::infer::model::Model;
use crate::trail::Who;
use crate::wire::oip::{InferRequest, InferResponse};
use crate::wire::tensor::Tensor;

/// An example of the command.
pub const EXAMPLE: &str = "Example:\n  portcullis calibrate --policies policies --model digits --recording shadow.jsonl --fpr 1e-3";

/// Bytes of one line of a recording.
const MOST_LINE: usize = 16 << 20;

/// Rows of a recording that are held in memory.
const MOST_NUMBERS: usize = 1 << 29;

/// Requests that the model is asked at the same time.
const AT_ONCE: usize = 16;

/// How long the model has for one of them.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the command is told.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The policy folder.
    #[arg(long, default_value = "policies", value_name = "DIR")]
    policies: PathBuf,
    /// The model, by its name.
    #[arg(long, value_name = "NAME")]
    model: String,
    /// What honest callers asked, in order: JSON lines of {"caller": "...", "body": {…}}, each caller a caller-day.
    #[arg(long, value_name = "FILE")]
    recording: PathBuf,
    /// False alarms a caller and day that may be, above 0 and at most 0.1.
    #[arg(long, default_value_t = 1e-3, value_name = "RATE")]
    fpr: f32,
    /// One line of JSON: {"calibration","callers","rows","alarms","at_most"}.
    #[arg(long)]
    json: bool,
}

/// A line of a recording.
#[derive(Debug, Deserialize)]
struct Line {
    caller: String,
    body: Value,
    /// What was answered, where it was recorded too: then the model is not asked.
    #[serde(default)]
    answer: Option<Value>,
}

/// Runs the command.
///
/// # Errors
/// When the policies do not compile, the model is none that tensors are sent to, a line is no request, or the evidence does not suffice.
pub fn run(arguments: &Arguments) -> Result<(), No> {
    let runtime = tokio::runtime::Runtime::new().map_err(No::because)?;
    let loaded = runtime.block_on(async { config::load(&arguments.policies, Moment::now(), &Made::default(), Engines::Uncalibrated) });
    let loaded = loaded.map_err(No)?;
    let models = loaded.snapshot.authorizer.models();
    let asked = models.iter().find(|model| *model.which.name == *arguments.model);
    let asked =
        asked.ok_or_else(|| No::because(format_args!("there is no model `{}` in {}", arguments.model, arguments.policies.display())))?;
    let model = match &asked.terms.infer.backend {
        Backend::Model(model) => Some(model.clone()),
        _ => None,
    };
    let recorded = runtime.block_on(read(&arguments.recording, model.as_ref()))?;
    let place = place(&arguments.policies, &arguments.model)?;
    let calibration = calibrate(&arguments.model, arguments.fpr, recorded).map_err(No::because)?;
    write(&place, calibration.text.as_bytes()).map_err(|error| No::because(format_args!("{}: {error}", place.display())))?;
    let (callers, rows, alarms, at_most) = (calibration.callers, calibration.rows, calibration.alarms, calibration.at_most);
    if arguments.json {
        println!("{}", json!({ "calibration": place, "callers": callers, "rows": rows, "alarms": alarms, "at_most": at_most }));
    } else {
        println!("{}: {callers} caller-days, {rows} rows", place.display());
        println!(
            "{alarms} false alarms about callers that the bounds were not fitted to: at most {at_most:.5} a caller-day, with 95 % confidence"
        );
    }
    Ok(())
}

/// Where a model's calibration lies: beside its file.
fn place(policies: &Path, name: &str) -> Result<PathBuf, No> {
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    let folder = policies.join("models");
    let files = fs::read_dir(&folder).map_err(|error| No::because(format_args!("{}: {error}", folder.display())))?;
    let mut files: Vec<PathBuf> =
        files.flatten().map(|file| file.path()).filter(|path| path.extension().is_some_and(|ending| ending == "toml")).collect();
    files.sort();
    let of_model = |path: &PathBuf| {
        fs::read_to_string(path).ok().and_then(|text| toml::from_str::<Named>(&text).ok()).is_some_and(|named| named.name == name)
    };
    let file =
        files.into_iter().find(of_model).ok_or_else(|| No::because(format_args!("no file in {} is of `{name}`", folder.display())))?;
    Ok(file.with_extension("calibration.json"))
}

/// A file that only its owner reads, as a whole or not at all: whoever knows the space knows where not to be seen.
fn write(place: &Path, text: &[u8]) -> std::io::Result<()> {
    let new = place.with_extension("json.new");
    // One that a run left behind may be anybody's to read.
    let _ = fs::remove_file(&new);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&new, place)).inspect_err(|_| drop(fs::remove_file(&new)))
}

/// The rows of a recording, by caller, with what each is told.
async fn read(path: &Path, model: Option<&Arc<Model>>) -> Result<Recorded, No> {
    let file = File::open(path).map_err(|error| No::because(format_args!("{}: {error}", path.display())))?;
    let at = |number: usize, what: &dyn std::fmt::Display| No::because(format_args!("{}:{number}: {what}", path.display()));
    let who = Arc::new(Who { caller: "calibrate".into(), tenant: "".into(), tier: "".into(), method: "api_key" });
    let asks = (1..).zip(BufReader::new(file).lines()).map(|(number, line)| {
        let (who, model) = (who.clone(), model.cloned());
        async move {
            let line = line.map_err(|error| at(number, &error))?;
            if line.len() > MOST_LINE {
                return Err(at(number, &format_args!("a line is at most {MOST_LINE} bytes")));
            }
            let Line { caller, body, answer } = serde_json::from_str(&line).map_err(|error| at(number, &error))?;
            let request = InferRequest::from_json(&body).map_err(|shape| at(number, &shape))?;
            let said = match (answer, model) {
                (Some(answer), _) => InferResponse::from_json(&answer).map_err(|shape| at(number, &shape))?.outputs,
                (None, Some(model)) => {
                    let deadline = Instant::now() + PATIENCE;
                    model.run(request.inputs.clone(), &[], &who, deadline).await.map_err(|error| at(number, &format_args!("{error:?}")))?
                }
                (None, None) => return Err(at(number, &"the model runs elsewhere: record its answers too, as \"answer\"")),
            };
            Ok::<(String, Vec<Tensor>, Vec<Tensor>), No>((caller, request.inputs, said))
        }
    });
    let mut recorded = Recorded::default();
    let mut callers: HashMap<String, usize> = HashMap::new();
    let mut answered = stream::iter(asks).buffered(AT_ONCE);
    while let Some(line) = answered.next().await {
        let (caller, inputs, said) = line?;
        let next = callers.len();
        let caller = *callers.entry(caller).or_insert(next);
        recorded.add(caller, &inputs, &said);
        if recorded.numbers() > MOST_NUMBERS {
            return Err(No::because(format_args!(
                "{}: at most {MOST_NUMBERS} numbers are held: record fewer rows of each caller",
                path.display()
            )));
        }
    }
    Ok(recorded)
}
