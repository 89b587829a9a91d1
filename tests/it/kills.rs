//! `kill -9` at random moments under load: no receipt is lost, no index is another's, and no checkpoint is taken back.
//!
//! `PORTCULLIS_KILLS` says how often (100 unless given), `PORTCULLIS_SEED` from where the moments are drawn; `scripts/kill-loop` runs ten
//! thousand. What holds is asked of the folder as the kill left it, and again of whatever later processes made of it.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use portcullis::tlog::merkle::{self, Hash};
use portcullis::tlog::tile::{self, Edge, Tile, Tiles};
use portcullis::tlog::{Checkpoint, Note};
use portcullis::verify::entries::Entries;
use portcullis::verify::log::verify_dir;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::support::ask::{ask, bare, chat};
use crate::support::{Client, Folder, Gateway, PROGRAM, Reply, Upstream};

/// Kills, unless `PORTCULLIS_KILLS` says otherwise.
const KILLS: u64 = 100;
/// After so many a log is left behind for a new one: what is checked after each kill is the whole of it.
const KILLS_OF_A_LOG: u64 = 10;
const CLIENTS: u64 = 8;
/// The latest moment of a kill after the load began, and after a start.
const LOADED: u64 = 180;
const STARTING: u64 = 400;

/// Marsaglia's xorshift64: the moments need no better one.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What a client was given.
struct Receipt {
    id: String,
    state: String,
    statement: Vec<u8>,
    /// The index that the proof named.
    index: Option<u64>,
}

/// Everything that clients hold of one log.
#[derive(Default)]
struct Held {
    receipts: Vec<Receipt>,
    /// Sizes and roots of checkpoints that came with proofs.
    checkpoints: Vec<(u64, Hash)>,
    /// How many answers came without a receipt.
    bare: u64,
}

type Shared = Arc<Mutex<Held>>;

fn statement_of(reply: &Reply) -> Option<(String, String, Vec<u8>)> {
    let state = reply.header("provenance-receipt").split("state=").nth(1)?.split([',', ';']).next()?.trim().to_owned();
    let statement = reply.header("provenance-statement").strip_prefix(':')?.strip_suffix(':')?;
    Some((reply.receipt()?, state, STANDARD.decode(statement).unwrap()))
}

/// The checkpoint in the proof of a receipt, which is checked as its caller would; and the index it names.
fn proof_of(reply: &Reply, statement: &[u8]) -> Option<(u64, Checkpoint)> {
    let inclusion = &reply.json()["inclusion"];
    let index = inclusion["index"].as_u64()?;
    let hash = |text: &serde_json::Value| Hash::try_from(STANDARD.decode(text.as_str().unwrap()).unwrap()).unwrap();
    let path: Vec<Hash> = inclusion["path"].as_array().unwrap().iter().map(hash).collect();
    let note = Note::parse(inclusion["checkpoint"].as_str().unwrap().as_bytes()).unwrap();
    let checkpoint = Checkpoint::parse(note.text()).unwrap();
    merkle::verify_inclusion(index, checkpoint.size, &merkle::leaf(statement), &path, &checkpoint.root).unwrap();
    Some((index, checkpoint))
}

