use std::net::IpAddr;
use std::time::{Duration, Instant, UNIX_EPOCH};

use ciborium::Value;
use http::Method;
use serde_json::json;

use super::*;
use crate::clock::Moment;
use crate::prove::disclosure::made_for;
use crate::tlog::Vkey;
use crate::trail::{Assurance, Content, Trace, Which, Who};
use crate::verify::statement::{CONTENT_TYPE, STOPS, Statement, id_of};

const SEED: &str =
    "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";

pub(in crate::prove) fn signer() -> Signer {
    let build = Build { binary: Some(Digest::of(b"program")), config: None };
    let key = Key::from_pem(SEED.as_bytes()).unwrap();
    // The open file outlives its folder.
    let folder = tempfile::tempdir().unwrap();
    let (salts, _) = Salts::open(folder.path(), key.sealing(), None, 0, 100).unwrap();
    Signer::new(key, "gateway.example/portcullis/node1".into(), build, Arc::new(salts))
}

pub(in crate::prove) fn trail(wall_seconds: u64) -> Trail {
    let arrived = Moment { mono: Instant::now(), wall: UNIX_EPOCH + Duration::from_secs(wall_seconds) };
    let trace = Trace { trace_id: [1; 16], span_id: [2; 8], sampled: false };
    let mut trail = Trail::new(arrived, IpAddr::from([192, 0, 2, 7]), Method::POST, "1.1", Digest::of(b"policy"), trace);
    trail.id = Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001);
    trail.route = "/v1/chat/completions".into();
    trail.who = Some(Arc::new(Who { caller: "api_key:a".into(), tenant: "acme".into(), tier: "".into(), method: "api_key" }));
    let (name, version, format) = ("digits".into(), "1".into(), "onnx".into());
    trail.which =
        Some(Arc::new(Which { name, version, digest: Some(Digest::of(b"model")), format, assurance: Assurance::VerifiedInProcess }));
    trail.request = Content { media_type: Some("application/json".into()), length: 7, digest: Some(Digest::of(b"request")) };
    for stop in [Stop::Accept, Stop::Authenticate, Stop::Authorize, Stop::Budget, Stop::Check, Stop::Detect, Stop::Infer] {
        trail.step(stop, Verdict::Passed, None, arrived.mono, arrived.mono + Duration::from_micros(30));
    }
    trail
}

pub(in crate::prove) fn sent() -> Sent<'static> {
    let digest = Digest::of(b"answer");
    Sent {
        status: 200,
        media_type: Some("application/json"),
        length: 6,
        digest,
        complete: true,
        code: None,
        usage: Some(Usage { input: 3, output: 5 }),
        events: None,
    }
}

#[test]
fn a_stop_has_the_name_that_it_has_on_the_way() {
    assert_eq!(Stop::ALL.map(Stop::as_str), STOPS);
    assert!(Stop::ALL.iter().enumerate().all(|(number, stop)| *stop as usize == number));
}

#[test]
fn a_stream_of_events_tells_how_many_and_commits_to_the_root_of_their_tree() {
    let root = Digest::of(b"root");
    let of = |events| Sent { media_type: Some("text/event-stream"), events, ..sent() };
    let entry = |events| signer().answer(Kind::Inference, 7, 1_800_000_001_000_000_000, &trail(1_800_000_000), &of(events));
    let statement = Statement::read(&entry(Some((300, root)))).unwrap();
    assert!(statement.signed_by(&signer().key.statement_vkey(&signer().origin)));
    let view = statement.view();
    assert_eq!(view["resp"]["n_events"], 300);
    let told = statement.commits().find(|(label, _)| *label == "events").unwrap().1;
    assert_eq!(view["resp"]["events_commit"], told.to_string());
    assert_ne!(told, root, "whoever holds a stream does not recognise it in the log");
    // Key 8 with a number of three bytes, key 9 with a string of 32.
    assert_eq!(entry(Some((300, root))).len(), entry(None).len() + 4 + 35);
    let view = Statement::read(&entry(None)).unwrap().view();
    assert_eq!((view["resp"].get("n_events"), view["resp"].get("events_commit")), (None, None));
}

