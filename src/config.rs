//! The policy folder: read once, whole, compiled into one immutable [`Snapshot`], or refused with every mistake told.
//!
//! Each part owns its own configuration; this file composes them and knows where they stand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::Deserialize;

use crate::authenticate::{Authenticator, Failures};
use crate::authorize::{self, Authorizer, Policies, Routes};
use crate::clock::Moment;
use crate::detect::recording::Book;
use crate::digest::Digest;
use crate::disk::{OnDisk, Sought};
use crate::infer::model::{self, runtime::Runtime};
use crate::infer::shadow::{Shadow, Tally};
use crate::infer::upstream::{self, Protocol, Upstream};
use crate::infer::{self, Backend};
use crate::life::{MAX_REFUSED, Refusal, Turn};
use crate::mistake::{Mistake, keys};
use crate::mode::Mode;
use crate::prove::Changed;
use crate::trail::Which;
use crate::wire::json;
use crate::{accept, admin, authenticate, budget, check, detect, prove, record, state};

use building::Building;
pub use listeners::Listeners;
use reading::Reading;
pub use start::AtStart;

mod building;
mod kinds;
mod listeners;
mod reading;
mod start;
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
    /// What callers may ask of the gateway itself: requests that name no model.
    #[serde(default)]
    pub budget: budget::Config,
    /// What outlives the process beside the log; nothing unless configured.
    pub state: Option<state::Config>,
}

impl Gateway {
    /// What is wrong with it, as far as its own text says.
    fn mistakes(&self) -> Vec<Mistake> {
        let mut mistakes = self.prove.mistakes();
        mistakes.extend(self.record.mistakes());
        self.budget.compile_serverwide(&mut mistakes);
        mistakes
    }

