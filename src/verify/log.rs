//! Checks a log, or one statement: everything in a folder is derived again from its entries.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::chain::Ended;
use super::files::{Files, TreeError, of_file, read_whole};
use super::folder::{CHECKPOINT, CHECKPOINT_COSE, IDS, KEYS, WITNESSED};
use super::ids::{ID, Ids};
use super::segment::{First, HEADER, MAX_SEGMENT, Record, is_begun, numbers, path_of, sound_after};
use super::statement::{Statement, id_of};
use crate::tlog::merkle::{self, Hash};
use crate::tlog::note::Verified;
use crate::tlog::tile::{self, Edge, Tile, WIDTH};
use crate::tlog::vkey::{Kind as KeyKind, Vkey};

mod gone;
mod heads;
mod report;
mod there;
mod trust;

use gone::Gone;
use heads::Heads;
pub use report::Report;
use there::{Listed, listed, own_keys, strangers};
use trust::Trust;

/// How many endings of shards a log may tell.
const MAX_ENDED: usize = 16;

/// Verifies the log in `directory`: that every file in it is what the entries make of it, every entry a statement with its number in
/// order, in its one encoding and with a signature that holds, the checkpoint over them signed, and that nothing else is there. `keys`
/// are the log key with which the log was begun, which vouches for the others in entry 0 and for those that came after it, and those of
/// witnesses; without any, those in `keys.vkey` are used.
///
/// # Errors
/// When the folder or a file in it cannot be read at all.
pub fn verify_dir(directory: &Path, keys: Option<&[Vkey]>) -> io::Result<Report> {
    verify_while(directory, keys, &mut |_| {})
}

/// The same; `meanwhile` is called between any two reads of entries, with the index of the entry that is next: a log goes on while it is
/// read, and so do those who prune it.
pub(crate) fn verify_while(directory: &Path, keys: Option<&[Vkey]>, meanwhile: &mut dyn FnMut(u64)) -> io::Result<Report> {
    let mut report = Report { integrity_only: keys.is_none(), ..Report::default() };
    strangers(directory, &mut report)?;
    let own = own_keys(directory, &mut report)?;
    let trusted = keys.map_or_else(|| own.clone(), <[Vkey]>::to_vec);
    if trusted.is_empty() {
        report.problem("there is no key to verify with".into());
    }
    let heads = Heads::read(directory, &mut report)?;
    let there = listed(directory)?;
    let mut check = Check {
        files: Files::of(directory),
        heads,
        report,
        trust: Trust::new(trusted),
        own: own.clone(),
        edge: Edge::default(),
        bundle: Vec::new(),
        next: 0,
        checked: HashSet::new(),
        told: HashSet::new(),
        unwritten: HashMap::new(),
        ids: Ids::open(&directory.join(IDS)),
        kept: Files::of(directory).kept()?,
        gone: Gone::of(directory),
        behind: None,
        cut: false,
        meanwhile,
    };
    check.entries(directory)?;
    if !check.cut {
        check.tiles(there)?;
    }
    check.checkpoint();
    let name = check.heads.note.as_ref().map_or_else(String::new, |(_, checkpoint)| checkpoint.origin.clone());
    let Check { mut report, trust, .. } = check;
    let trusted = trust.keys();
    // Who verifies names the witnesses that count; the log only lists those it asks.
    let of_log = |key: &&Vkey| key.name == name || matches!(key.kind(), KeyKind::Log | KeyKind::Statement);
    for key in own.iter().filter(of_log).filter(|key| !trusted.contains(key)) {
        report.problem(format!("{KEYS}: the key {} is neither given nor endorsed", hex(&key.kid())));
    }
    report.ok = report.problems.is_empty();
    Ok(report)
}

/// What is known while a log is read from its first entry to its last.
struct Check<'a> {
    files: Files,
    heads: Heads,
    report: Report,
    trust: Trust,
    /// The keys that the log lists itself.
    own: Vec<Vkey>,
    edge: Edge,
    bundle: Vec<u8>,
    /// The number that must be next.
    next: u64,
    /// The full tiles and bundles that are as they must be.
    checked: HashSet<Tile>,
    /// Those of which it was told that they are not.
    told: HashSet<Tile>,
    /// Those past the checkpoint that are not there: a kill came before they were written. No more than the write-ahead file holds.
    unwritten: HashMap<Tile, Vec<u8>>,
    ids: Ids,
    /// Entries that are kept though their bundles may be pruned: those that endorse keys.
    kept: BTreeMap<u64, Vec<u8>>,
    /// Bundles that were pruned, before or since.
    gone: Gone,
    /// The index behind the last bundle that could not be read: which number that entry has to have is not known.
    behind: Option<u64>,
    /// Entries are missing and so are their hashes: of what follows nothing can be said.
    cut: bool,
    meanwhile: &'a mut dyn FnMut(u64),
}

