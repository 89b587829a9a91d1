use std::time::{Duration, Instant};

use serde_json::json;

use super::*;

fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, schema) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, schema.to_string()).unwrap();
    }
    folder
}

fn compiled(schema: Value) -> Result<Schema, Mistake> {
    let folder = folder(&[("a.json", schema)]);
    Schema::compile(&folder.path().join("a.json"))
}

#[test]
fn a_broken_rule_is_told_by_its_place_and_keyword_and_never_by_the_value() {
    let schema = compiled(json!({"type": "object", "properties": {"a/b": {"items": {"maximum": 5}}}, "required": ["a/b"]})).unwrap();
    assert!(schema.validate(&json!({"a/b": [1, 5]})).is_ok());
    let place = schema.validate(&json!({"a/b": [1, 987_654]})).unwrap_err();
    assert_eq!((place.pointer(), place.rule()), ("/a~1b/1", "maximum"));
    assert!(!format!("{place:?}{place}").contains("987"));
    let place = schema.validate(&json!({})).unwrap_err();
    assert_eq!((place.pointer(), place.rule()), ("", "required"));
}

#[test]
fn a_long_pointer_is_cut() {
    let schema = compiled(json!({"additionalProperties": {"type": "string"}})).unwrap();
    let place = schema.validate(&json!({"é".repeat(5_000): 1})).unwrap_err();
    assert!(place.pointer().len() <= 200);
}

#[test]
fn references_end_in_the_folder_and_nowhere_else() {
    let files = folder(&[
        ("outside.json", json!({"type": "integer"})),
        ("in/a.json", json!({"$ref": "sub/b.json#/$defs/x"})),
        ("in/sub/b.json", json!({"$defs": {"x": {"$ref": "../c.json"}}})),
        ("in/c.json", json!({"type": "integer"})),
        ("in/up.json", json!({"$ref": "../outside.json"})),
        ("in/escaped.json", json!({"$ref": "%2e%2e/outside.json"})),
        ("in/absolute.json", json!({"$ref": "file:///etc/passwd"})),
        ("in/remote.json", json!({"$ref": "http://127.0.0.1:1/x.json"})),
        ("in/renamed.json", json!({"$id": "https://example.com/a.json", "$ref": "c.json"})),
        ("in/link.json", json!({"$ref": "leads-out.json"})),
    ]);
    std::os::unix::fs::symlink(files.path().join("outside.json"), files.path().join("in/leads-out.json")).unwrap();
    let at = |name: &str| Schema::compile(&files.path().join("in").join(name));
    let schema = at("a.json").unwrap();
    assert!(schema.validate(&json!(1)).is_ok() && schema.validate(&json!("1")).is_err());
    for name in ["up.json", "escaped.json", "absolute.json", "remote.json", "renamed.json", "link.json"] {
        let mistake = at(name).unwrap_err();
        assert!(mistake.file.unwrap().ends_with(name), "{name}");
    }
}

#[test]
fn a_pattern_that_could_run_long_either_runs_in_linear_time_or_does_not_compile() {
    let schema = compiled(json!({"pattern": "^(a+)+$"})).unwrap();
    let started = std::time::Instant::now();
    assert!(schema.validate(&json!(format!("{}!", "a".repeat(100_000)))).is_err());
    assert!(started.elapsed() < std::time::Duration::from_secs(5));
    assert!(compiled(json!({"pattern": "(a)\\1"})).is_err());
    assert!(compiled(json!({"pattern": "(?=a)b"})).is_err());
}

#[test]
fn a_schema_that_refers_to_itself_without_end_is_harmless() {
    for schema in [
        json!({"$ref": "#"}),
        json!({"allOf": [{"$ref": "#"}]}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}}),
    ] {
        if let Ok(schema) = compiled(schema) {
            let _ = schema.validate(&json!({"a": 1}));
        }
    }
}

