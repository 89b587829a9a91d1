"""Makes the small model of a table that explanations are held against.

    python3 -m venv /tmp/models && /tmp/models/bin/pip install -r tests/data/requirements.txt
    /tmp/models/bin/python tests/data/make_tabular.py

writes, always the same bytes:

    tests/data/tabular.onnx   an age and five numbers -> three probabilities, by a perceptron whose features act together
    tests/data/tabular-beside.onnx, tests/data/tabular.weights   the same, with its weights in a file of their own
    tests/data/tabular.json   its weights in float64, rows to explain, and a background

Nothing is learnt: the weights are drawn. What is right of an explanation is told by others, over the weights.
"""

import hashlib
import json
import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SEED = 20260102
HIDDEN = 8
ROOT = pathlib.Path(__file__).resolve().parents[2]


def model(weights):
    names = ["w1", "b1", "w2", "b2"]
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["age"], ["years"], to=TensorProto.FLOAT, name="cast"),
            helper.make_node("Concat", ["years", "rest"], ["row"], axis=1, name="concat"),
            helper.make_node("Gemm", ["row", "w1", "b1"], ["hidden"], name="layer_1"),
            helper.make_node("Tanh", ["hidden"], ["active"], name="tanh"),
            helper.make_node("Gemm", ["active", "w2", "b2"], ["logits"], name="layer_2"),
            helper.make_node("Softmax", ["logits"], ["risk"], axis=1, name="softmax"),
        ],
        "tabular",
        [
            helper.make_tensor_value_info("age", TensorProto.INT64, ["batch", 1]),
            helper.make_tensor_value_info("rest", TensorProto.FLOAT, ["batch", 5]),
        ],
        [
            helper.make_tensor_value_info("risk", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3]),
        ],
        [numpy_helper.from_array(w, n) for w, n in zip(weights, names)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="portcullis")
    onnx.checker.check_model(made, full_check=True)
    return made


def beside(made):
    """The model without its weights, and those."""
    outside = onnx.ModelProto.FromString(made.SerializeToString())
    data = b""
    for tensor in outside.graph.initializer:
        place = {"location": "tabular.weights", "offset": str(len(data)), "length": str(len(tensor.raw_data))}
        data += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
    return outside, data


def rows(random, count):
    return [[int(random.integers(18, 90)), *(round(float(v), 3) for v in random.normal(size=5))] for _ in range(count)]


def main():
    random = np.random.Generator(np.random.PCG64(SEED))
    w1 = random.normal(0.0, 1.0, (6, HIDDEN))
    w1[0] /= 30.0
    weights = [w1, random.normal(0.0, 0.5, HIDDEN), random.normal(0.0, 1.0, (HIDDEN, 3)), random.normal(0.0, 0.5, 3)]
    weights = [w.astype(np.float32) for w in weights]
    told = {
        "weights": [w.astype(np.float64).tolist() for w in weights],
        "background": rows(random, 12),
        "rows": rows(random, 4),
    }
    made = model(weights)
    outside, data = beside(made)
    files = {
        "tests/data/tabular.onnx": made.SerializeToString(deterministic=True),
        "tests/data/tabular-beside.onnx": outside.SerializeToString(deterministic=True),
        "tests/data/tabular.weights": data,
        "tests/data/tabular.json": (json.dumps(told, separators=(",", ":")) + "\n").encode(),
    }
    before = (ROOT / "tests/data/SHA256SUMS").read_text().splitlines(keepends=True)
    sums = "".join(line for line in before if line.split()[1] not in files)
    for name, data in files.items():
        (ROOT / name).write_bytes(data)
        sums += f"{hashlib.sha256(data).hexdigest()}  {name}\n"
    (ROOT / "tests/data/SHA256SUMS").write_text(sums)


if __name__ == "__main__":
    main()
