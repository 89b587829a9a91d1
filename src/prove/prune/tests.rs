use std::path::PathBuf;

use super::*;
use crate::prove::config::Terms;
use crate::prove::key::Vkey;
use crate::prove::ledger::Ledger;
use crate::prove::ledger::tests::{House, answer, house, open_in};
use crate::tlog::merkle;
use crate::verify::entries::Entries;
use crate::verify::files::kept_index;
use crate::verify::folder::IDS;
use crate::verify::log::{Report, verify_dir, verify_while};
use crate::verify::proof::verify_receipt;
use crate::verify::proved::{NoProof, Proved};
use crate::verify::reconcile::reconcile;
use crate::verify::segment::{First, frame, numbers, path_of};
use crate::verify::show::Select;

const DAY: u64 = 86_400_000_000_000;

/// A log whose write-ahead file begins with entry `index`, as that of one that has gone on for long does.
async fn log(entries: usize, index: u64) -> Log {
    let House { folder, ledger, .. } = house();
    for _ in 0..entries {
        ledger.accept().over();
        answer(&ledger, &Terms::default()).await.unwrap();
    }
    ledger.close();
    let vkeys = ledger.vkeys().to_vec();
    drop(ledger);
    let log = Log { folder, vkeys };
    log.begin_at(index);
    log
}

struct Log {
    folder: tempfile::TempDir,
    vkeys: Vec<Vkey>,
}

impl Log {
    fn path(&self) -> PathBuf {
        self.folder.path().join("data/log")
    }

    fn entries(&self) -> Vec<(u64, Vec<u8>)> {
        Entries::of(&self.path()).unwrap().map(Result::unwrap).collect()
    }

    fn begin_at(&self, index: u64) {
        let (entries, log) = (self.entries(), self.path());
        let seq = |entry: &[u8]| Statement::read(entry).unwrap().seq;
        let mut rest = entries.iter().filter(|(at, _)| *at >= index).peekable();
        let mut bytes = First { seq: seq(&rest.peek().unwrap().1), index }.header().to_vec();
        rest.for_each(|(_, entry)| frame(&mut bytes, seq(entry), entry));
        numbers(&log).unwrap().into_iter().for_each(|number| fs::remove_file(path_of(&log, number)).unwrap());
        fs::write(path_of(&log, 7), bytes).unwrap();
    }

    fn open(&self) -> Ledger {
        open_in(self.folder.path()).unwrap_or_else(|error| panic!("{error}")).0
    }

    fn verify(&self) -> Report {
        verify_dir(&self.path(), Some(&self.vkeys[..1])).unwrap()
    }

    fn there(&self, bundle: u64) -> bool {
        Files::of(&self.path()).path(Tile { level: None, number: bundle, width: 256 }).exists()
    }

    /// When the last entry of a bundle was signed.
    fn latest(&self, bundle: u64) -> u64 {
        let of_bundle = self.entries().into_iter().filter(|(index, _)| index / WIDTH == bundle);
        of_bundle.map(|(_, entry)| Statement::read(&entry).unwrap().signed_at).max().unwrap()
    }
}

fn pruner(ledger: &Ledger) -> Pruner {
    let inner = &ledger.0;
    let (files, ids, wal, heart) = (inner.archive.files.clone(), inner.archive.ids.clone(), inner.wal.clone(), inner.heart.clone());
    Pruner { files, ids, wal, heart, keep: Duration::from_nanos(DAY), witnessed: false, told: Told::default() }
}

/// A run, on a thread that may block.
fn run(pruner: &Pruner, now: u64, stop: impl Fn() -> bool + Send + Sync) -> io::Result<bool> {
    std::thread::scope(|scope| scope.spawn(|| pruner.run(now, stop)).join().unwrap())
}

fn prune(ledger: &Ledger) -> bool {
    run(&pruner(ledger), later(), || false).unwrap()
}

fn later() -> u64 {
    crate::clock::Moment::now().unix_nanos() + 2 * DAY
}

