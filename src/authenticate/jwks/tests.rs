use std::sync::atomic::AtomicUsize;

use serde_json::json;
use tokio::sync::mpsc;

use super::*;
use crate::authenticate::signer::{Signer, encode};

/// Answers with whatever it was told to, and counts.
struct Answers {
    body: Mutex<Result<Bytes, &'static str>>,
    asked: AtomicUsize,
}

impl Answers {
    fn new(keys: &[Value]) -> Arc<Self> {
        Arc::new(Self { body: Mutex::new(Ok(set(keys))), asked: AtomicUsize::new(0) })
    }

    fn now(&self, body: Result<Bytes, &'static str>) {
        *self.body.lock().unwrap() = body;
    }
}

impl Fetch for Answers {
    fn fetch<'a>(&'a self, url: &'a str) -> Pin<Box<dyn Future<Output = Result<Bytes, FetchError>> + Send + 'a>> {
        assert_eq!(url, "https://login.example/keys");
        self.asked.fetch_add(1, Ordering::SeqCst);
        let body = self.body.lock().unwrap().clone();
        Box::pin(async move { body.map_err(Into::into) })
    }
}

fn set(keys: &[Value]) -> Bytes {
    json!({ "keys": keys }).to_string().into()
}

fn source() -> Arc<Source> {
    Arc::new(Source::new(Plan {
        issuer: "https://login.example/".into(),
        algorithms: vec![Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA, Algorithm::RS256],
        origin: Origin::Url("https://login.example/keys".into()),
        refresh: Duration::from_secs(300),
        max_stale: Duration::from_secs(3_600),
    }))
}

fn read(keys: &[Value]) -> Result<usize, String> {
    let all: Vec<Algorithm> = super::super::ALGORITHMS.iter().map(|name| name.parse().unwrap()).collect();
    Set::read(&set(keys), &all).map(|set| set.keys.len()).map_err(|error| error.to_string())
}

fn with(mut key: Value, name: &str, value: impl Into<Value>) -> Value {
    key[name] = value.into();
    key
}

#[test]
fn keys_are_taken_for_what_they_are_for() {
    let key = || Signer::es256().jwk("k");
    assert_eq!(read(&[key()]), Ok(1));
    assert_eq!(
        read(&[
            with(key(), "use", "sig"),
            with(Signer::eddsa().jwk("l"), "alg", "Ed25519"),
            with(Signer::eddsa().jwk("m"), "alg", "EdDSA")
        ]),
        Ok(3)
    );
    assert_eq!(read(&[with(key(), "key_ops", json!(["verify"]))]), Ok(1));
    for other in [
        with(key(), "use", "enc"),
        with(key(), "use", json!(null)),
        with(key(), "key_ops", json!(["encrypt"])),
        with(key(), "key_ops", "verify"),
        with(key(), "alg", "ES384"),
        with(key(), "alg", "ECDH-ES"),
        with(key(), "alg", 1),
        with(key(), "crv", "P-384"),
        with(key(), "crv", "secp256k1"),
        with(key(), "kty", "RSA"),
        with(key(), "kty", "XYZ"),
        with(key(), "x", encode([1; 31])),
        with(key(), "x", encode([1; 33])),
        with(key(), "y", "!"),
        // Not on the curve.
        with(key(), "y", encode([1; 32])),
        with(with(key(), "x", encode([0; 32])), "y", encode([0; 32])),
        with(Signer::eddsa().jwk("k"), "x", encode([1; 31])),
        with(Signer::eddsa().jwk("k"), "crv", "Ed448"),
    ] {
        assert_eq!(read(&[Signer::es256().jwk("good"), other.clone()]), Ok(1), "{other}");
        assert!(read(&[other]).is_err());
    }
}

#[test]
fn rsa_keys_are_between_2048_and_8192_bits() {
    let key =
        |bytes: usize, e: &[u8]| json!({"kty": "RSA", "n": encode([&[0x80][..], &vec![0; bytes - 2], &[1]].concat()), "e": encode(e)});
    assert_eq!(read(&[key(256, &[1, 0, 1])]), Ok(1));
    assert_eq!(read(&[key(1_024, &[3])]), Ok(1));
    for weak in [
        key(255, &[1, 0, 1]),
        key(128, &[1, 0, 1]),
        key(1_025, &[1, 0, 1]),
        key(256, &[1]),
        key(256, &[2]),
        key(256, &[]),
        key(256, &[0, 3]),
        key(256, &[1, 0, 0, 0, 1]),
    ] {
        assert!(read(&[weak]).is_err());
    }
}

