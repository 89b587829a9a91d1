//! `portcullis erase`: destroys what opens a caller's commitments, or what tells who a month's pseudonyms were.
//!
//! Without `--admin` it opens the log itself, which it can only while no gateway has it open. With it, it asks the gateway.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{ArgGroup, Args};
use serde_json::{Value as Json, json};

use crate::admin::address::Address;
use crate::admin::erasures::{HEADER, PATH, is_month};
use crate::cli::No;
use crate::config;
use crate::prove::{Build, Erasure, Shards};
use crate::say::{aside, say};
use crate::verify::folder::{LOCK, SALTS, folders};

/// The example of the command's help.
pub const EXAMPLE: &str = "Examples:\n  portcullis erase --tenant acme --caller api_key:batch-job --admin http://127.0.0.1:9443\n  \
                           portcullis erase --epoch 202610 --policies policies";

/// How long a gateway may take: it rewrites the file of the keys, up to 93 MB.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 64 << 10;

/// `portcullis erase`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["caller", "epoch", "strangers"])))]
pub struct Arguments {
    /// The caller whose commitments nobody is to open any more: api_key:ID, jwt:ISSUER#SUB or cert:SAN.
    #[arg(long, value_name = "CALLER", value_parser = caller)]
    caller: Option<String>,
    /// The caller's tenant; none without it.
    // That it needs a caller would be waived beside --epoch, which excludes one.
    #[arg(long, conflicts_with_all = ["epoch", "strangers"], value_name = "TENANT")]
    tenant: Option<String>,
    /// The month whose pseudonyms nobody is to resolve any more, nor ask for receipts by.
    #[arg(long, value_name = "YYYYMM", value_parser = month)]
    epoch: Option<u32>,
    /// The month whose refusals without a caller nobody is to open any more.
    #[arg(long, value_name = "YYYYMM", value_parser = month)]
    strangers: Option<u32>,
    /// The policy folder, which names the log.
    #[arg(long, default_value = "policies", value_name = "DIR")]
    policies: PathBuf,
    /// Ask the gateway that runs, at its admin listener on this machine: IP:PORT, HOST:PORT or http://….
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<Address>,
    /// One line of JSON: {"erased","keys","of","from","to","id","seq","passed_over"}, or {"erased","why"}.
    #[arg(long)]
    json: bool,
}

/// A caller's name begins with how it was told who it is.
fn caller(text: &str) -> Result<String, &'static str> {
    let named = text.split_once(':').is_some_and(|(how, whom)| ["api_key", "jwt", "cert"].contains(&how) && !whom.is_empty());
    if named { Ok(text.to_owned()) } else { Err("a caller is written api_key:ID, jwt:ISSUER#SUB or cert:SAN") }
}

fn month(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|month| text.len() == 6 && is_month(*month)).ok_or_else(|| "a month is written YYYYMM".to_owned())
}

/// Does it.
///
/// # Errors
/// There is no such key, its month is not over, or the log cannot be opened or asked.
pub fn run(arguments: &Arguments) -> Result<(), No> {
    let erasure = match (&arguments.caller, arguments.epoch, arguments.strangers) {
        (Some(caller), ..) => Erasure::Subject { tenant: arguments.tenant.clone().unwrap_or_default(), caller: caller.clone() },
        (_, Some(month), _) => Erasure::Epoch(month),
        (.., Some(month)) => Erasure::Strangers(month),
        _ => return Err(No::because("say what is to be erased")),
    };
    let done = match &arguments.admin {
        Some(admin) => ask(admin, &erasure),
        None => here(&arguments.policies, erasure, rustix::process::geteuid().as_raw()),
    };
    match (done, arguments.json) {
        (Ok(erased), true) => say!("{erased}")?,
        (Ok(erased), false) => {
            let months = erased["from"].as_u64().map(|month| format!(" of {month}")).unwrap_or_default();
            say!("erased the key of {}{months}; entry {} of the log tells it", erased["of"].as_str().unwrap_or_default(), erased["seq"])?;
            for gone in erased["passed_over"].as_array().into_iter().flatten().filter_map(Json::as_str) {
                say!("passed over shard {gone}, whose folder is gone: the keys in it are where it was moved to")?;
            }
        }
        (Err(why), true) => {
            say!("{}", json!({ "erased": false, "why": why }))?;
            return Err(No(Vec::new()));
        }
        (Err(why), false) => return Err(No::because(why)),
    }
    Ok(())
}

