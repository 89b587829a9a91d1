//! Sums of products, kept in 24 bits each.
//!
//! A sum is a float of 32 bits without its last 8. What is cut off is rounded up as often as its size says, so that small terms are not
//! lost in a large sum: over n additions the error is that of √n rounded at 2⁻¹⁶, and its mean is nothing.

/// Sums, the upper 16 bits apart from the 8 below them, so that the compiler can take several at once.
#[derive(Clone)]
pub(super) struct Sums {
    high: Box<[u16]>,
    low: Box<[u8]>,
}

impl Sums {
    /// So many, each of nothing.
    pub(super) fn new(count: usize) -> Self {
        Self { high: vec![0; count].into(), low: vec![0; count].into() }
    }

    /// Bytes that are kept apart from it.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.high) + size_of_val(&*self.low)
    }

    pub(super) fn at(&self, place: usize) -> f32 {
        f32::from_bits(u32::from(self.high[place]) << 16 | u32::from(self.low[place]) << 8)
    }

    /// Adds `scale` times each of `terms` to the sums from `from` on. `dice` is the chance of this addition.
    #[inline]
    pub(super) fn add(&mut self, from: usize, scale: f32, terms: &[f32], dice: u32) {
        let high = &mut self.high[from..from + terms.len()];
        let low = &mut self.low[from..from + terms.len()];
        for (place, ((high, low), term)) in high.iter_mut().zip(low).zip(terms).enumerate() {
            let sum = f32::from_bits(u32::from(*high) << 16 | u32::from(*low) << 8) + scale * term;
            let chance = dice.wrapping_add((place as u32).wrapping_mul(0x9E37_79B9)) >> 24;
            let bits = sum.to_bits().wrapping_add(chance);
            // Both casts keep the bits that are meant.
            *high = (bits >> 16) as u16;
            *low = (bits >> 8) as u8;
        }
    }
}

/// The places of an upper triangle of `of` rows, row by row: where `row` begins.
pub(super) const fn row_of_triangle(row: usize, of: usize) -> usize {
    row * of - row * (row.saturating_sub(1)) / 2
}

/// Dice for [`Sums::add`]: they need to be even, and not to be secret (xorshift32, Marsaglia 2003).
pub(super) fn throw(dice: &mut u32) -> u32 {
    *dice ^= *dice << 13;
    *dice ^= *dice >> 17;
    *dice ^= *dice << 5;
    *dice
}

/// Solves A·X = B for a symmetric A that is positive definite, by Cholesky's way. A is `n` by `n`, its lower triangle is read and
/// overwritten; B holds `columns` columns, each of `n` numbers, one after another, and is overwritten with X. `None` when A is none.
pub(super) fn solve(a: &mut [f64], n: usize, b: &mut [f64], columns: usize) -> Option<()> {
    for row in 0..n {
        for column in 0..=row {
            let (above, this) = a.split_at_mut(row * n);
            let left = if column == row { &this[..column] } else { &above[column * n..column * n + column] };
            let dot: f64 = this[..column].iter().zip(left).map(|(x, y)| x * y).sum();
            let rest = this[column] - dot;
            if column < row {
                this[column] = rest / above[column * n + column];
            } else if rest > 0.0 && rest.is_finite() {
                this[column] = rest.sqrt();
            } else {
                return None;
            }
        }
    }
    for x in b.chunks_exact_mut(n).take(columns) {
        for row in 0..n {
            let dot: f64 = a[row * n..row * n + row].iter().zip(&x[..row]).map(|(l, y)| l * y).sum();
            x[row] = (x[row] - dot) / a[row * n + row];
        }
        for row in (0..n).rev() {
            let done = x[row] / a[row * n + row];
            x[row] = done;
            for before in 0..row {
                x[before] -= a[row * n + before] * done;
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_terms_are_not_lost_in_a_large_sum() {
        let mut sums = Sums::new(1);
        let mut dice = 1;
        sums.add(0, 1.0, &[65_536.0], throw(&mut dice));
        // Each is a quarter of what 24 bits can add to such a sum: plain rounding would lose all of them.
        for _ in 0..40_000 {
            sums.add(0, 1.0, &[0.25], throw(&mut dice));
        }
        let added = sums.at(0) - 65_536.0;
        assert!((added - 10_000.0).abs() < 600.0, "{added}");
    }

    #[test]
    fn negative_sums_are_rounded_as_evenly() {
        let mut sums = Sums::new(3);
        let mut dice = 7;
        for _ in 0..10_000 {
            sums.add(0, -0.3, &[1.0, 2.0, 0.0], throw(&mut dice));
        }
        assert!((sums.at(0) + 3_000.0).abs() < 6.0, "{}", sums.at(0));
        assert!((sums.at(1) + 6_000.0).abs() < 12.0, "{}", sums.at(1));
        assert!(sums.at(2).abs() < 1e-30);
    }

    #[test]
    fn a_triangle_has_its_rows_one_after_another() {
        assert_eq!([0, 1, 2].map(|row| row_of_triangle(row, 3)), [0, 3, 5]);
        assert_eq!(row_of_triangle(65, 65), 65 * 66 / 2);
    }

    #[test]
    fn equations_are_solved_and_such_as_cannot_be_are_told() {
        // A = [[4, 2], [2, 3]], x = (1, -1), (0.5, 2).
        let mut a = vec![4.0, 0.0, 2.0, 3.0];
        let mut b = vec![2.0, -1.0, 6.0, 7.0];
        solve(&mut a, 2, &mut b, 2).unwrap();
        for (found, meant) in b.iter().zip([1.0, -1.0, 0.5, 2.0]) {
            assert!((found - meant).abs() < 1e-12);
        }
        assert!(solve(&mut [1.0, 0.0, 2.0, 1.0], 2, &mut [0.0, 0.0], 1).is_none(), "not positive definite");
        assert!(solve(&mut [f64::NAN], 1, &mut [0.0], 1).is_none());
    }
}
