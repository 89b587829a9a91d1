//! What stops before `record` tell of: a bounded, typed channel to the security log and the counters.
//!
//! The channel never blocks a request and never grows. What does not fit is counted, and the reader tells the count.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::mpsc;

/// The names of the security log's events, as outsiders know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// A request was refused, at whatever stop.
    RequestRefused,
    /// A credential was missing or did not hold.
    AuthenticateFailed,
    /// An access rule in shadow mode would have decided otherwise.
    AuthorizeShadowed,
    /// A limit in shadow mode would have refused a request.
    BudgetShadowed,
    /// What a model's owner says of bodies, in shadow mode, would have refused one.
    CheckShadowed,
    /// A detector decided that something is wrong.
    DetectAlarm,
    /// A caller was moved on the ladder of what is done about it, up or down.
    DetectMoved,
    /// A caller gets labels alone until it was calm for long.
    CallerQuarantined,
    /// A model was verified and is ready.
    ModelLoaded,
    /// A model was not loaded.
    ModelRefused,
    /// A model is asked no more.
    ModelRetired,
    /// The file under a running model is another now.
    ModelChanged,
    /// A model's worker is gone; another is started in its place.
    ModelFell,
    /// New policies are in force.
    PolicyReloaded,
    /// New policies were refused, the last good ones stay.
    PolicyRefused,
    /// Something was answered that the log does not hold.
    LogGap,
    /// The provenance log takes no entries, or comes no further: no checkpoints, no cosignatures.
    LogFailed,
    /// It does again.
    LogRecovered,
}

impl Name {
    /// The name in the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RequestRefused => "request.refused",
            Self::AuthenticateFailed => "authenticate.failed",
            Self::AuthorizeShadowed => "authorize.shadowed",
            Self::BudgetShadowed => "budget.shadowed",
            Self::CheckShadowed => "check.shadowed",
            Self::DetectAlarm => "detect.alarm",
            Self::DetectMoved => "detect.moved",
            Self::CallerQuarantined => "caller.quarantined",
            Self::ModelLoaded => "model.loaded",
            Self::ModelRefused => "model.refused",
            Self::ModelRetired => "model.retired",
            Self::ModelChanged => "model.changed",
            Self::ModelFell => "model.fell",
            Self::PolicyReloaded => "policy.reloaded",
            Self::PolicyRefused => "policy.refused",
            Self::LogGap => "log.gap",
            Self::LogFailed => "log.failed",
            Self::LogRecovered => "log.recovered",
        }
    }
}

/// One event. Never holds a body, a header value or a secret.
#[derive(Clone, Debug)]
pub struct Event {
    /// Which event.
    pub name: Name,
    /// When it happened.
    pub time: SystemTime,
    /// Who, where it applies: `api_key:ID`, `jwt:ISSUER#SUB`, `cert:SAN`.
    pub caller: Option<Arc<str>>,
    /// The caller's tenant.
    pub tenant: Option<Arc<str>>,
    /// The model's name.
    pub model: Option<Arc<str>>,
    /// The static code of a refusal.
    pub code: Option<&'static str>,
    /// The rule that decided.
    pub rule: Option<Arc<str>>,
    /// The receipt's id, where the provenance log has an entry of it: see [`Undecided`].
    pub receipt: Option<uuid::Uuid>,
    /// What else an investigator needs; names are static, values are short.
    pub more: Vec<(&'static str, serde_json::Value)>,
}

impl Event {
    /// An event with a name and a time and nothing else.
    #[must_use]
    pub fn new(name: Name, time: SystemTime) -> Self {
        Self { name, time, caller: None, tenant: None, model: None, code: None, rule: None, receipt: None, more: Vec::new() }
    }

    /// The same event with one more fact.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<serde_json::Value>) -> Self {
        self.more.push((key, value.into()));
        self
    }

    /// The same event, which names the request by its trace alone.
    fn without_receipt(self, trace: [u8; 16]) -> Self {
        Self { receipt: None, ..self }.with("trace", format!("{:032x}", u128::from_be_bytes(trace)))
    }
}

/// Where stops tell of events.
#[derive(Clone, Debug)]
pub struct Events {
    to: mpsc::Sender<Event>,
    lost: Arc<AtomicU64>,
    /// Of one request alone: what waits.
    hold: Option<Arc<Hold>>,
}

/// Where the house reads them.
#[derive(Debug)]
pub struct Reader {
    from: mpsc::Receiver<Event>,
    lost: Arc<AtomicU64>,
}

/// A channel that holds `capacity` events that were not read yet.
#[must_use]
pub fn channel(capacity: usize) -> (Events, Reader) {
    let (to, from) = mpsc::channel(capacity);
    let lost = Arc::new(AtomicU64::new(0));
    (Events { to, lost: lost.clone(), hold: None }, Reader { from, lost })
}

impl Events {
    /// Tells of `event`; when the channel is full the event is counted as lost.
    pub fn tell(&self, event: Event) {
        match &self.hold {
            Some(hold) if event.receipt.is_some() => hold.pass(event).into_iter().for_each(|event| self.send(event)),
            _ => self.send(event),
        }
    }

