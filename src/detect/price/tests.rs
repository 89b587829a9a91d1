use super::*;

const NOW: u64 = 1_800_000_000;

struct Case {
    desk: Desk,
    caller: Arc<str>,
    mono: Instant,
}

fn case() -> Case {
    let mono = Instant::now();
    Case { desk: Desk::new(&Secret::new(vec![7; 32]), mono), caller: "api_key:thief".into(), mono }
}

impl Case {
    fn challenge(&self, nonce: u8) -> String {
        self.desk.challenge(&self.caller, "digits", Difficulty::LEAST, [nonce; 16], NOW)
    }

    fn take(&self, header: &str) -> Result<Difficulty, Error> {
        self.desk.take(header, &self.caller, "digits", Difficulty::LEAST, NOW, self.mono)
    }
}

fn with(challenge: &str, counter: u64) -> String {
    format!("{challenge}.{counter:016x}")
}

/// A counter for which it is `right`.
fn counter(challenge: &str, right: bool) -> u64 {
    let difficulty = Work::read(&with(challenge, 0)).unwrap().difficulty;
    (0..).find(|counter: &u64| (zeros(&attempt(challenge, counter.to_be_bytes())) >= u32::from(difficulty.bits())) == right).unwrap()
}

fn solved(challenge: &str) -> String {
    with(challenge, counter(challenge, true))
}

#[test]
fn work_is_taken_once() {
    let case = case();
    let work = solved(&case.challenge(1));
    assert_eq!(case.take(&work), Ok(Difficulty::LEAST));
    assert_eq!(case.take(&work), Err(Error::CallerSentTwice));
}

#[test]
fn a_wrong_counter_spends_the_challenge() {
    let case = case();
    let challenge = case.challenge(1);
    assert_eq!(case.take(&with(&challenge, counter(&challenge, false))), Err(Error::CallerSentWrong));
    assert_eq!(case.take(&solved(&challenge)), Err(Error::CallerSentTwice));
}

#[test]
fn a_challenge_is_for_its_caller_its_model_and_its_process() {
    let case = case();
    let work = solved(&case.challenge(1));
    let other: Arc<str> = "api_key:other".into();
    let take = |desk: &Desk, caller, model| desk.take(&work, caller, model, Difficulty::LEAST, NOW, case.mono);
    assert_eq!(take(&case.desk, &other, "digits"), Err(Error::CallerSentForeign));
    assert_eq!(take(&case.desk, &case.caller, "other"), Err(Error::CallerSentForeign));
    let restarted = Desk::new(&Secret::new(vec![8; 32]), case.mono);
    assert_eq!(take(&restarted, &case.caller, "digits"), Err(Error::CallerSentForeign));
    assert_eq!(case.take(&work), Ok(Difficulty::LEAST));
}

#[test]
fn no_part_of_a_challenge_can_be_changed() {
    let case = case();
    let challenge = case.desk.challenge(&case.caller, "digits", Difficulty::of(9), [1; 16], NOW);
    let cheaper = challenge.replacen("v1.9.", "v1.2.", 1);
    assert_ne!(cheaper, challenge);
    assert_eq!(case.take(&with(&cheaper, 0)), Err(Error::CallerSentForeign));
    let mut parts: Vec<String> = challenge.split('.').map(str::to_owned).collect();
    parts[2] = format!("{:x}", u64::from_str_radix(&parts[2], 16).unwrap() + 1);
    assert_eq!(case.take(&with(&parts.join("."), 0)), Err(Error::CallerSentForeign));
}

#[test]
fn names_cannot_run_into_one_another() {
    let case = case();
    assert_ne!(case.desk.tag("t", "ab", "c"), case.desk.tag("t", "a", "bc"));
}

#[test]
fn a_challenge_ends() {
    let case = case();
    let work = solved(&case.challenge(1));
    let lasts = Difficulty::LEAST.lasts().as_secs();
    let take = |now| case.desk.take(&work, &case.caller, "digits", Difficulty::LEAST, now, case.mono);
    assert_eq!(take(NOW + lasts), Err(Error::CallerWasLate));
    assert_eq!(take(NOW + lasts - 1), Ok(Difficulty::LEAST));
}

#[test]
fn the_price_may_rise_by_a_bit_while_the_caller_works_and_no_more() {
    let case = case();
    let work = solved(&case.challenge(1));
    let take = |due| case.desk.take(&work, &case.caller, "digits", Difficulty::of(due), NOW, case.mono);
    assert_eq!(take(4), Err(Error::CallerWorkedTooLittle));
    assert_eq!(take(3), Ok(Difficulty::LEAST));
}

