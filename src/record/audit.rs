//! The security log: one JSON object a line, appended whole or not at all.
//!
//! A request never waits for it. Events pass a bounded channel to a task, lines another to the thread that writes them
//! ([`crate::lines`]); whatever finds either full is counted, and a `log.lost` line tells the count.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};

use super::metrics::Metrics;
use crate::clock::rfc3339;
use crate::event::{Event, Reader};
use crate::lines::{Lines, Sink};

/// How many lines may wait for the sink before more are counted as lost.
pub const MAX_WAITING_LINES: usize = 4_096;

/// The longest line. An event that would make a longer one is cut to its fixed facts.
pub const MAX_LINE: usize = 16 * 1_024;

/// How long a pending `log.lost` line waits for the queue or the sink to have room again before it is tried anew.
const RETRY: Duration = Duration::from_secs(1);

/// Where the lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard error.
    Stderr,
    /// A file, made if it is not there, readable by its owner alone.
    File(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stderr => f.write_str("stderr"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl Target {
    /// Opens it for appending.
    fn open(&self) -> io::Result<Box<dyn Write + Send>> {
        Ok(match self {
            Self::Stderr => Box::new(io::stderr()),
            Self::File(path) => Box::new(Appended { file: open(path)?, path: path.clone() }),
        })
    }
}

fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
    // To open a pipe that nobody reads would wait for ever.
    if path.metadata().is_ok_and(|found| found.file_type().is_fifo() || found.is_dir()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a pipe nor a folder can hold the security log"));
    }
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// A file that lines are appended to.
struct Appended {
    file: File,
    path: PathBuf,
}

impl Write for Appended {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    /// All of it or nothing: what a full disk took of it is taken back. A file that was removed is made anew, as nobody would read what goes on in it.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut there = self.file.metadata()?;
        if there.is_file() && there.nlink() == 0 {
            self.file = open(&self.path)?;
            there = self.file.metadata()?;
        }
        self.file.write_all(bytes).inspect_err(|_| drop(self.file.set_len(there.len())))
    }
}

type Opened = io::Result<Box<dyn Write + Send>>;

/// How the sink does.
#[derive(Debug, Default)]
struct Health {
    /// Lines that it did not take and that no `log.lost` line tells of yet.
    lost: AtomicU64,
    /// Why it took none when it was last written to.
    unwritten: Mutex<Option<String>>,
    /// Why it could not be opened anew when that was last asked for.
    unopened: Mutex<Option<String>>,
}

/// What is written to, and how it is opened again.
struct Written<A> {
    sink: Box<dyn Write + Send>,
    again: A,
    /// What it is, for people.
    name: String,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    /// How many lost lines the batch tells of that is being written.
    telling: u64,
}

impl<A> Written<A> {
    /// What `outcome` says of the sink.
    fn note(&self, of: &Mutex<Option<String>>, outcome: &io::Result<()>) {
        let why = outcome.as_ref().err().map(|why| format!("{}: {why}", self.name));
        *of.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }
}

impl<A: Fn() -> Opened + Send + 'static> Sink for Written<A> {
    type Item = String;

    /// An empty line is none: it has those told that were lost.
    fn lines(&mut self, line: String, batch: &mut String) -> u64 {
        let lost = self.health.lost.load(Ordering::Relaxed);
        if batch.is_empty() && lost > 0 {
            self.telling = lost;
            batch.push_str(&lost_line(0, lost));
        }
        batch.push_str(&line);
        u64::from(!line.is_empty())
    }

    fn write(&mut self, batch: &[u8]) -> io::Result<()> {
        let outcome = self.sink.write_all(batch).and_then(|()| self.sink.flush());
        let told = std::mem::take(&mut self.telling);
        if outcome.is_ok() {
            self.health.lost.fetch_sub(told, Ordering::Relaxed);
        }
        self.note(&self.health.unwritten, &outcome);
        outcome
    }

    fn reopen(&mut self) -> bool {
        let outcome = (self.again)().map(|new| self.sink = new);
        self.note(&self.health.unopened, &outcome);
        outcome.is_ok()
    }

    fn lost(&mut self, lines: u64, _why: &io::Error) {
        self.metrics.lines_lost.inc_by(lines);
        self.health.lost.fetch_add(lines, Ordering::Relaxed);
    }
}

