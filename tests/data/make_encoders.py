"""Makes the small encoders that tests run, one for each architecture and head, and what a float64 numpy encoder answers.

    python3 -m venv /tmp/models && /tmp/models/bin/pip install -r tests/data/requirements.txt
    /tmp/models/bin/python tests/data/make_encoders.py

writes, always the same bytes:

    tests/data/encoders/NAME/…           the folder of a model: config.json, tokenizer.json, model.safetensors, and what sentence-transformers adds
    tests/data/encoders/expected.json    texts, their tokens, and the answers of encoder_reference.py

Their weights are random: they know nothing, but every matrix of theirs shows in the answer. The reference uses the weights as the file has
them, its own tokenizer, and no batching.
"""

import json
import os
import pathlib

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", OPENBLAS_CORETYPE="Haswell")

import numpy as np

from encoder_reference import Encoder, WordPiece, read_safetensors, softmax, write_safetensors

SEED = 20260102
HIDDEN, INNER, LAYERS, HEADS, PLACES = 8, 16, 2, 2, 20
HERE = pathlib.Path(__file__).resolve().parent / "encoders"

WORDS = "the a cat dog sat on mat ran fast far and away un ##happy ##ly ##s ##ing say cafe hello , . ! ? - ' 1 2 3 ##4".split()
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
TEXTS = [
    "The cat sat on the mat.",
    "Unhappy cats, a dog ran away!",
    "Café?",
    "",
    "zebra 14 says HELLO-hello",
    "the cat and the dog and the cat and the dog and the cat and the dog and the cat ran fast and far away",
]


