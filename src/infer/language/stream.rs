//! A stream of server-sent events from a model's server to the caller, event by event: it is metered, shaped and listened to as it passes.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use serde_json::Value;

use super::super::memory::Share;
use super::super::upstream::Incoming;
use super::super::{Answer, Call, Held, Payload, shape};
use super::{asks_for_usage, decimals, rename_in, usage_of};
use crate::authorize::Route;
use crate::budget::{self, Hold};
use crate::detect::language::callers::Listener;
use crate::detect::language::guard::Guard;
use crate::heavy::{self, Turn};
use crate::trail::{End, Late, Usage};
use crate::wire::body::Broken;
use crate::wire::json;
use crate::wire::sse::{Block, STATEMENT, Splitter};
use crate::wire::{Asked, Body, openai, said};

/// How long an upstream may keep its body open after it said that the stream is done.
const GRACE: std::time::Duration = std::time::Duration::from_millis(200);

/// So long an event of a stream, in bytes, may be that takes no share of the memory for whole answers: a chunk of one, with log-probabilities and all. A longer one
/// holds an image, or says once more all that the others said; it is no longer than a whole answer may be.
const EVENT: usize = 1 << 20;

/// The answer that is a stream; `share` is of the memory for whole answers, and empty so far.
pub(super) fn answer(call: Box<Call>, asked: &Asked, incoming: Incoming, shape: &shape::Config, share: Share) -> Answer {
    let late = Late::default();
    let decimals = decimals(&call, shape);
    let metered = Metered {
        upstream: Some(incoming.body),
        splitter: Splitter::new(shape.max_body().max(EVENT)),
        limits: json::Limits::for_body(shape.max_body().max(EVENT)),
        share,
        much: None,
        ready: VecDeque::new(),
        takes_out_usage: asks_for_usage(&call.route, asked),
        named: format!("\"model\":{}", Value::from(&*call.name)),
        name: call.name.clone(),
        decimals,
        without_logprobs: call.care.without_logprobs,
        guard: call.guard,
        listener: call.listener,
        response: None,
        cut: None,
        closing: None,
        usage: None,
        said_it_is_done: false,
        last: None,
        cut_short: false,
        hold: call.hold,
        late: late.clone(),
        route: call.route,
    };
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Answer {
        status: http::StatusCode::OK,
        headers,
        payload: Payload::Stream(Body::stream(metered), late),
        trailers: None,
        held: Held::default(),
    }
}

/// A turn that is waited for.
type Turns = Pin<Box<dyn Future<Output = Turn> + Send>>;

/// A stream of server-sent events that meters itself, and settles what the budget holds when it ends, however it ends.
struct Metered {
    /// Gone once the stream has ended, which cancels the upstream call where it had not.
    upstream: Option<Body>,
    splitter: Splitter,
    limits: json::Limits,
    /// Of the memory for answers, as much as an event takes that is longer than each may be, until it has left.
    share: Share,
    /// A long event that waits for its turn to be read.
    much: Option<(Block, Turns)>,
    ready: VecDeque<Bytes>,
    takes_out_usage: bool,
    /// What callers call the model, and how a chunk that says so writes it.
    name: Arc<str>,
    named: String,
    decimals: Option<u8>,
    without_logprobs: bool,
    /// What listens for what must not come out.
    guard: Option<Box<Guard>>,
    listener: Option<Listener>,
    /// What the responses API has told of its answer, for the event that ends it early.
    response: Option<Value>,
    /// The event at which the answer must end, and the gateway's own in its place, which is the last.
    cut: Option<Value>,
    closing: Option<Bytes>,
    usage: Option<Usage>,
    said_it_is_done: bool,
    /// The event that says so, which leaves when the upstream has ended, or has had its grace to end.
    last: Option<(Bytes, Pin<Box<tokio::time::Sleep>>)>,
    /// The upstream ended before it said that it was done, which is still to be told once all that came was passed on.
    cut_short: bool,
    hold: Hold,
    late: Late,
    route: Route,
}

impl Metered {
    /// One event on its way through: byte for byte, unless something in it must change.
    fn pass(&mut self, block: Block) -> Result<(), Broken> {
        if self.last.is_some() || self.cut.is_some() {
            // Nothing follows the event that says that it is done, or the one that ends it.
            return Ok(());
        }
        // What only the gateway says, a model's server may not say in its name.
        if let Some(bytes) = self.passed(block.without_comments(STATEMENT))? {
            self.hold.delivered(bytes.len() as u64);
            if self.said_it_is_done {
                self.last = Some((bytes, Box::pin(tokio::time::sleep(GRACE))));
            } else {
                self.ready.push_back(bytes);
            }
        }
        Ok(())
    }

