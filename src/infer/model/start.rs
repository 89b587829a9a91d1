//! How the engine of each kind of model is started: in a worker, or on a thread of this process where the policy says so.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::encoder::{self, Encoder, Graph};
use super::onnxruntime::OnnxRuntime;
use super::parcel::Parcel;
use super::queue::Queue;
use super::worker::{self, Inmate, Launch, Worker};
use super::{Bounds, Held, Isolation, Kind, Refused, Runtime, Signature, Source, Verified, engine, onnx, source};

/// An ONNX model, by ONNX Runtime.
pub(super) fn onnx(
    name: &str,
    verified: &Verified,
    beside: &BTreeMap<String, Verified>,
    bounds: &Bounds,
    runtime: &Runtime,
) -> Result<Queue, Refused> {
    let (signature, used) = onnx::read_beside(verified.bytes(), &onnx::Limits::DEFAULT, &lengths(beside))?;
    let beside = beside.iter().filter(|(name, _)| used.contains_key(*name)).map(|(name, file)| (name.clone(), file.bytes().clone()));
    let beside: Vec<(String, Bytes)> = beside.collect();
    if bounds.isolation == Isolation::Thread {
        let (bytes, runtime, room) = (verified.bytes().clone(), runtime.clone(), bounds.output);
        return Queue::start(name, bounds, move |stop| {
            let beside = beside.iter().map(|(name, file)| (name.as_str(), &file[..]));
            Ok(Box::new(OnnxRuntime::load(&bytes, beside, signature, room, &runtime, stop)?))
        });
    }
    let beside = beside.iter().map(|(name, file)| (name.as_str(), &file[..]));
    let files = std::iter::once((source::MODEL, &verified.bytes()[..])).chain(beside);
    let launch = Launch::new(name, Inmate::OnnxRuntime, Parcel::of(files).map_err(Refused::Worker)?, bounds);
    let launch = Launch { library: Some(runtime.library().clone()), signature: Some(signature), ..launch };
    Queue::start(name, bounds, move |stop| Ok(Box::new(Worker::start(launch, stop)?)))
}

pub(super) fn lengths(files: &BTreeMap<String, Verified>) -> onnx::Beside {
    files.iter().map(|(name, file)| (name.clone(), file.bytes().len() as u64)).collect()
}

/// An encoder, from those files of its folder that one reads.
pub(super) fn encoder(source: &Source, held: &Held, bounds: &Bounds) -> Result<Queue, Refused> {
    let (files, options) = (read(held), options(source));
    if bounds.isolation == Isolation::Thread {
        return Queue::start(&source.name, bounds, move |_| Ok(Box::new(Encoder::load(&files, &options).map_err(Refused::Encoder)?)));
    }
    let launch = Launch::new(&source.name, Inmate::Encoder, packed(&files)?, bounds);
    let launch = Launch { options: options.bytes().to_vec(), ..launch };
    Queue::start(&source.name, bounds, move |stop| Ok(Box::new(Worker::start(launch, stop)?)))
}

/// An encoder, from an ONNX file and those files beside it that one reads. Its tokenizer is not looked at here, unless the encoder shares this process.
pub(super) fn onnx_encoder(source: &Source, held: &Held, bounds: &Bounds, runtime: &Runtime) -> Result<Queue, Refused> {
    let (graph, used, fitted) = fitted(source, held)?;
    let model = held.weights()?.bytes().clone();
    let beside = held.beside.iter().filter(|(name, _)| used.contains_key(*name)).map(|(name, file)| (name.clone(), file.bytes().clone()));
    let (beside, mut files): (BTreeMap<String, Bytes>, _) = (beside.collect(), read(held));
    if bounds.isolation == Isolation::Thread {
        let (runtime, room) = (runtime.clone(), bounds.output);
        return Queue::start(&source.name, bounds, move |stop| {
            let beside = beside.iter().map(|(name, file)| (name.as_str(), &file[..]));
            let engine = OnnxRuntime::load(&model, beside, graph, room, &runtime, stop)?;
            Ok(Box::new(Encoder::around(fitted, &files, engine).map_err(Refused::Encoder)?))
        });
    }
    files.extend(beside);
    files.insert(source::MODEL.to_owned(), model);
    let launch = Launch::new(&source.name, Inmate::OnnxEncoder, packed(&files)?, bounds);
    let (library, options, signature) =
        (Some(runtime.library().clone()), options(source).bytes().to_vec(), Some(fitted.signature().clone()));
    let launch = Launch { library, options, signature, ..launch };
    Queue::start(&source.name, bounds, move |stop| Ok(Box::new(Worker::start(launch, stop)?)))
}

/// What a worker reads in these files of an encoder; `rest` are the bytes of those that it would have with them if it served.
pub(super) fn told_by_a_worker(
    source: &Source,
    inmate: Inmate,
    files: &encoder::Files,
    rest: usize,
    signature: Option<Signature>,
) -> Result<Signature, Refused> {
    // What stands is told where it serves; another machine may check.
    let bounds = Bounds { isolation: Isolation::BestEffort, ..source.bounds.clone() };
    let files = packed(files)?;
    let memory = worker::memory(&bounds, files.size().saturating_add(rest));
    let launch =
        Launch { options: options(source).bytes().to_vec(), memory, signature, ..Launch::new(&source.name, inmate, files, &bounds) };
    // It ends when it is dropped.
    Ok(engine::Engine::signature(&Worker::start(launch, &engine::Stop::default())?).clone())
}

fn packed(files: &encoder::Files) -> Result<Parcel, Refused> {
    Parcel::of(files.iter().map(|(name, file)| (name.as_str(), &file[..]))).map_err(Refused::Worker)
}

/// What the graph of an encoder takes and gives, the files beside it that its tensors lie in, and the encoder around it.
pub(super) fn fitted(source: &Source, held: &Held) -> Result<(Signature, onnx::Needed, Graph), Refused> {
    let (graph, used) = onnx::read_beside(held.weights()?.bytes(), &onnx::Limits::DEFAULT, &lengths(&held.beside))?;
    let fitted = Graph::fit(&graph, &read(held), &options(source)).map_err(Refused::Encoder)?;
    Ok((graph, used, fitted))
}

/// The files that an encoder reads. The pooling may lie in any folder that its list of modules names.
pub(super) fn read(held: &Held) -> encoder::Files {
    let others = if held.kind == Kind::Safetensors { source::MODEL } else { source::WEIGHTS };
    let wanted = |name: &str| (encoder::READ.contains(&name) || name.ends_with("/config.json")) && name != others;
    held.files.iter().filter(|(name, _)| wanted(name)).map(|(name, file)| (name.clone(), file.bytes().clone())).collect()
}

pub(super) fn options(source: &Source) -> encoder::Options {
    encoder::Options { pooling: source.pooling, normalize: source.normalize, room: source.bounds.output }
}
