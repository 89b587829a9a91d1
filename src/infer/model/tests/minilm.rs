//! all-MiniLM-L6-v2 as ONNX, of the weights that the other engine runs as safetensors, held against the same reference.

use serde_json::Value;

use super::*;

const REFERENCE: &str = include_str!("../../../../tests/data/minilm.json");

/// The file that `make minilm-onnx` makes.
fn file() -> Bytes {
    let share = std::env::var_os("XDG_DATA_HOME").filter(|path| !path.is_empty()).map(std::path::PathBuf::from);
    let share = share.unwrap_or_else(|| std::path::Path::new(&std::env::var_os("HOME").unwrap()).join(".local/share"));
    let path = share.join("portcullis/all-minilm-l6-v2-onnx/model.onnx");
    std::fs::read(&path)
        .unwrap_or_else(|error| panic!("this test needs {}, which `make minilm-onnx` makes: {error}", path.display()))
        .into()
}

/// Rows of tokens, filled up to the longest.
fn inputs(rows: &[Vec<i64>]) -> Vec<Tensor> {
    let longest = rows.iter().map(Vec::len).max().unwrap();
    let tensor = |name: &str, of: fn(Option<&i64>) -> i64| {
        let numbers = rows.iter().flat_map(|row| (0..longest).map(|place| of(row.get(place))));
        let data = numbers.flat_map(i64::to_le_bytes).collect::<Vec<_>>().into();
        Tensor { name: name.into(), datatype: Datatype::Int64, shape: vec![rows.len() as u64, longest as u64], data }
    };
    vec![tensor("input_ids", |id| id.copied().unwrap_or(0)), tensor("attention_mask", |id| i64::from(id.is_some()))]
}

fn cosine(one: &[f32], other: &[f64]) -> f64 {
    let dot: f64 = one.iter().zip(other).map(|(one, other)| f64::from(*one) * other).sum();
    let squares = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|number| number * number).sum::<f64>().sqrt();
    dot / squares(&mut one.iter().map(|one| f64::from(*one))) / squares(&mut other.iter().copied())
}

#[tokio::test]
async fn all_minilm_as_onnx_answers_as_the_reference_does_alone_and_together() {
    let reference: Value = serde_json::from_str(REFERENCE).unwrap();
    let rows = reference["sentences"].as_array().unwrap();
    let ids = |row: &Value| row["ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect::<Vec<_>>();
    let vector = |row: &Value| row["embedding"].as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect::<Vec<_>>();
    let model = start(&file());
    let run = async |rows: &[Vec<i64>]| {
        let answer = model.run(inputs(rows), &["embedding".into()], &anyone(), soon()).await.unwrap();
        floats(&answer[0]).chunks(384).map(<[f32]>::to_vec).collect::<Vec<_>>()
    };
    let all: Vec<Vec<i64>> = rows.iter().map(ids).collect();
    for (found, row) in run(&all).await.iter().zip(rows) {
        let near = cosine(found, &vector(row));
        assert!(near >= 0.99999, "{near} for {} among others", row["text"]);
    }
    for row in rows {
        let near = cosine(&run(&[ids(row)]).await[0], &vector(row));
        assert!(near >= 0.99999, "{near} for {} alone", row["text"]);
    }
}
