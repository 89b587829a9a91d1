//! The leakage ledger: how many bits of the model the answers can have told at most.
//!
//! Each answer is charged with the logarithm of the number of answers that could have been told in its place, after everything
//! that shapes answers. Their sum is held against what the model's parameters can hold. An attacker who shall know the parameters
//! *exactly* must have been told as many bits as they hold, so the quotient is a floor below which exact recovery is impossible (under a
//! prior of greatest entropy), and it adds up over callers who collude. It says nothing of approximate copies, which need far fewer: they
//! are the [meter](super::meter)'s.
//!
//! Checked by the equations that solve a softmax regression over 64 inputs and 10 classes: 585 numbers of 23 bits, at 9 × 23 bits an
//! answer, are 65 answers, which is what solving takes (Tramèr et al. 2016, <https://arxiv.org/abs/1609.02943>).

/// How finely a number is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Grain {
    /// As IEEE 754 binary16: 10 bits.
    Half,
    /// As bfloat16: 7 bits.
    Brain,
    /// As IEEE 754 binary32: 23 bits.
    Single,
    /// As IEEE 754 binary64: 52 bits.
    Double,
    /// Rounded to a step, where all that can be told lies in a span; both in the number's own unit. Probabilities have span 1.
    Steps {
        /// The step, more than 0.
        step: f64,
        /// The span.
        span: f64,
    },
}

impl Grain {
    /// Numbers from 0 to 1 that are rounded to so many decimals.
    #[must_use]
    pub fn decimals(decimals: u8) -> Self {
        Self::Steps { step: 0.1_f64.powi(i32::from(decimals)), span: 1.0 }
    }

    /// Bits of one number. The bits of a float are those of its fraction: where it lies on the scale is known beforehand. A step that is
    /// none tells as much as a `Double`; a span below one step tells nothing.
    #[must_use]
    pub fn bits(self) -> f64 {
        match self {
            Self::Half => 10.0,
            Self::Brain => 7.0,
            Self::Single => 23.0,
            Self::Double => 52.0,
            Self::Steps { step, span } => {
                let bits = (span / step).log2();
                if bits.is_nan() { 52.0 } else { bits.clamp(0.0, 52.0) }
            }
        }
    }

    /// The coarser of two: what is rounded and then written as a float tells no more than either.
    #[must_use]
    pub fn coarser(self, other: Self) -> Self {
        if other.bits() < self.bits() { other } else { self }
    }
}

/// What one row of an answer tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Told {
    /// Which of so many classes: a label, a one-hot row.
    Label {
        /// How many classes there are.
        classes: u32,
    },
    /// A probability for each class, which sum to 1.
    Probabilities {
        /// How many classes there are.
        classes: u32,
        /// How finely each is told.
        grain: Grain,
    },
    /// The best few classes, in order, each with its probability; the others are zero.
    Top {
        /// How many classes there are.
        classes: u32,
        /// How many of them are told.
        kept: u32,
        /// How finely each is told.
        grain: Grain,
    },
    /// Numbers that are not bound to one another: outputs of a regression, logits.
    Numbers {
        /// How many.
        count: u32,
        /// How finely each is told.
        grain: Grain,
    },
    /// An embedding. One of length 1 has a number less, which the others tell.
    Embedding {
        /// How many numbers.
        count: u32,
        /// Whether its length is 1.
        normalized: bool,
        /// How finely each is told.
        grain: Grain,
    },
}

impl Told {
    /// Bits of the row at most.
    #[must_use]
    pub fn bits(self) -> f64 {
        match self {
            Self::Label { classes } => f64::from(classes.max(1)).log2(),
            Self::Probabilities { classes, grain } => f64::from(classes.saturating_sub(1)) * grain.bits(),
            Self::Top { classes, kept, grain } if kept >= classes => Self::Probabilities { classes, grain }.bits(),
            Self::Top { classes, kept, grain } => {
                let which: f64 = (0..kept).map(|place| f64::from(classes - place).log2()).sum();
                // The row told whole tells at least as much as a part of it.
                (which + f64::from(kept) * grain.bits()).min(Self::Probabilities { classes, grain }.bits().max(which))
            }
            Self::Numbers { count, grain } => f64::from(count) * grain.bits(),
            Self::Embedding { count, normalized, grain } => f64::from(count.saturating_sub(u32::from(normalized))) * grain.bits(),
        }
    }
}

