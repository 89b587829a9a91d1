//! `portcullis log`: the provenance log, offline; its folder and the public keys are all that is needed.

mod finding;
mod ocsf;
mod verify;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use crate::cli::No;
use crate::clock::from_rfc3339;
use crate::prove::key::Vkey;
use crate::say::{self, Lines, aside};
use crate::verify::chain::Ended;
use crate::verify::entries::Entries;
use crate::verify::folder::folders;
use crate::verify::proved::{NoProof, Proved};
use crate::verify::show::{Select, show as statements};
use crate::verify::statement::Statement;
use finding::{NotAFinding, finding};
use verify::{label_of, verify};

/// The most entries that `tail` begins with.
const MAX_TAIL: u64 = 10_000;
/// How often `tail --follow` looks for more.
const LOOK: Duration = Duration::from_millis(250);
/// How long a proof may take to be there, in a log whose gateway makes a checkpoint five times a second.
const PATIENCE: Duration = Duration::from_secs(2);
/// How soon it is looked for again.
const PAUSE: Duration = Duration::from_millis(10);
/// The longest line of a security log that is read; the gateway writes none beyond 16 KiB.
const MAX_LINE: u64 = 64 << 10;

/// Examples of the commands.
pub const EXAMPLE: &str = "Examples:\n  portcullis log verify data/log\n  portcullis log tail data/log --follow";

/// What to do with a log.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Verify every entry of a log folder; of a log in shards, of each of them.
    #[command(after_help = "Examples:\n  portcullis log verify data/log --key \"$(sed -n 1p data/log/keys.vkey)\"\n  \
                      curl -s 127.0.0.1:9443/metrics | portcullis log verify data/log --reconcile -")]
    Verify {
        /// The log's folder, that of its shards, or one of them.
        dir: PathBuf,
        /// A key to trust, as a line of `keys.vkey`; without one the log's own are used, which shows integrity only.
        #[arg(long = "key", value_name = "VKEY")]
        keys: Vec<Vkey>,
        /// Hold the log against this file too, the text of the gateway's `/metrics`; `-` is standard input.
        #[arg(long, value_name = "METRICS")]
        reconcile: Option<PathBuf>,
        /// One line of JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show entries, one line of JSON each; of a log in shards those of all of them, the oldest first.
    #[command(after_help = "Example:\n  portcullis log show data/log 0192f5c4-7a5b-7cc0-8000-5f6b7f1d2a11")]
    Show {
        /// The log's folder, that of its shards, or one of them.
        dir: PathBuf,
        /// A receipt's id or an entry's number, which each shard has its own of; all entries without one.
        #[arg(value_parser = entry)]
        which: Option<Select>,
        /// One line of JSON for each entry, as without it.
        #[arg(long)]
        json: bool,
    },
    /// Show that an entry is in the log: its proof under the newest checkpoint. Nothing is verified.
    #[command(after_help = "Examples:\n  portcullis log proof data/log --seq 7\n  \
                            portcullis log proof data/log --id 0192f5c4-7a5b-7cc0-8000-5f6b7f1d2a11 --form scitt > entry.scitt")]
    Proof(ProofArgs),
    /// Show the last entries, one line of JSON each, and with --follow those that come after them, in the next shard too, until it is
    /// interrupted.
    #[command(after_help = "Example:\n  portcullis log tail data/log --lines 20 --follow")]
    Tail {
        /// The log's folder, that of its shards, or one of them.
        dir: PathBuf,
        /// How many of the last entries.
        #[arg(long, short = 'n', default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=MAX_TAIL))]
        lines: u64,
        /// Wait for more.
        #[arg(long, short)]
        follow: bool,
        /// One line of JSON for each entry, as without it.
        #[arg(long)]
        json: bool,
    },
    /// Write entries as events that a SIEM reads, one line of JSON each. Nothing is verified: `log verify` does that.
    #[command(after_help = "Examples:\n  portcullis log export data/log > events.jsonl\n  \
                            portcullis log export data/log --since 2026-11-01T00:00:00Z --security-log data/security.log")]
    Export(ExportArgs),
}

/// `portcullis log proof`.
#[derive(Debug, Args)]
pub struct ProofArgs {
    /// The log's folder, that of its shards, or one of them.
    dir: PathBuf,
    #[command(flatten)]
    which: Which,
    /// json: statement, path and checkpoint; cose: the receipt of RFC 9942; scitt: the transparent statement of RFC 9943; tlog-proof: C2SP's.
    #[arg(long, value_enum, default_value = "json")]
    form: Form,
}

