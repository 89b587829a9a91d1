use super::*;
use crate::prove::statement::tests::signer;
use crate::verify::statement::Statement;

fn full() -> Heartbeat<&'static str> {
    let mut census = Census::from(3);
    for (place, kind) in Kind::ALL.into_iter().enumerate() {
        census.add(kind, u64::MAX >> place);
    }
    census.bytes = u64::MAX;
    let traffic = Traffic { accepted: 9, forwarded: 7, abandoned: 1 };
    let suppressed = vec![("authorize.denied", 9), ("check.json", 4), ("accept.x", 1)];
    Heartbeat { gaps: 2, suppressed, resumed_after: Some(5), counted: Some(Counted { life: Life::Runs, traffic, census }) }
}

fn read(told: &Heartbeat<&'static str>) -> Statement {
    let signer = signer();
    let entry = signer.heartbeat(6, 1, 2, told);
    let statement = Statement::read(&entry).unwrap();
    assert!(statement.signed_by(&signer.key.statement_vkey(&signer.origin)));
    statement
}

#[test]
fn all_that_a_heartbeat_tells_reads_back() {
    let told = full();
    let statement = read(&told);
    let back = statement.heartbeat().unwrap();
    assert_eq!((back.gaps, back.resumed_after, statement.resumed_after()), (2, Some(5), Some(5)));
    assert_eq!(back.suppressed.len(), 3);
    let (counted, expected) = (back.counted.unwrap(), told.counted.unwrap());
    assert_eq!((counted.life, counted.traffic, counted.census.bytes), (Life::Runs, expected.traffic, u64::MAX));
    assert!(counted.census.kinds().eq(expected.census.kinds()));
    let view = statement.view();
    assert_eq!(view["counts"]["suppressed"]["check.json"], 4);
    assert_eq!((&view["counts"]["accepted"], &view["counts"]["statements"]["key-rotation"]), (&9.into(), &(u64::MAX >> 6).into()));
}

#[test]
fn every_life_reads_back_and_a_heartbeat_of_gaps_alone_counts_nothing() {
    for life in [Life::Began, Life::Runs, Life::Ended] {
        let counted = Some(Counted { life, traffic: Traffic::default(), census: Census::default() });
        assert_eq!(read(&Heartbeat { counted, ..Heartbeat::default() }).heartbeat().unwrap().counted, counted);
    }
    let statement = read(&Heartbeat { gaps: 1, ..Heartbeat::default() });
    assert_eq!(statement.heartbeat().unwrap(), Heartbeat { gaps: 1, ..Heartbeat::default() });
    assert_eq!(statement.view()["counts"], serde_json::json!({ "gaps": 1 }));
}

#[test]
fn codes_up_to_the_bound_are_told_and_no_more_and_the_entry_stays_small() {
    let codes: Vec<String> = (0..=MAX_CODES).map(|code| format!("check.{code}")).collect();
    let codes: Vec<(&'static str, u64)> = codes.into_iter().map(|code| (&*code.leak(), 1)).collect();
    for (given, kept) in [(MAX_CODES, MAX_CODES), (MAX_CODES + 1, MAX_CODES)] {
        let told = Heartbeat { suppressed: codes[..given].to_vec(), ..full() };
        assert_eq!(read(&told).heartbeat().unwrap().suppressed.len(), kept);
    }
    assert!(signer().heartbeat(6, 1, 2, &full()).len() < 700);
}
