//! The space in which inputs are compared: secret, and fitted to what honest callers of the model send.
//!
//! An input of any width becomes a [`Point`] of fixed size, from which it cannot be read back: 64 numbers of a keyed random projection
//! (Achlioptas, 2003), whitened; 256 random Fourier features of them (Rahimi and Recht, 2007), whose inner products are a kernel; and
//! up to 64 coordinates of the input, of which only the owner knows which they are.

use serde::{Deserialize, Serialize};

use super::noise::Noise;
use crate::detect::text::substitution::Tokens;
use crate::secret::{Secret, Shared};

/// Numbers of the projection.
pub(super) const Z: usize = 64;

/// Random Fourier features.
pub(super) const PHI: usize = 256;

/// Secret coordinates at most.
pub(super) const SAMPLE: usize = 64;

/// Steps of one standard deviation in which secret coordinates are kept, and so how fine a change can be seen.
pub(super) const STEPS: f32 = 2048.0;

/// Past so many standard deviations a coordinate is as odd as can be.
const CLIP: f32 = 24.0;

/// Rows by which the limits of a coordinate are set.
const LIMITED_BY: usize = 1_000;

/// The part of them that is within its spread.
const NEARLY_ALL: f64 = 0.98;

/// As many as must move for a coordinate to have a spread of its own.
const HANDFUL: usize = 5;

/// Times the spread at which a coordinate's limits are.
const TIMES: f32 = 8.0;

/// Numbers of an input that are held against the grid.
const LOOKED_AT: usize = 256;

/// The part of inputs that must lie on a grid before it is one.
const ON_A_GRID: f64 = 0.2;

/// Deviations that lie so many times apart, the most and the least tenth left out, are of numbers in units of their own: in one scale the
/// largest would be all that is seen. Pixels lie some 50 times apart, measurements thousands of times.
const UNEVEN: f32 = 1_000.0;

/// Bits of the bucket in which a point lies.
const BUCKET_BITS: usize = 12;

/// Buckets.
pub(super) const BUCKETS: usize = 1 << BUCKET_BITS;

/// A space as it is kept in a calibration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fitted {
    /// What all that is secret is made from.
    pub(super) seed: Shared,
    /// The mean of each coordinate.
    pub(super) mean: Vec<f32>,
    /// The standard deviation of each, not below a floor.
    pub(super) scale: Vec<f32>,
    /// The mean of the projection.
    pub(super) center: Vec<f32>,
    /// The inverse of the lower Cholesky factor of the projection's covariance, row by row.
    pub(super) whiten: Vec<f32>,
    /// The kernel's four bandwidths.
    pub(super) bandwidths: [f32; 4],
    /// The grid on which inputs lie, where they do.
    pub(super) grid: Option<f32>,
    /// The least and the greatest number.
    pub(super) range: [f32; 2],
}

/// A space, ready to be used.
#[derive(Debug)]
pub(crate) struct Space {
    fitted: Fitted,
    passes: Vec<Pass>,
    inverse: Vec<f32>,
    at: Vec<u32>,
    waves: Vec<f32>,
    phases: Vec<f32>,
    planes: Vec<f32>,
    key: [u64; 2],
    /// A rotation of as many numbers as inputs have, row by row, and one over the deviation in which each of them is taken.
    turn: Option<(Vec<f32>, Vec<f32>)>,
}

/// One way of adding all coordinates up in 64 bins.
#[derive(Debug)]
struct Pass {
    signs: Vec<f32>,
    /// By how many bins each run of 64 coordinates is turned.
    turns: Vec<u8>,
}

/// What is known of one input.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    /// Of the exact bytes.
    pub(super) digest: u64,
    pub(super) z: [f32; Z],
    /// In steps of a standard deviation.
    pub(super) sample: [i16; SAMPLE],
    /// The mean square of its coordinates, in standard deviations.
    pub(super) energy: f32,
    /// The mean square of the difference of neighbouring coordinates beside that.
    pub(super) rough: f32,
    /// The part of its coordinates that are off the grid or out of range.
    pub(super) off: f32,
    /// What copies are learned from: the input itself in one scale, or each number in its own where they are in units of their own, turned by a
    /// secret rotation, where it has no more than 64 numbers; the projection where it has more.
    pub(super) turned: [f32; Z],
    /// The words of its text, where it has one that is looked at.
    pub(super) tokens: Option<Box<Tokens>>,
}