/// What a model's parameters can hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capacity(f64);

impl Capacity {
    /// Of so many parameters that answers can tell apart, each as fine as `grain`. For a softmax regression over d inputs and k classes
    /// they are (k-1)(d+1), not the k(d+1) that the file holds. A model of none has the capacity of one.
    #[must_use]
    pub fn of(parameters: u64, grain: Grain) -> Self {
        Self((parameters.max(1) as f64) * grain.bits().max(1.0))
    }

    /// In bits.
    #[must_use]
    pub fn bits(self) -> f64 {
        self.0
    }
}

/// The bits told to one caller, or to a cohort. 8 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ledger(f64);

impl Ledger {
    /// Charges `rows` rows. An exact repeat of an input that was answered alike before tells nothing and is not to be charged.
    pub fn charge(&mut self, told: Told, rows: u32) {
        self.0 += told.bits() * f64::from(rows);
    }

    /// Charges bits that were counted already.
    pub fn charge_bits(&mut self, bits: f64) {
        self.0 += bits;
    }

    /// Adds what was told to another caller of the cohort.
    pub fn add(&mut self, other: Self) {
        self.0 += other.0;
    }

    /// Bits told so far.
    #[must_use]
    pub fn bits(self) -> f64 {
        self.0
    }

    /// The part of a capacity that has been told, 0 and up.
    #[must_use]
    pub fn fraction(self, capacity: Capacity) -> f64 {
        self.0 / capacity.0
    }
}

/// How much of a model may be told: a fraction of its capacity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget(f64);

impl Budget {
    /// Of a fraction of the capacity, more than 0; `None` for what is none. More than 1 is allowed: the bound is one from below.
    #[must_use]
    pub fn of_fraction(fraction: f64) -> Option<Self> {
        (fraction.is_finite() && fraction > 0.0).then_some(Self(fraction))
    }

    /// The part of the budget that is spent, 0 and up; from 1 on there is none left.
    #[must_use]
    pub fn spent(self, ledger: Ledger, capacity: Capacity) -> f64 {
        ledger.fraction(capacity) / self.0
    }

