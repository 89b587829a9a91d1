//! `POST /v1/embeddings` to a model in this machine: texts or tokens go to it as its tensors, and its vectors come back in the OpenAI dialect.

use std::sync::Arc;

use http::StatusCode;

use super::memory::Memory;
use super::model::Model;
use super::tensors::{run, settled, shared};
use super::{Answer, Call, Error, Held, Terms, shadow, whole};
use crate::check::{Embed, Request};
use crate::trail::Trail;
use crate::wire::openai::embeddings;
use crate::wire::tensor::rows;

pub(super) async fn from_model(
    mut call: Box<Call>,
    model: &Arc<Model>,
    terms: &Terms,
    memory: &Memory,
    trail: &mut Trail,
) -> Result<Answer, Error> {
    let Request::Embed(Embed { request, encoding, dimensions }) = std::mem::replace(&mut call.request, Request::Nothing) else {
        return Err(Error::Unavailable("the route carries nothing to embed"));
    };
    call.hold.began();
    let copied = shadow::copied(&terms.shadows, trail.id, &call.who, &request.inputs);
    let inputs = rows(&request.inputs);
    let mut tensors = run(model, request.inputs, &[], &mut call).await?;
    let usage = settled(model, &tensors, inputs, &mut call)?;
    trail.usage = usage;
    if let Some(sight) = call.sight.take() {
        sight.learn_in_turn(&tensors).await;
    }
    let lesson = call.lesson.take().map(|lesson| (lesson, tensors.clone()));
    let given = copied.as_ref().map(|_| tensors.clone());
    terms.shape.tensors(&mut tensors, call.care, inputs);
    let mut vectors = embeddings::embedded(&tensors, inputs).ok_or(Error::UpstreamBroke("the model answered no vectors"))?;
    if let Some(dimensions) = dimensions
        && !vectors.iter_mut().all(|vector| embeddings::shorten(vector, dimensions))
    {
        return Err(Error::CallerSentUnfit("the model has fewer dimensions"));
    }
    if let Some((lesson, said)) = lesson {
        let exposure = lesson.learn_in_turn(&said, &[embeddings::tensor(&vectors)]).await;
        trail.exposure = exposure.map(|exposure| exposure.fidelity);
    }
    let tokens = usage.map_or(0, |usage| usage.input);
    let bytes = embeddings::answer(&call.name, &vectors, tokens, encoding);
    call.hold.delivered(bytes.len() as u64);
    let answer = shared(whole(StatusCode::OK, "application/json", bytes, Held { _budget: Some(call.hold), _memory: None }), memory)?;
    if let (Some(copied), Some(given)) = (copied, given) {
        copied.follow(&given.into(), &[].into());
    }
    Ok(answer)
}
