use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};

use super::*;

mod files;

/// What the reference in numpy answered for one text. Models have some of the answers.
#[derive(Deserialize)]
struct Expected {
    text: String,
    ids: Vec<u32>,
    #[serde(default)]
    embedding: Vec<f64>,
    #[serde(default)]
    logits: Value,
    #[serde(default)]
    probabilities: Value,
}

const NAMES: [&str; 6] = ["bert-mean", "bert-sequence", "bert-token", "distilbert-sequence", "roberta-cls", "roberta-sequence"];

/// Answers are of 32-bit floats, the reference's of 64.
const CLOSE: f64 = 2e-5;

const NEVER: Stop = &|| false;

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

fn folder(path: &Path) -> Files {
    let read = |name: &str| std::fs::read(path.join(name)).ok().map(|bytes| (name.to_owned(), Bytes::from(bytes)));
    READ.into_iter().filter_map(read).collect()
}

fn files(name: &str) -> Files {
    folder(&data("encoders").join(name))
}

fn load(name: &str) -> Encoder {
    Encoder::load(&files(name), &Options::default()).unwrap()
}

fn expected(name: &str) -> Vec<Expected> {
    let all: Value = serde_json::from_slice(&std::fs::read(data("encoders/expected.json")).unwrap()).unwrap();
    serde_json::from_value(all[name].clone()).unwrap()
}

fn flat(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(list) => list.iter().flat_map(flat).collect(),
        other => vec![other.as_f64().unwrap()],
    }
}

fn text(texts: &[&str]) -> Tensor {
    let mut data = Vec::new();
    for text in texts {
        data.extend_from_slice(&u32::try_from(text.len()).unwrap().to_le_bytes());
        data.extend_from_slice(text.as_bytes());
    }
    Tensor { name: "text".into(), datatype: Datatype::Bytes, shape: vec![texts.len() as u64], data: data.into() }
}

fn ints(name: &str, rows: &[Vec<i64>]) -> Tensor {
    let data: Vec<u8> = rows.iter().flatten().flat_map(|number| number.to_le_bytes()).collect();
    let longest = rows.first().map_or(0, Vec::len);
    Tensor { name: name.into(), datatype: Datatype::Int64, shape: vec![rows.len() as u64, longest as u64], data: data.into() }
}

/// Rows of tokens, filled up with a token that must not be looked at.
fn ids(rows: &[Vec<u32>]) -> [Tensor; 2] {
    let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
    let fill = |row: &Vec<u32>, with: i64| vec![with; longest - row.len()];
    let tokens = rows.iter().map(|row| row.iter().map(|token| i64::from(*token)).chain(fill(row, 7)).collect()).collect::<Vec<_>>();
    let mask = rows.iter().map(|row| row.iter().map(|_| 1).chain(fill(row, 0)).collect()).collect::<Vec<_>>();
    [ints("input_ids", &tokens), ints("attention_mask", &mask)]
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.data.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
}

fn counts(tensor: &Tensor) -> Vec<i64> {
    tensor.data.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
}

fn is_close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < CLOSE, "{what}: {found} for {expected}");
    }
}

fn cosine(one: &[f32], other: &[f64]) -> f64 {
    let one = one.iter().map(|number| f64::from(*number));
    let dot: f64 = one.clone().zip(other).map(|(one, other)| one * other).sum();
    let length = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|number| number * number).sum::<f64>().sqrt();
    dot / length(&mut one.clone()) / length(&mut other.iter().copied())
}

/// The answers of a model that are not `tokens`, by name.
fn fields(row: &Expected) -> Vec<(&'static str, Vec<f64>)> {
    if row.embedding.is_empty() {
        vec![("logits", flat(&row.logits)), ("probabilities", flat(&row.probabilities))]
    } else {
        vec![("embedding", row.embedding.clone())]
    }
}

