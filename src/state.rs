//! What outlives the process beside the log: how much of longer budgets is used, and what callers may have learned of models.
//!
//! `[state] directory` of `gateway.toml` names the folder; without it a restart forgets. All of it is one file that is replaced whole, every
//! ten seconds where something has changed and at the end: who is killed loses no more than that. Its lines are JSON. The first says what they are, the last how many
//! there are between, so that half of a file is none. It names callers, models and address blocks, and nothing of what was asked.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::budget::{self, Budget};
use crate::clock::{Moment, rfc3339};
use crate::detect::kept::Calibrations;
use crate::detect::{self, Detector};
use crate::digest::Digest;
use crate::mistake::Mistake;
use crate::pipeline::House;
use crate::whole;

/// How often it is written.
const EVERY: Duration = Duration::from_secs(10);

/// Between two times there are so many times as long as one took, where there is much to write, and [`LONGEST`] at the most.
const REST: u32 = 50;

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(60);

/// What is written here, and read.
const FORMAT: u32 = 1;

/// The longest file. What would make it longer is left out, the callers first, and told: it would not be read.
const MOST_BYTES: usize = 256 << 20;

/// The longest last line.
const LAST: usize = 64;

/// The file, in its folder.
const FILE: &str = "state.jsonl";

/// Held by the gateway that is at work with it.
const LOCK: &str = "lock";

/// The `[state]` table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The folder, relative to the policies'. It is made where there is none, and must not lie among the policies.
    pub directory: Spanned<PathBuf>,
}

impl Config {
    /// The folder.
    fn folder(&self, policies: &Path) -> PathBuf {
        policies.join(self.directory.get_ref())
    }

    /// What is wrong with it, as far as it says.
    #[must_use]
    pub fn mistake(&self, policies: &Path) -> Option<Mistake> {
        let inside = self.folder(policies).components().fold(PathBuf::new(), |mut path, part| {
            match part {
                std::path::Component::ParentDir => drop(path.pop()),
                part => path.push(part),
            }
            path
        });
        let what = "lies among the policies, whose changes are reloads: name a folder beside them, such as \"../state\"";
        inside.starts_with(policies).then(|| Mistake::at(self.directory.span(), what))
    }
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    /// The first.
    Portcullis { format: u32, written: String },
    /// Of a budget.
    Budget(budget::Kept),
    /// Of a caller or a cohort.
    Caller(detect::kept::Kept),
    /// The last: how many there are between.
    End(usize),
}

/// What was kept before the process began.
#[derive(Default)]
pub struct Kept {
    budgets: Vec<budget::Kept>,
    callers: Vec<detect::kept::Kept>,
}

impl Kept {
    /// How much there is, for people.
    #[must_use]
    pub fn told(&self) -> String {
        match (self.budgets.len(), self.callers.len()) {
            (0, 0) => "nothing was kept of what callers have used and learned".to_owned(),
            (budgets, callers) => {
                format!("kept from before: {budgets} budget(s) in part used, {callers} caller(s) and cohort(s) who have learned")
            }
        }
    }

    /// Gives it back, ahead of all requests.
    pub fn restore(self, budget: &Budget, detector: &Detector, calibrations: &Calibrations, now: Moment) {
        self.budgets.into_iter().for_each(|kept| budget.restore(kept, now));
        self.callers.into_iter().for_each(|kept| detector.restore(kept, calibrations, now));
    }

    fn read(mut lines: impl Iterator<Item = io::Result<String>>) -> Result<Self, String> {
        let mut next = |number: usize| match lines.next() {
            None => Err("it ends too early".to_owned()),
            Some(Err(error)) => Err(format!("line {number}: {error}")),
            Some(Ok(text)) => serde_json::from_str(&text).map_err(|error| format!("line {number}: {error}")),
        };
        match next(1)? {
            Line::Portcullis { format: FORMAT, .. } => {}
            Line::Portcullis { format, .. } => return Err(format!("it is of the format {format}, and this program reads {FORMAT}")),
            _ => return Err("line 1: it does not say what it is".to_owned()),
        }
        let mut kept = Self::default();
        for number in 2.. {
            match next(number)? {
                Line::Budget(budget) if budget.is_sound() => kept.budgets.push(budget),
                Line::Caller(caller) if caller.is_sound() => kept.callers.push(caller),
                Line::End(count) if count == kept.budgets.len() + kept.callers.len() => break,
                _ => return Err(format!("line {number}: it cannot be so")),
            }
        }
        Ok(kept)
    }
}

/// The file, as the gateway that is at work with it has it.
#[derive(Debug)]
pub struct Store {
    file: PathBuf,
    /// Let go with the process.
    _lock: File,
    /// Of what was written last.
    written: Mutex<Option<Digest>>,
    /// Why it could not be, the last time.
    failed: Mutex<Option<String>>,
}

