//! What a worker that was taken over would try, tried: `portcullis walls`.
//!
//! For each attempt a worker is started, walled in as any other, which then makes it, either where an engine's library is being loaded or
//! where a model runs. It is refused by the kernel, or the worker is killed, or it succeeds, and then there is a hole.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use super::super::engine::{Engine, Stop};
use super::super::isolate;
use super::super::{Error, Isolation, Refused, Signature, Walls};
use super::{How, Inmate, Launch, Process, memory_for};
use crate::wire::tensor::{Datatype, Port, Tensor};

/// How long one attempt may take.
const LIMIT: Duration = Duration::from_secs(10);

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is told by its name")]
pub enum Attempt {
    ReadPasswords,
    ReadAnotherEnvironment,
    ListProcesses,
    WriteAFile,
    MakeAMemoryFile,
    OpenAnInternetSocket,
    OpenALocalSocket,
    StartAProgram,
    MakeAProcess,
    MakeAThread,
    TraceTheGateway,
    SignalTheGateway,
    MakeMemoryExecutable,
    RaiseItsLimits,
    LeaveItsNamespaces,
    TakeMoreMemory,
    SendOutOfBand,
}

impl Attempt {
    /// Every attempt.
    pub const ALL: [Self; 17] = [
        Self::ReadPasswords,
        Self::ReadAnotherEnvironment,
        Self::ListProcesses,
        Self::WriteAFile,
        Self::MakeAMemoryFile,
        Self::OpenAnInternetSocket,
        Self::OpenALocalSocket,
        Self::StartAProgram,
        Self::MakeAProcess,
        Self::MakeAThread,
        Self::TraceTheGateway,
        Self::SignalTheGateway,
        Self::MakeMemoryExecutable,
        Self::RaiseItsLimits,
        Self::LeaveItsNamespaces,
        Self::TakeMoreMemory,
        Self::SendOutOfBand,
    ];

    /// What it is, for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReadPasswords => "read /etc/passwd",
            Self::ReadAnotherEnvironment => "read /proc/1/environ",
            Self::ListProcesses => "list /proc",
            Self::WriteAFile => "write a file",
            Self::MakeAMemoryFile => "make a memory file",
            Self::OpenAnInternetSocket => "open an internet socket",
            Self::OpenALocalSocket => "open a local socket",
            Self::StartAProgram => "start a program",
            Self::MakeAProcess => "make a process",
            Self::MakeAThread => "make a thread",
            Self::TraceTheGateway => "trace the gateway",
            Self::SignalTheGateway => "signal the gateway",
            Self::MakeMemoryExecutable => "make memory executable",
            Self::RaiseItsLimits => "raise its limits",
            Self::LeaveItsNamespaces => "make namespaces",
            Self::TakeMoreMemory => "take more memory than its limit",
            Self::SendOutOfBand => "send out of band",
        }
    }

    /// Whether it must be refused there. An engine that loads its library makes threads and executable memory.
    #[must_use]
    pub const fn forbidden(self, place: Place) -> bool {
        match place {
            Place::Serving => true,
            Place::Loading => !matches!(self, Self::MakeAThread | Self::MakeMemoryExecutable),
        }
    }

    /// Makes it: 0 where it succeeded, else the kernel's error.
    fn make(self, memory: u64) -> i64 {
        fn told<T>(result: std::io::Result<T>) -> i64 {
            result.map_or_else(|error| error.raw_os_error().map_or(i64::MAX, i64::from), |_| 0)
        }
        match self {
            Self::ReadPasswords => told(std::fs::File::open("/etc/passwd")),
            Self::ReadAnotherEnvironment => told(std::fs::File::open("/proc/1/environ")),
            Self::ListProcesses => told(std::fs::read_dir("/proc")),
            Self::WriteAFile => told(std::fs::write("/tmp/portcullis-probe", "x")),
            Self::MakeAMemoryFile => told(rustix::fs::memfd_create("probe", rustix::fs::MemfdFlags::CLOEXEC).map_err(Into::into)),
            Self::OpenAnInternetSocket => told(std::net::UdpSocket::bind("127.0.0.1:0")),
            Self::OpenALocalSocket => told(std::os::unix::net::UnixDatagram::unbound()),
            Self::StartAProgram => told(std::process::Command::new("/proc/self/exe").arg("--version").status()),
            Self::MakeAProcess => told(isolate::try_fork()),
            Self::MakeAThread => told(std::thread::Builder::new().stack_size(64 << 10).spawn(|| ())),
            Self::TraceTheGateway => told(isolate::try_trace_parent()),
            Self::SignalTheGateway => {
                let parent = rustix::process::getppid().ok_or_else(|| std::io::Error::from_raw_os_error(libc::ESRCH));
                told(parent.and_then(|parent| Ok(rustix::process::test_kill_process(parent)?)))
            }
            Self::MakeMemoryExecutable => told(isolate::try_executable()),
            Self::RaiseItsLimits => {
                let more = rustix::process::Rlimit { current: Some(memory * 2), maximum: Some(memory * 2) };
                told(rustix::process::setrlimit(rustix::process::Resource::As, more).map_err(Into::into))
            }
            Self::LeaveItsNamespaces => told(isolate::try_unshare()),
            Self::TakeMoreMemory => {
                let asked = usize::try_from(memory).unwrap_or(usize::MAX);
                Vec::<u8>::new().try_reserve_exact(asked).map_or(i64::from(libc::ENOMEM), |()| 0)
            }
            Self::SendOutOfBand => told(rustix::net::send(rustix::stdio::stdin(), b"x", rustix::net::SendFlags::OOB).map_err(Into::into)),
        }
    }
}

