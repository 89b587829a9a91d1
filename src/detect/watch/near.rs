//! What a caller asked before that is like what is asked now: a ring of the last inputs, and clusters of those that lie close together.

use super::bounds::Of;
use super::rows::Told;
use super::space::{Point, SAMPLE, STEPS, Space};
use super::telling::{Explained, Row, Sum};

/// Inputs that are remembered of a caller who is watched closely.
const RING: usize = 112;

/// The same where texts are kept too: a place is to be no larger for it.
const RING_BESIDE_TEXTS: usize = 80;

/// Inputs that are remembered of others.
pub(super) const FIRST: usize = 4;

/// Clusters that are remembered of a caller.
const CLUSTERS: usize = 16;

/// Coordinates after which a candidate that is too far already is let go.
const GLANCE: usize = 8;

/// Changes are the same size when they are within so much of their median.
const SAME_SIZE: f32 = 0.05;

/// Coordinates in which a step moves at most.
const FEW: usize = 2;

/// The cosine between two changes from which they lie on one line, either way.
const ON_A_LINE: f32 = 0.97;

/// The square of the part of a change that is left when the next has taken it back.
const RETURNED: f32 = 1.0 / 9.0;

/// One input that was asked.
#[derive(Clone, Debug)]
struct Item {
    digest: u64,
    sample: [i16; SAMPLE],
    /// [`NO_LABEL`] where there was none.
    label: u32,
    cluster: Option<u8>,
    /// The query at which it came; 0 for a free place.
    query: u32,
    /// The parts of a [`Sum`], which as one would take more room.
    told: f32,
    marks: u16,
}

/// In the place of a label.
const NO_LABEL: u32 = u32::MAX;

impl Item {
    const FREE: Self = Self { digest: 0, sample: [0; SAMPLE], label: NO_LABEL, cluster: None, query: 0, told: 0.0, marks: 0 };
}

/// Inputs that lie close together, each near one before.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cluster {
    /// How many there are, repeats left out; 0 for a free place.
    pub(super) size: u32,
    /// Those of them with another label than their neighbour, or a low margin.
    pub(super) flips: u32,
    /// The last two, as places in the ring.
    last: [u8; 2],
    /// Where and by how much the last of them differed, where it was in a single coordinate or two.
    step: (u64, f32),
    /// When the last of them came.
    query: u32,
}

/// How many inputs are remembered of a caller of a model, one who is watched `closely` or another.
pub(super) fn most(of: Of, closely: bool) -> usize {
    match (closely, of) {
        (false, _) => FIRST,
        (true, Of::Numbers) => RING,
        (true, Of::Texts | Of::Both) => RING_BESIDE_TEXTS,
    }
}

/// A caller's inputs.
#[derive(Clone, Debug, Default)]
pub(super) struct Near {
    items: Vec<Item>,
    clusters: Vec<Cluster>,
    explained: Explained,
}

/// How an input differs from the nearest before it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Change {
    /// The root mean square over the kept coordinates, in standard deviations.
    pub(super) distance: f32,
    /// Coordinates that differ, of those kept.
    pub(super) moved: usize,
    /// The part of them whose difference is the same size.
    pub(super) alike: f32,
    /// The part of them whose difference is twice or half of that.
    pub(super) doubled: f32,
    /// Their median difference, in the input's units.
    pub(super) size: f32,
    /// The part of them that went against the others: at most one half.
    pub(super) against: f32,
    /// Which they are, of the first 64 kept.
    places: u64,
}

/// How an input stands to those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Seen {
    /// It was asked before, exactly.
    pub(super) repeat: bool,
    /// Where one before it is near: how it differs.
    pub(super) change: Option<Change>,
    /// Where one before it is as near as the nearest of strangers: how it differs.
    pub(super) kin: Option<Change>,
    /// It differs in a coordinate or two, by as much as the one before it in its cluster did elsewhere.
    pub(super) stepped: bool,
    /// The cluster it fell into, as it stands now.
    pub(super) cluster: Option<Cluster>,
    /// Its label is another than its neighbour's.
    pub(super) flipped: bool,
    /// The cosine of the last two changes, where it can be told.
    pub(super) line: Option<f32>,
    /// The last change takes back the one before: two who ask in turn, each of something of its own, look like that, and lie on no line.
    pub(super) returned: bool,
    /// One before it differs in a coordinate or two, by however much.
    pub(super) swept: bool,
    /// There is an input before it at all.
    pub(super) follows: bool,
}

