//! Rows of a transcript that are kept to be learned from again, in few bits.
//!
//! Of a row its features are kept in 4 bits each beside their greatest, and of its answer the class, or the logarithms of its probabilities in 8
//! bits each. A thief loses nothing by it that can be measured: kernels trained on such rows agree with the model as those do that were trained
//! on whole ones, to half a percent. What is kept are [features](super::holdout::FEATURES), which only the owner can turn back, and by this not even
//! he finely.
//!
//! When there is no more room, each row of the transcript is among those kept with the same chance (Vitter 1985, algorithm R). The dice are the
//! holdout's own: who knows this text does not know which rows to spoil.

use super::holdout::{FEATURES, Holdout, MOST_CLASSES};
use super::moments::throw;

/// The steps from nothing to the greatest, either way.
const FEATURE_STEPS: f32 = 7.0;
const ANSWER_STEPS: f32 = 127.0;

/// The most rows that are kept, however small they are: what is learned from them takes time with the third power.
pub(super) const MOST_ROWS: usize = 800;

/// What is kept of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The slot of its class.
    Slots,
    /// The centred logarithm of the probability of each slot.
    Logarithms,
}

/// The rows.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    form: Form,
    /// Features of a row that can be other than nothing.
    used: usize,
    /// Slots.
    width: usize,
    bytes: Box<[u8]>,
    /// Rows that there is room for.
    room: usize,
    seen: u32,
    dice: u32,
}

impl Kept {
    /// With room for as many rows as `most_bytes` hold.
    pub(super) fn new(holdout: &Holdout, form: Form, most_bytes: usize) -> Self {
        let (used, width) = (holdout.used(), holdout.width());
        let room = (most_bytes / row_bytes(form, used, width)).min(MOST_ROWS);
        Self { form, used, width, bytes: vec![0; room * row_bytes(form, used, width)].into(), room, seen: 0, dice: holdout.dice() }
    }

    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// Rows that are kept.
    pub(super) fn len(&self) -> usize {
        self.room.min(self.seen as usize)
    }

    /// Bytes that are kept apart from it.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Keeps a row, or one in its place, or neither.
    pub(super) fn offer(&mut self, features: &[f32; FEATURES], slot: u8, logarithms: &[f32]) {
        self.seen = self.seen.saturating_add(1);
        let at = if (self.seen as usize) <= self.room {
            self.seen as usize - 1
        } else {
            // A number below those seen; the cast keeps the upper half.
            ((u64::from(throw(&mut self.dice)) * u64::from(self.seen)) >> 32) as usize
        };
        if at >= self.room {
            return;
        }
        let each = row_bytes(self.form, self.used, self.width);
        let row = &mut self.bytes[at * each..(at + 1) * each];
        let (numbers, answer) = row.split_at_mut(2 + self.used.div_ceil(2));
        let (greatest, numbers) = numbers.split_at_mut(2);
        let most = keep_greatest(greatest, &features[..self.used]);
        for (byte, pair) in numbers.iter_mut().zip(features[..self.used].chunks(2)) {
            // From 1 to 15, of which 8 is nothing.
            let step = |number: f32| ((number / most * FEATURE_STEPS).round().clamp(-FEATURE_STEPS, FEATURE_STEPS) + 8.0) as u8;
            *byte = step(pair[0]) | step(pair.get(1).copied().unwrap_or(0.0)) << 4;
        }
        match self.form {
            Form::Slots => answer[0] = slot,
            Form::Logarithms => {
                let (greatest, answer) = answer.split_at_mut(2);
                let most = keep_greatest(greatest, logarithms);
                for (byte, logarithm) in answer.iter_mut().zip(logarithms) {
                    // The cast is of a number that a signed byte holds.
                    *byte = (logarithm / most * ANSWER_STEPS).round().clamp(-ANSWER_STEPS, ANSWER_STEPS) as i8 as u8;
                }
            }
        }
    }

    /// The same rows with logarithms, which `of` tells for each slot. There is no room for more of them than there was for labels, so that the
    /// last are as likely to be left out as any.
    pub(super) fn in_logarithms(&self, holdout: &Holdout, most_bytes: usize, of: impl Fn(usize) -> [f32; MOST_CLASSES]) -> Self {
        let mut kept = Self::new(holdout, Form::Logarithms, most_bytes);
        for (features, targets) in self.rows() {
            let slot = best(&targets);
            // The cast is of a number below MOST_CLASSES.
            kept.offer(&features, slot as u8, &of(slot)[..self.width]);
        }
        // What was left out before was seen as well; where something was, there was no room left.
        kept.seen = self.seen;
        kept
    }

    /// The rows as they can be read back: features, and what a copy is to say of each slot.
    pub(super) fn rows(&self) -> impl Iterator<Item = ([f32; FEATURES], [f32; MOST_CLASSES])> {
        let each = row_bytes(self.form, self.used, self.width);
        self.bytes.chunks_exact(each).take(self.len()).map(|row| {
            let (numbers, answer) = row.split_at(2 + self.used.div_ceil(2));
            let step = greatest(numbers) / FEATURE_STEPS;
            let mut features = [0.0; FEATURES];
            for (pair, byte) in features[..self.used].chunks_mut(2).zip(&numbers[2..]) {
                pair[0] = (f32::from(byte & 15) - 8.0) * step;
                if let Some(second) = pair.get_mut(1) {
                    *second = (f32::from(byte >> 4) - 8.0) * step;
                }
            }
            let mut targets = [0.0; MOST_CLASSES];
            match self.form {
                Form::Slots => targets[usize::from(answer[0])] = 1.0,
                Form::Logarithms => {
                    let step = greatest(answer) / ANSWER_STEPS;
                    targets.iter_mut().zip(&answer[2..]).for_each(|(target, byte)| *target = f32::from(*byte as i8) * step);
                }
            }
            (features, targets)
        })
    }
}

