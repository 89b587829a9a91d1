//! The events of a stream as a tree (RFC 6962 §2.1, SHA-256), while their bytes pass: whoever holds the statement can check one event, or
//! how the stream began, without the rest of it.
//!
//! A leaf is `SHA-256(0x00 ‖ block)`, a node `SHA-256(0x01 ‖ left ‖ right)`. A block is the exact bytes of its lines, their ends, and the
//! blank line that ends it (WHATWG HTML §9.2.6: `\n`, `\r\n`, `\r`). So a block of comments is a leaf, a blank line too many is a leaf, and
//! what no blank line ended, where a stream was cut, is the last leaf. The tree of no events is `SHA-256("")`.
//!
//! The statement holds a commitment to the root, not the root: who may have its salt can check an event, and after an erasure nobody can.

use crate::digest::{Digest, Hasher};
use crate::tlog::merkle::{empty, node};
use crate::wire::sse::Ends;

/// The events so far.
pub(super) struct Events {
    ends: Ends,
    /// The block that has begun, if one has.
    block: Option<Hasher>,
    tree: Tree,
}

impl Events {
    pub(super) fn new() -> Self {
        Self { ends: Ends::new(), block: None, tree: Tree::default() }
    }

    /// More of the stream.
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let end = self.ends.next_end(bytes);
            let (of_block, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            self.block.get_or_insert_with(leaf).update(of_block);
            if end.is_some() {
                self.end_block();
            }
            bytes = rest;
        }
    }

    /// Whether the last block has ended, or none has begun.
    pub(super) fn between_blocks(&self) -> bool {
        self.block.is_none() || self.ends.ended_by_return()
    }

    /// How many blocks there were, and the root of their tree.
    pub(super) fn finish(mut self) -> (u64, Digest) {
        self.end_block();
        (self.tree.size, self.tree.root())
    }

    fn end_block(&mut self) {
        if let Some(block) = self.block.take() {
            self.tree.push(block.finish());
        }
    }
}

fn leaf() -> Hasher {
    let mut hasher = Hasher::new();
    hasher.update(&[0]);
    hasher
}

/// A tree that grows to the right.
#[derive(Default)]
struct Tree {
    size: u64,
    /// The roots of the full trees that it consists of, the largest first: one for each bit that is set in `size`, 64 at most.
    full: Vec<Digest>,
}

impl Tree {
    fn push(&mut self, leaf: Digest) {
        let mut root = leaf;
        for _ in 0..self.size.trailing_ones() {
            let Some(left) = self.full.pop() else { break };
            root = Digest(node(&left.0, &root.0));
        }
        self.full.push(root);
        self.size += 1;
    }

    fn root(&self) -> Digest {
        self.full.iter().rev().copied().reduce(|right, left| Digest(node(&left.0, &right.0))).unwrap_or_else(|| Digest(empty()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::sse::Splitter;

    fn events(pieces: &[&[u8]]) -> (u64, Digest) {
        let mut events = Events::new();
        pieces.iter().for_each(|piece| events.update(piece));
        events.finish()
    }

    /// RFC 6962 §2.1 as it is written.
    fn mth(leaves: &[Vec<u8>]) -> Digest {
        match leaves {
            [] => Digest::of(b""),
            [one] => Digest::of(&[&[0], &one[..]].concat()),
            more => {
                let k = more.len().next_power_of_two() / 2;
                Digest::of(&[&[1], &mth(&more[..k]).as_bytes()[..], &mth(&more[k..]).as_bytes()[..]].concat())
            }
        }
    }

    #[test]
    fn the_tree_has_the_roots_that_certificate_transparency_has() {
        // The inputs and roots of the reference implementation's own tests.
        let inputs = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut tree = Tree::default();
        assert_eq!(tree.root().to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        for (input, root) in inputs.into_iter().zip(roots) {
            let bytes: Vec<u8> = (0..input.len()).step_by(2).map(|at| u8::from_str_radix(&input[at..at + 2], 16).unwrap()).collect();
            let mut hasher = leaf();
            hasher.update(&bytes);
            tree.push(hasher.finish());
            assert_eq!(tree.root().to_string(), root);
        }
    }

    #[test]
    fn every_block_is_a_leaf_and_so_is_what_was_cut() {
        let stream = b"data: 1\n\n: ping\r\n\r\n\ndata: 2\r\rdata: 3\ndata: cu";
        let leaves = [&b"data: 1\n\n"[..], b": ping\r\n\r\n", b"\n", b"data: 2\r\r", b"data: 3\ndata: cu"].map(<[u8]>::to_vec);
        assert_eq!(events(&[stream]), (5, mth(&leaves)));
        assert_eq!(events(&[]), (0, Digest::of(b"")));
        assert_eq!(events(&[b"data: 2\r", b"\r", b"\ndata: 3\n\n"]).0, 2, "a line feed that comes late still belongs to the block before");
        assert_eq!(events(&[b"data: 2\r", b"\r"]), (1, mth(&[b"data: 2\r\r".to_vec()])));
    }

    #[test]
    fn a_tree_of_many_events_keeps_few_hashes() {
        let mut tree = Tree::default();
        for size in 1..=70_000_u64 {
            tree.push(Digest::of(&size.to_be_bytes()));
            assert_eq!(tree.full.len(), size.count_ones() as usize);
        }
    }

    proptest! {
        #[test]
        fn the_root_is_that_of_the_blocks_however_the_stream_was_cut(
            stream in "(\u{FEFF}|data: ?|event:|:|[a-zé]|\r|\n|\r\n|\n\n|\r\n\r\n){0,60}",
            cuts in proptest::collection::vec(0_usize..300, 0..12),
        ) {
            let stream = stream.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(stream.len())).chain([0, stream.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();

            let mut splitter = Splitter::default();
            splitter.push(stream);
            let mut leaves = Vec::new();
            while let Some(block) = splitter.next_block().unwrap() {
                leaves.push(block.into_raw().to_vec());
            }
            leaves.extend(splitter.finish().map(|block| block.into_raw().to_vec()));

            let expected = (leaves.len() as u64, mth(&leaves));
            prop_assert_eq!(events(&pieces), expected);
            prop_assert_eq!(events(&stream.chunks(1).collect::<Vec<_>>()), expected);
        }
    }
}
