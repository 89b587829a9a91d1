//! The meter: how good a copy of the model could be made of what a caller has been answered.
//!
//! It is the thief himself, as far as 12 KiB go. Four students learn from every row and its answer, and are tried on the owner's
//! [holdout](super::holdout); the best counts, as it would for a thief:
//!
//! * linear discriminants with a shared covariance, from the sums of the features of each class: what a logistic regression or
//!   support vectors find, in closed form; where answers are labels;
//! * least squares on the logarithms of the probabilities: it solves the equations of a model that is linear up to its softmax, and finds
//!   the linear part of others; where answers are probabilities;
//! * the nearest neighbour: each row of the holdout keeps the distance of the nearest query so far, and whether its label was right;
//! * a kernel machine (`kernel.rs`) on rows that are kept (`kept.rs`), as many as the others leave room for: what a network finds.
//!
//! The first two need the second moments of the features and their sums with the answers; the third is exact. So nothing of them depends on the
//! order of the queries, and nothing has a learning rate. Stochastic gradient descent on 256 random Fourier features was tried and
//! dropped: in one pass it stays 0.1 to 0.5 below what a thief reaches who trains on the same answers as often as he likes.
//!
//! The fourth takes too long for a request: what it needs is [taken along](Meter::study), tried elsewhere, and [heard](Meter::hear) when
//! it is known.
//!
//! The estimate never falls: whoever sends rubbish between his queries leaves it out when he trains.
//!
//! It is a bound from below. A thief who knows the model's kind may do better, and so may one with more rows than are kept;
//! [`correction`](super::correction) learns by how much.

use std::fmt;

use super::correction::Correction;
use super::holdout::{FEATURES, Features, Holdout, MOST_CLASSES, NEAREST_ROWS};
use super::kept::{Form, Kept};
use super::kernel;
use super::moments::{Sums, row_of_triangle, solve, throw};

/// The most bytes of a meter, with the rows that it keeps.
pub const MOST_BYTES: usize = 12 << 10;

/// Rows after which a meter is evaluated for the first time.
const FIRST_EVALUATION: u32 = 16;

/// Ridges, as parts of the mean variance of the features. Few answers ask for large ones, exact answers for small ones; the best counts.
const DISCRIMINANT_RIDGES: [f64; 2] = [0.1, 1.0];
const EQUATION_RIDGES: [f64; 3] = [1e-3, 1e-2, 1e-1];

/// Queries whose features vary more than so much lie far outside honest inputs: how frequent a class is among them is their sender's doing,
/// and says nothing of the holdout.
const FAR_OUT: f64 = 4.0;

/// The holdout is a sample. What is told is the lower end of where the fidelity lies with 84 % confidence: so many standard errors below.
const STANDARD_ERRORS: f32 = 1.0;

/// The same for the kernel machine: with 69 % confidence. The best of a dozen thieves is better than any one student as often as chance favours
/// this one.
const STANDARD_ERRORS_OF_KERNEL: f32 = 0.5;

/// Below it, a probability says no more than that it is small. The least that are told say as much of a model's scores as the greatest:
/// with 10⁻⁶ in this place the meter stayed 0.3 below thieves of a perceptron's answers to noise.
const LEAST_PROBABILITY: f64 = 1e-30;

/// What a label counts for among logarithms of probabilities: about the distance of the best from the mean in an answer that is sure.
const SURE: f32 = 4.0;

/// No query yet; as a distance it is infinite, and the label of no query is wrong.
const NOTHING_NEAR: u16 = 0x7f80;
const RIGHT: u16 = 0x8000;

/// What was told of one row, after everything that shapes answers.
#[derive(Clone, Copy, Debug)]
pub enum Answer<'a> {
    /// The best class.
    Label(u32),
    /// A probability for each class of the model.
    Probabilities(&'a [f64]),
}

/// What the meter says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// The part of the holdout on which a copy would agree with the model, from 0 to 1, corrected.
    pub fidelity: f32,
    /// The same as the best student had it, at the lower end of where it may lie.
    pub measured: f32,
    /// After so many rows.
    pub rows: u32,
}