/// The end of the security log that takes lines. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SecurityLog {
    lines: Lines<String>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
}

impl SecurityLog {
    /// Opens `target` and starts the thread that writes to it.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread not be started.
    pub fn open(target: Target, metrics: Arc<Metrics>) -> io::Result<Self> {
        let (sink, name) = (target.open()?, target.to_string());
        Self::write_to(sink, move || target.open(), name, metrics, MAX_WAITING_LINES)
    }

    fn write_to(
        sink: Box<dyn Write + Send>,
        again: impl Fn() -> Opened + Send + 'static,
        name: String,
        metrics: Arc<Metrics>,
        capacity: usize,
    ) -> io::Result<Self> {
        let health = Arc::<Health>::default();
        let written = Written { sink, again, name, metrics: metrics.clone(), health: health.clone(), telling: 0 };
        let lines = Lines::start("security-log", capacity, written)?;
        Ok(Self { lines, metrics, health })
    }

    /// Why lines are lost, while they are.
    #[must_use]
    pub fn unwritten(&self) -> Option<String> {
        self.health.unwritten.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why it could not be opened anew, where it could not: it goes on in the file that it had.
    #[must_use]
    pub fn unopened(&self) -> Option<String> {
        self.health.unopened.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Opens the file anew, as log rotation wants it; while that fails the old one stays in use.
    pub fn reopen(&self) {
        self.lines.reopen();
    }

    /// Resolves once every line so far was handed to the system; at once where the queue is full.
    /// The caller bounds the wait: a sink that is stuck does not answer.
    async fn flush(&self) {
        self.lines.flush().await;
    }

    /// Whether there was room for the line.
    fn line(&self, line: String) -> bool {
        let took = self.lines.give(line);
        if !took {
            self.metrics.lines_lost.inc();
        }
        took
    }

    /// Writes what `reader` gives until every sender is gone. Whoever asks through `asks` is answered once the channel
    /// was found empty and every line was handed to the system.
    pub async fn drain(self, mut reader: Reader, mut asks: mpsc::Receiver<oneshot::Sender<()>>) {
        // What a `log.lost` line still has to tell: events that found their channel full, lines that found ours full.
        let (mut events, mut lines) = (0, 0);
        loop {
            let event = tokio::select! {
                biased;
                event = reader.next() => event,
                Some(done) = asks.recv() => {
                    self.flush().await;
                    let _ = done.send(());
                    continue;
                }
                () = tokio::time::sleep(RETRY) => {
                    if events + lines > 0 && self.tell_lost(events, lines) { (events, lines) = (0, 0); }
                    self.try_again();
                    continue;
                }
            };
            let Some(event) = event else { break };
            self.metrics.event(event.name);
            let lost = reader.take_lost();
            self.metrics.events_lost.inc_by(lost);
            events += lost;
            if !self.line(line(&event)) {
                lines += 1;
            } else if events + lines > 0 && self.tell_lost(events, lines) {
                (events, lines) = (0, 0);
            }
        }
        if events + lines > 0 {
            self.tell_lost(events, lines);
        }
        self.try_again();
    }

    fn tell_lost(&self, events: u64, lines: u64) -> bool {
        self.lines.give(lost_line(events, lines))
    }

    /// Has the sink tell of what it lost, if it takes lines again.
    fn try_again(&self) {
        if self.health.lost.load(Ordering::Relaxed) > 0 {
            // Where the queue is full, the next line of it does the same.
            let _ = self.lines.give(String::new());
        }
    }
}

fn lost_line(events: u64, lines: u64) -> String {
    let mut object = Map::new();
    object.insert("time".to_owned(), rfc3339(SystemTime::now()).into());
    object.insert("event".to_owned(), "log.lost".into());
    object.insert("events".to_owned(), events.into());
    object.insert("lines".to_owned(), lines.into());
    finish(object)
}

/// One event as one line, newline included. The encoder escapes every control character, so that no value can end a
/// line or speak to a terminal; what is not ASCII is escaped too, for the separators some readers take for line ends.
fn line(event: &Event) -> String {
    let mut object = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            object.insert(key.to_owned(), value);
        }
    };
    let text = |text: &Arc<str>| Value::from(&**text);
    put("time", Some(rfc3339(event.time).into()));
    put("event", Some(event.name.as_str().into()));
    put("caller", event.caller.as_ref().map(text));
    put("tenant", event.tenant.as_ref().filter(|tenant| !tenant.is_empty()).map(text));
    put("model", event.model.as_ref().map(text));
    put("code", event.code.map(Value::from));
    put("rule", event.rule.as_ref().map(text));
    put("receipt", event.receipt.map(|id| id.to_string().into()));
    let fixed = object.clone();
    for (key, value) in &event.more {
        // The fixed facts stand: no further fact may take their name.
        if !object.contains_key(*key) {
            object.insert((*key).to_owned(), value.clone());
        }
    }
    let whole = finish(object);
    if whole.len() <= MAX_LINE {
        return whole;
    }
    let mut cut = fixed;
    for value in cut.values_mut() {
        if let Value::String(text) = value {
            let end = text.floor_char_boundary(MAX_LINE / 64);
            text.truncate(end);
        }
    }
    cut.insert("cut".to_owned(), true.into());
    finish(cut)
}

