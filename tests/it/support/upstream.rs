//! A model server that does what a test tells it, and remembers what it was sent.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::PATIENCE;

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// A model server.
pub struct Upstream {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    count: watch::Receiver<usize>,
    serving: JoinHandle<()>,
}

impl Upstream {
    /// Answers each request as `script` says.
    pub async fn start<F, A>(script: F) -> Self
    where
        F: Fn(Seen) -> A + Send + Sync + 'static,
        A: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::over(script, false).await
    }

    /// The same over HTTP/2 without TLS, as gRPC servers have it.
    pub async fn over_http2<F, A>(script: F) -> Self
    where
        F: Fn(Seen) -> A + Send + Sync + 'static,
        A: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::over(script, true).await
    }

    async fn over<F, A>(script: F, http2: bool) -> Self
    where
        F: Fn(Seen) -> A + Send + Sync + 'static,
        A: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (tell, count) = watch::channel(0);
        let (script, tell, remembered) = (Arc::new(script), Arc::new(tell), seen.clone());
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, tell, seen) = (script.clone(), tell.clone(), remembered.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (script, tell, seen) = (script.clone(), tell.clone(), seen.clone());
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await?.to_bytes();
                        let request = Seen { method: head.method, uri: head.uri, headers: head.headers, body };
                        seen.lock().unwrap().push(request.clone());
                        tell.send_modify(|count| *count += 1);
                        Ok::<_, hyper::Error>(script(request).await)
                    }
                });
                let _ = stream.set_nodelay(true);
                if http2 {
                    tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service));
                } else {
                    tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
                }
            }
        });
        Self { address, seen, count, serving }
    }

    /// Speaks OpenAI and Anthropic well enough, and tells 10 tokens in and 5 out.
    pub async fn language() -> Self {
        Self::start(|seen| async move { language(&seen) }).await
    }

    /// Answers every request with this JSON.
    pub async fn json(document: Value) -> Self {
        Self::start(move |_| {
            let document = document.clone();
            async move { whole(200, &document) }
        })
        .await
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it was sent so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests it was sent.
    pub fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// Waits until it was sent so many.
    pub async fn has_seen(&self, count: usize) {
        let mut seen = self.count.clone();
        let waited = tokio::time::timeout(PATIENCE, seen.wait_for(|seen| *seen >= count)).await;
        assert!(matches!(waited, Ok(Ok(_))), "it was sent {} of {count}", self.count());
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A whole answer of JSON.
pub fn whole(status: u16, document: &Value) -> Response<Body> {
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(document.to_string())).boxed_unsync())
        .unwrap()
}

/// What a gRPC server answers: these bytes, and behind them these trailers.
pub fn call(framed: Bytes, trailers: HeaderMap) -> Response<Body> {
    let frames = [Ok(Frame::data(framed)), Ok(Frame::trailers(trailers))];
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

/// An answer that is written piece by piece; the sender's `closed()` tells when nobody reads it any more.
pub fn stream(kind: &str) -> (mpsc::Sender<Bytes>, Response<Body>) {
    let (sender, pieces) = mpsc::channel::<Bytes>(16);
    let pieces = futures_util::stream::unfold(pieces, |mut pieces| async move { Some((Ok(Frame::data(pieces.recv().await?)), pieces)) });
    let body = StreamBody::new(pieces).boxed_unsync();
    (sender, Response::builder().header("content-type", kind).body(body).unwrap())
}

/// Streams that a test writes itself.
pub struct Streams {
    pub upstream: Upstream,
    begun: mpsc::UnboundedReceiver<mpsc::Sender<Bytes>>,
}

impl Streams {
    /// Behind an upstream that begins one for each request.
    pub async fn new() -> Self {
        let (tell, begun) = mpsc::unbounded_channel();
        let upstream = Upstream::start(move |_| {
            let (sender, response) = stream("text/event-stream");
            let _ = tell.send(sender);
            async move { response }
        })
        .await;
        Self { upstream, begun }
    }

    /// The next one that is asked for.
    pub async fn next(&mut self) -> mpsc::Sender<Bytes> {
        tokio::time::timeout(PATIENCE, self.begun.recv()).await.unwrap().unwrap()
    }
}

/// The events of a chat, told with usage at the end where it is asked for.
pub fn events(model: &str, usage: bool) -> Vec<String> {
    let piece = |choices: Value, usage: Value| {
        let chunk = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": choices, "usage": usage});
        format!("data: {chunk}\n\n")
    };
    let mut events = vec![
        piece(json!([{"index": 0, "delta": {"role": "assistant", "content": "one "}}]), Value::Null),
        piece(json!([{"index": 0, "delta": {"content": "two"}, "finish_reason": "stop"}]), Value::Null),
    ];
    if usage {
        events.push(piece(json!([]), json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15})));
    }
    events.push("data: [DONE]\n\n".to_owned());
    events
}

fn language(seen: &Seen) -> Response<Body> {
    let asked: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
    let model = asked["model"].as_str().unwrap_or_default();
    let usage = json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15});
    if asked["stream"] == true {
        let text = events(model, asked["stream_options"]["include_usage"] == true).concat();
        return Response::builder().header("content-type", "text/event-stream").body(Full::new(Bytes::from(text)).boxed_unsync()).unwrap();
    }
    whole(
        200,
        &match seen.uri.path() {
            "/v1/messages" => json!({"id": "m", "type": "message", "role": "assistant", "model": model,
                "content": [{"type": "text", "text": "hello"}], "stop_reason": "end_turn", "usage": {"input_tokens": 10, "output_tokens": 5}}),
            "/v1/embeddings" => json!({"object": "list", "model": model, "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
                "usage": {"prompt_tokens": 10, "total_tokens": 10}}),
            "/v1/responses" => json!({"id": "r", "object": "response", "model": model, "output": [],
                "usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}}),
            "/v1/completions" => json!({"id": "t", "object": "text_completion", "created": 1, "model": model,
                "choices": [{"index": 0, "text": "hello", "finish_reason": "stop"}], "usage": usage}),
            _ => json!({"id": "c", "object": "chat.completion", "created": 1, "model": model,
                "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}], "usage": usage}),
        },
    )
}
