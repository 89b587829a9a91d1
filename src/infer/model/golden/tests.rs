use super::*;
use crate::infer::model::Error;
use crate::wire::tensor::Port;

fn port(name: &str, datatype: Datatype, shape: &[Option<u64>]) -> Port {
    Port { name: name.into(), datatype, shape: shape.to_vec() }
}

fn signature() -> Signature {
    Signature {
        inputs: vec![port("x", Datatype::Fp32, &[None]), port("n", Datatype::Int64, &[None])],
        instead: Vec::new(),
        outputs: vec![port("sum", Datatype::Fp32, &[None]), port("label", Datatype::Int64, &[None])],
        longest: None,
        apart: false,
    }
}

fn tensor(name: &str, datatype: &str, data: &Value) -> Value {
    json!({ "name": name, "datatype": datatype, "shape": [data.as_array().unwrap().len()], "data": data })
}

/// One case: inputs and outputs in another order than the model's.
fn case(sum: f64, label: i64) -> Value {
    json!({
        "inputs": [tensor("n", "INT64", &json!([2])), tensor("x", "FP32", &json!([1.5]))],
        "outputs": [tensor("label", "INT64", &json!([label])), tensor("sum", "FP32", &json!([sum]))],
    })
}

fn read(document: &Value) -> Result<Golden, Fault> {
    Golden::read(document.to_string().as_bytes(), &signature())
}

/// Says x + n, and whether that is more than 3.
struct Sums(Signature);

impl Engine for Sums {
    fn signature(&self) -> &Signature {
        &self.0
    }

    fn run(&mut self, inputs: &[Tensor], wanted: &[usize], _stop: &Stop) -> Result<Vec<Tensor>, Error> {
        assert_eq!((&*inputs[0].name, &*inputs[1].name), ("x", "n"));
        let sum =
            f32::from_le_bytes(inputs[0].data[..].try_into().unwrap()) + i64::from_le_bytes(inputs[1].data[..].try_into().unwrap()) as f32;
        if sum < 0.0 {
            return Err(Error::ModelFailed("negative".into()));
        }
        let outputs = [
            Tensor { name: "sum".into(), datatype: Datatype::Fp32, shape: vec![1], data: sum.to_le_bytes().to_vec().into() },
            Tensor {
                name: "label".into(),
                datatype: Datatype::Int64,
                shape: vec![1],
                data: i64::from(sum > 3.0).to_le_bytes().to_vec().into(),
            },
        ];
        Ok(wanted.iter().map(|place| outputs[*place].clone()).collect())
    }
}

fn held(document: &Value) -> Result<(), Fault> {
    read(document)?.hold(&mut Sums(signature()), &Stop::default())
}

#[test]
fn what_the_model_says_holds_up_to_the_tolerance_and_not_past_it() {
    assert_eq!(held(&json!({ "cases": [case(3.5, 1)] })), Ok(()));
    assert_eq!(held(&json!({ "cases": [case(3.5003, 1)] })), Ok(()));
    let Err(Fault::Differs { case: 1, output, by }) = held(&json!({ "cases": [case(3.5, 1), case(3.625, 1)] })) else { panic!() };
    assert_eq!((&*output, &*by), ("sum", "is off by 1.25e-1"));
    let with = |absolute: f64, relative: f64| held(&json!({ "cases": [case(4.0, 1)], "absolute": absolute, "relative": relative }));
    assert!(with(0.5, 0.0).is_ok() && with(0.499, 0.0).is_err() && with(0.0, 0.125).is_ok() && with(0.0, 0.124).is_err());
    assert!(matches!(held(&json!({ "cases": [case(3.5, 0)] })), Err(Fault::Differs { output, .. }) if output == "label"));
}

#[test]
fn one_output_may_be_expected_and_its_shape_and_what_fails_are_told() {
    let mut only = case(3.5, 1);
    only["outputs"] = json!([tensor("label", "INT64", &json!([1]))]);
    assert_eq!(held(&json!({ "cases": [only.clone()] })), Ok(()));
    only["outputs"] = json!([tensor("label", "INT64", &json!([1, 1]))]);
    assert!(matches!(held(&json!({ "cases": [only.clone()] })), Err(Fault::Differs { by, .. }) if by == "is INT64 [1], not INT64 [2]"));
    only["outputs"] = json!([tensor("label", "FP32", &json!([1]))]);
    assert!(matches!(held(&json!({ "cases": [only.clone()] })), Err(Fault::Differs { .. })));
    only["inputs"][0]["data"] = json!([-20]);
    assert!(matches!(held(&json!({ "cases": [only] })), Err(Fault::Failed { case: 0, .. })));
}

#[test]
fn the_schema_is_closed_and_holds_to_the_models_contract() {
    assert!(matches!(Golden::read(b"{", &signature()), Err(Fault::Json(_))));
    for wrong in [
        json!({}),
        json!({ "cases": [] }),
        json!({ "cases": [case(3.5, 1)], "tolerance": 1 }),
        json!({ "cases": [case(3.5, 1)], "absolute": -1e-9 }),
        json!({ "cases": [case(3.5, 1)], "relative": -1e-9 }),
        json!({ "cases": [{ "inputs": [] }] }),
    ] {
        assert!(matches!(read(&wrong), Err(Fault::Schema(_))), "{wrong}");
    }
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut case = case(3.5, 1);
        change(&mut case);
        read(&json!({ "cases": [case] })).err()
    };
    let changes: [&dyn Fn(&mut Value); 7] = [
        &|case| case["inputs"] = json!([]),
        &|case| drop(case["inputs"].as_array_mut().unwrap().pop()),
        &|case| case["inputs"][0]["name"] = "m".into(),
        &|case| case["inputs"][0]["datatype"] = "INT32".into(),
        &|case| case["outputs"] = json!([]),
        &|case| case["outputs"][0]["name"] = "other".into(),
        &|case| case["outputs"][0]["data"] = json!([1.5]),
    ];
    for (at, change) in changes.into_iter().enumerate() {
        assert!(matches!(changed(change), Some(Fault::Contract { case: 0, .. })), "{at}: {:?}", changed(change));
    }
    let many = |count: usize| read(&json!({ "cases": vec![case(3.5, 1); count] }));
    assert!(many(MAX_CASES).is_ok() && matches!(many(MAX_CASES + 1), Err(Fault::Schema(_))));
}
