//! `POST /v1/embeddings` for a model that runs here: what is asked to be embedded, and the answer's body.
//!
//! See <https://platform.openai.com/docs/api-reference/embeddings>. Nothing here embeds, and a request that goes on to an upstream is not read by it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use serde_json::Value;

use crate::wire::asked::Fields;
use crate::wire::shape::Shape;
use crate::wire::tensor::{Datatype, Tensor, holds};

/// The most inputs of one request, and the most tokens of one input: the dialect's own bound on every array.
pub const MAX_INPUTS: usize = 2048;

/// The output of a model that holds its vectors.
pub const VECTORS: &str = "embedding";

/// The output of a model that says how many tokens of each text it read.
pub const TOKENS: &str = "tokens";

/// The most places of token lists once they are filled up to the longest of them, 8 MiB of numbers. A few bytes of a body would otherwise
/// become any number of them.
pub const MAX_PLACES: usize = 1 << 20;

/// One input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input<'v> {
    /// A text, not empty.
    Text(&'v str),
    /// Tokens, at least one.
    Tokens(Vec<u32>),
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// A list of numbers.
    #[default]
    Float,
    /// 32-bit little-endian floats, as base64. OpenAI's own Python client asks for it and decodes it unseen.
    Base64,
}

/// What a request asks to be embedded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'v> {
    /// 1 to [`MAX_INPUTS`], in their order.
    pub inputs: Vec<Input<'v>>,
    /// How the vectors are to be written.
    pub encoding: Encoding,
    /// How many numbers of each vector are wanted, at least 1; all of them where it is not told. Whether the model has as many is not known here: see [`shorten`].
    pub dimensions: Option<usize>,
}

impl<'v> Request<'v> {
    /// Reads `input`, `encoding_format` and `dimensions` of a request's document.
    ///
    /// # Errors
    /// The first member that does not hold to its shape.
    pub fn read(document: &'v Value) -> Result<Self, Shape> {
        let fields = Fields::of(document)?;
        let encoding = match fields.find("encoding_format").map(Value::as_str) {
            None => Encoding::default(),
            Some(Some("float")) => Encoding::Float,
            Some(Some("base64")) => Encoding::Base64,
            Some(Some(_)) => return Err(Shape::new("/encoding_format", "enum", "must be float or base64")),
            Some(None) => return Err(Shape::new("/encoding_format", "type", "must be a string")),
        };
        let dimensions = fields.positive("dimensions")?.map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        Ok(Self { inputs: inputs(fields)?, encoding, dimensions })
    }

    /// The same as tensors: `text`, or `input_ids` and `attention_mask` of a model that reads at most `longest` tokens of a text.
    ///
    /// # Errors
    /// The first input that has more tokens, or token lists that take more than [`MAX_PLACES`] together. Texts are the model's own to cut.
    pub fn tensors(&self, longest: usize) -> Result<Vec<Tensor>, Shape> {
        let mut rows: Vec<&[u32]> = Vec::new();
        let mut texts = BytesMut::new();
        for (at, input) in self.inputs.iter().enumerate() {
            match input {
                Input::Text(text) => {
                    let length =
                        u32::try_from(text.len()).map_err(|_| Shape::new(format!("/input/{at}"), "range", "must be below 4 GiB"))?;
                    texts.put_u32_le(length);
                    texts.put_slice(text.as_bytes());
                }
                // Rows are filled up to the longest: one past the model's limit would make all of them as long.
                Input::Tokens(tokens) if tokens.len() > longest => {
                    return Err(Shape::new(format!("/input/{at}"), "range", "has more tokens than the model takes"));
                }
                Input::Tokens(tokens) => rows.push(tokens),
            }
        }
        if rows.is_empty() {
            let shape = vec![self.inputs.len() as u64];
            return Ok(vec![Tensor { name: "text".to_owned(), datatype: Datatype::Bytes, shape, data: texts.freeze() }]);
        }
        let longest = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        let places = rows.len().saturating_mul(longest);
        if places > MAX_PLACES {
            return Err(Shape::new("/input", "range", "the lists of tokens are too many and too unlike in length"));
        }
        let tensor = |name: &str, of: fn(Option<&u32>) -> i64| {
            let mut data = BytesMut::with_capacity(places * size_of::<i64>());
            for row in &rows {
                row.iter().for_each(|token| data.put_i64_le(of(Some(token))));
                (row.len()..longest).for_each(|_| data.put_i64_le(of(None)));
            }
            let shape = vec![rows.len() as u64, longest as u64];
            Tensor { name: name.to_owned(), datatype: Datatype::Int64, shape, data: data.freeze() }
        };
        let ids = tensor("input_ids", |token| token.map_or(0, |token| i64::from(*token)));
        Ok(vec![ids, tensor("attention_mask", |token| i64::from(token.is_some()))])
    }
}

