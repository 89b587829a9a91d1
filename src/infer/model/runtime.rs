//! ONNX Runtime, the one library that is loaded at run time: found, held to its digest, and loaded from the very bytes that were hashed.
//!
//! The file is read once. Its bytes go into a sealed memory file, and that is what the dynamic linker opens: whoever changes the file on
//! disk meanwhile changes nothing here.
//!
//! 1.28.0 is pinned because it is the last official build without telemetry. Workers have `ORT_DISABLE_TELEMETRY` in their environment all
//! the same; the gateway cannot set it for itself without `unsafe`. With this build there is nothing to disable, and any other is refused
//! by its digest.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use memfd::{FileSeal, Memfd, MemfdOptions};
use ort::environment::Environment;
use serde::Deserialize;
use toml::Spanned;

use crate::digest::Digest;

/// The version that is pinned. A newer one means new digests here and in `scripts/onnxruntime`.
pub const VERSION: &str = "1.28.0";

/// SHA-256 of `libonnxruntime.so`, version 1.28.0, Linux on x86-64, as the official Python wheel has it.
pub const SHA256: &str = "aa4079d18f4ea7a5f3a94d80cd4bbe0f2740436626622d64d793803a20381083";

/// The environment variable that names the library.
pub const VARIABLE: &str = "PORTCULLIS_ONNXRUNTIME";

/// The library's file name.
const FILE: &str = "libonnxruntime.so";

/// No library is larger: it is 22 to 29 MB. Bytes.
const MAX_LIBRARY: u64 = 128 << 20;

/// `[runtime]` of `gateway.toml`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where ONNX Runtime is; by default it is searched for ([`Places`]).
    pub onnxruntime: Option<Spanned<PathBuf>>,
}

/// Where the library may be, in the order in which it is looked for.
///
/// A place that the operator names must hold it: a typing error never falls through to another library.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// The key `runtime.onnxruntime`.
    pub configured: Option<PathBuf>,
    /// `$PORTCULLIS_ONNXRUNTIME`.
    pub variable: Option<PathBuf>,
    /// The folder of the executable.
    pub beside: Option<PathBuf>,
    /// `${XDG_DATA_HOME:-~/.local/share}`.
    pub data: Option<PathBuf>,
}

impl Places {
    /// The places of this process.
    #[must_use]
    pub fn of_process(configured: Option<PathBuf>) -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            configured,
            variable: variable(VARIABLE),
            beside: std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf)),
            // The base directory specification says to ignore a relative XDG_DATA_HOME.
            data: variable("XDG_DATA_HOME")
                .filter(|data| data.is_absolute())
                .or_else(|| variable("HOME").map(|home| home.join(".local/share"))),
        }
    }

    /// The library's path.
    ///
    /// # Errors
    /// [`Broken::Missing`] when it is at none of the places, or not at the one that the operator named.
    pub fn find(&self) -> Result<PathBuf, Broken> {
        for (named, by) in [(&self.configured, "runtime.onnxruntime"), (&self.variable, "$PORTCULLIS_ONNXRUNTIME")] {
            if let Some(path) = named {
                return if path.is_file() { Ok(path.clone()) } else { Err(Broken::Missing { named: Some((by, path.clone())) }) };
            }
        }
        let beside = self.beside.as_ref().map(|folder| folder.join(FILE));
        let data = self.data.as_ref().map(|data| data.join(format!("portcullis/onnxruntime-{VERSION}")).join(FILE));
        beside.into_iter().chain(data).find(|path| path.is_file()).ok_or(Broken::Missing { named: None })
    }
}

