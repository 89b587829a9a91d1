//! What an answer waits for before it is released: the one place that knows what a mode is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::{Mode, OnFailure};
use super::ledger::Slot;
use super::log::{Poisoned, Until, Wait};
use super::receipt::State;
use super::want::Raised;

/// How long an answer waits for all that the policy demands: far longer than a disk that works, and witnesses that answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How often an answer that may leave without what the policy demands looks whether that is still to be expected.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Why an answer is not released as the policy demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unkept {
    /// Its entry was not written.
    Unwritten,
    /// Its entry stands, and came no further in time, or will not since the log failed.
    Late,
}

impl From<Poisoned> for Unkept {
    fn from(_: Poisoned) -> Self {
        Self::Unwritten
    }
}

/// An entry that was signed and laid ready.
pub(super) struct Appended {
    /// Its number.
    pub(super) seq: u64,
    /// Its bytes.
    pub(super) entry: Arc<[u8]>,
    /// Until it is written.
    pub(super) wait: Wait,
}

impl Slot {
    /// Waits for the entry `seq`, which is written when `wait` is over: up to [`PATIENCE`] where the policy demands it, and for as long as
    /// the caller said where the caller alone wants it. Tells how far the entry has come, which is at least what the policy demands,
    /// or less where it says to serve all the same: an entry that stands is no gap. Such an answer is not held back for what
    /// has been missing for long: where the policy says to refuse, that is done at once then too.
    ///
    /// # Errors
    /// When the entry was not written, and where the policy says to refuse, when what it demands has not come. What the caller alone wants
    /// fails without an error.
    pub(super) async fn kept(&self, seq: u64, wait: Wait) -> Result<State, Unkept> {
        wait.done().await?;
        let (policy, mut state) = (self.terms.mode, State::Promised);
        let until = Instant::now() + PATIENCE;
        for mode in between(Mode::Async, policy) {
            let reached = async {
                tokio::select! {
                    biased;
                    reached = self.reached(seq, mode) => reached,
                    () = self.may_leave_without(mode) => Err(Poisoned),
                }
            };
            match tokio::time::timeout_at(until.into(), reached).await {
                Ok(Ok(reached)) => state = reached,
                Ok(Err(Poisoned)) | Err(_) if self.terms.on_failure == OnFailure::Serve => return Ok(state),
                // A log that comes no further is one that cannot take the entry.
                Ok(Err(Poisoned)) | Err(_) => return Err(Unkept::Late),
            }
        }
        let Some(Raised { mode: wanted, wait, deadline }) = self.want.beyond(policy) else { return Ok(state) };
        let until = (Instant::now() + wait).min(deadline);
        for mode in between(policy, wanted) {
            match tokio::time::timeout_at(until.into(), self.reached(seq, mode)).await {
                Ok(Ok(reached)) => state = reached,
                Ok(Err(Poisoned)) | Err(_) => break,
            }
        }
        Ok(state)
    }

    /// Whether there is nothing more to wait for once the entry is written.
    pub(super) fn takes_what_is_written(&self) -> bool {
        self.terms.mode == Mode::Async && self.want.beyond(Mode::Async).is_none()
    }

