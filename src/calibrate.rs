//! `portcullis calibrate`: learns from a recording what honest callers of a model do, and writes it beside the model.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use tokio::runtime::Runtime;

use crate::authorize::Model as Asked;
use crate::cli::No;
use crate::clock::Moment;
use crate::config::{self, Engines, Made, Terms};
use crate::detect::recording::{Entry, Line, Reader, delete};
use crate::detect::watch::{Recorded, calibrate};
use crate::infer::Backend;
use crate::infer::model::{Error, Model};
use crate::say::say;
use crate::trail::{Which, Who};
use crate::whole;
use crate::wire::oip::InferResponse;
use crate::wire::tensor::Tensor;

/// Examples of the command.
pub const EXAMPLE: &str = "Examples:\n  portcullis calibrate --policies policies --model digits --fpr 1e-3\n  \
    portcullis calibrate --policies policies --model digits --version 2 --recording shadow.jsonl";

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
    /// Of its versions this one; else all of them that have a recording, each by itself.
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    /// What honest callers asked, in order: JSON lines of {"caller": "...", "body": {…}}, each caller a caller-day. Else what a gateway recorded,
    /// in the file that [detect.recording] of the model's policy names.
    #[arg(long, value_name = "FILE")]
    recording: Option<PathBuf>,
    /// False alarms a caller and day that may be, above 0 and at most 0.1.
    #[arg(long, default_value_t = 1e-3, value_name = "RATE", value_parser = rate)]
    fpr: f32,
    /// Delete what the gateway recorded, once it was learned from.
    #[arg(long, conflicts_with = "recording")]
    delete_recording: bool,
    /// One line of JSON for each version: {"calibration","version","recording","callers","rows","alarms","at_most","torn","refused","left","silent"}.
    #[arg(long)]
    json: bool,
}

fn rate(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|rate| *rate > 0.0 && *rate <= 0.1).ok_or_else(|| "a rate is above 0 and at most 0.1".to_owned())
}

/// Runs the command.
///
/// # Errors
/// When the policies do not compile, the model is none that tensors are sent to, a line is no request, or the evidence does not suffice.
pub fn run(arguments: &Arguments) -> Result<(), No> {
    let Arguments { policies, model: name, .. } = arguments;
    let runtime = Runtime::new().map_err(No::because)?;
    let loaded = runtime.block_on(async { config::load(policies, Moment::now(), &Made::default(), Engines::Uncalibrated) });
    let loaded = loaded.map_err(No)?;
    let mut models = loaded.snapshot.authorizer.models();
    models.retain(|model| *model.which.name == **name);
    if models.is_empty() {
        return Err(No::because(format_args!("there is no model `{name}` in {}", policies.display())));
    }
    if let Some(version) = &arguments.version {
        let there: Vec<String> = models.iter().map(|model| format!("\"{}\"", model.which.version)).collect();
        models.retain(|model| *model.which.version == **version);
        if models.is_empty() {
            return Err(No::because(format_args!("`{name}` has no version \"{version}\", but {}", there.join(", "))));
        }
    }
    if arguments.recording.is_none() {
        models.retain(|model| model.terms.detect.recording().is_some());
    }
    if models.is_empty() {
        return Err(No::because(format_args!(
            "nothing is recorded of `{name}`: name a file in [detect.recording] of its policy and let the gateway run, or give --recording FILE"
        )));
    }
    for model in models {
        let (path, recorded) = match (&arguments.recording, model.terms.detect.recording()) {
            (Some(path), _) => (path.as_path(), false),
            (None, Some(recording)) => (recording.path(), true),
            (None, None) => continue,
        };
        learn(arguments, &runtime, model, path, recorded)?;
    }
    Ok(())
}

/// Calibrates one version of a model from the recording at `path`, which a gateway `recorded` or which somebody made.
fn learn(arguments: &Arguments, runtime: &Runtime, of: &Asked<Terms>, path: &Path, recorded: bool) -> Result<(), No> {
    let model = if let Backend::Model(model) = &of.terms.infer.backend { Some(model) } else { None };
    let Read { recorded: rows, torn, refused } = runtime.block_on(read(path, model))?;
    let place = place(&arguments.policies, &of.which)?;
    let told = |what: &dyn std::fmt::Display| No::because(format_args!("{}: {what}", path.display()));
    let calibration = calibrate(&of.which.name, arguments.fpr, rows).map_err(|error| told(&error))?;
    // Its owner alone reads it: whoever knows the space knows where not to be seen.
    let written = whole::ready(&place, calibration.text.as_bytes(), 0o600).and_then(whole::Ready::put);
    written.map_err(|error| No::because(format_args!("{}: {error}", place.display())))?;
    if arguments.delete_recording && recorded {
        delete(path).map_err(|error| told(&error))?;
    }
    let (callers, rows, alarms, at_most) = (calibration.callers, calibration.rows, calibration.alarms, calibration.at_most);
    let version = &*of.which.version;
    if arguments.json {
        say!(
            "{}",
            json!({
                "calibration": place, "version": version, "recording": path, "callers": callers, "rows": rows, "alarms": alarms,
                "at_most": at_most, "torn": torn, "refused": refused, "left": calibration.left, "silent": calibration.silent,
                "untried": calibration.untried,
            })
        )?;
        return Ok(());
    }
    let of_version = if version.is_empty() { String::new() } else { format!(", of version \"{version}\"") };
    say!("{}: {callers} caller-days, {rows} rows{of_version}", place.display())?;
    say!(
        "{alarms} false alarms about callers that the bounds were not fitted to: at most {at_most:.5} a caller-day, with 95 % confidence"
    )?;
    if calibration.left > 0 {
        say!("{} rows of another width than most were left out", calibration.left)?;
    }
    if !calibration.silent.is_empty() {
        let families = calibration.silent.join(", ");
        say!("never alarms by these bounds: {families}. To it some caller of the recording is as odd as any attack; was that one honest?")?;
    }
    if let Some(needed) = calibration.untried {
        say!("no budget of fidelity can be held by it: it takes {needed} different rows with a class, and the recording has fewer")?;
    }
    if torn > 0 {
        say!("{torn} lines of the recording were torn, and skipped: what a gateway that was killed, or a full disk, left behind")?;
    }
    if refused > 0 {
        say!("{refused} requests of the recording were skipped: the model does not answer them")?;
    }
    if recorded && arguments.delete_recording {
        say!("{}: deleted", path.display())?;
    } else if recorded {
        say!("{} has what callers asked, in the clear, and may be deleted: --delete-recording does it", path.display())?;
    }
    Ok(())
}