/// What was learned from one caller's answers, or from a cohort's.
#[derive(Clone)]
pub struct Meter {
    /// Features that can be other than nothing, and a constant.
    inputs: usize,
    /// Of these, the upper triangle of all products.
    squares: Sums,
    /// For each class what the [form](Form) of the answers asks for: the features summed, and the rows counted; or the features times the centred
    /// logarithm of its probability. None before the first answer.
    answers: Option<(Sums, Kept)>,
    /// For each row of the holdout the distance of the nearest query, as the upper half of a float, its sign for a label that is right.
    nearest: [u16; NEAREST_ROWS],
    rows: u32,
    evaluate_at: u32,
    study_at: u32,
    dice: u32,
    best: Estimate,
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").field("rows", &self.rows).field("best", &self.best).finish_non_exhaustive()
    }
}

impl Meter {
    /// One that has learned nothing.
    #[must_use]
    pub fn new(holdout: &Holdout) -> Self {
        let inputs = holdout.used() + 1;
        Self {
            inputs,
            squares: Sums::new(row_of_triangle(inputs, inputs)),
            answers: None,
            nearest: [NOTHING_NEAR; NEAREST_ROWS],
            rows: 0,
            evaluate_at: FIRST_EVALUATION,
            study_at: FIRST_EVALUATION,
            dice: holdout.dice(),
            best: Estimate { fidelity: 0.0, measured: 0.0, rows: 0 },
        }
    }