impl Space {
    /// A space that was fitted, if its parts fit together.
    pub(super) fn new(fitted: Fitted) -> Option<Self> {
        let width = fitted.mean.len();
        let whole = width > 0 && fitted.scale.len() == width && fitted.center.len() == Z && fitted.whiten.len() == Z * Z;
        let sane = |numbers: &[f32]| numbers.iter().all(|number| number.is_finite());
        let sane = sane(&fitted.mean) && sane(&fitted.center) && sane(&fitted.whiten) && fitted.scale.iter().all(|scale| *scale > 0.0);
        if !whole || !sane || fitted.bandwidths.iter().any(|width| width.is_nan() || *width <= 0.0) {
            return None;
        }
        let mut noise = Noise::new(fitted.seed.expose(), "waves");
        let mut waves = vec![0.0; PHI * Z];
        for (wave, row) in waves.chunks_exact_mut(Z).enumerate() {
            row.iter_mut().for_each(|weight| *weight = noise.normal() / fitted.bandwidths[wave % 4]);
        }
        let phases = (0..PHI).map(|_| noise.uniform() * std::f32::consts::TAU).collect();
        let planes = (0..BUCKET_BITS * Z).map(|_| noise.normal()).collect();
        let inverse: Vec<f32> = fitted.scale.iter().map(|scale| 1.0 / scale).collect();
        let turn = (width <= Z).then(|| {
            let taken = if is_uneven(&fitted.scale) { inverse.clone() } else { vec![common(&fitted.scale); width] };
            (rotation(&fitted.seed, width), taken)
        });
        let (passes, at, key) = (passes(&fitted.seed, width), coordinates(&fitted.seed, width), key(&fitted.seed));
        Some(Self { turn, passes, inverse, at, waves, phases, planes, key, fitted })
    }

