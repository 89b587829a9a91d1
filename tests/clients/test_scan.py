"""What files are, told by their content: files as their own libraries write them, under names that say something else."""

import datetime
import gzip
import hashlib
import io
import json
import pickle
import subprocess
import tarfile
import zipfile

import joblib
import numpy
import pytest

import gate as gates
import onnx_file


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


LENGTH = onnx_file.ROWS * onnx_file.WIDTH * 4


def spread(folder, location="weights/rows.bin", offset=8):
    """A model two folders deep whose rows lie in another file, eight bytes from its start; and what else hubs put there."""
    (folder / "onnx/weights").mkdir(parents=True)
    rows = []

    def place(name, content):
        rows.append(content)
        return location, offset

    (folder / "onnx/model.onnx").write_bytes(onnx_file.moved(onnx_file.table(), place))
    (folder / "onnx/weights/rows.bin").write_bytes(bytes(8) + rows[0])
    (folder / "rows.bin").write_bytes(b"\0\1\2")
    (folder / "README.md").write_text("# A table\n")
    return folder / "onnx/model.onnx"


def test_files_in_which_a_models_tensors_lie_are_told_with_it(tmp_path):
    model = spread(tmp_path / "m")
    said = json.loads(gates.run("model", "scan", tmp_path / "m", "--json"))
    found = {file["name"]: file for file in said["files"]}
    assert said["ok"] and found["onnx/model.onnx"]["loaded"] and not found["onnx/model.onnx"]["tensors_of"]
    rows = found["onnx/weights/rows.bin"]
    assert (rows["kind"], rows["loaded"], rows["tensors_of"]) == ("onnx-data", True, ["onnx/model.onnx"])
    # One of the same name that is not meant.
    assert found["rows.bin"]["kind"] == "unknown" and not found["rows.bin"]["tensors_of"]
    assert "tensors of onnx/model.onnx" in gates.run("model", "scan", tmp_path / "m")
    inspected = json.loads(gates.run("model", "inspect", model, "--json"))
    assert inspected["tensors_in"] == {"weights/rows.bin": LENGTH + 8}
    assert f'in "weights/rows.bin", of which they need {LENGTH + 8} bytes' in gates.run("model", "inspect", model)

    bill = json.loads(gates.run("model", "bom", tmp_path / "m"))
    about = bill["metadata"]["component"]
    parts = {part["name"]: part for part in about["components"]}
    content = (tmp_path / "m/onnx/weights/rows.bin").read_bytes()
    part = parts["onnx/weights/rows.bin"]
    assert part["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}]
    properties = [(known["name"], known["value"]) for known in part["properties"]]
    assert ("portcullis:kind", "onnx-data") in properties and ("portcullis:tensors-of", "onnx/model.onnx") in properties
    depends = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
    assert depends[parts["onnx/model.onnx"]["bom-ref"]] == [part["bom-ref"]]
    assert "input_ids: INT64 [?, ?]" in [port["format"] for port in about["modelCard"]["modelParameters"]["inputs"]]


ELSEWHERE = {
    "above": ("../rows.bin", 0, True, "no plain path below the model's folder"),
    "absolute": ("/etc/passwd", 0, True, "no plain path below the model's folder"),
    "past-the-end": ("weights/rows.bin", 9, True, f"up to byte {LENGTH + 9}, and that file has {LENGTH + 8}"),
    "address": ("*/_ORT_MEM_ADDR_/*", 0, True, "an address in memory"),
    "absent": ("weights/other.bin", 0, False, '"weights/other.bin", which is not in the model\'s folder'),
    "of-the-folder-above": ("rows.bin", 0, False, '"rows.bin", which is not in the model\'s folder'),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_model_whose_tensors_lie_elsewhere_is_not_loaded_and_says_where(tmp_path, case):
    location, offset, unsafe, why = ELSEWHERE[case]
    spread(tmp_path / "m", location, offset)
    said = json.loads(gates.run("model", "scan", tmp_path / "m", "--json", code=1 if unsafe else 0))
    found = {file["name"]: file for file in said["files"]}
    model = found["onnx/model.onnx"]
    assert said["ok"] != unsafe and model["unsafe"] == unsafe and not model["loaded"] and why in model["why"]
    assert not any(file["tensors_of"] for file in said["files"])
    bill = json.loads(gates.run("model", "bom", tmp_path / "m"))
    [part] = [part for part in bill["metadata"]["component"]["components"] if part["name"] == "onnx/model.onnx"]
    properties = {known["name"]: known["value"] for known in part["properties"]}
    assert properties["portcullis:loaded"] == "no" and why in properties["portcullis:why"]


def test_half_of_a_model_is_told_to_be_half_of_one(tmp_path):
    model = spread(tmp_path / "m")
    [alone] = json.loads(gates.run("model", "scan", model, "--json"))["files"]
    assert not alone["loaded"] and not alone["unsafe"] and 'other files ("weights/rows.bin"): name its folder' in alone["why"]
    done = subprocess.run([gates.binary(), "model", "bom", model], capture_output=True, text=True)
    assert done.returncode == 1 and "name its folder" in done.stderr and not done.stdout


def test_commands_that_are_called_wrongly_exit_with_2(tmp_path):
    for arguments in (["verify", tmp_path], ["sign", tmp_path, "--signature", "s"], ["bom", tmp_path, "--signature", "s"], ["scan"], ["nothing"]):
        gates.run("model", *arguments, code=2)
    for command in ("inspect", "verify", "sign", "scan", "bom"):
        assert "Example" in gates.run("model", command, "--help")