    fn passed(&mut self, block: Block) -> Result<Option<Bytes>, Broken> {
        let Some(data) = block.data() else { return Ok(Some(block.into_raw())) };
        if &*data == b"[DONE]" {
            self.said_it_is_done = true;
            return Ok(Some(block.into_raw()));
        }
        let has = |word: &str| memchr::memmem::find(&data, word.as_bytes()).is_some();
        let shapes = self.without_logprobs || self.decimals.is_some();
        let misnamed = has("\"model\"") && !has(&self.named);
        let wants = misnamed
            || self.guard.is_some()
            || shapes && has("logprob")
            || has("\"usage\"")
            || has("_stop\"")
            || has("\"error\"")
            || [".completed\"", ".incomplete\"", ".failed\""].into_iter().any(has);
        if !wants {
            return Ok(Some(block.into_raw()));
        }
        let Some(mut document) = self.read(&data) else {
            // Where log-probabilities are withheld, they are withheld in whatever is not understood too.
            if self.without_logprobs && has("logprob") {
                return Ok(None);
            }
            // What cannot be read passes as it came, and is not counted; but not where something in it must not pass.
            // What is to be JSON and is not may say anything to who reads it more loosely; what is none is a text, mostly to keep the connection open.
            let is_json = data.trim_ascii_start().first().is_some_and(|first| b"{[".contains(first));
            let guard = self.guard.as_mut().filter(|guard| guard.is_enforced());
            let guarded = guard.is_some_and(|guard| is_json || guard.hear_text(&String::from_utf8_lossy(&data), SystemTime::now()));
            return match self.decimals.is_some() && has("logprob") || misnamed || guarded {
                true => Err("the upstream sent an event that cannot be read".into()),
                false => Ok(Some(block.into_raw())),
            };
        };
        if let Some(usage) = usage_of(&self.route, &document) {
            let so_far = self.usage.unwrap_or_default();
            self.usage = Some(Usage { input: so_far.input.max(usage.input), output: so_far.output.max(usage.output) });
        }
        let mut unread = false;
        if let Some(guard) = &mut self.guard {
            unread = guard.is_enforced() && said::take_out_unread(&mut document);
            if guard.hear(&document, SystemTime::now()) {
                self.cut = Some(document);
                return Ok(None);
            }
            if let Some(response) = document.get("response").filter(|_| self.response.is_none()) {
                self.response = Some(response.clone());
            }
        }
        let kind = document.get("type").and_then(Value::as_str);
        if matches!(kind, Some("message_stop" | "response.completed" | "response.incomplete" | "response.failed")) {
            self.said_it_is_done = true;
        }
        if self.takes_out_usage {
            if openai::is_usage_only(&document) {
                return Ok(None);
            }
            // Servers that were asked for usage write `"usage": null` into every other chunk, which the caller did not ask for either.
            if document.get("usage").is_some_and(Value::is_null)
                && let Some(chunk) = document.as_object_mut()
            {
                chunk.remove("usage");
                self.change(&mut document);
                return Ok(Some(block.with_data(document.to_string().as_bytes())));
            }
        }
        Ok(Some(if self.change(&mut document) | unread { block.with_data(document.to_string().as_bytes()) } else { block.into_raw() }))
    }

    /// What an event says, by the limits of whole answers where it is long.
    fn read(&self, data: &[u8]) -> Option<Value> {
        let read = |data: &[u8]| {
            if data.len() < heavy::MANY { serde_json::from_slice(data).ok() } else { json::parse(data, &self.limits).ok() }
        };
        // Servers that cut a text between two units of UTF-16 write the halves of a character, which clients read.
        read(data).or_else(|| read(&json::without_halves(data)?))
    }

    fn change(&self, document: &mut Value) -> bool {
        let renamed = rename_in(document, &self.name);
        // In the responses API its text belongs to an answer that failed.
        let silenced = self.route != Route::Responses && silence(document);
        let stripped = self.without_logprobs && openai::strip_logprobs(document);
        let rounded = self.decimals.is_some_and(|decimals| openai::round_logprobs(document, decimals));
        renamed || silenced || stripped || rounded
    }

    /// Ends the answer with events of the gateway's own, where it must not go on. The upstream is left, and what it would have said.
    fn end_here(&mut self) -> bool {
        let Some(mut event) = self.cut.take() else { return false };
        let mut response = self.response.take();
        rename_in(&mut event, &self.name);
        if let Some(Value::Object(response)) = &mut response
            && response.contains_key("model")
        {
            response.insert("model".into(), Value::from(&*self.name));
        }
        let (events, last) = said::cut(&event, response.as_ref(), budget::estimate(self.hold.so_far()));
        self.ready.extend(events);
        // What it was is told when nothing but the last event is left.
        (self.upstream, self.closing) = (None, Some(last));
        true
    }

