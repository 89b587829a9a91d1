//! Where a document breaks a schema.
//!
//! Whether it does is known without looking twice at one part of it: what a schema that refers to itself said of a part is remembered. Where it
//! does is looked for in a copy of the schema with marks in it. Where none of an `anyOf` or `oneOf` holds, the engine would collect all that is wrong
//! in every way of every part, each with a copy of the part: two to the power of the depth in a schema of trees. There a mark ends the search, as the
//! place of the choice is all that is told. Elsewhere marks are a meter, and a search that would cost more than a few readings of the document ends
//! without a place.

use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use jsonschema::paths::Location;
use jsonschema::{Keyword, ValidationError, ValidationOptions, Validator};
use serde_json::{Map, Value, json};

/// The keyword of a meter. As of all keywords that are not the engine's own, its turn is after the others of its schema.
const METER: &str = "portcullis:meter";

/// The keyword that the first way of a choice begins with; its value is the choice's own.
const CHOICE: &str = "portcullis:choice";

/// So much may be looked at in any document, and the document so many times more. Every mark that is passed counts as much as what it stands for.
const STEPS: usize = 65_536;
const READINGS: usize = 16;

/// So many bytes of text count as much as one more value.
const BYTES_PER_STEP: usize = 32;

/// By these a schema has others in it.
const APPLICATORS: [&str; 22] = [
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
    "prefixItems",
    "properties",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
];

/// What stands in these has a name of the author's choice, which may be that of a keyword.
const NAMED: [&str; 6] = ["$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"];

/// What stands in these is no schema.
const DATA: [&str; 5] = ["const", "default", "dependentRequired", "enum", "examples"];

/// The schemas of schemas, which the engine has at hand: they are not read here and so have no marks.
const OF_SCHEMAS: [&str; 2] = ["http://json-schema.org/", "https://json-schema.org/"];

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
        Self { pointer: cut(pointer).to_owned(), rule: rule.to_owned() }
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
    /// How much more the search of this thread may look at.
    static LEFT: Cell<usize> = const { Cell::new(0) };
}

/// What ends a search. There is no other way out of a validator, and none in which it would copy less.
enum End {
    TooLong,
    /// The value at this address is none of those that a choice is between.
    Choice {
        address: usize,
        rule: String,
    },
}

struct Meter;

