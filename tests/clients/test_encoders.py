"""Encoders that run in the gateway, from safetensors and from ONNX: the unmodified OpenAI and Triton clients get the vectors of a reference that does not
use the gateway's engine (`tests/data/encoder_reference.py`, numpy in float64)."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import time

import httpx
import numpy
import openai
import pytest
import ssl
import tritonclient.http as triton

import gate as gates
import receipt

DATA = gates.ROOT / "tests/data"
HOME = pathlib.Path(os.environ.get("XDG_DATA_HOME") or pathlib.Path.home() / ".local/share") / "portcullis"
SMALL = json.loads((DATA / "encoders/expected.json").read_text())


def cosine(one, other):
    return numpy.dot(one, other) / numpy.linalg.norm(one) / numpy.linalg.norm(other)


def serve(gate, name, folder, backend="", tokens='{ rate = "1000000/s" }', kind="safetensors"):
    """The folder's files, each named by its digest."""
    there = gate.policies / "models" / name
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in (".json", f".{kind}")]
    for path in files:
        target = there / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    digests = ", ".join(f'"{path.relative_to(folder)}" = "{hashlib.sha256(path.read_bytes()).hexdigest()}"' for path in files)
    gate.write(f"models/{name}.toml", f"""
        name = "{name}"
        version = "1"
        tenants = ["acme"]
        [backend.{kind}]
        path = "{name}"
        sha256 = {{ {digests} }}
        {backend}
        [budget.default]
        requests = {{ rate = "1000/s", burst = 1000 }}
        tokens = {tokens}
    """)


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    gate = gates.Gate(tmp_path_factory.mktemp("encoders"))
    for name in SMALL:
        serve(gate, name, DATA / "encoders" / name)
    minilm = HOME / "all-minilm-l6-v2"
    assert (minilm / "model.safetensors").is_file(), f"{minilm} is not there: run `make minilm`"
    serve(gate, "minilm", minilm, backend="batch = { max = 64, delay = \"2ms\" }")
    graph = HOME / "all-minilm-l6-v2-onnx/model.onnx"
    assert graph.is_file(), f"{graph} is not there: run `make minilm-onnx`"
    exported = tmp_path_factory.mktemp("exported") / "minilm"
    shutil.copytree(minilm, exported)
    shutil.copy(graph, exported)
    serve(gate, "minilm-onnx", exported, kind="onnx")
    serve(gate, "metered", DATA / "encoders/bert-mean", tokens='{ rate = "1/min", burst = 40 }')
    gate.secret = gate.key("tester")
    gate.start()
    yield gate
    assert gate.stop() == 0


@pytest.fixture(scope="module")
def client(gate):
    transport = httpx.Client(verify=ssl.create_default_context(cafile=gate.ca))
    return openai.OpenAI(base_url=gate.url + "/v1", api_key=gate.secret, http_client=transport, max_retries=0)


@pytest.mark.parametrize("model", ["minilm", "minilm-onnx"])
def test_minilm_is_what_the_reference_says_alone_and_together(client, model):
    expected = json.loads((DATA / "minilm.json").read_text())["sentences"]
    together = client.embeddings.create(model=model, input=[sentence["text"] for sentence in expected])
    assert together.model == model
    assert together.usage.prompt_tokens == together.usage.total_tokens == sum(len(sentence["ids"]) for sentence in expected)
    for sentence, answer in zip(expected, together.data):
        assert cosine(sentence["embedding"], answer.embedding) >= 0.99999
        alone = client.embeddings.create(model=model, input=sentence["ids"], encoding_format="float").data[0].embedding
        assert cosine(sentence["embedding"], alone) >= 0.99999
        assert abs(numpy.linalg.norm(alone) - 1) < 1e-5


@pytest.mark.parametrize("model", ["minilm", "minilm-onnx"])
def test_fewer_dimensions_are_cut_and_of_length_one(client, model):
    [whole] = client.embeddings.create(model=model, input="A man is eating food.").data
    [cut] = client.embeddings.create(model=model, input="A man is eating food.", dimensions=32).data
    assert len(whole.embedding) == 384 and len(cut.embedding) == 32
    assert cosine(whole.embedding[:32], cut.embedding) > 0.999999 and abs(numpy.linalg.norm(cut.embedding) - 1) < 1e-5
    assert len(client.embeddings.create(model=model, input="A man", dimensions=384).data[0].embedding) == 384
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=model, input="A man", dimensions=385)
    assert refused.value.code.startswith("check.")