#[tokio::test]
async fn what_is_exactly_as_old_as_is_kept_stays_and_a_nanosecond_later_it_goes() {
    let log = log(800, 768).await;
    let latest = [0, 1, 2].map(|bundle| log.latest(bundle));
    let ledger = log.open();
    let pruner = pruner(&ledger);
    let to = |now| pruner.plan(now, 768).unwrap().to;
    assert_eq!(to(latest[0] + DAY), 0);
    assert!(to(latest[0] + DAY + 1) > 0);
    // The clock of a bundle's last entry, and not of its first ones, for each of the bundles in turn.
    for now in latest.iter().flat_map(|latest| [latest + DAY, latest + DAY + 1]) {
        assert_eq!(to(now), latest.iter().take_while(|latest| now.saturating_sub(**latest) > DAY).count() as u64);
    }
    assert_eq!((to(0), to(latest[0])), (0, 0), "a clock that went back removes nothing");
    assert_eq!(pruner.plan(later(), 768).unwrap().kept.len(), 1, "entry 0 endorses the keys");
    // And the run does what the plan says.
    let gone = to(latest[0] + DAY + 1);
    assert!(!run(&pruner, latest[0] + DAY + 1, || false).unwrap());
    assert_eq!([0, 1, 2].map(|bundle| log.there(bundle)), [0, 1, 2].map(|bundle| bundle >= gone));
}

#[tokio::test]
async fn a_bundle_that_the_write_ahead_file_begins_in_or_that_is_not_full_stays() {
    for (first, gone) in [(255, 0), (256, 1), (257, 1), (511, 1), (512, 2), (513, 2), (600, 2)] {
        let log = log(800, first).await;
        let ledger = log.open();
        assert!(!prune(&ledger));
        assert_eq!([0, 1, 2, 3].map(|bundle| log.there(bundle)), [gone < 1, gone < 2, true, false], "from {first}");
        ledger.close();
        drop(ledger);
        let report = log.verify();
        assert!(report.ok, "from {first}: {report:?}");
        assert_eq!(report.first_index, gone * 256);
        assert_eq!(log.entries()[0].0, gone * 256);
        drop(log.open());
    }
}

#[tokio::test]
async fn nothing_goes_that_witnesses_have_not_cosigned() {
    let log = log(600, 512).await;
    let ledger = log.open();
    let pruner = Pruner { witnessed: true, ..pruner(&ledger) };
    let go = || run(&pruner, later(), || false).unwrap();
    go();
    assert!(log.there(0), "no checkpoint was ever cosigned");
    for (size, gone) in [(255, 0), (256, 1), (511, 1), (512, 2)] {
        let checkpoint = Checkpoint { origin: "gw.example/node1".into(), size, root: [0; 32], extensions: Vec::new() };
        let note = ledger.0.signer.sign_checkpoint(&checkpoint, 1).unwrap();
        fs::write(log.path().join(WITNESSED), note.to_string()).unwrap();
        go();
        assert_eq!([0, 1].map(|bundle| log.there(bundle)), [gone < 1, gone < 2], "{size}");
    }
}