impl Check<'_> {
    fn entries(&mut self, directory: &Path) -> io::Result<()> {
        self.heads.see(&self.edge);
        let mut segments = VecDeque::from(numbers(directory)?);
        if segments.is_empty() {
            self.report.problem("there is no write-ahead file".into());
            let covered = self.heads.note.as_ref().map_or(0, |(_, checkpoint)| checkpoint.size);
            self.cut = !self.bundles(covered);
        }
        // Whether what stands before the next segment lies in bundles alone.
        let (mut before, mut in_bundles) = (None, true);
        while let Some(number) = segments.pop_front() {
            let name = format!("wal-{number:08}");
            let follows = before.replace(number);
            if follows.is_some_and(|before| number != before + 1) {
                self.report.problem(format!("{name}: the segment before it is missing"));
            }
            let last = segments.is_empty();
            (self.meanwhile)(self.edge.size());
            let bytes = match read_whole(&path_of(directory, number), MAX_SEGMENT) {
                // A log that goes on has removed it since: full bundles have what it held, and another follows it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if last {
                        segments.extend(numbers(directory)?.into_iter().filter(|next| *next > number));
                    }
                    in_bundles = true;
                    continue;
                }
                bytes => bytes.map_err(of_file(&name))?,
            };
            let Some(first) = First::read(&bytes) else {
                if last && follows.is_some() && bytes.len() < HEADER {
                    self.torn(&name, 0, &bytes);
                    continue;
                }
                self.report.problem(format!("{name}: the header is damaged, or of another version"));
                continue;
            };
            if std::mem::take(&mut in_bundles) && !self.bundles(first.index) {
                self.cut = true;
                return Ok(());
            }
            self.segment(&bytes, &name, first, last);
        }
        Ok(())
    }

    /// The entries before `end` that lie in bundles alone. Pruned ones have left their hashes. Says whether what follows has its place.
    fn bundles(&mut self, end: u64) -> bool {
        while self.edge.size() < end {
            let (number, within) = (self.edge.size() / WIDTH, (self.edge.size() % WIDTH) as usize);
            let full = Tile { level: None, number, width: WIDTH as u16 };
            let read = self.files.read(full);
            (self.meanwhile)(self.edge.size());
            let Ok(bytes) = read else { if self.unread(full, within) { continue } else { return false } };
            let Some(entries) = tile::entries(&bytes).filter(|entries| entries.len() as u64 == WIDTH) else {
                self.told.insert(full);
                self.report.problem(format!("{full}: cut short"));
                return false;
            };
            for (entry, index) in entries.into_iter().zip(number * WIDTH..end).skip(within) {
                self.entry(entry, &format!("{full} entry {index}"), None);
            }
        }
        true
    }

    /// Goes on behind a bundle that cannot be read, by the hashes of its entries, where those are there. One that was not pruned is a problem.
    fn unread(&mut self, full: Tile, within: usize) -> bool {
        let end = full.leaves().end;
        // Of a log that goes on, it may be gone since the others were read.
        let read = self.edge.size();
        self.kept.extend(self.files.kept().unwrap_or_default().into_iter().filter(|(index, _)| *index >= read));
        let pruned = self.report.first_index == full.number * WIDTH || self.gone.has(full.number);
        let hashes = self.files.read(Tile { level: Some(0), ..full }).ok().and_then(|bytes| tile::hashes(&bytes));
        let hashes = hashes.filter(|hashes| hashes.len() as u64 == WIDTH);
        if !pruned || hashes.is_none() {
            self.told.insert(full);
            let more = if hashes.is_none() { ", and so are the hashes of its entries: what follows is not verified" } else { "" };
            self.report.problem(format!("{full}: missing{more}"));
        }
        let Some(hashes) = hashes else { return false };
        for hash in hashes.into_iter().skip(within) {
            if pruned { self.pruned(hash) } else { self.leaf(hash) }
        }
        if pruned {
            (self.report.first_index, self.report.entries) = (end, end);
        }
        self.behind = Some(end);
        true
    }

    /// An entry of which the hash is left, and if it endorsed keys the entry beside it.
    fn pruned(&mut self, hash: Hash) {
        let index = self.edge.size();
        match self.kept.remove(&index) {
            Some(entry) if merkle::leaf(&entry) == hash => {
                let followed = Statement::read(&entry).map_err(|error| error.to_string());
                if let Err(why) = followed.and_then(|statement| self.trust.follow(&statement, index).map_err(str::to_owned)) {
                    self.report.problem(format!("entry.{index}: {why}"));
                }
            }
            Some(_) => self.report.problem(format!("entry.{index}: not the entry that stood there")),
            None if index == 0 => {
                self.report.problem("entry.0: missing: nothing else vouches for the keys of a log that was pruned".into())
            }
            None => {}
        }
        self.leaf(hash);
    }

    fn segment(&mut self, bytes: &[u8], name: &str, first: First, last: bool) {
        let mut at = HEADER;
        if first.index != self.edge.size() {
            self.report.problem(format!("{name}: the header names index {}, and {} was expected", first.index, self.edge.size()));
        }
        if first.seq < self.next {
            self.report.problem(format!("{name}: the header names number {}, which was used", first.seq));
        }
        while let Some(record) = Record::read(&bytes[at..]) {
            let place = format!("{name} byte {at} seq {}", record.seq);
            // It may have been begun for entries that a full disk then took back.
            if at == HEADER && record.seq < first.seq {
                self.report.problem(format!("{place}: the header names another first number"));
            }
            at += record.size();
            self.entry(record.entry, &place, Some(record.seq));
        }
        let covered = self.heads.note.as_ref().map_or(0, |(_, checkpoint)| checkpoint.size);
        if at == bytes.len() {
            return;
        }
        if last && self.edge.size() >= covered && !sound_after(&bytes[at + 1..], self.next) {
            self.torn(name, at, &bytes[at..]);
        } else {
            self.report.problem(format!("{name} byte {at}: a damaged or torn record, {} bytes are not read", bytes.len() - at));
        }
    }

    fn torn(&mut self, name: &str, at: usize, bytes: &[u8]) {
        self.report.torn_bytes += bytes.len() as u64;
        let told = format!(
            "{name} byte {at}: a torn end, {} bytes of an entry that is not whole and under no checkpoint; the next start cuts them",
            bytes.len()
        );
        if is_begun(bytes, self.next) { self.report.notes.push(told) } else { self.report.problem(told) }
    }

    fn entry(&mut self, entry: &[u8], place: &str, recorded: Option<u64>) {
        let index = self.edge.size();
        // A crash may leave it though its bundle is there still.
        if self.kept.remove(&index).is_some_and(|kept| kept != entry) {
            self.report.problem(format!("entry.{index}: not the entry that stands there"));
        }
        tile::bundle(&mut self.bundle, entry);
        self.leaf(merkle::leaf(entry));
        self.report.entries += 1;
        match self.ids.differs(index, id_of(entry)) {
            Ok(false) => {}
            // It was pruned since it was read.
            Ok(true) if self.ids.differs(index, Some(Uuid::nil())).is_ok_and(|other| !other) && self.gone.has(index / WIDTH) => {}
            Ok(true) => self.report.problem(format!("{IDS}: another id than that of entry {index}")),
            Err(error) => self.report.problem(format!("{IDS}: {error}")),
        }
        let statement = match Statement::read(entry) {
            Ok(statement) => statement,
            Err(error) => {
                self.report.problem(format!("{place}: {error}"));
                self.next = recorded.unwrap_or(self.next).saturating_add(1);
                return;
            }
        };
        let (seq, next) = (statement.seq, self.next);
        self.statement(&statement, place, index);
        self.report.last_seq = Some(seq);
        if recorded.is_some_and(|recorded| recorded != seq) {
            self.report.problem(format!("{place}: the statement says number {seq}"));
        }
        if seq > next && next > 0 && statement.resumed_after() == Some(next - 1) {
            self.report.left_out.push((next, seq - 1));
        } else if seq != next && self.behind != Some(index) {
            self.report.problem(format!("{place}: number {next} was expected"));
        }
        self.next = seq.saturating_add(1);
    }

    fn statement(&mut self, statement: &Statement, place: &str, index: u64) {
        *self.report.kinds.entry(statement.kind.as_str()).or_default() += 1;
        // A shard says of the last one before it alone how it ended, at each start.
        // What was said in between makes a word that was said before a new one.
        let last = |ended: &Ended| self.report.ended.iter().rfind(|other| other.origin == ended.origin) == Some(ended);
        if let Some(ended) = statement.ended().filter(|ended| !last(ended)) {
            if self.report.ended.len() < MAX_ENDED {
                self.report.ended.push(ended);
            } else {
                self.report.problem(format!("{place}: says of more than {MAX_ENDED} shards how they ended"));
            }
        }
        if statement.issued != statement.signed_at / 1_000_000_000 {
            self.report.problem(format!("{place}: its two times differ"));
        }
        if let Err(why) = self.trust.follow(statement, index) {
            self.report.problem(format!("{place}: {why}"));
        }
    }

    fn leaf(&mut self, leaf: Hash) {
        let (files, report, checked, bundle) = (&self.files, &mut self.report, &mut self.checked, &mut self.bundle);
        let (unwritten, told, gone) = (&mut self.unwritten, &mut self.told, &mut self.gone);
        let covered = self.heads.note.as_ref().map_or(0, |(_, checkpoint)| checkpoint.size);
        let mut same = |tile: Tile, bytes: &[u8]| match files.read(tile) {
            Ok(there) if there == bytes => drop(checked.insert(tile)),
            Ok(_) => {
                told.insert(tile);
                report.problem(format!("{tile}: not what the entries make of it"));
            }
            // Its entries were read, and it was pruned since.
            Err(TreeError::Missing(_)) if tile.level.is_none() && gone.has(tile.number) => drop(checked.insert(tile)),
            Err(error) if tile.leaves().end <= covered => {
                told.insert(tile);
                report.problem(error.to_string());
            }
            Err(_) => drop(unwritten.insert(tile, bytes.to_vec())),
        };
        self.edge.push_leaf(leaf, |level, number, hashes| {
            let full = Tile { level: Some(level), number, width: WIDTH as u16 };
            if level == 0 {
                let entries = std::mem::take(bundle);
                // Of a pruned bundle only the hashes are left.
                if !entries.is_empty() {
                    same(Tile { level: None, ..full }, &entries);
                }
            }
            same(full, hashes.as_flattened());
        });
        self.heads.see(&self.edge);
    }

    /// Every file under `tile` is one that the entries make, and those of the checkpoint's tree are there.
    fn tiles(&mut self, there: Vec<(PathBuf, Option<Listed>)>) -> io::Result<()> {
        let covered = self.heads.note.as_ref().map_or(0, |(_, checkpoint)| checkpoint.size);
        // Each is told of once.
        let mut known = std::mem::take(&mut self.told);
        for (path, listed) in there {
            match listed {
                Some(Listed::Full(tile)) if known.contains(&tile) => {}
                Some(Listed::Full(tile)) if self.checked.contains(&tile) => drop(known.insert(tile)),
                // It was pruned since it was listed.
                Some(Listed::Full(tile)) if tile.level.is_none() && tile.leaves().end <= self.report.first_index => {}
                Some(Listed::Partial(tile, bytes)) if self.is_beginning(tile, &bytes)? => drop(known.insert(tile)),
                listed => {
                    known.extend(listed.map(|(Listed::Full(tile) | Listed::Partial(tile, _))| tile));
                    self.report.problem(format!("{}: not what the entries make of it", path.display()));
                }
            }
        }
        // A checkpoint may say any size; there are no tiles of more than there are entries, and what is missing is told with its root.
        for tile in Tile::added(0, covered.min(self.edge.size())) {
            // A crash may have left the next one instead, of which it is the beginning.
            let wider = |found: &Tile| (found.level, found.number) == (tile.level, tile.number) && found.width > tile.width;
            let pruned = tile.level.is_none() && tile.leaves().end <= self.report.first_index;
            if !pruned && !known.contains(&tile) && (tile.is_full() || !known.iter().any(wider)) {
                self.report.problem(format!("{tile}: missing"));
            }
        }
        Ok(())
    }

    /// Whether a partial tile is the beginning of what the entries make.
    fn is_beginning(&self, tile: Tile, bytes: &[u8]) -> io::Result<bool> {
        let full = Tile { width: WIDTH as u16, ..tile };
        let whole = if tile.leaves().end > self.edge.size() {
            return Ok(false);
        } else if full.leaves().end <= self.edge.size() {
            // A tile that is full by now, and was verified, or would be if it were there.
            match self.unwritten.get(&full) {
                Some(unwritten) => unwritten.clone(),
                None if self.checked.contains(&full) => self.files.read(full).map_err(|error| io::Error::other(error.to_string()))?,
                None => return Ok(false),
            }
        } else {
            tile.level.map_or_else(|| self.bundle.clone(), |level| self.edge.partial(level).as_flattened().to_vec())
        };
        let length = match tile.level {
            Some(_) => usize::from(tile.width) * 32,
            None => tile::entries(bytes).filter(|entries| entries.len() == usize::from(tile.width)).map_or(usize::MAX, |_| bytes.len()),
        };
        Ok(bytes.len() == length && whole.starts_with(bytes))
    }

    fn checkpoint(&mut self) {
        let report = &mut self.report;
        if let Some((note, checkpoint)) = &self.heads.note {
            (report.origin, report.covered) = (Some(checkpoint.origin.clone()), checkpoint.size);
            report.root = Some(hex(&checkpoint.root));
            if !self.cut && self.heads.found.0 != Some(checkpoint.root) {
                report.problem(format!("{CHECKPOINT}: its root is not that of the first {} entries", checkpoint.size));
            }
            if !checkpoint.extensions.is_empty() {
                report.problem(format!("{CHECKPOINT}: lines that this version does not know"));
            }
            let trusted = self.trust.keys();
            match note.open(trusted) {
                Ok(opened) => {
                    report.signed_by = opened.verified.iter().map(|line| named(&trusted[line.key])).collect();
                    for line in opened.unknown.iter().filter_map(|line| note.lines().get(*line)) {
                        report.problem(format!("{CHECKPOINT}: a line of {}, whose key is not known", line.name));
                    }
                    let own = |key: &Vkey| key.name == checkpoint.origin && self.trust.holds(key, checkpoint.size);
                    if !opened.verified.iter().any(|line| own(&trusted[line.key])) {
                        report.problem(format!("{CHECKPOINT}: not signed by the log's own key"));
                    }
                }
                Err(error) => report.problem(format!("{CHECKPOINT}: {error}")),
            }
        }
        if let Some((note, checkpoint, root)) = &self.heads.witnessed {
            if *root != Some(checkpoint.root) && (!self.cut || root.is_some()) {
                report.problem(format!("{WITNESSED}: its root is not that of the first {} entries", checkpoint.size));
            }
            // Those whose keys nobody gave are held against the keys that the log lists: they must be whole, and count for nothing.
            let trusted = self.trust.keys();
            let listed: Vec<Vkey> = trusted.iter().chain(self.own.iter().filter(|key| !trusted.contains(key))).cloned().collect();
            match note.open(&listed) {
                Ok(opened) => {
                    for line in opened.unknown.iter().filter_map(|line| note.lines().get(*line)) {
                        report.problem(format!("{WITNESSED}: a line of {}, whose key is not known: give it by --key", line.name));
                    }
                    let own = |line: &Verified| line.key < trusted.len() && self.trust.holds(&listed[line.key], checkpoint.size);
                    if !opened.verified.iter().any(own) {
                        report.problem(format!("{WITNESSED}: not signed by the log's own key"));
                    }
                    let witnesses =
                        opened.verified.iter().filter(|line| listed[line.key].name != checkpoint.origin && line.key < trusted.len());
                    report.witnessed = Some((checkpoint.size, witnesses.map(|line| named(&listed[line.key])).collect()));
                }
                Err(error) => report.problem(format!("{WITNESSED}: {error}")),
            }
        }
        if let Some(signed) = &self.heads.signed_root {
            if !self.cut && self.heads.found.1.is_none() {
                report.problem(format!("{CHECKPOINT_COSE}: its root is not that of any tree from the checkpoint's on"));
            }
            let size = self.heads.found.1.unwrap_or(u64::MAX);
            if !self.trust.keys().iter().any(|key| self.trust.holds(key, size) && signed.signed_by(key)) {
                report.problem(format!("{CHECKPOINT_COSE}: not signed by the log's own key"));
            }
        }
        for index in self.kept.keys() {
            report.problem(format!("entry.{index}: there is no such entry"));
        }
        // Those of the last bundle are overwritten after it is gone.
        match self.ids.forgets(report.first_index.saturating_sub(WIDTH)) {
            Ok(true) => {}
            Ok(false) => report.problem(format!("{IDS}: ids of entries that are pruned")),
            Err(error) => report.problem(format!("{IDS}: {error}")),
        }
        if !self.cut && (!self.ids.length().is_multiple_of(ID) || self.ids.length() / ID > self.edge.size()) {
            report.problem(format!("{IDS}: longer than the log, or cut short"));
        }
    }
}

/// A verifier key without the key: its name and its id.
fn named(vkey: &Vkey) -> String {
    format!("{}+{:08x}", vkey.name, vkey.id())
}

/// Verifies one statement on its own, as a caller holds it; whether the log has it is another question.
///
/// # Errors
/// With what does not hold.
pub fn verify_statement(entry: &[u8], key: &Vkey) -> Result<Statement, String> {
    let statement = Statement::read(entry).map_err(|error| error.to_string())?;
    if statement.signed_by(key) { Ok(statement) } else { Err("the signature is not this key's, or the origin is another".into()) }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
