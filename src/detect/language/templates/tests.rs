use std::sync::LazyLock;

use super::*;
use crate::detect::text::Key;
use crate::secret::Secret;

static KEY: LazyLock<Key> = LazyLock::new(|| Key::from_secret(&Secret::new(vec![8; 32])));

fn hash(n: u64) -> u64 {
    KEY.order(n)
}

/// Hashes of one bucket: that of `band`.
fn beside(band: u64) -> impl Iterator<Item = u64> {
    (1..).map(move |n: u64| (band >> 32) << 32 | n).filter(move |other| *other != band)
}

#[test]
fn callers_of_a_template_are_counted_once_each_and_times_every_time() {
    let table = Templates::new();
    for caller in 0..5 {
        for _ in 0..3 {
            table.meet(&[hash(1)], hash(100 + caller), 0);
        }
    }
    let met = table.meet(&[hash(1)], hash(100), 0).unwrap();
    assert_eq!(met.times, 16);
    assert!((met.callers - 5.0).abs() < 0.5, "{met:?}");
    assert_eq!(table.meet(&[hash(2)], hash(100), 0).unwrap().times, 1);
}

#[test]
fn a_team_weighs_nothing_and_hundreds_of_callers_weigh_one() {
    let table = Templates::new();
    let weights: Vec<_> = (0..400).map(|caller| table.meet(&[hash(1)], hash(caller), 0).unwrap().weight()).collect();
    assert!(weights[..6].iter().all(|weight| *weight == 0.0));
    assert!((0.2..0.8).contains(&weights[49]), "{}", weights[49]);
    assert!(weights[399] > 0.95);
}

#[test]
fn of_the_bands_of_a_prompt_the_one_with_most_callers_counts() {
    let table = Templates::new();
    (0..20).for_each(|caller| {
        table.meet(&[hash(1), hash(1_000 + caller)], hash(caller), 0);
    });
    assert!(table.meet(&[hash(5), hash(1)], hash(3), 0).unwrap().callers > 15.0);
    assert_eq!(table.meet(&[], hash(3), 0), None);
}

#[test]
fn new_templates_push_out_one_another_and_a_busy_one_only_when_all_beside_it_are_as_busy() {
    let table = Templates::new();
    let meet = |band: u64, times: usize| (0..times).fold(None, |_, _| Some(table.meet(&[band], hash(9), 0))).unwrap();
    let mut others = beside(hash(1));
    meet(hash(1), 100);
    (1..WAYS).for_each(|_| assert!(meet(others.next().unwrap(), 1).is_some()));
    (0..5_000).for_each(|_| assert!(meet(others.next().unwrap(), 1).is_some()));
    assert_eq!(meet(hash(1), 1).unwrap().times, 101);
    // Seven that are busier: now it is the poorest, and as many new ones as it was met cost it its place.
    let busier: Vec<_> = others.by_ref().take(WAYS - 1).collect();
    busier.iter().for_each(|other| assert_eq!(meet(*other, 200).unwrap().times, 200));
    (0..100).for_each(|_| assert_eq!(meet(others.next().unwrap(), 1), None));
    assert_eq!(meet(others.next().unwrap(), 1).unwrap().times, 1);
    assert_eq!(meet(hash(1), 1).unwrap().times, 1);
    assert_eq!(table.buckets[(hash(1) >> 32) as usize % BUCKETS].lock().unwrap().len(), WAYS);
}

#[test]
fn credit_halves_in_a_week_and_not_before() {
    let table = Templates::new();
    (0..64).for_each(|_| {
        table.meet(&[hash(1)], hash(7), 0);
    });
    assert_eq!(table.meet(&[hash(1)], hash(7), HALF_LIFE - 1).unwrap().times, 65);
    assert_eq!(table.meet(&[hash(1)], hash(7), HALF_LIFE).unwrap().times, 33);
    assert_eq!(table.meet(&[hash(1)], hash(7), 100 * HALF_LIFE).unwrap().times, 1);
}

#[test]
fn a_table_that_was_flooded_holds_no_more_than_its_templates() {
    let table = Templates::new();
    (0..3 * TEMPLATES as u64).for_each(|n| {
        table.meet(&[hash(n)], 1, 0);
    });
    let held: usize = table.buckets.iter().map(|bucket| bucket.lock().unwrap().len()).sum();
    assert!(held <= TEMPLATES && held > TEMPLATES * 9 / 10, "{held}");
}
