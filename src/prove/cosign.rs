//! Has checkpoints cosigned, one after another: while witnesses are asked about one, newer ones wait, and the newest is next.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::archive::Archive;
use super::ledger::{Ledger, OpenError};
use super::publisher::{Published, retried};
use super::tree::{Derived, Tree};
use super::witness::{Consistency, FIRST_PAUSE, Failure, Latest, Seen, Witnesses};
use crate::tlog::Note;
use crate::tlog::merkle;
use crate::verify::files::Files;
use crate::verify::folder::{WITNESSED, WITNESSED_NEW};

/// How long a checkpoint may wait for enough cosignatures before answers that need them are refused at once. Witnesses that answer take
/// milliseconds, and where a round brought not enough there are two more within this time.
pub const UNWITNESSED: Duration = Duration::from_secs(3);

/// What witnesses have done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Checkpoints that a quorum has cosigned.
    pub cosigned: u64,
    /// Entries that the newest of them covers.
    pub size: u64,
    /// How often `checkpoint.witnessed` could not be written; answers are not touched by that.
    pub unwritten: u64,
    /// By witness, how often it did not cosign; one that is left alone for a while is counted once.
    pub failures: Vec<(Arc<str>, u64)>,
}

/// A witness knows more of this log than the log itself, or another one.
#[derive(Debug)]
pub struct SetBack {
    /// Which.
    pub witness: Arc<str>,
    /// How many entries it has cosigned.
    pub size: u64,
    /// How many the log has.
    pub here: u64,
}

impl std::fmt::Display for SetBack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { witness, size, here } = self;
        if size > here {
            write!(
                f,
                "the witness {witness} has cosigned {size} entries of this log, and it has {here}: it is an older copy. Restore the newest one"
            )
        } else {
            write!(f, "the witness {witness} has cosigned other entries than the first {size} of this log: restore what was there")
        }
    }
}

impl std::error::Error for SetBack {}

/// A tree of this log that a witness has cosigned.
#[derive(Clone, Debug)]
pub struct Known {
    /// The log's name.
    pub origin: Arc<str>,
    /// Which.
    pub witness: Arc<str>,
    /// What.
    pub seen: Seen,
}

impl Known {
    /// Whether the log goes on from it, as far as that can be told before anything is written.
    pub(super) fn held_against_derived(&self, tree: &Derived) -> Result<(), OpenError> {
        let (here, Seen { size, root }) = (tree.size(), self.seen);
        let same = size <= here && tree.root(size).is_none_or(|there| there == root);
        if same { Ok(()) } else { Err(OpenError::SetBack(SetBack { witness: self.witness.clone(), size, here })) }
    }

    /// Whether the log goes on from it.
    pub(super) fn held_against(&self, tree: &Tree) -> Result<(), OpenError> {
        let (here, Seen { size, root }) = (tree.size(), self.seen);
        let same = size <= here && tree.files().root(size, here).map_err(OpenError::Tree)? == root;
        if same { Ok(()) } else { Err(OpenError::SetBack(SetBack { witness: self.witness.clone(), size, here })) }
    }
}

impl Witnesses {
    /// Asks them all what they have seen of this log, for the opening of a log; tells which could not be asked, and why.
    pub async fn known(&self) -> (Vec<Known>, Vec<(Arc<str>, Failure)>) {
        let (mut known, mut unasked) = (Vec::new(), Vec::new());
        for Latest { witness, seen } in self.latest().await {
            match seen {
                Ok(seen) => known.extend(seen.map(|seen| Known { origin: self.origin().into(), witness, seen })),
                Err(failure) => unasked.push((witness, failure)),
            }
        }
        (known, unasked)
    }
}

/// What cosigned checkpoints leave behind for those who ask.
#[derive(Debug)]
pub(super) struct Cosigning {
    /// The newest that a quorum has cosigned.
    pub(super) newest: watch::Receiver<Arc<Published>>,
    tally: Arc<Mutex<Tally>>,
    /// Since when the newest checkpoint waits for enough cosignatures, if it does.
    waiting: Arc<Mutex<Option<Instant>>>,
    /// Who is asked, where any are.
    witnesses: Option<Arc<Witnesses>>,
}

