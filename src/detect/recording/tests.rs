use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::lines::Sink as _;
use crate::wire::tensor::Datatype;

/// Midnight of 2026-11-26.
const DAY: u64 = 20_783;

const CAPS: Caps = Caps { callers: 3, rows: 4, bytes: 1 << 20, batched: true };

fn tensor(rows: u64, first: f32) -> Tensor {
    let numbers = (0..rows * 2).flat_map(|number| (first + number as f32).to_le_bytes());
    Tensor { name: "x".to_owned(), datatype: Datatype::Fp32, shape: vec![rows, 2], data: Bytes::from_iter(numbers) }
}

fn asked(caller: &str, rows: u32, caps: Caps) -> Asked {
    Asked { caller: caller.into(), day: DAY, rows, inputs: vec![tensor(u64::from(rows), 0.5)], caps, weight: 0 }
}

/// A recording in a folder of its own, and whoever writes it.
struct Case {
    _folder: tempfile::TempDir,
    path: PathBuf,
    scribe: Scribe,
    tally: Arc<Tally>,
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("digits.recording.jsonl");
        let tally = Arc::new(Tally::default());
        let scribe = Scribe::open(&path, "digits", DAY, tally.clone()).unwrap();
        Self { _folder: folder, path, scribe, tally }
    }

    /// As after a restart.
    fn again(&mut self, day: u64) {
        self.tally = Arc::new(Tally::default());
        self.scribe = Scribe::open(&self.path, "digits", day, self.tally.clone()).unwrap();
    }

    /// How many lines came of it.
    fn take(&mut self, asked: Asked) -> u64 {
        self.tally.waiting.fetch_add(asked.weight, Ordering::Relaxed);
        let mut batch = String::new();
        let lines = self.scribe.lines(asked, &mut batch);
        self.scribe.write(batch.as_bytes()).unwrap();
        lines
    }

    fn read(&self) -> Vec<(String, InferRequest)> {
        let lines = Reader::open(&self.path).unwrap().map(|(_, entry)| match entry.unwrap() {
            Entry::Line(line) => (line.caller.clone(), line.request().unwrap()),
            Entry::Torn => ("torn".to_owned(), InferRequest::default()),
        });
        lines.collect()
    }

    fn rows(&self) -> Vec<u64> {
        self.read().iter().map(|(_, request)| request.inputs[0].shape[0]).collect()
    }
}

fn left(tally: &Tally) -> [u64; 5] {
    Why::ALL.map(|why| tally.left(why))
}

#[test]
fn what_is_written_is_read_again_bit_by_bit_what_json_cannot_say_too() {
    let mut case = Case::new();
    let bytes = |datatype, shape: &[u64], data: &[u8]| Tensor {
        name: "y".to_owned(),
        datatype,
        shape: shape.to_vec(),
        data: Bytes::copy_from_slice(data),
    };
    let odd = [0.1_f32, f32::MIN_POSITIVE, -0.0, 16_777_217.0].map(f32::to_le_bytes).concat();
    let batches = [
        vec![tensor(2, 0.1), bytes(Datatype::Int64, &[2, 1], &[[255; 8], 7_u64.to_le_bytes()].concat())],
        vec![bytes(Datatype::Fp32, &[1, 4], &odd)],
        vec![tensor(1, f32::NAN), bytes(Datatype::Fp16, &[1, 2], &[1, 2, 3, 4])],
        vec![tensor(1, 3.0), bytes(Datatype::Bytes, &[1], b"\x03\0\0\0\"\n\xc3")],
    ];
    for (at, inputs) in batches.iter().enumerate() {
        let caps = Caps { callers: 9, ..CAPS };
        assert_eq!(case.take(Asked { inputs: inputs.clone(), ..asked(&format!("caller {at}"), 1, caps) }), 1);
    }
    let read = case.read();
    assert_eq!(read.iter().map(|(_, request)| request.inputs.clone()).collect::<Vec<_>>(), batches);
    assert!(!fs::read_to_string(&case.path).unwrap().contains("caller 0"), "callers stand in it by pseudonyms");
}

