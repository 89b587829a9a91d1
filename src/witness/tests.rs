use std::time::Duration;

use super::*;
use crate::outbound::{Alpn, Answered, ClientTls, Kept, Limits};
use crate::prove::witness::{Consistency, Failure, Seen};
use crate::prove::{self, Witnesses};
use crate::tlog::note::Note;
use crate::tlog::signature::{Ed25519Key, MlDsa44Key};
use crate::tlog::trial::Log;

const ORIGIN: &str = "log.example/a";

struct House {
    folder: tempfile::TempDir,
    witness: Witness,
    url: String,
    kept: Kept,
    serving: tokio::task::JoinHandle<Drained>,
}

fn cosigner() -> Cosigner {
    Cosigner::new("w.example", Ed25519Key::from_seed(&[8; 32]).unwrap(), MlDsa44Key::from_seed(&[9; 32]).unwrap()).unwrap()
}

fn config() -> Config {
    let logs: String = [(ORIGIN, 1), ("log.example/b", 2)]
        .iter()
        .map(|(origin, seed)| {
            let [ed25519, ml_dsa] = Log::new(origin, *seed).vkeys();
            format!("[[log]]\norigin = \"{origin}\"\nkeys = [\"{ed25519}\", \"{ml_dsa}\"]\n")
        })
        .collect();
    Config::parse(&format!("listen = \"127.0.0.1:0\"\ntls = \"off\"\nname = \"w.example\"\nkey = \"k\"\ndirectory = \"state\"\n{logs}"))
        .unwrap()
}

impl House {
    async fn new() -> Self {
        Self::in_folder(tempfile::tempdir().unwrap()).await
    }

    async fn in_folder(folder: tempfile::TempDir) -> Self {
        let witness = Witness::open(&config(), folder.path(), cosigner()).unwrap();
        let bound = config().accept(folder.path()).unwrap().bind().unwrap();
        let url = format!("http://{}", bound.address());
        let there = witness.clone();
        let serving = tokio::spawn(async move { there.serve(bound, std::future::pending()).await });
        let limits = Limits { max_body: 1 << 20, within: Duration::from_secs(20), allow_private: true, allow_http: false };
        let kept = Kept::new(&url, ClientTls::build(None, Alpn::Http1).unwrap(), limits).unwrap();
        Self { folder, witness, url, kept, serving }
    }

    /// Ends it and starts another on the same folder.
    async fn again(self) -> Self {
        self.serving.abort();
        let _ = self.serving.await;
        drop(self.witness);
        Self::in_folder(self.folder).await
    }

    async fn post(&self, body: impl ToString) -> Answered {
        self.kept.ask(Method::POST, "/add-checkpoint", None, Bytes::from(body.to_string())).await.unwrap()
    }

    async fn status(&self, body: impl ToString) -> u16 {
        self.post(body).await.status.as_u16()
    }

    async fn latest(&self) -> Option<Note> {
        let answer =
            self.kept.ask(Method::GET, &format!("/{}/checkpoint", Checkpoint::origin_hash(ORIGIN)), None, Bytes::new()).await.unwrap();
        (answer.status == StatusCode::OK).then(|| Note::parse(&answer.body).unwrap())
    }

    fn file(&self, ending: &str) -> PathBuf {
        self.folder.path().join(format!("state/{}.{ending}", Checkpoint::origin_hash(ORIGIN)))
    }
}

fn cosigned(log: &Log, size: usize, answer: &Answered) -> bool {
    let note = log.note(size).and(crate::tlog::note::lines(&answer.body).unwrap()).unwrap();
    note.open(&cosigner().vkeys()).is_ok_and(|opened| opened.verified.len() == 2 && opened.verified.iter().all(|line| line.time > Some(0)))
}