/// Where an attempt is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// While the engine's library is loaded, before the model is looked at.
    Loading,
    /// While the model is loaded and runs.
    Serving,
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// Seccomp killed the worker.
    Killed,
    /// The kernel refused, with this error.
    Refused(i32),
    /// It is a hole.
    Succeeded,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed => f.write_str("killed"),
            Self::Refused(error) => write!(f, "refused: {}", std::io::Error::from_raw_os_error(*error)),
            Self::Succeeded => f.write_str("SUCCEEDED"),
        }
    }
}

/// The walls that stand at this level on this machine.
///
/// # Errors
/// [`Refused`] says which demanded wall cannot stand.
pub fn walls(isolation: Isolation) -> Result<Walls, Refused> {
    Process::start(&launch(isolation, None), &mut || true).map(|(process, _)| process.walls)
}

/// Tries one thing.
///
/// # Errors
/// [`Refused`] says why no worker could be started to try it.
pub fn attempt(isolation: Isolation, attempt: Attempt, place: Place) -> Result<Fate, Refused> {
    let launch = launch(isolation, Some((attempt, place)));
    let killed = |mut process: Process| {
        let status = process.child.0.wait().ok();
        match status.map(How) {
            Some(How(status)) if std::os::unix::process::ExitStatusExt::signal(&status) == Some(libc::SIGSYS) => Ok(Fate::Killed),
            other => Err(Refused::Worker(format!("the probe ended otherwise: {}", other.map_or("?".into(), |how| how.to_string())))),
        }
    };
    let mut process = Process::spawn(&launch, &mut || true).map_err(|error| Refused::Worker(error.to_string()))?;
    match process.hear(&launch, &mut || true) {
        Ok(_) => {}
        Err(Err(_)) => return killed(process),
        Err(Ok(refused)) => return Err(refused),
    }
    let body = super::Body::default().number(0).places(&[0]).tensors(std::iter::empty());
    let body = body.map_err(|broken| Refused::Worker(broken.to_string()))?;
    match process.call(1, &body, &[0], (&signature().outputs, launch.room), &Stop::default()) {
        Ok(Ok(answer)) => {
            let number = answer.first().and_then(|tensor| tensor.data.first_chunk().copied()).map(i64::from_le_bytes);
            match number {
                Some(0) => Ok(Fate::Succeeded),
                Some(error) => Ok(Fate::Refused(i32::try_from(error).unwrap_or(libc::EPERM))),
                None => Err(Refused::Worker("the probe gave no answer".into())),
            }
        }
        Ok(Err(error)) => Err(Refused::Worker(error.to_string())),
        Err(_) => killed(process),
    }
}

/// A memory limit that a probe can be sure to reach.
const MEMORY: u64 = 1 << 30;

fn launch(isolation: Isolation, attempt: Option<(Attempt, Place)>) -> Launch {
    let options = attempt.map(|(attempt, place)| vec![place as u8, attempt as u8]).unwrap_or_default();
    Launch {
        name: "probe".into(),
        inmate: Inmate::Probe,
        options,
        library: None,
        files: super::Parcel::default(),
        isolation,
        memory: MEMORY.max(memory_for(0, 0)),
        room: 64,
        limit: LIMIT,
        signature: Some(signature()),
    }
}

fn signature() -> Signature {
    Signature {
        inputs: vec![],
        instead: vec![],
        longest: None,
        apart: false,
        outputs: vec![Port { name: "result".into(), datatype: Datatype::Int64, shape: vec![Some(1)] }],
    }
}

/// The engine that tries.
pub(super) struct Prober {
    attempt: Option<Attempt>,
    early: Option<i64>,
    signature: Signature,
}

impl Prober {
    /// Makes the attempt now if it is one for this place.
    pub(super) fn new(options: &[u8]) -> Self {
        let attempt = options.get(1).and_then(|number| Attempt::ALL.get(usize::from(*number)).copied());
        let now = attempt.filter(|_| options.first() == Some(&(Place::Loading as u8)));
        Self { attempt, early: now.map(|attempt| attempt.make(MEMORY)), signature: signature() }
    }
}

impl Engine for Prober {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, _: &[Tensor], _: &[usize], _: &Stop) -> Result<Vec<Tensor>, Error> {
        let result = self.early.or_else(|| self.attempt.map(|attempt| attempt.make(MEMORY))).unwrap_or(i64::MAX);
        let data = Bytes::copy_from_slice(&result.to_le_bytes());
        Ok(vec![Tensor { name: "result".into(), datatype: Datatype::Int64, shape: vec![1], data }])
    }
}
