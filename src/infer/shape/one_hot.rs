//! The best class alone. The row keeps its length and its type: 1 for the best, 0 for the others.
//!
//! It is the strongest of the shapes that keep the best class, and the yardstick of the others: what they withhold, a thief
//! gives up by training on labels.

/// Makes a row of probabilities the one-hot row of `best`.
pub fn shape(row: &mut [f64], best: usize) {
    row.fill(0.0);
    row[best] = 1.0;
}
