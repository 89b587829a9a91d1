use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::wire::oip::RequestedOutput;

fn port(name: &str, datatype: Datatype, shape: &[Option<u64>]) -> Port {
    Port { name: name.into(), datatype, shape: shape.to_vec() }
}

fn fp32(name: &str, shape: &[u64], values: &[f32]) -> Tensor {
    tensor(name, Datatype::Fp32, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

fn tensor(name: &str, datatype: Datatype, shape: &[u64], data: Vec<u8>) -> Tensor {
    Tensor { name: name.into(), datatype, shape: shape.to_vec(), data: data.into() }
}

fn request(inputs: Vec<Tensor>) -> InferRequest {
    InferRequest { inputs, ..InferRequest::default() }
}

fn digits() -> Rules {
    Rules {
        contract: Some(Contract {
            inputs: vec![port("input", Datatype::Fp32, &[None, Some(2)]), port("scale", Datatype::Fp32, &[None])],
            outputs: vec![port("label", Datatype::Int64, &[None]), port("probabilities", Datatype::Fp32, &[None, Some(10)])],
            ..Contract::default()
        }),
        max_batch: Some(2),
        most_rows: None,
        max_length: None,
        range: [("input".to_owned(), (0.0, 16.0))].into(),
        ..Rules::default()
    }
}

fn good() -> Vec<Tensor> {
    vec![fp32("input", &[2, 2], &[0.0, 16.0, 1.0, 2.0]), fp32("scale", &[2], &[1.0, -9.0])]
}

fn broken(rules: &Rules, inputs: Vec<Tensor>) -> Option<(Broken, Option<usize>)> {
    rules.hold(&request(inputs)).err().map(|fault| (fault.broken, fault.index))
}

fn changed(change: impl FnOnce(&mut Vec<Tensor>)) -> Option<(Broken, Option<usize>)> {
    let mut inputs = good();
    change(&mut inputs);
    broken(&digits(), inputs)
}

#[test]
fn what_the_contract_asks_for_passes_in_any_order() {
    assert_eq!(changed(|_| ()), None);
    assert_eq!(changed(|inputs| inputs.reverse()), None);
}

#[test]
fn names_are_all_there_once_and_no_others() {
    assert_eq!(changed(|inputs| drop(inputs.pop())), Some((Broken::Missing, None)));
    assert_eq!(changed(|inputs| inputs[1].name = "scala".into()), Some((Broken::Name, Some(1))));
    assert_eq!(changed(|inputs| inputs.push(fp32("scale", &[2], &[1.0, 1.0]))), Some((Broken::Twice, Some(2))));
    assert_eq!(changed(|inputs| inputs.push(fp32("other", &[2], &[1.0, 1.0]))), Some((Broken::Name, Some(2))));
    let mut asked = request(good());
    asked.outputs = vec![RequestedOutput { name: "label".into(), ..RequestedOutput::default() }];
    assert_eq!(digits().hold(&asked), Ok(()));
    asked.outputs.push(RequestedOutput { name: "label".into(), ..RequestedOutput::default() });
    assert_eq!(digits().hold(&asked).unwrap_err().to_string(), "/outputs/1");
    asked.outputs[1].name = "logits".into();
    assert_eq!(digits().hold(&asked).unwrap_err().broken, Broken::Name);
}

#[test]
fn without_a_contract_only_the_names_of_the_policy_are_sent_each_once() {
    let rules = Rules { names: Some(["x", "mask"].map(String::from).into()), ..Rules::default() };
    let sent = |names: &[&str]| broken(&rules, names.iter().map(|name| fp32(name, &[1], &[0.0])).collect());
    for names in [&["x"][..], &["mask"], &["x", "mask"], &["mask", "x"]] {
        assert_eq!(sent(names), None, "{names:?}");
    }
    assert_eq!(sent(&["anything"]), Some((Broken::Name, Some(0))));
    assert_eq!(sent(&["x", "X"]), Some((Broken::Name, Some(1))));
    assert_eq!(sent(&["x", "mask", "extra"]), Some((Broken::Name, Some(2))));
    assert_eq!(sent(&["x", "mask", "x"]), Some((Broken::Twice, Some(2))));
    let mut asked = request(vec![fp32("x", &[1], &[0.0])]);
    asked.outputs = vec![RequestedOutput { name: "anything".into(), ..RequestedOutput::default() }];
    assert_eq!(rules.hold(&asked), Ok(()), "of its outputs the policy says nothing");
}

#[test]
fn types_ranks_and_fixed_dimensions_are_the_contracts() {
    assert_eq!(changed(|inputs| inputs[0].datatype = Datatype::Fp16), Some((Broken::Datatype, Some(0))));
    assert_eq!(changed(|inputs| inputs[0].shape = vec![4]), Some((Broken::Shape, Some(0))));
    assert_eq!(changed(|inputs| inputs[0].shape = vec![2, 2, 1]), Some((Broken::Shape, Some(0))));
    assert_eq!(changed(|inputs| inputs[0].shape = vec![1, 4]), Some((Broken::Shape, Some(0))));
    assert_eq!(changed(|inputs| inputs[0] = fp32("input", &[0, 2], &[])), Some((Broken::Shape, Some(0))));
}

#[test]
fn the_batch_is_the_same_everywhere_and_at_most_the_cap() {
    assert_eq!(changed(|inputs| inputs[1] = fp32("scale", &[1], &[1.0])), Some((Broken::Batch, Some(1))));
    let three = vec![fp32("input", &[3, 2], &[0.0; 6]), fp32("scale", &[3], &[0.0; 3])];
    assert_eq!(broken(&digits(), three), Some((Broken::TooManyRows(2), Some(0))));
    let loose = Rules { max_batch: Some(2), ..Rules::default() };
    assert_eq!(broken(&loose, vec![fp32("x", &[2], &[0.0; 2])]), None);
    assert_eq!(broken(&loose, vec![fp32("x", &[3], &[0.0; 3])]), Some((Broken::TooManyRows(2), Some(0))));
}

#[test]
fn only_the_first_dimension_is_a_batch_and_only_where_the_model_calls_it_so() {
    let rules = |inputs: &[(&str, &[Option<u64>])], apart| {
        let inputs = inputs.iter().map(|(name, shape)| port(name, Datatype::Uint8, shape)).collect();
        Rules { contract: Some(Contract { inputs, apart, ..Contract::default() }), max_batch: Some(64), ..Rules::default() }
    };
    let bytes = |name, shape: &[u64]| tensor(name, Datatype::Uint8, shape, vec![0; shape.iter().product::<u64>() as usize]);
    // A picture of any height.
    let picture = rules(&[("x", &[Some(1), Some(3), None, None])], false);
    assert_eq!(broken(&picture, vec![bytes("x", &[1, 3, 65, 2])]), None);
    // Two sequences of their own lengths.
    let sequences = rules(&[("src", &[Some(1), None]), ("tgt", &[Some(1), None])], false);
    assert_eq!(broken(&sequences, vec![bytes("src", &[1, 5]), bytes("tgt", &[1, 3])]), None);
    // What the file tells apart may be of other lengths, each within the cap; what it does not may not.
    let two: [(&str, &[Option<u64>]); 2] = [("queries", &[None, Some(2)]), ("keys", &[None, Some(2)])];
    let asked = |keys| vec![bytes("queries", &[2, 2]), bytes("keys", &[keys, 2])];
    assert_eq!(broken(&rules(&two, true), asked(64)), None);
    assert_eq!(broken(&rules(&two, true), asked(65)), Some((Broken::TooManyRows(64), Some(1))));
    assert_eq!(broken(&rules(&two, false), asked(3)), Some((Broken::Batch, Some(1))));
}

#[test]
fn the_rows_of_a_request_without_a_contract_are_at_most_what_is_learned_from_one() {
    let rules = Rules { most_rows: Some(2), ..Rules::default() };
    assert_eq!(broken(&rules, vec![fp32("x", &[2, 1], &[0.0; 2])]), None);
    assert_eq!(broken(&rules, vec![fp32("x", &[3, 1], &[0.0; 3])]), Some((Broken::TooManyRows(2), Some(0))));
    assert_eq!(broken(&rules, vec![fp32("x", &[1, 1], &[0.0]), fp32("y", &[3, 1], &[0.0; 3])]), Some((Broken::TooManyRows(2), Some(1))));
    assert_eq!(broken(&rules, vec![fp32("x", &[3], &[0.0; 3])]), None, "one row of three numbers");
    assert_eq!(broken(&rules, vec![fp32("x", &[3], &[0.0; 3]), fp32("y", &[3], &[0.0; 3])]), Some((Broken::TooManyRows(2), Some(0))));
    assert_eq!(broken(&rules, vec![tensor("x", Datatype::Bytes, &[3], vec![0; 12])]), Some((Broken::TooManyRows(2), Some(0))));
    let said = Rules { max_batch: Some(4), ..rules };
    assert_eq!(broken(&said, vec![fp32("x", &[3, 1], &[0.0; 3])]), None, "the policy says more");
}

#[test]
fn free_dimensions_after_the_batch_are_at_most_the_cap() {
    let contract = Contract { inputs: vec![port("tokens", Datatype::Uint8, &[None, None])], ..Contract::default() };
    let rules = Rules { contract: Some(contract), max_length: Some(3), ..Rules::default() };
    assert_eq!(broken(&rules, vec![tensor("tokens", Datatype::Uint8, &[9, 3], vec![0; 27])]), None);
    assert_eq!(broken(&rules, vec![tensor("tokens", Datatype::Uint8, &[1, 4], vec![0; 4])]), Some((Broken::Shape, Some(0))));
}

#[test]
fn ranges_are_inclusive_and_what_is_not_finite_is_refused() {
    for (value, expected) in [
        (16.0_f32.next_up(), Some(Broken::Range)),
        (0.0_f32.next_down(), Some(Broken::Range)),
        (-0.0, None),
        (f32::NAN, Some(Broken::NotFinite)),
        (f32::INFINITY, Some(Broken::NotFinite)),
        (f32::NEG_INFINITY, Some(Broken::NotFinite)),
    ] {
        let found = changed(|inputs| inputs[0] = fp32("input", &[2, 2], &[0.0, 16.0, 3.0, value]));
        assert_eq!(found.map(|(broken, _)| broken), expected, "{value}");
    }
    assert_eq!(changed(|inputs| inputs[1] = fp32("scale", &[2], &[f32::MAX, f32::MIN])), None);
    assert_eq!(changed(|inputs| inputs[1] = fp32("scale", &[2], &[f32::MAX, f32::NAN])), Some((Broken::NotFinite, Some(1))));
}

#[test]
fn a_name_may_be_allowed_what_is_not_finite_and_nothing_else() {
    let rules = Rules { nan: ["input".to_owned()].into(), ..digits() };
    let with = |value| broken(&rules, vec![fp32("input", &[1, 2], &[1.0, value]), fp32("scale", &[1], &[0.0])]);
    assert_eq!(with(f32::NAN), None);
    assert_eq!(with(f32::INFINITY), None);
    assert_eq!(with(17.0), Some((Broken::Range, Some(0))));
}

#[test]
fn a_bound_is_the_number_that_a_caller_of_that_type_can_send() {
    let rules = Rules { range: [("x".to_owned(), (-0.1, 0.1))].into(), ..Rules::default() };
    assert_eq!(broken(&rules, vec![fp32("x", &[2], &[0.1, -0.1])]), None);
    assert_eq!(broken(&rules, vec![fp32("x", &[1], &[0.1_f32.next_up()])]), Some((Broken::Range, Some(0))));
    let sent = f16::from_f32(0.1);
    assert_eq!(broken(&rules, vec![tensor("x", Datatype::Fp16, &[1], sent.to_le_bytes().to_vec())]), None);
    let past = f16::from_bits(sent.to_bits() + 1);
    assert_eq!(broken(&rules, vec![tensor("x", Datatype::Fp16, &[1], past.to_le_bytes().to_vec())]), Some((Broken::Range, Some(0))));
    let nan = bf16::NAN.to_le_bytes().to_vec();
    assert_eq!(broken(&rules, vec![tensor("x", Datatype::Bf16, &[1], nan)]), Some((Broken::NotFinite, Some(0))));
}

#[test]
fn whole_numbers_are_compared_exactly() {
    let rules = |low, high| Rules { range: [("x".to_owned(), (low, high))].into(), ..Rules::default() };
    let one = |datatype, data: Vec<u8>| vec![tensor("x", datatype, &[1], data)];
    let most = (1_u64 << 53) as f64;
    assert_eq!(broken(&rules(0.0, most), one(Datatype::Uint64, (1_u64 << 53).to_le_bytes().into())), None);
    assert!(broken(&rules(0.0, most), one(Datatype::Uint64, ((1_u64 << 53) + 1).to_le_bytes().into())).is_some());
    assert!(broken(&rules(0.5, 1.5), one(Datatype::Int8, vec![0])).is_some());
    assert_eq!(broken(&rules(0.5, 1.5), one(Datatype::Int8, vec![1])), None);
    assert!(broken(&rules(-3.0, -1.0), one(Datatype::Uint64, 0_u64.to_le_bytes().into())).is_some());
    assert_eq!(broken(&rules(f64::NEG_INFINITY, 0.0), one(Datatype::Int64, i64::MIN.to_le_bytes().into())), None);
}

#[test]
fn strings_walk_exactly() {
    let walk = |count, data: &[u8]| broken(&Rules::default(), vec![tensor("x", Datatype::Bytes, &[count], data.to_vec())]);
    assert_eq!(walk(2, b"\x01\0\0\0\xff\0\0\0\0"), None);
    for (count, data) in [
        (1, &b"\x01\0\0\0a\0\0\0\0"[..]),
        (2, b"\x01\0\0\0a"),
        (1, b"\x02\0\0\0a"),
        (1, b"\x01\0\0"),
        (1, b"\xff\xff\xff\xff"),
        (u64::MAX, b""),
        (0, b"a"),
    ] {
        assert_eq!(walk(count, data), Some((Broken::Bytes, Some(0))), "{count} {data:?}");
    }
}

#[test]
fn a_truth_is_0_or_1() {
    let truths = |data: &[u8]| broken(&Rules::default(), vec![tensor("x", Datatype::Bool, &[2], data.to_vec())]);
    assert_eq!(truths(&[0, 1]), None);
    assert_eq!(truths(&[0, 2]), Some((Broken::Bytes, Some(0))));
}

#[test]
fn without_a_contract_lists_and_ranks_are_bounded() {
    let many = |count: usize| (0..count).map(|index| fp32(&index.to_string(), &[1], &[0.0])).collect::<Vec<_>>();
    assert_eq!(broken(&Rules::default(), many(MOST_TENSORS)), None);
    assert_eq!(broken(&Rules::default(), many(MOST_TENSORS + 1)), Some((Broken::TooMany, None)));
    assert_eq!(broken(&Rules::default(), vec![fp32("x", &[1; MOST_DIMENSIONS], &[0.0])]), None);
    assert_eq!(broken(&Rules::default(), vec![fp32("x", &[1; MOST_DIMENSIONS + 1], &[0.0])]), Some((Broken::Shape, Some(0))));
    assert_eq!(broken(&Rules::default(), vec![fp32("x", &[1], &[0.0]), fp32("x", &[1], &[0.0])]), Some((Broken::Twice, Some(1))));
    assert_eq!(broken(&Rules::default(), vec![fp32("x", &[u64::MAX, 2], &[])]), Some((Broken::Shape, Some(0))));
}

proptest! {
    #[test]
    fn only_the_exact_number_of_bytes_passes(
        datatype in prop::sample::select(Datatype::ALL.iter().copied().filter(|datatype| datatype.width().is_some()).collect::<Vec<_>>()),
        shape in prop::collection::vec(0_u64..6, 0..4), off in -3_i64..4,
    ) {
        let exact = elements(&shape).unwrap() * datatype.width().unwrap();
        let Ok(length) = usize::try_from(exact as i64 + off) else { return Ok(()) };
        let found = broken(&Rules::default(), vec![tensor("x", datatype, &shape, vec![0; length])]);
        prop_assert_eq!(found, (length != exact).then_some((Broken::Bytes, Some(0))));
    }

    #[test]
    fn the_pass_over_floats_finds_what_a_plain_look_finds(bits in prop::collection::vec(any::<u32>(), 1..100), low in -1e38_f32..0.0, high in 0.0_f32..1e38) {
        let values: Vec<f32> = bits.iter().map(|bits| f32::from_bits(*bits)).collect();
        let rules = Rules { range: [("x".to_owned(), (low.into(), high.into()))].into(), ..Rules::default() };
        let plain = if values.iter().any(|value| !value.is_finite()) {
            Some(Broken::NotFinite)
        } else {
            values.iter().any(|value| *value < low || *value > high).then_some(Broken::Range)
        };
        let found = broken(&rules, vec![fp32("x", &[values.len() as u64], &values)]);
        prop_assert_eq!(found.map(|(broken, _)| broken), plain);
    }

    #[test]
    fn no_bytes_make_it_panic(shape in prop::collection::vec(any::<u64>(), 0..5), data in prop::collection::vec(any::<u8>(), 0..64), which in 0..14_usize) {
        let rules = Rules { range: [("x".to_owned(), (-1.0, 1.0))].into(), max_batch: Some(4), ..Rules::default() };
        let data = Bytes::from(data);
        let _ = rules.hold(&request(vec![Tensor { name: "x".into(), datatype: Datatype::ALL[which], shape, data }]));
    }
}

#[test]
fn the_other_inputs_may_be_sent_in_place_of_the_first_and_not_beside_them() {
    let contract = Contract {
        inputs: vec![port("text", Datatype::Bytes, &[None])],
        instead: vec![port("ids", Datatype::Uint8, &[None, None]), port("mask", Datatype::Uint8, &[None, None])],
        ..Contract::default()
    };
    let rules = Rules { contract: Some(contract), max_batch: Some(2), ..Rules::default() };
    let bytes = |name: &str, shape: &[u64], data: &'static [u8]| Tensor {
        name: name.into(),
        datatype: Datatype::Uint8,
        shape: shape.to_vec(),
        data: data.into(),
    };
    let text = || Tensor { name: "text".into(), datatype: Datatype::Bytes, shape: vec![1], data: b"\x01\0\0\0a"[..].into() };
    let (ids, mask) = (|| bytes("ids", &[1, 2], b"ab"), || bytes("mask", &[1, 2], b"cd"));
    assert_eq!(broken(&rules, vec![text()]), None);
    assert_eq!(broken(&rules, vec![ids(), mask()]), None);
    assert_eq!(broken(&rules, vec![mask(), ids()]), None);
    assert_eq!(broken(&rules, vec![ids()]), Some((Broken::Missing, None)));
    assert_eq!(broken(&rules, vec![ids(), mask(), text()]), Some((Broken::Name, Some(2))));
    assert_eq!(broken(&rules, vec![text(), ids(), mask()]), Some((Broken::Name, Some(1))));
    assert_eq!(
        broken(&rules, vec![bytes("ids", &[3, 1], b"abc"), bytes("mask", &[3, 1], b"abc")]),
        Some((Broken::TooManyRows(2), Some(0)))
    );
}

#[test]
fn texts_are_no_numbers_within_a_range() {
    let rules = Rules { range: [("x".to_owned(), (0.0, 10.0))].into(), ..Rules::default() };
    let text = |name| tensor(name, Datatype::Bytes, &[1], b"\x02\0\0\x0050".to_vec());
    assert_eq!(broken(&rules, vec![text("x")]), Some((Broken::Datatype, Some(0))));
    assert_eq!(broken(&rules, vec![text("y")]), None, "of which the policy says nothing");
}
