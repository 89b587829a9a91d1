//! Files that are not loaded, and those that are as they should be in spite of what was changed.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Loads a model of whose `config.json` one member is set, or taken out where it is null.
fn with_config(name: &str, key: &str, value: Value) -> Result<Encoder, Fault> {
    let mut files = files(name);
    let mut config: Value = serde_json::from_slice(&files["config.json"]).unwrap();
    match value {
        Value::Null => _ = config.as_object_mut().unwrap().remove(key),
        value => config[key] = value,
    }
    files.insert("config.json".into(), config.to_string().into());
    Encoder::load(&files, &Options::default())
}

#[test]
fn a_configuration_runs_no_code_and_holds_no_surprise() {
    for (key, value, word) in [
        ("auto_map", json!({"AutoModel": "evil.py"}), "names code"),
        ("custom_pipelines", json!({"x": {}}), "names code"),
        ("trust_remote_code", json!(true), "names code"),
        ("quantization_config", json!({"bits": 4}), "not stored"),
        ("new_trick", json!(1), "not known"),
        ("is_decoder", json!(true), "is not false"),
        ("position_embedding_type", json!("relative_key"), "absolute"),
        ("hidden_act", json!("swish"), "gelu"),
        ("model_type", json!("gpt2"), "not one that is run"),
        ("model_type", Value::Null, "missing"),
        ("architectures", json!(["BertModel", "Evil"]), "one name"),
        ("hidden_size", json!(-8), "from 1 on"),
        ("hidden_size", json!("8"), "from 1 on"),
        ("hidden_size", json!(1_u64 << 40), "larger"),
        ("num_hidden_layers", json!(MAX_LAYERS + 1), "larger"),
        ("max_position_embeddings", json!(MAX_POSITIONS + 1), "larger"),
        ("vocab_size", json!(MAX_VOCABULARY + 1), "larger"),
        ("pad_token_id", json!(100_000), "outside"),
        ("num_attention_heads", json!(3), "divided"),
        ("layer_norm_eps", json!(-1.0), "0.1"),
        ("vocab_size", json!(10), "beyond"),
        ("vocab_size", json!(100), "is [35, 8]"),
        ("num_hidden_layers", json!(3), "missing"),
        ("num_hidden_layers", json!(1), "not one that the architecture has"),
    ] {
        let fault = with_config("bert-mean", key, value.clone()).unwrap_err().to_string();
        assert!(fault.contains(word), "{key} {value}: {fault}");
    }
    for (key, value) in [("auto_map", json!({})), ("quantization_config", Value::Null), ("transformers_version", json!("9"))] {
        assert!(with_config("bert-mean", key, value).is_ok(), "{key}");
    }
    for (key, value, word) in [
        ("architectures", json!(["BertForQuestionAnswering"]), "not served"),
        ("architectures", Value::Null, "missing"),
        ("problem_type", json!("regression"), "problem_type"),
        ("id2label", json!({"0": "a", "2": "b"}), "labels"),
        ("id2label", json!({}), "labels"),
        ("num_labels", json!(2), "labels"),
        ("id2label", json!({"0": "a", "1": "b"}), "where the configuration makes it"),
    ] {
        let fault = with_config("bert-sequence", key, value.clone()).unwrap_err().to_string();
        assert!(fault.contains(word), "{key} {value}: {fault}");
    }
    let many = |count: usize| Value::Object((0..count).map(|at| (at.to_string(), json!("x"))).collect());
    assert!(with_config("bert-sequence", "id2label", many(MAX_LABELS)).unwrap_err().to_string().contains("makes it"));
    assert!(with_config("bert-sequence", "id2label", many(MAX_LABELS + 1)).unwrap_err().to_string().contains("too many"));
}

