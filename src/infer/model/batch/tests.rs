use proptest::prelude::*;

use super::*;

fn port(name: &str, datatype: Datatype, shape: &[Option<u64>]) -> Port {
    Port { name: name.into(), datatype, shape: shape.to_vec() }
}

/// Rows of token ids and their mask, to one vector a token and one a text.
fn encoder() -> Signature {
    Signature {
        inputs: vec![port("ids", Datatype::Int64, &[None, None]), port("mask", Datatype::Int64, &[None, None])],
        instead: vec![],
        outputs: vec![port("tokens", Datatype::Fp32, &[None, None, Some(2)]), port("text", Datatype::Fp32, &[None, Some(2)])],
        longest: None,
        apart: false,
    }
}

fn plan(max: usize, pad: &[(&str, i64)]) -> Plan {
    let pad = pad.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    Plan { max, delay: Duration::ZERO, across_tenants: false, pad }
}

fn padded(max: usize) -> Batching {
    Batching::new(Some(&plan(max, &[("ids", 0), ("mask", 0)])), &encoder()).unwrap()
}

fn who(caller: &str, tenant: &str) -> Who {
    Who { caller: caller.into(), tenant: tenant.into(), tier: "".into(), method: "api_key" }
}

fn longs(name: &str, rows: &[&[i64]]) -> Tensor {
    let data: Vec<u8> = rows.iter().flat_map(|row| row.iter().flat_map(|number| number.to_le_bytes())).collect();
    Tensor { name: name.into(), datatype: Datatype::Int64, shape: vec![rows.len() as u64, rows[0].len() as u64], data: data.into() }
}

fn text(rows: &[&[i64]]) -> Vec<Tensor> {
    let ones: Vec<Vec<i64>> = rows.iter().map(|row| vec![1; row.len()]).collect();
    vec![longs("ids", rows), longs("mask", &ones.iter().map(Vec::as_slice).collect::<Vec<_>>())]
}

fn numbers(tensor: &Tensor) -> Vec<i64> {
    tensor.data.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
}

#[test]
fn texts_of_other_lengths_are_filled_up_and_cut_again() {
    let batching = padded(8);
    let (short, long) = (text(&[&[5, 6]]), text(&[&[7, 8, 9], &[1, 2, 3]]));
    let joined = join(&batching, &[&short, &long]);
    assert_eq!(joined[0].shape, [3, 3]);
    assert_eq!(numbers(&joined[0]), [5, 6, 0, 7, 8, 9, 1, 2, 3]);
    assert_eq!(numbers(&joined[1]), [1, 1, 0, 1, 1, 1, 1, 1, 1]);

    let floats = |shape: Vec<u64>| {
        let count = shape.iter().product::<u64>() as u16;
        let data: Vec<u8> = (0..count).flat_map(|number| f32::from(number).to_le_bytes()).collect();
        Tensor { name: "y".into(), datatype: Datatype::Fp32, shape, data: data.into() }
    };
    let outputs = vec![floats(vec![3, 3, 2]), floats(vec![3, 2])];
    let answers = part(&batching, &[&short, &long], &[0, 1], outputs.clone()).unwrap();
    assert_eq!(answers[0][0].shape, [1, 2, 2], "what was filled up is cut off");
    assert_eq!(answers[0][0].data, outputs[0].data.slice(..16));
    assert_eq!(answers[1][0].shape, [2, 3, 2]);
    assert_eq!(answers[1][0].data, outputs[0].data.slice(24..));
    assert_eq!((&answers[0][1].data, &answers[1][1].data), (&outputs[1].data.slice(..8), &outputs[1].data.slice(8..)));
}

