//! One HTTP/1.1 connection in the background, kept open between requests to the same place: a witness.

use std::sync::Arc;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::fetch::{fetch_target, read_whole};
use super::{FetchError, Limits, MAX_HEAD, Origin, Reach, UrlMistake, connect};

/// A place, and the connection to it, if there is one. It has one request at a time; others wait their turn.
pub struct Kept {
    origin: Origin,
    /// The URL's path, without a slash at its end.
    prefix: String,
    tls: Arc<ClientConfig>,
    limits: Limits,
    open: Mutex<Option<Open>>,
}

/// An answer of any status, whole.
#[derive(Debug)]
pub struct Answered {
    /// Its status; redirects are not followed.
    pub status: StatusCode,
    /// Its headers, as the other end wrote them.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

struct Open {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Kept {
    /// The place `url`, to whose path every request's is added. Nothing is connected yet.
    ///
    /// # Errors
    /// What is wrong with the URL; one with a query is no prefix.
    pub fn new(url: &str, tls: Arc<ClientConfig>, limits: Limits) -> Result<Self, UrlMistake> {
        let (origin, target) = fetch_target(url, &limits)?;
        if target.query().is_some() {
            return Err(UrlMistake("must not have a query"));
        }
        let prefix = target.path().trim_end_matches('/').to_owned();
        Ok(Self { origin, prefix, tls, limits, open: Mutex::default() })
    }

    /// Sends one request, without credentials, and reads the whole answer. A request that went out on a connection which
    /// the other end had let go of is sent a second time on a new one: only for what may arrive twice.
    ///
    /// # Errors
    /// Why there is no answer. The connection is then closed.
    pub async fn ask(&self, method: Method, path: &str, content_type: Option<&'static str>, body: Bytes) -> Result<Answered, FetchError> {
        let target: PathAndQuery = format!("{}{path}", self.prefix)
            .parse()
            .map_err(|_| FetchError::OperatorConfiguredUrl(UrlMistake("is no prefix of a path")))?;
        let request = || {
            let mut request = http::Request::new(Full::new(body.clone()));
            *request.method_mut() = method.clone();
            *request.uri_mut() = Uri::from(target.clone());
            let headers = request.headers_mut();
            headers.insert(header::HOST, self.origin.host_header());
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if let Some(kind) = content_type {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            }
            request
        };
        timeout_at(Instant::now() + self.limits.within, async {
            let mut slot = self.open.lock().await;
            // Taken out: whatever goes wrong from here, the time running out included, the connection is dropped.
            let kept = slot.take().filter(|open| !open.sender.is_closed());
            let (mut open, answer) = match kept {
                None => self.fresh(request()).await?,
                Some(mut open) => match open.sender.send_request(request()).await {
                    Ok(answer) => (open, answer),
                    Err(_) => self.fresh(request()).await?,
                },
            };
            let (status, whole) = read_whole(answer, self.limits.max_body).await?;
            if open.sender.ready().await.is_ok() {
                *slot = Some(open);
            }
            Ok(Answered { status, headers: whole.headers, body: whole.body })
        })
        .await
        .unwrap_or(Err(FetchError::TimedOut))
    }

    async fn fresh(&self, request: http::Request<Full<Bytes>>) -> Result<(Open, http::Response<hyper::body::Incoming>), FetchError> {
        let reach = if self.limits.allow_private { Reach::Anywhere } else { Reach::Public };
        let stream = connect(&self.origin, Some(&self.tls), reach, self.limits.within).await.map_err(FetchError::Unreached)?;
        let (sender, connection) = Builder::new()
            .max_buf_size(MAX_HEAD)
            .max_header_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| FetchError::SourceBrokeProtocol)?;
        let driver = tokio::spawn(async move {
            // How it ends shows in the request that it carried.
            let _ = connection.await;
        });
        let mut open = Open { sender, driver };
        let answer = open.sender.send_request(request).await.map_err(|_| FetchError::SourceBrokeProtocol)?;
        Ok((open, answer))
    }
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kept({}{})", self.origin, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::super::{Alpn, ClientTls};
    use super::*;

