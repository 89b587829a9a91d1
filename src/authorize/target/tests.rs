use super::*;

#[test]
fn every_template_of_the_table_leads_to_itself() {
    let routes = Routes::new([]);
    for (method, template) in FIXED {
        let path = template.replace("{model}", "digits").replace("{version}", "1").replace("{id}", "0192aaaa-bbbb-7ccc-8ddd-eeeeffff0000");
        let (_, found) = routes.find(&method.parse().unwrap(), &path).unwrap();
        assert_eq!(&*found, template);
        let (other, allowed) = if method == "GET" { (Method::POST, "GET, HEAD") } else { (Method::GET, "POST") };
        assert_eq!(routes.find(&other, &path), Err(Unmatched::Method(allowed)));
        assert_eq!(routes.find(&Method::HEAD, &path).is_ok(), method == "GET", "{template}");
    }
}

#[test]
fn a_receipt_has_three_forms() {
    for (ending, form) in [("", ReceiptForm::Json), (".statement", ReceiptForm::Statement), (".disclosure", ReceiptForm::Disclosure)] {
        let path = format!("/v1/receipts/0192aaaa-bbbb-7ccc-8ddd-eeeeffff0000{ending}");
        let (route, template) = Routes::new([]).find(&Method::GET, &path).unwrap();
        assert!(matches!(route, Route::Receipt { form: found, .. } if found == form) && &*template == "/v1/receipts/{id}", "{path}");
    }
}

#[test]
fn what_is_not_in_the_table_is_not_served() {
    let routes = Routes::new([("/predict".into(), "scoring".into())]);
    assert!(routes.find(&Method::POST, "/predict").is_ok() && routes.find(&Method::GET, "/predict").is_ok());
    for path in [
        "/",
        "/predict/",
        "/v1",
        "/v2/models/",
        "/v2/models//infer",
        "/v2/models/a/versions//infer",
        "/v2/models/a%20b",
        "/v1/receipts/1",
        "/v1/receipts/0192aaaa-bbbb-7ccc-8ddd-eeeeffff0000.disclosure.statement",
        "/v1/receipts/0192aaaabbbb7ccc8dddeeeeffff0000",
    ] {
        assert_eq!(routes.find(&Method::POST, path), Err(Unmatched::Path), "{path}");
    }
    for method in ["RepositoryIndex", "ModelStreamInfer", ""] {
        let found = routes.find(&Method::POST, &format!("/inference.GRPCInferenceService/{method}"));
        assert_eq!(found, Err(Unmatched::GrpcMethod), "{method}");
    }
}

fn asked(method: Method, path: &str) -> Option<(OipAsks, String, Option<String>)> {
    match Routes::new([]).find(&method, path) {
        Ok((Route::Oip { asks, model: Some(model), version }, _)) => Some((asks, model, version)),
        Ok((Route::Models(Some(model)), _)) => Some((OipAsks::Model, model, None)),
        _ => None,
    }
}

#[test]
fn a_name_is_one_name_however_it_is_spelt() {
    for (name, spellings) in [
        ("two:latest", &["two:latest", "two%3Alatest", "two%3alatest", "%74wo:latest"][..]),
        ("a@b+c", &["a@b+c", "a%40b%2Bc", "a%40b+c"]),
        ("hf/iris", &["hf/iris", "hf%2Firis", "hf%2firis", "%68f/iris"]),
        ("org/sub/m:v1", &["org/sub/m:v1", "org%2Fsub%2Fm%3Av1", "org/sub%2fm%3av1"]),
        ("infer", &["infer", "%69nfer"]),
        ("versions", &["versions", "%76ersions"]),
        ("versions/1", &["versions/1", "versions%2F1"]),
        ("ready/card/x", &["ready/card/x", "ready%2Fcard%2Fx"]),
    ] {
        assert!(is_told_from_endings(name));
        for spelt in spellings {
            let model = |asks, version: Option<&str>| Some((asks, name.to_owned(), version.map(str::to_owned)));
            assert_eq!(asked(Method::GET, &format!("/v1/models/{spelt}")), model(OipAsks::Model, None), "{spelt}");
            for (version, spelt_version) in
                [(None, ""), (Some("1"), "/versions/1"), (Some("v:1"), "/versions/v%3A1"), (Some("infer"), "/versions/infer")]
            {
                let path = format!("/v2/models/{spelt}{spelt_version}");
                assert_eq!(asked(Method::GET, &path), model(OipAsks::Model, version), "{path}");
                for (asks, method, ending) in [
                    (OipAsks::ModelReady, Method::GET, "ready"),
                    (OipAsks::Card, Method::GET, "card"),
                    (OipAsks::Infer, Method::POST, "infer"),
                ] {
                    assert_eq!(asked(method, &format!("{path}/{ending}")), model(asks, version), "{path}/{ending}");
                }
            }
        }
    }
}

