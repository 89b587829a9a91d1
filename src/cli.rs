//! The commands. Exit code 0 is success, 1 says that the answer is no, 2 that the command was called wrongly.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::admin::address::Address;
use crate::clock::Moment;
use crate::config::{self, Engines, Loaded, Made};
use crate::infer::model::worker::probe::{self, Attempt, Fate, Place};
use crate::infer::model::{self, Isolation};
use crate::say::{self, Unsaid, aside, say};
use crate::{authorize, calibrate, demo, erase, exposure, keys, logs, models, serve, witness};

/// How long a gateway has for each step of telling whether it is ready.
const HEALTH_PATIENCE: Duration = Duration::from_secs(2);
/// How much of what it tells is read, in bytes.
const HEALTH_MOST: u64 = 64 << 10;

/// Examples of the whole.
const EXAMPLE: &str = "Examples:\n  portcullis demo\n  portcullis check policies && portcullis serve --policies policies";

/// A hardened gateway for inference.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, about, propagate_version = true, arg_required_else_help = true, after_help = EXAMPLE)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the gateway.
    #[command(after_help = "Example:\n  portcullis serve --policies policies")]
    Serve {
        /// The policy folder.
        #[arg(long, default_value = "policies", value_name = "DIR")]
        policies: PathBuf,
    },
    /// Run it whole on this machine, with nothing prepared.
    #[command(after_help = "Example:\n  portcullis demo --port 8443")]
    Demo(DemoArgs),
    /// Compile the policies and tell every mistake with its place.
    #[command(after_help = "Example:\n  portcullis check policies")]
    Check {
        /// The policy folder.
        #[arg(default_value = "policies", value_name = "DIR")]
        dir: PathBuf,
        /// Print the Cedar schema that policies are validated against.
        #[arg(long)]
        cedar_schema: bool,
        /// One line of JSON: {"ok","policy","mistakes","missing","warnings"}.
        #[arg(long)]
        json: bool,
    },
    /// API keys: the secret is shown once, the file keeps its digest.
    #[command(subcommand, after_help = keys::EXAMPLE)]
    Key(keys::Verb),
    /// Models and data sets: what they are, whose they are, whether they would be loaded.
    #[command(subcommand, after_help = models::EXAMPLE)]
    Model(models::Verb),
    /// The walls that stand around a model's worker on this machine, and what becomes of one that tries to get through.
    #[command(after_help = "Example:\n  portcullis walls --isolation strict")]
    Walls {
        /// The walls to demand: strict, required or best-effort.
        #[arg(long, default_value = "required", value_parser = isolation)]
        isolation: Isolation,
        /// One line of JSON: {"ok","isolation","walls","missing","attempts"}.
        #[arg(long)]
        json: bool,
    },
    /// The provenance log, offline.
    #[command(subcommand, after_help = logs::EXAMPLE)]
    Log(logs::Verb),
    /// Be a witness of other logs: cosign their checkpoints, as long as each goes on from the one before.
    #[command(after_help = witness::EXAMPLE)]
    Witness(witness::Arguments),
    /// Learn what honest callers of a model do, so that what is odd can be told.
    // Its `--version` is the model's.
    #[command(after_help = calibrate::EXAMPLE, disable_version_flag = true)]
    Calibrate(calibrate::Arguments),
    /// How much of its models each caller of a running gateway may have learned.
    #[command(after_help = exposure::EXAMPLE)]
    Exposure(exposure::Arguments),
    /// Destroy the key of a caller's salts, of a month's pseudonyms, or of a month's strangers.
    #[command(after_help = erase::EXAMPLE)]
    Erase(erase::Arguments),
    /// Ask a running gateway whether it is ready; for health checks of images without a shell.
    #[command(after_help = "Example:\n  portcullis health 127.0.0.1:9443")]
    Health {
        /// Its admin listener on this machine: IP:PORT, HOST:PORT or http://….
        #[arg(default_value = "127.0.0.1:9443", value_name = "ADDRESS")]
        admin: Address,
    },
}

