//! From what the meter measures to what thieves reach.
//!
//! The meter's students see few of the rows, or what is linear of them, and tell the lower end of what they find; a thief who has all rows may do
//! better, and by how much is the model's own. When a model is calibrated, thieves are trained on made-up transcripts (honest inputs, noise, uniform inputs, at
//! growing numbers of rows) beside a meter, and a curve is fitted through what both reached:
//!
//! logit(fidelity) = slope · logit(measured) + growth · ln(rows / 100) + offset
//!
//! It is then lowered until it lies above at most one thief in twenty by more than [`ABOVE`]: the estimate is a bound from below.

/// By how much an estimate may lie above a thief and still count as a bound from below.
pub const ABOVE: f64 = 0.02;

/// The part of thieves above which it may lie.
const MOST_ABOVE: f64 = 0.05;

/// The fewest thieves from which a curve is fitted.
pub const FEWEST_THIEVES: usize = 20;

/// Where so many thieves lie so near to what was measured, there is nothing to correct, and a curve would follow chance: so near is what is asked
/// of the meter. Held to 0.03, a model of digits had a curve by thieves of honest rows, which lay above every fifth thief who asked otherwise.
const NEAR: f64 = 0.05;
const MOST_NEAR: f64 = 0.75;

/// Holds the curve near leaving things as they are, where thieves say little.
const RIDGE: f64 = 0.5;

/// Fidelities are held off 0 and 1 by so much, where a logit has no end.
const EDGE: f64 = 0.005;

/// One thief, trained on the transcript that a meter learned from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thief {
    /// What the meter's best student had.
    pub measured: f32,
    /// Rows of the transcript.
    pub rows: u32,
    /// The thief's own agreement with the model.
    pub fidelity: f32,
}

/// The curve. The default leaves everything as it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Correction {
    /// By how much the logit is multiplied.
    pub slope: f64,
    /// What is added for each e-fold of rows.
    pub growth: f64,
    /// What is added at 100 rows.
    pub offset: f64,
}

impl Default for Correction {
    fn default() -> Self {
        Self { slope: 1.0, growth: 0.0, offset: 0.0 }
    }
}

impl Correction {
    /// Through thieves; the default where most of them are what was measured. `None` for fewer than [`FEWEST_THIEVES`], or for such as say
    /// nothing.
    #[must_use]
    pub fn fit(thieves: &[Thief]) -> Option<Self> {
        if thieves.len() < FEWEST_THIEVES {
            return None;
        }
        let near = thieves.iter().filter(|thief| f64::from(thief.fidelity - thief.measured).abs() <= NEAR).count();
        if near as f64 >= MOST_NEAR * thieves.len() as f64 {
            return Some(Self::default());
        }
        // Ridge regression of the difference from leaving things as they are.
        let mut squares = [0.0; 9];
        let mut sums = [0.0; 3];
        for thief in thieves {
            let x = [logit(thief.measured), growth(thief.rows), 1.0];
            let rest = logit(thief.fidelity) - x[0];
            for (row, this) in x.iter().enumerate() {
                sums[row] += this * rest;
                x.iter().enumerate().for_each(|(column, that)| squares[row * 3 + column] += this * that);
            }
        }
        (0..3).for_each(|place| squares[place * 4] += RIDGE);
        super::moments::solve(&mut squares, 3, &mut sums, 1)?;
        let mut curve = Self { slope: 1.0 + sums[0], growth: sums[1], offset: sums[2] };
        if !(curve.slope.is_finite() && curve.growth.is_finite() && curve.offset.is_finite()) {
            return None;
        }
        // More learned is never less gone.
        curve.slope = curve.slope.max(0.0);
        curve.growth = curve.growth.max(0.0);
        // How far each thief would have it lowered.
        let mut lower: Vec<f64> = thieves
            .iter()
            .map(|thief| curve.raised(thief.measured, thief.rows) - logit((f64::from(thief.fidelity) + ABOVE) as f32))
            .collect();
        lower.sort_by(|a, b| b.total_cmp(a));
        let spared = (thieves.len() as f64 * MOST_ABOVE) as usize;
        curve.offset -= lower[spared].max(0.0);
        Some(curve)
    }

