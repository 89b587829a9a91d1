//! The whole way, beside the same call without it: a chat of 1 KiB to a model server on loopback, through a gateway with
//! every control on, and then to that server directly. `cargo bench --profile release --bench way`
//!
//! The difference is what the gateway adds for one caller at a time. What it costs under load, beside other gateways, is
//! measured by `benches/peers/`.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run says where and ends")]

use std::convert::Infallible;
use std::error::Error;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use portcullis::prove::key::Key;
use portcullis::{keys, serve};

const PATH: &str = "/v1/chat/completions";
const ANSWER: &str = r#"{"id":"chatcmpl-0","object":"chat.completion","created":1700000000,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Here is a short answer."},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":200,"completion_tokens":6,"total_tokens":206}}"#;
/// How long each of the two is called, after a tenth of that to warm up.
const LONG: Duration = Duration::from_secs(3);

type Sender = SendRequest<Full<Bytes>>;

fn main() -> Result<(), Box<dyn Error>> {
    let home = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let upstream = runtime.block_on(model_server())?;
    let secret = policies(home.path(), upstream)?;

    let (tell, listening) = std::sync::mpsc::channel();
    let folder = home.path().join("policies");
    // It serves until this process ends.
    std::thread::spawn(move || serve::run(&folder, |listening| tell.send(listening.accept).unwrap()).map_err(|no| no.0).unwrap());
    let gateway = listening.recv_timeout(Duration::from_secs(30))?;

    let certificate = home.path().join("policies/tls.crt");
    let (through, direct) = runtime.block_on(async {
        let tls = tls(&certificate).connect("localhost".try_into()?, TcpStream::connect(gateway).await?).await?;
        let mut sender = sender(tls).await?;
        let through = median(&mut sender, &secret).await?;
        let mut sender = self::sender(TcpStream::connect(upstream).await?).await?;
        Ok::<_, Box<dyn Error>>((through, median(&mut sender, &secret).await?))
    })?;
    println!("through the gateway  {:8.1} µs", through.as_secs_f64() * 1e6);
    println!("directly             {:8.1} µs", direct.as_secs_f64() * 1e6);
    println!("the gateway adds     {:8.1} µs", through.saturating_sub(direct).as_secs_f64() * 1e6);
    Ok(())
}

/// A model server that gives one answer.
async fn model_server() -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(
                TokioIo::new(stream),
                hyper::service::service_fn(async |request: Request<hyper::body::Incoming>| {
                    let _ = request.into_body().collect().await;
                    let mut response = Response::new(Full::new(Bytes::from_static(ANSWER.as_bytes())));
                    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
                    Ok::<_, Infallible>(response)
                }),
            ));
        }
    });
    Ok(address)
}

/// A policy folder with a caller, limits that are counted and not met, a schema and receipts; gives the caller's secret.
fn policies(home: &Path, upstream: SocketAddr) -> Result<String, Box<dyn Error>> {
    let policies = home.join("policies");
    fs::create_dir_all(policies.join("models"))?;
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    fs::write(policies.join("tls.crt"), certified.cert.pem())?;
    fs::write(policies.join("tls.key"), certified.signing_key.serialize_pem())?;
    fs::write(policies.join("log.key"), Key::generate_pem().expose())?;
    fs::write(
        policies.join("gateway.toml"),
        "[accept]\nlisten = \"127.0.0.1:0\"\n[accept.tls]\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\n\
         [prove]\ndirectory = \"../log\"\norigin = \"localhost/bench\"\nkey = \"log.key\"\n\
         [record]\nsecurity_log = \"../security.log\"\n",
    )?;
    fs::write(policies.join("access.cedar"), "permit (principal in Role::\"app\", action == Action::\"chat\", resource);\n")?;
    fs::write(policies.join("chat.json"), include_str!("peers/rust/tools/src/chat.schema.json"))?;
    fs::write(
        policies.join("models/m.toml"),
        format!(
            "name = \"m\"\nversion = \"1\"\n[backend.upstream]\nprotocol = \"openai\"\nurls = [\"http://{upstream}\"]\n\
             [check]\nschema = \"../chat.json\"\n\
             [budget.default]\nrequests = {{ rate = \"1000000/s\" }}\ntokens = {{ rate = \"1000000000/s\" }}\nin_flight = 64\n"
        ),
    )?;
    let made = keys::new(&policies.join("callers.toml"), "bench", "bench", &["app".to_owned()], "", None).map_err(|no| no.0.join("\n"))?;
    Ok(made.secret)
}

fn tls(certificate: &Path) -> tokio_rustls::TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth()).into()
}

async fn sender(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> hyper::Result<Sender> {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// The median time of a call, one at a time.
async fn median(sender: &mut Sender, secret: &str) -> Result<Duration, Box<dyn Error>> {
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(20);
    let body = Bytes::from(format!(r#"{{"model":"m","max_tokens":256,"messages":[{{"role":"user","content":"{text}"}}]}}"#));
    let (mut took, begin) = (Vec::new(), Instant::now());
    while begin.elapsed() < LONG + LONG / 10 {
        let request = Request::post(PATH)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {secret}"))
            .body(Full::new(body.clone()))?;
        let from = Instant::now();
        sender.ready().await?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let answer = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            return Err(format!("{status}: {}", answer.escape_ascii()).into());
        }
        if begin.elapsed() > LONG / 10 {
            took.push(from.elapsed());
        }
    }
    took.sort_unstable();
    Ok(took[took.len() / 2])
}
