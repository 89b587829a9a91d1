//! Tiles as C2SP tlog-tiles lays them: 256 hashes of one level in a file, and 256 entries in a bundle.
//!
//! A tile of level `l` holds hashes of perfect subtrees of height `8 l`. The last tile of each level is partial, as wide as the tree says.

use std::fmt;
use std::ops::Range;

use super::merkle::{Hash, Subtrees, empty, leaf, node};

/// How many hashes a full tile holds, and entries a full bundle.
pub const WIDTH: u64 = 256;
/// The longest entry in bytes: its length stands in 16 bits.
pub const MAX_ENTRY: usize = 65_535;
/// No tree of 2⁶⁴ leaves has a level past it.
pub const MAX_LEVEL: u8 = 7;

/// Which file of a log: where a tile or a bundle lies, and how much of it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tile {
    /// Of hashes, the level; of entries, none.
    pub level: Option<u8>,
    /// Its number in its level, from 0.
    pub number: u64,
    /// How many hashes or entries it holds: 1 to 256.
    pub width: u16,
}

impl Tile {
    /// The tile of `level` with this number, or the bundle, in a tree of `size` leaves; none where it would be empty.
    #[must_use]
    pub fn of(level: Option<u8>, number: u64, size: u64) -> Option<Self> {
        let all = size >> (8 * u32::from(level.unwrap_or(0)));
        let width = all.checked_sub(number.checked_mul(WIDTH)?)?.min(WIDTH) as u16;
        (width > 0).then_some(Self { level, number, width })
    }

    /// Every tile and bundle of a tree of `size` leaves that holds what the tree of `old` leaves had not, level by level.
    pub fn added(old: u64, size: u64) -> impl Iterator<Item = Self> {
        let levels = std::iter::once(None).chain((0..=MAX_LEVEL).map(Some));
        levels.flat_map(move |level| {
            let shift = 8 * u32::from(level.unwrap_or(0));
            let (before, after) = (old >> shift, size >> shift);
            let numbers = if before < after { before / WIDTH..after.div_ceil(WIDTH) } else { 0..0 };
            numbers.filter_map(move |number| Self::of(level, number, size))
        })
    }

    /// Whether it holds all it ever will.
    #[must_use]
    pub fn is_full(&self) -> bool {
        u64::from(self.width) == WIDTH
    }

    /// The leaves it speaks of.
    #[must_use]
    pub fn leaves(&self) -> Range<u64> {
        let shift = 8 * u32::from(self.level.unwrap_or(0));
        let first = self.number * WIDTH;
        (first << shift)..((first + u64::from(self.width)) << shift)
    }

    /// Whether a tree of less than 2⁶⁴ leaves has it, so that [`Tile::leaves`] can say where it ends.
    fn is_of_a_tree(&self) -> bool {
        let end = self.number.checked_mul(WIDTH).and_then(|first| first.checked_add(u64::from(self.width)));
        end.is_some_and(|end| end <= u64::MAX >> (8 * u32::from(self.level.unwrap_or(0))))
    }

    /// Reads a path below a log's root, as [`Display`](fmt::Display) writes it and no other way.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        let rest = path.strip_prefix("tile/")?;
        let (level, rest) = rest.split_once('/')?;
        let level = if level == "entries" { None } else { Some(level.parse().ok().filter(|level| *level <= MAX_LEVEL)?) };
        let (number, width) = match rest.split_once(".p/") {
            Some((number, width)) => (number, width.parse().ok().filter(|width| (1..256).contains(width))?),
            None => (rest, 256),
        };
        let number = number.split('/').try_fold(0_u64, |number, part| {
            let digits = part.strip_prefix('x').unwrap_or(part);
            number.checked_mul(1_000)?.checked_add(digits.parse().ok()?)
        })?;
        let tile = Self { level, number, width };
        // One tile has one path: what is written otherwise had a sign, a zero too many, or an `x` in the wrong place.
        (tile.to_string() == path && number <= u64::MAX >> 16 && tile.is_of_a_tree()).then_some(tile)
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.level {
            None => f.write_str("tile/entries/")?,
            Some(level) => write!(f, "tile/{level}/")?,
        }
        let mut unit = 1;
        while self.number / unit >= 1_000 {
            unit *= 1_000;
        }
        while unit > 1 {
            write!(f, "x{:03}/", self.number / unit % 1_000)?;
            unit /= 1_000;
        }
        write!(f, "{:03}", self.number % 1_000)?;
        if self.is_full() { Ok(()) } else { write!(f, ".p/{}", self.width) }
    }
}

/// Appends an entry to a bundle: its length in 16 bits, big-endian, and its bytes.
pub fn bundle(to: &mut Vec<u8>, entry: &[u8]) {
    let length = u16::try_from(entry.len()).unwrap_or(u16::MAX);
    to.extend_from_slice(&length.to_be_bytes());
    to.extend_from_slice(entry);
}

