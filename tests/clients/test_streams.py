"""Streams and their statements: clients read on undisturbed, and what arrives is verified with public keys alone."""

import asyncio
import base64
import json
import os
import shutil
import ssl
import subprocess

import anthropic
import httpx
import openai
import pytest
import requests

import raw
from conftest import PROMPT
from gate import ROOT, eventually
from receipt import blocks, parts, taken_out, verify, verify_stream

CLIENTS = ROOT / "tests/clients/node"
NODE = shutil.which("node") or pytest.fail("node is not there: install Node.js 20 or newer", pytrace=False)
if not (CLIENTS / "node_modules/openai/package.json").is_file():
    pytest.fail("the clients for Node are not there: run `make node`, or npm ci --prefix tests/clients/node", pytrace=False)

ASK = [{"role": "user", "content": PROMPT}]
WANTS = [None, "mode=async", "mode=durable, wait=2000", "mode=witnessed, wait=0"]
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"


def headers(want):
    return {"provenance-want": want} if want else {}


def openai_client(gate, want, kind=openai.OpenAI, web=httpx.Client):
    http = web(verify=ssl.create_default_context(cafile=gate.ca), timeout=20)
    return kind(base_url=gate.url + "/v1", api_key=gate.app, http_client=http, max_retries=0, default_headers=headers(want))


def dumped(parts):
    return [part.model_dump() for part in parts]


@pytest.fixture(scope="module")
def plain(gate):
    """The chunks of the scripted stream as the Python client reads them where nothing is wanted."""
    with openai_client(gate, None) as client:
        chunks = dumped(client.chat.completions.create(model="scripted", messages=ASK, stream=True))
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == ["one ", "two ", "three"]
    return chunks


@pytest.mark.parametrize("want", WANTS)
def test_the_python_client_streams_undisturbed(gate, plain, want):
    with openai_client(gate, want) as client:
        assert dumped(client.chat.completions.create(model="scripted", messages=ASK, stream=True)) == plain
        *chunks, last = client.chat.completions.create(model="chat", messages=ASK, max_tokens=5, stream=True)
        assert last.choices[0].finish_reason == "length" and len("".join(chunk.choices[0].delta.content or "" for chunk in chunks)) == 5
        chunks = list(client.completions.create(model="chat", prompt=PROMPT, max_tokens=5, stream=True))
        assert len("".join(chunk.choices[0].text for chunk in chunks)) == 5
        events = list(client.responses.create(model="chat", input=PROMPT, max_output_tokens=5, stream=True))
        assert events[-1].type == "response.completed" and len(events[-1].response.output_text) == 5


@pytest.mark.parametrize("want", WANTS)
def test_the_asynchronous_python_client_streams_undisturbed(gate, plain, want):
    async def read():
        async with openai_client(gate, want, openai.AsyncOpenAI, httpx.AsyncClient) as client:
            stream = await client.chat.completions.create(model="scripted", messages=ASK, stream=True)
            chunks = [chunk async for chunk in stream]
            async with client.chat.completions.stream(model="chat", messages=ASK, max_tokens=5) as stream:
                async for _ in stream:
                    pass
                final = stream.current_completion_snapshot
            return dumped(chunks), final

    chunks, final = asyncio.run(read())
    assert chunks == plain
    assert len(final.choices[0].message.content) == 5


@pytest.mark.parametrize("want", WANTS)
def test_the_node_client_streams_undisturbed(gate, plain, want):
    def read(model, **more):
        environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
        environment |= {"GATE": gate.url, "KEY": gate.app, "MODEL": model, "PROMPT": PROMPT, "NODE_EXTRA_CA_CERTS": gate.ca} | more
        environment |= {"WANT": want} if want else {}
        done = subprocess.run([NODE, CLIENTS / "stream.mjs"], env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    scripted = read("scripted")
    told = [(chunk["id"], chunk["model"], chunk["choices"][0]["delta"]["content"]) for chunk in scripted["chat"]]
    assert told == [(chunk["id"], chunk["model"], chunk["choices"][0]["delta"]["content"]) for chunk in plain]
    found = read("chat", REAL="1")
    assert found["chat"][-1]["choices"][0]["finish_reason"] == "length"
    assert len("".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in found["chat"])) == 5
    assert len(found["final"]) == 5 and "".join(found["pieces"]) == found["final"]
    assert len("".join(chunk["choices"][0]["text"] for chunk in found["completions"])) == 5
    assert found["responses"][-1]["type"] == "response.completed"