fn finish(object: Map<String, Value>) -> String {
    let text = Value::Object(object).to_string();
    let mut out = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        // Outside its strings JSON is ASCII, so whatever is not stands in one. DEL is the one control it lets pass.
        if c.is_ascii() && c != '\u{7f}' {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as blocking;

    use super::*;
    use crate::event::{Name, channel};

    fn event() -> Event {
        Event::new(Name::RequestRefused, SystemTime::UNIX_EPOCH)
    }

    fn lines(path: &Path) -> Vec<Value> {
        std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn whatever_a_stranger_writes_stays_on_one_line_and_is_ascii() {
        for nasty in
            ["a\nb", "\r\n{\"event\":\"model.loaded\"}", "\u{1b}[2J", "\u{2028}x\u{85}", "\u{7f}\0\u{9b}", "\"},{\"a\":\"", "\u{202e}😀"]
        {
            let mut event = event().with("detail", nasty);
            event.caller = Some(nasty.into());
            event.rule = Some(nasty.into());
            let line = line(&event);
            assert_eq!(line.matches('\n').count(), 1, "{line:?}");
            assert!(line.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)), "{line:?}");
            let back: Value = serde_json::from_str(&line).unwrap();
            assert_eq!((&back["caller"], &back["detail"]), (&nasty.into(), &nasty.into()));
            assert_eq!(back["event"], "request.refused");
        }
    }

    #[test]
    fn no_further_fact_takes_the_name_of_a_fixed_one() {
        let back: Value = serde_json::from_str(&line(&event().with("event", "model.loaded").with("time", 1))).unwrap();
        assert_eq!(back["event"], "request.refused");
        assert_eq!(back["time"], "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn a_line_at_its_limit_is_whole_and_one_past_it_is_cut() {
        let empty = line(&event().with("detail", "")).len() - 1;
        let at = line(&event().with("detail", "x".repeat(MAX_LINE - empty - 1)));
        assert_eq!(at.len(), MAX_LINE);
        assert!(!at.contains("\"cut\""));
        let past = line(&event().with("detail", "x".repeat(MAX_LINE - empty)));
        assert!(past.len() < MAX_LINE && past.contains("\"cut\":true"), "{past}");
    }

    #[tokio::test]
    async fn events_become_lines_and_reopen_follows_the_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let (path, aside) = (folder.path().join("security.log"), folder.path().join("security.log.1"));
        let log = SecurityLog::open(Target::File(path.clone()), Arc::new(Metrics::default())).unwrap();
        let write = async |code| {
            let (events, reader) = channel(8);
            events.tell(Event { code: Some(code), ..event() });
            drop(events);
            log.clone().drain(reader, mpsc::channel(1).1).await;
            log.flush().await;
        };
        write("check.json").await;
        std::fs::rename(&path, &aside).unwrap();
        write("check.schema").await;
        log.reopen();
        write("check.depth").await;
        let codes = |path| lines(path).iter().map(|line| line["code"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(codes(&aside), ["check.json", "check.schema"]);
        assert_eq!(codes(&path), ["check.depth"]);
        // Nobody would read what goes on in a file that was removed.
        std::fs::remove_file(&path).unwrap();
        write("check.nan").await;
        assert_eq!(codes(&path), ["check.nan"]);
    }

    #[tokio::test]
    async fn events_that_were_lost_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("security.log");
        let metrics = Arc::new(Metrics::default());
        let log = SecurityLog::open(Target::File(path.clone()), metrics.clone()).unwrap();
        let (events, reader) = channel(2);
        (0..5).for_each(|_| events.tell(event()));
        drop(events);
        log.clone().drain(reader, mpsc::channel(1).1).await;
        log.flush().await;
        let lines = lines(&path);
        assert_eq!(lines.len(), 3);
        let told = lines.iter().find(|line| line["event"] == "log.lost").unwrap();
        assert_eq!((&told["events"], &told["lines"]), (&3.into(), &0.into()));
        assert_eq!(metrics.events_lost.get(), 3);
    }

    /// A sink that tells when it was called and answers once it is let.
    struct Stuck(blocking::Sender<()>, blocking::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(());
            let _ = self.1.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_dead_sink_blocks_nobody_and_its_losses_are_counted() {
        let metrics = Arc::new(Metrics::default());
        let (called, was_called) = blocking::channel();
        let (release, released) = blocking::channel();
        let again = || Err(io::Error::other("gone"));
        let log = SecurityLog::write_to(Box::new(Stuck(called, released)), again, "stuck".to_owned(), metrics.clone(), 2).unwrap();
        assert!(log.line("first\n".to_owned()));
        was_called.recv().unwrap();
        // The writer is inside `write` now: two lines wait, the other eight are lost, and nothing here has waited.
        let (events, reader) = channel(16);
        (0..10).for_each(|_| events.tell(event()));
        drop(events);
        log.clone().drain(reader, mpsc::channel(1).1).await;
        assert_eq!(metrics.lines_lost.get(), 8);
        drop(release);
    }

    /// A disk that is full while it is told to be.
    struct Disk(Arc<std::sync::atomic::AtomicBool>, Arc<Mutex<Vec<u8>>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.1.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_full_disk_loses_is_counted_and_told_once_it_takes_lines_again() {
        let (full, held) = (Arc::new(std::sync::atomic::AtomicBool::new(true)), Arc::<Mutex<Vec<u8>>>::default());
        let (metrics, again) = (Arc::new(Metrics::default()), || Err(io::Error::other("gone")));
        let disk = Box::new(Disk(full.clone(), held.clone()));
        let log = SecurityLog::write_to(disk, again, "/var/security.log".to_owned(), metrics.clone(), 64).unwrap();
        let (events, reader) = channel(8);
        let drain = tokio::spawn(log.clone().drain(reader, mpsc::channel(1).1));
        for count in 1..=3 {
            events.tell(event());
            // Each is tried by itself, and so is what tells of them.
            tokio::time::sleep(3 * RETRY).await;
            log.flush().await;
            assert_eq!((metrics.lines_lost.get(), log.health.lost.load(Ordering::SeqCst)), (count, count));
        }
        let why = log.unwritten().unwrap();
        assert!(why.starts_with("/var/security.log: "), "{why}");
        full.store(false, Ordering::SeqCst);
        // The clock goes on by itself, and a thread that writes may be busy with the try before.
        for _ in 0..100 {
            tokio::time::sleep(2 * RETRY).await;
            log.flush().await;
            if log.unwritten().is_none() {
                break;
            }
        }
        assert_eq!(log.unwritten(), None);
        events.tell(event());
        drop(events);
        drain.await.unwrap();
        log.flush().await;
        let text = String::from_utf8(held.lock().unwrap().clone()).unwrap();
        let lines: Vec<Value> = text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect();
        let told: Vec<_> = lines.iter().map(|line| (line["event"].as_str().unwrap(), line["lines"].as_u64())).collect();
        assert_eq!(told, [("log.lost", Some(3)), ("request.refused", None)]);
        assert_eq!((metrics.lines_lost.get(), log.health.lost.load(Ordering::SeqCst)), (3, 0));
        assert_eq!(log.unopened(), None);
        log.reopen();
        log.flush().await;
        assert_eq!(log.unopened().unwrap(), "/var/security.log: gone");
    }

    #[test]
    fn neither_a_folder_nor_a_missing_one_is_a_log() {
        let folder = tempfile::tempdir().unwrap();
        assert!(SecurityLog::open(Target::File(folder.path().into()), Arc::new(Metrics::default())).is_err());
        assert!(SecurityLog::open(Target::File(folder.path().join("no/such.log")), Arc::new(Metrics::default())).is_err());
    }
}