#[tokio::test]
async fn what_remains_is_proved_as_before_and_what_is_gone_is_said_to_be() {
    let log = log(600, 512).await;
    let all = log.entries();
    let proved: Vec<_> = [0, 300, 511, 512, 599]
        .map(|index| {
            let found = Proved::in_folder(&log.path(), Select::Index(index)).unwrap();
            (index, found.receipt(), found.entry().to_vec())
        })
        .into();
    let ledger = log.open();
    assert!(!prune(&ledger));
    assert_eq!(ledger.serve("/log/tile/entries/000").await, None);
    assert_eq!(ledger.serve("/log/tile/entries/001").await, None);
    assert!(ledger.serve("/log/tile/0/000").await.is_some() && ledger.serve("/log/tile/entries/002.p/1").await.is_some());
    let id = |index: usize| Statement::read(&all[index].1).unwrap().id;
    assert!(ledger.0.archive.ids.find(id(3)).unwrap().is_empty());
    assert_eq!(ledger.0.archive.ids.find(id(550)).unwrap(), [550]);
    ledger.close();
    let size = ledger.0.publisher.newest().size;
    // Between any two sizes, those that ended among what is gone too.
    let root = |size| ledger.0.archive.files.root(size, ledger.0.publisher.newest().size).unwrap();
    for old in [1, 256, 300, 512, 513, 600] {
        let proof = merkle::consistency(old, size, &mut ledger.0.archive.files.subtrees(size, size)).unwrap();
        merkle::verify_consistency(old, size, &proof, &root(old), &root(size)).unwrap();
    }
    drop(ledger);
    for (index, receipt, entry) in proved {
        assert_eq!(verify_receipt(&receipt, &entry, &log.vkeys[0]).unwrap().0, index, "made before, it verifies after");
        let now = Proved::in_folder(&log.path(), Select::Index(index));
        match now {
            Ok(found) if index >= 512 => drop(verify_receipt(&found.receipt(), &entry, &log.vkeys[0]).unwrap()),
            Err(NoProof::Pruned(512)) => assert!(index < 512),
            other => panic!("{index}: {other:?}"),
        }
    }
    for gone in [Select::Seq(3), Select::Id(id(3)), Select::Index(511)] {
        assert!(matches!(Proved::in_folder(&log.path(), gone), Err(NoProof::Pruned(512))), "{gone:?}");
    }
    assert!(matches!(Proved::in_folder(&log.path(), Select::Seq(u64::MAX)), Err(NoProof::NoSuchEntry)));
    // It tells what it did, and its counts hold.
    let (last, mut rest) = Entries::last(&log.path(), 1_000).unwrap();
    assert_eq!((last[0].0, rest.next().is_none(), Entries::first_index(&log.path()).unwrap()), (512, true, 512));
    let told = last.iter().map(|(_, entry)| Statement::read(entry).unwrap().view()).find(|view| view["change"]["outcome"] == "pruned");
    assert_eq!(told.unwrap()["change"]["reason"], "entries before 512");
    assert!(reconcile(log.entries().into_iter().map(Ok), None).unwrap().ok);
}

#[tokio::test]
async fn a_log_that_is_pruned_between_any_two_reads_of_it_holds() {
    for at in 0.. {
        let log = log(900, 768).await;
        let ledger = log.open();
        let (mut reads, mut pruned) = (0, false);
        let report = verify_while(&log.path(), Some(&log.vkeys[..1]), &mut |_| {
            if reads == at {
                assert!(!prune(&ledger));
                pruned = true;
            }
            reads += 1;
        });
        let report = report.unwrap();
        assert!(report.ok, "at {at}: {report:?}");
        if !pruned {
            assert!(at > 3, "each bundle is read, and a segment");
            break;
        }
        assert!(!log.there(0) && !log.there(2) && log.verify().ok);
    }
}

#[tokio::test]
async fn only_what_went_from_the_beginning_on_was_pruned_meanwhile() {
    let log = log(900, 768).await;
    let bundle = |number| Files::of(&log.path()).path(Tile { level: None, number, width: 256 });
    let aside = log.path().with_extension("aside");
    let problems = |number| {
        let report = verify_while(&log.path(), Some(&log.vkeys[..1]), &mut |_| drop(fs::rename(bundle(number), &aside))).unwrap();
        fs::rename(&aside, bundle(number)).unwrap();
        report.problems
    };
    // The first is gone and nothing is kept of it; then one in the middle, beside what a prune leaves.
    assert!(problems(0).iter().any(|problem| problem.starts_with("entry.0: missing")));
    fs::write(log.path().join("entry.0"), &log.entries()[0].1).unwrap();
    let told = problems(1);
    assert!(told.len() == 1 && told[0].contains("tile/entries/001"), "{told:?}");
    assert!(log.verify().ok);
}

