//! The best class alone. The row keeps its length and its type: 1 for the best, 0 for the others.
//!
//! It is the strongest of the shapes that keep the best class, and the yardstick of the others: what they withhold, a thief
//! gives up by training on labels.

use super::row;

/// Digits that are left of a single number of which nothing is known.
const DIGITS: i32 = 2;

/// Makes a row of numbers of which nothing was said what tells no more than a label would: of several the greatest is 1 and the others 0,
/// as if they were scores. One number between 0 and 1 is a probability, and goes to the nearer end; another keeps two digits.
pub fn numbers(row: &mut [f64]) {
    match row {
        [number] if (0.0..=1.0).contains(number) => *number = number.round(),
        [number] if *number != 0.0 => {
            let scale = 10_f64.powi(DIGITS - 1 - number.abs().log10().floor() as i32);
            let coarse = (*number * scale).round() / scale;
            // So small a number has no scale: it is nothing.
            *number = if coarse.is_finite() { coarse } else { 0.0 };
        }
        [_] | [] => {}
        _ => shape(row, row::best(row)),
    }
}

/// The same for a row in which a number is not finite: such numbers stay.
pub fn broken(row: &mut [f64]) {
    let finite = row.iter().enumerate().filter(|(_, value)| value.is_finite());
    let best = finite.max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(place, _)| place);
    for (place, value) in row.iter_mut().enumerate().filter(|(_, value)| value.is_finite()) {
        *value = if Some(place) == best { 1.0 } else { 0.0 };
    }
}

/// Makes a row of probabilities the one-hot row of `best`.
pub fn shape(row: &mut [f64], best: usize) {
    row.fill(0.0);
    row[best] = 1.0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_nobody_told_of_tell_no_more_than_a_label() {
        let told = |row: &[f64]| {
            let mut row = row.to_vec();
            numbers(&mut row);
            row
        };
        assert_eq!(told(&[3.25, -1.5, 0.5]), [1.0, 0.0, 0.0]);
        assert_eq!(told(&[0.49]), [0.0]);
        assert_eq!(told(&[0.51]), [1.0]);
        assert_eq!(told(&[1234.5]), [1200.0]);
        assert_eq!(told(&[-0.012_345]), [-0.012]);
        assert_eq!(told(&[0.0]), [0.0]);
        assert_eq!(told(&[-5e-324]), [0.0]);
        assert!(told(&[-f64::MAX])[0] < -1e308 || told(&[-f64::MAX])[0] == 0.0);
        assert!(told(&[]).is_empty());
    }

    #[test]
    fn beside_a_number_that_is_none_nothing_is_told() {
        let mut row = [f64::NAN, 0.3, 0.7, f64::INFINITY];
        broken(&mut row);
        assert!(row[0].is_nan() && row[3].is_infinite());
        assert_eq!(row[1..3], [0.0, 1.0]);
        let mut row = [f64::NAN];
        broken(&mut row);
        assert!(row[0].is_nan());
    }
}
