//! The bundled digits classifier behind hyper and rustls, and nothing else: what TLS, HTTP, one typed parse, ONNX Runtime and one typed answer
//! cost without a gateway. --receipts FILE adds the least that a record costs: SHA-256 of request and answer, one Ed25519 signature over both,
//! one write to a file, and the signature in a header.
use std::{cell::RefCell, fs::File, io::Write, rc::Rc};

use aws_lc_rs::{digest, rand::SystemRandom, signature::Ed25519KeyPair};
use base64::{prelude::BASE64_STANDARD, Engine};
use bench_tools::*;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, header, Request, Response, StatusCode};
use hyper_util::{rt::TokioIo, server::conn::auto};
use ort::{session::Session, value::{DynValue, Tensor}};
use serde::{Deserialize, Serialize};

#[global_allocator]
static A: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Deserialize)]
struct Asked { inputs: Vec<Input> }
#[derive(Deserialize)]
struct Input { shape: Vec<i64>, data: Vec<f32> }
#[derive(Serialize)]
struct Answered<'a> { model_name: &'a str, outputs: Vec<Output<'a>> }
#[derive(Serialize)]
struct Output<'a> { name: &'a str, datatype: &'a str, shape: Vec<i64>, data: Data<'a> }
#[derive(Serialize)]
#[serde(untagged)]
enum Data<'a> { Floats(&'a [f32]), Integers(&'a [i64]) }

struct Model { session: RefCell<Session>, receipts: Option<(Ed25519KeyPair, File)> }

fn output<'a>(name: &'a str, value: &'a DynValue) -> Output<'a> {
    if let Ok((shape, data)) = value.try_extract_tensor::<f32>() {
        return Output { name, datatype: "FP32", shape: shape.to_vec(), data: Data::Floats(data) };
    }
    let (shape, data) = value.try_extract_tensor::<i64>().unwrap();
    Output { name, datatype: "INT64", shape: shape.to_vec(), data: Data::Integers(data) }
}

async fn handle(request: Request<Incoming>, model: Rc<Model>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let mut answer = Response::new(Full::default());
    let Ok(Asked { mut inputs }) = serde_json::from_slice(&body) else {
        *answer.status_mut() = StatusCode::BAD_REQUEST;
        return Ok(answer);
    };
    let Input { shape, data } = inputs.remove(0);
    let input = Tensor::from_array((shape, data)).unwrap();
    let mut session = model.session.borrow_mut();
    let outputs = session.run(ort::inputs![input]).unwrap();
    let outputs: Vec<(&str, DynValue)> = outputs.into_iter().collect();
    let outputs = outputs.iter().map(|(name, value)| output(name, value)).collect();
    let bytes: Bytes = serde_json::to_vec(&Answered { model_name: "digits", outputs }).unwrap().into();
    if let Some((key, file)) = &model.receipts {
        let [asked, answered] = [&body, &bytes].map(|bytes| digest::digest(&digest::SHA256, bytes));
        let statement = [asked.as_ref(), answered.as_ref()].concat();
        let signature = key.sign(&statement);
        { file }.write_all(&[&statement, signature.as_ref()].concat()).unwrap();
        answer.headers_mut().insert("x-receipt", BASE64_STANDARD.encode(signature).parse().unwrap());
    }
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    *answer.body_mut() = Full::new(bytes);
    Ok(answer)
}

fn main() {
    let a = args();
    let port: u16 = a["port"].parse().unwrap();
    let tls = acceptor(&a["cert"], &a["key"]);
    let engine = ort::init_from(&a["dylib"]).unwrap().with_telemetry(false).build().unwrap();
    per_core(1, move || {
        let (tls, a, engine) = (tls.clone(), a.clone(), engine.clone());
        async move {
            let session = Session::builder(&engine).unwrap().with_intra_threads(1).unwrap().commit_from_file(&a["model"]).unwrap();
            let receipts = a.get("receipts").map(|path| {
                let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
                (Ed25519KeyPair::from_pkcs8(key.as_ref()).unwrap(), File::create(path).unwrap())
            });
            let model = Rc::new(Model { session: session.into(), receipts });
            let listener = listen(([127, 0, 0, 1], port).into());
            tokio::task::LocalSet::new().run_until(async move {
                loop {
                    let Ok((socket, _)) = listener.accept().await else { continue };
                    let _ = socket.set_nodelay(true);
                    let (tls, model) = (tls.clone(), model.clone());
                    tokio::task::spawn_local(async move {
                        let Ok(socket) = tls.accept(socket).await else { return };
                        let service = hyper::service::service_fn(move |request| handle(request, model.clone()));
                        let _ = auto::Builder::new(LocalExec).serve_connection(TokioIo::new(socket), service).await;
                    });
                }
            }).await;
        }
    });
}

#[derive(Clone)]
struct LocalExec;
impl<F: std::future::Future + 'static> hyper::rt::Executor<F> for LocalExec {
    fn execute(&self, f: F) { tokio::task::spawn_local(async move { f.await; }); }
}
