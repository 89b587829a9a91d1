use super::*;

const NOW: u64 = 1_800_000_000;

struct Case {
    desk: Desk,
    price: Price,
    now: Moment,
}

fn case() -> Case {
    let now = Moment { mono: Instant::now(), wall: std::time::UNIX_EPOCH + Duration::from_secs(NOW) };
    let price = Price { caller: "api_key:thief".into(), model: "digits".into(), rows: 1, due: Difficulty::LEAST };
    let desk = Desk::new(&Secret::new(vec![7; 32]), now.mono);
    assert_eq!(desk.time(now), NOW);
    Case { desk, price, now }
}

pub(in crate::detect) fn bring(header: &str) -> Brought {
    Brought(Some(header.into()))
}

impl Case {
    fn challenge(&self, nonce: u8) -> String {
        self.desk.challenge(&self.price, [nonce; 16], NOW)
    }

    async fn take(&self, header: &str) -> Result<(), Error> {
        self.take_for(&self.price, header).await
    }

    async fn take_for(&self, price: &Price, header: &str) -> Result<(), Error> {
        self.desk.take(&bring(header), price, self.now).await
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

pub(in crate::detect) fn solved(challenge: &str) -> String {
    with(challenge, counter(challenge, true))
}

#[tokio::test]
async fn work_is_taken_once() {
    let case = case();
    let work = solved(&case.challenge(1));
    assert_eq!(case.take(&work).await, Ok(()));
    assert_eq!(case.take(&work).await, Err(Error::CallerSentTwice));
}

#[tokio::test]
async fn a_clock_that_is_set_back_or_forward_makes_no_challenge_good_again_and_ends_none() {
    let mut case = case();
    let (first, second) = (solved(&case.challenge(1)), solved(&case.challenge(2)));
    assert_eq!(case.take(&first).await, Ok(()));
    case.now.wall += Duration::from_secs(86_400);
    assert_eq!(case.take(&second).await, Ok(()));
    // What was spent is forgotten when it has ended.
    case.now.mono += case.price.due.lasts() + Duration::from_secs(2);
    case.now.wall -= Duration::from_secs(2 * 86_400);
    assert_eq!(case.take(&first).await, Err(Error::CallerWasLate));
    assert_eq!(case.take(&second).await, Err(Error::CallerWasLate));
}

#[tokio::test]
async fn work_whose_request_was_held_back_is_not_taken_again_once_its_challenge_was_forgotten() {
    let case = case();
    let work = solved(&case.challenge(1));
    assert_eq!(case.take(&work).await, Ok(()));
    // Another challenge, when the first has ended, has what was kept of that one thrown away.
    let later = case.now.after(case.price.due.lasts() + Duration::from_secs(2));
    let other = case.desk.challenge(&case.price, [2; 16], later.unix_seconds());
    let wrong = with(&other, counter(&other, false));
    assert_eq!(case.desk.take(&bring(&wrong), &case.price, later).await, Err(Error::CallerSentWrong));
    // A request that came before and whose body came only now.
    assert_eq!(case.take(&work).await, Err(Error::CallerWasLate));
}

#[tokio::test]
async fn a_wrong_counter_spends_the_challenge() {
    let case = case();
    let challenge = case.challenge(1);
    assert_eq!(case.take(&with(&challenge, counter(&challenge, false))).await, Err(Error::CallerSentWrong));
    assert_eq!(case.take(&solved(&challenge)).await, Err(Error::CallerSentTwice));
}

#[tokio::test]
async fn a_challenge_is_for_its_caller_its_model_its_rows_and_its_process() {
    let mut case = case();
    let work = solved(&case.challenge(1));
    for other in [
        Price { caller: "api_key:other".into(), ..case.price.clone() },
        Price { model: "other".into(), ..case.price.clone() },
        Price { rows: 2, ..case.price.clone() },
    ] {
        assert_eq!(case.take_for(&other, &work).await, Err(Error::CallerSentForeign), "{other:?}");
    }
    let restarted = Desk::new(&Secret::new(vec![8; 32]), case.now.mono);
    let here = std::mem::replace(&mut case.desk, restarted);
    assert_eq!(case.take(&work).await, Err(Error::CallerSentForeign));
    case.desk = here;
    assert_eq!(case.take(&work).await, Ok(()));
}

#[tokio::test]
async fn no_part_of_a_challenge_can_be_changed() {
    let mut case = case();
    case.price.due = Difficulty::of(9);
    let challenge = case.challenge(1);
    let cheaper = challenge.replacen("v1.9.", "v1.2.", 1);
    assert_ne!(cheaper, challenge);
    assert_eq!(case.take(&with(&cheaper, 0)).await, Err(Error::CallerSentForeign));
    let mut parts: Vec<String> = challenge.split('.').map(str::to_owned).collect();
    parts[2] = format!("{:x}", u64::from_str_radix(&parts[2], 16).unwrap() + 1);
    assert_eq!(case.take(&with(&parts.join("."), 0)).await, Err(Error::CallerSentForeign));
}

#[test]
fn names_cannot_run_into_one_another() {
    let Case { desk, price, .. } = case();
    let named = |caller: &str, model: &str| Price { caller: caller.into(), model: model.into(), ..price.clone() };
    assert_ne!(desk.tag("t", &named("ab", "c")), desk.tag("t", &named("a", "bc")));
}

#[tokio::test]
async fn a_challenge_ends() {
    let mut case = case();
    let (work, begun) = (solved(&case.challenge(1)), case.now);
    case.now = begun.after(Difficulty::LEAST.lasts());
    assert_eq!(case.take(&work).await, Err(Error::CallerWasLate));
    case.now = begun.after(Difficulty::LEAST.lasts() - Duration::from_secs(1));
    assert_eq!(case.take(&work).await, Ok(()));
}

#[tokio::test]
async fn the_price_may_rise_by_a_bit_while_the_caller_works_and_no_more() {
    let case = case();
    let work = solved(&case.challenge(1));
    let due = |bits| Price { due: Difficulty::of(bits), ..case.price.clone() };
    assert_eq!(case.take_for(&due(4), &work).await, Err(Error::CallerWorkedTooLittle));
    assert_eq!(case.take_for(&due(3), &work).await, Ok(()));
}

#[tokio::test]
async fn what_is_brought_back_is_remembered_until_it_ends_and_there_is_room_for_64() {
    let mut case = case();
    for nonce in 0..MOST_OPEN as u8 {
        // Solved or not, it is spent.
        let taken = case.take(&with(&case.challenge(nonce), 0)).await;
        assert!(matches!(taken, Ok(()) | Err(Error::CallerSentWrong)), "{taken:?}");
    }
    let one_more = solved(&case.challenge(200));
    assert_eq!(case.take(&one_more).await, Err(Error::CallerSentTooMany));
    // Another caller is not held up by it.
    let other = Price { caller: "api_key:other".into(), ..case.price.clone() };
    let theirs = solved(&case.desk.challenge(&other, [1; 16], NOW));
    assert_eq!(case.take_for(&other, &theirs).await, Ok(()));
    // When they have ended there is room again.
    let later = Difficulty::LEAST.lasts() + Duration::from_secs(1);
    let challenge = case.desk.challenge(&case.price, [9; 16], NOW + later.as_secs());
    case.now = case.now.after(later);
    assert_eq!(case.take(&solved(&challenge)).await, Ok(()));
}

#[tokio::test]
async fn callers_who_pay_are_remembered_up_to_the_cap_and_those_past_it_are_not_answered() {
    let mut case = case();
    case.desk.spent = Gate::new(1);
    // One place behind each of 64 locks.
    let (mut taken, mut full) = (0, 0);
    for name in 0..300 {
        let price = Price { caller: format!("api_key:{name}").into(), ..case.price.clone() };
        let work = with(&case.desk.challenge(&price, [1; 16], NOW), 0);
        match case.take_for(&price, &work).await {
            Ok(()) | Err(Error::CallerSentWrong) => taken += 1,
            Err(error) => {
                assert_eq!(error, Error::Full);
                full += 1;
            }
        }
    }
    assert!((1..=64).contains(&taken) && taken + full == 300, "{taken}, {full}");
}

#[tokio::test]
async fn what_is_not_of_the_form_is_refused_before_anything_is_computed() {
    let case = case();
    let challenge = case.challenge(1);
    let right = solved(&challenge);
    let too_long = format!("{right}{}", "0".repeat(MOST_HEADER_BYTES));
    let upper = right.to_uppercase().replacen("V1", "v1", 1);
    for wrong in ["", ".", "v1", "v1.2.3.4.5.6", &challenge, &format!("{right}0"), &right.replacen("v1", "v2", 1), &too_long, &upper] {
        assert_eq!(case.take(wrong).await, Err(Error::CallerSentMalformed), "{wrong}");
    }
    // More bits than a challenge has, fewer, and the same number written otherwise.
    for bits in ["11", "1", "02"] {
        let work = right.replacen("v1.2.", &format!("v1.{bits}."), 1);
        assert_eq!(case.take(&work).await, Err(Error::CallerSentMalformed), "{bits}");
    }
    assert!(right.len() <= MOST_HEADER_BYTES);
}

#[test]
fn a_head_brings_one_line_of_work_and_no_longer_one_than_any_challenge_is() {
    let of = |lines: &[&[u8]]| {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(WORK_HEADER, http::HeaderValue::from_bytes(line).unwrap());
        }
        Brought::of_request(&headers)
    };
    assert_eq!(of(&[]), Brought::default());
    assert_eq!(of(&[&[b'0'; MOST_HEADER_BYTES]]), bring(&"0".repeat(MOST_HEADER_BYTES)));
    assert_eq!(of(&[&[b'0'; MOST_HEADER_BYTES + 1]]), bring(""));
    assert_eq!(of(&[b"v1.2", b"v1.2"]), bring(""));
    assert_eq!(of(&[b"\xff"]), bring(""));
}

#[tokio::test]
async fn no_more_looks_are_taken_at_the_same_time_than_there_are_places_for() {
    let case = case();
    let work = solved(&case.challenge(1));
    let places = case.desk.looks.clone().acquire_many_owned(MOST_LOOKS as u32).await.unwrap();
    assert!(case.desk.looks.clone().try_acquire_owned().is_err());
    let (brought, patience) = (bring(&work), Duration::from_millis(50));
    assert!(tokio::time::timeout(patience, case.desk.take(&brought, &case.price, case.now)).await.is_err());
    drop(places);
    // Who does not wait for the look has spent the challenge all the same.
    assert_eq!(case.take(&work).await, Err(Error::CallerSentTwice));
    let another = solved(&case.challenge(2));
    assert_eq!(case.take(&another).await, Ok(()));
    assert_eq!(case.desk.looks.available_permits(), MOST_LOOKS);
}

#[tokio::test]
async fn what_comes_of_work_is_counted_by_its_end() {
    let case = case();
    assert_eq!(case.desk.take(&Brought::default(), &case.price, case.now).await, Err(Error::CallerSentNone));
    let work = solved(&case.challenge(1));
    for _ in 0..3 {
        let _ = case.take(&work).await;
    }
    let counted: Vec<_> = case.desk.outcomes().filter(|(_, count)| *count > 0).collect();
    assert_eq!(counted, [("taken", 1), ("none", 1), ("twice", 2)]);
    assert_eq!(case.desk.challenges(), 1);
    for (at, error) in Error::ALL.into_iter().enumerate() {
        assert_eq!(error as usize, at);
    }
}

#[test]
fn on_the_step_no_row_is_cheaper_than_at_three_quarters_of_a_budget() {
    let bits = |spent, rows| Difficulty::on_the_step(spent, rows).bits();
    assert_eq!((bits(0.0, 1), bits(0.5, 1), bits(0.75, 1), bits(0.874, 1), bits(0.875, 1), bits(1.0, 1)), (6, 6, 6, 7, 8, 10));
    assert_eq!((bits(0.0, 0), bits(0.0, 2), bits(0.0, 3), bits(0.0, 64)), (6, 7, 8, 12), "a batch costs what its rows would");
    assert_eq!((bits(0.0, 1_024), bits(0.0, 1_025), bits(0.0, u32::MAX), bits(f64::NAN, 1)), (16, 16, 16, 16), "and the most is the most");
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
