//! The house keeps its order: a folder of `src` uses only folders before it, and the leaves.

use std::fs;
use std::path::{Path, PathBuf};

const STOPS: [&str; 9] = ["accept", "authenticate", "authorize", "budget", "check", "detect", "infer", "prove", "record"];
/// In the order in which they may use one another.
const LEAVES: [&str; 16] = [
    "clock", "digest", "event", "heavy", "lines", "mistake", "mode", "outbound", "say", "secret", "tlog", "trail", "unit", "verify",
    "whole", "wire",
];
/// The leaves that a verifier is built of: nothing in them may lead to the server.
const VERIFIER: [&str; 3] = ["digest", "tlog", "verify"];
/// The other crates that they may name.
const OF_OTHERS: [&str; 8] = ["aws_lc_rs", "base64", "ciborium", "crc32c", "memchr", "serde", "serde_json", "uuid"];
/// What they may name of the standard library: no sockets, processes, threads, environment and clocks, and nothing of one system alone.
const OF_STD: [&str; 14] =
    ["array", "cmp", "collections", "convert", "error", "fmt", "fs", "io", "iter", "mem", "ops", "path", "str", "sync"];
/// And of `std::time`, which is not to tell the time.
const OF_TIME: [&str; 3] = ["Duration", "SystemTime", "UNIX_EPOCH"];
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

/// The paths in a text, as their segments: `x::y::z`, and `x` of `use x`. The words that it names its own.
fn paths(text: &str) -> (Vec<Vec<&str>>, Vec<&str>) {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let word = |text: &str| text.find(|c| !is_word(c)).unwrap_or(text.len());
    let (mut paths, mut own) = (Vec::new(), Vec::new());
    for (at, _) in text.match_indices("::") {
        let begin = text[..at].rfind(|c| !is_word(c)).map_or(0, |before| before + text[before..].chars().next().map_or(1, char::len_utf8));
        if begin == at || text[..begin].ends_with("::") {
            continue;
        }
        let (mut path, mut rest) = (vec![&text[begin..at]], &text[at..]);
        while let Some(more) = rest.strip_prefix("::") {
            let (segment, after) = more.split_at(word(more));
            path.extend((!segment.is_empty()).then_some(segment));
            rest = after;
        }
        match rest.strip_prefix('{') {
            // Of a group each item; what stands in groups within it is as good as the item before them.
            Some(group) => {
                let items = group.split('}').next().unwrap_or_default().split(',').map(str::trim_start);
                paths.extend(items.filter(|item| !item.is_empty()).map(|item| [&path[..], &[&item[..word(item)]]].concat()));
            }
            // A method and its types: `.collect::<x>()`.
            None if path.len() == 1 => {}
            None => paths.push(path),
        }
    }
    for statement in text.split(';').map(str::trim_start) {
        let last = statement.rsplit_once('\n').map_or(statement, |(_, line)| line.trim_start());
        let after = |key: &str| {
            statement.split_once(key).filter(|(before, _)| before.is_empty() || before.ends_with([' ', '\n'])).map(|(_, rest)| rest)
        };
        if let Some(used) = after("use ") {
            let head = &used[..word(used)];
            if !used[head.len()..].starts_with("::") {
                paths.push(vec![head]);
            }
            own.extend(used[head.len()..].split(|c| !is_word(c)).filter(|word| !word.is_empty()));
        }
        if let Some(module) = last.rsplit_once("mod ").map(|(_, module)| module) {
            own.push(&module[..word(module)]);
        }
    }
    (paths, own)
}

/// The text of a file but for comments and the tests at its foot.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).flat_map(|line| [line, "\n"]).collect()
}

