"""Makes the bundled model and the data that tests hold it against.

    python3 -m venv /tmp/models && /tmp/models/bin/pip install -r tests/data/requirements.txt
    /tmp/models/bin/python tests/data/make_models.py

writes, always the same bytes:

    policies/models/digits.onnx   handwritten digits, 64 pixels of 0 to 16 -> 10 probabilities and a label
    tests/data/digits.json      32 samples that were not trained on, and what a float64 forward pass in numpy says of them
    tests/data/SHA256SUMS       the digests of both, as `sha256sum --check` reads them from the root of the repository

The expected answers use neither ONNX Runtime nor any code of the gateway: only numpy, over the weights as the model
file has them. Hostile models are made in the tests that refuse them.
"""

import hashlib
import json
import os
import pathlib
import sys

# One thread and one set of kernels: floating-point sums then come in the same order wherever this runs.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", OPENBLAS_CORETYPE="Haswell")

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

SEED = 20260101
HIDDEN = 32
HELD_OUT = 297
SAMPLES = 32
EPOCHS = 60
BATCH = 50
RATE = 0.002

ROOT = pathlib.Path(__file__).resolve().parents[2]


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def forward(weights, x):
    """The model in float64, as the ONNX graph computes it."""
    w1, b1, w2, b2 = (w.astype(np.float64) for w in weights)
    return softmax(np.maximum(x.astype(np.float64) @ w1 + b1, 0.0) @ w2 + b2)


def train(x, y, random):
    """Adam on the cross entropy of a two-layer perceptron. The scale of the pixels, 1/16, is folded into the first layer."""
    w1 = random.normal(0.0, np.sqrt(2.0 / 64), (64, HIDDEN))
    w2 = random.normal(0.0, np.sqrt(2.0 / HIDDEN), (HIDDEN, 10))
    weights = [w1, np.zeros(HIDDEN), w2, np.zeros(10)]
    first = [np.zeros_like(w) for w in weights]
    second = [np.zeros_like(w) for w in weights]
    step = 0
    x = x / 16.0
    wanted = np.eye(10)[y]
    for _ in range(EPOCHS):
        order = random.permutation(len(x))
        for start in range(0, len(x), BATCH):
            rows = order[start : start + BATCH]
            hidden = np.maximum(x[rows] @ weights[0] + weights[1], 0.0)
            error = (softmax(hidden @ weights[2] + weights[3]) - wanted[rows]) / len(rows)
            back = (error @ weights[2].T) * (hidden > 0)
            gradients = [x[rows].T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]
            step += 1
            for i, gradient in enumerate(gradients):
                first[i] = 0.9 * first[i] + 0.1 * gradient
                second[i] = 0.999 * second[i] + 0.001 * gradient**2
                scaled = (first[i] / (1 - 0.9**step)) / (np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8)
                weights[i] = weights[i] - RATE * scaled
    weights[0] = weights[0] / 16.0
    return [w.astype(np.float32) for w in weights]


def model(weights):
    names = ["w1", "b1", "w2", "b2"]
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["input", "w1", "b1"], ["hidden"], name="layer_1"),
            helper.make_node("Relu", ["hidden"], ["active"], name="relu"),
            helper.make_node("Gemm", ["active", "w2", "b2"], ["logits"], name="layer_2"),
            helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax", axis=1),
            helper.make_node("ArgMax", ["logits"], ["label"], name="argmax", axis=1, keepdims=0),
        ],
        "digits",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 64])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
        ],
        [numpy_helper.from_array(w, n) for w, n in zip(weights, names)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="portcullis")
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString(deterministic=True)


def main():
    digits = load_digits()
    random = np.random.Generator(np.random.PCG64(SEED))
    order = random.permutation(len(digits.data))
    x, y = digits.data[order], digits.target[order]
    weights = train(x[HELD_OUT:], y[HELD_OUT:], random)

    held = forward(weights, x[:HELD_OUT])
    accuracy = float((held.argmax(axis=1) == y[:HELD_OUT]).mean())
    if accuracy < 0.95:
        sys.exit(f"the model is no good: {accuracy:.3f} on what it was not trained on")

    samples = {
        "model": "policies/models/digits.onnx",
        "about": "held-out rows of scikit-learn's digits; probabilities by numpy in float64",
        "accuracy": round(accuracy, 4),
        "samples": [
            {
                "input": [int(v) for v in x[i]],
                "digit": int(y[i]),
                "label": int(held[i].argmax()),
                "probabilities": [float(f"{p:.9g}") for p in held[i]],
            }
            for i in range(SAMPLES)
        ],
    }
    rows = ",\n".join("  " + json.dumps(s, separators=(",", ":")) for s in samples.pop("samples"))
    head = json.dumps(samples, indent=1)[:-2]
    files = {
        "policies/models/digits.onnx": model(weights),
        "tests/data/digits.json": (head + ',\n "samples": [\n' + rows + "\n ]\n}\n").encode(),
    }
    # What other scripts made keeps its line.
    before = (ROOT / "tests/data/SHA256SUMS").read_text().splitlines(keepends=True)
    sums = "".join(line for line in before if line.split()[1] not in files)
    for name, data in files.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        sums += f"{hashlib.sha256(data).hexdigest()}  {name}\n"
    (ROOT / "tests/data/SHA256SUMS").write_text(sums)
    print(sums, f"accuracy {accuracy:.4f} on {HELD_OUT} held-out samples", sep="")


if __name__ == "__main__":
    main()
