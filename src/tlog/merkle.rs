//! Merkle trees of RFC 6962 §2.1 over SHA-256.
//!
//! A tree of `size` leaves is made of perfect subtrees: of height `h` and number `i`, the leaves from `i << h` up to `(i + 1) << h`.
//! Whoever can tell their hashes ([`Subtrees`]) gets roots and proofs; who holds a proof needs nothing else to check it.

use std::fmt;

use crate::digest::{Digest, Hasher};

/// A SHA-256 hash of a leaf or a node.
pub type Hash = [u8; 32];

/// The longest proof: one hash for each height of a tree of 2⁶³ leaves.
pub const MAX_PROOF: usize = 63;

/// The hash of an entry: `SHA-256(0x00 ‖ entry)`.
#[must_use]
pub fn leaf(entry: &[u8]) -> Hash {
    let mut hasher = Hasher::new();
    hasher.update(&[0]);
    hasher.update(entry);
    hasher.finish().0
}

/// The hash of two trees side by side: `SHA-256(0x01 ‖ left ‖ right)`.
#[must_use]
pub fn node(left: &Hash, right: &Hash) -> Hash {
    let mut both = [1; 65];
    both[1..33].copy_from_slice(left);
    both[33..].copy_from_slice(right);
    Digest::of(&both).0
}

/// The root of a tree without leaves: the hash of nothing.
#[must_use]
pub fn empty() -> Hash {
    Digest::of(&[]).0
}

/// Whoever knows the hashes of perfect subtrees.
pub trait Subtrees {
    /// Why it cannot tell one.
    type Error;

    /// The hash over the leaves from `index << height` up to `(index + 1) << height`.
    ///
    /// # Errors
    /// When it is not known.
    fn subtree(&mut self, height: u8, index: u64) -> Result<Hash, Self::Error>;
}

/// The root of the tree of the first `size` leaves.
///
/// # Errors
/// What `subtrees` says.
pub fn root<S: Subtrees>(size: u64, subtrees: &mut S) -> Result<Hash, S::Error> {
    if size == 0 { Ok(empty()) } else { range(0, size, subtrees) }
}

/// The audit path of the leaf `index` in the tree of the first `size` leaves, from the leaf's sibling to the root's child (RFC 6962 §2.1.1).
///
/// # Errors
/// What `subtrees` says.
///
/// # Panics
/// When there is no such leaf.
pub fn inclusion<S: Subtrees>(index: u64, size: u64, subtrees: &mut S) -> Result<Vec<Hash>, S::Error> {
    assert!(index < size, "a leaf of the tree");
    let (mut from, mut to) = (0, size);
    let mut path = Vec::new();
    while to - from > 1 {
        let middle = from + split(to - from);
        if index < middle {
            path.push(range(middle, to, subtrees)?);
            to = middle;
        } else {
            path.push(range(from, middle, subtrees)?);
            from = middle;
        }
    }
    path.reverse();
    Ok(path)
}

/// The proof that the tree of the first `old` leaves is the beginning of that of the first `new` (RFC 6962 §2.1.2); empty where `old`
/// is 0 or `new`.
///
/// # Errors
/// What `subtrees` says.
///
/// # Panics
/// When `old` is more than `new`.
pub fn consistency<S: Subtrees>(old: u64, new: u64, subtrees: &mut S) -> Result<Vec<Hash>, S::Error> {
    assert!(old <= new, "the older tree is not the larger");
    if old == 0 || old == new {
        return Ok(Vec::new());
    }
    let (mut from, mut to) = (0, new);
    let mut path = Vec::new();
    // Down to the subtree whose end is the end of the old tree.
    while old != to {
        let middle = from + split(to - from);
        if old <= middle {
            path.push(range(middle, to, subtrees)?);
            to = middle;
        } else {
            path.push(range(from, middle, subtrees)?);
            from = middle;
        }
    }
    // Who checks has the root of the old tree, where that is this subtree.
    if from > 0 {
        path.push(range(from, to, subtrees)?);
    }
    path.reverse();
    Ok(path)
}

