//! Names of models in paths: one model however a client spells it, and no other.

use http::Method;
use portcullis::digest::Digest;
use serde_json::Value;

use crate::support::ask::{ask, digit};
use crate::support::{Folder, Upstream};

/// As it stands in a path, as Triton's clients and OpenAI's write it, in small letters, in part, and more than there is need for.
const SPELLINGS: [&str; 6] =
    ["org/digits:v1", "org/digits%3Av1", "org%2Fdigits%3Av1", "org%2fdigits%3av1", "org%2Fdigits:v1", "%6Frg/digits%3Av%31"];

const UNLIMITED: &str = "[budget.default]\nrequests = { rate = \"100000/s\", burst = 100000 }\nin_flight = 10000\n";

const CARD: &str = "# Digits of an organisation\n";

fn served() -> Folder {
    let folder = Folder::new();
    folder.write("models/card.md", CARD);
    folder.digits(&format!("card = {{ path = \"card.md\", sha256 = \"{}\" }}\n{UNLIMITED}", Digest::of(CARD.as_bytes())));
    let digits = folder.read("models/digits.toml").replace("\"digits\"", "\"org/digits:v1\"").replace("\"1\"", "\"2024:1\"");
    folder.model("digits", &digits);
    folder.model("secret", digits.replace("org/digits:v1", "org/secret").replace("public = true", "tenants = [\"other\"]"));
    folder
}

#[tokio::test]
async fn a_model_is_asked_by_any_spelling_of_its_name_and_no_other_is() {
    let folder = served();
    let gateway = folder.serve().await;
    let mut asked = 0;
    for mut client in [gateway.h1().await, gateway.h2().await] {
        for spelt in SPELLINGS {
            let listed = client.send(ask("GET", &format!("/v1/models/{spelt}"), "")).await.is(200);
            assert_eq!(listed.json()["id"], "org/digits:v1", "{spelt}");
            for version in ["", "/versions/2024:1", "/versions/2024%3A1"] {
                let path = format!("/v2/models/{spelt}{version}");
                let metadata = client.send(ask("GET", &path, "")).await.is(200);
                assert_eq!(metadata.json()["name"], "org/digits:v1", "{path}");
                // What it names is one spelling, and leads there.
                let link = metadata.header("link").strip_prefix('<').unwrap().split_once('>').unwrap().0.to_owned();
                let named = if version.is_empty() { "" } else { "/versions/2024:1" };
                assert_eq!(link, format!("/v2/models/org/digits:v1{named}/card"), "{path}");
                for card in [link, format!("{path}/card")] {
                    assert_eq!(client.send(ask("GET", &card, "")).await.is(200).body, CARD, "{card}");
                }
                let ready = client.send(ask("GET", &format!("{path}/ready"), "")).await.is(200);
                assert!(ready.json()["ready"] == true && ready.json()["name"] == "org/digits:v1", "{path}: {ready:?}");
                let answer = client.send(ask("POST", &format!("{path}/infer"), digit())).await.is(200).json();
                assert_eq!((&answer["model_name"], &answer["model_version"]), (&"org/digits:v1".into(), &"2024:1".into()), "{path}");
                asked += 1;
            }
        }
        // Another's model is not there, whatever it is called.
        for spelt in ["org/secret", "org%2Fsecret", "org%2fsecret", "org%2F%73ecret", "org/secre%74"] {
            for (method, path) in [
                (Method::GET, format!("/v1/models/{spelt}")),
                (Method::GET, format!("/v2/models/{spelt}")),
                (Method::GET, format!("/v2/models/{spelt}/versions/2024%3A1/ready")),
                (Method::POST, format!("/v2/models/{spelt}/infer")),
            ] {
                let reply = client.send(ask(method.as_str(), &path, digit())).await.is(404);
                assert_eq!(reply.reason(), "authorize.denied", "{path}");
            }
        }
        // Escaped twice, escaped in their endings, or no names at all.
        for name in [
            "org%252Fdigits:v1",
            "org/digits%253Av1",
            "org%C0%AFdigits:v1",
            "org/digits%3Av1%20",
            "org/digits%3Av1%2Finfer",
            "org%5F/digits",
        ] {
            for path in [format!("/v2/models/{name}"), format!("/v2/models/{name}/ready")] {
                let reply = client.send(ask("GET", &path, "")).await.is(404);
                assert_eq!(reply.reason(), "authorize.denied", "{path}");
            }
        }
    }
    for path in [
        "/v2/models/org%2F%2Fdigits:v1",
        "/v2/models/org%2F..%2Forg%2Fdigits:v1",
        "/v2/models/%2e%2e/models/org/digits:v1",
        "/v2/models/org%2Fdigits:v1%00",
        "/v2/models/org%5Cdigits:v1",
        "/v2/models/org/digits:v1%2F",
        "/v2/models%2Forg/digits:v1",
        "/v2%2Fmodels/org/digits:v1",
        "/v1%2Fmodels",
    ] {
        for mut client in [gateway.h1().await, gateway.h2().await] {
            assert_eq!(client.send(ask("GET", path, "")).await.is(400).reason(), "accept.target", "{path}");
        }
    }
    gateway.stop().await;
    let entries = folder.entries();
    let answered: Vec<&Value> = entries.iter().filter(|entry| entry["kind"] == "inference").map(|entry| &entry["model"]["name"]).collect();
    assert_eq!(answered.iter().filter(|name| ***name == "org/digits:v1").count(), asked * 5 + 2 * SPELLINGS.len());
    assert!(answered.iter().all(|name| **name == "org/digits:v1"), "{answered:?}");
}

