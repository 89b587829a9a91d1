//! Small changes that are all of one size: steps by the sign of a gradient, squares, single pixels (Goodfellow et al., 2015, arXiv 1412.6572;
//! Papernot et al., 2017, arXiv 1602.02697; Andriushchenko et al., 2020, arXiv 1912.00049). No camera and no hand makes them.

use super::{Family, LooksAt, Occasion, Reach, Signal};

/// Coordinates that must have moved before their sizes say anything.
const LEAST_MOVED: usize = 4;

/// The part of them that must be alike.
const ALIKE: f32 = 0.6;

/// The part of them that goes the other way, from which a change is no change of light.
const BOTH_WAYS: f32 = 0.1;

/// The part of all coordinates up to which a change is a patch, and may go one way.
const PATCH: f32 = 0.4;

/// The part that must be alike, and the part of all coordinates that must have moved, where a change is as fine as the inputs' own grid.
const ALL_ALIKE: f32 = 0.95;
const MOST: f32 = 0.5;

/// How near to a whole number of the grid's steps a change is one.
const WHOLE: f32 = 0.02;

/// Steps of the inputs' own grid up to which a change is as fine as that.
const COARSE: f32 = 1.5;

pub(super) const FAMILY: Family = Family {
    name: "lattice",
    atlas: &["AML.T0043.001", "AML.T0024.002"],
    owasp: &["ML01:2023", "ML05:2023"],
    looks_at: LooksAt::Numbers,
    reach: Reach::Act,
    honest: 0.03,
    advice: "take the caller's inputs apart pairwise: differences of one size are made by a program that probes the model",
    weigh,
};

fn weigh(occasion: &Occasion<'_>) -> Option<Signal> {
    let change = occasion.seen.kin?;
    if change.moved < LEAST_MOVED {
        return None;
    }
    let moved = change.moved as f32 / occasion.kept as f32;
    // Steps of a sensor are of one size too, and leave some numbers as they are or move them by two.
    let coarse = occasion.bounds.space.grid.is_some_and(|grid| change.size <= grid * COARSE);
    // Of two steps each way some add up and some do not; among whole numbers that is nothing.
    let whole = occasion.bounds.space.grid.is_some_and(|grid| (change.size / grid - (change.size / grid).round()).abs() < WHOLE);
    let alike = match (coarse, whole) {
        (true, true) => change.alike > ALL_ALIKE && moved > MOST,
        (_, true) => change.alike > ALIKE,
        (_, false) => change.alike + change.doubled > ALIKE,
    };
    // A lamp that is switched on moves all of them one way.
    let lamp = change.against < BOTH_WAYS && moved > PATCH;
    Signal::when(alike && !lamp, "alike", change.alike)
}