#[test]
fn a_set_with_a_secret_or_a_double_is_refused_whole() {
    let key = || Signer::es256().jwk("k");
    assert!(read(&[key(), json!({"kty": "oct", "k": "AAAA", "kid": "s"})]).unwrap_err().contains("symmetric"));
    assert!(read(&[key(), with(Signer::es256().jwk("p"), "d", "AAAA")]).unwrap_err().contains("private"));
    assert!(read(&[key(), Signer::eddsa().jwk("k")]).unwrap_err().contains("twice"));
    assert!(read(&[with(key(), "kid", 1)]).is_err());
    assert!(read(&[json!("k")]).is_err());
    assert!(read(&[]).is_err());
}

#[test]
fn sizes_are_held_at_their_limits() {
    let keys = |number: usize| (0..number).map(|n| Signer::eddsa().jwk(&n.to_string())).collect::<Vec<_>>();
    assert_eq!(read(&keys(MAX_KEYS)), Ok(MAX_KEYS));
    assert!(read(&keys(MAX_KEYS + 1)).is_err());
    assert_eq!(read(&[Signer::eddsa().jwk(&"k".repeat(MAX_KID))]), Ok(1));
    assert!(read(&[Signer::eddsa().jwk(&"k".repeat(MAX_KID + 1))]).is_err());
    let mut bytes = set(&[Signer::eddsa().jwk("k")]).to_vec();
    bytes.resize(MAX_BYTES, b' ');
    assert!(Set::read(&bytes, &[Algorithm::EdDSA]).is_ok());
    bytes.push(b' ');
    assert!(Set::read(&bytes, &[Algorithm::EdDSA]).is_err());
}

#[tokio::test]
async fn the_last_good_keys_serve_until_they_are_too_old() {
    let (source, answers, begin) = (source(), Answers::new(&[Signer::es256().jwk("k")]), Moment::now());
    assert!(!source.is_ready(begin));
    source.refresh(&*answers, begin).await.unwrap();
    let generation = source.generation(begin);
    for broken in [Err("down"), Ok(Bytes::from_static(b"<html>")), Ok(Bytes::from_static(b"{\"keys\":[]}"))] {
        answers.now(broken);
        assert!(source.refresh(&*answers, begin.after(Duration::from_secs(3_000))).await.is_err());
    }
    assert_eq!(source.failed(), 3);
    let last = begin.after(Duration::from_secs(3_600));
    assert_eq!(source.generation(last), generation);
    let past = last.after(Duration::from_millis(1));
    assert_eq!(source.generation(past), None);
    assert!(source.usable(past).is_none());
    // Back again, with other keys: a new generation.
    answers.now(Ok(set(&[Signer::es256().jwk("new")])));
    source.refresh(&*answers, past).await.unwrap();
    assert!(source.generation(past) > generation);
}

#[tokio::test]
async fn the_same_bytes_keep_the_generation_and_renew_the_age() {
    let (source, answers, begin) = (source(), Answers::new(&[Signer::es256().jwk("k")]), Moment::now());
    source.refresh(&*answers, begin).await.unwrap();
    let later = begin.after(Duration::from_secs(3_000));
    source.refresh(&*answers, later).await.unwrap();
    let latest = begin.after(Duration::from_secs(6_000));
    assert!(source.generation(latest).is_some());
    assert_eq!(source.generation(latest), source.generation(later));
}

#[tokio::test]
async fn a_storm_of_unknown_kids_makes_one_fetch() {
    let (source, answers) = (source(), Answers::new(&[Signer::es256().jwk("k")]));
    let (heard, mut hears) = mpsc::unbounded_channel();
    let task = tokio::spawn(source.clone().keep_fresh(answers.clone(), move |_, result| heard.send(result.is_ok()).unwrap()));
    assert_eq!(hears.recv().await, Some(true));
    let now = Moment::now();
    (0..10_000).for_each(|n| source.ask(now.after(Duration::from_micros(n))));
    assert_eq!(hears.recv().await, Some(true));
    // One storm later there is one more, and not before.
    source.ask(now.after(UNKNOWN_KID_EVERY - Duration::from_millis(1)));
    source.ask(now.after(UNKNOWN_KID_EVERY));
    source.ask(now.after(UNKNOWN_KID_EVERY));
    assert_eq!(hears.recv().await, Some(true));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(hears.try_recv().is_err());
    assert_eq!(answers.asked.load(Ordering::SeqCst), 3);
    task.abort();
}

#[tokio::test]
async fn a_fetch_that_is_not_due_waits() {
    let (source, answers) = (source(), Answers::new(&[Signer::es256().jwk("k")]));
    source.refresh(&*answers, Moment::now()).await.unwrap();
    assert!(source.due(Moment::now()) > Duration::from_secs(290));
    assert_eq!(source.due(Moment::now().after(Duration::from_secs(301))), Duration::ZERO);
}