    /// Bytes that it takes, at most [`MOST_BYTES`].
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.squares.bytes() + self.answers.as_ref().map_or(0, |(sums, kept)| sums.bytes() + kept.bytes())
    }

    /// How many rows it has learned from.
    #[must_use]
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// The last estimate: the highest of all so far.
    #[must_use]
    pub fn estimate(&self) -> Estimate {
        self.best
    }

    /// Learns from one row. A repeat of a row that was answered alike before teaches a thief nothing and should be left out; nothing is
    /// learned from an answer that is none (a class the model has not, probabilities that are not one for each class or not finite).
    pub fn learn(&mut self, holdout: &Holdout, features: &Features, answer: Answer<'_>) {
        let mut logarithms = [0.0_f32; MOST_CLASSES];
        let width = holdout.width();
        let Some(class) = understood(holdout, answer, &mut logarithms[..width]) else { return };
        let inputs = self.inputs;
        let mut row = [1.0_f32; FEATURES + 1];
        row[..inputs - 1].copy_from_slice(&features.numbers()[..inputs - 1]);
        let row = &row[..inputs];
        for place in 0..inputs {
            let dice = throw(&mut self.dice);
            self.squares.add(row_of_triangle(place, inputs), row[place], &row[place..], dice);
        }
        let form = if matches!(answer, Answer::Label(_)) || holdout.has_others() { Form::Slots } else { Form::Logarithms };
        if self.answers.is_none() {
            let (sums, room) = self.begin(width);
            self.answers = Some((sums, Kept::new(holdout, form, room)));
        } else if form == Form::Logarithms {
            self.turn_to_logarithms(holdout);
        }
        let slot = holdout.slot(class);
        if let Some((sums, kept)) = &mut self.answers {
            match kept.form() {
                Form::Slots => {
                    let dice = throw(&mut self.dice);
                    sums.add(usize::from(slot) * inputs, 1.0, row, dice);
                }
                Form::Logarithms => {
                    for (slot, logarithm) in logarithms[..width].iter().enumerate() {
                        let dice = throw(&mut self.dice);
                        sums.add(slot * inputs, *logarithm, row, dice);
                    }
                }
            }
            kept.offer(features.numbers(), slot, &logarithms[..width]);
        }
        self.approach(holdout, features.numbers(), class);
        self.rows = self.rows.saturating_add(1);
    }

    /// Sums of nothing, and the bytes that are left beside them for rows, where there are neither.
    fn begin(&self, width: usize) -> (Sums, usize) {
        let sums = Sums::new(self.inputs * width);
        let room = MOST_BYTES.saturating_sub(self.bytes() + sums.bytes());
        (sums, room)
    }

    /// Takes what labels told for what probabilities would have: whoever asks for a label first, or has one that is sure, is not to be taken for
    /// somebody who was told no more. Nothing is lost by it but a few of the rows that are kept, which take more room.
    fn turn_to_logarithms(&mut self, holdout: &Holdout) {
        let Some((classes, kept)) = self.answers.take_if(|(_, kept)| kept.form() == Form::Slots) else { return };
        let width = holdout.width();
        let (mut sums, room) = self.begin(width);
        for slot in 0..width {
            let rows: Vec<f32> = (0..self.inputs).map(|place| classes.at(slot * self.inputs + place)).collect();
            for (other, scale) in sure(slot, width).into_iter().take(width).enumerate() {
                sums.add(other * self.inputs, scale, &rows, throw(&mut self.dice));
            }
        }
        self.answers = Some((sums, kept.in_logarithms(holdout, room, |slot| sure(slot, width))));
    }

    fn approach(&mut self, holdout: &Holdout, features: &[f32; FEATURES], class: u32) {
        let half = 0.5 * dot(features, features);
        let distances = holdout.distances(features);
        for ((nearest, distance), label) in self.nearest.iter_mut().zip(distances).zip(holdout.labels()) {
            // Rounding can bring it below nothing. The cast keeps the upper half, which is what is kept.
            let distance = ((half + distance).max(0.0).to_bits() >> 16) as u16;
            if distance <= *nearest & !RIGHT {
                *nearest = nearer(*nearest, if *label == class { distance | RIGHT } else { distance });
            }
        }
    }

    /// Whether enough has been learned since the last evaluation for another to be worth its time (half as much again).
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.rows >= self.evaluate_at
    }

    /// What the kernel machine needs, when enough has been learned since it was [taken along](Self::studied) last.
    #[must_use]
    pub fn study(&self) -> Option<Study> {
        let (_, kept) = self.answers.as_ref().filter(|_| self.rows >= self.study_at)?;
        Some(Study { kept: kept.clone(), rows: self.rows })
    }

    /// It was taken along: the next is due after half as many rows again.
    pub fn studied(&mut self) {
        self.study_at = self.rows.saturating_add(self.rows / 2).max(FIRST_EVALUATION);
    }

    /// It could not be taken along, and is to be offered again after so many rows.
    pub fn put_off(&mut self, rows: u32) {
        self.study_at = self.rows.saturating_add(rows);
    }

    /// Hears what came of it. What is said then is at least what was said before.
    pub fn hear(&mut self, studied: Studied, correction: &Correction) -> Estimate {
        self.best.measured = self.best.measured.max(studied.measured);
        self.best.fidelity = self.best.fidelity.max(correction.corrected(studied.measured, studied.rows));
        self.best
    }

    /// Tries all students here and now, where there is time: when a model is calibrated, and when the meter itself is measured.
    pub fn evaluate_wholly(&mut self, holdout: &Holdout, correction: &Correction) -> Estimate {
        self.evaluate(holdout, correction);
        self.study_at = self.study_at.min(self.rows);
        let Some(study) = self.study() else { return self.best };
        self.studied();
        self.hear(study.on(holdout), correction)
    }

    /// Tries the students on the holdout, the kernel machine left out: about a millisecond. What it says is at least what it said before.
    pub fn evaluate(&mut self, holdout: &Holdout, correction: &Correction) -> Estimate {
        self.evaluate_at = self.rows.saturating_add(self.rows / 2).max(FIRST_EVALUATION);
        if self.rows > 0 {
            let measured = self.measure(holdout);
            let fidelity = correction.corrected(measured, self.rows);
            self.best.measured = self.best.measured.max(measured);
            self.best.fidelity = self.best.fidelity.max(fidelity);
        }
        self.best.rows = self.rows;
        self.best
    }

    /// The best student's agreement with the model, less what chance may have added.
    fn measure(&self, holdout: &Holdout) -> f32 {
        let near = self.nearest.iter().take(holdout.len()).filter(|nearest| *nearest & RIGHT != 0).count();
        let mut best = near as f32 / NEAREST_ROWS.min(holdout.len()) as f32;
        if let Some((sums, kept)) = &self.answers {
            let moments = Moments::of(&self.squares, sums, (self.inputs, holdout.width()));
            match kept.form() {
                Form::Slots => DISCRIMINANT_RIDGES.iter().for_each(|ridge| {
                    best = best.max(moments.discriminants(*ridge).map_or(0.0, |student| student.agreement(holdout)));
                }),
                Form::Logarithms => EQUATION_RIDGES.iter().for_each(|ridge| {
                    best = best.max(moments.equations(*ridge).map_or(0.0, |student| student.agreement(holdout)));
                }),
            }
        }
        lower(best, STANDARD_ERRORS, holdout)
    }
}

