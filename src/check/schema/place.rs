//! Where a document breaks a schema.
//!
//! Whether it does is known without looking twice at one part of it: what a schema that refers to itself said of a part is remembered. Where it
//! does is not: below an `anyOf` or a `oneOf` every way of every part is gone again, and all that was wrong is kept, two to the power of the depth in a
//! schema of trees. So the search is metered by marks in the schema, and ends without a place where it would cost more than a few readings of the document.

use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use jsonschema::paths::Location;
use jsonschema::{Keyword, ValidationError, ValidationOptions, Validator};
use serde_json::{Map, Value};

/// The keyword that a marked schema has more.
const METER: &str = "portcullis:meter";

/// So many marks may be passed in any document, and so many more for each value in it.
const STEPS: usize = 4_096;
const STEPS_PER_VALUE: usize = 2;

/// By these a schema has others in it.
const APPLICATORS: [&str; 18] = [
    "$dynamicRef",
    "$recursiveRef",
    "$ref",
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "contains",
    "dependencies",
    "dependentSchemas",
    "else",
    "if",
    "items",
    "not",
    "oneOf",
    "patternProperties",
    "properties",
    "then",
];

/// What stands in these is no schema.
const DATA: [&str; 5] = ["const", "default", "dependentRequired", "enum", "examples"];

/// Where a document breaks a schema, and which of its keywords. Never a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pointer: String,
    rule: String,
}

/// The longest pointer that is told, in bytes: keys are the caller's own words.
const MOST_POINTER: usize = 200;

impl Place {
    fn new(pointer: &str, rule: &str) -> Self {
        let pointer = &pointer[..pointer.floor_char_boundary(MOST_POINTER)];
        Self { pointer: pointer.to_owned(), rule: rule.to_owned() }
    }

    /// Somewhere in the document.
    pub(super) fn unknown() -> Self {
        Self::new("", "schema")
    }

    /// The place in the document, as a JSON Pointer (RFC 6901) of at most 200 bytes; empty for the whole of it.
    #[must_use]
    pub fn pointer(&self) -> &str {
        &self.pointer
    }

    /// The keyword of the schema; `schema` where it would have taken too long to find it.
    #[must_use]
    pub fn rule(&self) -> &str {
        &self.rule
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.pointer, self.rule)
    }
}

thread_local! {
    /// How many more marks the search of this thread may pass.
    static LEFT: Cell<usize> = const { Cell::new(0) };
}

/// What ends a search that is too long.
struct TooLong;

struct Meter;

impl<'i> Keyword<'i> for Meter {
    fn validate(&self, _: &'i Value) -> Result<(), ValidationError<'i>> {
        match LEFT.get().checked_sub(1) {
            Some(left) => LEFT.set(left),
            // There is no other way out of a validator, and none in which it would say less.
            None => resume_unwind(Box::new(TooLong)),
        }
        Ok(())
    }

    fn is_valid(&self, _: &'i Value) -> bool {
        true
    }
}

/// Puts marks into a schema wherever it has others in it.
pub(super) fn mark(schema: &mut Value) {
    match schema {
        Value::Array(all) => all.iter_mut().for_each(mark),
        Value::Object(members) => {
            members.iter_mut().filter(|(name, _)| !DATA.contains(&name.as_str())).for_each(|(_, value)| mark(value));
            if APPLICATORS.iter().any(|name| members.contains_key(*name)) {
                members.insert(METER.into(), Value::Bool(true));
            }
        }
        _ => {}
    }
}

/// Understands the marks.
pub(super) fn with_meter(options: ValidationOptions<'_>) -> ValidationOptions<'_> {
    options.with_keyword(METER, |_: &Map<String, Value>, _: &Value, _: Location| Ok(Box::new(Meter)))
}

/// Looks for the first place where `value`, which is refused, breaks a marked schema.
pub(super) fn find(metered: &Validator, value: &Value) -> Place {
    LEFT.set(STEPS.saturating_add(values(value).saturating_mul(STEPS_PER_VALUE)));
    let found = catch_unwind(AssertUnwindSafe(|| {
        metered.validate(value).map_err(|error| Place::new(error.instance_path().as_str(), error.kind().keyword()))
    }));
    match found {
        Ok(found) => found.err().unwrap_or_else(Place::unknown),
        Err(why) if why.is::<TooLong>() => Place::unknown(),
        Err(why) => resume_unwind(why),
    }
}

fn values(value: &Value) -> usize {
    1 + match value {
        Value::Array(all) => all.iter().map(values).sum(),
        Value::Object(members) => members.values().map(values).sum(),
        _ => 0,
    }
}
