//! Learning what honest callers do from what they did.
//!
//! Bounds are fitted to all callers but the oddest few, and judged on callers that they were not fitted to: in five parts, each judged by
//! what the other four say. What comes of that is the evidence without which nothing is enforced.

use super::bounds::{Bounds, Calibration, Clusters, Error as Unfit, Evidence, FORMAT, Of, Outlier};
use super::families::{self, COUNT, LooksAt, Sums, outlier, window};
use super::loss::Kept;
use super::near::distance;
use super::noise::Noise;
use super::rows::Told;
use super::space::{PHI, Point, Space};
use super::state::State;
use super::wealth::Bet;
use crate::detect::text::substitution::Tokens;
use crate::secret::Shared;

/// Parts into which callers are divided to be judged by what the others did.
const FOLDS: usize = 5;

/// Rows to which a space and its quantiles are fitted at most.
const MOST_ROWS: usize = 20_000;

/// Others' inputs among which an input looks for the nearest, when the radius is fitted: as many as are remembered of a caller.
const NEIGHBOURS: usize = 64;

/// The part of inputs that have another caller's input within the radius.
const BY_CHANCE: f64 = 0.002;

/// The part of honest inputs that count as outliers by each of four measures.
const ODD: f64 = 0.002;

/// The part of honest first inputs whose margin is low, but no margin above 0.2 is.
const LOW: f64 = 0.05;

/// Rows by which a caller's own rate is drawn to that of all: a few rows say little.
const CAUTION: f32 = 40.0;

/// What callers did: rows in order.
pub(crate) type Recording = Vec<Vec<Asked>>;

/// A row of a recording.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Its numbers.
    pub(super) row: Vec<f32>,
    /// What tells it apart from others of the same numbers, or 0.
    pub(super) exact: u64,
    /// The words of its text, where it has one.
    pub(super) tokens: Option<Box<Tokens>>,
    /// What was answered.
    pub(super) told: Told,
}

/// Why there are no bounds.
#[derive(Debug)]
#[expect(clippy::enum_variant_names, reason = "each says who is at fault")]
pub(crate) enum Error {
    /// Fewer callers than one in the stated rate: so many, of so many.
    OperatorRecordedTooFew(usize, usize),
    /// Fewer different inputs than one in the stated rate, from enough callers: so many, of so many. Repeats tell nothing of what is honest.
    OperatorRecordedTheSame(usize, usize),
    /// Rows of more than one width.
    OperatorRecordedOtherWidths,
    /// A rate that is none.
    OperatorStatedNoRate,
    /// An answer with a label that is the number of no class.
    OperatorRecordedNoLabels,
    /// There were more false alarms than the rate explains: so many, of so many callers, and at most so many may be.
    OperatorRecordedTheOdd(usize, usize, usize),
    /// The numbers are degenerate.
    OperatorRecordedNothing(Unfit),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OperatorRecordedTooFew(callers, needed) => write!(
                f,
                "the recording has {callers} callers, each a caller-day, and the rate needs at least {needed}: record {} more, or state a higher rate",
                needed - callers
            ),
            Self::OperatorRecordedTheSame(inputs, needed) => write!(
                f,
                "the recording has {inputs} different inputs, however often each was sent, and the rate needs at least {needed}: record {} more, or state a higher rate",
                needed - inputs
            ),
            Self::OperatorRecordedOtherWidths => f.write_str("the recording has rows of more than one width, or none"),
            Self::OperatorStatedNoRate => f.write_str("a rate of false alarms is more than 0 and at most 0.1"),
            Self::OperatorRecordedNoLabels => write!(
                f,
                "the model answered a whole number of {} or more where its label would stand, and a label is the number of a class, from 0: what \
                 answers something else in whole numbers, and no probabilities, cannot be calibrated",
                u32::MAX
            ),
            Self::OperatorRecordedTheOdd(alarms, callers, allowed) => write!(
                f,
                "bounds from part of the callers alarm about {alarms} of {callers} others, and {allowed} are what the rate explains: record \
                 more callers of each kind, or take out those that are no honest callers"
            ),
            Self::OperatorRecordedNothing(unfit) => write!(f, "no bounds can be fitted: {unfit}"),
        }
    }
}

impl std::error::Error for Error {}

/// All callers' rows as points.
type Placed = Vec<Vec<(Point, Told)>>;

/// A caller's rows as points.
type Points<'a> = &'a [(Point, Told)];

