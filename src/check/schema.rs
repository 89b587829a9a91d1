//! JSON Schema: compiled once when the policy is read, held against every body.
//!
//! A schema is the operator's, the body is a stranger's. So patterns run on the engine whose time is linear in the body
//! (no look-around, no back-references), references reach no further than the folder of the schema, and only the first
//! broken rule is looked for, for as long as that is worth it (see [`place`]).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use jsonschema::error::ValidationErrorKind;
use jsonschema::{PatternOptions, Retrieve, Uri, ValidationError, Validator};
use serde_json::Value;

use crate::mistake::{self, Mistake};

/// The longest schema that is read, references included, in bytes.
pub const MOST_SCHEMA: usize = 1 << 20;

/// The largest compiled pattern, in bytes.
const MOST_PATTERN: usize = 1 << 20;

/// How much of the validator's words is told, in characters.
const MOST_TOLD: usize = 300;

/// The scheme under which the files of the folder refer to each other; it leads nowhere else.
const SCHEME: &str = "schemas";

mod line;
mod place;

pub use place::Place;

/// A compiled schema.
#[derive(Debug)]
pub struct Schema {
    validator: Validator,
    /// The same once more, for who looks for the place of what it refused.
    marked: Option<Validator>,
}

impl Schema {
    /// Reads and compiles the schema in `file`; it may refer to files of its own folder and below.
    ///
    /// # Errors
    /// A mistake in `file`, with the place in the schema where one is known.
    pub fn compile(file: &Path) -> Result<Self, Mistake> {
        let mistake = |what: String| Mistake::of_file(what).in_file(file);
        let path = file.canonicalize().map_err(|error| mistake(format!("the schema cannot be read: {error}")))?;
        let (Some(root), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
            return Err(mistake("the schema's name is not UTF-8".into()));
        };
        let build = |marked: bool| {
            let folder = Folder { root: root.to_owned(), left: AtomicUsize::new(MOST_SCHEMA), marked };
            let schema = folder.read(&path).map_err(|what| {
                let place = what.downcast_ref::<serde_json::Error>().map(|error| (error.line(), error.column()));
                mistake(what.to_string()).on_line(place)
            })?;
            let options = jsonschema::options()
                .with_base_uri(format!("{SCHEME}:///{name}"))
                .with_retriever(folder)
                .with_pattern_options(PatternOptions::regex().size_limit(MOST_PATTERN).dfa_size_limit(MOST_PATTERN));
            let options = if marked { place::with_marks(options) } else { options };
            options.build(&schema).map_err(|error| {
                let at = error.instance_path().as_str();
                let what: String = error.to_string().chars().take(MOST_TOLD).collect();
                let right = right(&error).map(|right| format!("; it may be {right}")).unwrap_or_default();
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                let place = line::position(&text, at).map(|offset| mistake::place(&text, offset));
                mistake(format!("the schema does not compile{}{at}: {what}{right}", if at.is_empty() { "" } else { " at " })).on_line(place)
            })
        };
        Ok(Self { validator: build(false)?, marked: build(true).ok() })
    }

    /// Holds `value` against the schema.
    ///
    /// # Errors
    /// The place in `value` and the keyword of the first rule that it breaks.
    pub fn validate(&self, value: &Value) -> Result<(), Place> {
        // Most bodies hold, and to say no more than that is quicker than to keep the place at hand.
        if self.validator.is_valid(value) {
            return Ok(());
        }
        Err(self.marked.as_ref().map_or_else(Place::unknown, |marked| place::find(marked, value)))
    }
}

/// The values that would be right, where there are some and the validator says which.
fn right(error: &ValidationError<'_>) -> Option<String> {
    match error.kind() {
        ValidationErrorKind::Enum { options } => {
            let options: Vec<String> = options.as_array()?.iter().map(Value::to_string).collect();
            Some(options.join(", "))
        }
        ValidationErrorKind::AnyOf { context } => context.iter().flatten().find_map(right),
        _ => None,
    }
}

/// The folder in which references may end.
struct Folder {
    root: PathBuf,
    /// How many more bytes may be read.
    left: AtomicUsize,
    /// Whether what is read gets the marks of who looks for a place.
    marked: bool,
}

impl Folder {
    fn read(&self, path: &Path) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        let left = self.left.load(Ordering::Relaxed);
        let mut bytes = Vec::new();
        File::open(path)?.take(left as u64 + 1).read_to_end(&mut bytes)?;
        let left = left.checked_sub(bytes.len()).ok_or("the schema and what it refers to are longer than 1 MiB")?;
        self.left.store(left, Ordering::Relaxed);
        let mut schema = serde_json::from_slice(&bytes)?;
        if self.marked {
            place::mark(&mut schema);
        }
        Ok(schema)
    }
}

impl Retrieve for Folder {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        let name = uri.path().as_str().trim_start_matches('/');
        if uri.scheme().as_str() != SCHEME || name.contains('%') || uri.query().is_some() {
            return Err("a reference may only lead to a file in the schema's own folder".into());
        }
        // Resolved, so that neither dots nor links lead out.
        let path = self.root.join(name).canonicalize()?;
        if !path.starts_with(&self.root) {
            return Err("a reference leads out of the schema's folder".into());
        }
        self.read(&path)
    }
}

#[cfg(test)]
mod tests;
