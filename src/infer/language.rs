//! Language models behind an upstream of protocol `openai` or `anthropic`.
//!
//! The body that was checked is the body that is sent: the gateway writes its own name of the model over the caller's
//! where they differ, asks for `usage` on streams, and changes no other byte.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};
use http_body::Frame;
use serde_json::Value;

use super::memory::{Memory, Share};
use super::passing::{self, Read};
use super::upstream::{Incoming, Outgoing, Upstream};
use super::{Answer, Call, Error, Held, Payload, reply, shape, whole};
use crate::authorize::Route;
use crate::budget::{self, Hold};
use crate::check::Request;
use crate::detect::language::callers::Listener;
use crate::detect::language::guard::Guard;
use crate::heavy;
use crate::trail::{End, Late, TRACEPARENT, Trail, Usage};
use crate::wire::body::Broken;
use crate::wire::json::{self, Edit};
use crate::wire::sse::{Block, Splitter};
use crate::wire::{Asked, Body, anthropic, openai, said};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");

/// How long an upstream may keep its body open after it said that the stream is done.
const GRACE: std::time::Duration = std::time::Duration::from_millis(200);

/// So long an event of a stream, in bytes, may be that takes no share of the memory for whole answers: a chunk of one, with log-probabilities and all. A longer one
/// holds an image, or says once more all that the others said; it is no longer than a whole answer may be.
const EVENT: usize = 1 << 20;

/// No answer has so many tokens: whoever tells more is wrong, and the sums of them that are kept must not pass 64 bits.
const MOST_TOKENS: u64 = 1 << 32;

pub(super) async fn from_upstream(
    mut call: Box<Call>,
    upstream: &Arc<Upstream>,
    shape: &shape::Config,
    memory: &Memory,
    trail: &mut Trail,
) -> Result<Answer, Error> {
    let Request::Language(asked) = std::mem::replace(&mut call.request, Request::Nothing) else {
        return Err(Error::Unavailable("the route carries no request to a language model"));
    };
    let theirs = upstream.model().filter(|theirs| **theirs != call.name).map(ToString::to_string);
    let (bytes, route) = (&call.bytes, &call.route);
    let mut headers = headers(&call, asked.stream);
    headers.extend(trail.trace.parent_of_call().map(|parent| (TRACEPARENT, parent)));
    let outgoing = Outgoing {
        method: Method::POST,
        path_and_query: http::uri::PathAndQuery::from_static(path(&call.route)),
        headers,
        body: heavy::work(bytes.len(), || body(bytes, route, &asked, theirs.as_deref())).await,
    };
    call.hold.began();
    let incoming = upstream.send(outgoing, call.deadline).await?;
    if !incoming.status.is_success() {
        return Err(reply::refused(incoming, call.deadline, theirs.as_deref().map(|theirs| (theirs, &*call.name))).await);
    }
    reply::uncoded(&incoming.headers)?;
    let media_type = incoming.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if asked.stream {
        if !media_type.starts_with(b"text/event-stream") {
            return Err(Error::UpstreamBroke("it was asked for a stream and sent none"));
        }
        return Ok(stream(call, &asked, incoming, shape, memory.share()?));
    }
    if !media_type.starts_with(b"application/json") {
        return Err(Error::UpstreamBroke("its answer is not JSON"));
    }
    let (incoming, mut call) = match passing::if_larger(incoming, call, shape, "application/json").await? {
        Read::Small(incoming, call) => (incoming, call),
        Read::Large(answer) => return Ok(*answer),
    };
    let (bytes, share) = reply::whole(incoming, shape.max_body(), memory, call.deadline).await?;
    call.hold.delivered(bytes.len() as u64);
    let limits = json::Limits::for_body(shape.max_body());
    let decimals = decimals(&call, shape);
    let all = decimals.is_some() || call.care.without_logprobs || call.guard.is_some();
    let route = &call.route;
    let mut document = heavy::work(bytes.len(), || understood(route, &bytes, &limits, all)).await?;
    let usage = usage_of(&call.route, &document);
    trail.usage = Some(match usage {
        Some(usage) => {
            call.hold.settle(usage);
            call.listener.take().into_iter().for_each(|listener| listener.hear(usage));
            usage
        }
        None => call.hold.settle_by_bytes(),
    });
    let withheld = call.guard.as_mut().is_some_and(|guard| guard.hear(&document, SystemTime::now()));
    if withheld {
        said::withhold(&mut document);
    }
    let stripped = call.care.without_logprobs && openai::strip_logprobs(&mut document);
    let rounded = decimals.is_some_and(|decimals| openai::round_logprobs(&mut document, decimals));
    // Whatever the upstream calls it, the caller hears the name that was asked for.
    let misnamed = rename_in(&mut document, &call.name);
    let bytes = if stripped || rounded || withheld {
        document.to_string().into()
    } else if misnamed {
        json::edit(&bytes, &[("model", Edit::replace_text(&call.name))]).unwrap_or(bytes)
    } else {
        bytes
    };
    Ok(whole(incoming_status(), "application/json", bytes, Held { _budget: Some(call.hold), _memory: Some(share) }))
}

