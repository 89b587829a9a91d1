use super::*;

fn port(name: &str, datatype: Datatype, shape: &[Option<u64>]) -> Port {
    Port { name: name.to_owned(), datatype, shape: shape.to_vec() }
}

fn config(class: &str) -> Config {
    let told = format!(
        "{{\"architectures\":[\"{class}\"],\"model_type\":\"bert\",\"vocab_size\":35,\"max_position_embeddings\":20,\"hidden_size\":8,\
         \"intermediate_size\":16,\"num_attention_heads\":2,\"num_hidden_layers\":2,\"hidden_act\":\"gelu\",\
         \"layer_norm_eps\":1e-12,\"type_vocab_size\":2,\"pad_token_id\":0,\"num_labels\":3}}"
    );
    Config::read(told.as_bytes(), false).unwrap()
}

fn plan(class: &str, outputs: &[Port]) -> Result<(usize, bool, usize), String> {
    let inputs = ["input_ids", "attention_mask"].map(|name| port(name, Datatype::Int64, &[None, None])).to_vec();
    let graph = Signature { inputs, instead: Vec::new(), outputs: outputs.to_vec(), longest: None, apart: false };
    let plan = Plan::of(&graph, &config(class)).map_err(|fault| fault.to_string())?;
    Ok((plan.output, plan.of_tokens, plan.width))
}

fn fp32(name: &str, shape: &[Option<u64>]) -> Port {
    port(name, Datatype::Fp32, shape)
}

#[test]
fn the_output_that_counts_is_known_by_its_name_and_shape() {
    let (hidden, pooler) = (fp32("last_hidden_state", &[None, None, Some(8)]), fp32("pooler_output", &[None, Some(8)]));
    let sentence = fp32("sentence_embedding", &[None, Some(8)]);
    // What the pooler of BERT gives is not what sentences are compared by.
    assert_eq!(plan("BertModel", &[pooler.clone(), hidden.clone()]), Ok((1, true, 8)));
    assert_eq!(plan("BertModel", &[hidden.clone(), sentence.clone()]), Ok((1, false, 8)));
    assert_eq!(plan("BertModel", &[fp32("whatever", &[None, None, None])]), Ok((0, true, 8)));
    assert_eq!(plan("BertForSequenceClassification", &[fp32("logits", &[None, Some(3)])]), Ok((0, false, 3)));
    assert_eq!(plan("BertForTokenClassification", &[hidden.clone(), fp32("logits", &[None, None, Some(3)])]), Ok((1, true, 3)));
    assert!(plan("BertModel", &[pooler, fp32("other", &[None, Some(8)])]).unwrap_err().contains("none of its outputs is called"));
}

#[test]
fn an_output_of_another_shape_or_kind_is_refused() {
    let told = |class, output| plan(class, &[output]).unwrap_err();
    assert!(told("BertModel", fp32("y", &[None, None, Some(9)])).contains("is not 8 wide"));
    assert!(told("BertModel", fp32("y", &[Some(1), Some(8)])).contains("any number of texts"));
    assert!(told("BertModel", fp32("y", &[None])).contains("has 1 dimensions"));
    assert!(told("BertModel", port("y", Datatype::Fp16, &[None, Some(8)])).contains("is not FP32"));
    assert!(told("BertForSequenceClassification", fp32("logits", &[None, None, Some(3)])).contains("has 3 dimensions"));
    assert!(told("BertForTokenClassification", fp32("logits", &[None, Some(3)])).contains("has 2 dimensions"));
    assert!(told("BertForSequenceClassification", fp32("logits", &[None, Some(2)])).contains("is not 3 wide"));
}

#[test]
fn an_input_of_another_shape_or_kind_is_refused() {
    let told = |input: Port| {
        let outputs = vec![fp32("y", &[None, Some(8)])];
        let graph = Signature {
            inputs: vec![input, port("attention_mask", Datatype::Int64, &[None, None])],
            instead: Vec::new(),
            outputs,
            longest: None,
            apart: false,
        };
        Plan::of(&graph, &config("BertModel")).unwrap_err().to_string()
    };
    assert!(told(port("input_ids", Datatype::Int32, &[None, None])).contains("is not INT64"));
    assert!(told(port("input_ids", Datatype::Int64, &[Some(1), None])).contains("any number of texts"));
    assert!(told(port("input_ids", Datatype::Int64, &[None, Some(128)])).contains("any number of texts"));
    assert!(told(port("input_ids", Datatype::Int64, &[None])).contains("any number of texts"));
    assert!(told(port("token_type_ids", Datatype::Int64, &[None, None])).contains("no input `input_ids`"));
}

#[test]
fn an_answer_that_is_not_as_long_as_it_should_be_is_none() {
    let plan = Plan { inputs: Vec::new(), output: 0, of_tokens: false, width: 2 };
    let rows = |shape: &[u64], numbers: &[f32]| {
        let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let answer = Tensor { name: "y".into(), datatype: Datatype::Fp32, shape: shape.to_vec(), data: data.into() };
        plan.rows(Task::Embed, (Pooling::Mean, false), &[&[1], &[2, 3]], &answer)
    };
    assert_eq!(rows(&[2, 2], &[1.0, 2.0, 3.0, 4.0]).unwrap(), [[1.0, 2.0], [3.0, 4.0]]);
    assert!(matches!(rows(&[1, 2], &[1.0, 2.0]), Err(Error::ModelBrokeItsContract(_))));
    assert!(matches!(rows(&[4, 1], &[1.0, 2.0, 3.0, 4.0]), Err(Error::ModelBrokeItsContract(_))));
    // As many numbers as there should be, the other way round.
    let turned = Plan { of_tokens: true, width: 3, ..plan };
    let answer = |shape: &[u64]| Tensor { name: "y".into(), datatype: Datatype::Fp32, shape: shape.to_vec(), data: vec![0; 48].into() };
    let rows = |shape| turned.rows(Task::Embed, (Pooling::Mean, false), &[&[1, 2], &[2, 3]], &answer(shape));
    assert_eq!(rows(&[2, 2, 3]).unwrap(), [[0.0; 3]; 2]);
    assert!(matches!(rows(&[2, 3, 2]), Err(Error::ModelBrokeItsContract(_))));
}