/// The largest power of two below `count`, which is at least 2.
fn split(count: u64) -> u64 {
    1 << (63 - (count - 1).leading_zeros())
}

/// The hash over the leaves from `from` up to `to`, where `from` is where a subtree that large may begin.
fn range<S: Subtrees>(from: u64, to: u64, subtrees: &mut S) -> Result<Hash, S::Error> {
    // From the right, so that each perfect subtree takes in what was gathered right of it.
    let mut end = to;
    let mut gathered: Option<Hash> = None;
    while end > from {
        let height = (end - from).trailing_zeros() as u8;
        let start = end - (1 << height);
        let left = subtrees.subtree(height, start >> height)?;
        gathered = Some(match gathered {
            Some(right) => node(&left, &right),
            None => left,
        });
        end = start;
    }
    Ok(gathered.unwrap_or_else(empty))
}

/// A proof that proves nothing: too short, too long, or of another root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotProved;

impl fmt::Display for NotProved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the proof does not lead to this root")
    }
}

impl std::error::Error for NotProved {}

/// The root to which `path` leads from the leaf `index` of a tree of `size` leaves (RFC 9162 §2.1.3.2).
///
/// # Errors
/// When there is no such leaf, or the path has another length than it must have.
pub fn root_of_inclusion(index: u64, size: u64, leaf: &Hash, path: &[Hash]) -> Result<Hash, NotProved> {
    if index >= size {
        return Err(NotProved);
    }
    let (mut at, mut last) = (index, size - 1);
    let mut hash = *leaf;
    for sibling in path {
        if last == 0 {
            return Err(NotProved);
        }
        if at & 1 == 1 || at == last {
            hash = node(sibling, &hash);
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            hash = node(&hash, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    if last == 0 { Ok(hash) } else { Err(NotProved) }
}

/// Checks that a leaf with this hash is number `index` of the tree of `size` leaves with this root.
///
/// # Errors
/// When the path does not show it.
pub fn verify_inclusion(index: u64, size: u64, leaf: &Hash, path: &[Hash], root: &Hash) -> Result<(), NotProved> {
    if root_of_inclusion(index, size, leaf, path)? == *root { Ok(()) } else { Err(NotProved) }
}

/// Checks that the tree of `old` leaves is the beginning of that of `new` (RFC 9162 §2.1.4.2). Every tree begins with the empty one.
///
/// # Errors
/// When the path does not show it, or `old` is more than `new`.
pub fn verify_consistency(old: u64, new: u64, path: &[Hash], old_root: &Hash, new_root: &Hash) -> Result<(), NotProved> {
    let equal = |one: &Hash, other: &Hash| if one == other { Ok(()) } else { Err(NotProved) };
    if old > new {
        return Err(NotProved);
    }
    if old == new {
        return if path.is_empty() { equal(old_root, new_root) } else { Err(NotProved) };
    }
    if old == 0 {
        return if path.is_empty() { equal(old_root, &empty()) } else { Err(NotProved) };
    }
    let (mut at, mut last) = (old - 1, new - 1);
    while at & 1 == 1 {
        (at, last) = (at >> 1, last >> 1);
    }
    // Where the old tree is a perfect one, its root begins the path and is left out of it.
    let mut path = path.iter();
    let first = if at == 0 { old_root } else { path.next().ok_or(NotProved)? };
    let (mut of_old, mut of_new) = (*first, *first);
    for sibling in path {
        if last == 0 {
            return Err(NotProved);
        }
        if at & 1 == 1 || at == last {
            (of_old, of_new) = (node(sibling, &of_old), node(sibling, &of_new));
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            of_new = node(&of_new, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    if last != 0 {
        return Err(NotProved);
    }
    equal(&of_old, old_root).and_then(|()| equal(&of_new, new_root))
}

#[cfg(test)]
#[path = "merkle/tests.rs"]
pub(crate) mod tests;
