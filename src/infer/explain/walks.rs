//! The mixtures that a model is asked about, one after the other by their numbers, and what their answers come to. Pure.
//!
//! Number 0 and up are the rows of the background; behind them come the walks, and on each the mixtures with 1, 2, … features of the row, each
//! once for every row of the background. The beginning and the end of a walk are the background and the row, which were asked already.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use crate::check::Explanation;
use crate::digest::{Digest, Hasher};
use crate::wire::tensor::{Datatype, Tensor};

/// Forward and back.
const DIRECTIONS: usize = 2;

/// The walks of one explanation.
pub(super) struct Walks {
    parts: Vec<Part>,
    /// Rows of the background.
    background: usize,
    rows: usize,
    features: usize,
    samples: usize,
    /// The permutations, one behind the other: those of the first row first.
    orders: Vec<u16>,
}

/// One input of the model: a part of each row.
struct Part {
    name: String,
    datatype: Datatype,
    /// The shape without the batch.
    row: Vec<u64>,
    /// Bytes of a feature.
    width: usize,
    features: usize,
    given: Bytes,
    background: Bytes,
}

/// What stands under a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// A row of the background alone.
    Background(usize),
    /// That row, with so many features of the walk's own row.
    Mixture { walk: usize, known: usize, background: usize },
}

impl Walks {
    /// For `inputs`, which hold to the model's contract and stand in its order, as the background does.
    pub(super) fn new(explanation: &Explanation, inputs: &[Tensor], model: Option<Digest>) -> Self {
        let terms = &explanation.terms;
        let part = |input: &Tensor| {
            let background = terms.background().iter().find(|tensor| tensor.name == input.name);
            let row = input.shape.get(1..).unwrap_or_default().to_vec();
            Part {
                name: input.name.clone(),
                datatype: input.datatype,
                width: input.datatype.width().unwrap_or(0),
                features: crate::wire::tensor::elements(&row).unwrap_or(0),
                row,
                given: input.data.clone(),
                background: background.map(|tensor| tensor.data.clone()).unwrap_or_default(),
            }
        };
        let parts: Vec<Part> = inputs.iter().map(part).collect();
        let features = parts.iter().map(|part| part.features).sum();
        let whole = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let (rows, samples) = (whole(explanation.rows), whole(explanation.samples));
        let mut walks = Self { parts, background: terms.rows(), rows, features, samples, orders: Vec::new() };
        for row in 0..rows {
            let mut draws = Draws::new(&walks, row, model, terms.digest(), &explanation.output);
            for _ in 0..samples {
                walks.orders.extend(draws.permutation(features));
            }
        }
        walks
    }

    pub(super) fn features(&self) -> usize {
        self.features
    }

    /// How many numbers there are.
    pub(super) fn count(&self) -> usize {
        self.background + self.rows * self.samples * DIRECTIONS * self.a_walk()
    }

    /// How many numbers one walk has.
    fn a_walk(&self) -> usize {
        (self.features - 1) * self.background
    }

    fn asked(&self, number: usize) -> Asked {
        let Some(number) = number.checked_sub(self.background) else { return Asked::Background(number) };
        let (walk, at) = (number / self.a_walk(), number % self.a_walk());
        Asked::Mixture { walk, known: at / self.background + 1, background: at % self.background }
    }

    /// The row that a walk belongs to.
    fn row_of(&self, walk: usize) -> usize {
        walk / (self.samples * DIRECTIONS)
    }

    /// The feature that a walk gets to know at `turn`, from 0.
    fn feature(&self, walk: usize, turn: usize) -> usize {
        let order = walk / DIRECTIONS * self.features;
        let turn = if walk.is_multiple_of(DIRECTIONS) { turn } else { self.features - 1 - turn };
        self.orders[order + turn].into()
    }

    /// The inputs of the model for these numbers.
    pub(super) fn question(&self, numbers: Range<usize>) -> Vec<Tensor> {
        let rows = numbers.len();
        let mut tensors: Vec<BytesMut> = self.parts.iter().map(|part| BytesMut::with_capacity(rows * part.features * part.width)).collect();
        for number in numbers {
            let (walk, known, background) = match self.asked(number) {
                Asked::Background(background) => (0, 0, background),
                Asked::Mixture { walk, known, background } => (walk, known, background),
            };
            let starts: Vec<usize> = tensors.iter().map(BytesMut::len).collect();
            for (tensor, part) in tensors.iter_mut().zip(&self.parts) {
                tensor.extend_from_slice(part.row(&part.background, background));
            }
            for turn in 0..known {
                let (at, feature) = self.place(self.feature(walk, turn));
                let part = &self.parts[at];
                let bytes = feature * part.width..(feature + 1) * part.width;
                let given = &part.row(&part.given, self.row_of(walk))[bytes.clone()];
                tensors[at][starts[at]..][bytes].copy_from_slice(given);
            }
        }
        let tensor = |(data, part): (BytesMut, &Part)| Tensor {
            name: part.name.clone(),
            datatype: part.datatype,
            shape: [&[rows as u64], &part.row[..]].concat(),
            data: data.freeze(),
        };
        tensors.into_iter().zip(&self.parts).map(tensor).collect()
    }

    /// The part in which a feature stands, and its place there.
    fn place(&self, mut feature: usize) -> (usize, usize) {
        for (at, part) in self.parts.iter().enumerate() {
            if feature < part.features {
                return (at, feature);
            }
            feature -= part.features;
        }
        (0, 0)
    }
}