#[test]
fn a_caller_has_as_many_rows_as_one_may_and_no_more_and_what_goes_past_it_is_cut() {
    let mut case = Case::new();
    assert_eq!((case.take(asked("a", 3, CAPS)), case.take(asked("a", 1, CAPS)), case.take(asked("a", 1, CAPS))), (1, 1, 0));
    assert_eq!((case.take(asked("b", 3, CAPS)), case.take(asked("b", 2, CAPS)), case.take(asked("b", 1, CAPS))), (1, 1, 0));
    assert_eq!(case.rows(), [3, 1, 3, 1]);
    assert_eq!(case.read()[3].1.inputs[0], tensor(1, 0.5));
    assert_eq!((left(&case.tally), case.tally.rows()), ([0, 2, 0, 0, 0], 8));
}

#[test]
fn a_batch_of_texts_is_cut_between_them() {
    let mut case = Case::new();
    let texts = |shape: &[u64], data: &'static [u8]| Tensor {
        name: "t".to_owned(),
        datatype: Datatype::Bytes,
        shape: shape.to_vec(),
        data: Bytes::from_static(data),
    };
    let whole = texts(&[5], b"\x02\0\0\0ab\0\0\0\0\x01\0\0\0c\x01\0\0\0d\x01\0\0\0e");
    assert_eq!(case.take(Asked { inputs: vec![whole], ..asked("a", 5, CAPS) }), 1);
    assert_eq!(case.read()[0].1.inputs, [texts(&[4], b"\x02\0\0\0ab\0\0\0\0\x01\0\0\0c\x01\0\0\0d")]);
}

#[test]
fn a_batch_that_cannot_be_cut_ends_its_callers_day() {
    let mut case = Case::new();
    let caps = Caps { batched: false, ..CAPS };
    assert_eq!((case.take(asked("a", 4, caps)), case.take(asked("b", 5, caps))), (1, 0));
    assert_eq!((case.take(asked("b", 3, caps)), case.take(asked("b", 2, caps)), case.take(asked("b", 1, caps))), (1, 0, 0));
    assert_eq!(case.rows(), [4, 3]);
    assert_eq!((left(&case.tally), case.tally.callers()), ([0, 3, 0, 0, 0], 2));
}

#[test]
fn there_are_as_many_callers_as_may_be_and_no_more() {
    let mut case = Case::new();
    for caller in ["a", "b", "c", "d", "a"] {
        case.take(asked(caller, 1, CAPS));
    }
    assert_eq!((case.rows().len(), case.tally.callers()), (4, 3), "those that are in it stay");
    assert_eq!(left(&case.tally), [0, 0, 1, 0, 0]);
}

#[test]
fn the_file_has_as_many_bytes_as_it_may_and_no_more() {
    let mut case = Case::new();
    let empty = fs::metadata(&case.path).unwrap().len();
    case.take(asked("a", 1, CAPS));
    let line = fs::metadata(&case.path).unwrap().len() - empty;
    let caps = Caps { bytes: empty + 3 * line, ..CAPS };
    assert_eq!((case.take(asked("a", 1, Caps { bytes: caps.bytes - line - 1, ..CAPS })), left(&case.tally)), (0, [0, 0, 0, 1, 0]));
    // What was left out is not followed by anything.
    assert_eq!((case.take(asked("a", 1, caps)), case.take(asked("b", 1, caps)), case.take(asked("c", 1, caps))), (0, 1, 1));
    assert_eq!(fs::metadata(&case.path).unwrap().len(), caps.bytes);
    assert_eq!((case.take(asked("b", 1, caps)), left(&case.tally)), (0, [0, 1, 0, 2, 0]));
}

#[test]
fn nobody_has_more_than_a_hundredth_of_the_file_but_for_a_first_request() {
    let mut case = Case::new();
    let empty = fs::metadata(&case.path).unwrap().len();
    case.take(asked("c", 1, CAPS));
    let line = fs::metadata(&case.path).unwrap().len() - empty;
    let caps = Caps { bytes: 200 * line, ..CAPS };
    assert_eq!([(); 3].map(|()| case.take(asked("a", 1, caps))), [1, 1, 0], "two lines are its share");
    assert_eq!(left(&case.tally), [0, 0, 0, 1, 0]);
    let less = Caps { bytes: 20 * line, ..CAPS };
    assert_eq!([(); 2].map(|()| case.take(asked("b", 1, less))), [1, 0]);
}