#[tokio::test]
async fn checkpoints_that_go_on_are_cosigned_and_shown_to_monitors() {
    let (house, log) = (House::new().await, Log::new(ORIGIN, 1));
    assert!(house.latest().await.is_none());
    for (old, new) in [(0, 0), (0, 1), (1, 5), (5, 5), (5, 6), (6, 64)] {
        let answer = house.post(log.request(old, new)).await;
        assert_eq!(answer.status, StatusCode::OK, "{old} {new}");
        assert!(cosigned(&log, new, &answer), "{old} {new}");
        let shown = house.latest().await.unwrap();
        assert_eq!(shown.text(), log.checkpoint(new).to_string());
        let keys = [log.vkeys(), cosigner().vkeys()].concat();
        let opened = shown.open(&keys).unwrap();
        assert!((0..4).all(|key| opened.signed_by(key)) && opened.unknown.is_empty());
    }
}

#[tokio::test]
async fn each_refusal_has_the_status_of_the_specification() {
    let (house, log) = (House::new().await, Log::new(ORIGIN, 1));
    assert_eq!(house.status(log.request(0, 7)).await, 200);
    let (stranger, other) = (Log::new("log.example/unknown", 1), Log::new(ORIGIN, 3));
    let forged = log.note(9).to_string().replace(&log.checkpoint(9).to_string(), &log.checkpoint(8).to_string());
    let with_proof = |old: usize, proof: Vec<[u8; 32]>, note| AddCheckpoint::new(old as u64, proof, note).unwrap().to_string();
    let mut wrong = log.proof(7, 9);
    wrong[0][0] ^= 1;
    let empty = Checkpoint { root: [0; 32], ..log.checkpoint(0) };
    for (status, body) in [
        (400, String::new()),
        (400, "old 7\n".into()),
        (400, log.request(7, 9).to_string().replacen("old 7", "old 07", 1)),
        (400, format!("{}\n", log.request(7, 9))),
        (404, stranger.request(0, 9).to_string()),
        (403, other.request(7, 9).to_string()),
        (403, format!("old 7\n\n{forged}")),
        (403, stranger.request(0, 9).to_string().replace("log.example/unknown", ORIGIN)),
        // 400 comes before 409, and only after the signature.
        (400, with_proof(10, vec![], log.note(9))),
        (403, with_proof(10, vec![], other.note(9))),
        (409, log.request(0, 9).to_string()),
        (409, log.request(6, 9).to_string()),
        (409, log.request(8, 9).to_string()),
        (409, log.request(6, 6).to_string()),
        (422, with_proof(7, wrong, log.note(9))),
        (422, with_proof(7, vec![], log.note(9))),
        (422, with_proof(7, log.proof(7, 10), log.note(9))),
        (422, with_proof(7, vec![[0; 32]], log.note(7))),
        (422, with_proof(7, vec![], Log::forked(ORIGIN, 1, 6).note(7))),
        (422, Log::forked(ORIGIN, 1, 6).request(7, 9).to_string()),
    ] {
        let answer = house.post(&body).await;
        assert_eq!(answer.status.as_u16(), status, "{}\n{body}", String::from_utf8_lossy(&answer.body));
        if status == 409 {
            assert_eq!((&answer.body[..], answer.headers[header::CONTENT_TYPE].as_bytes()), (&b"7\n"[..], SIZE_TYPE.as_bytes()));
        }
    }
    assert_eq!(house.latest().await.unwrap().text(), log.checkpoint(7).to_string());
    // A witness that knows nothing of a log: its size is 0, and the empty tree has one root alone.
    let second = Log::new("log.example/b", 2);
    let empty = Checkpoint { origin: "log.example/b".into(), ..empty };
    assert_eq!(house.status(with_proof(0, vec![], second.sign(&empty))).await, 422);
    assert_eq!(house.status(with_proof(0, vec![[0; 32]], second.note(3))).await, 422);
    let answer = house.post(second.request(2, 3)).await;
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (409, &b"0\n"[..]));
    assert_eq!(house.status(second.request(0, 3)).await, 200);
}

