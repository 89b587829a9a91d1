//! Mistakes in the policy folder: each is told with its place, stops the start, and opens no port.

use std::net::TcpListener;
use std::process::Command;

use portcullis::digest::Digest;
use serde_json::Value;

use crate::support::{Folder, PROGRAM};

const CHAT: &str = "name = \"chat\"\ntenants = [\"acme\"]\n\n[backend.upstream]\nprotocol = \"openai\"\nurls = [\"http://127.0.0.1:9\"]\n";

/// A folder without a mistake.
fn good() -> Folder {
    let folder = Folder::new();
    folder.model("chat", CHAT);
    folder
}

/// A way to break the folder: what is done to it, where the mistake is told, and words of it.
struct Mistake {
    what: &'static str,
    breaks: fn(&Folder),
    at: &'static str,
    words: &'static [&'static str],
}

fn append(folder: &Folder, file: &str, text: &str) {
    folder.write(file, folder.read(file) + text);
}

const MISTAKES: &[Mistake] = &[
    Mistake {
        what: "an unknown key in a model's file",
        breaks: |folder| append(folder, "models/chat.toml", "[check]\nmax_token = 5\n"),
        at: "models/chat.toml:8:1:",
        words: &["unknown key `max_token`", "did you mean `max_tokens`"],
    },
    Mistake {
        what: "an unknown table in gateway.toml",
        breaks: |folder| append(folder, "gateway.toml", "[telemetry]\n"),
        at: "gateway.toml:20:2:",
        words: &["unknown key `telemetry`"],
    },
    Mistake {
        what: "a share of spans that is none",
        breaks: |folder| append(folder, "gateway.toml", "sample = 2.0\n"),
        at: "gateway.toml:20:10:",
        words: &["between 0.0 and 1.0"],
    },
    Mistake {
        what: "an unknown key of a caller",
        breaks: |folder| append(folder, "callers.toml", "secret = \"s\"\n"),
        at: "callers.toml:8:1:",
        words: &["unknown key `secret`"],
    },
    Mistake {
        what: "a wrong type",
        breaks: |folder| append(folder, "models/chat.toml", "[budget.default]\nin_flight = \"many\"\n"),
        at: "models/chat.toml:8:13:",
        words: &["invalid type", "many"],
    },
    Mistake {
        what: "a quantity without a unit",
        breaks: |folder| append(folder, "models/chat.toml", "[budget.default]\nrequests = { rate = \"20\" }\n"),
        at: "models/chat.toml:8:21:",
        words: &["20/s"],
    },
    Mistake {
        what: "large answers that nobody reads, of a model whose detectors enforce",
        breaks: |folder| append(folder, "models/chat.toml", "[answer]\nstream = true\n[detect]\nmode = \"enforce\"\n"),
        at: "models/chat.toml:4:2:",
        words: &["an enforced `detect.leak`"],
    },
    Mistake {
        what: "a system prompt more than are guarded",
        breaks: |folder| append(folder, "models/chat.toml", "[detect.leak]\nsystem_prompts = [\"1\", \"2\", \"3\", \"4\", \"5\"]\n"),
        at: "models/chat.toml:8:39:",
        words: &["at most 4 system prompts"],
    },
    Mistake {
        what: "JSON deeper than it can be read",
        breaks: |folder| append(folder, "models/chat.toml", "[check]\nmax_depth = 121\n"),
        at: "models/chat.toml:8:13:",
        words: &["from 1 to 120"],
    },
    Mistake {
        what: "two models of one name",
        breaks: |folder| _ = folder.model("other", CHAT),
        at: "models/other.toml:1:8:",
        words: &["`chat` stands in models/chat.toml already"],
    },
    Mistake {
        what: "a schema outside of the folder",
        breaks: |folder| {
            std::fs::write(folder.home().join("outside.json"), "{}").unwrap();
            append(folder, "models/chat.toml", "[check]\nschema = \"../../outside.json\"\n");
        },
        at: "models/chat.toml:8:10:",
        words: &["folder"],
    },
    Mistake {
        what: "a model's file outside of the folder",
        breaks: |folder| {
            std::fs::write(folder.home().join("outside.onnx"), "x").unwrap();
            let digest = Digest::of(b"x");
            folder.model("m", format!("name = \"m\"\n[backend.onnx]\npath = \"../../outside.onnx\"\nsha256 = \"{digest}\"\n"));
        },
        at: "models/m.toml:3:8:",
        words: &["folder"],
    },
    Mistake {
        what: "a credential that is none",
        breaks: |folder| {
            append(folder, "models/chat.toml", "credential_file = \"../keys/chat.token\"\n");
            folder.write("keys/chat.token", "two words");
        },
        at: "models/chat.toml:7:19:",
        words: &["credential"],
    },
    Mistake {
        what: "a model's file that is not there",
        breaks: |folder| {
            let digest = Digest::of(b"x");
            folder.model("m", format!("name = \"m\"\n[backend.onnx]\npath = \"none.onnx\"\nsha256 = \"{digest}\"\n"));
        },
        at: "models/m.toml:3:8:",
        words: &["none.onnx"],
    },
    Mistake {
        what: "a model of another digest",
        breaks: |folder| {
            folder.digits("");
            folder.write("models/digits.toml", folder.read("models/digits.toml").replace("sha256 = \"f9", "sha256 = \"00"));
        },
        at: "models/digits.toml:4:2:",
        words: &["SHA-256"],
    },
    Mistake {
        what: "a budget of fidelity beside explanations, which are no copies",
        breaks: |folder| {
            let explain = format!("[explain]\nbackground = \"none.json\"\nsha256 = \"{}\"\n", "0".repeat(64));
            folder.digits(&format!("{explain}[detect.exposure]\nfidelity = 0.5\n"));
        },
        at: "models/digits.toml:11:12:",
        words: &["explanations", "`bits`"],
    },
    Mistake {
        what: "a key set that is not there",
        breaks: |folder| {
            append(
                folder,
                "callers.toml",
                "[[issuer]]\nissuer = \"https://login.example/\"\naudience = [\"a\"]\nalgorithms = [\"ES256\"]\njwks_file = \"keys/none.json\"\n",
            );
        },
        at: "callers.toml:12:13:",
        words: &["jwks_file"],
    },
    Mistake {
        what: "an algorithm with a shared secret",
        breaks: |folder| {
            append(
                folder,
                "callers.toml",
                "[[issuer]]\nissuer = \"https://login.example/\"\naudience = [\"a\"]\nalgorithms = [\"HS256\"]\njwks = \"https://login.example/keys\"\n",
            );
        },
        at: "callers.toml:11:15:",
        words: &["ES256"],
    },
    Mistake {
        what: "Cedar that does not parse",
        breaks: |folder| append(folder, "access.cedar", "permit (principal, action resource);\n"),
        at: "access.cedar:4:27:",
        words: &[],
    },
    Mistake {
        what: "Cedar that the schema does not know",
        breaks: |folder| append(folder, "access.cedar", "permit (principal, action == Action::\"train\", resource);\n"),
        at: "access.cedar:4:30:",
        words: &["train"],
    },
    Mistake {
        what: "a schema that is none",
        breaks: |folder| {
            folder.write("schemas/chat.json", "{\"type\": \"objekt\"}");
            append(folder, "models/chat.toml", "[check]\nschema = \"../schemas/chat.json\"\n");
        },
        at: "policies/schemas/chat.json:1:10:",
        words: &["/type", "\"object\""],
    },
    Mistake {
        what: "a schema that is no JSON",
        breaks: |folder| {
            folder.write("schemas/chat.json", "{\n\"type\" \"object\"}");
            append(folder, "models/chat.toml", "[check]\nschema = \"../schemas/chat.json\"\n");
        },
        at: "policies/schemas/chat.json:2:8:",
        words: &["expected `:`"],
    },
    Mistake {
        what: "a bound on tensors of a model that takes none",
        breaks: |folder| append(folder, "models/chat.toml", "[check]\nrange = { input = [0.0, 1.0] }\n"),
        at: "models/chat.toml:8:1:",
        words: &["check.range", "no effect", "oip"],
    },
    Mistake {
        what: "names of tensors for a model that takes none",
        breaks: |folder| append(folder, "models/chat.toml", "[check]\ninputs = [\"input\"]\n"),
        at: "models/chat.toml:8:1:",
        words: &["check.inputs", "no effect", "oip-grpc"],
    },
    Mistake {
        what: "a range of a tensor that may not be sent",
        breaks: |folder| {
            let text = CHAT.replace("openai", "oip");
            folder.write("models/chat.toml", text + "[check]\ninputs = [\"input\"]\nrange = { x = [0.0, 1.0] }\n");
        },
        at: "models/chat.toml:9:15:",
        words: &["check.inputs", "\"x\"", "add it"],
    },
    Mistake {
        what: "a grid of a tensor that may not be sent",
        breaks: |folder| {
            let text = CHAT.replace("openai", "oip-grpc");
            folder.write("models/chat.toml", text + "[check]\ninputs = [\"a\"]\n[detect.precision]\ninputs = { x = { step = 1.0 } }\n");
        },
        at: "models/chat.toml:10:16:",
        words: &["check.inputs", "\"x\"", "add it"],
    },
    Mistake {
        what: "a mode that waits for witnesses, of which there are none",
        breaks: |folder| append(folder, "models/chat.toml", "[prove]\nmode = \"witnessed\"\n"),
        at: "models/chat.toml:8:8:",
        words: &["needs witnesses"],
    },
    Mistake {
        what: "one port for both listeners",
        breaks: |folder| {
            let text = folder.read("gateway.toml");
            let accept = text.lines().nth(1).unwrap();
            folder.write("gateway.toml", text.replace(text.lines().nth(10).unwrap(), accept));
        },
        at: "gateway.toml:11:10:",
        words: &["127.0.0.1:", "another port"],
    },
    Mistake {
        what: "operators from anywhere, without certificates",
        breaks: |folder| {
            let tls = "[admin.tls]\ncertificate = \"tls/server.pem\"\nkey = \"tls/server.key\"\nclient_auth = \"off\"\n\n[prove]";
            let text = folder.read("gateway.toml").replace("[admin]\nlisten = \"127.0.0.1", "[admin]\nlisten = \"0.0.0.0");
            folder.write("gateway.toml", text.replace("[prove]", tls));
        },
        at: "gateway.toml:16:15:",
        words: &["client_auth = \"required\""],
    },
    Mistake {
        what: "client certificates of no authority",
        breaks: |folder| folder.gateway("", "client_auth = \"required\""),
        at: "gateway.toml:8:15:",
        words: &["client_ca"],
    },
    Mistake {
        what: "a certificate that is none",
        breaks: |folder| _ = folder.write("tls/server.pem", "garbage"),
        at: "gateway.toml:6:15:",
        words: &["tls/server.pem", "no certificate"],
    },
    Mistake {
        what: "a certificate's key that is none",
        breaks: |folder| _ = folder.write("tls/server.key", "garbage"),
        at: "gateway.toml:7:7:",
        words: &["tls/server.key", "no private key"],
    },
    Mistake {
        what: "a key that is not the certificate's",
        breaks: |folder| {
            let key = folder.read("tls/server.key");
            folder.server_certificate("other");
            folder.write("tls/server.key", key);
        },
        at: "gateway.toml:7:7:",
        words: &["pair"],
    },
    Mistake {
        what: "an authority that is none",
        breaks: |folder| {
            folder.gateway("", "client_auth = \"optional\"\nclient_ca = \"tls/clients.pem\"");
            folder.write("tls/clients.pem", "garbage");
        },
        at: "gateway.toml:9:13:",
        words: &["tls/clients.pem"],
    },
    Mistake {
        what: "a revocation list that is none, of an authority that is not here",
        breaks: |folder| {
            let tls = "client_auth = \"optional\"\nclient_ca = \"tls/ca.pem\"\nclient_crl = \"tls/clients.crl\"";
            folder.gateway("", tls);
            folder.write("tls/clients.crl", "garbage");
        },
        at: "gateway.toml:10:14:",
        words: &["tls/clients.crl", "no revocation list"],
    },
    Mistake {
        what: "a key of the log that is none",
        breaks: |folder| _ = folder.write("tls/provenance.key", "garbage"),
        at: "tls/provenance.key:",
        words: &["not an Ed25519 key"],
    },
    Mistake {
        what: "a library that is another",
        breaks: |folder| {
            folder.digits("");
            append(folder, "gateway.toml", "[runtime]\nonnxruntime = \"libonnxruntime.so\"\n");
            folder.write("libonnxruntime.so", "garbage");
        },
        at: "libonnxruntime.so",
        words: &["is not the ONNX Runtime that this program was built for"],
    },
    Mistake {
        what: "the digest of a placeholder",
        breaks: |folder| {
            let (app, placeholder) = (Digest::of(crate::support::KEY.as_bytes()), Digest::of(b"changeme"));
            folder.write("callers.toml", folder.read("callers.toml").replace(&app.to_string(), &placeholder.to_string()));
        },
        at: "callers.toml:3:10:",
        words: &["app"],
    },
    Mistake {
        what: "a digest that is none",
        breaks: |folder| {
            let app = Digest::of(crate::support::KEY.as_bytes()).to_string();
            folder.write("callers.toml", folder.read("callers.toml").replace(&app, "<64 hex digits>"));
        },
        at: "callers.toml:3:10:",
        words: &["app"],
    },
    Mistake {
        what: "a mode of proving that there is not",
        breaks: |folder| append(folder, "models/chat.toml", "[prove]\nmode = \"sometimes\"\n"),
        at: "models/chat.toml:8:8:",
        words: &["durable", "witnessed"],
    },
    Mistake {
        what: "an unknown mode",
        breaks: |folder| append(folder, "models/chat.toml", "[detect]\nmode = \"enforced\"\n"),
        at: "models/chat.toml:8:8:",
        words: &["enforce"],
    },
    Mistake {
        what: "an unknown mode of what bodies are held to",
        breaks: |folder| append(folder, "models/chat.toml", "[check]\nmax_tokens = 5\nmode = \"monitor\"\n"),
        at: "models/chat.toml:9:8:",
        words: &["monitor", "shadow"],
    },
    Mistake {
        what: "an unknown mode of limits",
        breaks: |folder| append(folder, "models/chat.toml", "[budget.tier.gold]\nmode = \"on\"\n"),
        at: "models/chat.toml:8:8:",
        words: &["`on`", "shadow"],
    },
    Mistake {
        what: "what lets nothing pass, though it is off",
        breaks: |folder| append(folder, "models/chat.toml", "[check]\nmode = \"off\"\nmax_tokens = 0\n"),
        at: "models/chat.toml:9:14:",
        words: &["0 lets nothing pass"],
    },
    Mistake {
        what: "a declared path that is the contract's",
        breaks: |folder| {
            folder.model("raw", "name = \"raw\"\n[route]\npath = \"/v1/predict\"\n[backend.upstream]\nprotocol = \"raw\"\nurls = [\"http://127.0.0.1:9\"]\n");
        },
        at: "models/raw.toml:3:8:",
        words: &["/v1"],
    },
    Mistake {
        what: "an origin that is none",
        breaks: |folder| _ = folder.write("gateway.toml", folder.read("gateway.toml").replace("test.example/node", "a node")),
        at: "gateway.toml:15:10:",
        words: &["prove.origin"],
    },
    Mistake {
        what: "an operators' listener open to everyone",
        breaks: |folder| {
            let text = folder.read("gateway.toml").replace("[admin]\nlisten = \"127.0.0.1:", "[admin]\nlisten = \"0.0.0.0:");
            folder.write("gateway.toml", text);
        },
        at: "gateway.toml:11:10:",
        words: &["[admin.tls]"],
    },
    Mistake {
        what: "plain HTTP for everyone",
        breaks: |folder| {
            let text =
                folder.read("gateway.toml").replace("[accept]\nlisten = \"127.0.0.1:", "[accept]\ntls = \"off\"\nlisten = \"0.0.0.0:");
            let (before, after) = text.split_once("[accept.tls]").unwrap();
            folder.write("gateway.toml", format!("{before}{}", &after[after.find("[admin]").unwrap()..]));
        },
        at: "gateway.toml:3:10:",
        words: &["loopback"],
    },
    Mistake {
        what: "no file of callers",
        breaks: |folder| std::fs::remove_file(folder.policies().join("callers.toml")).unwrap(),
        at: "callers.toml:",
        words: &["No such file"],
    },
    Mistake {
        what: "no model",
        breaks: |folder| std::fs::remove_file(folder.policies().join("models/chat.toml")).unwrap(),
        at: "policies:",
        words: &["models/NAME.toml"],
    },
];