    /// Fits a space to rows of one width, at least two.
    pub(super) fn fit<'a>(seed: Shared, rows: impl Iterator<Item = &'a [f32]> + Clone) -> Option<Self> {
        let width = rows.clone().next()?.len();
        let count = rows.clone().count() as f64;
        let mut sums = vec![(0.0_f64, 0.0_f64); width];
        let mut range = [f32::INFINITY, f32::NEG_INFINITY];
        let limits = limits(rows.clone(), width);
        for row in rows.clone() {
            for ((sum, number), [low, high]) in sums.iter_mut().zip(row).zip(&limits) {
                let number = number.clamp(*low, *high);
                sum.0 += f64::from(number);
                sum.1 += f64::from(number) * f64::from(number);
                range = [range[0].min(number), range[1].max(number)];
            }
        }
        let mean: Vec<f32> = sums.iter().map(|sum| (sum.0 / count) as f32).collect();
        let deviation = |sum: &(f64, f64)| (sum.1 / count - (sum.0 / count).powi(2)).max(0.0).sqrt() as f32;
        let deviations: Vec<f32> = sums.iter().map(deviation).collect();
        // A coordinate that never moves still has the size of its own numbers, or the least that the others have.
        let mut moving: Vec<f32> = deviations.iter().copied().filter(|deviation| *deviation > 0.0).collect();
        moving.sort_by(f32::total_cmp);
        let floor = moving.get(moving.len() / 10).copied().unwrap_or(1.0).max(f32::MIN_POSITIVE);
        let scale: Vec<f32> = deviations.iter().map(|deviation| if *deviation > 0.0 { *deviation } else { floor }).collect();
        let uncentered = Fitted {
            seed,
            mean,
            scale,
            center: vec![0.0; Z],
            whiten: (0..Z * Z).map(|at| if at % (Z + 1) == 0 { 1.0 } else { 0.0 }).collect(),
            bandwidths: [1.0; 4],
            grid: grid(rows.clone()),
            range,
        };
        let mut space = Self::new(uncentered)?;
        let projected: Vec<[f32; Z]> = rows.clone().map(|row| space.point(row).z).collect();
        let (center, whiten) = whitening(&projected);
        (space.fitted.center, space.fitted.whiten) = (center, whiten);
        let mut fitted = space.fitted;
        let space = Self::new(fitted.clone())?;
        let whitened: Vec<[f32; Z]> = rows.take(512).map(|row| space.point(row).z).collect();
        let median = median_distance(&whitened);
        fitted.bandwidths = [0.5, 1.0, 2.0, 4.0].map(|times| times * median);
        Self::new(fitted)
    }

    pub(super) fn fitted(&self) -> &Fitted {
        &self.fitted
    }

    /// Numbers that an input has here.
    pub(super) fn width(&self) -> usize {
        self.fitted.mean.len()
    }

    /// How many coordinates are kept of an input, and whether they are all.
    pub(super) fn sampled(&self) -> (usize, bool) {
        (self.at.len(), self.at.len() == self.width())
    }

    /// The mean of each coordinate.
    pub(super) fn mean(&self) -> &[f32] {
        &self.fitted.mean
    }

    /// A difference of kept coordinates in the input's own units.
    pub(super) fn unit(&self, place: usize) -> f32 {
        self.fitted.scale[self.at[place] as usize] / STEPS
    }

    /// What is known of `row`, which has this space's width.
    pub(super) fn point(&self, row: &[f32]) -> Point {
        let (mut white, mut energy, mut rough) = (vec![0.0; row.len()], 0.0, 0.0);
        let parts = white.iter_mut().zip(row).zip(self.fitted.mean.iter().zip(&self.inverse));
        for ((white, number), (mean, inverse)) in parts {
            *white = ((number - mean) * inverse).clamp(-CLIP, CLIP);
            energy += *white * *white;
        }
        for pair in white.windows(2) {
            rough += (pair[1] - pair[0]) * (pair[1] - pair[0]);
        }
        let mut summed = [0.0; Z];
        for pass in &self.passes {
            pass.add(&white, &mut summed);
        }
        let share = 1.0 / ((self.passes.len() * row.len()) as f32).sqrt();
        for (summed, center) in summed.iter_mut().zip(&self.fitted.center) {
            *summed = *summed * share - center;
        }
        let mut z = [0.0; Z];
        for (place, (z, weights)) in z.iter_mut().zip(self.fitted.whiten.chunks_exact(Z)).enumerate() {
            *z = dot(&weights[..=place], &summed[..=place]);
        }
        let mut sample = [0; SAMPLE];
        for (kept, at) in sample.iter_mut().zip(&self.at) {
            *kept = (white[*at as usize] * STEPS) as i16;
        }
        let turned = match &self.turn {
            Some((rotation, inverse)) => {
                let parts = row.iter().zip(&self.fitted.mean).zip(inverse);
                let centered: Vec<f32> = parts.map(|((number, mean), inverse)| (number - mean) * inverse).collect();
                let mut turned = [0.0; Z];
                turned.iter_mut().zip(rotation.chunks_exact(row.len())).for_each(|(number, weights)| *number = dot(weights, &centered));
                turned
            }
            None => z,
        };
        Point {
            turned,
            digest: self.digest(row),
            z,
            sample,
            energy: energy / row.len() as f32,
            rough: rough / energy.max(1e-6),
            off: self.off(row),
            tokens: None,
        }
    }

    /// The random Fourier features of a point: their inner products are a Gaussian kernel, averaged over four bandwidths.
    pub(super) fn features(&self, z: &[f32; Z]) -> [f32; PHI] {
        let mut phi = [0.0; PHI];
        let size = (2.0 / PHI as f32).sqrt();
        for ((phi, weights), phase) in phi.iter_mut().zip(self.waves.chunks_exact(Z)).zip(&self.phases) {
            *phi = dot(weights, z) + phase;
        }
        phi.iter_mut().for_each(|phi| *phi = size * cosine(*phi));
        phi
    }

    /// The bucket of a point: on which side of 12 secret planes it lies.
    pub(super) fn bucket(&self, z: &[f32; Z]) -> usize {
        self.planes.chunks_exact(Z).fold(0, |bucket, plane| bucket << 1 | usize::from(dot(plane, z) > 0.0))
    }

    /// Folded multiplication under a secret key: equal inputs are found again, and nobody without the key makes two alike.
    fn digest(&self, row: &[f32]) -> u64 {
        let [mut state, key] = self.key;
        let mut fold = |word: u64| {
            let product = u128::from(state ^ word) * u128::from(key);
            state = (product as u64 ^ (product >> 64) as u64).rotate_left(23);
        };
        let (pairs, rest) = row.as_chunks::<2>();
        for [low, high] in pairs {
            fold(u64::from(low.to_bits()) | u64::from(high.to_bits()) << 32);
        }
        rest.iter().for_each(|number| fold(u64::from(number.to_bits())));
        fold(row.len() as u64);
        state
    }

    fn off(&self, row: &[f32]) -> f32 {
        let [low, high] = self.fitted.range;
        let out = row.iter().filter(|number| **number < low || **number > high).count();
        // Whether inputs are on a grid is seen on a part of them.
        let step = row.len().div_ceil(LOOKED_AT);
        let off = self.fitted.grid.map_or(0, |grid| row.iter().step_by(step).filter(|number| !on(**number, grid)).count());
        (out as f32 / row.len() as f32).max((off * step) as f32 / row.len() as f32)
    }
}

