//! Several replicas: who is asked, who is left alone, and who comes back.

use super::*;
use crate::infer::upstream::standing::{EJECT_AFTER, EJECT_FIRST};

#[tokio::test]
async fn a_replica_that_fails_is_left_alone_then_asked_once_then_trusted_again() {
    let well = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_well = well.clone();
    let server = server(move |mut speaker| {
        let is_well = is_well.clone();
        async move {
            while speaker.hear().await.is_some() && is_well.load(SeqCst) {
                speaker.say(OK).await;
            }
        }
    })
    .await;
    let upstream = to(&[&server], "");
    for _ in 0..EJECT_AFTER {
        assert_eq!(ask(&upstream).await, Err(Error::UpstreamClosed));
    }
    let began = Instant::now();
    let Err(Error::UpstreamEjected(wait)) = ask(&upstream).await else { panic!("it is left alone") };
    assert!(began.elapsed() < Duration::from_millis(50) && wait <= EJECT_FIRST && !wait.is_zero());
    assert_eq!(server.requests.load(SeqCst), EJECT_AFTER as usize);
    sleep(wait).await;
    assert_eq!(ask(&upstream).await, Err(Error::UpstreamClosed), "the probe");
    assert!(matches!(ask(&upstream).await, Err(Error::UpstreamEjected(_))));
    well.store(true, SeqCst);
    sleep(EJECT_FIRST * 2).await;
    for _ in 0..20 {
        assert_eq!(ask(&upstream).await.unwrap(), "hello");
    }
}

#[tokio::test]
async fn an_upstream_that_comes_back_is_found_again() {
    let server = always(OK).await;
    let address = server.address.to_string();
    let upstream = to(&[&server], "");
    assert!(ask(&upstream).await.is_ok());
    drop(server);
    upstream.replicas[0].pool.prune(Instant::now(), Duration::ZERO);
    let mut refused = 0;
    while !matches!(ask(&upstream).await, Err(Error::UpstreamEjected(_))) {
        refused += 1;
        assert!(refused <= 20);
    }
    let _again = server_at(&address, |mut speaker| async move {
        while speaker.hear().await.is_some() {
            speaker.say(OK).await;
        }
    })
    .await;
    let began = Instant::now();
    while ask(&upstream).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(2));
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn the_less_busy_replica_is_asked() {
    let busy = server(|mut speaker| async move {
        speaker.hear().await;
        speaker.gone().await;
    })
    .await;
    let free = always(OK).await;
    let upstream = to(&[&busy, &free], "");
    let mut held = Vec::new();
    while busy.requests.load(SeqCst) == 0 {
        let upstream = upstream.clone();
        let mut call = Box::pin(async move { ask(&upstream).await });
        if timeout(Duration::from_millis(200), &mut call).await.is_err() {
            held.push(call);
        }
    }
    assert_eq!(busy.requests.load(SeqCst), 1);
    for _ in 0..100 {
        assert_eq!(ask(&upstream).await.unwrap(), "hello");
    }
    assert_eq!(busy.requests.load(SeqCst), 1);
}

#[tokio::test]
async fn replicas_share_the_load() {
    let servers = [always(OK).await, always(OK).await, always(OK).await];
    let upstream = to(&[&servers[0], &servers[1], &servers[2]], "");
    for _ in 0..300 {
        ask(&upstream).await.unwrap();
    }
    for server in &servers {
        assert!((60..=140).contains(&server.requests.load(SeqCst)));
    }
}

#[tokio::test]
async fn past_its_room_a_replica_is_given_nothing() {
    let server = server(|mut speaker| async move {
        speaker.hear().await;
        speaker.gone().await;
    })
    .await;
    let upstream = to(&[&server], "max_in_flight = 2\nconnect_timeout = \"1s\"");
    let held: Vec<_> = (0..2)
        .map(|_| {
            tokio::spawn({
                let upstream = upstream.clone();
                async move { ask(&upstream).await }
            })
        })
        .collect();
    until("two are served", || server.requests.load(SeqCst) == 2).await;
    let began = Instant::now();
    assert_eq!(ask(&upstream).await, Err(Error::Full));
    assert!(began.elapsed() >= Duration::from_secs(1), "it waits for room");
    let crowd: Vec<_> = (0..50)
        .map(|_| {
            tokio::spawn({
                let upstream = upstream.clone();
                async move { ask(&upstream).await }
            })
        })
        .collect();
    for one in crowd {
        assert_eq!(one.await.unwrap(), Err(Error::Full));
    }
    assert_eq!(server.connections.load(SeqCst), 2);
    assert!(!upstream.replicas()[0].ejected, "full is not failed");
    held.iter().for_each(|call| call.abort());
    until("what was held is given back", || upstream.replicas()[0].in_flight == 0).await;
}

#[tokio::test]
async fn unused_connections_are_closed() {
    let gone = Arc::new(Notify::new());
    let goes = gone.clone();
    let server = server(move |mut speaker| {
        let goes = goes.clone();
        async move {
            while speaker.hear().await.is_some() {
                speaker.say(OK).await;
            }
            goes.notify_one();
        }
    })
    .await;
    let upstream = to(&[&server], "keep_alive = \"100ms\"");
    upstream.tend();
    upstream.tend();
    ask(&upstream).await.unwrap();
    timeout(SOON, gone.notified()).await.unwrap();
    ask(&upstream).await.unwrap();
    drop(upstream);
    timeout(SOON, gone.notified()).await.unwrap();
}

#[tokio::test]
async fn health_checks_steer_requests_and_end_with_the_upstream() {
    let well = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_well = well.clone();
    let checks = Arc::new(AtomicUsize::new(0));
    let checked = checks.clone();
    let ill = server(move |mut speaker| {
        let (is_well, checked) = (is_well.clone(), checked.clone());
        async move {
            while let Some(text) = speaker.hear().await {
                let check = text.starts_with("GET /health HTTP/1.1\r\n");
                checked.fetch_add(usize::from(check), SeqCst);
                speaker.say(if check && !is_well.load(SeqCst) { b"HTTP/1.1 503 Down\r\ncontent-length: 0\r\n\r\n" } else { OK }).await;
            }
        }
    })
    .await;
    let fine = always(OK).await;
    let more = "health = { path = \"/health\", every = \"50ms\" }";
    let upstream = to(&[&ill, &fine], more);
    upstream.tend();
    until("the check is noticed", || upstream.replicas()[0].doubtful).await;
    let before = ill.requests.load(SeqCst) - checks.load(SeqCst);
    for _ in 0..50 {
        ask(&upstream).await.unwrap();
    }
    assert_eq!(ill.requests.load(SeqCst) - checks.load(SeqCst), before, "requests go where checks succeed");
    well.store(true, SeqCst);
    until("it is well again", || !upstream.replicas()[0].doubtful).await;
    drop(upstream);
    sleep(Duration::from_millis(100)).await;
    let after = checks.load(SeqCst);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(checks.load(SeqCst), after);

    well.store(false, SeqCst);
    let alone = to(&[&ill], more);
    alone.tend();
    until("the check is noticed", || alone.replicas()[0].doubtful).await;
    assert!(ask(&alone).await.is_ok(), "a failing check alone refuses nobody");
}