/// Which entry.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// That of this receipt.
    #[arg(long, value_name = "ID")]
    id: Option<Uuid>,
    /// That with this number, as statements tell it.
    #[arg(long, value_name = "N")]
    seq: Option<u64>,
    /// That at this place in the tree, from 0.
    #[arg(long, value_name = "N")]
    index: Option<u64>,
}

/// What a proof is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// One line of JSON.
    Json,
    /// A COSE receipt.
    Cose,
    /// A transparent statement.
    Scitt,
    /// A C2SP tlog-proof.
    TlogProof,
}

/// `portcullis log export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The log's folder, that of its shards, or one of them.
    dir: PathBuf,
    /// ocsf: OCSF 1.9 with the statement inside; json: what each statement says.
    #[arg(long, value_enum, default_value = "ocsf")]
    format: Format,
    /// Entries signed at this time or later (RFC 3339).
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<SystemTime>,
    /// Entries signed before this time (RFC 3339).
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<SystemTime>,
    /// The entry of this receipt.
    #[arg(long, value_name = "ID", conflicts_with = "seq")]
    id: Option<Uuid>,
    /// The entry with this number.
    #[arg(long, value_name = "N")]
    seq: Option<u64>,
    /// Write the alarms of this security log too, as Detection Findings after the entries.
    #[arg(long, value_name = "FILE")]
    security_log: Option<PathBuf>,
    /// One line of JSON for each entry, as without it.
    #[arg(long)]
    json: bool,
}

/// What entries are written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Events of OCSF 1.9.
    Ocsf,
    /// The statements' own fields.
    Json,
}

fn entry(text: &str) -> Result<Select, String> {
    let id = text.parse().map(Select::Id);
    id.or_else(|_| text.parse().map(Select::Seq)).map_err(|_| "neither a receipt's id nor an entry's number".to_owned())
}

fn moment(text: &str) -> Result<SystemTime, String> {
    from_rfc3339(text).ok_or_else(|| "write it like 2026-11-20T23:59:59Z".to_owned())
}

/// Runs one of them.
///
/// # Errors
/// The answer is no, and why.
pub fn run(verb: Verb) -> Result<(), No> {
    match verb {
        Verb::Verify { dir, keys, reconcile, json } => verify(&dir, &keys, reconcile.as_deref(), json),
        Verb::Show { dir, which, .. } => show(&dir, which),
        Verb::Proof(arguments) => proof(&arguments),
        Verb::Tail { dir, lines, follow, .. } => tail(&dir, lines, follow),
        Verb::Export(arguments) => export(&arguments),
    }
}

/// An error of the log in `dir`.
fn at(dir: &Path) -> impl Fn(io::Error) -> No {
    move |error| No::because(format!("{}: {error}", dir.display()))
}

/// The folders of a log's shards, the oldest first; of a log that is in one, its own.
fn shards(dir: &Path) -> Result<Vec<PathBuf>, No> {
    let found = folders(dir).map_err(at(dir))?;
    if found.is_empty() {
        let dir = dir.display();
        let what =
            "no log lies here: name the folder with its `checkpoint`, or the one that holds its shards, which are called as 2026h2 is";
        return Err(No::because(format!("{dir}: {what}")));
    }
    Ok(found)
}

/// What an entry says.
fn statement(index: u64, entry: &[u8]) -> io::Result<Statement> {
    Statement::read(entry).map_err(|error| io::Error::other(format!("entry {index}: {error}")))
}

fn proof(arguments: &ProofArgs) -> Result<(), No> {
    let Which { id, seq, index } = arguments.which;
    let select = id.map(Select::Id).or(seq.map(Select::Seq)).or(index.map(Select::Index)).unwrap_or(Select::All);
    let shards = shards(&arguments.dir)?;
    if id.is_none() && shards.len() > 1 {
        let dir = arguments.dir.display();
        let names: Vec<String> = shards.iter().map(|shard| shard.display().to_string()).collect();
        return Err(No::because(format!("{dir}: each shard has its own numbers: name one of {}", names.join(", "))));
    }
    let found = proved(&shards, select)?;
    let bytes = match arguments.form {
        Form::Json => Some(format!("{}\n", found.json()).into_bytes()),
        Form::Cose => Some(found.receipt()),
        Form::Scitt => found.transparent(),
        Form::TlogProof => Some(found.tlog_proof().into_bytes()),
    };
    let bytes = bytes.ok_or_else(|| No::because("the log has no receipt of it"))?;
    Ok(say::bytes(&bytes)?)
}

