//! What the targets share: seeds, and a bound on the memory that a reading may take.

use std::alloc::System;
use std::path::PathBuf;

use cap::Cap;

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// The variable that names a folder for seeds.
const SEEDS: &str = "FUZZ_SEEDS";

/// The folder of the repository.
pub const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Writes the seeds into the folder that `FUZZ_SEEDS` names and ends, if it names one. A target calls it before anything else.
pub fn seeds(make: impl FnOnce() -> Vec<Vec<u8>>) {
    // Whoever tells of a panic needs memory, whatever bound it came under.
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let _ = HEAP.set_limit(usize::MAX);
        tell(panic);
    }));
    let Some(folder) = std::env::var_os(SEEDS).map(PathBuf::from) else { return };
    std::fs::create_dir_all(&folder).expect("a folder for seeds");
    for (at, seed) in make().iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{at:03}")), seed).expect("a file for a seed");
    }
    std::process::exit(0);
}

/// The file of the repository at `path`.
#[must_use]
pub fn file(path: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from(REPOSITORY).join(path)).expect("a file of the repository")
}

/// A seed of the target's mode `mode`.
#[must_use]
pub fn seed(mode: u8, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    [&[mode], bytes.as_ref()].concat()
}

/// Does `read`, which may hold at most `bytes` more of the heap than is held now; one that asks for more ends the process, which is a finding.
pub fn within<T>(bytes: usize, read: impl FnOnce() -> T) -> T {
    HEAP.set_limit(HEAP.allocated() + bytes).expect("a bound past what is held");
    let done = read();
    HEAP.set_limit(usize::MAX).expect("no bound");
    done
}

/// What a reading of JSON may hold for `bytes` of it: `0,` is two bytes and a value is about eighty, in a list that doubles as it grows.
#[must_use]
pub const fn for_json(bytes: usize) -> usize {
    256 * bytes + (1 << 20)
}
