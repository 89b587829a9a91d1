//! The walls around a worker: what a process takes away from itself before it meets a stranger's model.
//!
//! They are raised in two steps. [`first`] comes before any second thread and before the engine's library: limits, landlock, and a system
//! call filter that knows neither sockets nor programs, so that the library, whose digest is pinned, finds what the dynamic linker needs
//! and nothing else. [`second`] comes when the library stands and every thread runs, and *before the first byte of the model is looked
//! at*: from then on no file can be opened, no thread or process made and no memory made executable. Whatever is not on the list kills the
//! process.
//!
//! What it is *not*: a defence against the processor (a worker can measure time, and shares caches with its neighbours) or against a kernel
//! whose `futex`, `mmap` or `recvfrom` are broken.
//!
//! It is the one file of the crate that may hold `unsafe`: for closing what was inherited, for leaving namespaces, for the mapping of sealed
//! memory, and for what the probe tries. Each use says why it is sound.
#![expect(unsafe_code, reason = "system calls that no safe crate wraps, each with its SAFETY note")]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use super::walls::Walls;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, Scope,
    path_beneath_rules,
};
use rustix::fs::SealFlags;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch};

/// The most descriptors a worker has open: three of its own, two sockets, the files of its model while they are read, and what the dynamic
/// linker needs one after the other.
const DESCRIPTORS: u64 = 64;

/// What the dynamic linker and ONNX Runtime's look at the processor read, on the distributions that are known. For reading alone; what is
/// not there is left out.
const READABLE: [&str; 10] = [
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/lib",
    "/lib64",
    "/nix/store",
    "/etc/ld.so.cache",
    "/proc/cpuinfo",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
];

/// Closes everything but the three standard descriptors. The first thing a worker does: whatever the gateway's own parent left open, or a
/// library forgot to mark, does not get in.
pub(super) fn close_inherited() -> bool {
    // SAFETY: `close_range` touches no memory. Nothing in this process owns a descriptor above 2 yet: it is called first in `main`, before
    // any is opened, so no owner is left with a closed one.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) == 0 }
}

/// One arena of memory for all threads: glibc reads a file under `/proc` when it gives others back, which the second wall would kill it for.
/// By a call, because an environment is not heeded where the program has capabilities of its file.
pub(super) fn one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number in the allocator, under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Memory of a megabyte or more is the system's again as soon as it is given back, and what lies free at the end of the heap past eight. Told
/// nothing, glibc raises both bounds with what it sees, and keeps what one burst of large answers took for as long as the process lives.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets numbers in the allocator, under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 8 << 20);
    }
}

/// The first step. `memory` bounds the address space, in bytes; `gateway` is the process that this one must not outlive. It must be called
/// while there is one thread.
pub(super) fn first(memory: u64, gateway: i32) -> Walls {
    let mut walls = Walls::default();
    let namespaces = leave_namespaces();
    walls = walls.with(namespaces);
    // After the namespaces: a process is all-mighty in a new user namespace, and what could be done there is half of the kernel's holes.
    let none = CapabilitySets { effective: CapabilitySet::empty(), permitted: CapabilitySet::empty(), inheritable: CapabilitySet::empty() };
    walls.add(Walls::CAPABILITIES, rustix::thread::set_capabilities(None, none).is_ok());
    // A change of credentials sets these two back, so they come after it.
    walls.add(Walls::UNDUMPABLE, rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).is_ok());
    let dies = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).is_ok();
    // It may have died before it was asked for; a process that was adopted has another parent.
    walls.add(Walls::DIES_WITH_GATEWAY, dies && rustix::process::getppid().is_some_and(|parent| parent.as_raw_nonzero().get() == gateway));
    let limits = [
        (Resource::As, memory),
        (Resource::Fsize, 0),
        (Resource::Core, 0),
        (Resource::Nofile, DESCRIPTORS),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
    ];
    let limited = limits.into_iter().all(|(what, most)| {
        let most = rustix::process::getrlimit(what).maximum.map_or(most, |already| already.min(most));
        rustix::process::setrlimit(what, Rlimit { current: Some(most), maximum: Some(most) }).is_ok()
    });
    walls.add(Walls::LIMITS, limited);
    walls.add(Walls::NO_NEW_PRIVILEGES, rustix::thread::set_no_new_privs(true).is_ok());
    walls = walls.with(landlock().unwrap_or_default());
    // On the list already: what is left is the narrower one, which is checked where it is raised.
    walls.add(
        Walls::SECCOMP,
        threads_only().and_then(|filter| apply(&filter)).is_some() && loading().and_then(|filter| apply(&filter)).is_some(),
    );
    walls
}

/// The second step, on every thread there is. Whether it stands.
pub(super) fn second() -> bool {
    // Children could not be made any more anyway; this is the kernel's other way to say so, where it is heeded.
    let _ = rustix::process::setrlimit(Resource::Nproc, Rlimit { current: Some(0), maximum: Some(0) });
    serving().is_some_and(|filter| seccompiler::apply_filter_all_threads(&filter).is_ok())
}