#[tokio::test]
async fn a_server_is_asked_for_the_model_that_was_judged_by_one_spelling() {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    folder.upstream("iris", "oip", &upstream, "", "");
    folder.model("iris", folder.read("models/iris.toml").replace("\"iris\"", "\"hf/iris:v1\""));
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let spellings = ["hf/iris:v1", "hf%2Firis%3Av1", "hf%2firis:v%31/versions/7"];
    for spelt in spellings {
        // It speaks another protocol: what counts is what it was asked.
        client.send(ask("POST", &format!("/v2/models/{spelt}/infer"), digit())).await;
    }
    let asked: Vec<String> = upstream.seen().iter().map(|seen| seen.uri.path().to_owned()).collect();
    assert_eq!(asked, ["/v2/models/hf/iris:v1/infer"; 3]);
}

#[test]
fn a_name_or_version_that_nobody_could_ask_for_is_a_mistake_with_its_place() {
    const OIP: &str = "public = true\n[backend.upstream]\nprotocol = \"oip\"\nurls = [\"http://127.0.0.1:9\"]\n";
    for (name, version, told) in [
        ("hf/iris", "", ""),
        ("infer", "ready", ""),
        ("hf/infer", "", ":1:8: nobody could ask"),
        ("hf/ready", "", ":1:8: nobody could ask"),
        ("hf/card", "", ":1:8: nobody could ask"),
        ("hf/versions/1", "", ":1:8: nobody could ask"),
        ("hf/iris", "2024/1", ":2:11: nobody could ask"),
        ("hf//iris", "", ":1:8: a name or version is"),
        ("hf%2Firis", "", ":1:8: a name or version is"),
    ] {
        for (protocol, told) in [("oip", told), ("oip-grpc", told), ("openai", if told.contains("nobody") { "" } else { told })] {
            let folder = Folder::new();
            let backend = OIP.replace("\"oip\"", &format!("\"{protocol}\""));
            folder.model("iris", format!("name = \"{name}\"\nversion = \"{version}\"\n{backend}"));
            let output = folder.run(&["check", "policies"]);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(i32::from(!told.is_empty())), "{name} {version} {protocol}: {said}");
            assert!(told.is_empty() || said.contains(&format!("models/iris.toml{told}")), "{name} {version} {protocol}: {said}");
        }
    }
}
