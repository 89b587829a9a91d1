//! One row of an answer: what it is, and its best class, which no shape may move.

/// A million to one against: what is not told is not impossible.
const LEAST: f64 = 1e-6;

/// How far from 1 a row may sum and still be probabilities: what rounding to two decimals does to ten of them.
const TOLERANCE: f64 = 0.02;

/// What a row of numbers is, as far as shapes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Probabilities of at least two classes: none is negative, and they sum to 1.
    Probabilities,
    /// One number between 0 and 1: the probability of the second of two classes, as the detectors take it.
    Probability,
    /// What the operator says are logits, or logarithms of probabilities.
    Logits,
    /// Numbers of which nothing is known: a regression, an embedding, logits nobody told of. They are rounded, and left alone otherwise.
    Numbers,
    /// Something in it is not finite: it is left as it is.
    Broken,
}

impl Kind {
    /// Told from the numbers, and from what the operator says of the tensor.
    #[must_use]
    pub fn of(row: &[f64], logits: bool) -> Self {
        if row.iter().any(|value| !value.is_finite()) {
            return Self::Broken;
        }
        if logits && row.len() > 1 {
            return Self::Logits;
        }
        if let [number] = row {
            return if !logits && (0.0..=1.0).contains(number) { Self::Probability } else { Self::Numbers };
        }
        let sum: f64 = row.iter().sum();
        let probable = !row.is_empty() && row.iter().all(|value| *value >= 0.0) && (sum - 1.0).abs() <= TOLERANCE;
        if probable { Self::Probabilities } else { Self::Numbers }
    }
}

/// The place of the greatest; of equals the first, as everybody's argmax has it.
#[must_use]
pub fn best(row: &[f64]) -> usize {
    row.iter().enumerate().fold(0, |best, (place, value)| if *value > row[best] { place } else { best })
}

/// Makes the sum 1 again; a row of zeros becomes all `best`.
pub(super) fn normalize(row: &mut [f64], best: usize) {
    let sum: f64 = row.iter().sum();
    if sum > 0.0 {
        row.iter_mut().for_each(|value| *value /= sum);
    } else {
        row[best] = 1.0;
    }
}

/// A part of a number that is more than any floating type rounds away.
pub(super) const OVER: f64 = 1.0 / 64.0;

/// Gives `best` the greatest of the numbers back, where a shape took it from it: of one that ties with it a part goes over. The numbers keep their sum.
pub(super) fn crown(row: &mut [f64], best: usize) {
    let greatest = self::best(row);
    if row[greatest] > row[best] {
        row.swap(greatest, best);
    }
    for place in 0..row.len() {
        if place != best && row[place] >= row[best] {
            let over = row[place] * OVER;
            row[place] -= over;
            row[best] += over;
        }
    }
}

/// Probabilities of logits.
pub(super) fn softmax(row: &mut [f64]) {
    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    row.iter_mut().for_each(|value| *value = (*value - most).exp());
    let sum: f64 = row.iter().sum();
    row.iter_mut().for_each(|value| *value /= sum);
}

/// Logarithms of probabilities, none of them below what a million to one against says.
pub(super) fn logarithms(row: &mut [f64]) {
    row.iter_mut().for_each(|value| *value = value.max(LEAST).ln());
}

/// What lies below a number whatever that means: as a logit a million to one against it, and by more than any floating type rounds away. Where there is nothing
/// below it, as it is `narrowed`, it is the number itself; beside one that is none, or has no end, it is zero.
pub(super) fn below(least: f64, narrowed: impl Fn(f64) -> f64) -> f64 {
    if least.is_nan() || least == f64::INFINITY {
        return 0.0;
    }
    let below = least - (-LEAST.ln()).max(least.abs() * OVER);
    if narrowed(below).is_finite() { below } else { least }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_told_from_their_numbers() {
        let kind = |row: &[f64]| Kind::of(row, false);
        assert_eq!(kind(&[0.2, 0.8]), Kind::Probabilities);
        assert_eq!(kind(&[0.0, 1.0, 0.0]), Kind::Probabilities);
        assert_eq!(kind(&[0.2, 0.819]), Kind::Probabilities);
        assert_eq!(kind(&[0.2, 0.821]), Kind::Numbers);
        assert_eq!(kind(&[-0.1, 1.1]), Kind::Numbers);
        assert_eq!([kind(&[0.0]), kind(&[0.5]), kind(&[1.0])], [Kind::Probability; 3]);
        assert_eq!([kind(&[1.001]), kind(&[-0.001]), Kind::of(&[0.5], true)], [Kind::Numbers; 3]);
        assert_eq!(kind(&[]), Kind::Numbers);
        assert_eq!(kind(&[f64::NAN, 1.0]), Kind::Broken);
        assert_eq!(Kind::of(&[3.0, -2.0], true), Kind::Logits);
        assert_eq!(Kind::of(&[3.0, f64::INFINITY], true), Kind::Broken);
    }

    #[test]
    fn the_crown_goes_back_to_the_best_with_the_sum_as_it_was() {
        let crowned = |mut row: Vec<f64>, place| {
            let sum: f64 = row.iter().sum();
            crown(&mut row, place);
            assert_eq!(best(&row), place, "{row:?}");
            assert!((row.iter().sum::<f64>() - sum).abs() < 1e-12);
        };
        crowned(vec![0.5, 0.3, 0.2], 2);
        crowned(vec![0.5, 0.5], 1);
        crowned(vec![0.25, 0.25, 0.25, 0.25], 3);
        crowned(vec![0.2, 0.8], 1);
    }

    #[test]
    fn the_best_of_equals_is_the_first() {
        assert_eq!(best(&[0.1, 0.4, 0.4]), 1);
    }
}