impl Near {
    /// Looks at an input, and remembers it, and `most` inputs at all. `radius` is how
    /// near is near, and how near is kin, in standard deviations; a low margin or a flip counts for its cluster.
    pub(super) fn look(
        &mut self,
        space: &Space,
        point: &Point,
        told: &Told,
        (low, most): (bool, usize),
        [radius, kin]: [f32; 2],
        query: u32,
    ) -> Seen {
        let kept = space.sampled().0;
        if self.items.iter().any(|item| item.digest == point.digest) {
            return Seen { repeat: true, ..Seen::default() };
        }
        let swept = self.items.iter().any(|item| differ_in_few(&item.sample[..kept], &point.sample[..kept]));
        let mut seen = Seen { follows: !self.items.is_empty(), swept, ..Seen::default() };
        let nearest = self.within(point, kept, kin.max(radius));
        let near = nearest.filter(|(_, distance)| *distance <= radius);
        if let Some([before, last]) = self.led(near.map(|(place, _)| place)) {
            let [before, last, now] = [&self.items[before].sample[..kept], &self.items[last].sample[..kept], &point.sample[..kept]];
            seen.line = cosine(before, last, now);
            seen.returned = square(before, now) < square(before, last) * RETURNED;
        }
        let mut cluster = None;
        if let Some((place, distance)) = nearest {
            let item = &self.items[place];
            seen.kin = Some(change(space, &item.sample, &point.sample, distance));
            if near.is_some() {
                seen.change = seen.kin;
                seen.flipped = item.label != NO_LABEL && told.label.is_some_and(|now| now != item.label);
                let at = match item.cluster {
                    Some(at) => at,
                    None => self.found(place),
                };
                cluster = Some(at);
            }
        }
        let place = self.place(most);
        let (digest, sample) = (point.digest, point.sample);
        self.items[place] = Item { digest, sample, label: told.label.unwrap_or(NO_LABEL), cluster, query, ..Item::FREE };
        if let Some(at) = cluster {
            let cluster = &mut self.clusters[usize::from(at)];
            cluster.size += 1;
            cluster.flips += u32::from(seen.flipped || low);
            cluster.last = [cluster.last[1], place as u8];
            cluster.query = query;
            let small = seen.change.filter(|change| change.moved <= FEW);
            let step = small.map_or((0, 0.0), |change| (change.places, change.size));
            let (places, size) = cluster.step;
            seen.stepped = small.is_some() && step.0 != places && (step.1 - size).abs() <= size * SAME_SIZE;
            cluster.step = step;
            seen.cluster = Some(*cluster);
        }
        seen
    }

    /// Remembers what an input was told, and tells how many bits that is more than it was told before; nothing of one that is not remembered.
    pub(super) fn told(&mut self, digest: u64, row: &Row) -> Option<f64> {
        let item = self.items.iter_mut().find(|item| item.digest == digest)?;
        let mut sum = Sum { bits: item.told, marks: item.marks };
        let more = sum.add(row) + self.explained.add(digest, row);
        (item.told, item.marks) = (sum.bits, sum.marks);
        Some(more)
    }

    fn within(&self, point: &Point, kept: usize, radius: f32) -> Option<(usize, f32)> {
        let glance = kept.min(GLANCE);
        // What is four times as far at a glance is hardly near as a whole.
        let far = radius * radius * 16.0;
        let mut best: Option<(usize, f32)> = None;
        for (place, item) in self.items.iter().enumerate() {
            if square(&item.sample[..glance], &point.sample[..glance]) / glance as f32 > far {
                continue;
            }
            let distance = distance(&item.sample[..kept], &point.sample[..kept]);
            if distance <= radius && best.is_none_or(|(_, least)| distance < least) {
                best = Some((place, distance));
            }
        }
        best
    }

    /// The two inputs that lead to this one: the last of the cluster of the nearest, else the last of all.
    fn led(&self, nearest: Option<usize>) -> Option<[usize; 2]> {
        let cluster = nearest.and_then(|place| self.items[place].cluster).map(|at| &self.clusters[usize::from(at)]);
        match cluster {
            Some(cluster) if cluster.size > 2 => Some(cluster.last.map(usize::from)),
            _ => self.last_two(),
        }
    }

    fn last_two(&self) -> Option<[usize; 2]> {
        let (mut last, mut before) = (None::<usize>, None::<usize>);
        for (place, item) in self.items.iter().enumerate() {
            let query = |place: Option<usize>| place.map_or(0, |place| self.items[place].query);
            if item.query > query(last) {
                (before, last) = (last, Some(place));
            } else if item.query > query(before) {
                before = Some(place);
            }
        }
        Some([before?, last?])
    }

    /// A new cluster that begins with the input at `place`; the smallest of those that are not of late makes room.
    fn found(&mut self, place: usize) -> u8 {
        let cluster = Cluster { size: 1, flips: 0, last: [place as u8; 2], step: (0, 0.0), query: self.items[place].query };
        let at = if self.clusters.len() < CLUSTERS {
            self.clusters.push(cluster);
            self.clusters.len() - 1
        } else {
            let newest = self.clusters.iter().map(|cluster| cluster.query).max().unwrap_or_default();
            // The one is dropped that is small and old: both count alike.
            let worth = |cluster: &Cluster| cluster.size.saturating_mul(16).saturating_sub(newest.saturating_sub(cluster.query));
            let at = (0..CLUSTERS).min_by_key(|at| worth(&self.clusters[*at])).unwrap_or_default();
            self.items.iter_mut().filter(|item| item.cluster == Some(at as u8)).for_each(|item| item.cluster = None);
            self.clusters[at] = cluster;
            at
        };
        self.items[place].cluster = Some(at as u8);
        at as u8
    }

