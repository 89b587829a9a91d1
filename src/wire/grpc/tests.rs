use http::{HeaderMap, StatusCode};
use proptest::prelude::*;
use prost::bytes::Bytes;
use serde_json::Value;

use super::*;
use crate::wire::oip::InferResponse;
use crate::wire::tensor::{Datatype, Port, Tensor};

fn input(name: &str, datatype: &str, shape: &[i64], contents: Option<InferTensorContents>) -> InferTensor {
    InferTensor {
        name: name.into(),
        datatype: datatype.into(),
        shape: shape.into(),
        contents: contents.map(Box::new),
        ..Default::default()
    }
}

fn asks(inputs: Vec<InferTensor>, raw: Vec<&'static [u8]>) -> ModelInferRequest {
    let raw_input_contents = raw.into_iter().map(Bytes::from_static).collect();
    ModelInferRequest { model_name: "m".into(), id: "7".into(), inputs, raw_input_contents, ..Default::default() }
}

/// Written by hand after the protocol's wire format, so that a wrong field number does not agree with itself.
#[test]
fn the_bytes_of_a_client_are_understood() {
    let bytes: &'static [u8] = b"\
        \x0a\x06digits\x12\x011\x1a\x0242\
        \x22\x0c\n\x06binary\x12\x02\x08\x01\
        \x2a\x10\n\x01x\x12\x04FP32\x1a\x02\x01\x02\x2a\x01\x00\
        \x32\x03\n\x01y\
        \x3a\x08\0\0\x80\x3f\0\0\0\x40";
    let bytes = Bytes::from_static(bytes);
    // The contents' stray byte is no field: protobuf refuses tag 0.
    assert_eq!(decode::<ModelInferRequest>(bytes), Err(Malformed::Message));
    let bytes: &'static [u8] = b"\
        \x0a\x06digits\x12\x011\x1a\x0242\
        \x22\x0c\n\x06binary\x12\x02\x08\x01\
        \x2a\x0d\n\x01x\x12\x04FP32\x1a\x02\x01\x02\
        \x32\x03\n\x01y\
        \x3a\x08\0\0\x80\x3f\0\0\0\x40\
        \xfa\x01\x01z";
    let message: ModelInferRequest = decode(Bytes::from_static(bytes)).unwrap();
    assert_eq!((message.model_name.as_str(), message.model_version.as_str()), ("digits", "1"));
    let request = message.to_request().unwrap();
    assert_eq!(request.id.as_deref(), Some("42"));
    assert_eq!(request.parameters["binary"], true);
    assert_eq!(request.outputs[0].name, "y");
    let data: Vec<u8> = [1_f32, 2.0].iter().flat_map(|n| n.to_le_bytes()).collect();
    assert_eq!(request.inputs, [Tensor { name: "x".into(), datatype: Datatype::Fp32, shape: vec![1, 2], data: data.into() }]);
}

