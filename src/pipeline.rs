//! The way of a request, whole: `House::walk` reads aloud. What surrounds it gives every end, good or bad, a receipt
//! and a record.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use uuid::Uuid;

use crate::accept::{self, Handler, Peer, TurnedAway};
use crate::authorize::{Action, ReceiptForm};
use crate::budget::{Ask, Budget};
use crate::check;
use crate::config::Snapshot;
use crate::detect::price::Brought;
use crate::detect::{self, Detector};
use crate::error::Refusal;
use crate::event::{Event, Events, Name};
use crate::infer::{self, Answer, Backend, Found, Inference, Receipts};
use crate::prove::{Ledger, Receipt, Shards, Slot, Want};
use crate::record::{Active, Answered, Recorder};
use crate::state::Store;
use crate::trail::{Stop, Trail, Verdict, Who};
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
    pub shards: Shards,
    /// What outlives the process, where it is kept.
    pub state: Option<Arc<Store>>,
    /// Metrics, traces, the security log.
    pub recorder: Recorder,
    /// Where stops tell of events.
    pub events: Events,
    /// Whether the last policies that were read were refused.
    pub stale: AtomicBool,
    /// The keys of `gateway.toml` that say something else now than at the start, and wait for the next.
    pub waiting: ArcSwap<Vec<String>>,
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
        let shadowed = self.trail.shadowed.take();
        let (verdict, rule) = match (&ended, shadowed) {
            (Ok(_), None) => (Verdict::Passed, None),
            (Ok(_), rules) => (Verdict::Shadowed, rules),
            (Err(_), _) => (Verdict::Refused, None),
        };
        self.trail.step(stop, verdict, rule, self.since, now);
        self.since = now;
        if ended.is_ok() {
            self.at = Stop::ALL[(stop as usize + 1).min(Stop::ALL.len() - 1)];
        }
        ended.map_err(refusal)
    }
}

impl House {
    /// The nine stops. Each takes what the one before it made, so that none can be left out.
    async fn walk(
        &self,
        ledger: &Ledger,
        policy: &Snapshot,
        events: &Events,
        peer: Peer,
        walk: &mut Walk,
    ) -> Result<(Answer, Slot), Refusal> {
        let arrived = peer.arrived();
        // Read before the head is stripped of it; whether it is any good is told to those alone who may ask for an answer.
        let want = Want::of_request(peer.headers(), peer.deadline());
        let work = Brought::of_request(peer.headers());

        let caller = policy.authenticator.authenticate(peer, arrived);
        walk.trail.aside.whose = caller.as_ref().err().and_then(|refused| refused.whose.clone());
        let caller = walk.past(Stop::Authenticate, caller, Refusal::Authenticate)?;
        walk.trail.who = Some(caller.identity().who.clone());

        let grant = policy.authorizer.authorize(caller, &mut walk.trail).await;
        if let Some(rules) = walk.trail.shadowed.clone() {
            events.tell(shadowed(Name::AuthorizeShadowed, Some(rules), &walk.trail));
        }
        let grant = walk.past(Stop::Authorize, grant, Refusal::Authorize)?;
        let terms = grant.terms().clone();

        let ask = match (grant.asked(), grant.action()) {
            // Texts cost the same tokens in whatever protocol they come.
            (None, Action::Infer) => terms.check.takes_texts().then(|| Ask::prompt(grant.length().min(terms.check.max_body()))),
            (Some(_), Action::Embed) => Some(Ask::prompt(grant.length())),
            (asked, _) => asked.map(|asked| Ask::language(grant.length(), asked, terms.check.max_tokens())),
        };
        let mut permit = self.budget.admit(grant, &terms.budget, ask, arrived.mono);
        if let Ok(permit) = &mut permit {
            tell_shadowed(walk, permit.take_shadowed().map(Refusal::Budget), events);
        }
        let permit = walk.past(Stop::Budget, permit, Refusal::Budget)?;

        let input = check::check(permit, &terms.check, &mut walk.trail).await.map_err(Refusal::Check);
        let mut input = input.and_then(|input| input.paid(Instant::now()).map_err(Refusal::Budget));
        if let Ok(input) = &mut input {
            tell_shadowed(walk, input.take_shadowed().map(Refusal::Check), events);
            tell_shadowed(walk, input.permit_mut().take_shadowed().map(Refusal::Budget), events);
        }
        let input = walk.past(Stop::Check, input, |refusal| refusal)?;
        let standing = input.permit().headers();

        let spent = input.permit().spent();
        let cleared = self.detector.weigh(input, &terms.detect, &work, &mut walk.trail, events, arrived).await;
        let cleared = walk.past(Stop::Detect, cleared, |error| match error {
            detect::Error::CallerAsksTooOften => Refusal::Budget(spent),
            error => Refusal::Detect(error),
        })?;

        let slot = want.and_then(|want| ledger.reserve(&terms.prove, want)).map_err(Refusal::Prove)?;
        if !matches!(terms.infer.backend, Backend::Nothing) {
            ledger.forward();
        }
        let answer = self.inference.answer(cleared, &terms.infer, self, &mut walk.trail).await;
        let mut answer = walk.past(Stop::Infer, answer, Refusal::Infer)?;
        answer.extend_headers(standing);
        if walk.trail.method == Method::HEAD {
            answer.take_bytes();
        }
        Ok((answer, slot))
    }