/// Where a version's calibration lies: beside its file.
fn place(policies: &Path, which: &Which) -> Result<PathBuf, No> {
    #[derive(Deserialize)]
    struct Named {
        name: String,
        #[serde(default)]
        version: String,
    }
    let folder = policies.join("models");
    let files = fs::read_dir(&folder).map_err(|error| No::because(format_args!("{}: {error}", folder.display())))?;
    let mut files: Vec<PathBuf> =
        files.flatten().map(|file| file.path()).filter(|path| path.extension().is_some_and(|ending| ending == "toml")).collect();
    files.sort();
    let of_model = |path: &PathBuf| {
        let named = fs::read_to_string(path).ok().and_then(|text| toml::from_str::<Named>(&text).ok());
        named.is_some_and(|named| *named.name == *which.name && *named.version == *which.version)
    };
    let missing = || No::because(format_args!("no file in {} is of `{}` \"{}\"", folder.display(), which.name, which.version));
    let file = files.into_iter().find(of_model).ok_or_else(missing)?;
    Ok(file.with_extension("calibration.json"))
}

/// A recording that was read.
#[derive(Default)]
struct Read {
    recorded: Recorded,
    /// Lines that are pieces of lines.
    torn: usize,
    /// Requests of a gateway's callers that the model cannot answer: they were recorded before it was asked.
    refused: usize,
}

/// What a line comes to.
enum Taken {
    Rows(String, Vec<Tensor>, Vec<Tensor>),
    Torn,
    Refused,
}

/// The rows of a recording, by caller, with what each is told.
async fn read(path: &Path, model: Option<&Arc<Model>>) -> Result<Read, No> {
    let lines = Reader::open(path).map_err(|error| No::because(format_args!("{}: {error}", path.display())))?;
    let at = |number: usize, what: &dyn std::fmt::Display| No::because(format_args!("{}:{number}: {what}", path.display()));
    let who = Arc::new(Who { caller: "calibrate".into(), tenant: "".into(), tier: "".into(), method: "api_key" });
    let of_gateway = lines.is_of_gateway();
    let asks = lines.map(|(number, entry)| {
        let (who, model) = (who.clone(), model.cloned());
        async move {
            let line = match entry.map_err(|what| at(number, &what))? {
                Entry::Line(line) => line,
                Entry::Torn => return Ok(Taken::Torn),
            };
            let request = line.request().map_err(|fault| at(number, &fault))?;
            let Line { caller, answer, .. } = *line;
            let said = match (answer, model) {
                (Some(answer), _) => InferResponse::from_json(&answer).map_err(|shape| at(number, &shape))?.outputs,
                (None, Some(model)) => match model.run(request.inputs.clone(), &[], &who, Instant::now() + PATIENCE).await {
                    Ok(said) => said,
                    Err(
                        Error::CallerSentOtherInputs(_)
                        | Error::ModelFailed(_)
                        | Error::ModelBrokeItsContract(_)
                        | Error::ModelAnsweredTooMuch,
                    ) if of_gateway => return Ok(Taken::Refused),
                    Err(error) => return Err(at(number, &error)),
                },
                (None, None) => return Err(at(number, &"the model runs elsewhere: record its answers too, as \"answer\"")),
            };
            Ok::<_, No>(Taken::Rows(caller, request.inputs, said))
        }
    });
    let mut read = Read::default();
    let mut callers: HashMap<String, usize> = HashMap::new();
    let mut answered = stream::iter(asks).buffered(AT_ONCE);
    while let Some(taken) = answered.next().await {
        let (caller, inputs, said) = match taken? {
            Taken::Rows(caller, inputs, said) => (caller, inputs, said),
            Taken::Torn => {
                read.torn += 1;
                continue;
            }
            Taken::Refused => {
                read.refused += 1;
                continue;
            }
        };
        let next = callers.len();
        let caller = *callers.entry(caller).or_insert(next);
        read.recorded.add(caller, &inputs, &said);
        if read.recorded.numbers() > MOST_NUMBERS {
            return Err(No::because(format_args!(
                "{}: at most {MOST_NUMBERS} numbers are held: record fewer rows of each caller",
                path.display()
            )));
        }
    }
    Ok(read)
}