/// The parsed answer: all of it where something in it is to be changed, else only what is looked at.
///
/// What is JSON and no answer of the protocol is refused: an error told as a success would pass the upstream's own words on.
fn understood(route: &Route, bytes: &Bytes, limits: &json::Limits, all: bool) -> Result<Value, Error> {
    let parsed = if all {
        json::parse(bytes, limits)
    } else {
        json::parse_members(bytes, limits, &["error", "message", "model", "response", "usage"])
    };
    let document = parsed.map_err(|_| Error::UpstreamBroke("its answer is not strict JSON"))?;
    // Of what is no object the reading of members builds an empty one.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Error::UpstreamBroke("its answer is no object"));
    }
    // The responses API has the member in every answer, and in one that failed its text belongs to the answer.
    match document.get("error") {
        None | Some(Value::Null) => Ok(document),
        Some(_) if *route == Route::Responses => Ok(document),
        Some(_) => Err(Error::UpstreamBroke("it told an error as a success")),
    }
}

/// Whatever success the upstream told, the caller hears the one that its protocol knows.
const fn incoming_status() -> http::StatusCode {
    http::StatusCode::OK
}

fn path(route: &Route) -> &'static str {
    match route {
        Route::Completions => "/v1/completions",
        Route::Responses => "/v1/responses",
        Route::Embeddings => "/v1/embeddings",
        Route::Messages => "/v1/messages",
        _ => "/v1/chat/completions",
    }
}

fn headers(call: &Call, streams: bool) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(6);
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(ACCEPT, if streams { EVENTS } else { JSON });
    if call.route == Route::Messages {
        let version = call.headers.get("anthropic-version").cloned();
        headers.insert("anthropic-version", version.unwrap_or(HeaderValue::from_static("2023-06-01")));
        if let Some(beta) = call.headers.get("anthropic-beta") {
            headers.insert("anthropic-beta", beta.clone());
        }
    }
    headers
}

fn body(bytes: &Bytes, route: &Route, asked: &Asked, theirs: Option<&str>) -> Bytes {
    let mut edits = Vec::new();
    if let Some(theirs) = theirs {
        edits.push(("model", Edit::set_text(theirs)));
    }
    if asks_for_usage(route, asked) {
        edits.push(("stream_options", Edit::SetIn("include_usage", "true".to_owned())));
    }
    if edits.is_empty() { bytes.clone() } else { json::edit(bytes, &edits).unwrap_or_else(|| bytes.clone()) }
}

/// Whether the gateway asks for the `usage` chunk that the caller did not ask for, and takes it out again.
fn asks_for_usage(route: &Route, asked: &Asked) -> bool {
    asked.stream && matches!(route, Route::ChatCompletions | Route::Completions) && asked.include_usage != Some(true)
}

