use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::tlog::merkle::tests::leaves;
use crate::tlog::merkle::{consistency, inclusion, root, verify_consistency, verify_inclusion};

fn tile(level: u8, number: u64, width: u16) -> Tile {
    Tile { level: Some(level), number, width }
}

#[test]
fn paths_are_those_of_the_specification() {
    for (written, read) in [
        ("tile/0/000", tile(0, 0, 256)),
        ("tile/2/000.p/1", tile(2, 0, 1)),
        ("tile/0/273.p/112", tile(0, 273, 112)),
        ("tile/entries/x001/x234/067", Tile { level: None, number: 1_234_067, width: 256 }),
        ("tile/1/x999/999.p/255", tile(1, 999_999, 255)),
        ("tile/0/x001/000", tile(0, 1_000, 256)),
    ] {
        assert_eq!(Tile::parse(written), Some(read));
        assert_eq!(read.to_string(), written);
    }
    for bad in [
        "tile/0/0",
        "tile/0/0000",
        "tile/00/000",
        "tile/8/000",
        "tile/-1/000",
        "tile/0/x000/001",
        "tile/0/000/001",
        "tile/0/001.p/0",
        "tile/0/001.p/256",
        "tile/0/001.p/01",
        "tile/0/001.p/",
        "tile/0/+01",
        "tile/0/../001",
        "tile/entries/",
        "tile//000",
        "tile/0/x001",
        "tile/0/000 ",
        "/tile/0/000",
        "",
        "tile/0/x999/x999/x999/x999/x999/x999/x999/999",
    ] {
        assert_eq!(Tile::parse(bad), None, "{bad}");
    }
}

#[test]
fn a_path_names_a_tile_only_where_its_leaves_can_be_counted() {
    for (last, past) in [("tile/7/000.p/255", "tile/7/000"), ("tile/6/255.p/255", "tile/6/255"), ("tile/6/254", "tile/6/256")] {
        let last = Tile::parse(last).unwrap();
        assert!(last.leaves().start < last.leaves().end, "{last}");
        assert_eq!(Tile::parse(past), None, "{past}");
    }
}

#[test]
fn a_tree_of_70_000_has_the_tiles_that_the_specification_names() {
    let all: Vec<Tile> = Tile::added(0, 70_000).collect();
    let of = |level| all.iter().filter(move |tile| tile.level == level);
    assert_eq!(of(Some(0)).filter(|tile| tile.is_full()).count(), 273);
    assert_eq!(of(Some(0)).next_back(), Some(&tile(0, 273, 112)));
    assert_eq!(of(Some(1)).copied().collect::<Vec<_>>(), [tile(1, 0, 256), tile(1, 1, 17)]);
    assert_eq!(of(Some(2)).copied().collect::<Vec<_>>(), [tile(2, 0, 1)]);
    assert_eq!(of(Some(3)).count(), 0);
    assert_eq!(of(None).count(), 274);
    let of_256: Vec<String> = Tile::added(255, 256).map(|tile| tile.to_string()).collect();
    assert_eq!(of_256, ["tile/entries/000", "tile/0/000", "tile/1/000.p/1"]);
    assert_eq!(Tile::added(256, 256).count(), 0);
}

#[test]
fn a_bundle_reads_as_it_was_written() {
    let long = vec![7; MAX_ENTRY];
    let mut bytes = Vec::new();
    for entry in [&b"one"[..], b"", &long] {
        bundle(&mut bytes, entry);
    }
    assert_eq!(entries(&bytes), Some(vec![&b"one"[..], b"", &long]));
    assert_eq!(entries(&[]), Some(vec![]));
    for cut in [1, 4, bytes.len() - 1] {
        assert_eq!(entries(&bytes[..cut]), None, "{cut}");
    }
    assert_eq!(hashes(&[0; 64]).map(|hashes| hashes.len()), Some(2));
    assert_eq!(hashes(&[0; 63]), None);
}

/// The edge and the tiles that it gave, as the files of a log would hold them.
fn grown(size: u64) -> (Edge, BTreeMap<Tile, Vec<Hash>>) {
    let (mut edge, mut files) = (Edge::default(), BTreeMap::new());
    for number in 0..size {
        edge.push(&number.to_be_bytes(), |level, number, hashes| {
            files.insert(tile(level, number, 256), hashes.to_vec());
        });
    }
    for tile in Tile::added(0, size).filter(|tile| !tile.is_full()) {
        if let Some(level) = tile.level {
            files.insert(tile, edge.partial(level).to_vec());
        }
    }
    (edge, files)
}

#[test]
fn the_edge_and_the_tiles_have_the_root_at_every_boundary() {
    let mut all = leaves(66_000);
    for size in [0, 1, 2, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, 66_000] {
        let (edge, files) = grown(size);
        assert_eq!(edge.root(), root(size, &mut all).unwrap(), "{size}");
        let mut named: Vec<Tile> = Tile::added(0, size).filter(|tile| tile.level.is_some()).collect();
        named.sort_unstable();
        assert_eq!(files.keys().copied().collect::<Vec<_>>(), named, "{size}");
        let read = |tile: Tile| files.get(&tile).cloned().ok_or(tile);
        assert_eq!(root(size, &mut Tiles::new(size, read)), Ok(edge.root()), "{size}");
        // From its last tiles alone the edge goes on as if it had never stopped.
        let again = Edge::of(size, read).unwrap();
        assert_eq!((again.size(), again.root()), (size, edge.root()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn proofs_from_tiles_hold_and_read_few_of_them(size in 1_u64..3_000, index: u64, old: u64) {
        let (edge, files) = grown(size);
        let (index, old) = (index % size, 1 + old % size);
        let read = |tile: Tile| files.get(&tile).cloned().ok_or(tile);
        let mut count = 0;
        let counted = |tile: Tile| {
            count += 1;
            read(tile)
        };
        let path = inclusion(index, size, &mut Tiles::new(size, counted)).unwrap();
        verify_inclusion(index, size, &leaf(&index.to_be_bytes()), &path, &edge.root()).unwrap();
        prop_assert!(count <= 4, "{count} tiles");
        let path = consistency(old, size, &mut Tiles::new(size, read)).unwrap();
        verify_consistency(old, size, &path, &grown(old).0.root(), &edge.root()).unwrap();
    }
}
