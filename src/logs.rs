//! `portcullis log`: the provenance log, offline; its folder and the public keys are all that is needed.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use crate::cli::No;
use crate::prove::key::Vkey;
use crate::prove::verify::{Select, show as statements, verify_dir};

/// What to do with a log.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Verify every entry of a log folder.
    #[command(after_help = "Example:\n  portcullis log verify data/log --key \"$(sed -n 1p data/log/keys.vkey)\"")]
    Verify {
        /// The log's folder.
        dir: PathBuf,
        /// A key to trust, as a line of `keys.vkey`; without one the log's own are used, which shows integrity only.
        #[arg(long = "key", value_name = "VKEY")]
        keys: Vec<String>,
        /// One line of JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show entries, one line of JSON each.
    #[command(after_help = "Example:\n  portcullis log show data/log 0192f5c4-7a5b-7cc0-8000-5f6b7f1d2a11")]
    Show {
        /// The log's folder.
        dir: PathBuf,
        /// A receipt's id or an entry's number; all entries without one.
        which: Option<String>,
    },
}

/// Runs one of them.
///
/// # Errors
/// The answer is no, and why.
pub fn run(verb: Verb) -> Result<(), No> {
    match verb {
        Verb::Verify { dir, keys, json } => verify(&dir, &keys, json),
        Verb::Show { dir, which } => show(&dir, which.as_deref()),
    }
}

fn verify(dir: &Path, keys: &[String], json: bool) -> Result<(), No> {
    let keys: Result<Vec<Vkey>, No> = keys.iter().map(|key| key.parse().map_err(No::because)).collect();
    let keys = keys?;
    let report =
        verify_dir(dir, (!keys.is_empty()).then_some(&keys)).map_err(|error| No::because(format!("{}: {error}", dir.display())))?;
    if json {
        println!(
            "{}",
            serde_json::json!({
                "ok": report.ok, "entries": report.entries, "kinds": report.kinds, "last_seq": report.last_seq,
                "integrity_only": report.integrity_only, "problems": report.problems
            })
        );
    } else {
        println!("{}", report.summary());
    }
    if report.ok { Ok(()) } else { Err(No(Vec::new())) }
}

fn show(dir: &Path, which: Option<&str>) -> Result<(), No> {
    use std::io::Write;
    let told = |error: std::io::Error| No::because(format!("{}: {error}", dir.display()));
    let select = match which {
        None => Select::All,
        Some(text) => match (text.parse(), text.parse()) {
            (Ok(id), _) => Select::Id(id),
            (_, Ok(seq)) => Select::Seq(seq),
            _ => return Err(No::because(format!("{text:?} is neither a receipt's id nor an entry's number"))),
        },
    };
    let mut shown = 0;
    let mut out = std::io::stdout().lock();
    for entry in statements(dir, select).map_err(told)? {
        shown += 1;
        // A reader that has seen enough closes the pipe, which is not a failure.
        if writeln!(out, "{}", entry.map_err(told)?).is_err() {
            return Ok(());
        }
    }
    if shown == 0 && which.is_some() { Err(No::because("no such entry")) } else { Ok(()) }
}