    fn kept(address: std::net::SocketAddr, max_body: usize, within: u64) -> Kept {
        let tls = ClientTls::build(None, Alpn::Http1).unwrap();
        let limits = Limits { max_body, within: Duration::from_millis(within), allow_private: true, allow_http: false };
        Kept::new(&format!("http://{address}/w/"), tls, limits).unwrap()
    }

    async fn hear(stream: &mut TcpStream) -> String {
        let mut heard = vec![0; 4096];
        let length = stream.read(&mut heard).await.unwrap();
        String::from_utf8(heard[..length].to_vec()).unwrap()
    }

    async fn get(kept: &Kept) -> Result<Answered, FetchError> {
        kept.ask(Method::GET, "/x", None, Bytes::new()).await
    }

    #[tokio::test]
    async fn a_connection_is_kept_and_replaced_when_the_other_end_lets_go() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let kept = kept(listener.local_addr().unwrap(), 10, 5000);
        let serving = tokio::spawn(async move {
            let mut heard = Vec::new();
            let (mut first, _) = listener.accept().await.unwrap();
            for _ in 0..2 {
                heard.push(hear(&mut first).await);
                first.write_all(b"HTTP/1.1 409 Conflict\r\nContent-Length: 2\r\n\r\n7\n").await.unwrap();
            }
            // The third request meets a connection that is closed without a word.
            heard.push(hear(&mut first).await);
            drop(first);
            let (mut second, _) = listener.accept().await.unwrap();
            heard.push(hear(&mut second).await);
            second.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await.unwrap();
            heard
        });
        let first = kept.ask(Method::POST, "/add", Some("text/plain"), Bytes::from("body")).await.unwrap();
        assert_eq!((first.status, &first.body[..]), (StatusCode::CONFLICT, &b"7\n"[..]));
        assert_eq!(get(&kept).await.unwrap().status, StatusCode::CONFLICT);
        assert_eq!(get(&kept).await.unwrap().status, StatusCode::OK);
        let heard = serving.await.unwrap();
        assert!(heard[0].starts_with("POST /w/add HTTP/1.1\r\n") && heard[0].ends_with("\r\n\r\nbody"), "{}", heard[0]);
        assert!(heard[1..].iter().all(|request| request.starts_with("GET /w/x HTTP/1.1\r\n")));
        assert!(!heard[1].to_lowercase().contains("content-type"));
    }

    #[tokio::test]
    async fn an_answer_is_bounded_in_bytes_and_time() {
        for (sent, length, expected) in
            [(&[b'a'; 10][..], 10, None), (&[b'a'; 11], 11, Some(FetchError::SourceSentTooMuch)), (b"a", 2, Some(FetchError::TimedOut))]
        {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let kept = kept(listener.local_addr().unwrap(), 10, 500);
            let serving = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                hear(&mut stream).await;
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                stream.write_all(&[head.as_bytes(), sent].concat()).await.unwrap();
                std::future::pending::<()>().await;
            });
            assert_eq!(get(&kept).await.map(|_| ()).err(), expected);
            serving.abort();
        }
    }

    #[test]
    fn a_prefix_is_a_url_without_a_query() {
        let tls = ClientTls::build(None, Alpn::Http1).unwrap();
        let limits = Limits { allow_private: true, ..Limits::default() };
        let new = |url: &str| Kept::new(url, tls.clone(), limits.clone());
        assert!(new("https://w.example/a/b/").is_ok() && new("http://127.0.0.1:1").is_ok());
        for bad in ["https://w.example/?a", "http://w.example/", "w.example", "https://u@w.example/"] {
            assert!(new(bad).is_err(), "{bad}");
        }
    }
}