impl Pass {
    fn add(&self, white: &[f32], sums: &mut [f32; Z]) {
        for ((run, signs), turn) in white.chunks(Z).zip(self.signs.chunks(Z)).zip(&self.turns) {
            let first = (Z - usize::from(*turn)).min(run.len());
            let add = |sums: &mut [f32], run: &[f32], signs: &[f32]| {
                for ((sum, number), sign) in sums.iter_mut().zip(run).zip(signs) {
                    *sum += number * sign;
                }
            };
            add(&mut sums[usize::from(*turn)..], &run[..first], &signs[..first]);
            add(&mut sums[..], &run[first..], &signs[first..]);
        }
    }
}

/// Whether coordinates are in units of their own, as the columns of a table are, and not in one, as pixels.
fn is_uneven(scale: &[f32]) -> bool {
    let mut sorted = scale.to_vec();
    sorted.sort_by(f32::total_cmp);
    let tenth = (sorted.len() - 1) / 10;
    sorted[sorted.len() - 1 - tenth] > UNEVEN * sorted[tenth]
}

/// One over the deviation that all coordinates have in common.
fn common(scale: &[f32]) -> f32 {
    let mean = scale.iter().map(|scale| scale * scale).sum::<f32>() / scale.len() as f32;
    1.0 / mean.sqrt().max(f32::MIN_POSITIVE)
}

