//! What a signature covers: every file of a model by its name and digest, as an in-toto statement v1 with the predicate of OMS v1.0.
//!
//! Names are those of plain files below the model's folder. A name that could mean another place, here or to another reader, is refused.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Fault;
use super::object::{closed, list, member, text};
use crate::digest::{Digest, Hasher};
use crate::wire::json;

/// The most files, or parts of files, in a manifest.
pub const MAX_RESOURCES: usize = 100_000;

/// The longest name, in bytes.
pub const MAX_NAME: usize = 1_024;

/// What a manifest of one file calls it, as `model-signing` does. The specification says that it is the file's name; both are read.
pub const SINGLE: &str = ".";

/// What is never part of a model, at the top of its folder.
pub const NEVER_SIGNED: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];

const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const PREDICATE: &str = "https://model_signing/signature/v1.0";
const OLD_PREDICATE: &str = "https://model_signing/Digests/v0.1";

/// How a file's content is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// By the digest of all of it.
    Whole(Digest),
    /// By the digests of its parts, one after the other; all are `size` bytes long but the last. At least one.
    Parts {
        /// Bytes of a part.
        size: u64,
        /// Bytes of the file.
        length: u64,
        /// Each part's digest.
        digests: Vec<Digest>,
    },
}

/// The files of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    files: BTreeMap<String, Content>,
    ignored: Vec<String>,
    root: Digest,
    sharded: bool,
}

impl Manifest {
    /// The manifest of whole files.
    ///
    /// # Errors
    /// A name is not that of a file below a folder, or an ignored path could not be read again; which one.
    pub fn of_files(files: &BTreeMap<String, Digest>, ignored: Vec<String>) -> Result<Self, String> {
        if let Some(name) = files.keys().find(|name| !(is_name(name) || files.len() == 1 && *name == SINGLE)) {
            return Err(name.clone());
        }
        if let Some(path) = ignored.iter().find(|path| !can_be_ignored(path)) {
            return Err(path.clone());
        }
        // The order of the map is that of code points, which the specification asks for.
        let root = root(files.values());
        let files = files.iter().map(|(name, digest)| (name.clone(), Content::Whole(*digest))).collect();
        Ok(Self { files, ignored, root, sharded: false })
    }

    /// Reads the statement that a bundle holds.
    ///
    /// # Errors
    /// [`Fault::StatementIsBroken`].
    pub fn from_statement(bytes: &[u8]) -> Result<Self, Fault> {
        Self::read(bytes).map_err(Fault::StatementIsBroken)
    }

    fn read(bytes: &[u8]) -> Result<Self, String> {
        let parsed = json::parse(bytes, &json::Limits::for_body(bytes.len())).map_err(|error| error.to_string())?;
        let statement = closed(&parsed, "the statement", &["_type", "subject", "predicateType", "predicate"])?;
        if text(statement, "_type")? != STATEMENT {
            return Err("it is no in-toto statement v1".to_owned());
        }
        match text(statement, "predicateType")? {
            PREDICATE => {}
            OLD_PREDICATE => return Err("it is of release 0.2, whose signatures are not read: sign the model again".to_owned()),
            other => return Err(format!("its predicate is {other:?} and not {PREDICATE:?}")),
        }
        let named = subject(statement)?;
        let predicate = closed(member(statement, "predicate")?, "the predicate", &["resources", "serialization"])?;
        let serialization = Serialization::read(member(predicate, "serialization")?)?;
        let resources = list(predicate, "resources")?;
        if resources.is_empty() || resources.len() > MAX_RESOURCES {
            return Err(format!("it has not from 1 to {MAX_RESOURCES} resources"));
        }
        let resources: Vec<Resource<'_>> = resources.iter().map(|value| Resource::read(value, &serialization)).collect::<Result<_, _>>()?;
        // By the code points of names, as the specification says, or by the parts of paths, as `model-signing` 1.1.1 does. Both are strict,
        // so that no name stands twice.
        let sorted = resources.is_sorted_by(|a, b| a.name < b.name);
        let sorted_by_parts = resources.is_sorted_by(Resource::stands_before);
        if !sorted && !sorted_by_parts {
            return Err("its resources are not sorted, or one stands twice".to_owned());
        }
        let root = root(resources.iter().map(|resource| &resource.digest));
        if root != named {
            return Err("the digest of its subject is not that of its resources".to_owned());
        }
        let files = serialization.files(resources)?;
        if let Some(name) = files.keys().find(|name| serialization.ignored.iter().any(|ignored| is_within(name, ignored))) {
            return Err(format!("{name:?} is listed and ignored"));
        }
        Ok(Self { files, ignored: serialization.ignored, root, sharded: serialization.part.is_some() })
    }

