"""An encoder of the BERT family in numpy and float64, with its own reader of safetensors and its own tokenizer: what the gateway's engines are
held against. It uses no code of theirs, no tokenizer library and no batching: each text runs alone, without padding.

Written after the papers (Vaswani et al. 2017; Devlin et al. 2018; Liu et al. 2019; Sanh et al. 2019) and the published names of tensors.
"""

import json
import math
import struct
import unicodedata

import numpy as np

WIDTHS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8"}
erf = np.vectorize(math.erf)

ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1.0 + erf(x / math.sqrt(2.0))),
    "gelu_new": lambda x: 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0.0),
}


def read_safetensors(data):
    """Every tensor of a file, in float64."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        raw = np.frombuffer(data[8 + length + start : 8 + length + end], WIDTHS[entry["dtype"]])
        tensors[name] = raw.reshape(entry["shape"]).astype(np.float64)
    return tensors


def write_safetensors(tensors):
    """A file of float32 (or, where the array is one, float16 or int64) tensors, in the order of their names."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name in sorted(tensors):
        array = tensors[name]
        dtype = {"float16": "F16", "int64": "I64"}.get(str(array.dtype), "F32")
        raw = array.astype(WIDTHS[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


class WordPiece:
    """BERT's uncased tokenizer: clean, split at CJK and punctuation, strip accents, then the longest pieces first."""

    def __init__(self, vocabulary, first, last, unknown):
        self.vocabulary, self.first, self.last, self.unknown = vocabulary, first, last, unknown

    def tokens(self, text, longest):
        pieces = [piece for word in self.words(text) for piece in self.pieces(word)]
        return [self.vocabulary[self.first], *pieces[: longest - 2], self.vocabulary[self.last]]

    def words(self, text):
        spaced = ""
        for char in text:
            category = unicodedata.category(char)
            if char in "\0\ufffd" or (category.startswith("C") and char not in "\t\n\r"):
                continue
            if char in "\t\n\r" or category == "Zs":
                spaced += " "
            elif self.is_cjk(ord(char)):
                spaced += f" {char} "
            else:
                spaced += char
        spaced = "".join(c for c in unicodedata.normalize("NFD", spaced) if unicodedata.category(c) != "Mn").lower()
        words = []
        for word in spaced.split():
            words.append("")
            for char in word:
                if self.is_punctuation(char):
                    words += [char, ""]
                else:
                    words[-1] += char
        return [word for word in words if word]

    @staticmethod
    def is_punctuation(char):
        ascii_mark = char.isascii() and char.isprintable() and not char.isalnum() and char != " "
        return ascii_mark or unicodedata.category(char).startswith("P")

    @staticmethod
    def is_cjk(point):
        ranges = [(0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF)]
        return any(low <= point <= high for low, high in ranges + [(0xF900, 0xFAFF), (0x2F800, 0x2FA1F)])

    def pieces(self, word):
        if len(word) > 100:
            return [self.vocabulary[self.unknown]]
        found, start = [], 0
        while start < len(word):
            ends = range(len(word), start, -1)
            names = (("##" if start else "") + word[start:end] for end in ends)
            end, name = next(((e, n) for e, n in zip(ends, names) if n in self.vocabulary), (None, None))
            if end is None:
                return [self.vocabulary[self.unknown]]
            found.append(self.vocabulary[name])
            start = end
        return found


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


class Encoder:
    """The forward pass of one text."""

    def __init__(self, weights, config):
        self.kind = config["model_type"]
        prefix = {"bert": "bert.", "roberta": "roberta.", "distilbert": "distilbert."}[self.kind]
        self.w = {name.removeprefix(prefix): value for name, value in weights.items()}
        distil = self.kind == "distilbert"
        self.layers = config["n_layers" if distil else "num_hidden_layers"]
        self.heads = config["n_heads" if distil else "num_attention_heads"]
        self.act = ACTIVATIONS[config["activation" if distil else "hidden_act"]]
        self.eps = 1e-12 if distil else config["layer_norm_eps"]
        self.offset = config["pad_token_id"] + 1 if self.kind == "roberta" else 0

    def linear(self, name, x):
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def norm(self, name, x):
        mean = x.mean(axis=-1, keepdims=True)
        variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + self.eps) * self.w[name + ".weight"] + self.w[name + ".bias"]

    def attention(self, query, key, value):
        split = lambda x: x.reshape(len(x), self.heads, -1).transpose(1, 0, 2)
        q, k, v = split(query), split(key), split(value)
        mixed = softmax(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])) @ v
        return mixed.transpose(1, 0, 2).reshape(len(query), -1)

    def hidden(self, ids):
        """The vector of every token."""
        e = "embeddings."
        places = np.arange(len(ids)) + self.offset
        x = self.w[e + "word_embeddings.weight"][ids] + self.w[e + "position_embeddings.weight"][places]
        if self.kind != "distilbert":
            x = x + self.w[e + "token_type_embeddings.weight"][0]
        x = self.norm(e + "LayerNorm", x)
        for i in range(self.layers):
            if self.kind == "distilbert":
                p = f"transformer.layer.{i}."
                q, k, v = (self.linear(f"{p}attention.{n}_lin", x) for n in "qkv")
                x = self.norm(p + "sa_layer_norm", x + self.linear(p + "attention.out_lin", self.attention(q, k, v)))
                inner = self.act(self.linear(p + "ffn.lin1", x))
                x = self.norm(p + "output_layer_norm", x + self.linear(p + "ffn.lin2", inner))
            else:
                p = f"encoder.layer.{i}."
                q, k, v = (self.linear(f"{p}attention.self.{n}", x) for n in ("query", "key", "value"))
                mixed = self.linear(p + "attention.output.dense", self.attention(q, k, v))
                x = self.norm(p + "attention.output.LayerNorm", x + mixed)
                inner = self.act(self.linear(p + "intermediate.dense", x))
                x = self.norm(p + "output.LayerNorm", x + self.linear(p + "output.dense", inner))
        return x

    def embed(self, ids, pooling, normalize):
        x = self.hidden(ids)
        vector = x[0] if pooling == "cls" else x.mean(axis=0)
        return vector / np.linalg.norm(vector) if normalize else vector

    def classify(self, ids):
        """The scores of a text."""
        first = self.hidden(ids)[0]
        if self.kind == "bert":
            return self.linear("classifier", np.tanh(self.linear("pooler.dense", first)))
        if self.kind == "roberta":
            return self.linear("classifier.out_proj", np.tanh(self.linear("classifier.dense", first)))
        return self.linear("classifier", np.maximum(self.linear("pre_classifier", first), 0.0))

    def tag(self, ids):
        """The scores of every token."""
        return self.linear("classifier", self.hidden(ids))