/// What the kernel machine needs of a meter.
#[derive(Clone, Debug)]
pub struct Study {
    kept: Kept,
    rows: u32,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Studied {
    /// The part of the holdout on which the copy agrees with the model, at the lower end of where it may lie.
    pub measured: f32,
    /// Rows of the transcript.
    pub rows: u32,
}

impl Study {
    /// Trains the copy and tries it: up to some tenths of a second.
    #[must_use]
    pub fn on(&self, holdout: &Holdout) -> Studied {
        let agreement = kernel::agreement(holdout, &self.kept);
        Studied { measured: lower(agreement, STANDARD_ERRORS_OF_KERNEL, holdout), rows: self.rows }
    }
}

/// So many standard errors below an agreement that was seen on the holdout.
fn lower(agreement: f32, errors: f32, holdout: &Holdout) -> f32 {
    let error = (agreement * (1.0 - agreement) / holdout.len() as f32).sqrt();
    (agreement - errors * error).max(0.0)
}

/// The nearer of two, and of equally near ones the right one, so that their order does not matter.
fn nearer(a: u16, b: u16) -> u16 {
    match (a & !RIGHT).cmp(&(b & !RIGHT)) {
        std::cmp::Ordering::Less => a,
        std::cmp::Ordering::Greater => b,
        std::cmp::Ordering::Equal => a | b,
    }
}

/// What a label counts for: of each of `slots` the centred logarithm of its probability.
fn sure(slot: usize, slots: usize) -> [f32; MOST_CLASSES] {
    let rest = -SURE / slots as f32;
    std::array::from_fn(|at| if at == slot { SURE + rest } else { rest })
}

/// The class of an answer, and the centred logarithms of its probabilities by slot.
pub(super) fn understood(holdout: &Holdout, answer: Answer<'_>, logarithms: &mut [f32]) -> Option<u32> {
    let slots = logarithms.len();
    match answer {
        Answer::Label(class) => {
            if class >= holdout.classes() {
                return None;
            }
            logarithms.copy_from_slice(&sure(usize::from(holdout.slot(class)), slots)[..slots]);
            Some(class)
        }
        Answer::Probabilities(row) => {
            if row.len() != holdout.classes() as usize || !row.iter().all(|p| p.is_finite() && *p >= 0.0) {
                return None;
            }
            let mut sums = [0.0_f64; MOST_CLASSES];
            let mut best = 0;
            let mut least = f64::INFINITY;
            for (class, p) in row.iter().enumerate() {
                sums[usize::from(holdout.slot(class as u32))] += p;
                if *p > row[best] {
                    best = class;
                }
                if *p > 0.0 {
                    least = least.min(*p);
                }
            }
            // A zero is a number that was rounded away: it lies below half of the least that was told.
            let floor = if least.is_finite() { LEAST_PROBABILITY.max(0.5 * least) } else { LEAST_PROBABILITY };
            let sums = &mut sums[..slots];
            sums.iter_mut().for_each(|p| *p = p.max(floor).ln());
            let mean = sums.iter().sum::<f64>() / slots as f64;
            logarithms.iter_mut().zip(sums).for_each(|(logarithm, sum)| *logarithm = (*sum - mean) as f32);
            Some(best as u32)
        }
    }
}

/// The sums as means, and the covariance of the features.
struct Moments {
    /// Features that can be other than nothing.
    features: usize,
    rows: f64,
    mean: Vec<f64>,
    /// Lower triangle of the covariance, the features alone.
    covariance: Vec<f64>,
    /// For each slot the constant's sum, and those of the features.
    answers: Vec<(f64, Vec<f64>)>,
}

impl Moments {
    fn of(squares: &Sums, answers: &Sums, (inputs, width): (usize, usize)) -> Self {
        let features = inputs - 1;
        // The constant's own sum says by how much rounding has moved all of them.
        let rows = f64::from(squares.at(row_of_triangle(features, inputs))).max(1.0);
        let mean: Vec<f64> =
            (0..features).map(|place| f64::from(squares.at(row_of_triangle(place, inputs) + features - place)) / rows).collect();
        let mut covariance = vec![0.0; features * features];
        for row in 0..features {
            for column in row..features {
                let square = f64::from(squares.at(row_of_triangle(row, inputs) + column - row)) / rows;
                covariance[column * features + row] = square - mean[row] * mean[column];
            }
        }
        let of_slot = |slot: usize| {
            let at = |place: usize| f64::from(answers.at(slot * inputs + place));
            (at(features), (0..features).map(at).collect())
        };
        Self { features, rows, answers: (0..width).map(of_slot).collect(), mean, covariance }
    }