#[test]
fn a_statement_verifies_reads_back_and_is_small() {
    let signer = signer();
    let entry = signer.answer(Kind::Inference, 7, 1_800_000_001_000_000_000, &trail(1_800_000_000), &sent());
    // An answer with every field that one has is 600 bytes long in a log whose name has 16.
    assert!((350..=584 + signer.origin.len()).contains(&entry.len()), "{}", entry.len());
    let statement = Statement::read(&entry).unwrap();
    let vkey = signer.key.statement_vkey(&signer.origin);
    assert!(statement.signed_by(&vkey));
    assert!(!statement.signed_by(&signer.key.log_vkey(&signer.origin)));
    assert!(!statement.signed_by(&Vkey { name: "another".into(), ..vkey }));
    assert_eq!((statement.kind, statement.seq, statement.issued), (Kind::Inference, 7, 1_800_000_001));
    let view = statement.view();
    assert_eq!(view["req"]["route"], "/v1/chat/completions");
    assert_eq!(view["model"]["sha256"], Digest::of(b"model").to_string());
    assert_eq!(view["resp"]["complete"], true);
    assert_eq!(view["usage"], json!({ "input": 3, "output": 5 }));
    assert_eq!(view["trail"][0], json!({ "stop": "accept", "verdict": "passed", "at_most_micros": 32 }));
    assert_eq!(view["principal"]["epoch"], 202_701);
    assert_eq!(view["kind"], "inference");
    let who = trail(0).who.unwrap();
    let salting = signer.salts.of_subject(&who, 7).unwrap();
    let commits = [("request", &b"request"[..]), ("response", b"answer")];
    let commits = commits.map(|(label, content)| (label, salting.commit(statement.id, label, &Digest::of(content))));
    assert_eq!(statement.commits().collect::<Vec<_>>(), commits);
    assert!(made_for(&statement, &who, &signer.salts));
    let other = Who { caller: "api_key:b".into(), tenant: "acme".into(), tier: "".into(), method: "api_key" };
    assert!(!made_for(&statement, &other, &signer.salts));
}

#[test]
fn the_same_facts_give_the_same_bytes_and_coset_reads_them() {
    use coset::TaggedCborSerializable;
    let trail = trail(1_800_000_000);
    let signer = signer();
    let entry = signer.answer(Kind::Inference, 7, 1_800_000_001_000_000_000, &trail, &sent());
    assert_eq!(entry, signer.answer(Kind::Inference, 7, 1_800_000_001_000_000_000, &trail, &sent()));
    let cose = coset::CoseSign1::from_tagged_slice(&entry).unwrap();
    let vkey = signer.key.statement_vkey("gateway.example/portcullis/node1");
    cose.verify_signature(b"", |signature, message| if vkey.verifies(message, signature) { Ok(()) } else { Err(()) }).unwrap();
    assert_eq!(cose.to_tagged_vec().unwrap(), entry);
}

#[test]
fn a_flipped_bit_anywhere_is_no_longer_signed() {
    let signer = signer();
    let entry = signer.answer(Kind::Inference, 7, 1_800_000_001_000_000_000, &trail(1_800_000_000), &sent());
    let vkey = signer.key.statement_vkey(&signer.origin);
    for at in 0..entry.len() {
        let mut bad = entry.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(Statement::read(&bad).map_or(true, |statement| !statement.signed_by(&vkey)), "byte {at}");
    }
    assert!(Statement::read(&entry[..entry.len() - 1]).is_err());
    assert!(Statement::read(&[&entry[..], &[0]].concat()).is_err());
}

#[test]
fn a_media_type_takes_two_bytes_where_it_has_a_number_and_reads_as_its_name() {
    let of = |media_type: &str| {
        let mut trail = trail(1_800_000_000);
        trail.request.media_type = Some(media_type.into());
        let entry =
            signer().answer(Kind::Inference, 7, 1_800_000_001_000_000_000, &trail, &Sent { media_type: Some(media_type), ..sent() });
        let view = Statement::read(&entry).unwrap().view();
        assert_eq!((&view["req"]["content_type"], &view["resp"]["content_type"]), (&json!(media_type), &json!(media_type)));
        entry.len()
    };
    let with_a_text = of("text/x");
    for media_type in ["application/json", "application/cbor", "application/octet-stream"] {
        // A number of 2 bytes in the place of a text of 1 and 6, twice.
        assert_eq!(of(media_type), with_a_text - 2 * 5, "{media_type}");
    }
    assert_eq!(of("Application/JSON"), with_a_text + 2 * 10, "nothing is taken for what it only resembles");
}

#[test]
fn an_entry_of_an_early_version_with_the_long_media_type_still_reads_and_verifies() {
    let signer = signer();
    let new = signer.answer(Kind::Inference, 7, 1_800_000_001_000_000_000, &trail(1_800_000_000), &sent());
    let Value::Tag(18, parts) = ciborium::from_reader::<Value, _>(&new[..]).unwrap() else { panic!() };
    let Value::Array(parts) = *parts else { panic!() };
    let payload = parts[2].as_bytes().unwrap();
    let id = Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001);
    let mut protected = Writer::with_room(192);
    protected.map(4).uint(1).negative(7).uint(3).text(CONTENT_TYPE).uint(4).bytes(&signer.kid);
    protected.uint(15).map(3).uint(1).text(&signer.origin).uint(2).text(&format!("{SUBJECT}{id}")).uint(6).uint(1_800_000_001);
    let protected = protected.done();
    let signature = signer.key.sign_statement(&to_be_signed(&protected, payload));
    let mut old = Writer::with_room(800);
    old.tag(18).array(4).bytes(&protected).map(0).bytes(payload).bytes(&signature);
    let old = old.done();
    let statement = Statement::read(&old).unwrap();
    assert!(statement.signed_by(&signer.key.statement_vkey(&signer.origin)));
    assert_eq!((statement.id, id_of(&old), old.len()), (id, Some(id), new.len() + 51));
}