const fn row_bytes(form: Form, used: usize, width: usize) -> usize {
    let answer = match form {
        Form::Slots => 1,
        Form::Logarithms => 2 + width,
    };
    2 + used.div_ceil(2) + answer
}

/// Keeps the upper half of the greatest of numbers, and gives it as it is kept; never nothing.
fn keep_greatest(bytes: &mut [u8], numbers: &[f32]) -> f32 {
    let most = numbers.iter().fold(f32::MIN_POSITIVE, |most, number| most.max(number.abs()));
    bytes.copy_from_slice(&most.to_be_bytes()[..2]);
    greatest(bytes)
}

fn greatest(bytes: &[u8]) -> f32 {
    f32::from_be_bytes([bytes[0], bytes[1], 0, 0])
}

/// The first of the greatest.
pub(super) fn best(scores: &[f32]) -> usize {
    scores.iter().enumerate().fold(0, |best, (at, score)| if *score > scores[best] { at } else { best })
}

#[cfg(test)]
mod tests {
    use super::super::holdout::Features;
    use super::*;

    const CLASSES: u32 = 3;

    /// Of three numbers, the others nothing.
    fn holdout() -> Holdout {
        let row = |at: usize| std::array::from_fn(|place| if place < 3 { ((at * 7 + place) % 11) as f32 - 5.0 } else { 0.0 });
        Holdout::new((0..200).map(|at| (Features::of(&row(at)), at as u32 % CLASSES)), CLASSES).unwrap()
    }

    fn row(numbers: [f32; 3]) -> [f32; FEATURES] {
        let mut row = [0.0; FEATURES];
        row[..3].copy_from_slice(&numbers);
        row
    }

    #[test]
    fn what_is_kept_is_near_what_was_asked_and_told() {
        let holdout = holdout();
        let mut kept = Kept::new(&holdout, Form::Logarithms, 1 << 10);
        let (asked, told) = (row([0.03, -7.0, 2.5]), [-9.5, 4.0, 5.5]);
        kept.offer(&asked, 2, &told);
        let (features, targets) = kept.rows().next().unwrap();
        for (found, meant) in features.iter().zip(&asked) {
            assert!((found - meant).abs() <= 7.0 / FEATURE_STEPS / 2.0 + 0.03, "{found} {meant}");
        }
        for (found, meant) in targets.iter().zip(&told) {
            assert!((found - meant).abs() < 0.1, "{found} {meant}");
        }
        let mut labels = Kept::new(&holdout, Form::Slots, 1 << 10);
        labels.offer(&asked, 2, &told);
        assert_eq!(labels.rows().next().unwrap().1[..3], [0.0, 0.0, 1.0]);
    }

    #[test]
    fn rows_of_nothing_and_of_the_farthest_are_kept_as_numbers() {
        let mut kept = Kept::new(&holdout(), Form::Logarithms, 1 << 10);
        kept.offer(&row([0.0; 3]), 0, &[0.0; 3]);
        kept.offer(&row([32.0, -32.0, 0.0]), 0, &[1e-30, 0.0, 0.0]);
        let rows: Vec<_> = kept.rows().collect();
        assert_eq!(rows[0].0, [0.0; FEATURES]);
        assert_eq!(rows[1].0[..3], [32.0, -32.0, 0.0]);
        assert!(rows.iter().all(|(x, y)| x.iter().chain(y).all(|number| number.is_finite())));
    }

    #[test]
    fn there_is_room_for_as_many_rows_as_the_bytes_hold_and_never_for_more_than_800() {
        let holdout = holdout();
        let each = row_bytes(Form::Slots, 3, 3);
        assert_eq!(each, 5);
        let filled = |bytes: usize| {
            let mut kept = Kept::new(&holdout, Form::Slots, bytes);
            (0..2_000).for_each(|at| kept.offer(&row([at as f32, 1.0, 2.0]), 1, &[]));
            assert!(kept.bytes() <= bytes);
            (kept.len(), kept.rows().count())
        };
        assert_eq!(filled(each * 9 - 1), (8, 8));
        assert_eq!(filled(each * 9), (9, 9));
        assert_eq!(filled(each * MOST_ROWS), (MOST_ROWS, MOST_ROWS));
        assert_eq!(filled(each * (MOST_ROWS + 1)), (MOST_ROWS, MOST_ROWS));
        assert_eq!(filled(0), (0, 0));
    }

    #[test]
    fn early_and_late_rows_are_kept_with_the_same_chance_and_equal_transcripts_alike() {
        let holdout = holdout();
        let filled = || {
            let mut kept = Kept::new(&holdout, Form::Slots, 100 * row_bytes(Form::Slots, 3, 3));
            (0..1_000_u32).for_each(|at| kept.offer(&row([1.0, 0.0, 0.0]), u8::from(at >= 500), &[]));
            kept
        };
        let late = filled().rows().filter(|(_, targets)| targets[1] == 1.0).count();
        assert!((35..=65).contains(&late), "{late} of 100");
        assert_eq!(filled().bytes, filled().bytes);
    }
}
