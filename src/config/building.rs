//! Building models from their files: who answers for each, and on what terms.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::authorize::target::{MAX_NAME, is_speakable, is_told_from_endings, is_version};
use crate::authorize::{self, Model, Resource, Serves, Traffic};
use crate::detect::recording::{self, Book, Recording};
use crate::digest::Digest;
use crate::disk::{OnDisk, Sought};
use crate::infer::model::runtime::{Places, Runtime};
use crate::infer::model::{self, Kind, Refused};
use crate::infer::shadow::Shadow;
use crate::infer::upstream::{self, Protocol, Upstream};
use crate::infer::{self, Backend};
use crate::mistake::{Mistake, keys};
use crate::outbound::Origin;
use crate::trail::{Assurance, Which};
use crate::wire::openai::embeddings::VECTORS;
use crate::{check, prove};

use super::kinds;
use super::reading::Reading;
use super::versions::{self, Standing};
use super::{BackendFile, Engines, Made, ModelFile, Running, Terms, Version};

/// Models on their way from files to terms.
pub(super) struct Building<'a> {
    pub(super) global_cap: usize,
    /// Whether anybody could be a witness.
    pub(super) witnesses: bool,
    pub(super) made: &'a Made,
    pub(super) engines: Engines,
    /// Where ONNX Runtime is, if the operator says.
    pub(super) library: Option<PathBuf>,
    /// Whether any model needs it.
    pub(super) runs_onnx: bool,
    pub(super) next: Made,
    /// Declared paths, each with the model that declared it.
    pub(super) paths: BTreeMap<String, String>,
    /// The digests of files of the folder that no policy file names by digest, and that answers depend on.
    pub(super) applied: BTreeMap<String, Digest>,
    /// Files that models name and that are not here, where nothing is started.
    pub(super) missing: Vec<Mistake>,
}

