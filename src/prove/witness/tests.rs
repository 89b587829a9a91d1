use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::outbound::{Alpn, ClientTls};
use crate::tlog::cosignature::Cosigner;
use crate::tlog::note::MAX_SIGNATURES;
use crate::tlog::signature::{Ed25519Key, MlDsa44Key};
use crate::tlog::trial::Log;

const ORIGIN: &str = "log.example/a";

fn cosigner(seed: u8) -> Cosigner {
    let name = format!("w{seed}.example");
    Cosigner::new(&name, Ed25519Key::from_seed(&[seed; 32]).unwrap(), MlDsa44Key::from_seed(&[seed; 32]).unwrap()).unwrap()
}

fn lines(seed: u8, size: usize, time: u64) -> String {
    let lines = cosigner(seed).cosign(&Log::new(ORIGIN, 1).checkpoint(size), time).unwrap();
    lines.iter().map(ToString::to_string).collect()
}

/// What a witness answers to its first request, its second, …; the last again and again. `None` never ends.
type Script = Vec<Option<(u16, String)>>;

/// A witness that reads requests whole and answers by its script.
async fn scripted(script: Script) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(answer(stream, script.clone(), count.clone()));
        }
    });
    (url, asked)
}

async fn answer(mut stream: TcpStream, script: Script, count: Arc<AtomicUsize>) {
    let mut heard = Vec::new();
    loop {
        let whole = std::str::from_utf8(&heard).ok().and_then(|text| text.split_once("\r\n\r\n")).is_some_and(|(head, body)| {
            let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
            body.len() >= length.map_or(0, |length| length.parse().unwrap())
        });
        if !whole {
            if stream.read_buf(&mut heard).await.unwrap_or(0) == 0 {
                return;
            }
            continue;
        }
        heard.clear();
        let step = script[count.fetch_add(1, Ordering::SeqCst).min(script.len() - 1)].clone();
        let Some((status, body)) = step else { return std::future::pending().await };
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
        let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
    }
}

fn peer(seed: u8, url: &str) -> Peer {
    let kept = || Kept::new(url, ClientTls::build(None, Alpn::Http1).unwrap(), LIMITS).unwrap();
    Peer::new(cosigner(seed).vkeys().into(), kept(), kept())
}

fn witnesses(quorum: usize, urls: &[&str]) -> Witnesses {
    let peers = urls.iter().enumerate().map(|(at, url)| (at, peer(at as u8 + 1, url))).collect();
    Witnesses::new(ORIGIN, peers, Quorum::any(quorum, urls.len()))
}

fn proofs(size: usize) -> Consistency {
    let log = Log::new(ORIGIN, 1);
    Arc::new(move |old| Ok(log.proof(old as usize, size)))
}

/// One round of a fresh log with one witness.
async fn round(script: Script, size: usize) -> Result<Vec<Line>, Failure> {
    let (url, _) = scripted(script).await;
    let Cosigned { lines, failures, .. } = witnesses(1, &[&url]).cosign(&Log::new(ORIGIN, 1).note(size), &proofs(size)).await;
    failures.into_iter().next().map_or(Ok(lines), |(_, failure)| Err(failure))
}

fn says(status: u16, body: impl Into<String>) -> Script {
    vec![Some((status, body.into()))]
}

#[tokio::test]
async fn lines_of_its_keys_are_taken_and_no_others() {
    let both = round(says(200, lines(1, 9, 5)), 9).await.unwrap();
    assert_eq!(both.len(), 2);
    // A stranger's cosignature, right as it may be, is left out.
    let mixed = round(says(200, lines(2, 9, 5) + &lines(1, 9, 5)), 9).await.unwrap();
    assert!(mixed.len() == 2 && mixed.iter().all(|line| line.name == "w1.example"));
    let log = round(says(200, Log::new(ORIGIN, 1).note(9).lines()[0].to_string() + &lines(1, 9, 5)), 9).await.unwrap();
    assert_eq!(log.len(), 2, "nor is the log's own line taken twice");
}

