//! The policy folder: read once, whole, compiled into one immutable [`Snapshot`], or refused with every mistake told.
//!
//! Each part owns its own configuration; this file composes them and knows where they stand.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::authorize::{self, Authorizer, Model, Policies, Resource, Routes, Serves};
use crate::clock::Moment;
use crate::digest::{Digest, Hasher};
use crate::infer::model::{self, Runtime};
use crate::infer::upstream::{self, Upstream};
use crate::infer::{self, Backend};
use crate::mistake::{self, Mistake};
use crate::trail::{Assurance, Which};
use crate::wire::json;
use crate::{accept, admin, authenticate, budget, check, detect, prove, record};

/// `gateway.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// The data plane's listener.
    pub accept: accept::Config,
    /// The operators' listener; none unless configured.
    pub admin: Option<admin::Config>,
    /// The provenance log.
    pub prove: prove::Config,
    /// Telemetry and the security log.
    #[serde(default)]
    pub record: record::Config,
    /// What models run on.
    #[serde(default)]
    pub runtime: model::runtime::Config,
}

/// One file under `models/`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelFile {
    name: toml::Spanned<String>,
    #[serde(default)]
    version: String,
    #[serde(default)]
    public: bool,
    #[serde(default)]
    tenants: Vec<String>,
    route: Option<authorize::RouteConfig>,
    backend: toml::Spanned<BackendFile>,
    #[serde(default)]
    check: check::Config,
    #[serde(default)]
    budget: budget::Terms,
    #[serde(default)]
    detect: detect::Terms,
    #[serde(default)]
    answer: infer::shape::Config,
    #[serde(default)]
    prove: prove::TermsConfig,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackendFile {
    onnx: Option<model::Config>,
    upstream: Option<upstream::Config>,
}

/// What every stop after `authorize` is told for one model.
#[derive(Debug)]
pub struct Terms {
    /// How much.
    pub budget: budget::Terms,
    /// What may be sent.
    pub check: check::Terms,
    /// What is watched.
    pub detect: detect::Terms,
    /// Who answers, and in what shape.
    pub infer: infer::Terms,
    /// How surely it is recorded.
    pub prove: prove::Terms,
}

/// Everything that judges requests, compiled from one state of the folder.
#[derive(Debug)]
pub struct Snapshot {
    /// The digest of the files it was compiled from.
    pub digest: Digest,
    /// Who calls.
    pub authenticator: authenticate::Authenticator,
    /// Whether they may.
    pub authorizer: Authorizer<Terms>,
}

/// What the last snapshot had already made: a reload keeps the connections and sessions of what did not change.
#[derive(Debug, Default)]
pub struct Made {
    models: BTreeMap<String, (Digest, Arc<model::Model>)>,
    upstreams: BTreeMap<String, (Digest, Arc<Upstream>)>,
}

/// A folder that was read and compiled.
#[derive(Debug)]
pub struct Loaded {
    /// `gateway.toml`.
    pub gateway: Gateway,
    /// What judges requests.
    pub snapshot: Snapshot,
    /// What the next load may keep.
    pub made: Made,
    /// Models that were loaded now, for the log.
    pub fresh: Vec<Arc<Which>>,
}

/// Mistakes, each as `FILE:LINE:COLUMN: what`.
pub type Told = Vec<String>;

/// Reads and compiles the folder `dir`.
///
/// With a `runtime` models are loaded and upstreams opened; `check` passes none and compiles everything else.
///
/// # Errors
/// Every mistake in every file.
pub fn load(dir: &Path, now: Moment, made: &Made, engines: Engines<'_>) -> Result<Loaded, Told> {
    let mut reading = Reading { dir, told: Vec::new(), digest: BTreeMap::new() };
    let gateway: Option<Gateway> = reading.toml("gateway.toml");
    let callers: Option<authenticate::Config> = reading.toml("callers.toml");
    let authenticator = callers.and_then(|callers| {
        let failures = gateway.as_ref().map(|gateway| gateway.accept.auth_failures).unwrap_or_default();
        let compiled = authenticate::Authenticator::compile(callers, dir, failures, now);
        reading.keep("callers.toml", compiled)
    });
    let policies = reading.text("access.cedar").and_then(|text| {
        let compiled = Policies::compile(&text, "access.cedar");
        reading.keep("access.cedar", compiled)
    });
    let global_cap = gateway.as_ref().map_or(accept::MAX_BODY.0, |gateway| gateway.accept.max_body.0);
    let mut building = Building { global_cap, now, made, engines, next: Made::default(), fresh: Vec::new(), paths: BTreeMap::new() };
    let models = building.models(&mut reading);

    let digest = reading.finish();
    match (gateway, authenticator, policies) {
        (Some(gateway), Some(authenticator), Some(policies)) if reading.told.is_empty() => {
            let body_cap = models.iter().map(|model| model.terms.check.max_body()).fold(global_cap, usize::max);
            let routes = Routes::new(building.paths.into_iter().map(|(path, model)| (path.into(), model.into())));
            let serverwide = Terms::serverwide(global_cap);
            let authorizer = Authorizer::new(routes, policies, models, serverwide, body_cap, json::Limits::default());
            let snapshot = Snapshot { digest, authenticator, authorizer };
            Ok(Loaded { gateway, snapshot, made: building.next, fresh: building.fresh })
        }
        _ => Err(reading.told),
    }
}