    /// How many more rows that tell so much it has room for; `u64::MAX` for rows that tell nothing.
    #[must_use]
    pub fn rows_left(self, ledger: Ledger, capacity: Capacity, told: Told) -> u64 {
        let left = (self.0 * capacity.0 - ledger.0).max(0.0);
        let bits = told.bits();
        // The cast saturates, which is what is wanted.
        if bits > 0.0 { (left / bits) as u64 } else { u64::MAX }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGITS: Told = Told::Probabilities { classes: 10, grain: Grain::Single };

    #[test]
    fn the_digits_regression_is_solved_by_as_many_answers_as_the_ledger_says() {
        let capacity = Capacity::of(9 * 65, Grain::Single);
        let budget = Budget::of_fraction(1.0).unwrap();
        let mut ledger = Ledger::default();
        assert_eq!(budget.rows_left(ledger, capacity, DIGITS), 65);
        ledger.charge(DIGITS, 64);
        assert!(budget.spent(ledger, capacity) < 1.0);
        assert_eq!(budget.rows_left(ledger, capacity, DIGITS), 1);
        ledger.charge(DIGITS, 1);
        assert!((budget.spent(ledger, capacity) - 1.0).abs() < 1e-12);
        assert_eq!(budget.rows_left(ledger, capacity, DIGITS), 0);
    }

    #[test]
    fn each_shape_of_an_answer_has_its_bits() {
        assert!((Told::Label { classes: 10 }.bits() - 10_f64.log2()).abs() < 1e-12);
        assert_eq!(Told::Label { classes: 1 }.bits(), 0.0);
        assert_eq!(Told::Label { classes: 0 }.bits(), 0.0);
        assert_eq!(DIGITS.bits(), 207.0);
        let rounded = Told::Probabilities { classes: 10, grain: Grain::decimals(2) };
        assert!((rounded.bits() - 9.0 * 100_f64.log2()).abs() < 1e-9);
        let half = Told::Numbers { count: 3, grain: Grain::Half };
        assert_eq!(half.bits(), 30.0);
        let embedding = |normalized| Told::Embedding { count: 384, normalized, grain: Grain::Single }.bits();
        assert_eq!((embedding(false), embedding(true)), (384.0 * 23.0, 383.0 * 23.0));
    }

    #[test]
    fn a_regression_rounded_to_tenths_over_a_span_of_a_hundred_tells_its_thousand_steps() {
        let told = Told::Numbers { count: 1, grain: Grain::Steps { step: 0.1, span: 100.0 } };
        assert!((told.bits() - 1_000_f64.log2()).abs() < 1e-9);
        assert_eq!(Grain::Steps { step: 1.0, span: 0.5 }.bits(), 0.0, "a span below a step tells nothing");
        assert_eq!(Grain::Steps { step: 0.0, span: 1.0 }.bits(), 52.0, "no step is no rounding");
        assert_eq!(Grain::Steps { step: 0.0, span: 0.0 }.bits(), 52.0);
    }

    #[test]
    fn rounding_never_tells_more_than_the_type_it_is_written_in() {
        assert_eq!(Grain::decimals(15).coarser(Grain::Half).bits(), 10.0);
        assert!((Grain::decimals(2).coarser(Grain::Single).bits() - 100_f64.log2()).abs() < 1e-9);
    }

    #[test]
    fn all_classes_kept_is_the_whole_row_and_one_kept_is_more_than_a_label() {
        let top = |kept| Told::Top { classes: 10, kept, grain: Grain::Single }.bits();
        assert_eq!(top(10), 207.0);
        assert_eq!(top(11), 207.0);
        assert!((top(1) - (10_f64.log2() + 23.0)).abs() < 1e-9);
        assert!(top(9) <= 207.0);
    }

    #[test]
    fn a_cohort_is_the_sum_of_its_callers() {
        let (mut one, mut other, mut all) = (Ledger::default(), Ledger::default(), Ledger::default());
        one.charge(DIGITS, 3);
        other.charge(Told::Label { classes: 10 }, 7);
        all.charge(DIGITS, 3);
        all.charge(Told::Label { classes: 10 }, 7);
        one.add(other);
        assert!((one.bits() - all.bits()).abs() < 1e-9);
    }

    #[test]
    fn a_budget_is_a_fraction_above_nothing() {
        for wrong in [0.0, -0.1, f64::NAN, f64::INFINITY] {
            assert_eq!(Budget::of_fraction(wrong), None);
        }
        let capacity = Capacity::of(0, Grain::Steps { step: 1.0, span: 1.0 });
        assert_eq!(capacity.bits(), 1.0, "a capacity is never nothing");
        let budget = Budget::of_fraction(0.5).unwrap();
        assert_eq!(budget.rows_left(Ledger::default(), capacity, Told::Label { classes: 1 }), u64::MAX);
    }

    proptest! {
        #[test]
        fn a_label_tells_less_than_its_probability_and_that_less_than_all(classes in 2..2_000_u32, decimals in 1..8_u8) {
            let grain = Grain::decimals(decimals);
            let label = Told::Label { classes }.bits();
            let top = Told::Top { classes, kept: 1, grain }.bits();
            prop_assert!(label <= top + 1e-9);
            let all = Told::Probabilities { classes, grain }.bits();
            prop_assert!(top <= all.max(label) + 1e-9);
        }
    }
}
