//! Fewer decimals, and fewer classes.

/// `value` to so many decimals; what is not finite stays what it is.
#[must_use]
pub fn rounded(value: f64, decimals: u8) -> f64 {
    let scale = 10_f64.powi(i32::from(decimals.min(15)));
    let scaled = value * scale;
    if scaled.is_finite() { scaled.round() / scale } else { value }
}

/// Rounds a row of probabilities. Where a class before the best comes out even with it, it gives up a step, or the best gains one where it
/// has none to give: the best class is kept, and the sum is as near to 1 as rounding leaves it.
pub fn shape(row: &mut [f64], best: usize, decimals: u8) {
    row.iter_mut().for_each(|value| *value = rounded(*value, decimals));
    let step = 0.1_f64.powi(i32::from(decimals.min(15)));
    for place in 0..best {
        if row[place] >= row[best] {
            if row[place] >= step {
                row[place] = rounded(row[place] - step, decimals);
            } else {
                row[best] = rounded(row[best] + step, decimals);
            }
        }
    }
}

/// Keeps the best `top`, of equals the first, and makes all others what `others` says beside the least that is kept.
pub fn keep_best(row: &mut [f64], top: usize, others: impl FnOnce(f64) -> f64) {
    if top >= row.len() {
        return;
    }
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
    let (kept, withheld) = order.split_at(top);
    let told = others(kept.last().map_or(0.0, |least| row[*least]));
    withheld.iter().for_each(|index| row[*index] = told);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_stays_the_best_when_a_class_before_it_rounds_to_the_same() {
        let mut row = [0.46, 0.47, 0.07];
        shape(&mut row, 1, 1);
        assert_eq!(row, [0.4, 0.5, 0.1]);
        let mut row = [0.3, 0.3, 0.4];
        shape(&mut row, 2, 0);
        assert_eq!(row, [0.0, 0.0, 1.0]);
        let mut row = [0.123, 0.877];
        shape(&mut row, 1, 2);
        assert_eq!(row, [0.12, 0.88]);
    }
}
