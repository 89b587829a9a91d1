"""Writes all-MiniLM-L6-v2 as ONNX, from its safetensors, without torch: the same weights for the other engine.

    scripts/minilm
    python3 -m venv /tmp/models && /tmp/models/bin/pip install -r tests/data/requirements.txt
    /tmp/models/bin/python tests/data/make_minilm_onnx.py [FOLDER [FILE]]

FOLDER is where `scripts/minilm` puts the model, FILE by default model.onnx beside that folder, in all-minilm-l6-v2-onnx; it is printed with its
SHA-256. Opset 17. Inputs `input_ids` and `attention_mask`, INT64 [batch, tokens]; outputs `embedding`, FP32 [batch, 384], the mean over the
tokens that the mask shows, brought to length 1, and `token_embeddings`, FP32 [batch, tokens, 384]. 90 MB: it is not kept in the repository.

No Gather by a Range: the extended optimizations of some ONNX Runtimes break it. The positions are a Slice of their table.
"""

import hashlib
import json
import os
import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from encoder_reference import read_safetensors

DIGEST = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class Graph:
    def __init__(self):
        self.nodes, self.initializers, self.count = [], {}, 0

    def op(self, kind, *inputs, to=None, **attributes):
        self.count += 1
        to = to or f"{kind.lower()}_{self.count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [to], name=f"{kind}_{self.count}", **attributes))
        return to

    def hold(self, name, array):
        self.initializers[name] = array
        return name

    def ints(self, *values):
        name = "ints_" + "_".join(str(value) for value in values).replace("-", "m")
        return self.hold(name, np.array(values, np.int64))

    def float(self, name, value):
        return self.hold(name, np.array(value, np.float32))


def build(weights, config):
    g = Graph()
    hidden, heads, eps = config["hidden_size"], config["num_attention_heads"], config["layer_norm_eps"]
    each = hidden // heads
    single = lambda name: g.hold(name, weights[name].astype(np.float32))

    def linear(x, name):
        # Transposed once here, so that nothing is transposed when it runs.
        matrix = g.hold(name + ".weight", np.ascontiguousarray(weights[name + ".weight"].astype(np.float32).T))
        return g.op("Add", g.op("MatMul", x, matrix), single(name + ".bias"))

    def norm(x, name):
        return g.op("LayerNormalization", x, single(name + ".weight"), single(name + ".bias"), axis=-1, epsilon=eps)

    def gelu(x):
        inner = g.op("Add", g.op("Erf", g.op("Div", x, g.float("sqrt_2", 2.0**0.5))), g.float("one", 1.0))
        return g.op("Mul", g.op("Mul", x, inner), g.float("half", 0.5))

    def split(x, order):
        return g.op("Transpose", g.op("Reshape", x, g.ints(0, 0, heads, each)), perm=order)

    tokens = g.op("Slice", g.op("Shape", "input_ids"), g.ints(1), g.ints(2), g.ints(0))
    # The only token type is added to the positions here.
    places = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    places = g.op("Slice", g.hold("places", places.astype(np.float32)), g.ints(0), tokens, g.ints(0))
    words = g.op("Gather", single("embeddings.word_embeddings.weight"), "input_ids", axis=0)
    x = norm(g.op("Add", words, places), "embeddings.LayerNorm")

    # By hand: `to` is the name of an attribute of Cast too.
    g.nodes.append(helper.make_node("Cast", ["attention_mask"], ["shown"], name="Cast_mask", to=TensorProto.FLOAT))
    hidden_places = g.op("Sub", g.float("one", 1.0), "shown")
    bias = g.op("Mul", g.op("Unsqueeze", hidden_places, g.ints(1, 2)), g.float("far_below", -1e9))

    for i in range(config["num_hidden_layers"]):
        p = f"encoder.layer.{i}."
        query = split(linear(x, p + "attention.self.query"), [0, 2, 1, 3])
        key = split(linear(x, p + "attention.self.key"), [0, 2, 3, 1])
        value = split(linear(x, p + "attention.self.value"), [0, 2, 1, 3])
        scores = g.op("Div", g.op("MatMul", query, key), g.float("scale", each**0.5))
        mixed = g.op("MatMul", g.op("Softmax", g.op("Add", scores, bias), axis=-1), value)
        mixed = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.ints(0, 0, hidden))
        x = norm(g.op("Add", linear(mixed, p + "attention.output.dense"), x), p + "attention.output.LayerNorm")
        inner = gelu(linear(x, p + "intermediate.dense"))
        x = norm(g.op("Add", linear(inner, p + "output.dense"), x), p + "output.LayerNorm")

    g.op("Identity", x, to="token_embeddings")
    weight = g.op("Unsqueeze", "shown", g.ints(2))
    total = g.op("ReduceSum", g.op("Mul", x, weight), g.ints(1), keepdims=0)
    # The sum over the mask is the mean times a number, and the number falls out with the length.
    length = g.op("Max", g.op("ReduceL2", total, axes=[1], keepdims=1), g.float("least", 1e-12))
    g.op("Div", total, length, to="embedding")

    graph = helper.make_graph(
        g.nodes,
        "all-MiniLM-L6-v2",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in ("input_ids", "attention_mask")],
        [
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", hidden]),
            helper.make_tensor_value_info("token_embeddings", TensorProto.FLOAT, ["batch", "tokens", hidden]),
        ],
        [numpy_helper.from_array(array, name) for name, array in g.initializers.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="portcullis")
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString(deterministic=True)


def main():
    share = pathlib.Path(os.environ.get("XDG_DATA_HOME") or pathlib.Path.home() / ".local/share") / "portcullis"
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else share / "all-minilm-l6-v2"
    file = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else folder.parent / "all-minilm-l6-v2-onnx" / "model.onnx"
    data = (folder / "model.safetensors").read_bytes()
    if hashlib.sha256(data).hexdigest() != DIGEST:
        sys.exit("this is another model.safetensors than the one pinned")
    made = build(read_safetensors(data), json.loads((folder / "config.json").read_text()))
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_bytes(made)
    part.replace(file)
    print(f"{hashlib.sha256(made).hexdigest()}  {file}")


if __name__ == "__main__":
    main()
