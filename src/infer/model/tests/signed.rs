//! Folders of encoders from ONNX under a signature, whose tables lie in the model's file or in others.

use rcgen::KeyPair;

use super::onnx_encoder::{CAT, VOCABULARY, WIDTH, folder_with, graph, mean, near, table, texts};
use super::*;
use crate::infer::model::folder::{self, Limits};
use crate::infer::model::signing::key::PrivateKey;
use crate::infer::model::signing::manifest::Manifest;
use crate::infer::model::signing::sign::Seal;

/// The smallest encoder around a graph, signed with all that lies in its folder.
struct Signed {
    home: tempfile::TempDir,
    key: KeyPair,
    named: String,
}

impl Signed {
    fn with(model: &[u8], beside: &[(&str, Vec<u8>)]) -> Self {
        let (home, named) = folder_with(model);
        std::fs::remove_file(home.path().join("e").join(source::WEIGHTS)).unwrap();
        let signed = Self { home, key: KeyPair::generate().unwrap(), named };
        for (name, bytes) in beside {
            std::fs::create_dir_all(signed.path(name).parent().unwrap()).unwrap();
            std::fs::write(signed.path(name), bytes).unwrap();
        }
        std::fs::write(signed.home.path().join("key.pem"), signed.key.public_key_pem()).unwrap();
        signed.sign();
        signed
    }