#[test]
fn caps_hold_over_a_restart_and_a_caller_is_who_it_was() {
    let mut case = Case::new();
    case.take(asked("a", 3, CAPS));
    case.again(DAY);
    assert_eq!(case.tally.callers(), 1);
    assert_eq!((case.take(asked("a", 3, CAPS)), case.take(asked("a", 1, CAPS)), case.take(asked("b", 1, CAPS))), (1, 0, 1));
    let callers: Vec<String> = case.read().into_iter().map(|(caller, _)| caller).collect();
    assert!(callers[0] == callers[1] && callers[1] != callers[2], "{callers:?}");
    assert_eq!(case.rows(), [3, 1, 1]);
    assert_eq!(case.tally.callers(), 2);
}

#[test]
fn another_day_is_another_caller_and_nobody_can_tell_any_more_who_it_was() {
    let mut case = Case::new();
    let key = || fs::read_to_string(file::beside(&case.path)).unwrap();
    let first = key();
    let on = |day| Asked { day, ..asked("a", 3, CAPS) };
    case.take(on(DAY));
    case.take(on(DAY + 1));
    assert_ne!(fs::read_to_string(file::beside(&case.path)).unwrap(), first, "the key of the day before is gone");
    // Late by a little, and with the clock set back.
    case.take(Asked { rows: 1, inputs: vec![tensor(1, 0.0)], ..on(DAY) });
    case.again(DAY + 1);
    case.take(on(DAY + 2));
    let callers: Vec<String> = case.read().into_iter().map(|(caller, _)| caller).collect();
    assert!(callers[0].starts_with("2026-11-26.") && callers[1].starts_with("2026-11-27.") && callers[3].starts_with("2026-11-28."));
    assert_eq!((&callers[1], callers[0].len()), (&callers[2], 43));
    assert!(callers[0][11..] != callers[1][11..] && callers[1][11..] != callers[3][11..]);
    assert_eq!(case.tally.callers(), 3);
}

#[test]
fn a_torn_end_is_told_and_the_next_line_stands_alone() {
    let mut case = Case::new();
    case.take(asked("a", 1, CAPS));
    case.take(asked("b", 1, CAPS));
    let whole = fs::read(&case.path).unwrap();
    fs::write(&case.path, &whole[..whole.len() - 9]).unwrap();
    assert_eq!(case.read()[1].0, "torn");
    case.again(DAY);
    assert_eq!(case.tally.callers(), 1);
    case.take(asked("c", 1, CAPS));
    let read = case.read();
    assert_eq!((read.len(), &*read[1].0), (3, "torn"), "and the next start does not make it whole");
    assert_eq!(read[2].1.inputs[0].shape, [1, 2]);
}

#[test]
fn of_a_file_that_people_made_only_the_end_may_be_torn() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made.jsonl");
    let line = r#"{"caller": "day-1", "body": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}}"#;
    let read = |text: String| {
        fs::write(&path, text).unwrap();
        Reader::open(&path).unwrap().map(|(number, entry)| (number, entry.map(|entry| matches!(entry, Entry::Line(_))))).collect::<Vec<_>>()
    };
    assert_eq!(read(format!("{line}\n\n{line}")), [(1, Ok(true)), (3, Ok(true))]);
    assert_eq!(read(format!("{line}\n{}", &line[..40])), [(1, Ok(true)), (2, Ok(false))]);
    let broken = read(format!("{}\n{line}\n", &line[..40]));
    assert!(broken[0].1.is_err() && broken[1] == (2, Ok(true)), "{broken:?}");
    let filled = |length: usize| format!("{}{}\n", " ".repeat(length - line.len()), line);
    assert_eq!(read(filled(MOST_LINE)), [(1, Ok(true))]);
    assert!(read(filled(MOST_LINE + 1) + line)[0].1.is_err());
}