def tokenizer(special, pad, unknown, first, last):
    vocabulary = {token: at for at, token in enumerate(special + WORDS)}
    added = [
        {"id": at, "content": token, "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        for at, token in enumerate(special)
    ]
    ends = {token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]} for token in (first, last)}
    piece = lambda token: {"SpecialToken": {"id": token, "type_id": 0}}
    sequence = lambda name: {"Sequence": {"id": name, "type_id": 0}}
    file = {
        "version": "1.0",
        # As real files have them: the limits of somebody's training, which are not the model's.
        "truncation": {"max_length": 6, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {
            "strategy": {"Fixed": 9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": vocabulary[pad],
            "pad_type_id": 0,
            "pad_token": pad,
        },
        "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [piece(first), sequence("A"), piece(last)],
            "pair": [piece(first), sequence("A"), piece(last), sequence("B"), piece(last)],
            "special_tokens": ends,
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }
    return file, WordPiece(vocabulary, first, last, unknown)


class Weights:
    def __init__(self, random):
        self.random, self.all = random, {}

    def table(self, name, rows):
        self.all[name + ".weight"] = self.random.normal(0.0, 0.7, (rows, HIDDEN))

    def linear(self, name, out, into):
        self.all[name + ".weight"] = self.random.normal(0.0, 1.0 / np.sqrt(into), (out, into))
        self.all[name + ".bias"] = self.random.normal(0.0, 0.2, out)

    def norm(self, name, scale="weight", shift="bias"):
        self.all[f"{name}.{scale}"] = 1.0 + self.random.normal(0.0, 0.2, HIDDEN)
        self.all[f"{name}.{shift}"] = self.random.normal(0.0, 0.2, HIDDEN)

    def bert(self, prefix, vocabulary, places, types, norms=("weight", "bias")):
        e = prefix + "embeddings."
        self.table(e + "word_embeddings", vocabulary)
        self.table(e + "position_embeddings", places)
        self.table(e + "token_type_embeddings", types)
        self.norm(e + "LayerNorm", *norms)
        for i in range(LAYERS):
            p = f"{prefix}encoder.layer.{i}."
            for name in ("query", "key", "value"):
                self.linear(f"{p}attention.self.{name}", HIDDEN, HIDDEN)
            self.linear(p + "attention.output.dense", HIDDEN, HIDDEN)
            self.norm(p + "attention.output.LayerNorm", *norms)
            self.linear(p + "intermediate.dense", INNER, HIDDEN)
            self.linear(p + "output.dense", HIDDEN, INNER)
            self.norm(p + "output.LayerNorm", *norms)

    def distilbert(self, prefix, vocabulary, places):
        e = prefix + "embeddings."
        self.table(e + "word_embeddings", vocabulary)
        self.table(e + "position_embeddings", places)
        self.norm(e + "LayerNorm")
        for i in range(LAYERS):
            p = f"{prefix}transformer.layer.{i}."
            for name in "qkv":
                self.linear(f"{p}attention.{name}_lin", HIDDEN, HIDDEN)
            self.linear(p + "attention.out_lin", HIDDEN, HIDDEN)
            self.norm(p + "sa_layer_norm")
            self.linear(p + "ffn.lin1", INNER, HIDDEN)
            self.linear(p + "ffn.lin2", HIDDEN, INNER)
            self.norm(p + "output_layer_norm")


def config(kind, classes, places, vocabulary, **more):
    shared = {"architectures": [classes], "model_type": kind, "vocab_size": vocabulary, "max_position_embeddings": places}
    if kind == "distilbert":
        own = {"dim": HIDDEN, "hidden_dim": INNER, "n_heads": HEADS, "n_layers": LAYERS, "activation": "gelu", "pad_token_id": 0}
        own |= {"sinusoidal_pos_embds": False, "dropout": 0.1, "attention_dropout": 0.1}
    else:
        own = {
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5 if kind == "roberta" else 1e-12,
            "type_vocab_size": 1 if kind == "roberta" else 2,
            "pad_token_id": 1 if kind == "roberta" else 0,
            "position_embedding_type": "absolute",
            "hidden_dropout_prob": 0.1,
        }
    return shared | own | {"transformers_version": "4.57.0", "torch_dtype": "float32"} | more


def sentences(pooling, normalize, longest):
    names = ["Transformer", "Pooling"] + ["Normalize"] * normalize
    paths = ["", "1_Pooling", "2_Normalize"]
    kinds = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"]
    return {
        "modules.json": [
            {"idx": at, "name": str(at), "path": paths[at], "type": f"sentence_transformers.models.{name}"} for at, name in enumerate(names)
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": HIDDEN} | {f"pooling_mode_{kind}": kind.startswith(pooling) and kind != "mean_sqrt_len_tokens" for kind in kinds},
        "sentence_bert_config.json": {"max_seq_length": longest, "do_lower_case": False},
    }


def labels(names):
    return {"id2label": {str(at): name for at, name in enumerate(names)}, "label2id": {name: at for at, name in enumerate(names)}}


def models(random):
    """Each folder: its files as JSON, its weights, its task, its tokenizer."""
    bert, bert_pieces = tokenizer(BERT, "[PAD]", "[UNK]", "[CLS]", "[SEP]")
    roberta, roberta_pieces = tokenizer(ROBERTA, "<pad>", "<unk>", "<s>", "</s>")
    size = len(BERT + WORDS)

    w = Weights(random)
    w.bert("", size, PLACES, 2)
    w.linear("pooler.dense", HIDDEN, HIDDEN)
    w.all["embeddings.position_ids"] = np.arange(PLACES, dtype=np.int64).reshape(1, -1)
    files = {"config.json": config("bert", "BertModel", PLACES, size)} | sentences("mean", True, 12)
    yield "bert-mean", files | {"tokenizer.json": bert}, w.all, {"pooling": "mean", "normalize": True, "longest": 12}, bert_pieces

    w = Weights(random)
    w.bert("bert.", size, PLACES, 2, ("gamma", "beta"))
    w.linear("bert.pooler.dense", HIDDEN, HIDDEN)
    w.linear("classifier", 3, HIDDEN)
    files = {"config.json": config("bert", "BertForSequenceClassification", PLACES, size, hidden_act="gelu_new", **labels(["bad", "so-so", "good"]))}
    yield "bert-sequence", files | {"tokenizer.json": bert}, w.all, {"classify": "text", "longest": PLACES}, bert_pieces

    w = Weights(random)
    w.bert("bert.", size, PLACES, 2)
    w.linear("classifier", 4, HIDDEN)
    files = {"config.json": config("bert", "BertForTokenClassification", PLACES, size, **labels(["O", "B-PER", "I-PER", "B-LOC"]))}
    yield "bert-token", files | {"tokenizer.json": bert}, w.all, {"classify": "token", "longest": PLACES}, bert_pieces

    w = Weights(random)
    w.distilbert("distilbert.", size, PLACES)
    w.linear("pre_classifier", HIDDEN, HIDDEN)
    w.linear("classifier", 2, HIDDEN)
    half = {name: value.astype(np.float16) for name, value in w.all.items()}
    more = labels(["a", "b"]) | {"problem_type": "multi_label_classification"}
    files = {"config.json": config("distilbert", "DistilBertForSequenceClassification", PLACES, size, **more)}
    yield "distilbert-sequence", files | {"tokenizer.json": bert}, half, {"classify": "text", "longest": PLACES, "sigmoid": True}, bert_pieces

    w = Weights(random)
    w.bert("", size, PLACES, 1)
    files = {"config.json": config("roberta", "RobertaModel", PLACES, size)} | sentences("cls", False, 512)
    yield "roberta-cls", files | {"tokenizer.json": roberta}, w.all, {"pooling": "cls", "normalize": False, "longest": PLACES - 2}, roberta_pieces

    w = Weights(random)
    w.bert("roberta.", size, PLACES, 1)
    w.linear("classifier.dense", HIDDEN, HIDDEN)
    w.linear("classifier.out_proj", 1, HIDDEN)
    files = {"config.json": config("roberta", "RobertaForSequenceClassification", PLACES, size, **labels(["relevant"]))}
    yield "roberta-sequence", files | {"tokenizer.json": roberta}, w.all, {"classify": "text", "longest": PLACES - 2, "sigmoid": True}, roberta_pieces


def digits(array):
    return json.loads(json.dumps(np.asarray(array).tolist()), parse_float=lambda text: float(f"{float(text):.9g}"))


def main():
    random = np.random.Generator(np.random.PCG64(SEED))
    expected = {}
    for name, files, weights, task, pieces in models(random):
        data = write_safetensors(weights)
        out = {path: (json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n").encode() for path, value in files.items()}
        out["model.safetensors"] = data
        for path, content in out.items():
            (HERE / name / path).parent.mkdir(parents=True, exist_ok=True)
            (HERE / name / path).write_bytes(content)
        # As the file has them, rounded to its type; the old names of a normalisation are the same tensors.
        read = {n.replace(".gamma", ".weight").replace(".beta", ".bias"): v for n, v in read_safetensors(data).items()}
        encoder = Encoder(read, files["config.json"])
        rows = []
        for text in TEXTS:
            ids = pieces.tokens(text, task["longest"])
            row = {"text": text, "ids": ids}
            if "pooling" in task:
                row["embedding"] = digits(encoder.embed(ids, task["pooling"], task["normalize"]))
            else:
                scores = encoder.classify(ids) if task["classify"] == "text" else encoder.tag(ids)
                row["logits"] = digits(scores)
                row["probabilities"] = digits(1.0 / (1.0 + np.exp(-scores)) if task.get("sigmoid") else softmax(scores))
            rows.append(row)
        expected[name] = rows
    lines = []
    for name, rows in expected.items():
        lines.append(f' {json.dumps(name)}: [\n' + ",\n".join("  " + json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows) + "\n ]")
    (HERE / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print("\n".join(f"{path.stat().st_size:7} {path.relative_to(HERE)}" for path in sorted(HERE.rglob("*")) if path.is_file()))


if __name__ == "__main__":
    main()
