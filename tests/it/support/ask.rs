//! Requests, one for each row of the route table.

use bytes::Bytes;
use http::Request;
use portcullis::authorize::target::FIXED;
use serde_json::{Value, json};

use super::KEY;

/// A receipt's id that names nothing.
pub const NO_RECEIPT: &str = "0192aaaa-bbbb-7ccc-8ddd-eeeeffff0000";

/// A request with a credential.
pub fn ask(method: &str, path: &str, body: impl Into<Bytes>) -> Request<Bytes> {
    bare(method, path, body, Some(KEY))
}

/// A request with this credential, or none.
pub fn bare(method: &str, path: &str, body: impl Into<Bytes>, credential: Option<&str>) -> Request<Bytes> {
    let mut request = Request::builder().method(method).uri(path);
    if method == "POST" {
        let grpc = path.starts_with("/inference.");
        request = request.header("content-type", if grpc { "application/grpc" } else { "application/json" });
        if grpc {
            request = request.header("te", "trailers");
        }
    }
    if let Some(credential) = credential {
        request = request.header("authorization", format!("Bearer {credential}"));
    }
    request.body(body.into()).unwrap()
}

/// A chat with the model `chat`.
pub fn chat() -> Value {
    json!({"model": "chat", "messages": [{"role": "user", "content": "hello"}]})
}

/// The same, sent.
pub fn post_chat() -> Request<Bytes> {
    ask("POST", "/v1/chat/completions", chat().to_string())
}

/// A chat that streams.
pub fn post_stream() -> Request<Bytes> {
    let mut chat = chat();
    chat["stream"] = json!(true);
    ask("POST", "/v1/chat/completions", chat.to_string())
}

/// A picture of a digit, for OIP.
pub fn digit() -> String {
    json!({"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 64], "data": vec![1.0; 64]}]}).to_string()
}

/// A gRPC message, framed.
pub fn framed(message: &impl prost::Message) -> Bytes {
    let encoded = message.encode_to_vec();
    let mut bytes = vec![0];
    bytes.extend((encoded.len() as u32).to_be_bytes());
    bytes.extend(encoded);
    bytes.into()
}

/// A row of the route table with a request that would be answered: method, path, body, and the template.
#[derive(Clone, Debug)]
pub struct Row {
    pub method: &'static str,
    pub template: &'static str,
    pub path: String,
    pub body: Bytes,
}

impl Row {
    /// Its request with this credential, or none.
    pub fn request(&self, credential: Option<&str>) -> Request<Bytes> {
        bare(self.method, &self.path, self.body.clone(), credential)
    }

    /// Whether it is gRPC, which HTTP/1.1 does not carry.
    pub fn is_grpc(&self) -> bool {
        self.template.starts_with("/inference.")
    }
}

/// Every route: the contract's, and `/predict`, which a model declares. They ask the models `chat`, `claude`, `digits` and `scoring`.
pub fn every_route() -> Vec<Row> {
    FIXED.iter().copied().chain([("POST", "/predict")]).map(|(method, template)| row(method, template)).collect()
}

fn row(method: &'static str, template: &'static str) -> Row {
    use portcullis::wire::grpc as message;
    let model = if template.starts_with("/v2") { "digits" } else { "chat" };
    let path = template.replace("{model}", model).replace("{version}", "1").replace("{id}", NO_RECEIPT);
    let text = |value: Value| Bytes::from(value.to_string());
    let name = "digits".to_owned();
    let body = match template {
        "/v1/chat/completions" => text(chat()),
        "/v1/completions" => text(json!({"model": "chat", "prompt": "hello"})),
        "/v1/responses" | "/v1/embeddings" => text(json!({"model": "chat", "input": "hello"})),
        "/v1/messages" => text(json!({"model": "claude", "max_tokens": 16, "messages": [{"role": "user", "content": "hello"}]})),
        "/predict" => text(json!({"features": [1, 2, 3]})),
        _ if template.ends_with("/infer") => digit().into(),
        _ => match template.strip_prefix("/inference.GRPCInferenceService/") {
            None => Bytes::new(),
            Some("ModelReady") => framed(&message::ModelReadyRequest { name, ..Default::default() }),
            Some("ModelMetadata") => framed(&message::ModelMetadataRequest { name, ..Default::default() }),
            Some("ModelInfer") => framed(&message::ModelInferRequest {
                model_name: name,
                inputs: vec![message::InferTensor {
                    name: "input".to_owned(),
                    datatype: "FP32".to_owned(),
                    shape: vec![1, 64],
                    contents: Some(Box::new(message::InferTensorContents { fp32_contents: vec![1.0; 64], ..Default::default() })),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            Some(_) => Bytes::from_static(&[0; 5]),
        },
    };
    Row { method, template, path, body }
}
