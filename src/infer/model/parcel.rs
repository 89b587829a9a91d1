//! The files of a model on their way to its worker: one sealed memory, in which each begins at a page of its own.
//!
//! One memory, whatever the number of files: a descriptor for each would end at what goes with one message of the kernel's, and at what the
//! gateway may have open. Where a file lies follows from the lengths of those before it, and nothing is said of it apart from them.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};

use bytes::Bytes;
use memfd::Memfd;

use super::encoder::Files;
use super::folder::MAX_FILES;
use super::isolate::Sealed;
use super::runtime;

/// Where files begin: at the multiples of so many bytes, as they would if each were mapped by itself. Kernels of 64-bit machines map at such
/// places or at coarser ones, and an engine may ask that of its tensors.
const PAGE: u64 = 4096;

/// Files in a memory that nobody can change any more; none is no memory.
#[derive(Debug, Default)]
pub(super) struct Parcel {
    memory: Option<Memfd>,
    files: Vec<(String, u64)>,
    size: u64,
}

impl Parcel {
    /// Copies the files into one memory and seals it.
    ///
    /// # Errors
    /// There is no memory for them, or they are more than [`MAX_FILES`].
    pub(super) fn of<'f>(files: impl IntoIterator<Item = (&'f str, &'f [u8])>) -> Result<Self, String> {
        let files: Vec<(&str, &[u8])> = files.into_iter().collect();
        if files.len() > MAX_FILES {
            return Err(format!("a model has more than {MAX_FILES} files"));
        }
        if files.is_empty() {
            return Ok(Self::default());
        }
        let mut size = 0;
        let write = |mut memory: &File| -> io::Result<()> {
            for (_, bytes) in &files {
                // What is skipped is zeros.
                memory.seek(SeekFrom::Start(size))?;
                memory.write_all(bytes)?;
                size = after(size, bytes.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
            }
            memory.set_len(size)
        };
        let memory = runtime::sealed_by("model", write)?;
        let files = files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes.len() as u64)).collect();
        Ok(Self { memory: Some(memory), files, size })
    }

    /// The names, with the lengths in bytes, in the order in which they lie there.
    pub(super) fn files(&self) -> &[(String, u64)] {
        &self.files
    }

    /// The memory.
    pub(super) fn memory(&self) -> Option<BorrowedFd<'_>> {
        self.memory.as_ref().map(|memory| memory.as_file().as_fd())
    }

    /// Its length in bytes.
    pub(super) fn size(&self) -> usize {
        usize::try_from(self.size).unwrap_or(usize::MAX)
    }
}

/// The files in a mapped memory, by their lengths. None if they are not what lies there.
pub(super) fn unpacked(memory: Sealed, files: Vec<(String, u64)>) -> Option<Files> {
    let whole = Bytes::from_owner(memory);
    let (mut from, mut found) = (0_u64, Files::new());
    for (name, length) in files {
        let start = usize::try_from(from).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?).filter(|end| *end <= whole.len())?;
        found.insert(name, whole.slice(start..end));
        from = after(from, length)?;
    }
    (from == whole.len() as u64).then_some(found)
}

/// Where the next file begins.
fn after(from: u64, length: u64) -> Option<u64> {
    from.checked_add(length)?.checked_next_multiple_of(PAGE)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    fn mapped(parcel: &Parcel) -> Sealed {
        let memory: OwnedFd = parcel.memory().unwrap().try_clone_to_owned().unwrap();
        Sealed::map(&memory).unwrap()
    }

    #[test]
    fn what_is_packed_is_unpacked_and_each_file_begins_at_a_page() {
        let page = vec![7; 4096];
        let more = vec![8; 4097];
        let files: [(&str, &[u8]); 5] = [("a", b"one"), ("empty", b""), ("page", &page), ("more", &more), ("deep/er/b", b"last")];
        let parcel = Parcel::of(files).unwrap();
        assert_eq!(parcel.size(), 4096 + 4096 + 2 * 4096 + 4096);
        assert_eq!(parcel.files()[3], ("more".to_owned(), 4097));
        let found = unpacked(mapped(&parcel), parcel.files().to_vec()).unwrap();
        assert_eq!(found.len(), files.len());
        for (name, bytes) in files {
            assert_eq!(found[name], bytes, "{name}");
            assert!(bytes.is_empty() || found[name].as_ptr().addr().is_multiple_of(4096), "{name}");
        }
    }

    #[test]
    fn lengths_that_are_not_those_of_the_memory_are_none() {
        let parcel = Parcel::of([("a", &b"one"[..]), ("b", b"two")]).unwrap();
        let with = |lengths: &[u64]| unpacked(mapped(&parcel), lengths.iter().map(|length| (length.to_string(), *length)).collect());
        assert!(with(&[3, 4]).is_some());
        for lengths in [&[][..], &[3], &[3, 4, 0, 1], &[4097, 3], &[3, 4097], &[3, u64::MAX], &[u64::MAX, 3], &[8192, 0, 1]] {
            assert!(with(lengths).is_none(), "{lengths:?}");
        }
    }

    #[test]
    fn as_many_files_as_the_bound_go_together_and_one_more_does_not() {
        let names: Vec<String> = (0..=MAX_FILES).map(|number| format!("{number}.bin")).collect();
        let of = |count: usize| Parcel::of(names[..count].iter().map(|name| (name.as_str(), name.as_bytes())));
        let parcel = of(MAX_FILES).unwrap();
        let found = unpacked(mapped(&parcel), parcel.files().to_vec()).unwrap();
        assert!(found.len() == MAX_FILES && found.iter().all(|(name, bytes)| name.as_bytes() == bytes));
        assert!(of(MAX_FILES + 1).unwrap_err().contains("10000 files"));
        assert!(of(0).unwrap().memory().is_none());
    }
}