fn unhex(text: &str) -> Bytes {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Made with tritonclient's own classes.
#[test]
fn the_bytes_of_tritonclient_are_understood_and_are_the_bytes_we_write() {
    let request: ModelInferRequest = decode(unhex(concat!(
        "0a066469676974731201311a02343222100a0169120b10fdffffffffffffffff0122070a016b1202080122080a017412031a0176",
        "2a0d0a01781204465033321a0201022a0d0a0173120542595445531a010232030a01793a080000803f000000403a0a02000000616200000000"
    )))
    .unwrap();
    let request = request.to_request().unwrap();
    assert_eq!(Value::Object(request.parameters), serde_json::json!({"i": -3, "k": true, "t": "v"}));
    assert_eq!(request.inputs[1].strings().collect::<Vec<_>>(), ["ab", ""]);

    let output = InferTensor { name: "y".into(), datatype: "FP16".into(), shape: vec![1, 2], ..Default::default() };
    let answer = ModelInferResponse {
        model_name: "m".into(),
        model_version: "1".into(),
        id: "7".into(),
        outputs: vec![output],
        raw_output_contents: vec![Bytes::from_static(&[1, 2, 3, 4])],
        ..Default::default()
    };
    assert_eq!(answer.encode_to_vec(), unhex("0a016d1201311a01372a0d0a01791204465031361a020102320401020304"));

    let port = Port { name: "x".into(), datatype: Datatype::Fp32, shape: vec![None, Some(64)] };
    let metadata = ModelMetadataResponse {
        name: "m".into(),
        versions: vec!["1".into()],
        platform: "onnx".into(),
        inputs: vec![(&port).into()],
        outputs: vec![TensorMetadata { name: "y".into(), ..Default::default() }],
    };
    assert_eq!(metadata.encode_to_vec(), unhex("0a016d1201311a046f6e6e7822160a01781204465033321a0bffffffffffffffffff01402a030a0179"));
    let server = ServerMetadataResponse { name: "p".into(), version: "1".into(), extensions: vec!["e".into()] };
    assert_eq!(server.encode_to_vec(), unhex("0a01701201311a0165"));
    let contents = InferTensorContents {
        bool_contents: vec![true],
        int_contents: vec![-1],
        int64_contents: vec![2],
        uint_contents: vec![3],
        uint64_contents: vec![4],
        fp32_contents: vec![5.0],
        fp64_contents: vec![6.0],
        bytes_contents: vec![Bytes::from_static(b"7")],
    };
    assert_eq!(contents.encode_to_vec(), unhex("0a0101120affffffffffffffffff011a01022201032a010432040000a0403a080000000000001840420137"));
}

#[test]
fn raw_contents_are_slices_of_the_message() {
    let framed = frame(&asks(vec![input("x", "INT8", &[4], None)], vec![b"abcd"])).unwrap();
    let message: ModelInferRequest = decode(unframe(&framed, 1000).unwrap()).unwrap();
    let data = message.to_request().unwrap().inputs[0].data.clone();
    assert!(framed.as_ptr_range().contains(&data.as_ptr()));
}

#[test]
fn typed_contents_are_narrowed_where_they_fit() {
    let read = |datatype: &str, count: i64, contents| asks(vec![input("x", datatype, &[count], Some(contents))], vec![]).to_request();
    let ints = |values: &[i32]| InferTensorContents { int_contents: values.into(), ..Default::default() };
    let uints = |values: &[u32]| InferTensorContents { uint_contents: values.into(), ..Default::default() };
    assert_eq!(read("INT8", 2, ints(&[-128, 127])).unwrap().inputs[0].data, &[0x80, 0x7f][..]);
    assert!(read("INT8", 1, ints(&[128])).is_err());
    assert!(read("INT16", 1, ints(&[40000])).is_err());
    assert!(read("INT32", 1, ints(&[i32::MIN])).is_ok());
    assert!(read("UINT8", 1, uints(&[255])).is_ok());
    assert!(read("UINT8", 1, uints(&[256])).is_err());
    assert!(read("UINT16", 1, uints(&[65536])).is_err());
    assert!(read("INT64", 1, ints(&[1])).is_err(), "another list than the datatype's");
    assert!(read("INT32", 2, ints(&[1])).is_err(), "too few");
    assert!(read("INT32", 0, ints(&[1])).is_err(), "too many");
    assert!(read("FP16", 1, InferTensorContents { fp32_contents: vec![1.0], ..Default::default() }).is_err());
    let bytes = InferTensorContents { bytes_contents: vec![Bytes::from_static(b"ab"), Bytes::new()], ..Default::default() };
    assert_eq!(read("BYTES", 2, bytes).unwrap().inputs[0].data, &b"\x02\0\0\0ab\0\0\0\0"[..]);
}

#[test]
fn what_does_not_hold_to_its_shape_is_named() {
    let place = |request: ModelInferRequest| request.to_request().unwrap_err().pointer;
    let ints = || Some(InferTensorContents { int_contents: vec![1], ..Default::default() });
    assert_eq!(place(asks(vec![], vec![])), "/inputs");
    assert_eq!(place(asks(vec![input("", "INT8", &[1], ints())], vec![])), "/inputs/0/name");
    assert_eq!(place(asks(vec![input("x", "STRING", &[1], ints())], vec![])), "/inputs/0/datatype");
    assert_eq!(place(asks(vec![input("x", "INT8", &[-1], ints())], vec![])), "/inputs/0/shape");
    assert_eq!(place(asks(vec![input("x", "INT8", &[i64::MAX, 3], ints())], vec![])), "/inputs/0/shape");
    assert_eq!(place(asks(vec![input("x", "INT8", &[1; 33], ints())], vec![])), "/inputs/0/shape");
    assert_eq!(place(asks(vec![input("x", "INT8", &[1], ints())], vec![b"a"])), "/inputs/0/contents");
    assert_eq!(place(asks(vec![input("x", "INT8", &[2], None)], vec![b"a"])), "/inputs/0");
    assert_eq!(place(asks(vec![input("x", "INT8", &[1], None)], vec![b"a", b"b"])), "/raw_input_contents");
    let twice = || input("x", "INT8", &[1], None);
    assert_eq!(place(asks(vec![twice(), twice()], vec![b"a", b"b"])), "/inputs/1/name");
    let mut shared = input("x", "INT8", &[1], None);
    shared.parameters.insert("shared_memory_region".into(), InferParameter::default());
    assert_eq!(place(asks(vec![shared], vec![b"a"])), "/inputs/0/parameters");
}

#[test]
fn an_answer_leaves_raw_and_comes_back() {
    let response = InferResponse {
        model_name: "m".into(),
        model_version: "1".into(),
        id: None,
        outputs: vec![Tensor { name: "y".into(), datatype: Datatype::Fp16, shape: vec![1, 2], data: Bytes::from_static(&[1, 2, 3, 4]) }],
    };
    let framed = frame(&ModelInferResponse::from(&response)).unwrap();
    let again: ModelInferResponse = decode(unframe(&framed, 1000).unwrap()).unwrap();
    assert_eq!(again.to_response().unwrap().outputs, response.outputs);
    let port = Port { name: "x".into(), datatype: Datatype::Fp32, shape: vec![None, Some(64)] };
    assert_eq!(TensorMetadata::from(&port).shape, [-1, 64]);
}

#[test]
fn a_frame_holds_one_message_within_its_cap() {
    let read = |bytes: &'static [u8]| unframe(&Bytes::from_static(bytes), 3);
    assert_eq!(read(b"\0\0\0\0\x03abc").unwrap(), "abc");
    assert_eq!(read(b"\0\0\0\0\0").unwrap(), "");
    assert_eq!(read(b"\0\0\0\0\x04abcd"), Err(Malformed::TooLong));
    assert_eq!(read(b"\0\xff\xff\xff\xff"), Err(Malformed::TooLong));
    assert_eq!(read(b"\x01\0\0\0\x03abc"), Err(Malformed::Compressed));
    assert_eq!(read(b"\x02\0\0\0\x03abc"), Err(Malformed::Frame));
    assert_eq!(read(b"\0\0\0\0"), Err(Malformed::Frame));
    assert_eq!(read(b""), Err(Malformed::Frame));
    assert_eq!(read(b"\0\0\0\0\x03ab"), Err(Malformed::Truncated));
    assert_eq!(read(b"\0\0\0\0\x03abc\0\0\0\0\0"), Err(Malformed::Trailing));
}

#[test]
fn a_message_may_have_as_many_entries_as_the_bound_and_no_more() {
    let empty = |count: usize| Bytes::from(b"\x2a\x00".repeat(count));
    assert_eq!(decode::<ModelInferRequest>(empty(ENTRIES_MAX)).unwrap().inputs.len(), ENTRIES_MAX);
    assert_eq!(decode::<ModelInferRequest>(empty(ENTRIES_MAX + 1)), Err(Malformed::TooManyEntries));
}

/// A parameter of six bytes takes more than a hundred in memory: a message of 1 MiB took 19.
#[test]
fn the_tensors_of_a_request_may_have_as_many_parts_as_the_bound_and_no_more() {
    let request = |parameters: usize, tag: u8, own: u8| {
        let mut tensor = Vec::new();
        for key in 0..parameters {
            tensor.extend_from_slice(&[own, 6, 10, 4]);
            tensor.extend_from_slice(format!("{key:04x}").as_bytes());
        }
        let mut message = vec![tag];
        prost::encoding::encode_varint(tensor.len() as u64, &mut message);
        message.extend_from_slice(&tensor);
        decode_request(message.into())
    };
    assert_eq!(request(PARTS_MAX, 0x2a, 0x22).unwrap().inputs[0].parameters.len(), PARTS_MAX);
    assert_eq!(request(PARTS_MAX + 1, 0x2a, 0x22), Err(Malformed::TooManyEntries));
    assert_eq!(request(PARTS_MAX, 0x32, 0x12).unwrap().outputs[0].parameters.len(), PARTS_MAX);
    assert_eq!(request(PARTS_MAX + 1, 0x32, 0x12), Err(Malformed::TooManyEntries));
    assert_eq!(decode_request(Bytes::from_static(b"\x2a\x7f\x22")), Err(Malformed::Message));
}

#[test]
fn groups_that_nest_without_end_are_refused() {
    let groups = Bytes::from(vec![0x7b_u8; 100_000]);
    assert_eq!(decode::<ModelInferRequest>(groups), Err(Malformed::Message));
}

#[test]
fn a_status_is_told_in_trailers() {
    let told = trailers(Code::NotFound, "50% of é\n");
    assert_eq!(told["grpc-status"], "5");
    assert_eq!(told["grpc-message"], "50%25 of %C3%A9%0A");
    assert!(!trailers(Code::Ok, "").contains_key("grpc-message"));
    assert_eq!(trailers(Code::Internal, &"x".repeat(5000))["grpc-message"].len(), MESSAGE_MAX);
    for (number, code) in Code::ALL.into_iter().enumerate() {
        assert_eq!(Code::read(&trailers(code, "")["grpc-status"]), code);
        assert_eq!(usize::from(code.number()), number);
    }
    assert_eq!(Code::read(&HeaderValue::from_static("17")), Code::Unknown);
    let of = |status: u16| Code::of(StatusCode::from_u16(status).unwrap()).number();
    assert_eq!([401, 404, 400, 413, 415, 429, 502, 503, 504].map(of), [16, 5, 3, 3, 3, 8, 14, 14, 4]);
}

#[test]
fn a_timeout_is_digits_and_a_unit() {
    let read = |text: &'static str| timeout(&HeaderValue::from_static(text));
    assert_eq!(read("1S"), Some(Duration::from_secs(1)));
    assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
    assert_eq!(read("250m"), Some(Duration::from_millis(250)));
    assert_eq!(read("5u"), Some(Duration::from_micros(5)));
    assert_eq!(read("5n"), Some(Duration::from_nanos(5)));
    assert_eq!(read("2M"), Some(Duration::from_secs(120)));
    for text in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "1 S", "1.5S"] {
        assert_eq!(read(text), None, "{text}");
    }
}

