use std::collections::BTreeSet;

use uuid::Uuid;

use super::*;
use crate::tlog::merkle;
use crate::tlog::merkle::{inclusion, verify_inclusion};

/// One millisecond for each hundred, so that a time is many entries' and a bundle has several.
fn id(number: u64) -> Uuid {
    Uuid::from_u128(u128::from(1_800_000_000_000 + number / 100) << 80 | 7 << 76 | 2 << 62 | u128::from(number))
}

fn entry(number: u64) -> Arc<[u8]> {
    format!("urn:portcullis:r:{} entry {number}", id(number)).into_bytes().into()
}

fn entries(from: u64, to: u64) -> Vec<Arc<[u8]>> {
    (from..to).map(entry).collect()
}

/// Every file below `tile`, as paths of the specification.
fn files(directory: &Path) -> BTreeSet<String> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![directory.join("tile")]);
    while let Some(folder) = folders.pop() {
        for file in fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found
}

fn named(size: u64) -> BTreeSet<String> {
    Tile::added(0, size).map(|tile| tile.to_string()).collect()
}

/// The root that the entries have by the definition.
fn root(size: u64) -> Hash {
    let mut edge = Edge::default();
    (0..size).for_each(|number| edge.push(&entry(number), |_, _, _| {}));
    edge.root()
}

#[test]
fn whatever_the_steps_the_files_are_those_of_the_size() {
    for steps in [&[1, 1, 1][..], &[255, 1, 1], &[256], &[257, 255, 600], &[1_000, 3], &[65_535, 1, 1], &[70_000]] {
        let folder = tempfile::tempdir().unwrap();
        let mut tree = Tree::open(folder.path(), 0, &[]).unwrap();
        for step in steps {
            let from = tree.size();
            tree.add(&entries(from, from + step)).unwrap();
            tree.sweep().unwrap();
            assert_eq!(files(folder.path()), named(tree.size()), "{steps:?}");
        }
        let size = tree.size();
        assert_eq!(tree.root(), root(size));
        assert_eq!(tree.files().root(size, size).unwrap(), root(size));
        assert_eq!(tree.files().root(size / 2, size).unwrap(), root(size / 2), "the root of an older tree");
        for index in [0, size / 3, size - 1] {
            assert_eq!(tree.files().entry(index, size).unwrap()[..], *entry(index));
            let path = inclusion(index, size, &mut tree.files().subtrees(size, size)).unwrap();
            verify_inclusion(index, size, &merkle::leaf(&entry(index)), &path, &tree.root()).unwrap();
        }
        assert!(tree.files().entry(size, size).is_err());
    }
}

