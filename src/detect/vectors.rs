//! Embeddings: how much of their space a caller has seen, and the noise that grows with it (B4B: Dubiński et al. 2023,
//! <https://arxiv.org/abs/2310.08571>).
//!
//! Who uses an encoder for a task sees a corner of its space, who copies it must see all of it. The space is cut into 4,096 parts by twelve
//! secret planes through its middle, and of a caller it is kept, a bit each, in which of them its embeddings lay. Nothing of texts or
//! embeddings stays, no calibration is needed, and a text that is asked again tells nothing new.
//!
//! The noise follows coverage in grades of a twentieth, and each grade has noise of its own: with noise that only grew in size, two answers would give
//! away the embedding without it.

use std::sync::{Arc, Mutex};

use serde::Deserialize;
use serde_json::json;

use super::response::{Coverage, Response, Seed};
use super::watch::noise::Noise;
use super::watch::rows::{is_floating, numbers};
use super::{Care, Known, Mode, meaning};
use crate::budget::gate::locked;
use crate::clock::Moment;
use crate::event::{Event, Events, Name};
use crate::heavy;
use crate::secret::{Secret, Shared};
use crate::trail::Who;
use crate::wire::openai::embeddings::VECTORS;
use crate::wire::tensor::Tensor;

/// Planes through the middle of the space.
const PLANES: usize = 12;

/// Parts that they cut it into.
const PARTS: usize = 1 << PLANES;

/// Embeddings of a caller of which nothing is kept: of the many who ask no more, there is nothing to be seen.
const FIRST: u64 = 16;

/// Grades of coverage.
const GRADES: u32 = 20;

/// The part of the space from which on people are told, and noise is more than a thousandth of the numbers.
const MUCH: f64 = 0.5;

/// `[detect.vectors]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The mode, where it is another than that of all families.
    pub mode: Option<Mode>,
}

/// Where a caller's embeddings lay.
#[derive(Debug, Default)]
pub(super) struct Seen {
    count: u64,
    parts: Option<Box<[u64; PARTS / 64]>>,
    told: bool,
}

impl Seen {
    fn add(&mut self, part: usize) {
        self.count += 1;
        if self.count > FIRST {
            self.parts.get_or_insert_with(|| Box::new([0; PARTS / 64]))[part / 64] |= 1 << (part % 64);
        }
    }

    fn parts(&self) -> u32 {
        self.parts.as_ref().map_or(0, |parts| parts.iter().map(|word| word.count_ones()).sum())
    }

    /// How much of the space it is, down to the last grade.
    fn covered(&self) -> Coverage {
        let grade = self.parts() * GRADES / PARTS as u32;
        Coverage::of(f64::from(grade) / f64::from(GRADES))
    }

    /// Whether a new one would not be the same, to speak of.
    pub(super) fn is_evidence(&self) -> bool {
        self.covered() != Coverage::default()
    }

    /// Whether it is to be told that it is much: once.
    fn is_told(&mut self) -> bool {
        let much = f64::from(self.parts()) >= MUCH * PARTS as f64;
        much && !std::mem::replace(&mut self.told, true)
    }
}

/// The care that goes with what a caller has seen; the noise is drawn from the process's secret.
pub(super) fn care(seen: &Mutex<Seen>, secret: &Secret) -> Care {
    let covered = locked(seen).covered();
    if covered == Coverage::default() {
        return Care::default();
    }
    let mut noise = Noise::new(secret.expose(), "noise");
    let seed = u128::from(noise.next()) << 64 | u128::from(noise.next());
    Care { response: Response { covered, seed: Seed::from_secret(seed.to_le_bytes()), ..Response::default() }, ..Care::default() }
}

/// What is to be learned of the embeddings in an answer.
#[derive(Debug)]
pub struct Sight {
    pub(super) known: Arc<Known>,
    /// The process's own.
    pub(super) secret: Shared,
    pub(super) enforced: bool,
    pub(super) who: Arc<Who>,
    pub(super) model: Option<Arc<str>>,
    pub(super) receipt: uuid::Uuid,
    pub(super) events: Events,
    pub(super) at: Moment,
}