/// Fits bounds to a recording, and judges them.
pub(crate) fn calibrate(model: &str, rate: f32, (of, seed): (Of, Shared), recording: &Recording) -> Result<Bounds, Error> {
    if rate.is_nan() || rate <= 0.0 || rate > 0.1 {
        return Err(Error::OperatorStatedNoRate);
    }
    let (callers, needed) = (recording.len(), (1.0 / rate).ceil() as usize);
    if callers < needed {
        return Err(Error::OperatorRecordedTooFew(callers, needed));
    }
    let width = recording.iter().flatten().next().map_or(0, |asked| asked.row.len());
    if width == 0 || recording.iter().flatten().any(|asked| asked.row.len() != width) {
        return Err(Error::OperatorRecordedOtherWidths);
    }
    // Larger ones are taken for this one, which is one less than there can be classes.
    if recording.iter().flatten().any(|asked| asked.told.label == Some(u32::MAX)) {
        return Err(Error::OperatorRecordedNoLabels);
    }
    let (space, callers_points) = placed(seed.clone(), recording)?;
    let different = callers_points.iter().flatten().map(|(point, _)| point.digest).collect::<std::collections::HashSet<_>>().len();
    if different < needed {
        return Err(Error::OperatorRecordedTheSame(different, needed));
    }
    let all: Vec<Points<'_>> = callers_points.iter().map(|points| &points[..]).collect();
    let mut alarms = 0;
    for fold in 0..FOLDS {
        let part = |mine: bool| all.iter().enumerate().filter(move |(at, _)| (at % FOLDS == fold) == mine).map(|(_, points)| *points);
        let (bounds, _) = fit(model, rate, (of, &space), &part(false).collect::<Vec<_>>())?;
        let calibration = Calibration::of(bounds).map_err(Error::OperatorRecordedNothing)?;
        alarms += part(true).filter(|points| alarms_about(&calibration, points)).count();
    }
    let allowed = upper_count(callers, f64::from(rate));
    if alarms > allowed {
        return Err(Error::OperatorRecordedTheOdd(alarms, callers, allowed));
    }
    let (mut bounds, trimmed) = fit(model, rate, (of, &space), &all)?;
    let firsts = picked(&all);
    bounds.holdout = Kept::of(&firsts.iter().map(|(_, point, told)| (*point, *told)).collect::<Vec<_>>(), &seed);
    let rows = recording.iter().map(Vec::len).sum();
    bounds.rests_on = Evidence { callers, rows, alarms, at_most: at_most(alarms, callers, 0.05), trimmed };
    Ok(bounds)
}

/// The space of a recording, and its rows in it. It is fitted to all callers: a few thousand rows move it by little.
pub(super) fn placed(seed: Shared, recording: &Recording) -> Result<(Space, Placed), Error> {
    let each = (MOST_ROWS / recording.len().max(1)).max(2);
    let rows =
        || recording.iter().flat_map(move |rows| rows.iter().step_by((rows.len() / each).max(1)).take(each)).map(|asked| &asked.row[..]);
    let space = Space::fit(seed, rows()).ok_or(Error::OperatorRecordedNothing(Unfit::OperatorGaveUnfitParts("numbers")))?;
    let point = |asked: &Asked| {
        let point = space.point(&asked.row);
        (Point { digest: point.digest ^ asked.exact, tokens: asked.tokens.clone(), ..point }, asked.told)
    };
    let points = recording.iter().map(|rows| rows.iter().map(point).collect()).collect();
    Ok((space, points))
}

fn alarms_about(calibration: &Calibration, points: Points<'_>) -> bool {
    let mut state = State::default();
    points.iter().any(|(point, told)| !state.learn_closely(calibration, point, told, |_, _| {}).is_empty())
}

