use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode};
use serde_json::json;

use super::*;
use crate::clock::month;
use crate::digest::Digest;
use crate::prove::config::Terms;
use crate::prove::key::{Key, commitment};
use crate::prove::ledger::tests::{House, answer, house, now, open_in};
use crate::prove::receipt::Receipt;
use crate::prove::salts::{Salts, Wrapping};
use crate::trail::Who;
use crate::verify::folder::SALTS;
use crate::verify::log::verify_dir;
use crate::verify::show::{Select, show};
use crate::verify::statement::Statement;

fn a() -> Arc<Who> {
    now().who.unwrap()
}

fn of_a() -> Erasure {
    Erasure::Subject { tenant: "acme".into(), caller: "api_key:a".into() }
}

fn entries(house: &House) -> Vec<Json> {
    show(&house.log(), Select::All).unwrap().collect::<io::Result<_>>().unwrap()
}

/// Whether the salt that is disclosed for `label` opens the statement's commitment to `content`.
async fn opens(house: &House, receipt: &Receipt, who: &Arc<Who>, audits: bool, content: &[u8]) -> Option<bool> {
    let id = receipt.id().unwrap();
    let disclosed = house.ledger.disclose(id, who, audits).await?;
    let statement = Statement::read(house.ledger.find(id, who, audits).await.unwrap().statement()).unwrap();
    let told = disclosed["commitments"].as_array().unwrap().iter().find(|told| told["label"] == "response").unwrap().clone();
    let salt: [u8; 32] = STANDARD.decode(told["salt"].as_str().unwrap()).unwrap().try_into().unwrap();
    let opened = commitment("response", &salt, &Digest::of(content));
    assert_eq!(told["commit"], STANDARD.encode(of_answer(&statement).as_bytes()));
    Some(of_answer(&statement) == opened)
}

fn of_answer(statement: &Statement) -> Digest {
    statement.commits().find(|(label, _)| *label == "response").unwrap().1
}

#[tokio::test]
async fn an_erasure_closes_the_commitments_of_one_caller_and_tells_only_that_it_was() {
    let house = house();
    let receipt = answer(&house.ledger, &Terms::default()).await.unwrap();
    let id = receipt.id().unwrap();
    assert_eq!(opens(&house, &receipt, &a(), false, b"the answer").await, Some(true));
    assert_eq!(opens(&house, &receipt, &a(), false, b"another answer").await, Some(false));

    let erased = house.ledger.erase(of_a()).await.unwrap();
    assert_eq!((erased.keys, erased.whose, erased.month, erased.seq), (1, Whose::Subject, None, 3));
    let told = entries(&house).pop().unwrap();
    assert_eq!((&told["kind"], &told["erasure"]), (&json!("erasure"), &json!({ "keys": 1, "of": "subject" })));
    assert_eq!(told["id"], erased.id.to_string());
    assert!(["principal", "req", "resp", "model"].iter().all(|key| told.get(key).is_none()));

    // Its receipt is there as before, and verifies; only what it commits to is closed, for an auditor too.
    assert!(house.ledger.find(id, &a(), false).await.is_some());
    assert_eq!(house.ledger.disclose(id, &a(), false).await, None);
    assert_eq!(house.ledger.disclose(id, &a(), true).await, None);
    house.published().await;
    let report = verify_dir(&house.log(), None).unwrap();
    assert!(report.ok, "{:?}", report.problems);
    assert_eq!(report.kinds["erasure"], 1);

    // Who comes again gets a new key, which opens what is new and claims nothing of the old.
    let again = answer(&house.ledger, &Terms::default()).await.unwrap();
    assert_eq!(opens(&house, &again, &a(), false, b"the answer").await, Some(true));
    assert_eq!(house.ledger.disclose(id, &a(), false).await, None);
    // And so it is after a restart.
    let House { folder, ledger, .. } = house;
    ledger.close();
    drop(ledger);
    let (ledger, opened, _events) = open_in(folder.path()).unwrap();
    assert!(!opened.salts_lost);
    assert_eq!(ledger.disclose(id, &a(), false).await, None);
    assert!(ledger.disclose(again.id().unwrap(), &a(), false).await.is_some());
}

/// All that could salt anything, from everything in a folder and the PEM: every key that unwraps at any byte of any file.
fn keys_anywhere(folder: &Path, wrapping: &Wrapping) -> Vec<[u8; 32]> {
    let (mut keys, mut left) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(std::fs::read_dir(path).unwrap().map(|file| file.unwrap().path()));
            continue;
        }
        match std::fs::read(&path) {
            Ok(bytes) => keys.extend(wrapping.every_key_in(&bytes)),
            // A partial tile that a wider one has replaced.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{}", path.display()),
        }
    }
    keys
}

