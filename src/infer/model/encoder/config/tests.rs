use serde_json::json;

use super::*;

fn read(config: &Value) -> Result<Config, String> {
    Config::read(config.to_string().as_bytes(), false).map_err(|fault| fault.to_string())
}

/// The configurations of well-known models, as their makers publish them.
fn published() -> [(&'static str, Value); 5] {
    [
        (
            "bge-small-en-v1.5",
            json!({
                "_name_or_path": "BAAI_bge-small-en", "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1,
                "classifier_dropout": null, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 384, "id2label": {"0": "LABEL_0"},
                "initializer_range": 0.02, "intermediate_size": 1536, "label2id": {"LABEL_0": 0}, "layer_norm_eps": 1e-12,
                "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
                "position_embedding_type": "absolute", "torch_dtype": "float32", "transformers_version": "4.30.2", "type_vocab_size": 2,
                "use_cache": true, "vocab_size": 30522
            }),
        ),
        (
            "bert-base-NER",
            json!({
                "_num_labels": 9, "architectures": ["BertForTokenClassification"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
                "hidden_dropout_prob": 0.1, "hidden_size": 768, "id2label": {"0": "O", "1": "B-MISC", "2": "I-MISC", "3": "B-PER", "4": "I-PER",
                "5": "B-ORG", "6": "I-ORG", "7": "B-LOC", "8": "I-LOC"}, "initializer_range": 0.02, "intermediate_size": 3072,
                "label2id": {"O": 0}, "layer_norm_eps": 1e-12, "max_length": 512, "max_position_embeddings": 512, "model_type": "bert",
                "num_attention_heads": 12, "num_hidden_layers": 12, "output_past": true, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": 28996
            }),
        ),
        (
            "distilbert-base-uncased-finetuned-sst-2-english",
            json!({
                "activation": "gelu", "architectures": ["DistilBertForSequenceClassification"], "attention_dropout": 0.1, "dim": 768, "dropout": 0.1,
                "finetuning_task": "sst-2", "hidden_dim": 3072, "id2label": {"0": "NEGATIVE", "1": "POSITIVE"}, "initializer_range": 0.02,
                "label2id": {"NEGATIVE": 0, "POSITIVE": 1}, "max_position_embeddings": 512, "model_type": "distilbert", "n_heads": 12, "n_layers": 6,
                "output_past": true, "pad_token_id": 0, "qa_dropout": 0.1, "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": false,
                "tie_weights_": true, "vocab_size": 30522
            }),
        ),
        (
            "roberta-base",
            json!({
                "architectures": ["RobertaForMaskedLM"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0, "eos_token_id": 2,
                "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
                "layer_norm_eps": 1e-5, "max_position_embeddings": 514, "model_type": "roberta", "num_attention_heads": 12,
                "num_hidden_layers": 12, "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 50265
            }),
        ),
        (
            "xlm-roberta-base",
            json!({
                "architectures": ["XLMRobertaForMaskedLM"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0, "eos_token_id": 2,
                "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
                "layer_norm_eps": 1e-5, "max_position_embeddings": 514, "model_type": "xlm-roberta", "num_attention_heads": 12,
                "num_hidden_layers": 12, "output_past": true, "pad_token_id": 1, "position_embedding_type": "absolute",
                "transformers_version": "4.17.0.dev0", "type_vocab_size": 1, "use_cache": true, "vocab_size": 250_002
            }),
        ),
    ]
}

#[test]
fn the_configurations_of_well_known_models_are_read() {
    for (name, config) in published() {
        let read = read(&config).unwrap_or_else(|fault| panic!("{name}: {fault}"));
        let places = read.dimensions.positions - read.dimensions.first_position;
        assert_eq!(places, 512, "{name}");
        let (task, labels) = match name {
            "bert-base-NER" => (Task::ClassifyTokens, 9),
            "distilbert-base-uncased-finetuned-sst-2-english" => (Task::ClassifySequences, 2),
            _ => (Task::Embed, 0),
        };
        assert_eq!((read.task, read.labels.len()), (task, labels), "{name}");
    }
}

#[test]
fn what_is_computed_must_be_told() {
    for (name, config) in published() {
        let members = config.as_object().unwrap();
        let wanted = ["vocab_size", "max_position_embeddings", "model_type", "architectures"];
        for key in wanted {
            let mut less = members.clone();
            less.remove(key);
            assert!(read(&Value::Object(less)).is_err(), "{name} without {key}");
        }
        let mut more = members.clone();
        more.insert("is_encoder_decoder".into(), json!(true));
        assert!(read(&Value::Object(more)).unwrap_err().contains("is_encoder_decoder"), "{name}");
    }
}

#[test]
fn places_of_roberta_are_counted_from_behind_its_padding() {
    let [.., (_, mut config)] = published();
    config.as_object_mut().unwrap().remove("pad_token_id");
    let read = read(&config).unwrap();
    assert_eq!((read.dimensions.padding, read.dimensions.first_position), (1, 2));
}
