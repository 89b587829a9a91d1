"""The models that are attacked, and the natural rows that their users send.

Three, for three kinds of input: `digits`, the bundled classifier (64 pixels); `table`, a logistic regression over 30 raw measurements (scikit-learn's
breast_cancer); `images`, a perceptron over 32×32×3 colour images, composed from the same digits over crops of scikit-learn's two sample photographs.
Everything comes with scikit-learn: nothing is downloaded.

A victim's natural rows fall into four pools, by source row, which never mix: callers that calibrate, callers that test, attackers, and the holdout on which
a stolen copy is judged.
"""

import functools
import pathlib
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from scipy import ndimage
from sklearn.datasets import load_breast_cancer, load_digits, load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

ROOT = pathlib.Path(__file__).resolve().parents[2]
POOLS = ("calibrate", "test", "attack", "holdout")
SEED = 20261126


@dataclass
class Victim:
    name: str
    onnx: bytes
    low: float
    high: float
    pools: dict  # pool -> (rows, labels), labels as the data set has them
    shape: tuple = ()  # (height, width, channels) of an image; empty for a table
    jitter: object = None  # (victim, random, rows, labels, pool) -> rows that another user might have sent
    step: np.ndarray | None = None  # what a change of one unit is, per column: 1 for pixels
    session: object = field(default=None, repr=False)

    def __post_init__(self):
        self.open()
        self.dim = self.session.get_inputs()[0].shape[1]
        self.classes = self.session.get_outputs()[0].shape[1]
        everything = np.concatenate([rows for rows, _ in self.pools.values()])
        self.mean, self.sd = everything.mean(axis=0), everything.std(axis=0)
        self.least, self.most = everything.min(axis=0), everything.max(axis=0)
        if self.step is None:
            self.step = np.ones(self.dim)

    def open(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.onnx, options, providers=["CPUExecutionProvider"])

    def __getstate__(self):
        return self.__dict__ | {"session": None}

    def __setstate__(self, state):
        self.__dict__ |= state
        self.open()

    def predict(self, rows):
        """Probabilities, and labels, of the model itself."""
        return self.session.run(["probabilities", "label"], {"input": np.ascontiguousarray(rows, np.float32)})

    def natural(self, random, pool, count, label=None):
        """Rows that a user of this model sends, each slightly another than the ones of the data set; of one class if a label is given."""
        rows, labels = self.pools[pool]
        if label is not None:
            rows, labels = rows[labels == label], labels[labels == label]
        chosen = random.choice(len(rows), count, replace=count > len(rows))
        return self.jitter(self, random, rows[chosen], labels[chosen], self.pools[pool])

    def clip(self, rows):
        return np.clip(rows, self.low, self.high).astype(np.float32)

    def unit(self):
        """The scale of one visible change, per column: a sixteenth of the range of a pixel, or a tenth of a column's deviation."""
        return np.full(self.dim, (self.high - self.low) / 16) if self.shape else self.sd / 10


def pools(rows, labels, random):
    order = random.permutation(len(rows))
    parts = np.array_split(order, len(POOLS))
    return {name: (rows[part].astype(np.float32), labels[part]) for name, part in zip(POOLS, parts)}