#[test]
fn methods_are_known_by_their_paths() {
    assert_eq!(Method::of("/inference.GRPCInferenceService/ModelInfer"), Some(Method::ModelInfer));
    assert_eq!(Method::of("/inference.GRPCInferenceService/ModelStreamInfer"), None);
    assert_eq!(Method::of("/inference.GRPCInferenceService/ModelInfer/"), None);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        let _ = unframe(&bytes, 100);
        if let Ok(message) = decode::<ModelInferRequest>(bytes) {
            let _ = message.to_request();
        }
    }
}

/// Made with tritonclient's own classes.
#[test]
fn a_request_that_came_as_json_is_said_as_a_message() {
    let document = serde_json::json!({
        "id": "7",
        "parameters": {"b": true, "d": 0.5, "u": 9_223_372_036_854_775_808_u64, "binary_data_output": true},
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0], "parameters": {"content_type": "np"}}],
        "outputs": [{"name": "y", "parameters": {"n": -3, "binary_data": true}}]
    });
    let request = crate::wire::oip::InferRequest::from_json(&document).unwrap();
    let expected = unhex(concat!(
        "1a013722070a016212020801220e0a0164120921000000000000e03f22100a0175120b288080808080808080800",
        "12a230a01781204465033321a02010222140a0c636f6e74656e745f7479706512041a026e7032150a017912100a016e120b10fdffffffffffffffff01",
        "3a080000803f00000040"
    ));
    assert_eq!(ModelInferRequest::from(&request).encode_to_vec(), expected);
}

