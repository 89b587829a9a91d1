//! The files under running models: a model runs from memory, and whoever changes its file changes nothing yet, but a gateway that
//! starts anew would refuse it. So a change is noticed and told.
//!
//! Looking is a `stat` of each file; only a file that looks otherwise than before, and has been still since the last look, is read
//! and hashed, on a thread that may take its time. The running model serves on whatever is found.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{File, Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::digest::{Digest, Hasher};
use crate::event::{Event, Name};
use crate::pipeline::House;
use crate::trail::Which;

/// How often the files are looked at.
pub const EVERY: Duration = Duration::from_secs(2);

/// `O_NONBLOCK`, so that a named pipe in a model's place hangs nobody. Linux, x86-64 and AArch64.
const O_NONBLOCK: i32 = 0o4000;

/// How much is read at a time. Bytes.
const PIECE: usize = 256 << 10;

/// What a file looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// What no file looks like: a size that is more than any has, and no inode.
    const NEVER: Self = Self { device: 0, inode: 0, length: u64::MAX, modified: (0, 0), changed: (0, 0) };

    fn of(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().map(|meta| Self::from(&meta))
    }
}

impl From<&Metadata> for Stamp {
    fn from(meta: &Metadata) -> Self {
        let (modified, changed) = ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
        Self { device: meta.dev(), inode: meta.ino(), length: meta.len(), modified, changed }
    }
}

/// What policies that were refused name, as it looked before it was read: what was not there, or was another, may come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sought(BTreeMap<PathBuf, Option<Stamp>>, BTreeSet<PathBuf>);

impl Sought {
    /// How deep a folder is looked at, and how many files at the most: as far as a model's folder is read.
    const DEPTH: u8 = 8;
    /// See [`Sought::DEPTH`].
    const FILES: usize = 10_000;

    /// Looks at these files, and at all that lies in those that are folders; to be called before they are read.
    #[must_use]
    pub fn at(named: impl IntoIterator<Item = PathBuf>) -> Self {
        let named: BTreeSet<PathBuf> = named.into_iter().collect();
        let mut seen = BTreeMap::new();
        named.iter().for_each(|path| Self::walk(path.clone(), 0, &mut seen));
        Self(seen, named)
    }

    /// What the same looks like now.
    #[must_use]
    pub fn again(&self) -> Self {
        Self::at(self.1.iter().cloned())
    }

    /// Looks out for these too.
    pub fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
        self.1.extend(more.1);
    }

    /// What a link leads to is looked at, and not what lies in it: that may be anything.
    fn walk(path: PathBuf, depth: u8, seen: &mut BTreeMap<PathBuf, Option<Stamp>>) {
        let found = std::fs::metadata(&path).ok();
        let is_link = || std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink());
        if found.as_ref().is_some_and(Metadata::is_dir) && depth < Self::DEPTH && !is_link() {
            for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
                if seen.len() < Self::FILES {
                    Self::walk(entry.path(), depth + 1, seen);
                }
            }
        }
        seen.insert(path, found.as_ref().map(Stamp::from));
    }
}

/// A file that a running model was loaded from.
#[derive(Debug)]
pub struct OnDisk {
    /// The model.
    pub which: Arc<Which>,
    /// Its name in the model's folder.
    name: String,
    path: PathBuf,
    digest: Digest,
    /// The largest file that is read, in bytes.
    limit: u64,
    /// What it looked like before it was read.
    seen: Option<Stamp>,
}

impl OnDisk {
    /// Looks at `path`, which links may lead from; to be called before the file is read. `which` is told in events.
    #[must_use]
    pub fn before_loading(path: PathBuf) -> Seen {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Seen { stamp: Stamp::of(&path), name, path }
    }

    /// The file `name` of a folder, from which it was loaded by now, so that nobody knows what it looked like then: it is read once more.
    #[must_use]
    pub fn loaded_from(folder: &Path, name: &str) -> Seen {
        Seen { stamp: Some(Stamp::NEVER), name: name.to_owned(), path: folder.join(name) }
    }