/// Fits bounds to callers, and tells how many were left out.
pub(super) fn fit(model: &str, rate: f32, (of, space): (Of, &Space), callers: &[Points<'_>]) -> Result<(Bounds, usize), Error> {
    let mut noise = Noise::new(space.fitted().seed.expose(), "calibrate");
    let picked = picked(callers);
    let points: Vec<(usize, &Point)> = picked.iter().map(|(caller, point, _)| (*caller, *point)).collect();
    let (radius, firsts) = radius(space, &points, &mut noise);
    let phis: Vec<[f32; PHI]> = points.iter().map(|(_, point)| space.features(&point.z)).collect();
    let mut mean_phi = vec![0.0; PHI];
    phis.iter().for_each(|phi| mean_phi.iter_mut().zip(phi).for_each(|(sum, phi)| *sum += phi / phis.len() as f32));
    let kernel = phis.iter().map(|phi| phi.iter().zip(&mean_phi).map(|(phi, mean)| phi * mean).sum());
    let of_points = |number: fn(&Point) -> f32| sorted(points.iter().map(|(_, point)| number(point)));
    let (distances, energies, roughs) = (of_points(outlier::distance), of_points(|point| point.energy), of_points(|point| point.rough));
    let outlier = Outlier {
        distance: quantile(&distances, 1.0 - ODD),
        kernel: quantile(&sorted(kernel), ODD),
        energy: [quantile(&energies, ODD / 2.0), quantile(&energies, 1.0 - ODD / 2.0)],
        rough: [quantile(&roughs, ODD / 2.0), quantile(&roughs, 1.0 - ODD / 2.0)],
    };
    let margins = sorted(firsts.iter().filter_map(|at| picked[*at].2.margin));
    let low_margin = if margins.is_empty() { 0.0 } else { quantile(&margins, LOW).min(0.2) };
    let bets = families::ALL.iter().filter(|family| family.speaks(of)).map(|family| (family.name.to_owned(), Bet::SILENT)).collect();
    let mut bounds = Bounds {
        format: FORMAT,
        model: model.to_owned(),
        of,
        rate,
        rests_on: Evidence { callers: callers.len(), rows: 0, alarms: 0, at_most: 1.0, trimmed: 0 },
        space: space.fitted().clone(),
        radius,
        low_margin,
        outlier,
        mean_phi,
        clusters: Clusters { flip: 8 },
        window: Vec::new(),
        coverage: Vec::new(),
        holdout: None,
        bets,
    };
    (bounds.window, bounds.coverage) = windows(space, &bounds, callers);
    let trimmed = bets_of(&mut bounds, callers).map_err(Error::OperatorRecordedNothing)?;
    Ok((bounds, trimmed))
}

type Picked<'a> = (usize, &'a Point, &'a Told);

/// Rows of all callers, as many of each as there is room for, and none twice.
fn picked<'a>(callers: &[Points<'a>]) -> Vec<Picked<'a>> {
    let each = (MOST_ROWS / callers.len().max(1)).max(2);
    let mut picked = Vec::new();
    for (caller, points) in callers.iter().enumerate() {
        let mut digests = std::collections::HashSet::new();
        for (point, told) in points.iter().step_by((points.len() / each).max(1)).take(each) {
            if digests.insert(point.digest) {
                picked.push((caller, point, told));
            }
        }
    }
    picked
}

/// How near inputs of other callers hardly ever are, and how near the nearest of them is; and which of the points have no near one of their
/// own caller's.
fn radius(space: &Space, points: &[(usize, &Point)], noise: &mut Noise) -> ([f32; 2], Vec<usize>) {
    let kept = space.sampled().0;
    let mut nearest = Vec::new();
    for (caller, point) in points.iter().step_by((points.len() / 2_000).max(1)) {
        let mut least = f32::INFINITY;
        for _ in 0..NEIGHBOURS {
            let (other, neighbour) = &points[(noise.next() % points.len() as u64) as usize];
            if other != caller && neighbour.digest != point.digest {
                least = least.min(distance(&point.sample[..kept], &neighbour.sample[..kept]));
            }
        }
        nearest.push(least);
    }
    let nearest = sorted(nearest.into_iter().filter(|apart| apart.is_finite()));
    // Between what is near by chance, and half of how far apart inputs are: the lesser.
    let radius = quantile(&nearest, BY_CHANCE * 5.0).min(quantile(&nearest, 0.5) * 0.6).max(4.0 / super::space::STEPS);
    let first = |at: &usize| {
        *at == 0 || points[at - 1].0 != points[*at].0 || {
            distance(&points[at - 1].1.sample[..kept], &points[*at].1.sample[..kept]) > radius
        }
    };
    ([radius, quantile(&nearest, 0.5).max(radius)], (0..points.len()).filter(first).collect())
}