#[test]
fn a_tree_goes_on_from_any_entry_that_the_write_ahead_file_begins_with() {
    let folder = tempfile::tempdir().unwrap();
    let mut tree = Tree::open(folder.path(), 0, &[]).unwrap();
    tree.add(&entries(0, 66_000)).unwrap();
    tree.sweep().unwrap();
    drop(tree);
    for first in [0, 1, 255, 256, 257, 65_535, 65_536, 65_600, 65_791] {
        let tree = Tree::open(folder.path(), first, &entries(first, 66_000)).unwrap();
        assert_eq!((tree.size(), tree.root()), (66_000, root(66_000)), "from {first}");
        assert_eq!(files(folder.path()), named(66_000));
    }
    // What a crash may leave: tiles that are torn or empty, partial ones that are superseded or ahead.
    for (name, bytes) in [("tile/0/257", &b""[..]), ("tile/0/257.p/3", b"x"), ("tile/entries/257", b"torn"), ("tile/1/001.p/1", b"y")] {
        fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let mut tree = Tree::open(folder.path(), 65_600, &entries(65_600, 66_500)).unwrap();
    tree.sweep().unwrap();
    assert_eq!((tree.size(), tree.root()), (66_500, root(66_500)));
    assert_eq!(files(folder.path()), named(66_500));
}

#[test]
fn what_an_older_checkpoint_covers_is_there_until_a_newer_one_is_published() {
    let folder = tempfile::tempdir().unwrap();
    Tree::open(folder.path(), 0, &entries(0, 1_152)).unwrap();
    // A start finds that the write-ahead file has more than the last checkpoint covers, and may be killed before it makes another.
    let mut tree = Tree::open(folder.path(), 0, &entries(0, 1_300)).unwrap();
    assert!(named(1_152).is_subset(&files(folder.path())));
    tree.sweep().unwrap();
    assert_eq!(files(folder.path()), named(1_300));
}

#[test]
fn a_tile_from_before_the_write_ahead_file_is_missed() {
    let folder = tempfile::tempdir().unwrap();
    Tree::open(folder.path(), 0, &entries(0, 1_000)).unwrap();
    fs::remove_file(folder.path().join("tile/0/001")).unwrap();
    assert!(matches!(Tree::open(folder.path(), 600, &entries(600, 1_000)), Err(TreeError::Missing(path)) if path.ends_with("tile/0/001")));
    // As long as the write-ahead file has its entries, it is made again.
    assert!(Tree::open(folder.path(), 256, &entries(256, 1_000)).is_ok());
    fs::write(folder.path().join("tile/entries/002"), b"").unwrap();
    assert!(matches!(Tree::open(folder.path(), 600, &entries(600, 1_000)), Err(TreeError::Missing(_))));
    assert!(Tree::open(folder.path(), 512, &entries(512, 1_000)).is_ok());
    let mut other = entries(600, 1_000);
    other[0] = entry(7);
    assert!(matches!(Tree::open(folder.path(), 600, &other), Err(TreeError::Differs(_))));
}

#[test]
fn what_could_not_be_written_changes_nothing_and_may_be_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut tree = Tree::open(folder.path(), 0, &entries(0, 300)).unwrap();
    let before = tree.root();
    // A folder in the place of a file cannot be replaced.
    fs::create_dir_all(folder.path().join("tile/0/001/x")).unwrap();
    assert!(tree.add(&entries(300, 600)).is_err());
    assert_eq!((tree.size(), tree.root()), (300, before));
    assert!(!folder.path().join(NEW).exists());
    fs::remove_dir_all(folder.path().join("tile/0/001")).unwrap();
    tree.add(&entries(300, 600)).unwrap();
    tree.sweep().unwrap();
    assert_eq!(tree.root(), root(600));
    assert_eq!(files(folder.path()), named(600));
}

#[test]
fn a_grown_tile_still_gives_what_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let tree = Tree::open(folder.path(), 0, &entries(0, 300)).unwrap();
    let narrow = |level| Tile { level, number: 1, width: 10 };
    for level in [None, Some(0)] {
        let was = tree.files().read_grown(narrow(level), 300).unwrap();
        let mut edge = Vec::new();
        for number in 256..266 {
            match level {
                None => tile::bundle(&mut edge, &entry(number)),
                Some(_) => edge.extend(merkle::leaf(&entry(number))),
            }
        }
        assert_eq!(was, edge);
        assert!(tree.files().read_grown(Tile { width: 45, ..narrow(level) }, 300).is_err(), "wider than it is");
    }
}

#[test]
fn every_id_is_found_where_it_is_and_again_after_the_file_was_lost() {
    let folder = tempfile::tempdir().unwrap();
    let mut tree = Tree::open(folder.path(), 0, &entries(0, 100)).unwrap();
    tree.add(&entries(100, 1_500)).unwrap();
    let found = |tree: &Tree| (0..1_500).all(|number| tree.ids().find(id(number)).unwrap() == [number]);
    assert!(found(&tree));
    assert_eq!(tree.ids().find(id(1_500)).unwrap(), [0_u64; 0]);
    drop(tree);
    let path = folder.path().join(IDS);
    for length in [1_500 * 16, 600 * 16 + 5, 0] {
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
        assert!(found(&Tree::open(folder.path(), 1_000, &entries(1_000, 1_500)).unwrap()), "{length} bytes");
    }
    fs::remove_file(&path).unwrap();
    assert!(found(&Tree::open(folder.path(), 1_000, &entries(1_000, 1_500)).unwrap()));
}

#[test]
fn full_tiles_settle_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut tree = Tree::open(folder.path(), 0, &entries(0, 700)).unwrap();
    let unsettled = tree.unsettled();
    assert_eq!((unsettled.0.len(), unsettled.leaves()), (4, 512));
    unsettled.settle(tree.files()).unwrap();
    assert_eq!(tree.unsettled().leaves(), 0);
    fs::remove_file(folder.path().join("tile/0/001")).unwrap();
    assert!(unsettled.settle(tree.files()).is_err());
}