@pytest.mark.parametrize("want", WANTS)
def test_the_anthropic_client_streams_undisturbed(gate, want):
    web = anthropic.DefaultHttpxClient(verify=ssl.create_default_context(cafile=gate.ca), timeout=20)
    with anthropic.Anthropic(base_url=gate.url, api_key=gate.app, http_client=web, max_retries=0, default_headers=headers(want)) as client:
        kinds = [event.type for event in client.messages.create(model="claude", max_tokens=3, messages=ASK, stream=True)]
        assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
        with client.messages.stream(model="claude", max_tokens=8, messages=ASK) as stream:
            pieces = list(stream.text_stream)
            final = stream.get_final_message()
        assert len(pieces) == 8 and final.content[0].text == "".join(pieces) and final.usage.output_tokens == 8


def asks(path):
    if path == "/v1/responses":
        return {"model": "chat", "input": PROMPT, "max_output_tokens": 4, "stream": True}
    more = {"prompt": PROMPT} if path == "/v1/completions" else {"messages": ASK}
    return {"model": "claude" if path == MESSAGES else "chat", "max_tokens": 4, "stream": True} | more


def from_address(gate, receipt, form=""):
    def look():
        found = requests.get(gate.url + receipt["loc"] + form, headers={"authorization": f"Bearer {gate.app}"}, verify=gate.ca)
        return found.status_code == 200 and found.json()

    return eventually(look)


@pytest.mark.parametrize("ask", [raw.http1, raw.http2])
@pytest.mark.parametrize("te", [False, True])
@pytest.mark.parametrize("want", WANTS[:3])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", MESSAGES])
def test_a_statement_arrives_where_it_was_asked_for_and_holds(gate, ask, te, want, path):
    answer = ask(gate, path, asks(path), [*([("te", "trailers")] if te else []), *headers(want).items()])
    assert answer.status == 200 and answer.whole
    receipt = parts(answer.headers["provenance-receipt"])
    assert receipt["state"] == "open"
    if want:
        statement, stream = taken_out(answer.body)
    else:
        statement, stream = None, answer.body
        assert b"provenance" not in stream
    assert (b"message_stop" in stream) if path == MESSAGES else stream.rstrip().endswith((b"[DONE]", b"}"))
    if te:
        verify({"provenance-receipt": answer.headers["provenance-receipt"], **answer.trailers}, stream, gate.log)
        in_trailers = base64.b64decode(answer.trailers["provenance-statement"].strip(":"))
        assert statement in (None, in_trailers)
        statement = in_trailers
        named = ", ".join(value for name, value in answer.lines if name == "trailer").split(", ")
        assert named == ["content-digest", "provenance-statement"]
    else:
        assert answer.trailers == {} and "trailer" not in answer.headers
    found = from_address(gate, receipt)
    assert statement in (None, base64.b64decode(found["statement"]))
    salts = from_address(gate, receipt, ".disclosure")
    claims, payload = verify_stream(base64.b64decode(found["statement"]), stream, gate.log, salts)
    assert claims[2] == f"urn:portcullis:r:{receipt['id']}" and payload[2] == 1 and payload[8][5] is True
    assert found["view"]["resp"]["n_events"] == payload[8][8] > 4 and found["view"]["resp"]["events_commit"] == payload[8][9].hex()
    if want and "durable" in want:
        # Or further, by the time that it is asked for.
        assert found["state"] in ("durable", "included")


@pytest.mark.parametrize("te", ["Trailers", "gzip;q=0.5, TRAILERS", "gzip\r\nte: trailers"])
def test_te_is_a_list_in_any_case(gate, te):
    answer = raw.http1(gate, CHAT, asks(CHAT), [("te", te)])
    verify({"provenance-receipt": answer.headers["provenance-receipt"], **answer.trailers}, answer.body, gate.log)
    answer = raw.http1(gate, CHAT, asks(CHAT), [("te", "gzip, trailers;q=0")])
    assert answer.status == 200 and answer.trailers == {} and "trailer" not in answer.headers


