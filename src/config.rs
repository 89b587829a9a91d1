//! The policy folder: read once, whole, compiled into one immutable [`Snapshot`], or refused with every mistake told.
//!
//! Each part owns its own configuration; this file composes them and knows where they stand.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::authenticate::{Authenticator, Failures};
use crate::authorize::{self, Authorizer, Model, Policies, Resource, Routes, Serves, Traffic};
use crate::clock::Moment;
use crate::detect::recording::{self, Book, Recording};
use crate::digest::{Digest, Hasher};
use crate::disk::OnDisk;
use crate::infer::model::runtime::{Places, Runtime};
use crate::infer::model::{self, Kind};
use crate::infer::shadow::{Shadow, Tally};
use crate::infer::upstream::{self, Protocol, Upstream};
use crate::infer::{self, Backend};
use crate::life::{MAX_REFUSED, Refusal, Turn};
use crate::mistake::Mistake;
use crate::outbound::Origin;
use crate::prove::Changed;
use crate::trail::{Assurance, Which};
use crate::wire::json;
use crate::wire::openai::embeddings::VECTORS;
use crate::{accept, admin, authenticate, budget, check, detect, prove, record};

use versions::Standing;

mod versions;

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

impl Gateway {
    /// What is wrong with it, as far as its own text says.
    fn mistakes(&self, dir: &Path) -> Vec<Mistake> {
        let mut mistakes = self.accept.limits().err().unwrap_or_default();
        mistakes.extend(self.prove.mistakes());
        // With TLS it names files, which are read where the port is opened.
        if let Some(admin) = self.admin.as_ref().filter(|admin| admin.tls.is_none()) {
            mistakes.extend(admin::resolve(admin, dir).err().unwrap_or_default());
        }
        mistakes
    }

    /// The files of both listeners' TLS.
    fn tls_files(&self) -> impl Iterator<Item = &PathBuf> {
        let callers = match self.accept.tls.get_ref() {
            accept::config::TlsChoice::On(tls) => Some(&**tls),
            accept::config::TlsChoice::Off => None,
        };
        let operators = self.admin.as_ref().and_then(|admin| admin.tls.as_ref()).map(toml::Spanned::get_ref);
        callers.into_iter().chain(operators).flat_map(accept::config::TlsConfig::files)
    }
}

/// One file under `models/`, as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFile {
    name: toml::Spanned<String>,
    #[serde(default)]
    version: String,
    #[serde(default)]
    public: bool,
    #[serde(default)]
    tenants: Vec<String>,
    #[serde(default)]
    traffic: authorize::TrafficConfig,
    route: Option<authorize::RouteConfig>,
    backend: toml::Spanned<BackendFile>,
    #[serde(default)]
    check: check::Config,
    explain: Option<check::explain::Config>,
    #[serde(default)]
    budget: budget::Config,
    #[serde(default)]
    detect: detect::Config,
    #[serde(default)]
    answer: infer::shape::Config,
    #[serde(default)]
    prove: prove::TermsConfig,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackendFile {
    onnx: Option<model::Config>,
    safetensors: Option<model::Config>,
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
    pub authenticator: Authenticator,
    /// Whether they may.
    pub authorizer: Authorizer<Terms>,
    /// Versions that are asked and not heard.
    pub shadows: Vec<Arc<Shadow>>,
    /// The files that running models were loaded from.
    pub disks: Vec<Arc<OnDisk>>,
}

/// What earlier snapshots have already made: a reload keeps the connections and sessions of what did not change, and
/// forgives no failed login.
#[derive(Clone, Debug, Default)]
pub struct Made {
    /// By the digest of everything that went into the session: a renamed file is no reason to load a model anew.
    models: BTreeMap<Digest, Running>,
    /// By name and version.
    upstreams: BTreeMap<Version, (Digest, Arc<Upstream>)>,
    /// What shadows have come to, by name, version and bytes: of another model nothing is known yet.
    tallies: BTreeMap<(Version, Option<Digest>), Arc<Tally>>,
    /// By the file, and of which model it is; nowhere is recorded where nothing runs.
    recordings: BTreeMap<PathBuf, (String, Option<Arc<Book>>)>,
    failures: Arc<OnceLock<Arc<Failures>>>,
    /// Files that policies name and that are no policies themselves: keys, certificates, credentials.
    named: Vec<PathBuf>,
    /// Models that were not loaded and of which nobody was told yet.
    refused: Arc<Mutex<Vec<Refusal>>>,
}

