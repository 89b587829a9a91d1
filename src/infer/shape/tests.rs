use proptest::collection;
use proptest::prelude::*;

use super::*;
use crate::detect::response::{Level, Seed};

fn fp32(shape: &[u64], values: &[f32]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor { name: "p".into(), datatype: Datatype::Fp32, shape: shape.to_vec(), data: data.into() }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn shaped(config: &Config, care: Care, tensor: Tensor) -> Tensor {
    let mut tensors = [tensor];
    let rows = tensors[0].shape.first().map_or(1, |rows| *rows as usize);
    config.tensors(&mut tensors, care, rows);
    let [tensor] = tensors;
    tensor
}

#[test]
fn top_keeps_the_best_of_each_row_and_the_shape() {
    let config = Config { top: Some(1), ..Config::default() };
    let tensor = shaped(&config, Care::default(), fp32(&[2, 3], &[0.2, 0.5, 0.3, 0.4, 0.4, 0.2]));
    assert_eq!(values(&tensor), [0.0, 0.5, 0.0, 0.4, 0.0, 0.0]);
    assert_eq!(tensor.shape, [2, 3]);
}

#[test]
fn of_what_is_no_probability_top_keeps_the_best_and_tells_the_others_as_unlikely() {
    let told = |logits: &[&str], top: u32, row: &[f32]| {
        let config = Config { top: Some(top), logits: logits.iter().map(|name| (*name).to_owned()).collect(), ..Config::default() };
        values(&shaped(&config, Care::default(), fp32(&[1, row.len() as u64], row)))
    };
    let softmax = |row: &[f32]| {
        let mut row: Vec<f64> = row.iter().map(|value| f64::from(*value)).collect();
        row::softmax(&mut row);
        row
    };
    for logits in [&[][..], &["p"]] {
        for row in [[-0.1, -2.5, -4.0], [-4.0, -2.5, -0.1], [-300.0, -200.0, -250.0], [0.0, -1.0, -2.0]] {
            let one = told(logits, 1, &row);
            let best = row::best(&row.map(f64::from));
            assert_eq!(one[best], row[best], "what is kept is told as it is");
            assert!(softmax(&one)[best] > 0.999, "{row:?} {one:?}");
            let two = told(logits, 2, &row);
            assert_eq!(row.iter().zip(&two).filter(|(before, after)| before == after).count(), 2, "{row:?} {two:?}");
            assert!(softmax(&two).iter().any(|p| *p < 1e-5), "{row:?} {two:?}");
        }
        // What is withheld is told alike, whatever it is.
        assert_eq!(told(logits, 1, &[-0.1, -2.5, -4.0]), told(logits, 1, &[-0.1, -0.2, -90.0]));
        // Masked classes, and numbers that are none.
        assert_eq!(row::best(&softmax(&told(logits, 1, &[f32::NEG_INFINITY, -7.0, -9.0]))), 1);
        assert_eq!(told(logits, 1, &[f32::NEG_INFINITY; 3]), [f32::NEG_INFINITY; 3]);
        assert_eq!(told(logits, 2, &[-1.0, f32::MIN, f32::MIN]), [-1.0, f32::MIN, f32::MIN]);
        assert_eq!(told(logits, 1, &[3.0, f32::INFINITY, -9.0]), [0.0, f32::INFINITY, 0.0]);
        assert!(told(logits, 1, &[f32::NAN, 1.0])[0].is_nan());
    }
    assert_eq!(told(&[], 1, &[0.9, 0.8, 0.1]), [0.9, 0.0, 0.0], "scores of labels that exclude none");
    assert!(told(&["p"], 1, &[0.9, 0.8, 0.1])[1..].iter().all(|logit| *logit < -12.0));
    let coarse = half::bf16::from_f64(-1e6);
    let tensor = Tensor { name: "p".into(), datatype: Datatype::Bf16, shape: vec![1, 2], data: [coarse.to_le_bytes(); 2].concat().into() };
    let one = shaped(&Config { top: Some(1), ..Config::default() }, Care::default(), tensor);
    let [first, second] = [0, 2].map(|at| half::bf16::from_le_bytes([one.data[at], one.data[at + 1]]));
    assert!(first == coarse && second < first, "{first} {second}");
}

#[test]
fn top_holds_for_logits_that_are_told_less_as_well() {
    let config = Config { top: Some(1), logits: vec!["p".into()], ..Config::default() };
    for shaping in shapings().into_iter().filter(|shaping| *shaping != Shaping::AsIs) {
        let care = Care { response: seeded(shaping), ..Care::default() };
        let told = values(&shaped(&config, care, fp32(&[1, 3], &[-0.1, -0.3, -0.5])));
        assert!(told[0] > told[1] && told[1] == told[2] && told[1] < -12.0, "{shaping:?} {told:?}");
    }
}

#[test]
fn the_coarser_rounding_wins() {
    let config = Config { decimals: Some(3), ..Config::default() };
    let care = Care { decimals: Some(1), ..Care::default() };
    assert_eq!(values(&shaped(&config, care, fp32(&[1, 2], &[0.123_45, 0.987_65]))), [0.1, 1.0]);
    assert_eq!(values(&shaped(&config, Care::default(), fp32(&[1, 1], &[0.123_45]))), [0.123]);
}

#[test]
fn labels_and_what_is_not_finite_stay() {
    let config = Config { top: Some(1), decimals: Some(0), ..Config::default() };
    let label =
        Tensor { name: "label".into(), datatype: Datatype::Int64, shape: vec![1], data: Bytes::from_static(&[7, 0, 0, 0, 0, 0, 0, 0]) };
    assert_eq!(shaped(&config, Care::default(), label.clone()), label);
    assert!(values(&shaped(&config, Care::default(), fp32(&[1], &[f32::NAN])))[0].is_nan());
    assert!(rounded(f64::INFINITY, 2).is_infinite());
    assert_eq!(rounded(f64::MAX, 15), f64::MAX);
}

fn seeded(shaping: Shaping) -> Response {
    Response { shaping, seed: Seed::from_secret([3; 16]), ..Response::default() }
}

fn shapings() -> Vec<Shaping> {
    let levels = [1, 4, 8].map(Level::of);
    let graded = levels.into_iter().flat_map(|level| [Shaping::ReverseSigmoid(level), Shaping::Quantised(level)]);
    [Shaping::AsIs, Shaping::Adversarial, Shaping::LabelOnly].into_iter().chain(graded).collect()
}

/// Probabilities of a few classes, sure and unsure ones, with equals and zeros among them.
fn simplex() -> impl Strategy<Value = Vec<f64>> {
    (collection::vec(0..1_000_u32, 2..40), 1..9_i32).prop_filter_map("a row of zeros", |(row, power)| {
        let row: Vec<f64> = row.into_iter().map(|x| (f64::from(x) / 1_000.0).powi(power)).collect();
        let sum: f64 = row.iter().sum();
        (sum > 1e-9).then(|| row.into_iter().map(|x| x / sum).collect())
    })
}

proptest! {
    #[test]
    fn every_shape_keeps_the_best_class_and_the_simplex_and_answers_alike(row in simplex()) {
        let best = row::best(&row);
        for shaping in shapings() {
            let shaped = || {
                let mut row = row.clone();
                respond(&mut row, best, &seeded(shaping));
                row
            };
            let told = shaped();
            prop_assert_eq!(row::best(&told), best, "{:?} {:?}", shaping, told);
            prop_assert!(told.iter().all(|value| (0.0..=1.0).contains(value)), "{:?} {:?}", shaping, told);
            prop_assert!((told.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{:?} {:?}", shaping, told);
            prop_assert_eq!(&told, &shaped());
        }
    }

    #[test]
    fn the_best_class_is_kept_in_every_type_that_is_written(row in simplex(), decimals in 0..5_u8, rounds in any::<bool>()) {
        let k = row.len() as u64;
        let config = Config { decimals: rounds.then_some(decimals), ..Config::default() };
        for shaping in shapings() {
            let care = Care { response: seeded(shaping), ..Care::default() };
            let single = row.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect::<Vec<u8>>();
            let half = row.iter().flat_map(|x| half::f16::from_f64(*x).to_le_bytes()).collect::<Vec<u8>>();
            let brain = row.iter().flat_map(|x| half::bf16::from_f64(*x).to_le_bytes()).collect::<Vec<u8>>();
            for (datatype, data) in [(Datatype::Fp32, single), (Datatype::Fp16, half), (Datatype::Bf16, brain)] {
                let tensor = Tensor { name: "p".into(), datatype, shape: vec![1, k], data: data.into() };
                let read = |tensor: &Tensor| match datatype {
                    Datatype::Fp32 => values(tensor).into_iter().map(f64::from).collect::<Vec<_>>(),
                    Datatype::Fp16 => tensor.data.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f64()).collect(),
                    _ => tensor.data.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f64()).collect(),
                };
                let before = read(&tensor);
                let after = read(&shaped(&config, care, tensor));
                if Kind::of(&before, false) == Kind::Probabilities {
                    prop_assert_eq!(row::best(&after), row::best(&before), "{:?} {:?} {:?} {:?}", shaping, datatype, before, after);
                }
            }
        }
    }

    #[test]
    fn one_probability_is_shaped_as_that_of_both_classes_and_keeps_its_own(p in 0.0..=1.0_f32, decimals in 0..16_u8, rounds in any::<bool>()) {
        let config = Config { decimals: rounds.then_some(decimals), top: Some(1), ..Config::default() };
        for shaping in shapings() {
            let care = Care { response: seeded(shaping), ..Care::default() };
            for p in [p, 0.5, 0.499_999_97, 0.499, 0.5 + p / 1e5, 0.5 - p / 1e5] {
                let told = values(&shaped(&config, care, fp32(&[3, 1], &[p; 3])));
                prop_assert!(told.iter().all(|told| (*told >= 0.5) == (p >= 0.5) && (0.0..=1.0).contains(told)), "{:?} {} {:?}", shaping, p, told);
                prop_assert!(!rounds || told[0] == rounded(f64::from(told[0]), decimals) as f32, "{:?} {} {:?}", shaping, p, told);
                if !rounds {
                    let p = f64::from(p);
                    let mut both = [1.0 - p, p];
                    respond(&mut both, usize::from(p >= 0.5), &care.response);
                    let class = |p: f32| p >= 0.5;
                    prop_assert!(told[0] == both[1] as f32 || class(both[1] as f32) != class(p as f32), "{:?} {} {:?}", shaping, p, told);
                }
            }
            // Half a number has fewer digits to keep the class by.
            for p in [p, 0.5, 0.499_9].map(half::f16::from_f32) {
                let tensor = Tensor { name: "p".into(), datatype: Datatype::Fp16, shape: vec![1, 1], data: p.to_le_bytes().to_vec().into() };
                let told = shaped(&config, care, tensor).data;
                prop_assert_eq!(half::f16::from_le_bytes([told[0], told[1]]).to_f32() >= 0.5, p.to_f32() >= 0.5, "{:?} {}", shaping, p);
            }
        }
    }

    #[test]
    fn the_quantiser_stays_within_its_distance(row in simplex(), level in 1..9_u8) {
        let best = row::best(&row);
        let mut told = row.clone();
        respond(&mut told, best, &seeded(Shaping::Quantised(Level::of(level))));
        let distance: f64 = row.iter().zip(&told).map(|(a, b)| (a - b).abs()).sum();
        prop_assert!(distance <= quantised::farthest(Level::of(level)) + 1e-9, "{} {:?}", distance, told);
    }

    #[test]
    fn within_an_interval_the_told_margin_falls_where_the_true_one_rises(interval in 0..3_u8, low in 0.02..0.88_f64, more in 0.01..0.1_f64) {
        let told = |margin: f64| {
            let mut row = [1.0, (-margin).exp(), 0.04];
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|value| *value /= sum);
            respond(&mut row, 0, &seeded(Shaping::Adversarial));
            row
        };
        let low = f64::from(interval) + low;
        let (near, far) = (told(low), told(low + more));
        prop_assert!((far[0] / far[1]).ln() < (near[0] / near[1]).ln());
        prop_assert!(far[0] < near[0], "the best one's probability is led as well");
    }
}