impl Store {
    /// Opens the folder, which is made where there is none, and reads what was kept in it.
    ///
    /// # Errors
    /// The folder cannot be used, another gateway is at work with it, or what lies there is not what was written: nothing of it is believed then.
    pub fn open(config: &Config, policies: &Path) -> Result<(Self, Kept), String> {
        let folder = config.folder(policies);
        let of_folder = |error: io::Error| format!("[state] {}: {error}", folder.display());
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(of_folder)?;
        let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(folder.join(LOCK)).map_err(of_folder)?;
        // Whoever may open it could hold it, and keep the gateway from starting.
        lock.set_permissions(Permissions::from_mode(0o600)).map_err(of_folder)?;
        lock.try_lock().map_err(|_| format!("[state] {}: another gateway is at work with it", folder.display()))?;
        let file = folder.join(FILE);
        clear(&folder).map_err(of_folder)?;
        let kept = read(&file).map_err(|why| {
            format!(
                "{}: {why}. Put back one that is whole, or move it away: then all budgets and what callers have learned begin anew",
                file.display()
            )
        })?;
        Ok((Self { file, _lock: lock, written: Mutex::default(), failed: Mutex::default() }, kept))
    }

    /// Writes what is to be kept, where it is not what was written last.
    ///
    /// # Errors
    /// When it cannot be; what was written before stays.
    fn write(&self, house: &House, now: Moment) -> io::Result<()> {
        let budgets = house.budget.kept(now).map(Line::Budget);
        let (bytes, begin, left_out) = document(budgets.chain(house.detector.kept(now).map(Line::Caller)), now, MOST_BYTES)?;
        let digest = Some(Digest::of(&bytes[begin..]));
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if *written != digest {
            whole::ready(&self.file, &bytes, 0o600)?.put()?;
            *written = digest;
        }
        if left_out == 0 {
            Ok(())
        } else {
            Err(io::Error::other(format!("{left_out} callers and budgets were left out, past {MOST_BYTES} bytes")))
        }
    }

    /// The same, and remembers how it went.
    pub fn keep(&self, house: &House) {
        let failed = self.write(house, Moment::now()).err().map(|error| format!("{}: {error}", self.file.display()));
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
    }

    /// Why it cannot be written, where it cannot.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The file of these lines, of `most` bytes at the most; where what is in it begins, and how many lines had no room.
fn document(lines: impl Iterator<Item = Line>, now: Moment, most: usize) -> io::Result<(Vec<u8>, usize, u64)> {
    let mut bytes = Vec::new();
    add(&mut bytes, &Line::Portcullis { format: FORMAT, written: rfc3339(now.wall) })?;
    let (begin, mut count, mut left_out) = (bytes.len(), 0, 0);
    for line in lines {
        let end = bytes.len();
        add(&mut bytes, &line)?;
        if bytes.len() > most - LAST {
            bytes.truncate(end);
            left_out += 1;
        } else {
            count += 1;
        }
    }
    add(&mut bytes, &Line::End(count))?;
    Ok((bytes, begin, left_out))
}

fn add(bytes: &mut Vec<u8>, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *bytes, line)?;
    bytes.push(b'\n');
    Ok(())
}