impl Sight {
    /// Learns, and in its turn where that is much.
    pub async fn learn_in_turn(self, said: &[Tensor]) {
        let bytes = said.iter().filter(|tensor| tensor.name == VECTORS).map(|tensor| tensor.data.len()).sum();
        heavy::work(bytes, || self.learn(said)).await;
    }

    /// Learns where the embeddings of an answer lie, before anything is added to them. Tensors that are none teach nothing.
    fn learn(self, said: &[Tensor]) {
        let Some((width, vectors)) = said.iter().find_map(embeddings) else { return };
        let planes = Planes::new(&self.secret, width);
        let parts: Vec<usize> = vectors.chunks_exact(width).map(|vector| planes.part(vector)).collect();
        let told = {
            let mut seen = locked(&self.known.seen_vectors);
            parts.into_iter().for_each(|part| seen.add(part));
            seen.is_told().then(|| (seen.parts(), seen.count))
        };
        if let Some((parts, count)) = told {
            self.tell(f64::from(parts) / PARTS as f64, count);
        }
    }

    fn tell(self, covered: f64, count: u64) {
        let mut event = meaning::of("vectors", Event::new(Name::DetectAlarm, self.at.wall))
            .with("query", count)
            .with("evidence", json!({ "covered": covered, "embeddings": count }))
            .with("step", if self.enforced { "degrade" } else { "observe" });
        event.rule = Some("vectors".into());
        event.caller = Some(self.who.caller.clone());
        event.tenant = Some(self.who.tenant.clone());
        event.model = self.model;
        event.receipt = Some(self.receipt);
        self.events.tell(event);
    }
}

/// The numbers of a tensor of embeddings, and how many each has: no more than there are.
fn embeddings(tensor: &Tensor) -> Option<(usize, Vec<f32>)> {
    if tensor.name != VECTORS || !is_floating(tensor.datatype) {
        return None;
    }
    let (width, numbers) = (usize::try_from(*tensor.shape.last()?).ok()?, numbers(tensor));
    (1..=numbers.len()).contains(&width).then_some((width, numbers))
}

/// Planes whose normals have numbers of 1 and −1 (Achlioptas, 2003): they cut as evenly as any, and take a bit each.
struct Planes {
    signs: Vec<u64>,
    width: usize,
}

impl Planes {
    fn new(secret: &Secret, width: usize) -> Self {
        let mut noise = Noise::new(secret.expose(), "planes");
        Self { signs: (0..(PLANES * width).div_ceil(64)).map(|_| noise.next()).collect(), width }
    }