    /// Linear discriminants: Σ⁻¹μ for each class, with Σ the covariance within classes.
    fn discriminants(&self, ridge: f64) -> Option<Student> {
        let n = self.features;
        let of_class = |(count, sums): &(f64, Vec<f64>)| (*count, sums.iter().map(|sum| sum / count.max(1.0)).collect());
        let classes: Vec<(f64, Vec<f64>)> = self.answers.iter().map(of_class).collect();
        let mut within = self.covariance.clone();
        for (count, class) in classes.iter().filter(|(count, _)| *count >= 0.5) {
            let apart: Vec<f64> = class.iter().zip(&self.mean).map(|(x, mean)| x - mean).collect();
            for row in 0..n {
                for column in 0..=row {
                    within[row * n + column] -= count / self.rows * apart[row] * apart[column];
                }
            }
        }
        stiffen(&mut within, n, ridge);
        let spread = (0..n).map(|place| self.covariance[place * n + place]).sum::<f64>() / n as f64;
        let mut weights: Vec<f64> = classes.iter().flat_map(|(_, class)| class.iter().copied()).collect();
        solve(&mut within, n, &mut weights, classes.len())?;
        let offsets = classes.iter().zip(weights.chunks_exact(n)).map(|((count, class), weights)| {
            if *count < 0.5 {
                return f64::NEG_INFINITY;
            }
            let half: f64 = class.iter().zip(weights).map(|(x, w)| x * w).sum::<f64>() / 2.0;
            if spread > FAR_OUT { -half } else { (count / self.rows).ln() - half }
        });
        Some(Student::new(&weights, n, offsets))
    }

    /// Least squares on the logarithms of the probabilities.
    fn equations(&self, ridge: f64) -> Option<Student> {
        let n = self.features;
        let of_slot = |(sum, sums): &(f64, Vec<f64>)| {
            let middle = sum / self.rows;
            (middle, sums.iter().zip(&self.mean).map(|(sum, mean)| sum / self.rows - mean * middle).collect())
        };
        let logarithms: Vec<(f64, Vec<f64>)> = self.answers.iter().map(of_slot).collect();
        let mut covariance = self.covariance.clone();
        stiffen(&mut covariance, n, ridge);
        let mut weights: Vec<f64> = logarithms.iter().flat_map(|(_, sums)| sums.iter().copied()).collect();
        solve(&mut covariance, n, &mut weights, logarithms.len())?;
        let offsets = logarithms.iter().zip(weights.chunks_exact(n)).map(|((middle, _), weights)| {
            let at_mean: f64 = self.mean.iter().zip(weights).map(|(x, w)| x * w).sum();
            middle - at_mean
        });
        Some(Student::new(&weights, n, offsets))
    }
}

/// Adds a ridge, a part of the mean of the diagonal.
fn stiffen(matrix: &mut [f64], n: usize, ridge: f64) {
    let diagonal = || (0..n).map(|place| place * n + place);
    let mean = diagonal().map(|place| matrix[place]).sum::<f64>() / n as f64;
    // Of one row, or of equal ones, nothing varies.
    let ridge = ridge * mean.max(1e-6);
    diagonal().for_each(|place| matrix[place] = matrix[place].max(0.0) + ridge);
}

/// A copy that is linear in the features: the class of the highest score.
struct Student {
    weights: Vec<[f32; FEATURES]>,
    offsets: Vec<f32>,
}

impl Student {
    fn new(weights: &[f64], features: usize, offsets: impl Iterator<Item = f64>) -> Self {
        let whole = |row: &[f64]| std::array::from_fn(|place| row.get(place).map_or(0.0, |w| *w as f32));
        let weights = weights.chunks_exact(features).map(whole).collect();
        Self { weights, offsets: offsets.map(|offset| offset as f32).collect() }
    }

    /// On the rows whose class is learned apart.
    fn agreement(&self, holdout: &Holdout) -> f32 {
        let (mut right, mut all) = (0_u32, 0_u32);
        for (row, slot) in holdout.rows().iter().zip(holdout.slots()) {
            let Some(slot) = slot else { continue };
            let mut best = (f32::NEG_INFINITY, 0);
            for (class, (weights, offset)) in self.weights.iter().zip(&self.offsets).enumerate() {
                let score = dot(row, weights) + offset;
                if score > best.0 {
                    best = (score, class);
                }
            }
            all += 1;
            right += u32::from(best.1 == usize::from(*slot) && best.0 > f32::NEG_INFINITY);
        }
        if all == 0 { 0.0 } else { right as f32 / all as f32 }
    }
}

/// In eight sums, which the compiler can keep apart: in one it would have to add them in order.
fn dot(a: &[f32; FEATURES], b: &[f32; FEATURES]) -> f32 {
    let mut sums = [0.0_f32; 8];
    for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests;