#[test]
fn the_files_are_their_owners_alone_and_others_are_not_recorded_to() {
    let case = Case::new();
    for path in [&case.path, &file::beside(&case.path)] {
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600, "{}", path.display());
    }
    let open = |path: &Path| Scribe::open(path, "digits", DAY, Arc::default()).map(drop);
    for mode in [0o640, 0o604, 0o620] {
        fs::set_permissions(&case.path, Permissions::from_mode(mode)).unwrap();
        assert!(matches!(open(&case.path), Err(Error::OperatorLetOthersIn)), "{mode:o}");
    }
    fs::set_permissions(&case.path, Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(file::beside(&case.path), Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(open(&case.path), Err(Error::Beside(_))), "nor with a key that others know");
    fs::set_permissions(file::beside(&case.path), Permissions::from_mode(0o600)).unwrap();
    let link = case.path.with_extension("link");
    symlink(&case.path, &link).unwrap();
    assert!(matches!(open(&link), Err(Error::OperatorNamedALink)));
    let dangling = case.path.with_extension("dangling");
    symlink(case.path.with_extension("nothing"), &dangling).unwrap();
    assert!(matches!(open(&dangling), Err(Error::OperatorNamedALink)));
    assert!(matches!(open(case.path.parent().unwrap()), Err(Error::OperatorNamedNoFile)));
    assert!(matches!(open(&case.path.join("no/such")), Err(Error::Unopened(_))));
    let another = |text: &str| {
        let path = case.path.with_extension("other");
        let _ = fs::remove_file(&path);
        open(&path).unwrap();
        fs::write(&path, text).unwrap();
        open(&path)
    };
    assert!(another("{\"recording\":1,\"model\":\"digits\"}\n").is_ok());
    assert!(another("{\"recording\":1,\"mod").is_ok(), "a full disk tore its first line");
    assert_eq!(fs::read_to_string(case.path.with_extension("other")).unwrap(), "{\"recording\":1,\"model\":\"digits\"}\n");
    for text in
        ["{\"recording\":1,\"model\":\"other\"}\n", "{\"recording\":2,\"model\":\"digits\"}\n", "127.0.0.1 localhost\n", "127.0.0.1"]
    {
        assert!(matches!(another(text), Err(Error::OperatorNamedAnother)), "{text}");
    }
}

#[test]
fn a_recording_that_was_deleted_begins_anew() {
    let mut case = Case::new();
    case.take(asked("a", 4, CAPS));
    delete(&case.path).unwrap();
    assert!(!file::beside(&case.path).exists());
    assert_eq!((case.take(asked("a", 4, CAPS)), case.tally.callers()), (1, 1));
    assert_eq!(case.rows(), [4]);
    case.again(DAY);
    assert_eq!((case.take(asked("a", 1, CAPS)), case.tally.callers()), (0, 1), "and the key is known to the next start");
    // Emptied, and not deleted.
    fs::write(&case.path, "").unwrap();
    assert_eq!((case.take(asked("b", 2, CAPS)), case.tally.callers(), case.rows()), (1, 1, vec![2]));
    assert!(Reader::open(&case.path).unwrap().is_of_gateway());
    // Where none can begin, requests are counted and nothing else.
    let folder = case.path.parent().unwrap().to_owned();
    fs::remove_dir_all(&folder).unwrap();
    let mut batch = String::new();
    assert_eq!((case.scribe.lines(asked("b", 1, CAPS), &mut batch), batch.as_str(), case.tally.left(Why::Disk)), (0, "", 1));
}

#[test]
fn a_full_disk_is_counted_and_told_once() {
    let mut case = Case::new();
    let full = io_error();
    case.scribe.lost(3, &full);
    case.scribe.lost(2, &full);
    assert_eq!(left(&case.tally), [0, 0, 0, 0, 5]);
    assert!(case.scribe.has_told());
    case.take(asked("a", 1, CAPS));
    assert!(!case.scribe.has_told(), "once it is over, the next time is told again");
}

fn io_error() -> std::io::Error {
    std::io::ErrorKind::StorageFull.into()
}

#[tokio::test]
async fn requests_reach_the_file_texts_too_and_what_is_nothing_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.jsonl");
    let now = UNIX_EPOCH + Duration::from_secs(DAY * 86_400 + 86_399);
    let book = Arc::new(Book::open(&path, "digits", now).unwrap());
    let recording = Recording::new(path.clone(), CAPS, Some(book.clone()));
    let who = Who { caller: "api_key:a".into(), tenant: "".into(), tier: "".into(), method: "api_key" };
    let request = |tensor| InferRequest { inputs: vec![tensor], ..InferRequest::default() };
    recording.take(&who, &request(tensor(2, 1.0)), now);
    let text = Tensor { name: "t".to_owned(), datatype: Datatype::Bytes, shape: vec![1], data: Bytes::from_static(b"\x01\0\0\0a") };
    recording.take(&who, &request(text), now);
    recording.take(&who, &request(tensor(0, 1.0)), now);
    recording.take(&who, &request(tensor(1, 1.0)), now);
    book.flush().await;
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(text.lines().nth(1).unwrap().starts_with("{\"caller\":\"2026-11-26."), "{text}");
    assert_eq!((book.tally().rows(), book.tally().callers(), left(book.tally())), (4, 1, [0; 5]));
    assert_eq!(book.tally().waiting.load(Ordering::Relaxed), 0);
}