#[test]
fn metadata_is_the_same_over_http() {
    let port = TensorMetadata { name: "x".into(), datatype: "FP32".into(), shape: vec![-1, 4] };
    let told = ModelMetadataResponse {
        name: "m".into(),
        versions: vec!["7".into()],
        platform: "p".into(),
        inputs: vec![port],
        outputs: vec![TensorMetadata { name: "y".into(), ..Default::default() }],
    };
    let told: Value = serde_json::from_slice(&told.to_json()).unwrap();
    let expected = serde_json::json!({"name": "m", "versions": ["7"], "platform": "p",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}], "outputs": [{"name": "y", "datatype": "", "shape": []}]});
    assert_eq!(told, expected);
}

#[test]
fn the_tensors_of_an_answer_may_have_as_many_parts_as_the_bound_and_no_more() {
    let parameter = |at: usize| (format!("{at:04x}"), InferParameter::default());
    let output = |parts: usize| InferTensor { parameters: (0..parts).map(parameter).collect(), ..Default::default() };
    // Raw contents are no tensors, and are not looked into.
    let raw = vec![Bytes::from_static(b"\xff\xff")];
    let answer = |parts| ModelInferResponse { outputs: vec![output(parts)], raw_output_contents: raw.clone(), ..Default::default() };
    assert!(decode_answer(answer(PARTS_MAX).encode_to_vec().into()).is_ok());
    assert_eq!(decode_answer(answer(PARTS_MAX + 1).encode_to_vec().into()), Err(Malformed::TooManyEntries));
}