/// `portcullis demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// The port on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 8443)]
    pub port: u16,
    /// Where to put policies, keys and the log; a new folder under the temporary one by default.
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Once ready, one line of JSON: {"url","admin_url","ca","api_key","policies","models"}.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command line of this process.
#[must_use]
pub fn run() -> ExitCode {
    // Before the command line is read: a worker allocates, opens and starts nothing on its way to the walls.
    if std::env::args_os().nth(1).is_some_and(|verb| verb == model::worker::COMMAND) {
        return model::worker::run();
    }
    let command = Command::parse();
    let done = match command.verb {
        Verb::Serve { policies } => serve::run(&policies, |_| {}),
        Verb::Demo(arguments) => demo::run(&arguments),
        Verb::Check { cedar_schema: true, .. } => say::bytes(authorize::policy::SCHEMA.as_bytes()).map_err(No::from),
        Verb::Check { dir, json, .. } => check(&dir, json),
        Verb::Key(verb) => keys::run(verb),
        Verb::Model(verb) => models::run(verb),
        Verb::Walls { isolation, json } => walls(isolation, json),
        Verb::Log(verb) => logs::run(verb),
        Verb::Witness(arguments) => witness::run(arguments),
        Verb::Calibrate(arguments) => calibrate::run(&arguments),
        Verb::Exposure(arguments) => exposure::run(&arguments),
        Verb::Erase(arguments) => erase::run(&arguments),
        Verb::Health { admin } => health(&admin),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(No(lines)) => {
            lines.iter().for_each(|line| aside!("{line}"));
            ExitCode::from(1)
        }
    }
}

/// The answer is no, and why, a line each.
#[derive(Debug)]
pub struct No(pub Vec<String>);

impl No {
    /// A no of one line.
    pub fn because(why: impl std::fmt::Display) -> Self {
        Self(vec![format!("portcullis: {why}")])
    }
}

impl From<Unsaid> for No {
    fn from(unsaid: Unsaid) -> Self {
        Self::because(unsaid)
    }
}

fn check(dir: &Path, json: bool) -> Result<(), No> {
    let checked = config::load(dir, Moment::now(), &Made::default(), Engines::None);
    if json {
        let told = match &checked {
            Ok(Loaded { snapshot, missing, warnings, .. }) => serde_json::json!({
                "ok": true, "policy": snapshot.digest.to_string(), "mistakes": [], "missing": missing, "warnings": warnings,
            }),
            Err(mistakes) => serde_json::json!({ "ok": false, "policy": null, "mistakes": mistakes, "missing": [], "warnings": [] }),
        };
        say!("{told}")?;
        return checked.map(drop).map_err(|_| No(Vec::new()));
    }
    match checked {
        Ok(loaded) => {
            loaded.warnings.iter().for_each(|warning| aside!("warning: {warning}"));
            loaded.missing.iter().for_each(|missing| aside!("`serve` will want it: {missing}"));
            let models = loaded.snapshot.authorizer.models().len();
            say!("{}: {models} model(s), policy sha256:{}", dir.display(), loaded.snapshot.digest)?;
            Ok(())
        }
        Err(mistakes) => {
            let count = mistakes.len();
            Err(No(mistakes.into_iter().chain([format!("{count} mistake(s)")]).collect()))
        }
    }
}

fn health(admin: &Address) -> Result<(), No> {
    let answer = admin.get("/readyz", HEALTH_PATIENCE, HEALTH_MOST).map_err(No::because)?;
    if answer.status == 200 { Ok(()) } else { Err(No::because(format!("{admin} is not ready: {}", answer.line))) }
}

/// A level that has a worker.
fn isolation(text: &str) -> Result<Isolation, String> {
    let levels = [Isolation::Strict, Isolation::Required, Isolation::BestEffort];
    levels.into_iter().find(|level| level.as_str() == text).ok_or_else(|| "strict, required or best-effort".to_owned())
}

fn walls(isolation: Isolation, json: bool) -> Result<(), No> {
    let walls = probe::walls(isolation).map_err(No::because)?;
    let missing: Vec<&str> = model::Walls::every().without(walls).names().collect();
    let mut ok = true;
    let mut attempts = Vec::new();
    if !json {
        say!("walls    {walls}")?;
        say!("missing  {}", if missing.is_empty() { "none".to_owned() } else { missing.join(", ") })?;
    }
    for (place, when) in [(Place::Loading, "loading"), (Place::Serving, "serving")] {
        for attempt in Attempt::ALL.into_iter().filter(|attempt| attempt.forbidden(place)) {
            let fate = probe::attempt(isolation, attempt, place).map_err(No::because)?;
            ok &= fate != Fate::Succeeded;
            if json {
                attempts.push(serde_json::json!({ "while": when, "attempt": attempt.as_str(), "fate": fate }));
            } else {
                say!("{when}  {:<34} {fate}", attempt.as_str())?;
            }
        }
    }
    if json {
        let walls: Vec<&str> = walls.names().collect();
        say!(
            "{}",
            serde_json::json!({ "ok": ok, "isolation": isolation.as_str(), "walls": walls, "missing": missing, "attempts": attempts })
        )?;
    }
    if ok { Ok(()) } else { Err(No(Vec::new())) }
}