#[test]
fn strings_are_joined_and_parted_by_their_own_lengths() {
    let signature = Signature {
        inputs: vec![port("x", Datatype::Bytes, &[None])],
        instead: vec![],
        outputs: vec![port("y", Datatype::Bytes, &[None])],
        longest: None,
        apart: false,
    };
    let batching = Batching::new(Some(&plan(8, &[])), &signature).unwrap();
    let of = |texts: &[&str]| {
        let data: Vec<u8> = texts.iter().flat_map(|text| [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()).collect();
        vec![Tensor { name: "x".into(), datatype: Datatype::Bytes, shape: vec![texts.len() as u64], data: data.into() }]
    };
    let (one, two) = (of(&["a"]), of(&["", "ccc"]));
    let joined = join(&batching, &[&one, &two]);
    assert_eq!(joined, of(&["a", "", "ccc"]));
    assert_eq!(part(&batching, &[&one, &two], &[0], joined.clone()).unwrap(), [one.clone(), two.clone()]);
    let mut torn = joined;
    torn[0].data = torn[0].data.slice(..torn[0].data.len() - 1);
    assert!(part(&batching, &[&one, &two], &[0], torn).is_err());
}

#[test]
fn a_run_takes_calls_up_to_its_rows_and_not_past_them() {
    let batching = padded(4);
    let (three, one, two) = (text(&[&[1], &[2], &[3]]), text(&[&[4]]), text(&[&[4], &[5]]));
    let mut party = Party::of(&batching, &who("a", "t"), &three).unwrap();
    assert!(!party.takes(&who("b", "t"), &two) && !party.is_full());
    assert!(party.takes(&who("b", "t"), &one) && party.is_full());
    let five = text(&[&[1], &[2], &[3], &[4], &[5]]);
    assert!(Party::of(&batching, &who("a", "t"), &five).is_none(), "too many rows run alone");
    assert!(Party::of(&batching, &who("a", "t"), &text(&[&[1], &[2], &[3], &[4]])).is_some());
}

#[test]
fn tenants_share_a_run_only_where_the_policy_says_so() {
    let mut plan = plan(4, &[]);
    for (across, joined) in [(false, false), (true, true)] {
        plan.across_tenants = across;
        let batching = Batching::new(Some(&plan), &encoder()).unwrap();
        let mut party = Party::of(&batching, &who("a", "acme"), &text(&[&[1]])).unwrap();
        assert_eq!(party.takes(&who("b", "other"), &text(&[&[1]])), joined);
        assert!(party.takes(&who("b", "acme"), &text(&[&[1]])));
    }
}

#[test]
fn no_more_is_filled_up_than_was_sent() {
    let batching = padded(8);
    let mut party = Party::of(&batching, &who("a", "t"), &text(&[&[1; 3]])).unwrap();
    assert!(party.takes(&who("a", "t"), &text(&[&[1; 9]])), "18 elements for 12");
    let three = text(&[&[1], &[1], &[1]]);
    let mut party = Party::of(&batching, &who("a", "t"), &three).unwrap();
    assert!(party.takes(&who("a", "t"), &text(&[&[1; 3]])), "12 elements for 6 are twice as many");
    let mut party = Party::of(&batching, &who("a", "t"), &three).unwrap();
    assert!(!party.takes(&who("a", "t"), &text(&[&[1; 4]])), "16 for 7 are more");
}

#[test]
fn without_filling_up_only_equal_lengths_are_joined() {
    let batching = Batching::new(Some(&plan(8, &[])), &encoder()).unwrap();
    let mut party = Party::of(&batching, &who("a", "t"), &text(&[&[1, 2]])).unwrap();
    assert!(!party.takes(&who("a", "t"), &text(&[&[1, 2, 3]])));
    assert!(party.takes(&who("a", "t"), &text(&[&[3, 4]])));
}

#[test]
fn an_answer_of_other_rows_is_the_models_fault() {
    let batching = padded(8);
    let calls = [text(&[&[1]]), text(&[&[2]])];
    let calls: Vec<&[Tensor]> = calls.iter().map(Vec::as_slice).collect();
    let output =
        |rows: u64| Tensor { name: "text".into(), datatype: Datatype::Fp32, shape: vec![rows, 2], data: vec![0; rows as usize * 8].into() };
    assert!(part(&batching, &calls, &[1], vec![output(2)]).is_ok());
    for rows in [0, 1, 3] {
        assert!(part(&batching, &calls, &[1], vec![output(rows)]).is_err(), "{rows}");
    }
}

#[test]
fn an_empty_answer_to_texts_is_the_models_fault_and_ends_nothing() {
    let mut signature = encoder();
    signature.outputs = vec![port("tokens", Datatype::Fp32, &[None, None, None])];
    let batching = Batching::new(Some(&plan(8, &[("ids", 0), ("mask", 0)])), &signature).unwrap();
    let calls = [text(&[&[1]]), text(&[&[2, 3]])];
    let calls: Vec<&[Tensor]> = calls.iter().map(Vec::as_slice).collect();
    let empty = Tensor { name: "tokens".into(), datatype: Datatype::Fp32, shape: vec![2, 2, 0], data: Bytes::new() };
    assert!(part(&batching, &calls, &[0], vec![empty]).is_err());
}

#[test]
fn a_plan_that_the_model_cannot_keep_is_told() {
    let fixed = Signature {
        inputs: vec![port("x", Datatype::Fp32, &[Some(1), Some(4)])],
        instead: vec![],
        outputs: vec![],
        longest: None,
        apart: false,
    };
    let told = |plan: &Plan, signature: &Signature| Batching::new(Some(plan), signature).unwrap_err();
    assert!(told(&plan(2, &[]), &fixed).contains("first dimension of `x`"));
    assert!(told(&plan(2, &[("other", 0)]), &encoder()).contains("no input"));
    let text = Signature {
        inputs: vec![port("text", Datatype::Bytes, &[None])],
        instead: encoder().inputs,
        outputs: encoder().outputs,
        longest: None,
        apart: false,
    };
    assert!(told(&plan(2, &[]), &text).contains("as long as the longest text"));
    let vectors = Signature { outputs: encoder().outputs[1..].to_vec(), ..text };
    assert!(Batching::new(Some(&plan(2, &[("ids", 0), ("mask", 0)])), &vectors).is_ok());
    let mut scalar = encoder();
    scalar.inputs[0].shape = vec![None];
    assert!(told(&plan(2, &[("ids", 0)]), &scalar).contains("free length"));
    let mut narrow = encoder();
    narrow.inputs[0].datatype = Datatype::Uint8;
    assert!(Batching::new(Some(&plan(2, &[("ids", 255)])), &narrow).is_ok());
    assert!(told(&plan(2, &[("ids", 256)]), &narrow).contains("no UINT8"));
}

#[test]
fn the_bounds_of_the_block_hold() {
    let read = |text: &str| toml::from_str::<Config>(text).unwrap().resolve().map_err(|mistakes| mistakes.len());
    assert!(read("max = 2").is_ok() && read("max = 4096\ndelay = \"1s\"").is_ok());
    assert_eq!(read("max = 1").unwrap_err(), 1);
    assert_eq!(read("max = 4097\ndelay = \"1001ms\"").unwrap_err(), 2);
}

proptest! {
    /// Whatever is joined comes apart again as it was, where the model answers with its input.
    #[test]
    fn what_is_joined_comes_apart_as_it_was(calls in proptest::collection::vec((1_usize..4, 1_usize..6), 1..6)) {
        let signature = Signature { inputs: encoder().inputs, instead: vec![], outputs: encoder().inputs, longest: None, apart: false };
        let batching = Batching::new(Some(&plan(64, &[("ids", 0), ("mask", 0)])), &signature).unwrap();
        let mut number = 0;
        let calls: Vec<Vec<Tensor>> = calls.into_iter().map(|(rows, length)| {
            let rows: Vec<Vec<i64>> = (0..rows).map(|_| (0..length).map(|_| { number += 1; number }).collect()).collect();
            text(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>())
        }).collect();
        let inputs: Vec<&[Tensor]> = calls.iter().map(Vec::as_slice).collect();
        let joined = join(&batching, &inputs);
        prop_assert_eq!(part(&batching, &inputs, &[0, 1], joined).unwrap(), calls);
    }
}

#[test]
fn texts_and_tokens_share_no_run() {
    let signature = Signature {
        inputs: vec![port("text", Datatype::Bytes, &[None])],
        instead: encoder().inputs,
        outputs: vec![port("embedding", Datatype::Fp32, &[None, Some(2)])],
        longest: None,
        apart: false,
    };
    let batching = Batching::new(Some(&plan(8, &[("ids", 0), ("mask", 0)])), &signature).unwrap();
    let words = vec![Tensor { name: "text".into(), datatype: Datatype::Bytes, shape: vec![1], data: vec![0; 4].into() }];
    let mut party = Party::of(&batching, &who("a", "t"), &words).unwrap();
    assert!(!party.takes(&who("a", "t"), &text(&[&[1]])) && party.takes(&who("a", "t"), &words));
    let mut party = Party::of(&batching, &who("a", "t"), &text(&[&[1, 2]])).unwrap();
    assert!(!party.takes(&who("a", "t"), &words) && party.takes(&who("a", "t"), &text(&[&[1]])));
}
