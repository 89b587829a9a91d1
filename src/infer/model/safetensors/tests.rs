use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

/// A file of this header and so many zeros.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn one(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"a":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}"#)
}

fn refused(header: &str, data: usize) -> Fault {
    scan(&file(header, data)).unwrap_err()
}

fn wrong(header: &str, data: usize) -> Wrong {
    match refused(header, data) {
        Fault::Tensor(_, wrong) => wrong,
        other => panic!("{other}"),
    }
}

/// So many tensors of one byte each, or without any.
fn many(count: usize, bytes: usize) -> String {
    let tensor = |at: usize| format!(r#""t{at}":{{"dtype":"U8","shape":[{bytes}],"data_offsets":[{},{}]}}"#, at * bytes, (at + 1) * bytes);
    format!("{{{}}}", (0..count).map(tensor).collect::<Vec<_>>().join(","))
}

#[test]
fn a_plain_file_is_read() {
    let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[2,10]},"a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}}   "#;
    let layout = scan(&file(header, 10)).unwrap();
    let start = 8 + header.len();
    assert_eq!(layout.metadata["format"], "pt");
    assert_eq!(layout.tensors["a"], Entry { dtype: Dtype::BF16, shape: vec![], range: start..start + 2 });
    assert_eq!(layout.tensors["b"], Entry { dtype: Dtype::F32, shape: vec![2, 1], range: start + 2..start + 10 });
    assert!(scan(&file("{}", 0)).unwrap().tensors.is_empty());
}