    async fn request(&self, peer: Peer) -> Response<Body> {
        // The shard of the log in which it begins is the one in which it ends.
        let ledger = self.shards.current();
        let accepted = ledger.accept();
        let policy = self.policy.load_full();
        let dialect = Dialect::of(peer.uri().path(), peer.headers().get(header::CONTENT_TYPE));
        let (arrived, deadline, last_call) = (peer.arrived(), peer.deadline(), peer.last_call());
        let (trace, active) = self.recorder.begin(peer.headers(), false);
        let undecided = self.events.of_request(trace.trace_id);
        let trail = Trail::new(arrived, peer.connection().address.ip(), peer.method().clone(), peer.http_version(), policy.digest, trace);
        let mut walk = Walk { trail, at: Stop::Accept, since: arrived.mono };
        walk.past(Stop::Accept, Ok::<(), Refusal>(()), |refusal| refusal).unwrap_or(());

        // The way is a large future: in its box it is moved once, and not with each of those around it, down to the connection's.
        let way = Box::pin(self.walk(&ledger, &policy, undecided.events(), peer, &mut walk));
        let in_time = async {
            tokio::select! {
                biased;
                walked = tokio::time::timeout_at(deadline.into(), way) => walked.map_err(|_| Refusal::Deadline as fn(Stop) -> Refusal),
                () = last_call => Err(Refusal::Stopping as fn(Stop) -> Refusal),
            }
        };
        let walking = AssertUnwindSafe(in_time).catch_unwind();
        let walked = match walking.await {
            Ok(Ok(walked)) => walked,
            Ok(Err(late)) => Err(late(walk.at)),
            Err(_) => Err(Refusal::Fault(walk.at)),
        };
        let ended = match walked {
            Ok((answer, slot)) => match ledger.prove(slot, answer, walk.trail).await {
                Ok(receipt) => (receipt, None),
                Err(not_proved) => self.refuse(&ledger, Refusal::Prove(not_proved.error), not_proved.trail, dialect).await,
            },
            Err(refusal) => self.refuse(&ledger, refusal, walk.trail, dialect).await,
        };
        accepted.over();
        undecided.decided(ended.0.id().is_some());
        self.leave(active, ended, dialect)
    }

    /// What the first stop turns away before there is a [`Peer`]: it ends as every refusal does.
    async fn turn_away(&self, turned_away: TurnedAway<'_>) -> Response<Body> {
        let ledger = self.shards.current();
        let accepted = ledger.accept();
        let policy = self.policy.load_full();
        let TurnedAway { connection, arrived, head, error } = turned_away;
        let dialect = Dialect::of(head.uri.path(), head.headers.get(header::CONTENT_TYPE));
        let (trace, active) = self.recorder.begin(&head.headers, false);
        let trail = Trail::new(arrived, connection.address.ip(), head.method.clone(), turned_away.http_version(), policy.digest, trace);
        let mut walk = Walk { trail, at: Stop::Accept, since: arrived.mono };
        if error == accept::Error::CallersCertificateEnded {
            let certificate = connection.certificate.as_deref();
            walk.trail.aside.whose = certificate.and_then(|certificate| policy.authenticator.holder(certificate));
        }
        let Err(refusal) = walk.past(Stop::Accept, Err::<Infallible, _>(error), Refusal::Accept);
        let ended = self.refuse(&ledger, refusal, walk.trail, dialect).await;
        accepted.over();
        self.leave(active, ended, dialect)
    }