impl Cosigning {
    /// Of a log that has ended, and the last checkpoint of which a quorum has cosigned.
    pub(super) fn over(last: Published) -> Self {
        Self { newest: watch::channel(Arc::new(last)).1, tally: Arc::default(), waiting: Arc::default(), witnesses: None }
    }

    /// Those that did not cosign when they were last asked to, and why.
    pub(super) fn failing(&self) -> Vec<(Arc<str>, String)> {
        self.witnesses.as_ref().map(|witnesses| witnesses.failing()).unwrap_or_default()
    }

    /// Whether at `now` there have not been enough cosignatures for so long that none are promised.
    pub(super) fn is_stalled(&self, now: Instant) -> bool {
        stalled(*self.waiting.lock().unwrap_or_else(PoisonError::into_inner), now)
    }

    pub(super) fn tally(&self) -> Tally {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone();
        tally.size = self.newest.borrow().size;
        tally
    }
}

impl Ledger {
    /// Has every checkpoint from now on cosigned, until the log is closed. To be called once.
    pub fn follow(&self, witnesses: Witnesses) {
        self.0.archive.follow(witnesses);
    }
}

impl Archive {
    /// See [`Ledger::follow`]. Of a log that has ended the last checkpoint is cosigned, however long that takes.
    pub(super) fn follow(&self, witnesses: Witnesses) {
        let none = Published { size: 0, below: 0, root: merkle::empty(), note: String::new(), signed_root: None };
        let (tell, newest) = watch::channel(Arc::new(none));
        let tally = Tally { failures: witnesses.names().map(|name| (name.into(), 0)).collect(), ..Tally::default() };
        let witnesses = Arc::new(witnesses);
        let cosigning =
            Cosigning { newest, tally: Arc::new(Mutex::new(tally)), waiting: Arc::default(), witnesses: Some(witnesses.clone()) };
        let work = Work {
            directory: self.files.directory().to_owned(),
            files: self.files.clone(),
            published: self.published.clone(),
            witnesses,
            tell,
            tally: cosigning.tally.clone(),
            waiting: cosigning.waiting.clone(),
        };
        if self.cosigning.set(cosigning).is_ok() {
            tokio::spawn(work.run());
        }
    }
}

struct Work {
    directory: PathBuf,
    files: Files,
    published: watch::Receiver<Arc<Published>>,
    witnesses: Arc<Witnesses>,
    tell: watch::Sender<Arc<Published>>,
    tally: Arc<Mutex<Tally>>,
    waiting: Arc<Mutex<Option<Instant>>>,
}

fn stalled(waiting: Option<Instant>, now: Instant) -> bool {
    waiting.is_some_and(|since| now.saturating_duration_since(since) > UNWITNESSED)
}

impl Work {
    async fn run(mut self) {
        // What stands already is cosigned first, and then whatever is newest.
        loop {
            let published = self.published.borrow_and_update().clone();
            if published.size > 0 {
                self.waits(Some(Instant::now()));
            }
            let enough = published.size == 0 || self.cosign(&published).await;
            if enough {
                self.waits(None);
            }
            let changed = self.published.changed();
            // Answers may wait for a checkpoint that no other follows: it is tried again when a witness may be asked again.
            let changed = if enough { changed.await } else { timeout(FIRST_PAUSE, changed).await.unwrap_or(Ok(())) };
            match changed {
                Ok(()) => {}
                Err(_) if enough => return,
                // The log has ended, and its last checkpoint is without enough cosignatures still.
                Err(_) => sleep(FIRST_PAUSE).await,
            }
        }
    }

    /// Notes that a checkpoint waits, unless one did already, or that none does any more.
    fn waits(&self, since: Option<Instant>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting = since.map(|now| waiting.unwrap_or(now));
    }