    /// The fidelity that a thief reaches where the meter measured so much after so many rows, from 0 to 1.
    #[must_use]
    pub fn corrected(&self, measured: f32, rows: u32) -> f32 {
        if *self == Self::default() {
            return measured;
        }
        (1.0 / (1.0 + (-self.raised(measured, rows)).exp())) as f32
    }

    fn raised(&self, measured: f32, rows: u32) -> f64 {
        self.slope * logit(measured) + self.growth * growth(rows) + self.offset
    }
}

fn logit(fidelity: f32) -> f64 {
    let fidelity = f64::from(fidelity).clamp(EDGE, 1.0 - EDGE);
    (fidelity / (1.0 - fidelity)).ln()
}

fn growth(rows: u32) -> f64 {
    (f64::from(rows.max(1)) / 100.0).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thieves(count: usize, gap: impl Fn(f64, u32) -> f64) -> Vec<Thief> {
        (0..count)
            .map(|at| {
                let rows = 25 << (at % 7);
                let measured = 0.2 + 0.7 * at as f64 / count as f64;
                Thief { measured: measured as f32, rows, fidelity: gap(measured, rows) as f32 }
            })
            .collect()
    }

    #[test]
    fn the_default_changes_nothing() {
        for measured in [0.0, 0.001, 0.5, 0.9999, 1.0] {
            assert_eq!(Correction::default().corrected(measured, 100), measured);
        }
    }

    #[test]
    fn too_few_thieves_say_nothing() {
        assert_eq!(Correction::fit(&thieves(FEWEST_THIEVES - 1, |m, _| m)), None);
        assert!(Correction::fit(&thieves(FEWEST_THIEVES, |m, _| m)).is_some());
    }

    #[test]
    fn a_model_that_the_meter_follows_is_not_corrected() {
        let follows = |part: usize| -> Vec<Thief> {
            let all = thieves(40, |m, _| m);
            all.into_iter().enumerate().map(|(at, t)| Thief { fidelity: t.fidelity + if at < part { 0.049 } else { 0.08 }, ..t }).collect()
        };
        assert_eq!(Correction::fit(&follows(30)), Some(Correction::default()));
        assert_ne!(Correction::fit(&follows(29)), Some(Correction::default()));
    }

    #[test]
    fn a_gap_that_grows_with_the_rows_is_learned() {
        let curve = |m: f64, rows: u32| {
            let raised = 0.8 * (m / (1.0 - m)).ln() + 0.3 * (f64::from(rows) / 100.0).ln() + 0.4;
            1.0 / (1.0 + (-raised).exp())
        };
        let fitted = Correction::fit(&thieves(140, curve)).unwrap();
        for thief in thieves(97, curve) {
            let corrected = fitted.corrected(thief.measured, thief.rows);
            assert!((corrected - thief.fidelity).abs() < 0.02, "{thief:?} {corrected}");
        }
    }

    #[test]
    fn at_most_one_in_twenty_lies_above_its_thief() {
        // Every second thief does much worse than the others.
        let uneven: Vec<Thief> = thieves(200, |m, _| m)
            .into_iter()
            .enumerate()
            .map(|(at, thief)| Thief { fidelity: if at % 2 == 0 { thief.measured } else { thief.measured * 0.7 }, ..thief })
            .collect();
        let fitted = Correction::fit(&uneven).unwrap();
        let above = uneven.iter().filter(|t| f64::from(fitted.corrected(t.measured, t.rows)) > f64::from(t.fidelity) + ABOVE + 1e-6);
        assert!(above.count() <= 10);
    }

    #[test]
    fn more_measured_is_never_less_corrected() {
        let fitted = Correction::fit(&thieves(60, |m, _| 1.0 - m)).unwrap();
        assert!(fitted.corrected(0.9, 100) >= fitted.corrected(0.2, 100));
        assert!(fitted.corrected(0.5, 1_000) >= fitted.corrected(0.5, 10));
    }
}