#[test]
fn what_is_no_name_once_its_escapes_are_undone_leads_nowhere() {
    let long = "a".repeat(MAX_NAME);
    assert!(asked(Method::GET, &format!("/v2/models/{long}")).is_some());
    let (longer, escaped) = (format!("{long}a"), format!("{long}%61"));
    for name in [
        "",
        "%",
        "%2",
        "%zz",
        "a%252Fb",
        "a%253Ab",
        "%25",
        "a%00",
        "a%0A",
        "a%7F",
        "a%20b",
        "a%C0%AFb",
        "a%E0%80%AFb",
        "a%C0%AE",
        "a%FF",
        "a%C3%A4",
        "a%3Fb",
        "a%23b",
        "a%22",
        "a%5Cb",
        "a%2F%2Fb",
        "%2Fa",
        "a%2F",
        "a//b",
        "/a",
        "a/",
        "a%2F..",
        "..",
        ".",
        "%2E%2E",
        "%2e",
        "a/%2e%2e/b",
        "..%2Fa",
        "a%2F%2e",
        &longer,
        &escaped,
    ] {
        for path in [
            format!("/v1/models/{name}"),
            format!("/v2/models/{name}"),
            format!("/v2/models/{name}/ready"),
            format!("/v2/models/a/versions/{name}"),
        ] {
            assert_eq!(Routes::new([]).find(&Method::GET, &path), Err(Unmatched::Path), "{path}");
        }
    }
}

#[test]
fn an_ending_that_is_escaped_is_none_and_no_name_holds_one() {
    for path in [
        "/v2/models/a%2Finfer",
        "/v2/models/a/%69nfer",
        "/v2/models/a%2Fready",
        "/v2/models/a/%72eady",
        "/v2/models/a/infer/infer",
        "/v2/models/a/ready/ready",
        "/v2/models/a%2Fcard/ready",
        "/v2/models/a%2Fversions%2F1",
        "/v2/models/a/%76ersions/1",
        "/v2/models/a/versions%2F1/ready",
        "/v2/models/a/versions/1%2Fready",
        "/v2/models/a/versions/1/2",
        "/v2/models/a/versions/1/versions/2",
        "/v2/models/a/versions/1%2F2",
        "/v2/models/a/%76ersions",
        "/v2/models/a/versions",
        "/v2%2Fmodels/a",
        "/v2/%6Dodels/a",
        "/v1/%6Dodels/a",
        "/v1/chat%2Fcompletions",
        "/v1/ch%61t/completions",
    ] {
        for method in [Method::GET, Method::POST] {
            assert_eq!(Routes::new([]).find(&method, path), Err(Unmatched::Path), "{path}");
        }
    }
    for name in ["a/infer", "a/ready", "a/card", "a/versions", "a/versions/b", "a/b/versions/c", "versions/versions"] {
        assert!(!is_told_from_endings(name), "{name}");
    }
    // There are no routes of that form under /v1, so that such a name may be asked for there.
    assert_eq!(asked(Method::GET, "/v1/models/a%2Finfer"), Some((OipAsks::Model, "a/infer".to_owned(), None)));
    // What an operator declared is what stands there, and no other spelling of it.
    let routes = Routes::new([("/predict/x:1".into(), "scoring".into())]);
    assert!(routes.find(&Method::POST, "/predict/x:1").is_ok());
    for path in ["/predict%2Fx:1", "/predict/x%3A1", "/predict/%78:1"] {
        assert_eq!(routes.find(&Method::POST, path), Err(Unmatched::Path), "{path}");
    }
}