impl Part {
    fn row<'b>(&self, rows: &'b [u8], at: usize) -> &'b [u8] {
        let length = self.features * self.width;
        &rows[at * length..(at + 1) * length]
    }
}

/// What the answers come to so far. They are taken in the order of their numbers.
pub(super) struct Tally<'w> {
    walks: &'w Walks,
    /// The answer to each row.
    told: &'w [f64],
    /// Numbers of one answer.
    width: usize,
    base: Vec<f64>,
    /// By row, feature, and number of the answer.
    shares: Vec<f64>,
    /// The mean at the walk's turn before, and the one that is being summed.
    before: Vec<f64>,
    now: Vec<f64>,
}

impl<'w> Tally<'w> {
    pub(super) fn new(walks: &'w Walks, told: &'w [f64], width: usize) -> Self {
        let zeros = vec![0.0; width];
        let shares = vec![0.0; walks.rows * walks.features * width];
        Self { walks, told, width, base: zeros.clone(), shares, before: zeros.clone(), now: zeros }
    }

    /// The answer to number `number`.
    pub(super) fn take(&mut self, number: usize, answer: &[f64]) {
        let weight = (self.walks.background as f64).recip();
        let (walk, known, background) = match self.walks.asked(number) {
            Asked::Background(_) => return self.base.iter_mut().zip(answer).for_each(|(base, value)| *base += value * weight),
            Asked::Mixture { walk, known, background } => (walk, known, background),
        };
        if (known, background) == (1, 0) {
            self.before.copy_from_slice(&self.base);
        }
        if background == 0 {
            self.now.fill(0.0);
        }
        self.now.iter_mut().zip(answer).for_each(|(now, value)| *now += value * weight);
        if background + 1 < self.walks.background {
            return;
        }
        self.turn(walk, known - 1);
        if known + 1 == self.walks.features {
            let at = self.walks.row_of(walk) * self.width;
            self.now.copy_from_slice(&self.told[at..at + self.width]);
            self.turn(walk, known);
        }
    }

    /// Gives the feature whose turn it was its share.
    fn turn(&mut self, walk: usize, turn: usize) {
        let weight = ((self.walks.samples * DIRECTIONS) as f64).recip();
        let feature = self.walks.row_of(walk) * self.walks.features + self.walks.feature(walk, turn);
        let shares = &mut self.shares[feature * self.width..(feature + 1) * self.width];
        for ((share, before), now) in shares.iter_mut().zip(&mut self.before).zip(&self.now) {
            *share += (now - *before) * weight;
            *before = *now;
        }
    }

    /// The base value, and the shares by input: of each by row, feature, and number of the answer.
    pub(super) fn shares(mut self) -> (Vec<f64>, Vec<Vec<f64>>) {
        if self.walks.features == 1 {
            // There is nothing between the background and the row.
            let of_rows = self.told.iter().enumerate();
            self.shares = of_rows.map(|(at, told)| told - self.base[at % self.width.max(1)]).collect();
        }
        let mut parts: Vec<Vec<f64>> = self.walks.parts.iter().map(|_| Vec::new()).collect();
        for row in self.shares.chunks_exact((self.walks.features * self.width).max(1)) {
            let mut rest = row;
            for (values, part) in parts.iter_mut().zip(&self.walks.parts) {
                let (these, others) = rest.split_at(part.features * self.width);
                values.extend_from_slice(these);
                rest = others;
            }
        }
        (self.base, parts)
    }
}

/// Numbers that look drawn, from everything that the answer depends on.
struct Draws {
    seed: Digest,
    block: u64,
    left: Vec<u64>,
}

impl Draws {
    fn new(walks: &Walks, row: usize, model: Option<Digest>, background: Digest, output: &str) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(b"portcullis/explain/v1");
        hasher.update(model.unwrap_or_default().as_bytes());
        hasher.update(background.as_bytes());
        hasher.update(&(output.len() as u64).to_be_bytes());
        hasher.update(output.as_bytes());
        walks.parts.iter().for_each(|part| hasher.update(part.row(&part.given, row)));
        Self { seed: hasher.finish(), block: 0, left: Vec::new() }
    }

    /// A permutation of so many features, each as likely (Fisher and Yates).
    fn permutation(&mut self, features: usize) -> Vec<u16> {
        let mut order: Vec<u16> = (0..u16::try_from(features).unwrap_or(u16::MAX)).collect();
        for at in (1..order.len()).rev() {
            let other = self.below(at as u64 + 1);
            order.swap(at, usize::try_from(other).unwrap_or(at));
        }
        order
    }

    /// A number below `limit`, each as likely: what would make the first ones likelier is drawn again.
    fn below(&mut self, limit: u64) -> u64 {
        loop {
            let drawn = self.draw();
            if drawn < u64::MAX - u64::MAX % limit {
                return drawn % limit;
            }
        }
    }

    fn draw(&mut self) -> u64 {
        if self.left.is_empty() {
            let block = Digest::of(&[&self.seed.as_bytes()[..], &self.block.to_be_bytes()].concat());
            self.block += 1;
            self.left.extend(block.as_bytes().as_chunks().0.iter().map(|bytes| u64::from_be_bytes(*bytes)));
        }
        self.left.pop().unwrap_or_default()
    }
}