#[tokio::test]
async fn ids_that_are_overwritten_while_the_log_is_read_were_pruned_or_are_other_ids() {
    for pruned in [true, false] {
        let log = log(600, 512).await;
        let ledger = log.open();
        let mut first = true;
        let report = verify_while(&log.path(), Some(&log.vkeys[..1]), &mut |_| {
            let zeros = [0; (WIDTH * 16) as usize];
            match std::mem::take(&mut first) {
                true if pruned => drop(prune(&ledger)),
                true => std::os::unix::fs::FileExt::write_all_at(
                    &fs::OpenOptions::new().write(true).open(log.path().join(IDS)).unwrap(),
                    &zeros,
                    0,
                )
                .unwrap(),
                false => {}
            }
        });
        let report = report.unwrap();
        assert_eq!(report.ok, pruned, "{report:?}");
        let told = report.problems.iter().all(|problem| problem.starts_with("ids: another id"));
        assert!(told, "{report:?}");
    }
}

#[tokio::test]
async fn entries_that_are_pruned_while_they_are_read_are_left_out_and_the_counts_go_on() {
    for at in [0, 1, 255, 256, 300, 700, 899] {
        let log = log(900, 768).await;
        let ledger = log.open();
        let mut seen = Vec::new();
        for entry in Entries::of_covered(&log.path()).unwrap() {
            if seen.len() == at {
                assert!(!prune(&ledger));
            }
            seen.push(entry.unwrap());
        }
        assert!(seen.is_sorted_by_key(|(index, _)| *index) && seen.last().unwrap().0 >= 900, "at {at}");
        let counts = reconcile(seen.into_iter().map(Ok), None).unwrap();
        assert!(counts.ok, "at {at}: {counts:?}");
    }
}

#[tokio::test]
async fn a_segment_that_is_removed_between_any_two_reads_is_read_from_its_bundles() {
    for at in 0..5 {
        let log = log(900, 512).await;
        // The first segment ends in the middle of a bundle that is full.
        let (entries, path) = (log.entries(), log.path());
        let seq = |entry: &[u8]| Statement::read(entry).unwrap().seq;
        for (number, from, to) in [(7, 512, 600), (8, 600, u64::MAX)] {
            let mut of = entries.iter().filter(|(index, _)| (from..to).contains(index)).peekable();
            let mut bytes = First { seq: seq(&of.peek().unwrap().1), index: from }.header().to_vec();
            of.for_each(|(_, entry)| frame(&mut bytes, seq(entry), entry));
            fs::write(path_of(&path, number), bytes).unwrap();
        }
        assert!(log.verify().ok);
        let mut reads = 0;
        let report = verify_while(&path, Some(&log.vkeys[..1]), &mut |_| {
            if reads == at {
                fs::remove_file(path_of(&path, 7)).unwrap();
            }
            reads += 1;
        });
        let report = report.unwrap();
        assert!(report.ok && report.entries == entries.len() as u64, "at {at}: {report:?}");
        assert!(log.verify().ok);
    }
}

#[tokio::test]
async fn a_gateway_that_is_started_removes_what_is_too_old_by_itself() {
    let log = log(600, 512).await;
    // Shorter than a policy may say, so that the test need not wait for a day.
    let text = "directory = \"data/log\"\norigin = \"gw.example/node1\"\nkey = \"provenance.key\"\nkeep = \"1ms\"";
    let (events, _reader) = crate::event::channel(64);
    let build = crate::prove::Build::default();
    let opened = Ledger::open(&toml::from_str(text).unwrap(), log.folder.path(), build, events, Box::new(|_| {}));
    let ledger = opened.unwrap_or_else(|error| panic!("{error}")).0;
    let asked = std::time::Instant::now();
    while (log.there(0) || log.there(1)) && asked.elapsed() < Duration::from_secs(20) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    answer(&ledger, &Terms::default()).await.unwrap();
    ledger.close();
    assert_eq!(ledger.counters().checkpoints.unpruned, 0);
    drop(ledger);
    let report = log.verify();
    assert!(report.ok && report.first_index == 512, "{report:?}");
}