#[tokio::test]
async fn nothing_is_believed_that_its_key_has_not_signed() {
    use Failure::*;
    let failure = |script, size| async move { round(script, size).await.unwrap_err() };
    assert!(matches!(failure(says(200, lines(2, 9, 5)), 9).await, WitnessSignedOther(NotOpened::NoKnownSignature)));
    assert!(matches!(failure(says(200, lines(1, 8, 5)), 9).await, WitnessSignedOther(NotOpened::WrongSignature(0))));
    let mixed = lines(1, 9, 5).lines().next().unwrap().to_owned() + "\n" + lines(1, 8, 5).lines().nth(1).unwrap() + "\n";
    assert!(matches!(failure(says(200, mixed), 9).await, WitnessSignedOther(NotOpened::WrongSignature(1))));
    assert!(matches!(failure(says(200, lines(1, 9, 0)), 9).await, WitnessSentNoTime));
    assert!(matches!(failure(says(200, ""), 9).await, WitnessSentNoLines(Malformed::NoSignature)));
    assert!(matches!(failure(says(200, "<html>\n"), 9).await, WitnessSentNoLines(Malformed::SignatureLine)));
    assert!(matches!(failure(says(200, lines(1, 9, 5).trim_end()), 9).await, WitnessSentNoLines(Malformed::TornLine)));
    assert!(matches!(failure(says(200, lines(1, 9, 5) + "\n"), 9).await, WitnessSentNoLines(Malformed::SignatureLine)));
    // At the limits, and past them.
    let many = |count: usize| lines(1, 9, 5).lines().next().map(|line| format!("{line}\n").repeat(count)).unwrap();
    assert_eq!(round(says(200, many(MAX_SIGNATURES)), 9).await.unwrap().len(), MAX_SIGNATURES);
    assert!(matches!(failure(says(200, many(MAX_SIGNATURES + 1)), 9).await, WitnessSentNoLines(Malformed::TooManySignatures)));
    assert!(matches!(failure(says(200, "x".repeat(MAX_ANSWER)), 9).await, WitnessSentNoLines(_)));
    assert!(matches!(failure(says(200, "x".repeat(MAX_ANSWER + 1)), 9).await, Unreached(FetchError::SourceSentTooMuch)));
}

#[tokio::test]
async fn refusals_are_told_apart() {
    for status in [301, 400, 403, 404, 422, 500] {
        assert!(matches!(round(says(status, "x"), 9).await, Err(Failure::Refused(told)) if told.as_u16() == status), "{status}");
    }
    for body in ["", "x\n", "09\n", "9"] {
        assert!(matches!(round(says(409, body), 9).await, Err(Failure::WitnessSentNoSize)), "{body:?}");
    }
    assert!(matches!(round(says(409, "10\n"), 9).await, Err(Failure::LogIsBehind(10))));
    assert!(matches!(round(says(409, "0\n"), 9).await, Err(Failure::MovedMeanwhile(0))), "it was sent that very size");
}

#[tokio::test]
async fn a_size_in_a_409_is_tried_once() {
    let told = |size: u64| Some((409, format!("{size}\n")));
    assert_eq!(round(vec![told(5), Some((200, lines(1, 9, 5)))], 9).await.unwrap().len(), 2);
    assert_eq!(round(vec![told(9), Some((200, lines(1, 9, 5)))], 9).await.unwrap().len(), 2, "known already: no proof is needed");
    assert!(matches!(round(vec![told(5), told(6), Some((200, lines(1, 9, 5)))], 9).await, Err(Failure::MovedMeanwhile(6))));
    let (url, _) = scripted(vec![told(5)]).await;
    let none: Consistency = Arc::new(|_| Err(io::Error::other("no tile")));
    let failures = witnesses(1, &[&url]).cosign(&Log::new(ORIGIN, 1).note(9), &none).await.failures;
    assert!(matches!(failures[0].1, Failure::LogHasNoProof(_)));
}

