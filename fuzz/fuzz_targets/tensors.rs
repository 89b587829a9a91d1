//! Tensors as requests and answers carry them: JSON, JSON with bytes behind it, and gRPC. What is accepted holds exactly its elements, and
//! reads back as it was written.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use portcullis::wire::grpc::{self, ModelInferRequest, ModelInferResponse};
use portcullis::wire::json::{self, Limits};
use portcullis::wire::oip::{Explain, InferRequest, InferResponse, TENSORS_MAX};
use portcullis::wire::tensor::{Tensor, holds};
use portcullis_fuzz::{for_json, seed, seeds, within};
use prost::Message;

/// What decoding may take beside the body's own length: 256 entries of a few hundred bytes, and 4096 parts of as many.
const DECODING: usize = 4 << 20;

fuzz_target!(init: seeds(made), |data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    let body = Bytes::copy_from_slice(rest);
    let limits = Limits::for_body(rest.len());
    let room = for_json(rest.len()) + DECODING;
    match mode % 5 {
        0 => {
            let Ok(document) = json::parse(rest, &limits) else { return };
            if let Ok(request) = within(room, || InferRequest::from_json(&document)) {
                hold(&request.inputs);
                let _ = Explain::read(&request.parameters);
            }
            if let Ok(response) = within(room, || InferResponse::from_json(&document)) {
                answered(&response);
            }
        }
        1 => {
            // Two bytes say how long the JSON is.
            let Some((length, _)) = rest.split_first_chunk::<2>() else { return };
            let (length, body) = (usize::from(u16::from_le_bytes(*length)), body.slice(2..));
            if let Ok((request, _)) = within(room, || InferRequest::from_binary(length, &body, &limits)) {
                hold(&request.inputs);
            }
            if let Ok(response) = within(room, || InferResponse::from_binary(length, &body, &limits)) {
                answered(&response);
            }
        }
        2 => {
            let Ok(message) = grpc::unframe(&body, rest.len()) else { return };
            if let Ok(request) = within(room, || grpc::decode_request(message)) {
                asked(&request);
            }
        }
        3 => {
            if let Ok(request) = within(room, || grpc::decode_request(body)) {
                asked(&request);
            }
        }
        _ => {
            if let Ok(response) = within(room, || grpc::decode::<ModelInferResponse>(body)) {
                if let Ok(response) = within(room, || response.to_response()) {
                    answered(&response);
                }
            }
        }
    }
});

fn asked(request: &ModelInferRequest) {
    if let Ok(read) = request.to_request() {
        hold(&read.inputs);
        assert!(!read.inputs.is_empty());
    }
}

fn hold(tensors: &[Tensor]) {
    assert!(tensors.len() <= TENSORS_MAX);
    for tensor in tensors {
        assert!(tensor.elements().is_some_and(|count| holds(tensor.datatype, count, &tensor.data)), "{tensor:?}");
    }
}

/// An answer is written as it is read, in all three forms.
fn answered(response: &InferResponse) {
    hold(&response.outputs);
    let limits = Limits::for_body(1 << 20);
    let (length, body) = response.to_binary(|_| true).expect("bytes can always be written");
    let read = InferResponse::from_binary(length, &body, &limits).expect("what is written reads back");
    same(response, &read);
    if let Ok(text) = response.to_json() {
        let document = json::parse(&text, &Limits::for_body(text.len())).expect("what is written is strict JSON");
        same(response, &InferResponse::from_json(&document).expect("and reads back"));
    }
    // A dimension past i64, beside a zero, is not said in gRPC.
    if response.outputs.iter().all(|output| output.shape.iter().all(|length| i64::try_from(*length).is_ok())) {
        let message = ModelInferResponse::from(response).encode_to_vec();
        let decoded = grpc::decode::<ModelInferResponse>(message.into()).expect("what is written decodes");
        same(response, &decoded.to_response().expect("and reads back"));
    }
}

fn same(one: &InferResponse, other: &InferResponse) {
    assert_eq!((&one.model_name, &one.model_version, &one.id), (&other.model_name, &other.model_version, &other.id));
    assert!(one.outputs == other.outputs, "{:?} became {:?}", one.outputs, other.outputs);
}

fn made() -> Vec<Vec<u8>> {
    let inputs = r#"{"id":"1","inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,2.5],[3,-4e-3]]},{"name":"w","shape":[2],"datatype":"BYTES","data":["a","é"]}],"outputs":[{"name":"y","parameters":{"binary_data":true}}],"parameters":{"explain":"permutation_shap"}}"#;
    let outputs = r#"{"model_name":"m","model_version":"1","outputs":[{"name":"y","shape":[3],"datatype":"INT8","data":[-1,0,127]},{"name":"b","shape":[1],"datatype":"BOOL","data":[true]}]}"#;
    let binary = r#"{"model_name":"m","inputs":[{"name":"x","shape":[2],"datatype":"FP16","parameters":{"binary_data_size":4}}],"outputs":[{"name":"y","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":5}}]}"#;
    let asking = binary.replace(r#","outputs":[{"name":"y","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":5}}]"#, "");
    let answering = binary.replace(r#""inputs":[{"name":"x","shape":[2],"datatype":"FP16","parameters":{"binary_data_size":4}}],"#, "");
    let behind = |text: &str, bytes: &[u8]| seed(1, [&(text.len() as u16).to_le_bytes(), text.as_bytes(), bytes].concat());
    let document = json::parse(outputs.as_bytes(), &Limits::default()).expect("JSON");
    let response = InferResponse::from_json(&document).expect("an answer");
    let answer = ModelInferResponse::from(&response);
    let tensors: Vec<_> = answer.outputs.clone();
    let request = ModelInferRequest {
        model_name: "m".to_owned(),
        inputs: tensors,
        raw_input_contents: answer.raw_output_contents.clone(),
        ..Default::default()
    };
    vec![
        seed(0, inputs),
        seed(0, outputs),
        behind(&asking, &[0, 60, 0, 60]),
        behind(&answering, b"\x01\0\0\0a"),
        seed(2, grpc::frame(&request).expect("short")),
        seed(3, request.encode_to_vec()),
        seed(4, answer.encode_to_vec()),
    ]
}