/// Asks for answers in every mode, for refusals, and for proofs of what it holds, until the connection ends.
async fn load(mut client: Client, held: Shared, from: u64) {
    let body = |model: &str| json!({"model": model, "messages": [{"role": "user", "content": "hello"}]}).to_string();
    for turn in from.. {
        let wanted = |mode: &'static str| {
            let mut request = ask("POST", "/v1/chat/completions", body(if turn % 2 == 0 { "chat" } else { "sure" }));
            request.headers_mut().insert("provenance-want", mode.parse().unwrap());
            request
        };
        // Every other client waits for nothing, so that there is always something being written.
        let kind = if from.is_multiple_of(2) { turn % 3 } else { turn % 8 };
        let request = match kind {
            0..3 => ask("POST", "/v1/chat/completions", chat().to_string()),
            3 => wanted("mode=durable"),
            4 | 5 => wanted("mode=included"),
            // Refused to one who is known, and to a stranger: so many a second leave receipts.
            6 => ask("POST", "/v1/chat/completions", "{"),
            _ => bare("GET", "/v1/models", "", None),
        };
        let Ok(reply) = client.try_send(request).await else { return };
        let Some((id, state, statement)) = statement_of(&reply) else {
            assert!(kind >= 6, "{reply:?}");
            held.lock().unwrap().bare += 1;
            continue;
        };
        assert!(["promised", "durable", "included"].contains(&&*state), "{state}");
        let included = state == "included";
        let at = {
            let mut held = held.lock().unwrap();
            held.receipts.push(Receipt { id: id.clone(), state, statement: statement.clone(), index: None });
            held.receipts.len() - 1
        };
        if included {
            let Ok(reply) = client.try_send(ask("GET", &format!("/v1/receipts/{id}"), "")).await else { return };
            let (index, checkpoint) = proof_of(&reply.is(200), &statement).expect("what is included has a proof");
            let mut held = held.lock().unwrap();
            held.receipts[at].index = Some(index);
            held.checkpoints.push((checkpoint.size, checkpoint.root));
        }
    }
}

/// The newest checkpoint in the folder.
fn newest(log: &Path) -> Checkpoint {
    let note = Note::parse(&fs::read(log.join("checkpoint")).unwrap()).unwrap();
    Checkpoint::parse(note.text()).unwrap()
}

/// The hashes of a tile in the folder of a log of `size` entries: of the tile itself, or of the one that it has become.
fn hashes(log: &Path, tile: Tile, size: u64) -> Result<Vec<Hash>, String> {
    let now = Tile::of(tile.level, tile.number, size).ok_or_else(|| format!("{tile}: past the end"))?;
    let bytes = fs::read(log.join(now.to_string())).map_err(|error| format!("{now}: {error}"))?;
    let mut hashes = tile::hashes(&bytes).ok_or_else(|| format!("{now}: cut short"))?;
    hashes.truncate(usize::from(tile.width));
    Ok(hashes)
}

/// Everything that must hold of a folder that nobody writes to. `before` is what it held when this was last asked.
fn holds(log: &Path, held: &Held, before: &mut Vec<Vec<u8>>, torn: bool) {
    let report = verify_dir(log, None).unwrap();
    let forgiven = usize::from(torn && report.torn_bytes > 0);
    assert!(report.problems.len() <= forgiven && report.more_problems == 0, "{report:#?}");
    // Read up to the torn end, of which the report told.
    let entries: Vec<Vec<u8>> = Entries::of_live(log).unwrap().map(|entry| entry.unwrap().1).collect();
    assert_eq!(entries.len() as u64, report.entries);
    assert!(entries.starts_with(before), "what was there is there still, in the same places");
    let mut places: HashMap<&[u8], u64> = HashMap::new();
    for (entry, at) in entries.iter().zip(0..) {
        assert!(places.insert(entry, at).is_none(), "entry {at} stands twice");
    }
    for receipt in &held.receipts {
        let place = places.get(&receipt.statement[..]);
        assert!(place.is_some(), "the log lost {} ({})", receipt.id, receipt.state);
        assert!(receipt.index.is_none_or(|index| Some(&index) == place), "{} was at {:?} and is at {place:?}", receipt.id, receipt.index);
    }
    // Every root that a client was shown is that of the first so many entries, and the tiles prove that the newest goes on from it.
    let newest = newest(log);
    let mut roots = vec![merkle::empty()];
    let mut edge = Edge::default();
    for entry in &entries {
        edge.push(entry, |_, _, _| {});
        roots.push(edge.root());
    }
    assert_eq!(roots[newest.size as usize], newest.root);
    for (size, root) in &held.checkpoints {
        assert!(*size <= newest.size, "a checkpoint over {size} entries was taken back: the newest covers {}", newest.size);
        assert_eq!(roots[*size as usize], *root, "at {size} entries");
    }
    let mut shown: Vec<_> = held.checkpoints.clone();
    shown.dedup();
    for (size, root) in shown.iter().rev().take(20) {
        let mut tiles = Tiles::new(newest.size, |tile| hashes(log, tile, newest.size));
        let path = merkle::consistency(*size, newest.size, &mut tiles).unwrap();
        merkle::verify_consistency(*size, newest.size, &path, root, &newest.root).unwrap();
    }
    *before = entries;
}

