//! What stops before `record` tell of: a bounded, typed channel to the security log and the counters.
//!
//! The channel never blocks a request and never grows. What does not fit is counted, and the reader tells the count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// The receipt's id.
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
}

/// Where stops tell of events.
#[derive(Clone, Debug)]
pub struct Events {
    to: mpsc::Sender<Event>,
    lost: Arc<AtomicU64>,
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
    (Events { to, lost: lost.clone() }, Reader { from, lost })
}

impl Events {
    /// Tells of `event`; when the channel is full the event is counted as lost.
    pub fn tell(&self, event: Event) {
        if self.to.try_send(event).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
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
}