    /// Says whether enough have cosigned it.
    async fn cosign(&self, published: &Arc<Published>) -> bool {
        let Ok(note) = Note::parse(published.note.as_bytes()) else { return true };
        let (files, size, newest) = (self.files.clone(), published.size, self.published.clone());
        let consistency: Consistency = Arc::new(move |old| {
            // A witness that knows more than this is told no proof: it has told that it knows more.
            let read = |now: &Arc<Published>| merkle::consistency(old.min(size), size, &mut files.subtrees(size, now.size)).ok();
            retried(&newest, read).ok_or_else(|| io::Error::other("its tiles cannot be read"))
        });
        let round = self.witnesses.cosign(&note, &consistency).await;
        {
            let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.cosigned += u64::from(round.quorum);
            for (name, _) in round.failures.iter().filter(|(_, failure)| !matches!(failure, Failure::LeftAlone | Failure::StillBusy)) {
                if let Some((_, count)) = tally.failures.iter_mut().find(|(known, _)| known == name) {
                    *count += 1;
                }
            }
        }
        if !round.quorum {
            return false;
        }
        let Ok(note) = note.and(round.lines) else { return true };
        let note = note.to_string();
        let (directory, bytes) = (self.directory.clone(), note.clone());
        let written = tokio::task::spawn_blocking(move || replace(&directory, bytes.as_bytes())).await;
        if !matches!(written, Ok(Ok(()))) {
            self.tally.lock().unwrap_or_else(PoisonError::into_inner).unwritten += 1;
        }
        let Published { size, below, root, ref signed_root, .. } = **published;
        self.tell.send_replace(Arc::new(Published { size, below, root, note, signed_root: signed_root.clone() }));
        true
    }
}

fn replace(directory: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = directory.join(WITNESSED_NEW);
    fs::write(&new, bytes).and_then(|()| fs::rename(&new, directory.join(WITNESSED))).inspect_err(|_| drop(fs::remove_file(&new)))
}

#[cfg(test)]
pub(in crate::prove) mod tests {
    use super::*;
    use crate::event;
    use crate::prove::archive::Shared;
    use crate::prove::config::{Mode, OnFailure, Terms};
    use crate::prove::ledger::Error;
    use crate::prove::ledger::tests::{House, answer, config, house, open_in, want};
    use crate::prove::statement::Build;
    use crate::prove::want::Want;
    use crate::tlog::note::Line;
    use crate::tlog::vkey::Vkey;
    use crate::verify::folder::KEYS;
    use crate::verify::show::{Select, show};

    /// The log's witnesses have been silent for so long, and have cosigned nothing before.
    pub(in crate::prove) fn silent(house: &House, since: Duration) {
        let none = Published { size: 0, below: 0, root: merkle::empty(), note: String::new(), signed_root: None };
        let (tell, newest) = watch::channel(Arc::new(none));
        // Whoever waits for them does so in vain, and not for a channel that has ended.
        std::mem::forget(tell);
        let waiting = Arc::new(Mutex::new(Instant::now().checked_sub(since)));
        house.ledger.0.archive.cosigning.set(Cosigning { newest, tally: Arc::default(), waiting, witnesses: None }).unwrap();
    }

    #[test]
    fn a_checkpoint_may_wait_as_long_as_the_bound_says_and_not_longer() {
        let since = Instant::now();
        assert!(!stalled(None, since + 2 * UNWITNESSED));
        assert!(!stalled(Some(since), since + UNWITNESSED));
        assert!(stalled(Some(since), since + UNWITNESSED + Duration::from_nanos(1)));
        assert!(!stalled(Some(since + UNWITNESSED), since), "a clock that goes back");
    }

