//! How answers end: marked or not, in time or not, chunk by chunk.

use super::*;

#[tokio::test]
async fn an_answer_without_a_marked_end_says_so() {
    let marked = always(OK).await;
    assert!(send(&to(&[&marked], "")).await.unwrap().framed);
    let server = always(b"HTTP/1.0 200 OK\r\n\r\nhello").await;
    assert!(!send(&to(&[&server], "")).await.unwrap().framed);
}

#[tokio::test]
async fn an_answer_that_ends_in_trailers_ended_well_and_its_connection_serves_again() {
    let trailers = b"HTTP/1.1 200 OK\r\ntrailer: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\na: b\r\n\r\n";
    let server = always(trailers).await;
    let upstream = to(&[&server], "");
    for _ in 0..20 {
        let mut body = send(&upstream).await.unwrap().body;
        while let Some(frame) = body.frame().await {
            if frame.unwrap().is_trailers() {
                break;
            }
        }
    }
    assert_eq!((server.requests.load(SeqCst), upstream.replicas()[0].opened), (20, 1));
}

#[tokio::test]
async fn a_silent_upstream_ends_by_the_nearer_of_timeout_and_deadline() {
    let server = server(|mut speaker| async move {
        speaker.hear().await;
        speaker.gone().await;
    })
    .await;
    let began = Instant::now();
    assert_eq!(ask(&to(&[&server], "response_timeout = \"100ms\"")).await, Err(Error::UpstreamSilent));
    let deadline = Instant::now() + Duration::from_millis(100);
    assert_eq!(to(&[&server], "").send(request(), deadline).await.unwrap_err(), Error::DeadlinePassed);
    assert_eq!(to(&[&server], "").send(request(), Instant::now()).await.unwrap_err(), Error::DeadlinePassed);
    assert!(began.elapsed() < Duration::from_millis(1_000));
    assert_eq!(server.requests.load(SeqCst), 2);
}

#[tokio::test]
async fn a_body_ends_by_the_nearer_of_idle_time_and_deadline() {
    let server = server(|mut speaker| async move {
        speaker.hear().await;
        speaker.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        loop {
            speaker.say(b"1\r\nx\r\n").await;
            tokio::select! {
                () = sleep(Duration::from_millis(30)) => {}
                () = async { let mut one = [0; 1]; while !matches!(speaker.tcp.peek(&mut one).await, Ok(0) | Err(_)) {} } => return,
            }
        }
    })
    .await;
    let upstream = to(&[&server], "idle_timeout = \"10ms\"");
    assert_eq!(ask(&upstream).await, Err(Error::UpstreamStalled));
    let upstream = to(&[&server], "idle_timeout = \"2s\"");
    let answer = upstream.send(request(), Instant::now() + Duration::from_millis(200)).await.unwrap();
    assert_eq!(whole(answer).await, Err(Error::DeadlinePassed), "that chunks keep coming is no reason to go on");
    assert_eq!(upstream.replicas()[0].in_flight, 0);
}

#[tokio::test]
async fn an_upstream_that_sends_without_pause_still_ends_by_the_deadline() {
    let server = server(|mut speaker| async move {
        speaker.hear().await;
        speaker.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let chunk = [b"8000\r\n".as_slice(), &[b'x'; 0x8000], b"\r\n"].concat();
        while speaker.tcp.write_all(&chunk).await.is_ok() {}
    })
    .await;
    let upstream = to(&[&server], "");
    let mut answer = upstream.send(request(), Instant::now() + Duration::from_millis(200)).await.unwrap();
    let broken = loop {
        if let Err(broken) = answer.body.frame().await.expect("it does not end well") {
            break *broken.downcast::<Error>().unwrap();
        }
    };
    assert_eq!(broken, Error::DeadlinePassed);
    assert!(answer.body.frame().await.is_none());
}

#[tokio::test]
async fn server_sent_events_come_one_by_one() {
    let next = Arc::new(Notify::new());
    let waits = next.clone();
    let server = server(move |mut speaker| {
        let waits = waits.clone();
        async move {
            speaker.hear().await;
            speaker.say(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await;
            for n in 0..20 {
                waits.notified().await;
                speaker.say(format!("{:x}\r\ndata: {n:03}\n\n\r\n", 11).as_bytes()).await;
            }
            speaker.say(b"0\r\n\r\n").await;
            speaker.gone().await;
        }
    })
    .await;
    let upstream = to(&[&server], "");
    let mut answer = send(&upstream).await.unwrap();
    for n in 0..20 {
        // The next event is said only after this one was read: one that is held back would wait for ever.
        next.notify_one();
        let frame = timeout(SOON, answer.body.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), format!("data: {n:03}\n\n"));
    }
    assert!(answer.body.frame().await.is_none());
    until("the connection comes back", || upstream.replicas()[0].idle == 1).await;
}