/// A random rotation (Gram and Schmidt over normal numbers), row by row.
fn rotation(seed: &Secret, width: usize) -> Vec<f32> {
    let mut noise = Noise::new(seed.expose(), "rotation");
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(width);
    while rows.len() < width {
        let mut row: Vec<f64> = (0..width).map(|_| f64::from(noise.normal())).collect();
        // Twice, for what rounding left of it.
        for _ in 0..2 {
            for other in &rows {
                let along: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
        }
        let length = row.iter().map(|number| number * number).sum::<f64>().sqrt();
        if length > 1e-6 {
            row.iter_mut().for_each(|number| *number /= length);
            rows.push(row);
        }
    }
    rows.into_iter().flatten().map(|number| number as f32).collect()
}

/// Narrow inputs are added up more than once, since a bin holds few of their coordinates.
fn passes(seed: &Secret, width: usize) -> Vec<Pass> {
    let mut noise = Noise::new(seed.expose(), "passes");
    let count = if width <= 256 {
        8
    } else if width <= 1024 {
        3
    } else {
        1
    };
    let runs = width.div_ceil(Z);
    let mut pass = |_| Pass {
        signs: (0..width).map(|_| if noise.next() & 1 == 0 { 1.0 } else { -1.0 }).collect(),
        turns: (0..runs).map(|_| (noise.next() % Z as u64) as u8).collect(),
    };
    (0..count).map(&mut pass).collect()
}

/// Which coordinates are kept.
fn coordinates(seed: &Secret, width: usize) -> Vec<u32> {
    let mut noise = Noise::new(seed.expose(), "coordinates");
    let mut all: Vec<u32> = (0..width as u32).collect();
    let kept = width.min(SAMPLE);
    for place in 0..kept {
        let other = place + (noise.next() % (width - place) as u64) as usize;
        all.swap(place, other);
    }
    all.truncate(kept);
    all
}

fn key(seed: &Secret) -> [u64; 2] {
    let mut noise = Noise::new(seed.expose(), "digest");
    [noise.next(), noise.next() | 1]
}

/// Beyond which numbers of each coordinate count as if they were there: some times as far from the median as nearly all are. A few rows of a
/// thief in the recording, of whatever size, do not make all others one point.
fn limits<'a>(rows: impl Iterator<Item = &'a [f32]> + Clone, width: usize) -> Vec<[f32; 2]> {
    let step = rows.clone().count().div_ceil(LIMITED_BY).max(1);
    let part = |sorted: &[f32], part: f64| sorted.get((part * sorted.len() as f64) as usize).copied();
    let mut medians = Vec::with_capacity(width);
    let mut spreads = Vec::with_capacity(width);
    for place in 0..width {
        let mut numbers: Vec<f32> = rows.clone().step_by(step).map(|row| row[place]).collect();
        numbers.sort_unstable_by(f32::total_cmp);
        let median = part(&numbers, 0.5).unwrap_or_default();
        // Of one that hardly moves, those that do say how far: a handful of them at least.
        let mut apart: Vec<f32> = numbers.iter().map(|number| (number - median).abs()).filter(|apart| *apart > 0.0).collect();
        apart.sort_unstable_by(f32::total_cmp);
        medians.push(median);
        spreads.push(part(&apart, NEARLY_ALL).filter(|_| apart.len() >= HANDFUL));
    }
    let widest = spreads.iter().flatten().copied().fold(0.0, f32::max);
    let limit = |(median, spread): (&f32, &Option<f32>)| {
        let far = spread.unwrap_or(widest) * TIMES;
        if far > 0.0 { [(median - far).max(f32::MIN), (median + far).min(f32::MAX)] } else { [f32::MIN, f32::MAX] }
    };
    medians.iter().zip(&spreads).map(limit).collect()
}

/// The coarsest of a few grids on which a good part of the rows lie whole.
fn grid<'a>(rows: impl Iterator<Item = &'a [f32]> + Clone) -> Option<f32> {
    let count = rows.clone().count();
    let steps = [1.0, 0.5, 0.25, 0.1, 1.0 / 16.0, 0.05, 0.01, 1.0 / 255.0, 0.001, 0.0001];
    steps.into_iter().find(|grid| {
        let whole = rows.clone().filter(|row| row.iter().all(|number| on(*number, *grid))).count();
        whole as f64 >= ON_A_GRID * count as f64
    })
}

/// Whether a number is on a grid, as far as 32 bits can tell.
fn on(number: f32, grid: f32) -> bool {
    let steps = f64::from(number) / f64::from(grid);
    (steps - steps.round()).abs() <= 1e-3 + steps.abs() * 1e-6
}

