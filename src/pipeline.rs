//! The way of a request, whole: [`House::walk`] reads aloud. What surrounds it gives every end, good or bad, a receipt
//! and a record.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Response, header};
use uuid::Uuid;

use crate::accept::{Handler, Peer};
use crate::authorize::ReceiptForm;
use crate::budget::{Ask, Budget};
use crate::clock::Moment;
use crate::config::Snapshot;
use crate::detect::Detector;
use crate::error::Refusal;
use crate::event::{Event, Events, Name};
use crate::infer::{Answer, Inference, Receipts};
use crate::prove::{Ledger, Slot};
use crate::record::Recorder;
use crate::trail::{Stop, Trail, Verdict, Which};
use crate::wire::dialect::{self, Dialect};
use crate::wire::{Body, grpc};

/// Everything a request meets on its way. One for the life of the process; policies in it are replaced whole.
#[derive(Debug)]
pub struct House {
    /// What judges requests, as of now.
    pub policy: ArcSwap<Snapshot>,
    /// How much everyone has left.
    pub budget: Budget,
    /// What was asked before.
    pub detector: Detector,
    /// Who answers.
    pub inference: Inference,
    /// The provenance log.
    pub ledger: Ledger,
    /// Metrics, traces, the security log.
    pub recorder: Recorder,
    /// Where stops tell of events.
    pub events: Events,
    /// Whether the last policies that were read were refused.
    pub stale: AtomicBool,
}

/// The house as connections know it.
#[derive(Clone, Debug)]
pub struct Gate(pub Arc<House>);

/// A request on its way: what is known of it, and the stop it is at.
struct Walk {
    trail: Trail,
    at: Stop,
    since: Instant,
}

impl Walk {
    /// Writes down how a stop ended, and goes on to the next or not at all.
    fn past<T, E>(&mut self, stop: Stop, ended: Result<T, E>, refusal: impl FnOnce(E) -> Refusal) -> Result<T, Refusal> {
        let now = Instant::now();
        let verdict = if ended.is_ok() { Verdict::Passed } else { Verdict::Refused };
        self.trail.step(stop, verdict, None, self.since, now);
        self.since = now;
        if ended.is_ok() {
            self.at = Stop::ALL[(stop as usize + 1).min(Stop::ALL.len() - 1)];
        }
        ended.map_err(refusal)
    }
}

impl House {
    /// The nine stops. Each takes what the one before it made, so that none can be left out.
    async fn walk(&self, policy: &Snapshot, peer: Peer, walk: &mut Walk) -> Result<(Answer, Slot), Refusal> {
        let arrived = peer.arrived();

        let caller = policy.authenticator.authenticate(peer, arrived);
        let caller = walk.past(Stop::Authenticate, caller, Refusal::Authenticate)?;
        walk.trail.who = Some(caller.identity().who.clone());

        let grant = policy.authorizer.authorize(caller, &mut walk.trail).await;
        let grant = walk.past(Stop::Authorize, grant, Refusal::Authorize)?;
        let terms = grant.terms().clone();

        let ask = grant.asked().map(|asked| Ask::language(grant.length(), asked, terms.check.max_tokens()));
        let permit = self.budget.admit(grant, &terms.budget, ask, arrived.mono);
        let permit = walk.past(Stop::Budget, permit, Refusal::Budget)?;
        let standing = permit.headers();

        let input = terms.check.check(permit, &mut walk.trail).await;
        let input = walk.past(Stop::Check, input, Refusal::Check)?;

        let cleared = self.detector.weigh(input, &terms.detect, &mut walk.trail, &self.events, arrived);
        let cleared = walk.past(Stop::Detect, cleared, Refusal::Detect)?;

        let slot = self.ledger.reserve(&terms.prove).map_err(Refusal::Prove)?;
        let answer = self.inference.answer(cleared, &terms.infer, self, &mut walk.trail).await;
        let mut answer = walk.past(Stop::Infer, answer, Refusal::Infer)?;
        answer.extend_headers(standing);
        Ok((answer, slot))
    }

    async fn request(&self, peer: Peer) -> Response<Body> {
        let policy = self.policy.load_full();
        let dialect = Dialect::of(peer.uri().path(), peer.headers().get(header::CONTENT_TYPE));
        let (arrived, deadline) = (peer.arrived(), peer.deadline());
        let (trace, active) = self.recorder.begin(peer.headers(), false);
        let trail = Trail::new(arrived, peer.connection().address.ip(), peer.method().clone(), peer.http_version(), policy.digest, trace);
        let mut walk = Walk { trail, at: Stop::Authenticate, since: arrived.mono };
        walk.past(Stop::Accept, Ok::<(), Refusal>(()), |refusal| refusal).unwrap_or(());

        let walking = AssertUnwindSafe(tokio::time::timeout_at(deadline.into(), self.walk(&policy, peer, &mut walk))).catch_unwind();
        let walked = match walking.await {
            Ok(Ok(walked)) => walked,
            Ok(Err(_)) => Err(Refusal::Deadline(walk.at)),
            Err(_) => Err(Refusal::Fault(walk.at)),
        };
        let receipt = match walked {
            Ok((answer, slot)) => match self.ledger.prove(slot, answer, walk.trail).await {
                Ok(receipt) => receipt,
                Err((error, trail)) => self.refuse(Refusal::Prove(error), *trail, dialect).await,
            },
            Err(refusal) => self.refuse(refusal, walk.trail, dialect).await,
        };
        self.recorder.record(active, receipt, Instant::now()).into_response()
    }
}