#[test]
fn what_is_brought_back_is_remembered_until_it_ends_and_there_is_room_for_64() {
    let case = case();
    for nonce in 0..MOST_OPEN as u8 {
        // Solved or not, it is spent.
        let taken = case.take(&with(&case.challenge(nonce), 0));
        assert!(matches!(taken, Ok(_) | Err(Error::CallerSentWrong)), "{taken:?}");
    }
    let one_more = solved(&case.challenge(200));
    assert_eq!(case.take(&one_more), Err(Error::CallerSentTooMany));
    // Another caller is not held up by it.
    let other: Arc<str> = "api_key:other".into();
    let theirs = solved(&case.desk.challenge(&other, "digits", Difficulty::LEAST, [1; 16], NOW));
    assert_eq!(case.desk.take(&theirs, &other, "digits", Difficulty::LEAST, NOW, case.mono), Ok(Difficulty::LEAST));
    // When they have ended there is room again.
    let later = Difficulty::LEAST.lasts().as_secs() + 1;
    let challenge = case.desk.challenge(&case.caller, "digits", Difficulty::LEAST, [9; 16], NOW + later);
    let mono = case.mono + Duration::from_secs(later);
    let taken = case.desk.take(&solved(&challenge), &case.caller, "digits", Difficulty::LEAST, NOW + later, mono);
    assert_eq!(taken, Ok(Difficulty::LEAST));
}

#[test]
fn what_is_not_of_the_form_is_refused_before_anything_is_computed() {
    let case = case();
    let challenge = case.challenge(1);
    let right = solved(&challenge);
    let too_long = format!("{right}{}", "0".repeat(MOST_HEADER_BYTES));
    let upper = right.to_uppercase().replacen("V1", "v1", 1);
    for wrong in ["", ".", "v1", "v1.2.3.4.5.6", &challenge, &format!("{right}0"), &right.replacen("v1", "v2", 1), &too_long, &upper] {
        assert_eq!(case.take(wrong), Err(Error::CallerSentMalformed), "{wrong}");
    }
    // More bits than a challenge has, fewer, and the same number written otherwise.
    for bits in ["11", "1", "02"] {
        assert_eq!(case.take(&right.replacen("v1.2.", &format!("v1.{bits}."), 1)), Err(Error::CallerSentMalformed), "{bits}");
    }
    assert!(right.len() <= MOST_HEADER_BYTES);
}

#[test]
fn the_price_follows_what_is_spent() {
    let bits = |spent, rows| Difficulty::of_spent(spent, rows).map(Difficulty::bits);
    assert_eq!(bits(0.0, 1), None);
    assert_eq!(bits(0.5, 1_000), None, "half of a budget is free");
    assert_eq!(bits(0.501, 1), Some(2));
    assert_eq!(bits(0.75, 1), Some(6));
    assert_eq!(bits(1.0, 1), Some(10));
    assert_eq!(bits(1.1, 1), Some(11));
    assert_eq!(bits(1.0, 2), Some(11));
    assert_eq!(bits(1.0, 3), Some(12), "a batch costs what its rows would, and no less");
    assert_eq!(bits(1.0, 0), Some(10));
    assert_eq!(bits(9.0, 1), Some(16));
    assert_eq!(bits(f64::INFINITY, u32::MAX), Some(16));
    assert_eq!(bits(f64::NAN, 1), Some(16));
    assert!(Difficulty::MOST.lasts() < Duration::from_secs(1_000));
}

#[test]
fn the_work_is_argon2id_as_everybody_else_computes_it() {
    // argon2-cffi 25.1: hash_secret_raw(bytes(8), sha256(b"challenge")[:16], 1, 1024, 1, 16, Type.ID)
    assert_eq!(hex(&attempt("challenge", [0; 8])), "5c0747285a16923c14c11913809e067e");
    assert_eq!(zeros(&[0; 16]), 128);
    assert_eq!(zeros(&[0x00, 0x1f, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 11);
}

#[test]
#[ignore = "measures, decides nothing"]
fn what_one_attempt_costs() {
    let begun = Instant::now();
    for at in 0..200_u64 {
        std::hint::black_box(attempt("challenge", at.to_be_bytes()));
    }
    println!("one attempt {:.2} ms", begun.elapsed().as_secs_f64() * 1e3 / 200.0);
}
