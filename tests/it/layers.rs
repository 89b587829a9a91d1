//! The house keeps its order: a folder of `src` uses only folders before it, and the leaves.

use std::fs;
use std::path::{Path, PathBuf};

const STOPS: [&str; 9] = ["accept", "authenticate", "authorize", "budget", "check", "detect", "infer", "prove", "record"];
/// In the order in which they may use one another.
const LEAVES: [&str; 11] = ["clock", "digest", "event", "lines", "mistake", "outbound", "secret", "tlog", "trail", "unit", "wire"];
/// The one file that may relax the lint on `unsafe`.
const MAY_BE_UNSAFE: &str = "infer/model/isolate.rs";

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// The parts of the crate that a text names: `crate::x`, and each of `crate::{x, y::z}`.
fn used(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &text[at + "crate::".len()..];
        let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 1;
            let mut item = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 1 => {
                        parts.push(name(item.trim()));
                        item.clear();
                        continue;
                    }
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
                item.push(c);
            }
            parts.push(name(item.trim()));
        } else {
            parts.push(name(rest));
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

#[test]
fn the_reader_of_use_lines_reads_them() {
    assert_eq!(used("use crate::wire;"), ["wire"]);
    assert_eq!(used("use crate::{accept, wire::{Body, json}, trail::Trail};"), ["accept", "wire", "trail"]);
    assert_eq!(used("let x = crate::infer::answer();"), ["infer"]);
    assert!(used("use mycrate::wire;").is_empty());
}

#[test]
fn a_folder_uses_only_folders_before_it_and_the_leaves() {
    let mut wrong = Vec::new();
    for (place, stop) in STOPS.iter().enumerate() {
        let mut files = Vec::new();
        sources(&src().join(stop), &mut files);
        assert!(!files.is_empty(), "{stop} is a stop without a file");
        for file in files {
            for part in used(&fs::read_to_string(&file).unwrap()) {
                let before = STOPS[..=place].contains(&part.as_str());
                if !before && !LEAVES.contains(&part.as_str()) {
                    wrong.push(format!("{} uses {part}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_leaf_uses_only_leaves_before_it() {
    let mut wrong = Vec::new();
    for (place, leaf) in LEAVES.iter().enumerate() {
        let mut files = Vec::new();
        let (file, dir) = (src().join(leaf).with_extension("rs"), src().join(leaf));
        files.extend(file.exists().then_some(file));
        if dir.exists() {
            sources(&dir, &mut files);
        }
        assert!(!files.is_empty(), "{leaf} is a leaf without a file");
        for file in files {
            for part in used(&fs::read_to_string(&file).unwrap()) {
                if !LEAVES[..=place].contains(&part.as_str()) {
                    wrong.push(format!("{} uses {part}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_folder_is_a_stop_or_belongs_to_a_file_beside_it() {
    for entry in fs::read_dir(src()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() && !STOPS.contains(&name.as_str()) {
            let leaf = LEAVES.contains(&name.as_str());
            assert!(leaf || path.with_extension("rs").exists(), "{name} is a folder, and no stop");
        }
    }
}

#[test]
fn unsafe_stands_in_one_file_at_most() {
    let mut files = Vec::new();
    sources(&src(), &mut files);
    // Written so that this line does not find itself, were it ever moved into `src`.
    let words = [
        concat!("unsafe", " {"),
        concat!("unsafe", " fn"),
        concat!("unsafe", " impl"),
        concat!("unsafe", " extern"),
        concat!("allow(", "unsafe_code"),
        concat!("expect(", "unsafe_code"),
    ];
    for file in files {
        if file.ends_with(MAY_BE_UNSAFE) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        for word in words {
            assert!(!text.contains(word), "{} has `{word}`", file.display());
        }
    }
}

#[test]
fn where_unsafe_stands_each_use_says_why_it_is_sound() {
    let text = fs::read_to_string(src().join(MAY_BE_UNSAFE)).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let uses = lines.iter().enumerate().filter(|(_, line)| line.contains("unsafe {") || line.contains("unsafe impl"));
    let mut count = 0;
    for (at, line) in uses {
        let told = lines[at.saturating_sub(5)..at].iter().any(|before| before.trim_start().starts_with("// SAFETY: "));
        assert!(told, "line {} has no SAFETY note: {line}", at + 1);
        count += 1;
    }
    assert!(count > 0, "{MAY_BE_UNSAFE} needs no exception any more");
}