#[tokio::test]
async fn a_size_that_was_said_without_a_signature_is_not_held_to_for_ever() {
    let (url, asked) = scripted(vec![Some((409, "1000000\n".into())), Some((200, lines(1, 9, 5)))]).await;
    let witnesses = witnesses(1, &[&url]);
    let note = Log::new(ORIGIN, 1).note(9);
    assert!(matches!(witnesses.cosign(&note, &proofs(9)).await.failures[0].1, Failure::LogIsBehind(1_000_000)));
    witnesses.peers[0].1.state.lock().await.not_before = None;
    assert!(witnesses.cosign(&note, &proofs(9)).await.quorum);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn one_that_hangs_delays_no_quorum_and_is_asked_once_at_a_time() {
    let (hangs, asked) = scripted(vec![None]).await;
    let (good, _) = scripted(vec![Some((200, lines(2, 9, 5)))]).await;
    let witnesses = witnesses(1, &[&hangs, &good]);
    let log = Log::new(ORIGIN, 1);
    for _ in 0..3 {
        let begun = Instant::now();
        let round = witnesses.cosign(&log.note(9), &proofs(9)).await;
        assert!(round.quorum && begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
    let last = witnesses.cosign(&log.note(9), &proofs(9)).await;
    assert!(matches!(&last.failures[..], [(name, Failure::StillBusy)] if &**name == "w1.example"), "{:?}", last.failures);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn one_that_is_down_is_left_alone_for_a_while() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (good, _) = scripted(vec![Some((200, lines(2, 9, 5)))]).await;
    let both = witnesses(2, &[&format!("http://{nobody}"), &good]);
    let note = Log::new(ORIGIN, 1).note(9);
    let first = both.cosign(&note, &proofs(9)).await;
    assert!(!first.quorum && first.lines.len() == 2 && matches!(first.failures[0].1, Failure::Unreached(_)));
    assert_eq!(first.failures[0].1.to_string(), "gave no answer: the connection was refused");
    let second = both.cosign(&note, &proofs(9)).await;
    assert!(!second.quorum && second.lines.len() == 2 && matches!(second.failures[0].1, Failure::LeftAlone));
}

#[tokio::test]
async fn why_a_witness_did_not_cosign_is_known_until_it_does() {
    let (url, _) = scripted(vec![Some((403, String::new())), Some((200, lines(1, 9, 5)))]).await;
    let witnesses = witnesses(1, &[&url]);
    assert!(witnesses.failing().is_empty());
    let note = Log::new(ORIGIN, 1).note(9);
    let failing = || witnesses.failing().into_iter().map(|(name, why)| (name.to_string(), why)).collect::<Vec<_>>();
    for _ in 0..2 {
        assert!(!witnesses.cosign(&note, &proofs(9)).await.quorum);
        // That it is left alone is not why.
        assert_eq!(failing(), [("w1.example".to_owned(), "answered 403".to_owned())]);
    }
    tokio::time::sleep(FIRST_PAUSE).await;
    assert!(witnesses.cosign(&note, &proofs(9)).await.quorum);
    assert!(failing().is_empty());
}

#[test]
fn pauses_double_up_to_the_longest() {
    let (mut state, now) = (State::default(), Instant::now());
    let mut pauses = Vec::new();
    for _ in 0..70 {
        state.failed(now);
        pauses.push(state.not_before.unwrap() - now);
    }
    assert_eq!(pauses[..3], [FIRST_PAUSE, FIRST_PAUSE * 2, FIRST_PAUSE * 4]);
    assert!(pauses.is_sorted() && pauses[69] == LONGEST_PAUSE);
    state.succeeded(7);
    assert!(state.not_before.is_none() && state.size == 7);
    state.failed(now);
    assert_eq!(state.not_before.unwrap() - now, FIRST_PAUSE);
}

#[tokio::test]
async fn what_a_witness_knows_counts_under_its_own_signature_alone() {
    let log = Log::new(ORIGIN, 1);
    let shown = |size: usize, seed: u8| log.note(size).and(cosigner(seed).cosign(&log.checkpoint(size), 5).unwrap()).unwrap().to_string();
    let other = Log::new("log.example/b", 1);
    let elsewhere = other.note(9).and(cosigner(1).cosign(&other.checkpoint(9), 5).unwrap()).unwrap().to_string();
    for (script, expected) in [
        (says(404, ""), Ok(None)),
        (says(200, shown(9, 1)), Ok(Some(Seen { size: 9, root: log.checkpoint(9).root }))),
        (says(200, shown(9, 2)), Err("sent a cosignature that does not hold: no signature of a known key")),
        (says(200, shown(9, 1).replace("\n9\n", "\n8\n")), Err("sent a cosignature that does not hold: signature line 3 is wrong")),
        (says(200, log.note(9).to_string()), Err("sent a cosignature that does not hold: no signature of a known key")),
        (says(200, elsewhere), Err("sent a checkpoint of another log")),
        (says(200, "x"), Err("sent no signature lines: the note has no text before an empty line")),
        (says(500, ""), Err("answered 500")),
    ] {
        let (url, _) = scripted(script).await;
        let latest = witnesses(1, &[&url]).latest().await.remove(0);
        assert_eq!(&*latest.witness, "w1.example");
        assert_eq!(latest.seen.map_err(|failure| failure.to_string()), expected.map_err(str::to_owned));
    }
}

/// `PORTCULLIS_PEER="URL VKEY"` names a witness that nobody here wrote and that knows this log, as `tests/clients/peer_witness.py`
/// starts one.
#[tokio::test]
#[ignore = "needs a witness of another make"]
async fn a_witness_of_another_make_cosigns() {
    let peer = std::env::var("PORTCULLIS_PEER").unwrap();
    let (url, key) = peer.split_once(' ').unwrap();
    let kept = || Kept::new(url, ClientTls::build(None, Alpn::Http1).unwrap(), LIMITS).unwrap();
    let new = || Witnesses::new(ORIGIN, vec![(0, Peer::new(vec![key.parse().unwrap()], kept(), kept()))], Quorum::Witness(0));
    let (log, mut witnesses) = (Log::new(ORIGIN, 1), new());
    for size in [1, 2, 7, 8, 9, 40, 40, 64] {
        let round = witnesses.cosign(&log.note(size), &proofs(size)).await;
        assert!(round.quorum && round.lines.len() == 1, "{size}: {:?}", round.failures);
        if size == 8 {
            // What it knows is asked again, by 409.
            witnesses = new();
        }
    }
    let round = new().cosign(&log.note(50), &proofs(50)).await;
    assert!(matches!(round.failures[0].1, Failure::LogIsBehind(64)), "{:?}", round.failures);
    let fork = Log::forked(ORIGIN, 1, 3);
    let round = witnesses.cosign(&fork.note(64), &proofs(64)).await;
    assert!(matches!(round.failures[0].1, Failure::Refused(_)), "{:?}", round.failures);
}
