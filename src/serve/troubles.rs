//! What does not work at the moment and may work again by itself: told once when it begins and once when it is over, and by `/readyz`
//! meanwhile.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::event::{Event, Name};
use crate::pipeline::House;
use crate::prove;
use crate::say::aside;

/// How often it is looked.
const EVERY: Duration = Duration::from_millis(500);

/// How long something must have worked again before that is told: what fails now and then is one trouble and not many.
const CALM: Duration = Duration::from_secs(2);

/// What does not work.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// The provenance log takes no entries.
    Entries,
    /// No checkpoint can be made.
    Checkpoint,
    /// What is older than it is kept is not removed.
    Pruning,
    /// Files of the provenance log are missing.
    Files,
    /// The log's next shard does not open.
    Shard,
    /// A witness does not cosign.
    Witness(Arc<str>),
    /// Too few of them do.
    Quorum,
    /// Lines of the security log are lost.
    SecurityLog,
    /// The security log could not be opened anew.
    Rotation,
    /// The collector does not take what it is sent.
    Collector,
    /// What is to outlive the process is not written.
    State,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entries => f.write_str("the provenance log takes no entries"),
            Self::Checkpoint => f.write_str("no checkpoint of the provenance log can be made"),
            Self::Pruning => f.write_str("entries of the provenance log that are past prove.keep cannot be removed"),
            Self::Files => f.write_str("files of the provenance log are missing, and what they prove cannot be proved: restore them"),
            Self::Shard => f.write_str("the next shard of the provenance log does not open, and it goes on in the one before"),
            Self::Witness(name) => write!(f, "the witness {name} does not cosign"),
            Self::Quorum => f.write_str("too few witnesses cosign"),
            Self::SecurityLog => f.write_str("lines of the security log are lost"),
            Self::Rotation => f.write_str("the security log could not be opened anew, and goes on in the file that it had"),
            Self::Collector => f.write_str("the collector of record.otlp does not take what it is sent"),
            Self::State => f.write_str("what callers have used and learned is not written, and a restart would forget it"),
        }
    }
}

impl Part {
    /// The event of it; none of what the security log cannot tell of itself, nor of what is no log.
    fn event(&self, name: Name) -> Option<Event> {
        let part = match self {
            Self::Entries => "entries",
            Self::Checkpoint => "checkpoint",
            Self::Pruning => "pruning",
            Self::Files => "files",
            Self::Shard => "shard",
            Self::Witness(_) => "witness",
            Self::Quorum => "quorum",
            Self::SecurityLog | Self::Rotation | Self::Collector | Self::State => return None,
        };
        let event = Event::new(name, SystemTime::now()).with("part", part);
        Some(if let Self::Witness(witness) = self { event.with("witness", &**witness) } else { event })
    }
}

/// That it does not, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    part: Part,
    why: String,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.part, self.why)
    }
}

impl Trouble {
    /// Whether no model can be answered for it now.
    pub(super) fn stops_all(&self, house: &House) -> bool {
        let (log, policy) = (house.shards.current(), house.policy.load());
        let models = policy.authorizer.models();
        let terms = || models.iter().map(|model| &model.terms.prove);
        match self.part {
            Part::Entries => !prove::Terms::of_all(terms()).serves(),
            // Lists and receipts are still to be had; that is not what a gateway is asked for.
            Part::Checkpoint | Part::Quorum => terms().next().is_some() && terms().all(|terms| log.holds_up(terms)),
            _ => false,
        }
    }
}