/// The cosine to within 1e-3, as fast as the features need it (a polynomial in the square of the fraction of a turn).
fn cosine(angle: f32) -> f32 {
    /// Adding and taking it away again leaves a whole number.
    const WHOLE: f32 = 12_582_912.0;
    let turns = angle * (1.0 / std::f32::consts::TAU);
    let fraction = turns - ((turns + WHOLE) - WHOLE);
    let square = fraction * fraction;
    1.0 + square * (-19.739_2 + square * (64.939_39 + square * (-85.456_8 + square * (60.244_6 + square * -26.426_3))))
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 8];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// The mean, and the inverse of the lower Cholesky factor of the covariance, which is kept away from being singular.
fn whitening(points: &[[f32; Z]]) -> (Vec<f32>, Vec<f32>) {
    let count = points.len() as f64;
    let mut mean = [0.0_f64; Z];
    for point in points {
        mean.iter_mut().zip(point).for_each(|(sum, number)| *sum += f64::from(*number) / count);
    }
    let mut covariance = vec![0.0_f64; Z * Z];
    for point in points {
        let centered: Vec<f64> = point.iter().zip(&mean).map(|(number, mean)| f64::from(*number) - mean).collect();
        for row in 0..Z {
            for column in 0..=row {
                covariance[row * Z + column] += centered[row] * centered[column] / count;
            }
        }
    }
    let trace: f64 = (0..Z).map(|at| covariance[at * (Z + 1)]).sum();
    let ridge = (trace / Z as f64 * 0.01).max(1e-9);
    (0..Z).for_each(|at| covariance[at * (Z + 1)] += ridge);
    // In place: the lower factor, then its inverse.
    for row in 0..Z {
        for column in 0..=row {
            let before: f64 = (0..column).map(|k| covariance[row * Z + k] * covariance[column * Z + k]).sum();
            let rest = covariance[row * Z + column] - before;
            covariance[row * Z + column] = if row == column { rest.max(1e-12).sqrt() } else { rest / covariance[column * (Z + 1)] };
        }
    }
    let mut inverse = vec![0.0_f64; Z * Z];
    for column in 0..Z {
        for row in column..Z {
            let before: f64 = (column..row).map(|k| covariance[row * Z + k] * inverse[k * Z + column]).sum();
            let unit = if row == column { 1.0 } else { 0.0 };
            inverse[row * Z + column] = (unit - before) / covariance[row * (Z + 1)];
        }
    }
    (mean.iter().map(|mean| *mean as f32).collect(), inverse.iter().map(|number| *number as f32).collect())
}

