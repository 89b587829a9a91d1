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

/// What stands in `text` between quotation marks and passes.
fn literals(text: &str, passes: impl Fn(&str) -> bool) -> Vec<String> {
    text.split('"').filter(|literal| passes(literal)).map(str::to_owned).collect()
}

#[test]
fn every_metric_and_event_stands_on_the_page_for_those_who_watch_and_nothing_else_does() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let page = read("docs/observability.md");
    let told: Vec<&str> = page.split(|c: char| !(c.is_ascii_alphanumeric() || "_.".contains(c))).collect();
    // What `_total`, a unit or `_info` is added to.
    let stem = |name: &str| {
        let name = name.strip_suffix("_total").or(name.strip_suffix("_info")).unwrap_or(name).to_owned();
        ["_duration", "_time_to_first_chunk"]
            .iter()
            .find_map(|of| name.strip_suffix("_seconds").filter(|name| name.ends_with(of)))
            .map_or(name.clone(), str::to_owned)
    };
    let name = |literal: &str| {
        let plain = literal.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        plain && ["portcullis_", "http_server_", "gen_ai_"].iter().any(|begins| literal.starts_with(begins))
    };
    let metrics: Vec<String> = ["src/record/names.rs", "src/serve/figures.rs", "src/serve/watched.rs", "src/serve/needs.rs"]
        .iter()
        .flat_map(|path| literals(&read(path), name))
        .map(|literal| stem(&literal))
        .collect();
    assert!(metrics.len() > 50, "{metrics:?}");
    for metric in &metrics {
        assert!(told.iter().any(|told| stem(told) == *metric), "docs/observability.md lacks {metric}");
    }
    for told in told.iter().filter(|told| name(told)) {
        assert!(metrics.contains(&stem(told)), "docs/observability.md names {told}, which nobody counts");
    }
    let event = |literal: &str| {
        literal
            .split_once('.')
            .is_some_and(|(of, what)| [of, what].iter().all(|part| part.bytes().all(|byte| byte.is_ascii_lowercase()) && !part.is_empty()))
    };
    let source = read("src/event.rs");
    let events: Vec<String> = source.lines().filter(|line| line.contains("=> \"")).flat_map(|line| literals(line, event)).collect();
    assert!(events.len() > 12, "{events:?}");
    for event in events {
        assert!(page.contains(&format!("`{event}`")), "docs/observability.md lacks the event {event}");
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