#[tokio::test]
async fn a_pruned_log_opens_again_also_without_its_ids() {
    let log = log(600, 512).await;
    let ledger = log.open();
    prune(&ledger);
    ledger.close();
    drop(ledger);
    for lost in [false, true] {
        if lost {
            fs::remove_file(log.path().join(IDS)).unwrap();
        }
        let ledger = log.open();
        let last = Statement::read(&log.entries()[70].1).unwrap();
        assert_eq!(ledger.0.archive.ids.find(last.id).unwrap(), [582]);
        assert!(!prune(&ledger), "there is nothing more to remove");
        ledger.close();
        drop(ledger);
        let report = log.verify();
        assert!(report.ok && report.first_index == 512, "{report:?}");
        assert!(report.summary().contains("before 512 were pruned"));
    }
}

#[tokio::test]
async fn a_crash_between_the_steps_leaves_a_log_that_verifies_and_the_next_run_goes_on() {
    for step in 0..=4 {
        let log = log(600, 512).await;
        let ledger = log.open();
        let pruner_of = pruner(&ledger);
        let plan = pruner_of.plan(later(), 512).unwrap();
        assert_eq!((plan.from, plan.to, plan.kept.len()), (0, 2, 1));
        if step > 0 {
            std::thread::scope(|scope| scope.spawn(|| pruner_of.tell(later(), 512)).join().unwrap()).unwrap();
        }
        if step > 1 {
            keep(&log.path(), 0, &plan.kept[0].1).unwrap();
        }
        if step > 2 {
            pruner_of.remove(0).unwrap();
        }
        if step > 3 {
            pruner_of.ids.forget(0).unwrap();
        }
        fs::write(log.path().join(NEW_ENTRY), b"half").unwrap();
        ledger.close();
        drop((pruner_of, ledger));
        // The entry that tells it bears a time to come, which the checkpoint does not mind.
        let report = log.verify();
        assert!(report.ok, "step {step}: {report:?}");
        let ledger = log.open();
        assert!(!log.path().join(NEW_ENTRY).exists());
        assert!(!prune(&ledger));
        ledger.close();
        drop(ledger);
        let report = log.verify();
        assert!(report.ok && report.first_index == 512, "step {step}: {report:?}");
    }
}

#[tokio::test]
async fn the_entries_that_hand_a_log_over_are_kept_and_lead_on_from_the_first_key() {
    use crate::prove::rotation::tests::open;
    let folder = tempfile::tempdir().unwrap();
    let mut vkeys = Vec::new();
    for (key, previous) in [(0, None), (1, Some(0))] {
        let (ledger, _) = open(folder.path(), key, previous).unwrap();
        vkeys.extend(ledger.vkeys());
        for _ in 0..300 {
            answer(&ledger, &Terms::default()).await.unwrap();
        }
        ledger.close();
    }
    fs::create_dir(folder.path().join("data")).unwrap();
    for (from, to) in [("log", "data/log"), ("log.lock", "data/log.lock"), ("1.pem", "provenance.key")] {
        fs::rename(folder.path().join(from), folder.path().join(to)).unwrap();
    }
    let log = Log { folder, vkeys };
    log.begin_at(512);
    let ledger = log.open();
    prune(&ledger);
    ledger.close();
    drop(ledger);
    let kept: Vec<u64> = Files::of(&log.path()).kept().unwrap().into_keys().collect();
    assert!(kept.len() == 2 && kept[0] == 0 && (301..512).contains(&kept[1]), "{kept:?}");
    assert!(log.verify().ok, "{:?}", log.verify());
    // Without the second one nothing vouches for who signs now.
    let handed = log.path().join(format!("entry.{}", kept[1]));
    fs::remove_file(handed).unwrap();
    assert!(!log.verify().ok);
}