#[tokio::test]
async fn after_an_erasure_the_whole_folder_and_the_pem_give_no_salt_of_that_caller() {
    let house = house();
    let receipt = answer(&house.ledger, &Terms::default()).await.unwrap();
    let mut other = now();
    other.who = Some(Arc::new(Who { caller: "api_key:b".into(), tenant: "acme".into(), tier: "".into(), method: "api_key" }));
    house.ledger.refuse(other, "infer.unavailable", StatusCode::SERVICE_UNAVAILABLE, HeaderMap::new(), "no".into()).await;
    let id = receipt.id().unwrap();
    let commit = of_answer(&Statement::read(house.ledger.find(id, &a(), false).await.unwrap().statement()).unwrap());
    let pem = std::fs::read(house.folder.path().join("provenance.key")).unwrap();
    let sealing = Key::from_pem(&pem).unwrap().sealing().clone();
    let wrapping = sealing.open(&std::fs::read(house.log().join(SALTS)).unwrap()).unwrap();
    let found = |folder: &Path| {
        let keys = keys_anywhere(folder, &wrapping);
        let salts = keys.iter().map(|key| salts::Salting::of(key, None).salt(id, "response"));
        (keys.len(), salts.filter(|salt| commitment("response", salt, &Digest::of(b"the answer")) == commit).count())
    };
    // Before, the way of looking finds it: the two callers' keys, and the month's.
    assert_eq!(found(&house.log()), (3, 1));
    house.ledger.erase(of_a()).await.unwrap();
    assert_eq!(found(&house.log()), (2, 0));
    // What this way of looking might miss, the program's own does not find either.
    house.ledger.close();
    let (salts, _) = Salts::open(&house.log(), &sealing, None, 100, 10).unwrap();
    assert!(salts.of_subject(&a(), u64::MAX).is_none());
}

#[tokio::test]
async fn neither_the_month_that_runs_nor_what_nobody_knows_is_erased_and_nothing_is_appended() {
    let house = house();
    answer(&house.ledger, &Terms::default()).await.unwrap();
    let before = entries(&house).len();
    let this_month = month(SystemTime::now());
    for erasure in [Erasure::Epoch(this_month), Erasure::Strangers(this_month)] {
        let error = house.ledger.erase(erasure).await.unwrap_err();
        assert!(matches!(error, EraseError::OperatorNamedThisMonth(month) if month == this_month), "{error}");
    }
    let nobody = Erasure::Subject { tenant: "acme".into(), caller: "api_key:nobody".into() };
    for erasure in [nobody, Erasure::Epoch(197_001), Erasure::Strangers(197_001), Erasure::Epoch(999_912)] {
        let error = house.ledger.erase(erasure).await.unwrap_err();
        assert!(matches!(error, EraseError::OperatorNamedUnknown), "{error}");
    }
    assert_eq!(entries(&house).len(), before);
}

#[tokio::test]
async fn with_its_epoch_a_month_forgets_whose_its_receipts_are() {
    let house = house();
    // A request that arrived months ago, as far as its statement says.
    let mut trail = now();
    trail.arrived.wall -= std::time::Duration::from_secs(100 * 86_400);
    let epoch = month(trail.arrived.wall);
    trail.id = fresh_at(trail.arrived.wall);
    let id = trail.id;
    let refused = house.ledger.refuse(trail, "infer.unavailable", StatusCode::SERVICE_UNAVAILABLE, HeaderMap::new(), "no".into()).await;
    assert!(refused.id().is_some());
    let statement = entries(&house).pop().unwrap();
    assert_eq!(statement["principal"]["epoch"], epoch);
    let erased = house.ledger.erase(Erasure::Epoch(epoch)).await.unwrap();
    assert_eq!((erased.whose, erased.month), (Whose::Epoch, Some(epoch)));
    let told = entries(&house).pop().unwrap();
    assert_eq!(told["erasure"], json!({ "keys": 1, "of": "epoch", "from": epoch, "to": epoch }));
    assert!(house.ledger.find(id, &a(), false).await.is_none(), "nobody can tell whose it is");
    house.published().await;
    assert!(verify_dir(&house.log(), None).unwrap().ok);
}

fn fresh_at(time: SystemTime) -> Uuid {
    let since = time.duration_since(std::time::UNIX_EPOCH).unwrap();
    crate::prove::statement::fresh_id(u64::try_from(since.as_nanos()).unwrap())
}

