use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::check::explain::Terms;
use crate::wire::oip::InferRequest;

/// Rows of several inputs of FP64, each with so many features.
fn inputs(widths: &[usize], rows: &[Vec<f64>]) -> Vec<Tensor> {
    let mut from = 0;
    let mut tensors = Vec::new();
    for (at, width) in widths.iter().enumerate() {
        let values: Vec<f64> = rows.iter().flat_map(|row| row[from..from + width].to_vec()).collect();
        tensors.push(fp64(format!("x{at}"), vec![rows.len() as u64, *width as u64], &values));
        from += width;
    }
    tensors
}

fn rows_of(tensors: &[Tensor]) -> Vec<Vec<f64>> {
    let count = usize::try_from(tensors[0].shape[0]).unwrap();
    let values: Vec<Vec<f64>> = tensors.iter().map(|tensor| floats(tensor, count).unwrap()).collect();
    (0..count)
        .map(|row| values.iter().flat_map(|part| part[row * part.len() / count..(row + 1) * part.len() / count].to_vec()).collect())
        .collect()
}

fn explanation(widths: &[usize], background: &[Vec<f64>], rows: usize, samples: u64) -> Explanation {
    let features = widths.iter().sum::<usize>() as u64;
    let terms = Terms::of_background(inputs(widths, background), background.len() as u64, features);
    Explanation { request: InferRequest::default(), output: "y".into(), samples, rows: rows as u64, terms: Arc::new(terms) }
}

type Function<'f> = &'f dyn Fn(&[f64]) -> Vec<f64>;

/// The base value, and each row's shares by feature and number of the answer; with what the model was asked.
fn explained(widths: &[usize], background: &[Vec<f64>], rows: &[Vec<f64>], samples: u64, f: Function<'_>) -> (Vec<f64>, Vec<Vec<f64>>) {
    let given = inputs(widths, rows);
    let explanation = explanation(widths, background, rows.len(), samples);
    let told: Vec<f64> = rows.iter().flat_map(|row| f(row)).collect();
    let width = told.len() / rows.len();
    let walks = Walks::new(&explanation, &given, None);
    assert_eq!(walks.count() as u64, explanation.evaluations());
    let mut tally = Tally::new(&walks, &told, width);
    // In pieces that end in the middle of mixtures and of walks.
    for from in (0..walks.count()).step_by(7) {
        let numbers = from..(from + 7).min(walks.count());
        for (number, row) in numbers.clone().zip(rows_of(&walks.question(numbers))) {
            tally.take(number, &f(&row));
        }
    }
    let tensors = tally.tensors(&given, &[width as u64]);
    assert_eq!(tensors[0].shape, [1, width as u64]);
    let parts: Vec<Vec<f64>> = tensors[1..].iter().map(|tensor| floats(tensor, rows.len()).unwrap()).collect();
    let of_row = |row: usize| -> Vec<f64> {
        let of_part = |part: &Vec<f64>| part[row * part.len() / rows.len()..(row + 1) * part.len() / rows.len()].to_vec();
        parts.iter().flat_map(of_part).collect()
    };
    (floats(&tensors[0], 1).unwrap(), (0..rows.len()).map(of_row).collect())
}

/// The mean over the background of what `f` says where the features in `known` are the row's.
fn value(background: &[Vec<f64>], row: &[f64], known: usize, f: Function<'_>) -> f64 {
    let mixed =
        |under: &Vec<f64>| -> Vec<f64> { (0..row.len()).map(|at| if known >> at & 1 == 1 { row[at] } else { under[at] }).collect() };
    background.iter().map(|under| f(&mixed(under))[0]).sum::<f64>() / background.len() as f64
}

/// Shapley values by their definition: every set of features, weighted.
fn exact(background: &[Vec<f64>], row: &[f64], f: Function<'_>) -> Vec<f64> {
    let factorial = |n: usize| (1..=n).map(|n| n as f64).product::<f64>();
    let n = row.len();
    let share = |feature: usize| {
        let without = (0..1_usize << n).filter(|known| known >> feature & 1 == 0);
        let weighted = without.map(|known| {
            let size = known.count_ones() as usize;
            let weight = factorial(size) * factorial(n - size - 1) / factorial(n);
            weight * (value(background, row, known | 1 << feature, f) - value(background, row, known, f))
        });
        weighted.sum()
    };
    (0..n).map(share).collect()
}

fn pairs(row: &[f64]) -> Vec<f64> {
    vec![3.0 * row[0] - row[1] + 2.0 * row[2] * row[3] + row[0] * row[4] * 0.5 + 7.0]
}

fn some_rows(count: usize, features: usize, seed: f64) -> Vec<Vec<f64>> {
    (0..count).map(|row| (0..features).map(|at| ((row * features + at) as f64 * 12.9898 + seed).sin() * 4.0).collect()).collect()
}