/// The entry, in whatever shard it is: the newest that has it. Where none has, what is told is what keeps one from having it.
fn proved(shards: &[PathBuf], select: Select) -> Result<Proved, No> {
    let mut why = No::because(NoProof::NoSuchEntry);
    let mut told = false;
    for shard in shards.iter().rev() {
        match proved_in(shard, select) {
            Ok(found) => return Ok(found),
            Err(NoProof::NoSuchEntry) => {}
            Err(_) if told => {}
            Err(error) if shards.len() == 1 => return Err(No::because(error)),
            Err(error) => (why, told) = (No::because(format!("{}: {error}", shard.display())), true),
        }
    }
    Err(why)
}

/// The entry with its proof, from a log that may be growing: what keeps a proof from being there for the moment is waited for.
fn proved_in(shard: &Path, select: Select) -> Result<Proved, NoProof> {
    let asked = Instant::now();
    loop {
        match Proved::in_folder(shard, select) {
            Err(error) if error.may_pass() && asked.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
            outcome => return outcome,
        }
    }
}

fn tail(dir: &Path, lines: u64, follow: bool) -> Result<(), No> {
    let shards = shards(dir)?;
    let mut left = usize::try_from(lines).unwrap_or(0);
    let (mut last, mut following) = (Vec::new(), Vec::new());
    // From the newest on, as many shards as it takes.
    for shard in shards.iter().rev() {
        let (found, entries) = Entries::last(shard, left).map_err(at(shard))?;
        left -= found.len();
        if left > 0 {
            tell_pruned(shard)?;
        }
        last.push((shard, found));
        if following.is_empty() {
            following.push((shard.clone(), entries));
        }
        if left == 0 {
            break;
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(at(dir))?;
    // From the first line on, whoever has seen enough may say so.
    let mut interrupted = {
        let _entered = runtime.enter();
        follow.then(|| signal(SignalKind::interrupt())).transpose().map_err(at(dir))?
    };
    let mut out = Lines::default();
    for (shard, entries) in last.into_iter().rev() {
        for (index, entry) in entries {
            if !out.line(statement(index, &entry).map_err(at(shard))?.view())? {
                return Ok(());
            }
        }
    }
    let heard = out.flush()?;
    let Some(interrupted) = interrupted.as_mut().filter(|_| heard) else { return Ok(()) };
    runtime.block_on(async {
        let mut over: Vec<Ended> = Vec::new();
        loop {
            // The requests that began in a shard end in it, beside those of the next one.
            let (mut place, mut last) = (0, following.len() - 1);
            while let Some((shard, entries)) = following.get_mut(place) {
                match entries.next() {
                    Some(Ok((index, entry))) => {
                        let statement = statement(index, &entry).map_err(at(shard))?;
                        over.extend(statement.ended());
                        out.line(statement.view())?;
                        if !out.flush()? {
                            return Ok(());
                        }
                    }
                    // Who takes one away that is not written any more takes nothing from those after it.
                    Some(Err(_)) if place < last && !shard.exists() => {
                        aside!("portcullis: {}: it was taken away before an entry of the next shard told its end", shard.display());
                        following.remove(place);
                        last -= 1;
                    }
                    Some(Err(error)) => return Err(at(shard)(error)),
                    None => place += 1,
                }
            }
            let newest = following.last().map(|(shard, _)| shard.clone());
            // One that was read to the end that is told of it is let go of.
            let ended = |shard: &Path, read: u64| over.iter().any(|ended| is_of(ended, shard) && ended.entries <= read);
            following.retain(|(shard, entries)| Some(shard) == newest.as_ref() || !ended(shard, entries.position()));
            for shard in folders(dir).map_err(at(dir))?.into_iter().skip_while(|shard| Some(shard) != newest.as_ref()).skip(1) {
                let entries = Entries::of_live(&shard).map_err(at(&shard))?;
                following.push((shard, entries));
            }
            tokio::select! {
                _ = interrupted.recv() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    })
}

/// Whether it is the shard in this folder that has ended.
fn is_of(ended: &Ended, shard: &Path) -> bool {
    label_of(shard) == ended.origin.rsplit('/').next().and_then(|label| label.parse().ok())
}

fn export(arguments: &ExportArgs) -> Result<(), No> {
    let one = arguments.id.is_some() || arguments.seq.is_some();
    let mut out = Lines::default();
    let (mut found, shards) = (false, shards(&arguments.dir)?);
    // Opened first: nothing is written where it is not there.
    let told = |path: &Path, error: io::Error| No::because(format!("{}: {error}", path.display()));
    let alarms = arguments.security_log.as_deref().map(|path| File::open(path).map(|file| (path, file)).map_err(|error| told(path, error)));
    let alarms = alarms.transpose()?;
    for dir in &shards {
        if !one {
            tell_pruned(dir)?;
        }
        match export_shard(dir, arguments, &mut out)? {
            Some(more) => found |= more,
            None => return Ok(()),
        }
    }
    if let Some((path, file)) = alarms {
        findings(path, file, arguments, &mut out)?;
    }
    out.flush()?;
    if found || !one { Ok(()) } else { Err(no_such_entry(&shards)) }
}

/// Says whether there was anything; nothing when nobody reads any more.
fn export_shard(dir: &Path, arguments: &ExportArgs, out: &mut Lines) -> Result<Option<bool>, No> {
    let mut found = false;
    for entry in Entries::of_covered(dir).map_err(at(dir))? {
        let (index, entry) = entry.map_err(at(dir))?;
        let statement = Statement::read(&entry).map_err(|error| No::because(format!("{}: entry {index}: {error}", dir.display())))?;
        if arguments.seq.is_some_and(|wanted| wanted != statement.seq)
            || arguments.id.is_some_and(|wanted| wanted != statement.id)
            || !arguments.wants(UNIX_EPOCH + Duration::from_nanos(statement.signed_at))
        {
            continue;
        }
        found = true;
        let view = statement.view();
        let line = if arguments.format == Format::Ocsf { ocsf::event(&view, &entry) } else { view };
        if !out.line(line)? {
            return Ok(None);
        }
    }
    Ok(Some(found))
}

impl ExportArgs {
    fn wants(&self, time: SystemTime) -> bool {
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time < until)
    }
}

/// The alarms of a security log: in JSON as they stand there, else as findings.
fn findings(path: &Path, file: File, arguments: &ExportArgs, out: &mut Lines) -> Result<(), No> {
    let told = |why: String| No::because(format!("{}: {why}", path.display()));
    let mut from = BufReader::new(file);
    let (mut line, mut unread) = (Vec::new(), 0_u64);
    loop {
        line.clear();
        if from.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(|error| told(error.to_string()))? == 0 {
            break;
        }
        let text = std::str::from_utf8(&line).unwrap_or_default();
        match finding(text) {
            Ok(event) => {
                let time = event["time"].as_u64().map_or(UNIX_EPOCH, |millis| UNIX_EPOCH + Duration::from_millis(millis));
                let wanted = arguments.wants(time) && arguments.seq.is_none();
                let of_receipt = arguments.id.is_none_or(|id| event["metadata"]["correlation_uid"] == id.to_string());
                if wanted && of_receipt {
                    let heard = if arguments.format == Format::Ocsf { out.line(event)? } else { out.line(text.trim_end())? };
                    if !heard {
                        return Ok(());
                    }
                }
            }
            Err(NotAFinding::AnotherEvent) => {}
            Err(NotAFinding::NotALine) => unread += 1,
        }
    }
    // A line that was torn when the disk was full is nothing to stop at, and nothing to be silent about.
    if unread > 0 {
        aside!("portcullis: {}: {unread} lines are no events of a security log", path.display());
    }
    Ok(())
}

fn show(dir: &Path, which: Option<Select>) -> Result<(), No> {
    let select = which.unwrap_or(Select::All);
    let mut shown = 0;
    let mut out = Lines::default();
    let shards = shards(dir)?;
    for dir in &shards {
        if which.is_none() {
            tell_pruned(dir)?;
        }
        let told = at(dir);
        for entry in statements(dir, select).map_err(&told)? {
            shown += 1;
            if !out.line(entry.map_err(&told)?)? {
                return Ok(());
            }
        }
    }
    out.flush()?;
    if shown > 0 || which.is_none() { Ok(()) } else { Err(no_such_entry(&shards)) }
}

/// Why an entry is not there: it never was, or it may have been pruned.
fn no_such_entry(shards: &[PathBuf]) -> No {
    let first = |shard: &PathBuf| Entries::first_index(shard).ok().filter(|first| *first > 0).map(|first| (shard.clone(), first));
    let pruned: Vec<(PathBuf, u64)> = shards.iter().filter_map(first).collect();
    match &pruned[..] {
        [] => No::because("no such entry"),
        [(_, first)] if shards.len() == 1 => No::because(format!("no such entry; those before {first} were pruned")),
        pruned => {
            let told: Vec<String> = pruned.iter().map(|(shard, first)| format!("in {} those before {first}", shard.display())).collect();
            No::because(format!("no such entry; {} were pruned", told.join(", ")))
        }
    }
}

/// Says beside the entries that those before them are gone.
fn tell_pruned(dir: &Path) -> Result<(), No> {
    let first = Entries::first_index(dir).map_err(at(dir))?;
    if first > 0 {
        aside!("portcullis: {}: entries before {first} were pruned", dir.display());
    }
    Ok(())
}
