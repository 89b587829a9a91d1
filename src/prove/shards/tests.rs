use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use super::*;
use crate::clock::{from_rfc3339, month};
use crate::digest::Digest;
use crate::event::Reader;
use crate::infer::Payload;
use crate::prove::config::{Mode, Terms};
use crate::prove::ledger::tests::{answer, head, now, statement_of};
use crate::prove::{Receipt, State, Want};
use crate::verify::entries::Entries;
use crate::verify::folder::{CHECKPOINT, folders};
use crate::verify::log::{verify_dir, verify_statement};
use crate::verify::proof::verify_receipt;
use crate::verify::statement::{Kind, Statement};

struct House {
    folder: tempfile::TempDir,
    shards: Shards,
    _events: Reader,
}

fn config(shards: &str) -> Config {
    toml::from_str(&format!("directory = \"data/log\"\norigin = \"gw.example/node1\"\nkey = \"provenance.key\"\n{shards}")).unwrap()
}

const HALF_YEARLY: &str = "shards = \"half-yearly\"";

fn at(text: &str) -> SystemTime {
    from_rfc3339(text).unwrap()
}

fn open_in(folder: &Path, more: &str, now: SystemTime) -> Result<(Shards, Reader), OpenError> {
    let (events, reader) = crate::event::channel(64);
    let build = Build { binary: Some(Digest::of(b"program")), config: None };
    let opened = Shards::open(now, &[], &config(more), folder, build, events, Box::new(|_| {}));
    opened.map(|(shards, _)| (shards, reader))
}

fn with_key() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("provenance.key"), Key::generate_pem().expose()).unwrap();
    folder
}

fn house(now: SystemTime) -> House {
    let folder = with_key();
    let (shards, events) = open_in(folder.path(), HALF_YEARLY, now).unwrap();
    House { folder, shards, _events: events }
}

impl House {
    fn log(&self, label: &str) -> PathBuf {
        self.folder.path().join("data/log").join(label)
    }

    async fn answer(&self) -> Receipt {
        answer(&self.shards.current(), &Terms::default()).await.unwrap()
    }