    fn end(&mut self, complete: bool) {
        self.upstream = None;
        let usage = match self.usage {
            Some(mut usage) => {
                // Of an answer that was left, nobody knows how long it would have been.
                self.listener.take().filter(|_| complete).into_iter().for_each(|listener| listener.hear(usage));
                // `message_start` tells one token of output: who leaves after it owes for what has come since.
                if !complete {
                    usage.output = usage.output.max(budget::estimate(self.hold.so_far()));
                }
                self.hold.settle(usage);
                usage
            }
            None => self.hold.settle_by_bytes(),
        };
        self.late.ended(End { usage: Some(usage), complete });
    }

    fn feed(&mut self, data: &[u8]) -> Result<(), Broken> {
        self.splitter.push(data);
        if self.splitter.held() > EVENT {
            self.share.grow_to(self.splitter.held()).map_err(|_| "the memory for answers is full")?;
        }
        self.split()
    }

    /// Passes what is whole, up to an event that has to wait for its turn.
    fn split(&mut self) -> Result<(), Broken> {
        while self.much.is_none()
            && let Some(block) = self.splitter.next_block().map_err(|_| "the upstream sent an event that is too long")?
        {
            if heavy::is_much(block.raw().len()) {
                self.much = Some((block, Box::pin(heavy::turn())));
            } else {
                self.pass(block)?;
            }
        }
        Ok(())
    }

    /// What came of it ends the answer, or the stream.
    fn passed_on(&mut self, passed: Result<(), Broken>) -> Result<(), Broken> {
        if passed.is_err() {
            self.end(false);
        } else {
            self.end_here();
        }
        passed
    }
}

/// Takes the upstream's own words out of an error that it tells in the middle of a stream, and leaves that there was one.
fn silence(document: &mut Value) -> bool {
    const TEXT: &str = "The model did not give a usable answer.";
    match document.get_mut("error") {
        None | Some(Value::Null) => return false,
        Some(Value::Object(error)) => drop(error.insert("message".into(), TEXT.into())),
        Some(error) => *error = serde_json::json!({ "message": TEXT }),
    }
    true
}

impl http_body::Body for Metered {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        loop {
            if let Some(bytes) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if let Some(last) = this.closing.take() {
                this.end(true);
                return Poll::Ready(Some(Ok(Frame::data(last))));
            }
            if let Some((_, turn)) = this.much.as_mut().filter(|_| this.upstream.is_some()) {
                let turn = std::task::ready!(turn.as_mut().poll(cx));
                let passed = this.much.take().map_or(Ok(()), |(block, _)| turn.work(|| this.pass(block)));
                let passed = passed.and_then(|()| if this.cut.is_none() { this.split() } else { Ok(()) });
                if let Err(error) = this.passed_on(passed) {
                    return Poll::Ready(Some(Err(error)));
                }
                continue;
            }
            if this.splitter.held() <= EVENT {
                this.share.give_back();
            }
            let Some(upstream) = &mut this.upstream else {
                // A clean end would tell the caller that this was the whole answer, which its receipt denies.
                return Poll::Ready(std::mem::take(&mut this.cut_short).then(|| Err("the upstream's stream broke off".into())));
            };
            let polled = match (Pin::new(upstream).poll_frame(cx), &mut this.last) {
                // The last event waits for the end of the upstream's body, so that its connection can serve again; but not for long.
                (Poll::Pending, Some((_, grace))) => {
                    std::task::ready!(grace.as_mut().poll(cx));
                    None
                }
                (Poll::Pending, None) => return Poll::Pending,
                (Poll::Ready(Some(Ok(_))), Some(_)) => continue,
                (Poll::Ready(_), Some(_)) => None,
                (Poll::Ready(polled), None) => polled,
            };
            match polled {
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    let fed = this.feed(&data);
                    if let Err(error) = this.passed_on(fed) {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
                Some(Err(error)) => {
                    this.end(false);
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    let rest = std::mem::take(&mut this.splitter).finish();
                    let rest = match rest {
                        Some(block) if heavy::is_much(block.raw().len()) => {
                            // It has its turn as others have, and the stream ends after it.
                            this.much = Some((block, Box::pin(heavy::turn())));
                            this.upstream = Some(Body::Empty);
                            continue;
                        }
                        rest => rest.map_or(Ok(()), |block| this.pass(block)),
                    };
                    if rest.is_ok() && this.end_here() {
                        continue;
                    }
                    let complete = this.said_it_is_done && rest.is_ok();
                    this.cut_short = !complete;
                    // Told before the last event leaves: whoever proves the stream keeps its entry first.
                    this.end(complete);
                    this.ready.extend(this.last.take().map(|(bytes, _)| bytes));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.upstream.is_none() && self.ready.is_empty() && self.last.is_none() && self.closing.is_none() && !self.cut_short
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        if self.upstream.is_some() || self.closing.is_some() {
            // The last event has not left, or the upstream would be gone: the caller does not have the whole answer.
            self.end(false);
        }
    }
}

#[cfg(test)]
mod tests;