    fn part(&self, vector: &[f32]) -> usize {
        (0..PLANES).fold(0, |part, plane| {
            let signed = vector.iter().enumerate().map(|(place, number)| {
                let bit = plane * self.width + place;
                if self.signs[bit / 64] >> (bit % 64) & 1 == 1 { *number } else { -number }
            });
            part << 1 | usize::from(signed.sum::<f32>() > 0.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::event::channel;
    use crate::wire::tensor::Datatype;

    const WIDTH: usize = 32;

    fn sight(known: &Arc<Known>, events: &Events) -> Sight {
        Sight {
            known: known.clone(),
            secret: [3; 32].into(),
            enforced: true,
            who: Arc::new(Who { caller: "a".into(), tenant: "".into(), tier: "".into(), method: "api_key" }),
            model: None,
            receipt: uuid::Uuid::nil(),
            events: events.clone(),
            at: Moment::now(),
        }
    }

    fn tensor(vectors: &[f32]) -> Vec<Tensor> {
        let data: Vec<u8> = vectors.iter().flat_map(|number| number.to_le_bytes()).collect();
        let shape = vec![(vectors.len() / WIDTH) as u64, WIDTH as u64];
        vec![Tensor { name: VECTORS.into(), datatype: Datatype::Fp32, shape, data: data.into() }]
    }

    fn covered(known: &Known) -> f64 {
        care(&known.seen_vectors, &Shared::from([3; 32])).response.covered.percent()
    }

    #[tokio::test]
    async fn who_sees_a_corner_is_left_alone_and_who_sees_all_of_it_gets_noise_and_is_told_of_once() {
        let (events, mut reader) = channel(64);
        let [user, thief] = [(); 2].map(|()| Arc::new(Known::new(Instant::now())));
        let mut noise = Noise::new(&[5; 32], "vectors");
        let middle: Vec<f32> = (0..WIDTH).map(|_| noise.normal() * 3.0).collect();
        let mut at = |spread: f32, middle: &[f32]| -> Vec<f32> { middle.iter().map(|number| number + spread * noise.normal()).collect() };
        for _ in 0..300 {
            let mut batch = |spread: f32, middle: &[f32]| tensor(&(0..40).flat_map(|_| at(spread, middle)).collect::<Vec<_>>());
            sight(&user, &events).learn(&batch(0.2, &middle));
            sight(&thief, &events).learn(&batch(3.0, &[0.0; WIDTH]));
        }
        assert!(covered(&user) <= 5.0, "{}", covered(&user));
        assert!(covered(&thief) >= 50.0, "{}", covered(&thief));
        drop(events);
        let mut alarms = Vec::new();
        while let Some(event) = reader.next().await {
            alarms.push(event);
        }
        assert_eq!(alarms.len(), 1);
        let evidence = alarms[0].more.iter().find(|(name, _)| *name == "evidence").and_then(|(_, evidence)| evidence["covered"].as_f64());
        assert_eq!(alarms[0].rule.as_deref(), Some("vectors"));
        assert!((0.5..0.51).contains(&evidence.unwrap()), "within a batch of it: {evidence:?}");
    }

    #[test]
    fn what_is_asked_again_and_what_is_no_embedding_tells_nothing() {
        let (known, events) = (Arc::new(Known::new(Instant::now())), channel(1).0);
        let mut noise = Noise::new(&[5; 32], "vectors");
        let vectors: Vec<f32> = (0..FIRST as usize * WIDTH).map(|_| noise.normal()).collect();
        sight(&known, &events).learn(&tensor(&vectors));
        assert_eq!(locked(&known.seen_vectors).parts(), 0, "the first sixteen");
        for _ in 0..3 {
            sight(&known, &events).learn(&tensor(&vectors[..WIDTH]));
        }
        assert_eq!(locked(&known.seen_vectors).parts(), 1, "one past them, and its repeats");
        let mut other = tensor(&vectors);
        other[0].name = "probabilities".into();
        sight(&known, &events).learn(&other);
        sight(&known, &events).learn(&[]);
        assert_eq!(locked(&known.seen_vectors).count, FIRST + 3);
    }

    #[test]
    fn an_answer_of_no_rows_and_any_width_is_harmless() {
        let (known, events) = (Arc::new(Known::new(Instant::now())), channel(1).0);
        // What a model may answer for an output whose dimensions it leaves free.
        for (shape, data) in [(vec![0, u64::MAX], 0), (vec![0, 1 << 33], 0), (vec![1, 1 << 33], 4), (vec![4, 0], 0), (vec![], 0)] {
            let tensor = Tensor { name: VECTORS.into(), datatype: Datatype::Fp32, shape, data: vec![0; data].into() };
            sight(&known, &events).learn(&[tensor]);
        }
        assert_eq!(locked(&known.seen_vectors).count, 0);
    }

    #[test]
    fn coverage_goes_by_grades() {
        let mut seen = Seen::default();
        (0..FIRST).for_each(|_| seen.add(0));
        let grade = PARTS / GRADES as usize + 1;
        (0..grade - 1).for_each(|part| seen.add(part));
        assert_eq!(seen.covered(), Coverage::default());
        seen.add(grade - 1);
        assert_eq!(seen.covered(), Coverage::of(0.05));
        (0..PARTS).for_each(|part| seen.add(part));
        assert_eq!(seen.covered(), Coverage::ALL);
    }
}