fn median_distance(points: &[[f32; Z]]) -> f32 {
    let apart = |a: &[f32; Z], b: &[f32; Z]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
    let mut distances: Vec<f32> = points.windows(2).map(|pair| apart(&pair[0], &pair[1])).filter(|apart| *apart > 0.0).collect();
    distances.sort_by(f32::total_cmp);
    distances.get(distances.len() / 2).copied().unwrap_or(1.0).max(1e-3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: usize, width: usize) -> Vec<Vec<f32>> {
        let mut noise = Noise::new(&[5; 32], "rows");
        (0..count).map(|_| (0..width).map(|_| (noise.uniform() * 17.0).floor()).collect()).collect()
    }

    fn space(width: usize) -> (Space, Vec<Vec<f32>>) {
        let rows = rows(400, width);
        (Space::fit([9; 32].into(), rows.iter().map(|row| &row[..])).unwrap(), rows)
    }

    #[test]
    fn the_fast_cosine_is_one() {
        for step in -4_000..4_000 {
            let angle = step as f32 * 0.01;
            assert!((cosine(angle) - angle.cos()).abs() < 2e-3, "{angle}: {} {}", cosine(angle), angle.cos());
        }
    }

    #[test]
    fn honest_inputs_are_white_in_their_space() {
        let (space, rows) = space(64);
        let points: Vec<Point> = rows.iter().map(|row| space.point(row)).collect();
        let of = |number: &dyn Fn(&Point) -> f32| points.iter().map(number).sum::<f32>() / points.len() as f32;
        for at in 0..Z {
            // What hardly moves is not blown up to as much as the rest: the covariance is kept away from being singular.
            let (mean, square) = (of(&|point| point.z[at]), of(&|point| point.z[at] * point.z[at]));
            assert!(mean.abs() < 0.05 && (0.0..1.1).contains(&square), "{at}: {mean} {square}");
        }
        let all = of(&|point| point.z.iter().map(|number| number * number).sum::<f32>()) / Z as f32;
        assert!((0.5..1.05).contains(&all), "{all}");
    }

    #[test]
    fn a_few_rows_of_any_size_do_not_make_all_others_one_point() {
        let mut rows = rows(400, 64);
        let apart = |space: &Space, rows: &[Vec<f32>]| {
            let (a, b) = (space.point(&rows[0]), space.point(&rows[1]));
            a.z.iter().zip(&b.z).map(|(a, b)| (a - b).powi(2)).sum::<f32>()
        };
        let fit = |rows: &[Vec<f32>]| Space::fit([9; 32].into(), rows.iter().map(|row| &row[..])).unwrap();
        let before = fit(&rows);
        rows.extend([vec![f32::MAX; 64], vec![-3.0e38; 64]]);
        let after = fit(&rows);
        let (before, after) = (apart(&before, &rows), (apart(&after, &rows), after));
        assert!(after.0 > before / 4.0, "{} of {before}", after.0);
        assert!(after.1.fitted().range.iter().all(|end| end.abs() < 1_000.0), "{:?}", after.1.fitted().range);
    }

    #[test]
    fn a_turned_input_keeps_its_distances() {
        let (space, rows) = space(20);
        let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
        let (a, b) = (space.point(&rows[0]), space.point(&rows[1]));
        let times = apart(&rows[0], &rows[1]) / apart(&a.turned, &b.turned);
        let (c, d) = (space.point(&rows[2]), space.point(&rows[3]));
        assert!((apart(&rows[2], &rows[3]) / apart(&c.turned, &d.turned) - times).abs() < 1e-2);
        assert!(a.turned[20..].iter().all(|number| *number == 0.0));
    }

    #[test]
    fn numbers_in_units_of_their_own_are_each_taken_in_their_own() {
        assert!(!is_uneven(&[1.0; 20]) && !is_uneven(&[1.0]));
        let scales = |least: f32| (0..20).map(|at| if at < 10 { least } else { 1_000.0 }).collect::<Vec<_>>();
        assert!(!is_uneven(&scales(1.0)) && is_uneven(&scales(0.999)));
        // The second number is the same, ten thousand times as large.
        let rows: Vec<Vec<f32>> = rows(400, 2).into_iter().map(|row| vec![row[0], row[1] * 10_000.0]).collect();
        let space = Space::fit([9; 32].into(), rows.iter().map(|row| &row[..])).unwrap();
        let apart = |a: &[f32; 2], b: &[f32; 2]| {
            let (a, b) = (space.point(a).turned, space.point(b).turned);
            a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
        };
        let (first, second) = (apart(&[0.0, 0.0], &[5.0, 0.0]), apart(&[0.0, 0.0], &[0.0, 50_000.0]));
        assert!((first / second - 1.0).abs() < 0.2, "{first} {second}");
    }

    #[test]
    fn a_space_follows_from_what_is_kept_of_it_and_another_seed_makes_another() {
        let (space, rows) = space(64);
        let again = Space::new(space.fitted().clone()).unwrap();
        let (one, other) = (space.point(&rows[0]), again.point(&rows[0]));
        assert_eq!((one.digest, one.z, one.sample), (other.digest, other.z, other.sample));
        let secret = Space::fit([8; 32].into(), rows.iter().map(|row| &row[..])).unwrap().point(&rows[0]);
        assert_ne!((one.digest, one.sample), (secret.digest, secret.sample));
    }

    #[test]
    fn whole_numbers_are_a_grid_and_what_is_off_it_or_out_of_range_is_told() {
        let (space, rows) = space(64);
        assert_eq!(space.fitted().grid, Some(1.0));
        assert_eq!(space.point(&rows[0]).off, 0.0);
        let mut row = rows[0].clone();
        (row[0], row[1]) = (0.5, 99.0);
        assert_eq!(space.point(&row).off, 1.0 / 64.0, "the greater part of the two");
    }

    #[test]
    fn parts_that_do_not_fit_are_no_space() {
        let (space, _) = space(8);
        let whole = space.fitted();
        let broken = [
            Fitted { scale: vec![1.0; 7], ..whole.clone() },
            Fitted { scale: vec![0.0; 8], ..whole.clone() },
            Fitted { mean: vec![f32::NAN; 8], ..whole.clone() },
            Fitted { center: Vec::new(), ..whole.clone() },
            Fitted { whiten: vec![0.0; 9], ..whole.clone() },
            Fitted { bandwidths: [0.0; 4], ..whole.clone() },
        ];
        assert!(broken.into_iter().all(|fitted| Space::new(fitted).is_none()));
    }
}
