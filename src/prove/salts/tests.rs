use std::collections::HashSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::file::HEADER;
use super::*;
use crate::secret::Secret;

struct House {
    folder: tempfile::TempDir,
    sealing: Arc<Sealing>,
}

fn house() -> House {
    House { folder: tempfile::tempdir().unwrap(), sealing: sealing(1) }
}

fn sealing(seed: u8) -> Arc<Sealing> {
    Sealing::new(&Secret::new(vec![seed; 32])).unwrap()
}

impl House {
    fn try_open(&self) -> Result<(Salts, Found), OpenError> {
        Salts::open(self.folder.path(), &self.sealing, None, 0, 3)
    }

    fn open(&self) -> Salts {
        self.try_open().unwrap().0
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn length(&self) -> usize {
        fs::metadata(self.path(FILE)).unwrap().len() as usize
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(self.folder.path()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn who(caller: &str) -> Arc<Who> {
    Arc::new(Who { caller: caller.into(), tenant: "acme".into(), tier: "".into(), method: "api_key" })
}

/// What identifies a salting: the salt of one record.
fn salt(salting: &Salting) -> [u8; 32] {
    salting.salt(Uuid::max(), "response")
}

fn kept(salts: &Salts, caller: &str, seq: u64) -> Option<[u8; 32]> {
    salts.of_subject(&who(caller), seq).map(|salting| salt(&salting))
}

fn told(seq: u64) -> impl FnOnce(Destroyed) -> Result<(u64, Destroyed), ()> {
    move |destroyed| Ok((seq, destroyed))
}

const SUBJECT: Destroyed = Destroyed { whose: Whose::Subject, month: None };

#[test]
fn a_caller_keeps_its_key_and_a_month_its_own_over_a_restart() {
    let house = house();
    let (salts, found) = house.try_open().unwrap();
    assert!(found.begun);
    let one = salts.of(Some(&who("a")), 202_611, Some(7));
    let next_month = salts.of(Some(&who("a")), 202_612, Some(8));
    let other = salts.of(Some(&who("b")), 202_611, Some(9));
    let strangers = [202_611, 202_612].map(|month| salt(&salts.of(None, month, Some(10))));
    assert_eq!(salt(&one), salt(&next_month));
    assert_ne!(salt(&one), salt(&other));
    assert_ne!(strangers[0], strangers[1]);
    // Pseudonyms: another in each month, for each caller and for each tenant, and of the tenant the same for all of its callers.
    let ((a, tenant), (a_later, tenant_later), (b, same)) = (one.pair.unwrap(), next_month.pair.unwrap(), other.pair.unwrap());
    assert_eq!(HashSet::from([a, tenant, a_later, tenant_later, b]).len(), 5);
    assert_eq!(tenant, same);
    let elsewhere = Who { tenant: "other".into(), ..Arc::into_inner(who("a")).unwrap() };
    assert_ne!(salts.pseudonyms(&elsewhere, 202_611).unwrap().0, a);
    assert_eq!(fs::metadata(house.path(FILE)).unwrap().permissions().mode() & 0o777, 0o600);

    drop(salts);
    let (salts, found) = house.try_open().unwrap();
    assert!(!found.begun && found.untold.is_empty() && found.cut_bytes == 0);
    assert_eq!(salt(&salts.of(Some(&who("a")), 202_611, Some(11))), salt(&one));
    assert_eq!(salts.pseudonyms(&who("a"), 202_611), one.pair);
    assert_eq!(salts.pseudonyms(&who("a"), 202_610), None);
    assert_eq!(salt(&salts.of_strangers(202_612, 10).unwrap()), strangers[1]);
    assert_eq!(salt(&salts.of_pseudonym(&b, 202_611, 9).unwrap()), salt(&other));
    assert!(salts.of_pseudonym(&b, 202_612, 9).is_none() && salts.of_pseudonym(&[0; 16], 202_611, 9).is_none());
    assert_eq!(salts.tally(), Tally { subjects: 2, unkept: 0 });
}

#[test]
fn the_salt_of_each_record_and_label_is_its_own_and_opens_its_commitment() {
    let salting = Salting::of(&[7; 32], None);
    let (id, digest) = (Uuid::nil(), Digest::of(b"answer"));
    assert_eq!(salting.commit(id, "response", &digest), commitment("response", &salting.salt(id, "response"), &digest));
    assert_ne!(salting.commit(id, "response", &digest), salting.commit(id, "request", &digest));
    assert_ne!(salting.commit(id, "response", &digest), salting.commit(Uuid::max(), "response", &digest));
}

#[test]
fn the_file_alone_says_no_more_than_how_many_keys_there_are() {
    let house = house();
    let salts = house.open();
    let salting = salts.of(Some(&who("api_key:a-long-name-of-a-caller")), 202_611, Some(0));
    let bytes = fs::read(house.path(FILE)).unwrap();
    assert_eq!(bytes.len(), HEADER + 2 * RECORD);
    let pair = salting.pair.unwrap();
    for known in [&b"a-long-name"[..], b"acme", &202_611_u32.to_le_bytes(), &pair.0, &pair.1] {
        assert!(memchr::memmem::find(&bytes, known).is_none(), "{known:?}");
    }
}

#[test]
fn strangers_and_whoever_comes_past_the_cap_make_the_file_no_longer() {
    let house = house();
    let salts = house.open();
    for _ in 0..1_000 {
        salts.of(None, 202_611, Some(0));
    }
    assert_eq!(house.length(), HEADER + RECORD);
    // The cap is three; the month of the pseudonyms comes to it.
    let at_the_cap = ["a", "b", "c"].map(|caller| salt(&salts.of(Some(&who(caller)), 202_611, Some(1))));
    assert_eq!((house.length(), salts.tally()), (HEADER + 5 * RECORD, Tally { subjects: 3, unkept: 0 }));
    let past = [0, 1].map(|_| salts.of(Some(&who("d")), 202_611, Some(2)));
    assert_eq!((house.length(), salts.tally()), (HEADER + 5 * RECORD, Tally { subjects: 3, unkept: 2 }));
    assert_ne!(salt(&past[0]), salt(&past[1]), "a salt for once");
    assert_eq!(past[0].pair, past[1].pair, "it has its pseudonym all the same");
    assert_eq!(past[0].pair, salts.pseudonyms(&who("d"), 202_611));
    assert_eq!(kept(&salts, "d", 2), None);
    // A new month is none of theirs.
    salts.of(Some(&who("d")), 202_612, Some(3));
    assert_eq!(house.length(), HEADER + 6 * RECORD);
    assert_eq!(["a", "b", "c"].map(|caller| kept(&salts, caller, 1)), at_the_cap.map(Some));
    // To make ready is not to make an entry.
    salts.of(Some(&who("e")), 202_611, None);
    assert_eq!(salts.tally().unkept, 3);
    // Who is erased leaves a place.
    salts.erase(salts.subject("acme", "a"), told(4)).unwrap();
    assert_eq!(salt(&salts.of(Some(&who("d")), 202_611, Some(5))), kept(&salts, "d", 5).unwrap());
    assert_eq!(kept(&salts, "d", 3), None, "what was salted for once is not taken for salted with the key that came later");
    assert_eq!(house.open().tally(), Tally { subjects: 3, unkept: 0 });
}

#[test]
fn a_torn_tail_is_cut_wherever_it_was_torn_and_what_stood_before_holds() {
    let house = house();
    let salts = house.open();
    let a = salt(&salts.of(Some(&who("a")), 202_611, Some(0)));
    let before = house.length();
    salts.of(Some(&who("b")), 202_611, Some(1));
    drop(salts);
    let whole = fs::read(house.path(FILE)).unwrap();
    assert_eq!(whole.len(), before + RECORD);
    let zeroed = |from: usize| [&whole[..from], &vec![0; whole.len() - from]].concat();
    let torn = (before..whole.len()).flat_map(|length| [whole[..length].to_vec(), zeroed(length)]);
    // More than one record may be torn by a loss of power.
    for bytes in torn.chain([[&whole[..before], &[0; 3 * RECORD + 1]].concat()]) {
        fs::write(house.path(FILE), &bytes).unwrap();
        let (salts, found) = house.try_open().unwrap();
        assert_eq!((found.cut_bytes as usize, house.length()), (bytes.len() - before, before));
        assert_eq!((kept(&salts, "a", 0), kept(&salts, "b", 1)), (Some(a), None));
        // And it goes on from there.
        let c = salt(&salts.of(Some(&who("c")), 202_611, Some(2)));
        drop(salts);
        assert_eq!(kept(&house.open(), "c", 2), Some(c));
    }
    fs::write(house.path(FILE), &whole).unwrap();
    assert_eq!(house.try_open().unwrap().1.cut_bytes, 0);
}

#[test]
fn what_is_damaged_and_no_torn_tail_does_not_open() {
    let house = house();
    let salts = house.open();
    ["a", "b"].iter().for_each(|caller| drop(salts.of(Some(&who(caller)), 202_611, Some(0))));
    drop(salts);
    let whole = fs::read(house.path(FILE)).unwrap();
    // All but the last record: there a flipped byte is a torn tail.
    for at in 0..whole.len() - RECORD {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(house.path(FILE), &bytes).unwrap();
        assert!(matches!(house.try_open(), Err(OpenError::Damaged(..))), "byte {at}");
    }
    for short in [0, HEADER - 1] {
        fs::write(house.path(FILE), &whole[..short]).unwrap();
        assert!(matches!(house.try_open(), Err(OpenError::Damaged(_, 0, _))));
    }
    // A record that was exchanged for another of the same file, with its checksum made good, does not unwrap: it belongs to its name.
    let mut bytes = whole.clone();
    let (one, other) = (HEADER, HEADER + RECORD);
    bytes.copy_within(other + 16..other + RECORD - 4, one + 16);
    let crc = crc32c::crc32c(&bytes[one..one + RECORD - 4]).to_le_bytes();
    bytes[one + RECORD - 4..one + RECORD].copy_from_slice(&crc);
    fs::write(house.path(FILE), &bytes).unwrap();
    let error = house.try_open().map(drop).unwrap_err();
    assert!(error.to_string().contains("does not unwrap"), "{error}");
}

#[test]
fn the_keys_of_another_log_do_not_open_and_the_error_says_why() {
    let mut house = house();
    drop(house.open());
    // Even without a single key in it.
    house.sealing = sealing(9);
    let error = house.try_open().map(drop).unwrap_err();
    assert!(matches!(error, OpenError::AnotherKey(_)) && error.to_string().contains("another log's key"), "{error}");
}

#[test]
fn what_the_key_before_sealed_opens_with_both_and_once_sealed_anew_with_the_new_one_alone() {
    let mut house = house();
    let salts = house.open();
    let a = salt(&salts.of(Some(&who("a")), 202_611, Some(1)));
    let pseudonyms = salts.pseudonyms(&who("a"), 202_611);
    drop(salts);
    let before = std::mem::replace(&mut house.sealing, sealing(9));
    assert!(matches!(house.try_open(), Err(OpenError::AnotherKey(_))));
    let (salts, found) = Salts::open(house.folder.path(), &house.sealing, Some(&before), 2, 3).unwrap();
    assert!(found.by_previous && !found.begun);
    assert_eq!(kept(&salts, "a", 1), Some(a));
    let old = fs::File::open(house.path(FILE)).unwrap();
    salts.reseal(&house.sealing).unwrap();
    assert_eq!(house.names(), [FILE]);
    let mut header = [1; HEADER];
    old.read_exact_at(&mut header, 0).unwrap();
    assert_eq!(header, [0; HEADER], "what the old key opens is overwritten");
    // What comes after goes into the new file, and an erasure keeps the new header.
    let b = salt(&salts.of(Some(&who("b")), 202_611, Some(3)));
    salts.of(Some(&who("c")), 202_611, Some(4));
    salts.erase(salts.subject("acme", "c"), told(5)).unwrap();
    salts.wipe().unwrap();
    salts.sync().unwrap();
    drop(salts);
    let (salts, found) = house.try_open().unwrap();
    assert!(!found.by_previous);
    assert_eq!((kept(&salts, "a", 1), kept(&salts, "b", 3), kept(&salts, "c", 4)), (Some(a), Some(b), None));
    assert_eq!(salts.pseudonyms(&who("a"), 202_611), pseudonyms);
    house.sealing = before;
    assert!(matches!(house.try_open(), Err(OpenError::AnotherKey(_))), "the old key alone opens nothing any more");
}

#[test]
fn a_crash_before_or_after_the_new_header_takes_its_place_leaves_a_file_that_opens_with_both_keys() {
    for step in 0..=3 {
        let house = house();
        let salts = house.open();
        let a = salt(&salts.of(Some(&who("a")), 202_611, Some(1)));
        let after = sealing(9);
        let header = after.header(&salts.wrapping).unwrap();
        let (file, length) = {
            let writer = held(&salts.writer);
            (writer.file.clone(), writer.length)
        };
        let mut crashed = Rewrite::begin(house.folder.path(), &header, None).unwrap();
        if step > 0 {
            crashed.catch_up(&file, length).unwrap();
        }
        if step > 1 {
            crashed.put().unwrap();
        }
        if step > 2 {
            rewrite::wipe_header(&file).unwrap();
        }
        drop(salts);
        let (salts, found) = Salts::open(house.folder.path(), &after, Some(&house.sealing), 2, 3).unwrap();
        assert_eq!((found.by_previous, kept(&salts, "a", 1)), (step < 2, Some(a)), "step {step}");
        assert_eq!(house.names(), [FILE]);
    }
}

#[test]
fn an_erasure_that_a_crash_left_half_done_is_told_after_the_file_was_sealed_anew() {
    let house = house();
    let salts = house.open();
    salts.of(Some(&who("a")), 202_611, Some(1));
    salts.erase(salts.subject("acme", "a"), told(5)).unwrap();
    // It dies before the old file is overwritten; and the next process after it sealed the new one, and before it told.
    let after = sealing(9);
    salts.reseal(&after).unwrap();
    drop(salts);
    let (salts, found) = Salts::open(house.folder.path(), &after, None, 6, 3).unwrap();
    assert_eq!(found.untold, [SUBJECT]);
    salts.wipe().unwrap();
    assert_eq!(house.names(), [FILE]);
}

#[test]
fn an_erased_key_is_nowhere_and_all_others_stay() {
    let house = house();
    let salts = house.open();
    let [a, b] = ["a", "b"].map(|caller| salt(&salts.of(Some(&who(caller)), 202_611, Some(1))));
    let stranger = salt(&salts.of(None, 202_610, Some(1)));
    let name = salts.subject("acme", "a");
    let before = fs::File::open(house.path(FILE)).unwrap();
    let old = fs::read(house.path(FILE)).unwrap();
    assert!(matches!(salts.erase(salts.subject("acme", "nobody"), told(2)), Err(Error::Unknown)));
    assert!(matches!(salts.erase(salts.subject("other", "a"), told(2)), Err(Error::Unknown)));
    assert_eq!(fs::read(house.path(FILE)).unwrap(), old, "of an unknown key nothing is touched");

    assert_eq!(salts.erase(name, told(5)).unwrap(), SUBJECT);
    assert_eq!(house.names(), [FILE, OLD], "until its entry is on the disk, the old file is what knows of it");
    salts.wipe().unwrap();
    assert_eq!(house.names(), [FILE]);
    let mut wiped = vec![1; old.len()];
    before.read_exact_at(&mut wiped, 0).unwrap();
    assert!(wiped.iter().all(|byte| *byte == 0), "the old file's own bytes are zeros");
    let new = fs::read(house.path(FILE)).unwrap();
    assert_eq!(new.len(), old.len() - RECORD);
    assert!(memchr::memmem::find(&new, &name).is_none());
    assert_eq!(fs::metadata(house.path(FILE)).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(salts.erase(name, told(6)), Err(Error::Unknown)), "it cannot be erased twice");

    // Who comes again gets another key, which is not taken for what salted the older entries; the cache knows nothing of it either.
    let again = salt(&salts.of(Some(&who("a")), 202_611, Some(7)));
    assert_ne!(again, a);
    assert_eq!((kept(&salts, "a", 5), kept(&salts, "a", 6), kept(&salts, "b", 1)), (None, Some(again), Some(b)));
    assert_eq!(salts.of_pseudonym(&salts.pseudonyms(&who("a"), 202_611).unwrap().0, 202_611, 1).map(|salting| salt(&salting)), None);

    let epoch = salts.erase(salts.month(Whose::Epoch, 202_611), told(8)).unwrap();
    assert_eq!(epoch, Destroyed { whose: Whose::Epoch, month: Some(202_611) });
    assert_eq!(salts.pseudonyms(&who("b"), 202_611), None);
    assert_eq!(salt(&salts.of_strangers(202_610, 1).unwrap()), stranger);
    salts.erase(salts.month(Whose::Strangers, 202_610), told(9)).unwrap();
    assert!(salts.of_strangers(202_610, 1).is_none());
    let b_again = salts.of(Some(&who("b")), 202_611, Some(10));
    assert_eq!(salt(&b_again), b);
    drop(salts);
    let (salts, found) = house.try_open().unwrap();
    assert!(found.untold.len() <= 1, "{found:?}");
    assert_eq!(kept(&salts, "b", 1), Some(b));
    assert_eq!(kept(&salts, "a", 7), Some(again));
}

#[test]
fn a_crash_after_any_step_of_an_erasure_leaves_the_key_or_takes_it_and_touches_no_other() {
    for step in 0..=6 {
        let house = house();
        let salts = house.open();
        let [a, b] = ["a", "b"].map(|caller| salt(&salts.of(Some(&who(caller)), 202_611, Some(1))));
        let (name, directory) = (salts.subject("acme", "a"), house.folder.path());
        let (file, length) = {
            let writer = held(&salts.writer);
            (writer.file.clone(), writer.length)
        };
        let mut crashed = Some(Rewrite::begin(directory, &held(&salts.writer).header, Some(name)).unwrap());
        if step > 0 {
            crashed.as_mut().unwrap().catch_up(&file, length).unwrap();
        }
        if step > 1 {
            crashed.as_ref().unwrap().keep_old().unwrap();
            assert_eq!(fs::metadata(house.path(OLD)).unwrap().ino(), fs::metadata(house.path(FILE)).unwrap().ino());
        }
        if step > 2 {
            crashed.take().unwrap().put().unwrap();
        }
        match step {
            4 => {
                // Overwriting had begun: some of the zeros are on the disk.
                let old = OpenOptions::new().write(true).open(house.path(OLD)).unwrap();
                old.write_all_at(&[0; HEADER + RECORD / 2], 0).unwrap();
            }
            5 => {
                let old = OpenOptions::new().write(true).open(house.path(OLD)).unwrap();
                old.write_all_at(&vec![0; length as usize], 0).unwrap();
            }
            6 => rewrite::wipe_old(directory).unwrap(),
            _ => {}
        }
        drop(salts);
        let (salts, found) = house.try_open().unwrap();
        let erased = step > 2;
        assert_eq!(kept(&salts, "a", 1), (!erased).then_some(a), "step {step}");
        assert_eq!(kept(&salts, "b", 1), Some(b), "step {step}");
        assert!(salts.pseudonyms(&who("b"), 202_611).is_some(), "step {step}");
        // Only between the new name and the first zeros may the entry be missing; then the old file stays until it is told.
        let untold = if step == 3 { vec![SUBJECT] } else { Vec::new() };
        assert_eq!(found.untold, untold, "step {step}");
        assert_eq!(house.names(), if step == 3 { vec![FILE, OLD] } else { vec![FILE] }, "step {step}");
        salts.wipe().unwrap();
        // And the next erasure is none the worse for it.
        salts.erase(salts.subject("acme", "b"), told(9)).unwrap();
        salts.wipe().unwrap();
        assert_eq!((kept(&salts, "b", 1), house.names()), (None, vec![FILE.to_owned()]), "step {step}");
    }
}

#[test]
fn a_folder_in_which_a_hand_took_the_file_away_does_not_begin_another() {
    let house = house();
    drop(house.open());
    fs::rename(house.path(FILE), house.path(OLD)).unwrap();
    let error = house.try_open().map(drop).unwrap_err();
    assert!(error.to_string().contains("restore"), "{error}");
    assert_eq!(house.names(), [OLD]);
}

#[test]
fn a_disk_that_takes_no_key_costs_the_entry_its_opening_and_nothing_else() {
    let house = house();
    let salts = house.open();
    let a = salt(&salts.of(Some(&who("a")), 202_611, Some(1)));
    // Nothing can be written through it.
    let good = std::mem::replace(&mut held(&salts.writer).file, Arc::new(File::open(house.path(FILE)).unwrap()));
    let lost = salts.of(Some(&who("b")), 202_611, Some(5));
    assert_eq!(salts.tally(), Tally { subjects: 1, unkept: 1 });
    assert_eq!(salt(&salts.of(Some(&who("a")), 202_611, Some(6))), a);
    held(&salts.writer).file = good;
    let b = salts.of(Some(&who("b")), 202_611, Some(7));
    assert_ne!(salt(&b), salt(&lost));
    assert_eq!((kept(&salts, "b", 5), kept(&salts, "b", 7)), (None, Some(salt(&b))));
    drop(salts);
    assert_eq!(kept(&house.open(), "b", 7), Some(salt(&b)));
}

#[test]
fn a_sync_comes_after_what_was_written_and_not_twice() {
    let house = house();
    let salts = house.open();
    salts.of(Some(&who("a")), 202_611, Some(1));
    assert!(salts.dirty.load(Ordering::Acquire));
    salts.sync().unwrap();
    assert!(!salts.dirty.load(Ordering::Acquire));
    salts.of(Some(&who("a")), 202_611, Some(2));
    assert!(!salts.dirty.load(Ordering::Acquire), "nothing new, nothing to sync");
    salts.broken.store(true, Ordering::Release);
    assert!(salts.sync().is_err(), "which stops the log");
}

#[test]
fn statements_that_are_made_during_erasures_lose_no_other_key_and_get_none_that_is_gone() {
    let house = house();
    let (salts, _) = Salts::open(house.folder.path(), &house.sealing, None, 0, 10_000).unwrap();
    let numbers = AtomicU64::new(1);
    let next = || numbers.fetch_add(1, Ordering::AcqRel);
    let stop = AtomicBool::new(false);
    let (mine, theirs, erased) = std::thread::scope(|scope| {
        let asks = |callers: usize| {
            let (salts, next, stop) = (&salts, &next, &stop);
            move || {
                let mut made = Vec::new();
                for turn in 0.. {
                    let caller = format!("caller-{}", turn % callers);
                    salts.of(Some(&who(&caller)), 202_611, None);
                    let seq = next();
                    made.push((caller.clone(), seq, salt(&salts.of(Some(&who(&caller)), 202_611, Some(seq)))));
                    if stop.load(Ordering::Acquire) && turn > 300 {
                        return made;
                    }
                }
                made
            }
        };
        // One caller over and over, which is erased over and over; and ever new ones beside it.
        let mine = scope.spawn(asks(1));
        let theirs = scope.spawn({
            let (salts, next, stop) = (&salts, &next, &stop);
            move || {
                let mut made = Vec::new();
                for turn in 0..2_000 {
                    // As the ledger does: the key is made before the number is drawn, so that no erasure comes between the two.
                    let caller = format!("other-{turn}");
                    salts.of(Some(&who(&caller)), 202_611, None);
                    let seq = next();
                    made.push((caller.clone(), seq, salt(&salts.of(Some(&who(&caller)), 202_611, Some(seq)))));
                    if stop.load(Ordering::Acquire) {
                        break;
                    }
                }
                made
            }
        });
        let mut erased = Vec::new();
        while erased.len() < 20 {
            match salts.erase(salts.subject("acme", "caller-0"), |_| Ok::<_, ()>((next(), ()))) {
                Ok(()) => erased.push(numbers.load(Ordering::Acquire) - 1),
                Err(Error::Unknown) => std::thread::yield_now(),
                Err(_) => panic!("the disk failed"),
            }
            salts.wipe().unwrap();
        }
        // Something must be made after the last erasure, and its maker may be asleep.
        let last = numbers.load(Ordering::Acquire);
        while numbers.load(Ordering::Acquire) < last + 500 {
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Release);
        (mine.join().unwrap(), theirs.join().unwrap(), erased)
    });
    let last = *erased.last().unwrap();
    drop(salts);
    let (salts, _) = Salts::open(house.folder.path(), &house.sealing, None, numbers.into_inner(), 10_000).unwrap();
    for (caller, seq, salted) in &theirs {
        assert_eq!(kept(&salts, caller, *seq).as_ref(), Some(salted), "{caller} {seq}");
    }
    // A salt that is told for one of its entries is the one that it was made with, or none is told.
    let told = mine.iter().filter_map(|(caller, seq, salted)| kept(&salts, caller, *seq).map(|told| (*seq, told == *salted)));
    assert!(told.clone().all(|(_, same)| same), "a wrong salt would read as a forged answer");
    let open: Vec<u64> = told.map(|(seq, _)| seq).collect();
    assert!(mine.iter().any(|(_, seq, _)| *seq > last) && !open.is_empty());
    assert_eq!(mine.iter().filter(|(_, seq, _)| *seq > last && !open.contains(seq)).count(), 0, "after the last erasure all can be opened");
}
