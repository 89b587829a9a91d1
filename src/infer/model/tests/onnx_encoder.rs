//! Folders of encoders whose weights are an ONNX file: a graph that looks tokens up in a table, so that every answer can be told beforehand.

use super::super::start::{fitted, options, read};
use super::*;

pub(super) const VOCABULARY: usize = 35;
pub(super) const WIDTH: usize = 8;
/// "The cat sat on the mat.", as the tokenizer of the smallest encoder has it.
pub(super) const CAT: (&str, [u32; 9]) = ("The cat sat on the mat.", [2, 5, 7, 9, 10, 5, 11, 26, 3]);

pub(super) fn table() -> Vec<Vec<f32>> {
    (0..VOCABULARY).map(|token| (0..WIDTH).map(|place| ((token * 31 + place * 7) % 17) as f32 - 8.0).collect()).collect()
}

/// The mean of the tokens' rows, of length 1.
pub(super) fn mean(tokens: &[u32]) -> Vec<f32> {
    let table = table();
    let sums: Vec<f32> = (0..WIDTH).map(|place| tokens.iter().map(|token| table[*token as usize][place]).sum()).collect();
    let length = sums.iter().map(|sum| sum * sum).sum::<f32>().sqrt();
    sums.into_iter().map(|sum| sum / length).collect()
}

/// The smallest encoder's folder with `graph` in place of its weights, and the block of a policy that names its files.
pub(super) fn folder_with(graph: &[u8]) -> (tempfile::TempDir, String) {
    let (folder, block) = encoder_on_disk();
    let weights = std::fs::read(folder.path().join("e").join(source::WEIGHTS)).unwrap();
    std::fs::write(folder.path().join("e").join(source::MODEL), graph).unwrap();
    let block = block.replace(source::WEIGHTS, source::MODEL).replace(&Digest::of(&weights).to_string(), &Digest::of(graph).to_string());
    (folder, block)
}

pub(super) fn graph() -> Vec<u8> {
    Build::looks_tokens_up(&["input_ids", "attention_mask", "token_type_ids"], &table(), "last_hidden_state")
}

fn loaded(graph: &[u8], more: &str) -> Result<Model, Refused> {
    let (folder, block) = folder_with(graph);
    Model::load(&resolved(&format!("{block}{more}"), folder.path()).unwrap(), || Ok(runtime()))
}