/// A name and a version.
type Version = (String, String);

/// A model that was loaded.
#[derive(Clone, Debug)]
struct Running {
    /// The file of the policy that names it.
    file: String,
    model: Arc<model::Model>,
    disks: Arc<[Arc<OnDisk>]>,
}

impl Made {
    /// Models that the last load refused; each is handed out once.
    #[must_use]
    pub fn take_refused(&self) -> Vec<Refusal> {
        std::mem::take(&mut *self.refused.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn refuse(&self, which: Which, why: &str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() < MAX_REFUSED {
            refused.push(Refusal { which: Arc::new(which), why: why.to_owned() });
        }
    }

    /// What becomes of models when this follows `before`: first what comes, then what goes.
    fn turns_since(&self, before: &Self) -> Vec<Turn> {
        let come = self.models.iter().filter(|(identity, _)| !before.models.contains_key(identity)).map(|(_, running)| {
            let swapped = before.models.values().any(|other| other.file == running.file);
            Turn { model: running.model.clone(), changed: if swapped { Changed::Swapped } else { Changed::Loaded } }
        });
        let gone = before.models.iter().filter(|(identity, _)| !self.models.contains_key(identity));
        come.chain(gone.map(|(_, running)| Turn { model: running.model.clone(), changed: Changed::Retired })).collect()
    }

    /// Starts what goes on in the background of upstreams. Must be called inside a Tokio runtime.
    pub fn tend(&self) {
        self.upstreams.values().for_each(|(_, upstream)| upstream.tend());
    }

    /// Files that the policies name, wherever they lie and whatever they are called; a reload looks at them too.
    #[must_use]
    pub fn named(&self) -> &[PathBuf] {
        &self.named
    }

    /// Failed logins by address, for the life of the process: the first limit that is read stands.
    fn failures(&self, gateway: Option<&Gateway>) -> Arc<Failures> {
        let limit = gateway.map_or(accept::config::AUTH_FAILURES, |gateway| gateway.accept.auth_failures);
        self.failures.get_or_init(|| Arc::new(Failures::new(limit.rate, limit.burst))).clone()
    }
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
    /// What becomes of models with it.
    pub turns: Vec<Turn>,
}

/// Mistakes, each as `FILE:LINE:COLUMN: what`.
pub type Told = Vec<String>;

/// `gateway.toml` of the folder `dir` alone, if there is nothing wrong with it.
#[must_use]
pub fn gateway(dir: &Path) -> Option<Gateway> {
    let mut reading = Reading { dir, told: Vec::new(), digest: BTreeMap::new() };
    reading.toml::<Gateway>("gateway.toml").filter(|gateway| gateway.mistakes(dir).is_empty())
}

/// Reads and compiles the folder `dir`.
///
/// With engines models are loaded and upstreams opened; `check` passes none, and everything else is compiled and verified.
///
/// # Errors
/// Every mistake in every file.
pub fn load(dir: &Path, now: Moment, made: &Made, engines: Engines) -> Result<Loaded, Told> {
    let mut reading = Reading { dir, told: Vec::new(), digest: BTreeMap::new() };
    let gateway: Option<Gateway> = reading.toml("gateway.toml");
    if let Some(gateway) = &gateway {
        reading.keep::<()>("gateway.toml", Err(gateway.mistakes(dir)));
    }
    let callers: Option<authenticate::Config> = reading.toml("callers.toml");
    let authenticator = callers.and_then(|callers| {
        let compiled = Authenticator::compile(&callers, dir, made.failures(gateway.as_ref()), now);
        reading.keep("callers.toml", compiled)
    });
    let policies = reading.text("access.cedar").and_then(|text| {
        let compiled = Policies::compile(&text, "access.cedar");
        reading.keep("access.cedar", compiled)
    });
    let global_cap = gateway.as_ref().map_or(accept::config::MAX_BODY.0, |gateway| gateway.accept.max_body.0);
    let next = Made { failures: made.failures.clone(), refused: made.refused.clone(), ..Made::default() };
    let library = gateway.as_ref().and_then(|gateway| gateway.runtime.onnxruntime.as_ref()).map(|path| dir.join(path));
    let witnesses = gateway.as_ref().is_none_or(|gateway| gateway.prove.has_witnesses());
    let mut building = Building { global_cap, witnesses, made, engines, library, next, paths: BTreeMap::new() };
    let mut models = building.models(&mut reading);
    let shadows = building.shadows(&mut models);

    let digest = reading.finish();
    match (gateway, authenticator, policies) {
        (Some(gateway), Some(authenticator), Some(policies)) if reading.told.is_empty() => {
            let body_cap = models.iter().map(|model| model.terms.check.max_body()).fold(global_cap, usize::max);
            let routes = Routes::new(building.paths.into_iter().map(|(path, model)| (path.into(), model.into())));
            let serverwide = Terms::serverwide(global_cap);
            let authorizer = Authorizer::new(routes, policies, models, serverwide, body_cap, json::Limits::for_body(body_cap));
            let turns = building.next.turns_since(building.made);
            let disks = building.next.models.values().flat_map(|running| running.disks.iter().cloned()).collect();
            let mut made = building.next;
            made.named.extend(gateway.tls_files().map(|file| dir.join(file)));
            made.named.extend(authenticator.sources().filter_map(|source| source.file()).map(Path::to_owned));
            let snapshot = Snapshot { digest, authenticator, authorizer, shadows, disks };
            Ok(Loaded { gateway, snapshot, made, turns })
        }
        _ => Err(reading.told),
    }
}

/// What a load may start.
#[derive(Clone, Copy, Debug)]
pub enum Engines {
    /// Nothing: files are read and compiled, models are verified but not run, upstreams not called.
    None,
    /// Whatever the models need.
    All,
    /// The same, and no calibration is read: one that does not fit is not to keep another from being made.
    Uncalibrated,
}

impl Terms {
    /// For requests that name no model: lists, server metadata, receipts.
    fn serverwide(global_cap: usize) -> Self {
        Self {
            budget: budget::Terms::default(),
            check: check::Terms::without_model(global_cap),
            detect: detect::Terms::default(),
            infer: infer::Terms { backend: Backend::Nothing, shape: infer::shape::Config::default(), shadows: Vec::new() },
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
    /// Whether anybody could be a witness.
    witnesses: bool,
    made: &'a Made,
    engines: Engines,
    /// Where ONNX Runtime is, if the operator says.
    library: Option<PathBuf>,
    next: Made,
    /// Declared paths, each with the model that declared it.
    paths: BTreeMap<String, String>,
}

/// A model's name: what callers write, what logs and labels show.
const MAX_NAME: usize = 128;

impl Building<'_> {
    fn models(&mut self, reading: &mut Reading<'_>) -> Vec<Model<Terms>> {
        let mut seen: BTreeMap<Version, String> = BTreeMap::new();
        // Of names with a file that is wrong in itself nothing is said of how its files stand to each other; a file that cannot be read
        // may have any name.
        let (mut broken, mut unread) = (BTreeSet::new(), false);
        let (mut models, mut standing) = (Vec::new(), Vec::new());
        for file in reading.files("models", ".toml") {
            let Some(parsed) = reading.toml::<ModelFile>(&file) else {
                unread = true;
                continue;
            };
            let digest = reading.digest.get(&file).copied().unwrap_or_default();
            let (name, version) = (parsed.name.get_ref().clone(), parsed.version.clone());
            if let Some(other) = seen.insert((name.clone(), version), file.clone()) {
                let what = format!("version \"{}\" of `{name}` stands in {other} already: give it another `version`", parsed.version);
                let twice = Mistake::at(parsed.name.span(), what);
                reading.keep::<()>(&file, Err(vec![twice]));
                continue;
            }
            let base = reading.dir.join("models");
            let beside = format!("{}.calibration.json", file.trim_end_matches(".toml"));
            let wanted = !matches!(self.engines, Engines::Uncalibrated);
            let calibration = if wanted && reading.dir.join(&beside).exists() { reading.text(&beside) } else { None };
            let built = self.model(&file, parsed, digest, &base, reading.dir, calibration.as_deref());
            match reading.keep(&file, built) {
                Some((model, stands)) => {
                    models.push(model);
                    standing.push(stands);
                }
                None => _ = broken.insert(name),
            }
        }
        standing.retain(|stands: &Standing| !unread && !broken.contains(&*stands.resource.name));
        for (file, mistake) in versions::disagreements(&standing) {
            reading.keep::<()>(&file, Err(vec![mistake]));
        }
        if models.is_empty() && reading.told.is_empty() {
            reading.told.push(format!("{}: no model: write one to models/NAME.toml", reading.dir.display()));
        }
        models
    }

    /// Has the shadows of each name asked whatever the versions that answer are asked.
    fn shadows(&mut self, models: &mut [Model<Terms>]) -> Vec<Arc<Shadow>> {
        let mut of_names: BTreeMap<Arc<str>, Vec<Arc<Shadow>>> = BTreeMap::new();
        for shadow in &*models {
            let (Traffic::Shadows(terms), Backend::Model(model)) = (shadow.traffic, &shadow.terms.infer.backend) else { continue };
            let Which { name, version, digest, .. } = &*shadow.which;
            let of = ((name.to_string(), version.to_string()), *digest);
            let tally = self.made.tallies.get(&of).cloned().unwrap_or_default();
            self.next.tallies.insert(of, tally.clone());
            of_names.entry(name.clone()).or_default().push(Arc::new(Shadow { model: model.clone(), terms, tally }));
        }
        for model in models.iter_mut().filter(|model| matches!(model.traffic, Traffic::Answers { .. })) {
            if let (Some(shadows), Some(terms)) = (of_names.get(&model.which.name), Arc::get_mut(&mut model.terms)) {
                terms.infer.shadows.clone_from(shadows);
            }
        }
        of_names.into_values().flatten().collect()
    }

    fn model(
        &mut self,
        path: &str,
        file: ModelFile,
        digest: Digest,
        base: &Path,
        root: &Path,
        calibration: Option<&str>,
    ) -> Result<(Model<Terms>, Standing), Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let name = file.name.get_ref().clone();
        if !speakable(&name, MAX_NAME) || !speakable(&file.version, MAX_NAME) && !file.version.is_empty() {
            let what =
                format!("a name or version is 1 to {MAX_NAME} visible ASCII characters without `%`, `?` or `#`, and no empty path segment");
            mistakes.push(Mistake::at(file.name.span(), what));
        }
        if let Some(route) = &file.route {
            self.declare(route, &name, &mut mistakes);
        }
        let traffic = file.traffic.resolve(&mut mistakes);
        let backend = self.backend(path, &file, digest, base, root);
        let Built { backend, serves, which, contract } = match backend {
            Ok(built) => built,
            Err(more) => {
                mistakes.extend(more);
                return Err(mistakes);
            }
        };
        if (serves == Serves::Raw) != file.route.is_some() {
            mistakes.push(Mistake::at(
                file.backend.span(),
                "`[route]` and an upstream of protocol \"raw\" belong together: give both or neither",
            ));
        }
        let renamed =
            file.backend.get_ref().upstream.as_ref().is_some_and(|upstream| upstream.model.as_ref().is_some_and(|theirs| *theirs != name));
        let withholds = file.backend.get_ref().upstream.is_some() && file.detect.withholds();
        if file.answer.stream && (renamed || file.answer.top.is_some() || file.answer.decimals.is_some() || withholds) {
            let what = "`answer.stream` lets large answers pass unread, so that nothing in them can be changed: leave out `top`, `decimals`, the upstream's `model`, an enforced `detect.leak` and budgets of `detect.exposure`";
            mistakes.push(Mistake::at(file.backend.span(), what));
        }
        if let (Serves::Embeddings, Some(schema)) = (serves, &file.check.schema) {
            let what = "an encoder that embeds is asked in two forms, and a schema holds for one: bound it by `max_batch` and `max_length`";
            mistakes.push(Mistake::at(schema.span(), what));
        }
        let around = check::Around { policies: root, folder: base, max_body: self.global_cap, contract: contract.as_ref() };
        let mut check = file.check.compile(around, &mut mistakes);
        if let Some(explain) = &file.explain {
            self.next.named.push(base.join(explain.background.get_ref()));
            check.explain(explain, around, &mut mistakes);
        }
        let budget = file.budget.compile(&mut mistakes);
        let mut detect = file.detect.compile(calibration, contract.as_ref(), &mut mistakes);
        let recording = file.detect.recording.as_ref();
        if let (Some(recording), Traffic::Shadows(_)) = (recording, traffic) {
            let what = "nobody asks a version with `shadow = true`: record those that answer, and calibrate this one by `--version` and `--recording`";
            mistakes.push(Mistake::at(recording.file.span(), what));
        }
        if let Some(recording) = recording.and_then(|recording| self.recording(recording, &name, contract.as_ref(), base, &mut mistakes)) {
            detect.record(recording);
        }
        mistakes.extend(file.answer.mistakes());
        if file.prove.mode == prove::Mode::Witnessed && !self.witnesses {
            mistakes.push(Mistake::of_file("prove.mode = \"witnessed\" needs witnesses: [[prove.witness]] in gateway.toml"));
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let prove = prove::Terms::resolve(&file.prove);
        let infer = infer::Terms { backend, shape: file.answer, shadows: Vec::new() };
        let resource = Resource { name: which.name.clone(), public: file.public, tenants: file.tenants };
        let standing = Standing {
            file: path.to_owned(),
            at: file.name.span(),
            resource: resource.clone(),
            serves,
            route: file.route.map(|route| route.path.into_inner()),
            budget: budget.clone(),
            traffic,
            says_share: file.traffic.share.is_some(),
            inputs: contract.map(|contract| contract.inputs),
        };
        let terms = Terms { budget, check, detect, infer, prove };
        Ok((Model { which, resource, serves, traffic, terms: Arc::new(terms) }, standing))
    }

    /// Where what is asked of the model `name` is written down. The file is opened where a gateway runs, and stays open over reloads.
    fn recording(
        &mut self,
        config: &recording::Config,
        name: &str,
        contract: Option<&check::Contract>,
        base: &Path,
        mistakes: &mut Vec<Mistake>,
    ) -> Option<Recording> {
        let before = mistakes.len();
        let (path, caps) = config.resolve(base, contract, mistakes);
        if self.next.recordings.contains_key(&path) {
            mistakes.push(Mistake::at(config.file.span(), "another file under models/ names this recording: give each its own"));
        }
        if mistakes.len() > before {
            return None;
        }
        let book = match (self.engines, self.made.recordings.get(&path)) {
            (Engines::All, Some((of, Some(book)))) if of == name => Some(book.clone()),
            (Engines::All, _) => match Book::open(&path, name, SystemTime::now()) {
                Ok(book) => Some(Arc::new(book)),
                Err(error) => {
                    mistakes.push(Mistake::at(config.file.span(), format!("nothing can be recorded in {}: {error}", path.display())));
                    return None;
                }
            },
            (Engines::None | Engines::Uncalibrated, _) => None,
        };
        self.next.recordings.insert(path.clone(), (name.to_owned(), book.clone()));
        Some(Recording::new(path, caps, book))
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
        // Versions of one name share a path: which of them answers is decided behind it.
        if let Some(other) = self.paths.insert(path.clone(), name.to_owned()).filter(|other| other != name) {
            mistakes.push(Mistake::at(route.path.span(), format!("the model `{other}` has declared `{path}` already")));
        }
    }

    fn backend(&mut self, path: &str, file: &ModelFile, digest: Digest, base: &Path, root: &Path) -> Result<Built, Vec<Mistake>> {
        match file.backend.get_ref() {
            BackendFile { onnx: Some(local), safetensors: None, upstream: None } => self.local(path, file, (Kind::Onnx, local), base, root),
            BackendFile { onnx: None, safetensors: Some(local), upstream: None } => {
                self.local(path, file, (Kind::Safetensors, local), base, root)
            }
            BackendFile { onnx: None, safetensors: None, upstream: Some(upstream) } => {
                let mistakes = unsafe_secrets(upstream, base, root);
                if mistakes.is_empty() { self.upstream(file, digest, upstream, base) } else { Err(mistakes) }
            }
            _ => {
                let what = "a model has one backend: [backend.onnx], [backend.safetensors] or [backend.upstream]";
                Err(vec![Mistake::at(file.backend.span(), what)])
            }
        }
    }

    /// The model in this machine of the file `path`.
    fn local(
        &mut self,
        path: &str,
        file: &ModelFile,
        (kind, config): (Kind, &model::Config),
        base: &Path,
        root: &Path,
    ) -> Result<Built, Vec<Mistake>> {
        let source = config.resolve(kind, file.name.get_ref(), &file.version, base, root)?;
        self.next.named.extend(source.files().cloned());
        self.loaded(path, base.join(config.path.get_ref()), &source).map_err(|what| vec![Mistake::at(file.backend.span(), what)])
    }

    /// The model of the file `path`, which the policy says stands at `written`.
    fn loaded(&mut self, path: &str, written: PathBuf, source: &model::Source) -> Result<Built, String> {
        let which = |digest| Which {
            name: source.name.clone(),
            version: source.version.clone(),
            digest,
            format: source.kind.as_str().into(),
            assurance: Assurance::VerifiedInProcess,
        };
        let built = |which, backend, signature: model::Signature| {
            let embeds = signature.outputs.iter().any(|port| port.name == VECTORS) && source.kind.is_encoder();
            let serves = if embeds { Serves::Embeddings } else { Serves::Oip };
            let model::Signature { inputs, instead, outputs, longest } = signature;
            Built { which, backend, serves, contract: Some(check::Contract { inputs, instead, outputs, longest }) }
        };
        if let Engines::None = self.engines {
            let (digest, signature) = model::Model::contract(source).map_err(|refused| refused.to_string())?;
            return Ok(built(Arc::new(which(Some(digest))), Backend::Nothing, signature));
        }
        // What decides is everything that went into the session, not the file's name.
        let identity = Digest::of(format!("{source:?}").as_bytes());
        let running = match self.made.models.get(&identity) {
            Some(known) if known.model.is_alive() => Running { file: path.to_owned(), ..known.clone() },
            _ => {
                let (folder, seen) = (source.folder(&written), OnDisk::before_loading(source.weights(written)));
                let runtime = || Runtime::load(&Places::of_process(self.library.clone()));
                let loaded = model::Model::load(source, runtime).map_err(|refused| refused.to_string());
                let model = Arc::new(loaded.inspect_err(|why| self.made.refuse(which(source.named()), why))?);
                let others = model.others().iter().zip(std::iter::repeat(&folder));
                let others = others.filter_map(|((name, digest), folder)| Some((OnDisk::loaded_from(folder.as_deref()?, name), *digest)));
                let seen = std::iter::once((seen, model.file())).chain(others);
                let disks = seen.map(|(seen, digest)| Arc::new(seen.under(model.which(), digest, source.bounds.size))).collect();
                Running { file: path.to_owned(), model, disks }
            }
        };
        let model = running.model.clone();
        self.next.models.insert(identity, running);
        let signature = model.signature().clone();
        Ok(built(model.which(), Backend::Model(model), signature))
    }

    fn upstream(&mut self, file: &ModelFile, digest: Digest, config: &upstream::Config, base: &Path) -> Result<Built, Vec<Mistake>> {
        let name = file.name.get_ref();
        let (serves, format) = match config.protocol {
            Protocol::OpenAi => (Serves::OpenAi, "openai"),
            Protocol::Anthropic => (Serves::Anthropic, "anthropic"),
            Protocol::Oip => (Serves::OipHttp, "oip"),
            Protocol::Raw => (Serves::Raw, "raw"),
            Protocol::OipGrpc => {
                return Err(vec![Mistake::at(file.backend.span(), "upstreams of protocol \"oip-grpc\" are not served yet: use \"oip\"")]);
            }
        };
        // The credential may change without the model's file: it is part of what the connections are opened with.
        let credential = config.credential_file.as_ref().and_then(|path| std::fs::read(base.join(path.get_ref())).ok()).unwrap_or_default();
        let named = [&config.credential_file, &config.ca].into_iter().flatten();
        self.next.named.extend(named.map(|path| base.join(path.get_ref())));
        let ca = config.ca.as_ref().and_then(|path| std::fs::read(base.join(path.get_ref())).ok()).unwrap_or_default();
        let identity = Digest::of(&[digest.0.as_slice(), &Digest::of(&credential).0, &Digest::of(&ca).0].concat());
        let version = (name.clone(), file.version.clone());
        let upstream = match self.made.upstreams.get(&version) {
            Some((known, upstream)) if *known == identity => upstream.clone(),
            _ => Upstream::new(config, base)?,
        };
        self.next.upstreams.insert(version, (identity, upstream.clone()));
        let which = Which {
            name: name.as_str().into(),
            version: file.version.as_str().into(),
            digest: None,
            format: format.into(),
            assurance: Assurance::UpstreamAsserted,
        };
        let backend = match self.engines {
            Engines::None => Backend::Nothing,
            Engines::All | Engines::Uncalibrated => Backend::Upstream(upstream),
        };
        Ok(Built { backend, serves, which: Arc::new(which), contract: None })
    }
}

/// Who answers for a model, and what it says of itself.
struct Built {
    backend: Backend,
    serves: Serves,
    which: Arc<Which>,
    contract: Option<check::Contract>,
}

/// What would carry a secret out of the house, or fetch a file from outside of it; found before any file is opened.
fn unsafe_secrets(config: &upstream::Config, base: &Path, root: &Path) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    for (key, file) in [("credential_file", &config.credential_file), ("ca", &config.ca)] {
        let Some(file) = file else { continue };
        // What is not there at all is told by the part that reads it; links are followed.
        let real = (base.join(file.get_ref()).canonicalize(), root.canonicalize());
        if let (Ok(path), Ok(root)) = real
            && !path.starts_with(root)
        {
            mistakes.push(Mistake::at(file.span(), format!("{key} leaves the policy folder: put the file inside it")));
        }
    }
    if config.credential_file.is_some() {
        for url in config.urls.get_ref() {
            let Ok(origin) = Origin::parse(url.get_ref()) else { continue };
            let loopback = origin.host() == "localhost" || origin.host().parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
            if !origin.is_https() && !loopback {
                let what = "a credential is not sent over plain HTTP to another machine: write https://, or leave out credential_file";
                mistakes.push(Mistake::at(url.span(), what));
            }
        }
    }
    mistakes
}

/// Whether `text` can stand in a path, a header and a label as it is.
fn speakable(text: &str, longest: usize) -> bool {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'%' | b'?' | b'#' | b'\\' | b'"'));
    let segments = text.split('/').all(|segment| !matches!(segment, "" | "." | ".."));
    plain && segments && text.len() <= longest
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &str = "name = \"chat\"\n[backend.upstream]\nprotocol = \"openai\"\n";