#[tokio::test]
async fn a_run_that_is_told_to_stop_goes_on_later() {
    let log = log(600, 512).await;
    let ledger = log.open();
    let asked = std::sync::atomic::AtomicUsize::new(0);
    // Asked before it tells, and before each bundle.
    let stop = || asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 1;
    assert!(run(&pruner(&ledger), later(), stop).unwrap());
    assert_eq!([0, 1].map(|bundle| log.there(bundle)), [false, true]);
    assert!(!prune(&ledger));
    assert!(!log.there(1));
}

#[tokio::test]
async fn what_is_kept_beside_a_pruned_log_is_the_very_entry_that_stood_there() {
    let log = log(600, 512).await;
    let ledger = log.open();
    prune(&ledger);
    ledger.close();
    drop(ledger);
    let path = log.path().join("entry.0");
    let good = fs::read(&path).unwrap();
    let tells = |what: &str| {
        let report = log.verify();
        assert!(!report.ok && report.problems.iter().any(|problem| problem.contains(what)), "{what}: {report:?}");
    };
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&path, bad).unwrap();
        if at % 50 == 0 {
            tells("entry.0: not the entry that stood there");
        }
    }
    fs::remove_file(&path).unwrap();
    tells("entry.0: missing");
    fs::write(&path, &good).unwrap();
    for (name, what) in
        [("entry.3", "not the entry that stood there"), ("entry.9999", "there is no such entry"), ("entry.03", "nothing that belongs")]
    {
        fs::write(log.path().join(name), &good).unwrap();
        tells(what);
        fs::remove_file(log.path().join(name)).unwrap();
    }
    assert!(log.verify().ok);
    let ids = log.path().join(IDS);
    let mut bytes = fs::read(&ids).unwrap();
    bytes[5] = 1;
    fs::write(&ids, bytes).unwrap();
    tells("ids of entries that are pruned");
}

#[tokio::test]
async fn what_goes_makes_room_in_a_log_that_is_full_and_is_told_then() {
    let log = log(600, 512).await;
    let ledger = log.open();
    let (pruner, wal) = (pruner(&ledger), ledger.0.wal.clone());
    let full = || {
        wal.pretend_full();
        false
    };
    assert!(run(&pruner, later(), full).unwrap(), "there is more to do: to tell it");
    assert!(!log.there(0) && !log.there(1));
    while wal.tally().full {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!run(&pruner, later(), || false).unwrap());
    assert!(!run(&pruner, later(), || false).unwrap());
    ledger.close();
    let told = |(_, entry): &(u64, Vec<u8>)| Statement::read(entry).unwrap().view()["change"]["reason"] == "entries before 512";
    assert_eq!(log.entries().iter().filter(|entry| told(entry)).count(), 1, "once");
    assert!(log.verify().ok, "{:?}", log.verify());
}

#[tokio::test]
async fn what_a_process_pruned_on_a_full_disk_is_told_by_the_next() {
    let log = log(600, 512).await;
    let ledger = log.open();
    let wal = ledger.0.wal.clone();
    let full = || {
        wal.pretend_full();
        false
    };
    assert!(run(&pruner(&ledger), later(), full).unwrap());
    ledger.close();
    drop((ledger, wal));
    let ledger = log.open();
    let pruner = pruner(&ledger);
    (0..2).for_each(|_| assert!(!run(&pruner, 0, || false).unwrap()));
    ledger.close();
    let told = |(_, entry): &(u64, Vec<u8>)| Statement::read(entry).unwrap().view()["change"]["reason"] == "entries before 512";
    assert_eq!(log.entries().iter().filter(|entry| told(entry)).count(), 1, "once");
    assert!(log.verify().ok, "{:?}", log.verify());
}

#[tokio::test]
async fn entry_0_is_kept_before_its_bundle_is_old() {
    let log = log(600, 512).await;
    let ledger = log.open();
    assert!(!run(&pruner(&ledger), 0, || false).unwrap());
    assert_eq!(fs::read(log.path().join("entry.0")).unwrap(), log.entries()[0].1);
    ledger.close();
    drop(ledger);
    let report = log.verify();
    assert!(report.ok && report.first_index == 0, "{report:?}");
}