    /// What stands there now, beside what the policy names.
    fn found(&self) -> Found {
        match hashed(&self.path, self.limit) {
            Ok(Some(digest)) if digest == self.digest => Found::Named,
            Ok(Some(digest)) => Found::Other(digest),
            Ok(None) => Found::NoModel,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Found::Gone,
            Err(_) => Found::Unreadable,
        }
    }
}

/// A file as it was before it was read.
#[derive(Debug)]
pub struct Seen {
    name: String,
    path: PathBuf,
    stamp: Option<Stamp>,
}

impl Seen {
    /// The file under the model that was loaded from it, of this digest and at most `limit` bytes.
    #[must_use]
    pub fn under(self, which: Arc<Which>, digest: Digest, limit: usize) -> OnDisk {
        OnDisk { which, name: self.name, path: self.path, digest, limit: limit as u64, seen: self.stamp }
    }
}

/// What stands in the place of a model's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// What the policy names.
    Named,
    /// Another file.
    Other(Digest),
    /// Something that cannot be a model: no file, or one that is too large.
    NoModel,
    /// Nothing.
    Gone,
    /// What may not be read.
    Unreadable,
}

impl Found {
    /// The word for it in events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Named => "as named",
            Self::Other(_) => "another file",
            Self::NoModel => "no file that could be a model",
            Self::Gone => "gone",
            Self::Unreadable => "unreadable",
        }
    }
}

fn hashed(path: &Path, limit: u64) -> std::io::Result<Option<Digest>> {
    let mut file: File = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
    let about = file.metadata()?;
    if !about.is_file() || about.len() > limit {
        return Ok(None);
    }
    let (mut hasher, mut piece, mut read) = (Hasher::new(), vec![0; PIECE], 0);
    loop {
        let count = file.read(&mut piece)?;
        if count == 0 {
            return Ok(Some(hasher.finish()));
        }
        read += count as u64;
        // It may grow while it is read.
        if read > limit {
            return Ok(None);
        }
        hasher.update(&piece[..count]);
    }
}

/// What is known of the files so far.
#[derive(Debug, Default)]
pub struct Watched(Mutex<HashMap<PathBuf, Known>>);

#[derive(Debug)]
struct Known {
    disk: Arc<OnDisk>,
    /// What it looked like when it was last judged.
    judged: Option<Stamp>,
    /// What it looked like at the last look.
    last: Option<Stamp>,
    found: Found,
}

impl Watched {
    /// Looks once at every file of `disks`, and forgets all others; returns what changed for the worse. Blocks while it reads.
    pub fn look(&self, disks: &[Arc<OnDisk>]) -> Vec<(Arc<OnDisk>, Found)> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted: HashSet<*const OnDisk> = disks.iter().map(Arc::as_ptr).collect();
        all.retain(|_, known| wanted.contains(&Arc::as_ptr(&known.disk)));
        for disk in disks {
            let known = || Known { disk: disk.clone(), judged: disk.seen, last: disk.seen, found: Found::Named };
            all.entry(key(disk)).or_insert_with(known);
        }
        // What must be hashed is hashed without the lock, which a scrape of the metrics waits for.
        let mut suspects = Vec::new();
        for (key, known) in all.iter_mut() {
            let now = Stamp::of(&known.disk.path);
            // One that is being written is judged once it has been still for a while.
            let still = now == known.last;
            known.last = now;
            if still && now != known.judged {
                suspects.push((key.clone(), known.disk.clone(), now));
            }
        }
        drop(all);
        let mut told = Vec::new();
        for (key, disk, before) in suspects {
            let found = disk.found();
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(known) = all.get_mut(&key) else { continue };
            if Stamp::of(&disk.path) != before {
                continue;
            }
            known.judged = before;
            if std::mem::replace(&mut known.found, found) != found && found != Found::Named {
                told.push((disk, found));
            }
        }
        told
    }

    /// Tells of every model whether one of its files is another now than the one that it runs from.
    pub fn each(&self, mut tell: impl FnMut(&Which, bool)) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut models: BTreeMap<(&str, &str), (&Which, bool)> = BTreeMap::new();
        for Known { disk, found, .. } in all.values() {
            let model = models.entry((&disk.which.name, &disk.which.version)).or_insert((&disk.which, false));
            model.1 |= *found != Found::Named;
        }
        models.into_values().for_each(|(which, changed)| tell(which, changed));
    }

    /// What stands in the place of files that models in force run from, a line each, in order.
    #[must_use]
    pub fn changed(&self) -> Vec<String> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = all.values().filter(|known| known.found != Found::Named);
        let told = changed.map(|Known { disk, found, .. }| {
            let Which { name, version, .. } = &*disk.which;
            let (version, found) = (if version.is_empty() { String::new() } else { format!(" version {version}") }, found.as_str());
            format!("the file {} of model {name}{version} is {found}: it runs on, and a restart would be refused", disk.name)
        });
        let mut told: Vec<_> = told.collect();
        told.sort();
        told
    }
}