/// How long the quickest of three takes.
fn quickest(mut work: impl FnMut()) -> Duration {
    let once = |_| {
        let started = Instant::now();
        work();
        started.elapsed()
    };
    (0..3).map(once).min().unwrap()
}

/// As many numbers as a body of 1 MB may have.
fn junk() -> Value {
    Value::from(vec![1; 500_000])
}

/// `bottom` under so many members `c`; nothing is copied, as `json!` would.
fn deep(depth: usize, bottom: Value) -> Value {
    (0..depth).fold(bottom, |below, _| Value::from_iter([("c", below)]))
}

#[test]
fn where_a_tree_breaks_its_schema_is_looked_for_within_bounds() {
    let tree = |keyword: &str, draft: &str, at: &str| {
        let either = |needs: &str| json!({"properties": {"c": {"$ref": format!("#/{at}/tree")}}, "required": [needs]});
        let schema = json!({"$schema": draft, "$ref": format!("#/{at}/tree"), at: {"tree": {"type": "object", keyword: [either("x"), either("y")]}}});
        compiled(schema).unwrap()
    };
    let (new, old) = ("https://json-schema.org/draft/2020-12/schema", "http://json-schema.org/draft-07/schema#");
    for (keyword, schema) in
        [("anyOf", tree("anyOf", new, "$defs")), ("oneOf", tree("oneOf", new, "$defs")), ("anyOf", tree("anyOf", old, "definitions"))]
    {
        for document in [deep(3, json!({})), deep(60, json!({})), deep(12, json!({"j": junk()})), deep(118, json!({"j": junk()}))] {
            let mut place = None;
            let taken = quickest(|| place = Some(schema.validate(&document).unwrap_err()));
            let place = place.unwrap();
            assert_eq!((place.pointer(), place.rule()), ("", keyword));
            let copied = quickest(|| drop(document.clone()));
            assert!(taken < copied * 4 + Duration::from_millis(20), "{taken:?}, and {copied:?} for a copy");
        }
    }
}

#[test]
fn where_a_choice_does_not_hold_nothing_of_the_body_is_copied() {
    let names = |letter: char| (0..10).map(|n| format!("{letter}{n}")).collect::<Vec<_>>();
    for keyword in ["anyOf", "oneOf"] {
        let schema = compiled(json!({"properties": {"in": {keyword: [{"required": names('a')}, {"required": names('b')}]}}})).unwrap();
        let document = json!({"in": {"j": junk()}});
        let mut place = None;
        let taken = quickest(|| place = Some(schema.validate(&document).unwrap_err()));
        let place = place.unwrap();
        assert_eq!((place.pointer(), place.rule()), ("/in", keyword));
        // Each of twenty errors had a copy.
        let copied = quickest(|| drop(document.clone()));
        assert!(taken < copied * 4 + Duration::from_millis(20), "{taken:?}, and {copied:?} for a copy");
    }
}

#[test]
fn what_is_looked_at_again_and_again_counts_as_much_as_it_is() {
    let below = json!({"properties": {"c": {"$ref": "#"}}});
    let schema = compiled(
        json!({"allOf": [below, below, {"properties": {"j": {"items": {"maximum": 1}, "minItems": 1}}}], "properties": {"c": {"type": "object"}}, "not": {"required": ["no"]}}),
    );
    let schema = schema.unwrap();
    let refused = |depth: usize| {
        let mut document = deep(depth, json!({"j": junk()}));
        document["no"] = json!(1);
        document
    };
    let place = schema.validate(&refused(1)).unwrap_err();
    assert_eq!((place.pointer(), place.rule()), ("", "not"));
    let document = refused(118);
    let copied = quickest(|| drop(document.clone()));
    let taken = quickest(|| assert_eq!(schema.validate(&document).unwrap_err(), Place::unknown()));
    assert!(taken < copied * 100, "{taken:?}, and {copied:?} for a copy");
}

