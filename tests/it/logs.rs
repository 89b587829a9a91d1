//! Logs for the verifiers in `tests/clients/test_log.py`: of exact sizes, by the ledger itself, without a gateway in front of it.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use portcullis::clock::Moment;
use portcullis::digest::Digest;
use portcullis::event;
use portcullis::prove::{Build, Change, Changed, Config, Ledger};
use portcullis::trail::{Content, Stop, Trace, Trail, Verdict, Who};

use crate::support::PATIENCE;

/// Where the logs are to lie: a folder that holds their key, `log.key`.
const FOLDER: &str = "PORTCULLIS_GROW_LOGS";
/// Their sizes, ascending and parted by commas; what comes first is 1 or at least 3.
const SIZES: &str = "PORTCULLIS_GROW_SIZES";
/// The origin of them all.
const ORIGIN: &str = "gate.test/portcullis/node1";
/// How many entries are laid ready before it is waited for their checkpoint: far less than the ledger keeps.
const BATCH: u64 = 4_096;
/// Every so many entries one is of a refused request, the others of changes.
const REFUSED_EVERY: u64 = 16;

/// One log grows through all sizes, and is copied at each while it is open, as a reader may see it: into `at/<size>`. The last size it
/// has when it is closed. A log of one entry is what a process leaves that died after its first. `fork` continues the copy of the
/// first size from 3 on with other entries, under the same keys, to the second.
#[tokio::test]
#[ignore = "tests/clients/test_log.py calls it with a folder and sizes"]
async fn grow() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let sizes: Vec<u64> = std::env::var(SIZES).unwrap().split(',').map(|size| size.parse().unwrap()).collect();
    assert!(sizes.is_sorted());
    let at = |size: u64| folder.join("at").join(size.to_string());
    let ledger = open(&folder, "log");
    let mut size = covers(&ledger, 2).await;
    if sizes[0] == 1 {
        only_the_first_entry(&folder, &at(1)).await;
    }
    let (last, before) = sizes.split_last().unwrap();
    for wanted in before.iter().filter(|wanted| **wanted > 1) {
        size = grow_to(&ledger, size, *wanted).await;
        copy(&folder.join("log"), &at(*wanted));
    }
    grow_to(&ledger, size, last - 1).await;
    ledger.close();
    assert_eq!(ledger.counters().checkpoints.size, *last);
    copy(&folder.join("log"), &at(*last));

    let mut shared = sizes.iter().filter(|size| **size > 2);
    let (from, to) = (*shared.next().unwrap(), *shared.next().unwrap());
    copy(&at(from), &folder.join("fork"));
    let fork = open(&folder, "fork");
    let size = covers(&fork, from + 1).await;
    grow_to(&fork, size, to).await;
    copy(&folder.join("fork"), &folder.join("at/fork"));
}

fn open(folder: &Path, name: &str) -> Ledger {
    let config: Config = toml::from_str(&format!("directory = \"{name}\"\norigin = \"{ORIGIN}\"\nkey = \"log.key\"")).unwrap();
    let (events, _reader) = event::channel(1);
    Ledger::open(&config, folder, Build::default(), events, Box::new(|error| panic!("{error}"))).unwrap().0
}

/// Waits until a checkpoint covers `size` entries; says how many it covers.
async fn covers(ledger: &Ledger, size: u64) -> u64 {
    let asked = Instant::now();
    loop {
        let covered = ledger.counters().checkpoints.size;
        if covered >= size {
            return covered;
        }
        assert!(asked.elapsed() < PATIENCE, "{covered} of {size}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Grows a log until its checkpoint covers `wanted` entries and there are no more.
async fn grow_to(ledger: &Ledger, mut size: u64, wanted: u64) -> u64 {
    while size < wanted {
        // The last alone: meanwhile the ledger may have written an entry of its own, as it does each minute.
        let more = BATCH.min(wanted - size - 1).max(1);
        for number in size..size + more {
            append(ledger, number).await;
        }
        size = covers(ledger, size + more).await;
    }
    assert_eq!(size, wanted, "the ledger wrote an entry of its own in the last tenth of a second");
    size
}

pub(crate) async fn append(ledger: &Ledger, number: u64) {
    if !number.is_multiple_of(REFUSED_EVERY) {
        let policy = Some(Digest::of(&number.to_be_bytes()));
        return ledger.tell(&Change { changed: Changed::Accepted, which: None, reason: None, policy });
    }
    let arrived = Moment::now();
    let trace = Trace { trace_id: [7; 16], span_id: [7; 8], sampled: false };
    let mut trail = Trail::new(arrived, IpAddr::from([127, 0, 0, 1]), Method::POST, "2", Digest::of(b"policy"), trace);
    trail.route = "/v1/chat/completions".into();
    trail.who = Some(Who { caller: "api_key:app".into(), tenant: "acme".into(), tier: "".into(), method: "api_key" }.into());
    trail.request = Content { media_type: Some("application/json".into()), length: number, digest: Some(Digest::of(b"request")) };
    for stop in Stop::ALL.into_iter().take(6) {
        trail.step(stop, Verdict::Passed, None, arrived.mono, arrived.mono);
    }
    let body = Bytes::from_static(b"{\"status\":502}");
    ledger.accept().over();
    let receipt = ledger.refuse(trail, "infer.unavailable", StatusCode::BAD_GATEWAY, HeaderMap::new(), body).await;
    assert!(receipt.id().is_some());
}

/// The log as it is opened again by a process whose predecessor died after the first entry.
async fn only_the_first_entry(folder: &Path, to: &Path) {
    const HEADER: usize = 32;
    const FRAME: usize = 16;
    let died = folder.join("died");
    std::fs::create_dir(&died).unwrap();
    let bytes = std::fs::read(folder.join("log/wal-00000000")).unwrap();
    let length = u32::from_le_bytes(bytes[HEADER..HEADER + 4].try_into().unwrap()) as usize;
    std::fs::write(died.join("wal-00000000"), &bytes[..HEADER + FRAME + length]).unwrap();
    // What was there is put under a checkpoint before anything else is written; the next one is made a tenth of a second later.
    let ledger = open(folder, "died");
    copy(&died, to);
    assert!(std::fs::read_to_string(to.join("checkpoint")).unwrap().starts_with(&format!("{ORIGIN}\n1\n")));
    // Neither did that process come further.
    std::fs::write(to.join("wal-00000000"), &bytes[..HEADER + FRAME + length]).unwrap();
    ledger.close();
}

/// Copies a log. Its tiles are replaced and never written, so the copy has them in common with it. A segment of the write-ahead file may
/// be removed meanwhile: its entries are in full tiles by then.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let (path, copied) = (file.path(), to.join(file.file_name()));
        if file.path().is_dir() {
            copy(&path, &copied);
        } else if from.ancestors().any(|folder| folder.ends_with("tile")) {
            std::fs::hard_link(&path, &copied).unwrap();
        } else if let Err(error) = std::fs::copy(&path, &copied) {
            assert!(error.kind() == ErrorKind::NotFound && file.file_name().to_string_lossy().starts_with("wal-"), "{error}: {path:?}");
        }
    }
}