impl<'i> Keyword<'i> for Meter {
    fn validate(&self, value: &'i Value) -> Result<(), ValidationError<'i>> {
        match LEFT.get().checked_sub(weight(value)) {
            Some(left) => LEFT.set(left),
            None => resume_unwind(Box::new(End::TooLong)),
        }
        Ok(())
    }

    fn is_valid(&self, _: &'i Value) -> bool {
        true
    }
}

struct Choice(String);

impl<'i> Keyword<'i> for Choice {
    fn validate(&self, _: &'i Value) -> Result<(), ValidationError<'i>> {
        Ok(())
    }

    fn is_valid(&self, _: &'i Value) -> bool {
        true
    }

    /// Errors are collected nowhere but below a choice that is known not to hold, from its first way on.
    fn iter_errors(&self, value: &'i Value) -> Box<dyn Iterator<Item = ValidationError<'i>> + 'i> {
        resume_unwind(Box::new(End::Choice { address: address(value), rule: self.0.clone() }))
    }
}

/// Puts marks into a schema: a meter wherever it has others in it, and one into every choice.
pub(super) fn mark(schema: &mut Value) {
    match schema {
        Value::Array(all) => all.iter_mut().for_each(mark),
        Value::Object(members) => {
            for (name, value) in members.iter_mut() {
                match (name.as_str(), value) {
                    (name, _) if DATA.contains(&name) => {}
                    (name, Value::Object(named)) if NAMED.contains(&name) => named.values_mut().for_each(mark),
                    ("$ref" | "$dynamicRef", Value::String(pointer)) => *pointer = into_choices(pointer),
                    (name @ ("anyOf" | "oneOf"), Value::Array(ways)) => {
                        ways.iter_mut().for_each(mark);
                        if let Some(first) = ways.first_mut() {
                            *first = begin(name, first.take());
                        }
                    }
                    (_, value) => mark(value),
                }
            }
            if let Some(Value::String(to)) = members.get("$ref")
                && OF_SCHEMAS.iter().any(|those| to.starts_with(those))
            {
                // A choice of one way is one that can be marked.
                let choice = json!({"anyOf": [begin("$ref", json!({"$ref": to}))]});
                members.remove("$ref");
                if let Value::Array(all) = members.entry("allOf").or_insert_with(|| json!([])) {
                    all.push(choice);
                }
            }
            if APPLICATORS.iter().any(|name| members.contains_key(*name)) {
                members.insert(METER.into(), Value::Bool(true));
            }
        }
        _ => {}
    }
}

/// The first way of a choice with a mark that is met before anything in it.
fn begin(choice: &str, way: Value) -> Value {
    json!({"allOf": [{CHOICE: choice}, way]})
}

/// A reference to where what it refers to stands behind the marks.
fn into_choices(reference: &str) -> String {
    ["anyOf", "oneOf"]
        .iter()
        .fold(reference.to_owned(), |reference, choice| reference.replace(&format!("/{choice}/0/"), &format!("/{choice}/0/allOf/1/")))
}

/// Understands the marks.
pub(super) fn with_marks(options: ValidationOptions<'_>) -> ValidationOptions<'_> {
    options
        .with_keyword(METER, |_: &Map<String, Value>, _: &Value, _: Location| Ok(Box::new(Meter)))
        .with_keyword(CHOICE, |_: &Map<String, Value>, choice: &Value, _: Location| {
            Ok(Box::new(Choice(choice.as_str().unwrap_or_default().to_owned())))
        })
}

/// Looks for the first place where `value`, which is refused, breaks a marked schema.
pub(super) fn find(marked: &Validator, value: &Value) -> Place {
    LEFT.set(STEPS.saturating_add(weight(value).saturating_mul(READINGS)));
    let found = catch_unwind(AssertUnwindSafe(|| {
        marked.validate(value).map_err(|error| Place::new(error.instance_path().as_str(), error.kind().keyword()))
    }));
    match found.map_err(|why| why.downcast::<End>()) {
        Ok(found) => found.err().unwrap_or_else(Place::unknown),
        Err(Ok(end)) => match *end {
            End::TooLong => Place::unknown(),
            // What is validated and is no value of the document is the name of a member.
            End::Choice { address, rule } => {
                pointer_to(address, value).map_or_else(|| Place::new("", "propertyNames"), |pointer| Place::new(&pointer, &rule))
            }
        },
        Err(Err(why)) => resume_unwind(why),
    }
}

/// What it takes to look at all of `value`.
fn weight(value: &Value) -> usize {
    let text = |text: &str| text.len() / BYTES_PER_STEP;
    1 + match value {
        Value::String(string) => text(string),
        Value::Array(all) => all.iter().map(weight).sum(),
        Value::Object(members) => members.iter().map(|(name, value)| text(name) + weight(value)).sum(),
        _ => 0,
    }
}

fn address(value: &Value) -> usize {
    std::ptr::from_ref(value).addr()
}

/// The JSON Pointer from `value` to what stands at `wanted`, as much of it as is told.
fn pointer_to(wanted: usize, value: &Value) -> Option<String> {
    if address(value) == wanted {
        return Some(String::new());
    }
    let pointer = match value {
        Value::Array(all) => {
            let mut all = all.iter().enumerate();
            all.find_map(|(index, value)| pointer_to(wanted, value).map(|rest| format!("/{index}{rest}")))
        }
        Value::Object(members) => members.iter().find_map(|(name, value)| {
            let rest = pointer_to(wanted, value)?;
            Some(format!("/{}{rest}", name.replace('~', "~0").replace('/', "~1")))
        }),
        _ => None,
    };
    pointer.map(|pointer| cut(&pointer).to_owned())
}

fn cut(pointer: &str) -> &str {
    &pointer[..pointer.floor_char_boundary(MOST_POINTER)]
}