    /// The statement about it, for a model of this name.
    #[must_use]
    pub fn statement(&self, name: &str) -> Vec<u8> {
        let resources: Vec<Value> = self
            .files
            .iter()
            .filter_map(|(name, content)| match content {
                Content::Whole(digest) => Some(json!({ "name": name, "algorithm": "sha256", "digest": digest.to_string() })),
                Content::Parts { .. } => None,
            })
            .collect();
        json!({
            "_type": STATEMENT,
            "subject": [{ "name": name, "digest": { "sha256": self.root.to_string() } }],
            "predicateType": PREDICATE,
            "predicate": {
                "serialization": { "method": "files", "hash_type": "sha256", "allow_symlinks": false, "ignore_paths": self.ignored },
                "resources": resources,
            },
        })
        .to_string()
        .into_bytes()
    }

    /// The files by name: relative paths with `/`.
    #[must_use]
    pub fn files(&self) -> &BTreeMap<String, Content> {
        &self.files
    }

    /// The model's digest: SHA-256 over the digests of its files (or their parts), in the manifest's order.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.root
    }

    /// Whether the file or folder at `path` is not part of the model, whatever it holds.
    #[must_use]
    pub fn ignores(&self, path: &str) -> bool {
        NEVER_SIGNED.contains(&path) || self.ignored.iter().any(|ignored| is_within(path, ignored))
    }

    /// Whether files without content are not listed, as none of their parts could be.
    #[must_use]
    pub fn leaves_out_empty_files(&self) -> bool {
        self.sharded
    }
}

/// Whether `name` is that of a file below a folder, written in the one way there is, and fit for a line of a log.
#[must_use]
pub fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
        && !name.chars().any(|c| c == '\\' || c.is_control())
}

fn is_within(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn root<'d>(digests: impl Iterator<Item = &'d Digest>) -> Digest {
    let mut hasher = Hasher::new();
    digests.for_each(|digest| hasher.update(digest.as_bytes()));
    hasher.finish()
}

/// The digest that the one subject names. Its name is for people.
fn subject(statement: &Map<String, Value>) -> Result<Digest, String> {
    let [subject] = list(statement, "subject")? else { return Err("it has not exactly one subject".to_owned()) };
    let subject = subject.as_object().ok_or_else(|| "its subject is no object".to_owned())?;
    if text(subject, "name")?.is_empty() {
        return Err("its subject has no name".to_owned());
    }
    digest(member(subject, "digest")?.as_object().ok_or_else(|| "the subject's digest is no object".to_owned())?, "sha256")
}

/// How the files were listed.
struct Serialization {
    /// The length of the parts, where files are listed by parts.
    part: Option<u64>,
    ignored: Vec<String>,
}

impl Serialization {
    fn read(value: &Value) -> Result<Self, String> {
        let known = ["method", "hash_type", "shard_size", "allow_symlinks", "ignore_paths"];
        let serialization = closed(value, "`serialization`", &known)?;
        sha256(text(serialization, "hash_type")?)?;
        if !member(serialization, "allow_symlinks")?.is_boolean() {
            return Err("`allow_symlinks` is no truth value".to_owned());
        }
        let size = serialization.get("shard_size").map(whole_number);
        let part = match (text(serialization, "method")?, size) {
            ("files", None) => None,
            ("shards", Some(Some(size))) => Some(size),
            ("files", Some(_)) => return Err("`shard_size` stands beside the method `files`".to_owned()),
            ("shards", _) => return Err("`shard_size` is missing, or no positive number".to_owned()),
            (other, _) => return Err(format!("the method {other:?} is not known")),
        };
        let ignored = match serialization.get("ignore_paths") {
            None => Vec::new(),
            Some(Value::Array(paths)) => paths.iter().map(ignored).collect::<Result<_, _>>()?,
            Some(_) => return Err("`ignore_paths` is no list".to_owned()),
        };
        Ok(Self { part, ignored })
    }