    #[tokio::test]
    async fn while_there_are_not_enough_witnesses_no_model_runs_for_an_answer_that_needs_them() {
        let house = house();
        silent(&house, UNWITNESSED + Duration::from_secs(1));
        let terms = |mode, on_failure| Terms { mode, on_failure };
        let reserve = |terms: &Terms, want| house.ledger.reserve(terms, want).map(drop);
        assert_eq!(reserve(&terms(Mode::Witnessed, OnFailure::Refuse), Want::default()), Err(Error::Unavailable));
        assert_eq!(house.ledger.counters().slots, 0, "nothing is kept of it");
        // What needs none goes on, and so does what the policy says to serve all the same.
        for mode in [Mode::Async, Mode::Durable, Mode::Included] {
            assert_eq!(reserve(&terms(mode, OnFailure::Refuse), want(&[("provenance-want", "mode=witnessed")])), Ok(()));
        }
        assert_eq!(reserve(&terms(Mode::Witnessed, OnFailure::Serve), Want::default()), Ok(()));
    }

    #[tokio::test]
    async fn witnesses_that_were_silent_for_a_moment_are_waited_for() {
        let house = house();
        silent(&house, UNWITNESSED / 2);
        let terms = Terms { mode: Mode::Witnessed, on_failure: OnFailure::Refuse };
        assert!(house.ledger.reserve(&terms, Want::default()).is_ok());
    }

    #[tokio::test]
    async fn the_keys_of_past_witnesses_are_listed_for_as_long_as_what_they_cosigned_is_there() {
        let house = house();
        answer(&house.ledger, &Terms::default()).await.unwrap();
        house.ledger.close();
        let [log, _, other] = house.ledger.vkeys();
        let of = |name: &str| Vkey { name: name.into(), ..other.clone() };
        let (cosigned, silent) = (of("w1.example"), of("w2.example"));
        let note = Note::parse(house.ledger.0.publisher.newest().note.as_bytes()).unwrap();
        let note = note.and(vec![Line::of(&cosigned, vec![7; 68])]).unwrap();
        let (path, House { folder, ledger, .. }) = (house.log(), house);
        drop(ledger);
        fs::write(path.join(WITNESSED), note.to_string()).unwrap();
        let listed = || fs::read_to_string(path.join(KEYS)).unwrap();
        fs::write(path.join(KEYS), format!("{}{cosigned}\n{silent}\n", listed())).unwrap();
        for there in [true, false] {
            drop(open_in(folder.path()).unwrap());
            let listed = listed();
            assert_eq!(listed.contains(&cosigned.to_string()), there);
            assert!(listed.starts_with(&log.to_string()) && !listed.contains(&silent.to_string()));
            let _ = fs::remove_file(path.join(WITNESSED));
        }
    }

    #[tokio::test]
    async fn of_a_log_that_a_witness_knows_more_of_or_another_one_nothing_is_written() {
        let house = house();
        for _ in 0..3 {
            answer(&house.ledger, &Terms::default()).await.unwrap();
        }
        house.ledger.close();
        let (log, newest) = (house.log(), house.ledger.0.publisher.newest());
        let House { folder, ledger, .. } = house;
        drop(ledger);
        let open = |size, root| {
            let seen = Seen { size, root };
            let known = [Known { origin: "gw.example/node1".into(), witness: "w.example".into(), seen }];
            let (events, _reader) = event::channel(8);
            let on_fatal: crate::prove::log::Fatal = Arc::new(|_| {});
            Ledger::open_after(&known, &config(), folder.path(), Build::default(), events, on_fatal, Shared::default()).map(drop)
        };
        let there = || {
            let entries = show(&log, Select::All).unwrap().count();
            (entries, fs::read(log.join("checkpoint")).unwrap(), fs::read(config().lock_path(folder.path())).unwrap())
        };
        let (before, size, root) = (there(), newest.size, newest.root);
        for (size, root) in [(size + 1, root), (size + 1000, root), (size - 1, root), (size, [7; 32])] {
            let refused = open(size, root).unwrap_err();
            assert!(matches!(&refused, OpenError::SetBack(by) if &*by.witness == "w.example"), "{refused}");
            assert!(refused.to_string().contains("w.example"), "{refused}");
            assert_eq!(there(), before);
        }
        for (size, root) in [(size, root), (0, merkle::empty())] {
            open(size, root).unwrap();
        }
        assert!(there().0 > before.0);
    }
}
