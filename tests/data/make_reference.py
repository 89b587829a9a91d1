"""Makes what all-MiniLM-L6-v2 answers according to numpy, in float64: what every engine that runs it is held against.

    scripts/minilm
    python3 -m venv /tmp/models && /tmp/models/bin/pip install -r tests/data/requirements.txt
    /tmp/models/bin/python tests/data/make_reference.py ~/.local/share/portcullis/all-minilm-l6-v2

writes tests/data/minilm.json: sentences, their tokens, and their vectors: the mean over the tokens, brought to length 1. One text is longer
than the model reads; of it only the tokens are kept. encoder_reference.py has no code of the engines, of their tokenizer or of their loader.
"""

import hashlib
import json
import os
import pathlib
import sys

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", OPENBLAS_CORETYPE="Haswell")

from encoder_reference import Encoder, WordPiece, read_safetensors

DIGEST = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LONGEST = 256
SENTENCES = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "Crème brûlée — naïve café, SÃO PAULO!",
    "機械学習 und Straße №5",
    "antidisestablishmentarianism's 3.14159% of 'quoted' #hashtags",
    "Hi",
    "emoji 🙂 and <b>markup</b>\tand\nlines",
]
LONG = "inference gateways verify what they load; " * 60


def main():
    folder = pathlib.Path(sys.argv[1])
    data = (folder / "model.safetensors").read_bytes()
    if hashlib.sha256(data).hexdigest() != DIGEST:
        sys.exit("this is another model.safetensors than the one pinned")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    pieces = WordPiece(vocabulary, "[CLS]", "[SEP]", "[UNK]")
    encoder = Encoder(read_safetensors(data), json.loads((folder / "config.json").read_text()))
    rows = []
    for text in SENTENCES:
        ids = pieces.tokens(text, LONGEST)
        vector = [float(f"{value:.9g}") for value in encoder.embed(ids, "mean", True)]
        rows.append({"text": text, "ids": ids, "embedding": vector})
    longest = {"text": LONG, "ids": pieces.tokens(LONG, LONGEST)}
    dump = lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    lines = ",\n".join("  " + dump(row) for row in rows)
    about = "all-MiniLM-L6-v2 by encoder_reference.py, float64"
    file = f'{{\n "about": {dump(about)},\n "sha256": {dump(DIGEST)},\n "sentences": [\n{lines}\n ],\n "long": {dump(longest)}\n}}\n'
    (pathlib.Path(__file__).resolve().parent / "minilm.json").write_text(file)
    print([len(row["ids"]) for row in rows], len(longest["ids"]))


if __name__ == "__main__":
    main()
