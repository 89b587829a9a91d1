//! `POST /v1/embeddings` to a model in this machine: texts or tokens go to it as its tensors, and its vectors come back in the OpenAI dialect.

use std::sync::Arc;

use http::StatusCode;

use super::memory::Memory;
use super::model::Model;
use super::tensors::{from_engine, shared};
use super::{Answer, Call, Error, Held, shape, whole};
use crate::check::{Embed, Request};
use crate::trail::{Trail, Usage};
use crate::wire::openai::embeddings;

pub(super) async fn from_model(
    mut call: Box<Call>,
    model: &Arc<Model>,
    shape: &shape::Config,
    memory: &Memory,
    trail: &mut Trail,
) -> Result<Answer, Error> {
    let Request::Embed(Embed { request, encoding, dimensions }) = std::mem::replace(&mut call.request, Request::Nothing) else {
        return Err(Error::Unavailable("the route carries nothing to embed"));
    };
    call.hold.began();
    let mut tensors = model.run(request.inputs, &[], &call.who, call.deadline).await.map_err(from_engine)?;
    shape.tensors(&mut tensors, call.care);
    let answered = embeddings::embedded(&tensors).ok_or(Error::UpstreamBroke("the model answered no vectors"))?;
    let (mut vectors, tokens) = answered;
    if let Some(dimensions) = dimensions
        && !vectors.iter_mut().all(|vector| embeddings::shorten(vector, dimensions))
    {
        return Err(Error::CallerSentUnfit("the model has fewer dimensions"));
    }
    let bytes = embeddings::answer(&call.name, &vectors, tokens, encoding);
    let usage = Usage { input: tokens, output: 0 };
    call.hold.delivered(bytes.len() as u64);
    call.hold.settle(usage);
    trail.usage = Some(usage);
    shared(whole(StatusCode::OK, "application/json", bytes, Held { _budget: Some(call.hold), _memory: None }), memory)
}