/// The vectors in a model's answer to so many inputs: its `embedding`, `FP32` of two dimensions, all of it finite. `None` where it has other
/// ones: the model broke its contract.
#[must_use]
pub fn embedded(answer: &[Tensor], inputs: usize) -> Option<Vec<Vec<f32>>> {
    let vectors = answer.iter().find(|tensor| tensor.name == VECTORS && tensor.datatype == Datatype::Fp32)?;
    let [rows, width] = vectors.shape[..] else { return None };
    let width = usize::try_from(width).ok().filter(|width| *width > 0)?.checked_mul(size_of::<f32>())?;
    if rows != inputs as u64 || !holds(Datatype::Fp32, vectors.elements()?, &vectors.data) {
        return None;
    }
    let row = |bytes: &[u8]| -> Vec<f32> { bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect() };
    let vectors: Vec<Vec<f32>> = vectors.data.chunks_exact(width).map(row).collect();
    vectors.iter().flatten().all(|number| number.is_finite()).then_some(vectors)
}

/// Vectors of one length as the tensor that they came in, once they are shorter.
#[must_use]
pub fn tensor(vectors: &[Vec<f32>]) -> Tensor {
    let data: Vec<u8> = vectors.iter().flatten().flat_map(|number| number.to_le_bytes()).collect();
    let shape = vec![vectors.len() as u64, vectors.first().map_or(0, Vec::len) as u64];
    Tensor { name: VECTORS.to_owned(), datatype: Datatype::Fp32, shape, data: data.into() }
}

/// How many tokens a model read of so many texts of at most `longest` tokens each, by its output `tokens`, `INT64` of one dimension. `None`
/// where it tells other ones: what is charged hangs on it.
#[must_use]
pub fn tokens_read(answer: &[Tensor], inputs: usize, longest: usize) -> Option<u64> {
    let tokens = answer.iter().find(|tensor| tensor.name == TOKENS && tensor.datatype == Datatype::Int64)?;
    if tokens.shape != [inputs as u64] || !holds(Datatype::Int64, inputs, &tokens.data) {
        return None;
    }
    let mut counts = tokens.data.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
    counts.try_fold(0_u64, |sum, count| (count <= longest as u64).then(|| sum.saturating_add(count)))
}

/// A string, strings, tokens, or lists of tokens.
fn inputs(fields: Fields<'_>) -> Result<Vec<Input<'_>>, Shape> {
    let input = fields.find("input").ok_or_else(|| Shape::new("/input", "required", "an input must be given"))?;
    let list = match input {
        Value::String(_) => return Ok(vec![one(input, String::new)?]),
        Value::Array(list) if list.first().is_some_and(Value::is_number) => return Ok(vec![one(input, String::new)?]),
        Value::Array(list) if list.is_empty() => return Err(Shape::new("/input", "range", "must not be empty")),
        Value::Array(list) if list.len() > MAX_INPUTS => return Err(Shape::new("/input", "range", "must have at most 2048 items")),
        Value::Array(list) => list,
        _ => return Err(Shape::new("/input", "type", "must be a string, strings, tokens or lists of tokens")),
    };
    if !(list.iter().all(Value::is_string) || list.iter().all(Value::is_array)) {
        return Err(Shape::new("/input", "type", "must be a string, strings, tokens or lists of tokens"));
    }
    list.iter().enumerate().map(|(at, item)| one(item, || format!("/{at}"))).collect()
}

/// One text or list of tokens, at a place within `/input`.
fn one(value: &Value, place: impl Fn() -> String) -> Result<Input<'_>, Shape> {
    let wrong = |rule, text| Shape::new(format!("/input{}", place()), rule, text);
    match value {
        Value::String(text) if text.is_empty() => Err(wrong("range", "must not be empty")),
        Value::String(text) => Ok(Input::Text(text)),
        Value::Array(tokens) if tokens.is_empty() => Err(wrong("range", "must not be empty")),
        Value::Array(tokens) if tokens.len() > MAX_INPUTS => Err(wrong("range", "must have at most 2048 tokens")),
        Value::Array(tokens) => {
            let token = |token: &Value| token.as_u64().and_then(|token| u32::try_from(token).ok());
            let tokens = tokens.iter().map(token).collect::<Option<_>>();
            tokens.map(Input::Tokens).ok_or_else(|| wrong("type", "must be non-negative integers below 2^32"))
        }
        _ => Err(wrong("type", "must be a string or tokens")),
    }
}