/// Why ONNX Runtime cannot be used. A gateway without ONNX models never meets it.
#[derive(Clone, Debug)]
pub enum Broken {
    /// It is not there.
    Missing {
        /// Who named the path, and the path; none when it was searched for.
        named: Option<(&'static str, PathBuf)>,
    },
    /// The file could not be read.
    Unreadable(PathBuf, Arc<io::Error>),
    /// The file is not the library whose digest is compiled in.
    WrongDigest {
        /// The file.
        path: PathBuf,
        /// What it hashes to.
        found: Digest,
    },
    /// The kernel gave no sealed memory file.
    NoSealedMemory(String),
    /// The library did not load or did not start.
    DidNotStart(String),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { named: Some((by, path)) } => {
                write!(f, "ONNX Runtime {VERSION} is not at {}, which {by} names: ", path.display())?;
            }
            Self::Missing { named: None } => {
                write!(f, "ONNX Runtime {VERSION} is not on this machine, and a model needs it: ")?;
            }
            Self::Unreadable(path, error) => return write!(f, "{} cannot be read: {error}", path.display()),
            Self::WrongDigest { path, found } => {
                let path = path.display();
                write!(f, "{path} is not the ONNX Runtime that this program was built for: its SHA-256 is {found}, not {SHA256}: ")?;
            }
            Self::NoSealedMemory(error) => return write!(f, "the kernel gives no sealed memory file (memfd_create): {error}"),
            Self::DidNotStart(error) => return write!(f, "ONNX Runtime {VERSION} did not start: {error}"),
        }
        f.write_str("run `make runtime` (or scripts/onnxruntime), which fetches it and holds it to its hash")
    }
}

impl std::error::Error for Broken {}

impl Broken {
    /// Why it could not be opened, if that is all.
    #[must_use]
    pub fn unopened(&self) -> Option<io::Error> {
        match self {
            Self::Missing { .. } => Some(io::ErrorKind::NotFound.into()),
            Self::Unreadable(_, error) => Some(error.kind().into()),
            Self::WrongDigest { .. } | Self::NoSealedMemory(_) | Self::DidNotStart(_) => None,
        }
    }
}

/// ONNX Runtime: its library, verified and sealed. Whether it is ever loaded into this process is another question: workers are handed the
/// sealed bytes.
#[derive(Clone, Debug)]
pub struct Runtime(Arc<Memfd>);

/// Kept for ever, so that the library is read once.
static FOUND: Mutex<Option<(PathBuf, Runtime)>> = Mutex::new(None);

/// Kept for ever: the environment can be made only once in a process, so dropping it would close the door behind us.
static LOADED: Mutex<Option<Environment>> = Mutex::new(None);

impl Runtime {
    /// Finds the library, holds it to the digest that is compiled in, and keeps those bytes; about 100 ms. Further calls answer at once;
    /// after an error it may be tried again.
    ///
    /// # Errors
    /// [`Broken`], which says how to get the library.
    pub fn load(places: &Places) -> Result<Self, Broken> {
        let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, runtime)) = &*found {
            return Ok(runtime.clone());
        }
        let path = places.find()?;
        let runtime = Self(Arc::new(sealed_library(&path)?));
        *found = Some((path, runtime.clone()));
        Ok(runtime)
    }

    /// Whether the library may be loaded from the place that the policy names. Where it was, it is not read again.
    ///
    /// # Errors
    /// [`Broken`], as of [`Self::load`].
    pub fn look(configured: PathBuf) -> Result<(), Broken> {
        let found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
        if found.as_ref().is_some_and(|(path, _)| *path == configured) {
            return Ok(());
        }
        sealed_library(&Places { configured: Some(configured), ..Places::default() }.find()?).map(drop)
    }

    /// The library that the gateway hands to a worker, which it held to its digest.
    pub(super) fn from_sealed(library: OwnedFd) -> Result<Self, Broken> {
        let library = Memfd::try_from_fd(library).map_err(|_| Broken::NoSealedMemory("not a memory file".to_owned()))?;
        Ok(Self(Arc::new(library)))
    }

    /// The sealed library.
    pub(super) fn library(&self) -> &Arc<Memfd> {
        &self.0
    }

    /// The environment of this process. It is made, and the library loaded, the first time: 20 to 90 ms.
    pub(super) fn environment(&self) -> Result<Environment, Broken> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(environment) = &*loaded {
            return Ok(environment.clone());
        }
        let path = format!("/proc/self/fd/{}", self.0.as_file().as_raw_fd());
        let environment = ort::init_from(path).map_err(|error| Broken::DidNotStart(error.to_string()))?;
        let environment = environment.with_name("portcullis").with_telemetry(false).build();
        let environment = environment.map_err(|error| Broken::DidNotStart(error.to_string()))?;
        environment.set_log_level(ort::logging::LogLevel::Fatal);
        *loaded = Some(environment.clone());
        Ok(environment)
    }
}