/// A user, a network and an IPC namespace; the last two without the first where this process may do that.
fn leave_namespaces() -> Walls {
    let others = UnshareFlags::NEWNET | UnshareFlags::NEWIPC;
    // SAFETY: `FILES` is not among the flags, so that no thread is left with descriptors that another cannot see.
    let unshare = |flags| unsafe { rustix::thread::unshare_unsafe(flags) }.is_ok();
    if unshare(UnshareFlags::NEWUSER | others) {
        return Walls::NAMESPACES;
    }
    if unshare(others) { Walls::NETWORK_NAMESPACE.with(Walls::IPC_NAMESPACE) } else { Walls::default() }
}

/// Everything that landlock knows is forbidden but to read the libraries; what an older kernel does not know is left out and told.
fn landlock() -> Option<Walls> {
    let hard = Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(AccessFs::from_all(ABI::V1)).ok()?;
    let ruleset = hard
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V7))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(ABI::V4)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(ABI::V6)))
        .ok()?;
    let rules = path_beneath_rules(READABLE, AccessFs::ReadFile | AccessFs::ReadDir);
    let status = ruleset.create().ok()?.add_rules(rules).ok()?.restrict_self().ok()?;
    let LandlockStatus::Available { effective_abi, .. } = status.landlock else { return None };
    let mut walls = Walls::LANDLOCK;
    walls.add(Walls::LANDLOCK_TCP, effective_abi >= ABI::V4);
    walls.add(Walls::LANDLOCK_SCOPES, effective_abi >= ABI::V6);
    Some(walls)
}

/// What a worker calls while it answers, whatever the arguments: memory, its sockets, the clock, locks between threads, and its end.
const SERVING: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_close,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_brk,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getcpu,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_sysinfo,
    libc::SYS_fstat,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What comes on top while the engine's library is loaded and threads are made.
const LOADING: &[i64] = &[
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_getdents64,
    libc::SYS_fcntl,
    libc::SYS_recvmsg,
    libc::SYS_uname,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_prlimit64,
    libc::SYS_prctl,
    libc::SYS_seccomp,
    // Forbidden by the filter below, and not by death.
    libc::SYS_clone3,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
];

/// Waiting and waking. The kernel's locks with priorities, and the moving of waiters, have had holes, and nobody here needs them.
const FUTEX: [i32; 4] = [libc::FUTEX_WAIT, libc::FUTEX_WAKE, libc::FUTEX_WAIT_BITSET, libc::FUTEX_WAKE_BITSET];

/// What may be added to those: that no other process waits, and which clock is meant.
const FUTEX_HOW: i32 = libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME;

/// What allocators say of their memory. Not that it may be merged with equal pages of others, which can be timed.
const ADVICE: [i32; 4] = [libc::MADV_DONTNEED, libc::MADV_FREE, libc::MADV_HUGEPAGE, libc::MADV_NOHUGEPAGE];

/// By which signals a worker ends that crashes.
const FATAL: [i32; 3] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT];

/// `PROT_EXEC`, of `mmap` and `mprotect`.
const PROT_EXEC: u64 = libc::PROT_EXEC as u64;

/// `PR_SET_VMA`: allocators give their mappings a name.
const PR_SET_VMA: u64 = libc::PR_SET_VMA as u64;

/// Whatever of `open`'s flags changes anything: only reading is left.
const OPEN_CHANGES: u64 = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND) as u64;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// A rule of one condition: the bits of an argument under a mask.
fn masked(argument: u8, mask: u64, value: u64) -> Option<SeccompRule> {
    all([(argument, mask, value)])
}

/// A rule of several.
fn all<const N: usize>(conditions: [(u8, u64, u64); N]) -> Option<SeccompRule> {
    let each = |(argument, mask, value)| SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), value);
    SeccompRule::new(conditions.into_iter().map(each).collect::<Result<_, _>>().ok()?).ok()
}

fn allow_only(rules: Rules) -> Option<BpfProgram> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).ok()?;
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch).ok()?.try_into().ok()
}

/// What both lists have, with what depends on arguments.
fn common() -> Option<Rules> {
    let mut rules: Rules = SERVING.iter().map(|number| (*number, Vec::new())).collect();
    let low = |mask: i32| u64::from(mask.cast_unsigned());
    rules.insert(libc::SYS_futex, FUTEX.iter().map(|what| masked(1, low(!FUTEX_HOW), low(*what))).collect::<Option<_>>()?);
    // Not out of band: that wakes the gateway for nothing, and parts what it reads in one piece.
    rules.insert(libc::SYS_sendto, vec![masked(3, low(!libc::MSG_NOSIGNAL), 0)?]);
    // A crash is to show as one. Rust's library takes its own handler away before it lets a fault happen once more, and `abort` is a signal to itself.
    rules.insert(libc::SYS_rt_sigaction, FATAL.iter().map(|signal| masked(0, low(-1), low(*signal))).collect::<Option<_>>()?);
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![all([(0, low(-1), own), (2, low(-1), low(libc::SIGABRT))])?]);
    rules.insert(libc::SYS_madvise, ADVICE.iter().map(|what| masked(2, low(-1), low(*what))).collect::<Option<_>>()?);
    Some(rules)
}

