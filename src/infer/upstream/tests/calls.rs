//! gRPC calls: what makes a replica well, and how a call ends that nobody waits for.

use http_body::Frame;
use http_body_util::StreamBody;

use super::http2::RESET;
use super::secure::hyper_server;
use super::*;

fn calls_to(servers: &[&Server], more: &str) -> Arc<Upstream> {
    let urls: Vec<_> = servers.iter().map(|server| format!("\"http://{}\"", server.address)).collect();
    let text = format!("protocol = \"oip-grpc\"\nurls = [{}]\n{more}", urls.join(", "));
    Upstream::new(&toml::from_str(&text).unwrap(), Path::new("/")).unwrap()
}

fn call() -> Outgoing {
    Outgoing::of_call(PathAndQuery::from_static("/inference.GRPCInferenceService/ModelInfer"), Bytes::from_static(&[0; 5]), SOON)
}

/// What a gRPC server answers: a message in its frame, and a status behind it.
fn answer(framed: &'static [u8], status: &'static str) -> http::Response<Body> {
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static(status))]);
    let frames = [Ok(Frame::data(Bytes::from_static(framed))), Ok(Frame::trailers(trailers))];
    let mut answer = http::Response::new(Body::stream(StreamBody::new(futures_util::stream::iter(frames))));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    answer
}

#[tokio::test]
async fn well_is_a_replica_that_says_over_grpc_that_it_is_ready() {
    const READY: &[u8] = b"\0\0\0\0\x02\x08\x01";
    // What it says, and whether that is well.
    let said: &[(&[u8], &str, bool)] = &[
        (READY, "0", true),
        (b"\0\0\0\0\0", "0", false),
        (READY, "14", false),
        (b"", "0", false),
        (b"\0\0\0\0\x02\xff\xff", "0", false),
        (b"\x01\0\0\0\x02\x08\x01", "0", false),
    ];
    let at = Arc::new(AtomicUsize::new(0));
    let (asked, says) = (Arc::new(AtomicUsize::new(0)), at.clone());
    let count = asked.clone();
    let server = hyper_server(None, move |request: http::Request<hyper::body::Incoming>| {
        let (framed, status, _) = said[says.load(SeqCst)];
        let count = count.clone();
        async move {
            assert_eq!(request.uri().path(), "/inference.GRPCInferenceService/ServerReady");
            let told = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
            assert_eq!(
                (told("content-type"), told("te"), told("grpc-accept-encoding")),
                ("application/grpc".into(), "trailers".into(), "identity".into())
            );
            assert_eq!(told("grpc-timeout"), "50m");
            assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), &[0; 5][..]);
            count.fetch_add(1, SeqCst);
            answer(framed, status)
        }
    })
    .await;
    let upstream = calls_to(&[&server], "health = { every = \"50ms\" }");
    upstream.tend();
    for (index, (framed, status, well)) in said.iter().enumerate() {
        // From the opposite, which shows that it was looked at.
        at.store(usize::from(*well), SeqCst);
        until("the opposite is seen", || upstream.replicas()[0].doubtful == *well).await;
        at.store(index, SeqCst);
        let what = format!("{framed:?} {status}");
        until(&what, || upstream.replicas()[0].doubtful != *well).await;
    }
    assert!(asked.load(SeqCst) >= said.len());
    assert_eq!(server.connections.load(SeqCst), 1);
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_is_reset_and_its_connection_stays() {
    let (reset, mut resets) = mpsc::unbounded_channel();
    let server = server(move |mut speaker| {
        let reset = reset.clone();
        async move {
            speaker.greet().await;
            let mut begun = 0;
            while let Some((kind, stream, payload)) = speaker.hear_frame().await {
                if kind == RESET {
                    let reason: [u8; 4] = payload.try_into().unwrap();
                    reset.send((stream, u32::from_be_bytes(reason))).unwrap();
                } else {
                    // The second of the calls has the beginning of an answer when it is given up.
                    begun += 1;
                    if begun == 2 {
                        speaker.frame(1, 4, stream, &[0x88]).await;
                    }
                }
            }
        }
    })
    .await;
    let upstream = calls_to(&[&server], "");
    let waits = upstream.send(call(), Instant::now() + SOON);
    assert!(timeout(Duration::from_millis(200), waits).await.is_err());
    const CANCEL: u32 = 8;
    assert_eq!(timeout(SOON, resets.recv()).await.unwrap(), Some((1, CANCEL)));
    let begun = timeout(SOON, upstream.send(call(), Instant::now() + SOON)).await.unwrap().unwrap();
    drop(begun);
    assert_eq!(timeout(SOON, resets.recv()).await.unwrap(), Some((3, CANCEL)));
    let late = upstream.send(call(), Instant::now() + Duration::from_millis(100)).await;
    assert_eq!(late.err(), Some(Error::DeadlinePassed));
    assert_eq!(timeout(SOON, resets.recv()).await.unwrap(), Some((5, CANCEL)));
    assert_eq!((server.connections.load(SeqCst), upstream.replicas()[0].in_flight), (1, 0));
    assert!(!upstream.replicas()[0].ejected);
}

#[tokio::test]
async fn calls_share_a_connection_within_the_streams_that_the_server_allows() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, highest) = (now.clone(), most.clone());
    let server = server(move |speaker| {
        let (now, most) = (counted.clone(), highest.clone());
        async move {
            let service = hyper::service::service_fn(move |_| {
                let (now, most) = (now.clone(), most.clone());
                async move {
                    most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                    sleep(Duration::from_millis(5)).await;
                    now.fetch_sub(1, SeqCst);
                    Ok::<_, std::convert::Infallible>(answer(b"\0\0\0\0\0", "0"))
                }
            });
            let builder = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
            let _ = builder.clone().max_concurrent_streams(4).serve_connection(hyper_util::rt::TokioIo::new(speaker.tcp), service).await;
        }
    })
    .await;
    let upstream = calls_to(&[&server], "");
    let calls = (0..40).map(|_| {
        let upstream = upstream.clone();
        tokio::spawn(async move { whole(upstream.send(call(), Instant::now() + SOON).await?).await })
    });
    for answered in calls.collect::<Vec<_>>() {
        assert_eq!(answered.await.unwrap().unwrap(), &[0; 5][..]);
    }
    assert_eq!(server.connections.load(SeqCst), 1);
    assert!(most.load(SeqCst) <= 4);
}