#[tokio::test]
async fn other_methods_and_paths_are_refused() {
    let house = House::new().await;
    assert_eq!(house.status(Log::new(ORIGIN, 1).request(0, 3)).await, 200);
    let hash = Checkpoint::origin_hash(ORIGIN);
    for (method, path, status) in [
        (Method::GET, "/add-checkpoint".to_owned(), 405),
        (Method::POST, format!("/{hash}/checkpoint"), 405),
        (Method::GET, format!("/{}/checkpoint", hash.to_uppercase()), 404),
        (Method::GET, format!("/{hash}"), 404),
        (Method::GET, format!("/{}/checkpoint", Checkpoint::origin_hash("log.example/b")), 404),
        (Method::GET, "/x".into(), 404),
    ] {
        let answer = house.kept.ask(method, &path, None, Bytes::new()).await.unwrap();
        assert_eq!(answer.status.as_u16(), status, "{path}");
    }
    let keys = house.kept.ask(Method::GET, "/", None, Bytes::new()).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&keys.body), cosigner().vkeys().map(|key| format!("{key}\n")).concat());
}

#[tokio::test]
async fn a_request_may_be_as_long_as_its_limit_and_no_longer() {
    let (house, log) = (House::new().await, Log::new(ORIGIN, 1));
    let of = |padding: usize| {
        let long = Checkpoint { extensions: vec!["x".repeat(padding)], ..log.checkpoint(3) };
        AddCheckpoint::new(0, vec![], log.sign(&long)).unwrap().to_string()
    };
    let padding = MAX_REQUEST - of(1).len() + 1;
    assert_eq!(of(padding).len(), MAX_REQUEST);
    assert_eq!(house.status(of(padding + 1)).await, 400);
    assert!(house.latest().await.is_none());
    assert_eq!(house.status(of(padding)).await, 200);
}

#[tokio::test]
async fn what_was_cosigned_is_remembered_over_a_restart() {
    let (house, log) = (House::new().await, Log::new(ORIGIN, 1));
    assert_eq!(house.status(log.request(0, 7)).await, 200);
    let shown = house.latest().await.unwrap();
    // What a kill in the middle of writing leaves.
    std::fs::write(house.file("new"), "half").unwrap();
    let house = house.again().await;
    assert_eq!(house.latest().await.unwrap(), shown);
    assert_eq!(house.status(log.request(0, 7)).await, 409);
    assert_eq!(house.status(Log::forked(ORIGIN, 1, 3).request(7, 9)).await, 422);
    assert_eq!(house.status(log.request(7, 9)).await, 200);
    assert_eq!(std::fs::read_to_string(house.file("checkpoint")).unwrap(), house.latest().await.unwrap().to_string());
}

#[tokio::test]
async fn a_damaged_book_stops_the_start() {
    let house = House::new().await;
    assert_eq!(house.status(Log::new(ORIGIN, 1).request(0, 7)).await, 200);
    let whole = std::fs::read(house.file("checkpoint")).unwrap();
    let (file, folder) = (house.file("checkpoint"), house.folder);
    house.serving.abort();
    let _ = house.serving.await;
    drop((house.witness, house.kept));
    let opens = || Witness::open(&config(), folder.path(), cosigner()).is_ok();
    for at in (0..whole.len()).step_by(whole.len() / 40) {
        let mut bad = whole.clone();
        bad[at] ^= 4;
        std::fs::write(&file, &bad).unwrap();
        // A byte of a signature line's name or ID makes it a stranger's line, which changes nothing of what is remembered.
        let head = bad[..whole.windows(2).position(|pair| pair == b"\n\n").unwrap()]
            == whole[..whole.windows(2).position(|pair| pair == b"\n\n").unwrap()];
        assert!(head || !opens(), "byte {at}");
    }
    for bad in [&whole[..whole.len() - 1], b"", &[&whole[..], b"\n"].concat()] {
        std::fs::write(&file, bad).unwrap();
        assert!(!opens());
    }
    std::fs::write(&file, Log::new("log.example/b", 2).note(7).to_string()).unwrap();
    assert!(!opens());
    std::fs::write(&file, &whole).unwrap();
    assert!(opens());
}

#[tokio::test]
async fn one_folder_has_one_witness() {
    let house = House::new().await;
    assert!(Witness::open(&config(), house.folder.path(), cosigner()).is_err());
}

