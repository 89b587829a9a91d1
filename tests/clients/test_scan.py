"""What files are, told by their content: files as their own libraries write them, under names that say something else."""

import datetime
import gzip
import io
import json
import pickle
import tarfile
import zipfile

import joblib
import numpy
import pytest

import gate as gates


def archive(*names):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as written:
        for name in names:
            written.writestr(name, b"x")
    return out.getvalue()


def tar():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as written:
        info = tarfile.TarInfo("model.pkl")
        info.size = 1
        written.addfile(info, io.BytesIO(b"x"))
    return out.getvalue()


def saved(array, write=numpy.save):
    out = io.BytesIO()
    write(out, array)
    return out.getvalue()


def dumped(value, compress=0):
    out = io.BytesIO()
    joblib.dump(value, out, compress=compress)
    return out.getvalue()


OBJECTS = numpy.array([{"a": 1}, None], dtype=object)
HOSTILE = {
    **{f"pickle-{protocol}": ("pickle", pickle.dumps({"a": [1, 2.5, "x", datetime.date(2026, 1, 1)]}, protocol)) for protocol in range(6)},
    **{f"pickled-number-{protocol}": ("pickle", pickle.dumps(7, protocol)) for protocol in range(6)},
    "pickled-call": ("pickle", b"cbuiltins\neval\n(S'1'\ntR." + b"\nrubbish behind it"),
    "joblib": ("joblib", dumped({"weights": numpy.zeros(100)})),
    "joblib-compressed": ("compressed", dumped({"weights": numpy.zeros(100)}, compress=3)),
    "torch": ("pytorch", archive("archive/data.pkl", "archive/data/0", "archive/version")),
    "torchscript": ("torchscript", archive("m/data.pkl", "m/code/__torch__.py", "m/constants.pkl")),
    "keras": ("keras", archive("metadata.json", "config.json", "model.weights.h5")),
    "hdf5": ("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(100)),
    "savedmodel": ("savedmodel", b"\x08\x01\x12\x20\x0a\x1e\x22\x05serve*\x062.15.0" + bytes(20)),
    "npy-objects": ("npy-objects", saved(OBJECTS)),
    "npz": ("npz", saved(numpy.zeros(3), numpy.savez)),
    "npz-objects": ("npy-objects", saved(OBJECTS, numpy.savez)),
    "zip": ("zip", archive("readme.txt")),
    "tar": ("tar", tar()),
    "gzip": ("compressed", gzip.compress(b"x")),
    "ort": ("ort", b"\x18\0\0\0ORTM" + bytes(40)),
    "code-in-config": ("json", b'{"model_type": "x", "auto_map": {"AutoModel": "modeling.Evil"}}'),
    "onnx-with-rubbish": ("onnx", (gates.ROOT / "policies/models/digits.onnx").read_bytes() + b"\xfa\x7f\x01x"),
}
HARMLESS = {
    "npy": ("npy", saved(numpy.zeros(3))),
    "gguf": ("gguf", b"GGUF\3\0\0\0" + bytes(16)),
    "README.md": ("text", b"---\nlicense: mit\n---\n# A model\n"),
    "config.json": ("json", b'{"model_type": "bert"}'),
    "data.csv": ("text", b"a,b\n1,2\n"),
    "model.safetensors": ("safetensors", b"\2\0\0\0\0\0\0\0{}"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_can_run_code_or_hides_what_it_holds_is_unsafe_whatever_it_is_called(name, tmp_path):
    kind, content = HOSTILE[name]
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    said = json.loads(gates.run("model", "scan", file, "--json", code=1))
    (found,) = said["files"]
    assert not said["ok"] and found["unsafe"] and not found["loaded"]
    assert found["kind"] == kind and len(found["why"]) > 20
    gates.run("model", "inspect", file, code=1)


def test_a_folder_of_what_is_harmless_is_safe(tmp_path):
    for name, (_, content) in HARMLESS.items():
        (tmp_path / name).write_bytes(content)
    said = json.loads(gates.run("model", "scan", tmp_path, "--json"))
    assert said["ok"] and {file["name"]: file["kind"] for file in said["files"]} == {name: kind for name, (kind, _) in HARMLESS.items()}
    assert [file["name"] for file in said["files"] if file["loaded"]] == ["model.safetensors"]
    (tmp_path / "extra").write_bytes(HOSTILE["pickle-4"][1])
    assert not json.loads(gates.run("model", "scan", tmp_path, "--json", code=1))["ok"]


def test_a_bill_of_materials_says_what_was_found_and_what_is_claimed(tmp_path):
    model = tmp_path / "digits"
    model.mkdir()
    (model / "model.onnx").write_bytes((gates.ROOT / "policies/models/digits.onnx").read_bytes())
    (model / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: acme/base\ndatasets:\n- acme/digits\npipeline_tag: image-classification\n---\n")
    bill = json.loads(gates.run("model", "bom", model))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    found = bill["metadata"]["component"]
    assert found["type"] == "machine-learning-model" and found["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert found["pedigree"]["ancestors"][0]["name"] == "acme/base"
    digests = {part["name"]: part["hashes"][0]["content"] for part in found["components"]}
    assert digests["model.onnx"] == json.loads(gates.run("model", "inspect", model / "model.onnx", "--json"))["sha256"]
    parameters = found["modelCard"]["modelParameters"]
    assert parameters["task"] == "image-classification" and "input: FP32 [?, 64]" in [port["format"] for port in parameters["inputs"]]
    assert [part["name"] for part in bill["components"]] == ["acme/digits"]
    data = tmp_path / "data"
    data.mkdir()
    (data / "rows.csv").write_text("a,b\n1,2\n")
    assert json.loads(gates.run("model", "bom", data, "--json"))["metadata"]["component"]["type"] == "data"


def test_commands_that_are_called_wrongly_exit_with_2(tmp_path):
    for arguments in (["verify", tmp_path], ["sign", tmp_path, "--signature", "s"], ["bom", tmp_path, "--signature", "s"], ["scan"], ["nothing"]):
        gates.run("model", *arguments, code=2)
    for command in ("inspect", "verify", "sign", "scan", "bom"):
        assert "Example" in gates.run("model", command, "--help")
