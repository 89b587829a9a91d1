//! What a request's head says of how its answer is to be proved: `Provenance-Want`, and whether trailers are taken.
//!
//! `Provenance-Want` is a dictionary (RFC 9651 §3.2) of the caller's:
//!
//! | member | type | meaning |
//! | --- | --- | --- |
//! | `mode` | token | `async`, `durable`, `included` or `witnessed`: how far the entry should come before the answer leaves. It raises what the policy demands and never lowers it |
//! | `wait` | integer | how many milliseconds the raised part may take, 0 to 10000; 10000 unless given |
//!
//! Other members and all parameters are ignored. With the field, whatever it asks for, a stream of events carries its statement inside its
//! last event ([`super::stream`]). The wait ends with the request's own deadline at the latest. Refusals do not wait.

use std::time::{Duration, Instant};

use http::header::{HeaderMap, HeaderName, HeaderValue, TE};
use sfv::{BareItem, Dictionary, ListEntry, Parser};

use super::config::Mode;
use super::ledger::Error;

const WANT: HeaderName = HeaderName::from_static("provenance-want");

/// The longest that a caller may ask to wait. A call that waits holds its room in the log and its place in the caller's budget.
pub const MAX_WAIT: Duration = Duration::from_secs(10);

/// What a request's head says of how its answer is to be proved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    raised: Option<Raised>,
    /// Whether there was a `Provenance-Want`.
    asked: bool,
    /// Whether the caller takes trailers.
    trailers: bool,
}

/// A mode that the caller asks for, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Raised {
    pub(super) mode: Mode,
    pub(super) wait: Duration,
    /// When the request must have ended.
    pub(super) deadline: Instant,
}

impl Want {
    /// Reads the head of a request that must have ended at `deadline`. To be asked before `authenticate` strips the head of what is said
    /// to the gateway alone.
    ///
    /// # Errors
    /// [`Error::CallerSentBadWant`] where `Provenance-Want` is no dictionary, names a mode that there is not, or a wait past [`MAX_WAIT`].
    pub fn of_request(headers: &HeaderMap, deadline: Instant) -> Result<Self, Error> {
        let trailers = takes_trailers(headers);
        if !headers.contains_key(WANT) {
            return Ok(Self { trailers, ..Self::default() });
        }
        // Lines of one field are one list (RFC 9110 §5.3); an empty line says nothing.
        let lines = headers.get_all(WANT).iter().map(HeaderValue::as_bytes).filter(|line| !line.trim_ascii().is_empty());
        let field = lines.collect::<Vec<_>>().join(&b", "[..]);
        let members: Dictionary = Parser::new(&field).parse().map_err(|_| Error::CallerSentBadWant)?;
        let (mode, wait) = (item(&members, "mode")?, item(&members, "wait")?);
        let wait = wait.map_or(Some(MAX_WAIT), milliseconds).ok_or(Error::CallerSentBadWant)?;
        let raised = match mode {
            None => None,
            Some(item) => {
                let mode = item.as_token().and_then(|token| Mode::of(token.as_str())).ok_or(Error::CallerSentBadWant)?;
                Some(Raised { mode, wait, deadline })
            }
        };
        Ok(Self { raised, asked: true, trailers })
    }

    /// The mode that the caller asks for beyond the policy's.
    pub(super) fn beyond(&self, policy: Mode) -> Option<Raised> {
        self.raised.filter(|raised| raised.mode > policy)
    }

    /// Whether a stream of events is to carry its statement.
    pub(super) fn in_stream(&self) -> bool {
        self.asked
    }

    /// Whether the caller takes trailers.
    pub(super) fn trailers(&self) -> bool {
        self.trailers
    }
}

/// A member that must be an item where it is there.
fn item<'d>(members: &'d Dictionary, name: &str) -> Result<Option<&'d BareItem>, Error> {
    match members.get(name) {
        None => Ok(None),
        Some(ListEntry::Item(item)) => Ok(Some(&item.bare_item)),
        Some(ListEntry::InnerList(_)) => Err(Error::CallerSentBadWant),
    }
}

fn milliseconds(item: &BareItem) -> Option<Duration> {
    let wait = Duration::from_millis(u64::try_from(i64::from(item.as_integer()?)).ok()?);
    (wait <= MAX_WAIT).then_some(wait)
}