/// What honest callers come to at each size of the window.
fn windows(space: &Space, bounds: &Bounds, callers: &[Points<'_>]) -> (Vec<f32>, Vec<[f32; 2]>) {
    let mut at_sizes = vec![(Vec::new(), Vec::new()); window::SIZES.len()];
    for points in callers {
        let (mut near, mut sums, mut been) = (super::near::Near::default(), Sums::default(), std::collections::HashSet::new());
        for (query, (point, told)) in points.iter().enumerate() {
            if !near.look(space, point, told, (false, super::near::most(bounds.of, true)), bounds.radius, query as u32 + 1).is_first() {
                continue;
            }
            let new = been.insert(space.bucket(&point.z));
            sums.add(&space.features(&point.z), u32::from(new));
            if let Some(size) = window::size(sums.count) {
                at_sizes[size].0.push(window::apart(&sums, &bounds.mean_phi));
                at_sizes[size].1.push(sums.buckets as f32);
            }
        }
    }
    let mut most = Vec::new();
    let mut coverage = Vec::new();
    for (apart, buckets) in at_sizes {
        // Too few callers came so far for a bound to mean anything.
        if apart.len() < 100 {
            break;
        }
        let (apart, buckets) = (sorted(apart.into_iter()), sorted(buckets.into_iter()));
        most.push(quantile(&apart, 0.99).max(1e-6));
        coverage.push([quantile(&buckets, 0.005), quantile(&buckets, 0.995)]);
    }
    (most, coverage)
}

/// How families bet, and how many callers were left out of that.
fn bets_of(bounds: &mut Bounds, callers: &[Points<'_>]) -> Result<usize, Unfit> {
    let calibration = Calibration::of(bounds.clone())?;
    let heard: Vec<[(f32, f32); COUNT]> = callers
        .iter()
        .map(|points| {
            let (mut state, mut heard) = (State::default(), [(0.0, 0.0); COUNT]);
            for (point, told) in *points {
                state.learn_closely(&calibration, point, told, |family, signal| {
                    heard[family].0 += signal.odd;
                    heard[family].1 += 1.0;
                });
            }
            heard
        })
        .collect();
    let trim = (bounds.rate * callers.len() as f32).floor() as usize;
    for (at, family) in families::ALL.iter().enumerate().filter(|(_, family)| family.speaks(bounds.of)) {
        // Over all rows of all callers, and for the caller who has most of it, as far as its rows say.
        let (odd, count) = heard.iter().fold((0.0, 0.0), |(odd, count), heard| (odd + heard[at].0, count + heard[at].1));
        // Honest texts make no long chains, and a family that then heard nothing has its own word; where nothing is known of numbers, nothing is.
        let unheard = if family.looks_at == LooksAt::Texts { family.honest(bounds.of) } else { 0.5 };
        let overall = (odd + unheard) / (count + 1.0);
        let of_caller = |heard: &[(f32, f32); COUNT]| (heard[at].0 + CAUTION * overall) / (heard[at].1 + CAUTION);
        let rates = sorted(heard.iter().map(of_caller));
        let rate = quantile(&rates, 1.0 - 2.0 * f64::from(bounds.rate)).max(overall).max(family.honest(bounds.of));
        // Whoever is odd half of the time says nothing: nothing is betted on.
        let rate = if rate > 0.5 { 1.0 } else { rate };
        bounds.bets.insert(family.name.to_owned(), Bet { rate, alarm: (families::speaking(bounds.of) as f32 / bounds.rate).ln() });
    }
    // What theory promises holds if no honest caller has more than the rate; what happened is the judge.
    let calibration = Calibration::of(bounds.clone())?;
    let mut richest: Vec<[f32; COUNT]> = Vec::new();
    for points in callers {
        let mut state = State::default();
        for (point, told) in *points {
            state.learn_closely(&calibration, point, told, |_, _| {});
        }
        richest.push(state.richest.map(|wealth| wealth.0));
    }
    let beyond = |of: &[f32; COUNT]| of.iter().zip(&calibration.bets).map(|(wealth, bet)| wealth - bet.alarm).fold(f32::MIN, f32::max);
    richest.sort_by(|a, b| beyond(b).total_cmp(&beyond(a)));
    for (at, family) in families::ALL.iter().enumerate() {
        let most = richest[trim.min(richest.len() - 1)..].iter().map(|of| of[at]).fold(0.0, f32::max);
        if let Some(bet) = bounds.bets.get_mut(family.name) {
            // A step of the boldest bet beyond whatever an honest caller came to.
            bet.alarm = bet.alarm.max(most + (1.0 + bet.stake() * (1.0 - bet.rate)).ln());
        }
    }
    Ok(trim)
}

fn sorted(numbers: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut numbers: Vec<f32> = numbers.collect();
    numbers.sort_by(f32::total_cmp);
    numbers
}

fn quantile(sorted: &[f32], part: f64) -> f32 {
    let at = (part * sorted.len() as f64).floor() as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// The rate that so many alarms among so many callers rule out from above, at a level (Clopper and Pearson, 1934).
pub(crate) fn at_most(alarms: usize, callers: usize, level: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if binomial_at_most(alarms, callers, middle) > level { low = middle } else { high = middle }
    }
    high
}

/// The most alarms that a true rate explains, at the 95 % level.
fn upper_count(callers: usize, rate: f64) -> usize {
    (0..callers).find(|count| binomial_at_most(*count, callers, rate) >= 0.95).unwrap_or(callers)
}

/// The probability of at most so many of so many.
fn binomial_at_most(count: usize, of: usize, rate: f64) -> f64 {
    if rate >= 1.0 {
        return if count >= of { 1.0 } else { 0.0 };
    }
    let (mut term, mut sum) = (of as f64 * (1.0 - rate).ln(), 0.0);
    for at in 0..=count.min(of) {
        sum += term.exp();
        term += ((of - at) as f64 / (at + 1) as f64).ln() + (rate / (1.0 - rate)).ln();
    }
    sum.min(1.0)
}