    /// The last stop.
    fn leave(&self, active: Active, (receipt, code): (Receipt, Option<&'static str>), dialect: Dialect) -> Response<Body> {
        let receipt_id = receipt.id();
        let (status, mut headers, body, trail, late) = receipt.into_parts();
        // What the protocols' own clients show of an answer, to be asked about it.
        headers.extend(dialect.request_id().zip(receipt_id.and_then(|id| HeaderValue::try_from(id.to_string()).ok())));
        let answered = Answered { status, headers, body, trail, receipt: receipt_id, late, code };
        self.recorder.record(active, answered, Instant::now()).into_response()
    }

    /// A refusal in the caller's dialect, with its receipt.
    async fn refuse(&self, ledger: &Ledger, refusal: Refusal, mut trail: Trail, dialect: Dialect) -> (Receipt, Option<&'static str>) {
        let told = refusal.told();
        // Where the clock or the log refused, the last stop is one that passed, and its own rule stays.
        if let Some(step) = trail.steps.last_mut().filter(|step| step.verdict == Verdict::Refused) {
            step.rule = told.rule;
        }
        let (media_type, body, mut headers) = match dialect {
            Dialect::Grpc => {
                let message = dialect::placed(&told.message, told.param.as_deref());
                ("application/grpc", Bytes::new(), grpc::trailers(told.grpc, &message))
            }
            _ => {
                let (media_type, body) = dialect::error_body(dialect, told.status, told.code, &told.message, told.param.as_deref());
                let (mut headers, mut body) = (HeaderMap::new(), body);
                if trail.method == Method::HEAD {
                    headers.insert(header::CONTENT_LENGTH, std::mem::take(&mut body).len().into());
                }
                (media_type, body, headers)
            }
        };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        headers.insert("portcullis-reason", HeaderValue::from_static(told.code));
        headers.extend(told.headers);
        // gRPC tells its status in the headers of an answer without a body; HTTP's own says only that it was gRPC.
        let status = if dialect == Dialect::Grpc { StatusCode::OK } else { told.status };
        (ledger.refuse(trail, told.code, status, headers, body).await, Some(told.code))
    }
}

/// Tells what a rule in shadow mode would have refused the request for, in the words of that refusal.
fn tell_shadowed(walk: &mut Walk, refusal: Option<Refusal>, events: &Events) {
    let Some(refusal) = refusal else { return };
    let (name, readable) = match refusal {
        // Whose limit it was is left out of the receipt's step of `budget`, and of no other.
        Refusal::Budget(_) => (Name::BudgetShadowed, walk.at == Stop::Budget),
        _ => (Name::CheckShadowed, true),
    };
    let told = refusal.told();
    let rule = told.rule.clone().filter(|_| readable).unwrap_or_else(|| told.code.into());
    walk.trail.shadowed.get_or_insert(rule);
    let mut event = shadowed(name, told.rule, &walk.trail);
    event.code = Some(told.code);
    events.tell(match told.param {
        Some(place) => event.with("place", place),
        None => event,
    });
}

/// The event of a rule in shadow mode that would have decided otherwise.
fn shadowed(name: Name, rule: Option<Arc<str>>, trail: &Trail) -> Event {
    let mut event = Event::new(name, trail.arrived.wall);
    event.caller = trail.who.as_ref().map(|who| who.caller.clone());
    event.tenant = trail.who.as_ref().map(|who| who.tenant.clone());
    event.model = trail.model();
    (event.rule, event.receipt) = (rule, Some(trail.id));
    event
}

impl Handler for Gate {
    async fn handle(&self, peer: Peer) -> Response<Body> {
        self.0.request(peer).await
    }

    async fn refuse(&self, turned_away: TurnedAway<'_>) -> Response<Body> {
        self.0.turn_away(turned_away).await
    }
}

impl Receipts for House {
    fn find<'a>(&'a self, id: Uuid, form: ReceiptForm, who: &'a Arc<Who>, audits: bool) -> Found<'a> {
        Box::pin(async move {
            if let Some(stream) = self.shards.underway(id, who, audits) {
                return if form == ReceiptForm::Json { Ok(stream.json().to_string().into()) } else { Err(infer::Error::ReceiptStillOpen) };
            }
            let found = match form {
                ReceiptForm::Json => self.shards.find(id, who, audits).await.map(|found| found.json().to_string().into()),
                ReceiptForm::Statement => self.shards.find(id, who, audits).await.map(|found| found.statement().clone()),
                ReceiptForm::Cose => self.shards.find_included(id, who, audits).await.and_then(|found| found.receipt()).map(Bytes::from),
                ReceiptForm::Scitt => {
                    self.shards.find_included(id, who, audits).await.and_then(|found| found.transparent()).map(Bytes::from)
                }
                ReceiptForm::TlogProof => {
                    self.shards.find_included(id, who, audits).await.and_then(|found| found.tlog_proof()).map(Bytes::from)
                }
                ReceiptForm::Disclosure => self.shards.disclose(id, who, audits).await.map(|salts| salts.to_string().into()),
            };
            found.ok_or(infer::Error::NoSuchReceipt)
        })
    }
}