/// Whether `TE` lists `trailers` (RFC 9110 §10.1.4), which knows no weight. In HTTP/2 nothing else may stand there (RFC 9113 §8.2.2).
fn takes_trailers(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(TE).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(name: &'static str, lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name, HeaderValue::from_str(line).unwrap());
        }
        headers
    }

    /// The mode and the wait in milliseconds; none where the field is no good.
    fn read(lines: &[&str]) -> Option<Option<(Mode, u128)>> {
        let want = Want::of_request(&head("provenance-want", lines), Instant::now()).ok()?;
        assert!(want.in_stream(), "any valid value asks for the statement");
        Some(want.raised.map(|raised| (raised.mode, raised.wait.as_millis())))
    }

    #[test]
    fn a_want_reads_as_structured_fields_have_it() {
        for (line, mode) in
            [("async", Mode::Async), ("durable", Mode::Durable), ("included", Mode::Included), ("witnessed", Mode::Witnessed)]
        {
            assert_eq!(read(&[&format!("mode={line}, wait=500")]), Some(Some((mode, 500))));
        }
        assert_eq!(read(&["mode=included"]), Some(Some((Mode::Included, 10_000))));
        assert_eq!(read(&["wait=5;x=1,mode=durable;q=\"a\""]), Some(Some((Mode::Durable, 5))));
        assert_eq!(read(&["mode=async", "", "mode=durable"]), Some(Some((Mode::Durable, 10_000))), "the last one holds");
        assert_eq!(read(&["wait=500"]), Some(None));
        assert_eq!(read(&[""]), Some(None));
        assert_eq!(read(&["other, list=(1 2), date=@1, text=%\"f%c3%bc\", mode=durable"]), Some(Some((Mode::Durable, 10_000))));
    }

    #[test]
    fn what_is_no_want_is_refused() {
        for line in [
            "mode=never",
            "mode=\"durable\"",
            "mode",
            "mode=1",
            "mode=(durable)",
            "mode=durable;",
            "mode=durable wait=5",
            "mode=durable,",
            "MODE=durable",
            "mode=Durable",
            "wait=-1",
            "wait=0.5",
            "wait=ten",
            "wait=(1)",
            "wait",
            "wait=\"5\"",
            "=",
            "durable, ,",
            "\u{fc}",
        ] {
            assert_eq!(read(&[line]), None, "{line}");
        }
    }

    #[test]
    fn a_wait_may_be_as_long_as_the_bound_and_no_longer() {
        assert_eq!(read(&["mode=durable, wait=0"]), Some(Some((Mode::Durable, 0))));
        assert_eq!(read(&["mode=durable, wait=10000"]), Some(Some((Mode::Durable, 10_000))));
        assert_eq!(read(&["mode=durable, wait=10001"]), None);
        assert_eq!(read(&["wait=999999999999999"]), None);
    }

    #[test]
    fn a_caller_raises_and_never_lowers() {
        let modes = [Mode::Async, Mode::Durable, Mode::Included, Mode::Witnessed];
        for (at, wanted) in modes.into_iter().enumerate() {
            let raised = Some(Raised { mode: wanted, wait: MAX_WAIT, deadline: Instant::now() });
            for (policy_at, policy) in modes.into_iter().enumerate() {
                let beyond = Want { raised, asked: true, trailers: false }.beyond(policy);
                assert_eq!(beyond.is_some(), at > policy_at, "{wanted:?} over {policy:?}");
                assert!(beyond.is_none_or(|raised| raised.mode == wanted));
            }
        }
        assert_eq!(Want::default().beyond(Mode::Async), None);
    }

    #[test]
    fn trailers_are_taken_where_te_lists_them() {
        for lines in [&["trailers"][..], &["Trailers"], &["gzip;q=0.5, TRAILERS"], &["gzip", "deflate,trailers"], &[" trailers\t,"]] {
            let want = Want::of_request(&head("te", lines), Instant::now()).unwrap();
            assert!(want.trailers() && !want.in_stream(), "{lines:?}");
        }
        for lines in [&[][..], &[""], &["gzip"], &["trailer"], &["trailers;q=0"], &["x-trailers, trailersx"]] {
            assert_eq!(Want::of_request(&head("te", lines), Instant::now()), Ok(Want::default()), "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_a_caller_sends_is_read_or_refused(lines in proptest::collection::vec("[ -~\t\u{80}-\u{ff}]{0,60}", 0..4)) {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            if let Ok(want) = Want::of_request(&head("provenance-want", &lines), Instant::now()) {
                prop_assert!(want.raised.is_none_or(|raised| raised.wait <= MAX_WAIT));
            }
        }
    }
}