#[test]
fn over_features_that_act_alone_or_in_pairs_one_walk_forward_and_back_is_exact() {
    let (background, rows) = (some_rows(6, 5, 1.0), some_rows(3, 5, 2.0));
    let (base, shares) = explained(&[2, 3], &background, &rows, 1, &pairs);
    assert!((base[0] - value(&background, &rows[0], 0, &pairs)).abs() < 1e-12);
    for (row, shares) in rows.iter().zip(shares) {
        for (found, wanted) in shares.iter().zip(exact(&background, row, &pairs)) {
            assert!((found - wanted).abs() < 1e-9, "{found} is not {wanted}");
        }
    }
}

#[test]
fn many_walks_come_near_to_the_definition_where_one_does_not() {
    let f = |row: &[f64]| vec![(row[0] * row[1] * row[2]).tanh() + (row[3] + row[4] * row[0]).sin()];
    let (background, rows) = (some_rows(4, 5, 5.0), some_rows(1, 5, 6.0));
    let wanted = exact(&background, &rows[0], &f);
    let error = |samples| {
        let (_, shares) = explained(&[5], &background, &rows, samples, &f);
        shares[0].iter().zip(&wanted).map(|(found, wanted)| (found - wanted).abs()).fold(0.0, f64::max)
    };
    assert!(error(1) > 0.03, "{}", error(1));
    // It falls with the root of their number.
    assert!(error(4096) < 0.02, "{}", error(4096));
}

#[test]
fn a_row_is_explained_the_same_alone_and_among_others_and_otherwise_for_another_output() {
    let f = |row: &[f64]| vec![row[0] * row[1] * row[2], row[0].max(row[2])];
    let (background, rows) = (some_rows(3, 3, 1.0), some_rows(4, 3, 9.0));
    let (_, together) = explained(&[1, 2], &background, &rows, 2, &f);
    for (row, shares) in rows.iter().zip(together) {
        let (_, alone) = explained(&[1, 2], &background, std::slice::from_ref(row), 2, &f);
        assert_eq!(alone[0], shares);
    }
    let orders = |output: &str, row: f64| {
        let explanation = Explanation { output: output.into(), ..explanation(&[40], &some_rows(1, 40, 0.0), 1, 1) };
        let walks = Walks::new(&explanation, &inputs(&[40], &some_rows(1, 40, row)), None);
        walks.question(1..walks.count()).remove(0).data
    };
    assert_eq!(orders("y", 1.0), orders("y", 1.0));
    assert_ne!(orders("y", 1.0), orders("z", 1.0));
}

#[test]
fn the_order_in_which_a_caller_sends_inputs_changes_nothing() {
    let explanation = explanation(&[1, 2, 3], &some_rows(2, 6, 1.0), 1, 1);
    let given = inputs(&[1, 2, 3], &some_rows(1, 6, 2.0));
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        assert_eq!(in_order(&explanation, &order.map(|at: usize| given[at].clone())), given);
    }
}

#[test]
fn one_feature_has_all_of_the_difference() {
    let (base, shares) = explained(&[1], &[vec![1.0], vec![3.0]], &[vec![7.0], vec![2.0]], 3, &|row| vec![row[0] * 10.0]);
    assert_eq!((base, shares), (vec![20.0], vec![vec![50.0], vec![0.0]]));
}

#[test]
fn only_floats_with_a_row_for_each_of_the_batch_are_explained() {
    let label = Tensor { name: "y".into(), datatype: Datatype::Int64, shape: vec![1], data: vec![0; 8].into() };
    assert!(floats(&label, 1).is_err());
    assert!(floats(&fp64("y".into(), vec![2], &[1.0, 2.0]), 1).is_err());
    assert!(floats(&fp64("y".into(), vec![], &[1.0]), 1).is_err());
}

proptest! {
    #[test]
    fn the_base_and_the_shares_sum_to_the_answer(
        values in prop::collection::vec(-1e3_f64..1e3, 5 * 6), split in 1_usize..5, samples in 1_u64..4, rows in 1_usize..4,
    ) {
        let all: Vec<Vec<f64>> = values.chunks(5).map(<[f64]>::to_vec).collect();
        let (rows, background) = all.split_at(rows);
        let f = |row: &[f64]| vec![row.iter().product::<f64>().cbrt(), row[0].max(row[1] * row[2]), (row[3] > row[4]).into()];
        let (base, shares) = explained(&[split, 5 - split], background, rows, samples, &f);
        for (row, shares) in rows.iter().zip(shares) {
            for (at, told) in f(row).into_iter().enumerate() {
                let sum: f64 = base[at] + shares.iter().skip(at).step_by(3).sum::<f64>();
                prop_assert!((sum - told).abs() <= 1e-6 * told.abs().max(1.0), "{} is not {}", sum, told);
            }
        }
    }
}