/// Takes the first `dimensions` numbers of a vector and brings them to length 1 again, as the dialect's owner does. `false`, and the vector as it was, where
/// it has fewer: the caller is at fault then. A vector that has exactly as many is not touched.
///
/// It says something of the text only for models that were trained to be cut (Matryoshka representation learning, arXiv:2205.13147).
#[must_use]
pub fn shorten(vector: &mut Vec<f32>, dimensions: usize) -> bool {
    if dimensions >= vector.len() {
        return dimensions == vector.len();
    }
    vector.truncate(dimensions);
    let length = vector.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
    // Nothing has no direction.
    if length > 0.0 {
        #[expect(clippy::cast_possible_truncation, reason = "back to the width that it had")]
        vector.iter_mut().for_each(|number| *number = (f64::from(*number) / length) as f32);
    }
    true
}

/// The body of the answer. `tokens` is what the model read of all inputs together. Numbers are finite, and written as the shortest that read back the same.
#[must_use]
pub fn answer(model: &str, vectors: &[Vec<f32>], tokens: u64, encoding: Encoding) -> Bytes {
    // A vector of 384 takes about 4 KiB; building a document of it first would take ten times that.
    let numbers: usize = vectors.iter().map(Vec::len).sum();
    let mut body = String::with_capacity(numbers * 13 + vectors.len() * 64 + 256);
    body.push_str(r#"{"object":"list","data":["#);
    for (index, vector) in vectors.iter().enumerate() {
        if index > 0 {
            body.push(',');
        }
        body.push_str(r#"{"object":"embedding","index":"#);
        body.push_str(&index.to_string());
        body.push_str(r#","embedding":"#);
        match encoding {
            Encoding::Float => write_numbers(vector, &mut body),
            Encoding::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
                body.push('"');
                STANDARD.encode_string(bytes, &mut body);
                body.push('"');
            }
        }
        body.push('}');
    }
    body.push_str(r#"],"model":"#);
    body.push_str(&Value::from(model).to_string());
    body.push_str(&format!(r#","usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}}}"#));
    Bytes::from(body)
}

fn write_numbers(vector: &[f32], body: &mut String) {
    body.push('[');
    for (place, number) in vector.iter().enumerate() {
        if place > 0 {
            body.push(',');
        }
        // Debug is the shortest that reads back, with an exponent where that is shorter, and always a float to JSON's readers.
        body.push_str(&format!("{number:?}"));
    }
    body.push(']');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(request: &Value) -> Result<Request<'_>, (String, &'static str)> {
        Request::read(request).map_err(|shape| (shape.pointer, shape.rule))
    }

    fn inputs_of(input: Value) -> Result<usize, (String, &'static str)> {
        read(&json!({ "model": "m", "input": input })).map(|request| request.inputs.len())
    }

    #[test]
    fn each_form_of_input_is_read() {
        let texts = |texts: &[&'static str]| texts.iter().map(|text| Input::Text(text)).collect::<Vec<_>>();
        for (input, expected) in [
            (json!("a"), texts(&["a"])),
            (json!(["a", "b"]), texts(&["a", "b"])),
            (json!([1, u32::MAX]), vec![Input::Tokens(vec![1, u32::MAX])]),
            (json!([[1], [2, 3]]), vec![Input::Tokens(vec![1]), Input::Tokens(vec![2, 3])]),
        ] {
            let document = json!({ "model": "m", "input": input });
            let expected = Request { inputs: expected, encoding: Encoding::Float, dimensions: None };
            assert_eq!(read(&document).unwrap(), expected);
        }
        let document = json!({ "model": "m", "input": "a", "encoding_format": "base64", "dimensions": 256, "user": "u" });
        let request = read(&document).unwrap();
        assert_eq!((request.encoding, request.dimensions), (Encoding::Base64, Some(256)));
        let document = json!({ "model": "m", "input": "a", "encoding_format": null, "dimensions": null });
        assert_eq!(read(&document).unwrap().dimensions, None);
    }

    #[test]
    fn what_cannot_be_embedded_is_named() {
        for (input, pointer, rule) in [
            (json!(null), "/input", "required"),
            (json!(""), "/input", "range"),
            (json!([]), "/input", "range"),
            (json!({}), "/input", "type"),
            (json!(1), "/input", "type"),
            (json!(["a", 1]), "/input", "type"),
            (json!([1, "a"]), "/input", "type"),
            (json!([[1], "a"]), "/input", "type"),
            (json!([null]), "/input", "type"),
            (json!(["a", ""]), "/input/1", "range"),
            (json!([[1], []]), "/input/1", "range"),
            (json!([[1], [-1]]), "/input/1", "type"),
            (json!([[[1]]]), "/input/0", "type"),
            (json!([1.5]), "/input", "type"),
            (json!([4_294_967_296_u64]), "/input", "type"),
        ] {
            assert_eq!(inputs_of(input.clone()), Err((pointer.to_owned(), rule)), "{input}");
        }
        for (key, value, rule) in [
            ("encoding_format", json!("hex"), "enum"),
            ("encoding_format", json!(1), "type"),
            ("dimensions", json!(0), "range"),
            ("dimensions", json!("1"), "type"),
            ("dimensions", json!(1.5), "type"),
        ] {
            let document = json!({ "model": "m", "input": "a", key: value });
            assert_eq!(read(&document), Err((format!("/{key}"), rule)));
        }
    }

    #[test]
    fn arrays_hold_to_their_bound() {
        assert_eq!(inputs_of(json!(vec!["a"; MAX_INPUTS])), Ok(MAX_INPUTS));
        assert_eq!(inputs_of(json!(vec!["a"; MAX_INPUTS + 1])), Err(("/input".into(), "range")));
        assert_eq!(inputs_of(json!(vec![1; MAX_INPUTS])), Ok(1));
        assert_eq!(inputs_of(json!(vec![1; MAX_INPUTS + 1])), Err(("/input".into(), "range")));
        assert_eq!(inputs_of(json!([vec![1; MAX_INPUTS + 1]])), Err(("/input/0".into(), "range")));
    }

    #[test]
    fn inputs_become_the_tensors_of_a_model() {
        let tensors = |input: Value, longest| {
            let document = json!({ "model": "m", "input": input });
            Request::read(&document).unwrap().tensors(longest).map_err(|shape| shape.pointer)
        };
        let texts = tensors(json!(["a", "é"]), 0).unwrap();
        let data = Bytes::from_static(b"\x01\0\0\0a\x02\0\0\0\xc3\xa9");
        assert_eq!(texts, [Tensor { name: "text".into(), datatype: Datatype::Bytes, shape: vec![2], data }]);
        let tokens = tensors(json!([[7], [8, 9]]), 2).unwrap();
        let ints = |numbers: [i64; 4]| numbers.into_iter().flat_map(i64::to_le_bytes).collect::<Vec<_>>();
        assert_eq!(tokens.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(), ["input_ids", "attention_mask"]);
        assert!(tokens.iter().all(|tensor| tensor.shape == [2, 2] && tensor.datatype == Datatype::Int64));
        assert_eq!(tokens[0].data, ints([7, 0, 8, 9]));
        assert_eq!(tokens[1].data, ints([1, 0, 1, 1]));
        assert_eq!(tensors(json!([[7], [8, 9]]), 1), Err("/input/1".into()));
    }

    #[test]
    fn what_a_model_says_is_believed_only_as_far_as_it_can_be() {
        let tensor = |name: &str, datatype, shape: &[u64], data: Vec<u8>| Tensor {
            name: name.into(),
            datatype,
            shape: shape.to_vec(),
            data: data.into(),
        };
        let floats = |numbers: [f32; 4]| numbers.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
        let vectors = |shape: &[u64], numbers| vec![tensor("embedding", Datatype::Fp32, shape, floats(numbers))];
        let whole = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(embedded(&vectors(&[2, 2], whole), 2), Some(vec![vec![1.0, 2.0], vec![3.0, 4.0]]));
        assert_eq!(embedded(&[], 2), None);
        for (shape, inputs) in [(&[2, 3][..], 2), (&[4], 4), (&[2, 2], 1), (&[2, 2], 3), (&[0, 1 << 62], 0), (&[4, 0], 4)] {
            assert_eq!(embedded(&vectors(shape, whole), inputs), None, "{shape:?}");
        }
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(embedded(&vectors(&[2, 2], [1.0, 2.0, broken, 4.0]), 2), None, "it would be no JSON");
        }
        let counted = |counts: &[i64]| {
            let data = counts.iter().flat_map(|count| count.to_le_bytes()).collect();
            vec![tensor("tokens", Datatype::Int64, &[counts.len() as u64], data)]
        };
        assert_eq!(tokens_read(&counted(&[3, 512]), 2, 512), Some(515));
        assert_eq!(tokens_read(&counted(&[3, 513]), 2, 512), None);
        assert_eq!(tokens_read(&counted(&[3, -1]), 2, 512), None, "nobody owes that");
        assert_eq!(tokens_read(&counted(&[3]), 2, 512), None);
        assert_eq!(tokens_read(&[], 0, 512), None);
    }

    #[test]
    fn a_few_bytes_do_not_become_a_large_rectangle() {
        let tensors = |ones: usize, longest: usize| {
            let lists: Vec<Value> = (0..ones).map(|_| json!([1])).chain([json!(vec![1; longest])]).collect();
            Request::read(&json!({ "model": "m", "input": lists })).unwrap().tensors(longest).map_err(|shape| shape.pointer)
        };
        assert_eq!(tensors(511, 2048).unwrap()[0].shape, [512, 2048]);
        assert_eq!(tensors(512, 2048), Err("/input".into()));
    }

    #[test]
    fn a_shortened_vector_has_length_one_again() {
        let mut vector = vec![0.48, 0.64, 0.6];
        assert!(shorten(&mut vector, 3));
        assert_eq!(vector, [0.48, 0.64, 0.6]);
        assert!(shorten(&mut vector, 2));
        assert_eq!(vector, [0.6, 0.8]);
        assert!(!shorten(&mut vector, 3));
        assert_eq!(vector, [0.6, 0.8]);
        let mut nothing = vec![0.0, 0.0, 1.0];
        assert!(shorten(&mut nothing, 2));
        assert_eq!(nothing, [0.0, 0.0]);
    }

    #[test]
    fn an_answer_is_what_the_dialects_clients_read() {
        let vectors = [vec![0.1, -2.0, 1e-20], vec![f32::MIN_POSITIVE, f32::MAX, 0.0]];
        let floats: Value = serde_json::from_slice(&answer("a \"model\"", &vectors, 7, Encoding::Float)).unwrap();
        assert_eq!(floats["object"], "list");
        assert_eq!(floats["model"], "a \"model\"");
        assert_eq!(floats["usage"], json!({ "prompt_tokens": 7, "total_tokens": 7 }));
        assert_eq!(floats["data"][0]["embedding"].to_string(), "[0.1,-2.0,1e-20]");
        assert_eq!(floats["data"][1]["index"], 1);
        assert_eq!(floats["data"][1]["object"], "embedding");
        let packed: Value = serde_json::from_slice(&answer("m", &vectors, 7, Encoding::Base64)).unwrap();
        assert_eq!(packed["data"][0]["embedding"], "zczMPQAAAMAI5Twe");
        let empty: Value = serde_json::from_slice(&answer("m", &[], 0, Encoding::Float)).unwrap();
        assert_eq!(empty["data"], json!([]));
    }

    proptest! {
        #[test]
        fn both_encodings_carry_the_same_numbers(vector in prop::collection::vec(prop::num::f32::NORMAL | prop::num::f32::ZERO, 0..20)) {
            let vectors = [vector.clone()];
            let floats: Value = serde_json::from_slice(&answer("m", &vectors, 1, Encoding::Float)).unwrap();
            let packed: Value = serde_json::from_slice(&answer("m", &vectors, 1, Encoding::Base64)).unwrap();
            #[expect(clippy::cast_possible_truncation, reason = "as a client of 32-bit floats reads them")]
            let read: Vec<f32> = floats["data"][0]["embedding"].as_array().unwrap().iter().map(|n| n.as_f64().unwrap() as f32).collect();
            prop_assert_eq!(&read, &vector);
            let bytes = STANDARD.decode(packed["data"][0]["embedding"].as_str().unwrap()).unwrap();
            let read: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            prop_assert_eq!(&read, &vector);
        }
    }
}