#[test]
fn the_place_of_a_choice_is_that_of_what_it_is_about() {
    let either = json!({"anyOf": [{"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}, false]});
    let schema = json!({
        "properties": {
            "default": {"items": either},
            "a/b~c": either,
            "same": {"$ref": "#/properties/default/items/anyOf/0"},
            "inner": {"$ref": "#/properties/default/items/anyOf/0/properties/x"},
            "names": {"propertyNames": {"oneOf": [{"maxLength": 2}, {"const": "long"}]}},
            "both": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
            "one": {"anyOf": [{"type": "integer"}]},
            "schema": {"$ref": "https://json-schema.org/draft/2020-12/schema"},
            "closed": {"anyOf": [{"properties": {"k": true}}], "unevaluatedProperties": false},
        },
    });
    let schema = compiled(schema).unwrap();
    assert!(schema.marked.is_some());
    let right = json!({
        "default": [{"x": 1}], "a/b~c": {"x": 1}, "same": {"x": 1}, "inner": 1, "names": {"ab": 1, "long": 2}, "both": 1.5, "one": 1,
        "schema": {"items": {"type": "string"}}, "closed": {"k": 1},
    });
    assert_eq!(schema.validate(&right), Ok(()));
    for (document, pointer, rule) in [
        (json!({"default": [{"x": 1}, {"x": "1"}]}), "/default/1", "anyOf"),
        (json!({"a/b~c": {}}), "/a~1b~0c", "anyOf"),
        (json!({"same": {"x": "1"}}), "/same/x", "type"),
        (json!({"inner": "1"}), "/inner", "type"),
        (json!({"names": {"abc": 1}}), "", "propertyNames"),
        (json!({"both": 1}), "/both", "oneOf"),
        (json!({"one": "1"}), "/one", "anyOf"),
        (json!({"schema": {"items": {"items": {"type": "nonsense"}}}}), "/schema", "$ref"),
        (json!({"closed": {"k": 1, "l": 1}}), "/closed", "unevaluatedProperties"),
    ] {
        let place = schema.validate(&document).unwrap_err();
        assert_eq!((place.pointer(), place.rule()), (pointer, rule), "{document}");
    }
}

#[test]
fn where_a_long_document_breaks_its_schema_is_found_at_its_end_too() {
    let item = json!({"type": "object", "properties": {"a": {"anyOf": [{"type": "integer"}, {"type": "string"}]}}, "required": ["a"]});
    let schema = compiled(json!({"items": item})).unwrap();
    let mut items = vec![json!({"a": 1, "b": 2}); 20_000];
    items.push(json!({"a": 1.5}));
    let place = schema.validate(&Value::from(items)).unwrap_err();
    assert_eq!((place.pointer(), place.rule()), ("/20000/a", "anyOf"));
}

#[test]
fn marks_change_nothing_of_what_is_data_in_a_schema() {
    let schema = json!({"properties": {"a": {"enum": [{"items": 1}]}}, "dependentRequired": {"items": ["a"]}, "maxProperties": 2});
    let schema = compiled(schema).unwrap();
    assert!(schema.marked.is_some());
    for (document, pointer, rule) in [
        (json!({"a": {"items": 2}}), "/a", "enum"),
        (json!({"items": 1}), "", "required"),
        (json!({"a": {"items": 1}, "x": 1, "y": 1}), "", "maxProperties"),
    ] {
        let place = schema.validate(&document).unwrap_err();
        assert_eq!((place.pointer(), place.rule()), (pointer, rule));
    }
    assert!(schema.validate(&json!({"a": {"items": 1}})).is_ok());
}

#[test]
fn a_schema_that_is_wrong_or_too_long_is_a_mistake_with_its_file_and_place() {
    let mistake = compiled(json!({"properties": {"a": {"type": "nonsense"}}})).unwrap_err();
    assert!(mistake.what.contains("/properties/a/type"), "{}", mistake.what);
    assert!(compiled(json!({"description": "x".repeat(MOST_SCHEMA)})).unwrap_err().what.contains("1 MiB"));
    assert!(Schema::compile(Path::new("/nowhere/at/all.json")).is_err());
}