impl Building<'_> {
    pub(super) fn models(&mut self, reading: &mut Reading<'_>) -> Vec<Model<Terms>> {
        let mut seen: BTreeMap<Version, String> = BTreeMap::new();
        // Of names with a file that is wrong in itself nothing is said of how its files stand to each other; a file that cannot be read
        // may have any name.
        let (mut broken, mut unread) = (BTreeSet::new(), false);
        let (mut models, mut standing) = (Vec::new(), Vec::new());
        for file in reading.files("models", ".toml") {
            let text = reading.text(&file);
            let Some((text, parsed)) = text.and_then(|text| reading.parsed::<ModelFile>(&file, &text).map(|parsed| (text, parsed))) else {
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
            let sought = Sought::at(parsed.named(&base));
            reading.warn(&file, &parsed.warnings(&text));
            let built = self.model((&file, &text), parsed, digest, &base, reading.dir, calibration.as_deref());
            if built.is_err() {
                self.made.seek(sought);
            }
            reading.keep::<()>(&file, Err(std::mem::take(&mut self.missing)));
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
    pub(super) fn shadows(&mut self, models: &mut [Model<Terms>]) -> Vec<Arc<Shadow>> {
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
        (path, text): (&str, &str),
        file: ModelFile,
        digest: Digest,
        base: &Path,
        root: &Path,
        calibration: Option<&str>,
    ) -> Result<(Model<Terms>, Standing), Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let name = file.name.get_ref().clone();
        if !is_speakable(&name, MAX_NAME) || !is_speakable(&file.version, MAX_NAME) && !file.version.is_empty() {
            let what = format!(
                "a name or version is 1 to {MAX_NAME} visible ASCII characters without `%`, `?`, `#`, `\\` or `\"`, and no path segment is empty, `.` or `..`"
            );
            mistakes.push(Mistake::at(file.name.span(), what));
        }
        if file.takes_tensors() && !is_told_from_endings(&name) {
            let what = "nobody could ask /v2/models for this name: it ends in no `/infer`, `/ready` or `/card`, and no segment behind its first is `versions`";
            mistakes.push(Mistake::at(file.name.span(), what));
        }
        if file.takes_tensors() && !is_version(&file.version) {
            let at = keys::place(text, "version").unwrap_or_else(|| file.name.span());
            mistakes.push(Mistake::at(at, "nobody could ask /v2/models for this version: it has no `/` in it"));
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
        mistakes.extend(kinds::mistakes(text, kinds::Of::new(serves, contract.as_ref())));
        if (serves == Serves::Raw) != file.route.is_some() {
            mistakes.push(Mistake::at(
                file.backend.span(),
                "`[route]` and an upstream of protocol \"raw\" belong together: give both or neither",
            ));
        }
        let renamed = file.backend.get_ref().upstream.as_ref().is_some_and(|upstream| {
            upstream.model.as_ref().is_some_and(|theirs| *theirs != name)
                || upstream.model_version.as_ref().is_some_and(|theirs| *theirs.get_ref() != file.version)
        });
        let withholds =
            file.backend.get_ref().upstream.is_some() && file.detect.withholds(matches!(serves, Serves::OpenAi | Serves::Anthropic));
        if file.answer.stream && (renamed || file.answer.top.is_some() || file.answer.decimals.is_some() || withholds) {
            let what = "`answer.stream` lets large answers pass unread, so that nothing in them can be changed: leave out `top`, `decimals`, the upstream's `model` and `model_version`, an enforced `detect.leak` (it has the mode of `[detect]` where it says none) and budgets of `detect.exposure`";
            mistakes.push(Mistake::at(file.backend.span(), what));
        }
        if let (Serves::Embeddings, Some(schema)) = (serves, &file.check.schema) {
            let what = "an encoder that embeds is asked in two forms, and a schema holds for one: bound it by `max_batch` and `max_length`";
            mistakes.push(Mistake::at(schema.span(), what));
        }
        let (mode, inputs) = file.detect.graded();
        let later = check::ByName { mode, inputs: &inputs };
        let around = check::Around { policies: root, folder: base, max_body: self.global_cap, contract: contract.as_ref(), later };
        let mut check = file.check.compile(around, &mut mistakes);
        if let Some(explain) = &file.explain {
            self.next.named.push(base.join(explain.background.get_ref()));
            check.explain(explain, around, &mut mistakes);
        }
        if let (Some(_), Some(fidelity), None) = (&file.explain, &file.detect.exposure.fidelity, &file.detect.exposure.bits) {
            let what = "explanations tell a model faster than copies of it are tried: bound `bits` beside it, or leave `[explain]` out";
            mistakes.push(Mistake::at(fidelity.span(), what));
        }
        let budget = file.budget.compile(&mut mistakes);
        let mut detect = file.detect.compile(calibration, contract.as_ref(), &mut mistakes);
        if detect.is_watched() {
            check.watch_rows();
        }
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
        let plain = path.starts_with('/') && path.len() > 1 && !path.ends_with('/') && is_speakable(&path[1..], 1024);
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
        if let Some((path, bytes)) = &source.calibration {
            let root = root.canonicalize();
            let name = root.ok().and_then(|root| path.strip_prefix(root).ok()).unwrap_or(path);
            self.applied.insert(name.to_string_lossy().into_owned(), Digest::of(bytes));
        }
        self.runs_onnx |= kind == Kind::Onnx;
        self.loaded(path, base.join(config.path.get_ref()), &source).map_err(|refused| {
            let at = if let Refused::Unreadable(..) = refused { config.path.span() } else { file.backend.span() };
            vec![Mistake::at(at, refused.to_string())]
        })
    }

    /// The model of the file `path`, which the policy says stands at `written`.
    fn loaded(&mut self, path: &str, written: PathBuf, source: &model::Source) -> Result<Built, Refused> {
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
            let model::Signature { inputs, instead, outputs, longest, apart } = signature;
            Built { which, backend, serves, contract: Some(check::Contract { inputs, instead, outputs, longest, apart }) }
        };
        if let Engines::None = self.engines {
            let (digest, signature) = model::Model::contract(source)?;
            return Ok(built(Arc::new(which(Some(digest))), Backend::Nothing, signature));
        }
        // What decides is everything that went into the session, not the file's name.
        let identity = Digest::of(format!("{source:?}").as_bytes());
        let running = match self.made.models.get(&identity) {
            Some(known) if known.model.is_alive() => Running { file: path.to_owned(), ..known.clone() },
            _ => {
                let (folder, seen) = (source.folder(&written), OnDisk::before_loading(source.weights(written)));
                let runtime = || Runtime::load(&Places::of_process(self.library.clone()));
                let loaded = model::Model::load(source, runtime);
                let model = Arc::new(loaded.inspect_err(|why| self.made.refuse(which(source.named()), &why.to_string()))?);
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
            Protocol::OipGrpc => (Serves::OipGrpc, "oip-grpc"),
        };
        // The credential may change without the model's file: it is part of what the connections are opened with.
        let credential = config.credential_file.as_ref().and_then(|path| std::fs::read(base.join(path.get_ref())).ok()).unwrap_or_default();
        let named = [&config.credential_file, &config.ca].into_iter().flatten();
        self.next.named.extend(named.map(|path| base.join(path.get_ref())));
        let ca = config.ca.as_ref().and_then(|path| std::fs::read(base.join(path.get_ref())).ok()).unwrap_or_default();
        let identity = Digest::of(&[digest.0.as_slice(), &Digest::of(&credential).0, &Digest::of(&ca).0].concat());
        let version = (name.clone(), file.version.clone());
        let upstream = match self.made.upstreams.get(&version) {
            Some((known, upstream)) if *known == identity => Ok(upstream.clone()),
            _ => Upstream::new(config, base),
        };
        let upstream = match upstream {
            Ok(upstream) => Some(upstream),
            Err(mistakes) if self.engines.starts_all() || mistakes.iter().any(|mistake| !mistake.absent) => return Err(mistakes),
            Err(missing) => {
                self.missing.extend(missing);
                None
            }
        };
        self.next.upstreams.extend(upstream.clone().map(|upstream| (version, (identity, upstream))));
        let which = Which {
            name: name.as_str().into(),
            version: file.version.as_str().into(),
            digest: None,
            format: format.into(),
            assurance: Assurance::UpstreamAsserted,
        };
        let backend = match (self.engines, upstream) {
            (Engines::None, _) | (_, None) => Backend::Nothing,
            (Engines::All | Engines::Uncalibrated, Some(upstream)) => Backend::Upstream(upstream),
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
