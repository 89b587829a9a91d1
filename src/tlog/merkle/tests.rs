use std::convert::Infallible;

use ct_merkle::mem_backed_tree::MemoryBackedTree;
use ct_merkle::{ConsistencyProof, InclusionProof, RootHash};
use proptest::prelude::*;
use sha2::Sha256;

use super::*;

/// All leaves in memory; each subtree is hashed anew, straight from the definition in RFC 6962 §2.1.
pub(crate) struct Leaves(pub(crate) Vec<Hash>);

impl Subtrees for Leaves {
    type Error = Infallible;

    fn subtree(&mut self, height: u8, index: u64) -> Result<Hash, Infallible> {
        fn mth(leaves: &[Hash]) -> Hash {
            match leaves {
                [one] => *one,
                many => {
                    let (left, right) = many.split_at(many.len() / 2);
                    node(&mth(left), &mth(right))
                }
            }
        }
        let from = (index << height) as usize;
        Ok(mth(&self.0[from..from + (1 << height)]))
    }
}

pub(crate) fn leaves(count: u64) -> Leaves {
    Leaves((0..count).map(|number| leaf(&number.to_be_bytes())).collect())
}

fn theirs(count: u64) -> MemoryBackedTree<Sha256, [u8; 8]> {
    let mut tree = MemoryBackedTree::new();
    (0..count).for_each(|number| tree.push(number.to_be_bytes()));
    tree
}

fn their_root(count: u64, root: Hash) -> RootHash<Sha256> {
    RootHash::new(root.into(), count)
}

#[test]
fn the_examples_of_rfc_6962_have_their_roots() {
    // The vectors of the CT reference implementation, as RFC 6962's authors published them.
    let entries: [&[u8]; 8] = [
        &[],
        &[0x00],
        &[0x10],
        &[0x20, 0x21],
        &[0x30, 0x31],
        &[0x40, 0x41, 0x42, 0x43],
        &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
        &[0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f],
    ];
    let roots = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    let mut tree = Leaves(entries.iter().map(|entry| leaf(entry)).collect());
    for (size, expected) in roots.iter().enumerate() {
        let root = root(size as u64, &mut tree).unwrap();
        assert_eq!(&Digest(root).to_string(), expected, "size {size}");
    }
}

#[test]
fn every_root_and_proof_of_small_trees_is_ct_merkles_too() {
    let mut all = leaves(70);
    for size in 1..70 {
        let tree = theirs(size);
        let root_here = root(size, &mut all).unwrap();
        assert_eq!(tree.root().as_bytes()[..], root_here[..], "{size}");
        for index in 0..size {
            let path = inclusion(index, size, &mut all).unwrap();
            assert_eq!(tree.prove_inclusion(index as usize).as_bytes(), path.concat(), "{index} of {size}");
            verify_inclusion(index, size, &all.0[index as usize], &path, &root_here).unwrap();
        }
        for old in 1..size {
            let path = consistency(old, size, &mut all).unwrap();
            let old_root = root(old, &mut all).unwrap();
            verify_consistency(old, size, &path, &old_root, &root_here).unwrap();
            let proof = ConsistencyProof::<Sha256>::try_from_bytes(path.concat()).unwrap();
            their_root(size, root_here).verify_consistency(&their_root(old, old_root), &proof).unwrap();
        }
    }
}

#[test]
fn the_sizes_around_whole_tiles_prove_as_ct_merkle_does() {
    let mut all = leaves(70_000);
    for size in [255, 256, 257, 65_535, 65_536, 65_537, 70_000] {
        let root_here = root(size, &mut all).unwrap();
        for index in [0, 1, 253, 254, size / 2, size - 2, size - 1] {
            let path = inclusion(index, size, &mut all).unwrap();
            let proof = InclusionProof::<Sha256>::try_from_bytes(path.concat()).unwrap();
            their_root(size, root_here).verify_inclusion(&index.to_be_bytes(), index, &proof).unwrap();
            verify_inclusion(index, size, &all.0[index as usize], &path, &root_here).unwrap();
        }
        for old in [1, 2, 255, size / 2, size - 1] {
            let path = consistency(old, size, &mut all).unwrap();
            verify_consistency(old, size, &path, &root(old, &mut all).unwrap(), &root_here).unwrap();
        }
    }
}

