//! Checks a log, or one statement, offline. Knows nothing of the server: files, keys and the formats are all it needs.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value as Json;
use uuid::Uuid;

use super::key::{Kind as KeyKind, PublicKey, Vkey};
use super::ledger::KEYS;
use super::segment::{HEADER, Record, first_number, numbers, path_of, segment_number};
use super::statement::{Kind, Statement};

/// How many problems are told; more are counted.
const TOLD: usize = 100;
/// The longest file of public keys in bytes.
const MAX_KEYS: u64 = 64 << 10;

/// What was found in a log.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Whether everything holds.
    pub ok: bool,
    /// How many entries there are.
    pub entries: u64,
    /// How many of each kind.
    pub kinds: BTreeMap<&'static str, u64>,
    /// The last number.
    pub last_seq: Option<u64>,
    /// Numbers that a restart left out and a signed entry accounts for, from and to.
    pub left_out: Vec<(u64, u64)>,
    /// No key was given, so the log's own were used: this shows that nothing is damaged, not whose log it is.
    pub integrity_only: bool,
    /// What does not hold: the first hundred.
    pub problems: Vec<String>,
    /// How many more problems there are.
    pub more_problems: u64,
}

impl Report {
    /// The report in one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let verdict = if self.ok { "holds" } else { "does not hold" };
        let scope = if self.integrity_only { "; integrity only: the keys are the log's own" } else { "" };
        format!("the log {verdict}: {} entries, {} problems{scope}", self.entries, self.problems.len() as u64 + self.more_problems)
    }

    fn problem(&mut self, text: String) {
        if self.problems.len() < TOLD { self.problems.push(text) } else { self.more_problems += 1 }
    }
}

/// Verifies the log in `directory`: every record's checksum, every number in order, every statement's encoding and signature, and that
/// nothing else is there. `keys` are those of the log key, which vouches for the statement key in entry 0, or of both; without any,
/// those in `keys.vkey` are used.
///
/// # Errors
/// When the folder or a file in it cannot be read at all.
pub fn verify_dir(directory: &Path, keys: Option<&[Vkey]>) -> io::Result<Report> {
    let mut report = Report { integrity_only: keys.is_none(), ..Report::default() };
    strangers(directory, &mut report)?;
    let own = own_keys(directory, &mut report)?;
    let mut trusted = keys.map_or_else(|| own.clone(), <[Vkey]>::to_vec);
    if trusted.is_empty() {
        report.problem("there is no key to verify with".into());
    }
    let segments = numbers(directory)?;
    if segments.is_empty() {
        report.problem("there is no write-ahead file".into());
    }
    let mut next = 0;
    for (index, number) in segments.iter().enumerate() {
        let name = format!("wal-{number:08}");
        if *number != segments[0] + index as u64 {
            report.problem(format!("{name}: the segment before it is missing"));
        }
        segment(&fs::read(directory.join(&name))?, &name, &mut next, &mut trusted, &mut report);
    }
    for key in own.iter().filter(|key| !trusted.contains(key)) {
        report.problem(format!("{KEYS}: the key {} is neither given nor endorsed", hex(&key.kid())));
    }
    report.ok = report.problems.is_empty();
    Ok(report)
}

fn segment(bytes: &[u8], name: &str, next: &mut u64, trusted: &mut Vec<Vkey>, report: &mut Report) {
    let Some(first) = first_number(bytes) else {
        report.problem(format!("{name}: the header is damaged, or of another version"));
        return;
    };
    let mut at = HEADER;
    while let Some(record) = Record::read(&bytes[at..]) {
        let place = format!("{name} byte {at} seq {}", record.seq);
        if at == HEADER && record.seq != first {
            report.problem(format!("{place}: the header names another first number"));
        }
        at += record.size();
        report.entries += 1;
        report.last_seq = Some(record.seq);
        let statement = match Statement::read(record.entry) {
            Ok(statement) => statement,
            Err(error) => {
                report.problem(format!("{place}: {error}"));
                *next = record.seq.saturating_add(1);
                continue;
            }
        };
        *report.kinds.entry(statement.kind.as_str()).or_default() += 1;
        if record.seq > *next && *next > 0 && statement.resumed_after() == Some(*next - 1) {
            report.left_out.push((*next, record.seq - 1));
        } else if record.seq != *next {
            report.problem(format!("{place}: number {next} was expected"));
        }
        *next = record.seq.saturating_add(1);
        if statement.seq != record.seq {
            report.problem(format!("{place}: the statement says number {}", statement.seq));
        }
        if statement.issued != statement.signed_at / 1_000_000_000 {
            report.problem(format!("{place}: its two times differ"));
        }
        if (record.seq == 0) != (statement.kind == Kind::KeyRotation) {
            report.problem(format!("{place}: entry 0, and no other, is the endorsement of the statement key"));
        }
        let by = if statement.kind == Kind::KeyRotation { KeyKind::Log } else { KeyKind::Statement };
        let Some(signer) = trusted.iter().find(|key| key.kind() == by && statement.signed_by(key)) else {
            report.problem(format!("{place}: signed by no key that is given or endorsed"));
            continue;
        };
        if let Some(public) = statement.endorses() {
            let endorsed = Vkey { name: signer.name.clone(), key: PublicKey::Statement(public) };
            if !trusted.contains(&endorsed) {
                trusted.push(endorsed);
            }
        }
    }
    if at == HEADER && at == bytes.len() && first != *next {
        report.problem(format!("{name}: the header names another first number"));
    }
    if at != bytes.len() {
        report.problem(format!("{name} byte {at}: a damaged or torn record, {} bytes are not read", bytes.len() - at));
    }
}