    /// Waits until the shards before the current one are closed.
    async fn ended(&self) {
        for _ in 0..600 {
            if self.shards.past().iter().all(|past| past.ending.is_over()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("a shard does not end");
    }

    fn holds(&self, label: &str) {
        let report = verify_dir(&self.log(label), None).unwrap();
        assert!(report.ok, "{label}: {report:?}");
        assert_eq!(report.entries, report.covered, "{label}");
    }
}

fn origin_of(receipt: &Receipt) -> String {
    Statement::read(&statement_of(receipt.headers())).unwrap().issuer
}

fn endings(log: &Path) -> Vec<String> {
    let entries = Entries::of(log).unwrap().map(|entry| Statement::read(&entry.unwrap().1).unwrap().view());
    entries.filter(|view| view["change"]["outcome"] == "ended").map(|view| view["change"]["reason"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_rolls_over_while_it_runs_and_each_shard_verifies_alone() {
    let house = house(at("2026-06-30T23:59:00Z"));
    assert_eq!(house.shards.roll_over(at("2026-06-30T23:59:59Z")).await.unwrap(), None);
    let first = house.answer().await;
    assert_eq!(origin_of(&first), "gw.example/node1/2026h1");
    assert_eq!(house.shards.roll_over(at("2026-07-01T00:00:00Z")).await.unwrap().unwrap().to_string(), "2026h2");
    assert_eq!(house.shards.roll_over(at("2026-07-01T00:00:01Z")).await.unwrap(), None);
    // A clock that goes back does not bring it back.
    assert_eq!(house.shards.roll_over(at("2026-06-30T12:00:00Z")).await.unwrap(), None);
    let second = house.answer().await;
    assert_eq!(origin_of(&second), "gw.example/node1/2026h2");
    house.ended().await;
    house.shards.close();

    for (label, receipt) in [("2026h1", &first), ("2026h2", &second)] {
        house.holds(label);
        let entries: Vec<Vec<u8>> = Entries::of(&house.log(label)).unwrap().map(|entry| entry.unwrap().1).collect();
        let endorsed = Statement::read(&entries[0]).unwrap();
        assert_eq!((endorsed.kind, endorsed.seq, endorsed.endorses().len()), (Kind::KeyRotation, 0, 2), "{label}: its keys are endorsed");
        assert_eq!(endorsed.view()["node"], "node1");
        let [_, statements, _] = house.shards.current().vkeys();
        let statements = Vkey { name: format!("gw.example/node1/{label}"), ..statements };
        let entry = statement_of(receipt.headers());
        verify_statement(&entry, &statements).unwrap();
        assert!(entries.contains(&entry), "{label}");
        assert!(house.folder.path().join(format!("data/log.lock.{label}")).exists());
    }
    assert!(!house.folder.path().join("data/log.lock").exists());
    // What it ended with is an entry of the next, and so under its checkpoints.
    let report = verify_dir(&house.log("2026h1"), None).unwrap();
    let told = endings(&house.log("2026h2"));
    let root = report.root.unwrap();
    assert_eq!(told, [format!("gw.example/node1/2026h1 ended with {} entries, root {root}", report.entries)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_of_a_shard_that_has_ended_is_found_and_proved_in_every_form_before_and_after_a_restart() {
    let house = house(at("2026-06-30T23:59:00Z"));
    let receipt = house.answer().await;
    let (id, who, entry) = (receipt.id().unwrap(), receipt.trail().who.clone().unwrap(), statement_of(receipt.headers()));
    let other = Arc::new(Who { caller: "api_key:b".into(), tenant: "acme".into(), tier: "".into(), method: "api_key" });
    house.shards.roll_over(at("2026-07-01T00:00:00Z")).await.unwrap().unwrap();
    let House { folder, mut shards, _events } = house;
    let log_key = Vkey { name: "gw.example/node1/2026h1".into(), ..shards.current().vkeys()[0].clone() };
    let mut disclosed = Vec::new();
    for restarts in 0..3 {
        let found = shards.find(id, &who, false).await.unwrap();
        assert_eq!(found.statement(), &entry);
        assert_eq!(found.json()["log"], "gw.example/node1/2026h1");
        let proved = shards.find_included(id, &who, false).await.unwrap();
        verify_receipt(&proved.receipt().unwrap(), &entry, &log_key).unwrap();
        assert!(proved.transparent().is_some() && proved.tlog_proof().unwrap().contains("\ngw.example/node1/2026h1\n"));
        assert_eq!(proved.json()["state"], "included");
        disclosed.push(shards.disclose(id, &who, false).await.unwrap());
        assert_eq!(shards.disclose(id, &who, true).await.unwrap(), disclosed[0]);
        assert!(shards.find(id, &other, false).await.is_none() && shards.disclose(id, &other, false).await.is_none());
        assert!(shards.find(Uuid::now_v7(), &who, true).await.is_none());
        shards.close();
        drop(shards);
        let ended = std::fs::read(folder.path().join("data/log/2026h1/checkpoint")).unwrap();
        shards = open_in(folder.path(), HALF_YEARLY, at("2026-07-02T00:00:00Z")).unwrap().0;
        assert_eq!(
            std::fs::read(folder.path().join("data/log/2026h1/checkpoint")).unwrap(),
            ended,
            "restart {restarts}: it stays as it is"
        );
    }
    assert!(disclosed.iter().all(|one| *one == disclosed[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_began_in_a_shard_ends_in_it() {
    let house = house(at("2026-06-30T23:59:00Z"));
    let ledger = house.shards.current();
    let accepted = ledger.accept();
    let slot = ledger.reserve(&Terms { mode: Mode::Included, ..Terms::default() }, Want::default()).unwrap();
    house.shards.roll_over(at("2026-07-01T00:00:00Z")).await.unwrap().unwrap();
    let beside = house.answer().await;
    assert_eq!(origin_of(&beside), "gw.example/node1/2026h2");
    tokio::time::sleep(3 * ENDING_EVERY).await;
    assert!(!house.shards.past()[0].ending.is_over(), "it waits for what is in flight");
    let whole = Payload::Whole(Bytes::from_static(b"late"));
    let late = ledger.prove_parts(slot, StatusCode::OK, head(), whole, None, now()).await.unwrap();
    accepted.over();
    assert_eq!((late.state(), origin_of(&late)), (State::Included, "gw.example/node1/2026h1".to_owned()));
    assert!(house.shards.find(late.id().unwrap(), late.trail().who.as_ref().unwrap(), false).await.is_some());
    drop((ledger, late));
    house.ended().await;
    house.shards.close();
    house.holds("2026h1");
    house.holds("2026h2");
    // Each counts what began in it, and no other.
    for label in ["2026h1", "2026h2"] {
        let counts = crate::verify::reconcile::reconcile(Entries::of(&house.log(label)).unwrap(), None).unwrap();
        assert_eq!(counts.problems.iter().filter(|problem| !problem.contains("accepted requests")).count(), 0, "{label}: {counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_a_shard_ends_closes_it_and_tells_of_it() {
    let house = house(at("2026-06-30T23:59:00Z"));
    let pinned = house.shards.current();
    house.answer().await;
    house.shards.roll_over(at("2026-07-01T00:00:00Z")).await.unwrap().unwrap();
    house.shards.close();
    drop(pinned);
    house.holds("2026h1");
    house.holds("2026h2");
    assert_eq!(endings(&house.log("2026h2")).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_in_another_half_year_closes_what_a_crash_left_open() {
    let house = house(at("2026-06-30T23:59:00Z"));
    let receipt = house.answer().await;
    let (id, who) = (receipt.id().unwrap(), receipt.trail().who.clone().unwrap());
    house.shards.close();
    let House { folder, shards, .. } = house;
    drop(shards);
    // Written ahead and under no checkpoint, as after a kill: the newest checkpoint and its lock are older than the entries.
    let log = folder.path().join("data/log/2026h1");
    let bytes = std::fs::read(log.join("wal-00000000")).unwrap();
    std::fs::write(log.join("wal-00000000"), [&bytes[..], &[7; 40]].concat()).unwrap();
    let before = Entries::of_live(&log).unwrap().count();

    let (shards, _events) = open_in(folder.path(), HALF_YEARLY, at("2026-12-01T00:00:00Z")).unwrap();
    assert_eq!(&*shards.current().0.archive.origin, "gw.example/node1/2026h2");
    let report = verify_dir(&log, None).unwrap();
    assert!(report.ok && report.entries == report.covered, "{report:?}");
    assert!(report.entries as usize > before, "it was opened, and closed");
    assert!(shards.find_included(id, &who, false).await.is_some());
    shards.close();
    drop(shards);
    assert_eq!(endings(&folder.path().join("data/log/2026h2")).len(), 1);
    // From then on it is only read.
    let (shards, _events) = open_in(folder.path(), HALF_YEARLY, at("2026-12-02T00:00:00Z")).unwrap();
    assert_eq!(verify_dir(&log, None).unwrap().entries, report.entries);
    shards.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_behind_at_a_start_goes_on_in_the_newest_shard() {
    let house = house(at("2026-07-01T00:00:00Z"));
    house.shards.close();
    let House { folder, shards, .. } = house;
    drop(shards);
    let (shards, _events) = open_in(folder.path(), HALF_YEARLY, at("2025-01-01T00:00:00Z")).unwrap();
    assert_eq!(&*shards.current().0.archive.origin, "gw.example/node1/2026h2");
    assert!(!folder.path().join("data/log/2025h1").exists());
    shards.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_destroys_the_keys_of_a_caller_in_every_shard() {
    let house = house(at("2026-06-30T23:59:00Z"));
    let first = house.answer().await;
    house.shards.roll_over(at("2026-07-01T00:00:00Z")).await.unwrap().unwrap();
    let second = house.answer().await;
    house.ended().await;
    let who = first.trail().who.clone().unwrap();
    let ids = [first.id().unwrap(), second.id().unwrap()];
    for id in ids {
        assert!(house.shards.disclose(id, &who, false).await.is_some());
    }
    let erasure = Erasure::Subject { tenant: who.tenant.to_string(), caller: who.caller.to_string() };
    let erased = house.shards.erase(erasure.clone()).await.unwrap();
    assert_eq!(erased.keys, 2, "one in each shard");
    for id in ids {
        assert!(house.shards.find(id, &who, false).await.is_some(), "the proof stays");
        assert_eq!(house.shards.disclose(id, &who, false).await, None);
        assert_eq!(house.shards.disclose(id, &who, true).await, None);
    }
    assert!(matches!(house.shards.erase(erasure).await, Err(EraseError::OperatorNamedUnknown)));
    for label in ["2026h1", "2026h2"] {
        assert!(!house.log(label).join("salts.old").exists(), "{label}: what held the key is overwritten");
    }
    house.shards.close();
    house.holds("2026h1");
    house.holds("2026h2");
    let House { folder, shards, .. } = house;
    drop(shards);
    let (shards, _events) = open_in(folder.path(), HALF_YEARLY, at("2026-07-02T00:00:00Z")).unwrap();
    for id in ids {
        assert_eq!(shards.disclose(id, &who, true).await, None, "after a restart, too");
    }
    shards.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_whose_folder_was_taken_away_keeps_no_key_of_another_and_is_told() {
    let house = house(at("2025-12-31T23:59:00Z"));
    let oldest = house.answer().await;
    let mut all = vec![];
    for start in ["2026-01-01T00:00:00Z", "2026-07-01T00:00:00Z"] {
        house.shards.roll_over(at(start)).await.unwrap().unwrap();
        all.push(house.answer().await.id().unwrap());
    }
    house.ended().await;
    std::fs::rename(house.log("2025h2"), house.folder.path().join("moved")).unwrap();
    let who = oldest.trail().who.clone().unwrap();
    let erasure = Erasure::Subject { tenant: who.tenant.to_string(), caller: who.caller.to_string() };
    let erased = house.shards.erase(erasure.clone()).await.unwrap();
    assert_eq!((erased.keys, &*erased.passed_over), (2, &["2025h2".to_owned()][..]));
    assert_eq!(erased.json()["passed_over"], json!(["2025h2"]));
    for id in all {
        assert_eq!(house.shards.disclose(id, &who, true).await, None);
    }
    let again = house.shards.erase(erasure.clone()).await.unwrap_err();
    assert!(matches!(&again, EraseError::OperatorTookAway(gone) if gone == &["2025h2"]), "{again}");
    for label in ["2026h1", "2026h2"] {
        assert!(!house.log(label).join("salts.old").exists(), "{label}: what held the key is overwritten");
    }
    // What fails for another reason says where.
    house.answer().await;
    std::fs::remove_file(house.log("2026h2").join("salts")).unwrap();
    let why = house.shards.erase(erasure).await.unwrap_err().to_string();
    assert!(why.contains("nothing was erased: ") && why.contains("2026h2/salts"), "{why}");
    house.shards.close();
    let entries = Entries::of(&house.log("2026h2")).unwrap().map(|entry| Statement::read(&entry.unwrap().1).unwrap());
    assert_eq!(entries.filter(|statement| statement.kind == Kind::Erasure).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_of_an_old_shard_alone_is_erased_and_told_in_the_current_one() {
    let house = house(at("2026-06-30T23:59:00Z"));
    let first = house.answer().await;
    house.shards.roll_over(at("2026-07-01T00:00:00Z")).await.unwrap().unwrap();
    house.ended().await;
    let who = first.trail().who.clone().unwrap();
    let erasure = Erasure::Subject { tenant: who.tenant.to_string(), caller: who.caller.to_string() };
    let erased = house.shards.erase(erasure).await.unwrap();
    assert_eq!(erased.keys, 1);
    assert_eq!(house.shards.disclose(first.id().unwrap(), &who, false).await, None);
    house.shards.close();
    let told = Entries::of(&house.log("2026h2")).unwrap().map(|entry| Statement::read(&entry.unwrap().1).unwrap());
    assert_eq!(told.filter(|statement| statement.kind == Kind::Erasure).map(|statement| statement.id).collect::<Vec<_>>(), [erased.id]);
    let in_old = Entries::of(&house.log("2026h1")).unwrap().map(|entry| Statement::read(&entry.unwrap().1).unwrap());
    assert!(in_old.into_iter().all(|statement| statement.kind != Kind::Erasure), "a shard that has ended is not written to");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_shards_becomes_the_first_of_them_and_does_not_go_back() {
    let folder = with_key();
    let (shards, _events) = open_in(folder.path(), "", at("2026-05-01T00:00:00Z")).unwrap();
    let receipt = answer(&shards.current(), &Terms::default()).await.unwrap();
    assert_eq!(origin_of(&receipt), "gw.example/node1");
    assert_eq!(shards.roll_over(at("2030-01-01T00:00:00Z")).await.unwrap(), None, "it is not cut");
    shards.close();
    drop(shards);
    let (shards, _events) = open_in(folder.path(), HALF_YEARLY, at("2026-05-02T00:00:00Z")).unwrap();
    let who = receipt.trail().who.clone().unwrap();
    assert!(shards.find_included(receipt.id().unwrap(), &who, false).await.is_some());
    assert!(shards.serve("/log/before/checkpoint").await.is_some());
    shards.close();
    drop(shards);
    let log = folder.path().join("data/log");
    assert_eq!(folders(&log).unwrap(), [log.clone(), log.join("2026h1")]);
    for shard in folders(&log).unwrap() {
        let report = verify_dir(&shard, None).unwrap();
        assert!(report.ok, "{report:?}");
    }
    assert!(matches!(open_in(folder.path(), "", at("2026-05-03T00:00:00Z")), Err(OpenError::InShards(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_of_a_shard_that_has_ended_is_not_opened() {
    let house = house(at("2026-06-30T23:59:00Z"));
    house.answer().await;
    house.shards.close();
    let House { folder, shards, .. } = house;
    drop(shards);
    let (log, copy) = (folder.path().join("data/log/2026h1"), folder.path().join("copy"));
    copied(&log, &copy);
    // It goes on, ends, and is then set back.
    let (shards, _events) = open_in(folder.path(), HALF_YEARLY, at("2026-06-30T23:59:30Z")).unwrap();
    answer(&shards.current(), &Terms::default()).await.unwrap();
    shards.roll_over(at("2026-07-01T00:00:00Z")).await.unwrap().unwrap();
    shards.close();
    drop(shards);
    std::fs::remove_dir_all(&log).unwrap();
    copied(&copy, &log);
    let refused = open_in(folder.path(), HALF_YEARLY, at("2026-07-02T00:00:00Z")).map(drop).unwrap_err();
    assert!(matches!(refused, OpenError::Behind(..)), "{refused}");
}

fn copied(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, new) = (file.path(), to.join(file.file_name()));
        if path.is_dir() {
            copied(&path, &new);
        } else {
            std::fs::copy(&path, &new).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_do_not_share_a_shard_that_has_ended() {
    let house = house(at("2026-06-30T23:59:00Z"));
    house.shards.roll_over(at("2026-07-01T00:00:00Z")).await.unwrap().unwrap();
    house.ended().await;
    let refused = open_in(house.folder.path(), HALF_YEARLY, at("2026-07-02T00:00:00Z")).map(drop).unwrap_err();
    assert!(matches!(&refused, OpenError::Log(crate::prove::log::OpenError::InUse(path)) if path.ends_with("2026h1")), "{refused}");
    house.shards.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_does_not_open_leaves_the_log_where_it_is() {
    let house = house(at("2026-06-30T23:59:00Z"));
    // A file in the place of its folder.
    std::fs::write(house.log("2026h2"), b"in the way").unwrap();
    assert!(matches!(house.shards.roll_over(at("2026-07-01T00:00:00Z")).await, Err(NotRolled::Open(_))));
    assert!(house.shards.not_rolled().is_some_and(|why| why.contains("2026h2")), "{:?}", house.shards.not_rolled());
    assert_eq!(origin_of(&house.answer().await), "gw.example/node1/2026h1");
    std::fs::remove_file(house.log("2026h2")).unwrap();
    assert!(house.shards.roll_over(at("2026-07-01T00:01:00Z")).await.unwrap().is_some());
    assert_eq!(house.shards.not_rolled(), None);
    assert_eq!(origin_of(&house.answer().await), "gw.example/node1/2026h2");
    house.shards.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn monitors_read_every_shard_and_learn_how_the_next_is_called() {
    let house = house(at("2026-06-30T23:59:00Z"));
    house.answer().await;
    house.shards.roll_over(at("2026-07-01T00:00:00Z")).await.unwrap().unwrap();
    house.ended().await;
    let receipt = answer(&house.shards.current(), &Terms { mode: Mode::Included, ..Terms::default() }).await.unwrap();
    assert_eq!(receipt.state(), State::Included);
    let text = async |path: &str| String::from_utf8(house.shards.serve(path).await.unwrap().bytes.to_vec()).unwrap();
    assert!(text("/log/2026h1/checkpoint").await.starts_with("gw.example/node1/2026h1\n"));
    assert!(text("/log/2026h2/checkpoint").await.starts_with("gw.example/node1/2026h2\n"));
    assert!(text("/log/checkpoint").await.starts_with("gw.example/node1/2026h2\n"));
    assert!(house.shards.serve("/log/2026h1/tile/entries/000.p/1").await.is_some());
    for nothing in ["/log/2025h1/checkpoint", "/log/before/checkpoint", "/log/2026h1/", "/log/2026h1/salts", "/log/2026h1", "/log/"] {
        assert!(house.shards.serve(nothing).await.is_none(), "{nothing}");
    }
    let told: Json = serde_json::from_str(&text(WELL_KNOWN).await).unwrap();
    assert_eq!((&told["origin"], &told["label"]), (&json!("gw.example/node1/2026h2"), &json!("2026h2")));
    let old = &told["shards"][0];
    assert_eq!((&old["label"], &old["prefix"], &old["ended"]), (&json!("2026h1"), &json!("/log/2026h1/"), &json!(true)));
    assert_eq!(told["next"]["origin"], "gw.example/node1/2027h1");
    let next: Vec<String> = serde_json::from_value(told["next"]["vkeys"].clone()).unwrap();
    house.shards.roll_over(at("2027-01-01T00:00:00Z")).await.unwrap().unwrap();
    assert_eq!(next, house.shards.current().vkeys().map(|vkey| vkey.to_string()), "the keys were told before");
    house.shards.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_takes_the_salts_of_shards_that_have_ended_along() {
    let house = house(at("2026-06-30T23:59:00Z"));
    let receipt = house.answer().await;
    let (id, who) = (receipt.id().unwrap(), receipt.trail().who.clone().unwrap());
    house.shards.roll_over(at("2026-07-01T00:00:00Z")).await.unwrap().unwrap();
    let before = house.shards.disclose(id, &who, false).await.unwrap();
    house.ended().await;
    house.shards.close();
    let House { folder, shards, .. } = house;
    drop(shards);
    std::fs::rename(folder.path().join("provenance.key"), folder.path().join("old.key")).unwrap();
    std::fs::write(folder.path().join("provenance.key"), Key::generate_pem().expose()).unwrap();
    assert!(open_in(folder.path(), HALF_YEARLY, at("2026-07-02T00:00:00Z")).is_err());
    let with_both = format!("{HALF_YEARLY}\nprevious_key = \"old.key\"");
    for more in [&*with_both, HALF_YEARLY] {
        let (shards, _events) = open_in(folder.path(), more, at("2026-07-02T00:00:00Z")).unwrap();
        assert_eq!(shards.disclose(id, &who, false).await.unwrap(), before);
        shards.close();
    }
    for label in ["2026h1", "2026h2"] {
        assert!(verify_dir(&folder.path().join("data/log").join(label), None).unwrap().ok, "{label}");
    }
}

#[test]
fn a_half_year_ends_in_utc() {
    let of = |text: &str| half_year(at(text)).to_string();
    assert_eq!(of("2026-01-01T00:00:00Z"), "2026h1");
    assert_eq!(of("2026-06-30T23:59:59.999Z"), "2026h1");
    assert_eq!(of("2026-07-01T00:00:00Z"), "2026h2");
    assert_eq!(of("2026-07-01T01:30:00+02:00"), "2026h1");
    assert_eq!(of("2026-12-31T23:59:59Z"), "2026h2");
    assert_eq!(of("2027-01-01T00:00:00Z"), "2027h1");
}

#[test]
fn the_shard_of_a_moment_is_of_its_month() {
    let now = at("2026-07-31T00:00:00Z");
    assert_eq!((due(&[], now).to_string(), month(now)), ("2026h2".to_owned(), 202_607));
    let later = Some("2027h1".parse().unwrap());
    assert_eq!(due(&[None, later], now).to_string(), "2027h1");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_shard_that_nobody_with_the_logs_key_signed_is_not_vouched_for() {
    let House { folder, shards, .. } = house(at("2026-06-30T23:59:00Z"));
    shards.roll_over(at("2026-07-01T00:00:00Z")).await.unwrap();
    tokio::task::spawn_blocking(move || shards.close()).await.unwrap();
    let log = folder.path().join("data/log");
    let told = endings(&log.join("2026h2")).len();
    assert_eq!(told, 1);
    // As somebody leaves it who has the disk and not the key: the root holds, the signatures do not.
    let checkpoint = log.join("2026h1").join(CHECKPOINT);
    let note = std::fs::read_to_string(&checkpoint).unwrap();
    let (text, lines) = note.split_once("\n\n").unwrap();
    let forged: String = lines.lines().map(|line| format!("{}AAAA\n", &line[..line.len() - 4])).collect();
    std::fs::write(&checkpoint, format!("{text}\n\n{forged}")).unwrap();
    let (shards, _events) = open_in(folder.path(), HALF_YEARLY, at("2026-07-02T00:00:00Z")).unwrap();
    tokio::task::spawn_blocking(move || shards.close()).await.unwrap();
    assert_eq!(endings(&log.join("2026h2")).len(), told);
    // As it was signed, it is told again.
    std::fs::write(&checkpoint, note).unwrap();
    let (shards, _events) = open_in(folder.path(), HALF_YEARLY, at("2026-07-02T00:00:00Z")).unwrap();
    tokio::task::spawn_blocking(move || shards.close()).await.unwrap();
    assert_eq!(endings(&log.join("2026h2")).len(), told + 1);
}