#[test]
fn tensors_have_so_many_strings_together() {
    let strings = |count| Some(Box::new(InferTensorContents { bytes_contents: vec![Bytes::new(); count], ..Default::default() }));
    let tensor = |count| InferTensor { contents: strings(count), ..Default::default() };
    let half = STRINGS_MAX / 2;
    for (more, fits) in [(0, true), (1, false)] {
        let tensors = vec![tensor(half), tensor(half + more)];
        let answer = ModelInferResponse { outputs: tensors.clone(), ..Default::default() };
        assert_eq!(decode_answer(answer.encode_to_vec().into()).is_ok(), fits);
        let request = ModelInferRequest { inputs: tensors, ..Default::default() };
        assert_eq!(decode_request(request.encode_to_vec().into()).is_ok(), fits);
    }
}

#[test]
fn no_metadata_of_a_tensor_has_more_dimensions_than_a_request_may_give() {
    let port = |dimensions| TensorMetadata { shape: vec![-1; dimensions], ..Default::default() };
    for (dimensions, fits) in [(DIMENSIONS_MAX, true), (DIMENSIONS_MAX + 1, false)] {
        for told in [
            ModelMetadataResponse { inputs: vec![port(dimensions)], ..Default::default() },
            ModelMetadataResponse { outputs: vec![port(0), port(dimensions)], ..Default::default() },
        ] {
            assert_eq!(decode_metadata(told.encode_to_vec().into()).is_ok(), fits);
        }
    }
}

#[test]
fn what_an_upstream_says_is_read_as_it_was_before_it_was_escaped() {
    let read = |escaped: &'static str| told(&HeaderMap::from_iter([("grpc-message".parse().unwrap(), HeaderValue::from_static(escaped))]));
    assert_eq!(read("50%25 of %C3%a9").as_deref(), Some("50% of é"));
    assert_eq!(read("100% of it%").as_deref(), Some("100% of it%"), "no escape");
    assert_eq!(read("%zz%4").as_deref(), Some("%zz%4"));
    assert_eq!(read("%FF").as_deref(), Some("\u{fffd}"));
    assert_eq!((read(""), told(&HeaderMap::new())), (None, None));
    assert_eq!(told(&trailers(Code::Internal, "50% of é\n")).as_deref(), Some("50% of é\n"), "what we write ourselves");
}

#[test]
fn a_status_stands_in_the_trailers_or_where_there_are_none_in_the_headers() {
    let said = |code| trailers(code, "");
    let of = |headers: &HeaderMap, behind: Option<&HeaderMap>| Code::of_call(headers, behind).map(|(code, _)| code);
    assert_eq!(of(&HeaderMap::new(), Some(&said(Code::Ok))), Some(Code::Ok));
    assert_eq!(of(&said(Code::NotFound), None), Some(Code::NotFound));
    assert_eq!(of(&said(Code::Ok), Some(&said(Code::DataLoss))), Some(Code::DataLoss));
    assert_eq!(of(&said(Code::Ok), Some(&HeaderMap::new())), None);
    assert_eq!(of(&HeaderMap::new(), None), None);
}

#[test]
fn a_timeout_is_written_as_it_is_read() {
    for (duration, text) in [
        (Duration::from_secs(60), "60000m"),
        (Duration::from_micros(1), "1m"),
        (Duration::ZERO, "1m"),
        (Duration::from_millis(99_999_999), "99999999m"),
        (Duration::from_millis(100_000_000), "100000S"),
        (Duration::MAX, "99999999S"),
    ] {
        assert_eq!(timeout_value(duration), text);
        assert!(timeout(&timeout_value(duration)).is_some());
    }
}