#[test]
fn what_the_told_margin_does_to_confidence_is_bounded() {
    for first in 0..99 {
        let p = 0.505 + f64::from(first) / 200.0;
        let mut row = [p, 1.0 - p];
        respond(&mut row, 0, &seeded(Shaping::Adversarial));
        let odds = (row[0] / row[1]) / (p / (1.0 - p));
        assert!((-1.01..=1.01).contains(&odds.ln()), "{p} {row:?}");
    }
    let mut sure = [1.0, 0.0, 0.0];
    respond(&mut sure, 0, &seeded(Shaping::Adversarial));
    assert_eq!(sure, [1.0, 0.0, 0.0]);
}

#[test]
fn a_label_alone_is_a_one_hot_row_of_the_same_shape_and_type() {
    let care = Care { response: seeded(Shaping::LabelOnly), ..Care::default() };
    let tensor = shaped(&Config::default(), care, fp32(&[2, 3], &[0.2, 0.5, 0.3, 0.4, 0.4, 0.2]));
    assert_eq!(values(&tensor), [0.0, 1.0, 0.0, 1.0, 0.0, 0.0]);
    assert_eq!((tensor.shape, tensor.datatype), (vec![2, 3], Datatype::Fp32));
}

#[test]
fn what_is_no_row_of_probabilities_is_left_alone_until_labels_alone_are_to_be_told() {
    for shaping in shapings().into_iter().filter(|shaping| *shaping != Shaping::LabelOnly) {
        let care = Care { response: seeded(shaping), ..Care::default() };
        for row in [&[3.5, -1.0, 2.0][..], &[0.5, 0.6], &[7.0]] {
            let tensor = fp32(&[1, row.len() as u64], &row.iter().map(|x| *x as f32).collect::<Vec<_>>());
            assert_eq!(shaped(&Config::default(), care, tensor.clone()), tensor);
        }
    }
    let care = Care { response: seeded(Shaping::LabelOnly), ..Care::default() };
    assert_eq!(values(&shaped(&Config::default(), care, fp32(&[2, 3], &[3.5, -1.0, 2.0, 0.5, 0.6, 0.0]))), [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
    assert_eq!(values(&shaped(&Config::default(), care, fp32(&[3, 1], &[7.125, 0.3, 0.9]))), [7.1, 0.0, 1.0]);
}

#[test]
fn beside_a_number_that_is_none_nothing_else_is_told_where_less_is_to_be() {
    let broken = fp32(&[2, 3], &[f32::NAN, 0.25, 0.5, f32::INFINITY, 0.0, -3.0]);
    for shaping in shapings() {
        let care = Care { response: seeded(shaping), ..Care::default() };
        let after = values(&shaped(&Config::default(), care, broken.clone()));
        assert!(after[0].is_nan() && after[3] == f32::INFINITY, "{shaping:?}");
        let expected = if shaping == Shaping::AsIs { [0.25, 0.5, 0.0, -3.0] } else { [0.0, 1.0, 1.0, 0.0] };
        assert_eq!([after[1], after[2], after[4], after[5]], expected, "{shaping:?}");
    }
}

#[test]
fn logits_that_the_operator_names_are_shaped_as_the_probabilities_they_stand_for() {
    let config = Config { logits: vec!["p".into()], ..Config::default() };
    let logits = fp32(&[1, 3], &[1.0, 9.0, -4.0]);
    assert_eq!(shaped(&config, Care::default(), logits.clone()), logits);
    for shaping in shapings().into_iter().filter(|shaping| *shaping != Shaping::AsIs) {
        let care = Care { response: seeded(shaping), ..Care::default() };
        let row: Vec<f64> = values(&shaped(&config, care, logits.clone())).into_iter().map(f64::from).collect();
        assert_eq!(row::best(&row), 1, "{shaping:?}");
        assert!(row.iter().all(|value| *value <= 0.0 && *value >= -14.0), "{shaping:?} {row:?}");
    }
}

#[test]
fn an_input_is_answered_alike_alone_and_in_a_batch() {
    for shaping in shapings() {
        let care = Care { response: seeded(shaping), ..Care::default() };
        let alone = values(&shaped(&Config::default(), care, fp32(&[1, 3], &[0.2, 0.5, 0.3])));
        let batch = values(&shaped(&Config::default(), care, fp32(&[3, 3], &[0.9, 0.1, 0.0, 0.2, 0.5, 0.3, 0.3, 0.3, 0.4])));
        assert_eq!(alone, batch[3..6]);
    }
}

#[test]
fn a_graded_response_holds_for_a_single_probability() {
    let exact = [0.731_058_6, 0.268_941_43, 0.119_202_92];
    for shaping in [Shaping::Quantised(Level::MOST), Shaping::ReverseSigmoid(Level::MOST), Shaping::Adversarial] {
        let care = Care { response: seeded(shaping), ..Care::default() };
        let told = values(&shaped(&Config::default(), care, fp32(&[3, 1], &exact)));
        assert!(told.iter().zip(exact).all(|(told, exact)| *told != exact), "{shaping:?} {told:?}");
    }
    assert_eq!(values(&shaped(&Config::default(), Care::default(), fp32(&[3, 1], &exact))), exact);
    // What the operator says is a logit is none.
    let config = Config { logits: vec!["p".into()], ..Config::default() };
    let care = Care { response: seeded(Shaping::Quantised(Level::MOST)), ..Care::default() };
    assert_eq!(values(&shaped(&config, care, fp32(&[3, 1], &exact))), exact);
}

#[test]
fn noise_goes_to_embeddings_alone() {
    let response = Response { covered: Coverage::of(0.8), ..seeded(Shaping::AsIs) };
    let care = Care { response, ..Care::default() };
    let tensor = fp32(&[1, 2], &[0.4, 0.6]);
    assert_eq!(shaped(&Config::default(), care, tensor.clone()), tensor);
    // Also where an embedding happens to look like probabilities.
    let before = Tensor { name: VECTORS.into(), ..fp32(&[2, 4], &[0.25, 0.25, 0.25, 0.25, 1.0, 2.0, 3.0, 4.0]) };
    let after = values(&shaped(&Config::default(), care, before.clone()));
    assert!(after.iter().zip(&values(&before)).all(|(a, b)| a != b));
    assert_eq!(shaped(&Config::default(), Care::default(), before.clone()), before);
}

#[test]
fn a_number_for_each_row_is_shaped_by_itself_and_noise_is_no_way_around_labels() {
    let labels = Care { response: seeded(Shaping::LabelOnly), ..Care::default() };
    assert_eq!(values(&shaped(&Config::default(), labels, fp32(&[3], &[0.2, 0.9, 0.7]))), [0.0, 1.0, 1.0]);
    assert_eq!(values(&shaped(&Config::default(), labels, fp32(&[], &[0.7]))), [1.0]);
    let graded = Care { response: seeded(Shaping::Quantised(Level::MOST)), ..Care::default() };
    let alone = |p: f32| values(&shaped(&Config::default(), graded, fp32(&[], &[p])))[0];
    let chance = values(&shaped(&Config::default(), graded, fp32(&[2], &[0.3, 0.9])));
    assert_eq!(chance, [alone(0.3), alone(0.9)], "two rows, and not one");
    // One row without a dimension for it.
    let mut one = [fp32(&[3], &[0.2, 0.5, 0.3])];
    Config::default().tensors(&mut one, labels, 1);
    assert_eq!(values(&one[0]), [0.0, 1.0, 0.0]);
    let both = Care { response: Response { covered: Coverage::of(0.05), ..seeded(Shaping::LabelOnly) }, ..Care::default() };
    let embedding = Tensor { name: VECTORS.into(), ..fp32(&[1, 3], &[0.5, -2.0, 1.0]) };
    assert_eq!(values(&shaped(&Config::default(), both, embedding)), [0.0, 0.0, 1.0]);
}

#[test]
fn rows_of_small_integers_may_be_scores_that_nothing_is_withheld_of() {
    let port = |datatype, shape: &[Option<u64>]| Port { name: "scores".into(), datatype, shape: shape.to_vec() };
    for quantised in [Datatype::Uint8, Datatype::Int8] {
        assert!(may_be_unshaped_scores(&port(quantised, &[None, Some(10)])) && may_be_unshaped_scores(&port(quantised, &[None, None])));
        // One label a row, and a picture.
        assert!(!may_be_unshaped_scores(&port(quantised, &[None, Some(28), Some(28)])));
        assert!(!may_be_unshaped_scores(&port(quantised, &[None])) && !may_be_unshaped_scores(&port(quantised, &[None, Some(1)])));
    }
    assert!(
        !may_be_unshaped_scores(&port(Datatype::Int64, &[None, Some(10)]))
            && !may_be_unshaped_scores(&port(Datatype::Fp32, &[None, Some(10)]))
    );
}