fn serving() -> Option<BpfProgram> {
    let mut rules = common()?;
    for number in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(number, vec![masked(2, PROT_EXEC, 0)?]);
    }
    // Rust's library looks whether a descriptor is open before it closes it.
    rules.insert(libc::SYS_fcntl, vec![masked(1, u64::from(u32::MAX), libc::F_GETFD as u64)?]);
    rules.insert(libc::SYS_prctl, vec![masked(0, u64::from(u32::MAX), PR_SET_VMA)?]);
    allow_only(rules)
}

fn loading() -> Option<BpfProgram> {
    let mut rules = common()?;
    rules.extend(LOADING.iter().map(|number| (*number, Vec::new())));
    rules.insert(libc::SYS_openat, vec![masked(2, OPEN_CHANGES, 0)?]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, vec![masked(1, OPEN_CHANGES, 0)?]);
    // A thread, and never a process.
    rules.insert(libc::SYS_clone, vec![masked(0, libc::CLONE_THREAD as u64, libc::CLONE_THREAD as u64)?]);
    allow_only(rules)
}

/// `clone3` has its flags in memory, where a filter cannot look: glibc is told that there is none, and takes `clone`.
fn threads_only() -> Option<BpfProgram> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).ok()?;
    let rules: Rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let refuse = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).ok()?.try_into().ok()
}

fn apply(filter: &BpfProgram) -> Option<()> {
    seccompiler::apply_filter(filter).ok()
}

/// A sealed memory file, mapped for reading: the bytes that the gateway hashed, without a copy.
#[derive(Debug)]
pub(super) struct Sealed {
    start: NonNull<u8>,
    length: usize,
}

impl Sealed {
    /// Maps `file`.
    ///
    /// # Errors
    /// It is not a memory file, it is not sealed, or there is no room.
    pub(super) fn map(file: &OwnedFd) -> io::Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(file)?;
        if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a memory file is not sealed"));
        }
        let length = usize::try_from(rustix::fs::fstat(file)?.st_size).map_err(|_| io::ErrorKind::FileTooLarge)?;
        if length == 0 {
            return Ok(Self { start: NonNull::dangling(), length });
        }
        // SAFETY: the kernel chooses the address, so that no memory of ours is replaced.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, file.as_fd(), 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }
}

impl AsRef<[u8]> for Sealed {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `start` is where `length` bytes are mapped until the drop (or dangling, aligned and of no length). The file was sealed
        // against writing and shrinking before it was mapped, by seals that cannot be taken off, so that nobody changes them and none of
        // them goes away.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

// SAFETY: it is a range of constant bytes with one owner, whatever thread that is on.
unsafe impl Send for Sealed {}
// SAFETY: as above; nobody writes.
unsafe impl Sync for Sealed {}

impl Drop for Sealed {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: the range was mapped by `map` and by nobody else, and no slice of it outlives `self`.
            let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
        }
    }
}

/// Signals that end a process are for the gateway, which drains and then ends its workers. A terminal sends them to a whole group, and a
/// supervisor to everything it started.
pub(super) fn heed_no_signal() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2] {
        // SAFETY: a signal that is ignored runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Ends this process at once, without a destructor of anybody's.
pub(super) fn leave(code: i32) -> ! {
    // SAFETY: it does not return, and touches no memory on the way.
    unsafe { libc::_exit(code) }
}

/// For [`probe`](super::worker::probe): makes a process.
pub(super) fn try_fork() -> io::Result<()> {
    // SAFETY: should it ever succeed, the child, which has one thread, ends at once without touching anything.
    match unsafe { libc::fork() } {
        0 => leave(0),
        child => told(child),
    }
}

/// For [`probe`](super::worker::probe): attaches to the gateway as a debugger.
pub(super) fn try_trace_parent() -> io::Result<()> {
    let parent = rustix::process::getppid().map_or(0, |parent| parent.as_raw_nonzero().get());
    // SAFETY: `PTRACE_SEIZE` touches no memory of ours, and does not stop the process that it is for.
    told(unsafe { libc::ptrace(libc::PTRACE_SEIZE, parent, 0, 0) } as i32)
}

/// For [`probe`](super::worker::probe): asks for memory that can be written and run.
pub(super) fn try_executable() -> io::Result<()> {
    let all = ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC;
    // SAFETY: the kernel chooses the address, so that no memory of ours is replaced; nobody uses the mapping.
    unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), 4096, all, MapFlags::PRIVATE) }?;
    Ok(())
}

/// For [`probe`](super::worker::probe): makes namespaces, in which a process has every capability.
pub(super) fn try_unshare() -> io::Result<()> {
    // SAFETY: `FILES` is not among the flags.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET) }?)
}

fn told(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_for_this_machine() {
        assert!(serving().is_some() && loading().is_some() && threads_only().is_some());
    }

    #[test]
    fn memory_that_is_not_sealed_is_not_mapped() {
        let open = memfd::MemfdOptions::new().allow_sealing(true).create("open").unwrap();
        assert!(Sealed::map(&open.into_file().into()).is_err());
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        assert!(Sealed::map(&file).is_err());
    }
}