/// What a file of the verifier, so many folders below the crate's root, names and may not.
fn strange(text: &str, depth: usize) -> Vec<String> {
    const OF_THE_LANGUAGE: [&str; 10] = ["self", "str", "u8", "u16", "u32", "u64", "u128", "i64", "i128", "usize"];
    let text = code(text);
    let (paths, own) = paths(&text);
    let may = |path: &Vec<&str>| match path[..] {
        ["crate", part, ..] => VERIFIER.contains(&part),
        ["std", "time", item, ..] => OF_TIME.contains(&item) && path.last() != Some(&"now"),
        ["std" | "core", part, ..] => OF_STD.contains(&part),
        ["super", ..] => path.iter().take_while(|segment| **segment == "super").count() <= depth,
        [head, ..] if OF_OTHERS.contains(&head) || OF_THE_LANGUAGE.contains(&head) => true,
        // A type; where it was imported from was looked at.
        [head, ..] if head.starts_with(char::is_uppercase) => path.last() != Some(&"now"),
        // A module that was imported, or lies beside it. No crate may be named like one.
        [head, _, ..] => own.contains(&head),
        _ => false,
    };
    paths.into_iter().filter(|path| !may(path)).map(|path| path.join("::")).collect()
}

#[test]
fn the_reader_of_paths_tells_what_a_verifier_may_not_name() {
    let fine = "//! [`tokio::sync`]\nuse std::fmt;\nuse std::io::{self, Read};\nuse crate::tlog::tile;\nuse super::cbor::Writer;\nmod trust;\n\
                fn x(f: &mut fmt::Formatter<'_>) -> io::Result<Vec<u8>> { tile::y(); trust::Trust::new(); u32::from(1); vec.iter().sum::<u64>() }\n\
                pub(crate) use serde_json::{Value as Json, json};\n#[cfg(test)]\nmod tests {\n    use tempfile::x;\n}";
    assert_eq!(strange(fine, 1), [""; 0]);
    for (bad, path) in [
        ("use tokio::sync::watch;", "tokio::sync::watch"),
        ("use http;", "http"),
        ("use hyper as h;", "hyper"),
        ("pub(crate) use crate::prove::Key;", "crate::prove::Key"),
        ("fn x() {\n    crate::config::read();\n}", "crate::config::read"),
        ("use super::super::prove;", "super::super::prove"),
        ("fn x() -> cedar_policy::Decision {}", "cedar_policy::Decision"),
        ("use std::net::TcpStream;", "std::net::TcpStream"),
        ("use std::os::unix::fs::FileExt;", "std::os::unix::fs::FileExt"),
        ("use std::time::Instant;", "std::time::Instant"),
        ("use std::{fs, net};", "std::net"),
        ("use std::time::{Duration, Instant};", "std::time::Instant"),
        ("use std::time::SystemTime;\nfn x() {\n    SystemTime::now();\n}", "SystemTime::now"),
        ("use std::fmt;\nfn x() {\n    tokio::spawn(y);\n}", "tokio::spawn"),
    ] {
        assert_eq!(strange(bad, 1), [path], "{bad}");
    }
}

#[test]
fn the_verifier_knows_nothing_of_the_server() {
    let (mut wrong, mut read) = (Vec::new(), 0);
    for part in VERIFIER {
        let (mut files, file, dir) = (Vec::new(), src().join(part).with_extension("rs"), src().join(part));
        files.extend(file.exists().then_some(file));
        if dir.exists() {
            sources(&dir, &mut files);
        }
        // Tests may hold other crates against it.
        for file in files.iter().filter(|file| !file.ends_with("tests.rs") && !file.ends_with("trial.rs")) {
            let below = file.strip_prefix(src()).unwrap().with_extension("");
            let depth = below.components().filter(|part| part.as_os_str() != "mod").count() - 1;
            wrong.extend(strange(&fs::read_to_string(file).unwrap(), depth).iter().map(|path| format!("{}: {path}", file.display())));
            read += 1;
        }
    }
    assert!(read > 20, "{read} files");
    assert!(wrong.is_empty(), "{wrong:#?}");
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