    /// Whether nothing is wrong with what it says of its listeners itself.
    fn may_listen(&self) -> bool {
        self.accept.limits().is_ok() && self.admin.as_ref().and_then(admin::mistake).is_none()
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

impl ModelFile {
    /// What is allowed and may be an oversight.
    fn warnings(&self, text: &str) -> Vec<Mistake> {
        let upstream = self.backend.get_ref().upstream.iter();
        upstream.flat_map(|upstream| upstream.warnings().chain(self.unnamed(upstream, text))).collect()
    }

    /// Whether the Open Inference Protocol's routes lead to it.
    fn takes_tensors(&self) -> bool {
        let upstream = self.backend.get_ref().upstream.as_ref();
        upstream.is_none_or(|upstream| matches!(upstream.protocol, Protocol::Oip | Protocol::OipGrpc))
    }

    /// That detectors act upon rows which the model need not have seen.
    fn unnamed(&self, upstream: &upstream::Config, text: &str) -> Option<Mistake> {
        let tensors = matches!(upstream.protocol, Protocol::Oip | Protocol::OipGrpc);
        let (mode, inputs) = self.detect.graded();
        let held = self.check.holds_names(check::ByName { mode, inputs: &inputs });
        let at = keys::place(text, "detect.mode").filter(|_| tensors && self.detect.mode == Some(Mode::Enforce) && !held)?;
        let what = "tensors of any name may be sent, and one that the model's server passes over hides rows from detectors: name the model's inputs in check.inputs, and enforce them";
        Some(Mistake::at(at, what))
    }

    /// The files and folders that it names, whether they are there or not. `base` is its own folder.
    fn named(&self, base: &Path) -> Vec<PathBuf> {
        let BackendFile { onnx, safetensors, upstream } = self.backend.get_ref();
        let here = [onnx, safetensors].into_iter().flatten().flat_map(|local| local.named(base));
        let there = upstream.iter().flat_map(|upstream| [&upstream.credential_file, &upstream.ca]).flatten();
        let background = self.explain.iter().map(|explain| base.join(explain.background.get_ref()));
        here.chain(there.map(|file| base.join(file.get_ref()))).chain(background).collect()
    }
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
    /// What the last load named and could not use, as it was before.
    sought: Arc<Mutex<Sought>>,
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

    /// What the last load named and could not use; where it was refused, a change of that is a reason for the next.
    #[must_use]
    pub fn take_sought(&self) -> Sought {
        std::mem::take(&mut *self.sought.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn seek(&self, more: Sought) {
        self.sought.lock().unwrap_or_else(PoisonError::into_inner).extend(more);
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
    /// What of it is in force from the start on.
    pub at_start: AtStart,
    /// Its listeners; none where files of theirs are not here, and nothing is to be started.
    pub listeners: Option<Listeners>,
    /// Files that a start wants and that are not here, where nothing is to be started; as mistakes are told.
    pub missing: Told,
    /// What is allowed and may be an oversight, told in the same way.
    pub warnings: Told,
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
    let mut reading = Reading::of(dir, true);
    reading.toml::<Gateway>("gateway.toml").filter(|gateway| gateway.mistakes().is_empty() && gateway.may_listen())
}

/// Reads and compiles the folder `dir`.
///
/// With engines models are loaded and upstreams opened; `check` passes none, and everything else is compiled and verified. Keys,
/// certificates and libraries that are not here are no mistakes then: whoever checks policies rarely has them.
///
/// # Errors
/// Every mistake in every file.
pub fn load(dir: &Path, now: Moment, made: &Made, engines: Engines) -> Result<Loaded, Told> {
    let mut reading = Reading::of(dir, !engines.starts_all());
    let text = reading.text("gateway.toml");
    let gateway: Option<Gateway> = text.as_ref().and_then(|text| reading.parsed("gateway.toml", text));
    let listeners = gateway.as_ref().and_then(|gateway| {
        reading.keep::<()>("gateway.toml", Err(gateway.mistakes()));
        reading.keep::<()>("gateway.toml", Err(gateway.state.iter().filter_map(|state| state.mistake(dir)).collect()));
        if let Engines::None = engines {
            reading.keep::<()>("gateway.toml", Err(gateway.prove.look(dir)));
        }
        reading.keep("gateway.toml", Listeners::resolve(gateway, dir))
    });
    drop(made.take_sought());
    let callers: Option<authenticate::Config> = reading.toml("callers.toml");
    // These files are read before it is known whether all is well, or by who takes in what was loaded.
    let key_sets = callers.iter().flat_map(|callers| &callers.issuer).filter_map(|issuer| issuer.jwks_file.as_ref());
    let library = gateway.as_ref().and_then(|gateway| gateway.runtime.onnxruntime.as_ref()).map(|path| dir.join(path.get_ref()));
    let of_gateway = gateway.iter().flat_map(Gateway::tls_files).map(|file| dir.join(file)).chain(library.clone());
    made.seek(Sought::at(key_sets.map(|file| dir.join(file.get_ref())).chain(of_gateway)));
    let authenticator = callers.and_then(|callers| {
        let compiled = Authenticator::compile(&callers, dir, made.failures(gateway.as_ref()), now);
        let authenticator = reading.keep("callers.toml", compiled)?;
        reading.warn("callers.toml", authenticator.warnings());
        Some(authenticator)
    });
    let policies = reading.text("access.cedar").and_then(|text| {
        let compiled = Policies::compile(&text, "access.cedar");
        reading.keep("access.cedar", compiled)
    });
    let global_cap = gateway.as_ref().map_or(accept::config::MAX_BODY.0, |gateway| gateway.accept.max_body.0);
    // Where the engines are is not known without it, and nothing of this will be in force. Models that run need no other.
    let engines = if gateway.is_some() || !made.models.is_empty() { engines } else { Engines::None };
    let (failures, refused, sought) = (made.failures.clone(), made.refused.clone(), made.sought.clone());
    let next = Made { failures, refused, sought, ..Made::default() };
    let witnesses = gateway.as_ref().is_none_or(|gateway| gateway.prove.has_witnesses());
    let (paths, applied, missing) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    let mut building = Building { global_cap, witnesses, made, engines, library, runs_onnx: false, next, paths, applied, missing };
    let mut models = building.models(&mut reading);
    reading.digest.append(&mut building.applied);
    let shadows = building.shadows(&mut models);
    // Models that were to be started and were not have told of it.
    let named = gateway.as_ref().and_then(|gateway| gateway.runtime.onnxruntime.as_ref()).filter(|_| building.runs_onnx);
    if let Some(named) = named.filter(|_| reading.checks || reading.told.is_empty()) {
        let broken = Runtime::look(dir.join(named.get_ref())).err().map(|broken| {
            let mistake = Mistake::at(named.span(), broken.to_string());
            broken.unopened().map_or(mistake.clone(), |error| mistake.unopened(&error))
        });
        reading.keep::<()>("gateway.toml", Err(Vec::from_iter(broken)));
    }

    let digest = reading.finish();
    match (gateway, authenticator, policies) {
        (Some(gateway), Some(authenticator), Some(policies)) if reading.told.is_empty() => {
            let body_cap = models.iter().map(|model| model.terms.check.max_body()).fold(global_cap, usize::max);
            let routes = Routes::new(building.paths.into_iter().map(|(path, model)| (path.into(), model.into())));
            let serverwide =
                Terms::serverwide(global_cap, &gateway.budget, prove::Terms::of_all(models.iter().map(|model| &model.terms.prove)));
            let authorizer = Authorizer::new(routes, policies, models, serverwide, body_cap, json::Limits::for_body(body_cap));
            let turns = building.next.turns_since(building.made);
            let disks = building.next.models.values().flat_map(|running| running.disks.iter().cloned()).collect();
            let mut made = building.next;
            made.named.extend(gateway.tls_files().map(|file| dir.join(file)));
            made.named.extend(authenticator.sources().filter_map(|source| source.file()).map(Path::to_owned));
            let snapshot = Snapshot { digest, authenticator, authorizer, shadows, disks };
            let at_start = AtStart::of(&text.unwrap_or_default());
            let Reading { missing, warnings, .. } = reading;
            Ok(Loaded { gateway, at_start, listeners, missing, warnings, snapshot, made, turns })
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

impl Engines {
    /// Whether all that the policies name is to be started, and so to be here.
    fn starts_all(self) -> bool {
        matches!(self, Self::All)
    }
}

impl Terms {
    /// For requests that name no model: lists, server metadata, receipts.
    fn serverwide(global_cap: usize, budget: &budget::Config, prove: prove::Terms) -> Self {
        Self {
            // Its mistakes were told with the gateway's.
            budget: budget.compile_serverwide(&mut Vec::new()),
            check: check::Terms::without_model(global_cap),
            detect: detect::Terms::default(),
            infer: infer::Terms { backend: Backend::Nothing, shape: infer::shape::Config::default(), shadows: Vec::new() },
            prove,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trail::Assurance;

    const CHAT: &str = "name = \"chat\"\n[backend.upstream]\nprotocol = \"openai\"\n";

    /// What is told of a folder whose only model is this.
    fn told(model: &str) -> Told {
        told_with("", model)
    }

    fn told_with(accept: &str, model: &str) -> Told {
        let home = home_with(accept, model);
        load(&home.path().join("policies"), Moment::now(), &Made::default(), Engines::None).err().unwrap_or_default()
    }

    fn home_with(accept: &str, model: &str) -> tempfile::TempDir {
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
        home
    }

    #[test]
    fn the_digest_of_the_policy_covers_the_temperatures_that_answers_depend_on() {
        let onnx = include_bytes!("../policies/models/digits.onnx");
        let block = format!("[backend.onnx]\npath = \"d.onnx\"\nsha256 = \"{}\"\ncalibration = \"t.json\"", Digest::of(onnx));
        let home = home_with("", &format!("name = \"digits\"\n{block}\n"));
        let dir = home.path().join("policies");
        std::fs::write(dir.join("models/d.onnx"), onnx).unwrap();
        let digest = |temperature: &str| {
            let text = format!(r#"{{"probabilities":{{"temperature":{temperature},"of":"probabilities","activation":"softmax"}}}}"#);
            std::fs::write(dir.join("models/t.json"), text).unwrap();
            load(&dir, Moment::now(), &Made::default(), Engines::None).unwrap().snapshot.digest
        };
        let [two, five, again] = ["2.0", "5.0", "2.0"].map(digest);
        assert!(two != five && two == again);
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
        let oip = CHAT.replace("openai", "oip");
        let answer = |text: &str| told(&format!("{oip}urls = [\"http://127.0.0.1:1\"]\n[answer]\n{text}\n")).len();
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
    fn what_is_wrong_in_record_is_told_with_its_place_before_anything_starts() {
        let chat = format!("{CHAT}urls = [\"http://127.0.0.1:1\"]\n");
        let record = |text: &str| told_with(&format!("[record]\n{text}"), &chat);
        for fine in ["sample = 1.0", "otlp = \"http://127.0.0.1:4318\"", "security_log = \"no/such/folder/security.log\""] {
            assert_eq!(record(fine), Vec::<String>::new(), "{fine}");
        }
        for wrong in ["sample = 2.0", "otlp = \"foo\"", "otlp = \"ftp://127.0.0.1\"", "otlp_protocol = \"http\"", "security_log = \"\""] {
            let told = record(wrong);
            assert!(told.len() == 1 && told[0].contains("gateway.toml:5:"), "{wrong}: {told:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_and_nothing_is_said_to_be_missing_for_it() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path();
        std::fs::write(dir.join("access.cedar"), "").unwrap();
        std::fs::write(dir.join("callers.toml"), "").unwrap();
        std::fs::write(dir.join("models"), "no folder").unwrap();
        let load = || load(dir, Moment::now(), &Made::default(), Engines::All).unwrap_err();
        let told = load();
        assert!(told.iter().any(|line| line.contains("/models: Not a directory")), "{told:?}");
        assert!(!told.iter().any(|line| line.contains("no model")), "{told:?}");
        // A model that would need an engine, of which gateway.toml may say where it is.
        std::fs::remove_file(dir.join("models")).unwrap();
        std::fs::create_dir(dir.join("models")).unwrap();
        let onnx = include_bytes!("../policies/models/digits.onnx");
        std::fs::write(dir.join("models/digits.onnx"), onnx).unwrap();
        let text = format!(
            "name = \"digits\"\n[backend.onnx]\npath = \"digits.onnx\"\nsha256 = \"{}\"\nisolation = \"thread\"\n",
            Digest::of(onnx)
        );
        std::fs::write(dir.join("models/digits.toml"), text).unwrap();
        let made = Made::default();
        let told = super::load(dir, Moment::now(), &made, Engines::All).unwrap_err();
        assert!(told.len() == 1 && told[0].contains("gateway.toml: No such file"), "{told:?}");
        assert!(made.models.is_empty() && made.take_refused().is_empty());
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
