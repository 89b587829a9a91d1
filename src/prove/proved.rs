//! Whether every entry of a log, as this gateway writes it, is proved from its folder alone, and nothing else is.

use std::fs;

use crate::prove::config::Terms;
use crate::prove::ledger::tests::{answer, house};
use crate::verify::entries::Entries;
use crate::verify::folder::CHECKPOINT_COSE;
use crate::verify::proof::verify_receipt;
use crate::verify::proved::{NoProof, Proved};
use crate::verify::show::Select;

#[tokio::test]
async fn every_entry_of_a_folder_is_proved_by_id_by_number_and_by_index() {
    let house = house();
    for _ in 0..300 {
        answer(&house.ledger, &Terms::default()).await.unwrap();
    }
    house.ledger.close();
    let (log, keys) = (house.log(), house.ledger.vkeys());
    let mut size = 0;
    for (index, entry) in Entries::of(&log).unwrap().map(Result::unwrap) {
        let by_index = Proved::in_folder(&log, Select::Index(index)).unwrap();
        assert_eq!(by_index.entry(), &entry);
        let receipt = by_index.receipt();
        let proved = verify_receipt(&receipt, &entry, &keys[0]).unwrap();
        assert_eq!(proved.0, index);
        assert!(verify_receipt(&receipt, &entry[1..], &keys[0]).is_err());
        assert!(verify_receipt(&receipt, &entry, &keys[1]).is_err());
        for select in [Select::Id(by_index.statement().id), Select::Seq(by_index.statement().seq)] {
            assert_eq!(Proved::in_folder(&log, select).unwrap().receipt(), receipt);
        }
        size = proved.1;
    }
    assert!(size > 300);
    for nothing in [Select::Index(size), Select::Seq(u64::MAX), Select::Id(uuid::Uuid::now_v7()), Select::Id(uuid::Uuid::nil())] {
        assert!(matches!(Proved::in_folder(&log, nothing), Err(NoProof::NoSuchEntry)), "{nothing:?}");
    }
    fs::write(log.join(CHECKPOINT_COSE), b"another").unwrap();
    assert!(matches!(Proved::in_folder(&log, Select::Index(0)), Err(NoProof::Checkpoint(_))));
}

#[tokio::test]
async fn a_tile_that_is_gone_from_a_log_of_which_nothing_was_pruned_is_missing() {
    let house = house();
    for _ in 0..300 {
        answer(&house.ledger, &Terms::default()).await.unwrap();
    }
    house.ledger.close();
    fs::remove_file(house.log().join("tile/entries/000")).unwrap();
    for select in [Select::Index(3), Select::Seq(3)] {
        let why = Proved::in_folder(&house.log(), select).unwrap_err();
        assert!(matches!(why, NoProof::Tree(_)) && why.may_pass() && why.to_string().contains("tile/entries/000"), "{why}");
    }
    assert_eq!(Entries::first_index(&house.log()).unwrap(), 0);
}

#[tokio::test]
async fn a_flipped_bit_in_a_receipt_proves_nothing() {
    let house = house();
    answer(&house.ledger, &Terms::default()).await.unwrap();
    house.ledger.close();
    let found = Proved::in_folder(&house.log(), Select::Index(1)).unwrap();
    let receipt = found.receipt();
    for at in 0..receipt.len() * 8 {
        let mut bad = receipt.clone();
        bad[at / 8] ^= 1 << (at % 8);
        let outcome = verify_receipt(&bad, found.entry(), &house.ledger.vkeys()[0]);
        assert!(outcome.is_err(), "bit {at}: {outcome:?}");
    }
}
