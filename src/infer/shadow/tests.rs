use bytes::Bytes;

use super::*;

fn terms(compare: Compare, tolerance: f64) -> Shadowing {
    Shadowing { sample: 1.0, tolerance, compare }
}

fn floats32(name: &str, shape: &[u64], values: &[f32]) -> Tensor {
    let data = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    Tensor { name: name.to_owned(), datatype: Datatype::Fp32, shape: shape.to_vec(), data: data.into() }
}

fn integers(values: &[i64]) -> Tensor {
    let data = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    Tensor { name: "label".to_owned(), datatype: Datatype::Int64, shape: vec![values.len() as u64], data: data.into() }
}

fn judged(one: &[f32], other: &[f32], terms: Shadowing) -> (bool, f64) {
    compared(&[floats32("y", &[1, one.len() as u64], one)], &[floats32("y", &[1, other.len() as u64], other)], terms)
}

#[test]
fn values_agree_at_the_tolerance_and_differ_past_it() {
    // Numbers that binary floating point holds exactly.
    assert_eq!(judged(&[1.0, 2.0], &[1.25, 2.0], terms(Compare::Values, 0.25)), (true, 0.25));
    assert_eq!(judged(&[1.0, 2.0], &[1.25, 2.0], terms(Compare::Values, 0.125)), (false, 0.25));
    assert_eq!(judged(&[1.0], &[1.0], terms(Compare::Values, 0.0)), (true, 0.0));
}

#[test]
fn labels_agree_where_the_largest_value_stands_in_the_same_place_of_every_row() {
    let by_label = terms(Compare::Labels, 0.0);
    assert_eq!(judged(&[0.25, 0.75], &[0.5, 1.0], by_label), (true, 0.25));
    assert_eq!(judged(&[0.25, 0.75], &[0.75, 0.25], by_label), (false, 0.5));
    let rows = |values: &[f32]| [floats32("y", &[2, 2], values)];
    assert!(compared(&rows(&[1.0, 0.0, 0.0, 1.0]), &rows(&[9.0, 0.0, 0.0, 9.0]), by_label).0);
    assert!(!compared(&rows(&[1.0, 0.0, 0.0, 1.0]), &rows(&[1.0, 0.0, 1.0, 0.0]), by_label).0);
}

#[test]
fn what_is_no_number_agrees_with_its_like_alone_and_is_no_difference() {
    let close = terms(Compare::Values, 0.5);
    assert_eq!(judged(&[f32::NAN, f32::INFINITY], &[f32::NAN, f32::INFINITY], close), (true, 0.0));
    assert_eq!(judged(&[f32::NAN], &[1.0], close), (false, 0.0));
    assert_eq!(judged(&[f32::INFINITY], &[1.0], close), (false, 0.0));
    assert_eq!(judged(&[f32::INFINITY], &[f32::NEG_INFINITY], close), (false, 0.0));
}

#[test]
fn other_types_agree_bit_by_bit_and_other_shapes_names_and_numbers_of_outputs_never() {
    let wide = terms(Compare::Values, 1e9);
    assert!(compared(&[integers(&[1, 2])], &[integers(&[1, 2])], wide).0);
    assert!(!compared(&[integers(&[1, 2])], &[integers(&[1, 3])], wide).0);
    let y = || floats32("y", &[1, 2], &[1.0, 2.0]);
    assert!(!compared(&[y()], &[floats32("y", &[2, 1], &[1.0, 2.0])], wide).0);
    assert!(!compared(&[y()], &[floats32("z", &[1, 2], &[1.0, 2.0])], wide).0);
    assert!(!compared(&[y()], &[y(), integers(&[1])], wide).0);
    assert!(!compared(&[y(), integers(&[1])], &[y()], wide).0);
    assert!(compared(&[y(), integers(&[1])], &[integers(&[1]), y()], wide).0, "in whatever order");
}