fn refused(by: Stop) -> Trail {
    let mut trail = trail(1_800_000_000);
    trail.steps.retain(|step| step.stop < by);
    trail.steps.iter_mut().filter(|step| step.stop == Stop::Authorize).for_each(|step| step.rule = Some("a-cedar-rule".into()));
    trail.step(by, Verdict::Refused, Some("secret-rule".into()), trail.arrived.mono, trail.arrived.mono + Duration::from_micros(900));
    trail
}

#[test]
fn a_refusal_by_a_detector_reads_like_one_by_a_limit() {
    let signer = signer();
    let of = |stop| {
        let sent = Sent { status: 429, code: Some("budget.requests"), usage: None, ..sent() };
        signer.answer(Kind::Deny, 7, 1_800_000_001_000_000_000, &refused(stop), &sent)
    };
    assert_eq!(of(Stop::Budget), of(Stop::Detect));
    let view = Statement::read(&of(Stop::Detect)).unwrap().view();
    assert_eq!(view["trail"].as_array().unwrap().last().unwrap(), &json!({ "stop": "budget", "verdict": "refused", "at_most_micros": 0 }));
    assert!(!view.to_string().contains("rule"));
}

#[test]
fn no_statement_tells_what_a_detector_thought() {
    let mut trail = trail(1_800_000_000);
    trail.steps[5].verdict = Verdict::Shadowed;
    trail.steps[5].rule = Some("secret-rule".into());
    trail.steps[3].rule = Some("default".into());
    let view = Statement::read(&signer().answer(Kind::Inference, 7, 1, &trail, &sent())).unwrap().view();
    assert_eq!(view["trail"][5], json!({ "stop": "detect", "verdict": "passed", "at_most_micros": 32 }));
    assert_eq!(view["trail"][3]["rule"], "default");
    (trail.steps[3].verdict, trail.steps[3].rule) = (Verdict::Shadowed, Some("model.requests".into()));
    let view = Statement::read(&signer().answer(Kind::Inference, 7, 1, &trail, &sent())).unwrap().view();
    assert_eq!((&view["trail"][3]["verdict"], view["trail"][3].get("rule")), (&json!("shadowed"), None));
    let denied = signer().answer(Kind::Deny, 7, 1, &refused(Stop::Authorize), &sent());
    assert!(!Statement::read(&denied).unwrap().view().to_string().contains("rule"));
    let checked = signer().answer(Kind::Deny, 7, 1, &refused(Stop::Check), &sent());
    let view = Statement::read(&checked).unwrap().view();
    assert_eq!(view["trail"][4]["rule"], "secret-rule");
    assert_eq!(view["trail"][2].get("rule"), None);
}

#[test]
fn no_statement_tells_which_part_of_a_credential_did_not_hold_or_what_an_upstream_did_wrong() {
    for stop in [Stop::Authenticate, Stop::Authorize, Stop::Infer] {
        let refusal = signer().answer(Kind::Deny, 7, 1, &refused(stop), &sent());
        assert!(!Statement::read(&refusal).unwrap().view().to_string().contains("secret-rule"), "{stop:?}");
    }
}

#[test]
fn whatever_a_caller_sends_the_entry_stays_bounded() {
    let mut trail = trail(1_800_000_000);
    let long: Arc<str> = "ä".repeat(100_000).into();
    trail.request.media_type = Some(long.clone());
    trail.route = long.clone();
    trail.method = Method::from_bytes(&[b'A'; 70_000]).unwrap();
    (0..1_000).for_each(|_| trail.step(Stop::Check, Verdict::Shadowed, None, trail.arrived.mono, trail.arrived.mono));
    trail.steps.iter_mut().for_each(|step| step.rule = Some(long.clone()));
    let entry = signer().answer(Kind::Inference, u64::MAX, u64::MAX, &trail, &Sent { media_type: Some(&long), ..sent() });
    assert!(entry.len() < 12_000, "{}", entry.len());
    assert!(Statement::read(&entry).is_ok());
}

#[test]
fn endorsements_read_back() {
    let signer = signer();
    let first = Statement::read(&signer.endorsement(1)).unwrap();
    assert!(first.signed_by(&signer.key.log_vkey(&signer.origin)));
    assert_eq!(first.endorses(), [signer.key.statement_vkey("").key, signer.key.checkpoint_vkey("").key]);
}