/// What a load may start.
#[derive(Clone, Copy, Debug)]
pub enum Engines<'a> {
    /// Nothing: files are read and compiled, models are verified but not run, upstreams not called.
    None,
    /// Models run on this runtime.
    With(&'a Runtime),
}

impl Terms {
    /// For requests that name no model: lists, server metadata, receipts.
    fn serverwide(global_cap: usize) -> Self {
        Self {
            budget: budget::Terms::default(),
            check: check::Terms::without_body(global_cap),
            detect: detect::Terms::default(),
            infer: infer::Terms { backend: Backend::Nothing, shape: infer::shape::Config::default() },
            prove: prove::Terms::default(),
        }
    }
}

/// The files of one folder, read once each, with what was found wrong in them.
struct Reading<'a> {
    dir: &'a Path,
    told: Told,
    digest: BTreeMap<String, Digest>,
}

/// A policy file is text that people write; one that is longer is something else.
const MAX_FILE: u64 = 4 << 20;

impl Reading<'_> {
    /// The file's text, remembered for the digest of the whole.
    fn text(&mut self, file: &str) -> Option<String> {
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

    fn toml<T: DeserializeOwned>(&mut self, file: &str) -> Option<T> {
        let text = self.text(file)?;
        let parsed = toml::from_str(&text).map_err(|error| vec![Mistake::of_toml(&error)]);
        self.keep_with(file, &text, parsed)
    }

    /// What compiled; what did not is told with its place in `file`.
    fn keep<T>(&mut self, file: &str, compiled: Result<T, Vec<Mistake>>) -> Option<T> {
        if compiled.is_ok() {
            return compiled.ok();
        }
        let text = std::fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        self.keep_with(file, &text, compiled)
    }

    fn keep_with<T>(&mut self, file: &str, text: &str, compiled: Result<T, Vec<Mistake>>) -> Option<T> {
        compiled.map_err(|mistakes| self.told.extend(mistakes.iter().map(|mistake| mistake.located(&self.dir.join(file), text)))).ok()
    }

    /// Files of a folder of this folder, in the order of their names.
    fn files(&mut self, folder: &str, ending: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.dir.join(folder)) else { return Vec::new() };
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
    fn finish(&mut self) -> Digest {
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

/// Models on their way from files to terms.
struct Building<'a> {
    global_cap: usize,
    now: Moment,
    made: &'a Made,
    engines: Engines<'a>,
    next: Made,
    fresh: Vec<Arc<Which>>,
    /// Declared paths, each with the model that declared it.
    paths: BTreeMap<String, String>,
}

/// A model's name: what callers write, what logs and labels show.
const MAX_NAME: usize = 128;

impl Building<'_> {
    fn models(&mut self, reading: &mut Reading<'_>) -> Vec<Model<Terms>> {
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        let mut models = Vec::new();
        for file in reading.files("models", ".toml") {
            let Some(parsed) = reading.toml::<ModelFile>(&file) else { continue };
            let digest = reading.digest.get(&file).copied().unwrap_or_default();
            if let Some(other) = names.insert(parsed.name.get_ref().clone(), file.clone()) {
                let twice = Mistake::at(parsed.name.span(), format!("a model called `{}` stands in {other} already", parsed.name.get_ref()));
                reading.keep::<()>(&file, Err(vec![twice]));
                continue;
            }
            let base = reading.dir.join("models");
            let built = self.model(parsed, digest, &base, reading.dir);
            models.extend(reading.keep(&file, built));
        }
        if models.is_empty() && reading.told.is_empty() {
            reading.told.push(format!("{}: no model: write one to models/NAME.toml", reading.dir.display()));
        }
        models
    }

    fn model(&mut self, file: ModelFile, digest: Digest, base: &Path, root: &Path) -> Result<Model<Terms>, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let name = file.name.get_ref().clone();
        if !speakable(&name, MAX_NAME) || !speakable(&file.version, MAX_NAME) && !file.version.is_empty() {
            let what = format!("a name or version is 1 to {MAX_NAME} visible ASCII characters without `%`, `?` or `#`, and no empty path segment");
            mistakes.push(Mistake::at(file.name.span(), what));
        }
        if let Some(route) = &file.route {
            self.declare(route, &name, &mut mistakes);
        }
        let backend = self.backend(&file, digest, base, root);
        let (backend, serves, mut which) = match backend {
            Ok(backend) => backend,
            Err(more) => {
                mistakes.extend(more);
                return Err(mistakes);
            }
        };
        which.name = name.as_str().into();
        which.version = file.version.as_str().into();
        let which = Arc::new(which);
        if (serves == Serves::Raw) != file.route.is_some() {
            mistakes.push(Mistake::at(file.backend.span(), "`[route]` and an upstream of protocol \"raw\" belong together: give both or neither"));
        }
        let contract = match &backend {
            Backend::Model(model) => Some(model.contract()),
            _ => None,
        };
        let check = check::Terms::compile(file.check, contract, base, root, self.global_cap).map_err(|more| mistakes.extend(more));
        let prove = prove::Terms::compile(file.prove).map_err(|more| mistakes.extend(more));
        match (check, prove) {
            (Ok(check), Ok(prove)) if mistakes.is_empty() => {
                let infer = infer::Terms { backend, shape: file.answer };
                let terms = Terms { budget: file.budget, check, detect: file.detect, infer, prove };
                let resource = Resource { name: which.name.clone(), public: file.public, tenants: file.tenants };
                Ok(Model { which, resource, serves, terms: Arc::new(terms) })
            }
            _ => Err(mistakes),
        }
    }

    fn declare(&mut self, route: &authorize::RouteConfig, name: &str, mistakes: &mut Vec<Mistake>) {
        let path = route.path.get_ref();
        let reserved = authorize::target::RESERVED.iter().any(|reserved| path.starts_with(reserved)) || path == "/v1";
        let plain = path.starts_with('/') && path.len() > 1 && !path.ends_with('/') && speakable(&path[1..], 1024);
        if reserved || !plain {
            let what = "a route's path begins with `/`, has no empty segment, `%`, `?` or `#`, and lies outside /v1, /v2 and /inference.*";
            mistakes.push(Mistake::at(route.path.span(), what));
        }
        if route.methods != ["POST"] {
            mistakes.push(Mistake::at(route.path.span(), "a declared path takes `methods = [\"POST\"]` alone"));
        }
        if let Some(other) = self.paths.insert(path.clone(), name.to_owned()) {
            mistakes.push(Mistake::at(route.path.span(), format!("the model `{other}` has declared `{path}` already")));
        }
    }

    fn backend(&mut self, file: &ModelFile, digest: Digest, base: &Path, root: &Path) -> Result<(Backend, Serves, Which), Vec<Mistake>> {
        let name = file.name.get_ref();
        match file.backend.get_ref() {
            BackendFile { onnx: Some(onnx), upstream: None } => self.onnx(name, digest, onnx, base, root, file.backend.span()),
            BackendFile { onnx: None, upstream: Some(upstream) } => self.upstream(name, digest, upstream, base, root),
            _ => Err(vec![Mistake::at(file.backend.span(), "a model has one backend: [backend.onnx] or [backend.upstream]")]),
        }
    }
}

/// Whether `text` can stand in a path, a header and a label as it is.
fn speakable(text: &str, longest: usize) -> bool {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'%' | b'?' | b'#' | b'\\' | b'"'));
    let segments = text.split('/').all(|segment| !matches!(segment, "" | "." | ".."));
    plain && segments && text.len() <= longest
}

/// A path that a policy file names, which may not leave the policy folder.
pub fn inside(root: &Path, base: &Path, path: &Path) -> Result<PathBuf, Mistake> {
    let joined = base.join(path);
    let mut clean = PathBuf::new();
    for component in joined.components() {
        match component {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    if clean.starts_with(root) { Ok(clean) } else { Err(Mistake::of_file(format!("`{}` leaves the policy folder", path.display()))) }
}