#[test]
fn every_floating_type_is_read() {
    let one = |datatype, data: &[u8]| {
        let tensor = Tensor { name: String::new(), datatype, shape: vec![1], data: Bytes::copy_from_slice(data) };
        floats(&tensor).map(|values| values.all().collect::<Vec<_>>())
    };
    assert_eq!(one(Datatype::Fp32, &1.5_f32.to_le_bytes()), Some(vec![1.5]));
    assert_eq!(one(Datatype::Fp64, &1.5_f64.to_le_bytes()), Some(vec![1.5]));
    assert_eq!(one(Datatype::Fp16, &half::f16::from_f32(1.5).to_le_bytes()), Some(vec![1.5]));
    assert_eq!(one(Datatype::Bf16, &half::bf16::from_f32(1.5).to_le_bytes()), Some(vec![1.5]));
    assert_eq!(one(Datatype::Uint8, &[1]), None);
}

#[tokio::test]
async fn an_answer_that_is_too_large_to_be_compared_in_place_is_compared_all_the_same() {
    for (over, expected) in [(0, [1, 0]), (1, [0, 1])] {
        let values = vec![1.0; COMPARED_IN_PLACE / 4 + over];
        let mut others = values.clone();
        if over > 0 {
            *others.last_mut().unwrap() = 2.0;
        }
        let tally = Arc::new(Tally::default());
        let shape = [1, values.len() as u64];
        let theirs = vec![floats32("y", &shape, &others)];
        let given = vec![floats32("y", &shape, &values)].into();
        tally.follow(terms(Compare::Values, 0.0), given, |_| async { Ok(theirs) });
        while tally.room.available_permits() < AT_ONCE {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!([Outcome::Agree, Outcome::Differ].map(|outcome| tally.count(outcome)), expected);
    }
}

#[test]
fn a_sample_takes_its_share_of_requests() {
    let taken = |sample| (0..20_000).filter(|_| sampled(Uuid::now_v7(), sample)).count();
    assert_eq!(taken(1.0), 20_000);
    assert!((1_788..=2_212).contains(&taken(0.1)));
    assert!(sampled(Uuid::from_u128(0), f64::MIN_POSITIVE) && sampled(Uuid::from_u128(u128::MAX), 1.0));
    assert!(!sampled(Uuid::from_u128(1 << 31), 0.5));
}

#[tokio::test]
async fn as_many_comparisons_run_as_may_and_one_more_is_skipped() {
    let tally = Arc::new(Tally::default());
    let given: Arc<[Tensor]> = vec![integers(&[1])].into();
    let (release, released) = tokio::sync::watch::channel(false);
    let ask = |answer: i64| {
        let mut released = released.clone();
        tally.follow(terms(Compare::Values, 0.0), given.clone(), |_| async move {
            let _ = released.wait_for(|released| *released).await;
            Ok(vec![integers(&[answer])])
        });
    };
    (0..AT_ONCE as i64).for_each(ask);
    assert_eq!(tally.count(Outcome::Skipped), 0);
    ask(1);
    assert_eq!(tally.count(Outcome::Skipped), 1);
    release.send(true).unwrap();
    while tally.room.available_permits() < AT_ONCE {
        tokio::task::yield_now().await;
    }
    assert_eq!([Outcome::Agree, Outcome::Differ, Outcome::Failed].map(|outcome| tally.count(outcome)), [1, AT_ONCE as u64 - 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_shadow_that_fails_or_takes_longer_than_it_may_is_counted_as_failed() {
    let tally = Arc::new(Tally::default());
    let given: Arc<[Tensor]> = vec![integers(&[1])].into();
    tally.follow(terms(Compare::Values, 0.0), given.clone(), |_| async { Err(model::Error::QueueIsFull) });
    tally.follow(terms(Compare::Values, 0.0), given.clone(), |_| std::future::pending());
    let patience = tokio::time::Instant::now();
    while tally.count(Outcome::Failed) < 2 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(patience.elapsed() <= DEADLINE + Duration::from_secs(1));
    assert_eq!(tally.room.available_permits(), AT_ONCE);
}

#[test]
fn the_largest_difference_stays() {
    let tally = Tally::default();
    for off in [0.5_f64, 2.0, 1.0] {
        tally.largest.fetch_max(off.to_bits(), Ordering::Relaxed);
    }
    assert!((tally.largest() - 2.0).abs() < f64::EPSILON);
}
