use super::*;

/// SplitMix64 and a sum of uniforms: normal enough for queries.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }

    fn query(&mut self) -> [f32; FEATURES] {
        std::array::from_fn(|_| self.normal() as f32)
    }
}

/// A softmax regression: what equations solve.
struct Victim {
    weights: Vec<[f64; FEATURES]>,
}

impl Victim {
    fn new(classes: usize, dice: &mut Dice) -> Self {
        Self { weights: (0..classes).map(|_| std::array::from_fn(|_| 0.2 * dice.normal())).collect() }
    }

    fn answer(&self, x: &[f32; FEATURES]) -> Vec<f64> {
        let logits: Vec<f64> = self.weights.iter().map(|w| w.iter().zip(x).map(|(w, x)| w * f64::from(*x)).sum()).collect();
        let most = logits.iter().copied().fold(f64::MIN, f64::max);
        let powers: Vec<f64> = logits.iter().map(|logit| (logit - most).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.into_iter().map(|power| power / sum).collect()
    }

    fn label(&self, x: &[f32; FEATURES]) -> u32 {
        best(&self.answer(x))
    }

    fn holdout(&self, rows: usize, dice: &mut Dice) -> Holdout {
        let rows: Vec<_> = (0..rows).map(|_| dice.query()).map(|x| (Features::of(&x), self.label(&x))).collect();
        Holdout::new(rows, self.weights.len() as u32).unwrap()
    }
}

fn best(row: &[f64]) -> u32 {
    row.iter().enumerate().fold(0, |best, (at, p)| if *p > row[best] { at } else { best }) as u32
}

struct Case {
    victim: Victim,
    holdout: Holdout,
    dice: Dice,
}

fn case(classes: usize) -> Case {
    let mut dice = Dice(classes as u64);
    let victim = Victim::new(classes, &mut dice);
    let holdout = victim.holdout(400, &mut dice);
    Case { victim, holdout, dice }
}

impl Case {
    fn learn(&mut self, meter: &mut Meter, rows: usize, labels: bool) {
        for _ in 0..rows {
            let x = self.dice.query();
            let row = self.victim.answer(&x);
            let answer = if labels { Answer::Label(best(&row)) } else { Answer::Probabilities(&row) };
            meter.learn(&self.holdout, &Features::of(&x), answer);
        }
    }