@pytest.mark.parametrize("model", ["minilm", "minilm-onnx"])
@pytest.mark.parametrize("wrong", ["", [], [[]], [[1, 999_999_999]], [["nested"]], 7, ["a", 1]])
def test_what_cannot_be_embedded_is_refused(client, model, wrong):
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=model, input=wrong)
    if wrong == [[1, 999_999_999]]:
        assert refused.value.code == "infer.input" and "a token is not in the model's vocabulary" in refused.value.message


def test_texts_go_to_an_onnx_encoder_over_the_open_inference_protocol_too(gate):
    expected = json.loads((DATA / "minilm.json").read_text())["sentences"]
    texts = triton.InferInput("text", [len(expected)], "BYTES")
    texts.set_data_from_numpy(numpy.array([sentence["text"].encode() for sentence in expected], dtype=object))
    with triton.InferenceServerClient(gate.authority, ssl=True, ssl_options={"ca_certs": gate.ca}) as server:
        headers = {"authorization": f"Bearer {gate.secret}"}
        told = server.get_model_metadata("minilm-onnx", headers=headers)
        assert [port["name"] for port in told["inputs"]] == ["text"]
        assert [port["name"] for port in told["outputs"]] == ["embedding", "tokens"]
        answer = server.infer("minilm-onnx", [texts], headers=headers)
    assert answer.as_numpy("tokens").tolist() == [len(sentence["ids"]) for sentence in expected]
    for sentence, embedding in zip(expected, answer.as_numpy("embedding")):
        assert cosine(sentence["embedding"], embedding) >= 0.99999


def test_as_many_inputs_as_the_batch_and_no_more(client):
    assert len(client.embeddings.create(model="bert-mean", input=["cat"] * 64).data) == 64
    for too_many in (["cat"] * 65, [[5]] * 65):
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(model="bert-mean", input=too_many)
        assert (refused.value.code, refused.value.param) == ("check.batch", "/input")


def test_tokens_cost_the_same_in_either_protocol(gate):
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["The cat sat on the mat."]}]}
    with httpx.Client(verify=ssl.create_default_context(cafile=gate.ca), headers={"authorization": f"Bearer {gate.secret}"}) as plain:
        answers = [plain.post(gate.url + "/v2/models/metered/infer", json=body) for _ in range(3)]
    # Each reserves a quarter of its bytes and is settled at the nine tokens that were read.
    assert [answer.status_code for answer in answers] == [200, 200, 429], [answer.text for answer in answers]
    assert answers[2].headers["portcullis-reason"].startswith("budget.")


def test_an_answer_to_texts_is_not_explained(gate):
    body = {"parameters": {"explain": "permutation_shap"},
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["The cat sat on the mat."]}]}
    with httpx.Client(verify=ssl.create_default_context(cafile=gate.ca), headers={"authorization": f"Bearer {gate.secret}"}) as plain:
        answer = plain.post(gate.url + "/v2/models/bert-sequence/infer", json=body)
    assert (answer.status_code, answer.headers["portcullis-reason"]) == (400, "check.explain"), answer.text
    assert "This model is not explained." in answer.json()["error"]


def test_a_policy_that_would_have_texts_explained_is_refused_by_name(tmp_path):
    gate = gates.Gate(tmp_path)
    serve(gate, "bert-sequence", DATA / "encoders/bert-sequence")
    policy = gate.policies / "models/bert-sequence.toml"
    gate.write("models/rows.json", json.dumps({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["The cat"]}]}))
    digest = hashlib.sha256((gate.policies / "models/rows.json").read_bytes()).hexdigest()
    policy.write_text(policy.read_text() + f'\n[explain]\nbackground = "rows.json"\nsha256 = "{digest}"\n')
    told = gates.run("check", gate.policies, "--json", code=1)
    assert "only a model of tables is explained" in told and "holds texts (BYTES)" in told, told


def test_an_encoder_is_no_chat_model(client):
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="minilm", messages=[{"role": "user", "content": "hello"}])
    assert "minilm" in [model.id for model in client.models.list()]


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_architecture_and_head_answers_over_the_open_inference_protocol(gate, name):
    with triton.InferenceServerClient(gate.authority, ssl=True, ssl_options={"ca_certs": gate.ca}) as client:
        headers = {"authorization": f"Bearer {gate.secret}"}
        metadata = client.get_model_metadata(name, headers=headers)
        assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        said = [output["name"] for output in metadata["outputs"]]
        for sample in SMALL[name]:
            text = triton.InferInput("text", [1], "BYTES")
            text.set_data_from_numpy(numpy.array([sample["text"].encode()], dtype=object))
            by_text = client.infer(name, [text], headers=headers)
            assert by_text.as_numpy("tokens")[0] == len(sample["ids"])
            tokens = [triton.InferInput(tensor, [1, len(sample["ids"])], "INT64") for tensor in ("input_ids", "attention_mask")]
            tokens[0].set_data_from_numpy(numpy.array([sample["ids"]], dtype=numpy.int64))
            tokens[1].set_data_from_numpy(numpy.ones((1, len(sample["ids"])), dtype=numpy.int64))
            by_tokens = client.infer(name, tokens, headers=headers)
            for output in set(said) & set(sample):
                numpy.testing.assert_allclose(by_text.as_numpy(output)[0], sample[output], atol=5e-5)
                numpy.testing.assert_allclose(by_tokens.as_numpy(output)[0], sample[output], atol=5e-5)
        assert set(said) & set(SMALL[name][0]), "the reference says nothing of this model"


