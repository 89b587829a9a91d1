# `make demo` and `make test` do all the set-up they need.

CARGO ?= cargo
PYTHON ?= python3
VENV ?= .venv
DATA := $(or $(XDG_DATA_HOME),$(HOME)/.local/share)/portcullis
MINILM_ONNX := $(DATA)/all-minilm-l6-v2-onnx/model.onnx

.PHONY: demo test build runtime minilm minilm-onnx venv node bench peers kill-loop attacks exposure fuzz

build:
	+$(CARGO) build --release --locked

# ONNX Runtime 1.28.0, pinned and checked by hash, fetched once.
runtime:
	scripts/onnxruntime

# Everything of the demo lies in target/demo; `. target/demo/env` tells a shell where.
demo: runtime build
	rm -rf target/demo
	target/release/portcullis demo --directory target/demo

# A real sentence encoder, as safetensors; and the same weights as ONNX, which need numpy and onnx.
minilm:
	scripts/minilm

minilm-onnx: minilm $(MINILM_ONNX)
$(MINILM_ONNX): tests/data/make_minilm_onnx.py tests/data/encoder_reference.py
	scripts/minilm
	$(PYTHON) -m venv target/models
	target/models/bin/pip install --quiet --disable-pip-version-check -r tests/data/requirements.txt
	target/models/bin/python tests/data/make_minilm_onnx.py

# The real clients, servers and collectors that the tests run against, pinned.
venv: $(VENV)/.ready
$(VENV)/.ready: tests/clients/requirements.txt tests/clients/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
	touch $@

# The same for Node.js (20 or newer), held to the hashes of the lock file.
NODE_CLIENTS := tests/clients/node
node: $(NODE_CLIENTS)/node_modules/.ready
$(NODE_CLIENTS)/node_modules/.ready: $(NODE_CLIENTS)/package.json $(NODE_CLIENTS)/package-lock.json
	npm ci --prefix $(NODE_CLIENTS) --ignore-scripts --no-audit --no-fund --loglevel=error
	touch $@

# One profile for what is shipped and what is tested: dependencies are compiled once.
# With `-j2` what is fetched is fetched while the program is built.
test: runtime minilm-onnx venv node build
	+$(CARGO) test --release --locked
	$(VENV)/bin/pytest -q tests/clients

# Kills the gateway under load so many times, and holds the log against what clients were promised. The tests do it a hundred times.
KILLS ?= 10000
kill-loop:
	scripts/kill-loop $(KILLS)

# Fuzzes every parser of strangers' bytes for so many seconds each; needs a C++ compiler, and no nightly.
FUZZ ?= 60
fuzz:
	scripts/fuzz $(FUZZ)

# Thieves, evaders and honest callers over HTTPS against the release binary, and the table of who was seen how soon; some hours, or minutes with ARGS=--quick.
ATTACKS := target/attacks
$(ATTACKS)/.ready: tests/attacks/requirements.txt tests/attacks/constraints.txt
	$(PYTHON) -m venv $(ATTACKS)
	$(ATTACKS)/bin/pip install --quiet --disable-pip-version-check -r tests/attacks/requirements.txt
	touch $@
attacks: ARGS =
attacks: runtime minilm build $(ATTACKS)/.ready
	OMP_NUM_THREADS=1 $(ATTACKS)/bin/pytest -q -W ignore tests/attacks
	OMP_NUM_THREADS=1 $(ATTACKS)/bin/python -W ignore tests/attacks/run.py $(ARGS)

# How near the exposure meter comes to thieves, on models of the seeds that WORLDS names; some two minutes a model.
WORLDS ?= bent2 bent3 digits2 digits3 regression2
exposure: $(ATTACKS)/.ready
	OMP_NUM_THREADS=1 $(ATTACKS)/bin/python -W ignore tests/exposure/thieves.py target/exposure $(WORLDS) 50 200 800
	PORTCULLIS_TRANSCRIPTS=$(CURDIR)/target/exposure $(CARGO) test --release --locked --lib -- --ignored --nocapture exposure::figures::how_near

# What single stops cost, and what the whole way adds for one caller.
bench:
	$(CARGO) bench --profile release --locked --bench stops --bench way

# CPU, latency and memory beside bare hyper, nginx and HAProxy, interleaved, on loopback; PEERS and ARGS say otherwise.
PEERS ?= hyper nginx haproxy haproxy-jwt portcullis
ARGS ?= --only '^chat-h[12]-(1|64)k-c32'
peers:
	$(CARGO) build --profile max --locked --bin portcullis
	benches/peers/setup.sh
	PORTCULLIS_BIN=$(CURDIR)/target/max/portcullis benches/peers/run.sh $(PEERS) $(ARGS)