    fn fidelity(&self, meter: &mut Meter) -> f32 {
        meter.evaluate(&self.holdout, &Correction::default()).fidelity
    }
}

#[test]
fn a_regression_is_gone_once_there_are_as_many_probabilities_as_unknowns() {
    let mut case = case(10);
    let mut meter = Meter::new(&case.holdout);
    case.learn(&mut meter, 20, false);
    let before = case.fidelity(&mut meter);
    case.learn(&mut meter, 60, false);
    let after = case.fidelity(&mut meter);
    assert!(before < 0.7, "{before}");
    assert!(after > 0.9, "{after}");
}

#[test]
fn labels_before_probabilities_do_not_make_labels_of_them() {
    // Taken for labels, all of them told 0.52. Labels blur the equations, as any answer that is none of the model's own scores.
    for (labels, least) in [(1, 0.9), (30, 0.75)] {
        let (mut meter, mut case) = (Meter::new(&case(4).holdout), case(4));
        case.learn(&mut meter, labels, true);
        case.learn(&mut meter, 100, false);
        let fidelity = case.fidelity(&mut meter);
        assert!(fidelity > least, "{labels}: {fidelity}");
        assert!(meter.bytes() <= MOST_BYTES);
    }
}

#[test]
fn labels_tell_less_than_probabilities_and_more_labels_tell_more() {
    let mut case = case(10);
    let mut labels = Meter::new(&case.holdout);
    case.learn(&mut labels, 80, true);
    let few = case.fidelity(&mut labels);
    case.learn(&mut labels, 1_500, true);
    let many = case.fidelity(&mut labels);
    assert!(few < 0.6, "{few}");
    assert!(many > 0.6 && many < 0.9, "{many}");
}

#[test]
fn one_class_teaches_no_more_than_its_share_of_the_holdout() {
    let mut case = case(10);
    let mut meter = Meter::new(&case.holdout);
    let mut asked = 0;
    while asked < 200 {
        let x = case.dice.query();
        if case.victim.label(&x) == 3 {
            meter.learn(&case.holdout, &Features::of(&x), Answer::Label(3));
            asked += 1;
        }
    }
    let share = case.holdout.labels().iter().filter(|label| **label == 3).count() as f32 / case.holdout.len() as f32;
    let fidelity = case.fidelity(&mut meter);
    assert!(fidelity <= share + 0.02 && fidelity > share - 0.05, "{fidelity} {share}");
}

#[test]
fn the_meter_of_a_cohort_sees_a_copy_where_those_of_its_callers_see_none() {
    let mut case = case(10);
    let mut all = Meter::new(&case.holdout);
    let mut parts: Vec<Meter> = (0..16).map(|_| Meter::new(&case.holdout)).collect();
    for at in 0..96 {
        let x = case.dice.query();
        let row = case.victim.answer(&x);
        all.learn(&case.holdout, &Features::of(&x), Answer::Probabilities(&row));
        parts[at % 16].learn(&case.holdout, &Features::of(&x), Answer::Probabilities(&row));
    }
    for part in &mut parts {
        assert!(case.fidelity(part) < 0.6, "six answers are no copy");
    }
    let all = case.fidelity(&mut all);
    assert!(all > 0.85, "{all}");
}

#[test]
fn rubbish_between_the_queries_does_not_lower_the_estimate() {
    let mut case = case(4);
    let mut meter = Meter::new(&case.holdout);
    case.learn(&mut meter, 120, false);
    let honest = case.fidelity(&mut meter);
    for at in 0..2_000_u32 {
        let x = case.dice.query();
        meter.learn(&case.holdout, &Features::of(&x), Answer::Label(at % 4));
    }
    assert!(case.fidelity(&mut meter) >= honest);
}

#[test]
fn what_is_no_answer_teaches_nothing() {
    let case = case(3);
    let mut meter = Meter::new(&case.holdout);
    let x = Features::of(&[0.0; FEATURES]);
    for answer in [
        Answer::Label(3),
        Answer::Probabilities(&[0.5, 0.5]),
        Answer::Probabilities(&[f64::NAN, 0.5, 0.5]),
        Answer::Probabilities(&[-0.5, 1.0, 0.5]),
    ] {
        meter.learn(&case.holdout, &x, answer);
        assert_eq!(meter.rows(), 0, "{answer:?}");
    }
    assert_eq!(case.fidelity(&mut meter), 0.0);
    meter.learn(&case.holdout, &x, Answer::Label(2));
    assert_eq!(meter.rows(), 1);
}

#[test]
fn rounded_zeros_are_small_and_not_impossible() {
    let mut case = case(4);
    let mut meter = Meter::new(&case.holdout);
    for _ in 0..400 {
        let x = case.dice.query();
        let row: Vec<f64> = case.victim.answer(&x).iter().map(|p| (p * 100.0).round() / 100.0).collect();
        meter.learn(&case.holdout, &Features::of(&x), Answer::Probabilities(&row));
    }
    assert!(case.fidelity(&mut meter) > 0.9);
}

#[test]
fn the_least_probabilities_tell_as_much_as_the_greatest() {
    let mut case = case(4);
    // So sure of everything that nearly all that it tells is below one in a million.
    case.victim.weights.iter_mut().flatten().for_each(|weight| *weight *= 8.0);
    let mut meter = Meter::new(&case.holdout);
    for _ in 0..80 {
        let x = case.dice.query();
        let row: Vec<f64> = case.victim.answer(&x).iter().map(|p| f64::from(*p as f32)).collect();
        meter.learn(&case.holdout, &Features::of(&x), Answer::Probabilities(&row));
    }
    let fidelity = case.fidelity(&mut meter);
    assert!(fidelity > 0.9, "{fidelity}");
}

#[test]
fn of_many_classes_the_frequent_ones_are_learned() {
    let mut case = case(40);
    let mut meter = Meter::new(&case.holdout);
    case.learn(&mut meter, 30, false);
    let few = case.fidelity(&mut meter);
    case.learn(&mut meter, 1_500, false);
    let many = case.fidelity(&mut meter);
    assert!(few < many, "{few} {many}");
    assert!(many > 0.2 && many < 1.0, "{many}");
}

#[test]
fn equal_queries_and_a_single_one_are_no_copy_and_no_panic() {
    let mut case = case(10);
    let x = case.dice.query();
    let label = case.victim.label(&x);
    let mut meter = Meter::new(&case.holdout);
    for _ in 0..100 {
        meter.learn(&case.holdout, &Features::of(&x), Answer::Label(label));
    }
    let share = case.holdout.labels().iter().filter(|other| **other == label).count() as f32 / case.holdout.len() as f32;
    let fidelity = case.fidelity(&mut meter);
    assert!(fidelity <= share + 0.02 && fidelity > share - 0.05, "{fidelity} {share}");
}

#[test]
fn evaluations_are_spaced_by_half_as_much_again() {
    let mut case = case(3);
    let mut meter = Meter::new(&case.holdout);
    let mut at = Vec::new();
    for _ in 0..100 {
        case.learn(&mut meter, 1, true);
        if meter.is_due() {
            case.fidelity(&mut meter);
            at.push(meter.rows());
        }
    }
    assert_eq!(at, [16, 24, 36, 54, 81]);
}

/// Of 64 numbers or fewer, and of so many classes.
fn narrow(numbers: usize, classes: u32) -> Holdout {
    let mut dice = Dice(7);
    let rows = (0..200).map(|at| {
        let mut x = dice.query();
        x[numbers..].fill(0.0);
        (Features::of(&x), at % classes)
    });
    Holdout::new(rows, classes).unwrap()
}

#[test]
fn a_meter_takes_no_more_than_12_kib_whatever_the_model() {
    for (numbers, classes) in [(64, 10), (64, 2), (30, 2), (20, 4), (1, 2)] {
        let holdout = narrow(numbers, classes);
        let row = vec![1.0 / f64::from(classes); classes as usize];
        for answer in [Answer::Label(0), Answer::Probabilities(&row)] {
            let mut meter = Meter::new(&holdout);
            assert!(meter.bytes() <= MOST_BYTES);
            meter.learn(&holdout, &Features::of(&[0.5; FEATURES]), answer);
            assert!(meter.bytes() <= MOST_BYTES, "{} bytes of {numbers} numbers and {classes} classes", meter.bytes());
            let (_, kept) = meter.answers.as_ref().unwrap();
            // The narrowest models have rows so small that it is their number that is bounded.
            let full = MOST_BYTES - meter.bytes() < 64;
            assert!(full || kept.bytes() >= super::super::kept::MOST_ROWS * 4, "the bound is told as it is: {}", meter.bytes());
        }
    }
}

/// The sign of a product: what nothing linear tells.
fn bent(dice: &mut Dice) -> (Features, u32) {
    let mut x = [0.0; FEATURES];
    (x[0], x[1]) = (dice.normal() as f32, dice.normal() as f32);
    (Features::of(&x), u32::from(x[0] * x[1] > 0.0))
}

#[test]
fn what_bends_is_seen_once_it_is_studied_and_equal_transcripts_are_equal() {
    let mut dice = Dice(3);
    let holdout = Holdout::new((0..300).map(|_| bent(&mut dice)).collect::<Vec<_>>(), 2).unwrap();
    let rows: Vec<_> = (0..150).map(|_| bent(&mut dice)).collect();
    let taught = || {
        let mut meter = Meter::new(&holdout);
        rows.iter().for_each(|(x, label)| meter.learn(&holdout, x, Answer::Label(*label)));
        meter
    };
    let mut meter = taught();
    let linear = meter.evaluate(&holdout, &Correction::default()).measured;
    let study = meter.study().unwrap();
    let (studied, again) = (study.on(&holdout), taught().study().unwrap().on(&holdout));
    assert_eq!(studied, again);
    let whole = meter.hear(studied, &Correction::default());
    assert!(whole.measured > 0.85 && whole.measured > linear, "{whole:?} {linear}");
    let lower = Studied { measured: 0.1, rows: 150 };
    assert_eq!(meter.hear(lower, &Correction::default()).measured, whole.measured, "it never falls");
    assert_eq!(taught().evaluate_wholly(&holdout, &Correction::default()), whole);
}

#[test]
fn studies_are_spaced_as_evaluations_are_and_offered_again_when_put_off() {
    let mut case = case(3);
    let mut meter = Meter::new(&case.holdout);
    let mut at = Vec::new();
    for _ in 0..100 {
        case.learn(&mut meter, 1, true);
        if let Some(study) = meter.study() {
            at.push(study.rows);
            if study.rows == 24 {
                meter.put_off(8);
            } else {
                meter.studied();
            }
        }
    }
    assert_eq!(at, [16, 24, 32, 48, 72]);
}
