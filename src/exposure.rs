//! `portcullis exposure`: how much of its models each caller of a running gateway may have learned.

use std::time::Duration;

use clap::Args;
use serde::Deserialize;

use crate::admin::address::Address;
use crate::cli::No;
use crate::say::say;

/// An example of the command.
pub const EXAMPLE: &str = "Example:\n  portcullis exposure 127.0.0.1:9443";

/// Bytes of an answer at most.
const MOST_BYTES: u64 = 64 << 20;

/// How long the gateway has to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the command is told.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The gateway's admin listener on this machine: IP:PORT, HOST:PORT or http://….
    #[arg(default_value = "127.0.0.1:9443", value_name = "ADDRESS")]
    admin: Address,
    /// JSON: a list of {"caller","model","fidelity","bits","rows","step"}.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Deserialize)]
struct Exposed {
    caller: String,
    model: String,
    fidelity: f32,
    bits: f64,
    rows: u64,
    step: String,
}

/// Runs the command.
///
/// # Errors
/// When the gateway does not answer.
pub fn run(arguments: &Arguments) -> Result<(), No> {
    let admin = &arguments.admin;
    let answer = admin.get("/v1/exposure", PATIENCE, MOST_BYTES).map_err(No::because)?;
    if answer.status != 200 {
        return Err(No::because(format!("{admin} answered {:?}", answer.line)));
    }
    let body = answer.body;
    if arguments.json {
        say!("{body}")?;
        return Ok(());
    }
    let exposed: Vec<Exposed> =
        serde_json::from_str(&body).map_err(|error| No::because(format!("{admin} answered something else: {error}")))?;
    say!("{:<40} {:<24} {:>8} {:>12} {:>10}  step", "caller", "model", "fidelity", "bits", "rows")?;
    exposed.iter().try_for_each(|exposed| say!("{}", line(exposed)))?;
    Ok(())
}

/// A caller's name may be whatever an issuer of tokens says: what would steer a terminal is escaped.
fn line(Exposed { caller, model, fidelity, bits, rows, step }: &Exposed) -> String {
    let (caller, model) = (caller.escape_debug().to_string(), model.escape_debug().to_string());
    format!("{caller:<40} {model:<24} {fidelity:>8.3} {bits:>12.0} {rows:>10}  {step}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_steers_the_terminal_of_who_looks() {
        let caller = "jwt:issuer#\u{1b}[2J\nadmin".to_owned();
        let line = line(&Exposed { caller, model: "m".into(), fidelity: 0.5, bits: 1.0, rows: 2, step: "observe".into() });
        assert!(!line.contains(char::is_control) && line.contains("\\u{1b}[2J\\nadmin"), "{line}");
    }
}