fn usage_of(route: &Route, document: &Value) -> Option<Usage> {
    let told = if *route == Route::Messages { anthropic::usage(document) } else { openai::usage(document) }?;
    Some(Usage { input: told.input.min(MOST_TOKENS), output: told.output.min(MOST_TOKENS) })
}

fn decimals(call: &Call, shape: &shape::Config) -> Option<u8> {
    [shape.decimals, call.care.decimals].into_iter().flatten().min()
}

/// The name stands at the top, in a responses event's `response`, or in a messages event's `message`.
fn rename_in(document: &mut Value, name: &str) -> bool {
    let mut renamed = false;
    for pointer in ["/model", "/response/model", "/message/model"] {
        if let Some(model) = document.pointer_mut(pointer).filter(|model| **model != *name) {
            *model = name.into();
            renamed = true;
        }
    }
    renamed
}

fn stream(call: Box<Call>, asked: &Asked, incoming: Incoming, shape: &shape::Config, share: Share) -> Answer {
    let late = Late::default();
    let decimals = decimals(&call, shape);
    let metered = Metered {
        upstream: Some(incoming.body),
        splitter: Splitter::new(shape.max_body().max(EVENT)),
        share,
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

/// A stream of server-sent events that meters itself, and settles what the budget holds when it ends, however it ends.
struct Metered {
    /// Gone once the stream has ended, which cancels the upstream call where it had not.
    upstream: Option<Body>,
    splitter: Splitter,
    /// Of the memory for answers, as much as the longest event takes beyond what each may.
    share: Share,
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
    /// The event at which the answer must end.
    cut: Option<Value>,
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
        if let Some(bytes) = self.passed(block)? {
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
            || [".completed\"", ".incomplete\"", ".failed\""].into_iter().any(has);
        if !wants {
            return Ok(Some(block.into_raw()));
        }
        let Ok(mut document) = serde_json::from_slice::<Value>(&data) else {
            // Where log-probabilities are withheld, they are withheld in whatever is not understood too.
            if self.without_logprobs && has("logprob") {
                return Ok(None);
            }
            // What cannot be read passes as it came, and is not counted; but not where something in it must not pass.
            return match self.decimals.is_some() && has("logprob") || misnamed {
                true => Err("the upstream sent an event that cannot be read".into()),
                false => Ok(Some(block.into_raw())),
            };
        };
        if let Some(usage) = usage_of(&self.route, &document) {
            let so_far = self.usage.unwrap_or_default();
            self.usage = Some(Usage { input: so_far.input.max(usage.input), output: so_far.output.max(usage.output) });
        }
        if let Some(guard) = &mut self.guard {
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
        Ok(Some(if self.change(&mut document) { block.with_data(document.to_string().as_bytes()) } else { block.into_raw() }))
    }

    fn change(&self, document: &mut Value) -> bool {
        let renamed = rename_in(document, &self.name);
        let stripped = self.without_logprobs && openai::strip_logprobs(document);
        let rounded = self.decimals.is_some_and(|decimals| openai::round_logprobs(document, decimals));
        renamed || stripped || rounded
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
        self.end(true);
        self.ready.push_back(last);
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
        while let Some(block) = self.splitter.next_block().map_err(|_| "the upstream sent an event that is too long")? {
            self.pass(block)?;
        }
        Ok(())
    }
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
                    if let Err(error) = this.feed(&data) {
                        this.end(false);
                        return Poll::Ready(Some(Err(error)));
                    }
                    this.end_here();
                }
                Some(Err(error)) => {
                    this.end(false);
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    let splitter = std::mem::take(&mut this.splitter);
                    let rest = splitter.finish().map_or(Ok(()), |block| this.pass(block));
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
        self.upstream.is_none() && self.ready.is_empty() && self.last.is_none() && !self.cut_short
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        if self.upstream.is_some() {
            // The last event has not left, or the upstream would be gone: the caller does not have the whole answer.
            self.end(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    fn metered(route: Route, events: &[&'static str], then_waits: bool) -> (Metered, Late) {
        use futures_util::{StreamExt, stream};
        let frames: Vec<Result<_, Broken>> = events.iter().map(|event| Ok(Frame::data(Bytes::from_static(event.as_bytes())))).collect();
        let frames = stream::iter(frames);
        let body =
            if then_waits { Body::stream(StreamBody::new(frames.chain(stream::pending()))) } else { Body::stream(StreamBody::new(frames)) };
        let late = Late::default();
        let metered = Metered {
            upstream: Some(body),
            splitter: Splitter::new(2 * EVENT),
            share: Memory::default().share().unwrap(),
            ready: VecDeque::new(),
            takes_out_usage: false,
            name: "chat".into(),
            named: "\"model\":\"chat\"".into(),
            decimals: None,
            without_logprobs: false,
            guard: None,
            listener: None,
            response: None,
            cut: None,
            usage: None,
            said_it_is_done: false,
            last: None,
            cut_short: false,
            hold: Hold::of_nobody(),
            late: late.clone(),
            route,
        };
        (metered, late)
    }

    const START: &str = "data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\n\n";
    const DELTA: &str = "data: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"a word and another word\"}}\n\n";
    const END: &str = "data: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":9}}\n\ndata: {\"type\":\"message_stop\"}\n\n";

    #[tokio::test]
    async fn who_leaves_before_the_usage_is_told_owes_for_what_came() {
        let (mut left, late) = metered(Route::Messages, &[START, DELTA, DELTA], true);
        for _ in 0..3 {
            left.frame().await.unwrap().unwrap();
        }
        drop(left);
        let usage = late.end().unwrap().usage.unwrap();
        let came = (START.len() + 2 * DELTA.len()) as u64;
        assert_eq!((usage.input, usage.output), (25, budget::estimate(came)));

        let (stayed, late) = metered(Route::Messages, &[START, DELTA, DELTA, END], false);
        stayed.collect().await.unwrap();
        assert_eq!(late.end().unwrap().usage, Some(Usage { input: 25, output: 9 }));
    }

    #[tokio::test]
    async fn an_event_is_as_long_as_a_whole_answer_may_be_and_takes_its_memory() {
        let event = |length: usize| -> &'static str { format!("data: {}\n\n", "a".repeat(length - 8)).leak() };
        let passes = async |length: usize, left: usize| {
            let memory = Memory::default();
            let mut others = memory.share().unwrap();
            others.grow_to(super::super::memory::ALL - left).unwrap();
            let (mut stream, _) = metered(Route::ChatCompletions, &[event(length), "data: [DONE]\n\n"], false);
            stream.share = memory.share().unwrap();
            stream.collect().await.map(|whole| whole.to_bytes().len() - 14).map_err(|error| error.to_string())
        };
        assert_eq!(passes(EVENT, 0).await, Ok(EVENT));
        assert_eq!(passes(2 * EVENT, 3 * EVENT).await, Ok(2 * EVENT));
        assert_eq!(passes(2 * EVENT + 1, 3 * EVENT).await.unwrap_err(), "the upstream sent an event that is too long");
        assert_eq!(passes(2 * EVENT, EVENT).await.unwrap_err(), "the memory for answers is full");
    }

    #[tokio::test]
    async fn withheld_log_probabilities_leave_in_no_chunk() {
        const CHUNK: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"logprobs\":{\"content\":[{\"logprob\":-0.25}]}}]}\n\n";
        const ODD: &str =
            "data: {\"choices\":[{\"delta\":{\"content\":\"\\ud83d\"},\"logprobs\":{\"content\":[{\"logprob\":-0.25}]}}]}\n\n";
        let (mut stream, _) = metered(Route::ChatCompletions, &[CHUNK, ODD, "data: [DONE]\n\n"], false);
        stream.without_logprobs = true;
        let told = stream.collect().await.unwrap().to_bytes();
        let told = String::from_utf8_lossy(&told);
        assert!(told.contains("\"content\":\"a\"") && told.contains("\"logprobs\":null") && told.contains("[DONE]"), "{told}");
        assert!(!told.contains("0.25"), "{told}");
    }

    const NAMED: &str = "data: {\"model\":\"acme/secret-7b\",\"choices\":[]}\n\n";
    const DONE: &str = "data: [DONE]\n\n";

    fn of_chat(pieces: &[&'static str], decimals: Option<u8>) -> (Metered, Late) {
        let (mut body, late) = metered(Route::ChatCompletions, pieces, false);
        (body.takes_out_usage, body.decimals) = (true, decimals);
        (body, late)
    }

    /// What a caller reads, whether the stream ended cleanly, and whether it is told to be complete.
    async fn read(mut body: Metered, late: Late) -> (String, bool, bool) {
        let (mut text, mut clean) = (String::new(), true);
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap()),
                Err(_) => clean = false,
            }
        }
        (text, clean, late.end().unwrap().complete)
    }

    /// The same of `chat`.
    async fn told(pieces: &[&'static str], decimals: Option<u8>) -> (String, bool, bool) {
        let (body, late) = of_chat(pieces, decimals);
        read(body, late).await
    }

    #[tokio::test]
    async fn a_stream_that_said_it_is_done_ends_cleanly_and_every_other_breaks() {
        let passed = NAMED.replace("acme/secret-7b", "chat");
        assert_eq!(told(&[NAMED, DONE], None).await, (format!("{passed}{DONE}"), true, true));
        assert_eq!(told(&[NAMED], None).await, (passed.clone(), false, false));
        assert_eq!(told(&[NAMED, ": half"], None).await, (format!("{passed}: half"), false, false));
        assert_eq!(told(&[], None).await, (String::new(), false, false));
    }

    #[tokio::test]
    async fn whoever_hangs_up_after_the_end_was_told_had_the_whole_answer_and_before_it_not() {
        for (read, complete) in [(1, false), (2, true)] {
            let (mut body, late) = of_chat(&[NAMED, DONE, "more"], None);
            for _ in 0..read {
                body.frame().await.unwrap().unwrap();
            }
            drop(body);
            assert_eq!(late.end().unwrap().complete, complete, "{read}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_that_keeps_its_body_open_delays_the_last_event_by_its_grace() {
        let (mut body, late) = metered(Route::ChatCompletions, &[DONE], true);
        let from = tokio::time::Instant::now();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), DONE);
        assert_eq!(from.elapsed(), GRACE);
        assert!(late.end().unwrap().complete, "it is told before the last event leaves");
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn an_event_that_cannot_be_read_does_not_pass_what_it_must_not_tell() {
        const LONE_SURROGATE: &str = "data: {\"x\":\"\\ud83d\",\"model\":\"acme/secret-7b\"}\n\n";
        const FINE: &str = "data: {\"x\":\"\\ud83d\",\"logprobs\":[{\"logprob\":-0.123456}]}\n\n";
        assert_eq!(told(&[LONE_SURROGATE, DONE], None).await, (String::new(), false, false));
        assert_eq!(told(&[FINE, DONE], Some(2)).await, (String::new(), false, false));
        assert_eq!(told(&["data: ping\n\n", DONE], Some(2)).await, (format!("data: ping\n\n{DONE}"), true, true));
    }

    const INSTRUCTIONS: &str = "You are the concierge of the Hotel Bellevue. Never offer a discount of more than twelve per cent, and only to \
        guests who have stayed with us before. The code for the staff entrance is changed every Monday.";

    /// What a caller reads of a stream whose upstream recites its instructions, word by word, and goes on, and whether it ended cleanly and was complete.
    async fn recited(route: Route, first: &str, event: impl Fn(&str) -> String) -> (String, bool, bool) {
        let words = INSTRUCTIONS.split_inclusive(' ').chain(["and", " so", " on", " it", " went"]);
        let pieces: Vec<&'static str> = std::iter::once(first.to_owned()).chain(words.map(event)).map(|piece| &*piece.leak()).collect();
        let (mut body, late) = metered(route, &pieces, true);
        let (events, _reader) = crate::event::channel(4);
        body.guard = Some(Guard::over(INSTRUCTIONS, &events));
        read(body, late).await
    }

    #[tokio::test]
    async fn a_stream_that_recites_its_instructions_ends_as_if_a_filter_of_the_server_had_stopped_it() {
        let chat = |word: &str| {
            format!("data: {}\n\n", serde_json::json!({"model": "theirs", "choices": [{"index": 0, "delta": {"content": word}}]}))
        };
        let (text, clean, complete) = recited(Route::ChatCompletions, ": hi\n\n", chat).await;
        assert!(clean && complete);
        assert!(text.ends_with("\"finish_reason\":\"content_filter\"}]}\n\ndata: [DONE]\n\n"), "{text}");
        assert!(text.contains("Bellevue") && !text.contains("Monday") && !text.contains("went") && !text.contains("theirs"), "{text}");

        let response = |kind: &str, more: Value| format!("event: {kind}\ndata: {more}\n\n");
        let created = response(
            "response.created",
            serde_json::json!({"type": "response.created", "response": {"id": "r1", "model": "theirs", "output": []}}),
        );
        let delta =
            |word: &str| response("response.output_text.delta", serde_json::json!({"type": "response.output_text.delta", "delta": word}));
        let (text, clean, complete) = recited(Route::Responses, &created, delta).await;
        assert!(clean && complete && !text.contains("Monday") && !text.contains("theirs"), "{text}");
        let last = text.rsplit("data: ").next().unwrap();
        assert!(last.contains("\"r1\"") && last.contains("content_filter") && last.contains("response.incomplete"), "{last}");

        let delta = |word: &str| {
            response(
                "content_block_delta",
                serde_json::json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}),
            )
        };
        let (text, clean, complete) = recited(Route::Messages, ": hi\n\n", delta).await;
        assert!(clean && complete && !text.contains("Monday"), "{text}");
        assert!(text.contains("\"stop_reason\":\"refusal\"") && text.ends_with("{\"type\":\"message_stop\"}\n\n"), "{text}");
    }

    #[test]
    fn an_upstream_cannot_tell_more_tokens_than_can_be_added_up() {
        let told = |text| usage_of(&Route::ChatCompletions, &serde_json::from_str(text).unwrap()).unwrap();
        let huge = told(r#"{"usage":{"prompt_tokens":18446744073709551615,"completion_tokens":4294967297}}"#);
        assert_eq!(huge, Usage { input: MOST_TOKENS, output: MOST_TOKENS });
        let most = told(r#"{"usage":{"prompt_tokens":4294967296,"completion_tokens":0}}"#);
        assert_eq!(most, Usage { input: MOST_TOKENS, output: 0 });
    }

    #[test]
    fn json_that_is_no_answer_of_the_protocol_is_refused() {
        let read = |route, text: &'static str| {
            let [some, all] =
                [false, true].map(|all| understood(&route, &Bytes::from_static(text.as_bytes()), &json::Limits::default(), all).is_ok());
            assert_eq!(some, all, "{text}");
            some
        };
        assert!(read(Route::ChatCompletions, r#"{"choices":[]}"#));
        assert!(read(Route::ChatCompletions, r#"{"choices":[],"error":null}"#));
        assert!(read(Route::Responses, r#"{"status":"failed","error":{"message":"no"}}"#));
        assert!(!read(Route::ChatCompletions, r#"{"error":{"message":"bad key sk-1"}}"#));
        assert!(!read(Route::Messages, "[1,2]"));
        assert!(!read(Route::Embeddings, "7"));
    }
}