#[test]
fn files_beside_the_weights_have_closed_schemas() {
    let with = |name: &str, content: &str| {
        let mut files = files("bert-mean");
        files.insert(name.into(), content.to_owned().into());
        Encoder::load(&files, &Options::default()).map(|_| ()).map_err(|fault| fault.to_string())
    };
    let refused = |name: &str, content: &str, word: &str| {
        let fault = with(name, content).unwrap_err();
        assert!(fault.contains(word) && fault.contains(name), "{content}: {fault}");
    };
    let module = |class: &str, path: &str| format!(r#"{{"idx":0,"name":"0","path":"{path}","type":"{class}"}}"#);
    let known = ["Transformer", "Pooling"].map(|name| format!("sentence_transformers.models.{name}"));
    let [encoder, pooling] = [module(&known[0], ""), module(&known[1], "1_Pooling")];
    assert!(with("modules.json", &format!("[{encoder},{pooling}]")).is_ok());
    refused("modules.json", &format!("[{encoder}]"), "are not");
    refused("modules.json", &format!("[{encoder},{pooling},{}]", module("sentence_transformers.models.Dense", "2")), "are not");
    refused("modules.json", &format!("[{encoder},{}]", module("evil.Pooling", "1_Pooling")), "are not");
    refused("modules.json", &format!("[{encoder},{}]", module(&known[1], "../../etc")), "not there");
    refused("modules.json", &format!("[{},{pooling}]", module(&known[0], "0_Transformer")), "another folder");
    refused("modules.json", r#"[{"idx":0,"name":"0","path":"","type":"x","kwargs":[]}]"#, "unknown field");
    let pooling = |more: &str| format!(r#"{{"word_embedding_dimension":8{more}}}"#);
    assert!(with("1_Pooling/config.json", &pooling(r#","pooling_mode_cls_token":true"#)).is_ok());
    refused("1_Pooling/config.json", &pooling(""), "exactly one");
    refused("1_Pooling/config.json", &pooling(r#","pooling_mode_cls_token":true,"pooling_mode_mean_tokens":true"#), "exactly one");
    refused("1_Pooling/config.json", &pooling(r#","pooling_mode_max_tokens":true"#), "exactly one");
    refused("1_Pooling/config.json", r#"{"word_embedding_dimension":9,"pooling_mode_mean_tokens":true}"#, "width");
    refused("sentence_bert_config.json", r#"{"max_seq_length":0}"#, "is 0");
    let fault = with("sentence_bert_config.json", r#"{"max_seq_length":2}"#).unwrap_err();
    assert!(fault.contains("2 tokens around a text, of at most 2"), "{fault}");
    assert!(with("sentence_bert_config.json", r#"{"max_seq_length":3}"#).is_ok());
    refused("sentence_bert_config.json", r#"{"max_seq_length":4,"max_seq_length":5}"#, "twice");
    refused("config.json", "[]", "object");
    refused("config.json", "{", "ends in the middle");
    refused("config.json", &" ".repeat(MAX_CONFIG + 1), "larger");
    refused("tokenizer.json", "{}", "");
    refused("tokenizer.json", &"[".repeat(100_000), "");
    refused("tokenizer.json", &" ".repeat(MAX_TOKENIZER + 1), "larger");
    refused("model.safetensors", "", "ends before");
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let mut files = files("bert-mean");
        files.remove(name);
        assert!(matches!(Encoder::load(&files, &Options::default()), Err(Fault::Missing(missing)) if missing == name));
    }
}

#[test]
fn a_tensor_too_many_is_refused_unless_it_is_of_a_known_other_head() {
    let renamed = |name: &str, from: &str, to: &str| {
        let mut files = files(name);
        let bytes = &files["model.safetensors"];
        let length = usize::try_from(u64::from_le_bytes(*bytes.first_chunk().unwrap())).unwrap();
        let header = std::str::from_utf8(&bytes[8..8 + length]).unwrap().trim_end();
        assert!(header.contains(from));
        let header = header.replace(from, to);
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[8 + length..]].concat();
        files.insert("model.safetensors".into(), file.into());
        Encoder::load(&files, &Options::default()).map(|_| ()).map_err(|fault| fault.to_string())
    };
    assert!(renamed("bert-mean", "pooler.dense.", "cls.predictions.").is_ok());
    assert!(renamed("bert-mean", "pooler.dense.", "adapter.").unwrap_err().contains("not one that the architecture has"));
    assert!(
        renamed("bert-mean", "encoder.layer.1.output.dense.bias", "encoder.layer.1.output.dense.bios").unwrap_err().contains("missing")
    );
    assert!(renamed("bert-mean", "\"encoder.", "\"bert.encoder.").is_ok());
    assert!(renamed("bert-sequence", "bert.pooler.", "bert.puller.").unwrap_err().contains("missing"));
    assert!(renamed("distilbert-sequence", "\"F16\"", "\"BF16\"").is_ok());
    assert!(renamed("distilbert-sequence", "\"F16\"", "\"I16\"").unwrap_err().contains("I16"));
}

#[test]
fn weights_that_are_not_finite_give_no_answer() {
    let mut files = files("bert-mean");
    let mut bytes = files["model.safetensors"].to_vec();
    let layout = super::safetensors::scan(&bytes).unwrap();
    let place = layout.tensors["encoder.layer.1.output.dense.bias"].range.start;
    bytes[place..place + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    files.insert("model.safetensors".into(), bytes.into());
    let mut model = Encoder::load(&files, &Options::default()).unwrap();
    assert!(matches!(model.run(&[text(&["a"])], &[0], NEVER), Err(Error::ModelFailed(_))));
}

proptest! {
    /// Whatever is changed in a file, it is loaded or refused, and what is loaded answers or says why not.
    #[test]
    fn a_changed_file_never_panics(file in 0_usize..6, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut files = files("bert-mean");
        let name = READ[file];
        let mut bytes = files[name].to_vec();
        let place = at.index(bytes.len());
        bytes[place] = byte;
        files.insert(name.into(), bytes.into());
        if let Ok(mut model) = Encoder::load(&files, &Options::default()) {
            let _ = model.run(&[text(&["the cat", ""])], &[0], NEVER);
        }
    }
}
