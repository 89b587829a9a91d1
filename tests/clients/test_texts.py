"""Searches for words: a classifier of reviews that runs in the gateway is recorded, calibrated by the command, and then searched over HTTPS as
TextFooler does it (Jin et al., 2020, arXiv 1907.11932), in JSON, in bytes and over gRPC."""

import itertools
import json
import ssl
import sys

import httpx
import numpy
import pytest
import tritonclient.grpc
import tritonclient.http

import gate as gates
from test_encoders import DATA, serve
from test_recording import Callers

sys.path.insert(0, str(DATA))
import make_encoders as encoders  # noqa: E402
from encoder_reference import write_safetensors  # noqa: E402

# So few rows that no meter is made of them, for which a build that is not optimised trains thieves for minutes.
CALLERS, REVIEWS, RATE, ALARM = 85, 2, 0.0125, "substitution"

# Words that say the same, from what says it most to what hardly does.
GOOD = [
    "superb excellent great good decent passable", "delightful charming lovely pleasant nice agreeable",
    "brilliant clever smart bright apt able", "hilarious funny witty amusing droll playful",
    "moving touching tender warm gentle mild", "gripping thrilling exciting engaging lively brisk",
    "beautiful gorgeous stunning pretty handsome neat", "masterful skilled deft sure capable competent",
    "fresh original novel inventive new unusual", "honest sincere true earnest plain direct"]
BAD = [
    "terrible awful bad poor weak lacking", "boring tedious dull slow long lengthy",
    "stupid silly foolish daft simple naive", "ugly hideous drab grey pale faded",
    "clumsy awkward stiff wooden rigid firm", "annoying grating irritating tiresome loud busy",
    "predictable stale tired worn familiar usual", "confusing messy muddled unclear complex dense",
    "hollow empty shallow thin slight light", "fake false phony forced mannered studied"]
SENSES = [sense.split() for sense in GOOD + BAD]
FILLERS = (
    "the a this that it film movie story plot actor scene cast script ending music camera director screen character dialogue picture title part role "
    "was is has had with about from into of in on at and but then so when which one two some every last first young old man woman town city "
    "house family friend night day year world life love work war sea train school summer winter").split()


def polarity(word):
    """What the model knows of a word."""
    for at, sense in enumerate(SENSES):
        if word in sense:
            return (1 if at < len(GOOD) else -1) * (1 - 0.17 * sense.index(word))
    return 0.0


def folder(home):
    """A BERT that was not trained but written: its attention takes the mean of all words, and its classifier what they say together."""
    encoders.WORDS = [*itertools.chain.from_iterable(SENSES), *FILLERS]
    encoders.PLACES, encoders.LAYERS = 64, 1
    size, wide = len(encoders.BERT + encoders.WORDS), encoders.HIDDEN
    weights = encoders.Weights(numpy.random.default_rng(0))
    weights.bert("bert.", size, encoders.PLACES, 2)
    weights.linear("bert.pooler.dense", wide, wide)
    weights.linear("classifier", 2, wide)
    all = {name: numpy.zeros_like(value) for name, value in weights.all.items()}
    for name in all:
        if "LayerNorm.weight" in name:
            all[name] += 1
    said = numpy.array([0.0] * len(encoders.BERT) + [polarity(word) for word in encoders.WORDS])
    # Each word beside its opposite and a constant, so that a norm of layers leaves what it says.
    all["bert.embeddings.word_embeddings.weight"][:, :4] = numpy.stack([said, -said, numpy.ones(size), -numpy.ones(size)], axis=1)
    all["bert.encoder.layer.0.attention.self.value.weight"] = numpy.eye(wide)
    all["bert.encoder.layer.0.attention.output.dense.weight"] = 2 * numpy.eye(wide)
    all["bert.pooler.dense.weight"] = numpy.eye(wide) * 3
    all["classifier.weight"][:, 0] = [-2, 2]
    tokenizer, _ = encoders.tokenizer(encoders.BERT, "[PAD]", "[UNK]", "[CLS]", "[SEP]")
    config = encoders.config("bert", "BertForSequenceClassification", encoders.PLACES, size, **encoders.labels(["bad", "good"]))
    home.mkdir()
    (home / "config.json").write_text(json.dumps(config))
    (home / "tokenizer.json").write_text(json.dumps(tokenizer))
    (home / "model.safetensors").write_bytes(write_safetensors(all))
    return home


def review(random):
    """Of mostly one mind."""
    mind, words = random.integers(2), []
    for _ in range(random.integers(12, 26)):
        if random.random() < 0.35:
            side = (GOOD, BAD)[mind if random.random() < 0.85 else 1 - mind]
            words.append(random.choice(random.choice(side).split()))
        else:
            words.append(random.choice(FILLERS))
    return list(map(str, words))


def day(random, reviews):
    """What an honest caller asks: reviews, of which some have a typo that is then mended, and of some it asks what if, four times."""
    asked = []
    for _ in range(reviews):
        words = review(random)
        changed = lambda with_: [with_(word) if at == place else word for at, word in enumerate(words)]
        if random.random() < 0.3:
            place = random.integers(len(words))
            asked.append(changed(lambda word: word[:-1] + "x"))
        asked.append(words)
        if random.random() < 0.15:
            for _ in range(4):
                place = random.integers(len(words))
                asked.append(changed(lambda _: str(random.choice(random.choice(SENSES)))))
    return [" ".join(words) for words in asked]


def body(texts):
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}]}