#[test]
fn a_header_length_that_is_not_the_headers_is_refused() {
    assert_eq!(scan(b""), Err(Fault::Truncated));
    assert_eq!(scan(&[0; 7]), Err(Fault::Truncated));
    assert_eq!(scan(&[0; 8]), Err(Fault::NotAnObject));
    assert_eq!(scan(&u64::MAX.to_le_bytes()), Err(Fault::HeaderTooLong(u64::MAX)));
    assert_eq!(scan(&[3, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']), Err(Fault::Truncated));
    let longest = format!("{{}}{}", " ".repeat(MAX_HEADER - 2));
    assert!(scan(&file(&longest, 0)).is_ok());
    assert_eq!(refused(&format!("{longest} "), 0), Fault::HeaderTooLong(MAX_HEADER as u64 + 1));
}

#[test]
fn a_header_is_one_object_padded_with_spaces() {
    for header in [" {}", "[]", "null", "{}\n", "{}\0", "{} {}", "{}x", "\u{feff}{}", "{"] {
        assert!(matches!(refused(header, 0), Fault::NotAnObject | Fault::Json(_)), "{header:?}");
    }
}

#[test]
fn a_name_that_stands_twice_is_refused() {
    let twice = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    assert!(matches!(refused(twice, 2), Fault::Json(json::Error::DuplicateKey(_))));
    let field = r#"{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#;
    assert!(matches!(refused(field, 1), Fault::Json(json::Error::DuplicateKey(_))));
    let escaped = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\u0061":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    assert!(matches!(refused(escaped, 2), Fault::Json(json::Error::DuplicateKey(_))));
}

#[test]
fn a_tensor_has_its_three_fields_and_no_other() {
    assert_eq!(wrong(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":1}}"#, 1), Wrong::Fields);
    assert_eq!(wrong(r#"{"a":{"dtype":"U8","shape":[1]}}"#, 1), Wrong::Fields);
    assert_eq!(wrong(r#"{"a":[]}"#, 0), Wrong::Fields);
    assert_eq!(wrong(&one(r#""FP32""#, "[1]", "[0,4]"), 4), Wrong::Dtype);
    assert_eq!(wrong(&one("1", "[1]", "[0,1]"), 1), Wrong::Dtype);
    for shape in ["[-1]", "[1.0]", "[\"1\"]", "1", "[null]", "{}"] {
        assert_eq!(wrong(&one(r#""U8""#, shape, "[0,1]"), 1), Wrong::Shape, "{shape}");
    }
    for offsets in ["[0]", "[0,1,1]", "[1,0]", "[0,2]", "[0,1.0]", "[-1,0]", "\"01\""] {
        assert_eq!(wrong(&one(r#""U8""#, "[1]", offsets), 1), Wrong::Offsets, "{offsets}");
    }
    assert_eq!(wrong(&one(r#""U16""#, "[1]", "[0,1]"), 1), Wrong::Length);
    assert_eq!(wrong(&one(r#""U8""#, "[2]", "[0,1]"), 1), Wrong::Length);
}

#[test]
fn sizes_that_overflow_are_refused() {
    assert_eq!(wrong(&one(r#""U8""#, "[4294967296,4294967296]", "[0,0]"), 0), Wrong::Size);
    assert_eq!(wrong(&one(r#""F32""#, "[4611686018427387904]", "[0,0]"), 0), Wrong::Size);
    assert_eq!(wrong(&one(r#""U8""#, "[18446744073709551615]", "[0,18446744073709551615]"), 0), Wrong::Size);
    assert_eq!(wrong(&one(r#""U8""#, "[1]", "[18446744073709551615,18446744073709551615]"), 1), Wrong::Offsets);
    assert_eq!(wrong(&one(r#""U8""#, "[1]", "[18446744073709551614,18446744073709551615]"), 1), Wrong::Offsets);
    // A number past 64 bits is a float to JSON, and no length.
    assert_eq!(wrong(&one(r#""U8""#, "[1]", "[0,18446744073709551616]"), 1), Wrong::Offsets);
    assert!(matches!(refused(&one(r#""U8""#, "[1]", "[0,100000000000000000000000]"), 1), Fault::Json(json::Error::NumberLength(_))));
}

#[test]
fn elements_of_less_than_a_byte_fill_their_bytes() {
    assert!(scan(&file(&one(r#""F4""#, "[2]", "[0,1]"), 1)).is_ok());
    assert_eq!(wrong(&one(r#""F4""#, "[1]", "[0,1]"), 1), Wrong::Size);
    assert!(scan(&file(&one(r#""F6_E2M3""#, "[4]", "[0,3]"), 3)).is_ok());
}

#[test]
fn every_byte_of_the_data_belongs_to_one_tensor() {
    let two = |first: &str, second: &str| {
        format!(r#"{{"a":{{"dtype":"U8","shape":[2],"data_offsets":{first}}},"b":{{"dtype":"U8","shape":[2],"data_offsets":{second}}}}}"#)
    };
    assert!(scan(&file(&two("[0,2]", "[2,4]"), 4)).is_ok());
    assert!(scan(&file(&two("[2,4]", "[0,2]"), 4)).is_ok());
    assert_eq!(refused(&two("[0,2]", "[1,3]"), 3), Fault::NotAdjacent("b".into()));
    assert_eq!(refused(&two("[0,2]", "[0,2]"), 2), Fault::NotAdjacent("b".into()));
    assert_eq!(refused(&two("[0,2]", "[3,5]"), 5), Fault::NotAdjacent("b".into()));
    assert_eq!(refused(&two("[1,3]", "[3,5]"), 5), Fault::NotAdjacent("a".into()));
    assert_eq!(refused(&two("[0,2]", "[2,4]"), 5), Fault::Trailing);
    assert_eq!(refused("{}", 1), Fault::Trailing);
}

#[test]
fn metadata_is_a_map_of_texts() {
    let entries = |count: usize| (0..count).map(|at| format!(r#""{at}":"x""#)).collect::<Vec<_>>().join(",");
    assert!(scan(&file(&format!(r#"{{"__metadata__":{{{}}}}}"#, entries(MAX_METADATA)), 0)).is_ok());
    assert_eq!(refused(&format!(r#"{{"__metadata__":{{{}}}}}"#, entries(MAX_METADATA + 1)), 0), Fault::Metadata);
    for metadata in ["[]", "null", r#"{"a":1}"#, r#"{"a":{}}"#] {
        assert_eq!(refused(&format!(r#"{{"__metadata__":{metadata}}}"#), 0), Fault::Metadata, "{metadata}");
    }
}

#[test]
fn bounds_hold_at_their_limit_and_one_past_it() {
    assert_eq!(scan(&file(&many(MAX_TENSORS, 1), MAX_TENSORS)).unwrap().tensors.len(), MAX_TENSORS);
    assert_eq!(refused(&many(MAX_TENSORS + 1, 1), MAX_TENSORS + 1), Fault::TooManyTensors(MAX_TENSORS + 1));
    assert!(scan(&file(&many(MAX_EMPTY, 0), 0)).is_ok());
    assert_eq!(refused(&many(MAX_EMPTY + 1, 0), 0), Fault::TooManyEmpty);
    let named = |length: usize| format!(r#"{{"{}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#, "n".repeat(length));
    assert!(scan(&file(&named(MAX_NAME), 1)).is_ok());
    assert_eq!(wrong(&named(MAX_NAME + 1), 1), Wrong::Name);
    assert_eq!(wrong(&named(0), 1), Wrong::Name);
    let ranked = |rank: usize| one(r#""U8""#, &format!("[{}]", vec!["1"; rank].join(",")), "[0,1]");
    assert!(scan(&file(&ranked(MAX_RANK), 1)).is_ok());
    assert_eq!(wrong(&ranked(MAX_RANK + 1), 1), Wrong::Shape);
}

#[test]
fn a_flood_of_empty_tensors_is_refused_at_once() {
    let from = Instant::now();
    assert!(matches!(refused(&many(1_400_000, 0), 0), Fault::HeaderTooLong(_)));
    let scanned = Instant::now();
    // As many as the header holds: the JSON reader stops at its count of values, before it has built much.
    let short = many(70_000, 0);
    assert!(short.len() < MAX_HEADER);
    let built = Instant::now();
    assert!(matches!(refused(&short, 0), Fault::TooManyTensors(_) | Fault::Json(json::Error::TooManyValues(_))));
    assert!(built.elapsed() < Duration::from_secs(5), "{:?} after {:?}", built.elapsed(), scanned - from);
}

#[test]
fn a_deep_header_is_refused_before_it_is_built() {
    let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(1_000_000), "]".repeat(1_000_000));
    assert!(matches!(refused(&deep, 0), Fault::Json(json::Error::TooDeep(_))));
    let objects = format!("{}1{}", r#"{"a":"#.repeat(500_000), "}".repeat(500_000));
    assert!(matches!(refused(&objects, 0), Fault::Json(json::Error::TooDeep(_))));
}

#[test]
fn a_hostile_name_is_cut_in_the_message() {
    let fault = refused(&format!(r#"{{"{}":1}}"#, "x".repeat(100_000)), 0);
    assert!(fault.to_string().len() < 300);
    assert!(!refused("{\"a\\u001b[2J\":1}", 0).to_string().contains('\u{1b}'));
}

/// A file that is almost right: a few tensors whose fields are each right or nearly so.
fn almost() -> impl Strategy<Value = Vec<u8>> {
    let dtype = prop_oneof![8 => Just("U8"), 2 => Just("F32"), 1 => Just("F4"), 1 => Just("Q8")];
    let tensor = (dtype, prop::collection::vec(0_u64..5, 0..4), 0_usize..3, prop::bool::weighted(0.05));
    (prop::collection::vec(tensor, 0..5), 0_usize..2).prop_map(|(tensors, more)| {
        let mut at = 0;
        let members: Vec<String> = tensors
            .iter()
            .enumerate()
            .map(|(place, (dtype, shape, gap, extra))| {
                let bits: u64 = shape.iter().product::<u64>()
                    * if *dtype == "F32" {
                        32
                    } else if *dtype == "F4" {
                        4
                    } else {
                        8
                    };
                let start = at + usize::from(*gap == 2);
                let end = start + usize::try_from(bits / 8).unwrap();
                at = end;
                let extra = if *extra { r#","x":0"# } else { "" };
                format!(r#""{place}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]{extra}}}"#)
            })
            .collect();
        file(&format!("{{{}}}", members.join(",")), at + more)
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = scan(&bytes);
    }

    #[test]
    fn arbitrary_headers_never_panic(header in "\\{[\\[\\]{}:,\"a-z_0-9 .eE-]{0,200}\\}", data in 0_usize..64) {
        let _ = scan(&file(&header, data));
    }

    /// The crate is laxer than the scan, and never reads an accepted file otherwise.
    #[test]
    fn what_is_accepted_the_crate_reads_alike(bytes in almost()) {
        let theirs = ::safetensors::SafeTensors::deserialize(&bytes);
        if let Ok(layout) = scan(&bytes) {
            let theirs = theirs.unwrap();
            prop_assert_eq!(theirs.len(), layout.tensors.len());
            for (name, entry) in &layout.tensors {
                let view = theirs.tensor(name).unwrap();
                prop_assert_eq!(view.shape(), entry.shape.as_slice());
                prop_assert_eq!(view.data(), &bytes[entry.range.clone()]);
                prop_assert_eq!(view.dtype().to_string(), entry.dtype.as_str());
            }
        }
    }
}