    /// What is told of a folder whose only model is this.
    fn told(model: &str) -> Told {
        told_with("", model)
    }

    fn told_with(accept: &str, model: &str) -> Told {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("policies");
        std::fs::create_dir_all(dir.join("models")).unwrap();
        std::fs::create_dir_all(dir.join("keys")).unwrap();
        let write = |file: &str, text: &str| std::fs::write(dir.join(file), text).unwrap();
        let gateway = format!(
            "[accept]\nlisten = \"127.0.0.1:0\"\ntls = \"off\"\n{accept}\n[prove]\ndirectory = \"../log\"\norigin = \"a/b\"\nkey = \"k\"\n"
        );
        write("gateway.toml", &gateway);
        write("access.cedar", "permit (principal, action, resource);");
        write("keys/in.token", "secret");
        write("../out.token", "secret");
        std::os::unix::fs::symlink("../../out.token", dir.join("keys/link.token")).unwrap();
        let sha256 = Digest::of(b"a secret that is long enough to be none of the known ones");
        write("callers.toml", &format!("[[api_key]]\nid = \"a\"\nsha256 = \"{sha256}\"\ntenant = \"t\"\nroles = []\n"));
        write("models/chat.toml", model);
        load(&dir, Moment::now(), &Made::default(), Engines::None).err().unwrap_or_default()
    }

