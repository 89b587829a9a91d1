//! The JSON that says the same as tensors which came in another encoding, for schemas.

use half::{bf16, f16};
use serde_json::{Map, Number, Value, json};

use super::{Broken, Error, Fault};
use crate::wire::oip::InferRequest;
use crate::wire::tensor::{Datatype, Tensor};

/// The request as JSON, with the elements of every tensor as one flat list: `document` where it has a JSON part, with the
/// binary tensors filled in. At most `most` elements, because a JSON value takes many times the memory of an element.
pub(super) fn of(request: &InferRequest, document: Option<Value>, most: usize) -> Result<Value, Error> {
    let elements = request.inputs.iter().try_fold(0_usize, |sum, tensor| sum.checked_add(tensor.elements()?));
    if elements.is_none_or(|elements| elements > most) {
        return Err(Error::CallerSentTooMuch);
    }
    let mut document = document.unwrap_or_else(|| bare(request));
    let mut inputs = document.get_mut("inputs").and_then(Value::as_array_mut).map(|inputs| inputs.iter_mut()).into_iter().flatten();
    for (index, tensor) in request.inputs.iter().enumerate() {
        if let Some(Value::Object(input)) = inputs.next()
            && !input.contains_key("data")
        {
            let broken = |broken| Error::CallerSentTensor(Fault { broken, list: "inputs", index: Some(index) });
            input.insert("data".into(), Value::Array(list(tensor).map_err(broken)?));
        }
    }
    Ok(document)
}

fn bare(request: &InferRequest) -> Value {
    let mut members = Map::new();
    if let Some(id) = &request.id {
        members.insert("id".into(), id.as_str().into());
    }
    if !request.parameters.is_empty() {
        members.insert("parameters".into(), Value::Object(request.parameters.clone()));
    }
    let input = |tensor: &Tensor| json!({"name": tensor.name, "datatype": tensor.datatype.as_str(), "shape": tensor.shape});
    members.insert("inputs".into(), request.inputs.iter().map(input).collect());
    if !request.outputs.is_empty() {
        members.insert("outputs".into(), request.outputs.iter().map(|output| json!({"name": output.name})).collect());
    }
    Value::Object(members)
}

/// The elements, in order. JSON knows no NaN and no infinity, and its strings are UTF-8.
fn list(tensor: &Tensor) -> Result<Vec<Value>, Broken> {
    fn each<const W: usize>(data: &[u8], value: impl Fn([u8; W]) -> Option<Value>) -> Result<Vec<Value>, Broken> {
        data.as_chunks::<W>().0.iter().map(|bytes| value(*bytes).ok_or(Broken::NotFinite)).collect()
    }
    let float = |value: f64| Number::from_f64(value).map(Value::Number);
    let data = &tensor.data[..];
    match tensor.datatype {
        Datatype::Bool => each(data, |[byte]| Some((byte != 0).into())),
        Datatype::Uint8 => each(data, |bytes| Some(u8::from_le_bytes(bytes).into())),
        Datatype::Uint16 => each(data, |bytes| Some(u16::from_le_bytes(bytes).into())),
        Datatype::Uint32 => each(data, |bytes| Some(u32::from_le_bytes(bytes).into())),
        Datatype::Uint64 => each(data, |bytes| Some(u64::from_le_bytes(bytes).into())),
        Datatype::Int8 => each(data, |bytes| Some(i8::from_le_bytes(bytes).into())),
        Datatype::Int16 => each(data, |bytes| Some(i16::from_le_bytes(bytes).into())),
        Datatype::Int32 => each(data, |bytes| Some(i32::from_le_bytes(bytes).into())),
        Datatype::Int64 => each(data, |bytes| Some(i64::from_le_bytes(bytes).into())),
        Datatype::Fp16 => each(data, |bytes| float(f16::from_le_bytes(bytes).into())),
        Datatype::Bf16 => each(data, |bytes| float(bf16::from_le_bytes(bytes).into())),
        Datatype::Fp32 => each(data, |bytes| float(f32::from_le_bytes(bytes).into())),
        Datatype::Fp64 => each(data, |bytes| float(f64::from_le_bytes(bytes))),
        Datatype::Bytes => strings(data).ok_or(Broken::Bytes),
    }
}

fn strings(mut data: &[u8]) -> Option<Vec<Value>> {
    let mut strings = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk::<4>() {
        let (string, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        strings.push(std::str::from_utf8(string).ok()?.into());
        data = rest;
    }
    Some(strings)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn request(datatype: Datatype, shape: &[u64], data: &[u8]) -> InferRequest {
        let tensor = Tensor { name: "x".into(), datatype, shape: shape.to_vec(), data: Bytes::copy_from_slice(data) };
        InferRequest { inputs: vec![tensor], ..InferRequest::default() }
    }

    #[test]
    fn tensors_become_the_json_that_says_the_same() {
        let said = of(&request(Datatype::Fp32, &[1, 2], &[0, 0, 192, 63, 0, 0, 128, 191]), None, 2).unwrap();
        assert_eq!(said, json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -1.0]}]}));
        let said = of(&request(Datatype::Bytes, &[2], b"\x02\0\0\0\xc3\xa9\0\0\0\0"), None, 2).unwrap();
        assert_eq!(said["inputs"][0]["data"], json!(["é", ""]));
        let part = json!({"id": "7", "inputs": [{"name": "x", "parameters": {"binary_data_size": 1}}]});
        let said = of(&request(Datatype::Uint8, &[1], &[9]), Some(part), 1).unwrap();
        assert_eq!(said["inputs"][0]["data"], json!([9]));
        assert_eq!(said["id"], "7");
    }

    #[test]
    fn what_json_cannot_say_and_more_than_it_could_hold_is_refused() {
        let broken = |error| matches!(error, Err(Error::CallerSentTensor(_)));
        assert!(broken(of(&request(Datatype::Fp32, &[1], &f32::NAN.to_le_bytes()), None, 9)));
        assert!(broken(of(&request(Datatype::Bytes, &[1], b"\x01\0\0\0\xff"), None, 9)));
        assert!(of(&request(Datatype::Uint8, &[9], &[0; 9]), None, 9).is_ok());
        assert_eq!(of(&request(Datatype::Uint8, &[10], &[0; 10]), None, 9), Err(Error::CallerSentTooMuch));
    }
}
