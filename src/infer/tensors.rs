//! The Open Inference Protocol: tensors to a model in this machine, or to a model server that speaks it.

pub(super) mod over_grpc;
pub(super) mod over_http;

use std::sync::Arc;

use http::header::LINK;
use http::{HeaderValue, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use prost::Message;

use super::memory::Memory;
use super::model::{self, Model};
use super::{Answer, Call, Error, Held, Payload, Terms, explain, shadow, shape, whole};
use crate::authorize::{OipAsks, Route};
use crate::check::Request;
use crate::heavy;
use crate::trail::{Trail, Usage};
use crate::wire::grpc::{self as message, Code, trailers};
use crate::wire::oip::{self, HEADER_LENGTH, InferRequest, InferResponse, Unwritable};
use crate::wire::openai::embeddings::{TOKENS, tokens_read};
use crate::wire::tensor::{Tensor, rows};

const OCTETS: &str = "application/octet-stream";
const JSON: &str = "application/json";

const NOT_THE_PROTOCOL: Error = Error::UpstreamBroke("its answer is not the Open Inference Protocol");

/// From a model in this machine: its metadata, whether it is ready, or what it says to the tensors.
pub(super) async fn from_model(
    mut call: Box<Call>,
    model: &Arc<Model>,
    terms: &Terms,
    memory: &Memory,
    trail: &mut Trail,
) -> Result<Answer, Error> {
    let over_grpc = matches!(call.route, Route::Grpc(_));
    match asks(&call.route) {
        // A model that is not ready is not served, so that being here says it is.
        OipAsks::ModelReady if over_grpc => return framed(&message::ModelReadyResponse { ready: true }, Held::default()),
        OipAsks::ModelReady => return Ok(whole(StatusCode::OK, JSON, oip::model_ready(&call.name, true), Held::default())),
        OipAsks::Infer => {}
        _ => return metadata(&call, model, over_grpc),
    }
    let (mut request, explanation) = match std::mem::replace(&mut call.request, Request::Nothing) {
        Request::Tensors(request) => (request, None),
        Request::Explain(mut explanation) => (std::mem::take(&mut explanation.request), Some(explanation)),
        _ => return Err(Error::Unavailable("the route carries no tensors")),
    };
    let inputs = std::mem::take(&mut request.inputs);
    let asked = explanation.as_ref().map(|_| inputs.clone());
    let outputs: Vec<String> = request.outputs.iter().map(|output| output.name.clone()).collect();
    let copied = shadow::copied(&terms.shadows, trail.id, &call.who, &inputs);
    call.hold.began();
    let texts = rows(&inputs);
    // What the tokens of texts cost is settled by what the model read, and an answer is explained, whether or not the caller wants to have it.
    let needed = match &explanation {
        Some(explanation) => Some(explanation.output.as_str()),
        None => model.signature().longest.map(|_| TOKENS),
    };
    let hidden = needed.filter(|needed| !outputs.is_empty() && !outputs.iter().any(|name| name == needed));
    let wanted: Vec<String> = outputs.iter().cloned().chain(hidden.map(str::to_owned)).collect();
    let mut tensors = run(model, inputs, &wanted, &mut call).await?;
    trail.usage = settled(model, &tensors, texts, &mut call)?;
    if let Some(sight) = call.sight.take() {
        sight.learn_in_turn(&tensors).await;
    }
    let mut aside: Vec<Tensor> = hidden.and_then(|_| tensors.pop()).into_iter().collect();
    if explanation.is_none() {
        aside.clear();
    }
    // Compared is what the models say, before either is rounded or cut to its best classes.
    let given = copied.as_ref().map(|_| tensors.clone());
    // What is explained is told, whether or not it was asked for.
    let lesson = call.lesson.take().map(|lesson| (lesson, [&tensors[..], &aside].concat()));
    terms.shape.tensors(&mut tensors, call.care, texts);
    terms.shape.tensors(&mut aside, call.care, texts);
    if let Some((lesson, said)) = lesson {
        let exposure = match &aside[..] {
            [] => lesson.learn_in_turn(&said, &tensors).await,
            aside => lesson.learn_in_turn(&said, &[&tensors[..], aside].concat()).await,
        };
        trail.exposure = exposure.map(|exposure| exposure.fidelity);
    }
    if let (Some(explanation), Some(asked)) = (&explanation, asked) {
        let told = tensors.iter().chain(&aside).find(|tensor| tensor.name == explanation.output);
        let told = told.ok_or(Error::UpstreamBroke("the output that is explained is missing"))?.clone();
        tensors.extend(explain::explain(explanation, &asked, &told, model, &terms.shape, &mut call).await?);
    }
    let bytes: usize = tensors.iter().map(|tensor| tensor.data.len()).sum();
    call.hold.delivered(bytes as u64);
    let response = InferResponse {
        model_name: call.name.to_string(),
        model_version: call.version.to_string(),
        id: request.id.clone(),
        outputs: tensors,
    };
    let held = Held { _budget: Some(call.hold), _memory: None };
    let encode =
        || if over_grpc { framed(&message::ModelInferResponse::from(&response), held) } else { encoded(&response, &request, held) };
    let answer = shared(heavy::work(bytes, encode).await?, memory)?;
    // Only an answer that was made is followed, and only once it is ready to leave.
    if let (Some(copied), Some(given)) = (copied, given) {
        copied.follow(&given.into(), &outputs.into());
    }
    Ok(answer)
}

/// Asks the model. A call that it never began with costs no tokens.
pub(super) async fn run(model: &Model, inputs: Vec<Tensor>, wanted: &[String], call: &mut Call) -> Result<Vec<Tensor>, Error> {
    model.run(inputs, wanted, &call.who, call.deadline).await.map_err(|error| {
        if matches!(error, model::Error::QueueIsFull | model::Error::EngineStopped) {
            call.hold.settle(Usage { input: 0, output: 0 });
        }
        from_engine(error)
    })
}

/// Settles the tokens that a model of texts read; none for another.
pub(super) fn settled(model: &Model, answer: &[Tensor], texts: usize, call: &mut Call) -> Result<Option<Usage>, Error> {
    let Some(longest) = model.signature().longest else { return Ok(None) };
    let read = tokens_read(answer, texts, longest).ok_or(Error::UpstreamBroke("the model read other tokens than it can"))?;
    let usage = Usage { input: read, output: 0 };
    call.hold.settle(usage);
    Ok(Some(usage))
}

/// Counts an answer that was made here against the memory that all whole answers share.
pub(super) fn shared(mut answer: Answer, memory: &Memory) -> Result<Answer, Error> {
    if let Payload::Whole(bytes) = &answer.payload {
        let mut share = memory.share()?;
        share.grow_to(bytes.len())?;
        answer.held._memory = Some(share);
    }
    Ok(answer)
}

/// Shapes what an upstream said, where anything of it is to be shaped, and learns from what it said and what of that is told.
async fn shaped(response: &mut InferResponse, request: &InferRequest, shape: &shape::Config, call: &mut Call, trail: &mut Trail) {
    let lesson = call.lesson.take().map(|lesson| (lesson, response.outputs.clone()));
    if !shape.leaves_tensors_alone(call.care) {
        shape.tensors(&mut response.outputs, call.care, rows(&request.inputs));
    }
    if let Some((lesson, said)) = lesson {
        trail.exposure = lesson.learn_in_turn(&said, &response.outputs).await.map(|exposure| exposure.fidelity);
    }
}

fn asks(route: &Route) -> OipAsks {
    match route {
        Route::Oip { asks, .. } | Route::Grpc(asks) => *asks,
        _ => OipAsks::Infer,
    }
}

fn metadata(call: &Call, model: &Model, over_grpc: bool) -> Result<Answer, Error> {
    let model::Signature { inputs, outputs, .. } = model.signature();
    let platform = if &*model.which().format == "onnx" { "onnxruntime_onnx" } else { "candle_safetensors" };
    let versions: Vec<&str> = call.versions.iter().map(|version| &**version).collect();
    if over_grpc {
        let metadata = message::ModelMetadataResponse {
            name: call.name.to_string(),
            versions: versions.into_iter().map(str::to_owned).collect(),
            platform: platform.to_owned(),
            inputs: inputs.iter().map(Into::into).collect(),
            outputs: outputs.iter().map(Into::into).collect(),
        };
        return framed(&metadata, Held::default());
    }
    let mut answer = whole(StatusCode::OK, JSON, oip::model_metadata(&call.name, &versions, platform, inputs, outputs), Held::default());
    if let Some(link) = model.card().and_then(|_| card_of(&call.route)) {
        answer.headers.insert(LINK, link);
    }
    Ok(answer)
}

/// Of what a name may hold, that which stands in no path (RFC 3986, 3.3).
const NO_PATH: &AsciiSet = &CONTROLS.add(b'<').add(b'>').add(b'[').add(b']').add(b'^').add(b'`').add(b'{').add(b'|').add(b'}');

/// Where the card of the model stands whose metadata were asked for (RFC 8288). The protocol's own document has no place for it.
fn card_of(route: &Route) -> Option<HeaderValue> {
    let (model, version) = route.model_in_the_path()?;
    let version = version.map(|version| format!("/versions/{version}")).unwrap_or_default();
    let path = format!("/v2/models/{model}{version}/card");
    HeaderValue::try_from(format!("<{}>; rel=\"describedby\"; type=\"text/markdown\"", utf8_percent_encode(&path, NO_PATH))).ok()
}

pub(super) fn from_engine(error: model::Error) -> Error {
    match error {
        model::Error::CallerSentOtherInputs(why) => Error::CallerSentUnfit(why),
        model::Error::CallerAskedForOtherOutputs => {
            Error::CallerSentUnfit("an output was asked for that the model does not have, or twice")
        }
        model::Error::QueueIsFull => Error::Unavailable("the model's queue is full"),
        model::Error::EngineStopped => Error::Unavailable("the model's engine has stopped"),
        model::Error::DeadlinePassed => Error::Deadline,
        model::Error::ModelFailed(_) => Error::UpstreamBroke("the model failed on these inputs"),
        model::Error::ModelBrokeItsContract(why) => Error::UpstreamBroke(why),
        model::Error::ModelAnsweredTooMuch => Error::TooLarge,
    }
}

/// One gRPC message as a whole answer, with the trailers of success.
pub(super) fn framed(message: &impl Message, held: Held) -> Result<Answer, Error> {
    let bytes = message::frame(message).map_err(|_| Error::TooLarge)?;
    let mut answer = whole(StatusCode::OK, "application/grpc", bytes, held);
    answer.trailers = Some(trailers(Code::Ok, ""));
    Ok(answer)
}

fn encoded(response: &InferResponse, request: &InferRequest, held: Held) -> Result<Answer, Error> {
    let encoded = response.encode(request).map_err(|unwritable| match unwritable {
        Unwritable::Malformed => Error::UpstreamBroke(unwritable.text()),
        Unwritable::NotFinite | Unwritable::BinaryOnly => Error::CallerSentUnfit(unwritable.text()),
    })?;
    let mut answer = whole(StatusCode::OK, if encoded.header_length.is_some() { OCTETS } else { JSON }, encoded.body, held);
    if let Some(length) = encoded.header_length {
        answer.headers.insert(HEADER_LENGTH, HeaderValue::from(length));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn an_answer_made_here_takes_its_share_of_the_memory_and_gives_it_back() {
        let memory = Memory::default();
        let answer = || whole(StatusCode::OK, JSON, Bytes::from_static(b"{}"), Held::default());
        let held = shared(answer(), &memory).unwrap();
        assert!(!memory.is_whole(), "the answer holds a part of it");
        drop(held);
        assert!(memory.is_whole());
        let _all = memory.all_but(0);
        assert_eq!(shared(answer(), &memory).err(), Some(Error::Unavailable("the memory for answers is full")));
    }
}
