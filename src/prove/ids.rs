//! Which entry has which id: 16 bytes for each entry, in the order of the entries, in a file that can be made again from the bundles.
//!
//! An id is a UUIDv7 (RFC 9562), so it says when its request arrived. In memory there are the earliest and the latest such time of
//! each 256 entries, 16 bytes; a look-up reads only the ids of those that may have it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use uuid::Uuid;

use crate::tlog::tile::{self, WIDTH};
use crate::verify::folder::IDS;
use crate::verify::ids::ID;
use crate::verify::statement::id_of;

/// How much a search reads at a time.
const PIECE: usize = 1 << 20;

/// The open file.
pub(super) struct Ids {
    file: File,
    /// Of each bundle, the earliest and the latest time in milliseconds since 1970.
    spans: RwLock<Vec<(u64, u64)>>,
    /// Of so many entries the spans are read when they are first asked for.
    unread: AtomicU64,
}

impl Ids {
    /// Opens the file of a log for its first `size` entries, a multiple of 256; what lies behind is written again. What is missing
    /// before is made from the bundles, of which `bundle` gives the bytes; of those that are pruned there are no ids.
    pub(super) fn open(directory: &Path, size: u64, mut bundle: impl FnMut(u64) -> Option<Vec<u8>>) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(directory.join(IDS))?;
        let there = file.metadata()?.len().min(size * ID) / (WIDTH * ID);
        file.set_len(there * WIDTH * ID)?;
        let mut spans = Vec::new();
        let mut ids = [0; (WIDTH * ID) as usize];
        for number in 0..size / WIDTH {
            if number < there {
                file.read_exact_at(&mut ids, number * WIDTH * ID)?;
            } else {
                let bytes = bundle(number).unwrap_or_default();
                let entries = tile::entries(&bytes).unwrap_or_default();
                ids.fill(0);
                for (id, entry) in ids.chunks_exact_mut(ID as usize).zip(entries) {
                    id.copy_from_slice(id_of(entry).unwrap_or_default().as_bytes());
                }
                file.write_all_at(&ids, number * WIDTH * ID)?;
            }
            spans.push(span(&ids, None));
        }
        Ok(Self { file, spans: RwLock::new(spans), unread: AtomicU64::new(0) })
    }

    /// Opens the file of a log that has ended with `size` entries. It is read when an id is first asked for.
    ///
    /// # Errors
    /// Also when it is not the file of so many entries.
    pub(super) fn ended(directory: &Path, size: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(directory.join(IDS))?;
        if file.metadata()?.len() != size * ID {
            return Err(io::Error::other("not the ids of so many entries"));
        }
        Ok(Self { file, spans: RwLock::default(), unread: AtomicU64::new(size) })
    }

    /// Reads what [`Ids::ended`] left unread.
    fn read(&self) -> io::Result<()> {
        if self.unread.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let mut spans = self.spans.write().unwrap_or_else(PoisonError::into_inner);
        let mut ids = vec![0; PIECE];
        let (mut at, end, mut read) = (0, self.unread.load(Ordering::Acquire) * ID, Vec::new());
        while at < end {
            let piece = (end - at).min(PIECE as u64) as usize;
            self.file.read_exact_at(&mut ids[..piece], at)?;
            read.extend(ids[..piece].chunks((WIDTH * ID) as usize).map(|bundle| span(bundle, None)));
            at += piece as u64;
        }
        if end > 0 {
            *spans = read;
            self.unread.store(0, Ordering::Release);
        }
        Ok(())
    }

    /// Adds the ids of entries from number `from` on; may be asked again for the same ones.
    pub(super) fn add(&self, from: u64, entries: &[Arc<[u8]>]) -> io::Result<()> {
        let ids: Vec<u8> = entries.iter().flat_map(|entry| id_of(entry).unwrap_or_default().into_bytes()).collect();
        self.file.write_all_at(&ids, from * ID)?;
        let mut spans = self.spans.write().unwrap_or_else(PoisonError::into_inner);
        spans.truncate(from.div_ceil(WIDTH) as usize);
        let (mut at, mut rest) = (from, &ids[..]);
        while !rest.is_empty() {
            let bundle = (at / WIDTH) as usize;
            let (here, later) = rest.split_at(rest.len().min(((WIDTH - at % WIDTH) * ID) as usize));
            let before = spans.get(bundle).copied();
            spans.truncate(bundle);
            spans.push(span(here, before));
            (at, rest) = (at + here.len() as u64 / ID, later);
        }
        Ok(())
    }

    /// Overwrites the ids of a bundle that was pruned with zeros, where they are not zeros already.
    pub(super) fn forget(&self, bundle: u64) -> io::Result<()> {
        self.read()?;
        let mut spans = self.spans.write().unwrap_or_else(PoisonError::into_inner);
        let Some(span) = usize::try_from(bundle).ok().and_then(|bundle| spans.get_mut(bundle)).filter(|span| **span != (0, 0)) else {
            return Ok(());
        };
        self.file.write_all_at(&[0; (WIDTH * ID) as usize], bundle * WIDTH * ID)?;
        *span = (0, 0);
        Ok(())
    }

    /// The numbers of the entries with this id, the oldest first.
    pub(super) fn find(&self, id: Uuid) -> io::Result<Vec<u64>> {
        self.read()?;
        let time = time_of(id.as_bytes());
        let candidates: Vec<u64> = {
            let spans = self.spans.read().unwrap_or_else(PoisonError::into_inner);
            (0..).zip(spans.iter()).filter(|(_, (from, to))| (*from..=*to).contains(&time)).map(|(bundle, _)| bundle).collect()
        };
        let mut found = Vec::new();
        let mut ids = [0; (WIDTH * ID) as usize];
        for bundle in candidates {
            let mut length = 0;
            while length < ids.len() {
                match self.file.read_at(&mut ids[length..], bundle * WIDTH * ID + length as u64)? {
                    0 => break,
                    read => length += read,
                }
            }
            let there = ids[..length].chunks_exact(ID as usize).zip(bundle * WIDTH..);
            found.extend(there.filter(|(bytes, _)| *bytes == id.as_bytes()).map(|(_, at)| at));
        }
        Ok(found)
    }
}

/// The time that a UUIDv7 begins with.
fn time_of(id: &[u8]) -> u64 {
    id.iter().take(6).fold(0, |time, byte| time << 8 | u64::from(*byte))
}

fn span(ids: &[u8], before: Option<(u64, u64)>) -> (u64, u64) {
    ids.chunks_exact(ID as usize).map(time_of).fold(before.unwrap_or((u64::MAX, 0)), |(from, to), time| (from.min(time), to.max(time)))
}