#[test]
fn the_ends_of_what_a_proof_may_say() {
    let mut all = leaves(5);
    let (one, five) = (root(1, &mut all).unwrap(), root(5, &mut all).unwrap());
    assert_eq!(verify_consistency(5, 5, &[], &five, &five), Ok(()));
    assert_eq!(verify_consistency(0, 5, &[], &empty(), &five), Ok(()));
    assert_eq!(verify_consistency(0, 0, &[], &empty(), &empty()), Ok(()));
    assert_eq!(verify_consistency(0, 5, &[], &one, &five), Err(NotProved));
    assert_eq!(verify_consistency(0, 5, &[one], &empty(), &five), Err(NotProved));
    assert_eq!(verify_consistency(5, 5, &[one], &five, &five), Err(NotProved));
    assert_eq!(verify_consistency(5, 1, &[], &five, &one), Err(NotProved));
    assert_eq!(verify_inclusion(0, 0, &one, &[], &one), Err(NotProved));
    assert_eq!(verify_inclusion(0, 1, &one, &[], &one), Ok(()));
    assert_eq!(verify_inclusion(u64::MAX - 1, u64::MAX, &one, &[], &one), Err(NotProved));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Another leaf, index, size, root, or path, and nothing is proved.
    #[test]
    fn a_proof_proves_one_thing(size in 1_u64..300, index: u64, bit in 0_usize..256, at: usize) {
        let mut all = leaves(size);
        let index = index % size;
        let root_here = root(size, &mut all).unwrap();
        let (leaf, path) = (all.0[index as usize], inclusion(index, size, &mut all).unwrap());
        let flip = |hash: &Hash| {
            let mut other = *hash;
            other[bit / 8] ^= 1 << (bit % 8);
            other
        };
        prop_assert!(verify_inclusion(index, size, &flip(&leaf), &path, &root_here).is_err());
        prop_assert!(verify_inclusion(index, size, &leaf, &path, &flip(&root_here)).is_err());
        for other in (0..size).filter(|other| *other != index) {
            prop_assert!(verify_inclusion(other, size, &leaf, &path, &root_here).is_err());
        }
        if !path.is_empty() {
            let at = at % path.len();
            let mut bad = path.clone();
            bad[at] = flip(&bad[at]);
            prop_assert!(verify_inclusion(index, size, &leaf, &bad, &root_here).is_err());
            bad = path.clone();
            bad.remove(at);
            prop_assert!(verify_inclusion(index, size, &leaf, &bad, &root_here).is_err());
        }
        let mut long = path.clone();
        long.push(root_here);
        prop_assert!(verify_inclusion(index, size, &leaf, &long, &root_here).is_err());
    }

    #[test]
    fn a_changed_past_is_not_consistent(new in 2_u64..300, old: u64, bit in 0_usize..256, at: usize) {
        let mut all = leaves(new);
        let old = 1 + old % (new - 1);
        let (old_root, new_root) = (root(old, &mut all).unwrap(), root(new, &mut all).unwrap());
        let path = consistency(old, new, &mut all).unwrap();
        let flip = |hash: &Hash| {
            let mut other = *hash;
            other[bit / 8] ^= 1 << (bit % 8);
            other
        };
        prop_assert!(verify_consistency(old, new, &path, &flip(&old_root), &new_root).is_err());
        prop_assert!(verify_consistency(old, new, &path, &old_root, &flip(&new_root)).is_err());
        let at = at % path.len();
        let mut bad = path.clone();
        bad[at] = flip(&bad[at]);
        prop_assert!(verify_consistency(old, new, &bad, &old_root, &new_root).is_err());
        bad = path.clone();
        bad.remove(at);
        prop_assert!(verify_consistency(old, new, &bad, &old_root, &new_root).is_err());
        bad = path.clone();
        bad.push(old_root);
        prop_assert!(verify_consistency(old, new, &bad, &old_root, &new_root).is_err());
        // The past of another log of the same length.
        let mut other = leaves(new);
        other.0[(old - 1) as usize] = leaf(b"another");
        prop_assert!(verify_consistency(old, new, &path, &root(old, &mut other).unwrap(), &new_root).is_err());
    }
}