/// Everything in the folder must be known.
fn strangers(directory: &Path, report: &mut Report) -> io::Result<()> {
    for file in fs::read_dir(directory)? {
        let file = file?;
        let name = file.file_name();
        let known = name.to_str().is_some_and(|name| name == KEYS || name == "lock" || segment_number(name).is_some());
        if !known || !file.file_type()?.is_file() {
            report.problem(format!("{}: nothing that belongs to a log", Path::new(&name).display()));
        }
    }
    Ok(())
}

fn own_keys(directory: &Path, report: &mut Report) -> io::Result<Vec<Vkey>> {
    use std::io::Read;
    let mut text = String::new();
    match fs::File::open(directory.join(KEYS)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => {
            if file?.take(MAX_KEYS).read_to_string(&mut text).is_err() {
                report.problem(format!("{KEYS}: not text"));
            }
        }
    }
    let mut keys = Vec::new();
    for (line, text) in text.split_inclusive('\n').enumerate() {
        match text.strip_suffix('\n').and_then(|text| text.parse::<Vkey>().ok()).filter(|key| !keys.contains(key)) {
            Some(key) => keys.push(key),
            None => {
                report.problem(format!("{KEYS} line {}: not a key in its one canonical form, or one that stands there twice", line + 1))
            }
        }
    }
    Ok(keys)
}

/// Verifies one statement on its own, as a caller holds it; whether the log has it is another question.
///
/// # Errors
/// With what does not hold.
pub fn verify_statement(entry: &[u8], key: &Vkey) -> Result<Statement, String> {
    let statement = Statement::read(entry).map_err(|error| error.to_string())?;
    if statement.signed_by(key) { Ok(statement) } else { Err("the signature is not this key's, or the origin is another".into()) }
}

/// Which statements to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// All of them.
    All,
    /// The one of this receipt.
    Id(Uuid),
    /// The one with this number.
    Seq(u64),
}

/// The statements in `directory`, oldest first, as JSON; nothing is verified beyond what it takes to read them.
///
/// # Errors
/// When the folder cannot be read.
pub fn show(directory: &Path, select: Select) -> io::Result<impl Iterator<Item = io::Result<Json>>> {
    let entries = Entries { directory: directory.into(), segments: numbers(directory)?.into_iter(), bytes: Vec::new(), at: 0 };
    Ok(entries.filter_map(move |entry| {
        let wanted = entry.and_then(|(seq, entry)| {
            if matches!(select, Select::Seq(wanted) if wanted != seq) {
                return Ok(None);
            }
            let statement = Statement::read(&entry).map_err(|error| io::Error::other(format!("seq {seq}: {error}")))?;
            Ok((!matches!(select, Select::Id(id) if id != statement.id)).then(|| statement.view()))
        });
        wanted.transpose()
    }))
}

/// The records of a log in order. One segment at a time is in memory.
struct Entries {
    directory: PathBuf,
    segments: std::vec::IntoIter<u64>,
    bytes: Vec<u8>,
    at: usize,
}

impl Iterator for Entries {
    type Item = io::Result<(u64, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.bytes.get(self.at..).and_then(Record::read) {
                self.at += record.size();
                return Some(Ok((record.seq, record.entry.to_vec())));
            }
            if self.at < self.bytes.len() {
                let at = std::mem::replace(&mut self.at, self.bytes.len());
                return Some(Err(io::Error::other(format!("a damaged or torn record at byte {at} of its segment"))));
            }
            let number = self.segments.next()?;
            self.at = HEADER;
            match fs::read(path_of(&self.directory, number)) {
                Ok(bytes) => self.bytes = bytes,
                Err(error) => {
                    self.bytes.clear();
                    return Some(Err(error));
                }
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[path = "verify/tests.rs"]
mod tests;