#[test]
fn every_mistake_is_told_with_its_place_and_stops_the_start() {
    // Held by the test: a gateway that came so far as to open it would say that it cannot.
    let taken = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [accept, admin] = taken.each_ref().map(|taken| taken.local_addr().unwrap().to_string());
    let mut wrong = Vec::new();
    for Mistake { what, breaks, at, words } in MISTAKES {
        let folder = good();
        folder.write(
            "gateway.toml",
            folder.read("gateway.toml").replacen("127.0.0.1:0", &accept, 1).replacen("127.0.0.1:0\"", &format!("{admin}\""), 1),
        );
        breaks(&folder);
        let serve = folder.run(&["serve", "--policies", "policies"]);
        let check = folder.run(&["check", "policies"]);
        for (command, output) in [("serve", serve), ("check", check)] {
            let told = String::from_utf8(output.stderr).unwrap();
            let mut faults = Vec::new();
            if output.status.code() != Some(1) {
                faults.push(format!("ends with {}", output.status));
            }
            if !told.lines().any(|line| line.contains(&format!("{at} ")) && words.iter().all(|word| line.contains(word))) {
                faults.push(format!("is not told at {at} with {words:?}"));
            }
            if told.contains("ready on") || told.contains("cannot be listened on") {
                faults.push("opens the port".to_owned());
            }
            if !faults.is_empty() {
                wrong.push(format!("{what}: {command} {faults:?}: {told}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_the_machine_does_not_give_ends_the_start_with_its_place_and_path() {
    let folder = good();
    folder.write("gateway.toml", folder.read("gateway.toml").replace("../security.log", "../none/security.log"));
    let output = folder.run(&["serve", "--policies", "policies"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("gateway.toml:19:16: ") && told.contains("policies/../none/security.log"), "{told}");
}

#[test]
fn a_port_that_is_taken_is_told_with_its_place_whosever_it_is() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    for (listener, at) in [("[accept]\nlisten = ", "gateway.toml:2:10: "), ("[admin]\nlisten = ", "gateway.toml:11:10: ")] {
        let folder = good();
        let (free, other) = (format!("{listener}\"127.0.0.1:0\""), format!("{listener}\"{taken}\""));
        folder.write("gateway.toml", folder.read("gateway.toml").replace(&free, &other));
        let output = folder.run(&["serve", "--policies", "policies"]);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains(&format!("{at}{taken} cannot be listened on: Address already in use")), "{told}");
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let folder = good();
    append(&folder, "models/chat.toml", "[budget.default]\nin_flight = 0\n[check]\nschema = \"../schemas/none.json\"\n");
    append(&folder, "access.cedar", "permit (principal, action, resource) when { resource.colour };\n");
    append(&folder, "gateway.toml", "[telemetry]\n");
    let output = folder.run(&["check", "policies"]);
    let told = String::from_utf8(output.stderr).unwrap();
    // The attribute is none of a model's and none of the log's.
    assert!(told.contains("5 mistake(s)"), "{told}");
    for file in ["models/chat.toml:8:13:", "models/chat.toml:10:10:", "access.cedar:4:45:", "gateway.toml:20:2:"] {
        assert!(told.contains(file), "{file}: {told}");
    }
}

#[test]
fn check_answers_programs_in_json() {
    let folder = good();
    let output = folder.run(&["check", "policies", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["ok"]), (Some(0), &Value::Bool(true)), "{report}");
    assert_eq!(report["policy"].as_str().unwrap().len(), 64);
    assert_eq!(report["mistakes"], serde_json::json!([]));
    append(&folder, "models/chat.toml", "[budgett]\n");
    let output = folder.run(&["check", "policies", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["ok"], &report["policy"]), (Some(1), &Value::Bool(false), &Value::Null));
    let mistakes = report["mistakes"].as_array().unwrap();
    assert!(mistakes.len() == 1 && mistakes[0].as_str().unwrap().contains("models/chat.toml:7:2: "), "{report}");
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 1);
}

#[test]
fn files_that_a_start_wants_are_no_mistakes_of_a_folder_that_is_only_checked() {
    let folder = good();
    folder.digits("");
    folder.gateway("", "client_auth = \"optional\"\nclient_ca = \"tls/clients.pem\"\nclient_crl = \"tls/clients.crl\"");
    append(&folder, "gateway.toml", "[runtime]\nonnxruntime = \"libonnxruntime.so\"\n");
    folder.write("models/chat.toml", format!("{CHAT}credential_file = \"../keys/chat.token\"\n"));
    std::fs::remove_dir_all(folder.policies().join("tls")).unwrap();
    let wanted = [
        "gateway.toml:6:15: tls/server.pem",
        "gateway.toml:7:7: tls/server.key",
        "gateway.toml:9:13: tls/clients.pem",
        "gateway.toml:10:14: tls/clients.crl",
        "gateway.toml:18:7: ",
        "gateway.toml:23:15: ONNX Runtime",
        "models/chat.toml:7:19: the credential's file",
    ];
    let output = folder.run(&["check", "policies"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told}");
    wanted.iter().for_each(|wanted| assert!(told.contains(wanted), "{wanted}: {told}"));
    assert_eq!(told.lines().count(), wanted.len(), "{told}");
    let output = folder.run(&["check", "policies", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["ok"], &report["mistakes"]), (Some(0), &true.into(), &serde_json::json!([])), "{report}");
    assert_eq!(report["missing"].as_array().unwrap().len(), wanted.len(), "{report}");
    let output = folder.run(&["serve", "--policies", "policies"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    wanted[..4].iter().chain(&wanted[6..]).for_each(|wanted| assert!(told.contains(wanted), "{wanted}: {told}"));
    // What is wrong in the text is told all the same.
    folder.gateway("", "client_auth = \"optional\"");
    let output = folder.run(&["check", "policies"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && told.contains("gateway.toml:8:15: client_auth needs client_ca"), "{told}");
}

#[test]
fn authorities_that_no_url_needs_are_told_and_not_looked_for() {
    let folder = good();
    folder.write("models/chat.toml", format!("{CHAT}ca = \"../tls/upstream-ca.pem\"\n"));
    let output = folder.run(&["check", "policies"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.starts_with("warning: ") && told.contains("models/chat.toml:7:6: ca is not used"), "{told}");
    folder.write("models/chat.toml", folder.read("models/chat.toml").replace("http://", "https://"));
    let output = folder.run(&["check", "policies", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["warnings"], report["missing"].as_array().map(Vec::len)), (&serde_json::json!([]), Some(1)), "{report}");
}

#[test]
fn detectors_that_act_upon_tensors_of_any_name_are_told() {
    let folder = good();
    let warnings = |protocol: &str, more: &str| {
        folder.write("models/chat.toml", format!("{}{more}", CHAT.replace("openai", protocol)));
        let output = folder.run(&["check", "policies", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((output.status.code(), &report["ok"]), (Some(0), &true.into()), "{report}");
        report["warnings"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let detect = "[detect]\nmode = \"enforce\"\n";
    for protocol in ["oip", "oip-grpc"] {
        for check in ["", "[check]\nmode = \"shadow\"\ninputs = [\"x\"]\n"] {
            let told = warnings(protocol, &format!("{detect}{check}"));
            assert!(told.len() == 1 && told[0].contains("models/chat.toml:8:8: ") && told[0].contains("check.inputs"), "{told:?}");
        }
        for held in [
            "[check]\ninputs = [\"x\"]\n",
            "[check]\nrange = { x = [0.0, 1.0] }\n",
            "[check]\nmode = \"off\"\n[detect.precision]\ninputs = { x = { step = 1.0 } }\n",
        ] {
            assert_eq!(warnings(protocol, &format!("{detect}{held}")), [""; 0], "{held}");
        }
        assert_eq!(warnings(protocol, "[detect]\nmode = \"shadow\"\n"), [""; 0]);
    }
    assert_eq!(warnings("openai", detect), [""; 0]);
}

#[test]
fn every_unknown_key_of_a_file_is_told() {
    let folder = good();
    append(&folder, "gateway.toml", "[telemetry]\nx = 1\n");
    folder.write("gateway.toml", folder.read("gateway.toml").replace("[admin]\nlisten", "[admin]\nlistn = 1\nlisten"));
    folder.write(
        "gateway.toml",
        folder.read("gateway.toml").replace("key = \"tls/server.key\"", "key = \"tls/server.key\"\nclient_cert = 1"),
    );
    let output = folder.run(&["check", "policies"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("3 mistake(s)"), "{told}");
    for wanted in [
        "gateway.toml:8:1: unknown key `client_cert`",
        "gateway.toml:12:1: unknown key `listn`",
        "gateway.toml:22:2: unknown key `telemetry`",
    ] {
        assert!(told.contains(wanted), "{wanted}: {told}");
    }
}

#[tokio::test]
async fn check_names_the_policy_that_serve_has_in_force() {
    let folder = good();
    let output = folder.run(&["check", "policies", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["policy"], folder.serve().await.policy().await);
}

#[test]
fn the_shipped_schema_of_cedar_is_printed() {
    let output = good().run(&["check", "--cedar-schema"]);
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("entity Caller in [Role, Tenant]"));
}

#[test]
fn a_command_that_is_called_wrongly_ends_with_2() {
    for words in [
        &[] as &[&str],
        &["guard"],
        &["serve", "--policy", "x"],
        &["demo", "--port", "many"],
        &["demo", "--port", "70000"],
        &["check", "a", "b"],
        &["key"],
        &["key", "new"],
        &["key", "new", "a", "--expires", "tomorrow"],
        &["log", "verify"],
        &["model", "inspect"],
        &["key", "new", ""],
        &["key", "new", "no spaces"],
        &["log", "verify", "log", "--key", "nonsense"],
        &["log", "show", "log", "abc"],
        &["calibrate", "--model", "m", "--fpr", "0"],
        &["calibrate", "--model", "m", "--fpr", "0.2"],
        &["erase", "--caller", "nonsense"],
        &["erase", "--caller", "cert:"],
        &["health", "here"],
    ] {
        let output = Command::new(PROGRAM).args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.is_empty(), "{words:?}");
    }
}

/// The commands that `--help` of `words` lists.
fn commands_of(words: &[String]) -> Vec<String> {
    let output = Command::new(PROGRAM).args(words).arg("--help").output().unwrap();
    assert!(output.status.success(), "{words:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("Example") && text.contains("  portcullis "), "{words:?} has no example: {text}");
    let Some((_, listed)) = text.split_once("Commands:\n") else { return Vec::new() };
    let block = listed.split("\n\n").next().unwrap();
    let names = block.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.map(|line| line.split_whitespace().next().unwrap().to_owned()).filter(|name| name != "help").collect()
}

#[test]
fn the_help_of_every_command_has_an_example() {
    let mut open: Vec<Vec<String>> = vec![Vec::new()];
    let mut leaves = 0;
    while let Some(words) = open.pop() {
        let below = commands_of(&words);
        leaves += usize::from(below.is_empty());
        open.extend(below.into_iter().map(|name| [&words[..], &[name]].concat()));
    }
    assert!(leaves >= 10, "{leaves} commands");
}
