use super::super::loss::Loss;
use super::super::noise::Noise;
use super::super::space::{Point, SAMPLE, Z};
use super::*;
use crate::detect::exposure::holdout::{Features, Holdout};
use crate::detect::exposure::meter::Answer;

/// The sign of a product, which nothing linear tells.
fn asked(noise: &mut Noise) -> (Point, u32) {
    let mut turned = [0.0; Z];
    (turned[0], turned[1]) = (noise.normal(), noise.normal());
    let point = Point { digest: 0, z: [0.0; Z], sample: [0; SAMPLE], energy: 1.0, rough: 0.0, off: 0.0, turned, tokens: None };
    let label = u32::from(point.turned[0] * point.turned[1] > 0.0);
    (point, label)
}

fn owned() -> Arc<Owned> {
    let mut noise = Noise::new(&[5; 32], "owned");
    let rows = (0..200).map(|_| asked(&mut noise)).map(|(point, label)| (Features::of(&point.turned), label));
    Arc::new(Owned::uncorrected(Holdout::new(rows.collect::<Vec<_>>(), 2).unwrap()))
}

/// A queue whose tasks nobody does but the test.
fn held(room: usize) -> (Studies, Receiver<Task>) {
    let (queue, tasks) = sync_channel(room);
    (Studies { queue: Some(queue).into(), ..Studies::with_room(room) }, tasks)
}

fn ask(loss: &mut Loss, owned: &Arc<Owned>, studies: &Studies, noise: &mut Noise, rows: usize) {
    for _ in 0..rows {
        let (point, label) = asked(noise);
        loss.learn(owned, studies, &point, Answer::Label(label));
    }
}

#[test]
fn what_finds_no_room_is_counted_and_nobody_waits_and_it_is_offered_again() {
    let (owned, (studies, tasks)) = (owned(), held(2));
    let mut losses = [Loss::default(), Loss::default(), Loss::default()];
    let mut noise = Noise::new(&[6; 32], "asked");
    losses.iter_mut().for_each(|loss| ask(loss, &owned, &studies, &mut noise, 16));
    assert_eq!(studies.missed(), 1, "two wait, which is all that there is room for");
    tasks.recv().unwrap().done();
    ask(&mut losses[2], &owned, &studies, &mut noise, AGAIN as usize - 1);
    assert_eq!((studies.missed(), tasks.try_iter().count()), (1, 1));
    ask(&mut losses[2], &owned, &studies, &mut noise, 1);
    assert_eq!((studies.missed(), tasks.try_iter().count()), (1, 1), "it was offered again");
}

#[test]
fn what_never_finds_room_is_offered_every_eighth_row_and_the_meter_says_what_it_can() {
    let (owned, studies) = (owned(), Studies::closed());
    let mut loss = Loss::default();
    ask(&mut loss, &owned, &studies, &mut Noise::new(&[6; 32], "asked"), 40);
    assert_eq!(studies.missed(), 1 + (40 - 16) / u64::from(AGAIN));
    assert!(loss.exposure().fidelity > 0.0);
}

#[test]
fn equal_transcripts_come_to_equal_estimates_whenever_they_are_studied_and_what_is_heard_never_falls() {
    let owned = owned();
    let come_to = |at_once: bool| {
        let (studies, tasks) = held(MOST_WAITING);
        let (mut loss, mut noise, mut before) = (Loss::default(), Noise::new(&[6; 32], "asked"), 0.0);
        for _ in 0..90 {
            ask(&mut loss, &owned, &studies, &mut noise, 1);
            if at_once {
                tasks.try_iter().for_each(Task::done);
            }
            let fidelity = loss.exposure().fidelity;
            assert!(fidelity >= before);
            before = fidelity;
        }
        tasks.try_iter().for_each(Task::done);
        (before, loss.exposure().fidelity)
    };
    let ((_, at_once), (unstudied, at_last)) = (come_to(true), come_to(false));
    assert_eq!(at_once, at_last);
    assert!(unstudied < at_last, "only what was studied sees what bends: {unstudied} {at_last}");
}

#[test]
fn the_thread_does_what_it_is_given_and_ends_with_the_queue() {
    let (owned, studies) = (owned(), Studies::default());
    let mut loss = Loss::default();
    ask(&mut loss, &owned, &Studies::closed(), &mut Noise::new(&[6; 32], "asked"), 15);
    let linear = loss.exposure().fidelity;
    ask(&mut loss, &owned, &studies, &mut Noise::new(&[7; 32], "asked"), 45);
    assert_eq!(studies.missed(), 0);
    let begun = Instant::now();
    while Arc::strong_count(&owned) > 1 {
        assert!(begun.elapsed().as_secs() < 60, "what was taken along is done");
        thread::yield_now();
    }
    assert!(loss.exposure().fidelity > linear);
}

#[test]
fn what_is_kept_of_a_loss_has_its_bound() {
    let (owned, studies) = (owned(), Studies::closed());
    let mut loss = Loss::default();
    assert_eq!(loss.kept(), 0);
    ask(&mut loss, &owned, &studies, &mut Noise::new(&[6; 32], "asked"), 20);
    assert!(loss.kept() > 0 && loss.kept() <= Loss::MOST_KEPT, "{}", loss.kept());
}

#[test]
fn whoever_is_no_longer_watched_is_not_studied_and_a_clone_hears_nothing_of_what_is_under_way() {
    let (owned, (studies, tasks)) = (owned(), held(2));
    let (mut loss, mut noise) = (Loss::default(), Noise::new(&[6; 32], "asked"));
    ask(&mut loss, &owned, &studies, &mut noise, 16);
    let clone = loss.clone();
    let before = clone.exposure().fidelity;
    let task = tasks.recv().unwrap();
    let heard = task.heard.clone();
    task.done();
    assert!(heard.upgrade().is_some_and(|heard| heard.load(Ordering::Relaxed) > 0));
    assert_eq!(clone.exposure().fidelity, before);
    loss.step_back();
    assert!(heard.upgrade().is_none());
}