    fn send(&self, event: Event) {
        if self.to.try_send(event).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Where one request's stops tell of it, from its beginning on.
    #[must_use]
    pub fn of_request(&self, trace: [u8; 16]) -> Undecided {
        let hold = Hold { trace, until: Mutex::new(Until::Decided(Vec::new())) };
        Undecided(Self { hold: Some(Arc::new(hold)), ..self.clone() })
    }
}

/// A request of which it is not known yet whether the provenance log has an entry.
///
/// Till then events that name its receipt wait: a name that leads nowhere would read as an entry that was taken away. Where there
/// is none, they name the trace in its stead. Dropped undecided, as when the caller is gone, there is none.
#[derive(Debug)]
pub struct Undecided(Events);

/// How many events of one request wait; those past it name the trace alone.
const MOST_WAITING: usize = 64;

#[derive(Debug)]
struct Hold {
    trace: [u8; 16],
    until: Mutex<Until>,
}

/// What becomes of an event that names a receipt.
#[derive(Debug)]
enum Until {
    /// It waits with these.
    Decided(Vec<Event>),
    /// It is told as it is, or without that name.
    Told { kept: bool },
}

impl Hold {
    /// The event, unless it is to wait.
    fn pass(&self, event: Event) -> Option<Event> {
        match &mut *self.until.lock().unwrap_or_else(PoisonError::into_inner) {
            Until::Decided(waiting) if waiting.len() < MOST_WAITING => {
                waiting.push(event);
                None
            }
            Until::Told { kept: true } => Some(event),
            Until::Decided(_) | Until::Told { kept: false } => Some(event.without_receipt(self.trace)),
        }
    }

    /// Says whether there is an entry; the first word stands.
    fn decide(&self, kept: bool) -> Vec<Event> {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let Until::Decided(waiting) = &mut *until else { return Vec::new() };
        let waiting = std::mem::take(waiting);
        *until = Until::Told { kept };
        if kept { waiting } else { waiting.into_iter().map(|event| event.without_receipt(self.trace)).collect() }
    }
}

impl Undecided {
    /// Where its stops tell of it.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.0
    }

    /// Tells what waits, now that it is known whether the log has an entry of it, or will have one when a stream ends.
    pub fn decided(&self, kept: bool) {
        let waiting = self.0.hold.iter().flat_map(|hold| hold.decide(kept));
        waiting.for_each(|event| self.0.send(event));
    }
}

impl Drop for Undecided {
    fn drop(&mut self) {
        self.decided(false);
    }
}

impl Reader {
    /// The next event, or `None` once every [`Events`] is gone.
    pub async fn next(&mut self) -> Option<Event> {
        self.from.recv().await
    }

    /// How many events were lost since this was last asked.
    #[must_use]
    pub fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_channel_counts_what_it_loses() {
        let (events, mut reader) = channel(2);
        (0..5).for_each(|_| events.tell(Event::new(Name::RequestRefused, SystemTime::UNIX_EPOCH)));
        assert_eq!(reader.take_lost(), 3);
        assert_eq!(reader.take_lost(), 0);
        drop(events);
        assert!(reader.next().await.is_some());
        assert!(reader.next().await.is_some());
        assert!(reader.next().await.is_none());
    }

    #[tokio::test]
    async fn a_receipt_is_named_once_it_is_known_that_there_is_one() {
        let (events, mut reader) = channel(512);
        let about = || Event { receipt: Some(uuid::Uuid::now_v7()), ..Event::new(Name::DetectAlarm, SystemTime::UNIX_EPOCH) };
        let (kept, refused, abandoned) = (events.of_request([1; 16]), events.of_request([2; 16]), events.of_request([3; 16]));
        // Some are told after the answer has left, when a stream ends.
        let late: Vec<Events> = [&kept, &refused, &abandoned].iter().map(|request| request.events().clone()).collect();
        late.iter().for_each(|events| events.tell(about()));
        events.tell(Event::new(Name::ModelLoaded, SystemTime::UNIX_EPOCH));
        assert_eq!(reader.next().await.unwrap().name, Name::ModelLoaded, "what is about no request waits for none");
        kept.decided(true);
        refused.decided(false);
        drop((kept, refused, abandoned));
        late.iter().for_each(|events| events.tell(about()));
        let mut told = Vec::new();
        for _ in 0..6 {
            let event = reader.next().await.unwrap();
            told.push((event.receipt.is_some(), event.more.first().map(|(key, value)| format!("{key} {value}"))));
        }
        let [of, or] = [2, 3].map(|byte| (false, Some(format!("trace \"{}\"", format!("{byte:02x}").repeat(16)))));
        assert_eq!(told, [(true, None), of.clone(), or.clone(), (true, None), of, or]);
    }

    #[tokio::test]
    async fn no_request_keeps_more_waiting_than_its_share() {
        let (events, mut reader) = channel(512);
        let request = events.of_request([1; 16]);
        let about = || Event { receipt: Some(uuid::Uuid::nil()), ..Event::new(Name::DetectAlarm, SystemTime::UNIX_EPOCH) };
        (0..=MOST_WAITING).for_each(|_| request.events().tell(about()));
        assert_eq!(reader.next().await.unwrap().receipt, None);
        request.decided(true);
        assert!(reader.next().await.unwrap().receipt.is_some());
    }
}