    #[test]
    fn a_credential_stays_in_the_folder_and_off_plain_http_to_other_machines() {
        let chat = |url: &str, more: &str| told(&format!("{CHAT}urls = [\"{url}\"]\n{more}\n"));
        for url in ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1", "https://models.example"] {
            assert_eq!(chat(url, "credential_file = \"../keys/in.token\""), Vec::<String>::new(), "{url}");
        }
        assert_eq!(chat("http://models.example", ""), Vec::<String>::new());
        let plain = chat("http://models.example", "credential_file = \"../keys/in.token\"");
        assert!(plain.len() == 1 && plain[0].contains("chat.toml:4:9: a credential is not sent over plain HTTP"), "{plain:?}");
        for out in ["../../out.token", "/dev/zero", "../keys/link.token"] {
            for key in ["credential_file", "ca"] {
                let told = chat("https://127.0.0.1:1", &format!("{key} = \"{out}\""));
                assert!(told.len() == 1 && told[0].contains("leaves the policy folder"), "{key} {out}: {told:?}");
            }
        }
    }

    #[test]
    fn an_answer_that_could_tell_nothing_is_a_mistake() {
        let answer = |text: &str| told(&format!("{CHAT}urls = [\"http://127.0.0.1:1\"]\n[answer]\n{text}\n")).len();
        assert_eq!((answer("top = 1"), answer("decimals = 15"), answer("max_body = \"1B\"")), (0, 0, 0));
        assert_eq!((answer("top = 0"), answer("decimals = 16"), answer("max_body = \"0B\"")), (1, 1, 1));
    }

    #[test]
    fn a_mode_that_needs_witnesses_is_a_mistake_without_them() {
        let mode = |mode: &str| told(&format!("{CHAT}urls = [\"http://127.0.0.1:1\"]\n[prove]\nmode = \"{mode}\"\n"));
        for fine in ["async", "durable", "included"] {
            assert_eq!(mode(fine), Vec::<String>::new(), "{fine}");
        }
        assert!(mode("witnessed")[0].contains("needs witnesses"), "{:?}", mode("witnessed"));
    }

    #[test]
    fn limits_that_serve_would_refuse_are_refused_by_check() {
        let chat = format!("{CHAT}urls = [\"http://127.0.0.1:1\"]\n");
        assert_eq!(told_with("", &chat), Vec::<String>::new());
        for accept in ["max_connections = 0", "max_body = \"0B\"", "max_body = \"2GiB\""] {
            assert_eq!(told_with(accept, &chat).len(), 1, "{accept}");
        }
    }
    #[test]
    fn as_many_refused_models_are_told_as_may_be_and_no_more_each_once() {
        let made = Made::default();
        let which =
            || Which { name: "m".into(), version: "".into(), digest: None, format: "onnx".into(), assurance: Assurance::VerifiedInProcess };
        (0..=MAX_REFUSED).for_each(|_| made.refuse(which(), "why"));
        assert_eq!((made.take_refused().len(), made.take_refused().len()), (MAX_REFUSED, 0));
    }
}