#[test]
fn every_architecture_and_head_answers_as_the_reference_does() {
    for name in NAMES {
        let mut model = load(name);
        for row in expected(name) {
            let all: Vec<usize> = (0..model.signature().outputs.len()).collect();
            let answers = model.run(&[text(&[&row.text])], &all, NEVER).unwrap();
            let length = i64::try_from(row.ids.len()).unwrap();
            assert_eq!(counts(&answers[all.len() - 1]), [length], "{name}: {:?}", row.text);
            for (answer, (field, expected)) in answers.iter().zip(fields(&row)) {
                assert_eq!(answer.name, field);
                is_close(&numbers(answer), &expected, &format!("{name}: {field} of {:?}", row.text));
            }
            assert_eq!(model.reading.tokens.encode(&row.text, false).unwrap().tokens, row.ids, "{name}: {:?}", row.text);
        }
    }
}

#[test]
fn a_classifier_of_tokens_says_where_they_stand() {
    let mut model = load("bert-token");
    let texts = ["Café?", "Unhappy cats, a dog ran away!"];
    let answer = model.run(&[text(&texts)], &[2], NEVER).unwrap();
    assert_eq!((answer[0].name.as_str(), &answer[0].shape[..]), ("offsets", &[2, 12, 2][..]));
    let offsets: Vec<usize> = counts(&answer[0]).into_iter().map(|offset| usize::try_from(offset).unwrap()).collect();
    let parts = |row: usize| {
        let places = offsets.chunks(2).skip(row * 12).take(12);
        places.map(|place| texts[row].chars().take(place[1]).skip(place[0]).collect::<String>()).collect::<Vec<_>>()
    };
    assert_eq!(parts(0), ["", "Café", "?", "", "", "", "", "", "", "", "", ""]);
    assert_eq!(parts(1), ["", "Un", "happy", "cat", "s", ",", "a", "dog", "ran", "away", "!", ""]);
    let answer = model.run(&ids(&[vec![2, 5, 3]]), &[2], NEVER).unwrap();
    assert_eq!(counts(&answer[0]), [0; 6]);
}

/// The tokens of a text by a tokenizer of another kind than BERT's.
fn tokens_by(model: &Value, pre_tokenizer: &Value, text: &str, longest: usize) -> Vec<u32> {
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": pre_tokenizer, "decoder": null, "model": model,
        "post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": true, "add_prefix_space": false},
    });
    Tokens::read(file.to_string().as_bytes(), 16, longest, false).unwrap().encode(text, false).unwrap().tokens
}