#[tokio::test]
async fn two_trees_of_one_size_are_kept_as_evidence() {
    let (house, log, fork) = (House::new().await, Log::new(ORIGIN, 1), Log::forked(ORIGIN, 1, 2));
    assert_eq!(house.status(log.request(0, 7)).await, 200);
    assert_eq!(house.status(fork.request(0, 7)).await, 409);
    let kept = Note::parse(&std::fs::read(house.file("fork")).unwrap()).unwrap();
    assert_eq!(kept.text(), fork.checkpoint(7).to_string());
    assert!(kept.open(&log.vkeys()).is_ok_and(|opened| opened.verified.len() == 2));
    assert_eq!(house.latest().await.unwrap().text(), log.checkpoint(7).to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_trees_of_one_size_one_alone_is_cosigned() {
    let house = Arc::new(House::new().await);
    let (log, fork) = (Log::new(ORIGIN, 1), Log::forked(ORIGIN, 1, 0));
    let requests = [log.request(0, 20).to_string(), fork.request(0, 20).to_string()];
    let mut asked = tokio::task::JoinSet::new();
    for at in 0..24 {
        let (house, body) = (house.clone(), requests[at % 2].clone());
        asked.spawn(async move {
            // A connection each, so that they really meet.
            let limits = Limits { max_body: 1 << 20, within: Duration::from_secs(20), allow_private: true, allow_http: false };
            let kept = Kept::new(&house.url, ClientTls::build(None, Alpn::Http1).unwrap(), limits).unwrap();
            (at % 2, kept.ask(Method::POST, "/add-checkpoint", None, Bytes::from(body)).await.unwrap())
        });
    }
    let answers = asked.join_all().await;
    let winners: Vec<_> = answers.iter().filter(|(_, answer)| answer.status == StatusCode::OK).collect();
    assert_eq!(winners.len(), 1, "the others named an old size that was gone");
    let (which, answer) = winners[0];
    assert!(cosigned([&log, &fork][*which], 20, answer));
    assert!(answers.iter().all(|(_, answer)| matches!(answer.status.as_u16(), 200 | 409)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_never_go_back_under_concurrency() {
    let house = Arc::new(House::new().await);
    let log = Arc::new(Log::new(ORIGIN, 1));
    let mut asked = tokio::task::JoinSet::new();
    for lane in 0..4 {
        let (house, log) = (house.clone(), log.clone());
        asked.spawn(async move {
            let limits = Limits { max_body: 1 << 20, within: Duration::from_secs(20), allow_private: true, allow_http: false };
            let kept = Kept::new(&house.url, ClientTls::build(None, Alpn::Http1).unwrap(), limits).unwrap();
            let (mut old, mut cosigned) = (0, Vec::new());
            for size in (lane + 1..=60).step_by(4) {
                while old <= size {
                    let body = Bytes::from(log.request(old, size).to_string());
                    let answer = kept.ask(Method::POST, "/add-checkpoint", None, body).await.unwrap();
                    match answer.status.as_u16() {
                        200 => {
                            cosigned.push(size);
                            old = size;
                            break;
                        }
                        409 => old = crate::tlog::add_checkpoint::size_in_conflict(&answer.body).unwrap() as usize,
                        other => panic!("{other}"),
                    }
                }
            }
            cosigned
        });
    }
    let lanes = asked.join_all().await;
    assert!(lanes.iter().all(|sizes| sizes.is_sorted()));
    let last = Checkpoint::parse(house.latest().await.unwrap().text()).unwrap().size as usize;
    assert_eq!(lanes.iter().flatten().max(), Some(&last));
}

#[tokio::test]
async fn a_failure_before_the_rename_changes_nothing_and_one_after_it_ends_the_witness() {
    let (house, log) = (House::new().await, Log::new(ORIGIN, 1));
    assert_eq!(house.status(log.request(0, 3)).await, 200);
    // The file beside cannot be made anew: a folder is in its place.
    std::fs::create_dir(house.file("new")).unwrap();
    assert_eq!(house.status(log.request(3, 5)).await, 500);
    std::fs::remove_dir(house.file("new")).unwrap();
    assert_eq!(house.latest().await.unwrap().text(), log.checkpoint(3).to_string());
    assert_eq!(house.status(log.request(3, 5)).await, 200);
    assert!(house.witness.failure().is_none());
    // Renaming fails: the book's place is taken.
    std::fs::remove_file(house.file("checkpoint")).unwrap();
    std::fs::create_dir_all(house.file("checkpoint").join("x")).unwrap();
    assert_eq!(house.status(log.request(5, 6)).await, 500);
    assert!(house.witness.failure().is_some());
    tokio::time::timeout(Duration::from_secs(1), house.witness.failed.notified()).await.unwrap();
    // Not even for another log.
    assert_eq!(house.status(Log::new("log.example/b", 2).request(0, 3)).await, 500);
}

#[test]
fn a_time_never_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let (log, cosigner) = (Log::new(ORIGIN, 1), cosigner());
    let mut book = Book::open(folder.path(), ORIGIN, log.vkeys().into(), &cosigner).unwrap();
    let times = |lines: &str| {
        let note = Note::new(&log.checkpoint(5).to_string(), crate::tlog::note::lines(lines.as_bytes()).unwrap()).unwrap();
        note.open(&cosigner.vkeys()).unwrap().verified.iter().map(|line| line.time.unwrap()).collect::<Vec<_>>()
    };
    let first = book.add(&log.request(0, 5), &cosigner, 1000).unwrap();
    assert_eq!(times(&first), [1000, 1000]);
    let mut book = Book::open(folder.path(), ORIGIN, log.vkeys().into(), &cosigner).unwrap();
    // The same within its second is the same, byte for byte, though ML-DSA signs anew each time.
    assert_eq!(book.add(&log.request(5, 5), &cosigner, 900).unwrap(), first);
    assert_eq!(times(&book.add(&log.request(5, 5), &cosigner, 1001).unwrap()), [1001, 1001]);
}

#[tokio::test]
async fn the_gateways_own_client_is_cosigned_and_learns_what_the_witness_knows() {
    let (house, log) = (House::new().await, Arc::new(Log::new(ORIGIN, 1)));
    let keys = cosigner().vkeys().map(|key| format!("\"{key}\"")).join(", ");
    let text = format!("directory = \"d\"\norigin = \"{ORIGIN}\"\nkey = \"k\"\n[[witness]]\nurl = \"{}\"\nkey = [{keys}]\n", house.url);
    let config: prove::Config = toml::from_str(&text).unwrap();
    let witnesses = || Witnesses::resolve(&config, Path::new(".")).unwrap().unwrap();
    let proofs = |log: &Arc<Log>, new: usize| -> Consistency {
        let log = log.clone();
        Arc::new(move |old| Ok(log.proof(old as usize, new)))
    };
    let mine = witnesses();
    assert!(mine.latest().await[0].seen.as_ref().unwrap().is_none());
    for size in [3, 7, 7, 20] {
        let round = mine.cosign(&log.note(size), &proofs(&log, size)).await;
        assert!(round.quorum && round.lines.len() == 2, "{:?}", round.failures);
        let whole = log.note(size).and(round.lines).unwrap();
        assert_eq!(whole.open(&cosigner().vkeys()).unwrap().verified.len(), 2);
    }
    // One that was just started asks in the dark, is told 409, and goes on from there.
    let fresh = witnesses();
    assert!(fresh.cosign(&log.note(21), &proofs(&log, 21)).await.quorum);
    // A log that was set back is refused, and learns that it is behind.
    let round = witnesses().cosign(&log.note(9), &proofs(&log, 9)).await;
    assert!(!round.quorum && matches!(round.failures[0].1, Failure::LogIsBehind(21)), "{:?}", round.failures);
    let seen = witnesses().latest().await.remove(0).seen.unwrap();
    assert_eq!(seen, Some(Seen { size: 21, root: log.checkpoint(21).root }));
    // And so is one that has gone another way.
    let fork = Arc::new(Log::forked(ORIGIN, 1, 4));
    let round = witnesses().cosign(&fork.note(30), &proofs(&fork, 30)).await;
    assert!(matches!(round.failures[0].1, Failure::Refused(StatusCode::UNPROCESSABLE_ENTITY)), "{:?}", round.failures);
}