    /// A place for a new input: the oldest that is not one of the last two of a cluster, so that a caller does not make the gateway forget
    /// a chain by asking for something else in between.
    fn place(&mut self, most: usize) -> usize {
        if self.items.len() < most {
            self.items.reserve_exact(if self.items.len() < FIRST { 1 } else { most - self.items.len() });
            self.items.push(Item::FREE);
            return self.items.len() - 1;
        }
        let kept = |place: usize| self.clusters.iter().any(|cluster| cluster.size > 1 && cluster.last.contains(&(place as u8)));
        let oldest = (0..self.items.len()).filter(|place| !kept(*place)).min_by_key(|place| self.items[*place].query);
        oldest.unwrap_or_default()
    }

    /// Bytes that are kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.items.capacity() * size_of::<Item>() + self.clusters.capacity() * size_of::<Cluster>() + self.explained.kept()
    }

    /// Forgets all but the newest few.
    pub(super) fn forget(&mut self) {
        self.items.sort_unstable_by_key(|item| std::cmp::Reverse(item.query));
        self.items.truncate(FIRST);
        self.items.shrink_to_fit();
        self.items.iter_mut().for_each(|item| item.cluster = None);
        self.clusters = Vec::new();
    }
}

fn differ_in_few(a: &[i16], b: &[i16]) -> bool {
    let mut differing = 0;
    for (a, b) in a.iter().zip(b) {
        differing += usize::from(a != b);
        if differing > FEW {
            return false;
        }
    }
    true
}

fn square(a: &[i16], b: &[i16]) -> f32 {
    let mut sum = 0.0;
    for (a, b) in a.iter().zip(b) {
        let apart = (i32::from(*a) - i32::from(*b)) as f32;
        sum += apart * apart;
    }
    sum / (STEPS * STEPS)
}

/// The root mean square of the differences of kept coordinates, in standard deviations.
pub(super) fn distance(a: &[i16], b: &[i16]) -> f32 {
    (square(a, b) / a.len().max(1) as f32).sqrt()
}

fn change(space: &Space, before: &[i16; SAMPLE], now: &[i16; SAMPLE], distance: f32) -> Change {
    let kept = space.sampled().0;
    let mut sizes = [0.0_f32; SAMPLE];
    let (mut moved, mut up, mut places) = (0, 0, 0_u64);
    for place in 0..kept {
        let apart = i32::from(now[place]) - i32::from(before[place]);
        if apart.abs() > 1 {
            sizes[moved] = apart.abs() as f32 * space.unit(place);
            (moved, up, places) = (moved + 1, up + usize::from(apart > 0), places | 1 << place);
        }
    }
    let sizes = &mut sizes[..moved];
    sizes.sort_unstable_by(f32::total_cmp);
    let size = sizes.get(moved / 2).copied().unwrap_or_default();
    let same = |times: f32| sizes.iter().filter(|other| (**other - size * times).abs() <= size * times * SAME_SIZE).count();
    let (alike, doubled) = (same(1.0), same(2.0) + same(0.5));
    let part = |count: usize| if moved == 0 { 0.0 } else { count as f32 / moved as f32 };
    Change { distance, moved, alike: part(alike), doubled: part(doubled), size, against: part(up.min(moved - up)), places }
}

fn cosine(before: &[i16], last: &[i16], now: &[i16]) -> Option<f32> {
    let (mut both, mut first, mut second, mut moved) = (0.0_f32, 0.0_f32, 0.0_f32, 0);
    for ((before, last), now) in before.iter().zip(last).zip(now) {
        let a = (i32::from(*last) - i32::from(*before)) as f32;
        let b = (i32::from(*now) - i32::from(*last)) as f32;
        both += a * b;
        first += a * a;
        second += b * b;
        moved += u32::from(a.abs() > 1.0 && b.abs() > 1.0);
    }
    // Two or fewer coordinates on a line are a sweep of them.
    let cosine = both / (first.sqrt() * second.sqrt()).max(f32::MIN_POSITIVE);
    (moved > 2 && first > 0.0 && second > 0.0).then_some(cosine)
}

impl Seen {
    /// The first of its kind: neither asked before, nor near what was, nor that with a coordinate or two set to something else.
    pub(super) fn is_first(&self) -> bool {
        !self.repeat && self.change.is_none() && !self.swept
    }

    /// Nothing that is remembered is like it.
    pub(super) fn is_new(&self) -> bool {
        self.is_first() && self.kin.is_none()
    }

    /// The changes that led here lie on one line.
    pub(super) fn on_a_line(&self) -> bool {
        self.line.is_some_and(|line| line.abs() >= ON_A_LINE)
    }
}