    /// The files of the resources.
    fn files(&self, mut resources: Vec<Resource<'_>>) -> Result<BTreeMap<String, Content>, String> {
        let Some(size) = self.part else {
            return Ok(resources.into_iter().map(|resource| (resource.path.to_owned(), Content::Whole(resource.digest))).collect());
        };
        resources.sort_by_key(|resource| (resource.path, resource.range));
        let mut files: BTreeMap<String, Content> = BTreeMap::new();
        for Resource { path, range: (start, end), digest, .. } in resources {
            let file = files.entry(path.to_owned()).or_insert_with(|| Content::Parts { size, length: 0, digests: Vec::new() });
            let Content::Parts { length, digests, .. } = file else { continue };
            // The next part begins where the last one ended, which was a full one.
            let follows = start == *length && start.is_multiple_of(size) && end > start && end - start <= size;
            if !follows {
                return Err(format!("the parts of {path:?} are not one after the other, each of `shard_size`"));
            }
            *length = end;
            digests.push(digest);
        }
        Ok(files)
    }
}

/// A file, or a part of one.
struct Resource<'v> {
    name: &'v str,
    path: &'v str,
    /// From and to; 0 and 0 for a whole file.
    range: (u64, u64),
    digest: Digest,
}

impl<'v> Resource<'v> {
    fn read(value: &'v Value, serialization: &Serialization) -> Result<Self, String> {
        // in-toto gives resources more members, which say nothing here.
        let resource = value.as_object().ok_or_else(|| "a resource is no object".to_owned())?;
        // `model-signing` 1.1.1 writes the length of the parts behind it.
        let algorithm = text(resource, "algorithm")?;
        let of_parts = serialization.part.and_then(|size| algorithm.strip_suffix(&format!("-sharded-{size}")));
        sha256(of_parts.unwrap_or(algorithm))?;
        let name = text(resource, "name")?;
        let (path, range) = match serialization.part {
            None => (name, (0, 0)),
            Some(_) => part_of(name).ok_or_else(|| format!("{name:?} does not name a part of a file: PATH:START:END"))?,
        };
        if !is_name(path) && path != SINGLE {
            return Err(format!("{path:?} does not name a file in the model's folder"));
        }
        Ok(Self { name, path, range, digest: digest(resource, "digest")? })
    }

    fn stands_before(&self, other: &Self) -> bool {
        self.path.split('/').cmp(other.path.split('/')).then(self.range.cmp(&other.range)).is_lt()
    }
}

/// `PATH:START:END`; a path may hold colons itself.
fn part_of(name: &str) -> Option<(&str, (u64, u64))> {
    let mut from_the_end = name.rsplitn(3, ':');
    let mut number = || {
        let text = from_the_end.next()?;
        let number: u64 = text.parse().ok()?;
        // In one way only.
        (number.to_string() == text).then_some(number)
    };
    let (end, start) = (number()?, number()?);
    Some((from_the_end.next()?, (start, end)))
}

/// A positive whole number, which `model-signing` writes as `1000000.0`.
fn whole_number(value: &Value) -> Option<u64> {
    /// Past it, binary64 does not tell whole numbers apart.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let float = || value.as_f64().filter(|number| number.fract() == 0.0 && (0.0..EXACT).contains(number)).map(|number| number as u64);
    value.as_u64().or_else(float).filter(|number| *number > 0)
}

/// A path that is ignored: like a file's, though it may be a folder's, which some write with a slash behind it.
fn ignored(value: &Value) -> Result<String, String> {
    let path = value.as_str().ok_or_else(|| "an ignored path is no text".to_owned())?;
    let path = path.strip_suffix('/').unwrap_or(path);
    if can_be_ignored(path) { Ok(path.to_owned()) } else { Err(format!("the ignored path {path:?} is not one in the model's folder")) }
}

/// As the specification bounds them (6.2.1): no patterns.
fn can_be_ignored(path: &str) -> bool {
    is_name(path) && !path.contains(['*', '?', '['])
}

fn sha256(algorithm: &str) -> Result<(), String> {
    match algorithm {
        "sha256" => Ok(()),
        "blake2b" | "blake3" => Err(format!("its digests are {algorithm}; only sha256, the default of signers, is read here")),
        other => Err(format!("the algorithm {other:?} is not known")),
    }
}

/// Lower-case hexadecimal only, so that one digest is written in one way.
fn digest(object: &Map<String, Value>, key: &str) -> Result<Digest, String> {
    let text = text(object, key)?;
    text.parse()
        .ok()
        .filter(|digest: &Digest| digest.to_string() == text)
        .ok_or_else(|| format!("`{key}` is no SHA-256 in lower-case hexadecimal"))
}
