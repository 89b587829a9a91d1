use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::wire::tensor::{Datatype, Port};

fn one(datatype: &str, shape: Value, data: Value) -> Result<Bytes, Shape> {
    let document = json!({"inputs": [{"name": "x", "datatype": datatype, "shape": shape, "data": data}]});
    InferRequest::from_json(&document).map(|request| request.inputs[0].data.clone())
}

fn broken(document: &Value) -> (String, &'static str) {
    let shape = InferRequest::from_json(document).unwrap_err();
    (shape.pointer, shape.rule)
}

#[test]
fn a_request_is_read() {
    let document = json!({
        "id": "42",
        "parameters": {"sequence_id": 7, "binary_data_output": true},
        "inputs": [
            {"name": "a", "shape": [2, 2], "datatype": "UINT32", "data": [1, 2, 3, 4]},
            {"name": "b", "shape": [1], "datatype": "BYTES", "data": ["hé"]},
            {"name": "c", "shape": [0, 3], "datatype": "FP32", "data": []},
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": false}}, {"name": "z"}],
    });
    let request = InferRequest::from_json(&document).unwrap();
    assert_eq!(request.id.as_deref(), Some("42"));
    assert_eq!(request.inputs[0].data, [1_u32, 2, 3, 4].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>());
    assert_eq!(request.inputs[1].data, &b"\x03\0\0\0h\xc3\xa9"[..]);
    assert_eq!(request.inputs[2].data.len(), 0);
    assert!(!request.wants_binary("y") && request.wants_binary("z") && request.wants_binary("other"));
}

#[test]
fn data_is_flat_or_nested_as_the_shape_says() {
    let flat = one("INT8", json!([2, 3]), json!([1, 2, 3, 4, 5, 6])).unwrap();
    assert_eq!(one("INT8", json!([2, 3]), json!([[1, 2, 3], [4, 5, 6]])).unwrap(), flat);
    for data in
        [json!([[1, 2], [3, 4], [5, 6]]), json!([[1, 2, 3], 4, 5, 6]), json!([[[1], [2], [3]], [[4], [5], [6]]]), json!([1, 2, 3, 4, 5])]
    {
        assert!(one("INT8", json!([2, 3]), data).is_err());
    }
    assert!(one("INT8", json!([1]), json!([[1]])).is_err());
    assert_eq!(one("INT8", json!([]), json!([7])).unwrap(), &[7][..]);
    assert!(one("INT8", json!([]), json!(7)).is_err());
}

#[test]
fn an_element_fits_its_type_or_is_refused() {
    for (datatype, least, most, past) in [
        ("UINT8", json!(0), json!(255), json!(256)),
        ("UINT16", json!(0), json!(65535), json!(65536)),
        ("UINT32", json!(0), json!(u32::MAX), json!(1_u64 << 32)),
        ("UINT64", json!(0), json!(u64::MAX), json!(1.8446744073709552e19)),
        ("INT8", json!(-128), json!(127), json!(128)),
        ("INT16", json!(-32768), json!(32767), json!(-32769)),
        ("INT32", json!(i32::MIN), json!(i32::MAX), json!(i64::from(i32::MIN) - 1)),
        ("INT64", json!(i64::MIN), json!(i64::MAX), json!(u64::MAX)),
        ("FP32", json!(-3.4028234e38), json!(1e-50), json!(1e39)),
        ("FP64", json!(-1.7e308), json!(5e-324), json!("1")),
        ("BOOL", json!(false), json!(true), json!(1)),
        ("BYTES", json!(""), json!("x"), json!(1)),
    ] {
        assert!(one(datatype, json!([2]), json!([least, most])).is_ok(), "{datatype}");
        assert!(one(datatype, json!([1]), json!([past])).is_err(), "{datatype}");
        assert!(one(datatype, json!([1]), json!([null])).is_err(), "{datatype}");
    }
    assert!(one("INT32", json!([1]), json!([1.0])).is_err());
    assert!(one("UINT8", json!([1]), json!([-1])).is_err());
    assert_eq!(one("FP16", json!([1]), json!([1.0])).unwrap_err().rule, "datatype");
    assert_eq!(one("BF16", json!([1]), json!([1.0])).unwrap_err().rule, "datatype");
}

#[test]
fn what_does_not_hold_to_its_shape_is_named() {
    let input = |more: Value| {
        let mut input = json!({"name": "x", "datatype": "UINT8", "shape": [1], "data": [1]});
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        input
    };
    for (document, pointer, rule) in [
        (json!([]), "", "type"),
        (json!({}), "/inputs", "required"),
        (json!({"inputs": []}), "/inputs", "range"),
        (json!({"inputs": [1]}), "/inputs/0", "type"),
        (json!({"inputs": [{"datatype": "UINT8"}]}), "/inputs/0/name", "required"),
        (json!({"inputs": [input(json!({"datatype": "uint8"}))]}), "/inputs/0/datatype", "datatype"),
        (json!({"inputs": [input(json!({"shape": [-1]}))]}), "/inputs/0/shape/0", "type"),
        (json!({"inputs": [input(json!({"shape": [1.0]}))]}), "/inputs/0/shape/0", "type"),
        (json!({"inputs": [input(json!({"shape": [1_u64 << 40, 1_u64 << 40]}))]}), "/inputs/0/shape", "range"),
        (json!({"inputs": [input(json!({"shape": vec![1; 33]}))]}), "/inputs/0/shape", "range"),
        (json!({"inputs": [input(json!({"shape": [1_u64 << 60]}))]}), "/inputs/0/data", "elements"),
        (json!({"inputs": [input(json!({})), input(json!({}))]}), "/inputs/1/name", "duplicate"),
        (json!({"inputs": [input(json!({"parameters": {"binary_data_size": 1}}))]}), "/inputs/0/data", "binary"),
        (json!({"inputs": [input(json!({"parameters": {"shared_memory_region": "r"}}))]}), "/inputs/0/parameters", "shared_memory"),
        (json!({"inputs": [input(json!({"parameters": {"a": {}}}))]}), "/inputs/0/parameters", "type"),
        (
            json!({"inputs": [input(json!({}))], "outputs": [{"name": "y", "parameters": {"classification": 3}}]}),
            "/outputs/0/parameters",
            "classification",
        ),
        (json!({"inputs": [input(json!({}))], "id": 7}), "/id", "type"),
        (json!({"inputs": [input(json!({}))], "id": "x".repeat(513)}), "/id", "range"),
        (json!({"inputs": [input(json!({}))], "outputs": [{"name": "y"}, {"name": "y"}]}), "/outputs/1/name", "duplicate"),
        (
            json!({"inputs": [input(json!({}))], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}),
            "/outputs/0/parameters/binary_data",
            "type",
        ),
    ] {
        assert_eq!(broken(&document), (pointer.to_owned(), rule), "{document}");
    }
    assert!(InferRequest::from_json(&json!({"inputs": [input(json!({"shape": vec![1; 32]}))]})).is_ok());
    let many = |count: usize| json!({"inputs": (0..count).map(|at| input(json!({"name": at.to_string()}))).collect::<Vec<_>>()});
    assert!(InferRequest::from_json(&many(TENSORS_MAX)).is_ok());
    assert_eq!(broken(&many(TENSORS_MAX + 1)).1, "range");
}

fn binary(document: &Value, tail: &[u8]) -> Result<InferRequest, Fault> {
    let head = document.to_string();
    let body = Bytes::from([head.as_bytes(), tail].concat());
    InferRequest::from_binary(head.len(), &body, &json::Limits::default()).map(|(request, _)| request)
}

#[test]
fn binary_tensors_are_slices_of_the_body_and_may_be_mixed_with_json() {
    let input = |name: &str, size: u64| json!({"name": name, "datatype": "FP16", "shape": [2], "parameters": {"binary_data_size": size}});
    let document = json!({"inputs": [input("a", 4), {"name": "b", "datatype": "INT8", "shape": [1], "data": [5]}, input("c", 4)]});
    let request = binary(&document, b"aaaacccc").unwrap();
    let data: Vec<&[u8]> = request.inputs.iter().map(|input| &input.data[..]).collect();
    assert_eq!(data, [&b"aaaa"[..], &[5], b"cccc"]);
    for (document, tail) in [
        (document.clone(), &b"aaaaccc"[..]),
        (document.clone(), b"aaaaccccx"),
        (document, b""),
        (json!({"inputs": [input("a", 2)]}), b"aa"),
        (json!({"inputs": [input("a", 6)]}), b"aaaaaa"),
        (json!({"inputs": [input("a", u64::MAX)]}), b"aaaa"),
    ] {
        assert!(matches!(binary(&document, tail), Err(Fault::Shape(_))));
    }
    let body = Bytes::from_static(b"{}");
    assert!(matches!(InferRequest::from_binary(3, &body, &json::Limits::default()), Err(Fault::Shape(_))));
    assert!(matches!(InferRequest::from_binary(1, &body, &json::Limits::default()), Err(Fault::Json(json::Error::Truncated(_)))));
    assert!(matches!(InferRequest::from_binary(0, &body, &json::Limits::default()), Err(Fault::Json(json::Error::Empty))));
}

/// The body that tritonclient makes of two numpy arrays and a list.
#[test]
fn the_bytes_of_tritonclient_are_understood() {
    let head = concat!(
        r#"{"id":"42","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}},"#,
        r#"{"name":"j","shape":[2],"datatype":"INT32","data":[-1,7]},"#,
        r#"{"name":"s","shape":[2],"datatype":"BYTES","parameters":{"binary_data_size":10}}],"#,
        r#""outputs":[{"name":"y","parameters":{"binary_data":true}},{"name":"z","parameters":{"binary_data":false}}]}"#
    );
    assert_eq!(head.len(), 349);
    let body = Bytes::from([head.as_bytes(), b"\x00\x00\x80?\x00\x00\x00@\x02\x00\x00\x00ab\x00\x00\x00\x00"].concat());
    let (request, document) = InferRequest::from_binary(349, &body, &json::Limits::default()).unwrap();
    assert_eq!(document["id"], "42");
    assert_eq!(request.inputs[1].data, &b"\xff\xff\xff\xff\x07\0\0\0"[..]);
    assert_eq!(request.inputs[2].strings().collect::<Vec<_>>(), ["ab", ""]);
    assert!(request.wants_binary("y") && !request.wants_binary("z"));
    assert!(body.as_ptr_range().contains(&request.inputs[0].data.as_ptr()));
}

#[test]
fn the_header_is_digits_alone() {
    let read = |text: &'static str| header_length(&HeaderValue::from_static(text));
    assert_eq!(read("120"), Some(120));
    for text in ["", "-1", "+1", " 1", "1x", "0x1", "99999999999999999999999"] {
        assert_eq!(read(text), None);
    }
}

fn tensor(name: &str, datatype: Datatype, shape: &[u64], data: impl Into<Vec<u8>>) -> Tensor {
    Tensor { name: name.into(), datatype, shape: shape.to_vec(), data: Bytes::from(data.into()) }
}

fn answer(outputs: Vec<Tensor>) -> InferResponse {
    InferResponse { model_name: "m".into(), model_version: "1".into(), id: Some("7".into()), outputs }
}

#[test]
fn an_answer_is_written_as_it_was_asked_for() {
    let floats: Vec<u8> = [0.1_f32, -2.0].iter().flat_map(|n| n.to_le_bytes()).collect();
    let response = answer(vec![
        tensor("y", Datatype::Fp32, &[1, 2], floats.clone()),
        tensor("s", Datatype::Bytes, &[1], *b"\x02\0\0\0\"a"),
        tensor("t", Datatype::Bool, &[2], [0, 1]),
    ]);
    let text = concat!(
        r#"{"model_name":"m","model_version":"1","id":"7","outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"data":[0.1,-2.0]},"#,
        r#"{"name":"s","datatype":"BYTES","shape":[1],"data":["\"a"]},{"name":"t","datatype":"BOOL","shape":[2],"data":[false,true]}]}"#
    );
    assert_eq!(response.to_json().unwrap(), text);
    let request = InferRequest {
        binary_output: true,
        outputs: vec![RequestedOutput { name: "s".into(), binary: Some(false), ..Default::default() }],
        ..InferRequest::default()
    };
    let encoded = response.encode(&request).unwrap();
    let length = encoded.header_length.unwrap();
    assert_eq!(&encoded.body[length..], [&floats[..], &[0, 1]].concat());
    let again = InferResponse::from_binary(length, &encoded.body, &json::Limits::default()).unwrap();
    assert_eq!(again.outputs, response.outputs);
    assert_eq!(response.encode(&InferRequest::default()).unwrap().header_length, None);
}

#[test]
fn what_json_cannot_say_is_refused_and_binary_says_it() {
    let nan = answer(vec![tensor("y", Datatype::Fp32, &[1], f32::NAN.to_le_bytes())]);
    assert_eq!(nan.to_json(), Err(Unwritable::NotFinite));
    assert!(nan.to_binary(|_| true).is_ok());
    let infinite = answer(vec![tensor("y", Datatype::Fp64, &[1], f64::INFINITY.to_le_bytes())]);
    assert_eq!(infinite.to_json(), Err(Unwritable::NotFinite));
    assert_eq!(answer(vec![tensor("y", Datatype::Fp16, &[1], [0, 0])]).to_json(), Err(Unwritable::BinaryOnly));
    assert_eq!(answer(vec![tensor("y", Datatype::Bytes, &[1], *b"\x01\0\0\0\xff")]).to_json(), Err(Unwritable::BinaryOnly));
    assert_eq!(answer(vec![tensor("y", Datatype::Fp32, &[2], [0; 4])]).to_json(), Err(Unwritable::Malformed));
}

#[test]
fn metadata_says_minus_one_where_a_dimension_is_free() {
    let port = Port { name: "x".into(), datatype: Datatype::Fp32, shape: vec![None, Some(64)] };
    assert_eq!(
        model_metadata("m", &["1"], "onnx", &[port], &[]),
        r#"{"name":"m","versions":["1"],"platform":"onnx","inputs":[{"name":"x","datatype":"FP32","shape":[-1,64]}],"outputs":[]}"#
    );
    assert_eq!(server_metadata("p", "1", &["binary_tensor_data"]), r#"{"name":"p","version":"1","extensions":["binary_tensor_data"]}"#);
    assert_eq!(model_ready("m", true), r#"{"name":"m","ready":true}"#);
}

proptest! {
    #[test]
    fn floats_come_back_as_they_were(values in proptest::collection::vec(any::<f32>().prop_filter("finite", |n| n.is_finite()), 0..40)) {
        let data: Vec<u8> = values.iter().flat_map(|n| n.to_le_bytes()).collect();
        let response = answer(vec![tensor("y", Datatype::Fp32, &[values.len() as u64], data)]);
        let text = response.to_json().unwrap();
        let again = InferResponse::from_json(&json::parse(&text, &json::Limits::default()).unwrap()).unwrap();
        prop_assert_eq!(again.outputs, response.outputs);
    }

    #[test]
    fn no_bytes_make_it_panic(header in 0_usize..80, tail in proptest::collection::vec(any::<u8>(), 0..40), size: u64, length: u64) {
        let head = json!({"inputs": [{"name": "x", "datatype": "BYTES", "shape": [length], "parameters": {"binary_data_size": size % 50}}]});
        let body = Bytes::from([head.to_string().as_bytes(), &tail].concat());
        let _ = InferRequest::from_binary(header, &body, &json::Limits::default());
        let _ = InferRequest::from_binary(head.to_string().len(), &body, &json::Limits::default());
    }
}

#[test]
fn a_key_that_other_readers_take_for_one_that_was_checked_is_refused() {
    let tensor = json!({"name": "x", "datatype": "FP32", "shape": [1], "data": [1]});
    let more = json!({"inputs": [tensor], "Inputs": [tensor]});
    assert_eq!(InferRequest::from_json(&more).unwrap_err().rule, "look_alike");
    let shaped = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1], "Data": [2]}]});
    assert_eq!(InferRequest::from_json(&shaped).unwrap_err().rule, "look_alike");
}
