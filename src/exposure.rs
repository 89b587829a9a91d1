//! `portcullis exposure`: how much of its models each caller of a running gateway may have learned.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use clap::Args;
use serde::Deserialize;

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
    /// The address of the gateway's admin listener, which speaks plain HTTP on loopback.
    #[arg(default_value = "127.0.0.1:9443", value_name = "ADDRESS")]
    admin: SocketAddr,
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
    let admin = arguments.admin;
    let body = ask(admin).map_err(|error| No::because(format!("{admin} does not answer: {error}")))?;
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

fn ask(admin: SocketAddr) -> std::io::Result<String> {
    let mut socket = TcpStream::connect_timeout(&admin, PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the answer ends with the connection, and has no chunks.
    socket.write_all(format!("GET /v1/exposure HTTP/1.0\r\nhost: {admin}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    socket.take(MOST_BYTES).read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
        Some((head, _)) => Err(std::io::Error::other(head.lines().next().unwrap_or_default().to_owned())),
        None => Err(std::io::Error::other("its answer broke off")),
    }
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