#[tokio::test]
async fn a_run_that_fails_names_the_file_and_what_it_told_is_not_told_again() {
    let log = log(600, 512).await;
    let ledger = log.open();
    let pruner = pruner(&ledger);
    let bundle = Files::of(&log.path()).path(Tile { level: None, number: 0, width: 256 });
    let good = fs::read(&bundle).unwrap();
    let asked = std::sync::atomic::AtomicUsize::new(0);
    for _ in 0..2 {
        asked.store(0, Ordering::Relaxed);
        // Asked before it tells, and before each bundle.
        let stands = || {
            if asked.fetch_add(1, Ordering::Relaxed) == 1 {
                fs::remove_file(&bundle).unwrap();
                fs::create_dir(&bundle).unwrap();
            }
            false
        };
        let why = run(&pruner, later(), stands).unwrap_err().to_string();
        assert!(why.starts_with(&bundle.display().to_string()), "{why}");
        fs::remove_dir(&bundle).unwrap();
        fs::write(&bundle, &good).unwrap();
    }
    assert!(!run(&pruner, later(), || false).unwrap());
    ledger.close();
    let told = |(_, entry): &(u64, Vec<u8>)| Statement::read(entry).unwrap().view()["change"]["outcome"] == "pruned";
    assert_eq!(log.entries().iter().filter(|entry| told(entry)).count(), 1);
    assert!(log.verify().ok);
}

#[tokio::test]
async fn why_nothing_is_removed_is_told() {
    let log = log(600, 512).await;
    // It stands in the way of what is kept.
    fs::create_dir(log.path().join(NEW_ENTRY)).unwrap();
    let text = "directory = \"data/log\"\norigin = \"gw.example/node1\"\nkey = \"provenance.key\"\nkeep = \"1ms\"";
    let (events, _reader) = crate::event::channel(64);
    let build = crate::prove::Build::default();
    let ledger = Ledger::open(&toml::from_str(text).unwrap(), log.folder.path(), build, events, Box::new(|_| {})).unwrap().0;
    let asked = std::time::Instant::now();
    while ledger.not_pruning().is_none() && asked.elapsed() < Duration::from_secs(20) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(ledger.not_pruning().unwrap().contains("entry.0: "), "{:?}", ledger.not_pruning());
    assert!(ledger.counters().checkpoints.unpruned > 0 && ledger.missing().is_none());
}

#[tokio::test]
async fn files_that_are_missing_are_named_at_the_start_and_pruned_ones_are_not_missing() {
    let log = log(900, 768).await;
    let files = Files::of(&log.path());
    let path = |level, number| files.path(Tile { level, number, width: 256 });
    let missing = || files.missing(768).unwrap();
    assert_eq!(missing(), None);
    fs::rename(path(None, 1), log.path().with_extension("aside")).unwrap();
    let told = missing().unwrap();
    assert!(told.contains("tile/entries/001") && told.contains("entry.0") && !told.contains("more"), "{told}");
    let ledger = log.open();
    let asked = std::time::Instant::now();
    while ledger.missing().is_none() && asked.elapsed() < Duration::from_secs(20) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ledger.missing(), Some(told));
    fs::rename(log.path().with_extension("aside"), path(None, 1)).unwrap();
    prune(&ledger);
    assert_eq!(missing(), None, "what was pruned is not missing");
    fs::remove_file(path(Some(0), 0)).unwrap();
    fs::remove_file(path(Some(0), 2)).unwrap();
    let told = missing().unwrap();
    assert!(told.contains("tile/0/000") && told.contains("and 1 more") && !told.contains("entry.0"), "{told}");
}

#[test]
fn names_of_kept_entries_have_one_form() {
    assert_eq!(["entry.0", "entry.70000"].map(kept_index), [Some(0), Some(70_000)]);
    for bad in ["entry.", "entry.00", "entry.+1", "entry.-1", "entry.x", "entry", "new.entry", "entry.18446744073709551616"] {
        assert_eq!(kept_index(bad), None, "{bad}");
    }
}