/// Opens the log itself, as `user`.
fn here(policies: &Path, erasure: Erasure, user: u32) -> Result<Json, String> {
    let gateway = config::gateway(policies)
        .ok_or_else(|| format!("{}: gateway.toml cannot be used; `portcullis check` says why", policies.display()))?;
    let (directory, _) = gateway.prove.paths(policies);
    // A log that is not there would be begun.
    let logs = folders(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    if !logs.iter().any(|log| log.join(SALTS).exists()) {
        return Err(format!("{}: no log with keys to erase", directory.display()));
    }
    // The files that it writes would be this user's, and the gateway could not open them again.
    if let Some((log, owner)) = logs.iter().find_map(|log| owner_of(log).filter(|owner| *owner != user).map(|owner| (log, owner))) {
        return Err(format!(
            "{}: this log is of the user with the id {owner}, and this is {user}: nothing was changed. Run it as that user \
             (`sudo -u '#{owner}' portcullis erase …`), or ask a gateway that runs with --admin",
            log.display()
        ));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let (events, _reader) = crate::event::channel(1);
    let on_fatal = Box::new(|why: &std::io::Error| {
        aside!("portcullis: the provenance log cannot be written ({why}); stopping");
        std::process::abort();
    });
    let opened = Shards::open(SystemTime::now(), &[], &gateway.prove, policies, Build::of_this_program(), events, on_fatal);
    let (shards, _) = opened.map_err(|error| format!("{error}; of a gateway that runs ask with --admin"))?;
    let erased = runtime.block_on(shards.erase(erasure));
    shards.close();
    erased.map(|erased| erased.json()).map_err(|error| error.to_string())
}

/// Who writes a log: the owner of the file that whoever writes it has open, which is made once, in whatever folder it was given.
fn owner_of(log: &Path) -> Option<u32> {
    std::fs::metadata(log.join(LOCK)).or_else(|_| std::fs::metadata(log)).ok().map(|file| file.uid())
}

/// Asks the gateway.
fn ask(admin: &Address, erasure: &Erasure) -> Result<Json, String> {
    let body = match erasure {
        Erasure::Subject { tenant, caller } => json!({ "tenant": tenant, "caller": caller }),
        Erasure::Epoch(month) => json!({ "epoch": month }),
        Erasure::Strangers(month) => json!({ "strangers": month }),
    };
    let answer = admin.post(PATH, &format!("{HEADER}: 1\r\n"), &body.to_string(), PATIENCE, MAX_ANSWER)?;
    let told: Json = serde_json::from_str(&answer.body).unwrap_or_default();
    if answer.status == 200 && told["erased"] == true {
        return Ok(told);
    }
    Err(told["why"].as_str().map_or_else(|| format!("{admin} answered {:?}", answer.line), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_are_written_one_way() {
        assert_eq!((month("202612"), month("202601")), (Ok(202_612), Ok(202_601)));
        for bad in ["", "202600", "202613", "2026-11", "26011", "0202611", "+20261", "196912"] {
            assert!(month(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_log_of_another_user_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let gateway = "[accept]\nlisten = \"127.0.0.1:0\"\n[accept.tls]\ncertificate = \"c.pem\"\nkey = \"k.pem\"\n[prove]\n\
                       directory = \"log\"\norigin = \"gw.example/node1\"\nkey = \"provenance.key\"\n";
        std::fs::write(path("gateway.toml"), gateway).unwrap();
        std::fs::write(path("provenance.key"), crate::prove::Key::generate_pem().expose()).unwrap();
        let prove = config::gateway(folder.path()).unwrap().prove;
        let (events, _reader) = crate::event::channel(1);
        let build = Build::of_this_program();
        Shards::open(SystemTime::now(), &[], &prove, folder.path(), build, events, Box::new(|_| {})).unwrap().0.close();
        let written = || ["log.lock", "log/checkpoint", "log/salts"].map(|name| std::fs::metadata(path(name)).unwrap().ino());
        let (before, user) = (written(), std::fs::metadata(path("log")).unwrap().uid());
        let why = here(folder.path(), Erasure::Epoch(197_001), user + 1).unwrap_err();
        assert!(why.contains(&format!("sudo -u '#{user}'")), "{why}");
        assert_eq!(written(), before);
        // As its own it is opened: there is no such key.
        assert!(here(folder.path(), Erasure::Epoch(197_001), user).unwrap_err().contains("no such key"));
        assert_ne!(written(), before);
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn a_tenant_narrows_a_caller_and_never_a_month() {
        use clap::Parser;
        let taken = |line: &str| Line::try_parse_from(line.split(' ')).map(|line| line.arguments.tenant);
        assert!(taken("erase --tenant acme --caller api_key:a").is_ok_and(|tenant| tenant.as_deref() == Some("acme")));
        for wide in
            ["--epoch 202611", "--strangers 202611", "--epoch 202611 --admin http://127.0.0.1:9443", "--admin http://127.0.0.1:9443"]
        {
            assert!(taken(&format!("erase --tenant acme {wide}")).is_err(), "{wide}");
        }
        assert!(taken("erase --epoch 202611").is_ok());
    }
}