#[tokio::test]
async fn an_auditor_is_told_what_its_owner_is_told_and_anybody_else_nothing() {
    let house = house();
    let receipt = answer(&house.ledger, &Terms::default()).await.unwrap();
    let id = receipt.id().unwrap();
    let auditor = Arc::new(Who { caller: "api_key:auditor".into(), tenant: "".into(), tier: "".into(), method: "api_key" });
    assert_eq!(house.ledger.disclose(id, &auditor, false).await, None);
    assert!(house.ledger.find(id, &auditor, false).await.is_none());
    assert_eq!(house.ledger.disclose(id, &auditor, true).await, house.ledger.disclose(id, &a(), false).await);
    assert_eq!(opens(&house, &receipt, &auditor, true, b"the answer").await, Some(true));
    // What strangers sent is an auditor's alone, until the month is erased.
    let mut stranger = now();
    stranger.who = None;
    stranger.steps.clear();
    let refused = house.ledger.refuse(stranger, "authenticate.missing", StatusCode::UNAUTHORIZED, HeaderMap::new(), "who?".into()).await;
    assert_eq!(house.ledger.disclose(refused.id().unwrap(), &a(), false).await, None);
    assert_eq!(opens(&house, &refused, &auditor, true, b"who?").await, Some(true));
    // An entry that commits to nothing has nothing to disclose.
    let erased = house.ledger.erase(of_a()).await.unwrap();
    assert_eq!(house.ledger.disclose(erased.id, &auditor, true).await, None);
}

#[tokio::test]
async fn an_erasure_that_nobody_lived_to_tell_is_told_at_the_next_start() {
    let house = house();
    answer(&house.ledger, &Terms::default()).await.unwrap();
    let (log, old) = (house.log(), std::fs::read(house.log().join("salts")).unwrap());
    house.ledger.erase(of_a()).await.unwrap();
    let House { folder, ledger, .. } = house;
    ledger.close();
    drop(ledger);
    // As if the process had died before it had overwritten the old file.
    std::fs::write(log.join("salts.old"), &old).unwrap();
    let (ledger, _, _events) = open_in(folder.path()).unwrap();
    let told = show(&log, Select::All).unwrap().map(Result::unwrap).filter(|view| view["kind"] == "erasure");
    assert_eq!(told.map(|view| view["erasure"].clone()).collect::<Vec<_>>(), vec![json!({ "keys": 1, "of": "subject" }); 2]);
    assert!(!log.join("salts.old").exists());
    assert!(verify_dir(&log, None).unwrap().ok);
    assert!(matches!(ledger.erase(of_a()).await, Err(EraseError::OperatorNamedUnknown)));
}

#[tokio::test]
async fn a_log_that_takes_nothing_erases_nothing() {
    let house = house();
    let receipt = answer(&house.ledger, &Terms::default()).await.unwrap();
    let before = std::fs::read(house.log().join("salts")).unwrap();
    house.ledger.poison();
    assert!(matches!(house.ledger.erase(of_a()).await, Err(EraseError::Unavailable)));
    assert_eq!(std::fs::read(house.log().join("salts")).unwrap(), before);
    assert!(house.ledger.disclose(receipt.id().unwrap(), &a(), false).await.is_some());
}

#[tokio::test]
async fn a_log_whose_keys_are_lost_opens_and_says_so_and_one_of_another_pem_does_not() {
    let house = house();
    let id = answer(&house.ledger, &Terms::default()).await.unwrap().id().unwrap();
    let House { folder, ledger, .. } = house;
    ledger.close();
    drop(ledger);
    let path = folder.path().join("data/log/salts");
    std::fs::remove_file(&path).unwrap();
    let (ledger, opened, _events) = open_in(folder.path()).unwrap();
    assert!(opened.salts_lost);
    assert!(ledger.find(id, &a(), false).await.is_none());
    ledger.close();
    drop(ledger);
    let theirs = self::house();
    theirs.ledger.close();
    std::fs::copy(theirs.log().join("salts"), &path).unwrap();
    let error = open_in(folder.path()).map(drop).unwrap_err();
    assert!(error.to_string().contains("another log's key"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_made_while_their_caller_is_erased_are_proved_all_the_same() {
    let house = house();
    let asking = tokio::spawn({
        let ledger = house.ledger.clone();
        async move {
            let mut receipts = Vec::new();
            for _ in 0..400 {
                receipts.push(answer(&ledger, &Terms::default()).await.unwrap());
            }
            receipts
        }
    });
    let mut erasures = 0;
    while !asking.is_finished() {
        erasures += u64::from(house.ledger.erase(of_a()).await.is_ok());
    }
    let receipts = asking.await.unwrap();
    let after = answer(&house.ledger, &Terms::default()).await.unwrap();
    assert_eq!(opens(&house, &after, &a(), false, b"the answer").await, Some(true));
    let mut open = 0;
    for receipt in receipts.iter().step_by(7) {
        let told = opens(&house, receipt, &a(), false, b"the answer").await;
        assert_ne!(told, Some(false), "a wrong salt would read as a forged answer");
        open += u64::from(told.is_some());
    }
    assert!(erasures > 0 && open < 58, "{erasures} erasures, {open} can be opened");
    house.published().await;
    let report = verify_dir(&house.log(), None).unwrap();
    assert!(report.ok, "{:?}", report.problems);
    assert_eq!((report.kinds["inference"], report.kinds["erasure"]), (401, erasures));
}