/// Two versions may be loaded from one path at different times; each is watched for itself.
fn key(disk: &OnDisk) -> PathBuf {
    disk.path.join(disk.digest.to_string()).join(&*disk.which.name).join(&*disk.which.version)
}

/// Looks at the files of the policy in force, until the task is dropped.
pub async fn watch(house: Arc<House>, watched: Arc<Watched>) {
    loop {
        tokio::time::sleep(EVERY).await;
        let disks = house.policy.load().disks.clone();
        let looking = watched.clone();
        let Ok(told) = tokio::task::spawn_blocking(move || looking.look(&disks)).await else { continue };
        for (disk, found) in told {
            let mut event = Event::new(Name::ModelChanged, SystemTime::now());
            event.model = Some(disk.which.name.clone());
            let digest = if let Found::Other(digest) = found { Some(digest.to_string()) } else { None };
            let event = event.with("version", &*disk.which.version).with("file", &*disk.name).with("named", disk.digest.to_string());
            house.events.tell(event.with("found", found.as_str()).with("sha256", digest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trail::Assurance;

    fn under(path: &Path, bytes: &[u8]) -> Arc<OnDisk> {
        let which = Which {
            name: "m".into(),
            version: "1".into(),
            digest: Some(Digest::of(bytes)),
            format: "onnx".into(),
            assurance: Assurance::VerifiedInProcess,
        };
        Arc::new(OnDisk::before_loading(path.to_owned()).under(Arc::new(which), Digest::of(bytes), 100))
    }

    fn settled(watched: &Watched, disks: &[Arc<OnDisk>]) -> Vec<Found> {
        // The first look sees that something changed, the second that it is still.
        (0..2).flat_map(|_| watched.look(disks)).map(|(_, found)| found).collect()
    }

    fn changed(watched: &Watched) -> Vec<bool> {
        let mut all = Vec::new();
        watched.each(|_, changed| all.push(changed));
        all
    }

    #[test]
    fn every_change_is_told_once_and_coming_back_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        std::fs::write(&path, b"good").unwrap();
        let (watched, disks) = (Watched::default(), [under(&path, b"good")]);
        assert_eq!((settled(&watched, &disks), changed(&watched)), (vec![], vec![false]));
        std::fs::write(&path, b"evil").unwrap();
        assert_eq!(settled(&watched, &disks), [Found::Other(Digest::of(b"evil"))]);
        assert_eq!((settled(&watched, &disks), changed(&watched)), (vec![], vec![true]));
        std::fs::write(&path, b"worse").unwrap();
        assert_eq!(settled(&watched, &disks), [Found::Other(Digest::of(b"worse"))]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(settled(&watched, &disks), [Found::Gone]);
        assert_eq!(watched.changed(), ["the file m.onnx of model m version 1 is gone: it runs on, and a restart would be refused"]);
        std::fs::create_dir(&path).unwrap();
        assert_eq!(settled(&watched, &disks), [Found::NoModel]);
        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, b"good").unwrap();
        assert_eq!((settled(&watched, &disks), changed(&watched)), (vec![], vec![false]));
        assert!(watched.changed().is_empty());
    }

    #[test]
    fn a_file_that_is_only_touched_or_written_anew_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        std::fs::write(&path, b"good").unwrap();
        let (watched, disks) = (Watched::default(), [under(&path, b"good")]);
        std::fs::write(folder.path().join("new"), b"good").unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!((settled(&watched, &disks), changed(&watched)), (vec![], vec![false]));
    }

    #[test]
    fn what_was_sought_is_seen_to_come_to_change_and_to_be_there_within_a_folder() {
        let home = tempfile::tempdir().unwrap();
        let (file, folder) = (home.path().join("one.onnx"), home.path().join("encoder"));
        std::fs::create_dir(&folder).unwrap();
        let mut sought = Sought::at([file.clone(), folder.clone()]);
        assert_eq!(sought.again(), sought);
        for (path, bytes) in [(&file, "other"), (&file, "right one"), (&folder.join("model.safetensors"), "")] {
            std::fs::write(path, bytes).unwrap();
            assert_ne!(sought.again(), sought, "{}", path.display());
            sought = sought.again();
        }
        // Another file in the same place, of the same length and time.
        let (beside, then) = (home.path().join("beside"), std::fs::metadata(&file).unwrap().modified().unwrap());
        std::fs::write(&beside, "right 1ne").unwrap();
        File::options().write(true).open(&beside).unwrap().set_modified(then).unwrap();
        std::fs::rename(&beside, &file).unwrap();
        assert_ne!(sought.again(), sought);
        let mut both = Sought::at([file]);
        both.extend(Sought::at([folder]));
        assert_eq!(both, sought.again());
    }

    #[test]
    fn a_link_that_leads_elsewhere_now_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b, link) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("m.onnx"));
        std::fs::write(&a, b"good").unwrap();
        std::fs::write(&b, b"evil").unwrap();
        std::os::unix::fs::symlink(&a, &link).unwrap();
        let (watched, disks) = (Watched::default(), [under(&link, b"good")]);
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&b, &link).unwrap();
        assert_eq!(settled(&watched, &disks), [Found::Other(Digest::of(b"evil"))]);
    }

    #[test]
    fn a_file_of_the_limit_is_hashed_and_one_byte_more_is_no_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        std::fs::write(&path, b"good").unwrap();
        let (watched, disks) = (Watched::default(), [under(&path, b"good")]);
        std::fs::write(&path, [1; 100]).unwrap();
        assert_eq!(settled(&watched, &disks), [Found::Other(Digest::of(&[1; 100]))]);
        std::fs::write(&path, [1; 101]).unwrap();
        assert_eq!(settled(&watched, &disks), [Found::NoModel]);
    }

    #[test]
    fn a_file_that_is_still_being_written_is_not_judged_yet() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        std::fs::write(&path, b"good").unwrap();
        let (watched, disks) = (Watched::default(), [under(&path, b"good")]);
        for length in 10..20 {
            std::fs::write(&path, vec![0; length]).unwrap();
            assert!(watched.look(&disks).is_empty(), "{length}");
        }
        assert_eq!(watched.look(&disks).len(), 1);
    }

    #[test]
    fn a_file_of_which_nobody_knows_what_it_looked_like_is_read_once_more() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("deep")).unwrap();
        let path = folder.path().join("deep/er.bin");
        let weights = folder.path().join("m.onnx");
        std::fs::write(&weights, b"weights").unwrap();
        let first = under(&weights, b"weights");
        let other = || {
            let seen = OnDisk::loaded_from(folder.path(), "deep/er.bin");
            [first.clone(), Arc::new(seen.under(first.which.clone(), Digest::of(b"good"), 100))]
        };
        std::fs::write(&path, b"good").unwrap();
        let (watched, disks) = (Watched::default(), other());
        // A model is told once, whatever the number of its files.
        assert_eq!((settled(&watched, &disks), changed(&watched)), (vec![], vec![false]));
        std::fs::write(&path, b"evil").unwrap();
        assert_eq!((settled(&watched, &disks), changed(&watched)), (vec![Found::Other(Digest::of(b"evil"))], vec![true]));
        // What had changed before the first look.
        assert_eq!(settled(&Watched::default(), &other()), [Found::Other(Digest::of(b"evil"))]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(settled(&Watched::default(), &other()), [Found::Gone]);
    }

    #[test]
    fn a_model_that_is_not_in_force_any_more_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        std::fs::write(&path, b"good").unwrap();
        let watched = Watched::default();
        watched.look(&[under(&path, b"good")]);
        assert!(watched.look(&[]).is_empty() && changed(&watched).is_empty());
    }
}