/// The library at `path` in a memory file that nobody can change any more.
fn sealed_library(path: &Path) -> Result<Memfd, Broken> {
    let unreadable = |error| Broken::Unreadable(path.to_path_buf(), Arc::new(error));
    let mut bytes = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(MAX_LIBRARY).read_to_end(&mut bytes)).map_err(unreadable)?;
    let found = Digest::of(&bytes);
    if Ok(found) != SHA256.parse() {
        return Err(Broken::WrongDigest { path: path.to_path_buf(), found });
    }
    sealed(FILE, &bytes).map_err(Broken::NoSealedMemory)
}

/// `bytes` in a sealed memory file.
fn sealed(name: &str, bytes: &[u8]) -> Result<Memfd, String> {
    sealed_by(name, |mut memory| memory.write_all(bytes))
}

/// What `write` writes, in a sealed memory file.
pub(super) fn sealed_by(name: &str, write: impl FnOnce(&std::fs::File) -> io::Result<()>) -> Result<Memfd, String> {
    let memory = MemfdOptions::new().allow_sealing(true).create(name).map_err(|error| error.to_string())?;
    write(memory.as_file()).map_err(|error| error.to_string())?;
    let seals = [FileSeal::SealWrite, FileSeal::SealGrow, FileSeal::SealShrink, FileSeal::SealSeal];
    memory.add_seals(&seals).map_err(|error| error.to_string())?;
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(name: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"a library").unwrap();
        folder
    }

    #[test]
    fn places_are_tried_in_the_order_of_the_policy_page() {
        let at = "portcullis/onnxruntime-1.28.0/libonnxruntime.so";
        let (configured, variable, beside, data) = (folder_with("one.so"), folder_with("two.so"), folder_with(FILE), folder_with(at));
        let mut places = Places {
            configured: Some(configured.path().join("one.so")),
            variable: Some(variable.path().join("two.so")),
            beside: Some(beside.path().into()),
            data: Some(data.path().into()),
        };
        assert_eq!(places.find().unwrap(), configured.path().join("one.so"));
        places.configured = None;
        assert_eq!(places.find().unwrap(), variable.path().join("two.so"));
        places.variable = None;
        assert_eq!(places.find().unwrap(), beside.path().join(FILE));
        places.beside = None;
        assert_eq!(places.find().unwrap(), data.path().join(at));
        places.data = None;
        let message = places.find().unwrap_err().to_string();
        assert!(message.contains("make runtime"), "{message}");
    }

    #[test]
    fn a_named_place_never_falls_through_to_another() {
        let beside = folder_with(FILE);
        for by_key in [true, false] {
            let mut places = Places { beside: Some(beside.path().into()), ..Places::default() };
            *(if by_key { &mut places.configured } else { &mut places.variable }) = Some("/nonexistent/lib.so".into());
            let message = places.find().unwrap_err().to_string();
            assert!(message.contains("/nonexistent/lib.so") && message.contains("make runtime"), "{message}");
        }
    }

    #[test]
    fn a_library_with_another_digest_is_not_loaded() {
        let folder = folder_with(FILE);
        let error = sealed_library(&folder.path().join(FILE)).unwrap_err();
        assert!(matches!(error, Broken::WrongDigest { .. }));
        assert!(error.to_string().contains("make runtime"), "{error}");
    }

    #[test]
    fn sealed_bytes_cannot_be_changed() {
        let memory = sealed("test", b"the bytes").unwrap();
        assert!(memory.as_file().write_all(b"others").is_err());
        assert!(memory.as_file().set_len(1).is_err());
        assert!(memory.as_file().set_len(100).is_err());
        let mut again = String::new();
        std::fs::File::open(format!("/proc/self/fd/{}", memory.as_file().as_raw_fd())).unwrap().read_to_string(&mut again).unwrap();
        assert_eq!(again, "the bytes");
    }
}