/// Removes what a process left behind that was killed while it wrote.
fn clear(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.strip_prefix(FILE).is_some_and(|rest| rest.starts_with('.') && rest.ends_with(".new")) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<Kept, String> {
    let open = match File::open(file) {
        // A link to nothing is no first start.
        Err(error) if error.kind() == io::ErrorKind::NotFound && file.symlink_metadata().is_err() => return Ok(Kept::default()),
        open => open.map_err(|error| error.to_string())?,
    };
    let about = open.metadata().map_err(|error| error.to_string())?;
    if about.len() > MOST_BYTES as u64 {
        return Err(format!("it has more than {MOST_BYTES} bytes"));
    }
    // Put back from elsewhere it may have another mode, which the next one would take over.
    if about.permissions().mode() & 0o77 != 0 {
        open.set_permissions(Permissions::from_mode(0o600)).map_err(|error| error.to_string())?;
    }
    Kept::read(BufReader::new(open).lines())
}

/// Writes it from time to time, until the task is dropped.
pub async fn watch(house: Arc<House>) {
    let Some(store) = house.state.clone() else { return };
    let mut pause = EVERY;
    loop {
        tokio::time::sleep(pause).await;
        let (store, house, begun) = (store.clone(), house.clone(), Instant::now());
        let _ = tokio::task::spawn_blocking(move || store.keep(&house)).await;
        pause = EVERY.max(begun.elapsed() * REST).min(LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = r#"{"portcullis":{"format":1,"written":"2026-11-20T12:00:00.000Z"}}"#;
    const BUDGET: &str = r#"{"budget":{"caller":"api_key:a","model":"m","used":[{"limit":"request_quota","count":3,"per":1000,"burst":3,"used":1,"at":7}]}}"#;
    const CALLER: &str = r#"{"caller":{"name":"api_key:a","model":"m","cohort":false,"rows":3,"seen":7,"pupil":{"ladder":{"step":"alert","by":null,"due":[],"heard":7},"learned":[]}}}"#;
    const END: &str = r#"{"end":2}"#;

    fn folder() -> (tempfile::TempDir, Config) {
        (tempfile::tempdir().unwrap(), toml::from_str("directory = \"../state\"").unwrap())
    }

    fn read(lines: &[&str]) -> Result<(usize, usize), String> {
        let (home, config) = folder();
        let state = home.path().join("state");
        fs::create_dir(&state).unwrap();
        fs::write(state.join(FILE), lines.join("\n")).unwrap();
        fs::write(state.join("state.jsonl.7.new"), "half").unwrap();
        fs::set_permissions(state.join(FILE), Permissions::from_mode(0o644)).unwrap();
        let opened = Store::open(&config, &home.path().join("policies")).map(|(_, kept)| (kept.budgets.len(), kept.callers.len()));
        assert!(!state.join("state.jsonl.7.new").exists(), "what a kill left behind");
        if opened.is_ok() {
            assert_eq!(fs::metadata(state.join(FILE)).unwrap().permissions().mode() & 0o77, 0);
        }
        opened
    }

    #[test]
    fn a_whole_file_is_read_and_nothing_less() {
        assert_eq!(read(&[FIRST, BUDGET, CALLER, END]), Ok((1, 1)));
        assert_eq!(read(&[FIRST, r#"{"end":0}"#]), Ok((0, 0)));
        for (lines, said) in [
            (&[][..], "it ends too early"),
            (&[FIRST], "it ends too early"),
            (&[FIRST, BUDGET, CALLER], "it ends too early"),
            (&[FIRST, BUDGET, END], "line 3: it cannot be so"),
            (&[BUDGET, END], "line 1: it does not say what it is"),
            (&[FIRST, FIRST, END], "line 2: it cannot be so"),
            (&[&FIRST.replace(":1,", ":2,"), END], "it is of the format 2, and this program reads 1"),
            (&[FIRST, &BUDGET[..60], CALLER, END], "line 2: EOF"),
            (&[FIRST, &BUDGET.replace("\"count\":3", "\"count\":0"), CALLER, END], "line 2: it cannot be so"),
            (&[FIRST, BUDGET, &CALLER.replace("alert", "alarm"), END], "line 3: unknown variant"),
        ] {
            let why = read(lines).unwrap_err();
            assert!(why.contains(said) && why.contains("state.jsonl: ") && why.contains("begin anew"), "{why}");
        }
    }

    #[test]
    fn a_file_is_no_longer_than_what_is_read_and_says_how_much_had_no_room() {
        let lines = || [BUDGET, CALLER].into_iter().cycle().take(10).map(|line| serde_json::from_str::<Line>(line).unwrap());
        let now = Moment::now();
        let (whole, begin, left_out) = document(lines(), now, usize::MAX).unwrap();
        assert_eq!((left_out, whole.iter().filter(|byte| **byte == b'\n').count()), (0, 12));
        assert!(begin < 100);
        for most in [whole.len() + LAST, whole.len() - 1, 1_000] {
            let (bytes, _, left_out) = document(lines(), now, most).unwrap();
            assert!(bytes.len() <= most && (left_out > 0) == (most < whole.len()), "{most}: {} {left_out}", bytes.len());
            let kept = Kept::read(bytes.lines()).unwrap();
            assert_eq!(kept.budgets.len() + kept.callers.len(), 10 - left_out as usize);
        }
    }

    #[test]
    fn one_gateway_is_at_work_with_a_folder_which_is_its_owners_alone() {
        let (home, config) = folder();
        let policies = home.path().join("policies");
        let open = || Store::open(&config, &policies).map(|(store, _)| store);
        let first = open().unwrap();
        for path in ["state", "state/lock"] {
            assert_eq!(fs::metadata(home.path().join(path)).unwrap().permissions().mode() & 0o77, 0, "{path}");
        }
        assert!(open().unwrap_err().contains("another gateway is at work with it"));
        drop(first);
        assert!(open().is_ok());
        std::os::unix::fs::symlink("nowhere", home.path().join("state").join(FILE)).unwrap();
        assert!(open().is_err(), "a link to nothing is no first start");
    }

    #[test]
    fn a_folder_among_the_policies_is_a_mistake() {
        let wrong = |directory: &str, policies: &str| {
            toml::from_str::<Config>(&format!("directory = \"{directory}\"")).unwrap().mistake(Path::new(policies)).is_some()
        };
        for policies in ["/etc/policies", "policies", "."] {
            assert!(wrong("state", policies) && wrong("../state/../policies/x", "/etc/policies") && wrong(".", policies), "{policies}");
            assert!(!wrong("../state", policies) && !wrong("/var/lib/portcullis", policies), "{policies}");
        }
    }
}