/// The entries of a bundle, in order; `None` where one is cut short.
#[must_use]
pub fn entries(mut bundle: &[u8]) -> Option<Vec<&[u8]>> {
    let mut entries = Vec::new();
    while !bundle.is_empty() {
        let length = usize::from(u16::from_be_bytes([*bundle.first()?, *bundle.get(1)?]));
        entries.push(bundle.get(2..2 + length)?);
        bundle = &bundle[2 + length..];
    }
    Some(entries)
}

/// The hashes of a tile; `None` where one is cut short.
#[must_use]
pub fn hashes(tile: &[u8]) -> Option<Vec<Hash>> {
    let (hashes, []) = tile.as_chunks::<32>() else { return None };
    Some(hashes.to_vec())
}

/// The hash over the perfect subtree whose subtrees' hashes these are: a power of two of them.
#[must_use]
pub fn join(hashes: &[Hash]) -> Hash {
    let mut row = hashes.to_vec();
    while row.len() > 1 {
        row = row.chunks_exact(2).map(|pair| node(&pair[0], &pair[1])).collect();
    }
    row.first().copied().unwrap_or_else(empty)
}

/// The right edge of a growing tree: of each level the hashes that fill no tile yet. It is all that is needed to go on.
#[derive(Clone, Debug, Default)]
pub struct Edge {
    size: u64,
    levels: Vec<Vec<Hash>>,
}

impl Edge {
    /// The edge of a tree of `size` leaves; `last` gives the hashes of a partial tile.
    ///
    /// # Errors
    /// What `last` says.
    pub fn of<E>(size: u64, mut last: impl FnMut(Tile) -> Result<Vec<Hash>, E>) -> Result<Self, E> {
        let mut levels = Vec::new();
        for level in 0..=MAX_LEVEL {
            let all = size >> (8 * u32::from(level));
            if all == 0 {
                break;
            }
            let tile = Tile { level: Some(level), number: all / WIDTH, width: (all % WIDTH) as u16 };
            levels.push(if tile.width == 0 { Vec::new() } else { last(tile)? });
        }
        Ok(Self { size, levels })
    }

    /// How many leaves the tree has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds the leaf of `entry`; tells each tile that it fills, from level 0 up.
    pub fn push(&mut self, entry: &[u8], filled: impl FnMut(u8, u64, &[Hash])) {
        self.push_leaf(leaf(entry), filled);
    }

    /// Adds a leaf with this hash; tells each tile that it fills, from level 0 up.
    pub fn push_leaf(&mut self, leaf: Hash, mut filled: impl FnMut(u8, u64, &[Hash])) {
        self.size += 1;
        let mut hash = leaf;
        for level in 0..=MAX_LEVEL {
            let at = usize::from(level);
            if self.levels.len() == at {
                self.levels.push(Vec::with_capacity(WIDTH as usize));
            }
            self.levels[at].push(hash);
            if (self.levels[at].len() as u64) < WIDTH {
                return;
            }
            let tile = std::mem::take(&mut self.levels[at]);
            filled(level, (self.size >> (8 * (u32::from(level) + 1))) - 1, &tile);
            hash = join(&tile);
        }
    }

    /// The hashes of the partial tile of a level; none where it is empty.
    #[must_use]
    pub fn partial(&self, level: u8) -> &[Hash] {
        self.levels.get(usize::from(level)).map_or(&[], Vec::as_slice)
    }

    /// The root of the tree.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut gathered: Option<Hash> = None;
        for hashes in &self.levels {
            let mut end = hashes.len();
            while end > 0 {
                let start = end - (1 << end.trailing_zeros());
                let left = join(&hashes[start..end]);
                gathered = Some(gathered.map_or(left, |right| node(&left, &right)));
                end = start;
            }
        }
        gathered.unwrap_or_else(empty)
    }
}

/// The subtrees of a tree of `size` leaves, read from its tiles.
pub struct Tiles<F> {
    size: u64,
    read: F,
    /// The tiles that were read: a proof needs one or two of each level.
    known: Vec<(Tile, Vec<Hash>)>,
}

impl<F> Tiles<F> {
    /// Reads tiles with `read`, which gives the hashes of a tile, as many as it is wide.
    pub fn new(size: u64, read: F) -> Self {
        Self { size, read, known: Vec::new() }
    }
}

impl<E, F: FnMut(Tile) -> Result<Vec<Hash>, E>> Subtrees for Tiles<F> {
    type Error = E;

    fn subtree(&mut self, height: u8, index: u64) -> Result<Hash, E> {
        let (level, within) = (height / 8, height % 8);
        let first = index << within;
        let number = first / WIDTH;
        // The tree has the subtree, or nobody would ask.
        let tile = Tile::of(Some(level), number, self.size).unwrap_or(Tile { level: Some(level), number, width: 1 });
        let at = match self.known.iter().position(|(known, _)| *known == tile) {
            Some(at) => at,
            None => {
                self.known.push((tile, (self.read)(tile)?));
                self.known.len() - 1
            }
        };
        let start = (first % WIDTH) as usize;
        let hashes = &self.known[at].1;
        Ok(join(hashes.get(start..start + (1 << within)).unwrap_or_default()))
    }
}

#[cfg(test)]
#[path = "tile/tests.rs"]
mod tests;