def test_a_changed_file_stops_the_start(tmp_path):
    gate = gates.Gate(tmp_path)
    serve(gate, "bert-mean", DATA / "encoders/bert-mean")
    weights = gate.policies / "models/bert-mean/model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    told = gates.run("check", gate.policies, "--json", code=1)
    assert "model.safetensors" in told


@pytest.mark.parametrize("kind", ["safetensors", "onnx"])
@pytest.mark.parametrize("command", ["serve --policies", "check", "check of isolation = \"thread\""])
def test_a_tokenizer_that_grows_without_end_brings_down_its_worker_and_not_the_gateway(tmp_path, kind, command):
    """Each of twelve rules makes ten letters of one: a terabyte, which the program would die of if it looked at the file itself."""
    small = tmp_path / "small"
    shutil.copytree(DATA / "encoders/bert-mean", small)
    if kind == "onnx":
        # Its graph is of another encoder, whose width is told in these.
        shutil.copytree(HOME / "all-minilm-l6-v2", small, dirs_exist_ok=True)
        shutil.copy(HOME / "all-minilm-l6-v2-onnx/model.onnx", small)
    told = json.loads((small / "tokenizer.json").read_text())
    rule = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    told["normalizer"] = {"type": "Sequence", "normalizers": [rule] * 12}
    grows = {"id": 0, "content": "a", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    told["added_tokens"] = [grows]
    (small / "tokenizer.json").write_text(json.dumps(told))
    gate = gates.Gate(tmp_path / "gate")
    command, _, isolation = command.partition(" of ")
    serve(gate, "grows", small, kind=kind, backend=isolation)
    began = time.monotonic()
    process = subprocess.Popen([gates.binary(), *command.split(), gate.policies], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    told = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 1, f"exit {process.returncode}: {told}"
    assert "grows.toml" in told and "the model's worker did not come up" in told, told
    # Kilobytes, of the largest process there was: a worker's bound for this model.
    assert time.monotonic() - began < 70 and usage.ru_maxrss < 1_500_000


def test_embeddings_are_metered_as_they_leave(tmp_path):
    gate, random = gates.Gate(tmp_path), numpy.random.default_rng(1)
    folder = DATA / "encoders/bert-mean"
    words = [word for word in json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"] if word.isalpha()]
    text = lambda: " ".join(random.choice(words, size=6))
    serve(gate, "small", folder)
    with open(tmp_path / "honest.jsonl", "w") as file:
        for caller in range(240):
            body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text()]}]}
            file.write(json.dumps({"caller": f"day-{caller % 20}", "body": body}) + "\n")
    arguments = ["--policies", gate.policies, "--model", "small", "--recording", tmp_path / "honest.jsonl", "--fpr", 0.1]
    gates.run("calibrate", *arguments, timeout=600)
    serve(gate, "small", folder, backend='[detect]\nmode = "enforce"')
    secrets = {name: gate.key(name) for name in ("whole", "short")}
    gate.start()
    transport = httpx.Client(verify=ssl.create_default_context(cafile=gate.ca))
    asked = [text() for _ in range(5)]
    for name, dimensions in (("whole", {}), ("short", {"dimensions": 2})):
        client = openai.OpenAI(base_url=gate.url + "/v1", api_key=secrets[name], http_client=transport, max_retries=0)
        for one in asked:
            answer = client.embeddings.with_raw_response.create(model="small", input=one, **dimensions).http_response
            _, payload, _ = receipt.verify(answer.headers, answer.content, gate.log)
            assert 0 <= payload[22] <= 10, "the statement tells how much of the model may be out"
    shown = json.loads(gates.run("exposure", f"127.0.0.1:{gate.admin_port}", "--json"))
    bits = {line["caller"].removeprefix("api_key:"): line["bits"] for line in shown}
    assert bits["whole"] > 3 * bits["short"] > 0, bits
    assert gate.stop() == 0