@pytest.mark.parametrize("ask", [raw.http1, raw.http2])
@pytest.mark.parametrize("script", ["whole", "crlf", "cr"])
def test_events_are_told_apart_however_their_lines_end(gate, ask, script):
    body = {"model": "theirs", "messages": ASK, "stream": True, "user": script}
    answer = ask(gate, CHAT, body, [("te", "trailers"), ("provenance-want", "mode=async")])
    end = {"crlf": b"\r\n", "cr": b"\r"}.get(script, b"\n")
    statement, stream = taken_out(answer.body)
    assert stream.endswith(b"data: [DONE]" + 2 * end)
    assert base64.b64decode(answer.trailers["provenance-statement"].strip(":")) == statement
    salts = from_address(gate, parts(answer.headers["provenance-receipt"]), ".disclosure")
    _, payload = verify_stream(statement, stream, gate.log, salts)
    # Where comments stand between them, one stays of the chunk of usage, which the gateway asked for and took out.
    assert payload[8][8] == (4 if script == "whole" else 8)


def test_httpx_reads_the_line_too(gate):
    with httpx.Client(verify=ssl.create_default_context(cafile=gate.ca), http2=True, timeout=20) as client:
        how = {"authorization": f"Bearer {gate.app}", "provenance-want": "mode=durable"}
        answer = client.post(gate.url + CHAT, json=asks(CHAT), headers=how)
    assert answer.http_version == "HTTP/2"
    statement, stream = taken_out(answer.content)
    salts = from_address(gate, parts(answer.headers["provenance-receipt"]), ".disclosure")
    verify_stream(statement, stream, gate.log, salts)
    first, second, *others = blocks(stream)
    for other in (stream.replace(b'"chat"', b'"chit"', 1), b"".join([second, first, *others])):
        assert len(other) == len(stream) != other
        with pytest.raises(AssertionError):
            verify_stream(statement, other, gate.log, salts)


@pytest.mark.parametrize("ask", [raw.http1, raw.http2])
def test_a_stream_that_was_cut_commits_to_what_came(gate, ask):
    body = {"model": "scripted", "messages": ASK, "stream": True, "user": "dies"}
    answer = ask(gate, CHAT, body, [("te", "trailers"), ("provenance-want", "mode=durable")])
    assert not answer.whole and answer.trailers == {} and b"provenance" not in answer.body
    receipt = parts(answer.headers["provenance-receipt"])
    found, salts = from_address(gate, receipt), from_address(gate, receipt, ".disclosure")
    _, payload = verify_stream(base64.b64decode(found["statement"]), answer.body, gate.log, salts)
    assert payload[2] == 4 and payload[8][5] is False and payload[8][8] == 2


@pytest.mark.parametrize(("want", "state"), [("mode=durable", "durable"), ("mode=async", "promised"), ("wait=5", "promised")])
def test_a_whole_answer_is_as_far_as_was_wanted(gate, want, state):
    answer = raw.http1(gate, CHAT, asks(CHAT) | {"stream": False}, headers(want).items())
    receipt, payload, _ = verify(answer.headers, answer.body, gate.log)
    assert receipt["state"] == state and 8 not in payload[8] and "trailer" not in answer.headers


@pytest.mark.parametrize("want", ["mode=never", "mode=\"durable\"", "wait=10001", "nonsense nonsense"])
@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (CHAT, {"model": "scripted", "messages": ASK, "stream": True}, lambda told: told["error"]["code"] == "prove.want"),
        (MESSAGES, {"model": "scripted-claude", "messages": ASK, "max_tokens": 3}, lambda told: told["error"]["type"] == "invalid_request_error"),
        ("/raw", {"text": "x"}, lambda told: told["status"] == 400 and told["code"] == "prove.want"),
    ],
)
def test_a_want_that_is_none_is_refused_before_any_model_runs(gate, scripted, want, path, body, said):
    before = len(scripted.requests)
    answer = raw.http1(gate, path, body, [("provenance-want", want)])
    assert answer.status == 400 and answer.headers["portcullis-reason"] == "prove.want"
    assert said(json.loads(answer.body)), answer.body
    assert len(scripted.requests) == before
    _, payload, _ = verify(answer.headers, answer.body, gate.log)
    assert payload[2] == 2 and payload[8][7] == "prove.want", "a refusal, and no failure of the gateway's"
    stranger = requests.post(gate.url + path, json=body, headers={"provenance-want": want}, verify=gate.ca)
    assert stranger.status_code == 401
