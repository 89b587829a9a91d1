//! What an HTTP/2 server did not do, as it says itself (RFC 9113, 6.8 and 8.7), is done by another try and held against nobody.

use super::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
pub(super) const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const GO_AWAY: u8 = 7;
const ACK: u8 = 1;
const END_OF_STREAM_AND_HEADERS: u8 = 5;
/// `:status: 200`, of the static table.
const STATUS_200: &[u8] = &[0x88];

impl Speaker {
    pub(super) async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.say(&[&head, payload].concat()).await;
    }

    /// The stream of the next whole request; none at the end.
    async fn hear_stream(&mut self) -> Option<u32> {
        loop {
            if let (DATA | HEADERS, stream, _) = self.hear_frame().await? {
                return Some(stream);
            }
        }
    }

    /// The next frame that resets a stream, or ends a request: its kind, stream and payload; none at the end.
    pub(super) async fn hear_frame(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        loop {
            let mut head = [0; 9];
            self.tcp.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            self.tcp.read_exact(&mut payload).await.ok()?;
            let (kind, flags) = (head[3], head[4]);
            if kind == SETTINGS && flags & ACK == 0 {
                self.frame(SETTINGS, ACK, 0, &[]).await;
            }
            let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
            if kind <= HEADERS && flags & 1 == 1 {
                self.requests.fetch_add(1, SeqCst);
                return Some((kind, stream, payload));
            }
            if kind == RESET {
                return Some((kind, stream, payload));
            }
        }
    }

    pub(super) async fn greet(&mut self) {
        let mut preface = [0; 24];
        self.tcp.read_exact(&mut preface).await.unwrap();
        self.frame(SETTINGS, 0, 0, &[]).await;
    }

    async fn leave(&mut self, last: u32, reason: u32) {
        self.frame(GO_AWAY, 0, 0, &[last.to_be_bytes(), reason.to_be_bytes()].concat()).await;
    }
}

/// A server whose connections attend to so many requests and then go away: of those that come after none is done.
async fn leaves_after(requests: usize) -> Server {
    server(move |mut speaker| async move {
        speaker.greet().await;
        let (mut answered, mut last, mut left) = (0, 0, false);
        while let Some(stream) = speaker.hear_stream().await {
            // Streams end in another order than they begin: the last it attends to is not the last to come, and all before that are answered.
            if answered < requests || stream < last {
                (answered, last) = (answered + 1, stream.max(last));
                speaker.frame(HEADERS, END_OF_STREAM_AND_HEADERS, stream, STATUS_200).await;
            } else if !left {
                left = true;
                speaker.leave(last, 0).await;
            }
        }
    })
    .await
}

/// A server that answers each request by a reset for this reason, but for those that `done` tells by their number.
async fn resets(reason: u32, done: fn(usize) -> bool) -> Server {
    server(move |mut speaker| async move {
        speaker.greet().await;
        while let Some(stream) = speaker.hear_stream().await {
            if done(speaker.requests.load(SeqCst)) {
                speaker.frame(HEADERS, END_OF_STREAM_AND_HEADERS, stream, STATUS_200).await;
            } else {
                speaker.frame(RESET, 0, stream, &reason.to_be_bytes()).await;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_connection_costs_no_request_and_no_replica() {
    let server = leaves_after(3).await;
    let upstream = to(&[&server], "http2 = true");
    for _ in 0..40 {
        assert_eq!(ask(&upstream).await.unwrap(), "");
    }
    // Each but the last of the connections had one request more than it attended to.
    let (connections, requests) = (server.connections.load(SeqCst), server.requests.load(SeqCst));
    assert!(connections >= 13 && requests == 40 + connections - 1, "{connections} {requests}");
    let all = (0..24).map(|_| {
        let upstream = upstream.clone();
        tokio::spawn(async move { (ask(&upstream).await, ask(&upstream).await) })
    });
    for asked in all.collect::<Vec<_>>() {
        // Of many at once one may be left three times; it is told so, and no replica is blamed.
        for answer in <[_; 2]>::from(asked.await.unwrap()) {
            assert!(matches!(answer, Ok(_) | Err(Error::UpstreamClosed)), "{answer:?}");
        }
    }
    assert!(!upstream.replicas()[0].ejected);
}

#[tokio::test]
async fn a_refused_stream_is_tried_again_three_times_at_the_most() {
    let server = resets(7, |number| number % 3 == 0).await;
    let upstream = to(&[&server], "http2 = true");
    for _ in 0..10 {
        assert_eq!(ask(&upstream).await.unwrap(), "");
    }
    assert_eq!((server.requests.load(SeqCst), server.connections.load(SeqCst)), (30, 1));
    let never = resets(7, |_| false).await;
    let upstream = to(&[&never], "http2 = true");
    for _ in 0..10 {
        assert_eq!(ask(&upstream).await, Err(Error::Full));
    }
    assert_eq!(never.requests.load(SeqCst), 30);
    assert!(!upstream.replicas()[0].ejected);
}

#[tokio::test]
async fn a_replica_that_does_nothing_costs_no_request_where_there_is_another_and_is_left_alone_in_the_end() {
    let (never, other) = (resets(7, |_| false).await, resets(7, |_| true).await);
    let upstream = to(&[&never, &other], "http2 = true");
    let began = Instant::now();
    while !upstream.replicas()[0].ejected {
        assert_eq!(ask(&upstream).await.unwrap(), "");
        assert!(began.elapsed() < SOON, "it is asked for ever");
        sleep(Duration::from_millis(5)).await;
    }
    assert!(began.elapsed() >= standing::UNDONE_FOR);
}

#[tokio::test]
async fn what_ends_for_another_reason_may_have_been_done_and_is_not_asked_again() {
    for reason in [2, 8] {
        let server = resets(reason, |_| false).await;
        let upstream = to(&[&server], "http2 = true");
        assert_eq!(ask(&upstream).await, Err(Error::UpstreamClosed));
        assert_eq!(server.requests.load(SeqCst), 1);
    }
    // A connection that went away attends to the streams up to its last: one that ends there without an answer may have been done.
    let server = server(|mut speaker| async move {
        speaker.greet().await;
        let stream = speaker.hear_stream().await.unwrap();
        speaker.leave(stream, 0).await;
    })
    .await;
    let upstream = to(&[&server], "http2 = true");
    assert_eq!(ask(&upstream).await, Err(Error::UpstreamClosed));
    assert_eq!(server.requests.load(SeqCst), 1);
}
