//! What comes with a model: its card, and the golden answers that it must give before it is ready.

use std::time::{Duration, Instant};

use bytes::Bytes;
use portcullis::digest::Digest;
use serde_json::{Value, json};

use crate::support::ask::{ask, bare};
use crate::support::onnx::adder;
use crate::support::{Folder, PATIENCE, PROGRAM};

/// A file of the folder, as a model's file names it.
fn named(folder: &Folder, file: &str, text: &str) -> String {
    folder.write(&format!("models/{file}"), text);
    format!("{{ path = \"{file}\", sha256 = \"{}\" }}", Digest::of(text.as_bytes()))
}

/// A model that adds `number`, with these lines in its block.
fn adds(folder: &Folder, name: &str, number: f32, head: &str, more: &str) {
    folder.write(&format!("models/{name}.onnx"), adder(number));
    let sha256 = Digest::of(&adder(number));
    folder.model(
        name,
        format!("name = \"{name}\"\nversion = \"1\"\n{head}\n[backend.onnx]\npath = \"{name}.onnx\"\nsha256 = \"{sha256}\"\n{more}\n"),
    );
}

fn golden(sum: f64) -> String {
    let tensor = |name: &str, value: f64| json!({ "name": name, "datatype": "FP32", "shape": [1, 1], "data": [value] });
    json!({ "cases": [{ "inputs": [tensor("x", 40.0)], "outputs": [tensor("y", sum)] }] }).to_string()
}

const CARD: &str = "# Adds one\n<script>alert(1)</script>\n";

#[tokio::test]
async fn a_card_is_served_to_those_who_may_see_the_model_and_a_browser_runs_nothing_in_it() {
    let folder = Folder::new();
    let card = named(&folder, "adder.md", CARD);
    adds(&folder, "adder", 1.0, "public = true", &format!("card = {card}"));
    adds(&folder, "plain", 2.0, "public = true", "");
    let card = named(&folder, "hidden.md", "# Hidden\n");
    adds(&folder, "hidden", 3.0, "tenants = [\"others\"]", &format!("card = {card}"));
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    for path in ["/v2/models/adder/card", "/v2/models/adder/versions/1/card"] {
        let reply = client.send(ask("GET", path, Bytes::new())).await.is(200);
        assert_eq!(reply.body, CARD);
        assert_eq!(reply.header("content-type"), "text/markdown; charset=utf-8");
        assert_eq!(reply.header("x-content-type-options"), "nosniff");
        assert_eq!(reply.header("content-security-policy"), "default-src 'none'; sandbox");
        assert!(!reply.header("provenance-receipt").is_empty());
    }
    for (path, link) in [
        ("/v2/models/adder", "</v2/models/adder/card>; rel=\"describedby\"; type=\"text/markdown\""),
        ("/v2/models/adder/versions/1", "</v2/models/adder/versions/1/card>; rel=\"describedby\"; type=\"text/markdown\""),
        ("/v2/models/plain", ""),
    ] {
        assert_eq!(client.send(ask("GET", path, Bytes::new())).await.is(200).header("link"), link, "{path}");
    }
    assert_eq!(client.send(ask("GET", "/v2/models/plain/card", Bytes::new())).await.is(404).reason(), "infer.card");
    for path in ["/v2/models/hidden/card", "/v2/models/none/card", "/v2/models/adder/versions/2/card"] {
        assert_eq!(client.send(ask("GET", path, Bytes::new())).await.is(404).reason(), "authorize.denied", "{path}");
    }
    client.send(bare("GET", "/v2/models/adder/card", Bytes::new(), None)).await.is(401);
    gateway.stop().await;
}

#[tokio::test]
async fn a_model_is_ready_once_it_has_given_its_golden_answers_and_another_is_refused() {
    let folder = Folder::new();
    let right = named(&folder, "right.json", &golden(41.0));
    adds(&folder, "adder", 1.0, "public = true", &format!("golden = {right}"));
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let sum = async |client: &mut crate::support::Client| {
        let body = json!({ "inputs": [{ "name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0] }] }).to_string();
        client.send(ask("POST", "/v2/models/adder/infer", body)).await.is(200).json()["outputs"][0]["data"][0].as_f64().unwrap()
    };
    assert!((sum(&mut client).await - 2.0).abs() < 1e-6);
    // Another model under the same golden answers: it is refused, and the one before it answers on.
    adds(&folder, "adder", 2.0, "public = true", &format!("golden = {right}"));
    let from = Instant::now();
    let refused: Value = loop {
        if let Some(event) = folder.security_log().into_iter().find(|line| line["event"] == "model.refused") {
            break event;
        }
        assert!(from.elapsed() < PATIENCE, "{:#?}", folder.security_log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(refused["model"], "adder");
    let why = refused["why"].as_str().unwrap();
    assert!(why.contains("`golden`: the model's answer to case 0 is another: \"y\" is off by 1e0"), "{why}");
    assert!((sum(&mut client).await - 2.0).abs() < 1e-6);
    gateway.stop().await;
}

#[test]
fn what_is_wrong_with_a_file_that_comes_with_a_model_is_told_by_check() {
    let told = |block: &dyn Fn(&Folder) -> String| {
        let folder = Folder::new();
        let block = block(&folder);
        adds(&folder, "adder", 1.0, "public = true", &block);
        let output = std::process::Command::new(PROGRAM).args(["check"]).arg(folder.policies()).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let within = |size: usize| told(&|folder| format!("card = {}", named(folder, "a.md", &"a".repeat(size))));
    assert!(!within(1 << 20).contains("a.md"), "{}", within(1 << 20));
    assert!(within((1 << 20) + 1).contains("`card`: it is larger than 1048576 bytes"));
    assert!(told(&|_| "card = \"README.md\"".into()).contains("named with its digest"));
    let other = Digest::of(b"");
    assert!(
        told(&|folder| {
            named(folder, "a.md", "a");
            format!("card = {{ path = \"a.md\", sha256 = \"{other}\" }}")
        })
        .contains("is not the file that is named")
    );
    assert!(told(&|_| format!("card = {{ path = \"../../out.md\", sha256 = \"{other}\" }}")).contains("`card`"));
    assert!(
        told(&|folder| {
            folder.write("models/b.md", [0xff]);
            format!("card = {{ path = \"b.md\", sha256 = \"{}\" }}", Digest::of(&[0xff]))
        })
        .contains("is not text in UTF-8")
    );
    assert!(told(&|folder| format!("golden = {}", named(folder, "g.json", "{}"))).contains("`golden`: missing field `cases`"));
    let misfit = golden(1.0).replace("\"y\"", "\"z\"");
    let text = told(&|folder| format!("golden = {}", named(folder, "g.json", &misfit)));
    assert!(text.contains("the model has no output \"z\""), "{text}");
}