#[test]
fn tokenizers_of_other_kinds_are_read_and_cut_too() {
    let bpe = json!({
        "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": false,
        "vocab": {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5, "\u{120}": 6, "ab": 7, "\u{120}a": 8, "\u{120}ab": 9},
        "merges": ["a b", "\u{120} ab", "\u{120} a"],
    });
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    assert_eq!(tokens_by(&bpe, &bytes, "ab ab a", 8), [0, 7, 9, 8, 2]);
    assert_eq!(tokens_by(&bpe, &bytes, "ab ab a", 4), [0, 7, 9, 2]);
    let pieces =
        json!([["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["\u{2581}", -4.0], ["\u{2581}ab", -1.0], ["a", -3.0]]);
    let unigram = json!({"type": "Unigram", "unk_id": 3, "vocab": pieces, "byte_fallback": false});
    let words = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true});
    assert_eq!(tokens_by(&unigram, &words, "ab a", 8), [0, 5, 4, 6, 2]);
    assert_eq!(tokens_by(&unigram, &words, "ab a", 3), [0, 5, 2]);
}

#[test]
fn a_tokenizer_that_puts_nothing_around_a_text_is_refused() {
    let file =
        json!({"model": {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}, "version": "1.0", "added_tokens": []});
    let fault = Tokens::read(file.to_string().as_bytes(), 2, 8, false).unwrap_err().to_string();
    assert!(fault.contains("no token around a text"), "{fault}");
}

#[test]
fn a_batch_answers_what_its_texts_do_alone() {
    for name in NAMES {
        let mut model = load(name);
        let rows = expected(name);
        let texts: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
        let tokens: Vec<Vec<u32>> = rows.iter().map(|row| row.ids.clone()).collect();
        let longest = tokens.iter().map(Vec::len).max().unwrap();
        for inputs in [vec![text(&texts)], ids(&tokens).to_vec()] {
            let answers = model.run(&inputs, &[0], NEVER).unwrap();
            let answer = numbers(&answers[0]);
            let each = answer.len() / rows.len();
            for (found, row) in answer.chunks(each).zip(&rows) {
                let (_, expected) = fields(row).remove(0);
                is_close(&found[..expected.len()], &expected, name);
                assert!(found[expected.len()..].iter().all(|number| *number == 0.0), "behind a shorter text are zeros");
            }
            let mut shape = vec![rows.len() as u64];
            shape.extend(model.signature().outputs[0].shape[1..].iter().map(|length| length.unwrap_or(longest as u64)));
            assert_eq!(answers[0].shape, shape);
        }
    }
}

#[test]
fn embeddings_are_those_of_the_texts_in_their_order() {
    let mut model = load("bert-mean");
    let rows = expected("bert-mean");
    let mut items: Vec<Item> = rows.iter().map(|row| Item::Text(&row.text)).collect();
    items.extend(rows.iter().map(|row| Item::Tokens(&row.ids)));
    let embedded = model.embed(&items, NEVER).unwrap();
    assert_eq!(embedded.tokens, 2 * rows.iter().map(|row| row.ids.len() as u64).sum::<u64>());
    for (vector, row) in embedded.vectors.iter().zip(rows.iter().chain(&rows)) {
        assert!(cosine(vector, &row.embedding) > 1.0 - 1e-9);
        assert!((vector.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>() - 1.0).abs() < 1e-6);
    }
    assert!(model.embed(&[], NEVER).unwrap().vectors.is_empty());
    assert!(load("bert-sequence").embed(&[Item::Text("a")], NEVER).is_err());
}

#[test]
fn the_operator_may_choose_pooling_and_normalisation() {
    let options = Options { pooling: Some(Pooling::Cls), normalize: Some(false), ..Options::default() };
    let row = &expected("roberta-cls")[0];
    let cls = Encoder::load(&files("roberta-cls"), &options).unwrap().embed(&[Item::Text(&row.text)], NEVER).unwrap();
    is_close(&cls.vectors[0].iter().map(|number| f64::from(*number)).collect::<Vec<_>>(), &row.embedding, "cls");
    let mean = Options { pooling: Some(Pooling::Mean), normalize: Some(true), ..Options::default() };
    let mean = Encoder::load(&files("roberta-cls"), &mean).unwrap().embed(&[Item::Text(&row.text)], NEVER).unwrap();
    assert!(cosine(&mean.vectors[0], &row.embedding) < 0.99);
}

#[test]
fn a_folder_without_the_files_of_sentence_transformers_embeds_by_the_mean() {
    let mut bare = files("bert-mean");
    bare.retain(|name, _| ["config.json", "tokenizer.json", "model.safetensors"].contains(&name.as_str()));
    let mut model = Encoder::load(&bare, &Options::default()).unwrap();
    let row = &expected("bert-mean")[0];
    let embedded = model.embed(&[Item::Text(&row.text)], NEVER).unwrap();
    assert!(cosine(&embedded.vectors[0], &row.embedding) > 1.0 - 1e-9);
    assert_eq!(model.longest(), 20);
}

#[test]
fn what_a_caller_may_not_send_is_refused() {
    let mut model = load("bert-mean");
    let mut refused = |inputs: &[Tensor]| match model.run(inputs, &[0], NEVER) {
        Err(Error::CallerSentOtherInputs(why)) => why,
        other => panic!("{other:?}"),
    };
    let tokens = |rows: &[Vec<u32>]| ids(rows).to_vec();
    assert!(refused(&[]).contains("either"));
    assert!(refused(&[text(&["a"]), text(&["a"])]).contains("either"));
    assert!(refused(&tokens(&[vec![1]])[..1]).contains("either"));
    assert!(refused(&tokens(&[vec![0; 13]])).contains("more tokens"));
    assert!(refused(&tokens(&[vec![1_000_000]])).contains("vocabulary"));
    assert!(refused(&[ints("input_ids", &[vec![-1]]), ints("attention_mask", &[vec![1]])]).contains("vocabulary"));
    assert!(refused(&[ints("input_ids", &[vec![1, 1]]), ints("attention_mask", &[vec![0, 1]])]).contains("ones and then zeros"));
    assert!(refused(&[ints("input_ids", &[vec![1]]), ints("attention_mask", &[vec![2]])]).contains("ones and then zeros"));
    assert!(refused(&[ints("input_ids", &[vec![1]]), ints("attention_mask", &[vec![0]])]).contains("no token"));
    assert!(refused(&[ints("input_ids", &[vec![1]]), ints("attention_mask", &[vec![1, 1]])]).contains("another shape"));
    assert!(refused(&tokens(&[vec![]])).contains("no token"));
    assert!(refused(&[Tensor { shape: vec![2], ..text(&["a"]) }]).contains("as many"));
    assert!(refused(&[Tensor { shape: vec![1, 1], ..text(&["a"]) }]).contains("one dimension"));
    assert!(refused(&[Tensor { datatype: Datatype::Uint8, ..text(&["a"]) }]).contains("as many"));
    assert!(refused(&[Tensor { shape: vec![u64::MAX], ..text(&["a"]) }]).contains("2048"));
    let mut short = ids(&[vec![2, 3]]);
    short[0].data = short[0].data.slice(..8);
    assert!(refused(&short).contains("as many"));
    let broken = Tensor { data: Bytes::from_static(b"\x01\0\0\0\xff"), ..text(&["a"]) };
    assert!(refused(&[broken]).contains("UTF-8"));
    assert!(matches!(model.run(&[text(&["a"])], &[2], NEVER), Err(Error::CallerAskedForOtherOutputs)));
    // Exactly as many tokens as the model takes, of either end of its vocabulary, are run.
    let last = u32::try_from(model.reading.outline.config.dimensions.vocabulary - 1).unwrap();
    assert!(model.run(&ids(&[vec![last; 12], vec![0]]), &[0], NEVER).is_ok());
    assert!(model.run(&ids(&[vec![last + 1]]), &[0], NEVER).is_err());
    let mut roberta = load("roberta-cls");
    assert!(roberta.run(&ids(&[vec![0, 5, 2]]), &[0], NEVER).is_ok());
    assert!(roberta.run(&ids(&[vec![0, 1, 2]]), &[0], NEVER).is_err(), "its places are counted without padding");
}

#[test]
fn bounds_of_a_call_hold_at_their_limit_and_one_past_it() {
    let mut model = load("bert-mean");
    let texts = vec!["a"; MAX_TEXTS + 1];
    let answer = model.run(&[text(&texts[1..])], &[0, 1], NEVER).unwrap();
    assert_eq!(answer[0].shape, [MAX_TEXTS as u64, 8]);
    assert!(matches!(model.run(&[text(&texts)], &[0], NEVER), Err(Error::CallerSentOtherInputs(_))));
    assert!(model.embed(&vec![Item::Text("a"); MAX_TEXTS + 1], NEVER).is_err());
    let long = "a".repeat(MAX_TEXT + 1);
    assert!(model.run(&[text(&[&long[1..]])], &[0], NEVER).is_ok());
    assert!(model.run(&[text(&[&long])], &[0], NEVER).is_err());
    assert!(model.run(&[text(&[])], &[0, 1], NEVER).unwrap().iter().all(|tensor| tensor.data.is_empty()));
    // A vector of eight numbers and a count.
    let tight = |room| Encoder::load(&files("bert-mean"), &Options { room, ..Options::default() }).unwrap();
    assert!(tight(80).run(&[text(&["a", "b"])], &[0, 1], NEVER).is_ok());
    assert!(matches!(tight(79).run(&[text(&["a", "b"])], &[0, 1], NEVER), Err(Error::ModelAnsweredTooMuch)));
}

#[test]
fn a_run_is_stopped_between_layers() {
    let mut model = load("bert-mean");
    let asked = AtomicUsize::new(0);
    // Before the text is read, before each of two layers, and after the last.
    for stops_at in 1..=4 {
        asked.store(0, Ordering::Relaxed);
        let stop = || asked.fetch_add(1, Ordering::Relaxed) + 1 == stops_at;
        assert!(matches!(model.run(&[text(&["a cat"])], &[0], &stop), Err(Error::DeadlinePassed)), "{stops_at}");
        assert_eq!(asked.load(Ordering::Relaxed), stops_at);
    }
    assert!(model.embed(&[Item::Text("a")], &|| true).is_err());
}

#[test]
fn a_signature_says_what_is_answered() {
    let shape = |port: &Port| (port.name.clone(), port.datatype, port.shape.clone());
    let model = load("bert-token");
    let signature = model.signature();
    assert_eq!(signature.inputs.iter().map(shape).collect::<Vec<_>>(), [("text".into(), Datatype::Bytes, vec![None])]);
    assert_eq!(shape(&signature.outputs[1]), ("probabilities".into(), Datatype::Fp32, vec![None, None, Some(4)]));
    assert_eq!(shape(&model.signature().instead[1]), ("attention_mask".into(), Datatype::Int64, vec![None, None]));
    assert_eq!(model.labels(), ["O", "B-PER", "I-PER", "B-LOC"]);
    assert_eq!(model.task(), Task::ClassifyTokens);
    assert!(load("bert-mean").labels().is_empty());
}

/// The folder that `scripts/minilm` makes.
fn minilm() -> Files {
    let share = std::env::var_os("XDG_DATA_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let share = share.unwrap_or_else(|| Path::new(&std::env::var_os("HOME").unwrap()).join(".local/share"));
    let files = folder(&share.join("portcullis/all-minilm-l6-v2"));
    assert!(files.contains_key("model.safetensors"), "this test needs the real model: run scripts/minilm");
    files
}

#[derive(Deserialize)]
struct Reference {
    sentences: Vec<Expected>,
    long: Expected,
}

#[test]
fn all_minilm_answers_as_the_reference_does() {
    let reference: Reference = serde_json::from_slice(&std::fs::read(data("minilm.json")).unwrap()).unwrap();
    let files = minilm();
    let (resident, from) = (resident(), Instant::now());
    let mut model = Encoder::load(&files, &Options::default()).unwrap();
    drop(files);
    println!("loaded in {:?}, {} MiB more than before", from.elapsed(), self::resident().saturating_sub(resident) >> 20);
    assert_eq!((model.longest(), model.signature().outputs[0].shape[1]), (256, Some(384)));
    for row in reference.sentences.iter().chain([&reference.long]) {
        assert_eq!(model.reading.tokens.encode(&row.text, false).unwrap().tokens, row.ids, "{:?}", row.text);
    }
    let mut worst = 1.0_f64;
    let mut is_near = |vector: &[f32], row: &Expected| {
        let near = cosine(vector, &row.embedding);
        worst = worst.min(near);
        assert!(near >= 0.99999, "{near} for {:?}", row.text);
    };
    let from = Instant::now();
    for row in &reference.sentences {
        is_near(&model.embed(&[Item::Text(&row.text)], NEVER).unwrap().vectors[0], row);
    }
    let single = from.elapsed();
    let texts: Vec<&str> = reference.sentences.iter().map(|row| row.text.as_str()).collect();
    let from = Instant::now();
    let answer = model.run(&[text(&texts)], &[0], NEVER).unwrap();
    println!("one by one {single:?}, together {:?}", from.elapsed());
    let vectors: Vec<f32> = answer[0].data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    for (vector, row) in vectors.chunks(384).zip(&reference.sentences) {
        is_near(vector, row);
    }
    println!("the worst cosine is 1 - {:e}", 1.0 - worst);
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
