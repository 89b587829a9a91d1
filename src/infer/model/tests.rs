use std::future::Future;
use std::path::Path;
use std::task::Poll;

use bytes::Bytes;
use serde::Deserialize;

use super::config::MAX_QUEUE;
use super::onnx::tests::{Build, adds_what_lies_beside, divides_by_its_input, forever, gives_its_input_back, pass_through};
use super::runtime::Places;
use super::*;
use crate::mistake::Mistake;
use crate::wire::tensor::{Datatype, Port};

mod minilm;
mod onnx_encoder;
mod signed;

const DIGITS: &[u8] = include_bytes!("../../../policies/models/digits.onnx");
const SAMPLES: &str = include_str!("../../../tests/data/digits.json");

fn runtime() -> Runtime {
    match Runtime::load(&Places::of_process(None)) {
        Ok(runtime) => runtime,
        Err(broken) => panic!("this test needs the real engine: {broken}"),
    }
}

fn anyone() -> Arc<Who> {
    Arc::new(Who { caller: "anyone".into(), tenant: "".into(), tier: "".into(), method: "api_key" })
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn start_with(bytes: &[u8], bounds: &Bounds) -> Result<Model, Refused> {
    let verified = Verified::from_bytes(Bytes::copy_from_slice(bytes), Digest::of(bytes), bounds.size)?;
    // The program of these tests is no worker: what one does is in `tests/it/walls.rs`.
    let bounds = Bounds { isolation: Isolation::Thread, ..bounds.clone() };
    Model::from_verified("test", "1", &verified, &bounds, &runtime())
}

fn start(bytes: &[u8]) -> Model {
    start_with(bytes, &Bounds::default()).unwrap()
}

struct Samples {
    inputs: Vec<Vec<f32>>,
    probabilities: Vec<Vec<f64>>,
    labels: Vec<i64>,
}

fn samples() -> Samples {
    let read: serde_json::Value = serde_json::from_str(SAMPLES).unwrap();
    let rows = read["samples"].as_array().unwrap();
    let numbers = |row: &serde_json::Value, key: &str| row[key].as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect::<Vec<_>>();
    Samples {
        inputs: rows.iter().map(|row| numbers(row, "input").into_iter().map(|n| n as f32).collect()).collect(),
        probabilities: rows.iter().map(|row| numbers(row, "probabilities")).collect(),
        labels: rows.iter().map(|row| row["label"].as_i64().unwrap()).collect(),
    }
}

fn pixels(rows: &[Vec<f32>]) -> Tensor {
    let data: Vec<u8> = rows.iter().flatten().flat_map(|n| n.to_le_bytes()).collect();
    Tensor { name: "input".into(), datatype: Datatype::Fp32, shape: vec![rows.len() as u64, 64], data: data.into() }
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn integers(tensor: &Tensor) -> Vec<i64> {
    tensor.data.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
}

fn one(value: f32) -> Tensor {
    Tensor { name: "x".into(), datatype: Datatype::Fp32, shape: vec![1], data: value.to_le_bytes().to_vec().into() }
}

fn count(value: i64) -> Tensor {
    Tensor { name: "times".into(), datatype: Datatype::Int64, shape: vec![], data: value.to_le_bytes().to_vec().into() }
}

/// The model that counts down `times`, as long as it is told to.
async fn counting(model: &Model, times: i64, within: Duration) -> Result<Vec<Tensor>, Error> {
    model.run(vec![count(times), one(1.0)], &[], &anyone(), Instant::now() + within).await
}

#[tokio::test]
async fn digits_are_answered_as_the_reference_says_alone_and_together() {
    let (model, samples) = (start(DIGITS), samples());
    let answers = model.run(vec![pixels(&samples.inputs)], &[], &anyone(), soon()).await.unwrap();
    assert_eq!(answers[0].name, "probabilities");
    assert_eq!(answers[0].shape, [32, 10]);
    assert_eq!(answers[1].shape, [32]);
    assert_eq!(integers(&answers[1]), samples.labels);
    for (got, wanted) in floats(&answers[0]).iter().zip(samples.probabilities.iter().flatten()) {
        assert!((f64::from(*got) - wanted).abs() < 1e-5, "{got} is not {wanted}");
    }
    for (index, row) in samples.inputs.iter().enumerate() {
        let alone = model.run(vec![pixels(std::slice::from_ref(row))], &["probabilities".into()], &anyone(), soon()).await.unwrap();
        assert_eq!(alone.len(), 1);
        for (got, wanted) in floats(&alone[0]).iter().zip(&samples.probabilities[index]) {
            assert!((f64::from(*got) - wanted).abs() < 1e-5, "{got} is not {wanted}");
        }
    }
}

#[tokio::test]
async fn a_batch_of_none_is_answered_with_none() {
    let answers = start(DIGITS).run(vec![pixels(&[])], &[], &anyone(), soon()).await.unwrap();
    assert_eq!((answers[0].shape.as_slice(), answers[0].data.len()), ([0, 10].as_slice(), 0));
}

#[tokio::test]
async fn the_model_says_what_it_is() {
    let model = start(DIGITS);
    let port = |name: &str, datatype, shape: &[Option<u64>]| Port { name: name.into(), datatype, shape: shape.into() };
    let Signature { inputs, outputs, .. } = model.signature();
    assert_eq!(*inputs, [port("input", Datatype::Fp32, &[None, Some(64)])]);
    assert_eq!(*outputs, [port("probabilities", Datatype::Fp32, &[None, Some(10)]), port("label", Datatype::Int64, &[None])]);
    assert_eq!(model.which().digest, Some(Digest::of(DIGITS)));
    assert_eq!(model.which().assurance, Assurance::VerifiedInProcess);
    assert!(model.load_micros() > 0);
}

#[tokio::test]
async fn outputs_come_in_the_order_asked_for_and_no_others() {
    let model = start(DIGITS);
    let input = pixels(&samples().inputs[..1]);
    let both = model.run(vec![input.clone()], &["label".into(), "probabilities".into()], &anyone(), soon()).await.unwrap();
    assert_eq!([both[0].name.as_str(), both[1].name.as_str()], ["label", "probabilities"]);
    for wrong in [vec!["nothing".to_owned()], vec!["label".to_owned(), "label".to_owned()]] {
        assert_eq!(model.run(vec![input.clone()], &wrong, &anyone(), soon()).await, Err(Error::CallerAskedForOtherOutputs));
    }
}

#[tokio::test]
async fn inputs_that_are_not_the_models_are_the_callers_fault() {
    let model = start(DIGITS);
    let good = pixels(&samples().inputs[..2]);
    let wrong: Vec<Vec<Tensor>> = vec![
        vec![],
        vec![good.clone(), good.clone()],
        vec![Tensor { name: "other".into(), ..good.clone() }],
        vec![Tensor { datatype: Datatype::Int32, ..good.clone() }],
        vec![Tensor { shape: vec![128], ..good.clone() }],
        vec![Tensor { shape: vec![2, 63], ..good.clone() }],
        vec![Tensor { shape: vec![3, 64], ..good.clone() }],
        vec![Tensor { shape: vec![u64::MAX, 64], ..good.clone() }],
        vec![Tensor { data: good.data.slice(1..), ..good.clone() }],
    ];
    for inputs in wrong {
        let answer = model.run(inputs.clone(), &[], &anyone(), soon()).await;
        assert!(matches!(answer, Err(Error::CallerSentOtherInputs(_))), "{inputs:?}: {answer:?}");
    }
    assert!(model.run(vec![good], &[], &anyone(), soon()).await.is_ok());
}

#[tokio::test]
async fn every_datatype_passes_through_unchanged() {
    // Two elements of each; for numbers bytes that are no NaN and not symmetric.
    let numbers: Vec<u8> = (1..=16).collect();
    for (element, datatype) in Datatype::ALL.into_iter().map(|datatype| (super::onnx::tests::number_of(datatype), datatype)) {
        let model = start(&pass_through(element));
        let data = match datatype {
            Datatype::Bool => vec![1, 0],
            Datatype::Bytes => b"\x05\0\0\0h\xc3\xa9llo"[..9].iter().copied().chain(*b"\0\0\0\0").collect(),
            other => numbers[..2 * other.width().unwrap()].to_vec(),
        };
        let sent = Tensor { name: "x".into(), datatype, shape: vec![2], data: data.into() };
        let answer = model.run(vec![sent.clone()], &[], &anyone(), soon()).await.unwrap();
        assert_eq!((&answer[0].data, answer[0].datatype, &answer[0].shape), (&sent.data, datatype, &sent.shape), "{datatype}");
    }
}

#[tokio::test]
async fn an_output_that_is_an_input_is_what_was_sent() {
    let model = start(&gives_its_input_back());
    for length in [1, 2, 3, 100, 1000] {
        let numbers: Vec<f32> = (1..=length).map(|number| number as f32).collect();
        let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let sent = Tensor { name: "x".into(), datatype: Datatype::Fp32, shape: vec![length], data: data.into() };
        let answer = model.run(vec![sent], &[], &anyone(), soon()).await.unwrap();
        assert_eq!(floats(&answer[0]), numbers);
        assert_eq!(floats(&answer[1]), numbers.iter().map(|number| -number).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn strings_that_the_engine_cannot_hold_are_the_callers_fault() {
    let model = start(&pass_through(8));
    for data in [&b"\x02\0\0\0\xff\xff"[..], b"\x03\0\0\0a\0b", b"\x09\0\0\0short", b"\x01\0\0\0ab", b"\x01\0", b""] {
        let sent = Tensor { name: "x".into(), datatype: Datatype::Bytes, shape: vec![1], data: Bytes::from_static(data) };
        let answer = model.run(vec![sent], &[], &anyone(), soon()).await;
        assert!(matches!(answer, Err(Error::CallerSentOtherInputs(_))), "{data:?}: {answer:?}");
    }
}

#[tokio::test]
async fn an_answer_of_the_bound_passes_and_one_byte_more_does_not() {
    let input = pixels(&samples().inputs[..1]);
    // 10 FP32 and one INT64.
    let model = start_with(DIGITS, &Bounds { output: 48, ..Bounds::default() }).unwrap();
    assert!(model.run(vec![input.clone()], &[], &anyone(), soon()).await.is_ok());
    assert_eq!(model.run(vec![pixels(&samples().inputs[..2])], &[], &anyone(), soon()).await, Err(Error::ModelAnsweredTooMuch));
    let refused = start_with(DIGITS, &Bounds { output: 47, ..Bounds::default() }).unwrap_err();
    assert!(matches!(refused, Refused::WarmUp(_)), "{refused}");

    let strings = start_with(&pass_through(8), &Bounds { output: 8, ..Bounds::default() }).unwrap();
    let text = |data| Tensor { name: "x".into(), datatype: Datatype::Bytes, shape: vec![1], data: Bytes::from_static(data) };
    assert!(strings.run(vec![text(b"\x04\0\0\0four")], &[], &anyone(), soon()).await.is_ok());
    assert_eq!(strings.run(vec![text(b"\x05\0\0\0fives")], &[], &anyone(), soon()).await, Err(Error::ModelAnsweredTooMuch));
}

#[tokio::test]
async fn an_endless_loop_is_stopped_at_its_deadline_and_the_next_call_works() {
    let model = start(&forever());
    let from = Instant::now();
    assert_eq!(counting(&model, i64::MAX, Duration::from_millis(200)).await, Err(Error::DeadlinePassed));
    assert!(from.elapsed() < Duration::from_secs(5), "{:?}", from.elapsed());
    let answer = counting(&model, 3, Duration::from_secs(20)).await.unwrap();
    assert_eq!(floats(&answer[0]), [1.0]);
}

#[tokio::test]
async fn a_caller_that_goes_away_stops_its_run() {
    let model = start(&forever());
    let gone = tokio::time::timeout(Duration::from_millis(50), counting(&model, i64::MAX, Duration::from_secs(3600))).await;
    assert!(gone.is_err());
    assert!(counting(&model, 3, Duration::from_secs(20)).await.is_ok());
}

/// Polls a call once, so that it stands in the queue.
async fn begun<F: Future<Output = Result<Vec<Tensor>, Error>>>(call: F) -> (std::pin::Pin<Box<F>>, Option<F::Output>) {
    let mut call = Box::pin(call);
    let first = std::future::poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
    (call, if let Poll::Ready(answer) = first { Some(answer) } else { None })
}

#[tokio::test]
async fn the_queue_takes_as_many_as_it_may_and_refuses_one_more() {
    let model = start_with(&forever(), &Bounds { queue: 2, ..Bounds::default() }).unwrap();
    let hour = Duration::from_secs(3600);
    let (running, _) = begun(counting(&model, i64::MAX, hour)).await;
    while model.queue.waiting() > 0 {
        tokio::task::yield_now().await;
    }
    let (first, answer) = begun(counting(&model, i64::MAX, hour)).await;
    assert_eq!(answer, None);
    let (second, answer) = begun(counting(&model, 3, hour)).await;
    assert_eq!(answer, None);
    assert_eq!(counting(&model, 3, hour).await, Err(Error::QueueIsFull));
    // One that was given up makes room although the session is still busy.
    drop(first);
    let (third, answer) = begun(counting(&model, 3, hour)).await;
    assert_eq!(answer, None);
    // And those that were given up are never run: an endless one would keep the rest.
    drop(running);
    assert!(second.await.is_ok());
    assert!(third.await.is_ok());
}

#[tokio::test]
async fn a_call_that_waited_past_its_deadline_is_answered_in_time_and_never_run() {
    let model = start(&forever());
    let (running, _) = begun(counting(&model, i64::MAX, Duration::from_secs(3600))).await;
    assert_eq!(counting(&model, i64::MAX, Duration::from_millis(20)).await, Err(Error::DeadlinePassed));
    drop(running);
    assert!(counting(&model, 3, Duration::from_secs(20)).await.is_ok());
}

#[test]
fn a_model_that_never_ends_its_first_run_is_given_up() {
    let bounds = Bounds { load: Duration::from_millis(300), ..Bounds::default() };
    let from = Instant::now();
    let refused = start_with(&Build::endless_from_the_start(), &bounds).unwrap_err();
    assert!(matches!(refused, Refused::TookTooLong(_)), "{refused}");
    assert!(from.elapsed() < Duration::from_secs(10), "{:?}", from.elapsed());
}

#[test]
fn a_model_whose_output_is_not_what_it_declares_is_refused() {
    // It declares three elements and gives one.
    let refused = start_with(&Build::declares_more_than_it_gives(), &Bounds::default()).unwrap_err();
    assert!(matches!(refused, Refused::WarmUp(_) | Refused::Engine(_)), "{refused}");
}

#[test]
fn a_model_that_does_not_take_zeros_runs_for_the_first_time_on_ones() {
    assert!(start_with(&divides_by_its_input(), &Bounds::default()).is_ok());
}

#[test]
fn what_only_looks_like_a_model_is_refused_by_the_engine_in_words() {
    let refused = start_with(&Build::unknown_operator(), &Bounds::default()).unwrap_err();
    assert!(matches!(refused, Refused::Engine(_)), "{refused}");
}

#[test]
fn warm_up_shapes_are_held_to_the_models_own() {
    let with = |name: &str, shape: &[u64]| {
        let warm_up = BTreeMap::from([(name.to_owned(), shape.to_vec())]);
        start_with(DIGITS, &Bounds { warm_up, ..Bounds::default() })
    };
    assert!(with("input", &[4, 64]).is_ok());
    assert!(matches!(with("input", &[4, 63]), Err(Refused::WarmUp(_))));
    assert!(matches!(with("other", &[4, 64]), Err(Refused::WarmUp(_))));
    // 256 MiB of FP32 are 1 << 20 rows of 64; one more is too many.
    assert!(matches!(with("input", &[(1 << 20) + 1, 64]), Err(Refused::WarmUp(_))));
}

fn on_disk(bytes: &[u8]) -> (tempfile::TempDir, Source) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    std::fs::write(&path, bytes).unwrap();
    let source = Source {
        kind: Kind::Onnx,
        pooling: None,
        normalize: None,
        calibration: None,
        card: None,
        golden: None,
        name: "m".into(),
        version: "".into(),
        path,
        held_to: HeldTo::Digest(Digest::of(bytes)),
        bounds: Bounds { isolation: Isolation::Thread, ..Bounds::default() },
    };
    (folder, source)
}

#[test]
fn a_wrong_digest_is_refused_before_the_engine_sees_a_byte() {
    let (_folder, mut source) = on_disk(b"not even a model");
    source.held_to = HeldTo::Digest(Digest::of(DIGITS));
    // Had anything parsed the bytes, it would have said that they are no ONNX.
    let refused = Model::load(&source, || Ok(runtime())).unwrap_err();
    assert!(matches!(refused, Refused::WrongDigest { .. }), "{refused}");
}

#[tokio::test]
async fn a_file_that_is_swapped_between_hash_and_load_changes_nothing() {
    // `Model::load` is these two steps: the second is given no path, so the file can be another one, or none, by then.
    let (folder, source) = on_disk(DIGITS);
    let verified = source.verify(SystemTime::now()).unwrap().weights().unwrap().clone();
    std::fs::write(&source.path, forever()).unwrap();
    drop(folder);
    let model = Model::from_verified("m", "", &verified, &source.bounds, &runtime()).unwrap();
    assert_eq!(model.which().digest, Some(Digest::of(DIGITS)));
    let answers = model.run(vec![pixels(&samples().inputs[..1])], &["label".into()], &anyone(), soon()).await.unwrap();
    assert_eq!(integers(&answers[0]), samples().labels[..1]);
}

#[test]
fn a_model_loads_from_its_file() {
    let (_folder, source) = on_disk(DIGITS);
    assert!(Model::load(&source, || Ok(runtime())).is_ok());
}

/// A copy of the smallest encoder, and the block of a policy that names its files.
fn encoder_on_disk() -> (tempfile::TempDir, String) {
    let (from, to) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/encoders/bert-mean"), tempfile::tempdir().unwrap());
    let mut named = Vec::new();
    for name in encoder::READ {
        let Ok(bytes) = std::fs::read(from.join(name)) else { continue };
        let path = to.path().join("e").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        named.push(format!("\"{name}\" = \"{}\"", Digest::of(&bytes)));
        std::fs::write(path, bytes).unwrap();
    }
    (to, format!("path = \"e\"\nisolation = \"thread\"\nsha256 = {{ {} }}\n", named.join(", ")))
}

fn encoder_of(block: &str, folder: &Path) -> Result<Source, Vec<String>> {
    let config: Config = toml::from_str(block).map_err(|error| vec![error.message().to_owned()])?;
    let told = |mistake: Mistake| format!("{} @ {}", mistake.what, &block[mistake.span.unwrap()]);
    config.resolve(Kind::Safetensors, "e", "1", folder, folder).map_err(|mistakes| mistakes.into_iter().map(told).collect())
}

fn no_runtime() -> Result<Runtime, runtime::Broken> {
    panic!("an encoder needs no ONNX Runtime")
}

#[tokio::test]
async fn an_encoder_loads_from_the_files_that_the_policy_names_and_from_no_other() {
    let (folder, block) = encoder_on_disk();
    // Nobody signed it, nobody named it: it is not opened.
    std::fs::write(folder.path().join("e/pytorch_model.bin"), b"\x80\x04.").unwrap();
    let source = encoder_of(&block, folder.path()).unwrap();
    let model = Model::load(&source, no_runtime).unwrap();
    assert_eq!(&*model.which().format, "safetensors");
    assert_eq!(model.which().digest, Some(source.verify(SystemTime::now()).unwrap().digest));
    let text = Tensor { name: "text".into(), datatype: Datatype::Bytes, shape: vec![1], data: Bytes::from_static(b"\x02\0\0\0hi") };
    let answers = model.run(vec![text], &["embedding".into()], &anyone(), soon()).await.unwrap();
    let length: f32 = floats(&answers[0]).iter().map(|number| number * number).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");

    std::fs::write(folder.path().join("e/config.json"), b"{}").unwrap();
    assert!(matches!(Model::load(&source, no_runtime).unwrap_err(), Refused::Folder(_)));
}

#[test]
fn mistakes_about_an_encoder_are_told_with_their_place() {
    let (folder, block) = encoder_on_disk();
    let told = |block: &str| encoder_of(block, folder.path()).unwrap_err().remove(0);
    assert!(told("path = \"e\"\nsha256 = \"00\"").contains("names each file"));
    assert!(told("path = \"e\"\nsha256 = { \"config.json\" = \"00\" }").contains("of \"config.json\": a SHA-256 digest"));
    assert!(told(&format!("{block}warm_up = {{ text = [1] }}")).contains("is for a file of [backend.onnx]"));
    assert!(told(&format!("{block}calibration = \"none.json\"")).contains("`calibration`: "));
    assert!(encoder_of(&format!("{block}pooling = \"cls\"\nnormalize = false"), folder.path()).is_ok());
    assert!(told(&format!("{block}pooling = \"max\"")).contains("unknown variant `max`"));
    let (onnx, _) = on_disk(DIGITS);
    let wrong = resolved(&format!("path = \"m.onnx\"\nsha256 = \"{}\"\npooling = \"cls\"", Digest::of(DIGITS)), onnx.path());
    assert!(wrong.unwrap_err()[0].contains("are for encoders"));
}

#[tokio::test]
async fn a_calibration_scales_what_the_model_says_and_leaves_the_order() {
    let (folder, _) = on_disk(DIGITS);
    let block = format!("path = \"m.onnx\"\nisolation = \"thread\"\nsha256 = \"{}\"\n", Digest::of(DIGITS));
    let first = |source: &Source| Model::load(source, || Ok(runtime())).unwrap();
    let plain = first(&resolved(&block, folder.path()).unwrap());
    std::fs::write(folder.path().join("t.json"), br#"{"probabilities":{"temperature":4.0,"of":"probabilities","activation":"softmax"}}"#)
        .unwrap();
    let scaled = first(&resolved(&format!("{block}calibration = \"t.json\""), folder.path()).unwrap());
    let ask = async |model: &Model| {
        let answers = model.run(vec![pixels(&samples().inputs[..1])], &["probabilities".into()], &anyone(), soon()).await.unwrap();
        floats(&answers[0])
    };
    let (sure, less) = (ask(&plain).await, ask(&scaled).await);
    let best = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
    assert_eq!(best(&sure), best(&less));
    assert!(less[best(&less)] < sure[best(&sure)] && (less.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{sure:?} {less:?}");
    std::fs::write(folder.path().join("t.json"), br#"{"temperature":0}"#).unwrap();
    let broken = resolved(&format!("{block}calibration = \"t.json\""), folder.path()).unwrap();
    assert!(matches!(Model::load(&broken, || Ok(runtime())).unwrap_err(), Refused::Calibration(_)));
}

#[test]
fn what_is_said_of_an_encoder_arrives_at_its_worker() {
    use encoder::{Options, Pooling};
    for pooling in [None, Some(Pooling::Cls), Some(Pooling::Mean)] {
        for normalize in [None, Some(false), Some(true)] {
            let read = Options::from_bytes(&Options { pooling, normalize, room: 1 }.bytes(), 7).unwrap();
            assert_eq!((read.pooling, read.normalize, read.room), (pooling, normalize, 7));
        }
    }
    assert!(
        Options::from_bytes(&[3, 0], 1).is_none() && Options::from_bytes(&[0, 3], 1).is_none() && Options::from_bytes(&[0], 1).is_none()
    );
}

#[derive(Debug, Deserialize)]
struct File {
    backend: Backend,
}

#[derive(Debug, Deserialize)]
struct Backend {
    onnx: Config,
}

fn resolved(block: &str, folder: &Path) -> Result<Source, Vec<String>> {
    let text = format!("[backend.onnx]\n{block}");
    let file: File = toml::from_str(&text).map_err(|error| vec![error.message().to_owned()])?;
    let told = |mistake: Mistake| format!("{} @ {}", mistake.what, &text[mistake.span.unwrap()]);
    file.backend.onnx.resolve(Kind::Onnx, "m", "1", folder, folder).map_err(|mistakes| mistakes.into_iter().map(told).collect())
}

#[test]
fn the_policy_block_is_read_as_the_policy_page_writes_it() {
    let (folder, _) = on_disk(DIGITS);
    let (path, digest) = (folder.path(), Digest::of(DIGITS));
    let read = resolved(&format!("path = \"m.onnx\"\nsha256 = \"{digest}\""), path).unwrap();
    assert!(matches!(read.held_to, HeldTo::Digest(held) if held == digest));
    assert_eq!((read.bounds.size, read.bounds.queue), (512 << 20, 64));
    assert_eq!((read.bounds.isolation, read.bounds.memory), (Isolation::Required, None));
    let block =
        "path = \"m.onnx\"\nqueue = 3\nmax_size = \"1MiB\"\nmax_output = \"2KiB\"\nload_timeout = \"5s\"\nwarm_up = { input = [1, 64] }\n";
    let read = resolved(&format!("{block}sha256 = \"{digest}\""), path).unwrap();
    assert_eq!((read.bounds.size, read.bounds.queue, read.bounds.output), (1 << 20, 3, 2048));
    assert_eq!((read.bounds.load, read.bounds.warm_up["input"].as_slice()), (Duration::from_secs(5), [1, 64].as_slice()));
}

#[test]
fn every_mistake_in_the_policy_block_is_told_with_its_place() {
    let (folder, _) = on_disk(DIGITS);
    let (path, digest) = (folder.path(), Digest::of(DIGITS));
    std::fs::write(path.join("m.pem"), "no PEM").unwrap();
    let signed = |trust: &str| format!("path = \"m.onnx\"\nsignature = \"m.onnx\"\ntrust = \"{trust}\"");
    for (block, parts) in [
        ("path = \"../m.onnx\"\nsha256 = \"12\"\nqueue = 0", &["64 hexadecimal digits @ \"12\"", "`queue` is from 1", "`path` leaves"][..]),
        (&format!("{}\nsha256 = \"{digest}\"", signed("m.pem")), &["give either"]),
        ("path = \"m.onnx\"\nsignature = \"m.onnx\"", &["belong together"]),
        ("path = \"m.onnx\"\ntrust = \"m.onnx\"", &["belong together"]),
        ("path = \"m.onnx\"\nsignature = \"no.sig\"\ntrust = \"no.pem\"", &["`signature`: ", "`trust`: "]),
        (&signed("m.pem"), &["holds no PEM block"]),
        (&signed("/dev/null"), &["leaves the policy folder"]),
    ] {
        let told = resolved(block, path).unwrap_err();
        assert!(parts.iter().all(|part| told.iter().any(|mistake| mistake.contains(part))), "{parts:?}: {told:?}");
    }
    assert!(resolved("path = \"m.onnx\"", path).unwrap_err()[0].contains("`sha256` is missing"));
    assert!(resolved("path = \"m.onnx\"\ncolour = 1", path).unwrap_err()[0].contains("unknown field `colour`"));
    let memory = |most: &str, isolation: &str| {
        let block = format!("path = \"m.onnx\"\nmemory = \"{most}\"\nisolation = \"{isolation}\"\nsha256 = \"{}\"", digest);
        resolved(&block, path)
    };
    for level in ["strict", "required", "best-effort"] {
        assert_eq!(memory("128MiB", level).unwrap().bounds.memory, Some(128 << 20));
    }
    assert!(memory("127MiB", "required").unwrap_err()[0].contains("at least \"128MiB\" @ \"127MiB\""));
    assert!(memory("1GiB", "thread").unwrap_err()[0].contains("has none"));
    assert!(memory("1GiB", "lax").unwrap_err()[0].contains("unknown variant `lax`"));
    let queue = |n: usize| resolved(&format!("path = \"m.onnx\"\nqueue = {n}\nsha256 = \"{}\"", digest), path);
    assert!(queue(1).is_ok() && queue(MAX_QUEUE).is_ok() && queue(MAX_QUEUE + 1).is_err());
}

#[test]
fn a_model_outside_the_policy_folder_is_a_mistake_even_through_a_link() {
    let (outside, _) = on_disk(DIGITS);
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path().join("m.onnx"), folder.path().join("m.onnx")).unwrap();
    let told = resolved(&format!("path = \"m.onnx\"\nsha256 = \"{}\"", Digest::of(DIGITS)), folder.path()).unwrap_err();
    assert!(told[0].contains("leaves the policy folder"), "{told:?}");
}

#[test]
fn a_model_that_is_gone_is_named_where_it_stood_and_a_link_that_leads_nowhere_is_not_one() {
    let (folder, _) = on_disk(DIGITS);
    let (path, digest) = (folder.path(), Digest::of(DIGITS));
    let named = |at: &str| resolved(&format!("path = \"{at}\"\nsha256 = \"{digest}\""), path);
    std::fs::create_dir(path.join("of")).unwrap();
    std::fs::rename(path.join("m.onnx"), path.join("of/m.onnx")).unwrap();
    let stood = named("of/m.onnx").unwrap();
    std::fs::remove_dir_all(path.join("of")).unwrap();
    let gone = named("of/m.onnx").unwrap();
    assert_eq!(format!("{gone:?}"), format!("{stood:?}"));
    assert!(matches!(gone.verify(SystemTime::now()), Err(Refused::Unreadable(..))));
    for out in ["of/../../m.onnx", "../m.onnx", "/m.onnx"] {
        let told = named(out).unwrap_err();
        assert!(told[0].contains("cannot be found") || told[0].contains("leaves the policy folder"), "{told:?}");
    }
    std::os::unix::fs::symlink("/nowhere/m.onnx", path.join("m.onnx")).unwrap();
    assert!(named("m.onnx").unwrap_err()[0].contains("cannot be found"));
    let folder_of = format!("path = \"gone\"\nsha256 = {{ \"model.onnx\" = \"{digest}\" }}");
    assert_eq!(resolved(&folder_of, path).unwrap().kind, Kind::OnnxEncoder);
}

/// Not a test of speed, which a busy machine would fail: `cargo test --release -- --ignored --nocapture hand_off` prints it.
#[tokio::test]
#[ignore = "it measures"]
async fn hand_off() {
    let model = start(DIGITS);
    let input = pixels(&samples().inputs[..1]);
    let mut micros = Vec::new();
    for _ in 0..5000 {
        let from = Instant::now();
        model.run(vec![input.clone()], &[], &anyone(), soon()).await.unwrap();
        micros.push(from.elapsed().as_nanos() as f64 / 1000.0);
    }
    micros.sort_by(f64::total_cmp);
    println!("a call: p50 {:.1} µs, p99 {:.1} µs, least {:.1} µs", micros[2500], micros[4950], micros[0]);
}

#[tokio::test]
async fn a_tensor_that_lies_in_a_verified_file_is_read_from_memory() {
    let verified = |bytes: &[u8]| Verified::from_bytes(Bytes::copy_from_slice(bytes), Digest::of(bytes), 1 << 20).unwrap();
    let file = |name: &str, numbers: &[f32]| {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        (name.to_owned(), verified(&bytes))
    };
    let model = verified(&adds_what_lies_beside());
    let bounds = Bounds { isolation: Isolation::Thread, ..Bounds::default() };
    let load = |beside: BTreeMap<String, Verified>| start::onnx("beside", &model, &beside, &bounds, &runtime());
    let queue = load([file("weights.bin", &[9.0, 1.0, 2.0]), file("README.md", &[0.0])].into()).unwrap();
    let x =
        Tensor { name: "x".into(), datatype: Datatype::Fp32, shape: vec![2], data: [10.0_f32, 20.0].map(f32::to_le_bytes).concat().into() };
    let answer = queue.run(vec![x], &[], &anyone(), soon()).await.unwrap();
    assert_eq!(floats(&answer[0]), [11.0, 22.0]);
    assert!(matches!(load([file("weights.bin", &[9.0, 1.0])].into()), Err(Refused::Onnx(Fault::PastEnd { end: 12, size: 8, .. }))));
    assert!(matches!(load(BTreeMap::new()), Err(Refused::Onnx(Fault::NotBeside(_)))));
}