/// What does not work now.
pub(super) fn of(house: &House) -> Vec<Trouble> {
    let log = house.shards.current();
    let trouble = |part| move |why| Trouble { part, why };
    let entries = log.refuses().map(trouble(Part::Entries));
    let checkpoint = log.uncheckpointed().map(trouble(Part::Checkpoint));
    let kept = log.not_pruning().map(trouble(Part::Pruning)).into_iter().chain(log.missing().map(trouble(Part::Files)));
    let shard = house.shards.not_rolled().map(trouble(Part::Shard));
    let witnesses = log.unwitnessed().into_iter().map(|(witness, why)| Trouble { part: Part::Witness(witness), why: format!("it {why}") });
    let quorum = log.is_unwitnessed().then(|| {
        let policy = house.policy.load();
        let refused = policy.authorizer.models().iter().any(|model| model.terms.prove.needs_witnesses());
        let and = if refused { ", and answers that need them are refused" } else { "" };
        format!("there were not enough for {} s{and}", prove::cosign::UNWITNESSED.as_secs())
    });
    let [unwritten, unopened] = house.recorder.troubles();
    let recorder = unwritten.map(trouble(Part::SecurityLog)).into_iter().chain(unopened.map(trouble(Part::Rotation)));
    let collector = house.recorder.unexported().map(trouble(Part::Collector));
    let state = house.state.as_ref().and_then(|state| state.trouble()).map(trouble(Part::State));
    entries
        .into_iter()
        .chain(checkpoint)
        .chain(kept)
        .chain(shard)
        .chain(witnesses)
        .chain(quorum.map(trouble(Part::Quorum)))
        .chain(recorder)
        .chain(collector)
        .chain(state)
        .collect()
}

/// Those that were told, and when each was last there.
#[derive(Default)]
struct Told(Vec<(Part, Instant)>);

impl Told {
    /// What has begun, and what is over, with `now` there at that moment.
    fn next(&mut self, now: Vec<Trouble>, at: Instant) -> (Vec<Trouble>, Vec<Part>) {
        let mut begun = Vec::new();
        for trouble in now {
            match self.0.iter_mut().find(|(part, _)| *part == trouble.part) {
                Some((_, last)) => *last = at,
                None => {
                    self.0.push((trouble.part.clone(), at));
                    begun.push(trouble);
                }
            }
        }
        let over = self.0.extract_if(.., |(_, last)| at.duration_since(*last) >= CALM).map(|(part, _)| part).collect();
        (begun, over)
    }
}

/// Tells of them until the task is dropped.
pub(super) async fn watch(house: Arc<House>) {
    let mut told = Told::default();
    loop {
        tokio::time::sleep(EVERY).await;
        let (begun, over) = told.next(of(&house), Instant::now());
        for trouble in begun {
            aside!("portcullis: warning: {trouble}");
            let event = trouble.part.event(Name::LogFailed).map(|event| event.with("why", trouble.why));
            event.into_iter().for_each(|event| house.events.tell(event));
        }
        for part in over {
            aside!("portcullis: over: {part}");
            part.event(Name::LogRecovered).into_iter().for_each(|event| house.events.tell(event));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_security_log_tells_what_is_wrong_with_the_log_by_a_part_of_its_own() {
        let told = |part: &Part| part.event(Name::LogFailed).map(|event| event.more);
        assert_eq!(told(&Part::Shard), Some(vec![("part", "shard".into())]));
        assert_eq!(told(&Part::State), None);
    }

    #[test]
    fn each_is_told_once_when_it_begins_and_once_when_it_has_been_over_for_a_while() {
        let (mut told, start) = (Told::default(), Instant::now());
        let one = || Trouble { part: Part::Checkpoint, why: "full".to_owned() };
        let two = |why: &str| Trouble { part: Part::Witness("w".into()), why: why.to_owned() };
        assert_eq!(told.next(vec![one()], start), (vec![one()], vec![]));
        // Another reason is no other trouble.
        assert_eq!(told.next(vec![one(), two("403")], start + CALM), (vec![two("403")], vec![]));
        assert_eq!(told.next(vec![one(), two("500")], start + 2 * CALM), (vec![], vec![]));
        // It works for a moment.
        assert_eq!(told.next(vec![two("500")], start + 2 * CALM + EVERY), (vec![], vec![]));
        assert_eq!(told.next(vec![one(), two("500")], start + 3 * CALM), (vec![], vec![]));
        assert_eq!(told.next(vec![two("500")], start + 4 * CALM), (vec![], vec![Part::Checkpoint]));
        assert_eq!(told.next(vec![one()], start + 5 * CALM), (vec![one()], vec![Part::Witness("w".into())]));
    }
}