class Caller:
    def __init__(self, gate, kind="json"):
        self.gate, self.kind, self.name = gate, kind, next(gate.names)
        self.headers = {"authorization": f"Bearer {gate.key(self.name)}"}
        self.http = httpx.Client(base_url=gate.url, verify=ssl.create_default_context(cafile=gate.ca), headers=self.headers, timeout=60)
        gates.eventually(lambda: self.http.get("/v2/models/reviews").status_code == 200)
        if kind == "binary":
            options = {"ca_certs": gate.ca, "server_hostname": "127.0.0.1"}
            self.client = tritonclient.http.InferenceServerClient(gate.authority, ssl=True, ssl_options=options)
        if kind == "grpc":
            self.client = tritonclient.grpc.InferenceServerClient(gate.authority, ssl=True, root_certificates=gate.ca)

    def ask(self, text):
        """The probability that a review is good."""
        if self.kind == "json":
            answer = self.http.post("/v2/models/reviews/infer", json=body([text]))
            assert answer.status_code == 200, answer.text
            return next(output["data"][1] for output in answer.json()["outputs"] if output["name"] == "probabilities")
        library = getattr(tritonclient, {"binary": "http", "grpc": "grpc"}[self.kind])
        given = library.InferInput("text", [1], "BYTES")
        given.set_data_from_numpy(numpy.array([text.encode()], dtype=object))
        return self.client.infer("reviews", [given], headers=self.headers).as_numpy("probabilities")[0, 1]

    def alarms(self):
        return [alarm for alarm in self.gate.events("detect.alarm") if alarm["caller"] == f"api_key:{self.name}"]


def search(words, ask):
    """Each word left out, then those that matter for one of the same sense, the most important first, until the class is another."""
    words, good = list(words), ask(" ".join(words)) > 0.5
    goal = lambda words: (score := ask(" ".join(words))) * good + (1 - score) * (not good)
    order = sorted(range(len(words)), key=lambda at: goal(words[:at] + words[at + 1:]))
    best = 1.0
    for at in order:
        for other in next((sense for sense in SENSES if words[at] in sense), []):
            changed = words[:at] + [other] + words[at + 1:]
            if other != words[at] and (score := goal(changed)) < best:
                best, words = score, changed
        if best < 0.5:
            return True
    return False


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    home, random = tmp_path_factory.mktemp("texts"), numpy.random.default_rng(1)
    gate, recording = gates.Gate(home), '[detect.recording]\nfile = "../../reviews.recording.jsonl"'
    model = folder(home / "reviews")
    serve(gate, "reviews", model, backend=recording)
    callers = Callers(gate, [f"day{at}x" for at in range(CALLERS)])
    gate.start()
    callers.connect()
    for name, secret in callers.secrets.items():
        for text in day(random, REVIEWS):
            headers = {"authorization": f"Bearer {secret}"}
            assert callers.client.post("/v2/models/reviews/infer", json=body([text]), headers=headers).status_code == 200
    gates.eventually(lambda: gate.metric("portcullis_detect_recorded_callers") == CALLERS)
    assert gate.stop() == 0
    arguments = ["--policies", gate.policies, "--model", "reviews", "--fpr", RATE, "--delete-recording", "--json"]
    told = json.loads(gates.run("calibrate", *arguments, timeout=600))
    assert told["callers"] == CALLERS and told["rows"] > CALLERS * REVIEWS and told["refused"] == told["left"] == 0
    assert ALARM not in told["silent"], told
    made = (gate.policies / "models/reviews.calibration.json").read_text()
    assert json.loads(made)["of"] == "texts" and not any(word in made for word in ("gorgeous", "tiresome"))
    # A step that a family is taken for would answer in labels: here the search is to go on.
    serve(gate, "reviews", model, backend='[detect.ladder]\nmost = "alert"\n[detect]\nmode = "enforce"')
    gate.names = iter(f"caller{number}x" for number in range(1_000))
    gate.start()
    assert "not watched" not in gate.said()
    yield gate
    assert gate.stop() == 0


def test_the_model_knows_good_from_bad(watched):
    caller = Caller(watched)
    assert caller.ask("the film was superb and funny") > 0.8
    assert caller.ask("the film was terrible and boring") < 0.2
    assert 0.3 < caller.ask("the film was about a town") < 0.7


@pytest.mark.parametrize("kind", ["json", "binary", "grpc"])
def test_a_search_for_words_is_told(watched, kind):
    thief, random, asked, found = Caller(watched, kind), numpy.random.default_rng(2), [], 0

    def ask(text):
        asked.append(text)
        return thief.ask(text)

    told = lambda: [alarm for alarm in thief.alarms() if alarm["family"] == ALARM]
    for _ in range(12):
        found += search(review(random), ask)
        if told():
            break
    [alarm, *_] = gates.eventually(told)
    print(f"{kind}: told of at row {alarm['query']} of {len(asked)}, after {found} that were found; {alarm['evidence']}")
    assert found and len(asked) < 1_200
    assert alarm["step"] == "alert" and "AML.T0043.001" in alarm["atlas"] and alarm["evidence"]["links"] > 4 and alarm["receipt"]


def test_who_mends_and_asks_what_if_is_left_alone(watched):
    random, callers = numpy.random.default_rng(3), [Caller(watched) for _ in range(8)]
    for caller in callers:
        for text in day(random, 25):
            caller.ask(text)
    # Whoever asks last of all is told of after all others.
    last = Caller(watched)
    for _ in range(12):
        search(review(random), last.ask)
    gates.eventually(lambda: last.alarms())
    # To a space of so few rows other honest texts are odd at times, which is told and moves nobody on.
    assert {alarm["family"] for caller in callers for alarm in caller.alarms()} <= {"exposure", "outlier"}


def test_a_text_that_was_asked_stands_nowhere(watched):
    caller = Caller(watched)
    caller.ask("zanzibar was gorgeous")
    assert "zanzibar" not in (watched.home / "security.log").read_text()
