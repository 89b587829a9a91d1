//! What the documentation names exists.

use std::fs;
use std::path::{Path, PathBuf};

fn texts(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            texts(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_test_and_file_that_the_hardening_page_names_exists() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    texts(&root.join("src"), &mut sources);
    texts(&root.join("tests"), &mut sources);
    let page = fs::read_to_string(root.join("docs/hardening.md")).unwrap();
    let mut named = 0;
    for row in page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")) {
        let last = row.trim_end_matches('|').rsplit('|').next().unwrap();
        for name in last.split('`').skip(1).step_by(2) {
            named += 1;
            let there = if name.contains('/') {
                root.join(name).exists()
            } else {
                sources.iter().any(|text| text.contains(&format!("fn {name}(")))
            };
            assert!(there, "docs/hardening.md names `{name}`, which does not exist");
        }
    }
    assert!(named > 25, "the page names tests");
}