    /// Waits until what `mode` needs has been missing for long; for ever where the policy says to refuse: what
    /// was answered already is refused last.
    async fn may_leave_without(&self, mode: Mode) {
        if self.terms.on_failure == OnFailure::Refuse {
            return std::future::pending().await;
        }
        while !self.inner.lacks(mode, Instant::now()) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until the entry has come as far as `mode` says, where the mode before it has come already.
    async fn reached(&self, seq: u64, mode: Mode) -> Result<State, Poisoned> {
        match mode {
            Mode::Async => Ok(State::Promised),
            Mode::Durable => {
                self.inner.wal.wait(seq, Until::Synced)?.done().await?;
                Ok(State::Durable)
            }
            Mode::Included => {
                let covered = self.inner.publisher.covers(seq).await;
                if covered { Ok(State::Included) } else { Err(Poisoned) }
            }
            Mode::Witnessed => {
                // Without witnesses nothing more is reached than there is.
                let Some(cosigning) = self.inner.archive.cosigning.get() else { return Err(Poisoned) };
                let covered = cosigning.newest.clone().wait_for(|published| published.below > seq).await.is_ok();
                if covered { Ok(State::Witnessed) } else { Err(Poisoned) }
            }
        }
    }
}

/// The modes above `low` up to `high`, in order.
fn between(low: Mode, high: Mode) -> impl Iterator<Item = Mode> {
    Mode::ALL.into_iter().filter(move |mode| *mode > low && *mode <= high)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::StatusCode;

    use super::*;
    use crate::digest::Digest;
    use crate::infer::Payload;
    use crate::prove::config::Terms;
    use crate::prove::cosign::UNWITNESSED;
    use crate::prove::cosign::tests::silent;
    use crate::prove::ledger::tests::{House, durable, head, house, now, want};
    use crate::prove::publisher::STALLED;
    use crate::prove::statement::Sent;
    use crate::prove::{Receipt, Want};
    use crate::verify::entries::Entries;
    use crate::verify::reconcile::reconcile;
    use crate::verify::statement::Kind;

    async fn answer(house: &House, terms: &Terms, want: Want) -> Receipt {
        let slot = house.ledger.reserve(terms, want).unwrap();
        house.ledger.prove_parts(slot, StatusCode::OK, head(), Payload::Whole("the answer".into()), None, now()).await.unwrap()
    }

    #[tokio::test]
    async fn a_caller_raises_the_mode_of_its_answer() {
        let house = house();
        for (mode, state) in [("mode=durable", State::Durable), ("mode=included, wait=10000", State::Included)] {
            let receipt = answer(&house, &Terms::default(), want(&[("provenance-want", mode)])).await;
            assert_eq!(receipt.state(), state, "{mode}");
            let told = format!("state={}", state.as_str());
            assert!(receipt.headers()["provenance-receipt"].to_str().unwrap().contains(&told));
        }
    }

    #[tokio::test]
    async fn a_caller_does_not_lower_the_mode_of_its_answer() {
        let house = house();
        for mode in ["mode=async", "mode=async, wait=0", "mode=durable, wait=0", "mode=witnessed, wait=0", "wait=0"] {
            let receipt = answer(&house, &durable(), want(&[("provenance-want", mode)])).await;
            assert_eq!(receipt.state(), State::Durable, "{mode}");
        }
        let terms = Terms { mode: Mode::Included, ..durable() };
        assert_eq!(answer(&house, &terms, Want::default()).await.state(), State::Included);
    }

    #[tokio::test]
    async fn where_the_wait_runs_out_the_answer_leaves_with_what_was_reached() {
        let house = house();
        // A checkpoint is up to 100 ms away; a sync may be over before anybody looks.
        let head = [("provenance-want".parse().unwrap(), "mode=included".parse().unwrap())];
        let late = Want::of_request(&head.into_iter().collect(), Instant::now() - Duration::from_secs(1)).unwrap();
        for want in [want(&[("provenance-want", "mode=included, wait=0")]), late] {
            let mut early = 0;
            for _ in 0..20 {
                let (from, receipt) = (Instant::now(), answer(&house, &Terms::default(), want).await);
                assert!(from.elapsed() < Duration::from_secs(5), "neither for the bound of all waits nor past the request's own deadline");
                early += u32::from(receipt.state() != State::Included);
            }
            // A checkpoint that happens to be made in just that moment is possible, and not twenty of them.
            assert!(early > 0);
        }
    }

    #[tokio::test]
    async fn a_log_that_fails_while_the_caller_alone_waits_still_answers() {
        let cases = [
            (Mode::Async, OnFailure::Refuse, Ok(State::Promised)),
            (Mode::Durable, OnFailure::Refuse, Err(Unkept::Late)),
            (Mode::Durable, OnFailure::Serve, Ok(State::Promised)),
        ];
        for (mode, on_failure, kept) in cases {
            let house = house();
            let terms = Terms { mode, on_failure };
            let slot = house.ledger.reserve(&terms, want(&[("provenance-want", "mode=witnessed")])).unwrap();
            let digest = Digest::of(&Bytes::new());
            let sent = Sent { status: 200, media_type: None, length: 0, digest, complete: true, code: None, usage: None, events: None };
            let Appended { seq, wait, .. } = slot.append(Kind::Inference, &now(), &sent, Until::Written).unwrap();
            assert!(wait.is_over(), "one alone is written at once");
            house.ledger.poison();
            assert_eq!(slot.kept(seq, wait).await, kept);
            assert_eq!(house.ledger.counters().gaps, 0, "the entry stands");
        }
    }

    #[tokio::test]
    async fn an_answer_that_may_leave_without_is_not_held_back_for_what_has_been_missing_for_long() {
        let serve = |mode| Terms { mode, on_failure: OnFailure::Serve };
        let unwitnessed = house();
        silent(&unwitnessed, UNWITNESSED + Duration::from_secs(1));
        let (from, receipt) = (Instant::now(), answer(&unwitnessed, &serve(Mode::Witnessed), Want::default()).await);
        assert!(from.elapsed() < PATIENCE / 2 && receipt.state() == State::Included, "{:?}", receipt.state());
        // One that waits already leaves too, once it has been so long.
        let lately = house();
        silent(&lately, UNWITNESSED - Duration::from_millis(300));
        let (from, receipt) = (Instant::now(), answer(&lately, &serve(Mode::Witnessed), Want::default()).await);
        assert!(from.elapsed() < PATIENCE / 2 && receipt.state() == State::Included, "{:?}", receipt.state());

        let unpublished = house();
        let tiles = unpublished.log().join("tile");
        let _ = std::fs::rename(&tiles, unpublished.log().join("away"));
        std::fs::write(&tiles, "").unwrap();
        while unpublished.ledger.uncheckpointed().is_none() {
            answer(&unpublished, &Terms::default(), Want::default()).await;
        }
        unpublished.ledger.0.publisher.failed_since(STALLED + Duration::from_secs(1));
        for mode in [Mode::Included, Mode::Witnessed] {
            let (from, receipt) = (Instant::now(), answer(&unpublished, &serve(mode), Want::default()).await);
            assert!(from.elapsed() < PATIENCE / 2 && receipt.state() == State::Durable, "{:?}", receipt.state());
        }
        assert_eq!(unpublished.ledger.counters().gaps, 0, "their entries stand");
    }

    #[tokio::test]
    async fn a_refusal_after_an_answer_that_was_not_kept_has_a_receipt_of_its_own() {
        let house = house();
        let accepted = house.ledger.accept();
        // There are no witnesses here, and so there never is what the mode demands.
        let terms = Terms { mode: Mode::Witnessed, on_failure: OnFailure::Refuse };
        let slot = house.ledger.reserve(&terms, Want::default()).unwrap();
        let trail = now();
        let (answered, who) = (trail.id, trail.who.clone().unwrap());
        let payload = Payload::Whole("the answer".into());
        let not_proved = house.ledger.prove_parts(slot, StatusCode::OK, head(), payload, None, trail).await.unwrap_err();
        let code = not_proved.error.code();
        let refused = house.ledger.refuse(not_proved.trail, code, StatusCode::SERVICE_UNAVAILABLE, head(), Bytes::new()).await;
        let refused = refused.id().unwrap();
        assert_ne!(refused, answered);
        for (id, kind) in [(answered, "inference"), (refused, "error")] {
            assert_eq!(house.ledger.find(id, &who, false).await.unwrap().json()["view"]["kind"], kind);
        }
        accepted.over();
        house.ledger.close();
        let reconciled = reconcile(Entries::of(&house.log()).unwrap(), None).unwrap();
        assert!(reconciled.ok && reconciled.notes.is_empty(), "one request, and two entries about it: {reconciled:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn what_is_included_has_a_proof_at_any_moment() {
        let house = Arc::new(house());
        let included = Terms { mode: Mode::Included, on_failure: OnFailure::Refuse };
        let (id, who) = (answer(&house, &included, Want::default()).await.id().unwrap(), now().who.unwrap());
        let until = Instant::now() + Duration::from_millis(1_500);
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let (house, who) = (house.clone(), who.clone());
                tokio::spawn(async move {
                    while Instant::now() < until {
                        let found = house.ledger.find_included(id, &who, false).await.unwrap();
                        assert!(found.receipt().is_some(), "its tiles are there, or those of a newer checkpoint");
                    }
                })
            })
            .collect();
        // New entries make new checkpoints, and the tiles of the last are removed.
        while Instant::now() < until {
            answer(&house, &Terms::default(), Want::default()).await;
        }
        for reader in readers {
            reader.await.unwrap();
        }
    }
}