pub(super) fn texts(texts: &[&str]) -> Tensor {
    let data: Vec<u8> = texts.iter().flat_map(|text| [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()).collect();
    Tensor { name: "text".into(), datatype: Datatype::Bytes, shape: vec![texts.len() as u64], data: data.into() }
}

fn tokens(name: &str, rows: [[i64; 9]; 2]) -> Tensor {
    let data: Vec<u8> = rows.as_flattened().iter().flat_map(|number| number.to_le_bytes()).collect();
    Tensor { name: name.into(), datatype: Datatype::Int64, shape: vec![2, 9], data: data.into() }
}

pub(super) fn near(found: &[f32], wanted: &[f32]) -> bool {
    found.len() == wanted.len() && found.iter().zip(wanted).all(|(found, wanted)| (found - wanted).abs() < 1e-6)
}

#[tokio::test]
async fn texts_of_any_length_are_pooled_over_their_own_tokens() {
    let (folder, block) = folder_with(&graph());
    let source = resolved(&block, folder.path()).unwrap();
    let model = Model::load(&source, || Ok(runtime())).unwrap();
    assert_eq!((&*model.which().format, source.kind), ("onnx", Kind::OnnxEncoder));
    // What is read without an engine is what runs.
    let held = source.verify(SystemTime::now()).unwrap();
    let (_, _, fitted) = fitted(&source, &held).unwrap();
    assert_eq!((model.which().digest, model.signature()), (Some(held.digest), fitted.signature()));
    assert_eq!(encoder::around_a_graph(&read(&held), &options(&source)).unwrap(), *fitted.signature());
    assert_eq!(fitted.signature().longest, Some(12));

    let answers = model.run(vec![texts(&["", CAT.0, "Café?"])], &[], &anyone(), soon()).await.unwrap();
    assert_eq!(answers.iter().map(|tensor| &*tensor.name).collect::<Vec<_>>(), ["embedding", "tokens"]);
    let wanted = [mean(&[2, 3]), mean(&CAT.1), mean(&[2, 23, 28, 3])].concat();
    assert!(near(&floats(&answers[0]), &wanted), "{:?} {wanted:?}", floats(&answers[0]));
    assert_eq!(integers(&answers[1]), [2, 9, 4]);

    // The same as tokens; what the mask hides is not looked at.
    let ids = tokens("input_ids", [[2, 5, 7, 9, 10, 5, 11, 26, 3], [2, 23, 28, 3, 34, 34, 34, 34, 34]]);
    let mask = tokens("attention_mask", [[1; 9], [1, 1, 1, 1, 0, 0, 0, 0, 0]]);
    let answers = model.run(vec![ids, mask], &["embedding".into()], &anyone(), soon()).await.unwrap();
    assert!(near(&floats(&answers[0]), &[mean(&CAT.1), mean(&[2, 23, 28, 3])].concat()));
}

#[tokio::test]
async fn the_policy_pools_in_place_of_the_folder() {
    let model = loaded(&graph(), "pooling = \"cls\"\nnormalize = false\n").unwrap();
    let answers = model.run(vec![texts(&[CAT.0])], &["embedding".into()], &anyone(), soon()).await.unwrap();
    assert!(near(&floats(&answers[0]), &table()[2]));
}

#[tokio::test]
async fn a_graph_needs_no_token_types() {
    let model = loaded(&Build::looks_tokens_up(&["input_ids", "attention_mask"], &table(), "token_embeddings"), "").unwrap();
    let answers = model.run(vec![texts(&[CAT.0])], &["embedding".into()], &anyone(), soon()).await.unwrap();
    assert!(near(&floats(&answers[0]), &mean(&CAT.1)));
}

#[tokio::test]
async fn an_embedding_that_is_not_finite_is_not_answered_and_the_next_is() {
    let mut broken = table();
    broken[23][3] = f32::INFINITY;
    let model = loaded(&Build::looks_tokens_up(&["input_ids", "attention_mask"], &broken, "last_hidden_state"), "").unwrap();
    let ask = async |text| model.run(vec![texts(&[text])], &["embedding".into()], &anyone(), soon()).await;
    assert!(matches!(ask("Café?").await, Err(Error::ModelFailed(_))));
    assert!(near(&floats(&ask(CAT.0).await.unwrap()[0]), &mean(&CAT.1)));
}

#[test]
fn a_graph_that_is_none_of_this_encoder_is_refused_with_the_reason() {
    let told = |graph: &[u8], more: &str| loaded(graph, more).unwrap_err().to_string();
    let with = |inputs: &[&str], table: &[Vec<f32>]| Build::looks_tokens_up(inputs, table, "last_hidden_state");
    assert!(told(&with(&["attention_mask"], &table()), "").contains("no input `input_ids`"));
    assert!(told(&with(&["input_ids", "pixel_values"], &table()), "").contains("\"pixel_values\" is not one of"));
    let narrow = vec![vec![0.0; WIDTH - 1]; VOCABULARY];
    assert!(told(&with(&["input_ids", "attention_mask"], &narrow), "").contains("is not 8 wide"));
    assert!(told(&with(&["input_ids", "token_type_ids"], &table()), "").contains("no input `attention_mask`"));
    assert!(told(DIGITS, "").contains("\"input\" is not one of"));
    assert!(told(b"\x80\x04.", "").contains("pickle"));
}

#[test]
fn a_folder_of_onnx_names_its_files_and_needs_every_one() {
    let (folder, block) = folder_with(&graph());
    let wrong = resolved("path = \"e\"\nsha256 = \"00\"", folder.path()).unwrap_err();
    assert!(wrong[0].contains("names each file: sha256 = { \"model.onnx\""), "{wrong:?}");
    let without = block.split(", ").filter(|part| !part.contains("\"tokenizer.json\"")).collect::<Vec<_>>().join(", ");
    let source = resolved(&without, folder.path()).unwrap();
    assert!(matches!(Model::load(&source, || Ok(runtime())).unwrap_err(), Refused::Encoder(encoder::Fault::Missing("tokenizer.json"))));
    // The weights of another engine in the same folder are nobody's.
    assert!(folder.path().join("e").join(source::WEIGHTS).exists());
    std::fs::write(folder.path().join("e").join(source::MODEL), forever()).unwrap();
    assert!(matches!(Model::load(&resolved(&block, folder.path()).unwrap(), || Ok(runtime())).unwrap_err(), Refused::Folder(_)));
}
