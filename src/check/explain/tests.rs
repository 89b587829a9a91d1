use serde_json::{Value, json};

use super::*;

fn port(name: &str, datatype: Datatype, shape: &[Option<u64>]) -> Port {
    Port { name: name.into(), datatype, shape: shape.to_vec() }
}

fn contract() -> Contract {
    Contract {
        inputs: vec![port("age", Datatype::Int64, &[None]), port("rest", Datatype::Fp32, &[None, Some(2)])],
        outputs: vec![port("label", Datatype::Int64, &[None]), port("score", Datatype::Fp32, &[None, Some(3)])],
        ..Contract::default()
    }
}

fn rows(count: usize) -> Value {
    let age = json!({"name": "age", "datatype": "INT64", "shape": [count], "data": vec![30; count]});
    let rest = json!({"name": "rest", "datatype": "FP32", "shape": [count, 2], "data": vec![0.5; count * 2]});
    // In another order than the model's.
    json!({"inputs": [rest, age]})
}

fn compiled(contract: Option<Contract>, background: &str, more: &str) -> (Option<Arc<Terms>>, Vec<String>) {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("models")).unwrap();
    std::fs::write(home.path().join("models/rows.json"), background).unwrap();
    let text = format!("background = \"rows.json\"\nsha256 = \"{}\"\n{more}", Digest::of(background.as_bytes()));
    let config: Config = toml::from_str(&text).unwrap();
    let rules = Rules { max_batch: contract.as_ref().map(|_| 64), contract, ..Rules::default() };
    let mut mistakes = Vec::new();
    let terms = config.compile(&home.path().join("models"), home.path(), &rules, &mut mistakes);
    (terms, mistakes.into_iter().map(|mistake| mistake.what).collect())
}

fn with(more: &str) -> Arc<Terms> {
    let (terms, mistakes) = compiled(Some(contract()), &rows(10).to_string(), more);
    assert_eq!(mistakes, Vec::<String>::new());
    terms.unwrap()
}

fn asked(terms: &Arc<Terms>, rows: u64, samples: Option<u64>, output: Option<&str>) -> Result<Explanation, Unexplained> {
    let tensor = Tensor { name: "age".into(), datatype: Datatype::Int64, shape: vec![rows], data: vec![0; 8].into() };
    let request = InferRequest { inputs: vec![tensor], ..InferRequest::default() };
    terms.explanation(oip::Explain { samples, output: output.map(str::to_owned) }, request, &contract())
}

#[test]
fn the_background_is_held_to_the_contract_and_ordered_by_it() {
    let terms = with("");
    assert_eq!((terms.rows(), terms.features, terms.chunk()), (10, 3, 64));
    assert_eq!(terms.background().iter().map(|tensor| &*tensor.name).collect::<Vec<_>>(), ["age", "rest"]);
    for (background, told) in [
        ("{".to_owned(), "ends in the middle"),
        ("{}".to_owned(), "/inputs"),
        (json!({"inputs": [rows(1)["inputs"][0]]}).to_string(), "check.tensor_missing"),
        (rows(MAX_BACKGROUND + 1).to_string(), "check.batch"),
        (rows(0).to_string(), "check.shape"),
        (" ".repeat(MAX_FILE + 1), "is larger"),
    ] {
        let (terms, mistakes) = compiled(Some(contract()), &background, "");
        assert!(terms.is_none() && mistakes.len() == 1 && mistakes[0].contains(told), "{mistakes:?} for {told}");
    }
    let longest = compiled(Some(contract()), &rows(MAX_BACKGROUND).to_string(), "max_rows = 1");
    assert_eq!((longest.0.unwrap().rows(), longest.1.len()), (MAX_BACKGROUND, 0));
    let full = format!("{}{}", rows(1), " ".repeat(MAX_FILE - rows(1).to_string().len()));
    assert_eq!(compiled(Some(contract()), &full, "").1, Vec::<String>::new());
}