    fn sign(&self) {
        let files = folder::hash(&self.path(""), &[], None, &Limits::TO_HASH).unwrap();
        let digests = files.into_iter().map(|(name, seen)| (name, seen.digest)).collect();
        let manifest = Manifest::of_files(&digests, Vec::new()).unwrap();
        let seal = Seal::with_key(PrivateKey::from_pem(self.key.serialize_pem().as_bytes()).unwrap());
        std::fs::write(self.home.path().join("e.sig"), seal.bundle(&manifest, "e").unwrap()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join("e").join(name)
    }

    fn source(&self) -> Source {
        resolved("path = \"e\"\nisolation = \"thread\"\nsignature = \"e.sig\"\ntrust = \"key.pem\"\n", self.home.path()).unwrap()
    }

    fn load(&self) -> Result<Model, Refused> {
        Model::load(&self.source(), || Ok(runtime()))
    }

    /// By the digests of what the smallest encoder has, and these in place of any signature.
    fn load_by_digests(&self, more: &[&str]) -> Result<Model, Refused> {
        let digest = |name: &&str| format!("\"{name}\" = \"{}\", ", Digest::of(&std::fs::read(self.path(name)).unwrap()));
        let more: String = more.iter().map(digest).collect();
        let block = self.named.replace("sha256 = { ", &format!("sha256 = {{ {more}"));
        Model::load(&resolved(&block, self.home.path()).unwrap(), || Ok(runtime()))
    }

    /// Why it is refused while the last byte of a file is another.
    fn told_of_changed(&self, name: &str) -> String {
        let bytes = std::fs::read(self.path(name)).unwrap();
        let mut changed = bytes.clone();
        *changed.last_mut().unwrap() ^= 1;
        std::fs::write(self.path(name), changed).unwrap();
        let told = self.load().unwrap_err().to_string();
        std::fs::write(self.path(name), bytes).unwrap();
        told
    }
}

async fn answers_as_the_table_says(model: &Model) -> bool {
    let answers = model.run(vec![texts(&[CAT.0])], &["embedding".into()], &anyone(), soon()).await.unwrap();
    near(&floats(&answers[0]), &mean(&CAT.1))
}

#[tokio::test]
async fn a_signed_encoder_from_onnx_answers_and_no_file_of_it_may_be_another() {
    let signed = Signed::with(&graph(), &[("README.md", b"# A table\n".to_vec())]);
    let model = signed.load().unwrap();
    assert!(answers_as_the_table_says(&model).await);
    // It is known by all of its files; what was loaded is the one.
    assert_eq!(model.file(), Digest::of(&graph()));
    assert!(model.which().digest.is_some_and(|digest| digest != model.file()));
    for name in ["model.onnx", "config.json", "tokenizer.json", "1_Pooling/config.json", "modules.json", "README.md"] {
        let told = signed.told_of_changed(name);
        assert!(told.contains(&format!("{name:?} is not the file that was signed")), "{told}");
    }
    std::fs::write(signed.path("added_tokens.json"), b"{}").unwrap();
    let told = signed.load().unwrap_err().to_string();
    assert!(told.contains("not listed by the signature: \"added_tokens.json\""), "{told}");
    std::fs::remove_file(signed.path("added_tokens.json")).unwrap();
    std::fs::rename(signed.path("tokenizer.json"), signed.home.path().join("tokenizer.json")).unwrap();
    let told = signed.load().unwrap_err().to_string();
    assert!(told.contains("listed and not there: \"tokenizer.json\""), "{told}");
    // What is signed without it lacks it all the same.
    signed.sign();
    assert!(matches!(signed.load().unwrap_err(), Refused::Encoder(encoder::Fault::Missing("tokenizer.json"))));
    std::fs::rename(signed.home.path().join("tokenizer.json"), signed.path("tokenizer.json")).unwrap();
    signed.sign();
    assert!(answers_as_the_table_says(&signed.load().unwrap()).await);
    std::fs::write(signed.home.path().join("key.pem"), KeyPair::generate().unwrap().public_key_pem()).unwrap();
    assert!(matches!(signed.load().unwrap_err(), Refused::Folder(folder::Fault::Signature(_))));
}

/// The table's rows, each piece in a file of its own that begins with eight bytes of something else.
fn pieces(rows: usize) -> (Vec<u8>, Vec<(String, Vec<u8>)>) {
    let file = |(number, rows): (usize, &[Vec<f32>])| {
        let numbers = rows.iter().flatten().flat_map(|number| number.to_le_bytes());
        (format!("weights/{number}.bin"), [7; 8].into_iter().chain(numbers).collect::<Vec<u8>>())
    };
    let files: Vec<_> = table().chunks(rows).enumerate().map(file).collect();
    let places: Vec<(&str, usize, usize)> = files.iter().map(|(name, bytes)| (name.as_str(), 8, bytes.len() - 8)).collect();
    (in_files(&places), files)
}

fn in_files(places: &[(&str, usize, usize)]) -> Vec<u8> {
    let said = |(name, offset, length): &(&str, usize, usize)| {
        let pairs = vec![("location", (*name).to_owned()), ("offset", offset.to_string()), ("length", length.to_string())];
        ((*length / (4 * WIDTH)) as u64, pairs)
    };
    Build::looks_up_what_lies_beside(WIDTH as u64, &places.iter().map(said).collect::<Vec<_>>())
}

#[tokio::test]
async fn the_weights_of_a_signed_encoder_may_lie_in_any_number_of_its_files() {
    for rows in [VOCABULARY, 2, 1] {
        let (model, files) = pieces(rows);
        let beside: Vec<(&str, Vec<u8>)> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
        let signed = Signed::with(&model, &beside);
        assert!(answers_as_the_table_says(&signed.load().unwrap()).await, "{rows}");
        let told = signed.told_of_changed(&files[files.len() - 1].0);
        assert!(told.contains("is not the file that was signed"), "{told}");
        // By digests each file of them is named; one that is not is not opened.
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert!(answers_as_the_table_says(&signed.load_by_digests(&names).unwrap()).await, "{rows}");
        let told = signed.load_by_digests(&names[1..]).unwrap_err().to_string();
        assert!(told.contains("\"weights/0.bin\", which is not among the files that were verified"), "{told}");
        std::fs::remove_file(signed.path(names[0])).unwrap();
        let told = signed.load().unwrap_err().to_string();
        assert!(told.contains("listed and not there: \"weights/0.bin\""), "{told}");
    }
}

#[test]
fn what_a_signed_graph_says_of_its_weights_is_held_to_the_files_that_were_signed() {
    let (all, file) = (4 * WIDTH * VOCABULARY, pieces(VOCABULARY).1.remove(0).1);
    let told = |places: &[(&str, usize, usize)]| {
        Signed::with(&in_files(places), &[("weights/0.bin", file.clone())]).load().unwrap_err().to_string()
    };
    let leaves = ["../weights.bin", "weights/../weights/0.bin", "/etc/passwd", "./weights/0.bin", "weights//0.bin", "weights\\0.bin", ""];
    for name in leaves {
        let told = told(&[(name, 8, all)]);
        assert!(told.contains(&format!("lie at {name:?}, which is no plain path below the model's folder")), "{told}");
    }
    for name in ["weights/1.bin", "0.bin", "weights", "Weights/0.bin", "model.onnx", "e/weights/0.bin"] {
        let told = told(&[(name, 8, all)]);
        assert!(told.contains(&format!("lie in {name:?}, which is not among the files that were verified")), "{told}");
    }
    let past = told(&[("weights/0.bin", 9, all)]);
    assert!(past.contains(&format!("\"weights/0.bin\" up to byte {}, and that file has {}", all + 9, all + 8)), "{past}");
    let past = told(&[("weights/0.bin", usize::MAX, all)]);
    assert!(past.contains("past the end of any file"), "{past}");
    // A length that is not what the shape needs, though both are within the file.
    let short = Build::looks_up_what_lies_beside(
        WIDTH as u64,
        &[(
            VOCABULARY as u64,
            vec![("location", "weights/0.bin".to_owned()), ("offset", "0".to_owned()), ("length", (all - 4).to_string())],
        )],
    );
    let told = Signed::with(&short, &[("weights/0.bin", file.clone())]).load().unwrap_err().to_string();
    assert!(told.contains("another length than their shape"), "{told}");
}

#[test]
fn weights_that_are_a_link_are_not_followed_though_what_they_lead_to_was_signed() {
    let (model, files) = pieces(VOCABULARY);
    let signed = Signed::with(&model, &[(files[0].0.as_str(), files[0].1.clone())]);
    std::fs::rename(signed.path("weights/0.bin"), signed.home.path().join("0.bin")).unwrap();
    std::os::unix::fs::symlink("../../0.bin", signed.path("weights/0.bin")).unwrap();
    let told = signed.load().unwrap_err().to_string();
    assert!(told.contains("\"weights/0.bin\" is a symbolic link"), "{told}");
}