#[test]
fn as_many_bytes_wait_as_may_and_no_more_and_nobody_waits_for_them() {
    struct Stuck(std::sync::mpsc::Receiver<()>);
    impl crate::lines::Sink for Stuck {
        type Item = Asked;
        fn lines(&mut self, _asked: Asked, _batch: &mut String) -> u64 {
            let _ = self.0.recv();
            0
        }
        fn write(&mut self, _batch: &[u8]) -> std::io::Result<()> {
            Ok(())
        }
        fn reopen(&mut self) -> bool {
            false
        }
        fn lost(&mut self, _lines: u64, _why: &std::io::Error) {}
    }
    let (release, stuck) = std::sync::mpsc::channel();
    let (lines, tally) = (Lines::start("test", 4, Stuck(stuck)).unwrap(), Arc::new(Tally::default()));
    let recording = Recording::new(PathBuf::new(), CAPS, Some(Arc::new(Book { lines, tally: tally.clone() })));
    let who = Who { caller: "a".into(), tenant: "".into(), tier: "".into(), method: "api_key" };
    let take = |bytes: usize| {
        let data = Bytes::from(vec![0; bytes]);
        let tensor = Tensor { name: "x".to_owned(), datatype: Datatype::Uint8, shape: vec![1, bytes as u64], data };
        recording.take(&who, &InferRequest { inputs: vec![tensor], ..InferRequest::default() }, UNIX_EPOCH);
        tally.left(Why::Queue)
    };
    assert_eq!([take(MOST_WAITING_BYTES - 2 * OVERHEAD - 1), take(2), take(1), take(1)], [0, 1, 1, 2]);
    tally.waiting.store(0, Ordering::Relaxed);
    // One is in the writer's hands, or still waits with the others.
    let lost: Vec<u64> = (0..6).map(|_| take(1)).collect();
    assert!(lost[5] > 2 && lost[1] == 2, "{lost:?}");
    drop(release);
}

#[test]
fn caps_are_within_what_is_any_use_and_only_models_in_this_machine_are_recorded() {
    use crate::wire::tensor::Port;
    let port = |datatype, shape: &[Option<u64>]| Port { name: "x".to_owned(), datatype, shape: shape.to_vec() };
    let contract = |port| Contract { inputs: vec![port], ..Contract::default() };
    let digits = contract(port(Datatype::Fp32, &[None, Some(64)]));
    let resolved = |text: &str, contract: Option<&Contract>| {
        let mut mistakes = Vec::new();
        let config: Config = toml::from_str(&format!("file = \"../r.jsonl\"\n{text}")).unwrap();
        let (_, caps) = config.resolve(Path::new("/nowhere/models"), contract, &mut mistakes);
        (caps, mistakes.len())
    };
    let usual = Caps { callers: CALLERS, rows: ROWS, bytes: BYTES.0 as u64, batched: true };
    assert_eq!(resolved("", Some(&digits)), (usual, 0));
    assert_eq!(
        resolved("callers = 7\nrows = 8\nbytes = \"9KiB\"", Some(&digits)),
        (Caps { callers: 7, rows: 8, bytes: 9_216, batched: true }, 0)
    );
    assert_eq!(resolved("", Some(&contract(port(Datatype::Fp32, &[Some(1), Some(64)])))), (Caps { batched: false, ..usual }, 0));
    assert_eq!((resolved("", None).1, resolved("", Some(&contract(port(Datatype::Bytes, &[None])))).1), (1, 0));
    for (at_a_limit, past_it) in [
        ("callers = 1", "callers = 0"),
        ("callers = 1000000", "callers = 1000001"),
        ("rows = 1", "rows = 0"),
        ("rows = 65536", "rows = 65537"),
        ("bytes = \"1KiB\"", "bytes = \"1023B\""),
        ("bytes = \"64GiB\"", "bytes = \"65GiB\""),
    ] {
        assert_eq!((resolved(at_a_limit, Some(&digits)).1, resolved(past_it, Some(&digits)).1), (0, 1), "{past_it}");
    }
}