#[test]
fn a_background_that_is_another_or_lies_elsewhere_is_a_mistake() {
    let home = tempfile::tempdir().unwrap();
    let models = home.path().join("policies/models");
    std::fs::create_dir_all(&models).unwrap();
    for file in [models.join("rows.json"), home.path().join("out.json")] {
        std::fs::write(file, rows(1).to_string()).unwrap();
    }
    std::os::unix::fs::symlink("../../out.json", models.join("link.json")).unwrap();
    let right = Digest::of(rows(1).to_string().as_bytes()).to_string();
    let told = |file: &str, sha256: &str| {
        let config: Config = toml::from_str(&format!("background = \"{file}\"\nsha256 = \"{sha256}\"")).unwrap();
        let rules = Rules { contract: Some(contract()), ..Rules::default() };
        let mut mistakes = Vec::new();
        config.compile(&models, &home.path().join("policies"), &rules, &mut mistakes);
        mistakes.into_iter().map(|mistake| mistake.what).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(told("rows.json", &right), "");
    assert!(told("rows.json", &Digest::of(b"").to_string()).contains("is not the file that is named"));
    assert!(told("rows.json", "12").contains("`sha256`"));
    for out in ["link.json", "../../out.json"] {
        assert!(told(out, &right).contains("leaves the policy folder"), "{out}");
    }
    assert!(told(".", &right).contains("regular"));
    assert!(told("none.json", &right).contains("cannot be read"));
}

#[test]
fn only_models_of_tables_are_explained() {
    let told = |change: &dyn Fn(&mut Contract)| {
        let mut contract = contract();
        change(&mut contract);
        compiled(Some(contract), &rows(1).to_string(), "").1.join("; ")
    };
    assert_eq!(told(&|_| {}), "");
    assert!(told(&|contract| contract.longest = Some(1)).contains("tables"));
    assert!(told(&|contract| contract.instead = contract.inputs.clone()).contains("tables"));
    assert!(told(&|contract| contract.inputs[1].shape = vec![None, None]).contains("tables"));
    assert!(told(&|contract| contract.inputs[1].shape = vec![Some(1), Some(2)]).contains("tables"));
    let texts = |input| format!("its input {input:?} holds texts (BYTES), which have no features");
    assert!(told(&|contract| contract.inputs[0].datatype = Datatype::Bytes).contains(&texts("age")));
    // As an encoder has it, which takes tokens instead.
    let encoder = told(&|contract| {
        contract.inputs = vec![port("text", Datatype::Bytes, &[None])];
        contract.instead = vec![port("input_ids", Datatype::Int64, &[None, None])];
        contract.longest = Some(512);
    });
    assert!(encoder.contains(&texts("text")), "{encoder}");
    assert!(told(&|contract| contract.inputs[1].shape = vec![None, None]).contains("which \"rest\" does not"));
    assert!(told(&|contract| contract.outputs.truncate(1)).contains("no output of FP32"));
    assert!(told(&|contract| contract.outputs[0].name = "explain.base".into()).contains("explain."));
    assert!(compiled(None, &rows(1).to_string(), "").1[0].contains("in this machine"));
    let wide = |features: usize| {
        let contract = Contract { inputs: vec![port("x", Datatype::Uint8, &[None, Some(features as u64)])], ..contract() };
        let row = json!({"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, features], "data": vec![0; features]}]});
        compiled(Some(contract), &row.to_string(), "").1.join("; ")
    };
    assert_eq!(wide(MAX_FEATURES), "");
    assert!(wide(MAX_FEATURES + 1).contains("1024 features"));
}

#[test]
fn the_bounds_of_the_policy_hold_at_their_limit_and_one_past_it() {
    let told = |more: &str| compiled(Some(contract()), &rows(1).to_string(), more).1.join("; ");
    assert_eq!(told(&format!("max_samples = {MAX_SAMPLES}\nmax_rows = {MAX_ROWS}")), "");
    for wrong in ["max_samples = 0", "max_samples = 257", "max_rows = 0", "max_rows = 65"] {
        assert!(told(wrong).contains("it is from 1 to"), "{wrong}");
    }
    // 256 + 64 × samples × 2 × 2 × 256 rows.
    let dearest = |samples: u64| {
        let more = format!("max_rows = 64\nmax_samples = {samples}");
        compiled(Some(contract()), &rows(MAX_BACKGROUND).to_string(), &more).1.join("; ")
    };
    assert_eq!(dearest(15), "");
    assert!(dearest(16).contains("one request could ask the model about 1048832 rows"), "{}", dearest(16));
}

#[test]
fn what_may_be_asked_holds_at_its_limit_and_one_past_it() {
    let terms = with("max_samples = 5\nmax_rows = 2");
    let explanation = asked(&terms, 2, Some(5), None).unwrap();
    assert_eq!((&*explanation.output, explanation.samples, explanation.rows), ("score", 5, 2));
    assert_eq!((explanation.evaluations(), explanation.queries()), (10 + 2 * 5 * 2 * 2 * 10, 7));
    assert_eq!(asked(&terms, 2, Some(6), None).err(), Some(Unexplained::TooManySamples));
    assert_eq!(asked(&terms, 3, Some(5), None).err(), Some(Unexplained::TooManyRows));
    assert_eq!(asked(&terms, 1, None, None).unwrap().samples, 5);
    assert_eq!(asked(&with("max_samples = 100"), 1, None, None).unwrap().samples, DEFAULT_SAMPLES);
    assert_eq!(asked(&with(""), DEFAULT_ROWS + 1, None, None).err(), Some(Unexplained::TooManyRows));
}

#[test]
fn an_output_of_floats_is_explained_and_named_where_there_are_several() {
    let terms = with("");
    assert!(asked(&terms, 1, None, Some("score")).is_ok());
    for other in ["label", "none"] {
        assert_eq!(asked(&terms, 1, None, Some(other)).err(), Some(Unexplained::Output), "{other}");
    }
    let mut two = contract();
    two.outputs.push(port("logits", Datatype::Fp64, &[None, Some(3)]));
    let tensor = Tensor { name: "age".into(), datatype: Datatype::Int64, shape: vec![1], data: vec![0; 8].into() };
    let request = || InferRequest { inputs: vec![tensor.clone()], ..InferRequest::default() };
    assert_eq!(terms.explanation(oip::Explain::default(), request(), &two).err(), Some(Unexplained::Output));
    let named = oip::Explain { output: Some("logits".into()), samples: None };
    assert_eq!(terms.explanation(named, request(), &two).unwrap().output, "logits");
}