def classifier(name, layers, dim, classes):
    """A perceptron as ONNX: `layers` are (weights, bias) pairs, with ReLU between them; probabilities and a label, like the bundled model."""
    nodes, values, last = [], [], "input"
    for i, (weights, bias) in enumerate(layers):
        values += [numpy_helper.from_array(np.asarray(weights, np.float32), f"w{i}"), numpy_helper.from_array(np.asarray(bias, np.float32), f"b{i}")]
        nodes.append(helper.make_node("Gemm", [last, f"w{i}", f"b{i}"], [f"z{i}"], name=f"layer_{i}"))
        last = f"z{i}"
        if i + 1 < len(layers):
            nodes.append(helper.make_node("Relu", [last], [f"a{i}"], name=f"relu_{i}"))
            last = f"a{i}"
    nodes.append(helper.make_node("Softmax", [last], ["probabilities"], name="softmax", axis=1))
    nodes.append(helper.make_node("ArgMax", [last], ["label"], name="argmax", axis=1, keepdims=0))
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", classes]),
               helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"])]
    graph = helper.make_graph(nodes, name, [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", dim])], outputs, values)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="portcullis")
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString(deterministic=True)


@functools.cache
def digits():
    """The bundled model. Its pixels are counts of 0 to 16, so a user's rows are whole numbers."""
    data = load_digits()
    model = (ROOT / "policies/models/digits.onnx").read_bytes()
    return Victim("digits", model, 0.0, 16.0, pools(data.data, data.target, np.random.default_rng(SEED)), (8, 8, 1), another_hand)


def another_hand(_, random, rows, __, ___):
    """Every other row a little off centre, a little lighter or darker."""
    made = rows.copy()
    for i in np.flatnonzero(random.random(len(rows)) < 0.5):
        moved = ndimage.shift(rows[i].reshape(8, 8), random.uniform(-0.2, 0.2, 2), order=1) * random.uniform(0.93, 1.07)
        made[i] = np.clip(np.rint(moved), 0, 16).ravel()
    return made


@functools.cache
def table():
    """A logistic regression; the scaler is folded into its weights, so callers send measurements in their own units."""
    data = load_breast_cancer()
    scaler = StandardScaler().fit(data.data)
    fitted = LogisticRegression(max_iter=2000).fit(scaler.transform(data.data), data.target)
    weights, bias = fitted.coef_[0] / scaler.scale_, fitted.intercept_[0] - (fitted.coef_[0] * scaler.mean_ / scaler.scale_).sum()
    model = classifier("table", [(np.stack([-weights / 2, weights / 2], 1), [-bias / 2, bias / 2])], 30, 2)
    decimals = np.array([max(len(np.format_float_positional(v).split(".")[1]) for v in column[:50]) for column in data.data.T])
    return Victim("table", model, 0.0, 6000.0, pools(data.data, data.target, np.random.default_rng(SEED)), (), another_case, 10.0**-decimals)


def another_case(victim, random, rows, labels, pool):
    """Between a row and another of its class: 500 rows are too few for thousands of callers."""
    others, theirs = pool
    mates = np.stack([others[random.choice(np.flatnonzero(theirs == label))] for label in labels])
    mixed = rows + random.uniform(0, 0.5, (len(rows), 1)) * (mates - rows)
    decimals = np.rint(-np.log10(victim.step)).astype(int)
    return np.maximum(np.stack([np.round(mixed[:, i], decimals[i]) for i in range(len(decimals))], 1), 0).astype(np.float32)


def crops(random, count, size, grey=False):
    """Crops of scikit-learn's two photographs, 0 to 255: natural images that show nothing the victims know."""
    made = []
    for _ in range(count):
        photo = load_photographs()[random.integers(2)]
        side = int(size * random.uniform(1, 6))
        top, left = random.integers(photo.shape[0] - side), random.integers(photo.shape[1] - side)
        crop = photo[top : top + side, left : left + side]
        scaled = ndimage.zoom(crop, (size / side, size / side, 1), order=1)[:size, :size]
        made.append(scaled.mean(axis=2, keepdims=True) if grey else scaled)
    return np.clip(np.stack(made), 0, 255)


@functools.cache
def load_photographs():
    return [photo.astype(np.float32) for photo in load_sample_images().images]


def coloured(random, glyphs):
    """Digits of one colour, somewhere near the middle of a photograph."""
    backgrounds = crops(random, len(glyphs), 32)
    made = np.empty((len(glyphs), 32, 32, 3), np.float32)
    for i, glyph in enumerate(glyphs):
        mask = np.clip(ndimage.zoom(glyph.reshape(8, 8) / 16, 3.5, order=1), 0, 1)
        placed = np.zeros((32, 32))
        top, left = random.integers(1, 4, 2)
        placed[top : top + 28, left : left + 28] = mask
        colour = random.uniform(150, 255, 3)
        made[i] = backgrounds[i] * 0.4 * (1 - placed[..., None]) + colour * placed[..., None]
    return np.clip(np.rint(made + random.normal(0, 2, made.shape)), 0, 255).reshape(len(glyphs), -1).astype(np.float32)


@functools.cache
def images():
    """A perceptron over 3,072 bytes; the scale of the bytes is folded into its first layer."""
    data, random = load_digits(), np.random.default_rng(SEED)
    rows, labels = np.concatenate([coloured(random, data.data) for _ in range(2)]), np.concatenate([data.target] * 2)
    fitted = MLPClassifier((64,), alpha=0.1, max_iter=12, random_state=SEED).fit(rows / 255 - 0.3, labels)
    first, second = zip(fitted.coefs_, fitted.intercepts_)
    layers = [(first[0] / 255, first[1] - 0.3 * first[0].sum(axis=0)), second]
    kept = pools(coloured(random, data.data), data.target, np.random.default_rng(SEED))
    return Victim("images", classifier("images", layers, 3072, 10), 0.0, 255.0, kept, (32, 32, 3), another_exposure)


def another_exposure(_, random, rows, __, ___):
    return np.clip(np.rint(rows * random.uniform(0.9, 1.1, (len(rows), 1)) + random.normal(0, 2, rows.shape)), 0, 255).astype(np.float32)


def foreign(victim, random, count):
    """What an attacker without data of the victim's kind asks with: crops of photographs, or a table whose columns are drawn each for itself."""
    if victim.shape:
        height, _, channels = victim.shape
        scale = victim.high / 255
        return victim.clip(np.rint(crops(random, count, height, channels == 1).reshape(count, -1) * scale))
    rows, _ = victim.pools["attack"]
    return np.stack([random.choice(column, count) for column in rows.T], 1).astype(np.float32)


ALL = {"digits": digits, "table": table, "images": images}