async fn still_proved(gateway: &Gateway, held: &Shared, dice: &mut Dice) {
    let asked = {
        let held = held.lock().unwrap();
        if held.receipts.is_empty() {
            return;
        }
        let receipt = &held.receipts[dice.below(held.receipts.len() as u64) as usize];
        (receipt.id.clone(), receipt.statement.clone(), receipt.index)
    };
    let (id, statement, index) = asked;
    let reply = gateway.h2().await.send(ask("GET", &format!("/v1/receipts/{id}"), "")).await;
    // Of a stranger's refusal nobody may read the receipt.
    if reply.status != 404 {
        let (now, checkpoint) = proof_of(&reply.is(200), &statement).expect("what an earlier process left is under a checkpoint");
        assert!(index.is_none_or(|index| index == now));
        held.lock().unwrap().checkpoints.push((checkpoint.size, checkpoint.root));
    }
}

async fn sleep(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

/// Starts the program and kills it before it may be ready.
async fn dies_in_its_start(folder: &Folder, after: u64) {
    let mut child = Command::new(PROGRAM)
        .args(["serve", "--policies", folder.policies().to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    sleep(after).await;
    child.kill().unwrap();
    child.wait().unwrap();
}

fn number(name: &str, unless: u64) -> u64 {
    std::env::var(name).map_or(unless, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_receipt_is_lost_and_no_index_changes_when_it_is_killed_at_any_moment() {
    let (kills, seed) = (number("PORTCULLIS_KILLS", KILLS), number("PORTCULLIS_SEED", 1_847));
    println!("{kills} kills, PORTCULLIS_SEED={seed}");
    let mut dice = Dice(seed.max(1));
    let upstream = Upstream::language().await;
    let (mut done, mut receipts, mut included, mut torn) = (0, 0, 0, 0);
    while done < kills {
        let folder = Folder::new();
        folder.upstream("chat", "openai", &upstream, "", "");
        folder.upstream("sure", "openai", &upstream, "", "[prove]\nmode = \"durable\"\n");
        let (held, mut before) = (Shared::default(), Vec::new());
        let log = folder.log();
        for _ in 0..KILLS_OF_A_LOG.min(kills - done) {
            if !before.is_empty() && dice.below(4) == 0 {
                dies_in_its_start(&folder, dice.below(STARTING)).await;
            } else {
                let gateway = folder.serve().await;
                still_proved(&gateway, &held, &mut dice).await;
                let mut running: Vec<JoinHandle<()>> = Vec::new();
                for at in 0..CLIENTS {
                    running.push(tokio::spawn(load(gateway.h2().await, held.clone(), at)));
                }
                sleep(dice.below(LOADED)).await;
                gateway.kill();
                for client in running {
                    client.await.unwrap();
                }
            }
            done += 1;
            let held = held.lock().unwrap();
            torn += u64::from(verify_dir(&log, None).unwrap().torn_bytes > 0);
            holds(&log, &held, &mut before, true);
        }
        // The last start goes on, and stops in order.
        let gateway = folder.serve().await;
        still_proved(&gateway, &held, &mut dice).await;
        gateway.stop().await;
        let held = held.lock().unwrap();
        holds(&log, &held, &mut before, false);
        assert_eq!(folder.verified_log()["ok"], true);
        receipts += held.receipts.len();
        included += held.checkpoints.len();
        if done % 1_000 == 0 || done == kills {
            println!(
                "{done} kills: {receipts} receipts, {included} proofs, {torn} torn ends; {} answers without a receipt here",
                held.bare
            );
        }
    }
    assert!(receipts > 0 && included > 0, "there was load");
}
