//! Reading the folder: each file once, with what is wrong in it and a digest of all.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::Told;
use crate::digest::{Digest, Hasher};
use crate::mistake::{Mistake, keys};

/// The files of one folder, read once each, with what was found wrong in them.
pub(super) struct Reading<'a> {
    pub(super) dir: &'a Path,
    pub(super) told: Told,
    /// Files that are not here, where that is no mistake.
    pub(super) missing: Told,
    /// What is allowed and may be an oversight.
    pub(super) warnings: Told,
    /// Whether files that are not here are no mistakes: nothing is to be started.
    pub(super) checks: bool,
    pub(super) digest: BTreeMap<String, Digest>,
}

/// A policy file is text that people write; one that is longer is something else.
const MAX_FILE: u64 = 4 << 20;

impl<'a> Reading<'a> {
    pub(super) fn of(dir: &'a Path, checks: bool) -> Self {
        Self { dir, told: Vec::new(), missing: Vec::new(), warnings: Vec::new(), checks, digest: BTreeMap::new() }
    }

    /// The file's text, remembered for the digest of the whole.
    pub(super) fn text(&mut self, file: &str) -> Option<String> {
        let path = self.dir.join(file);
        let read = std::fs::metadata(&path).and_then(|meta| {
            if meta.len() > MAX_FILE {
                return Err(std::io::Error::other(format!("a policy file of {} bytes is too long: at most {MAX_FILE}", meta.len())));
            }
            std::fs::read_to_string(&path)
        });
        match read {
            Ok(text) => {
                self.digest.insert(file.to_owned(), Digest::of(text.as_bytes()));
                Some(text)
            }
            Err(error) => {
                self.told.push(format!("{}: {error}", path.display()));
                None
            }
        }
    }

    pub(super) fn toml<T: DeserializeOwned>(&mut self, file: &str) -> Option<T> {
        let text = self.text(file)?;
        self.parsed(file, &text)
    }

    /// What `text`, which was read from `file`, says.
    pub(super) fn parsed<T: DeserializeOwned>(&mut self, file: &str, text: &str) -> Option<T> {
        self.keep_with(file, text, keys::read(text))
    }

    /// What compiled; what did not is told with its place in `file`.
    pub(super) fn keep<T>(&mut self, file: &str, compiled: Result<T, Vec<Mistake>>) -> Option<T> {
        if compiled.is_ok() {
            return compiled.ok();
        }
        let text = std::fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        self.keep_with(file, &text, compiled)
    }

    pub(super) fn keep_with<T>(&mut self, file: &str, text: &str, compiled: Result<T, Vec<Mistake>>) -> Option<T> {
        let tell = |mistakes: Vec<Mistake>| {
            for mistake in mistakes {
                let line = mistake.located(&self.dir.join(file), text);
                if mistake.absent && self.checks { self.missing.push(line) } else { self.told.push(line) }
            }
        };
        compiled.map_err(tell).ok()
    }

    /// Tells what is allowed in `file` and may be an oversight.
    pub(super) fn warn(&mut self, file: &str, warnings: &[Mistake]) {
        if warnings.is_empty() {
            return;
        }
        let text = std::fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        self.warnings.extend(warnings.iter().map(|warning| warning.located(&self.dir.join(file), &text)));
    }

    /// Files of a folder of this folder, in the order of their names.
    pub(super) fn files(&mut self, folder: &str, ending: &str) -> Vec<String> {
        let path = self.dir.join(folder);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) => {
                // What is not there has no files; what cannot be read may have any.
                if error.kind() != std::io::ErrorKind::NotFound {
                    self.told.push(format!("{}: {error}", path.display()));
                }
                return Vec::new();
            }
        };
        let mut files: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.ends_with(ending) && !name.starts_with('.'))
            .map(|name| format!("{folder}/{name}"))
            .collect();
        files.sort();
        files
    }

    /// The digest of every file that was read: names and contents, in the order of the names.
    pub(super) fn finish(&mut self) -> Digest {
        for file in self.files("schemas", ".json") {
            self.text(&file);
        }
        let mut hasher = Hasher::new();
        hasher.update(b"portcullis/policy/v1");
        for (name, digest) in &self.digest {
            hasher.update(&(name.len() as u64).to_be_bytes());
            hasher.update(name.as_bytes());
            hasher.update(digest.as_bytes());
        }
        hasher.finish()
    }
}
